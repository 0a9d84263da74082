//! Uploading: a sealed layer to the store.
//!
//! ```text
//! offer(manifest) ── known ──────────────────────────────────────────────────────► commit
//!        └─ not ─► missing(contents) ─► small files ─► large files, by windows ─► manifest ─► commit
//! ```
//! The store alone knows what it lacks, so an upload that was cut off begins again with the offer and sends only the rest.
//!
//! Invariants: an object is sent only after its bytes were hashed again and found to be what the manifest says; a recipe goes
//! after its chunks and the manifest after everything. Memory is bounded by [`Bounds`] and [`packer::BLOCKS_AHEAD`],
//! whatever the layer's size. Reading and compressing go on while blocks are on the way.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::File,
    io::{self, Read},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, mpsc},
    task::{JoinError, JoinHandle},
};

use super::{
    counters::Counters,
    packer::{self, OpenBlock, Packer, Packing},
    tree::{self, SpoolTree},
    uplink::{Uplink, UplinkError},
    window::{Piece, Window, WindowReader},
};
use crate::{
    catalog::Record,
    chunk::{ChunkParams, ObjectKind, cutter::BadParams},
    ids::{Generation, Hash, Incarnation, RelPath, UnitId},
    limits,
    manifest::{Body, Manifest},
    wire::{CommitRequest, PublishRequest},
};

/// Layers that may cut large files at the same time; each holds two windows and one buffer of the cutter.
const LAYERS_CUTTING: usize = 4;
/// Layers that may read and pack at the same time; each holds a few blocks. Others ask and wait for commits meanwhile.
const LAYERS_PACKING: usize = 8;
/// Chunks remembered as settled within one layer, before they are forgotten and asked about again.
const SETTLED_CHUNKS: usize = 1 << 20;

/// A layer that was sealed.
#[derive(Debug, Clone)]
pub struct Layer {
    pub unit: UnitId,
    pub incarnation: Incarnation,
    pub generation: Generation,
    pub manifest: Arc<Manifest>,
    /// The manifest's name.
    pub hash: Hash,
    pub lost: bool,
    /// Of a snapshot: contents that the store has from the one before, and needn't be asked about.
    pub held: Option<Arc<HashSet<Hash>>>,
}

/// Why a layer didn't reach the store.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The connection or the store.
    #[error(transparent)]
    Link(#[from] UplinkError),
    /// The file isn't what the manifest says.
    #[error("{path}: changed since it was sealed")]
    Changed { path: RelPath },
    /// The store lacks its content, and no file of the layer in the spool has it.
    #[error("{path}: is neither in the store nor in the spool")]
    Absent { path: RelPath },
    /// It can't be read.
    #[error("{path}: {source}")]
    Io { path: RelPath, source: io::Error },
    /// Its recipe or the layer's manifest is beyond what a block can hold.
    #[error("{path}: too large for a store")]
    TooLarge { path: RelPath },
    /// The store's chunk sizes make no sense.
    #[error(transparent)]
    Params(#[from] BadParams),
    /// Compression failed.
    #[error("a block can't be compressed: {0}")]
    Compress(io::Error),
    /// The program is stopping.
    #[error("stopped")]
    Stopped,
}

/// What all uploads share, so that many at once cost no more memory and processor than they should.
#[derive(Debug, Clone)]
pub struct Bounds {
    cpu: Arc<Semaphore>,
    packing: Arc<Semaphore>,
    cutting: Arc<Semaphore>,
    pace: Arc<Pace>,
}

/// When the next block may go, where the bandwidth is limited.
#[derive(Debug)]
struct Pace {
    /// 0 = unlimited.
    bytes_per_s: u64,
    next: Mutex<Instant>,
}

impl Pace {
    /// Waits until a block of `bytes` may go.
    async fn wait(&self, bytes: u64) {
        if self.bytes_per_s == 0 {
            return;
        }
        let turn = {
            let mut next = self.next.lock().expect("no code panics under this lock");
            let turn = (*next).max(Instant::now());
            *next = turn + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
            turn
        };
        tokio::time::sleep_until(turn.into()).await;
    }
}

impl Bounds {
    /// One thread a core that hashes, cuts or compresses; at least two, since one of them may wait for the disk.
    /// Blocks leave at no more than `bytes_per_s`; 0 = unlimited.
    pub fn new(bytes_per_s: u64) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            cpu: Arc::new(Semaphore::new(cores.max(2))),
            packing: Arc::new(Semaphore::new(LAYERS_PACKING)),
            cutting: Arc::new(Semaphore::new(LAYERS_CUTTING)),
            pace: Arc::new(Pace { bytes_per_s, next: Mutex::new(Instant::now()) }),
        }
    }

    /// Runs `work` on the blocking pool when a core is free for it.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, UploadError> {
        let permit = self.cpu.clone().acquire_owned().await.map_err(|_| UploadError::Stopped)?;
        let work = move || {
            let _permit = permit;
            work()
        };
        join(tokio::task::spawn_blocking(work)).await
    }
}

