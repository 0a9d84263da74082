//! What shows beside the replica: other hosts' running layers, as the store last told of them. In memory only: who starts anew asks the store.
//!
//! A snapshot stands beside what its layer has committed: it shows as that layer with one more, newest, revision
//! ([`Live::over`]). What has not changed since the commit keeps the commit's number; what has changed is newer than anything that
//! is committed ([`Seq::live`]). A snapshot of a generation that is committed meanwhile doesn't count.
//!
//! An own layer stands here, too, while the store has lost its commit ([`Journal::unsend`](super::Journal::unsend)) and its files aren't in the spool.
//!
//! Its manifests are kept in memory, apart from those of the catalog: there is a new one every half minute, and they would push those out.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    db::{dir_key, unit_key, unit_of_key},
    replica::LayerHead,
};
use crate::{
    catalog::Snapshot,
    ids::{Hash, HostUuid, Incarnation, RelPath, UnitId},
    manifest::Manifest,
};

/// Entries of live manifests in memory, about 200 bytes each. What goes beyond it comes from the block cache again.
const MANIFEST_ENTRIES: usize = 200_000;

/// The snapshots, by unit.
#[derive(Debug, Default)]
pub(super) struct Live {
    units: BTreeMap<Vec<u8>, Vec<Snapshot>>,
    manifests: BTreeMap<Hash, Arc<Manifest>>,
    entries: usize,
    /// The manifest of a snapshot that shows as soon as it is here.
    expected: Option<Hash>,
}

impl Live {
    /// The manifest `hash` is about to be a snapshot's.
    pub fn expect(&mut self, hash: Hash) {
        self.expected = Some(hash);
    }

    /// Puts a snapshot in the place of the one before, which is given back.
    pub fn set(&mut self, snapshot: Snapshot) -> Option<Snapshot> {
        let before = self.remove(snapshot.host, &snapshot.unit);
        self.units.entry(unit_key(&snapshot.unit)).or_default().push(snapshot);
        before
    }

    /// Takes a host's snapshot of a unit out.
    pub fn remove(&mut self, host: HostUuid, unit: &UnitId) -> Option<Snapshot> {
        let key = unit_key(unit);
        let of_unit = self.units.get_mut(&key)?;
        let at = of_unit.iter().position(|s| s.host == host)?;
        let before = of_unit.remove(at);
        if of_unit.is_empty() {
            self.units.remove(&key);
        }
        if let Some(manifest) = self.manifests.remove(&before.manifest) {
            self.entries -= manifest.entries().len();
        }
        Some(before)
    }

    pub fn all(&self) -> Vec<Snapshot> {
        self.units.values().flatten().cloned().collect()
    }

    pub fn of(&self, unit: &UnitId) -> &[Snapshot] {
        if self.units.is_empty() {
            return &[];
        }
        self.units.get(&unit_key(unit)).map_or(&[], Vec::as_slice)
    }

    pub fn contains(&self, unit: &UnitId) -> bool {
        !self.of(unit).is_empty()
    }

    /// Units whose roots are at or below `dir`, by their keys, which are in the order of the tree.
    pub fn units_below(&self, dir: &RelPath) -> BTreeMap<Vec<u8>, UnitId> {
        if self.units.is_empty() {
            return BTreeMap::new();
        }
        let prefix = dir_key(dir);
        let below = self.units.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        below.filter_map(|(key, _)| Some((key.clone(), unit_of_key(key)?))).collect()
    }

    /// A unit's committed layers with what runs on top of them.
    pub fn over(&self, unit: &UnitId, life: Incarnation, committed: Vec<LayerHead>) -> Vec<LayerHead> {
        let mut layers = committed;
        for snapshot in self.of(unit).iter().filter(|snapshot| snapshot.incarnation == life) {
            let before = layers.iter().position(|layer| layer.host == snapshot.host);
            if before.is_some_and(|at| layers[at].generation >= snapshot.generation) {
                continue;
            }
            let mut commits = before.map_or_else(Vec::new, |at| layers.remove(at).commits);
            commits.push((snapshot.generation, snapshot.seq()));
            layers.push(LayerHead {
                host: snapshot.host,
                host_name: snapshot.host_name.clone(),
                commits,
                manifest: snapshot.manifest,
                generation: snapshot.generation,
                time_ms: snapshot.time_ms,
                bytes: snapshot.bytes,
                entries: snapshot.entries,
                lost: false,
                adopted_by: None,
            });
        }
        layers
    }

