//! Binary batches with only the rows that a filter lets through.

use laredo_core::{CommitMark, DefinitionVersion, Schema, Sequence};
use laredo_engine::journal::BatchFrame;
use laredo_proto::batch::{BatchBuilder, BatchEntries, BatchHeader, EntryAction};
use laredo_values::Filter;

use super::changes::{FrameChanges, VisibleChange};
use super::{ProjectedFrame, ViewError};

pub(super) fn rows(frame: &BatchFrame, schema: &Schema, filter: Option<&Filter>) -> Result<ProjectedFrame, ViewError> {
    let mut batch = BatchBuilder::default();
    for entry in BatchEntries::new(&frame.batch.entries, schema) {
        let row = entry?.row;
        if filter.is_none_or(|filter| filter.matches(row)) {
            batch.push(EntryAction::Insert, row);
        }
    }
    Ok(finish(batch, false, &frame.header))
}

pub(super) fn changes(changes: &FrameChanges<'_>) -> Result<ProjectedFrame, ViewError> {
    let mut batch = BatchBuilder::default();
    let definition = DefinitionVersion(changes.frame.batch.definition);
    batch.set_definition(definition);
    if changes.has_schema() {
        batch.set_schema(changes.schema);
    }
    let key = changes.schema.key();
    changes.each(|_, change| {
        match change {
            VisibleChange::Insert(new) => batch.push(EntryAction::Insert, new),
            VisibleChange::Update { new, .. } => batch.push(EntryAction::Update, new),
            VisibleChange::Delete(old) => batch.push(EntryAction::Delete, key.key_of(old).as_ref()),
            VisibleChange::Truncate => batch.push(EntryAction::Truncate, laredo_core::TupleRef::trusted(&[])),
        }
        Ok(())
    })?;
    Ok(finish(batch, definition.is_known(), &changes.frame.header))
}

/// Encodes the batch. `is_news` is true if the batch carries information even without entries.
fn finish(mut batch: BatchBuilder, is_news: bool, header: &BatchHeader) -> ProjectedFrame {
    let count = u64::from(batch.count());
    let mut out = Vec::new();
    if is_news || !batch.is_empty() {
        batch.finish(header, &mut out);
    }
    ProjectedFrame { carries_end: header.ends && !out.is_empty(), bytes: out.into(), count }
}

/// Appends a batch without entries, for transactions of which nothing is let through. A known
/// `definition` is that of the rows from here on.
pub(crate) fn empty_batch((sequence, mark): (Sequence, CommitMark), definition: DefinitionVersion, out: &mut Vec<u8>) {
    let CommitMark { end: position, xid, committed_at } = mark;
    let header = BatchHeader { last_sequence: sequence, position, span_from: None, committed_at, ends: true, xid };
    let mut batch = BatchBuilder::default();
    batch.set_definition(definition);
    batch.finish(&header, out);
}
