//! The distribution of the durations of an operation.

use std::time::Duration;

const MS: u64 = 1_000_000;

/// The upper bounds of the buckets, in nanoseconds: from an fsync of a fast disk to the copy of a
/// very large table.
const BOUNDS_NS: [u64; 16] = [
    MS * 3 / 10,
    MS,
    3 * MS,
    10 * MS,
    30 * MS,
    100 * MS,
    300 * MS,
    1_000 * MS,
    3_000 * MS,
    10_000 * MS,
    30_000 * MS,
    100_000 * MS,
    300_000 * MS,
    1_000_000 * MS,
    3_000_000 * MS,
    10_000_000 * MS,
];

/// The number of durations in each of a fixed set of buckets. The owner keeps the histogram under
/// the lock of its status, so an observation costs an addition.
///
/// ```
/// use std::time::Duration;
/// use laredo_core::DurationHistogram;
///
/// let mut syncs = DurationHistogram::default();
/// syncs.observe(Duration::from_micros(800));
/// syncs.observe(Duration::from_millis(2));
/// assert_eq!((syncs.count(), syncs.sum()), (2, Duration::from_micros(2800)));
/// let up_to_1_ms = syncs.buckets().find(|(bound, _)| *bound == Duration::from_millis(1));
/// assert_eq!(up_to_1_ms, Some((Duration::from_millis(1), 1)));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DurationHistogram {
    /// The durations in each bucket, without those in lower ones. The last one has no upper bound.
    counts: [u64; BOUNDS_NS.len() + 1],
    sum: Duration,
}

impl DurationHistogram {
    /// Counts a duration.
    pub fn observe(&mut self, duration: Duration) {
        let bucket = BOUNDS_NS.iter().position(|bound| duration <= Duration::from_nanos(*bound));
        if let Some(count) = self.counts.get_mut(bucket.unwrap_or(BOUNDS_NS.len())) {
            *count += 1;
        }
        self.sum = self.sum.saturating_add(duration);
    }

    /// Returns the number of durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the sum of the durations.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Returns each upper bound with the number of durations up to it, in ascending order. A
    /// duration above the last bound counts in [`DurationHistogram::count`] alone.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        BOUNDS_NS.iter().zip(&self.counts).scan(0, |total, (bound, count)| {
            *total += count;
            Some((Duration::from_nanos(*bound), *total))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_its_upper_bound_and_all_lower_ones() {
        let mut histogram = DurationHistogram::default();
        let observed = [0, 300, 301, 1_000_000, 1_000_001, 10_000_000_000, 10_000_000_001];
        observed.into_iter().for_each(|us| histogram.observe(Duration::from_micros(us)));
        let counts: Vec<u64> = histogram.buckets().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 3, 3, 3, 3, 3, 3, 4, 5, 5, 5, 5, 5, 5, 5, 6]);
        assert_eq!(histogram.count(), 7, "the longest one has no bucket with a bound");
        assert_eq!(histogram.sum(), Duration::from_micros(observed.into_iter().sum()));
        assert!(BOUNDS_NS.is_sorted());
    }
}
