//! A state on its way: received, and kept from the readers until it is at least as new as what they were shown. A server sends a
//! snapshot that it has, which may be much older than its head, and what was committed since.

use std::sync::Arc;

use laredo_core::{Lsn, Sequence, StateError, TableState, Transaction};

use crate::layout::Layout;
use crate::publish::Side;

/// A table that nobody sees yet.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) side: Side,
    /// Of the newest entry in it.
    pub(crate) sequence: Sequence,
    /// From this position on it is shown.
    goal: Lsn,
}

impl Incoming {
    pub(crate) fn new(table: TableState, position: Lsn, sequence: Sequence, goal: Lsn) -> Incoming {
        let layout = Arc::new(Layout::new(table.schema().clone()));
        Incoming { side: Side { table: Some(table), layout, position, committed_at: None }, sequence, goal }
    }

    /// # Errors
    /// When it does not fit; then the state is of no use any more.
    pub(crate) fn apply(&mut self, transaction: &Transaction, sequence: Sequence) -> Result<(), StateError> {
        self.sequence = sequence;
        self.side.apply(transaction, None)
    }

    /// Nothing happened up to here.
    pub(crate) fn moved(&mut self, position: Lsn) {
        self.side.position = self.side.position.max(position);
    }

    pub(crate) fn is_due(&self) -> bool {
        self.side.position >= self.goal
    }
}
