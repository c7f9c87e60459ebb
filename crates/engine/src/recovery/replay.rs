//! The replay of a journal's records, which restores the journal's contents.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use laredo_core::{CommitMark, CommitTime, DefinitionVersion, Lsn, Schema, Sequence, TableState};
use tokio::time::Instant;

use super::{RestoredJournal, read};
use crate::base::Base;
use crate::head::{EarlierInstance, Head, InstanceId, TransactionBoundary};
use crate::journal::{DefinitionChange, DefinitionHistory, JournalBeginning, SequenceGaps};
use crate::segment::{Segment, SegmentData, frames};
use crate::store::{
    AppenderState, JournalAppender, JournalFile, JournalFileHeader, JournalFolder, RecordHead, RowDefinition, SKIPPED,
    StoreError, StoredCommitMark, StoredSegment,
};

/// The state of a journal up to the last record read from its files.
pub(super) struct JournalReplay {
    pub(super) head: Head,
    pub(super) pruned: TransactionBoundary,
    pub(super) segments: VecDeque<Segment>,
    /// The commit time of the last transaction of each segment.
    committed: VecDeque<CommitTime>,
    /// The pieces of a transaction that has not ended.
    open: Vec<Segment>,
    open_schema: Arc<Schema>,
    /// The last sequence that may have been assigned.
    pub(super) assigned: Sequence,
    spans: Vec<(Lsn, Lsn)>,
    gaps: SequenceGaps,
    pub(super) schema: Arc<Schema>,
    definition: RowDefinition,
    definitions: DefinitionHistory,
    /// True if rows of several pipelines are in the files, as earlier versions allowed.
    has_several_pipelines: bool,
    /// The definition that the open transaction begins; unknown if it begins none.
    open_definition: DefinitionVersion,
    /// The position of the last transaction if that is a new copy of the table.
    copied_at: Option<Lsn>,
}

/// The names of a journal that is opened again.
pub(super) struct JournalNames {
    /// The original name, which its files carry.
    pub(super) lineage: InstanceId,
    /// The name in this run.
    pub(super) instance: InstanceId,
    /// The names in earlier runs.
    pub(super) earlier: Vec<EarlierInstance>,
}

/// The size up to which small records are joined into one segment.
const JOINED_BYTES: usize = 512 * 1024;

impl JournalReplay {
    pub(super) fn at(head: Head, schema: Arc<Schema>, definition: RowDefinition) -> JournalReplay {
        JournalReplay {
            head,
            pruned: TransactionBoundary { sequence: head.sequence, position: head.position },
            segments: VecDeque::new(),
            committed: VecDeque::new(),
            open: Vec::new(),
            open_schema: schema.clone(),
            assigned: head.sequence,
            spans: Vec::new(),
            gaps: SequenceGaps::default(),
            schema,
            definitions: DefinitionHistory::new(head.position, definition.version()),
            definition,
            has_several_pipelines: false,
            open_definition: DefinitionVersion::UNKNOWN,
            copied_at: None,
        }
    }

    /// Returns the state at the beginning of the oldest file.
    pub(super) fn begin(header: &JournalFileHeader) -> Result<JournalReplay, String> {
        let schema = laredo_proto::schema::from_wire(header.schema.clone().unwrap_or_default());
        let head = Head {
            sequence: Sequence(header.before_sequence),
            position: Lsn(header.before_position),
            committed_at: CommitTime(header.committed_at),
            mark: StoredCommitMark::known(header.mark),
            checksum: None,
        };
        let schema = Arc::new(schema.map_err(|error| error.to_string())?);
        Ok(JournalReplay::at(head, schema, header.definition.clone().unwrap_or_default()))
    }

    pub(super) fn begin_file(&mut self, header: &JournalFileHeader) -> Result<(), String> {
        read::follows(&self.head, header)?;
        self.head.position = Lsn(header.before_position);
        self.head.mark = StoredCommitMark::known(header.mark);
        self.assigned = self.assigned.max(Sequence(header.first_sequence - 1));
        // The same definition as before proves nothing: a later copy may have begun another one.
        let definition = header.definition.clone().unwrap_or_default();
        if definition != self.definition {
            self.define_now(definition);
        }
        Ok(())
    }

    /// Returns the definition of the newest rows.
    pub(super) fn definition(&self) -> &RowDefinition {
        &self.definition
    }

    pub(super) fn has_several_pipelines(&self) -> bool {
        self.has_several_pipelines
    }

    /// Returns true if a transaction has begun and not ended.
    pub(super) fn is_inside(&self) -> bool {
        !self.open.is_empty()
    }

    pub(super) fn frames(&mut self, record: &RecordHead, run: Bytes, stored: StoredSegment) -> Result<(), String> {
        let after = self.open.last().map_or(self.assigned, |piece| piece.last);
        let is_next = record.first == after.plus(1);
        let fits = record.begins == self.open.is_empty()
            && record.last >= record.first
            && record.position >= self.head.position;
        if !(is_next && fits) {
            return Err(format!("entries {} to {} do not follow entry {after}", record.first, record.last));
        }
        let segment = Segment {
            first: record.first,
            last: record.last,
            before: record.before,
            position: record.position,
            span_from: record.span_from,
            begins: record.begins,
            ends: record.ends,
            schema: self.open_schema.clone(),
            marks: Vec::new(),
            appended_at: Instant::now(),
            data: SegmentData::File(stored),
        };
        if record.has_schema {
            for schema in frames(run.clone()).filter_map(|frame| frame.batch.schema) {
                let schema = laredo_proto::schema::from_wire(schema).map_err(|error| error.to_string())?;
                self.open_schema = Arc::new(schema);
            }
        }
        // Only a new copy of the table begins another definition inside a transaction. The record
        // with the whole definition follows it, and may be lost.
        if record.span_from.is_some() {
            let begun = frames(run.clone()).map(|frame| frame.batch.definition).find(|definition| *definition != 0);
            self.open_definition = begun.map_or(self.open_definition, DefinitionVersion);
        }
        self.open.push(segment);
        if record.ends {
            let newest = frames(run).last().map(|frame| frame.header.mark()).and_then(CommitMark::known);
            self.commit(record, newest.unwrap_or_default());
        }
        Ok(())
    }

