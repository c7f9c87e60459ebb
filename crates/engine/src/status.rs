//! The status of a table, for health, metrics and status services.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use laredo_core::{CommitTime, DurationHistogram, Lsn, ScopedMark, TableName, Xid};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::durable::DurablePosition;
use crate::history::{MarkVerdict, SourceHistory};
use crate::journal::Journal;
use crate::snapshots::{RecoveredSnapshot, SnapshotError, SnapshotFolder, SnapshotInfo};
use crate::source::{DefinitionReads, TableIndex};
use crate::verify::{VerifyError, VerifyReport, VerifyStatus, VerifyTerms};

/// The state of a table. It does not survive a restart: the store decides how the next start
/// begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TablePhase {
    /// The table is being copied. Readers, if there are any, keep the rows that they have.
    Copying {
        /// The reason for the copy.
        reason: String,
    },
    /// The table follows its source.
    Live,
    /// The last attempt failed for a reason that may pass without an operator. Readers keep the
    /// rows that they have.
    Retrying {
        /// The error.
        error: String,
        /// The time of the next attempt.
        next_at: Instant,
    },
    /// The table cannot be followed until an operator acts. The server tries again when the catalog
    /// changes and on `laredo reload`. Other tables are not affected.
    Failed {
        /// The error, and what to do.
        error: String,
    },
}

impl TablePhase {
    /// The names of all states.
    pub const NAMES: [&'static str; 4] = ["copying", "live", "retrying", "failed"];

    /// Returns the name of the state, as health, metrics and status show it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            TablePhase::Copying { .. } => "copying",
            TablePhase::Live => "live",
            TablePhase::Retrying { .. } => "retrying",
            TablePhase::Failed { .. } => "failed",
        }
    }

    /// Returns the error of the last attempt to copy or follow the table, if it failed.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        match self {
            TablePhase::Copying { .. } | TablePhase::Live => None,
            TablePhase::Retrying { error, .. } | TablePhase::Failed { error } => Some(error),
        }
    }

    /// Returns the time until the next attempt, if one is scheduled.
    #[must_use]
    pub fn next_attempt_in(&self) -> Option<Duration> {
        match self {
            TablePhase::Retrying { next_at, .. } => Some(next_at.saturating_duration_since(Instant::now())),
            TablePhase::Copying { .. } | TablePhase::Live | TablePhase::Failed { .. } => None,
        }
    }
}

/// The progress of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyProgress {
    /// The number of rows received so far.
    pub rows: u64,
    /// The number of bytes in the cells received so far.
    pub bytes: u64,
    /// The number of rows to expect, as the database estimates it; zero if it is unknown.
    pub rows_estimated: u64,
    /// The size of the table on the source's disk, in bytes.
    pub bytes_estimated: u64,
    /// The time at which the copy began.
    pub started_at: Instant,
}

impl CopyProgress {
    /// Returns an estimate of the remaining time, at the speed so far; `None` before the first row.
    /// It uses the estimated rows, or the bytes on disk if the database has no estimate of the
    /// rows.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        self.left_after(self.started_at.elapsed())
    }

    fn left_after(&self, elapsed: Duration) -> Option<Duration> {
        let (done, estimated) = match self.rows_estimated {
            0 => (self.bytes, self.bytes_estimated),
            rows_estimated => (self.rows, rows_estimated),
        };
        let left = estimated.saturating_sub(done) as f64 / done as f64;
        Duration::try_from_secs_f64(elapsed.as_secs_f64() * left).ok()
    }
}

/// The database session that a copy has or waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopySession {
    /// The number of the copy among those of the table.
    pub(crate) copy: u64,
    /// True while the copy waits for its turn and has no session yet.
    pub is_waiting: bool,
    /// The time at which the wait or the session began.
    pub since: Instant,
}

