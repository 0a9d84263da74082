//! The packer: objects into blocks, compressed beside their collection.
//!
//! Blocks leave in the order in which they were closed. What describes files (recipes, manifests) waits until the chunks before it have left, and then goes
//! in blocks of its own, so that who looks only at descriptions (a listing, `verify`, `gc`) needn't unpack the data; where there is little of both, they go
//! together. Invariant: a recipe is never ahead of its chunks.

use std::io;

use tokio::{sync::mpsc, task::JoinHandle};

use super::{bounds::Bounds, held::Key};
use crate::{
    chunk::{
        ObjectKind,
        block::{self, BlockBuilder},
    },
    ids::Hash,
    limits,
};

/// Data and descriptions share a block up to this many bytes: to unpack so little costs no more than a block's own header and compression would.
const TOGETHER_BYTES: usize = 64 << 10;
/// Recipes leave after this many bytes of chunks at the latest: a file whose recipe has arrived isn't read again after the connection was lost.
const RECIPES_EVERY_BYTES: u64 = 64 << 20;
/// Blocks of one layer that are being compressed or wait to be sent.
pub const BLOCKS_AHEAD: usize = 2;
/// The sample takes this many bytes from the front of each [`SAMPLE_EVERY_BYTES`] of a block.
const SAMPLE_BYTES: usize = 2 << 10;
/// See [`SAMPLE_BYTES`].
const SAMPLE_EVERY_BYTES: usize = 64 << 10;
/// A level at which zstd only looks for what is obviously the same: for blocks whose sample doesn't shrink (archives, videos).
const HASTY_LEVEL: i32 = -20;

/// A block that is being compressed.
pub struct Packing {
    /// Bytes before compression.
    pub raw_bytes: u64,
    /// What is in it.
    pub objects: Vec<Key>,
    pub block: JoinHandle<io::Result<Vec<u8>>>,
}

/// Collects objects and closes blocks.
pub struct Packer {
    open: OpenBlock,
    descriptions: Vec<(ObjectKind, Hash, Vec<u8>)>,
    description_bytes: usize,
    /// Of chunks, since descriptions left last.
    chunk_bytes: u64,
    bounds: Bounds,
    closed: mpsc::Sender<Packing>,
}

/// The block that is being filled.
#[derive(Default)]
pub struct OpenBlock {
    builder: BlockBuilder,
    objects: Vec<Key>,
    sample: Vec<u8>,
    sampled_until: usize,
}

impl OpenBlock {
    /// Adds an object; the caller answers for its hash and closes the block when it is full.
    pub fn push(&mut self, kind: ObjectKind, hash: Hash, bytes: &[u8]) {
        let start = self.builder.raw_bytes();
        while self.sampled_until < start + bytes.len() {
            let from = self.sampled_until.max(start) - start;
            self.sample.extend_from_slice(&bytes[from..bytes.len().min(from + SAMPLE_BYTES)]);
            self.sampled_until = start + from + SAMPLE_EVERY_BYTES;
        }
        self.builder.push(kind, hash, bytes);
        self.objects.push((kind, hash));
    }

    /// Whether it is time to close it.
    pub fn is_full(&self) -> bool {
        self.builder.is_full()
    }

    /// The block's bytes.
    pub fn finish(mut self, level: i32) -> io::Result<Vec<u8>> {
        let shrinks = block::compressed_bytes(&self.sample)? < self.sample.len() / 100 * 97;
        let worth_it = shrinks || self.builder.raw_bytes() < SAMPLE_EVERY_BYTES;
        self.builder.finish(if worth_it { level } else { HASTY_LEVEL })
    }
}

impl Packer {
    /// Gives the blocks to `closed`.
    pub fn new(bounds: Bounds, closed: mpsc::Sender<Packing>) -> Self {
        let (open, descriptions) = (OpenBlock::default(), Vec::new());
        Self { open, descriptions, description_bytes: 0, chunk_bytes: 0, bounds, closed }
    }

    /// Lends out the open block of chunks, to be filled elsewhere; it comes back through [`Packer::give_back`].
    pub fn take_open(&mut self) -> OpenBlock {
        std::mem::take(&mut self.open)
    }

    /// Takes a block back and closes it if it is full.
    pub async fn give_back(&mut self, open: OpenBlock) {
        self.open = open;
        self.close_if_full().await;
    }

    /// Adds a chunk.
    pub async fn chunk(&mut self, hash: Hash, bytes: &[u8]) {
        self.open.push(ObjectKind::Chunk, hash, bytes);
        self.chunk_bytes += bytes.len() as u64;
        self.close_if_full().await;
    }

