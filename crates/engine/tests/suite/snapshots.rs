//! Engines that restart with snapshots alone. No copy is made if the source still has the changes
//! after the newest snapshot.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::journal::{Journal, ResumeOutcome, ResumeRequest};
use laredo_engine::{
    Clock, Engine, EngineHandle, SnapshotError, SnapshotFolder, SnapshotFormat, SnapshotInfo, SnapshotOptions,
    TableOptions, TablePhase,
};
use laredo_testkit::{SimChange, SimDatabase, eventually, sim_table};
use tokio::sync::oneshot;

use crate::reader::{JournalTestReader, wait_until_reached};

const PATIENCE: Duration = Duration::from_secs(60);

struct SnapshotTestEngine {
    handle: EngineHandle,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

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

async fn start_paused(database: &SimDatabase, table: TableOptions, paused: bool) -> SnapshotTestEngine {
    let clock: Clock = Arc::new(|| CommitTime(0));
    let engine = Engine::prepare(database.clone(), vec![table], clock).await.unwrap();
    let handle = engine.handle();
    handle.pause(paused);
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(engine.run(async move {
        let _ = stopped.await;
    }));
    SnapshotTestEngine { handle, stop, task }
}

async fn start(database: &SimDatabase, table: TableOptions) -> SnapshotTestEngine {
    start_paused(database, table, false).await
}

impl SnapshotTestEngine {
    async fn end(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap();
    }

    async fn journal(&self) -> Journal {
        tokio::time::timeout(PATIENCE, self.handle.tables()[0].wait_journal()).await.unwrap().unwrap()
    }

    async fn reached(&self, position: Lsn) -> Journal {
        let journal = self.journal().await;
        wait_until_reached(&journal, position).await;
        journal
    }

    fn snapshots(&self) -> Arc<SnapshotFolder> {
        self.handle.tables()[0].snapshots().unwrap()
    }

    async fn snapshot(&self) -> SnapshotInfo {
        self.snapshots().take_snapshot(self.journal().await, None).await.unwrap()
    }

    async fn acknowledged(&self, database: &SimDatabase, position: Lsn) {
        let acknowledged = async || database.acknowledged() >= position;
        eventually(PATIENCE, acknowledged).await.unwrap();
    }