/// The counters and the state of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableStatus {
    /// The state of the table.
    pub phase: TablePhase,
    /// True once an attempt to copy or follow the table has failed in this run.
    pub has_failed: bool,
    /// The number of rows in the table.
    pub rows: u64,
    /// The number of bytes in the cells of those rows.
    pub row_bytes: u64,
    /// The position of the table: every commit up to here is applied.
    pub position: Lsn,
    /// The position up to which the source may forget, as far as this table is concerned. `None` if
    /// the table holds nothing back, because it owes a copy in any case.
    pub releasable: Option<DurablePosition>,
    /// The time of the newest applied commit.
    pub committed_at: CommitTime,
    /// The time at which the table was last known to equal the source's. This is the time of the
    /// newest applied commit, or of the source's report that there is no newer one.
    pub current_at: CommitTime,
    /// The position after which all commits of the table are among those that its source remembers.
    /// It is above zero for a table that was added in this run.
    pub marks_from: Lsn,
    /// Inserts applied since the start.
    pub inserts: u64,
    /// Updates applied since the start.
    pub updates: u64,
    /// Deletes applied since the start.
    pub deletes: u64,
    /// Truncates applied since the start.
    pub truncates: u64,
    /// Copies completed since the start.
    pub copies: u64,
    /// The durations of those copies, from the lock on the table to the last change that the copy
    /// lacked.
    pub copy_times: DurationHistogram,
    /// The times from a commit until its readers could see it, on the database's clock. Only the
    /// newest commit of each burst counts, and none that a copy contains.
    pub visible_times: DurationHistogram,
    /// Forks of the database's history that were noted since the start.
    pub forks: u64,
    /// The progress of the copy that is under way.
    pub copy: Option<CopyProgress>,
    /// The session that the copy has or waits for.
    pub copy_session: Option<CopySession>,
    /// The number of bytes of transactions that are held during the copy.
    pub held_bytes: u64,
    /// The verifications of the table.
    pub verify: VerifyStatus,
}

impl Default for TableStatus {
    fn default() -> TableStatus {
        TableStatus {
            has_failed: false,
            phase: TablePhase::Copying { reason: "first copy".to_owned() },
            rows: 0,
            row_bytes: 0,
            position: Lsn::ZERO,
            releasable: Some(DurablePosition::default()),
            committed_at: CommitTime::default(),
            current_at: CommitTime::default(),
            marks_from: Lsn::ZERO,
            inserts: 0,
            updates: 0,
            deletes: 0,
            truncates: 0,
            copies: 0,
            copy_times: DurationHistogram::default(),
            visible_times: DurationHistogram::default(),
            forks: 0,
            copy: None,
            copy_session: None,
            held_bytes: 0,
            verify: VerifyStatus::default(),
        }
    }
}

impl TableStatus {
    /// Notes that an attempt to copy or follow the table has failed.
    pub(crate) fn fail(&mut self, phase: TablePhase) {
        self.phase = phase;
        self.has_failed = true;
        self.copy = None;
    }

    /// Notes that a copy is complete, and the time that it took.
    pub(crate) fn complete_copy(&mut self, took: Duration) {
        (self.phase, self.copy) = (TablePhase::Live, None);
        self.copies += 1;
        self.copy_times.observe(took);
    }

    /// Notes that the database's history has forked. In the same step nothing is releasable, so
    /// that no position of the old history counts for the new one. A table whose store has failed
    /// is not copied, and holds back what it held back before.
    pub(crate) fn begin_history(&mut self, forks: u64, is_store_failed: bool) {
        self.forks = forks;
        if !is_store_failed {
            self.releasable = Some(DurablePosition::default());
        }
    }
}

/// The number of commits whose transaction IDs a table remembers.
const COMMITS_MAX: usize = 8192;

/// The newest applied commits, oldest first.
#[derive(Debug, Default)]
pub(crate) struct CommitXids(VecDeque<(Lsn, Xid)>);

impl CommitXids {
    pub(crate) fn remember(&mut self, end: Lsn, xid: Xid) {
        if self.0.len() >= COMMITS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((end, xid));
    }

    fn xid_of(&self, position: Lsn) -> Option<Xid> {
        let found = self.0.binary_search_by_key(&position, |(end, _)| *end).ok()?;
        self.0.get(found).map(|(_, xid)| *xid)
    }
}

/// A handle to a table: its state, and the operations on it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TableHandle {
    pub(crate) name: TableName,
    pub(crate) status: Arc<Mutex<TableStatus>>,
    pub(crate) commits: Arc<Mutex<CommitXids>>,
    pub(crate) journal: watch::Receiver<Option<Journal>>,
    /// The channel to the table's task. It is closed while the source is not followed.
    pub(crate) commands: Arc<RwLock<mpsc::Sender<TableCommand>>>,
    /// True if snapshots of the table are configured.
    pub(crate) keeps_snapshots: bool,
    /// The table's snapshots, once its folder is open.
    pub(crate) snapshots: watch::Sender<Option<Arc<SnapshotFolder>>>,
    /// The table's index in the present run.
    pub(crate) index: Arc<AtomicUsize>,
    pub(crate) looks: watch::Receiver<DefinitionReads>,
    pub(crate) history: Arc<SourceHistory>,
}

