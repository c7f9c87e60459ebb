//! The contents of a journal: appending, joining, looking up and pruning of its segments.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use laredo_core::{Lsn, Schema, Sequence};
use tokio::time::Instant;

use super::JournalOptions;
use super::cursor::{CursorError, JournalPiece, PieceLocation};
use super::definitions::DefinitionHistory;
use super::gaps::SequenceGaps;
use super::resolve::{CommitLookup, FloorLookup, PositionFloor, PrecedingCommit};
use crate::base::Base;
use crate::head::{Head, InstanceId, TransactionBoundary};
use crate::segment::{SEGMENT_BYTES, Segment, SegmentData};
use crate::store::RowDefinition;

/// The multiple of its limits that a journal may reach because of pins.
const PINNED_FACTOR: u64 = 2;

/// The size up to which small segments are joined, so that a reader slightly behind reads them
/// together.
const JOIN_BYTES: usize = 64 * 1024;

/// The bytes of disk that older bases held by readers may take, or [`HELD_FACTOR`] times the newest
/// base if that is more.
pub(super) const HELD_BYTES_MAX: u64 = 256 * 1024 * 1024;
const HELD_FACTOR: u64 = 3;

/// The contents of a journal.
#[derive(Debug)]
pub(super) struct JournalContents {
    /// The segments in order. None has entries on both sides of the head: only visible ones are
    /// joined.
    pub(super) segments: VecDeque<Segment>,
    /// The end of the newest transaction that is no longer kept. A reader that has it can resume.
    pub(super) pruned: TransactionBoundary,
    pub(super) base: Arc<Base>,
    /// The earliest time at which the base's state can have been the head. `None` for the base that
    /// the journal was opened with.
    pub(super) base_shown_at: Option<Instant>,
    /// The number of bases since the journal was opened.
    pub(super) bases: u64,
    pub(super) schema: Arc<Schema>,
    /// The table definition that the rows at the head were copied under.
    pub(super) definition: RowDefinition,
    /// The definition of the rows at each position that is kept.
    pub(super) definitions: DefinitionHistory,
    /// The spans (from, to], each of which became visible as one transaction. No reader can resume
    /// inside.
    pub(super) spans: Vec<(Lsn, Lsn)>,
    /// The highest position that may belong to a history that the database has abandoned.
    pub(super) abandoned: Lsn,
    /// The journals of abandoned histories. Each has the newest position that its history is known
    /// to share with this one.
    pub(super) abandoned_journals: Vec<(InstanceId, Lsn)>,
    /// The pins, by the sequence of the base. Everything after a pinned base is kept.
    pub(super) pins: BTreeMap<Sequence, BasePins>,
    pub(super) memory_bytes: u64,
    pub(super) bytes: u64,
    /// The bytes of segments that the base covers, out of `bytes`.
    pub(super) covered_bytes: u64,
    /// An upper bound of the bytes in small segments at the end, which may be joined.
    pub(super) unjoined_bytes: u64,
    pub(super) encoded_entries: u64,
    pub(super) oversized: OversizedTransaction,
}

/// The newest transaction that may exceed the limits by itself: the entries after `before`, up to
/// `last`.
#[derive(Clone, Copy, Debug)]
pub(super) struct OversizedTransaction {
    pub(super) before: Sequence,
    pub(super) last: Sequence,
}

/// The pins of one base.
#[derive(Clone, Copy, Debug)]
pub(super) struct BasePins {
    pub(super) readers: usize,
    /// The size of the base in bytes.
    pub(super) bytes: u64,
}

impl JournalContents {
    /// Adds a segment, visible or not. Returns the number of bytes in memory.
    pub(super) fn append(&mut self, segment: Segment, schema: &Arc<Schema>) -> u64 {
        self.bytes += segment.data.bytes() as u64;
        self.memory_bytes += segment.data.bytes() as u64;
        self.unjoined_bytes += segment.data.bytes() as u64;
        self.encoded_entries += segment.entries();
        self.schema = schema.clone();
        self.segments.push_back(segment);
        self.memory_bytes
    }

