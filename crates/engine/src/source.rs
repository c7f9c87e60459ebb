//! The interface between the engine and a database.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitMark, CommitTime, Key, Lsn, Schema, SourceIdentity, TableName, Xid};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::retention::WalRetention;
use crate::spool::Spool;

mod clock;
mod fork;
mod state;

pub use clock::SourceClock;
pub use fork::{Fork, ForkReceipt, ForkReceiptCollector};
pub use state::{SourceState, SourceStateReporter, SourceStatus};

/// A database that can be copied and followed.
///
/// There are two implementations: PostgreSQL, and the simulated database of the tests.
pub trait Source: Send + Sync + 'static {
    /// Checks that every table can be followed, and creates what following needs (publication,
    /// slot).
    ///
    /// The order of `tables` gives them their [`TableIndex`]. May be called again when the stream
    /// has ended: the source then forgets the earlier run.
    ///
    /// # Errors
    /// All problems at once, each as a sentence that says how to fix it; or the process that holds
    /// the slot.
    fn prepare(&self, tables: &[TableRequest]) -> impl Future<Output = Result<SourceServer, SourceError>> + Send;

    /// Resumes the tables from the state that an earlier run has left: their positions, and the
    /// definitions that they were copied under.
    ///
    /// Returns for each table, in the same order, how it continues. The stream then sends
    /// everything after the lowest position that a table is followed from.
    ///
    /// # Errors
    /// When the database cannot be queried.
    fn resume(
        &self,
        tables: &[Option<KnownTable>],
    ) -> impl Future<Output = Result<Vec<ResumeDecision>, SourceError>> + Send;

    /// Sends every commit in commit order, until `events` is closed.
    ///
    /// The source makes broken connections again by itself. The stream then resumes after the last
    /// commit that was sent. `acknowledged` returns the position up to which the database may
    /// forget its WAL.
    ///
    /// This future itself sends the events, not tasks that it spawns. The engine receives them
    /// right after it has polled the future.
    ///
    /// The source reports its state. It waits by itself for faults that may pass, or that an
    /// operator may fix in the database.
    ///
    /// # Errors
    /// When the source has to be prepared again: another process holds the slot before anything was
    /// received.
    fn stream(
        &self,
        events: mpsc::Sender<SourceEvent>,
        acknowledged: AcknowledgedPosition,
        reporter: SourceStateReporter,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Returns the maximum number of copies that run at the same time. Each takes a connection that
    /// others may need.
    fn copies_max(&self) -> usize {
        4
    }

    /// Returns the maximum number of database connections that the source uses, those of copies
    /// included; zero if it uses none.
    fn connections_max(&self) -> usize {
        0
    }

    /// Returns the delay after `failed` failed attempts in a row; `None` if the configuration
    /// allows no more of them. The source is then refused, but still tried again at the longest
    /// interval.
    fn retry_delay(&self, failed: u32) -> Option<Duration> {
        Some(Duration::from_millis(500) * 2_u32.saturating_pow(failed.min(5)))
    }

    /// Copies one table under an ordinary snapshot that `admits` accepts. The source takes new
    /// snapshots until one is accepted.
    ///
    /// `before` is the definition that the last copy was made under, if its rows are known. Before
    /// [`CopyEvent::End`], the source makes the stream pass every position that it sent before the
    /// copy began, even on an idle database.
    ///
    /// The copy ends early when `rows` is closed. In either case the future returns only when the
    /// database has released the resources of the copy.
    ///
    /// # Errors
    /// When the copy did not end. Its rows must then be discarded.
    fn copy(
        &self,
        table: TableIndex,
        before: Option<&str>,
        admits: SnapshotCheck,
        rows: mpsc::Sender<CopyEvent>,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Reads parts of one table in the order of `orders`, until `orders` is closed. Each part is
    /// read under an ordinary snapshot of its own that the order admits.
    ///
    /// # Errors
    /// When a part could not be read to its end.
    fn inspect(
        &self,
        table: TableIndex,
        orders: mpsc::Receiver<TablePartOrder>,
        parts: mpsc::Sender<TablePartEvent>,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Checks that more tables can be followed, in addition to `others`, and returns their schemas.
    /// With `publishes`, it also creates what following them needs.
    ///
    /// # Errors
    /// All problems at once, each as a sentence that says how to fix it; or the reason why the
    /// database cannot be queried.
    fn check_more(
        &self,
        more: &[TableRequest],
        others: &[TableRequest],
        publishes: bool,
    ) -> impl Future<Output = Result<Vec<Arc<Schema>>, SourceError>> + Send;

    /// Reads the identity of the database's server and the end of its WAL, as they are now.
    ///
    /// # Errors
    /// When the database cannot be queried.
    fn read_server(&self) -> impl Future<Output = Result<SourceServer, SourceError>> + Send;

    /// Follows one more table from now on, and returns its index. The table was checked before, and
    /// the stream of this run has begun. The table's copy makes it complete.
    fn add_table(&self, table: TableRequest) -> TableIndex;

    /// Follows a table no more. Its index is not used again in this run.
    fn remove_table(&self, table: TableIndex);

    /// Returns what the database retains for the stream. The values do not pass through the
    /// stream's events, because they matter most while nothing receives those.
    fn retention(&self) -> watch::Receiver<WalRetention>;

    /// Returns the times at which the source last read each table's definition. A source that is
    /// notified of every change may keep the default, which is empty.
    fn looks(&self) -> watch::Receiver<DefinitionReads> {
        watch::channel(DefinitionReads::default()).1
    }

    /// Returns the database's clock. The default is this machine's clock.
    fn clock(&self) -> SourceClock {
        SourceClock::default()
    }

    /// Asks the database for the current end of its WAL. Every position of its history is at or
    /// before that end.
    ///
    /// # Errors
    /// When the database cannot be queried.
    fn written(&self) -> impl Future<Output = Result<Lsn, SourceError>> + Send;

    /// Drops what the database retains for the stream, and makes it retain WAL from now on. The
    /// stream reports the gap with [`SourceEvent::Restarted`].
    ///
    /// With `drop_publication`, the publication that decides which tables are sent is made again,
    /// too. Returns when that is done and the rest has begun. The stream retries the rest until it
    /// is done.
    ///
    /// # Errors
    /// When the reset is not permitted, or the database cannot be queried. Nothing has changed
    /// then.
    fn reset(&self, drop_publication: bool) -> impl Future<Output = Result<(), SourceError>> + Send;
}

/// A check of snapshots. It accepts one that sees every transaction that was already applied.
pub type SnapshotCheck = Arc<dyn Fn(&TransactionSnapshot) -> bool + Send + Sync>;

/// A function that returns the acknowledged position. The source calls it for each report to the
/// database. It must report from time to time on an idle database, too.
pub type AcknowledgedPosition = Arc<dyn Fn() -> Lsn + Send + Sync>;

/// The index of a table in the list that the engine was created with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableIndex(pub usize);

/// A table to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRequest {
    /// The name of the table.
    pub name: TableName,
    /// The columns that identify a row, if the table's replica identity does not; empty otherwise.
    pub key_fields: Vec<String>,
}

/// The state of a table that an earlier run has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownTable {
    /// The position of the state: every commit up to here is in it.
    pub position: Lsn,
    /// The newest commit of any of the source's tables at or before the position; all zeros if it
    /// is unknown.
    pub mark: CommitMark,
    /// The definition that the last copy was made under, as in [`CopyEvent::End`].
    pub definition: String,
    /// True if the database server has run without a restart since then. Its storage cannot have
    /// been restored in that case.
    pub is_of_same_server: bool,
}

