//! A download of a stored snapshot, which ends if its client reads nothing.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::response_task::ResponseTask;

/// A download of a stored snapshot. A client that reads nothing is not polled, so a periodic sweep
/// ends the download.
pub(crate) struct SnapshotDownload {
    /// The time since which rows wait for the client; `None` while the server prepares some.
    offered_at: Mutex<Option<Instant>>,
    /// The task that sends the rows.
    task: ResponseTask,
}

impl SnapshotDownload {
    pub(crate) fn new(task: ResponseTask) -> SnapshotDownload {
        SnapshotDownload { offered_at: Mutex::new(None), task }
    }

    /// Notes that rows wait for the client.
    pub(crate) fn note_offered(&self) {
        *self.offered_at.lock() = Some(Instant::now());
    }

    /// Notes that the client has taken all rows that waited for it.
    pub(crate) fn note_taken(&self) {
        *self.offered_at.lock() = None;
    }

    /// Ends the download if rows have waited for the client for longer than `stalled`. Returns true
    /// if the download must be swept again.
    pub(crate) fn sweep(&self, now: Instant, stalled: Duration) -> bool {
        let waited = self.offered_at.lock().map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if waited <= stalled {
            return true;
        }
        self.task.abort();
        false
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tokio::time::advance;

    use super::*;

    const STALLED: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_download_ends_if_its_client_takes_nothing() {
        let ((begun, begins), (until_end, ended)) = (oneshot::channel(), oneshot::channel::<()>());
        ResponseTask::spawn(async move {
            let _until_end = until_end;
            begun.send(ResponseTask::current()).ok();
            std::future::pending::<()>().await;
        });
        let download = SnapshotDownload::new(begins.await.unwrap());
        for _ in 0..3 {
            // The server may take any time, and the client almost the limit.
            advance(STALLED * 2).await;
            assert!(download.sweep(Instant::now(), STALLED));
            download.note_offered();
            advance(STALLED).await;
            assert!(download.sweep(Instant::now(), STALLED));
            download.note_taken();
        }
        download.note_offered();
        advance(STALLED + Duration::from_millis(1)).await;
        assert!(!download.sweep(Instant::now(), STALLED));
        assert!(ended.await.is_err(), "the task has ended");
    }
}
