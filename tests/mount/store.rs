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
    catalog::{Commit, Head, Record, RecordBody, Snapshot},
    chunk::{
        ObjectKind,
        block::{Block, BlockBuilder},
    },
    ids::{Generation, Hash, HostUuid, Incarnation, RelPath, Scope, Seq, StoreUuid, UnitId},
    journal::{CompleteHow, Journal, UnitRecord},
    manifest::{Attrs, Body, Entry, Manifest, Name, Timestamp},
    offload::{
        SpoolTree,
        names::OwnerNames,
        seal::{self, Subject},
    },
    spool::Spool,
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

    /// The replica stands where it began, as when a killed daemon's last records weren't durable.
    pub fn roll_back(&self) {
        self.journal.reset_replica(self.uuid).expect("replica");
        *self.head.lock().expect("not poisoned") = Head::genesis(self.uuid);
    }

    pub fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    /// Whether the store lets this host delete what others committed.
    pub fn allow_delete(&self, may: bool) {
        self.journal.set_may_delete(self.uuid, may).expect("remembered");
    }

    pub fn commit_foreign(&self, unit: &UnitId, source: &Path) {
        let mut generation = self.generation.lock().expect("not poisoned");
        let manifest = self.take(unit, source, *generation);
        self.publish(self.other, unit, *generation, &manifest);
        *generation = generation.next();
    }

    /// Another host runs what stands in `source`, on top of what it has committed of the unit.
    pub fn run_foreign(&self, unit: &UnitId, source: &Path) {
        let generation = *self.generation.lock().expect("not poisoned");
        let manifest = self.take(unit, source, generation);
        self.journal.set_snapshot(Snapshot {
            host: self.other,
            host_name: "other".into(),
            unit: unit.clone(),
            generation,
            manifest: self.keep(&manifest),
            time_ms: 1_000,
            begun_ms: 1_000,
            bytes: manifest.bytes(),
            entries: manifest.entries().len() as u64,
            incarnation: Incarnation::FIRST,
        });
    }

    /// The same layer as another host's layer of each of these units, in one batch.
    pub fn commit_many(&self, units: &[UnitId], source: &Path) {
        let generation = *self.generation.lock().expect("not poisoned");
        let manifest = self.take(&units[0], source, generation);
        let hash = self.keep(&manifest);
        let mut head = self.head.lock().expect("not poisoned");
        let records: Vec<Record> = units
            .iter()
            .map(|unit| {
                let record = record(*head, self.other, unit, generation, &manifest, hash);
                *head = record.link();
                record
            })
            .collect();
        self.journal.follow(self.uuid, &records).expect("follows");
    }

    /// What the engine does: describes the spool, and keeps the contents.
    pub fn commit_own(&self, unit: &UnitId, spool: &Arc<Spool>) {
        let how = CompleteHow { lost: false, by_hand: false };
        self.journal.complete(&[(unit.clone(), how)]).expect("complete");
        let record = self.journal.get(unit).expect("a record");
        let generation = record.generation;
        let manifest = self.describe(&record, spool);
        for (path, (size, content)) in files(&manifest) {
            let Ok(bytes) = std::fs::read(unit.root.append(&path).expect("short").under(spool.path())) else {
                continue;
            };
            assert!(size < resultsfs::limits::SPLIT_BYTES, "tests keep to single chunks");
            self.put(ObjectKind::Chunk, content, &bytes);
        }
        self.journal.seal(unit, generation, &manifest).expect("sealed");
        let record = self.publish(self.journal.host(), unit, generation, &manifest);
        self.journal.committed(unit, generation, &record).expect("committed");
    }

    /// Another host commits the deletion of these paths.
    pub fn commit_deletions(&self, unit: &UnitId, paths: &[&str]) {
        let mut generation = self.generation.lock().expect("not poisoned");
        let (base, since) = (self.head.lock().expect("not poisoned").seq, *generation);
        let attrs = Attrs { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default() };
        let whiteout = |at: &&str| {
            let path = RelPath::parse(*at).expect("a path");
            Entry { path, attrs, body: Body::Whiteout, since, base }
        };
        let entries = paths.iter().map(whiteout).collect();
        let manifest = Manifest::new(entries, Vec::new(), Vec::new(), Vec::new()).expect("a manifest");
        self.publish(self.other, unit, since, &manifest);
        *generation = generation.next();
    }

    /// What this host's newest layer of `unit` deletes.
    pub fn own_whiteouts(&self, unit: &UnitId) -> Vec<String> {
        let committed = self.journal.get(unit).and_then(|r| r.committed).expect("committed");
        let manifest = self.manifest(&committed.manifest);
        let whiteouts = manifest.entries().iter().filter(|e| e.body == Body::Whiteout);
        whiteouts.map(|e| e.path.to_string()).collect()
    }

    fn describe(&self, record: &UnitRecord, spool: &Arc<Spool>) -> Manifest {
        let unit = &record.unit;
        let previous = record.committed.map(|c| self.manifest(&c.manifest));
        let described = seal::describe(&Subject {
            tree: &SpoolTree::new(spool.clone()),
            unit,
            generation: record.generation,
            previous: previous.as_ref(),
            partial: record.partial,
            notes: &self.journal.notes(unit),
            committed_as: &|since| self.journal.seq_of(self.journal.host(), unit, since).unwrap_or_default(),
            names: &OwnerNames::default(),
            live: None,
            unread: None,
            breathe: &|| {},
        });
        described.expect("describes").manifest
    }

    fn manifest(&self, hash: &Hash) -> Manifest {
        let blocks = self.blocks.lock().expect("not poisoned");
        let block = Block::open(&blocks[&(ObjectKind::Manifest, *hash)]).expect("a good block");
        Manifest::decode(block.get(ObjectKind::Manifest, hash).expect("in it")).expect("a manifest")
    }

    fn publish(&self, host: HostUuid, unit: &UnitId, generation: Generation, manifest: &Manifest) -> Record {
        let hash = self.keep(manifest);
        let mut head = self.head.lock().expect("not poisoned");
        let record = record(*head, host, unit, generation, manifest, hash);
        self.journal.follow(self.uuid, std::slice::from_ref(&record)).expect("follows");
        *head = record.link();
        record
    }

    fn keep(&self, manifest: &Manifest) -> Hash {
        let encoded = manifest.encode();
        let hash = Hash::of(&encoded);
        self.put(ObjectKind::Manifest, hash, &encoded);
        hash
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

fn files(manifest: &Manifest) -> Vec<(RelPath, (u64, Hash))> {
    let files = manifest.entries().iter();
    files.filter_map(|e| Some((e.path.clone(), manifest.file_of(e)?))).collect()
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

fn record(
    head: Head,
    host: HostUuid,
    unit: &UnitId,
    generation: Generation,
    manifest: &Manifest,
    hash: Hash,
) -> Record {
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
        incarnation: Incarnation::FIRST,
    };
    Record { seq: head.seq.next(), prev: head.chain, time_ms: 1_000, body: RecordBody::Commit(commit) }
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
