//! The values that the stream and the source's other connections share.

use std::collections::BTreeMap;

use laredo_core::{CommitMark, CommitTime, Lsn, Oid, TableName, Xid};
use laredo_engine::retention::{ReplicationSlotState, WalRetention};
use laredo_engine::source::{DefinitionReads, SourceClock, TableIndex};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::assemble::{StreamedTables, TableRoute, TableRoutes};
use crate::relation_identity::RelationIdentity;

/// The distance, in bytes, by which an abandoned history may have gone beyond anything seen here.
/// Other servers may have reported such positions.
const ABANDONED_SLACK: u64 = 16 << 20;

/// The values that the stream and the source's other connections share.
#[derive(Debug, Default)]
pub struct SourceSignals {
    /// The number of slots so far. It starts with the first slot that was found or created, and
    /// grows when the slot is created again or was moved elsewhere. From one on, commits are kept
    /// for the stream.
    slots: watch::Sender<u64>,
    /// True if a slot of the database's current history exists. No copy may begin before.
    has_slot: watch::Sender<bool>,
    /// A recent transaction ID of the server.
    recent: watch::Sender<Xid>,
    /// The tables that the stream follows.
    tables: watch::Sender<StreamedTables>,
    /// The relations that rows are or were copied from, by their OIDs.
    routes: watch::Sender<TableRoutes>,
    /// Notifies that a table was announced: its definition may have changed.
    announced: Notify,
    /// The times at which each table's definition was checked.
    definition_reads: watch::Sender<DefinitionReads>,
    /// The check that the stream waits for.
    check_wanted: watch::Sender<DefinitionCheckRequest>,
    /// The number of the last check that the stream waited for and that is done.
    check_done: watch::Sender<u64>,
    /// The last transaction that truncated each table, according to the stream.
    truncated: watch::Sender<BTreeMap<Oid, u32>>,
    /// The position that the stream has reached.
    reached: watch::Sender<Lsn>,
    /// The WAL that the slot keeps for the stream.
    retention: watch::Sender<WalRetention>,
    /// The number of requests to drop the slot and create it again.
    resets: watch::Sender<u64>,
    /// The number of checks that did not find the publication.
    publication_losses: watch::Sender<u64>,
    /// The number of forks of the database's history.
    forks: watch::Sender<u64>,
    restarts: watch::Sender<ServerRestarts>,
    /// The highest end of the database's WAL that was seen.
    written: watch::Sender<Lsn>,
    wal_end: watch::Sender<Option<WalEndReading>>,
    clock: SourceClock,
}

/// A check of the definitions that the stream waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct DefinitionCheckRequest {
    number: u64,
    /// The transaction that has to be visible. `None` if the request was withdrawn.
    after: Option<Xid>,
}

/// The restarts of PostgreSQL that the stream has noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerRestarts {
    /// The number of restarts.
    pub(crate) count: u64,
    /// The newest commit before the last restart. Commits up to it are proven.
    pub(crate) proven: CommitMark,
}

/// The end of the WAL at the last read of the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WalEndReading {
    /// The end of the WAL.
    pub(crate) end: Lsn,
    /// The time of the read, on the database's clock. Every earlier commit ends before `end`.
    pub(crate) at: CommitTime,
}

/// The slot.
impl SourceSignals {
    /// Waits until a slot exists that keeps commits, and returns its number. No copy may begin
    /// before.
    pub async fn wait_for_slot(&self) -> u64 {
        // The sender lives as long as `self`.
        let _ = self.has_slot.subscribe().wait_for(|has_slot| *has_slot).await;
        *self.slots.borrow()
    }

    /// Records that a slot keeps commits for the stream. If `is_new`, earlier commits may not have
    /// been kept.
    pub(crate) fn record_slot(&self, is_new: bool) {
        if is_new {
            self.slots.send_modify(|slots| *slots += 1);
        }
        self.has_slot.send_replace(true);
    }

    /// Returns the name of the slot; empty before the first connection.
    pub(crate) fn slot_name(&self) -> String {
        self.retention.borrow().slot.clone()
    }

