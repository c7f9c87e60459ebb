//! The task that runs a table. It waits, so that the table itself never has to.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitMark, CommitTime, Lsn, RetryDelays};
use parking_lot::Mutex;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument;

use super::bases::{BaseMaker, is_base_due};
use super::turns::{CopyTurns, VerifyTurns};
use super::verifier::TableVerifier;
use super::{FollowUpAction, OwedCopy, Redefinition, Table, TableCommit, TableError, table_span};
use crate::snapshots::{SnapshotStatus, write_when_due};
use crate::source::{
    CopyEvent, Fork, ForkReceipt, SnapshotCheck, Source, SourceError, SourceServer, TableIndex, TransactionSnapshot,
};
use crate::status::{CopySession, ReloadCommand, ReloadError, TableCommand, TableStatus};
use crate::store::{StoreError, StoreStatus};

/// The number of chunks of a copy that may wait for the table.
const COPY_QUEUE: usize = 8;
/// The first delay before another attempt. It doubles each time, up to the maximum.
const RETRY_DELAY: Duration = Duration::from_millis(200);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(15);
/// The number of events after which the table's status is updated under a backlog. A large event
/// counts as several.
const SETTLE_EVENTS: u64 = 256;
/// The size of a transaction, in bytes, above which it is applied [`aside`]. For a smaller one, the
/// switch costs more than the work (`./dev bench latency`).
const INLINE_BYTES: u64 = 64 * 1024;
/// The number of bytes of a transaction that count as one event.
const SETTLE_BYTES: u64 = 64 * 1024;

/// An event of a stream for one table.
#[derive(Debug)]
pub(crate) enum TableEvent {
    /// The stream has a new connection, to the server that was started at this time.
    Connected(String),
    Commit(TableCommit),
    Moved(OwedCopy),
    Broken(String),
    Redefined(Redefinition),
    /// A gap: commits may be missing. The fork is set if the history may be another one.
    Restarted(String, Option<Fork>),
    Forked(Box<SourceServer>, Fork, String, ForkReceipt),
    Promoted(Box<SourceServer>),
}

/// An event, and the room that it takes in the table's queue until it is handled.
#[derive(Debug)]
pub(crate) struct QueuedTableEvent {
    pub(crate) event: TableEvent,
    pub(crate) _room: OwnedSemaphorePermit,
}

/// The progress of the stream. Only the latest one counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamProgress {
    /// The position up to which every commit has been sent.
    pub(crate) position: Lsn,
    /// The time of the last of these commits; `None` if the source reports that there is no newer
    /// one.
    pub(crate) current_at: Option<CommitTime>,
    /// The newest commit up to `position`, of any table; all zeros if it is unknown.
    pub(crate) mark: CommitMark,
    /// The number of events that come before this progress.
    pub(crate) after: u64,
    /// The number of forks of the database's history that the table receives as events.
    pub(crate) forks: u64,
}

/// The channels through which the task of a table receives its work.
#[derive(Debug)]
pub(crate) struct TableInbox {
    pub(crate) events: mpsc::UnboundedReceiver<QueuedTableEvent>,
    pub(crate) progress: watch::Receiver<StreamProgress>,
    pub(crate) commands: mpsc::Receiver<TableCommand>,
}

/// The task of one table.
pub(crate) struct TableWorker<S> {
    table: Table,
    index: TableIndex,
    source: Arc<S>,
    events: mpsc::UnboundedReceiver<QueuedTableEvent>,
    /// The number of events taken from the queue.
    taken: u64,
    /// The number of forks among them.
    forks: u64,
    progress: watch::Receiver<StreamProgress>,
    /// True if the latest progress waits for the events before it.
    has_progress: bool,
    commands: mpsc::Receiver<TableCommand>,
    removed: watch::Receiver<bool>,
    /// The number of events since the table's status was last updated.
    unsettled: u64,
    /// The status of the table's store, if it has one.
    store: Option<watch::Receiver<StoreStatus>>,
    /// The status of the table's snapshots, if it has any.
    snapshots: Option<watch::Receiver<SnapshotStatus>>,
    verifier: TableVerifier<S>,
    copy_turns: CopyTurns,
    /// The number of copies that were begun.
    copies: u64,
    retry_delay: RetryDelays,
    /// The time of the next attempt, if the last one failed.
    retry_at: Option<Instant>,
    /// The orders to copy the table whose outcome is not known yet.
    reloads: Vec<oneshot::Sender<Result<(), ReloadError>>>,
}

