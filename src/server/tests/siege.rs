//! One hostile host after another, against a store on a disk with which an honest host works all the while.
//!
//! What must hold for each: it hears a refusal that names what it did; the log has that once; and the honest host's session is as it was, its next commit
//! succeeds, and nothing else has come into the catalog.

use std::sync::Arc;

use tokio::time::timeout;

use super::{
    super::{Identity, Server, SessionEnd, daemon::Sessions, open_store, socket::Listener},
    fixture::*,
};
use crate::{
    chunk::ObjectKind,
    clock::SystemClock,
    ids::{Generation, Hash, HostUuid, Incarnation, Seq, UnitId},
    limits,
    manifest::{Attrs, Body, Entry, Manifest, Timestamp},
    store::StoreOptions,
    transport::Target,
    wire::{
        CommitRequest, FromStore, PublishRequest, RefusalCode, RetireUnit, ToStore, frame::Frame,
        message_frame, rights::Rights,
    },
};

/// The store, its server, and the honest host.
struct Siege {
    _dir: tempfile::TempDir,
    server: Arc<Server>,
    honest: Host,
    jobs: u32,
    log: Log,
}

impl Siege {
    async fn new() -> Self {
        let log = Log::capture();
        let dir = tempfile::tempdir().expect("a directory");
        let store = open_store(&dir.path().join("store"), StoreOptions { clock: Arc::new(SystemClock) })
            .expect("a store");
        let server = Server::new(store, vec![]);
        let socket = dir.path().join("serve.sock");
        let listener = Listener::bind(&socket).await.expect("binds");
        let accepting = Arc::clone(&server);
        tokio::spawn(async move { Sessions::new(&accepting, Rights::default()).accept(&listener).await });
        let mut honest = Host::connect(Target::Unix(socket), hello("honest"));
        honest.up().await;
        let mut siege = Self { _dir: dir, server, honest, jobs: 0, log };
        siege.goes_on("before all").await;
        siege.log.take();
        siege
    }

    /// A host that was let in, and how it calls itself.
    async fn enemy(&self, rights: &str) -> (Raw, HostUuid) {
        let hello = hello("drone6");
        let mut raw = Raw::of(&self.server, pinned("drone6", rights));
        let host = hello.host;
        raw.say(&ToStore::Hello(hello)).await;
        let FromStore::Welcome(_) = raw.hear().await else { panic!("it is not welcome") };
        (raw, host)
    }

    /// The honest host commits one more job, in the session that it has had from the beginning.
    async fn goes_on(&mut self, after: &str) {
        self.jobs += 1;
        let before = self.server.store.head().seq;
        let layer = manifest(&format!("job{}", self.jobs), Body::Dir);
        let record = self.honest.add(&format!("{}-me/honest", self.jobs), &layer).await;
        let record = record.unwrap_or_else(|e| panic!("the honest host after {after}: {e}"));
        assert_eq!(record.seq, before.next(), "{after}");
        assert!(self.honest.link.status().connected, "{after}");
        if let Ok(event) = self.honest.events.try_recv() {
            panic!("after {after} the honest host hears {event:?}");
        }
    }

    /// The log says `why` once, and nothing else above its usual life.
    fn logged_once(&self, what: &str, why: &str) {
        self.log.tells_once(what, why);
    }

    /// Something for which the session ends.
    async fn ends(&mut self, what: &str, raw: Raw, code: RefusalCode, names: &str) {
        let head = self.server.store.head();
        let (got, why) = raw.refused().await;
        assert_eq!(got, code, "{what}: {why}");
        assert!(why.contains(names), "{what}: {why}");
        assert_eq!(self.server.store.head(), head, "{what}: nothing came into the catalog");
        self.logged_once(what, &why);
        self.goes_on(what).await;
    }

    /// Something that is rejected because honest hosts can come to ask for it: their session must go on, and so this one does.
    async fn rejects(&mut self, what: &str, raw: &mut Raw, asked: &ToStore, names: &str) {
        let head = self.server.store.head();
        // Again and again, as hosts do: it is logged once all the same.
        for _ in 0..3 {
            raw.say(asked).await;
            let why = raw.rejected().await;
            assert!(why.contains(names), "{what}: {why}");
        }
        assert_eq!(self.server.store.head(), head, "{what}: nothing came into the catalog");
        self.logged_once(what, names);
        self.goes_on(what).await;
        raw.say(&ToStore::Ping).await;
        assert_eq!(raw.hear_next().await, FromStore::Pong, "{what}");
    }
}

impl Raw {
    /// The next answer that isn't about credit or losses.
    async fn hear_next(&mut self) -> FromStore {
        loop {
            match timeout(PATIENCE, self.hear()).await.expect("in time") {
                FromStore::Credit(_) | FromStore::Lost(_) => {}
                other => return other,
            }
        }
    }

