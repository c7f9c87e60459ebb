//! A table: its state, its journal, and the copies that begin or repair it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use laredo_core::{
    Checksum, ChecksumBuckets, CommitMark, CommitTime, Lsn, Sequence, TableName, TableState, Tuple, TupleBuf, TupleRef,
    Xid,
};
use laredo_proto::batch::EntryAction;
use laredo_values::VisibleEffect;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::base::BaseLocation;
use crate::durable::DurablePosition;
use crate::history::Fork;
use crate::journal::{InstanceId, Journal, JournalOptions, JournalWriter};
use crate::pipeline::{Pipeline, PipelineOptions};
use crate::snapshots::{SnapshotFolder, SnapshotOptions};
use crate::source::{CopyEvent, SourceIdentity, TableRequest};
use crate::spool::Spool;
use crate::status::{CommitXids, TablePhase, TableStatus};
use crate::store::StoreError;
use crate::verify::VerifySchedule;

mod apply;
mod bases;
#[cfg(debug_assertions)]
mod canary;
mod change_tracker;
mod commit_queue;
mod copy;
mod displaced_rows;
mod error;
mod folders;
mod fork;
mod journal_start;
mod recent_transactions;
mod recopy_diff;
mod redefinition;
mod row_diff;
#[cfg(test)]
mod tests;
mod turns;
mod verification;
mod verification_control;
mod verifier;
mod worker;

use apply::{ApplyError, ChangeEffect, apply_spool};
use copy::{CopyStopReason, OngoingCopy};
pub(crate) use error::TableError;
pub(crate) use folders::{SavedTable, TableFolders, open_table_folders};
use recent_transactions::RecentTransactions;
pub(crate) use redefinition::{OwedCopy, Redefinition};
pub use turns::CopyCounts;
pub(crate) use turns::{CopyTurns, VerifyTurns};
use verification::Verification;
pub(crate) use worker::{QueuedTableEvent, StreamProgress, TableEvent, TableWorker};

/// The configuration of a table.
#[derive(Clone, Debug)]
pub struct TableOptions {
    /// The name of the table, and the columns that identify its rows.
    pub request: TableRequest,
    /// The filters and transforms between the table and its readers.
    pub pipeline: PipelineOptions,
    /// The options of the journal, which limit how much of the past is kept.
    pub journal: JournalOptions,
    /// The number of bytes of transactions that are held during a copy before the stream is no
    /// longer read.
    pub held_bytes_max: u64,
    /// The name of the journal.
    pub instance: InstanceId,
    /// The first sequence of the journal. It is a random number below 2^52, so that a sequence of
    /// another journal is never mistaken for one of this journal.
    pub first_sequence: Sequence,
    /// The folder for temporary files.
    pub folder: PathBuf,
    /// The folder that keeps the journal for the next start, and contains nothing else. `None`
    /// keeps the journal in memory and temporary files.
    pub store: Option<PathBuf>,
    /// The options of the snapshots; `None` if none are written.
    pub snapshots: Option<SnapshotOptions>,
    /// The schedule of verifications in the background; `None` if there are none.
    pub verify: Option<VerifySchedule>,
}

/// A function that returns the time of day.
pub type Clock = Arc<dyn Fn() -> CommitTime + Send + Sync>;

/// The state that a table shares with its handles.
pub(crate) type SharedTableState =
    (Arc<Mutex<TableStatus>>, Arc<Mutex<CommitXids>>, watch::Sender<Option<Arc<SnapshotFolder>>>);

