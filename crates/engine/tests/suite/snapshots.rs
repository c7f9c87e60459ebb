//! Engines that restart with snapshots alone. No copy is made if the source still has the changes
//! after the newest snapshot.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::journal::{ResumeOutcome, ResumeRequest};
use laredo_engine::{
    Engine, SnapshotError, SnapshotFolder, SnapshotFormat, SnapshotInfo, SnapshotOptions, TableOptions, TablePhase,
};
use laredo_testkit::{RunningEngine, SimChange, SimDatabase, eventually, sim_table, stopped_clock, wait_until_reached};

use crate::support::{JournalTestReader, PATIENCE, commit, start};

/// Returns options for a table with snapshots. The engine writes the first one itself, and further
/// ones when a test asks.
fn with_snapshots(folder: &Path, format: SnapshotFormat, run: u64) -> TableOptions {
    let folder = folder.join("snapshots");
    let interval = Duration::from_secs(3600);
    let snapshots = Some(SnapshotOptions { folder, format, interval, keep_count: 10, age_max: None });
    let table = sim_table("t0");
    let instance = laredo_engine::journal::InstanceId(format!("run{run}"));
    TableOptions { snapshots, instance, first_sequence: laredo_core::Sequence(5000 * (run + 1)), ..table }
}

async fn snapshot(running: &RunningEngine) -> SnapshotInfo {
    snapshots(running).take_snapshot(running.journal(0).await, None).await.unwrap()
}

fn snapshots(running: &RunningEngine) -> Arc<SnapshotFolder> {
    running.table(0).snapshots().unwrap()
}

