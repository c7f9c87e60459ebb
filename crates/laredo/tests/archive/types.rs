//! Values of every type, from the database through the archive back into a table. The table is in
//! the same database, and in one where the user-defined types have other OIDs.

use std::collections::BTreeMap;

use laredo_testkit::types::{COLUMNS, DEFINITIONS, identifier};
use laredo_testkit::{Cluster, is_full};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::pipeline::{ArchivePipeline, PipelineArchive, answer, laredo, refusal};

/// Types whose values JSON does not keep exactly (docs/archive-format.md): the spelling of a
/// document is lost.
const INEXACT: [&str; 3] = ["json", "json, twice a name", "jsonb"];

fn table(name: &str) -> String {
    let columns: Vec<String> =
        COLUMNS.iter().map(|case| format!("{} {}", identifier(case.name), case.sql_type)).collect();
    format!("CREATE TABLE {name} (id int PRIMARY KEY, {});", columns.join(", "))
}

/// Returns an INSERT whose rows contain every value at least once.
fn inserts(first: usize, count: usize, rng: &mut StdRng) -> String {
    let row = |number: usize| {
        let value = |case: &laredo_testkit::types::ColumnCase| match case.values.get(number % 40) {
            Some(value) => laredo_testkit::types::literal(value),
            None => case.value(rng),
        };
        let values: Vec<String> = COLUMNS.iter().map(value).collect();
        format!("INSERT INTO every VALUES ({number}, {});", values.join(", "))
    };
    (first..first + count).map(row).collect()
}

/// Returns the texts of all columns, row by row.
fn texts(cluster: &Cluster, database: &str, table: &str) -> Vec<Vec<String>> {
    let texts: Vec<String> =
        COLUMNS.iter().map(|case| format!("coalesce({}::text, '<NULL>')", identifier(case.name))).collect();
    let sql = format!("SELECT json_agg(json_build_array({}) ORDER BY id) FROM {table}", texts.join(", "));
    serde_json::from_str(&cluster.psql_in(database, &sql).unwrap()).unwrap()
}

fn differing(cluster: &Cluster, database: &str, table: &str) -> BTreeMap<&'static str, Vec<(String, String)>> {
    let (expected, restored) = (texts(cluster, "postgres", "every"), texts(cluster, database, table));
    assert_eq!(expected.len(), restored.len());
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (expected, restored) in expected.into_iter().zip(restored) {
        for (case, pair) in COLUMNS.iter().zip(expected.into_iter().zip(restored)) {
            if pair.0 != pair.1 {
                found.entry(case.name).or_default().push(pair);
            }
        }
    }
    found
}

/// Checks that all columns, except the inexact ones, are equal by their text and by the database's
/// own `=`, if the type has one.
fn assert_equal(cluster: &Cluster, database: &str, table: &str) {
    let found = differing(cluster, database, table);
    let inexact: Vec<&str> = found.keys().copied().collect();
    assert_eq!(inexact, INEXACT, "{found:#?}");
    if database == "postgres" {
        let has_equality = |case: &&laredo_testkit::types::ColumnCase| !["json", "point"].contains(&case.sql_type);
        let compared = COLUMNS.iter().filter(has_equality).filter(|case| !INEXACT.contains(&case.name));
        let list: Vec<String> = compared.map(|case| identifier(case.name)).collect();
        let rows = |table: &str| format!("SELECT id, {} FROM {table}", list.join(", "));
        let (one, two) = (rows("every"), rows(table));
        let sql = format!(
            "SELECT (SELECT count(*) FROM ({one} EXCEPT {two}) a), (SELECT count(*) FROM ({two} EXCEPT {one}) b)"
        );
        assert_eq!(cluster.psql(&sql).unwrap(), "0|0");
    }
    for (column, pairs) in found {
        for (text, restored) in pairs {
            // After a restore, JSON's own null equals SQL's NULL.
            let is_expected = text == "null" && restored == "<NULL>" || is_same_document(&text, &restored);
            assert!(is_expected, "{column}: {text} came back as {restored}");
        }
    }
}

