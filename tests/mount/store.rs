//! A store that lives in memory: it makes layers of directories, and hands out blocks unless it is away.

use std::{
    collections::HashMap,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use resultsfs::{
    cache::{BlockSource, FetchError},
    catalog::{Commit, Head, Record, RecordBody},
    chunk::{ObjectKind, block::BlockBuilder},
    ids::{Generation, Hash, HostUuid, RelPath, Scope, Seq, StoreUuid, UnitId},
    journal::{CompleteHow, Journal},
    manifest::{Attrs, Body, Entry, Manifest, Name, Timestamp},
};

pub struct FakeStore {
    journal: Arc<Journal>,
    uuid: StoreUuid,
    head: Mutex<Head>,
    blocks: Mutex<HashMap<(ObjectKind, Hash), Vec<u8>>>,
    is_away: AtomicBool,
    pub fetches: AtomicUsize,
    other: HostUuid,
    generation: Mutex<Generation>,
}

impl FakeStore {
    pub fn new(journal: Arc<Journal>) -> Self {
        let uuid = StoreUuid::random();
        journal.reset_replica(uuid).expect("replica");
        Self {
            journal,
            uuid,
            head: Mutex::new(Head::genesis(uuid)),
            blocks: Mutex::default(),
            is_away: AtomicBool::new(false),
            fetches: AtomicUsize::new(0),
            other: HostUuid::random(),
            generation: Mutex::new(Generation::FIRST),
        }
    }

    pub fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    pub fn commit_foreign(&self, unit: &UnitId, source: &Path) {
        let mut generation = self.generation.lock().expect("not poisoned");
        let manifest = self.take(unit, source, *generation);
        self.publish(self.other, unit, *generation, &manifest);
        *generation = generation.next();
    }

    pub fn commit_own(&self, unit: &UnitId, source: &Path) {
        let how = CompleteHow { lost: false, by_hand: false };
        self.journal.complete(&[(unit.clone(), how)]).expect("complete");
        let generation = self.journal.get(unit).expect("a record").generation;
        let manifest = self.take(unit, source, generation);
        self.journal.seal(unit, generation, &manifest).expect("sealed");
        let record = self.publish(self.journal.host(), unit, generation, &manifest);
        self.journal.committed(unit, generation, &record).expect("committed");
    }

    fn publish(&self, host: HostUuid, unit: &UnitId, generation: Generation, manifest: &Manifest) -> Record {
        let encoded = manifest.encode();
        let hash = Hash::of(&encoded);
        self.put(ObjectKind::Manifest, hash, &encoded);
        let mut head = self.head.lock().expect("not poisoned");
        let commit = Commit {
            host,
            host_name: "other".into(),
            unit: unit.clone(),
            generation,
            manifest: hash,
            lost: false,
            bytes: manifest.bytes(),
            entries: manifest.entries().len() as u64,
            adopted_by: None,
        };
        let record = Record {
            seq: head.seq.next(),
            prev: head.chain,
            time_ms: 1_000,
            body: RecordBody::Commit(commit),
        };
        self.journal.follow(self.uuid, std::slice::from_ref(&record)).expect("follows");
        *head = record.link();
        record
    }

    fn put(&self, kind: ObjectKind, hash: Hash, bytes: &[u8]) {
        let mut builder = BlockBuilder::default();
        builder.push(kind, hash, bytes);
        let block = builder.finish(3).expect("packs");
        self.blocks.lock().expect("not poisoned").insert((kind, hash), block);
    }

    /// The manifest of what stands in `source`, with its contents put into the store.
    fn take(&self, unit: &UnitId, source: &Path, generation: Generation) -> Manifest {
        let mut entries = Vec::new();
        let depth = if unit.scope == Scope::Tree { usize::MAX } else { 1 };
        for found in walkdir::WalkDir::new(source).max_depth(depth) {
            let found = found.expect("walks");
            let below = found.path().strip_prefix(source).expect("below").as_os_str().as_bytes().to_vec();
            let path = RelPath::parse(below).expect("a path");
            let stat = found.metadata().expect("stat");
            if unit.scope == Scope::Loose && stat.is_dir() && !path.is_root() {
                continue;
            }
            let body = if stat.is_dir() {
                Body::Dir
            } else if stat.is_symlink() {
                let target = std::fs::read_link(found.path()).expect("read");
                Body::Symlink { target: target.as_os_str().as_bytes().to_vec() }
            } else if stat.is_file() {
                let bytes = std::fs::read(found.path()).expect("read");
                let content = Hash::of(&bytes);
                assert!((bytes.len() as u64) < resultsfs::limits::SPLIT_BYTES, "tests keep to single chunks");
                self.put(ObjectKind::Chunk, content, &bytes);
                Body::File { size: bytes.len() as u64, content }
            } else {
                Body::Fifo
            };
            let mtime = Timestamp { secs: stat.mtime(), nanos: stat.mtime_nsec() as u32 };
            let attrs = Attrs { mode: stat.mode() & 0o7777, uid: stat.uid(), gid: stat.gid(), mtime };
            entries.push(Entry { path, attrs, body, since: generation, base: Seq(0) });
        }
        // The other host's user 4242 is called as this host's number 1 is.
        let users = vec![Name { id: 0, name: "root".into() }, Name { id: 4242, name: "daemon".into() }];
        link(&mut entries, source);
        Manifest::new(entries, Vec::new(), users, Vec::new()).expect("a manifest")
    }
}

/// Other names of a file become links to its first.
fn link(entries: &mut [Entry], source: &Path) {
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let mut first: HashMap<(u64, u64), RelPath> = HashMap::new();
    for entry in entries.iter_mut().filter(|e| matches!(e.body, Body::File { .. })) {
        let stat = std::fs::metadata(entry.path.under(source)).expect("stat");
        match first.get(&(stat.dev(), stat.ino())) {
            Some(to) => entry.body = Body::Link { to: to.clone() },
            None => _ = first.insert((stat.dev(), stat.ino()), entry.path.clone()),
        }
    }
}

impl BlockSource for FakeStore {
    fn fetch(&self, kind: ObjectKind, hash: &Hash) -> Result<Vec<u8>, FetchError> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        if self.is_away.load(Ordering::Relaxed) {
            return Err(FetchError::Unreachable("the test took it away".into()));
        }
        self.blocks.lock().expect("not poisoned").get(&(kind, *hash)).cloned().ok_or(FetchError::NotFound)
    }
}
