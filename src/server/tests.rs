//! Sessions and links against each other, over unix sockets and in-memory pipes.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::UnixListener,
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    daemon::{Sessions, serve_until},
    mem::MemStore,
    socket::Listener,
    stdio::serve_streams,
    *,
};
use crate::{
    catalog::{Head, Record, SnapshotChange},
    chunk::{
        ObjectKind,
        block::{Block, BlockBuilder},
    },
    ids::{Generation, Hash, HostUuid, RelPath, Seq, UnitId},
    manifest::{Attrs, Body, Entry, Manifest, Timestamp},
    transport::Target,
    wire::{
        CommitRequest, FromStore, Hello, Join, PROTOCOL_VERSION, PublishRequest, RefusalCode, ToStore,
        frame::Frame,
        link::{Link, LinkError, LinkEvent, Timing},
        message_frame,
    },
};

/// A bound for whatever a test waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon over a [`MemStore`] on a socket of its own.
struct Lab {
    dir: TempDir,
    store: Arc<MemStore>,
    server: Arc<Server>,
    daemon: Option<JoinHandle<()>>,
}

impl Lab {
    async fn new() -> Self {
        let store = MemStore::new();
        let server = Server::new(Arc::clone(&store) as _, vec!["complete_on=archiver".to_owned()]);
        let dir = tempfile::tempdir().expect("a directory");
        let mut lab = Self { dir, store, server, daemon: None };
        lab.start(Rights::default()).await;
        lab
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("serve.sock")
    }

    async fn start(&mut self, rights: Rights) {
        let listener = Listener::bind(&self.socket()).await.expect("binds");
        let server = Arc::clone(&self.server);
        let accept = async move { Sessions::new(&server, rights).accept(&listener).await };
        self.daemon = Some(tokio::spawn(accept));
    }

    /// As a kill does: sessions end wherever they are.
    async fn kill(&mut self) {
        let daemon = self.daemon.take().expect("it runs");
        daemon.abort();
        let _ = daemon.await;
    }

    fn host(&self, name: &str) -> Host {
        Host::connect(Target::Unix(self.socket()), hello(name))
    }
}

fn hello(name: &str) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        host: HostUuid::random(),
        host_name: name.to_owned(),
        known: None,
        settings: vec!["complete_on=parser".to_owned()],
    }
}

/// A host with its link.
struct Host {
    link: Link,
    events: mpsc::UnboundedReceiver<LinkEvent>,
    hello: Hello,
}

impl Host {
    fn connect(target: Target, hello: Hello) -> Self {
        let timing = Timing {
            reconnect_min: Duration::from_millis(10),
            reconnect_max: Duration::from_millis(50),
            ..Timing::default()
        };
        Self::connect_with(target, hello, timing)
    }

    fn connect_with(target: Target, hello: Hello, timing: Timing) -> Self {
        let (tell, events) = mpsc::unbounded_channel();
        let said = hello.clone();
        let link = Link::start_with(target, Arc::new(move || said.clone()), tell, timing);
        Self { link, events, hello }
    }

    async fn event(&mut self) -> LinkEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("in time").expect("the link lives")
    }

    async fn up(&mut self) -> crate::wire::Welcome {
        loop {
            if let LinkEvent::Up(welcome) = self.event().await {
                return welcome;
            }
        }
    }

    async fn down(&mut self) -> (String, Option<RefusalCode>) {
        loop {
            if let LinkEvent::Down { reason, refused } = self.event().await {
                return (reason, refused);
            }
        }
    }

    async fn records(&mut self) -> Vec<Record> {
        loop {
            if let LinkEvent::Records(records) = self.event().await {
                return records.to_vec();
            }
        }
    }

    async fn wait_up(&self) {
        self.link.wait_up(PATIENCE).await.expect("comes up");
    }

    /// Sends a manifest and commits it.
    async fn add(&self, unit: &str, manifest: &Manifest) -> Result<Record, LinkError> {
        self.link.send_block(block(ObjectKind::Manifest, &manifest.encode())).await?;
        self.link.commit(request(unit, Hash::of(&manifest.encode()))).await
    }
}

fn request(unit: &str, manifest: Hash) -> CommitRequest {
    let unit = UnitId::tree(unit.parse().expect("a path"));
    CommitRequest { unit, generation: Generation::FIRST, manifest, lost: false }
}

