//! The tasks that run while the writer collects changes. Only one task at a time has the ledger.
//! Unnamed objects are deleted in parallel, so that this never delays an artifact.

use std::sync::Arc;

use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::{Duration, Instant};

use super::collect::{Collection, Unnamed};
use super::job::{Job, JobEnd};
use super::ledger::{Ledger, Wait};
use super::report::Report;
use super::{Tools, WriterError};

/// The interval at which destinations that lack something are tried, while nothing else is written.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(5);

/// The tasks that run while changes are collected.
pub(super) struct Work {
    state: State,
    followed: Instant,
    collection: Arc<Collection>,
    /// The unnamed objects found so far; `None` while a collection runs.
    unnamed: Option<Unnamed>,
    /// The running collection. It is aborted when this is dropped.
    collecting: JoinSet<(Unnamed, Result<(), WriterError>)>,
    collected: Instant,
}

enum State {
    Idle(Box<Ledger>),
    Writing(JoinHandle<JobEnd>),
    Following(JoinHandle<(Ledger, Result<(), WriterError>)>),
    /// The moment between two of the other states.
    Between,
}

/// A task that has ended.
pub(super) enum Done {
    Job(Box<JobEnd>),
    Tidied(Result<(), WriterError>),
}

enum Ended {
    Job(JobEnd),
    Followed(Ledger, Result<(), WriterError>),
    Collected(Unnamed, Result<(), WriterError>),
}

impl Work {
    pub(super) fn new(ledger: Ledger, grace: Duration) -> Work {
        let now = Instant::now();
        let destinations = ledger.destinations().cloned().collect();
        let collection = Arc::new(Collection { destinations, writer: ledger.writer().clone(), grace });
        Work {
            state: State::Idle(Box::new(ledger)),
            followed: now,
            collection,
            unnamed: Some(Unnamed::default()),
            collecting: JoinSet::new(),
            collected: now,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle(_))
    }

    /// Takes the ledger back after a task.
    pub(super) fn rest(&mut self, ledger: Ledger) {
        self.state = State::Idle(Box::new(ledger));
    }

    pub(super) fn begin(&mut self, job: Job, tools: &Arc<Tools>, report: &Report) {
        self.state = match std::mem::replace(&mut self.state, State::Between) {
            State::Idle(ledger) => State::Writing(tokio::spawn(job.run(*ledger, tools.clone(), report.clone()))),
            other => other,
        };
    }

    /// Brings the other destinations up to date, if one lacks something and the interval has
    /// passed.
    pub(super) fn tidy(&mut self, tools: &Arc<Tools>, report: &Report) {
        let State::Idle(ledger) = &self.state else { return };
        if !ledger.is_behind() || self.followed.elapsed() < FOLLOW_INTERVAL {
            return;
        }
        let State::Idle(mut ledger) = std::mem::replace(&mut self.state, State::Between) else { return };
        self.followed = Instant::now();
        let (tools, report) = (tools.clone(), report.clone());
        self.state = State::Following(tokio::spawn(async move {
            let ended = ledger.follow(Wait::Once, &tools, &report).await;
            (*ledger, ended)
        }));
    }

    /// Deletes unnamed objects if a collection is due, also while another task runs.
    pub(super) fn collect(&mut self, tools: &Arc<Tools>, report: &Report) {
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
    pub(super) async fn done(&mut self) -> Done {
        let ended = tokio::select! {
            ended = ended(&mut self.state) => ended,
            Some(collected) = self.collecting.join_next() => {
                let (unnamed, ended) = resume(collected);
                Ended::Collected(unnamed, ended)
            }
        };
        match ended {
            Ended::Job(end) => {
                self.state = State::Between;
                Done::Job(Box::new(end))
            }
            Ended::Followed(ledger, ended) => {
                self.rest(ledger);
                Done::Tidied(ended)
            }
            Ended::Collected(unnamed, ended) => {
                self.unnamed = Some(unnamed);
                Done::Tidied(ended)
            }
        }
    }
}

async fn ended(state: &mut State) -> Ended {
    match state {
        State::Writing(job) => Ended::Job(resume(job.await)),
        State::Following(following) => {
            let (ledger, ended) = resume(following.await);
            Ended::Followed(ledger, ended)
        }
        State::Idle(_) | State::Between => std::future::pending().await,
    }
}

/// This work is never cancelled, so an error is a panic, which is resumed here.
fn resume<T>(ended: Result<T, JoinError>) -> T {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
