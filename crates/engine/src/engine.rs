//! The engine: a source and its tables, and the operations on them.

use std::pin::pin;
use std::sync::Arc;

use laredo_core::{CommitTime, Lsn, Schema, SourceIdentity, TableName};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::Instrument;

use crate::clock::Clock;
use crate::durable::DurablePosition;
use crate::history::{SourceHistory, WalEndQuery};
use crate::retention::WalRetention;
use crate::source::{Source, SourceError, SourceState, SourceStateReporter, SourceStatus, TableRequest};
use crate::status::{TableHandle, TablePhase, TableStatus};
use crate::table::{CopyCounts, CopyTurns, TableOptions, VerifyTurns};

mod dispatch;
mod folders;
mod run;
mod table_set;

use run::{EngineCore, EngineRun, EngineTable, catch_panic};
pub use table_set::TableSetChange;

/// The number of orders that may wait for the source.
const ORDERS: usize = 4;

/// A source and its tables. The engine follows the source as long as it runs, whatever the database
/// answers.
pub struct Engine<S> {
    core: EngineCore<S>,
    orders: mpsc::Receiver<EngineOrder>,
    /// The first run, if it has already begun.
    prepared: Option<EngineRun<S>>,
}

/// An order of an operator to a source that is followed.
enum EngineOrder {
    /// Resets the source.
    Reset { drop_publication: bool, answer: OrderAnswer<()> },
    /// Checks tables that are to be added, or to begin again with other options. With `publishes`,
    /// the source then has what following them needs.
    Check { more: Vec<TableRequest>, others: Vec<TableRequest>, publishes: bool, answer: OrderAnswer<Vec<Arc<Schema>>> },
    /// Changes the tables.
    Change { change: TableSetChange, answer: OrderAnswer<()> },
}

type OrderAnswer<T> = oneshot::Sender<Result<T, SourceError>>;

/// A handle to an engine: its state, and the operations on it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    tables: Arc<RwLock<Arc<[TableHandle]>>>,
    history: Arc<SourceHistory>,
    acknowledgement: Arc<AcknowledgementTracker>,
    paused: Arc<watch::Sender<bool>>,
    retention: watch::Receiver<WalRetention>,
    orders: mpsc::Sender<EngineOrder>,
    reporter: SourceStateReporter,
    copy_turns: CopyTurns,
    connections_max: usize,
}

impl EngineHandle {
    /// Returns the engine's present tables.
    #[must_use]
    pub fn tables(&self) -> Arc<[TableHandle]> {
        self.tables.read().clone()
    }

    /// Returns the table with this name, if the engine has it.
    #[must_use]
    pub fn table(&self, name: &TableName) -> Option<TableHandle> {
        self.tables().iter().find(|table| table.name() == name).cloned()
    }

    /// Returns the present identity of the source.
    #[must_use]
    pub fn identity(&self) -> Arc<SourceIdentity> {
        self.history.identity()
    }

    /// Returns the acknowledged position. The source reads it when it next reports to the database.
    #[must_use]
    pub fn acknowledged(&self) -> Lsn {
        self.acknowledgement.acknowledged(&self.tables())
    }

    /// Pauses all tables of the source, or resumes them. While they are paused, commits stay in the
    /// database, which retains them for the slot. A copy that is being made cannot complete.
    pub fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Returns true if the tables are paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Returns the number of copies that run, and of those that wait.
    #[must_use]
    pub fn copies(&self) -> CopyCounts {
        self.copy_turns.counts()
    }

    /// Returns the maximum number of database connections that the source uses; zero if it uses
    /// none.
    #[must_use]
    pub fn connections_max(&self) -> usize {
        self.connections_max
    }

    /// Returns the time on the database's clock. `own` is the time on this machine's clock, which
    /// is returned until the database has given a time.
    #[must_use]
    pub fn source_time(&self, own: CommitTime) -> CommitTime {
        self.history.source_time(own)
    }

    /// Returns the state of the source, and the reason for it.
    #[must_use]
    pub fn source_status(&self) -> SourceStatus {
        let mut status = self.reporter.status();
        if self.is_paused() && matches!(status.state, SourceState::Following | SourceState::Paused { .. }) {
            let reason = match status.state.reason() {
                Some(reason) => format!("an operator paused it; {reason}"),
                None => "an operator paused it; `laredo resume` resumes it".to_owned(),
            };
            status.state = SourceState::Paused { reason };
        }
        status
    }

    /// Waits until the source is refused, and returns the reason.
    pub async fn wait_refused(&self) -> String {
        let mut states = self.reporter.watch();
        // The reporter lives as long as `self`.
        let refused = states.wait_for(|status| matches!(status.state, SourceState::Refused { .. })).await;
        refused.map(|status| status.state.reason().unwrap_or_default().to_owned()).unwrap_or_default()
    }

