//! The table in the ledger: noting changes, writing it anew, and reading what a predecessor has left.

use std::collections::HashMap;

use super::{COUNTED_FROM, Handle, Node, Table, held::Held};
use crate::{
    fs::{
        NodeId, ROOT,
        ledger::{Ledger, LedgerError, Record},
    },
    spool::{Inode, Spool},
};

impl Table {
    pub(super) fn empty(dev: u64) -> Self {
        Self {
            nodes: HashMap::default(),
            by_inode: HashMap::default(),
            next: COUNTED_FROM,
            highest_backing: 0,
            dev,
            ledger: None,
            held: Held::default(),
        }
    }

    pub(super) fn note(&mut self, record: &Record<'_>) {
        if let Some(ledger) = &mut self.ledger {
            ledger.append(record);
        }
    }

    pub(super) fn note_local(&mut self, id: NodeId, inode: &Inode) {
        if self.ledger.is_some() {
            self.note(&local_record(id, inode, inode.name().as_deref()));
        }
    }

    /// What was noted counts from now on; what is over is left out when there is much of it.
    pub(super) fn settle(&mut self) {
        let Some(ledger) = &mut self.ledger else { return };
        ledger.commit();
        if ledger.is_long() {
            let mut ledger = self.ledger.take().expect("seen two lines above");
            ledger.rewrite(|ledger| self.write(ledger));
            self.ledger = Some(ledger);
        }
    }

    /// All that the table holds. Nodes first, since names speak of them.
    fn write(&self, ledger: &mut Ledger) {
        ledger.append(&Record::Next { node: self.next, backing: self.highest_backing });
        for (id, node) in &self.nodes {
            ledger.append(&Record::Node { id: *id, kind: node.kind, lookups: node.lookups });
            if let Some(inode) = &node.local {
                ledger.append(&local_record(*id, inode, inode.name().as_deref()));
            }
            for Handle { fh, flags, request, content } in &node.handles {
                ledger.append(&Record::Open { id: *id, fh: *fh, flags: *flags, request: *request, content });
            }
            if let Some(backing) = node.backing {
                ledger.append(&Record::Backed { id: *id, backing });
            }
        }
        for (id, node) in &self.nodes {
            for (parent, name) in &node.names {
                ledger.append(&Record::Name { id: *id, parent: *parent, name });
            }
        }
    }

    /// The table that these records tell of.
    pub(super) fn restored(spool: &Spool, mut records: &[u8]) -> Result<Self, LedgerError> {
        let mut table = Self::empty(spool.dev());
        while !records.is_empty() {
            let (record, rest) = Record::decode(records)?;
            table.apply(&record).ok_or(LedgerError::Damaged)?;
            records = rest;
        }
        let root = table.nodes.get(&ROOT).ok_or(LedgerError::Damaged)?;
        let root = root.local.as_ref().ok_or(LedgerError::Damaged)?;
        let is_here = spool.root_inode().is_ok_and(|inode| inode.is_same(root));
        if is_here { Ok(table) } else { Err(LedgerError::OtherSpool) }
    }

    /// `None` if the record speaks of what isn't there.
    fn apply(&mut self, record: &Record<'_>) -> Option<()> {
        match *record {
            Record::Node { id, kind, lookups } => {
                self.nodes.insert(id, Node { lookups, ..Node::new(kind) });
                self.next = if id < COUNTED_FROM { self.next } else { self.next.max(id) };
            }
            Record::Dropped { id } => {
                for (parent, name) in self.nodes.remove(&id)?.names {
                    self.nodes.get_mut(&parent)?.children.remove(&name);
                }
            }
            Record::Looked { id } => self.nodes.get_mut(&id)?.lookups += 1,
            Record::Forgot { id, count } => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.lookups = node.lookups.saturating_sub(count);
                }
            }
            Record::Name { id, parent, name } => {
                self.nodes.get_mut(&id)?.names.push((parent, name.to_vec()));
                self.nodes.get_mut(&parent)?.children.insert(name.to_vec(), id);
            }
            Record::NoName { parent, name } => {
                let id = self.nodes.get_mut(&parent)?.children.remove(name)?;
                self.nodes.get_mut(&id)?.names.retain(|(p, n)| (*p, n.as_slice()) != (parent, name));
            }
            Record::Local { id, dev, ino, handle } => {
                // Without a name for it, it is found again by its path.
                if let Some(inode) = Inode::named(dev, ino, handle) {
                    self.set_local(id, inode);
                }
            }
            Record::NoLocal { id } => self.clear_local(id),
            Record::Open { id, fh, flags, request, content } => {
                let handle = Handle { fh, flags, request, content: content.into() };
                self.nodes.get_mut(&id)?.handles.push(handle);
            }
            Record::Closed { id, fh } => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.handles.retain(|known| known.fh != fh);
                }
            }
            Record::Backed { id, backing } => {
                self.highest_backing = self.highest_backing.max(backing);
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.backing = Some(backing).filter(|number| *number != 0);
                }
            }
            Record::Next { node, backing } => {
                self.next = self.next.max(node);
                self.highest_backing = self.highest_backing.max(backing);
            }
        }
        Some(())
    }
}

