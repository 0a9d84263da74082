//! A bounded shelf of blocks with an index of the objects in them: which block holds an object?
//!
//! Used twice: for block files on disk, and for unpacked blocks in memory. Objects and blocks are indexed by
//! 64 bits of their hashes, since tens of millions of small files fit into a few GiB of blocks. So the index
//! only suggests: whoever finds a block has to look for the object in it, and one that isn't there counts as
//! not found.
//!
//! Invariant: each object in the index names a block on the shelf.

use std::collections::HashMap;

use super::lru::Lru;
use crate::{
    chunk::{ObjectKind, block::HEADER_BYTES},
    ids::Hash,
};

/// An object's place in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectKey(u64);

impl ObjectKey {
    /// The key of an object.
    pub fn of(kind: ObjectKind, hash: &Hash) -> Self {
        Self(first_u64(hash) ^ kind as u64)
    }
}

/// A block's name on this host: 64 bits of the hash of its header, which holds the checksum of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockName(pub u64);

impl BlockName {
    /// The name of an encoded block.
    pub fn of(encoded: &[u8]) -> Self {
        Self(first_u64(&Hash::of(&encoded[..encoded.len().min(HEADER_BYTES)])))
    }
}

fn first_u64(hash: &Hash) -> u64 {
    u64::from_le_bytes(hash.0[..8].try_into().expect("eight bytes"))
}

/// The shelf.
#[derive(Debug)]
pub struct Shelf<V> {
    blocks: Lru<BlockName, Shelved<V>>,
    objects: HashMap<ObjectKey, BlockName>,
    max_objects: usize,
}

#[derive(Debug)]
struct Shelved<V> {
    value: V,
    keys: Box<[ObjectKey]>,
}

impl<V: Clone> Shelf<V> {
    /// An empty one, bounded in bytes and in objects.
    pub fn new(max_bytes: u64, max_objects: usize) -> Self {
        Self { blocks: Lru::new(max_bytes), objects: HashMap::new(), max_objects }
    }

    /// The block that should hold an object.
    pub fn find(&mut self, key: ObjectKey) -> Option<(BlockName, V)> {
        let name = *self.objects.get(&key)?;
        let block = self.blocks.get(&name).expect("the index names blocks on the shelf");
        Some((name, block.value.clone()))
    }

    /// Whether some block should hold an object.
    pub fn has(&self, key: ObjectKey) -> bool {
        self.objects.contains_key(&key)
    }

    /// Puts a block on the shelf and gives the names of those that go for it, itself perhaps.
    pub fn put(&mut self, name: BlockName, value: V, keys: Box<[ObjectKey]>, bytes: u64) -> Vec<BlockName> {
        self.remove(name);
        for key in &keys {
            self.objects.insert(*key, name);
        }
        let mut gone = self.blocks.insert(name, Shelved { value, keys }, bytes);
        gone.iter().for_each(|(name, block)| self.unindex(*name, &block.keys));
        while self.objects.len() > self.max_objects {
            let Some((name, block)) = self.blocks.pop_oldest() else { break };
            self.unindex(name, &block.keys);
            gone.push((name, block));
        }
        gone.into_iter().map(|(name, _)| name).collect()
    }

    /// Takes a block off.
    pub fn remove(&mut self, name: BlockName) {
        if let Some(block) = self.blocks.remove(&name) {
            self.unindex(name, &block.keys);
        }
    }

    fn unindex(&mut self, name: BlockName, keys: &[ObjectKey]) {
        for key in keys {
            if self.objects.get(key) == Some(&name) {
                self.objects.remove(key);
            }
        }
    }

    /// Takes all off.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.objects.clear();
    }

    /// Names of all blocks.
    pub fn names(&self) -> Vec<BlockName> {
        self.blocks.keys().copied().collect()
    }

    /// Bytes, blocks and objects on it.
    pub fn fill(&self) -> (u64, usize, usize) {
        (self.blocks.weight(), self.blocks.len(), self.objects.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(of: &[u64]) -> Box<[ObjectKey]> {
        of.iter().map(|k| ObjectKey(*k)).collect()
    }

    #[test]
    fn an_object_in_two_blocks_outlives_one() {
        let mut shelf = Shelf::new(100, 100);
        shelf.put(BlockName(1), 'a', keys(&[1, 2]), 40);
        shelf.put(BlockName(2), 'b', keys(&[2, 3]), 40);
        shelf.remove(BlockName(1));
        assert_eq!(shelf.find(ObjectKey(2)), Some((BlockName(2), 'b')));
        assert!(!shelf.has(ObjectKey(1)));
    }

    #[test]
    fn both_bounds_hold() {
        let mut shelf = Shelf::new(100, 3);
        shelf.put(BlockName(1), (), keys(&[1, 2]), 10);
        assert_eq!(shelf.put(BlockName(2), (), keys(&[3, 4]), 10), [BlockName(1)]);
        assert_eq!(shelf.put(BlockName(3), (), keys(&[5]), 95), [BlockName(2)]);
        assert_eq!(shelf.put(BlockName(4), (), keys(&[6]), 101), [BlockName(4)]);
        assert_eq!(shelf.fill(), (95, 1, 1));
    }
}
