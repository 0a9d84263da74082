//! Who is connected, and what the catalog says of whom: the checks that keep one host from speaking for another.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::api::{StoreApi, StoreFault};
use crate::{
    ids::{HostUuid, RelPath, Scope, Seq, UnitId},
    limits,
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

/// What the catalog says of hosts, read on demand: only pinned sessions and those without the right `overlay` need it.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Read>);

#[derive(Debug, Default)]
struct Read {
    upto: Seq,
    names: HashMap<HostUuid, String>,
    owners: BTreeMap<UnitId, Owner>,
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
        let others = |unit: UnitId| read.owners.get(&unit).is_some_and(|owner| owner.is_other_than(host));
        Ok(others(UnitId::loose(unit.root.clone()))
            || (0..=unit.root.depth()).any(|depth| others(UnitId::tree(unit.root.first(depth))))
            || unit.scope == Scope::Tree && read.below(&unit.root).any(|owner| owner.is_other_than(host)))
    }

    fn read(&self, store: &dyn StoreApi) -> Result<MutexGuard<'_, Read>, StoreFault> {
        let mut read = lock(&self.0);
        while read.upto < store.head().seq {
            let records = store.records_after(read.upto, limits::RECORDS_PER_PUSH)?;
            if records.is_empty() {
                return Err(StoreFault::Broken(format!("the catalog ends at {}", read.upto)));
            }
            for record in &records {
                read.upto = record.seq;
                // What was retired is in nobody's way.
                record.retired().iter().for_each(|unit| _ = read.owners.remove(unit));
                let Some(commit) = record.commit() else { continue };
                read.names.insert(commit.host, commit.host_name.clone());
                let owner = read.owners.entry(commit.unit.clone()).or_insert(Owner::One(commit.host));
                if owner.is_other_than(commit.host) {
                    *owner = Owner::Several;
                }
            }
        }
        Ok(read)
    }
}

impl Read {
    /// Units in directories below `root`: their paths begin with `root/`, and lie together.
    fn below<'a>(&'a self, root: &'a RelPath) -> impl Iterator<Item = Owner> + 'a {
        let from = Bound::Excluded(UnitId::loose(root.clone()));
        self.owners
            .range((from, Bound::Unbounded))
            .take_while(|(unit, _)| unit.root.as_bytes().starts_with(root.as_bytes()))
            .filter(|(unit, _)| unit.root.is_below(root))
            .map(|(_, owner)| *owner)
    }
}
