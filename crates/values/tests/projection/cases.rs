//! Types, their values, and the SQL that yields PostgreSQL's own form of them.

/// The form that the projection must equal.
pub(crate) enum ExpectedForm {
    /// The text form.
    Text,
    /// The string that `to_jsonb` returns for the value.
    IsoText,
    /// The JSON that `to_jsonb` returns for the value.
    Json,
    /// The number of the text form, or the text itself if it is not finite.
    Number,
    /// The text of an expression, in which `{}` is the column.
    Sql(&'static str),
}

/// A type and some of its values.
pub(crate) struct ProjectionCase {
    pub(crate) sql_type: &'static str,
    pub(crate) expect: ExpectedForm,
    /// Literals, or SQL expressions for random values.
    pub(crate) values: &'static [&'static str],
}

impl ProjectionCase {
    /// Returns the SQL expression of the expected form.
    pub(crate) fn expression(&self, column: &str) -> String {
        match self.expect {
            ExpectedForm::Text | ExpectedForm::Number => format!("{column}::text"),
            ExpectedForm::IsoText => format!("to_jsonb({column}) #>> '{{}}'"),
            ExpectedForm::Json => format!("to_jsonb({column})"),
            ExpectedForm::Sql(expression) => expression.replace("{}", column),
        }
    }
}

