//! How many clients are sent a whole snapshot at the same time: the others wait in line, so that whoever follows what commits is not
//! held up by all who arrive at once.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Lease;

/// Clients that one server sends a snapshot at the same time. Each part of one is a megabyte, so a round of all takes milliseconds.
const PLACES: usize = 16;

/// A line of clients before a number of places.
///
/// A place is given to a client's lease, which the sweep takes it back from where the client takes nothing: a stream that nobody
/// reads is not polled, and could neither use the place nor give it back.
#[derive(Default)]
pub(crate) struct Admission {
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Weak<Lease>>,
    taken: usize,
    most: usize,
}

/// A place, until it is dropped.
pub(crate) struct Place(Arc<Admission>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.line.lock().taken -= 1;
        self.0.give();
    }
}

impl Admission {
    /// Puts a client at the end of the line.
    pub(super) fn ask(self: &Arc<Self>, lease: &Arc<Lease>) {
        self.line.lock().waiting.push_back(Arc::downgrade(lease));
        self.give();
    }

    /// Gives the places that are free to those who are first in line.
    fn give(self: &Arc<Self>) {
        while let Some((lease, place)) = self.next() {
            // Without the lock: a lease that has ended gives it back at once.
            lease.give(place);
        }
    }

    fn next(self: &Arc<Self>) -> Option<(Arc<Lease>, Place)> {
        let mut line = self.line.lock();
        if line.taken >= PLACES {
            return None;
        }
        let first = std::iter::from_fn(|| line.waiting.pop_front());
        let lease = { first }.filter_map(|lease| lease.upgrade()).find(|lease| !lease.has_ended())?;
        line.taken += 1;
        line.most = line.most.max(line.taken);
        Some((lease, Place(self.clone())))
    }

    /// Places that are taken, and the most that were at one time.
    pub(crate) fn taken(&self) -> (usize, usize) {
        let line = self.line.lock();
        (line.taken, line.most)
    }

    /// Clients in line.
    pub(crate) fn waiting(&self) -> usize {
        self.line.lock().waiting.iter().filter(|lease| lease.strong_count() > 0).count()
    }
}
