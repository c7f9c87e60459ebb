//! Turns a session's messages into complete snapshots and transactions, for the code that keeps the
//! table. Each is delivered exactly once, and the table never moves back in time.
//!
//! The receiver also answers the session's question where the next stream resumes, and reports a
//! stream that is unusable. It accesses neither sockets nor readers.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::Arc;
use std::time::{Duration, Instant};

use laredo_core::{
    Change, Checksum, CommitTime, DefinitionVersion, IndexSpec, Lsn, Schema, ScopedMark, Sequence, SourceIdentity,
    TableName, TableState, Transaction,
};
use laredo_proto::replication::{ReportChecksumRequest, SyncHandshake, SyncResponse, sync_response};
use prost_types::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::assembler::{AssemblerEvent, PresentRows, StreamAssembler, StreamAssemblyError};
use crate::comparison::{ChecksumComparison, ChecksumVerdict};
use crate::health::SessionHealth;
use crate::message_delay::MessageDelayMeter;
use crate::pending_snapshot::{PendingSnapshot, newer_position};
use crate::status::ReplicaError;

/// An input from a session.
pub(crate) enum SessionInput {
    /// A stream is about to be opened. Anything that the previous stream delivered only in part is
    /// discarded. The answer is the position to resume from, after everything before this input was
    /// applied.
    Open(oneshot::Sender<ResumeState>),
    /// A second stream is about to be opened while the current one is still read. The answer is the
    /// position that the second stream may resume from.
    OpenSecond(oneshot::Sender<ResumeState>),
    /// A message, the time of its receipt, and its share of the bytes that may wait.
    Message(Box<SyncResponse>, Instant, OwnedSemaphorePermit),
    /// A test's request to make a row wrong. The answer is true if a row was made wrong.
    #[cfg(debug_assertions)]
    Plant(laredo_core::CanaryFault, oneshot::Sender<bool>),
}

/// The state that a stream may resume from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ResumeState {
    /// The journal that `sequence` belongs to.
    pub(crate) instance_id: String,
    pub(crate) sequence: Option<Sequence>,
    /// Zero if there is nothing to resume from.
    pub(crate) position: Lsn,
    pub(crate) source: Option<SourceIdentity>,
    /// The newest known commit at or before the position. It distinguishes histories of one
    /// database.
    pub(crate) mark: Option<ScopedMark>,
    /// The definition version of the rows.
    pub(crate) definition: DefinitionVersion,
    /// True if all rows are requested because the current ones have the wrong checksum.
    pub(crate) contents_differed: bool,
}

/// The messages of a receiver to the session that feeds it.
#[derive(Debug)]
pub(crate) enum SessionFeedback {
    /// The stream is unusable.
    Fault(ReplicaError),
    /// The answer to a check of the stream.
    Report(ReportChecksumRequest),
}

/// An action for the code that keeps the table.
#[derive(Debug)]
pub(crate) enum ReceiverEvent {
    /// A full snapshot is coming, for this reason. Until it is complete, the table stays as it is.
    /// Up to `shared_until`, the histories of the table and of the snapshot are known to be the
    /// same.
    Promised { reason: String, shared_until: Lsn },
    /// The stream continues from the table as it is.
    Resumed,
    /// All rows of the table, which replace the previous rows.
    State { table: Box<TableState>, position: Lsn, committed_at: Option<CommitTime> },
    /// A transaction to apply. [`SyncReceiver::applied`] must be called afterwards.
    Transaction { transaction: Transaction, reached: ResumeUpdate },
    /// Everything up to this position has arrived, which was all that the database had at this
    /// moment. [`SyncReceiver::advance_position`] must be called. If the server's checksum of the
    /// rows at the position is present, [`SyncReceiver::compare`] must be called too.
    Current { position: Lsn, at: Instant, mark: Option<ScopedMark>, checksum: Option<Checksum> },
    /// The stream was given up. If `starts_over` is true, the table is unusable too.
    GivenUp { starts_over: bool },
}

/// A position from a heartbeat, with what the heartbeat says of the rows there. Everything up to
/// the position was sent.
struct SentPosition {
    position: Lsn,
    mark: Option<ScopedMark>,
    checksum: Option<Checksum>,
    /// The time since the server last knew its rows to be all that the database had.
    source_lag: Duration,
}

/// A server's request for the checksum of the rows at a position.
#[derive(Debug)]
struct PendingChecksumRequest {
    position: Lsn,
    check: Vec<u8>,
}

