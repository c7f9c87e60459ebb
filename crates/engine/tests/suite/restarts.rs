//! Engines that restart on the same folders. No copy is made unless it is needed, and readers
//! resume at their positions.

use std::path::Path;
use std::time::Duration;

use laredo_core::{CommitTime, Lsn, Sequence};
use laredo_engine::journal::{InstanceId, Journal, JournalOptions, ResumeOutcome, ResumeRequest};
use laredo_engine::source::{SourceEvent, TableIndex};
use laredo_engine::{
    Engine, HashKey, PipelineOptions, ReloadError, SnapshotFormat, SnapshotOptions, TableOptions, TablePhase,
    Transform, ValueMask,
};
use laredo_testkit::{RunningEngine, SimChange, SimDatabase, eventually, sim_table, stopped_clock, wait_until_reached};

use crate::support::{JournalTestReader, PATIENCE, commit, copy_files, start};

fn kept(name: &str, folder: &Path) -> TableOptions {
    TableOptions { store: Some(folder.join(name)), ..sim_table(name) }
}

/// Resumes at the reader's sequence or at its position.
fn resume(reader: &mut JournalTestReader, journal: &Journal, by_position: bool) {
    let request = ResumeRequest {
        instance: journal.instance().0.clone(),
        sequence: reader.at,
        whole_transactions: true,
        ..ResumeRequest::default()
    };
    match by_position {
        true => reader.resume_by_position(journal),
        false => reader.resume(journal, &request),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_copies_nothing_and_readers_continue() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(2);
    commit(&database, 0, 1, "before the first copy");
    let tables = || vec![kept("t0", folder.path()), kept("t1", folder.path())];
    let first = start(&database, tables()).await;
    let instance = first.journal(0).await.instance().clone();
    let mut readers =
        [JournalTestReader::from_base(&first.journal(0).await), JournalTestReader::from_base(&first.journal(0).await)];
    let mut last = Sequence(0);
    first.end().await;
    for round in 0..4_i64 {
        // Commit while no engine runs.
        commit(&database, 0, 100 + round, "meanwhile");
        let running = start(&database, tables()).await;
        let end = commit(&database, 0, 200 + round, &"now".repeat(1000));
        let journal = running.reached(0, end).await;
        assert_eq!(journal.instance(), &instance);
        assert!(journal.head().sequence > last, "sequences go on");
        last = journal.head().sequence;
        for (reader, by_position) in readers.iter_mut().zip([true, false]) {
            resume(reader, &journal, by_position);
            assert_eq!(reader.rows(), database.rows_at(0, end));
        }
        assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(0, end), "a newcomer has the same");
        assert_eq!((running.copies(0), running.copies(1)), (0, 0));
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_on_disk_is_acknowledged_and_an_idle_table_does_not_hold_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(2);
    let running = start(&database, vec![kept("t0", folder.path()), kept("t1", folder.path())]).await;
    running.journal(1).await;
    let end = commit(&database, 0, 1, "only here");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while database.acknowledged() < end {
        assert!(tokio::time::Instant::now() < deadline, "{} is never acknowledged", end);
        tokio::task::yield_now().await;
    }
    for table in running.handle().tables().iter() {
        let status = table.journal().unwrap().store_status().unwrap();
        assert!(status.durable.position() >= end && status.syncs > 0, "{status:?}");
        assert_eq!(status.sync_times.count(), status.syncs);
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_changed_meanwhile_ends_in_a_copy_of_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    commit(&database, 0, 1, "stays");
    let first = start(&database, vec![kept("t0", folder.path())]).await;
    let end = commit(&database, 0, 2, "stays too");
    let mut reader = JournalTestReader::from_base(&first.reached(0, end).await);
    first.end().await;
    // The stream never reports this change.
    database.redefine("another");
    let silent = database.change_silently(0, vec![SimChange::Update(1, "rewritten".to_owned())]);
    let second = start(&database, vec![kept("t0", folder.path())]).await;
    let instance = second.journal(0).await.instance().clone();
    let journal = second.reached(0, silent).await;
    tokio::time::timeout(Duration::from_secs(60), async {
        while second.copies(0) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is copied");
    let before = reader.at;
    resume(&mut reader, &journal, false);
    assert_eq!(reader.rows(), database.rows_at(0, silent));
    assert_eq!(journal.entries_after(before), 1, "what did not change is not told");
    second.end().await;
    // From now on, the definition of the copy counts.
    let third = start(&database, vec![kept("t0", folder.path())]).await;
    let end = commit(&database, 0, 3, "third");
    resume(&mut reader, &third.reached(0, end).await, true);
    assert_eq!((reader.rows(), third.copies(0)), (database.rows_at(0, end), 0));
    assert_eq!(third.journal(0).await.instance(), &instance);
    third.end().await;
}

/// A definition that the source announces replaces the one of the copy. It applies only once the
/// stream has reached the position where it is valid.
#[tokio::test(flavor = "multi_thread")]
async fn a_definition_from_the_stream_replaces_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    let tables = || vec![kept("t0", folder.path())];
    let first = start(&database, tables()).await;
    first.journal(0).await;
    let tell = async |definition: &str, from: Lsn| {
        database.redefine(definition);
        let (table, definition) = (TableIndex(0), definition.to_owned());
        database.inject_event(SourceEvent::Redefined { table, definition, from, values: Vec::new() }).await;
    };
    tell("after a truncate", database.end()).await;
    let end = database.commit(0, vec![SimChange::Truncate, SimChange::Insert(1, "one".to_owned())]);
    first.reached(0, end).await;
    // This definition is announced for a position far ahead in the stream.
    tell("of the future", Lsn(end.0 + 1_000_000)).await;
    let end = commit(&database, 0, 2, "two");
    first.reached(0, end).await;
    first.end().await;
    database.redefine("after a truncate");
    let second = start(&database, tables()).await;
    let end = commit(&database, 0, 3, "three");
    let journal = second.reached(0, end).await;
    assert_eq!((second.copies(0), JournalTestReader::from_base(&journal).rows()), (0, database.rows_at(0, end)));
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_filter_left_are_served_at_once_and_copied_behind() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    for id in 0..20 {
        commit(&database, 0, id, if id % 2 == 0 { "even" } else { "odd" });
    }
    let test = laredo_values::MatchCondition::Equals(laredo_values::Value::String("even".to_owned()));
    let filters = vec![laredo_values::Predicate { field: "body".to_owned(), test }];
    let tables = || {
        let pipeline = PipelineOptions { filters: filters.clone(), ..PipelineOptions::default() };
        vec![TableOptions { pipeline, ..kept("t0", folder.path()) }]
    };
    let first = start(&database, tables()).await;
    let mut reader = JournalTestReader::from_base(&first.journal(0).await);
    first.end().await;
    let end = database.commit(0, vec![SimChange::Update(3, "even".to_owned()), SimChange::Update(4, "odd".to_owned())]);
    let second = start(&database, tables()).await;
    let status = second.table(0).status();
    assert!(matches!(status.phase, TablePhase::Copying { .. }) || status.copies == 1, "{status:?}");
    let journal = second.reached(0, end).await;
    let before = reader.at;
    resume(&mut reader, &journal, false);
    let mut expected = database.rows_at(0, end);
    expected.retain(|_, body| body == "even");
    assert_eq!(reader.rows(), expected);
    assert_eq!(journal.entries_after(before), 2, "what did not change is not told");
    second.end().await;
}

/// Returns a pipeline that hashes the key of the table with this secret.
fn hashed(secret: &str) -> PipelineOptions {
    let key = HashKey::new(secret.as_bytes()).unwrap();
    let transforms = vec![
        Transform::Hash(vec!["id".to_owned()], key),
        Transform::Mask(vec!["body".to_owned()], ValueMask::Fixed("hidden".to_owned())),
    ];
    PipelineOptions { filters: Vec::new(), transforms }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_with_a_hashed_key_are_continued_by_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    for id in 0..20 {
        commit(&database, 0, id, "body");
    }
    let tables = || vec![TableOptions { pipeline: hashed("one key for the test"), ..kept("t0", folder.path()) }];
    let first = start(&database, tables()).await;
    let mut reader = JournalTestReader::from_base(&first.journal(0).await);
    first.end().await;
    let end = database.commit(0, vec![SimChange::Delete(3), SimChange::Insert(50, "more".to_owned())]);
    let second = start(&database, tables()).await;
    let journal = second.reached(0, end).await;
    let before = reader.at;
    resume(&mut reader, &journal, false);
    assert_eq!(journal.entries_after(before), 2, "what did not change is not sent");
    assert_eq!(reader.state.checksum(), JournalTestReader::from_base(&journal).state.checksum());
    second.end().await;
}

/// Journals and snapshots may have values that other transforms hide. No reader is served a row of
/// them, and no file keeps any.
#[tokio::test(flavor = "multi_thread")]
async fn other_transforms_begin_another_journal_without_the_files_of_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    let snapshots = |format| SnapshotOptions {
        folder: folder.path().join("snapshots"),
        format,
        interval: Duration::from_secs(3600),
        keep_count: 10,
        age_max: None,
    };
    let plain = PipelineOptions::default();
    let filters = vec![laredo_values::Predicate {
        field: "body".to_owned(),
        test: laredo_values::MatchCondition::Prefix("clear".to_owned()),
    }];
    let pipelines = [
        plain.clone(),
        hashed("one key for the test"),
        hashed("another key for it"),
        PipelineOptions { filters, ..hashed("another key for it") },
        plain,
        hashed("one key for the test"),
    ];
    let mut earlier: Vec<JournalTestReader> = Vec::new();
    let mut instance = None;
    for (run, pipeline) in pipelines.into_iter().enumerate() {
        let format = if run % 2 == 0 { SnapshotFormat::Jsonl } else { SnapshotFormat::Native };
        let is_clear = pipeline.transforms.is_empty();
        // Each process of a server has another name for a new journal.
        let name = InstanceId(format!("run{run}"));
        let snapshots = Some(snapshots(format));
        let options = TableOptions { pipeline, snapshots, instance: name, ..kept("t0", folder.path()) };
        // Before the copy, which PostgreSQL places behind every earlier position.
        let end = commit(&database, 0, run as i64, &format!("clear text {run}"));
        let engine = start(&database, vec![options]).await;
        let journal = engine.reached(0, end).await;
        for reader in &earlier {
            let by_name = ResumeRequest {
                instance: instance.clone().unwrap_or_default(),
                sequence: reader.at,
                position: Some(reader.position),
                ..ResumeRequest::default()
            };
            let by_position = ResumeRequest { position: Some(reader.position), ..ResumeRequest::default() };
            for request in [by_name, by_position] {
                let outcome = journal.resolve(&request);
                let sends_all = matches!(outcome, ResumeOutcome::Full(_) | ResumeOutcome::AnotherHistory(_));
                assert!(sends_all, "run {run}: {request:?} {outcome:?}");
            }
        }
        let kept = engine.table(0).snapshots().unwrap();
        assert!(kept.list().is_empty(), "run {run}: {:?}", kept.list());
        kept.take_snapshot(journal.clone(), None).await.unwrap();
        earlier.push(JournalTestReader::from_base(&journal));
        instance = Some(journal.instance().0.clone());
        engine.copied(0).await;
        assert_eq!(engine.copies(0), 1);
        engine.end().await;
        let found = has_text(folder.path(), b"clear text");
        assert_eq!(found, is_clear, "run {run}");
    }
}

/// Returns true if a file in a folder, or in a folder within it, contains the bytes.
fn has_text(folder: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => has_text(&path, bytes),
            false => std::fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes),
        }
    })
}

