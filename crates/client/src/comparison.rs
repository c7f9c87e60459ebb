//! Decides when a checksum that differs from the server's causes another load.

use std::time::{Duration, Instant};

/// The time in which rows that differ again are not loaded again. It doubles with each load, up to
/// `PAUSE_LAST`.
const PAUSE_FIRST: Duration = Duration::from_secs(60);
const PAUSE_LAST: Duration = Duration::from_secs(3600);

/// The consequence of comparing a checksum with the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChecksumVerdict {
    /// The rows equal the server's.
    Same,
    /// The rows differ, and all of them must be loaded again.
    LoadAgain,
    /// The rows differ although they were loaded recently. They are served, and may be loaded again
    /// after this time.
    Tolerated(Duration),
    /// The rows still differ, which was logged before.
    Known,
}

/// The history of comparisons. It limits how often a server whose rows and checksums never agree is
/// asked for a snapshot.
#[derive(Debug, Default)]
pub(crate) struct ChecksumComparison {
    /// The number of consecutive loads that did not help.
    loads: u32,
    /// The time before which no load is requested.
    pause_ends: Option<Instant>,
    is_said: bool,
}

impl ChecksumComparison {
    pub(crate) fn judge(&mut self, is_same: bool, now: Instant) -> ChecksumVerdict {
        let left = self.pause_ends.map(|ends| ends.saturating_duration_since(now)).filter(|left| !left.is_zero());
        match (is_same, left) {
            (true, left) => {
                if left.is_none() {
                    self.loads = 0;
                }
                ChecksumVerdict::Same
            }
            (false, None) => {
                let pause = PAUSE_LAST.min(PAUSE_FIRST.saturating_mul(1 << self.loads.min(10)));
                self.loads = self.loads.saturating_add(1);
                (self.pause_ends, self.is_said) = (now.checked_add(pause), false);
                ChecksumVerdict::LoadAgain
            }
            (false, Some(_)) if std::mem::replace(&mut self.is_said, true) => ChecksumVerdict::Known,
            (false, Some(left)) => ChecksumVerdict::Tolerated(left),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_always_differs_is_loaded_less_and_less_often() {
        let (mut comparison, start) = (ChecksumComparison::default(), Instant::now());
        let mut at = |second: u64, is_same| comparison.judge(is_same, start + Duration::from_secs(second));
        let tolerated = |seconds| ChecksumVerdict::Tolerated(Duration::from_secs(seconds));
        assert_eq!(at(0, true), ChecksumVerdict::Same);
        assert_eq!(at(10, false), ChecksumVerdict::LoadAgain);
        assert_eq!(at(11, false), tolerated(59));
        assert_eq!(at(12, false), ChecksumVerdict::Known);
        assert_eq!(at(70, false), ChecksumVerdict::LoadAgain);
        assert_eq!(at(71, false), tolerated(119));
        assert_eq!(at(189, false), ChecksumVerdict::Known);
        assert_eq!(at(190, false), ChecksumVerdict::LoadAgain);
        // A load counts as successful only if the rows still agree after the pause.
        assert_eq!(at(200, true), ChecksumVerdict::Same);
        assert_eq!(at(210, false), tolerated(220));
        assert_eq!(at(430, true), ChecksumVerdict::Same);
        assert_eq!(at(431, false), ChecksumVerdict::LoadAgain);
        assert_eq!(at(432, false), tolerated(59));
        let hours = (0..40).map(|hour| at(10_000 + 3600 * hour, false));
        assert!(hours.skip(8).all(|verdict| verdict == ChecksumVerdict::LoadAgain), "no less than once an hour");
    }
}
