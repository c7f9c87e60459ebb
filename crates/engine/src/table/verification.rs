//! A pass over a table that compares its rows with the source's, part by part.
//!
//! The scan reads the source's rows in the order of their places on disk, so the source alone
//! decides the rows of each part. A row changes its place only when a transaction changes it. Every
//! row of the state is therefore compared by the scan, changed by a transaction during the pass, or
//! missing in the source. Rows of the last two kinds are looked up by their keys, and so are those
//! that the scan finds to differ. Only a difference found by the lookup counts.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::quality::RandomState;
use laredo_core::{CommitTime, Key, Lsn, Tuple, TupleBuf, TupleRef, Xid};
use tokio::time::Instant;

use super::apply::ChangeEffect;
use super::change_tracker::ChangeTracker;
use super::copy::rows;
use super::published::PublishedTable;
use super::server_run::ServerRun;
use crate::source::{TablePart, TablePartEvent};
use crate::verify::{RowDifference, VerifyProgress, VerifyReport, VerifyTerms};

/// The number of rows that are looked up in one statement.
const LOOKUP_KEYS: usize = 100;
/// The number of differing rows after which the scan ends early.
const SUSPECTS_MAX: usize = 1000;
/// The maximum number of rows that the scan did not see and that are looked up. More rows are
/// counted as not verified.
const LOOKUPS_MAX: usize = 20_000;
/// The number of buckets of the state that are searched in one step. A step takes a millisecond or
/// less.
const SWEEP_BUCKETS: usize = 16 * 1024;
/// The bounds of the bytes of the table's file that one part covers.
const PART_BYTES_MIN: u64 = 1 << 20;
const PART_BYTES_MAX: u64 = 32 << 20;

/// A pass over a table.
#[derive(Debug)]
pub(crate) struct Verification {
    heals: bool,
    progress: VerifyProgress,
    hasher: RandomState,
    /// The hashes of the keys of rows in the state that were compared, or came whole from the
    /// source, since the pass began.
    seen: HashSet<u64, RandomState>,
    stage: VerificationStage,
    part: Option<VerifyPart>,
    /// The number of bytes in the next part of the scan.
    part_bytes: u64,
    part_bytes_max: u64,
    suspects: HashSet<Key, RandomState>,
    is_cut: bool,
    suspected: u64,
    unverified: u64,
    differing: u64,
    differences: Vec<RowDifference>,
}

#[derive(Debug)]
enum VerificationStage {
    /// The scan reads the source's rows, from this block on.
    Scan { from: u64 },
    /// The state is searched, from this bucket on, for rows that were not seen.
    Sweep { bucket: usize, layout: u64, unseen: HashSet<Key, RandomState>, beyond: u64 },
    /// These rows are looked up.
    LookUp { waiting: Vec<Key> },
    /// All rows are compared.
    Done,
}

/// A part of the source's table that is being read.
#[derive(Debug)]
struct VerifyPart {
    tracker: ChangeTracker,
    /// The position that the stream has to reach before rows can be compared; `None` before the
    /// part begins.
    inserted: Option<Lsn>,
    /// The keys that are looked up, each with true if the source has the row.
    keys: Option<HashMap<Key, bool, RandomState>>,
}

/// The reason why a part has no result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum VerifyPartError {
    /// The same part may succeed later.
    Retry(String),
    /// The pass cannot be completed.
    GiveUp(String),
}

impl Verification {
    /// Returns a pass over a table that has about `rows` rows.
    pub(crate) fn new(terms: &VerifyTerms, rows: usize) -> Verification {
        // A part takes about a second, so that no snapshot is held for long.
        let part_bytes_max =
            terms.bytes_per_second.map_or(PART_BYTES_MAX, |bytes| bytes.clamp(PART_BYTES_MIN, PART_BYTES_MAX));
        let started_at = Instant::now();
        Verification {
            heals: terms.heals,
            progress: VerifyProgress { rows: 0, bytes: 0, blocks: 0, blocks_total: 0, started_at },
            hasher: RandomState::default(),
            // Growing the set later would stop the table while all hashes move.
            seen: HashSet::with_capacity_and_hasher(rows, RandomState::default()),
            stage: VerificationStage::Scan { from: 0 },
            part: None,
            part_bytes: part_bytes_max,
            part_bytes_max,
            suspects: HashSet::default(),
            is_cut: false,
            suspected: 0,
            unverified: 0,
            differing: 0,
            differences: Vec::new(),
        }
    }

