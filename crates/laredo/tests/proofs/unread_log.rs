//! A log that nothing reads. The server continues, and says later what the log lacks.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::Command;
use std::sync::Arc;

use laredo_client::Replica;
use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, eventually};
use parking_lot::Mutex;

use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};

/// Returns the number of log lines that were dropped because they could not be written.
async fn dropped(server: &ServerProcess) -> u64 {
    let metrics = server.metrics().await;
    let start = "laredo_log_lines_dropped_total{reason=\"not_written\"} ";
    metrics.lines().find_map(|line| line.strip_prefix(start)?.parse().ok()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nothing_reads_stops_no_commit_and_says_later_what_it_lacks() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0)").unwrap();
    let table = TableName::new("public", "t");
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("log");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut config = ServerProcessConfig::new(cluster.url("postgres"), [table.clone()]);
    config.log_pipe = Some(pipe.clone());
    // At this level each commit causes many lines.
    config.arguments = vec!["--set".to_owned(), "observability.logging.level=trace".to_owned()];
    let mut server = config.launch();
    let log = tokio::task::spawn_blocking(move || File::open(pipe)).await.unwrap().unwrap();
    server.ready().await;
    let replica = Replica::builder(server.url(), table).start().unwrap();
    replica.ready(PATIENCE).await.unwrap();

    let client = cluster.connect().await.unwrap();
    let mut n = 0;
    while dropped(&server).await == 0 {
        n += 1;
        client.batch_execute(&format!("UPDATE t SET n = {n}")).await.unwrap();
        let is_seen = async || replica.get(1).unwrap().is_some_and(|row| row.get::<i32>("n").unwrap() == n);
        eventually(PATIENCE, is_seen).await.expect("a commit is seen though the log is not read");
    }
    // More commits while no line can be queued.
    for n in n + 1..n + 20 {
        client.batch_execute(&format!("UPDATE t SET n = {n}")).await.unwrap();
        let is_seen = async || replica.get(1).unwrap().is_some_and(|row| row.get::<i32>("n").unwrap() == n);
        eventually(PATIENCE, is_seen).await.expect("a commit is seen though the log is full");
    }
    let failures = server.verify().failures;
    assert!(failures.is_empty(), "{failures:?}");
    replica.stop().await;

    let read: Arc<Mutex<Vec<String>>> = Arc::default();
    let reading = tokio::task::spawn_blocking({
        let read = read.clone();
        move || {
            let lines =
                BufReader::new(log).split(b'\n').map(|line| String::from_utf8_lossy(&line.unwrap()).into_owned());
            lines.for_each(|line| read.lock().push(line));
        }
    });
    // Until the log says what it lacks, there is no room for further lines.
    let is_report = |line: &String| line.contains("log lines were dropped");
    let says_so = async || read.lock().iter().any(is_report);
    eventually(PATIENCE, says_so).await.expect("the log says that lines are missing");
    server.process.terminate();
    assert_eq!(server.process.wait(PATIENCE).await.unwrap().code(), Some(0));
    reading.await.unwrap();
    let lines = read.lock();
    let report = lines.iter().position(is_report).unwrap();
    assert!(lines[report].contains("\"lines\":"), "and how many: {}", lines[report]);
    assert!(lines[report..].iter().any(|line| line.contains("SIGTERM")), "the last lines are there");
}
