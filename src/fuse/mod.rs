//! The kernel's side of the mount: a thin adapter from fuser to the file system.
//!
//! | module | is |
//! |---|---|
//! | `adapter` | one method a request: from fuser's types to [`crate::fs::Fs`] and back |
//! | `backing` | which open files the kernel reads and writes past us |
//! | `bare` | listings that only name what is there |
//! | `pool` | the threads that wait where an operation must |
//! | `point` | the mount point: checks, mount(2), umount2(2) |
//! | `notice` | telling the kernel what to forget, from another process |
//! | `texts` | programs that run aren't emptied |
//! | `times` | fuser's times and ours |
//! | `session` | beginning with a new session, or going on with one that another process has left |
//!
//! Invariants (each was measured; the opposite loses data, fails or hangs):
//! - Never the write-back cache: what it has acknowledged dies with the daemon.
//! - All opens of one inode at a time are passthrough with one backing id, or none is.
//! - Passthrough excludes `FOPEN_KEEP_CACHE`.
//! - Extended attributes are answered `ENOSYS`, or the kernel asks for one before every write.
//! - Nothing is told to the kernel from a handler, under a lock, or by this process at all: it might never end.
//! - A handler never panics out: fuser's thread would be gone for good.

mod adapter;
mod backing;
mod bare;
mod notice;
mod point;
mod pool;
mod session;
mod texts;
mod times;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use self::{adapter::Adapter, notice::Carriage, point::Point, session::Prepared};
pub use self::{
    notice::{Notices, carry as carry_notices},
    point::{abort_at, abort_connection, answers, clear_dead, is_mount_of_ours},
};
use crate::fs::{Fs, ledger::Origin};

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
    /// This program: it is started once more, to send notices to the kernel ([`carry_notices`]).
    pub program: PathBuf,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            allow_other: true,
            read_only: false,
            fs_name: "resultsfs".to_owned(),
            passthrough: Passthrough::Auto,
            // Also where another file is by that name now.
            program: PathBuf::from("/proc/self/exe"),
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
    /// What was left behind isn't the mount that is there.
    #[error("the mount at {} is over", _0.display())]
    Over(PathBuf),
}

/// A live mount. Dropping it does not unmount: what ends a mount is said.
pub struct Mounted {
    point: Point,
    device: OwnedFd,
    capabilities: u64,
    notices: Notices,
    passthrough: Arc<backing::Backings>,
    ended: Arc<Ended>,
    /// The session until it runs.
    prepared: Mutex<Option<Prepared>>,
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
    let mounted = prepare(fs, mountpoint, options)?;
    mounted.serve()?;
    Ok(mounted)
}

/// Mounts `fs` on `mountpoint`; it answers from [`Mounted::serve`] on.
pub fn prepare(fs: Arc<Fs>, mountpoint: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    let (point, device) = Point::mount(mountpoint, options)?;
    let begun = Parts::new(options.passthrough, &point, &device, options).and_then(|parts| {
        let kept = device.try_clone()?;
        let prepared = Prepared::begin(parts.adapter(fs.clone(), &point), device, config(), acl(options))?;
        parts.backings.probe(&fs);
        Ok((parts, prepared, kept))
    });
    match begun {
        Ok((parts, prepared, device)) => {
            point.widen_read_ahead();
            Ok(parts.mounted(point, device, prepared))
        }
        Err(source) => {
            let _ = point.unmount(true);
            Err(MountError::Session { path: mountpoint.to_owned(), source })
        }
    }
}

/// Whether the mount with this number is still on `mountpoint`.
pub fn is_mounted(mountpoint: &Path, number: u32) -> bool {
    Point::existing(mountpoint, number).is_some()
}

/// Whether the session behind `device` lives.
pub fn is_live(device: &OwnedFd) -> bool {
    session::is_alive(device.as_fd())
}

/// Goes on with the mount on `mountpoint` that another process has served through `device`, with what `fs` has inherited from it.
pub fn take_over(
    fs: Arc<Fs>,
    device: OwnedFd,
    origin: &Origin,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<Mounted, MountError> {
    let point =
        Point::existing(mountpoint, origin.device).ok_or_else(|| MountError::Over(mountpoint.to_owned()))?;
    // What the kernel has of it was settled when the mount was made.
    let passthrough =
        if session::has_passthrough(origin.capabilities) { Passthrough::Auto } else { Passthrough::Off };
    let session_error = |source| MountError::Session { path: mountpoint.to_owned(), source };
    let parts = Parts::new(passthrough, &point, &device, options).map_err(session_error)?;
    parts.backings.inherit(&fs);
    let forgotten = fs.after_takeover();
    let adapter = parts.adapter(fs, &point);
    let prepared = Prepared::go_on(adapter, device.as_fd(), origin.capabilities, config(), acl(options));
    let mounted = parts.mounted(point, device, prepared.map_err(session_error)?);
    mounted.notices.tell(forgotten);
    Ok(mounted)
}

/// What a session and its owner share.
struct Parts {
    backings: Arc<backing::Backings>,
    notices: Notices,
    granted: Arc<AtomicU64>,
}

impl Parts {
    fn new(
        passthrough: Passthrough,
        point: &Point,
        device: &OwnedFd,
        options: &MountOptions,
    ) -> io::Result<Self> {
        let carriage = Carriage {
            program: options.program.clone(),
            device: device.try_clone()?,
            mountpoint: point.path().to_owned(),
        };
        let backings = Arc::new(backing::Backings::new(passthrough));
        backings.set_device(device.try_clone()?);
        Ok(Self { backings, notices: Notices::start(carriage)?, granted: Arc::default() })
    }

    fn adapter(&self, fs: Arc<Fs>, point: &Point) -> Adapter {
        let granted = self.granted.clone();
        Adapter::new(fs, self.backings.clone(), self.notices.clone(), granted, point.device())
    }

    fn mounted(self, point: Point, device: OwnedFd, prepared: Prepared) -> Mounted {
        Mounted {
            point,
            device,
            capabilities: self.granted.load(Ordering::Acquire),
            notices: self.notices,
            passthrough: self.backings,
            ended: Arc::default(),
            prepared: Mutex::new(Some(prepared)),
        }
    }
}

fn config() -> fuser::Config {
    let mut config = fuser::Config::default();
    config.n_threads = Some(threads());
    config
}

fn acl(options: &MountOptions) -> fuser::SessionACL {
    if options.allow_other { fuser::SessionACL::All } else { fuser::SessionACL::Owner }
}

impl Mounted {
    /// Answers from now on, requests first that a predecessor has left unanswered.
    pub fn serve(&self) -> Result<(), MountError> {
        let prepared = self.prepared.lock().expect("no code panics under this lock").take();
        let Some(prepared) = prepared else { return Ok(()) };
        let ended = self.ended.clone();
        let fail = |source| MountError::Session { path: self.point.path().to_owned(), source };
        prepared.ask_again(self.device.as_fd()).map_err(fail)?;
        let run = move || ended.set(prepared.run());
        thread::Builder::new().name("fuse-session".to_owned()).spawn(run).map_err(fail)?;
        Ok(())
    }

    /// For who holds it, so that it outlives this process.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// What the kernel has of what it was asked for.
    pub fn capabilities(&self) -> u64 {
        self.capabilities
    }

    /// Whether the kernel can send requests again that a process has left unanswered: without that nobody can take the mount over.
    pub fn can_be_taken_over(&self) -> bool {
        session::has_resend(self.capabilities)
    }

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
