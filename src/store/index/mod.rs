//! The derived index: where each object is.
//!
//! Objects are in [`runs`], sorted files beside the packs; everything else, and which runs there are, in a redb database; and in front of both is what was
//! appended since they were last written. All of it can be deleted while the store is closed: opening reads the packs again from where the index ends. It is
//! written in large batches, each one durable transaction that also says up to where each pack is in it, and only ever speaks of bytes that were synced
//! before.
//!
//! | table | key | value |
//! |---|---|---|
//! | `runs` | place in the order of age u64 | number of the run u64, records u64 |
//! | `candidates` | hash 32, pack u32, offset u64, number u32 | block bytes u32 |
//! | `packs` | pack u32 | bytes of it that are in the index u64 |
//! | `counts` | 0 | objects in all runs u64 |
//! | `store` | 0 | store UUID 16, version u32 |
//!
//! A recipe isn't named by its own bytes, so anybody can send a false one. It is a *candidate* until its chunks were read and hashed; only
//! then it becomes an object, whose bytes are the content's size. Numbers are little endian in values and big endian in keys.
//!
//! A database alone was measured (`bench/index`): with 20 million random keys a B-tree writes a page for each, and a log-structured one looks through many
//! tables for a key that isn't there.

mod filter;
mod pending;
mod place;
mod run;
mod runs;
mod written;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex, PoisonError, RwLock},
    thread::{self, JoinHandle},
};

use redb::{ReadTransaction, ReadableTable};

pub use self::place::{Key, Location, location};
use self::{
    pending::{CANDIDATES_MAX, Changes, Pending},
    place::{decode_key, encode_key},
    run::{RawKey, key_in, place_in},
    written::{Backend, CANDIDATES, PACKS, Written, belongs_to, database, guarded, merged},
};
use super::{
    StoreError, error::index_error, gc::Doomed, layout::Layout, overlay::Overlay, pack::PackedBlock,
};
use crate::{
    chunk::{ObjectKind, block::TableEntry},
    durable::{self, Disk, DiskFile},
    ids::{Hash, StoreUuid},
};

/// Merges of more records go on beside everything else; smaller ones are over before anybody would notice.
const BESIDE_RECORDS: u64 = 256 << 10;

/// The index.
#[derive(Debug)]
pub struct Index {
    written: Arc<Written>,
    /// A large merge that is under way, or over.
    merging: Mutex<Option<JoinHandle<()>>>,
    pending: RwLock<Pending>,
    /// What a `gc` that is under way takes away: as good as gone for who asks.
    doomed: RwLock<Option<Arc<Doomed>>>,
}

