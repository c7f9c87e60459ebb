//! A database whose history forks: its storage is put back while an engine runs, or while none
//! runs. Every copy ends with the rows of the new history, and no client moves from the old history
//! into the new one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use laredo_core::{CommitMark, CommitTime, Lsn, ScopedMark, Sequence};
use laredo_engine::journal::{InstanceId, ResumeOutcome, ResumeRequest};
use laredo_engine::{Engine, EngineHandle, SnapshotFormat, SnapshotOptions, TableOptions};
use laredo_testkit::{RunningEngine, SimChange, SimDatabase, eventually, sim_table, stopped_clock, wait_until_reached};

use crate::support::{JournalTestReader, PATIENCE, commit, copy_files, start};

/// The form in which a table survives a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TablePersistence {
    Journal,
    Snapshots,
    Nothing,
}

const ALL: [TablePersistence; 3] = [TablePersistence::Journal, TablePersistence::Snapshots, TablePersistence::Nothing];

/// Returns the options of a table in the `run`th process.
fn table(keeps: TablePersistence, folder: &Path, run: u64) -> TableOptions {
    let snapshots = SnapshotOptions {
        folder: folder.join("snapshots"),
        format: SnapshotFormat::Native,
        interval: Duration::from_millis(1),
        keep_count: 3,
        age_max: None,
    };
    TableOptions {
        instance: InstanceId(format!("run{run}")),
        first_sequence: Sequence(1000 * run),
        store: (keeps == TablePersistence::Journal).then(|| folder.join("journal")),
        snapshots: (keeps == TablePersistence::Snapshots).then_some(snapshots),
        ..sim_table("t0")
    }
}

/// Waits until everything up to a position would survive a restart.
async fn kept(running: &RunningEngine, keeps: TablePersistence, position: Lsn) {
    let is_kept = async || keeps == TablePersistence::Nothing || running.handle().acknowledged() >= position;
    eventually(PATIENCE, is_kept).await.expect("it is kept");
}

async fn forked(running: &RunningEngine) {
    eventually(PATIENCE, async || running.table(0).status().forks > 0).await.expect("the fork is noticed");
}

