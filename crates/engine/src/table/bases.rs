//! The task that makes a table's bases. The table's own task may be busy with a large transaction,
//! or wait for a reader.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::{RetryDelays, TableName};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use crate::base::{self, Base, BaseError, BaseLocation};
use crate::journal::{BaseMergeInput, Journal};

/// The number of bytes that the journal after the last base has to exceed before a new base is
/// made. The journal also has to be larger than that base.
const BASE_DEBT_BYTES: u64 = 64 * 1024 * 1024;
/// The delay before another attempt at a base that could not be made. It doubles each time, up to
/// the maximum.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// A running task that makes bases.
#[derive(Debug)]
pub(super) struct BaseMaker {
    /// The journal that the task makes bases of.
    journal: Journal,
    task: JoinHandle<()>,
    /// The sender whose drop ends the task.
    running: oneshot::Sender<()>,
}

impl BaseMaker {
    pub(super) fn start(table: TableName, journal: Journal, bases: BaseLocation) -> BaseMaker {
        let (running, ended) = oneshot::channel();
        let task = tokio::spawn(make_bases(table, journal.clone(), bases, ended).in_current_span());
        BaseMaker { journal, task, running }
    }

    /// Returns true if the task makes the bases of this journal, and not of one that was replaced
    /// after a fork.
    pub(super) fn serves(&self, journal: &Journal) -> bool {
        self.journal.instance() == journal.instance()
    }

    /// Ends the task. A base that is being made is completed first, because the table's folder is
    /// in use until then.
    pub(super) async fn end(self) {
        drop(self.running);
        // A panic has already been printed.
        let _ = self.task.await;
    }
}

/// A guard that closes the base requests when the task ends, for whatever reason. New clients then
/// do not wait for it.
struct BaseRequestGuard(Journal);

impl Drop for BaseRequestGuard {
    fn drop(&mut self) {
        self.0.base_requests().close();
    }
}

/// Returns true if a new base is due. The journal since the newest base has grown large or must be
/// pruned soon, or the base is outdated.
pub(super) fn is_base_due(journal: &Journal) -> bool {
    let (base_bytes, after_bytes, after_entries) = journal.base_debt();
    let limits = journal.options();
    let grown = after_bytes > base_bytes.max(BASE_DEBT_BYTES);
    let over = after_entries > limits.entries_max / 2 || after_bytes > limits.bytes_max / 2;
    // For age alone, half of the limit counts: a base then exists before the limit requires
    // pruning.
    let aged = || journal.oldest_age_after_base().is_some_and(|age| age > limits.age_max / 2);
    grown || over || aged() || journal.is_base_outdated()
}

/// Makes a base whenever one is requested and due, or a new client needs a fresh one. Makes one
/// base at a time.
async fn make_bases(table: TableName, journal: Journal, bases: BaseLocation, mut ended: oneshot::Receiver<()>) {
    let _closing = BaseRequestGuard(journal.clone());
    let mut retry_delay = RetryDelays::new(RETRY, RETRY_MAX);
    loop {
        tokio::select! {
            biased;
            _ = &mut ended => return,
            () = journal.base_requests().requested() => {}
        }
        if journal.is_closed() {
            return;
        }
        journal.base_requests().begin_round();
        if !is_base_due(&journal) && journal.has_fresh_base() {
            journal.base_requests().answer(None);
            continue;
        }
        let began = Instant::now();
        let (of, to) = (journal.clone(), bases.clone());
        let made = spawn_blocking(move || merge_base(&of, &to)).await;
        let has_failed = match made {
            Ok(Ok(Some(next))) => {
                tracing::info!(
                    event = "base_made", %table, rows = next.rows(), position = %next.position(),
                    "new base snapshot"
                );
                journal.replace_base(Arc::new(next), began);
                false
            }
            // The table reports the reason.
            Ok(Ok(None)) => true,
            Ok(Err(error)) => {
                tracing::error!(event = "base_failed", %table, %error, "no new base snapshot; the journal grows");
                true
            }
            Err(panic) => {
                tracing::error!(event = "base_failed", %table, %panic, "no new base snapshot; the journal grows");
                true
            }
        };
        journal.base_requests().answer(Some((began, began.elapsed())));
        if !has_failed {
            retry_delay.reset();
        } else if timeout(retry_delay.after_failure(), &mut ended).await.is_ok() {
            return;
        }
    }
}

/// Makes the next base. A base in a store must not be ahead of the journal, or clients in between
/// could not resume after a restart. Returns `None` if the journal on disk will never be that far.
fn merge_base(journal: &Journal, bases: &BaseLocation) -> Result<Option<Base>, BaseError> {
    let BaseMergeInput { base, after, head, definition, .. } = journal.base_and_after();
    if bases.store.as_ref().is_some_and(|(store, _)| !store.wait_for(head.sequence)) {
        return Ok(None);
    }
    let mut writer = bases.writer()?;
    writer.define(definition);
    base::merge(&base, &after, head, &journal.options().folder, writer).map(Some)
}
