//! What the kernel must no longer believe, after the catalog or the spool changed without it.

use std::collections::HashSet;

use super::{Fs, Kind, NodeId, ROOT, nodes::Brief};
use crate::ids::{RelPath, Scope, UnitId};

/// One thing to tell the kernel. Never tell it from inside an operation or under a lock: the kernel may be waiting for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invalidation {
    /// A name of a directory may be something else now.
    Entry { parent: NodeId, name: Vec<u8> },
    /// A node's attributes, bytes or listing may be others.
    Node { node: NodeId },
}

impl Fs {
    /// Other hosts' layers of these units have changed: what of them the kernel may know.
    pub fn remote_changed(&self, units: &[UnitId]) -> Vec<Invalidation> {
        self.remote_news();
        let known = units.iter().flat_map(|unit| self.below(unit)).collect();
        self.told_once(known)
    }

    /// As [`Fs::remote_changed`], of a unit of which only these paths below its root have changed. Nothing else is forgotten: whoever
    /// follows one log keeps what the kernel has of the others. (Of a file that has grown all is forgotten: the kernel itself drops
    /// the pages of one that has another size, since nobody else can say whether the beginning is still the same.)
    pub fn remote_paths_changed(&self, unit: &UnitId, paths: &[RelPath]) -> Vec<Invalidation> {
        self.remote_news();
        let mut found = Vec::new();
        let nodes = self.nodes.lock();
        for path in paths.iter().filter_map(|path| unit.root.append(path).ok()) {
            let (parent, name) = match nodes.find(&path) {
                Ok(node) => {
                    found.push(Invalidation::Node { node });
                    let Some(brief) = nodes.brief(node) else { continue };
                    // A directory's name stays: dropping it would make getcwd(2) fail for who works in it.
                    let Some(place) = brief.place.filter(|_| brief.kind != Kind::Dir) else { continue };
                    place
                }
                Err(place) => place,
            };
            found.push(Invalidation::Node { node: parent });
            found.push(Invalidation::Entry { parent, name });
        }
        drop(nodes);
        self.told_once(found)
    }