/// The state that a table reaches when a transaction is applied to it.
#[derive(Debug)]
pub(crate) struct ResumeUpdate {
    position: Lsn,
    sequence: Sequence,
    mark: Option<ScopedMark>,
    /// The table's new schema, if the transaction changed it.
    schema: Option<Arc<Schema>>,
    /// The table's new definition version, or unknown if the transaction did not change it.
    definition: DefinitionVersion,
}

pub(crate) struct SyncReceiver {
    health: Arc<SessionHealth>,
    feedback: mpsc::UnboundedSender<SessionFeedback>,
    assembler: StreamAssembler,
    /// The state of the table as it is.
    resume: ResumeState,
    /// The position of the newest transaction or snapshot in the table.
    unchanged_since: Lsn,
    /// The schema of the table. `None` if no stream can resume from the table, so that only a full
    /// snapshot is usable.
    schema: Option<Arc<Schema>>,
    /// The newest position that was shown to readers. A full snapshot older than this replaces the
    /// table only if it is of another database or history.
    shown: Lsn,
    /// The handshake of the stream. `None` before it arrives and after a fault.
    opened: Option<Box<SyncHandshake>>,
    /// The snapshot of this stream, while it is older than what was shown.
    incoming: Option<Box<PendingSnapshot>>,
    /// The journal of the newest stream.
    followed: String,
    /// The newest position up to which the histories of the newest stream and of the table are
    /// known to be the same.
    shared_until: Lsn,
    comparison: ChecksumComparison,
    /// A request that is not answered yet. [`SyncReceiver::compare`] answers it. If nothing does,
    /// it is answered without a checksum once all actions were taken.
    question: Option<PendingChecksumRequest>,
    /// True if the rows were found to be wrong and no new rows have arrived yet.
    contents_differed: bool,
    started: Instant,
    delays: MessageDelayMeter,
    events: VecDeque<ReceiverEvent>,
}

impl SyncReceiver {
    pub(crate) fn new(
        health: Arc<SessionHealth>,
        feedback: mpsc::UnboundedSender<SessionFeedback>,
        indexes: Vec<IndexSpec>,
    ) -> SyncReceiver {
        SyncReceiver {
            started: health.now(),
            health,
            feedback,
            assembler: StreamAssembler::new(indexes),
            resume: ResumeState::default(),
            unchanged_since: Lsn::ZERO,
            schema: None,
            shown: Lsn::ZERO,
            opened: None,
            incoming: None,
            followed: String::new(),
            shared_until: Lsn::ZERO,
            comparison: ChecksumComparison::default(),
            question: None,
            contents_differed: false,
            delays: MessageDelayMeter::default(),
            events: VecDeque::new(),
        }
    }

    /// Starts from a table that exists already, with this schema, shown up to `shown`.
    pub(crate) fn begin(&mut self, schema: Arc<Schema>, resume: ResumeState, shown: Lsn) {
        self.unchanged_since = resume.position;
        (self.schema, self.resume, self.shown) = (Some(schema), resume, shown);
    }

    /// Returns the indexes that each table must have.
    pub(crate) fn indexes(&self) -> &[IndexSpec] {
        self.assembler.indexes()
    }

    /// Returns the state that a stream may resume from.
    pub(crate) fn resume(&self) -> &ResumeState {
        &self.resume
    }

    /// Returns true if there is a table, a stream can resume from it, and no snapshot is about to
    /// replace it.
    pub(crate) fn is_sound(&self) -> bool {
        self.schema.is_some() && self.incoming.is_none()
    }

    /// Accepts an input from a session. The resulting actions are returned by
    /// [`SyncReceiver::pop_event`].
    pub(crate) fn accept_input(&mut self, input: SessionInput) {
        match input {
            SessionInput::Open(answer) => {
                self.close();
                self.answer_resume_state(answer);
            }
            SessionInput::OpenSecond(answer) => self.answer_resume_state(answer),
            // The applier, which keeps the rows, plants the fault.
            #[cfg(debug_assertions)]
            SessionInput::Plant(..) => {}
            SessionInput::Message(message, received, _share) => {
                let is_handshake = matches!(message.message, Some(sync_response::Message::Handshake(_)));
                if self.opened.is_some() || is_handshake {
                    self.accept_message(*message, received);
                }
            }
        }
    }

    /// Returns the next action in order, or `None` if the next input is needed.
    pub(crate) fn pop_event(&mut self) -> Option<ReceiverEvent> {
        let next = self.events.pop_front();
        if next.is_none()
            && let Some(question) = self.question.take()
        {
            self.send_checksum_report(question, None, None);
        }
        next
    }

