//! Reads blocks out of packs, and keeps a few unpacked ones: those just appended, which a commit is about to look at,
//! and those just read.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use super::{StoreError, index::Location, layout::Layout};
use crate::{
    chunk::block::{self, Block, TableEntry},
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
    blocks: HashMap<(u32, u64), (Arc<Block>, u64)>,
    bytes: usize,
    uses: u64,
}

impl Unpacked {
    fn get(&mut self, at: (u32, u64)) -> Option<Arc<Block>> {
        self.uses += 1;
        let uses = self.uses;
        self.blocks.get_mut(&at).map(|(block, used)| {
            *used = uses;
            block.clone()
        })
    }

    fn put(&mut self, at: (u32, u64), block: Arc<Block>) {
        if block.raw_bytes() > CACHE_BYTES / 2 {
            return;
        }
        self.uses += 1;
        self.bytes += block.raw_bytes();
        if let Some((old, _)) = self.blocks.insert(at, (block, self.uses)) {
            self.bytes -= old.raw_bytes();
        }
        while self.bytes > CACHE_BYTES || self.blocks.len() > CACHE_BLOCKS {
            let oldest = self.blocks.iter().min_by_key(|(_, (_, used))| *used).map(|(at, _)| *at);
            let oldest = oldest.expect("what holds bytes isn't empty");
            let (block, _) = self.blocks.remove(&oldest).expect("was just found");
            self.bytes -= block.raw_bytes();
        }
    }
}

impl Blocks {
    /// Of the packs of a store.
    pub fn new(disk: Arc<dyn Disk>, layout: Layout) -> Self {
        Self { disk, layout, files: Mutex::default(), unpacked: Mutex::default() }
    }

    /// The block at `location` as it is stored; its checksum was verified.
    pub fn read(&self, location: &Location) -> Result<(Vec<u8>, Vec<TableEntry>), StoreError> {
        let file = self.file(location.pack)?;
        let mut bytes = vec![0; location.block_bytes as usize];
        let damaged = |what: String| StoreError::Damaged {
            path: self.layout.pack(location.pack),
            what: format!("at {}: {what}", location.offset),
        };
        file.read_at(location.offset, &mut bytes).map_err(|e| damaged(e.to_string()))?;
        match block::verify_stored(&bytes) {
            Ok(table) => Ok((bytes, table)),
            Err(e) => Err(damaged(e.to_string())),
        }
    }

    /// The block at `location`, unpacked, every chunk and manifest in it matching its hash.
    pub fn open(&self, location: &Location) -> Result<Arc<Block>, StoreError> {
        let at = (location.pack, location.offset);
        if let Some(block) = self.unpacked().get(at) {
            return Ok(block);
        }
        let (bytes, _) = self.read(location)?;
        let block = Arc::new(Block::open(&bytes).map_err(|e| StoreError::Damaged {
            path: self.layout.pack(location.pack),
            what: format!("at {}: {e}", location.offset),
        })?);
        self.keep(location.pack, location.offset, block.clone());
        Ok(block)
    }

    /// Keeps an unpacked block for a while.
    pub fn keep(&self, pack: u32, offset: u64, block: Arc<Block>) {
        self.unpacked().put((pack, offset), block);
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
