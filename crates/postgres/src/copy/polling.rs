use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The interval between explanations of a long wait.
const EXPLAIN: Duration = Duration::from_secs(10);

/// A wait for a condition that can only be polled, with pauses that grow.
#[derive(Debug)]
pub(super) struct PollingWait {
    pause: Duration,
    since_explained: Duration,
}

impl PollingWait {
    pub(super) fn new() -> PollingWait {
        PollingWait { pause: PAUSE_MIN, since_explained: Duration::ZERO }
    }

    /// Waits before the next poll. Returns true if the wait has become so long that it has to be
    /// explained, which recurs.
    pub(super) async fn pause(&mut self) -> bool {
        let (pause, is_due) = self.next();
        tokio::time::sleep(pause).await;
        is_due
    }

    fn next(&mut self) -> (Duration, bool) {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        self.since_explained += pause;
        let is_due = self.since_explained >= EXPLAIN;
        if is_due {
            self.since_explained = Duration::ZERO;
        }
        (pause, is_due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_waits_ask_rarely_and_are_explained_every_ten_seconds() {
        let (mut wait, mut waited, mut asked, mut explained) = (PollingWait::new(), Duration::ZERO, 0, Vec::new());
        while waited < Duration::from_secs(35) {
            let (pause, is_due) = wait.next();
            waited += pause;
            asked += 1;
            if is_due {
                explained.push(waited.as_secs());
            }
        }
        assert!(asked < 50, "{asked} times in 35 s");
        assert_eq!(explained, [10, 20, 30]);
    }
}