/// The results of the last reads of a table's definition from the source's catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefinitionStatus {
    /// The time since the last successful read began; `None` before the first one.
    pub verified_age: Option<Duration>,
    /// The error of the last read, if it failed.
    pub error: Option<String>,
    /// True if the source writes definition changes into the stream, too.
    pub is_triggered: bool,
}

/// A command to a table's task.
pub(crate) enum TableCommand {
    /// An order to copy the table again.
    Reload(ReloadCommand),
    /// An order to serve the rows of a snapshot until the first copy is complete.
    Restore {
        /// The snapshot.
        recovered: Box<RecoveredSnapshot>,
        /// The sender for the outcome.
        answer: oneshot::Sender<Result<(), SnapshotError>>,
    },
    /// An order to compare the table's rows with the source's.
    Verify(VerifyCommand),
}

/// An order to copy a table again.
pub(crate) struct ReloadCommand {
    pub(crate) reason: String,
    /// The sender for the outcome of the first attempt.
    pub(crate) answer: oneshot::Sender<Result<(), ReloadError>>,
}

/// The reason why an order to copy a table again was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// The copy failed at once.
    #[error("{0}")]
    Failed(String),
    /// The copy failed at once, for a reason that may pass.
    #[error("{error}; the next attempt is in {} ms", .next.as_millis())]
    Retrying {
        /// The error.
        error: String,
        /// The time until the next attempt.
        next: Duration,
    },
    /// The engine has stopped.
    #[error("the server is stopping")]
    Stopping,
}

/// An order to verify a table.
pub(crate) struct VerifyCommand {
    pub(crate) terms: VerifyTerms,
    pub(crate) answer: oneshot::Sender<Result<Arc<VerifyReport>, VerifyError>>,
}

impl TableHandle {
    /// Returns the table's name.
    #[must_use]
    pub fn name(&self) -> &TableName {
        &self.name
    }

    /// Returns the table's index in the present run.
    pub(crate) fn index(&self) -> TableIndex {
        TableIndex(self.index.load(Ordering::Relaxed))
    }

    /// Returns the table's status.
    #[must_use]
    pub fn status(&self) -> TableStatus {
        self.status.lock().clone()
    }

    /// Returns true if both handles are of one table, and not of two that have the same name one
    /// after the other.
    #[must_use]
    pub fn is_same(&self, other: &TableHandle) -> bool {
        Arc::ptr_eq(&self.status, &other.status)
    }

    /// Returns the time at which the state was last known to equal the source's, as in
    /// [`TableStatus::current_at`].
    #[must_use]
    pub fn current_at(&self) -> CommitTime {
        self.status.lock().current_at
    }

    /// Returns the ID of the transaction that ended at a position, if it was applied recently.
    #[must_use]
    pub fn xid_of(&self, position: Lsn) -> Option<Xid> {
        self.commits.lock().xid_of(position)
    }

    /// Returns the table's journal, once the first copy is complete.
    #[must_use]
    pub fn journal(&self) -> Option<Journal> {
        self.journal.borrow().clone()
    }

    /// Waits for a journal of the database's present history. Returns `None` when the engine has
    /// stopped.
    pub async fn wait_journal(&self) -> Option<Journal> {
        let mut journal = self.journal.clone();
        let is_there = |journal: &Option<Journal>| journal.as_ref().is_some_and(|journal| !journal.is_parted());
        journal.wait_for(is_there).await.ok()?.clone()
    }

    /// Returns the time on the database's clock, which the times in [`TableStatus`] refer to. `own`
    /// is the time on this machine's clock.
    #[must_use]
    pub fn source_time(&self, own: CommitTime) -> CommitTime {
        self.history.source_time(own)
    }

    /// Returns the verdict of the source's remembered commits on a mark of one of the table's
    /// readers.
    #[must_use]
    pub fn judge(&self, mark: ScopedMark) -> MarkVerdict {
        self.history.judge(mark, self.status.lock().marks_from)
    }

    /// Returns the history of the table's source.
    #[must_use]
    pub fn history(&self) -> &SourceHistory {
        &self.history
    }

    /// Returns the results of the last reads of the table's definition from the source's catalog.
    #[must_use]
    pub fn definition(&self) -> DefinitionStatus {
        let (looks, index) = (self.looks.borrow(), self.index());
        DefinitionStatus {
            verified_age: looks.seen.get(&index).map(Instant::elapsed),
            error: looks.errors.get(&index).cloned(),
            is_triggered: looks.is_triggered,
        }
    }

