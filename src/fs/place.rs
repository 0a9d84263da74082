//! From a node to its directory, its inode in the spool, and what shows at its path.
//!
//! The order of precedence is docs/architecture.md, "The union": what was changed here since it was last committed, then the
//! newest commit of anybody; an own commit counts only where the spool still has it or the layer is partial.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
};

use rustix::fs::{self as sys, AtFlags, Stat};

use super::{
    Attr, Entry, Fs, FsError, FsResult, Kind, MAPPED_TTL, NodeId, TROUBLED_TTL, TTL,
    attr::mtime,
    committed::{Candidate, Resolved},
    error::found,
    nodes::Brief,
};
use crate::{
    ids::{PathError, RelPath},
    manifest::Body,
    spool::Inode,
};

/// Links of a directory whose subdirectories nobody has counted; find(1) takes 2 for "has none".
const UNCOUNTED: u32 = 1;

/// What shows at a path or as a node.
pub(super) enum Shown {
    /// The spool's.
    Local(Local),
    /// What is committed and isn't in the spool, or newer than what is.
    Remote(Box<Candidate>),
}

/// An inode of the spool.
pub(super) struct Local {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) stat: Stat,
    /// Of a directory that others have, too: whose mode, owner and time show.
    pub(super) attrs: Option<Box<Candidate>>,
}

/// Who wins at a path.
pub(super) enum Winner {
    Spool { attrs: Option<Box<Candidate>> },
    Remote(Box<Candidate>),
    Nobody,
}

impl Fs {
    pub(super) fn brief(&self, node: NodeId) -> FsResult<Brief> {
        self.nodes.lock().brief(node).ok_or(FsError::Errno(libc::ESTALE))
    }

    /// Where a node is; `None` if it has no name any more.
    pub(super) fn path_of(&self, node: NodeId) -> Option<RelPath> {
        self.nodes.lock().path(node)
    }

    /// Where `name` in directory `parent` is.
    pub(super) fn path_in(&self, parent: NodeId, name: &[u8]) -> FsResult<RelPath> {
        let facts = self.facts(parent).ok_or(FsError::Errno(libc::ENOENT))?;
        facts.path.join(name).map_err(|e| match e {
            PathError::TooLong => FsError::Errno(libc::ENAMETOOLONG),
            _ => FsError::Errno(libc::EINVAL),
        })
    }

    /// The spool's inode of a node with its attributes: as the table has it, or, where that is gone, as its path has it.
    pub(super) fn inode_fd(&self, node: NodeId) -> FsResult<Option<(Arc<OwnedFd>, Stat)>> {
        let brief = self.brief(node)?;
        // The kernel asks for a directory's attributes after every change in it.
        if let Some(kept) = self.kept_stat(node) {
            return Ok(Some(kept));
        }
        if let Some(inode) = &brief.local
            && let Some(hit) = self.reach(inode, brief.place.is_some())?
        {
            return Ok(Some(hit));
        }
        let Some((parent, name)) = &brief.place else { return self.open_fd(&brief) };
        let Some((inode, stat)) = self.in_spool(*parent, name)? else {
            self.nodes.lock().clear_local(node);
            return Ok(None);
        };
        if Kind::of_mode(stat.st_mode) != brief.kind {
            return Ok(None);
        }
        let fd = self.spool.reach(&inode)?;
        // A file may be hidden by a newer commit, and is the node's only when it is looked up.
        if brief.kind == Kind::Dir {
            self.nodes.lock().set_local(node, inode);
        }
        Ok(Some((fd, stat)))
    }

