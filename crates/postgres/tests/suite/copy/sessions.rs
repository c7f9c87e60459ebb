//! The database session of a copy, and the time that it is held.

use std::time::{Duration, Instant};

use laredo_engine::source::{CopyEvent, Source as _, SourceError, TableIndex};
use laredo_postgres::PostgresOptions;
use laredo_testkit::Cluster;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::copy::harness::{PATIENCE, cluster, copy, everything, follow, options, requests};

/// A table with more rows than fit into the buffers between PostgreSQL and a reader that reads
/// nothing.
const WIDE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);
                    INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 40000) g";

/// Starts a copy and reads only its beginning, so that its rows stay unread.
async fn stuck(
    options: PostgresOptions,
) -> (mpsc::Receiver<CopyEvent>, JoinHandle<Result<(), SourceError>>, crate::copy::harness::StreamingSource) {
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
