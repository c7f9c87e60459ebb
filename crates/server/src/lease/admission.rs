//! The limit on the number of clients that are sent a whole snapshot at the same time. The other
//! clients wait in a queue, so that many new clients do not delay those that follow new commits.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::ClientLease;

/// The maximum number of clients that one server sends snapshots concurrently. Each part of a
/// snapshot is a megabyte, so a round of all clients takes milliseconds.
const PERMITS: usize = 16;

/// A queue of clients that wait for a limited number of snapshot permits.
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
pub(super) struct SnapshotPermit(Arc<SnapshotAdmission>);

impl Drop for SnapshotPermit {
    fn drop(&mut self) {
        self.0.queue.lock().granted -= 1;
        self.0.grant_permits();
    }
}

impl SnapshotAdmission {
    /// Returns true if the client has a snapshot permit. Otherwise the client queues for one.
    pub(crate) fn request_permit(self: &Arc<Self>, lease: &Arc<ClientLease>) -> bool {
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
        let first = std::iter::from_fn(|| queue.waiting.pop_front());
        let lease = { first }.filter_map(|lease| lease.upgrade()).find(|lease| !lease.has_ended())?;
        queue.granted += 1;
        queue.granted_max = queue.granted_max.max(queue.granted);
        Some((lease, SnapshotPermit(self.clone())))
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
