//! The connection between a session's task, which sends, and its stream, which is polled. The task
//! runs while the stream is polled, and pauses at each send until the next poll. There is room for
//! one send, and no queue.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use crate::lease::ClientLease;
use crate::refusal;
use crate::table::ServedTable;

/// The frames that were sent and not yet taken.
pub(crate) type FrameSlot = Arc<Mutex<Option<Bytes>>>;

/// A stream as its transport sees it.
pub(crate) struct SessionStream {
    slot: FrameSlot,
    task: Option<Pin<Box<dyn Future<Output = Status> + Send>>>,
}

/// An item of a stream.
#[derive(Debug)]
pub(crate) enum SessionStreamItem {
    /// Whole frames.
    Frames(Bytes),
    /// The end, which comes once.
    End(Status),
}

impl SessionStream {
    pub(super) fn new<T: Future<Output = Status> + Send + 'static>(task: impl FnOnce(FrameSlot) -> T) -> SessionStream {
        let slot = FrameSlot::default();
        let task = task(slot.clone());
        SessionStream { slot, task: Some(Box::pin(task)) }
    }

    /// Ends the stream without another frame.
    pub(crate) fn end(&mut self) {
        self.task = None;
    }

    /// Returns the next frames, or the end, and then `None`.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<SessionStreamItem>> {
        let Some(task) = &mut self.task else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(status) = task.as_mut().poll(cx) {
            self.task = None;
            return Poll::Ready(Some(SessionStreamItem::End(status)));
        }
        match self.slot.lock().take() {
            Some(bytes) => Poll::Ready(Some(SessionStreamItem::Frames(bytes))),
            None => Poll::Pending,
        }
    }
}

/// The sending side of a stream.
pub(super) struct SessionOutlet {
    slot: FrameSlot,
    table: Arc<ServedTable>,
    lease: Arc<ClientLease>,
    stalled: Duration,
    sent_at: Instant,
}

impl SessionOutlet {
    pub(super) fn new(
        slot: FrameSlot,
        table: Arc<ServedTable>,
        lease: Arc<ClientLease>,
        stalled: Duration,
    ) -> SessionOutlet {
        let sent_at = Instant::now();
        SessionOutlet { slot, table, lease, stalled, sent_at }
    }

    pub(super) fn lease(&self) -> &Arc<ClientLease> {
        &self.lease
    }

    /// Returns the time of the last send.
    pub(super) fn sent_at(&self) -> Instant {
        self.sent_at
    }

    /// Sends frames, and waits until there is room for more.
    ///
    /// # Errors
    /// Returns an error if the client was cut meanwhile.
    pub(super) async fn send(&mut self, frames: Bytes) -> Result<(), Status> {
        self.check()?;
        if frames.is_empty() {
            return Ok(());
        }
        self.table.counters().add_sent_bytes(frames.len());
        self.sent_at = Instant::now();
        *self.slot.lock() = Some(frames);
        let slot = &self.slot;
        // The poll of the stream takes the frames at once, and the next poll comes when there is
        // room. So no waker is needed.
        poll_fn(|_| if slot.lock().is_some() { Poll::Pending } else { Poll::Ready(()) }).await;
        self.lease.note_room();
        self.check()
    }

    /// Sends a heartbeat. A subscriber has none, and its next one is due an interval later.
    ///
    /// # Errors
    /// Returns an error if the client was cut meanwhile.
    pub(super) async fn send_heartbeat(&mut self, message: Bytes) -> Result<(), Status> {
        if message.is_empty() {
            self.sent_at = Instant::now();
        }
        self.send(message).await
    }

    /// Returns the status with which the stream ends because the client's resources were released.
    pub(super) fn reason_of_cut(&self) -> Status {
        self.check().err().unwrap_or_else(refusal::journal_replaced)
    }

    fn check(&self) -> Result<(), Status> {
        let checked = self.lease.check(self.stalled);
        if checked.is_err() {
            self.table.counters().count_cut_client();
        }
        checked
    }
}
