//! How long a path may be that is made here.
//!
//! The engine walks the spool by paths, and one system call takes [`KERNEL_PATH_BYTES`]. So what is too long for that, below the directories that
//! it works in, is refused when it is to be made; otherwise it would be here and could never be offloaded. What other hosts have made
//! shows, up to the bound of the formats.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::fs::{self as sys, Mode, OFlags};

use super::{Fs, FsError, FsResult, Kind};
use crate::{ids::RelPath, limits, spool::Spool};

/// The longest path of one call, its end's NUL left out.
const KERNEL_PATH_BYTES: usize = 4095;
/// Room for the names of scratch directories in the directory for what is under way.
const SCRATCH_BYTES: usize = 64;

/// The longest path that may be made in `spool` while copies of it are put together in `tmp_dir`.
pub(super) fn longest(spool: &Path, tmp_dir: &Path) -> usize {
    let [spool, tmp] = [spool, tmp_dir].map(|dir| dir.as_os_str().len() + 1);
    KERNEL_PATH_BYTES.saturating_sub(spool.max(tmp + SCRATCH_BYTES)).min(limits::PATH_BYTES)
}

impl Fs {
    /// Whether there may be something at `path`.
    pub(super) fn must_fit(&self, path: &RelPath) -> FsResult<()> {
        self.room_below(path).map(drop)
    }

    /// Bytes that a path may go on for below `path`.
    fn room_below(&self, path: &RelPath) -> FsResult<usize> {
        let room = self.longest_path.checked_sub(path.as_bytes().len());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_made_can_be_walked() {
        let (spool, tmp) = (Path::new("/var/lib/resultsfs/spool"), Path::new("/var/lib/resultsfs/tmp"));
        let longest = longest(spool, tmp);
        assert!(longest > 4000 && longest < limits::PATH_BYTES);
        let longest_in_spool = spool.as_os_str().len() + 1 + longest;
        assert!(longest_in_spool <= KERNEL_PATH_BYTES);
    }
}
