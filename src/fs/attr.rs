//! What the kernel is told of a node, from the spool's stat(2) or from a manifest's entry.

use std::time::Duration;

use rustix::fs::{FileType, Stat};

use super::NodeId;
use crate::manifest::Timestamp;

/// What a node is. It never changes while the node lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl Kind {
    /// From `st_mode`.
    pub fn of_mode(mode: u32) -> Self {
        Self::of(FileType::from_raw_mode(mode))
    }

    pub(super) fn of(file_type: FileType) -> Self {
        match file_type {
            FileType::Directory => Self::Dir,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::BlockDevice => Self::BlockDevice,
            FileType::RegularFile | FileType::Unknown => Self::File,
        }
    }
}

/// A node's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub node: NodeId,
    pub kind: Kind,
    /// `st_mode & 0o7777`.
    pub perm: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub size: u64,
    /// Of 512 bytes.
    pub blocks: u64,
    pub blksize: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

impl Attr {
    pub(super) fn of_stat(node: NodeId, stat: &Stat) -> Self {
        Self {
            node,
            kind: Kind::of_mode(stat.st_mode),
            perm: stat.st_mode & 0o7777,
            nlink: stat.st_nlink as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: rdev(stat.st_rdev),
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            blksize: stat.st_blksize as u32,
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime: mtime(stat),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// FUSE carries 32 bits of a device number, as the kernel's `new_encode_dev` packs them.
fn rdev(dev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

fn time(secs: i64, nanos: impl TryInto<u32>) -> Timestamp {
    Timestamp { secs, nanos: nanos.try_into().unwrap_or(0) }
}

/// The time of a file's last change.
pub(super) fn mtime(stat: &Stat) -> Timestamp {
    time(stat.st_mtime, stat.st_mtime_nsec)
}

/// A node that was looked up, and how long the kernel may believe it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub attr: Attr,
    pub entry_ttl: Duration,
    pub attr_ttl: Duration,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    To(Timestamp),
}

/// Attributes to set; `None` = leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits with setuid, setgid and sticky.
    pub perm: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// The kernel's number of the request, by which it is known when it comes again after a take-over.
    pub request: u64,
}
