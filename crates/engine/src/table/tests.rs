//! A table as a state machine: events in, journal out.

use std::sync::Arc;

use laredo_core::{Cell, Column, CommitMark, KeyColumns, Schema, Sequence, TableState, TupleBuf, Xid};
use laredo_proto::batch::EntryAction;
use tokio::sync::watch;

use super::verification::VerifyPartError;
use super::*;
use crate::head::InstanceId;
use crate::journal::{Journal, JournalOptions};
use crate::pipeline::PipelineOptions;
use crate::source::{ColumnValues, SourceError, TablePartEvent, TableRequest, TransactionSnapshot};
use crate::spool::{RawChange, RelationShape, SpoolOptions, SpoolWriter};

mod definitions;
mod nested;

fn options() -> TableOptions {
    let folder = std::env::temp_dir();
    TableOptions {
        request: TableRequest { name: TableName::new("public", "t"), key_fields: Vec::new() },
        pipeline: PipelineOptions::default(),
        journal: JournalOptions {
            entries_max: 100_000,
            age_max: std::time::Duration::from_secs(3600),
            bytes_max: 1 << 30,
            memory_bytes_max: 1 << 28,
            folder: folder.clone(),
        },
        held_bytes_max: 1 << 30,
        instance: InstanceId("test".to_owned()),
        first_sequence: Sequence(5000),
        folder,
        store: None,
        snapshots: None,
        verify: None,
    }
}

fn table(options: TableOptions) -> (Table, watch::Receiver<Option<Journal>>) {
    let shared = SharedTableState::default();
    let (clock, journal): (Clock, _) = (Arc::new(|| CommitTime(0)), shared.journal.subscribe());
    (Table::new(options, clock, shared, SourceServer::default()), journal)
}

/// Returns a schema with `id` int8 (the key), and with columns of these names and types.
fn schema(others: &[(&str, u32)]) -> Arc<Schema> {
    let columns = [("id", 20)].iter().chain(others).map(|&(name, type_oid)| Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        type_name: String::new(),
        not_null: false,
        is_text: false,
    });
    Arc::new(Schema::new(columns.collect(), KeyColumns::new([0]), std::collections::BTreeMap::new()))
}

fn row(id: i64, body: &[u8]) -> TupleBuf {
    [Cell::Value(&id.to_be_bytes()), Cell::Value(body)].into_iter().collect()
}

/// Returns a snapshot that sees every transaction ID below `xid`.
fn below(xid: u64) -> TransactionSnapshot {
    TransactionSnapshot { xmin: Xid(xid), xmax: Xid(xid), in_progress: Vec::new(), server_started: String::new() }
}

fn begin(schema: &Arc<Schema>, snapshot: TransactionSnapshot) -> CopyEvent {
    CopyEvent::Begin { schema: schema.clone(), snapshot, rows_estimated: 0, bytes_estimated: 0 }
}

fn rows<'a>(rows: impl IntoIterator<Item = &'a TupleBuf>) -> CopyEvent {
    let bytes = rows.into_iter().flat_map(|row| {
        let bytes = row.as_ref().bytes();
        [&u32::try_from(bytes.len()).unwrap().to_ne_bytes(), bytes].concat()
    });
    CopyEvent::Rows(bytes.collect())
}

