//! A damaged stream never damages a table state. Every table has exactly the rows of the accepted
//! transactions, up to the first that does not fit. From there on the table asks for a copy, and
//! readers keep their rows.
//!
//! The test takes three seconds. With `LAREDO_TEST_FULL=1` it takes a minute.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use laredo_core::{Cell, Column, CommitTime, KeyColumns, Lsn, Schema, TableState, TupleRef, Xid};
use laredo_engine::journal::{Journal, frames};
use laredo_engine::retention::WalRetention;
use laredo_engine::source::{
    AcknowledgedPosition, CopyEvent, KnownTable, ResumeDecision, SnapshotCheck, Source, SourceError, SourceEvent,
    SourceServer, SourceStateReporter, TableIndex, TablePartEvent, TablePartOrder, TableRequest, TransactionSnapshot,
};
use laredo_engine::spool::{RawChange, RelationShape, Spool, SpoolEntry};
use laredo_engine::{TableHandle, TablePhase};
use laredo_proto::batch::BatchEntries;
use laredo_testkit::{RunningEngine, eventually, is_full, sim_table, stopped_clock};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, watch};

use crate::hostile::recording::{RecordedMessages, TABLES, assembler, damage, record};

const PATIENCE: Duration = Duration::from_secs(60);
/// A position before the whole stream.
const BEGIN: Lsn = Lsn(1);
/// A position after the whole stream.
const END: Lsn = Lsn(u64::MAX);

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_stream_leaves_every_state_at_a_commit_that_was_sent() {
    let recordings = record();
    let schemas: Vec<[Arc<Schema>; 2]> = recordings.iter().map(schemas_of).collect();
    let until = Instant::now() + Duration::from_secs(if is_full() { 60 } else { 3 });
    let (mut whole, mut stopped, mut applied) = (0_u64, 0_u64, 0_u64);
    for seed in 0.. {
        if Instant::now() > until && whole > 5 && stopped > 5 {
            break;
        }
        assert!(seed < 5000 || (whole > 5 && stopped > 5), "{whole} tables followed to the end, {stopped} stopped");
        let mut rng = StdRng::seed_from_u64(seed);
        let which = rng.random_range(0..recordings.len());
        let events = || damaged_events(&recordings[which], seed);
        let states = [0, 1].map(|table| expected(events(), table, &schemas[which][table]));
        // The seed alone reproduces a failure.
        for outcome in compare(events(), &states, &schemas[which], seed).await {
            match outcome {
                PlayOutcome::Whole => whole += 1,
                PlayOutcome::Stopped => stopped += 1,
            }
        }
        applied += states.iter().map(|state| state.commits).sum::<u64>();
    }
    assert!(applied > 100, "{applied} transactions alone were applied");
    println!("{whole} tables followed to the end, {stopped} stopped, {applied} transactions");
}

/// Returns the events that an assembler makes of a stream with a few damaged places.
fn damaged_events(recording: &RecordedMessages, seed: u64) -> VecDeque<SourceEvent> {
    let mut rng = StdRng::seed_from_u64(seed + 1_000_000);
    let mut messages = recording.clone();
    for _ in 0..rng.random_range(0..4) {
        damage(&mut messages, &mut rng);
    }
    let (mut assembler, mut events) = (assembler(), VecDeque::new());
    for message in &messages {
        if assembler.take_message(message, &mut events).is_err() {
            // Continue as after a lost connection.
            assembler.connected(assembler.position(), Xid(1000));
        }
    }
    events
}

/// Returns the tables' schemas as the stream first announces them. The key is the first column.
fn schemas_of(recording: &RecordedMessages) -> [Arc<Schema>; 2] {
    let (mut assembler, mut events) = (assembler(), VecDeque::new());
    recording.iter().for_each(|message| assembler.take_message(message, &mut events).unwrap());
    let mut shapes: BTreeMap<usize, Arc<RelationShape>> = BTreeMap::new();
    for event in events {
        let SourceEvent::Commit(commit) = event else { continue };
        for (table, mut spool) in commit.tables {
            let read = spool.for_each_entry::<std::io::Error>(|entry| {
                if let SpoolEntry::Shape(shape) = entry {
                    shapes.entry(table.0).or_insert_with(|| shape.clone());
                }
                Ok(())
            });
            read.unwrap();
        }
    }
    [0, 1].map(|table| {
        let columns = shapes[&table].columns.iter().map(|(name, type_oid, type_modifier)| Column {
            name: name.clone(),
            type_oid: *type_oid,
            type_modifier: *type_modifier,
            type_name: String::new(),
            not_null: false,
            is_text: false,
        });
        Arc::new(Schema::new(columns.collect(), KeyColumns::new([0]), BTreeMap::new()))
    })
}

