//! Manifests: compressed in the database, decoded in a small memory.

use std::{collections::HashMap, io::Read as _, sync::Arc};

use crate::{ids::Hash, limits, manifest::Manifest};

/// Manifests are many small ones that look alike; higher levels gain little on them.
const LEVEL: i32 = 3;

/// Decoded manifests in memory: a listing of a job dir needs that job's few, over and over.
const DECODED_MAX: usize = 256;
/// Entries of all of them; 200 bytes each.
const DECODED_ENTRIES_MAX: usize = 200_000;

/// The stored form of an encoding.
pub(super) fn pack(encoding: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(encoding, LEVEL).expect("compressing memory to memory fails for want of memory only")
}

/// The manifest in the stored form `packed`, if it is the one named `hash`. Never inflates beyond a manifest's limit.
pub(super) fn unpack(hash: &Hash, packed: &[u8]) -> Result<Manifest, String> {
    let mut encoding = Vec::new();
    let limit = limits::MANIFEST_BYTES as u64 + 1;
    zstd::stream::read::Decoder::new(packed)
        .and_then(|decoder| decoder.take(limit).read_to_end(&mut encoding))
        .map_err(|e| format!("manifest {hash}: {e}"))?;
    if Hash::of(&encoding) != *hash {
        return Err(format!("manifest {hash}: its bytes hash to something else"));
    }
    Manifest::decode(&encoding).map_err(|e| format!("manifest {hash}: {e}"))
}

/// The decoded manifests used last.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    manifests: HashMap<Hash, (u64, Arc<Manifest>)>,
    entries: usize,
    tick: u64,
}

impl Decoded {
    /// The manifest, if it is here.
    pub fn get(&mut self, hash: &Hash) -> Option<Arc<Manifest>> {
        self.tick += 1;
        let (used, manifest) = self.manifests.get_mut(hash)?;
        *used = self.tick;
        Some(manifest.clone())
    }

    /// Keeps `manifest`, and drops those unused longest beyond the bounds; a manifest beyond them alone isn't kept.
    pub fn put(&mut self, hash: Hash, manifest: Arc<Manifest>) {
        let entries = manifest.entries().len();
        if entries > DECODED_ENTRIES_MAX || self.manifests.contains_key(&hash) {
            return;
        }
        while self.manifests.len() >= DECODED_MAX || self.entries + entries > DECODED_ENTRIES_MAX {
            self.drop_oldest();
        }
        self.tick += 1;
        self.entries += entries;
        self.manifests.insert(hash, (self.tick, manifest));
    }

    fn drop_oldest(&mut self) {
        let oldest = self.manifests.iter().min_by_key(|(_, (used, _))| *used).map(|(hash, _)| *hash);
        let oldest = oldest.expect("the bounds are above one manifest's, so there is another");
        let (_, manifest) = self.manifests.remove(&oldest).expect("it was found here");
        self.entries -= manifest.entries().len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Arc<Manifest> {
        Arc::new(Manifest::new(Vec::new(), Vec::new(), Vec::new(), Vec::new()).expect("an empty manifest"))
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_what_is_used() {
        let mut decoded = Decoded::default();
        let hash = |i: usize| Hash::of(&i.to_le_bytes());
        for i in 0..2 * DECODED_MAX {
            decoded.put(hash(i), empty());
            assert!(decoded.get(&hash(0)).is_some(), "used all the time, dropped at {i}");
        }
        assert_eq!(decoded.manifests.len(), DECODED_MAX);
        assert!(decoded.get(&hash(1)).is_none());
    }

    #[test]
    fn only_the_manifest_that_was_asked_for_comes_out() {
        let encoding = empty().encode();
        let packed = pack(&encoding);
        assert!(unpack(&Hash::of(&encoding), &packed).is_ok());
        assert!(unpack(&Hash::of(b"another"), &packed).is_err());
        assert!(unpack(&Hash::of(&encoding), b"no zstd").is_err());
        assert!(unpack(&Hash::of(b"x"), &pack(b"x")).is_err());
    }
}
