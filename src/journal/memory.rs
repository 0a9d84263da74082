//! All records in memory, so that looks never wait for the disk.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
};

use super::{
    GONE,
    db::{Db, META, UNITS, dir_key, gone_of_key, unit_key, unit_of_key},
    error::JournalError,
    record::{State, UnitRecord},
};
use crate::ids::{Hash, RelPath, StoreUuid, UnitId};

/// How many units have a record, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([usize; State::ALL.len()]);

impl Counts {
    /// In this state.
    pub fn of(&self, state: State) -> usize {
        self.0[state as usize]
    }

    /// In all.
    pub fn total(&self) -> usize {
        self.0.iter().sum()
    }
}

/// A unit's new record, or its end.
#[derive(Debug)]
pub(super) struct Change {
    pub unit: UnitId,
    pub record: Option<UnitRecord>,
    /// Whether its deleted paths are forgotten.
    pub clears_gone: bool,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    pub records: HashMap<UnitId, UnitRecord>,
    pub gone: HashMap<UnitId, BTreeSet<RelPath>>,
    pub counts: Counts,
    pub store: Option<StoreUuid>,
    /// The same units in the order of the tree.
    by_place: BTreeMap<Box<[u8]>, UnitId>,
    /// How many records name a manifest.
    named: HashMap<Hash, usize>,
}

impl Memory {
    /// All that the database holds.
    pub fn load(db: &Db) -> Result<Self, JournalError> {
        let mut memory = Self::default();
        if let Some(store) = db.get(META, b"store")? {
            memory.store = Some(minicbor::decode(&store).map_err(|e| db.damaged(e))?);
        }
        db.scan(UNITS, |key, value| {
            let record: UnitRecord = minicbor::decode(value).map_err(|e| e.to_string())?;
            if unit_of_key(key).as_ref() != Some(&record.unit) {
                return Err(format!("the record of {} is under another unit's key", record.unit));
            }
            memory.insert(record);
            Ok(())
        })?;
        db.scan(GONE, |key, _| {
            let (unit, path) = gone_of_key(key).ok_or("a deleted path's key is none")?;
            memory.gone.entry(unit).or_default().insert(path);
            Ok(())
        })?;
        Ok(memory)
    }

    /// Records of units at or below `dir`, in the order of the tree.
    pub fn below(&self, dir: &RelPath) -> impl Iterator<Item = &UnitRecord> {
        let prefix = dir_key(dir);
        self.by_place
            .range::<[u8], _>((Bound::Included(&prefix[..]), Bound::Unbounded))
            .take_while({
                let prefix = prefix.clone();
                move |(key, _)| key.starts_with(&prefix)
            })
            .filter_map(|(_, unit)| self.records.get(unit))
    }

    /// Whether a record names this manifest.
    pub fn names_manifest(&self, hash: &Hash) -> bool {
        self.named.contains_key(hash)
    }

    /// Manifests that no record names any more after `changes`.
    pub fn unnamed_by(&self, changes: &[Change]) -> Vec<Hash> {
        let mut names: HashMap<Hash, isize> = HashMap::new();
        for change in changes {
            let old = self.records.get(&change.unit).into_iter().flat_map(UnitRecord::manifests);
            old.for_each(|hash| *names.entry(hash).or_default() -= 1);
            let new = change.record.iter().flat_map(UnitRecord::manifests);
            new.for_each(|hash| *names.entry(hash).or_default() += 1);
        }
        let count = |hash: &Hash| self.named.get(hash).map_or(0, |count| count.cast_signed());
        names
            .into_iter()
            .filter(|(hash, by)| *by < 0 && count(hash) + by == 0)
            .map(|(hash, _)| hash)
            .collect()
    }

    /// Makes a change that is durable.
    pub fn apply(&mut self, change: Change) {
        if change.clears_gone {
            self.gone.remove(&change.unit);
        }
        self.remove(&change.unit);
        if let Some(record) = change.record {
            self.insert(record);
        }
    }

    fn insert(&mut self, record: UnitRecord) {
        record.manifests().for_each(|hash| *self.named.entry(hash).or_default() += 1);
        self.counts.0[record.state as usize] += 1;
        self.by_place.insert(unit_key(&record.unit).into(), record.unit.clone());
        self.records.insert(record.unit.clone(), record);
    }

    fn remove(&mut self, unit: &UnitId) {
        let Some(record) = self.records.remove(unit) else { return };
        self.by_place.remove(&unit_key(unit)[..]);
        self.counts.0[record.state as usize] -= 1;
        for hash in record.manifests() {
            let count = self.named.get_mut(&hash).expect("a record's manifests were counted when it came in");
            *count -= 1;
            if *count == 0 {
                self.named.remove(&hash);
            }
        }
    }
}
