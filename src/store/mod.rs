//! The results host's store: packs, catalog and the derived index.
//!
//! The way of a layer: [`Store::missing`] says what of it isn't here, [`Store::append_block`] takes that in, [`Store::commit`] checks that the
//! layer is whole, makes it durable and enters it. Files are described in their modules: [`layout`] (directory, header), [`pack`],
//! [`catalog`], [`index`]. Read on with [`commit`] (the order of writing), [`check`] (what is entered) and [`recover`] (opening).
//!
//! Invariants:
//! - Nothing is ever written over or removed but torn tails, the head file, the index, and packs of which a [`gc`] has left nothing that counts.
//! - A catalog record is written only after everything it needs was synced; an answer is given only after the record was.
//! - What can be asked of the index by the objects' names could as well be read from the packs.
//! - One process has the store at a time. The first write or sync that fails ends all writing until it is opened again, because
//!   after a failed sync nobody knows what is on the disk.

mod ahead;
pub(crate) mod blocks;
pub mod catalog;
mod check;
mod commit;
pub(crate) mod copies;
mod error;
mod gate;
pub mod gc;
pub mod index;
pub mod layout;
mod leases;
mod lives;
pub(crate) mod losses;
mod overlay;
pub mod pack;
mod prune;
pub(crate) mod reads;
mod recover;
pub(crate) mod repair;
mod retire;
mod room;
mod roots;
pub(crate) mod snapshots;
mod wait;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::watch;

pub use commit::NewCommit;
pub use error::StoreError;
pub use lives::{Ended, Life};
pub use prune::{NewPrune, NewPurge, NewUndelete};
pub use retire::NewRetirement;
pub use snapshots::Slots;

pub(crate) use check::decode_recipe;

use self::{
    ahead::Ahead,
    blocks::Blocks,
    catalog::{Catalog, PackPoint},
    commit::Queue,
    gate::Gate,
    index::{Index, Location},
    layout::{Header, Layout},
    leases::Leases,
    losses::Losses,
    reads::Reads,
    recover::Recovery,
    writer::PackWriter,
};
use crate::{
    catalog::{Head, Record},
    chunk::{
        ChunkParams, ObjectKind,
        block::{self, Block, TableEntry},
    },
    clock::Clock,
    durable::{self, Disk, DiskLock, LockMode, RealDisk},
    ids::{Hash, Seq, StoreUuid},
    limits,
};

/// What a store needs from outside.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Tells when a commit was.
    pub clock: Arc<dyn Clock>,
}

/// Bounds that tests make small.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    /// Packs are closed at this length.
    pub pack_bytes: u64,
    /// Objects after which the index is written.
    pub flush_objects: usize,
    /// How long at least what somebody was told is here isn't taken away.
    pub lease_ms: u64,
    /// Room that is left for what must go on when the disk is full; `None`: by the disk's size.
    pub reserve_bytes: Option<u64>,
}

impl Default for Tuning {
    fn default() -> Self {
        // 32 Ki objects wait in about 4 MB; reading as many again from the packs takes a fraction of a second.
        Self {
            pack_bytes: limits::PACK_BYTES,
            flush_objects: 32 << 10,
            lease_ms: 30 * 60 * 1000,
            reserve_bytes: None,
        }
    }
}

/// Where tests of the whole program put their own [`Tuning`]: `name=number`, separated by commas.
const TUNING_VARIABLE: &str = "RESULTSFS_TEST_STORE";

impl Tuning {
    pub(crate) fn of_environment() -> Self {
        let text = std::env::var(TUNING_VARIABLE).unwrap_or_default();
        let number = |name: &str| {
            let settings = text.split(',').filter_map(|setting| setting.split_once('='));
            settings.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse::<u64>().ok())
        };
        let usual = Self::default();
        Self {
            pack_bytes: number("pack_bytes").unwrap_or(usual.pack_bytes),
            flush_objects: usual.flush_objects,
            lease_ms: number("lease_ms").unwrap_or(usual.lease_ms),
            reserve_bytes: number("reserve_bytes"),
        }
    }
}

/// Uncommitted objects wait for a commit to be entered in the index, but not beyond this many times [`Tuning::flush_objects`].
const FLUSH_SLACK: usize = 4;