    /// Names of a unit that somebody else has made, as paths below its root: while nobody could make any in a directory but this host, the kernel was told that it
    /// may keep that a name is absent there. Of names that it knows [`Fs::remote_changed`] tells.
    pub fn named_elsewhere<'p>(
        &self,
        unit: &UnitId,
        paths: impl Iterator<Item = &'p RelPath>,
    ) -> Vec<Invalidation> {
        let nodes = self.nodes.lock();
        let absent = paths.filter_map(|path| nodes.find(&unit.root.append(path).ok()?).err());
        let absent: HashSet<(NodeId, Vec<u8>)> = absent.collect();
        absent.into_iter().map(|(parent, name)| Invalidation::Entry { parent, name }).collect()
    }

    /// A thousand new jobs are one change of the top; who is reading one of these directories has an old listing.
    fn told_once(&self, mut known: Vec<Invalidation>) -> Vec<Invalidation> {
        let mut nodes = HashSet::new();
        known.retain(|change| match change {
            Invalidation::Node { node } => nodes.insert(*node),
            Invalidation::Entry { .. } => true,
        });
        self.outdate(&nodes);
        known
    }

    /// These units' files have just left the spool, or come back: the table forgets their inodes. Call it before the unit is thawed.
    /// Nothing shows differently, so the kernel keeps names and forgets only attributes that aren't promised (blocks, ctime).
    pub fn evicted(&self, units: &[UnitId]) -> Vec<Invalidation> {
        let mut known = self.remote_changed(units);
        known.retain(|invalidation| matches!(invalidation, Invalidation::Node { node } if *node != ROOT));
        for invalidation in &known {
            if let Invalidation::Node { node } = invalidation {
                self.kept.drop(*node);
                // Without file handles its descriptor would keep the bytes on the disk.
                self.nodes.lock().clear_local(*node);
            }
        }
        known
    }

    /// This unit was retired, and its files have just left the spool. Call it before the unit is thawed: its names go, and its nodes keep only what is
    /// open. What comes there next are other files.
    pub fn retired(&self, unit: &UnitId) -> Vec<Invalidation> {
        let mut known = self.remote_changed(std::slice::from_ref(unit));
        known.extend(self.evicted(std::slice::from_ref(unit)));
        self.committed.unmark(unit);
        known.extend(self.part_remote(unit));
        known.extend(self.job_gone(unit));
        known
    }

    /// The same of a unit of which nothing was in the spool. What is there by now is the next one's.
    pub fn retired_elsewhere(&self, unit: &UnitId) -> Vec<Invalidation> {
        let mut known = self.remote_changed(std::slice::from_ref(unit));
        known.extend(self.part_remote(unit));
        known.extend(self.job_gone(unit));
        known
    }

    /// The directory that the unit was in, if nothing is left of that either.
    fn job_gone(&self, unit: &UnitId) -> Vec<Invalidation> {
        let dir = match unit.scope {
            Scope::Tree => unit.root.parent().filter(|dir| !dir.is_root()),
            Scope::Loose => Some(unit.root.clone()),
        };
        let is_left = |dir: &RelPath| {
            dir.under(self.spool.path()).symlink_metadata().is_ok() || self.committed.has_layers(dir)
        };
        let Some(dir) = dir.filter(|dir| !is_left(dir)) else { return Vec::new() };
        let mut nodes = self.nodes.lock();
        let place = nodes.find(&dir).ok().and_then(|node| nodes.brief(node)).and_then(|brief| brief.place);
        let Some((parent, name)) = place else { return Vec::new() };
        nodes.detach(parent, &name);
        vec![Invalidation::Node { node: parent }, Invalidation::Entry { parent, name }]
    }

    /// Takes the names from a unit's nodes that aren't in the spool. Its root's name may stand for another directory, too.
    fn part_remote(&self, unit: &UnitId) -> Option<Invalidation> {
        let mut nodes = self.nodes.lock();
        let root = nodes.find(&unit.root).ok()?;
        let place = nodes.brief(root)?.place;
        let units = match unit.scope {
            Scope::Tree => vec![root],
            Scope::Loose => nodes.children(root).into_iter().map(|(_, node)| node).collect(),
        };
        for node in units {
            let is_parted = |brief: &Brief| {
                brief.local.is_none() && (unit.scope == Scope::Tree || brief.kind != Kind::Dir)
            };
            while let Some((parent, name)) = nodes.brief(node).filter(is_parted).and_then(|brief| brief.place)
            {
                nodes.detach(parent, &name);
            }
        }
        place.map(|(parent, name)| Invalidation::Entry { parent, name })
    }

    fn below(&self, unit: &UnitId) -> Vec<Invalidation> {
        let nodes = self.nodes.lock();
        let root = match nodes.find(&unit.root) {
            Ok(root) => root,
            // The kernel may know the nearest directory's listing, or that the name isn't there.
            Err((parent, name)) => {
                return vec![Invalidation::Entry { parent, name }, Invalidation::Node { node: parent }];
            }
        };
        let above = nodes.brief(root).and_then(|b| b.place).map(|(parent, _)| parent);
        let mut found: Vec<_> =
            above.into_iter().chain([root]).map(|node| Invalidation::Node { node }).collect();
        let mut dirs = vec![root];
        while let Some(dir) = dirs.pop() {
            for (name, node) in nodes.children(dir) {
                let is_dir = nodes.brief(node).is_some_and(|b| b.kind == Kind::Dir);
                if is_dir && unit.scope == Scope::Loose {
                    continue;
                }
                found.push(Invalidation::Node { node });
                if is_dir {
                    // Its name stays: dropping it would make getcwd(2) fail for who works in it.
                    dirs.push(node);
                } else {
                    found.push(Invalidation::Entry { parent: dir, name });
                }
            }
        }
        found
    }

    /// The node at `path`, if the kernel knows it.
    pub fn known(&self, path: &RelPath) -> Option<NodeId> {
        self.nodes.lock().find(path).ok()
    }
}
