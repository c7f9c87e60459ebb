//! The rules for when the next artifact is written, and which kind.

use std::time::Duration;

/// The thresholds at which a snapshot is written instead of a diff. An absent threshold never
/// applies, except that `max_diffs` has a default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RebaseThresholds {
    /// The minimum time between two snapshots.
    pub min_interval: Option<Duration>,
    /// The maximum time between two snapshots.
    pub max_interval: Option<Duration>,
    /// The total size in bytes of the diffs since the snapshot.
    pub max_diff_bytes: Option<u64>,
    /// The total size of the diffs since the snapshot, as a fraction of the snapshot's size.
    pub max_diff_fraction: Option<f64>,
    /// The number of rows that have changed since the snapshot.
    pub max_churn_records: Option<u64>,
    /// The number of changed rows, as a fraction of the snapshot's rows.
    pub max_churn_fraction: Option<f64>,
    /// The maximum number of diffs in a chain. A snapshot replaces the next one. If absent, see
    /// [`RebaseThresholds::diffs_max`].
    pub max_diffs: Option<u64>,
}

/// The smallest and the largest default for the number of diffs in a chain.
const DIFFS_MIN: u64 = 128;
const DIFFS_MAX: u64 = 1000;
/// The approximate size in bytes of one artifact's entry in a manifest.
const ENTRY_BYTES: u64 = 600;
/// The cost of a snapshot's byte, relative to a manifest's byte. A snapshot has to be encoded, and
/// readers read its rows again.
const BASE_FACTOR: u64 = 4;

/// The progress of an archive since its newest snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ChainProgress {
    /// The time since the snapshot was written; `None` if there is none.
    pub since_base: Option<Duration>,
    /// The time since the last artifact was written.
    pub since_artifact: Duration,
    /// The bytes of the diffs since the snapshot, in their largest format. The buffer is not
    /// encoded yet; see [`RebaseThresholds::diff_bytes_left`].
    pub diff_bytes: u64,
    /// The bytes of the snapshot, in its largest format.
    pub base_bytes: u64,
    /// The number of rows that changed since the snapshot, including those in the buffer.
    pub churn_records: u64,
    /// The number of rows of the snapshot.
    pub base_rows: u64,
    /// The number of diffs since the snapshot.
    pub diffs: u64,
    /// True if the buffer has changes.
    pub has_changes: bool,
}

/// The artifact that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebaseDecision {
    /// No artifact is due.
    Nothing,
    /// A diff is due.
    Diff,
    /// A snapshot is due, for this reason.
    Base(RebaseReason),
}

/// The reason for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RebaseReason {
    /// The archive has no snapshot yet.
    First,
    /// `max_interval` has passed.
    MaxInterval,
    /// `max_diff_bytes` is reached.
    DiffBytes,
    /// `max_diff_fraction` is reached.
    DiffFraction,
    /// `max_churn_records` is reached.
    ChurnRecords,
    /// `max_churn_fraction` is reached.
    ChurnFraction,
    /// The chain has [`RebaseThresholds::diffs_max`] diffs.
    Diffs,
    /// A client requested a snapshot.
    Asked,
    /// All rows were received again, or have another schema.
    NewRows,
    /// The configured formats differ from those of the chain.
    Formats,
    /// Other objects have the names of the artifact.
    Occupied,
}

impl RebaseThresholds {
    /// Returns the artifact that is due, with a diff every `diff_interval`.
    #[must_use]
    pub fn due(&self, progress: &ChainProgress, diff_interval: Duration) -> RebaseDecision {
        let Some(since_base) = progress.since_base else { return RebaseDecision::Base(RebaseReason::First) };
        if progress.since_artifact < diff_interval {
            return RebaseDecision::Nothing;
        }
        let is_too_early = self.min_interval.is_some_and(|least| since_base < least);
        match self.reached(progress, since_base).filter(|_| !is_too_early) {
            Some(reason) => RebaseDecision::Base(reason),
            None if progress.has_changes => RebaseDecision::Diff,
            None => RebaseDecision::Nothing,
        }
    }

