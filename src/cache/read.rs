//! Reading files: from contents and recipes to bytes, and ahead of readers who go on in order, whether what comes next is on this host or not.

use std::{
    ops::Range,
    sync::{Arc, Mutex, Weak, mpsc},
};

use tracing::{debug, warn};

use super::{
    Cache, FetchError,
    lru::Lru,
    object::Object,
    recipe::{Layout, Placed},
    shelf::ObjectKey,
};
use crate::{
    chunk::{ChunkParams, ObjectKind},
    ids::Hash,
    limits,
};

/// How far ahead of a reader bytes are fetched and unpacked: some eight blocks hide a round trip of tens of milliseconds, and what is done with each that has come.
const AHEAD_BYTES: u64 = 8 << 20;
/// Reads this near one another still are in order: the kernel sends a reader's requests side by side.
const SLACK_BYTES: u64 = 1 << 20;
/// A block's neighbourhood: chunks that begin nearer than this are likely in the same block.
const BLOCK_BYTES: u64 = limits::BLOCK_RAW_TARGET_BYTES as u64;
/// Fetches ahead at once: urgent ones of other readers must get through in between.
const AHEAD_THREADS: usize = 6;
/// Fetches ahead that wait; beyond it they are left to the reader.
const AHEAD_QUEUE: usize = 64;
/// Readers whose place is remembered.
const STREAMS: u64 = 256;

/// Where a file is read.
#[derive(Clone, Copy, Debug)]
struct Stream {
    /// Where the next read in order begins.
    next: u64,
    /// Up to where bytes were asked for ahead.
    planned: u64,
}

/// A chunk to fetch ahead.
type Job = (Arc<Layout>, Placed);

/// The background fetches.
#[derive(Debug)]
pub struct ReadAhead {
    streams: Mutex<Lru<Hash, Stream>>,
    queue: mpsc::SyncSender<Job>,
}

impl ReadAhead {
    /// Starts the threads. They end with the cache.
    pub fn start(cache: &Weak<Cache>) -> Self {
        let (queue, jobs) = mpsc::sync_channel(AHEAD_QUEUE);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..AHEAD_THREADS {
            let (cache, jobs) = (cache.clone(), jobs.clone());
            let thread = std::thread::Builder::new().name("read-ahead".to_owned());
            if let Err(error) = thread.spawn(move || fetch_ahead(&cache, &jobs)) {
                warn!(%error, "no thread to read ahead");
            }
        }
        Self { streams: Mutex::new(Lru::new(STREAMS)), queue }
    }

    /// Notes a read and says which range to fetch now, if reads of this file come in order.
    fn note(&self, content: &Hash, read: &Range<u64>) -> Option<Range<u64>> {
        let mut streams = self.streams.lock().expect("no code panics under this lock");
        let Some(stream) = streams.get(content).filter(|s| s.next.abs_diff(read.start) <= SLACK_BYTES) else {
            streams.insert(*content, Stream { next: read.end, planned: read.end }, 1);
            return None;
        };
        stream.next = stream.next.max(read.end);
        let start = stream.planned.max(read.end);
        if start > stream.next + AHEAD_BYTES / 2 {
            return None;
        }
        stream.planned = stream.next + AHEAD_BYTES;
        Some(start..stream.planned)
    }
}

fn fetch_ahead(cache: &Weak<Cache>, jobs: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let job = jobs.lock().expect("no code panics under this lock").recv();
        let (Ok((layout, chunk)), Some(cache)) = (job, cache.upgrade()) else { return };
        if cache.is_open(ObjectKey::of(ObjectKind::Chunk, &chunk.hash)) {
            continue;
        }
        if let Err(error) = cache.get_near(ObjectKind::Chunk, &chunk.hash, neighbours(&layout, &chunk)) {
            debug!(%error, hash = ?chunk.hash, "chunk isn't fetched ahead");
        }
    }
}

/// Chunks that are likely in the same block: a block is closed by the chunk with which it reaches its size. Those further away are not, so
/// that fetches of one block after another don't wait for one another.
fn neighbours<'a>(layout: &'a Layout, chunk: &Placed) -> &'a [Placed] {
    layout.beginning_in((chunk.start() + 1).saturating_sub(BLOCK_BYTES)..chunk.start() + BLOCK_BYTES)
}

