//! File handles of the kernel: a name for an inode that needs no descriptor and survives renames.
//!
//! See name_to_handle_at(2). A handle carries the inode's generation, so that a number that is used again is a different handle.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use rustix::fs::OFlags;

/// The longest handle that is kept; every local file system's is far shorter (ext4: 8, xfs: 24, btrfs: 40 bytes).
const HANDLE_BYTES: usize = 40;

/// The kernel's `struct file_handle` with room for a whole one.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; HANDLE_BYTES],
}

/// A handle as bytes: its kind, then its data.
#[derive(Debug, Clone, Copy)]
pub struct InodeName {
    bytes: [u8; 4 + HANDLE_BYTES],
    len: usize,
}

impl std::ops::Deref for InodeName {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Handle {
    pub(super) fn name(&self) -> InodeName {
        let mut bytes = [0; 4 + HANDLE_BYTES];
        let (kind, data) = bytes.split_at_mut(4);
        kind.copy_from_slice(&self.kind.to_ne_bytes());
        data.copy_from_slice(&self.data);
        InodeName { bytes, len: 4 + self.bytes as usize }
    }

    pub(super) fn named(name: &[u8]) -> Option<Self> {
        let (kind, bytes) = name.split_first_chunk::<4>()?;
        let mut data = [0; HANDLE_BYTES];
        data.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self { bytes: bytes.len() as u32, kind: i32::from_ne_bytes(*kind), data })
    }

    /// The handle of `name` in `dir`; of `dir` itself if `name` is empty. A link isn't followed.
    pub(super) fn of(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Self> {
        let name = CString::new(name)?;
        let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
        let mut handle = Self { bytes: HANDLE_BYTES as u32, kind: 0, data: [0; HANDLE_BYTES] };
        let mut mount_id = 0;
        // SAFETY: `handle` is laid out as `struct file_handle` with `bytes` bytes of room behind its head, `name` is a C
        // string, `mount_id` is an int; all outlive the call.
        let result = unsafe {
            libc::name_to_handle_at(
                dir.as_raw_fd(),
                name.as_ptr(),
                (&raw mut handle).cast(),
                &raw mut mount_id,
                flags,
            )
        };
        if result == 0 { Ok(handle) } else { Err(io::Error::last_os_error()) }
    }

    /// Opens what it names, on the file system that `mount` is on. Needs CAP_DAC_READ_SEARCH; `ESTALE` when it is gone.
    pub(super) fn open(&self, mount: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
        let mut handle = *self;
        // SAFETY: `handle` is laid out as `struct file_handle` and holds what the kernel wrote into it; it outlives the call.
        let fd = unsafe {
            libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags.bits() as i32)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