const fn case(sql_type: &'static str, expect: ExpectedForm, values: &'static [&'static str]) -> ProjectionCase {
    ProjectionCase { sql_type, expect, values }
}

use ExpectedForm::{IsoText, Json, Number, Sql, Text};

const TIMETZ: ExpectedForm = Sql(r"regexp_replace({}::text, '([+-]\d\d)$', '\1:00')");
const BASE64: ExpectedForm = Sql(r"replace(encode({}, 'base64'), E'\n', '')");
const OBJECT_NUMBER: ExpectedForm = Sql("{}::oid");

/// The SQL that creates the user-defined types of the cases.
pub(crate) const TYPES: &str = r#"
CREATE EXTENSION citext;
CREATE EXTENSION hstore;
CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy "day"');
CREATE DOMAIN short AS int2 CHECK (VALUE < 100);
CREATE DOMAIN shorter AS short;
CREATE DOMAIN ints AS int4[];
CREATE TYPE pair AS (a int, gone text, "b c" text);
ALTER TYPE pair DROP ATTRIBUTE gone;
CREATE TYPE nested AS (one pair, many pair[], m mood, at timestamptz, d shorter, doc jsonb);
CREATE TYPE textrange AS RANGE (subtype = text, collation = "C");
CREATE TYPE floatrange AS RANGE (subtype = float8);
CREATE TYPE singlerange AS RANGE (subtype = float4);
CREATE TYPE boolrange AS RANGE (subtype = bool);
CREATE TYPE timerange AS RANGE (subtype = timetz);
CREATE TYPE bytearange AS RANGE (subtype = bytea);
CREATE TYPE intervalrange AS RANGE (subtype = interval);
CREATE TYPE pairrange AS RANGE (subtype = pair);
CREATE TYPE listrange AS RANGE (subtype = text[], collation = "C");
CREATE TYPE jsonrange AS RANGE (subtype = jsonb);
CREATE TYPE rangerange AS RANGE (subtype = int8range);
"#;

pub(crate) const CASES: &[ProjectionCase] = &[
    case("bool", Json, &["t", "f"]),
    case("int2", Number, &["0", "-32768", "32767"]),
    case("int4", Number, &["0", "-2147483648", "2147483647"]),
    case("int8", Number, &["0", "-1", "9007199254740992", "-9007199254740992"]),
    case("int8", Text, &["9007199254740993", "-9007199254740993", "-9223372036854775808", "9223372036854775807"]),
    case("float4", Sql("{}::float8"), &["NaN", "Infinity", "-Infinity"]),
    case("real", Json, &["0", "1.5", "-16777216", "0.25"]),
    case("float8", Number, FLOATS),
    case("numeric", Text, NUMERICS),
    case("numeric(10,3)", Text, &["0", "1.5", "-1234567.891", "NaN"]),
    case("numeric(3,-2)", Text, &["12345", "-99949", "0"]),
    case("numeric(3,8)", Text, &["0.00000123", "-0.00000001"]),
    case("money", Sql("{}::numeric"), &["0", "12.34", "-0.05", "92233720368547758.07", "-92233720368547758.08"]),
    case("text", Text, TEXTS),
    case("varchar(20)", Text, TEXTS),
    case("char(10)", IsoText, &["ab", "", "é"]),
    case("name", Text, TEXTS),
    case("citext", Text, &["AbC"]),
    case("\"char\"", Text, &["a", "", r"\377", r"\001", r"\"]),
    case(
        "bytea",
        BASE64,
        &[
            "",
            r"\x00",
            r"\x00ff",
            r"\x00ff01",
            r"\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f40",
        ],
    ),
    case("xml", IsoText, &["<a b=\"c\">é</a>", "<?xml version=\"1.0\" encoding=\"UTF-8\"?><a/>", "text"]),
    case("uuid", Text, &["00112233-4455-6677-8899-aabbccddeeff"]),
    case("refcursor", Text, &["some cursor"]),
    case("date", IsoText, DATES),
    case("time", IsoText, TIMES),
    case(
        "timetz",
        TIMETZ,
        &["00:00:00+00", "04:05:06.789-08", "24:00:00+05:30", "12:00:00.000001+15:59:59", "12:00:00-15:59:59"],
    ),
    case("timestamp", IsoText, TIMESTAMPS),
    case("timestamptz", IsoText, TIMESTAMPS),
    case("interval", Text, INTERVALS),
    case("json", Json, JSONS),
    case("jsonb", Json, JSONS),
    case("json", Text, &["9007199254740993", "1e400", "0.1234567890123456789"]),
    case("jsonb", Text, &["9007199254740993", "0.1234567890123456789"]),
    case("inet", IsoText, ADDRESSES),
    case("cidr", Text, &["10.0.0.0/8", "10.1.2.3", "::/0", "2001:db8::/32", "::1.2.3.4"]),
    case("macaddr", Text, &["08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"]),
    case("macaddr8", Text, &["08:00:2b:01:02:03:04:05"]),
    case("bit(9)", Text, &["101010101", "000000000"]),
    case("varbit", Text, &["", "1", "10101010", "111111111"]),
    case("oid", Text, &["0", "4294967295"]),
    case("xid", Text, &["0", "4294967295"]),
    case("cid", Text, &["0", "4294967295"]),
    case("xid8", Text, &["0", "18446744073709551615"]),
    case("regclass", OBJECT_NUMBER, &["pg_class", "-"]),
    case("regtype", OBJECT_NUMBER, &["int4"]),
    case("regproc", OBJECT_NUMBER, &["now"]),
    case("regprocedure", OBJECT_NUMBER, &["now()"]),
    case("regoper", OBJECT_NUMBER, &["||/"]),
    case("regoperator", OBJECT_NUMBER, &["+(int4,int4)"]),
    case("regconfig", OBJECT_NUMBER, &["english"]),
    case("regdictionary", OBJECT_NUMBER, &["simple"]),
    case("regnamespace", OBJECT_NUMBER, &["public"]),
    case("regrole", OBJECT_NUMBER, &["postgres"]),
    case("regcollation", OBJECT_NUMBER, &["\"C\""]),
    case("tid", Text, &["(0,1)", "(4294967295,65535)"]),
    case("pg_lsn", Text, &["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"]),
    case("pg_snapshot", Text, &["10:20:", "10:20:10,14,15"]),
    case("txid_snapshot", Text, &["10:20:10,14,15"]),
    case(
        "point",
        Text,
        &[
            "(1,2)",
            "(-0,1e300)",
            "(NaN,Infinity)",
            "(1e15,1e-5)",
            "(1e23,-1e23)",
            "(9007199254740993,-4)",
            "(123456789012345,0.0001)",
        ],
    ),
    case("lseg", Text, &["[(1,2),(3.5,-4)]"]),
    case("box", Text, &["(1,2),(3,4)"]),
    case("path", Text, &["[(1,2),(3,4),(5,6)]", "((1,2),(3,4))"]),
    case("polygon", Text, &["((1,2),(3,4),(5,6))"]),
    case("line", Text, &["{1,-2,3.25}"]),
    case("circle", Text, &["<(1,2),3>"]),
    case("tsvector", Text, &["", "a:1A,2B,3C,4 'it''s' 'back\\\\slash':5 é:16383"]),
    case("tsquery", Text, QUERIES),
    case("jsonpath", Text, &["$.a[*] ? (@ > 1)", "strict $"]),
    case("int2vector", Json, &["", "1 2 3"]),
    case("oidvector", Json, &["1"]),
    case("int4[]", Json, &["{}", "{1,NULL,3}", "{{1,2},{3,4},{5,NULL}}", "{{{1},{2}}}"]),
    case("int4[]", Text, &["[0:1]={7,8}", "[-1:0][5:5]={{1},{2}}", "[2:3]={NULL,1}"]),
    case("text[]", Text, &["[0:3]={a,\"\",NULL,\"b c\"}"]),
    case("jsonb[]", Text, &["{{1,2},{3,\"[1]\"}}"]),
    case("text[]", Json, &["{a,\"\",NULL,\"NULL\",\"{\"}"]),
    case("timestamptz[]", Json, &["{2000-01-01,infinity}"]),
    case("date[][]", Json, &["{{2000-01-01},{0044-03-15 BC}}"]),
    case("jsonb[]", Json, &["{\"{\\\"a\\\": [1]}\",NULL}"]),
    case("bool[]", Json, &["{t,f}"]),
    case("uuid[]", Json, &["{00112233-4455-6677-8899-aabbccddeeff}"]),
    case("mood", Text, &["sad", "so so", "happy \"day\""]),
    case("mood[]", Json, &["{sad,\"so so\"}"]),
    case("short", Number, &["7"]),
    case("shorter", Number, &["7"]),
    case("shorter[]", Json, &["{7,NULL}"]),
    case("ints", Json, &["{1,2}"]),
    case("pair", Json, &["(1,x)", "(,)", "(-1,\"a,\"\"b\")"]),
    case("pair[]", Json, &["{\"(1,x)\",NULL,\"(2,)\"}"]),
    case(
        "nested",
        Json,
        &[r#"("(1,x)","{""(2,y)"",NULL}",sad,2000-01-01,7,"{""k"": [1.5]}")"#, "(,,,,,)", "(,{},,,,)"],
    ),
    case("hstore", Sql(r"'\x' || encode(hstore_send({}), 'hex')"), &["a=>1, b=>NULL"]),
    case("int4range", Text, &["empty", "[1,9]", "(,5)", "(,)", "[7,)"]),
    case("int8range", Text, &["[-9223372036854775808,9223372036854775807)"]),
    case("numrange", Text, &["(1.50,NaN]", "[-Infinity,0)"]),
    case("daterange", Text, &["[2000-01-01,infinity]", "[0044-03-15 BC,2000-01-01)"]),
    case("tsrange", Text, &["[2000-01-01,2000-01-01 00:00:00.5]", "(,infinity)", "[0044-03-15 BC,)"]),
    case("tstzrange", Text, &["[2000-01-01,2000-01-02)"]),
    case("int4multirange", Text, &["{}", "{[1,3),[7,9)}"]),
    case("nummultirange", Text, &["{(,1.0),[2.5,3]}"]),
    case("tstzmultirange", Text, &["{[2000-01-01,2000-01-02)}"]),
    case("tsmultirange", Text, &["{[2000-01-01,2000-01-02)}"]),
    case("datemultirange", Text, &["{[2000-01-01,2000-01-02)}"]),
    case("int8multirange", Text, &["{[1,2)}"]),
    case("int4range[]", Json, &["{\"[1,3)\",NULL}"]),
    case(
        "textrange",
        Text,
        &[r#"["",a]"#, r#"["a b","c""d"]"#, r#"["(","[\\"]"#, "[a,é\u{2003}z]", "[\"a\tb\",\"{\"]", "[a',b]"],
    ),
    case("floatrange", Text, &["[1e-5,1e15]", "[-Infinity,NaN]", "[0.1,0.30000000000000004)", "[-0,0]"]),
    case("singlerange", Text, &["[0.1,1e6]", "[1e-4,16777216]", "[1.1754944e-38,3.4028235e+38]", "[123456.7,1234567]"]),
    case("boolrange", Text, &["[f,t]"]),
    case("timerange", Text, &["[12:00:00+00,13:00:00-05:30]"]),
    case("bytearange", Text, &[r#"["\\x00","\\xff"]"#]),
    case("intervalrange", Text, &["[P1D,P1M]"]),
    case("pairrange", Text, &[r#"["(1,""a b"")","(2,)"]"#, r#"["(1,"""")","(1,""\\\\"")"]"#]),
    case("listrange", Text, &[r#"["{a,NULL,""null""}","{b,"""",""c d""}"]"#, r#"["[0:1]={a,b}","{{b},{c}}"]"#]),
    case("jsonrange", Text, &[r#"["1","{""a"": [1, 2]}"]"#]),
    case("rangerange", Text, &[r#"["[1,2)","[3,4)"]"#]),
];

/// SQL expressions of random values.
pub(crate) const RANDOM: &[ProjectionCase] = &[
    case("timestamptz", IsoText, &["timestamptz '4713-01-01 BC' + random() * 298900 * interval '365 days'"]),
    case("timestamp", IsoText, &["timestamp '2000-01-01' + (random() - 0.5) * 10000 * interval '365 days'"]),
    case("date", IsoText, &["date '4713-01-01 BC' + (random() * 2147483000)::int"]),
    case("date", IsoText, &["date '0001-01-01' + (random() * 2000 - 1000)::int"]),
    case(
        "interval",
        Text,
        &[
            "make_interval(months => (random() * 4e3 - 2e3)::int, days => (random() * 4e3 - 2e3)::int, secs => random() * 2e6 - 1e6)",
        ],
    ),
    case(
        "numeric",
        Text,
        &["round((random() - 0.5)::numeric * 10::numeric ^ (random() * 60 - 20)::int, (random() * 40)::int)"],
    ),
    case("point", Text, &["point(random() * 10 ^ (random() * 600 - 300), -random() * 10 ^ (random() * 40 - 20))"]),
    case("point", Text, &["point((random() * 1e18)::int8, -(random() * 1e17)::int8)"]),
    case("floatrange", Text, &["floatrange(random() * 10 ^ (random() * 40 - 30), NULL)"]),
    case("singlerange", Text, &["singlerange((random() * 10 ^ (random() * 60 - 30))::float4, NULL)"]),
    case("float8", Number, &["random() * 10 ^ (random() * 600 - 300)"]),
    case("int8", Text, &["9007199254740993 + (random() * 1e18)::int8"]),
    case("inet", IsoText, &["inet '::' + (random() * 1e18)::int8 * (random() > 0.5)::int + (random() * 70000)::int8"]),
    case("bytea", BASE64, &["decode(repeat(md5(i::text), i % 5), 'hex')"]),
    case(
        "tsquery",
        Text,
        &[
            "phraseto_tsquery('simple', substr(md5(i::text), 1, 4) || ' b c') && !!to_tsquery('simple', 'x | y:*ab') || 'z'",
        ],
    ),
    case("tstzrange", Text, &["tstzrange(now() - random() * interval '6000 years', NULL)"]),
];

const FLOATS: &[&str] =
    &["0", "-0", "0.1", "1e300", "-1.7976931348623157e308", "5e-324", "NaN", "Infinity", "-Infinity"];

const NUMERICS: &[&str] = &[
    "0",
    "0.000",
    "-0.00",
    "1",
    "1.50",
    "-12.3",
    "10000",
    "100000000.0001",
    "0.0001",
    "0.00010",
    "1e-20",
    "1e100",
    "-1e-100",
    "NaN",
    "Infinity",
    "-Infinity",
    "12345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890.123456789012345678901234567890",
    "1e131071",
    "1e-16383",
];

/// Texts that are short enough for a `name`, with characters of every plane. Unicode noncharacters
/// are left out because psql drops them.
const TEXTS: &[&str] = &["", "plain", "it's \"q\" \\ {}", "\t\n", "é漢\u{1F600}", "\u{2FFFD}\u{E0001}\u{10FFFD}"];

const DATES: &[&str] = &[
    "2000-01-01",
    "2000-02-29",
    "1900-02-28",
    "1999-12-31",
    "0001-01-01",
    "0001-12-31 BC",
    "0004-02-29",
    "4714-11-24 BC",
    "10000-01-01",
    "5874897-12-31",
    "infinity",
    "-infinity",
    "1970-01-01",
];

const TIMES: &[&str] = &["00:00:00", "24:00:00", "23:59:59.999999", "12:00:00.5", "01:02:03.00001"];

const TIMESTAMPS: &[&str] = &[
    "2000-01-01 00:00:00",
    "1999-12-31 23:59:59.999999",
    "0044-03-15 12:00:00.5 BC",
    "4714-11-24 00:00:00 BC",
    "294276-12-31 23:59:59.999999",
    "infinity",
    "-infinity",
    "0001-12-31 23:59:59.999999 BC",
    "9999-12-31 23:59:59.1",
];

const INTERVALS: &[&str] = &[
    "PT0S",
    "P1Y2M3DT4H5M6.7S",
    "P-1Y-2M-3DT-4H-5M-6.7S",
    "P1M-1DT-0.000001S",
    "P-1DT1H",
    "PT-59.5S",
    "P178000000Y",
    "P-178000000Y-7M2147483647D",
    "PT2562047788H54.775807S",
    "PT-2562047788H",
    "PT60M60S",
];

const JSONS: &[&str] = &[
    "null",
    "true",
    "1",
    "-0.5",
    "1.10",
    "1e2",
    "\"a\\\"\\u00e9\\ud83d\\ude00\"",
    "[]",
    "{}",
    "[1, [2, {\"a\": null}], \"x\"]",
    "{\"b\": 1, \"a\": {\"c\": [true, false]}, \"b\": 2}",
    "  { \"spaces\" :\n[ 1 , 2 ] } ",
];

const ADDRESSES: &[&str] = &[
    "10.0.0.1",
    "10.0.0.1/8",
    "0.0.0.0/0",
    "::",
    "::1",
    "::1/64",
    "::1.2.3.4",
    "::ffff:1.2.3.4",
    "::ffff:0:0",
    "2001:db8::1:0:0:1",
    "1:0:0:2:0:0:0:3",
    "1:0:2:3:4:5:6:7",
    "::1:0",
    "::1:2:3",
    "fe80::/10",
    "1:2:3:4:5:6:0:0",
    "::ffff:0:1.2.3.4",
];

const QUERIES: &[&str] = &[
    "",
    "a",
    "a & b | c",
    "a & (b | c)",
    "!(a | b) & !c",
    "!!a",
    "!(a & b)",
    "a <-> b <-> c",
    "a <-> (b <-> c)",
    "a <3> (b & c)",
    "(a <-> b) | (c <2> !d)",
    "'it''s':*A & 'back\\\\slash':BCD",
    "a | b | c & d & e",
    "a & (b & c)",
];
