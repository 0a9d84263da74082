//! The one writer of packs: appends blocks, closes full packs, and knows what isn't synced yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use super::{
    StoreError,
    catalog::PackPoint,
    layout::Layout,
    pack::{self, PackedBlock},
    room::{cut_back, full},
};
use crate::{
    chunk::block::TableEntry,
    durable::{Disk, DiskFile},
    ids::StoreUuid,
};

/// The pack that takes blocks.
#[derive(Debug)]
pub struct OpenPack {
    pub file: Arc<dyn DiskFile>,
    pub end: u64,
    pub blocks: Vec<PackedBlock>,
}

/// Appends to packs. Whoever has it (it stands behind a mutex) is the only one who writes to any of them.
#[derive(Debug)]
pub struct PackWriter {
    disk: Arc<dyn Disk>,
    layout: Layout,
    store: StoreUuid,
    /// Packs are closed at this length.
    pack_bytes: u64,
    /// The last pack's number and length.
    last: PackPoint,
    open: Option<OpenPack>,
    unsynced: Unsynced,
    packs: u64,
    total_bytes: u64,
}

/// What has to be synced before anything may rely on it.
#[derive(Debug, Default)]
pub struct Unsynced {
    files: BTreeMap<u32, Arc<dyn DiskFile>>,
    /// A pack was created.
    names: bool,
}

/// A block's place, and the closed pack's length if it was the pack's last.
#[derive(Debug)]
pub struct Appended {
    pub pack: u32,
    pub block: PackedBlock,
    pub closed_at: Option<u64>,
}

/// What is there when a store is opened.
#[derive(Debug, Default)]
pub struct Existing {
    pub last: PackPoint,
    pub open: Option<OpenPack>,
    pub packs: u64,
    pub total_bytes: u64,
}

impl PackWriter {
    /// Goes on after what is there, all of which is synced.
    pub fn new(
        disk: Arc<dyn Disk>,
        layout: Layout,
        store: StoreUuid,
        pack_bytes: u64,
        existing: Existing,
    ) -> Self {
        let Existing { last, open, packs, total_bytes } = existing;
        Self {
            disk,
            layout,
            store,
            pack_bytes,
            last,
            open,
            unsynced: Unsynced::default(),
            packs,
            total_bytes,
        }
    }

    /// Appends a checked block. Not synced. Where there is no room for it, nothing has changed; where there is none for a trailer, the pack stays open
    /// until there is.
    pub fn append(&mut self, encoded: &[u8], table: Vec<TableEntry>) -> Result<Appended, StoreError> {
        if self.open.is_none() {
            self.create()?;
        }
        let open = self.open.as_mut().expect("was created if it wasn't there");
        let block = PackedBlock::of(open.end, encoded, table)?;
        if let Err(error) = open.file.write_at(open.end, encoded) {
            return Err(cut_back(error, &*open.file, open.end, self.layout.dir()));
        }
        self.unsynced.files.insert(self.last.pack, open.file.clone());
        open.end = block.end();
        open.blocks.push(block.clone());
        self.last.offset = open.end;
        self.total_bytes += encoded.len() as u64;
        let is_full = pack::is_full(open.end, self.pack_bytes);
        let closed_at = match is_full.then(|| self.close()) {
            Some(Err(StoreError::Full { .. })) => None,
            closed => closed.transpose()?,
        };
        Ok(Appended { pack: self.last.pack, block, closed_at })
    }

    fn create(&mut self) -> Result<(), StoreError> {
        let number = self.last.pack + 1;
        let path = self.layout.pack(number);
        let created = self.disk.create(&path);
        let file = created.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull => full(self.layout.dir()),
            _ => error.into(),
        })?;
        if let Err(error) = file.write_at(0, &pack::encode_header(self.store, number)) {
            let full = cut_back(error, &*file, 0, self.layout.dir());
            self.disk.remove(&path)?;
            return Err(full);
        }
        self.last = PackPoint { pack: number, offset: pack::HEADER_BYTES };
        self.unsynced.names = true;
        self.unsynced.files.insert(number, file.clone());
        self.open = Some(OpenPack { file, end: pack::HEADER_BYTES, blocks: Vec::new() });
        self.packs += 1;
        self.total_bytes += pack::HEADER_BYTES;
        Ok(())
    }

    /// Appends to none of these packs any more.
    pub fn leave(&mut self, packs: &BTreeSet<u32>) -> Result<(), StoreError> {
        match self.open.is_some() && packs.contains(&self.last.pack) {
            true => self.close().map(drop),
            false => Ok(()),
        }
    }

    fn close(&mut self) -> Result<u64, StoreError> {
        let open = self.open.as_ref().expect("only an open pack is closed");
        let trailer = pack::encode_trailer(&open.blocks, open.end);
        if let Err(error) = open.file.write_at(open.end, &trailer) {
            return Err(cut_back(error, &*open.file, open.end, self.layout.dir()));
        }
        let open = self.open.take().expect("it was there just now");
        self.last.offset = open.end + trailer.len() as u64;
        self.total_bytes += trailer.len() as u64;
        Ok(self.last.offset)
    }

    /// What isn't synced, which is the caller's business from now on, and up to where everything is once that is done.
    pub fn take_unsynced(&mut self) -> (Unsynced, PackPoint) {
        (std::mem::take(&mut self.unsynced), self.last)
    }

    /// Up to where blocks are.
    pub fn end(&self) -> PackPoint {
        self.last
    }

    /// A pack is gone.
    pub fn removed(&mut self, bytes: u64) {
        self.packs -= 1;
        self.total_bytes -= bytes;
    }

    /// Packs, and bytes of all of them.
    pub fn totals(&self) -> (u64, u64) {
        (self.packs, self.total_bytes)
    }
}

impl Unsynced {
    /// Syncs it all.
    pub fn sync(&self, disk: &dyn Disk, layout: &Layout) -> Result<(), StoreError> {
        for file in self.files.values() {
            file.sync_data()?;
        }
        if self.names {
            disk.sync_dir(&layout.packs())?;
        }
        Ok(())
    }
}
