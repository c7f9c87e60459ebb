//! A table's journal: a log of encoded frames that any number of readers share.
//!
//! The writer appends each transaction once, encoded as the frames that are sent to clients. A
//! reader uses a [`JournalCursor`], which returns consecutive pieces of the log. A slow reader is a
//! cursor that is far behind. Readers see everything up to the [`Head`], which moves by whole
//! transactions.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use laredo_core::{DefinitionVersion, Lsn, Schema, Sequence};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::base::Base;
use crate::head::{EarlierInstance, TransactionBoundary};
use crate::segment::Segment;
use crate::store::{JournalAppender, RowDefinition, StoreStatus};

mod contents;
mod cursor;
mod definitions;
mod gaps;
mod readers;
mod requests;
mod resolve;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

pub use crate::head::{Head, InstanceId};
pub use crate::segment::{BatchFrame, frames};
pub use cursor::{CursorError, CursorOrigin, JournalCursor, JournalPiece};
pub use definitions::DEFINITION_DIFFERS;
pub use readers::{BufferPolicy, JournalReader, ReaderId, ReaderInfo, ReaderOptions, ReaderState};
pub use resolve::{BY_POSITION, ResumeOutcome, ResumeRequest};
pub use writer::JournalWriter;

pub(crate) use definitions::{DefinitionChange, DefinitionHistory};
pub(crate) use gaps::SequenceGaps;
use readers::ReaderRegistry;
use requests::BaseRequests;
use resolve::resolve;

/// The limits of a journal: how much of the past it keeps, and where.
///
/// Entries after the newest base, or after a pinned base, are kept beyond the limits.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// The maximum number of entries kept.
    pub entries_max: u64,
    /// The maximum age of an entry.
    pub age_max: Duration,
    /// The maximum number of bytes kept, in memory and in files together.
    pub bytes_max: u64,
    /// The maximum number of bytes kept in memory. Beyond it, the oldest bytes stay only in files:
    /// those of the store, or else temporary files.
    pub memory_bytes_max: u64,
    /// The folder for temporary files.
    pub folder: PathBuf,
}

/// The multiple of its limits that a journal may reach because of pins.
const PINNED_FACTOR: u64 = 2;

/// The journal of an earlier run that issued the snapshot with which this journal begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PredecessorJournal {
    pub(crate) instance: InstanceId,
    /// The snapshot's position.
    pub(crate) position: Lsn,
    /// The first position from which on the table did not change until the snapshot's position.
    pub(crate) unchanged_since: Lsn,
}

/// The readers' side of a journal. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<SharedJournal>,
}

#[derive(Debug)]
struct SharedJournal {
    instance: InstanceId,
    /// The names that this journal had in earlier runs.
    earlier: Vec<EarlierInstance>,
    predecessor: Option<PredecessorJournal>,
    /// True once the database has abandoned the history of the rows.
    parted: AtomicBool,
    /// True once another journal has replaced this one.
    closed: watch::Sender<bool>,
    options: JournalOptions,
    head: watch::Sender<Head>,
    inner: RwLock<JournalContents>,
    readers: ReaderRegistry,
    gaps: SequenceGaps,
    requests: BaseRequests,
    /// The status of the store. Readers may outlive the store, and must not keep its folder locked.
    store: Option<watch::Receiver<StoreStatus>>,
}

