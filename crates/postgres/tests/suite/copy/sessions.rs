//! The database session of a copy, and the time that it is held.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use laredo_engine::source::{
    CopyEvent, SnapshotCheck, Source as _, SourceError, TableIndex, TablePart, TablePartOrder,
};
use laredo_postgres::{ConnectionOptions, PostgresOptions};
use laredo_testkit::{Cluster, FaultProxy};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::copy::harness::{PATIENCE, StreamingSource, cluster, copy, everything, follow, options, requests};

/// A table with more rows than fit into the buffers between PostgreSQL and a reader that reads
/// nothing.
const WIDE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);
                    INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 40000) g";

/// Starts a copy and reads only its beginning, so that its rows stay unread.
async fn stuck(
    options: PostgresOptions,
) -> (mpsc::Receiver<CopyEvent>, JoinHandle<Result<(), SourceError>>, StreamingSource) {
    let following = follow(options, &requests(&["public.t"])).await;
    let (sender, mut events) = mpsc::channel(1);
    let source = following.source.clone();
    let copying = tokio::spawn(async move { source.copy(TableIndex(0), None, everything(), sender).await });
    let begin = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap();
    assert!(matches!(begin, Some(CopyEvent::Begin { .. })), "{begin:?}");
    (events, copying, following)
}

async fn sessions(cluster: &Cluster) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'laredo copy'";
    cluster.connect().await.unwrap().query_one(sql, &[]).await.unwrap().get(0)
}