/// A copy that runs or waits for its turn. Dropping it gives the copy up: its task then ends the
/// session, and passes the turn on.
struct CopyTask {
    events: mpsc::Receiver<CopyEvent>,
    task: JoinHandle<Result<(), SourceError>>,
}

/// The session of one copy, shown in the table's status unless a later copy shows its own.
struct CopySessionReporter {
    status: Arc<Mutex<TableStatus>>,
    copy: u64,
}

impl CopySessionReporter {
    fn waits(&self) {
        self.report_session(Some(true));
    }

    fn begins(&self) {
        self.report_session(Some(false));
    }

    fn ends(&self) {
        self.report_session(None);
    }

    fn report_session(&self, is_waiting: Option<bool>) {
        let mut status = self.status.lock();
        if status.copy_session.is_none_or(|shown| shown.copy <= self.copy) {
            let session = |is_waiting| CopySession { copy: self.copy, is_waiting, since: Instant::now() };
            status.copy_session = is_waiting.map(session);
        }
    }
}

impl Drop for CopySessionReporter {
    fn drop(&mut self) {
        self.ends();
    }
}

impl<S: Source> TableWorker<S> {
    pub(crate) fn new(
        table: Table,
        index: TableIndex,
        source: Arc<S>,
        inbox: TableInbox,
        copy_turns: CopyTurns,
        verify_turns: VerifyTurns,
    ) -> TableWorker<S> {
        let TableInbox { events, progress, commands } = inbox;
        let (taken, forks, has_progress, unsettled) = (0, 0, false, 0);
        let verifier = TableVerifier::new(source.clone(), index, table.verify_schedule(), verify_turns);
        TableWorker {
            table,
            index,
            source,
            events,
            taken,
            forks,
            progress,
            has_progress,
            commands,
            removed: watch::channel(false).1,
            unsettled,
            store: None,
            snapshots: None,
            verifier,
            copy_turns,
            copies: 0,
            retry_delay: RetryDelays::new(RETRY_DELAY, RETRY_DELAY_MAX),
            retry_at: None,
            reloads: Vec::new(),
        }
    }

    /// Begins after `forks` forks of the database's history, which the table does not receive as
    /// events.
    pub(crate) fn begin_after_forks(&mut self, forks: u64) {
        self.forks = forks;
    }

    /// Runs the table until the stream is closed or the table is removed, and writes its snapshots.
    pub(crate) async fn run(mut self, removed: watch::Receiver<bool>) {
        self.removed = removed;
        let span = table_span(self.table.name());
        self.follow_and_save().instrument(span).await;
    }

    async fn follow_and_save(mut self) {
        let (running, ended) = oneshot::channel();
        let (snapshots, journal) = (self.table.storage().watch_snapshots(), self.table.storage().watch_journal());
        let follow = async {
            self.follow().await;
            drop(running);
        };
        tokio::join!(follow, write_when_due(snapshots, journal, ended));
    }

    /// Follows the stream until it is closed. Events that still wait are dropped, because none of
    /// them was acknowledged.
    async fn follow(&mut self) {
        self.watch_folders();
        let mut copy = self.table.is_copying().then(|| self.start_copy());
        let mut maker = self.start_maker();
        self.verifier.start();
        loop {
            let outcome = match self.step(&mut copy).await {
                Some(outcome) => outcome,
                None => break,
            };
            self.do_next(outcome, &mut copy);
            if self.events.is_empty() || self.unsettled >= SETTLE_EVENTS || self.table.is_holding_enough() {
                self.unsettled = 0;
                self.settle(&mut maker).await;
            }
        }
        self.table.stop_waiting_for_disk();
        if let Some(maker) = maker {
            maker.end().await;
        }
    }