    fn copies(&self) -> u64 {
        self.handle.tables()[0].status().copies
    }
}

fn commit(database: &SimDatabase, id: i64, body: &str) -> Lsn {
    database.commit(0, vec![SimChange::Insert(id, body.to_owned())])
}

fn resume_by_position(reader: &mut JournalTestReader, journal: &Journal) {
    let request =
        ResumeRequest { position: Some(reader.position), whole_transactions: true, ..ResumeRequest::default() };
    match journal.resolve(&request) {
        ResumeOutcome::Delta(at, _) => reader.at = at,
        other => panic!("{request:?} is answered with {other:?}"),
    }
    reader.read_on(journal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_from_the_newest_snapshot_and_copies_nothing() {
    for format in [SnapshotFormat::Native, SnapshotFormat::Jsonl] {
        let folder = tempfile::tempdir().unwrap();
        let database = SimDatabase::new(1);
        commit(&database, 1, "before the first copy");
        let first = start(&database, with_snapshots(folder.path(), format, 0)).await;
        let end = commit(&database, 2, "before the snapshot");
        let mut reader = JournalTestReader::from_base(&first.reached(end).await);
        let taken = first.snapshot().await;
        assert_eq!((taken.position, taken.rows), (end, 2));
        let end = commit(&database, 3, "after it");
        let journal = first.reached(end).await;
        reader.read_on(&journal);
        let instance = journal.instance().clone();
        drop(journal);
        first.end().await;
        let mut before = taken;
        for run in 1..4 {
            // Commit while no engine runs.
            commit(&database, 100 + run, "meanwhile");
            let running = start(&database, with_snapshots(folder.path(), format, run.try_into().unwrap())).await;
            let journal = running.journal().await;
            assert!(journal.instance() != &instance, "it is another journal");
            let end = commit(&database, 200 + run, &"now".repeat(1000));
            wait_until_reached(&journal, end).await;
            resume_by_position(&mut reader, &journal);
            assert_eq!(reader.rows(), database.rows_at(0, end));
            assert_eq!(
                JournalTestReader::from_base(&journal).rows(),
                database.rows_at(0, end),
                "a newcomer has the same"
            );
            assert_eq!(running.copies(), 0);
            let listed = running.snapshots().list();
            assert!(listed.iter().any(|info| info.id == before.id), "those of earlier journals stay");
            before = running.snapshot().await;
            drop(journal);
            running.end().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_in_a_snapshot_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    let copied = commit(&database, 1, "a");
    let running = start(&database, with_snapshots(folder.path(), SnapshotFormat::Native, 0)).await;
    running.reached(copied).await;
    running.acknowledged(&database, copied).await;
    let first = running.snapshots().newest().unwrap();
    let end = commit(&database, 2, "b");
    running.reached(end).await;
    // The engine had the opportunity to acknowledge: the table is visible, and the acknowledgement
    // is computed before a snapshot is visible.
    assert_eq!(running.snapshots().status().durable.position(), first.position);
    assert!(database.acknowledged() < end);
    assert_eq!(running.snapshot().await.position, end);
    running.acknowledged(&database, end).await;
    running.end().await;
}

/// The journal after the copy begins at the sequence that a journal of the snapshot would have.
#[tokio::test(flavor = "multi_thread")]
async fn no_snapshot_is_restored_between_a_fork_and_its_copy() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    let common = commit(&database, 1, "in both");
    let first = start(&database, with_snapshots(folder.path(), SnapshotFormat::Native, 0)).await;
    first.reached(common).await;
    let older = first.snapshot().await;
    let lost = commit(&database, 2, "lost");
    first.reached(lost).await;
    let newer = first.snapshot().await;
    first.acknowledged(&database, lost).await;
    first.end().await;
    // Only the older snapshot is left, and the source has discarded what follows it.
    std::fs::remove_file(&newer.path).unwrap();

    database.hold_copies();
    let second = start(&database, with_snapshots(folder.path(), SnapshotFormat::Native, 1)).await;
    let table = second.handle.tables()[0].clone();
    assert!(table.journal().is_none());
    let lost = commit(&database, 3, "lost, and held for the copy");
    eventually(PATIENCE, async || table.status().held_bytes > 0).await.expect("the stream is followed");
    database.put_back(common);
    eventually(PATIENCE, async || table.status().forks == 1).await.unwrap();
    let refused = table.restore_snapshot(older.id).await.unwrap_err();
    assert!(matches!(refused, SnapshotError::Forked), "{refused}");
    while database.end() <= lost {
        commit(&database, database.end().0.cast_signed(), "new");
    }
    database.release_copies();
    second.reached(database.end()).await;
    let journal = second.journal().await;
    assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(0, database.end()));
    second.end().await;
}

/// If the source has discarded the changes, the engine copies the table. Until then it serves the
/// rows of a snapshot only if the options ask for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_snapshot_is_served_on_request_until_the_copy_tells_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    commit(&database, 1, "stays");
    let end = commit(&database, 2, "goes");
    let first = start(&database, with_snapshots(folder.path(), SnapshotFormat::Native, 0)).await;
    first.reached(end).await;
    let older = first.snapshot().await;
    let end = database.commit(0, vec![SimChange::Delete(2), SimChange::Insert(3, "comes".to_owned())]);
    first.reached(end).await;
    let newer = first.snapshot().await;
    first.acknowledged(&database, end).await;
    let served = first.handle.tables()[0].restore_snapshot(older.id.clone()).await.unwrap_err();
    assert!(matches!(served, SnapshotError::Served(position) if position == end), "{served}");
    first.end().await;
    // Damage a byte of a row. The damage shows only when the row is read.
    let mut bytes = std::fs::read(&newer.path).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&newer.path, bytes).unwrap();

    let second = start_paused(&database, with_snapshots(folder.path(), SnapshotFormat::Native, 1), true).await;
    let table = second.handle.tables()[0].clone();
    assert!(table.journal().is_none(), "nobody asked for rows of any age");
    let unknown = table.restore_snapshot(newer.id).await.unwrap_err();
    assert!(matches!(unknown, SnapshotError::Unknown(_)), "{unknown}");
    table.restore_snapshot(older.id.clone()).await.unwrap();
    let journal = second.journal().await;
    let mut reader = JournalTestReader::from_base(&journal);
    assert_eq!((reader.rows(), reader.position), (database.rows_at(0, older.position), older.position));
    assert!(matches!(table.status().phase, TablePhase::Copying { .. }));
    second.handle.pause(false);
    let copied = async || second.copies() == 1;
    eventually(PATIENCE, copied).await.unwrap();
    reader.read_on(&journal);
    assert_eq!(reader.rows(), database.rows_at(0, database.end()));
    assert_eq!(journal.entries_after(journal.pin_base().base().sequence()), 2, "what did not change is not told");
    let end = commit(&database, 4, "followed");
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
    let first = start(&database, options(0)).await;
    let end = commit(&database, 1, "a");
    let mut reader = JournalTestReader::from_base(&first.reached(end).await);
    let taken = first.snapshot().await;
    let end = commit(&database, 2, "b");
    let journal = first.reached(end).await;
    reader.read_on(&journal);
    let instance = journal.instance().clone();
    // Only the journal on disk counts for the acknowledgement.
    first.acknowledged(&database, end).await;
    drop(journal);
    first.end().await;
    let second = start(&database, options(1)).await;
    let end = commit(&database, 3, "c");
    let journal = second.reached(end).await;
    assert_ne!(journal.instance(), &instance, "each run has a name of its own for it");
    assert_eq!(second.copies(), 0);
    assert!(second.snapshots().list().iter().any(|info| info.id == taken.id));
    let request = ResumeRequest {
        snapshot_id: taken.id,
        sequence: taken.sequence,
        whole_transactions: true,
        ..ResumeRequest::default()
    };
    assert!(matches!(journal.resolve(&request), ResumeOutcome::Delta(at, _) if at == taken.sequence), "rule 3");
    resume_by_position(&mut reader, &journal);
    assert_eq!(reader.rows(), database.rows_at(0, end));
    drop(journal);
    second.end().await;
}

/// A table that gets a kept journal is not copied for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_journal_begins_at_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    let end = commit(&database, 1, "a");
    let first = start(&database, with_snapshots(folder.path(), SnapshotFormat::Jsonl, 0)).await;
    let mut reader = JournalTestReader::from_base(&first.reached(end).await);
    assert_eq!(first.snapshot().await.position, end);
    first.end().await;
    let kept = |run| TableOptions {
        store: Some(folder.path().join("journal")),
        ..with_snapshots(folder.path(), SnapshotFormat::Jsonl, run)
    };
    let second = start(&database, kept(1)).await;
    let end = commit(&database, 2, "b");
    let journal = second.reached(end).await;
    resume_by_position(&mut reader, &journal);
    assert_eq!((reader.rows(), second.copies()), (database.rows_at(0, end), 0));
    second.acknowledged(&database, end).await;
    let instance = journal.instance().clone();
    drop(journal);
    second.end().await;
    let third = start(&database, kept(2)).await;
    let end = commit(&database, 3, "c");
    let journal = third.reached(end).await;
    assert_ne!(journal.instance(), &instance, "each run has a name of its own for it");
    assert_eq!(third.copies(), 0);
    resume_by_position(&mut reader, &journal);
    assert_eq!(reader.rows(), database.rows_at(0, end));
    drop(journal);
    third.end().await;
}