/// The journal is pruned like one in memory, and its files with it.
#[tokio::test(flavor = "multi_thread")]
async fn memory_and_disk_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(1);
    let tables = || {
        let kept = kept("t0", folder.path());
        let bounds = JournalOptions { bytes_max: 80 << 20, memory_bytes_max: 4 << 20, ..kept.journal.clone() };
        vec![TableOptions { journal: bounds, ..kept }]
    };
    let running = start(&database, tables()).await;
    let journal = running.journal(0).await;
    let mut reader = JournalTestReader::from_base(&journal);
    let body = "b".repeat(1 << 20);
    let mut end = Lsn::ZERO;
    for round in 0..20 {
        for id in 0..20 {
            let change = if round == 0 { SimChange::Insert } else { SimChange::Update };
            end = database.commit(0, vec![change(id, format!("{round} {body}"))]);
        }
        wait_until_reached(&journal, end).await;
        reader.read_on(&journal);
        let info = journal.info();
        // Entries that are not yet written stay in memory, which has a bound of its own.
        assert!(info.memory_bytes <= (4 << 20) + (66 << 20), "{info:?}");
    }
    assert_eq!(reader.rows(), database.rows_at(0, end));
    // Pruning waits for a base, which is made concurrently with the writer. Removing files waits
    // for the disk. A file holds 5 MiB.
    let files = || std::fs::read_dir(folder.path().join("t0")).unwrap().count();
    tokio::time::timeout(Duration::from_secs(60), async {
        for id in (0..20).cycle() {
            if files() <= 40 && journal.info().bytes <= 160 << 20 {
                break;
            }
            end = database.commit(0, vec![SimChange::Update(id, format!("more {body}"))]);
            wait_until_reached(&journal, end).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{} files, {:?}", files(), journal.info()));
    running.end().await;
    let again = start(&database, tables()).await;
    assert_eq!(JournalTestReader::from_base(&again.reached(0, end).await).rows(), database.rows_at(0, end));
    assert_eq!(again.copies(0), 0);
    again.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_is_never_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let database = SimDatabase::new(2);
    let running = start(&database, vec![kept("t0", folder.path()), sim_table("t1")]).await;
    let end = commit(&database, 0, 0, "kept");
    running.reached(0, end).await;
    running.journal(1).await;
    // The open file can still be written, but no new one can be created.
    std::fs::remove_dir_all(folder.path().join("t0")).unwrap();
    let body = "b".repeat(1 << 20);
    let table = running.table(0);
    tokio::time::timeout(Duration::from_secs(60), async {
        for id in 1.. {
            if matches!(table.status().phase, TablePhase::Failed { .. }) {
                break;
            }
            commit(&database, 0, id, &body);
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the table stops");
    let TablePhase::Failed { error } = table.status().phase else { panic!("it has failed") };
    assert!(error.contains("t0") && error.contains("No such file"), "{error}");
    let durable = table.status().releasable.expect("it holds back what is not kept").position();
    // The other table continues. PostgreSQL still keeps the changes that are not on disk.
    let end = commit(&database, 1, 1, "beside it");
    running.reached(1, end).await;
    assert!(database.acknowledged() <= durable && durable < end, "{} {durable} {end}", database.acknowledged());
    running.end().await;
}

/// The thing in the place of a table's folder when an engine starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FolderObstacle {
    AFile,
    AnotherTable,
    ANewerFormat,
}

impl FolderObstacle {
    /// Puts it at `place`. The table's own folder is at `own`.
    fn put(self, place: &Path, own: &Path, other: &Path) {
        match self {
            FolderObstacle::AFile => std::fs::write(place, "").unwrap(),
            FolderObstacle::AnotherTable => copy_files(other, place),
            FolderObstacle::ANewerFormat => {
                copy_files(own, place);
                let manifest = std::fs::read_to_string(place.join("manifest.json")).unwrap();
                let newer = manifest.replace("\"format\": 1", "\"format\": 99");
                assert_ne!(manifest, newer);
                std::fs::write(place.join("manifest.json"), newer).unwrap();
            }
        }
    }
}

/// A table without its folder is stopped, and its source follows the others and forgets what they
/// have. Once the folder is back, the table gets a new journal in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_opened_stops_its_table_alone() {
    for in_place in [FolderObstacle::AFile, FolderObstacle::AnotherTable, FolderObstacle::ANewerFormat] {
        let folder = tempfile::tempdir().unwrap();
        let database = SimDatabase::new(2);
        commit(&database, 0, 1, "kept");
        let tables = || vec![kept("t0", folder.path()), kept("t1", folder.path())];
        let first = start(&database, tables()).await;
        let reader = JournalTestReader::from_base(&first.reached(0, commit(&database, 0, 2, "kept, too")).await);
        let beside = commit(&database, 1, 1, "beside it");
        first.reached(1, beside).await;
        first.end().await;

        let (place, away) = (folder.path().join("t0"), folder.path().join("away"));
        std::fs::rename(&place, &away).unwrap();
        in_place.put(&place, &away, &folder.path().join("t1"));
        let Err(refused) = Engine::prepare(database.clone(), tables(), stopped_clock(CommitTime(0))).await else {
            panic!("{in_place:?}: a strict start succeeds")
        };
        assert!(refused.to_string().contains("t0"), "{in_place:?}: {refused}");
        let second = RunningEngine::run(Engine::new("", database.clone(), tables(), stopped_clock(CommitTime(0))));
        commit(&database, 0, 3, "while it was stopped");
        let beside = commit(&database, 1, 2, "beside it");
        second.reached(1, beside).await;
        assert_eq!(second.copies(1), 0, "{in_place:?}: the other table is resumed");
        let acknowledged = async || database.acknowledged() >= beside;
        eventually(PATIENCE, acknowledged).await.expect("the stopped table holds nothing up");
        let (table, error) = (second.table(0), second.phase(0).error().map(str::to_owned));
        let says = |text: &str| error.as_ref().is_some_and(|error| error.contains(text) && error.contains("t0"));
        let (state, text) = match in_place {
            FolderObstacle::AFile => ("retrying", "making the folder"),
            FolderObstacle::AnotherTable => ("failed", "holds the data of table"),
            FolderObstacle::ANewerFormat => ("failed", "is of format 99"),
        };
        assert!(second.phase(0).name() == state && says(text), "{in_place:?}: {:?}", second.phase(0));
        assert!(table.journal().is_none(), "{in_place:?}");
        if in_place != FolderObstacle::AFile {
            let answer = table.begin_reload("too early").await;
            assert!(matches!(answer, Err(ReloadError::Failed(_))), "{in_place:?}: {answer:?}");
            assert!(place.join("manifest.json").exists(), "{in_place:?}: nothing of another is removed");
            std::fs::remove_dir_all(&place).unwrap();
        } else {
            std::fs::remove_file(&place).unwrap();
        }
        std::fs::rename(&away, &place).unwrap();
        if state == "failed" {
            assert_eq!(table.begin_reload("the folder is back").await, Ok(()));
        }

        let end = commit(&database, 0, 4, "after it");
        let journal = second.reached(0, end).await;
        assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(0, end), "{in_place:?}");
        let asks = ResumeRequest { position: Some(reader.position), ..Default::default() };
        let answer = journal.resolve(&asks);
        assert!(matches!(answer, ResumeOutcome::Full(_)), "{in_place:?}: a reader of the old journal gets {answer:?}");
        let kept = async || table.journal().and_then(|j| j.store_status()).is_some_and(|s| s.durable.position() >= end);
        eventually(PATIENCE, kept).await.expect("the new journal is kept");
        second.end().await;

        let third = start(&database, tables()).await;
        let end = commit(&database, 0, 5, "at last");
        let journal = third.reached(0, end).await;
        assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(0, end), "{in_place:?}");
        assert_eq!((third.copies(0), third.copies(1)), (0, 0), "{in_place:?}");
        third.end().await;
    }
}

/// The same for snapshots: their folder is opened, and written, as soon as it can be. A journal in
/// another folder is not touched before.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_written_once_their_folder_can_be_opened() {
    for keeps_journal in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (place, journal) = (folder.path().join("snapshots"), folder.path().join("journal"));
        std::fs::write(&place, "").unwrap();
        let snapshots = SnapshotOptions {
            folder: place.clone(),
            format: SnapshotFormat::Native,
            interval: Duration::from_millis(1),
            keep_count: 3,
            age_max: None,
        };
        let database = SimDatabase::new(2);
        let store = keeps_journal.then(|| journal.clone());
        let options = TableOptions { snapshots: Some(snapshots), store, ..sim_table("t0") };
        let running = RunningEngine::run(Engine::new(
            "",
            database.clone(),
            vec![options, sim_table("t1")],
            stopped_clock(CommitTime(0)),
        ));
        let beside = commit(&database, 1, 1, "beside it");
        running.reached(1, beside).await;
        let is_stopped = async || running.phase(0).name() == "retrying";
        eventually(PATIENCE, is_stopped).await.unwrap();
        assert!(running.table(0).snapshots().is_none() && !journal.exists());
        std::fs::remove_file(&place).unwrap();
        let end = commit(&database, 0, 1, "after it");
        running.reached(0, end).await;
        let written = async || match running.table(0).snapshots() {
            Some(snapshots) => snapshots.list().iter().any(|snapshot| snapshot.position >= end),
            None => false,
        };
        eventually(PATIENCE, written).await.expect("a snapshot is written");
        let acknowledged = async || database.acknowledged() >= end;
        eventually(PATIENCE, acknowledged).await.expect("what is kept is acknowledged");
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_another_process_holds_for_a_moment_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("t0");
    std::fs::write(&place, "").unwrap();
    let database = SimDatabase::new(1);
    let running = RunningEngine::run(Engine::new(
        "",
        database.clone(),
        vec![kept("t0", folder.path())],
        stopped_clock(CommitTime(0)),
    ));
    eventually(PATIENCE, async || running.phase(0).name() == "retrying").await.unwrap();
    std::fs::remove_file(&place).unwrap();
    std::fs::create_dir(&place).unwrap();
    let held = std::fs::File::create(place.join("lock")).unwrap();
    held.lock().unwrap();
    let is_held = async || running.phase(0).error().is_some_and(|error| error.contains("in use by another"));
    eventually(PATIENCE, is_held).await.unwrap();
    assert_eq!(running.phase(0).name(), "retrying");
    drop(held);
    let end = commit(&database, 0, 1, "after it");
    let journal = running.reached(0, end).await;
    assert_eq!(JournalTestReader::from_base(&journal).rows(), database.rows_at(0, end));
    running.end().await;
}
