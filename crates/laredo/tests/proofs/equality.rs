//! Under a random workload over every type, every client has the database's rows at the database's position, cell by cell, in both
//! encodings, whether it came with the first copy, late, or in between.

use std::collections::BTreeMap;

use laredo_testkit::oracle;
use laredo_testkit::types::{identifier, literal};
use laredo_testkit::workload::{TABLES, Workload, WorkloadOptions};

use crate::support::compare::json_differences;
use crate::support::fleet::{Only, Pair, cluster, compare_all, compare_at_rest, fleet, more, serve_all};
use crate::support::is_full;
use crate::support::simple::{JsonRow, key_of};

#[tokio::test(flavor = "multi_thread")]
async fn clients_equal_the_database_under_a_random_workload() {
    let (pauses, transactions) = if is_full() { (20, 1500) } else { (6, 250) };
    let cluster = cluster();
    let sql = cluster.connect().await.unwrap();
    let workload = Workload::start(&cluster.url("postgres"), 42, WorkloadOptions::default());
    more(&workload, 200).await;
    // Copied while eight sessions write.
    let server = serve_all(cluster.url("postgres")).slot("laredo_equality").start().await;
    let early = fleet(&server.url());
    for pause in 1..=pauses {
        more(&workload, transactions).await;
        let late = fleet(&server.url());
        more(&workload, 50).await;
        let paused = compare_all(&sql, &workload, &early, -10_000 - pause).await;
        compare_at_rest(&sql, &late, -20_000 - pause).await;
        compare_with_jsonb(&sql, &early[0]).await;
        assert!(early.iter().all(|pair| pair.simple.state().snapshots == 1), "a client had to start anew");
        workload.resume(paused);
    }
    for pair in &early {
        let status = pair.replica.status();
        assert_eq!((status.connects, status.resyncs), (1, 0), "{status:?}");
    }
    let counts = workload.stop().await.unwrap();
    one_changed_cell_is_found(&sql, &early[0]).await;
    assert!(counts.committed > counts.failed, "{counts:?}");
}

/// Types whose projection is what `to_jsonb` makes of them.
const AS_JSONB: &[&str] = &[
    "bool",
    "int2",
    "int4",
    "uuid",
    "date",
    "timestamp",
    "timestamptz",
    "int4[]",
    "text[]",
    "timestamptz[]",
    "enum",
    "enum[]",
    "domain of domain",
    "domain[]",
    "composite",
    "composite[]",
    "nested",
    "tëxt 🌍 \"quoted\"",
];

/// PostgreSQL's own JSON of some types, so that the projection is not its own judge.
async fn compare_with_jsonb(sql: &tokio_postgres::Client, pair: &Pair) {
    assert_eq!((pair.only, &pair.table), (Only::All, &TABLES[0].name()));
    let fields = pair.key.iter().chain(AS_JSONB).map(|name| format!("{}, {}", literal(name), identifier(name)));
    let fields = fields.collect::<Vec<_>>().join(", ");
    let query = format!("SELECT jsonb_build_object({fields})::text FROM {}", pair.table.quoted());
    let rows = sql.query(&query, &[]).await.unwrap();
    let theirs: BTreeMap<String, JsonRow> = rows
        .iter()
        .map(|row| serde_json::from_str::<JsonRow>(row.get(0)).unwrap())
        .map(|row| (key_of(pair.key, &row), row))
        .collect();
    let differences = json_differences(&pair.simple.state().rows, &theirs);
    assert!(differences.is_empty(), "{differences}");
}

/// The comparison itself, put to the test.
async fn one_changed_cell_is_found(sql: &tokio_postgres::Client, pair: &Pair) {
    compare_at_rest(sql, std::slice::from_ref(pair), -30_000).await;
    let changed = format!("UPDATE {} SET bool = NOT coalesce(bool, false)", pair.table.quoted());
    sql.batch_execute(&format!("BEGIN; {changed} WHERE n = -30000")).await.unwrap();
    // Read inside the transaction, which nobody else sees.
    let rows = oracle::rows_at_rest(sql, &pair.table, pair.key, "true").await.unwrap();
    sql.batch_execute("ROLLBACK").await.unwrap();
    let differences = pair.differences(&rows);
    let (replica, simple) = differences.split_once("simple client").expect("both differ");
    assert!(replica.contains(", bool: ") && simple.contains(", bool: "), "{differences}");
    assert_eq!(differences.matches(" in the database, ").count(), 2, "{differences}");
}
