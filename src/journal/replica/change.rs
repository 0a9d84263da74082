//! What some records of the catalog change in the replica.

use std::collections::BTreeMap;

use redb::{ReadableTable as _, WriteTransaction};

use super::{
    super::{
        db::{Db, META, UNITS, encode, unit_key},
        error::{JournalError, ReplicaError},
    },
    HOSTS,
    near::Place,
    past::{self, Past, RETIRED, past_key},
    row::{self, Hosts, Layer},
};
use crate::{
    catalog::{Commit, Head, Record, RecordBody, UnitLife},
    ids::{Incarnation, Seq, StoreUuid, UnitId},
};

/// All of them at once.
#[derive(Debug)]
pub(super) struct Change {
    pub head: Head,
    pub hosts: Hosts,
    /// Where rows change.
    pub places: Vec<Place>,
    units: BTreeMap<Vec<u8>, Unit>,
    /// Nothing where one is the present one again.
    pasts: BTreeMap<Vec<u8>, Option<Past>>,
}

/// Who ended lives, and by which rule.
struct Ending<'a> {
    on: &'a str,
    rule: Option<&'a str>,
}

/// A unit in its present life.
#[derive(Debug)]
struct Unit {
    incarnation: Incarnation,
    layers: Vec<Layer>,
}

impl Change {
    /// What `records` make of the rows that are in `db`. Those up to `head` are passed over.
    pub fn of(head: Head, hosts: Hosts, records: &[Record], db: &Db) -> Result<Self, ReplicaError> {
        let (units, pasts) = Default::default();
        let mut change = Self { head, hosts, places: Vec::new(), units, pasts };
        for record in records.iter().filter(|record| record.seq > head.seq) {
            let gap = ReplicaError::Gap { have: change.head.seq, got: record.seq };
            change.head = change.head.follow(record).ok_or(gap)?;
            match &record.body {
                RecordBody::Commit(commit) => change.commit(record, commit, db)?,
                RecordBody::Retire(retirement) => {
                    let ending = Ending { on: &retirement.host_name, rule: None };
                    change.end(record, &ending, &retirement.units, db)?;
                }
                RecordBody::Prune(prune) => {
                    let ending = Ending { on: &prune.by, rule: Some(&prune.rule) };
                    change.end(record, &ending, &prune.units, db)?;
                }
                RecordBody::Undelete(undelete) => {
                    undelete.lives.iter().try_for_each(|life| change.bring_back(record, life, db))?;
                }
                RecordBody::Purge(purge) => {
                    for life in &purge.lives {
                        change.past(record, life, db)?.purged = Some(record.seq);
                    }
                }
                // What it took from the store nobody here knows of.
                RecordBody::Reclaim(_) => {}
            }
        }
        Ok(change)
    }

    fn commit(&mut self, record: &Record, commit: &Commit, db: &Db) -> Result<(), ReplicaError> {
        let host = self.hosts.number(commit.host, commit.host_name.clone());
        let unit = self.unit(&commit.unit, db)?;
        if commit.incarnation == unit.incarnation {
            return take(&mut unit.layers, host, record, commit);
        }
        // Of a host that was away when it ended.
        let life = UnitLife { unit: commit.unit.clone(), incarnation: commit.incarnation };
        take(&mut self.past(record, &life, db)?.layers, host, record, commit)
    }

    /// A life that has ended.
    fn past(&mut self, record: &Record, life: &UnitLife, db: &Db) -> Result<&mut Past, ReplicaError> {
        let key = past_key(&unit_key(&life.unit), life.incarnation);
        if !self.pasts.contains_key(&key) {
            let row = db.get(RETIRED, &key)?;
            let past = row.map(|row| past::parse(&row)).transpose().map_err(|why| db.damaged(why))?;
            self.pasts.insert(key.clone(), past);
        }
        let unknown = || ReplicaError::Incarnation { seq: record.seq, unit: life.unit.clone() };
        self.pasts.get_mut(&key).and_then(Option::as_mut).ok_or_else(unknown)
    }