type RowCells = Vec<Option<Vec<u8>>>;

/// The rows that a table must hold, computed without the engine and identified by their first cell.
#[derive(Debug, Default, PartialEq)]
struct ExpectedTable {
    rows: BTreeMap<Option<Vec<u8>>, RowCells>,
    commits: u64,
    /// True if a transaction did not fit.
    is_stopped: bool,
}

fn expected(events: VecDeque<SourceEvent>, table: usize, schema: &Schema) -> ExpectedTable {
    let mut state = ExpectedTable::default();
    for event in events {
        match event {
            SourceEvent::Commit(commit) => {
                let part = commit.tables.into_iter().find(|(index, _)| index.0 == table);
                let Some((_, mut spool)) = part else { continue };
                match spool.fits(schema).then(|| after(state.rows.clone(), &mut spool)).flatten() {
                    Some(rows) => (state.rows, state.commits) = (rows, state.commits + 1),
                    None => state.is_stopped = true,
                }
            }
            SourceEvent::Moved { table: moved, .. } => state.is_stopped |= moved.0 == table,
            _ => {}
        }
        if state.is_stopped {
            break;
        }
    }
    state
}

/// Returns the rows after a transaction, or `None` if it does not fit.
fn after(
    mut rows: BTreeMap<Option<Vec<u8>>, RowCells>,
    spool: &mut Spool,
) -> Option<BTreeMap<Option<Vec<u8>>, RowCells>> {
    let key = |row: TupleRef<'_>| match row.cell(0) {
        Cell::Value(bytes) => Some(Some(bytes.to_vec())),
        Cell::Null => Some(None),
        Cell::Unchanged => None,
    };
    let mut fits = true;
    let read = spool.for_each_entry::<std::io::Error>(|entry| {
        let SpoolEntry::Change(change) = entry else { return Ok(()) };
        let mut apply = || {
            match change {
                RawChange::Insert { new } => {
                    let new = filled(new, None)?;
                    rows.insert(new.first()?.clone(), new).is_none().then_some(())?;
                }
                RawChange::Update { old, new } => {
                    let current = rows.remove(&key(old.unwrap_or(new))?)?;
                    let new = filled(new, Some(&current))?;
                    rows.insert(new.first()?.clone(), new).is_none().then_some(())?;
                }
                RawChange::Delete { old } => drop(rows.remove(&key(old)?)?),
                RawChange::Truncate => rows.clear(),
            }
            Some(())
        };
        fits = fits && apply().is_some();
        Ok(())
    });
    read.unwrap();
    fits.then_some(rows)
}

