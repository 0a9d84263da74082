//! Telling the kernel what to forget, from a thread of its own.
//!
//! A notice takes locks in the kernel that a request which waits for us may hold, so a handler must never send one.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, sync::mpsc, thread};

use fuser::INodeNo;

use crate::fs::Invalidation;

/// Takes notices for the kernel. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct Notices(mpsc::Sender<Notice>);

#[derive(Debug)]
enum Notice {
    Tell(Invalidation),
    /// Only a node's attributes.
    Attributes(u64),
    Done(mpsc::Sender<()>),
}

/// The other end, before its thread runs.
pub(super) struct Outbox(mpsc::Receiver<Notice>);

impl Notices {
    pub(super) fn new() -> (Self, Outbox) {
        let (sender, receiver) = mpsc::channel();
        (Self(sender), Outbox(receiver))
    }

    /// Tells the kernel, soon.
    pub fn tell(&self, invalidations: impl IntoIterator<Item = Invalidation>) {
        for invalidation in invalidations {
            // The receiver is gone only when the mount is, and then nobody remembers anything.
            let _ = self.0.send(Notice::Tell(invalidation));
        }
    }

    pub(super) fn attributes(&self, node: u64) {
        let _ = self.0.send(Notice::Attributes(node));
    }

    /// Waits until the kernel was told all that was said before. Not from a handler.
    pub fn flush(&self) {
        let (sender, done) = mpsc::channel();
        if self.0.send(Notice::Done(sender)).is_ok() {
            let _ = done.recv();
        }
    }
}

impl Outbox {
    pub(super) fn start(self, notifier: fuser::Notifier) {
        let run = move || {
            for notice in self.0 {
                let told = match notice {
                    Notice::Tell(Invalidation::Entry { parent, name }) => {
                        notifier.inval_entry(INodeNo(parent), OsStr::from_bytes(&name))
                    }
                    Notice::Tell(Invalidation::Node { node }) => notifier.inval_inode(INodeNo(node), 0, 0),
                    Notice::Attributes(node) => notifier.inval_inode(INodeNo(node), -1, 0),
                    Notice::Done(sender) => {
                        let _ = sender.send(());
                        Ok(())
                    }
                };
                match told {
                    Ok(()) => {}
                    // The mount has ended.
                    Err(e) if e.raw_os_error() == Some(libc::ENODEV) => break,
                    Err(e) => tracing::debug!("the kernel doesn't take a notice: {e}"),
                }
            }
        };
        if let Err(e) = thread::Builder::new().name("fuse-notices".to_owned()).spawn(run) {
            tracing::error!("no thread for notices to the kernel: {e}");
        }
    }
}
