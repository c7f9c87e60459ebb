//! What the engine asks of a database.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitMark, CommitTime, Key, Lsn, Oid, Schema, TableName, Xid};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::history::{Fork, Receipt};
use crate::retention::Retention;
use crate::spool::Spool;

mod clock;
mod state;

pub use clock::SourceClock;
pub use state::{SourceState, SourceStatus, StateReporter};

/// A database that can be copied and followed.
///
/// One implementation is PostgreSQL's, the other the tests' simulated one.
pub trait Source: Send + Sync + 'static {
    /// Checks that every table can be followed, and makes ready what following needs (publication, slot). The order of
    /// `tables` gives them their [`TableIndex`]. May be called again when the stream has ended: the source forgets the run before.
    ///
    /// # Errors
    /// Everything that is wrong, at once, each as a sentence that says how to mend it; or the process that holds the slot.
    fn prepare(&self, tables: &[TableRequest]) -> impl Future<Output = Result<SourceIdentity, SourceError>> + Send;

    /// Takes up what an earlier run has left of the tables: where their states stand, and what they were copied under. Tells of each,
    /// in the same order, how it goes on. The stream then sends everything after the least of the positions that are followed from.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn resume(&self, tables: &[Option<KnownTable>]) -> impl Future<Output = Result<Vec<Resume>, SourceError>> + Send;

    /// Sends every commit in commit order, until `events` is closed. Connections that break are made again inside; the
    /// stream goes on after the last commit sent. `acknowledged` says what may be forgotten.
    ///
    /// Events are sent by this future itself, not by tasks that it spawns: they are taken when it has been polled.
    ///
    /// The source reports its state, and waits by itself for faults that may pass or be fixed in the database.
    ///
    /// # Errors
    /// When it has to be prepared again: another process holds the slot before anything was received.
    fn stream(
        &self,
        events: mpsc::Sender<SourceEvent>,
        acknowledged: Acknowledged,
        reporter: StateReporter,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// The most copies that run at the same time: each takes a connection that others may need.
    fn copies_max(&self) -> usize {
        4
    }

    /// The connections of the database that the source takes at most, those of copies included; zero where it takes none.
    fn connections_max(&self) -> usize {
        0
    }

    /// Returns how long to wait after `failed` attempts in a row; `None` where the configuration allows no more of them. The
    /// source is refused then, and still looked at again.
    fn retry_delay(&self, failed: u32) -> Option<Duration> {
        Some(Duration::from_millis(500) * 2_u32.saturating_pow(failed.min(5)))
    }

    /// Copies one table under an ordinary snapshot that `admits` accepts (it is taken again until then). `before` is what the last
    /// copy was made under, if its rows are known. Before [`CopyEvent::End`] it sees to it that the stream comes to a position beyond all that it told before the copy began, on an
    /// idle database, too. Ends early when `rows` is closed. In either case it returns when what the copy took of the
    /// database is free again.
    ///
    /// # Errors
    /// When the copy did not end; nothing of it counts then.
    fn copy(
        &self,
        table: TableIndex,
        before: Option<&str>,
        admits: Admission,
        rows: mpsc::Sender<CopyEvent>,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Reads parts of one table as they are ordered, until `orders` is closed: one after the other, each under an
    /// ordinary snapshot of its own that the order admits.
    ///
    /// # Errors
    /// When a part could not be read to its end.
    fn inspect(
        &self,
        table: TableIndex,
        orders: mpsc::Receiver<PartOrder>,
        parts: mpsc::Sender<PartEvent>,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// What the database keeps for the stream. It is told beside the events, for it matters most while nobody takes those.
    fn retention(&self) -> watch::Receiver<Retention>;

    /// The times at which the source last read each table's definition. A source that is notified of every change need not.
    fn looks(&self) -> watch::Receiver<DefinitionLooks> {
        watch::channel(DefinitionLooks::default()).1
    }

    /// Returns the database's clock. By default it is this machine's.
    fn clock(&self) -> SourceClock {
        SourceClock::default()
    }

    /// Asks the database where its WAL ends now. Every position of its history is at or before that.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn written(&self) -> impl Future<Output = Result<Lsn, SourceError>> + Send;

    /// Gives up what the database keeps for the stream, and has it kept anew from now on: the stream tells
    /// [`SourceEvent::Restarted`] where it does. With `drop_publication`, what decides which tables are sent is made anew, too. Returns when
    /// that is done and the rest is begun; the stream tries it until it is done.
    ///
    /// # Errors
    /// When it may not be done, or the database cannot be asked; nothing has changed then.
    fn reset(&self, drop_publication: bool) -> impl Future<Output = Result<(), SourceError>> + Send;
}

/// Whether a snapshot may be copied under: it must see every transaction that was applied already.
pub type Admission = Arc<dyn Fn(&Snapshot) -> bool + Send + Sync>;

/// What may be forgotten by now. It is asked whenever the database is told, which must be from time to time on an idle one, too.
pub type Acknowledged = Arc<dyn Fn() -> Lsn + Send + Sync>;

/// A table's place in the list that the engine was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableIndex(pub usize);

/// A table to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRequest {
    /// Its name.
    pub name: TableName,
    /// What identifies a row where the table's replica identity does not say; empty otherwise.
    pub key_fields: Vec<String>,
}

/// What is left of a table from an earlier run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownTable {
    /// Every commit up to here is in it.
    pub position: Lsn,
    /// The newest commit of any of the source's tables at or before the position; all zeros where it is unknown.
    pub mark: CommitMark,
    /// What its last copy was made under, as [`CopyEvent::End`] said.
    pub definition: String,
    /// True where the database's server runs since then: its storage cannot have been put back.
    pub is_of_same_server: bool,
}

