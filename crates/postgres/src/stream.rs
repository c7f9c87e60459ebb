//! The loop on a replication connection: messages in, events out, and word to PostgreSQL about both.
//!
//! Events are sent into a bounded channel. While nobody takes them nothing is read, and PostgreSQL waits; it still
//! hears from us every second, or it would end the connection. A connection that breaks is made again, and the stream
//! goes on after the last commit that was told.

mod asking;
mod backoff;
mod error;
mod pending;
mod proof;
mod session;
mod start;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitMark, Lsn, Oid, TableName, Xid};
use laredo_engine::retention::Retention;
use laredo_engine::source::{
    Acknowledged, DefinitionLooks, SourceClock, SourceError, SourceEvent, SourceIdentity, SourceState, StateReporter,
    TableIndex,
};
use laredo_engine::spool::SpoolOptions;
use laredo_engine::{Fork, Receipt};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use pending::Pending;

use crate::assemble::{Assembler, RelationIdentity, Route, Routes};
use crate::ddl::DdlWatch;
use crate::options::ConnectionOptions;
use crate::transport::{ReplicationMessage, ReplicationReader, ReplicationWriter};
use asking::Asking;
pub use backoff::ReconnectOptions;
use error::StreamError;
pub use proof::{KeptTable, Mismatch};
pub(crate) use proof::{Proof, SentCommits};
use session::Session;
pub use start::SlotMode;

/// How often PostgreSQL hears from us, at least; and how often it is asked how far it is while the position stands still.
/// Its own word may come as rarely as every 20 s while it reads WAL that is not ours.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// A server that was asked every second and says nothing for so long is taken for gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A server that shuts down asks again and again until everything is acknowledged, and does not end before. One that
/// asks so often between two words of ours is let go: what is not acknowledged stays in the slot.
const ASKED_MAX: u32 = 10;
/// PostgreSQL sends each change in a packet of its own. Of a transaction that is already so large, changes are taken
/// many at once: to be woken for each costs both sides more than the change itself.
const GATHER_BYTES: usize = 64 * 1024;
/// How long they are gathered.
const GATHER: Duration = Duration::from_millis(1);
/// A connection is given up when nothing was taken of it for so long.
const ROOM_PATIENCE: Duration = Duration::from_secs(60);
/// A connection that lasted so long was a good one: counting attempts begins anew.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// What following a database needs.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Where the database is.
    pub connection: ConnectionOptions,
    /// Which slot to use.
    pub slot: SlotMode,
    /// The publication's name.
    pub publication: String,
    /// True if the publication may be created again where it is gone.
    pub creates_publication: bool,
    /// The tables, in the order of their [`laredo_engine::source::TableIndex`]. The publication may have more.
    pub tables: Vec<TableName>,
    /// How a lost connection is made again.
    pub reconnect: ReconnectOptions,
    /// Where transactions are kept until they commit.
    pub spool: Arc<SpoolOptions>,
    /// Seeds the jitter of reconnects.
    pub seed: u64,
    /// What was received in an earlier run; `None` to begin where the slot is.
    pub from: Option<Lsn>,
    /// The state that an earlier run has kept of each table that is followed from there on.
    pub kept: Vec<KeptTable>,
    /// The database as it was found at the start; `None` to take what the first connection finds.
    pub identity: Option<SourceIdentity>,
    /// The way in which changes of definitions are noticed.
    pub ddl: DdlWatch,
}

