//! The thread that turns messages into states: it takes them in order, applies them, and shows them. It is a thread of its
//! own because applying is work, not waiting, and because readers that hold a view may make it wait: neither belongs on a
//! runtime's thread.

use std::mem::size_of;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use laredo_core::{IndexSpec, Lsn, Sequence, StateError, TableState, Transaction};
use laredo_proto::replication::{SourceIdentity, SyncHandshake, SyncMode, SyncResponse, sync_response};
use prost_types::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::assembler::{AssembleError, Assembler, Event};
use crate::changes::{CommittedTransaction, Hub, RowChange, difference};
use crate::incoming::Incoming;
use crate::keeper::Keeper;
use crate::layout::Layout;
use crate::local_snapshot::{Rows, Saved};
use crate::publish::{Front, Side, WriteError, Writer};
use crate::status::{ReplicaError, Status};
use crate::transit::Transit;

/// While messages wait, this many are applied before what they brought is shown.
const MESSAGES_PER_STATE: usize = 16;

/// What all parts of a replica share.
pub(crate) struct Shared {
    pub(crate) front: Arc<Front>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) now: Box<dyn Fn() -> Instant + Send + Sync>,
    started: Instant,
    /// When the replica was last known to be at the server's head, in nanoseconds since `started` and one; 0 for never.
    at_head: AtomicU64,
    /// The same of a state that was loaded from the disk, and is shown.
    restored_at: OnceLock<Instant>,
}

/// What the applier is given.
pub(crate) enum Input {
    /// A stream is about to be opened: what the last one half brought is void. Answered with where to go on from, once
    /// everything before is applied.
    Open(oneshot::Sender<Resume>),
    /// Another stream is about to be opened beside the one that is read. Answered with where that may go on from.
    Beside(oneshot::Sender<Resume>),
    /// A message, when it was received, and its share of the bytes that may wait.
    Message(Box<SyncResponse>, Instant, OwnedSemaphorePermit),
}

/// Where a stream may go on from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Resume {
    /// The journal that `sequence` is of.
    pub(crate) instance_id: String,
    pub(crate) sequence: Option<Sequence>,
    /// Zero: nowhere.
    pub(crate) position: Lsn,
    pub(crate) source: Option<SourceIdentity>,
}

pub(crate) struct Applier {
    shared: Arc<Shared>,
    inputs: mpsc::UnboundedReceiver<Input>,
    faults: mpsc::UnboundedSender<ReplicaError>,
    assembler: Assembler,
    writer: Writer,
    /// Of what was applied for the readers, or was loaded from the disk.
    resume: Resume,
    /// What was applied cannot be gone on from: a full snapshot has to take its place.
    starts_over: bool,
    /// The stream's handshake; `None` before it came and after a fault.
    opened: Option<Box<SyncHandshake>>,
    /// The stream's own state, while it is older than what readers were shown.
    incoming: Option<Box<Incoming>>,
    transit: Transit,
    /// When what is applied was all that the server had, since the replica started; `None` where nothing new is known.
    fresh_at: Option<Duration>,
    /// Transactions that are applied but not shown; with their changes if somebody followed from the first on.
    outbox: Vec<CommittedTransaction>,
    is_collecting: bool,
    keeper: Option<Keeper>,
    /// Loaded from the disk, and not shown before a server goes on from it.
    restored: Option<Box<Side>>,
}

impl Shared {
    pub(crate) fn new(front: Arc<Front>, hub: Arc<Hub>, now: Box<dyn Fn() -> Instant + Send + Sync>) -> Shared {
        let (status, started, at_head) = (watch::Sender::default(), now(), AtomicU64::new(0));
        Shared { front, hub, status, started, now, at_head, restored_at: OnceLock::new() }
    }

    /// When the replica was last known to be at the server's head.
    pub(crate) fn at_head(&self) -> Option<Instant> {
        match self.at_head.load(Ordering::Acquire).checked_sub(1) {
            Some(nanos) => self.started.checked_add(Duration::from_nanos(nanos)),
            None => self.restored_at.get().copied(),
        }
    }

    fn set_at_head(&self, since_start: Duration) {
        let nanos = u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX);
        self.at_head.fetch_max(nanos.saturating_add(1), Ordering::AcqRel);
    }

    pub(crate) fn fail(&self, error: &ReplicaError) {
        self.status.send_modify(|status| {
            status.connected = false;
            status.error = Some(error.clone());
            status.last_error = Some(error.clone());
        });
    }
}

