//! Pruning, undeleting and purging: what retention enters in the catalog, each one record, whole and durable or not there.
//!
//! A prune ends lives of units as a retirement does ([`super::retire`]); an undelete takes that back while nothing has come after; a purge says
//! that what was pruned is given up, and only then anything of it may be reclaimed.

use super::{
    Store, StoreError,
    commit::{Request, check_name},
    lives::{Ended, Life},
    retire::check_list,
};
use crate::{
    catalog::{Commit, Prune, Purge, Record, RecordBody, Undelete, UnitLife},
    ids::{Incarnation, Seq, UnitId},
};

/// Units to be pruned, each with the last commit that whoever asks has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPrune {
    /// Who asks.
    pub by: String,
    /// By which rule.
    pub rule: String,
    pub units: Vec<(UnitId, Seq)>,
}

/// Lives that are to be the present ones again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewUndelete {
    pub by: String,
    pub lives: Vec<UnitLife>,
}

/// Lives that have ended and are to be given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPurge {
    pub by: String,
    pub lives: Vec<UnitLife>,
}

/// The bodies of the records.
pub(super) fn pruned(wanted: &NewPrune) -> RecordBody {
    let NewPrune { by, rule, units } = wanted.clone();
    RecordBody::Prune(Prune { by, rule, units: units.into_iter().map(|(unit, _)| unit).collect() })
}

pub(super) fn undeleted(wanted: &NewUndelete) -> RecordBody {
    let NewUndelete { by, lives } = wanted.clone();
    RecordBody::Undelete(Undelete { by, lives })
}

pub(super) fn purged(wanted: &NewPurge) -> RecordBody {
    let NewPurge { by, lives } = wanted.clone();
    RecordBody::Purge(Purge { by, lives })
}

impl Store {
    /// Ends the units' present life: of all of them, or of none. Durable when this returns. Blocks while it syncs.
    pub fn prune(&self, wanted: NewPrune) -> Result<Record, StoreError> {
        check_name(&wanted.by).and_then(|()| check_name(&wanted.rule))?;
        check_list(wanted.units.iter().map(|(unit, _)| unit))?;
        self.enter(Request::Prune(wanted))
    }

    /// Brings lives back that nothing has come after: all of them, or none. Durable when this returns. Blocks while it syncs.
    pub fn undelete(&self, wanted: NewUndelete) -> Result<Record, StoreError> {
        check_name(&wanted.by)?;
        check_list(wanted.lives.iter().map(|life| &life.unit))?;
        self.enter(Request::Undelete(wanted))
    }

    /// Gives up lives that were pruned: all of them, or none. Durable when this returns: before that, nothing of them may be reclaimed. That their
    /// grace is over is the caller's to know. Blocks while it syncs.
    pub fn purge(&self, wanted: NewPurge) -> Result<Record, StoreError> {
        check_name(&wanted.by)?;
        check_list(wanted.lives.iter().map(|life| &life.unit))?;
        self.enter(Request::Purge(wanted))
    }

    /// Where a unit stands.
    pub fn life(&self, unit: &UnitId) -> Life {
        self.catalog.life(unit)
    }

    /// One of its lives that have ended.
    pub fn ended(&self, unit: &UnitId, incarnation: Incarnation) -> Option<Ended> {
        self.catalog.ended(unit, incarnation)
    }

    /// The life that the record with this number has ended, unless that was undone.
    pub fn ended_by(&self, unit: &UnitId, seq: Seq) -> Option<Incarnation> {
        self.catalog.ended_by(unit, Incarnation(seq.0))
    }

    /// The number of one of a unit's lives, for people: the first is 1.
    pub fn life_number(&self, unit: &UnitId, incarnation: Incarnation) -> usize {
        let present = self.catalog.life(unit);
        let before = |life: &Incarnation| match *life {
            Incarnation::FIRST => None,
            life if life == present.incarnation => Some(present.before),
            life => self.catalog.ended(unit, life).map(|ended| ended.before),
        };
        std::iter::successors(Some(incarnation), before).count()
    }

    /// Whether a commit with this number is the newest of its layer, in its unit's present life: so that it shows.
    pub fn shows(&self, seq: Seq, commit: &Commit) -> bool {
        self.catalog.shows(seq, commit)
    }

    /// How many units it knows.
    pub fn units(&self) -> usize {
        self.catalog.units()
    }

    /// Its time, by which ages count; ms since the epoch.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Enters a record that isn't a host's.
    pub(super) fn enter(&self, request: Request) -> Result<Record, StoreError> {
        self.healthy()?;
        let record = self.queue.take_part(request, |batch| self.run_batch(batch))?;
        Ok(record.expect("what the store enters by itself is answered with a record"))
    }

    /// Each of these lives was ended last of its unit's, isn't given up, and nothing has come after it; `records` come before in the batch.
    pub(super) fn may_undelete(&self, lives: &[UnitLife], records: &[Record]) -> Result<(), StoreError> {
        let shown = self.slots().all();
        for wanted @ UnitLife { unit, .. } in lives {
            let why = match self.not_undeleted(wanted) {
                Some(why) => why,
                None if records.iter().any(|record| record.names(unit)) => {
                    "it has just changed; try again".to_owned()
                }
                None => match shown.iter().find(|snapshot| snapshot.unit == *unit) {
                    Some(running) => format!("a later one is running on {}", running.host_name),
                    None => continue,
                },
            };
            return Err(StoreError::NotUndeleted { unit: unit.clone(), why });
        }
        Ok(())
    }

    /// Why the catalog doesn't let a life be brought back.
    pub(crate) fn not_undeleted(&self, wanted: &UnitLife) -> Option<String> {
        let UnitLife { unit, incarnation } = wanted;
        let life = self.catalog.life(unit);
        if life.incarnation == *incarnation {
            return Some("it shows".to_owned());
        }
        let Some(ended) = self.catalog.ended(unit, *incarnation) else {
            return Some("it has no such incarnation".to_owned());
        };
        if ended.purged > Seq(0) {
            return Some(format!("it was purged as {}: its time of grace is over", ended.purged));
        }
        if life.before != *incarnation || life.last > Seq(0) {
            return Some("a later one of this name is committed".to_owned());
        }
        None
    }

    /// Each of these lives was ended by a prune; `records` come before in the batch.
    pub(super) fn may_purge(&self, lives: &[UnitLife], records: &[Record]) -> Result<(), StoreError> {
        for UnitLife { unit, incarnation } in lives {
            let is_back = |record: &Record| record.undeleted().iter().any(|life| life.unit == *unit);
            let ended = self.catalog.ended(unit, *incarnation).filter(|_| !records.iter().any(is_back));
            let by = ended.map(|ended| self.catalog.record(ended.by)).transpose()?.flatten();
            if !by.is_some_and(|by| matches!(by.body, RecordBody::Prune(_))) {
                let why = "it wasn't pruned, or was undeleted".to_owned();
                return Err(StoreError::NotPurged { unit: unit.clone(), why });
            }
        }
        Ok(())
    }
}
