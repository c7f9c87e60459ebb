//! Recent changes of a table, kept to find its rows as an older snapshot sees them.

use std::mem::size_of;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use laredo_core::{Key, KeyColumns, Tuple, TupleRef, Xid};

use super::server_run::ServerRun;
use crate::source::TransactionSnapshot;

/// The maximum memory that the changes take, in bytes.
const BYTES_MAX: usize = 64 << 20;

/// The changes that were applied since the tracker was made and that a snapshot may not see.
///
/// The transactions that change a row wait for one another. Among those that changed one key, the
/// ones that a snapshot does not see therefore come last. The row that the snapshot sees is the row
/// before the first of these.
#[derive(Debug)]
pub(super) struct ChangeTracker {
    snapshot: Option<TransactionSnapshot>,
    hasher: RandomState,
    keys: HashTable<TrackedKey>,
    bytes: usize,
    bytes_max: usize,
    /// The reason why rows before the changes are no longer known.
    lost: Option<&'static str>,
}

#[derive(Debug)]
struct TrackedKey {
    key: Key,
    /// Each transaction's first change, in order, with the row before it.
    changes: Vec<(Xid, Option<Tuple>)>,
}

impl ChangeTracker {
    /// Returns a tracker that tracks all changes until the snapshot is known.
    pub(super) fn new() -> ChangeTracker {
        ChangeTracker::with_limit(BYTES_MAX)
    }

    pub(super) fn with_limit(bytes_max: usize) -> ChangeTracker {
        ChangeTracker {
            snapshot: None,
            hasher: RandomState::default(),
            keys: HashTable::new(),
            bytes: 0,
            bytes_max,
            lost: None,
        }
    }

    /// Restricts the changes to those that the snapshot does not see.
    pub(super) fn set_snapshot(&mut self, snapshot: TransactionSnapshot) {
        self.keys.retain(|tracked| {
            tracked.changes.retain(|(xid, _)| !snapshot.sees(*xid));
            tracked.changes.truncate(1);
            !tracked.changes.is_empty()
        });
        self.snapshot = Some(snapshot);
    }

    /// Tracks a change of the row with this key.
    pub(super) fn track(&mut self, xid: Xid, columns: &KeyColumns, row: &Tuple, before: Option<&Tuple>) {
        if self.lost.is_some() || self.snapshot.as_ref().is_some_and(|snapshot| snapshot.sees(xid)) {
            return;
        }
        let hash = columns.hash_row(&self.hasher, row.as_ref());
        let found = self.keys.find_mut(hash, |tracked| columns.row_has_key(row.as_ref(), tracked.key.as_ref()));
        let change = (xid, before.cloned());
        let cost = size_of::<(Xid, Option<Tuple>)>() + before.map_or(0, |row| row.len());
        match found {
            // With a snapshot, only the first change that it does not see matters.
            Some(_) if self.snapshot.is_some() => return,
            Some(tracked) if tracked.changes.last().is_some_and(|(last, _)| *last == xid) => return,
            Some(tracked) => tracked.changes.push(change),
            None => {
                let key = columns.key_of(row.as_ref());
                self.bytes += size_of::<TrackedKey>() + key.as_ref().bytes().len();
                let rehash = |tracked: &TrackedKey| KeyColumns::hash_key(&self.hasher, tracked.key.as_ref());
                self.keys.insert_unique(hash, TrackedKey { key, changes: vec![change] }, rehash);
            }
        }
        self.bytes += cost;
        if self.bytes > self.bytes_max {
            self.lose("too much changed while a part of it was read");
        }
    }

    /// Notes that all rows were removed at once.
    pub(super) fn track_truncate(&mut self) {
        self.lose("the table was truncated while a part of it was read");
    }

    /// Forgets what is tracked for a snapshot of another run of PostgreSQL.
    pub(super) fn check_run(&mut self, run: &ServerRun) {
        if let Some(Err(reason)) = self.snapshot.as_ref().map(|snapshot| run.check(snapshot)) {
            self.lose(reason);
        }
    }

