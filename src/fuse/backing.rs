//! Which open files the kernel reads and writes past us.
//!
//! The kernel insists that one inode isn't open past us and through us at the same time, and that all opens past us name one
//! backing file. So the first open of a node decides for all until its last release, also across a take-over: each number that the
//! kernel gives for a file is noted before it is used, and forgotten before it is given back.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use fuser::BackingId;

use super::Passthrough;
use crate::fs::{Fs, Opened};

/// linux/fuse.h: `_IOW(229, 2, uint32_t)`.
const BACKING_CLOSE: libc::c_ulong = 1 << 30 | 4 << 16 | 229 << 8 | 2;

#[derive(Debug)]
struct Opens {
    count: usize,
    backing: Option<u32>,
}

/// The open nodes.
#[derive(Debug)]
pub(super) struct Backings {
    is_on: AtomicBool,
    device: OnceLock<OwnedFd>,
    nodes: Mutex<HashMap<u64, Opens>>,
}

impl Backings {
    pub(super) fn new(passthrough: Passthrough) -> Self {
        Self {
            is_on: AtomicBool::new(passthrough == Passthrough::Auto),
            device: OnceLock::new(),
            nodes: Mutex::default(),
        }
    }

    /// Those that a predecessor had; what it no longer needed, or may have been given without noting it, is given back.
    pub(super) fn inherit(&self, fs: &Fs) {
        let mut nodes = self.lock();
        for (node, count, backing) in fs.inherited_backings() {
            if count > 0 {
                nodes.insert(node, Opens { count, backing });
            } else if let Some(backing) = backing {
                self.give_back(fs, node, backing);
            }
        }
        for backing in fs.stray_backings() {
            // Most were never given.
            let _ = self.close(*backing);
        }
    }

    /// The session's descriptor, which the numbers belong to.
    pub(super) fn set_device(&self, device: OwnedFd) {
        // Set once, before the first request.
        let _ = self.device.set(device);
    }

    /// The same, to be written to.
    pub(super) fn device(&self) -> &OwnedFd {
        self.device.get().expect("it is set before the first request")
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Tries it with some file of the spool, so that `status` needn't wait for the first one that is opened to know that it is refused: it takes
    /// CAP_SYS_ADMIN.
    pub(super) fn probe(&self, fs: &Fs) {
        if !self.is_on() {
            return;
        }
        match fs.spool().root().try_clone_to_owned().and_then(|root| self.register(&root)) {
            Ok(id) => drop(self.close(id)),
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                tracing::info!("passthrough takes CAP_SYS_ADMIN: files go through the daemon");
                self.switch_off();
            }
            // Not of directories, say.
            Err(e) => tracing::debug!("whether passthrough is allowed shows at the first opening: {e}"),
        }
    }

    /// The kernel has refused it for good.
    pub(super) fn switch_off(&self) {
        self.is_on.store(false, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Opens>> {
        self.nodes.lock().expect("no code panics under this lock")
    }

    /// A handle is about to be told to the kernel: the number of the file behind it, if the kernel is to use that. It is made under
    /// the lock, so that two opens don't make two, which waits for no request.
    pub(super) fn opened(&self, fs: &Fs, opened: &Opened) -> Option<u32> {
        let mut nodes = self.lock();
        if let Some(opens) = nodes.get_mut(&opened.node) {
            opens.count += usize::from(!opened.is_resumed);
            return opens.backing;
        }
        let wanted = opened.backing.as_deref().filter(|_| self.is_on());
        let backing = wanted.and_then(|file| match self.register(file) {
            Ok(id) => Some(id),
            Err(e) => {
                tracing::warn!("the kernel refuses passthrough, files go through the daemon: {e}");
                self.switch_off();
                None
            }
        });
        if backing.is_some() {
            fs.set_backing(opened.node, backing);
        }
        nodes.insert(opened.node, Opens { count: 1, backing });
        backing
    }

    /// A handle on `node` was released.
    pub(super) fn released(&self, fs: &Fs, node: u64) {
        let mut nodes = self.lock();
        let Some(opens) = nodes.get_mut(&node) else { return };
        opens.count -= 1;
        if opens.count == 0 {
            let backing = opens.backing;
            nodes.remove(&node);
            if let Some(backing) = backing {
                self.give_back(fs, node, backing);
            }
        }
    }

    fn give_back(&self, fs: &Fs, node: u64, backing: u32) {
        fs.set_backing(node, None);
        if let Err(e) = self.close(backing) {
            tracing::debug!("the kernel doesn't take a backing file back: {e}");
        }
    }

    fn register(&self, file: &OwnedFd) -> io::Result<u32> {
        let device = self.device.get().ok_or(io::ErrorKind::NotConnected)?;
        BackingId::create_raw(device, file)
    }

    fn close(&self, backing: u32) -> io::Result<()> {
        let device = self.device.get().ok_or(io::ErrorKind::NotConnected)?;
        // SAFETY: this ioctl reads one 32 bit number, which outlives the call.
        let result =
            unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BACKING_CLOSE as _, &raw const backing) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