fn transient(copied: Result<(), SourceError>) -> String {
    match copied {
        Err(SourceError::Transient(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_copy_that_is_given_up_returns_when_its_session_has_ended() {
    let cluster = cluster(WIDE);
    let (events, copying, _following) = stuck(options(&cluster)).await;
    assert_eq!(sessions(&cluster).await, 1);
    drop(events);
    let error = transient(tokio::time::timeout(PATIENCE, copying).await.unwrap().unwrap());
    assert!(error.contains("given up by its reader"), "{error}");
    assert_eq!(sessions(&cluster).await, 0, "the session outlives its copy");
}

#[tokio::test]
async fn a_copy_holds_its_lock_and_its_snapshot_no_longer_than_it_may() {
    let cluster = cluster(WIDE);
    let limited = PostgresOptions { copy_timeout: Duration::from_secs(1), ..options(&cluster) };
    let (events, copying, following) = stuck(limited).await;
    let error = transient(tokio::time::timeout(PATIENCE, copying).await.unwrap().unwrap());
    assert!(error.contains("public.t") && error.contains("raise copy_timeout"), "{error}");
    assert_eq!(sessions(&cluster).await, 0, "the session outlives its copy");
    drop(events);
    cluster.psql("DELETE FROM t WHERE id > 10").unwrap();
    assert_eq!(copy(following.source.clone(), 0, everything()).await.unwrap().rows.len(), 10);
}

/// Changes the table as its owner may at any time, which waits for the lock of a copy.
async fn redefine(cluster: &Cluster) {
    let session = cluster.connect().await.unwrap();
    let redefined = session.batch_execute("ALTER TABLE t ADD COLUMN w int");
    tokio::time::timeout(PATIENCE, redefined).await.expect("the lock is released").unwrap();
}

/// A source that reaches PostgreSQL through a proxy, and a check of snapshots that stalls the proxy
/// while a session holds its lock.
struct StallingSource {
    following: StreamingSource,
    proxy: Arc<FaultProxy>,
    check: SnapshotCheck,
    stalled: oneshot::Receiver<()>,
}

impl StallingSource {
    async fn start(cluster: &Cluster) -> StallingSource {
        let proxy = Arc::new(FaultProxy::start(format!("127.0.0.1:{}", cluster.port())).await.unwrap());
        let url = cluster.url("postgres").replace(&cluster.port().to_string(), &proxy.addr().port().to_string());
        let connection = ConnectionOptions::parse(&url).unwrap();
        let following = follow(PostgresOptions { connection, ..options(cluster) }, &requests(&["public.t"])).await;
        let (stalling, stalled) = oneshot::channel();
        // Once, for a copy may begin again in another session.
        let once = Mutex::new(Some((proxy.clone(), stalling)));
        let check: SnapshotCheck = Arc::new(move |_| {
            if let Some((proxy, stalling)) = once.lock().unwrap().take() {
                proxy.stall(true);
                stalling.send(()).unwrap();
            }
            true
        });
        StallingSource { following, proxy, check, stalled }
    }
}

#[tokio::test]
async fn a_copy_that_reads_nothing_gives_its_lock_back() {
    let cluster = cluster(WIDE);
    let (events, copying, _following) = stuck(options(&cluster)).await;
    redefine(&cluster).await;
    // The rows that were received before are still there.
    drop(events);
    transient(tokio::time::timeout(PATIENCE, copying).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_copy_whose_network_is_gone_gives_its_lock_back_and_is_made_later() {
    let cluster = cluster("CREATE TABLE t (id int PRIMARY KEY)");
    let StallingSource { following, proxy, check, stalled } = StallingSource::start(&cluster).await;
    let source = following.source.clone();
    let copying = tokio::spawn(async move { copy(source, 0, check).await });
    stalled.await.unwrap();
    redefine(&cluster).await;
    proxy.stall(false);
    transient(tokio::time::timeout(PATIENCE, copying).await.unwrap().unwrap().map(drop));
    assert_eq!(copy(following.source.clone(), 0, everything()).await.unwrap().names(), ["id", "w"]);
}

#[tokio::test]
async fn a_verification_whose_network_is_gone_gives_its_lock_back() {
    let cluster = cluster("CREATE TABLE t (id int PRIMARY KEY)");
    let StallingSource { following, proxy, check: admits, stalled } = StallingSource::start(&cluster).await;
    copy(following.source.clone(), 0, everything()).await.unwrap();
    let (orders, ordered) = mpsc::channel(1);
    let (parts, _parts) = mpsc::channel(10);
    orders.send(TablePartOrder { part: TablePart::Blocks { from: 0, bytes: 1 }, admits }).await.unwrap();
    let source = following.source.clone();
    let inspecting = tokio::spawn(async move { source.inspect(TableIndex(0), ordered, parts).await });
    stalled.await.unwrap();
    redefine(&cluster).await;
    proxy.stall(false);
    transient(tokio::time::timeout(PATIENCE, inspecting).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_copy_of_a_locked_table_leaves_its_place_to_others() {
    let cluster = cluster("CREATE TABLE t (id int PRIMARY KEY)");
    let following = follow(options(&cluster), &requests(&["public.t"])).await;
    copy(following.source.clone(), 0, everything()).await.unwrap();
    let mut other = cluster.connect().await.unwrap();
    let locking = other.transaction().await.unwrap();
    locking.batch_execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let began = Instant::now();
    let copied = tokio::time::timeout(PATIENCE, copy(following.source.clone(), 0, everything())).await.unwrap();
    let error = transient(copied.map(drop));
    assert!(error.contains("table public.t has been locked by another session"), "{error}");
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(sessions(&cluster).await, 0);
    locking.commit().await.unwrap();
    copy(following.source.clone(), 0, everything()).await.unwrap();
}

#[tokio::test]
async fn a_copy_behind_a_long_writer_leaves_its_place_and_waits_for_no_later_writer() {
    let cluster = cluster(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY);
         CREATE PUBLICATION laredo_pub FOR TABLE t, u WITH (publish_via_partition_root = true)",
    );
    let following = follow(options(&cluster), &requests(&["public.t"])).await;
    following.copy(0).await;
    cluster.psql("ALTER PUBLICATION laredo_pub DROP TABLE t").unwrap();
    let (mut first, mut second) = (cluster.connect().await.unwrap(), cluster.connect().await.unwrap());
    let unpublished = first.transaction().await.unwrap();
    unpublished.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    cluster.psql("ALTER PUBLICATION laredo_pub ADD TABLE t").unwrap();
    let copied = tokio::time::timeout(PATIENCE, copy(following.source.clone(), 0, everything())).await.unwrap();
    let error = transient(copied.map(drop));
    assert!(error.contains("the copy can begin when these transactions have ended: process"), "{error}");
    assert_eq!(sessions(&cluster).await, 0);
    let published = second.transaction().await.unwrap();
    published.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    unpublished.commit().await.unwrap();
    let copied = tokio::time::timeout(PATIENCE, copy(following.source.clone(), 0, everything())).await.unwrap();
    assert_eq!(copied.unwrap().rows.len(), 1, "the second one is streamed");
    published.commit().await.unwrap();
}
