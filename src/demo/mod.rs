//! The whole system on one machine: a generator of jobs, and a player.

pub mod digest;
mod fleet;
pub mod generate;
pub mod play;
mod random;

use std::{io, path::Path};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

/// Sets the time of `path` itself, not of what it may link to.
fn set_mtime(path: &Path, ns: u64) -> io::Result<()> {
    let time = Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("{}: {e}", path.display())))
}
