//! What is made of that which a session brings, one stream after another: whole states and whole transactions, each once and none
//! older than what there was, for whoever keeps the table. It answers the session's question where to go on from, and tells it when
//! a stream is of no use. Pure but for that: it knows neither sockets nor readers.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::Arc;
use std::time::{Duration, Instant};

use laredo_core::{
    Change, Checksum, CommitTime, DefinitionVersion, IndexSpec, Lsn, Schema, Sequence, TableName, TableState,
    Transaction,
};
use laredo_proto::replication::{
    CommitMark, ReportChecksumRequest, SourceIdentity, SyncHandshake, SyncResponse, sync_response,
};
use prost_types::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::assembler::{AssembleError, Assembler, Event};
use crate::comparison::{Comparison, Verdict};
use crate::health::Health;
use crate::incoming::{Incoming, newer};
use crate::status::ReplicaError;
use crate::transit::Transit;

/// What a session brings.
pub(crate) enum Input {
    /// A stream is about to be opened: what the last one half brought is void. Answered with where to go on from, once
    /// everything before is applied.
    Open(oneshot::Sender<Resume>),
    /// Another stream is about to be opened beside the one that is read. Answered with where that may go on from.
    Beside(oneshot::Sender<Resume>),
    /// A message, when it was received, and its share of the bytes that may wait.
    Message(Box<SyncResponse>, Instant, OwnedSemaphorePermit),
    /// A test wants a row to be wrong. Answered with whether it is.
    #[cfg(debug_assertions)]
    Plant(laredo_core::Canary, oneshot::Sender<bool>),
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
    /// The newest commit at or before the position, where it is known: it tells histories of one database apart.
    pub(crate) mark: Option<CommitMark>,
    /// The definition that the rows are of.
    pub(crate) definition: DefinitionVersion,
    /// All rows are asked for because those that there are have the wrong checksum.
    pub(crate) contents_differed: bool,
}

/// The messages of an intake to the session that feeds it.
#[derive(Debug)]
pub(crate) enum Feedback {
    /// The stream is unusable.
    Fault(ReplicaError),
    /// The answer to a check of the stream.
    Report(ReportChecksumRequest),
}

/// What there is to do for whoever keeps the table.
#[derive(Debug)]
pub(crate) enum Taken {
    /// A full snapshot is coming, for this reason. Until it is there the table is what it was. Up to `shared_until` the history of
    /// the table and that of the snapshot are known to be the same.
    Promised { reason: String, shared_until: Lsn },
    /// The stream goes on from the table as it is.
    Resumed,
    /// The table altogether, in the place of what there was.
    State { table: Box<TableState>, position: Lsn, committed_at: Option<CommitTime> },
    /// What to apply; once it is, [`Intake::applied`] is to be called.
    Transaction { transaction: Transaction, reached: Reached },
    /// Everything up to this position has come, which was all that the server had at this moment. [`Intake::moved`] is to be called.
    /// With the server's checksum of the rows there, [`Intake::compare`] is, too.
    Current { position: Lsn, at: Instant, mark: Option<CommitMark>, checksum: Option<Checksum> },
    /// The stream was given up, and with it the table if that `starts_over`.
    GivenUp { starts_over: bool },
}

/// A position up to which a heartbeat says that everything was sent, and what it says of the rows there.
struct SentPosition {
    position: Lsn,
    mark: Option<CommitMark>,
    checksum: Option<Checksum>,
}

/// A server's question for the checksum of the rows at a position.
#[derive(Debug)]
struct Question {
    position: Lsn,
    check: Vec<u8>,
}

/// Where a table is to which a transaction was applied.
#[derive(Debug)]
pub(crate) struct Reached {
    position: Lsn,
    sequence: Sequence,
    mark: Option<CommitMark>,
    /// Where it has another one by then.
    schema: Option<Arc<Schema>>,
    /// Likewise; unknown where it is as before.
    definition: DefinitionVersion,
}

pub(crate) struct Intake {
    health: Arc<Health>,
    feedback: mpsc::UnboundedSender<Feedback>,
    assembler: Assembler,
    /// Of the table as it is.
    resume: Resume,
    /// The table's; `None` where it cannot be gone on from, so that a full snapshot has to take its place.
    schema: Option<Arc<Schema>>,
    /// What was shown to anybody. No full snapshot takes its place that is older.
    shown: Lsn,
    /// The stream's handshake; `None` before it came and after a fault.
    opened: Option<Box<SyncHandshake>>,
    /// The stream's own state, while it is older than what was shown.
    incoming: Option<Box<Incoming>>,
    /// The journal of the newest stream, and the newest position up to which its history and that of the table are known to be the
    /// same.
    followed: String,
    shared_until: Lsn,
    comparison: Comparison,
    /// Not answered yet. [`Intake::compare`] answers it, or else it is declined when everything was taken.
    question: Option<Question>,
    /// The rows were found to be wrong, and no others have come yet.
    contents_differed: bool,
    started: Instant,
    transit: Transit,
    taken: VecDeque<Taken>,
}

