//! The writer of a journal.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use laredo_core::{Checksum, CommitMark, CommitTime, DefinitionVersion, Lsn, Schema, Sequence, TupleRef, Xid};
use laredo_proto::batch::{BATCH_BYTES, BatchBuilder, BatchHeader, EntryAction};
use tokio::time::Instant;

use super::readers::SlowReaderWait;
use super::{DefinitionChange, Journal};
use crate::head::Head;
use crate::segment::{SEGMENT_BYTES, Segment, SegmentData};
use crate::spool::temporary_file;
use crate::store::{
    DataFile, JournalAppender, RecordHead, RecordKind, RowDefinition, StoreError, StoredPart, StoredSegment,
};

/// Transactions that arrive together are published together up to this many bytes.
const PUBLISH_BYTES: usize = 256 * 1024;
/// The size at which a new temporary file begins. Disk space is freed file by file.
const SPILL_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// The only writer of a journal. Appends transactions.
///
/// Call `begin`, then `push` for each change, then `commit` or `abort`. Readers see nothing before
/// `publish`.
#[derive(Debug)]
pub struct JournalWriter {
    journal: Journal,
    batch: BatchBuilder,
    /// The old rows of the batch's entries, in the order of the entries.
    batch_olds: Vec<u8>,
    frames: Vec<u8>,
    olds: Vec<u8>,
    /// The last sequence that was assigned, visible or not.
    sequence: Sequence,
    /// The newest committed state, visible or not.
    committed: Head,
    schema: Arc<Schema>,
    /// Facts about the contents of `frames`.
    piece: PendingSegment,
    open: Option<OpenTransaction>,
    spill: Option<(Arc<DataFile>, u64)>,
    /// The appender of the store; `None` if the journal is not kept on disk.
    appender: Option<JournalAppender>,
}

#[derive(Clone, Debug)]
struct PendingSegment {
    first: Sequence,
    before: Lsn,
    begins: bool,
    schema: Arc<Schema>,
}

/// The transaction that is being written.
#[derive(Clone, Debug)]
struct OpenTransaction {
    header: BatchHeader,
    /// The lengths and values to restore if the transaction is aborted, down to `schema`.
    frames: usize,
    olds: usize,
    sequence: Sequence,
    schema: Arc<Schema>,
    /// The definition of its rows, if the transaction changes it.
    definition: Option<DefinitionVersion>,
    /// True if pieces of the transaction are in the journal already. They are not visible.
    pieces: bool,
    /// The checksum of the rows after the transaction.
    checksum: Option<Checksum>,
}

impl JournalWriter {
    /// Creates a writer that assigns sequences after `assigned`.
    pub(super) fn new(journal: Journal, assigned: Sequence, appender: Option<JournalAppender>) -> JournalWriter {
        let committed = journal.head();
        let schema = journal.schema();
        let piece = PendingSegment {
            first: assigned.plus(1),
            before: committed.position,
            begins: true,
            schema: schema.clone(),
        };
        JournalWriter {
            journal,
            batch: BatchBuilder::default(),
            batch_olds: Vec::new(),
            frames: Vec::new(),
            olds: Vec::new(),
            sequence: assigned,
            committed,
            schema,
            piece,
            open: None,
            spill: None,
            appender,
        }
    }

    /// Returns the journal.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Returns the newest committed state, which may not be visible yet.
    #[must_use]
    pub fn committed(&self) -> Head {
        self.committed
    }

    /// Begins a transaction of the source.
    ///
    /// # Errors
    /// Returns the errors of [`JournalWriter::begin`], which has none for a transaction without a
    /// span.
    pub fn begin_commit(&mut self, mark: CommitMark) -> io::Result<()> {
        self.begin(mark.end, mark.committed_at, None)?;
        self.open.iter_mut().for_each(|open| open.header.xid = mark.xid);
        Ok(())
    }

    /// Begins a transaction that ends at `position`. With `span_from`, it contains all changes of
    /// (`span_from`, `position`] in one step, and earlier transactions are published first.
    ///
    /// # Errors
    /// When an earlier transaction could not be handed to the store, or older segments could not be
    /// moved to a temporary file.
    pub fn begin(&mut self, position: Lsn, committed_at: CommitTime, span_from: Option<Lsn>) -> io::Result<()> {
        debug_assert!(self.open.is_none(), "one transaction at a time");
        if span_from.is_some() {
            self.publish()?;
        }
        let (last_sequence, ends, xid) = (self.sequence, false, Xid(0));
        let header = BatchHeader { last_sequence, position, span_from, committed_at, ends, xid };
        self.open = Some(OpenTransaction {
            header,
            frames: self.frames.len(),
            olds: self.olds.len(),
            sequence: self.sequence,
            schema: self.schema.clone(),
            definition: None,
            pieces: false,
            checksum: None,
        });
        Ok(())
    }

