//! What a writer is fed with.

use std::future::Future;
use std::time::Instant;

use laredo_core::{Checksum, DefinitionVersion, Lsn, StateError, TableState, Transaction};

use crate::manifest::{PositionMark, SourceId};

/// Brings a table's changes in whole transactions, each exactly once and in the order of their commits, on whatever connection.
pub trait Feed: Send {
    /// The next one. It waits as long as nothing happens, and may be dropped while it waits without losing anything.
    fn next(&mut self) -> impl Future<Output = Update> + Send;

    /// Returns the definition that the rows are of, with everything that was brought so far.
    fn definition(&self) -> DefinitionVersion;

    /// Returns the newest commit at or before the position of everything that was brought so far, where it is known.
    fn mark(&self) -> Option<PositionMark>;

    /// What came does not fit the state: all rows have to come anew.
    fn start_over(&mut self, error: StateError);

    /// Compares the checksum of the rows at a position with the source's, which came with [`Update::Current`]. Returns true where they differ
    /// and all rows come again.
    fn compare(&mut self, position: Lsn, ours: Checksum, theirs: Checksum) -> bool;
}

/// Something that a feed brings.
#[derive(Debug)]
pub enum Update {
    /// All rows are about to come, and those from before are of no more use: whoever has them may make room.
    Restart {
        /// Why, in the words of who sends them.
        reason: String,
        /// The newest position up to which the history of the rows before and that of the new ones are known to be the same. `u64::MAX`:
        /// it is one history. Zero: nothing is known of that.
        shared_until: Lsn,
    },
    /// All rows.
    State {
        /// The rows.
        table: Box<TableState>,
        /// The state that they are of.
        position: Lsn,
        /// Which database's WAL this position, and those that follow, are of.
        source: Option<SourceId>,
    },
    /// What follows is of this database. It comes when a stream goes on from a position that it was begun with.
    Resumed {
        /// As of [`Update::State`].
        source: Option<SourceId>,
    },
    /// Changes that became visible together.
    Transaction(Transaction),
    /// Everything that was committed at the source up to a moment has come.
    Current {
        /// The moment.
        at: Instant,
        /// A position up to which everything has come.
        position: Lsn,
        /// The checksum of the source's rows there, if it was sent.
        checksum: Option<Checksum>,
    },
    /// The feed has ended for good: nothing will come any more.
    Ended {
        /// Why.
        reason: String,
    },
}