    /// Whether a manifest is a snapshot's.
    pub fn names(&self, hash: &Hash) -> bool {
        self.expected == Some(*hash) || self.units.values().flatten().any(|s| s.manifest == *hash)
    }

    pub fn manifest(&self, hash: &Hash) -> Option<Arc<Manifest>> {
        self.manifests.get(hash).cloned()
    }

    /// Keeps a snapshot's manifest; dropped with the snapshot, or when there are too many.
    pub fn keep(&mut self, hash: Hash, manifest: Arc<Manifest>) {
        let entries = manifest.entries().len();
        if self.manifests.contains_key(&hash) {
            return;
        }
        while self.entries + entries > MANIFEST_ENTRIES {
            // Any: which one is asked for next isn't known, and it costs a read from the block cache.
            let Some((_, dropped)) = self.manifests.pop_first() else { break };
            self.entries -= dropped.entries().len();
        }
        self.entries += entries;
        self.manifests.insert(hash, manifest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Generation, Seq};

    fn snapshot(host: u8, root: &str, generation: u32) -> Snapshot {
        Snapshot {
            host: HostUuid([host; 16]),
            host_name: format!("drone{host}"),
            unit: UnitId::tree(root.parse().expect("a path")),
            generation: Generation(generation),
            manifest: Hash::of(root.as_bytes()),
            time_ms: 20,
            begun_ms: 10,
            bytes: 5,
            entries: 2,
            incarnation: Incarnation::FIRST,
        }
    }

    #[test]
    fn a_snapshot_is_its_layers_newest_revision_until_that_is_committed() {
        let mut live = Live::default();
        let snapshot = snapshot(1, "1-me/a", 3);
        let unit = snapshot.unit.clone();
        live.set(snapshot.clone());
        let layer = |generation| LayerHead {
            host: snapshot.host,
            host_name: "drone1".to_owned(),
            commits: vec![(Generation(generation), Seq(7))],
            manifest: Hash::of(b"old"),
            generation: Generation(generation),
            time_ms: 1,
            bytes: 1,
            entries: 1,
            lost: false,
            adopted_by: None,
        };
        let shown = live.over(&unit, Incarnation::FIRST, vec![layer(2)]);
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].seq_of(Generation(2)), Some(Seq(7)), "what didn't change keeps its number");
        assert!(shown[0].seq_of(Generation(3)).is_some_and(Seq::is_live));
        assert_eq!(shown[0].manifest, snapshot.manifest);
        assert_eq!(live.over(&unit, Incarnation::FIRST, vec![layer(3)]), [layer(3)]);
        assert_eq!(live.over(&unit, Incarnation::FIRST, Vec::new()).len(), 1);
        assert!(live.over(&unit, Incarnation(9), Vec::new()).is_empty(), "it runs in another life");
        live.remove(snapshot.host, &unit);
        assert!(live.over(&unit, Incarnation::FIRST, Vec::new()).is_empty() && live.all().is_empty());
    }

    #[test]
    fn units_are_found_below_a_directory_in_the_order_of_the_tree() {
        let mut live = Live::default();
        for (host, root) in [(1, "12-me/a"), (2, "1-me/b"), (1, "1-me/a"), (1, "1-me.x/a")] {
            live.set(snapshot(host, root, 1));
        }
        let below = |dir: &str| {
            let dir = if dir.is_empty() { RelPath::ROOT } else { dir.parse().expect("a path") };
            live.units_below(&dir).into_values().map(|unit| unit.root.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(below(""), ["1-me/a", "1-me/b", "1-me.x/a", "12-me/a"]);
        assert_eq!(below("1-me"), ["1-me/a", "1-me/b"]);
        assert_eq!(below("1-me/a"), ["1-me/a"]);
        assert_eq!(below("2-me"), [""; 0]);
    }
}
