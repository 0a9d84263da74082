//! What is needed, and what therefore isn't.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Mutex,
};

use super::super::{
    catalog::PackPoint,
    index::{Key, Location},
    leases::short,
};
use crate::{chunk::ObjectKind, ids::Hash};

/// Chunks that are gathered before they are sorted in.
const GATHERED: usize = 1 << 20;

/// All that is reached from the roots. Chunks take 8 bytes each (at times 16), by the beginnings of their hashes: one that shares it with a needed one
/// stays, too. Recipes and manifests take some 50 bytes each: of them more depends than their own bytes.
#[derive(Debug, Default)]
pub(in crate::store) struct Live {
    /// Ascending.
    sorted: Vec<u64>,
    gathered: Vec<u64>,
    pub(super) recipes: HashSet<Hash>,
    pub(super) manifests: HashSet<Hash>,
}

impl Live {
    pub(super) fn chunk(&mut self, hash: &Hash) {
        self.short(short(hash));
    }

    pub(super) fn short(&mut self, short: u64) {
        self.gathered.push(short);
        if self.gathered.len() >= GATHERED.max(self.sorted.len()) {
            self.sorted.append(&mut self.gathered);
            self.sorted.sort_unstable();
            self.sorted.dedup();
        }
    }

    /// Must be called after the last was added, before it is asked.
    pub(super) fn settle(&mut self) {
        self.gathered.sort_unstable();
        self.gathered.dedup();
    }

    pub(super) fn has(&self, (kind, hash): &Key) -> bool {
        match kind {
            ObjectKind::Chunk => {
                let short = short(hash);
                self.sorted.binary_search(&short).is_ok() || self.gathered.binary_search(&short).is_ok()
            }
            ObjectKind::Recipe => self.recipes.contains(hash),
            ObjectKind::Manifest => self.manifests.contains(hash),
        }
    }
}

/// What is as good as gone while a `gc` takes it away: in the packs that go, all that isn't needed; and every recipe that isn't, wherever
/// it is, since a proven recipe is somebody's word for its chunks.
#[derive(Debug)]
pub(in crate::store) struct Doomed {
    pub(super) live: Live,
    /// Packs that go.
    pub(super) packs: BTreeSet<u32>,
    /// Recipes from here on came later: they are proven by what is left.
    pub(super) before: PackPoint,
    /// Recipes that were proven since, likewise.
    pub(super) spared: Mutex<HashSet<Hash>>,
}

impl Doomed {
    /// All that is in these packs, and every proven recipe before this point but those that are `spared`.
    pub fn packs(packs: BTreeSet<u32>, before: PackPoint, spared: HashSet<Hash>) -> Self {
        Self { live: Live::default(), packs, before, spared: Mutex::new(spared) }
    }

    pub fn has(&self, key: &Key, place: &Location) -> bool {
        match key.0 {
            ObjectKind::Recipe => {
                let is_spared = || self.spared().contains(&key.1) && !self.takes(place.pack);
                place.point() < self.before && !self.live.has(key) && !is_spared()
            }
            ObjectKind::Chunk | ObjectKind::Manifest => self.takes(place.pack) && !self.live.has(key),
        }
    }

    /// Whether a pack goes.
    pub fn takes(&self, pack: u32) -> bool {
        self.packs.contains(&pack)
    }

    /// A recipe was proven by what is left.
    pub fn spare(&self, recipe: Hash) {
        self.spared().insert(recipe);
    }

    fn spared(&self) -> std::sync::MutexGuard<'_, HashSet<Hash>> {
        self.spared.lock().expect("nothing panics while it holds the spared recipes' lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_there() {
        let mut live = Live::default();
        let chunk = |n: usize| Hash::of(&n.to_le_bytes());
        (0..GATHERED + 10).for_each(|n| live.chunk(&chunk(n % 5000)));
        live.settle();
        assert_eq!(live.sorted.len(), 5000);
        assert!((0..5000).all(|n| live.has(&(ObjectKind::Chunk, chunk(n)))));
        assert!(!live.has(&(ObjectKind::Chunk, chunk(5000))));
        assert!(!live.has(&(ObjectKind::Manifest, chunk(1))), "of its own kind only");
    }
}