/// Returns a transaction whose ID and end are the same number.
fn commit<'a>(
    schema: &Schema,
    xid: u64,
    memory_bytes_max: usize,
    changes: impl IntoIterator<Item = RawChange<'a>>,
) -> TableCommit {
    let options = SpoolOptions { memory_bytes_max, folder: std::env::temp_dir() };
    let mut spool = SpoolWriter::new(Arc::new(options));
    let columns = schema.columns().iter().map(|c| (c.name.clone(), c.type_oid, c.type_modifier)).collect();
    spool.push_shape(&Arc::new(RelationShape { columns }));
    changes.into_iter().for_each(|change| spool.push(0, change).unwrap());
    TableCommit { xid: Xid(xid), end: Lsn(xid), committed_at: CommitTime(0), spool: spool.finish().unwrap() }
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_thousand_held_transactions_share_a_file() {
    let schema = schema(&[("body", 25)]);
    let (mut table, journal) = table(options());
    let before = open_files();
    let body = vec![b'x'; 64 * 1024];
    for xid in 1..=1000_u64 {
        let row = row(xid.cast_signed(), &body);
        // Some transactions come in their own file. The others leave memory once 32 MiB are full.
        let memory = if xid % 4 == 0 { 1024 } else { usize::MAX };
        table.on_commit(commit(&schema, xid, memory, [RawChange::Insert { new: row.as_ref() }])).unwrap();
    }
    let opened = open_files().saturating_sub(before);
    assert!(opened < 100, "{opened} files for a thousand held transactions");
    table.on_copy(begin(&schema, below(3))).unwrap();
    table.on_copy(rows(&[row(1, &body), row(2, &body)])).unwrap();
    table.on_copy(CopyEvent::End { inserted: Lsn(1000), definition: String::new(), is_streamed: false }).unwrap();
    let journal = journal.borrow().clone().expect("the copy is complete");
    assert_eq!((journal.info().base_rows, journal.head().position), (1000, Lsn(1000)));
    let live = table.lifecycle.served().unwrap();
    assert!(live.state.rows().all(|row| row.as_ref().cell(1) == Cell::Value(&body)));
}

#[test]
fn what_the_snapshot_sees_is_not_held() {
    let schema = schema(&[("body", 25)]);
    let (mut table, _journal) = table(options());
    let insert = |table: &mut Table, xid: u64| {
        let row = row(xid.cast_signed(), b"held");
        table.on_commit(commit(&schema, xid, 1024, [RawChange::Insert { new: row.as_ref() }])).unwrap()
    };
    let held = |table: &Table| table.lifecycle.copy().map_or(0, OngoingCopy::held_bytes);
    insert(&mut table, 1);
    assert!(held(&table) > 0, "nothing is known of a snapshot yet");
    table.on_copy(begin(&schema, below(10))).unwrap();
    assert_eq!(held(&table), 0, "held before it was known");
    insert(&mut table, 2);
    assert_eq!(held(&table), 0, "seen");
    insert(&mut table, 10);
    assert!(held(&table) > 0, "not seen");
    table.on_copy(CopyEvent::End { inserted: Lsn(20), definition: String::new(), is_streamed: false }).unwrap();
    insert(&mut table, 11);
    assert_eq!(held(&table), 0, "all rows are there: it is applied");
    assert!(!table.recent().admits(&below(11)), "should the copy come to nothing, the next one has to see it");
    table.on_progress(Lsn(20), None, CommitMark::default()).unwrap();
    assert_eq!(table.lifecycle.served().unwrap().state.len(), 2);
}

/// Returns a table that was copied with these rows, at position 10.
fn live(options: TableOptions, schema: &Arc<Schema>, of: &[TupleBuf]) -> (Table, Journal) {
    let (mut table, journal) = table(options);
    copy(&mut table, schema, below(10), of);
    table.on_progress(Lsn(10), None, CommitMark::default()).unwrap();
    let journal = journal.borrow().clone().expect("the copy is complete");
    (table, journal)
}

fn copy(table: &mut Table, schema: &Arc<Schema>, snapshot: TransactionSnapshot, of: &[TupleBuf]) {
    let inserted = Lsn(snapshot.xmax.0);
    table.on_copy(begin(schema, snapshot)).unwrap();
    table.on_copy(rows(of)).unwrap();
    table.on_copy(CopyEvent::End { inserted, definition: String::new(), is_streamed: false }).unwrap();
}

/// Returns the changes that readers receive after `after`.
fn published_actions(journal: &Journal, after: Sequence) -> Vec<EntryAction> {
    let mut cursor = journal.cursor(after);
    let mut actions = Vec::new();
    let mut schema = journal.schema();
    while let Some(piece) = cursor.next_piece().unwrap() {
        for frame in crate::journal::frames(piece.frames.clone()) {
            if let Some(next) = frame.batch.schema.clone() {
                schema = Arc::new(laredo_proto::schema::from_wire(next).unwrap());
            }
            let entries = laredo_proto::batch::BatchEntries::new(&frame.batch.entries, &schema);
            actions.extend(entries.map(|entry| entry.unwrap().action));
        }
    }
    actions
}

/// The next checksum shows a row that went wrong in the state: it differs from the checksum of the
/// rows that readers were sent.
#[test]
fn a_row_that_went_wrong_in_the_state_shows_in_the_checksum() {
    let (schema, new) = (schema(&[("body", 25)]), row(3, b"three"));
    for canary in [None].into_iter().chain(laredo_core::CanaryFault::ALL.map(Some)) {
        let of = [row(1, b"one"), row(2, b"two")];
        let (mut table, journal) = live(options(), &schema, &of);
        let mut readers = TableState::new(schema.clone(), &[], 0).unwrap();
        of.iter().for_each(|row| drop(readers.put(row.as_ref().to_tuple())));
        assert_eq!(journal.head().checksum, Some(readers.checksum()));
        assert!(canary.is_none_or(|canary| table.lifecycle.served_mut().unwrap().state.plant(canary)));
        table.on_commit(commit(&schema, 20, 1024, [RawChange::Insert { new: new.as_ref() }])).unwrap();
        table.on_progress(Lsn(20), None, CommitMark::default()).unwrap();
        table.writer().unwrap().publish().unwrap();
        readers.put(new.as_ref().to_tuple());
        let is_same = journal.head().checksum == Some(readers.checksum());
        assert_eq!(is_same, canary.is_none(), "{canary:?}");
    }
}

#[test]
fn an_insert_without_a_large_value_is_copied() {
    let schema = schema(&[("body", 25)]);
    let (mut table, journal) = live(options(), &schema, &[row(1, b"one")]);
    let head = journal.head();
    let incomplete: TupleBuf = [Cell::Value(&2_i64.to_be_bytes()), Cell::Unchanged].into_iter().collect();
    let insert = || [RawChange::Insert { new: incomplete.as_ref() }];
    assert_eq!(table.on_commit(commit(&schema, 20, 1024, insert())).unwrap(), FollowUpAction::Copy);
    assert!(published_actions(&journal, head.sequence).is_empty(), "a row that is not whole goes to nobody");
    // A copy that does not see the transaction yet is unusable.
    table.on_copy(begin(&schema, below(20))).unwrap();
    table.on_copy(rows(&[row(1, b"one")])).unwrap();
    assert_eq!(
        table.on_copy(CopyEvent::End { inserted: Lsn(20), definition: String::new(), is_streamed: false }).unwrap(),
        FollowUpAction::CopyLater
    );
    copy(&mut table, &schema, below(21), &[row(1, b"one"), row(2, b"large")]);
    table.on_progress(Lsn(30), None, CommitMark::default()).unwrap();
    let live = table.lifecycle.served().unwrap();
    assert!(
        live.state.get_like(row(2, b"large").as_ref()).is_some_and(|row| row.as_ref().cell(1) == Cell::Value(b"large"))
    );
    assert_eq!(
        published_actions(&journal, head.sequence),
        [EntryAction::Truncate, EntryAction::Insert, EntryAction::Insert]
    );
}

#[test]
fn a_column_that_goes_changes_all_rows_and_one_that_comes_changes_none() {
    type ColumnTypePairs = &'static [(&'static str, u32)];
    let text = ("body", 25);
    let cases: [(&str, ColumnTypePairs, &[EntryAction]); 4] = [
        ("retyped", &[("body", 1043)], &[EntryAction::Truncate, EntryAction::Insert]),
        ("renamed", &[("text", 25)], &[EntryAction::Truncate, EntryAction::Insert]),
        ("dropped", &[], &[EntryAction::Truncate, EntryAction::Insert]),
        ("added", &[("body", 25), ("more", 25)], &[]),
    ];
    for (what, columns, expected) in cases {
        let (mut table, journal) = live(options(), &schema(&[text]), &[row(1, b"one")]);
        let head = journal.head();
        assert_eq!(table.on_moved(owed(what)).unwrap(), FollowUpAction::Copy);
        let cells = [Cell::Value(&1_i64.to_be_bytes()), Cell::Value(b"one"), Cell::Null];
        let row: TupleBuf = cells.into_iter().take(1 + columns.len()).collect();
        copy(&mut table, &schema(columns), below(20), &[row]);
        table.on_progress(Lsn(20), None, CommitMark::default()).unwrap();
        assert_eq!(published_actions(&journal, head.sequence), expected, "{what}");
        assert_eq!(*journal.schema(), *schema(columns), "{what}");
    }
}

