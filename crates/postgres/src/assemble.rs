//! From messages to transactions. Nothing here waits: bytes go in, events come out, and what is open when a connection
//! breaks is dropped.
//!
//! A transaction is told at its commit, whole, a spool for each table that it changed. Until then it is either the one
//! that is being sent right now, or one of those that PostgreSQL streams ahead of their commit in blocks.

mod relation;
mod transaction;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use hashbrown::HashMap;
use laredo_core::{CommitMark, CommitTime, Lsn, Oid, TableName, Xid};
use laredo_engine::source::{SourceCommit, SourceEvent};
use laredo_engine::spool::{RawChange, SpoolOptions};

use crate::ddl;
use crate::pgoutput::{DecodeError, Decoder, Message, Oids, Relation, Row};
use crate::stream::{Mismatch, Proof, SentCommits};
use relation::{Catalogue, Known};
pub use relation::{RelationIdentity, Route, Routes};
use transaction::Transaction;

/// Assembles the transactions of one stream, over all its connections.
#[derive(Debug)]
pub struct Assembler {
    decoder: Decoder,
    state: State,
}

/// A stream that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// A message that cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A message where it makes no sense.
    #[error("pgoutput sent {message} {place}")]
    Order {
        /// The message.
        message: &'static str,
        /// Where it came.
        place: &'static str,
    },
    /// A change to a table that was not announced.
    #[error("pgoutput sent a change to table {0}, which it has not announced")]
    Unannounced(Oid),
    /// A row that is not one of its table.
    #[error("pgoutput sent a row of {found} cells for {table}, which has {expected} columns")]
    Cells {
        /// The table.
        table: TableName,
        /// Cells of the row.
        found: usize,
        /// Columns of the table.
        expected: usize,
    },
    /// The database is not the one that was followed.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The changes could not be kept until their commit.
    #[error("could not keep a transaction until its commit: {0}")]
    Spool(#[from] io::Error),
}

#[derive(Debug)]
struct State {
    spool: Arc<SpoolOptions>,
    catalogue: Catalogue,
    current: Current,
    /// Transactions that have begun to stream, by their top-level id.
    streamed: HashMap<u32, Transaction>,
    recent: Xid,
    position: Lsn,
    told: Lsn,
    /// Which transactions have truncated tables.
    truncated: BTreeMap<Oid, u32>,
    /// The newest commits of the tables.
    sent: SentCommits,
    /// The commits that PostgreSQL has yet to send again.
    proof: Option<Proof>,
    /// The transaction that ended last, if it has changed a definition.
    ddl: Option<Xid>,
}

/// What the next change belongs to.
#[derive(Debug)]
enum Current {
    Nothing,
    /// Sent at its commit, in one piece.
    Whole(Transaction),
    /// Sent ahead of its commit; this block ends with a Stream Stop.
    Block(Transaction),
}

impl Assembler {
    /// For these tables, in the order of their [`laredo_engine::source::TableIndex`].
    #[must_use]
    pub fn new(tables: impl IntoIterator<Item = TableName>, spool: Arc<SpoolOptions>) -> Assembler {
        Assembler {
            decoder: Decoder::new(),
            state: State {
                spool,
                catalogue: Catalogue::new(tables),
                current: Current::Nothing,
                streamed: HashMap::new(),
                recent: Xid(0),
                position: Lsn::ZERO,
                told: Lsn::ZERO,
                truncated: BTreeMap::new(),
                sent: SentCommits::default(),
                proof: None,
                ddl: None,
            },
        }
    }

    /// A connection has begun to stream the commits that end after `from`; `recent` is an id that the server gave out
    /// lately.
    pub fn connected(&mut self, from: Lsn, recent: Xid) {
        self.decoder = Decoder::new();
        let state = &mut self.state;
        state.catalogue.disconnect();
        state.current = Current::Nothing;
        state.streamed.clear();
        state.recent = recent;
        state.position = from;
        // On an idle database nothing else would ever say that the stream is there.
        state.told = Lsn::ZERO;
        state.proof = None;
    }