async fn acknowledged(database: &SimDatabase, position: Lsn) {
    eventually(PATIENCE, async || database.acknowledged() >= position).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_continues_from_the_newest_snapshot_and_copies_nothing() {
    for format in [SnapshotFormat::Native, SnapshotFormat::Jsonl] {
        let folder = tempfile::tempdir().unwrap();
        let database = SimDatabase::new(1);
        commit(&database, 0, 1, "before the first copy");
        let first = start(&database, vec![with_snapshots(folder.path(), format, 0)]).await;
        let end = commit(&database, 0, 2, "before the snapshot");
        let mut reader = JournalTestReader::from_base(&first.reached(0, end).await);
        let taken = snapshot(&first).await;
        assert_eq!((taken.position, taken.rows), (end, 2));
        let end = commit(&database, 0, 3, "after it");
        let journal = first.reached(0, end).await;
        reader.read_on(&journal);
        let instance = journal.instance().clone();
        drop(journal);
        first.end().await;
        let mut before = taken;
        for run in 1..4 {
            // Commit while no engine runs.
            commit(&database, 0, 100 + run, "meanwhile");
            let running = start(&database, vec![with_snapshots(folder.path(), format, run.try_into().unwrap())]).await;
            let journal = running.journal(0).await;
            assert!(journal.instance() != &instance, "it is another journal");
            let end = commit(&database, 0, 200 + run, &"now".repeat(1000));
            wait_until_reached(&journal, end).await;
            reader.resume_by_position(&journal);
            assert_eq!(reader.rows(), database.rows_at(0, end));
            assert_eq!(
                JournalTestReader::from_base(&journal).rows(),
                database.rows_at(0, end),
                "a newcomer has the same"
            );
            assert_eq!(running.copies(0), 0);
            let listed = snapshots(&running).list();
            assert!(listed.iter().any(|info| info.id == before.id), "those of earlier journals stay");
            before = snapshot(&running).await;
            drop(journal);
            running.end().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_in_a_snapshot_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    let copied = commit(&database, 0, 1, "a");
    let running = start(&database, vec![with_snapshots(folder.path(), SnapshotFormat::Native, 0)]).await;
    running.reached(0, copied).await;
    acknowledged(&database, copied).await;
    let first = snapshots(&running).newest().unwrap();
    let end = commit(&database, 0, 2, "b");
    running.reached(0, end).await;
    // The engine had the opportunity to acknowledge: the table is visible, and the acknowledgement
    // is computed before a snapshot is visible.
    assert_eq!(snapshots(&running).status().durable.position(), first.position);
    assert!(database.acknowledged() < end);
    assert_eq!(snapshot(&running).await.position, end);
    acknowledged(&database, end).await;
    running.end().await;
}

/// The journal after the copy begins at the sequence that a journal of the snapshot would have.
#[tokio::test(flavor = "multi_thread")]
async fn no_snapshot_is_restored_between_a_fork_and_its_copy() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    let common = commit(&database, 0, 1, "in both");
    let first = start(&database, vec![with_snapshots(folder.path(), SnapshotFormat::Native, 0)]).await;
    first.reached(0, common).await;
    let older = snapshot(&first).await;
    let lost = commit(&database, 0, 2, "lost");
    first.reached(0, lost).await;
    let newer = snapshot(&first).await;
    acknowledged(&database, lost).await;
    first.end().await;
    // Only the older snapshot is left, and the source has discarded what follows it.
    std::fs::remove_file(&newer.path).unwrap();

    database.hold_copies();
    let second = start(&database, vec![with_snapshots(folder.path(), SnapshotFormat::Native, 1)]).await;
    let table = second.table(0).clone();
    assert!(table.journal().is_none());
    let lost = commit(&database, 0, 3, "lost, and held for the copy");
    eventually(PATIENCE, async || table.status().held_bytes > 0).await.expect("the stream is followed");
    database.put_back(common);
    eventually(PATIENCE, async || table.status().forks == 1).await.unwrap();
    let refused = table.restore_snapshot(older.id).await.unwrap_err();
    assert!(matches!(refused, SnapshotError::Forked), "{refused}");
    while database.end() <= lost {
        commit(&database, 0, database.end().0.cast_signed(), "new");
    }
    database.release_copies();
    second.reached(0, database.end()).await;
    let journal = second.journal(0).await;
    assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(0, database.end()));
    second.end().await;
}

/// If the source has discarded the changes, the engine copies the table. Until then it serves the
/// rows of a snapshot only if the options ask for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_snapshot_is_served_on_request_until_the_copy_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    commit(&database, 0, 1, "stays");
    let end = commit(&database, 0, 2, "goes");
    let first = start(&database, vec![with_snapshots(folder.path(), SnapshotFormat::Native, 0)]).await;
    first.reached(0, end).await;
    let older = snapshot(&first).await;
    let end = database.commit(0, vec![SimChange::Delete(2), SimChange::Insert(3, "comes".to_owned())]);
    first.reached(0, end).await;
    let newer = snapshot(&first).await;
    acknowledged(&database, end).await;
    let served = first.table(0).restore_snapshot(older.id.clone()).await.unwrap_err();
    assert!(matches!(served, SnapshotError::Served(position) if position == end), "{served}");
    first.end().await;
    // Damage a byte of a row. The damage shows only when the row is read.
    let mut bytes = std::fs::read(&newer.path).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&newer.path, bytes).unwrap();

    let tables = vec![with_snapshots(folder.path(), SnapshotFormat::Native, 1)];
    let engine = Engine::prepare(database.clone(), tables, stopped_clock(CommitTime(0))).await.unwrap();
    engine.handle().pause(true);
    let second = RunningEngine::run(engine);
    let table = second.table(0).clone();
    assert!(table.journal().is_none(), "nobody asked for rows of any age");
    let unknown = table.restore_snapshot(newer.id).await.unwrap_err();
    assert!(matches!(unknown, SnapshotError::Unknown(_)), "{unknown}");
    table.restore_snapshot(older.id.clone()).await.unwrap();
    let journal = second.journal(0).await;
    let mut reader = JournalTestReader::from_base(&journal);
    assert_eq!((reader.rows(), reader.position), (database.rows_at(0, older.position), older.position));
    assert!(matches!(table.status().phase, TablePhase::Copying { .. }));
    second.handle().pause(false);
    let copied = async || second.copies(0) == 1;
    eventually(PATIENCE, copied).await.unwrap();
    reader.read_on(&journal);
    assert_eq!(reader.rows(), database.rows_at(0, database.end()));
    assert_eq!(journal.entries_after(journal.pin_base().base().sequence()), 2, "what did not change is not told");
    let end = commit(&database, 0, 4, "followed");
    wait_until_reached(&journal, end).await;
    reader.read_on(&journal);
    assert_eq!(reader.rows(), database.rows_at(0, end));
    drop((journal, table));
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_kept_wins() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    let options = |run| TableOptions {
        store: Some(folder.path().join("journal")),
        ..with_snapshots(folder.path(), SnapshotFormat::Native, run)
    };
    let first = start(&database, vec![options(0)]).await;
    let end = commit(&database, 0, 1, "a");
    let mut reader = JournalTestReader::from_base(&first.reached(0, end).await);
    let taken = snapshot(&first).await;
    let end = commit(&database, 0, 2, "b");
    let journal = first.reached(0, end).await;
    reader.read_on(&journal);
    let instance = journal.instance().clone();
    // Only the journal on disk counts for the acknowledgement.
    acknowledged(&database, end).await;
    drop(journal);
    first.end().await;
    let second = start(&database, vec![options(1)]).await;
    let end = commit(&database, 0, 3, "c");
    let journal = second.reached(0, end).await;
    assert_ne!(journal.instance(), &instance, "each run has a name of its own for it");
    assert_eq!(second.copies(0), 0);
    assert!(snapshots(&second).list().iter().any(|info| info.id == taken.id));
    let request = ResumeRequest {
        snapshot_id: taken.id,
        sequence: taken.sequence,
        whole_transactions: true,
        ..ResumeRequest::default()
    };
    assert!(matches!(journal.resolve(&request), ResumeOutcome::Delta(at, _) if at == taken.sequence), "rule 3");
    reader.resume_by_position(&journal);
    assert_eq!(reader.rows(), database.rows_at(0, end));
    drop(journal);
    second.end().await;
}

/// A table that gets a kept journal is not copied for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_journal_begins_at_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    let end = commit(&database, 0, 1, "a");
    let first = start(&database, vec![with_snapshots(folder.path(), SnapshotFormat::Jsonl, 0)]).await;
    let mut reader = JournalTestReader::from_base(&first.reached(0, end).await);
    assert_eq!(snapshot(&first).await.position, end);
    first.end().await;
    let kept = |run| TableOptions {
        store: Some(folder.path().join("journal")),
        ..with_snapshots(folder.path(), SnapshotFormat::Jsonl, run)
    };
    let second = start(&database, vec![kept(1)]).await;
    let end = commit(&database, 0, 2, "b");
    let journal = second.reached(0, end).await;
    reader.resume_by_position(&journal);
    assert_eq!((reader.rows(), second.copies(0)), (database.rows_at(0, end), 0));
    acknowledged(&database, end).await;
    let instance = journal.instance().clone();
    drop(journal);
    second.end().await;
    let third = start(&database, vec![kept(2)]).await;
    let end = commit(&database, 0, 3, "c");
    let journal = third.reached(0, end).await;
    assert_ne!(journal.instance(), &instance, "each run has a name of its own for it");
    assert_eq!(third.copies(0), 0);
    reader.resume_by_position(&journal);
    assert_eq!(reader.rows(), database.rows_at(0, end));
    drop(journal);
    third.end().await;
}
