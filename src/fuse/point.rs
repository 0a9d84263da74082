//! The mount point: what it must be, mount(2) and umount2(2).
//!
//! Done here and not by fuser, so that the type reads `fuse.resultsfs`, and because fuser, after somebody else has unmounted, unmounts
//! the path once more and may hit a successor. Who isn't root goes through fusermount3, which hands over the descriptor.

use std::{
    ffi::{CString, OsString},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStringExt, fs::MetadataExt, net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{self as sys, Mode, OFlags},
    io as sysio,
    mount::{MountFlags, UnmountFlags},
    net,
};

use super::{MountError, MountOptions};

/// The type of our mounts in /proc/self/mountinfo.
const FS_TYPE: &str = "fuse.resultsfs";
/// fusermount3 hands the descriptor over on the socket with this number.
const COMM_FD: &str = "_FUSE_COMMFD";

/// Where the kernel's control file system for FUSE belongs.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// How long a killed daemon may take to let go of its mount.
const DYING: Duration = Duration::from_secs(3);

/// A mount that was made.
#[derive(Debug)]
pub(super) struct Point {
    path: PathBuf,
    device: u32,
}

/// A line of /proc/self/mountinfo.
struct MountLine {
    minor: u32,
    fs_type: String,
}

impl Point {
    /// Checks `path` and mounts on it; the descriptor is /dev/fuse's.
    pub(super) fn mount(path: &Path, options: &MountOptions) -> Result<(Self, OwnedFd), MountError> {
        let path = check(path)?;
        let fail = |source| MountError::Mount { path: path.clone(), source };
        let device = if rustix::process::geteuid().is_root() {
            mount_directly(&path, options)
        } else {
            mount_by_helper(&path, options)
        };
        let device = device.map_err(fail)?;
        let minor = mount_at(&path)
            .filter(|line| line.fs_type == FS_TYPE)
            .map(|line| line.minor)
            .ok_or_else(|| fail(io::Error::other("the mount isn't in /proc/self/mountinfo")))?;
        Ok((Self { path, device: minor }, device))
    }

    /// The mount of ours with this device number, if it is still there.
    pub(super) fn existing(path: &Path, device: u32) -> Option<Self> {
        let line = mount_at(path)?;
        let is_it = line.minor == device && line.fs_type == FS_TYPE;
        is_it.then(|| Self { path: path.to_owned(), device })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn device(&self) -> u32 {
        self.device
    }

    /// Has the kernel read ahead as much as fits into one request: its default of 128 KiB costs a remote file eight times as many. After
    /// the session's first request, which sets it back. Files that are read past us aren't concerned.
    pub(super) fn widen_read_ahead(&self) {
        let file = format!("/sys/class/bdi/0:{}/read_ahead_kb", self.device);
        if let Err(e) = fs_err::write(file, "1024") {
            tracing::debug!("the kernel reads ahead in small steps: {e}");
        }
    }

    /// Unmounts, if what is on the path is still this mount.
    pub(super) fn unmount(&self, lazy: bool) -> Result<(), MountError> {
        let fail = |source| MountError::Unmount { path: self.path.clone(), source };
        match mount_at(&self.path) {
            Some(line) if line.minor == self.device && line.fs_type == FS_TYPE => {}
            _ => return Ok(()),
        }
        unmount(&self.path, lazy).map_err(fail)
    }
}

/// Takes a mount away whose daemon is gone.
pub fn clear_dead(path: &Path) -> Result<(), MountError> {
    unmount(path, true).map_err(|source| MountError::Unmount { path: path.to_owned(), source })
}

fn unmount(path: &Path, lazy: bool) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return unmount_by_helper(path, lazy);
    }
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    Ok(rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW)?)
}

/// The path as mountinfo will have it, if it is a directory that may be mounted on. A dead mount of ours there is cleared away.
fn check(path: &Path) -> Result<PathBuf, MountError> {
    let fail = |source| MountError::Point { path: path.to_owned(), source };
    if is_dead(path) {
        tracing::warn!(path = %path.display(), "a dead mount was left here; clearing it away");
        clear_dead(path)?;
    }
    let path = path.canonicalize().map_err(fail)?;
    if !path.is_dir() {
        return Err(MountError::NotADirectory(path));
    }
    if mount_at(&path).is_some_and(|line| line.fs_type == FS_TYPE) {
        return Err(MountError::AlreadyMounted(path));
    }
    let mut entries = fs_err::read_dir(&path).map_err(fail)?;
    if entries.next().is_some() { Err(MountError::NotEmpty(path)) } else { Ok(path) }
}