impl Intake {
    pub(crate) fn new(
        health: Arc<Health>,
        feedback: mpsc::UnboundedSender<Feedback>,
        indexes: Vec<IndexSpec>,
    ) -> Intake {
        Intake {
            started: (health.now)(),
            health,
            feedback,
            assembler: Assembler::new(indexes),
            resume: Resume::default(),
            schema: None,
            shown: Lsn::ZERO,
            opened: None,
            incoming: None,
            followed: String::new(),
            shared_until: Lsn::ZERO,
            comparison: Comparison::default(),
            question: None,
            contents_differed: false,
            transit: Transit::default(),
            taken: VecDeque::new(),
        }
    }

    /// There is a table of this schema already, shown up to `shown`.
    pub(crate) fn begin(&mut self, schema: Arc<Schema>, resume: Resume, shown: Lsn) {
        (self.schema, self.resume, self.shown) = (Some(schema), resume, shown);
    }

    /// What the rows shall be found by.
    pub(crate) fn indexes(&self) -> &[IndexSpec] {
        self.assembler.indexes()
    }

    /// Where the table is.
    pub(crate) fn resume(&self) -> &Resume {
        &self.resume
    }

    /// Whether the table, where there is one, is what a stream can go on from, and is to stay.
    pub(crate) fn is_sound(&self) -> bool {
        self.schema.is_some() && self.incoming.is_none()
    }

    /// Takes what a session brings; then [`Intake::pop`] tells what is to be done.
    pub(crate) fn take(&mut self, input: Input) {
        match input {
            Input::Open(answer) => {
                self.close();
                self.answer(answer);
            }
            Input::Beside(answer) => self.answer(answer),
            // Whoever keeps the rows does it.
            #[cfg(debug_assertions)]
            Input::Plant(..) => {}
            Input::Message(message, received, _share) => {
                let is_handshake = matches!(message.message, Some(sync_response::Message::Handshake(_)));
                if self.opened.is_some() || is_handshake {
                    self.message(*message, received);
                }
            }
        }
    }

    /// The next thing to do, in their order; nothing where the next input is wanted.
    pub(crate) fn pop(&mut self) -> Option<Taken> {
        let next = self.taken.pop_front();
        if next.is_none()
            && let Some(question) = self.question.take()
        {
            self.report(question, None, None);
        }
        next
    }

    /// A transaction was applied to the table.
    pub(crate) fn applied(&mut self, reached: Reached) {
        let Reached { position, sequence, mark, schema, definition } = reached;
        self.resume.sequence = Some(sequence);
        self.redefined(definition);
        self.schema = schema.or_else(|| self.schema.take());
        self.moved(position, mark);
    }

    /// The table is of this definition from now on, if it is known.
    fn redefined(&mut self, definition: DefinitionVersion) {
        if definition.is_known() {
            self.resume.definition = definition;
        }
    }

    /// Nothing happened to the table up to here. `mark` is the newest commit of any table at or before it, where that is known.
    pub(crate) fn moved(&mut self, position: Lsn, mark: Option<CommitMark>) {
        let known = (self.resume.position, self.resume.mark);
        (self.resume.position, self.resume.mark) = newer(known, (position, mark));
        self.shown = self.shown.max(position);
    }

    /// There is no table any more, so that only a full snapshot is of use.
    pub(crate) fn forget(&mut self) {
        self.schema = None;
    }

    /// What more comes of this stream comes to nothing.
    pub(crate) fn close(&mut self) {
        self.assembler.reset();
        self.opened = None;
        self.incoming = None;
        self.question = None;
        self.transit = Transit::default();
    }

    /// The table can no longer be gone on from.
    pub(crate) fn start_over(&mut self, error: ReplicaError) {
        self.forget();
        self.give_up(error, true);
    }

    /// Compares the checksum of the rows at a position with the server's, and answers the server where it asked. Returns whether they are
    /// given up, to be loaded again.
    pub(crate) fn compare(&mut self, position: Lsn, (ours, rows): (Checksum, Option<usize>), theirs: Checksum) -> bool {
        if let Some(question) = self.question.take_if(|question| question.position == position) {
            self.report(question, Some(ours), rows);
        }
        let verdict = self.comparison.judge(ours == theirs, (self.health.now)());
        let table = &self.health.table;
        match verdict {
            Verdict::Same => self.health.agrees(position),
            Verdict::Known => {}
            Verdict::Tolerated(pause) => {
                self.health.differs();
                let pause_s = pause.as_secs();
                tracing::error!(
                    %table, %position, %ours, %theirs, pause_s,
                    "the rows differ from the server's again, though they were loaded again; they are served meanwhile"
                );
            }
            Verdict::LoadAgain => {
                self.health.differs();
                tracing::error!(
                    %table, %position, %ours, %theirs,
                    "the rows differ from the server's, by the checksums at one position; all are loaded again"
                );
                self.contents_differed = true;
                self.start_over(ReplicaError::Contents { position, ours, theirs });
            }
        }
        verdict == Verdict::LoadAgain
    }

