//! A run: it dispatches the events of a source to its tables until the source has to be prepared
//! again.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use laredo_core::{CommitMark, Lsn, Sequence};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{Instrument, Span};

use super::dispatch::{TableEventSender, TableOutlets, dispatch_events, table_event_channel};
use super::folders::open_folders;
use super::table_set::TableSetChanger;
use super::{EngineHandle, EngineOrder};
use crate::clock::Clock;
use crate::history::SourceHistory;
use crate::journal::{InstanceId, Journal};
use crate::source::{
    AcknowledgedPosition, DefinitionReads, KnownTable, ResumeDecision, Source, SourceError, SourceServer, SourceState,
    TableIndex, TableRequest,
};
use crate::status::{TableHandle, TablePhase, TableStatus};
use crate::table::{
    SavedTable, SharedTableState, Table, TableError, TableFolders, TableInbox, TableOptions, TableWorker, VerifyTurns,
};

/// The number of stream events that may wait. A transaction among them holds little memory, because
/// it spools.
const STREAM_QUEUE: usize = 64;
/// The number of sequences that the journal of a later run skips after the last one that readers
/// have seen.
const SEQUENCES_SKIPPED: u64 = 1 << 32;

/// The state that outlives a run.
pub(super) struct EngineCore<S> {
    pub(super) source: Arc<S>,
    /// The tables, each with an index that grows in this order.
    pub(super) tables: RwLock<Vec<Arc<EngineTable>>>,
    pub(super) clock: Clock,
    pub(super) handle: EngineHandle,
    /// The turns in which verifications take connections of the source.
    pub(super) verify_turns: VerifyTurns,
    /// The span of the source. Lines of the log have its field `source`.
    pub(super) span: Span,
}

/// A table of an engine. It outlives the runs.
pub(super) struct EngineTable {
    options: TableOptions,
    handle: TableHandle,
    journal: watch::Sender<Option<Journal>>,
    /// The number of runs that had a journal, and the first sequence that none of them has used.
    served: Mutex<(u64, Option<Sequence>)>,
    /// The table's task in the present run.
    task: Mutex<Option<TableTask>>,
}

/// A table's task, as long as it runs.
struct TableTask {
    removed: watch::Sender<bool>,
    /// Closed when the task has ended.
    ended: watch::Receiver<()>,
}

impl EngineTable {
    pub(super) fn new(
        options: TableOptions,
        looks: watch::Receiver<DefinitionReads>,
        history: &Arc<SourceHistory>,
    ) -> EngineTable {
        let (journal, journals) = watch::channel(None);
        let handle = TableHandle {
            name: options.request.name.clone(),
            status: Arc::new(Mutex::new(TableStatus::default())),
            commits: Arc::default(),
            journal: journals,
            commands: Arc::new(RwLock::new(mpsc::channel(1).0)),
            keeps_snapshots: options.snapshots.is_some(),
            snapshots: watch::Sender::default(),
            index: Arc::default(),
            looks,
            history: history.clone(),
        };
        EngineTable { options, handle, journal, served: Mutex::default(), task: Mutex::default() }
    }

    pub(super) fn handle(&self) -> &TableHandle {
        &self.handle
    }

    pub(super) fn request(&self) -> &TableRequest {
        &self.options.request
    }

    /// Gives the table its index in the present run.
    pub(super) fn set_index(&self, index: TableIndex) {
        self.handle.index.store(index.0, Ordering::Relaxed);
    }

    /// Ends the table's task, and waits for its end.
    pub(super) async fn end_task(&self) {
        let Some(TableTask { removed, mut ended }) = self.task.lock().take() else { return };
        removed.send_replace(true);
        while ended.changed().await.is_ok() {}
    }

    /// Returns the options of the next run. It repeats no sequence that was served, and no
    /// instance.
    pub(super) fn options(&self) -> TableOptions {
        let mut options = self.options.clone();
        let (runs, sequence) = *self.served.lock();
        if runs > 0 {
            options.instance = InstanceId(format!("{}r{runs}", options.instance.0));
        }
        options.first_sequence = sequence.unwrap_or(options.first_sequence);
        options
    }

    /// Ends what a run has served: readers have to reconnect, and files are closed.
    pub(super) fn close(&self) {
        self.handle.snapshots.send_replace(None);
        if let Some(journal) = self.journal.send_replace(None) {
            let mut served = self.served.lock();
            *served = (served.0 + 1, Some(journal.head().sequence.plus(SEQUENCES_SKIPPED)));
            journal.mark_parted();
            journal.close();
        }
        let mut status = self.handle.status.lock();
        let TableStatus { inserts, updates, deletes, truncates, copies, .. } = *status;
        let verify = std::mem::take(&mut status.verify);
        *status = TableStatus { inserts, updates, deletes, truncates, copies, verify, ..TableStatus::default() };
    }
}

