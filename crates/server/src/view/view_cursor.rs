//! The progress of one client through a journal, as seen through a view.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use laredo_core::{CommitMark, CommitTime, DefinitionVersion, Lsn, Schema, Sequence, Xid};
use laredo_engine::journal::{self, BatchFrame, JournalPiece};

use super::changes::FrameChanges;
use super::{EntryMode, JournalView, PositionMarker, StreamFormat, ViewError, empty_batch, marker};

/// The maximum size in bytes of small frames that are sent together.
const CHUNK_BYTES: usize = 256 * 1024;

/// The place of a client in the current piece, and its state between pieces.
#[derive(Debug)]
pub(crate) struct ViewCursor {
    view: Arc<JournalView>,
    run: Bytes,
    olds: Bytes,
    schema: Arc<Schema>,
    before: Lsn,
    began_after: Sequence,
    after: Sequence,
    /// True if a part of the transaction was sent, but not its end.
    is_open: bool,
    /// The mode in which the client receives the next entries.
    mode: EntryMode,
    /// The newest transaction that was passed.
    reached: Option<TransactionEnd>,
    /// The newest definition that a transaction began.
    begun: DefinitionVersion,
}

/// The end of a transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransactionEnd {
    pub(crate) sequence: Sequence,
    pub(crate) position: Lsn,
    pub(crate) committed_at: CommitTime,
    pub(crate) xid: Xid,
    /// True if the client was notified of the end.
    pub(crate) is_reported: bool,
}

impl TransactionEnd {
    /// Returns the commit. The end of a span is a mark without a transaction.
    pub(crate) fn mark(self) -> CommitMark {
        CommitMark { end: self.position, xid: self.xid, committed_at: self.committed_at }
    }
}

/// The result of one step.
#[derive(Debug)]
pub(crate) struct ProjectedChunk {
    /// Encoded frames; empty if nothing was let through.
    pub(crate) bytes: Bytes,
    /// The last entry that was processed.
    pub(crate) last: Sequence,
}

impl ViewCursor {
    /// Returns a walk that begins after `after`, with the mode of the first transaction.
    pub(crate) fn new(view: Arc<JournalView>, schema: Arc<Schema>, after: Sequence, mode: EntryMode) -> ViewCursor {
        ViewCursor {
            view,
            run: Bytes::new(),
            olds: Bytes::new(),
            schema,
            before: Lsn::ZERO,
            began_after: after,
            after,
            is_open: false,
            mode,
            reached: None,
            begun: DefinitionVersion::UNKNOWN,
        }
    }

    /// Ends the client's snapshot, between transactions.
    pub(crate) fn end_snapshot(&mut self) {
        self.mode = EntryMode::Ordinary;
    }

    /// Sets the next piece to process.
    pub(crate) fn load(&mut self, piece: JournalPiece) {
        debug_assert!(self.run.is_empty(), "one piece at a time");
        self.run = piece.frames;
        self.olds = piece.olds;
        self.schema = piece.schema;
        self.before = piece.before;
        self.began_after = piece.began_after;
        self.after = piece.after;
    }

    /// Returns the number of bytes that have not been processed, of new rows or of old ones. A
    /// delete is small, but its old row may be large.
    pub(crate) fn remaining(&self) -> usize {
        self.run.len().max(self.olds.len())
    }

    pub(crate) fn reached(&self) -> Option<TransactionEnd> {
        self.reached
    }

    /// Returns the newest definition that a passed transaction began, or unknown if none did.
    pub(crate) fn begun_definition(&self) -> DefinitionVersion {
        self.begun
    }

    /// Processes some frames. Returns `None` at the end of the piece. The work may take long if
    /// frames are large.
    ///
    /// # Errors
    /// Returns an error if a frame cannot be projected.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<ProjectedChunk>, ViewError> {
        let mut out = BytesMut::new();
        let mut last = None;
        let from = self.run.len();
        while !self.run.is_empty() && out.len() < CHUNK_BYTES && from - self.run.len() < CHUNK_BYTES {
            let frame = journal::frames(self.run.clone()).next().ok_or(ViewError::Frame)?;
            self.run.advance(frame.length);
            last = Some(frame.header.last_sequence);
            let bytes = self.frame(&frame)?;
            if out.is_empty() && bytes.len() >= CHUNK_BYTES / 4 {
                // The frame is large enough to send alone, without a copy.
                return Ok(last.map(|last| ProjectedChunk { bytes, last }));
            }
            out.extend_from_slice(&bytes);
        }
        let bytes = out.freeze();
        Ok(last.map(|last| ProjectedChunk { bytes, last }))
    }

    fn frame(&mut self, frame: &BatchFrame) -> Result<Bytes, ViewError> {
        let olds = take_olds(&mut self.olds);
        let selection_before = self.view.selection(&self.schema)?;
        if let Some(schema) = frame.batch.schema.clone() {
            self.schema = Arc::new(laredo_proto::schema::from_wire(schema)?);
        }
        if frame.batch.definition != 0 {
            self.begun = DefinitionVersion(frame.batch.definition);
        }
        let selection = self.view.selection(&self.schema)?;
        let projected = self.view.changes(&FrameChanges {
            frame,
            olds: &olds,
            schema: &self.schema,
            selection: &selection,
            selection_before: &selection_before,
            before: self.before,
            began_after: self.began_after,
            after: self.after,
            mode: self.mode,
        })?;
        self.is_open |= !projected.bytes.is_empty();
        if frame.header.ends {
            return Ok(self.end(frame, projected));
        }
        Ok(projected.bytes)
    }

    fn end(&mut self, frame: &BatchFrame, projected: super::ProjectedFrame) -> Bytes {
        let header = &frame.header;
        let reached = TransactionEnd {
            sequence: header.last_sequence,
            position: header.position,
            committed_at: header.committed_at,
            xid: header.xid,
            is_reported: self.is_open,
        };
        // Inside a snapshot, no entry carries a position before the snapshot's end.
        let bytes = match self.is_open && !projected.carries_end && self.mode != EntryMode::Snapshot {
            true => self.close(reached, &projected.bytes),
            false => projected.bytes,
        };
        self.reached = Some(reached);
        self.is_open = false;
        if self.mode == EntryMode::Repeat {
            self.mode = EntryMode::Ordinary;
        }
        self.before = header.position;
        self.began_after = header.last_sequence;
        bytes
    }

    /// Returns the frames with the transaction's end appended, for a transaction whose last entries
    /// were not let through.
    fn close(&self, reached: TransactionEnd, bytes: &[u8]) -> Bytes {
        let mut out = bytes.to_vec();
        let TransactionEnd { sequence, position, committed_at, .. } = reached;
        match self.view.format {
            StreamFormat::Batches => {
                empty_batch(sequence, reached.mark(), DefinitionVersion::UNKNOWN, &mut out);
            }
            StreamFormat::Structs => marker(PositionMarker { sequence, position, committed_at }, &mut out),
            StreamFormat::Events => {}
        }
        out.into()
    }
}

/// Takes the old rows of the next frame.
fn take_olds(olds: &mut Bytes) -> Bytes {
    let Some(length) = olds.first_chunk::<4>() else {
        return Bytes::new();
    };
    let length = u32::from_be_bytes(*length) as usize;
    olds.advance(4);
    olds.split_to(length.min(olds.len()))
}