    /// Merges small segments at the end once they are large enough together. A reader that is far
    /// behind then takes large pieces.
    ///
    /// Merges only visible segments: one with entries on both sides of the head could be neither
    /// shown nor omitted.
    pub(super) fn join_small(&mut self, head: Sequence) {
        // A search on each call would take longer than most transactions do.
        if self.unjoined_bytes < SEGMENT_BYTES as u64 / 2 {
            return;
        }
        let is_small = |s: &&Segment| {
            let is_whole = s.begins && s.ends && s.span_from.is_none();
            is_whole && s.last <= head && s.data.in_memory() && s.data.bytes() < SEGMENT_BYTES / 2
        };
        let small = self.segments.iter().rev().take_while(is_small).count();
        let joins = |i: &usize| self.segments.get(i + 1).is_none_or(|next| self.segments[*i].joins(next));
        let tail = (self.segments.len() - small..self.segments.len()).rev().take_while(joins).count();
        let start = self.segments.len() - tail;
        let tail_bytes: usize = self.segments.iter().skip(start).map(|s| s.data.bytes()).sum();
        self.unjoined_bytes = tail_bytes as u64;
        if tail > 1 && tail_bytes >= SEGMENT_BYTES / 2 {
            self.unjoined_bytes = 0;
            let parts: Vec<Segment> = self.segments.drain(start..).collect();
            match Segment::merge(&parts) {
                Some(merged) => self.segments.push_back(merged),
                None => self.segments.extend(parts),
            }
        }
    }

    /// Counts the bytes that the base covers. Called after the base was replaced.
    pub(super) fn count_covered(&mut self) {
        let covered = self.segments.iter().take_while(|segment| segment.last <= self.base.sequence());
        self.covered_bytes = covered.map(|segment| segment.data.bytes() as u64).sum();
    }

    /// Returns the bytes of the journal that the base does not cover.
    pub(super) fn bytes_after_base(&self) -> u64 {
        self.bytes - self.covered_bytes
    }

    pub(super) fn truncate_after(&mut self, sequence: Sequence, schema: &Arc<Schema>) {
        self.schema = schema.clone();
        while self.segments.back().is_some_and(|s| s.first > sequence) {
            let gone = self.segments.pop_back();
            self.encoded_entries -= gone.as_ref().map_or(0, Segment::entries);
            self.uncount(gone);
        }
    }

    fn uncount(&mut self, gone: Option<Segment>) {
        let Some(gone) = gone else { return };
        self.bytes -= gone.data.bytes() as u64;
        if gone.data.in_memory() {
            self.memory_bytes -= gone.data.bytes() as u64;
        }
    }

    /// Returns the oldest segment in memory while more than `bound` bytes are in memory.
    pub(super) fn oldest_in_memory(&self, bound: u64) -> Option<(Sequence, SegmentData)> {
        if self.memory_bytes <= bound {
            return None;
        }
        self.segments.iter().find(|s| s.data.in_memory()).map(|s| (s.last, s.data.clone()))
    }

    pub(super) fn replace_data(&mut self, last: Sequence, data: SegmentData) {
        if let Ok(index) = self.segments.binary_search_by_key(&last, |s| s.last) {
            self.memory_bytes -= data.bytes() as u64;
            self.segments[index].data = data;
        }
    }

    /// Removes the oldest transactions beyond the limits, if a base covers them and no reader needs
    /// them.
    ///
    /// `reading` has the sequences that readers have taken. It may be empty if the journal has no
    /// transactions larger than its limits.
    pub(super) fn prune(&mut self, limits: &JournalOptions, gaps: &SequenceGaps, head: Sequence, reading: &[Sequence]) {
        let now = Instant::now();
        let covered = self.base.sequence();
        let keep = self.pins.keys().next().map_or(covered, |pinned| covered.min(*pinned));
        while let Some(group_end) = self.oldest_group() {
            let group = &self.segments[group_end];
            let entries = gaps.entries(self.pruned.sequence, head);
            let aged = now.duration_since(group.appended_at) > limits.age_max;
            let over = entries > limits.entries_max || self.bytes > limits.bytes_max || aged;
            if !over || group.last > keep || group.last > head {
                return;
            }
            if !aged && self.is_being_read(group_end, limits, gaps, head, reading) {
                return;
            }
            self.pruned = TransactionBoundary { sequence: group.last, position: group.position };
            self.forget_oldest(group_end + 1);
        }
    }