    /// Answers a server's question; without a checksum where there is none of the rows at its position.
    fn report(&self, question: Question, checksum: Option<Checksum>, rows: Option<usize>) {
        let Question { position, check } = question;
        let TableName { schema, table } = self.health.table.clone();
        let report = ReportChecksumRequest {
            schema,
            table,
            check,
            source_position: position.to_string(),
            checksum: checksum.map_or_else(Vec::new, |checksum| checksum.to_bytes().to_vec()),
            row_count: rows.and_then(|rows| i64::try_from(rows).ok()),
        };
        // Where nobody hears it, the session is being stopped.
        let _ = self.feedback.send(Feedback::Report(report));
    }

    /// The status says so once the table has what the server had when the stream began.
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

    fn answer(&self, answer: oneshot::Sender<Resume>) {
        let resume = self.schema.as_ref().map(|_| self.resume.clone());
        let nowhere = || Resume { contents_differed: self.contents_differed, ..Resume::default() };
        // Where nobody waits for the answer any more, the session is being stopped.
        let _ = answer.send(resume.unwrap_or_else(nowhere));
    }

    fn message(&mut self, message: SyncResponse, received: Instant) {
        let state = self.schema.as_ref().map(|schema| (schema, self.resume.position));
        match self.assembler.feed(message, state) {
            Ok(Event::Nothing) => {}
            Ok(Event::Opened(handshake)) => self.open(handshake),
            Ok(Event::Snapshot { table, position, sequence, mark, definition, checksum }) => {
                let ours = (table.checksum(), Some(table.len()));
                if !checksum.is_some_and(|theirs| self.compare(position, ours, theirs)) {
                    self.receive(Incoming::new(table, position, sequence, mark, definition));
                }
            }
            Ok(Event::Transaction { transaction, sequence, mark, definition }) => {
                self.transaction(transaction, (sequence, definition), mark);
            }
            Ok(Event::Repeated { sequence, definition }) => match &mut self.incoming {
                Some(incoming) => incoming.reached(sequence, definition),
                None => {
                    self.resume.sequence = Some(sequence);
                    self.redefined(definition);
                }
            },
            Ok(Event::Heartbeat { server_time, position, mark, checksum, check }) => {
                self.question = position.zip(check).map(|(position, check)| Question { position, check });
                let sent = position.map(|position| SentPosition { position, mark, checksum });
                self.heartbeat(sent, server_time, received);
            }
            Err(AssembleError::Protocol(error)) => self.start_over(ReplicaError::Protocol(error)),
            Err(AssembleError::Encoding) => self.give_up(ReplicaError::Encoding, false),
            Err(AssembleError::Index(error)) => self.start_over(error.into()),
            Err(AssembleError::Schema(position)) => self.start_over(ReplicaError::Schema { position }),
        }
    }

    fn open(&mut self, handshake: Box<SyncHandshake>) {
        tracing::debug!(mode = ?handshake.mode(), reason = handshake.reason, "stream opened");
        self.health.opened(&handshake);
        self.compare_histories(&handshake);
        if self.assembler.is_live() {
            self.adopt(&handshake);
            self.moved(self.resume.position, None);
            self.taken.push_back(Taken::Resumed);
        } else if let Err(error) = self.goal(&handshake) {
            // Its snapshot need not even be taken.
            return self.give_up(error, false);
        } else {
            self.taken.push_back(Taken::Promised { reason: handshake.reason.clone(), shared_until: self.shared_until });
        }
        self.opened = Some(handshake);
    }

    /// Notes what is known of the history of a stream that begins. A journal is of one history.
    fn compare_histories(&mut self, handshake: &SyncHandshake) {
        if self.assembler.is_live() {
            self.shared_until = Lsn(u64::MAX);
        } else if handshake.instance_id.is_empty() || handshake.instance_id != self.followed {
            // Without a table no position was presented, and the server cannot know.
            let known = self.schema.as_ref().map(|_| Lsn(handshake.shared_position));
            self.shared_until = known.unwrap_or(Lsn::ZERO);
        }
        self.followed.clone_from(&handshake.instance_id);
    }

    /// The stream's own state is the table from here on.
    pub(crate) fn shown_state(&mut self) {
        self.shared_until = Lsn(u64::MAX);
    }

