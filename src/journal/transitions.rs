//! The journal's transitions: each is one durable transaction, then the same change in memory.

use std::ops::ControlFlow;

use redb::{Durability, ReadableTable as _};

use super::{
    Journal, NOTES,
    db::{MANIFESTS, META, UNITS, encode, gone_key, gone_prefix, unit_key},
    error::JournalError,
    manifests,
    memory::Change,
    note::Note,
    record::{Committed, CompleteHow, State, UnitRecord},
    replica::LayerHead,
};
use crate::{
    catalog::{Commit, Record},
    ids::{Generation, Hash, Incarnation, RelPath, UnitId},
    manifest::Manifest,
};

impl Journal {
    /// The unit is about to be changed: afterwards it is running, durably, in the generation that is returned.
    ///
    /// Free when it is running already (one look-up under a read lock); that is every call but the first after a completion.
    pub fn touch(&self, unit: &UnitId) -> Result<Generation, JournalError> {
        match self.memory().records.get(unit) {
            None => return Ok(Generation::FIRST),
            Some(record) if record.state == State::Running => return Ok(record.generation),
            Some(_) => {}
        }
        let _writer = self.writer();
        // Somebody else may have been faster.
        let Some(record) = self.get(unit) else { return Ok(Generation::FIRST) };
        if record.state == State::Running {
            return Ok(record.generation);
        }
        let record = record.touched(self.clock.now_ms());
        let generation = record.generation;
        self.write(vec![changed(record)], None)?;
        Ok(generation)
    }

    /// A unit that is here and has no record gets one: running, in its first generation, and whole. Before the host hears of an adoption
    /// of it: what is known from the catalog alone would count as partial.
    pub fn begin(&self, unit: &UnitId) -> Result<(), JournalError> {
        let _writer = self.writer();
        if self.get(unit).is_some() {
            return Ok(());
        }
        let life = self.replica.incarnation(unit);
        let record = UnitRecord::running(unit.clone(), life, Generation::FIRST, self.clock.now_ms());
        self.write(vec![changed(record)], None)
    }

    /// These units are complete: all in one transaction, or none. Every byte and name of them is synced, and nobody can change them
    /// until this returns.
    pub fn complete(&self, units: &[(UnitId, CompleteHow)]) -> Result<(), JournalError> {
        let _writer = self.writer();
        let now_ms = self.clock.now_ms();
        let mut changes = Vec::with_capacity(units.len());
        for (unit, how) in units {
            let record = self.get(unit).unwrap_or_else(|| self.first_record(unit, now_ms));
            let completed = record.completed(*how, now_ms);
            let completed = completed.ok_or_else(|| illegal(unit, "complete", Some(record.state)))?;
            changes.push(changed(completed));
        }
        self.write(changes, None)
    }

    /// Keeps the manifest of a complete unit. [`JournalError::Stale`] if it was changed since `generation` was complete.
    pub fn seal(
        &self,
        unit: &UnitId,
        generation: Generation,
        manifest: &Manifest,
    ) -> Result<Hash, JournalError> {
        let encoding = manifest.encode();
        let (hash, packed) = (Hash::of(&encoding), manifests::pack(&encoding));
        let _writer = self.writer();
        let record = self.require(unit, "seal")?;
        let sealed = record.sealed(generation, hash, self.clock.now_ms());
        let sealed = sealed.ok_or_else(|| stale(&record, "sealing", generation))?;
        self.write(vec![changed(sealed)], Some((hash, packed)))?;
        Ok(hash)
    }

    /// A complete unit turned out to be what was committed last: it is committed again, in that generation. Otherwise as [`Journal::seal`].
    pub fn settle_unchanged(
        &self,
        unit: &UnitId,
        generation: Generation,
        manifest: Hash,
    ) -> Result<(), JournalError> {
        let _writer = self.writer();
        let record = self.require(unit, "settle")?;
        let settled = record.unchanged(generation, manifest, self.clock.now_ms());
        let settled = settled.ok_or_else(|| stale(&record, "settling", generation))?;
        let clears_notes = self.is_followed(unit);
        self.write(vec![Change { clears_notes, ..changed(settled) }], None)
    }