#[derive(Debug)]
struct JournalContents {
    /// The segments in order. None has entries on both sides of the head: only visible ones are
    /// joined.
    segments: VecDeque<Segment>,
    /// The end of the newest transaction that is no longer kept. A reader that has it can resume.
    pruned: TransactionBoundary,
    base: Arc<Base>,
    /// The earliest time at which the base's state can have been the head. `None` for the base that
    /// the journal was opened with.
    base_shown_at: Option<Instant>,
    /// The number of bases since the journal was opened.
    bases: u64,
    schema: Arc<Schema>,
    /// The table definition that the rows at the head were copied under.
    definition: RowDefinition,
    /// The definition of the rows at each position that is kept.
    definitions: DefinitionHistory,
    /// The spans (from, to], each of which became visible as one transaction. No reader can resume
    /// inside.
    spans: Vec<(Lsn, Lsn)>,
    /// The highest position that may belong to a history that the database has abandoned.
    abandoned: Lsn,
    /// The journals of abandoned histories. Each has the newest position that its history is known
    /// to share with this one.
    abandoned_journals: Vec<(InstanceId, Lsn)>,
    /// The pins, by the sequence of the base. Everything after a pinned base is kept.
    pins: BTreeMap<Sequence, BasePins>,
    memory_bytes: u64,
    bytes: u64,
    /// The bytes of segments that the base covers, out of `bytes`.
    covered_bytes: u64,
    /// An upper bound of the bytes in small segments at the end, which may be joined.
    unjoined_bytes: u64,
    encoded_entries: u64,
    oversized: OversizedTransaction,
}

/// The newest transaction that may exceed the limits by itself: the entries after `before`, up to
/// `last`.
#[derive(Clone, Copy, Debug)]
struct OversizedTransaction {
    before: Sequence,
    last: Sequence,
}

/// The pins of one base.
#[derive(Clone, Copy, Debug)]
struct BasePins {
    readers: usize,
    /// The size of the base in bytes.
    bytes: u64,
}

/// The contents that a journal begins with: a base alone, or what an earlier journal left.
#[derive(Debug)]
pub(crate) struct JournalBeginning {
    pub(crate) instance: InstanceId,
    pub(crate) earlier: Vec<EarlierInstance>,
    pub(crate) predecessor: Option<PredecessorJournal>,
    pub(crate) abandoned: Lsn,
    /// The journals of abandoned histories. Each has the newest position that its history is known
    /// to share with this one.
    pub(crate) abandoned_journals: Vec<(InstanceId, Lsn)>,
    pub(crate) base: Arc<Base>,
    pub(crate) schema: Arc<Schema>,
    pub(crate) definition: RowDefinition,
    pub(crate) definitions: DefinitionHistory,
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) spans: Vec<(Lsn, Lsn)>,
    pub(crate) gaps: SequenceGaps,
    pub(crate) pruned: TransactionBoundary,
    pub(crate) head: Head,
    /// The last sequence that may have been assigned.
    pub(crate) taken: Sequence,
}

impl JournalBeginning {
    /// Returns the beginning of a journal that has only a base.
    pub(crate) fn from_base(instance: InstanceId, base: Arc<Base>, definition: RowDefinition) -> JournalBeginning {
        let head = base.head();
        let Head { sequence, position, .. } = head;
        JournalBeginning {
            instance,
            earlier: Vec::new(),
            predecessor: None,
            abandoned: Lsn::ZERO,
            abandoned_journals: Vec::new(),
            schema: base.schema().clone(),
            base,
            definitions: DefinitionHistory::new(position, definition.version()),
            definition,
            segments: VecDeque::new(),
            spans: Vec::new(),
            gaps: SequenceGaps::default(),
            pruned: TransactionBoundary { sequence, position },
            head,
            taken: sequence,
        }
    }

    /// Lets readers resume from every position at which the table was the same as in the snapshot.
    pub(crate) fn set_predecessor(&mut self, predecessor: PredecessorJournal) {
        let since = predecessor.unchanged_since.min(self.pruned.position);
        self.pruned.position = since;
        self.definitions = DefinitionHistory::new(since, self.definition.version());
        self.predecessor = Some(predecessor);
    }
}

/// The size of a journal's contents, for operators and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalInfo {
    /// The newest visible state.
    pub head: Head,
    /// The first entry that is still kept. If none is kept, this is the head's sequence plus one.
    pub oldest_sequence: Sequence,
    /// The number of entries kept.
    pub entries: u64,
    /// The number of bytes kept.
    pub bytes: u64,
    /// The number of those bytes in memory.
    pub memory_bytes: u64,
    /// The number of entries encoded since the journal was opened. Each change is encoded once,
    /// independent of the number of readers.
    pub encoded_entries: u64,
    /// The number of rows in the newest base.
    pub base_rows: u64,
    /// The number of bases since the journal was opened, including the first. Each is encoded once,
    /// independent of the number of readers.
    pub bases: u64,
}