    async fn rejected(&mut self) -> String {
        match self.hear_next().await {
            FromStore::Rejected(_, why) => why,
            other => panic!("it isn't rejected: {other:?}"),
        }
    }

    async fn upload(&mut self, kind: ObjectKind, bytes: &[u8]) {
        self.send(&Frame::Upload(block(kind, bytes)).encode()).await;
    }

    async fn upload_manifest(&mut self, bytes: &[u8]) -> Hash {
        self.upload(ObjectKind::Manifest, bytes).await;
        Hash::of(bytes)
    }

    async fn commits(&mut self, request: CommitRequest) -> Seq {
        self.say(&ToStore::Commit(9, request)).await;
        match self.hear_next().await {
            FromStore::Committed(9, record) => record.seq,
            other => panic!("it isn't committed: {other:?}"),
        }
    }
}

fn entry(path: &str, body: Body, generation: u32) -> Entry {
    let attrs = Attrs { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp::default() };
    let path = if path.is_empty() { crate::ids::RelPath::ROOT } else { path.parse().expect("a path") };
    Entry { path, attrs, body, since: Generation(generation), base: Seq(0) }
}

fn layer(entries: Vec<Entry>) -> Manifest {
    Manifest::new(entries, vec![], vec![], vec![]).expect("a good manifest")
}

/// An encoding in which `from`, which is in it once, is replaced by something as long.
fn forged(manifest: &Manifest, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = manifest.encode();
    let places: Vec<_> = (0..=bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from)).collect();
    let [at] = places[..] else { panic!("{from:?} is there {} times", places.len()) };
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

fn header(bytes: u32, kind: u8) -> Vec<u8> {
    [&bytes.to_le_bytes()[..], &[kind]].concat()
}

/// A plain block of one chunk whose table and header say what they like, with good checksums: `raw` bytes in a payload that may be another length.
fn crafted(hash: Hash, raw: u32, payload: &[u8], is_packed: bool) -> Vec<u8> {
    let mut table = vec![0];
    table.extend(hash.0);
    table.extend(raw.to_le_bytes());
    let mut head = b"RFSb".to_vec();
    head.extend([1, u8::from(is_packed), 0, 0]);
    for number in [1, table.len() as u32, raw, payload.len() as u32] {
        head.extend(number.to_le_bytes());
    }
    let body = [&table[..], payload].concat();
    head.extend(&blake3::hash(&body).as_bytes()[..16]);
    head.extend(&blake3::hash(&head).as_bytes()[..8]);
    [head, body].concat()
}

/// P10. What no honest host sends ends the session, with its name, logged once, and disturbs nobody.
#[tokio::test]
async fn broken_rules_end_their_session_and_disturb_nobody() {
    let mut siege = Siege::new().await;
    let bomb = |raw: u32, real: usize| {
        let packed = zstd::bulk::compress(&vec![0; real], 1).expect("compresses");
        crafted(Hash::of(&vec![0; raw as usize]), raw, &packed, true)
    };
    let too_large = limits::BLOCK_RAW_MAX_BYTES as u32 + 1;
    let chunk = |bytes: Vec<u8>| Frame::Upload(bytes).encode();
    for (what, bytes, code, names) in [
        ("a frame without end", header(u32::MAX, 1), RefusalCode::Protocol, "exceeds the limit"),
        ("a message without end", header(u32::MAX, 0), RefusalCode::Protocol, "exceeds the limit"),
        ("an unknown frame", header(9, 200), RefusalCode::Protocol, "unknown kind 200"),
        (
            "a forged hash",
            chunk(crafted(Hash::of(b"what it says"), 3, b"lie", false)),
            RefusalCode::Block,
            "doesn't match its hash",
        ),
        (
            "a block that is shorter than it says",
            chunk(crafted(Hash::of(b"four"), 4, b"for", false)),
            RefusalCode::Block,
            "block",
        ),
        (
            "a block that is longer than it says",
            chunk(crafted(Hash::of(b"for"), 3, b"four", false)),
            RefusalCode::Block,
            "block",
        ),
        ("a bomb that says how large it is", chunk(bomb(too_large, 1 << 20)), RefusalCode::Block, "header"),
        (
            "a bomb that says it is small",
            chunk(bomb(100_000, 64 << 20)),
            RefusalCode::Block,
            "doesn't unpack",
        ),
        (
            "more than one block in a frame",
            chunk([block(ObjectKind::Chunk, b"x"), vec![0; 50]].concat()),
            RefusalCode::Block,
            "",
        ),
        (
            "a second greeting",
            message_frame(&ToStore::Hello(hello("drone6"))).encode(),
            RefusalCode::Protocol,
            "second Hello",
        ),
        ("a join", header(10, 3), RefusalCode::Protocol, "Join frame can't come here"),
    ] {
        let (mut raw, _) = siege.enemy("add,overlay").await;
        raw.send(&bytes).await;
        siege.ends(what, raw, code, names).await;
    }
    // Refused when it is announced: none of its 260 MiB are waited for.
    let (mut raw, _) = siege.enemy("").await;
    raw.send(&header(limits::FRAME_BYTES as u32, 1)).await;
    siege.ends("a block from who may not add", raw, RefusalCode::Protocol, "may not add").await;
}

