//! Clients that were not written for laredo, against real processes: curl, Prometheus, and a
//! browser (`./dev test --full`).

#[path = "../support/mod.rs"]
mod support;

mod browser;
mod certificates;
mod curl;
mod ports;
mod prometheus;

use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions};
use serde_json::Value;

/// A table of types whose projection equals the result of `to_jsonb`.
const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, owner uuid, done bool, tags text[], at timestamptz, body jsonb);
    INSERT INTO item SELECT n, 'item ' || n, gen_random_uuid(), n % 2 = 0, ARRAY['a', NULL, 'ü \"'], now(), '{\"a\": [1, null, {\"b\": 2.5}]}'
    FROM generate_series(1, 500) n";

/// A change of each kind.
const CHANGES: [&str; 5] = [
    "INSERT INTO item SELECT n, 'new', NULL, NULL, '{}', NULL, 'null' FROM generate_series(1001, 1050) n",
    "UPDATE item SET name = name || '!', body = '\"text\"' WHERE id % 7 = 0",
    "UPDATE item SET id = id + 5000 WHERE id = 3",
    "DELETE FROM item WHERE id % 11 = 0",
    "BEGIN; DELETE FROM item WHERE id = 5; INSERT INTO item (id, name) VALUES (5, 'again'); COMMIT",
];

fn item() -> TableName {
    TableName::new("public", "item")
}

fn cluster() -> Cluster {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(SCHEMA).unwrap();
    cluster
}

/// Returns the rows as JSON from PostgreSQL, sorted by ID.
fn rows_in(cluster: &Cluster) -> Value {
    let rows = cluster.psql("SELECT coalesce(jsonb_agg(to_jsonb(item) ORDER BY id), '[]') FROM item").unwrap();
    plain(serde_json::from_str(&rows).unwrap())
}

/// Returns the value with every number as a double, as other JSON programs read it.
fn plain(value: Value) -> Value {
    match value {
        Value::Number(number) => Value::from(number.as_f64()),
        Value::Array(items) => items.into_iter().map(plain).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, plain(value))).collect(),
        other => other,
    }
}
