//! Open directories: a listing is taken as a whole when reading begins, in an order and with offsets that follow from the names alone.
//!
//! So a listing that is taken once more, by another process even, goes on where the first one was, whatever has come or gone meanwhile.

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::AsFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    Entry, Fh, Fs, FsError, FsResult, Kind, Need, NodeId,
    committed::{Listing, Resolved},
    error::found,
    names::Lookup,
    place::{Winner, kind_of},
    view::Evident,
};
use crate::{ids::RelPath, spool::Spool};

/// One line of a listing, `.` and `..` left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirItem {
    pub name: Vec<u8>,
    pub kind: Kind,
    /// The spool's inode number; 0 = not in the spool.
    pub ino: u64,
    /// Its place in the listing: reading goes on behind it. At least [`FIRST_PLACE`].
    pub place: u64,
    /// A directory at or above units' roots that shows without a look at any manifest.
    is_evident: bool,
}

/// In a directory with more lines, those that are evident are told by name only: the top has hundreds of thousands of these, and their
/// attributes are in as many manifests.
const LOOKED_UP_MAX: usize = 256;

/// Smaller numbers are for `.` and `..`.
pub const FIRST_PLACE: u64 = 4;

/// One open directory.
pub(super) struct OpenDir {
    node: NodeId,
    listing: Mutex<Option<Arc<Vec<DirItem>>>>,
    /// Something in the directory was changed by others since the listing was begun.
    is_outdated: AtomicBool,
}

impl OpenDir {
    fn new(node: NodeId) -> Self {
        Self { node, listing: Mutex::new(None), is_outdated: AtomicBool::new(false) }
    }
}

impl Fs {
    /// Opens a directory for reading.
    pub fn opendir(&self, node: NodeId) -> FsResult<Fh> {
        if self.brief(node)?.kind != Kind::Dir {
            return Err(FsError::Errno(libc::ENOTDIR));
        }
        let fh = self.next_fh();
        let dir = OpenDir::new(node);
        self.dirs.write().expect("no code panics under this lock").insert(fh, Arc::new(dir));
        Ok(fh)
    }

    /// Closes it.
    pub fn releasedir(&self, fh: Fh) {
        self.dirs.write().expect("no code panics under this lock").remove(&fh);
    }

    /// Whether what was told of an open directory isn't so any more.
    pub fn is_outdated(&self, fh: Fh) -> bool {
        let dirs = self.dirs.read().expect("no code panics under this lock");
        dirs.get(&fh).is_some_and(|dir| dir.is_outdated.load(Ordering::Acquire))
    }

    /// Others have changed something in these directories.
    pub(super) fn outdate(&self, changed: &HashSet<NodeId>) {
        for dir in self.dirs.read().expect("no code panics under this lock").values() {
            if changed.contains(&dir.node) {
                dir.is_outdated.store(true, Ordering::Release);
            }
        }
    }

    /// Tells `sink` the lines behind the place `after` until it says that it is full.
    pub fn readdir(
        &self,
        (node, fh): (NodeId, Fh),
        after: u64,
        sink: &mut dyn FnMut(&DirItem) -> bool,
    ) -> FsResult<()> {
        let listing = self.listing(node, fh, after < FIRST_PLACE)?;
        for item in behind(&listing, after) {
            if sink(item) {
                break;
            }
        }
        Ok(())
    }

    /// The same with each line looked up, but for what shows without a manifest that isn't here, or is much; a line that the sink has no room for
    /// is forgotten again. [`super::FsError::Need`] is answered only while nothing was told.
    pub fn readdirplus(
        &self,
        (node, fh): (NodeId, Fh),
        after: u64,
        sink: &mut dyn FnMut(&DirItem, Option<&Entry>) -> bool,
    ) -> FsResult<()> {
        let listing = self.listing(node, fh, after < FIRST_PLACE)?;
        let mut is_told = false;
        let is_long = listing.len() > LOOKED_UP_MAX;
        for item in behind(&listing, after) {
            let looked_up =
                if item.is_evident && is_long { None } else { Some(self.lookup(node, &item.name)) };
            let entry = match looked_up {
                Some(Ok(Lookup::Found(entry))) => entry,
                Some(Ok(Lookup::Absent { .. })) => continue,
                Some(Err(FsError::Need(Need::Manifests { .. }) | FsError::Unavailable { .. })) | None
                    if item.is_evident =>
                {
                    if sink(item, None) {
                        break;
                    }
                    is_told = true;
                    continue;
                }
                Some(Err(e)) if !is_told => return Err(e),
                Some(Err(_)) | None => break,
            };
            if sink(item, Some(&entry)) {
                self.forget(entry.attr.node, 1);
                break;
            }
            is_told = true;
        }
        Ok(())
    }

