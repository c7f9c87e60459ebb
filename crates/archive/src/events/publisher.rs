//! Sends events to all sinks, without anybody waiting for it.

mod lane;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use self::lane::Lane;
use super::{Event, Sink};

/// How events are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublisherOptions {
    /// How many may wait for a sink. When there is one more, the oldest is dropped.
    pub queue_events_max: usize,
    /// How long one attempt may take.
    pub attempt: Duration,
    /// How long to wait before the second attempt; each further one waits about twice as long.
    pub retry_first: Duration,
    /// The longest that an attempt is waited for.
    pub retry_last: Duration,
    /// How long those that wait are still sent when the process is to end.
    pub drain: Duration,
    /// Seeds the jitter of the waits.
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

/// What became of a sink's events so far. All that were published were sent, were dropped, or wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkCounts {
    /// The sink's name.
    pub sink: String,
    /// Events that arrived.
    pub sent: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Events that were given up: too many waited, or the process ended.
    pub dropped: u64,
    /// Events that wait, the one that is being sent among them.
    pub waiting: u64,
}

/// Takes events for all sinks. Each has a queue and a pace of its own, so that one that is down holds up no other. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher {
    lanes: Arc<[Lane]>,
}

/// The sending, which somebody has to run.
#[derive(Debug)]
#[must_use = "nothing is sent unless this is run"]
pub struct Publishing {
    lanes: Arc<[Lane]>,
    options: PublisherOptions,
}

impl Publisher {
    /// For these sinks.
    pub fn new(sinks: Vec<Box<dyn Sink>>, options: PublisherOptions) -> (Publisher, Publishing) {
        let lanes: Arc<[Lane]> = sinks.into_iter().map(|sink| Lane::new(sink, options.queue_events_max)).collect();
        (Publisher { lanes: lanes.clone() }, Publishing { lanes, options })
    }

    /// Lets an event be sent. It never waits.
    pub fn publish(&self, event: Event) {
        let event = Arc::new(event);
        self.lanes.iter().for_each(|lane| lane.add(event.clone()));
    }

    /// What became of the events of each sink so far.
    #[must_use]
    pub fn counts(&self) -> Vec<SinkCounts> {
        self.lanes.iter().map(Lane::counts).collect()
    }
}

impl Publishing {
    /// Sends until `shutdown` is done, then what waits for as long as the options say. What is left then is dropped.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let seeds = self.options.seed..;
        let mut sending =
            pin!(join_all(self.lanes.iter().zip(seeds).map(|(lane, seed)| lane.send_all(&self.options, seed))));
        tokio::select! {
            _ = &mut sending => {}
            () = shutdown => {}
        }
        self.lanes.iter().for_each(Lane::close);
        if tokio::time::timeout(self.options.drain, sending).await.is_err() {
            self.lanes.iter().for_each(Lane::give_up);
        }
    }
}

#[cfg(test)]
mod tests;
