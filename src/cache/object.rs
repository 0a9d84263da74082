//! Unpacked blocks, and the objects in them.

use std::{ops::Deref, sync::Arc};

use super::shelf::ObjectKey;
use crate::{
    chunk::{
        ObjectKind,
        block::{Block, BlockError, TableEntry},
    },
    ids::Hash,
};

/// A checked, unpacked block in which objects are found by a binary search.
#[derive(Debug)]
pub struct OpenBlock {
    block: Block,
    /// Its table, by kind and hash.
    sorted: Vec<TableEntry>,
}

impl OpenBlock {
    /// Checks and unpacks an encoded block.
    pub fn open(encoded: &Arc<Vec<u8>>) -> Result<Arc<Self>, BlockError> {
        let block = Block::open_for_objects(encoded)?;
        let mut sorted = block.table().to_vec();
        sorted.sort_unstable_by_key(|e| (e.kind, e.hash));
        Ok(Arc::new(Self { block, sorted }))
    }

    /// An object in it.
    pub fn object(self: &Arc<Self>, kind: ObjectKind, hash: &Hash) -> Option<Object> {
        let at = self.sorted.binary_search_by(|e| (e.kind, &e.hash).cmp(&(kind, hash))).ok()?;
        Some(Object { block: self.clone(), entry: self.sorted[at] })
    }

    /// What an index needs of it.
    pub fn keys(&self) -> Box<[ObjectKey]> {
        keys_of(&self.sorted)
    }

    /// Bytes of memory that it holds.
    pub fn memory_bytes(&self) -> u64 {
        (self.block.memory_bytes() + self.sorted.len() * size_of::<TableEntry>()) as u64
    }
}

/// What an index needs of a table.
pub fn keys_of(table: &[TableEntry]) -> Box<[ObjectKey]> {
    table.iter().map(|e| ObjectKey::of(e.kind, &e.hash)).collect()
}

/// An object's bytes; shares the block that they are in.
#[derive(Clone)]
pub struct Object {
    block: Arc<OpenBlock>,
    entry: TableEntry,
}

impl Deref for Object {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.block.block.bytes_of(&self.entry)
    }
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?} of {} bytes", self.entry.kind, self.entry.hash, self.len())
    }
}
