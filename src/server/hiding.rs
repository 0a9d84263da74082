//! What a commit would hide of other hosts': a file, link or pipe hides everything that is older below its path, by the rules of the union
//! ([`crate::fs::union`]). Without the right `delete` it must not hide what shows there.
//!
//! What is at the very path isn't looked at: who changes another host's file, and hosts that made one name while apart, do the same
//! (`docs/protocol.md`, "Who may do what").
//!
//! A commit into places where no other host has a layer costs a few look-ups in memory. Otherwise the manifests of those layers are read, and only where
//! one of them has something below a file of this one, the union is made.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    api::{NewCommit, StoreApi, StoreFault},
    hosts::History,
    may::read_manifest,
};
use crate::{
    catalog::Snapshot,
    fs::union::{Candidate, Index, Layer, SlotId, belongs},
    ids::{HostUuid, RelPath, Seq, UnitId},
    journal::LayerHead,
    manifest::{Body, Entry, Manifest},
};

/// Units in which other hosts have something below the files of one commit, or around them. Nobody who goes by the mount comes near it.
const UNITS: usize = 256;

/// An entry that hides what is below its path.
struct Hider<'a> {
    /// From the top of the tree.
    path: RelPath,
    entry: &'a Entry,
}

/// What would be hidden.
struct Hidden {
    by: RelPath,
    path: RelPath,
    host_name: String,
}

/// A commit on its way.
struct Judged<'a> {
    store: &'a dyn StoreApi,
    history: &'a History,
    commit: &'a NewCommit,
    manifest: Arc<Manifest>,
    /// Its layer, as if it were entered.
    head: LayerHead,
}

/// Refuses a commit whose files would hide other hosts' entries below their paths. `seq` is the number that its changes will have, or a higher one. Blocks.
pub(super) fn check(
    store: &dyn StoreApi,
    history: &History,
    commit: &NewCommit,
    manifest: Arc<Manifest>,
    seq: Seq,
) -> Result<(), StoreFault> {
    let hiders = hiders(&commit.unit, &manifest);
    if hiders.is_empty() || !history.is_present(store, &commit.unit, commit.incarnation)? {
        return Ok(());
    }
    let paths = hiders.iter().map(|hider| &hider.path);
    let units = history.others_below(store, commit.host, paths, UNITS)?;
    if units.is_empty() {
        return Ok(());
    }
    let mut layers = history.layers(store, &commit.unit)?;
    let own = layers.iter().position(|layer| layer.host == commit.host).map(|at| layers.swap_remove(at));
    let Some(head) = entered(own, commit, seq) else { return Ok(()) };
    let judged = Judged { store, history, commit, manifest: manifest.clone(), head };
    if units.len() >= UNITS {
        return Err(judged.too_many());
    }
    match judged.first_hidden(&judged.contested(hiders, &units)?)? {
        Some(hidden) => Err(StoreFault::Unacceptable(format!(
            "{}: as something else than a directory it would hide {} and what else other hosts have below it (here: {}), and this host has no right `delete`. \
             Give it another name, or allow this host `delete`",
            hidden.by, hidden.path, hidden.host_name
        ))),
        None => Ok(()),
    }
}

fn hiders<'a>(unit: &UnitId, manifest: &'a Manifest) -> Vec<Hider<'a>> {
    let entries = manifest.entries().iter().filter(|entry| belongs(unit, entry));
    let files = entries.filter(|entry| !matches!(entry.body, Body::Dir | Body::Whiteout));
    files.filter_map(|entry| Some(Hider { path: unit.root.append(&entry.path).ok()?, entry })).collect()
}

/// The host's layer with this commit. `None`: it is of a generation that the store has, and changes nothing.
fn entered(own: Option<LayerHead>, commit: &NewCommit, seq: Seq) -> Option<LayerHead> {
    let mut commits = own.as_ref().map_or_else(Vec::new, |own| own.commits.clone());
    if commits.last().is_some_and(|(last, _)| *last >= commit.generation) {
        return None;
    }
    commits.push((commit.generation, seq));
    Some(LayerHead {
        host: commit.host,
        host_name: commit.host_name.clone(),
        commits,
        manifest: commit.manifest,
        generation: commit.generation,
        time_ms: 0,
        bytes: 0,
        entries: 0,
        lost: commit.lost,
        adopted_by: None,
    })
}

