//! A table: its state, its journal, and the copies that begin or repair it.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitMark, CommitTime, Lsn, TableName};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::durable::DurablePosition;
use crate::journal::JournalWriter;
use crate::recovery::RestoredJournal;
use crate::snapshots::{RecoveredSnapshot, SnapshotError, SnapshotInfo};
use crate::source::{CopyEvent, Fork, ResumeDecision, SourceServer};
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
mod follow_up;
mod lifecycle;
mod options;
mod published;
mod recent_transactions;
mod recopy_diff;
mod redefinition;
mod row_diff;
mod server_run;
mod storage;
#[cfg(test)]
mod tests;
mod turns;
mod verification;
mod verification_log;
mod verifier;
mod worker;

use apply::ApplyError;
use copy::{CopyStopReason, OngoingCopy};
pub(crate) use error::TableError;
pub(crate) use folders::{SavedTable, TableFolders, open_table_folders};
pub(crate) use follow_up::FollowUpAction;
use lifecycle::{LiveTable, TableLifecycle};
pub use options::TableOptions;
pub(crate) use options::{SharedTableState, table_span};
pub(crate) use published::TableCommit;
use published::{PublishedTable, RowOrigin, TableChangeCounts};
use recent_transactions::RecentTransactions;
pub(crate) use redefinition::{OwedCopy, Redefinition};
use server_run::ServerRun;
use storage::TableStorage;
pub use turns::CopyCounts;
pub(crate) use turns::{CopyTurns, VerifyTurns};
pub(crate) use worker::{QueuedTableEvent, StreamProgress, TableEvent, TableInbox, TableWorker};

/// A table as a state machine: events in, journal out. It never waits.
pub(crate) struct Table {
    options: Arc<TableOptions>,
    clock: Clock,
    lifecycle: TableLifecycle,
    storage: TableStorage,
    /// The transactions that a copy's snapshot must see.
    recent: RecentTransactions,
    /// The run of PostgreSQL that the stream comes from.
    server_run: ServerRun,
    /// True from a fork of the history until a copy has begun the new journal. Until then the
    /// journal belongs to the abandoned history.
    is_forked: bool,
    /// The forks of the history that could not be noted on disk, in their order. The table is not
    /// followed again before they are noted.
    forks_due: Vec<UnnotedFork>,
    /// The time at which the state was last known to equal the source's.
    current_at: CommitTime,
    /// The reason for the copy that is being made, or was made last.
    copy_reason: String,
    status: Arc<Mutex<TableStatus>>,
    commits: Arc<Mutex<CommitXids>>,
}

/// A fork that could not be noted on disk.
#[derive(Debug)]
struct UnnotedFork {
    /// The server with the present identity; `None` if the history may still be the same.
    server: Option<SourceServer>,
    fork: Fork,
    reason: String,
}

