//! Assembles messages into transactions. Nothing here waits: bytes go in and events come out.
//! Transactions that are open when a connection breaks are dropped.
//!
//! A transaction is reported whole at its commit, with a spool for each table that it changed.
//! Until then it is either the one being sent now, or one that PostgreSQL streams in blocks ahead
//! of its commit.

mod relation;
mod transaction;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use hashbrown::HashMap;
use laredo_core::{CommitMark, Lsn, Oid, TableName, Xid};
use laredo_engine::source::{SourceCommit, SourceEvent};
use laredo_engine::spool::{RawChange, SpoolOptions};

use crate::ddl;
use crate::history_proof::{HistoryMismatch, HistoryProof, SentCommits};
use crate::pgoutput::{
    CommitRecord, PgoutputDecodeError, PgoutputDecoder, PgoutputMessage, PgoutputRow, Relation, RelationOids,
};
use relation::RelationCatalog;
pub use relation::{StreamedTables, TableRoute, TableRoutes};
use transaction::UncommittedTransaction;

/// The assembler of the transactions of one stream, over all its connections.
#[derive(Debug)]
pub struct PgoutputAssembler {
    decoder: PgoutputDecoder,
    state: AssemblyState,
}

/// An error that prevents the stream from being followed.
#[derive(Debug, thiserror::Error)]
pub enum PgoutputAssemblyError {
    /// A message that cannot be decoded.
    #[error(transparent)]
    Decode(#[from] PgoutputDecodeError),
    /// A message that the protocol does not allow at this point.
    #[error("pgoutput sent {message} {place}")]
    Order {
        /// The message.
        message: &'static str,
        /// The place in the stream where it arrived.
        place: &'static str,
    },
    /// A change to a table that was not announced.
    #[error("pgoutput sent a change to table {0}, which it has not announced")]
    Unannounced(Oid),
    /// A row whose number of cells differs from the table's number of columns.
    #[error("pgoutput sent a row of {found} cells for {table}, which has {expected} columns")]
    Cells {
        /// The table.
        table: TableName,
        /// The number of cells in the row.
        found: usize,
        /// The number of columns of the table.
        expected: usize,
    },
    /// The database is not the one that was followed before.
    #[error(transparent)]
    Mismatch(#[from] HistoryMismatch),
    /// The changes could not be stored until their commit.
    #[error("cannot store a transaction until its commit: {0}")]
    Spool(#[from] io::Error),
}

#[derive(Debug)]
struct AssemblyState {
    spool: Arc<SpoolOptions>,
    catalog: RelationCatalog,
    current: CurrentTransaction,
    /// The open streamed transactions, by their top-level transaction ID.
    streamed: HashMap<u32, UncommittedTransaction>,
    recent: Xid,
    position: Lsn,
    reported: Lsn,
    /// The tables truncated by committed transactions, each with the last (sub)transaction that did
    /// so.
    truncated: BTreeMap<Oid, u32>,
    /// The newest commits that changed the tables.
    sent: SentCommits,
    /// The commits that PostgreSQL has yet to send again.
    proof: Option<HistoryProof>,
    /// The transaction that ended last, if it has changed a definition.
    ddl: Option<Xid>,
}

/// The transaction that the next change belongs to.
#[derive(Debug)]
enum CurrentTransaction {
    Nothing,
    /// A transaction that is sent whole, at its commit.
    Whole(UncommittedTransaction),
    /// A transaction that is sent ahead of its commit. The current block ends with a Stream Stop.
    Block(UncommittedTransaction),
}

impl CurrentTransaction {
    fn transaction_mut(&mut self) -> Option<&mut UncommittedTransaction> {
        match self {
            CurrentTransaction::Whole(transaction) | CurrentTransaction::Block(transaction) => Some(transaction),
            CurrentTransaction::Nothing => None,
        }
    }
}

impl PgoutputAssembler {
    /// Creates an assembler for these tables, in the order of their
    /// [`laredo_engine::source::TableIndex`].
    #[must_use]
    pub fn new(tables: impl IntoIterator<Item = TableName>, spool: Arc<SpoolOptions>) -> PgoutputAssembler {
        PgoutputAssembler {
            decoder: PgoutputDecoder::new(),
            state: AssemblyState {
                spool,
                catalog: RelationCatalog::new(tables),
                current: CurrentTransaction::Nothing,
                streamed: HashMap::new(),
                recent: Xid(0),
                position: Lsn::ZERO,
                reported: Lsn::ZERO,
                truncated: BTreeMap::new(),
                sent: SentCommits::default(),
                proof: None,
                ddl: None,
            },
        }
    }

    /// Begins a connection that streams the commits that end after `from`. `recent` is a recent
    /// transaction ID of the server.
    pub fn connected(&mut self, from: Lsn, recent: Xid) {
        self.decoder = PgoutputDecoder::new();
        let state = &mut self.state;
        state.catalog.disconnect();
        state.current = CurrentTransaction::Nothing;
        state.streamed.clear();
        state.recent = recent;
        state.position = from;
        // On an idle database nothing else would report that the stream is connected.
        state.reported = Lsn::ZERO;
        state.proof = None;
    }

    /// Begins a proof. The connection starts at an earlier position, so that PostgreSQL sends again
    /// the commits that prove it is the database that was followed.
    pub(crate) fn prove(&mut self, proof: HistoryProof) {
        self.state.proof = Some(proof);
    }

    /// Returns true until the proof is complete. Nothing may be acknowledged before.
    pub(crate) fn is_proving(&self) -> bool {
        self.state.proof.is_some()
    }

    /// Records that commits before this position are unknown to this run.
    pub(crate) fn begin_at(&mut self, from: Lsn) {
        self.state.sent.begin(from);
    }

    /// Returns the position that may be acknowledged to PostgreSQL when `acknowledged` is on disk.
    pub(crate) fn hold(&self, acknowledged: Lsn) -> Lsn {
        self.state.sent.hold(acknowledged)
    }

    /// Records that everything up to a position is on disk.
    pub(crate) fn acknowledged(&mut self, position: Lsn) {
        self.state.sent.forget(position);
    }

    /// Returns the newest commits that were sent.
    pub(crate) fn sent(&self) -> &SentCommits {
        &self.state.sent
    }

    /// Takes one message and appends the events that it completes to `events`.
    ///
    /// # Errors
    /// Fails if the message is not valid pgoutput or a spool cannot be written. The connection is
    /// unusable afterwards.
    pub fn take_message(
        &mut self,
        message: &[u8],
        events: &mut VecDeque<SourceEvent>,
    ) -> Result<(), PgoutputAssemblyError> {
        let message = self.decoder.decode(message)?;
        self.state.apply_message(message, events)
    }

    /// Records that PostgreSQL has read its WAL up to `wal_end` and sent everything before it.
    ///
    /// # Errors
    /// Fails if a commit that the followed database contains did not arrive.
    pub fn keepalive(&mut self, wal_end: Lsn) -> Result<(), PgoutputAssemblyError> {
        // A transaction that ends before `wal_end` may be arriving, so its commit is still to come.
        if !matches!(self.state.current, CurrentTransaction::Whole(_)) {
            self.state.proven_up_to(wal_end)?;
            self.state.position = self.state.position.max(wal_end);
        }
        Ok(())
    }

    /// Returns the position that the stream has reached, unless a commit or an earlier call has
    /// reported it.
    pub fn progress(&mut self) -> Option<SourceEvent> {
        let AssemblyState { position, reported, .. } = &mut self.state;
        (*position > *reported).then(|| {
            *reported = *position;
            SourceEvent::Progress(*position)
        })
    }

    /// Returns the position where a new connection resumes. Every commit that ends at or before it
    /// was reported or changed none of the tables.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.state.position
    }

    /// Returns true if the end of the current transaction, or of its current block, has not
    /// arrived.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        !matches!(self.state.current, CurrentTransaction::Nothing)
    }

    /// Records a recent transaction ID of the server.
    pub fn set_recent(&mut self, recent: Xid) {
        self.state.recent = self.state.recent.max(recent);
    }

    /// Follows exactly these tables from here on, each under its index.
    pub(crate) fn follow(&mut self, tables: &StreamedTables) {
        let AssemblyState { catalog, current, streamed, .. } = &mut self.state;
        let removed = catalog.follow(tables);
        for transaction in current.transaction_mut().into_iter().chain(streamed.values_mut()) {
            transaction.reroute(catalog, &removed);
        }
    }

    /// Follows the tables by the OIDs that they are copied under. Changes decoded from here on are
    /// assigned by these OIDs.
    pub fn reroute(&mut self, routes: &TableRoutes, events: &mut VecDeque<SourceEvent>) {
        self.state.reroute(routes, events);
    }

    /// Returns the tables that committed transactions have truncated since the last call, each with
    /// the last (sub)transaction that did so.
    pub fn take_truncated(&mut self) -> BTreeMap<Oid, u32> {
        std::mem::take(&mut self.state.truncated)
    }

    /// Returns the transaction that the last message ended, if it has changed a definition. If its
    /// commit is an event, that is the last event.
    pub fn take_ddl(&mut self) -> Option<Xid> {
        self.state.ddl.take()
    }

    /// Returns true if a relation with a table's name was announced since the last call. PostgreSQL
    /// announces a table again after its definition has changed.
    pub fn take_announced(&mut self) -> bool {
        self.state.catalog.take_announced()
    }
}

impl AssemblyState {
    fn reroute(&mut self, routes: &TableRoutes, events: &mut VecDeque<SourceEvent>) {
        let AssemblyState { catalog, current, streamed, .. } = self;
        let changed = catalog.reroute(routes, events);
        for transaction in current.transaction_mut().into_iter().chain(streamed.values_mut()) {
            transaction.reroute(catalog, &changed);
        }
    }