    /// Adds a recipe or a manifest, whose chunks were added before.
    pub async fn description(&mut self, kind: ObjectKind, hash: Hash, bytes: Vec<u8>) {
        let together = self.description_bytes + bytes.len();
        // Alone in its block unless it is small: it may be as large as a block can be.
        if together > limits::BLOCK_RAW_TARGET_BYTES {
            self.close().await;
        }
        self.description_bytes += bytes.len();
        self.descriptions.push((kind, hash, bytes));
        if self.chunk_bytes >= RECIPES_EVERY_BYTES {
            self.close().await;
        }
    }

    /// Closes what is open. Waits while too many blocks are on the way.
    pub async fn close(&mut self) {
        if self.open.builder.raw_bytes() + self.description_bytes > TOGETHER_BYTES {
            self.close_open().await;
        }
        (self.description_bytes, self.chunk_bytes) = (0, 0);
        for (kind, hash, bytes) in std::mem::take(&mut self.descriptions) {
            self.open.push(kind, hash, &bytes);
        }
        self.close_open().await;
    }

    async fn close_if_full(&mut self) {
        if self.open.is_full() {
            self.close_open().await;
        }
    }

    async fn close_open(&mut self) {
        if self.open.builder.is_empty() {
            return;
        }
        let mut open = self.take_open();
        let objects = std::mem::take(&mut open.objects);
        let raw_bytes = open.builder.raw_bytes() as u64;
        // Whoever takes the blocks has failed and says why itself; this side is about to be dropped.
        let Ok(place) = self.closed.reserve().await else { return };
        let block = self.bounds.compress(open);
        place.send(Packing { raw_bytes, objects, block });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::block::Block;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut open = OpenBlock::default();
        bytes.chunks(50_000).for_each(|part| open.push(ObjectKind::Chunk, Hash::of(part), part));
        let block = open.finish(3).expect("compresses");
        let opened = Block::open(&block).expect("opens");
        let whole: Vec<u8> = opened.table().iter().flat_map(|e| opened.bytes_of(e)).copied().collect();
        assert_eq!(whole, bytes);
        block
    }

    #[test]
    fn text_shrinks_and_noise_is_kept_plain() {
        let text = b"START ---- ---- timestamp=1700000000\n".repeat(20_000);
        assert!(packed(&text).len() < text.len() / 20);
        let mut noise = vec![0; 500_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert!(packed(&noise).len() < noise.len() + 1000);
    }

    /// What is small is compressed without asking a sample.
    #[test]
    fn a_little_text_shrinks() {
        assert!(packed(&b"keyval=1\n".repeat(100)).len() < 300);
    }

    /// The kinds of the objects of each block, in the order of the blocks.
    async fn kinds(objects: &[(ObjectKind, usize)]) -> Vec<Vec<ObjectKind>> {
        let (closed, mut blocks) = mpsc::channel(100);
        let mut packer = Packer::new(Bounds::new(0, 1), closed);
        for (i, (kind, bytes)) in objects.iter().enumerate() {
            let hash = Hash::of(&i.to_le_bytes());
            let bytes = vec![b'x'; *bytes];
            match kind {
                ObjectKind::Chunk => packer.chunk(hash, &bytes).await,
                _ => packer.description(*kind, hash, bytes).await,
            }
        }
        packer.close().await;
        drop(packer);
        let mut kinds = Vec::new();
        while let Some(packing) = blocks.recv().await {
            packing.block.await.expect("no panic").expect("compresses");
            kinds.push(packing.objects.iter().map(|(kind, _)| *kind).collect());
        }
        kinds
    }

    /// And a recipe is behind its chunks, with which it shares a block only if there is little of both.
    #[tokio::test]
    async fn descriptions_have_blocks_of_their_own() {
        use ObjectKind::{Chunk, Manifest, Recipe};
        let little = [(Chunk, 1000), (Recipe, 100), (Manifest, 100)];
        assert_eq!(kinds(&little).await, [vec![Chunk, Recipe, Manifest]]);
        let much = [(Chunk, 600 << 10), (Recipe, 100), (Chunk, 600 << 10), (Chunk, 10), (Manifest, 100)];
        assert_eq!(kinds(&much).await, [vec![Chunk, Chunk], vec![Chunk, Recipe, Manifest]]);
        let large = [(Chunk, 10), (Recipe, 100), (Manifest, 2 << 20)];
        assert_eq!(kinds(&large).await, [vec![Chunk, Recipe], vec![Manifest]]);
        let more = [(Chunk, 100_000), (Recipe, 100), (Manifest, 2000)];
        assert_eq!(kinds(&more).await, [vec![Chunk], vec![Recipe, Manifest]]);
        let mut chunks = vec![(Chunk, 1 << 20); 64];
        chunks.extend([(Recipe, 100), (Chunk, 100_000), (Recipe, 100), (Manifest, 100)]);
        assert_eq!(kinds(&chunks).await[64..], [vec![Recipe], vec![Chunk], vec![Recipe, Manifest]]);
    }
}
