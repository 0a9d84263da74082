//! Recall: an evicted layer back into the spool.
//!
//! The tree is built beside the spool, every file checked against its content, and synced; then it is renamed into the spool
//! where nothing stands, while nobody is in the unit; and only when that is on the disk the journal hears of it. A crash before that
//! leaves an evicted unit with leftovers, which the next start deletes.
//!
//! The manifest may have come back from the store, so it isn't trusted to keep inside the directory: nothing is made below what
//! isn't a directory.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{File, Permissions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use fs_err as fs;
use rustix::fs::{CWD, FileType, RenameFlags};

use super::{
    engine::OnEvicted,
    evict::{keep_times, set_mtime},
    names,
    tree::SpoolTree,
};
use crate::{
    ids::{Hash, RelPath, UnitId},
    journal::{Journal, JournalError, UnitRecord},
    manifest::{Attrs, Body, Entry, Manifest},
    spool::{
        activity::{Activity, FreezeGuard},
        sparse::write_sparsely,
    },
};

/// Read from the store at once: one block's worth, which comes as a whole anyway.
const READ_BYTES: usize = 1 << 20;

/// Names of the directories in which trees are built begin with this.
const SCRATCH_PREFIX: &str = "recall-";

/// Why something can't be fetched.
pub type FetchFailure = Box<dyn std::error::Error + Send + Sync>;

/// Where contents come from: the cache, and through it the store.
pub trait Contents: Send + Sync {
    /// Bytes `offset..offset + len` of a file of `size` bytes, fewer only at its end. Waits for the network, a bounded time.
    fn read(&self, content: &Hash, size: u64, offset: u64, len: usize) -> Result<Vec<u8>, FetchFailure>;
    /// A manifest's encoding.
    fn manifest(&self, hash: &Hash) -> Result<Vec<u8>, FetchFailure>;
}

/// Who is asked and told when layers come back.
pub struct Recaller<'a> {
    pub spool: &'a SpoolTree,
    pub journal: &'a Journal,
    pub activity: &'a Arc<Activity>,
    pub contents: &'a dyn Contents,
    /// On the spool's file system.
    pub tmp_dir: &'a Path,
}

/// Why a layer didn't come back.
#[derive(Debug, thiserror::Error)]
pub enum RecallError {
    /// Nothing of it is in the store only.
    #[error("{unit}: is in the spool already")]
    Whole { unit: UnitId },
    /// Somebody uses it, or it changed meanwhile.
    #[error("{unit}: is in use")]
    Busy { unit: UnitId },
    /// It can't be had now.
    #[error("{path}: {source}")]
    Fetch { path: RelPath, source: FetchFailure },
    /// What came isn't what the manifest says.
    #[error("{path}: what came from the store doesn't match its hash")]
    Damaged { path: RelPath },
    /// The manifest has something below what isn't a directory.
    #[error("{path}: is below something that isn't a directory")]
    Malformed { path: RelPath },
    /// It can't be written.
    #[error("{path}: {source}")]
    Io { path: RelPath, source: io::Error },
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Recaller<'_> {
    /// Brings a layer back; says how many file bytes came.
    pub fn recall(&self, unit: &UnitId, on_evicted: &OnEvicted) -> Result<u64, RecallError> {
        let record = self.journal.get(unit).filter(|record| record.partial && record.committed.is_some());
        let record = record.ok_or_else(|| RecallError::Whole { unit: unit.clone() })?;
        let manifest = self.manifest(&record)?;
        let gone: BTreeSet<RelPath> = self.journal.gone(unit).into_iter().collect();
        let apart = self.spool.apart().map_err(|e| at(&unit.root, e))?;
        let scratch = Scratch::new(self.tmp_dir).map_err(|e| at(&unit.root, e))?;
        let has_root = manifest.get(&RelPath::ROOT).is_some_and(|root| root.body == Body::Dir);
        let copy = Copy { manifest: &manifest, gone: &gone, contents: self.contents, dir: &scratch.tree() };
        let bytes = copy.build()?;
        apart.sync().map_err(|e| at(&unit.root, e))?;
        // A layer that only deletes has nothing to bring back, and no place for it.
        let built = scratch.tree();
        self.move_in(&record, has_root.then_some(&*built), &apart, on_evicted)?;
        Ok(bytes)
    }