/// A table as a state machine: events in, journal out. It never waits.
#[derive(Debug)]
pub(crate) struct Table {
    options: TableOptions,
    clock: ClockHandle,
    phase: TableLifecycle,
    /// The table as it was last known; absent before the first copy.
    live: Option<LiveTable>,
    /// The transactions that a copy's snapshot must see.
    recent: RecentTransactions,
    /// True from a fork of the history until a copy has begun the new journal. Until then the
    /// journal belongs to the abandoned history.
    is_forked: bool,
    /// The time at which the state was last known to equal the source's.
    current_at: CommitTime,
    /// The copy that was requested while another one was being made.
    owes_copy: Option<OwedCopy>,
    /// The position that the stream has to reach before a copy begins, and the reason for the copy.
    copy_due: Option<(Lsn, String)>,
    /// The reason for the copy that is being made, or was made last.
    copy_reason: String,
    /// The forks of the history that could not be noted on disk, in their order. The table is not
    /// followed again before they are noted.
    forks_due: Vec<fork::UnnotedFork>,
    /// A definition that the rows will have once the stream reaches its position.
    definition_due: Option<Redefinition>,
    status: Arc<Mutex<TableStatus>>,
    commits: Arc<Mutex<CommitXids>>,
    journal: watch::Sender<Option<Journal>>,
    bases: BaseLocation,
    /// The identity of the source, which a new journal in the store is labeled with.
    identity: SourceIdentity,
    /// The first sequence of the next journal.
    first_sequence: Sequence,
    /// Positions up to here may belong to a history that the database has abandoned.
    abandoned: Lsn,
    /// The journals of those histories. Each has the newest position that its history is known to
    /// share with the present one.
    abandoned_journals: Vec<(InstanceId, Lsn)>,
    /// The snapshots, which the table shares with its handles.
    snapshots: watch::Sender<Option<Arc<SnapshotFolder>>>,
    /// The verification pass that is running.
    verification: Option<Box<Verification>>,
}

struct ClockHandle(Clock);

impl std::fmt::Debug for ClockHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

#[derive(Debug)]
enum TableLifecycle {
    Copying(Box<OngoingCopy>),
    Live,
    /// The table is not followed. Transactions are only remembered, because the next copy has to
    /// see them. The status says whether another attempt is scheduled.
    Stopped,
}

#[derive(Debug)]
struct LiveTable {
    state: TableState,
    pipeline: Pipeline,
    writer: JournalWriter,
    known: RowOrigin,
    /// The checksums of the rows that readers receive; `None` if those are the rows of the state.
    shown: Option<ChecksumBuckets>,
    /// True if readers receive the checksum.
    is_compared: bool,
}

/// The origin of the rows in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowOrigin {
    /// The source's rows. Readers have what the pipeline makes of them.
    Source,
    /// The rows that readers have, as a journal has kept them after filters and transforms. Only a
    /// copy has the source's rows.
    Readers,
    /// Unknown rows. The next copy has to send all rows.
    Nothing,
}

/// The action that a table needs after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FollowUpAction {
    Nothing,
    /// A copy. One that is under way is given up.
    Copy,
    /// A copy after a delay that grows each time, because the last copy could not be used.
    CopyLater,
    /// The next attempt at the copy that is owed.
    Retry,
}

/// The changes of a committed transaction to one table.
#[derive(Debug)]
pub(crate) struct TableCommit {
    pub(crate) xid: Xid,
    pub(crate) end: Lsn,
    pub(crate) committed_at: CommitTime,
    pub(crate) spool: Spool,
}

impl TableCommit {
    pub(crate) fn mark(&self) -> CommitMark {
        CommitMark { end: self.end, xid: self.xid, committed_at: self.committed_at }
    }
}

impl Table {
    pub(crate) fn new(
        options: TableOptions,
        clock: Clock,
        (status, commits, snapshots): SharedTableState,
        journal: watch::Sender<Option<Journal>>,
        identity: SourceIdentity,
    ) -> Table {
        let phase = TableLifecycle::Copying(Box::new(OngoingCopy::new(None)));
        let clock = ClockHandle(clock);
        let bases = BaseLocation { folder: options.folder.clone(), store: None };
        Table {
            first_sequence: options.first_sequence,
            abandoned: Lsn::ZERO,
            abandoned_journals: Vec::new(),
            options,
            clock,
            phase,
            live: None,
            recent: RecentTransactions::default(),
            is_forked: false,
            current_at: CommitTime::default(),
            owes_copy: None,
            copy_due: None,
            copy_reason: "first copy".to_owned(),
            forks_due: Vec::new(),
            definition_due: None,
            status,
            commits,
            journal,
            bases,
            identity,
            snapshots,
            verification: None,
        }
    }

    pub(crate) fn name(&self) -> &TableName {
        &self.options.request.name
    }

    /// Returns the status, which the table shares with its handles.
    pub(crate) fn shared_status(&self) -> Arc<Mutex<TableStatus>> {
        self.status.clone()
    }

