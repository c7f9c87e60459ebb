//! A run: it dispatches the events of a source to its tables until the source has to be prepared
//! again.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use laredo_core::{CommitMark, Lsn, Sequence};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tracing::{Instrument, Span};

use super::dispatch::{TableEventSender, dispatch_events, table_event_channel};
use super::folders::open_folders;
use super::{EngineHandle, ResetOrder};
use crate::clock::Clock;
use crate::journal::{InstanceId, Journal};
use crate::source::{
    AcknowledgedPosition, KnownTable, ResumeDecision, Source, SourceError, SourceServer, SourceState, TableIndex,
    TableRequest,
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
    pub(super) tables: Vec<EngineTable>,
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
}

impl EngineTable {
    pub(super) fn new(
        options: TableOptions,
        handle: TableHandle,
        journal: watch::Sender<Option<Journal>>,
    ) -> EngineTable {
        EngineTable { options, handle, journal, served: Mutex::default() }
    }

    pub(super) fn handle(&self) -> &TableHandle {
        &self.handle
    }

    /// Returns the options of the next run. It repeats no sequence that was served, and no
    /// instance.
    fn options(&self) -> TableOptions {
        let mut options = self.options.clone();
        let (runs, sequence) = *self.served.lock();
        if runs > 0 {
            options.instance = InstanceId(format!("{}r{runs}", options.instance.0));
        }
        options.first_sequence = sequence.unwrap_or(options.first_sequence);
        options
    }