    /// The connection begins earlier, so that PostgreSQL sends again what proves that it is the database that was followed.
    pub(crate) fn prove(&mut self, proof: Proof) {
        self.state.proof = Some(proof);
    }

    /// Returns true until the proof is complete: nothing may be acknowledged before.
    pub(crate) fn is_proving(&self) -> bool {
        self.state.proof.is_some()
    }

    /// Commits before this position are not known to the run.
    pub(crate) fn begin_at(&mut self, from: Lsn) {
        self.state.sent.begin(from);
    }

    /// The position that may be acknowledged, where `acknowledged` is on disk.
    pub(crate) fn hold(&self, acknowledged: Lsn) -> Lsn {
        self.state.sent.hold(acknowledged)
    }

    /// Everything up to a position is on disk.
    pub(crate) fn acknowledged(&mut self, position: Lsn) {
        self.state.sent.forget(position);
    }

    /// The newest commits that were sent.
    pub(crate) fn sent(&self) -> &SentCommits {
        &self.state.sent
    }

    /// Takes one message; what it completes is added to `events`.
    ///
    /// # Errors
    /// When it is not pgoutput, or a spool cannot be written. The connection is of no more use then.
    pub fn take(&mut self, message: &[u8], events: &mut VecDeque<SourceEvent>) -> Result<(), AssembleError> {
        let message = self.decoder.decode(message)?;
        self.state.take(message, events)
    }

    /// PostgreSQL says that it has read its WAL up to `wal_end` and sent what it had to send.
    ///
    /// # Errors
    /// When something did not come that the database has, if it is the one that was followed.
    pub fn keepalive(&mut self, wal_end: Lsn) -> Result<(), AssembleError> {
        // In the middle of a transaction that ends before `wal_end`, not all of it has arrived.
        if !matches!(self.state.current, Current::Whole(_)) {
            self.state.proven_up_to(wal_end)?;
            self.state.position = self.state.position.max(wal_end);
        }
        Ok(())
    }

    /// How far the stream has come, if that was not yet told: by a commit, or by this.
    pub fn progress(&mut self) -> Option<SourceEvent> {
        let State { position, told, .. } = &mut self.state;
        (*position > *told).then(|| {
            *told = *position;
            SourceEvent::Progress(*position)
        })
    }

    /// Every commit that ends here or before has been told or touched none of the tables: where a new connection goes
    /// on.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.state.position
    }

    /// Whether the next message belongs to a transaction, or block of one, whose end has not come.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        !matches!(self.state.current, Current::Nothing)
    }

    /// An id that the server gave out lately.
    pub fn set_recent(&mut self, recent: Xid) {
        self.state.recent = self.state.recent.max(recent);
    }

    /// Follows the tables by the numbers that they are copied under. Whatever is decoded from here on is theirs by that number.
    pub fn reroute(&mut self, routes: &Routes, events: &mut VecDeque<SourceEvent>) {
        self.state.reroute(routes, events);
    }

    /// The tables that committed transactions have truncated since the last call, and which (sub)transaction did it last.
    pub fn take_truncated(&mut self) -> BTreeMap<Oid, u32> {
        std::mem::take(&mut self.state.truncated)
    }

    /// The transaction that the last message has ended, if it has changed a definition. Its commit is the last event, if it has one.
    pub fn take_ddl(&mut self) -> Option<Xid> {
        self.state.ddl.take()
    }

    /// Whether one of the tables has been announced since the last call, as happens after its definition changed.
    pub fn take_announced(&mut self) -> bool {
        std::mem::take(&mut self.state.catalogue.announced)
    }
}

impl State {
    fn reroute(&mut self, routes: &Routes, events: &mut VecDeque<SourceEvent>) {
        let State { catalogue, current, streamed, .. } = self;
        let changed = catalogue.reroute(routes, events);
        let current = match current {
            Current::Whole(transaction) | Current::Block(transaction) => Some(transaction),
            Current::Nothing => None,
        };
        for transaction in current.into_iter().chain(streamed.values_mut()) {
            for (oid, known) in &mut transaction.relations {
                known.table = catalogue.table_of(*oid);
            }
            // Changes of another table; the copy waits for who wrote its own before.
            changed.iter().for_each(|table| _ = transaction.spools.remove(table));
        }
    }

