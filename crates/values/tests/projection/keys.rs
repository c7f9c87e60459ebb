//! Keys that PostgreSQL holds distinct are distinct in every projection, and round-trip to the
//! byte.

use std::collections::HashMap;
use std::sync::Arc;

use laredo_values::{HexCells, JsonRows, Value, project_cell, project_row, unproject_cell};

use super::{cluster, copy, schema};

/// The types that can be a key, each with distinct values.
const KEYS: &[(&str, &[&str])] = &[
    ("int4[]", &["{1}", "[5:5]={1}", "[0:0]={1}", "{{1}}", "[1:1][2:2]={{1}}", "{}", "{1,2}", "[2:3]={1,2}"]),
    ("text[]", &["{a}", "[2:2]={a}", "{NULL}", r#"{"NULL"}"#, r#"{""}"#, r#"{"[2:2]={a}"}"#, "{{a}}", r#"{"{a}"}"#]),
    ("numeric[]", &["{1}", "[2:2]={1}", "{NaN}"]),
    ("timestamptz[]", &["{2000-01-01}", "[0:0]={2000-01-01}", "{infinity}"]),
    ("bytea[]", &[r#"{"\\x00"}"#, r#"[2:2]={"\\x00"}"#]),
    ("counts", &["{1}", "[0:0]={1}"]),
    ("ints[]", &[r#"{"{1}"}"#, r#"{"[2:2]={1}"}"#, r#"{{"{1}"}}"#, r#"{"{{1}}"}"#, r#"[3:3]={"{1}"}"#]),
    ("keyed", &["(1,{1})", "(1,[2:2]={1})", "(,)", r#"(,"{}")"#]),
    ("keyed[]", &[r#"{"(1,{1})"}"#, r#"{"(1,[2:2]={1})"}"#, r#"[2:2]={"(1,{1})"}"#]),
    (
        "jsonb",
        &[
            "9007199254740993",
            "\"9007199254740993\"",
            "5",
            "\"5\"",
            "\"\\\"5\\\"\"",
            "null",
            "\"null\"",
            "true",
            "\"true\"",
            "{\"a\": 9007199254740993}",
            "{\"a\": \"9007199254740993\"}",
            "[]",
            "\"[]\"",
            "\"a\"",
            "\"\"",
            "0.10",
            "1e300",
            "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
            "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"[[[1]]]\"]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
            "{\"bb\": 1, \"a\": [null, {\"c\": \"\\u0001\\\"\"}]}",
        ],
    ),
    (
        "jsonb[]",
        &[
            "{1}",
            "{null}",
            "{\"null\"}",
            r#"{"\"null\""}"#,
            r#"{"[1]"}"#,
            "{{1}}",
            r#"{"\"[1]\""}"#,
            "{9007199254740993}",
            r#"{"\"9007199254740993\""}"#,
        ],
    ),
    (
        "tsquery",
        &[
            "a & b & c",
            "a & (b & c)",
            "a | (b | c)",
            "a | b | c",
            "!(a & (b & c))",
            "a & (b & (c & d))",
            "(a & b) & (c & d)",
            "a <-> (b <-> c)",
        ],
    ),
    ("int4range", &["[1,3)", "empty", "(,3)"]),
    ("numrange", &["[1,2)", "[1,2]", "(1,2]", "[1,NaN)"]),
    ("timetz", &["12:00+00", "13:00+01", "24:00+00", "00:00+00"]),
    ("time", &["24:00", "00:00"]),
    ("timestamptz", &["infinity", "-infinity", "0001-01-01 BC", "0001-01-01", "2000-01-01 00:00:00.000001"]),
    ("interval", &["1 mon", "31 days", "-1 mon 1 day", "1 mon -1 day"]),
    ("inet", &["10.0.0.1", "10.0.0.1/8", "::1.2.3.4", "::ffff:1.2.3.4", "1.2.3.4"]),
    ("varbit", &["", "0", "00", "10000000", "100000000"]),
    ("\"char\"", &["", "a", r"\377", r"\"]),
    ("bytea", &["", r"\x00", r"\x0000"]),
    ("float8", &["0", "1", "NaN", "Infinity", "5e-324"]),
    ("int8", &["9007199254740993", "9007199254740992", "-9007199254740993"]),
    ("numeric", &["1", "1.1", "NaN", "Infinity", "1e-16383"]),
    ("money", &["0", "-0.05", "92233720368547758.07"]),
    ("text", &["", "a", "a ", "null"]),
    ("tsvector", &["a:1", "a:1A", "a", "'it''s'", "b a"]),
];

const TYPES: &str = "
CREATE DOMAIN count AS int4;
CREATE DOMAIN counts AS count[];
CREATE TYPE keyed AS (n int4, list int4[]);
";

#[test]
fn keys_stay_apart_and_come_back() {
    let cluster = cluster();
    cluster.psql(TYPES).unwrap();
    for (sql_type, values) in KEYS {
        let mut sql = format!("DROP TABLE IF EXISTS t; CREATE TABLE t (n serial, c0 {sql_type} PRIMARY KEY);");
        values.iter().for_each(|value| sql += &format!("INSERT INTO t (c0) VALUES ($v${value}$v$);"));
        // PostgreSQL itself accepts them as distinct.
        cluster.psql(&sql).unwrap();
        let schema = Arc::new(schema(&cluster, |_| true));
        let lines = JsonRows::new(schema.clone());
        let mut seen: HashMap<String, &str> = HashMap::new();
        for (row, text) in copy(&cluster, 1).iter().zip(*values) {
            let cell = row.as_ref().cell(0);
            let value = project_cell(&schema, 0, cell).unwrap();
            let json = value.to_json().to_string();
            if let Some(other) = seen.insert(json.clone(), text) {
                panic!("{sql_type}: {text} and {other} are both {json}");
            }
            let again = unproject_cell(&schema, 0, &Value::from_json(value.to_json())).unwrap();
            assert_eq!(again.as_deref(), cell.value(), "{sql_type}: {text} as {json}");
            let mut line = Vec::new();
            lines.push(row.as_ref(), &mut line, &HexCells::default()).unwrap();
            let fields = project_row(&schema, row.as_ref()).unwrap();
            let object: serde_json::Map<_, _> =
                fields.into_iter().map(|(name, v)| (name.to_owned(), v.to_json())).collect();
            assert_eq!(serde_json::from_slice::<serde_json::Value>(&line).unwrap(), serde_json::Value::Object(object));
        }
    }
}
