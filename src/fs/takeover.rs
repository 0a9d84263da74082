//! Going on where another process was killed: its nodes, its open files, and the requests that the kernel sends again.
//!
//! A request that comes again may have had its effect already. [`Requests`] tells whether it was about to; then what looks like its
//! effect is taken for it, and the request is answered as the first attempt would have been. The kernel holds the directory's lock until
//! it has the answer, so nobody else can have done the same meanwhile. What each operation does is in `docs/takeover.md`.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
    sync::Arc,
};

use rustix::fs::{self as sys, AtFlags, OFlags, RenameFlags};

use super::{
    Caller, Fh, Fs, FsParts, FsResult, Invalidation, Kind, NodeId,
    committed::Candidate,
    error::found,
    files::{Data, is_writable, reopen},
    ledger::{Ledger, LedgerError, Requests, carried},
    nodes::{Handle, Nodes},
};
use crate::{
    ids::{Hash, HostUuid, Seq, UnitId},
    manifest,
    spool::Inode,
};

/// The kernel's numbers for files that a predecessor may have been given and not noted: one for each of its threads, and some.
const UNNOTED: u32 = 64;

/// Handle numbers of one process: a directory's handles aren't noted, and must not be given twice.
const HANDLES_PER_PROCESS: u64 = 1 << 40;

/// A remote handle that was taken over looks whether what it shows has moved on.
const NOTHING_SEEN: u64 = u64::MAX;

/// What a remote handle shows, as it is noted.
type Content = (HostUuid, Seq, manifest::Entry, UnitId, Hash, Option<(u64, Hash)>, bool);

/// What was taken over.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// By request: what it had opened.
    opened: HashMap<u64, Fh>,
    /// The kernel's numbers for files that nobody needs any more.
    stray: Vec<u32>,
}

impl Inherited {
    pub(super) fn opened_by(&self, request: u64) -> Option<Fh> {
        if self.opened.is_empty() {
            return None;
        }
        self.opened.get(&Requests::plain(request)).copied()
    }
}

impl Fs {
    /// A file system that goes on from what a predecessor left in `parts.keep`.
    pub fn take_over(parts: FsParts) -> Result<Arc<Self>, LedgerError> {
        let keep = parts.keep.clone().ok_or(LedgerError::Unusable)?;
        let memory = keep.memory.clone();
        let nodes = Nodes::restored(&parts.spool, &memory.records(), Ledger::new(memory.clone()))?;
        let (begun, mut stray) = carried(&memory);
        let handles = {
            let table = nodes.lock();
            stray.extend(table.highest_backing() + 1..=table.highest_backing() + UNNOTED);
            table.handles()
        };
        let opened = handles.iter().map(|(_, handle, _)| (handle.request, handle.fh)).collect();
        let first_fh = memory.count_takeover() * HANDLES_PER_PROCESS;
        let requests = Requests::new(Some(memory), begun);
        let fs = Arc::new(Self::build(parts, nodes, requests, Inherited { opened, stray }, first_fh));
        let open: Vec<_> = handles.iter().map(|(node, ..)| *node).collect();
        fs.orphans.clear(&fs.tmp_dir, &open);
        for (node, handle, inode) in handles {
            fs.reopen_handle(node, &handle, inode.as_ref());
        }
        Ok(fs)
    }

    fn reopen_handle(&self, node: NodeId, handle: &Handle, inode: Option<&Inode>) {
        let flags = OFlags::from_bits_retain(handle.flags) - OFlags::TRUNC;
        let data = match content_of(&handle.content) {
            Some(candidate) => Data::Remote(Box::new(candidate), NOTHING_SEEN),
            None => self.reopen_local(node, flags, inode).map_or(Data::Lost, |fd| Data::Local(Arc::new(fd))),
        };
        if matches!(data, Data::Lost) {
            tracing::warn!(node, path = ?self.path_of(node), "an open file is gone and can't be opened again");
        }
        let paths = self.nodes.lock().paths(node);
        let unit = paths.last().and_then(|path| self.unit_of(path, false));
        self.insert(handle.fh, node, is_writable(flags), unit, data);
    }

    fn reopen_local(
        &self,
        node: NodeId,
        flags: OFlags,
        inode: Option<&Inode>,
    ) -> FsResult<std::os::fd::OwnedFd> {
        let known = inode.and_then(|inode| self.spool.reach(inode).ok());
        let identity = match known {
            Some(fd) => fd,
            None => self.inode_fd(node)?.ok_or(super::FsError::Errno(libc::ESTALE))?.0,
        };
        reopen(&identity, flags)
    }

    /// The open nodes with how many handles and the kernel's number for the file behind them.
    pub fn inherited_backings(&self) -> Vec<(NodeId, usize, Option<u32>)> {
        self.nodes.lock().backings()
    }

    /// The kernel's numbers for files that nobody needs any more, if it has given them.
    pub fn stray_backings(&self) -> &[u32] {
        &self.inherited.stray
    }

    /// What the kernel must no longer believe after a take-over: notices of the predecessor's may have been lost.
    pub fn after_takeover(&self) -> Vec<Invalidation> {
        let nodes = self.nodes.lock();
        let mut found = Vec::new();
        for id in nodes.ids() {
            let Some(brief) = nodes.brief(id) else { continue };
            found.push(Invalidation::Node { node: id });
            if brief.kind == Kind::Dir {
                continue;
            }
            // A directory's name stays: dropping it would make getcwd(2) fail for who works in it.
            if let Some((parent, name)) = brief.place.filter(|_| brief.local.is_none()) {
                found.push(Invalidation::Entry { parent, name });
            }
        }
        found
    }