/// What the stream and the source's other connections tell each other.
#[derive(Debug)]
pub struct Signals {
    /// Counts the slots: the first that was found or made, and each that had to be made (or begun elsewhere) since. From
    /// one on, whatever commits is kept for the stream.
    pub slots: watch::Sender<u64>,
    /// A transaction id that the server gave out lately.
    pub recent: watch::Sender<Xid>,
    /// The tables that rows are copied from, or were, by their numbers.
    pub routes: watch::Sender<Routes>,
    /// One of the tables was announced: its definition may have changed.
    pub announced: Notify,
    /// When each table's definition was looked at.
    pub looks: watch::Sender<DefinitionLooks>,
    /// The look that the stream waits for.
    pub look_wanted: watch::Sender<WantedLook>,
    /// The number of the last look that the stream waited for.
    pub looked: watch::Sender<u64>,
    /// Who last truncated a table, as the stream has told.
    pub truncated: watch::Sender<BTreeMap<Oid, u32>>,
    /// How far the stream has come.
    pub reached: watch::Sender<Lsn>,
    /// What the slot keeps for the stream.
    pub retention: watch::Sender<Retention>,
    /// How often somebody wanted the slot to be dropped and made again.
    pub resets: watch::Sender<u64>,
    /// True once there is a slot of the database's present history: no copy may begin before.
    pub has_slot: watch::Sender<bool>,
    /// The number of forks of the database's history.
    pub forks: watch::Sender<u64>,
    /// The number of restarts of PostgreSQL, and the newest commit before the last one: those up to it are proven.
    pub(crate) restarts: watch::Sender<(u64, CommitMark)>,
    /// The furthest that the database's WAL was seen to reach.
    pub written: watch::Sender<Lsn>,
    /// The database's clock.
    pub clock: SourceClock,
}

/// Other servers may have told positions of an abandoned history that lie further ahead than anything seen here.
const ABANDONED_SLACK: u64 = 16 << 20;

/// A look at the definitions that the stream waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WantedLook {
    /// Counts them.
    pub number: u64,
    /// The transaction that has to be visible.
    pub after: Option<Xid>,
}

impl Default for Signals {
    fn default() -> Signals {
        Signals::new()
    }
}

impl Signals {
    /// Nothing told yet.
    #[must_use]
    pub fn new() -> Signals {
        Signals {
            slots: watch::Sender::new(0),
            recent: watch::Sender::new(Xid(0)),
            routes: watch::Sender::default(),
            announced: Notify::new(),
            looks: watch::Sender::default(),
            look_wanted: watch::Sender::default(),
            looked: watch::Sender::default(),
            truncated: watch::Sender::default(),
            reached: watch::Sender::new(Lsn::ZERO),
            retention: watch::Sender::default(),
            resets: watch::Sender::new(0),
            has_slot: watch::Sender::new(false),
            forks: watch::Sender::new(0),
            restarts: watch::Sender::default(),
            written: watch::Sender::new(Lsn::ZERO),
            clock: SourceClock::default(),
        }
    }

    /// Forgets what belongs to the run before: a new one begins, of a database that may be another one.
    pub(crate) fn begin_run(&self) {
        self.resets.send_replace(0);
        self.has_slot.send_replace(false);
        self.forget_look();
        self.recent.send_replace(Xid(0));
        self.reached.send_replace(Lsn::ZERO);
        self.routes.send_modify(BTreeMap::clear);
        self.truncated.send_modify(BTreeMap::clear);
        self.looks.send_replace(DefinitionLooks::default());
    }

    /// Wants a look at the definitions once a transaction is visible, and returns its number.
    fn want_look(&self, after: Xid) -> u64 {
        self.look_wanted.send_modify(|wanted| *wanted = WantedLook { number: wanted.number + 1, after: Some(after) });
        self.look_wanted.borrow().number
    }

    /// Withdraws a look that is wanted: its transaction may be one of another history, which is never visible in this one.
    fn forget_look(&self) {
        self.look_wanted.send_modify(|wanted| wanted.after = None);
        self.looked.send_replace(self.look_wanted.borrow().number);
    }

    /// Waits for a look that is wanted.
    async fn looked(&self, number: u64) {
        // The sender is there as long as we are.
        let _ = self.looked.subscribe().wait_for(|looked| *looked >= number).await;
    }

    /// Waits until a look is wanted.
    pub(crate) async fn look_is_wanted(&self) {
        let looked = *self.looked.borrow();
        // As above.
        let _ = self.look_wanted.subscribe().wait_for(|wanted| wanted.number > looked).await;
    }

