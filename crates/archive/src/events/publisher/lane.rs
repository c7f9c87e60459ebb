//! The event queue of one sink.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::RetryDelays;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{PublisherOptions, SinkCounts};
use crate::events::{ArtifactEvent, EventSink, SinkError};

/// A sink, and the events that wait for it.
#[derive(Debug)]
pub(super) struct SinkLane {
    sink: Box<dyn EventSink>,
    events_max: usize,
    queue: Mutex<SinkQueue>,
    /// A notification of each event that is added.
    added: Notify,
    closed: watch::Sender<bool>,
}

/// The waiting events, oldest first. The event that is being sent stays until it has arrived, so
/// that it can be dropped like any other. An event that a sink never accepts thus does not block
/// the others forever.
#[derive(Debug, Default)]
struct SinkQueue {
    waiting: VecDeque<Arc<ArtifactEvent>>,
    /// The number of the first waiting event. All earlier events were sent or dropped.
    first: u64,
    sent: u64,
    failed: u64,
    dropped: u64,
}

impl SinkLane {
    pub(super) fn new(sink: Box<dyn EventSink>, events_max: usize) -> SinkLane {
        let (queue, added, closed) = (Mutex::default(), Notify::new(), watch::Sender::new(false));
        SinkLane { sink, events_max: events_max.max(1), queue, added, closed }
    }

    pub(super) fn add(&self, event: Arc<ArtifactEvent>) {
        let mut queue = self.queue.lock();
        if queue.waiting.len() == self.events_max {
            queue.waiting.pop_front();
            queue.first += 1;
            queue.dropped += 1;
            let (sink, dropped) = (self.sink.name(), queue.dropped);
            tracing::warn!(
                event = "sink_queue_full",
                sink,
                dropped,
                "too many events wait for a sink: the oldest is dropped"
            );
        }
        queue.waiting.push_back(event);
        drop(queue);
        self.added.notify_one();
    }

    pub(super) fn counts(&self) -> SinkCounts {
        let queue = self.queue.lock();
        SinkCounts {
            sink: self.sink.name().to_owned(),
            sent: queue.sent,
            failed: queue.failed,
            dropped: queue.dropped,
            waiting: queue.waiting.len() as u64,
        }
    }

    /// Closes the queue to new events. [`SinkLane::send_all`] ends once no event waits.
    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Drops all waiting events.
    pub(super) fn give_up(&self) {
        let mut queue = self.queue.lock();
        let left = queue.waiting.len() as u64;
        if left > 0 {
            queue.waiting.clear();
            queue.first += left;
            queue.dropped += left;
            tracing::warn!(
                event = "sink_events_not_sent",
                sink = self.sink.name(),
                dropped = left,
                "events were not sent before the end"
            );
        }
    }

    /// Sends the events in order. Each is retried until it has arrived or is dropped.
    pub(super) async fn send_all(&self, options: &PublisherOptions, seed: u64) {
        let mut backoff = RetryDelays::new(options.retry_first, options.retry_last).with_random_share(seed);
        while let Some((number, event)) = self.oldest().await {
            let sent = tokio::time::timeout(options.attempt, self.sink.send(&event)).await;
            let error = match sent {
                Ok(Ok(())) => {
                    backoff.reset();
                    self.arrived(number);
                    continue;
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    let reason = format!("no answer in {:?}", options.attempt);
                    SinkError { to: self.sink.name().to_owned(), reason }
                }
            };
            self.queue.lock().failed += 1;
            let pause = backoff.after_failure();
            tracing::warn!(
                event = "sink_event_failed", %error, again_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "an event was not sent"
            );
            self.rest(pause, options.retry_first).await;
        }
    }

    /// Waits for `pause`. Ends early if the queue is closed meanwhile, or after `at_the_end` if it
    /// was closed before.
    async fn rest(&self, pause: Duration, at_the_end: Duration) {
        let mut closed = self.closed.subscribe();
        let already = *closed.borrow();
        let hurry = async {
            // This fails only if the lane is gone.
            let _ = closed.wait_for(|closed| *closed).await;
            if already {
                tokio::time::sleep(at_the_end).await;
            }
        };
        let _ = tokio::time::timeout(pause, hurry).await;
    }

    /// Waits for the oldest event and returns it with its number. Returns `None` once the queue is
    /// closed and empty.
    async fn oldest(&self) -> Option<(u64, Arc<ArtifactEvent>)> {
        let mut closed = self.closed.subscribe();
        loop {
            {
                let queue = self.queue.lock();
                if let Some(event) = queue.waiting.front() {
                    return Some((queue.first, event.clone()));
                }
            }
            if *closed.borrow_and_update() {
                return None;
            }
            tokio::select! {
                () = self.added.notified() => {}
                _ = closed.changed() => {}
            }
        }
    }

    fn arrived(&self, number: u64) {
        let mut queue = self.queue.lock();
        queue.sent += 1;
        if queue.first == number {
            queue.waiting.pop_front();
            queue.first += 1;
        } else {
            // The event was dropped while it was being sent, but arrived nevertheless.
            queue.dropped -= 1;
        }
    }
}
