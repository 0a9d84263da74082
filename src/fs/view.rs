//! The committed part of the results tree: layers from the journal's replica, manifests from the journal or the network, merged by [`union`](super::union).
//!
//! A path's *chain* is all units that can hold it or its parents; the merged index of a chain is kept as long as its layers stay what they are.
//! Nothing here waits for the network but [`View::fetch`]: what needs manifests that aren't on this host says so with [`Need`].
//!
//! Whether a directory above units shows at all would take the manifests of everything below it, and the top of the tree has hundreds of thousands
//! of these. So *evidence* is enough where nothing speaks against it: a unit at or below it all of whose layers hold file bytes. For who deletes a
//! directory deletes what is in it, and leaves a layer without bytes in each unit below.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tracing::warn;

use super::union::{Alive, Index, Layer, Side, synthetic_dir};
pub use super::union::{Candidate, Resolved};
use crate::{
    cache::{Cache, FetchError, lru::Lru},
    chunk::ObjectKind,
    ids::{Hash, RelPath, Seq, UnitId},
    journal::{Journal, LayerHead},
    manifest::Manifest,
};

/// No unit's root is deeper: `hosts/<host>/<task>`.
const ROOT_DEPTH_MAX: usize = 3;
/// Paths in merged indexes, about 150 bytes each and as much again for their entries. One index may be beyond it, alone.
const INDEXED_PATHS: u64 = 256 << 10;
/// Entries of manifests just fetched, should the journal be unable to keep them.
const FRESH_ENTRIES: u64 = 2 * crate::limits::MANIFEST_ENTRIES as u64;
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
    fresh: Mutex<Lru<Hash, Arc<Manifest>>>,
}

type Heads = Vec<(UnitId, LayerHead)>;

impl View {
    /// The view of a host's replica.
    pub fn new(journal: Arc<Journal>, cache: Arc<Cache>) -> Self {
        Self {
            journal,
            cache,
            indexes: Mutex::new(Lru::new(INDEXED_PATHS)),
            fresh: Mutex::new(Lru::new(FRESH_ENTRIES)),
        }
    }