/// Returns the resume request of a client that sends its commit mark.
fn request(handle: &EngineHandle, reader: &JournalTestReader, mark: CommitMark) -> ResumeRequest {
    let tables = handle.tables();
    let history = tables[0].history();
    ResumeRequest {
        position: Some(reader.position),
        mark: ScopedMark { commit: mark, scope: 0 },
        verdict: tables[0].judge(ScopedMark { commit: mark, scope: 0 }),
        own_source: history.identity(),
        whole_transactions: true,
        ..ResumeRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_engine_follows_a_database_that_was_put_back() {
    for keeps in ALL {
        let folder = tempfile::tempdir().unwrap();
        let database = SimDatabase::new(1);
        let common = commit(&database, 0, 1, "in both");
        let running = start(&database, vec![table(keeps, folder.path(), 1)]).await;
        let before = running.reached(0, common).await;
        let lost = commit(&database, 0, 2, "lost");
        let lost = commit(&database, 0, 3, "lost, too").max(lost);
        wait_until_reached(&before, lost).await;
        let reader = JournalTestReader::from_base(&before);
        let mark = before.head().mark;
        assert_eq!(mark.end, lost, "{keeps:?}");
        let asked = request(running.handle(), &reader, mark);
        assert_eq!(Some(before.shared_position(&asked)), asked.position, "{keeps:?}: the history is proven");

        database.put_back(common);
        forked(&running).await;
        while commit(&database, 0, database.end().0.cast_signed(), "new") <= lost {}
        let new = database.end();
        let after = running.reached(0, new).await;
        tokio::time::timeout(PATIENCE, before.closed()).await.expect("readers of the old journal are ended");
        assert_ne!(after.instance(), before.instance(), "{keeps:?}");
        assert_eq!(JournalTestReader::from_base(&after).rows(), database.rows_at(0, new), "{keeps:?}");
        let resumed = after.resolve(&request(running.handle(), &reader, mark));
        assert!(matches!(resumed, ResumeOutcome::AnotherHistory(_)), "{keeps:?} {resumed:?}");
        let shared = after.shared_position(&request(running.handle(), &reader, mark));
        assert!(shared <= common, "{keeps:?}: {shared} is beyond the fork");
        // A client without a commit mark, at a position that both histories have.
        let unmarked = after.resolve(&request(running.handle(), &reader, CommitMark::default()));
        assert!(matches!(unmarked, ResumeOutcome::AnotherHistory(_)), "{keeps:?} {unmarked:?}");
        // Sequences are never reused, and the table is followed normally from here on.
        assert!(after.head().sequence > before.head().sequence);
        let end = commit(&database, 0, 22, "and on");
        wait_until_reached(&after, end).await;
        assert_eq!(running.copies(0), 2, "{keeps:?}: one copy for one fork");
        assert_eq!(JournalTestReader::from_base(&after).rows(), database.rows_at(0, end), "{keeps:?}");
        kept(&running, keeps, end).await;
        running.end().await;

        // The kept data belongs to the new history, so nothing is copied again.
        if keeps != TablePersistence::Nothing {
            let end = commit(&database, 0, 23, "while nothing ran");
            let again = start(&database, vec![table(keeps, folder.path(), 2)]).await;
            let journal = again.reached(0, end).await;
            assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(0, end), "{keeps:?}");
            assert_eq!(again.copies(0), 0, "{keeps:?}");
            again.end().await;
        }
    }
}

/// The new journal has its own base maker, which answers a new client's request.
#[tokio::test(flavor = "multi_thread")]
async fn bases_are_made_of_the_journal_after_a_fork() {
    for keeps in ALL {
        let folder = tempfile::tempdir().unwrap();
        let database = SimDatabase::new(1);
        let common = commit(&database, 0, 1, "in both");
        let running = start(&database, vec![table(keeps, folder.path(), 1)]).await;
        let before = running.reached(0, common).await;
        let lost = commit(&database, 0, 2, "lost");
        wait_until_reached(&before, lost).await;
        database.put_back(common);
        forked(&running).await;
        while commit(&database, 0, database.end().0.cast_signed(), "new") <= lost {}
        let after = running.reached(0, database.end()).await;
        let end = commit(&database, 0, 1000, "after the copy");
        wait_until_reached(&after, end).await;
        tokio::time::timeout(PATIENCE, after.fresh_base()).await.expect("a base is made");
        assert_eq!(after.base().position(), end, "{keeps:?}");
        running.end().await;
    }
}

/// Forks that could not be noted, because the table's folder was missing, are noted in their order
/// once it is there. Until then nothing is acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn forks_during_which_a_folder_was_missing_are_noted_before_anything_else() {
    for forks in [1, 2, 3] {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("missing");
        std::fs::write(&place, "").unwrap();
        let database = SimDatabase::new(2);
        let mut common = commit(&database, 0, 1, "in all");
        let kept = |name: &str, store: &Path| TableOptions { store: Some(store.to_owned()), ..sim_table(name) };
        let tables = vec![kept("t0", &place), kept("t1", &folder.path().join("t1"))];
        let running = RunningEngine::run(Engine::new("", database.clone(), tables, stopped_clock(CommitTime(0))));
        let tables = running.handle().tables();
        let [stopped, beside] = &*tables else { panic!("two tables") };
        eventually(PATIENCE, async || stopped.status().phase.name() == "retrying").await.unwrap();
        for fork in 1..=forks {
            let lost = database.commit(1, vec![SimChange::Insert(100 + fork, "lost".to_owned())]);
            wait_until_reached(&beside.wait_journal().await.unwrap(), lost).await;
            database.put_back(common);
            eventually(PATIENCE, async || beside.status().forks == fork.cast_unsigned()).await.unwrap();
            while database.end() <= lost {
                common = database.commit(1, vec![SimChange::Insert(database.end().0.cast_signed(), "new".to_owned())]);
            }
            let journal = async || beside.journal().is_some_and(|journal| journal.head().position >= common);
            eventually(PATIENCE, journal).await.expect("the other table is copied");
        }
        assert!(running.handle().acknowledged() < common, "{forks}: a fork is not noted");
        std::fs::remove_file(&place).unwrap();
        let end = commit(&database, 0, 2, "after them");
        let journal = running.reached(0, end).await;
        assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(0, end), "{forks}");
        assert_eq!(stopped.status().forks, forks.cast_unsigned(), "{forks}: each is noted once");
        let acknowledged = async || running.handle().acknowledged() >= end;
        eventually(PATIENCE, acknowledged).await.expect("everything is acknowledged again");
        let noted = std::fs::read_to_string(place.join("history.json")).unwrap();
        assert!(noted.contains("abandoned"), "{forks}: {noted}");
        running.end().await;
    }
}

/// Returns the total size of the removed files in a folder that this process has open.
fn removed_bytes(folder: &Path) -> u64 {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().map(|file| file.unwrap().path());
    let is_removed = |file: &PathBuf| {
        let target = std::fs::read_link(file).unwrap_or_default();
        target.starts_with(folder) && target.to_string_lossy().ends_with(" (deleted)")
    };
    open.filter(is_removed).filter_map(|file| std::fs::metadata(file).ok()).map(|file| file.len()).sum()
}

