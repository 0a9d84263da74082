//! Uploading: a sealed layer to the store.
//!
//! ```text
//! offer(manifest) ── known ───────────────────────────────────────────────────────────────────────────────────► commit
//!        └─ not ─► missing(contents) ─► small files ─► large files, by windows ─► manifest ─► what others send ─► commit
//! ```
//! The store alone knows what it lacks, so an upload that was cut off begins again with the offer and sends only the rest. What it has
//! said in this session isn't asked again, and what another layer is sending isn't sent twice ([`super::held`]).
//!
//! Invariants: an object is sent only after its bytes were hashed again and found to be what the manifest says; a commit is asked for when
//! all that it needs and the store lacked is queued, by this layer or another. Memory is bounded by [`Bounds`] and
//! [`packer::BLOCKS_AHEAD`], whatever the layer's size. Reading and compressing go on while blocks are on the way.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::File,
    io::{self, Read},
    sync::Arc,
};

use tokio::sync::mpsc;

use super::{
    bounds::{Bounds, Core, join},
    counters::Counters,
    held::{Claims, Held, Key, Turn},
    packer::{self, OpenBlock, Packer, Packing},
    tree::{self, SpoolTree},
    uplink::{Uplink, UplinkError},
    window::{Piece, Window, WindowReader},
};
use crate::{
    buffers,
    catalog::Record,
    chunk::{ChunkParams, ObjectKind, Stretch, cutter::BadParams, hashes_in},
    ids::{Generation, Hash, Incarnation, RelPath, UnitId},
    limits,
    manifest::{Body, Manifest},
    wire::{CommitRequest, PublishRequest, chunks_in},
};

/// Chunks that a question tells of at most. What is left out the store reads once more.
const UNTOLD_CHUNKS: usize = 4096;

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
    /// What isn't in the spool is as it was committed.
    pub partial: bool,
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
    /// No file of the layer in the spool has its content, and the store lacks it, or refuses the layer for another reason.
    #[error("{path}: is neither in the store nor in the spool{}", told(why))]
    Absent { path: RelPath, why: Option<String> },
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