    /// `None` if the inode is gone, or has lost its name though it should have one.
    pub(super) fn reach(&self, inode: &Inode, has_name: bool) -> FsResult<Option<(Arc<OwnedFd>, Stat)>> {
        let fd = match self.spool.reach(inode) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ESTALE) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let stat = sys::fstat(&*fd)?;
        Ok((stat.st_nlink > 0 || !has_name).then_some((fd, stat)))
    }

    /// What an open handle still holds of a node without a name.
    fn open_fd(&self, brief: &Brief) -> FsResult<Option<(Arc<OwnedFd>, Stat)>> {
        let Some(fd) = brief.handle.and_then(|fh| self.local_file(fh)) else { return Ok(None) };
        let stat = sys::fstat(&*fd)?;
        Ok(Some((fd, stat)))
    }

    /// What the spool has at `name`, whatever shows there.
    pub(super) fn in_spool(&self, parent: NodeId, name: &[u8]) -> FsResult<Option<(Inode, Stat)>> {
        let Some(dir) = self.dir_fd(parent)? else { return Ok(None) };
        match found(self.spool.identify(dir.as_fd(), name))? {
            None if self.may_be_removed(parent) && self.is_removed(parent, dir.as_fd()) => {
                match self.dir_fd(parent)? {
                    Some(dir) => found(self.spool.identify(dir.as_fd(), name)),
                    None => Ok(None),
                }
            }
            found => Ok(found),
        }
    }

    /// What shows as this node.
    pub(super) fn shown(&self, node: NodeId) -> FsResult<Shown> {
        let local = self.inode_fd(node)?;
        let is_open = self.brief(node)?.handle.is_some_and(|fh| self.local_file(fh).is_some());
        let winner = match self.path_of(node) {
            // Who has it open goes on with it, whatever was committed meanwhile; who looks it up anew gets another node.
            _ if is_open && local.is_some() => Winner::Spool { attrs: None },
            Some(path) => self.winner(&path, local.as_ref().map(|(fd, stat)| (fd.as_fd(), stat)))?,
            None if local.is_some() => Winner::Spool { attrs: None },
            None => return self.held_remote(node),
        };
        match (winner, local) {
            (Winner::Spool { attrs }, Some((fd, stat))) => Ok(Shown::Local(Local { fd, stat, attrs })),
            (Winner::Remote(candidate), _) if kind_of(&candidate) == self.brief(node)?.kind => {
                Ok(Shown::Remote(candidate))
            }
            _ => Err(FsError::Errno(libc::ESTALE)),
        }
    }

    /// What an open handle still holds of a remote node without a name.
    fn held_remote(&self, node: NodeId) -> FsResult<Shown> {
        let handle = self.brief(node)?.handle;
        let candidate = handle.and_then(|fh| self.remote_file(fh));
        candidate.map(Shown::Remote).ok_or(FsError::Errno(libc::ESTALE))
    }

    /// Who wins at `path`, where the spool has `local`.
    pub(super) fn winner(&self, path: &RelPath, local: Option<(BorrowedFd<'_>, &Stat)>) -> FsResult<Winner> {
        let spool = || if local.is_some() { Winner::Spool { attrs: None } } else { Winner::Nobody };
        if !self.committed.relevant(path) {
            return Ok(spool());
        }
        match self.committed.resolve(path, local.is_some()) {
            Ok(Some(resolved)) => Ok(self.choose(path, local, resolved)),
            Ok(None) => Ok(spool()),
            Err(e) => Err(e),
        }
    }

    pub(super) fn choose(
        &self,
        path: &RelPath,
        local: Option<(BorrowedFd<'_>, &Stat)>,
        Resolved { own, foreign }: Resolved,
    ) -> Winner {
        let Some((fd, stat)) = local else {
            let own = own.filter(|c| self.committed.outlives_the_spool(path, c));
            return match own.into_iter().chain(foreign).max_by_key(|c| c.seq) {
                Some(best) if !is_whiteout(&best) => Winner::Remote(Box::new(best)),
                _ => Winner::Nobody,
            };
        };
        let newer = match (own, foreign) {
            (Some(own), Some(foreign)) if foreign.seq > own.seq => {
                (!self.is_changed(path, fd, stat, &own)).then_some(foreign)
            }
            _ => None,
        };
        match newer {
            None => Winner::Spool { attrs: None },
            Some(c) if is_whiteout(&c) => Winner::Nobody,
            Some(c) if kind_of(&c) == Kind::Dir && Kind::of_mode(stat.st_mode) == Kind::Dir => {
                Winner::Spool { attrs: Some(Box::new(c)) }
            }
            Some(c) => Winner::Remote(Box::new(c)),
        }
    }

    /// Whether the spool's `stat` was changed since `own` was committed.
    fn is_changed(&self, path: &RelPath, fd: BorrowedFd<'_>, stat: &Stat, own: &Candidate) -> bool {
        let attrs = &own.entry.attrs;
        let differs = Kind::of_mode(stat.st_mode) != kind_of(own)
            || (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) != (attrs.mode, attrs.uid, attrs.gid)
            || mtime(stat) != attrs.mtime
            || own.file.is_some_and(|(size, _)| size != stat.st_size as u64);
        differs || self.committed.is_marked(path) || is_other_link(fd, own)
    }

    /// An entry for what the spool has at `name`, counted as looked up.
    pub(super) fn local_entry(
        &self,
        parent: NodeId,
        name: &[u8],
        (inode, stat): (&Inode, &Stat),
        attrs: Option<&Candidate>,
    ) -> FsResult<Entry> {
        let mut nodes = self.nodes.lock();
        let node = nodes
            .look_up_local(parent, name, inode, Kind::of_mode(stat.st_mode))
            .ok_or(FsError::Errno(libc::ESTALE))?;
        let is_mapped = nodes.is_mapped(node);
        drop(nodes);
        let attr = self.local_attr(node, stat, attrs);
        if attr.is_err() {
            self.forget(node, 1);
        }
        Ok(self.entry(attr?, is_mapped))
    }

    /// An entry for what is committed at `name`, counted as looked up.
    pub(super) fn remote_entry(&self, parent: NodeId, name: &[u8], candidate: &Candidate) -> FsResult<Entry> {
        let attr = self.remote_attr(0, candidate)?;
        let known = self.nodes.lock().child(parent, name);
        known.map_or(Ok(()), |node| self.settle(node))?;
        let node = self.nodes.lock().look_up_remote(parent, name, attr.kind);
        let node = node.ok_or(FsError::Errno(libc::ESTALE))?;
        Ok(self.entry(Attr { node, ..attr }, false))
    }

    /// A node's attributes and how long they hold.
    pub fn getattr(&self, node: NodeId) -> FsResult<Entry> {
        if let Some((stat, is_mapped)) = self.plain_stat(node)? {
            return Ok(self.entry(self.local_attr(node, &stat, None)?, is_mapped));
        }
        self.settle(node)?;
        let attr = match self.shown(node)? {
            Shown::Local(local) => self.local_attr(node, &local.stat, local.attrs.as_deref())?,
            Shown::Remote(candidate) => self.remote_attr(node, &candidate)?,
        };
        Ok(self.entry(attr, self.brief(node)?.is_mapped))
    }

    /// The attributes of what nobody else can have anything of, by its name and without opening it.
    fn plain_stat(&self, node: NodeId) -> FsResult<Option<(Stat, bool)>> {
        let brief = self.brief(node)?;
        if brief.kind == Kind::Dir {
            let kept = if self.is_private(node) { self.kept_stat(node) } else { None };
            return Ok(kept.map(|(_, stat)| (stat, false)));
        }
        let (Some((parent, name)), Some(inode)) = (&brief.place, &brief.local) else { return Ok(None) };
        let Some(dir) = self.dir_fd(*parent)? else { return Ok(None) };
        let stat = sys::statat(&*dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW).ok();
        // After the look: who frees files says so first.
        let stat = stat.filter(|stat| {
            (stat.st_dev, stat.st_ino) == inode.key()
                && Kind::of_mode(stat.st_mode) == brief.kind
                && self.is_private(*parent)
        });
        Ok(stat.map(|stat| (stat, brief.is_mapped)))
    }

    /// An answer that the kernel may believe as long as nobody says otherwise.
    pub(super) fn entry(&self, attr: Attr, is_mapped: bool) -> Entry {
        let ttl = self.ttl();
        Entry { attr, entry_ttl: ttl, attr_ttl: if is_mapped { MAPPED_TTL.min(ttl) } else { ttl } }
    }

    pub(super) fn ttl(&self) -> std::time::Duration {
        if self.committed.is_troubled() { TROUBLED_TTL } else { TTL }
    }

    pub(super) fn local_attr(&self, node: NodeId, stat: &Stat, attrs: Option<&Candidate>) -> FsResult<Attr> {
        let mut attr = Attr::of_stat(node, stat);
        attr.nlink = attr.nlink.saturating_sub(self.orphans.hidden_links(node));
        if attr.kind == Kind::Dir && self.facts(node).is_some_and(|facts| !facts.is_private) {
            attr.nlink = UNCOUNTED;
        }
        let Some(candidate) = attrs else { return Ok(attr) };
        let other = self.remote_attr(node, candidate)?;
        Ok(Attr { perm: other.perm, uid: other.uid, gid: other.gid, mtime: other.mtime, ..attr })
    }

    fn remote_attr(&self, node: NodeId, candidate: &Candidate) -> FsResult<Attr> {
        let (uid, gid) = self.committed.owner(candidate)?;
        let attrs = &candidate.entry.attrs;
        let size = match &candidate.entry.body {
            Body::Symlink { target } => target.len() as u64,
            _ => candidate.file.map_or(0, |(size, _)| size),
        };
        Ok(Attr {
            node,
            kind: kind_of(candidate),
            perm: attrs.mode,
            nlink: if matches!(candidate.entry.body, Body::Dir) {
                UNCOUNTED
            } else {
                self.committed.nlink(candidate)
            },
            uid,
            gid,
            rdev: 0,
            size,
            blocks: size.div_ceil(512),
            blksize: 4096,
            atime: attrs.mtime,
            mtime: attrs.mtime,
            ctime: attrs.mtime,
        })
    }
}

pub(super) fn is_whiteout(candidate: &Candidate) -> bool {
    matches!(candidate.entry.body, Body::Whiteout)
}

/// What an entry of a manifest is; a whiteout is asked before.
pub(super) fn kind_of(candidate: &Candidate) -> Kind {
    match candidate.entry.body {
        Body::Dir => Kind::Dir,
        Body::Symlink { .. } => Kind::Symlink,
        Body::Fifo => Kind::Fifo,
        Body::File { .. } | Body::Link { .. } | Body::Whiteout => Kind::File,
    }
}

fn is_other_link(fd: BorrowedFd<'_>, own: &Candidate) -> bool {
    let Body::Symlink { target } = &own.entry.body else { return false };
    sys::readlinkat(fd, "", Vec::new()).map_or(true, |text| text.as_bytes() != target)
}
