//! The derived index: where each object is.
//!
//! A redb database beside the packs, and in front of it what was appended since it was last written. It can be deleted while the store is
//! closed: opening reads the packs again from where the index ends. It is written in large batches, each one durable transaction
//! that also says up to where each pack is in it, and only ever speaks of bytes that were synced before.
//!
//! | table | key | value |
//! |---|---|---|
//! | `objects` | kind u8, hash 32 | pack u32, offset u64, block bytes u32, number in the block's table u32, object bytes u64 |
//! | `candidates` | hash 32, pack u32, offset u64, number u32 | block bytes u32 |
//! | `packs` | pack u32 | bytes of it that are in the index u64 |
//! | `store` | 0 | store UUID 16, version u32 |
//!
//! A recipe isn't named by its own bytes, so anybody can send a false one. It is a *candidate* until its chunks were read and hashed; only
//! then it becomes an object, whose bytes are the content's size. Numbers are little endian in values and big endian in keys.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::Path,
    sync::{Arc, RwLock},
};

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageBackend,
    TableDefinition,
};

use super::{
    StoreError, catalog::PackPoint, error::index_error, gc::Doomed, layout::Layout, overlay::Overlay,
    pack::PackedBlock,
};
use crate::{
    chunk::{ObjectKind, block::TableEntry},
    durable::{Disk, DiskFile},
    ids::{Hash, StoreUuid},
};

const OBJECTS: TableDefinition<&[u8; 33], &[u8; 28]> = TableDefinition::new("objects");
const CANDIDATES: TableDefinition<&[u8; 48], u32> = TableDefinition::new("candidates");
const PACKS: TableDefinition<u32, u64> = TableDefinition::new("packs");
const STORE: TableDefinition<u8, &[u8; 20]> = TableDefinition::new("store");
/// Version of the tables above; an index of another version is made again.
const VERSION: u32 = 1;
/// The database's page cache.
const CACHE_BYTES: usize = 32 << 20;
/// Candidates kept for one content: an honest one is among the newest, since its commit follows at once.
const CANDIDATES_MAX: usize = 8;

/// Where an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    pub pack: u32,
    /// Where its block begins.
    pub offset: u64,
    pub block_bytes: u32,
    /// Its line in the block's table.
    pub number: u32,
    /// The object's raw bytes; of a recipe, the size of the file that it makes (0 = not known yet).
    pub bytes: u64,
}

/// An object's name.
pub type Key = (ObjectKind, Hash);

impl Location {
    fn encode(&self) -> [u8; 28] {
        let mut out = [0; 28];
        out[..4].copy_from_slice(&self.pack.to_le_bytes());
        out[4..12].copy_from_slice(&self.offset.to_le_bytes());
        out[12..16].copy_from_slice(&self.block_bytes.to_le_bytes());
        out[16..20].copy_from_slice(&self.number.to_le_bytes());
        out[20..].copy_from_slice(&self.bytes.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; 28]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Self {
            pack: u32_at(0),
            offset: u64_at(4),
            block_bytes: u32_at(12),
            number: u32_at(16),
            bytes: u64_at(20),
        }
    }

    fn candidate_key(&self, hash: &Hash) -> [u8; 48] {
        let mut out = [0; 48];
        out[..32].copy_from_slice(&hash.0);
        out[32..36].copy_from_slice(&self.pack.to_be_bytes());
        out[36..44].copy_from_slice(&self.offset.to_be_bytes());
        out[44..].copy_from_slice(&self.number.to_be_bytes());
        out
    }

    fn of_candidate(key: &[u8; 48], block_bytes: u32) -> Self {
        Self {
            pack: u32::from_be_bytes(key[32..36].try_into().expect("four bytes")),
            offset: u64::from_be_bytes(key[36..44].try_into().expect("eight bytes")),
            block_bytes,
            number: u32::from_be_bytes(key[44..].try_into().expect("four bytes")),
            bytes: 0,
        }
    }

