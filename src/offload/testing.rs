//! What the engine's tests share: a spool in a temporary directory, and a store in memory.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use super::{
    names::OwnerNames,
    recall::{Contents, FetchFailure},
    seal::{self, Subject},
    tree::SpoolTree,
    uplink::{Answer, Uplink, UplinkError},
    upload::Layer,
};
use crate::{
    catalog::{Commit, Head, Record, RecordBody},
    chunk::{ObjectKind, Recipe, Stretch, block::Block, hashes_in},
    ids::{Generation, Hash, HostUuid, Incarnation, RelPath, Seq, StoreUuid, UnitId},
    manifest::Manifest,
    spool,
    wire::{CommitRequest, PublishRequest},
};

/// A path from text.
pub fn path(text: &str) -> RelPath {
    text.parse().expect("a good path")
}

/// A spool that goes with the test.
pub struct Spool {
    dir: tempfile::TempDir,
    pub tree: SpoolTree,
}

impl Spool {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tree = SpoolTree::new(spool::Spool::open(dir.path()).expect("opens"));
        Self { dir, tree }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes a directory with its ancestors.
    pub fn dir(&self, at: &str) -> PathBuf {
        let place = self.dir.path().join(at);
        std::fs::create_dir_all(&place).expect("mkdir");
        place
    }

    /// Writes a file; makes its directory.
    pub fn file(&self, at: &str, bytes: &[u8]) {
        let place = self.dir.path().join(at);
        std::fs::create_dir_all(place.parent().expect("not the root")).expect("mkdir");
        std::fs::write(place, bytes).expect("write");
    }
}

/// The manifest of a unit's first generation.
pub fn describe(spool: &Spool, unit: &UnitId) -> Manifest {
    describe_next(spool, unit, Generation::FIRST, None)
}

fn describe_next(
    spool: &Spool,
    unit: &UnitId,
    generation: Generation,
    previous: Option<&Manifest>,
) -> Manifest {
    let subject = Subject {
        tree: &spool.tree,
        unit,
        generation,
        previous,
        partial: false,
        notes: &BTreeMap::new(),
        committed_as: &|_| Seq(1),
        names: &OwnerNames::default(),
        live: None,
        unread: None,
        breathe: &|| {},
    };
    seal::describe(&subject).expect("describes").manifest
}

/// What is in the spool of a unit, to be committed.
pub fn layer(spool: &Spool, unit: &UnitId, generation: Generation, previous: Option<&Layer>) -> Layer {
    let manifest = describe_next(spool, unit, generation, previous.map(|layer| &*layer.manifest));
    Layer {
        unit: unit.clone(),
        incarnation: Incarnation::FIRST,
        generation,
        hash: Hash::of(&manifest.encode()),
        manifest: Arc::new(manifest),
        lost: false,
        partial: false,
        held: None,
    }
}

/// A store in memory that checks what a real one checks.
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    objects: HashMap<(ObjectKind, Hash), Vec<u8>>,
    committed: HashSet<Hash>,
    records: Vec<Record>,
    calls: Vec<&'static str>,
    blocks_until_failure: Option<usize>,
    host: Option<HostUuid>,
    rejections: usize,
    /// Something was lost: a layer may lack it.
    is_lossy: bool,
    /// Recipes and manifests that are here count only when something is committed.
    is_unsure: bool,
    /// Snapshots that were refused so far, if they are.
    refused_snapshots: Option<usize>,
    snapshots: Vec<PublishRequest>,
}

/// Its identity.
pub const STORE: StoreUuid = StoreUuid([7; 16]);

impl MemoryStore {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test panics under this lock")
    }

    /// What was asked, in order.
    pub fn calls(&self) -> Vec<&'static str> {
        self.lock().calls.clone()
    }

    /// What was published, in order.
    pub fn snapshots(&self) -> Vec<PublishRequest> {
        self.lock().snapshots.clone()
    }

    /// A manifest that was sent.
    pub fn manifest_of(&self, hash: &Hash) -> Manifest {
        let inner = self.lock();
        let encoded = inner.objects.get(&(ObjectKind::Manifest, *hash)).expect("the manifest came");
        Manifest::decode(encoded).expect("a good manifest")
    }

    pub fn records(&self) -> Vec<Record> {
        self.lock().records.clone()
    }

    /// Ends the session instead of taking block number `blocks` + 1, once.
    pub fn fail_after_blocks(&self, blocks: usize) {
        self.lock().blocks_until_failure = Some(blocks);
    }

    /// Layers are committed as this host's.
    pub fn set_host(&self, host: HostUuid) {
        self.lock().host = Some(host);
    }

    /// Forgets a small file's content, as a store does that reclaims it.
    pub fn lose(&self, content: &Hash) {
        let mut inner = self.lock();
        inner.objects.remove(&(ObjectKind::Chunk, *content)).expect("it was there");
        inner.is_lossy = true;
    }

    /// A layer that names what isn't here is refused, instead of ending the test.
    pub fn be_lossy(&self) {
        self.lock().is_lossy = true;
    }

    /// As a store that was killed: it has everything, and recipes and manifests have to be proven again.
    pub fn be_unsure(&self) {
        self.lock().is_unsure = true;
    }

    /// Refuses all snapshots from now on.
    pub fn refuse_snapshots(&self) {
        self.lock().refused_snapshots = Some(0);
    }

    pub fn refused_snapshots(&self) -> usize {
        self.lock().refused_snapshots.unwrap_or_default()
    }

    /// Refuses the next commit.
    pub fn reject_once(&self) {
        self.lock().rejections += 1;
    }

    /// A file's bytes by its content.
    pub fn file(&self, content: &Hash) -> Option<Vec<u8>> {
        self.lock().file(content)
    }
}

