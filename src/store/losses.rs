//! What was lost of what is committed: manifests that name something which can't be had any more, as the last repair found it.
//!
//! A committed manifest is otherwise taken as proof that all it names is here. One that is listed isn't: whoever commits it again is asked for what is
//! missing, and when all of it is here the manifest is taken off. The file is derived: `verify --repair` finds the same again.
//!
//! ```text
//! lost   0  magic "RFSx"   4
//!        4  BLAKE3 of what follows, first 16 bytes
//!       20  CBOR: map of manifest's hash to array of arrays: content's hash, size. No content: the manifest itself is lost
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
};

use tokio::sync::watch;

use super::{
    Store, StoreError,
    check::decode_recipe,
    index::Key,
    layout::{Layout, check16},
};
use crate::{
    chunk::{ChunkParams, ObjectKind},
    durable::{self, Disk},
    ids::Hash,
    manifest::Manifest,
};

const MAGIC: &[u8; 4] = b"RFSx";

/// By manifest, the contents that can't be had whole; of a manifest that is lost itself, none.
pub(crate) type Lost = BTreeMap<Hash, Vec<(Hash, u64)>>;

/// The list.
#[derive(Debug)]
pub(super) struct Losses {
    /// `None`: the file can't be read, so that no manifest proves anything.
    known: Mutex<Option<Lost>>,
    /// Counts when more may be known of what is lacking.
    told: watch::Sender<u64>,
}

impl Losses {
    pub fn open(disk: &dyn Disk, layout: &Layout) -> Result<Self, StoreError> {
        let known = read(disk, layout)?;
        match &known {
            None => tracing::error!(
                "the list of what was lost is damaged; `resultsfs verify --store --repair` makes it again"
            ),
            Some(lost) if lost.is_empty() => {}
            Some(lost) => tracing::warn!(manifests = lost.len(), "something of what is committed was lost"),
        }
        Ok(Self { known: Mutex::new(known), told: watch::Sender::new(0) })
    }

    fn known(&self) -> MutexGuard<'_, Option<Lost>> {
        self.known.lock().expect("nothing panics while it holds the losses' lock")
    }

    /// How many manifests are listed.
    pub fn count(&self) -> Option<usize> {
        self.known().as_ref().map(Lost::len)
    }

    /// Whether what this manifest names may be missing.
    pub fn has(&self, manifest: &Hash) -> bool {
        self.known().as_ref().is_none_or(|lost| lost.contains_key(manifest))
    }
}

/// The list in the file; `None` if that is damaged.
pub(crate) fn read(disk: &dyn Disk, layout: &Layout) -> Result<Option<Lost>, StoreError> {
    let Some(file) = durable::there(disk.open_read(&layout.losses()))? else { return Ok(Some(Lost::new())) };
    let bytes = durable::read_all(&*file)?;
    let body = bytes.strip_prefix(MAGIC).and_then(<[u8]>::split_first_chunk::<16>);
    let body = body.filter(|(check, body)| check16(&[body]) == **check);
    Ok(body.and_then(|(_, body)| minicbor::decode::<Lost>(body).ok()))
}

fn write(disk: &dyn Disk, layout: &Layout, lost: &Lost) -> Result<(), StoreError> {
    if lost.is_empty() {
        return match durable::there(disk.remove(&layout.losses()))? {
            None => Ok(()),
            Some(()) => Ok(disk.sync_dir(layout.dir())?),
        };
    }
    let body = minicbor::to_vec(lost).expect("encoding into a Vec can't fail");
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&check16(&[&body]));
    bytes.extend_from_slice(&body);
    Ok(durable::write_atomic_on(disk, &layout.losses(), &bytes)?)
}

impl Store {
    /// From now on this is what was lost.
    pub(crate) fn set_losses(&self, lost: Lost) -> Result<(), StoreError> {
        let mut known = self.losses.known();
        if known.as_ref() != Some(&lost) {
            write(&*self.disk, &self.layout, &lost)?;
            *known = Some(lost);
        }
        Ok(())
    }

    /// What was lost, and isn't back: manifests that lack something, and the objects; at most `max` hashes.
    pub fn lost(&self, max: usize) -> Result<(Vec<Hash>, Vec<Key>), StoreError> {
        let lost = self.losses.known().clone().unwrap_or_default();
        let mut manifests = Vec::new();
        let mut objects: BTreeSet<Key> = BTreeSet::new();
        for (manifest, contents) in lost {
            if manifests.len() + objects.len() >= max {
                break;
            }
            let keys = keys(&self.params(), &manifest, &contents);
            manifests.push(manifest);
            for (key, place) in keys.iter().zip(self.index.get_many(&keys)?) {
                match (key, place) {
                    (_, Some(_)) => {}
                    ((ObjectKind::Recipe, content), None) => objects.extend(self.lacking_of(content)?),
                    (key, None) => _ = objects.insert(*key),
                }
            }
        }
        let room = max.saturating_sub(manifests.len());
        Ok((manifests, objects.into_iter().take(room).collect()))
    }

