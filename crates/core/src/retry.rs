//! The delays between attempts that fail in a row.

use std::time::Duration;

/// Delays that grow with each failure in a row, up to a maximum.
///
/// ```
/// use std::time::Duration;
/// use laredo_core::RetryDelays;
///
/// let mut delays = RetryDelays::new(Duration::from_millis(100), Duration::from_millis(300));
/// assert_eq!(delays.after_failure(), Duration::from_millis(100));
/// assert_eq!(delays.after_failure(), Duration::from_millis(200));
/// assert_eq!(delays.after_failure(), Duration::from_millis(300));
/// delays.reset();
/// assert_eq!(delays.after_failure(), Duration::from_millis(100));
/// ```
#[derive(Clone, Debug)]
pub struct RetryDelays {
    first: Duration,
    max: Duration,
    failures: u32,
    /// The state of the generator of random shares. `None` leaves delays as they are.
    random: Option<u64>,
}

impl RetryDelays {
    /// Creates delays that begin with `first` and double up to `max`.
    #[must_use]
    pub fn new(first: Duration, max: Duration) -> RetryDelays {
        RetryDelays { first, max, failures: 0, random: None }
    }

    /// Makes each delay a random one between half of the computed delay and all of it, so that
    /// clients do not retry at the same time. The same seed gives the same delays.
    #[must_use]
    pub fn with_random_share(mut self, seed: u64) -> RetryDelays {
        self.random = Some(seed);
        self
    }

    /// Counts a failure, and returns the time until the next attempt.
    pub fn after_failure(&mut self) -> Duration {
        let delay = grown_delay(self.first, self.max, 2.0, self.failures);
        self.failures = self.failures.saturating_add(1);
        self.share_of(delay)
    }

    /// Counts a failure after which the next attempt waits for `delay` and not for the computed
    /// time. Returns `delay`, or a random share of it.
    pub fn after_failure_with(&mut self, delay: Duration) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.share_of(delay)
    }

    /// Resets to the first delay after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    fn share_of(&mut self, delay: Duration) -> Duration {
        let Some(random) = &mut self.random else { return delay };
        let share = (split_mix(random) >> 11) as f64 / (1_u64 << 53) as f64;
        delay.mul_f64(0.5 + share / 2.0)
    }
}

/// Returns the delay after `failures` failures before this one: `first`, multiplied once for each
/// of them, up to `max`. A multiplier below 1 counts as 1.
#[must_use]
pub fn grown_delay(first: Duration, max: Duration, multiplier: f64, failures: u32) -> Duration {
    let factor = multiplier.max(1.0).powi(i32::try_from(failures).unwrap_or(i32::MAX));
    Duration::from_secs_f64((first.as_secs_f64() * factor).min(max.as_secs_f64()))
}

/// Returns the next number of a SplitMix64 generator.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn delays_double_up_to_the_maximum_and_start_over_after_a_success() {
        let mut delays = RetryDelays::new(Duration::from_millis(100), Duration::from_secs(1));
        let first: Vec<u128> = (0..6).map(|_| delays.after_failure().as_millis()).collect();
        assert_eq!(first, [100, 200, 400, 800, 1000, 1000]);
        delays.reset();
        assert_eq!(delays.after_failure(), Duration::from_millis(100));
    }

    #[test]
    fn random_shares_differ_between_failures_and_seeds() {
        let second = Duration::from_secs(1);
        let delays = |seed| {
            let mut delays = RetryDelays::new(second, second).with_random_share(seed);
            (0..50).map(|_| delays.after_failure()).collect::<Vec<_>>()
        };
        assert!(delays(1).iter().any(|delay| *delay != delays(1)[0]));
        assert_eq!(delays(1), delays(1));
        assert_ne!(delays(1), delays(2));
    }

    #[test]
    fn a_given_delay_counts_as_a_failure() {
        let mut delays = RetryDelays::new(Duration::from_millis(100), Duration::from_secs(1));
        assert_eq!(delays.after_failure_with(Duration::from_secs(15)), Duration::from_secs(15));
        assert_eq!(delays.after_failure(), Duration::from_millis(200));
    }

    proptest! {
        #[test]
        fn a_delay_is_between_half_of_the_computed_one_and_all_of_it(
            first in 0_u64..10_000, max in 0_u64..100_000, seed: u64, failures in 0_u32..200,
        ) {
            let (first, max) = (Duration::from_millis(first), Duration::from_millis(max));
            let mut exact = RetryDelays::new(first, max);
            let mut shared = exact.clone().with_random_share(seed);
            for _ in 0..failures {
                let (full, part) = (exact.after_failure(), shared.after_failure());
                prop_assert!(full <= max && part >= full.mul_f64(0.5) && part <= full, "{full:?} {part:?}");
            }
        }

        #[test]
        fn a_delay_never_shrinks_with_failures(
            first in 0_u64..10_000, max in 0_u64..100_000, multiplier in 0.0..100.0, failures: u32,
        ) {
            let (first, max) = (Duration::from_millis(first), Duration::from_millis(max));
            let delay = grown_delay(first, max, multiplier, failures);
            prop_assert!(delay <= max && delay >= first.min(max).saturating_sub(Duration::from_nanos(1)));
        }
    }
}
