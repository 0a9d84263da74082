//! Somebody outside the store who knows what it was told and what it answered, and so what it must hold.
//!
//! What the catalog says is taken from its records alone, by brute force; bytes are read from the packs themselves, past what is unpacked in memory.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
};

use super::super::fixture::*;
use crate::{
    catalog::{Record, RecordBody, UnitLife},
    chunk::{ObjectKind, block::Block},
    ids::{Hash, Seq},
    store::{Store, StoreError},
};

type Objects = Arc<Vec<(ObjectKind, Hash, Vec<u8>)>>;

#[derive(Default)]
pub struct Oracle(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// All that was ever sent, by manifest.
    sent: HashMap<Hash, Objects>,
    acknowledged: Vec<Record>,
    /// Manifests of snapshots that are shown in this life of the store.
    shown: HashMap<usize, Hash>,
    freed: u64,
    looks: usize,
}

impl Oracle {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// These are about to be sent.
    pub fn sends(&self, manifest: Hash, objects: Vec<(ObjectKind, Hash, Vec<u8>)>) -> Objects {
        self.lock().sent.entry(manifest).or_insert_with(|| Arc::new(objects)).clone()
    }

    /// The store has answered so.
    pub fn acknowledged(&self, record: Record) {
        self.lock().acknowledged.push(record);
    }

    /// One host shows this, or nothing any more.
    pub fn shows(&self, host: usize, manifest: Option<Hash>) {
        let mut known = self.lock();
        match manifest {
            Some(manifest) => _ = known.shown.insert(host, manifest),
            None => _ = known.shown.remove(&host),
        }
    }

    pub fn frees(&self, bytes: u64) {
        self.lock().freed += bytes;
    }

    pub fn freed(&self) -> u64 {
        self.lock().freed
    }

    /// One of all that must be there.
    pub fn any_of(&self, store: &Store, random: &mut Random) -> Option<(Record, Objects)> {
        let mut needed = needed(&records(store));
        let record = (!needed.is_empty()).then(|| needed.swap_remove(random.below(needed.len())))?;
        let objects = self.objects(&manifest_of(&record));
        Some((record, objects))
    }

    fn objects(&self, manifest: &Hash) -> Objects {
        self.lock().sent.get(manifest).unwrap_or_else(|| panic!("nobody sent {manifest}")).clone()
    }

    /// One of what must be there is there, each in its turn.
    pub fn look(&self, store: &Store, seed: u64) {
        let mut manifests: Vec<Hash> = needed(&records(store)).iter().map(manifest_of).collect();
        manifests.extend(self.lock().shown.values());
        let at = {
            let mut known = self.lock();
            known.looks += 1;
            known.looks
        };
        if !manifests.is_empty() {
            self.is_there(store, seed, &manifests[at % manifests.len()]);
        }
    }

    /// The store was opened: what was shown may be forgotten, and all else must be there.
    pub fn reopened(&self, store: &Store, seed: u64) {
        self.lock().shown.clear();
        self.check(store, seed);
    }

    /// All that was acknowledged is in the catalog, and all that the catalog and the slots name is there.
    pub fn check(&self, store: &Store, seed: u64) {
        let records = records(store);
        for record in &self.lock().acknowledged {
            assert_eq!(
                records.get(record.seq.0 as usize - 1),
                Some(record),
                "seed {seed}: it was acknowledged"
            );
        }
        let named = self.named(store);
        named.iter().for_each(|manifest| self.is_there(store, seed, manifest));
        let packs = store.layout.pack_numbers(&*store.disk).expect("lists");
        assert!(packs.iter().all(|pack| !store.catalog.is_reclaimed(*pack)), "seed {seed}: it was reclaimed");
    }

    fn named(&self, store: &Store) -> HashSet<Hash> {
        let slots = store.slots().all();
        needed(&records(store))
            .iter()
            .map(manifest_of)
            .chain(slots.iter().map(|slot| slot.manifest))
            .collect()
    }

    fn is_there(&self, store: &Store, seed: u64, manifest: &Hash) {
        for (kind, hash, bytes) in &*self.objects(manifest) {
            match read(store, *kind, hash) {
                Ok(Some(read)) => {
                    assert!(read == *bytes, "seed {seed}: {kind:?} {hash} of {manifest} is another")
                }
                // Who proves a recipe goes through the gate.
                Ok(None) if *kind == ObjectKind::Recipe && !store.gate.is_open() => {}
                other => panic!("seed {seed}: {kind:?} {hash} of {manifest}: {:?}", other.err()),
            }
        }
    }

    /// After a `gc` with nothing on its way: what isn't needed takes less than a third of what is, but for the packs that are young.
    pub fn is_all_that_is_there(&self, store: &Store, seed: u64) {
        let named = self.named(store);
        let mut live = HashMap::new();
        let objects: Vec<Objects> = named.iter().map(|manifest| self.objects(manifest)).collect();
        for (kind, hash, bytes) in objects.iter().flat_map(|objects| objects.iter()) {
            live.insert((*kind, *hash), bytes.len() as u64);
        }
        let needed: u64 = live.values().map(|bytes| bytes + 100).sum();
        let there = store.stats().pack_bytes;
        assert!(there < needed * 4 / 3 + 2 * SMALL.pack_bytes, "seed {seed}: {there} bytes for {needed}");
        let all: Vec<Objects> = self.lock().sent.values().cloned().collect();
        for (kind, hash, _) in all.iter().flat_map(|objects| objects.iter()) {
            if *kind == ObjectKind::Recipe && !live.contains_key(&(*kind, *hash)) {
                assert_eq!(store.missing(*kind, &[*hash]).expect("asks"), [true], "seed {seed}: {hash}");
            }
        }
    }
}

fn records(store: &Store) -> Vec<Record> {
    store.records_after(Seq(0), usize::MAX).expect("reads")
}

fn manifest_of(record: &Record) -> Hash {
    record.commit().expect("a commit").manifest
}

/// Whether what this commit names must be there.
pub fn is_needed(store: &Store, record: &Record) -> bool {
    needed(&records(store)).contains(record)
}

/// The commits that aren't given up by a later purge of their life.
fn needed(records: &[Record]) -> Vec<Record> {
    let is_purged = |record: &Record| {
        let commit = record.commit().expect("a commit");
        let of = UnitLife { unit: commit.unit.clone(), incarnation: commit.incarnation };
        let gives_up = |later: &Record| match &later.body {
            RecordBody::Purge(purge) => later.seq > record.seq && purge.lives.contains(&of),
            _ => false,
        };
        records.iter().any(gives_up)
    };
    records.iter().filter(|record| record.commit().is_some() && !is_purged(record)).cloned().collect()
}

/// An object's bytes, from the pack.
pub fn read(store: &Store, kind: ObjectKind, hash: &Hash) -> Result<Option<Vec<u8>>, StoreError> {
    let place = match store.index.get(kind, hash)? {
        // When the index was made again, nobody may have proven it yet.
        None if store.gate.is_open() => store.place(kind, hash)?,
        place => place,
    };
    let Some(place) = place else { return Ok(None) };
    let block = store.read_at(kind, hash, place, |place| store.blocks.read(place))?;
    let Some((block, _)) = block else { return Ok(None) };
    let block = Block::open(&block).expect("it is whole");
    let entry = block.table().iter().find(|entry| entry.kind == kind && entry.hash == *hash);
    Ok(entry.map(|entry| block.bytes_of(entry).to_vec()))
}