/// The way in which a table continues from the state that an earlier run has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResumeDecision {
    /// The table is followed. A table without such a state is copied even then.
    Follow,
    /// The table is followed, and copied once the stream is past the present end of the WAL,
    /// because its definition has changed. The string is the reason. Readers that were further than
    /// the state that was left have caught up by then, and do not move back in time.
    FollowThenCopy(String),
    /// The table is copied, because the stream lacks something. The string is the reason.
    Copy(String),
}

/// The server of a source's database, as the source found it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceServer {
    /// The identity of the database.
    pub identity: SourceIdentity,
    /// The end of the WAL when the identity was read.
    pub written: Lsn,
    /// The time at which the server was started; empty if it is unknown. The storage of a running
    /// server cannot be restored.
    pub started: String,
}

/// An event of a stream. Events are in order.
#[derive(Debug)]
pub enum SourceEvent {
    /// The stream begins, or continues on another connection. Commits that a copy or a part has
    /// seen on a server that was started at another time may not be in the stream. Its rows are
    /// read again.
    Connected {
        /// The time at which the server was started, as in [`TransactionSnapshot`].
        server_started: String,
    },
    /// A transaction that changed at least one of the tables.
    Commit(SourceCommit),
    /// The position of the stream. Every commit that ends here or before has been sent, or changed
    /// none of the tables.
    Progress(Lsn),
    /// The position of the stream, when it has come as far as the database was at a time. A stream
    /// that is behind has no such time, however much it progresses.
    Current {
        /// The position, as in [`SourceEvent::Progress`].
        position: Lsn,
        /// The time, on the database's clock.
        at: CommitTime,
    },
    /// The table's definition may have changed since the last copy. The table owes a copy from here
    /// on.
    Moved {
        /// The table.
        table: TableIndex,
        /// The reason, for the log.
        reason: String,
        /// The definition that was seen, in the form of [`CopyEvent::End`]. A copy that ends with
        /// it is the copy that is owed. `None` if only a copy that begins later is.
        definition: Option<String>,
    },
    /// The table cannot be followed any more, because it was dropped or has no key.
    Broken {
        /// The table.
        table: TableIndex,
        /// The error, and how to fix it.
        error: String,
    },
    /// The table's definition has changed, but every change of its rows was sent. The rows that the
    /// stream has made are rows of the new definition.
    Redefined {
        /// The table.
        table: TableIndex,
        /// The definition, in the form of [`CopyEvent::End`].
        definition: String,
        /// The end of the WAL when the definition was read. The rows have this definition once
        /// every commit up to here is applied.
        from: Lsn,
        /// The values that rows may have by then. A row with another value was sent under a
        /// definition in between, and the table then owes a copy.
        values: Vec<ColumnValues>,
    },
    /// The stream could not resume at its position, because its slot is gone. The commits in
    /// between were never sent, so every table owes a copy.
    Restarted {
        /// The reason, for the log.
        reason: String,
        /// The possible fork, if nothing proves that the database still contains what was sent
        /// before.
        fork: Option<Fork>,
    },
    /// The database no longer contains everything that was sent. Its storage was restored, or it
    /// was promoted without the newest commits. Every table notes the fork on disk, gives the
    /// receipt back, and begins again with a copy.
    Forked {
        /// The server, with the present identity of the database.
        server: SourceServer,
        /// The point where the histories parted.
        fork: Fork,
        /// The reason, for the log.
        reason: String,
        /// The receipt that a table gives back once it has noted the fork.
        noted: ForkReceipt,
    },
    /// The database now writes another timeline, which contains everything that was sent.
    Promoted {
        /// The server, with the present identity of the database.
        server: SourceServer,
    },
}