    /// What a content needs that isn't here: its recipe, or chunks of what calls itself that.
    fn lacking_of(&self, content: &Hash) -> Result<Vec<Key>, StoreError> {
        for candidate in self.index.candidates(content)? {
            let read = self.object_at(ObjectKind::Recipe, content, &candidate);
            let Ok(recipe) = read.and_then(|bytes| decode_recipe(content, &bytes)) else { continue };
            let keys: Vec<Key> = recipe.chunks.iter().map(|c| (ObjectKind::Chunk, c.hash)).collect();
            let places = self.index.get_many(&keys)?;
            return Ok(keys
                .into_iter()
                .zip(places)
                .filter(|(_, at)| at.is_none())
                .map(|(key, _)| key)
                .collect());
        }
        Ok(vec![(ObjectKind::Recipe, *content)])
    }

    /// Somebody has sent of what was lost what he has. Of a manifest that is here again it is known now what else it lacks, and of a recipe.
    pub fn returned(&self) -> Result<(), StoreError> {
        if self.losses.known().as_ref().is_some_and(Lost::is_empty) {
            return Ok(());
        }
        let _inside = self.gate.enter();
        self.settle_losses()?;
        self.losses.told.send_modify(|times| *times += 1);
        Ok(())
    }

    /// Tells when more may be known of what is lacking.
    pub fn watch_losses(&self) -> watch::Receiver<u64> {
        self.losses.told.subscribe()
    }

    /// Somebody brings a manifest again of which something was lost: if all of it is here now, that is made durable, and it is taken off, with all others
    /// that lack nothing any more.
    pub(super) fn restored(&self, manifest: &Hash) -> Result<(), StoreError> {
        if !self.losses.has(manifest) {
            return Ok(());
        }
        self.check_manifest(manifest).map_err(|e| self.lacking(e))?;
        self.settle_losses()
    }

    /// Takes off what lacks nothing any more, once that is durable, and what nobody needs any more. The caller is inside the gate.
    fn settle_losses(&self) -> Result<(), StoreError> {
        let Some(lost) = self.losses.known().clone() else { return self.checkpoint() };
        let params = self.params();
        let mut left = Lost::new();
        for (manifest, contents) in &lost {
            // All its commits may have been given up since.
            if self.catalog.with_manifest(manifest)?.is_none() {
                continue;
            }
            let keys = keys(&params, manifest, contents);
            // Recipes are proven by the full check, which isn't begun in vain.
            let chunks: Vec<Key> = keys.into_iter().filter(|key| key.0 != ObjectKind::Recipe).collect();
            let is_back = !self.index.get_many(&chunks)?.contains(&None) && self.is_whole(manifest)?;
            if !is_back {
                let lacking =
                    if contents.is_empty() { self.lacking_contents(manifest)? } else { contents.clone() };
                left.insert(*manifest, lacking);
            }
        }
        match left != lost {
            true => {
                self.checkpoint()?;
                self.set_losses(left)
            }
            false => Ok(()),
        }
    }

    /// What a manifest names that isn't here; nothing if that can't be told.
    fn lacking_contents(&self, manifest: &Hash) -> Result<Vec<(Hash, u64)>, StoreError> {
        let Some(bytes) = self.read_object(ObjectKind::Manifest, manifest)? else { return Ok(Vec::new()) };
        let decoded =
            Manifest::decode(&bytes).map_err(|error| StoreError::Manifest { hash: *manifest, error })?;
        let params = self.params();
        let mut lacking = Vec::new();
        for (content, size) in decoded.contents() {
            let is_here = match params.content_kind(size) {
                ObjectKind::Recipe => self.place(ObjectKind::Recipe, &content)?.is_some(),
                kind => size == 0 || self.index.get(kind, &content)?.is_some(),
            };
            if !is_here {
                lacking.push((content, size));
            }
        }
        Ok(lacking)
    }

    fn is_whole(&self, manifest: &Hash) -> Result<bool, StoreError> {
        match self.check_manifest(manifest) {
            Ok(_) => Ok(true),
            Err(error) if error.is_callers() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What must be there for the manifest to lack nothing.
fn keys(params: &ChunkParams, manifest: &Hash, contents: &[(Hash, u64)]) -> Vec<Key> {
    let contents = contents.iter().map(|(hash, size)| (params.content_kind(*size), *hash));
    contents.chain([(ObjectKind::Manifest, *manifest)]).collect()
}