    /// Returns the transactions that a copy's snapshot must see.
    pub(crate) fn recent(&self) -> &RecentTransactions {
        &self.recent
    }

    /// Returns true if so many bytes are held that the stream should wait for the copy.
    pub(crate) fn is_holding_enough(&self) -> bool {
        matches!(&self.phase, TableLifecycle::Copying(copying) if copying.is_full(self.options.held_bytes_max))
    }

    /// Returns the definition that the last copy was made under, as the source gave it; `None` if
    /// the rows are not the source's.
    pub(crate) fn copied_under(&self) -> Option<String> {
        self.live.as_ref().and_then(LiveTable::definition)
    }

    /// Returns true if the table is being copied, or waits for the next attempt at a copy.
    pub(crate) fn is_copying(&self) -> bool {
        matches!(self.phase, TableLifecycle::Copying(_))
    }

    /// Returns true if the copy that is being made has begun to arrive.
    pub(crate) fn has_copied_rows(&self) -> bool {
        matches!(&self.phase, TableLifecycle::Copying(copying) if copying.progress().is_some())
    }

    /// Returns true if the table follows its source.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.phase, TableLifecycle::Live)
    }

    /// Returns the journal's writer; `None` before the first copy, and after the table has stopped.
    pub(crate) fn writer(&mut self) -> Option<&mut JournalWriter> {
        match self.phase {
            TableLifecycle::Stopped => None,
            TableLifecycle::Copying(_) | TableLifecycle::Live => self.live.as_mut().map(|live| &mut live.writer),
        }
    }

    /// Handles a committed transaction.
    pub(crate) fn on_commit(&mut self, mut commit: TableCommit) -> Result<FollowUpAction, TableError> {
        match &mut self.phase {
            TableLifecycle::Stopped => {
                // The next copy has to see this transaction.
                self.recent.remember(commit.xid);
                Ok(FollowUpAction::Nothing)
            }
            TableLifecycle::Copying(copying) => {
                let copied = copying.commit(commit, &self.options, &mut self.recent);
                self.after_copying(copied)
            }
            TableLifecycle::Live => {
                if self.fits(&mut commit)? {
                    let wants = self.apply(commit)?;
                    let wants = self.define_if_due(wants)?;
                    return self.copy_if_due(wants);
                }
                self.recent.remember(commit.xid);
                let wants = self.copy_again("the table's columns or types have changed")?;
                self.on_commit(commit)?;
                Ok(wants)
            }
        }
    }

    /// Returns true if a transaction's rows are rows of the schema that the table was copied under.
    /// A transaction that the table already has is not examined.
    fn fits(&self, commit: &mut TableCommit) -> io::Result<bool> {
        let Some(live) = &self.live else { return Ok(false) };
        Ok(commit.end <= live.writer.committed().position || live.pipeline.fits(&mut commit.spool)?)
    }

    /// Handles the progress of the stream: every commit up to `position` has been sent.
    /// `current_at` is the time of the last of them; `None` if the source has no newer commit now.
    /// `mark` is the newest of those commits, of any table.
    pub(crate) fn on_progress(
        &mut self,
        position: Lsn,
        current_at: Option<CommitTime>,
        mark: CommitMark,
    ) -> Result<FollowUpAction, TableError> {
        match (&mut self.phase, &mut self.live) {
            (TableLifecycle::Copying(copying), _) => {
                copying.reached(position, mark);
                self.complete_when_reached()
            }
            (TableLifecycle::Live, Some(live)) => {
                live.writer.advance(position, mark);
                self.current_at = current_at.unwrap_or_else(|| (self.clock.0)());
                let wants = self.define_if_due(FollowUpAction::Nothing)?;
                self.copy_if_due(wants)
            }
            _ => Ok(FollowUpAction::Nothing),
        }
    }

    /// Handles a gap in the stream. Commits before this point may be missing, also in a copy that
    /// is under way. `fork` is set if nothing proves that the history is still the one that was
    /// followed.
    pub(crate) fn on_restarted(&mut self, reason: &str, fork: Option<&Fork>) -> Result<FollowUpAction, TableError> {
        if let Some(fork) = fork {
            self.note_or_owe_fork(None, fork, reason)?;
            // PostgreSQL was restarted. Everything that it kept has been visible since, and what it
            // lost will never be.
            self.recent = RecentTransactions::default();
        }
        match &mut self.phase {
            TableLifecycle::Stopped => self.revive(reason),
            TableLifecycle::Copying(copying) => {
                copying.note_gap();
                if fork.is_some() {
                    copying.forget_held();
                }
                copying.start_over();
                Ok(FollowUpAction::Copy)
            }
            TableLifecycle::Live => self.copy_after_a_gap(reason),
        }
    }

    /// Returns true if the table should be retried automatically after this error.
    pub(crate) fn may_retry(&self, error: &TableError) -> bool {
        error.may_pass() && self.store_failure().is_none()
    }

    /// Stops following the table. Readers keep their rows. `next_at` is the time of the next
    /// attempt, if one is scheduled.
    pub(crate) fn stop(&mut self, error: &TableError, next_at: Option<Instant>) {
        let error = error.to_string();
        // The positions that the store lost are only in the source, which must not forget them.
        let is_kept = self.store_failure().is_some() || (next_at.is_some() && self.bases.store.is_some());
        match next_at {
            Some(_) => {
                tracing::warn!(table = %self.name(), %error, "the table is not followed for now, and is tried again")
            }
            None => tracing::error!(table = %self.name(), %error, "table stopped"),
        }
        if let TableLifecycle::Copying(copying) = &mut self.phase {
            copying.abandon(&mut self.recent);
        }
        self.phase = TableLifecycle::Stopped;
        self.verification = None;
        let mut status = self.status.lock();
        status.phase = match next_at {
            Some(next_at) => TablePhase::Retrying { error, next_at },
            None => TablePhase::Failed { error },
        };
        status.has_failed = true;
        status.copy = None;
        status.releasable = status.releasable.filter(|_| is_kept);
    }

    /// Tries again to follow a table that is stopped.
    pub(crate) fn retry(&mut self) -> Result<FollowUpAction, TableError> {
        match self.phase {
            TableLifecycle::Stopped => self.revive(&self.copy_reason.clone()),
            TableLifecycle::Copying(_) => Ok(FollowUpAction::Retry),
            TableLifecycle::Live => Ok(FollowUpAction::Nothing),
        }
    }

    /// Reports that an attempt to copy the table begins. Transactions that commit from now on are
    /// held for it.
    pub(crate) fn begin_attempt(&mut self) {
        if let TableLifecycle::Copying(copying) = &mut self.phase {
            copying.begin_attempt();
            self.status.lock().phase = TablePhase::Copying { reason: self.copy_reason.clone() };
        }
    }

    /// Reports that an attempt to copy the table has failed, and the time of the next one.
    pub(crate) fn on_attempt_failed(&mut self, error: &str, next_at: Instant) {
        if let TableLifecycle::Copying(copying) = &mut self.phase {
            copying.start_over();
            let error = format!("copying the table: {error}");
            let mut status = self.status.lock();
            status.phase = TablePhase::Retrying { error, next_at };
            status.has_failed = true;
            status.copy = None;
        }
    }

    /// Drops the transactions that are held for a copy while none is being made. Other tables then
    /// do not wait for this one.
    pub(crate) fn stop_holding(&mut self) {
        let TableLifecycle::Copying(copying) = &mut self.phase else { return };
        tracing::info!(
            table = %self.options.request.name,
            "transactions are not held any more while the copy cannot be made: readers will get them as one transaction"
        );
        copying.stop_holding(&mut self.recent);
        self.status.lock().releasable = None;
    }

    /// Handles an event of a copy.
    pub(crate) fn on_copy(&mut self, event: CopyEvent) -> Result<FollowUpAction, TableError> {
        let TableLifecycle::Copying(copying) = &mut self.phase else {
            return Ok(FollowUpAction::Nothing);
        };
        let known = self.live.as_ref().filter(|_| !copying.is_after_fork());
        let known = known.map(|live| (&live.state, &live.pipeline));
        let received = copying.receive(event, (&self.options, &self.bases), known, (self.clock.0)(), &mut self.recent);
        copying.log_progress(&self.options.request.name);
        self.after_copying(received)
    }

    /// Handles a copy that ended without success. Another one has to be made.
    pub(crate) fn on_copy_lost(&mut self) -> FollowUpAction {
        match &mut self.phase {
            TableLifecycle::Copying(copying) if !copying.has_ended() => {
                copying.start_over();
                FollowUpAction::CopyLater
            }
            _ => FollowUpAction::Nothing,
        }
    }

    /// Follows a stopped table again, by a copy.
    ///
    /// # Errors
    /// When the table's store accepts no writes.
    fn revive(&mut self, reason: &str) -> Result<FollowUpAction, TableError> {
        self.open_missing_folders()?;
        if let Some(error) = self.store_failure() {
            return Err(StoreError::Failed(error).into());
        }
        if let Some(reason) = self.store_stall().filter(|_| self.is_ahead_of_disk()) {
            return Err(StoreError::Stalled(reason).into());
        }
        if let Some(action) = self.note_due_forks()? {
            return Ok(action);
        }
        if self.live.is_some() {
            return self.copy_after_a_gap(reason);
        }
        let copying = match self.is_forked {
            true => OngoingCopy::after_fork(),
            false => OngoingCopy::new(None),
        };
        self.begin_copying(copying, reason);
        Ok(FollowUpAction::Copy)
    }

    /// Returns true if the store is so far behind that the table should wait for it.
    fn is_ahead_of_disk(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.writer.is_ahead_of_disk())
    }

    /// Makes a full disk a failure of the store, and not a reason to wait, because the table ends.
    pub(crate) fn stop_waiting_for_disk(&mut self) {
        if let Some(live) = &self.live {
            live.writer.stop_waiting_for_disk();
        }
    }

    fn begin_copying(&mut self, copying: OngoingCopy, reason: &str) {
        self.phase = TableLifecycle::Copying(Box::new(copying));
        reason.clone_into(&mut self.copy_reason);
        self.status.lock().phase = TablePhase::Copying { reason: reason.to_owned() };
    }

    /// Begins the copy that waits for the stream, if the stream has come so far.
    fn copy_if_due(&mut self, wants: FollowUpAction) -> Result<FollowUpAction, TableError> {
        let Some(LiveTable { writer, .. }) = &self.live else { return Ok(wants) };
        let reached = writer.committed().position;
        match self.copy_due.take_if(|(at, _)| *at <= reached) {
            Some((_, reason)) if wants == FollowUpAction::Nothing => self.copy_again(&reason),
            _ => Ok(wants),
        }
    }

    /// Copies the table again, because commits may be missing after the last known position.
    fn copy_after_a_gap(&mut self, reason: &str) -> Result<FollowUpAction, TableError> {
        let wants = self.copy_again(reason)?;
        if let TableLifecycle::Copying(copying) = &mut self.phase {
            copying.note_gap();
        }
        Ok(wants)
    }

    fn copy_again(&mut self, reason: &str) -> Result<FollowUpAction, TableError> {
        tracing::info!(table = %self.name(), reason, "the table is copied again");
        let Some(live) = &mut self.live else {
            return Ok(FollowUpAction::Nothing);
        };
        live.writer.publish()?;
        (self.copy_due, self.definition_due) = (None, None);
        // The copy compares every row, so the pass is not needed.
        self.verification = None;
        let copying = match self.is_forked {
            true => OngoingCopy::after_fork(),
            false => OngoingCopy::new(Some(live.writer.committed().position)),
        };
        self.begin_copying(copying, reason);
        Ok(FollowUpAction::Copy)
    }

    fn apply(&mut self, mut commit: TableCommit) -> Result<FollowUpAction, TableError> {
        let Some(live) = &mut self.live else {
            return Ok(FollowUpAction::Nothing);
        };
        if commit.end <= live.writer.committed().position {
            return Ok(FollowUpAction::Nothing);
        }
        // A later copy has to see the transaction, even if it cannot be applied.
        self.recent.remember(commit.xid);
        match live.apply(&mut commit, self.verification.as_deref_mut()) {
            Ok(counts) => {
                self.commits.lock().remember(commit.end, commit.xid);
                self.current_at = commit.committed_at;
                counts.add_to(&mut self.status.lock());
                Ok(FollowUpAction::Nothing)
            }
            Err(ApplyError::Io(error)) => Err(error.into()),
            Err(error @ (ApplyError::Diverged(_) | ApplyError::Incomplete)) => {
                tracing::error!(table = %self.name(), %error, position = %commit.end, "copying the table anew");
                let wants = self.copy_again(&error.to_string())?;
                self.on_commit(commit)?;
                Ok(wants)
            }
        }
    }

    fn after_copying(&mut self, result: Result<(), CopyStopReason>) -> Result<FollowUpAction, TableError> {
        match result {
            Ok(()) => self.complete_when_reached(),
            Err(CopyStopReason::Failed(error)) => Err(error),
            Err(CopyStopReason::StartOver(reason)) => {
                tracing::warn!(table = %self.name(), reason, "the copy is made again");
                if let TableLifecycle::Copying(copying) = &mut self.phase {
                    copying.start_over();
                }
                Ok(FollowUpAction::CopyLater)
            }
        }
    }

    fn complete_when_reached(&mut self) -> Result<FollowUpAction, TableError> {
        let TableLifecycle::Copying(copying) = &mut self.phase else {
            return Ok(FollowUpAction::Nothing);
        };
        let is_after_fork = copying.is_after_fork();
        let Some(done) = copying.complete() else {
            return Ok(FollowUpAction::Nothing);
        };
        let (copied_under, definition) = (done.definition.clone(), self.definition(done.definition.clone()));
        match &mut self.live {
            _ if is_after_fork => self.replace_journal(done, definition)?,
            None => self.live = Some(self.begin_journal(done, definition, None)?),
            Some(live) => {
                let counts = recopy_diff::publish_copy(live, done, definition.version())?;
                counts.add_to(&mut self.status.lock());
                live.writer.define(definition);
            }
        }
        self.phase = TableLifecycle::Live;
        self.current_at = (self.clock.0)();
        self.report_copied();
        match self.owes_copy.take() {
            Some(owed) if owed.is_owed_after(&copied_under) => self.copy_again(&owed.reason),
            Some(_) | None => Ok(FollowUpAction::Nothing),
        }
    }

    fn report_copied(&mut self) {
        let Some(live) = &self.live else { return };
        let mut status = self.status.lock();
        status.phase = TablePhase::Live;
        status.copies += 1;
        let (rows, position) = (live.state.len(), live.writer.committed().position);
        let seconds = status.copy.take().map_or(0.0, |copy| copy.started_at.elapsed().as_secs_f64());
        tracing::info!(table = %self.options.request.name, rows, %position, seconds, "table copied");
    }

    /// Updates the status, once per burst of events.
    pub(crate) fn report(&mut self) {
        #[cfg(debug_assertions)]
        if let Some(live) = &mut self.live {
            canary::plant_if_asked(&self.options.request.name, &mut live.state);
        }
        let mut status = self.status.lock();
        if let Some(live) = &self.live {
            let committed = live.writer.committed();
            status.rows = live.state.len() as u64;
            status.row_bytes = live.state.row_bytes();
            status.position = committed.position;
            status.committed_at = committed.committed_at;
            status.current_at = self.current_at;
            if matches!(&self.phase, TableLifecycle::Copying(copying) if copying.is_after_fork()) {
                // Positions of another history say nothing about what the source may forget.
                status.releasable = Some(DurablePosition::default());
            } else if matches!(&self.phase, TableLifecycle::Copying(copying) if copying.is_waiting()) {
                // The copy that is owed decides what the source has to keep.
                status.releasable = None;
            } else if !matches!(self.phase, TableLifecycle::Stopped) {
                status.releasable = Some(match (live.writer.journal().store_status(), self.snapshots()) {
                    (Some(store), _) => store.durable,
                    (None, Some(snapshots)) => snapshots.status().durable,
                    (None, None) => DurablePosition::not_kept(committed.position),
                });
            }
        }
        let (copy, held) = match &self.phase {
            TableLifecycle::Copying(copying) => (copying.progress(), copying.held_bytes()),
            TableLifecycle::Live | TableLifecycle::Stopped => (None, 0),
        };
        (status.copy, status.held_bytes) = (copy, held);
    }
}

