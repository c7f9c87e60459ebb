//! The progress of the stream, and the positions that PostgreSQL receives.

use std::time::Duration;

use laredo_core::Lsn;
use laredo_engine::source::SourceEvent;
use laredo_testkit::{Cluster, ClusterOptions, eventually};

use crate::stream::harness::{PATIENCE, StreamFollower, cluster, ephemeral, lsn, options, stateful};

async fn confirmed(cluster: &Cluster, at_least: Lsn) {
    let wait = eventually(PATIENCE, async || lsn(cluster, "confirmed_flush_lsn FROM pg_replication_slots") >= at_least);
    wait.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_is_not_ours_is_progress_and_the_slot_follows() {
    let cluster = cluster(ClusterOptions::default());
    cluster.psql("CREATE DATABASE elsewhere").unwrap();
    cluster.psql("CREATE TABLE unpublished (id text)").unwrap();
    let mut stream = StreamFollower::start(&cluster, stateful()).await;
    for (database, sql) in [
        ("postgres", "INSERT INTO unpublished SELECT generate_series(1, 1000)"),
        ("postgres", "INSERT INTO other VALUES ('published', 'and not followed')"),
        ("elsewhere", "CREATE TABLE t AS SELECT generate_series(1, 1000)"),
        // In this case nothing commits.
        ("postgres", "CHECKPOINT; SELECT pg_switch_wal()"),
    ] {
        cluster.psql_in(database, sql).unwrap();
        let end = lsn(&cluster, "pg_current_wal_flush_lsn()");
        stream.progress(end).await;
        confirmed(&cluster, end).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_acknowledged_is_confirmed() {
    let cluster = cluster(ClusterOptions::default());
    let mut stream = StreamFollower::start(&cluster, stateful()).await;
    let begin = lsn(&cluster, "confirmed_flush_lsn FROM pg_replication_slots");
    let mut ends = Vec::new();
    for i in 0..3 {
        cluster.psql(&format!("INSERT INTO users VALUES ('{i}')")).unwrap();
        loop {
            match stream.next().await {
                SourceEvent::Commit(commit) => break ends.push(commit.end),
                SourceEvent::Progress(_) | SourceEvent::Current { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    // Wait until PostgreSQL has received a status update that covers all of these.
    let wait = eventually(PATIENCE, async || {
        let heard = cluster.psql(&format!("SELECT write_lsn >= '{}' FROM pg_stat_replication", ends[2]));
        heard.unwrap() == "t"
    });
    wait.await.unwrap();
    assert_eq!(lsn(&cluster, "confirmed_flush_lsn FROM pg_replication_slots"), begin);
    // The newest commits are held back, so that PostgreSQL can send them again.
    stream.acknowledged.send_replace(ends[1]);
    confirmed(&cluster, Lsn(begin.0 + 1)).await;
    assert!(lsn(&cluster, "confirmed_flush_lsn FROM pg_replication_slots") < ends[0]);
    // A commit is not held back for ever.
    cluster.psql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 17 << 20))").unwrap();
    let far = lsn(&cluster, "pg_current_wal_flush_lsn()");
    stream.progress(far).await;
    confirmed(&cluster, far).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_consumer_does_not_end_the_connection() {
    let cluster = cluster(ClusterOptions::default().set("wal_sender_timeout", "6s"));
    let mut stream = StreamFollower::start_with(options(&cluster.url("postgres"), ephemeral()), 1).await;
    let server = || cluster.psql("SELECT pid FROM pg_stat_replication").unwrap();
    let pid = server();
    // Write more than fits into the sockets, so that PostgreSQL blocks in the middle.
    let rows = 200;
    for i in 0..rows {
        let sql = format!("INSERT INTO users SELECT '{i}/' || j, repeat('x', 1000) FROM generate_series(1, 100) j");
        cluster.psql(&sql).unwrap();
    }
    let began = cluster.psql("SELECT clock_timestamp()").unwrap();
    let late = eventually(PATIENCE, async || {
        let heard = format!("SELECT reply_time > timestamptz '{began}' + interval '7 s' FROM pg_stat_replication");
        cluster.psql(&heard).unwrap() == "t"
    });
    late.await.expect("the server hears from us all the time");
    for i in 0..rows {
        let reported = stream.changes(0).await;
        assert!(reported.len() == 100 && reported[0].starts_with(&format!("+{i}/1,")), "{i}: {}", reported[0]);
    }
    assert_eq!(server(), pid, "it was one connection all along");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_without_a_receiver() {
    let cluster = cluster(ClusterOptions::default());
    let stream = StreamFollower::start(&cluster, ephemeral()).await;
    drop(stream);
    let gone = eventually(Duration::from_secs(30), async || {
        cluster.psql("SELECT count(*) FROM pg_replication_slots").unwrap() == "0"
    });
    gone.await.unwrap();
}
