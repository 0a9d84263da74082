//! The border between two lives of a unit, on this host.
//!
//! A retirement makes room for a new job of an old name. Everything that this host has of the unit by then belongs to the life that ends: a running
//! layer gets its record, which says so, and what is written later in a unit without one is the next life's. That border is passed once:
//! durably, before the catalog's record is taken in, so that who has to follow the catalog anew doesn't take a new job for an old one.
//!
//! A layer of an earlier life is *retired*. It goes on like any until it is committed (nothing is lost, and it doesn't show), is then freed, and then
//! forgotten ([`Journal::discharge`]); only then the path is free on this host.

use std::{collections::BTreeSet, sync::MutexGuard};

use redb::Durability;

use super::{
    Journal, PastLife, State,
    db::{META, UNITS, encode, unit_key},
    error::JournalError,
    memory::Change,
    record::UnitRecord,
    replica::LayerHead,
    transitions::committed_of,
};
use crate::{
    catalog::UnitLife,
    ids::{Generation, Incarnation, RelPath, Seq, StoreUuid, UnitId},
};

impl Journal {
    /// The unit's present life, as far as the catalog was followed.
    pub fn incarnation(&self, unit: &UnitId) -> Incarnation {
        self.replica.incarnation(unit)
    }

    /// The life that this host's layer of `unit` is of, or would be.
    pub fn own_incarnation(&self, unit: &UnitId) -> Incarnation {
        self.get(unit).map_or_else(|| self.replica.incarnation(unit), |record| record.incarnation)
    }

    /// The earlier lives of a unit, oldest first.
    pub fn past_lives(&self, unit: &UnitId) -> Vec<PastLife> {
        self.replica.past_lives(unit)
    }

    /// Units at and below `dir` that have earlier lives.
    pub fn retired_below(&self, dir: &RelPath) -> Vec<UnitId> {
        self.replica.retired_below(dir)
    }

    /// Some hundreds of units that have layers in their present life, with these, in the order of the tree, after `unit`.
    pub fn layers_after(&self, unit: Option<&UnitId>) -> Vec<(UnitId, Vec<LayerHead>)> {
        self.replica.after(unit)
    }

    /// Whether the own layer of `unit` is of an earlier life.
    pub fn is_retired(&self, unit: &UnitId) -> bool {
        self.retired_mut().contains(unit)
    }

    /// Own layers of earlier lives; of each directory what is in it before its loose files.
    pub fn retired(&self) -> Vec<UnitId> {
        let mut units: Vec<UnitId> = self.retired_mut().iter().cloned().collect();
        units.sort_by(|a, b| (b.root.depth(), &b.root).cmp(&(a.root.depth(), &a.root)));
        units
    }

    /// What the catalog has of the layer that a record is of.
    pub fn layer_of(&self, record: &UnitRecord) -> Option<LayerHead> {
        self.replica.layer_of_life(self.host, &record.unit, record.incarnation)
    }

    /// The last retirement whose border was passed here.
    pub fn border(&self, store: StoreUuid) -> Result<Seq, JournalError> {
        let Some(bytes) = self.db.get(META, b"retired")? else { return Ok(Seq::default()) };
        let (of, seq): (StoreUuid, Seq) = minicbor::decode(&bytes).map_err(|e| self.db.damaged(e))?;
        Ok(if of == store { seq } else { Seq::default() })
    }

    /// Passes the border of a retirement: of these units, which are here, those without a record get one in the life that ends. One transaction.
    pub fn pass_border(&self, store: StoreUuid, seq: Seq, here: &[UnitId]) -> Result<(), JournalError> {
        let _writer = self.writer();
        let now_ms = self.clock.now_ms();
        let mut records: Vec<UnitRecord> = Vec::new();
        for unit in here.iter().filter(|unit| self.get(unit).is_none()) {
            let life = self.replica.incarnation(unit);
            records.push(UnitRecord::running(unit.clone(), life, Generation::FIRST, now_ms));
        }
        self.db.write(Durability::Immediate, |txn| {
            let mut units = txn.open_table(UNITS)?;
            for record in &records {
                units.insert(&unit_key(&record.unit)[..], &encode(record)[..])?;
            }
            txn.open_table(META)?.insert(&b"retired"[..], &encode(&(store, seq))[..])?;
            Ok(())
        })?;
        let mut memory = self.memory_mut();
        for record in records {
            let unit = record.unit.clone();
            memory.apply(Change { unit, record: Some(record), clears_notes: false });
        }
        Ok(())
    }