/// How a table goes on from what an earlier run has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// It is followed. (Where nothing is left this says nothing, and it is copied.)
    Follow,
    /// It is followed, and copied once the stream is past what was written by now: its definition is another one, for this reason. Readers
    /// who had come further than what is left have caught up by then, and are not sent back.
    FollowThenCopy(String),
    /// It is copied, because the stream lacks something, for this reason.
    Copy(String),
}

/// Which database this is, and which line of its history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceIdentity {
    /// The cluster's system identifier.
    pub system_identifier: String,
    /// The database's name.
    pub database: String,
    /// The timeline it writes.
    pub timeline: u32,
    /// Earlier timelines and where each was left, oldest first.
    pub history: Vec<(u32, Lsn)>,
    /// How far its WAL was written when it was asked.
    pub written: Lsn,
    /// When the server was started: the storage of one that runs is not put back. Empty where that is not known.
    pub server_started: String,
}

impl SourceIdentity {
    /// Returns true if this is the named database of that cluster, whatever has become of its history.
    #[must_use]
    pub fn is_database(&self, system_identifier: &str, database: &str) -> bool {
        self.system_identifier == system_identifier && self.database == database
    }

    /// Returns the position at which an earlier timeline was left; zero where it is not part of this database's history.
    #[must_use]
    pub fn left_at(&self, timeline: u32) -> Lsn {
        self.history.iter().find(|(of, _)| *of == timeline).map_or(Lsn::ZERO, |(_, at)| *at)
    }
}

/// What a stream says, in order.
#[derive(Debug)]
pub enum SourceEvent {
    /// A transaction that changed at least one of the tables.
    Commit(SourceCommit),
    /// Every commit that ends here or before has been sent or touched none of the tables.
    Progress(Lsn),
    /// The table's definition may no longer be the one that was copied: it owes a copy from here on.
    Moved {
        /// The table.
        table: TableIndex,
        /// What was seen, for the log.
        reason: String,
        /// The definition that was seen, as [`CopyEvent::End`] says it: a copy that ends with it owes nothing. `None` where only a copy that
        /// begins later is good.
        definition: Option<String>,
    },
    /// The table cannot be followed any more: dropped, or without a key.
    Broken {
        /// The table.
        table: TableIndex,
        /// What happened and how to mend it.
        error: String,
    },
    /// The table's definition is another one, and nothing happened that was not told: its rows are what the stream has made of them.
    Redefined {
        /// The table.
        table: TableIndex,
        /// The definition, as [`CopyEvent::End`] would say it now.
        definition: String,
        /// Where the WAL ended when that was read: it is true of the rows once every commit up to here is told.
        from: Lsn,
        /// The values that rows have by then. A row with another one was sent under a definition in between, and the table owes a
        /// copy.
        values: Vec<ColumnValues>,
    },
    /// The stream could not go on where it was (its slot is gone): whatever committed in between was never sent, so
    /// every table owes a copy.
    Restarted {
        /// What happened, for the log.
        reason: String,
        /// Set where nothing proves that the database still contains what was sent before.
        fork: Option<Fork>,
    },
    /// The database no longer contains what was sent: its storage was put back, or it was promoted or restored without
    /// the newest commits. Every table notes the fork on disk, gives the receipt back, and begins again with a copy.
    Forked {
        /// The database as it is now.
        identity: SourceIdentity,
        /// Where the histories parted.
        fork: Fork,
        /// What happened, for the log.
        reason: String,
        /// Given back once the fork is noted.
        noted: Receipt,
    },
    /// The database writes another timeline now, and contains everything that was sent.
    Promoted {
        /// The database as it is now.
        identity: SourceIdentity,
    },
}

/// When a source looked at the tables' definitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefinitionLooks {
    /// When the last look began that succeeded.
    pub seen: BTreeMap<TableIndex, Instant>,
    /// The reason why the last look failed, where it did.
    pub errors: BTreeMap<TableIndex, String>,
    /// True if the database writes changes of definitions into the stream.
    pub is_triggered: bool,
}

