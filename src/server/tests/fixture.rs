//! A store in memory behind a socket, hosts with links, and a host that says what it likes.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::super::{
    Identity, Server, SessionEnd, StoreApi, daemon::Sessions, mem::MemStore, socket::Listener,
};
use crate::{
    catalog::{Head, Record},
    chunk::{ObjectKind, block::BlockBuilder},
    ids::{Generation, Hash, HostUuid, Incarnation, RelPath, Seq, UnitId},
    manifest::{Attrs, Body, Entry, Manifest, Timestamp},
    transport::Target,
    wire::{
        CommitRequest, FromStore, Hello, PROTOCOL_VERSION, RefusalCode, ToStore,
        link::{Link, LinkError, LinkEvent, Timing},
        message_frame,
        rights::Rights,
    },
};

/// A bound for whatever a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon over a [`MemStore`] on a socket of its own.
pub struct Lab {
    pub dir: TempDir,
    pub store: Arc<MemStore>,
    pub server: Arc<Server>,
    pub daemon: Option<JoinHandle<()>>,
}

impl Lab {
    pub async fn new() -> Self {
        let store = MemStore::new();
        let server = Server::new(Arc::clone(&store) as _, vec!["complete_on=archiver".to_owned()]);
        let dir = tempfile::tempdir().expect("a directory");
        let mut lab = Self { dir, store, server, daemon: None };
        lab.start(Rights::default()).await;
        lab
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("serve.sock")
    }

    pub async fn start(&mut self, rights: Rights) {
        let listener = Listener::bind(&self.socket()).await.expect("binds");
        let server = Arc::clone(&self.server);
        let accept = async move { Sessions::new(&server, rights).accept(&listener).await };
        self.daemon = Some(tokio::spawn(accept));
    }

    /// As a kill does: sessions end wherever they are.
    pub async fn kill(&mut self) {
        let daemon = self.daemon.take().expect("it runs");
        daemon.abort();
        let _ = daemon.await;
    }

    pub fn host(&self, name: &str) -> Host {
        Host::connect(Target::Unix(self.socket()), hello(name))
    }
}

pub fn hello(name: &str) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        host: HostUuid::random(),
        host_name: name.to_owned(),
        known: None,
        settings: vec!["complete_on=parser".to_owned()],
    }
}

/// A host with its link.
pub struct Host {
    pub link: Link,
    pub events: mpsc::UnboundedReceiver<LinkEvent>,
    pub hello: Hello,
}

impl Host {
    pub fn connect(target: Target, hello: Hello) -> Self {
        let timing = Timing {
            reconnect_min: Duration::from_millis(10),
            reconnect_max: Duration::from_millis(50),
            ..Timing::default()
        };
        Self::connect_with(target, hello, timing)
    }

    pub fn connect_with(target: Target, hello: Hello, timing: Timing) -> Self {
        let (tell, events) = mpsc::unbounded_channel();
        let said = hello.clone();
        let link = Link::start_with(target, Arc::new(move || said.clone()), tell, timing);
        Self { link, events, hello }
    }

    pub async fn event(&mut self) -> LinkEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("in time").expect("the link lives")
    }

    pub async fn up(&mut self) -> crate::wire::Welcome {
        loop {
            if let LinkEvent::Up(welcome) = self.event().await {
                return welcome;
            }
        }
    }

    pub async fn down(&mut self) -> (String, Option<RefusalCode>) {
        loop {
            if let LinkEvent::Down { reason, refused } = self.event().await {
                return (reason, refused);
            }
        }
    }

    pub async fn records(&mut self) -> Vec<Record> {
        loop {
            if let LinkEvent::Records(records) = self.event().await {
                return records.to_vec();
            }
        }
    }

    pub async fn wait_up(&self) {
        self.link.wait_up(PATIENCE).await.expect("comes up");
    }

    /// Sends a manifest and commits it.
    pub async fn add(&self, unit: &str, manifest: &Manifest) -> Result<Record, LinkError> {
        self.link.send_block(block(ObjectKind::Manifest, &manifest.encode())).await?;
        self.link.commit(request(unit, Hash::of(&manifest.encode()))).await
    }
}

pub fn request(unit: &str, manifest: Hash) -> CommitRequest {
    let unit = UnitId::tree(unit.parse().expect("a path"));
    CommitRequest {
        unit,
        generation: Generation::FIRST,
        manifest,
        lost: false,
        incarnation: Incarnation::FIRST,
    }
}

