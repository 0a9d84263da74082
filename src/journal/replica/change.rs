//! What some records of the catalog change in the replica.

use std::collections::BTreeMap;

use redb::{ReadableTable as _, WriteTransaction};

use super::{
    super::{
        db::{META, UNITS, encode, unit_key},
        error::ReplicaError,
    },
    HOSTS,
    near::Place,
    row::{Hosts, Layer},
};
use crate::{
    catalog::{Head, Record},
    ids::StoreUuid,
};

/// All of them at once.
#[derive(Debug)]
pub(super) struct Change {
    pub head: Head,
    pub hosts: Hosts,
    /// Where rows change.
    pub places: Vec<Place>,
    units: BTreeMap<Vec<u8>, Vec<Layer>>,
}

impl Change {
    /// What `records` make of the rows that are there, which `row` tells. Those up to `head` are passed over.
    pub fn of(
        head: Head,
        hosts: Hosts,
        records: &[Record],
        row: impl Fn(&[u8]) -> Result<Vec<Layer>, ReplicaError>,
    ) -> Result<Self, ReplicaError> {
        let mut change = Self { head, hosts, places: Vec::new(), units: BTreeMap::new() };
        for record in records.iter().filter(|record| record.seq > head.seq) {
            let gap = ReplicaError::Gap { have: change.head.seq, got: record.seq };
            change.head = change.head.follow(record).ok_or(gap)?;
            let commit = record.commit();
            let host = change.hosts.number(commit.host, commit.host_name.clone());
            let key = unit_key(&commit.unit);
            if !change.units.contains_key(&key) {
                change.units.insert(key.clone(), row(&key)?);
                change.places.extend(Place::of(&commit.unit.root));
            }
            take(change.units.get_mut(&key).expect("it was put there above"), host, record)?;
        }
        Ok(change)
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
        for (key, layers) in &self.units {
            units.insert(&key[..], &encode(layers)[..])?;
        }
        txn.open_table(META)?.insert(&b"head"[..], &encode(&(store, self.head))[..])?;
        Ok(())
    }
}

/// Adds a commit to its host's layer among a unit's.
fn take(layers: &mut Vec<Layer>, host: u32, record: &Record) -> Result<(), ReplicaError> {
    let commit = record.commit();
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