    fn do_next(&mut self, outcome: Result<FollowUpAction, TableError>, copy: &mut Option<CopyTask>) {
        match outcome {
            Ok(FollowUpAction::Nothing) => {
                if self.table.is_live() {
                    self.retry_delay.reset();
                }
            }
            Ok(FollowUpAction::Copy) => {
                self.retry_delay.reset();
                *copy = Some(self.start_copy());
            }
            Ok(FollowUpAction::Retry) => *copy = Some(self.start_copy()),
            Ok(FollowUpAction::CopyLater) => {
                *copy = None;
                self.retry_at = Some(Instant::now() + self.retry_delay.after_failure());
            }
            Err(error) => {
                *copy = None;
                self.stop(&error);
            }
        }
    }

    /// Stops the table. If the error may pass by itself, the table is stopped only until the next
    /// attempt.
    pub(crate) fn stop(&mut self, error: &TableError) {
        let delay = self.table.may_retry(error).then(|| self.retry_delay.after_failure());
        self.retry_at = delay.map(|delay| Instant::now() + delay);
        self.table.stop(error, self.retry_at);
        self.answer_reloads(&Err(match delay {
            Some(next) => ReloadError::Retrying { error: error.to_string(), next },
            None => ReloadError::Failed(error.to_string()),
        }));
    }

    fn answer_reloads(&mut self, outcome: &Result<(), ReloadError>) {
        for answer in self.reloads.drain(..) {
            // The receiver of the answer may have been dropped.
            let _ = answer.send(outcome.clone());
        }
    }

    /// Handles the next event of any kind. Returns `None` when the stream is closed, or the table
    /// is removed.
    async fn step(&mut self, copy: &mut Option<CopyTask>) -> Option<Result<FollowUpAction, TableError>> {
        if let Some(progress) = self.due_progress() {
            let heavy = self.table.is_copying() || self.table.has_rows_to_check();
            let StreamProgress { position, current_at, mark, .. } = progress;
            return Some(run_aside(heavy, || self.table.on_progress(position, current_at, mark)));
        }
        if copy.is_none() && self.table.is_holding_enough() {
            self.table.stop_holding();
        }
        // The copy that would release the held transactions may wait for the table to note a fork.
        let holding_enough = self.table.is_holding_enough() && self.progress.borrow().forks == self.forks;
        let mark_at = self.table.writer().and_then(|writer| writer.mark_due_at());
        tokio::select! {
            () = until_removed(&mut self.removed) => None,
            event = next_of(copy) => Some(match event {
                Some(event) => self.on_copy_event(event),
                None => self.copy_ended(copy).await,
            }),
            () = until(self.retry_at), if copy.is_none() => Some(self.retry()),
            event = self.events.recv(), if !holding_enough => event.map(|queued| self.on_event(queued.event)),
            changed = self.progress.changed() => changed.ok().map(|()| {
                self.has_progress = true;
                Ok(FollowUpAction::Nothing)
            }),
            Some(command) = self.commands.recv() => Some(self.on_command(command)),
            kept = store_moved(&mut self.store) => Some(kept),
            () = snapshot_written(&mut self.snapshots) => Some(Ok(FollowUpAction::Nothing)),
            () = until(mark_at) => Some(Ok(FollowUpAction::Nothing)),
            event = self.verifier.next(&self.table) => {
                Some(run_aside(true, || self.verifier.handle(event, &mut self.table)))
            }
        }
    }

    /// Returns the latest progress, once all events before it are taken. Behind a backlog it is
    /// late, but then the events themselves move the table.
    fn due_progress(&mut self) -> Option<StreamProgress> {
        let progress = *self.progress.borrow();
        let due = self.has_progress && progress.after <= self.taken;
        self.has_progress &= !due;
        due.then_some(progress)
    }

    fn on_command(&mut self, command: TableCommand) -> Result<FollowUpAction, TableError> {
        match command {
            TableCommand::Reload(ReloadCommand { reason, answer }) => {
                self.reloads.push(answer);
                self.reload(reason)
            }
            TableCommand::Restore { recovered, answer } => {
                let restored = run_aside(true, || self.table.restore_snapshot(*recovered));
                // The receiver of the answer may have been dropped. The rows are served all the
                // same.
                let _ = answer.send(restored);
                Ok(FollowUpAction::Nothing)
            }
            TableCommand::Verify(command) => {
                self.verifier.request(command, &mut self.table);
                Ok(FollowUpAction::Nothing)
            }
        }
    }

