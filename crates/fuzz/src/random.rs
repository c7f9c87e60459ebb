//! Random numbers: SplitMix64, which is fast and has a seed of 64 bits.

use std::hash::{BuildHasher, RandomState};

/// A generator of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct FuzzRandom(u64);

impl FuzzRandom {
    /// Returns a generator with a seed of this process.
    pub(crate) fn new() -> FuzzRandom {
        FuzzRandom(RandomState::new().hash_one(0))
    }

    #[cfg(test)]
    pub(crate) fn with_seed(seed: u64) -> FuzzRandom {
        FuzzRandom(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        // The remainder is below `end`, so the conversion back is exact.
        (self.next() % end as u64) as usize
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// Returns one of the items, which are not empty.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