/// Whether a mount without a daemon is there. A daemon that was killed lets go of its mount a moment after it has gone from sight, so one
/// that is alive is looked at again for that long.
fn is_dead(path: &Path) -> bool {
    let end = Instant::now() + DYING;
    loop {
        // Not stat(2): the kernel may answer that from what it remembers.
        match sys::statfs(path) {
            Err(sysio::Errno::NOTCONN | sysio::Errno::CONNABORTED) => return true,
            _ if mount_at(path).is_none_or(|line| line.fs_type != FS_TYPE) || Instant::now() > end => {
                return false;
            }
            _ => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn mount_directly(path: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    let device = sys::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // Never one of the standard streams, which a daemon closes or points elsewhere.
    let device = if device.as_raw_fd() > 2 { device } else { sysio::fcntl_dupfd_cloexec(&device, 3)? };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let root_mode = fs_err::metadata(path)?.mode();
    let mut data = format!(
        "fd={},rootmode={root_mode:o},user_id={uid},group_id={gid},default_permissions",
        device.as_raw_fd()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if options.read_only {
        flags |= MountFlags::RDONLY;
    }
    let data = CString::new(data)?;
    rustix::mount::mount(options.fs_name.as_str(), path, FS_TYPE, flags, Some(data.as_c_str()))?;
    Ok(device)
}

fn mount_by_helper(path: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut words = format!(
        "nosuid,nodev,default_permissions,subtype=resultsfs,fsname={}",
        options.fs_name.replace('\\', "\\\\").replace(',', "\\,")
    );
    if options.allow_other {
        words.push_str(",allow_other");
    }
    if options.read_only {
        words.push_str(",ro");
    }
    let socket = theirs.as_raw_fd();
    let mut command = Command::new("fusermount3");
    command.arg("-o").arg(words).arg("--").arg(path).env(COMM_FD, socket.to_string());
    // SAFETY: between fork and exec only fcntl(2) is called, which is async-signal-safe, on a descriptor that lives until
    // the child has begun.
    unsafe {
        command.pre_exec(move || {
            let socket = rustix::fd::BorrowedFd::borrow_raw(socket);
            Ok(sysio::fcntl_setfd(socket, sysio::FdFlags::empty())?)
        });
    }
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    drop(theirs);
    let device = receive_descriptor(&ours);
    let output = child.wait_with_output()?;
    device.map_err(|_| io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = net::RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    net::recvmsg(socket, &mut parts, &mut control, net::RecvFlags::CMSG_CLOEXEC)?;
    let mut received = control.drain().filter_map(|message| match message {
        net::RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let descriptor = received.next().and_then(|mut fds| fds.next());
    descriptor.ok_or_else(|| io::Error::other("no descriptor came"))
}

fn unmount_by_helper(path: &Path, lazy: bool) -> io::Result<()> {
    let flags: &[&str] = if lazy { &["-u", "-z"] } else { &["-u"] };
    let status = Command::new("fusermount3").args(flags).arg("--").arg(path).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("fusermount3 -u: {status}"))) }
}

/// What is mounted at `path`, uppermost.
fn mount_at(path: &Path) -> Option<MountLine> {
    let lines = fs_err::read("/proc/self/mountinfo").ok()?;
    lines.split(|b| *b == b'\n').filter_map(|line| parse_line(line, path)).next_back()
}

/// Whether the device that files are on (`st_dev`) is a mount of ours.
pub fn is_mount_of_ours(dev: u64) -> bool {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let device = format!("{major}:{minor}");
    let lines = fs_err::read("/proc/self/mountinfo").unwrap_or_default();
    lines.split(|b| *b == b'\n').any(|line| {
        let mut fields = line.split(|b| *b == b' ');
        fields.nth(2) == Some(device.as_bytes())
            && fields.skip_while(|field| *field != b"-").nth(1) == Some(FS_TYPE.as_bytes())
    })
}

/// See proc_pid_mountinfo(5): id, parent, major:minor, root, mount point, options, optional fields, `-`, type.
fn parse_line(line: &[u8], path: &Path) -> Option<MountLine> {
    let mut fields = line.split(|b| *b == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    if point != path {
        return None;
    }
    let minor = device.split_once(':')?.1.parse().ok()?;
    let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(MountLine { minor, fs_type: String::from_utf8_lossy(fs_type).into_owned() })
}

/// Blanks, tabs, newlines and backslashes are written as `\040` and so on.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code =
            octal.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        plain.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    plain
}

/// Whether somebody answers for the mount on `path` within `bound`. What waits longer than that waits in a thread of its own.
pub fn answers(path: &Path, bound: Duration) -> bool {
    let (told, answer) = std::sync::mpsc::channel();
    let path = path.to_owned();
    thread::spawn(move || {
        let is_dead = matches!(sys::statfs(&path), Err(sysio::Errno::NOTCONN | sysio::Errno::CONNABORTED));
        // Who asked may have gone on.
        let _ = told.send(!is_dead);
    });
    answer.recv_timeout(bound).unwrap_or(false)
}

/// Ends the kernel's connection of the mount with this device number: everything that waits for it fails at once. For whoever
/// must not hang, come what may. The kernel's control file system is mounted for it where nobody has done that.
pub fn abort_connection(device: u32) -> io::Result<()> {
    let path = Path::new(CONNECTIONS).join(device.to_string()).join("abort");
    if !path.exists() {
        rustix::mount::mount("fusectl", CONNECTIONS, "fusectl", MountFlags::empty(), None)?;
    }
    fs_err::write(path, "1")
}

/// The same for the mount of ours on `path`, if there is one.
pub fn abort_at(path: &Path) {
    if let Some(line) = mount_at(path).filter(|line| line.fs_type == FS_TYPE)
        && let Err(e) = abort_connection(line.minor)
    {
        tracing::warn!("can't abort the mount at {}: {e}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_a_blank_is_found() {
        let line = br"36 35 98:7 /mnt1 /mnt\040two rw,noatime master:1 - fuse.resultsfs name rw";
        let found = parse_line(line, Path::new("/mnt two")).expect("found");
        assert_eq!((found.minor, found.fs_type.as_str()), (7, FS_TYPE));
        assert!(parse_line(line, Path::new("/mnt")).is_none());
    }

    #[test]
    fn a_mount_point_must_be_an_empty_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        fs_err::write(&file, "").expect("written");
        assert!(matches!(check(&file), Err(MountError::NotADirectory(_))));
        let full = check(dir.path()).expect_err("not empty");
        assert!(matches!(full, MountError::NotEmpty(_)));
        assert!(matches!(check(&dir.path().join("none")), Err(MountError::Point { .. })));
    }
}
