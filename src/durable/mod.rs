//! Durable writes: the one module that says when bytes are on the disk.
//!
//! [`write_atomic`] replaces a small file as a whole. The store's larger files go through the [`Disk`] trait, which names only what the
//! store relies on, so that a simulated disk ([`sim`], in tests) can crash at every one of these calls.
//!
//! What a [`Disk`] promises, and all that it promises:
//! - bytes and length of a file are durable once `sync_data` of that file has returned;
//! - a file's creation, renaming or removal is durable once `sync_dir` of its directory has returned;
//! - before that, after a crash, any part of what was written may be there, in any order;
//! - what was synced and not written over since is there.

mod mended;
mod real;
#[cfg(test)]
pub mod sim;

use std::{
    any::Any,
    ffi::OsString,
    fmt::Debug,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use mended::{can_write, mended};
pub use real::RealDisk;

/// An open file of a [`Disk`]. All offsets and lengths are bytes.
pub trait DiskFile: Send + Sync + Debug {
    /// Its present length.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `out` from `offset`; `UnexpectedEof` where the file ends before that.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// `bytes` bytes from `offset`; `UnexpectedEof` where the file ends before that.
    fn read_vec(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut out = vec![0; bytes];
        self.read_at(offset, &mut out)?;
        Ok(out)
    }

    /// Writes all of `bytes` at `offset`, growing the file with zeros if need be. Not durable.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts or grows (with zeros). Not durable.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes bytes and length durable.
    fn sync_data(&self) -> io::Result<()>;
}

/// How a lock file is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// With other readers.
    Shared,
    /// Alone.
    Exclusive,
}

/// Releases its lock when dropped (or when the process ends, however it ends).
pub type DiskLock = Box<dyn Any + Send + Sync>;

/// Room on a file system, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// That this process may still use.
    pub free: u64,
    pub total: u64,
}

/// What the store needs of a file system.
pub trait Disk: Send + Sync + Debug {
    /// An existing file, for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// An existing file, for reading only.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// A new file of mode 0600; `AlreadyExists` if there is one.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Makes a directory of mode 0700 and those above it; nothing if it is there.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    /// Renames over what may be there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name; `AlreadyExists` where that is taken.
    fn link(&self, path: &Path, name: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Room on the file system of `dir`.
    fn space(&self, dir: &Path) -> io::Result<Space>;

    /// Locks the lock file at `path`, creating it where missing (not for [`LockMode::Shared`], which changes nothing on the disk:
    /// without the file nobody holds it). `None`: somebody else has it.
    fn lock(&self, path: &Path, mode: LockMode) -> io::Result<Option<DiskLock>>;
}

/// Replaces the file at `path` by `bytes`, as a whole and durably: after a crash it holds either the old bytes or these.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomic_on(&RealDisk, path, bytes)
}

/// [`write_atomic`] on any disk. The temporary file is `<name>.tmp` beside it; one that a crash left is replaced.
pub fn write_atomic_on(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir =
        path.parent().ok_or_else(|| io::Error::other(format!("{} has no directory", path.display())))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    there(disk.remove(temporary))?;
    let file = disk.create(temporary)?;
    file.write_at(0, bytes)?;
    file.sync_data()?;
    disk.rename(temporary, path)?;
    disk.sync_dir(dir)
}

/// What was asked of a file, where it is an answer, and no error, that there is none.
pub fn there<T>(asked: io::Result<T>) -> io::Result<Option<T>> {
    match asked {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        asked => asked.map(Some),
    }
}

/// Gives `path` a second, durable name in `dir`, which is made: its own with a number that is free. `None` if there is no such file.
pub fn keep_in(disk: &dyn Disk, dir: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    disk.create_dir(dir)?;
    disk.sync_dir(dir.parent().expect("it is in a directory of ours"))?;
    let name = path.file_name().expect("a file has a name");
    for number in 1u32.. {
        let mut numbered = OsString::from(name);
        numbered.push(format!(".{number}"));
        let kept = dir.join(numbered);
        match disk.link(path, &kept) {
            Ok(()) => {
                disk.sync_dir(dir)?;
                return Ok(Some(kept));
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    unreachable!("some number is free")
}

/// Makes creations, renames and removals in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    RealDisk.sync_dir(dir)
}

/// Reads all of a file. For small files.
pub fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
    file.read_vec(0, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_atomic_replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("head");
        std::fs::write(dir.path().join("head.tmp"), b"left by a crash").expect("writes");
        write_atomic(&path, b"one").expect("writes");
        write_atomic(&path, b"two").expect("replaces");
        assert_eq!(std::fs::read(&path).expect("reads"), b"two");
        assert_eq!(RealDisk.list(dir.path()).expect("lists"), ["head"]);
    }

    #[test]
    fn a_part_of_a_file_is_read_as_a_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("pack");
        std::fs::write(&path, b"0123456789").expect("writes");
        let file = RealDisk.open_read(&path).expect("opens");
        assert_eq!(file.read_vec(2, 3).expect("reads"), b"234");
        assert_eq!(file.read_vec(5, 5).expect("reads"), b"56789");
        assert_eq!(file.read_vec(3, 0).expect("reads"), b"");
        let cut = file.read_vec(5, 6).expect_err("ends before that");
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_exclusive_lock_is_refused_to_a_second_and_free_after_the_first() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("lock");
        let lock = |mode| RealDisk.lock(&path, mode).expect("locks");
        let first = lock(LockMode::Exclusive).expect("free");
        assert!(lock(LockMode::Exclusive).is_none() && lock(LockMode::Shared).is_none());
        drop(first);
        let reader = lock(LockMode::Shared).expect("free");
        assert!(lock(LockMode::Shared).is_some() && lock(LockMode::Exclusive).is_none());
        drop(reader);
        assert!(lock(LockMode::Exclusive).is_some());
    }
}
