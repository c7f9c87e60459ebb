//! A table's journal: a log of ready frames that any number of readers share.
//!
//! One writer appends each transaction once, encoded as the frames that go on the wire. A reader is a [`Cursor`] that takes
//! slices of what is there; a slow reader is just a cursor far behind. What a reader may see is what [`Head`] covers, and it
//! moves by whole transactions.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use laredo_core::{Checksum, CommitMark, CommitTime, DefinitionVersion, Lsn, Schema, Sequence};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::base::Base;
use crate::store::{Appender, Definition, StoreStatus};

mod cursor;
mod definitions;
mod gaps;
mod kept;
mod readers;
mod requests;
mod resolve;
mod segment;
mod stored;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

pub use cursor::{Cursor, CursorError, Frame, Origin, Piece, frames};
pub use definitions::DEFINITION_DIFFERS;
pub use readers::{BufferPolicy, Reader, ReaderId, ReaderInfo, ReaderOptions, ReaderState};
pub use resolve::{BY_POSITION, Resolution, ResumeRequest};
pub use writer::JournalWriter;

pub(crate) use definitions::{DefinitionChange, Definitions};
pub(crate) use gaps::Gaps;
use readers::Readers;
use requests::BaseRequests;
use resolve::resolve;
pub(crate) use segment::{Data, Segment};
pub(crate) use stored::{DataFile, Part, Stored};

/// How much of the past a journal keeps, and where.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// Entries kept.
    pub entries_max: u64,
    /// How long entries are kept.
    pub age_max: Duration,
    /// Bytes kept, in memory and in files together.
    pub bytes_max: u64,
    /// Bytes kept in memory; beyond it the oldest go to temporary files.
    pub memory_bytes_max: u64,
    /// The folder for temporary files.
    pub folder: PathBuf,
}

/// A pin may keep the journal at this many times its limits.
const PINNED_FACTOR: u64 = 2;

/// Names one journal: its sequences mean something only together with this.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InstanceId(pub String);

impl InstanceId {
    /// Returns the id of a journal that is begun on a timeline, after so many forks of it in one run.
    #[must_use]
    pub(crate) fn on(&self, timeline: u32, forks: u64) -> InstanceId {
        match forks {
            0 => InstanceId(format!("{}.{timeline}", self.0)),
            forks => InstanceId(format!("{}.{timeline}.{forks}", self.0)),
        }
    }

    /// Returns the timeline on which a journal was begun, from its id or from the id of one of its snapshots.
    pub(crate) fn timeline_of(id: &str) -> Option<u32> {
        id.split('-').next()?.split('.').nth(1)?.parse().ok()
    }

    /// The id of the snapshot that this journal issues at a sequence.
    #[must_use]
    pub fn snapshot_id(&self, sequence: Sequence) -> String {
        format!("{}-{sequence}", self.0)
    }
}

/// The newest state that readers may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The last visible entry.
    pub sequence: Sequence,
    /// Every commit up to here is visible, or touched another table.
    pub position: Lsn,
    /// When the newest visible transaction committed.
    pub committed_at: CommitTime,
    /// The newest commit of any of the source's tables at or before the position; all zeros where it is unknown.
    pub mark: CommitMark,
    /// The checksum of the rows that readers have here; `None` where it is unknown.
    pub checksum: Option<Checksum>,
}

/// A name that a journal had when an earlier run opened it. Its sequences are this journal's up to `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EarlierInstance {
    pub(crate) id: InstanceId,
    /// The last entry that is known to have been the same under that name.
    pub(crate) last: Sequence,
}

/// The journal of an earlier run, of which a snapshot was made that this journal begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Predecessor {
    pub(crate) instance: InstanceId,
    /// The snapshot's position.
    pub(crate) position: Lsn,
    /// The table is the same at every position from this one to the snapshot's.
    pub(crate) unchanged_since: Lsn,
}

