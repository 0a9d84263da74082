//! `mount --adopt`: what is in the mount point becomes the spool.
//!
//! Everything directly in it is renamed into the spool, which is one metadata operation each: nothing is copied, open files stay open, and a crash in
//! between leaves the rest where it was, for the next `--adopt`. So both must be on one file system.

use std::{ffi::OsString, io, path::Path};

use fs_err as fs;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::DaemonError;
use crate::durable;

/// Moves what is in `mountpoint` into `spool`, and says how much that was. A name that is in both is refused before anything is moved.
pub fn adopt(mountpoint: &Path, spool: &Path) -> Result<usize, DaemonError> {
    let fail = |source| DaemonError::Path { what: "can't adopt", path: mountpoint.to_owned(), source };
    let entries = fs::read_dir(mountpoint).map_err(fail)?;
    let names: Vec<OsString> =
        entries.map(|e| e.map(|e| e.file_name())).collect::<io::Result<_>>().map_err(fail)?;
    if let Some(both) = names.iter().find(|name| fs::symlink_metadata(spool.join(name)).is_ok()) {
        let path = spool.join(both);
        let source = io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the spool has this already; move one of the two away",
        );
        return Err(DaemonError::Path { what: "can't adopt", path, source });
    }
    for name in &names {
        renameat_with(CWD, mountpoint.join(name), CWD, spool.join(name), RenameFlags::NOREPLACE).map_err(|e| {
            let path = mountpoint.join(name);
            let source = match e {
                rustix::io::Errno::XDEV => io::Error::new(
                    io::ErrorKind::CrossesDevices,
                    format!("it isn't on the spool's file system; set spool_dir to a directory on the same one as {}", mountpoint.display()),
                ),
                other => other.into(),
            };
            DaemonError::Path { what: "can't adopt", path, source }
        })?;
    }
    durable::sync_dir(spool).and_then(|()| durable::sync_dir(mountpoint)).map_err(fail)?;
    Ok(names.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_mount_point_becomes_the_spool_and_nothing_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let (point, spool) = (dir.path().join("point"), dir.path().join("spool"));
        fs::create_dir_all(point.join("1-me/host1")).expect("a directory");
        fs::write(point.join("1-me/host1/status.log"), "GOOD").expect("a file");
        fs::create_dir_all(&spool).expect("a directory");
        assert_eq!(adopt(&point, &spool).expect("adopted"), 1);
        assert_eq!(fs::read_to_string(spool.join("1-me/host1/status.log")).expect("a file"), "GOOD");
        fs::create_dir_all(point.join("1-me")).expect("a directory");
        fs::write(point.join("2-me"), "").expect("a file");
        assert!(adopt(&point, &spool).is_err());
        assert!(point.join("2-me").exists(), "nothing was moved");
    }
}