    pub(super) fn manifest(&self, record: &UnitRecord) -> Result<Arc<Manifest>, RecallError> {
        let Some(committed) = record.committed else {
            return Err(RecallError::Whole { unit: record.unit.clone() });
        };
        if let Some(manifest) = self.journal.manifest(&committed.manifest)? {
            return Ok(manifest);
        }
        let fetched = self.contents.manifest(&committed.manifest);
        let root = &record.unit.root;
        let bytes = fetched.map_err(|source| RecallError::Fetch { path: root.clone(), source })?;
        Ok(self.journal.keep_manifest(&committed.manifest, &bytes)?)
    }

    /// Renames what was built into the spool, where nothing stands, and tells the journal.
    fn move_in(
        &self,
        record: &UnitRecord,
        built: Option<&Path>,
        apart: &SpoolTree,
        on_evicted: &OnEvicted,
    ) -> Result<(), RecallError> {
        let unit = &record.unit;
        let _frozen = self.freeze(record)?;
        if let Some(built) = built {
            self.put(unit, built).map_err(|e| at(&unit.root, e))?;
        }
        apart.sync().map_err(|e| at(&unit.root, e))?;
        self.journal.recalled(unit)?;
        on_evicted(unit);
        Ok(())
    }

    /// Nobody is in the unit and nobody gets in, and it is where it was.
    pub(super) fn freeze(&self, record: &UnitRecord) -> Result<FreezeGuard, RecallError> {
        let busy = || RecallError::Busy { unit: record.unit.clone() };
        let frozen = self.activity.try_freeze(&record.unit).ok_or_else(busy)?;
        let now = self.journal.get(&record.unit).ok_or_else(busy)?;
        let is_same =
            (now.state, now.generation, now.committed) == (record.state, record.generation, record.committed);
        if is_same { Ok(frozen) } else { Err(busy()) }
    }

    fn put(&self, unit: &UnitId, built: &Path) -> io::Result<()> {
        let parent = unit.root.parent().unwrap_or_default();
        self.make_ancestors(&parent)?;
        let place = self.spool.place(&unit.root);
        keep_times(&self.spool.place(&parent), || move_into(built, &place))
    }

    /// Makes the directories above a unit that eviction has removed, as their own loose units describe them.
    fn make_ancestors(&self, dir: &RelPath) -> io::Result<()> {
        if self.spool.stat(dir)?.is_some() {
            return Ok(());
        }
        let above = dir.parent().unwrap_or_default();
        self.make_ancestors(&above)?;
        let place = self.spool.place(dir);
        keep_times(&self.spool.place(&above), || fs::create_dir(&place))?;
        let record = self.journal.get(&UnitId::loose(dir.clone()));
        let manifest = record.and_then(|r| r.committed).map(|c| self.journal.manifest(&c.manifest));
        let Some(manifest) = manifest.transpose().map_err(io::Error::other)?.flatten() else { return Ok(()) };
        match manifest.get(&RelPath::ROOT) {
            Some(entry) => Owners::default().dress(&place, &entry.attrs, &manifest, false),
            None => Ok(()),
        }
    }
}

fn at(path: &RelPath, source: io::Error) -> RecallError {
    RecallError::Io { path: path.clone(), source }
}

