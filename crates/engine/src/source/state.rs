//! The state of a source: what its task is doing, why, and when it tries again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// The longest time between two attempts. A fault that has passed is noticed within this time.
const ATTEMPT_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// The time between two attempts to take over from another process.
const STANDBY_INTERVAL: Duration = Duration::from_secs(1);

/// The state of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// The database has not answered since the start.
    Connecting,
    /// Transactions are received as they commit.
    Following,
    /// The engine takes no events, so nothing is received. The database keeps what commits.
    Paused {
        /// The reason.
        reason: String,
    },
    /// Another process holds the slot or the folder. This one takes over when that process ends.
    Standby {
        /// The process that holds it, and what it holds.
        reason: String,
        /// The time of the next attempt.
        next_attempt: Instant,
    },
    /// The database cannot be followed for now. No operator is needed if the fault passes.
    Retrying {
        /// The last error.
        reason: String,
        /// The time of the next attempt.
        next_attempt: Instant,
    },
    /// The database refuses to be followed. An operator has to fix the cause; the next attempt
    /// notices the fix.
    Refused {
        /// The last error, and what to do.
        reason: String,
        /// The time of the next attempt.
        next_attempt: Instant,
    },
}

impl SourceState {
    /// The names of all states.
    pub const NAMES: [&'static str; 6] = ["connecting", "following", "paused", "standby", "retrying", "refused"];

    /// Returns the name of the state, as status services show it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            SourceState::Connecting => "connecting",
            SourceState::Following => "following",
            SourceState::Paused { .. } => "paused",
            SourceState::Standby { .. } => "standby",
            SourceState::Retrying { .. } => "retrying",
            SourceState::Refused { .. } => "refused",
        }
    }

    /// Returns the reason for the state, if it has one.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            SourceState::Connecting | SourceState::Following => None,
            SourceState::Paused { reason }
            | SourceState::Standby { reason, .. }
            | SourceState::Retrying { reason, .. }
            | SourceState::Refused { reason, .. } => Some(reason),
        }
    }

    /// Returns the time of the next attempt, if one is scheduled.
    #[must_use]
    pub fn next_attempt(&self) -> Option<Instant> {
        match self {
            SourceState::Connecting | SourceState::Following | SourceState::Paused { .. } => None,
            SourceState::Standby { next_attempt, .. }
            | SourceState::Retrying { next_attempt, .. }
            | SourceState::Refused { next_attempt, .. } => Some(*next_attempt),
        }
    }

    /// Returns the state of a source that waits for another process.
    #[must_use]
    pub fn standby(reason: String) -> SourceState {
        SourceState::Standby { reason, next_attempt: Instant::now() + STANDBY_INTERVAL }
    }

    /// Returns the state of a source that tries again after a delay. `None` means that the
    /// configuration allows no more attempts, and the source is refused.
    #[must_use]
    pub fn retrying(reason: String, delay: Option<Duration>) -> SourceState {
        match delay {
            Some(delay) => SourceState::Retrying { reason, next_attempt: attempt_after(delay) },
            None => SourceState::refused(
                format!("{reason}; the attempts that reconnect.max_attempts allows have failed"),
                None,
            ),
        }
    }

    /// Returns the state of a source that is refused, and tried again after a delay. Without a
    /// delay, this is after the longest interval.
    #[must_use]
    pub fn refused(reason: String, delay: Option<Duration>) -> SourceState {
        SourceState::Refused { reason, next_attempt: attempt_after(delay.unwrap_or(ATTEMPT_INTERVAL_MAX)) }
    }

    /// Returns true if transactions are received as they commit.
    #[must_use]
    pub fn is_following(&self) -> bool {
        *self == SourceState::Following
    }
}

fn attempt_after(delay: Duration) -> Instant {
    Instant::now() + delay.min(ATTEMPT_INTERVAL_MAX)
}

/// The state of a source, and its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// The state.
    pub state: SourceState,
    /// The time at which the source entered this state.
    pub since: Instant,
    /// The time at which the source was last known to be followed; `None` if it never was.
    pub followed_at: Option<Instant>,
}

/// The reported state of one source, and the wait for its attempts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SourceStateReporter {
    source: Arc<str>,
    status: Arc<watch::Sender<SourceStatus>>,
    retry: Arc<Notify>,
}

impl SourceStateReporter {
    /// Returns a reporter for a source that is connecting. `source` is its name in the
    /// configuration.
    #[must_use]
    pub fn new(source: &str) -> SourceStateReporter {
        let status = SourceStatus { state: SourceState::Connecting, since: Instant::now(), followed_at: None };
        SourceStateReporter {
            source: source.into(),
            status: Arc::new(watch::Sender::new(status)),
            retry: Arc::new(Notify::new()),
        }
    }

