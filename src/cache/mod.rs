//! Remote blocks on local disk, checked and bounded.
//!
//! An object is looked for among the unpacked blocks in memory, then among the block files on disk, then at
//! the [`BlockSource`]. What comes from there is a whole block, so that its first small file brings its
//! neighbours.
//!
//! - Nothing is handed out that wasn't checked against its hash. (A recipe has no hash of its own: the store
//!   has proven it at the commit, its chunks are checked here one by one.)
//! - No lock is held while the network or the disk works; gets of one object wait for one fetch.
//! - All of it can be deleted at any time, and is fetched again. A cache that can't be written is no error.

mod disk;
mod flight;
mod holes;
pub mod lru;
mod object;
mod read;
mod recipe;
mod shelf;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::warn;

use self::{
    disk::Disk,
    flight::{Flights, Turns},
    lru::Lru,
    object::OpenBlock,
    read::ReadAhead,
    recipe::{Layout, Placed},
    shelf::{BlockName, ObjectKey, Shelf},
};
pub use self::{
    disk::{block_files, check_file},
    object::Object,
};
use crate::{chunk::ObjectKind, ids::Hash};

/// Unpacked blocks in memory: some thirty, enough for several readers and what was fetched ahead for them.
const OPEN_BYTES: u64 = 32 << 20;
/// Decoded recipes in memory: those of some 10 GiB of large files.
const RECIPE_BYTES: u64 = 16 << 20;
/// Objects in the index of the disk, at about 30 bytes of memory each.
const MAX_OBJECTS: usize = 4 << 20;

/// Where blocks come from.
pub trait BlockSource: Send + Sync {
    /// The encoded block that holds an object. Returns within a bounded time.
    fn fetch(&self, kind: ObjectKind, hash: &Hash) -> Result<Vec<u8>, FetchError>;
}

/// Why an object can't be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// There is no connection.
    #[error("the store can't be reached: {0}")]
    Unreachable(String),
    /// The store says that it doesn't hold it.
    #[error("the store doesn't hold the object")]
    NotFound,
    /// There was no answer.
    #[error("the store didn't answer in time")]
    Timeout,
    /// What came isn't what was asked for. The log has which and why.
    #[error("what the store sent is damaged")]
    Damaged,
}

/// Figures of a cache since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub disk_bytes: u64,
    pub disk_blocks: usize,
    pub disk_objects: usize,
    /// Bound on `disk_bytes`.
    pub max_bytes: u64,
    /// Unpacked blocks, bytes.
    pub memory_bytes: u64,
    /// Fetches that were tried.
    pub fetches: u64,
    /// Encoded bytes that they brought.
    pub fetched_bytes: u64,
    /// Fetches that failed.
    pub failed_fetches: u64,
    /// Blocks that were unpacked from disk.
    pub loads: u64,
}

/// A block as it came, and opened.
struct Fetched {
    encoded: Arc<Vec<u8>>,
    block: Arc<OpenBlock>,
}

#[derive(Debug, Default)]
struct Counters {
    fetches: AtomicU64,
    fetched_bytes: AtomicU64,
    failed_fetches: AtomicU64,
    loads: AtomicU64,
}

/// The cache.
pub struct Cache {
    max_bytes: u64,
    disk: Disk,
    open: Mutex<Shelf<Arc<OpenBlock>>>,
    recipes: Mutex<Lru<Hash, Arc<Layout>>>,
    flights: Flights,
    loads: Turns,
    source: RwLock<Option<Arc<dyn BlockSource>>>,
    ahead: ReadAhead,
    counters: Counters,
}

impl Cache {
    /// Opens or makes the cache in `dir`, with at most `max_bytes` on disk.
    pub fn open(dir: &Path, max_bytes: u64) -> io::Result<Arc<Self>> {
        let disk = Disk::open(dir, max_bytes)?;
        Ok(Arc::new_cyclic(|cache| Self {
            max_bytes,
            disk,
            open: Mutex::new(Shelf::new(OPEN_BYTES, MAX_OBJECTS)),
            recipes: Mutex::new(Lru::new(RECIPE_BYTES)),
            flights: Flights::default(),
            loads: Turns::default(),
            source: RwLock::default(),
            ahead: ReadAhead::start(cache),
            counters: Counters::default(),
        }))
    }

    /// Says where blocks come from. Until then, what isn't local is unreachable.
    pub fn set_source(&self, source: Arc<dyn BlockSource>) {
        *self.source.write().expect("no code panics under this lock") = Some(source);
    }

    /// An object, from the network if need be. Waits for the source.
    pub fn get(&self, kind: ObjectKind, hash: &Hash) -> Result<Object, FetchError> {
        self.get_near(kind, hash, &[])
    }

