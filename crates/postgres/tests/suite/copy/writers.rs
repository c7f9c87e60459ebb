//! Transactions that are open while a copy begins.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use laredo_engine::source::{SnapshotCheck, SourceEvent};
use laredo_engine::spool::{RawChange, SpoolEntry};
use laredo_postgres::ConnectionOptions;
use laredo_postgres::stream::SlotMode;
use laredo_testkit::{FaultProxy, eventually};

use crate::copy::harness::{PATIENCE, asked_again, cluster, copy, everything, follow, options, requests};

#[tokio::test]
async fn writers_from_before_the_slot_are_waited_for() {
    let cluster = cluster("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)");
    let mut before = options(&cluster);
    before.slot = SlotMode::Stateful { name: "s".to_owned() };
    // The slot exists before the publication contains the table. Earlier writes to the table are
    // never streamed.
    cluster.psql("CREATE PUBLICATION laredo_pub FOR TABLE u WITH (publish_via_partition_root = true)").unwrap();
    cluster.psql("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").unwrap();
    let mut writer = cluster.connect().await.unwrap();
    let writing = writer.transaction().await.unwrap();
    writing.execute("INSERT INTO t VALUES (1)", &[]).await.unwrap();
    // The copy does not wait for a transaction that only reads the table, even if it writes to
    // another table.
    let mut other = cluster.connect().await.unwrap();
    let reading = other.transaction().await.unwrap();
    reading.batch_execute("SELECT * FROM t; INSERT INTO u VALUES (9)").await.unwrap();

    let mut following = follow(before, &requests(&["public.t"])).await;
    let copying = copy(following.source.clone(), 0, everything());
    tokio::pin!(copying);
    let watcher = cluster.connect().await.unwrap();
    tokio::select! {
        _ = &mut copying => panic!("the copy did not wait for a transaction that will never be streamed"),
        () = asked_again(&watcher) => {}
    }
    // A prepared transaction leaves its session and keeps its locks.
    writing.batch_execute("PREPARE TRANSACTION 'two'").await.unwrap();
    tokio::select! {
        _ = &mut copying => panic!("the copy did not wait for the prepared transaction"),
        () = asked_again(&watcher) => {}
    }
    cluster.psql("COMMIT PREPARED 'two'").unwrap();
    let copied = copying.await.unwrap();
    assert_eq!(copied.rows.len(), 1, "it is in the copy");

    cluster.psql("INSERT INTO t VALUES (2)").unwrap();
    let SourceEvent::Commit(mut commit) = following.event().await else { panic!("not a commit") };
    assert!(!copied.snapshot.sees(commit.xid), "only what came after the copy is streamed");
    let mut seen = Vec::new();
    commit.tables[0]
        .1
        .for_each_entry::<std::io::Error>(|entry| {
            if let SpoolEntry::Change(RawChange::Insert { new }) = entry {
                seen.push(new.cell(0).value().unwrap().to_vec());
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, [2_i32.to_be_bytes()]);
}

#[tokio::test]
async fn writers_from_before_a_change_of_the_publication_are_waited_for() {
    let cluster = cluster(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY);
         CREATE PUBLICATION laredo_pub FOR TABLE t, u WITH (publish_via_partition_root = true)",
    );
    let following = follow(options(&cluster), &requests(&["public.t"])).await;
    following.copy(0).await;
    let watcher = cluster.connect().await.unwrap();
    let mut writer = cluster.connect().await.unwrap();
    let mut changes = vec![("ALTER PUBLICATION laredo_pub DROP TABLE t", "ALTER PUBLICATION laredo_pub ADD TABLE t")];
    if cluster.major_version() >= 15 {
        changes.push((
            "ALTER PUBLICATION laredo_pub SET TABLE t WHERE (id > 100), u",
            "ALTER PUBLICATION laredo_pub SET TABLE t WHERE (id > 0), u",
        ));
    }
    for (id, (narrower, wider)) in (1_i32..).zip(changes) {
        cluster.psql(narrower).unwrap();
        let writing = writer.transaction().await.unwrap();
        writing.execute("INSERT INTO t VALUES ($1)", &[&id]).await.unwrap();
        cluster.psql(wider).unwrap();
        let copying = copy(following.source.clone(), 0, everything());
        tokio::pin!(copying);
        tokio::select! {
            _ = &mut copying => panic!("{wider}: the copy did not wait for a change that will never be streamed"),
            () = asked_again(&watcher) => {}
        }
        writing.commit().await.unwrap();
        let rows = copying.await.unwrap().rows.len();
        assert_eq!(rows, usize::try_from(id).unwrap(), "it is in the copy");
    }
}

#[tokio::test]
async fn writers_from_before_a_change_of_the_publication_during_the_copy_are_waited_for() {
    let cluster = cluster(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY);
         CREATE PUBLICATION laredo_pub FOR TABLE t, u WITH (publish_via_partition_root = true)",
    );
    let following = follow(options(&cluster), &requests(&["public.t"])).await;
    following.copy(0).await;
    let cluster = Arc::new(cluster);
    let (changing, done) = (cluster.clone(), AtomicBool::new(false));
    let admits: SnapshotCheck = Arc::new(move |_| {
        if !done.swap(true, Ordering::Relaxed) {
            let sql = "ALTER PUBLICATION laredo_pub DROP TABLE t;
                       BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'unpublished';
                       ALTER PUBLICATION laredo_pub ADD TABLE t";
            changing.psql(sql).unwrap();
        }
        true
    });
    let copying = copy(following.source.clone(), 0, admits);
    tokio::pin!(copying);
    let watcher = cluster.connect().await.unwrap();
    tokio::select! {
        _ = &mut copying => panic!("the copy did not wait for a change that will never be streamed"),
        () = asked_again(&watcher) => {}
    }
    cluster.psql("COMMIT PREPARED 'unpublished'").unwrap();
    assert_eq!(copying.await.unwrap().rows.len(), 1, "it is in the copy");
}

#[tokio::test]
async fn a_lost_connection_causes_no_second_wait_for_writers() {
    let cluster = cluster("CREATE TABLE t (id int PRIMARY KEY)");
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", cluster.port())).await.unwrap();
    let mut proxied = options(&cluster);
    proxied.slot = SlotMode::Stateful { name: "s".to_owned() };
    let url = format!("postgresql://postgres@{}/postgres", proxy.addr());
    proxied.connection = ConnectionOptions::parse(&url).unwrap();
    let following = follow(proxied, &requests(&["public.t"])).await;
    following.copy(0).await;
    let mut writer = cluster.connect().await.unwrap();
    let writing = writer.transaction().await.unwrap();
    writing.execute("INSERT INTO t VALUES (1)", &[]).await.unwrap();

    let walsender = || cluster.psql("SELECT pid FROM pg_stat_replication WHERE state = 'streaming'").unwrap();
    let before = walsender();
    proxy.cut_all();
    let again = eventually(PATIENCE, async || {
        let now = walsender();
        !now.is_empty() && !now.contains(&before)
    });
    again.await.unwrap();
    let copied = tokio::time::timeout(PATIENCE, following.copy(0)).await.expect("a copy that waits for nobody");
    assert_eq!(copied.rows.len(), 0, "what is open will be streamed");
}