impl LiveTable {
    /// Applies a transaction, and writes it to the journal.
    fn apply(
        &mut self,
        commit: &mut TableCommit,
        mut verification: Option<&mut Verification>,
    ) -> Result<TableChangeCounts, ApplyError> {
        let LiveTable { state, pipeline, writer, known, shown, is_compared } = self;
        writer.begin_commit(commit.mark())?;
        let (mut counts, mut scratch) = (TableChangeCounts::default(), EmittedRowBuffers::default());
        let applied = apply_spool(state, pipeline, &mut commit.spool, commit.committed_at, |applied| {
            counts.count(applied);
            if let Some(verification) = &mut verification {
                verification.track(commit.xid, pipeline.state().key(), applied);
            }
            emit_change(writer, pipeline, applied, &mut scratch, shown.as_mut())
        });
        if let Err(error) = applied {
            writer.abort();
            *known = RowOrigin::Nothing;
            return Err(error);
        }
        if *is_compared {
            writer.note_checksum(readers_checksum(state, shown.as_ref()));
        }
        writer.commit()?;
        Ok(counts)
    }

    /// Returns the definition that the last copy was made under, if the rows are the source's.
    fn definition(&self) -> Option<String> {
        (self.known == RowOrigin::Source).then(|| self.writer.journal().definition().source)
    }
}

