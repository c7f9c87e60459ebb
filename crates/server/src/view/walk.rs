//! One client's walk along a journal through a view.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use laredo_core::{CommitMark, CommitTime, DefinitionVersion, Lsn, Schema, Sequence, Xid};
use laredo_engine::journal::{self, Frame, Piece};
use laredo_proto::replication::RowEncoding;

use super::changes::FrameChanges;
use super::{EntryMode, Marker, View, ViewError, empty_batch, marker};

/// Bytes that are sent together; small frames are joined up to this.
const CHUNK_BYTES: usize = 256 * 1024;

/// Where a client is, in a piece that it goes through and beyond it.
#[derive(Debug)]
pub(crate) struct Walk {
    view: Arc<View>,
    run: Bytes,
    olds: Bytes,
    schema: Arc<Schema>,
    before: Lsn,
    began_after: Sequence,
    after: Sequence,
    /// Something of the transaction was sent, and not its end.
    is_open: bool,
    /// The way in which the client gets what comes next.
    mode: EntryMode,
    /// The newest transaction that was gone through.
    reached: Option<Reached>,
    /// The newest definition that a transaction began.
    begun: DefinitionVersion,
}

/// The end of a transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reached {
    pub(crate) sequence: Sequence,
    pub(crate) position: Lsn,
    pub(crate) committed_at: CommitTime,
    pub(crate) xid: Xid,
    /// Whether the client was told of it.
    pub(crate) is_told: bool,
}

impl Reached {
    /// Returns the commit, or the end of a span as a mark without a transaction.
    pub(crate) fn mark(self) -> CommitMark {
        CommitMark { end: self.position, xid: self.xid, committed_at: self.committed_at }
    }
}

/// What one step gives.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Ready frames; empty where nothing was let through.
    pub(crate) bytes: Bytes,
    /// The last entry looked at.
    pub(crate) last: Sequence,
}

impl Walk {
    /// Begins after `after`; `mode` is that of the first transaction.
    pub(crate) fn new(view: Arc<View>, schema: Arc<Schema>, after: Sequence, mode: EntryMode) -> Walk {
        Walk {
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

    /// Ends the snapshot that the client got so far, between transactions.
    pub(crate) fn end_snapshot(&mut self) {
        self.mode = EntryMode::Ordinary;
    }

    /// The next piece to go through.
    pub(crate) fn load(&mut self, piece: Piece) {
        debug_assert!(self.run.is_empty(), "one piece at a time");
        self.run = piece.frames;
        self.olds = piece.olds;
        self.schema = piece.schema;
        self.before = piece.before;
        self.began_after = piece.began_after;
        self.after = piece.after;
    }

    /// Bytes that have not been gone through.
    pub(crate) fn remaining(&self) -> usize {
        self.run.len()
    }

    pub(crate) fn reached(&self) -> Option<Reached> {
        self.reached
    }

    /// Returns the newest definition that a transaction which was gone through began; unknown where none did.
    pub(crate) fn begun_definition(&self) -> DefinitionVersion {
        self.begun
    }

    /// Goes through some frames; `None` at the end of the piece. Takes a while where they are large.
    ///
    /// # Errors
    /// When one cannot be shown.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<Chunk>, ViewError> {
        let mut out = BytesMut::new();
        let mut last = None;
        let from = self.run.len();
        while !self.run.is_empty() && out.len() < CHUNK_BYTES && from - self.run.len() < CHUNK_BYTES {
            let frame = journal::frames(self.run.clone()).next().ok_or(ViewError::Frame)?;
            self.run.advance(frame.length);
            last = Some(frame.header.last_sequence);
            let bytes = self.frame(&frame)?;
            if out.is_empty() && bytes.len() >= CHUNK_BYTES / 4 {
                // Large enough to go as it is, without a copy.
                return Ok(last.map(|last| Chunk { bytes, last }));
            }
            out.extend_from_slice(&bytes);
        }
        let bytes = out.freeze();
        Ok(last.map(|last| Chunk { bytes, last }))
    }

    fn frame(&mut self, frame: &Frame) -> Result<Bytes, ViewError> {
        let olds = take_olds(&mut self.olds);
        let schema_before = self.schema.clone();
        if let Some(schema) = frame.batch.schema.clone() {
            self.schema = Arc::new(laredo_proto::schema::from_wire(schema)?);
        }
        if frame.batch.definition != 0 {
            self.begun = DefinitionVersion(frame.batch.definition);
        }
        let filter = self.view.filter(&self.schema)?;
        let projected = self.view.changes(&FrameChanges {
            frame,
            olds: &olds,
            schema: &self.schema,
            schema_before: &schema_before,
            filter: filter.as_deref(),
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

    fn end(&mut self, frame: &Frame, projected: super::Projected) -> Bytes {
        let header = &frame.header;
        let reached = Reached {
            sequence: header.last_sequence,
            position: header.position,
            committed_at: header.committed_at,
            xid: header.xid,
            is_told: self.is_open,
        };
        // Inside a snapshot nothing says where the client is before the snapshot's own end.
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

    /// The transaction's end, where its last entries were not let through.
    fn close(&self, reached: Reached, bytes: &[u8]) -> Bytes {
        let mut out = bytes.to_vec();
        let Reached { sequence, position, committed_at, .. } = reached;
        match self.view.encoding {
            RowEncoding::PostgresBinary => {
                empty_batch((sequence, reached.mark()), DefinitionVersion::UNKNOWN, &mut out);
            }
            RowEncoding::Struct => marker(Marker { sequence, position, committed_at }, &mut out),
        }
        out.into()
    }
}

/// The next frame's old rows.
fn take_olds(olds: &mut Bytes) -> Bytes {
    let Some(length) = olds.first_chunk::<4>() else {
        return Bytes::new();
    };
    let length = u32::from_be_bytes(*length) as usize;
    olds.advance(4);
    olds.split_to(length.min(olds.len()))
}
