//! Definitions that change and change back, with rows written in between. Clients have the
//! database's rows with a kept journal, with snapshots alone and with neither. This holds while the
//! server runs, while it is down, and after it has resumed.

use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, eventually};
use tempfile::TempDir;
use tokio_postgres::Client;

use crate::support::compare::view_differences;
use crate::support::definitions::{KEY, KINDS, ReversibleChange, create_tables, tables};
use crate::support::fleet::{CategoryFilter, ClientPair};
use crate::support::server::{PATIENCE, PATIENT, ServerProcess, ServerProcessConfig};

#[tokio::test(flavor = "multi_thread")]
async fn with_a_kept_journal() {
    every_kind("laredo_kept", |folder| format!("journal {{ store = local, store_config {{ path = {folder} }} }}"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_snapshots_alone() {
    every_kind("laredo_snapshots", |folder| {
        format!("snapshot {{ store = local, interval = 1s, store_config {{ path = {folder} }} }}")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_neither() {
    every_kind("laredo_neither", |_| String::new()).await;
}

/// With the event trigger, no client reaches a position after a change before its rows are right.
#[tokio::test(flavor = "multi_thread")]
async fn with_an_event_trigger() {
    let cluster = start();
    cluster.psql(laredo_postgres::ddl::INSTALL).unwrap();
    let tables = tables();
    let mut config =
        ServerProcessConfig::new(cluster.url("postgres"), tables.clone()).slot("laredo_triggered").target(PATIENT);
    config.source += "\nddl.watch = trigger";
    let server = config.start().await;
    let sql = cluster.connect().await.unwrap();
    let pairs: Vec<ClientPair> =
        tables.iter().map(|table| ClientPair::start(&server.url(), table, KEY, CategoryFilter::All)).collect();
    compare(&sql, &server, &pairs, "at the start").await;
    for round in 0..3 {
        change_all(&cluster);
        let position = flushed(&sql).await.unwrap();
        for pair in &pairs {
            let rows = rows_at_rest(&sql, &pair.table, KEY, "true").await.unwrap();
            let reached = async || pair.replica.view().position() >= position;
            eventually(PATIENCE, reached).await.unwrap();
            let differences = view_differences(&pair.replica.view(), &rows, KEY);
            // A TRUNCATE of a single partition fires no event trigger.
            if pair.table.table != "emptied" {
                assert!(differences.is_empty(), "round {round}, {}:\n{differences}", pair.table);
            }
        }
    }
    compare(&sql, &server, &pairs, "in the end").await;
}

fn start() -> Cluster {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    create_tables(&cluster);
    cluster
}

async fn every_kind(slot: &str, store: impl Fn(serde_json::Value) -> String) {
    let (cluster, folder, tables) = (start(), TempDir::new().unwrap(), tables());
    let sql = cluster.connect().await.unwrap();
    let path = serde_json::Value::from(folder.path().to_string_lossy());
    let config = ServerProcessConfig::new(cluster.url("postgres"), tables.clone()).slot(slot).target(PATIENT);
    let mut server = config.target(&store(path)).start().await;
    let pairs: Vec<ClientPair> =
        tables.iter().map(|table| ClientPair::start(&server.url(), table, KEY, CategoryFilter::All)).collect();
    compare(&sql, &server, &pairs, "at the start").await;

    change_all(&cluster);
    compare(&sql, &server, &pairs, "while the server runs").await;

    server.process.terminate();
    server.process.wait(PATIENCE).await.unwrap();
    change_all(&cluster);
    server.restart().await;
    compare(&sql, &server, &pairs, "while the server is down").await;

    // This run may not have made any copy.
    server.restart().await;
    compare(&sql, &server, &pairs, "after a restart").await;
    change_all(&cluster);
    compare(&sql, &server, &pairs, "after the server has resumed").await;
}

/// Runs all changes.
fn change_all(cluster: &Cluster) {
    for step in KINDS.iter().flat_map(ReversibleChange::steps) {
        cluster.psql(&step).unwrap();
    }
}

/// Compares every client with the database, now and again after a write to each table.
async fn compare(sql: &Client, server: &ServerProcess, pairs: &[ClientPair], when: &str) {
    for write in ["SELECT", "UPDATE {} SET v = v + 1 WHERE id = (SELECT min(id) FROM {})"] {
        if write != "SELECT" {
            for pair in pairs {
                sql.batch_execute(&write.replace("{}", &pair.table.quoted())).await.unwrap();
            }
        }
        let position = flushed(sql).await.unwrap();
        let live = async || server.is_live_at(position).await;
        assert!(eventually(PATIENCE, live).await.is_ok(), "{when}: {:?}", server.health().await);
        for pair in pairs {
            let rows = rows_at_rest(sql, &pair.table, KEY, "true").await.unwrap();
            let equal = async || pair.differences(&rows).is_empty();
            if eventually(PATIENCE, equal).await.is_err() {
                panic!("{when}, {write}, {}:\n{}", pair.table, pair.differences(&rows));
            }
        }
    }
}
