//! What a writer does beside collecting: one thing at a time, and whatever it is has the ledger.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use super::collect::Unnamed;
use super::job::{Job, JobEnd};
use super::ledger::{Ledger, Wait};
use super::report::Report;
use super::{Tools, WriterError};

/// How often destinations that lack something are tried, while nothing else is written.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(5);

/// Work that is done beside.
pub(super) struct Work {
    state: State,
    unnamed: Option<Unnamed>,
    collected: Instant,
    followed: Instant,
}

enum State {
    Idle(Box<Ledger>),
    Writing(JoinHandle<JobEnd>),
    Tidying(JoinHandle<(Ledger, Unnamed, Result<(), WriterError>)>),
    /// Between two of them.
    Between,
}

/// Work that has ended.
pub(super) enum Done {
    Job(Box<JobEnd>),
    Tidied(Result<(), WriterError>),
}

impl Work {
    pub(super) fn new(ledger: Ledger) -> Work {
        let now = Instant::now();
        Work { state: State::Idle(Box::new(ledger)), unnamed: Some(Unnamed::default()), collected: now, followed: now }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle(_))
    }

    /// Nothing is done, and the ledger is here.
    pub(super) fn rest(&mut self, ledger: Ledger) {
        self.state = State::Idle(Box::new(ledger));
    }

    pub(super) fn begin(&mut self, job: Job, tools: &Arc<Tools>, report: &Report) {
        self.state = match std::mem::replace(&mut self.state, State::Between) {
            State::Idle(ledger) => State::Writing(tokio::spawn(job.run(*ledger, tools.clone(), report.clone()))),
            other => other,
        };
    }

    /// Brings destinations up that lack something, and deletes what nobody names, if it is time for either.
    pub(super) fn tidy(&mut self, tools: &Arc<Tools>, report: &Report) {
        let State::Idle(ledger) = &self.state else { return };
        let grace = tools.options.grace;
        let follows = ledger.is_behind() && self.followed.elapsed() >= FOLLOW_INTERVAL;
        let collects = self.collected.elapsed() >= grace / 4;
        if !follows && !collects {
            return;
        }
        let State::Idle(mut ledger) = std::mem::replace(&mut self.state, State::Between) else { return };
        let now = Instant::now();
        self.followed = now;
        if collects {
            self.collected = now;
        }
        let mut unnamed = self.unnamed.take().unwrap_or_default();
        let (tools, report) = (tools.clone(), report.clone());
        self.state = State::Tidying(tokio::spawn(async move {
            let mut ended = ledger.follow(Wait::Once, &tools, &report).await;
            if collects && ended.is_ok() {
                ended = unnamed.collect(&mut ledger, grace, &tools, &report).await;
            }
            (*ledger, unnamed, ended)
        }));
    }

    /// Waits for what is being done; for ever, if nothing is. It may be dropped while it waits.
    pub(super) async fn done(&mut self) -> Done {
        match &mut self.state {
            State::Writing(job) => {
                let end = resume(job.await);
                self.state = State::Between;
                Done::Job(Box::new(end))
            }
            State::Tidying(tidying) => {
                let (ledger, unnamed, ended) = resume(tidying.await);
                self.unnamed = Some(unnamed);
                self.rest(ledger);
                Done::Tidied(ended)
            }
            State::Idle(_) | State::Between => std::future::pending().await,
        }
    }
}

/// Nobody cancels this work, so it can only have panicked: that goes on here.
fn resume<T>(ended: Result<T, JoinError>) -> T {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
