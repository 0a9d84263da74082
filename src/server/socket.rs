//! The daemon's unix socket: making it, finding out whether somebody serves it already, and who may connect.

use std::{
    env, io,
    os::{
        fd::{FromRawFd, RawFd},
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use fs_err as fs;
use tokio::net::{UnixListener, UnixStream};

use super::ServeError;

/// The first descriptor that systemd passes.
const LISTEN_FDS_START: RawFd = 3;

/// A listening socket; dropped, it removes its path if it made it.
#[derive(Debug)]
pub(super) struct Listener {
    inner: UnixListener,
    owner_uid: u32,
    /// Kept for its drop.
    _made: Option<Made>,
}

/// The file that was made: only this one is removed, not one that another daemon put in its place.
#[derive(Debug)]
struct Made {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for Made {
    fn drop(&mut self) {
        // Tidiness only: a socket that stays is recognised as stale by the next daemon.
        if let Ok(found) = fs::symlink_metadata(&self.path)
            && (found.dev(), found.ino()) == (self.device, self.inode)
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// The socket that systemd passed, or a fresh one at `path`.
    pub(super) async fn open(path: &Path) -> Result<Self, ServeError> {
        match passed_by_systemd() {
            Some(fd) => {
                Self::adopt(fd).map_err(|source| ServeError::Socket { path: path.to_owned(), source })
            }
            None => Self::bind(path).await,
        }
    }

    fn adopt(fd: RawFd) -> io::Result<Self> {
        // SAFETY: systemd passes this descriptor to this very process (LISTEN_PID was compared), and nothing else here takes it.
        let listener = unsafe { std::os::unix::net::UnixListener::from_raw_fd(fd) };
        listener.set_nonblocking(true)?;
        Ok(Self { inner: UnixListener::from_std(listener)?, owner_uid: my_uid(), _made: None })
    }

    /// Makes the socket and its directory. A stale one is replaced; a live one is somebody's, and an error.
    pub(super) async fn bind(path: &Path) -> Result<Self, ServeError> {
        if UnixStream::connect(path).await.is_ok() {
            return Err(ServeError::Served { path: path.to_owned() });
        }
        let fail = |source| ServeError::Socket { path: path.to_owned(), source };
        make_way(path).map_err(fail)?;
        let inner = UnixListener::bind(path).map_err(fail)?;
        // Between bind and here the mode is the umask's; peers are checked one by one in any case.
        fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(fail)?;
        let made = fs::symlink_metadata(path).map_err(fail)?;
        let made = Made { path: path.to_owned(), device: made.dev(), inode: made.ino() };
        Ok(Self { inner, owner_uid: my_uid(), _made: Some(made) })
    }

    /// The next stream from somebody who may connect: root, or the owner of the socket.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.inner.accept().await?;
            let uid = stream.peer_cred()?.uid();
            if uid == 0 || uid == self.owner_uid {
                return Ok(stream);
            }
            tracing::warn!(uid, "refused a connection: only root and the daemon's own user may connect");
        }
    }

    /// Whether its path was made here.
    #[cfg(test)]
    pub(super) fn is_made(&self) -> bool {
        self._made.is_some()
    }
}

/// Connects to a daemon, which must be root's or this user's: whoever else has put a socket there is no store.
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path).await?;
    let uid = stream.peer_cred()?.uid();
    if uid != 0 && uid != my_uid() {
        let why = format!("{} is served by the user {uid}, neither root nor this one", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(stream)
}

fn my_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn make_way(path: &Path) -> io::Result<()> {
    if let Some(dir) = path.parent()
        && !dir.as_os_str().is_empty()
        && !dir.exists()
    {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, PermissionsExt::from_mode(0o755))?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that isn't a socket is there")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// sd_listen_fds(3): one socket, meant for this process.
pub(super) fn passed_by_systemd() -> Option<RawFd> {
    let number = |name| env::var(name).ok()?.parse::<u32>().ok();
    let for_us = number("LISTEN_PID")? == std::process::id();
    (for_us && number("LISTEN_FDS")? >= 1).then_some(LISTEN_FDS_START)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run/serve.sock");
        let first = Listener::bind(&path).await.expect("binds, and makes the directory");
        assert!(first.is_made());
        assert_eq!(path.metadata().expect("is there").permissions().mode() & 0o777, 0o600);
        assert!(matches!(Listener::bind(&path).await, Err(ServeError::Served { .. })));
        std::mem::forget(first._made);
        drop(first.inner);
        assert!(path.exists(), "a killed daemon leaves its socket");
        let second = Listener::bind(&path).await.expect("replaces it");
        drop(second);
        assert!(!path.exists());
        fs::write(&path, "precious").expect("writes");
        assert!(matches!(Listener::bind(&path).await, Err(ServeError::Socket { .. })));
        assert_eq!(fs::read(&path).expect("is there"), b"precious");
    }

    #[tokio::test]
    async fn a_socket_from_systemd_is_served_and_left_in_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("serve.sock");
        let passed = std::os::unix::net::UnixListener::bind(&path).expect("binds");
        let listener = Listener::adopt(std::os::fd::IntoRawFd::into_raw_fd(passed)).expect("adopts");
        let (connected, accepted) = tokio::join!(connect(&path), listener.accept());
        connected.expect("connects");
        accepted.expect("accepts");
        assert!(!listener.is_made());
        drop(listener);
        assert!(path.exists(), "systemd's socket is systemd's");
    }
}