    /// Lives of these units are the present ones again, by the record with this number. What of them is here goes on with them, durably, before the
    /// catalog's record is taken in: what runs in the life in between, of which nothing was committed, is from then on the next generation of
    /// what this host had committed in the life that is back, on top of it. `is_here` says whether anything of a unit is in the spool, of which this host had, or hadn't, a layer. Which have changed.
    pub fn bring_back(
        &self,
        store: StoreUuid,
        seq: Seq,
        lives: &[UnitLife],
        is_here: impl Fn(&UnitId, bool) -> bool,
    ) -> Result<Vec<UnitId>, JournalError> {
        // Who follows the catalog anew has a later life's files by now.
        let is_first = self.border(store)? < seq;
        let _writer = self.writer();
        let now_ms = self.clock.now_ms();
        let mut changes = Vec::new();
        for UnitLife { unit, incarnation } in lives {
            let record = self.get(unit);
            let between = incarnation.0 + 1..seq.0;
            let is_between = record.as_ref().is_some_and(|record| between.contains(&record.incarnation.0));
            let layer = self.replica.layer_of_life(self.host, unit, *incarnation);
            let is_unnoted = record.is_none() && is_first && is_here(unit, layer.is_some());
            if !is_between && !is_unnoted {
                continue;
            }
            let record = match (layer, record) {
                (Some(layer), _) => self.on_top(unit, *incarnation, &layer),
                (None, Some(record)) => UnitRecord { incarnation: *incarnation, ..record },
                (None, None) => UnitRecord::running(unit.clone(), *incarnation, Generation::FIRST, now_ms),
            };
            changes.push(Change { unit: unit.clone(), record: Some(record), clears_notes: false });
        }
        let changed = changes.iter().map(|change| change.unit.clone()).collect();
        if !changes.is_empty() {
            self.write(changes, None)?;
        }
        if is_first {
            self.db.write(Durability::Immediate, |txn| {
                txn.open_table(META)?.insert(&b"retired"[..], &encode(&(store, seq))[..])?;
                Ok(())
            })?;
        }
        Ok(changed)
    }

    /// What was committed of these lives is given up. An own layer of one that is away in part, and has more to be committed, is what is here: the rest can't be
    /// named any more. Durably, before the catalog's record is taken in. Which have changed.
    pub fn give_up(&self, lives: &[UnitLife]) -> Result<Vec<UnitId>, JournalError> {
        let _writer = self.writer();
        let now_ms = self.clock.now_ms();
        let cut = |life: &UnitLife| {
            let record = self.get(&life.unit)?;
            let is_cut = record.incarnation == life.incarnation
                && record.partial
                && !matches!(record.state, State::Committed | State::Evicted);
            let record = is_cut.then(|| UnitRecord { partial: false, ..record.again(now_ms) })?;
            Some(Change { unit: life.unit.clone(), record: Some(record), clears_notes: false })
        };
        let changes: Vec<Change> = lives.iter().filter_map(cut).collect();
        let changed = changes.iter().map(|change| change.unit.clone()).collect();
        if !changes.is_empty() {
            self.write(changes, None)?;
        }
        Ok(changed)
    }

    /// The store was restored from a backup, which doesn't know the life that this layer is of: it goes on in the one that the store knows, as the
    /// generation after what this host has committed of that. Whether that was so.
    pub fn take_back(&self, unit: &UnitId) -> Result<bool, JournalError> {
        let life = self.replica.incarnation(unit);
        let _writer = self.writer();
        let Some(record) = self.get(unit).filter(|record| record.incarnation > life) else {
            return Ok(false);
        };
        let record = UnitRecord { incarnation: life, ..record };
        let record = match self.replica.layer_of(self.host, unit) {
            Some(layer) => record.overtaken(committed_of(&layer), self.clock.now_ms()),
            None => record,
        };
        self.write(vec![Change { unit: unit.clone(), record: Some(record), clears_notes: false }], None)?;
        Ok(true)
    }

    /// Own layers of these units are of the present life again, if they are.
    pub(super) fn forgive(&self, lives: &[UnitLife]) {
        let is_present = |life: &UnitLife| {
            self.get(&life.unit).is_some_and(|record| record.incarnation == life.incarnation)
        };
        for life in lives.iter().filter(|life| is_present(life)) {
            self.retired_mut().remove(&life.unit);
        }
    }

    /// Notes which of these layers are of an earlier life.
    pub(super) fn find_retired(&self, records: impl IntoIterator<Item = UnitRecord>) {
        for record in records {
            if record.incarnation < self.replica.incarnation(&record.unit) {
                self.retired_mut().insert(record.unit);
            }
        }
    }

    pub(super) fn retired_mut(&self) -> MutexGuard<'_, BTreeSet<UnitId>> {
        self.retired.lock().expect("no code panics under this lock")
    }
}