    /// From which position on a stream's own state may be shown, so that nobody is taken back.
    ///
    /// # Errors
    /// When the server has not come so far.
    fn goal(&self, handshake: &SyncHandshake) -> Result<Lsn, ReplicaError> {
        let (ours, theirs) = (self.shown, Lsn(handshake.server_current_position));
        if handshake.another_history || handshake.source != self.resume.source {
            // Of another database or history: what was shown may lie beyond everything it will ever have.
            return Ok(ours.min(theirs));
        }
        if theirs < ours && theirs != Lsn::ZERO {
            return Err(ReplicaError::Behind { ours, theirs });
        }
        Ok(ours)
    }

    /// From here on the table is of this stream's journal.
    fn adopt(&mut self, handshake: &SyncHandshake) {
        if self.resume.instance_id != handshake.instance_id {
            self.resume.instance_id.clone_from(&handshake.instance_id);
            self.resume.sequence = None;
        }
        self.resume.source.clone_from(&handshake.source);
        self.resume.definition = DefinitionVersion(handshake.definition);
    }

    /// A whole snapshot, which may be older than what was shown.
    fn receive(&mut self, mut incoming: Incoming) {
        let Some(goal) = self.opened.as_ref().map(|handshake| self.goal(handshake)) else { return };
        match goal {
            Ok(goal) => {
                incoming.goal = goal;
                self.incoming = Some(Box::new(incoming));
                self.reveal();
            }
            Err(error) => self.give_up(error, false),
        }
    }

    /// Gives the stream's own state out in the place of the old one, in one step, if it is new enough.
    fn reveal(&mut self) {
        let Some(incoming) = self.incoming.take_if(|incoming| incoming.is_due()) else { return };
        let Incoming { table, position, committed_at, sequence, mark, definition, .. } = *incoming;
        let Some(handshake) = self.opened.take() else { return };
        self.adopt(&handshake);
        self.opened = Some(handshake);
        (self.resume.position, self.resume.mark) = newer((Lsn::ZERO, None), (position, mark));
        self.resume.sequence = Some(sequence);
        self.redefined(definition);
        self.shown = position;
        self.schema = Some(table.schema().clone());
        self.contents_differed = false;
        self.taken.push_back(Taken::State { table, position, committed_at });
    }

    fn transaction(
        &mut self,
        transaction: Transaction,
        (sequence, definition): (Sequence, DefinitionVersion),
        mark: Option<CommitMark>,
    ) {
        if let Some(incoming) = &mut self.incoming {
            incoming.reached(sequence, definition);
            return match incoming.apply(&transaction, mark) {
                Ok(()) => self.reveal(),
                Err(error) => self.start_over(error.into()),
            };
        }
        let schema = transaction.changes.iter().rev().find_map(|change| match change {
            Change::Schema(schema) => Some(schema.clone()),
            _ => None,
        });
        let reached = Reached { position: transaction.position, sequence, mark, schema, definition };
        self.taken.push_back(Taken::Transaction { transaction, reached });
    }

    /// With a position it comes when everything that the server had at its time was sent: only then is anything known of the table's
    /// age. It counts from when the heartbeat was received, and from earlier if it was long under way.
    fn heartbeat(&mut self, sent: Option<SentPosition>, server_time: Option<Timestamp>, received: Instant) {
        let since_start = received.saturating_duration_since(self.started);
        let excess = server_time.map_or(Duration::ZERO, |sent| self.transit.excess(since_start, &sent));
        let Some(SentPosition { position, mark, checksum }) = sent.filter(|_| self.assembler.is_live()) else { return };
        if let Some(incoming) = &mut self.incoming {
            incoming.moved(position, mark);
            self.reveal();
        }
        if self.incoming.is_none() {
            let at = received.checked_sub(excess).unwrap_or(self.started);
            // What is newer than the heartbeat's position has another checksum, and another newest commit.
            let is_newest = position >= self.resume.position;
            let (mark, checksum) = (mark.filter(|_| is_newest), checksum.filter(|_| is_newest));
            self.taken.push_back(Taken::Current { position: position.max(self.resume.position), at, mark, checksum });
        }
    }

    /// The stream is of no use any more, nor is what it brought and nobody has taken yet.
    fn give_up(&mut self, error: ReplicaError, starts_over: bool) {
        tracing::warn!(%error, "the stream is given up");
        self.close();
        self.taken.clear();
        self.taken.push_back(Taken::GivenUp { starts_over });
        // Where nobody hears it, the session is being stopped.
        let _ = self.feedback.send(Feedback::Fault(error));
    }
}

/// What a waiting message counts for.
pub(crate) fn weight(message: &SyncResponse) -> usize {
    let entries = match &message.message {
        Some(sync_response::Message::Batch(batch)) => batch.entries.len(),
        _ => 0,
    };
    size_of::<SyncResponse>() + entries
}
