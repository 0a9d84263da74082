use std::{
    collections::HashMap,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

use super::{
    disk::{block_files, check_file},
    *,
};
use crate::chunk::{ChunkParams, ChunkRef, Recipe, block::BlockBuilder};

const MIB: u64 = 1 << 20;

/// A store in memory that counts what it is asked.
#[derive(Default)]
struct TestStore {
    blocks: Mutex<Vec<Vec<u8>>>,
    holds: Mutex<HashMap<(ObjectKind, Hash), usize>>,
    fetches: AtomicUsize,
    away: AtomicBool,
    /// Fetches wait while this is so.
    hold: AtomicBool,
    held: AtomicUsize,
}

impl TestStore {
    fn add(&self, objects: &[(ObjectKind, Hash, &[u8])]) {
        let mut builder = BlockBuilder::default();
        let mut blocks = self.blocks.lock().expect("test");
        for (kind, hash, bytes) in objects {
            builder.push(*kind, *hash, bytes);
            self.holds.lock().expect("test").insert((*kind, *hash), blocks.len());
        }
        blocks.push(builder.finish(1).expect("compresses"));
    }

    fn add_chunks(&self, chunks: &[Vec<u8>]) {
        let objects: Vec<_> = chunks.iter().map(|c| (ObjectKind::Chunk, Hash::of(c), &c[..])).collect();
        self.add(&objects);
    }

    /// Cuts a file into chunks of 32 KiB, 32 a block, with its recipe in a block of its own.
    fn add_large(&self, bytes: &[u8]) -> Hash {
        let chunks: Vec<Vec<u8>> = bytes.chunks(32 << 10).map(<[u8]>::to_vec).collect();
        chunks.chunks(32).for_each(|block| self.add_chunks(block));
        let chunks = chunks.iter().map(|c| ChunkRef { hash: Hash::of(c), bytes: c.len() as u32 }).collect();
        self.add_recipe(Hash::of(bytes), &Recipe { chunks });
        Hash::of(bytes)
    }

    fn add_recipe(&self, content: Hash, recipe: &Recipe) {
        self.add(&[(ObjectKind::Recipe, content, &recipe.encode())]);
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

impl BlockSource for TestStore {
    fn fetch(&self, kind: ObjectKind, hash: &Hash) -> Result<Vec<u8>, FetchError> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        self.held.fetch_add(1, Ordering::SeqCst);
        while self.hold.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.held.fetch_sub(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            return Err(FetchError::Unreachable("the network is down".to_owned()));
        }
        let at = self.holds.lock().expect("test").get(&(kind, *hash)).copied().ok_or(FetchError::NotFound)?;
        Ok(self.blocks.lock().expect("test")[at].clone())
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    store: Arc<TestStore>,
    cache: Arc<Cache>,
}

impl Fixture {
    fn new(max_bytes: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Arc::new(TestStore::default());
        let cache = open(&dir, max_bytes, &store);
        Self { dir, store, cache }
    }

    /// Another daemon's life over the same directory.
    fn reopen(&mut self, max_bytes: u64) {
        self.cache = open(&self.dir, max_bytes, &self.store);
    }

    fn files(&self) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(self.cache_dir()).expect("the cache's directory");
        entries.map(|e| e.expect("an entry").path()).collect()
    }

    fn cache_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("cache")
    }
}

fn open(dir: &tempfile::TempDir, max_bytes: u64, store: &Arc<TestStore>) -> Arc<Cache> {
    let cache = Cache::open(&dir.path().join("cache"), max_bytes).expect("opens");
    cache.set_source(store.clone());
    cache
}

fn small_files(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|i| format!("keyval {i}\n").repeat(30).into_bytes()).collect()
}

