//! The loop on a replication connection: it receives messages, sends events, and reports its
//! position to PostgreSQL.
//!
//! Events are sent into a bounded channel. While the consumer takes none, nothing is read, and
//! PostgreSQL waits. It still gets a status message every second; otherwise it would end the
//! connection. A connection that breaks is made again, and the stream resumes after the last commit
//! that was reported.

mod backoff;
mod error;
mod pending;
mod position_requests;
mod session;
mod start;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Lsn, TableName};
use laredo_engine::source::{
    AcknowledgedPosition, SourceError, SourceEvent, SourceServer, SourceState, SourceStateReporter,
};
use laredo_engine::spool::SpoolOptions;
use laredo_engine::{Fork, ForkReceipt};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use pending::StreamQueueItem;

use crate::assemble::{PgoutputAssembler, StreamedTables, TableRoutes};
use crate::ddl::DdlWatch;
pub use crate::history_proof::{HistoryMismatch, KeptTable};
use crate::options::ConnectionOptions;
pub use crate::signals::SourceSignals;
use crate::signals::WalEndReading;
pub use crate::slot::SlotMode;
use crate::transport::{ReplicationMessage, ReplicationReader, ReplicationWriter};
pub use backoff::ReconnectOptions;
use error::StreamError;
use position_requests::PositionRequestRule;
use session::ReplicationSession;

/// The interval of status messages to PostgreSQL. If the position does not move, each also asks
/// PostgreSQL for its position. By itself, PostgreSQL may report it only every 20 s while it reads
/// WAL that does not concern the stream.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// The silence after which a server counts as gone, although it was asked every second.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The number of requests for an answer in [`ASKED_WITHIN`] after which the connection is ended. A
/// server that shuts down repeats its request, one for each answer, until everything is
/// acknowledged. It does not end before. Commits that are not acknowledged stay in the slot.
const ASKED_MAX: u32 = 10;
/// The time in which requests are counted. On a busy machine an answer takes a tenth of a second.
/// Otherwise a server requests one at most every half of its `wal_sender_timeout`.
const ASKED_WITHIN: Duration = Duration::from_secs(5);
/// The size of a transaction or block from which changes are read in batches, in bytes. PostgreSQL
/// sends each change in a packet of its own. Waking up for each costs both sides more than the
/// change itself.
const GATHER_BYTES: usize = 64 * 1024;
/// The time for which such changes are gathered.
const GATHER: Duration = Duration::from_millis(1);
/// The time without room in the consumer after which the connection is given up.
const ROOM_PATIENCE: Duration = Duration::from_secs(60);
/// The time for a check of the definitions after which the connection is given up.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);
/// The duration after which a connection counts as good, so that counting attempts starts again.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// The options for following a database.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// The connection to the database.
    pub connection: ConnectionOptions,
    /// The replication slot to use.
    pub slot: SlotMode,
    /// The publication's name.
    pub publication: String,
    /// True if the publication may be created again after it was dropped.
    pub creates_publication: bool,
    /// The tables at the beginning, in the order of their [`laredo_engine::source::TableIndex`].
    /// The publication may contain more.
    pub tables: Vec<TableName>,
    /// The retries after a lost connection.
    pub reconnect: ReconnectOptions,
    /// The storage of transactions until they commit.
    pub spool: Arc<SpoolOptions>,
    /// The seed for the jitter of reconnects.
    pub seed: u64,
    /// The position that an earlier run has received. `None` to begin where the slot is.
    pub from: Option<Lsn>,
    /// The state that an earlier run has kept of each table that is followed from there on.
    pub kept: Vec<KeptTable>,
    /// The server of the database at the start. `None` to accept what the first connection finds.
    pub server: Option<SourceServer>,
    /// The way in which changes of definitions are noticed.
    pub ddl: DdlWatch,
}

