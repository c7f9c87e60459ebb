//! Records the places in the program that hold views. The writer logs them when a view is held so
//! long that nothing newer can be shown. A reader writes only to a slot near its thread's own,
//! without a lock and at almost no cost.

use std::cell::Cell;
use std::panic::Location;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const SLOTS: usize = 256;
/// The number of slots that a thread tries: a cache line. Further views are not recorded.
const TRIES: usize = 8;
const SITES: usize = 1024;
/// The number of low bits in a slot for the call site, numbered from 1. The bits above have the
/// view's generation.
const SITE_BITS: u32 = 12;

/// The call sites that take views, by number.
static CALL_SITES: [OnceLock<&'static Location<'static>>; SITES] = [const { OnceLock::new() }; SITES];
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    static LAST_CALL_SITE: Cell<Option<(&'static Location<'static>, u64)>> = const { Cell::new(None) };
}

/// The views that are held now.
#[derive(Debug)]
pub(crate) struct ViewHolders(Box<[AtomicU64]>);

impl ViewHolders {
    pub(crate) fn new() -> ViewHolders {
        ViewHolders((0..SLOTS).map(|_| AtomicU64::new(0)).collect())
    }

    /// Takes a slot for a view of this generation. Returns `None` if too many slots are taken.
    pub(crate) fn enter(&self, call_site: &'static Location<'static>, generation: u64) -> Option<usize> {
        let value = number_of(call_site)? | (generation << SITE_BITS);
        // A thread that is ending has no number any more, so its views are not recorded.
        let first = THREAD.try_with(|thread| thread * TRIES).ok()?;
        (0..TRIES)
            .map(|i| (first + i) % SLOTS)
            .find(|&i| self.0[i].compare_exchange(0, value, Ordering::Relaxed, Ordering::Relaxed).is_ok())
    }

    pub(crate) fn leave(&self, slot: usize) {
        self.0[slot].store(0, Ordering::Relaxed);
    }

    /// Returns the call sites that hold a view older than this generation.
    pub(crate) fn older_than(&self, generation: u64) -> Vec<&'static Location<'static>> {
        let values = self.0.iter().map(|slot| slot.load(Ordering::Relaxed));
        values
            .filter(|&value| value != 0 && value >> SITE_BITS < generation)
            .filter_map(|value| {
                let number = usize::try_from(value & ((1 << SITE_BITS) - 1)).ok()?;
                CALL_SITES.get(number.checked_sub(1)?)?.get().copied()
            })
            .collect()
    }
}

fn number_of(call_site: &'static Location<'static>) -> Option<u64> {
    let last = LAST_CALL_SITE.try_with(Cell::get).ok()?;
    if let Some((known, number)) = last
        && std::ptr::eq(known, call_site)
    {
        return Some(number);
    }
    let first = call_site.line() as usize;
    let found = (0..SITES).map(|i| (first + i) % SITES).find(|&i| {
        let there = CALL_SITES[i].get_or_init(|| call_site);
        std::ptr::eq(*there, call_site)
    })?;
    let number = found as u64 + 1;
    LAST_CALL_SITE.with(|last| last.set(Some((call_site, number))));
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_who_holds_an_old_view() {
        let holders = ViewHolders::new();
        let here = Location::caller();
        let slot = holders.enter(here, 4).unwrap();
        holders.enter(Location::caller(), 5).unwrap();
        assert_eq!(holders.older_than(5), vec![here]);
        holders.leave(slot);
        assert!(holders.older_than(5).is_empty());
    }

    #[test]
    fn more_views_than_slots_are_not_listed() {
        let holders = ViewHolders::new();
        let slots: Vec<_> = (0..TRIES + 1).map(|_| holders.enter(Location::caller(), 1)).collect();
        assert_eq!(slots.iter().flatten().count(), TRIES);
    }
}