/// Bytes that don't compress and don't repeat.
fn noise(len: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn read(cache: &Cache, content: &[u8], offset: u64, len: usize) -> Result<Vec<u8>, FetchError> {
    cache.read(&Hash::of(content), content.len() as u64, &ChunkParams::default(), offset, len)
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// The first read of a small file brings its neighbours: N files in one block cost one fetch, also after a
/// restart.
#[test]
fn neighbours_cost_nothing() {
    let mut f = Fixture::new(64 * MIB);
    let files = small_files(500);
    f.store.add_chunks(&files);
    for file in &files {
        assert_eq!(read(&f.cache, file, 0, 1 << 20).as_ref(), Ok(file));
    }
    f.reopen(64 * MIB);
    for file in &files {
        assert_eq!(read(&f.cache, file, 7, 20), Ok(file[7..27].to_vec()));
    }
    assert_eq!(f.store.fetches(), 1);
    assert_eq!((f.cache.stats().disk_blocks, f.cache.stats().disk_objects), (1, 500));
}

#[test]
fn reads_end_where_the_file_ends() {
    let f = Fixture::new(64 * MIB);
    let file = small_files(1).remove(0);
    f.store.add_chunks(std::slice::from_ref(&file));
    let len = file.len() as u64;
    assert_eq!(read(&f.cache, &file, len, 10), Ok(vec![]));
    assert_eq!(read(&f.cache, &file, u64::MAX, usize::MAX), Ok(vec![]));
    assert_eq!(read(&f.cache, b"", 0, 10), Ok(vec![]));
    assert_eq!(f.store.fetches(), 0, "nothing to read, nothing to fetch");
    assert_eq!(read(&f.cache, &file, len - 2, 10), Ok(file[file.len() - 2..].to_vec()));
}

#[test]
fn a_large_file_is_read_at_any_offset() {
    let f = Fixture::new(64 * MIB);
    let file = noise(3 * MIB + 12345, 1);
    f.store.add_large(&file);
    for (offset, len) in [(0, 1), (32767, 2), (32768, 1), (1 << 20, 100_000), (3 << 20, 99_999)] {
        let end = (offset + len).min(file.len());
        assert_eq!(
            read(&f.cache, &file, offset as u64, len),
            Ok(file[offset..end].to_vec()),
            "{offset}+{len}"
        );
    }
    assert!(f.cache.read_local(&Hash::of(&file), file.len() as u64, &ChunkParams::default(), 0, 9).is_some());
}

/// A file read from start to end costs one fetch a block, and blocks come before they are asked for.
#[test]
fn reads_in_order_are_fetched_ahead() {
    let f = Fixture::new(64 * MIB);
    let file = noise(12 * MIB, 2);
    f.store.add_large(&file);
    for at in 0..2 {
        read(&f.cache, &file, at * 1000, 1000).expect("reads");
    }
    // The recipe, the first block, and those of the next eight MiB.
    wait_until("read-ahead", || f.store.fetches() == 1 + 1 + 8);
    for at in (0..file.len()).step_by(128 << 10) {
        assert_eq!(read(&f.cache, &file, at as u64, 128 << 10).as_deref(), Ok(&file[at..at + (128 << 10)]));
    }
    assert_eq!(f.store.fetches(), 1 + 12);
}

/// What is fetched ahead comes side by side: a fetch for the block after doesn't wait for the one before, which would cost a round trip each.
#[test]
fn fetches_ahead_are_under_way_together() {
    let f = Fixture::new(64 * MIB);
    let file = noise(12 * MIB, 5);
    f.store.add_large(&file);
    read(&f.cache, &file, 0, 1000).expect("reads");
    f.store.hold.store(true, Ordering::SeqCst);
    read(&f.cache, &file, 1000, 1000).expect("is here");
    wait_until("six fetches at once", || f.store.held.load(Ordering::SeqCst) == 6);
    f.store.hold.store(false, Ordering::SeqCst);
}

/// What is on the disk is unpacked ahead, too, and each block once, however many readers want it at the same time.
#[test]
fn what_is_on_the_disk_is_unpacked_once_and_ahead() {
    let mut f = Fixture::new(64 * MIB);
    let file = noise(12 * MIB, 6);
    f.store.add_large(&file);
    for at in (0..file.len()).step_by(128 << 10) {
        read(&f.cache, &file, at as u64, 128 << 10).expect("reads");
    }
    wait_until("all blocks to be on the disk", || f.cache.stats().disk_blocks == 13);
    f.reopen(64 * MIB);
    f.store.away.store(true, Ordering::SeqCst);
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                read(&f.cache, &file, 1000, 1000).expect("is here");
            });
        }
    });
    // The recipe, the first block, and those of the next eight MiB.
    wait_until("unpacking ahead", || f.cache.stats().loads == 1 + 1 + 8);
}