/// Sizes of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    pub packs: u64,
    pub pack_bytes: u64,
    pub catalog_bytes: u64,
    /// Chunks, proven recipes and manifests.
    pub objects: u64,
    pub records: u64,
    pub layers: u64,
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    disk: Arc<dyn Disk>,
    layout: Layout,
    header: Header,
    tuning: Tuning,
    clock: Arc<dyn Clock>,
    failed: AtomicBool,
    writer: Mutex<PackWriter>,
    blocks: Blocks,
    index: Index,
    catalog: Catalog,
    queue: Queue,
    heads: watch::Sender<Head>,
    slots: Slots,
    log: Mutex<snapshots::Log>,
    reads: Mutex<Reads>,
    gate: Gate,
    ahead: Ahead,
    leases: Leases,
    losses: Losses,
    /// Whoever holds it is the `gc`.
    collecting: Mutex<()>,
    /// Last, so that it is released when all else is closed.
    _lock: DiskLock,
}

/// Whether a store can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// No write has failed since it was opened.
    pub can_write: bool,
    /// There is room for something new.
    pub has_room: bool,
    /// On its disk, if that can be told.
    pub free_bytes: Option<u64>,
    /// Committed manifests that name something which was lost; `None`: that can't be told.
    pub lost_manifests: Option<usize>,
}

