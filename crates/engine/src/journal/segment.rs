//! Contiguous runs of frames, in memory or in a file.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use laredo_core::{Lsn, Schema, Sequence};
use tokio::time::Instant;

use super::data_file::StoredSegment;

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