#[test]
fn reads_here_and_there_are_not_fetched_ahead() {
    let f = Fixture::new(64 * MIB);
    let file = noise(12 * MIB, 3);
    f.store.add_large(&file);
    for at in [9, 1, 6, 3] {
        read(&f.cache, &file, at * MIB, 10).expect("reads");
    }
    assert_eq!(f.store.fetches(), 1 + 4);
}

#[test]
fn concurrent_gets_of_one_object_are_one_fetch() {
    let f = Fixture::new(64 * MIB);
    let file = small_files(1).remove(0);
    f.store.add_chunks(std::slice::from_ref(&file));
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                assert_eq!(read(&f.cache, &file, 0, 1 << 20).as_ref(), Ok(&file));
            });
        }
    });
    assert_eq!(f.store.fetches(), 1);
}

/// Every byte is checked: a damaged file in the cache is dropped and its block fetched again.
#[test]
fn a_damaged_file_is_fetched_again() {
    let mut f = Fixture::new(64 * MIB);
    let files = small_files(50);
    f.store.add_chunks(&files);
    read(&f.cache, &files[0], 0, 10).expect("reads");
    let [path] = &f.files()[..] else { panic!("one block file") };
    let mut bytes = std::fs::read(path).expect("reads");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(path, bytes).expect("writes");
    f.reopen(64 * MIB);
    assert_eq!(read(&f.cache, &files[1], 0, 1 << 20).as_ref(), Ok(&files[1]));
    assert_eq!(f.store.fetches(), 2);
    f.reopen(64 * MIB);
    assert_eq!(read(&f.cache, &files[2], 0, 1 << 20).as_ref(), Ok(&files[2]));
    assert_eq!(f.store.fetches(), 2, "the good copy was kept");
}

/// Whatever becomes of a block's file is found by reading it.
#[test]
fn damage_to_block_files_is_found() {
    let f = Fixture::new(64 * MIB);
    for number in 0..2 {
        let file = noise(9_000, number);
        f.store.add_chunks(std::slice::from_ref(&file));
        read(&f.cache, &file, 0, 10).expect("reads");
    }
    let [one, other] = &f.files()[..] else { panic!("two block files") };
    let good = std::fs::read(one).expect("reads");
    let check = |bytes: &[u8]| {
        std::fs::write(one, bytes).expect("writes");
        check_file(one).expect("it is there")
    };
    assert_eq!(check(&good), Ok(good.len() as u64));
    let flipped = (0..good.len()).step_by(97).map(|at| {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        bytes
    });
    let cut = (0..good.len()).step_by(997).map(|len| good[..len].to_vec());
    let grown = [&good[..], b"more"].concat();
    let swapped = std::fs::read(other).expect("reads");
    for (number, bytes) in flipped.chain(cut).chain([grown, swapped, vec![0; good.len()]]).enumerate() {
        assert!(check(&bytes).is_err(), "{number}");
    }
    assert_eq!(block_files(&f.cache_dir()).expect("lists").len(), 2);
}