/// The reader's side of a journal; cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    instance: InstanceId,
    /// Names that this journal had before.
    earlier: Vec<EarlierInstance>,
    predecessor: Option<Predecessor>,
    /// Set where the rows are of a history that the database has abandoned.
    parted: AtomicBool,
    /// Set once another journal has taken this one's place.
    closed: watch::Sender<bool>,
    options: JournalOptions,
    head: watch::Sender<Head>,
    inner: RwLock<Inner>,
    readers: Readers,
    gaps: Gaps,
    requests: BaseRequests,
    /// Readers may outlive the store: they must not keep it from the next one.
    store: Option<watch::Receiver<StoreStatus>>,
}

#[derive(Debug)]
struct Inner {
    /// In order. None holds entries on both sides of the head: what is joined was visible before.
    segments: VecDeque<Segment>,
    /// The newest transaction that is no longer kept: a reader that has it can go on.
    pruned: Boundary,
    base: Arc<Base>,
    /// The base's state was the head at this time or later; `None` for the base that the journal was opened with.
    base_shown_at: Option<Instant>,
    /// Since it was opened.
    bases: u64,
    schema: Arc<Schema>,
    /// What the rows at the head are rows of.
    definition: Definition,
    /// Which definition the rows are of at each position that is kept.
    definitions: Definitions,
    /// Where one transaction stands for everything in (from, to]: nobody may go on from inside.
    spans: Vec<(Lsn, Lsn)>,
    /// Positions up to here may be those of a history that the database has abandoned.
    abandoned: Lsn,
    /// The journals of abandoned histories, each with the newest position that its history is known to share with this one.
    abandoned_journals: Vec<(InstanceId, Lsn)>,
    /// Readers that are being sent a base need everything after it.
    pins: BTreeMap<Sequence, BasePins>,
    memory_bytes: u64,
    bytes: u64,
    /// Of those, what the base covers.
    covered_bytes: u64,
    /// No more bytes than this are in small segments at the end, which may be joined.
    unjoined_bytes: u64,
    encoded_entries: u64,
    oversized: Oversized,
}

/// The newest transaction that alone may be larger than the limits: the entries after `before`, up to `last`.
#[derive(Clone, Copy, Debug)]
struct Oversized {
    before: Sequence,
    last: Sequence,
}

/// The pins of one base.
#[derive(Clone, Copy, Debug)]
struct BasePins {
    readers: usize,
    /// Bytes of the base.
    bytes: u64,
}

/// What a journal begins with: a base alone, or what an earlier one left.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) instance: InstanceId,
    pub(crate) earlier: Vec<EarlierInstance>,
    pub(crate) predecessor: Option<Predecessor>,
    pub(crate) abandoned: Lsn,
    /// The journals of abandoned histories, each with the newest position that its history is known to share with this one.
    pub(crate) abandoned_journals: Vec<(InstanceId, Lsn)>,
    pub(crate) base: Arc<Base>,
    pub(crate) schema: Arc<Schema>,
    pub(crate) definition: Definition,
    pub(crate) definitions: Definitions,
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) spans: Vec<(Lsn, Lsn)>,
    pub(crate) gaps: Gaps,
    pub(crate) pruned: Boundary,
    pub(crate) head: Head,
    /// The last sequence that may have been given.
    pub(crate) taken: Sequence,
}

impl Beginning {
    /// Nothing but a base.
    pub(crate) fn at(instance: InstanceId, base: Arc<Base>, definition: Definition) -> Beginning {
        let head = base.head();
        let Head { sequence, position, .. } = head;
        Beginning {
            instance,
            earlier: Vec::new(),
            predecessor: None,
            abandoned: Lsn::ZERO,
            abandoned_journals: Vec::new(),
            schema: base.schema().clone(),
            base,
            definitions: Definitions::new(position, definition.version()),
            definition,
            segments: VecDeque::new(),
            spans: Vec::new(),
            gaps: Gaps::default(),
            pruned: Boundary { sequence, position },
            head,
            taken: sequence,
        }
    }

    /// Lets readers go on from every position at which the table was what it is in the snapshot.
    pub(crate) fn follow(&mut self, predecessor: Predecessor) {
        let since = predecessor.unchanged_since.min(self.pruned.position);
        self.pruned.position = since;
        self.definitions = Definitions::new(since, self.definition.version());
        self.predecessor = Some(predecessor);
    }
}

/// A point between two transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Boundary {
    pub(crate) sequence: Sequence,
    pub(crate) position: Lsn,
}

