//! The limit on the number of clients that are sent a whole snapshot at the same time. The other
//! clients wait in a queue, so that many new clients do not delay those that follow new commits.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::ClientLease;

/// The maximum number of clients that one server sends snapshots concurrently. Each part of a
/// snapshot is a megabyte, so a round of all clients takes milliseconds.
const PLACES: usize = 16;

/// A queue of clients that wait for a limited number of snapshot permits.
///
/// A permit is held by a client's lease, from which the sweep takes it back if the client reads
/// nothing. A stream that is not read is not polled, so it could neither use the permit nor return
/// it.
#[derive(Default)]
pub(crate) struct SnapshotAdmission {
    line: Mutex<AdmissionQueue>,
}

#[derive(Default)]
struct AdmissionQueue {
    waiting: VecDeque<Weak<ClientLease>>,
    taken: usize,
    most: usize,
}

/// A snapshot permit, which is returned when it is dropped.
pub(crate) struct SnapshotPermit(Arc<SnapshotAdmission>);

impl Drop for SnapshotPermit {
    fn drop(&mut self) {
        self.0.line.lock().taken -= 1;
        self.0.grant_permits();
    }
}

impl SnapshotAdmission {
    /// Puts a client at the end of the queue.
    pub(super) fn enqueue(self: &Arc<Self>, lease: &Arc<ClientLease>) {
        self.line.lock().waiting.push_back(Arc::downgrade(lease));
        self.grant_permits();
    }

    /// Grants the free permits to the first clients in the queue.
    fn grant_permits(self: &Arc<Self>) {
        while let Some((lease, place)) = self.next() {
            // The lock is not held here, because a lease that has ended returns the permit at once.
            lease.grant_permit(place);
        }
    }

    fn next(self: &Arc<Self>) -> Option<(Arc<ClientLease>, SnapshotPermit)> {
        let mut line = self.line.lock();
        if line.taken >= PLACES {
            return None;
        }
        let first = std::iter::from_fn(|| line.waiting.pop_front());
        let lease = { first }.filter_map(|lease| lease.upgrade()).find(|lease| !lease.has_ended())?;
        line.taken += 1;
        line.most = line.most.max(line.taken);
        Some((lease, SnapshotPermit(self.clone())))
    }

    /// Returns the number of permits that are in use, and the maximum so far.
    pub(crate) fn taken(&self) -> (usize, usize) {
        let line = self.line.lock();
        (line.taken, line.most)
    }

    /// Returns the number of clients in the queue.
    pub(crate) fn waiting(&self) -> usize {
        self.line.lock().waiting.iter().filter(|lease| lease.strong_count() > 0).count()
    }
}