/// The times at which a source read the tables' definitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefinitionReads {
    /// The start of the last successful read of each table's definition.
    pub seen: BTreeMap<TableIndex, Instant>,
    /// The error of the last read of a table's definition, if that read failed.
    pub errors: BTreeMap<TableIndex, String>,
    /// True if the database writes definition changes into the stream.
    pub is_triggered: bool,
}

/// The values that a column may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnValues {
    /// The name of the column.
    pub column: String,
    /// All of the values except NULL.
    pub values: BTreeSet<Vec<u8>>,
}

/// A committed transaction.
#[derive(Debug)]
pub struct SourceCommit {
    /// The top-level transaction ID.
    pub xid: Xid,
    /// The end of the commit record.
    pub end: Lsn,
    /// The time of the commit.
    pub committed_at: CommitTime,
    /// The changes, table by table.
    pub tables: Vec<(TableIndex, Spool)>,
}

impl SourceCommit {
    /// Returns the commit's mark.
    #[must_use]
    pub fn mark(&self) -> CommitMark {
        CommitMark { end: self.end, xid: self.xid, committed_at: self.committed_at }
    }
}

/// A snapshot: the transactions that a copy sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionSnapshot {
    /// The lower bound. Every transaction ID below it has finished and is seen.
    pub xmin: Xid,
    /// The upper bound. No transaction ID from here on is seen.
    pub xmax: Xid,
    /// The transaction IDs between the two bounds that were still running, in ascending order.
    pub in_progress: Vec<Xid>,
    /// The time at which the server was started, in the form of [`SourceServer::started`]. After a
    /// restart, the server may have lost what the snapshot sees.
    pub server_started: String,
}

