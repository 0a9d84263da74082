//! What isn't written yet.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::place::{Key, Location};
use crate::ids::Hash;

/// Candidates kept for one content: an honest one is among the newest, since its commit follows at once.
pub const CANDIDATES_MAX: usize = 8;

/// What isn't in the database yet.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub objects: HashMap<Key, Location>,
    pub candidates: HashMap<Hash, Vec<Location>>,
    /// Candidates that turned out to be false, or that aren't needed any more.
    pub dropped: Vec<(Hash, Location)>,
    /// How far each pack is in it.
    pub packs: BTreeMap<u32, u64>,
    /// Objects that are to be forgotten, if that is still their place when this is written.
    pub gone: HashMap<Key, Location>,
    /// Packs that will be gone.
    pub packs_gone: Vec<u32>,
}

impl Changes {
    /// These, and then `newer`.
    pub fn then(mut self, newer: Self) -> Self {
        self.gone.retain(|key, _| !newer.objects.contains_key(key));
        self.gone.extend(newer.gone);
        self.objects.extend(newer.objects);
        let is_back = |hash: &Hash, place: &Location| {
            newer.candidates.get(hash).is_some_and(|back| back.iter().any(|b| b.same_place(place)))
        };
        self.dropped.retain(|(hash, place)| !is_back(hash, place));
        for (hash, places) in newer.candidates {
            let of = self.candidates.entry(hash).or_default();
            of.splice(0..0, places);
            of.truncate(CANDIDATES_MAX);
        }
        self.dropped.extend(newer.dropped);
        self.packs.extend(newer.packs);
        self.packs_gone.extend(newer.packs_gone);
        self
    }

    pub fn len(&self) -> usize {
        self.objects.len() + self.candidates.len() + self.dropped.len() + self.gone.len()
    }
}

#[derive(Debug, Default)]
pub struct Pending {
    /// Grows.
    pub fresh: Changes,
    /// Being written.
    pub flushing: Option<Arc<Changes>>,
}

impl Pending {
    pub fn layers(&self) -> impl Iterator<Item = &Changes> {
        [Some(&self.fresh), self.flushing.as_deref()].into_iter().flatten()
    }
}
