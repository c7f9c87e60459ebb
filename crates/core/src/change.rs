//! What happens to a table.

use std::sync::Arc;

use crate::key::Key;
use crate::position::{CommitTime, Lsn};
use crate::schema::Schema;
use crate::tuple::Tuple;

/// One change, complete: every new row is whole. An update that changes the key is a `Delete` and an `Insert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A row that was not there.
    Insert(Tuple),
    /// A row whose key was there already.
    Update(Tuple),
    /// The row of this key is gone.
    Delete(Key),
    /// Every row is gone.
    Truncate,
    /// From here on rows have this schema; those that stay are cast to it ([`crate::RowCast`]).
    Schema(Arc<Schema>),
}

/// What a change did to a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The row that was there before.
    pub old: Option<Tuple>,
    /// The row that is there now.
    pub new: Option<Tuple>,
}

/// Changes to one table that become visible together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The commit's end: where a reader that has applied this goes on from.
    pub position: Lsn,
    /// Set where this stands for everything in `(span_from, position]` at once (a new copy of the table): no position
    /// inside was ever visible.
    pub span_from: Option<Lsn>,
    /// When it committed.
    pub committed_at: CommitTime,
    /// In their order.
    pub changes: Vec<Change>,
}
