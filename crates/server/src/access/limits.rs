//! The limits of each identity: its streams, its new streams a second, and the bytes of snapshots
//! that it is sent a second.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

/// The limits of one identity. All its callers share them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentityLimits {
    /// The maximum number of concurrent streams; `None` for no limit.
    pub streams_max: Option<u32>,
    /// The maximum number of streams that begin in one second; `None` for no limit.
    pub new_streams_per_second: Option<u32>,
    /// The maximum number of bytes of snapshots in one second; `None` for no limit.
    pub snapshot_bytes_per_second: Option<u64>,
}

/// The usage of all identities that have limits, by name.
#[derive(Debug, Default)]
pub(super) struct IdentityUsages(Mutex<HashMap<String, Arc<IdentityUsage>>>);

/// The usage of one identity. Its limits may change, so each count is given the present ones.
#[derive(Debug, Default)]
pub(crate) struct IdentityUsage {
    state: Mutex<UsageState>,
}

#[derive(Clone, Copy, Debug, Default)]
struct UsageState {
    streams: u32,
    /// The time at which as many streams would have begun at an even pace.
    streams_due: Option<Instant>,
    /// The time at which as many bytes as were counted will have been sent at an even pace.
    bytes_due: Option<Instant>,
}

/// A stream of an identity, which is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct StreamPermit(Arc<IdentityUsage>);

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.0.state.lock().streams -= 1;
    }
}

/// The number of identities from which on those without streams are forgotten. A token service can
/// issue any number of names.
const REMEMBERED_MIN: usize = 1024;
/// The time within which a number of streams a second may begin at once.
const BURST: Duration = Duration::from_secs(1);

impl IdentityUsages {
    /// Returns the usage of an identity.
    pub(super) fn of(&self, name: &str, now: Instant) -> Arc<IdentityUsage> {
        let mut usages = self.0.lock();
        if let Some(usage) = usages.get(name) {
            return usage.clone();
        }
        if usages.len() >= REMEMBERED_MIN {
            usages.retain(|_, usage| Arc::strong_count(usage) > 1 || !usage.is_idle(now));
        }
        let usage = Arc::<IdentityUsage>::default();
        usages.insert(name.to_owned(), usage.clone());
        usage
    }
}

impl IdentityUsage {
    /// Counts a stream that begins.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if the identity has too many streams, or began too many in a second.
    pub(super) fn begin_stream(
        self: &Arc<Self>,
        limits: IdentityLimits,
        name: &str,
        now: Instant,
    ) -> Result<StreamPermit, Status> {
        let mut state = self.state.lock();
        if let Some(max) = limits.streams_max
            && state.streams >= max
        {
            return Err(Status::resource_exhausted(format!(
                "{name} has the maximum of {max} streams (`limits.streams` of the identity); end one, or reconnect later"
            )));
        }
        if let Some(rate) = limits.new_streams_per_second {
            let due = state.streams_due.unwrap_or(now).max(now) + BURST / rate.max(1);
            if due > now + BURST {
                return Err(Status::resource_exhausted(format!(
                    "{name} has begun the maximum of {rate} streams in a second (`limits.new_streams` of the identity); \
                     reconnect in a second"
                )));
            }
            state.streams_due = Some(due);
        }
        state.streams += 1;
        drop(state);
        Ok(StreamPermit(self.clone()))
    }

    /// Counts bytes of a snapshot that is about to be sent. Returns the time before which they must
    /// not be sent, because of the bytes counted earlier.
    pub(super) fn count_snapshot_bytes(&self, limits: IdentityLimits, bytes: usize, now: Instant) -> Option<Instant> {
        let rate = limits.snapshot_bytes_per_second?;
        let time = Duration::from_nanos(u64::try_from(bytes as u128 * 1_000_000_000 / u128::from(rate.max(1))).ok()?);
        let mut state = self.state.lock();
        let begin = state.bytes_due.unwrap_or(now).max(now);
        state.bytes_due = Some(begin.checked_add(time)?);
        Some(begin)
    }

    /// Returns true if nothing would be different for a new usage.
    fn is_idle(&self, now: Instant) -> bool {
        let UsageState { streams, streams_due, bytes_due } = *self.state.lock();
        streams == 0 && [streams_due, bytes_due].into_iter().flatten().all(|due| due <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage() -> Arc<IdentityUsage> {
        IdentityUsages::default().of("a", Instant::now())
    }

    #[test]
    fn streams_are_counted_until_they_end() {
        let limits = IdentityLimits { streams_max: Some(2), ..IdentityLimits::default() };
        let (usage, now) = (usage(), Instant::now());
        let one = usage.begin_stream(limits, "a", now).unwrap();
        let _two = usage.begin_stream(limits, "a", now).unwrap();
        let refused = usage.begin_stream(limits, "a", now).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
        let higher = IdentityLimits { streams_max: Some(3), ..limits };
        let _three = usage.begin_stream(higher, "a", now).expect("the limit was raised");
        drop(one);
        assert!(usage.begin_stream(limits, "a", now).is_err(), "two streams are left");
        usage.begin_stream(higher, "a", now).unwrap();
    }

    #[test]
    fn streams_begin_at_a_limited_rate() {
        let limits = IdentityLimits { new_streams_per_second: Some(4), ..IdentityLimits::default() };
        let (usage, begun) = (usage(), Instant::now());
        let at = |ms: u64| {
            let stream = usage.begin_stream(limits, "a", begun + Duration::from_millis(ms));
            stream.map(drop).map_err(|s| s.code())
        };
        for _ in 0..4 {
            assert_eq!(at(0), Ok(()), "a second's number may begin at once");
        }
        assert!(at(0).is_err() && at(249).is_err());
        assert_eq!(at(250), Ok(()));
        assert!(at(250).is_err());
        for _ in 0..4 {
            assert_eq!(at(5000), Ok(()), "unused time does not add up");
        }
        assert!(at(5000).is_err());
    }

    #[test]
    fn bytes_are_due_at_an_even_pace() {
        let limits = IdentityLimits { snapshot_bytes_per_second: Some(1000), ..IdentityLimits::default() };
        let (usage, begun) = (usage(), Instant::now());
        let due =
            |bytes, ms| usage.count_snapshot_bytes(limits, bytes, begun + Duration::from_millis(ms)).unwrap() - begun;
        assert_eq!(due(500, 0), Duration::ZERO);
        assert_eq!(due(500, 0), Duration::from_millis(500), "streams of one identity share the rate");
        assert_eq!(due(0, 100), Duration::from_secs(1), "another stream waits for them");
        assert_eq!(due(100, 5000), Duration::from_secs(5));
        assert_eq!(due(0, 5000), Duration::from_millis(5100));
        let unlimited = IdentityLimits { streams_max: Some(1), ..IdentityLimits::default() };
        assert_eq!(usage.count_snapshot_bytes(unlimited, 500, begun), None);
    }

    #[test]
    fn idle_identities_are_forgotten() {
        let (usages, now) = (IdentityUsages::default(), Instant::now());
        let limits = IdentityLimits { streams_max: Some(1), ..IdentityLimits::default() };
        let busy = usages.of("busy", now).begin_stream(limits, "busy", now).unwrap();
        for number in 0..2 * REMEMBERED_MIN {
            usages.of(&number.to_string(), now);
        }
        assert!(usages.0.lock().len() <= REMEMBERED_MIN);
        assert!(usages.of("busy", now).begin_stream(limits, "busy", now).is_err(), "it still has its stream");
        drop(busy);
    }
}