impl Applier {
    pub(crate) fn new(
        shared: Arc<Shared>,
        indexes: Vec<IndexSpec>,
        keeper: Option<Keeper>,
        inputs: mpsc::UnboundedReceiver<Input>,
        faults: mpsc::UnboundedSender<ReplicaError>,
    ) -> Applier {
        Applier {
            writer: Writer::new(shared.front.clone()),
            assembler: Assembler::new(indexes),
            keeper,
            restored: None,
            shared,
            inputs,
            faults,
            resume: Resume::default(),
            starts_over: false,
            opened: None,
            incoming: None,
            transit: Transit::default(),
            fresh_at: None,
            outbox: Vec::new(),
            is_collecting: false,
        }
    }

    /// Until the other end is dropped.
    pub(crate) fn run(mut self) {
        let _ended = Ended(self.shared.clone());
        self.restore();
        while let Some(input) = self.inputs.blocking_recv() {
            self.take(input);
            for _ in 1..MESSAGES_PER_STATE {
                let Ok(next) = self.inputs.try_recv() else { break };
                self.take(next);
            }
            self.show();
            self.note_ready();
            if self.inputs.is_empty() {
                self.writer.catch_up();
            }
            self.save(Keeper::is_due);
        }
        self.save(|keeper, position, _| keeper.lacks(position));
        self.keeper.iter_mut().for_each(Keeper::finish);
    }

    fn restore(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        let Some(saved) = keeper.load(self.assembler.indexes()) else { return };
        let age = keeper.age(&saved);
        let Saved { table, resume, .. } = saved;
        let position = resume.position;
        tracing::info!(rows = table.len(), %position, age_s = age.map(|age| age.as_secs()), "local snapshot loaded");
        let layout = Arc::new(Layout::new(table.schema().clone()));
        let side = Side { table: Some(table), layout, position, committed_at: None };
        self.resume = resume;
        if !keeper.serves {
            self.restored = Some(Box::new(side));
            return;
        }
        let loaded_at = (self.shared.now)();
        if let Some(at) = age.and_then(|age| loaded_at.checked_sub(age)) {
            // It is set once: a replica loads once.
            let _ = self.shared.restored_at.set(at);
        }
        self.replace(side);
    }

    /// Puts another state altogether in the place of the one that readers see; returns that.
    fn replace(&mut self, side: Side) -> Arc<Side> {
        let old = self.writer.current().clone();
        let (writer, position) = (&mut self.writer, side.position);
        self.shared.hub.publish(|followed| {
            let told =
                followed.then(|| CommittedTransaction { position, committed_at: None, changes: between(&old, &side) });
            writer.replace(side);
            told.into_iter().collect()
        });
        old
    }