/// Paths that lead out of the tree, device nodes, and what else no manifest can say.
#[tokio::test]
async fn manifests_that_break_rules_are_rejected() {
    let mut siege = Siege::new().await;
    let (mut raw, _) = siege.enemy("add,overlay").await;
    let one = |path: &str, body: Body| layer(vec![entry("", Body::Dir, 1), entry(path, body, 1)]);
    let named = one("QQ", Body::Dir);
    let below = layer(vec![entry("", Body::Dir, 1), entry("a", Body::Dir, 1), entry("a/QQ", Body::Dir, 1)]);
    let link = one("l", Body::Symlink { target: b"QQ".to_vec() });
    let odd_mode = layer(vec![
        entry("", Body::Dir, 1),
        Entry { attrs: Attrs { mode: 0o4765, ..entry("s", Body::Dir, 1).attrs }, ..entry("s", Body::Dir, 1) },
    ]);
    let fifo = one("f", Body::Fifo);
    for (what, bytes, names) in [
        ("`..`", forged(&named, b"QQ", b".."), "`..`"),
        ("`..` below a directory", forged(&below, b"a/QQ", b"a/.."), "`..`"),
        ("an absolute path", forged(&named, b"QQ", b"/Q"), "begins with `/`"),
        ("an empty name", forged(&below, b"a/QQ", b"a//Q"), "empty component"),
        ("NUL", forged(&named, b"QQ", b"Q\0"), "NUL"),
        ("NUL in a link", forged(&link, b"QQ", b"Q\0"), "NUL"),
        ("a device node", device(&fifo), "decode"),
        (
            "a file type in the mode",
            forged(&odd_mode, &[0x19, 0x09, 0xf5], &[0x19, 0x61, 0xa4]),
            "mode has bits",
        ),
        ("garbage", noise(1, 1000), "decode"),
    ] {
        let hash = raw.upload_manifest(&bytes).await;
        siege.rejects(what, &mut raw, &ToStore::Commit(1, request("66-evil/h", hash)), names).await;
        let shown = PublishRequest {
            unit: request("66-evil/h", hash).unit,
            generation: Generation::FIRST,
            manifest: Some(hash),
            incarnation: Incarnation::FIRST,
        };
        siege.rejects(what, &mut raw, &ToStore::Publish(2, shown), names).await;
    }
}

/// A manifest with an entry of a kind that there isn't.
fn device(fifo: &Manifest) -> Vec<u8> {
    let encoded = &minicbor::to_vec(Body::Fifo).expect("encodes");
    let mut other = encoded.clone();
    let at = other.iter().rposition(|&byte| byte == 3).expect("a pipe's number");
    other[at] = 6;
    forged(fifo, encoded, &other)
}

