//! Earlier lives of units: what was committed of them before they were retired. It doesn't show, and is still in the store.
//!
//! A row is one life that has ended: `unit`'s key, then 8 bytes of the life's number. Its value says by which record it ended, which is the
//! number of the next life: so a unit's last row says which life is the present one.

use minicbor::{Decode, Encode};
use redb::TableDefinition;

use super::{
    super::{
        db::{Bytes, Db, dir_key, unit_key, unit_of_key},
        error::JournalError,
    },
    Replica,
    row::{Layer, LayerHead},
};
use crate::ids::{HostUuid, Incarnation, RelPath, Seq, UnitId};

/// Lives that have ended.
pub(super) const RETIRED: Bytes = TableDefinition::new("retired");

/// A life that has ended, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Past {
    #[n(0)]
    pub layers: Vec<Layer>,
    /// The record that ended it.
    #[n(1)]
    pub closed_by: Seq,
    /// The store's time then.
    #[n(2)]
    pub closed_ms: u64,
    /// The host, or of a prune the user, that asked for it.
    #[n(3)]
    pub closed_on: String,
    /// The rule by which it was pruned; nothing if it was retired.
    #[n(4)]
    pub rule: Option<String>,
    /// The commits before this record are given up.
    #[n(5)]
    pub purged: Option<Seq>,
}

/// The same, as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastLife {
    pub incarnation: Incarnation,
    /// All hosts' layers as they were, or are by what came later.
    pub layers: Vec<LayerHead>,
    /// The record that ended it.
    pub closed_by: Seq,
    /// The store's time then, ms since the epoch.
    pub closed_ms: u64,
    /// The host, or of a prune the user, that asked for it.
    pub closed_on: String,
    /// The rule by which it was pruned; nothing if it was retired.
    pub rule: Option<String>,
    /// The commits before this record are given up.
    pub purged: Option<Seq>,
}

impl PastLife {
    /// Whether a layer of it is given up.
    pub fn is_given_up(&self, layer: &LayerHead) -> bool {
        self.purged.is_some_and(|purged| layer.seq() < purged)
    }
}

/// The key of a life's row.
pub(super) fn past_key(unit: &[u8], incarnation: Incarnation) -> Vec<u8> {
    [unit, &incarnation.0.to_be_bytes()].concat()
}

fn split(key: &[u8]) -> Option<(&[u8], Incarnation)> {
    let (unit, life) = key.split_last_chunk::<8>()?;
    Some((unit, Incarnation(u64::from_be_bytes(*life))))
}

/// A stored life, or what is wrong with it.
pub fn parse(value: &[u8]) -> Result<Past, String> {
    minicbor::decode(value).map_err(|e| e.to_string())
}

/// The present life of the unit with this key.
pub(super) fn present(db: &Db, unit: &[u8]) -> Result<Incarnation, JournalError> {
    let last = db.read(|txn| {
        let table = txn.open_table(RETIRED)?;
        let (from, to) = (past_key(unit, Incarnation::FIRST), past_key(unit, Incarnation(u64::MAX)));
        for row in table.range::<&[u8]>(&from[..]..=&to[..])?.rev() {
            let (key, value) = row?;
            // A longer key between them is another unit's.
            if key.value().len() == from.len() {
                return Ok(Some(value.value().to_vec()));
            }
        }
        Ok(None)
    })?;
    match last {
        None => Ok(Incarnation::FIRST),
        Some(row) => Ok(Incarnation(parse(&row).map_err(|why| db.damaged(why))?.closed_by.0)),
    }
}

impl Replica {
    pub fn incarnation(&self, unit: &UnitId) -> Incarnation {
        present(&self.db, &unit_key(unit)).unwrap_or_else(|e| self.lost(&e.to_string()))
    }

    pub fn past_lives(&self, unit: &UnitId) -> Vec<PastLife> {
        let key = unit_key(unit);
        let rows = self.past_rows(&key);
        let own = rows.into_iter().filter(|(row, _)| split(row).is_some_and(|(unit, _)| unit == key));
        own.map(|(row, past)| self.past_life(&row, past)).collect()
    }

    pub fn retired_below(&self, dir: &RelPath) -> Vec<UnitId> {
        let rows = self.past_rows(&dir_key(dir));
        let units = rows.iter().filter_map(|(row, _)| unit_of_key(split(row)?.0));
        let mut units: Vec<UnitId> = units.collect();
        units.dedup();
        units
    }

    /// A host's layer in one of a unit's lives.
    pub fn layer_of_life(
        &self,
        host: HostUuid,
        unit: &UnitId,
        incarnation: Incarnation,
    ) -> Option<LayerHead> {
        if incarnation == self.incarnation(unit) {
            return self.layer_of(host, unit);
        }
        let past = self.past_lives(unit).into_iter().find(|past| past.incarnation == incarnation)?;
        past.layers.into_iter().find(|layer| layer.host == host)
    }

    fn past_rows(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Past)> {
        let read = self.db.read(|txn| {
            let mut rows = Vec::new();
            for row in txn.open_table(RETIRED)?.range::<&[u8]>(prefix..)? {
                let (key, value) = row?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                rows.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(rows)
        });
        let rows = read.unwrap_or_else(|e| self.lost(&e.to_string()));
        let parse = |value: &[u8]| parse(value).unwrap_or_else(|why| self.lost(&why));
        rows.into_iter().map(|(key, value)| (key, parse(&value))).collect()
    }

    fn past_life(&self, key: &[u8], past: Past) -> PastLife {
        let Past { layers, closed_by, closed_ms, closed_on, rule, purged } = past;
        let incarnation = split(key).map_or(Incarnation::FIRST, |(_, life)| life);
        let layers = self.known().hosts.heads(layers).unwrap_or_else(|why| self.lost(&why));
        PastLife { incarnation, layers, closed_by, closed_ms, closed_on, rule, purged }
    }
}