fn block(kind: ObjectKind, bytes: &[u8]) -> Vec<u8> {
    let mut builder = BlockBuilder::default();
    builder.push(kind, Hash::of(bytes), bytes);
    builder.finish(1).expect("compresses")
}

/// Bytes that don't compress, so that blocks are as large as they look.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A manifest of the root and one more entry.
fn manifest(name: &str, body: Body) -> Manifest {
    let attrs = Attrs { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp::default() };
    let entry = |path, body| Entry { path, attrs, body, since: Generation::FIRST, base: Seq(0) };
    let entries = vec![entry(RelPath::ROOT, Body::Dir), entry(name.parse().expect("a path"), body)];
    Manifest::new(entries, vec![], vec![], vec![]).expect("a good manifest")
}

fn genesis(store: &MemStore) -> Head {
    Head::genesis(store.uuid())
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} never came"));
}

#[tokio::test]
async fn a_layer_goes_from_offer_to_commit_over_a_unix_socket() {
    let lab = Lab::new().await;
    let mut host = lab.host("drone1");
    let welcome = host.up().await;
    assert_eq!((welcome.store, welcome.may_delete), (lab.store.uuid(), false));
    assert_eq!(welcome.differences.len(), 1, "complete_on differs: {:?}", welcome.differences);

    let layer = manifest("debug", Body::Dir);
    let name = Hash::of(&layer.encode());
    assert!(!host.link.offer(name).await.expect("answers"));
    let texts: Vec<_> = (0..11u8).map(|i| vec![i; 100]).collect();
    let hashes: Vec<_> = texts.iter().map(|t| Hash::of(t)).collect();
    lab.store.put(&block(ObjectKind::Chunk, &texts[3]));
    let missing = host.link.missing(ObjectKind::Chunk, hashes.clone()).await.expect("answers");
    assert_eq!(missing, (0..11).map(|i| i != 3).collect::<Vec<_>>());
    assert_eq!(host.link.missing(ObjectKind::Chunk, vec![]).await, Ok(vec![]));
    for text in &texts {
        host.link.send_block(block(ObjectKind::Chunk, text)).await.expect("is queued");
    }
    let record = host.add("1-me/host1", &layer).await.expect("commits");
    assert_eq!(record.commit().host_name, "drone1");
    assert_eq!(lab.store.objects(), 12, "a commit's answer comes after every block before it");
    assert!(host.link.offer(name).await.expect("answers"));

    let fetched = host.link.fetch(ObjectKind::Chunk, hashes[5]).await.expect("answers").expect("is there");
    let fetched = Block::open(&fetched).expect("a good block");
    assert_eq!(fetched.get(ObjectKind::Chunk, &hashes[5]), Some(&texts[5][..]));
    assert_eq!(host.link.fetch(ObjectKind::Recipe, hashes[5]).await, Ok(None));
    let status = host.link.status();
    assert!(status.connected && status.bytes_sent > 1000 && status.bytes_received > 100, "{status:?}");
}

#[tokio::test]
async fn a_rejected_commit_leaves_the_session_standing() {
    let lab = Lab::new().await;
    let host = lab.host("drone1");
    host.wait_up().await;
    let error =
        host.link.commit(request("1-me/host1", Hash::of(b"never sent"))).await.expect_err("is refused");
    assert!(matches!(error, LinkError::Rejected(_)), "{error}");
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("the next one commits");
}

#[tokio::test]
async fn a_question_of_more_hashes_than_fit_one_message_is_asked_in_parts() {
    let lab = Lab::new().await;
    let host = lab.host("drone1");
    host.wait_up().await;
    let hashes: Vec<_> = (0..limits::HASHES_PER_ASK as u64 + 3).map(|i| Hash::of(&i.to_le_bytes())).collect();
    let missing = host.link.missing(ObjectKind::Chunk, hashes.clone()).await.expect("answers");
    assert!(missing.len() == hashes.len() && missing.iter().all(|m| *m));
}

#[tokio::test]
async fn what_is_open_when_the_connection_ends_fails_and_the_link_comes_back() {
    let mut lab = Lab::new().await;
    let mut host = lab.host("drone1");
    host.up().await;
    lab.store.hold_blocks(true);
    host.link.send_block(block(ObjectKind::Chunk, b"x")).await.expect("is queued");
    let (link, asked) = (host.link.clone(), request("1-me/host1", Hash::of(b"m")));
    let commit = tokio::spawn(async move { link.commit(asked).await });
    let store = Arc::clone(&lab.store);
    until("the block", || store.is_holding()).await;
    lab.kill().await;
    let error = commit.await.expect("no panic").expect_err("can't have committed");
    assert!(matches!(error, LinkError::Down(_)), "{error}");
    host.down().await;
    lab.store.hold_blocks(false);
    assert!(matches!(host.link.offer(Hash::of(b"m")).await, Err(LinkError::NotConnected(_))));
    lab.start(Rights::default()).await;
    host.up().await;
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("begins again and commits");
}

