//! Marking: from the roots down to the chunks.

use super::{
    super::{Store, StoreError, check::decode_recipe, index::Key},
    OnStep, Step,
    live::Live,
};
use crate::{
    chunk::ObjectKind,
    ids::{Hash, Seq},
    manifest::Manifest,
};

/// A marking under way. It can be caught up with what has come since as often as one likes.
pub(super) struct Marking<'a> {
    store: &'a Store,
    pub live: Live,
    /// Records that are marked.
    upto: Seq,
}

/// What to do about something that can't be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    /// It was promised, and nobody can say what it needs.
    Stops,
    /// It promises nothing.
    IsPassedOver,
}

impl<'a> Marking<'a> {
    pub fn new(store: &'a Store) -> Self {
        Self { store, live: Live::default(), upto: Seq(0) }
    }

    /// Marks what isn't yet: the roots behind those that were, the snapshots in their slots, and what is leased.
    pub fn catch_up(&mut self, on_step: &mut OnStep<'_>) -> Result<(), StoreError> {
        let total = self.store.head().seq.0;
        while let Some((upto, roots)) = self.store.roots_after(self.upto)? {
            self.manifests(roots, Unreadable::Stops)?;
            self.upto = upto;
            on_step(Step::Progress { phase: "mark", done: upto.0, total: total.max(upto.0) });
        }
        let slots = self.store.slots().all();
        self.manifests(slots.into_iter().map(|slot| slot.manifest).collect(), Unreadable::IsPassedOver)?;
        let kept = self.store.leases.kept(self.store.writer().end(), self.store.clock.now_ms());
        kept.chunks.into_iter().for_each(|chunk| self.live.short(chunk));
        for (kind, hash) in kept.named {
            match kind {
                ObjectKind::Manifest => self.manifests(vec![hash], Unreadable::IsPassedOver)?,
                _ => self.recipe(&hash, Unreadable::IsPassedOver)?,
            }
        }
        self.live.settle();
        Ok(())
    }

    /// Marks these in the order in which they lie in the packs.
    fn manifests(&mut self, mut hashes: Vec<Hash>, unreadable: Unreadable) -> Result<(), StoreError> {
        hashes.retain(|hash| !self.live.manifests.contains(hash));
        let keys: Vec<Key> = hashes.iter().map(|hash| (ObjectKind::Manifest, *hash)).collect();
        let places = self.store.index.get_many(&keys)?;
        let mut wanted: Vec<_> = hashes.into_iter().zip(places).collect();
        wanted.sort_by_key(|(_, place)| place.map(|place| (place.pack, place.offset, place.number)));
        for (hash, _) in wanted {
            if !self.live.manifests.contains(&hash) {
                self.manifest(&hash, unreadable)?;
            }
        }
        Ok(())
    }

    fn manifest(&mut self, hash: &Hash, unreadable: Unreadable) -> Result<(), StoreError> {
        let read = self.store.read_object(ObjectKind::Manifest, hash);
        let Some(bytes) = readable(ObjectKind::Manifest, hash, read, unreadable)? else { return Ok(()) };
        let manifest = Manifest::decode(&bytes).map_err(|error| StoreError::Manifest { hash: *hash, error });
        let Some(manifest) = readable(ObjectKind::Manifest, hash, manifest.map(Some), unreadable)? else {
            return Ok(());
        };
        for (content, size) in manifest.contents() {
            match self.store.params().content_kind(size) {
                ObjectKind::Chunk => self.live.chunk(&content),
                _ => self.recipe(&content, unreadable)?,
            }
        }
        self.live.manifests.insert(*hash);
        Ok(())
    }

    fn recipe(&mut self, hash: &Hash, unreadable: Unreadable) -> Result<(), StoreError> {
        if self.live.recipes.contains(hash) {
            return Ok(());
        }
        // One that isn't proven (the index was made again) is proven with this. Not through the gate: it may be us who have closed it.
        let read = self.store.prove_recipe(hash).and_then(|place| {
            let store = self.store;
            store.read_at(ObjectKind::Recipe, hash, place, |place| {
                store.object_at(ObjectKind::Recipe, hash, place)
            })
        });
        let Some(bytes) = readable(ObjectKind::Recipe, hash, read, unreadable)? else { return Ok(()) };
        decode_recipe(hash, &bytes)?.chunks.iter().for_each(|chunk| self.live.chunk(&chunk.hash));
        self.live.recipes.insert(*hash);
        Ok(())
    }
}

/// What was read; `None`: it can't be, and that doesn't matter.
fn readable<T>(
    kind: ObjectKind,
    hash: &Hash,
    read: Result<Option<T>, StoreError>,
    unreadable: Unreadable,
) -> Result<Option<T>, StoreError> {
    match read {
        Ok(Some(read)) => Ok(Some(read)),
        _ if unreadable == Unreadable::IsPassedOver => Ok(None),
        Ok(None) => {
            let why = Box::new(StoreError::Missing { kind, hash: *hash });
            Err(StoreError::NotMarked { why })
        }
        Err(why) => Err(StoreError::NotMarked { why: Box::new(why) }),
    }
}