    /// Notes that a transaction was applied to the table.
    pub(crate) fn applied(&mut self, reached: ResumeUpdate) {
        let ResumeUpdate { position, sequence, mark, schema, definition } = reached;
        self.resume.sequence = Some(sequence);
        self.unchanged_since = position;
        self.redefined(definition);
        self.schema = schema.or_else(|| self.schema.take());
        self.advance_position(position, mark);
    }

    /// Sets the definition version of the table, if it is known.
    fn redefined(&mut self, definition: DefinitionVersion) {
        if definition.is_known() {
            self.resume.definition = definition;
        }
    }

    /// Notes that no change to the table is missing up to this position. `mark` is the newest known
    /// commit of any table at or before it.
    pub(crate) fn advance_position(&mut self, position: Lsn, mark: Option<ScopedMark>) {
        let known = (self.resume.position, self.resume.mark);
        (self.resume.position, self.resume.mark) = newer_position(known, (position, mark));
        self.shown = self.shown.max(position);
    }

    /// Discards the table, so that only a full snapshot is usable.
    pub(crate) fn forget(&mut self) {
        self.schema = None;
    }

    /// Ignores the rest of this stream.
    pub(crate) fn close(&mut self) {
        self.assembler.reset();
        self.opened = None;
        self.incoming = None;
        self.question = None;
        self.delays = MessageDelayMeter::default();
    }

    /// Discards the table and gives up the stream.
    pub(crate) fn start_over(&mut self, error: ReplicaError) {
        self.forget();
        self.give_up(error, true);
    }

    /// Compares the checksum of the rows at a position with the server's, and answers the server if
    /// it asked. Returns true if the rows are given up, to be loaded again.
    pub(crate) fn compare(&mut self, position: Lsn, ours: Checksum, rows: Option<usize>, theirs: Checksum) -> bool {
        if let Some(question) = self.question.take_if(|question| question.position == position) {
            self.send_checksum_report(question, Some(ours), rows);
        }
        let verdict = self.comparison.judge(ours == theirs, self.health.now());
        let table = self.health.table();
        match verdict {
            ChecksumVerdict::Same => self.health.agrees(position),
            ChecksumVerdict::Known => {}
            ChecksumVerdict::Tolerated(pause) => {
                self.health.differs();
                let pause_s = pause.as_secs();
                tracing::error!(
                    event = "rows_differ_after_reload",
                    %table, %position, %ours, %theirs, pause_s,
                    "the rows differ from the server's, although they were loaded again; the client serves them meanwhile"
                );
            }
            ChecksumVerdict::LoadAgain => {
                self.health.differs();
                tracing::error!(
                    event = "rows_differ_from_server",
                    %table, %position, %ours, %theirs,
                    "the rows differ from the server's, by the checksums at one position; the client loads all rows again"
                );
                self.contents_differed = true;
                self.start_over(ReplicaError::Contents { position, ours, theirs });
            }
        }
        verdict == ChecksumVerdict::LoadAgain
    }

    /// Answers a server's request. The answer has no checksum if there are no rows at the request's
    /// position.
    fn send_checksum_report(&self, question: PendingChecksumRequest, checksum: Option<Checksum>, rows: Option<usize>) {
        let PendingChecksumRequest { position, check } = question;
        let TableName { schema, table } = self.health.table().clone();
        let report = ReportChecksumRequest {
            schema,
            table,
            check,
            source_position: position.to_string(),
            checksum: checksum.map_or_else(Vec::new, |checksum| checksum.to_bytes().to_vec()),
            row_count: rows.and_then(|rows| i64::try_from(rows).ok()),
        };
        // Sending fails only while the session is being stopped.
        let _ = self.feedback.send(SessionFeedback::Report(report));
    }

    /// Sets the status to ready, once the table has everything that the server had when the stream
    /// began.
    pub(crate) fn note_ready(&self) {
        let is_live = self.assembler.is_live() && self.incoming.is_none();
        let Some(handshake) = self.opened.as_ref().filter(|_| is_live) else { return };
        let head = Lsn(handshake.server_current_position);
        let sequence_reached =
            self.resume.sequence.is_some_and(|s| s >= Sequence::from_wire(handshake.server_current_sequence));
        if sequence_reached || (head != Lsn::ZERO && self.resume.position >= head) {
            self.health.ready();
        }
    }

    fn answer_resume_state(&self, answer: oneshot::Sender<ResumeState>) {
        let resume = self.schema.as_ref().map(|_| self.resume.clone());
        let nowhere = || ResumeState { contents_differed: self.contents_differed, ..ResumeState::default() };
        // Sending fails only while the session is being stopped.
        let _ = answer.send(resume.unwrap_or_else(nowhere));
    }