    fn apply_message(
        &mut self,
        message: PgoutputMessage<'_>,
        events: &mut VecDeque<SourceEvent>,
    ) -> Result<(), PgoutputAssemblyError> {
        match message {
            PgoutputMessage::Insert { xid, relation, new } => {
                let change = RawChange::Insert { new: new.cells };
                self.change(xid, relation, [None, Some(new)], change)
            }
            PgoutputMessage::Update { xid, relation, old, new } => {
                let change = RawChange::Update { old: old.map(|old| old.cells), new: new.cells };
                self.change(xid, relation, [old, Some(new)], change)
            }
            PgoutputMessage::Delete { xid, relation, old } => {
                let change = RawChange::Delete { old: old.cells };
                self.change(xid, relation, [Some(old), None], change)
            }
            PgoutputMessage::Truncate { xid, relations } => self.truncate(xid, relations),
            PgoutputMessage::Relation { relation, .. } => {
                self.relation(&relation, events);
                Ok(())
            }
            PgoutputMessage::Begin { xid, .. } => self.begin(xid),
            PgoutputMessage::Commit(record) => match self.take_current() {
                CurrentTransaction::Whole(transaction) => self.commit(transaction, record, events),
                CurrentTransaction::Nothing | CurrentTransaction::Block(_) => {
                    Err(order("Commit", "where no transaction is open"))
                }
            },
            PgoutputMessage::StreamStart { xid, first } => self.stream_start(xid, first),
            PgoutputMessage::StreamStop => match self.take_current() {
                CurrentTransaction::Block(transaction) => {
                    self.streamed.insert(transaction.xid(), transaction);
                    Ok(())
                }
                CurrentTransaction::Nothing | CurrentTransaction::Whole(_) => {
                    Err(order("Stream Stop", "where no streamed block is open"))
                }
            },
            PgoutputMessage::StreamCommit { xid, record } => self.stream_commit(xid, record, events),
            PgoutputMessage::StreamAbort { xid, subtransaction } => self.stream_abort(xid, subtransaction),
            PgoutputMessage::Message { prefix, transactional: true, .. } if prefix == ddl::PREFIX => {
                if let Some(transaction) = self.current.transaction_mut() {
                    transaction.record_ddl();
                }
                Ok(())
            }
            PgoutputMessage::Origin { .. } | PgoutputMessage::Type { .. } | PgoutputMessage::Message { .. } => Ok(()),
        }
    }