    fn commit(&mut self, record: &RecordHead, mark: CommitMark) {
        if let Some(first) = self.open.first() {
            self.gaps.push(self.head.sequence, Sequence(first.first.0 - 1));
        }
        let (sequence, position, committed_at) = (record.last, record.position, record.committed_at);
        self.head = Head { sequence, position, committed_at, mark, checksum: None };
        self.assigned = self.assigned.max(record.last);
        self.spans.extend(record.span_from.map(|from| (from, record.position)));
        self.schema = self.open_schema.clone();
        let begun = std::mem::take(&mut self.open_definition);
        if begun.is_known() {
            self.definitions.push(record.position, begun, DefinitionChange::ChangesRows);
        }
        self.copied_at = record.span_from.map(|_| record.position);
        for segment in self.open.drain(..) {
            match self.segments.back_mut() {
                Some(last) if joins(last, &segment) => {
                    last.data = joined(&last.data, &segment.data);
                    (last.last, last.position) = (segment.last, segment.position);
                    self.committed.pop_back();
                }
                _ => self.segments.push_back(segment),
            }
            self.committed.push_back(record.committed_at);
        }
    }

    pub(super) fn mark(&mut self, record: &RecordHead, mark: StoredCommitMark) -> Result<(), String> {
        if self.is_inside() || record.position < self.head.position {
            return Err("a position that does not follow".to_owned());
        }
        self.head.position = record.position;
        self.head.mark = StoredCommitMark::known(Some(mark));
        self.spans.extend(record.span_from.map(|from| (from, record.position)));
        Ok(())
    }

    pub(super) fn define(&mut self, definition: RowDefinition) -> Result<(), String> {
        if self.is_inside() {
            return Err("a definition inside a transaction".to_owned());
        }
        self.define_now(definition);
        Ok(())
    }

    fn define_now(&mut self, definition: RowDefinition) {
        self.has_several_pipelines |= definition.pipeline != self.definition.pipeline;
        // Earlier versions did not note in the copy that it was made under another definition.
        let change = match self.copied_at == Some(self.head.position) {
            true => DefinitionChange::ChangesRows,
            false => DefinitionChange::KeepsRows,
        };
        self.definitions.push(self.head.position, definition.version(), change);
        self.definition = definition;
    }

    /// Discards the transaction that has not ended.
    pub(super) fn abort(&mut self) {
        self.open.clear();
        self.open_definition = DefinitionVersion::UNKNOWN;
        self.open_schema = self.schema.clone();
    }

    /// Sets the age of each segment to the current age of its last commit.
    pub(super) fn date_segments(&mut self, now: CommitTime) {
        let today = Instant::now();
        for (segment, committed_at) in self.segments.iter_mut().zip(&self.committed) {
            let age = u64::try_from(now.0.saturating_sub(committed_at.0)).unwrap_or(0);
            segment.appended_at = today.checked_sub(std::time::Duration::from_micros(age)).unwrap_or(today);
        }
    }

    pub(super) fn restored(
        self,
        store: Arc<JournalFolder>,
        files: VecDeque<JournalFile>,
        names: JournalNames,
        abandoned: Lsn,
        base: Arc<Base>,
        rows: TableState,
    ) -> Result<RestoredJournal, StoreError> {
        let JournalReplay {
            head, pruned, segments, assigned, spans, mut gaps, schema, definition, definitions, ..
        } = self;
        let JournalNames { lineage, instance, earlier } = names;
        let head = Head { checksum: Some(rows.checksum()), ..head };
        let assigned = assigned.plus(SKIPPED);
        gaps.push(head.sequence, assigned);
        let begun = AppenderState {
            instance: lineage.clone(),
            head,
            assigned,
            schema: schema.clone(),
            definition: definition.clone(),
        };
        let appender = JournalAppender::begin(store, files, begun)?;
        let beginning = JournalBeginning {
            instance,
            earlier,
            predecessor: None,
            abandoned,
            abandoned_journals: Vec::new(),
            base,
            schema,
            definition: definition.clone(),
            definitions,
            segments,
            spans,
            gaps,
            pruned,
            head,
            assigned,
        };
        Ok(RestoredJournal { beginning, appender, rows, definition, lineage, is_of_same_server: false })
    }
}

/// Returns true if two segments of whole transactions may be joined. A new copy of the table always
/// stays separate.
fn joins(last: &Segment, next: &Segment) -> bool {
    let is_plain = |s: &Segment| s.begins && s.ends && s.span_from.is_none();
    is_plain(last)
        && is_plain(next)
        && last.last.plus(1) == next.first
        && last.data.bytes() + next.data.bytes() <= JOINED_BYTES
        && last.joins(next)
}

fn joined(last: &SegmentData, next: &SegmentData) -> SegmentData {
    match (last, next) {
        (SegmentData::File(one), SegmentData::File(other)) => {
            let mut both = one.clone();
            both.extend(other);
            SegmentData::File(both)
        }
        _ => last.clone(),
    }
}
