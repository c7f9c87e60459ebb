//! The clock of a database.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::CommitTime;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The longest time that an answer may take. A slower answer is used only if there is no other one.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// The clock of a database. Lag is the difference of two times of this clock, because this
/// machine's clock may be hours away. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct SourceClock(Arc<Mutex<Option<(CommitTime, Instant)>>>);

impl SourceClock {
    /// Records a time that the database returned between `asked` and `answered`.
    pub fn note_time(&self, time: CommitTime, asked: Instant, answered: Instant) {
        let took = answered.saturating_duration_since(asked);
        let mut known = self.0.lock();
        if known.is_none() || took <= ANSWER_MAX {
            *known = Some((time, asked + took / 2));
        }
    }

    /// Returns the time on the database's clock. Before the database has returned a time, this is
    /// `own`, the time on this machine's clock.
    #[must_use]
    pub fn now(&self, own: CommitTime) -> CommitTime {
        let Some((time, at)) = *self.0.lock() else { return own };
        let passed_us = i64::try_from(at.elapsed().as_micros()).unwrap_or(i64::MAX);
        CommitTime(time.0.saturating_add(passed_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_continues_from_the_last_one_received() {
        let clock = SourceClock::default();
        assert_eq!(clock.now(CommitTime(7)), CommitTime(7), "nothing was told");
        let (asked, second) = (Instant::now(), Duration::from_secs(1));
        tokio::time::advance(second).await;
        clock.note_time(CommitTime(5_000_000), asked, Instant::now());
        assert_eq!(clock.now(CommitTime(7)), CommitTime(5_500_000), "it was told half-way");
        tokio::time::advance(2 * second).await;
        assert_eq!(clock.now(CommitTime(7)), CommitTime(7_500_000));
        clock.note_time(CommitTime(9), asked, Instant::now());
        assert_eq!(clock.now(CommitTime(7)), CommitTime(7_500_000), "three seconds are no answer");
        clock.note_time(CommitTime(9), Instant::now(), Instant::now());
        assert_eq!(clock.now(CommitTime(7)), CommitTime(9), "the database's clock may be set back");
    }
}