/// Returns true if two documents have the same content. A number that a double cannot represent may
/// have become a string.
fn is_same_document(one: &str, two: &str) -> bool {
    fn plain(value: &serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Number(number) => {
                number.as_f64().map_or_else(|| value.clone(), |number| format!("{number:e}").into())
            }
            serde_json::Value::String(text) => {
                text.parse::<f64>().map_or_else(|_| value.clone(), |number| format!("{number:e}").into())
            }
            serde_json::Value::Array(items) => items.iter().map(plain).collect(),
            serde_json::Value::Object(fields) => {
                fields.iter().map(|(name, value)| (name.clone(), plain(value))).collect()
            }
            value => value.clone(),
        }
    }
    let parsed = |text: &str| serde_json::from_str(text).map(|value| plain(&value)).unwrap();
    parsed(one) == parsed(two)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_comes_back_in_this_database_and_in_another() {
    let mut rng = StdRng::seed_from_u64(7);
    let more = if is_full() { 400 } else { 20 };
    let forms = ["jsonl", "protobuf", "jsonl.zst", "protobuf.zst"].map(|format| [format]);
    let archives = forms.each_ref().map(|formats| PipelineArchive { table: "every", formats, name: formats[0] });
    let sql = format!("{DEFINITIONS} {} {}", table("every"), inserts(0, 6, &mut rng));
    let pipeline = ArchivePipeline::start(&sql, &archives).await;
    pipeline.write(&inserts(6, 6 + more, &mut rng)).await;
    let columns: Vec<String> = COLUMNS.iter().map(|case| identifier(case.name)).collect();
    let list = columns.join(", ");
    // One diff contains old and new rows of every type.
    pipeline
        .write(&format!(
            "UPDATE every e SET ({list}) = (SELECT {list} FROM every o WHERE o.id = e.id - 1) WHERE id > 12"
        ))
        .await;
    pipeline.write("DELETE FROM every WHERE id = 11").await;
    pipeline.end().await;
    let cluster = &pipeline.cluster;
    // In this database, types of the same names have other OIDs.
    cluster.psql("CREATE DATABASE other").unwrap();
    cluster.psql_in("other", &format!("CREATE TYPE before AS (a int); {DEFINITIONS} {}", table("every"))).unwrap();
    let number = "SELECT 'mood'::regtype::oid";
    assert_ne!(cluster.psql(number).unwrap(), cluster.psql_in("other", number).unwrap());
    for [form] in forms {
        let place = pipeline.archive(form);
        let place = place.to_str().unwrap();
        let back = format!("back_{}", form.replace('.', "_"));
        let (here, there) = (cluster.url("postgres"), cluster.url("other"));
        answer(&["reconstruct", place, "--postgres", &here, "--table", &format!("public.{back}"), "--create"]);
        assert_equal(cluster, "postgres", &back);
        answer(&["reconstruct", place, "--postgres", &there, "--table", "public.every", "--replace"]);
        assert_equal(cluster, "other", "every");
        answer(&["reconstruct", place, "--postgres", &there, "--table", &format!("public.{back}"), "--create"]);
        assert_equal(cluster, "other", &back);
        let lines = answer(&["reconstruct", place]);
        assert_eq!(lines.lines().count(), 6 + 6 + more - 1);
    }
    what_is_not_there_is_said(&pipeline);
}

/// The types have to exist, and to mean the same.
fn what_is_not_there_is_said(pipeline: &ArchivePipeline) {
    let (cluster, place) = (&pipeline.cluster, pipeline.archive("jsonl"));
    cluster.psql("CREATE DATABASE bare").unwrap();
    let into = ["reconstruct", place.to_str().unwrap(), "--postgres", &cluster.url("bare"), "--table", "public.every"];
    let said = refusal(&[&into[..], &["--create"]].concat());
    assert!(said.contains("there is no type \"public.") && said.contains("create the type first"), "{said}");
    let fewer = DEFINITIONS.replace("'sad', 'so so', ", "");
    cluster.psql_in("bare", &format!("{fewer} {}", table("every"))).unwrap();
    let (code, _, said) = laredo(&into);
    assert!(
        code == Some(2) && said.contains("nothing was restored") && said.contains("invalid input value for enum"),
        "{said}"
    );
    assert_eq!(cluster.psql_in("bare", "SELECT count(*) FROM every").unwrap(), "0");
}