    /// Whether committed entries can show at or below `path` that this host's spool doesn't hold. Needs no manifest; `true` may be wrong.
    pub fn relevant(&self, path: &RelPath) -> bool {
        let holds = |unit: &UnitId| unit.holds(path) && self.is_beyond_spool(unit);
        if prefixes(path).flat_map(units_at).any(|unit| holds(&unit)) {
            return true;
        }
        let mut looks = 0;
        let found = self.walk(path, &mut |unit| {
            looks += 1;
            let is_found = looks > EVIDENCE_UNITS || self.is_beyond_spool(unit);
            if is_found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        found.is_break()
    }

    /// Whether a unit has committed entries that the spool may lack: other hosts', or those of an own layer that is partial.
    fn is_beyond_spool(&self, unit: &UnitId) -> bool {
        self.journal.has_foreign(unit) || self.journal.get(unit).is_some_and(|own| own.partial)
    }

    /// What the committed layers say of `path`.
    pub fn lookup(&self, path: &RelPath) -> Result<Resolved, Need> {
        let index = self.index(path)?;
        let (slot, bar) = (index.find(path), index.bar(path));
        let resolve = |elsewhere| slot.map_or(Resolved::default(), |slot| index.resolve(slot, elsewhere));
        let is_plain_dir = slot.is_some_and(|slot| index.is_plain_dir(slot));
        if bar == Seq::default() && (is_plain_dir || slot.is_none()) {
            // The own directory may be gone from the spool while others have something in it.
            let resolved = resolve(Alive::default());
            let resolved =
                if resolved.foreign.is_none() { or(resolved, self.evidence(path)) } else { resolved };
            if !resolved.is_empty() {
                return Ok(resolved);
            }
        } else if is_plain_dir {
            return Ok(resolve(Alive::default()));
        }
        let (alive, dirs) = self.below(path, bar)?;
        Ok(or(resolve(alive), dirs))
    }

    /// What the committed layers say of everything directly in `dir`. A directory at or above units' roots may come as a synthetic one
    /// though a layer describes it: [`View::lookup`] tells its attributes.
    pub fn list(&self, dir: &RelPath) -> Result<BTreeMap<Vec<u8>, Resolved>, Need> {
        let index = self.index(dir)?;
        let roots = self.child_roots(dir);
        let mut listing = BTreeMap::new();
        if let Some(slot) = index.find(dir) {
            for (name, child) in index.children(slot).filter(|(name, _)| !roots.contains(*name)) {
                listing.insert(name.to_vec(), index.resolve(child, Alive::default()));
            }
        }
        let mut need = Need::default();
        for name in roots {
            let Ok(path) = dir.join(&name) else { continue };
            match self.list_root(&index, &path) {
                Ok(resolved) => _ = listing.insert(name, resolved),
                Err(more) => need.add(more),
            }
        }
        listing.retain(|_, resolved| !resolved.is_empty());
        need.or(listing)
    }

    /// A directory entry at or below which units lie.
    fn list_root(&self, parent: &Index, path: &RelPath) -> Result<Resolved, Need> {
        let evidence =
            if parent.bar(path) == Seq::default() { self.evidence(path) } else { Resolved::default() };
        if evidence.is_empty() { self.lookup(path) } else { Ok(evidence) }
    }

    /// What shows below `path` in units whose roots are below it, as far as it is newer than `bar`; and synthetic directories for that.
    fn below(&self, path: &RelPath, bar: Seq) -> Result<(Alive, Resolved), Need> {
        let (mut alive, mut dirs, mut need) = (Alive::default(), Resolved::default(), Need::default());
        for root in self.roots_below(path, bar) {
            match self.index(&root) {
                Ok(index) => {
                    let Some(slot) = index.find(path) else { continue };
                    alive.merge(index.below(slot));
                    dirs = or(dirs, index.resolve(slot, Alive::default()));
                }
                Err(more) => need.add(more),
            }
        }
        dirs.own = dirs.own.filter(|dir| dir.synthetic);
        dirs.foreign = dirs.foreign.filter(|dir| dir.synthetic);
        need.or((alive, dirs))
    }

    /// Roots below `path` of units that have something newer than `bar`.
    fn roots_below(&self, path: &RelPath, bar: Seq) -> BTreeSet<RelPath> {
        let mut roots = BTreeSet::new();
        let _ = self.walk(path, &mut |unit| {
            if self.journal.layers(unit).iter().any(|l| l.entries > 0 && l.seq() > bar) {
                roots.insert(unit.root.clone());
            }
            ControlFlow::Continue(())
        });
        roots
    }

    /// Synthetic directories for units at and below `path` that hold file bytes in each layer.
    fn evidence(&self, path: &RelPath) -> Resolved {
        let mut found = Resolved::default();
        if path.depth() > ROOT_DEPTH_MAX {
            return found;
        }
        let mut looks = 0;
        let mut look = |unit: &UnitId| {
            let layers = self.journal.layers(unit);
            looks += usize::from(!layers.is_empty());
            if layers.iter().all(is_solid) {
                for layer in &layers {
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
        let _ = match units_at(path.clone()).into_iter().try_for_each(|unit| look(&unit)) {
            ControlFlow::Continue(()) => self.walk(path, &mut look),
            done => done,
        };
        found
    }

    fn side(&self, layer: &LayerHead) -> Side {
        if layer.host == self.journal.host() { Side::Own } else { Side::Foreign }
    }

    /// Visits units whose roots are below `dir`.
    fn walk(&self, dir: &RelPath, visit: &mut dyn FnMut(&UnitId) -> ControlFlow<()>) -> ControlFlow<()> {
        for name in self.child_roots(dir) {
            let Ok(child) = dir.join(&name) else { continue };
            units_at(child.clone()).iter().try_for_each(&mut *visit)?;
            self.walk(&child, visit)?;
        }
        ControlFlow::Continue(())
    }

    fn child_roots(&self, dir: &RelPath) -> BTreeSet<Vec<u8>> {
        if dir.depth() < ROOT_DEPTH_MAX { self.journal.child_roots(dir) } else { BTreeSet::new() }
    }

    /// The layers that can have entries at `path` or above it.
    fn chain(&self, path: &RelPath) -> Heads {
        let layers = |unit: UnitId| {
            let heads = self.journal.layers(&unit).into_iter().filter(|head| head.entries > 0);
            heads.map(move |head| (unit.clone(), head)).collect::<Vec<_>>()
        };
        prefixes(path).flat_map(units_at).flat_map(layers).collect()
    }

    /// The merged index of a path's chain.
    fn index(&self, path: &RelPath) -> Result<Arc<Index>, Need> {
        let heads = self.chain(path);
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

    fn load(&self, heads: Heads) -> Result<Vec<Layer>, Need> {
        let mut need = Need::default();
        let mut layers = Vec::new();
        for (unit, head) in heads {
            match self.manifest(&head.manifest) {
                Some(manifest) => layers.push(Layer { unit, head, manifest }),
                None => need.add(Need { manifests: vec![head.manifest] }),
            }
        }
        need.or(layers)
    }

    fn manifest(&self, hash: &Hash) -> Option<Arc<Manifest>> {
        let fresh = self.fresh.lock().expect(NO_PANIC).get(hash).cloned();
        fresh.or_else(|| {
            self.journal.manifest(hash).unwrap_or_else(|error| {
                warn!(%hash, %error, "a kept manifest can't be read");
                None
            })
        })
    }

    /// Fetches, checks and keeps the manifests, several at once. Waits for the network. With any error it is worth asking again only
    /// later; what came meanwhile is kept.
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
        let manifest = match self.journal.keep_manifest(hash, &encoded) {
            Ok(manifest) => manifest,
            Err(error) => {
                warn!(%hash, %error, "a manifest can't be kept");
                Arc::new(Manifest::decode(&encoded).map_err(|_| FetchError::Damaged)?)
            }
        };
        let weight = manifest.entries().len() as u64 + 1;
        self.fresh.lock().expect(NO_PANIC).insert(*hash, manifest, weight);
        Ok(())
    }
}

const NO_PANIC: &str = "no code panics under this lock";

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("host", &self.journal.host()).finish_non_exhaustive()
    }
}

fn or(first: Resolved, then: Resolved) -> Resolved {
    Resolved { own: first.own.or(then.own), foreign: first.foreign.or(then.foreign) }
}

/// A layer that holds file bytes isn't one that only deletes, and one with more than one entry has a directory at its root.
fn is_solid(layer: &LayerHead) -> bool {
    layer.bytes > 0 && layer.entries > 1
}

/// Directories at or above `path` that can be units' roots.
fn prefixes(path: &RelPath) -> impl Iterator<Item = RelPath> {
    (1..=path.depth().min(ROOT_DEPTH_MAX)).map(|depth| path.first(depth))
}

fn units_at(root: RelPath) -> [UnitId; 2] {
    [UnitId::loose(root.clone()), UnitId::tree(root)]
}

#[cfg(test)]
mod tests;
