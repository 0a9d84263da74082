//! `serve --stdio`: what ssh runs on the results host.
//!
//! It gives its standard streams to the daemon that answers on the socket, and lives as long as the session does. Where none answers, it opens
//! the store itself, under the store's lock, and listens on the socket as long as it has any session, so that the next one can join. Of several
//! that start at once, one gets the lock and the others wait for its socket.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{io::AsyncReadExt, net::UnixStream, time::timeout};

use super::{
    Identity, OpenStore, OpenStoreError, ServeError, ServeOptions, Server, StoreApi,
    daemon::{self, Sessions, StopSignals},
    repair,
    socket::{self, Listener},
    streams::Streams,
};
use crate::{
    buffers, limits,
    spool::raise_descriptor_limit,
    wire::{JOIN_VERSION, Join},
};

/// How long to wait for another process that has the lock and doesn't listen yet.
const JOIN_WAIT: Duration = Duration::from_secs(10);
/// Between two looks.
const JOIN_PAUSE: Duration = Duration::from_millis(50);

/// Serves the session on the standard streams, as `identity`.
pub async fn serve_stdio(
    open: OpenStore<'_>,
    options: ServeOptions,
    identity: Identity,
) -> Result<(), ServeError> {
    buffers::restrain_allocator();
    raise_descriptor_limit();
    let streams = Streams::standard().map_err(ServeError::Stdio)?;
    serve_streams(streams, open, options, identity, JOIN_WAIT).await
}

/// [`serve_stdio`] over any streams.
pub(super) async fn serve_streams(
    streams: Streams,
    open: OpenStore<'_>,
    options: ServeOptions,
    identity: Identity,
    patience: Duration,
) -> Result<(), ServeError> {
    match find_store(open, &options.socket, patience).await? {
        Found::Daemon(daemon) => hand_over(streams, daemon, identity, &options.socket).await,
        Found::Store(store) => host_store(streams, store, options, identity).await,
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

/// Gives the session to the daemon, then waits for its end: sshd takes it for over when this process ends.
async fn hand_over(
    streams: Streams,
    mut daemon: UnixStream,
    identity: Identity,
    path: &Path,
) -> Result<(), ServeError> {
    let join = Join { version: JOIN_VERSION, pinned_name: identity.pinned_name, rights: identity.rights };
    let given = async {
        streams.give(&daemon, &join).await?;
        daemon.read_u8().await
    };
    let patience = Duration::from_millis(limits::GREETING_TIMEOUT_MS);
    let given = timeout(patience, given).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    given.map_err(|source| ServeError::NotTaken { path: path.to_owned(), source })?;
    // It says nothing more. However the daemon ends, this ends, too.
    let _ = daemon.read_u8().await;
    Ok(())
}

/// Serves an opened store to this session and to whoever joins, until no session is left.
async fn host_store(
    streams: Streams,
    store: Arc<dyn StoreApi>,
    options: ServeOptions,
    identity: Identity,
) -> Result<(), ServeError> {
    let (reader, writer) = streams.open().map_err(ServeError::Stdio)?;
    let mut signals = StopSignals::listen()?;
    let listener = Listener::bind(&options.socket).await?;
    let server = Server::new(store, options.settings);
    let mut sessions = Sessions::new(&server, options.local_rights);
    let own = server.run_session(reader, writer, identity);
    let order = tokio::select! {
        _ = async {
            tokio::select! {
                end = own => { tracing::debug!(?end, "own session ended"); }
                () = sessions.accept(&listener) => {}
            }
            sessions.accept_rest(&listener).await;
        } => None,
        () = signals.stop() => None,
        () = daemon::mended(&server) => None,
        order = server.repairs.come() => Some(order),
    };
    drop(listener);
    sessions.finish().await;
    // One that came with the end of the last session.
    if let Some(order) = order.or_else(|| server.repairs.take()) {
        let repair = tokio::task::spawn_blocking(move || repair::carry_out(server, order).tell());
        tokio::select! {
            _ = repair => {}
            () = signals.stop() => {}
        }
    }
    Ok(())
}
