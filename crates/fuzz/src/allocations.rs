//! A global allocator that counts what each thread holds, so that a target can prove a bound.
//!
//! Every test program that links this crate has it.

#![expect(unsafe_code, reason = "an allocator is unsafe by its trait; this one passes each call on unchanged")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// The bytes that this thread holds. What other threads free may make it too high.
    static HELD: Cell<usize> = const { Cell::new(0) };
    /// The most bytes that this thread has held since the measurement began.
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

// SAFETY: each call is passed on to the system's allocator with the same arguments. The counters
// neither allocate nor panic.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`, which is that of the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        remove(layout.size());
        // SAFETY: as in `alloc`; the memory is of the system's allocator.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        remove(layout.size());
        add(size);
        // SAFETY: as in `dealloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

fn add(bytes: usize) {
    // A thread that ends may allocate after its counters are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get().saturating_add(bytes));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

fn remove(bytes: usize) {
    let _ = HELD.try_with(|held| held.set(held.get().saturating_sub(bytes)));
}

/// Runs the work, and returns its result with the most bytes that this thread has held during it,
/// beyond those before.
pub(crate) fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get().saturating_sub(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_what_was_held_at_once() {
        let ((), bytes) = measured(|| {
            for _ in 0..10 {
                drop(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
            drop(std::hint::black_box(vec![0_u8; 3 << 20]));
        });
        assert!((3 << 20..4 << 20).contains(&bytes), "{bytes}");
    }

    #[test]
    fn memory_that_is_reserved_and_not_used_counts() {
        let (_, bytes) = measured(|| std::hint::black_box(Vec::<u8>::with_capacity(1 << 30)).len());
        assert!(bytes >= 1 << 30, "{bytes}");
    }
}