#[tokio::test]
async fn uploads_wait_for_credit_and_a_fetch_overtakes_a_hundred_blocks() {
    let lab = Lab::new().await;
    let host = lab.host("drone1");
    host.wait_up().await;
    let wanted = noise(1000, 2000);
    lab.store.put(&block(ObjectKind::Chunk, &wanted));
    lab.store.hold_blocks(true);
    let (link, sent) = (host.link.clone(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let counted = Arc::clone(&sent);
    let upload = tokio::spawn(async move {
        for i in 0..100 {
            link.send_block(block(ObjectKind::Chunk, &noise(i, 256 << 10)))
                .await
                .expect("is queued in the end");
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let queued = || sent.load(std::sync::atomic::Ordering::Relaxed);
    let fits = (limits::UPLOAD_CREDIT_BYTES / (256 << 10)) as usize - 1;
    until("all credit's use", || queued() == fits).await;
    // The store takes no block in, and answers all the same.
    let fetched = timeout(PATIENCE, host.link.fetch(ObjectKind::Chunk, Hash::of(&wanted))).await;
    assert!(fetched.expect("in time").expect("answers").is_some());
    assert!(host.link.missing(ObjectKind::Chunk, vec![Hash::of(&wanted)]).await.is_ok());
    assert_eq!(queued(), fits, "no block goes out without credit");
    lab.store.hold_blocks(false);
    timeout(PATIENCE, upload).await.expect("in time").expect("no panic");
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("commits");
    assert_eq!(lab.store.objects(), 102);
}

#[tokio::test]
async fn a_block_larger_than_all_credit_travels_alone() {
    let lab = Lab::new().await;
    let host = lab.host("drone1");
    host.wait_up().await;
    let large = noise(1, limits::UPLOAD_CREDIT_BYTES as usize + 100_000);
    for text in [&b"small"[..], &large, b"small too"] {
        host.link.send_block(block(ObjectKind::Chunk, text)).await.expect("is queued");
    }
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("commits");
    let fetched = host.link.fetch(ObjectKind::Chunk, Hash::of(&large)).await.expect("answers");
    assert!(fetched.is_some_and(|b| b.len() > large.len()));
}

#[tokio::test]
async fn two_hosts_at_once_see_each_others_commits() {
    let lab = Lab::new().await;
    let (mut a, mut b) = (lab.host("drone1"), lab.host("drone2"));
    for host in [&mut a, &mut b] {
        host.up().await;
        host.link.follow(genesis(&lab.store));
    }
    for i in 0..20u32 {
        let layer = manifest(&format!("f{i}"), Body::Dir);
        let (first, second) = (format!("{i}-a/h"), format!("{i}-b/h"));
        let both = tokio::join!(a.add(&first, &layer), b.add(&second, &layer));
        both.0.expect("a commits");
        both.1.expect("b commits");
    }
    for host in [&mut a, &mut b] {
        let mut head = genesis(&lab.store);
        while head.seq < Seq(40) {
            for record in host.records().await {
                head = head.follow(&record).expect("the chain holds");
            }
        }
        assert_eq!(head, lab.store.head());
    }
}

#[tokio::test]
async fn a_long_catalog_comes_no_faster_than_it_is_taken() {
    let lab = Lab::new().await;
    let layer = manifest("a", Body::Dir);
    lab.store.put(&block(ObjectKind::Manifest, &layer.encode()));
    let total = limits::FOLLOW_WINDOW + 2000;
    for i in 0..total {
        let CommitRequest { unit, generation, manifest, lost } =
            request(&format!("{i}-a/h"), Hash::of(&layer.encode()));
        let (host, host_name) = (HostUuid([7; 16]), "drone7".to_owned());
        let adopted_by = None;
        let commit = NewCommit { host, host_name, unit, generation, manifest, lost, adopted_by };
        lab.store.commit(commit).expect("commits");
    }
    let mut host = lab.host("drone1");
    host.up().await;
    host.link.follow(genesis(&lab.store));
    let mut held = Vec::new();
    for _ in 0..4 {
        let LinkEvent::Records(batch) = host.event().await else { panic!("not records") };
        held.push(batch);
    }
    // An answered question proves that whatever the store sent before it has arrived.
    host.link.offer(Hash::of(b"x")).await.expect("answers");
    assert!(host.events.try_recv().is_err(), "the window is used up");
    let mut head = genesis(&lab.store);
    for batch in held {
        head = batch.iter().fold(head, |head, record| head.follow(record).expect("the chain holds"));
    }
    while head.seq < Seq(total) {
        for record in host.records().await {
            head = head.follow(&record).expect("the chain holds");
        }
    }
}

#[tokio::test]
async fn a_replica_of_another_history_is_told_to_begin_again() {
    let lab = Lab::new().await;
    let mut host = lab.host("drone1");
    host.up().await;
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("commits");
    let ahead = Head { seq: Seq(9), chain: Hash::of(b"?") };
    let other = Head { seq: Seq(1), chain: Hash::of(b"?") };
    let foreign = Head::genesis(crate::ids::StoreUuid::random());
    for wrong in [ahead, other, foreign] {
        host.link.follow(wrong);
        let LinkEvent::Resync(head) = host.event().await else { panic!("not a resync") };
        assert_eq!(head, lab.store.head());
    }
    host.link.follow(genesis(&lab.store));
    assert_eq!(host.records().await.len(), 1);
    host.link.follow(lab.store.head());
    host.add("2-me/host1", &manifest("b", Body::Dir)).await.expect("commits");
    assert_eq!(host.records().await[0].seq, Seq(2));
}

#[tokio::test]
async fn one_name_with_two_live_uuids_is_refused_and_let_in_when_the_other_is_gone() {
    let lab = Lab::new().await;
    let first = lab.host("drone1");
    first.wait_up().await;
    let mut second = lab.host("drone1");
    let (reason, refused) = second.down().await;
    assert_eq!(refused, Some(RefusalCode::Identity), "{reason}");
    let again = Host::connect(Target::Unix(lab.socket()), first.hello.clone());
    again.wait_up().await;
    again.link.stop();
    first.link.stop();
    second.wait_up().await;
}

#[tokio::test]
async fn a_full_store_refuses_and_says_why() {
    let lab = Lab::new().await;
    let mut host = lab.host("drone1");
    host.up().await;
    lab.store.fill_up();
    host.link.send_block(block(ObjectKind::Chunk, b"x")).await.expect("is queued");
    let (reason, refused) = host.down().await;
    assert_eq!(refused, Some(RefusalCode::Store));
    assert!(reason.contains("no space left"), "{reason}");
}

/// P10: what a session may do is settled before it says anything.
#[tokio::test]
async fn rights_are_checked_at_the_commit() {
    let mut lab = Lab::new().await;
    let whiteout = manifest("gone", Body::Whiteout);
    let host = lab.host("drone1");
    host.wait_up().await;
    let error = host.add("1-me/host1", &whiteout).await.expect_err("has no right");
    assert!(error.to_string().contains("`delete`"), "{error}");
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("adds");

    lab.kill().await;
    lab.start("add".parse().expect("rights")).await;
    let other = lab.host("drone2");
    other.wait_up().await;
    for taken in ["1-me/host1", "1-me", "1-me/host1/below"] {
        let error = other.add(taken, &manifest("b", Body::Dir)).await.expect_err("has no right");
        assert!(error.to_string().contains("`overlay`"), "{error}");
    }
    other.add("1-me/host2", &manifest("b", Body::Dir)).await.expect("its own unit");

    lab.kill().await;
    lab.start(Rights::NONE).await;
    let mut reader = lab.host("drone3");
    reader.up().await;
    let error = reader.link.commit(request("3-me/h", Hash::of(b"m"))).await.expect_err("has no right");
    assert!(error.to_string().contains("`add`"), "{error}");
    reader.link.send_block(block(ObjectKind::Chunk, b"x")).await.expect("is queued");
    assert_eq!(reader.down().await.1, Some(RefusalCode::Protocol));

    lab.kill().await;
    lab.start("add,overlay,delete".parse().expect("rights")).await;
    let mut admin = lab.host("web");
    assert!(admin.up().await.may_delete);
    admin.add("1-me/host1", &whiteout).await.expect("has the right");
    // Nobody hides what is still to come.
    let entry = whiteout.get(&"gone".parse().expect("a path")).expect("is in it").clone();
    let later =
        Manifest::new(vec![crate::manifest::Entry { base: Seq(99), ..entry }], vec![], vec![], vec![]);
    let error = admin.add("4-me/h", &later.expect("a good manifest")).await.expect_err("beyond the head");
    assert!(error.to_string().contains("hasn't come so far"), "{error}");
}

/// A host that says what it likes.
struct Raw {
    stream: DuplexStream,
    session: JoinHandle<SessionEnd>,
}

impl Raw {
    fn new(store: &Arc<MemStore>, identity: Identity) -> Self {
        let server = Server::new(Arc::clone(store) as _, vec![]);
        let (near, far) = duplex(1 << 20);
        let session = tokio::spawn(async move {
            let (reader, writer) = tokio::io::split(far);
            server.run_session(reader, writer, identity).await
        });
        Self { stream: near, session }
    }

    async fn welcome(store: &Arc<MemStore>) -> Self {
        let mut raw = Self::new(store, Identity::default());
        raw.say(&ToStore::Hello(hello("drone1"))).await;
        let FromStore::Welcome(_) = raw.hear().await else { panic!("not welcome") };
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        // A session that has ended already doesn't take it, which its end will show.
        let _ = self.stream.write_all(bytes).await;
    }

    async fn say(&mut self, message: &ToStore) {
        self.send(&message_frame(message).encode()).await;
    }

    async fn hear(&mut self) -> FromStore {
        let bytes = self.stream.read_u32_le().await.expect("a length");
        assert_eq!(self.stream.read_u8().await.expect("a kind"), 0, "a message");
        let mut body = vec![0; bytes as usize];
        self.stream.read_exact(&mut body).await.expect("a body");
        FromStore::decode(&body).expect("a message")
    }

    /// What it hears last, and how the session ended.
    async fn refused(mut self) -> (RefusalCode, String) {
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

#[tokio::test]
async fn hostile_frames_are_refused() {
    let store = MemStore::new();
    let header = |bytes: u32, kind: u8| [&bytes.to_le_bytes()[..], &[kind]].concat();
    let good = block(ObjectKind::Chunk, b"x");
    let mut damaged = good.clone();
    *damaged.last_mut().expect("not empty") ^= 1;
    let hashes = vec![Hash::of(b"x"); limits::HASHES_PER_ASK + 1];
    for (what, bytes, code) in [
        ("unknown kind", header(10, 77), RefusalCode::Protocol),
        ("endless message", header(u32::MAX, 0), RefusalCode::Protocol),
        ("endless block", header(u32::MAX, 1), RefusalCode::Protocol),
        ("a reply", Frame::Reply(1, good.clone()).encode(), RefusalCode::Protocol),
        ("garbage", Frame::Message(b"GET / HTTP/1.1".to_vec()).encode(), RefusalCode::Protocol),
        ("a second Hello", message_frame(&ToStore::Hello(hello("x"))).encode(), RefusalCode::Protocol),
        (
            "too many hashes",
            message_frame(&ToStore::Missing(1, ObjectKind::Chunk, hashes)).encode(),
            RefusalCode::Protocol,
        ),
        ("a damaged block", Frame::Upload(damaged).encode(), RefusalCode::Block),
        (
            "a join",
            Join { version: 1, pinned_name: None, rights: Rights::default() }.frame().encode(),
            RefusalCode::Protocol,
        ),
    ] {
        let mut raw = Raw::welcome(&store).await;
        raw.send(&bytes).await;
        let (got, why) = raw.refused().await;
        assert_eq!(got, code, "{what}: {why}");
    }
}

#[tokio::test]
async fn more_blocks_than_credit_and_more_questions_than_allowed_are_refused() {
    let store = MemStore::new();
    store.hold_blocks(true);
    let mut raw = Raw::welcome(&store).await;
    let block = Frame::Upload(block(ObjectKind::Chunk, &noise(1, 1 << 20))).encode();
    for _ in 0..17 {
        raw.send(&block).await;
    }
    assert!(raw.refused().await.1.contains("credit"));
    let mut raw = Raw::welcome(&store).await;
    raw.send(&block).await;
    for id in 0..=limits::QUESTIONS_OPEN as u64 {
        raw.say(&ToStore::Commit(id, request("1-a/h", Hash::of(b"m")))).await;
    }
    assert!(raw.refused().await.1.contains("questions"));
    store.hold_blocks(false);
}

#[tokio::test]
async fn a_host_that_reads_nothing_is_held_in_bounded_memory() {
    let store = MemStore::new();
    let text = noise(1, 1 << 20);
    store.put(&block(ObjectKind::Chunk, &text));
    let mut raw = Raw::welcome(&store).await;
    for id in 0..=limits::FETCHES_OPEN as u64 + 10 {
        raw.say(&ToStore::Fetch(id, ObjectKind::Chunk, Hash::of(&text))).await;
    }
    let end = timeout(PATIENCE, &mut raw.session);
    let drain = async { while raw.stream.read_u8().await.is_ok() {} };
    let (end, ()) = tokio::join!(end, drain);
    let end = end.expect("in time").expect("no panic");
    assert!(
        matches!(&end, SessionEnd::Refused(RefusalCode::Protocol, why) if why.contains("fetches")),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_session_begins_with_a_good_hello_or_not_at_all() {
    let store = MemStore::new();
    let pinned = Identity { pinned_name: Some("drone1".to_owned()), rights: Rights::default() };
    let mut late = hello("drone1");
    late.version = PROTOCOL_VERSION + 1;
    for (first, code) in [
        (ToStore::Ping, RefusalCode::Protocol),
        (ToStore::Hello(late), RefusalCode::Version),
        (ToStore::Hello(hello("drone2")), RefusalCode::Identity),
        (ToStore::Hello(hello("")), RefusalCode::Identity),
        (ToStore::Hello(hello(&"x".repeat(256))), RefusalCode::Identity),
    ] {
        let mut raw = Raw::new(&store, pinned.clone());
        raw.say(&first).await;
        assert_eq!(raw.refused().await.0, code, "{first:?}");
    }
    let mut raw = Raw::new(&store, pinned);
    raw.send(&Frame::Upload(block(ObjectKind::Chunk, b"x")).encode()).await;
    assert_eq!(raw.refused().await.0, RefusalCode::Protocol);
}

/// P10: a UUID is in everybody's catalog, so knowing one must not let a pinned drone continue its layers.
#[tokio::test]
async fn a_pinned_drone_cannot_use_another_hosts_uuid() {
    let lab = Lab::new().await;
    let victim = lab.host("drone1");
    victim.wait_up().await;
    victim.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("commits");
    let thief = Hello { host: victim.hello.host, ..hello("drone2") };
    let pinned = Identity { pinned_name: Some("drone2".to_owned()), rights: Rights::default() };
    let mut raw = Raw::new(&lab.store, pinned);
    raw.say(&ToStore::Hello(thief)).await;
    assert_eq!(raw.refused().await.0, RefusalCode::Identity);
}

/// A store that says what it likes: greets, then sends `frames`.
async fn lying_store(dir: &Path, frames: Vec<Vec<u8>>) -> PathBuf {
    let path = dir.join("liar.sock");
    let listener = UnixListener::bind(&path).expect("binds");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let store = MemStore::new();
        let server = Server::new(store, vec![]);
        let welcome = greeting::welcome(&server, &hello("x"), Rights::default());
        stream.write_all(&message_frame(&FromStore::Welcome(welcome)).encode()).await.expect("writes");
        for frame in frames {
            stream.write_all(&frame).await.expect("writes");
        }
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    path
}

#[tokio::test]
async fn what_a_lying_store_says_ends_the_session() {
    let good = block(ObjectKind::Chunk, b"x");
    for lie in [
        Frame::Reply(1, good.clone()).encode(),
        Frame::Upload(good).encode(),
        message_frame(&FromStore::Known(1, true)).encode(),
        message_frame(&FromStore::Credit(1)).encode(),
        message_frame(&FromStore::Credit(u64::MAX)).encode(),
        message_frame(&FromStore::Records(vec![])).encode(),
        message_frame(&FromStore::Resync(Head { seq: Seq(1), chain: Hash::of(b"") })).encode(),
        [&u32::MAX.to_le_bytes()[..], &[2]].concat(),
        Frame::Message(b"what?".to_vec()).encode(),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut host =
            Host::connect(Target::Unix(lying_store(dir.path(), vec![lie.clone()]).await), hello("drone1"));
        host.up().await;
        let (reason, _) = host.down().await;
        assert!(reason.contains("broke the protocol"), "{:?}: {reason}", &lie[..lie.len().min(20)]);
    }
}

#[tokio::test]
async fn a_silent_store_is_given_up_and_a_slow_fetch_times_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = Target::Unix(lying_store(dir.path(), vec![]).await);
    let timing =
        Timing { silence: Duration::from_millis(300), fetch: Duration::from_millis(50), ..Timing::default() };
    let mut host = Host::connect_with(target, hello("drone1"), timing);
    host.up().await;
    assert_eq!(host.link.fetch(ObjectKind::Chunk, Hash::of(b"x")).await, Err(LinkError::Timeout));
    let error = host.link.offer(Hash::of(b"x")).await.expect_err("nobody answers");
    assert!(matches!(&error, LinkError::Down(why) if why.contains("nothing moved")), "{error}");
}

#[tokio::test]
async fn pings_keep_an_idle_session_alive() {
    let lab = Lab::new().await;
    let timing = Timing { silence: Duration::from_millis(150), ..Timing::default() };
    let mut host = Host::connect_with(Target::Unix(lab.socket()), hello("drone1"), timing);
    host.up().await;
    let quiet = timeout(Duration::from_millis(600), host.events.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn a_command_that_fails_is_quoted_in_the_reason() {
    let command = ["sh", "-c", "echo Permission denied >&2; exit 255"].map(String::from).to_vec();
    let mut host = Host::connect(Target::Command(command), hello("drone1"));
    let (reason, refused) = host.down().await;
    assert!(reason.contains("exit status: 255") && reason.contains("Permission denied"), "{reason}");
    assert_eq!(refused, None);
    let chatty = ["sh", "-c", "echo Welcome to dumpster"].map(String::from).to_vec();
    let mut host = Host::connect(Target::Command(chatty), hello("drone1"));
    assert!(host.down().await.0.contains("print something"));
}

/// `serve --stdio` as one process: streams in, the store opened by `open`.
fn stdio_process(
    socket: PathBuf,
    store: Arc<MemStore>,
    lock: Arc<std::sync::atomic::AtomicBool>,
    identity: Identity,
) -> (DuplexStream, JoinHandle<Result<(), ServeError>>) {
    use std::sync::atomic::Ordering;
    let (near, far) = duplex(1 << 16);
    let process = tokio::spawn(async move {
        let (reader, writer) = tokio::io::split(far);
        let options = ServeOptions { socket, settings: vec![], local_rights: Rights::default() };
        let open = move || match lock.swap(true, Ordering::SeqCst) {
            true => Err(OpenStoreError::Locked),
            false => Ok(Arc::clone(&store) as Arc<dyn StoreApi>),
        };
        serve_streams(reader, writer, &open, options, identity, Duration::from_millis(500)).await
    });
    (near, process)
}

async fn greet(stream: DuplexStream, name: &str) -> (Raw, FromStore) {
    let mut raw = Raw { stream, session: tokio::spawn(async { SessionEnd::Closed }) };
    raw.say(&ToStore::Hello(hello(name))).await;
    let answer = timeout(PATIENCE, raw.hear()).await.expect("in time");
    (raw, answer)
}

#[tokio::test]
async fn of_several_stdio_processes_one_opens_the_store_and_the_others_join_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("run/serve.sock");
    let (store, lock) = (MemStore::new(), Arc::default());
    let pinned = |name: &str| Identity { pinned_name: Some(name.to_owned()), rights: Rights::default() };
    let start = |name| stdio_process(socket.clone(), Arc::clone(&store), Arc::clone(&lock), pinned(name));
    let ((a, first), (b, second), (c, third)) = (start("a"), start("b"), start("c"));
    let ((a, hello_a), (b, hello_b)) = tokio::join!(greet(a, "a"), greet(b, "b"));
    for answer in [hello_a, hello_b] {
        assert!(matches!(answer, FromStore::Welcome(_)), "{answer:?}");
    }
    let (_c, answer) = greet(c, "not c").await;
    assert!(matches!(answer, FromStore::Refused(RefusalCode::Identity, _)), "the pin travels: {answer:?}");
    timeout(PATIENCE, third).await.expect("in time").expect("no panic").expect("ends well");

    // Whichever opened the store, it serves as long as anybody is there.
    drop(a);
    let mut b = b;
    b.say(&ToStore::Ping).await;
    assert_eq!(timeout(PATIENCE, b.hear()).await.expect("in time"), FromStore::Pong);
    drop(b);
    for process in [first, second] {
        timeout(PATIENCE, process).await.expect("in time").expect("no panic").expect("ends well");
    }
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_store_that_is_locked_and_not_served_is_said_to_be_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let lock = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (_near, process) = stdio_process(dir.path().join("s"), MemStore::new(), lock, Identity::default());
    let error =
        timeout(PATIENCE, process).await.expect("in time").expect("no panic").expect_err("can't serve");
    assert!(matches!(error, ServeError::Locked { .. }), "{error}");
}

#[tokio::test]
async fn the_daemon_serves_until_it_is_told_to_stop_and_a_second_one_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("run/serve.sock");
    let store = MemStore::new();
    let options = ServeOptions { socket: socket.clone(), settings: vec![], local_rights: Rights::default() };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (first, opened) = (options.clone(), Arc::clone(&store));
    let daemon = tokio::spawn(async move {
        let open = || Ok(Arc::clone(&opened) as Arc<dyn StoreApi>);
        serve_until(&open, first, async { stopped.await.expect("is told") }).await
    });
    let mut host = Host::connect(Target::Unix(socket.clone()), hello("drone1"));
    host.up().await;
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("commits");
    let second = serve_until(&|| Err(OpenStoreError::Locked), options, std::future::pending()).await;
    assert!(matches!(second, Err(ServeError::Served { .. })), "{second:?}");
    stop.send(()).expect("it runs");
    timeout(PATIENCE, daemon).await.expect("in time").expect("no panic").expect("ends well");
    host.down().await;
    assert!(!socket.exists());
    drop(host);
    until("the store's last user", || Arc::strong_count(&store) == 1).await;
}

impl Host {
    async fn snapshots(&mut self) -> crate::catalog::SnapshotChanges {
        loop {
            if let LinkEvent::Snapshots(part) = self.event().await {
                return part;
            }
        }
    }

    async fn publish(&self, unit: &str, manifest: Option<Hash>) -> Result<(), LinkError> {
        let CommitRequest { unit, generation, .. } = request(unit, Hash::of(b""));
        self.link.publish(PublishRequest { unit, generation, manifest }).await
    }
}

/// A snapshot comes to whoever watches, at once; a commit empties its slot, and so does its host.
#[tokio::test]
async fn snapshots_are_told_until_they_are_committed_or_taken_back() {
    let lab = Lab::new().await;
    let (mut a, mut b) = (lab.host("drone1"), lab.host("drone2"));
    a.up().await;
    b.up().await;
    b.link.watch(0, None);
    let part = b.snapshots().await;
    assert_eq!((part.changes.len(), part.is_all, part.started), (0, true, Some(1)));
    b.link.watch(part.upto, None);
    let layer = manifest("a", Body::Dir);
    let hash = Hash::of(&layer.encode());
    let early = a.publish("1-me/host1", Some(hash)).await;
    assert!(matches!(early, Err(LinkError::Rejected(_))), "nothing is shown that isn't here: {early:?}");
    a.link.send_block(block(ObjectKind::Manifest, &layer.encode())).await.expect("sent");
    a.publish("1-me/host1", Some(hash)).await.expect("published");
    let part = b.snapshots().await;
    let [SnapshotChange::Set(snapshot)] = &part.changes[..] else { panic!("{part:?}") };
    assert_eq!((snapshot.manifest, snapshot.host), (hash, a.hello.host));
    assert_eq!(snapshot.host_name, "drone1");
    b.link.watch(part.upto, None);
    a.add("1-me/host1", &layer).await.expect("commits");
    let part = b.snapshots().await;
    assert!(matches!(&part.changes[..], [SnapshotChange::Gone(host, _)] if *host == a.hello.host));

    a.publish("2-me/host1", Some(hash)).await.expect("published");
    a.publish("2-me/host1", None).await.expect("taken back");
    assert!(lab.store.slots().all().is_empty());
}

/// P10: who may not commit may not publish.
#[tokio::test]
async fn a_snapshot_needs_the_rights_of_a_commit() {
    let mut lab = Lab::new().await;
    lab.kill().await;
    lab.start(Rights::NONE).await;
    let mut host = lab.host("drone1");
    host.up().await;
    let layer = manifest("a", Body::Dir);
    lab.store.put(&block(ObjectKind::Manifest, &layer.encode()));
    let published = host.publish("1-me/host1", Some(Hash::of(&layer.encode()))).await;
    assert!(matches!(published, Err(LinkError::Rejected(why)) if why.contains("`add`")));
    assert!(lab.store.slots().all().is_empty());
}