#[test]
fn a_copy_that_could_not_be_published_can_be_made_again() {
    let schema = schema(&[("body", 25)]);
    let folder = tempfile::tempdir().unwrap();
    let mut options = options();
    options.journal.folder = folder.path().to_owned();
    options.journal.memory_bytes_max = 0;
    let (mut table, journal) = live(options, &schema, &[row(1, b"one")]);
    std::fs::remove_dir(folder.path()).unwrap();
    table.on_moved(owed("rewritten")).unwrap();
    table.on_copy(begin(&schema, below(19))).unwrap();
    table.on_copy(rows(&[row(1, b"two")])).unwrap();
    table.on_copy(CopyEvent::End { inserted: Lsn(20), definition: String::new(), is_streamed: false }).unwrap();
    let held = row(2, b"held");
    table.on_commit(commit(&schema, 19, 1024, [RawChange::Insert { new: held.as_ref() }])).unwrap();
    let failed =
        table.on_progress(Lsn(20), None, CommitMark::default()).expect_err("there is no folder for the journal");
    table.stop(&failed, None);
    std::fs::create_dir(folder.path()).unwrap();
    assert_eq!(table.on_moved(owed("there is a folder")).unwrap(), FollowUpAction::Copy);
    let head = journal.head();
    copy(&mut table, &schema, below(30), &[row(1, b"three")]);
    table.on_progress(Lsn(30), None, CommitMark::default()).unwrap();
    assert_eq!(published_actions(&journal, head.sequence), [EntryAction::Truncate, EntryAction::Insert]);
}

#[test]
fn a_copy_after_a_failure_has_to_see_what_was_held() {
    let schema = schema(&[("body", 25)]);
    let (mut table, _journal) = table(options());
    let held = row(2, b"held");
    table.on_commit(commit(&schema, 7, 1024, [RawChange::Insert { new: held.as_ref() }])).unwrap();
    table.stop(&TableError::Source("no key".to_owned()), None);
    assert!(!table.recent().admits(&below(7)) && table.recent().admits(&below(8)));
}