    /// The store has answered that it holds `generation` durably. If the unit has moved on since, only
    /// [`UnitRecord::committed`] follows. Doing it again does nothing.
    pub fn committed(
        &self,
        unit: &UnitId,
        generation: Generation,
        record: &Record,
    ) -> Result<(), JournalError> {
        let commit = self.check_record(unit, generation, record)?;
        let _writer = self.writer();
        let before = self.require(unit, "commit")?;
        let after = before.acknowledged(Committed::of(record, commit), self.clock.now_ms());
        if after == before {
            return Ok(());
        }
        // What was deleted before the manifest was made isn't in it; what was deleted since has opened the next generation. Until the
        // replica has the commit, too, the notes are what keeps deleted paths from showing.
        let is_followed = self.layer_of(&after).is_some_and(|layer| layer.generation >= generation);
        let clears_notes = after.state == State::Committed && is_followed;
        self.write(vec![Change { clears_notes, ..changed(after) }], None)
    }

    /// Forgets the notes of those of `units` whose last commit says the same and is in the replica.
    pub(super) fn forget_settled_notes(&self, units: Vec<UnitId>) -> Result<(), JournalError> {
        let _writer = self.writer();
        let settled = |unit: &UnitId| {
            let memory = self.memory();
            let record = memory.records.get(unit).filter(|_| memory.notes.contains_key(unit))?;
            matches!(record.state, State::Committed | State::Evicted).then(|| record.clone())
        };
        let records = units.iter().filter_map(settled).filter(|record| self.is_followed(&record.unit));
        let mut changes: Vec<Change> =
            records.map(|record| Change { clears_notes: true, ..changed(record) }).collect();
        changes.dedup_by(|a, b| a.unit == b.unit);
        if changes.is_empty() { Ok(()) } else { self.write(changes, None) }
    }

    /// The store doesn't have the unit's commit any more: it must be sent again. A partial layer is stranded then: what isn't in the spool shows as the
    /// commit said, and is sent again by its names alone.
    pub fn unsend(&self, unit: &UnitId) -> Result<(), JournalError> {
        let now_ms = self.clock.now_ms();
        self.step(unit, "send again", false, |record| Some(record.unsent(now_ms)))?;
        self.show_stranded(self.get(unit).filter(|record| record.stranded_ms.is_some()));
        Ok(())
    }

    /// The unit's files may be deleted from the spool. [`JournalError::Stale`] if it isn't committed any more.
    pub fn evict(&self, unit: &UnitId) -> Result<(), JournalError> {
        let _writer = self.writer();
        let record = self.require(unit, "evict")?;
        let evicted = record.evicted(self.clock.now_ms());
        let evicted = evicted.ok_or_else(|| stale(&record, "eviction", record.generation))?;
        self.replica.harden()?;
        self.write(vec![changed(evicted)], None)
    }

    /// Everything that the committed manifest names, but for what is gone, is in the spool again, synced.
    pub fn recalled(&self, unit: &UnitId) -> Result<(), JournalError> {
        self.step(unit, "recall", true, UnitRecord::recalled)
    }

    /// Nothing of a retired layer is in the spool any more: the path is the next life's, and the journal forgets this one. What the catalog says of the
    /// retirement is durable before, since nothing else here knows of it then.
    pub fn discharge(&self, unit: &UnitId) -> Result<(), JournalError> {
        let _writer = self.writer();
        let record = self.require(unit, "discharge")?;
        if record.state != State::Evicted || !self.is_retired(unit) {
            return Err(illegal(unit, "discharge", Some(record.state)));
        }
        self.replica.harden()?;
        self.write(vec![Change { unit: unit.clone(), record: None, clears_notes: true }], None)?;
        self.retired_mut().remove(unit);
        Ok(())
    }

