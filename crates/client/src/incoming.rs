//! A state on its way: received, and kept back until it is at least as new as the one whose place it takes. A server sends a
//! snapshot that it has, which may be much older than its head, and what was committed since.

use laredo_core::{CommitTime, DefinitionVersion, Lsn, Sequence, StateError, TableState, Transaction};
use laredo_proto::replication::CommitMark;

/// The further of two positions, with the newest commit that is known at or before it. A commit of the table is known to every
/// server; the same one as named by a server with other tables may not be.
pub(crate) fn newer(known: (Lsn, Option<CommitMark>), told: (Lsn, Option<CommitMark>)) -> (Lsn, Option<CommitMark>) {
    let told = (told.0, told.1.filter(|mark| mark.end <= told.0.0));
    let is_same = |mark: &CommitMark| told.1.is_some_and(|told| (told.end, told.xid) == (mark.end, mark.xid));
    if told.0 > known.0 {
        return (told.0, known.1.filter(is_same).or(told.1));
    }
    let is_newer = told.0 == known.0 && told.1.map(|mark| mark.end) > known.1.map(|mark| mark.end);
    if is_newer { told } else { known }
}

/// A table that nobody sees yet.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) table: Box<TableState>,
    pub(crate) position: Lsn,
    /// When the newest transaction committed, where one was seen.
    pub(crate) committed_at: Option<CommitTime>,
    /// Of the newest entry in it.
    pub(crate) sequence: Sequence,
    /// The newest commit at or before the position, where it is known.
    pub(crate) mark: Option<CommitMark>,
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
        mark: Option<CommitMark>,
        definition: DefinitionVersion,
    ) -> Incoming {
        Incoming { table, position, committed_at: None, sequence, mark, definition, goal: Lsn::ZERO }
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
    pub(crate) fn apply(&mut self, transaction: &Transaction, mark: Option<CommitMark>) -> Result<(), StateError> {
        self.table.apply(transaction)?;
        self.moved(transaction.position, mark);
        if !transaction.changes.is_empty() {
            self.committed_at = Some(transaction.committed_at);
        }
        Ok(())
    }

    /// Nothing happened up to here. `mark` is the newest commit of any table at or before it, where that is known.
    pub(crate) fn moved(&mut self, position: Lsn, mark: Option<CommitMark>) {
        (self.position, self.mark) = newer((self.position, self.mark), (position, mark));
    }

    pub(crate) fn is_due(&self) -> bool {
        self.position >= self.goal
    }
}