    /// Returns true if the oldest transaction exceeds the limits by itself, and a reader is reading
    /// it or will read it next.
    ///
    /// It is kept only until the entries after it exceed the limits: a reader that has stopped must
    /// not fill the disk.
    fn is_being_read(
        &self,
        group_end: usize,
        limits: &JournalOptions,
        gaps: &SequenceGaps,
        head: Sequence,
        reading: &[Sequence],
    ) -> bool {
        let (before, last) = (self.pruned.sequence, self.segments[group_end].last);
        if !reading.iter().any(|taken| *taken >= before && *taken < last) {
            return false;
        }
        let bytes: u64 = self.segments.range(..=group_end).map(|segment| segment.data.bytes() as u64).sum();
        let is_large = |entries: u64, bytes: u64| entries > limits.entries_max || bytes > limits.bytes_max;
        is_large(gaps.entries(before, last), bytes) && !is_large(gaps.entries(last, head), self.bytes - bytes)
    }

    /// Returns the entries and bytes of the newest transaction that may exceed the limits by
    /// itself, or zeros if it is no longer kept.
    pub(super) fn oversized_size(&self, gaps: &SequenceGaps) -> (u64, u64) {
        let OversizedTransaction { before, last } = self.oversized;
        if before < self.pruned.sequence {
            return (0, 0);
        }
        let is_part = |segment: &&Segment| segment.first > before && segment.last <= last;
        let bytes = self.segments.iter().filter(is_part).map(|segment| segment.data.bytes() as u64).sum();
        (gaps.entries(before, last), bytes)
    }

    /// Returns the index of the segment that ends the oldest group: transactions that are pruned
    /// together.
    fn oldest_group(&self) -> Option<usize> {
        self.segments.iter().position(|s| s.ends)
    }

    /// Removes all contents, also those that readers have not taken. `head` is the last visible
    /// state.
    pub(super) fn forget_all(&mut self, head: Head) {
        self.segments.clear();
        (self.bytes, self.memory_bytes, self.covered_bytes, self.unjoined_bytes) = (0, 0, 0, 0);
        self.pruned = TransactionBoundary { sequence: head.sequence, position: head.position };
        self.base = Arc::new(self.base.without_rows());
    }

    fn forget_oldest(&mut self, count: usize) {
        for _ in 0..count {
            let gone = self.segments.pop_front();
            // Only segments that the base covers are removed.
            self.covered_bytes -= gone.as_ref().map_or(0, |gone| gone.data.bytes() as u64);
            self.uncount(gone);
        }
        let pruned = self.pruned.position;
        self.spans.retain(|(_, to)| *to > pruned);
        self.definitions.forget_before(pruned);
    }

    /// Floors a position at or below the head to a commit.
    pub(super) fn floor_at(&self, position: Lsn) -> FloorLookup {
        if position < self.pruned.position {
            return FloorLookup::Known(PositionFloor::Pruned);
        }
        if self.spans.iter().any(|(from, to)| *from < position && position < *to) {
            return FloorLookup::Known(PositionFloor::InsideSpan);
        }
        let index = self.segments.partition_point(|segment| segment.position <= position);
        let before = match index.checked_sub(1).and_then(|i| self.segments.get(i)) {
            Some(segment) => PrecedingCommit::EndOf(Box::new(segment.clone())),
            None => PrecedingCommit::Pruned(self.pruned.sequence),
        };
        match self.segments.get(index) {
            Some(segment) => FloorLookup::Within(Box::new(segment.clone()), before),
            None => FloorLookup::Before(before),
        }
    }

