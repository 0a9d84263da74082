//! The spool: the host's private directory, an ordinary tree on a local disk, that holds its live layers.
//!
//! Everything here is relative to a descriptor: the root's, held since start so that [`Spool::sync`] sees every write-back error
//! since then, or a directory's. Nothing follows a symbolic link. What is in the spool is named by [`Inode`], which survives
//! renames: a file handle where the file system gives them and this process may open them, otherwise an `O_PATH` descriptor. As descriptors are
//! few, it may be let go of ([`Inode::let_go`]); then the inode is found by its path.

pub mod activity;
mod handle;
pub mod sparse;

use std::{
    ffi::{CString, OsStr},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{self as sys, AtFlags, FileType, Mode, OFlags, Stat};

use self::handle::Handle;
pub use self::handle::InodeName;
use crate::ids::{Hash, RelPath};

/// What opening a path component for its identity takes: never its content, never what a link points to.
const IDENTITY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// linux/magic.h
const OVERLAYFS_MAGIC: u64 = 0x794c_7630;

/// The spool could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("spool {}: {source}", path.display())]
pub struct SpoolError {
    path: PathBuf,
    source: io::Error,
}

/// The root directory.
#[derive(Debug)]
pub struct Spool {
    root: OwnedFd,
    path: PathBuf,
    dev: u64,
    by_handle: bool,
}

/// One inode of the spool.
#[derive(Debug, Clone)]
pub struct Inode {
    dev: u64,
    ino: u64,
    reference: Reference,
}

#[derive(Debug, Clone)]
enum Reference {
    Handle(Handle),
    Fd(Arc<OwnedFd>),
    /// Let go of.
    Nothing,
}

impl Inode {
    /// Device and inode number: its identity while it exists.
    pub fn key(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    /// What names it to another process, if anything does: [`Inode::named`] takes that.
    pub fn name(&self) -> Option<InodeName> {
        match &self.reference {
            Reference::Handle(handle) => Some(handle.name()),
            Reference::Fd(_) | Reference::Nothing => None,
        }
    }

    /// Whether it takes up a descriptor.
    pub fn is_held(&self) -> bool {
        matches!(self.reference, Reference::Fd(_))
    }

    /// Gives its descriptor back: it is reached no more, and only its number is known. That may be given again once the inode has lost its last
    /// name.
    pub fn let_go(&mut self) {
        if self.is_held() {
            self.reference = Reference::Nothing;
        }
    }

    /// Whether it was let go of.
    pub fn is_let_go(&self) -> bool {
        matches!(self.reference, Reference::Nothing)
    }

    /// The inode with this device, number and name; `None` if that is no name.
    pub fn named(dev: u64, ino: u64, name: &[u8]) -> Option<Self> {
        Handle::named(name).map(|handle| Self { dev, ino, reference: Reference::Handle(handle) })
    }

    /// Whether both are the same inode, and not one that took over the other's number.
    pub fn is_same(&self, other: &Self) -> bool {
        self.key() == other.key()
            && match (&self.reference, &other.reference) {
                (Reference::Handle(a), Reference::Handle(b)) => a == b,
                // A descriptor keeps its inode's number from being used again.
                _ => true,
            }
    }
}

/// One line of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirLine {
    pub name: Vec<u8>,
    /// As the directory says; `Unknown` where the file system doesn't keep it.
    pub kind: FileType,
    pub ino: u64,
}

impl Spool {
    /// Opens `dir`, which must exist.
    pub fn open(dir: &Path) -> Result<Arc<Self>, SpoolError> {
        Self::open_with(dir, true)
    }

    /// The same, without file handles even where there are some: what overlayfs and who isn't root have to do with.
    pub fn open_without_handles(dir: &Path) -> Result<Arc<Self>, SpoolError> {
        Self::open_with(dir, false)
    }

    fn open_with(dir: &Path, may_use_handles: bool) -> Result<Arc<Self>, SpoolError> {
        let fail = |e: rustix::io::Errno| SpoolError { path: dir.to_owned(), source: e.into() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = sys::open(dir, flags, Mode::empty()).map_err(fail)?;
        let dev = sys::fstat(&root).map_err(fail)?.st_dev;
        let opens = || Handle::of(root.as_fd(), b"").and_then(|h| h.open(root.as_fd(), IDENTITY)).is_ok();
        let by_handle = may_use_handles && opens();
        if !by_handle {
            raise_descriptor_limit();
        }
        Ok(Arc::new(Self { root, path: dir.to_owned(), dev, by_handle }))
    }

    /// Its root's descriptor, open for reading.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The device it is on.
    pub fn dev(&self) -> u64 {
        self.dev
    }

    /// Whether inodes are named by file handles: then no descriptor is kept for each.
    pub fn uses_handles(&self) -> bool {
        self.by_handle
    }

    /// How many inodes may take up a descriptor at a time: half of what this process may have, the rest is for open files.
    pub fn held_max(&self) -> usize {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        limit.map_or(usize::MAX, |limit| usize::try_from(limit / 2).unwrap_or(usize::MAX))
    }

    /// Whether its file system lies on another one: then passthrough goes one level deeper.
    pub fn is_stacked(&self) -> bool {
        sys::fstatfs(&self.root).is_ok_and(|fs| fs.f_type as u64 == OVERLAYFS_MAGIC)
    }

    /// Makes everything written so far durable; fails if any write-back failed since the last call.
    pub fn sync(&self) -> io::Result<()> {
        Ok(sys::syncfs(&self.root)?)
    }

    /// Its file system's room.
    pub fn usage(&self) -> io::Result<sys::StatVfs> {
        Ok(sys::fstatvfs(&self.root)?)
    }

    /// How full its file system is, as df(1) counts: bytes used, and how many others than root could use in all.
    pub fn used(&self) -> io::Result<(u64, u64)> {
        let found = self.usage()?;
        let used = found.f_blocks.saturating_sub(found.f_bfree);
        let usable = used.saturating_add(found.f_bavail);
        Ok((used.saturating_mul(found.f_frsize), usable.saturating_mul(found.f_frsize)))
    }

    /// The root's own inode.
    pub fn root_inode(&self) -> io::Result<Inode> {
        self.identify(self.root(), b".").map(|(inode, _)| inode)
    }

    /// The inode that `name` in `dir` is, and its attributes.
    pub fn identify(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<(Inode, Stat)> {
        if !self.by_handle {
            return identify_by_fd(dir, name);
        }
        let stat = sys::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_dev != self.dev {
            return identify_by_fd(dir, name);
        }
        let handle = Handle::of(dir, name)?;
        Ok((Inode { dev: stat.st_dev, ino: stat.st_ino, reference: Reference::Handle(handle) }, stat))
    }

    /// The same of what was just made as `name` in `dir` and is open as `file`.
    pub fn identify_open(
        &self,
        file: BorrowedFd<'_>,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> io::Result<(Inode, Stat)> {
        let stat = sys::fstat(file)?;
        if !self.by_handle || stat.st_dev != self.dev {
            return identify_by_fd(dir, name);
        }
        let reference = Reference::Handle(Handle::of(file, b"")?);
        Ok((Inode { dev: stat.st_dev, ino: stat.st_ino, reference }, stat))
    }

    /// A descriptor of `inode` that names it, without access to its content. `ESTALE` when it is gone, or let go of.
    pub fn reach(&self, inode: &Inode) -> io::Result<Arc<OwnedFd>> {
        match &inode.reference {
            Reference::Handle(handle) => handle.open(self.root(), IDENTITY).map(Arc::new),
            Reference::Fd(fd) => Ok(fd.clone()),
            Reference::Nothing => Err(rustix::io::Errno::STALE.into()),
        }
    }

    /// Opens the content of what `identity` (from [`Spool::reach`]) names.
    pub fn reopen(identity: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = (flags - OFlags::NOFOLLOW) | OFlags::CLOEXEC;
        Ok(sys::open(proc_path(identity).as_c_str(), flags, Mode::empty())?)
    }

    /// A descriptor of `path` that names it, without following any link on the way.
    pub fn walk(&self, path: &RelPath) -> io::Result<OwnedFd> {
        let mut here = sys::openat(&self.root, ".", IDENTITY, Mode::empty())?;
        for name in path.components() {
            here = sys::openat(&here, OsStr::from_bytes(name), IDENTITY, Mode::empty())?;
        }
        Ok(here)
    }

    /// What a directory holds, `.` and `..` left out, in the order of the file system.
    pub fn list(dir: BorrowedFd<'_>) -> io::Result<Vec<DirLine>> {
        let dir = sys::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut buffer = Vec::with_capacity(64 << 10);
        let mut lines = sys::RawDir::new(dir, buffer.spare_capacity_mut());
        let mut found = Vec::new();
        while let Some(line) = lines.next() {
            let line = line?;
            let name = line.file_name().to_bytes();
            if name != b"." && name != b".." {
                found.push(DirLine { name: name.to_vec(), kind: line.file_type(), ino: line.ino() });
            }
        }
        Ok(found)
    }
}

fn identify_by_fd(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<(Inode, Stat)> {
    let fd = sys::openat(dir, OsStr::from_bytes(name), IDENTITY, Mode::empty())?;
    let stat = sys::fstat(&fd)?;
    Ok((Inode { dev: stat.st_dev, ino: stat.st_ino, reference: Reference::Fd(Arc::new(fd)) }, stat))
}

/// The hash of what a file holds.
pub fn hash_file(path: &Path) -> io::Result<Hash> {
    hash_of(fs_err::File::open(path)?)
}

/// The hash of all that is read.
pub fn hash_of(from: impl io::Read) -> io::Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(from)?;
    Ok(hasher.finalize().into())
}

/// An open file costs a descriptor, and so does an inode without a file handle: as many as the system lets us have.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!("the limit of open files stays {:?}: {e}", limit.current);
    }
}

/// The magic link to what a descriptor of this process names: the way to operate on an `O_PATH` descriptor where the kernel has
/// no call that takes one.
pub fn proc_path(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("digits have no NUL")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_inode_is_found_again_after_a_rename() {
        let dir = tempfile::tempdir().expect("a directory");
        fs_err::write(dir.path().join("a"), "text").expect("written");
        let spool = Spool::open(dir.path()).expect("opens");
        let (inode, stat) = spool.identify(spool.root(), b"a").expect("there");
        fs_err::rename(dir.path().join("a"), dir.path().join("b")).expect("renamed");
        let fd = spool.reach(&inode).expect("still there");
        assert_eq!(sys::fstat(&*fd).expect("stat").st_ino, stat.st_ino);
        let file = Spool::reopen(fd.as_fd(), OFlags::RDONLY).expect("opens");
        assert_eq!(std::fs::File::from(file).metadata().expect("stat").ino(), stat.st_ino);
    }

    #[test]
    fn an_inode_that_is_gone_is_not_taken_for_its_successor() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::open(dir.path()).expect("opens");
        let path = dir.path().join("a");
        fs_err::write(&path, "old").expect("written");
        let (old, _) = spool.identify(spool.root(), b"a").expect("there");
        for _ in 0..20 {
            fs_err::remove_file(&path).expect("removed");
            fs_err::write(&path, "new").expect("written");
            let (new, _) = spool.identify(spool.root(), b"a").expect("there");
            assert!(!old.is_same(&new));
        }
        if spool.uses_handles() {
            let error = spool.reach(&old).expect_err("gone");
            assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
        }
    }

    #[test]
    fn a_walk_follows_no_link() {
        let dir = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).expect("made");
        let spool = Spool::open(dir.path()).expect("opens");
        let path = RelPath::parse(&b"link/passwd"[..]).expect("a path");
        assert!(spool.walk(&path).is_err());
    }

    #[test]
    fn a_listing_has_every_name_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::open(dir.path()).expect("opens");
        for i in 0..3000 {
            fs_err::write(dir.path().join(format!("a long name of a file {i}")), "").expect("written");
        }
        let mut names: Vec<_> =
            Spool::list(spool.root()).expect("lists").into_iter().map(|l| l.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 3000);
    }
}
