//! A huge transaction and a client that has stopped reading: memory stays within its bound, and everybody else goes on.

use std::process::Command;

use laredo_client::Replica;
use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, Proxy, eventually};

use super::support::is_full;
use super::support::server::{PATIENCE, ServerConfig};

const MEMORY_MAX_MIB: u64 = 64;

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_and_neighbours_go_on() {
    let rows: u64 = if is_full() { 5_000_000 } else { 300_000 };
    let options = ClusterOptions { on_disk: true, ..ClusterOptions::default() };
    let cluster = Cluster::start(options.set("max_wal_size", "16GB")).unwrap();
    cluster
        .psql(
            "CREATE TABLE big (id bigint PRIMARY KEY, a text, b int, c numeric, d timestamptz, e uuid, f float8, g text);
             CREATE TABLE small (id int PRIMARY KEY, n int); INSERT INTO small VALUES (1, 0)",
        )
        .unwrap();
    let (big, small) = (TableName::new("public", "big"), TableName::new("public", "small"));
    let config = ServerConfig::new(cluster.url("postgres"), [big.clone(), small.clone()])
        .target(&format!("journal {{ memory_max_bytes = {MEMORY_MAX_MIB}MiB }}"));
    let server = config.start().await;
    let stalling = Proxy::start(format!("127.0.0.1:{}", server.ports.fanout)).await.unwrap();
    let stalled = Replica::builder(format!("http://{}", stalling.addr()), big.clone()).start().unwrap();
    let live = Replica::builder(server.url(), small.clone()).start().unwrap();
    stalled.ready(PATIENCE).await.unwrap();
    live.ready(PATIENCE).await.unwrap();
    stalling.stall(true);

    // While the transaction is open, and PostgreSQL streams it, others commit and are seen.
    let client = cluster.connect().await.unwrap();
    let neighbour = cluster.connect().await.unwrap();
    let fill = format!(
        "BEGIN; INSERT INTO big SELECT i, repeat('a', 60), i % 1000, i / 7.0, now(), gen_random_uuid(), i / 3.0, repeat('g', 40)
           FROM generate_series(1, {rows}::bigint) i"
    );
    client.batch_execute(&fill).await.unwrap();
    neighbour.batch_execute("UPDATE small SET n = 1").await.unwrap();
    let seen = |n: i32| {
        let live = &live;
        move || async move { live.get(1).is_some_and(|row| row.get::<i32>("n").unwrap() == n) }
    };
    eventually(PATIENCE * 5, seen(1)).await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    neighbour.batch_execute("UPDATE small SET n = 2").await.unwrap();
    eventually(PATIENCE * 5, seen(2)).await.unwrap();
    let applied = async || server.metric("laredo_rows", &big).await == Some(rows);
    eventually(PATIENCE * 5, applied).await.unwrap();

    let tuple_bytes = tuple_bytes(&cluster, rows);
    let bound = tuple_bytes * 3 / 2 + (MEMORY_MAX_MIB + 100) * 1024 * 1024;
    let peak = server.process.peak_rss_bytes().unwrap();
    assert!(peak < bound, "{peak} bytes at the most, where {tuple_bytes} bytes of rows allow {bound}");
    stalled.stop().await;
    live.stop().await;
}

/// Bytes of the rows' cells in binary COPY: what the copy of them takes, less the field counts, the header and the trailer.
fn tuple_bytes(cluster: &Cluster, rows: u64) -> u64 {
    let url = cluster.url("postgres");
    let copy = format!("'{}' '{url}' -c '\\copy big to stdout binary' | wc -c", cluster.bin("psql").display());
    let mut shell = Command::new("sh");
    shell.args(["-c", &copy]);
    let counted = shell.output().unwrap();
    let bytes: u64 = String::from_utf8(counted.stdout).unwrap().trim().parse().unwrap();
    bytes - 2 * rows - 21
}
