//! The replica's thread: it takes messages in order, applies them, and shows the result. It is a
//! separate thread because applying is work, not waiting. Readers that hold a view may also make it
//! wait. Neither belongs on a thread of the async runtime.

use std::panic::Location;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use laredo_core::{Checksum, CommitTime, IndexSpec, Lsn, ScopedMark, Transaction};
use tokio::sync::mpsc;

use crate::changes::{ChangeHub, CommittedTransaction, RowChange, difference};
use crate::health::SessionHealth;
use crate::local_snapshot::{LocalSnapshotRows, ResumableTable};
use crate::local_snapshot_saver::LocalSnapshotSaver;
#[cfg(feature = "metrics")]
use crate::metric_reporter::ClientSample;
use crate::publish::{ReplicaFront, ReplicaTable, ReplicaWriteError, ReplicaWriter};
use crate::status::ReplicaStatus;
use crate::sync_receiver::{ReceiverEvent, ResumeState, SessionFeedback, SessionInput, SyncReceiver};
use crate::view::View;

/// The number of messages that are applied before their result is shown, while more messages wait.
const MESSAGES_PER_STATE: usize = 16;

/// The value of [`ReplicaState::at_head`] of a replica that never had all that the database had.
const NEVER: i64 = i64::MIN;

/// The state that all parts of a replica share.
pub(crate) struct ReplicaState {
    front: Arc<ReplicaFront>,
    hub: Arc<ChangeHub>,
    health: Arc<SessionHealth>,
    started: Instant,
    /// The time at which the replica was last known to have all that the database had, as
    /// nanoseconds since `started`. It is negative for a time before. The minimum means never.
    at_head: AtomicI64,
    /// The same time for a local snapshot that was loaded and is shown.
    restored_at: OnceLock<Instant>,
}

pub(crate) struct ReplicaApplier {
    shared: Arc<ReplicaState>,
    inputs: mpsc::UnboundedReceiver<SessionInput>,
    receiver: SyncReceiver,
    writer: ReplicaWriter,
    /// The time at which everything applied was all that the database had. `None` if nothing newer
    /// is known.
    fresh_at: Option<Instant>,
    /// Transactions that are applied and not shown. They have their changes if there were followers
    /// when the first was applied.
    outbox: Vec<CommittedTransaction>,
    is_collecting: bool,
    saver: Option<LocalSnapshotSaver>,
    /// The local snapshot, which is not shown until a server has continued from it.
    restored: Option<Box<ReplicaTable>>,
}

impl ReplicaState {
    pub(crate) fn new(front: Arc<ReplicaFront>, hub: Arc<ChangeHub>, health: Arc<SessionHealth>) -> ReplicaState {
        let (started, at_head) = (health.now(), AtomicI64::new(NEVER));
        ReplicaState { front, hub, health, started, at_head, restored_at: OnceLock::new() }
    }

    /// Returns a view for the caller at this place in the program.
    pub(crate) fn view(&self, call_site: &'static Location<'static>) -> View<'_> {
        // The order matters: the view may be newer than the age says, but never older.
        let at_head = self.at_head();
        View::new(self.front.hold(call_site), at_head, self.health.clock())
    }

    /// Returns the status for the caller at this place in the program.
    pub(crate) fn status(&self, call_site: &'static Location<'static>) -> ReplicaStatus {
        let mut status = self.health.status();
        let view = self.view(call_site);
        (status.position, status.rows) = (view.position(), view.len());
        // The server has what it has sent, although it may not have said so yet.
        status.server_position = status.server_position.max(status.position);
        status
    }

    /// Returns the numbers of the replica.
    #[cfg(feature = "metrics")]
    pub(crate) fn sample(&self) -> ClientSample {
        // The order matters, as for a view.
        let at_head = self.at_head();
        let status = self.status(Location::caller());
        let age = at_head.map(|at| self.health.now().saturating_duration_since(at));
        ClientSample { rows: Some(status.rows), status, age }
    }

    /// Makes the writer stop waiting for views. No newer state will be shown.
    pub(crate) fn close_views(&self) {
        self.front.close();
    }

    pub(crate) fn changes(&self) -> &Arc<ChangeHub> {
        &self.hub
    }

    pub(crate) fn health(&self) -> &SessionHealth {
        &self.health
    }

    /// Returns the time at which the replica was last known to have all that the database had.
    fn at_head(&self) -> Option<Instant> {
        match self.at_head.load(Ordering::Acquire) {
            NEVER => self.restored_at.get().copied(),
            nanos @ 0.. => self.started.checked_add(Duration::from_nanos(nanos.unsigned_abs())),
            nanos => self.started.checked_sub(Duration::from_nanos(nanos.unsigned_abs())),
        }
    }

    fn set_at_head(&self, at: Instant) {
        let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        let since_start = match at.checked_duration_since(self.started) {
            Some(after) => nanos(after),
            None => -nanos(self.started.saturating_duration_since(at)),
        };
        self.at_head.fetch_max(since_start, Ordering::AcqRel);
    }
}

