//! Changes to a table.

use std::sync::Arc;

use crate::key::Key;
use crate::position::{CommitTime, Lsn};
use crate::schema::Schema;
use crate::tuple::Tuple;

/// A single change, with complete rows. An update that changes the key is a `Delete` and an
/// `Insert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new row, whose key did not exist.
    Insert(Tuple),
    /// A row that replaces the one with the same key.
    Update(Tuple),
    /// The key of a row that was deleted.
    Delete(Key),
    /// The removal of every row.
    Truncate,
    /// The schema of the rows from here on. Existing rows are cast to it ([`crate::RowCast`]).
    Schema(Arc<Schema>),
}

/// The effect of a change on a table state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowEffect {
    /// The row before the change.
    pub old: Option<Tuple>,
    /// The row after the change.
    pub new: Option<Tuple>,
}

/// Changes to one table that become visible together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The end of the commit, where a reader that has applied this transaction continues.
    pub position: Lsn,
    /// Set if this covers everything in `(span_from, position]` at once, as after a new copy of the
    /// table. No position inside was ever visible.
    pub span_from: Option<Lsn>,
    /// The time of the commit.
    pub committed_at: CommitTime,
    /// The changes in order.
    pub changes: Vec<Change>,
}