    /// Has a table followed by this number. Returns whether it was followed by another one, or its changes went elsewhere.
    pub(crate) fn route(&self, table: TableIndex, identity: RelationIdentity) -> bool {
        let mut is_other = false;
        self.routes.send_modify(|routes| {
            let before = routes.get(&table);
            is_other = before.is_none_or(|before| before.identity.oid != identity.oid);
            let copies = before.map_or(0, |before| before.copies) + 1;
            routes.retain(|of, route| *of == table || route.identity.oid != identity.oid);
            routes.insert(table, Route { copies, identity });
        });
        is_other
    }

    /// The position beyond which none of an abandoned history is expected, where the stream had come to `told`.
    fn abandoned(&self, told: Lsn) -> Lsn {
        Lsn(told.max(*self.written.borrow()).0.saturating_add(ABANDONED_SLACK))
    }

    /// Forgets what was learned of the database, which has another history now.
    fn fork(&self, reason: &str) {
        self.has_slot.send_replace(false);
        self.forget_look();
        self.forks.send_modify(|forks| *forks += 1);
        self.written.send_replace(Lsn::ZERO);
        self.recent.send_replace(Xid(0));
        self.reached.send_replace(Lsn::ZERO);
        self.routes.send_modify(BTreeMap::clear);
        self.truncated.send_modify(BTreeMap::clear);
        self.retention.send_modify(|known| {
            known.forks += 1;
            known.last_fork = Some(reason.to_owned());
        });
    }

    /// Tells, as loud as can be, that a slot could not be gone on with.
    pub(crate) fn lost(&self, reason: &str) {
        tracing::error!(%reason, "every table has to be copied again");
        self.retention.send_modify(|known| {
            known.losses += 1;
            known.last_loss = Some(reason.to_owned());
        });
    }
}

/// Sends every commit into `events` until that is closed. Whatever ends a connection is reported, and another one is made.
///
/// # Errors
/// None that the database or the network causes.
pub async fn follow(
    options: &StreamOptions,
    signals: &Signals,
    events: mpsc::Sender<SourceEvent>,
    acknowledged: Acknowledged,
    reporter: &StateReporter,
) -> Result<(), SourceError> {
    let mut resets = signals.resets.subscribe();
    if *resets.borrow() > 0 {
        // It was asked for before there was a stream.
        resets.mark_changed();
    }
    let mut assembler = Assembler::new(options.tables.iter().cloned(), Arc::clone(&options.spool));
    // Those of an earlier run, which a new receiver takes for seen.
    assembler.reroute(&signals.routes.borrow(), &mut VecDeque::new());
    let stream = Stream {
        options,
        signals,
        reporter,
        routes: signals.routes.subscribe(),
        resets,
        assembler,
        queue: VecDeque::new(),
        fresh: VecDeque::new(),
        looking: None,
        events: events.clone(),
        acknowledged,
        floor: Lsn::ZERO,
        received: Lsn::ZERO,
        asking: Asking::default(),
        asked: 0,
        unfinished_bytes: 0,
    };
    tokio::select! {
        result = stream.run() => result,
        () = events.closed() => Ok(()),
    }
}

struct Stream<'a> {
    options: &'a StreamOptions,
    signals: &'a Signals,
    reporter: &'a StateReporter,
    routes: watch::Receiver<Routes>,
    resets: watch::Receiver<u64>,
    assembler: Assembler,
    /// Complete, and not yet taken by the consumer. Survives the connection.
    queue: VecDeque<Pending>,
    /// Completed by the message that is being taken.
    fresh: VecDeque<SourceEvent>,
    /// The look that is waited for.
    looking: Option<u64>,
    events: mpsc::Sender<SourceEvent>,
    acknowledged: Acknowledged,
    /// What the slot has confirmed already. Nothing below is reported: servers before 18 would go back.
    floor: Lsn,
    received: Lsn,
    asking: Asking,
    /// How often PostgreSQL asked for an answer since it last heard from us by itself.
    asked: u32,
    /// Bytes of the transaction, or block, that is being received.
    unfinished_bytes: usize,
}

