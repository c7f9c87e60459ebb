//! Definition changes while a table is followed: those that require a copy, and those that do not.

use std::collections::BTreeSet;

use laredo_core::{Cell, Lsn, TableState};

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

impl Redefinition {
    /// Returns true if the definition applies only to rows with certain values.
    pub(super) fn has_conditions(&self) -> bool {
        !self.values.is_empty()
    }

    /// Returns the copy that is owed unless the one under way has this definition.
    pub(super) fn into_owed_copy(self) -> OwedCopy {
        let reason = "its definition changed while a copy waited for the stream".to_owned();
        OwedCopy { reason, definition: Some(self.definition) }
    }

    /// Returns the name of a column that has a value which the definition does not allow.
    pub(super) fn violated_column(&self, state: &TableState) -> Option<&str> {
        let violated = self.values.iter().find(|values| !has_only(state, values));
        violated.map(|values| values.column.as_str())
    }
}

/// Returns true if a column of the rows has no other values than these and NULL.
fn has_only(state: &TableState, ColumnValues { column, values }: &ColumnValues) -> bool {
    let Some(index) = state.schema().columns().iter().position(|found| found.name == *column) else { return false };
    let is_allowed = |cell: Cell<'_>, values: &BTreeSet<Vec<u8>>| match cell {
        Cell::Value(bytes) => values.contains(bytes),
        Cell::Null => true,
        Cell::Unchanged => false,
    };
    state.rows().all(|row| is_allowed(row.as_ref().cell(index), values))
}
