//! The replication slot: the reports about it, and the effects when PostgreSQL invalidates it or an
//! operator recreates it.

use std::sync::Mutex;

use laredo_core::TableName;
use laredo_testkit::workload::{Workload, WorkloadOptions};
use laredo_testkit::{Cluster, ClusterOptions, clean_command, eventually};

use super::command::answer;
use super::faults::assert_undisturbed;
use super::restarts::DurableTable;
use crate::support::fleet::{await_transactions, cluster, compare_all, fleet, serve_all};
use crate::support::server::{PATIENCE, ServerProcessConfig, numbers};

/// Starts a cluster that keeps almost no WAL for a slot.
fn tight() -> Cluster {
    let options = ClusterOptions::default()
        .set("max_slot_wal_keep_size", "1MB")
        .set("max_wal_size", "32MB")
        .set("min_wal_size", "32MB");
    let cluster = Cluster::start(options).unwrap();
    cluster.psql("CREATE TABLE filler (id uuid)").unwrap();
    cluster
}

/// Writes WAL of an unfollowed table, one segment each time.
fn write_wal(cluster: &Cluster) {
    cluster.psql("INSERT INTO filler VALUES (gen_random_uuid()); SELECT pg_switch_wal(); CHECKPOINT").unwrap();
}

/// Checks that the server logs an error about the slot, and that no client loads the table again.
fn is_reported(served: &DurableTable) {
    let log = served.server.process.output();
    let is_loud =
        |line: &String| line.contains("ERROR") && line.contains("replication slot laredo_tight was invalidated");
    assert!(log.iter().any(is_loud), "nothing says what happened: {log:#?}");
    assert_eq!(served.pair.simple.state().snapshots, 1);
    assert_eq!(served.pair.replica.status().resyncs, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_invalidated_while_the_server_runs_is_made_again_and_clients_get_the_difference() {
    let served = DurableTable::start_on(tight(), "laredo_tight").await;
    let source = async || served.server.health().await.1["sources"][0].clone();
    let stands = async || {
        let source = source().await;
        source["wal_status"] == "reserved" && source["safe_bytes"].is_u64() && source["retained_bytes"].is_u64()
    };
    eventually(PATIENCE, stands).await.expect("how the slot stands is told");
    let oam = served.server.oam_url();
    answer(&["pause", "--oam", &oam]);
    let losses = async || served.server.source_metric("laredo_slot_losses_total").await;
    assert_eq!(losses().await, Some(0));
    let is_lost = async || {
        write_wal(&served.cluster);
        losses().await == Some(1)
    };
    eventually(PATIENCE, is_lost).await.expect("it is seen while nothing is followed");
    let source = source().await;
    assert!(source["last_loss"].as_str().is_some_and(|why| why.contains("was invalidated")), "{source}");
    answer(&["resume", "--oam", &oam]);
    served.is_copied(2).await;
    served.clients_have_everything(-2).await;
    is_reported(&served);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_invalidated_meanwhile_is_reported_and_clients_get_the_difference() {
    let mut served = DurableTable::start_on(tight(), "laredo_tight").await;
    served.kill().await;
    served.cluster.psql("DELETE FROM kept WHERE n % 100 = 7; UPDATE kept SET amount = 0 WHERE n = 8").unwrap();
    let is_lost = async || {
        write_wal(&served.cluster);
        served.cluster.psql("SELECT wal_status FROM pg_replication_slots").unwrap() == "lost"
    };
    eventually(PATIENCE, is_lost).await.unwrap();
    served.comes_back_with_a_copy().await;
    assert_eq!(served.server.source_metric("laredo_slot_losses_total").await, Some(1));
    is_reported(&served);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_reset_under_load_is_copied_and_its_clients_stay() {
    let cluster = cluster();
    let sql = cluster.connect().await.unwrap();
    let workload = Workload::start(&cluster.url("postgres"), 11, WorkloadOptions::default());
    await_transactions(&workload, 100).await;
    let server = serve_all(cluster.url("postgres")).slot("laredo_reset").start().await;
    let pairs = fleet(&server.url());
    let url = server.oam_url();
    let publication = || cluster.psql("SELECT oid FROM pg_publication").unwrap();
    for (round, with_publication) in [(1, false), (2, true)] {
        await_transactions(&workload, 60).await;
        // PostgreSQL itself may also have cost a slot: after a truncate it cannot always read on.
        let lost = async || server.source_metric("laredo_slot_losses_total").await.unwrap();
        let copied = async || -> Vec<u64> {
            let metrics = server.metrics().await;
            numbers(&metrics, "laredo_copies_total").into_iter().map(|copies| copies.parse().unwrap()).collect()
        };
        let (losses, copies, before) = (lost().await, copied().await, publication());
        let mut order = vec!["reset-source", "db", "--confirm", "--oam", &url];
        order.extend(with_publication.then_some("--drop-publication"));
        let said = answer(&order);
        assert!(said.contains("slot laredo_reset is dropped and created again"), "{said}");
        assert_eq!(publication() != before, with_publication);
        await_transactions(&workload, 60).await;
        let is_done =
            async || lost().await > losses && copied().await.iter().zip(&copies).all(|(now, before)| now > before);
        eventually(PATIENCE, is_done).await.expect("every table is copied again");
        let paused = compare_all(&sql, &workload, &pairs, -10_000 - round).await;
        workload.resume(paused);
    }
    assert_undisturbed(&pairs);
    workload.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_meets_a_deadlock_is_tried_again() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)").unwrap();
    let tables = ["a", "b"].map(|name| TableName::new("public", name));
    let server = ServerProcessConfig::new(cluster.url("postgres"), tables).slot("laredo_locks").start().await;
    let url = server.oam_url();
    let other = cluster.connect().await.unwrap();
    // Only one of two sessions in a deadlock detects it. This setting makes it the other one.
    other.batch_execute("SET deadlock_timeout = '1h'; BEGIN; LOCK TABLE b IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let order = ["reset-source", "db", "--confirm", "--drop-publication", "--oam", &url].map(ToOwned::to_owned);
    let reset = tokio::task::spawn_blocking(move || answer(&order.each_ref().map(String::as_str)));
    let waits = async || {
        let query =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DROP PUBLICATION%'";
        cluster.psql(query).unwrap().trim() == "1"
    };
    eventually(PATIENCE, waits).await.expect("the reset waits for b");
    other.batch_execute("LOCK TABLE a IN ACCESS EXCLUSIVE MODE; COMMIT").await.unwrap();
    let said = reset.await.unwrap();
    assert!(said.contains("slot laredo_locks is dropped and created again"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_refused_unconfirmed_and_for_the_publication_of_another_owner() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION theirs FOR TABLE t").unwrap();
    let mut config =
        ServerProcessConfig::new(cluster.url("postgres"), [TableName::new("public", "t")]).slot("laredo_theirs");
    config.publication = "theirs".to_owned();
    config.source += "\npublication { create = false }";
    let server = config.start().await;
    let url = server.oam_url();
    for (arguments, words) in [
        (vec!["db"], "set `confirm` to do it"),
        (vec!["other", "--confirm"], "no source `other`"),
        (vec!["db", "--confirm", "--drop-publication"], "laredo may not create publication theirs"),
    ] {
        let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
        let refused = command.arg("reset-source").args(&arguments).args(["--oam", &url]).output().unwrap();
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(2) && said.contains(words), "{arguments:?}: {said}");
    }
    assert_eq!(server.source_metric("laredo_slot_losses_total").await, Some(0));
    assert_eq!(cluster.psql("SELECT pubname FROM pg_publication").unwrap(), "theirs");
}

/// While nothing is written, PostgreSQL reports no progress, so no position shows that the table is
/// current.
#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_table_is_as_old_as_the_last_look_at_the_wal() {
    let options = ClusterOptions::default().set("autovacuum", "off").set("checkpoint_timeout", "1h");
    let cluster = Cluster::start(options).unwrap();
    cluster.psql("CREATE TABLE quiet (id int PRIMARY KEY); INSERT INTO quiet VALUES (1)").unwrap();
    let table = TableName::new("public", "quiet");
    let server = ServerProcessConfig::new(cluster.url("postgres"), [table]).slot("laredo_quiet").start().await;
    let before = Mutex::new(None);
    let is_younger = async || {
        let (_, health) = server.health().await;
        let (position, lag_ms) = (health["tables"][0]["position"].clone(), health["tables"][0]["lag_ms"].as_u64());
        let last = before.lock().unwrap().replace((position.clone(), lag_ms));
        last.is_some_and(|(last_position, last_lag_ms)| last_position == position && lag_ms < last_lag_ms)
    };
    eventually(PATIENCE, is_younger).await.expect("the lag falls although the position is the same");
}
