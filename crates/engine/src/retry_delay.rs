//! The time between attempts that fail in a row.

use std::time::Duration;

/// A delay that doubles with each failure in a row, up to a maximum.
#[derive(Clone, Debug)]
pub(crate) struct RetryDelay {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl RetryDelay {
    pub(crate) fn new(first: Duration, max: Duration) -> RetryDelay {
        RetryDelay { first, max, failures: 0 }
    }

    /// Counts a failure, and returns the time until the next attempt.
    pub(crate) fn after_failure(&mut self) -> Duration {
        let delay = self.first.saturating_mul(2_u32.saturating_pow(self.failures)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        delay
    }

    /// Forgets the failures: the last attempt succeeded.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum_and_begin_again_after_a_success() {
        let mut delay = RetryDelay::new(Duration::from_millis(100), Duration::from_secs(1));
        let delays: Vec<u128> = (0..6).map(|_| delay.after_failure().as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000]);
        (0..100).for_each(|_| assert!(delay.after_failure() <= Duration::from_secs(1)));
        delay.reset();
        assert_eq!(delay.after_failure(), Duration::from_millis(100));
    }
}
