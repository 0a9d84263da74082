//! What was lost of what is committed: manifests that name something which can't be had any more, as the last repair found it.
//!
//! A committed manifest is otherwise taken as proof that all it names is here. One that is listed isn't: whoever commits it again is asked for what is
//! missing, and when all of it is here the manifest is taken off. The file is derived: `verify --repair` finds the same again.
//!
//! ```text
//! lost   0  magic "RFSx"   4
//!        4  BLAKE3 of what follows, first 16 bytes
//!       20  CBOR: array of arrays: manifest's hash, array of arrays: content's hash, size. No content: the manifest itself is lost
//! ```

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use super::{
    Store, StoreError,
    index::Key,
    layout::{Layout, check16},
};
use crate::{
    chunk::{ChunkParams, ObjectKind},
    durable::{self, Disk},
    ids::Hash,
};

const MAGIC: &[u8; 4] = b"RFSx";

/// By manifest, the contents that can't be had whole; of a manifest that is lost itself, none.
pub(crate) type Lost = BTreeMap<Hash, Vec<(Hash, u64)>>;

/// The list.
#[derive(Debug)]
pub(super) struct Losses {
    /// `None`: the file can't be read, so that no manifest proves anything.
    known: Mutex<Option<Lost>>,
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
        Ok(Self { known: Mutex::new(known) })
    }

    fn known(&self) -> MutexGuard<'_, Option<Lost>> {
        self.known.lock().expect("nothing panics while it holds the losses' lock")
    }

    /// Whether what this manifest names may be missing.
    pub fn has(&self, manifest: &Hash) -> bool {
        self.known().as_ref().is_none_or(|lost| lost.contains_key(manifest))
    }
}

/// The list in the file; `None` if that is damaged.
pub(crate) fn read(disk: &dyn Disk, layout: &Layout) -> Result<Option<Lost>, StoreError> {
    let file = match disk.open_read(&layout.losses()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(Lost::new())),
        file => file?,
    };
    let bytes = durable::read_all(&*file)?;
    let body = bytes.strip_prefix(MAGIC).and_then(<[u8]>::split_first_chunk::<16>);
    let body = body.filter(|(check, body)| check16(&[body]) == **check);
    Ok(body.and_then(|(_, body)| minicbor::decode::<Lost>(body).ok()))
}

fn write(disk: &Arc<dyn Disk>, layout: &Layout, lost: &Lost) -> Result<(), StoreError> {
    if lost.is_empty() {
        return match disk.remove(&layout.losses()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e.into()),
            Ok(()) => Ok(disk.sync_dir(layout.dir())?),
        };
    }
    let body = minicbor::to_vec(lost).expect("encoding into a Vec can't fail");
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&check16(&[&body]));
    bytes.extend_from_slice(&body);
    Ok(durable::write_atomic_on(&**disk, &layout.losses(), &bytes)?)
}

impl Store {
    /// From now on this is what was lost.
    pub(crate) fn set_losses(&self, lost: Lost) -> Result<(), StoreError> {
        let mut known = self.losses.known();
        if known.as_ref() != Some(&lost) {
            write(&self.disk, &self.layout, &lost)?;
            *known = Some(lost);
        }
        Ok(())
    }

    /// Somebody brings a manifest again of which something was lost: if all of it is here now, that is made durable, and it is taken off, with all others
    /// that lack nothing any more.
    pub(super) fn restored(&self, manifest: &Hash) -> Result<(), StoreError> {
        if !self.losses.has(manifest) {
            return Ok(());
        }
        self.check_manifest(manifest).map_err(|e| self.lacking(e))?;
        self.checkpoint()?;
        let Some(mut lost) = self.losses.known().clone() else { return Ok(()) };
        let params = self.params();
        let mut left = Lost::new();
        lost.remove(manifest);
        for (hash, contents) in lost {
            let keys = keys(&params, &hash, &contents);
            if self.index.get_many(&keys)?.iter().any(Option::is_none) {
                left.insert(hash, contents);
            }
        }
        self.set_losses(left)
    }
}

/// What must be there for the manifest to lack nothing.
fn keys(params: &ChunkParams, manifest: &Hash, contents: &[(Hash, u64)]) -> Vec<Key> {
    let contents = contents.iter().map(|(hash, size)| (params.content_kind(*size), *hash));
    contents.chain([(ObjectKind::Manifest, *manifest)]).collect()
}
