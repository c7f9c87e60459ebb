//! The tasks that run while the writer collects changes. Only one task at a time has the ledger.
//! Unnamed objects are deleted in parallel, so that this never delays an artifact.

use std::sync::Arc;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Duration, Instant};

use super::collection::{CollectionScope, UnnamedObjects};
use super::job::{ArtifactJob, ArtifactJobEnd};
use super::ledger::{LedgerRetryPolicy, ManifestLedger};
use super::report::WriterReport;
use super::{WriterContext, WriterError};

/// The interval at which destinations that lack something are tried, while nothing else is written.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(5);

/// The tasks that run while changes are collected. When this is dropped, the task that has the
/// ledger continues to its end, because it may be uploading or publishing. A collection is aborted.
pub(super) struct WriterTasks {
    /// The ledger; `None` while a task has it, or the result of one.
    ledger: Option<Box<ManifestLedger>>,
    /// The unnamed objects found so far; `None` while a collection has them.
    unnamed: Option<UnnamedObjects>,
    /// The task that has the ledger.
    writing: JoinSet<FinishedTask>,
    collecting: JoinSet<FinishedTask>,
    collection: Arc<CollectionScope>,
    /// The time when the other destinations were last brought up to date.
    followed: Instant,
    /// The time when the last collection began.
    collected: Instant,
}

/// A task that has ended, with what it returns to [`WriterTasks`].
enum FinishedTask {
    /// An artifact was written, or could not be.
    Job(Box<ArtifactJobEnd>),
    /// The other destinations were brought up to date, as far as possible.
    Following(Box<ManifestLedger>, Result<(), WriterError>),
    /// Unnamed objects were deleted, as far as possible.
    Collection(UnnamedObjects, Result<(), WriterError>),
}

/// The result of a task.
pub(super) enum WriterTaskResult {
    /// The end of a job. The caller returns its ledger with [`WriterTasks::return_ledger`].
    Job(Box<ArtifactJobEnd>),
    /// The end of a task that wrote no artifact.
    Tidied(Result<(), WriterError>),
}

impl WriterTasks {
    pub(super) fn new(ledger: ManifestLedger, grace: Duration) -> WriterTasks {
        let now = Instant::now();
        let destinations = ledger.destinations().cloned().collect();
        let collection = Arc::new(CollectionScope { destinations, writer: ledger.writer().clone(), grace });
        WriterTasks {
            ledger: Some(Box::new(ledger)),
            unnamed: Some(UnnamedObjects::default()),
            writing: JoinSet::new(),
            collecting: JoinSet::new(),
            collection,
            followed: now,
            collected: now,
        }
    }

    /// Returns true if no task has the ledger.
    pub(super) fn is_idle(&self) -> bool {
        self.ledger.is_some()
    }

    /// Takes the ledger back after a job.
    pub(super) fn return_ledger(&mut self, ledger: ManifestLedger) {
        self.ledger = Some(Box::new(ledger));
    }

    /// Begins a job, unless another task has the ledger.
    pub(super) fn begin(&mut self, job: ArtifactJob, tools: &Arc<WriterContext>, report: &WriterReport) {
        let Some(ledger) = self.ledger.take() else { return };
        let (tools, report) = (tools.clone(), report.clone());
        self.writing.spawn(async move { FinishedTask::Job(Box::new(job.run(*ledger, tools, report).await)) });
    }

    /// Brings the other destinations up to date, if one lacks something and the interval has
    /// passed.
    pub(super) fn tidy(&mut self, tools: &Arc<WriterContext>, report: &WriterReport) {
        let is_due =
            |ledger: &mut Box<ManifestLedger>| ledger.is_behind() && self.followed.elapsed() >= FOLLOW_INTERVAL;
        let Some(mut ledger) = self.ledger.take_if(is_due) else { return };
        self.followed = Instant::now();
        let (tools, report) = (tools.clone(), report.clone());
        self.writing.spawn(async move {
            let ended = ledger.follow(LedgerRetryPolicy::Once, &tools, &report).await;
            FinishedTask::Following(ledger, ended)
        });
    }

    /// Deletes unnamed objects if a collection is due, also while another task runs.
    pub(super) fn collect(&mut self, tools: &Arc<WriterContext>, report: &WriterReport) {
        if self.collected.elapsed() < self.collection.grace / 4 {
            return;
        }
        let Some(mut unnamed) = self.unnamed.take() else { return };
        self.collected = Instant::now();
        let (collection, tools, report) = (self.collection.clone(), tools.clone(), report.clone());
        self.collecting.spawn(async move {
            let ended = unnamed.collect(&collection, &tools, &report).await;
            FinishedTask::Collection(unnamed, ended)
        });
    }

    /// Waits for the end of a task, forever if none runs. Dropping the future loses nothing.
    pub(super) async fn next_finished(&mut self) -> WriterTaskResult {
        let finished = tokio::select! {
            Some(finished) = self.writing.join_next() => finished,
            Some(finished) = self.collecting.join_next() => finished,
            else => return std::future::pending().await,
        };
        match resume(finished) {
            FinishedTask::Job(end) => WriterTaskResult::Job(end),
            FinishedTask::Following(ledger, ended) => {
                self.ledger = Some(ledger);
                WriterTaskResult::Tidied(ended)
            }
            FinishedTask::Collection(unnamed, ended) => {
                self.unnamed = Some(unnamed);
                WriterTaskResult::Tidied(ended)
            }
        }
    }
}

impl Drop for WriterTasks {
    fn drop(&mut self) {
        self.writing.detach_all();
    }
}

/// Returns the result of a task. The tasks are cancelled only when they are dropped, so an error is
/// a panic, which is resumed here.
fn resume<T>(ended: Result<T, JoinError>) -> T {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