impl Store {
    /// Opens the store in `dir`, or makes one if the directory is missing or empty.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Arc<Self>, StoreError> {
        Self::open_on(Arc::new(RealDisk), dir, options, Tuning::of_environment())
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: StoreOptions,
        tuning: Tuning,
    ) -> Result<Arc<Self>, StoreError> {
        let layout = Layout::new(dir);
        disk.create_dir(dir)?;
        refuse_foreign(&*disk, &layout)?;
        let lock = lock(&*disk, &layout)?;
        Self::open_locked(disk, dir, options, tuning, lock)
    }

    /// The same by who has its lock.
    pub(crate) fn open_locked(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: StoreOptions,
        tuning: Tuning,
        lock: DiskLock,
    ) -> Result<Arc<Self>, StoreError> {
        let layout = Layout::new(dir);
        let header = match Header::read(&*disk, &layout).map_err(mendable)? {
            Some(header) => header,
            None => create(&*disk, &layout)?,
        };
        header.check_features(dir, true)?;
        copies::keep_header(&*disk, &layout, &header);
        let (catalog, durable) = Catalog::open(&*disk, &layout, header.uuid).map_err(mendable)?;
        let Tuning { pack_bytes, flush_objects, lease_ms, .. } = tuning;
        let (disk_ref, layout_ref) = (&disk, &layout);
        let recovery = Recovery {
            disk: disk_ref,
            layout: layout_ref,
            store: header.uuid,
            durable,
            reclaimed: catalog.reclaimed(),
            pack_bytes,
            flush_objects,
        };
        let (index, writer) = recovery.run()?;
        let (log, left) = snapshots::Log::open(&*disk, &layout)?;
        let reads = Reads::open(disk.clone(), &layout, options.clock.now_ms())?;
        let store = Arc::new(Self {
            heads: watch::Sender::new(catalog.head()),
            blocks: Blocks::new(disk.clone(), layout.clone()),
            ahead: Ahead::default(),
            leases: Leases::new(lease_ms, writer.end()),
            losses: Losses::open(&*disk, &layout)?,
            gate: Gate::default(),
            collecting: Mutex::new(()),
            writer: Mutex::new(writer),
            queue: Queue::default(),
            failed: AtomicBool::new(false),
            clock: options.clock,
            disk,
            layout,
            header,
            tuning,
            index,
            catalog,
            slots: Slots::default(),
            log: Mutex::new(log),
            reads: Mutex::new(reads),
            _lock: lock,
        });
        store.restore_slots(left);
        Ok(store)
    }

    /// Its identity.
    pub fn uuid(&self) -> StoreUuid {
        self.header.uuid
    }

    /// How its files are cut.
    pub fn params(&self) -> ChunkParams {
        self.header.params
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.layout.dir()
    }

    /// Where its catalog stands.
    pub fn head(&self) -> Head {
        self.catalog.head()
    }

    /// Whether each of these objects is missing, in the order asked. What was appended and isn't synced yet is here.
    /// A recipe counts only once it was proven: an unproven one may be somebody's forgery.
    pub fn missing(&self, kind: ObjectKind, hashes: &[Hash]) -> Result<Vec<bool>, StoreError> {
        let _inside = self.gate.enter();
        let keys: Vec<_> = hashes.iter().map(|hash| (kind, *hash)).collect();
        let missing: Vec<bool> = self.index.get_many(&keys)?.iter().map(Option::is_none).collect();
        let here = hashes.iter().zip(&missing).filter(|(_, missing)| !**missing).map(|(hash, _)| *hash);
        self.leases.told(kind, here, self.clock.now_ms());
        if missing.contains(&true) {
            self.room()?;
        }
        Ok(missing)
    }

    /// Whether this manifest was committed before, by anybody, and isn't given up: so that all it names is here.
    pub fn manifest_known(&self, hash: &Hash) -> Result<bool, StoreError> {
        let _inside = self.gate.enter();
        let known = self.known_manifest(hash)?.is_some();
        let now_ms = self.clock.now_ms();
        if !known {
            self.room()?;
        }
        match known {
            true => self.leases.told(ObjectKind::Manifest, [*hash].into_iter(), now_ms),
            false => self.leases.offered(*hash, self.writer().end(), now_ms),
        }
        Ok(known)
    }

    fn known_manifest(&self, hash: &Hash) -> Result<Option<Record>, StoreError> {
        if self.losses.has(hash) {
            return Ok(None);
        }
        // What isn't a root may have lost what it names.
        let record = self.catalog.with_manifest(hash)?.filter(|record| self.root(record).is_some());
        // A lost pack must not go on being taken for granted.
        let here = record.is_some() && self.index.get(ObjectKind::Manifest, hash)?.is_some();
        Ok(record.filter(|_| here))
    }

    /// Takes in a block: checked, unpacked once, appended as it is. Nothing is written if all its objects are here already. Not durable before
    /// the commit of what needs it, or [`Store::checkpoint`].
    pub fn append_block(&self, encoded: &[u8]) -> Result<(), StoreError> {
        self.healthy()?;
        let unpacked = Block::open(encoded)?;
        let block = block::Header::parse(encoded)?.block_bytes();
        if block != encoded.len() {
            return Err(StoreError::BlockLength { sent: encoded.len(), block });
        }
        for entry in unpacked.table().iter().filter(|e| e.kind == ObjectKind::Recipe) {
            decode_recipe(&entry.hash, unpacked.bytes_of(entry))?;
        }
        let _inside = self.gate.enter();
        let places = self.index.places(unpacked.table())?;
        if self.holds_all(&unpacked, &places)? {
            return Ok(());
        }
        self.room()?;
        let (pack, offset) = self.durably(|| {
            let mut writer = self.writer();
            self.leases.appended(writer.end(), self.clock.now_ms());
            let appended = writer.append(encoded, unpacked.table().to_vec())?;
            self.index.add_block(appended.pack, &appended.block, &places);
            if let Some(bytes) = appended.closed_at {
                self.index.reached(appended.pack, bytes);
            }
            Ok((appended.pack, appended.block.offset))
        })?;
        let unpacked = Arc::new(unpacked);
        self.blocks.keep(pack, offset, unpacked.clone());
        self.arrived(unpacked.table().iter().filter(|e| e.kind == ObjectKind::Chunk).map(|e| &e.hash));
        match self.index.waiting() > self.tuning.flush_objects * FLUSH_SLACK {
            true => self.checkpoint(),
            false => Ok(()),
        }
    }

    fn holds_all(&self, block: &Block, places: &[Option<Location>]) -> Result<bool, StoreError> {
        for (entry, _) in block.table().iter().zip(places).filter(|(_, place)| place.is_none()) {
            if entry.kind != ObjectKind::Recipe || !self.has_candidate(entry, block.bytes_of(entry))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has_candidate(&self, entry: &TableEntry, bytes: &[u8]) -> Result<bool, StoreError> {
        for candidate in self.index.candidates(&entry.hash)? {
            if self.object_at(entry.kind, &entry.hash, &candidate)? == bytes {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The encoded block that holds an object, for who checks the object: what a disk has done to its bytes isn't found out here. `None`:
    /// the object isn't here.
    pub fn fetch(&self, kind: ObjectKind, hash: &Hash) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(place) = self.place(kind, hash)? else { return Ok(None) };
        self.leases.told(kind, [*hash].into_iter(), self.clock.now_ms());
        self.read_at(kind, hash, place, |place| {
            let (bytes, table) = self.blocks.read(place)?;
            self.line(&table, kind, hash, place)?;
            Ok(bytes)
        })
    }

    /// An object's bytes. `None`: it isn't here.
    pub fn read_object(&self, kind: ObjectKind, hash: &Hash) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(place) = self.place(kind, hash)? else { return Ok(None) };
        self.read_at(kind, hash, place, |place| self.object_at(kind, hash, place))
    }

    /// Reads an object that was looked up. A `gc` may have moved it since, and its pack may be gone: then it is looked up again.
    fn read_at<T>(
        &self,
        kind: ObjectKind,
        hash: &Hash,
        mut place: Location,
        mut read: impl FnMut(&Location) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        loop {
            let error = match read(&place) {
                Ok(read) => return Ok(Some(read)),
                Err(error) => error,
            };
            match self.index.get(kind, hash)? {
                Some(now) if !now.same_place(&place) => place = now,
                None if self.catalog.is_reclaimed(place.pack) => return Ok(None),
                _ => return Err(error),
            }
        }
    }

    /// Where an object is; a recipe that isn't proven is proven now.
    fn place(&self, kind: ObjectKind, hash: &Hash) -> Result<Option<Location>, StoreError> {
        let place = self.index.get(kind, hash)?;
        if place.is_some() || kind != ObjectKind::Recipe {
            return Ok(place);
        }
        let _inside = self.gate.enter();
        match self.prove_recipe(hash) {
            Ok(place) => Ok(Some(place)),
            Err(e) if e.is_callers() => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn object_at(&self, kind: ObjectKind, hash: &Hash, place: &Location) -> Result<Vec<u8>, StoreError> {
        let block = self.blocks.open(place)?;
        Ok(self.bytes_in(&block, kind, hash, place)?.to_vec())
    }

    fn bytes_in<'a>(
        &self,
        block: &'a Block,
        kind: ObjectKind,
        hash: &Hash,
        place: &Location,
    ) -> Result<&'a [u8], StoreError> {
        self.line(block.table(), kind, hash, place).map(|entry| block.bytes_of(entry))
    }

    /// The line of a block's table that the index meant.
    fn line<'a>(
        &self,
        table: &'a [TableEntry],
        kind: ObjectKind,
        hash: &Hash,
        place: &Location,
    ) -> Result<&'a TableEntry, StoreError> {
        let entry = table.get(place.number as usize).filter(|e| e.kind == kind && e.hash == *hash);
        entry.ok_or_else(|| StoreError::Damaged {
            path: self.layout.index(),
            what: format!("{kind:?} {hash} isn't where it says"),
        })
    }

    /// Where the index says that an object is.
    #[cfg(test)]
    pub fn index_place(&self, kind: ObjectKind, hash: &Hash) -> Option<Location> {
        self.index.get(kind, hash).expect("asks")
    }

    /// Up to `max` records behind `seq`, in order.
    pub fn records_after(&self, seq: Seq, max: usize) -> Result<Vec<Record>, StoreError> {
        self.catalog.records_after(seq, max)
    }

    /// The record with this number.
    pub fn record(&self, seq: Seq) -> Result<Option<Record>, StoreError> {
        self.catalog.record(seq)
    }

    /// The last record of a host's layer.
    pub fn latest(
        &self,
        host: crate::ids::HostUuid,
        unit: &crate::ids::UnitId,
    ) -> Result<Option<Record>, StoreError> {
        self.catalog.latest(host, unit, self.catalog.life(unit).incarnation)
    }

    /// Tells of every new head.
    pub fn watch(&self) -> watch::Receiver<Head> {
        self.heads.subscribe()
    }

    /// Its sizes. Objects are 0 if the index can't say.
    pub fn stats(&self) -> StoreStats {
        let (packs, pack_bytes) = self.writer().totals();
        let objects =
            self.index.objects().inspect_err(|error| tracing::error!(%error, "can't count objects"));
        StoreStats {
            packs,
            pack_bytes,
            catalog_bytes: self.catalog.bytes(),
            objects: objects.unwrap_or_default(),
            records: self.catalog.head().seq.0,
            layers: self.catalog.layers() as u64,
        }
    }

    /// Whether an earlier write failed: nothing is written until it is opened again.
    pub fn has_failed(&self) -> bool {
        self.healthy().is_err()
    }

    /// Whether it can go on.
    pub fn condition(&self) -> Condition {
        Condition {
            can_write: self.healthy().is_ok(),
            has_room: self.room().is_ok(),
            free_bytes: self.disk.space(self.layout.dir()).ok().map(|space| space.free),
            lost_manifests: self.losses.count(),
        }
    }

    /// What a check looks at while the store goes on: the catalog as it is now, and then the packs, so that they hold what it needs.
    pub(crate) fn snapshot(&self) -> Snapshot<'_> {
        let (head, catalog_bytes) = self.catalog.extent();
        let packs = self.writer().end();
        Snapshot { store: self, head, catalog_bytes, packs }
    }

    fn writer(&self) -> MutexGuard<'_, PackWriter> {
        self.writer.lock().expect("nothing panics while it holds the writer")
    }

    fn healthy(&self) -> Result<(), StoreError> {
        match self.failed.load(Ordering::Acquire) {
            true => Err(StoreError::PreviousIo),
            false => Ok(()),
        }
    }

    /// Runs something that writes; after its first failure nothing is written any more.
    fn durably<T>(&self, write: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.healthy()?;
        let unfinished = Unfinished(&self.failed);
        let done = write();
        if matches!(done, Ok(_) | Err(StoreError::Full { .. })) {
            // What didn't fit was cut back, and nothing relies on it.
            std::mem::forget(unfinished);
        }
        done
    }
}