/// A source that is ready, and the tables of the run.
pub(super) struct EngineRun<S> {
    workers: Vec<(Arc<EngineTable>, TableWorker<S>)>,
    outlets: Vec<TableEventSender>,
    server: SourceServer,
}

/// The tasks of the tables of a run. Dropping this ends them.
#[derive(Default)]
pub(super) struct TableTasks(Mutex<JoinSet<()>>);

impl TableTasks {
    /// Runs a table in a task. A panic makes the table fail, and no other one.
    pub(super) fn spawn<S: Source>(&self, table: &EngineTable, worker: TableWorker<S>) {
        let ((removed, is_removed), (alive, ended)) = (watch::channel(false), watch::channel(()));
        *table.task.lock() = Some(TableTask { removed, ended });
        let handle = table.handle.clone();
        let task = async move {
            if let Err(panic) = catch(worker.run(is_removed)).await {
                fail_after_panic(&handle, &panic);
            }
            drop(alive);
        };
        self.0.lock().spawn(task.in_current_span());
    }

    /// Waits until all tasks have ended.
    async fn wait(self) {
        let mut tasks = self.0.into_inner();
        while tasks.join_next().await.is_some() {}
    }
}

/// Marks the table of a task that panicked as failed.
fn fail_after_panic(table: &TableHandle, panic: &str) {
    let error = format!("the task of table {} failed ({panic}); restart laredo, and report this", table.name);
    tracing::error!(event = "table_stopped", table = %table.name, %error, "table stopped");
    let mut status = table.status.lock();
    status.phase = TablePhase::Failed { error };
    (status.copy, status.releasable) = (None, None);
}

impl<S: Source> EngineCore<S> {
    /// Checks the tables, prepares the source, and opens what an earlier run has left.
    ///
    /// # Errors
    /// All problems that prevent the source from being followed.
    pub(super) async fn begin(&self) -> Result<EngineRun<S>, SourceError> {
        let begun = self.open().await;
        if begun.is_err() {
            self.close_tables();
        }
        begun
    }

    /// Returns the state of a source after an error. `failed` is the number of failed attempts in a
    /// row before this one.
    pub(super) fn state_after(&self, error: &SourceError, failed: u32) -> SourceState {
        let reason = error.to_string();
        match error {
            SourceError::Held(_) => SourceState::standby(reason),
            SourceError::Definite(_) => SourceState::refused(reason, None),
            SourceError::Transient(_) => SourceState::retrying(reason, self.source.retry_delay(failed)),
        }
    }

    fn close_tables(&self) {
        self.tables.read().iter().for_each(|table| table.close());
    }

    async fn open(&self) -> Result<EngineRun<S>, SourceError> {
        let slots = self.tables.read().clone();
        slots.iter().enumerate().for_each(|(index, slot)| slot.set_index(TableIndex(index)));
        let tables: Vec<TableOptions> = slots.iter().map(|slot| slot.options()).collect();
        let requests: Vec<TableRequest> = tables.iter().map(|table| table.request.clone()).collect();
        let server = self.source.prepare(&requests).await?;
        let opened = open_folders(&tables, &server, &self.clock).await?;
        let left = |opened: &Result<TableFolders, _>| opened.as_ref().ok()?.left.as_ref().map(SavedTable::known);
        let known: Vec<_> = opened.iter().map(left).collect();
        let resumes = self.source.resume(&known).await?;
        let history = &self.handle.history;
        history.set_identity(server.identity.clone());
        history.begin_tables(&requests.iter().map(|request| request.name.clone()).collect::<Vec<_>>());
        history.forget_commits();
        history.forget_written().await;
        self.handle.acknowledgement.begin_again();
        if let Some((position, mark)) = followed_from(&known, &resumes) {
            history.seed(position, mark);
        }
        let (mut workers, mut outlets) = (Vec::new(), Vec::new());
        for (slot, ((options, opened), resume)) in slots.into_iter().zip(tables.into_iter().zip(opened).zip(resumes)) {
            let (worker, outlet) = self.begin_table(&slot, options, &server, opened, resume, None);
            workers.push((slot, worker));
            outlets.push(outlet);
        }
        Ok(EngineRun { workers, outlets, server })
    }

