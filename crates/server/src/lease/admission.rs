//! The limit on the number of clients that are sent a whole snapshot at the same time. The other
//! clients wait in a queue, so that many new clients do not delay those that follow new commits.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Weak};

use laredo_core::TableName;
use parking_lot::Mutex;

use super::ClientLease;
use crate::peer::ClientGroup;

/// The maximum number of clients that one server sends snapshots concurrently. Each part of a
/// snapshot is a megabyte, so a round of all clients takes milliseconds.
const PERMITS: usize = 16;

/// A queue of clients that wait for a limited number of snapshot permits.
///
/// The next permit goes to the client whose group has the fewest permits, then to the one whose
/// table has, then to the one that has waited longest. So any number of clients of one machine or
/// identity, or of one table, does not keep the others from loading. While clients wait, a permit
/// is a turn of [`TURN`](super::TURN): the client then goes to the end of the queue.
///
/// A permit is held by a client's lease, from which the sweep takes it back if the client reads
/// nothing. A stream that is not read is not polled, so it could neither use the permit nor return
/// it.
#[derive(Default)]
pub(crate) struct SnapshotAdmission {
    queue: Mutex<AdmissionQueue>,
}

#[derive(Default)]
struct AdmissionQueue {
    waiting: VecDeque<Weak<ClientLease>>,
    granted: usize,
    granted_max: usize,
    by_group: HashMap<ClientGroup, usize>,
    by_table: HashMap<TableName, usize>,
}

/// The group and the table of a client, among which the permits are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PermitShare {
    pub(crate) group: ClientGroup,
    pub(crate) table: TableName,
}

/// The numbers of clients with and without a snapshot permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AdmissionUsage {
    /// The number of permits that are in use.
    pub(crate) granted: usize,
    /// The maximum of `granted` since the start.
    pub(crate) granted_max: usize,
    /// The number of clients in the queue.
    pub(crate) waiting: usize,
}

/// A snapshot permit, which is returned when it is dropped.
pub(super) struct SnapshotPermit {
    admission: Arc<SnapshotAdmission>,
    share: PermitShare,
}

impl Drop for SnapshotPermit {
    fn drop(&mut self) {
        self.admission.queue.lock().note_returned(&self.share);
        self.admission.grant_permits();
    }
}

impl SnapshotAdmission {
    /// Returns true if the client has a snapshot permit. Otherwise the client queues for one. So
    /// does a client whose turn is over, if others wait.
    pub(crate) fn request_permit(self: &Arc<Self>, lease: &Arc<ClientLease>) -> bool {
        if self.has_waiting()
            && let Some(permit) = lease.end_turn()
        {
            // The client is in the queue before its permit is free, because it may be the one that
            // has waited with the smallest share.
            self.queue.lock().waiting.push_back(Arc::downgrade(lease));
            drop(permit);
        }
        if lease.queue_for_permit() {
            self.queue.lock().waiting.push_back(Arc::downgrade(lease));
            self.grant_permits();
        }
        lease.has_permit()
    }

    /// Grants the free permits to the first clients in the queue.
    fn grant_permits(self: &Arc<Self>) {
        while let Some((lease, permit)) = self.next() {
            // The lock is not held here, because a lease that has ended returns the permit at once.
            lease.grant_permit(permit);
        }
    }

    fn next(self: &Arc<Self>) -> Option<(Arc<ClientLease>, SnapshotPermit)> {
        let mut queue = self.queue.lock();
        if queue.granted >= PERMITS {
            return None;
        }
        let lease = queue.pop_next()?;
        let share = lease.share().clone();
        queue.note_granted(&share);
        Some((lease, SnapshotPermit { admission: self.clone(), share }))
    }

    /// Returns true if a client waits for a permit.
    pub(crate) fn has_waiting(&self) -> bool {
        self.queue.lock().waiting.iter().filter_map(Weak::upgrade).any(|lease| !lease.has_ended())
    }

    /// Returns the present numbers of clients.
    pub(crate) fn usage(&self) -> AdmissionUsage {
        let queue = self.queue.lock();
        AdmissionUsage {
            granted: queue.granted,
            granted_max: queue.granted_max,
            waiting: queue.waiting.iter().filter(|lease| lease.strong_count() > 0).count(),
        }
    }
}

impl AdmissionQueue {
    /// Removes the client that is next from the queue, and those that have left.
    fn pop_next(&mut self) -> Option<Arc<ClientLease>> {
        loop {
            self.waiting.retain(|lease| lease.upgrade().is_some_and(|lease| !lease.has_ended()));
            let shares = self.waiting.iter().map(|lease| {
                let lease = lease.upgrade()?;
                let PermitShare { group, table } = lease.share();
                Some((count_of(&self.by_group, group), count_of(&self.by_table, table)))
            });
            // The first of several equal ones has waited longest.
            let places = shares.enumerate().filter_map(|(place, share)| Some((share?, place)));
            let (_, place) = places.min()?;
            // The client may have left since.
            if let Some(lease) = self.waiting.remove(place)?.upgrade() {
                return Some(lease);
            }
        }
    }

    fn note_granted(&mut self, share: &PermitShare) {
        self.granted += 1;
        self.granted_max = self.granted_max.max(self.granted);
        *self.by_group.entry(share.group.clone()).or_default() += 1;
        *self.by_table.entry(share.table.clone()).or_default() += 1;
    }

    fn note_returned(&mut self, share: &PermitShare) {
        self.granted -= 1;
        subtract_one(&mut self.by_group, &share.group);
        subtract_one(&mut self.by_table, &share.table);
    }
}

fn count_of<K: Hash + Eq>(counts: &HashMap<K, usize>, key: &K) -> usize {
    counts.get(key).copied().unwrap_or_default()
}

fn subtract_one<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