fn local_record<'a>(id: NodeId, inode: &Inode, name: Option<&'a [u8]>) -> Record<'a> {
    let (dev, ino) = inode.key();
    Record::Local { id, dev, ino, handle: name.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use proptest::{prelude::*, test_runner::TestCaseError};

    use super::*;
    use crate::fs::{Kind, ledger::Keep, nodes::Nodes};

    /// What the table holds, without the order of its maps.
    fn picture(table: &Table) -> BTreeMap<NodeId, String> {
        let look = |node: &Node| {
            let mut names = node.names.clone();
            names.sort();
            let children: BTreeMap<_, _> = node.children.iter().collect();
            let local = node.local.as_ref().map(Inode::key);
            format!(
                "{:?} {} {names:?} {children:?} {local:?} {:?} {:?}",
                node.kind, node.lookups, node.handles, node.backing
            )
        };
        let mut all: BTreeMap<_, _> = table.nodes.iter().map(|(id, node)| (*id, look(node))).collect();
        let mut inodes: Vec<_> = table.by_inode.iter().collect();
        inodes.sort();
        all.insert(0, format!("{inodes:?} {} {}", table.next, table.highest_backing));
        all
    }

    #[derive(Debug, Clone)]
    enum Op {
        Local(u8, u8, u64),
        Remote(u8, u8),
        Detach(u8, u8),
        Rename(u8, u8, u8, u8),
        Exchange(u8, u8, u8, u8),
        Open(u8),
        Close(u8),
        Back(u8, bool),
        Forget(u8),
        ClearLocal(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        let (dir, name) = (0u8..6, 0u8..5);
        prop_oneof![
            (dir.clone(), name.clone(), 2u64..30).prop_map(|(d, n, i)| Op::Local(d, n, i)),
            (dir.clone(), name.clone()).prop_map(|(d, n)| Op::Remote(d, n)),
            (dir.clone(), name.clone()).prop_map(|(d, n)| Op::Detach(d, n)),
            (dir.clone(), name.clone(), dir.clone(), name.clone())
                .prop_map(|(a, b, c, d)| Op::Rename(a, b, c, d)),
            (dir.clone(), name.clone(), dir, name).prop_map(|(a, b, c, d)| Op::Exchange(a, b, c, d)),
            any::<u8>().prop_map(Op::Open),
            any::<u8>().prop_map(Op::Close),
            (any::<u8>(), any::<bool>()).prop_map(|(n, on)| Op::Back(n, on)),
            any::<u8>().prop_map(Op::Forget),
            any::<u8>().prop_map(Op::ClearLocal),
        ]
    }

    /// A node by a small number; directories are the even ones, so that names can go below them.
    fn pick(table: &Table, number: u8, wants_dir: bool) -> NodeId {
        let mut ids: Vec<_> = table
            .nodes
            .iter()
            .filter(|(_, n)| !wants_dir || n.kind == Kind::Dir)
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        ids[usize::from(number) % ids.len()]
    }

    fn is_above(table: &Table, above: NodeId, mut node: NodeId) -> bool {
        while node != above {
            match table.nodes.get(&node).and_then(|n| n.names.last()) {
                Some((parent, _)) => node = *parent,
                None => return false,
            }
        }
        true
    }

    fn act(table: &mut Table, op: &Op, fh: u64) {
        let name = |n: u8| vec![b'a' + n];
        match *op {
            Op::Local(d, n, ino) => {
                let parent = pick(table, d, true);
                let kind = if ino % 3 == 0 { Kind::Dir } else { Kind::File };
                let known = table.by_inode.get(&(table.dev, ino)).copied();
                if kind == Kind::Dir && known.is_some() {
                    return;
                }
                let inode = Inode::named(table.dev, ino, &[1, 0, 0, 0, 9, 9]).expect("a name");
                table.look_up_local(parent, &name(n), &inode, kind);
            }
            Op::Remote(d, n) => {
                let parent = pick(table, d, true);
                table.look_up_remote(parent, &name(n), Kind::File);
            }
            Op::Detach(d, n) => drop(table.detach(pick(table, d, true), &name(n))),
            Op::Rename(a, b, c, d) | Op::Exchange(a, b, c, d) => {
                let (from, to) = (pick(table, a, true), pick(table, c, true));
                let crosses = [(from, name(b), to), (to, name(d), from)].iter().any(|(dir, name, other)| {
                    table.child(*dir, name).is_some_and(|child| is_above(table, child, *other))
                });
                match op {
                    _ if crosses => {}
                    Op::Rename(..) => table.rename((from, &name(b)), (to, &name(d))),
                    _ => table.exchange((from, &name(b)), (to, &name(d))),
                }
            }
            Op::Open(n) => {
                let content = if n % 2 == 0 { vec![n; 9].into() } else { Box::default() };
                let handle = Handle { fh, flags: u32::from(n) % 3, request: fh * 2, content };
                table.opened(pick(table, n, false), handle);
            }
            Op::Close(n) => {
                let id = pick(table, n, false);
                if let Some(fh) = table.nodes[&id].handles.first().map(|h| h.fh) {
                    table.closed(id, fh);
                }
            }
            Op::Back(n, on) => {
                let id = pick(table, n, false);
                table.set_backing(id, on.then_some(u32::from(n) + 1));
            }
            Op::Forget(n) => table.forget(pick(table, n, false), 1),
            Op::ClearLocal(n) => {
                let id = pick(table, n, false);
                if id != ROOT {
                    table.clear_local(id);
                }
            }
        }
    }

    fn check(nodes: &Nodes, spool: &Spool, keep: &Keep) -> Result<(), TestCaseError> {
        let left = Table::restored(spool, &keep.memory.records());
        let left = left.map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(picture(&left), picture(&nodes.table.lock().expect("unpoisoned")));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// P7: whatever the daemon was doing when it was killed, its successor finds the table of nodes and handles as it was between two
        /// operations on it.
        #[test]
        fn a_successor_finds_the_table_as_it_was(ops in prop::collection::vec(op(), 1..60), rewrite_at in 0usize..60) {
            let dir = tempfile::tempdir().expect("a directory");
            let spool: Arc<Spool> = Spool::open(dir.path()).expect("opens");
            let keep = Keep::new().expect("memory");
            let ledger = Ledger::new(keep.memory.clone());
            let nodes = Nodes::new(&spool, spool.root_inode().expect("an inode"), Some(ledger));
            for (at, op) in ops.iter().enumerate() {
                act(&mut nodes.lock(), op, at as u64 + 1);
                check(&nodes, &spool, &keep)?;
                if at == rewrite_at {
                    let mut table = nodes.lock();
                    let mut ledger = table.ledger.take().expect("there is one");
                    ledger.rewrite(|ledger| table.write(ledger));
                    table.ledger = Some(ledger);
                    drop(table);
                    check(&nodes, &spool, &keep)?;
                }
            }
        }
    }

    #[test]
    fn what_is_over_does_not_fill_the_memory() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::open(dir.path()).expect("opens");
        let keep = Keep::new().expect("memory");
        let ledger = Ledger::new(keep.memory.clone());
        let nodes = Nodes::new(&spool, spool.root_inode().expect("an inode"), Some(ledger));
        for _ in 0..100_000 {
            let id = nodes.lock().look_up_remote(ROOT, b"name", Kind::File).expect("its parent is known");
            nodes.lock().forget(id, 1);
        }
        assert!(keep.memory.records().len() < 4 << 20);
    }
}
