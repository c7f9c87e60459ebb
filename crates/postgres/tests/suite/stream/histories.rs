//! Databases whose history forks under a stream: they are put back to an earlier state, promoted or
//! restored.

use laredo_core::{CommitMark, Lsn};
use laredo_engine::source::TableIndex;
use laredo_postgres::stream::{KeptTable, SlotMode, StreamOptions};
use laredo_testkit::{Cluster, ClusterOptions, StopMode};

use crate::stream::harness::{ReceivedCommit, StreamFollower, cluster, ephemeral, lsn, options, stateful};

/// Starts a cluster with a slot.
fn with_slot() -> Cluster {
    let cluster = cluster(ClusterOptions::default().set("restore_command", "false"));
    cluster.psql("SELECT pg_create_logical_replication_slot('laredo', 'pgoutput')").unwrap();
    cluster
}

fn insert(cluster: &Cluster, id: &str) {
    cluster.psql(&format!("INSERT INTO users VALUES ('{id}')")).unwrap();
}

async fn follow(cluster: &Cluster, stream: &mut StreamFollower, id: &str) -> ReceivedCommit {
    insert(cluster, id);
    let reported = stream.commit().await;
    assert_eq!(reported.tables[&0], [format!("+{id},NULL")]);
    reported
}

/// Writes WAL that concerns no table.
fn write_wal(cluster: &Cluster, bytes: u64) {
    cluster.psql(&format!("SELECT pg_logical_emit_message(false, 'test', repeat('x', {bytes}))")).unwrap();
}

/// Waits until PostgreSQL has received the acknowledgement of a position. Commits that are held
/// back are excepted.
async fn confirmed(cluster: &Cluster, least: Lsn) {
    let is_there = async || lsn(cluster, "confirmed_flush_lsn FROM pg_replication_slots") >= least;
    laredo_testkit::eventually(crate::stream::harness::PATIENCE, is_there).await.unwrap();
}