impl Judged<'_> {
    fn host(&self) -> HostUuid {
        self.commit.host
    }

    fn too_many(&self) -> StoreFault {
        let unit = &self.commit.unit;
        StoreFault::Unacceptable(format!(
            "{unit} has files where other hosts have {UNITS} units or more, and this host has no right `delete`"
        ))
    }

    /// Those below which another host has anything at all.
    fn contested<'h>(
        &self,
        hiders: Vec<Hider<'h>>,
        units: &BTreeSet<UnitId>,
    ) -> Result<Vec<Hider<'h>>, StoreFault> {
        let mut others = Vec::new();
        for unit in units {
            let heads = self.history.layers(self.store, unit)?.into_iter();
            for head in heads.filter(|head| head.host != self.host()) {
                others.push(self.layer(unit, head)?);
            }
        }
        let is_contested = |hider: &Hider<'_>| others.iter().any(|layer| has_below(layer, &hider.path));
        Ok(hiders.into_iter().filter(is_contested).collect())
    }

    /// What the union shows of others below one of these, and wouldn't any more.
    fn first_hidden(&self, hiders: &[Hider<'_>]) -> Result<Option<Hidden>, StoreFault> {
        if hiders.is_empty() {
            return Ok(None);
        }
        let paths = hiders.iter().map(|hider| &hider.path);
        let units = self.history.units_along(self.store, paths, UNITS)?;
        if units.len() >= UNITS {
            return Err(self.too_many());
        }
        let mut layers = Vec::new();
        for unit in &units {
            layers.extend(self.layers(unit)?);
        }
        let own = Layer {
            unit: self.commit.unit.clone(),
            head: self.head.clone(),
            manifest: self.manifest.clone(),
        };
        let is_own = |layer: &Layer| layer.unit == own.unit && layer.head.host == own.head.host;
        let before = layers.iter().find(|layer| is_own(layer)).cloned();
        let new: Vec<_> = hiders.iter().filter(|hider| hides_more(hider, &own, before.as_ref())).collect();
        let mut entered: Vec<_> = layers.iter().filter(|layer| !is_own(layer)).cloned().collect();
        entered.push(own);
        let union =
            Change { before: Index::build(self.host(), layers), after: Index::build(self.host(), entered) };
        Ok(new.into_iter().find_map(|hider| union.hidden_below(&hider.path)))
    }

    /// A unit's layers as every mount sees them: of one that still runs, what it has published.
    fn layers(&self, unit: &UnitId) -> Result<Vec<Layer>, StoreFault> {
        let heads = self.history.layers(self.store, unit)?;
        heads.into_iter().map(|head| self.layer(unit, head)).collect()
    }

    fn layer(&self, unit: &UnitId, head: LayerHead) -> Result<Layer, StoreFault> {
        let running =
            self.store.slots().get(head.host, unit).filter(|slot| slot.generation > head.generation);
        // One that the store has lost doesn't take the place of what was committed.
        let running = running.filter(|_| head.host != self.host());
        let running = running.and_then(|slot| Some((read_manifest(self.store, &slot.manifest).ok()?, slot)));
        let (manifest, head) = match running {
            Some((manifest, slot)) => (manifest, running_head(head, &slot)),
            None => (
                read_manifest(self.store, &head.manifest).map_err(|e| self.unreadable(unit, &head, &e))?,
                head,
            ),
        };
        Ok(Layer { unit: unit.clone(), head, manifest: Arc::new(manifest) })
    }

    /// Damage to another's layer is no reason to end this session.
    fn unreadable(&self, unit: &UnitId, head: &LayerHead, error: &StoreFault) -> StoreFault {
        StoreFault::Unacceptable(format!(
            "what {} has in {unit} can't be read, so that nobody can say whether this host may do this: {error}",
            head.host_name
        ))
    }
}

fn running_head(mut head: LayerHead, slot: &Snapshot) -> LayerHead {
    head.commits.push((slot.generation, slot.seq()));
    (head.generation, head.manifest) = (slot.generation, slot.manifest);
    head
}

/// Whether a layer has any entry below `path`.
fn has_below(layer: &Layer, path: &RelPath) -> bool {
    let root = &layer.unit.root;
    if root.is_below(path) {
        // The root itself isn't below itself.
        return layer.manifest.entries().iter().any(|entry| root != path || !entry.path.is_root());
    }
    let Some(path) = path.below(root) else { return false };
    let start = [path.as_bytes(), b"/"].concat();
    let entries = layer.manifest.entries();
    let at = entries.partition_point(|entry| entry.path.as_bytes() < &start[..]);
    entries.get(at).is_some_and(|entry| entry.path.as_bytes().starts_with(&start))
}

/// Whether it is newer than the one, if any, that the layer had at its path.
fn hides_more(hider: &Hider<'_>, layer: &Layer, before: Option<&Layer>) -> bool {
    let hid = before.and_then(|layer| Some(layer.candidate(layer.manifest.get(&hider.entry.path)?)));
    let hid = hid.filter(|hid| !matches!(hid.entry.body, Body::Dir | Body::Whiteout));
    hid.is_none_or(|hid| layer.candidate(hider.entry).seq > hid.seq)
}

/// The union without and with a commit.
struct Change {
    before: Index,
    after: Index,
}

impl Change {
    /// The first entry of others below `path` that counts, also where one of this host's is newer, and won't any more.
    fn hidden_below(&self, path: &RelPath) -> Option<Hidden> {
        let mut open = vec![(path.clone(), self.before.find(path)?)];
        while let Some((dir, slot)) = open.pop() {
            for (name, child) in self.before.children(slot) {
                let Ok(at) = dir.join(name) else { continue };
                if let Some(found) = foreign(&self.before, child)
                    && self.left(&at) != Some(found.seq)
                {
                    let host_name = self.name_of(found.host);
                    return Some(Hidden { by: path.clone(), path: at, host_name });
                }
                open.push((at, child));
            }
        }
        None
    }

    /// The number of what counts at a path with the commit.
    fn left(&self, at: &RelPath) -> Option<Seq> {
        foreign(&self.after, self.after.find(at)?).map(|found| found.seq)
    }

    fn name_of(&self, host: HostUuid) -> String {
        let layer = self.before.layers().iter().find(|layer| layer.head.host == host);
        layer.map_or_else(String::new, |layer| layer.head.host_name.clone())
    }
}

/// The other hosts' entry that counts at a path.
fn foreign(index: &Index, slot: SlotId) -> Option<Candidate> {
    let found = index.resolve(slot, Seq::default()).foreign?;
    (!found.synthetic && found.entry.body != Body::Whiteout).then_some(found)
}
