//! While amounts move between rows, every reader sees the same total. This holds by rows and by
//! index, for transactions of any size.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use laredo_client::{Replica, Unique};
use laredo_core::TableName;
use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, eventually, is_full};

use super::support::compare::view_differences;
use super::support::server::{PATIENCE, ServerProcessConfig};

/// Sums the amounts of all rows, and of both sides through the index, until it is stopped. Returns
/// the totals that it saw, and the number of positions.
fn poll(replica: &Replica, stop: &AtomicBool) -> (BTreeSet<(i64, i64)>, u64) {
    let (mut seen, mut positions, mut last) = (BTreeSet::new(), 0, None);
    while !stop.load(Ordering::Relaxed) {
        let view = replica.view();
        let amount = |row: laredo_client::RowRef<'_>| row.get::<i64>("amount").unwrap();
        let by_rows: i64 = view.rows().map(amount).sum();
        let by_index: i64 =
            ["left", "right"].iter().flat_map(|side| view.index("by_side", *side).unwrap()).map(amount).sum();
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
    let server = ServerProcessConfig::new(cluster.url("postgres"), [TableName::new("public", "account")]).start().await;
    let replica = Replica::builder(server.url(), TableName::new("public", "account"))
        .index("by_side", ["side"], Unique::No)
        .start()
        .unwrap();
    replica.ready(PATIENCE * 10).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let readers = [(); 2].map(|()| {
        let (replica, stop) = (replica.clone(), stop.clone());
        std::thread::spawn(move || poll(&replica, &stop))
    });
    let client = cluster.connect().await.unwrap();
    // Transfers of two rows, of a thousand, and of the whole table. The sides change too, so that
    // the index moves. A single row has no partner, so it only changes sides.
    for size in [1, 2, 1, 2, 1000, 2, 1000, rows, 1, 2] {
        let transfer = format!(
            "UPDATE account SET amount = amount + CASE WHEN {size} = 1 THEN 0 WHEN id % 2 = 0 THEN 7 ELSE -7 END,
               side = CASE side WHEN 'left' THEN 'right' ELSE 'left' END WHERE id <= {size}"
        );
        client.batch_execute(&transfer).await.unwrap();
    }
    let end = flushed(&client).await.unwrap();
    eventually(PATIENCE * 10, async || replica.view().position() >= end).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let total = 100 * i64::from(rows);
    for reader in readers {
        let (seen, positions) = reader.join().unwrap();
        assert_eq!(seen, BTreeSet::from([(total, total)]));
        assert!(positions > 1, "the reader saw the table move");
    }
    let oracle = rows_at_rest(&client, &TableName::new("public", "account"), &["id"], "true").await.unwrap();
    assert_eq!(view_differences(&replica.view(), &oracle, &["id"]), "");
    replica.stop().await;
}