    fn change(
        &mut self,
        xid: Option<u32>,
        oid: Oid,
        rows: [Option<PgoutputRow<'_>>; 2],
        change: RawChange<'_>,
    ) -> Result<(), PgoutputAssemblyError> {
        match self.current.transaction_mut() {
            Some(transaction) => transaction.push(&self.catalog, xid, oid, rows, change),
            None => Err(order("a change", "where no transaction is open")),
        }
    }

    fn truncate(&mut self, xid: Option<u32>, relations: RelationOids<'_>) -> Result<(), PgoutputAssemblyError> {
        relations.iter().try_for_each(|oid| self.change(xid, oid, [None, None], RawChange::Truncate))?;
        if let Some(transaction) = self.current.transaction_mut() {
            transaction.record_truncates(xid, relations.iter());
        }
        Ok(())
    }

    /// Inside a streamed block, an announcement applies to that transaction alone until it commits.
    fn relation(&mut self, relation: &Relation<'_>, events: &mut VecDeque<SourceEvent>) {
        let known = self.catalog.announce(relation);
        match &mut self.current {
            CurrentTransaction::Block(transaction) => {
                transaction.announce(relation.oid, known);
            }
            CurrentTransaction::Whole(_) | CurrentTransaction::Nothing => {
                self.catalog.adopt(relation.oid, known, events)
            }
        }
    }

    fn begin(&mut self, xid: u32) -> Result<(), PgoutputAssemblyError> {
        match self.take_current() {
            CurrentTransaction::Nothing => {
                let transaction = UncommittedTransaction::new(xid, Arc::clone(&self.spool));
                self.current = CurrentTransaction::Whole(transaction);
            }
            CurrentTransaction::Whole(_) | CurrentTransaction::Block(_) => {
                return Err(order("Begin", "inside a transaction"));
            }
        }
        Ok(())
    }

    fn stream_start(&mut self, xid: u32, first: bool) -> Result<(), PgoutputAssemblyError> {
        if !matches!(self.current, CurrentTransaction::Nothing) {
            return Err(order("Stream Start", "inside a transaction"));
        }
        let transaction = match (self.streamed.remove(&xid), first) {
            (Some(transaction), false) => transaction,
            (None, true) => UncommittedTransaction::new(xid, Arc::clone(&self.spool)),
            (Some(_), true) => return Err(order("the first block", "of a streamed transaction that is open")),
            (None, false) => return Err(order("a block", "of a streamed transaction that has not begun")),
        };
        self.current = CurrentTransaction::Block(transaction);
        Ok(())
    }

    fn stream_commit(
        &mut self,
        xid: u32,
        record: CommitRecord,
        events: &mut VecDeque<SourceEvent>,
    ) -> Result<(), PgoutputAssemblyError> {
        if !matches!(self.current, CurrentTransaction::Nothing) {
            return Err(order("Stream Commit", "inside a transaction"));
        }
        let Some(mut transaction) = self.streamed.remove(&xid) else {
            return Err(order("Stream Commit", "of a streamed transaction that has not begun"));
        };
        // PostgreSQL does not announce these relations to other transactions again.
        for (oid, known) in transaction.take_announced() {
            self.catalog.adopt(oid, known, events);
        }
        self.commit(transaction, record, events)
    }

    fn stream_abort(&mut self, xid: u32, subtransaction: u32) -> Result<(), PgoutputAssemblyError> {
        if !matches!(self.current, CurrentTransaction::Nothing) {
            return Err(order("Stream Abort", "inside a transaction"));
        }
        if xid == subtransaction {
            self.streamed.remove(&xid);
        } else if let Some(transaction) = self.streamed.get_mut(&xid) {
            transaction.abort(subtransaction);
        }
        Ok(())
    }

    fn commit(
        &mut self,
        mut transaction: UncommittedTransaction,
        CommitRecord { begins, end, committed_at }: CommitRecord,
        events: &mut VecDeque<SourceEvent>,
    ) -> Result<(), PgoutputAssemblyError> {
        self.truncated.append(&mut transaction.take_truncated());
        let xid = Xid::widen(transaction.xid(), self.recent);
        self.recent = self.recent.max(xid);
        let has_ddl = transaction.has_ddl();
        let tables = transaction.finish()?;
        let mark = CommitMark { end, xid, committed_at };
        if let Some(proof) = &mut self.proof {
            proof.commit(mark, tables.iter().map(|(table, _)| *table))?;
            self.proven_up_to(end)?;
        }
        if !tables.is_empty() {
            self.sent.note(begins, mark);
        }
        // Reported before the connection broke: PostgreSQL sends commits again that were not
        // acknowledged.
        if end <= self.position {
            return Ok(());
        }
        self.ddl = has_ddl.then_some(xid);
        self.position = end;
        if !tables.is_empty() {
            self.reported = end;
            events.push_back(SourceEvent::Commit(SourceCommit { xid, end, committed_at, tables }));
        }
        Ok(())
    }

    /// Checks the proof when everything up to a position has arrived.
    fn proven_up_to(&mut self, position: Lsn) -> Result<(), PgoutputAssemblyError> {
        if let Some(proof) = &mut self.proof
            && proof.reached(position)?
        {
            self.proof = None;
        }
        Ok(())
    }

    fn take_current(&mut self) -> CurrentTransaction {
        std::mem::replace(&mut self.current, CurrentTransaction::Nothing)
    }
}

fn order(message: &'static str, place: &'static str) -> PgoutputAssemblyError {
    PgoutputAssemblyError::Order { message, place }
}

#[cfg(test)]
mod tests;
