//! The committed part of the results tree: layers from the journal's replica, manifests from the journal or
//! the network, merged by [`union`](super::union).
//!
//! A path's *chain* is all units that can hold it or its parents; the merged index of a chain is kept as long
//! as its layers stay what they are. Nothing here waits for the network but [`View::fetch`]: what needs
//! manifests that aren't on this host says so with [`Need`].
//!
//! Whether a directory above units shows at all would take the manifests of everything below it, and the top
//! of the tree has hundreds of thousands of these. So *evidence* is enough where nothing speaks against it: a
//! unit at or below it all of whose layers hold file bytes. For who deletes a directory deletes what is in
//! it, and leaves a layer without bytes in each unit below.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tracing::warn;

pub use super::union::{Candidate, Resolved};
use super::{
    conflict::entries_at,
    union::{Index, Layer, Side, synthetic_dir},
};
use crate::{
    cache::{Cache, FetchError, lru::Lru},
    chunk::ObjectKind,
    ids::{Hash, RelPath, Seq, UnitId},
    journal::{Journal, LayerHead, Weight},
    limits::UNIT_ROOT_DEPTH,
    manifest::Manifest,
};

/// Paths in merged indexes, about 150 bytes each and as much again for their entries. One index may be beyond
/// it, alone.
const INDEXED_PATHS: u64 = 256 << 10;
/// Entries of manifests that the journal couldn't keep, about 200 bytes each. One manifest may be beyond it,
/// alone.
const UNKEPT_ENTRIES: u64 = 200_000;
/// Manifests on the way at once.
const FETCHES: usize = 8;
/// Units looked at for evidence; beyond it what was found must do.
const EVIDENCE_UNITS: usize = 256;

/// Manifests that aren't on this host: [`View::fetch`] them and ask again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    pub manifests: Vec<Hash>,
}

impl Need {
    fn add(&mut self, other: Need) {
        self.manifests.extend(other.manifests);
        self.manifests.sort();
        self.manifests.dedup();
    }

    fn or<T>(self, value: T) -> Result<T, Need> {
        if self.manifests.is_empty() { Ok(value) } else { Err(self) }
    }
}

/// The union of all committed layers.
pub struct View {
    journal: Arc<Journal>,
    cache: Arc<Cache>,
    indexes: Mutex<Lru<Vec<UnitId>, Arc<Index>>>,
    unkept: Mutex<Lru<Hash, Arc<Manifest>>>,
}

/// What the committed layers say of a directory.
#[derive(Debug, Default)]
pub struct Listing {
    /// Names with what is there.
    pub entries: BTreeMap<Vec<u8>, Resolved>,
    /// The other names, in ascending order.
    pub evident: Vec<Evident>,
}

/// A directory at or above units' roots that shows by evidence: no manifest was looked at, and [`View::lookup`] tells what it looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evident {
    pub name: Vec<u8>,
    /// By another host's layer; otherwise only by own ones.
    pub is_foreign: bool,
}

/// A name in a directory above units, and what speaks for it.
#[derive(Debug, Default)]
struct Sight {
    name: Vec<u8>,
    is_foreign: bool,
    is_own: bool,
    /// Units looked at.
    looks: usize,
}

impl Sight {
    fn is_evident(&self) -> bool {
        self.is_foreign || self.is_own
    }
}

type Heads = Vec<(UnitId, LayerHead)>;

impl View {
    /// The view of a host's replica.
    pub fn new(journal: Arc<Journal>, cache: Arc<Cache>) -> Self {
        Self {
            journal,
            cache,
            indexes: Mutex::new(Lru::new(INDEXED_PATHS)),
            unkept: Mutex::new(Lru::new(UNKEPT_ENTRIES)),
        }
    }