/// Others' units, its own past, and deletions without the right.
#[tokio::test]
async fn nobody_changes_what_is_committed() {
    let mut siege = Siege::new().await;
    let (mut raw, host) = siege.enemy("add").await;
    let commit = |unit: &str, generation: u32, manifest: Hash| CommitRequest {
        generation: Generation(generation),
        ..request(unit, manifest)
    };
    let (old, new) = (layer(vec![entry("", Body::Dir, 1)]), layer(vec![entry("", Body::Dir, 2)]));
    let old = raw.upload_manifest(&old.encode()).await;
    let new = raw.upload_manifest(&new.encode()).await;
    let first = raw.commits(commit("6-evil/h", 1, old)).await;
    assert_eq!(raw.commits(commit("6-evil/h", 1, old)).await, first, "what is said again is answered again");
    let second = raw.commits(commit("6-evil/h", 2, new)).await;
    assert_eq!(second, first.next(), "and is in the catalog once");
    siege.log.take();

    let ask = |request| ToStore::Commit(1, request);
    siege
        .rejects("its own past again", &mut raw, &ask(commit("6-evil/h", 1, old)), "comes after generation")
        .await;
    siege.rejects("another present", &mut raw, &ask(commit("6-evil/h", 2, old)), "generation").await;
    siege.rejects("another host's unit", &mut raw, &ask(commit("1-me/honest", 1, old)), "`overlay`").await;
    siege.rejects("above another host's unit", &mut raw, &ask(commit("1-me", 1, old)), "`overlay`").await;
    siege
        .rejects("below another host's unit", &mut raw, &ask(commit("1-me/honest/x", 1, old)), "`overlay`")
        .await;
    siege
        .rejects(
            "what was never sent",
            &mut raw,
            &ask(commit("7-evil/h", 1, Hash::of(b"nothing"))),
            "not sent",
        )
        .await;
    let unit = |root: &str| UnitId::tree(root.parse().expect("a path"));
    let retire = |root: &str, seq| ToStore::Retire(1, vec![RetireUnit { unit: unit(root), seq }]);
    siege.rejects("a retirement", &mut raw, &retire("1-me/honest", Seq(1)), "has no right `delete`").await;
    siege
        .rejects(
            "a retirement of its own",
            &mut raw,
            &retire("6-evil/h", second),
            "6-evil/h would be retired",
        )
        .await;
    let other_life = CommitRequest { incarnation: Incarnation(5), ..commit("6-evil/h", 3, old) };
    siege.rejects("another life", &mut raw, &ask(other_life), "incarnation").await;

    let whiteout = layer(vec![entry("", Body::Dir, 1), entry("gone", Body::Whiteout, 1)]);
    let whiteout = raw.upload_manifest(&whiteout.encode()).await;
    siege.rejects("a deletion", &mut raw, &ask(commit("8-evil/h", 1, whiteout)), "`delete`").await;
    let size = layer(vec![
        entry("", Body::Dir, 1),
        entry("f", Body::File { size: 4, content: Hash::of(b"five!") }, 1),
    ]);
    raw.upload(ObjectKind::Chunk, b"five!").await;
    let size = raw.upload_manifest(&size.encode()).await;
    siege
        .rejects(
            "a size that isn't its content's",
            &mut raw,
            &ask(commit("9-evil/h", 1, size)),
            "has 5 bytes, not 4",
        )
        .await;
    let lacking = layer(vec![
        entry("", Body::Dir, 1),
        entry("f", Body::File { size: 4, content: Hash::of(b"nope") }, 1),
    ]);
    let lacking = raw.upload_manifest(&lacking.encode()).await;
    siege
        .rejects("a content that isn't there", &mut raw, &ask(commit("9-evil/h", 1, lacking)), "is missing")
        .await;
    drop(raw);

    // The same as somebody else, or with somebody else's number.
    siege.log.take();
    for (what, named, uuid, names) in [
        ("another name", "honest", host, "this key is for the host `drone6`"),
        ("another host's number", "drone6", siege.honest.hello.host, "belongs to the host `honest`"),
    ] {
        let mut raw = Raw::of(&siege.server, pinned("drone6", "add,overlay"));
        raw.say(&ToStore::Hello(crate::wire::Hello { host: uuid, ..hello(named) })).await;
        siege.ends(what, raw, RefusalCode::Identity, names).await;
    }
}

/// A list of millions, in a block of some hundred kilobytes: it is refused where the limit is passed.
#[tokio::test]
async fn a_manifest_of_millions_is_rejected() {
    let mut siege = Siege::new().await;
    let (mut raw, _) = siege.enemy("add,overlay").await;
    let one = minicbor::to_vec(entry("", Body::Dir, 1)).expect("encodes");
    let most = limits::MANIFEST_ENTRIES;
    let mut bytes = vec![0xa5, 0, 1, 1, 0x9a];
    bytes.extend((most as u32 + 1).to_be_bytes());
    (0..=most).for_each(|_| bytes.extend(&one));
    bytes.extend([2, 0x80, 3, 0x80, 4, 0x80]);
    let hash = raw.upload_manifest(&bytes).await;
    siege
        .rejects(
            "millions",
            &mut raw,
            &ToStore::Commit(1, request("6-evil/h", hash)),
            &format!("more than {most}"),
        )
        .await;
}

/// A session that is refused before it is greeted is logged once, too, under its key's name; and who only looks whether somebody is there isn't.
#[tokio::test]
async fn who_is_not_let_in_is_logged_once() {
    let mut siege = Siege::new().await;
    for (what, say, names) in [
        ("no greeting", message_frame(&ToStore::Ping).encode(), "begins with Hello"),
        ("a page", b"GET / HTTP/1.1\r\n\r\n".to_vec(), ""),
    ] {
        let mut raw = Raw::of(&siege.server, pinned("drone6", "add"));
        raw.send(&say).await;
        siege.ends(what, raw, RefusalCode::Protocol, names).await;
    }
    let raw = Raw::of(&siege.server, Identity::default());
    drop(raw.stream);
    assert_eq!(raw.session.await.expect("no panic"), SessionEnd::Closed);
    assert_eq!(siege.log.take(), Vec::<String>::new());
}
