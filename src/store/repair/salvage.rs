//! Salvage: what can be read of damaged packs is appended anew, and the packs go to quarantine.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use super::{
    super::{
        Store, StoreError,
        check::decode_recipe,
        commit::Request,
        gc::Doomed,
        index::{Key, Location},
        pack::{self, PackedBlock},
    },
    quarantine,
};
use crate::{
    chunk::{
        ObjectKind,
        block::{self, Block, BlockBuilder},
    },
    durable::{self, DiskFile},
    ids::Hash,
    limits::{BLOCK_OBJECTS, BLOCK_RAW_TARGET_BYTES, RECLAIMED_PACKS},
};

/// What a check of all packs knows.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Packs in which something is damaged, and packs that are missing.
    pub bad_packs: BTreeSet<u32>,
    /// Recipes of which all chunks are there: they stay proven.
    pub sound_recipes: HashSet<Hash>,
    /// Chunks and manifests of which the index may know another place only, and where they are good.
    pub elsewhere: Vec<(Key, Location)>,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Salvaged {
    pub packs: u64,
    /// Objects that were appended anew.
    pub objects: u64,
}

impl Store {
    /// Takes damaged packs away, after what can be read of them was appended anew. Nobody else may use the store meanwhile.
    pub(crate) fn salvage(&self, known: Known, level: i32) -> Result<Salvaged, StoreError> {
        let _only = self.collecting.try_lock().map_err(|_| StoreError::Collecting)?;
        self.durably(|| self.writer().leave(&known.bad_packs))?;
        self.checkpoint()?;
        let Known { bad_packs, sound_recipes, elsewhere } = known;
        // As in a `gc` to which nothing of these packs is needed: it is as good as gone, and recipes whose chunks may be have to be proven again.
        let doomed = Arc::new(Doomed::packs(bad_packs.clone(), self.writer().end(), sound_recipes));
        self.index.doubt(self.index.doomed_recipes(&doomed)?);
        self.index.doom(Some(doomed));
        let salvaged =
            Salvage { store: self, level, open: BlockBuilder::default(), done: Salvaged::default() }
                .run(&bad_packs, elsewhere);
        self.checkpoint()?;
        self.index.doom(None);
        salvaged
    }
}

struct Salvage<'a> {
    store: &'a Store,
    level: i32,
    /// Takes what single objects of damaged blocks can be read.
    open: BlockBuilder,
    done: Salvaged,
}

impl Salvage<'_> {
    fn run(mut self, packs: &BTreeSet<u32>, elsewhere: Vec<(Key, Location)>) -> Result<Salvaged, StoreError> {
        elsewhere.into_iter().for_each(|(key, place)| self.store.index.enter(key, place));
        let mut rest: Vec<u32> = packs.iter().copied().collect();
        while !rest.is_empty() {
            let batch: Vec<u32> = rest.drain(..rest.len().min(RECLAIMED_PACKS)).collect();
            for pack in &batch {
                self.pack(*pack)?;
            }
            self.close()?;
            self.forget(&batch)?;
            // The copies are synced, and the index speaks of them and not of the packs, before the record says that these are gone.
            self.store.checkpoint()?;
            self.remove(batch)?;
        }
        Ok(self.done)
    }

    fn pack(&mut self, number: u32) -> Result<(), StoreError> {
        let store = self.store;
        let file = durable::there(store.disk.open_read(&store.layout.pack(number)))?;
        let Some(file) = file else { return Ok(()) };
        let file_bytes = file.len()?;
        let scan = pack::scan(&*file, file_bytes, store.header.uuid, number, u64::MAX)?;
        for block in scan.blocks.iter().chain(&scan.damaged_blocks) {
            self.block(read(&*file, file_bytes, block), block)?;
        }
        Ok(())
    }

    /// A block that is whole goes over as it is; of another what its objects' names prove. What head and table were, the pack's trailer knows, too.
    fn block(&mut self, mut bytes: Vec<u8>, block: &PackedBlock) -> Result<(), StoreError> {
        block.restore_head(&mut bytes);
        if let Ok(whole) = Block::open(&bytes) {
            self.done.objects += whole.table().len() as u64;
            return self.store.append_block(&bytes);
        }
        for (entry, bytes) in block::readable(&bytes) {
            if entry.kind == ObjectKind::Recipe && decode_recipe(&entry.hash, &bytes).is_err() {
                continue;
            }
            let is_beyond = self.open.raw_bytes() + bytes.len() > 2 * BLOCK_RAW_TARGET_BYTES;
            if is_beyond || self.open.objects() >= BLOCK_OBJECTS {
                self.close()?;
            }
            self.open.push(entry.kind, entry.hash, &bytes);
            self.done.objects += 1;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), StoreError> {
        match self.open.is_empty() {
            true => Ok(()),
            false => self.store.append_block(&self.open.finish(self.level)?),
        }
    }

    /// The index forgets what it says is in these packs. What was appended anew has its new place already.
    fn forget(&self, packs: &[u32]) -> Result<(), StoreError> {
        let index = &self.store.index;
        let mut gone: Vec<(Key, Location)> = Vec::new();
        index.each(|key, place| {
            if packs.contains(&place.pack) {
                gone.extend(key.map(|key| (key, place)));
            }
        })?;
        index.forget(gone);
        for pack in packs {
            let candidates = index.candidates_in(*pack)?;
            index.forget_pack(*pack, candidates);
        }
        Ok(())
    }

    /// The second name, then the record, then the first name goes: each only when the one before is durable.
    fn remove(&mut self, packs: Vec<u32>) -> Result<(), StoreError> {
        let store = self.store;
        let bytes = packs.iter().map(|pack| {
            let path = store.layout.pack(*pack);
            quarantine(&*store.disk, &store.layout, &path)?;
            Ok(store.disk.open_read(&path).and_then(|file| file.len()).ok())
        });
        let bytes = bytes.collect::<Result<Vec<Option<u64>>, StoreError>>()?;
        store.enter(Request::Reclaim(packs.clone()))?;
        for (pack, bytes) in packs.iter().zip(bytes) {
            self.done.packs += 1;
            if let Some(bytes) = bytes {
                store.disk.remove(&store.layout.pack(*pack))?;
                store.writer().removed(bytes);
            }
            store.blocks.forget(*pack);
        }
        Ok(store.disk.sync_dir(&store.layout.packs())?)
    }
}

/// A block's bytes; zeros where the file ends or the disk doesn't give them.
fn read(file: &dyn DiskFile, file_bytes: u64, block: &PackedBlock) -> Vec<u8> {
    const STEP: usize = 64 << 10;
    let mut bytes = vec![0; block.bytes as usize];
    for (number, part) in bytes.chunks_mut(STEP).enumerate() {
        let at = block.offset + (number * STEP) as u64;
        let there = part.len().min(usize::try_from(file_bytes.saturating_sub(at)).unwrap_or(usize::MAX));
        if let Err(error) = file.read_at(at, &mut part[..there]) {
            tracing::error!(at, %error, "a part of a block can't be read");
        }
    }
    bytes
}