/// A directory that is removed whatever happens. What a crash leaves is removed at the next start.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new(tmp_dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(tmp_dir)?;
        let dir = tmp_dir.join(format!("{SCRATCH_PREFIX}{}", crate::ids::HostUuid::random()));
        fs::create_dir(&dir)?;
        let scratch = Self(dir);
        fs::set_permissions(&scratch.0, Permissions::from_mode(0o700))?;
        fs::create_dir(scratch.tree())?;
        Ok(scratch)
    }

    pub(super) fn tree(&self) -> PathBuf {
        self.0.join("tree")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing is lost with what stays: the name is nobody else's, and the next start clears the directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Removes what recalls that were cut off by a crash have left.
pub fn clear_scratch(tmp_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(tmp_dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().as_bytes().starts_with(SCRATCH_PREFIX.as_bytes()) {
            // What can't be removed only takes room.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Moves `from` to `to`. What stands there stays; directories are merged and keep their attributes.
fn move_into(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let both_dirs = fs::symlink_metadata(from)?.is_dir() && fs::symlink_metadata(to)?.is_dir();
    if !both_dirs {
        return Ok(());
    }
    keep_times(to, || {
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            move_into(&from.join(&name), &to.join(&name))?;
        }
        Ok(())
    })
}

/// A manifest being made into a tree.
pub(super) struct Copy<'a> {
    pub manifest: &'a Manifest,
    pub gone: &'a BTreeSet<RelPath>,
    pub contents: &'a dyn Contents,
    pub dir: &'a Path,
}

impl Copy<'_> {
    fn build(&self) -> Result<u64, RecallError> {
        let mut owners = Owners::default();
        let mut bytes = 0;
        let wanted: Vec<&Entry> = self.manifest.entries().iter().filter(|e| !self.is_gone(&e.path)).collect();
        for entry in &wanted {
            bytes += self.make(entry, &mut owners)?;
        }
        // Directories last and from below: they may be closed even to their owner, and their times are changed by what is made in them.
        for entry in wanted.iter().rev().filter(|e| e.body == Body::Dir) {
            owners
                .dress(&entry.path.under(self.dir), &entry.attrs, self.manifest, false)
                .map_err(|e| at(&entry.path, e))?;
        }
        Ok(bytes)
    }

    /// Makes one entry that isn't a link to another.
    pub fn make_alone(&self, entry: &Entry) -> Result<u64, RecallError> {
        self.make(entry, &mut Owners::default())
    }

    fn is_gone(&self, path: &RelPath) -> bool {
        let above = std::iter::successors(Some(path.clone()), RelPath::parent);
        above.into_iter().any(|path| self.gone.contains(&path))
    }

    /// Makes one entry; says how many file bytes came for it.
    fn make(&self, entry: &Entry, owners: &mut Owners) -> Result<u64, RecallError> {
        if entry.body == Body::Whiteout {
            return Ok(0);
        }
        self.check_above(&entry.path)?;
        let place = entry.path.under(self.dir);
        let fail = |e| at(&entry.path, e);
        if let Some(parent) = place.parent().filter(|_| !entry.path.is_root()) {
            fs::create_dir_all(parent).map_err(fail)?;
        }
        let mut bytes = 0;
        match &entry.body {
            Body::Dir => fs::create_dir_all(&place).map_err(fail)?,
            Body::Whiteout => {}
            Body::Link { to } if self.is_gone(to) => {
                let (size, content) = self.manifest.file_of(entry).expect("a manifest's links lead to files");
                bytes = self.make_file(&entry.path, size, &content)?;
            }
            Body::Link { to } => {
                let first = to.under(self.dir);
                return fs::hard_link(first, &place).map(|()| 0).map_err(fail);
            }
            Body::File { size, content } => bytes = self.make_file(&entry.path, *size, content)?,
            Body::Symlink { target } => {
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &place).map_err(fail)?;
            }
            Body::Fifo => {
                rustix::fs::mknodat(CWD, &place, FileType::Fifo, 0o600.into(), 0)
                    .map_err(|e| fail(e.into()))?;
            }
        }
        if entry.body != Body::Dir {
            let is_link = matches!(entry.body, Body::Symlink { .. });
            owners.dress(&place, &entry.attrs, self.manifest, is_link).map_err(fail)?;
        }
        Ok(bytes)
    }

    /// Everything above `path` is a directory, or nothing that the manifest speaks of.
    fn check_above(&self, path: &RelPath) -> Result<(), RecallError> {
        let mut above = std::iter::successors(path.parent(), RelPath::parent);
        let is_bad = |dir: RelPath| self.manifest.get(&dir).is_some_and(|entry| entry.body != Body::Dir);
        if above.any(is_bad) {
            return Err(RecallError::Malformed { path: path.clone() });
        }
        Ok(())
    }

    fn make_file(&self, path: &RelPath, size: u64, content: &Hash) -> Result<u64, RecallError> {
        let mut file = File::create_new(path.under(self.dir)).map_err(|e| at(path, e))?;
        let mut hasher = blake3::Hasher::new();
        let mut offset = 0;
        while offset < size {
            let fetched = self.contents.read(content, size, offset, READ_BYTES);
            let bytes = fetched.map_err(|source| RecallError::Fetch { path: path.clone(), source })?;
            if bytes.is_empty() {
                return Err(RecallError::Damaged { path: path.clone() });
            }
            hasher.update(&bytes);
            write_sparsely(&file, &bytes, offset).map_err(|e| at(path, e))?;
            offset += bytes.len() as u64;
        }
        if offset != size || Hash::from(hasher.finalize()) != *content {
            return Err(RecallError::Damaged { path: path.clone() });
        }
        file.set_len(size).and_then(|()| file.flush()).map_err(|e| at(path, e))?;
        Ok(size)
    }
}