    fn end(
        &mut self,
        record: &Record,
        ending: &Ending<'_>,
        units: &[UnitId],
        db: &Db,
    ) -> Result<(), ReplicaError> {
        for id in units {
            let unit = self.unit(id, db)?;
            let next = Incarnation(record.seq.0);
            let ended = std::mem::replace(unit, Unit { incarnation: next, layers: Vec::new() });
            let past = Past {
                layers: ended.layers,
                closed_by: Seq(record.seq.0),
                closed_ms: record.time_ms,
                closed_on: ending.on.to_owned(),
                rule: ending.rule.map(str::to_owned),
                purged: None,
            };
            self.pasts.insert(past_key(&unit_key(id), ended.incarnation), Some(past));
        }
        Ok(())
    }

    /// The unit's last life that has ended is the present one again; nothing was committed in the one that began then.
    fn bring_back(&mut self, record: &Record, life: &UnitLife, db: &Db) -> Result<(), ReplicaError> {
        let UnitLife { unit, incarnation } = life;
        let layers = std::mem::take(&mut self.past(record, life, db)?.layers);
        self.pasts.insert(past_key(&unit_key(unit), *incarnation), None);
        *self.unit(unit, db)? = Unit { incarnation: *incarnation, layers };
        Ok(())
    }

    fn unit(&mut self, id: &UnitId, db: &Db) -> Result<&mut Unit, JournalError> {
        let key = unit_key(id);
        if !self.units.contains_key(&key) {
            let row = db.get(UNITS, &key)?;
            let layers = row.map_or(Ok(Vec::new()), |row| row::parse(&row)).map_err(|why| db.damaged(why))?;
            let incarnation = past::present(db, &key)?;
            self.units.insert(key.clone(), Unit { incarnation, layers });
            self.places.extend(Place::of(&id.root));
        }
        Ok(self.units.get_mut(&key).expect("it was put there above"))
    }

    /// Writes it.
    pub fn write(&self, store: StoreUuid, txn: &WriteTransaction) -> Result<(), redb::Error> {
        let mut hosts = txn.open_table(HOSTS)?;
        for (number, host) in (0u32..).zip(&self.hosts.known) {
            let (key, value) = (number.to_be_bytes(), encode(host));
            if hosts.get(&key[..])?.is_none_or(|have| have.value() != &value[..]) {
                hosts.insert(&key[..], &value[..])?;
            }
        }
        let mut units = txn.open_table(UNITS)?;
        for (key, unit) in &self.units {
            match unit.layers.is_empty() {
                true => units.remove(&key[..])?,
                false => units.insert(&key[..], &encode(&unit.layers)[..])?,
            };
        }
        let mut retired = txn.open_table(RETIRED)?;
        for (key, past) in &self.pasts {
            match past {
                Some(past) => retired.insert(&key[..], &encode(past)[..])?,
                None => retired.remove(&key[..])?,
            };
        }
        txn.open_table(META)?.insert(&b"head"[..], &encode(&(store, self.head))[..])?;
        Ok(())
    }
}

/// Adds a commit to its host's layer among a unit's.
fn take(layers: &mut Vec<Layer>, host: u32, record: &Record, commit: &Commit) -> Result<(), ReplicaError> {
    let at = layers.iter().position(|layer| layer.host == host);
    let mut commits = at.map_or_else(Vec::new, |at| layers[at].commits.clone());
    if let Some((have, _)) = commits.last().filter(|(have, _)| *have >= commit.generation) {
        return Err(ReplicaError::Generation {
            seq: record.seq,
            unit: commit.unit.clone(),
            have: *have,
            got: commit.generation,
        });
    }
    commits.push((commit.generation, record.seq));
    let layer = Layer {
        host,
        manifest: commit.manifest,
        time_ms: record.time_ms,
        bytes: commit.bytes,
        entries: commit.entries,
        lost: commit.lost,
        commits,
        adopted_by: commit.adopted_by.clone(),
    };
    match at {
        Some(at) => layers[at] = layer,
        None => layers.push(layer),
    }
    Ok(())
}