    /// Returns the size in bytes from which on a snapshot replaces the next diff; `None` if no size
    /// does.
    #[must_use]
    pub fn diff_bytes_left(&self, progress: &ChainProgress) -> Option<u64> {
        let since_base = progress.since_base?;
        if self.min_interval.is_some_and(|least| since_base < least) {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a size in bytes"
        )]
        let fraction = self.max_diff_fraction.map(|limit| (limit * progress.base_bytes as f64).ceil() as u64);
        let limits = self.max_diff_bytes.into_iter().chain(fraction);
        limits.min().map(|limit| limit.saturating_sub(progress.diff_bytes).max(1))
    }

    /// Returns the maximum number of diffs in a chain whose snapshot has `base_bytes` bytes.
    ///
    /// A chain of `n` diffs costs `n * n / 2` entries, because each artifact writes the entries of
    /// its whole chain again. Unless a maximum is set, a chain ends where this reaches the cost of
    /// a snapshot.
    #[must_use]
    pub fn diffs_max(&self, base_bytes: u64) -> u64 {
        let affordable = || (base_bytes / ENTRY_BYTES * (2 * BASE_FACTOR)).isqrt().clamp(DIFFS_MIN, DIFFS_MAX);
        self.max_diffs.unwrap_or_else(affordable)
    }

    fn reached(&self, progress: &ChainProgress, since_base: Duration) -> Option<RebaseReason> {
        let ChainProgress { diff_bytes, base_bytes, churn_records, base_rows, diffs, has_changes, .. } = *progress;
        let at_least = |count: u64, limit: Option<u64>| limit.is_some_and(|limit| count > 0 && count >= limit);
        #[expect(clippy::cast_precision_loss, reason = "a threshold need not be exact beyond 2^53")]
        let fraction = |count: u64, of: u64, limit: Option<f64>| {
            limit.is_some_and(|limit| count > 0 && count as f64 >= limit * of as f64)
        };
        let reasons = [
            (RebaseReason::MaxInterval, self.max_interval.is_some_and(|most| since_base >= most)),
            (RebaseReason::DiffBytes, at_least(diff_bytes, self.max_diff_bytes)),
            (RebaseReason::DiffFraction, fraction(diff_bytes, base_bytes, self.max_diff_fraction)),
            (RebaseReason::ChurnRecords, at_least(churn_records, self.max_churn_records)),
            (RebaseReason::ChurnFraction, fraction(churn_records, base_rows, self.max_churn_fraction)),
            // An idle chain costs nothing more.
            (RebaseReason::Diffs, has_changes && diffs >= self.diffs_max(base_bytes)),
        ];
        reasons.into_iter().find_map(|(reason, is_reached)| is_reached.then_some(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_threshold_is_a_reason_of_its_own() {
        let seconds = Duration::from_secs;
        let far = ChainProgress {
            since_base: Some(seconds(100)),
            since_artifact: seconds(30),
            diff_bytes: 1000,
            base_bytes: 10_000,
            churn_records: 50,
            base_rows: 1000,
            diffs: 7,
            has_changes: true,
        };
        let none = RebaseThresholds::default();
        let cases = [
            (none.clone(), RebaseDecision::Diff),
            (
                RebaseThresholds { max_interval: Some(seconds(100)), ..none.clone() },
                RebaseDecision::Base(RebaseReason::MaxInterval),
            ),
            (RebaseThresholds { max_interval: Some(seconds(101)), ..none.clone() }, RebaseDecision::Diff),
            (
                RebaseThresholds { max_diff_bytes: Some(1000), ..none.clone() },
                RebaseDecision::Base(RebaseReason::DiffBytes),
            ),
            (RebaseThresholds { max_diff_bytes: Some(1001), ..none.clone() }, RebaseDecision::Diff),
            (
                RebaseThresholds { max_diff_fraction: Some(0.1), ..none.clone() },
                RebaseDecision::Base(RebaseReason::DiffFraction),
            ),
            (RebaseThresholds { max_diff_fraction: Some(0.11), ..none.clone() }, RebaseDecision::Diff),
            (
                RebaseThresholds { max_churn_records: Some(50), ..none.clone() },
                RebaseDecision::Base(RebaseReason::ChurnRecords),
            ),
            (
                RebaseThresholds { max_churn_fraction: Some(0.05), ..none.clone() },
                RebaseDecision::Base(RebaseReason::ChurnFraction),
            ),
            (RebaseThresholds { max_diffs: Some(7), ..none.clone() }, RebaseDecision::Base(RebaseReason::Diffs)),
            (RebaseThresholds { max_diffs: Some(8), ..none.clone() }, RebaseDecision::Diff),
            (RebaseThresholds { max_diffs: Some(1000), ..none.clone() }, RebaseDecision::Diff),
            (
                RebaseThresholds { max_diffs: Some(1), min_interval: Some(seconds(101)), ..none.clone() },
                RebaseDecision::Diff,
            ),
            (
                RebaseThresholds { max_churn_records: Some(1), min_interval: Some(seconds(101)), ..none.clone() },
                RebaseDecision::Diff,
            ),
        ];
        for (thresholds, due) in cases {
            assert_eq!(thresholds.due(&far, seconds(30)), due, "{thresholds:?}");
        }
        let both = RebaseThresholds { max_diff_bytes: Some(1500), max_diff_fraction: Some(0.12), ..none.clone() };
        assert_eq!(both.diff_bytes_left(&far), Some(200), "the nearer of both, without what is written already");
        let early = RebaseThresholds { min_interval: Some(seconds(101)), ..both };
        assert_eq!((early.diff_bytes_left(&far), none.diff_bytes_left(&far)), (None, None));
        assert_eq!(none.due(&ChainProgress::default(), seconds(30)), RebaseDecision::Base(RebaseReason::First));
        assert_eq!(none.due(&far, seconds(31)), RebaseDecision::Nothing, "the last artifact is not that old");
        let idle = ChainProgress { has_changes: false, diff_bytes: 0, churn_records: 0, ..far };
        assert_eq!(none.due(&idle, seconds(30)), RebaseDecision::Nothing);
        let bounded = RebaseThresholds { max_diffs: Some(7), ..none.clone() };
        assert_eq!(bounded.due(&idle, seconds(30)), RebaseDecision::Nothing, "an idle chain does not grow");
        let eager = RebaseThresholds { max_interval: Some(seconds(100)), max_churn_records: Some(0), ..none };
        assert_eq!(
            eager.due(&idle, seconds(30)),
            RebaseDecision::Base(RebaseReason::MaxInterval),
            "an idle table is re-based, too"
        );
    }

    #[test]
    fn a_chain_ends_where_a_base_is_cheaper_than_its_names() {
        let none = RebaseThresholds::default();
        for (base_bytes, diffs) in
            [(0, 128), (1 << 20, 128), (10 << 20, 373), (64 << 20, 945), (1 << 30, 1000), (u64::MAX, 1000)]
        {
            assert_eq!(none.diffs_max(base_bytes), diffs, "{base_bytes}");
        }
        let set = RebaseThresholds { max_diffs: Some(5000), ..none.clone() };
        assert_eq!((set.diffs_max(0), set.diffs_max(1 << 40)), (5000, 5000));
        let at = |diffs, base_bytes| ChainProgress {
            since_base: Some(Duration::from_secs(9)),
            since_artifact: Duration::from_secs(9),
            diffs,
            base_bytes,
            has_changes: true,
            ..ChainProgress::default()
        };
        assert_eq!(none.due(&at(127, 1000), Duration::ZERO), RebaseDecision::Diff);
        assert_eq!(none.due(&at(128, 1000), Duration::ZERO), RebaseDecision::Base(RebaseReason::Diffs));
        assert_eq!(none.due(&at(128, 10 << 20), Duration::ZERO), RebaseDecision::Diff);
    }
}