/// A database that does not change: it is empty, and copied at position 10.
struct UnchangingSource(Arc<Schema>);

impl crate::source::Source for UnchangingSource {
    async fn prepare(&self, _: &[TableRequest]) -> Result<crate::source::SourceServer, SourceError> {
        Ok(crate::source::SourceServer::default())
    }

    async fn resume(
        &self,
        tables: &[Option<crate::source::KnownTable>],
    ) -> Result<Vec<crate::source::ResumeDecision>, SourceError> {
        Ok(vec![crate::source::ResumeDecision::Follow; tables.len()])
    }

    async fn stream(
        &self,
        _: tokio::sync::mpsc::Sender<crate::source::SourceEvent>,
        _: crate::source::AcknowledgedPosition,
        _: crate::source::SourceStateReporter,
    ) -> Result<(), SourceError> {
        Ok(())
    }

    async fn written(&self) -> Result<Lsn, SourceError> {
        Ok(Lsn(10))
    }

    async fn check_more(
        &self,
        _: &[TableRequest],
        _: &[TableRequest],
        _: bool,
    ) -> Result<Vec<Arc<Schema>>, SourceError> {
        Err(SourceError::Transient("it has one table".to_owned()))
    }

    async fn read_server(&self) -> Result<SourceServer, SourceError> {
        unreachable!("no table is added")
    }

    fn add_table(&self, _: TableRequest) -> crate::source::TableIndex {
        crate::source::TableIndex(1)
    }

    fn remove_table(&self, _: crate::source::TableIndex) {}

    async fn copy(
        &self,
        _: crate::source::TableIndex,
        _: Option<&str>,
        _: crate::source::SnapshotCheck,
        rows: tokio::sync::mpsc::Sender<CopyEvent>,
    ) -> Result<(), SourceError> {
        for event in [
            begin(&self.0, below(10)),
            CopyEvent::End { inserted: Lsn(10), definition: String::new(), is_streamed: false },
        ] {
            rows.send(event).await.expect("the table waits for its copy");
        }
        Ok(())
    }

    async fn inspect(
        &self,
        _: crate::source::TableIndex,
        _: tokio::sync::mpsc::Receiver<crate::source::TablePartOrder>,
        _: tokio::sync::mpsc::Sender<crate::source::TablePartEvent>,
    ) -> Result<(), SourceError> {
        Err(SourceError::Definite(vec!["it stands still".to_owned()]))
    }

    fn retention(&self) -> watch::Receiver<crate::retention::WalRetention> {
        watch::Sender::default().subscribe()
    }

    async fn reset(&self, _: bool) -> Result<(), SourceError> {
        Err(SourceError::Definite(vec!["it stands still".to_owned()]))
    }
}

/// The worker and the test share one thread. Between two looks the worker takes as many events as
/// tokio lets a task take at once, about a hundred.
#[tokio::test]
async fn a_queue_that_is_never_empty_hides_nothing() {
    let schema = schema(&[("body", 25)]);
    let (table, _journal) = table(options());
    let status = table.shared_status();
    let (events, queue) = tokio::sync::mpsc::unbounded_channel();
    let room = Arc::new(tokio::sync::Semaphore::new(0));
    let (_commands, commands) = tokio::sync::mpsc::channel(1);
    let (progress, latest) = watch::channel(StreamProgress::default());
    let inbox = TableInbox { events: queue, progress: latest, commands };
    let (source, index) = (Arc::new(UnchangingSource(schema.clone())), crate::source::TableIndex(0));
    let worker = TableWorker::new(table, index, source, inbox, CopyTurns::new(4), VerifyTurns::default());
    let look = async {
        progress.send_replace(StreamProgress { position: Lsn(10), ..StreamProgress::default() });
        while status.lock().phase != TablePhase::Live {
            tokio::task::yield_now().await;
        }
        for xid in 11..=3010_u64 {
            let row = row(xid.cast_signed(), b"row");
            let commit = commit(&schema, xid, 1024, [RawChange::Insert { new: row.as_ref() }]);
            let _room = room.clone().try_acquire_many_owned(0).unwrap();
            events.send(QueuedTableEvent { event: TableEvent::Commit(commit), _room }).unwrap();
        }
        progress.send_replace(StreamProgress { position: Lsn(5000), after: 3000, ..StreamProgress::default() });
        let mut seen = std::collections::BTreeMap::new();
        while !seen.contains_key(&Lsn(5000)) {
            let now = status.lock().clone();
            seen.insert(now.position, now.rows);
            tokio::task::yield_now().await;
        }
        seen
    };
    let (_removal, is_removed) = tokio::sync::watch::channel(false);
    let seen = tokio::select! {
        seen = look => seen,
        () = worker.run(is_removed) => panic!("the stream is not closed"),
    };
    assert_eq!(seen[&Lsn(5000)], 3000, "no progress is told before the commits that it follows");
    assert!(seen.range(Lsn(100)..Lsn(3000)).next().is_some(), "seen on the way: {seen:?}");
}