    fn listing(&self, node: NodeId, fh: Fh, anew: bool) -> FsResult<Arc<Vec<DirItem>>> {
        let known = self.dirs.read().expect("no code panics under this lock").get(&fh).cloned();
        // A handle that another process has given.
        let dir = known.unwrap_or_else(|| {
            let mut dirs = self.dirs.write().expect("no code panics under this lock");
            dirs.entry(fh).or_insert_with(|| Arc::new(OpenDir::new(node))).clone()
        });
        let known = dir.listing.lock().expect("no code panics under this lock").clone();
        if let (Some(listing), false) = (known, anew) {
            return Ok(listing);
        }
        // Before it is read: what changes from here on may be missing in it.
        dir.is_outdated.store(false, Ordering::Release);
        let mut items = self.list(node)?;
        put_in_order(&mut items);
        let listing = Arc::new(items);
        *dir.listing.lock().expect("no code panics under this lock") = Some(listing.clone());
        Ok(listing)
    }

    /// All that shows in a directory.
    pub(super) fn list(&self, node: NodeId) -> FsResult<Vec<DirItem>> {
        let dir = self.live_dir_fd(node)?;
        // A directory that is removed while it is read says ENOENT, which readdir(3) takes for the end: it may only have been evicted.
        let local = match &dir {
            Some(dir) => found(Spool::list(dir.as_fd()))?.unwrap_or_default(),
            None => Vec::new(),
        };
        let mut items: Vec<_> = local
            .into_iter()
            .map(|line| DirItem {
                name: line.name,
                kind: Kind::of(line.kind),
                ino: line.ino,
                place: 0,
                is_evident: false,
            })
            .collect();
        let path = match self.facts(node) {
            Some(facts) if !facts.is_private => facts.path.clone(),
            // Without a name it was removed, and is empty.
            _ => return Ok(items),
        };
        let Listing { mut entries, evident } = self.committed.list(&path)?;
        let in_spool: HashSet<Vec<u8>> = items.iter().map(|item| item.name.clone()).collect();
        let mut shown = Vec::with_capacity(items.len() + entries.len() + evident.len());
        for item in items.drain(..) {
            match entries.remove(&item.name) {
                Some(resolved) => shown.extend(self.shown_item(node, &path, item, resolved)?),
                None => shown.push(item),
            }
        }
        shown.extend(self.only_committed(&path, entries)?);
        let evident = evident.into_iter().filter(|evident| !in_spool.contains(&evident.name));
        shown.extend(evident.filter_map(|evident| self.by_name_only(&path, evident)));
        Ok(shown)
    }

    /// A directory that only committed layers speak for; own ones don't if the spool should have what they have.
    fn by_name_only(&self, dir: &RelPath, Evident { name, is_foreign }: Evident) -> Option<DirItem> {
        let is_shown = is_foreign || self.committed.is_partial_below(&dir.join(&name).ok()?);
        is_shown.then_some(DirItem { name, kind: Kind::Dir, ino: 0, place: 0, is_evident: true })
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
        // It may have left the spool since that was listed: then it shows as committed.
        let inode = self.in_spool(node, &item.name)?.map(|(inode, _)| inode);
        let reached = inode.map(|inode| self.reach(&inode, true)).transpose()?.flatten();
        let local = reached.as_ref().map(|(fd, stat)| (fd.as_fd(), stat));
        Ok(match self.choose(&path, local, resolved) {
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
                items.push(DirItem { name, kind: kind_of(&candidate), ino: 0, place: 0, is_evident: false });
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

/// Gives every line its place: a number that follows from its name, or, where another name has that already, the next one.
fn put_in_order(items: &mut [DirItem]) {
    items.iter_mut().for_each(|item| item.place = place_of(&item.name));
    items.sort_unstable_by(|a, b| (a.place, &a.name).cmp(&(b.place, &b.name)));
    for at in 1..items.len() {
        items[at].place = items[at].place.max(items[at - 1].place + 1);
    }
}

/// FNV-1a and a finisher, in 60 bits: the kernel wants a positive number, and `seekdir` a word of its own.
fn place_of(name: &[u8]) -> u64 {
    let mut hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    FIRST_PLACE + (hash >> 4)
}

fn behind(listing: &[DirItem], after: u64) -> &[DirItem] {
    &listing[listing.partition_point(|item| item.place <= after)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(names: impl IntoIterator<Item = String>) -> Vec<DirItem> {
        let item = |name: String| DirItem {
            name: name.into(),
            kind: Kind::File,
            ino: 1,
            place: 0,
            is_evident: false,
        };
        let mut items: Vec<_> = names.into_iter().map(item).collect();
        put_in_order(&mut items);
        items
    }

    /// A reader that goes on in a listing taken anew gets each name that was there all the time exactly once.
    #[test]
    fn a_listing_taken_anew_goes_on_where_the_first_was() {
        let name = |n: u32| format!("file-{n}");
        let first = items((0..2000).map(name));
        assert!(first.iter().all(|item| (FIRST_PLACE..1 << 62).contains(&item.place)));
        let read = &first[..700];
        let after = read[699].place;
        let goes: Vec<_> = read.iter().step_by(2).map(|item| item.name.clone()).collect();
        let stays = |n: &u32| !goes.contains(&name(*n).into_bytes());
        let second = items((0..2000).filter(stays).chain(5000..5500).map(name));
        let mut seen: Vec<_> = read.iter().chain(behind(&second, after)).map(|item| &item.name).collect();
        seen.retain(|name| first.iter().any(|item| item.name == **name));
        assert_eq!(seen.len(), 2000);
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 2000);
    }
}
