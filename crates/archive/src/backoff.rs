//! The delays before a failed operation is retried.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Growing delays, with a random part so that clients do not retry at the same time.
#[derive(Debug)]
pub(crate) struct RetryDelays {
    first: Duration,
    last: Duration,
    failures: u32,
    random: StdRng,
}

impl RetryDelays {
    /// Creates delays from `first` to `last`. `seed` makes them repeatable.
    pub(crate) fn new(first: Duration, last: Duration, seed: u64) -> RetryDelays {
        RetryDelays { first, last, failures: 0, random: StdRng::seed_from_u64(seed) }
    }

    /// Resets to the first delay after a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits for the next delay.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    /// Returns the next delay: a random one between half of the nominal delay and all of it. The
    /// nominal delay doubles with each failure, up to the last one.
    pub(crate) fn next(&mut self) -> Duration {
        let full = self.last.min(self.first.saturating_mul(1 << self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(self.random.random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound() {
        let (first, last) = (Duration::from_millis(100), Duration::from_secs(30));
        let mut backoff = RetryDelays::new(first, last, 7);
        let waits: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
        assert!(waits[0] <= first && waits[0] >= first / 2, "{waits:?}");
        assert!(waits[19] <= last && waits[19] >= last / 2, "{waits:?}");
        backoff.reset();
        assert!(backoff.next() <= first);
    }
}
