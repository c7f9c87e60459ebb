//! The source of the rows and changes that a writer receives.

use std::future::Future;
use std::time::Instant;

use laredo_core::{Checksum, DefinitionVersion, Lsn, ScopedMark, SourceIdentity, StateError, TableState, Transaction};

/// A source of a table's changes in whole transactions. Each is delivered exactly once, in the
/// order of the commits, across all connections.
pub trait Feed: Send {
    /// Waits for the next update and returns it. The future may be dropped while it waits, without
    /// losing an update.
    fn next(&mut self) -> impl Future<Output = FeedUpdate> + Send;

    /// Returns the definition version of the rows after all delivered updates.
    fn definition(&self) -> DefinitionVersion;

    /// Returns the newest commit at or before the position of all delivered updates, if it is
    /// known.
    fn mark(&self) -> Option<ScopedMark>;

    /// Requests all rows again, because the delivered changes do not fit the state.
    fn start_over(&mut self, error: StateError);

    /// Compares the checksum of the rows at a position with the source's, which came with
    /// [`FeedUpdate::Current`]. Returns true if they differ, in which case the feed sends all rows
    /// again.
    fn compare(&mut self, position: Lsn, ours: Checksum, theirs: Checksum) -> bool;
}

/// An update from a feed.
#[derive(Debug)]
pub enum FeedUpdate {
    /// All rows will be sent again, and the previous ones are obsolete, so the receiver may free
    /// their memory.
    Restart {
        /// The reason, in the words of the sender.
        reason: String,
        /// The newest position up to which the history of the previous rows and that of the new
        /// ones are known to be the same. `u64::MAX` means that it is one history. Zero means that
        /// nothing is known.
        shared_until: Lsn,
    },
    /// The complete rows of the table.
    State {
        /// The rows.
        table: Box<TableState>,
        /// The position of the rows.
        position: Lsn,
        /// The database and history that this position, and those that follow, belong to.
        source: Option<SourceIdentity>,
    },
    /// The stream has resumed from the position with which it was started. The following updates
    /// are from this database.
    Resumed {
        /// The database and history, as in [`FeedUpdate::State`].
        source: Option<SourceIdentity>,
    },
    /// The changes of one commit.
    Transaction(Transaction),
    /// Everything that was committed at the source up to a moment has been delivered.
    Current {
        /// The moment.
        at: Instant,
        /// A position up to which everything has been delivered.
        position: Lsn,
        /// The checksum of the source's rows at that position, if it was sent.
        checksum: Option<Checksum>,
    },
    /// The feed has ended permanently.
    Ended {
        /// The reason for the end.
        reason: String,
    },
}