    /// A running unit whose directory is gone, and that was never committed, leaves no trace.
    pub fn forget(&self, unit: &UnitId) -> Result<(), JournalError> {
        let _writer = self.writer();
        let Some(record) = self.get(unit) else { return Ok(()) };
        if record.state != State::Running || record.committed.is_some() {
            return Err(illegal(unit, "forget", Some(record.state)));
        }
        self.write(vec![Change { unit: unit.clone(), record: None, clears_notes: true }], None)
    }

    /// Notes that `path`, below the unit's root, was deleted, or is there again. In a layer that isn't partial there is nothing
    /// to note: what isn't in its spool isn't there.
    pub fn set_gone(&self, unit: &UnitId, path: &RelPath, is_gone: bool) -> Result<(), JournalError> {
        if !self.get(unit).is_some_and(|record| record.partial) {
            return Ok(());
        }
        self.note(unit, &[(path.clone(), is_gone.then_some(Note::Gone))])
    }

    /// Notes of paths below the unit's root, in one transaction. A unit that has nothing but a note gets its record by that.
    pub fn note(&self, unit: &UnitId, notes: &[(RelPath, Option<Note>)]) -> Result<(), JournalError> {
        let _writer = self.writer();
        let is_new = |(path, note): &&(RelPath, Option<Note>)| self.note_of(unit, path) != *note;
        let notes: Vec<_> = notes.iter().filter(is_new).collect();
        if notes.is_empty() {
            return Ok(());
        }
        let record = match self.get(unit) {
            Some(_) => None,
            None => Some(self.first_record(unit, self.clock.now_ms())),
        };
        self.db.write(Durability::Immediate, |txn| {
            let mut table = txn.open_table(NOTES)?;
            for (path, note) in &notes {
                let key = gone_key(unit, path);
                match note {
                    Some(note) => table.insert(&key[..], &note.encode()[..])?,
                    None => table.remove(&key[..])?,
                };
            }
            if let Some(record) = &record {
                txn.open_table(UNITS)?.insert(&unit_key(unit)[..], &encode(record)[..])?;
            }
            Ok(())
        })?;
        let mut memory = self.memory_mut();
        record.into_iter().for_each(|record| memory.apply(changed(record)));
        notes.into_iter().for_each(|(path, note)| memory.set_note(unit, path, *note));
        Ok(())
    }

    /// Notes why going on with a unit failed, for `explain`; in memory only.
    pub fn note_error(&self, unit: &UnitId, error: Option<String>) {
        if let Some(record) = self.memory_mut().records.get_mut(unit) {
            record.last_error = error;
        }
    }

    /// Gives own layers that are in the replica, but of which the journal knows nothing because it was lost, their records
    /// back: committed, and partial, so that nothing is taken for deleted. Says how many. Opening and following do it
    /// already; it is harmless at any time. Reads all of the replica.
    pub fn rebuild_from_replica(&self) -> Result<usize, JournalError> {
        let mut own = Vec::new();
        let _ = self.replica.visit(&RelPath::ROOT, &mut |unit, layers| {
            own.extend(layers.iter().any(|layer| layer.host == self.host).then_some(unit));
            ControlFlow::Continue(())
        });
        self.adopt(own)
    }