/// The parts from which the next base is merged.
pub(crate) struct BaseMergeInput {
    pub(crate) base: Arc<Base>,
    pub(crate) after: Vec<Segment>,
    pub(crate) head: Head,
    /// The definition of the rows at the head, or of earlier rows.
    pub(crate) definition: RowDefinition,
    /// The newest visible segment that is kept.
    last: Option<Segment>,
    /// The position after which the table changed only in the kept segments.
    settled: Lsn,
}

impl BaseMergeInput {
    /// Returns the first position from which on the table is the same as at the head. Blocks if the
    /// last segment is in a file.
    pub(crate) fn unchanged_since(&self) -> Lsn {
        let last = self.last.as_ref().map(|last| last.last_position().unwrap_or(last.position));
        last.unwrap_or_default().max(self.settled)
    }
}

/// A base that is being sent to a reader. Everything after the base is kept until this is dropped.
#[derive(Debug)]
pub struct PinnedBase {
    journal: Journal,
    base: Arc<Base>,
    shown_at: Option<Instant>,
}

impl Journal {
    /// Creates a journal that continues from `base`, and its one writer.
    #[must_use]
    pub fn new(instance: InstanceId, options: JournalOptions, base: Arc<Base>) -> (Journal, JournalWriter) {
        Journal::open(JournalBeginning::from_base(instance, base, RowDefinition::default()), options, None)
    }

    /// Opens a journal that continues from `beginning`, and its one writer. `appender` writes it to
    /// a store, if there is one.
    pub(crate) fn open(
        beginning: JournalBeginning,
        options: JournalOptions,
        appender: Option<JournalAppender>,
    ) -> (Journal, JournalWriter) {
        let JournalBeginning {
            instance,
            earlier,
            predecessor,
            abandoned,
            abandoned_journals,
            base,
            schema,
            definition,
            definitions,
            segments,
            spans,
            gaps,
            pruned,
            head,
            taken,
        } = beginning;
        let mut inner = JournalContents {
            bytes: segments.iter().map(|segment| segment.data.bytes() as u64).sum(),
            segments,
            pruned,
            base,
            base_shown_at: None,
            bases: 1,
            schema,
            definition,
            definitions,
            spans,
            abandoned,
            abandoned_journals,
            pins: BTreeMap::new(),
            memory_bytes: 0,
            covered_bytes: 0,
            unjoined_bytes: 0,
            encoded_entries: 0,
            // A transaction of an earlier run may exceed the limits, and may end at the head.
            oversized: OversizedTransaction { before: head.sequence, last: head.sequence },
        };
        inner.count_covered();
        let shared = SharedJournal {
            instance,
            earlier,
            predecessor,
            parted: AtomicBool::new(false),
            closed: watch::Sender::new(false),
            options,
            head: watch::Sender::new(head),
            inner: RwLock::new(inner),
            readers: ReaderRegistry::default(),
            gaps,
            requests: BaseRequests::default(),
            store: appender.as_ref().map(|appender| appender.store().status()),
        };
        let journal = Journal { shared: Arc::new(shared) };
        let writer = JournalWriter::new(journal.clone(), taken, appender);
        (journal, writer)
    }

    /// Returns the status of the journal's store. Returns `None` if the journal is not kept on
    /// disk.
    #[must_use]
    pub fn store_status(&self) -> Option<StoreStatus> {
        self.shared.store.as_ref().map(|status| status.borrow().clone())
    }

    /// Returns the number of visible entries after a sequence.
    #[must_use]
    pub fn entries_after(&self, sequence: Sequence) -> u64 {
        self.shared.gaps.entries(sequence, self.head().sequence)
    }

    /// Returns the name of the journal.
    #[must_use]
    pub fn instance(&self) -> &InstanceId {
        &self.shared.instance
    }