    /// Ends what a run has served: readers have to reconnect, and files are closed.
    fn close(&self) {
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
    workers: Vec<TableWorker<S>>,
    outlets: Vec<TableEventSender>,
}

impl<S: Source> EngineCore<S> {
    /// Checks the tables, prepares the source, and opens what an earlier run has left.
    ///
    /// # Errors
    /// All problems that prevent the source from being followed.
    pub(super) async fn begin(&self) -> Result<EngineRun<S>, SourceError> {
        let begun = self.open().await;
        if begun.is_err() {
            self.tables.iter().for_each(EngineTable::close);
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

    async fn open(&self) -> Result<EngineRun<S>, SourceError> {
        let tables: Vec<TableOptions> = self.tables.iter().map(EngineTable::options).collect();
        let requests: Vec<TableRequest> = tables.iter().map(|table| table.request.clone()).collect();
        let server = self.source.prepare(&requests).await?;
        let opened = open_folders(&tables, &server, &self.clock).await?;
        let left = |opened: &Result<TableFolders, _>| opened.as_ref().ok()?.left.as_ref().map(SavedTable::known);
        let known: Vec<_> = opened.iter().map(left).collect();
        let resumes = self.source.resume(&known).await?;
        let history = &self.handle.history;
        history.set_identity(server.identity.clone());
        history.forget_commits();
        history.forget_written().await;
        self.handle.acknowledgement.begin_again();
        if let Some((position, mark)) = followed_from(&known, &resumes) {
            history.seed(position, mark);
        }
        let mut run = EngineRun { workers: Vec::new(), outlets: Vec::new() };
        for (slot, ((options, opened), resume)) in self.tables.iter().zip(tables.into_iter().zip(opened).zip(resumes)) {
            self.add_table(&mut run, slot, options, &server, opened, resume);
        }
        Ok(run)
    }

    fn add_table(
        &self,
        run: &mut EngineRun<S>,
        slot: &EngineTable,
        options: TableOptions,
        server: &SourceServer,
        opened: Result<TableFolders, TableError>,
        resume: ResumeDecision,
    ) {
        let index = TableIndex(run.workers.len());
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
        let begun = opened.and_then(|opened| match table.use_folders(opened) {
            Some(SavedTable::Journal(restored)) => table.restore(*restored, resume, written),
            Some(SavedTable::Snapshot(recovered)) => table.begin_at_snapshot(*recovered, resume, written),
            None => Ok(()),
        });
        let inbox = TableInbox { events, progress: outlet.progress(), commands };
        let (copy_turns, verify_turns) = (self.handle.copy_turns.clone(), self.verify_turns.clone());
        let mut worker = TableWorker::new(table, index, self.source.clone(), inbox, copy_turns, verify_turns);
        if let Err(error) = begun {
            worker.stop(&error);
        }
        run.workers.push(worker);
        run.outlets.push(outlet);
        *slot.handle.commands.write() = command_sender;
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
        orders: &mut mpsc::Receiver<ResetOrder>,
        stop: Pin<&mut (impl Future<Output = ()> + Send)>,
    ) -> Result<(), SourceError> {
        let (source, handle) = (&core.source, &core.handle);
        let asked = handle.clone();
        let acknowledged: AcknowledgedPosition = Arc::new(move || asked.acknowledged());
        let EngineRun { workers, mut outlets } = self;
        let (event_sender, events) = mpsc::channel(STREAM_QUEUE);
        let mut running = JoinSet::new();
        let tasks = workers.into_iter().map(|worker| worker.run().in_current_span());
        let ids: Vec<Id> = tasks.map(|task| running.spawn(task).id()).collect();
        let watched = TableTaskMonitor { ids, tables: &handle.tables };
        let (paused, dispatched) = (handle.paused.subscribe(), &handle.acknowledgement.dispatched);
        let work = async {
            tokio::select! {
                // The order matters: everything that the stream has sent is dispatched before this
                // task waits.
                biased;
                ended = source.stream(event_sender, acknowledged, handle.reporter.clone()) => ended,
                () = dispatch_events(events, paused, &mut outlets, &handle.history, dispatched) => Ok(()),
                () = watched.watch(&mut running) => Ok(()),
                () = follow_orders(&**source, orders) => Ok(()),
                () = stop => Ok(()),
            }
        };
        let ended = catch_panic(work).await.unwrap_or_else(|panic| Err(SourceError::Transient(panic)));
        drop(outlets);
        while let Some(ended) = running.join_next_with_id().await {
            watched.handle_end(ended.map(|(id, ())| id));
        }
        if ended.is_err() {
            core.tables.iter().for_each(EngineTable::close);
        }
        ended
    }
}

/// Runs a future, and returns the message of a panic as an error. A fault in one source's task must
/// not end the others.
pub(super) async fn catch_panic<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let mut work = pin!(work);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(format!("the source's task panicked ({}); report this", panic_message(&*panic)))),
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

/// The tasks of the tables.
struct TableTaskMonitor<'a> {
    ids: Vec<Id>,
    tables: &'a [TableHandle],
}

impl TableTaskMonitor<'_> {
    /// Handles the end of each task. Never returns: after all tasks have ended, the source still
    /// has to report acknowledged positions.
    async fn watch(&self, running: &mut JoinSet<()>) {
        while let Some(ended) = running.join_next_with_id().await {
            self.handle_end(ended.map(|(id, ())| id));
        }
        std::future::pending().await
    }

    /// Marks the table of a task that panicked as failed. A task that returned has reached the end
    /// of the stream.
    fn handle_end(&self, task: Result<Id, JoinError>) {
        let Err(panic) = task else { return };
        let Some(table) = self.ids.iter().position(|id| *id == panic.id()).and_then(|at| self.tables.get(at)) else {
            return;
        };
        let error = format!("the task of table {} failed ({panic}); restart laredo, and report this", table.name);
        tracing::error!(event = "table_stopped", table = %table.name, %error, "table stopped");
        let mut status = table.status.lock();
        status.phase = TablePhase::Failed { error };
        (status.copy, status.releasable) = (None, None);
    }
}

/// Resets the source when an operator orders it, one order after the other. Never returns while a
/// handle exists, and the engine has one.
async fn follow_orders<S: Source>(source: &S, orders: &mut mpsc::Receiver<ResetOrder>) {
    while let Some(ResetOrder { drop_publication, answer }) = orders.recv().await {
        // The receiver of the answer may have been dropped.
        let _ = answer.send(source.reset(drop_publication).await);
    }
}