/// Nobody else has the store from now on.
pub(crate) fn lock(disk: &dyn Disk, layout: &Layout) -> Result<DiskLock, StoreError> {
    let lock = disk.lock(&layout.lock(), LockMode::Exclusive)?;
    lock.ok_or_else(|| StoreError::Locked(layout.dir().to_owned()))
}

/// Ends all writing when it is dropped: after an error, and after a panic in the midst of a write.
struct Unfinished<'a>(&'a AtomicBool);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// An open store at one moment, for a check.
#[derive(Clone, Copy)]
pub(crate) struct Snapshot<'a> {
    store: &'a Store,
    pub head: Head,
    pub catalog_bytes: u64,
    /// Up to where blocks are.
    pub packs: PackPoint,
}

impl<'a> Snapshot<'a> {
    pub fn disk(&self) -> &'a Arc<dyn Disk> {
        &self.store.disk
    }

    pub fn layout(&self) -> &'a Layout {
        &self.store.layout
    }

    pub fn header(&self) -> &'a Header {
        &self.store.header
    }

    pub fn index(&self) -> &'a Index {
        &self.store.index
    }
}

/// What is said of a store that can't be opened.
const REPAIR: &str = "`resultsfs verify --store --repair` mends what can be mended, and deletes nothing";

/// What can't be opened as it is may be mended.
fn mendable(error: StoreError) -> StoreError {
    match error {
        StoreError::Damaged { path, what } => StoreError::Damaged { path, what: format!("{what}; {REPAIR}") },
        _ => error,
    }
}

