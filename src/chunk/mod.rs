//! Chunks, recipes and blocks: how file bytes travel and rest.
//!
//! An [`Object`](ObjectKind) is a run of bytes named by a kind and a hash. A file below [`limits::SPLIT_BYTES`] is one chunk whose hash
//! is the file's content hash. A larger one is cut by FastCDC; its [`Recipe`], named by the *content* hash of the whole file, lists its chunks.
//! Blocks ([`block`]) hold many objects compressed together.

pub mod block;
pub mod cutter;

use minicbor::{Decode, Encode};

use crate::{ids::Hash, limits};

/// What an object's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum ObjectKind {
    /// File bytes; the name is their BLAKE3 hash.
    #[n(0)]
    Chunk,
    /// A [`Recipe`], named by the content hash of the file that it makes, not by its own bytes.
    #[n(1)]
    Recipe,
    /// A manifest's canonical encoding, named by its BLAKE3 hash.
    #[n(2)]
    Manifest,
}

/// How a store's files are cut; fixed when the store is made, told to hosts when they connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ChunkParams {
    /// Files of this size or more are cut.
    #[n(0)]
    pub split_bytes: u64,
    /// FastCDC v2020, normalisation level 1.
    #[n(1)]
    pub min_bytes: u32,
    #[n(2)]
    pub avg_bytes: u32,
    #[n(3)]
    pub max_bytes: u32,
}

impl Default for ChunkParams {
    fn default() -> Self {
        Self {
            split_bytes: limits::SPLIT_BYTES,
            min_bytes: limits::CHUNK_MIN_BYTES,
            avg_bytes: limits::CHUNK_AVG_BYTES,
            max_bytes: limits::CHUNK_MAX_BYTES,
        }
    }
}

impl ChunkParams {
    /// The object that a file's content is looked up as.
    pub fn content_kind(&self, size: u64) -> ObjectKind {
        if size < self.split_bytes { ObjectKind::Chunk } else { ObjectKind::Recipe }
    }
}

/// The chunks of a file that was cut, in order.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Recipe {
    #[n(0)]
    pub chunks: Vec<ChunkRef>,
}

/// One chunk of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ChunkRef {
    #[n(0)]
    pub hash: Hash,
    #[n(1)]
    pub bytes: u32,
}

/// Some of the chunks that a file is cut into, before its recipe is known.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Stretch {
    /// The whole file's.
    #[n(0)]
    pub content: Hash,
    /// The first one's number in the file.
    #[n(1)]
    pub first: u64,
    #[n(2)]
    pub chunks: Vec<ChunkRef>,
}

/// The names of the chunks in these, in order.
pub fn hashes_in(stretches: &[Stretch]) -> Vec<Hash> {
    stretches.iter().flat_map(|stretch| &stretch.chunks).map(|chunk| chunk.hash).collect()
}

impl Recipe {
    /// Its encoding.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("encoding into a Vec can't fail")
    }

    /// Takes an encoding from outside.
    pub fn decode(bytes: &[u8]) -> Result<Self, minicbor::decode::Error> {
        minicbor::decode(bytes)
    }

    /// Size of the file that it makes.
    pub fn size(&self) -> u64 {
        self.chunks.iter().map(|c| u64::from(c.bytes)).sum()
    }
}
