//! How long a path may be that is made here.
//!
//! As long as one system call takes, from the top of the tree: what is longer is refused when it is to be made, by whichever call. By openat(2) it
//! could be made, and by moving a directory, and then no manifest could name it.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self as sys, Mode, OFlags};

use super::{Fs, FsError, FsResult, Kind};
use crate::{ids::RelPath, limits, spool::Spool};

/// The longest path of one call: the end's NUL counts.
const LONGEST: usize = limits::PATH_BYTES - 1;

impl Fs {
    /// Whether there may be something at `path`.
    pub(super) fn must_fit(&self, path: &RelPath) -> FsResult<()> {
        self.room_below(path).map(drop)
    }

    /// Bytes that a path may go on for below `path`.
    fn room_below(&self, path: &RelPath) -> FsResult<usize> {
        let room = LONGEST.checked_sub(path.as_bytes().len());
        room.ok_or(FsError::Errno(libc::ENAMETOOLONG))
    }

    /// Whether all that `dir`, `name` holds may be at `to` instead of at `from`. Costs a listing of each directory in it, where the way
    /// gets longer.
    pub(super) fn must_fit_at(
        &self,
        (dir, name): (BorrowedFd<'_>, &[u8]),
        from: &RelPath,
        (to, kind): (&RelPath, Kind),
    ) -> FsResult<()> {
        let room = self.room_below(to)?;
        if kind != Kind::Dir || to.as_bytes().len() <= from.as_bytes().len() {
            return Ok(());
        }
        below_fits(dir, name, room)
    }
}

fn below_fits(dir: BorrowedFd<'_>, name: &[u8], room: usize) -> FsResult<()> {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = sys::openat(dir, OsStr::from_bytes(name), flags, Mode::empty())?;
    for line in Spool::list(dir.as_fd())? {
        let left = room.checked_sub(line.name.len() + 1).ok_or(FsError::Errno(libc::ENAMETOOLONG))?;
        if Kind::of(line.kind) == Kind::Dir {
            below_fits(dir.as_fd(), &line.name, left)?;
        }
    }
    Ok(())
}