pub fn block(kind: ObjectKind, bytes: &[u8]) -> Vec<u8> {
    let mut builder = BlockBuilder::default();
    builder.push(kind, Hash::of(bytes), bytes);
    builder.finish(1).expect("compresses")
}

/// Bytes that don't compress, so that blocks are as large as they look.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A manifest of the root and one more entry.
pub fn manifest(name: &str, body: Body) -> Manifest {
    let attrs = Attrs { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp::default() };
    let entry = |path, body| Entry { path, attrs, body, since: Generation::FIRST, base: Seq(0) };
    let entries = vec![entry(RelPath::ROOT, Body::Dir), entry(name.parse().expect("a path"), body)];
    Manifest::new(entries, vec![], vec![], vec![]).expect("a good manifest")
}

pub fn genesis(store: &MemStore) -> Head {
    Head::genesis(store.uuid())
}

pub async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} never came"));
}

/// Whoever may do as he likes with `rights`, and is only `name`.
pub fn pinned(name: &str, rights: &str) -> Identity {
    Identity { pinned_name: Some(name.to_owned()), rights: rights.parse().expect("rights") }
}

/// What is logged on this thread while it lives.
pub struct Log {
    lines: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Log {
    pub fn capture() -> Self {
        let lines: Arc<Mutex<Vec<u8>>> = Arc::default();
        let to = Arc::clone(&lines);
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .with_writer(move || Lines(Arc::clone(&to)))
            .finish();
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// Since the last call it says `why` once, and nothing else above its usual life.
    #[track_caller]
    pub fn tells_once(&self, what: &str, why: &str) {
        let lines = self.take();
        let of_it = lines.iter().filter(|line| line.contains(why)).count();
        assert_eq!(of_it, 1, "{what}: `{why}` in {lines:#?}");
        let warnings = lines.iter().filter(|line| line.contains("WARN") || line.contains("ERROR")).count();
        assert_eq!(warnings, 1, "{what}: {lines:#?}");
    }

    /// The lines since the last call.
    pub fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.lines.lock().expect("no test panics with the lock"));
        String::from_utf8(bytes).expect("text").lines().map(str::to_owned).collect()
    }
}

struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no test panics with the lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A host that says what it likes.
pub struct Raw {
    pub stream: UnixStream,
    pub session: JoinHandle<SessionEnd>,
}

impl Raw {
    pub fn new(store: &Arc<MemStore>, identity: Identity) -> Self {
        Self::of(&Server::new(Arc::clone(store) as _, vec![]), identity)
    }

    /// To a server that others have sessions with, too.
    pub fn of(server: &Arc<Server>, identity: Identity) -> Self {
        let server = Arc::clone(server);
        let (near, far) = UnixStream::pair().expect("a pair");
        let session = tokio::spawn(async move {
            let (reader, writer) = far.into_split();
            server.run_session(reader, writer, identity).await
        });
        Self { stream: near, session }
    }

    pub async fn welcome(store: &Arc<MemStore>) -> Self {
        let mut raw = Self::new(store, Identity::default());
        raw.say(&ToStore::Hello(hello("drone1"))).await;
        let FromStore::Welcome(_) = raw.hear().await else { panic!("not welcome") };
        raw
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        // A session that has ended already doesn't take it, which its end will show.
        let _ = self.stream.write_all(bytes).await;
    }

    pub async fn say(&mut self, message: &ToStore) {
        self.send(&message_frame(message).encode()).await;
    }

    pub async fn hear(&mut self) -> FromStore {
        let bytes = self.stream.read_u32_le().await.expect("a length");
        assert_eq!(self.stream.read_u8().await.expect("a kind"), 0, "a message");
        let mut body = vec![0; bytes as usize];
        self.stream.read_exact(&mut body).await.expect("a body");
        FromStore::decode(&body).expect("a message")
    }

    /// What it hears last, and how the session ended.
    pub async fn refused(mut self) -> (RefusalCode, String) {
        let heard = async {
            loop {
                if let FromStore::Refused(code, why) = self.hear().await {
                    return (code, why);
                }
            }
        };
        let (code, why) = timeout(PATIENCE, heard).await.expect("in time");
        let end = timeout(PATIENCE, self.session).await.expect("in time").expect("no panic");
        assert_eq!(end, SessionEnd::Refused(code, why.clone()));
        (code, why)
    }
}
