//! The table of nodes: what the kernel's inode numbers mean.
//!
//! A node keeps its id until the kernel forgets it, through copy-up, eviction and recall. For what is in the spool the id is the
//! spool's inode number where that is free, otherwise, and for everything remote, a counter far above. Hard links share a node.
//!
//! Every change is noted in the ledger, if there is one, and counts there when the lock is let go: a successor finds the table as it was
//! between two holds of the lock.
//!
//! Invariants: `names` of a node and `children` of its parents say the same; a node is dropped when the kernel has forgotten
//! it, no handle is open on it and no child names it as its parent; the root is never dropped.

mod held;
mod kept;
mod spread;

use std::{
    collections::HashMap,
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard},
};

use self::{held::Held, spread::Spread};
use super::{
    Fh, Kind, NodeId, ROOT,
    ledger::{Ledger, LedgerError, Record},
};
use crate::{
    ids::RelPath,
    spool::{Inode, Spool},
};

/// Ids from here on are given by counting. No local file system has that many inodes.
const COUNTED_FROM: NodeId = 1 << 48;

/// One node.
#[derive(Debug)]
struct Node {
    lookups: u64,
    kind: Kind,
    /// Parent and name of every name that is known; the last is the newest.
    names: Vec<(NodeId, Vec<u8>)>,
    children: HashMap<Vec<u8>, NodeId>,
    local: Option<Inode>,
    handles: Vec<Handle>,
    /// The kernel's number for the file behind the open handles, if it reads and writes that by itself.
    backing: Option<u32>,
}

/// An open file, as far as a successor must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) fh: Fh,
    /// Of open(2).
    pub(super) flags: u32,
    /// The request that opened it.
    pub(super) request: u64,
    /// What a remote one shows; empty = the spool's file.
    pub(super) content: Box<[u8]>,
}

impl Handle {
    /// Whether the file can be changed through it by a mapping, which nobody hears of: of writes the kernel knows.
    pub(super) fn is_mappable(&self) -> bool {
        self.flags & libc::O_ACCMODE as u32 == libc::O_RDWR as u32
    }
}

impl Node {
    fn new(kind: Kind) -> Self {
        Self {
            lookups: 0,
            kind,
            names: Vec::new(),
            children: HashMap::new(),
            local: None,
            handles: Vec::new(),
            backing: None,
        }
    }
}

/// What an operation needs to know of a node.
#[derive(Debug, Clone)]
pub(super) struct Brief {
    pub(super) kind: Kind,
    pub(super) place: Option<(NodeId, Vec<u8>)>,
    pub(super) local: Option<Inode>,
    pub(super) handle: Option<Fh>,
    pub(super) is_mapped: bool,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Nodes {
    table: Mutex<Table>,
}

/// The table under its lock. No call in it does I/O.
#[derive(Debug)]
pub(super) struct Table {
    nodes: HashMap<NodeId, Node, Spread>,
    by_inode: HashMap<(u64, u64), NodeId, Spread>,
    next: NodeId,
    highest_backing: u32,
    dev: u64,
    ledger: Option<Ledger>,
    held: Held,
}

/// The table while its lock is held.
#[derive(Debug)]
pub(super) struct Locked<'a>(MutexGuard<'a, Table>);

impl Deref for Locked<'_> {
    type Target = Table;
    fn deref(&self) -> &Table {
        &self.0
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Table {
        &mut self.0
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.settle();
    }
}

impl Nodes {
    /// A table with the root in it.
    pub(super) fn new(spool: &Spool, root: Inode, ledger: Option<Ledger>) -> Self {
        let mut table = Table::empty(spool.dev());
        table.ledger = ledger;
        table.held = Held::at_most(spool.held_max());
        table.add(ROOT, Kind::Dir);
        table.set_local(ROOT, root);
        table.count_lookup(ROOT);
        table.settle();
        Self { table: Mutex::new(table) }
    }

