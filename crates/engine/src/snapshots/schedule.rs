//! The schedule of snapshots.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep};

use super::{SnapshotError, SnapshotFolder};
use crate::journal::Journal;

/// The maximum wait before the next attempt after a failure.
const RETRY: Duration = Duration::from_secs(15);

/// The maximum wait before the next attempt while a table is copied after a fork.
const FORKED: Duration = Duration::from_secs(1);

/// Writes a snapshot at every interval in which anything was committed, until the sender of `ended`
/// is dropped. A snapshot that is being written at that time is completed.
pub(crate) async fn write_when_due(
    mut snapshots: watch::Receiver<Option<Arc<SnapshotFolder>>>,
    mut journal: watch::Receiver<Option<Journal>>,
    mut ended: oneshot::Receiver<()>,
) {
    let begun = async {
        let snapshots = snapshots.wait_for(Option::is_some).await.ok()?.clone();
        journal.wait_for(Option::is_some).await.ok()?;
        snapshots
    };
    let snapshots = tokio::select! {
        _ = &mut ended => None,
        begun = begun => begun,
    };
    let Some(snapshots) = snapshots else { return };
    let mut wait = snapshots.first_wait();
    loop {
        snapshots.announce(wait);
        tokio::select! {
            biased;
            _ = &mut ended => return,
            () = sleep(wait) => {}
        }
        let began = Instant::now();
        // Another journal replaces this one if the database's history forks.
        let Some(of) = journal.borrow().clone() else { return };
        let interval = snapshots.interval();
        wait = match snapshots.change_folder(move |snapshots| snapshots.write_if_moved(&of)).await {
            Ok(()) => interval.saturating_sub(began.elapsed()),
            Err(SnapshotError::Forked) => interval.min(FORKED),
            Err(error) => {
                if let SnapshotError::Panicked(_) = &error {
                    snapshots.failed(&error);
                }
                tracing::error!(
                    event = "snapshot_not_written",
                    table = %snapshots.table(), %error,
                    "no snapshot was written, and writing is tried again; clients are served, and PostgreSQL keeps the WAL that \
                     a restart needs"
                );
                interval.min(RETRY)
            }
        };
    }
}
