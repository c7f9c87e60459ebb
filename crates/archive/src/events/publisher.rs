//! The publisher, which sends events to all sinks in the background.

mod lane;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use self::lane::SinkLane;
use super::{ArtifactEvent, EventSink};

/// The settings for sending events.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherOptions {
    /// The maximum number of events that wait for a sink. One more event causes the oldest to be
    /// dropped.
    pub queue_events_max: usize,
    /// The timeout for one try.
    pub attempt: Duration,
    /// The delay before the second try. Each further delay is about twice as long.
    pub retry_first: Duration,
    /// The longest delay between two tries.
    pub retry_last: Duration,
    /// The maximum time at shutdown during which waiting events are still sent.
    pub drain: Duration,
    /// The seed of the random part of the delays.
    pub seed: u64,
}

impl Default for PublisherOptions {
    fn default() -> PublisherOptions {
        PublisherOptions {
            queue_events_max: 1000,
            attempt: Duration::from_secs(30),
            retry_first: Duration::from_millis(500),
            retry_last: Duration::from_secs(60),
            drain: Duration::from_secs(5),
            seed: 0,
        }
    }
}

/// The counts of a sink's events so far. Each published event was sent, was dropped, or waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkCounts {
    /// The sink's name.
    pub sink: String,
    /// The number of events that arrived.
    pub sent: u64,
    /// The number of tries that failed.
    pub failed: u64,
    /// The number of events that were dropped because too many waited, or because the process
    /// ended.
    pub dropped: u64,
    /// The number of waiting events, including the one that is being sent.
    pub waiting: u64,
}

/// The queues of events for all sinks. Each sink has its own queue and pace, so a sink that is down
/// does not delay the others. Clones share the queues.
#[derive(Clone, Debug)]
pub struct EventPublisher {
    lanes: Arc<[SinkLane]>,
}

/// The task that sends the events, which the owner has to run.
#[derive(Debug)]
#[must_use = "nothing is sent unless this is run"]
pub struct PublisherTask {
    lanes: Arc<[SinkLane]>,
    options: PublisherOptions,
}

impl EventPublisher {
    /// Creates a publisher for these sinks, and its sending task.
    pub fn new(sinks: Vec<Box<dyn EventSink>>, options: PublisherOptions) -> (EventPublisher, PublisherTask) {
        let lanes: Arc<[SinkLane]> =
            sinks.into_iter().map(|sink| SinkLane::new(sink, options.queue_events_max)).collect();
        (EventPublisher { lanes: lanes.clone() }, PublisherTask { lanes, options })
    }

    /// Queues an event for all sinks. Never blocks.
    pub fn publish(&self, event: ArtifactEvent) {
        let event = Arc::new(event);
        self.lanes.iter().for_each(|lane| lane.add(event.clone()));
    }

    /// Returns the counts of all sinks.
    #[must_use]
    pub fn counts(&self) -> Vec<SinkCounts> {
        self.lanes.iter().map(SinkLane::counts).collect()
    }
}

impl PublisherTask {
    /// Sends events until `shutdown` completes. Then sends the waiting events for at most
    /// [`PublisherOptions::drain`], and drops those that are left.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let seeds = self.options.seed..;
        let mut sending =
            pin!(join_all(self.lanes.iter().zip(seeds).map(|(lane, seed)| lane.send_all(&self.options, seed))));
        tokio::select! {
            _ = &mut sending => {}
            () = shutdown => {}
        }
        self.lanes.iter().for_each(SinkLane::close);
        if tokio::time::timeout(self.options.drain, sending).await.is_err() {
            self.lanes.iter().for_each(SinkLane::give_up);
        }
    }
}

#[cfg(test)]
mod tests;
