//! Positions in the WAL and sequences in a journal.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

/// A WAL position in bytes, written `X/X` in hexadecimal as in PostgreSQL.
///
/// The positions that laredo reports are always the *ends* of commits. They are the same on every
/// slot of a database, and a stream that continues from there does not repeat the transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The position `0/0`, which PostgreSQL uses for "invalid" and laredo for "nothing yet".
    pub const ZERO: Lsn = Lsn(0);

    /// Returns the bytes of WAL since `earlier`, or zero if `earlier` is not earlier.
    #[must_use]
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// An error for a text that is not a WAL position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a WAL position; one looks like 16/B374D848")]
pub struct LsnError(String);

impl FromStr for Lsn {
    type Err = LsnError;

    fn from_str(text: &str) -> Result<Self, LsnError> {
        let half = |part: &str| {
            let plain = (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| LsnError(text.to_owned()))
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Lsn, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The number of an entry in one journal. Sequences strictly increase, and mean nothing in any
/// other journal.
///
/// A sequence is a signed 64-bit number on the wire, so it never exceeds `i64::MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Returns the sequence `count` entries later.
    #[must_use]
    pub fn plus(self, count: u64) -> Sequence {
        Sequence(self.0.saturating_add(count))
    }

    /// Returns the number of entries since `earlier`, or zero if `earlier` is not earlier.
    #[must_use]
    pub fn entries_since(self, earlier: Sequence) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the sequence in the form of the wire.
    #[must_use]
    pub fn to_wire(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// Reads a sequence in the form of the wire. Negative numbers become zero, which no journal
    /// issues.
    #[must_use]
    pub fn from_wire(value: i64) -> Sequence {
        Sequence(u64::try_from(value).unwrap_or(0))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A PostgreSQL transaction ID, widened to 64 bits with the epoch in the high half, so that it
/// never wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xid(pub u64);

impl Xid {
    /// Widens a message's 32-bit ID to the nearest 64-bit ID to `near`, a recent ID.
    ///
    /// The IDs in use at one time span less than 2^31, so the nearest one is correct.
    #[must_use]
    pub fn widen(narrow: u32, near: Xid) -> Xid {
        let near_low = (near.0 & 0xffff_ffff) as u32;
        let delta = i64::from(narrow.wrapping_sub(near_low).cast_signed());
        Xid(near.0.saturating_add_signed(delta))
    }
}

/// The time of a commit in microseconds since 2000-01-01 00:00 UTC, as PostgreSQL counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitTime(pub i64);

impl CommitTime {
    /// The microseconds from the Unix epoch to PostgreSQL's epoch (2000-01-01).
    pub const UNIX_OFFSET_US: i64 = 946_684_800_000_000;

    /// Returns the microseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn unix_us(self) -> i64 {
        self.0.saturating_add(Self::UNIX_OFFSET_US)
    }

    /// Converts microseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn from_unix_us(unix_us: i64) -> CommitTime {
        CommitTime(unix_us.saturating_sub(Self::UNIX_OFFSET_US))
    }
}

impl From<SystemTime> for CommitTime {
    /// Converts the time of a clock. A time before 1970 counts as 1970.
    fn from(time: SystemTime) -> CommitTime {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        CommitTime::from_unix_us(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

/// The identity of a commit. It is the same on every server that follows the database, and differs
/// in another history of that database. All fields are zero if no commit is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CommitMark {
    /// The end of the commit record.
    pub end: Lsn,
    /// The transaction's 64-bit ID; zero if it is unknown.
    pub xid: Xid,
    /// The time of the commit.
    pub committed_at: CommitTime,
}

impl CommitMark {
    /// Returns the mark if it names a commit.
    #[must_use]
    pub fn known(self) -> Option<CommitMark> {
        (self.end > Lsn::ZERO && self.xid > Xid(0)).then_some(self)
    }
}

/// The newest commit at or before a position, as a server names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScopedMark {
    /// The commit.
    pub commit: CommitMark,
    /// The set of tables whose newest commit this is: the server's hash of the names of all tables
    /// that it follows. Zero for a commit of the position's own table, which every server knows.
    pub scope: u64,
}

impl ScopedMark {
    /// Returns the mark if it names a commit at or before a position.
    #[must_use]
    pub fn known_at(self, position: Lsn) -> Option<ScopedMark> {
        self.commit.known().filter(|commit| commit.end <= position).map(|_| self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn a_clock_s_time_becomes_microseconds_and_never_fails() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001);
        assert_eq!(CommitTime::from(at).unix_us(), 1_700_000_000_000_001);
        let early = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(CommitTime::from(early).unix_us(), 0);
    }

    proptest! {
        #[test]
        fn lsn_text_is_reversible(raw: u64) {
            prop_assert_eq!(Lsn(raw).to_string().parse::<Lsn>().unwrap(), Lsn(raw));
        }

        #[test]
        fn any_text_parses_or_is_refused(text: String) {
            let _ = text.parse::<Lsn>();
        }

        #[test]
        fn xids_widen_to_the_nearest(near in 0x1_0000_0000_u64..1 << 60, delta in -0x7fff_ffff_i64..0x7fff_ffff) {
            let id = near.saturating_add_signed(delta);
            prop_assert_eq!(Xid::widen((id & 0xffff_ffff) as u32, Xid(near)), Xid(id));
        }
    }

    #[test]
    fn refuses_what_postgres_refuses() {
        for text in ["", "/", "1", "1/", "/1", "+1/2", "123456789/0", "g/1", "1/2/3", " 1/2"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }
}