    /// As [`Cache::get`], for an object that is likely in one block with the chunks `near`.
    fn get_near(&self, kind: ObjectKind, hash: &Hash, near: &[Placed]) -> Result<Object, FetchError> {
        if let Some(object) = self.get_open(kind, hash) {
            return Ok(object);
        }
        let mut fetched = None;
        let landed = self.flights.join(kind, hash, near, || match self.get_local(kind, hash) {
            Some(object) => Ok(object),
            None => self.fetch(kind, hash).map(|(object, block)| {
                fetched = Some(block);
                object
            }),
        });
        // Others who wait for it needn't wait for the disk.
        if let Some(Fetched { encoded, block }) = fetched {
            self.disk.keep(BlockName::of(&encoded), &encoded, &block);
        }
        landed
    }

    /// An object, if it is on this host.
    pub fn get_local(&self, kind: ObjectKind, hash: &Hash) -> Option<Object> {
        self.get_open(kind, hash).or_else(|| self.load(kind, hash))
    }

    /// An object from the disk. The kernel sends a reader's requests side by side, and the next ones are for the same block.
    fn load(&self, kind: ObjectKind, hash: &Hash) -> Option<Object> {
        let name = self.disk.name_of(ObjectKey::of(kind, hash))?;
        let _turn = self.loads.take(name);
        self.get_open(kind, hash).or_else(|| {
            self.counters.loads.fetch_add(1, Ordering::Relaxed);
            let (name, block, object) = self.disk.load(kind, hash)?;
            self.keep_open(name, block);
            Some(object)
        })
    }

    fn get_open(&self, kind: ObjectKind, hash: &Hash) -> Option<Object> {
        let (_, block) = self.open_blocks().find(ObjectKey::of(kind, hash))?;
        block.object(kind, hash)
    }

    /// An object and its block, which is in memory then and not yet on disk.
    fn fetch(&self, kind: ObjectKind, hash: &Hash) -> Result<(Object, Fetched), FetchError> {
        self.counters.fetches.fetch_add(1, Ordering::Relaxed);
        let fetched = self.fetch_block(kind, hash);
        match &fetched {
            Ok((_, fetched)) => {
                self.counters.fetched_bytes.fetch_add(fetched.encoded.len() as u64, Ordering::Relaxed)
            }
            Err(_) => self.counters.failed_fetches.fetch_add(1, Ordering::Relaxed),
        };
        let (object, fetched) = fetched?;
        self.keep_open(BlockName::of(&fetched.encoded), fetched.block.clone());
        Ok((object, fetched))
    }

    fn fetch_block(&self, kind: ObjectKind, hash: &Hash) -> Result<(Object, Fetched), FetchError> {
        let source = self.source.read().expect("no code panics under this lock").clone();
        let source = source.ok_or_else(|| FetchError::Unreachable("not connected yet".to_owned()))?;
        let encoded = Arc::new(source.fetch(kind, hash)?);
        let block = OpenBlock::open(&encoded).map_err(|error| {
            warn!(%error, ?kind, %hash, "the store sent a damaged block");
            FetchError::Damaged
        })?;
        let object = block.object(kind, hash).ok_or_else(|| {
            warn!(?kind, %hash, "the store sent a block without the object asked for");
            FetchError::Damaged
        })?;
        Ok((object, Fetched { encoded, block }))
    }

    fn keep_open(&self, name: BlockName, block: Arc<OpenBlock>) {
        let (keys, bytes) = (block.keys(), block.memory_bytes());
        self.open_blocks().put(name, block, keys, bytes);
    }

    /// Drops the block that holds an object, so that it is fetched again; whether there was one.
    fn forget(&self, kind: ObjectKind, hash: &Hash) -> bool {
        let key = ObjectKey::of(kind, hash);
        let open = self.open_blocks().find(key).map(|(name, _)| name);
        let Some(name) = open.or_else(|| self.disk.name_of(key)) else { return false };
        self.open_blocks().remove(name);
        self.disk.forget(name);
        true
    }

    /// Whether an object is in memory.
    fn is_open(&self, key: ObjectKey) -> bool {
        self.open_blocks().has(key)
    }

    /// Deletes all that is cached.
    pub fn clear(&self) {
        self.recipes().clear();
        self.open_blocks().clear();
        self.disk.clear();
    }

    /// Its figures.
    pub fn stats(&self) -> CacheStats {
        let (disk_bytes, disk_blocks, disk_objects) = self.disk.fill();
        CacheStats {
            disk_bytes,
            disk_blocks,
            disk_objects,
            max_bytes: self.max_bytes,
            memory_bytes: self.open_blocks().fill().0,
            fetches: self.counters.fetches.load(Ordering::Relaxed),
            fetched_bytes: self.counters.fetched_bytes.load(Ordering::Relaxed),
            failed_fetches: self.counters.failed_fetches.load(Ordering::Relaxed),
            loads: self.counters.loads.load(Ordering::Relaxed),
        }
    }

    fn open_blocks(&self) -> MutexGuard<'_, Shelf<Arc<OpenBlock>>> {
        self.open.lock().expect("no code panics under this lock")
    }

    fn recipes(&self) -> MutexGuard<'_, Lru<Hash, Arc<Layout>>> {
        self.recipes.lock().expect("no code panics under this lock")
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