    /// Makes a source that waits for its next attempt try again now.
    pub fn retry_now(&self) {
        self.reporter.retry();
    }

    /// Returns what the database retains for the source.
    #[must_use]
    pub fn retention(&self) -> WalRetention {
        self.retention.borrow().clone()
    }

    /// Resets the source: it drops what the database retains, and makes it retain WAL again
    /// ([`Source::reset`]). Then every table is copied again, and readers receive the differences.
    ///
    /// # Errors
    /// When the source could not be reset, or the engine has stopped.
    pub async fn reset(&self, drop_publication: bool) -> Result<(), SourceError> {
        self.order(|answer| EngineOrder::Reset { drop_publication, answer }).await
    }

    /// Checks tables that are to be added or to begin again, next to the tables `others`, and
    /// returns their schemas. With `publishes`, it also creates what following them needs. The
    /// source is followed: otherwise it is not known what a change would lead to.
    ///
    /// # Errors
    /// All problems that an operator has to fix, or the reason why the source cannot be asked.
    pub async fn check_tables(
        &self,
        more: Vec<TableRequest>,
        others: Vec<TableRequest>,
        publishes: bool,
    ) -> Result<Vec<Arc<Schema>>, SourceError> {
        self.order(|answer| EngineOrder::Check { more, others, publishes, answer }).await
    }

    /// Changes the tables while the source is followed. Other tables are not affected. Added tables
    /// were checked before, and are copied afterwards.
    ///
    /// # Errors
    /// When the source is not followed. Nothing has changed then.
    pub async fn change_tables(&self, change: TableSetChange) -> Result<(), SourceError> {
        self.order(|answer| EngineOrder::Change { change, answer }).await
    }

    async fn order<T>(&self, order: impl FnOnce(OrderAnswer<T>) -> EngineOrder) -> Result<T, SourceError> {
        let (answer, answered) = oneshot::channel();
        let stopped = || SourceError::Transient("the server is stopping".to_owned());
        self.orders.send(order(answer)).await.map_err(|_| stopped())?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl EngineOrder {
    /// Answers that the order was not carried out. The receiver of the answer may have been
    /// dropped.
    fn refuse(self, error: SourceError) {
        match self {
            EngineOrder::Reset { answer, .. } | EngineOrder::Change { answer, .. } => drop(answer.send(Err(error))),
            EngineOrder::Check { answer, .. } => drop(answer.send(Err(error))),
        }
    }
}

impl<S: Source> Engine<S> {
    /// Returns an engine that does nothing before [`Engine::run`]. `name` is the name of the
    /// source, for the log.
    #[must_use]
    pub fn new(name: &str, source: S, tables: Vec<TableOptions>, clock: Clock) -> Engine<S> {
        let source = Arc::new(source);
        let names: Vec<TableName> = tables.iter().map(|table| table.request.name.clone()).collect();
        let asked = source.clone();
        let ask_written: WalEndQuery = Arc::new(move || {
            let source = asked.clone();
            Box::pin(async move { source.written().await })
        });
        let history = Arc::new(SourceHistory::new(SourceIdentity::default(), &names, ask_written, source.clock()));
        let looks = source.looks();
        let slots: Vec<Arc<EngineTable>> =
            tables.into_iter().map(|options| Arc::new(EngineTable::new(options, looks.clone(), &history))).collect();
        let (order_sender, orders) = mpsc::channel(ORDERS);
        let handle = EngineHandle {
            tables: Arc::new(RwLock::new(slots.iter().map(|slot| slot.handle().clone()).collect())),
            history,
            acknowledgement: Arc::default(),
            paused: Arc::new(watch::Sender::new(false)),
            retention: source.retention(),
            orders: order_sender,
            reporter: SourceStateReporter::new(name),
            copy_turns: CopyTurns::new(source.copies_max()),
            connections_max: source.connections_max(),
        };
        let verify_turns = VerifyTurns::default();
        // A span of this level is there at every level of the log.
        let span = tracing::error_span!("source", source = name);
        let core = EngineCore { source, tables: RwLock::new(slots), clock, handle, verify_turns, span };
        Engine { core, orders, prepared: None }
    }

    /// Returns an engine whose tables were checked and whose source is ready. Nothing runs before
    /// [`Engine::run`].
    ///
    /// # Errors
    /// All problems that prevent a table from being followed, each as a sentence that says how to
    /// fix it.
    pub async fn prepare(source: S, tables: Vec<TableOptions>, clock: Clock) -> Result<Engine<S>, SourceError> {
        Engine::new("", source, tables, clock).prepared().await
    }

    /// Begins the first run, so that [`Engine::run`] does not have to.
    ///
    /// # Errors
    /// The errors of [`Engine::prepare`]. A table whose folders cannot be opened is one of them,
    /// although [`Engine::run`] would stop only that table.
    pub async fn prepared(mut self) -> Result<Engine<S>, SourceError> {
        self.prepared = Some(self.core.begin().instrument(self.core.span.clone()).await?);
        let tables = self.core.handle.tables();
        let stopped =
            tables.iter().filter_map(|table| Some(format!("table {}: {}", table.name, table.status().phase.error()?)));
        let problems: Vec<String> = stopped.collect();
        if problems.is_empty() { Ok(self) } else { Err(SourceError::Definite(problems)) }
    }

    /// Returns a handle to the engine.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        self.core.handle.clone()
    }

    /// Follows the source until `stop` resolves. Database errors, and a panic in the source's task,
    /// are reported as the state of the source. The engine then tries again.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) {
        let span = self.core.span.clone();
        self.repeat_runs(stop).instrument(span).await;
    }