impl TransactionSnapshot {
    /// Returns true if the snapshot sees a committed transaction.
    #[must_use]
    pub fn sees(&self, xid: Xid) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }
}

/// An event of a copy that is being made.
#[derive(Debug)]
pub enum CopyEvent {
    /// The copy begins. A second such event discards everything before it, because the source had
    /// to start over.
    Begin {
        /// The schema of the copy's rows.
        schema: Arc<Schema>,
        /// The snapshot of the copy. Transactions that it sees need not be held while the copy is
        /// made.
        snapshot: TransactionSnapshot,
        /// The number of rows to expect, as PostgreSQL estimates it.
        rows_estimated: u64,
        /// The number of bytes to expect: the table's size on disk.
        bytes_estimated: u64,
    },
    /// Whole rows, each a native-endian `u32` length and the row's cells.
    Rows(Vec<u8>),
    /// The copy is complete.
    End {
        /// The end of the WAL, read after the snapshot was taken. Everything that the copy sees is
        /// before it.
        inserted: Lsn,
        /// The table's definition, in a form that only the source understands. A later run compares
        /// it with the definition at that time. Clients know the definition by a version that is
        /// computed from the first line.
        definition: String,
        /// True if, between the definition `before` and this one, only transactions in the stream
        /// can have changed rows. The stream contains most truncations. Rewriting a table only for
        /// its size changes no row.
        is_streamed: bool,
    },
}

/// An order to read a part of a table.
pub struct TablePartOrder {
    /// The part.
    pub part: TablePart,
    /// The check of the snapshots that the part may be read under.
    pub admits: SnapshotCheck,
}

/// A part of a table's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TablePart {
    /// The rows in some blocks of the table's file, or of the files of all its partitions. A row
    /// moves to another block only when a transaction changes it.
    Blocks {
        /// The first block.
        from: u64,
        /// The approximate number of bytes of the files to read. At least one block is read.
        bytes: u64,
    },
    /// The rows with these keys. Other rows may be read with them.
    Keys(Vec<Key>),
}

/// An event of a part that is being read.
#[derive(Debug)]
pub enum TablePartEvent {
    /// The part begins.
    Begin {
        /// The schema of the part's rows.
        schema: Arc<Schema>,
        /// The snapshot that the part is read under.
        snapshot: TransactionSnapshot,
        /// The end of the WAL, read after the snapshot was taken. The stream will pass it, even on
        /// an idle database.
        inserted: Lsn,
        /// The number of blocks of the table's file; of the longest file, if there are several.
        blocks: u64,
    },
    /// Whole rows, as in [`CopyEvent::Rows`].
    Rows(Vec<u8>),
    /// The part is complete.
    End {
        /// The first block after the part; `None` at the end of the table, and for keys.
        next: Option<u64>,
    },
    /// The part cannot be compared with rows of the last copy, because the table's definition has
    /// changed. The string is the reason.
    Changed(String),
}

/// The reason why a source failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Another process holds the slot or a folder, for as long as that process runs. The message
    /// names it.
    #[error("{0}")]
    Held(String),
    /// An error that may pass: a lost connection, or a server that is starting.
    #[error("{0}")]
    Transient(String),
    /// Errors that an operator must fix. Each entry is a sentence that says how.
    #[error("{}", .0.join("\n"))]
    Definite(Vec<String>),
}