    /// Whether committed entries can show at or below `path` that this host's spool doesn't hold. Needs no
    /// manifest; `true` may be wrong.
    pub fn relevant(&self, path: &RelPath) -> bool {
        let is_partial = |unit: &UnitId| self.journal.get(unit).is_some_and(|own| own.partial);
        let is_others = |unit: &UnitId| self.journal.has_foreign(unit) || self.journal.runs_elsewhere(unit);
        let holds = |unit: &UnitId| unit.holds(path) && (is_others(unit) || is_partial(unit));
        if prefixes(path).flat_map(units_at).any(|unit| holds(&unit)) {
            return true;
        }
        let mut looks = 0;
        let found = self.walk(path, &mut |unit, layers| {
            looks += 1;
            let is_foreign = layers.iter().any(|layer| layer.host != self.journal.host());
            let is_found = looks > EVIDENCE_UNITS || is_foreign || is_partial(unit);
            if is_found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        found.is_break()
    }

    /// What the committed layers say of `path`.
    pub fn lookup(&self, path: &RelPath) -> Result<Resolved, Need> {
        let chain = self.chain(path);
        let index = self.merged(&chain)?;
        let hidden_upto = self.journal.hidden_upto(path);
        let (slot, bar) = (index.find(path), index.bar(path).max(hidden_upto));
        let resolve = |index: &Index, slot: Option<_>| {
            slot.map(|slot| index.resolve(slot, hidden_upto)).unwrap_or_default()
        };
        let resolved = resolve(&index, slot);
        let is_plain_dir = hidden_upto == Seq::default() && slot.is_some_and(|slot| index.is_plain_dir(slot));
        let is_uncontested = bar == Seq::default() && (is_plain_dir || slot.is_none());
        let resolved = if is_uncontested { self.complete(resolved, path) } else { resolved };
        if is_plain_dir || is_uncontested && !resolved.is_empty() {
            return Ok(resolved);
        }
        let deeper = self.layers_below(path, bar);
        if deeper.is_empty() {
            return Ok(resolved);
        }
        let index = self.merged(&[chain, deeper].concat())?;
        Ok(resolve(&index, index.find(path)))
    }

    /// All that the committed layers have at `path`, newest first, whatever hides it.
    pub fn entries_at(&self, path: &RelPath) -> Result<Vec<Candidate>, Need> {
        Ok(entries_at(&self.load(&self.chain(path))?, path))
    }

    /// What these layers show at and below `path` by themselves, whatever is newer or hides it elsewhere; directories before what is in them.
    pub fn tree_of(
        &self,
        heads: &[(UnitId, LayerHead)],
        path: &RelPath,
    ) -> Result<Vec<(RelPath, Candidate)>, Need> {
        let index = Index::build(self.journal.host(), self.load(heads)?);
        let mut found = Vec::new();
        let mut open: Vec<(RelPath, _)> =
            index.find(path).map(|slot| (path.clone(), slot)).into_iter().collect();
        while let Some((path, slot)) = open.pop() {
            if let Some(shown) = index.resolve(slot, Seq::default()).winner() {
                found.push((path.clone(), shown.clone()));
            }
            let below = index.children(slot).filter_map(|(name, child)| Some((path.join(name).ok()?, child)));
            let at = open.len();
            open.extend(below);
            open[at..].reverse();
        }
        Ok(found)
    }

    /// Adds evidence of what others have in a directory: the own one may be gone from the spool meanwhile.
    fn complete(&self, resolved: Resolved, path: &RelPath) -> Resolved {
        if resolved.foreign.is_some() {
            return resolved;
        }
        let evidence = self.evidence(path);
        Resolved { own: resolved.own.or(evidence.own), foreign: evidence.foreign }
    }

    /// What the committed layers say of everything directly in `dir`.
    pub fn list(&self, dir: &RelPath) -> Result<Listing, Need> {
        let index = self.merged(&self.chain(dir))?;
        let mut listing = Listing::default();
        if let Some(slot) = index.find(dir) {
            for (name, child) in index.children(slot) {
                let hidden_upto =
                    dir.join(name).map_or(Seq::default(), |path| self.journal.hidden_upto(&path));
                listing.entries.insert(name.to_vec(), index.resolve(child, hidden_upto));
            }
        }
        let mut need = Need::default();
        for sight in self.sights(dir, &index) {
            listing.entries.remove(&sight.name);
            if sight.is_evident() {
                listing.evident.push(Evident { is_foreign: sight.is_foreign, name: sight.name });
                continue;
            }
            let Ok(path) = dir.join(&sight.name) else { continue };
            match self.lookup(&path) {
                Ok(resolved) => _ = listing.entries.insert(sight.name, resolved),
                Err(more) => need.add(more),
            }
        }
        listing.entries.retain(|_, resolved| !resolved.is_empty());
        need.or(listing)
    }

    /// The names directly in `dir` at or below which units lie, with the evidence for each; one read of their rows, in order. Where
    /// `index` says that something hides what is in `dir`, nothing is evident.
    fn sights(&self, dir: &RelPath, index: &Index) -> Vec<Sight> {
        let mut sights: Vec<Sight> = Vec::new();
        let mut is_open = true;
        if dir.depth() >= UNIT_ROOT_DEPTH {
            return sights;
        }
        self.journal.weigh_shown_layers(dir, &mut |name, layers| {
            if sights.last().is_none_or(|sight| sight.name != name) {
                let bar = |path| index.bar(&path).max(self.journal.hidden_upto(&path));
                is_open = dir.join(name).is_ok_and(|path| bar(path) == Seq::default());
                sights.push(Sight { name: name.to_vec(), ..Sight::default() });
            }
            let sight = sights.last_mut().expect("one was put there if there was none");
            let is_solid = |layer: &Weight| is_solid(layer.bytes, layer.entries);
            if is_open && !sight.is_foreign && sight.looks < EVIDENCE_UNITS && layers.iter().all(is_solid) {
                let own = self.journal.host();
                sight.is_foreign |= layers.iter().any(|layer| layer.host != own);
                sight.is_own |= layers.iter().any(|layer| layer.host == own);
            }
            sight.looks += 1;
        });
        sights.sort_by(|a, b| a.name.cmp(&b.name));
        sights
    }

    /// Layers of units whose roots are below `path`, with something newer than `bar`: what is older, these
    /// can't show or hide.
    fn layers_below(&self, path: &RelPath, bar: Seq) -> Heads {
        let mut heads = Vec::new();
        let _ = self.walk(path, &mut |unit, layers| {
            let newer = layers.iter().filter(|head| head.entries > 0 && head.seq() > bar);
            heads.extend(newer.map(|head| (unit.clone(), head.clone())));
            ControlFlow::Continue(())
        });
        heads
    }

    /// Synthetic directories for units at and below `path` that hold file bytes in each layer.
    fn evidence(&self, path: &RelPath) -> Resolved {
        let mut found = Resolved::default();
        if path.depth() > UNIT_ROOT_DEPTH {
            return found;
        }
        let mut looks = 0;
        let mut look = |unit: &UnitId, layers: &[LayerHead]| {
            looks += usize::from(!layers.is_empty());
            if layers.iter().all(|layer| is_solid(layer.bytes, layer.entries)) {
                for layer in layers {
                    let of_side = match self.side(layer) {
                        Side::Own => &mut found.own,
                        Side::Foreign => &mut found.foreign,
                    };
                    of_side.get_or_insert_with(|| synthetic_dir(unit, layer));
                }
            }
            let is_enough = found.foreign.is_some() || looks >= EVIDENCE_UNITS;
            if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let own = units_at(path.clone());
        let _ = match own.iter().try_for_each(|unit| look(unit, &self.journal.shown_layers(unit))) {
            ControlFlow::Continue(()) => self.walk(path, &mut look),
            done => done,
        };
        found
    }

    fn side(&self, layer: &LayerHead) -> Side {
        if layer.host == self.journal.host() { Side::Own } else { Side::Foreign }
    }

    /// Visits units whose roots are below `dir`, with their layers.
    fn walk(
        &self,
        dir: &RelPath,
        visit: &mut dyn FnMut(&UnitId, &[LayerHead]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if dir.depth() >= UNIT_ROOT_DEPTH {
            return ControlFlow::Continue(());
        }
        self.journal.visit_shown_layers(dir, &mut |unit, layers| match unit.root == *dir {
            true => ControlFlow::Continue(()),
            false => visit(&unit, layers),
        })
    }

    /// The layers that can have entries at `path` or above it.
    fn chain(&self, path: &RelPath) -> Heads {
        prefixes(path).flat_map(units_at).flat_map(|unit| self.layers_of(&unit)).collect()
    }

    /// A unit's layers that say anything.
    fn layers_of(&self, unit: &UnitId) -> impl Iterator<Item = (UnitId, LayerHead)> + use<> {
        let unit = unit.clone();
        let layers = self.journal.shown_layers(&unit).into_iter().filter(|head| head.entries > 0);
        layers.map(move |head| (unit.clone(), head))
    }

    /// The merged index of some layers.
    fn merged(&self, heads: &[(UnitId, LayerHead)]) -> Result<Arc<Index>, Need> {
        let key: Vec<UnitId> = heads.iter().map(|(unit, _)| unit.clone()).collect();
        if let Some(index) = self.indexes.lock().expect(NO_PANIC).get(&key)
            && index.layers().iter().map(|l| (&l.unit, &l.head)).eq(heads.iter().map(|(u, h)| (u, h)))
        {
            return Ok(index.clone());
        }
        let index = Arc::new(Index::build(self.journal.host(), self.load(heads)?));
        let weight = (index.len() as u64).clamp(1, INDEXED_PATHS);
        self.indexes.lock().expect(NO_PANIC).insert(key, index.clone(), weight);
        Ok(index)
    }

    fn load(&self, heads: &[(UnitId, LayerHead)]) -> Result<Vec<Layer>, Need> {
        let mut need = Need::default();
        let mut layers = Vec::new();
        for (unit, head) in heads {
            match self.manifest(&head.manifest) {
                Some(manifest) => layers.push(Layer { unit: unit.clone(), head: head.clone(), manifest }),
                None => need.add(Need { manifests: vec![head.manifest] }),
            }
        }
        need.or(layers)
    }

    fn manifest(&self, hash: &Hash) -> Option<Arc<Manifest>> {
        let unkept = self.unkept.lock().expect(NO_PANIC).get(hash).cloned();
        unkept.or_else(|| {
            self.journal.manifest(hash).unwrap_or_else(|error| {
                warn!(%hash, %error, "a kept manifest can't be read");
                None
            })
        })
    }

    /// Fetches, checks and keeps the manifests, several at once. Waits for the network. With any error it is
    /// worth asking again only later; what came meanwhile is kept.
    pub fn fetch(&self, need: &Need) -> Result<(), FetchError> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut result = Ok(());
            while let Some(hash) = need.manifests.get(next.fetch_add(1, Ordering::Relaxed)) {
                result = result.and(self.fetch_one(hash));
            }
            result
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..FETCHES.min(need.manifests.len())).map(|_| scope.spawn(work)).collect();
            let result = work();
            others.into_iter().fold(result, |result, other| {
                result.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            })
        })
    }

