//! Programs that run from the mount.
//!
//! A program that runs can't be opened for writing. The kernel sees to that before it asks us, but for one way of opening: `O_TRUNC` without
//! leave to write it hands to us first, and refuses only after we have emptied the file. By then the program has lost its text, and dies at the
//! next page that it touches. So this one case we refuse ourselves.

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// Whether opening a file this way empties it before the kernel has looked whether it runs.
pub(super) fn is_emptied_unseen(flags: i32) -> bool {
    flags & libc::O_TRUNC != 0 && flags & libc::O_ACCMODE == libc::O_RDONLY
}

/// Whether a process runs this node of the mount with this device number. Asks the kernel for what it has in its tables only, never ourselves.
pub(super) fn is_running(device: u32, node: u64) -> bool {
    let processes = fs_err::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit()).any(|process| {
        let program = process.path().join("exe");
        statx(CWD, &program, AtFlags::STATX_DONT_SYNC, StatxFlags::INO)
            .is_ok_and(|found| (found.stx_dev_major, found.stx_dev_minor, found.stx_ino) == (0, device, node))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_opening_that_truncates_and_does_not_write_is_emptied_unseen() {
        assert!(is_emptied_unseen(libc::O_RDONLY | libc::O_TRUNC));
        for flags in [libc::O_RDONLY, libc::O_WRONLY | libc::O_TRUNC, libc::O_RDWR | libc::O_TRUNC] {
            assert!(!is_emptied_unseen(flags));
        }
    }
}