    fn reload(&mut self, reason: String) -> Result<FollowUpAction, TableError> {
        if self.table.is_copying() && self.retry_at.is_some() {
            // The attempt that was scheduled is now the copy that was ordered.
            return Ok(FollowUpAction::Copy);
        }
        let action = self.table.on_moved(OwedCopy { reason, definition: None })?;
        if action == FollowUpAction::Nothing && self.table.has_copied_rows() {
            // Another copy follows the one that is under way.
            self.answer_reloads(&Ok(()));
        }
        Ok(action)
    }

    /// Begins the attempt that is due.
    fn retry(&mut self) -> Result<FollowUpAction, TableError> {
        self.retry_at = None;
        match run_aside(true, || self.table.retry())? {
            FollowUpAction::Copy => Ok(FollowUpAction::Retry),
            action => Ok(action),
        }
    }

    fn on_copy_event(&mut self, event: CopyEvent) -> Result<FollowUpAction, TableError> {
        let begins = matches!(event, CopyEvent::Begin { .. });
        let action = run_aside(true, || self.table.on_copy(event))?;
        if begins {
            self.answer_reloads(&Ok(()));
        }
        Ok(action)
    }

    fn on_event(&mut self, event: TableEvent) -> Result<FollowUpAction, TableError> {
        self.taken += 1;
        self.unsettled += 1;
        match event {
            TableEvent::Connected(server_started) => Ok(self.table.on_connected(server_started)),
            TableEvent::Commit(commit) => {
                self.unsettled += commit.spool.bytes() / SETTLE_BYTES;
                let heavy = self.table.is_copying() || commit.spool.bytes() > INLINE_BYTES;
                run_aside(heavy, || self.table.on_commit(commit))
            }
            TableEvent::Moved(owed) => self.table.on_moved(owed),
            TableEvent::Redefined(redefinition) => {
                let heavy = !redefinition.values.is_empty();
                run_aside(heavy, || self.table.on_redefined(redefinition))
            }
            TableEvent::Restarted(reason, fork) => self.table.on_restarted(&reason, fork.as_ref()),
            TableEvent::Forked(server, fork, reason, noted) => {
                self.forks += 1;
                let action = run_aside(true, || self.table.on_forked(*server, &fork, &reason));
                noted.give_back();
                action
            }
            TableEvent::Promoted(server) => run_aside(true, || self.table.on_promoted(*server)),
            TableEvent::Broken(error) => Err(TableError::Source(error)),
        }
    }

    /// Shows the handled events in the status, and makes readers and the disk keep up.
    async fn settle(&mut self, maker: &mut Option<BaseMaker>) {
        if let Some(Err(error)) = self.table.writer().map(|writer| writer.publish()) {
            self.stop(&error.into());
        }
        self.table.note_visible();
        while let Some(patience) = self.table.writer().and_then(|writer| writer.enforce_buffer_policies()) {
            patience.wait().await;
        }
        if let Some(writer) = self.table.writer() {
            writer.mark_if_due(Instant::now());
        }
        while self.table.writer().is_some_and(|writer| writer.is_ahead_of_disk()) {
            if let Some(reason) = self.table.storage().store_stall() {
                // Other tables do not wait for this one's disk.
                self.stop(&StoreError::Stalled(reason).into());
            } else if let Err(error) = store_moved(&mut self.store).await {
                self.stop(&error);
            }
        }
        let journal = self.table.writer().map(|writer| writer.journal().clone());
        if let Some(replaced) = maker.take_if(|maker| journal.is_some_and(|journal| !maker.serves(&journal))) {
            // The journal was replaced after a fork. Readers of the new one would wait forever for
            // its bases.
            replaced.end().await;
        }
        if maker.is_none() {
            *maker = self.start_maker();
        }
        if let Some(writer) = self.table.writer().filter(|writer| is_base_due(writer.journal())) {
            writer.journal().base_requests().request();
        }
        self.table.report();
    }

    fn watch_folders(&mut self) {
        let (store, snapshots) = (self.table.storage().store_status(), self.table.storage().snapshots());
        self.store = self.store.take().or(store);
        self.snapshots = self.snapshots.take().or_else(|| snapshots.map(|snapshots| snapshots.watch()));
    }

