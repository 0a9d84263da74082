//! Recipes as reads use them: decoded, checked, with each chunk's place in the file.

use std::{ops::Range, sync::Arc};

use crate::{
    chunk::{ChunkParams, ChunkRef, Recipe},
    ids::Hash,
};

/// A checked recipe: no chunk is empty or larger than chunks can be, and together they are as long as the
/// file.
#[derive(Debug)]
pub struct Layout {
    chunks: Vec<Placed>,
}

/// A chunk in its place.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    pub hash: Hash,
    /// Where in the file it ends.
    pub end: u64,
    pub bytes: u32,
}

impl Placed {
    /// Where in the file it begins.
    pub fn start(&self) -> u64 {
        self.end - u64::from(self.bytes)
    }
}

impl Layout {
    /// Decodes and checks the recipe of a file of `size` bytes.
    pub fn parse(bytes: &[u8], size: u64, params: &ChunkParams) -> Result<Arc<Self>, &'static str> {
        let recipe = Recipe::decode(bytes).map_err(|_| "it doesn't decode")?;
        if recipe.chunks.iter().any(|c| c.bytes == 0 || c.bytes > params.max_bytes) {
            return Err("a chunk's size is out of bounds");
        }
        if recipe.size() != size {
            return Err("its chunks don't add up to the file's size");
        }
        let mut end = 0;
        let place = |chunk: ChunkRef| {
            end += u64::from(chunk.bytes);
            Placed { hash: chunk.hash, end, bytes: chunk.bytes }
        };
        Ok(Arc::new(Self { chunks: recipe.chunks.into_iter().map(place).collect() }))
    }

    /// The file's size.
    pub fn size(&self) -> u64 {
        self.chunks.last().map_or(0, |c| c.end)
    }

    /// The chunks that hold a range of the file.
    pub fn covering(&self, range: Range<u64>) -> &[Placed] {
        let first = self.chunks.partition_point(|c| c.end <= range.start);
        let last = self.chunks.partition_point(|c| c.start() < range.end);
        &self.chunks[first..last.max(first)]
    }

    /// The chunks that begin in a range of the file.
    pub fn beginning_in(&self, range: Range<u64>) -> &[Placed] {
        let first = self.chunks.partition_point(|c| c.start() < range.start);
        let last = self.chunks.partition_point(|c| c.start() < range.end);
        &self.chunks[first..last.max(first)]
    }

    /// Bytes of memory that it holds.
    pub fn memory_bytes(&self) -> u64 {
        (self.chunks.len() * size_of::<Placed>()) as u64
    }
}
