//! A table's journal: a log of encoded frames that any number of readers share.
//!
//! The writer appends each transaction once, encoded as the frames that are sent to clients. A
//! reader uses a [`JournalCursor`], which returns consecutive pieces of the log. A slow reader is a
//! cursor that is far behind. Readers see everything up to the [`Head`], which moves by whole
//! transactions.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use laredo_core::{DefinitionVersion, Lsn, Schema, Sequence};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::base::Base;
use crate::head::EarlierInstance;
use crate::segment::{Segment, SegmentData};
use crate::store::{JournalAppender, RowDefinition, StoreStatus};

mod beginning;
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

pub(crate) use beginning::{JournalBeginning, PredecessorJournal};
use contents::{BasePins, JournalContents, OversizedTransaction};
use cursor::PieceLocation;
pub(crate) use definitions::{DefinitionChange, DefinitionHistory};
pub(crate) use gaps::SequenceGaps;
use readers::{ReaderRegistry, SlowReaderWait};
use requests::{BaseRequests, BaseRounds};
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
    contents: RwLock<JournalContents>,
    readers: ReaderRegistry,
    gaps: SequenceGaps,
    requests: BaseRequests,
    /// The status of the store. Readers may outlive the store, and must not keep its folder locked.
    store: Option<watch::Receiver<StoreStatus>>,
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
    /// The time for which the source has waited for slow readers since the journal was opened.
    pub slowed_down: Duration,
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
            assigned,
        } = beginning;
        let mut contents = JournalContents {
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
        contents.count_covered();
        let shared = SharedJournal {
            instance,
            earlier,
            predecessor,
            parted: AtomicBool::new(false),
            closed: watch::Sender::new(false),
            options,
            head: watch::Sender::new(head),
            contents: RwLock::new(contents),
            readers: ReaderRegistry::default(),
            gaps,
            requests: BaseRequests::default(),
            store: appender.as_ref().map(|appender| appender.store().status()),
        };
        let journal = Journal { shared: Arc::new(shared) };
        let writer = JournalWriter::new(journal.clone(), assigned, appender);
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
        let mut inner = self.contents_mut();
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
        let mut inner = self.contents_mut();
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
        self.contents().schema.clone()
    }

    /// Returns the size of the journal's contents.
    #[must_use]
    pub fn info(&self) -> JournalInfo {
        let inner = self.contents();
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
            slowed_down: self.shared.readers.slowed_down(),
        }
    }

    /// Returns the newest base.
    #[must_use]
    pub fn base(&self) -> Arc<Base> {
        self.contents().base.clone()
    }

    /// Returns the newest base, pinned. Everything after it is kept until the pin is dropped.
    #[must_use]
    pub fn pin_base(&self) -> PinnedBase {
        let mut inner = self.contents_mut();
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
        self.contents().overdue_pin(&self.shared.options, &self.shared.gaps, self.head().sequence)
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
        let inner = self.contents();
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
        let marked = request.mark.commit.end;
        let (inner, head, floor, commit) = {
            let inner = self.contents();
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
        self.contents().definitions.version_at(position)
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
        let (id, entry) = self.shared.readers.add(options, at);
        JournalReader::new(id, entry, self.clone())
    }

    /// Removes a registered reader.
    fn remove_reader(&self, id: ReaderId) {
        self.shared.readers.remove(id);
    }

    /// Returns all registered readers.
    #[must_use]
    pub fn readers(&self) -> Vec<ReaderInfo> {
        self.shared.readers.list()
    }

    /// Replaces the base by a newer one whose state was the head at `shown_at` or later. Then
    /// removes the entries that only the older base needed.
    pub(crate) fn replace_base(&self, base: Arc<Base>, shown_at: Instant) {
        let reading = self.reader_sequences();
        let mut inner = self.contents_mut();
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
        let inner = self.contents();
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
        self.contents().definition.clone()
    }

    /// Returns true if another definition has changed rows after the newest base. New clients
    /// should not receive that change in addition to the base.
    pub(crate) fn is_base_outdated(&self) -> bool {
        let inner = self.contents();
        inner.definitions.change_rows_after(inner.base.position())
    }

    /// Returns the journal's limits.
    pub(crate) fn options(&self) -> &JournalOptions {
        &self.shared.options
    }

    /// Returns the age of the first segment that the newest base does not cover.
    pub(crate) fn oldest_age_after_base(&self) -> Option<Duration> {
        let inner = self.contents();
        let from = inner.base.sequence();
        let index = inner.segments.partition_point(|segment| segment.last <= from);
        inner.segments.get(index).map(|segment| segment.appended_at.elapsed())
    }

    /// Returns the bytes of the newest base, and the bytes and entries of the journal after it.
    pub(crate) fn base_debt(&self) -> (u64, u64, u64) {
        let inner = self.contents();
        let head = self.head();
        (inner.base.bytes(), inner.bytes_after_base(), self.shared.gaps.entries(inner.base.sequence(), head.sequence))
    }

    /// Returns the newest base, pinned, if it is fresh enough for a new client. Returns `None` if
    /// [`Journal::fresh_base`] would request another one.
    #[must_use]
    pub fn fresh_base_now(&self) -> Option<PinnedBase> {
        self.has_fresh_base().then(|| self.pin_base())
    }

    /// Returns a base for a new client, pinned. This is the newest base if it is fresh enough, or
    /// else one that is made of the current head. All clients that wait at the same time share it.
    ///
    /// If no base can be made, this returns the newest one. That happens if the disk is full, or if
    /// readers hold too many older bases.
    pub async fn fresh_base(&self) -> PinnedBase {
        let is_fresh = |rounds: BaseRounds| rounds.is_fresh(&self.contents(), self.head().sequence);
        self.shared.requests.wait_for_fresh(is_fresh).await;
        self.pin_base()
    }

    /// Returns true if new clients should get the newest base.
    pub(crate) fn has_fresh_base(&self) -> bool {
        self.shared.requests.rounds().is_fresh(&self.contents(), self.head().sequence)
    }

    /// Returns the requests for bases.
    pub(crate) fn base_requests(&self) -> &BaseRequests {
        &self.shared.requests
    }

    /// Locks the contents to read them.
    fn contents(&self) -> RwLockReadGuard<'_, JournalContents> {
        self.shared.contents.read()
    }

    /// Locks the contents to change them.
    fn contents_mut(&self) -> RwLockWriteGuard<'_, JournalContents> {
        self.shared.contents.write()
    }

    /// Returns the sequences that readers have taken. Returns an empty list if the journal keeps no
    /// transaction larger than its limits.
    ///
    /// Must be called before the contents are locked: the locks of readers are never acquired under
    /// that lock.
    fn reader_sequences(&self) -> Vec<Sequence> {
        let is_oversized = {
            let contents = self.contents();
            contents.pruned.sequence < contents.oversized.last
        };
        if is_oversized { self.shared.readers.taken_sequences() } else { Vec::new() }
    }

    /// Releases a pin of a base. Removes the entries that only the pin has kept.
    fn unpin(&self, sequence: Sequence) {
        let reading = self.reader_sequences();
        let mut contents = self.contents_mut();
        if contents.release_pin(sequence) {
            contents.prune(&self.shared.options, &self.shared.gaps, self.head().sequence, &reading);
        }
    }

    /// Returns the piece with the entry after `after`, and the small visible segments that a reader
    /// takes together with it.
    fn locate(&self, after: Sequence, head: Sequence) -> Result<Option<(PieceLocation, Vec<Segment>)>, CursorError> {
        let contents = self.contents();
        let located = contents.locate(after)?;
        Ok(located.map(|located| {
            let rest = contents.joined_with(&located, head);
            (located, rest)
        }))
    }

    /// Returns the piece with the entry after `after`, and the state of a reader for which there is
    /// none: it has everything.
    fn locate_start(&self, after: Sequence) -> Result<(Option<PieceLocation>, CursorOrigin), CursorError> {
        let head = self.head();
        let contents = self.contents();
        let at_head = CursorOrigin { schema: contents.schema.clone(), position: head.position };
        Ok((contents.locate(after)?, at_head))
    }

    /// Returns true if the entry after `after` can be read without blocking.
    fn is_in_memory(&self, after: Sequence) -> bool {
        let contents = self.contents();
        let index = contents.segments.partition_point(|segment| segment.last <= after);
        contents.segments.get(index).is_none_or(|segment| segment.data.in_memory())
    }

    /// Adds a segment, visible or not. Returns the number of bytes in memory.
    fn append(&self, segment: Segment, schema: &Arc<Schema>) -> u64 {
        self.contents_mut().append(segment, schema)
    }

    /// Removes the segments after a sequence, which are not visible.
    fn discard_after(&self, sequence: Sequence, schema: &Arc<Schema>) {
        self.contents_mut().truncate_after(sequence, schema);
    }

    /// Returns the oldest segment in memory while more than the limit is in memory.
    fn oldest_in_memory(&self) -> Option<(Sequence, SegmentData)> {
        self.contents().oldest_in_memory(self.shared.options.memory_bytes_max)
    }

    /// Replaces the data of the segment that ends at a sequence.
    fn replace_data(&self, last: Sequence, data: SegmentData) {
        self.contents_mut().replace_data(last, data);
    }

    /// Returns the newest definition, visible or not.
    fn newest_definition(&self) -> DefinitionVersion {
        self.contents().definitions.newest()
    }

    /// Notes that the changes of the span (from, to] become visible in one step.
    fn note_span(&self, from: Lsn, to: Lsn) {
        self.contents_mut().spans.push((from, to));
    }

    /// Notes that the rows have a definition from a position on.
    fn note_definition(&self, since: Lsn, version: DefinitionVersion, change: DefinitionChange) {
        self.contents_mut().definitions.push(since, version, change);
    }

    /// Sets the definition of the newest committed rows. If rows changed with it, their transaction
    /// has noted that already.
    fn define(&self, since: Lsn, definition: RowDefinition) {
        let mut contents = self.contents_mut();
        contents.definitions.push(since, definition.version(), DefinitionChange::KeepsRows);
        contents.definition = definition;
    }

    /// Notes a committed transaction that has the entries after `before`, up to `last`.
    /// `is_oversized` is true if it exceeds the limits of the journal by itself.
    fn note_committed(&self, before: Sequence, last: Sequence, is_oversized: bool) {
        self.shared.readers.committed(before, last);
        if is_oversized {
            self.contents_mut().oversized = OversizedTransaction { before, last };
        }
    }

    /// Makes everything up to `head` visible. Returns the newest entry that is no longer kept, or
    /// `None` if the head has not moved.
    fn publish(&self, head: Head) -> Option<Sequence> {
        let moved = self.shared.head.send_if_modified(|seen| {
            let moved = *seen != head;
            *seen = head;
            moved
        });
        if !moved {
            return None;
        }
        let reading = self.reader_sequences();
        let mut contents = self.contents_mut();
        contents.join_small(head.sequence);
        contents.prune(&self.shared.options, &self.shared.gaps, head.sequence, &reading);
        Some(contents.pruned.sequence)
    }

    /// Applies the buffer policies. Returns a wait if the writer should wait for a slow reader.
    /// `committed` is the last committed entry.
    fn enforce_buffer_policies(&self, committed: Sequence) -> Option<SlowReaderWait> {
        let pruned = self.contents().pruned.sequence;
        self.shared.readers.enforce(committed, pruned, &self.shared.gaps, Instant::now())
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
        self.journal.unpin(self.base.sequence());
    }
}