/// Returns the checksum of the rows that readers receive: that of the state, unless it is kept
/// separately.
fn readers_checksum(state: &TableState, shown: Option<&ChecksumBuckets>) -> Checksum {
    shown.map_or_else(|| state.checksum(), ChecksumBuckets::total)
}

#[derive(Default)]
struct TableChangeCounts {
    inserts: u64,
    updates: u64,
    deletes: u64,
    truncates: u64,
}

impl TableChangeCounts {
    fn add(&mut self, more: &TableChangeCounts) {
        self.inserts += more.inserts;
        self.updates += more.updates;
        self.deletes += more.deletes;
        self.truncates += more.truncates;
    }

    fn count(&mut self, applied: ChangeEffect<'_>) {
        match applied {
            ChangeEffect::Row { old: None, .. } => self.inserts += 1,
            ChangeEffect::Row { old: Some(_), new: Some(_), .. } => self.updates += 1,
            ChangeEffect::Row { old: Some(_), new: None, .. } => self.deletes += 1,
            ChangeEffect::Truncate => self.truncates += 1,
        }
    }

    fn add_to(&self, status: &mut TableStatus) {
        status.inserts += self.inserts;
        status.updates += self.updates;
        status.deletes += self.deletes;
        status.truncates += self.truncates;
    }
}

