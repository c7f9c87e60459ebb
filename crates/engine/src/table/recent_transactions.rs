//! The transactions that a copy's snapshot has to see.

use std::collections::VecDeque;

use laredo_core::Xid;

use crate::source::TransactionSnapshot;

/// The number of transaction IDs that are remembered one by one: 2 MiB. A commit becomes visible a
/// moment after it is logged. It takes longer only if the commit waits for a synchronous standby.
const RECENT_MAX: usize = 1 << 18;

/// The newest transactions that were applied, or released because a copy showed them.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecentTransactions {
    xids: VecDeque<Xid>,
    /// The lowest and the highest transaction ID that are no longer remembered.
    forgotten: Option<(Xid, Xid)>,
}

impl RecentTransactions {
    pub(crate) fn remember(&mut self, xid: Xid) {
        self.xids.push_back(xid);
        if self.xids.len() > RECENT_MAX
            && let Some(xid) = self.xids.pop_front()
        {
            let (least, greatest) = self.forgotten.unwrap_or((xid, xid));
            self.forgotten = Some((least.min(xid), greatest.max(xid)));
        }
    }

    /// Forgets the transactions below the `xmin` of a snapshot, because every later snapshot sees
    /// them.
    pub(crate) fn forget_below(&mut self, xmin: Xid) {
        self.xids.retain(|xid| *xid >= xmin);
        self.forgotten = self.forgotten.filter(|(_, greatest)| *greatest >= xmin);
    }

    /// Returns true if this snapshot is known to see all of the transactions. A running transaction
    /// whose ID is in the range of the forgotten ones may be one of them that is not visible yet.
    pub(crate) fn admits(&self, snapshot: &TransactionSnapshot) -> bool {
        let runs_since = |(least, greatest): (Xid, Xid)| {
            greatest >= snapshot.xmax || snapshot.in_progress.iter().any(|xid| (least..=greatest).contains(xid))
        };
        self.xids.iter().all(|xid| snapshot.sees(*xid)) && !self.forgotten.is_some_and(runs_since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(xmin: u64, xmax: u64, in_progress: &[u64]) -> TransactionSnapshot {
        TransactionSnapshot {
            xmin: Xid(xmin),
            xmax: Xid(xmax),
            in_progress: in_progress.iter().copied().map(Xid).collect(),
            server_started: String::new(),
        }
    }

    #[test]
    fn a_commit_that_waits_for_a_standby_is_not_forgotten_however_many_others_commit_meanwhile() {
        let (mut recent, newest) = (RecentTransactions::default(), 10 + RECENT_MAX as u64 * 2);
        (10..=newest).for_each(|xid| recent.remember(Xid(xid)));
        assert!(recent.admits(&snapshot(newest + 1, newest + 1, &[])));
        assert!(!recent.admits(&snapshot(10, newest + 1, &[10])));
        assert!(!recent.admits(&snapshot(12, newest + 1, &[12])));
        assert!(!recent.admits(&snapshot(9, 11, &[])));
        // Older and newer transactions are not in the range of the forgotten ones.
        assert!(recent.admits(&snapshot(9, newest + 9, &[9, newest + 1])));
        recent.forget_below(Xid(newest + 1));
        assert!(recent.admits(&snapshot(12, newest + 1, &[12])));
    }
}