    /// The table that a predecessor has left.
    pub(super) fn restored(spool: &Spool, records: &[u8], ledger: Ledger) -> Result<Self, LedgerError> {
        let mut table = Table::restored(spool, records)?;
        table.ledger = Some(ledger);
        table.held = Held::at_most(spool.held_max());
        Ok(Self { table: Mutex::new(table) })
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        Locked(self.table.lock().expect("no code panics under this lock"))
    }
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn brief(&self, id: NodeId) -> Option<Brief> {
        self.nodes.get(&id).map(|node| Brief {
            kind: node.kind,
            place: node.names.last().cloned(),
            local: node.local.clone(),
            handle: node.handles.first().map(|h| h.fh),
            is_mapped: node.handles.iter().any(Handle::is_mappable),
        })
    }

    /// Whether a handle is open on it by which a mapping can change it.
    pub(super) fn is_mapped(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.handles.iter().any(Handle::is_mappable))
    }

    /// The directory that holds the node's name, if it has just one.
    pub(super) fn only_parent(&self, id: NodeId) -> Option<NodeId> {
        match self.nodes.get(&id)?.names.as_slice() {
            [(parent, _)] => Some(*parent),
            _ => None,
        }
    }

    /// Where the node is now, if it still has a name.
    pub(super) fn path(&self, id: NodeId) -> Option<RelPath> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut here = id;
        while here != ROOT {
            let (parent, name) = self.nodes.get(&here)?.names.last()?;
            names.push(name);
            here = *parent;
        }
        names.reverse();
        RelPath::parse(names.join(&b'/')).ok()
    }

    /// Every name that the node is known by, as paths.
    pub(super) fn paths(&self, id: NodeId) -> Vec<RelPath> {
        let names = self.nodes.get(&id).map(|n| n.names.as_slice()).unwrap_or_default();
        names.iter().filter_map(|(parent, name)| self.path(*parent)?.join(name).ok()).collect()
    }

    /// The handles that are open on the node.
    pub(super) fn handles_on(&self, id: NodeId) -> Vec<Fh> {
        self.nodes
            .get(&id)
            .map_or_else(Vec::new, |node| node.handles.iter().map(|handle| handle.fh).collect())
    }

    pub(super) fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    /// The node at `path`, or the deepest known one above it with the next name below.
    pub(super) fn find(&self, path: &RelPath) -> Result<NodeId, (NodeId, Vec<u8>)> {
        path.components().try_fold(ROOT, |here, name| self.child(here, name).ok_or((here, name.to_vec())))
    }

    /// Children with their names.
    pub(super) fn children(&self, id: NodeId) -> Vec<(Vec<u8>, NodeId)> {
        let children = self.nodes.get(&id).map(|n| n.children.iter());
        children.into_iter().flatten().map(|(name, id)| (name.clone(), *id)).collect()
    }

    /// The node of what the spool has at `name`, looked up once more.
    pub(super) fn look_up_local(
        &mut self,
        parent: NodeId,
        name: &[u8],
        inode: &Inode,
        kind: Kind,
    ) -> Option<NodeId> {
        if !self.nodes.contains_key(&parent) {
            return None;
        }
        let id = self.node_of_inode(parent, name, inode, kind);
        self.attach(id, parent, name);
        self.count_lookup(id);
        Some(id)
    }

    fn node_of_inode(&mut self, parent: NodeId, name: &[u8], inode: &Inode, kind: Kind) -> NodeId {
        if let Some(id) = self.by_inode.get(&inode.key()).copied() {
            let known = &self.nodes[&id];
            if known.kind == kind && known.local.as_ref().is_some_and(|l| known.is_surely(l, inode)) {
                self.hold_again(id, inode);
                return id;
            }
            self.by_inode.remove(&inode.key());
        }
        if let Some(id) = self.child(parent, name) {
            let known = &self.nodes[&id];
            if known.kind == kind && known.local.is_none() {
                self.set_local(id, inode.clone());
                return id;
            }
        }
        let id = self.free_id(inode);
        self.add(id, kind);
        self.set_local(id, inode.clone());
        id
    }

    fn add(&mut self, id: NodeId, kind: Kind) {
        self.note(&Record::Node { id, kind, lookups: 0 });
        self.nodes.insert(id, Node::new(kind));
    }

    fn count_lookup(&mut self, id: NodeId) {
        self.note(&Record::Looked { id });
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups += 1;
        }
    }

    fn free_id(&mut self, inode: &Inode) -> NodeId {
        let (dev, ino) = inode.key();
        if dev == self.dev && ino > ROOT && ino < COUNTED_FROM && !self.nodes.contains_key(&ino) {
            return ino;
        }
        self.count()
    }

    fn count(&mut self) -> NodeId {
        self.next += 1;
        self.next
    }

    /// The node of what is committed and not served from the spool at `name`, looked up once more.
    pub(super) fn look_up_remote(&mut self, parent: NodeId, name: &[u8], kind: Kind) -> Option<NodeId> {
        if !self.nodes.contains_key(&parent) {
            return None;
        }
        let known = self.child(parent, name).filter(|id| {
            let node = &self.nodes[id];
            // The kernel refuses to open one inode through its cache and past it at a time.
            node.kind == kind && (node.local.is_none() || node.handles.is_empty())
        });
        let id = known.unwrap_or_else(|| {
            let id = self.count();
            self.add(id, kind);
            id
        });
        if kind != Kind::Dir {
            self.clear_local(id);
        }
        self.attach(id, parent, name);
        self.count_lookup(id);
        Some(id)
    }

    /// The node is now this inode of the spool.
    pub(super) fn set_local(&mut self, id: NodeId, inode: Inode) {
        self.clear_local(id);
        let key = inode.key();
        if self.nodes.contains_key(&id) {
            self.note_local(id, &inode);
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            let is_held = inode.is_held();
            node.local = Some(inode);
            self.by_inode.insert(key, id);
            if is_held {
                self.note_held(id);
            }
        }
    }

    /// The node isn't in the spool any more.
    pub(super) fn clear_local(&mut self, id: NodeId) {
        let Some(inode) = self.nodes.get_mut(&id).and_then(|n| n.local.take()) else { return };
        self.note(&Record::NoLocal { id });
        if self.by_inode.get(&inode.key()) == Some(&id) {
            self.by_inode.remove(&inode.key());
        }
    }

    /// `name` in `parent` is node `id` from now on.
    pub(super) fn attach(&mut self, id: NodeId, parent: NodeId, name: &[u8]) {
        match self.child(parent, name) {
            Some(known) if known == id => return,
            Some(_) => drop(self.detach(parent, name)),
            None => {}
        }
        if self.nodes.contains_key(&id)
            && let Some(dir) = self.nodes.get_mut(&parent)
        {
            dir.children.insert(name.to_vec(), id);
            let node = self.nodes.get_mut(&id).expect("it was there two lines above");
            node.names.push((parent, name.to_vec()));
            self.note(&Record::Name { id, parent, name });
        }
    }

    /// `name` in `parent` is nothing any more; what it was.
    pub(super) fn detach(&mut self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let id = self.nodes.get_mut(&parent)?.children.remove(name)?;
        self.note(&Record::NoName { parent, name });
        if let Some(node) = self.nodes.get_mut(&id) {
            node.names.retain(|(p, n)| (*p, n.as_slice()) != (parent, name));
        }
        self.drop_if_unused(id);
        self.drop_if_unused(parent);
        Some(id)
    }

    /// A rename has happened.
    pub(super) fn rename(&mut self, from: (NodeId, &[u8]), to: (NodeId, &[u8])) {
        let Some(id) = self.child(from.0, from.1) else {
            self.detach(to.0, to.1);
            return;
        };
        self.attach(id, to.0, to.1);
        self.detach(from.0, from.1);
    }

    /// Two names were exchanged.
    pub(super) fn exchange(&mut self, a: (NodeId, &[u8]), b: (NodeId, &[u8])) {
        let (at_a, at_b) = (self.child(a.0, a.1), self.child(b.0, b.1));
        // Held by a handle that no file has, so that detaching drops neither.
        let both = [at_a, at_b];
        self.hold(both, true);
        self.detach(a.0, a.1);
        self.detach(b.0, b.1);
        at_a.iter().for_each(|id| self.attach(*id, b.0, b.1));
        at_b.iter().for_each(|id| self.attach(*id, a.0, a.1));
        self.hold(both, false);
    }

    fn hold(&mut self, ids: [Option<NodeId>; 2], hold: bool) {
        for id in ids.into_iter().flatten() {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.lookups = if hold { node.lookups + 1 } else { node.lookups - 1 };
            }
            self.drop_if_unused(id);
        }
    }

    /// A handle was opened on the node.
    pub(super) fn opened(&mut self, id: NodeId, handle: Handle) {
        let Handle { fh, flags, request, ref content } = handle;
        self.note(&Record::Open { id, fh, flags, request, content });
        if let Some(node) = self.nodes.get_mut(&id) {
            node.handles.push(handle);
        }
    }

    /// A handle was closed.
    pub(super) fn closed(&mut self, id: NodeId, fh: Fh) {
        self.note(&Record::Closed { id, fh });
        if let Some(node) = self.nodes.get_mut(&id) {
            node.handles.retain(|known| known.fh != fh);
        }
        self.drop_if_unused(id);
    }

    pub(super) fn backing(&self, id: NodeId) -> Option<u32> {
        self.nodes.get(&id)?.backing
    }

    /// Every open handle with its node and what that is in the spool.
    pub(super) fn handles(&self) -> Vec<(NodeId, Handle, Option<Inode>)> {
        let of = |(id, node): (&NodeId, &Node)| {
            let (id, local) = (*id, node.local.clone());
            node.handles.iter().cloned().map(move |h| (id, h, local.clone())).collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(of).collect()
    }

    /// Every node that is open or has a number of the kernel's, with how many handles and that number.
    pub(super) fn backings(&self) -> Vec<(NodeId, usize, Option<u32>)> {
        let open = self.nodes.iter().filter(|(_, n)| !n.handles.is_empty() || n.backing.is_some());
        open.map(|(id, node)| (*id, node.handles.len(), node.backing)).collect()
    }

    pub(super) fn highest_backing(&self) -> u32 {
        self.highest_backing
    }

    /// Whether the node is the spool's inode of this number; 0 = of any, or of none.
    pub(super) fn is_inode(&self, id: NodeId, ino: u64) -> bool {
        let local = self.nodes.get(&id).and_then(|node| node.local.as_ref());
        ino == 0 || local.is_some_and(|inode| inode.key().1 == ino)
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// The kernel's number for the file behind the node's open handles; `None` = none any more.
    pub(super) fn set_backing(&mut self, id: NodeId, backing: Option<u32>) {
        self.note(&Record::Backed { id, backing: backing.unwrap_or(0) });
        self.highest_backing = self.highest_backing.max(backing.unwrap_or(0));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.backing = backing;
        }
        self.drop_if_unused(id);
    }

    /// The kernel has forgotten `count` look-ups.
    pub(super) fn forget(&mut self, id: NodeId, count: u64) {
        if id == ROOT {
            return;
        }
        self.note(&Record::Forgot { id, count });
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(count);
        }
        self.drop_if_unused(id);
    }

    fn drop_if_unused(&mut self, id: NodeId) {
        let mut unused = vec![id];
        while let Some(id) = unused.pop() {
            let Some(node) = self.nodes.get(&id) else { continue };
            if id == ROOT || node.lookups > 0 || !node.handles.is_empty() || !node.children.is_empty() {
                continue;
            }
            // What the kernel was told of the file behind it is taken back first.
            if node.backing.is_some() {
                continue;
            }
            self.clear_local(id);
            self.note(&Record::Dropped { id });
            let node = self.nodes.remove(&id).expect("it was there four lines above");
            for (parent, name) in node.names {
                if let Some(dir) = self.nodes.get_mut(&parent) {
                    dir.children.remove(&name);
                }
                unused.push(parent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd, sync::Arc};

    use super::*;

    fn fixture() -> (tempfile::TempDir, Arc<Spool>, Nodes) {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::open(dir.path()).expect("opens");
        let nodes = Nodes::new(&spool, spool.root_inode().expect("an inode"), None);
        (dir, spool, nodes)
    }

    fn handle(fh: Fh) -> Handle {
        Handle { fh, flags: 0, request: 0, content: Box::default() }
    }

    fn look_up(spool: &Spool, nodes: &Nodes, path: &str) -> NodeId {
        let mut here = ROOT;
        let mut dir = spool.walk(&RelPath::ROOT).expect("the root");
        for name in path.split('/') {
            let (inode, stat) = spool.identify(dir.as_fd(), name.as_bytes()).expect("there");
            let kind = Kind::of_mode(stat.st_mode);
            let found = nodes.lock().look_up_local(here, name.as_bytes(), &inode, kind);
            here = found.expect("its parent is known");
            let next = rustix::fs::OFlags::PATH;
            dir = rustix::fs::openat(&dir, name, next, rustix::fs::Mode::empty()).expect("opens");
        }
        here
    }

    #[test]
    fn a_node_keeps_its_id_through_renames_and_eviction() {
        let (dir, spool, nodes) = fixture();
        fs_err::create_dir_all(dir.path().join("a/b")).expect("made");
        fs_err::write(dir.path().join("a/b/f"), "").expect("written");
        let node = look_up(&spool, &nodes, "a/b/f");
        let a = look_up(&spool, &nodes, "a");
        fs_err::rename(dir.path().join("a"), dir.path().join("z")).expect("renamed");
        nodes.lock().rename((ROOT, b"a"), (ROOT, b"z"));
        assert_eq!(nodes.lock().path(node).expect("a path").to_string(), "z/b/f");
        assert_eq!(look_up(&spool, &nodes, "z"), a);
        let parent = nodes.lock().brief(node).and_then(|b| b.place).expect("a place").0;
        let remote = nodes.lock().look_up_remote(parent, b"f", Kind::File);
        assert_eq!(remote, Some(node), "evicted");
        assert_eq!(look_up(&spool, &nodes, "z/b/f"), node, "recalled");
        let other = nodes.lock().look_up_remote(parent, b"f", Kind::Dir);
        assert_ne!(other, Some(node), "a file doesn't become a directory");
    }

    #[test]
    fn hard_links_share_a_node_and_successors_do_not() {
        let (dir, spool, nodes) = fixture();
        fs_err::write(dir.path().join("a"), "").expect("written");
        fs_err::hard_link(dir.path().join("a"), dir.path().join("b")).expect("linked");
        let node = look_up(&spool, &nodes, "a");
        assert_eq!(look_up(&spool, &nodes, "b"), node);
        assert_eq!(nodes.lock().paths(node).len(), 2);
        nodes.lock().detach(ROOT, b"a");
        nodes.lock().detach(ROOT, b"b");
        assert_eq!(nodes.lock().path(node), None);
        fs_err::remove_file(dir.path().join("a")).expect("removed");
        fs_err::remove_file(dir.path().join("b")).expect("removed");
        fs_err::write(dir.path().join("a"), "").expect("written");
        assert_ne!(look_up(&spool, &nodes, "a"), node, "though the inode number may be the same");
    }

    #[test]
    fn what_is_forgotten_is_dropped_with_its_parents() {
        let (dir, spool, nodes) = fixture();
        fs_err::create_dir_all(dir.path().join("a/b")).expect("made");
        let b = look_up(&spool, &nodes, "a/b");
        let a = look_up(&spool, &nodes, "a");
        nodes.lock().forget(a, 2);
        assert_eq!(nodes.lock().path(b).expect("a path").to_string(), "a/b", "a child keeps its parent");
        nodes.lock().opened(b, handle(7));
        nodes.lock().forget(b, 1);
        assert_eq!(nodes.lock().len(), 3);
        nodes.lock().closed(b, 7);
        assert_eq!(nodes.lock().len(), 1);
    }
}