    fn take(&mut self, message: Message<'_>, events: &mut VecDeque<SourceEvent>) -> Result<(), AssembleError> {
        match message {
            Message::Insert { xid, relation, new } => {
                let change = RawChange::Insert { new: new.cells };
                self.change(xid, relation, [None, Some(new)], change)
            }
            Message::Update { xid, relation, old, new } => {
                let change = RawChange::Update { old: old.map(|old| old.cells), new: new.cells };
                self.change(xid, relation, [old, Some(new)], change)
            }
            Message::Delete { xid, relation, old } => {
                let change = RawChange::Delete { old: old.cells };
                self.change(xid, relation, [Some(old), None], change)
            }
            Message::Truncate { xid, relations } => self.truncate(xid, relations),
            Message::Relation { relation, .. } => {
                self.relation(&relation, events);
                Ok(())
            }
            Message::Begin { xid, .. } => self.begin(xid),
            Message::Commit { commit, end, committed_at } => match self.leave() {
                Current::Whole(transaction) => self.commit(transaction, (commit, end), committed_at, events),
                _ => Err(order("Commit", "where no transaction is open")),
            },
            Message::StreamStart { xid, first } => self.stream_start(xid, first),
            Message::StreamStop => match self.leave() {
                Current::Block(transaction) => {
                    self.streamed.insert(transaction.xid, transaction);
                    Ok(())
                }
                _ => Err(order("Stream Stop", "where no streamed block is open")),
            },
            Message::StreamCommit { xid, commit, end, committed_at } => {
                self.stream_commit(xid, (commit, end), committed_at, events)
            }
            Message::StreamAbort { xid, subtransaction } => self.stream_abort(xid, subtransaction),
            Message::Message { prefix, transactional: true, .. } if prefix == ddl::PREFIX => {
                if let Current::Whole(transaction) | Current::Block(transaction) = &mut self.current {
                    transaction.has_ddl = true;
                }
                Ok(())
            }
            Message::Origin { .. } | Message::Type { .. } | Message::Message { .. } => Ok(()),
        }
    }