/// Sends layers.
#[derive(Clone)]
pub struct Uploader {
    pub link: Arc<dyn Uplink>,
    pub tree: Arc<SpoolTree>,
    /// The store's.
    pub params: ChunkParams,
    /// What is known of this session's store.
    pub held: Arc<Held>,
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
    /// Whether its files may be written meanwhile.
    pub fn is_running(&self) -> bool {
        self.is_running
    }

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
        Err(UploadError::Absent { path, why: None })
    }

    /// A small file's bytes, which are what the manifest says.
    fn read(&self, wanted: &Wanted) -> Result<Vec<u8>, UploadError> {
        let (path, file) = self.open(wanted)?;
        let mut bytes = buffers::take(wanted.size as usize + 1);
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
        let is_known = self.link.offer(layer.hash).await?;
        let mut sent = match is_known {
            true => {
                self.counters.layers_known.one();
                Sent::default()
            }
            false => self.send_objects(layer).await?,
        };
        let record = match self.commit(layer).await {
            // What was remembered may be wrong by now: once more, and ask.
            Err(UplinkError::Rejected(why)) if sent.trusted => {
                tracing::info!(unit = %layer.unit, %why, "sent again");
                self.held.forget();
                sent = self.send_objects(layer).await?;
                self.commit(layer).await
            }
            record => record,
        };
        let record = match (record, sent.absent) {
            (Err(UplinkError::Rejected(why)), Some(path)) => {
                return Err(UploadError::Absent { path, why: Some(why) });
            }
            (record, _) => record?,
        };
        self.counters.layers_committed.one();
        self.counters.bytes_committed.add(layer.manifest.bytes());
        Ok(record)
    }

    async fn commit(&self, layer: &Layer) -> Result<Record, UplinkError> {
        let request = CommitRequest {
            unit: layer.unit.clone(),
            generation: layer.generation,
            manifest: layer.hash,
            lost: layer.lost,
            incarnation: layer.incarnation,
        };
        self.link.commit(request).await
    }

    /// Sends what the store lacks of a running layer and shows it to others.
    pub async fn show(&self, layer: &Layer) -> Result<(), UploadError> {
        self.send_objects(layer).await?;
        let (unit, generation, incarnation) = (layer.unit.clone(), layer.generation, layer.incarnation);
        let request = PublishRequest { unit, generation, manifest: Some(layer.hash), incarnation };
        let published = self.link.publish(request).await;
        if matches!(published, Err(UplinkError::Rejected(_))) {
            self.held.forget();
        }
        Ok(published?)
    }

    /// Again where another layer has given back what this one had left to it.
    async fn send_objects(&self, layer: &Layer) -> Result<Sent, UploadError> {
        let claims = self.held.claims();
        let mut sent = Sent::default();
        loop {
            let (closed, blocks) = mpsc::channel(packer::BLOCKS_AHEAD);
            let packer = Packer::new(self.bounds.clone(), closed);
            let mut batch = Batch { claims: &claims, others: HashSet::new(), sent: Sent::default() };
            tokio::try_join!(self.pack(layer, packer, &mut batch), self.ship(blocks, &claims))?;
            sent.trusted |= batch.sent.trusted || !batch.others.is_empty();
            sent.absent = batch.sent.absent;
            if claims.settled(&batch.others).await {
                return Ok(sent);
            }
        }
    }

    /// Reads everything that is to be sent into blocks.
    async fn pack(
        &self,
        layer: &Layer,
        mut packer: Packer,
        batch: &mut Batch<'_>,
    ) -> Result<(), UploadError> {
        let manifest = layer.manifest.clone();
        let (root, is_running) = (layer.unit.root.clone(), layer.held.is_some());
        let source = Arc::new(Source { tree: self.tree.clone(), root, manifest, is_running });
        let (mut small, mut large) = distinct(&layer.manifest, &self.params);
        if let Some(held) = &layer.held {
            for all in [&mut small, &mut large] {
                all.retain(|wanted| !held.contains(&wanted.content));
            }
        }
        let small = self.wanted(ObjectKind::Chunk, small, batch).await?;
        let large = self.wanted(ObjectKind::Recipe, large, batch).await?;
        let (small, large) = match layer.partial {
            true => self.here(&source, small, large, batch).await?,
            false => (small, large),
        };
        let bytes = small.iter().chain(&large).map(|wanted| wanted.size).sum();
        let _turn = self.bounds.packing(bytes).await?;
        self.pack_small(&source, small, &mut packer).await?;
        self.pack_large(&source, large, &mut packer, batch).await?;
        let key = (ObjectKind::Manifest, layer.hash);
        match batch.claims.claim([key])[0] {
            Turn::Ours => self.pack_manifest(layer, &mut packer).await?,
            Turn::Others => drop(batch.others.insert(key)),
            Turn::Known => {}
        }
        packer.close().await;
        Ok(())
    }

    async fn pack_manifest(&self, layer: &Layer, packer: &mut Packer) -> Result<(), UploadError> {
        let encoded = layer.manifest.encode();
        if encoded.len() > limits::MANIFEST_BYTES {
            return Err(UploadError::TooLarge { path: layer.unit.root.clone() });
        }
        packer.description(ObjectKind::Manifest, layer.hash, encoded).await;
        Ok(())
    }

    /// Those of `contents` that this layer sends.
    async fn wanted(
        &self,
        kind: ObjectKind,
        contents: Vec<Wanted>,
        batch: &mut Batch<'_>,
    ) -> Result<VecDeque<Wanted>, UploadError> {
        let hashes: Vec<Hash> = contents.iter().map(|wanted| wanted.content).collect();
        let ours = self.ours(kind, &hashes, None, batch).await?;
        let all = contents.len();
        let wanted: VecDeque<_> =
            contents.into_iter().zip(ours).filter_map(|(wanted, ours)| ours.then_some(wanted)).collect();
        self.counters.files_known.add((all - wanted.len()) as u64);
        Ok(wanted)
    }

    /// Those of a partial layer that are in the spool. Of the others the store may have more than it has said: a recipe counts there only once it was
    /// proven, and a commit proves it. So it is left to that.
    async fn here(
        &self,
        source: &Arc<Source>,
        mut small: VecDeque<Wanted>,
        mut large: VecDeque<Wanted>,
        batch: &mut Batch<'_>,
    ) -> Result<(VecDeque<Wanted>, VecDeque<Wanted>), UploadError> {
        let source = source.clone();
        let look = move |_: &mut Core| {
            let mut absent = None;
            let mut is_here = |wanted: &Wanted| match source.open(wanted) {
                Err(UploadError::Absent { path, .. }) => {
                    absent.get_or_insert(path);
                    false
                }
                // What else is wrong with it shows when it is read.
                _ => true,
            };
            small.retain(&mut is_here);
            large.retain(&mut is_here);
            (small, large, absent)
        };
        let (small, large, absent) = self.bounds.run(look).await?;
        batch.sent.absent = absent;
        Ok((small, large))
    }

    /// For each object whether this layer sends it: the store lacks it, and nobody else does.
    async fn ours(
        &self,
        kind: ObjectKind,
        hashes: &[Hash],
        told: Option<&mut Vec<Stretch>>,
        batch: &mut Batch<'_>,
    ) -> Result<Vec<bool>, UploadError> {
        let key = |hash: &Hash| (kind, *hash);
        let known = self.held.known(hashes.iter().map(key));
        batch.sent.trusted |= known.contains(&true);
        let ask: Vec<Hash> =
            hashes.iter().zip(known).filter_map(|(hash, known)| (!known).then_some(*hash)).collect();
        let lacking = match told {
            Some(told) if !ask.is_empty() => self.lacking_of(told, &ask).await?,
            _ => self.missing(kind, ask.clone()).await?,
        };
        // What the store has it may lose, or have been promised by another host.
        batch.sent.trusted |= lacking.contains(&false);
        let answered = || ask.iter().zip(&lacking);
        self.held.learn(answered().filter(|(_, lacks)| !**lacks).map(|(hash, _)| key(hash)));
        let lacking: Vec<Hash> = answered().filter(|(_, lacks)| **lacks).map(|(hash, _)| *hash).collect();
        let turns = batch.claims.claim(lacking.iter().map(key));
        let ours = lacking.iter().zip(turns).filter_map(|(hash, turn)| match turn {
            Turn::Ours => Some(*hash),
            Turn::Others => {
                batch.others.insert(key(hash));
                None
            }
            Turn::Known => None,
        });
        let ours: HashSet<Hash> = ours.collect();
        Ok(hashes.iter().map(|hash| ours.contains(hash)).collect())
    }

    /// Asks for these chunks with all that is to be told of files.
    async fn lacking_of(&self, told: &mut Vec<Stretch>, ask: &[Hash]) -> Result<Vec<bool>, UploadError> {
        let stretches = std::mem::take(told);
        let chunks = hashes_in(&stretches);
        let lacking: HashMap<Hash, bool> = chunks.into_iter().zip(self.link.cut(stretches).await?).collect();
        Ok(ask.iter().map(|hash| lacking.get(hash).copied().unwrap_or(true)).collect())
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
            let filled = self.bounds.run(move |_| fill(&source, queue, open, &counters)).await??;
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
        batch: &mut Batch<'_>,
    ) -> Result<(), UploadError> {
        if queue.is_empty() {
            return Ok(());
        }
        self.counters.files_cut.add(queue.len() as u64);
        let reader = WindowReader::new(source.clone(), self.params, queue);
        let (mut reader, mut ready) = self.cut(reader).await?;
        let mut untold = Vec::new();
        while let Some(window) = ready {
            let (ours, next) = tokio::try_join!(self.chunks(&window, &mut untold, batch), self.cut(reader))?;
            (reader, ready) = next;
            self.pack_window(&window, ours, packer).await;
        }
        Ok(())
    }

    async fn cut(&self, mut reader: WindowReader) -> Result<(WindowReader, Option<Window>), UploadError> {
        let cut = move |_: &mut Core| -> Result<_, UploadError> {
            let window = reader.next_window()?;
            Ok((reader, window))
        };
        let (reader, window) = self.bounds.run(cut).await??;
        self.counters.bytes_read.add(window.as_ref().map_or(0, Window::bytes) as u64);
        Ok((reader, window))
    }

    /// The window's chunks that this layer sends. What there was no reason to ask for yet is told of with the next question.
    async fn chunks(
        &self,
        window: &Window,
        untold: &mut Vec<Stretch>,
        batch: &mut Batch<'_>,
    ) -> Result<HashSet<Hash>, UploadError> {
        untold.extend_from_slice(window.stretches());
        if chunks_in(untold) > UNTOLD_CHUNKS {
            untold.clear();
            untold.extend_from_slice(window.stretches());
        }
        let chunks = window.pieces().filter_map(|piece| match piece {
            Piece::Chunk(hash, _) => Some(hash),
            Piece::Recipe(..) => None,
        });
        let mut distinct = HashSet::new();
        let chunks: Vec<Hash> = chunks.filter(|hash| distinct.insert(*hash)).collect();
        let ours = self.ours(ObjectKind::Chunk, &chunks, Some(untold), batch).await?;
        let ours: HashSet<Hash> =
            chunks.iter().zip(ours).filter_map(|(hash, ours)| ours.then_some(*hash)).collect();
        self.counters.chunks_known.add((chunks.len() - ours.len()) as u64);
        self.counters.chunks_sent.add(ours.len() as u64);
        Ok(ours)
    }

    async fn pack_window(&self, window: &Window, mut ours: HashSet<Hash>, packer: &mut Packer) {
        for piece in window.pieces() {
            match piece {
                Piece::Chunk(hash, bytes) if ours.remove(&hash) => {
                    packer.chunk(hash, bytes).await;
                }
                Piece::Chunk(..) => {}
                Piece::Recipe(content, encoded) => {
                    packer.description(ObjectKind::Recipe, content, encoded.to_vec()).await;
                }
            }
        }
    }

    /// Sends blocks in their order as they are ready.
    async fn ship(&self, mut blocks: mpsc::Receiver<Packing>, claims: &Claims) -> Result<(), UploadError> {
        while let Some(packing) = blocks.recv().await {
            let block = join(packing.block).await?.map_err(UploadError::Compress)?;
            let bytes = block.len() as u64;
            {
                let _waiting = self.bounds.effort.sending();
                self.bounds.pace.wait(bytes).await;
                self.link.send_block(block).await?;
            }
            claims.queued(packing.objects);
            self.counters.blocks_sent.one();
            self.counters.bytes_packed.add(packing.raw_bytes);
            self.counters.bytes_sent.add(bytes);
        }
        Ok(())
    }
}