    fn accept_message(&mut self, message: SyncResponse, received: Instant) {
        let ResumeState { position, .. } = self.resume;
        let unchanged_since = self.unchanged_since;
        let present = self.schema.as_ref().map(|schema| PresentRows { schema, position, unchanged_since });
        match self.assembler.feed(message, present) {
            Ok(AssemblerEvent::Nothing) => {}
            Ok(AssemblerEvent::Opened(handshake)) => self.accept_handshake(handshake),
            Ok(AssemblerEvent::Snapshot { table, position, sequence, mark, definition, checksum }) => {
                let (ours, rows) = (table.checksum(), Some(table.len()));
                if !checksum.is_some_and(|theirs| self.compare(position, ours, rows, theirs)) {
                    self.accept_snapshot(PendingSnapshot::new(table, position, sequence, mark, definition));
                }
            }
            Ok(AssemblerEvent::Transaction { transaction, sequence, mark, definition }) => {
                self.accept_transaction(transaction, sequence, definition, mark);
            }
            Ok(AssemblerEvent::Repeated { sequence, definition }) => match &mut self.incoming {
                Some(incoming) => incoming.reached(sequence, definition),
                None => {
                    self.resume.sequence = Some(sequence);
                    self.redefined(definition);
                }
            },
            Ok(AssemblerEvent::Heartbeat { server_time, position, mark, checksum, check, source_lag }) => {
                self.question = position.zip(check).map(|(position, check)| PendingChecksumRequest { position, check });
                let sent = position.map(|position| SentPosition { position, mark, checksum, source_lag });
                self.accept_heartbeat(sent, server_time, received);
            }
            Err(StreamAssemblyError::Protocol(error)) => self.start_over(ReplicaError::Protocol(error)),
            Err(StreamAssemblyError::Encoding) => self.give_up(ReplicaError::Encoding, false),
            Err(StreamAssemblyError::Index(error)) => self.start_over(error.into()),
            Err(StreamAssemblyError::Schema(position)) => self.start_over(ReplicaError::Schema { position }),
        }
    }

    fn accept_handshake(&mut self, handshake: Box<SyncHandshake>) {
        tracing::debug!(event = "stream_opened", mode = ?handshake.mode(), reason = handshake.reason, "stream opened");
        self.health.opened(&handshake);
        self.health.server_reached(Lsn(handshake.server_current_position));
        self.compare_histories(&handshake);
        if self.assembler.is_live() {
            self.adopt_journal(&handshake);
            self.advance_position(self.resume.position, None);
            self.events.push_back(ReceiverEvent::Resumed);
        } else if let Err(error) = self.goal_position(&handshake) {
            // The position is known to be too old, so the snapshot is not even read.
            return self.give_up(error, false);
        } else {
            self.events.push_back(ReceiverEvent::Promised {
                reason: handshake.reason.clone(),
                shared_until: self.shared_until,
            });
        }
        self.opened = Some(handshake);
    }

    /// Notes which history a new stream is of. A journal belongs to one history.
    fn compare_histories(&mut self, handshake: &SyncHandshake) {
        if self.assembler.is_live() {
            self.shared_until = Lsn(u64::MAX);
        } else if handshake.instance_id.is_empty() || handshake.instance_id != self.followed {
            // Without a table the client presented no position, so the server could not compare
            // histories.
            let known = self.schema.as_ref().map(|_| Lsn(handshake.shared_position));
            self.shared_until = known.unwrap_or(Lsn::ZERO);
        }
        self.followed.clone_from(&handshake.instance_id);
    }

    /// Notes that the rows of this stream are shown, so that from here on both histories are one.
    pub(crate) fn shown_state(&mut self) {
        self.shared_until = Lsn(u64::MAX);
    }

    /// Returns the position from which on the snapshot of a stream may be shown. Readers never see
    /// the table move back.
    ///
    /// # Errors
    /// When the server has not reached the position that was shown.
    fn goal_position(&self, handshake: &SyncHandshake) -> Result<Lsn, ReplicaError> {
        let (ours, theirs) = (self.shown, Lsn(handshake.server_current_position));
        if handshake.another_history || source_of(handshake) != self.resume.source {
            // Another database or history may never reach the position that was shown.
            return Ok(ours.min(theirs));
        }
        if theirs < ours && theirs != Lsn::ZERO {
            return Err(ReplicaError::Behind { ours, theirs });
        }
        Ok(ours)
    }

    /// Notes that the table now follows this stream's journal.
    fn adopt_journal(&mut self, handshake: &SyncHandshake) {
        if self.resume.instance_id != handshake.instance_id {
            self.resume.instance_id.clone_from(&handshake.instance_id);
            self.resume.sequence = None;
        }
        self.resume.source = source_of(handshake);
        self.resume.definition = DefinitionVersion(handshake.definition);
    }

