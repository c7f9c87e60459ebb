//! The delay of a stream's messages. A client cannot trust that its clock agrees with the server's.
//! It can only see that a message took longer than the fastest message of the same stream, which is
//! assumed to take no time.

use std::time::Duration;

use prost_types::Timestamp;

/// The share of the passed time by which two clocks may drift apart without a message counting as
/// late: one part in this many.
const DRIFT_PER: i128 = 10_000;

/// The fastest message of one stream.
#[derive(Debug, Default)]
pub(crate) struct MessageDelayMeter {
    least: Option<FastestMessage>,
}

#[derive(Clone, Copy, Debug)]
struct FastestMessage {
    /// The client's time of receipt minus the server's time of sending, in nanoseconds. Both clocks
    /// may count from any moment.
    difference: i128,
    /// The time of receipt by the client's clock, in nanoseconds.
    received: i128,
}

impl MessageDelayMeter {
    /// Returns how much longer a message took than the fastest one. `received` counts from any
    /// fixed moment.
    pub(crate) fn excess(&mut self, received: Duration, sent: &Timestamp) -> Duration {
        let received = i128::try_from(received.as_nanos()).unwrap_or(i128::MAX / 2);
        let difference = received - (i128::from(sent.seconds) * 1_000_000_000 + i128::from(sent.nanos));
        let drifted = self.least.map(|least| least.difference + (received - least.received).max(0) / DRIFT_PER);
        let excess = drifted.map_or(0, |drifted| difference - drifted);
        if drifted.is_none() || excess <= 0 {
            self.least = Some(FastestMessage { difference, received });
            return Duration::ZERO;
        }
        Duration::from_nanos(u64::try_from(excess).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    #[test]
    fn only_what_takes_longer_than_the_fastest_counts() {
        let mut delays = MessageDelayMeter::default();
        let mut excess = |received, sent| delays.excess(Duration::from_secs(received), &at(sent)).as_secs_f64().round();
        assert_eq!(excess(10, 1_000_000), 0.0);
        assert_eq!(excess(15, 1_000_002), 3.0);
        assert_eq!(excess(16, 1_000_008), 0.0);
        assert_eq!(excess(18, 1_000_009), 1.0);
    }

    #[test]
    fn clocks_that_go_apart_are_not_taken_for_delay_for_ever() {
        let mut delays = MessageDelayMeter::default();
        delays.excess(Duration::ZERO, &at(0));
        // One second in 100,000 is the drift of a poor clock, and a minute is not.
        assert_eq!(delays.excess(Duration::from_secs(100_000), &at(99_999)), Duration::ZERO);
        assert!(delays.excess(Duration::from_secs(200_000), &at(199_930)) > Duration::from_secs(50));
    }

    #[test]
    fn no_time_is_too_far_away() {
        let mut delays = MessageDelayMeter::default();
        let far = |seconds| Timestamp { seconds, nanos: i32::MIN };
        assert_eq!(delays.excess(Duration::MAX, &far(i64::MAX)), Duration::ZERO);
        assert_eq!(delays.excess(Duration::MAX, &far(i64::MIN)).as_nanos(), u128::from(u64::MAX));
    }
}