    /// Starts the task that makes the table's bases, once there is a journal.
    fn start_maker(&mut self) -> Option<BaseMaker> {
        let journal = self.table.writer()?.journal().clone();
        Some(BaseMaker::start(self.table.name().clone(), journal, self.table.storage().bases().clone()))
    }

    /// Begins an attempt to copy the table.
    fn start_copy(&mut self) -> CopyTask {
        self.retry_at = None;
        // Folders that were missing were opened for this copy.
        self.watch_folders();
        // A stopped table has not received the stream's progress, and on an idle database there is
        // no new one.
        self.has_progress = true;
        self.table.begin_attempt();
        let recent = self.table.recent().clone();
        let admits: SnapshotCheck = Arc::new(move |snapshot: &TransactionSnapshot| recent.admits(snapshot));
        let (sender, events) = mpsc::channel(COPY_QUEUE);
        let (source, index, before) = (self.source.clone(), self.index, self.table.copied_under());
        self.copies += 1;
        let session = CopySessionReporter { status: self.table.shared_status(), copy: self.copies };
        let turns = self.copy_turns.clone();
        let copying = async move {
            session.waits();
            let turn = tokio::select! {
                turn = turns.take_permit() => turn,
                () = sender.closed() => return Ok(()),
            };
            session.begins();
            let copied = source.copy(index, before.as_deref(), admits, sender).await;
            drop((session, turn));
            copied
        };
        CopyTask { events, task: tokio::spawn(copying.in_current_span()) }
    }

    /// Handles the end of the copy's task. The copy has succeeded if it is complete.
    async fn copy_ended(&mut self, copy: &mut Option<CopyTask>) -> Result<FollowUpAction, TableError> {
        let Some(mut ended) = copy.take() else {
            return Ok(FollowUpAction::Nothing);
        };
        match (&mut ended.task).await {
            Ok(Ok(())) => Ok(self.table.on_copy_lost()),
            Ok(Err(SourceError::Transient(error) | SourceError::Held(error))) => {
                self.on_attempt_failed(error);
                Ok(FollowUpAction::Nothing)
            }
            Ok(Err(error @ SourceError::Definite(_))) => Err(error.into()),
            Err(panic) => Err(TableError::Source(format!("the copy's task failed: {panic}"))),
        }
    }

    /// Handles a failed attempt at a copy whose error may pass. Transactions that commit are held
    /// for the next attempt.
    fn on_attempt_failed(&mut self, error: String) {
        let delay = self.retry_delay.after_failure();
        let next_at = Instant::now() + delay;
        self.retry_at = Some(next_at);
        tracing::warn!(
            event = "copy_failed",
            table = %self.table.name(), %error, delay_ms = delay.as_millis(),
            "copying the table failed and is tried again"
        );
        self.table.on_attempt_failed(&error, next_at);
        self.answer_reloads(&Err(ReloadError::Retrying { error, next: delay }));
    }
}

/// Waits until the store's status changes. Returns an error if the store has failed. Never returns
/// without a store.
async fn store_moved(store: &mut Option<watch::Receiver<StoreStatus>>) -> Result<FollowUpAction, TableError> {
    let Some(status) = store else { return std::future::pending().await };
    if status.changed().await.is_err() {
        return std::future::pending().await;
    }
    match &status.borrow_and_update().failed {
        Some(error) => Err(StoreError::Failed(error.clone()).into()),
        None => Ok(FollowUpAction::Nothing),
    }
}

/// Waits until the snapshots' status changes. Never returns without snapshots.
async fn snapshot_written(snapshots: &mut Option<watch::Receiver<SnapshotStatus>>) {
    if let Some(status) = snapshots
        && status.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Waits until the table is removed.
async fn until_removed(removed: &mut watch::Receiver<bool>) {
    // The table is removed, too, if nothing is left that could tell.
    let _ = removed.wait_for(|is_removed| *is_removed).await;
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Runs work that may take long. The runtime moves the other tasks of this thread elsewhere
/// meanwhile.
fn run_aside<T>(heavy: bool, work: impl FnOnce() -> T) -> T {
    match heavy && Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
        true => tokio::task::block_in_place(work),
        false => work(),
    }
}

async fn next_of(copy: &mut Option<CopyTask>) -> Option<CopyEvent> {
    match copy {
        Some(copy) => copy.events.recv().await,
        None => std::future::pending().await,
    }
}
