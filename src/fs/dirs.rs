//! Open directories: a listing is taken as a whole when reading begins, so that offsets stay what they were.

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    Entry, Fh, Fs, FsError, FsResult, Kind, Need, NodeId,
    committed::{Candidate, Resolved},
    names::Lookup,
    place::{Winner, kind_of},
};
use crate::{ids::RelPath, spool::Spool};

/// One line of a listing, `.` and `..` left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirItem {
    pub name: Vec<u8>,
    pub kind: Kind,
    /// The spool's inode number; 0 = not in the spool.
    pub ino: u64,
    /// Of a directory above units: what it looks like until somebody asks, which may take manifests that aren't here.
    provisional: Option<Box<Candidate>>,
}

/// One open directory.
pub(super) struct OpenDir {
    node: NodeId,
    listing: Mutex<Option<Arc<Vec<DirItem>>>>,
}

impl Fs {
    /// Opens a directory for reading.
    pub fn opendir(&self, node: NodeId) -> FsResult<Fh> {
        if self.brief(node)?.kind != Kind::Dir {
            return Err(FsError::Errno(libc::ENOTDIR));
        }
        let fh = self.next_fh();
        let dir = OpenDir { node, listing: Mutex::new(None) };
        self.dirs.write().expect("no code panics under this lock").insert(fh, Arc::new(dir));
        Ok(fh)
    }

    /// Closes it.
    pub fn releasedir(&self, fh: Fh) {
        self.dirs.write().expect("no code panics under this lock").remove(&fh);
    }

    /// Tells `sink` the lines after the first `skip`, each with its place, until it says that it is full.
    pub fn readdir(
        &self,
        fh: Fh,
        skip: usize,
        sink: &mut dyn FnMut(&DirItem, usize) -> bool,
    ) -> FsResult<()> {
        let (_, listing) = self.listing(fh, skip == 0)?;
        for (at, item) in listing.iter().enumerate().skip(skip) {
            if sink(item, at) {
                break;
            }
        }
        Ok(())
    }

    /// The same with each line looked up; a line that the sink has no room for is forgotten again. [`super::FsError::Need`] is
    /// answered only while nothing was told.
    pub fn readdirplus(
        &self,
        fh: Fh,
        skip: usize,
        sink: &mut dyn FnMut(&DirItem, usize, &Entry) -> bool,
    ) -> FsResult<()> {
        let (node, listing) = self.listing(fh, skip == 0)?;
        let mut is_told = false;
        for (at, item) in listing.iter().enumerate().skip(skip) {
            let entry = match self.lookup(node, &item.name) {
                Ok(Lookup::Found(entry)) => entry,
                Ok(Lookup::Absent { .. }) => continue,
                Err(FsError::Need(Need::Manifests { .. }) | FsError::Unavailable { .. })
                    if item.provisional.is_some() =>
                {
                    match self.provisional_entry(node, item)? {
                        Some(entry) => entry,
                        None => continue,
                    }
                }
                Err(_) if is_told => break,
                Err(e) => return Err(e),
            };
            if sink(item, at, &entry) {
                self.forget(entry.attr.node, 1);
                break;
            }
            is_told = true;
        }
        Ok(())
    }

    /// A listing of the top must not fetch every job's manifest: attributes that don't hold are asked for when they are wanted.
    fn provisional_entry(&self, dir: NodeId, item: &DirItem) -> FsResult<Option<Entry>> {
        let Some(candidate) = &item.provisional else { return Ok(None) };
        let entry = self.remote_entry(dir, &item.name, candidate)?;
        Ok(Some(Entry { attr_ttl: Duration::ZERO, ..entry }))
    }

    fn listing(&self, fh: Fh, anew: bool) -> FsResult<(NodeId, Arc<Vec<DirItem>>)> {
        let dir = {
            let dirs = self.dirs.read().expect("no code panics under this lock");
            dirs.get(&fh).cloned().ok_or(FsError::Errno(libc::EBADF))?
        };
        let known = dir.listing.lock().expect("no code panics under this lock").clone();
        if let (Some(listing), false) = (known, anew) {
            return Ok((dir.node, listing));
        }
        let listing = Arc::new(self.list(dir.node)?);
        *dir.listing.lock().expect("no code panics under this lock") = Some(listing.clone());
        Ok((dir.node, listing))
    }

    /// All that shows in a directory.
    fn list(&self, node: NodeId) -> FsResult<Vec<DirItem>> {
        let dir = self.live_dir_fd(node)?;
        let local = match &dir {
            Some(dir) => Spool::list(dir.as_fd())?,
            None => Vec::new(),
        };
        let mut items: Vec<_> = local
            .into_iter()
            .map(|line| DirItem {
                name: line.name,
                kind: Kind::of(line.kind),
                ino: line.ino,
                provisional: None,
            })
            .collect();
        let path = match self.facts(node) {
            Some(facts) if !facts.is_private => facts.path.clone(),
            // Without a name it was removed, and is empty.
            _ => return Ok(items),
        };
        let mut committed = self.committed.list(&path)?;
        let mut shown = Vec::with_capacity(items.len() + committed.len());
        for item in items.drain(..) {
            let Some(resolved) = committed.remove(&item.name) else {
                shown.push(item);
                continue;
            };
            shown.extend(self.shown_item(node, &path, item, resolved)?);
        }
        shown.extend(self.only_committed(&path, committed)?);
        Ok(shown)
    }

    /// What shows of a line that both the spool and the committed layers have.
    fn shown_item(
        &self,
        node: NodeId,
        dir: &RelPath,
        item: DirItem,
        resolved: Resolved,
    ) -> FsResult<Option<DirItem>> {
        let path = dir.join(&item.name).map_err(|_| FsError::Errno(libc::EIO))?;
        let Some((inode, stat)) = self.in_spool(node, &item.name)? else { return Ok(None) };
        let fd = self.spool.reach(&inode)?;
        Ok(match self.choose(&path, Some((fd.as_fd(), &stat)), resolved) {
            Winner::Spool { .. } => Some(item),
            Winner::Remote(candidate) => Some(DirItem { kind: kind_of(&candidate), ino: 0, ..item }),
            Winner::Nobody => None,
        })
    }

    fn only_committed(&self, dir: &RelPath, names: BTreeMap<Vec<u8>, Resolved>) -> FsResult<Vec<DirItem>> {
        let mut items = Vec::new();
        for (name, resolved) in names {
            let path = dir.join(&name).map_err(|_| FsError::Errno(libc::EIO))?;
            if let Winner::Remote(candidate) = self.choose(&path, None, resolved) {
                let kind = kind_of(&candidate);
                let provisional = candidate.synthetic.then_some(candidate);
                items.push(DirItem { name, kind, ino: 0, provisional });
            }
        }
        Ok(items)
    }

    /// Whether nothing shows in the directory at `name`.
    pub(super) fn is_empty_dir(&self, parent: NodeId, name: &[u8], path: &RelPath) -> FsResult<bool> {
        let node = self.nodes.lock().child(parent, name).ok_or(FsError::Errno(libc::ESTALE))?;
        debug_assert_eq!(
            self.path_of(node).as_ref(),
            Some(path),
            "a child's path is its parent's and its name"
        );
        Ok(self.list(node)?.is_empty())
    }
}