/// What a journal holds, for people and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalInfo {
    /// The newest visible state.
    pub head: Head,
    /// The first entry that is still kept (one past the head when none is).
    pub oldest_sequence: Sequence,
    /// Entries kept.
    pub entries: u64,
    /// Bytes kept.
    pub bytes: u64,
    /// Bytes of them in memory.
    pub memory_bytes: u64,
    /// Entries encoded since the journal began: each change exactly once, however many readers there are.
    pub encoded_entries: u64,
    /// Rows in the newest base.
    pub base_rows: u64,
    /// Bases since the journal was opened, the first included: each is encoded once, however many readers there are.
    pub bases: u64,
}

/// What the next base is made of.
pub(crate) struct Merging {
    pub(crate) base: Arc<Base>,
    pub(crate) after: Vec<Segment>,
    pub(crate) head: Head,
    /// Of the rows at the head, or of earlier ones.
    pub(crate) definition: Definition,
    /// The newest visible segment that is kept.
    last: Option<Segment>,
    /// The table has not changed after this, except in the kept segments.
    settled: Lsn,
}

impl Merging {
    /// Returns the first position from which on the table is what it is at the head. Blocks where that is in a file.
    pub(crate) fn unchanged_since(&self) -> Lsn {
        let last = self.last.as_ref().map(|last| last.last_position().unwrap_or(last.position));
        last.unwrap_or_default().max(self.settled)
    }
}

/// A base that is being sent, and the promise that everything after it stays until this is dropped.
#[derive(Debug)]
pub struct PinnedBase {
    journal: Journal,
    base: Arc<Base>,
    shown_at: Option<Instant>,
}

impl Journal {
    /// A journal that goes on from `base`, and its one writer.
    #[must_use]
    pub fn new(instance: InstanceId, options: JournalOptions, base: Arc<Base>) -> (Journal, JournalWriter) {
        Journal::open(Beginning::at(instance, base, Definition::default()), options, None)
    }

