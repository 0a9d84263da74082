//! What happens to packs and index when a store is opened: tails are cut, the rest of the packs is entered in the index,
//! and everything that anything may rely on from now on is synced.
//!
//! Never cut: what a catalog record vouches for, which is all below the last frame's [`PackPoint`]. What is wrong there is logged and left for
//! `verify` to name; good blocks behind it are still found, and new blocks go to a new pack.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    StoreError,
    catalog::PackPoint,
    index::Index,
    layout::Layout,
    pack::{self, PackedBlock, Scan, State},
    writer::{Existing, OpenPack, PackWriter},
};
use crate::{
    durable::{Disk, DiskFile},
    ids::StoreUuid,
};

/// The parts of an opening.
pub struct Recovery<'a> {
    pub disk: &'a Arc<dyn Disk>,
    pub layout: &'a Layout,
    pub store: StoreUuid,
    /// Up to where the catalog vouches for the packs.
    pub durable: PackPoint,
    /// Packs that the catalog says are gone.
    pub reclaimed: BTreeSet<u32>,
    pub pack_bytes: u64,
    /// Objects after which the index is written.
    pub flush_objects: usize,
}

/// A pack from the one that the catalog last spoke of, or a later one.
struct Tail {
    number: u32,
    file: Arc<dyn DiskFile>,
    scan: Scan,
    /// Its length once it is cut.
    end: u64,
}