    /// Adds a change.
    ///
    /// `row` is the whole row for an insert and an update, and the key's cells for a delete. `old`
    /// is the whole row before an update or delete.
    ///
    /// # Errors
    /// When a piece of the transaction could not be handed to the store, or older segments could
    /// not be moved to a temporary file.
    pub fn push(&mut self, action: EntryAction, row: TupleRef<'_>, old: Option<TupleRef<'_>>) -> io::Result<()> {
        debug_assert_eq!(
            old.is_some(),
            matches!(action, EntryAction::Update | EntryAction::Delete),
            "old rows by action"
        );
        // A full batch is closed when the next entry comes. So a transaction's last batch is never
        // empty. Old rows count separately: those of deletes may be large while the entries are
        // small.
        if self.batch.is_full() || self.batch_olds.len() >= BATCH_BYTES {
            self.close_batch(false);
            if self.frames.len() + self.olds.len() >= SEGMENT_BYTES {
                self.close_part_of_open()?;
            }
        }
        self.sequence = self.sequence.plus(1);
        self.batch.push(action, row);
        if let Some(old) = old {
            put_length(&mut self.batch_olds, old.bytes().len());
            self.batch_olds.extend_from_slice(old.bytes());
        }
        Ok(())
    }

    /// Changes the schema of the rows that follow. The change takes a sequence of its own.
    pub fn change_schema(&mut self, schema: &Arc<Schema>) {
        if !self.batch.is_empty() {
            self.close_batch(false);
        }
        self.sequence = self.sequence.plus(1);
        self.batch.set_schema(schema);
        self.schema = schema.clone();
    }

    /// Sets the definition of the rows from the open transaction on. Must be called before the
    /// changes of the transaction. Readers receive the definition with the first of them.
    pub(crate) fn begin_definition(&mut self, definition: DefinitionVersion) {
        let newest = self.journal.newest_definition();
        let Some(open) = self.open.as_mut().filter(|_| newest != definition) else { return };
        open.definition = Some(definition);
        self.batch.set_definition(definition);
    }

    /// Notes the checksum of the rows that readers have after the open transaction. Without it, the
    /// next head has no checksum.
    pub fn note_checksum(&mut self, checksum: Checksum) {
        if let Some(open) = &mut self.open {
            open.checksum = Some(checksum);
        }
    }

    /// Ends the transaction. It becomes visible at the next [`JournalWriter::publish`], which this
    /// calls itself once many bytes are waiting.
    ///
    /// # Errors
    /// When a transaction could not be handed to the store, or older segments could not be moved to
    /// a temporary file. The transaction is in the journal nevertheless.
    pub fn commit(&mut self) -> io::Result<()> {
        let Some(open) = self.open.clone() else { return Ok(()) };
        let position = open.header.position;
        if let Some(from) = open.header.span_from {
            self.journal.note_span(from, position);
        }
        if let Some(definition) = open.definition {
            let change = match self.sequence == open.sequence {
                true => DefinitionChange::KeepsRows,
                false => DefinitionChange::ChangesRows,
            };
            self.journal.note_definition(position, definition, change);
        }
        // The newest commit of a span is noted when the writer is advanced to the span's end.
        let mark = open.header.mark().known().unwrap_or_default();
        if self.sequence == open.sequence {
            self.open = None;
            // An empty transaction has no batch that could carry the definition to readers.
            self.batch.set_definition(DefinitionVersion::UNKNOWN);
            self.advance(position, mark);
            self.committed.checksum = open.checksum;
            if let (Some(appender), Some(from)) = (&mut self.appender, open.header.span_from) {
                appender.mark(self.committed, Some(from));
            }
            return Ok(());
        }
        self.close_batch(true);
        let OpenTransaction { header, pieces, checksum, .. } = open;
        let (sequence, position, committed_at) = (self.sequence, header.position, header.committed_at);
        self.committed = Head { sequence, position, committed_at, mark, checksum };
        let limits = self.journal.options();
        let bytes = (self.frames.len() + self.olds.len()) as u64;
        let exceeds_entries = self.sequence.entries_since(open.sequence) > limits.entries_max;
        let is_oversized = pieces || exceeds_entries || bytes > limits.bytes_max;
        self.journal.note_committed(open.sequence, self.sequence, is_oversized);
        let closed = if pieces || header.span_from.is_some() { self.close_piece(true) } else { Ok(()) };
        self.open = None;
        if pieces || header.span_from.is_some() || self.frames.len() + self.olds.len() >= PUBLISH_BYTES {
            self.publish()?;
        }
        closed
    }