impl Table {
    pub(crate) fn new(options: TableOptions, clock: Clock, shared: SharedTableState, server: SourceServer) -> Table {
        let SharedTableState { status, commits, journal, snapshots } = shared;
        let options = Arc::new(options);
        Table {
            storage: TableStorage::new(options.clone(), server, journal, snapshots),
            options,
            clock,
            lifecycle: TableLifecycle::new(),
            recent: RecentTransactions::default(),
            server_run: ServerRun::default(),
            is_forked: false,
            forks_due: Vec::new(),
            current_at: CommitTime::default(),
            copy_reason: "first copy".to_owned(),
            status,
            commits,
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

    fn storage(&self) -> &TableStorage {
        &self.storage
    }

    /// Uses the folders for the journal, its bases and the snapshots. Returns what was in them.
    pub(crate) fn use_folders(&mut self, opened: TableFolders) -> Option<SavedTable> {
        self.storage.use_folders(opened)
    }

    /// Begins in a run, after `forks` forks of the history. Marks count once a copy is complete.
    pub(crate) fn begin_late(&mut self, forks: u64) {
        self.storage.begin_after_forks(forks);
        let mut status = self.status.lock();
        (status.forks, status.marks_from) = (forks, Lsn(u64::MAX));
    }

    /// Returns true if so many bytes are held that the stream should wait for the copy.
    pub(crate) fn is_holding_enough(&self) -> bool {
        self.lifecycle.copy().is_some_and(|copy| copy.is_full(self.options.held_bytes_max))
    }

    /// Returns the definition that the last copy was made under, as the source gave it; `None` if
    /// the rows are not the source's.
    pub(crate) fn copied_under(&self) -> Option<String> {
        self.lifecycle.served().and_then(PublishedTable::definition)
    }

    /// Returns true if the table is being copied, or waits for the next attempt at a copy.
    pub(crate) fn is_copying(&self) -> bool {
        self.lifecycle.copy().is_some()
    }

    /// Returns true if the copy that is being made has begun to arrive.
    pub(crate) fn has_copied_rows(&self) -> bool {
        self.lifecycle.copy().is_some_and(|copy| copy.progress().is_some())
    }

    /// Returns true if the table follows its source.
    pub(crate) fn is_live(&self) -> bool {
        self.lifecycle.live().is_some()
    }

    /// Returns true if every row is checked when the definition that waits for the stream is due.
    pub(crate) fn has_rows_to_check(&self) -> bool {
        self.lifecycle.live().is_some_and(LiveTable::has_rows_to_check)
    }

    /// Returns the journal's writer; `None` before the first copy, and after the table has stopped.
    pub(crate) fn writer(&mut self) -> Option<&mut JournalWriter> {
        match &mut self.lifecycle {
            TableLifecycle::Stopped { .. } => None,
            TableLifecycle::Copying { served, .. } => served.as_mut().map(|served| &mut served.writer),
            TableLifecycle::Live(live) => Some(&mut live.served.writer),
        }
    }

    /// Handles a committed transaction.
    pub(crate) fn on_commit(&mut self, mut commit: TableCommit) -> Result<FollowUpAction, TableError> {
        match &mut self.lifecycle {
            TableLifecycle::Stopped { .. } => {
                // The next copy has to see this transaction.
                self.recent.remember(commit.xid);
                Ok(FollowUpAction::Nothing)
            }
            TableLifecycle::Copying { copy, .. } => {
                let copied = copy.commit(commit, &self.options, &mut self.recent);
                self.after_copying(copied)
            }
            TableLifecycle::Live(live) => {
                if live.served.fits(&mut commit)? {
                    let action = self.apply(commit)?;
                    let action = self.define_if_due(action)?;
                    return self.copy_if_due(action);
                }
                self.recent.remember(commit.xid);
                let action = self.copy_again("the table's columns or types have changed")?;
                self.on_commit(commit)?;
                Ok(action)
            }
        }
    }

    /// Handles the progress of the stream: every commit up to `position` has been sent.
    /// `current_at` is a time at which the source had no others, if one is known. `mark` is the
    /// newest of those commits, of any table.
    pub(crate) fn on_progress(
        &mut self,
        position: Lsn,
        current_at: Option<CommitTime>,
        mark: CommitMark,
    ) -> Result<FollowUpAction, TableError> {
        let mark = if mark.end >= self.status.lock().marks_from { mark } else { CommitMark::default() };
        match &mut self.lifecycle {
            TableLifecycle::Copying { copy, .. } => {
                copy.reached(position, mark);
                self.complete_when_reached()
            }
            TableLifecycle::Live(live) => {
                live.served.writer.advance(position, mark);
                self.current_at = self.current_at.max(current_at.unwrap_or_default());
                let action = self.define_if_due(FollowUpAction::Nothing)?;
                self.copy_if_due(action)
            }
            TableLifecycle::Stopped { .. } => Ok(FollowUpAction::Nothing),
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
        match &mut self.lifecycle {
            TableLifecycle::Stopped { .. } => self.revive(reason),
            TableLifecycle::Copying { copy, .. } => {
                copy.note_gap();
                if fork.is_some() {
                    copy.forget_held();
                }
                copy.start_over();
                Ok(FollowUpAction::Copy)
            }
            TableLifecycle::Live(_) => self.copy_after_a_gap(reason),
        }
    }

    /// Handles a definition change after which the known copy may no longer match the table.
    pub(crate) fn on_moved(&mut self, request: OwedCopy) -> Result<FollowUpAction, TableError> {
        match &mut self.lifecycle {
            TableLifecycle::Stopped { .. } => self.revive(&request.reason),
            // The copy under way may have been taken before the change. If a definition was seen,
            // that of the copy decides.
            TableLifecycle::Copying { owed, .. } => {
                if owed.as_ref().is_none_or(|owed| owed.definition.is_some()) {
                    *owed = Some(request);
                }
                Ok(FollowUpAction::Nothing)
            }
            TableLifecycle::Live(_) => self.copy_again(&request.reason),
        }
    }

    /// Handles a new definition that the rows have once every commit up to a position is applied.
    /// The rows of a copy may have arrived before, so its conditions require another one.
    pub(crate) fn on_redefined(&mut self, redefinition: Redefinition) -> Result<FollowUpAction, TableError> {
        if self.is_copying() && redefinition.has_conditions() {
            return self.on_moved(redefinition.into_owed_copy());
        }
        if let Some(live) = self.lifecycle.live_mut() {
            live.set_definition_due(redefinition);
        }
        self.define_if_due(FollowUpAction::Nothing)
    }

    /// Handles a fork: the database no longer contains what the rows were made of. Once the fork is
    /// noted, the table begins again with a copy and a new journal. Readers keep their rows until
    /// then.
    ///
    /// # Errors
    /// When the fork cannot be noted.
    pub(crate) fn on_forked(
        &mut self,
        server: SourceServer,
        fork: &Fork,
        reason: &str,
    ) -> Result<FollowUpAction, TableError> {
        self.note_or_owe_fork(Some(&server), fork, reason)?;
        let (forks, is_failed) = (self.storage.count_fork(server), self.storage.store_failure().is_some());
        self.status.lock().begin_history(forks, is_failed);
        // Transactions of another history will never be visible in this one.
        self.recent = RecentTransactions::default();
        self.is_forked = true;
        self.lifecycle.forget_due();
        if is_failed {
            return Ok(FollowUpAction::Nothing);
        }
        tracing::warn!(event = "journal_replaced", reason, "the table is copied into a new journal");
        if let Some(served) = self.lifecycle.served_mut() {
            served.writer.publish()?;
            let last = served.writer.committed().sequence;
            self.storage.begin_after(last);
        }
        self.begin_copying(OngoingCopy::after_fork(), reason);
        Ok(FollowUpAction::Copy)
    }

    /// Handles a new timeline of the database, which contains everything that was followed.
    ///
    /// # Errors
    /// When the timeline cannot be noted on disk.
    pub(crate) fn on_promoted(&mut self, server: SourceServer) -> Result<FollowUpAction, TableError> {
        self.storage.note_promotion(server)?;
        Ok(FollowUpAction::Nothing)
    }

    /// Notes a fork on disk, or remembers that it has to be noted before the table is followed
    /// again.
    fn note_or_owe_fork(&mut self, server: Option<&SourceServer>, fork: &Fork, reason: &str) -> Result<(), TableError> {
        // Each later fork is of the history that an earlier one has left.
        let noted = self.note_due_forks().and_then(|_| {
            self.storage.open_missing_folders(&self.clock)?;
            self.storage.note_fork(fork, reason)
        });
        if noted.is_err() {
            let (server, fork, reason) = (server.cloned(), fork.clone(), reason.to_owned());
            self.forks_due.push(UnnotedFork { server, fork, reason });
        }
        noted
    }

    /// Notes the forks that could not be noted before, and begins the copy that they require.
    /// Returns `None` if there are none.
    fn note_due_forks(&mut self) -> Result<Option<FollowUpAction>, TableError> {
        let mut action = None;
        let mut due = std::mem::take(&mut self.forks_due).into_iter();
        while let Some(UnnotedFork { server, fork, reason }) = due.next() {
            let noted = match server {
                Some(server) => self.on_forked(server, &fork, &reason),
                None => self.on_restarted(&reason, Some(&fork)),
            };
            // A fork that still cannot be noted is due again, before those after it.
            action = Some(noted.inspect_err(|_| self.forks_due.extend(due.by_ref()))?);
        }
        Ok(action)
    }

    /// Continues with the state that an earlier run has left. Copies the table if `resume` gives a
    /// reason. Readers have the rows that are left at once. No reader can have received anything
    /// beyond the position `written`.
    pub(crate) fn restore(
        &mut self,
        mut restored: RestoredJournal,
        resume: ResumeDecision,
        written: Lsn,
    ) -> Result<(), TableError> {
        if let ResumeDecision::Copy(reason) = &resume
            && !restored.is_of_same_server
        {
            // Without the changes that the slot would have sent, nothing proves that the history is
            // still the one that was followed.
            let abandoned = restored.beginning.head.position;
            let fork = Fork { common: Lsn::ZERO, abandoned, is_certain: false };
            self.note_or_owe_fork(None, &fork, reason)?;
            restored.beginning.abandoned = self.storage.abandoned();
        }
        self.current_at = restored.beginning.head.committed_at;
        let served = self.storage.open_journal(restored)?;
        let resume = match served.origin {
            RowOrigin::Source => resume,
            RowOrigin::Readers | RowOrigin::Nothing => {
                ResumeDecision::Copy("what is kept are the rows that filters and transforms leave".to_owned())
            }
        };
        self.resume_following(served, resume, written)
    }

    /// Begins a journal at a snapshot, if the source has everything after it. Otherwise the table
    /// is copied as if there were no snapshot, because rows of any age are served only on request.
    /// `written` is the same as in `restore`.
    pub(crate) fn begin_at_snapshot(
        &mut self,
        recovered: RecoveredSnapshot,
        resume: ResumeDecision,
        written: Lsn,
    ) -> Result<(), TableError> {
        let SnapshotInfo { id, position, committed_at, .. } = recovered.info.clone();
        if let ResumeDecision::Copy(reason) = resume {
            tracing::warn!(
                event = "snapshot_not_resumable",
                table = %self.name(), id, %position, reason,
                "the table cannot continue from the newest snapshot, and is copied; RestoreSnapshot serves the snapshot's rows until then"
            );
            return Ok(());
        }
        let served = self.storage.begin_at_snapshot(recovered)?;
        self.current_at = committed_at;
        tracing::info!(
            event = "journal_begun_at_snapshot", table = %self.name(), id, %position,
            "a new journal begins at the newest snapshot"
        );
        self.resume_following(served, resume, written)
    }

    /// Serves the rows of a snapshot until the first copy is complete. Readers then receive the
    /// differences.
    ///
    /// # Errors
    /// When the table is already served, or has failed.
    pub(crate) fn restore_snapshot(&mut self, recovered: RecoveredSnapshot) -> Result<(), SnapshotError> {
        if let Some(served) = self.lifecycle.served() {
            return Err(SnapshotError::Served(served.position()));
        }
        if self.is_forked {
            // The journal after the copy must not repeat the sequences of one that begins now.
            return Err(SnapshotError::Forked);
        }
        let TableLifecycle::Copying { copy, served, .. } = &mut self.lifecycle else {
            let error = self.status.lock().phase.error().unwrap_or_default().to_owned();
            return Err(SnapshotError::Failed(error));
        };
        let SnapshotInfo { id, position, committed_at, .. } = recovered.info.clone();
        let begun = self.storage.begin_at_snapshot(recovered);
        *served = Some(begun.map_err(|error| SnapshotError::Failed(error.to_string()))?);
        copy.continue_from(position);
        self.current_at = committed_at;
        tracing::warn!(
            event = "snapshot_rows_served", table = %self.name(), id, %position,
            "the rows of a snapshot are served until the table is copied"
        );
        Ok(())
    }

    /// Serves the table, and follows or copies it again.
    fn resume_following(
        &mut self,
        served: PublishedTable,
        resume: ResumeDecision,
        written: Lsn,
    ) -> Result<(), TableError> {
        let mut live = LiveTable::new(served);
        if let ResumeDecision::FollowThenCopy(reason) = &resume {
            live.set_copy_due(written, reason.clone());
        }
        self.lifecycle = TableLifecycle::Live(live);
        self.status.lock().phase = TablePhase::Live;
        match resume {
            ResumeDecision::Follow | ResumeDecision::FollowThenCopy(_) => {}
            ResumeDecision::Copy(reason) => drop(self.copy_after_a_gap(&reason)?),
        }
        self.copy_if_due(FollowUpAction::Nothing)?;
        self.report();
        Ok(())
    }

    /// Returns true if the table should be retried automatically after this error.
    pub(crate) fn may_retry(&self, error: &TableError) -> bool {
        error.may_pass() && self.storage.store_failure().is_none()
    }

    /// Stops following the table. Readers keep their rows. `next_at` is the time of the next
    /// attempt, if one is scheduled.
    pub(crate) fn stop(&mut self, error: &TableError, next_at: Option<Instant>) {
        let error = error.to_string();
        // The positions that the store lost are only in the source, which must not forget them.
        let is_kept = self.storage.store_failure().is_some() || (next_at.is_some() && self.storage.has_store());
        match next_at {
            Some(_) => {
                tracing::warn!(
                    event = "table_retrying", table = %self.name(), %error,
                    "the table is not followed for now, and is tried again"
                )
            }
            None => tracing::error!(event = "table_stopped", table = %self.name(), %error, "table stopped"),
        }
        if let Some(copy) = self.lifecycle.copy_mut() {
            copy.abandon(&mut self.recent);
        }
        self.lifecycle.stop();
        let mut status = self.status.lock();
        status.fail(match next_at {
            Some(next_at) => TablePhase::Retrying { error, next_at },
            None => TablePhase::Failed { error },
        });
        status.releasable = status.releasable.filter(|_| is_kept);
    }

    /// Tries again to follow a table that is stopped.
    pub(crate) fn retry(&mut self) -> Result<FollowUpAction, TableError> {
        match &self.lifecycle {
            TableLifecycle::Stopped { .. } => self.revive(&self.copy_reason.clone()),
            TableLifecycle::Copying { .. } => Ok(FollowUpAction::Retry),
            TableLifecycle::Live(_) => Ok(FollowUpAction::Nothing),
        }
    }

    /// Reports that an attempt to copy the table begins. Transactions that commit from now on are
    /// held for it.
    pub(crate) fn begin_attempt(&mut self) {
        if let Some(copy) = self.lifecycle.copy_mut() {
            copy.begin_attempt();
            self.status.lock().phase = TablePhase::Copying { reason: self.copy_reason.clone() };
        }
    }

    /// Reports that an attempt to copy the table has failed, and the time of the next one.
    pub(crate) fn on_attempt_failed(&mut self, error: &str, next_at: Instant) {
        if let Some(copy) = self.lifecycle.copy_mut() {
            copy.start_over();
            let error = format!("copying the table: {error}");
            self.status.lock().fail(TablePhase::Retrying { error, next_at });
        }
    }

    /// Drops the transactions that are held for a copy while none is being made. Other tables then
    /// do not wait for this one.
    pub(crate) fn stop_holding(&mut self) {
        let Some(copy) = self.lifecycle.copy_mut() else { return };
        tracing::info!(
            event = "held_transactions_joined",
            table = %self.options.request.name,
            "transactions are not held any more while the copy cannot be made: readers will receive them as one"
        );
        copy.stop_holding(&mut self.recent);
        self.status.lock().releasable = None;
    }

    /// Handles an event of a copy.
    pub(crate) fn on_copy(&mut self, event: CopyEvent) -> Result<FollowUpAction, TableError> {
        if let CopyEvent::Begin { snapshot, .. } = &event
            && let Err(reason) = self.server_run.check(snapshot)
        {
            return self.after_copying(Err(CopyStopReason::StartOver(reason)));
        }
        let TableLifecycle::Copying { copy, served, .. } = &mut self.lifecycle else {
            return Ok(FollowUpAction::Nothing);
        };
        if let CopyEvent::End { inserted, .. } = &event {
            let mut status = self.status.lock();
            status.marks_from = status.marks_from.min(*inserted);
        }
        let known = served.as_ref().filter(|_| !copy.is_after_fork());
        let now = (self.clock)();
        let received = copy.receive(event, &self.options, self.storage.bases(), known, now, &mut self.recent);
        copy.log_progress(&self.options.request.name);
        self.after_copying(received)
    }

    /// Handles a copy that ended without success. Another one has to be made.
    pub(crate) fn on_copy_lost(&mut self) -> FollowUpAction {
        match self.lifecycle.copy_mut() {
            Some(copy) if !copy.has_ended() => {
                copy.start_over();
                FollowUpAction::CopyLater
            }
            Some(_) | None => FollowUpAction::Nothing,
        }
    }

    /// Follows a stopped table again, by a copy.
    ///
    /// # Errors
    /// When the table's store accepts no writes.
    fn revive(&mut self, reason: &str) -> Result<FollowUpAction, TableError> {
        self.storage.open_missing_folders(&self.clock)?;
        if let Some(error) = self.storage.store_failure() {
            return Err(StoreError::Failed(error).into());
        }
        if let Some(reason) = self.storage.store_stall().filter(|_| self.is_ahead_of_disk()) {
            return Err(StoreError::Stalled(reason).into());
        }
        if let Some(action) = self.note_due_forks()? {
            return Ok(action);
        }
        if self.lifecycle.served().is_some() {
            return self.copy_after_a_gap(reason);
        }
        let copy = match self.is_forked {
            true => OngoingCopy::after_fork(),
            false => OngoingCopy::first(),
        };
        self.begin_copying(copy, reason);
        Ok(FollowUpAction::Copy)
    }

    /// Returns true if the store is so far behind that the table should wait for it.
    fn is_ahead_of_disk(&self) -> bool {
        self.lifecycle.served().is_some_and(|served| served.writer.is_ahead_of_disk())
    }

    /// Makes a full disk a failure of the store, and not a reason to wait, because the table ends.
    pub(crate) fn stop_waiting_for_disk(&mut self) {
        if let Some(served) = self.lifecycle.served() {
            served.writer.stop_waiting_for_disk();
        }
    }

    fn begin_copying(&mut self, copy: OngoingCopy, reason: &str) {
        self.lifecycle.begin_copying(copy);
        reason.clone_into(&mut self.copy_reason);
        self.status.lock().phase = TablePhase::Copying { reason: reason.to_owned() };
    }

    /// Begins the copy that waits for the stream, if the stream has come so far.
    fn copy_if_due(&mut self, action: FollowUpAction) -> Result<FollowUpAction, TableError> {
        match self.lifecycle.live_mut().and_then(LiveTable::take_due_copy) {
            Some(reason) if action == FollowUpAction::Nothing => self.copy_again(&reason),
            Some(_) | None => Ok(action),
        }
    }

    /// Writes the definition that waits for the stream, if the stream has come so far. It is
    /// written after the rows that it applies to.
    fn define_if_due(&mut self, action: FollowUpAction) -> Result<FollowUpAction, TableError> {
        let Some(live) = self.lifecycle.live_mut() else { return Ok(action) };
        let Some(due) = live.take_due_definition() else { return Ok(action) };
        if let Some(column) = due.violated_column(&live.served.state) {
            let reason = format!("column {column} has values of a definition in between");
            return self.copy_again(&reason);
        }
        live.served.writer.publish()?;
        live.served.writer.define(self.options.row_definition(due.definition));
        Ok(action)
    }

    /// Copies the table again, because commits may be missing after the last known position.
    fn copy_after_a_gap(&mut self, reason: &str) -> Result<FollowUpAction, TableError> {
        let action = self.copy_again(reason)?;
        if let Some(copy) = self.lifecycle.copy_mut() {
            copy.note_gap();
        }
        Ok(action)
    }

    /// Copies the table again. What it waits for is not needed any more: the copy has the newest
    /// definition, and compares every row.
    fn copy_again(&mut self, reason: &str) -> Result<FollowUpAction, TableError> {
        tracing::info!(event = "table_copied_again", table = %self.name(), reason, "the table is copied again");
        let Some(served) = self.lifecycle.served_mut() else {
            return Ok(FollowUpAction::Nothing);
        };
        served.writer.publish()?;
        let copy = match self.is_forked {
            true => OngoingCopy::after_fork(),
            false => OngoingCopy::after(served.position()),
        };
        self.begin_copying(copy, reason);
        Ok(FollowUpAction::Copy)
    }

    fn apply(&mut self, mut commit: TableCommit) -> Result<FollowUpAction, TableError> {
        let Some(live) = self.lifecycle.live_mut() else {
            return Ok(FollowUpAction::Nothing);
        };
        if commit.end <= live.served.position() {
            return Ok(FollowUpAction::Nothing);
        }
        // A later copy has to see the transaction, even if it cannot be applied.
        self.recent.remember(commit.xid);
        match live.apply(&mut commit) {
            Ok(counts) => {
                self.commits.lock().remember(commit.end, commit.xid);
                self.current_at = self.current_at.max(commit.committed_at);
                counts.add_to(&mut self.status.lock());
                Ok(FollowUpAction::Nothing)
            }
            Err(ApplyError::Io(error)) => Err(error.into()),
            Err(error @ (ApplyError::Diverged(_) | ApplyError::Incomplete)) => {
                tracing::error!(
                    event = "change_unfit", table = %self.name(), %error, position = %commit.end,
                    "a change does not fit the rows, and the table is copied again"
                );
                let action = self.copy_again(&error.to_string())?;
                self.on_commit(commit)?;
                Ok(action)
            }
        }
    }

    fn after_copying(&mut self, result: Result<(), CopyStopReason>) -> Result<FollowUpAction, TableError> {
        match result {
            Ok(()) => self.complete_when_reached(),
            Err(CopyStopReason::Failed(error)) => Err(error),
            Err(CopyStopReason::StartOver(reason)) => {
                tracing::warn!(event = "copy_started_over", table = %self.name(), reason, "the table is copied again");
                if let Some(copy) = self.lifecycle.copy_mut() {
                    copy.start_over();
                }
                Ok(FollowUpAction::CopyLater)
            }
        }
    }

    fn complete_when_reached(&mut self) -> Result<FollowUpAction, TableError> {
        let TableLifecycle::Copying { copy, served, owed } = &mut self.lifecycle else {
            return Ok(FollowUpAction::Nothing);
        };
        let started_at = copy.progress().map_or_else(Instant::now, |progress| progress.started_at);
        let done = match copy.complete(owed.as_ref()) {
            Ok(Some(done)) => done,
            Ok(None) => return Ok(FollowUpAction::Nothing),
            Err(stop) => {
                *owed = None;
                return self.after_copying(Err(stop));
            }
        };
        let (copied_under, current_at) = (done.definition.clone(), done.current_at);
        let (completed, counts) = match copy.is_after_fork() {
            true => (self.storage.replace_journal(served, done)?, TableChangeCounts::default()),
            false => self.storage.publish_copy(served, done)?,
        };
        self.is_forked &= !copy.is_after_fork();
        counts.add_to(&mut self.status.lock());
        let owed = owed.take();
        self.current_at = self.current_at.max(current_at);
        self.report_copied(&completed, started_at);
        self.lifecycle = TableLifecycle::Live(LiveTable::new(completed));
        match owed {
            Some(owed) if owed.is_owed_after(&copied_under) => self.copy_again(&owed.reason),
            Some(_) | None => Ok(FollowUpAction::Nothing),
        }
    }

    fn report_copied(&self, served: &PublishedTable, started_at: Instant) {
        let (rows, position, took) = (served.rows(), served.position(), started_at.elapsed());
        self.status.lock().complete_copy(took);
        let seconds = took.as_secs_f64();
        tracing::info!(event = "table_copied", rows, %position, seconds, "table copied");
    }

    /// Counts the time that the newest commit took to become visible, once per burst of events.
    pub(crate) fn note_visible(&mut self) {
        if let Some(committed_at) = self.lifecycle.live_mut().and_then(LiveTable::take_newest_commit) {
            let took_us = (self.clock)().0.saturating_sub(committed_at.0);
            let took = Duration::from_micros(u64::try_from(took_us).unwrap_or(0));
            self.status.lock().visible_times.observe(took);
        }
    }

    /// Updates the status, once per burst of events.
    pub(crate) fn report(&mut self) {
        #[cfg(debug_assertions)]
        if let Some(served) = self.lifecycle.served_mut() {
            canary::plant_if_asked(&self.options.request.name, &mut served.state);
        }
        let mut status = self.status.lock();
        if let Some(served) = self.lifecycle.served() {
            let committed = served.writer.committed();
            status.rows = served.state.len() as u64;
            status.row_bytes = served.state.row_bytes();
            status.position = committed.position;
            status.committed_at = committed.committed_at;
            status.current_at = self.current_at;
            match &self.lifecycle {
                // Positions of another history say nothing about what the source may forget.
                TableLifecycle::Copying { copy, .. } if copy.is_after_fork() => {
                    status.releasable = Some(DurablePosition::default());
                }
                // The copy that is owed decides what the source has to keep.
                TableLifecycle::Copying { copy, .. } if copy.is_waiting() => status.releasable = None,
                TableLifecycle::Copying { .. } | TableLifecycle::Live(_) => {
                    status.releasable = Some(self.storage.durable_position(&served.writer));
                }
                TableLifecycle::Stopped { .. } => {}
            }
        }
        let copy = self.lifecycle.copy();
        (status.copy, status.held_bytes) = copy.map_or((None, 0), |copy| (copy.progress(), copy.held_bytes()));
    }

    /// Returns the schedule of the table's verifications in the background.
    pub(crate) fn verify_schedule(&self) -> Option<VerifySchedule> {
        self.options.verify.clone()
    }

    /// Returns the table if it follows its source.
    fn live(&self) -> Option<&LiveTable> {
        self.lifecycle.live()
    }

    fn live_mut(&mut self) -> Option<&mut LiveTable> {
        self.lifecycle.live_mut()
    }
}
