//! The kernel's side of the mount: a thin adapter from fuser to the file system.
//!
//! | module | is |
//! |---|---|
//! | `adapter` | one method a request: from fuser's types to [`crate::fs::Fs`] and back |
//! | `backing` | which open files the kernel reads and writes past us |
//! | `pool` | the threads that wait where an operation must |
//! | `point` | the mount point: checks, mount(2), umount2(2) |
//! | `notice` | the thread that tells the kernel what to forget |
//!
//! Invariants (each was measured; the opposite loses data, fails or hangs):
//! - Never the write-back cache: what it has acknowledged dies with the daemon.
//! - All opens of one inode at a time are passthrough with one backing id, or none is.
//! - Passthrough excludes `FOPEN_KEEP_CACHE`.
//! - Extended attributes are answered `ENOSYS`, or the kernel asks for one before every write.
//! - Nothing is told to the kernel from a handler or under a lock.
//! - A handler never panics out: fuser's thread would be gone for good.

mod adapter;
mod backing;
mod notice;
mod point;
mod pool;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    thread,
};

use self::{adapter::Adapter, point::Point};
pub use self::{
    notice::Notices,
    point::{abort_connection, clear_dead},
};
use crate::fs::Fs;

/// Whether local files are read and written past the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passthrough {
    /// Where the kernel, the spool's file system and our rights allow it.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// How to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// Others than the daemon's user may use it.
    pub allow_other: bool,
    pub read_only: bool,
    /// Shown as the mount's source.
    pub fs_name: String,
    pub passthrough: Passthrough,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            allow_other: true,
            read_only: false,
            fs_name: "resultsfs".to_owned(),
            passthrough: Passthrough::Auto,
        }
    }
}

/// Why nothing was mounted, or couldn't be unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point isn't there, or not to be looked at.
    #[error("mount point {}: {source}", path.display())]
    Point { path: PathBuf, source: io::Error },
    #[error("mount point {} is not a directory", _0.display())]
    NotADirectory(PathBuf),
    #[error("{} is a resultsfs mount already; `resultsfs umount` ends it", _0.display())]
    AlreadyMounted(PathBuf),
    /// Mounting over files would hide them.
    #[error(
        "mount point {} is not empty; `resultsfs mount --adopt` makes what is in it the spool, or move it elsewhere first \
         (`resultsfs import`, which will send it to the store, isn't built yet)",
        _0.display()
    )]
    NotEmpty(PathBuf),
    #[error("mounting {}: {source}", path.display())]
    Mount { path: PathBuf, source: io::Error },
    #[error("unmounting {}: {source}", path.display())]
    Unmount { path: PathBuf, source: io::Error },
    #[error("the kernel's session for {} could not begin: {source}", path.display())]
    Session { path: PathBuf, source: io::Error },
}

/// A live mount. Dropping it does not unmount: what ends a mount is said.
pub struct Mounted {
    point: Point,
    notices: Notices,
    passthrough: Arc<backing::Backings>,
    ended: Arc<Ended>,
}

#[derive(Default)]
struct Ended {
    result: Mutex<Option<Result<(), String>>>,
    changed: Condvar,
}

/// Threads that read requests: with two a busy one doesn't hold up the other's clients; more only wake one another. Two on one CPU
/// only take turns.
fn threads() -> usize {
    thread::available_parallelism().map_or(1, |cpus| cpus.get().min(2))
}

/// Mounts `fs` on `mountpoint` and serves it from threads of its own.
pub fn mount(fs: Arc<Fs>, mountpoint: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    let (point, device) = Point::mount(mountpoint, options)?;
    let backings = Arc::new(backing::Backings::new(options.passthrough));
    let (notices, outbox) = Notices::new();
    let adapter = Adapter::new(fs, backings.clone(), notices.clone());
    let mut config = fuser::Config::default();
    config.n_threads = Some(threads());
    let acl = if options.allow_other { fuser::SessionACL::All } else { fuser::SessionACL::Owner };
    let session = fuser::Session::from_fd(adapter, device, acl, config).map_err(|source| {
        let _ = point.unmount(true);
        MountError::Session { path: mountpoint.to_owned(), source }
    })?;
    outbox.start(session.notifier());
    let ended = Arc::new(Ended::default());
    thread::Builder::new()
        .name("fuse-session".to_owned())
        .spawn({
            let ended = ended.clone();
            move || ended.set(session.run())
        })
        .map_err(|source| MountError::Session { path: mountpoint.to_owned(), source })?;
    Ok(Mounted { point, notices, passthrough: backings, ended })
}

impl Mounted {
    /// Waits until the mount has ended, by whomever.
    pub fn wait(&self) -> Result<(), String> {
        let result = self.ended.result.lock().expect("no code panics under this lock");
        let result = self.ended.changed.wait_while(result, |r| r.is_none());
        result.expect("no code panics under this lock").clone().expect("waited for it")
    }

    /// Whether the mount has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.result.lock().expect("no code panics under this lock").is_some()
    }

    /// Ends it; `EBUSY` while it is used, unless `lazy`: then it ends when nobody uses it any more.
    pub fn unmount(&self, lazy: bool) -> Result<(), MountError> {
        if self.has_ended() { Ok(()) } else { self.point.unmount(lazy) }
    }

    /// Where to say what the kernel must forget.
    pub fn notifier(&self) -> Notices {
        self.notices.clone()
    }

    /// Whether local files are read and written past the daemon: false once the kernel has refused it.
    pub fn is_passthrough(&self) -> bool {
        self.passthrough.is_on()
    }

    /// The mount's device number, which is also the name of its directory in `/sys/fs/fuse/connections`.
    pub fn device(&self) -> u32 {
        self.point.device()
    }
}

impl Ended {
    fn set(&self, result: io::Result<()>) {
        if let Err(e) = &result {
            tracing::error!("the mount has ended: {e}");
        }
        *self.result.lock().expect("no code panics under this lock") =
            Some(result.map_err(|e| e.to_string()));
        self.changed.notify_all();
    }
}
