//! What must be true before a layer is entered in the catalog. Runs in the thread of whoever commits, so that many run side by side.

use std::sync::Arc;

use super::{
    Store, StoreError,
    blocks::Blocks,
    index::{Key, Location},
};
use crate::{
    chunk::{ChunkRef, ObjectKind, Recipe, block::Block},
    ids::{Hash, decoding_failed},
    manifest::Manifest,
};

/// Objects looked up at a time.
const BATCH: usize = 4096;
/// Unproven recipes of one content that are tried.
const TRIES: usize = 8;

/// How a block is opened.
type Opener = fn(&Blocks, &Location) -> Result<Arc<Block>, StoreError>;

/// What a checked manifest adds up to.
#[derive(Clone, Copy, Debug)]
pub struct Checked {
    pub bytes: u64,
    pub entries: u64,
}

impl Store {
    /// The manifest is here, obeys every rule, and everything that it names is here and is what it is called.
    pub(super) fn check_manifest(&self, hash: &Hash) -> Result<Checked, StoreError> {
        if let Some(record) = self.known_manifest(hash)?
            && let Some(commit) = record.commit()
        {
            return Ok(Checked { bytes: commit.bytes, entries: commit.entries });
        }
        let missing = StoreError::Missing { kind: ObjectKind::Manifest, hash: *hash };
        let bytes = self.read_object(ObjectKind::Manifest, hash)?.ok_or(missing)?;
        let manifest =
            Manifest::decode(&bytes).map_err(|error| StoreError::Manifest { hash: *hash, error })?;
        drop(bytes);
        let contents: Vec<(Hash, u64)> = manifest.contents().collect();
        contents.chunks(BATCH).try_for_each(|batch| self.check_contents(batch))?;
        let bytes = contents.iter().try_fold(0u64, |sum, (_, size)| sum.checked_add(*size));
        let bytes = bytes.ok_or(StoreError::Text("the sum of the sizes"))?;
        Ok(Checked { bytes, entries: manifest.entries().len() as u64 })
    }

    fn check_contents(&self, contents: &[(Hash, u64)]) -> Result<(), StoreError> {
        let keys: Vec<Key> =
            contents.iter().map(|(h, size)| (self.params().content_kind(*size), *h)).collect();
        let places = self.index.get_many(&keys)?;
        for (((kind, hash), (_, size)), place) in keys.into_iter().zip(contents).zip(places) {
            let actual = match (kind, place) {
                (_, Some(place)) => place.bytes,
                // An empty file has nothing to send.
                (ObjectKind::Chunk, None) if *size == 0 && hash == Hash::of(b"") => 0,
                (ObjectKind::Recipe, None) => self.prove_recipe(&hash)?.bytes,
                _ => return Err(StoreError::Missing { kind, hash }),
            };
            if actual != *size {
                return Err(StoreError::Size { kind, hash, stated: *size, actual });
            }
        }
        Ok(())
    }

    /// Finds among what was sent as this content's recipe one that is true. False ones are forgotten.
    pub(super) fn prove_recipe(&self, hash: &Hash) -> Result<Location, StoreError> {
        if let Some(proven) = self.index.get(ObjectKind::Recipe, hash)? {
            return Ok(proven);
        }
        let mut error = StoreError::Missing { kind: ObjectKind::Recipe, hash: *hash };
        for candidate in self.index.candidates(hash)?.into_iter().take(TRIES) {
            match self.try_recipe_ahead(hash, &candidate) {
                Ok(size) => {
                    self.index.prove(*hash, candidate, size)?;
                    return Ok(Location { bytes: size, ..candidate });
                }
                Err(e @ (StoreError::Recipe { .. } | StoreError::Size { .. })) => {
                    self.index.reject(*hash, candidate);
                    error = e;
                }
                // Its chunks may yet come.
                Err(e @ StoreError::Missing { .. }) => error = e,
                Err(e) => return Err(e),
            }
        }
        Err(error)
    }

    /// [`Store::try_recipe`], without reading what was hashed when it arrived.
    fn try_recipe_ahead(&self, hash: &Hash, place: &Location) -> Result<u64, StoreError> {
        let recipe = decode_recipe(hash, &self.object_at(ObjectKind::Recipe, hash, place)?)?;
        match self.is_proven_ahead(hash, &recipe)? {
            true => Ok(recipe.size()),
            false => self.try_recipe(hash, place),
        }
    }

    /// The size of the file that the recipe at `place` makes, if that is the content `hash`.
    pub(crate) fn try_recipe(&self, hash: &Hash, place: &Location) -> Result<u64, StoreError> {
        let bytes = self.object_at(ObjectKind::Recipe, hash, place)?;
        let recipe = decode_recipe(hash, &bytes)?;
        if self.content_of(&recipe, Blocks::open_unproven)? == *hash {
            return Ok(recipe.size());
        }
        // Is it the recipe that is wrong, or what the disk gives of its chunks? That is found out by looking at each.
        self.content_of(&recipe, Blocks::open)?;
        Err(StoreError::Recipe { hash: *hash, why: "its chunks don't make this content".into() })
    }

    /// The hash of what a recipe makes.
    fn content_of(&self, recipe: &Recipe, open: Opener) -> Result<Hash, StoreError> {
        let mut hasher = blake3::Hasher::new();
        let mut at_hand = None;
        for chunks in recipe.chunks.chunks(BATCH) {
            let places = self.places_of(chunks)?;
            self.hash_chunks(chunks, places, open, &mut at_hand, &mut hasher)?;
        }
        Ok(hasher.finalize().into())
    }

    /// Hashes chunks that are at these places, the one at hand last among them.
    pub(super) fn hash_chunks(
        &self,
        chunks: &[ChunkRef],
        places: Vec<Option<Location>>,
        open: Opener,
        at_hand: &mut Option<((u32, u64), Arc<Block>)>,
        hasher: &mut blake3::Hasher,
    ) -> Result<(), StoreError> {
        let kind = ObjectKind::Chunk;
        for (chunk, place) in chunks.iter().zip(places) {
            let place = place.ok_or(StoreError::Missing { kind, hash: chunk.hash })?;
            if place.bytes != u64::from(chunk.bytes) {
                let (stated, actual) = (u64::from(chunk.bytes), place.bytes);
                return Err(StoreError::Size { kind, hash: chunk.hash, stated, actual });
            }
            let read = self.read_at(kind, &chunk.hash, place, |place| {
                let at = (place.pack, place.offset);
                let block = match at_hand {
                    Some((held, block)) if *held == at => block,
                    _ => &at_hand.insert((at, open(&self.blocks, place)?)).1,
                };
                hasher.update(self.bytes_in(block, kind, &chunk.hash, place)?);
                Ok(())
            });
            read?.ok_or(StoreError::Missing { kind, hash: chunk.hash })?;
        }
        Ok(())
    }
}

/// A recipe's encoding, which must be the one that its value has.
pub(crate) fn decode_recipe(hash: &Hash, bytes: &[u8]) -> Result<Recipe, StoreError> {
    let fail = |why: String| StoreError::Recipe { hash: *hash, why };
    let recipe = Recipe::decode(bytes).map_err(|e| fail(decoding_failed(&e)))?;
    if recipe.chunks.is_empty() || recipe.encode() != bytes {
        return Err(fail("it isn't in canonical form".to_owned()));
    }
    Ok(recipe)
}
