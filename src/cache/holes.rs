//! Holes of files that are in the store: runs of the largest chunk that is all zeros. What wrote the file may have left other holes, which
//! read as data; a hole that is told of reads as zeros.

use std::sync::OnceLock;

use super::{Cache, recipe::Placed};
use crate::{chunk::ChunkParams, ids::Hash, limits};

impl Cache {
    /// The first byte from `offset` on that is data, or with `hole` the first that isn't (at the latest the file's end). `None` if the file's
    /// recipe isn't on this host; without data from there on, the file's size.
    pub fn seek(
        &self,
        content: &Hash,
        size: u64,
        params: &ChunkParams,
        offset: u64,
        hole: bool,
    ) -> Option<u64> {
        let Some(layout) = self.local_layout(content, size, params)? else {
            return Some(if hole { size } else { offset });
        };
        let mut chunks = layout.covering(offset..size).iter();
        let found = chunks.find(|chunk| is_hole(chunk) == hole).map(|chunk| chunk.start().max(offset));
        Some(found.unwrap_or(size))
    }
}

fn is_hole(chunk: &Placed) -> bool {
    static ZEROS: OnceLock<Hash> = OnceLock::new();
    let largest = limits::CHUNK_MAX_BYTES;
    chunk.bytes == largest && chunk.hash == *ZEROS.get_or_init(|| Hash::of(&vec![0; largest as usize]))
}