    /// The same at a start, only if there may be such layers: the journal is new, or a crash came between the two files.
    pub(super) fn catch_up_with_replica(&self) -> Result<(), JournalError> {
        let is_caught_up = self.db.get(META, b"caught_up")?.is_some();
        if is_caught_up && !self.replica.is_unadopted()? {
            return Ok(());
        }
        self.rebuild_from_replica()?;
        self.replica.adopted()?;
        if !is_caught_up {
            self.db.write(Durability::Immediate, |txn| {
                txn.open_table(META)?.insert(&b"caught_up"[..], &[][..])?;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The same for these units.
    pub(super) fn adopt(&self, units: Vec<UnitId>) -> Result<usize, JournalError> {
        if units.is_empty() {
            return Ok(0);
        }
        let _writer = self.writer();
        let now_ms = self.clock.now_ms();
        let mut changes: Vec<Change> =
            units.iter().filter_map(|unit| self.adopted_record(unit, now_ms)).map(changed).collect();
        changes.sort_by(|a, b| a.unit.cmp(&b.unit));
        changes.dedup_by(|a, b| a.unit == b.unit);
        let count = changes.len();
        if count > 0 {
            self.write(changes, None)?;
            tracing::warn!(count, "records of committed units were rebuilt from the catalog");
        }
        Ok(count)
    }

    /// The record that `unit` should have by the replica, if it hasn't.
    fn adopted_record(&self, unit: &UnitId, now_ms: u64) -> Option<UnitRecord> {
        let layer = self.replica.layer_of(self.host, unit)?;
        let Some(record) = self.get(unit) else {
            return Some(self.committed_record(unit, &layer, now_ms));
        };
        // Of another life than the one that shows now.
        if record.incarnation != self.replica.incarnation(unit) {
            return None;
        }
        // The store that had lost it is the old one again.
        let is_same = |c: Committed| c.generation == layer.generation && c.manifest == layer.manifest;
        if record.stranded_ms.is_some() && record.committed.is_some_and(is_same) {
            return Some(record.acknowledged(committed_of(&layer), now_ms));
        }
        let is_older = record.committed.is_none_or(|committed| committed.generation < layer.generation);
        if layer.adopted_by.is_some() && is_older && record.generation <= layer.generation {
            let is_the_same =
                record.manifest == Some(layer.manifest) && record.generation == layer.generation;
            return (!is_the_same).then(|| record.overtaken(committed_of(&layer), now_ms));
        }
        // A record that was begun before the host knew of its own past: the store would refuse its generation.
        let is_this_commit = record.generation == layer.generation && record.manifest == Some(layer.manifest);
        let is_behind =
            record.committed.is_none() && record.generation <= layer.generation && !is_this_commit;
        is_behind.then(|| self.committed_record(unit, &layer, now_ms).touched(now_ms))
    }

    /// The record of a unit that has none and is running.
    fn first_record(&self, unit: &UnitId, now_ms: u64) -> UnitRecord {
        match self.replica.layer_of(self.host, unit) {
            None => {
                let life = self.replica.incarnation(unit);
                UnitRecord::running(unit.clone(), life, Generation::FIRST, now_ms)
            }
            Some(layer) => self.committed_record(unit, &layer, now_ms).touched(now_ms),
        }
    }

    /// The record of an own layer that is known from the catalog alone.
    fn committed_record(&self, unit: &UnitId, layer: &LayerHead, now_ms: u64) -> UnitRecord {
        UnitRecord {
            state: State::Committed,
            manifest: Some(layer.manifest),
            committed: Some(committed_of(layer)),
            partial: true,
            lost: layer.lost,
            committed_ms: Some(now_ms),
            ..UnitRecord::running(unit.clone(), self.replica.incarnation(unit), layer.generation, now_ms)
        }
    }

    /// The record of what runs here on top of what this host had committed in a life that is back.
    pub(super) fn on_top(&self, unit: &UnitId, life: Incarnation, layer: &LayerHead) -> UnitRecord {
        let now_ms = self.clock.now_ms();
        UnitRecord { incarnation: life, ..self.committed_record(unit, layer, now_ms).touched(now_ms) }
    }

    /// A transition from the record that is there.
    fn step(
        &self,
        unit: &UnitId,
        wanted: &'static str,
        clears_notes: bool,
        next: impl FnOnce(&UnitRecord) -> Option<UnitRecord>,
    ) -> Result<(), JournalError> {
        let _writer = self.writer();
        let record = self.require(unit, wanted)?;
        let next = next(&record).ok_or_else(|| illegal(unit, wanted, Some(record.state)))?;
        self.write(vec![Change { clears_notes, ..changed(next) }], None)
    }

    fn require(&self, unit: &UnitId, wanted: &'static str) -> Result<UnitRecord, JournalError> {
        self.get(unit).ok_or_else(|| illegal(unit, wanted, None))
    }

    fn check_record<'a>(
        &self,
        unit: &UnitId,
        generation: Generation,
        record: &'a Record,
    ) -> Result<&'a Commit, JournalError> {
        let other = |what| JournalError::OtherRecord { unit: unit.clone(), seq: record.seq, what };
        let commit = record.commit().ok_or_else(|| other("kind"))?;
        let here = self.get(unit);
        let life = here.as_ref().map(|known| known.incarnation);
        let known = here.filter(|known| known.generation == generation).and_then(|r| r.manifest);
        let what = if commit.host != self.host {
            "host"
        } else if commit.unit != *unit {
            "unit"
        } else if life.is_some_and(|life| life != commit.incarnation) {
            "life"
        } else if commit.generation != generation {
            "generation"
        } else if known.is_some_and(|manifest| manifest != commit.manifest) {
            "manifest"
        } else {
            return Ok(commit);
        };
        Err(other(what))
    }

    /// Writes changes of records and a manifest durably, drops the manifests that nothing names any more, and then changes the
    /// memory. The caller holds the writer's lock.
    pub(super) fn write(
        &self,
        changes: Vec<Change>,
        manifest: Option<(Hash, Vec<u8>)>,
    ) -> Result<(), JournalError> {
        let unnamed = self.memory().unnamed_by(&changes);
        self.db.write(Durability::Immediate, |txn| {
            let mut manifests = txn.open_table(MANIFESTS)?;
            if let Some((hash, packed)) = &manifest {
                manifests.insert(&hash.0[..], &packed[..])?;
            }
            for hash in &unnamed {
                manifests.remove(&hash.0[..])?;
            }
            let mut units = txn.open_table(UNITS)?;
            let mut notes = txn.open_table(NOTES)?;
            for change in &changes {
                let key = unit_key(&change.unit);
                match &change.record {
                    Some(record) => units.insert(&key[..], &encode(record)[..])?,
                    None => units.remove(&key[..])?,
                };
                if change.clears_notes {
                    clear_notes(&mut notes, &change.unit)?;
                }
            }
            Ok(())
        })?;
        let mut memory = self.memory_mut();
        changes.into_iter().for_each(|change| memory.apply(change));
        Ok(())
    }
}

fn clear_notes(notes: &mut redb::Table<'_, &[u8], &[u8]>, unit: &UnitId) -> Result<(), redb::Error> {
    let prefix = gone_prefix(unit);
    let mut keys = Vec::new();
    for row in notes.range::<&[u8]>(&prefix[..]..)? {
        let key = row?.0.value().to_vec();
        if !key.starts_with(&prefix) {
            break;
        }
        keys.push(key);
    }
    for key in keys {
        notes.remove(&key[..])?;
    }
    Ok(())
}

fn changed(record: UnitRecord) -> Change {
    Change { unit: record.unit.clone(), record: Some(record), clears_notes: false }
}

pub(super) fn committed_of(layer: &LayerHead) -> Committed {
    let LayerHead { generation, manifest, time_ms, .. } = *layer;
    Committed { generation, manifest, seq: layer.seq(), time_ms }
}

fn illegal(unit: &UnitId, wanted: &'static str, state: Option<State>) -> JournalError {
    JournalError::Illegal { unit: unit.clone(), wanted, state }
}

fn stale(record: &UnitRecord, wanted: &'static str, asked: Generation) -> JournalError {
    let (unit, now, state) = (record.unit.clone(), record.generation, record.state);
    JournalError::Stale { unit, wanted, asked, now, state }
}
