//! While amounts move between rows, no reader ever sees another total: by rows or by index, however large the transaction.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use laredo_client::{Replica, Unique};
use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, eventually};

use super::support::is_full;
use super::support::server::{PATIENCE, ServerConfig};

/// Sums the amounts of all rows, and of both sides through the index, until told to stop; tells which totals it saw.
fn poll(replica: &Replica, stop: &AtomicBool) -> (BTreeSet<(i64, i64)>, u64) {
    let (mut seen, mut positions, mut last) = (BTreeSet::new(), 0, None);
    while !stop.load(Ordering::Relaxed) {
        let view = replica.view();
        let amount = |row: laredo_client::RowRef<'_>| row.get::<i64>("amount").unwrap();
        let by_rows: i64 = view.rows().map(amount).sum();
        let by_index: i64 = ["left", "right"].iter().flat_map(|side| view.index("by_side", *side)).map(amount).sum();
        seen.insert((by_rows, by_index));
        if last.replace(view.position()) != Some(view.position()) {
            positions += 1;
        }
    }
    (seen, positions)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_reader_sees_half_a_transfer() {
    let rows = if is_full() { 1_000_000 } else { 60_000 };
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster
        .psql(&format!(
            "CREATE TABLE account (id int PRIMARY KEY, side text NOT NULL, amount bigint NOT NULL);
             INSERT INTO account SELECT i, CASE i % 2 WHEN 0 THEN 'left' ELSE 'right' END, 100 FROM generate_series(1, {rows}) i"
        ))
        .unwrap();
    let server = ServerConfig::new(cluster.url("postgres"), [TableName::new("public", "account")]).start().await;
    let replica = Replica::builder(server.url(), TableName::new("public", "account"))
        .index("by_side", ["side"], Unique::No)
        .start()
        .unwrap();
    replica.ready(PATIENCE).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (replica, stop) = (replica.clone(), stop.clone());
        move || poll(&replica, &stop)
    });
    let client = cluster.connect().await.unwrap();
    // A transfer of two rows, of a thousand, and of the whole table; sides change too, so that the index moves.
    for size in [2, 2, 1000, 2, 1000, rows, 2] {
        let transfer = format!(
            "UPDATE account SET amount = amount + CASE id % 2 WHEN 0 THEN 7 ELSE -7 END,
               side = CASE side WHEN 'left' THEN 'right' ELSE 'left' END WHERE id <= {size}"
        );
        client.batch_execute(&transfer).await.unwrap();
    }
    let end: String = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
    let end = end.parse().unwrap();
    eventually(PATIENCE, async || replica.view().position() >= end).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let (seen, positions) = reader.join().unwrap();
    let total = 100 * i64::from(rows);
    assert_eq!(seen, BTreeSet::from([(total, total)]));
    assert!(positions > 1, "the reader saw the table move");
    replica.stop().await;
}
