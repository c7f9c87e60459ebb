//! Appending, joining and pruning of a journal's segments.

use std::sync::Arc;

use laredo_core::{Schema, Sequence};
use tokio::time::Instant;

use super::gaps::SequenceGaps;
use super::{JournalContents, JournalOptions, OversizedTransaction};
use crate::head::{Head, TransactionBoundary};
use crate::segment::{SEGMENT_BYTES, Segment, SegmentData};

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
}