    /// Makes a table of the present run. `late` is the number of forks before a table that is added
    /// to a run.
    pub(super) fn begin_table(
        &self,
        slot: &EngineTable,
        options: TableOptions,
        server: &SourceServer,
        opened: Result<TableFolders, TableError>,
        resume: ResumeDecision,
        late: Option<u64>,
    ) -> (TableWorker<S>, TableEventSender) {
        let (outlet, events) = table_event_channel(options.request.name.clone());
        let (command_sender, commands) = mpsc::channel(4);
        let TableHandle { status, commits, snapshots, .. } = &slot.handle;
        let shared = SharedTableState {
            status: status.clone(),
            commits: commits.clone(),
            journal: slot.journal.clone(),
            snapshots: snapshots.clone(),
        };
        let written = server.written;
        let (own, history) = (self.clock.clone(), self.handle.history.clone());
        let clock: Clock = Arc::new(move || history.source_time(own()));
        let mut table = Table::new(options, clock, shared, server.clone());
        late.into_iter().for_each(|forks| table.begin_late(forks));
        let begun = opened.and_then(|opened| match table.use_folders(opened) {
            Some(SavedTable::Journal(restored)) => table.restore(*restored, resume, written),
            Some(SavedTable::Snapshot(recovered)) => table.begin_at_snapshot(*recovered, resume, written),
            None => Ok(()),
        });
        let inbox = TableInbox { events, progress: outlet.progress(), commands };
        let (copy_turns, verify_turns) = (self.handle.copy_turns.clone(), self.verify_turns.clone());
        let (index, source) = (slot.handle.index(), self.source.clone());
        let mut worker = TableWorker::new(table, index, source, inbox, copy_turns, verify_turns);
        worker.begin_after_forks(late.unwrap_or(0));
        if let Err(error) = begun {
            worker.stop(&error);
        }
        *slot.handle.commands.write() = command_sender;
        (worker, outlet)
    }
}

impl<S: Source> EngineRun<S> {
    /// Follows the source until `stop` resolves.
    ///
    /// # Errors
    /// When the source has to be prepared again.
    pub(super) async fn follow(
        self,
        core: &EngineCore<S>,
        orders: &mut mpsc::Receiver<EngineOrder>,
        stop: Pin<&mut (impl Future<Output = ()> + Send)>,
    ) -> Result<(), SourceError> {
        let (source, handle) = (&core.source, &core.handle);
        let asked = handle.clone();
        let acknowledged: AcknowledgedPosition = Arc::new(move || asked.acknowledged());
        let EngineRun { workers, outlets, server } = self;
        let (event_sender, events) = mpsc::channel(STREAM_QUEUE);
        let tasks = TableTasks::default();
        let (change_sender, changes) = mpsc::unbounded_channel();
        workers.into_iter().for_each(|(slot, worker)| tasks.spawn(&slot, worker));
        let outlets = TableOutlets::new(outlets, server, changes);
        let (paused, dispatched) = (handle.paused.subscribe(), &handle.acknowledgement.dispatched);
        let tables = TableSetChanger { core, tasks: &tasks, outlets: change_sender };
        let work = async {
            tokio::select! {
                // The order matters: everything that the stream has sent is dispatched before this
                // task waits.
                biased;
                ended = source.stream(event_sender, acknowledged, handle.reporter.clone()) => ended,
                () = dispatch_events(events, paused, outlets, &handle.history, dispatched) => Ok(()),
                () = follow_orders(core, &tables, orders) => Ok(()),
                () = stop => Ok(()),
            }
        };
        // The queues to the tables are closed with this future, and that ends the tasks.
        let ended = catch_panic(work).await.unwrap_or_else(|panic| Err(SourceError::Transient(panic)));
        drop(tables);
        tasks.wait().await;
        if ended.is_err() {
            core.close_tables();
        }
        ended
    }
}

/// Runs a future, and returns the message of a panic as an error. A fault in one source's task must
/// not end the others.
pub(super) async fn catch_panic<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let caught = catch(work).await;
    caught.map_err(|panic| format!("the source's task panicked ({panic}); report this"))
}

/// Runs a future, and returns the message of a panic.
async fn catch<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let mut work = pin!(work);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic_message(&*panic).to_owned())),
    })
    .await
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Returns the lowest position that a table is followed from, and the newest commit at or before
/// it.
fn followed_from(known: &[Option<KnownTable>], resumes: &[ResumeDecision]) -> Option<(Lsn, CommitMark)> {
    let followed = known.iter().zip(resumes).filter_map(|(known, resume)| match resume {
        ResumeDecision::Follow | ResumeDecision::FollowThenCopy(_) => {
            known.as_ref().map(|known| (known.position, known.mark))
        }
        ResumeDecision::Copy(_) => None,
    });
    followed.min_by_key(|(position, _)| *position)
}

/// Carries out the orders of operators, one after the other. Never returns while a handle exists,
/// and the engine has one.
async fn follow_orders<S: Source>(
    core: &EngineCore<S>,
    tables: &TableSetChanger<'_, S>,
    orders: &mut mpsc::Receiver<EngineOrder>,
) {
    while let Some(order) = orders.recv().await {
        // The receivers of the answers may have been dropped.
        match order {
            EngineOrder::Reset { drop_publication, answer } => {
                drop(answer.send(core.source.reset(drop_publication).await));
            }
            EngineOrder::Check { more, others, publishes, answer } => {
                drop(answer.send(core.source.check_more(&more, &others, publishes).await));
            }
            EngineOrder::Change { change, answer } => {
                tables.change(change).await;
                drop(answer.send(Ok(())));
            }
        }
    }
}