    fn fetch_one(&self, hash: &Hash) -> Result<(), FetchError> {
        let encoded = self.cache.get(ObjectKind::Manifest, hash)?;
        if let Err(error) = self.journal.keep_manifest(hash, &encoded) {
            warn!(%hash, %error, "a manifest can't be kept");
            let manifest = Arc::new(Manifest::decode(&encoded).map_err(|_| FetchError::Damaged)?);
            let weight = (manifest.entries().len() as u64).clamp(1, UNKEPT_ENTRIES);
            self.unkept.lock().expect(NO_PANIC).insert(*hash, manifest, weight);
        }
        Ok(())
    }
}

const NO_PANIC: &str = "no code panics under this lock";

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("host", &self.journal.host()).finish_non_exhaustive()
    }
}

/// A layer that holds file bytes isn't one that only deletes, and one with more than one entry has a
/// directory at its root.
fn is_solid(bytes: u64, entries: u64) -> bool {
    bytes > 0 && entries > 1
}

/// Directories at or above `path` that can be units' roots.
fn prefixes(path: &RelPath) -> impl Iterator<Item = RelPath> {
    (1..=path.depth().min(UNIT_ROOT_DEPTH)).map(|depth| path.first(depth))
}

fn units_at(root: RelPath) -> [UnitId; 2] {
    [UnitId::loose(root.clone()), UnitId::tree(root)]
}

#[cfg(test)]
mod tests;