    /// Where its block begins.
    pub fn point(&self) -> PackPoint {
        PackPoint { pack: self.pack, offset: self.offset }
    }

    /// Whether both name the same line of the same block.
    pub fn same_place(&self, other: &Self) -> bool {
        (self.pack, self.offset, self.number) == (other.pack, other.offset, other.number)
    }
}

fn encode_key((kind, hash): &Key) -> [u8; 33] {
    let mut out = [0; 33];
    out[0] = *kind as u8;
    out[1..].copy_from_slice(&hash.0);
    out
}

fn decode_key(bytes: &[u8; 33]) -> Option<Key> {
    let kind = match bytes[0] {
        0 => ObjectKind::Chunk,
        1 => ObjectKind::Recipe,
        2 => ObjectKind::Manifest,
        _ => return None,
    };
    Some((kind, Hash(bytes[1..].try_into().expect("32 bytes"))))
}

/// What isn't in the database yet.
#[derive(Clone, Debug, Default)]
struct Changes {
    objects: HashMap<Key, Location>,
    candidates: HashMap<Hash, Vec<Location>>,
    /// Candidates that turned out to be false, or that aren't needed any more.
    dropped: Vec<(Hash, Location)>,
    /// How far each pack is in it.
    packs: BTreeMap<u32, u64>,
    /// Objects that are to be forgotten, if that is still their place when this is written.
    gone: HashMap<Key, Location>,
    /// Packs that will be gone.
    packs_gone: Vec<u32>,
}

impl Changes {
    fn len(&self) -> usize {
        self.objects.len() + self.candidates.len() + self.dropped.len() + self.gone.len()
    }
}

#[derive(Debug, Default)]
struct Pending {
    /// Grows.
    fresh: Changes,
    /// Being written.
    flushing: Option<Arc<Changes>>,
}

impl Pending {
    fn layers(&self) -> impl Iterator<Item = &Changes> {
        [Some(&self.fresh), self.flushing.as_deref()].into_iter().flatten()
    }
}

/// The index.
#[derive(Debug)]
pub struct Index {
    /// Taken only when it is dropped.
    db: Option<Database>,
    pending: RwLock<Pending>,
    /// What a `gc` that is under way takes away: as good as gone for who asks.
    doomed: RwLock<Option<Arc<Doomed>>>,
}

/// A [`DiskFile`] as the database wants it.
#[derive(Debug)]
struct Backend(Arc<dyn DiskFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}

impl Index {
    /// Opens the index of `store` and says how far each pack is in it. One that is missing, damaged, another store's or of another
    /// version is made afresh, with no packs.
    pub fn open(
        disk: &dyn Disk,
        layout: &Layout,
        store: StoreUuid,
    ) -> Result<(Self, BTreeMap<u32, u64>), StoreError> {
        match Self::open_existing(disk, &layout.index(), store) {
            Ok(Some(index)) => {
                let packs = index.packs()?;
                Ok((index, packs))
            }
            Ok(None) => Ok((Self::create(disk, layout, store)?, BTreeMap::new())),
            Err(error) => {
                tracing::warn!(%error, "the index is of no use and is made again");
                Ok((Self::create(disk, layout, store)?, BTreeMap::new()))
            }
        }
    }

    fn open_existing(disk: &dyn Disk, path: &Path, store: StoreUuid) -> Result<Option<Self>, StoreError> {
        let file = match disk.open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        if file.is_empty()? {
            return Ok(None);
        }
        let index = Self::with_backend(Backend(file))?;
        Ok(index.belongs_to(store)?.then_some(index))
    }

    /// Opens the index in `file` for looking at it: the file isn't changed, not even to mend it after a crash.
    pub(crate) fn open_unchanged(file: Arc<dyn DiskFile>) -> Result<Self, StoreError> {
        Self::with_backend(Overlay::new(file)?)
    }