    /// Records the name of the slot.
    pub(crate) fn set_slot_name(&self, name: &str) {
        self.retention.send_modify(|known| name.clone_into(&mut known.slot));
    }

    /// Records the state of the slot with this name. `None` if the state is unknown. A state of
    /// another slot than the current one is ignored.
    pub(crate) fn record_slot_state(&self, name: &str, state: Option<ReplicationSlotState>) {
        self.retention.send_modify(|known| known.standing = state.filter(|_| known.slot == name));
    }

    /// Logs an error, and counts that a slot could not be continued.
    pub(crate) fn record_loss(&self, reason: &str) {
        tracing::error!(event = "slot_lost", %reason, "every table has to be copied again");
        self.retention.send_modify(|known| {
            known.losses += 1;
            known.last_loss = Some(reason.to_owned());
        });
    }

    /// Returns the WAL that the slot keeps for the stream.
    pub(crate) fn retention(&self) -> watch::Receiver<WalRetention> {
        self.retention.subscribe()
    }

    /// Requests that the stream drops the slot and creates it again.
    pub(crate) fn request_reset(&self) {
        self.resets.send_modify(|resets| *resets += 1);
    }

    /// Returns a receiver that changes with each request for a reset. A request that was made
    /// before counts as a change.
    pub(crate) fn resets(&self) -> watch::Receiver<u64> {
        let mut resets = self.resets.subscribe();
        if *resets.borrow() > 0 {
            resets.mark_changed();
        }
        resets
    }
}

/// The publication.
impl SourceSignals {
    /// Records that a check did not find the publication.
    pub(crate) fn record_publication_loss(&self) {
        self.publication_losses.send_modify(|losses| *losses += 1);
    }

    /// Waits until a later check does not find the publication.
    pub(crate) async fn wait_for_publication_loss(&self) {
        // The sender lives as long as `self`.
        let _ = self.publication_losses.subscribe().changed().await;
    }
}

/// The followed tables.
impl SourceSignals {
    /// Begins a stream of these tables, in the order of their [`TableIndex`].
    pub(crate) fn begin_tables<'a>(&self, names: impl IntoIterator<Item = &'a TableName>) {
        self.tables.send_replace(StreamedTables::from_the_beginning(names.into_iter().cloned()));
    }

    /// Makes the stream follow another table, and returns its index. A copy of the table has to
    /// begin later.
    pub(crate) fn add_table(&self, name: TableName) -> TableIndex {
        let mut index = TableIndex(0);
        self.tables.send_modify(|tables| index = tables.add(name));
        // The definition is checked soon.
        self.announce_change();
        index
    }

    /// Makes the stream leave out a table.
    pub(crate) fn remove_table(&self, table: TableIndex) {
        self.tables.send_modify(|tables| tables.remove(table));
        self.routes.send_modify(|routes| _ = routes.remove(&table));
        self.definition_reads.send_modify(|reads| {
            reads.seen.remove(&table);
            reads.errors.remove(&table);
        });
    }

    /// Records a copy that sees every commit before the stream's first one of the table. `inserted`
    /// is a position after everything that the copy has seen.
    pub(crate) fn complete_table(&self, table: TableIndex, inserted: Lsn) {
        self.tables.send_modify(|tables| tables.complete(table, inserted));
    }

    /// Returns the tables that the stream follows.
    pub(crate) fn tables(&self) -> watch::Receiver<StreamedTables> {
        self.tables.subscribe()
    }
}

/// Positions and transactions.
impl SourceSignals {
    /// Returns a recent transaction ID of the server.
    pub(crate) fn recent(&self) -> Xid {
        *self.recent.borrow()
    }

    /// Records a recent transaction ID of the server.
    pub(crate) fn set_recent(&self, recent: Xid) {
        self.recent.send_replace(recent);
    }

