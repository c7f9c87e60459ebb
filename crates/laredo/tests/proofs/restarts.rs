//! A server with a durable journal, killed again and again: it goes on where its files end, copies nothing, and its clients go on
//! by delta.

use laredo_core::{Lsn, TableName};
use laredo_testkit::workload::{TABLES, Workload, WorkloadOptions};
use laredo_testkit::{eventually, is_full};
use tempfile::TempDir;

use crate::support::fleet::{Only, Pair, cluster, compare_all, fleet, more, serve_all};
use crate::support::server::{PATIENCE, ServerConfig};

fn kept(config: ServerConfig, folder: &TempDir) -> ServerConfig {
    let path = serde_json::Value::from(folder.path().to_string_lossy());
    config.target(&format!("journal {{ store = local, store_config {{ path = {path} }} }}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_goes_on_from_its_journal_and_its_clients_by_delta() {
    // Truncating a table ends in a copy of it.
    let options = WorkloadOptions { truncates: false, ..WorkloadOptions::default() };
    let metrics = killed_again_and_again("laredo_journal", options).await;
    for metrics in metrics {
        assert_eq!(numbers(&metrics, "laredo_copies_total"), vec!["0"; TABLES.len()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_killed_server_go_on_by_delta_while_tables_are_truncated_and_copied() {
    let options = WorkloadOptions { truncates: true, ..WorkloadOptions::default() };
    killed_again_and_again("laredo_truncates", options).await;
}

/// Kills a server under load, and compares its clients with the database each time. Returns the metrics of each start.
async fn killed_again_and_again(slot: &str, options: WorkloadOptions) -> Vec<String> {
    let rounds = if is_full() { 20 } else { 4 };
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let sql = cluster.connect().await.unwrap();
    let workload = Workload::start(&cluster.url("postgres"), 10, options);
    more(&workload, 100).await;
    let mut server = kept(serve_all(cluster.url("postgres")).slot(slot), &folder).start().await;
    let pairs = fleet(&server.url());
    let paused = compare_all(&sql, &workload, &pairs, -10_000).await;
    workload.resume(paused);
    let mut metrics = Vec::new();
    for round in 1..=rounds {
        more(&workload, 60 + 17 * round).await;
        server.restart().await;
        more(&workload, 40).await;
        let paused = compare_all(&sql, &workload, &pairs, -10_000 - i32::try_from(round).unwrap()).await;
        metrics.push(server.metrics().await);
        workload.resume(paused);
    }
    for metrics in &metrics {
        assert_eq!(numbers(metrics, "laredo_snapshots_total"), Vec::<&str>::new());
        let syncs = numbers(metrics, "laredo_journal_syncs_total");
        assert!(syncs.len() == TABLES.len() && syncs.iter().all(|syncs| *syncs != "0"), "{syncs:?}");
    }
    for pair in &pairs {
        let (status, state) = (pair.replica.status(), pair.simple.state());
        assert_eq!((status.resyncs, state.snapshots), (0, 1), "{} {status:?}", pair.table);
        assert!(u64::from(state.deltas) >= rounds, "{} deltas", state.deltas);
    }
    workload.stop().await.unwrap();
    metrics
}

/// A number of every table.
fn numbers<'a>(metrics: &'a str, name: &str) -> Vec<&'a str> {
    let of = |line: &'a str| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once(' ');
    metrics.lines().filter_map(of).map(|(_, number)| number).collect()
}

/// Changed while the server was not there, in ways of which the stream does not tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_changed_meanwhile_is_told_by_what_differs() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let sql = cluster.connect().await.unwrap();
    let create = "CREATE TYPE temper AS ENUM ('fine', 'bad');
         CREATE TABLE kept (n int PRIMARY KEY, mood temper NOT NULL DEFAULT 'fine', amount int);
         INSERT INTO kept SELECT n, 'fine', n FROM generate_series(1, 1000) n";
    sql.batch_execute(create).await.unwrap();
    let table = TableName::new("public", "kept");
    let config = ServerConfig::new(cluster.url("postgres"), [table.clone()]).slot("laredo_kept");
    let mut server = kept(config, &folder).start().await;
    let pair = Pair::start(&server.url(), &table, &["n"], Only::All);
    let position = marked(&sql, -1).await;
    pair.reach(position, -1).await;
    // A client that was ahead of the disk would be inside what the copy stands for, where the columns are others.
    let durable = async || server.metric("laredo_durable_position_bytes", &table).await >= Some(position.0);
    eventually(PATIENCE, durable).await.unwrap();
    server.process.kill9();
    let change = "ALTER TYPE temper RENAME VALUE 'fine' TO 'well';
         ALTER TABLE kept ALTER amount TYPE int USING amount % 10, ADD note text DEFAULT 'as always';
         DELETE FROM kept WHERE n = 7";
    sql.batch_execute(change).await.unwrap();
    server.restart().await;
    let copied = async || server.metric("laredo_copies_total", &table).await == Some(1);
    eventually(PATIENCE, copied).await.expect("it is copied again");
    let position = marked(&sql, -2).await;
    pair.reach(position, -2).await;
    let rows = laredo_testkit::oracle::rows_at_rest(&sql, &table, &["n"], "true").await.unwrap();
    pair.settle(&rows).await;
    assert_eq!(pair.differences(&rows), "");
    assert_eq!(pair.simple.state().snapshots, 1);
}

async fn marked(sql: &tokio_postgres::Client, mark: i32) -> Lsn {
    sql.batch_execute(&format!("INSERT INTO kept (n) VALUES ({mark})")).await.unwrap();
    laredo_testkit::oracle::flushed(sql).await.unwrap()
}
