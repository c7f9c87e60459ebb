//! The delay before the next attempt to connect.

use std::time::Duration;

use laredo_core::grown_delay;
use rand::Rng;

/// The options for making a lost connection again.
#[derive(Clone, Debug, PartialEq)]
pub struct ReconnectOptions {
    /// The maximum number of consecutive failures. `None` is no limit.
    pub attempts_max: Option<u32>,
    /// The longest wait after the first failure.
    pub backoff_initial: Duration,
    /// The upper bound of every wait.
    pub backoff_max: Duration,
    /// The factor between one wait and the next.
    pub multiplier: f64,
}

impl Default for ReconnectOptions {
    fn default() -> ReconnectOptions {
        ReconnectOptions {
            attempts_max: None,
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            multiplier: 2.0,
        }
    }
}

impl ReconnectOptions {
    /// Returns the wait after `failed` consecutive failures. It is random, from half of the
    /// computed wait to all of it, so that clients do not all reconnect at once. `None` if no
    /// attempt is left.
    pub fn delay(&self, failed: u32, rng: &mut impl Rng) -> Option<Duration> {
        if self.attempts_max.is_some_and(|max| failed >= max) {
            return None;
        }
        let delay = grown_delay(self.backoff_initial, self.backoff_max, self.multiplier, failed);
        Some(delay.mul_f64(rng.random_range(0.5..=1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn waits_grow_to_their_bound_and_differ() {
        let mut rng = StdRng::seed_from_u64(1);
        let options = ReconnectOptions {
            attempts_max: Some(100),
            backoff_initial: Duration::from_millis(100),
            backoff_max: Duration::from_secs(1),
            multiplier: 2.0,
        };
        for (failed, full) in [(0, 100), (1, 200), (3, 800), (4, 1000), (99, 1000)] {
            let delays: Vec<_> = (0..50).map(|_| options.delay(failed, &mut rng).unwrap()).collect();
            let full = Duration::from_millis(full);
            assert!(delays.iter().all(|delay| (full / 2..=full).contains(delay)), "{failed}: {delays:?}");
            assert!(delays.iter().any(|delay| *delay != delays[0]));
        }
        assert_eq!(options.delay(100, &mut rng), None);
        let endless = ReconnectOptions { attempts_max: None, ..options };
        assert!(endless.delay(u32::MAX, &mut rng).is_some());
    }
}
