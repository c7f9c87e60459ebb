//! A snapshot that is not shown yet, because it is older than the table that it replaces. A server
//! sends a snapshot that it has, which may be much older than its head, and then the commits since.

use laredo_core::{CommitTime, DefinitionVersion, Lsn, ScopedMark, Sequence, StateError, TableState, Transaction};

/// Returns the further of two positions, with the newest known commit at or before it.
///
/// Servers that follow other tables may not know every commit. A commit of this client's own table
/// is known to all of them, so its mark is kept if both marks name the same commit.
pub(crate) fn newer_position(
    known: (Lsn, Option<ScopedMark>),
    other: (Lsn, Option<ScopedMark>),
) -> (Lsn, Option<ScopedMark>) {
    let other = (other.0, other.1.filter(|mark| mark.commit.end <= other.0));
    let is_same = |mark: &ScopedMark| {
        other.1.is_some_and(|other| (other.commit.end, other.commit.xid) == (mark.commit.end, mark.commit.xid))
    };
    if other.0 > known.0 {
        return (other.0, known.1.filter(is_same).or(other.1));
    }
    let is_newer = other.0 == known.0 && other.1.map(|mark| mark.commit.end) > known.1.map(|mark| mark.commit.end);
    if is_newer { other } else { known }
}

/// A table that readers do not see yet.
#[derive(Debug)]
pub(crate) struct PendingSnapshot {
    pub(crate) table: Box<TableState>,
    pub(crate) position: Lsn,
    /// The commit time of the newest transaction, or `None` if all rows are from the snapshot.
    pub(crate) committed_at: Option<CommitTime>,
    /// The sequence of the newest entry in the table.
    pub(crate) sequence: Sequence,
    /// The newest known commit at or before the position.
    pub(crate) mark: Option<ScopedMark>,
    /// The definition version of the rows, or unknown if it is that of the stream's handshake.
    pub(crate) definition: DefinitionVersion,
    /// The position from which on the table may be shown.
    pub(crate) goal: Lsn,
}

impl PendingSnapshot {
    pub(crate) fn new(
        table: Box<TableState>,
        position: Lsn,
        sequence: Sequence,
        mark: Option<ScopedMark>,
        definition: DefinitionVersion,
    ) -> PendingSnapshot {
        PendingSnapshot { table, position, committed_at: None, sequence, mark, definition, goal: Lsn::ZERO }
    }

    /// Notes the newest entry, and the definition version that begins with it, if that is known.
    pub(crate) fn reached(&mut self, sequence: Sequence, definition: DefinitionVersion) {
        self.sequence = sequence;
        if definition.is_known() {
            self.definition = definition;
        }
    }

    /// Applies a transaction to the table.
    ///
    /// # Errors
    /// When the transaction does not fit. The table is then unusable.
    pub(crate) fn apply(&mut self, transaction: &Transaction, mark: Option<ScopedMark>) -> Result<(), StateError> {
        self.table.apply(transaction)?;
        self.advance_position(transaction.position, mark);
        if !transaction.changes.is_empty() {
            self.committed_at = Some(transaction.committed_at);
        }
        Ok(())
    }

    /// Notes that no change to the table is missing up to this position. `mark` is the newest known
    /// commit of any table at or before it.
    pub(crate) fn advance_position(&mut self, position: Lsn, mark: Option<ScopedMark>) {
        (self.position, self.mark) = newer_position((self.position, self.mark), (position, mark));
    }

    pub(crate) fn is_due(&self) -> bool {
        self.position >= self.goal
    }
}
