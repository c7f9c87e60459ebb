//! The counters of branches that LLVM adds to the crates under `./dev fuzz`. Without them there is
//! no coverage.

#![expect(unsafe_code, reason = "LLVM hands over its counters as pointers")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The counters of one part of the program: their address and their number.
struct CounterRange {
    begin: usize,
    length: usize,
}

static RANGES: Mutex<Vec<CounterRange>> = Mutex::new(Vec::new());

/// Registers the counters of one part of the program. LLVM's code calls it before `main`.
///
/// # Safety
/// The counters must be bytes that stay valid until the process ends.
#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_cov_8bit_counters_init(begin: *mut u8, end: *mut u8) {
    let (begin, length) = (begin as usize, (end as usize).saturating_sub(begin as usize));
    if let Ok(mut ranges) = RANGES.lock()
        && ranges.iter().all(|range| range.begin != begin)
    {
        ranges.push(CounterRange { begin, length });
    }
}

/// The counts that inputs have reached so far.
pub(crate) struct Coverage {
    /// The counters, eight in a word, and for each of them a bit for each magnitude that it has
    /// had.
    ranges: Vec<(&'static [AtomicU64], Vec<[u8; 8]>)>,
}

impl Coverage {
    pub(crate) fn new() -> Coverage {
        let ranges = RANGES.lock().unwrap_or_else(PoisonError::into_inner);
        let ranges = ranges.iter().map(|range| {
            // A few counters at both ends that share no whole word are left out.
            let begin = range.begin.next_multiple_of(8);
            let words = (range.begin + range.length).saturating_sub(begin) / 8;
            let begin = std::ptr::with_exposed_provenance::<AtomicU64>(begin);
            // SAFETY: LLVM's counters are bytes that live as long as the process, and the words are
            // inside of them and aligned. The program adds to them without synchronization; a lost
            // addition only makes a count less exact.
            let words: &'static [AtomicU64] = unsafe { std::slice::from_raw_parts(begin, words) };
            (words, vec![[0; 8]; words.len()])
        });
        let mut coverage = Coverage { ranges: ranges.collect() };
        coverage.add();
        // What ran before the first input is no input's.
        coverage.ranges.iter_mut().for_each(|(_, seen)| seen.fill([0; 8]));
        coverage
    }

    /// Returns the number of counters: 0 in the ordinary build.
    pub(crate) fn counters(&self) -> usize {
        self.ranges.iter().map(|(words, _)| words.len() * 8).sum()
    }

    /// Returns the number of counters that were reached.
    pub(crate) fn reached(&self) -> usize {
        self.ranges.iter().flat_map(|(_, seen)| seen.as_flattened()).filter(|seen| **seen != 0).count()
    }

    /// Adds the counts since the last call, and sets them to zero. Returns true if a counter has a
    /// magnitude that is new.
    pub(crate) fn add(&mut self) -> bool {
        let mut is_new = false;
        for (words, seen) in &mut self.ranges {
            for (word, seen) in words.iter().zip(seen) {
                let counts = word.load(Ordering::Relaxed);
                if counts == 0 {
                    continue;
                }
                word.store(0, Ordering::Relaxed);
                for (count, seen) in counts.to_ne_bytes().into_iter().zip(seen) {
                    let magnitude = magnitude(count);
                    is_new |= magnitude & !*seen != 0;
                    *seen |= magnitude;
                }
            }
        }
        is_new
    }
}

/// Returns a bit for the magnitude of a count: 1, 2, 3, 4 to 7, 8 to 15, and so on.
fn magnitude(count: u8) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..=7 => 8,
        8..=15 => 16,
        16..=31 => 32,
        32..=127 => 64,
        128..=255 => 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_new_once_in_each_magnitude() {
        static COUNTERS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
        let mut coverage = Coverage { ranges: vec![(&COUNTERS, vec![[0; 8]; 3])] };
        let mut added = |counts: [u8; 8]| {
            COUNTERS[1].store(u64::from_ne_bytes(counts), Ordering::Relaxed);
            coverage.add()
        };
        assert!(!added([0; 8]));
        assert!(added([0, 1, 0, 0, 0, 0, 0, 0]) && !added([0, 1, 0, 0, 0, 0, 0, 0]));
        assert!(added([0, 9, 0, 0, 0, 0, 0, 0]) && !added([0, 15, 0, 0, 0, 0, 0, 0]));
        assert!(added([0, 9, 0, 0, 0, 0, 0, 200]));
        assert_eq!((coverage.reached(), coverage.counters()), (2, 24));
    }
}
