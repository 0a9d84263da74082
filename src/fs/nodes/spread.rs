//! Hashing of inode numbers.
//!
//! Every request looks several up. They are counted by the file system below and by us, so nobody picks them to meet in one place, which is
//! what the standard hasher's cost is for.

use std::hash::{BuildHasherDefault, Hasher};

/// For maps whose keys are numbers.
pub(super) type Spread = BuildHasherDefault<SpreadHasher>;

/// 2^64 over the golden ratio: successive numbers end up far apart.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Debug, Default)]
pub(super) struct SpreadHasher(u64);

impl Hasher for SpreadHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(GOLDEN);
    }

    fn finish(&self) -> u64 {
        // The table takes a place from the low bits and a tag from the highest: what is in either must be in both.
        (self.0 ^ self.0 >> 32).wrapping_mul(GOLDEN)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::BuildHasher};

    use super::*;

    #[test]
    fn successive_numbers_end_up_in_different_places() {
        let spread = Spread::default();
        for step in [1u64, 2, 4096, 1 << 32] {
            let places: HashSet<_> = (0..4096u64).map(|n| spread.hash_one(n * step) & 0xffff).collect();
            assert!(places.len() > 3500, "step {step}: {} places", places.len());
            let tags: HashSet<_> = (0..4096u64).map(|n| spread.hash_one((7u64, n * step)) >> 57).collect();
            assert_eq!(tags.len(), 128, "step {step}");
        }
    }
}
