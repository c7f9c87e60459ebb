//! The retention of snapshots: a pure function that selects those to remove.

use std::time::Duration;

use laredo_core::CommitTime;

use super::SnapshotInfo;

/// Returns the snapshots to remove. `known` must be sorted newest first. The newest is never
/// removed.
pub(super) fn snapshots_beyond(
    known: &[SnapshotInfo],
    keep_count: u32,
    age_max: Option<Duration>,
    now: CommitTime,
) -> Vec<SnapshotInfo> {
    let is_old = |taken_at: CommitTime| {
        let age_us = u128::try_from(now.0.saturating_sub(taken_at.0)).unwrap_or(0);
        age_max.is_some_and(|max| age_us > max.as_micros())
    };
    let goes = |&(place, info): &(usize, &SnapshotInfo)| {
        place > 0 && (place >= usize::try_from(keep_count).unwrap_or(usize::MAX) || is_old(info.taken_at))
    };
    known.iter().enumerate().filter(goes).map(|(_, info)| info.clone()).collect()
}

#[cfg(test)]
mod tests {
    use laredo_core::{Lsn, Sequence};

    use super::*;
    use crate::snapshots::SnapshotFormat;

    #[test]
    fn the_newest_stays_and_others_go_by_count_and_age() {
        let second = 1_000_000;
        let info = |age_s: i64| SnapshotInfo {
            id: age_s.to_string(),
            sequence: Sequence(1),
            position: Lsn(1),
            committed_at: CommitTime(0),
            mark: laredo_core::CommitMark::default(),
            taken_at: CommitTime(-age_s * second),
            rows: 0,
            size_bytes: 0,
            format: SnapshotFormat::Native,
            user_meta: None,
            path: Default::default(),
        };
        let known = [1, 10, 20, 30].map(info);
        let gone = |count, age_s: Option<u64>| -> Vec<String> {
            let beyond = snapshots_beyond(&known, count, age_s.map(Duration::from_secs), CommitTime(0));
            beyond.into_iter().map(|info| info.id).collect()
        };
        assert_eq!(gone(4, None), [""; 0]);
        assert_eq!(gone(3, None), ["30"]);
        assert_eq!(gone(4, Some(20)), ["30"]);
        assert_eq!(gone(2, Some(9)), ["10", "20", "30"]);
        assert_eq!(gone(0, Some(0)), ["10", "20", "30"]);
        // A clock that was set back makes no snapshot old.
        assert!(super::snapshots_beyond(&known, 4, Some(Duration::ZERO), CommitTime(-100 * second)).is_empty());
    }
}