/// Sends every commit into `events` until that is closed. The error that ends a connection is
/// reported, and another connection is made.
///
/// # Errors
/// Errors of the database or the network are never returned.
pub async fn follow(
    options: &StreamOptions,
    signals: &SourceSignals,
    events: mpsc::Sender<SourceEvent>,
    acknowledged: AcknowledgedPosition,
    reporter: &SourceStateReporter,
) -> Result<(), SourceError> {
    let mut assembler = PgoutputAssembler::new(options.tables.iter().cloned(), Arc::clone(&options.spool));
    signals.begin_tables(&options.tables);
    let tables = signals.tables();
    // Routes of an earlier run, which a new receiver does not see as changed.
    let routes = signals.routes();
    assembler.reroute(&routes.borrow(), &mut VecDeque::new());
    let stream = ReplicationStream {
        options,
        signals,
        reporter,
        routes,
        tables,
        wal_end: signals.wal_end(),
        ahead: None,
        resets: signals.resets(),
        assembler,
        queue: VecDeque::new(),
        fresh: VecDeque::new(),
        checking: None,
        events: events.clone(),
        acknowledged,
        floor: Lsn::ZERO,
        received: Lsn::ZERO,
        asking: PositionRequestRule::default(),
        answer_requests: AnswerRequests::new(),
        unfinished_bytes: 0,
    };
    tokio::select! {
        result = stream.run() => result,
        () = events.closed() => Ok(()),
    }
}

struct ReplicationStream<'a> {
    options: &'a StreamOptions,
    signals: &'a SourceSignals,
    reporter: &'a SourceStateReporter,
    routes: watch::Receiver<TableRoutes>,
    tables: watch::Receiver<StreamedTables>,
    wal_end: watch::Receiver<Option<WalEndReading>>,
    /// The end of the WAL that the stream has not come to yet.
    ahead: Option<WalEndReading>,
    resets: watch::Receiver<u64>,
    assembler: PgoutputAssembler,
    /// Items that are complete and that the consumer has not taken yet. They survive the
    /// connection.
    queue: VecDeque<StreamQueueItem>,
    /// Events that the current message has completed.
    fresh: VecDeque<SourceEvent>,
    /// The number of the check that is waited for.
    checking: Option<u64>,
    events: mpsc::Sender<SourceEvent>,
    acknowledged: AcknowledgedPosition,
    /// The position that the slot has already confirmed. No lower position is reported, since
    /// servers before 18 would go back to it.
    floor: Lsn,
    received: Lsn,
    asking: PositionRequestRule,
    answer_requests: AnswerRequests,
    /// The number of bytes received of the current transaction or block.
    unfinished_bytes: usize,
}

/// The requests of PostgreSQL for an answer.
struct AnswerRequests {
    count: u32,
    /// The time since which they are counted.
    since: Instant,
}

impl AnswerRequests {
    fn new() -> AnswerRequests {
        AnswerRequests { count: 0, since: Instant::now() }
    }

    /// Counts a request, and returns the number of recent ones.
    fn add(&mut self) -> u32 {
        if self.since.elapsed() > ASKED_WITHIN {
            *self = AnswerRequests::new();
        }
        self.count += 1;
        self.count
    }
}