impl ReplicaApplier {
    pub(crate) fn new(
        shared: Arc<ReplicaState>,
        indexes: Vec<IndexSpec>,
        saver: Option<LocalSnapshotSaver>,
        inputs: mpsc::UnboundedReceiver<SessionInput>,
        feedback: mpsc::UnboundedSender<SessionFeedback>,
    ) -> ReplicaApplier {
        ReplicaApplier {
            writer: ReplicaWriter::new(shared.front.clone()),
            receiver: SyncReceiver::new(shared.health.clone(), feedback, indexes),
            saver,
            restored: None,
            shared,
            inputs,
            fresh_at: None,
            outbox: Vec::new(),
            is_collecting: false,
        }
    }

    /// Processes inputs until the session has dropped its end of the channel.
    pub(crate) fn run(mut self) {
        let _ended = ApplierEndGuard(self.shared.clone());
        self.restore();
        while let Some(input) = self.inputs.blocking_recv() {
            self.process_input(input);
            for _ in 1..MESSAGES_PER_STATE {
                let Ok(next) = self.inputs.try_recv() else { break };
                self.process_input(next);
            }
            self.publish_applied();
            self.receiver.note_ready();
            if self.inputs.is_empty() {
                self.writer.catch_up();
            }
            self.save(LocalSnapshotSaver::is_due);
        }
        self.save(|saver, position, _| saver.lacks(position));
        self.saver.iter_mut().for_each(LocalSnapshotSaver::finish);
    }

    fn restore(&mut self) {
        let Some(saver) = &mut self.saver else { return };
        let Some(saved) = saver.load(self.receiver.indexes()) else { return };
        let (age, serves) = (saver.age(&saved), saver.serves);
        let ResumableTable { table, resume, .. } = saved;
        let position = resume.position;
        tracing::info!(
            event = "local_snapshot_loaded", rows = table.len(), %position, age_s = age.map(|age| age.as_secs()),
            "local snapshot loaded"
        );
        self.receiver.begin(table.schema().clone(), resume, if serves { position } else { Lsn::ZERO });
        let side = ReplicaTable::of(table, position, None);
        if !serves {
            self.restored = Some(Box::new(side));
            return;
        }
        let loaded_at = self.shared.health.now();
        if let Some(at) = age.and_then(|age| loaded_at.checked_sub(age)) {
            // A replica loads its local snapshot only once, so the time is not set yet.
            let _ = self.shared.restored_at.set(at);
        }
        self.replace(side);
    }

    /// Replaces the state that readers see with another one, and returns the old state.
    fn replace(&mut self, side: ReplicaTable) -> Arc<ReplicaTable> {
        let old = self.writer.current().clone();
        let (writer, position) = (&mut self.writer, side.position);
        self.shared.hub.publish(|followed| {
            let transaction = followed.then(|| CommittedTransaction {
                position,
                committed_at: None,
                changes: changes_between(&old, &side),
            });
            writer.replace(side);
            transaction.into_iter().collect()
        });
        old
    }

    /// Saves the state that readers see if `when` returns true. That state has everything that was
    /// applied.
    fn save(&mut self, when: impl FnOnce(&LocalSnapshotSaver, Lsn, Instant) -> bool) {
        let now = self.shared.health.now();
        let is_whole = self.receiver.is_sound() && self.writer.unpublished().is_none();
        let Some(saver) = self.saver.as_mut().filter(|_| is_whole) else { return };
        let front = self.writer.current();
        let Some(table) = front.table.as_ref().filter(|_| when(saver, front.position, now)) else { return };
        let age = self.shared.at_head().map(|at| now.saturating_duration_since(at));
        let resume = self.receiver.resume().clone();
        let mark = resume.mark.filter(|_| resume.position == front.position);
        let resume = ResumeState { position: front.position, mark, ..resume };
        let rows = table.rows().cloned().collect();
        let rows = LocalSnapshotRows { schema: table.schema().clone(), rows, checksum: table.checksum() };
        let at_head = age.and_then(|age| saver.ago(age));
        drop(front);
        saver.save(ResumableTable { table: rows, resume, at_head }, now);
    }

    fn process_input(&mut self, input: SessionInput) {
        if !matches!(input, SessionInput::Message(..)) {
            self.publish_applied();
        }
        #[cfg(debug_assertions)]
        if let SessionInput::Plant(canary, answer) = input {
            // Sending fails only if the test has ended without waiting for the answer.
            let _ = answer.send(self.plant(canary));
            return;
        }
        self.receiver.accept_input(input);
        while let Some(event) = self.receiver.pop_event() {
            match event {
                ReceiverEvent::Promised { .. } => {}
                ReceiverEvent::Resumed => {
                    if let Some(side) = self.restored.take() {
                        self.replace(*side);
                    }
                }
                ReceiverEvent::State { table, position, committed_at } => {
                    self.show_snapshot(ReplicaTable::of(*table, position, committed_at))
                }
                ReceiverEvent::Transaction { transaction, reached } => {
                    let (committed_at, changes) = (transaction.committed_at, transaction.changes.len());
                    if self.apply(transaction, Some(committed_at)) {
                        self.receiver.applied(reached);
                        self.shared.health.applied(changes);
                    }
                }
                ReceiverEvent::Current { position, at, mark, checksum } => {
                    self.note_current(position, at, mark, checksum)
                }
                ReceiverEvent::GivenUp { starts_over } => self.give_up(starts_over),
            }
        }
    }

