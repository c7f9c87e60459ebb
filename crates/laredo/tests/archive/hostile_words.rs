//! The words of a manifest never become SQL: neither names nor types.

use laredo_testkit::{Cluster, ClusterOptions};
use serde_json::json;

use crate::handmade::HandmadeArchive;
use crate::pipeline::{answer, refusal};

/// Returns everything that a statement could have left behind.
fn traces(cluster: &Cluster) -> String {
    let sql = "SELECT (SELECT string_agg(oid::regclass::text, ',' ORDER BY oid) FROM pg_class WHERE oid >= 16384 AND relkind = 'r'), \
               (SELECT string_agg(rolname || rolsuper::text, ',' ORDER BY oid) FROM pg_roles WHERE oid >= 16384), \
               (SELECT string_agg(proname, ',' ORDER BY oid) FROM pg_proc WHERE oid >= 16384), \
               (SELECT string_agg(typname, ',' ORDER BY oid) FROM pg_type WHERE oid >= 16384 AND typtype <> 'c' AND typelem = 0)";
    cluster.psql(sql).unwrap()
}

/// Types that PostgreSQL would execute if they were part of a statement.
const TYPES: [&str; 18] = [
    "text); CREATE TABLE public.injected AS SELECT current_user AS who; --",
    "text); COMMIT; CREATE TABLE public.injected AS SELECT 1; BEGIN; CREATE TABLE IF NOT EXISTS public.other (id text",
    "text); COMMIT; ALTER ROLE victim SUPERUSER; --",
    "text DEFAULT pg_read_file('PG_VERSION')",
    "text NOT NULL",
    "text, injected int",
    "text COLLATE \"C\"",
    "text CHECK (injected())",
    "int GENERATED ALWAYS AS IDENTITY",
    "text PRIMARY KEY) INHERITS (public.victims",
    "setof text",
    "serial",
    "numeric(10); CREATE TABLE public.injected (); --,2)",
    "numeric((SELECT 10))",
    "numeric(injected())",
    "(SELECT 1)",
    "",
    "text\0",
];

