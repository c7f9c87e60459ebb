//! Under a random workload over every type, every client has the database's rows at the database's
//! position, cell by cell. This holds in both encodings, for clients that connect with the first
//! copy or later.

use std::collections::BTreeMap;

use laredo_testkit::oracle;
use laredo_testkit::types::{identifier, literal};
use laredo_testkit::workload::{TABLES, Workload, WorkloadOptions};
use laredo_testkit::{Cluster, eventually, is_full};

use crate::support::compare::json_differences;
use crate::support::fleet::{
    CategoryFilter, ClientPair, await_transactions, cluster, compare_all, compare_at_rest, fleet, serve_all,
};
use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use crate::support::simple::{JsonRow, key_of};

#[tokio::test(flavor = "multi_thread")]
async fn clients_equal_the_database_under_a_random_workload() {
    let (pauses, transactions) = if is_full() { (20, 1500) } else { (6, 250) };
    let cluster = cluster();
    let config = serve_all(cluster.url("postgres")).slot("laredo_equality");
    let (_server, early) = compare_under_load(&cluster, &config, pauses, transactions).await;
    for pair in &early {
        let status = pair.replica.status();
        assert_eq!((status.connects, status.resyncs), (1, 0), "{status:?}");
        assert_eq!(pair.simple.state().snapshots, 1, "a client had to start anew");
    }
    let sql = cluster.connect().await.unwrap();
    one_changed_cell_is_found(&sql, &early[0]).await;
}

/// A new client gets a base that was just merged. A slow client may find its position pruned, and
/// loads the table again.
#[tokio::test(flavor = "multi_thread")]
async fn clients_equal_the_database_while_the_journal_is_pruned_all_the_time() {
    let (pauses, transactions) = if is_full() { (20, 500) } else { (4, 150) };
    let cluster = cluster();
    let config = serve_all(cluster.url("postgres")).slot("laredo_pruning").target("journal { max_entries = 100 }");
    let (server, _) = compare_under_load(&cluster, &config, pauses, transactions).await;
    assert!(server.bases() > TABLES.len() * 2, "only {} bases were merged", server.bases());
}

/// Compares early and late clients with the database repeatedly.
async fn compare_under_load(
    cluster: &Cluster,
    config: &ServerProcessConfig,
    pauses: i32,
    transactions: u64,
) -> (ServerProcess, Vec<ClientPair>) {
    let sql = cluster.connect().await.unwrap();
    if cluster.major_version() >= 17 {
        // PostgreSQL 17 is the first version with infinite intervals. The marked row has one.
        let infinite = "ALTER COLUMN \"interval\" SET DEFAULT 'infinity'";
        sql.batch_execute(&format!("ALTER TABLE {} {infinite}", TABLES[0].name().quoted())).await.unwrap();
    }
    let workload = Workload::start(&cluster.url("postgres"), 42, WorkloadOptions::default());
    await_transactions(&workload, 200).await;
    // The table is copied while eight sessions write.
    let server = config.start().await;
    let early = fleet(&server.url());
    for pause in 1..=pauses {
        await_transactions(&workload, transactions).await;
        let late = fleet(&server.url());
        await_transactions(&workload, 50).await;
        let paused = compare_all(&sql, &workload, &early, -10_000 - pause).await;
        compare_at_rest(&sql, &late, -20_000 - pause).await;
        compare_with_jsonb(&sql, &early[0]).await;
        workload.resume(paused);
    }
    let counts = workload.stop().await.unwrap();
    assert!(counts.committed > counts.failed, "{counts:?}");
    let rare = [counts.truncates, counts.key_changes, counts.largest_values];
    assert!(rare.iter().all(|count| *count > 0), "something never happened: {counts:?}");
    let streamed = "SELECT coalesce(max(stream_txns), 0)::bigint FROM pg_stat_replication_slots";
    let is_streamed = async || sql.query_one(streamed, &[]).await.unwrap().get::<_, i64>(0) > 0;
    eventually(PATIENCE, is_streamed).await.expect("transactions are streamed before they commit");
    (server, early)
}

/// The types whose projection equals the result of `to_jsonb`.
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

/// Compares some types with PostgreSQL's own JSON, so that the projection is not compared with
/// itself alone.
async fn compare_with_jsonb(sql: &tokio_postgres::Client, pair: &ClientPair) {
    assert_eq!((pair.only, &pair.table), (CategoryFilter::All, &TABLES[0].name()));
    // An array whose subscripts do not begin at 1 is projected as text, because JSON would drop
    // them.
    let value = |name: &str| match name.ends_with("[]") {
        true => format!(
            "CASE WHEN array_lower({0}, 1) <> 1 THEN to_jsonb({0}::text) ELSE to_jsonb({0}) END",
            identifier(name)
        ),
        false => identifier(name),
    };
    let fields = pair.key.iter().chain(AS_JSONB).map(|name| format!("{}, {}", literal(name), value(name)));
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

/// Tests the comparison itself with one changed cell.
async fn one_changed_cell_is_found(sql: &tokio_postgres::Client, pair: &ClientPair) {
    compare_at_rest(sql, std::slice::from_ref(pair), -30_000).await;
    let changed = format!("UPDATE {} SET bool = NOT coalesce(bool, false)", pair.table.quoted());
    sql.batch_execute(&format!("BEGIN; {changed} WHERE n = -30000")).await.unwrap();
    // Read inside the transaction, which no other session sees.
    let rows = oracle::rows_at_rest(sql, &pair.table, pair.key, "true").await.unwrap();
    sql.batch_execute("ROLLBACK").await.unwrap();
    let differences = pair.differences(&rows);
    let (replica, simple) = differences.split_once("simple client").expect("both differ");
    assert!(replica.contains(", bool: ") && simple.contains(", bool: "), "{differences}");
    assert_eq!(differences.matches(" in the database, ").count(), 2, "{differences}");
}