/// Returns a table whose copy was requested at position 10. Three transactions commit meanwhile,
/// and the copy sees 12 and 14 of them.
fn copied_meanwhile(of: &[TupleBuf], is_streamed: bool, restarts: bool) -> (Table, Journal, Sequence) {
    let schema = schema(&[("body", 25)]);
    let (mut table, journal) = live(options(), &schema, &[row(1, b"one")]);
    let at = journal.head().sequence;
    table.on_moved(owed("rewritten")).unwrap();
    let (new, newer, old) = (row(2, b"two"), row(2, b"2"), row(1, b""));
    table.on_commit(commit(&schema, 12, 1024, [RawChange::Insert { new: new.as_ref() }])).unwrap();
    if restarts {
        table.on_restarted("slot lost", None).unwrap();
    }
    let snapshot =
        TransactionSnapshot { xmin: Xid(13), xmax: Xid(15), in_progress: vec![Xid(13)], server_started: String::new() };
    table.on_copy(begin(&schema, snapshot)).unwrap();
    table.on_copy(rows(of)).unwrap();
    table.on_commit(commit(&schema, 13, 1024, [RawChange::Delete { old: old.as_ref() }])).unwrap();
    table.on_commit(commit(&schema, 14, 1024, [RawChange::Update { old: None, new: newer.as_ref() }])).unwrap();
    table.on_copy(CopyEvent::End { inserted: Lsn(16), definition: String::new(), is_streamed }).unwrap();
    table.on_progress(Lsn(20), None, CommitMark::default()).unwrap();
    (table, journal, at)
}

#[test]
fn a_table_that_failed_after_a_fork_begins_a_new_journal_all_the_same() {
    let schema = schema(&[("body", 25)]);
    let (mut table, journal) = live(options(), &schema, &[row(1, b"one")]);
    let fork = Fork { common: Lsn(4), abandoned: Lsn(100), is_certain: true };
    table.on_forked(SourceServer::default(), &fork, "its storage was put back").unwrap();
    table.stop(&TableError::Source("it is not published".to_owned()), None);
    assert_eq!(table.on_moved(owed("it can be followed again")).unwrap(), FollowUpAction::Copy);
    // The new history is behind the old one.
    copy(&mut table, &schema, below(5), &[row(3, b"new")]);
    table.on_progress(Lsn(6), None, CommitMark::default()).unwrap();
    let state = &table.lifecycle.served().unwrap().state;
    assert_eq!((table.status.lock().phase.clone(), state.len()), (TablePhase::Live, 1));
    assert_ne!(table.storage().watch_journal().borrow().as_ref().unwrap().instance(), journal.instance());
}

/// The promotion changes the name of the journal that the fork has announced.
#[test]
fn a_promotion_between_a_fork_and_its_copy_does_not_stop_a_kept_journal() {
    let (kept, schema) = (tempfile::tempdir().unwrap(), schema(&[("body", 25)]));
    let clock: Clock = Arc::new(|| CommitTime(0));
    for forks in 1..=2 {
        let store = Some(kept.path().join(forks.to_string()));
        let (mut table, journal) = table(TableOptions { store, ..options() });
        table.storage.open_missing_folders(&clock).unwrap();
        copy(&mut table, &schema, below(10), &[row(1, b"one")]);
        table.on_progress(Lsn(10), None, CommitMark::default()).unwrap();
        let before = journal.borrow().clone().unwrap().instance().clone();
        let fork = Fork { common: Lsn(4), abandoned: Lsn(100), is_certain: true };
        for _ in 0..forks {
            table.on_forked(SourceServer::default(), &fork, "its storage was put back").unwrap();
        }
        let mut promoted = SourceServer::default();
        promoted.identity.timeline = 2;
        table.on_promoted(promoted).unwrap();
        copy(&mut table, &schema, below(5), &[row(3, b"new")]);
        table.on_progress(Lsn(6), None, CommitMark::default()).unwrap();
        assert_eq!(table.lifecycle.served().unwrap().state.len(), 1);
        let after = journal.borrow().clone().unwrap();
        assert_ne!(*after.instance(), before);
        assert!(after.base().rows() == 1 && table.storage.store_failure().is_none());
    }
}

/// Returns a snapshot of a run of PostgreSQL.
fn in_run(started: &str, xid: u64) -> TransactionSnapshot {
    TransactionSnapshot { server_started: started.to_owned(), ..below(xid) }
}