    /// Notes that the database has abandoned the history of the journal's rows.
    pub(crate) fn mark_parted(&self) {
        self.shared.parted.store(true, Ordering::Release);
    }

    /// Returns true if the database has abandoned the history of the rows. Another journal replaces
    /// this one once the table is copied again.
    #[must_use]
    pub fn is_parted(&self) -> bool {
        self.shared.parted.load(Ordering::Acquire)
    }

    /// Notifies readers that another journal has replaced this one, and lets go of the contents. A
    /// reader that is not polled would keep them, and the room of their removed files, until its
    /// connection ends.
    pub(crate) fn close(&self) {
        self.shared.closed.send_replace(true);
        let mut inner = self.shared.inner.write();
        inner.forget_all(self.head());
    }

    /// Returns true if another journal has replaced this one.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// Waits until another journal has replaced this one.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.subscribe();
        // The sender lives as long as `self`, so this cannot fail.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Notes that positions up to `position` may belong to another history.
    pub(crate) fn abandon_up_to(&self, position: Lsn) {
        let mut inner = self.shared.inner.write();
        inner.abandoned = inner.abandoned.max(position);
    }

    /// Returns the newest visible state.
    #[must_use]
    pub fn head(&self) -> Head {
        *self.shared.head.borrow()
    }

    /// Returns a receiver that is notified of every move of the head. It ends once all handles of
    /// the journal are dropped.
    #[must_use]
    pub fn watch_head(&self) -> watch::Receiver<Head> {
        self.shared.head.subscribe()
    }

    /// Returns the schema of the newest rows.
    #[must_use]
    pub fn schema(&self) -> Arc<Schema> {
        self.shared.inner.read().schema.clone()
    }

    /// Returns the size of the journal's contents.
    #[must_use]
    pub fn info(&self) -> JournalInfo {
        let inner = self.shared.inner.read();
        let head = self.head();
        JournalInfo {
            head,
            oldest_sequence: inner.pruned.sequence.plus(1),
            entries: self.shared.gaps.entries(inner.pruned.sequence, head.sequence),
            bytes: inner.bytes,
            memory_bytes: inner.memory_bytes,
            encoded_entries: inner.encoded_entries,
            base_rows: inner.base.rows(),
            bases: inner.bases,
        }
    }

    /// Returns the newest base.
    #[must_use]
    pub fn base(&self) -> Arc<Base> {
        self.shared.inner.read().base.clone()
    }

    /// Returns the newest base, pinned. Everything after it is kept until the pin is dropped.
    #[must_use]
    pub fn pin_base(&self) -> PinnedBase {
        let mut inner = self.shared.inner.write();
        let (base, shown_at) = (inner.base.clone(), inner.base_shown_at);
        let unpinned = BasePins { readers: 0, bytes: base.bytes() };
        inner.pins.entry(base.sequence()).or_insert(unpinned).readers += 1;
        PinnedBase { journal: self.clone(), base, shown_at }
    }

    /// Returns the sequence of the oldest pinned base if its pin is overdue.
    ///
    /// That is the case if the journal exceeds twice its limits, and a newer base covers more than
    /// the limits allow. The caller should release the pin: one slow reader must not fill the disk.
    #[must_use]
    pub fn overdue_pin(&self) -> Option<Sequence> {
        let inner = self.shared.inner.read();
        let oldest = *inner.pins.keys().next()?;
        let (limits, from, base) = (&self.shared.options, inner.pruned.sequence, inner.base.sequence());
        let covered_entries = self.shared.gaps.entries(from, base);
        // A transaction that exceeds the limits by itself is kept for all its readers.
        let (large_entries, large_bytes) = inner.oversized_size(&self.shared.gaps);
        let entries = self.entries_after(from).saturating_sub(large_entries);
        let bytes = inner.bytes.saturating_sub(large_bytes);
        let is_over = (entries / PINNED_FACTOR > limits.entries_max
            && covered_entries.saturating_sub(large_entries) > limits.entries_max)
            || (bytes / PINNED_FACTOR > limits.bytes_max
                && inner.covered_bytes.saturating_sub(large_bytes) > limits.bytes_max);
        (is_over && oldest < base).then_some(oldest)
    }

