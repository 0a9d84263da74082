//! The spool as the engine sees it: by paths, for walks and reads, where [`crate::spool`] goes by inodes.
//!
//! The spool's paths are shaped by whoever writes through the mount. Nothing here follows a symbolic link, not even in
//! the middle of a path (openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), so that no path read as root leads out of the spool.

use std::{
    ffi::OsStr,
    fs::{File, Metadata},
    io,
    os::{
        fd::AsFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::MetadataExt,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::{
    ids::RelPath,
    manifest::{Attrs, Timestamp},
    spool::{Spool, proc_path},
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

    /// A descriptor that names what is at `path` itself, without access to its content.
    fn identify(&self, path: &RelPath) -> io::Result<File> {
        self.open_at(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)
    }

    /// The attributes of what is at `path` itself; `None` if nothing is.
    pub fn stat(&self, path: &RelPath) -> io::Result<Option<Metadata>> {
        match self.identify(path).and_then(|identity| identity.metadata()) {
            Ok(found) => Ok(Some(found)),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A symbolic link's text.
    pub fn link_text(&self, path: &RelPath) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(self.identify(path)?, "", Vec::new())?.into_bytes())
    }

    /// Names of what is directly in `dir`, with their attributes; none if `dir` isn't there or isn't a directory.
    pub fn list(&self, dir: &RelPath) -> io::Result<Vec<(Vec<u8>, Metadata)>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = self.open_at(dir, flags);
        let entries =
            opened.and_then(|dir| std::fs::read_dir(OsStr::from_bytes(proc_path(dir.as_fd()).to_bytes())));
        let entries = match entries {
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

/// Whether the error says that nothing is there, or that a directory on the way isn't one (but a symbolic link, for example).
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// P10's counterpart on a host: whoever writes through the mount can't make the engine look elsewhere.
    #[test]
    fn no_link_is_followed_not_even_in_the_middle() {
        let (dir, elsewhere) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another"));
        fs_err::write(elsewhere.path().join("secret"), "text").expect("written");
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("link")).expect("made");
        let tree = SpoolTree::new(Spool::open(dir.path()).expect("opens"));
        let path = |text: &str| text.parse::<RelPath>().expect("a path");
        assert!(tree.stat(&path("link")).expect("readable").expect("there").is_symlink());
        assert_eq!(tree.link_text(&path("link")).expect("a link"), elsewhere.path().as_os_str().as_bytes());
        assert!(tree.list(&path("link")).expect("nothing").is_empty());
        assert!(tree.stat(&path("link/secret")).expect("nothing").is_none());
        assert!(tree.open_file(&path("link/secret")).is_err());
        assert_eq!(tree.list(&RelPath::ROOT).expect("readable").len(), 1);
    }
}