/// The values that a column may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnValues {
    /// The column's name.
    pub column: String,
    /// All of them but NULL.
    pub values: BTreeSet<Vec<u8>>,
}

/// A committed transaction.
#[derive(Debug)]
pub struct SourceCommit {
    /// Its top-level id.
    pub xid: Xid,
    /// The end of its commit record.
    pub end: Lsn,
    /// When it committed.
    pub committed_at: CommitTime,
    /// Its changes, table by table.
    pub tables: Vec<(TableIndex, Spool)>,
}

impl SourceCommit {
    /// Returns the commit's mark.
    #[must_use]
    pub fn mark(&self) -> CommitMark {
        CommitMark { end: self.end, xid: self.xid, committed_at: self.committed_at }
    }
}

/// The columns of a table as the stream announces them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationShape {
    /// Name, type and type modifier of each, in the order of a row's cells.
    pub columns: Vec<(String, Oid, i32)>,
}

impl RelationShape {
    /// Whether rows announced so are rows of this schema.
    #[must_use]
    pub fn fits(&self, schema: &Schema) -> bool {
        let announced = self.columns.iter().map(|(name, oid, modifier)| (name.as_str(), *oid, *modifier));
        announced.eq(schema.columns().iter().map(|c| (c.name.as_str(), c.type_oid, c.type_modifier)))
    }
}

/// Which transactions a copy has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every id below is finished and seen.
    pub xmin: Xid,
    /// No id from here on is seen.
    pub xmax: Xid,
    /// Ids between the two that were still running, in order.
    pub in_progress: Vec<Xid>,
}

impl Snapshot {
    /// Whether a committed transaction is seen.
    #[must_use]
    pub fn sees(&self, xid: Xid) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }
}

/// A copy as it arrives.
#[derive(Debug)]
pub enum CopyEvent {
    /// The copy begins. A second one discards what came before it: the source had to start over.
    Begin {
        /// The schema of its rows.
        schema: Arc<Schema>,
        /// What it sees: less need be held while it is made.
        snapshot: Snapshot,
        /// Rows to expect, as PostgreSQL estimates them.
        rows_estimated: u64,
        /// Bytes to expect, as the table's size on disk says.
        bytes_estimated: u64,
    },
    /// Whole rows, each a native-endian `u32` length and the row's cells.
    Rows(Vec<u8>),
    /// The copy is complete.
    End {
        /// The end of the WAL, read after the snapshot was taken: everything that the copy sees lies before.
        inserted: Lsn,
        /// The table's definition, in words that the source understands: a later run asks with them whether it is still the same.
        /// Clients know it by a version that is made of the first line.
        definition: String,
        /// Whether nothing but transactions that the stream tells can have changed rows between the definition `before` and this one. (It
        /// tells most truncations; rewriting a table for its size alone changes none.)
        is_told: bool,
    },
}

/// An order to read a part of a table.
pub struct PartOrder {
    /// The part.
    pub part: TablePart,
    /// Decides which snapshots the part may be read under.
    pub admits: Admission,
}

/// A part of a table's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TablePart {
    /// The rows of some blocks of the table's file, or of the files of all its partitions. A row changes its block only
    /// when a transaction changes the row.
    Blocks {
        /// The first block.
        from: u64,
        /// Bytes of the files to read, roughly. At least one block is read.
        bytes: u64,
    },
    /// The rows of these keys. Others may be read with them.
    Keys(Vec<Key>),
}

/// A part of a table as it is read.
#[derive(Debug)]
pub enum PartEvent {
    /// The part begins.
    Begin {
        /// The schema of its rows.
        schema: Arc<Schema>,
        /// The snapshot that it is read under.
        snapshot: Snapshot,
        /// The end of the WAL, read after the snapshot was taken. The stream comes past it, on an idle database, too.
        inserted: Lsn,
        /// The blocks of the table's file; of the longest one, where there are several.
        blocks: u64,
    },
    /// Whole rows, as in [`CopyEvent::Rows`].
    Rows(Vec<u8>),
    /// The part is complete.
    End {
        /// The first block after it; nothing at the end of the table and for keys.
        next: Option<u64>,
    },
    /// The part cannot be compared with rows of the last copy, because the table's definition is another one.
    Changed(String),
}

/// Why a source failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Another process holds the slot or a folder, for as long as it runs. The sentence names it.
    #[error("{0}")]
    Held(String),
    /// Trying again may help: a lost connection, a server that starts.
    #[error("{0}")]
    Transient(String),
    /// A person has to mend it; each entry is a sentence that says how.
    #[error("{}", .0.join("\n"))]
    Definite(Vec<String>),
}
