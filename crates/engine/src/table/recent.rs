//! Which transactions a copy's snapshot has to see.

use std::collections::VecDeque;

use laredo_core::Xid;

use crate::source::Snapshot;

/// How many ids are remembered one by one: 2 MiB. A commit is not visible yet for a moment after it is logged, longer only while it
/// waits for a synchronous standby.
const RECENT_MAX: usize = 1 << 18;

/// The newest transactions that were applied, or let go because a copy showed them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent {
    xids: VecDeque<Xid>,
    /// The least and the greatest of those that are remembered no more.
    forgotten: Option<(Xid, Xid)>,
}

impl Recent {
    pub(crate) fn remember(&mut self, xid: Xid) {
        self.xids.push_back(xid);
        if self.xids.len() > RECENT_MAX
            && let Some(xid) = self.xids.pop_front()
        {
            let (least, greatest) = self.forgotten.unwrap_or((xid, xid));
            self.forgotten = Some((least.min(xid), greatest.max(xid)));
        }
    }

    /// Every later snapshot sees what lies below the `xmin` of this one.
    pub(crate) fn forget_below(&mut self, xmin: Xid) {
        self.xids.retain(|xid| *xid >= xmin);
        self.forgotten = self.forgotten.filter(|(_, greatest)| *greatest >= xmin);
    }

    /// Whether this snapshot is known to see all of them. Any transaction that runs, and is as old as those that are forgotten, may be one
    /// of them that nobody sees yet.
    pub(crate) fn admits(&self, snapshot: &Snapshot) -> bool {
        let runs_since = |(least, greatest): (Xid, Xid)| {
            greatest >= snapshot.xmax || snapshot.in_progress.iter().any(|xid| (least..=greatest).contains(xid))
        };
        self.xids.iter().all(|xid| snapshot.sees(*xid)) && !self.forgotten.is_some_and(runs_since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(xmin: u64, xmax: u64, in_progress: &[u64]) -> Snapshot {
        Snapshot { xmin: Xid(xmin), xmax: Xid(xmax), in_progress: in_progress.iter().copied().map(Xid).collect() }
    }

    #[test]
    fn a_commit_that_waits_for_a_standby_is_not_forgotten_however_many_others_commit_meanwhile() {
        let (mut recent, newest) = (Recent::default(), 10 + RECENT_MAX as u64 * 2);
        (10..=newest).for_each(|xid| recent.remember(Xid(xid)));
        assert!(recent.admits(&snapshot(newest + 1, newest + 1, &[])));
        assert!(!recent.admits(&snapshot(10, newest + 1, &[10])));
        assert!(!recent.admits(&snapshot(12, newest + 1, &[12])));
        assert!(!recent.admits(&snapshot(9, 11, &[])));
        // Neither older nor newer ones were any of them.
        assert!(recent.admits(&snapshot(9, newest + 9, &[9, newest + 1])));
        recent.forget_below(Xid(newest + 1));
        assert!(recent.admits(&snapshot(12, newest + 1, &[12])));
    }
}
