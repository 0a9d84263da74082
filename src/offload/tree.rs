//! The spool as the engine sees it: by paths, for walks and reads, where [`crate::spool`] goes by inodes.
//!
//! The spool's paths are shaped by whoever writes through the mount. Nothing here follows a symbolic link, not even in
//! the middle of a path (openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), so that no path read as root leads out of the spool.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::{
    ids::RelPath,
    manifest::{Attrs, Timestamp},
    spool::Spool,
};

/// The spool by paths.
#[derive(Debug)]
pub struct SpoolTree {
    spool: Arc<Spool>,
}

impl SpoolTree {
    pub fn new(spool: Arc<Spool>) -> Self {
        Self { spool }
    }

    /// The same files with a descriptor of their own: the kernel tells each write-back error once to each descriptor, so whoever
    /// syncs beside completion must not take its errors away.
    pub fn apart(&self) -> io::Result<Self> {
        Spool::open(self.spool.path()).map(Self::new).map_err(io::Error::other)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.spool.path()
    }

    /// See [`Spool::sync`].
    pub fn sync(&self) -> io::Result<()> {
        self.spool.sync()
    }

    /// See [`Spool::used`].
    pub fn used(&self) -> io::Result<(u64, u64)> {
        self.spool.used()
    }

    /// The place of `path` in it, for walks and messages.
    pub fn place(&self, path: &RelPath) -> PathBuf {
        path.under(self.spool.path())
    }

    /// Opens what is at `path` for reading, without changing its access time and without waiting for a pipe's writer.
    pub fn open_file(&self, path: &RelPath) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match self.open_at(path, flags | OFlags::NOATIME) {
            // Only the owner and root may leave the access time alone.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => self.open_at(path, flags),
            other => other,
        }
    }

    fn open_at(&self, path: &RelPath, flags: OFlags) -> io::Result<File> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let fd = rustix::fs::openat2(self.spool.root(), path.as_path(), flags, Mode::empty(), resolve)?;
        Ok(File::from(fd))
    }

    /// The attributes of what is at `path` itself; `None` if nothing is.
    pub fn stat(&self, path: &RelPath) -> io::Result<Option<Metadata>> {
        match std::fs::symlink_metadata(self.place(path)) {
            Ok(found) => Ok(Some(found)),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A symbolic link's text.
    pub fn link_text(&self, path: &RelPath) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(self.spool.root(), path.as_path(), Vec::new())?.into_bytes())
    }

    /// Names of what is directly in `dir`, with their attributes; none if `dir` isn't there or isn't a directory.
    pub fn list(&self, dir: &RelPath) -> io::Result<Vec<(Vec<u8>, Metadata)>> {
        use std::os::unix::ffi::OsStringExt;
        let entries = match std::fs::read_dir(self.place(dir)) {
            Ok(entries) => entries,
            Err(e) if is_absent(&e) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(attrs) => found.push((entry.file_name().into_vec(), attrs)),
                Err(e) if is_absent(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }
}

/// Whether the error says that nothing is there, or that a directory on the way isn't one.
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}

/// The attributes that a manifest carries.
pub fn attrs_of(found: &Metadata) -> Attrs {
    let nanos = u32::try_from(found.mtime_nsec()).expect("the kernel's nanoseconds are below a second");
    Attrs {
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        mtime: Timestamp { secs: found.mtime(), nanos },
    }
}