    /// Discards the open transaction.
    pub fn abort(&mut self) {
        let Some(open) = self.open.take() else { return };
        self.batch = BatchBuilder::default();
        self.batch_olds.clear();
        self.sequence = open.sequence;
        self.schema = open.schema;
        if open.pieces {
            self.frames.clear();
            self.olds.clear();
            self.start_piece(open.sequence, true);
            self.journal.discard_after(open.sequence, &self.schema);
            self.appender.iter_mut().for_each(JournalAppender::abort);
        } else {
            self.frames.truncate(open.frames);
            self.olds.truncate(open.olds);
        }
    }

    /// Advances the committed position. Every commit up to `position` must be known: it is in the
    /// journal, or changed only other tables.
    ///
    /// `mark` is the newest of these commits, of any table; all zeros if unknown.
    pub fn advance(&mut self, position: Lsn, mark: CommitMark) {
        if position > self.committed.position
            || (position == self.committed.position && mark.end > self.committed.mark.end)
        {
            (self.committed.position, self.committed.mark) = (position, mark);
        }
        if self.frames.is_empty() {
            self.piece.before = self.committed.position;
        }
    }

    /// Makes all committed transactions visible. Does not wait for readers: the caller does so with
    /// [`JournalWriter::enforce_buffer_policies`].
    ///
    /// # Errors
    /// When a transaction could not be handed to the store, or older segments could not be moved to
    /// a temporary file. All committed transactions are visible nevertheless.
    pub fn publish(&mut self) -> io::Result<()> {
        let spilled = if self.frames.is_empty() { Ok(()) } else { self.close_piece(true) };
        if let Some(pruned) = self.journal.publish(self.committed) {
            self.appender.iter_mut().for_each(|appender| appender.forget(pruned));
        }
        spilled
    }

    /// Applies the buffer policies: cuts readers that are too far behind. Returns a wait if the
    /// writer should wait for a slow reader.
    #[must_use]
    pub fn enforce_buffer_policies(&self) -> Option<SlowReaderWait> {
        self.journal.enforce_buffer_policies(self.committed.sequence)
    }

    fn close_batch(&mut self, ends: bool) {
        let Some(open) = &self.open else { return };
        let xid = if ends { open.header.xid } else { Xid(0) };
        let header = BatchHeader { last_sequence: self.sequence, ends, xid, ..open.header };
        self.batch.finish(&header, &mut self.frames);
        put_length(&mut self.olds, self.batch_olds.len());
        self.olds.append(&mut self.batch_olds);
    }

    /// Moves the changes of the open transaction so far into the journal. Earlier committed
    /// transactions are moved first, into a segment of their own. A segment has whole transactions
    /// or a piece of one, never both.
    fn close_part_of_open(&mut self) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let earlier = (!open.pieces && open.frames > 0).then(|| {
            (self.frames.split_off(open.frames), self.olds.split_off(open.olds), open.sequence, open.schema.clone())
        });
        open.pieces = true;
        if let Some((frames, olds, before, schema)) = earlier {
            let (newest, open, newest_schema) = (self.sequence, self.open.take(), self.schema.clone());
            (self.sequence, self.schema) = (before, schema);
            let closed = self.close_piece(true);
            (self.sequence, self.schema, self.open) = (newest, newest_schema, open);
            (self.frames, self.olds) = (frames, olds);
            closed?;
        }
        self.close_piece(false)
    }

    /// Moves the contents of `frames` into the journal as one segment.
    fn close_piece(&mut self, ends: bool) -> io::Result<()> {
        let (position, span_from) = match &self.open {
            Some(open) => (open.header.position, open.header.span_from),
            None => (self.committed.position, None),
        };
        let piece = self.piece.clone();
        let (frames, olds) = (without_spare(&mut self.frames), without_spare(&mut self.olds));
        let stored = self.store_piece(&piece, ends, position, span_from, &frames, &olds);
        // If the store fails, readers still receive the piece. The caller ends the table.
        let (stored, kept) = match stored.transpose() {
            Ok(stored) => (stored, Ok(())),
            Err(error) => (None, Err(io::Error::other(error))),
        };
        let segment = Segment {
            first: piece.first,
            last: self.sequence,
            before: piece.before,
            position,
            span_from,
            begins: piece.begins,
            ends,
            schema: piece.schema,
            marks: Vec::new(),
            appended_at: Instant::now(),
            data: SegmentData::Memory { frames, olds, stored },
        };
        self.start_piece(self.sequence, ends);
        let memory_bytes = self.journal.append(segment, &self.schema);
        kept?;
        if memory_bytes > self.journal.options().memory_bytes_max { self.spill() } else { Ok(()) }
    }

    fn start_piece(&mut self, after: Sequence, begins: bool) {
        self.piece = PendingSegment {
            first: after.plus(1),
            before: self.committed.position,
            begins,
            schema: self.schema.clone(),
        };
    }
}

