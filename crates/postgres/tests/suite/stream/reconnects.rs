//! Connections, slots and servers that go away.

use std::time::Duration;

use laredo_engine::source::{SourceEvent, SourceState};
use laredo_postgres::stream::{ReconnectOptions, SlotMode};
use laredo_postgres::transport::ReplicationConnection;
use laredo_testkit::{Cluster, ClusterOptions, FaultProxy, ProxyDirection, StopMode, eventually};

use crate::stream::harness::{PATIENCE, StreamFollower, cluster, ephemeral, options, stateful};

async fn proxied(cluster: &Cluster) -> (FaultProxy, String) {
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", cluster.port())).await.unwrap();
    let url = format!("postgresql://postgres@{}/postgres", proxy.addr());
    (proxy, url)
}

async fn inactive(cluster: &Cluster) {
    let wait =
        eventually(PATIENCE, async || cluster.psql("SELECT bool_or(active) FROM pg_replication_slots").unwrap() != "t");
    wait.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_a_connection_is_cut_no_commit_is_lost_or_repeated() {
    let cluster = cluster(ClusterOptions::default().set("logical_decoding_work_mem", "64kB"));
    let (proxy, url) = proxied(&cluster).await;
    cluster.psql("SELECT pg_create_logical_replication_slot('base', 'pgoutput')").unwrap();
    // Small transactions, and one that is streamed in blocks.
    for i in 0..12 {
        let rows = if i == 6 { 1500 } else { 1 + i % 3 };
        let sql = format!("INSERT INTO users SELECT {i} || '/' || j, 'note' FROM generate_series(1, {rows}) j");
        cluster.psql(&sql).unwrap();
    }
    let mut whole = None;
    let full = laredo_testkit::is_full();
    let offsets = (0..4000).step_by(if full { 13 } else { 190 });
    let later = (4000..200_000).step_by(if full { 997 } else { 14_000 });
    for (run, offset) in offsets.chain(later).enumerate() {
        let name = format!("run_{run}");
        let copy = format!("SELECT pg_copy_logical_replication_slot('base', '{name}')");
        cluster.psql(&copy).unwrap();
        proxy.cut_after_bytes(ProxyDirection::ToClient, offset);
        let mut stream = StreamFollower::start_with(options(&url, SlotMode::Stateful { name: name.clone() }), 4).await;
        let mut reported = Vec::new();
        while reported.len() < 12 {
            reported.push(stream.commit().await);
        }
        drop(stream);
        match &whole {
            None => whole = Some(reported),
            Some(whole) => assert_eq!(&reported, whole, "cut after {offset} bytes"),
        }
        inactive(&cluster).await;
        cluster.psql(&format!("SELECT pg_drop_replication_slot('{name}')")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_dropped_behind_our_back_is_made_again_and_said() {
    let cluster = cluster(ClusterOptions::default());
    let (proxy, url) = proxied(&cluster).await;
    let mut stream = StreamFollower::start_with(options(&url, stateful()), 64).await;
    cluster.psql("INSERT INTO users VALUES ('1')").unwrap();
    assert_eq!(stream.changes(0).await, ["+1,NULL"]);
    proxy.refuse(true);
    proxy.cut_all();
    inactive(&cluster).await;
    cluster.psql("SELECT pg_drop_replication_slot('laredo'); INSERT INTO users VALUES ('lost')").unwrap();
    proxy.refuse(false);
    let reason = stream.restarted().await;
    assert!(reason.contains("replication slot laredo is gone"), "{reason}");
    cluster.psql("INSERT INTO users VALUES ('2')").unwrap();
    assert_eq!(stream.changes(0).await, ["+2,NULL"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_moved_ahead_behind_our_back_is_said() {
    let cluster = cluster(ClusterOptions::default());
    let (proxy, url) = proxied(&cluster).await;
    let mut stream = StreamFollower::start_with(options(&url, stateful()), 64).await;
    proxy.refuse(true);
    proxy.cut_all();
    inactive(&cluster).await;
    cluster
        .psql("INSERT INTO users VALUES ('lost'); SELECT pg_replication_slot_advance('laredo', pg_current_wal_lsn())")
        .unwrap();
    proxy.refuse(false);
    let reason = stream.restarted().await;
    assert!(reason.contains("was moved to"), "{reason}");
    cluster.psql("INSERT INTO users VALUES ('2')").unwrap();
    assert_eq!(stream.changes(0).await, ["+2,NULL"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_lost_its_wal_is_made_again_and_said() {
    let settings = ClusterOptions::default()
        .set("max_slot_wal_keep_size", "1MB")
        .set("max_wal_size", "32MB")
        .set("min_wal_size", "32MB");
    let cluster = cluster(settings);
    let (proxy, url) = proxied(&cluster).await;
    let mut stream = StreamFollower::start_with(options(&url, stateful()), 64).await;
    proxy.refuse(true);
    proxy.cut_all();
    inactive(&cluster).await;
    let lost = eventually(PATIENCE, async || {
        let switch = "INSERT INTO users VALUES (gen_random_uuid()); SELECT pg_switch_wal(); CHECKPOINT";
        cluster.psql(switch).unwrap();
        cluster.psql("SELECT wal_status FROM pg_replication_slots").unwrap() == "lost"
    });
    lost.await.unwrap();
    proxy.refuse(false);
    let reason = stream.restarted().await;
    assert!(reason.contains("was invalidated"), "{reason}");
    cluster.psql("INSERT INTO users VALUES ('2')").unwrap();
    assert_eq!(stream.changes(0).await, ["+2,NULL"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_created_again_costs_a_new_slot() {
    let cluster = cluster(ClusterOptions::default());
    let (proxy, url) = proxied(&cluster).await;
    let mut stream = StreamFollower::start_with(options(&url, stateful()), 64).await;
    proxy.refuse(true);
    proxy.cut_all();
    inactive(&cluster).await;
    let sql = "DROP PUBLICATION laredo; INSERT INTO users VALUES ('lost'); CREATE PUBLICATION laredo FOR ALL TABLES";
    cluster.psql(sql).unwrap();
    proxy.refuse(false);
    let reason = stream.restarted().await;
    assert!(reason.contains("can no longer stream from replication slot laredo"), "{reason}");
    cluster.psql("INSERT INTO users VALUES ('2')").unwrap();
    assert_eq!(stream.changes(0).await, ["+2,NULL"]);
    without_a_publication_nothing_is_streamed(&cluster, stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_publication_an_ephemeral_slot_does_not_stream_either() {
    let cluster = cluster(ClusterOptions::default());
    let stream = StreamFollower::start(&cluster, ephemeral()).await;
    without_a_publication_nothing_is_streamed(&cluster, stream).await;
}

async fn without_a_publication_nothing_is_streamed(cluster: &Cluster, stream: StreamFollower) {
    cluster.psql("DROP PUBLICATION laredo; INSERT INTO users VALUES ('3')").unwrap();
    let error = stream.refused().await;
    assert!(error.starts_with("publication laredo is gone") && error.contains("CREATE PUBLICATION"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_still_active_is_asked_for_again() {
    let cluster = cluster(ClusterOptions::default());
    cluster.psql("SELECT pg_create_logical_replication_slot('laredo', 'pgoutput')").unwrap();
    let options = options(&cluster.url("postgres"), stateful());
    let holder = ReplicationConnection::connect(&options.connection).await.unwrap();
    let pid = holder.process_id();
    let start = "START_REPLICATION SLOT laredo LOGICAL 0/0 (proto_version '2', publication_names 'laredo')";
    let held = holder.start_replication(start).await.unwrap();
    let mut stream = StreamFollower::launch(options, 64);
    let mut states = stream.reporter.watch();
    let stands_by = states.wait_for(|status| matches!(status.state, SourceState::Standby { .. }));
    let reason = tokio::time::timeout(PATIENCE, stands_by).await.unwrap().unwrap().state.reason().unwrap().to_owned();
    assert!(reason.starts_with(&format!("replication slot laredo is used by process {pid} ")), "{reason}");
    drop(held);
    cluster.psql("INSERT INTO users VALUES ('1')").unwrap();
    assert_eq!(stream.changes(0).await, ["+1,NULL"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lasting_slot_a_lost_connection_is_a_restart() {
    let cluster = cluster(ClusterOptions::default());
    let (proxy, url) = proxied(&cluster).await;
    let mut stream = StreamFollower::start_with(options(&url, ephemeral()), 64).await;
    for i in 0..3 {
        cluster.psql(&format!("INSERT INTO users VALUES ('{i}')")).unwrap();
        assert_eq!(stream.changes(0).await, [format!("+{i},NULL")]);
        proxy.cut_all();
        assert!(stream.restarted().await.contains("is gone"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_continues_where_it_was() {
    let mut cluster = cluster(ClusterOptions::default());
    let mut stream = StreamFollower::start(&cluster, stateful()).await;
    for i in 0..4 {
        cluster.psql(&format!("INSERT INTO users VALUES ('{i}')")).unwrap();
        // The server crashes before or after the commit was received.
        if i % 2 == 0 {
            assert_eq!(stream.changes(0).await, [format!("+{i},NULL")]);
        }
        cluster.stop(if i < 3 { StopMode::Immediate } else { StopMode::Fast }).unwrap();
        cluster.restart().unwrap();
        if i % 2 == 1 {
            assert_eq!(stream.changes(0).await, [format!("+{i},NULL")]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_shuts_down_does_not_wait_for_what_is_not_acknowledged() {
    let mut cluster = cluster(ClusterOptions::default());
    let mut stream = StreamFollower::start(&cluster, stateful()).await;
    cluster.psql("INSERT INTO users VALUES ('1')").unwrap();
    while !matches!(stream.next().await, SourceEvent::Commit(_)) {}
    cluster.stop(StopMode::Fast).unwrap();
    cluster.restart().unwrap();
    cluster.psql("INSERT INTO users VALUES ('2')").unwrap();
    assert_eq!(stream.changes(0).await, ["+2,NULL"], "and the first is not sent twice");
}

/// PostgreSQL repeats its request once for each answer, and here an answer takes its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_shuts_down_does_not_wait_over_a_slow_connection() {
    let mut cluster = cluster(ClusterOptions::default());
    let (proxy, url) = proxied(&cluster).await;
    let mut stream = StreamFollower::start_with(options(&url, stateful()), 64).await;
    cluster.psql("INSERT INTO users VALUES ('1')").unwrap();
    // Without any acknowledgement PostgreSQL would wait for none.
    assert_eq!(stream.changes(0).await, ["+1,NULL"]);
    cluster.psql("INSERT INTO users VALUES ('2')").unwrap();
    while !matches!(stream.next().await, SourceEvent::Commit(_)) {}
    proxy.delay(Duration::from_millis(150));
    cluster.stop(StopMode::Fast).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_come_to_an_end() {
    let cluster = cluster(ClusterOptions::default());
    let (proxy, url) = proxied(&cluster).await;
    let mut options = options(&url, stateful());
    options.reconnect =
        ReconnectOptions { attempts_max: Some(3), backoff_initial: Duration::from_millis(1), ..options.reconnect };
    let stream = StreamFollower::start_with(options, 64).await;
    proxy.refuse(true);
    proxy.cut_all();
    assert!(stream.refused().await.contains("reconnect.max_attempts"));
}
