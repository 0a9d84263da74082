//! `serve`: the results host's daemon on a unix socket.

use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    thread,
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::timeout,
};

use super::{
    Identity, Server, SessionEnd, StoreApi,
    repair::{self, Order},
    socket::{self, Listener},
    streams::{self, First, Streams},
};
use crate::{
    buffers, durable, limits,
    spool::raise_descriptor_limit,
    wire::{
        JOIN_VERSION, Join,
        frame::{Bounds, Frame},
        rights::Rights,
    },
};

/// How long sessions may take to end when the daemon stops.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// Pause after accept(2) failed, which mostly means that descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long somebody else may take to close the store.
const LOCK_WAIT: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// What a joining process is told when its streams were taken.
const TAKEN: u8 = 1;

/// Where and how to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The unix socket.
    pub socket: PathBuf,
    /// Settings that must agree between host and store, as `name=value`.
    pub settings: Vec<String>,
    /// What a process on this machine may do that connects to the socket and joins for nobody else: the results host's own mount.
    pub local_rights: Rights,
}

/// Opens the store under its lock; called at most until it succeeds.
pub type OpenStore<'a> = &'a (dyn Fn() -> Result<Arc<dyn StoreApi>, OpenStoreError> + Send + Sync);

/// Why a store can't be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenStoreError {
    /// Another process has it open.
    #[error("another process has the store open")]
    Locked,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A daemon answers there.
    #[error("another daemon serves {}", path.display())]
    Served { path: PathBuf },
    /// Somebody has the store open, and doesn't answer on the socket.
    #[error(
        "another process has the store open, and nothing answers on {} (waited {waited_s} s); \
         is another `serve` running, or a `serve --stdio` from before?",
        path.display()
    )]
    Locked { path: PathBuf, waited_s: u64 },
    /// The store can't be opened.
    #[error("can't open the store: {0}")]
    Store(String),
    /// The socket can't be made or used.
    #[error("socket {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    /// The standard streams can't be used.
    #[error("standard streams: {0}")]
    Stdio(io::Error),
    /// The daemon didn't take the session.
    #[error(
        "the daemon on {} didn't take the session over: {source}; is its store under repair, or does it run another version, or as another user?",
        path.display()
    )]
    NotTaken { path: PathBuf, source: io::Error },
    /// A write failed, and the disk can be written again.
    #[error(
        "a write to the store had failed; its disk can be written again, and the store is to be opened anew"
    )]
    Mended,
    /// The process can't listen to signals.
    #[error("signals: {0}")]
    Signals(io::Error),
}

/// Serves the store until SIGTERM or SIGINT.
pub async fn serve(open: OpenStore<'_>, options: ServeOptions) -> Result<(), ServeError> {
    buffers::restrain_allocator();
    // Each session is three descriptors: by hand, without the unit's limit, a shell's 1024 would be 300 sessions.
    raise_descriptor_limit();
    let mut signals = StopSignals::listen()?;
    serve_until(open, options, signals.stop()).await
}

/// [`serve`] until `stop`.
pub(super) async fn serve_until(
    open: OpenStore<'_>,
    options: ServeOptions,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let mut store = open_alone(open, &options.socket).await?;
    let listener = Listener::open(&options.socket).await?;
    let mut stop = pin!(stop);
    loop {
        let server = Server::new(store, options.settings.clone());
        tell_systemd(&[NotifyState::Ready, NotifyState::Status("serving")]);
        tracing::info!(socket = %options.socket.display(), store = %server.store.uuid(), "serving");
        let mut sessions = Sessions::new(&server, options.local_rights);
        let end = tokio::select! {
            () = sessions.accept(&listener) => End::Stopped,
            () = &mut stop => End::Stopped,
            () = mended(&server) => End::Mended,
            order = server.repairs.come() => End::Repair(order),
        };
        if !matches!(end, End::Repair(_)) {
            tell_systemd(&[NotifyState::Stopping]);
        }
        sessions.finish().await;
        let order = match end {
            End::Stopped => return Ok(()),
            End::Mended => return Err(ServeError::Mended),
            End::Repair(order) => order,
        };
        // Who connects meanwhile waits, or comes again.
        tell_systemd(&[NotifyState::Status("repairing the store; hosts wait")]);
        let repair = tokio::task::spawn_blocking(move || repair::carry_out(server, order));
        let reopened = async {
            let answer = repair.await;
            // Somebody may have begun to check it.
            let opened = open_when_free(open).await;
            // Only now, and on its own: there may be a pager behind.
            if let Ok(answer) = answer {
                thread::spawn(move || answer.tell());
            }
            opened
        };
        store = tokio::select! {
            opened = reopened => opened?,
            // A repair may be cut off anywhere.
            () = &mut stop => return Ok(()),
        };
    }
}

/// Why a store is served no more.
enum End {
    Stopped,
    /// See [`mended`].
    Mended,
    Repair(Order),
}

fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("can't tell systemd how the daemon is: {error}");
    }
}

/// Opens the store; where somebody has it, says who that is if he answers. A socket that systemd passed is this process's own: nobody else
/// answers there. What a command has just opened for itself is waited for.
async fn open_alone(open: OpenStore<'_>, socket: &Path) -> Result<Arc<dyn StoreApi>, ServeError> {
    if let Ok(opened) = timeout(LOCK_WAIT, open_when_free(open)).await {
        return opened;
    }
    let answers = socket::passed_by_systemd().is_none() && socket::connect(socket).await.is_ok();
    let path = socket.to_owned();
    Err(match answers {
        true => ServeError::Served { path },
        false => ServeError::Locked { path, waited_s: LOCK_WAIT.as_secs() },
    })
}