    /// Records the position that the stream has reached, and the truncates before it.
    pub(crate) fn record_progress(&self, mut truncated: BTreeMap<Oid, u32>, position: Lsn) {
        if !truncated.is_empty() {
            self.truncated.send_modify(|known| known.append(&mut truncated));
        }
        // Updated after `truncated`, so that a reader of this position sees every truncate before
        // it.
        self.reached.send_replace(position);
    }

    /// Returns the position that the stream has reached.
    pub(crate) fn reached(&self) -> Lsn {
        *self.reached.borrow()
    }

    /// Waits until the stream has reached a position.
    pub(crate) async fn wait_for_position(&self, position: Lsn) {
        // The sender lives as long as `self`.
        let _ = self.reached.subscribe().wait_for(|reached| *reached >= position).await;
    }

    /// Returns the last transaction that truncated a table, according to the stream. Complete up to
    /// a position that [`SourceSignals::reached`] has returned before.
    pub(crate) fn last_truncate(&self, table: Oid) -> Option<u32> {
        self.truncated.borrow().get(&table).copied()
    }

    /// Records the end of the database's WAL.
    pub(crate) fn record_wal_end(&self, reading: WalEndReading) {
        self.written.send_modify(|written| *written = reading.end.max(*written));
        self.wal_end.send_replace(Some(reading));
    }

    /// Returns the end of the WAL at the last read of the slot.
    pub(crate) fn wal_end(&self) -> watch::Receiver<Option<WalEndReading>> {
        self.wal_end.subscribe()
    }

    /// Returns the database's clock.
    pub(crate) fn clock(&self) -> &SourceClock {
        &self.clock
    }
}

/// Definitions.
impl SourceSignals {
    /// Returns the relations that the tables are followed by.
    pub(crate) fn routes(&self) -> watch::Receiver<TableRoutes> {
        self.routes.subscribe()
    }

    /// Makes the stream follow a table by this identity. Returns true if the table's OID was
    /// another one, or another table was followed by this OID.
    pub(crate) fn route(&self, table: TableIndex, identity: RelationIdentity) -> bool {
        let mut is_other = false;
        if self.tables.borrow().was_removed(table) {
            // A copy of it is still ending.
            return is_other;
        }
        self.routes.send_modify(|routes| {
            let before = routes.get(&table);
            is_other = before.is_none_or(|before| before.identity.oid != identity.oid);
            let copies = before.map_or(0, |before| before.copies) + 1;
            routes.retain(|of, route| *of == table || route.identity.oid != identity.oid);
            routes.insert(table, TableRoute { copies, identity });
        });
        is_other
    }

    /// Notifies the watch that a definition may have changed.
    pub(crate) fn announce_change(&self) {
        self.announced.notify_one();
    }

    /// Waits until a definition may have changed.
    pub(crate) async fn wait_for_change(&self) {
        self.announced.notified().await;
    }

    /// Requests a check of the definitions once a transaction is visible. Returns the check's
    /// number.
    pub(crate) fn request_check(&self, after: Xid) -> u64 {
        self.check_wanted
            .send_modify(|wanted| *wanted = DefinitionCheckRequest { number: wanted.number + 1, after: Some(after) });
        self.check_wanted.borrow().number
    }

    /// Withdraws a requested check. Its transaction may belong to another history, and then never
    /// becomes visible in this one.
    pub(crate) fn withdraw_check(&self) {
        self.check_wanted.send_modify(|wanted| wanted.after = None);
        self.check_done.send_replace(self.check_wanted.borrow().number);
    }

    /// Returns the number of the requested check, and the transaction that has to be visible.
    pub(crate) fn requested_check(&self) -> Option<(u64, Xid)> {
        let DefinitionCheckRequest { number, after } = *self.check_wanted.borrow();
        let after = after.filter(|_| number > *self.check_done.borrow())?;
        Some((number, after))
    }

    /// Records that the check with this number is done.
    pub(crate) fn complete_check(&self, number: u64) {
        self.check_done.send_replace(number);
    }