    async fn repeat_runs(mut self, stop: impl Future<Output = ()> + Send) {
        let mut stop = pin!(stop);
        let reporter = self.core.handle.reporter.clone();
        let mut failed = 0;
        loop {
            let began = Instant::now();
            let begun = tokio::select! {
                begun = self.begin() => begun,
                () = &mut stop => return,
            };
            let error = match begun {
                Ok(run) => match run.follow(&self.core, &mut self.orders, stop.as_mut()).await {
                    Ok(()) => return,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if reporter.status().followed_at.is_some_and(|at| at > began) {
                failed = 0;
            }
            let state = self.core.state_after(&error, failed);
            failed += 1;
            tokio::select! {
                () = reporter.wait(state) => {}
                () = refuse_orders(&mut self.orders, &reporter) => {}
                () = &mut stop => return,
            }
        }
    }

    /// Begins a run, unless one was prepared. Orders that arrive meanwhile are refused.
    async fn begin(&mut self) -> Result<EngineRun<S>, SourceError> {
        if let Some(prepared) = self.prepared.take() {
            return Ok(prepared);
        }
        tokio::select! {
            begun = catch_panic(self.core.begin()) => begun.unwrap_or_else(|panic| Err(SourceError::Transient(panic))),
            () = refuse_orders(&mut self.orders, &self.core.handle.reporter) => {
                Err(SourceError::Transient("the server is stopping".to_owned()))
            }
        }
    }
}

/// Refuses the orders to a source that is not followed, and makes the source try again. Returns
/// when no more orders can arrive.
async fn refuse_orders(orders: &mut mpsc::Receiver<EngineOrder>, reporter: &SourceStateReporter) {
    while let Some(order) = orders.recv().await {
        let state = reporter.status().state;
        let reason = state.reason().unwrap_or("the database has not answered yet");
        order.refuse(SourceError::Transient(format!("the source is {}: {reason}", state.name())));
        reporter.retry();
    }
}

/// The acknowledged position. It is not pushed: the source polls it when it reports to the
/// database.
#[derive(Debug, Default)]
struct AcknowledgementTracker {
    /// The position up to which everything is in the tables' queues.
    dispatched: Mutex<Lsn>,
    /// The number of forks of the database's history, and the highest position that was
    /// acknowledged since the last fork.
    known: Mutex<(u64, Lsn)>,
}

impl AcknowledgementTracker {
    /// Begins a run. Its tables count forks from zero again. The source itself never reports a
    /// position below an earlier one.
    fn begin_again(&self) {
        *self.dispatched.lock() = Lsn::ZERO;
        *self.known.lock() = (0, Lsn::ZERO);
    }

    /// Returns the lowest position that the tables which can still be followed have released. If
    /// there is no such table, nothing that was dispatched is needed, because a failed table owes a
    /// copy. Retaining it would fill the source's disk.
    fn acknowledged(&self, tables: &[TableHandle]) -> Lsn {
        // Read before the tables' states: a table that is followed again receives everything after
        // this position.
        let dispatched = *self.dispatched.lock();
        let statuses: Vec<_> = tables.iter().map(TableHandle::status).collect();
        let is_live = |status: &&TableStatus| !matches!(status.phase, TablePhase::Failed { .. });
        let forks = statuses.iter().filter(is_live).map(|status| status.forks);
        let (fewest, most) = (forks.clone().min().unwrap_or(0), forks.max().unwrap_or(0));
        if fewest < most {
            // A table has not noted the fork yet, so its positions belong to another history.
            return Lsn::ZERO;
        }
        let least = statuses.iter().filter_map(|status| status.releasable).min();
        self.release(least.unwrap_or(DurablePosition::not_needed(dispatched)), most)
    }

    /// Advances the acknowledged position, which starts at zero again after a fork. No other
    /// function advances it.
    fn release(&self, until: DurablePosition, forks: u64) -> Lsn {
        let mut known = self.known.lock();
        if known.0 < forks {
            *known = (forks, Lsn::ZERO);
        }
        known.1 = until.position().max(known.1);
        known.1
    }
}