#[test]
fn a_copy_is_used_only_with_a_stream_of_the_same_run_of_postgresql() {
    let schema = schema(&[("body", 25)]);
    let (mut table, journal) = table(options());
    // Copies may begin before the stream has its first connection.
    copy(&mut table, &schema, in_run("first", 10), &[row(1, b"seen")]);
    assert_eq!(table.on_connected("first".to_owned()), FollowUpAction::Nothing);
    assert_eq!(table.on_connected("second".to_owned()), FollowUpAction::Copy);
    table.on_progress(Lsn(20), None, CommitMark::default()).unwrap();
    assert!(journal.borrow().is_none(), "the rows that the first run showed may never have been kept");
    // Events of the first run's copy that were on their way, and a copy ahead of the stream.
    for started in ["first", "third"] {
        let action = table.on_copy(begin(&schema, in_run(started, 10))).unwrap();
        assert_eq!(action, FollowUpAction::CopyLater, "{started}");
    }
    copy(&mut table, &schema, in_run("second", 10), &[row(2, b"kept")]);
    assert_eq!(table.on_connected("second".to_owned()), FollowUpAction::Nothing, "only the connection broke");
    table.on_progress(Lsn(30), None, CommitMark::default()).unwrap();
    assert_eq!(journal.borrow().as_ref().unwrap().base().rows(), 1);
    let state = &table.lifecycle.served().unwrap().state;
    assert!(state.rows().all(|kept| kept.as_ref().bytes() == row(2, b"kept").as_ref().bytes()));
}

#[test]
fn a_part_of_a_verification_is_compared_only_in_the_run_in_which_it_was_read() {
    let schema = schema(&[("body", 25)]);
    let (mut table, _journal) = live(options(), &schema, &[row(1, b"one")]);
    table.on_connected("first".to_owned());
    let terms = crate::verify::VerifyTerms { bytes_per_second: None, heals: true };
    table.live_mut().unwrap().begin_verification(&terms);
    let part = |started: &str| TablePartEvent::Begin {
        schema: schema.clone(),
        snapshot: in_run(started, 20),
        inserted: Lsn(20),
        blocks: 1,
    };
    for (read_in, connected_to) in [("first", "second"), ("first", "second"), ("third", "second")] {
        table.live_mut().unwrap().begin_part().unwrap();
        let begun = table.on_part(part(read_in));
        table.on_connected(connected_to.to_owned());
        let lost = begun.and_then(|()| table.on_part(TablePartEvent::Rows(Vec::new())));
        assert!(matches!(lost, Err(VerifyPartError::Retry(_))), "{read_in}, {connected_to}: {lost:?}");
        table.live_mut().unwrap().drop_part();
    }
    table.live_mut().unwrap().begin_part().unwrap();
    table.on_part(part("second")).unwrap();
    table.on_connected("second".to_owned());
    table.on_part(TablePartEvent::Rows(Vec::new())).unwrap();
}

/// Returns a possible fork, as the source reports it after a restart of PostgreSQL with the slot
/// gone.
fn possible_fork() -> Fork {
    Fork { common: Lsn::ZERO, abandoned: Lsn(100), is_certain: false }
}

#[test]
fn a_copy_does_not_wait_for_transactions_that_a_lost_history_had() {
    let schema = schema(&[("body", 25)]);
    let new = row(2, b"lost");
    for (fork, is_admitted) in [(Some(possible_fork()), true), (None, false)] {
        let (mut table, _journal) = live(options(), &schema, &[row(1, b"one")]);
        table.on_commit(commit(&schema, 12, 1024, [RawChange::Insert { new: new.as_ref() }])).unwrap();
        table.on_restarted("slot gone", fork.as_ref()).unwrap();
        let earlier =
            TransactionSnapshot { xmin: Xid(11), xmax: Xid(11), in_progress: vec![], server_started: String::new() };
        assert_eq!(table.recent().admits(&earlier), is_admitted);
    }
}

#[test]
fn what_was_held_of_a_lost_history_is_not_put_on_the_next_copy() {
    let schema = schema(&[("body", 25)]);
    let (mut table, _journal) = live(options(), &schema, &[row(1, b"one")]);
    table.on_moved(owed("rewritten")).unwrap();
    let lost = row(2, b"lost");
    table.on_commit(commit(&schema, 12, 1024, [RawChange::Insert { new: lost.as_ref() }])).unwrap();
    table.on_restarted("slot gone", Some(&possible_fork())).unwrap();
    let snapshot =
        TransactionSnapshot { xmin: Xid(11), xmax: Xid(11), in_progress: vec![], server_started: String::new() };
    table.on_copy(begin(&schema, snapshot)).unwrap();
    table.on_copy(rows(&[row(1, b"one"), row(3, b"new")])).unwrap();
    table.on_copy(CopyEvent::End { inserted: Lsn(16), definition: String::new(), is_streamed: false }).unwrap();
    table.on_progress(Lsn(20), None, CommitMark::default()).unwrap();
    let state = &table.lifecycle.served().unwrap().state;
    assert_eq!((table.status.lock().phase.clone(), state.len()), (TablePhase::Live, 2));
    assert!(state.get_like(lost.as_ref()).is_none());
}

