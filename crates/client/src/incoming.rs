//! A state on its way: received, and kept back until it is at least as new as the one whose place it takes. A server sends a
//! snapshot that it has, which may be much older than its head, and what was committed since.

use laredo_core::{CommitTime, DefinitionVersion, Lsn, Sequence, StateError, TableState, Transaction};

/// A table that nobody sees yet.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) table: Box<TableState>,
    pub(crate) position: Lsn,
    /// When the newest transaction committed, where one was seen.
    pub(crate) committed_at: Option<CommitTime>,
    /// Of the newest entry in it.
    pub(crate) sequence: Sequence,
    /// The definition that its rows are of; unknown where it is that of the stream's beginning.
    pub(crate) definition: DefinitionVersion,
    /// From this position on it is shown.
    pub(crate) goal: Lsn,
}

impl Incoming {
    pub(crate) fn new(
        table: Box<TableState>,
        position: Lsn,
        sequence: Sequence,
        definition: DefinitionVersion,
    ) -> Incoming {
        Incoming { table, position, committed_at: None, sequence, definition, goal: Lsn::ZERO }
    }

    /// Notes the newest entry, and the definition that it begins if that is known.
    pub(crate) fn reached(&mut self, sequence: Sequence, definition: DefinitionVersion) {
        self.sequence = sequence;
        if definition.is_known() {
            self.definition = definition;
        }
    }

    /// # Errors
    /// When it does not fit; then the state is of no use any more.
    pub(crate) fn apply(&mut self, transaction: &Transaction) -> Result<(), StateError> {
        self.table.apply(transaction)?;
        self.moved(transaction.position);
        if !transaction.changes.is_empty() {
            self.committed_at = Some(transaction.committed_at);
        }
        Ok(())
    }

    /// Nothing happened up to here.
    pub(crate) fn moved(&mut self, position: Lsn) {
        self.position = self.position.max(position);
    }

    pub(crate) fn is_due(&self) -> bool {
        self.position >= self.goal
    }
}