/// Runs `work`, which waits for the disk more than it computes, on the blocking pool.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, UploadError> {
    join(tokio::task::spawn_blocking(work)).await
}

/// Waits for a task; its panic goes on here.
async fn join<T>(task: JoinHandle<T>) -> Result<T, UploadError> {
    task.await.map_err(|e: JoinError| match e.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_cancelled) => UploadError::Stopped,
    })
}

/// Sends layers.
#[derive(Clone)]
pub struct Uploader {
    pub link: Arc<dyn Uplink>,
    pub tree: Arc<SpoolTree>,
    /// The store's.
    pub params: ChunkParams,
    /// zstd's.
    pub level: i32,
    pub bounds: Bounds,
    pub counters: Arc<Counters>,
}

/// A content of the layer that the store lacks.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub content: Hash,
    pub size: u64,
    /// Where in the manifest the files with this content are; one at least.
    entries: Vec<u32>,
}

/// Where the contents of a layer are read.
pub struct Source {
    tree: Arc<SpoolTree>,
    root: RelPath,
    manifest: Arc<Manifest>,
    /// Its files may have grown since: then only their beginning is meant.
    is_running: bool,
}

impl Source {
    /// How far a file of this size is read: a complete one's end is looked for.
    pub fn reads_to(&self, size: u64) -> u64 {
        if self.is_running { size } else { u64::MAX }
    }

    /// Opens a file that should have the wanted content. A partial layer's may be in the store only, and then another name is tried.
    pub fn open(&self, wanted: &Wanted) -> Result<(RelPath, File), UploadError> {
        let paths = wanted.entries.iter().map(|at| &self.manifest.entries()[*at as usize].path);
        for path in paths.clone() {
            let in_spool =
                self.root.append(path).map_err(|_| UploadError::TooLarge { path: path.clone() })?;
            match self.tree.open_file(&in_spool) {
                Ok(file) => return Ok((path.clone(), file)),
                Err(e) if tree::is_absent(&e) => {}
                Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
                    return Err(UploadError::Changed { path: path.clone() });
                }
                Err(source) => return Err(UploadError::Io { path: path.clone(), source }),
            }
        }
        let path = paths.into_iter().next().cloned().unwrap_or_default();
        Err(UploadError::Absent { path })
    }

    /// A small file's bytes, which are what the manifest says.
    fn read(&self, wanted: &Wanted) -> Result<Vec<u8>, UploadError> {
        let (path, file) = self.open(wanted)?;
        let mut bytes = Vec::with_capacity(wanted.size as usize + 1);
        let read = file.take(self.reads_to(wanted.size).min(wanted.size + 1)).read_to_end(&mut bytes);
        read.map_err(|source| UploadError::Io { path: path.clone(), source })?;
        if bytes.len() as u64 != wanted.size || Hash::of(&bytes) != wanted.content {
            return Err(UploadError::Changed { path });
        }
        Ok(bytes)
    }
}

impl Uploader {
    /// Sends what the store lacks of `layer` and commits it.
    pub async fn send(&self, layer: &Layer) -> Result<Record, UploadError> {
        if self.link.offer(layer.hash).await? {
            self.counters.layers_known.one();
        } else {
            self.send_objects(layer).await?;
        }
        let record = self.link.commit(CommitRequest {
            unit: layer.unit.clone(),
            generation: layer.generation,
            manifest: layer.hash,
            lost: layer.lost,
            incarnation: layer.incarnation,
        });
        let record = record.await?;
        self.counters.layers_committed.one();
        self.counters.bytes_committed.add(layer.manifest.bytes());
        Ok(record)
    }

    /// Sends what the store lacks of a running layer and shows it to others.
    pub async fn show(&self, layer: &Layer) -> Result<(), UploadError> {
        self.send_objects(layer).await?;
        let (unit, generation, incarnation) = (layer.unit.clone(), layer.generation, layer.incarnation);
        let request = PublishRequest { unit, generation, manifest: Some(layer.hash), incarnation };
        self.link.publish(request).await?;
        Ok(())
    }