    pub(crate) fn progress(&self) -> &VerifyProgress {
        &self.progress
    }

    /// Returns true while the state is searched for rows that were not seen.
    pub(crate) fn is_sweeping(&self) -> bool {
        matches!(self.stage, VerificationStage::Sweep { .. })
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self.stage, VerificationStage::Done)
    }

    pub(crate) fn has_part(&self) -> bool {
        self.part.is_some()
    }

    /// Returns the position that the stream has to reach before the part's rows can be compared.
    pub(crate) fn awaited(&self) -> Option<Lsn> {
        self.part.as_ref().and_then(|part| part.inserted)
    }

    /// Begins the next part. Changes are tracked from now on, so the part's snapshot must see all
    /// earlier ones.
    pub(crate) fn begin_part(&mut self) -> Option<TablePart> {
        let (part, keys) = match &self.stage {
            VerificationStage::Scan { from } => (TablePart::Blocks { from: *from, bytes: self.part_bytes }, None),
            VerificationStage::LookUp { waiting } => {
                let keys: Vec<Key> = waiting.iter().take(LOOKUP_KEYS).cloned().collect();
                let asked = keys.iter().map(|key| (key.clone(), false)).collect();
                (TablePart::Keys(keys), Some(asked))
            }
            VerificationStage::Sweep { .. } | VerificationStage::Done => return None,
        };
        self.part = Some(VerifyPart { tracker: ChangeTracker::new(), inserted: None, keys });
        Some(part)
    }

    /// Gives up the part that is being read. It is read again in smaller pieces.
    pub(crate) fn drop_part(&mut self) {
        self.part = None;
        self.part_bytes = (self.part_bytes / 4).max(1);
    }

    /// Has the part read again if it was read in another run of PostgreSQL.
    pub(super) fn check_part(&mut self, run: &ServerRun) {
        self.part.iter_mut().for_each(|part| part.tracker.check_run(run));
    }

    /// Notes a change of the state.
    pub(super) fn track(&mut self, xid: Xid, columns: &laredo_core::KeyColumns, applied: ChangeEffect<'_>) {
        let mut tracker = self.part.as_mut().map(|part| &mut part.tracker);
        match applied {
            ChangeEffect::Row { old, new, is_whole } => {
                if let (Some(row), Some(tracker)) = (new.or(old), &mut tracker) {
                    tracker.track(xid, columns, row, old);
                }
                if !matches!(self.stage, VerificationStage::Scan { .. } | VerificationStage::Sweep { .. }) {
                    return;
                }
                match (old, new) {
                    // The source left out an unchanged value, so this change does not show that the
                    // row was compared.
                    (_, Some(new)) if is_whole => {
                        self.seen.insert(columns.hash_row(&self.hasher, new.as_ref()));
                    }
                    (_, Some(_)) => {}
                    (Some(old), None) => {
                        self.seen.remove(&columns.hash_row(&self.hasher, old.as_ref()));
                    }
                    (None, None) => {}
                }
            }
            ChangeEffect::Truncate => {
                self.seen.clear();
                tracker.into_iter().for_each(ChangeTracker::track_truncate);
            }
        }
    }

    /// Handles an event of the part.
    pub(super) fn on_part(&mut self, event: TablePartEvent, served: &PublishedTable) -> Result<(), VerifyPartError> {
        let Some(part) = &mut self.part else { return Ok(()) };
        match event {
            TablePartEvent::Begin { schema, snapshot, inserted, blocks } => {
                // A label that was added to an enum changes the schema's types, but no row.
                let source = served.pipeline.source();
                if (schema.columns(), schema.key()) != (source.columns(), source.key()) {
                    return Err(VerifyPartError::Retry("the table's columns have changed".to_owned()));
                }
                part.tracker.set_snapshot(snapshot);
                part.inserted = Some(inserted);
                self.progress.blocks_total = self.progress.blocks_total.max(blocks);
                return Ok(());
            }
            // A copy follows, and the pass begins again after it.
            TablePartEvent::Changed(reason) => return Err(VerifyPartError::Retry(reason)),
            TablePartEvent::Rows(_) | TablePartEvent::End { .. } => {}
        }
        if let Some(reason) = part.tracker.lost() {
            return Err(VerifyPartError::Retry(reason.to_owned()));
        }
        match event {
            TablePartEvent::Rows(chunk) => {
                rows(&chunk).for_each(|row| self.compare(row, served));
            }
            TablePartEvent::End { next } => self.end_part(next, served),
            TablePartEvent::Begin { .. } | TablePartEvent::Changed(_) => {}
        }
        Ok(())
    }

    /// Compares a row of the source.
    fn compare(&mut self, row: TupleRef<'_>, served: &PublishedTable) {
        let (columns, Some(part)) = (served.state.schema().key(), &mut self.part) else { return };
        let current = served.state.get_like(row);
        let held = match part.tracker.row_like(columns, row) {
            Some(before) => before,
            None => current,
        };
        if let Some(keys) = &mut part.keys {
            // Keys that are equal in SQL may differ in their bytes. Such keys were not requested.
            let Some(found) = keys.get_mut(&columns.key_of(row)) else { return };
            *found = true;
        } else {
            self.progress.rows += 1;
            self.progress.bytes += row.bytes().len() as u64;
        }
        if current.is_some() {
            self.seen.insert(columns.hash_row(&self.hasher, row));
        }
        let is_same = held.is_some_and(|held| served.pipeline.same_source_row(held.as_ref(), row));
        match (is_same, &part.keys) {
            (true, _) => {}
            (false, Some(_)) => {
                let held = held.cloned();
                self.note_difference(columns.key_of(row), held, Some(row.to_tuple()), served);
            }
            (false, None) => {
                self.suspects.insert(columns.key_of(row));
            }
        }
    }

    fn end_part(&mut self, next: Option<u64>, served: &PublishedTable) {
        let Some(part) = self.part.take() else { return };
        self.part_bytes = (self.part_bytes * 2).min(self.part_bytes_max);
        match &mut self.stage {
            VerificationStage::Scan { from } => {
                let is_cut = self.suspects.len() > SUSPECTS_MAX;
                self.progress.blocks = next.unwrap_or(self.progress.blocks_total);
                match next.filter(|_| !is_cut) {
                    Some(next) => *from = next,
                    None => self.end_scan(is_cut, served),
                }
            }
            VerificationStage::LookUp { waiting } => {
                let keys = part.keys.unwrap_or_default();
                waiting.retain(|key| !keys.contains_key(key));
                if waiting.is_empty() {
                    self.stage = VerificationStage::Done;
                }
                for (key, _) in keys.into_iter().filter(|(_, found)| !found) {
                    let held = part.tracker.row_of(&key).unwrap_or_else(|| served.state.get(&key));
                    if let Some(held) = held.cloned() {
                        self.note_difference(key, Some(held), None, served);
                    }
                }
            }
            VerificationStage::Sweep { .. } | VerificationStage::Done => {}
        }
    }

    fn end_scan(&mut self, is_cut: bool, served: &PublishedTable) {
        self.is_cut = is_cut;
        // Each hash belongs to a row of the state, so equal numbers mean that every row was seen.
        if is_cut || self.seen.len() >= served.state.len() {
            self.look_up(HashSet::default(), 0);
        } else {
            self.stage = VerificationStage::sweep(served);
        }
    }

    /// Searches the next buckets of the state for rows that were not seen.
    pub(super) fn sweep_some(&mut self, served: &PublishedTable) {
        let VerificationStage::Sweep { bucket, layout, unseen, beyond } = &mut self.stage else { return };
        if *layout != served.state.layout() {
            self.stage = VerificationStage::sweep(served);
            return;
        }
        let (columns, end) = (served.state.schema().key(), (*bucket + SWEEP_BUCKETS).min(served.state.buckets()));
        for row in served.state.rows_in(*bucket..end) {
            if self.seen.contains(&columns.hash_row(&self.hasher, row.as_ref())) {
                continue;
            }
            match unseen.len() < LOOKUPS_MAX {
                true => drop(unseen.insert(columns.key_of(row.as_ref()))),
                false => *beyond += 1,
            }
        }
        *bucket = end;
        if end >= served.state.buckets() {
            let (unseen, beyond) = (std::mem::take(unseen), *beyond);
            self.look_up(unseen, beyond);
        }
    }

    fn look_up(&mut self, unseen: HashSet<Key, RandomState>, beyond: u64) {
        (self.unverified, self.suspected) = (beyond, self.suspects.len() as u64);
        self.seen = HashSet::default();
        let mut keys = std::mem::take(&mut self.suspects);
        keys.extend(unseen);
        self.stage = match keys.is_empty() {
            true => VerificationStage::Done,
            false => VerificationStage::LookUp { waiting: keys.into_iter().collect() },
        };
    }

    /// Notes a difference.
    fn note_difference(&mut self, key: Key, held: Option<Tuple>, stored: Option<Tuple>, served: &PublishedTable) {
        self.differing += 1;
        if self.differences.len() >= VerifyReport::DIFFERENCES_MAX {
            return;
        }
        let columns = match (&held, &stored) {
            (Some(held), Some(stored)) => {
                let cells = held.as_ref().cells().zip(stored.as_ref().cells());
                let count = served.pipeline.source().columns().len();
                let differing = cells.take(count).enumerate().filter(|(_, (held, stored))| held != stored);
                differing.map(|(column, _)| served.pipeline.reader_name(column).to_owned()).collect()
            }
            (None, _) | (_, None) => Vec::new(),
        };
        self.differences.push(RowDifference { key, columns, held, stored });
    }

    /// Returns the result of the pass.
    pub(super) fn into_report(self, served: &PublishedTable, finished_at: CommitTime) -> VerifyReport {
        VerifyReport {
            finished_at,
            position: served.writer.committed().position,
            rows: self.progress.rows,
            bytes: self.progress.bytes,
            differing: self.differing,
            is_cut: self.is_cut,
            suspects: self.suspected,
            unverified: self.unverified,
            differences: self.differences.into_iter().map(|difference| as_readers_see(difference, served)).collect(),
            schema: Arc::clone(served.pipeline.out()),
            heals: self.heals && self.differing > 0,
        }
    }
}

/// Returns a difference with the rows that readers receive. A value that transforms hide from
/// readers must not be in a report either.
fn as_readers_see(difference: RowDifference, served: &PublishedTable) -> RowDifference {
    let (pipeline, mut scratch) = (&served.pipeline, TupleBuf::new());
    let mut shown = |row: Option<Tuple>| row.map(|row| pipeline.out_row(row.as_ref(), &mut scratch).to_tuple());
    let (held, stored) = (shown(difference.held), shown(difference.stored));
    let row = held.as_ref().or(stored.as_ref());
    let key = row.map_or(difference.key, |row| pipeline.out().key().key_of(row.as_ref()));
    RowDifference { key, columns: difference.columns, held, stored }
}

impl VerificationStage {
    fn sweep(served: &PublishedTable) -> VerificationStage {
        VerificationStage::Sweep { bucket: 0, layout: served.state.layout(), unseen: HashSet::default(), beyond: 0 }
    }
}
