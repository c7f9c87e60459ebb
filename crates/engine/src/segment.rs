//! Contiguous runs of frames, in memory or in a file.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use laredo_core::{CommitMark, Lsn, Schema, Sequence};
use laredo_proto::batch::BatchHeader;
use laredo_proto::frame::PREFIX_LENGTH;
use laredo_proto::replication::{RowBatch, SyncResponse, sync_response};
use prost::Message;
use tokio::time::Instant;

use crate::store::StoredSegment;

/// The size at which a piece of a large transaction is closed. Small segments are merged once they
/// have half of it together. It is large enough to be sent at once, and small enough to be pruned
/// in steps.
pub(crate) const SEGMENT_BYTES: usize = 1024 * 1024;

/// A run of whole transactions, or a piece of one that is too large for one segment. Immutable.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) first: Sequence,
    pub(crate) last: Sequence,
    /// The position of a reader that has everything before the segment.
    pub(crate) before: Lsn,
    /// The commit end of the last transaction.
    pub(crate) position: Lsn,
    /// The start of the span (span_from, position] if the segment's one transaction is a span.
    pub(crate) span_from: Option<Lsn>,
    pub(crate) begins: bool,
    pub(crate) ends: bool,
    /// The schema before the first frame.
    pub(crate) schema: Arc<Schema>,
    pub(crate) marks: Vec<SegmentMark>,
    pub(crate) appended_at: Instant,
    pub(crate) data: SegmentData,
}

/// An entry of the sparse index of a segment: the place of the frame that begins after `after`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentMark {
    pub(crate) after: Sequence,
    pub(crate) before: Lsn,
    pub(crate) frames_at: usize,
    pub(crate) olds_at: usize,
}

/// The minimum distance between two marks, in bytes of frames.
const MARK_BYTES: usize = 4096;

/// The frames of a segment, and the old rows that projections need.
#[derive(Clone, Debug)]
pub(crate) enum SegmentData {
    /// Data in memory. With a store, the same bytes are in a file or are being written to it.
    Memory {
        frames: Bytes,
        olds: Bytes,
        stored: Option<StoredSegment>,
    },
    File(StoredSegment),
}

impl SegmentData {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            SegmentData::Memory { frames, olds, .. } => frames.len() + olds.len(),
            SegmentData::File(stored) => stored.bytes(),
        }
    }

    pub(crate) fn frames_bytes(&self) -> usize {
        match self {
            SegmentData::Memory { frames, .. } => frames.len(),
            SegmentData::File(stored) => stored.frames_bytes(),
        }
    }

    pub(crate) fn in_memory(&self) -> bool {
        matches!(self, SegmentData::Memory { .. })
    }

    /// Returns the place in a file, if there is one.
    pub(crate) fn stored(&self) -> Option<&StoredSegment> {
        match self {
            SegmentData::Memory { stored, .. } => stored.as_ref(),
            SegmentData::File(stored) => Some(stored),
        }
    }

    /// Returns the frames alone. Blocks if they are in a file.
    pub(crate) fn read_frames(&self) -> io::Result<Bytes> {
        match self {
            SegmentData::Memory { frames, .. } => Ok(frames.clone()),
            SegmentData::File(stored) => stored.read_frames(),
        }
    }

    /// Returns the frames from `frames_at` on, and the old rows from `olds_at` on. Blocks if they
    /// are in a file.
    pub(crate) fn read(&self, frames_at: usize, olds_at: usize) -> io::Result<(Bytes, Bytes)> {
        match self {
            SegmentData::Memory { frames, olds, .. } => Ok((frames.slice(frames_at..), olds.slice(olds_at..))),
            SegmentData::File(stored) => stored.read(frames_at, olds_at),
        }
    }
}

impl Segment {
    pub(crate) fn entries(&self) -> u64 {
        self.last.entries_since(self.first) + 1
    }

    /// Returns the last mark at or before the next entry of a reader that has everything up to
    /// `after`.
    pub(crate) fn mark_for(&self, after: Sequence) -> SegmentMark {
        let index = self.marks.partition_point(|mark| mark.after <= after);
        let start = SegmentMark { after: Sequence(self.first.0 - 1), before: self.before, frames_at: 0, olds_at: 0 };
        index.checked_sub(1).and_then(|i| self.marks.get(i)).copied().unwrap_or(start)
    }

    /// Returns the position of the last transaction that ends in the segment. Blocks if it is in a
    /// file. Returns `None` if no transaction ends there, or the file cannot be read.
    pub(crate) fn last_position(&self) -> Option<Lsn> {
        let bytes = self.data.read_frames().ok()?;
        frames(bytes).filter(|frame| frame.header.ends).map(|frame| frame.header.position).last()
    }

