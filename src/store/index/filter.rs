//! A filter: says of a key that it isn't in a run, mostly, without looking; never of one that is.
//!
//! A Bloom filter in blocks of a cache line, so that a look-up waits for memory once: 8 bits a key and 5 of them set let 2 to 3 of a hundred other keys
//! through. Keys are hashes already: the block is chosen by bytes 9 to 16 of a key, the bits in it by bytes 17 to 26.

use super::run::RawKey;

/// Bytes of a block.
const BLOCK_BYTES: usize = 64;
const BITS_PER_KEY: u64 = 8;
/// Bits of a block that a key sets: two bytes of it say which.
const BITS_SET: usize = 5;

/// See the module.
#[derive(Debug)]
pub struct Filter {
    bytes: Vec<u8>,
}

impl Filter {
    /// An empty one, for so many keys.
    pub fn for_keys(count: u64) -> Self {
        let blocks = (count * BITS_PER_KEY).div_ceil(BLOCK_BYTES as u64 * 8).max(1);
        Self { bytes: vec![0; blocks as usize * BLOCK_BYTES] }
    }

    /// One that was written; whole blocks.
    pub fn of_bytes(bytes: Vec<u8>) -> Option<Self> {
        (!bytes.is_empty() && bytes.len().is_multiple_of(BLOCK_BYTES)).then_some(Self { bytes })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn insert(&mut self, key: &RawKey) {
        let start = self.block(key);
        let block = &mut self.bytes[start..start + BLOCK_BYTES];
        bits(key).for_each(|bit| block[bit / 8] |= 1 << (bit % 8));
    }

    /// Whether the key may be in it.
    pub fn may_have(&self, key: &RawKey) -> bool {
        let start = self.block(key);
        let block = &self.bytes[start..start + BLOCK_BYTES];
        bits(key).all(|bit| block[bit / 8] & 1 << (bit % 8) != 0)
    }

    /// Where the key's block begins.
    fn block(&self, key: &RawKey) -> usize {
        let number = u64::from_le_bytes(key[9..17].try_into().expect("eight bytes"));
        let blocks = (self.bytes.len() / BLOCK_BYTES) as u128;
        ((u128::from(number) * blocks) >> 64) as usize * BLOCK_BYTES
    }
}

fn bits(key: &RawKey) -> impl Iterator<Item = usize> {
    key[17..17 + 2 * BITS_SET]
        .chunks_exact(2)
        .map(|two| usize::from(u16::from_le_bytes([two[0], two[1]])) % (BLOCK_BYTES * 8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Hash;

    fn key(number: u64) -> RawKey {
        let mut key = [0; super::super::run::KEY_BYTES];
        key[1..].copy_from_slice(&Hash::of(&number.to_le_bytes()).0);
        key
    }

    #[test]
    fn what_is_in_it_passes_and_little_else() {
        for count in [1u64, 100, 20_000] {
            let mut filter = Filter::for_keys(count);
            (0..count).for_each(|number| filter.insert(&key(number)));
            let filter = Filter::of_bytes(filter.bytes().to_vec()).expect("whole blocks");
            assert!((0..count).all(|number| filter.may_have(&key(number))));
            let others = (count..count + 20_000).filter(|number| filter.may_have(&key(*number))).count();
            assert!(others < 800, "{others} of 20,000 with {count}");
        }
        assert!(Filter::of_bytes(Vec::new()).is_none() && Filter::of_bytes(vec![0; 65]).is_none());
    }
}