    fn change(
        &mut self,
        xid: Option<u32>,
        oid: Oid,
        rows: [Option<Row<'_>>; 2],
        change: RawChange<'_>,
    ) -> Result<(), AssembleError> {
        let transaction = match &mut self.current {
            Current::Whole(transaction) | Current::Block(transaction) => transaction,
            Current::Nothing => return Err(order("a change", "where no transaction is open")),
        };
        let known = transaction.relations.get(&oid).or_else(|| self.catalogue.get(oid));
        let Known { table, shape, .. } = known.ok_or(AssembleError::Unannounced(oid))?;
        let Some(table) = *table else {
            return Ok(());
        };
        let expected = shape.columns.len();
        if let Some(row) = rows.into_iter().flatten().find(|row| row.columns != expected) {
            return Err(AssembleError::Cells {
                table: self.catalogue.name(table).clone(),
                found: row.columns,
                expected,
            });
        }
        let spool = transaction.spools.entry(table);
        let spool = spool.or_insert_with(|| transaction::spool(&self.spool));
        spool.push_shape(shape);
        spool.push(xid.unwrap_or(transaction.xid), change)?;
        Ok(())
    }

    fn truncate(&mut self, xid: Option<u32>, relations: Oids<'_>) -> Result<(), AssembleError> {
        relations.iter().try_for_each(|oid| self.change(xid, oid, [None, None], RawChange::Truncate))?;
        if let Current::Whole(transaction) | Current::Block(transaction) = &mut self.current {
            let by = xid.unwrap_or(transaction.xid);
            transaction.truncated.extend(relations.iter().map(|oid| (oid, by)));
        }
        Ok(())
    }

    /// Inside a streamed block it holds for that transaction alone, until that commits.
    fn relation(&mut self, relation: &Relation<'_>, events: &mut VecDeque<SourceEvent>) {
        let known = self.catalogue.announce(relation);
        match &mut self.current {
            Current::Block(transaction) => {
                transaction.relations.insert(relation.oid, known);
            }
            Current::Whole(_) | Current::Nothing => self.catalogue.adopt(relation.oid, known, events),
        }
    }

    fn begin(&mut self, xid: u32) -> Result<(), AssembleError> {
        match self.leave() {
            Current::Nothing => self.current = Current::Whole(Transaction::new(xid)),
            Current::Whole(_) | Current::Block(_) => return Err(order("Begin", "inside a transaction")),
        }
        Ok(())
    }

    fn stream_start(&mut self, xid: u32, first: bool) -> Result<(), AssembleError> {
        if !matches!(self.current, Current::Nothing) {
            return Err(order("Stream Start", "inside a transaction"));
        }
        let transaction = match (self.streamed.remove(&xid), first) {
            (Some(transaction), false) => transaction,
            (None, true) => Transaction::new(xid),
            (Some(_), true) => return Err(order("the first block", "of a streamed transaction that is open")),
            (None, false) => return Err(order("a block", "of a streamed transaction that has not begun")),
        };
        self.current = Current::Block(transaction);
        Ok(())
    }

    fn stream_commit(
        &mut self,
        xid: u32,
        record: (Lsn, Lsn),
        committed_at: CommitTime,
        events: &mut VecDeque<SourceEvent>,
    ) -> Result<(), AssembleError> {
        if !matches!(self.current, Current::Nothing) {
            return Err(order("Stream Commit", "inside a transaction"));
        }
        let Some(mut transaction) = self.streamed.remove(&xid) else {
            return Err(order("Stream Commit", "of a streamed transaction that has not begun"));
        };
        // PostgreSQL does not announce again to others what a committed transaction was told.
        for (oid, known) in std::mem::take(&mut transaction.relations) {
            self.catalogue.adopt(oid, known, events);
        }
        self.commit(transaction, record, committed_at, events)
    }

    fn stream_abort(&mut self, xid: u32, subtransaction: u32) -> Result<(), AssembleError> {
        if !matches!(self.current, Current::Nothing) {
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
        mut transaction: Transaction,
        (begins, end): (Lsn, Lsn),
        committed_at: CommitTime,
        events: &mut VecDeque<SourceEvent>,
    ) -> Result<(), AssembleError> {
        self.truncated.append(&mut transaction.truncated);
        let xid = Xid::widen(transaction.xid, self.recent);
        self.recent = self.recent.max(xid);
        let has_ddl = transaction.has_ddl;
        let tables = transaction.finish()?;
        let mark = CommitMark { end, xid, committed_at };
        if let Some(proof) = &mut self.proof {
            proof.commit(mark, tables.iter().map(|(table, _)| *table))?;
            self.proven_up_to(end)?;
        }
        if !tables.is_empty() {
            self.sent.note(begins, mark);
        }
        // Told before the connection broke: PostgreSQL may send again what was not yet acknowledged.
        if end <= self.position {
            return Ok(());
        }
        self.ddl = has_ddl.then_some(xid);
        self.position = end;
        if !tables.is_empty() {
            self.told = end;
            events.push_back(SourceEvent::Commit(SourceCommit { xid, end, committed_at, tables }));
        }
        Ok(())
    }

    /// Everything up to a position has come.
    fn proven_up_to(&mut self, position: Lsn) -> Result<(), AssembleError> {
        if let Some(proof) = &mut self.proof
            && proof.reached(position)?
        {
            self.proof = None;
        }
        Ok(())
    }

    fn leave(&mut self) -> Current {
        std::mem::replace(&mut self.current, Current::Nothing)
    }
}

fn order(message: &'static str, place: &'static str) -> AssembleError {
    AssembleError::Order { message, place }
}

#[cfg(test)]
mod tests;