    async fn send_objects(&self, layer: &Layer) -> Result<(), UploadError> {
        let (closed, blocks) = mpsc::channel(packer::BLOCKS_AHEAD);
        let packer = Packer::new(self.level, self.bounds.cpu.clone(), closed);
        tokio::try_join!(self.pack(layer, packer), self.ship(blocks))?;
        Ok(())
    }

    /// Reads everything that the store lacks into blocks.
    async fn pack(&self, layer: &Layer, mut packer: Packer) -> Result<(), UploadError> {
        let _turn = self.bounds.packing.acquire().await.map_err(|_| UploadError::Stopped)?;
        let manifest = layer.manifest.clone();
        let (root, is_running) = (layer.unit.root.clone(), layer.held.is_some());
        let source = Arc::new(Source { tree: self.tree.clone(), root, manifest, is_running });
        let (mut small, mut large) = distinct(&layer.manifest, &self.params);
        if let Some(held) = &layer.held {
            for all in [&mut small, &mut large] {
                all.retain(|wanted| !held.contains(&wanted.content));
            }
        }
        let (small, large) =
            tokio::try_join!(self.wanted(ObjectKind::Chunk, small), self.wanted(ObjectKind::Recipe, large))?;
        self.pack_small(&source, small, &mut packer).await?;
        self.pack_large(&source, large, &mut packer).await?;
        let encoded = layer.manifest.encode();
        if encoded.len() > limits::MANIFEST_BYTES {
            return Err(UploadError::TooLarge { path: layer.unit.root.clone() });
        }
        // Alone in its block unless it is small: it may be as large as a block can be.
        if encoded.len() > limits::BLOCK_RAW_TARGET_BYTES {
            packer.close().await;
        }
        packer.add(ObjectKind::Manifest, layer.hash, &encoded).await;
        packer.close().await;
        Ok(())
    }

    /// Those of `contents` that the store lacks.
    async fn wanted(&self, kind: ObjectKind, contents: Vec<Wanted>) -> Result<VecDeque<Wanted>, UploadError> {
        let lacking = self.missing(kind, contents.iter().map(|w| w.content).collect()).await?;
        let all = contents.len();
        let wanted: VecDeque<_> =
            contents.into_iter().zip(lacking).filter_map(|(w, lacks)| lacks.then_some(w)).collect();
        self.counters.files_known.add((all - wanted.len()) as u64);
        Ok(wanted)
    }

    /// Asks in as many questions as it takes.
    async fn missing(&self, kind: ObjectKind, hashes: Vec<Hash>) -> Result<Vec<bool>, UploadError> {
        let mut lacking = Vec::with_capacity(hashes.len());
        for batch in hashes.chunks(limits::HASHES_PER_ASK) {
            let answer = self.link.missing(kind, batch.to_vec()).await?;
            assert_eq!(answer.len(), batch.len(), "the connection gives one answer a question");
            lacking.extend(answer);
        }
        Ok(lacking)
    }

    async fn pack_small(
        &self,
        source: &Arc<Source>,
        mut queue: VecDeque<Wanted>,
        packer: &mut Packer,
    ) -> Result<(), UploadError> {
        while !queue.is_empty() {
            let (source, counters) = (source.clone(), self.counters.clone());
            let open = packer.take_open();
            let filled = self.bounds.run(move || fill(&source, queue, open, &counters)).await??;
            queue = filled.0;
            packer.give_back(filled.1).await;
        }
        Ok(())
    }

    /// Cuts large files. While the store looks up one window's chunks, the next is cut.
    async fn pack_large(
        &self,
        source: &Arc<Source>,
        queue: VecDeque<Wanted>,
        packer: &mut Packer,
    ) -> Result<(), UploadError> {
        if queue.is_empty() {
            return Ok(());
        }
        let _turn = self.bounds.cutting.acquire().await.map_err(|_| UploadError::Stopped)?;
        self.counters.files_cut.add(queue.len() as u64);
        let mut settled = HashSet::new();
        let reader = WindowReader::new(source.clone(), self.params, queue);
        let (mut reader, mut ready) = self.cut(reader).await?;
        while let Some(window) = ready {
            let (lacking, next) = tokio::try_join!(self.lacking(&window, &mut settled), self.cut(reader))?;
            (reader, ready) = next;
            self.pack_window(&window, lacking, packer).await;
        }
        Ok(())
    }