    /// Opens the database on `backend`. The database asserts what it finds on its pages; what it says by panicking is an error here,
    /// since the file may be anything.
    fn with_backend(backend: impl StorageBackend) -> Result<Self, StoreError> {
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)
        }));
        let damaged =
            |_| index_error(redb::StorageError::Corrupted("the database can't be opened".to_owned()));
        let db = Some(opened.map_err(damaged)?.map_err(index_error)?);
        Ok(Self { db, pending: RwLock::default(), doomed: RwLock::default() })
    }

    pub(crate) fn belongs_to(&self, store: StoreUuid) -> Result<bool, StoreError> {
        let read = self.read()?;
        let table = match read.open_table(STORE) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(false),
            table => table.map_err(index_error)?,
        };
        let mark = table.get(0).map_err(index_error)?;
        Ok(mark.is_some_and(|mark| *mark.value() == mark_of(store)))
    }

    /// Makes an empty index in place of what may be there.
    pub fn create(disk: &dyn Disk, layout: &Layout, store: StoreUuid) -> Result<Self, StoreError> {
        match disk.remove(&layout.index()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        let index = Self::with_backend(Backend(disk.create(&layout.index())?))?;
        index.write(&Changes::default(), Some(store))?;
        disk.sync_dir(layout.dir())?;
        Ok(index)
    }

    fn read(&self) -> Result<ReadTransaction, StoreError> {
        self.db().begin_read().map_err(index_error)
    }

    fn db(&self) -> &Database {
        self.db.as_ref().expect("is there until the index is dropped")
    }

    /// How far each pack is in the database.
    pub(crate) fn packs(&self) -> Result<BTreeMap<u32, u64>, StoreError> {
        let table = self.read()?.open_table(PACKS).map_err(index_error)?;
        let rows = table.iter().map_err(index_error)?;
        rows.map(|row| row.map(|(k, v)| (k.value(), v.value())).map_err(index_error)).collect()
    }

    fn write(&self, changes: &Changes, store: Option<StoreUuid>) -> Result<(), StoreError> {
        let mut txn = self.db().begin_write().map_err(index_error)?;
        // After a crash the index is opened without a walk through all of it.
        txn.set_quick_repair(true);
        {
            let mut objects = txn.open_table(OBJECTS).map_err(index_error)?;
            let mut rows: Vec<_> = changes.objects.iter().map(|(k, l)| (encode_key(k), l.encode())).collect();
            rows.sort_unstable();
            for (key, value) in &rows {
                objects.insert(key, value).map_err(index_error)?;
            }
            for (key, place) in &changes.gone {
                let key = encode_key(key);
                let now = objects.get(&key).map_err(index_error)?.map(|v| Location::decode(v.value()));
                if now.is_some_and(|now| now.same_place(place)) {
                    objects.remove(&key).map_err(index_error)?;
                }
            }
            let mut candidates = txn.open_table(CANDIDATES).map_err(index_error)?;
            for (hash, location) in changes.candidates.iter().flat_map(|(h, l)| l.iter().map(move |l| (h, l)))
            {
                let key = location.candidate_key(hash);
                candidates.insert(&key, location.block_bytes).map_err(index_error)?;
            }
            for (hash, location) in &changes.dropped {
                candidates.remove(&location.candidate_key(hash)).map_err(index_error)?;
            }
            let mut packs = txn.open_table(PACKS).map_err(index_error)?;
            for (pack, bytes) in &changes.packs {
                packs.insert(pack, bytes).map_err(index_error)?;
            }
            for pack in &changes.packs_gone {
                packs.remove(pack).map_err(index_error)?;
            }
            if let Some(store) = store {
                let mut mark = txn.open_table(STORE).map_err(index_error)?;
                mark.insert(0, &mark_of(store)).map_err(index_error)?;
            }
        }
        txn.commit().map_err(index_error)
    }

    /// Where the objects are, in the order asked. Recipes that are only candidates aren't there, nor is what a `gc` takes away.
    pub fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Location>>, StoreError> {
        let mut found = self.entries(keys)?;
        if let Some(doomed) = self.doomed() {
            for (key, place) in keys.iter().zip(&mut found) {
                *place = place.filter(|place| !doomed.has(key, place));
            }
        }
        Ok(found)
    }

    /// [`Index::get_many`], with what a `gc` takes away.
    pub(super) fn entries(&self, keys: &[Key]) -> Result<Vec<Option<Location>>, StoreError> {
        let mut found: Vec<Option<Location>> = {
            let pending = self.pending.read().expect("nothing panics while it holds the index's lock");
            keys.iter().map(|key| pending.layers().find_map(|c| c.objects.get(key)).copied()).collect()
        };
        if found.iter().all(Option::is_some) {
            return Ok(found);
        }
        // What has left the pending layers since is in the database by now.
        let table = self.read()?.open_table(OBJECTS).map_err(index_error)?;
        for (key, slot) in keys.iter().zip(&mut found).filter(|(_, slot)| slot.is_none()) {
            let value = table.get(&encode_key(key)).map_err(index_error)?;
            *slot = value.map(|v| Location::decode(v.value()));
        }
        Ok(found)
    }

    fn doomed(&self) -> Option<Arc<Doomed>> {
        self.doomed.read().expect("nothing panics while it holds the index's lock").clone()
    }

    /// From now on these are as good as gone; or nothing is any more.
    pub(super) fn doom(&self, doomed: Option<Arc<Doomed>>) {
        *self.doomed.write().expect("nothing panics while it holds the index's lock") = doomed;
    }

    /// Where an object is.
    pub fn get(&self, kind: ObjectKind, hash: &Hash) -> Result<Option<Location>, StoreError> {
        Ok(self.get_many(&[(kind, *hash)])?[0])
    }

    /// Unproven recipes of a content, newest first.
    pub fn candidates(&self, hash: &Hash) -> Result<Vec<Location>, StoreError> {
        let (mut found, dropped) = {
            let pending = self.pending.read().expect("nothing panics while it holds the index's lock");
            let of = |c: &Changes| c.candidates.get(hash).cloned().unwrap_or_default();
            let found: Vec<Location> = pending.layers().flat_map(of).collect();
            let dropped = pending.layers().flat_map(|c| &c.dropped).filter(|(h, _)| h == hash);
            (found, dropped.map(|(_, l)| *l).collect::<Vec<_>>())
        };
        let table = self.read()?.open_table(CANDIDATES).map_err(index_error)?;
        let (mut low, mut high) = ([0; 48], [0xff; 48]);
        low[..32].copy_from_slice(&hash.0);
        high[..32].copy_from_slice(&hash.0);
        for row in table.range::<&[u8; 48]>(&low..=&high).map_err(index_error)? {
            let (key, block_bytes) = row.map_err(index_error)?;
            found.push(Location::of_candidate(key.value(), block_bytes.value()));
        }
        let doomed = self.doomed();
        found.retain(|l| {
            !dropped.iter().any(|d| d.same_place(l)) && !doomed.as_ref().is_some_and(|d| d.takes(l.pack))
        });
        found.sort_by_key(|l| std::cmp::Reverse((l.pack, l.offset, l.number)));
        found.dedup_by(|a, b| a.same_place(b));
        Ok(found)
    }

    /// Enters a block that was appended to `pack`. `known` is what [`Index::places`] said of its objects: they keep their place.
    pub fn add_block(&self, pack: u32, block: &PackedBlock, known: &[Option<Location>]) {
        let doomed = self.doomed();
        let mut pending = self.pending.write().expect("nothing panics while it holds the index's lock");
        let fresh = &mut pending.fresh;
        for ((number, entry), known) in block.table.iter().enumerate().zip(known) {
            let location = location(pack, block, number, entry);
            match entry.kind {
                _ if known.is_some() => {}
                ObjectKind::Recipe => {
                    let candidates = fresh.candidates.entry(entry.hash).or_default();
                    candidates.insert(0, location);
                    candidates.truncate(CANDIDATES_MAX);
                }
                ObjectKind::Chunk | ObjectKind::Manifest => {
                    let key = (entry.kind, entry.hash);
                    let place = fresh.objects.entry(key).or_insert(location);
                    if doomed.as_ref().is_some_and(|doomed| doomed.has(&key, place)) {
                        *place = location;
                    }
                }
            }
        }
        fresh.packs.insert(pack, block.end());
    }

    /// Enters a block of objects that were copied from elsewhere to `pack`; `from` says where each was.
    pub(super) fn move_block(&self, pack: u32, block: &PackedBlock, from: &[Location]) {
        let mut pending = self.pending.write().expect("nothing panics while it holds the index's lock");
        let fresh = &mut pending.fresh;
        for ((number, entry), from) in block.table.iter().enumerate().zip(from) {
            let to = Location { bytes: from.bytes, ..location(pack, block, number, entry) };
            fresh.objects.insert((entry.kind, entry.hash), to);
        }
        fresh.packs.insert(pack, block.end());
    }

    /// Forgets objects that are at these places.
    pub(super) fn forget(&self, gone: Vec<(Key, Location)>) {
        let mut pending = self.pending.write().expect("nothing panics while it holds the index's lock");
        pending.fresh.gone.extend(gone);
    }

    /// Takes these recipes for unproven again.
    pub(super) fn doubt(&self, recipes: Vec<(Key, Location)>) {
        let mut pending = self.pending.write().expect("nothing panics while it holds the index's lock");
        let fresh = &mut pending.fresh;
        for ((kind, hash), place) in recipes {
            fresh.dropped.retain(|(dropped, at)| *dropped != hash || !at.same_place(&place));
            fresh.candidates.entry(hash).or_default().push(Location { bytes: 0, ..place });
            fresh.gone.insert((kind, hash), place);
        }
    }

    /// Forgets a pack and the unproven recipes in it.
    pub(super) fn forget_pack(&self, pack: u32, candidates: Vec<(Hash, Location)>) {
        let mut pending = self.pending.write().expect("nothing panics while it holds the index's lock");
        pending.fresh.dropped.extend(candidates);
        pending.fresh.packs_gone.push(pack);
    }

    /// Every proven recipe that a `gc` takes away.
    pub(super) fn doomed_recipes(&self, doomed: &Doomed) -> Result<Vec<(Key, Location)>, StoreError> {
        let mut found: HashMap<Key, Location> = HashMap::new();
        let table = self.read()?.open_table(OBJECTS).map_err(index_error)?;
        let (mut low, mut high) = ([0; 33], [0xff; 33]);
        (low[0], high[0]) = (ObjectKind::Recipe as u8, ObjectKind::Recipe as u8);
        for row in table.range::<&[u8; 33]>(&low..=&high).map_err(index_error)? {
            let (key, value) = row.map_err(index_error)?;
            if let Some(key) = decode_key(key.value()) {
                found.insert(key, Location::decode(value.value()));
            }
        }
        let pending = self.pending.read().expect("nothing panics while it holds the index's lock");
        let layers: Vec<&Changes> = pending.layers().collect();
        for (key, place) in layers.into_iter().rev().flat_map(|changes| &changes.objects) {
            if key.0 == ObjectKind::Recipe {
                found.insert(*key, *place);
            }
        }
        Ok(found.into_iter().filter(|(key, place)| doomed.has(key, place)).collect())
    }

    /// Where the objects of a table are already.
    pub fn places(&self, table: &[TableEntry]) -> Result<Vec<Option<Location>>, StoreError> {
        let keys: Vec<Key> = table.iter().map(|e| (e.kind, e.hash)).collect();
        self.get_many(&keys)
    }

    /// Says that all of `pack`'s first `bytes` bytes are entered.
    pub fn reached(&self, pack: u32, bytes: u64) {
        let mut pending = self.pending.write().expect("nothing panics while it holds the index's lock");
        pending.fresh.packs.insert(pack, bytes);
    }

    /// A candidate was proven: it makes `size` bytes of this content. The others aren't needed.
    pub fn prove(&self, hash: Hash, location: Location, size: u64) -> Result<(), StoreError> {
        let candidates = self.candidates(&hash)?;
        if let Some(doomed) = self.doomed() {
            // Its chunks were read just now, so they stay.
            doomed.spare(hash);
        }
        let mut pending = self.pending.write().expect("nothing panics while it holds the index's lock");
        let fresh = &mut pending.fresh;
        fresh.gone.remove(&(ObjectKind::Recipe, hash));
        fresh.objects.insert((ObjectKind::Recipe, hash), Location { bytes: size, ..location });
        fresh.candidates.remove(&hash);
        fresh.dropped.extend(candidates.into_iter().map(|l| (hash, l)));
        Ok(())
    }

    /// A candidate was found false.
    pub fn reject(&self, hash: Hash, location: Location) {
        let mut pending = self.pending.write().expect("nothing panics while it holds the index's lock");
        if let Some(candidates) = pending.fresh.candidates.get_mut(&hash) {
            candidates.retain(|l| !l.same_place(&location));
        }
        pending.fresh.dropped.push((hash, location));
    }

    /// How much waits to be written.
    pub fn waiting(&self) -> usize {
        self.pending.read().expect("nothing panics while it holds the index's lock").fresh.len()
    }

    /// Sets aside what is known now, for [`Index::finish_flush`]. What it speaks of must be synced in between; nothing else may flush.
    pub fn begin_flush(&self) {
        let mut pending = self.pending.write().expect("nothing panics while it holds the index's lock");
        assert!(pending.flushing.is_none(), "one flush at a time");
        pending.flushing = Some(Arc::new(std::mem::take(&mut pending.fresh)));
    }

    /// Writes what was set aside, if anything was.
    pub fn finish_flush(&self) -> Result<(), StoreError> {
        let changes = {
            let pending = self.pending.read().expect("nothing panics while it holds the index's lock");
            pending.flushing.clone()
        };
        let Some(changes) = changes else { return Ok(()) };
        self.write(&changes, None)?;
        self.pending.write().expect("nothing panics while it holds the index's lock").flushing = None;
        Ok(())
    }

    /// How many objects it knows, unproven recipes not counted.
    pub fn objects(&self) -> Result<u64, StoreError> {
        let pending = {
            let pending = self.pending.read().expect("nothing panics while it holds the index's lock");
            pending.layers().map(|c| c.objects.len() as u64).sum::<u64>()
        };
        let table = self.read()?.open_table(OBJECTS).map_err(index_error)?;
        Ok(table.len().map_err(index_error)? + pending)
    }

    /// Everything in the database itself, in order of key; `None` as a key stands for one that can't be.
    pub fn each(&self, mut each: impl FnMut(Option<Key>, Location)) -> Result<(), StoreError> {
        let table = self.read()?.open_table(OBJECTS).map_err(index_error)?;
        for row in table.iter().map_err(index_error)? {
            let (key, value) = row.map_err(index_error)?;
            each(decode_key(key.value()), Location::decode(value.value()));
        }
        Ok(())
    }
}

impl Drop for Index {
    /// The database tidies up when it is dropped, which a damaged one does by panicking. Whoever closes a store shall not fall with it: the next
    /// opening finds the damage and makes the index again.
    fn drop(&mut self) {
        let db = self.db.take();
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(db))).is_err() {
            tracing::error!("the index is damaged; it is made again when the store is opened");
        }
    }
}

/// An object's place by its line in a block's table.
pub fn location(pack: u32, block: &PackedBlock, number: usize, entry: &TableEntry) -> Location {
    Location {
        pack,
        offset: block.offset,
        block_bytes: block.bytes,
        number: number as u32,
        bytes: if entry.kind == ObjectKind::Recipe { 0 } else { u64::from(entry.bytes) },
    }
}

fn mark_of(store: StoreUuid) -> [u8; 20] {
    let mut mark = [0; 20];
    mark[..16].copy_from_slice(&store.0);
    mark[16..].copy_from_slice(&VERSION.to_le_bytes());
    mark
}