/// What an attempt at a layer leaves to other layers.
struct Batch<'a> {
    claims: &'a Claims,
    others: HashSet<Key>,
    sent: Sent,
}

/// What wasn't sent of a layer, and why.
#[derive(Debug, Default)]
struct Sent {
    /// Something isn't since the store has it, or had it when it was asked last.
    trusted: bool,
    /// The first of what isn't since it isn't here.
    absent: Option<RelPath>,
}

/// What the store said of it.
fn told(why: &Option<String>) -> String {
    why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default()
}

/// A layer's distinct contents: small files, those of similar names together, which compresses better; and those that are cut, in the order of their first paths.
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
    let is_small = |wanted: &Wanted| params.content_kind(wanted.size) == ObjectKind::Chunk;
    let (mut small, large): (Vec<_>, Vec<_>) = all.into_iter().partition(is_small);
    small.sort_by_cached_key(|wanted| likeness(&manifest.entries()[wanted.entries[0] as usize].path));
    (small, large)
}

/// Files that are alike in this are mostly alike in what they hold: what follows a name's last dot, and the name.
fn likeness(path: &RelPath) -> (Vec<u8>, Vec<u8>) {
    let name = path.name().unwrap_or_default();
    let extension = name.iter().rposition(|byte| *byte == b'.').map_or(&[][..], |dot| &name[dot..]);
    (extension.to_vec(), name.to_vec())
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
        let bytes = source.read(&wanted)?;
        open.push(ObjectKind::Chunk, wanted.content, &bytes);
        buffers::give(bytes);
        counters.files_sent.one();
        counters.bytes_read.add(wanted.size);
    }
    Ok((queue, open))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::testing::{self, MemoryStore, Spool, path};

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
                held: Arc::default(),
                bounds: Bounds::new(0, 3),
                counters: Arc::default(),
            };
            Self { spool, store, uploader }
        }

        fn layer(&self, root: &str) -> Layer {
            testing::layer(&self.spool, &UnitId::tree(path(root)), Generation::FIRST, None)
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
            assert!(matches!(result, Err(UploadError::Absent { path: p, .. }) if p == path("file")));
            assert_eq!(bench.store.records().len(), 0);
        }
    }

    /// The store in memory says so itself when something comes twice.
    #[tokio::test]
    async fn layers_under_way_at_once_send_what_they_share_once() {
        let bench = Bench::new();
        let core = noise("core", 5 << 20);
        for job in ["1-me", "2-me", "3-me"] {
            bench.spool.file(&format!("{job}/h/core"), &core);
            bench.spool.file(&format!("{job}/h/more"), &[&core[..3 << 20], job.as_bytes()].concat());
            bench.spool.file(&format!("{job}/h/small"), b"GOOD\n");
        }
        let (one, two, three) = (bench.layer("1-me/h"), bench.layer("2-me/h"), bench.layer("3-me/h"));
        let uploader = &bench.uploader;
        tokio::try_join!(uploader.send(&one), uploader.send(&two), uploader.send(&three)).expect("sent");
        assert_eq!(bench.store.records().len(), 3);
        let sent = uploader.counters.read().bytes_packed;
        assert!(sent < (5 << 20) + (1 << 20), "{sent}");
    }

    /// What is alike lies together, whatever directories it is in.
    #[test]
    fn small_files_of_similar_names_are_neighbours() {
        let bench = Bench::new();
        for path in ["a/x.log", "a/keyval", "b/keyval", "b/y.log", "c/x.log", "c/noext"] {
            bench.spool.file(&format!("1-me/h/{path}"), path.as_bytes());
        }
        bench.spool.file("1-me/h/b/large", &noise("large", 1 << 20));
        let layer = bench.layer("1-me/h");
        let (small, large) = distinct(&layer.manifest, &bench.uploader.params);
        let path = |wanted: &Wanted| layer.manifest.entries()[wanted.entries[0] as usize].path.to_string();
        let paths: Vec<String> = small.iter().map(path).collect();
        assert_eq!(paths, ["a/keyval", "b/keyval", "c/noext", "a/x.log", "c/x.log", "b/y.log"]);
        assert_eq!(large.len(), 1);
    }

    /// What isn't in a partial layer's spool the store may have without counting it as there (a recipe that it hasn't proven again since it was
    /// killed): the commit decides.
    #[tokio::test]
    async fn what_a_partial_layer_lacks_is_left_to_the_commit() {
        let bench = Bench::new();
        for (name, size) in [("small", 50), ("large", 2 << 20)] {
            bench.spool.file(&format!("1-me/h/{name}"), &noise(name, size));
        }
        let whole = bench.layer("1-me/h");
        std::fs::remove_file(bench.spool.dir("1-me/h").join("large")).expect("rm");
        let partial = Layer { partial: true, ..whole.clone() };
        bench.store.be_lossy();
        let result = bench.uploader.send(&partial).await;
        let Err(UploadError::Absent { path: absent, why: Some(_) }) = result else { panic!("{result:?}") };
        assert_eq!(absent, path("large"));
        bench.spool.file("1-me/h/large", &noise("large", 2 << 20));
        bench.uploader.send(&whole).await.expect("sent");
        std::fs::remove_file(bench.spool.dir("1-me/h").join("large")).expect("rm");
        bench.store.be_unsure();
        bench.uploader.held.forget();
        bench.uploader.send(&partial).await.expect("the store has it");
    }

    /// What one layer has claimed and can't send is sent by the other that waits for it.
    #[tokio::test]
    async fn a_layer_that_fails_leaves_its_share_to_others() {
        for size in [5, 2 << 20] {
            let bench = Bench::new();
            for job in ["1-me", "2-me"] {
                bench.spool.file(&format!("{job}/h/file"), &noise("shared", size));
            }
            let (bad, good) = (bench.layer("1-me/h"), bench.layer("2-me/h"));
            bench.spool.file("1-me/h/file", &noise("changed", size));
            let (failed, sent) = tokio::join!(bench.uploader.send(&bad), bench.uploader.send(&good));
            assert!(matches!(failed, Err(UploadError::Changed { .. })), "{failed:?}");
            sent.expect("sent");
            assert_eq!(bench.store.file(&Hash::of(&noise("shared", size))), Some(noise("shared", size)));
        }
    }

    /// What the store has said in a session isn't asked again, and if it isn't so any more, nothing is lost.
    #[tokio::test]
    async fn what_is_remembered_of_the_store_is_no_authority() {
        let bench = Bench::new();
        bench.spool.file("1-me/h/small", b"GOOD\n");
        bench.uploader.send(&bench.layer("1-me/h")).await.expect("sent");
        bench.spool.file("2-me/h/again", b"GOOD\n");
        let asked = |bench: &Bench| bench.store.calls().iter().filter(|call| **call == "missing").count();
        let before = asked(&bench);
        bench.uploader.send(&bench.layer("2-me/h")).await.expect("sent");
        assert_eq!(asked(&bench), before);
        bench.store.lose(&Hash::of(b"GOOD\n"));
        bench.spool.file("3-me/h/once_more", b"GOOD\n");
        bench.uploader.send(&bench.layer("3-me/h")).await.expect("sent");
        assert_eq!(bench.store.file(&Hash::of(b"GOOD\n")), Some(b"GOOD\n".to_vec()));
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
        assert_eq!(blocks, 8, "as many as without the interruption");
    }
}
