//! Who holds a view: told when one is held so long that nothing newer can be shown. Readers only write to a slot near
//! their thread's own, so that this costs them next to nothing and no lock.

use std::cell::Cell;
use std::panic::Location;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const SLOTS: usize = 256;
/// Slots that one thread tries: a cache line. Views beyond these are not told of.
const TRIES: usize = 8;
const SITES: usize = 1024;
/// A slot holds the number of the call site (from 1) in its low bits and the view's generation above.
const SITE_BITS: u32 = 12;

/// Places in the program that take views, by number.
static PLACES: [OnceLock<&'static Location<'static>>; SITES] = [const { OnceLock::new() }; SITES];
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    static LAST_PLACE: Cell<Option<(&'static Location<'static>, u64)>> = const { Cell::new(None) };
}

/// The views that are held just now.
#[derive(Debug)]
pub(crate) struct Holders(Box<[AtomicU64]>);

impl Holders {
    pub(crate) fn new() -> Holders {
        Holders((0..SLOTS).map(|_| AtomicU64::new(0)).collect())
    }

    /// Takes a slot for a view of this generation; `None` where too many are taken.
    pub(crate) fn enter(&self, place: &'static Location<'static>, generation: u64) -> Option<usize> {
        let value = number_of(place)? | (generation << SITE_BITS);
        // A thread that is going away has no number any more, and is not told of.
        let first = THREAD.try_with(|thread| thread * TRIES).ok()?;
        (0..TRIES)
            .map(|i| (first + i) % SLOTS)
            .find(|&i| self.0[i].compare_exchange(0, value, Ordering::Relaxed, Ordering::Relaxed).is_ok())
    }

    pub(crate) fn leave(&self, slot: usize) {
        self.0[slot].store(0, Ordering::Relaxed);
    }

    /// The places that hold a view older than this generation.
    pub(crate) fn older_than(&self, generation: u64) -> Vec<&'static Location<'static>> {
        let values = self.0.iter().map(|slot| slot.load(Ordering::Relaxed));
        values
            .filter(|&value| value != 0 && value >> SITE_BITS < generation)
            .filter_map(|value| {
                let number = usize::try_from(value & ((1 << SITE_BITS) - 1)).ok()?;
                PLACES.get(number.checked_sub(1)?)?.get().copied()
            })
            .collect()
    }
}

fn number_of(place: &'static Location<'static>) -> Option<u64> {
    let last = LAST_PLACE.try_with(Cell::get).ok()?;
    if let Some((known, number)) = last
        && std::ptr::eq(known, place)
    {
        return Some(number);
    }
    let first = place.line() as usize;
    let found = (0..SITES).map(|i| (first + i) % SITES).find(|&i| {
        let there = PLACES[i].get_or_init(|| place);
        std::ptr::eq(*there, place)
    })?;
    let number = found as u64 + 1;
    LAST_PLACE.with(|last| last.set(Some((place, number))));
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_who_holds_an_old_view() {
        let holders = Holders::new();
        let here = Location::caller();
        let slot = holders.enter(here, 4).unwrap();
        holders.enter(Location::caller(), 5).unwrap();
        assert_eq!(holders.older_than(5), vec![here]);
        holders.leave(slot);
        assert!(holders.older_than(5).is_empty());
    }

    #[test]
    fn more_views_than_slots_are_just_not_told_of() {
        let holders = Holders::new();
        let slots: Vec<_> = (0..TRIES + 1).map(|_| holders.enter(Location::caller(), 1)).collect();
        assert_eq!(slots.iter().flatten().count(), TRIES);
    }
}
