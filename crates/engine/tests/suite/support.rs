//! The fixtures of the engine's tests: engines over simulated tables, a reader that reads a journal
//! as a client does, and random changes.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Change, CommitTime, Lsn, Sequence, TableState};
use laredo_engine::TableOptions;
use laredo_engine::journal::{Journal, ResumeOutcome, ResumeRequest, frames};
use laredo_proto::batch::BatchEntries;
use laredo_testkit::{RunningEngine, SimChange, SimDatabase, SimRows, sim_table, stopped_clock};

/// The longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Starts an engine over simulated tables.
pub(crate) async fn start(database: &SimDatabase, tables: Vec<TableOptions>) -> RunningEngine {
    RunningEngine::start(database.clone(), tables, stopped_clock(CommitTime(0))).await.unwrap()
}

/// Returns the options of the tables `t0`, `t1`, ….
pub(crate) fn tables(count: usize) -> Vec<TableOptions> {
    (0..count).map(|i| sim_table(&format!("t{i}"))).collect()
}

pub(crate) fn insert(id: i64, body: &str) -> SimChange {
    SimChange::Insert(id, body.to_owned())
}

/// Commits a new row, and returns the end of its transaction.
pub(crate) fn commit(database: &SimDatabase, table: usize, id: i64, body: &str) -> Lsn {
    database.commit(table, vec![insert(id, body)])
}

/// Copies the files of a folder, without those in folders within it.
pub(crate) fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// Returns the number of cases of a property.
pub(crate) fn cases() -> u32 {
    if laredo_testkit::is_full() { 2000 } else { 150 }
}

/// The rows of a reader, and the place where it resumes.
pub(crate) struct JournalTestReader {
    pub(crate) state: TableState,
    pub(crate) at: Sequence,
    pub(crate) position: Lsn,
}

impl JournalTestReader {
    pub(crate) fn from_base(journal: &Journal) -> JournalTestReader {
        let pinned = journal.pin_base();
        let base = pinned.base();
        let mut state = TableState::new(base.schema().clone(), &[], 0).unwrap();
        base.for_each_row::<laredo_engine::base::BaseError>(|row| {
            state.put(row.to_tuple());
            Ok(())
        })
        .unwrap();
        base.checksum().into_iter().for_each(|sum| assert_eq!(sum, state.checksum(), "a base says what it has"));
        let mut reader = JournalTestReader { state, at: base.sequence(), position: base.position() };
        reader.read_on(journal);
        reader
    }

    /// Applies all available entries. Every change must fit exactly, and at the head the checksum
    /// must match the rows.
    pub(crate) fn read_on(&mut self, journal: &Journal) {
        let mut cursor = journal.cursor(self.at);
        while let Some(piece) = cursor.next_piece().unwrap() {
            for frame in frames(piece.frames.clone()) {
                if let Some(schema) = frame.batch.schema.clone() {
                    let schema = Arc::new(laredo_proto::schema::from_wire(schema).unwrap());
                    self.state.apply_change(&Change::Schema(schema)).unwrap();
                }
                let schema = self.state.schema().clone();
                for entry in BatchEntries::new(&frame.batch.entries, &schema) {
                    self.state.apply_change(&entry.unwrap().to_change()).unwrap();
                }
                assert!(frame.header.last_sequence > self.at, "sequences increase");
                self.at = frame.header.last_sequence;
                if frame.header.ends {
                    assert!(frame.header.position > self.position, "positions of commits increase");
                    self.position = frame.header.position;
                }
            }
        }
        let head = journal.head();
        if head.sequence == self.at
            && let Some(checksum) = head.checksum
        {
            assert_eq!(checksum, self.state.checksum(), "at {}", head.position);
        }
    }

    /// Resumes as a client that sends only its position.
    pub(crate) fn resume_by_position(&mut self, journal: &Journal) {
        let request =
            ResumeRequest { position: Some(self.position), whole_transactions: true, ..ResumeRequest::default() };
        self.resume(journal, &request);
    }

    /// Resumes with a request, which must be answered with a delta.
    pub(crate) fn resume(&mut self, journal: &Journal, request: &ResumeRequest) {
        match journal.resolve(request) {
            ResumeOutcome::Delta(at, _) => self.at = at,
            other => panic!("{request:?} is answered with {other:?}"),
        }
        self.read_on(journal);
    }

    pub(crate) fn rows(&self) -> SimRows {
        self.state.rows().map(|row| SimDatabase::parse(row.as_ref()).unwrap()).collect()
    }
}

/// Returns changes that fit the rows of the table at the end of the log. Rows written by a commit
/// that is not yet visible are `locked`. PostgreSQL too keeps such locks until the commit becomes
/// visible.
pub(crate) fn changes(
    database: &SimDatabase,
    table: usize,
    seed: u64,
    count: usize,
    locked: &LockedRows,
) -> Vec<SimChange> {
    let mut rows = database.rows_at(table, Lsn(u64::MAX));
    let mut made = Vec::new();
    for i in 0..count as u64 {
        let random = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i * 1_442_695_040_888_963_407) >> 20;
        let id = (random % 12) as i64;
        let body = format!("body {random}");
        let taken = |id: &i64| rows.contains_key(id) || locked.contains(&(table, *id));
        let free = (0..).find(|id| !taken(id)).unwrap();
        if locked.contains(&(table, id)) {
            continue;
        }
        let change = match (rows.contains_key(&id), random % 7) {
            (false, _) => SimChange::Insert(id, body.clone()),
            (true, 0 | 1) => SimChange::Update(id, body.clone()),
            (true, 2) => SimChange::Rekey(id, free, body.clone()),
            (true, 3) => SimChange::Touch(id),
            (true, 4) if random.is_multiple_of(5) && locked.is_empty() => SimChange::Truncate,
            (true, _) => SimChange::Delete(id),
        };
        match &change {
            SimChange::Insert(..) | SimChange::Update(..) => drop(rows.insert(id, body)),
            SimChange::Rekey(..) => {
                rows.remove(&id);
                rows.insert(free, body);
            }
            SimChange::Touch(_) => {}
            SimChange::Delete(_) => drop(rows.remove(&id)),
            SimChange::Truncate => rows.clear(),
        }
        made.push(change);
    }
    made
}

/// The tables and IDs of locked rows.
pub(crate) type LockedRows = BTreeSet<(usize, i64)>;

/// Returns the IDs of the rows that changes write.
pub(crate) fn written(changes: &[SimChange]) -> Vec<i64> {
    let ids = |change: &SimChange| match change {
        SimChange::Insert(id, _) | SimChange::Update(id, _) | SimChange::Touch(id) | SimChange::Delete(id) => vec![*id],
        SimChange::Rekey(old, new, _) => vec![*old, *new],
        SimChange::Truncate => (0..100).collect(),
    };
    changes.iter().flat_map(ids).collect()
}