#[derive(Default)]
struct EmittedRowBuffers {
    new: TupleBuf,
    old: TupleBuf,
    key: TupleBuf,
}

/// Writes the change that readers see to the journal, and to the checksums of the rows that they
/// have.
fn emit_change(
    writer: &mut JournalWriter,
    pipeline: &Pipeline,
    applied: ChangeEffect<'_>,
    scratch: &mut EmittedRowBuffers,
    shown: Option<&mut ChecksumBuckets>,
) -> io::Result<()> {
    let (old, new) = match applied {
        ChangeEffect::Truncate => {
            shown.into_iter().for_each(ChecksumBuckets::clear);
            return writer.push(EntryAction::Truncate, TupleRef::trusted(&[]), None);
        }
        ChangeEffect::Row { old, new, .. } => (old.map(Tuple::as_ref), new.map(Tuple::as_ref)),
    };
    let EmittedRowBuffers { new: new_out, old: old_out, key } = scratch;
    let (old, new) = match pipeline.classify(old, new) {
        VisibleEffect::Nothing => return Ok(()),
        VisibleEffect::Insert => (None, new),
        VisibleEffect::Update => (old, new),
        VisibleEffect::Delete => (old, None),
    };
    let old = old.map(|old| pipeline.out_row(old, old_out));
    let new = new.map(|new| pipeline.out_row(new, new_out));
    shown.into_iter().for_each(|shown| shown.replace(pipeline.out().key(), old, new));
    match (old, new) {
        (None, Some(new)) => writer.push(EntryAction::Insert, new, None),
        (Some(old), Some(new)) => writer.push(EntryAction::Update, new, Some(old)),
        (Some(old), None) => {
            key.clear();
            pipeline.out().key().cells_of(old).for_each(|cell| key.push(cell));
            writer.push(EntryAction::Delete, key.as_ref(), Some(old))
        }
        (None, None) => Ok(()),
    }
}