impl Index {
    /// Opens the index of `store` and says how far each pack is in it. One that is missing, damaged, another store's or of another
    /// version is made afresh, with no packs.
    pub fn open(
        disk: &Arc<dyn Disk>,
        layout: &Layout,
        store: StoreUuid,
    ) -> Result<(Self, BTreeMap<u32, u64>), StoreError> {
        match guarded(|| Self::open_existing(disk, layout, store)) {
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

    fn open_existing(
        disk: &Arc<dyn Disk>,
        layout: &Layout,
        store: StoreUuid,
    ) -> Result<Option<Self>, StoreError> {
        let file = match disk.open(&layout.index()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        if file.is_empty()? {
            return Ok(None);
        }
        let db = database(Backend(file))?;
        if !belongs_to(&db, store)? {
            return Ok(None);
        }
        let index = Self::over(Written::open(db, disk.clone(), layout, store)?);
        index.written.runs.remove_others()?;
        Ok(Some(index))
    }

    /// Opens the index whose database is in `file` for looking at it: nothing is changed, not even to mend it after a crash. `None`: it is another
    /// store's or another version's.
    pub(crate) fn open_unchanged(
        file: Arc<dyn DiskFile>,
        disk: &Arc<dyn Disk>,
        layout: &Layout,
        store: StoreUuid,
    ) -> Result<Option<Self>, StoreError> {
        guarded(|| {
            let db = database(Overlay::new(file)?)?;
            match belongs_to(&db, store)? {
                true => Ok(Some(Self::over(Written::open(db, disk.clone(), layout, store)?))),
                false => Ok(None),
            }
        })
    }

    fn over(written: Written) -> Self {
        let (merging, pending, doomed) = Default::default();
        Self { written: Arc::new(written), merging, pending, doomed }
    }

    /// Makes an empty index in place of what may be there.
    pub fn create(disk: &Arc<dyn Disk>, layout: &Layout, store: StoreUuid) -> Result<Self, StoreError> {
        durable::there(disk.remove(&layout.index()))?;
        let written = Written::create(disk, layout, store)?;
        disk.sync_dir(layout.dir())?;
        Ok(Self::over(written))
    }

    fn read(&self) -> Result<ReadTransaction, StoreError> {
        self.written.read()
    }

    /// How far each pack is in it.
    pub(crate) fn packs(&self) -> Result<BTreeMap<u32, u64>, StoreError> {
        let table = self.read()?.open_table(PACKS).map_err(index_error)?;
        let rows = table.iter().map_err(index_error)?;
        rows.map(|row| row.map(|(k, v)| (k.value(), v.value())).map_err(index_error)).collect()
    }

    /// Merges what is due: what is large, beside everything else, one at a time.
    fn merge_what_is_due(&self) {
        let mut merging = self.merging.lock().unwrap_or_else(PoisonError::into_inner);
        if merging.as_ref().is_some_and(|merging| !merging.is_finished()) {
            return;
        }
        if let Some(done) = merging.take() {
            let _ = done.join();
        }
        while let Some(merge) = self.written.runs.due() {
            if merge.records() > BESIDE_RECORDS {
                let written = self.written.clone();
                *merging = Some(thread::spawn(move || _ = merged(&written, &merge)));
                return;
            }
            if !merged(&self.written, &merge) {
                return;
            }
        }
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
        // What has left the pending layers since is in the runs by now.
        let lacking: Vec<(usize, RawKey)> = keys
            .iter()
            .enumerate()
            .filter(|(at, _)| found[*at].is_none())
            .map(|(at, key)| (at, encode_key(key)))
            .collect();
        let written = self.written.runs.get_many(lacking.iter().map(|(_, key)| key))?;
        lacking.iter().zip(written).for_each(|((at, _), place)| found[*at] = place);
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

    /// Enters an object at a place where a check has found it.
    pub(super) fn enter(&self, key: Key, place: Location) {
        let mut pending = self.pending.write().expect("nothing panics while it holds the index's lock");
        pending.fresh.objects.insert(key, place);
    }

    /// The unproven recipes in a pack.
    pub(super) fn candidates_in(&self, pack: u32) -> Result<Vec<(Hash, Location)>, StoreError> {
        let table = self.read()?.open_table(CANDIDATES).map_err(index_error)?;
        let mut found = Vec::new();
        for row in table.iter().map_err(index_error)? {
            let (key, block_bytes) = row.map_err(index_error)?;
            let place = Location::of_candidate(key.value(), block_bytes.value());
            if place.pack == pack {
                found.push((Hash(key.value()[..32].try_into().expect("32 of 48 bytes")), place));
            }
        }
        let pending = self.pending.read().expect("nothing panics while it holds the index's lock");
        for (hash, places) in pending.layers().flat_map(|changes| &changes.candidates) {
            found.extend(places.iter().filter(|place| place.pack == pack).map(|place| (*hash, *place)));
        }
        Ok(found)
    }

    /// Every proven recipe that a `gc` takes away.
    pub(super) fn doomed_recipes(&self, doomed: &Doomed) -> Result<Vec<(Key, Location)>, StoreError> {
        let mut found: HashMap<Key, Location> = HashMap::new();
        let first = encode_key(&(ObjectKind::Recipe, Hash([0; 32])));
        let mut through = self.written.runs.through(&first);
        while let Some(record) = through.next()? {
            match (decode_key(key_in(&record)), place_in(&record)) {
                (Some(key @ (ObjectKind::Recipe, _)), Some(place)) => _ = found.insert(key, place),
                (Some((ObjectKind::Manifest, _)), _) => break,
                _ => {}
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

    /// Writes what was set aside, if anything was. Where there is no room for it, it is as if it had not been set aside.
    pub fn finish_flush(&self) -> Result<(), StoreError> {
        let changes = {
            let pending = self.pending.read().expect("nothing panics while it holds the index's lock");
            pending.flushing.clone()
        };
        let Some(changes) = changes else { return Ok(()) };
        match self.written.write(&changes, None) {
            Err(error @ StoreError::Full { .. }) => {
                let mut pending =
                    self.pending.write().expect("nothing panics while it holds the index's lock");
                let (set_aside, newer) = (pending.flushing.take(), std::mem::take(&mut pending.fresh));
                pending.fresh = set_aside.as_deref().cloned().unwrap_or_default().then(newer);
                return Err(error);
            }
            written => written?,
        }
        self.pending.write().expect("nothing panics while it holds the index's lock").flushing = None;
        self.merge_what_is_due();
        Ok(())
    }

    /// How many objects it knows, unproven recipes not counted.
    pub fn objects(&self) -> Result<u64, StoreError> {
        let pending = {
            let pending = self.pending.read().expect("nothing panics while it holds the index's lock");
            pending.layers().map(|c| c.objects.len() as u64).sum::<u64>()
        };
        Ok(self.written.objects() + pending)
    }

    /// Everything that is written, in order of key, every page of it compared with its check; `None` as a key stands for one that can't be.
    pub fn each(&self, mut each: impl FnMut(Option<Key>, Location)) -> Result<(), StoreError> {
        let mut through = self.written.runs.through(&[0; run::KEY_BYTES]);
        while let Some(record) = through.next()? {
            if let Some(place) = place_in(&record) {
                each(decode_key(key_in(&record)), place);
            }
        }
        Ok(())
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.written.runs.stop();
        let merging = self.merging.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(merging) = merging {
            let _ = merging.join();
        }
    }
}
