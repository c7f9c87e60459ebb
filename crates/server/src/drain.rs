//! Draining: asking clients to leave. Each client is notified once, at its own time, and a client
//! that is still connected at the end is cut.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// The maximum time over which the notices to clients are spread, so that they do not all reconnect
/// to the next server at once.
const SPREAD_MAX: Duration = Duration::from_secs(5);
/// The divisor of the drain's time that limits the spread to this share of it.
const SPREAD_SHARE: u32 = 4;
/// The fractional part of the golden ratio. Its multiples are evenly distributed in the unit
/// interval, for any number of them.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// A table's drain, if it has begun.
pub(crate) struct TableDrain {
    farewell: watch::Sender<Option<DrainNotice>>,
    guests: AtomicU64,
}

/// The notice to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DrainNotice {
    began: Instant,
    /// The time when the remaining clients are cut; `None` for never.
    until: Option<Instant>,
}

impl TableDrain {
    pub(crate) fn new() -> TableDrain {
        TableDrain { farewell: watch::Sender::new(None), guests: AtomicU64::new(0) }
    }

    /// Begins the drain, or changes its end.
    pub(crate) fn begin(&self, now: Instant, time: Option<Duration>) {
        // A time too late to be represented is never.
        let until = time.and_then(|time| now.checked_add(time));
        self.farewell.send_modify(|farewell| {
            let began = farewell.map_or(now, |farewell| farewell.began);
            *farewell = Some(DrainNotice { began, until });
        });
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.farewell.borrow().is_some()
    }

    /// Registers one more client that must be notified of a drain.
    pub(crate) fn guest(&self) -> ClientDrain {
        let number = self.guests.fetch_add(1, Ordering::Relaxed);
        let share = (number as f64 * GOLDEN).fract();
        ClientDrain { farewell: self.farewell.subscribe(), share, is_reported: false }
    }

    /// Waits until the time of the remaining clients is over.
    pub(crate) async fn over(&self) {
        let mut farewell = self.farewell.subscribe();
        loop {
            let until = farewell.borrow_and_update().and_then(|farewell| farewell.until);
            tokio::select! {
                () = wait_until(until) => return,
                changed = farewell.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
            }
        }
    }
}

/// A client's part in a drain.
pub(crate) struct ClientDrain {
    farewell: watch::Receiver<Option<DrainNotice>>,
    share: f64,
    is_reported: bool,
}

impl ClientDrain {
    /// Returns the notice if it is due now. It is returned once.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<DrainNotice> {
        let farewell = *self.farewell.borrow();
        let farewell = farewell.filter(|farewell| !self.is_reported && farewell.at(self.share) <= now)?;
        self.is_reported = true;
        Some(farewell)
    }

    /// Waits until a notice is due.
    pub(crate) async fn due(&mut self) {
        loop {
            let farewell = *self.farewell.borrow_and_update();
            let at = farewell.filter(|_| !self.is_reported).map(|farewell| farewell.at(self.share));
            tokio::select! {
                () = wait_until(at) => return,
                changed = self.farewell.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
            }
        }
    }
}

impl DrainNotice {
    /// Returns the time of the notice to the client with this share of the spread.
    fn at(&self, share: f64) -> Instant {
        let spread = self.until.map_or(SPREAD_MAX, |until| {
            let time = until.saturating_duration_since(self.began);
            SPREAD_MAX.min(time / SPREAD_SHARE)
        });
        self.began + spread.mul_f64(share)
    }

    /// Returns the time that the remaining clients have from now on.
    pub(crate) fn left(&self, now: Instant) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(now))
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clients_are_asked_to_leave_once_evenly_and_in_a_quarter_of_the_time() {
        let (drain, began) = (TableDrain::new(), Instant::now());
        let mut guests: Vec<ClientDrain> = (0..100).map(|_| drain.guest()).collect();
        assert!(guests.iter_mut().all(|guest| guest.take_due(began).is_none()), "nobody is asked to leave yet");
        drain.begin(began, Some(Duration::from_secs(8)));
        let mut told_at = Vec::new();
        for guest in &mut guests {
            guest.due().await;
            assert!(guest.take_due(Instant::now()).is_some() && guest.take_due(Instant::now()).is_none());
        }
        for guest in &guests {
            told_at.push(drain.farewell.borrow().unwrap().at(guest.share) - began);
        }
        assert!(told_at.iter().all(|at| *at < Duration::from_secs(2)), "{told_at:?}");
        for quarter in 0..4 {
            let told = told_at.iter().filter(|at| at.as_millis() / 500 == quarter).count();
            assert!((20..=30).contains(&told), "{told} of 100 in the quarter {quarter}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_without_end_is_never_over_and_can_be_given_one() {
        let (drain, began) = (TableDrain::new(), Instant::now());
        drain.begin(began, None);
        let forever = tokio::time::timeout(Duration::from_secs(86_400), drain.over()).await;
        assert!(forever.is_err());
        drain.begin(Instant::now(), Some(Duration::from_secs(3)));
        drain.over().await;
        assert_eq!(began.elapsed(), Duration::from_secs(86_403));
        let mut late = drain.guest();
        assert!(late.take_due(Instant::now()).is_some());
    }
}
