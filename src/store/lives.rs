//! The lives of units, as the catalog's records tell: which is the present one, which have ended, and of which the content was given up.
//!
//! In memory, by the first 16 bytes of a hash, about 100 bytes a unit and as many a life that has ended.

use std::collections::HashMap;

use super::layout::check16;
use crate::{
    catalog::{Record, RecordBody, UnitLife},
    ids::{Incarnation, Scope, Seq, UnitId},
};

type Key = [u8; 16];

/// Where a unit stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    pub incarnation: Incarnation,
    /// The last commit in it; 0 = none.
    pub last: Seq,
    /// The life that it took the place of; of a first one itself.
    pub before: Incarnation,
}

/// A life that has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The last commit in it, which may have come after its end; 0 = none.
    pub last: Seq,
    /// The life that it took the place of; of a first one itself.
    pub before: Incarnation,
    /// The record that ended it.
    pub by: Seq,
    /// The commits before this record are given up; 0 = none is.
    pub purged: Seq,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Lives {
    present: HashMap<Key, Life>,
    ended: HashMap<Key, Ended>,
}

impl Lives {
    /// What a record changes.
    pub fn take(&mut self, record: &Record) {
        match &record.body {
            RecordBody::Commit(commit) => {
                let life = self.present.entry(unit_key(&commit.unit)).or_default();
                if life.incarnation == commit.incarnation {
                    life.last = record.seq;
                } else if let Some(ended) = self.ended.get_mut(&life_key(&commit.unit, commit.incarnation)) {
                    ended.last = record.seq;
                }
            }
            RecordBody::Retire(_) | RecordBody::Prune(_) => {
                record.retired().iter().for_each(|unit| self.end(unit, Incarnation(record.seq.0)));
            }
            RecordBody::Reclaim(_) => {}
            RecordBody::Undelete(undelete) => undelete.lives.iter().for_each(|life| self.bring_back(life)),
            RecordBody::Purge(purge) => {
                for UnitLife { unit, incarnation } in &purge.lives {
                    let ended = self.ended.get_mut(&life_key(unit, *incarnation));
                    ended.into_iter().for_each(|ended| ended.purged = record.seq);
                }
            }
        }
    }

    fn end(&mut self, unit: &UnitId, next: Incarnation) {
        let life = self.present.entry(unit_key(unit)).or_default();
        // A record that names a unit twice ends one life of it.
        if life.incarnation == next {
            return;
        }
        let Life { incarnation, last, before } = *life;
        *life = Life { incarnation: next, last: Seq(0), before: incarnation };
        self.ended
            .insert(life_key(unit, incarnation), Ended { last, before, by: Seq(next.0), purged: Seq(0) });
    }

    /// The life in between was never used, and isn't known any more.
    fn bring_back(&mut self, life: &UnitLife) {
        let UnitLife { unit, incarnation } = life;
        if let Some(Ended { last, before, .. }) = self.ended.remove(&life_key(unit, *incarnation)) {
            self.present.insert(unit_key(unit), Life { incarnation: *incarnation, last, before });
        }
    }

    pub fn present(&self, unit: &UnitId) -> Life {
        self.present.get(&unit_key(unit)).copied().unwrap_or_default()
    }

    pub fn ended(&self, unit: &UnitId, incarnation: Incarnation) -> Option<Ended> {
        self.ended.get(&life_key(unit, incarnation)).copied()
    }

    /// Whether the unit has, or had, this life. One that was undone by bringing back the one before never was.
    pub fn has(&self, unit: &UnitId, incarnation: Incarnation) -> bool {
        incarnation == Incarnation::FIRST
            || self.present(unit).incarnation == incarnation
            || self.ended(unit, incarnation).is_some()
    }

    /// The life that the record which began `next` has ended.
    pub fn ended_by(&self, unit: &UnitId, next: Incarnation) -> Option<Incarnation> {
        let present = self.present(unit);
        match present.incarnation == next {
            true => Some(present.before).filter(|before| *before != next),
            false => self.ended(unit, next).map(|ended| ended.before),
        }
    }

    /// How many units it knows.
    pub fn units(&self) -> usize {
        self.present.len()
    }
}

/// A unit's name in 16 bytes.
pub(super) fn unit_key(unit: &UnitId) -> Key {
    check16(&[&[matches!(unit.scope, Scope::Loose) as u8], unit.root.as_bytes()])
}

fn life_key(unit: &UnitId, incarnation: Incarnation) -> Key {
    check16(&[
        &incarnation.0.to_le_bytes(),
        &[matches!(unit.scope, Scope::Loose) as u8],
        unit.root.as_bytes(),
    ])
}
