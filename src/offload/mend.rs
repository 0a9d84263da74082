//! Mending: a committed file of which the spool has other bytes than were committed, though its size and times say that nobody changed it. That is a
//! disk's fault, and the store has what it was.
//!
//! Order: what was committed is built beside the spool, checked and synced; nobody is in the unit and nobody gets in (frozen), and the file is still the
//! one that was found; its bytes get a name in quarantine, since they are never deleted; then the new file is renamed over it, and its other names are
//! made to lead there. A crash in between leaves the old file or the new one, under each name. The journal isn't concerned: the spool is again what it
//! says.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use fs_err as fs;

use super::{
    engine::OnEvicted,
    evict::{is_as_described, keep_times},
    recall::{Copy, RecallError, Recaller, Scratch},
};
use crate::{
    durable,
    ids::{RelPath, UnitId},
    journal::State,
    manifest::{Body, Entry, Manifest},
    spool,
};

impl Recaller<'_> {
    /// Puts the committed file at `path`, below the unit's root, in the place of what the spool has under each of its names; says where the first of that
    /// is now. Nothing, if it is what was committed, as it is when another name of it was mended.
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
        let first = first_name(&manifest, path).ok_or_else(busy)?;
        let (_, content) = manifest.file_of(first).ok_or_else(busy)?;
        let is_good = |place: &Path| spool::hash_file(place).is_ok_and(|found| found == content);
        if is_good(&self.place(unit, path).map_err(fail)?) {
            return Ok(None);
        }
        let names = self.names(unit, &manifest, first).map_err(fail)?;
        // After a crash they may be more than one file.
        let spoiled: Vec<&PathBuf> =
            distinct(&names).map_err(fail)?.filter(|place| !is_good(place)).collect();
        let scratch = Scratch::new(self.tmp_dir).map_err(fail)?;
        let dir = scratch.tree();
        Copy { manifest: &manifest, gone: &Default::default(), contents: self.contents, dir: &dir }
            .make_alone(first)?;
        let new = first.path.under(&dir);
        fs::File::open(&new).and_then(|file| file.sync_all()).map_err(fail)?;

        let _frozen = self.freeze(&record)?;
        for (entry, place) in &names {
            let found = fs::symlink_metadata(place).map_err(fail)?;
            if !is_as_described(&manifest, entry, &found) {
                return Err(busy());
            }
        }
        let mut kept = None;
        for place in spoiled {
            let here = durable::keep_in(&durable::RealDisk, quarantine, place).map_err(fail)?;
            kept = kept.or(here);
        }
        put_in_place(&new, names.iter().map(|(_, place)| place)).map_err(fail)?;
        on_evicted(unit);
        tracing::warn!(%unit, %path, ?kept, "brought back from the store: its bytes were not those that were committed");
        Ok(kept)
    }

    fn place(&self, unit: &UnitId, path: &RelPath) -> io::Result<PathBuf> {
        Ok(self.spool.place(&unit.root.append(path).map_err(io::Error::other)?))
    }

    /// The file's names, with where they are in the spool.
    fn names<'m>(
        &self,
        unit: &UnitId,
        manifest: &'m Manifest,
        first: &'m Entry,
    ) -> io::Result<Vec<(&'m Entry, PathBuf)>> {
        let is_link = |entry: &&Entry| matches!(&entry.body, Body::Link { to } if *to == first.path);
        let entries = std::iter::once(first).chain(manifest.entries().iter().filter(is_link));
        entries.map(|entry| Ok((entry, self.place(unit, &entry.path)?))).collect()
    }
}

/// One place of each file that is at these.
fn distinct<'a>(names: &'a [(&Entry, PathBuf)]) -> io::Result<impl Iterator<Item = &'a PathBuf>> {
    let mut places = BTreeMap::new();
    for (_, place) in names.iter().rev() {
        let meta = fs::symlink_metadata(place)?;
        places.insert((meta.dev(), meta.ino()), place);
    }
    Ok(places.into_values())
}

/// Makes `new` the file at all of these.
fn put_in_place<'a>(new: &Path, mut places: impl Iterator<Item = &'a PathBuf>) -> io::Result<()> {
    let replace = |place: &Path| {
        let dir = place.parent().expect("it is below the spool");
        keep_times(dir, || fs::rename(new, place))?;
        durable::sync_dir(dir)
    };
    let first = places.next().expect("a file has a name");
    replace(first)?;
    for place in places {
        fs::hard_link(first, new)?;
        replace(place)?;
    }
    Ok(())
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