    async fn cut(&self, mut reader: WindowReader) -> Result<(WindowReader, Option<Window>), UploadError> {
        let cut = move || -> Result<_, UploadError> {
            let window = reader.next_window()?;
            Ok((reader, window))
        };
        let (reader, window) = self.bounds.run(cut).await??;
        self.counters.bytes_read.add(window.as_ref().map_or(0, Window::bytes) as u64);
        Ok((reader, window))
    }

    /// The window's chunks that the store lacks and that weren't packed before.
    async fn lacking(
        &self,
        window: &Window,
        settled: &mut HashSet<Hash>,
    ) -> Result<HashSet<Hash>, UploadError> {
        if settled.len() > SETTLED_CHUNKS {
            settled.clear();
        }
        let chunks = window.pieces().filter_map(|piece| match piece {
            Piece::Chunk(hash, _) => Some(hash),
            Piece::Recipe(..) => None,
        });
        let ask: Vec<Hash> = chunks.filter(|hash| settled.insert(*hash)).collect();
        let lacking = self.missing(ObjectKind::Chunk, ask.clone()).await?;
        let lacking: HashSet<_> =
            ask.iter().zip(lacking).filter_map(|(hash, lacks)| lacks.then_some(*hash)).collect();
        self.counters.chunks_known.add((ask.len() - lacking.len()) as u64);
        self.counters.chunks_sent.add(lacking.len() as u64);
        Ok(lacking)
    }

    async fn pack_window(&self, window: &Window, mut lacking: HashSet<Hash>, packer: &mut Packer) {
        for piece in window.pieces() {
            match piece {
                Piece::Chunk(hash, bytes) if lacking.remove(&hash) => {
                    packer.add(ObjectKind::Chunk, hash, bytes).await;
                }
                Piece::Chunk(..) => {}
                Piece::Recipe(content, encoded) => {
                    if encoded.len() > limits::BLOCK_RAW_TARGET_BYTES {
                        packer.close().await;
                    }
                    packer.add(ObjectKind::Recipe, content, encoded).await;
                }
            }
        }
    }

    /// Sends blocks in their order as they are ready.
    async fn ship(&self, mut blocks: mpsc::Receiver<Packing>) -> Result<(), UploadError> {
        while let Some(packing) = blocks.recv().await {
            let block = join(packing.block).await?.map_err(UploadError::Compress)?;
            let bytes = block.len() as u64;
            self.bounds.pace.wait(bytes).await;
            self.link.send_block(block).await?;
            self.counters.blocks_sent.one();
            self.counters.bytes_packed.add(packing.raw_bytes);
            self.counters.bytes_sent.add(bytes);
        }
        Ok(())
    }
}

/// A layer's distinct contents in the order of their first paths: small files, and those that are cut.
fn distinct(manifest: &Manifest, params: &ChunkParams) -> (Vec<Wanted>, Vec<Wanted>) {
    let mut places: HashMap<Hash, usize> = HashMap::new();
    let mut all: Vec<Wanted> = Vec::new();
    for (at, entry) in manifest.entries().iter().enumerate() {
        let Body::File { size, content } = entry.body else { continue };
        let at = u32::try_from(at).expect("a manifest's entries are bounded");
        let place = *places.entry(content).or_insert(all.len());
        match all.get_mut(place) {
            Some(wanted) => wanted.entries.push(at),
            None => all.push(Wanted { content, size, entries: vec![at] }),
        }
    }
    all.into_iter().partition(|w| params.content_kind(w.size) == ObjectKind::Chunk)
}