    /// Accepts a complete snapshot, which may be older than what was shown.
    fn accept_snapshot(&mut self, mut incoming: PendingSnapshot) {
        let Some(goal) = self.opened.as_ref().map(|handshake| self.goal_position(handshake)) else { return };
        match goal {
            Ok(goal) => {
                incoming.goal = goal;
                self.incoming = Some(Box::new(incoming));
                self.reveal_snapshot();
            }
            Err(error) => self.give_up(error, false),
        }
    }

    /// Replaces the table with the snapshot in one step, if the snapshot is new enough.
    fn reveal_snapshot(&mut self) {
        let Some(incoming) = self.incoming.take_if(|incoming| incoming.is_due()) else { return };
        let PendingSnapshot { table, position, committed_at, sequence, mark, definition, .. } = *incoming;
        let Some(handshake) = self.opened.take() else { return };
        self.adopt_journal(&handshake);
        self.opened = Some(handshake);
        (self.resume.position, self.resume.mark) = newer_position((Lsn::ZERO, None), (position, mark));
        self.resume.sequence = Some(sequence);
        self.unchanged_since = self.resume.position;
        self.redefined(definition);
        self.shown = position;
        self.schema = Some(table.schema().clone());
        self.contents_differed = false;
        self.events.push_back(ReceiverEvent::State { table, position, committed_at });
    }

    fn accept_transaction(
        &mut self,
        transaction: Transaction,
        sequence: Sequence,
        definition: DefinitionVersion,
        mark: Option<ScopedMark>,
    ) {
        if let Some(incoming) = &mut self.incoming {
            incoming.reached(sequence, definition);
            return match incoming.apply(&transaction, mark) {
                Ok(()) => self.reveal_snapshot(),
                Err(error) => self.start_over(error.into()),
            };
        }
        let schema = transaction.changes.iter().rev().find_map(|change| match change {
            Change::Schema(schema) => Some(schema.clone()),
            _ => None,
        });
        let reached = ResumeUpdate { position: transaction.position, sequence, mark, schema, definition };
        self.events.push_back(ReceiverEvent::Transaction { transaction, reached });
    }

    /// Handles a heartbeat.
    ///
    /// A heartbeat has a position if everything that the server had at that time was sent. Only
    /// then is the age of the table known. It counts from the receipt of the heartbeat, or from
    /// earlier if the message was delayed, or if the server itself lagged behind the database.
    fn accept_heartbeat(&mut self, sent: Option<SentPosition>, server_time: Option<Timestamp>, received: Instant) {
        let since_start = received.saturating_duration_since(self.started);
        let excess = server_time.map_or(Duration::ZERO, |sent| self.delays.excess(since_start, &sent));
        let sent = sent.filter(|_| self.assembler.is_live());
        let Some(SentPosition { position, mark, checksum, source_lag }) = sent else { return };
        if let Some(incoming) = &mut self.incoming {
            incoming.advance_position(position, mark);
            self.reveal_snapshot();
        }
        self.health.server_reached(position);
        if self.incoming.is_none() {
            let at = received.checked_sub(excess.saturating_add(source_lag)).unwrap_or(self.started);
            // A state newer than the heartbeat's position has another checksum and another newest
            // commit.
            let is_newest = position >= self.resume.position;
            let (mark, checksum) = (mark.filter(|_| is_newest), checksum.filter(|_| is_newest));
            self.events.push_back(ReceiverEvent::Current {
                position: position.max(self.resume.position),
                at,
                mark,
                checksum,
            });
        }
    }

    /// Gives up the stream, and discards its actions that were not taken yet.
    fn give_up(&mut self, error: ReplicaError, starts_over: bool) {
        tracing::warn!(event = "stream_rejected", table = %self.health.table(), %error, "the client closes the stream");
        self.close();
        self.events.clear();
        self.events.push_back(ReceiverEvent::GivenUp { starts_over });
        // Sending fails only while the session is being stopped.
        let _ = self.feedback.send(SessionFeedback::Fault(error));
    }
}

/// Returns the database that a stream's positions belong to, if the server names it.
fn source_of(handshake: &SyncHandshake) -> Option<SourceIdentity> {
    handshake.source.clone().map(SourceIdentity::from)
}

/// Returns the bytes that a waiting message counts for.
pub(crate) fn message_weight(message: &SyncResponse) -> usize {
    let entries = match &message.message {
        Some(sync_response::Message::Batch(batch)) => batch.entries.len(),
        _ => 0,
    };
    size_of::<SyncResponse>() + entries
}