impl Cache {
    /// Bytes `offset..offset + len` of a file's content, fewer only at its end; from the network if need be.
    /// `size` is the file's, `params` the store's.
    pub fn read(
        &self,
        content: &Hash,
        size: u64,
        params: &ChunkParams,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, FetchError> {
        let file = File { cache: self, content, size, params, remote: true };
        match file.read(offset, len) {
            // The recipe may be another store's, or older than a reorganisation of this one.
            Err(FetchError::NotFound) if file.drop_recipe() => file.read(offset, len),
            result => result,
        }
    }

    /// A file's recipe, if it is on this host, and `None` in it for a file that is one chunk and has none.
    pub(super) fn local_layout(
        &self,
        content: &Hash,
        size: u64,
        params: &ChunkParams,
    ) -> Option<Option<Arc<Layout>>> {
        if params.content_kind(size) != ObjectKind::Recipe {
            return Some(None);
        }
        File { cache: self, content, size, params, remote: false }.layout().ok().map(Some)
    }

    /// Whether the content `start` is the beginning of `whole`, each with its size. Chunks that both have needn't be looked at, so that of
    /// a log that grows only the last one is.
    pub fn begins_with(
        &self,
        whole: (Hash, u64),
        start: (Hash, u64),
        params: &ChunkParams,
    ) -> Result<bool, FetchError> {
        if start.1 > whole.1 {
            return Ok(false);
        }
        let mut at = self.common_chunks(whole, start, params)?;
        while at < start.1 {
            let len = usize::try_from(start.1 - at).unwrap_or(usize::MAX).min(BLOCK_BYTES as usize);
            let here = self.read(&start.0, start.1, params, at, len)?;
            if here.is_empty() || here != self.read(&whole.0, whole.1, params, at, len)? {
                return Ok(false);
            }
            at += here.len() as u64;
        }
        Ok(true)
    }

    /// Bytes at the beginning of two contents that are in the same chunks.
    fn common_chunks(
        &self,
        (a, a_size): (Hash, u64),
        (b, b_size): (Hash, u64),
        params: &ChunkParams,
    ) -> Result<u64, FetchError> {
        if [a_size, b_size].iter().any(|size| params.content_kind(*size) != ObjectKind::Recipe) {
            return Ok(0);
        }
        let a = File { cache: self, content: &a, size: a_size, params, remote: true }.layout()?;
        let b = File { cache: self, content: &b, size: b_size, params, remote: true }.layout()?;
        let (a, b) = (a.covering(0..a_size), b.covering(0..b_size));
        let same = a.iter().zip(b).take_while(|(a, b)| a.hash == b.hash && a.end == b.end);
        Ok(same.last().map_or(0, |(a, _)| a.end))
    }

    /// As [`Cache::read`], if all that it takes is on this host.
    pub fn read_local(
        &self,
        content: &Hash,
        size: u64,
        params: &ChunkParams,
        offset: u64,
        len: usize,
    ) -> Option<Vec<u8>> {
        File { cache: self, content, size, params, remote: false }.read(offset, len).ok()
    }
}

/// A file that is being read.
struct File<'a> {
    cache: &'a Cache,
    content: &'a Hash,
    size: u64,
    params: &'a ChunkParams,
    /// Whether the network may be asked.
    remote: bool,
}

impl File<'_> {
    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, FetchError> {
        let range = offset.min(self.size)..offset.saturating_add(len as u64).min(self.size);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        match self.params.content_kind(self.size) {
            ObjectKind::Recipe => self.read_chunks(range),
            _ => {
                let whole = self.chunk(self.content, self.size, &[])?;
                Ok(whole[range.start as usize..range.end as usize].to_vec())
            }
        }
    }

    fn read_chunks(&self, range: Range<u64>) -> Result<Vec<u8>, FetchError> {
        let layout = self.layout()?;
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        for chunk in layout.covering(range.clone()) {
            let object = self.chunk(&chunk.hash, chunk.bytes.into(), neighbours(&layout, chunk))?;
            let from = range.start.max(chunk.start()) - chunk.start();
            let to = range.end.min(chunk.end) - chunk.start();
            bytes.extend_from_slice(&object[from as usize..to as usize]);
        }
        self.read_ahead(&layout, &range);
        Ok(bytes)
    }

    fn get(&self, kind: ObjectKind, hash: &Hash, near: &[Placed]) -> Result<Object, FetchError> {
        if self.remote {
            self.cache.get_near(kind, hash, near)
        } else {
            self.cache.get_local(kind, hash).ok_or(FetchError::NotFound)
        }
    }

    /// A chunk, which must be as long as who names it says.
    fn chunk(&self, hash: &Hash, bytes: u64, near: &[Placed]) -> Result<Object, FetchError> {
        let object = self.get(ObjectKind::Chunk, hash, near)?;
        if object.len() as u64 == bytes {
            return Ok(object);
        }
        warn!(content = %self.content, chunk = %hash, "a chunk has {} bytes instead of {bytes}", object.len());
        Err(FetchError::Damaged)
    }

    fn layout(&self) -> Result<Arc<Layout>, FetchError> {
        if let Some(layout) = self.cache.recipes().get(self.content)
            && layout.size() == self.size
        {
            return Ok(layout.clone());
        }
        let object = self.get(ObjectKind::Recipe, self.content, &[])?;
        match Layout::parse(&object, self.size, self.params) {
            Ok(layout) => {
                self.cache.recipes().insert(*self.content, layout.clone(), layout.memory_bytes());
                Ok(layout)
            }
            Err(reason) => {
                warn!(content = %self.content, size = self.size, "recipe is refused: {reason}");
                self.cache.forget(ObjectKind::Recipe, self.content);
                Err(FetchError::Damaged)
            }
        }
    }

    /// Forgets the file's recipe; whether there was one.
    fn drop_recipe(&self) -> bool {
        let known = self.cache.recipes().remove(self.content).is_some();
        known && self.cache.forget(ObjectKind::Recipe, self.content)
    }

    /// Asks for one chunk a block of what comes next, which brings its neighbours.
    fn read_ahead(&self, layout: &Arc<Layout>, read: &Range<u64>) {
        let Some(ahead) = self.cache.ahead.note(self.content, read) else { return };
        let mut from = 0;
        for chunk in layout.covering(ahead) {
            if chunk.start() < from || self.cache.is_open(ObjectKey::of(ObjectKind::Chunk, &chunk.hash)) {
                continue;
            }
            from = chunk.start() + BLOCK_BYTES;
            if self.cache.ahead.queue.try_send((layout.clone(), *chunk)).is_err() {
                return;
            }
        }
    }
}
