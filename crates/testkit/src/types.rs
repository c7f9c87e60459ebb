//! Columns of every type that must be replicated, with values that are likely to cause errors.

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

/// A column, its type, and values to test.
#[derive(Clone, Copy, Debug)]
pub struct ColumnCase {
    /// The name of the column, as the catalog spells it.
    pub name: &'static str,
    /// The type of the column.
    pub sql_type: &'static str,
    /// The texts of values.
    pub values: &'static [&'static str],
    /// A function that returns SQL expressions of random values.
    pub random: Option<fn(&mut StdRng) -> String>,
}

impl ColumnCase {
    /// Returns the SQL expression of a value: often one at a limit, and rarely NULL.
    pub fn value(&self, rng: &mut StdRng) -> String {
        match self.random {
            _ if rng.random_ratio(1, 20) => "NULL".to_owned(),
            Some(random) if self.values.is_empty() || rng.random_ratio(1, 2) => random(rng),
            _ => literal(self.values.choose(rng).copied().unwrap_or_default()),
        }
    }
}

/// Returns a text as an SQL literal.
#[must_use]
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Returns a name as an SQL identifier.
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The user-defined types of [`COLUMNS`].
pub const DEFINITIONS: &str = r#"
CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy "day"', 'ë🌍');
CREATE DOMAIN short AS int2 CHECK (VALUE < 100);
CREATE DOMAIN shorter AS short;
CREATE DOMAIN ints AS int4[];
CREATE TYPE pair AS (a int, gone text, "b ""c""" text);
ALTER TYPE pair DROP ATTRIBUTE gone;
CREATE TYPE nested AS (one pair, many pair[], m mood, at timestamptz, d short, doc jsonb);
CREATE TYPE floatrange AS RANGE (subtype = float8);
"#;

const fn column(name: &'static str, sql_type: &'static str, values: &'static [&'static str]) -> ColumnCase {
    ColumnCase { name, sql_type, values, random: None }
}

const fn random(
    name: &'static str,
    sql_type: &'static str,
    values: &'static [&'static str],
    random: fn(&mut StdRng) -> String,
) -> ColumnCase {
    ColumnCase { name, sql_type, values, random: Some(random) }
}

const TIMESTAMPS: &[&str] = &[
    "infinity",
    "-infinity",
    "4713-01-01 00:00:00 BC",
    "294276-12-31 23:59:59.999999",
    "0001-12-31 23:59:59.999999 BC",
    "0001-01-01 00:00:00",
    "1999-12-31 23:59:59.999999",
    "2000-01-01 00:00:00",
];
const JSONS: &[&str] = &[
    "null",
    "[]",
    "{}",
    "\"\"",
    "1e-300",
    "123456789012345678901234567890.000100",
    "9007199254740993",
    r#"{"a": [1, 2.50, null, true, {"b\"": "\u00e9\ud83c\udf0d"}], "": "x"}"#,
    r"[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]",
];

