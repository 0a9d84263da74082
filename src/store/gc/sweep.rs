//! The sweep: what is needed of the packs that go is copied, and then they go; some at a time, so that little room is needed.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    super::{
        Store, StoreError,
        commit::Request,
        index::{Key, Location, location},
        pack::PackedBlock,
    },
    GcOptions, OnStep, Step,
    live::Doomed,
    plan::{self, PackPlan},
};
use crate::{
    chunk::{
        ObjectKind,
        block::{Block, BlockBuilder, TableEntry},
    },
    durable::DiskFile,
    ids::Hash,
    limits::{BLOCK_OBJECTS, BLOCK_RAW_TARGET_BYTES, RECLAIMED_PACKS},
};

/// Bytes that are copied before the packs that they are from go: this much more room is needed.
const BATCH_BYTES: u64 = 256 << 20;
/// Bytes copied a second: half of what a disk of the plain kind does, so that uploads have the other half.
const BYTES_PER_S: u64 = 64 << 20;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub packs: u64,
    /// Bytes of the packs that are gone.
    pub freed_bytes: u64,
    /// Bytes that were written for what is needed of them.
    pub copied_bytes: u64,
    /// Packs that stay since something in them can't be read, and what.
    pub damaged: Vec<(u32, String)>,
    /// Whether it was told to stop before its end.
    pub stopped: bool,
}

/// A sweep under way.
pub(super) struct Sweep<'a> {
    store: &'a Store,
    doomed: Arc<Doomed>,
    options: &'a GcOptions,
    chunks: Open,
    /// Recipes and manifests, which have blocks of their own as they had before.
    descriptions: Open,
    emptied: Vec<Emptied>,
    /// Bytes copied since packs went last.
    copied: u64,
    began: Instant,
    swept: Swept,
}

/// Objects on their way into a block, and where they were.
#[derive(Default)]
struct Open {
    builder: BlockBuilder,
    from: Vec<Location>,
}

/// A pack of which all that is needed was copied.
struct Emptied {
    number: u32,
    bytes: u64,
}

/// What the index is to forget of a pack.
#[derive(Default)]
struct Dead {
    objects: Vec<(Key, Location)>,
    candidates: Vec<(Hash, Location)>,
}

impl<'a> Sweep<'a> {
    pub fn new(store: &'a Store, doomed: Arc<Doomed>, options: &'a GcOptions) -> Self {
        let (chunks, descriptions, emptied, swept) = Default::default();
        let began = Instant::now();
        Self { store, doomed, options, chunks, descriptions, emptied, copied: 0, began, swept }
    }

    /// Takes these packs away.
    pub fn run(mut self, packs: &[PackPlan], on_step: &mut OnStep<'_>) -> Result<Swept, StoreError> {
        // The word of a recipe that isn't needed, wherever it is, must be gone before any of its chunks is.
        self.store.index.doubt(self.store.index.doomed_recipes(&self.doomed)?);
        for (done, pack) in packs.iter().enumerate() {
            let progress = Step::Progress { phase: "sweep", done: done as u64, total: packs.len() as u64 };
            if !on_step(progress) {
                self.swept.stopped = true;
                break;
            }
            self.pack(pack)?;
            if self.emptied.len() >= RECLAIMED_PACKS || self.copied >= BATCH_BYTES {
                self.remove()?;
            }
        }
        self.remove()?;
        Ok(self.swept)
    }

    /// Copies what is needed of a pack. One that can't be read whole stays; what was copied of it until then is good where it is.
    fn pack(&mut self, pack: &PackPlan) -> Result<(), StoreError> {
        let number = pack.pack;
        let scan = plan::scan(self.store, number)?;
        if let Some(damage) = scan.damage.first() {
            self.swept.damaged.push((number, format!("at {}: {}", damage.offset, damage.what)));
            return Ok(());
        }
        let file = self.store.disk.open_read(&self.store.layout.pack(number))?;
        let mut dead = Dead::default();
        for block in &scan.blocks {
            match self.block(number, &*file, block, &mut dead) {
                Err(StoreError::Damaged { what, .. }) => {
                    tracing::error!(pack = number, what, "a damaged pack stays");
                    self.swept.damaged.push((number, what));
                    return Ok(());
                }
                done => done?,
            }
        }
        self.store.index.forget(dead.objects);
        self.store.index.forget_pack(number, dead.candidates);
        self.emptied.push(Emptied { number, bytes: scan.file_bytes });
        Ok(())
    }