#[test]
fn a_type_that_is_more_than_a_type_creates_nothing() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster
        .psql(
            "CREATE ROLE victim; CREATE TABLE victims (id int); CREATE SEQUENCE called; \
             CREATE FUNCTION injected() RETURNS int LANGUAGE sql AS $$SELECT nextval('public.called')::int$$",
        )
        .unwrap();
    let (url, before) = (cluster.url("postgres"), traces(&cluster));
    for r#type in TYPES {
        // The same words as laredo and as another program write them.
        let own = HandmadeArchive::new(&[("id", "text", 25)], 1, "0/10", &[r#"{"id":"1"}"#]);
        let own = own.with_schema(&[("id", r#type, 25, -1)], &json!({}));
        let foreign = HandmadeArchive::new(&[("id", r#type, 25)], 1, "0/10", &[r#"{"id":"1"}"#]);
        for archive in [own, foreign] {
            let into = ["reconstruct", archive.place(), "--postgres", &url, "--table", "public.made", "--create"];
            let said = refusal(&into);
            assert!(said.contains("nothing was restored: column \"id\": there is no type "), "{type:?}: {said}");
            assert_eq!(traces(&cluster), before, "{type}");
            assert_eq!(cluster.psql("SELECT is_called FROM called").unwrap(), "f", "{type}");
        }
    }
}

/// Names of columns, schemas and types may contain anything, and stay names.
#[test]
fn a_name_stays_a_name() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster
        .psql(
            r#"CREATE SCHEMA "s""; CREATE TABLE public.injected(); --";
            CREATE TYPE "s""; CREATE TABLE public.injected(); --"."mood'); DROP TABLE t; --" AS ENUM ('ok', 'it''s');
            CREATE DOMAIN "s""; CREATE TABLE public.injected(); --"."d (1) ""x""" AS varchar(5) NOT NULL CHECK (VALUE <> 'no');
            CREATE DOMAIN public."Upper" AS numeric(8, 3)"#,
        )
        .unwrap();
    let column = r#"a" text); CREATE TABLE public.injected(); --"#;
    let schema = r#""s""; CREATE TABLE public.injected(); --""#;
    let (mood, short) = (format!(r#"{schema}."mood'); DROP TABLE t; --""#), format!(r#"{schema}."d (1) ""x""""#));
    let columns: [(&str, &str, u32, i32); 9] = [
        (column, "integer", 23, -1),
        ("DEFAULT now()", &mood, 50_001, -1),
        ("x\", \"y", &short, 50_002, -1),
        ("upper", "public.\"Upper\"", 50_003, -1),
        ("n", "numeric(10,2)", 1700, (10 << 16) + 2 + 4),
        // The number is the modifier, and not the words.
        ("v", "character varying(20)", 1043, 9),
        ("t", "timestamp(3) without time zone", 1114, 3),
        ("b", "\"bit\"", 1560, -1),
        ("moods", "text[]", 1009, -1),
    ];
    let types = json!({
        "50001": { "name": "mood'); DROP TABLE t; --", "kind": { "enum": ["ok", "it's"] } },
        "50002": { "name": "d (1) \"x\"", "kind": { "domain": 1043 } },
        "50003": { "name": "Upper", "kind": { "domain": 1700 } },
        "1009": { "name": "_text", "kind": { "array": 25 } },
    });
    let row = json!({ column: 1, "DEFAULT now()": "it's", "x\", \"y": "yes", "upper": "1.250", "n": "1.50", "v": "abcde",
        "t": "2026-01-02T03:04:05.678", "b": "1", "moods": ["a"] });
    let archive = HandmadeArchive::new(&[("id", "integer", 23)], 1, "0/10", &[&row.to_string()]);
    let archive = archive.with_schema(&columns, &types);
    let table = "public.\"made\"\"; DROP SCHEMA public CASCADE; --\"";
    answer(&["reconstruct", archive.place(), "--postgres", &cluster.url("postgres"), "--table", table, "--create"]);
    let shape = "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), '|' ORDER BY attnum) FROM pg_attribute \
                 WHERE attrelid = (SELECT oid FROM pg_class WHERE relname LIKE 'made%' AND relkind = 'r') AND attnum > 0";
    let expected = [
        format!("{column} integer"),
        format!("DEFAULT now() {mood}"),
        format!("x\", \"y {short}"),
        "upper \"Upper\"".to_owned(),
        "n numeric(10,2)".to_owned(),
        "v character varying(5)".to_owned(),
        "t timestamp(3) without time zone".to_owned(),
        "b \"bit\"".to_owned(),
        "moods text[]".to_owned(),
    ];
    assert_eq!(cluster.psql(shape).unwrap(), expected.join("|"));
    let rows = format!("SELECT \"DEFAULT now()\", \"x\"\", \"\"y\", upper, n, v, t, b, moods FROM {table}");
    assert_eq!(cluster.psql(&rows).unwrap(), "it's|yes|1.250|1.50|abcde|2026-01-02 03:04:05.678|1|{a}");
    let tables = "SELECT count(*), to_regclass('public.injected') FROM pg_class WHERE oid >= 16384 AND relkind = 'r'";
    assert_eq!(cluster.psql(tables).unwrap(), "1|");
}

/// An archive of another program has a type's modifier only in its name.
#[test]
fn a_modifier_in_a_name_is_kept() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let columns = [
        ("id", "bigint", 20),
        ("n", "numeric(10,2)", 1700),
        ("v", "character varying(20)", 1043),
        ("t", "timestamp(3) with time zone", 1184),
        ("m", "numeric( 5 , 1 )[]", 1231),
        ("plain", "numeric", 1700),
    ];
    let archive =
        HandmadeArchive::new(&columns, 1, "0/10", &[r#"{"id":1,"n":1.5,"v":"a","t":null,"m":null,"plain":1.234}"#]);
    let into = |place: &str, table: &str| {
        answer(&["reconstruct", place, "--postgres", &cluster.url("postgres"), "--table", table, "--create"])
    };
    into(archive.place(), "public.made");
    let shape = "SELECT string_agg(format_type(atttypid, atttypmod), '|' ORDER BY attnum) FROM pg_attribute \
                 WHERE attrelid = 'made'::regclass AND attnum > 0";
    assert_eq!(
        cluster.psql(shape).unwrap(),
        "bigint|numeric(10,2)|character varying(20)|timestamp(3) with time zone|numeric(5,1)[]|numeric"
    );
    let wrong = HandmadeArchive::new(&[("id", "numeric(99999,2)", 1700)], 1, "0/10", &[r#"{"id":1}"#]);
    let into =
        ["reconstruct", wrong.place(), "--postgres", &cluster.url("postgres"), "--table", "public.other", "--create"];
    let said = refusal(&into);
    assert!(said.contains("there is no type \"numeric(99999,2)\"") && said.contains("precision 99999"), "{said}");
}