impl Inner {
    fn file(&self, content: &Hash) -> Option<Vec<u8>> {
        if let Some(bytes) = self.objects.get(&(ObjectKind::Chunk, *content)) {
            return Some(bytes.clone());
        }
        let recipe = Recipe::decode(self.objects.get(&(ObjectKind::Recipe, *content))?).ok()?;
        let parts = recipe.chunks.iter().map(|c| self.objects.get(&(ObjectKind::Chunk, c.hash)).cloned());
        Some(parts.collect::<Option<Vec<_>>>()?.concat())
    }

    fn take_block(&mut self, bytes: &[u8]) -> Result<(), UplinkError> {
        match &mut self.blocks_until_failure {
            Some(0) => {
                self.blocks_until_failure = None;
                return Err(UplinkError::Down("pulled the plug".into()));
            }
            Some(count) => *count -= 1,
            None => {}
        }
        let block = Block::open(bytes).expect("a good block");
        for entry in block.table() {
            let bytes = block.bytes_of(entry).to_vec();
            let twice = self.objects.insert((entry.kind, entry.hash), bytes).is_some();
            assert!(!twice || entry.kind == ObjectKind::Manifest, "{:?} was sent twice", entry.hash);
        }
        Ok(())
    }

    /// Everything that a manifest names is here.
    fn check_whole(&self, hash: &Hash) -> Manifest {
        let encoded = self.objects.get(&(ObjectKind::Manifest, *hash)).expect("the manifest came");
        let manifest = Manifest::decode(encoded).expect("a good manifest");
        for (content, size) in manifest.contents() {
            let bytes = self.file(&content).expect("the content came");
            assert_eq!((bytes.len() as u64, Hash::of(&bytes)), (size, content));
        }
        manifest
    }

    fn lacks(&self, manifest: &Hash) -> bool {
        let encoded = self.objects.get(&(ObjectKind::Manifest, *manifest)).expect("the manifest came");
        let manifest = Manifest::decode(encoded).expect("a good manifest");
        manifest.contents().any(|(content, _)| self.file(&content).is_none())
    }

    fn enter(&mut self, request: CommitRequest) -> Result<Record, UplinkError> {
        if self.is_lossy && self.lacks(&request.manifest) {
            return Err(UplinkError::Rejected("something is missing".into()));
        }
        let manifest = self.check_whole(&request.manifest);
        if self.rejections > 0 {
            self.rejections -= 1;
            return Err(UplinkError::Rejected("not today".into()));
        }
        self.committed.insert(request.manifest);
        let head = self.records.last().map_or(Head::genesis(STORE), Record::link);
        let commit = Commit {
            host: self.host.unwrap_or(HostUuid([1; 16])),
            host_name: "drone1".into(),
            unit: request.unit,
            generation: request.generation,
            manifest: request.manifest,
            lost: request.lost,
            bytes: manifest.bytes(),
            entries: manifest.entries().len() as u64,
            adopted_by: None,
            incarnation: request.incarnation,
        };
        let record =
            Record { seq: head.seq.next(), prev: head.chain, time_ms: 0, body: RecordBody::Commit(commit) };
        self.records.push(record.clone());
        Ok(record)
    }
}

fn answer<'a, T: Send + 'a>(result: Result<T, UplinkError>) -> Answer<'a, T> {
    Box::pin(async move { result })
}

impl Uplink for MemoryStore {
    fn offer(&self, manifest: Hash) -> Answer<'_, bool> {
        let mut inner = self.lock();
        inner.calls.push("offer");
        answer(Ok(!inner.is_unsure && inner.committed.contains(&manifest)))
    }

    fn missing(&self, kind: ObjectKind, hashes: Vec<Hash>) -> Answer<'_, Vec<bool>> {
        let mut inner = self.lock();
        inner.calls.push("missing");
        let counts = !inner.is_unsure || kind == ObjectKind::Chunk;
        let is_missing = |hash: &Hash| !counts || !inner.objects.contains_key(&(kind, *hash));
        answer(Ok(hashes.iter().map(is_missing).collect()))
    }

    fn cut(&self, stretches: Vec<Stretch>) -> Answer<'_, Vec<bool>> {
        self.missing(ObjectKind::Chunk, hashes_in(&stretches))
    }

    fn send_block(&self, block: Vec<u8>) -> Answer<'_, ()> {
        let mut inner = self.lock();
        inner.calls.push("block");
        answer(inner.take_block(&block))
    }

    fn commit(&self, request: CommitRequest) -> Answer<'_, Record> {
        let mut inner = self.lock();
        inner.calls.push("commit");
        answer(inner.enter(request))
    }

    fn publish(&self, request: PublishRequest) -> Answer<'_, ()> {
        let mut inner = self.lock();
        inner.calls.push("publish");
        if let Some(hash) = &request.manifest {
            inner.check_whole(hash);
        }
        if let Some(refused) = &mut inner.refused_snapshots {
            *refused += 1;
            return answer(Err(UplinkError::Rejected("not today".into())));
        }
        inner.snapshots.push(request);
        answer(Ok(()))
    }
}

impl Contents for MemoryStore {
    fn read(&self, content: &Hash, size: u64, offset: u64, len: usize) -> Result<Vec<u8>, FetchFailure> {
        let bytes = self.file(content).ok_or("not in the store")?;
        assert_eq!(bytes.len() as u64, size);
        let start = offset as usize;
        Ok(bytes[start..bytes.len().min(start + len)].to_vec())
    }

    fn manifest(&self, hash: &Hash) -> Result<Vec<u8>, FetchFailure> {
        Ok(self.lock().objects.get(&(ObjectKind::Manifest, *hash)).ok_or("not in the store")?.clone())
    }
}
