//! The projection of binary COPY, compared with PostgreSQL's own output.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends")]

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use laredo_core::{Cell, Column, KeyColumns, Oid, Schema, TupleBuf, TupleRef, TypeDef, TypeKind};
use laredo_testkit::{Cluster, ClusterOptions};
use laredo_values::{ColumnText, Value, project_cell, project_row};
use serde_json::Value as Json;

mod cases;
mod filters;
mod keys;

use cases::{CASES, ExpectedForm, ProjectionCase, RANDOM, TYPES};

/// Types whose text in PostgreSQL depends on the catalog or the session, or is unknown to laredo.
const UNPRINTABLE: [&str; 4] = ["money", "hstore", "int2vector", "oidvector"];

fn cluster() -> Cluster {
    let options =
        ClusterOptions::default().set("timezone", "UTC").set("intervalstyle", "iso_8601").set("bytea_output", "hex");
    let cluster = Cluster::start(options).unwrap();
    cluster.psql(TYPES).unwrap();
    cluster
}

#[test]
fn every_type_is_shown_as_postgresql_shows_it() {
    let cluster = cluster();
    let columns: Vec<String> = CASES.iter().enumerate().map(|(i, case)| format!("c{i} {}", case.sql_type)).collect();
    let mut sql = format!("CREATE TABLE t (n serial, {});", columns.join(", "));
    for (number, case) in CASES.iter().enumerate() {
        for value in case.values {
            sql += &format!("INSERT INTO t (c{number}) VALUES ($v${value}$v$);");
        }
    }
    cluster.psql(&sql).unwrap();
    compare(&cluster, CASES);
}

#[test]
fn random_values_are_shown_as_postgresql_shows_them() {
    let cluster = cluster();
    let columns: Vec<String> = RANDOM.iter().enumerate().map(|(i, case)| format!("c{i} {}", case.sql_type)).collect();
    let values: Vec<&str> = RANDOM.iter().flat_map(|case| case.values).copied().collect();
    let sql = format!(
        "SELECT setseed(0.5); CREATE TABLE t (n serial, {}); INSERT INTO t SELECT i, {} FROM generate_series(1, 2000) i;",
        columns.join(", "),
        values.join(", ")
    );
    cluster.psql(&sql).unwrap();
    compare(&cluster, RANDOM);
}

/// Compares every cell of table `t`, whose columns are `c0`, `c1`... for the cases. The comparison
/// runs with and without definitions of the built-in types.
fn compare(cluster: &Cluster, cases: &[ProjectionCase]) {
    let rows = copy(cluster, cases.len());
    let schema = Arc::new(schema(cluster, |_| true));
    let bare = self::schema(cluster, |oid| oid >= 16_384);
    for (number, case) in cases.iter().enumerate() {
        let expression = case.expression(&format!("c{number}"));
        let sql = format!("SELECT json_agg(x ORDER BY n) FROM (SELECT n, ({expression})::text x FROM t) s");
        let expected: Vec<Option<String>> = serde_json::from_str(&cluster.psql(&sql).unwrap()).unwrap();
        assert_eq!(expected.len(), rows.len());
        assert!(expected.iter().any(Option::is_some), "{} has no value", case.sql_type);
        for (row, expected) in rows.iter().zip(expected) {
            let cell = row.as_ref().cell(number);
            let shown = project_cell(&schema, number, cell).unwrap();
            assert_same(case, &shown, expected.as_deref());
            assert_eq!(project_cell(&bare, number, cell), Ok(shown), "{}", case.sql_type);
        }
        compare_texts(cluster, case, &schema, number, &rows);
    }
    for row in &rows {
        assert_eq!(project_row(&schema, row.as_ref()).unwrap().len(), cases.len());
        torn_cells_are_refused_or_shown(&schema, row.as_ref());
    }
}

/// Compares the texts of a column's cells with what its type's output function prints.
fn compare_texts(cluster: &Cluster, case: &ProjectionCase, schema: &Arc<Schema>, number: usize, rows: &[TupleBuf]) {
    let is_unprintable = case.sql_type.starts_with("reg") || UNPRINTABLE.contains(&case.sql_type);
    let Ok(text) = ColumnText::new(schema, number) else {
        assert!(is_unprintable, "{}", case.sql_type);
        return;
    };
    assert!(!is_unprintable, "{}", case.sql_type);
    let printed = format!("CASE WHEN c{number}::text IS NOT NULL THEN format('%s', c{number}) END");
    let sql = format!("SELECT json_agg({printed} ORDER BY n) FROM t");
    let expected: Vec<Option<String>> = serde_json::from_str(&cluster.psql(&sql).unwrap()).unwrap();
    for (row, expected) in rows.iter().zip(expected) {
        let found = row.as_ref().cell(number).value().map(|cell| String::from_utf8(text.of(cell).into()).unwrap());
        assert_eq!(found, expected, "{}", case.sql_type);
    }
}

