//! The spool as the engine sees it: files below one directory descriptor.
//!
//! The spool's paths are shaped by whoever writes through the mount. Nothing here follows a symbolic link, not even in
//! the middle of a path (openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), so that no path read as root leads out of the spool.

use std::{
    fs::{File, Metadata},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use fs_err as fs;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::{
    ids::RelPath,
    manifest::{Attrs, Timestamp},
};

/// A directory tree, held open.
#[derive(Debug)]
pub struct SpoolTree {
    root: OwnedFd,
    path: PathBuf,
}

impl SpoolTree {
    /// Opens the directory at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root: File = fs::File::open(path)?.into_parts().0;
        Ok(Self { root: root.into(), path: path.to_owned() })
    }

    /// Writes everything of its file system to the disk (syncfs). The descriptor is held since start, so that an error
    /// of any write-back since then shows.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    /// How full its file system is, as df(1) counts: bytes used, and how many others than root could use in all.
    pub fn usage(&self) -> io::Result<(u64, u64)> {
        let found = rustix::fs::fstatvfs(&self.root)?;
        let used = found.f_blocks.saturating_sub(found.f_bfree);
        let usable = used.saturating_add(found.f_bavail);
        Ok((used.saturating_mul(found.f_frsize), usable.saturating_mul(found.f_frsize)))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The place of `path` in it, for walks and messages.
    pub fn place(&self, path: &RelPath) -> PathBuf {
        path.under(&self.path)
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
        let fd = rustix::fs::openat2(&self.root, path.as_path(), flags, Mode::empty(), resolve)?;
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
        Ok(rustix::fs::readlinkat(&self.root, path.as_path(), Vec::new())?.into_bytes())
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

/// Whether it is something that no manifest carries as an entry.
pub fn is_socket_or_device(found: &Metadata) -> bool {
    let kind = found.file_type();
    kind.is_socket() || kind.is_block_device() || kind.is_char_device()
}