impl Recovery<'_> {
    /// Opens index and packs.
    pub fn run(&self) -> Result<(Index, PackWriter), StoreError> {
        self.remove_reclaimed()?;
        // A killed process may have left packs whose names aren't durable.
        self.disk.sync_dir(&self.layout.packs())?;
        let numbers = self.layout.pack_numbers(&**self.disk)?;
        let lengths = self.lengths(&numbers)?;
        let tails = self.tails(&numbers)?;
        let (mut index, mut indexed) = Index::open(self.disk, self.layout, self.store)?;
        if !covered(&indexed, &lengths, &tails) {
            tracing::warn!("the index speaks of packs that aren't there (any more) and is made again");
            drop(index);
            index = Index::create(self.disk, self.layout, self.store)?;
            indexed.clear();
        }
        self.catch_up(&index, &indexed, &lengths)?;
        let existing = self.settle(tails, &index, &indexed, &lengths)?;
        let (disk, layout) = (self.disk.clone(), self.layout.clone());
        Ok((index, PackWriter::new(disk, layout, self.store, self.pack_bytes, existing)))
    }

    /// A crash between the record that packs are gone and their removal has left them.
    fn remove_reclaimed(&self) -> Result<(), StoreError> {
        let numbers = self.layout.pack_numbers(&**self.disk)?;
        for number in numbers.iter().filter(|number| self.reclaimed.contains(number)) {
            self.disk.remove(&self.layout.pack(*number))?;
        }
        Ok(())
    }

    fn lengths(&self, numbers: &[u32]) -> Result<BTreeMap<u32, u64>, StoreError> {
        let length = |number: &u32| Ok((*number, self.disk.open_read(&self.layout.pack(*number))?.len()?));
        numbers.iter().map(length).collect()
    }

    /// Bytes at the beginning of pack `number` that must be there and good.
    fn must(&self, number: u32) -> u64 {
        match number.cmp(&self.durable.pack) {
            Ordering::Less => u64::MAX,
            Ordering::Equal => self.durable.offset,
            Ordering::Greater => 0,
        }
    }

    fn scan(&self, file: &dyn DiskFile, number: u32) -> Result<Scan, StoreError> {
        let scan = pack::scan(file, file.len()?, self.store, number, self.must(number))?;
        for damage in &scan.damage {
            tracing::error!(pack = number, offset = damage.offset, code = damage.code, "{}", damage.what);
        }
        Ok(scan)
    }

    fn tails(&self, numbers: &[u32]) -> Result<Vec<Tail>, StoreError> {
        let tail = |number: &u32| {
            let file = self.disk.open(&self.layout.pack(*number))?;
            let scan = self.scan(&*file, *number)?;
            let end = if let State::Torn(at) = scan.state { at } else { scan.file_bytes };
            Ok(Tail { number: *number, file, scan, end })
        };
        numbers.iter().filter(|n| **n >= self.durable.pack).map(tail).collect()
    }

    /// Enters what older packs hold and the index doesn't have: normally nothing.
    fn catch_up(
        &self,
        index: &Index,
        indexed: &BTreeMap<u32, u64>,
        lengths: &BTreeMap<u32, u64>,
    ) -> Result<(), StoreError> {
        for (number, bytes) in lengths.range(..self.durable.pack) {
            if indexed.get(number) != Some(bytes) {
                let scan = self.scan(&*self.disk.open_read(&self.layout.pack(*number))?, *number)?;
                enter(index, *number, &scan.blocks, indexed)?;
                index.reached(*number, *bytes);
                self.flush_if_large(index)?;
            }
        }
        Ok(())
    }

    fn flush_if_large(&self, index: &Index) -> Result<(), StoreError> {
        if index.waiting() >= self.flush_objects {
            index.begin_flush();
            index.finish_flush()?;
        }
        Ok(())
    }

    /// Cuts, syncs and closes the last packs and enters them, so that at most the very last goes on taking blocks.
    fn settle(
        &self,
        tails: Vec<Tail>,
        index: &Index,
        indexed: &BTreeMap<u32, u64>,
        lengths: &BTreeMap<u32, u64>,
    ) -> Result<Existing, StoreError> {
        let older = lengths.range(..self.durable.pack);
        let mut existing = Existing {
            last: self.durable,
            open: None,
            packs: older.clone().count() as u64,
            total_bytes: older.map(|(_, bytes)| bytes).sum(),
        };
        let last = tails.iter().rev().find(|tail| tail.end > 0).map(|tail| tail.number);
        for tail in tails {
            if tail.end == 0 {
                self.disk.remove(&self.layout.pack(tail.number))?;
                self.disk.sync_dir(&self.layout.packs())?;
                continue;
            }
            enter(index, tail.number, &tail.scan.blocks, indexed)?;
            let number = tail.number;
            let (bytes, open) = self.settle_one(tail, last)?;
            index.reached(number, bytes);
            self.flush_if_large(index)?;
            existing.last = PackPoint { pack: number, offset: bytes }.max(self.durable);
            existing.open = open;
            existing.packs += 1;
            existing.total_bytes += bytes;
        }
        Ok(existing)
    }

    fn settle_one(&self, tail: Tail, last: Option<u32>) -> Result<(u64, Option<OpenPack>), StoreError> {
        let Tail { number, file, scan, mut end } = tail;
        if end < scan.file_bytes {
            tracing::warn!(pack = number, bytes = scan.file_bytes - end, "cut a pack's torn tail");
            file.set_len(end)?;
        }
        let sound = scan.state != State::Closed && scan.damage.is_empty();
        let goes_on = sound && last == Some(number) && !pack::is_full(end, self.pack_bytes);
        if sound && !goes_on {
            let trailer = pack::encode_trailer(&scan.blocks, end);
            file.write_at(end, &trailer)?;
            end += trailer.len() as u64;
        }
        file.sync_data()?;
        Ok((end, goes_on.then_some(OpenPack { file, end, blocks: scan.blocks })))
    }
}

/// Whether everything that the index speaks of is there.
fn covered(indexed: &BTreeMap<u32, u64>, lengths: &BTreeMap<u32, u64>, tails: &[Tail]) -> bool {
    indexed.iter().all(|(number, bytes)| {
        let tail = tails.iter().find(|tail| tail.number == *number).map(|tail| tail.end);
        tail.or(lengths.get(number).copied()).is_some_and(|there| there >= *bytes)
    })
}

fn enter(
    index: &Index,
    number: u32,
    blocks: &[PackedBlock],
    indexed: &BTreeMap<u32, u64>,
) -> Result<(), StoreError> {
    let from = indexed.get(&number).copied().unwrap_or(0);
    for block in blocks.iter().filter(|block| block.offset >= from) {
        index.add_block(number, block, &index.places(&block.table)?);
    }
    Ok(())
}