fn assert_same(case: &ProjectionCase, shown: &Value, expected: Option<&str>) {
    let Some(expected) = expected else {
        assert_eq!(shown, &Value::Null, "{}", case.sql_type);
        return;
    };
    match case.expect {
        ExpectedForm::Number => match expected.parse::<f64>() {
            Ok(number) if number.is_finite() => assert_eq!(shown, &Value::Number(number), "{}", case.sql_type),
            _ => assert_eq!(shown, &Value::String(expected.into()), "{}", case.sql_type),
        },
        ExpectedForm::Json => {
            let expected: Json = serde_json::from_str(expected).unwrap();
            assert_eq!(shown.to_json(), expected, "{}", case.sql_type);
        }
        ExpectedForm::Text | ExpectedForm::IsoText | ExpectedForm::Sql(_) => {
            assert_eq!(shown, &Value::String(expected.into()), "{}", case.sql_type);
        }
    }
}

/// Checks that the projection survives every prefix of a cell and every flipped byte.
fn torn_cells_are_refused_or_shown(schema: &Schema, row: TupleRef<'_>) {
    for (number, cell) in row.cells().enumerate() {
        let Some(bytes) = cell.value() else { continue };
        for at in 0..bytes.len().min(200) {
            let _ = project_cell(schema, number, Cell::Value(&bytes[..at]));
            let mut other = bytes.to_vec();
            other[at] ^= 0x81;
            let _ = project_cell(schema, number, Cell::Value(&other));
        }
    }
}

/// Copies the columns in binary format. The server writes the file into its own directory.
fn copy(cluster: &Cluster, columns: usize) -> Vec<TupleBuf> {
    const HEADER_BYTES: usize = 19;
    let path = cluster.socket_dir().join("copy");
    let names: Vec<String> = (0..columns).map(|i| format!("c{i}")).collect();
    let (names, path_text) = (names.join(", "), path.display());
    cluster.psql(&format!("COPY (SELECT {names} FROM t ORDER BY n) TO '{path_text}' WITH (FORMAT binary)")).unwrap();
    let file = fs::read(path).unwrap();
    let mut rest = &file[HEADER_BYTES..];
    let mut rows = Vec::new();
    while rest != [0xFF, 0xFF] {
        rest = &rest[2..];
        let row: TupleBuf = TupleRef::trusted(rest).cells().take(columns).collect();
        rest = &rest[row.as_ref().bytes().len()..];
        rows.push(row);
    }
    rows
}

/// Returns the schema of table `t` without the column `n`. It defines the types whose OID is
/// wanted.
fn schema(cluster: &Cluster, wanted: impl Fn(Oid) -> bool) -> Schema {
    let query = |sql: &str| -> Vec<Json> { serde_json::from_str(&cluster.psql(sql).unwrap()).unwrap() };
    let columns = query(
        "SELECT json_agg(json_build_object('name', attname, 'type', atttypid::int8, 'mod', atttypmod,
                'type_name', format_type(atttypid, atttypmod)) ORDER BY attnum)
         FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 1",
    );
    let types = query(
        "SELECT json_agg(json_build_object('oid', t.oid::int8, 'name', typname, 'kind', typtype, 'category', typcategory,
                'element', typelem::int8, 'base', typbasetype::int8, 'subtype', r.rngsubtype::int8, 'range', m.rngtypid::int8,
                'labels', (SELECT coalesce(json_agg(enumlabel ORDER BY enumsortorder), '[]') FROM pg_enum WHERE enumtypid = t.oid),
                'fields', (SELECT json_agg(json_build_array(attname, atttypid::int8) ORDER BY attnum)
                           FROM pg_attribute WHERE attrelid = typrelid AND attnum > 0 AND NOT attisdropped)))
         FROM pg_type t LEFT JOIN pg_range r ON r.rngtypid = t.oid LEFT JOIN pg_range m ON m.rngmultitypid = t.oid
         WHERE typtype <> 'p'",
    );
    let columns = columns.iter().map(|column| Column {
        name: text(&column["name"]),
        type_oid: oid(&column["type"]),
        type_modifier: i32::try_from(column["mod"].as_i64().unwrap()).unwrap(),
        type_name: text(&column["type_name"]),
        not_null: false,
        is_text: false,
    });
    let types: BTreeMap<Oid, TypeDef> = types
        .iter()
        .map(|definition| (oid(&definition["oid"]), type_def(definition)))
        .filter(|(oid, _)| wanted(*oid))
        .collect();
    Schema::new(columns.collect(), KeyColumns::new([0]), types)
}

fn type_def(definition: &Json) -> TypeDef {
    let kind = match (text(&definition["kind"]).as_str(), text(&definition["category"]).as_str()) {
        // The cluster uses the C locale.
        ("b", _) if definition["name"] == "citext" => TypeKind::Ascii,
        ("b", "A") => TypeKind::Array(oid(&definition["element"])),
        ("e", _) => TypeKind::Enum(definition["labels"].as_array().unwrap().iter().map(text).collect()),
        ("d", _) => TypeKind::Domain(oid(&definition["base"])),
        ("c", _) => {
            let fields = definition["fields"].as_array().unwrap().iter();
            TypeKind::Composite(fields.map(|field| (text(&field[0]), oid(&field[1]))).collect())
        }
        ("r", _) => TypeKind::Range(oid(&definition["subtype"])),
        ("m", _) => TypeKind::Multirange(oid(&definition["range"])),
        _ => TypeKind::Base,
    };
    TypeDef { name: text(&definition["name"]), kind }
}

fn text(json: &Json) -> String {
    json.as_str().unwrap().to_owned()
}

fn oid(json: &Json) -> Oid {
    Oid::try_from(json.as_u64().unwrap()).unwrap()
}
