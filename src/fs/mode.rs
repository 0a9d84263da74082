//! A file's mode, and its setuid and setgid bits, which changing the content takes away unless the changer may set them.
//!
//! The kernel leaves that to us (`FUSE_HANDLE_KILLPRIV_V2`), so that it needn't look for such bits before every write(2): a file without
//! them is written with no word to anybody. Before the first write to one that has some it sends a change of attributes that changes none. Of a
//! truncation fuser doesn't hand on whether the changer may set them; there it is root who may.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{self as sys, Mode};

use super::{Caller, FsResult, SetAttr};
use crate::spool::proc_path;

impl SetAttr {
    /// Whether these, asked for by `caller`, are to take such bits away.
    pub(super) fn drops_ids(&self, caller: Caller) -> bool {
        let is_empty = *self == Self::default();
        is_empty || self.size.is_some() && is_dropped_by_cut(caller)
    }
}

/// Whether a truncation by `caller` takes such bits away.
pub(super) fn is_dropped_by_cut(caller: Caller) -> bool {
    caller.uid != 0
}

/// Takes them away from what `identity` names; whether it had any.
pub(super) fn drop_ids(identity: BorrowedFd<'_>) -> FsResult<bool> {
    let Some(perm) = without(sys::fstat(identity)?.st_mode) else { return Ok(false) };
    change(identity, perm).map(|()| true)
}

/// Sets the permissions of what `identity` names: fchmodat2(2) takes an `O_PATH` descriptor; kernels before 6.6 haven't got it.
pub(super) fn change(identity: BorrowedFd<'_>, perm: u32) -> FsResult<()> {
    let empty = c"".as_ptr();
    // SAFETY: the descriptor is open, `empty` is a C string, and both outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_fchmodat2, identity.as_raw_fd(), empty, perm, libc::AT_EMPTY_PATH) };
    match (result, std::io::Error::last_os_error()) {
        (0, _) => Ok(()),
        (_, e) if e.raw_os_error() != Some(libc::ENOSYS) => Err(e.into()),
        _ => Ok(sys::chmod(proc_path(identity).as_c_str(), Mode::from_raw_mode(perm))?),
    }
}

/// The permissions that are left; `None` = of a file without such bits.
fn without(mode: u32) -> Option<u32> {
    let perm = mode & 0o7777;
    let has = |bit| perm & bit != 0;
    // Without the group's right to execute, setgid means something else, and goes only where the kernel can't have meant another bit.
    let is_plain = has(libc::S_ISGID) && has(libc::S_IXGRP);
    match (has(libc::S_ISUID), is_plain) {
        (false, false) if !has(libc::S_ISGID) => None,
        (true, false) => Some(perm & !libc::S_ISUID),
        _ => Some(perm & !(libc::S_ISUID | libc::S_ISGID)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setgid_without_execution_goes_last() {
        let after = [0o100755, 0o104755, 0o102755, 0o106777, 0o106745, 0o102640].map(without);
        assert_eq!(after, [None, Some(0o755), Some(0o755), Some(0o777), Some(0o2745), Some(0o640)]);
    }
}