    /// Returns true if snapshots of the table are configured, even if their folder is not open.
    #[must_use]
    pub fn keeps_snapshots(&self) -> bool {
        self.keeps_snapshots
    }

    /// Returns the table's snapshots, if they are configured and their folder is open.
    #[must_use]
    pub fn snapshots(&self) -> Option<Arc<SnapshotFolder>> {
        self.snapshots.borrow().clone()
    }

    fn commands(&self) -> mpsc::Sender<TableCommand> {
        self.commands.read().clone()
    }

    /// Serves the rows of a snapshot of a table that is being copied for the first time. Readers
    /// have these rows, whatever their age, until the copy is complete. They then receive the
    /// differences.
    ///
    /// # Errors
    /// When the table is already served, or has failed. When the snapshot does not exist, or is not
    /// what was written.
    pub async fn restore_snapshot(&self, id: String) -> Result<SnapshotInfo, SnapshotError> {
        let Some(snapshots) = self.snapshots() else { return Err(SnapshotError::Unknown(id)) };
        if let Some(journal) = self.journal() {
            return Err(SnapshotError::Served(journal.head().position));
        }
        let recovered = Box::new(snapshots.recover(id).await?);
        let (info, (answer, answered)) = (recovered.info.clone(), oneshot::channel());
        let restore = TableCommand::Restore { recovered, answer };
        self.commands().send(restore).await.map_err(|_| SnapshotError::Stopping)?;
        answered.await.map_err(|_| SnapshotError::Stopping)??;
        Ok(info)
    }

    /// Compares every row of the table with the source's row, as of the position of a snapshot. A
    /// table that is being copied is verified when the copy is complete. Dropping the future ends
    /// the pass. [`TableStatus::verify`] has its progress.
    ///
    /// # Errors
    /// When another pass was requested before, the table has failed, or the pass could not be
    /// completed.
    pub async fn verify(&self, terms: VerifyTerms) -> Result<Arc<VerifyReport>, VerifyError> {
        let (answer, answered) = oneshot::channel();
        let command = TableCommand::Verify(VerifyCommand { terms, answer });
        self.commands().send(command).await.map_err(|_| VerifyError::Stopping)?;
        answered.await.map_err(|_| VerifyError::Stopping)?
    }

    /// Orders a new copy of the table. Readers receive the differences. Returns false if the engine
    /// has stopped.
    pub async fn reload(&self, reason: impl Into<String> + Send) -> bool {
        let command = ReloadCommand { reason: reason.into(), answer: oneshot::channel().0 };
        self.commands().send(TableCommand::Reload(command)).await.is_ok()
    }

    /// Orders a new copy of the table, and waits until it begins. That may take as long as another
    /// session holds a lock on the table. Dropping the future does not withdraw the order.
    ///
    /// # Errors
    /// When the first attempt fails, or the engine has stopped.
    pub async fn begin_reload(&self, reason: impl Into<String> + Send) -> Result<(), ReloadError> {
        let (answer, answered) = oneshot::channel();
        let command = TableCommand::Reload(ReloadCommand { reason: reason.into(), answer });
        self.commands().send(command).await.map_err(|_| ReloadError::Stopping)?;
        answered.await.unwrap_or(Err(ReloadError::Stopping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transactions_of_the_newest_commits_are_known() {
        let mut commits = CommitXids::default();
        let all = COMMITS_MAX as u64 + 10;
        (1..=all).for_each(|n| commits.remember(Lsn(10 * n), Xid(n)));
        assert_eq!(commits.xid_of(Lsn(10 * all)), Some(Xid(all)));
        assert_eq!(commits.xid_of(Lsn(110)), Some(Xid(11)));
        assert_eq!((commits.xid_of(Lsn(100)), commits.xid_of(Lsn(115))), (None, None), "of long ago, and of nobody");
    }

    #[test]
    fn bytes_show_what_is_left_of_a_table_that_was_never_analyzed() {
        let (started_at, elapsed) = (Instant::now(), Duration::from_secs(10));
        let progress = CopyProgress { rows: 5, bytes: 100, rows_estimated: 0, bytes_estimated: 400, started_at };
        assert_eq!(progress.left_after(elapsed), Some(Duration::from_secs(30)));
        let analyzed = CopyProgress { rows_estimated: 10, ..progress };
        assert_eq!(analyzed.left_after(elapsed), Some(Duration::from_secs(10)));
        assert_eq!(CopyProgress { bytes: 0, ..progress }.left_after(elapsed), None);
    }
}
