//! Which nodes take up a descriptor, where the spool has no file handles.
//!
//! The kernel may know many more nodes than a process may have descriptors. So only so many keep theirs; those that got theirs first let go of it,
//! and are found by their path from then on, which holds as long as they have a name. What is open, or has no name any more, keeps it.

use std::collections::VecDeque;

use super::{Node, NodeId, ROOT, Table};
use crate::spool::Inode;

/// How many are passed over, at one descriptor too many, because they must keep theirs.
const PASSED_OVER: usize = 16;

/// In the order in which they got it. Some have been forgotten since.
#[derive(Debug, Default)]
pub(super) struct Held {
    nodes: VecDeque<NodeId>,
    max: usize,
}

impl Held {
    /// None before a spool is known.
    pub(super) fn at_most(max: usize) -> Self {
        Self { nodes: VecDeque::new(), max }
    }
}

impl Node {
    /// Whether `found` is what the node is, as `known`. One that was let go of is it as long as it has a name: then its number wasn't given again.
    pub(super) fn is_surely(&self, known: &Inode, found: &Inode) -> bool {
        known.is_same(found) && (!known.is_let_go() || !self.names.is_empty())
    }

    fn may_let_go(&self) -> bool {
        self.handles.is_empty() && !self.names.is_empty()
    }
}

impl Table {
    /// The node has got a descriptor; another may have to let go of its own.
    pub(super) fn note_held(&mut self, id: NodeId) {
        self.held.nodes.push_back(id);
        for _ in 0..PASSED_OVER {
            if self.held.nodes.len() <= self.held.max {
                return;
            }
            let Some(oldest) = self.held.nodes.pop_front() else { return };
            let Some(node) = self.nodes.get_mut(&oldest) else { continue };
            if oldest == ROOT || !node.may_let_go() {
                self.held.nodes.push_back(oldest);
            } else if let Some(inode) = &mut node.local {
                inode.let_go();
            }
        }
    }

    /// A node that had let go of its inode is looked up again.
    pub(super) fn hold_again(&mut self, id: NodeId, inode: &Inode) {
        let known = self.nodes.get_mut(&id).and_then(|node| node.local.as_mut());
        if let Some(known) = known.filter(|known| known.is_let_go()) {
            *known = inode.clone();
            self.note_held(id);
        }
    }
}
