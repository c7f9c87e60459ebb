//! The changes of one frame with their old rows, as seen through a filter.

use laredo_core::{Lsn, Schema, Sequence, TupleRef};
use laredo_engine::journal::BatchFrame;
use laredo_proto::batch::{BatchEntries, EntryAction};
use laredo_values::{Filter, VisibleEffect};

use super::{EntryMode, RowSelection, ViewError};

/// A frame of a journal, with everything that is needed to project it.
pub(super) struct FrameChanges<'a> {
    pub(super) frame: &'a BatchFrame,
    /// The old rows of the frame's updates and deletes, each after its length.
    pub(super) olds: &'a [u8],
    /// The schema of the entries.
    pub(super) schema: &'a Schema,
    /// The selection from rows of `schema`.
    pub(super) selection: &'a RowSelection,
    /// The selection before the frame's schema change, if the frame begins with one.
    pub(super) selection_before: &'a RowSelection,
    /// The end of the commit before the frame's transaction.
    pub(super) before: Lsn,
    /// The last entry before the frame's transaction.
    pub(super) began_after: Sequence,
    /// The last entry that the reader has.
    pub(super) after: Sequence,
    pub(super) mode: EntryMode,
}

/// A change as a reader sees it.
#[derive(Clone, Copy, Debug)]
pub(super) enum VisibleChange<'a> {
    Insert(TupleRef<'a>),
    Update { old: TupleRef<'a>, new: TupleRef<'a> },
    Delete(TupleRef<'a>),
    Truncate,
}

impl FrameChanges<'_> {
    /// Returns the sequence of the frame's first entry, or of its schema change.
    pub(super) fn first(&self) -> Sequence {
        self.frame.first()
    }

    pub(super) fn has_schema(&self) -> bool {
        self.frame.batch.schema.is_some()
    }

    /// Returns true if the reader already has a part of the frame.
    pub(super) fn is_known_in_part(&self) -> bool {
        self.after >= self.first()
    }

    /// Calls `each` with every change that the reader does not have and the filter lets through.
    pub(super) fn each(
        &self,
        mut each: impl FnMut(Sequence, VisibleChange<'_>) -> Result<(), ViewError>,
    ) -> Result<(), ViewError> {
        let mut olds = self.olds;
        let mut sequence = self.first().plus(u64::from(self.has_schema()));
        for entry in BatchEntries::new(&self.frame.batch.entries, self.schema) {
            let entry = entry?;
            let change = match entry.action {
                EntryAction::Insert => VisibleChange::Insert(entry.row),
                EntryAction::Update => VisibleChange::Update { old: take_row(&mut olds, self.schema)?, new: entry.row },
                EntryAction::Delete => VisibleChange::Delete(take_row(&mut olds, self.schema)?),
                EntryAction::Truncate => VisibleChange::Truncate,
            };
            let change = match self.selection.filter() {
                Some(filter) => filtered(filter, change),
                None => Some(change),
            };
            if let Some(change) = change
                && sequence > self.after
            {
                each(sequence, change)?;
            }
            sequence = sequence.plus(1);
        }
        Ok(())
    }
}

fn take_row<'a>(olds: &mut &'a [u8], schema: &Schema) -> Result<TupleRef<'a>, ViewError> {
    let (length, rest) = olds.split_first_chunk::<4>().ok_or(ViewError::OldRow)?;
    let length = u32::from_be_bytes(*length) as usize;
    let (row, rest) = rest.split_at_checked(length).ok_or(ViewError::OldRow)?;
    *olds = rest;
    Ok(TupleRef::parse(row, schema.columns().len()).map_err(laredo_proto::batch::BatchError::Row)?)
}

/// Returns the visible form of a change through a filter. An update may insert or delete a row for
/// the reader.
fn filtered<'a>(filter: &Filter, change: VisibleChange<'a>) -> Option<VisibleChange<'a>> {
    let (old, new) = match change {
        VisibleChange::Insert(new) => (None, Some(new)),
        VisibleChange::Update { old, new } => (Some(old), Some(new)),
        VisibleChange::Delete(old) => (Some(old), None),
        VisibleChange::Truncate => return Some(change),
    };
    match (filter.classify(old, new), old, new) {
        (VisibleEffect::Insert, _, Some(new)) => Some(VisibleChange::Insert(new)),
        (VisibleEffect::Update, Some(old), Some(new)) => Some(VisibleChange::Update { old, new }),
        (VisibleEffect::Delete, Some(old), _) => Some(VisibleChange::Delete(old)),
        // An effect on a row that the change does not have cannot be shown.
        (VisibleEffect::Nothing | VisibleEffect::Insert | VisibleEffect::Update | VisibleEffect::Delete, _, _) => None,
    }
}
