//! All records in memory, so that looks never wait for the disk.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
};

use super::{
    NOTES,
    db::{Db, META, UNITS, dir_key, unit_key},
    error::JournalError,
    note::Note,
    record::{State, UnitRecord},
    stored,
};
use crate::ids::{Hash, RelPath, Seq, StoreUuid, UnitId};

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
    /// Whether its paths' notes are forgotten.
    pub clears_notes: bool,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    pub records: HashMap<UnitId, UnitRecord>,
    pub notes: HashMap<UnitId, BTreeMap<RelPath, Note>>,
    pub counts: Counts,
    pub store: Option<StoreUuid>,
    /// Whether that store lets this host delete others' entries, once it has said so.
    pub may_delete: Option<(StoreUuid, bool)>,
    /// Paths from the top of the tree that deletions of others' entries are noted of.
    hidden: HashMap<RelPath, Vec<(UnitId, Seq)>>,
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
        if let Some(rights) = db.get(META, b"may-delete")? {
            memory.may_delete = Some(minicbor::decode(&rights).map_err(|e| db.damaged(e))?);
        }
        db.scan(UNITS, |key, value| {
            memory.insert(stored::record(key, value)?);
            Ok(())
        })?;
        db.scan(NOTES, |key, value| {
            let (unit, path, note) = stored::note(key, value)?;
            memory.set_note(&unit, &path, Some(note));
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
        if change.clears_notes {
            self.clear_notes(&change.unit);
        }
        self.remove(&change.unit);
        if let Some(record) = change.record {
            self.insert(record);
        }
    }

    /// Forgets all notes of a unit's paths.
    pub fn clear_notes(&mut self, unit: &UnitId) {
        for (path, note) in self.notes.remove(unit).unwrap_or_default() {
            self.unhide(unit, &path, note);
        }
    }

    /// The note of a path below the unit's root.
    pub fn set_note(&mut self, unit: &UnitId, path: &RelPath, note: Option<Note>) {
        let notes = self.notes.entry(unit.clone()).or_default();
        let old = match note {
            Some(note) => notes.insert(path.clone(), note),
            None => notes.remove(path),
        };
        if notes.is_empty() {
            self.notes.remove(unit);
        }
        old.into_iter().for_each(|old| self.unhide(unit, path, old));
        if let (Some(Note::Hidden(upto)), Ok(full)) = (note, unit.root.append(path)) {
            self.hidden.entry(full).or_default().push((unit.clone(), upto));
        }
    }

    fn unhide(&mut self, unit: &UnitId, path: &RelPath, old: Note) {
        let (Note::Hidden(_), Ok(full)) = (old, unit.root.append(path)) else { return };
        if let Some(hiders) = self.hidden.get_mut(&full) {
            hiders.retain(|(hider, _)| hider != unit);
            if hiders.is_empty() {
                self.hidden.remove(&full);
            }
        }
    }

    /// The number up to which deletions that aren't committed yet hide what is at and below a path of the tree.
    pub fn hidden_upto(&self, path: &RelPath) -> Seq {
        if self.hidden.is_empty() {
            return Seq::default();
        }
        let above = (0..=path.depth()).filter_map(|depth| self.hidden.get(&path.first(depth)));
        above.flatten().map(|(_, upto)| *upto).max().unwrap_or_default()
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