    fn lose(&mut self, reason: &'static str) {
        self.lost = Some(reason);
        self.keys = HashTable::new();
    }

    /// Returns the reason why rows of the snapshot are no longer known.
    pub(super) fn lost(&self) -> Option<&'static str> {
        self.lost
    }

    /// Returns the row that the snapshot sees, if it is not the current one. `Some(None)` means
    /// that the snapshot sees no row.
    pub(super) fn row_like(&self, columns: &KeyColumns, row: TupleRef<'_>) -> Option<Option<&Tuple>> {
        if self.keys.is_empty() {
            return None;
        }
        let hash = columns.hash_row(&self.hasher, row);
        let tracked = self.keys.find(hash, |tracked| columns.row_has_key(row, tracked.key.as_ref()))?;
        tracked.changes.first().map(|(_, before)| before.as_ref())
    }

    /// Returns the row with a key that the snapshot sees, as `row_like` does.
    pub(super) fn row_of(&self, key: &Key) -> Option<Option<&Tuple>> {
        let hash = KeyColumns::hash_key(&self.hasher, key.as_ref());
        let tracked = self.keys.find(hash, |tracked| tracked.key == *key)?;
        tracked.changes.first().map(|(_, before)| before.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use laredo_core::{Cell, TupleBuf};

    use super::*;

    fn row(key: u8, value: u8) -> Tuple {
        [Cell::Value(&[key]), Cell::Value(&[value])].into_iter().collect::<TupleBuf>().as_ref().to_tuple()
    }

    fn snapshot(xmax: u64, hidden: &[u64]) -> TransactionSnapshot {
        let in_progress: Vec<Xid> = hidden.iter().copied().map(Xid).collect();
        let xmin = in_progress.first().copied().unwrap_or(Xid(xmax));
        TransactionSnapshot { xmin, xmax: Xid(xmax), in_progress, server_started: String::new() }
    }

    #[test]
    fn a_key_has_the_row_before_the_first_change_that_the_snapshot_does_not_see() {
        let (mut tracker, columns) = (ChangeTracker::new(), KeyColumns::new([0]));
        tracker.track(Xid(5), &columns, &row(1, 1), Some(&row(1, 0)));
        tracker.track(Xid(6), &columns, &row(1, 2), Some(&row(1, 1)));
        tracker.track(Xid(5), &columns, &row(2, 1), None);
        tracker.track(Xid(8), &columns, &row(5, 2), Some(&row(5, 1)));
        tracker.track(Xid(9), &columns, &row(5, 3), Some(&row(5, 2)));
        tracker.set_snapshot(snapshot(8, &[6]));
        tracker.track(Xid(7), &columns, &row(3, 1), None);
        tracker.track(Xid(6), &columns, &row(1, 3), Some(&row(1, 2)));
        tracker.track(Xid(8), &columns, &row(1, 4), Some(&row(1, 3)));
        tracker.track(Xid(9), &columns, &row(4, 1), None);
        let seen = |key: u8| tracker.row_like(&columns, row(key, 9).as_ref()).map(|row| row.cloned());
        assert_eq!(seen(1), Some(Some(row(1, 1))));
        assert_eq!((seen(2), seen(3)), (None, None), "the snapshot sees these as they are now");
        assert_eq!((seen(4), seen(5)), (Some(None), Some(Some(row(5, 1)))));
        let key = columns.key_of(row(1, 0).as_ref());
        assert_eq!(tracker.row_of(&key).map(|row| row.cloned()), seen(1));
    }

    #[test]
    fn too_many_changes_and_a_truncate_lose_the_rows() {
        let (mut tracker, columns) = (ChangeTracker::with_limit(1000), KeyColumns::new([0]));
        (0..100).for_each(|key| tracker.track(Xid(5), &columns, &row(key, 1), None));
        assert!(tracker.lost().is_some_and(|reason| reason.contains("too much")));
        let mut truncated = ChangeTracker::new();
        truncated.track_truncate();
        assert!(truncated.lost().is_some());
    }
}
