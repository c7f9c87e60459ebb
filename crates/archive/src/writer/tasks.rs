//! The tasks that run while the writer collects changes. Only one task at a time has the ledger.
//! Unnamed objects are deleted in parallel, so that this never delays an artifact.

use std::sync::Arc;

use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::{Duration, Instant};

use super::collection::{CollectionScope, UnnamedObjects};
use super::job::{ArtifactJob, ArtifactJobEnd};
use super::ledger::{LedgerRetryPolicy, ManifestLedger};
use super::report::WriterReport;
use super::{WriterContext, WriterError};

/// The interval at which destinations that lack something are tried, while nothing else is written.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(5);

/// The tasks that run while changes are collected.
pub(super) struct WriterTasks {
    state: WriterTaskState,
    followed: Instant,
    collection: Arc<CollectionScope>,
    /// The unnamed objects found so far; `None` while a collection runs.
    unnamed: Option<UnnamedObjects>,
    /// The running collection. It is aborted when this is dropped.
    collecting: JoinSet<(UnnamedObjects, Result<(), WriterError>)>,
    collected: Instant,
}

enum WriterTaskState {
    Idle(Box<ManifestLedger>),
    Writing(JoinHandle<ArtifactJobEnd>),
    Following(JoinHandle<(ManifestLedger, Result<(), WriterError>)>),
    /// The moment between two of the other states.
    Between,
}

/// A task that has ended.
pub(super) enum WriterTaskResult {
    Job(Box<ArtifactJobEnd>),
    Tidied(Result<(), WriterError>),
}

enum JoinedWriterTask {
    Job(ArtifactJobEnd),
    Followed(ManifestLedger, Result<(), WriterError>),
    Collected(UnnamedObjects, Result<(), WriterError>),
}

impl WriterTasks {
    pub(super) fn new(ledger: ManifestLedger, grace: Duration) -> WriterTasks {
        let now = Instant::now();
        let destinations = ledger.destinations().cloned().collect();
        let collection = Arc::new(CollectionScope { destinations, writer: ledger.writer().clone(), grace });
        WriterTasks {
            state: WriterTaskState::Idle(Box::new(ledger)),
            followed: now,
            collection,
            unnamed: Some(UnnamedObjects::default()),
            collecting: JoinSet::new(),
            collected: now,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, WriterTaskState::Idle(_))
    }

    /// Takes the ledger back after a task.
    pub(super) fn return_ledger(&mut self, ledger: ManifestLedger) {
        self.state = WriterTaskState::Idle(Box::new(ledger));
    }

    pub(super) fn begin(&mut self, job: ArtifactJob, tools: &Arc<WriterContext>, report: &WriterReport) {
        self.state = match std::mem::replace(&mut self.state, WriterTaskState::Between) {
            WriterTaskState::Idle(ledger) => {
                WriterTaskState::Writing(tokio::spawn(job.run(*ledger, tools.clone(), report.clone())))
            }
            other => other,
        };
    }

    /// Brings the other destinations up to date, if one lacks something and the interval has
    /// passed.
    pub(super) fn tidy(&mut self, tools: &Arc<WriterContext>, report: &WriterReport) {
        let WriterTaskState::Idle(ledger) = &self.state else { return };
        if !ledger.is_behind() || self.followed.elapsed() < FOLLOW_INTERVAL {
            return;
        }
        let WriterTaskState::Idle(mut ledger) = std::mem::replace(&mut self.state, WriterTaskState::Between) else {
            return;
        };
        self.followed = Instant::now();
        let (tools, report) = (tools.clone(), report.clone());
        self.state = WriterTaskState::Following(tokio::spawn(async move {
            let ended = ledger.follow(LedgerRetryPolicy::Once, &tools, &report).await;
            (*ledger, ended)
        }));
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
            (unnamed, ended)
        });
    }

    /// Waits for the end of a task, forever if none runs. Dropping the future loses nothing.
    pub(super) async fn next_finished(&mut self) -> WriterTaskResult {
        let ended = tokio::select! {
            ended = join_task(&mut self.state) => ended,
            Some(collected) = self.collecting.join_next() => {
                let (unnamed, ended) = resume(collected);
                JoinedWriterTask::Collected(unnamed, ended)
            }
        };
        match ended {
            JoinedWriterTask::Job(end) => {
                self.state = WriterTaskState::Between;
                WriterTaskResult::Job(Box::new(end))
            }
            JoinedWriterTask::Followed(ledger, ended) => {
                self.return_ledger(ledger);
                WriterTaskResult::Tidied(ended)
            }
            JoinedWriterTask::Collected(unnamed, ended) => {
                self.unnamed = Some(unnamed);
                WriterTaskResult::Tidied(ended)
            }
        }
    }
}

async fn join_task(state: &mut WriterTaskState) -> JoinedWriterTask {
    match state {
        WriterTaskState::Writing(job) => JoinedWriterTask::Job(resume(job.await)),
        WriterTaskState::Following(following) => {
            let (ledger, ended) = resume(following.await);
            JoinedWriterTask::Followed(ledger, ended)
        }
        WriterTaskState::Idle(_) | WriterTaskState::Between => std::future::pending().await,
    }
}

/// This work is never cancelled, so an error is a panic, which is resumed here.
fn resume<T>(ended: Result<T, JoinError>) -> T {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
