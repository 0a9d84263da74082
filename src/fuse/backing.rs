//! Which open files the kernel reads and writes past us.
//!
//! The kernel insists that one inode isn't open past us and through us at the same time, and that all opens past us name one
//! backing file. So the first open of a node decides for all until its last release.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use fuser::BackingId;

use super::Passthrough;

#[derive(Debug)]
struct Opens {
    count: usize,
    backing: Option<Arc<BackingId>>,
}

/// The open nodes.
#[derive(Debug)]
pub(super) struct Backings {
    is_on: AtomicBool,
    nodes: Mutex<HashMap<u64, Opens>>,
}

impl Backings {
    pub(super) fn new(passthrough: Passthrough) -> Self {
        Self { is_on: AtomicBool::new(passthrough == Passthrough::Auto), nodes: Mutex::default() }
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// The kernel has refused it for good.
    pub(super) fn switch_off(&self) {
        self.is_on.store(false, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Opens>> {
        self.nodes.lock().expect("no code panics under this lock")
    }

    /// A handle on `node` is about to be told to the kernel, backed by `file` if it is in the spool. `register` makes the kernel's
    /// id for it; it is called under the lock, so that two opens don't make two, and doesn't wait for any request.
    pub(super) fn opened(
        &self,
        node: u64,
        file: Option<&OwnedFd>,
        register: impl FnOnce(&OwnedFd) -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        let mut nodes = self.lock();
        if let Some(opens) = nodes.get_mut(&node) {
            opens.count += 1;
            return opens.backing.clone();
        }
        let wanted = file.filter(|_| self.is_on());
        let backing = wanted.and_then(|file| match register(file) {
            Ok(id) => Some(Arc::new(id)),
            Err(e) => {
                tracing::warn!("the kernel refuses passthrough, files go through the daemon: {e}");
                self.switch_off();
                None
            }
        });
        nodes.insert(node, Opens { count: 1, backing: backing.clone() });
        backing
    }

    /// A handle on `node` was released.
    pub(super) fn released(&self, node: u64) {
        let mut nodes = self.lock();
        let Some(opens) = nodes.get_mut(&node) else { return };
        opens.count -= 1;
        if opens.count == 0 {
            nodes.remove(&node);
        }
    }
}