impl ReplicationStream<'_> {
    async fn run(mut self) -> Result<(), SourceError> {
        let mut rng = StdRng::seed_from_u64(self.options.seed);
        let mut start = start::StreamStarter::new(self.options);
        let mut attempts = 0;
        loop {
            let began = Instant::now();
            let before = self.assembler.position();
            if self.resets.has_changed().unwrap_or(false) {
                self.resets.mark_unchanged();
                start.reset();
            }
            let error = match start.open(self.signals, self.assembler.sent()).await {
                Ok(session) => self.connected(&mut start, session).await,
                Err(error) => error,
            };
            if let Some((reason, common)) = error.as_fork() {
                self.fork(&mut start, reason, common).await?;
                continue;
            }
            let has_progressed = self.assembler.position() > before;
            start.failed(&error, has_progressed);
            if has_progressed || began.elapsed() >= GOOD_AFTER {
                attempts = 0;
            }
            // An operator's reset waits neither for room nor for the next attempt.
            let mut resets = self.resets.clone();
            match error {
                StreamError::Reset => {}
                StreamError::Closed => return Ok(()),
                StreamError::NoRoom(patience) => tokio::select! {
                    waited = self.wait_for_room(patience) => waited?,
                    Ok(()) = resets.changed() => {}
                },
                error => {
                    let state = state_after(&error, self.options.reconnect.delay(attempts, &mut rng));
                    attempts = attempts.saturating_add(1);
                    tokio::select! {
                        () = self.reporter.wait(state) => {}
                        Ok(()) = resets.changed() => {}
                    }
                }
            }
        }
    }

    /// Delivers what was received, without a connection, until the consumer has taken all of it.
    /// PostgreSQL keeps new commits in the meantime.
    async fn wait_for_room(&mut self, patience: Duration) -> Result<(), StreamError> {
        let why = match self.queue.front() {
            Some(StreamQueueItem::Check(_)) => "a changed definition could not be checked",
            Some(StreamQueueItem::Event(_)) | None => "the tables have accepted no events",
        };
        let reason = format!(
            "{why} for {} s, so the connection was given up; PostgreSQL keeps later commits in the slot",
            patience.as_secs()
        );
        self.reporter.report(SourceState::Paused { reason });
        while let Some(pending) = self.queue.front() {
            if let StreamQueueItem::Check(after) = pending {
                let number = *self.checking.get_or_insert_with(|| self.signals.request_check(*after));
                self.signals.wait_for_check(number).await;
                self.checking = None;
                self.queue.pop_front();
                continue;
            }
            let permit = self.events.reserve().await.map_err(|_| StreamError::Closed)?;
            if let Some(StreamQueueItem::Event(event)) = self.queue.pop_front() {
                permit.send(event);
            }
        }
        // Waits for room beyond what is already on its way.
        let _room = self.events.reserve_many(self.events.max_capacity() / 2).await.map_err(|_| StreamError::Closed)?;
        Ok(())
    }

    /// Follows one connection to its end.
    async fn connected(&mut self, start: &mut start::StreamStarter<'_>, session: ReplicationSession) -> StreamError {
        tracing::info!(
            event = "source_followed", from = %session.resume, slot = session.slot,
            "following the database"
        );
        self.reporter.report(SourceState::Following);
        // It may be the end of another history.
        self.ahead = None;
        if session.is_server_restarted {
            self.signals.record_restart(self.assembler.sent().newest());
        }
        self.assembler.connected(session.resume, session.recent);
        if session.is_new {
            self.assembler.begin_at(session.resume);
        }
        if let Some(proof) = session.proof {
            self.assembler.prove(proof);
        }
        let fork = session.unproven;
        if fork.is_some() {
            // Every table is copied again, so a check is not needed.
            self.queue.retain(|pending| matches!(pending, StreamQueueItem::Event(_)));
            self.checking = None;
            self.signals.withdraw_check();
        }
        let connected = SourceEvent::Connected { server_started: session.server_started };
        self.queue.push_back(StreamQueueItem::Event(connected));
        self.queue.extend(session.promoted.map(|server| StreamQueueItem::Event(SourceEvent::Promoted { server })));
        self.queue
            .extend(session.restarted.map(|reason| StreamQueueItem::Event(SourceEvent::Restarted { reason, fork })));
        self.floor = session.floor;
        self.received = session.resume;
        self.answer_requests = AnswerRequests::new();
        let (mut resets, signals) = (self.resets.clone(), self.signals);
        let error = tokio::select! {
            error = self.pump(session.reader, session.writer) => error,
            // What is complete is in the queue. A transaction that was being received is dropped,
            // as when a connection breaks.
            Ok(()) = resets.changed() => StreamError::Reset,
            () = signals.wait_for_publication_loss() => StreamError::PublicationLost,
        };
        start.ended(self.assembler.position(), !self.assembler.is_proving());
        error
    }

    /// Handles a fork of the history. Begins again once every table has recorded the fork.
    async fn fork(
        &mut self,
        start: &mut start::StreamStarter<'_>,
        reason: String,
        common: Lsn,
    ) -> Result<(), StreamError> {
        let fork = Fork { common, abandoned: self.signals.abandoned(start.reported()), is_certain: true };
        self.signals.record_fork(&reason);
        self.assembler = PgoutputAssembler::new([], Arc::clone(&self.options.spool));
        self.assembler.follow(&self.tables.borrow_and_update());
        let (noted, receipts) = ForkReceipt::new();
        self.queue.push_back(StreamQueueItem::Event(SourceEvent::Forked {
            server: start.server(),
            fork,
            reason,
            noted,
        }));
        self.checking = None;
        while let Some(pending) = self.queue.pop_front() {
            // Every table is copied again, so a check is not needed.
            if let StreamQueueItem::Event(event) = pending {
                self.events.send(event).await.map_err(|_| StreamError::Closed)?;
            }
        }
        receipts.wait_for_all().await;
        start.begin_again();
        Ok(())
    }

    async fn pump(&mut self, mut reader: ReplicationReader, mut writer: ReplicationWriter) -> StreamError {
        let mut tick = tokio::time::interval(STATUS_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = async {
                self.deliver(&mut tick, &mut writer).await?;
                self.read(&mut reader, &mut tick, &mut writer).await
            };
            if let Err(error) = step.await {
                return error;
            }
        }
    }

    /// Delivers what is complete. While the consumer is slow, PostgreSQL still gets status
    /// messages.
    async fn deliver(&mut self, tick: &mut Interval, writer: &mut ReplicationWriter) -> Result<(), StreamError> {
        let mut accepted_at = Instant::now();
        while let Some(pending) = self.queue.front() {
            if let StreamQueueItem::Check(after) = pending {
                let number = *self.checking.get_or_insert_with(|| self.signals.request_check(*after));
                tokio::select! {
                    () = self.signals.wait_for_check(number) => {
                        self.checking = None;
                        self.queue.pop_front();
                        accepted_at = Instant::now();
                    }
                    // The check is not made while PostgreSQL shuts down.
                    _ = tick.tick() => self.keep_waiting(accepted_at, LOOK_PATIENCE, writer).await?,
                }
                continue;
            }
            tokio::select! {
                permit = self.events.reserve() => {
                    let permit = permit.map_err(|_| StreamError::Closed)?;
                    if let Some(StreamQueueItem::Event(event)) = self.queue.pop_front() {
                        permit.send(event);
                    }
                    accepted_at = Instant::now();
                }
                _ = tick.tick() => self.keep_waiting(accepted_at, ROOM_PATIENCE, writer).await?,
            }
        }
        Ok(())
    }

    /// Reports to PostgreSQL during a wait. Ends a wait that takes too long, because PostgreSQL
    /// cannot shut down while a connection does not read.
    async fn keep_waiting(
        &self,
        since: Instant,
        patience: Duration,
        writer: &mut ReplicationWriter,
    ) -> Result<(), StreamError> {
        if since.elapsed() >= patience {
            return Err(StreamError::NoRoom(patience));
        }
        self.status(writer, false).await
    }

    /// Waits for a message, then takes all messages that have arrived with it.
    async fn read(
        &mut self,
        reader: &mut ReplicationReader,
        tick: &mut Interval,
        writer: &mut ReplicationWriter,
    ) -> Result<(), StreamError> {
        if self.unfinished_bytes >= GATHER_BYTES && !reader.buffered() {
            tokio::time::sleep(GATHER).await;
        }
        let waiting_since = Instant::now();
        let mut answer = loop {
            tokio::select! {
                biased;
                _ = tick.tick() => {
                    if waiting_since.elapsed() > SILENCE_MAX {
                        return Err(StreamError::Silent(SILENCE_MAX));
                    }
                    self.assembler.set_recent(self.signals.recent());
                    let ask = self.asking.is_due(self.assembler.position());
                    let position = self.assembler.position();
                    self.assembler.acknowledged((self.acknowledged)().min(position));
                    self.status(writer, ask).await?;
                }
                message = reader.next() => break self.take_message(message?.ok_or(StreamError::Ended)?)?,
                // One that is ahead is not replaced: a stream that is always a little behind would
                // come to none.
                Ok(()) = self.wal_end.changed(), if self.ahead.is_none() => {
                    self.ahead = *self.wal_end.borrow_and_update();
                    if self.note_current() {
                        return Ok(());
                    }
                }
            }
        };
        while reader.buffered() {
            answer |= self.take_message(reader.next().await?.ok_or(StreamError::Ended)?)?;
        }
        self.signals.record_progress(self.assembler.take_truncated(), self.assembler.position());
        if self.assembler.take_announced() {
            self.signals.announce_change();
        }
        self.queue.extend(self.assembler.progress().map(StreamQueueItem::Event));
        self.note_current();
        if answer {
            if self.answer_requests.add() > ASKED_MAX {
                return Err(StreamError::Ended);
            }
            self.status(writer, false).await?;
        }
        Ok(())
    }

    /// Reports that the stream has come to the end of the WAL of some time, if it has. Returns true
    /// if it has. PostgreSQL itself reports no progress while nothing is written.
    fn note_current(&mut self) -> bool {
        let position = self.assembler.position();
        let is_proving = self.assembler.is_proving();
        let Some(WalEndReading { at, .. }) = self.ahead.take_if(|ahead| ahead.end <= position && !is_proving) else {
            return false;
        };
        self.queue.push_back(StreamQueueItem::Event(SourceEvent::Current { position, at }));
        true
    }

    /// Takes a message. Returns true if PostgreSQL requests an answer.
    fn take_message(&mut self, message: ReplicationMessage<'_>) -> Result<bool, StreamError> {
        match message {
            ReplicationMessage::XLogData { start, data, .. } => {
                self.received = self.received.max(start);
                // A table is added before its copy sets the route.
                if self.tables.has_changed().unwrap_or(false) {
                    self.assembler.follow(&self.tables.borrow_and_update());
                }
                // A copy sets its route before it waits for earlier writers, so later changes
                // arrive after the route.
                if self.routes.has_changed().unwrap_or(false) {
                    self.assembler.reroute(&self.routes.borrow_and_update(), &mut self.fresh);
                }
                self.assembler.take_message(data, &mut self.fresh)?;
                pending::enqueue(&mut self.queue, &mut self.fresh, self.assembler.take_ddl());
                self.unfinished_bytes = match self.assembler.is_inside() {
                    true => self.unfinished_bytes + data.len(),
                    false => 0,
                };
                Ok(false)
            }
            ReplicationMessage::KeepAlive { wal_end, reply_requested, .. } => {
                self.received = self.received.max(wal_end);
                self.assembler.keepalive(wal_end)?;
                Ok(reply_requested)
            }
        }
    }

    /// Reports to PostgreSQL what has arrived and what it may forget.
    async fn status(&self, writer: &mut ReplicationWriter, ask: bool) -> Result<(), StreamError> {
        let position = self.assembler.position();
        // Never more than has arrived, whatever the consumer reports.
        let acknowledged = self.assembler.hold((self.acknowledged)().min(position));
        let is_unknown = acknowledged < self.floor || self.assembler.is_proving();
        let flushed = if is_unknown { Lsn::ZERO } else { acknowledged };
        let received = self.received.max(position);
        Ok(writer.standby_status(received, flushed, flushed, ask).await?)
    }
}

/// Returns the state of a stream that has ended with an error and tries again after `delay`. `None`
/// if no attempt is left.
fn state_after(error: &StreamError, delay: Option<Duration>) -> SourceState {
    let reason = error.to_string();
    match error {
        StreamError::Held(_) => SourceState::standby(reason),
        error if error.is_transient() => SourceState::retrying(reason, delay),
        _ => SourceState::refused(reason, delay),
    }
}
