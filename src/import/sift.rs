//! What of a unit's layer is new to the store: an import is of the past, so it hides nothing that is newer and brings back nothing that was deleted.
//!
//! The rules are a table in `docs/architecture.md`, "Import". They go by the union of all other hosts' committed layers, path by path; where nobody
//! else has anything, nothing is looked into.

use std::{collections::HashMap, ops::ControlFlow};

use crate::{
    cache::FetchError,
    fs::view::{Candidate, Need, Resolved, View},
    ids::{Generation, HostUuid, RelPath, Seq, UnitId},
    journal::Journal,
    limits::UNIT_ROOT_DEPTH,
    manifest::{Body, Entry, Manifest, ManifestError, Name},
};

/// How often manifests are fetched for one look: each may be of a deeper place than the one before.
const FETCHES: usize = 8;

/// What is left of a layer.
#[derive(Debug)]
pub struct Sifted {
    pub manifest: Manifest,
    /// Paths that others have committed with the same content.
    pub there: u64,
    pub left_out: Vec<(RelPath, Obstacle)>,
}

/// Why a path stays out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// What is committed there isn't older.
    Older,
    /// It was deleted there, or above.
    Deleted,
    /// One is a directory and the other isn't; so it is there or above.
    Kind,
}

impl Obstacle {
    /// Its code in findings.
    pub fn code(self) -> &'static str {
        match self {
            Self::Older => "older",
            Self::Deleted => "deleted",
            Self::Kind => "kind",
        }
    }

    /// What is said of it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Older => "another host has committed other content there that isn't older; that stays",
            Self::Deleted => {
                "it was deleted from the results tree; it stays so, and what is in it stays out, too"
            }
            Self::Kind => {
                "another host has a directory there, or above it a file; that stays, and what is below stays out, too"
            }
        }
    }
}