    /// Finds out if a transaction ends at a sequence.
    pub(super) fn commit_at(&self, sequence: Sequence, head: Sequence) -> CommitLookup {
        if sequence == self.pruned.sequence || sequence == head {
            return CommitLookup::Known(true);
        }
        let index = self.segments.partition_point(|segment| segment.last < sequence);
        match self.segments.get(index) {
            Some(segment) => CommitLookup::Within(Box::new(segment.clone())),
            None => CommitLookup::Known(false),
        }
    }

    /// Returns true if readers hold so many older bases that new clients must share the newest one.
    pub(super) fn holds_enough(&self) -> bool {
        let newest = self.base.sequence();
        let held: u64 = self.pins.range(..newest).map(|(_, pins)| pins.bytes).sum();
        held >= HELD_BYTES_MAX.max(self.base.bytes().saturating_mul(HELD_FACTOR))
    }

    /// Releases a pin of a base. Returns true if that was the last one.
    pub(super) fn release_pin(&mut self, sequence: Sequence) -> bool {
        let Some(pins) = self.pins.get_mut(&sequence) else { return false };
        pins.readers -= 1;
        let is_last = pins.readers == 0;
        if is_last {
            self.pins.remove(&sequence);
        }
        is_last
    }

    /// Does the work of [`super::Journal::overdue_pin`].
    pub(super) fn overdue_pin(&self, limits: &JournalOptions, gaps: &SequenceGaps, head: Sequence) -> Option<Sequence> {
        let oldest = *self.pins.keys().next()?;
        let (from, base) = (self.pruned.sequence, self.base.sequence());
        let covered_entries = gaps.entries(from, base);
        // A transaction that exceeds the limits by itself is kept for all its readers.
        let (large_entries, large_bytes) = self.oversized_size(gaps);
        let entries = gaps.entries(from, head).saturating_sub(large_entries);
        let bytes = self.bytes.saturating_sub(large_bytes);
        let is_over = (entries / PINNED_FACTOR > limits.entries_max
            && covered_entries.saturating_sub(large_entries) > limits.entries_max)
            || (bytes / PINNED_FACTOR > limits.bytes_max
                && self.covered_bytes.saturating_sub(large_bytes) > limits.bytes_max);
        (is_over && oldest < base).then_some(oldest)
    }

    /// Returns the segment that holds the entry after `after`, visible or not.
    pub(super) fn locate(&self, after: Sequence) -> Result<Option<PieceLocation>, CursorError> {
        if after < self.pruned.sequence {
            return Err(CursorError::Pruned(after));
        }
        let index = self.segments.partition_point(|segment| segment.last <= after);
        let Some(segment) = self.segments.get(index) else {
            return Ok(None);
        };
        let mark = segment.mark_for(after);
        // A mark is before a transaction. But a segment may start inside a large transaction.
        let earlier = || self.segments.range(..index).rev().find(|s| s.begins);
        let began_after = match segment.begins {
            true => mark.after,
            false => earlier().map_or(mark.after, |s| Sequence(s.first.0 - 1)),
        };
        let piece = JournalPiece {
            frames: Bytes::new(),
            olds: Bytes::new(),
            before: mark.before,
            schema: segment.schema.clone(),
            after,
            last: segment.last,
            began_after,
            position: segment.position,
            ends: segment.ends,
        };
        Ok(Some(PieceLocation { piece, data: segment.data.clone(), mark, index }))
    }

    /// Returns the small visible segments after a piece, which a reader takes together with it.
    pub(super) fn joined_with(&self, located: &PieceLocation, head: Sequence) -> Vec<Segment> {
        let mut bytes = located.data.bytes();
        let ends = located.piece.ends;
        let joins = |next: &&Segment| {
            bytes += next.data.bytes();
            ends && next.begins && next.ends && next.data.in_memory() && bytes <= JOIN_BYTES && next.last <= head
        };
        self.segments.iter().skip(located.index + 1).take_while(joins).cloned().collect()
    }
}
