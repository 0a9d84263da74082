//! A disk in memory that counts its operations, crashes at any of them, and forgets what wasn't synced.
//!
//! Every call that changes anything or syncs is one operation. The one at which it is told to crash fails and so do all after it. Then
//! [`SimDisk::after_crash`] gives the disk that a restarted machine would find: what was synced, and of the rest what [`Unsynced`] says.
//!
//! A test may have something done before each operation, reads included, of one of its threads ([`before_each`]).

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use super::{Disk, DiskFile, DiskLock, LockMode, Space};

/// Granule in which unsynced writes tear and overtake one another.
const SECTOR_BYTES: usize = 512;

/// What a crash leaves of that which wasn't synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    /// Nothing.
    Dropped,
    /// Everything (a killed process, not a power cut).
    Kept,
    /// Each file's operations up to some point, the last of them in part; directories likewise. The seed picks.
    Torn(u64),
    /// Each sector written is there or not, whatever was written before or after it. The seed picks.
    Reordered(u64),
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(PathBuf, usize),
    Unlink(PathBuf),
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    unsynced_names: Vec<NameChange>,
    dirs: BTreeSet<PathBuf>,
    operations: u64,
    syncs: u64,
    crash_at: Option<u64>,
    /// Bytes that the files may have together.
    capacity: Option<u64>,
    locked: bool,
}

/// The disk. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct SimFile(SimDisk, usize, PathBuf);

/// What is done before an operation on the file at this path.
type Hook = Box<dyn Fn(&Path)>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// From now on this is done before each operation of this thread on any simulated disk; not before those that it does itself.
pub fn before_each(hook: impl Fn(&Path) + 'static) {
    HOOK.with(|own| *own.borrow_mut() = Some(Box::new(hook)));
}

fn come(path: &Path) {
    let hook = HOOK.with(|own| own.borrow_mut().take());
    if let Some(hook) = hook {
        hook(path);
        HOOK.with(|own| *own.borrow_mut() = Some(hook));
    }
}

impl SimDisk {
    /// An empty one that doesn't crash.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes operation number `operation` from now (0 = the next) fail, and all after it.
    pub fn crash_after(&self, operation: u64) {
        let mut state = self.state();
        state.crash_at = Some(state.operations + operation);
    }

    /// From now on the files have room for so many bytes together, but for the index, whose database doesn't go on after it was full.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = Some(bytes);
    }

    /// Bytes that count against the capacity.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Syncs of files and directories so far.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// The disk that a restarted machine finds; this one stays as it is.
    pub fn after_crash(&self, unsynced: Unsynced) -> SimDisk {
        let state = self.state();
        let mut random = Random::new(unsynced);
        let mut names = state.durable_names.clone();
        let kept = match unsynced {
            Unsynced::Dropped => 0,
            Unsynced::Kept => state.unsynced_names.len(),
            Unsynced::Torn(_) | Unsynced::Reordered(_) => random.below(state.unsynced_names.len() + 1),
        };
        state.unsynced_names[..kept].iter().for_each(|change| change.apply(&mut names));
        let contents = state.inodes.iter().map(|inode| inode.after_crash(unsynced, &mut random));
        let inodes = contents.map(|now| Inode { durable: now.clone(), now, unsynced: Vec::new() }).collect();
        let dirs = state.dirs.clone();
        SimDisk(Arc::new(Mutex::new(State {
            inodes,
            durable_names: names.clone(),
            names,
            dirs,
            ..State::default()
        })))
    }

    /// The disk that a process finds which comes after a killed one, without a crash of the machine: everything written is there, and what
    /// wasn't synced still isn't. This one stays as it is.
    pub fn after_kill(&self) -> SimDisk {
        let state = self.state();
        SimDisk(Arc::new(Mutex::new(State {
            inodes: state.inodes.clone(),
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            unsynced_names: state.unsynced_names.clone(),
            dirs: state.dirs.clone(),
            ..State::default()
        })))
    }

    /// Changes a file's bytes behind the store's back, durably.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let inode = state.names[path];
        change(&mut state.inodes[inode].now);
        state.inodes[inode].durable = state.inodes[inode].now.clone();
        state.inodes[inode].unsynced.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds the disk")
    }

    fn operate(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        if state.crash_at.is_some_and(|at| state.operations >= at) {
            return Err(io::Error::other("the simulated disk has crashed"));
        }
        state.operations += 1;
        Ok(state)
    }

    fn handle(&self, inode: usize, path: &Path) -> Arc<dyn DiskFile> {
        Arc::new(SimFile(self.clone(), inode, path.to_owned()))
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link(path, inode) => names.insert(path.clone(), *inode),
            Self::Unlink(path) => names.remove(path),
        };
    }

    fn dir(&self) -> Option<&Path> {
        let (Self::Link(path, _) | Self::Unlink(path)) = self;
        path.parent()
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                bytes.resize(bytes.len().max(end), 0);
                bytes[start..end].copy_from_slice(data);
            }
            Self::SetLen(len) => bytes.resize(*len as usize, 0),
        }
    }

    /// This write's sectors as writes of their own; the granules are the disk's, not the write's.
    fn sectors(&self) -> Vec<Change> {
        let Self::Write(offset, data) = self else { return vec![self.clone()] };
        let (mut at, mut rest, mut out) = (*offset as usize, &data[..], Vec::new());
        while !rest.is_empty() {
            let take = (SECTOR_BYTES - at % SECTOR_BYTES).min(rest.len());
            out.push(Change::Write(at as u64, rest[..take].to_vec()));
            (at, rest) = (at + take, &rest[take..]);
        }
        out
    }
}