    /// Whether a handle is open on `node`.
    pub(super) fn is_open(&self, node: NodeId) -> bool {
        self.nodes.lock().brief(node).is_some_and(|brief| brief.handle.is_some())
    }

    pub(super) fn content_to_keep(&self, candidate: &Candidate) -> Box<[u8]> {
        if !self.requests.are_kept() {
            return Box::default();
        }
        let Candidate { host, seq, entry, unit, manifest, file, synthetic } = candidate.clone();
        let content: Content = (host, seq, entry, unit, manifest, file, synthetic);
        minicbor::to_vec(content).expect("encoding into a Vec can't fail").into()
    }

    /// Whether `name` is what this request has made before a take-over.
    pub(super) fn was_made(&self, parent: NodeId, name: &[u8], kind: Kind, caller: Caller) -> FsResult<bool> {
        if self.requests.resumed(caller.request).is_none() {
            return Ok(false);
        }
        let there = self.in_spool(parent, name)?;
        Ok(there.is_some_and(|(_, stat)| Kind::of_mode(stat.st_mode) == kind))
    }

    /// Whether `name` is the link to `node` that this request has made before a take-over.
    pub(super) fn was_linked(
        &self,
        node: NodeId,
        parent: NodeId,
        name: &[u8],
        caller: Caller,
    ) -> FsResult<bool> {
        if self.requests.resumed(caller.request).is_none() {
            return Ok(false);
        }
        let (there, local) = (self.in_spool(parent, name)?, self.brief(node)?.local);
        Ok(there.zip(local).is_some_and(|((inode, _), local)| inode.is_same(&local)))
    }

    /// Whether this request has removed `name` before a take-over; then the table knows now, too.
    pub(super) fn was_removed(&self, parent: NodeId, name: &[u8], caller: Caller) -> FsResult<bool> {
        let is_gone = self.requests.resumed(caller.request).is_some() && self.doomed(parent, name)?.is_none();
        if !is_gone {
            return Ok(false);
        }
        // The deletion was noted, and the spool's file may still be there, hidden.
        if let (Some((_, stat)), Some(dir)) = (self.in_spool(parent, name)?, self.dir_fd(parent)?) {
            let is_dir = Kind::of_mode(stat.st_mode) == Kind::Dir;
            let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            let _ = sys::unlinkat(&dir, OsStr::from_bytes(name), flags);
        }
        self.forget_name(parent, name);
        Ok(true)
    }

    /// Whether this request has renamed `from` before a take-over; then the table knows now, too.
    pub(super) fn was_renamed(
        &self,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        flags: RenameFlags,
        caller: Caller,
    ) -> FsResult<bool> {
        let Some(known_by) = self.requests.resumed(caller.request) else { return Ok(false) };
        let number = |there: Option<(Inode, sys::Stat)>| there.map_or(0, |(_, stat)| stat.st_ino);
        let now = (number(self.in_spool(from.0, from.1)?), number(self.in_spool(to.0, to.1)?));
        let is_exchange = flags.contains(RenameFlags::EXCHANGE);
        if !is_exchange && now.0 != 0 && self.doomed(from.0, from.1)?.is_none() {
            // The old name was noted as gone, and the file is still there, hidden.
            let (old_dir, new_dir) = (self.dir_for_change(from.0)?, self.dir_for_change(to.0)?);
            let (old, new) = (OsStr::from_bytes(from.1), OsStr::from_bytes(to.1));
            sys::renameat_with(&old_dir, old, &new_dir, new, flags)?;
            return self.was_renamed(from, to, flags, caller);
        }
        let is_done = if is_exchange { now == (known_by.1, known_by.0) } else { now.0 == 0 && now.1 != 0 };
        if !is_done {
            return Ok(false);
        }
        let mut nodes = self.nodes.lock();
        let moved =
            nodes.child(from.0, from.1).filter(|id| nodes.is_inode(*id, if is_exchange { now.1 } else { 0 }));
        match moved {
            Some(_) if is_exchange => nodes.exchange(from, to),
            Some(_) => nodes.rename(from, to),
            // The table knew already.
            None => {}
        }
        drop(nodes);
        self.kept.clear();
        self.rehome_handles();
        Ok(true)
    }

    /// An exchange of two names happens next; it is known by what was where.
    pub(super) fn begin_exchange(
        &self,
        caller: Caller,
        from: (BorrowedFd<'_>, &OsStr),
        to: (BorrowedFd<'_>, &OsStr),
    ) -> FsResult<()> {
        let number = |(dir, name): (BorrowedFd<'_>, &OsStr)| {
            let stat = sys::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(std::io::Error::from);
            found(stat).map(|stat| stat.map_or(0, |stat| stat.st_ino))
        };
        self.requests.begin_with(caller.request, Some((number(from)?, number(to)?)));
        Ok(())
    }
}

fn content_of(noted: &[u8]) -> Option<Candidate> {
    let (host, seq, entry, unit, manifest, file, synthetic): Content = minicbor::decode(noted).ok()?;
    Some(Candidate { host, seq, entry, unit, manifest, file, synthetic })
}
