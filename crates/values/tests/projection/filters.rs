//! Filters, compared with the results of SQL's `=`, `IN` and `LIKE` on the same values.

use laredo_core::{Schema, TupleBuf};
use laredo_testkit::Cluster;
use laredo_values::{Filter, FilterError, MatchCondition, Predicate, Value};
use serde_json::Value as Json;

use super::{cluster, copy, schema};

/// A type, values of it, and literals to compare them with.
struct FilterCase {
    sql_type: &'static str,
    /// The type that SQL reads a literal as.
    literal_type: &'static str,
    values: &'static [&'static str],
    /// Literals that mean the same in a filter and in SQL, or are refused by both.
    literals: &'static [&'static str],
    /// Spellings that PostgreSQL accepts and a filter refuses. Their meaning depends on the session
    /// or is surprising.
    refused: &'static [&'static str],
}

const fn case(
    sql_type: &'static str,
    literal_type: &'static str,
    values: &'static [&'static str],
    literals: &'static [&'static str],
    refused: &'static [&'static str],
) -> FilterCase {
    FilterCase { sql_type, literal_type, values, literals, refused }
}

const INTEGERS: &[&str] = &["5", " 5 ", "-5", "+5", "0", "007", "", "x", "32767", "32768", "2147483648", "-1"];
const FLOATS: &[&str] = &[
    "0.1",
    "0",
    "-0",
    "1e300",
    "5e-324",
    "1e400",
    "-1e400",
    "1e-400",
    "NaN",
    "nan",
    "Infinity",
    "inf",
    "-infinity",
    "",
    "x",
    " 2.50 ",
    "25e-1",
];
const RANGES: &[&str] = &["empty", "(,)", "[,]", "(3,1)", "", "[1", "[a,b]"];
const STAMPS: &[&str] = &[
    "2024-01-01T00:00:00Z",
    "2024-01-01 00:00:00+00",
    "2024-01-01T01:30:00+01:30",
    "2023-12-31 16:00-08",
    "2024-01-01 00:00:00.000000+00",
    "2024-01-01 00:00:00.0000004+00",
    "2024-1-1 0:00Z",
    "20240101T00:00:00+0000",
    "2024-01-01 12:00 AM UTC",
    "2024-01-01Z",
    "2024-02-30T00:00:00Z",
    "2024-13-01T00:00:00Z",
    "2024-01-01T25:00:00Z",
    "infinity",
    "-Infinity",
    "0044-03-15T12:00:00Z BC",
    "2024-02-29T23:59:59.9999995Z",
    "",
    "x",
];

/// A text that is one byte too long for a label.
const LONG_LABEL: &str = "1234567890123456789012345678901234567890123456789012345678901234";