    /// Decides from where a client resumes, and returns that [`ResumeOutcome`]. Blocks if a segment
    /// that is needed is in a file.
    #[must_use]
    pub fn resolve(&self, request: &ResumeRequest) -> ResumeOutcome {
        self.with_facts(request, |facts, floor, commit| {
            resolve(request, facts, floor, |sequence| commit.is_commit(sequence))
        })
    }

    /// Returns the newest position up to which a request's history and this journal's are known to
    /// be the same. Returns zero if nothing is known. Blocks if a segment that is needed is in a
    /// file.
    #[must_use]
    pub fn shared_position(&self, request: &ResumeRequest) -> Lsn {
        let Some(position) = request.position else { return Lsn::ZERO };
        if self.with_facts(request, |facts, floor, _| resolve::is_proven(request, facts, position, floor)) {
            return position;
        }
        let inner = self.shared.inner.read();
        let known = inner.abandoned_journals.iter().find(|(instance, _)| instance.0 == request.instance);
        known.map_or(Lsn::ZERO, |(_, common)| position.min(*common))
    }

    /// Calls `call` with the facts that resolve a request. `call` blocks if it reads a segment from
    /// a file.
    fn with_facts<T>(
        &self,
        request: &ResumeRequest,
        call: impl FnOnce(&resolve::ResumeFacts<'_>, &dyn Fn(Lsn) -> resolve::PositionFloor, &resolve::CommitLookup) -> T,
    ) -> T {
        // Files are read after the lock is released: the writer must not wait for them.
        let marked = request.mark.mark.end;
        let (inner, head, floor, commit) = {
            let inner = self.shared.inner.read();
            let head = self.head();
            let floor = [request.position.unwrap_or(Lsn::ZERO), marked].map(|position| inner.floor_at(position));
            let commit = inner.commit_at(request.sequence, head.sequence);
            let has_mark_in_span = inner.spans.iter().any(|(from, to)| *from < marked && marked <= *to);
            ((inner.pruned, inner.abandoned, has_mark_in_span, inner.definitions.clone()), head, floor, commit)
        };
        let (pruned, abandoned, has_mark_in_span, definitions) = inner;
        let (instance, earlier, gaps) = (&self.shared.instance.0, &self.shared.earlier, &self.shared.gaps);
        let definitions = &definitions;
        let predecessor = self.shared.predecessor.as_ref();
        let facts = resolve::ResumeFacts {
            instance,
            earlier,
            predecessor,
            head,
            pruned,
            abandoned,
            has_mark_in_span,
            gaps,
            definitions,
        };
        let [of_position, of_mark] = floor;
        let floor = |position| match Some(position) == request.position {
            true => of_position.read_floor(position),
            false => of_mark.read_floor(position),
        };
        call(&facts, &floor, &commit)
    }

    /// Returns the definition of the rows at a position; unknown for positions older than those
    /// kept.
    #[must_use]
    pub fn definition_at(&self, position: Lsn) -> DefinitionVersion {
        self.shared.inner.read().definitions.version_at(position)
    }

    /// Returns a cursor that reads everything after `after`.
    #[must_use]
    pub fn cursor(&self, after: Sequence) -> JournalCursor {
        JournalCursor::new(self.clone(), after)
    }

    /// Registers a reader at sequence `at`. The reader is listed in the status and is held to its
    /// buffer policy.
    #[must_use]
    pub fn register(&self, options: ReaderOptions, at: Sequence) -> JournalReader {
        self.add_reader(options, at)
    }

    /// Returns all registered readers.
    #[must_use]
    pub fn readers(&self) -> Vec<ReaderInfo> {
        self.shared.readers.list()
    }

    /// Replaces the base by a newer one whose state was the head at `shown_at` or later. Then
    /// removes the entries that only the older base needed.
    pub(crate) fn replace_base(&self, base: Arc<Base>, shown_at: Instant) {
        let reading = self.shared.reader_sequences();
        let mut inner = self.shared.inner.write();
        // A closed journal keeps no rows, also if the base was begun before.
        if self.is_closed() {
            return;
        }
        inner.base = base;
        inner.base_shown_at = Some(shown_at);
        inner.bases += 1;
        inner.count_covered();
        inner.prune(&self.shared.options, &self.shared.gaps, self.head().sequence, &reading);
    }

    /// Returns the newest base and all visible segments after it, from which the next base is
    /// merged.
    pub(crate) fn base_and_after(&self) -> BaseMergeInput {
        let inner = self.shared.inner.read();
        // Read under the lock: then no segment has entries on both sides of the head.
        let head = self.head();
        let from = inner.base.sequence();
        let after = inner.segments.iter().filter(|s| s.last > from && s.last <= head.sequence);
        let last = inner.segments.iter().rev().find(|segment| segment.last <= head.sequence);
        let span = inner.spans.last().map_or(Lsn::ZERO, |(_, to)| *to);
        // If a visible segment is kept, everything that was pruned is older than it.
        let pruned = if last.is_some() { Lsn::ZERO } else { inner.pruned.position };
        BaseMergeInput {
            base: inner.base.clone(),
            after: after.cloned().collect(),
            head,
            definition: inner.definition.clone(),
            last: last.cloned(),
            settled: pruned.max(span).max(inner.definitions.newest_since()),
        }
    }

    /// Returns the table definition that the rows at the head were copied under.
    pub(crate) fn definition(&self) -> RowDefinition {
        self.shared.inner.read().definition.clone()
    }

    /// Returns true if another definition has changed rows after the newest base. New clients
    /// should not receive that change in addition to the base.
    pub(crate) fn is_base_outdated(&self) -> bool {
        let inner = self.shared.inner.read();
        inner.definitions.change_rows_after(inner.base.position())
    }

    /// Returns the journal's limits.
    pub(crate) fn options(&self) -> &JournalOptions {
        &self.shared.options
    }

    /// Returns the age of the first segment that the newest base does not cover.
    pub(crate) fn oldest_age_after_base(&self) -> Option<Duration> {
        let inner = self.shared.inner.read();
        let from = inner.base.sequence();
        let index = inner.segments.partition_point(|segment| segment.last <= from);
        inner.segments.get(index).map(|segment| segment.appended_at.elapsed())
    }

    /// Returns the bytes of the newest base, and the bytes and entries of the journal after it.
    pub(crate) fn base_debt(&self) -> (u64, u64, u64) {
        let inner = self.shared.inner.read();
        let head = self.head();
        (inner.base.bytes(), inner.bytes_after_base(), self.shared.gaps.entries(inner.base.sequence(), head.sequence))
    }
}

impl SharedJournal {
    /// Returns the sequences that readers have taken. Returns an empty list if the journal keeps no
    /// transaction larger than its limits.
    ///
    /// Must be called before `inner` is locked: the locks of readers are never acquired under it.
    fn reader_sequences(&self) -> Vec<Sequence> {
        let is_oversized = {
            let inner = self.inner.read();
            inner.pruned.sequence < inner.oversized.last
        };
        if is_oversized { self.readers.taken_sequences() } else { Vec::new() }
    }
}

impl PinnedBase {
    /// Returns the base.
    #[must_use]
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// Returns the earliest time at which the base's state can have been the head. The state was
    /// the head at that time or later. Returns `None` if the time is unknown.
    #[must_use]
    pub fn shown_at(&self) -> Option<Instant> {
        self.shown_at
    }
}

impl Drop for PinnedBase {
    fn drop(&mut self) {
        let reading = self.journal.shared.reader_sequences();
        let mut inner = self.journal.shared.inner.write();
        if let Some(pins) = inner.pins.get_mut(&self.base.sequence()) {
            pins.readers -= 1;
            if pins.readers == 0 {
                inner.pins.remove(&self.base.sequence());
                let SharedJournal { options, gaps, .. } = &*self.journal.shared;
                inner.prune(options, gaps, self.journal.head().sequence, &reading);
            }
        }
    }
}
