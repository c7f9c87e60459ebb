//! The lines of the log: each has an event, and the source and the table that it is about.

use std::path::Path;

use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, eventually};
use serde_json::{Value, json};

use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use crate::support::snapshotter::{self, SnapshotterProcess};

/// Events of the engine that are about a source, and not about one of its tables.
const OF_SOURCES: [&str; 3] = ["source_followed_again", "source_unreachable", "stream_broken"];

fn lines(output: &[String]) -> Vec<Value> {
    output.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line} is not JSON"))).collect()
}

/// Asserts that each line has an event, and that lines of the engine and of PostgreSQL have their
/// source and table.
fn assert_complete(lines: &[Value]) {
    for line in lines {
        let text = |name: &str| line[name].as_str().unwrap_or_default();
        let (target, event) = (text("target"), text("event"));
        assert!(!target.starts_with("laredo") || !event.is_empty(), "no event: {line}");
        let is_of_source = target.starts_with("laredo_engine") || target.starts_with("laredo_postgres");
        assert!(!is_of_source || text("source") == "db", "no source: {line}");
        let is_of_table = target.starts_with("laredo_engine") && !OF_SOURCES.contains(&event);
        assert!(!is_of_table || text("table") == "public.t", "no table: {line}");
    }
}

fn has(lines: &[Value], event: &str) -> bool {
    lines.iter().any(|line| line["event"] == event)
}

fn cluster() -> Cluster {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY, name text); INSERT INTO t VALUES (1, 'a'), (2, 'b')").unwrap();
    cluster
}

fn config(cluster: &Cluster, folder: &Path) -> ServerProcessConfig {
    let store = |name: &str| format!("store = local, store_config {{ path = {} }}", json!(folder.join(name)));
    let keys = format!("journal {{ {} }}\nsnapshot {{ interval = 1s, {} }}", store("journal"), store("snapshots"));
    let table = TableName::new("public", "t");
    ServerProcessConfig::new(cluster.url("postgres"), [table]).slot("log_events").target(&keys)
}

async fn waits_for(server: &ServerProcess, event: &str) {
    let said = async || has(&lines(&server.process.output()), event);
    eventually(PATIENCE, said).await.unwrap_or_else(|_| panic!("no {event}: {:#?}", server.process.output()));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_has_an_event_and_what_it_is_about() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let mut server = config(&cluster, folder.path()).start().await;
    waits_for(&server, "table_copied").await;
    cluster.psql("UPDATE t SET name = 'c'").unwrap();
    waits_for(&server, "snapshot_written").await;
    cluster.psql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots").unwrap();
    waits_for(&server, "source_followed_again").await;
    server.reload(&TableName::new("public", "t")).await;
    waits_for(&server, "table_copied_again").await;
    let first_run = lines(&server.process.output());
    server.restart().await;
    waits_for(&server, "journal_resumed").await;
    cluster.psql("ALTER TABLE t DROP CONSTRAINT t_pkey").unwrap();
    waits_for(&server, "table_stopped").await;
    server.ends_unverified();

    assert_complete(&first_run);
    assert_complete(&lines(&server.process.output()));
    let first = &first_run[0];
    assert_eq!((&first["event"], &first["program"]), (&json!("starting"), &json!("laredo-server")));
    assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
    assert!(!first["commit"].as_str().unwrap().is_empty(), "{first}");
    assert!(first["config_files"].as_str().unwrap().ends_with("/laredo.conf"), "{first}");
    for port in [server.ports.grpc, server.ports.fanout, server.ports.health, server.ports.metrics] {
        assert!(first["ports"].as_str().unwrap().contains(&format!(":{port}")), "{first}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_of_the_snapshotter_has_an_event() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let server = config(&cluster, folder.path()).start().await;
    let table = snapshotter::table(
        &server.url(),
        &TableName::new("public", "t"),
        &folder.path().join("archive"),
        &json!({ "diff": { "interval": "100ms" } }),
    );
    let snapshotter = SnapshotterProcess::launch(&[table], &json!({}), &[]);
    snapshotter.ready().await;
    let lines = lines(&snapshotter.process.output());
    assert_complete(&lines);
    assert!(has(&lines, "artifact_written"), "{lines:#?}");
    let first = &lines[0];
    assert_eq!((&first["event"], &first["program"]), (&json!("starting"), &json!("laredo-snapshotter")));
    assert!(first["config_files"].as_str().unwrap().ends_with("/snapshotter.conf"), "{first}");
    assert_eq!(first["ports"], format!("snapshotter.http.port *:{}", snapshotter.port));
    let of_archive = lines.iter().filter(|line| line["target"].as_str().unwrap().starts_with("laredo_archive"));
    assert!(of_archive.clone().count() > 0 && of_archive.clone().all(|line| line["table"] == "public.t"), "{lines:#?}");
    assert_complete(&self::lines(&server.process.output()));
}