/// A column of each type.
pub const COLUMNS: &[ColumnCase] = &[
    column("bool", "bool", &["t", "f"]),
    column("int2", "int2", &["0", "-32768", "32767"]),
    column("int4", "int4", &["0", "-1", "-2147483648", "2147483647"]),
    column(
        "int8",
        "int8",
        &[
            "0",
            "9007199254740992",
            "9007199254740993",
            "-9007199254740993",
            "-9223372036854775808",
            "9223372036854775807",
        ],
    ),
    column("float4", "float4", &["0", "-0", "0.1", "NaN", "Infinity", "-Infinity", "3.4028235e38", "1e-45"]),
    column(
        "float8",
        "float8",
        &["0", "-0", "0.1", "NaN", "Infinity", "-Infinity", "1.7976931348623157e308", "5e-324", "9007199254740993"],
    ),
    random(
        "numeric",
        "numeric",
        &[
            "0",
            "0.000",
            "1.10",
            "NaN",
            "Infinity",
            "-Infinity",
            "1234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
            "-0.1234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
            "1e1000",
            "1e-1000",
        ],
        digits,
    ),
    column("numeric(10,3)", "numeric(10,3)", &["0", "1.5", "-1234567.891", "NaN"]),
    random("tëxt 🌍 \"quoted\"", "text", &["", "'", "\\", "\u{1}\t\r\n", "NULL", "\u{fffd}\u{ffff}"], every_plane),
    random("varchar(40)", "varchar(40)", &["", "  ", "é"], every_plane),
    column("char(7)", "char(7)", &["", "ab", "é"]),
    column("\"char\"", "\"char\"", &["", "a", r"\377"]),
    column("name", "name", &["", "a name"]),
    random("bytea", "bytea", &[r"\x", r"\x00", r"\x00ff7f80", r"\x5c5c27"], bytes),
    column("uuid", "uuid", &["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]),
    column("date", "date", &["infinity", "-infinity", "4713-01-01 BC", "0044-03-15 BC", "5874897-12-31", "2000-02-29"]),
    column("time", "time", &["00:00", "24:00:00", "23:59:59.999999"]),
    column("timetz", "timetz", &["24:00:00+15:59:59", "00:00:00-15:59:59", "04:05:06.789+05:30"]),
    column("timestamp", "timestamp", TIMESTAMPS),
    column("timestamptz", "timestamptz", TIMESTAMPS),
    column(
        "interval",
        "interval",
        &["0", "178000000 years", "-178000000 years", "1 mon -1 day 00:00:00.000001", "2147483647 days", "-00:00:00.5"],
    ),
    column("json", "json", JSONS),
    column("json, twice a name", "json", &[r#"{"a":1,"a":  2}"#, r#""\u0000""#, " [ 1.10 , 2 ] "]),
    column("jsonb", "jsonb", JSONS),
    column("int4[]", "int4[]", &["{}", "{1,NULL,3}", "{{1,2},{3,NULL}}", "{{{1},{2}}}", "[0:1]={7,8}"]),
    column("text[]", "text[]", &["{}", r#"{a,"",NULL,"NULL","{\"}","é🌍"}"#, "{{a},{NULL}}"]),
    column("numeric[]", "numeric[]", &["{NaN,1.50,-Infinity}", "{}"]),
    column("timestamptz[]", "timestamptz[]", &["{infinity,-infinity,294276-12-31,NULL}"]),
    column("jsonb[]", "jsonb[]", &[r#"{"{\"a\": [1]}",NULL}"#]),
    column("enum", "mood", &["sad", "so so", "happy \"day\"", "ë🌍"]),
    column("enum[]", "mood[]", &[r#"{sad,"so so",NULL,ë🌍}"#, "{}"]),
    column("domain", "short", &["-32768", "7"]),
    column("domain of domain", "shorter", &["99"]),
    column("domain[]", "short[]", &["{7,NULL}"]),
    column("domain of array", "ints", &["{1,2}", "{}"]),
    column("composite", "pair", &["(1,x)", "(,)", r#"(-1,"a,""b")"#]),
    column("composite[]", "pair[]", &[r#"{"(1,x)",NULL,"(2,)"}"#]),
    column(
        "nested",
        "nested",
        &[r#"("(1,x)","{""(2,y)"",NULL}",sad,2000-01-01,7,"{""k"": [1.5]}")"#, "(,{},,,,)", "(,,,infinity,,)"],
    ),
    column("int4range", "int4range", &["empty", "[1,9]", "(,5)", "(,)", "[7,)"]),
    column("int8range", "int8range", &["[-9223372036854775808,9223372036854775807)", "empty"]),
    column("numrange", "numrange", &["(1.50,NaN]", "[-Infinity,0)", "[1,1]"]),
    column("daterange", "daterange", &["[2000-01-01,infinity]", "[0044-03-15 BC,2000-01-01)"]),
    column("tsrange", "tsrange", &["(2000-01-01,2000-01-01 00:00:00.5]", "(,infinity)", "[0044-03-15 BC,)"]),
    column("tstzrange", "tstzrange", &["[2000-01-01,294276-12-31)", "empty"]),
    column("floatrange", "floatrange", &["[-Infinity,NaN]", "[0.1,0.2)"]),
    column("int4multirange", "int4multirange", &["{}", "{[1,3),[7,9)}", "{(,)}"]),
    column("int8multirange", "int8multirange", &["{[-9223372036854775808,0),[5,)}"]),
    column("nummultirange", "nummultirange", &["{(,1.0),[2.5,3]}"]),
    column("datemultirange", "datemultirange", &["{[2000-01-01,2000-02-01)}"]),
    column("tsmultirange", "tsmultirange", &["{[2000-01-01,2000-02-01),[2001-01-01,infinity]}"]),
    column("tstzmultirange", "tstzmultirange", &["{[2000-01-01,2000-02-01)}", "{}"]),
    column("floatmultirange", "floatmultirange", &["{[0.5,1.5),[2,Infinity)}"]),
    column("inet", "inet", &["0.0.0.0/0", "192.168.0.1", "10.1.2.3/8", "::", "2001:db8::1/64", "::ffff:1.2.3.4"]),
    column("cidr", "cidr", &["10.0.0.0/8", "::/0", "2001:db8::/32"]),
    column("macaddr", "macaddr", &["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"]),
    column("bit(9)", "bit(9)", &["101010101", "000000000"]),
    column("varbit", "varbit", &["", "1", "111111111"]),
    column("money", "money", &["0", "-92233720368547758.08", "92233720368547758.07"]),
    column("oid", "oid", &["0", "4294967295"]),
    column("pg_lsn", "pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF"]),
    column("tsvector", "tsvector", &["", r"a:1A,2B 'it''s' é:16383"]),
    column("point", "point", &["(0,-0)", "(NaN,Infinity)", "(0.1,1e300)"]),
];

/// Returns a number of up to 100 digits.
fn digits(rng: &mut StdRng) -> String {
    let mut text: String = if rng.random() { "-" } else { "" }.to_owned();
    let count = rng.random_range(1..100);
    let point = rng.random_range(0..count);
    for place in 0..count {
        text.push(char::from(b'0' + rng.random_range(0..10_u8)));
        if place == point {
            text.push('.');
        }
    }
    text.push('1');
    text
}

/// Returns characters of all seventeen planes of Unicode.
fn every_plane(rng: &mut StdRng) -> String {
    let character = |_| {
        let plane = rng.random_range(0..17_u32) << 16;
        char::from_u32(plane | rng.random_range(1..=0xffff)).unwrap_or('\u{e9}')
    };
    literal(&(0..20).map(character).collect::<String>())
}

fn bytes(rng: &mut StdRng) -> String {
    let length = rng.random_range(0..200);
    let hex: String = (0..length).map(|_| format!("{:02x}", rng.random::<u8>())).collect();
    literal(&format!("\\x{hex}"))
}