fn resolve(journal: &Journal, position: u64) -> crate::journal::ResumeOutcome {
    let position = Some(Lsn(position));
    journal.resolve(&crate::journal::ResumeRequest { position, ..Default::default() })
}

#[test]
fn explained_differences_are_journaled_transaction_by_transaction() {
    let (table, journal, at) = copied_meanwhile(&[row(1, b"one"), row(2, b"2")], true, false);
    assert_eq!(published_actions(&journal, at), [EntryAction::Insert, EntryAction::Delete, EntryAction::Update]);
    for (position, left) in [(11, 3), (12, 2), (13, 1), (14, 0), (16, 0), (20, 0)] {
        let crate::journal::ResumeOutcome::Delta(at, _) = resolve(&journal, position) else {
            panic!("{position} is a position like any other")
        };
        assert_eq!(published_actions(&journal, at).len(), left, "{position}");
    }
    let live = table.lifecycle.served().unwrap();
    assert_eq!(
        live.state.rows().map(|row| row.as_ref().to_tuple()).collect::<Vec<_>>(),
        [row(2, b"2").as_ref().to_tuple()]
    );
    assert_eq!(table.status.lock().copies, 2);
}

#[test]
fn what_the_stream_does_not_explain_is_one_transaction() {
    type UnexplainedCopyCase<'a> = (&'a str, &'a [TupleBuf], bool, bool, &'a [EntryAction]);
    let explained = [row(1, b"one"), row(2, b"2")];
    let cases: [UnexplainedCopyCase<'_>; 4] = [
        (
            "another row",
            &[row(1, b"one"), row(2, b"2"), row(3, b"3")],
            true,
            false,
            &[EntryAction::Delete, EntryAction::Insert],
        ),
        ("a row less", &[row(1, b"one")], true, false, &[EntryAction::Delete]),
        ("another definition", &explained, false, false, &[EntryAction::Delete, EntryAction::Insert]),
        ("a gap", &explained, true, true, &[EntryAction::Delete, EntryAction::Insert]),
    ];
    for (what, of, is_streamed, restarts, least) in cases {
        let (_, journal, at) = copied_meanwhile(of, is_streamed, restarts);
        let actions = published_actions(&journal, at);
        assert!(actions.starts_with(least), "{what}: {actions:?}");
        for position in [11, 14, 19] {
            assert!(
                matches!(resolve(&journal, position), crate::journal::ResumeOutcome::Full(_)),
                "{what}: {position}"
            );
        }
    }
}

/// Published one by one, the transactions would push each other out of the journal before a client
/// has read them.
#[test]
fn more_than_the_journal_holds_is_one_transaction() {
    let schema = schema(&[("body", 25)]);
    let mut options = options();
    options.journal.entries_max = 8;
    for (commits, is_one) in [(2, false), (3, true)] {
        let (mut table, journal) = live(options.clone(), &schema, &[row(1, b"one")]);
        table.on_moved(owed("rewritten")).unwrap();
        let mut rows_copied = vec![row(1, b"one")];
        for xid in 11..11 + commits {
            let new = row(xid, b"new");
            table
                .on_commit(commit(&schema, xid.cast_unsigned(), 1024, [RawChange::Insert { new: new.as_ref() }]))
                .unwrap();
            rows_copied.push(new);
        }
        table.on_copy(begin(&schema, below(15))).unwrap();
        table.on_copy(rows(&rows_copied)).unwrap();
        table.on_copy(CopyEvent::End { inserted: Lsn(16), definition: String::new(), is_streamed: true }).unwrap();
        table.on_progress(Lsn(20), None, CommitMark::default()).unwrap();
        let inside = matches!(resolve(&journal, 11), crate::journal::ResumeOutcome::Full(_));
        assert_eq!(inside, is_one, "{commits} commits");
    }
}

#[test]
fn differences_come_after_everything_that_was_journaled() {
    let schema = schema(&[("body", 25)]);
    let (mut table, journal) = live(options(), &schema, &[row(1, b"before")]);
    // The stream passes a change that is not announced. The change is noticed later.
    table.on_progress(Lsn(15), None, CommitMark::default()).unwrap();
    table.on_moved(owed("rewritten")).unwrap();
    copy(&mut table, &schema, below(12), &[row(1, b"after")]);
    table.on_progress(Lsn(15), None, CommitMark::default()).unwrap();
    assert_eq!(journal.head().position, Lsn(15), "known to readers, who would go on behind it");
    table.on_progress(Lsn(16), None, CommitMark::default()).unwrap();
    let request = crate::journal::ResumeRequest { position: Some(Lsn(15)), ..Default::default() };
    let crate::journal::ResumeOutcome::Delta(at, _) = journal.resolve(&request) else {
        panic!("the journal has it all")
    };
    assert_eq!((journal.head().position, published_actions(&journal, at)), (Lsn(16), vec![EntryAction::Update]));
}

