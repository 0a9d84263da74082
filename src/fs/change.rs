//! Changes: the journal's part in every one, and attributes.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self as sys, AtFlags, Gid, OFlags, Timespec, Timestamps, Uid};

use super::{
    Caller, Entry, Fh, Fs, FsResult, Kind, Need, NodeId, SetAttr, SetTime,
    kept::Inside,
    mode,
    place::{Local, Shown},
};
use crate::{
    ids::{RelPath, UnitId},
    manifest::Timestamp,
    spool::{Spool, activity::OperationGuard},
};

/// A path that an operation changes, and whether it is a directory.
pub(super) type Changed<'a> = (&'a RelPath, bool);

impl Fs {
    /// Does `act`, which changes these paths: inside an operation of their units, after the journal knows.
    pub(super) fn change<T>(&self, paths: &[Changed<'_>], act: impl FnOnce() -> FsResult<T>) -> FsResult<T> {
        let mut units: Vec<_> =
            paths.iter().filter_map(|(path, is_dir)| self.unit_of(path, *is_dir)).collect();
        units.sort();
        units.dedup();
        let _operations = self.enter(&units)?;
        units.iter().try_for_each(|unit| self.committed.touch(unit).map(drop))?;
        paths.iter().for_each(|(path, is_dir)| self.committed.mark(path, *is_dir));
        let result = act()?;
        units.iter().for_each(|unit| self.activity.changed(unit));
        Ok(result)
    }

    /// [`Fs::change`] of paths that are all in directory `dir`, or itself.
    pub(super) fn change_in<T>(
        &self,
        dir: NodeId,
        paths: &[Changed<'_>],
        act: impl FnOnce() -> FsResult<T>,
    ) -> FsResult<T> {
        let Some(Inside::All(unit)) = self.facts(dir).map(|facts| facts.inside.clone()) else {
            return self.change(paths, act);
        };
        let Some(unit) = unit else { return act() };
        let _operation = self.enter(std::slice::from_ref(&unit))?;
        if self.committed.touch(&unit)? {
            paths.iter().for_each(|(path, is_dir)| self.committed.mark(path, *is_dir));
        }
        let result = act()?;
        self.activity.changed(&unit);
        Ok(result)
    }

    /// [`Fs::change`] of a node that isn't a directory, at all its names.
    pub(super) fn change_node<T>(&self, node: NodeId, act: impl FnOnce() -> FsResult<T>) -> FsResult<T> {
        let (paths, parent) = {
            let nodes = self.nodes.lock();
            (nodes.paths(node), nodes.only_parent(node))
        };
        let changed: Vec<_> = paths.iter().map(|path| (path, false)).collect();
        match parent {
            Some(parent) => self.change_in(parent, &changed, act),
            None => self.change(&changed, act),
        }
    }

    /// Keeps these units from being freed while the guards live.
    pub(super) fn enter(&self, units: &[UnitId]) -> FsResult<Vec<OperationGuard>> {
        units
            .iter()
            .map(|unit| self.activity.try_begin(unit).ok_or_else(|| Need::Thaw(unit.clone()).into()))
            .collect()
    }

    /// Sets attributes. With a size, `fh` is the handle of ftruncate(2), if it is one.
    pub fn setattr(&self, node: NodeId, set: SetAttr, fh: Option<Fh>, caller: Caller) -> FsResult<Entry> {
        if let Some(entry) = self.setattr_plain(node, &set, fh, caller)? {
            return Ok(entry);
        }
        let local = match self.shown(node)? {
            Shown::Local(local) => local,
            Shown::Remote(_) => return Err(Need::CopyUp { node, keep: set.size.unwrap_or(u64::MAX) }.into()),
        };
        let is_file = Kind::of_mode(local.stat.st_mode) == Kind::File;
        let act = || {
            self.settle_attrs(&local)?;
            let handle = fh.and_then(|fh| self.writable_file(fh));
            apply(local.fd.as_fd(), handle.as_ref().map(|fd| fd.as_fd()), &set)?;
            if is_file && set.drops_ids(caller) {
                mode::drop_ids(local.fd.as_fd())?;
            }
            Ok(())
        };
        if Kind::of_mode(local.stat.st_mode) == Kind::Dir {
            let paths = self.nodes.lock().paths(node);
            let changed: Vec<_> = paths.iter().map(|path| (path, true)).collect();
            self.change_in(node, &changed, act)?;
        } else {
            self.change_node(node, act)?;
        }
        self.getattr(node)
    }

    /// The same of a file that nobody else can have anything of, through a handle that is open on it if there is one; `None` if it isn't
    /// such a file.
    fn setattr_plain(
        &self,
        node: NodeId,
        set: &SetAttr,
        fh: Option<Fh>,
        caller: Caller,
    ) -> FsResult<Option<Entry>> {
        let brief = self.brief(node)?;
        let (Some((parent, _)), Some(inode)) = (&brief.place, &brief.local) else { return Ok(None) };
        if brief.kind == Kind::Dir || !self.is_private(*parent) {
            return Ok(None);
        }
        let open = brief.handle.and_then(|fh| self.local_file(fh));
        let stat = self.change_node(node, || {
            let file = match open {
                Some(file) => Some(file),
                None => self.reach(inode, true)?.map(|(file, _)| file),
            };
            // Inside the operation nobody frees the unit; whoever did it before has said so before.
            let Some(file) = file.filter(|_| self.is_private(*parent)) else { return Ok(None) };
            let writable = fh.and_then(|fh| self.writable_file(fh));
            apply(file.as_fd(), writable.as_ref().map(|fd| fd.as_fd()), set)?;
            if brief.kind == Kind::File && set.drops_ids(caller) {
                mode::drop_ids(file.as_fd())?;
            }
            Ok(Some(sys::fstat(&file)?))
        })?;
        stat.map(|stat| Ok(self.entry(self.local_attr(node, &stat, None)?, brief.is_mapped))).transpose()
    }

    /// A directory that shows with another host's attributes gets them for its own, before one of them is changed.
    pub(super) fn settle_attrs(&self, local: &Local) -> FsResult<()> {
        let Some(candidate) = &local.attrs else { return Ok(()) };
        let (uid, gid) = self.committed.owner(candidate)?;
        let attrs = &candidate.entry.attrs;
        let mtime = Some(SetTime::To(attrs.mtime));
        let set =
            SetAttr { perm: Some(attrs.mode), uid: Some(uid), gid: Some(gid), mtime, ..SetAttr::default() };
        apply(local.fd.as_fd(), None, &set)
    }
}

/// Sets attributes of what `identity`, an `O_PATH` descriptor or an open file, names. Owner before mode, since chown(2) clears setuid bits.
pub(super) fn apply(
    identity: BorrowedFd<'_>,
    writable: Option<BorrowedFd<'_>>,
    set: &SetAttr,
) -> FsResult<()> {
    if set.uid.is_some() || set.gid.is_some() {
        let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
        sys::chownat(identity, "", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    if let Some(perm) = set.perm {
        mode::change(identity, perm)?;
    }
    if let Some(size) = set.size {
        truncate(identity, writable, size)?;
    }
    if set.atime.is_some() || set.mtime.is_some() {
        set_times(identity, set.atime, set.mtime)?;
    }
    Ok(())
}

fn truncate(identity: BorrowedFd<'_>, writable: Option<BorrowedFd<'_>>, size: u64) -> FsResult<()> {
    match writable {
        Some(fd) => sys::ftruncate(fd, size)?,
        None => sys::ftruncate(Spool::reopen(identity, OFlags::WRONLY | OFlags::NONBLOCK)?, size)?,
    }
    Ok(())
}

/// `None` = leave.
pub(super) fn set_times(
    identity: BorrowedFd<'_>,
    atime: Option<SetTime>,
    mtime: Option<SetTime>,
) -> FsResult<()> {
    let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
    sys::utimensat(identity, "", &times, AtFlags::EMPTY_PATH)?;
    Ok(())
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: sys::UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: sys::UTIME_NOW },
        Some(SetTime::To(Timestamp { secs, nanos })) => Timespec { tv_sec: secs, tv_nsec: nanos.into() },
    }
}
