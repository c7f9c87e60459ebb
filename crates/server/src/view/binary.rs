//! Binary batches with only the rows and columns that a reader receives.

use laredo_core::{CommitMark, DefinitionVersion, Schema, Sequence, TupleBuf};
use laredo_engine::journal::BatchFrame;
use laredo_proto::batch::{BatchBuilder, BatchEntries, BatchHeader, EntryAction};

use super::changes::{FrameChanges, VisibleChange};
use super::{ProjectedFrame, RowSelection, ViewError};

pub(super) fn rows(frame: &BatchFrame, schema: &Schema, selection: &RowSelection) -> Result<ProjectedFrame, ViewError> {
    let (mut batch, mut scratch) = (BatchBuilder::default(), TupleBuf::new());
    for entry in BatchEntries::new(&frame.batch.entries, schema) {
        let row = entry?.row;
        if selection.matches(row) {
            batch.push(EntryAction::Insert, selection.show(row, &mut scratch));
        }
    }
    Ok(finish(batch, false, &frame.header))
}

pub(super) fn changes(changes: &FrameChanges<'_>) -> Result<ProjectedFrame, ViewError> {
    let mut batch = BatchBuilder::default();
    let definition = DefinitionVersion(changes.frame.batch.definition);
    batch.set_definition(definition);
    let selection = changes.selection;
    if changes.has_schema() {
        batch.set_schema(selection.schema());
    }
    let (key, mut scratch) = (changes.schema.key(), TupleBuf::new());
    changes.each(|_, change| {
        match change {
            VisibleChange::Insert(new) => batch.push(EntryAction::Insert, selection.show(new, &mut scratch)),
            VisibleChange::Update { new, .. } => batch.push(EntryAction::Update, selection.show(new, &mut scratch)),
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
pub(crate) fn empty_batch(sequence: Sequence, mark: CommitMark, definition: DefinitionVersion, out: &mut Vec<u8>) {
    let CommitMark { end: position, xid, committed_at } = mark;
    let header = BatchHeader { last_sequence: sequence, position, span_from: None, committed_at, ends: true, xid };
    let mut batch = BatchBuilder::default();
    batch.set_definition(definition);
    batch.finish(&header, out);
}