const CASES: &[FilterCase] = &[
    case(
        "char(3)",
        "bpchar",
        &["DE", "D", "", "É", "DEU", " D"],
        &["DE", "DE ", "DE      ", "D", "de", "", "  ", "É", "DEU", "DEUX", " D"],
        &[],
    ),
    case("varchar(5)", "varchar", &["a", "a ", "", "é"], &["a", "a ", "A", "", "é", "e\u{301}"], &[]),
    case("text", "text", &["a", "5", "", "é"], &["a", "A", "5", "5.0", "", "é"], &[]),
    case("name", "name", &["a", ""], &["a", "A", ""], &[]),
    case("citext", "citext", &["Foo", "ÀÉ", "", "straße", "İ"], &["foo", "FOO", "àé", "ÀÉ", "", "STRASSE", "i"], &[]),
    case("ltree", "ltree", &["Top.A", "Top", ""], &["Top.A", "top.a", "Top", ""], &[]),
    case("mood", "mood", &["sad", "so so"], &["sad", "so so"], &[LONG_LABEL]),
    case("\"char\"", "\"char\"", &["a", "", r"\377"], &["a", "b", "", r"\377"], &["ab"]),
    case(
        "bool",
        "bool",
        &["t", "f"],
        &["t", "TRUE", "yes", "y", "on", "1", "fal", "n", "of", "0", "o", "2", "", " true "],
        &[],
    ),
    case("int2", "int2", &["5", "-5", "0", "32767"], INTEGERS, &[]),
    case("int4", "int4", &["5", "-5", "0", "7"], INTEGERS, &[]),
    case(
        "int8",
        "int8",
        &["5", "-5", "9223372036854775807"],
        &["5", "9223372036854775807", "9223372036854775808"],
        &[],
    ),
    case("short", "int2", &["5", "-5"], &["5", "32768"], &[]),
    case("oid", "oid", &["5", "4294967295"], &["5", "4294967295", "4294967296", "x"], &["-1"]),
    case("xid8", "xid8", &["5", "18446744073709551615"], &["5", "18446744073709551615"], &[]),
    case(
        "float4",
        "float4",
        &["0.1", "0", "-0", "NaN", "Infinity", "2.5"],
        &["0.1", "0", "-0", "1e40", "nan", "inf", "2.50"],
        &[],
    ),
    case("float8", "float8", &["0.1", "0", "-0", "NaN", "-Infinity", "1e300", "5e-324", "2.5"], FLOATS, &[]),
    case(
        "numeric",
        "numeric",
        &["1.5", "1.50", "0", "0.000", "NaN", "Infinity", "1e100", "-1e-20", "10000", "12345678901234567890.5"],
        &[
            "1.5",
            "1.500",
            "15e-1",
            "0",
            "-0",
            "nan",
            "inf",
            "-Infinity",
            "1e100",
            "-1e-20",
            "10000.0",
            "1e4",
            "x",
            "",
            "1e200000",
        ],
        &[],
    ),
    case("numeric(10,3)", "numeric", &["1.5", "-7"], &["1.5", "1.5001", "-7.000"], &[]),
    case(
        "money",
        "money",
        &["12.34", "-0.05", "100"],
        &["12.34", "12.3", "100", "-0.05", "x"],
        &["$12.34", "1,000", "12.345"],
    ),
    case(
        "uuid",
        "uuid",
        &["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"],
        &[
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
            "a0ee-bc999c0b-4ef8bb6d-6bb9bd380a11",
            "{a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0-eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0eebc99--9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11-",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1",
            "",
        ],
        &[],
    ),
    case(
        "date",
        "date",
        &["2024-01-01", "2024-02-29", "infinity", "0044-03-15 BC", "5874897-12-31"],
        &[
            "2024-01-01",
            "2024-1-1",
            "20240101",
            "2024-02-29",
            "2023-02-29",
            "2024-04-31",
            "2024-00-01",
            "infinity",
            "-infinity",
            "0044-03-15 BC",
            "0044-03-15 bc",
            "5874897-12-31",
            "5874898-01-01",
            "2024-01-01 13:00",
            "",
            "2024-01-01T00:00:00Z",
            "x",
        ],
        &["1/1/2024", "Jan 1, 2024", "24-01-01", "today", "epoch"],
    ),
    case(
        "time",
        "time",
        &["04:05:06.789", "00:00", "24:00:00", "16:05"],
        &[
            "04:05:06.789",
            "4:05:06.789",
            "04:05:06.7890001",
            "24:00:00",
            "24:00:01",
            "4:05 PM",
            "04:05 pm",
            "00:60",
            "x",
        ],
        &["040506"],
    ),
    case(
        "timetz",
        "timetz",
        &["04:05:06+02", "02:05:06+00", "04:05:06-05:30"],
        &["04:05:06+02", "04:05:06 +02:00", "02:05:06Z", "04:05:06-0530", "04:05:06+16"],
        &["04:05:06"],
    ),
    case(
        "timestamp",
        "timestamp",
        &["2024-01-01", "2024-02-29 23:59:59.999999", "2024-03-01", "infinity", "0044-03-15 12:00 BC"],
        STAMPS,
        &[],
    ),
    case(
        "timestamptz",
        "timestamptz",
        &["2024-01-01Z", "2024-03-01Z", "infinity", "-infinity", "0044-03-15 12:00:00Z BC"],
        STAMPS,
        &["2024-01-01 00:00:00", "2024-01-01 00:00:00 Europe/Berlin", "now"],
    ),
    case(
        "interval",
        "interval",
        &["1 day", "24 hours", "1 mon", "30 days", "-1 day", "0 days", "1 year 2 mons 3 days 04:05:06.7", "PT0.5S"],
        &[
            "1 day",
            "P1D",
            "PT24H",
            "24:00:00",
            "1 mon",
            "P30D",
            "-1 days",
            "1 day ago",
            "@ 1 day",
            "0 days",
            "1.5 hours",
            "1 year 2 mons 3 days 04:05:06.7",
            "P1Y2M3DT4H5M6.7S",
            "500 milliseconds",
            "1d",
            "1 week -6 days",
            "x",
            "",
            "1 fortnight",
            "12 hours 720 min",
            "0.5 day 12:00",
        ],
        &["1", "1-2"],
    ),
    case(
        "inet",
        "inet",
        &["10.0.0.1", "10.0.0.1/8", "::1", "2001:db8::1/64"],
        &[
            "10.0.0.1",
            "10.0.0.1/32",
            "10.0.0.1/8",
            "10.0.0.2",
            "::1",
            "0:0:0:0:0:0:0:1",
            "2001:DB8::1/64",
            "10.0.0.1/33",
            "x",
            "",
        ],
        &[],
    ),
    case(
        "cidr",
        "cidr",
        &["10.0.0.0/8", "10.1.0.0/16", "192.168.1.0/24", "2001:db8::/32", "10.1.2.3"],
        &[
            "10.0.0.0/8",
            "10",
            "10/8",
            "10.1",
            "10.1/16",
            "192.168.1",
            "192.168.1.0/24",
            "10.1.0.0/8",
            "2001:db8::/32",
            "10.1.2.3",
            "10.1.2.3/32",
            "128.1",
            "x",
        ],
        &[],
    ),
    case(
        "macaddr",
        "macaddr",
        &["08:00:2b:01:02:03"],
        &[
            "08:00:2B:01:02:03",
            "08-00-2b-01-02-03",
            "08002b:010203",
            "08002b-010203",
            "0800.2b01.0203",
            "08002b010203",
            "8:0:2b:1:2:3",
            "08:00:2b:01:02",
            "x",
        ],
        &[],
    ),
    case(
        "macaddr8",
        "macaddr8",
        &["08:00:2b:01:02:03:04:05", "08:00:2b:ff:fe:01:02:03"],
        &["08:00:2B:01:02:03:04:05", "08-00-2b-01-02-03-04-05", "08002b01:02030405", "08:00:2b:01:02:03", "x"],
        &[],
    ),
    case("bytea", "bytea", &[r"\x00ff", r"\x"], &[r"\x00FF", r"\x00ff", r"\x", r"\x0"], &[]),
    case("bit(3)", "varbit", &["101"], &["101", "1010", "10", "102"], &["B101"]),
    case("varbit", "varbit", &["101", ""], &["101", "1010", ""], &[]),
    case("pg_lsn", "pg_lsn", &["16/B374D848"], &["16/B374D848", "16/b374d848", "x"], &[]),
    case("tid", "tid", &["(0,1)"], &["(0,1)", "(0,2)", "x"], &[]),
    case(
        "jsonb",
        "jsonb",
        &[r#"{"a": 1.0, "bb": [1, null]}"#, "5", "\"5\"", "9007199254740993", "\"a\\u00e9\"", "null", "{}", "1e2"],
        &[
            r#"{"bb":[1.00,null],"a":1}"#,
            r#"{"a": 2, "a": 1, "bb": [1, null]}"#,
            r#"{"a": 1, "bb": [null, 1]}"#,
            "5",
            "5.00",
            "\"5\"",
            "9007199254740993",
            "9007199254740992",
            "\"a\u{e9}\"",
            "null",
            "{}",
            "100",
            "-0",
        ],
        &[],
    ),
    case(
        "int4[]",
        "int4[]",
        &["{1,NULL}", "{1}", "[5:5]={1}", "{{1},{2}}", "{}"],
        &["{1,NULL}", "{1,null}", "{1}", "[5:5]={1}", "[1:1]={1}", "{{1},{2}}", "{1,2}", "{}", "{x}", "{1"],
        &["{ 1 }x"],
    ),
    case("numeric[]", "numeric[]", &["{1.0,2}", "{NaN}"], &["{1,2.00}", "{nan}", "{1.0}"], &[]),
    case("uuid[]", "uuid[]", &["{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"], &["{A0EEBC999C0B4EF8BB6D6BB9BD380A11}"], &[]),
    case(
        "pair",
        "pair",
        &["(1,x)", "(,)", "(1,)", r#"(1,"")"#],
        &["(1,x)", "(,)", "(1,)", r#"(1,"")"#, "(1,X)", "(1)"],
        &[],
    ),
    case(
        "int4range",
        "int4range",
        &["[1,9]", "empty", "(,5)", "(,)"],
        &["[1,10)", "(0,9]", "[1,9]", "(1,2)", "[5,5)", "(,4]", "[1,2147483647]"],
        &[],
    ),
    case("int8range", "int8range", &["[1,3)", "(,)"], RANGES, &[]),
    case(
        "numrange",
        "numrange",
        &["[1.0,2.50)", "empty", "[-2,-1.5]"],
        &["[1,2.5)", "[1,2.5]", "(1,1)", "[2,1]", "[-2.0,-1.50]", "[-1,-2]"],
        &[],
    ),
    case(
        "daterange",
        "daterange",
        &["[2024-01-01,2024-02-01)", "[2024-01-01,infinity]"],
        &["[2024-01-01,2024-01-31]", "[2024-1-1,2024-2-1)", "[2024-01-01,infinity]"],
        &[],
    ),
    case("tsrange", "tsrange", &["[2024-01-01,2024-02-01)"], &["[\"2024-01-01 00:00\",2024-02-01T00:00:00)"], &[]),
    case(
        "tstzrange",
        "tstzrange",
        &["[2024-01-01Z,2024-02-01Z)"],
        &["[2024-01-01T01:00:00+01,2024-02-01T00:00:00Z)"],
        &["[2024-01-01,2024-02-01)"],
    ),
];

/// The types that a filter always refuses.
const INCOMPARABLE: &[&str] = &[
    "json",
    "xml",
    "point",
    "box",
    "polygon",
    "tsvector",
    "tsquery",
    "int4multirange",
    "hstore",
    "json[]",
    "floatrange",
];

fn table(cluster: &Cluster, sql_type: &str, values: &[&str]) -> (Schema, Vec<TupleBuf>) {
    let mut sql =
        format!("DROP TABLE IF EXISTS t; CREATE TABLE t (n serial, c0 {sql_type}); INSERT INTO t (c0) VALUES (NULL);");
    values.iter().for_each(|value| sql += &format!("INSERT INTO t (c0) VALUES ($v${value}$v$);"));
    cluster.psql(&sql).unwrap();
    (schema(cluster, |_| true), copy(cluster, 1))
}

fn bind(schema: &Schema, test: MatchCondition) -> Result<Filter, FilterError> {
    Filter::bind(&[Predicate { field: "c0".to_owned(), test }], schema)
}

fn matching(filter: &Filter, rows: &[TupleBuf]) -> Vec<bool> {
    rows.iter().map(|row| filter.matches(row.as_ref())).collect()
}

/// Returns the result of an SQL condition for each row, or its error.
fn said(cluster: &Cluster, condition: &str) -> Result<Vec<bool>, String> {
    let sql = format!("SELECT json_agg(coalesce({condition}, false) ORDER BY n) FROM t");
    cluster.psql(&sql).map(|json| serde_json::from_str(&json).unwrap()).map_err(|error| error.to_string())
}

#[test]
fn a_value_is_equal_where_sql_says_so() {
    let cluster = cluster();
    cluster.psql("CREATE EXTENSION ltree").unwrap();
    let mut wrong = Vec::new();
    for FilterCase { sql_type, literal_type, values, literals, refused } in CASES {
        let (schema, rows) = table(&cluster, sql_type, values);
        for literal in literals.iter().chain(*values) {
            let sql = said(&cluster, &format!("c0 = $v${literal}$v$::{literal_type}"));
            let ours = bind(&schema, MatchCondition::Equals(Value::String((*literal).to_owned())));
            let ours = ours.map(|filter| matching(&filter, &rows)).map_err(|error| error.to_string());
            if ours.as_ref().ok() != sql.as_ref().ok() {
                wrong.push(format!("{sql_type} = '{literal}': {ours:?}, SQL says {sql:?}"));
            }
        }
        for literal in *refused {
            match bind(&schema, MatchCondition::Equals(Value::String((*literal).to_owned()))) {
                Ok(_) => wrong.push(format!("{sql_type} = '{literal}' is not refused")),
                Err(error) => assert!(error.to_string().contains("column `c0` is of type"), "{error}"),
            }
        }
        let nulls = bind(&schema, MatchCondition::In(vec![Value::Null])).unwrap();
        assert!(matching(&nulls, &rows).iter().all(|matches| !matches), "{sql_type}: NULL is equal to nothing");
        let all = values.iter().map(|value| Value::String((*value).to_owned())).collect();
        let all = bind(&schema, MatchCondition::In(all)).unwrap();
        assert_eq!(matching(&all, &rows).iter().filter(|matches| **matches).count(), values.len(), "{sql_type}: IN");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The enum may get the label later, without a copy.
#[test]
fn a_label_that_an_enum_does_not_have_matches_nothing() {
    let (schema, rows) = table(&cluster(), "mood", &["sad", "so so"]);
    for label in ["Sad", "glad", "sad ", "", &LONG_LABEL[1..]] {
        let filter = bind(&schema, MatchCondition::Equals(Value::String(label.to_owned()))).unwrap();
        assert!(matching(&filter, &rows).iter().all(|matches| !matches), "{label}");
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let cluster = cluster();
    for sql_type in INCOMPARABLE {
        let (schema, _) = table(&cluster, sql_type, &[]);
        let refused = bind(&schema, MatchCondition::Equals(Value::String("1".to_owned()))).unwrap_err().to_string();
        assert!(refused.ends_with("; filter by another column"), "{sql_type}: {refused}");
    }
}

#[test]
fn a_prefix_is_that_of_text() {
    let cluster = cluster();
    cluster.psql("CREATE EXTENSION ltree").unwrap();
    let prefixes = ["", "T", "t", "Top", "Top.", "Top ", "É", "é", "s"];
    for (sql_type, text) in [
        ("text", "c0"),
        ("varchar(9)", "c0"),
        ("char(9)", "c0"),
        ("name", "c0"),
        ("citext", "c0"),
        ("ltree", "c0::text"),
    ] {
        let values: &[&str] =
            if sql_type == "ltree" { &["Top.A", "top", "Top"] } else { &["Top.A", "top", "Top", "É", ""] };
        let (schema, rows) = table(&cluster, sql_type, values);
        for prefix in prefixes {
            let filter = bind(&schema, MatchCondition::Prefix(prefix.to_owned())).unwrap();
            let sql = said(&cluster, &format!("{text} LIKE '{prefix}%'")).unwrap();
            assert_eq!(matching(&filter, &rows), sql, "{sql_type} LIKE '{prefix}%'");
        }
    }
    let (schema, rows) = table(&cluster, "mood", &["sad", "so so"]);
    let filter = bind(&schema, MatchCondition::Prefix("so".to_owned())).unwrap();
    assert_eq!(matching(&filter, &rows), said(&cluster, "c0::text LIKE 'so%'").unwrap());
    for sql_type in ["int4", "date", "uuid", "timestamptz", "bytea", "text[]", "jsonb", "inet"] {
        let (schema, _) = table(&cluster, sql_type, &[]);
        let refused = bind(&schema, MatchCondition::Prefix("1".to_owned())).unwrap_err().to_string();
        assert!(refused.contains("it is not text"), "{sql_type}: {refused}");
    }
}

/// The projected value of a row finds the row.
#[test]
fn a_projected_value_finds_its_row() {
    let cluster = cluster();
    cluster.psql("CREATE EXTENSION ltree").unwrap();
    for FilterCase { sql_type, values, .. } in CASES.iter().filter(|case| case.sql_type != "jsonb") {
        let (schema, rows) = table(&cluster, sql_type, values);
        for row in &rows[1..] {
            let value = laredo_values::project_cell(&schema, 0, row.as_ref().cell(0)).unwrap();
            let json: Json = value.to_json();
            let filter = bind(&schema, MatchCondition::Equals(Value::from_json(json.clone()))).unwrap();
            assert!(filter.matches(row.as_ref()), "{sql_type} = {json}");
        }
    }
}