/// Returns a row's cells. Unchanged cells are taken from the previous row.
fn filled(row: TupleRef<'_>, before: Option<&RowCells>) -> Option<RowCells> {
    let cell = |(at, cell): (usize, Cell<'_>)| match cell {
        Cell::Null => Some(None),
        Cell::Value(bytes) => Some(Some(bytes.to_vec())),
        Cell::Unchanged => before?.get(at).cloned(),
    };
    row.cells().enumerate().map(cell).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum PlayOutcome {
    Whole,
    Stopped,
}

/// Runs an engine over the events, and compares the rows of its readers with the expected ones.
async fn compare(
    events: VecDeque<SourceEvent>,
    expected: &[ExpectedTable; 2],
    schemas: &[Arc<Schema>; 2],
    seed: u64,
) -> [PlayOutcome; 2] {
    let (go, may_go) = watch::channel(false);
    let copied = [AtomicBool::new(false), AtomicBool::new(false)];
    let source = PlayedSource { events: Mutex::new(events), schemas: schemas.clone(), copied, may_go };
    let tables = TABLES.map(|name| sim_table(name.trim_start_matches("public."))).to_vec();
    let engine = RunningEngine::start(source, tables, stopped_clock(CommitTime(0))).await.unwrap();
    let handle = engine.handle();
    for table in handle.tables().iter() {
        let is_live = async || table.status().phase == TablePhase::Live;
        eventually(PATIENCE, is_live).await.unwrap();
    }
    go.send_replace(true);
    let mut outcomes = [PlayOutcome::Whole; 2];
    for (index, table) in handle.tables().iter().enumerate() {
        let phase = ended(table).await;
        assert!(!matches!(phase, TablePhase::Failed { .. }), "seed {seed}, table {index}: {phase:?}");
        outcomes[index] = if phase == TablePhase::Live { PlayOutcome::Whole } else { PlayOutcome::Stopped };
        let is_stopped = outcomes[index] == PlayOutcome::Stopped;
        assert_eq!(is_stopped, expected[index].is_stopped, "seed {seed}, table {index}: {phase:?}");
        let found = rows(&table.journal().unwrap());
        assert_eq!(found, expected[index].rows, "seed {seed}, table {index}");
    }
    engine.end().await;
    outcomes
}

/// Waits until a table has applied all events or needs a copy.
async fn ended(table: &TableHandle) -> TablePhase {
    let is_over = async || {
        let status = table.status();
        status.phase != TablePhase::Live || status.position == END
    };
    eventually(PATIENCE, is_over).await.unwrap();
    table.status().phase
}

/// Returns the rows that a reader derives from a journal.
fn rows(journal: &Journal) -> BTreeMap<Option<Vec<u8>>, RowCells> {
    let pinned = journal.pin_base();
    let mut state = TableState::new(pinned.base().schema().clone(), &[], 0).unwrap();
    assert_eq!(pinned.base().rows(), 0, "the first copy is of an empty table");
    let mut cursor = journal.cursor(pinned.base().sequence());
    while let Some(piece) = cursor.next_piece().unwrap() {
        for frame in frames(piece.frames.clone()) {
            let schema = state.schema().clone();
            for entry in BatchEntries::new(&frame.batch.entries, &schema) {
                state.apply_change(&entry.unwrap().to_change()).unwrap();
            }
        }
    }
    let cells = state.rows().map(|row| filled(row.as_ref(), None).expect("a whole row"));
    cells.map(|cells| (cells[0].clone(), cells)).collect()
}

/// A source that plays the given events over tables that were empty. It copies each table only
/// once.
struct PlayedSource {
    events: Mutex<VecDeque<SourceEvent>>,
    schemas: [Arc<Schema>; 2],
    copied: [AtomicBool; 2],
    may_go: watch::Receiver<bool>,
}

impl Source for PlayedSource {
    async fn prepare(&self, _: &[TableRequest]) -> Result<SourceServer, SourceError> {
        Ok(SourceServer::default())
    }

    async fn resume(&self, tables: &[Option<KnownTable>]) -> Result<Vec<ResumeDecision>, SourceError> {
        Ok(vec![ResumeDecision::Follow; tables.len()])
    }

    async fn stream(
        &self,
        events: mpsc::Sender<SourceEvent>,
        _: AcknowledgedPosition,
        _: SourceStateReporter,
    ) -> Result<(), SourceError> {
        let _ = events.send(SourceEvent::Progress(BEGIN)).await;
        let _ = self.may_go.clone().wait_for(|go| *go).await;
        let played = std::mem::take(&mut *self.events.lock());
        for event in played {
            let _ = events.send(event).await;
        }
        let _ = events.send(SourceEvent::Progress(END)).await;
        std::future::pending().await
    }

    async fn check_more(
        &self,
        _: &[TableRequest],
        _: &[TableRequest],
        _: bool,
    ) -> Result<Vec<Arc<Schema>>, SourceError> {
        Err(SourceError::Definite(vec!["the tables are fixed".to_owned()]))
    }

    async fn read_server(&self) -> Result<SourceServer, SourceError> {
        Ok(SourceServer::default())
    }

    fn add_table(&self, _: TableRequest) -> TableIndex {
        TableIndex(2)
    }

    fn remove_table(&self, _: TableIndex) {}

    async fn written(&self) -> Result<Lsn, SourceError> {
        Ok(END)
    }

    async fn copy(
        &self,
        table: TableIndex,
        _: Option<&str>,
        _: SnapshotCheck,
        rows: mpsc::Sender<CopyEvent>,
    ) -> Result<(), SourceError> {
        if self.copied[table.0].swap(true, Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        // The copy's snapshot sees no transaction, so every streamed transaction is applied after
        // the copy.
        let snapshot =
            TransactionSnapshot { xmin: Xid(0), xmax: Xid(0), in_progress: Vec::new(), server_started: String::new() };
        let schema = self.schemas[table.0].clone();
        let begin = CopyEvent::Begin { schema, snapshot, rows_estimated: 0, bytes_estimated: 0 };
        for event in [begin, CopyEvent::End { inserted: BEGIN, definition: String::new(), is_streamed: false }] {
            let _ = rows.send(event).await;
        }
        Ok(())
    }

    async fn inspect(
        &self,
        _: TableIndex,
        _: mpsc::Receiver<TablePartOrder>,
        _: mpsc::Sender<TablePartEvent>,
    ) -> Result<(), SourceError> {
        Err(SourceError::Definite(vec!["it was recorded".to_owned()]))
    }

    fn retention(&self) -> watch::Receiver<WalRetention> {
        watch::Sender::default().subscribe()
    }

    async fn reset(&self, _: bool) -> Result<(), SourceError> {
        Err(SourceError::Definite(vec!["it was recorded".to_owned()]))
    }
}