impl Stream<'_> {
    async fn run(mut self) -> Result<(), SourceError> {
        let mut rng = StdRng::seed_from_u64(self.options.seed);
        let mut start = start::Start::new(self.options);
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
            // An operator's reset waits neither for room nor for an attempt.
            let mut resets = self.resets.clone();
            match error {
                StreamError::Reset => {}
                StreamError::Closed => return Ok(()),
                StreamError::NoRoom(_) => tokio::select! {
                    waited = self.wait_for_room() => waited?,
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

    /// Hands over what was received, without a connection, until all of it is taken. PostgreSQL keeps what commits meanwhile.
    async fn wait_for_room(&mut self) -> Result<(), StreamError> {
        let reason = format!(
            "the tables have taken nothing for {} s, so the connection was given up; PostgreSQL keeps what commits in the slot",
            ROOM_PATIENCE.as_secs()
        );
        self.reporter.report(SourceState::Paused { reason });
        while let Some(pending) = self.queue.front() {
            if let Pending::Look(after) = pending {
                let number = *self.looking.get_or_insert_with(|| self.signals.want_look(*after));
                self.signals.looked(number).await;
                self.looking = None;
                self.queue.pop_front();
                continue;
            }
            let permit = self.events.reserve().await.map_err(|_| StreamError::Closed)?;
            if let Some(Pending::Event(event)) = self.queue.pop_front() {
                permit.send(event);
            }
        }
        // Room for more than what is on its way.
        let _room = self.events.reserve_many(self.events.max_capacity() / 2).await.map_err(|_| StreamError::Closed)?;
        Ok(())
    }

    /// Follows one connection to its end.
    async fn connected(&mut self, start: &mut start::Start<'_>, session: Session) -> StreamError {
        tracing::info!(from = %session.resume, slot = session.slot, "following the database");
        self.reporter.report(SourceState::Following);
        if session.is_server_restarted {
            let proven = self.assembler.sent().newest();
            self.signals.restarts.send_modify(|restarts| *restarts = (restarts.0 + 1, proven));
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
            // Every table is copied again, whatever a look would find.
            self.queue.retain(|pending| matches!(pending, Pending::Event(_)));
            self.looking = None;
            self.signals.forget_look();
        }
        self.queue.extend(session.promoted.map(|identity| Pending::Event(SourceEvent::Promoted { identity })));
        self.queue.extend(session.restarted.map(|reason| Pending::Event(SourceEvent::Restarted { reason, fork })));
        self.floor = session.floor;
        self.received = session.resume;
        let mut resets = self.resets.clone();
        let error = tokio::select! {
            error = self.pump(session.reader, session.writer) => error,
            // What is complete is in the queue; what was being received comes to nothing, as when a connection breaks.
            Ok(()) = resets.changed() => StreamError::Reset,
        };
        start.ended(self.assembler.position(), !self.assembler.is_proving());
        error
    }

    /// The database has another history than the one that was sent. Begins again once every table has noted that.
    async fn fork(&mut self, start: &mut start::Start<'_>, reason: String, common: Lsn) -> Result<(), StreamError> {
        let fork = Fork { common, abandoned: self.signals.abandoned(start.told()), is_certain: true };
        self.signals.fork(&reason);
        self.assembler = Assembler::new(self.options.tables.iter().cloned(), Arc::clone(&self.options.spool));
        let (noted, receipts) = Receipt::new();
        self.queue.push_back(Pending::Event(SourceEvent::Forked { identity: start.identity(), fork, reason, noted }));
        self.looking = None;
        while let Some(pending) = self.queue.pop_front() {
            // Every table is copied again, whatever a look would find.
            if let Pending::Event(event) = pending {
                self.events.send(event).await.map_err(|_| StreamError::Closed)?;
            }
        }
        receipts.all().await;
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

    /// Hands over what is complete. While the consumer is slow, PostgreSQL still hears from us.
    async fn deliver(&mut self, tick: &mut Interval, writer: &mut ReplicationWriter) -> Result<(), StreamError> {
        let mut taken_at = Instant::now();
        while let Some(pending) = self.queue.front() {
            if let Pending::Look(after) = pending {
                let number = *self.looking.get_or_insert_with(|| self.signals.want_look(*after));
                tokio::select! {
                    () = self.signals.looked(number) => {
                        self.looking = None;
                        self.queue.pop_front();
                    }
                    _ = tick.tick() => self.status(writer, false).await?,
                }
                continue;
            }
            tokio::select! {
                permit = self.events.reserve() => {
                    let permit = permit.map_err(|_| StreamError::Closed)?;
                    if let Some(Pending::Event(event)) = self.queue.pop_front() {
                        permit.send(event);
                    }
                    taken_at = Instant::now();
                }
                _ = tick.tick() => {
                    // PostgreSQL waits for a connection that takes nothing before it shuts down.
                    if taken_at.elapsed() >= ROOM_PATIENCE {
                        return Err(StreamError::NoRoom(ROOM_PATIENCE));
                    }
                    self.status(writer, false).await?;
                }
            }
        }
        Ok(())
    }

    /// Waits for a message, then takes all that have arrived with it.
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
                    self.assembler.set_recent(*self.signals.recent.borrow());
                    let ask = self.asking.is_due(self.assembler.position());
                    self.asked = 0;
                    let position = self.assembler.position();
                    self.assembler.acknowledged((self.acknowledged)().min(position));
                    self.status(writer, ask).await?;
                }
                message = reader.next() => break self.take(message?.ok_or(StreamError::Ended)?)?,
            }
        };
        while reader.buffered() {
            answer |= self.take(reader.next().await?.ok_or(StreamError::Ended)?)?;
        }
        let mut truncated = self.assembler.take_truncated();
        if !truncated.is_empty() {
            self.signals.truncated.send_modify(|known| known.append(&mut truncated));
        }
        // After what was told up to there.
        self.signals.reached.send_replace(self.assembler.position());
        if self.assembler.take_announced() {
            self.signals.announced.notify_one();
        }
        self.queue.extend(self.assembler.progress().map(Pending::Event));
        if answer {
            self.asked += 1;
            if self.asked > ASKED_MAX {
                return Err(StreamError::Ended);
            }
            self.status(writer, false).await?;
        }
        Ok(())
    }

    /// Whether PostgreSQL wants an answer.
    fn take(&mut self, message: ReplicationMessage<'_>) -> Result<bool, StreamError> {
        match message {
            ReplicationMessage::XLogData { start, data, .. } => {
                self.received = self.received.max(start);
                // A copy says it before it waits for those who write: whatever others write arrives after that.
                if self.routes.has_changed().unwrap_or(false) {
                    self.assembler.reroute(&self.routes.borrow_and_update(), &mut self.fresh);
                }
                self.assembler.take(data, &mut self.fresh)?;
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

    /// Says what has arrived and what may be forgotten.
    async fn status(&self, writer: &mut ReplicationWriter, ask: bool) -> Result<(), StreamError> {
        let position = self.assembler.position();
        // Never more than has arrived, whatever we are told.
        let acknowledged = self.assembler.hold((self.acknowledged)().min(position));
        let is_unknown = acknowledged < self.floor || self.assembler.is_proving();
        let flushed = if is_unknown { Lsn::ZERO } else { acknowledged };
        let received = self.received.max(position);
        Ok(writer.standby_status(received, flushed, flushed, ask).await?)
    }
}

/// Returns the state of a stream that has ended with an error, and tries again after `delay`; `None` where no attempt is left.
fn state_after(error: &StreamError, delay: Option<Duration>) -> SourceState {
    let reason = error.to_string();
    match error {
        StreamError::Held(_) => SourceState::standby(reason),
        error if error.is_transient() => SourceState::retrying(reason, delay),
        _ => SourceState::refused(reason, delay),
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

    /// A look for a transaction of an abandoned history would hold up the watch for as long as the new history has no
    /// transaction of that number.
    #[test]
    fn a_look_that_is_withdrawn_is_not_waited_for_by_anyone() {
        let signals = Signals::new();
        let number = signals.want_look(Xid(7));
        assert!(is_ready(signals.look_is_wanted()) && !is_ready(signals.looked(number)));
        signals.forget_look();
        assert!(!is_ready(signals.look_is_wanted()) && is_ready(signals.looked(number)));
        let next = signals.want_look(Xid(3));
        assert!(next > number && is_ready(signals.look_is_wanted()));
        assert!(!is_ready(signals.looked(next)));
    }
}