impl Inode {
    fn after_crash(&self, unsynced: Unsynced, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        match unsynced {
            Unsynced::Dropped => {}
            Unsynced::Kept => bytes = self.now.clone(),
            Unsynced::Torn(_) => {
                let whole = random.below(self.unsynced.len() + 1);
                self.unsynced[..whole].iter().for_each(|change| change.apply(&mut bytes));
                if let Some(Change::Write(offset, data)) = self.unsynced.get(whole) {
                    Change::Write(*offset, data[..random.below(data.len() + 1)].to_vec()).apply(&mut bytes);
                }
            }
            Unsynced::Reordered(_) => {
                let sectors = self.unsynced.iter().flat_map(Change::sectors);
                sectors.filter(|_| random.below(2) == 1).for_each(|change| change.apply(&mut bytes));
            }
        }
        bytes
    }
}

/// SplitMix64: a seed gives the same crash again.
struct Random(u64);

impl Random {
    fn new(unsynced: Unsynced) -> Self {
        match unsynced {
            Unsynced::Torn(seed) | Unsynced::Reordered(seed) => Self(seed),
            _ => Self(0),
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.state().inodes[self.1].now.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        come(&self.2);
        let state = self.0.state();
        let bytes = state.inodes[self.1].now.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        come(&self.2);
        let mut state = self.0.operate()?;
        let fits = state.fits(self.1, offset, bytes.len());
        state.inodes[self.1].change(Change::Write(offset, bytes[..fits].to_vec()));
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        come(&self.2);
        self.0.operate()?.inodes[self.1].change(Change::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        come(&self.2);
        let mut state = self.0.operate()?;
        state.syncs += 1;
        let inode = &mut state.inodes[self.1];
        inode.durable = inode.now.clone();
        inode.unsynced.clear();
        Ok(())
    }
}

impl Inode {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.unsynced.push(change);
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        come(path);
        let inode = self.state().names.get(path).copied();
        Ok(self.handle(inode.ok_or(io::ErrorKind::NotFound)?, path))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        come(path);
        let mut state = self.operate()?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.name(NameChange::Link(path.to_owned(), inode));
        drop(state);
        Ok(self.handle(inode, path))
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.state().dirs.insert(dir.to_owned());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let state = self.state();
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let paths = state.names.keys().chain(&state.dirs).filter(|path| path.parent() == Some(dir));
        let names: BTreeSet<_> = paths.filter_map(|path| path.file_name()).map(ToOwned::to_owned).collect();
        Ok(names.into_iter().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        come(to);
        let mut state = self.operate()?;
        let inode = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.name(NameChange::Link(to.to_owned(), inode));
        state.name(NameChange::Unlink(from.to_owned()));
        Ok(())
    }

    fn link(&self, path: &Path, name: &Path) -> io::Result<()> {
        come(name);
        let mut state = self.operate()?;
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        state.name(NameChange::Link(name.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        come(path);
        let mut state = self.operate()?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.name(NameChange::Unlink(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        come(dir);
        let mut state = self.operate()?;
        state.syncs += 1;
        let State { durable_names, unsynced_names, .. } = &mut *state;
        unsynced_names.retain(|change| {
            let here = change.dir() == Some(dir);
            if here {
                change.apply(durable_names);
            }
            !here
        });
        Ok(())
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        let state = self.state();
        let total = state.capacity.unwrap_or(1 << 50);
        Ok(Space { free: total.saturating_sub(state.used()), total })
    }

    fn lock(&self, _: &Path, mode: LockMode) -> io::Result<Option<DiskLock>> {
        let mut state = self.state();
        if state.locked {
            return Ok(None);
        }
        state.locked = mode == LockMode::Exclusive;
        Ok(Some(Box::new(SimLock(self.clone()))))
    }
}

struct SimLock(SimDisk);

impl Drop for SimLock {
    fn drop(&mut self) {
        self.0.state().locked = false;
    }
}

impl State {
    /// Files that count: those that have a name and aren't the index.
    fn counted(&self) -> impl Iterator<Item = usize> + '_ {
        let named = self.names.iter().filter(|(path, _)| path.extension().is_none_or(|e| e != "redb"));
        named.map(|(_, inode)| *inode)
    }

    fn used(&self) -> u64 {
        self.counted().map(|inode| self.inodes[inode].now.len() as u64).sum()
    }

    /// How many of `bytes` bytes at `offset` there is room for.
    fn fits(&self, inode: usize, offset: u64, bytes: usize) -> usize {
        let Some(capacity) = self.capacity.filter(|_| self.counted().any(|counted| counted == inode)) else {
            return bytes;
        };
        let free = capacity.saturating_sub(self.used());
        let end = self.inodes[inode].now.len() as u64 + free;
        bytes.min(usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX))
    }

    fn name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> SimDisk {
        let disk = SimDisk::new();
        disk.create_dir(Path::new("/d")).expect("makes");
        let file = disk.create(Path::new("/d/f")).expect("creates");
        file.write_at(0, b"synced").expect("writes");
        file.sync_data().expect("syncs");
        disk.sync_dir(Path::new("/d")).expect("syncs");
        file.write_at(6, &[b'x'; 2000]).expect("writes");
        disk.create(Path::new("/d/g")).expect("creates");
        disk
    }

    fn content(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
        disk.open(Path::new(path)).ok().map(|f| super::super::read_all(&*f).expect("reads"))
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_of_the_rest_what_it_is_told() {
        let disk = written();
        let dropped = disk.after_crash(Unsynced::Dropped);
        assert_eq!(content(&dropped, "/d/f"), Some(b"synced".to_vec()));
        assert_eq!(content(&dropped, "/d/g"), None);
        let kept = disk.after_crash(Unsynced::Kept);
        assert_eq!(content(&kept, "/d/f").map(|c| c.len()), Some(2006));
        assert!(content(&kept, "/d/g").is_some());
        for seed in 0..20 {
            for unsynced in [Unsynced::Torn(seed), Unsynced::Reordered(seed)] {
                let bytes = content(&disk.after_crash(unsynced), "/d/f").expect("was synced");
                assert!(bytes.starts_with(b"synced"), "{unsynced:?}");
                assert_eq!(
                    Some(bytes),
                    content(&disk.after_crash(unsynced), "/d/f"),
                    "a seed gives the same again"
                );
            }
        }
    }

    #[test]
    fn after_the_crash_nothing_works() {
        let disk = written();
        disk.crash_after(1);
        let file = disk.open(Path::new("/d/f")).expect("opens");
        file.write_at(0, b"S").expect("before the crash");
        assert!(file.write_at(0, b"T").is_err() && file.sync_data().is_err());
        assert!(disk.create(Path::new("/d/h")).is_err());
    }
}