/// A reader that takes nothing must not keep the disk full: the files of the journal that it reads
/// were removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_keeps_no_room_of_the_journal_before_a_fork() {
    const ROW_BYTES: usize = 1 << 20;
    const ROWS: usize = 16;
    for keeps in ALL {
        let folder = tempfile::tempdir().unwrap();
        let database = SimDatabase::new(1);
        let common = commit(&database, 0, 1, "in both");
        let mut options = table(keeps, folder.path(), 1);
        options.journal.folder = folder.path().to_owned();
        options.journal.memory_bytes_max = 1;
        let running = start(&database, vec![options]).await;
        let before = running.reached(0, common).await;
        let mut cursor = before.cursor(before.head().sequence);
        for id in 0..i64::try_from(ROWS).unwrap() {
            commit(&database, 0, 100 + id, &"lost".repeat(ROW_BYTES / 4));
        }
        kept(&running, keeps, database.end()).await;
        wait_until_reached(&before, database.end()).await;
        assert!(cursor.clone().next_piece().unwrap().is_some(), "{keeps:?}: a reader can go on before the fork");
        assert!(before.info().memory_bytes < before.info().bytes / 2, "{keeps:?}: files have it");

        database.put_back(common);
        forked(&running).await;
        while database.end() <= before.head().position {
            commit(&database, 0, database.end().0.cast_signed(), "new");
        }
        running.reached(0, database.end()).await;
        before.closed().await;
        let gone = async || {
            while removed_bytes(folder.path()) >= ROW_BYTES as u64 {
                tokio::task::yield_now().await;
            }
        };
        let gone = tokio::time::timeout(PATIENCE, gone()).await;
        assert!(gone.is_ok(), "{keeps:?}: {} bytes of removed files are open", removed_bytes(folder.path()));
        assert_eq!((before.info().bytes, before.info().memory_bytes), (0, 0), "{keeps:?}");
        cursor.next_piece().expect_err("the journal is gone");
        assert!(before.base().read(0).is_err(), "{keeps:?}: the base is gone");
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_put_back_while_nothing_ran_is_copied_however_far_it_has_come_since() {
    for keeps in [TablePersistence::Journal, TablePersistence::Snapshots] {
        for new_commits in [0, 1, 2, 20] {
            let what = format!("{keeps:?}, {new_commits} commits since");
            let folder = tempfile::tempdir().unwrap();
            let database = SimDatabase::new(1);
            let common = commit(&database, 0, 1, "in both");
            let first = start(&database, vec![table(keeps, folder.path(), 1)]).await;
            first.reached(0, common).await;
            let lost = commit(&database, 0, 2, "lost");
            let journal = first.reached(0, lost).await;
            let (reader, mark) = (JournalTestReader::from_base(&journal), journal.head().mark);
            kept(&first, keeps, lost).await;
            first.end().await;

            database.put_back(common);
            let end = (0..new_commits).map(|id| commit(&database, 0, 20 + id, "new")).last().unwrap_or(common);
            let second = start(&database, vec![table(keeps, folder.path(), 2)]).await;
            let after = commit(&database, 0, 90, "after the restart").max(end);
            second.copied(0).await;
            let journal = second.reached(0, after).await;
            assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(0, after), "{what}");
            assert_eq!(second.copies(0), 1, "{what}");
            let resumed = journal.resolve(&request(second.handle(), &reader, mark));
            let is_safe =
                matches!(resumed, ResumeOutcome::AnotherHistory(_) | ResumeOutcome::Full(_) | ResumeOutcome::Wait(_));
            assert!(is_safe, "{what}: {resumed:?}");
            second.end().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_that_was_noted_counts_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    let end = commit(&database, 0, 1, "one");
    let first = start(&database, vec![table(TablePersistence::Journal, folder.path(), 1)]).await;
    first.reached(0, end).await;
    let end = commit(&database, 0, 2, "two");
    first.reached(0, end).await;
    kept(&first, TablePersistence::Journal, end).await;
    first.end().await;
    // Write the file of a server that ends before the copy is complete.
    let noted = format!(
        r#"{{"count":1,"forks":[{{"number":1,"common":"{}","abandoned":"{end}","is_certain":true,"reason":"put back"}}]}}"#,
        Lsn(end.0 - 1)
    );
    std::fs::write(folder.path().join("journal/history.json"), noted).unwrap();
    let second = start(&database, vec![table(TablePersistence::Journal, folder.path(), 2)]).await;
    // The engine trusts nothing in the journal.
    second.copied(0).await;
    let journal = second.reached(0, end).await;
    assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(0, end));
    kept(&second, TablePersistence::Journal, end).await;
    second.end().await;
    // The journal that was started after the fork belongs to the new history.
    let third = start(&database, vec![table(TablePersistence::Journal, folder.path(), 3)]).await;
    third.reached(0, end).await;
    assert_eq!(third.copies(0), 0);
    third.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_a_journal_s_folder_gives_no_sequence_again() {
    let folder = tempfile::tempdir().unwrap();
    let backup = tempfile::tempdir().unwrap();
    let (path, database) = (folder.path().join("journal"), SimDatabase::new(1));
    let options = |run| table(TablePersistence::Journal, folder.path(), run);
    let end = commit(&database, 0, 1, "one");
    let first = start(&database, vec![options(1)]).await;
    let journal = first.reached(0, end).await;
    let end = commit(&database, 0, 2, "two");
    wait_until_reached(&journal, end).await;
    let (early, early_instance) = (JournalTestReader::from_base(&journal), journal.instance().clone());
    kept(&first, TablePersistence::Journal, end).await;
    first.end().await;
    copy_files(&path, backup.path());

    let second = start(&database, vec![options(2)]).await;
    let mut readers = Vec::new();
    for id in 10..20 {
        let end = commit(&database, 0, id, "served by the second run");
        let journal = second.reached(0, end).await;
        readers.push((JournalTestReader::from_base(&journal), journal.head().mark, journal.instance().clone()));
    }
    second.end().await;
    std::fs::remove_dir_all(&path).unwrap();
    copy_files(backup.path(), &path);

    let mut end = Lsn::ZERO;
    let third = start(&database, vec![options(3)]).await;
    for id in 30..60 {
        end = commit(&database, 0, id, "served by the third run");
    }
    let journal = third.reached(0, end).await;
    let fresh = JournalTestReader::from_base(&journal);
    assert_eq!(fresh.rows(), database.rows_at(0, end));
    readers.push((early, CommitMark::default(), early_instance));
    for (mut reader, mark, instance) in readers {
        let by_sequence =
            ResumeRequest { instance: instance.0, sequence: reader.at, ..request(third.handle(), &reader, mark) };
        match journal.resolve(&by_sequence) {
            ResumeOutcome::Delta(at, _) => {
                reader.at = at;
                reader.read_on(&journal);
                assert_eq!(reader.rows(), database.rows_at(0, end), "{by_sequence:?}");
            }
            ResumeOutcome::Full(_) | ResumeOutcome::AnotherHistory(_) => {}
            ResumeOutcome::Wait(position) => panic!("{by_sequence:?} is to wait for {position}"),
        }
    }
    third.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_copies_of_one_journal_s_folder_are_two_journals() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let database = SimDatabase::new(1);
    let end = commit(&database, 0, 1, "one");
    let first = start(&database, vec![table(TablePersistence::Journal, folders[0].path(), 1)]).await;
    first.reached(0, end).await;
    kept(&first, TablePersistence::Journal, end).await;
    first.end().await;
    copy_files(&folders[0].path().join("journal"), &folders[1].path().join("journal"));
    let mut instances = Vec::new();
    for (run, folder) in (2..).zip(&folders) {
        let running = start(&database, vec![table(TablePersistence::Journal, folder.path(), run)]).await;
        instances.push(running.reached(0, end).await.instance().clone());
        running.end().await;
    }
    assert_ne!(instances[0], instances[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_file_of_a_journal_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, database) = (folder.path().join("journal"), SimDatabase::new(1));
    let end = commit(&database, 0, 1, "one");
    for run in 1..3 {
        let running = start(&database, vec![table(TablePersistence::Journal, folder.path(), run)]).await;
        running.reached(0, end).await;
        let end = commit(&database, 0, 10 + i64::try_from(run).unwrap(), "more");
        running.reached(0, end).await;
        kept(&running, TablePersistence::Journal, end).await;
        running.end().await;
    }
    let files = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
    let newest = files.filter(|path| path.extension().is_some_and(|found| found == "journal")).max().unwrap();
    std::fs::remove_file(newest).unwrap();
    let end = database.end();
    let running = start(&database, vec![table(TablePersistence::Journal, folder.path(), 9)]).await;
    running.copied(0).await;
    let journal = running.reached(0, end).await;
    assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(0, end));
    assert!(path.join("set-aside").is_dir());
    running.end().await;
}
