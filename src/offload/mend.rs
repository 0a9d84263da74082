//! Mending: a committed file of which the spool has other bytes than were committed, though its size and times say that nobody changed it. That is a
//! disk's fault, and the store has what it was.
//!
//! Order: what was committed is built beside the spool, checked and synced; nobody is in the unit and nobody gets in (frozen), and the file is still the
//! one that was found; its bytes get a name in quarantine, since they are never deleted; then the new file is renamed over it, and its other names are
//! made to lead there. A crash in between leaves the old file or the new one, under each name. The journal isn't concerned: the spool is again what it
//! says.

use std::{
    io,
    path::{Path, PathBuf},
};

use fs_err as fs;

use super::{
    engine::OnEvicted,
    evict::keep_times,
    recall::{Copy, RecallError, Recaller, Scratch},
    tree::attrs_of,
};
use crate::{
    durable,
    ids::{Hash, RelPath, UnitId},
    journal::State,
    manifest::{Body, Entry, Manifest},
};

impl Recaller<'_> {
    /// Puts the committed file at `path`, below the unit's root, in the place of what the spool has; says where that is now. Nothing, if
    /// it is what was committed, as it is when another name of it was mended.
    pub fn mend(
        &self,
        unit: &UnitId,
        path: &RelPath,
        quarantine: &Path,
        on_evicted: &OnEvicted,
    ) -> Result<Option<PathBuf>, RecallError> {
        let busy = || RecallError::Busy { unit: unit.clone() };
        let fail = |e: io::Error| RecallError::Io { path: path.clone(), source: e };
        let record = self.journal.get(unit).filter(|record| record.state == State::Committed);
        let record = record.ok_or_else(busy)?;
        let manifest = self.manifest(&record)?;
        let entry = first_name(&manifest, path).ok_or_else(busy)?;
        let place = self.place(unit, &entry.path).map_err(fail)?;
        let (size, content) = manifest.file_of(entry).ok_or_else(busy)?;
        if is_content(&place, &content) {
            return Ok(None);
        }
        let scratch = Scratch::new(self.tmp_dir).map_err(fail)?;
        let dir = scratch.tree();
        Copy { manifest: &manifest, gone: &Default::default(), contents: self.contents, dir: &dir }
            .make_alone(entry)?;
        let new = entry.path.under(&dir);
        fs::File::open(&new).and_then(|file| file.sync_all()).map_err(fail)?;

        let _frozen = self.activity.try_freeze(unit).ok_or_else(busy)?;
        let now = self.journal.get(unit).ok_or_else(busy)?;
        if (now.state, now.generation, now.committed) != (record.state, record.generation, record.committed) {
            return Err(busy());
        }
        let found = fs::symlink_metadata(&place).map_err(fail)?;
        if attrs_of(&found) != entry.attrs || size != found.len() {
            return Err(busy());
        }
        let kept = keep(&place, quarantine).map_err(fail)?;
        self.put_in_place(unit, &manifest, entry, &new).map_err(fail)?;
        on_evicted(unit);
        tracing::warn!(%unit, %path, kept = %kept.display(), "brought back from the store: its bytes were not those that were committed");
        Ok(Some(kept))
    }

    fn place(&self, unit: &UnitId, path: &RelPath) -> io::Result<PathBuf> {
        Ok(self.spool.place(&unit.root.append(path).map_err(io::Error::other)?))
    }

    fn put_in_place(&self, unit: &UnitId, manifest: &Manifest, entry: &Entry, new: &Path) -> io::Result<()> {
        let place = self.place(unit, &entry.path)?;
        let parent = |place: &Path| place.parent().expect("it is below the spool").to_owned();
        keep_times(&parent(&place), || fs::rename(new, &place))?;
        for other in manifest.entries() {
            if !matches!(&other.body, Body::Link { to } if *to == entry.path) {
                continue;
            }
            let link = self.place(unit, &other.path)?;
            keep_times(&parent(&link), || {
                fs::hard_link(&place, new)?;
                fs::rename(new, &link)
            })?;
            durable::sync_dir(&parent(&link))?;
        }
        durable::sync_dir(&parent(&place))
    }
}

/// Where the manifest describes the file of which `path` is a name.
fn first_name<'a>(manifest: &'a Manifest, path: &RelPath) -> Option<&'a Entry> {
    let entry = manifest.get(path)?;
    match &entry.body {
        Body::File { .. } => Some(entry),
        Body::Link { to } => manifest.get(to),
        _ => None,
    }
}

/// Whether the file can be read, and is this.
fn is_content(place: &Path, content: &Hash) -> bool {
    let mut hasher = blake3::Hasher::new();
    let read = std::fs::File::open(place).and_then(|file| hasher.update_reader(file).map(drop));
    read.is_ok() && Hash::from(hasher.finalize()) == *content
}

/// Gives what is at `place` another name in `quarantine`, durably.
fn keep(place: &Path, quarantine: &Path) -> io::Result<PathBuf> {
    durable::Disk::create_dir(&durable::RealDisk, quarantine)?;
    let name = place.file_name().expect("a file has a name").to_string_lossy().into_owned();
    for number in 1u32.. {
        let kept = quarantine.join(format!("{name}.{number}"));
        match std::fs::hard_link(place, &kept) {
            Ok(()) => {
                durable::sync_dir(quarantine)?;
                return Ok(kept);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", kept.display()))),
        }
    }
    unreachable!("some number is free")
}