    /// Returns the last sequence and the mark of the newest transaction in the segment for which
    /// `wanted` is true. `wanted` receives a transaction's position and last sequence. It must be
    /// true for a prefix.
    pub(crate) fn last_commit(&self, wanted: impl Fn(Lsn, Sequence) -> bool) -> Option<(Sequence, CommitMark)> {
        // An unreadable file counts as pruned here: the reader gets the error when it reads.
        let bytes = self.data.read_frames().ok()?;
        frames(bytes)
            .filter(|frame| frame.header.ends)
            .take_while(|frame| wanted(frame.header.position, frame.header.last_sequence))
            .map(|frame| (frame.header.last_sequence, frame.header.mark()))
            .last()
    }

    /// Returns true if [`Segment::merge`] can merge this segment with its successor.
    pub(crate) fn joins(&self, next: &Segment) -> bool {
        match (self.data.stored(), next.data.stored()) {
            (None, None) => true,
            (Some(one), Some(other)) => one.is_followed_by(other),
            _ => false,
        }
    }

    /// Merges neighboring segments into one. All must be in memory and have whole transactions, and
    /// each must join the next. Returns `None` for an empty slice, or if one is in a file.
    pub(crate) fn merge(parts: &[Segment]) -> Option<Segment> {
        let (first, last) = (parts.first()?, parts.last()?);
        let mut frames = BytesMut::with_capacity(parts.iter().map(|p| p.data.frames_bytes()).sum());
        let mut olds = BytesMut::with_capacity(parts.iter().map(|p| p.data.bytes() - p.data.frames_bytes()).sum());
        let mut marks: Vec<SegmentMark> = Vec::new();
        let mut stored: Option<StoredSegment> = None;
        for part in parts {
            let SegmentData::Memory { frames: part_frames, olds: part_olds, stored: part_stored } = &part.data else {
                return None;
            };
            match (&mut stored, part_stored) {
                (Some(stored), Some(more)) => stored.extend(more),
                (stored, more) => stored.clone_from(more),
            }
            let (frames_at, olds_at) = (frames.len(), olds.len());
            let start = SegmentMark { after: Sequence(part.first.0 - 1), before: part.before, frames_at, olds_at };
            if marks.last().is_none_or(|m| frames_at - m.frames_at >= MARK_BYTES) {
                marks.push(start);
            }
            let shifted = |m: &SegmentMark| SegmentMark {
                after: m.after,
                before: m.before,
                frames_at: m.frames_at + frames_at,
                olds_at: m.olds_at + olds_at,
            };
            marks.extend(part.marks.iter().filter(|m| m.frames_at > 0).map(shifted));
            frames.extend_from_slice(part_frames);
            olds.extend_from_slice(part_olds);
        }
        Some(Segment {
            last: last.last,
            position: last.position,
            ends: last.ends,
            marks,
            appended_at: last.appended_at,
            data: SegmentData::Memory { frames: frames.freeze(), olds: olds.freeze(), stored },
            ..first.clone()
        })
    }
}

/// A frame of a run.
#[derive(Clone, Debug)]
pub struct BatchFrame {
    /// The frame's fields other than its entries.
    pub header: BatchHeader,
    /// The whole message. Its entries share the memory of the run.
    pub batch: RowBatch,
    /// The length of the frame in bytes, including the prefix.
    pub length: usize,
}

impl BatchFrame {
    /// Returns the sequence of the first entry, or of the change of the schema before it.
    #[must_use]
    pub fn first(&self) -> Sequence {
        let count = u64::from(self.batch.count) + u64::from(self.batch.schema.is_some());
        Sequence((self.header.last_sequence.0 + 1).saturating_sub(count))
    }
}

/// Returns the frames of a run that a journal or a base wrote. Ends at the first invalid frame.
pub fn frames(mut run: Bytes) -> impl Iterator<Item = BatchFrame> {
    std::iter::from_fn(move || {
        let length = PREFIX_LENGTH + laredo_proto::frame::length(&run)?;
        if run.len() < length {
            return None;
        }
        let mut message = run.split_to(length);
        message.advance(PREFIX_LENGTH);
        match SyncResponse::decode(message).ok()?.message? {
            sync_response::Message::Batch(batch) => Some(BatchFrame { header: BatchHeader::of(&batch), batch, length }),
            _ => None,
        }
    })
}