#[test]
fn torn_and_foreign_files_are_deleted_at_start() {
    let mut f = Fixture::new(64 * MIB);
    let files = small_files(50);
    f.store.add_chunks(&files);
    read(&f.cache, &files[0], 0, 10).expect("reads");
    let [path] = &f.files()[..] else { panic!("one block file") };
    let bytes = std::fs::read(path).expect("reads");
    std::fs::write(path, &bytes[..bytes.len() - 1]).expect("writes");
    std::fs::write(f.cache_dir().join("new-7"), &bytes).expect("writes");
    f.reopen(64 * MIB);
    assert!(f.files().is_empty());
    assert!(f.cache.get_local(ObjectKind::Chunk, &Hash::of(&files[0])).is_none());
}

#[test]
fn the_bound_holds_and_the_oldest_go() {
    let mut f = Fixture::new(3 * MIB + MIB / 2);
    let blocks: Vec<Vec<_>> =
        (0..6).map(|block| (0..5).map(|i| noise(200 << 10, block * 5 + i)).collect()).collect();
    for (age, block) in blocks.iter().enumerate() {
        f.store.add_chunks(block);
        let before = f.files();
        read(&f.cache, &block[0], 0, 1).expect("reads");
        // The kernel's clock for files may stand still between two blocks.
        let new = f.files().into_iter().find(|name| !before.contains(name)).expect("one more");
        let file = std::fs::File::options().write(true).open(f.cache_dir().join(new)).expect("opens");
        file.set_modified(UNIX_EPOCH + Duration::from_secs(age as u64)).expect("sets its time");
    }
    let stats = f.cache.stats();
    assert!(stats.disk_bytes <= stats.max_bytes && stats.disk_blocks == 3, "{stats:?}");
    assert_eq!(f.files().len(), 3);
    f.reopen(2 * MIB);
    assert_eq!(f.files().len(), 2, "a smaller bound holds from the start");
    let kept = |block: &[Vec<u8>]| f.cache.get_local(ObjectKind::Chunk, &Hash::of(&block[3])).is_some();
    assert_eq!(blocks.iter().map(|b| kept(b)).collect::<Vec<_>>(), [false, false, false, false, true, true]);
}

#[test]
fn a_block_beyond_the_bound_is_not_kept() {
    let f = Fixture::new(1000);
    let file = noise(100 << 10, 1);
    f.store.add_chunks(std::slice::from_ref(&file));
    assert_eq!(read(&f.cache, &file, 0, 10), Ok(file[..10].to_vec()));
    assert!(f.files().is_empty());
    assert_eq!(f.cache.stats().disk_objects, 0);
}

/// All of the cache is derived: it can be deleted under the daemon's feet.
#[test]
fn a_deleted_directory_is_no_error() {
    let f = Fixture::new(64 * MIB);
    let files = small_files(2);
    files.iter().for_each(|file| f.store.add_chunks(std::slice::from_ref(file)));
    read(&f.cache, &files[0], 0, 10).expect("reads");
    std::fs::remove_dir_all(f.cache_dir()).expect("deletes");
    f.cache.open_blocks().clear();
    assert_eq!(read(&f.cache, &files[0], 0, 1 << 20).as_ref(), Ok(&files[0]));
    assert_eq!(read(&f.cache, &files[1], 0, 1 << 20).as_ref(), Ok(&files[1]));
    assert_eq!((f.store.fetches(), f.files().len()), (3, 2));
    f.cache.clear();
    assert!(f.files().is_empty());
}

#[test]
fn a_cache_that_cannot_be_written_is_no_error() {
    let f = Fixture::new(64 * MIB);
    let file = small_files(1).remove(0);
    f.store.add_chunks(std::slice::from_ref(&file));
    std::fs::remove_dir_all(f.cache_dir()).expect("deletes");
    std::fs::write(f.cache_dir(), b"in the way").expect("writes");
    assert_eq!(read(&f.cache, &file, 0, 1 << 20).as_ref(), Ok(&file));
    assert_eq!(f.cache.stats().disk_blocks, 0);
}

