//! Eviction: committed layers leave the spool.
//!
//! Order: nobody is in the unit and nobody gets in (frozen); the spool is as it was committed; the journal says `Evicted`, durably; then the files go. A crash in
//! between leaves files under an evicted unit, and the next start deletes the rest. The times of directories that stay are put
//! back, since nothing changed for those who read the tree.

use std::{fs::Metadata, io, os::unix::ffi::OsStrExt, path::Path, sync::Arc};

use fs_err as fs;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT};

use super::{
    engine::OnEvicted,
    observe,
    tree::{self, SpoolTree, attrs_of},
};
use crate::{
    ids::{Hash, Incarnation, RelPath, Scope, UnitId},
    journal::{Journal, JournalError, State, UnitRecord},
    manifest::{Entry, Manifest},
    spool::activity::{Activity, FreezeGuard},
};

/// Who is asked and told while layers are freed.
#[derive(Clone, Copy)]
pub struct Evictor<'a> {
    pub spool: &'a SpoolTree,
    pub journal: &'a Journal,
    pub activity: &'a Arc<Activity>,
}

/// Why a layer stays in the spool.
#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    /// Not all that is in the spool is in the store.
    #[error("{unit}: is {}, not committed", state.map_or("running", State::name))]
    NotCommitted { unit: UnitId, state: Option<State> },
    /// A file is open, or an operation is going on.
    #[error("{unit}: is in use")]
    Busy { unit: UnitId },
    /// The replica of the catalog doesn't have the commit yet, so that the tree would be without the layer.
    #[error("{unit}: the catalog hasn't been followed up to its commit yet")]
    NotFollowed { unit: UnitId },
    /// The spool isn't what was committed.
    #[error("{unit}: {path} was changed after the commit, past the mount; the unit is offloaded again")]
    Changed { unit: UnitId, path: RelPath },
    /// Without its manifest the host couldn't say what is there.
    #[error("{unit}: manifest {manifest} isn't here")]
    NoManifest { unit: UnitId, manifest: Hash },
    /// The journal refused or failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Its files couldn't be deleted. What is left goes at the next start.
    #[error("{unit}: {source}")]
    Io { unit: UnitId, source: io::Error },
}

/// When to evict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictionRules {
    /// Committed layers stay local this long.
    pub keep_local_ms: u64,
    /// Beyond this use of the spool's file system, younger ones go, too, oldest first.
    pub high_percent: u8,
    /// Down to this one.
    pub low_percent: u8,
}

/// Committed layers, oldest first, of which the first `old` are older than they need to be kept.
#[derive(Debug)]
pub struct Plan {
    pub units: Vec<UnitId>,
    pub old: usize,
}

/// What could be evicted, and what must.
pub fn plan(mut committed: Vec<UnitRecord>, rules: &EvictionRules, now_ms: u64) -> Plan {
    let age_of = |record: &UnitRecord| now_ms.saturating_sub(record.committed_ms.unwrap_or(now_ms));
    committed.retain(|record| record.state == State::Committed);
    committed.sort_by_key(|record| record.committed_ms);
    let old = committed.iter().take_while(|record| age_of(record) >= rules.keep_local_ms).count();
    Plan { units: committed.into_iter().map(|record| record.unit).collect(), old }
}

/// Bytes that must go for the disk to be at the low mark; 0 unless it is beyond the high one.
pub fn surplus_bytes(spool: &SpoolTree, rules: &EvictionRules) -> io::Result<u64> {
    let (used, usable) = spool.used()?;
    let share = |percent: u8| u64::try_from(u128::from(usable) * u128::from(percent) / 100).unwrap_or(usable);
    Ok(if used > share(rules.high_percent) { used.saturating_sub(share(rules.low_percent)) } else { 0 })
}

