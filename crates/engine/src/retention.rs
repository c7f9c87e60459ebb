//! The WAL that a database retains for a stream, and the time until it is lost.

use std::collections::VecDeque;
use std::time::Duration;

use laredo_core::Lsn;
use tokio::time::Instant;

/// The WAL that a database retains for a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalRetention {
    /// The name of the slot; empty before there is one.
    pub slot: String,
    /// The state of the slot; `None` while the database cannot be queried, or has no such slot.
    pub standing: Option<ReplicationSlotState>,
    /// The number of times since the start that the stream could not resume from its slot, so that
    /// every table was copied again.
    pub losses: u64,
    /// The reason for the last loss.
    pub last_loss: Option<String>,
    /// The number of times since the start that the database turned out to have another history, so
    /// that every table was copied again.
    pub forks: u64,
    /// The reason for the last fork.
    pub last_fork: Option<String>,
}

/// The state of a replication slot, as the database reports it. The numbers are some seconds old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicationSlotState {
    /// The state of the WAL that the slot needs.
    pub wal_status: WalStatus,
    /// The number of bytes of WAL between the acknowledged position and the end.
    pub lag_bytes: u64,
    /// The number of bytes of WAL that are kept for the slot on the database's disk.
    pub retained_bytes: u64,
    /// The number of bytes of WAL that may be written before the slot is lost; `None` if there is
    /// no limit (`max_slot_wal_keep_size = -1`).
    pub safe_bytes: Option<u64>,
    /// An estimate of the time until the slot is lost, if nothing more is acknowledged:
    /// [`time_left`].
    pub left: Option<Duration>,
}

/// The state of the WAL that a slot needs: `wal_status` of `pg_replication_slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalStatus {
    /// The WAL is within `max_wal_size`.
    Reserved,
    /// The WAL is beyond `max_wal_size`, and kept for the slot.
    Extended,
    /// The WAL is beyond `max_slot_wal_keep_size`, and removed at the next checkpoint.
    Unreserved,
    /// Some of the WAL was removed, so the slot is unusable.
    Lost,
}

impl WalStatus {
    /// All states, from the best to the worst.
    pub const ALL: [WalStatus; 4] = [WalStatus::Reserved, WalStatus::Extended, WalStatus::Unreserved, WalStatus::Lost];

    /// Returns PostgreSQL's name for the state.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            WalStatus::Reserved => "reserved",
            WalStatus::Extended => "extended",
            WalStatus::Unreserved => "unreserved",
            WalStatus::Lost => "lost",
        }
    }
}

/// The speed at which a database writes WAL, from observations of its end during the last minute.
#[derive(Clone, Debug, Default)]
pub struct WalRate {
    seen: VecDeque<(Instant, Lsn)>,
}

/// The time that the observations cover.
const WINDOW: Duration = Duration::from_secs(60);
/// The shortest time between two observations. Closer ones say nothing about a speed.
const APART_MIN: Duration = Duration::from_secs(1);

impl WalRate {
    /// Notes the present end of the WAL. Observations that follow each other too soon count once.
    pub fn note(&mut self, now: Instant, end: Lsn) {
        // The end has moved back, so the history is another one. Earlier observations do not apply
        // to it.
        if self.seen.back().is_some_and(|(_, last)| end < *last) {
            self.seen.clear();
        }
        if self.seen.back().is_none_or(|(at, _)| now.duration_since(*at) >= APART_MIN) {
            self.seen.push_back((now, end));
        }
        while self.seen.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.seen.pop_front();
        }
    }

    /// Returns the number of bytes written recently, and the time that this took; `None` before
    /// there are two observations.
    #[must_use]
    pub fn recent(&self) -> Option<(u64, Duration)> {
        let ((first_at, first), (last_at, last)) = (self.seen.front()?, self.seen.back()?);
        let over = last_at.duration_since(*first_at);
        (!over.is_zero()).then(|| (last.0.saturating_sub(first.0), over))
    }
}

/// Estimates the time until `safe_bytes` more are written, if `written.0` bytes were written in the
/// time `written.1`. Returns `None` if nothing was written, because the time is then unlimited.
#[must_use]
pub fn time_left(safe_bytes: u64, written: (u64, Duration)) -> Option<Duration> {
    let (bytes, over) = written;
    let seconds = safe_bytes as f64 * over.as_secs_f64() / bytes as f64;
    // Zero divided by zero is not a number, and some estimates are too large for a `Duration`.
    Duration::try_from_secs_f64(seconds).ok().filter(|_| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_what_is_safe_at_the_recent_pace() {
        let second = Duration::from_secs(1);
        for (safe, written, left) in [
            (1000, (100, second), Some(10.0)),
            (1000, (100, 10 * second), Some(100.0)),
            (0, (100, second), Some(0.0)),
            (1000, (0, second), None),
            (0, (0, second), None),
            (u64::MAX, (1, Duration::from_secs(u64::MAX)), None),
        ] {
            assert_eq!(time_left(safe, written).map(|left| left.as_secs_f64()), left, "{safe} {written:?}");
        }
    }

    #[test]
    fn the_pace_is_that_of_the_last_minute_and_of_one_history() {
        let began = Instant::now();
        let at = |seconds: f64| began + Duration::from_secs_f64(seconds);
        let mut rate = WalRate::default();
        rate.note(at(0.0), Lsn(100));
        assert_eq!(rate.recent(), None);
        rate.note(at(0.5), Lsn(150));
        assert_eq!(rate.recent(), None, "too soon");
        rate.note(at(2.0), Lsn(300));
        assert_eq!(rate.recent(), Some((200, Duration::from_secs(2))));
        rate.note(at(61.0), Lsn(1000));
        assert_eq!(rate.recent(), Some((700, Duration::from_secs(59))), "the first look is too old");
        rate.note(at(70.0), Lsn(50));
        assert_eq!(rate.recent(), None, "the WAL went back");
    }
}