#[test]
fn what_is_not_what_was_asked_for_is_refused() {
    let f = Fixture::new(64 * MIB);
    let (asked, other) = (small_files(2).remove(0), small_files(2).remove(1));
    f.store.add_chunks(&[other]);
    f.store.holds.lock().expect("test").insert((ObjectKind::Chunk, Hash::of(&asked)), 0);
    assert_eq!(read(&f.cache, &asked, 0, 10), Err(FetchError::Damaged));
    f.store.blocks.lock().expect("test")[0][60] ^= 1;
    assert_eq!(read(&f.cache, &asked, 0, 10), Err(FetchError::Damaged));
    assert_eq!(f.cache.stats().failed_fetches, 2);
    assert!(f.files().is_empty());
}

#[test]
fn a_recipe_is_checked_and_a_bad_one_is_not_kept() {
    let file = noise(MIB, 5);
    let content = Hash::of(&file);
    let chunk = |bytes| ChunkRef { hash: Hash::of(b"x"), bytes };
    for chunks in [vec![chunk(MIB as u32)], vec![chunk(1000)], vec![chunk(0)], vec![]] {
        let f = Fixture::new(64 * MIB);
        f.store.add_recipe(content, &Recipe { chunks });
        assert_eq!(read(&f.cache, &file, 0, 10), Err(FetchError::Damaged));
        f.store.add_large(&file);
        assert_eq!(read(&f.cache, &file, 0, 10), Ok(file[..10].to_vec()));
    }
}

/// A recipe that was cached names chunks that the store no longer has under these names: it is asked for
/// again.
#[test]
fn a_recipe_that_was_overtaken_is_fetched_again() {
    let f = Fixture::new(64 * MIB);
    let file = noise(MIB, 6);
    let old = (0..MIB / 65536).map(|i| ChunkRef { hash: Hash::of(&i.to_le_bytes()), bytes: 65536 }).collect();
    f.store.add_recipe(Hash::of(&file), &Recipe { chunks: old });
    f.cache.get(ObjectKind::Recipe, &Hash::of(&file)).expect("cached");
    f.store.add_large(&file);
    assert_eq!(read(&f.cache, &file, 0, 10), Ok(file[..10].to_vec()));
}

#[test]
fn with_the_store_away_what_is_here_can_be_read() {
    let f = Fixture::new(64 * MIB);
    let files = small_files(2);
    files.iter().for_each(|file| f.store.add_chunks(std::slice::from_ref(file)));
    read(&f.cache, &files[0], 0, 10).expect("reads");
    f.store.away.store(true, Ordering::SeqCst);
    assert_eq!(read(&f.cache, &files[0], 0, 1 << 20).as_ref(), Ok(&files[0]));
    assert!(matches!(read(&f.cache, &files[1], 0, 10), Err(FetchError::Unreachable(_))));
    let local = |file: &[u8]| {
        f.cache.read_local(&Hash::of(file), file.len() as u64, &ChunkParams::default(), 0, 1 << 20)
    };
    assert_eq!((local(&files[0]).as_ref(), local(&files[1])), (Some(&files[0]), None));
}

#[test]
fn a_source_that_panics_leaves_nobody_waiting() {
    struct Panics;
    impl BlockSource for Panics {
        fn fetch(&self, _: ObjectKind, _: &Hash) -> Result<Vec<u8>, FetchError> {
            panic!("on purpose")
        }
    }
    let f = Fixture::new(64 * MIB);
    f.cache.set_source(Arc::new(Panics));
    let cache = f.cache.clone();
    std::thread::spawn(move || cache.get(ObjectKind::Chunk, &Hash::of(b"x"))).join().expect_err("panics");
    f.cache.set_source(f.store.clone());
    assert_eq!(f.cache.get(ObjectKind::Chunk, &Hash::of(b"x")).err(), Some(FetchError::NotFound));
}