    /// Saves the state that readers see, which is all that was applied, if `when` says so.
    fn save(&mut self, when: impl FnOnce(&Keeper, Lsn, Instant) -> bool) {
        let now = (self.shared.now)();
        let is_whole = !self.starts_over && self.incoming.is_none() && self.writer.unpublished().is_none();
        let Some(keeper) = self.keeper.as_mut().filter(|_| is_whole) else { return };
        let front = self.writer.current();
        let Some(table) = front.table.as_ref().filter(|_| when(keeper, front.position, now)) else { return };
        let age = self.shared.at_head().map(|at| now.saturating_duration_since(at));
        let resume = Resume { position: front.position, ..self.resume.clone() };
        let rows = Rows { schema: table.schema().clone(), rows: table.rows().cloned().collect() };
        let at_head = age.and_then(|age| keeper.ago(age));
        drop(front);
        keeper.save(Saved { table: rows, resume, at_head }, now);
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Open(answer) => {
                self.show();
                self.assembler.reset();
                self.opened = None;
                self.incoming = None;
                self.transit = Transit::default();
                self.answer(answer);
            }
            Input::Beside(answer) => {
                self.show();
                self.answer(answer);
            }
            Input::Message(message, received, _share) => {
                let is_handshake = matches!(message.message, Some(sync_response::Message::Handshake(_)));
                if self.opened.is_some() || is_handshake {
                    self.message(*message, received);
                }
            }
        }
    }

    fn answer(&self, answer: oneshot::Sender<Resume>) {
        let resume = if self.starts_over { Resume::default() } else { self.resume.clone() };
        // Where nobody waits for the answer any more, the replica is being stopped.
        let _ = answer.send(resume);
    }

    fn message(&mut self, message: SyncResponse, received: Instant) {
        let event = {
            let current = self.writer.current();
            let latest = self.writer.unpublished().unwrap_or(&current);
            let table = self.restored.as_deref().unwrap_or(latest).table.as_ref();
            let state = table.filter(|_| !self.starts_over).map(|table| (table.schema(), self.resume.position));
            self.assembler.feed(message, state)
        };
        match event {
            Ok(Event::Nothing) => {}
            Ok(Event::Opened(handshake)) => self.open(handshake),
            Ok(Event::Snapshot { table, position, sequence }) => self.receive(*table, position, sequence),
            Ok(Event::Transaction { transaction, sequence }) => self.apply(transaction, sequence),
            Ok(Event::Repeated { sequence }) => self.reached(sequence),
            Ok(Event::Heartbeat { server_time, position }) => self.heartbeat(position, server_time, received),
            Err(AssembleError::Protocol(error)) => self.start_over(ReplicaError::Protocol(error)),
            Err(AssembleError::Encoding) => self.fault(ReplicaError::Encoding),
            Err(AssembleError::Index(error)) => self.start_over(state_error(error)),
            Err(AssembleError::Schema(position)) => self.start_over(ReplicaError::Schema { position }),
        }
    }

    fn open(&mut self, handshake: Box<SyncHandshake>) {
        tracing::debug!(mode = ?handshake.mode(), reason = handshake.reason, "stream opened");
        self.shared.status.send_modify(|status| {
            status.connected = true;
            status.connects += 1;
            status.full_snapshots += u64::from(handshake.mode() == SyncMode::FullSnapshot);
            status.mode = Some(handshake.mode());
            status.reason.clone_from(&handshake.reason);
            status.error = None;
        });
        if self.assembler.is_live() {
            if let Some(side) = self.restored.take() {
                self.replace(*side);
            }
            self.adopt(&handshake);
        } else if let Err(error) = self.goal(&handshake) {
            // Its snapshot need not even be taken.
            return self.fault(error);
        }
        self.opened = Some(handshake);
    }

    /// From which position on a stream's own state may be shown, so that no reader is taken back.
    ///
    /// # Errors
    /// When the server has not come so far.
    fn goal(&self, handshake: &SyncHandshake) -> Result<Lsn, ReplicaError> {
        let ours = self.writer.current().position;
        let theirs = Lsn(handshake.server_current_position);
        if handshake.source != self.resume.source {
            // Of another database or history: what readers were shown may lie beyond everything it will ever have.
            return Ok(ours.min(theirs));
        }
        if theirs < ours && theirs != Lsn::ZERO {
            return Err(ReplicaError::Behind { ours, theirs });
        }
        Ok(ours)
    }

    /// From here on the state is of this stream's journal.
    fn adopt(&mut self, handshake: &SyncHandshake) {
        if self.resume.instance_id != handshake.instance_id {
            self.resume.instance_id.clone_from(&handshake.instance_id);
            self.resume.sequence = None;
        }
        self.resume.source.clone_from(&handshake.source);
    }

    /// A whole snapshot, which may be older than what readers were shown.
    fn receive(&mut self, table: TableState, position: Lsn, sequence: Sequence) {
        self.show();
        let Some(goal) = self.opened.as_ref().map(|handshake| self.goal(handshake)) else { return };
        match goal {
            Ok(goal) => {
                self.incoming = Some(Box::new(Incoming::new(table, position, sequence, goal)));
                self.reveal();
            }
            Err(error) => self.fault(error),
        }
    }

    /// Shows the stream's own state in the place of the old one, in one step, if it is new enough.
    fn reveal(&mut self) {
        let Some(incoming) = self.incoming.take_if(|incoming| incoming.is_due()) else { return };
        let Incoming { side, sequence, .. } = *incoming;
        let Some(handshake) = self.opened.take() else { return };
        let position = side.position;
        self.restored = None;
        let old = self.replace(side);
        if old.table.is_some() {
            self.shared.status.send_modify(|status| status.resyncs += 1);
        }
        self.adopt(&handshake);
        self.opened = Some(handshake);
        self.starts_over = false;
        self.resume.position = position;
        self.reached(sequence);
    }

    fn apply(&mut self, transaction: Transaction, sequence: Sequence) {
        if let Some(incoming) = &mut self.incoming {
            return match incoming.apply(&transaction, sequence) {
                Ok(()) => self.reveal(),
                Err(error) => self.start_over(state_error(error)),
            };
        }
        if self.outbox.is_empty() {
            self.is_collecting = self.shared.hub.is_followed();
        }
        let mut changes: Vec<RowChange> = Vec::new();
        let (position, committed_at) = (transaction.position, transaction.committed_at);
        match self.writer.apply(transaction, self.is_collecting.then_some(&mut changes)) {
            Ok(()) => {
                self.resume.position = self.resume.position.max(position);
                self.outbox.push(CommittedTransaction { position, committed_at: Some(committed_at), changes });
                self.reached(sequence);
            }
            Err(WriteError::State(error)) => self.start_over(state_error(error)),
            // What comes now comes to nothing; the network's side is about to end.
            Err(WriteError::Closing) => self.opened = None,
        }
    }

    fn reached(&mut self, sequence: Sequence) {
        if let Some(incoming) = &mut self.incoming {
            incoming.sequence = sequence;
            return;
        }
        self.resume.sequence = Some(sequence);
    }

    /// With a position it comes when everything that the server had at its time was sent: only then is anything known of the state's
    /// age. It counts from when the heartbeat was received, and from earlier if it was long under way.
    fn heartbeat(&mut self, position: Option<Lsn>, server_time: Option<Timestamp>, received: Instant) {
        let received = received.saturating_duration_since(self.shared.started);
        let excess = server_time.map_or(Duration::ZERO, |sent| self.transit.excess(received, &sent));
        if !self.assembler.is_live() {
            return;
        }
        if let Some(incoming) = &mut self.incoming {
            incoming.moved(position.unwrap_or_default());
            self.reveal();
        }
        if self.incoming.is_some() {
            return;
        }
        if let Some(position) = position
            && position > self.resume.position
        {
            let transaction = Transaction {
                position,
                span_from: None,
                committed_at: laredo_core::CommitTime::default(),
                changes: Vec::new(),
            };
            if self.outbox.is_empty() {
                self.is_collecting = self.shared.hub.is_followed();
            }
            match self.writer.apply(transaction, None) {
                Ok(()) => {
                    self.resume.position = position;
                    self.outbox.push(CommittedTransaction { position, committed_at: None, changes: Vec::new() });
                }
                Err(WriteError::State(error)) => self.start_over(state_error(error)),
                Err(WriteError::Closing) => self.opened = None,
            }
        }
        if position.is_some() && self.opened.is_some() {
            self.fresh_at = Some(received.saturating_sub(excess));
        }
    }

    /// Shows what was applied since the last time, at once and in whole transactions.
    fn show(&mut self) {
        let fresh_at = self.fresh_at.take();
        if self.writer.unpublished().is_none() {
            fresh_at.into_iter().for_each(|at| self.shared.set_at_head(at));
            return;
        }
        let (writer, outbox, is_collecting) = (&mut self.writer, &mut self.outbox, self.is_collecting);
        let shared = &self.shared;
        self.shared.hub.publish(|followed| {
            let mut told = std::mem::take(outbox);
            if followed
                && !is_collecting
                && let (Some(last), Some(next)) = (told.pop(), writer.unpublished())
            {
                // Somebody began to follow after the changes had been applied without noting the old rows.
                let changes = between(&writer.current(), next);
                told = vec![CommittedTransaction { changes, ..last }];
            }
            writer.publish();
            // Before anybody is told, so that nobody who is finds the state older than it is.
            fresh_at.into_iter().for_each(|at| shared.set_at_head(at));
            if followed { told } else { Vec::new() }
        });
    }

    /// It is ready once it has what the server had when the stream began.
    fn note_ready(&self) {
        let is_live = self.assembler.is_live() && self.incoming.is_none();
        let Some(handshake) = self.opened.as_ref().filter(|_| is_live) else { return };
        let head = Lsn(handshake.server_current_position);
        let sequence_reached =
            self.resume.sequence.is_some_and(|s| s >= Sequence::from_wire(handshake.server_current_sequence));
        if sequence_reached || (head != Lsn::ZERO && self.resume.position >= head) {
            let status = &self.shared.status;
            status.send_if_modified(|status| !std::mem::replace(&mut status.ready, true));
        }
    }

    /// What the replica has can no longer be gone on from.
    fn start_over(&mut self, error: ReplicaError) {
        self.starts_over = true;
        self.restored = None;
        self.fault(error);
    }

    /// The stream is of no use any more.
    fn fault(&mut self, error: ReplicaError) {
        tracing::warn!(%error, "the stream is given up");
        self.fresh_at = None;
        self.show();
        self.outbox.clear();
        self.assembler.reset();
        self.opened = None;
        self.incoming = None;
        // Where nobody hears it, the replica is being stopped.
        let _ = self.faults.send(error);
    }
}

fn state_error(error: StateError) -> ReplicaError {
    match error {
        StateError::IndexColumn { .. } => ReplicaError::Index(error),
        StateError::KeyExists | StateError::KeyMissing => ReplicaError::State(error),
    }
}

fn between(old: &Side, new: &Side) -> Vec<RowChange> {
    let Some(table) = &new.table else { return Vec::new() };
    difference(old.table.as_ref().map(|t| (t, &old.layout)), (table, &new.layout))
}

/// What a waiting message counts for.
pub(crate) fn weight(message: &SyncResponse) -> usize {
    let entries = match &message.message {
        Some(sync_response::Message::Batch(batch)) => batch.entries.len(),
        _ => 0,
    };
    size_of::<SyncResponse>() + entries
}

/// Tells that the applier has ended, be it by a panic: whoever waits for it would wait for ever.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.hub.close();
        self.0.status.send_modify(|status| {
            status.connected = false;
            status.stopped = true;
        });
    }
}

#[cfg(test)]
#[path = "applier_tests.rs"]
mod tests;
