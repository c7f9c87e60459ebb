//! Definition changes while a table is followed: those that require a copy, and those that do not.

use std::collections::BTreeSet;

use laredo_core::{Cell, Lsn, TableState};

use super::{FollowUpAction, Table, TableError, TableLifecycle};
use crate::source::ColumnValues;

/// A copy that the table owes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwedCopy {
    /// The reason, for the log.
    pub(crate) reason: String,
    /// The definition that was seen. A copy that ends with it is the one that was owed. `None` if
    /// only a later copy is.
    pub(crate) definition: Option<String>,
}

/// A new definition that the rows have without a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Redefinition {
    /// The position from which on the rows have this definition.
    pub(crate) from: Lsn,
    /// The definition, in the source's form.
    pub(crate) definition: String,
    /// The values that the rows may have by then.
    pub(crate) values: Vec<ColumnValues>,
}

impl OwedCopy {
    /// Returns true if the copy is still owed after a copy that ended with this definition.
    pub(super) fn is_owed_after(&self, definition: &str) -> bool {
        self.definition.as_deref() != Some(definition)
    }
}

impl Table {
    /// Handles a definition change after which the known copy may no longer match the table.
    pub(crate) fn on_moved(&mut self, owed: OwedCopy) -> Result<FollowUpAction, TableError> {
        match &self.phase {
            TableLifecycle::Stopped => self.revive(&owed.reason),
            // The copy under way may have been taken before the change. If a definition was seen,
            // that of the copy decides.
            TableLifecycle::Copying(_) => {
                if self.owes_copy.as_ref().is_none_or(|owed| owed.definition.is_some()) {
                    self.owes_copy = Some(owed);
                }
                Ok(FollowUpAction::Nothing)
            }
            TableLifecycle::Live => self.copy_again(&owed.reason),
        }
    }

    /// Handles a new definition that the rows have once every commit up to a position is applied. A
    /// copy reports its own definition.
    pub(crate) fn on_redefined(&mut self, mut redefinition: Redefinition) -> Result<FollowUpAction, TableError> {
        if matches!(self.phase, TableLifecycle::Live) {
            // A definition that still waits is not written, but its check of the rows is still
            // made.
            let mut earlier = self.definition_due.take().map(|due| due.values).unwrap_or_default();
            earlier.retain(|values| !redefinition.values.iter().any(|newer| newer.column == values.column));
            redefinition.values.append(&mut earlier);
            self.definition_due = Some(redefinition);
        }
        self.define_if_due(FollowUpAction::Nothing)
    }

    /// Returns true if every row is checked when the definition that waits for the stream is due.
    pub(crate) fn has_rows_to_check(&self) -> bool {
        self.definition_due.as_ref().is_some_and(|due| !due.values.is_empty())
    }

    /// Writes the definition that waits for the stream, if the stream has come so far. It is
    /// written after the rows that it applies to.
    pub(super) fn define_if_due(&mut self, wants: FollowUpAction) -> Result<FollowUpAction, TableError> {
        let (TableLifecycle::Live, Some(live)) = (&self.phase, &self.live) else { return Ok(wants) };
        let reached = live.writer.committed().position;
        let Some(due) = self.definition_due.take_if(|due| due.from <= reached) else { return Ok(wants) };
        if let Some(ColumnValues { column, .. }) = due.values.iter().find(|values| !has_only(&live.state, values)) {
            let reason = format!("column {column} has values of a definition in between");
            return self.copy_again(&reason);
        }
        let definition = self.definition(due.definition);
        if let Some(live) = &mut self.live {
            live.writer.publish()?;
            live.writer.define(definition);
        }
        Ok(wants)
    }
}

/// Returns true if a column of the rows has no other values than these and NULL.
fn has_only(state: &TableState, ColumnValues { column, values }: &ColumnValues) -> bool {
    let Some(place) = state.schema().columns().iter().position(|found| found.name == *column) else { return false };
    let is_one = |cell: Cell<'_>, values: &BTreeSet<Vec<u8>>| match cell {
        Cell::Value(bytes) => values.contains(bytes),
        Cell::Null => true,
        Cell::Unchanged => false,
    };
    state.rows().all(|row| is_one(row.as_ref().cell(place), values))
}