    /// A journal that goes on from what there is, in a store's files if there is one.
    pub(crate) fn open(
        beginning: Beginning,
        options: JournalOptions,
        appender: Option<Appender>,
    ) -> (Journal, JournalWriter) {
        let Beginning {
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
        let mut inner = Inner {
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
            // One of an earlier run may be there.
            oversized: Oversized { before: head.sequence, last: head.sequence },
        };
        inner.count_covered();
        let shared = Shared {
            instance,
            earlier,
            predecessor,
            parted: AtomicBool::new(false),
            closed: watch::Sender::new(false),
            options,
            head: watch::Sender::new(head),
            inner: RwLock::new(inner),
            readers: Readers::default(),
            gaps,
            requests: BaseRequests::default(),
            store: appender.as_ref().map(|appender| appender.store().status()),
        };
        let journal = Journal { shared: Arc::new(shared) };
        let writer = JournalWriter::new(journal.clone(), taken, appender);
        (journal, writer)
    }

    /// How far its files are; `None` for a journal that does not outlive the process.
    #[must_use]
    pub fn store_status(&self) -> Option<StoreStatus> {
        self.shared.store.as_ref().map(|status| status.borrow().clone())
    }

    /// Visible entries after a sequence.
    #[must_use]
    pub fn entries_after(&self, sequence: Sequence) -> u64 {
        self.shared.gaps.entries(sequence, self.head().sequence)
    }

    /// Its name.
    #[must_use]
    pub fn instance(&self) -> &InstanceId {
        &self.shared.instance
    }

    /// Notes that the database has abandoned the history of its rows.
    pub(crate) fn part(&self) {
        self.shared.parted.store(true, Ordering::Release);
    }

    /// Returns true if the database has abandoned the history of the rows. Another journal takes its place once the table is copied.
    #[must_use]
    pub fn is_parted(&self) -> bool {
        self.shared.parted.load(Ordering::Acquire)
    }

    /// Ends the journal for its readers: another one has taken its place.
    pub(crate) fn close(&self) {
        self.shared.closed.send_replace(true);
    }

    /// Waits until another journal takes this one's place.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.subscribe();
        // The sender lives as long as `self`.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Notes that positions up to here may be another history's.
    pub(crate) fn abandon_up_to(&self, position: Lsn) {
        let mut inner = self.shared.inner.write();
        inner.abandoned = inner.abandoned.max(position);
    }

    /// The newest visible state.
    #[must_use]
    pub fn head(&self) -> Head {
        *self.shared.head.borrow()
    }

    /// Tells of every move of the head. Ends when the writer is gone.
    #[must_use]
    pub fn watch_head(&self) -> watch::Receiver<Head> {
        self.shared.head.subscribe()
    }

    /// The schema of the newest rows.
    #[must_use]
    pub fn schema(&self) -> Arc<Schema> {
        self.shared.inner.read().schema.clone()
    }

    /// What it holds.
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

    /// The newest base.
    #[must_use]
    pub fn base(&self) -> Arc<Base> {
        self.shared.inner.read().base.clone()
    }

    /// The newest base, pinned: what came after it is kept until the pin is dropped.
    #[must_use]
    pub fn pin_base(&self) -> PinnedBase {
        let mut inner = self.shared.inner.write();
        let (base, shown_at) = (inner.base.clone(), inner.base_shown_at);
        let unpinned = BasePins { readers: 0, bytes: base.bytes() };
        inner.pins.entry(base.sequence()).or_insert(unpinned).readers += 1;
        PinnedBase { journal: self.clone(), base, shown_at }
    }

    /// The sequence of the oldest base that is pinned, where the journal is beyond twice its limits, and more than they allow is
    /// covered by a newer base and kept for pins alone. Whoever holds it should let it go: the disk is not for one slow reader.
    #[must_use]
    pub fn overdue_pin(&self) -> Option<Sequence> {
        let inner = self.shared.inner.read();
        let oldest = *inner.pins.keys().next()?;
        let (limits, from, base) = (&self.shared.options, inner.pruned.sequence, inner.base.sequence());
        let covered_entries = self.shared.gaps.entries(from, base);
        // A transaction that alone is larger than the limits is kept for all who read it.
        let (large_entries, large_bytes) = inner.oversized_size(&self.shared.gaps);
        let entries = self.entries_after(from).saturating_sub(large_entries);
        let bytes = inner.bytes.saturating_sub(large_bytes);
        let is_over = (entries / PINNED_FACTOR > limits.entries_max
            && covered_entries.saturating_sub(large_entries) > limits.entries_max)
            || (bytes / PINNED_FACTOR > limits.bytes_max
                && inner.covered_bytes.saturating_sub(large_bytes) > limits.bytes_max);
        (is_over && oldest < base).then_some(oldest)
    }

    /// Decides how a request goes on: see the rules of [`Resolution`]. Blocks where what it asks for is in a file.
    #[must_use]
    pub fn resolve(&self, request: &ResumeRequest) -> Resolution {
        self.with_facts(request, |facts, floor, commit| {
            resolve(request, facts, floor, |sequence| commit.read(sequence))
        })
    }

    /// Returns the newest position up to which the history of a request's rows and this journal's are known to be the same;
    /// zero where nothing is known. Blocks where what it needs is in a file.
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

    /// Calls with what a request is resolved by. Blocks where that is in a file.
    fn with_facts<T>(
        &self,
        request: &ResumeRequest,
        call: impl FnOnce(&resolve::Facts<'_>, &dyn Fn(Lsn) -> resolve::Floor, &resolve::CommitAt) -> T,
    ) -> T {
        // Files are read when the lock is free again: the writer must not wait for them.
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
        let facts = resolve::Facts {
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
            true => of_position.read(position),
            false => of_mark.read(position),
        };
        call(&facts, &floor, &commit)
    }

    /// Returns the definition that the rows are of at a position; unknown where that is older than what is kept.
    #[must_use]
    pub fn definition_at(&self, position: Lsn) -> DefinitionVersion {
        self.shared.inner.read().definitions.at(position)
    }

    /// A reader of everything after `after`.
    #[must_use]
    pub fn cursor(&self, after: Sequence) -> Cursor {
        Cursor::new(self.clone(), after)
    }

    /// Registers a reader, to be seen in the status and held to its buffer policy.
    #[must_use]
    pub fn register(&self, options: ReaderOptions, at: Sequence) -> Reader {
        self.add_reader(options, at)
    }

    /// Everybody who reads.
    #[must_use]
    pub fn readers(&self) -> Vec<ReaderInfo> {
        self.shared.readers.list()
    }

    /// Puts a newer base in place, whose state was the head at `shown_at` or later; what only the older one needed may go.
    pub(crate) fn replace_base(&self, base: Arc<Base>, shown_at: Instant) {
        let reading = self.shared.reading();
        let mut inner = self.shared.inner.write();
        inner.base = base;
        inner.base_shown_at = Some(shown_at);
        inner.bases += 1;
        inner.count_covered();
        inner.prune(&self.shared.options, &self.shared.gaps, self.head().sequence, &reading);
    }

    /// The newest base and all visible segments after it: what the next base is made of.
    pub(crate) fn base_and_after(&self) -> Merging {
        let inner = self.shared.inner.read();
        // Read under the lock: no segment that is here now then holds entries on both sides of it.
        let head = self.head();
        let from = inner.base.sequence();
        let after = inner.segments.iter().filter(|s| s.last > from && s.last <= head.sequence);
        let last = inner.segments.iter().rev().find(|segment| segment.last <= head.sequence);
        let span = inner.spans.last().map_or(Lsn::ZERO, |(_, to)| *to);
        // Behind the newest transaction that is not kept nothing else was pruned.
        let pruned = if last.is_some() { Lsn::ZERO } else { inner.pruned.position };
        Merging {
            base: inner.base.clone(),
            after: after.cloned().collect(),
            head,
            definition: inner.definition.clone(),
            last: last.cloned(),
            settled: pruned.max(span).max(inner.definitions.newest_since()),
        }
    }

    /// What the rows at the head are rows of.
    pub(crate) fn definition(&self) -> Definition {
        self.shared.inner.read().definition.clone()
    }

    /// Returns true if another definition has changed rows after the newest base. Newcomers should not have to go through that.
    pub(crate) fn is_base_outdated(&self) -> bool {
        let inner = self.shared.inner.read();
        inner.definitions.change_rows_after(inner.base.position())
    }

    /// How much it keeps.
    pub(crate) fn options(&self) -> &JournalOptions {
        &self.shared.options
    }

    /// How old the first segment is that the newest base does not cover.
    pub(crate) fn oldest_age_after_base(&self) -> Option<Duration> {
        let inner = self.shared.inner.read();
        let from = inner.base.sequence();
        let index = inner.segments.partition_point(|segment| segment.last <= from);
        inner.segments.get(index).map(|segment| segment.appended_at.elapsed())
    }

    /// Bytes of the newest base, and bytes and entries of the journal after it.
    pub(crate) fn base_debt(&self) -> (u64, u64, u64) {
        let inner = self.shared.inner.read();
        let head = self.head();
        (inner.base.bytes(), inner.bytes_after_base(), self.shared.gaps.entries(inner.base.sequence(), head.sequence))
    }
}

impl Shared {
    /// Returns the sequences that readers have taken, where the journal may keep a transaction larger than its limits. Taken
    /// before the lock on what is kept: a reader that moves holds its own first.
    fn reading(&self) -> Vec<Sequence> {
        let is_oversized = {
            let inner = self.inner.read();
            inner.pruned.sequence < inner.oversized.last
        };
        if is_oversized { self.readers.taken() } else { Vec::new() }
    }
}

impl PinnedBase {
    /// The base.
    #[must_use]
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// Its state was the head at this time or later; `None` where that is not known.
    #[must_use]
    pub fn shown_at(&self) -> Option<Instant> {
        self.shown_at
    }
}

impl Drop for PinnedBase {
    fn drop(&mut self) {
        let reading = self.journal.shared.reading();
        let mut inner = self.journal.shared.inner.write();
        if let Some(pins) = inner.pins.get_mut(&self.base.sequence()) {
            pins.readers -= 1;
            if pins.readers == 0 {
                inner.pins.remove(&self.base.sequence());
                let Shared { options, gaps, .. } = &*self.journal.shared;
                inner.prune(options, gaps, self.journal.head().sequence, &reading);
            }
        }
    }
}
