//! Why an operation of the file system did not succeed, and what it takes to try again.

use std::io;

use super::NodeId;
use crate::ids::{Hash, RelPath, UnitId};

/// Result of an operation.
pub type FsResult<T> = Result<T, FsError>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// Something isn't here: [`super::Fs::fulfil`] it, where waiting is allowed, and ask again.
    #[error("needs {0:?}")]
    Need(Need),
    /// What the caller of the system call is to see.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// What is committed can't be had now.
    #[error("{path}: {reason}")]
    Unavailable { path: RelPath, reason: String },
    /// The change can't be journaled, so it must not happen.
    #[error("{unit}: {reason}")]
    Journal { unit: UnitId, reason: String },
}

/// What an operation waits for.
#[derive(Debug, Clone)]
pub enum Need {
    /// These manifests, to tell what is at `path`.
    Manifests { path: RelPath, manifests: Vec<Hash> },
    /// These bytes of a file.
    Bytes { path: RelPath, content: Hash, size: u64, offset: u64, len: usize },
    /// Whether the content `old` is the beginning of `new`, each with its size.
    Comparison { path: RelPath, old: (Hash, u64), new: (Hash, u64) },
    /// The first `keep` bytes of the node's file, as a file of the spool.
    CopyUp { node: NodeId, keep: u64 },
    /// All that shows in a directory, in the spool: it is about to be moved.
    Subtree { node: NodeId },
    /// The local numbers of these names.
    Names { users: Vec<String>, groups: Vec<String> },
    /// The unit is just being freed.
    Thaw(UnitId),
    /// Another operation is at work at this path.
    Turn(RelPath),
}

impl FsError {
    /// The number that the system call fails with.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Errno(errno) => *errno,
            Self::Need(_) | Self::Unavailable { .. } | Self::Journal { .. } => libc::EIO,
        }
    }
}

impl From<io::Error> for FsError {
    fn from(error: io::Error) -> Self {
        Self::Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<rustix::io::Errno> for FsError {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Errno(error.raw_os_error())
    }
}

impl From<Need> for FsError {
    fn from(need: Need) -> Self {
        Self::Need(need)
    }
}

/// `ENOENT` is an answer, not an error.
pub(super) fn found<T>(result: io::Result<T>) -> FsResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}