impl Evictor<'_> {
    /// Frees a layer; says how many file bytes that were.
    pub fn evict(&self, unit: &UnitId, on_evicted: &OnEvicted) -> Result<u64, EvictError> {
        let manifest = self.committed_manifest(unit)?;
        let _frozen = self.freeze(unit)?;
        // From here on nobody changes it through the mount; the journal looks again whether anybody has.
        self.is_as_committed(unit, &manifest)?;
        self.journal.evict(unit)?;
        let bytes = manifest.bytes();
        self.delete(unit).map_err(|source| EvictError::Io { unit: unit.clone(), source })?;
        on_evicted(unit);
        Ok(bytes)
    }

    /// Frees a layer of an earlier life of its unit and forgets it: the path is the next life's.
    pub fn discharge(&self, unit: &UnitId, on_evicted: &OnEvicted) -> Result<(), EvictError> {
        let fail = |source| EvictError::Io { unit: unit.clone(), source };
        let _frozen = self.freeze(unit)?;
        if self.journal.get(unit).is_none_or(|record| record.state != State::Evicted) {
            match self.committed_manifest(unit) {
                Ok(manifest) => self.is_as_committed(unit, &manifest)?,
                Err(EvictError::NoManifest { .. }) if !self.has_leftovers(unit).map_err(fail)? => {}
                Err(error) => return Err(error),
            }
            self.journal.evict(unit)?;
        }
        self.delete(unit).map_err(fail)?;
        self.journal.discharge(unit)?;
        on_evicted(unit);
        Ok(())
    }

    fn freeze(&self, unit: &UnitId) -> Result<FreezeGuard, EvictError> {
        let busy = || EvictError::Busy { unit: unit.clone() };
        let frozen = self.activity.try_freeze(unit).ok_or_else(busy)?;
        let work = observe::work_of(self.spool, self.activity, unit);
        if work.handles + work.operations > 0 { Err(busy()) } else { Ok(frozen) }
    }

    /// Goes on with an eviction that a crash cut off. Only before anybody can be in the tree, or while the unit is frozen.
    pub fn delete(&self, unit: &UnitId) -> io::Result<()> {
        match unit.scope {
            Scope::Tree => {
                let parent = unit.root.parent().unwrap_or_default();
                keep_times(&self.spool.place(&parent), || remove(&self.spool.place(&unit.root)))?;
                self.remove_bare(parent, None);
            }
            Scope::Loose => {
                let place = self.spool.place(&unit.root);
                keep_times(&place, || self.remove_loose(&unit.root))?;
                self.remove_bare(unit.root.clone(), Some(unit));
            }
        }
        Ok(())
    }

    /// Whether anything of an evicted unit is still in the spool.
    pub fn has_leftovers(&self, unit: &UnitId) -> io::Result<bool> {
        match unit.scope {
            Scope::Tree => Ok(self.spool.stat(&unit.root)?.is_some()),
            Scope::Loose => Ok(self.spool.list(&unit.root)?.iter().any(|(_, found)| !found.is_dir())),
        }
    }

    /// The last look before files go. A writer whose handle has outlived a daemon writes past the one that runs now, and nothing of
    /// that is in the journal.
    fn is_as_committed(&self, unit: &UnitId, manifest: &Manifest) -> Result<(), EvictError> {
        let fail = |source| EvictError::Io { unit: unit.clone(), source };
        for (path, found) in self.files_of(unit).map_err(fail)? {
            let is_same = match manifest.get(&path) {
                Some(entry) => is_as_described(manifest, entry, &found),
                None => manifest.omitted().iter().any(|omitted| omitted.path == path),
            };
            if !is_same {
                return Err(EvictError::Changed { unit: unit.clone(), path });
            }
        }
        Ok(())
    }

    /// What of a layer is in the spool and isn't a directory, by path below the unit's root.
    fn files_of(&self, unit: &UnitId) -> io::Result<Vec<(RelPath, Metadata)>> {
        if unit.scope == Scope::Loose {
            let files = self.spool.list(&unit.root)?.into_iter().filter(|(_, found)| !found.is_dir());
            return files
                .map(|(name, found)| Ok((RelPath::parse(name).map_err(io::Error::other)?, found)))
                .collect();
        }
        // A layer that is known from the catalog alone has nothing here.
        if self.spool.stat(&unit.root)?.is_none() {
            return Ok(Vec::new());
        }
        let root = self.spool.place(&unit.root);
        let mut files = Vec::new();
        for entry in walkdir::WalkDir::new(&root) {
            let entry = entry?;
            if !entry.file_type().is_dir() {
                let below = entry.path().strip_prefix(&root).map_err(io::Error::other)?;
                let path = RelPath::parse(below.as_os_str().as_bytes()).map_err(io::Error::other)?;
                files.push((path, entry.metadata()?));
            }
        }
        Ok(files)
    }

    fn committed_manifest(&self, unit: &UnitId) -> Result<Arc<Manifest>, EvictError> {
        let record = self.journal.get(unit);
        let state = record.as_ref().map(|record| record.state);
        let manifest = record.filter(|r| r.state == State::Committed).and_then(|r| r.manifest);
        let manifest = manifest.ok_or_else(|| EvictError::NotCommitted { unit: unit.clone(), state })?;
        if !self.journal.is_followed(unit) {
            return Err(EvictError::NotFollowed { unit: unit.clone() });
        }
        match self.journal.manifest(&manifest)? {
            Some(manifest) => Ok(manifest),
            None => Err(EvictError::NoManifest { unit: unit.clone(), manifest }),
        }
    }

    fn remove_loose(&self, dir: &RelPath) -> io::Result<()> {
        for (name, found) in self.spool.list(dir)? {
            if found.is_dir() {
                continue;
            }
            let path = dir.join(&name).map_err(io::Error::other)?;
            absent_is_fine(fs::remove_file(self.spool.place(&path)))?;
        }
        Ok(())
    }

    /// Whether a directory's own unit was retired before what was in it, and nobody has begun anything there since.
    fn is_left_of_retired(&self, loose: &UnitId) -> bool {
        self.journal.incarnation(loose) != Incarnation::FIRST
            && self.journal.layers(loose).is_empty()
            && observe::work_of(self.spool, self.activity, loose).changed.is_none()
    }

    /// Removes `dir` and its ancestors as long as they are empty and their own loose units are evicted. `frozen` is held already.
    fn remove_bare(&self, mut dir: RelPath, frozen: Option<&UnitId>) {
        while let Some(parent) = dir.parent() {
            let loose = UnitId::loose(dir.clone());
            let is_evicted = match self.journal.get(&loose) {
                Some(record) => record.state == State::Evicted,
                None => self.is_left_of_retired(&loose),
            };
            let guard = self.activity.try_freeze(&loose);
            if !is_evicted || (guard.is_none() && frozen != Some(&loose)) {
                return;
            }
            // A directory that isn't empty stays, and so does everything above it.
            let place = self.spool.place(&dir);
            let is_gone = keep_times(&self.spool.place(&parent), || std::fs::remove_dir(&place));
            if is_gone.is_err() {
                return;
            }
            dir = parent;
        }
    }
}

/// Whether what was found has the attributes of an entry that isn't a directory, and a file its size.
pub fn is_as_described(manifest: &Manifest, entry: &Entry, found: &Metadata) -> bool {
    let size = manifest.file_of(entry).map(|(size, _)| size);
    attrs_of(found) == entry.attrs && size.is_none_or(|size| size == found.len())
}

fn remove(place: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(place) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(place),
        Ok(_) => fs::remove_file(place),
        Err(e) => Err(e),
    };
    absent_is_fine(removed)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound || tree::is_absent(&e) => Ok(()),
        other => other,
    }
}

/// Does `work` in directory `dir` and puts the directory's time of modification back, if it is still there.
pub fn keep_times<T>(dir: &Path, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = std::fs::symlink_metadata(dir).ok();
    let done = work()?;
    if let Some(before) = before {
        let mtime = tree::attrs_of(&before).mtime;
        absent_is_fine(set_mtime(dir, mtime))?;
    }
    Ok(done)
}

/// Sets the time of modification of what is at `place` itself.
pub fn set_mtime(place: &Path, mtime: crate::manifest::Timestamp) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.secs, tv_nsec: i64::from(mtime.nanos) },
    };
    Ok(rustix::fs::utimensat(CWD, place, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