fn owed(reason: &str) -> OwedCopy {
    OwedCopy { reason: reason.to_owned(), definition: None }
}

/// Two definition changes are seen while a copy is made under "defined": the newer one counts. A
/// change without a definition is newer than any other.
#[test]
fn a_copy_that_ends_with_the_definition_that_was_seen_is_the_one_that_was_owed() {
    let schema = schema(&[("body", 25)]);
    let (defined, another) = (Some("defined"), Some("another"));
    for (seen, then, owes) in [
        (defined, defined, false),
        (another, defined, false),
        (defined, another, true),
        (None, defined, true),
        (defined, None, true),
    ] {
        let (mut table, _journal) = live(options(), &schema, &[row(1, b"one")]);
        let moved = |definition: Option<&str>| {
            let definition = definition.map(str::to_owned);
            OwedCopy { definition, ..owed("seen") }
        };
        assert_eq!(table.on_moved(moved(seen)).unwrap(), FollowUpAction::Copy);
        for seen in [seen, then] {
            assert_eq!(table.on_moved(moved(seen)).unwrap(), FollowUpAction::Nothing);
        }
        let mut end = |position: u64| {
            table.on_copy(begin(&schema, below(position))).unwrap();
            let definition = "defined".to_owned();
            table.on_copy(CopyEvent::End { inserted: Lsn(position), definition, is_streamed: false }).unwrap();
            table.on_progress(Lsn(position), None, CommitMark::default()).unwrap()
        };
        // Rows of a definition that is known to be outdated are not shown.
        let expected = match (owes, seen.and(then)) {
            (false, _) => FollowUpAction::Nothing,
            (true, Some(_)) => FollowUpAction::CopyLater,
            (true, None) => FollowUpAction::Copy,
        };
        assert_eq!(end(20), expected, "{seen:?}, {then:?}");
        if owes {
            assert_eq!(end(30), FollowUpAction::Nothing, "owed once");
        }
    }
}

#[test]
fn rows_with_another_value_than_the_new_definition_has_are_copied() {
    let schema = schema(&[("mood", 25)]);
    for (column, values, copies) in [
        ("mood", vec!["sad", "ok", "new"], false),
        ("mood", vec!["ok", "new"], true),
        ("mood", vec![], true),
        ("gone", vec!["sad", "ok"], true),
    ] {
        let (mut table, _journal) = live(options(), &schema, &[row(1, b"sad"), row(2, b"ok")]);
        let values = values.into_iter().map(|label| label.as_bytes().to_vec()).collect();
        let asked = Redefinition {
            from: Lsn(20),
            definition: "newer".to_owned(),
            values: vec![ColumnValues { column: column.to_owned(), values }],
        };
        assert_eq!(table.on_redefined(asked).unwrap(), FollowUpAction::Nothing, "not before the stream is there");
        // The values of the first definition are still checked when a second one follows.
        let plain = Redefinition { from: Lsn(21), definition: "newest".to_owned(), values: Vec::new() };
        table.on_redefined(plain).unwrap();
        assert_eq!(table.on_progress(Lsn(20), None, CommitMark::default()).unwrap(), FollowUpAction::Nothing);
        let wants = table.on_progress(Lsn(21), None, CommitMark::default()).unwrap();
        assert_eq!(wants, if copies { FollowUpAction::Copy } else { FollowUpAction::Nothing }, "{column}");
        if !copies {
            assert_eq!(table.copied_under().as_deref(), Some("newest"));
        }
    }
}

#[test]
fn labels_that_are_seen_while_a_finished_copy_waits_owe_another_copy() {
    let schema = schema(&[("mood", 25)]);
    let (mut table, _journal) = live(options(), &schema, &[row(1, b"sad")]);
    table.on_moved(owed("ordered")).unwrap();
    let mut copy_at = |position: u64, definition: &str, seen: Option<Redefinition>| {
        table.on_copy(begin(&schema, below(position))).unwrap();
        table.on_copy(rows(&[row(1, b"sad"), row(2, b"renamed since")])).unwrap();
        let definition = definition.to_owned();
        table.on_copy(CopyEvent::End { inserted: Lsn(position), definition, is_streamed: false }).unwrap();
        seen.into_iter().for_each(|seen| assert_eq!(table.on_redefined(seen).unwrap(), FollowUpAction::Nothing));
        table.on_progress(Lsn(position + 5), None, CommitMark::default()).unwrap()
    };
    let values = vec![ColumnValues { column: "mood".to_owned(), values: [b"sad".to_vec()].into() }];
    let seen = Redefinition { from: Lsn(24), definition: "after".to_owned(), values };
    assert_eq!(copy_at(25, "before", Some(seen.clone())), FollowUpAction::CopyLater);
    // This copy has the definition that was seen.
    assert_eq!(copy_at(35, "after", Some(seen)), FollowUpAction::Nothing);
}
