//! Who is connected, and what the catalog says of whom: the checks that keep one host from speaking for another.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::api::{StoreApi, StoreFault};
use crate::{
    catalog::{Commit, Record},
    ids::{HostUuid, Incarnation, RelPath, Scope, Seq, UnitId},
    journal::LayerHead,
    limits::{self, UNIT_ROOT_DEPTH},
};

/// Sessions that are open, by host name.
#[derive(Debug, Default)]
pub(super) struct LiveHosts(Arc<Mutex<HashMap<String, (HostUuid, usize)>>>);

/// One open session's place among them.
#[derive(Debug)]
pub(super) struct Present {
    hosts: Arc<Mutex<HashMap<String, (HostUuid, usize)>>>,
    name: String,
}

impl LiveHosts {
    /// Registers a session. One name can't have two live UUIDs; one UUID may have two sessions, since an old one may not have noticed
    /// yet that its connection is gone.
    pub(super) fn enter(&self, name: &str, host: HostUuid) -> Result<Present, HostUuid> {
        let mut hosts = lock(&self.0);
        let entry = hosts.entry(name.to_owned()).or_insert((host, 0));
        if entry.0 != host {
            return Err(entry.0);
        }
        entry.1 += 1;
        Ok(Present { hosts: Arc::clone(&self.0), name: name.to_owned() })
    }

    /// Whether a host has a session, under whatever name.
    pub(super) fn is_connected(&self, host: HostUuid) -> bool {
        lock(&self.0).values().any(|(uuid, _)| *uuid == host)
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut hosts = lock(&self.hosts);
        if let Some(entry) = hosts.get_mut(&self.name) {
            entry.1 -= 1;
            if entry.1 == 0 {
                hosts.remove(&self.name);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the catalog says of hosts and of the present lives of units, read on demand: sessions with every right that may use any name don't need it.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Read>);

#[derive(Debug, Default)]
struct Read {
    upto: Seq,
    names: HashMap<HostUuid, String>,
    units: BTreeMap<UnitId, Unit>,
    /// For each record from the first on: the commit before it to the same unit, 0 = none in this life.
    before: Vec<Seq>,
    /// The lives of units of which one has ended.
    lives: HashMap<UnitId, Incarnation>,
    /// Of each unit the life that has ended last, which may be undeleted.
    ended: HashMap<UnitId, (Incarnation, Unit)>,
}

/// Whose layers a unit has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    One(HostUuid),
    Several,
}

impl Owner {
    fn is_other_than(self, host: HostUuid) -> bool {
        self != Self::One(host)
    }
}

#[derive(Clone, Copy, Debug)]
struct Unit {
    owner: Owner,
    /// The last commit to it.
    last: Seq,
}

impl History {
    /// The name under which this host committed last. Blocks.
    pub(super) fn name_of(&self, store: &dyn StoreApi, host: HostUuid) -> Result<Option<String>, StoreFault> {
        Ok(self.read(store)?.names.get(&host).cloned())
    }

    /// Whether another host has a layer where `unit` has its paths. Blocks.
    pub(super) fn is_others(
        &self,
        store: &dyn StoreApi,
        host: HostUuid,
        unit: &UnitId,
    ) -> Result<bool, StoreFault> {
        let read = self.read(store)?;
        let others = |unit: UnitId| read.units.get(&unit).is_some_and(|unit| unit.owner.is_other_than(host));
        Ok(others(UnitId::loose(unit.root.clone()))
            || (0..=unit.root.depth()).any(|depth| others(UnitId::tree(unit.root.first(depth))))
            || unit.scope == Scope::Tree
                && read.below(&unit.root).any(|(_, below)| below.owner.is_other_than(host)))
    }

    /// Whether a commit to this life of a unit shows. Blocks.
    pub(super) fn is_present(
        &self,
        store: &dyn StoreApi,
        unit: &UnitId,
        life: Incarnation,
    ) -> Result<bool, StoreFault> {
        Ok(self.read(store)?.life(unit) == life)
    }

    /// Units in which another host than `host` has a layer that can have something below one of `paths`; at most `max` of them. Blocks.
    pub(super) fn others_below<'p>(
        &self,
        store: &dyn StoreApi,
        host: HostUuid,
        paths: impl Iterator<Item = &'p RelPath>,
        max: usize,
    ) -> Result<BTreeSet<UnitId>, StoreFault> {
        let read = self.read(store)?;
        // What is directly in a loose unit's root is below no path but the root and those above it.
        let is_wanted = |id: &UnitId, unit: &Unit, at: &RelPath| {
            unit.owner.is_other_than(host) && (id.scope == Scope::Tree || id.root.is_below(at))
        };
        Ok(read.units_along(paths, is_wanted, max))
    }

    /// Units that have anything at, above or below one of `paths`, at most `max` of them. Blocks.
    pub(super) fn units_along<'p>(
        &self,
        store: &dyn StoreApi,
        paths: impl Iterator<Item = &'p RelPath>,
        max: usize,
    ) -> Result<BTreeSet<UnitId>, StoreFault> {
        Ok(self.read(store)?.units_along(paths, |_, _, _| true, max))
    }

    /// The layers of a unit's present life. Blocks.
    pub(super) fn layers(&self, store: &dyn StoreApi, unit: &UnitId) -> Result<Vec<LayerHead>, StoreFault> {
        let mut numbers = self.read(store)?.commits(unit);
        numbers.reverse();
        let mut layers: Vec<LayerHead> = Vec::new();
        for seq in numbers {
            let lost = || StoreFault::Broken(format!("the catalog has no record {seq}"));
            take(&mut layers, &store.record(seq)?.ok_or_else(lost)?);
        }
        Ok(layers)
    }

    fn read(&self, store: &dyn StoreApi) -> Result<MutexGuard<'_, Read>, StoreFault> {
        let mut read = lock(&self.0);
        while read.upto < store.head().seq {
            let records = store.records_after(read.upto, limits::RECORDS_PER_PUSH)?;
            if records.is_empty() {
                return Err(StoreFault::Broken(format!("the catalog ends at {}", read.upto)));
            }
            records.iter().for_each(|record| read.take(record));
        }
        Ok(read)
    }
}