    /// Returns a receiver of the state and its changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<SourceStatus> {
        self.status.subscribe()
    }

    /// Returns the present state.
    #[must_use]
    pub fn status(&self) -> SourceStatus {
        self.status.borrow().clone()
    }

    /// Changes the state. A state of the same name for the same reason is not logged again.
    pub fn report(&self, state: SourceState) {
        let mut is_news = false;
        self.status.send_modify(|status| {
            let is_same_name = status.state.name() == state.name();
            is_news = !is_same_name || status.state.reason() != state.reason();
            if is_news {
                self.log(&state, status);
            }
            let now = Instant::now();
            if !is_same_name {
                status.since = now;
            }
            if state.is_following() || status.state.is_following() {
                status.followed_at = Some(now);
            }
            status.state = state;
        });
    }

    /// Changes the state, and waits for its next attempt or a call of
    /// [`SourceStateReporter::retry`]. Returns at once if the state has no next attempt.
    pub async fn wait(&self, state: SourceState) {
        // Registered before the state is visible: an order that is given because of the state must
        // not be missed.
        let retry = self.retry.notified();
        let until = state.next_attempt();
        self.report(state);
        let Some(until) = until else { return };
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = retry => {}
        }
    }

    /// Makes a source that waits for its next attempt try again now.
    pub fn retry(&self) {
        self.retry.notify_waiters();
    }

    fn log(&self, state: &SourceState, before: &SourceStatus) {
        let (source, was) = (&*self.source, before.state.name());
        match state {
            SourceState::Connecting => {}
            SourceState::Following if before.state == SourceState::Connecting => {}
            SourceState::Following => {
                tracing::info!(event = "source_followed_again", source, was, "the source is followed again")
            }
            SourceState::Paused { reason } => {
                tracing::warn!(event = "source_paused", source, reason, "the source is paused")
            }
            SourceState::Standby { reason, .. } => {
                tracing::info!(event = "source_standby", source, reason, "standing by for another process")
            }
            SourceState::Retrying { reason, .. } if before.followed_at.is_none() => {
                tracing::warn!(event = "source_unreachable", source, error = reason, "cannot reach the source yet");
            }
            SourceState::Retrying { reason, .. } => {
                tracing::warn!(
                    event = "stream_broken",
                    source,
                    error = reason,
                    "the replication stream broke, connecting again"
                );
            }
            SourceState::Refused { reason, .. } => {
                tracing::error!(
                    event = "source_refused",
                    source,
                    error = reason,
                    "the source is refused until its cause is fixed"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retrying(reason: &str, after: Duration) -> SourceState {
        SourceState::Retrying { reason: reason.to_owned(), next_attempt: Instant::now() + after }
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_begins_once_however_often_it_is_reported() {
        let reporter = SourceStateReporter::new("main");
        let began = Instant::now();
        assert_eq!(reporter.status().state, SourceState::Connecting);
        reporter.wait(retrying("refused", Duration::from_secs(3))).await;
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        reporter.report(retrying("timed out", Duration::from_secs(3)));
        let status = reporter.status();
        assert_eq!((status.since, status.followed_at), (began, None));
        assert_eq!((status.state.name(), status.state.reason()), ("retrying", Some("timed out")));
        reporter.report(SourceState::Following);
        tokio::time::advance(Duration::from_secs(5)).await;
        reporter.report(retrying("closed", Duration::from_secs(3)));
        assert_eq!(reporter.status().followed_at, Some(Instant::now()), "it was followed until now");
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_ends_the_wait_for_an_attempt() {
        let reporter = SourceStateReporter::new("main");
        let (began, asked) = (Instant::now(), reporter.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            asked.retry();
        });
        reporter.wait(retrying("refused", ATTEMPT_INTERVAL_MAX)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(1));
    }

    #[test]
    fn every_state_has_a_name_of_its_own() {
        let (reason, next_attempt) = (String::new(), Instant::now());
        let states = [
            SourceState::Connecting,
            SourceState::Following,
            SourceState::Paused { reason: reason.clone() },
            SourceState::Standby { reason: reason.clone(), next_attempt },
            SourceState::Retrying { reason: reason.clone(), next_attempt },
            SourceState::Refused { reason, next_attempt },
        ];
        assert_eq!(states.map(|state| state.name()), SourceState::NAMES);
    }
}
