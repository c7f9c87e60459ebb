//! Which transactions a copy's snapshot has to see.

use std::collections::VecDeque;

use laredo_core::Xid;

use crate::source::Snapshot;

/// How many ids are remembered. A commit is not visible yet for a moment after it is logged, longer only while it waits for a
/// synchronous standby; and no more than one in each of the database's sessions is not.
const RECENT_MAX: usize = 65_536;

/// The newest transactions that were applied, or let go because a copy showed them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent {
    xids: VecDeque<Xid>,
}

impl Recent {
    pub(crate) fn remember(&mut self, xid: Xid) {
        self.xids.push_back(xid);
        if self.xids.len() > RECENT_MAX {
            self.xids.pop_front();
        }
    }

    /// Every later snapshot sees what lies below the `xmin` of this one.
    pub(crate) fn forget_below(&mut self, xmin: Xid) {
        self.xids.retain(|xid| *xid >= xmin);
    }

    pub(crate) fn admits(&self, snapshot: &Snapshot) -> bool {
        self.xids.iter().all(|xid| snapshot.sees(*xid))
    }
}
