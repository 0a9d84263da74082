//! Changing a file's content takes its setuid and setgid bits away, unless the changer may set them.
//!
//! The kernel leaves that to us (`FUSE_HANDLE_KILLPRIV_V2`), so that it needn't look for such bits before every write(2): a file without
//! them is written with no word to anybody. Before the first write to one that has some it sends a change of attributes that changes none. Of a
//! truncation fuser doesn't hand on whether the changer may set them; there it is root who may.

use std::os::fd::BorrowedFd;

use rustix::fs as sys;

use super::{Caller, FsResult, SetAttr, change::change_mode};

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

/// Takes them away from what `identity` names.
pub(super) fn drop_ids(identity: BorrowedFd<'_>) -> FsResult<()> {
    without(sys::fstat(identity)?.st_mode).map_or(Ok(()), |perm| change_mode(identity, perm))
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