    /// Makes a row that is shown wrong. Returns false if no row allows it.
    #[cfg(debug_assertions)]
    fn plant(&mut self, canary: laredo_core::CanaryFault) -> bool {
        let mut side = ReplicaTable::clone(&self.writer.current());
        let planted = side.table.as_mut().is_some_and(|table| table.plant(canary));
        self.replace(side);
        planted
    }

    /// Shows a complete snapshot in place of the old rows, in one step.
    fn show_snapshot(&mut self, side: ReplicaTable) {
        self.publish_applied();
        self.restored = None;
        let old = self.replace(side);
        if old.table.is_some() {
            self.shared.health.resynced();
        }
    }

    /// Applies a transaction to the writer's copy. Returns true if it succeeded.
    fn apply(&mut self, transaction: Transaction, committed_at: Option<CommitTime>) -> bool {
        if self.outbox.is_empty() {
            self.is_collecting = self.shared.hub.is_followed();
        }
        let mut changes: Vec<RowChange> = Vec::new();
        let position = transaction.position;
        match self.writer.apply(transaction, self.is_collecting.then_some(&mut changes)) {
            Ok(()) => {
                self.outbox.push(CommittedTransaction { position, committed_at, changes });
                return true;
            }
            Err(ReplicaWriteError::State(error)) => self.receiver.start_over(error.into()),
            // Further inputs are ignored, because the replica is being stopped.
            Err(ReplicaWriteError::Closing) => self.receiver.close(),
        }
        false
    }

    /// Notes that no more changes happened up to `position`, where the server's rows have this
    /// checksum.
    fn note_current(&mut self, position: Lsn, at: Instant, mark: Option<ScopedMark>, checksum: Option<Checksum>) {
        if position > self.receiver.resume().position {
            let nothing =
                Transaction { position, span_from: None, committed_at: CommitTime::default(), changes: Vec::new() };
            if !self.apply(nothing, None) {
                return;
            }
        }
        self.receiver.advance_position(position, mark);
        self.fresh_at = Some(at);
        let Some(theirs) = checksum else { return };
        let ours = {
            let newest = self.writer.newest();
            let table = newest.table.as_ref().filter(|_| newest.position == position);
            table.map(|table| (table.checksum(), table.len()))
        };
        if let Some((ours, rows)) = ours {
            self.receiver.compare(position, ours, Some(rows), theirs);
        }
    }

    fn give_up(&mut self, starts_over: bool) {
        self.fresh_at = None;
        self.publish_applied();
        self.outbox.clear();
        if starts_over {
            self.restored = None;
        }
    }

    /// Shows everything applied since the last call in one step, in whole transactions.
    fn publish_applied(&mut self) {
        let fresh_at = self.fresh_at.take();
        if self.writer.unpublished().is_none() {
            fresh_at.into_iter().for_each(|at| self.shared.set_at_head(at));
            return;
        }
        let (writer, outbox, is_collecting) = (&mut self.writer, &mut self.outbox, self.is_collecting);
        let shared = &self.shared;
        self.shared.hub.publish(|followed| {
            let mut transactions = std::mem::take(outbox);
            if followed
                && !is_collecting
                && let (Some(last), Some(next)) = (transactions.pop(), writer.unpublished())
            {
                // The first follower came after the changes had been applied without collecting
                // them.
                let changes = changes_between(&writer.current(), next);
                transactions = vec![CommittedTransaction { changes, ..last }];
            }
            writer.publish();
            // The age is set before the followers receive the transactions, so that they do not see
            // an age that is too high.
            fresh_at.into_iter().for_each(|at| shared.set_at_head(at));
            if followed { transactions } else { Vec::new() }
        });
    }
}

fn changes_between(old: &ReplicaTable, new: &ReplicaTable) -> Vec<RowChange> {
    let Some(table) = &new.table else { return Vec::new() };
    difference(old.table.as_ref().map(|t| (t, &old.layout)), (table, &new.layout))
}

/// Reports that the applier has ended, even by a panic. Otherwise callers that wait for the replica
/// would wait forever.
struct ApplierEndGuard(Arc<ReplicaState>);

impl Drop for ApplierEndGuard {
    fn drop(&mut self) {
        self.0.hub.close();
        self.0.health.stopped();
    }
}

#[cfg(test)]
mod tests;
