//! Directories of the spool that are kept open, and what holds for everything in them.
//!
//! Most operations are on names in a directory that was used a moment ago. What they need to know of it (its descriptor, its path,
//! whether anybody else can have something in it, which unit that belongs to) is found once and kept beside the descriptor.
//!
//! Invariants: what is kept of a directory holds for one epoch of the journal, and until a directory is renamed; a kept descriptor may
//! be of a directory that was removed (by eviction, say), which shows when nothing is found in it.

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs as sys;

use super::{Fs, FsResult, Kind, NodeId};
use crate::{
    ids::{RelPath, UnitId},
    layout::Place,
};

/// Directories kept open; fewer where descriptors are.
const DIRS_KEPT: usize = 1024;

/// What holds for everything at or below a directory.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    epoch: u64,
    pub(super) path: RelPath,
    /// Nothing committed can show there that the spool doesn't hold.
    pub(super) is_private: bool,
    pub(super) inside: Inside,
}

/// The unit of what is below a directory.
#[derive(Debug, Clone)]
pub(super) enum Inside {
    /// All of it is in this unit, or in none.
    All(Option<UnitId>),
    /// It depends on the name.
    Depends,
}

/// A directory that is kept open.
#[derive(Debug)]
pub(super) struct KeptDir {
    fd: Arc<OwnedFd>,
    facts: Mutex<Option<Arc<Facts>>>,
    /// The epoch in which it was last asked whether it is still there; `u64::MAX` = in none.
    seen: AtomicU64,
}

impl KeptDir {
    fn facts(&self) -> MutexGuard<'_, Option<Arc<Facts>>> {
        self.facts.lock().expect("no code panics under this lock")
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct KeptDirs {
    dirs: Mutex<HashMap<NodeId, Arc<KeptDir>>>,
    max: usize,
}

impl KeptDirs {
    /// As many as is good, at most this many.
    pub(super) fn at_most(max: usize) -> Self {
        Self { dirs: Mutex::default(), max: DIRS_KEPT.min(max) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<KeptDir>>> {
        self.dirs.lock().expect("no code panics under this lock")
    }

    fn get(&self, node: NodeId) -> Option<Arc<KeptDir>> {
        self.lock().get(&node).cloned()
    }

    fn keep(&self, node: NodeId, fd: Arc<OwnedFd>) {
        let mut dirs = self.lock();
        if dirs.len() >= self.max {
            dirs.clear();
        }
        dirs.insert(node, Arc::new(KeptDir { fd, facts: Mutex::default(), seen: AtomicU64::new(u64::MAX) }));
    }

    /// The directory was removed, or its node forgotten.
    pub(super) fn drop(&self, node: NodeId) {
        self.lock().remove(&node);
    }

    /// A directory was renamed: paths below it are others.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}

impl Fs {
    /// The spool's directory for a node; `None` if the spool has none there. It may have been removed since it was kept.
    pub(super) fn dir_fd(&self, node: NodeId) -> FsResult<Option<Arc<OwnedFd>>> {
        if let Some(kept) = self.kept.get(node) {
            return Ok(Some(kept.fd.clone()));
        }
        let Some((fd, stat)) = self.inode_fd(node)? else { return Ok(None) };
        if Kind::of_mode(stat.st_mode) != Kind::Dir {
            return Ok(None);
        }
        self.kept.keep(node, fd.clone());
        Ok(Some(fd))
    }

    /// The same, looked at once more if it was kept: it is there.
    pub(super) fn live_dir_fd(&self, node: NodeId) -> FsResult<Option<Arc<OwnedFd>>> {
        match self.dir_fd(node)? {
            Some(fd) if self.is_removed(node, fd.as_fd()) => self.dir_fd(node),
            fd => Ok(fd),
        }
    }

    /// A kept directory with its attributes, if it is still there.
    pub(super) fn kept_stat(&self, node: NodeId) -> Option<(Arc<OwnedFd>, sys::Stat)> {
        let fd = self.kept.get(node)?.fd.clone();
        if let Some(stat) = sys::fstat(&*fd).ok().filter(|stat| stat.st_nlink > 0) {
            return Some((fd, stat));
        }
        self.kept.drop(node);
        None
    }

    /// Whether the directory kept for `node` may have been removed since somebody last asked: where one is removed or comes back, a
    /// record changes. A directory above units that goes a moment later still is found empty, as it is.
    pub(super) fn may_be_removed(&self, node: NodeId) -> bool {
        let epoch = self.committed.epoch();
        self.kept.get(node).is_none_or(|kept| kept.seen.swap(epoch, Ordering::AcqRel) != epoch)
    }

    /// Whether `fd`, kept for `node`, is a directory that isn't there any more; then it isn't kept any longer.
    pub(super) fn is_removed(&self, node: NodeId, fd: BorrowedFd<'_>) -> bool {
        let is_removed = sys::fstat(fd).map_or(true, |stat| stat.st_nlink == 0);
        if is_removed {
            self.kept.drop(node);
        }
        is_removed
    }

    /// What holds in a directory; `None` if it has no name any more.
    pub(super) fn facts(&self, node: NodeId) -> Option<Arc<Facts>> {
        // Before anything is looked at.
        let epoch = self.committed.epoch();
        let kept = self.kept.get(node);
        let known = kept.as_ref().and_then(|kept| kept.facts().clone());
        if let Some(known) = known.filter(|facts| facts.epoch == epoch) {
            return Some(known);
        }
        let found = self.find_facts(node, epoch).map(Arc::new);
        if let Some(kept) = kept {
            *kept.facts() = found.clone();
        }
        found
    }

    fn find_facts(&self, node: NodeId, epoch: u64) -> Option<Facts> {
        let path = self.path_of(node)?;
        let inside = match self.committed.place(&path, true) {
            Place::Unit { unit } => Inside::All(Some(unit)),
            Place::LocalOnly | Place::Unrecognised { .. } => Inside::All(None),
            Place::Root | Place::Container { .. } => Inside::Depends,
        };
        let is_private = !self.committed.relevant(&path);
        Some(Facts { epoch, path, is_private, inside })
    }

    /// Whether nobody else can add to this directory, nor to any below it.
    pub fn is_private(&self, node: NodeId) -> bool {
        self.facts(node).is_some_and(|facts| facts.is_private)
    }
}