/// Names that a store's directory may hold before its header is written; the last is there if it is a file system of its own.
const UNFINISHED: &[&str] =
    &["lock", "catalog", "catalog.copy", "packs", "store.tmp", "store.copy", "store.copy.tmp", "lost+found"];

/// A directory without a header is taken only if nothing is in it but the remains of an interrupted start.
fn refuse_foreign(disk: &dyn Disk, layout: &Layout) -> Result<(), StoreError> {
    let names = disk.list(layout.dir())?;
    if names.iter().any(|name| name == "store") {
        return Ok(());
    }
    let foreign = names.iter().find(|name| !UNFINISHED.iter().any(|known| *name == known));
    let why = match foreign {
        Some(name) => format!("it holds `{}` and no file `store`", name.display()),
        None if has_data(disk, layout)? => "it holds packs or a catalog and no file `store`".to_owned(),
        None => return Ok(()),
    };
    let why = match names.iter().any(|name| name == "store.copy") {
        true => format!("{why}; {REPAIR}"),
        false => why,
    };
    Err(StoreError::NotAStore { dir: layout.dir().to_owned(), why })
}

fn has_data(disk: &dyn Disk, layout: &Layout) -> Result<bool, StoreError> {
    let packs = match disk.list(&layout.packs()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        names => !names?.is_empty(),
    };
    let has_bytes = |path: PathBuf| match durable::there(disk.open_read(&path))? {
        Some(file) => Ok::<_, StoreError>(!file.is_empty()?),
        None => Ok(false),
    };
    Ok(packs || has_bytes(layout.catalog())? || has_bytes(layout.catalog_copy())?)
}

/// Makes an empty store; its header comes last, so that a store with a header has everything else.
fn create(disk: &dyn Disk, layout: &Layout) -> Result<Header, StoreError> {
    let header = Header::fresh();
    disk.create_dir(&layout.packs())?;
    match disk.create(&layout.catalog()) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e.into()),
        _ => {}
    }
    disk.sync_dir(layout.dir())?;
    if let Some(parent) = layout.dir().parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent)?;
    }
    durable::write_atomic_on(disk, &layout.header(), &header.encode())?;
    Ok(header)
}