impl JournalWriter {
    /// Moves the oldest segments out of memory until the memory is within its bound.
    ///
    /// Without a store, they are written to temporary files. With a store, they are read from its
    /// files from then on. A segment that the store has not written yet stays in memory. The queue
    /// of the store bounds such segments.
    fn spill(&mut self) -> io::Result<()> {
        loop {
            let Some((last, data)) = self.journal.oldest_in_memory() else {
                return Ok(());
            };
            let moved = match &data {
                SegmentData::Memory { stored: Some(stored), .. } if stored.is_written() => stored.clone(),
                SegmentData::Memory { frames, olds, stored: None } => self.spill_to_temporary(frames, olds)?,
                SegmentData::Memory { .. } | SegmentData::File(_) => return Ok(()),
            };
            self.journal.replace_data(last, SegmentData::File(moved));
        }
    }

    fn spill_to_temporary(&mut self, frames: &Bytes, olds: &Bytes) -> io::Result<StoredSegment> {
        let (file, at) = match self.spill.take() {
            Some((file, at)) if at < SPILL_FILE_BYTES => (file, at),
            _ => (Arc::new(DataFile::temporary(temporary_file(&self.journal.options().folder)?)), 0),
        };
        file.file().write_all(frames)?;
        file.file().write_all(olds)?;
        self.spill = Some((file.clone(), at + (frames.len() + olds.len()) as u64));
        Ok(StoredSegment::new(file, StoredPart { at, frames: frames.len(), olds: olds.len(), checksum: None }))
    }
}

impl JournalWriter {
    #[cfg(test)]
    pub(crate) fn sequence(&self) -> Sequence {
        self.sequence
    }

    #[cfg(test)]
    pub(crate) fn store(&self) -> &Arc<crate::store::JournalFolder> {
        self.appender.as_ref().expect("a journal with a store").store()
    }

    /// Sets the definition of the newest committed rows.
    pub(crate) fn define(&mut self, definition: RowDefinition) {
        self.appender.iter_mut().for_each(|appender| appender.define(&definition));
        self.journal.define(self.committed.position, definition);
    }

    /// Writes the newest position to the store if it is due.
    pub(crate) fn mark_if_due(&mut self, now: Instant) {
        let committed = self.committed;
        if self.frames.is_empty()
            && let Some(appender) = &mut self.appender
            && appender.mark_due_at(committed).is_some_and(|at| at <= now)
        {
            appender.mark(committed, None);
        }
    }

    /// Returns the time when [`JournalWriter::mark_if_due`] should be called again.
    pub(crate) fn mark_due_at(&self) -> Option<Instant> {
        self.appender.as_ref()?.mark_due_at(self.committed)
    }

    /// Stops waiting for a full disk: from now on, a write that finds the disk full fails for good.
    pub(crate) fn stop_waiting_for_disk(&self) {
        self.appender.iter().for_each(JournalAppender::stop_waiting_for_disk);
    }

    /// Returns true if the store is so far behind that the table should wait for it.
    pub(crate) fn is_ahead_of_disk(&self) -> bool {
        self.appender.as_ref().is_some_and(JournalAppender::is_behind)
    }

    /// Hands a piece to the store, if there is one.
    fn store_piece(
        &mut self,
        piece: &PendingSegment,
        ends: bool,
        position: Lsn,
        span_from: Option<Lsn>,
        frames: &Bytes,
        olds: &Bytes,
    ) -> Option<Result<StoredSegment, StoreError>> {
        let appender = self.appender.as_mut()?;
        let head = RecordHead {
            kind: RecordKind::Frames,
            begins: piece.begins,
            ends,
            has_schema: !Arc::ptr_eq(&piece.schema, &self.schema),
            first: piece.first,
            last: self.sequence,
            before: piece.before,
            position,
            span_from,
            committed_at: self.committed.committed_at,
            synced: 0,
            frames: 0,
            olds: 0,
            checksum: 0,
        };
        Some(appender.append(head, &piece.schema, frames, olds, ends.then_some(self.committed)))
    }
}

impl Drop for JournalWriter {
    /// Writes the last position to the store, so that a restart requests only what follows it. Does
    /// not do so if transactions before it are still unpublished: no reader saw them, and the
    /// source has them.
    fn drop(&mut self) {
        let committed = self.committed;
        if !self.frames.is_empty() {
            return;
        }
        if let Some(appender) = self.appender.as_mut().filter(|appender| appender.mark_due_at(committed).is_some()) {
            appender.mark(committed, None);
        }
    }
}

/// Returns the contents without spare capacity: the memory bounds count only used bytes.
fn without_spare(bytes: &mut Vec<u8>) -> Bytes {
    let mut bytes = std::mem::take(bytes);
    bytes.shrink_to_fit();
    Bytes::from(bytes)
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).expect("rows and batches are far below 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
}
