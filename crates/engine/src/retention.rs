//! What a database keeps for a stream, and how long it still will.

use std::collections::VecDeque;
use std::time::Duration;

use laredo_core::Lsn;
use tokio::time::Instant;

/// What a database keeps for a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The slot's name; empty before there is one.
    pub slot: String,
    /// How the slot stands; `None` while the database cannot be asked, or has no such slot.
    pub standing: Option<SlotStanding>,
    /// How often since the start a slot could not be gone on with, so that every table was copied anew.
    pub losses: u64,
    /// What happened the last time.
    pub last_loss: Option<String>,
    /// The number of times since the start that the database turned out to have another history, so that every table was copied again.
    pub forks: u64,
    /// What happened the last time.
    pub last_fork: Option<String>,
}

/// How a replication slot stands, as the database says. The numbers are of a moment, and some seconds old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotStanding {
    /// What becomes of the WAL that it needs.
    pub wal_status: WalStatus,
    /// Bytes of WAL between what we have acknowledged and the end.
    pub lag_bytes: u64,
    /// Bytes of WAL on the database's disk that are kept for it.
    pub retained_bytes: u64,
    /// Bytes of WAL that may be written before it is lost; `None` where there is no limit (`max_slot_wal_keep_size = -1`).
    pub safe_bytes: Option<u64>,
    /// An estimate of the time until it is lost, if we acknowledged nothing more: [`time_left`].
    pub left: Option<Duration>,
}

/// What becomes of the WAL that a slot needs: `wal_status` of `pg_replication_slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalStatus {
    /// It is within `max_wal_size`.
    Reserved,
    /// It is beyond `max_wal_size`, and kept for the slot.
    Extended,
    /// It is beyond `max_slot_wal_keep_size`, and removed at the next checkpoint.
    Unreserved,
    /// Some of it was removed: the slot is of no use any more.
    Lost,
}

impl WalStatus {
    /// All of them, from the best to the worst.
    pub const ALL: [WalStatus; 4] = [WalStatus::Reserved, WalStatus::Extended, WalStatus::Unreserved, WalStatus::Lost];

    /// PostgreSQL's word for it.
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

/// How fast a database writes WAL, from where its end was seen during the last minute.
#[derive(Clone, Debug, Default)]
pub struct WalRate {
    seen: VecDeque<(Instant, Lsn)>,
}

/// What "recent" means.
const WINDOW: Duration = Duration::from_secs(60);
/// Two looks that are closer together say nothing about a rate.
const APART_MIN: Duration = Duration::from_secs(1);

impl WalRate {
    /// Notes where the end of the WAL is. Looks that follow each other too soon count once.
    pub fn note(&mut self, now: Instant, end: Lsn) {
        // Another history: what was seen before says nothing about this one.
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

    /// Bytes written in a time; `None` before there are two looks.
    #[must_use]
    pub fn recent(&self) -> Option<(u64, Duration)> {
        let ((first_at, first), (last_at, last)) = (self.seen.front()?, self.seen.back()?);
        let over = last_at.duration_since(*first_at);
        (!over.is_zero()).then(|| (last.0.saturating_sub(first.0), over))
    }
}

/// How long it takes until `safe_bytes` more are written, where `written.0` bytes were in the time `written.1`. `None` where nothing is
/// written: then it takes for ever.
#[must_use]
pub fn time_left(safe_bytes: u64, written: (u64, Duration)) -> Option<Duration> {
    let (bytes, over) = written;
    let seconds = safe_bytes as f64 * over.as_secs_f64() / bytes as f64;
    // Zero over zero is no number, and some estimates are no time that a clock can tell.
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