/// Storage that is put back under a running stream always causes a fork. The stream then follows
/// the new history.
#[tokio::test(flavor = "multi_thread")]
async fn storage_put_back_under_a_stream_is_a_fork_however_far_the_new_history_has_come() {
    // The number of lost commits, and the bytes of WAL that the new history has before the stream
    // returns.
    for (lost_commits, new_bytes) in [(1, 0), (1, 200_000), (20, 0), (20, 3_000_000)] {
        let what = format!("{lost_commits} lost commits, {new_bytes} bytes since");
        let mut cluster = with_slot();
        let mut stream = StreamFollower::start(&cluster, stateful()).await;
        let common = follow(&cluster, &mut stream, "in both").await.end;
        let copy = cluster.copy_storage(StopMode::Fast).unwrap();
        let mut lost = common;
        for n in 0..lost_commits {
            lost = follow(&cluster, &mut stream, &format!("lost {n}")).await.end;
        }
        cluster.put_back(&copy, StopMode::Immediate).unwrap();
        // The stream may return before or after this insert.
        insert(&cluster, "new");
        if new_bytes > 0 {
            write_wal(&cluster, new_bytes);
        }
        let (identity, fork, reason) = stream.forked().await;
        assert!(fork.is_certain && fork.abandoned >= lost, "{what}: {fork:?}");
        assert!(fork.common <= common, "{what}: {fork:?}");
        assert_eq!(identity.timeline, 1, "{what}: {reason}");
        insert(&cluster, "newer");
        let mut reported: Vec<String> = Vec::new();
        while !reported.iter().any(|change| change == "+newer,NULL") {
            reported.extend(stream.changes(0).await);
        }
        assert!(reported.iter().any(|change| change == "+new,NULL"), "{what}: {reported:?}");
        assert!(!reported.iter().any(|change| change.contains("lost")), "{what}: {reported:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashed_or_was_restarted_is_no_fork() {
    let mut cluster = with_slot();
    let mut stream = StreamFollower::start(&cluster, stateful()).await;
    let before = follow(&cluster, &mut stream, "before").await.end;
    confirmed(&cluster, Lsn(before.0.saturating_sub(100_000))).await;
    for (n, mode) in [StopMode::Immediate, StopMode::Fast, StopMode::Immediate].into_iter().enumerate() {
        for i in 0..12 {
            follow(&cluster, &mut stream, &format!("{n} {i}")).await;
        }
        cluster.stop(mode).unwrap();
        cluster.restart().unwrap();
        write_wal(&cluster, 1000);
        follow(&cluster, &mut stream, &format!("{n} after")).await;
    }
}

/// Returns options for a stream that continues an earlier run: both tables are kept up to
/// `position`.
fn kept(url: &str, position: Lsn, mark: CommitMark) -> StreamOptions {
    let table = |table| KeptTable { table: TableIndex(table), position, mark };
    StreamOptions { from: Some(position), kept: vec![table(0), table(1)], ..options(url, stateful()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_put_back_while_no_stream_ran_is_a_fork_when_one_begins() {
    for (has_commit_before, new_bytes) in [(true, 100), (true, 2_000_000), (false, 2_000_000)] {
        let what = format!("{has_commit_before}, {new_bytes} bytes");
        let mut cluster = with_slot();
        let mut stream = StreamFollower::start(&cluster, stateful()).await;
        let mark = match has_commit_before {
            true => follow(&cluster, &mut stream, "in both").await.mark,
            false => CommitMark::default(),
        };
        let copy = cluster.copy_storage(StopMode::Fast).unwrap();
        // The lost history commits a row that the restored storage does not have.
        let lost = match has_commit_before {
            true => follow(&cluster, &mut stream, "lost").await.mark,
            false => follow(&cluster, &mut stream, "the only one").await.mark,
        };
        let position = lost.end;
        drop(stream);
        cluster.put_back(&copy, StopMode::Immediate).unwrap();
        insert(&cluster, "new");
        write_wal(&cluster, new_bytes);
        let mut stream = StreamFollower::start_forked(kept(&cluster.url("postgres"), position, lost)).await;
        let (_, fork, reason) = stream.forked().await;
        assert!(fork.abandoned >= position && fork.common <= mark.end.max(fork.common), "{what}: {fork:?} {reason}");
        assert_eq!(stream.changes(0).await.len(), 1, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_in_a_table_that_was_idle_is_a_fork() {
    let mut cluster = with_slot();
    let mut stream = StreamFollower::start(&cluster, stateful()).await;
    let mark = follow(&cluster, &mut stream, "in both").await.mark;
    let copy = cluster.copy_storage(StopMode::Fast).unwrap();
    // The lost history does not change the tables, but its position advances.
    write_wal(&cluster, 1_000_000);
    let position = lsn(&cluster, "pg_current_wal_lsn()");
    stream.progress(position).await;
    drop(stream);
    cluster.put_back(&copy, StopMode::Immediate).unwrap();
    insert(&cluster, "new");
    // The first changes after a checkpoint write whole pages. The commit must still be a past one.
    assert!(lsn(&cluster, "pg_current_wal_lsn()") < position);
    write_wal(&cluster, 3_000_000);
    let mut stream = StreamFollower::start_forked(kept(&cluster.url("postgres"), position, mark)).await;
    let (_, fork, reason) = stream.forked().await;
    assert!(reason.contains("PostgreSQL has a commit at"), "{reason}");
    assert_eq!(fork.common, mark.end, "the last commit that both have");
    assert_eq!(stream.changes(0).await, ["+in both,NULL"]);
    assert_eq!(stream.changes(0).await, ["+new,NULL"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_is_continued_where_the_database_has_it() {
    let cluster = with_slot();
    let mut stream = StreamFollower::start(&cluster, stateful()).await;
    let mut mark = CommitMark::default();
    for n in 0..20 {
        mark = follow(&cluster, &mut stream, &n.to_string()).await.mark;
    }
    drop(stream);
    insert(&cluster, "meanwhile");
    let mut stream = StreamFollower::start_with(kept(&cluster.url("postgres"), mark.end, mark), 64).await;
    assert_eq!(stream.changes(0).await, ["+meanwhile,NULL"], "nothing is sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_lost_nothing_is_followed_and_one_that_lost_commits_is_a_fork() {
    let mut cluster = with_slot();
    let mut stream = StreamFollower::start(&cluster, stateful()).await;
    follow(&cluster, &mut stream, "one").await;
    cluster.begin_timeline(StopMode::Fast).unwrap();
    let identity = stream.promoted().await;
    assert_eq!((identity.timeline, identity.history.len()), (2, 1));
    follow(&cluster, &mut stream, "two").await;

    let copy = cluster.copy_storage(StopMode::Fast).unwrap();
    let lost = follow(&cluster, &mut stream, "lost").await.end;
    cluster.promote(&copy, StopMode::Immediate).unwrap();
    write_wal(&cluster, 1_000_000);
    let (identity, fork, reason) = stream.forked().await;
    assert!(reason.contains("timeline 2 was left at"), "{reason}");
    assert_eq!(identity.timeline, 3);
    assert!(fork.common < lost && fork.common > Lsn::ZERO, "{fork:?}");
    insert(&cluster, "new");
    let mut reported = Vec::new();
    while !reported.iter().any(|change| change == "+new,NULL") {
        reported.extend(stream.changes(0).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_made_again_behind_our_back_proves_nothing() {
    let cluster = with_slot();
    let mut stream = StreamFollower::start(&cluster, stateful()).await;
    let mark = follow(&cluster, &mut stream, "one").await.mark;
    write_wal(&cluster, 1000);
    let position = lsn(&cluster, "pg_current_wal_lsn()");
    stream.progress(position).await;
    drop(stream);
    let inactive = async || cluster.psql("SELECT bool_or(active) FROM pg_replication_slots").unwrap() != "t";
    laredo_testkit::eventually(crate::stream::harness::PATIENCE, inactive).await.unwrap();
    // Moved this far, the slot could be one of another history.
    cluster.psql("SELECT pg_replication_slot_advance('laredo', pg_current_wal_lsn())").unwrap();
    let position = position.max(lsn(&cluster, "confirmed_flush_lsn FROM pg_replication_slots"));
    write_wal(&cluster, 1000);
    let mut stream = StreamFollower::start_forked(kept(&cluster.url("postgres"), position, mark)).await;
    let (_, _, reason) = stream.forked().await;
    assert!(reason.contains("was moved to"), "{reason}");
    follow(&cluster, &mut stream, "two").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_slot_proves_no_more_than_that_the_server_was_not_restarted() {
    let mut cluster = with_slot();
    let name = match ephemeral() {
        SlotMode::Ephemeral { name_prefix } => name_prefix,
        SlotMode::Stateful { name } => name,
    };
    let mut stream = StreamFollower::start(&cluster, ephemeral()).await;
    let reported = follow(&cluster, &mut stream, "one").await.end;
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE temporary";
    cluster.psql(end).unwrap();
    assert_eq!(stream.restart().await.1, None, "{name}: the same server runs");
    cluster.stop(StopMode::Fast).unwrap();
    cluster.restart().unwrap();
    let fork = stream.restart().await.1.expect("nothing proves that it is the same database");
    assert!(!fork.is_certain && fork.abandoned >= reported, "{fork:?}");
}