    fn block(
        &mut self,
        pack: u32,
        file: &dyn DiskFile,
        block: &PackedBlock,
        dead: &mut Dead,
    ) -> Result<(), StoreError> {
        let places = plan::places(self.store, pack, block)?;
        let mut needed: Vec<(TableEntry, Location)> = Vec::new();
        for (number, (entry, place)) in block.table.iter().zip(places).enumerate() {
            let key = (entry.kind, entry.hash);
            let needed_at = place.filter(|place| !self.doomed.has(&key, place));
            match needed_at {
                Some(place) => needed.push((*entry, place)),
                // One whose word was taken back at the beginning is unproven by now, whether or not that is written yet.
                None if entry.kind == ObjectKind::Recipe => {
                    dead.candidates.push((entry.hash, location(pack, block, number, entry)));
                }
                None => {}
            }
            if needed_at.is_none() {
                dead.objects.extend(place.map(|place| (key, place)));
            }
        }
        if needed.is_empty() {
            return Ok(());
        }
        let damaged = |what: String| StoreError::Damaged {
            path: self.store.layout.pack(pack),
            what: format!("at {}: {what}", block.offset),
        };
        let bytes = file.read_vec(block.offset, block.bytes as usize).map_err(|e| damaged(e.to_string()))?;
        // Each object is hashed here.
        let unpacked = Block::open(&bytes).map_err(|e| damaged(e.to_string()))?;
        if unpacked.table() != block.table {
            return Err(damaged("it isn't the block that the pack's trailer names".to_owned()));
        }
        if needed.len() == block.table.len() {
            let from: Vec<Location> = needed.into_iter().map(|(_, place)| place).collect();
            return self.append(&bytes, block.table.clone(), &from);
        }
        for (entry, place) in needed {
            self.push(&entry, unpacked.bytes_of(&entry), place)?;
        }
        Ok(())
    }

    fn push(&mut self, entry: &TableEntry, bytes: &[u8], place: Location) -> Result<(), StoreError> {
        let builder = &self.open(entry.kind).builder;
        let is_beyond = builder.raw_bytes() + bytes.len() > 2 * BLOCK_RAW_TARGET_BYTES;
        if !builder.is_empty() && (is_beyond || builder.objects() >= BLOCK_OBJECTS) {
            self.close(entry.kind)?;
        }
        let open = self.open(entry.kind);
        open.builder.push(entry.kind, entry.hash, bytes);
        open.from.push(place);
        if open.builder.is_full() { self.close(entry.kind) } else { Ok(()) }
    }

    /// What takes objects of this kind.
    fn open(&mut self, kind: ObjectKind) -> &mut Open {
        match kind {
            ObjectKind::Chunk => &mut self.chunks,
            ObjectKind::Recipe | ObjectKind::Manifest => &mut self.descriptions,
        }
    }

    fn close(&mut self, kind: ObjectKind) -> Result<(), StoreError> {
        let Open { mut builder, from } = std::mem::take(self.open(kind));
        if builder.is_empty() {
            return Ok(());
        }
        let bytes = builder.finish(self.options.level)?;
        let table = Block::open(&bytes)?.table().to_vec();
        self.append(&bytes, table, &from)
    }

    /// As any block: it counts at its new place from now on, and is synced before anything relies on that.
    fn append(&mut self, bytes: &[u8], table: Vec<TableEntry>, from: &[Location]) -> Result<(), StoreError> {
        let store = self.store;
        store.durably(|| {
            let mut writer = store.writer();
            let appended = writer.append(bytes, table)?;
            store.index.move_block(appended.pack, &appended.block, from);
            if let Some(bytes) = appended.closed_at {
                store.index.reached(appended.pack, bytes);
            }
            Ok(())
        })?;
        self.copied += bytes.len() as u64;
        self.swept.copied_bytes += bytes.len() as u64;
        self.pace();
        Ok(())
    }

    fn pace(&self) {
        let due = Duration::from_secs_f64(self.swept.copied_bytes as f64 / BYTES_PER_S as f64);
        if let Some(early) = due.checked_sub(self.began.elapsed()) {
            thread::sleep(early);
        }
    }

    /// Copies synced, the index with them, then the record, then the files: each only when the one before is durable.
    fn remove(&mut self) -> Result<(), StoreError> {
        self.close(ObjectKind::Chunk)?;
        self.close(ObjectKind::Manifest)?;
        self.store.checkpoint()?;
        let emptied = std::mem::take(&mut self.emptied);
        self.copied = 0;
        if emptied.is_empty() {
            return Ok(());
        }
        let numbers = emptied.iter().map(|pack| pack.number).collect();
        self.store.enter(Request::Reclaim(numbers))?;
        for Emptied { number, bytes } in emptied {
            self.store.disk.remove(&self.store.layout.pack(number))?;
            self.store.blocks.forget(number);
            self.store.writer().removed(bytes);
            self.swept.packs += 1;
            self.swept.freed_bytes += bytes;
        }
        Ok(self.store.disk.sync_dir(&self.store.layout.packs())?)
    }
}
