//! Open files without a name.
//!
//! Where the kernel has the file of an open handle for itself (passthrough), a file whose last name goes lives on without us. Where it
//! hasn't, our descriptor is all that keeps it, and a successor would find it gone: so such a file gets a name beside the spool before it
//! loses its last one, and loses that when the last handle is closed.

use std::{
    collections::HashSet,
    ffi::OsStr,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::Path,
    sync::{Mutex, MutexGuard},
};

use rustix::fs::{self as sys, AtFlags};

use super::{Fs, FsResult, NodeId};
use crate::spool::proc_path;

/// What their names begin with; the node's number follows.
const PREFIX: &str = "orphan.";

/// The nodes that have such a name.
#[derive(Debug, Default)]
pub(super) struct Orphans(Mutex<HashSet<NodeId>>);

impl Orphans {
    fn lock(&self) -> MutexGuard<'_, HashSet<NodeId>> {
        self.0.lock().expect("no code panics under this lock")
    }

    /// The file at `name` is about to lose that name. Nothing to do unless somebody could take this mount over.
    pub(super) fn about_to_lose(&self, fs: &Fs, parent: NodeId, name: &[u8]) -> FsResult<()> {
        if !fs.requests.are_kept() {
            return Ok(());
        }
        let (node, held) = {
            let nodes = fs.nodes.lock();
            let Some(node) = nodes.child(parent, name) else { return Ok(()) };
            let handle = nodes.brief(node).and_then(|brief| brief.handle);
            let is_kernels = nodes.backing(node).is_some();
            (node, handle.filter(|_| !is_kernels))
        };
        let Some(file) = held.and_then(|fh| fs.local_file(fh)) else { return Ok(()) };
        if sys::fstat(&*file)?.st_nlink != 1 {
            return Ok(());
        }
        let (source, target) = (proc_path(file.as_fd()), fs.tmp_dir.join(name_of(node)));
        match sys::linkat(sys::CWD, source.as_c_str(), sys::CWD, &target, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        self.lock().insert(node);
        Ok(())
    }

    /// A handle on `node` was closed.
    pub(super) fn closed(&self, fs: &Fs, node: NodeId) {
        let mut orphans = self.lock();
        if orphans.is_empty() || !orphans.contains(&node) || fs.is_open(node) {
            return;
        }
        orphans.remove(&node);
        // What can't be removed goes at the next start.
        let _ = fs_err::remove_file(fs.tmp_dir.join(name_of(node)));
    }

    /// Links of `node` that nobody is to know of.
    pub(super) fn hidden_links(&self, node: NodeId) -> u32 {
        let orphans = self.lock();
        u32::from(!orphans.is_empty() && orphans.contains(&node))
    }

    /// At a start: those of `open` nodes stay, the others go.
    pub(super) fn clear(&self, tmp_dir: &Path, open: &[NodeId]) {
        for entry in fs_err::read_dir(tmp_dir).into_iter().flatten().flatten() {
            let Some(node) = node_of(&entry.file_name()) else { continue };
            if open.contains(&node) {
                self.lock().insert(node);
            } else {
                let _ = fs_err::remove_file(entry.path());
            }
        }
    }
}

fn name_of(node: NodeId) -> String {
    format!("{PREFIX}{node}")
}

fn node_of(name: &OsStr) -> Option<NodeId> {
    let number = name.as_bytes().strip_prefix(PREFIX.as_bytes())?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_a_start_only_what_is_open_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["orphan.7", "orphan.8", "copy-up.1.2"] {
            fs_err::write(dir.path().join(name), "").expect("written");
        }
        let orphans = Orphans::default();
        orphans.clear(dir.path(), &[8]);
        assert!(!dir.path().join("orphan.7").exists());
        assert!(dir.path().join("orphan.8").exists() && dir.path().join("copy-up.1.2").exists());
        assert_eq!((orphans.hidden_links(7), orphans.hidden_links(8)), (0, 1));
    }
}