impl Read {
    fn take(&mut self, record: &Record) {
        self.upto = record.seq;
        // What has ended is in nobody's way.
        for unit in record.retired() {
            let life = self.life(unit);
            match self.units.remove(unit) {
                Some(ended) => _ = self.ended.insert(unit.clone(), (life, ended)),
                None => _ = self.ended.remove(unit),
            }
            self.lives.insert(unit.clone(), Incarnation(record.seq.0));
        }
        for life in record.undeleted() {
            self.lives.insert(life.unit.clone(), life.incarnation);
            if let Some((_, unit)) = self.ended.remove(&life.unit) {
                self.units.insert(life.unit.clone(), unit);
            }
        }
        for life in record.purged() {
            if self.ended.get(&life.unit).is_some_and(|(ended, _)| *ended == life.incarnation) {
                self.ended.remove(&life.unit);
            }
        }
        let mut before = Seq::default();
        if let Some(commit) = record.commit() {
            self.names.insert(commit.host, commit.host_name.clone());
            if let Some(unit) = self.unit_of(commit) {
                before = std::mem::replace(&mut unit.last, record.seq);
                if unit.owner.is_other_than(commit.host) {
                    unit.owner = Owner::Several;
                }
            }
        }
        self.before.push(before);
    }

    /// The unit in the life that a commit is of, if that may show.
    fn unit_of(&mut self, commit: &Commit) -> Option<&mut Unit> {
        if self.life(&commit.unit) == commit.incarnation {
            let new = Unit { owner: Owner::One(commit.host), last: Seq::default() };
            return Some(self.units.entry(commit.unit.clone()).or_insert(new));
        }
        let (ended, unit) = self.ended.get_mut(&commit.unit)?;
        (*ended == commit.incarnation).then_some(unit)
    }

    fn life(&self, unit: &UnitId) -> Incarnation {
        self.lives.get(unit).copied().unwrap_or(Incarnation::FIRST)
    }

    /// The numbers of a unit's commits, the last first.
    fn commits(&self, unit: &UnitId) -> Vec<Seq> {
        let last = self.units.get(unit).map(|unit| unit.last);
        let before = |seq: &Seq| Some(self.before[seq.0 as usize - 1]).filter(|seq| *seq > Seq::default());
        std::iter::successors(last, before).collect()
    }

    fn units_along<'p>(
        &self,
        paths: impl Iterator<Item = &'p RelPath>,
        is_wanted: impl Fn(&UnitId, &Unit, &RelPath) -> bool,
        max: usize,
    ) -> BTreeSet<UnitId> {
        let ends: BTreeSet<RelPath> = paths.map(|path| path.first(UNIT_ROOT_DEPTH)).collect();
        let mut found = BTreeSet::new();
        for end in &ends {
            let roots = (1..=end.depth()).map(|depth| end.first(depth));
            let ids = roots.flat_map(|root| [UnitId::loose(root.clone()), UnitId::tree(root)]);
            let all = ids.filter_map(|id| self.units.get_key_value(&id)).chain(self.below(end));
            let wanted = all.filter(|(id, unit)| is_wanted(id, unit, end)).map(|(id, _)| id.clone());
            found.extend(wanted.take(max));
            if found.len() >= max {
                break;
            }
        }
        found
    }

    /// Units in directories below `root`: their paths begin with `root/`, and lie together.
    fn below<'a>(&'a self, root: &'a RelPath) -> impl Iterator<Item = (&'a UnitId, &'a Unit)> + 'a {
        let from = Bound::Excluded(UnitId::loose(root.clone()));
        self.units
            .range((from, Bound::Unbounded))
            .take_while(|(unit, _)| unit.root.as_bytes().starts_with(root.as_bytes()))
            .filter(|(unit, _)| unit.root.is_below(root))
    }
}

/// Adds a commit to its host's layer among a unit's.
fn take(layers: &mut Vec<LayerHead>, record: &Record) {
    let Some(commit) = record.commit() else { return };
    let before = layers.iter().position(|layer| layer.host == commit.host);
    let mut commits = before.map_or_else(Vec::new, |at| layers.remove(at).commits);
    commits.push((commit.generation, record.seq));
    layers.push(LayerHead {
        host: commit.host,
        host_name: commit.host_name.clone(),
        commits,
        manifest: commit.manifest,
        generation: commit.generation,
        time_ms: record.time_ms,
        bytes: commit.bytes,
        entries: commit.entries,
        lost: commit.lost,
        adopted_by: commit.adopted_by.clone(),
    });
}