/// Why it couldn't be sifted.
#[derive(Debug, thiserror::Error)]
pub enum SiftError {
    /// Manifests of others that are needed for it don't come.
    #[error("what is committed there can't be read: {0}")]
    Fetch(#[from] FetchError),
    #[error("manifests of what is committed there don't stay here")]
    Lost,
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Whether anybody but `me` has something committed where `unit` has its paths, or above or below.
pub fn is_shared(journal: &Journal, me: HostUuid, unit: &UnitId) -> bool {
    let others = |layers: &[crate::journal::LayerHead]| layers.iter().any(|layer| layer.host != me);
    let above = (1..=unit.root.depth().min(UNIT_ROOT_DEPTH)).map(|depth| unit.root.first(depth));
    let mut above = above.flat_map(|root| [UnitId::loose(root.clone()), UnitId::tree(root)]);
    above.any(|unit| others(&journal.layers(&unit)))
        || journal
            .visit_layers(&unit.root, &mut |_, layers| match others(layers) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
            .is_break()
}

/// Takes out of `manifest`, which is to be `me`'s in this generation, what others have.
pub fn sift(
    view: &View,
    me: HostUuid,
    unit: &UnitId,
    generation: Generation,
    manifest: &Manifest,
) -> Result<Sifted, SiftError> {
    let mut sieve = Sieve { view, me, manifest, kept: Vec::new(), there: 0, left_out: Vec::new() };
    let mut closed: Option<&RelPath> = None;
    for entry in manifest.entries() {
        if closed.is_some_and(|top| entry.path.is_below(top)) {
            continue;
        }
        let Ok(path) = unit.root.append(&entry.path) else { continue };
        // As it was committed before: whatever that hides, it has hidden.
        let verdict =
            if entry.since < generation { Verdict::Take(entry.base) } else { sieve.judge(&path, entry)? };
        match verdict {
            Verdict::Take(base) => sieve.kept.push(Entry { base, ..entry.clone() }),
            Verdict::There => sieve.there += u64::from(entry.body != Body::Dir),
            Verdict::Out(obstacle) => {
                sieve.left_out.push((entry.path.clone(), obstacle));
                closed = (obstacle != Obstacle::Older).then_some(&entry.path);
            }
        }
    }
    let (there, left_out) = (sieve.there, std::mem::take(&mut sieve.left_out));
    Ok(Sifted { manifest: sieve.finish()?, there, left_out })
}

enum Verdict {
    /// With this base.
    Take(Seq),
    There,
    Out(Obstacle),
}

struct Sieve<'a> {
    view: &'a View,
    me: HostUuid,
    manifest: &'a Manifest,
    kept: Vec<Entry>,
    there: u64,
    left_out: Vec<(RelPath, Obstacle)>,
}

impl Sieve<'_> {
    fn judge(&self, path: &RelPath, entry: &Entry) -> Result<Verdict, SiftError> {
        let is_dir = entry.body == Body::Dir;
        let Some(there) = self.resolve(path)?.foreign else {
            let is_hidden = self.entries(path)?.iter().any(|c| c.host != self.me);
            return Ok(if is_hidden { Verdict::Out(Obstacle::Deleted) } else { Verdict::Take(entry.base) });
        };
        Ok(match (&there.entry.body, is_dir) {
            (Body::Whiteout, _) => Verdict::Out(Obstacle::Deleted),
            (Body::Dir, true) if there.synthetic && !self.is_described(path)? => Verdict::Take(entry.base),
            (Body::Dir, true) => Verdict::There,
            (Body::Dir, false) | (_, true) => Verdict::Out(Obstacle::Kind),
            _ if self.is_same(entry, &there) => Verdict::There,
            _ if entry.attrs.mtime > there.entry.attrs.mtime => Verdict::Take(entry.base.max(there.seq)),
            _ => Verdict::Out(Obstacle::Older),
        })
    }

    /// Whether another host's layer says what the directory at `path` is like.
    fn is_described(&self, path: &RelPath) -> Result<bool, SiftError> {
        Ok(self.entries(path)?.iter().any(|c| c.host != self.me && c.entry.body == Body::Dir))
    }

    fn is_same(&self, entry: &Entry, there: &Candidate) -> bool {
        match (self.manifest.file_of(entry), there.file) {
            (Some(here), Some(there)) => here == there,
            (None, None) => entry.body == there.entry.body,
            _ => false,
        }
    }

    fn resolve(&self, path: &RelPath) -> Result<Resolved, SiftError> {
        self.with_manifests(|| self.view.lookup(path))
    }

    fn entries(&self, path: &RelPath) -> Result<Vec<Candidate>, SiftError> {
        self.with_manifests(|| self.view.entries_at(path))
    }

    fn with_manifests<T>(&self, look: impl Fn() -> Result<T, Need>) -> Result<T, SiftError> {
        for _ in 0..FETCHES {
            match look() {
                Ok(found) => return Ok(found),
                Err(need) => self.view.fetch(&need)?,
            }
        }
        Err(SiftError::Lost)
    }

    /// The manifest of what was kept. A hard link whose first name wasn't passes the file on to the next name.
    fn finish(self) -> Result<Manifest, ManifestError> {
        let manifest = self.manifest;
        let mut first_names: HashMap<RelPath, RelPath> = HashMap::new();
        let kept: std::collections::HashSet<&RelPath> = self.kept.iter().map(|entry| &entry.path).collect();
        let mut entries = Vec::with_capacity(self.kept.len());
        for entry in &self.kept {
            let mut entry = entry.clone();
            if let Body::Link { to } = &entry.body
                && !kept.contains(to)
            {
                let (size, content) = manifest.file_of(&entry).expect("a manifest's links lead to files");
                let to = to.clone();
                entry.body = match first_names.get(&to) {
                    Some(first) => Body::Link { to: first.clone() },
                    None => Body::File { size, content },
                };
                first_names.entry(to).or_insert_with(|| entry.path.clone());
            }
            entries.push(entry);
        }
        let users = names(entries.iter().map(|e| e.attrs.uid), |id| manifest.user(id));
        let groups = names(entries.iter().map(|e| e.attrs.gid), |id| manifest.group(id));
        Manifest::new(entries, manifest.omitted().to_vec(), users, groups)
    }
}

fn names<'m>(ids: impl Iterator<Item = u32>, name: impl Fn(u32) -> Option<&'m str>) -> Vec<Name> {
    let ids: std::collections::BTreeSet<u32> = ids.collect();
    ids.into_iter().filter_map(|id| Some(Name { id, name: name(id)?.to_owned() })).collect()
}
