//! `serve --stdio`: what ssh runs on the results host.
//!
//! It joins the daemon that answers on the socket and copies bytes both ways. Where none answers, it opens the store itself, under the store's
//! lock, and listens on the socket as long as it has any session, so that the next one can join. Of several that start at once, one gets the
//! lock and the others wait for its socket.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::fs::FileType;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{UnixStream, unix::pipe},
};

use super::{
    Identity, OpenStore, OpenStoreError, ServeError, ServeOptions, Server, StoreApi,
    daemon::{Sessions, StopSignals},
    socket::{self, Listener},
};
use crate::{
    transport::{BoxRead, BoxWrite},
    wire::{Join, PROTOCOL_VERSION},
};

/// How long to wait for another process that has the lock and doesn't listen yet.
const JOIN_WAIT: Duration = Duration::from_secs(10);
/// Between two looks.
const JOIN_PAUSE: Duration = Duration::from_millis(50);
const COPY_BYTES: usize = 256 << 10;

/// Serves the session on the standard streams, as `identity`.
pub async fn serve_stdio(
    open: OpenStore<'_>,
    options: ServeOptions,
    identity: Identity,
) -> Result<(), ServeError> {
    let (stdin, stdout) = standard_streams().map_err(ServeError::Stdio)?;
    serve_streams(stdin, stdout, open, options, identity, JOIN_WAIT).await
}

/// [`serve_stdio`] over any streams.
pub(super) async fn serve_streams<R, W>(
    reader: R,
    writer: W,
    open: OpenStore<'_>,
    options: ServeOptions,
    identity: Identity,
    patience: Duration,
) -> Result<(), ServeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    match find_store(open, &options.socket, patience).await? {
        Found::Daemon(stream) => {
            relay(reader, writer, stream, identity).await;
            Ok(())
        }
        Found::Store(store) => host_store(reader, writer, store, options, identity).await,
    }
}

enum Found {
    Daemon(UnixStream),
    Store(Arc<dyn StoreApi>),
}

async fn find_store(open: OpenStore<'_>, path: &Path, patience: Duration) -> Result<Found, ServeError> {
    let began = Instant::now();
    loop {
        match socket::connect(path).await {
            Ok(stream) => return Ok(Found::Daemon(stream)),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                return Err(ServeError::Socket { path: path.to_owned(), source });
            }
            Err(_) => {}
        }
        match open() {
            Ok(store) => return Ok(Found::Store(store)),
            Err(OpenStoreError::Failed(why)) => return Err(ServeError::Store(why)),
            Err(OpenStoreError::Locked) if began.elapsed() >= patience => {
                return Err(ServeError::Locked { path: path.to_owned(), waited_s: patience.as_secs() });
            }
            Err(OpenStoreError::Locked) => tokio::time::sleep(JOIN_PAUSE).await,
        }
    }
}

/// Says for whom, then copies bytes both ways until the daemon closes its end.
async fn relay<R, W>(reader: R, writer: W, stream: UnixStream, identity: Identity)
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let (from_daemon, mut to_daemon) = stream.into_split();
    let join = Join { version: PROTOCOL_VERSION, pinned_name: identity.pinned_name, rights: identity.rights };
    if let Err(error) = to_daemon.write_all(&join.frame().encode()).await {
        tracing::error!("the daemon went away: {error}");
        return;
    }
    let down = copy(from_daemon, writer);
    tokio::pin!(down);
    tokio::select! {
        () = &mut down => {}
        // The host has closed its end, and so does the daemon then; its last words are still copied.
        () = copy(reader, to_daemon) => down.await,
    }
}

/// Copies until either end closes, then closes the other.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; COPY_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..read]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Serves an opened store to this session and to whoever joins, until no session is left.
async fn host_store<R, W>(
    reader: R,
    writer: W,
    store: Arc<dyn StoreApi>,
    options: ServeOptions,
    identity: Identity,
) -> Result<(), ServeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let mut signals = StopSignals::listen()?;
    let listener = Listener::bind(&options.socket).await?;
    let server = Server::new(store, options.settings);
    let mut sessions = Sessions::new(&server, options.local_rights);
    let own = server.run_session(reader, writer, identity);
    tokio::select! {
        _ = async {
            tokio::select! {
                end = own => { tracing::debug!(?end, "own session ended"); }
                () = sessions.accept(&listener) => {}
            }
            sessions.accept_rest(&listener).await;
        } => {}
        () = signals.stop() => {}
    }
    drop(listener);
    sessions.finish().await;
    Ok(())
}

/// Descriptors 0 and 1, without the blocking threads of [`tokio::io::stdin`] where they are pipes or sockets, as sshd makes them.
fn standard_streams() -> io::Result<(BoxRead, BoxWrite)> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    Ok((input(stdin)?, output(stdout)?))
}

fn input(fd: OwnedFd) -> io::Result<BoxRead> {
    Ok(match kind_of(&fd)? {
        FileType::Fifo => Box::new(pipe::Receiver::from_owned_fd(fd)?),
        FileType::Socket => Box::new(socket_of(fd)?),
        _ => Box::new(tokio::io::stdin()),
    })
}

fn output(fd: OwnedFd) -> io::Result<BoxWrite> {
    Ok(match kind_of(&fd)? {
        FileType::Fifo => Box::new(pipe::Sender::from_owned_fd(fd)?),
        FileType::Socket => Box::new(socket_of(fd)?),
        _ => Box::new(tokio::io::stdout()),
    })
}

fn kind_of(fd: &OwnedFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

fn socket_of(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