    /// Waits until the check with this number is done.
    pub(crate) async fn wait_for_check(&self, number: u64) {
        // The sender lives as long as `self`.
        let _ = self.check_done.subscribe().wait_for(|done| *done >= number).await;
    }

    /// Waits until a check is requested.
    pub(crate) async fn wait_for_check_request(&self) {
        let done = *self.check_done.borrow();
        // The sender lives as long as `self`.
        let _ = self.check_wanted.subscribe().wait_for(|wanted| wanted.number > done).await;
    }

    /// Returns the times at which each table's definition was checked.
    pub(crate) fn definition_reads(&self) -> watch::Receiver<DefinitionReads> {
        self.definition_reads.subscribe()
    }

    /// Records a check of a table's definition that began at this time.
    pub(crate) fn record_definition_read(&self, table: TableIndex, began: Instant) {
        self.definition_reads.send_modify(|reads| _ = reads.seen.insert(table, began));
    }

    /// Records the errors of the last checks.
    pub(crate) fn record_definition_errors(&self, errors: BTreeMap<TableIndex, String>) {
        self.definition_reads.send_if_modified(|reads| {
            let is_other = reads.errors != errors;
            reads.errors = errors;
            is_other
        });
    }

    /// Records whether the event trigger is installed.
    pub(crate) fn record_trigger(&self, is_installed: bool) {
        self.definition_reads.send_modify(|reads| reads.is_triggered = is_installed);
    }
}

/// Runs, restarts and forks.
impl SourceSignals {
    /// Forgets what belongs to the last run. A new run begins, perhaps of another database.
    pub(crate) fn begin_run(&self) {
        self.resets.send_replace(0);
        self.forget_database();
        self.definition_reads.send_replace(DefinitionReads::default());
    }

    /// Records a restart of PostgreSQL. Commits up to `proven` are proven.
    pub(crate) fn record_restart(&self, proven: CommitMark) {
        self.restarts.send_modify(|restarts| *restarts = ServerRestarts { count: restarts.count + 1, proven });
    }

    /// Returns the restarts of PostgreSQL.
    pub(crate) fn restarts(&self) -> ServerRestarts {
        *self.restarts.borrow()
    }

    /// Returns a receiver that changes with each fork of the database's history.
    pub(crate) fn forks(&self) -> watch::Receiver<u64> {
        self.forks.subscribe()
    }

    /// Returns the position beyond which no position of an abandoned history is expected, given the
    /// highest position that was reported.
    pub(crate) fn abandoned(&self, reported: Lsn) -> Lsn {
        Lsn(reported.max(*self.written.borrow()).0.saturating_add(ABANDONED_SLACK))
    }

    /// Forgets what was learned about the database, which has another history now.
    pub(crate) fn record_fork(&self, reason: &str) {
        self.forget_database();
        self.forks.send_modify(|forks| *forks += 1);
        self.written.send_replace(Lsn::ZERO);
        self.retention.send_modify(|known| {
            known.forks += 1;
            known.last_fork = Some(reason.to_owned());
        });
    }

    fn forget_database(&self) {
        self.has_slot.send_replace(false);
        self.withdraw_check();
        self.recent.send_replace(Xid(0));
        self.reached.send_replace(Lsn::ZERO);
        self.routes.send_modify(BTreeMap::clear);
        self.truncated.send_modify(BTreeMap::clear);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn is_ready(future: impl Future<Output = ()>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// A check for a transaction of an abandoned history would block the watch until the new
    /// history has a transaction with that ID.
    #[test]
    fn a_check_that_is_withdrawn_is_not_waited_for() {
        let signals = SourceSignals::default();
        let number = signals.request_check(Xid(7));
        assert!(is_ready(signals.wait_for_check_request()) && !is_ready(signals.wait_for_check(number)));
        signals.withdraw_check();
        assert!(!is_ready(signals.wait_for_check_request()) && is_ready(signals.wait_for_check(number)));
        let next = signals.request_check(Xid(3));
        assert!(next > number && is_ready(signals.wait_for_check_request()));
        assert!(!is_ready(signals.wait_for_check(next)));
    }
}