/// Reads small files into `open` until it is full.
fn fill(
    source: &Source,
    mut queue: VecDeque<Wanted>,
    mut open: OpenBlock,
    counters: &Counters,
) -> Result<(VecDeque<Wanted>, OpenBlock), UploadError> {
    while !open.is_full() {
        let Some(wanted) = queue.pop_front() else { break };
        open.push(ObjectKind::Chunk, wanted.content, &source.read(&wanted)?);
        counters.files_sent.one();
        counters.bytes_read.add(wanted.size);
    }
    Ok((queue, open))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::testing::{MemoryStore, Spool, describe, path};

    struct Bench {
        spool: Spool,
        store: Arc<MemoryStore>,
        uploader: Uploader,
    }

    impl Bench {
        fn new() -> Self {
            let (spool, store) = (Spool::new(), MemoryStore::new());
            let uploader = Uploader {
                link: store.clone(),
                tree: Arc::new(spool.tree.apart().expect("opens")),
                params: ChunkParams::default(),
                level: 3,
                bounds: Bounds::new(0),
                counters: Arc::default(),
            };
            Self { spool, store, uploader }
        }

        fn layer(&self, root: &str) -> Layer {
            let unit = UnitId::tree(path(root));
            let manifest = describe(&self.spool, &unit);
            let hash = Hash::of(&manifest.encode());
            let (generation, manifest) = (Generation::FIRST, Arc::new(manifest));
            Layer {
                unit,
                incarnation: Incarnation::FIRST,
                generation,
                manifest,
                hash,
                lost: false,
                held: None,
            }
        }
    }

    fn noise(seed: &str, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut out);
        out
    }

    #[tokio::test]
    async fn everything_arrives_and_what_is_known_is_not_sent_again() {
        let bench = Bench::new();
        let log = noise("log", 20 << 20);
        bench.spool.file("1-me/h/core", &log);
        bench.spool.file("1-me/h/small", b"GOOD\n");
        bench.spool.file("1-me/h/again", b"GOOD\n");
        bench.spool.file("1-me/h/empty", b"");
        let layer = bench.layer("1-me/h");
        bench.uploader.send(&layer).await.expect("sent");
        assert_eq!(bench.store.file(&Hash::of(&log)), Some(log.clone()));
        let first = bench.uploader.counters.read();
        assert_eq!((first.files_sent, first.files_cut, first.layers_known), (2, 1, 0));

        // The same contents under other names: only the manifest is new.
        bench.spool.file("2-me/h/renamed", &log);
        bench.spool.file("2-me/h/small", b"GOOD\n");
        bench.uploader.send(&bench.layer("2-me/h")).await.expect("sent");
        let second = bench.uploader.counters.read();
        assert_eq!(second.blocks_sent, first.blocks_sent + 1);
        assert!(second.bytes_sent < first.bytes_sent + 1000);

        // A line in front: the chunks behind it are known.
        bench.spool.file("3-me/h/core", &[b"one line more\n", &log[..]].concat());
        bench.uploader.send(&bench.layer("3-me/h")).await.expect("sent");
        let third = bench.uploader.counters.read();
        assert!(third.chunks_sent - second.chunks_sent <= 2 && third.chunks_known > 300);
    }

    #[tokio::test]
    async fn an_identical_layer_is_an_offer_and_a_commit() {
        let bench = Bench::new();
        for job in ["1-me", "2-me"] {
            bench.spool.file(&format!("{job}/h/keyval"), b"a=b\n");
        }
        let (first, mut second) = (bench.layer("1-me/h"), bench.layer("2-me/h"));
        bench.uploader.send(&first).await.expect("sent");
        let before = bench.store.calls();
        second.manifest = first.manifest.clone();
        second.hash = first.hash;
        bench.uploader.send(&second).await.expect("sent");
        assert_eq!(bench.store.calls()[before.len()..], ["offer", "commit"]);
    }

    /// A file that changes after it was sealed never reaches the catalog.
    #[tokio::test]
    async fn a_change_after_sealing_is_noticed() {
        for size in [5, 300 << 10] {
            let bench = Bench::new();
            bench.spool.file("1-me/h/file", &noise("old", size));
            let layer = bench.layer("1-me/h");
            bench.spool.file("1-me/h/file", &noise("new", size));
            let result = bench.uploader.send(&layer).await;
            assert!(matches!(result, Err(UploadError::Changed { path: p }) if p == path("file")));
            std::fs::remove_file(bench.spool.dir("1-me/h").join("file")).expect("rm");
            let result = bench.uploader.send(&layer).await;
            assert!(matches!(result, Err(UploadError::Absent { path: p }) if p == path("file")));
            assert_eq!(bench.store.records().len(), 0);
        }
    }

    #[tokio::test]
    async fn an_upload_that_was_cut_off_sends_only_the_rest() {
        let bench = Bench::new();
        for i in 0..40 {
            bench.spool.file(&format!("1-me/h/{i}"), &noise(&i.to_string(), 200_000));
        }
        let layer = bench.layer("1-me/h");
        bench.store.fail_after_blocks(3);
        let result = bench.uploader.send(&layer).await;
        assert!(matches!(result, Err(UploadError::Link(UplinkError::Down(_)))));
        bench.uploader.send(&layer).await.expect("sent");
        let blocks = bench.uploader.counters.read().blocks_sent;
        assert_eq!(blocks, 7, "as many as without the interruption");
    }
}
