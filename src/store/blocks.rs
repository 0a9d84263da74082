//! Reads blocks out of packs, and keeps a few unpacked ones: those just appended, which a commit is about to look at,
//! and those just read.

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard},
};

use super::{StoreError, index::Location, layout::Layout};
use crate::{
    buffers,
    chunk::block::{Block, BlockError, Header, TableEntry, parse_table},
    durable::{Disk, DiskFile},
};

/// Memory for unpacked blocks.
const CACHE_BYTES: usize = 32 << 20;
/// Blocks kept: small ones cost their tables too.
const CACHE_BLOCKS: usize = 256;
/// Packs kept open.
const OPEN_FILES: usize = 128;

/// Reader of blocks.
#[derive(Debug)]
pub struct Blocks {
    disk: Arc<dyn Disk>,
    layout: Layout,
    files: Mutex<HashMap<u32, Arc<dyn DiskFile>>>,
    unpacked: Mutex<Unpacked>,
}

#[derive(Debug, Default)]
struct Unpacked {
    blocks: HashMap<(u32, u64), Kept>,
    bytes: usize,
    uses: u64,
}

#[derive(Debug)]
struct Kept {
    block: Arc<Block>,
    /// Every chunk and manifest in it matches its hash. One of which nobody knows that is only for who proves what he reads himself.
    is_proven: bool,
    used: u64,
}

impl Unpacked {
    fn get(&mut self, at: (u32, u64), proven_only: bool) -> Option<Arc<Block>> {
        self.uses += 1;
        let kept = self.blocks.get_mut(&at).filter(|kept| kept.is_proven || !proven_only)?;
        kept.used = self.uses;
        Some(kept.block.clone())
    }

    fn put(&mut self, at: (u32, u64), block: Arc<Block>, is_proven: bool) {
        if block.memory_bytes() > CACHE_BYTES / 2 {
            return;
        }
        self.uses += 1;
        self.bytes += block.memory_bytes();
        if let Some(old) = self.blocks.insert(at, Kept { block, is_proven, used: self.uses }) {
            self.bytes -= old.block.memory_bytes();
        }
        while self.bytes > CACHE_BYTES || self.blocks.len() > CACHE_BLOCKS {
            let oldest = self.blocks.iter().min_by_key(|(_, kept)| kept.used).map(|(at, _)| *at);
            let oldest = oldest.expect("what holds bytes isn't empty");
            let oldest = self.blocks.remove(&oldest).expect("was just found");
            self.bytes -= oldest.block.memory_bytes();
        }
    }
}

impl Blocks {
    /// Of the packs of a store.
    pub fn new(disk: Arc<dyn Disk>, layout: Layout) -> Self {
        Self { disk, layout, files: Mutex::default(), unpacked: Mutex::default() }
    }

    /// The block at `location` as it is stored, for who checks the objects in it; here only its beginning is looked at.
    pub fn read(&self, location: &Location) -> Result<(Vec<u8>, Vec<TableEntry>), StoreError> {
        let bytes = self.bytes(location)?;
        let table = Header::parse(&bytes).and_then(|header| match header.block_bytes() == bytes.len() {
            true => parse_table(&header, &bytes),
            false => Err(BlockError::Short),
        });
        let table = table.map_err(|e| self.damaged(location, &e))?;
        Ok((bytes, table))
    }

    /// The block at `location`, unpacked, every chunk and manifest in it matching its hash.
    pub fn open(&self, location: &Location) -> Result<Arc<Block>, StoreError> {
        let at = (location.pack, location.offset);
        if let Some(block) = self.unpacked().get(at, true) {
            return Ok(block);
        }
        let bytes = self.bytes(location)?;
        let block = Arc::new(Block::open(&bytes).map_err(|e| self.damaged(location, &e))?);
        buffers::give(bytes);
        self.keep(location.pack, location.offset, block.clone());
        Ok(block)
    }

    /// The block at `location`, unpacked, for who proves what he reads himself.
    pub fn open_unproven(&self, location: &Location) -> Result<Arc<Block>, StoreError> {
        let at = (location.pack, location.offset);
        if let Some(block) = self.unpacked().get(at, false) {
            return Ok(block);
        }
        let bytes = self.bytes(location)?;
        let block = Block::open_unproven(&bytes).map_err(|e| self.damaged(location, &e))?;
        buffers::give(bytes);
        let block = Arc::new(block);
        self.unpacked().put(at, block.clone(), false);
        Ok(block)
    }

    fn bytes(&self, location: &Location) -> Result<Vec<u8>, StoreError> {
        let file = self.file(location.pack)?;
        let mut bytes = buffers::take_filled(location.block_bytes as usize);
        file.read_at(location.offset, &mut bytes).map_err(|e| self.damaged(location, &e))?;
        Ok(bytes)
    }

    fn damaged(&self, location: &Location, what: &dyn Display) -> StoreError {
        StoreError::Damaged {
            path: self.layout.pack(location.pack),
            what: format!("at {}: {what}", location.offset),
        }
    }

    /// Keeps an unpacked block for a while.
    pub fn keep(&self, pack: u32, offset: u64, block: Arc<Block>) {
        self.unpacked().put((pack, offset), block, true);
    }

    /// Lets go of a pack whose file is gone: a file that is open takes room on the disk.
    pub fn forget(&self, pack: u32) {
        self.files.lock().expect("nothing panics while it holds the files' lock").remove(&pack);
    }

    /// As if what is unpacked had not been asked for in a long time.
    #[cfg(test)]
    pub fn forget_unpacked(&self) {
        *self.unpacked() = Unpacked::default();
    }

    /// Whether nobody is at its files at this moment.
    #[cfg(test)]
    pub fn is_free(&self) -> bool {
        self.files.try_lock().is_ok()
    }

    fn unpacked(&self) -> MutexGuard<'_, Unpacked> {
        self.unpacked.lock().expect("nothing panics while it holds the cache's lock")
    }

    fn file(&self, pack: u32) -> Result<Arc<dyn DiskFile>, StoreError> {
        let mut files = self.files.lock().expect("nothing panics while it holds the files' lock");
        if let Some(file) = files.get(&pack) {
            return Ok(file.clone());
        }
        if files.len() >= OPEN_FILES {
            files.clear();
        }
        let file = self.disk.open_read(&self.layout.pack(pack))?;
        files.insert(pack, file.clone());
        Ok(file)
    }
}
