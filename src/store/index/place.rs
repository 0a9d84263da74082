//! Names and places of objects.

use super::run::{self, RawKey};
use crate::{
    chunk::{ObjectKind, block::TableEntry},
    ids::Hash,
    store::{catalog::PackPoint, pack::PackedBlock},
};

/// Where an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    pub pack: u32,
    /// Where its block begins.
    pub offset: u64,
    pub block_bytes: u32,
    /// Its line in the block's table.
    pub number: u32,
    /// The object's raw bytes; of a recipe, the size of the file that it makes (0 = not known yet).
    pub bytes: u64,
}

/// An object's name.
pub type Key = (ObjectKind, Hash);

impl Location {
    pub const BYTES: usize = 28;

    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; 28];
        out[..4].copy_from_slice(&self.pack.to_le_bytes());
        out[4..12].copy_from_slice(&self.offset.to_le_bytes());
        out[12..16].copy_from_slice(&self.block_bytes.to_le_bytes());
        out[16..20].copy_from_slice(&self.number.to_le_bytes());
        out[20..].copy_from_slice(&self.bytes.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Self {
            pack: u32_at(0),
            offset: u64_at(4),
            block_bytes: u32_at(12),
            number: u32_at(16),
            bytes: u64_at(20),
        }
    }

    pub fn candidate_key(&self, hash: &Hash) -> [u8; 48] {
        let mut out = [0; 48];
        out[..32].copy_from_slice(&hash.0);
        out[32..36].copy_from_slice(&self.pack.to_be_bytes());
        out[36..44].copy_from_slice(&self.offset.to_be_bytes());
        out[44..].copy_from_slice(&self.number.to_be_bytes());
        out
    }

    pub fn of_candidate(key: &[u8; 48], block_bytes: u32) -> Self {
        Self {
            pack: u32::from_be_bytes(key[32..36].try_into().expect("four bytes")),
            offset: u64::from_be_bytes(key[36..44].try_into().expect("eight bytes")),
            block_bytes,
            number: u32::from_be_bytes(key[44..].try_into().expect("four bytes")),
            bytes: 0,
        }
    }

    /// Where its block begins.
    pub fn point(&self) -> PackPoint {
        PackPoint { pack: self.pack, offset: self.offset }
    }

    /// Whether both name the same line of the same block.
    pub fn same_place(&self, other: &Self) -> bool {
        (self.pack, self.offset, self.number) == (other.pack, other.offset, other.number)
    }
}

pub fn encode_key((kind, hash): &Key) -> RawKey {
    let mut out = [0; run::KEY_BYTES];
    out[0] = *kind as u8;
    out[1..].copy_from_slice(&hash.0);
    out
}

pub fn decode_key(bytes: &RawKey) -> Option<Key> {
    let kind = match bytes[0] {
        0 => ObjectKind::Chunk,
        1 => ObjectKind::Recipe,
        2 => ObjectKind::Manifest,
        _ => return None,
    };
    Some((kind, Hash(bytes[1..].try_into().expect("32 bytes"))))
}

/// An object's place by its line in a block's table.
pub fn location(pack: u32, block: &PackedBlock, number: usize, entry: &TableEntry) -> Location {
    Location {
        pack,
        offset: block.offset,
        block_bytes: block.bytes,
        number: number as u32,
        bytes: if entry.kind == ObjectKind::Recipe { 0 } else { u64::from(entry.bytes) },
    }
}