/// The numbers that a manifest's owners have on this host.
#[derive(Default)]
struct Owners {
    users: HashMap<u32, u32>,
    groups: HashMap<u32, u32>,
}

impl Owners {
    /// Sets owner, mode and time. The name wins where this host has it.
    fn dress(&mut self, place: &Path, attrs: &Attrs, manifest: &Manifest, is_link: bool) -> io::Result<()> {
        let named_user = || manifest.user(attrs.uid).and_then(names::user_id).unwrap_or(attrs.uid);
        let uid = *self.users.entry(attrs.uid).or_insert_with(named_user);
        let named_group = || manifest.group(attrs.gid).and_then(names::group_id).unwrap_or(attrs.gid);
        let gid = *self.groups.entry(attrs.gid).or_insert_with(named_group);
        let now = fs::symlink_metadata(place)?;
        if (now.uid(), now.gid()) != (uid, gid) {
            std::os::unix::fs::lchown(place, Some(uid), Some(gid))?;
        }
        // After the owner, whose change takes setuid away. A link has no mode of its own.
        if !is_link {
            fs::set_permissions(place, Permissions::from_mode(attrs.mode))?;
        }
        set_mtime(place, attrs.mtime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{Generation, Seq},
        manifest::Timestamp,
    };

    /// A large file that is a hole but for its first byte.
    struct Hole(u64);

    impl Contents for Hole {
        fn read(&self, _: &Hash, size: u64, offset: u64, len: usize) -> Result<Vec<u8>, FetchFailure> {
            assert_eq!(size, self.0);
            let mut bytes = vec![0; len.min(usize::try_from(size - offset)?)];
            if offset == 0 {
                bytes[0] = 1;
            }
            Ok(bytes)
        }

        fn manifest(&self, _: &Hash) -> Result<Vec<u8>, FetchFailure> {
            unreachable!("the manifest is at hand")
        }
    }

    #[test]
    fn a_hole_of_a_gigabyte_takes_no_room_when_it_comes_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let size = (1 << 30) + 1;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[1]);
        let zeros = vec![0; 1 << 20];
        (0..1024).for_each(|_| _ = hasher.update(&zeros));
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let attrs = Attrs { mode: 0o644, uid, gid, mtime: Timestamp::default() };
        let entry = |path: &str, body| Entry {
            path: RelPath::parse(path).expect("a path"),
            attrs,
            body,
            since: Generation::FIRST,
            base: Seq(0),
        };
        let body = Body::File { size, content: Hash::from(hasher.finalize()) };
        let entries = vec![entry("", Body::Dir), entry("core", body)];
        let manifest = Manifest::new(entries, Vec::new(), Vec::new(), Vec::new()).expect("a manifest");
        let place = dir.path().join("tree");
        let copy = Copy { manifest: &manifest, gone: &BTreeSet::new(), contents: &Hole(size), dir: &place };
        assert_eq!(copy.build().expect("comes back"), size);
        let stat = fs::metadata(place.join("core")).expect("there");
        assert_eq!(stat.len(), size);
        assert!(stat.blocks() * 512 < 1 << 20, "{} blocks", stat.blocks());
    }
}