/// Opens the store as soon as nobody else has it, however long that takes.
async fn open_when_free(open: OpenStore<'_>) -> Result<Arc<dyn StoreApi>, ServeError> {
    loop {
        match open() {
            Ok(store) => return Ok(store),
            Err(OpenStoreError::Failed(why)) => return Err(ServeError::Store(why)),
            Err(OpenStoreError::Locked) => tokio::time::sleep(LOCK_PAUSE).await,
        }
    }
}

/// Returns when a write to the store has failed and its disk can be written again: then somebody must open it anew, and that is the next process.
pub(super) async fn mended(server: &Server) {
    let Some(store) = server.store.on_disk() else { return std::future::pending().await };
    let failure = || store.has_failed().then(|| "a write has failed".to_owned());
    durable::mended(store.dir(), "nothing is taken in", failure).await;
}

/// SIGTERM and SIGINT; SIGHUP is ignored, since an ssh session that ends must not end others' work.
pub(super) struct StopSignals {
    term: Signal,
    int: Signal,
    _hup: Signal,
}

impl StopSignals {
    pub(super) fn listen() -> Result<Self, ServeError> {
        let listen = |kind| signal(kind).map_err(ServeError::Signals);
        Ok(Self {
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
            _hup: listen(SignalKind::hangup())?,
        })
    }

    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Sessions that came over the socket.
pub(super) struct Sessions {
    server: Arc<Server>,
    local: Identity,
    running: JoinSet<SessionEnd>,
}

impl Sessions {
    pub(super) fn new(server: &Arc<Server>, local_rights: Rights) -> Self {
        let local = Identity { pinned_name: None, rights: local_rights };
        Self { server: Arc::clone(server), local, running: JoinSet::new() }
    }

    /// Accepts for ever.
    pub(super) async fn accept(&mut self, listener: &Listener) {
        loop {
            tokio::select! {
                stream = listener.accept(), if self.running.len() < limits::CONNECTIONS => self.begin(stream).await,
                Some(_) = self.running.join_next() => {}
            }
        }
    }

    /// Accepts until no session is left.
    pub(super) async fn accept_rest(&mut self, listener: &Listener) {
        while !self.running.is_empty() {
            tokio::select! {
                stream = listener.accept(), if self.running.len() < limits::CONNECTIONS => self.begin(stream).await,
                _ = self.running.join_next() => {}
            }
        }
    }

    async fn begin(&mut self, stream: io::Result<UnixStream>) {
        match stream {
            Ok(stream) => {
                let session = on_socket(Arc::clone(&self.server), stream, self.local.clone());
                self.running.spawn(session);
            }
            Err(error) => {
                tracing::error!("can't accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    /// Ends them all; what a session had begun to commit is committed.
    pub(super) async fn finish(mut self) {
        self.server.stop();
        let all = async { while self.running.join_next().await.is_some() {} };
        if timeout(STOP_WAIT, all).await.is_err() {
            tracing::warn!("sessions did not end in {} s and are cut off", STOP_WAIT.as_secs());
        }
    }
}

/// A session for this machine's own mount, on the socket itself; or for whom the joining process speaks, on the streams that it gives.
async fn on_socket(server: Arc<Server>, socket: UnixStream, local: Identity) -> SessionEnd {
    let First { bytes, streams } = match first(&socket).await {
        Ok(first) => first,
        Err(end) => {
            tracing::warn!(?end, "a process on this machine began no session");
            return end;
        }
    };
    match streams {
        Some(streams) => match joined(&server, socket, &bytes, streams).await {
            Ok(end) => end,
            Err(why) => {
                tracing::warn!("a process on this machine could not join: {why}");
                SessionEnd::Broken(why)
            }
        },
        None => {
            let (rest, writer) = socket.into_split();
            server.run_session(io::Cursor::new(bytes).chain(rest), writer, local).await
        }
    }
}

/// What is said first. Only root and this user's processes get here, and what sshd has started speaks at once: these have no place yet.
async fn first(socket: &UnixStream) -> Result<First, SessionEnd> {
    let greeting = Duration::from_millis(limits::GREETING_TIMEOUT_MS);
    match timeout(greeting, streams::receive(socket)).await {
        Ok(first) => first.map_err(|error| SessionEnd::Broken(error.to_string())),
        Err(_) => Err(SessionEnd::Broken(format!("nothing was said in {} s", greeting.as_secs()))),
    }
}

/// Tells the joining process that the session is taken, and serves it as long as that process lives.
async fn joined(
    server: &Arc<Server>,
    mut socket: UnixStream,
    bytes: &[u8],
    streams: Streams,
) -> Result<SessionEnd, String> {
    let join = match Frame::decode(bytes, &Bounds::JOIN) {
        Ok(Some((Frame::Join(body), end))) if end == bytes.len() => Join::decode(&body),
        other => return Err(format!("streams without a join: {other:?}")),
    };
    let identity = match join {
        Ok(join) if join.version == JOIN_VERSION => {
            Identity { pinned_name: join.pinned_name, rights: join.rights }
        }
        join => return Err(format!("a join of another version: {join:?}")),
    };
    let (reader, writer) = streams.open().map_err(|error| format!("the streams of a join: {error}"))?;
    socket.write_u8(TAKEN).await.map_err(|error| error.to_string())?;
    let key = identity.pinned_name.clone();
    Ok(tokio::select! {
        end = server.run_session(reader, writer, identity) => end,
        _ = socket.read_u8() => {
            tracing::info!(key, "session ended: the process that sshd waits for is gone");
            SessionEnd::Closed
        }
    })
}
