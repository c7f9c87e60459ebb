//! A server with snapshots and no kept journal. It is killed under load, resumes from its newest
//! snapshots, and copies nothing.

use laredo_core::TableName;
use laredo_testkit::oracle;
use laredo_testkit::workload::{TABLES, Workload, WorkloadOptions};
use laredo_testkit::{Cluster, ClusterOptions, clean_command, eventually, is_full};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::fleet::{CategoryFilter, ClientPair, await_transactions, cluster, compare_all, fleet, serve_all};
use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig, numbers};

fn with_snapshots(config: ServerProcessConfig, folder: &TempDir, keys: &str) -> ServerProcessConfig {
    let path = Value::from(folder.path().to_string_lossy());
    config.target(&format!("snapshot {{ store = local, store_config {{ path = {path} }}, {keys} }}"))
}

/// Returns the output of a successful `laredo snapshot …` command.
fn snapshot(server: &ServerProcess, arguments: &[&str]) -> String {
    let url = server.oam_url();
    let arguments = [&["snapshot"], arguments, &["--oam", &url]].concat();
    let output = clean_command(env!("CARGO_BIN_EXE_laredo")).args(&arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns options without truncates, because a truncated table is copied.
fn without_truncates() -> WorkloadOptions {
    WorkloadOptions { truncates: false, ..WorkloadOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_continues_from_a_snapshot_and_its_clients_by_delta() {
    let rounds = if is_full() { 12 } else { 3 };
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let sql = cluster.connect().await.unwrap();
    let workload = Workload::start(&cluster.url("postgres"), 11, without_truncates());
    await_transactions(&workload, 100).await;
    let config = serve_all(cluster.url("postgres")).slot("laredo_snapshots");
    let mut server = with_snapshots(config, &folder, "interval = 1h").start().await;
    let pairs = fleet(&server.url());
    for round in 0..rounds {
        await_transactions(&workload, 50).await;
        let taken: Value = serde_json::from_str(&snapshot(&server, &["create", "--json"])).unwrap();
        assert_eq!(taken["snapshot_ids"].as_array().map(Vec::len), Some(TABLES.len()), "{taken}");
        // All clients are past the snapshots when the server is killed, in the middle of the
        // workload.
        let paused = compare_all(&sql, &workload, &pairs, -20_000 - round).await;
        workload.resume(paused);
        await_transactions(&workload, 60 + 17 * u64::try_from(round).unwrap()).await;
        server.restart().await;
        let metrics = server.metrics().await;
        assert_eq!(numbers(&metrics, "laredo_copies_total"), vec!["0"; TABLES.len()]);
        assert_eq!(numbers(&metrics, "laredo_snapshots_total"), Vec::<&str>::new());
    }
    await_transactions(&workload, 40).await;
    compare_all(&sql, &workload, &pairs, -30_000).await;
    assert_eq!(numbers(&server.metrics().await, "laredo_snapshots_total"), Vec::<&str>::new());
    for pair in &pairs {
        let (status, state) = (pair.replica.status(), pair.simple.state());
        assert_eq!((status.resyncs, state.snapshots), (0, 1), "{} {status:?}", pair.table);
        assert!(i64::from(state.deltas) >= i64::from(rounds), "{} deltas", state.deltas);
    }
    workload.stop().await.unwrap();
}

/// The snapshots are lines of JSON that also have the rows' own bytes. After reading them back,
/// clients agree with the database cell by cell.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_writes_snapshots_by_itself_and_postgres_keeps_what_follows() {
    let rounds = if is_full() { 12 } else { 3 };
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let sql = cluster.connect().await.unwrap();
    let workload = Workload::start(&cluster.url("postgres"), 12, without_truncates());
    await_transactions(&workload, 100).await;
    let config = serve_all(cluster.url("postgres")).slot("laredo_by_itself");
    let keys = "interval = 1s, serializer = jsonl, retention { keep_count = 2 }";
    let mut server = with_snapshots(config, &folder, keys).start().await;
    let pairs = fleet(&server.url());
    for round in 0..rounds {
        // Each table has two snapshots, and older ones are removed.
        let written = async || {
            let metrics = server.metrics().await;
            let counts = numbers(&metrics, "laredo_stored_snapshot_writes_total");
            assert_eq!(numbers(&metrics, "laredo_stored_snapshot_errors_total"), vec!["0"; TABLES.len()]);
            counts.len() == TABLES.len() && counts.iter().all(|count| count.parse::<u64>().unwrap() >= 2)
        };
        eventually(PATIENCE, written).await.unwrap();
        await_transactions(&workload, 60).await;
        server.restart().await;
        let metrics = server.metrics().await;
        assert_eq!(numbers(&metrics, "laredo_copies_total"), vec!["0"; TABLES.len()]);
        // A server that is killed between writing a snapshot and removing an older one leaves both.
        // The next snapshot then removes it.
        let kept = async || {
            let metrics = server.metrics().await;
            numbers(&metrics, "laredo_stored_snapshots").iter().all(|count| ["1", "2"].contains(count))
        };
        eventually(PATIENCE, kept).await.unwrap();
        let paused = compare_all(&sql, &workload, &pairs, -40_000 - round).await;
        workload.resume(paused);
    }
    workload.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_looks_after_snapshots() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY, v json); INSERT INTO t VALUES (1, '{\"a\": 1.10}')").unwrap();
    let table = TableName::new("public", "t");
    let config = ServerProcessConfig::new(cluster.url("postgres"), [table.clone()]).slot("laredo_operator");
    let server = with_snapshots(config, &folder, "interval = 1h, serializer = jsonl").start().await;
    let written = async || server.metric("laredo_stored_snapshots", &table).await == Some(1);
    eventually(PATIENCE, written).await.unwrap();
    cluster.psql("INSERT INTO t VALUES (2, '{}')").unwrap();
    let copied = async || server.metric("laredo_rows", &table).await == Some(2);
    eventually(PATIENCE, copied).await.unwrap();
    let said = snapshot(&server, &["create", "public.t", "--meta", "why=deploy 7"]);
    assert!(said.starts_with("public.t: ") && said.contains("2 rows as of "), "{said}");
    let list = |arguments: &[&str]| -> Vec<Value> {
        serde_json::from_str(&snapshot(&server, &[&["list", "--json"], arguments].concat())).unwrap()
    };
    let all = list(&["public.t"]);
    assert_eq!((all.len(), &all[0]["row_count"], &all[0]["user_meta"]["why"]), (2, &2.into(), &"deploy 7".into()));
    assert_eq!(list(&["--limit", "1"]), all[..1]);
    let id = |number: usize| all[number]["snapshot_id"].as_str().unwrap();
    let told = snapshot(&server, &["inspect", id(0)]);
    assert!(told.contains("every byte is what was written") && told.contains("jsonl"), "{told}");
    // The document is stored in its original spelling, and in the form that other programs read.
    let text = std::fs::read_to_string(all[0]["file"].as_str().unwrap()).unwrap();
    assert!(text.contains(r#""row":{"id":1,"v":{"a":1.1}}"#), "{text}");
    assert!(snapshot(&server, &["list"]).starts_with("SNAPSHOT"));
    assert!(snapshot(&server, &["delete", id(1)]).contains("is removed"));
    assert_eq!(snapshot(&server, &["prune", "--keep", "1"]), "0 snapshots are removed\n");
    let url = server.oam_url();
    let refused = |arguments: &[&str]| {
        let arguments = [&["snapshot"], arguments, &["--oam", &url]].concat();
        let output = clean_command(env!("CARGO_BIN_EXE_laredo")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&["delete", id(0)]).contains("it is the newest one"));
    assert!(refused(&["inspect", id(1)]).contains("there is no snapshot"));
    assert!(refused(&["restore", id(0)]).contains("set `confirm`"));
    assert!(refused(&["restore", id(0), "--confirm"]).contains("never go back in time"));
}

/// A client without extensions knows the position of the last change that it received. The snapshot
/// has a later position, but the table has not changed in between.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_quiet_table_continue_after_each_restart() {
    let (cluster, folder) = (Cluster::start(ClusterOptions::default()).unwrap(), tempfile::tempdir().unwrap());
    cluster
        .psql(
            "CREATE TABLE quiet (id int PRIMARY KEY, n int); INSERT INTO quiet SELECT g, g FROM generate_series(1, 100) g;
             CREATE TABLE busy (id serial PRIMARY KEY, n int)",
        )
        .unwrap();
    let sql = cluster.connect().await.unwrap();
    let [quiet, busy] = ["quiet", "busy"].map(|table| TableName::new("public", table));
    for serializer in ["native", "jsonl"] {
        let config = ServerProcessConfig::new(cluster.url("postgres"), [quiet.clone(), busy.clone()]);
        let slot = format!("laredo_quiet_{serializer}");
        let keys = format!("interval = 1h, serializer = {serializer}");
        let mut server = with_snapshots(config.slot(&slot), &folder, &keys).start().await;
        let pair = ClientPair::start(&server.url(), &quiet, &["id"], CategoryFilter::All);
        for round in 1..=3 {
            // In the first round there is no change, so a client may have received only the
            // snapshot.
            if round > 1 {
                let mark = -round;
                sql.batch_execute(&format!("UPDATE quiet SET n = {mark} WHERE id = 1")).await.unwrap();
                pair.reach(oracle::flushed(&sql).await.unwrap(), mark).await;
            }
            let write = "INSERT INTO busy (n) SELECT g FROM generate_series(1, 50) g";
            sql.batch_execute(write).await.unwrap();
            let written = oracle::flushed(&sql).await.unwrap();
            let passed = async || server.is_live_at(written).await;
            assert!(eventually(PATIENCE, passed).await.is_ok());
            snapshot(&server, &["create"]);
            sql.batch_execute(write).await.unwrap();
            server.restart().await;
            let mark = -100 - round;
            sql.batch_execute(&format!("UPDATE quiet SET n = {mark} WHERE id = 2")).await.unwrap();
            pair.reach(oracle::flushed(&sql).await.unwrap(), mark).await;
            let rows = oracle::rows_at_rest(&sql, &quiet, &["id"], "true").await.unwrap();
            pair.settle(&rows).await;
            assert_eq!(pair.differences(&rows), "", "{serializer}, round {round}");
            let metrics = server.metrics().await;
            assert_eq!(numbers(&metrics, "laredo_snapshots_total"), Vec::<&str>::new(), "{serializer}, round {round}");
            assert_eq!((pair.replica.status().resyncs, pair.simple.state().snapshots), (0, 1));
        }
        drop(server);
        folder.path().read_dir().unwrap().for_each(|entry| std::fs::remove_dir_all(entry.unwrap().path()).unwrap());
    }
}
