//! The name space: look-up, creation, deletion, links.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::{self as sys, AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid},
    io as sysio,
};

use super::{
    Caller, Entry, Fs, FsError, FsResult, Kind, Need, NodeId,
    committed::Resolved,
    place::{Shown, Winner, is_whiteout},
};
use crate::{
    ids::{RelPath, Seq, UnitId},
    journal::Note,
    spool::{Inode, Spool, proc_path},
};

/// What a look-up finds.
#[derive(Debug, Clone, Copy)]
pub enum Lookup {
    Found(Entry),
    /// Nothing; the kernel may believe that so long.
    Absent {
        ttl: Duration,
    },
}

/// A name that is about to be deleted, replaced or moved.
pub(super) struct Doomed {
    pub(super) path: RelPath,
    pub(super) kind: Kind,
    /// The spool has something there.
    is_local: bool,
    /// What shows is the spool's.
    pub(super) shows_spool: bool,
    /// Under which number anything was committed there; 0 = nothing is.
    pub(super) shown: Seq,
    /// What keeps it from showing there again, and in which unit's notes.
    pub(super) note: Option<(UnitId, Note)>,
}

impl Fs {
    /// What is at `name` in `parent`. A hit counts as a look-up until it is forgotten.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> FsResult<Lookup> {
        match self.look(parent, name) {
            // It has left the spool between two looks there.
            Err(FsError::Errno(libc::ESTALE)) => self.look(parent, name),
            looked => looked,
        }
    }

    fn look(&self, parent: NodeId, name: &[u8]) -> FsResult<Lookup> {
        let local = self.in_spool(parent, name)?;
        // After the look: who frees files says so first.
        if self.is_private(parent) {
            return match local {
                Some((inode, stat)) => {
                    self.local_entry(parent, name, (&inode, &stat), None).map(Lookup::Found)
                }
                None => Ok(Lookup::Absent { ttl: self.absent_ttl(parent, name) }),
            };
        }
        let path = self.path_in(parent, name)?;
        match (self.winner_of(&path, local.as_ref())?, &local) {
            (Winner::Spool { attrs }, Some((inode, stat))) => {
                self.local_entry(parent, name, (inode, stat), attrs.as_deref()).map(Lookup::Found)
            }
            (Winner::Remote(candidate), _) => self.remote_entry(parent, name, &candidate).map(Lookup::Found),
            _ => Ok(Lookup::Absent { ttl: Duration::ZERO }),
        }
    }

    /// How long the kernel may believe that nothing is at a name where only this host makes names. Not at all if a node still has that name, as after a
    /// take-over with a replica that has to be followed once more: a directory's name isn't taken back from the kernel when it shows again
    /// ([`Fs::remote_changed`]).
    fn absent_ttl(&self, parent: NodeId, name: &[u8]) -> Duration {
        if self.nodes.lock().child(parent, name).is_some() { Duration::ZERO } else { self.ttl() }
    }

    /// [`Fs::winner`], reaching for the inode only where something committed may win.
    fn winner_of(&self, path: &RelPath, local: Option<&(Inode, Stat)>) -> FsResult<Winner> {
        match local {
            Some((inode, stat)) if self.committed.relevant(path) => {
                let fd = self.spool.reach(inode)?;
                self.winner(path, Some((fd.as_fd(), stat)))
            }
            Some(_) => Ok(Winner::Spool { attrs: None }),
            None => self.winner(path, None),
        }
    }

    /// Where a link points.
    pub fn readlink(&self, node: NodeId) -> FsResult<Vec<u8>> {
        match self.shown(node)? {
            Shown::Local(local) => Ok(sys::readlinkat(&*local.fd, "", Vec::new())?.into_bytes()),
            Shown::Remote(candidate) => match candidate.entry.body {
                crate::manifest::Body::Symlink { target } => Ok(target),
                _ => Err(FsError::Errno(libc::EINVAL)),
            },
        }
    }

    /// Makes a directory. The caller's umask is already applied to `perm`.
    pub fn mkdir(&self, parent: NodeId, name: &[u8], perm: u32, caller: Caller) -> FsResult<Entry> {
        self.make(parent, name, Kind::Dir, Some(perm), caller, |dir| {
            sys::mkdirat(dir, OsStr::from_bytes(name), Mode::from_raw_mode(perm & 0o777))
        })
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, parent: NodeId, name: &[u8], target: &[u8], caller: Caller) -> FsResult<Entry> {
        self.make(parent, name, Kind::Symlink, None, caller, |dir| {
            sys::symlinkat(OsStr::from_bytes(target), dir, OsStr::from_bytes(name))
        })
    }

    /// Makes a file, pipe, socket or device, as mknod(2). `rdev` is packed as in a FUSE message.
    pub fn mknod(
        &self,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        rdev: u32,
        caller: Caller,
    ) -> FsResult<Entry> {
        let perm = mode & 0o7777;
        let file_type = FileType::from_raw_mode(mode);
        let dev = sys::makedev(rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00);
        self.make(parent, name, Kind::of_mode(mode), Some(perm), caller, |dir| {
            sys::mknodat(dir, OsStr::from_bytes(name), file_type, Mode::from_raw_mode(perm & 0o777), dev)
        })
    }

    fn make(
        &self,
        parent: NodeId,
        name: &[u8],
        kind: Kind,
        perm: Option<u32>,
        caller: Caller,
        act: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<()>,
    ) -> FsResult<Entry> {
        let path = self.path_in(parent, name)?;
        let is_made = self.was_made(parent, name, kind, caller)?;
        if !is_made {
            self.must_be_free(parent, name, &path)?;
        }
        let above = path.parent().unwrap_or_default();
        self.change_in(parent, &[(&path, kind == Kind::Dir), (&above, true)], || {
            self.requests.begin(caller.request);
            let (dir, ()) = self.in_dir_for_change(parent, |dir| if is_made { Ok(()) } else { act(dir) })?;
            let made = self
                .spool
                .identify(dir.as_fd(), name)
                .map_err(FsError::from)
                .and_then(|made| self.give_away(dir.as_fd(), name, made, perm, caller));
            if made.is_err() {
                let flags = if kind == Kind::Dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                let _ = sys::unlinkat(&dir, OsStr::from_bytes(name), flags);
            }
            let (inode, stat) = made?;
            self.local_entry(parent, name, (&inode, &stat), None)
        })
    }

    /// What was just made becomes the caller's: the daemon has made it. A directory that sets its group's id hands that on, which the
    /// spool's file system has done already.
    pub(super) fn give_away(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        (inode, stat): (Inode, Stat),
        perm: Option<u32>,
        caller: Caller,
    ) -> FsResult<(Inode, Stat)> {
        let is_dir = Kind::of_mode(stat.st_mode) == Kind::Dir;
        let sets_gid = |stat: &Stat| stat.st_mode & libc::S_ISGID != 0;
        let hands_on =
            if is_dir { sets_gid(&stat) } else { stat.st_gid != caller.gid && sets_gid(&sys::fstat(dir)?) };
        let gid = if hands_on { stat.st_gid } else { caller.gid };
        let name = OsStr::from_bytes(name);
        let mut is_changed = false;
        if (stat.st_uid, stat.st_gid) != (caller.uid, gid) {
            let (uid, gid) = (Some(Uid::from_raw(caller.uid)), Some(Gid::from_raw(gid)));
            sys::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            is_changed = true;
        }
        if let Some(perm) = perm {
            let perm = if hands_on && is_dir { perm | libc::S_ISGID } else { perm };
            if stat.st_mode & 0o7777 != perm || perm & self.umask != 0 || perm & 0o7000 != 0 {
                sys::chmodat(dir, name, Mode::from_raw_mode(perm), AtFlags::empty())?;
                is_changed = true;
            }
        }
        let stat = if is_changed { sys::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)? } else { stat };
        Ok((inode, stat))
    }

    /// Nothing shows at `path`; what the spool has there, hidden by a newer deletion elsewhere, goes.
    pub(super) fn must_be_free(&self, parent: NodeId, name: &[u8], path: &RelPath) -> FsResult<()> {
        self.must_fit(path)?;
        if self.is_private(parent) || !self.committed.relevant(path) {
            return Ok(());
        }
        let local = self.in_spool(parent, name)?;
        match self.winner_of(path, local.as_ref())? {
            Winner::Nobody => {}
            _ => return Err(FsError::Errno(libc::EEXIST)),
        }
        let (Some(dir), Some((_, stat))) = (self.dir_fd(parent)?, local) else { return Ok(()) };
        if Kind::of_mode(stat.st_mode) == Kind::Dir {
            return self.clear_hidden_dir(parent, name, path);
        }
        // What comes there comes after the deletion that hides it, even if it is the same again.
        let deletion = self.committed.resolve(path, true)?.and_then(|resolved| resolved.foreign);
        if let (Some(deletion), Some(unit)) = (deletion, self.unit_of(path, false)) {
            self.committed.note(&unit, &[(path.clone(), Some(Note::Based(deletion.seq.committed())))])?;
        }
        Ok(sys::unlinkat(&dir, OsStr::from_bytes(name), AtFlags::empty())?)
    }

    /// Removes a directory of the spool in which nothing shows: what is left in it is hidden by newer deletions elsewhere.
    pub(super) fn clear_hidden_dir(&self, parent: NodeId, name: &[u8], path: &RelPath) -> FsResult<()> {
        let Some(above) = self.dir_fd(parent)? else { return Ok(()) };
        let how = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = sys::openat(&above, OsStr::from_bytes(name), how, Mode::empty())?;
        self.clear_hidden(dir.as_fd(), path)?;
        Ok(sys::unlinkat(&above, OsStr::from_bytes(name), AtFlags::REMOVEDIR)?)
    }

    fn clear_hidden(&self, dir: BorrowedFd<'_>, path: &RelPath) -> FsResult<()> {
        for line in Spool::list(dir)? {
            let path = path.join(&line.name).map_err(|_| FsError::Errno(libc::EIO))?;
            let (inode, stat) = self.spool.identify(dir, &line.name)?;
            if !matches!(self.winner_of(&path, Some(&(inode.clone(), stat)))?, Winner::Nobody) {
                return Err(FsError::Errno(libc::ENOTEMPTY));
            }
            let mut flags = AtFlags::empty();
            if Kind::of_mode(stat.st_mode) == Kind::Dir {
                self.clear_hidden(self.spool.reach(&inode)?.as_fd(), &path)?;
                flags = AtFlags::REMOVEDIR;
            }
            sys::unlinkat(dir, OsStr::from_bytes(&line.name), flags)?;
        }
        Ok(())
    }

    /// The spool's directory for `node`, made if only others or the store have it.
    pub(super) fn dir_for_change(&self, node: NodeId) -> FsResult<Arc<OwnedFd>> {
        match self.live_dir_fd(node)? {
            Some(dir) => Ok(dir),
            None => self.bring_dir(node),
        }
    }

    /// Does `act` in the spool's directory for `node`, made if only others or the store have it; once more if the one that was kept is
    /// found to be removed.
    pub(super) fn in_dir_for_change<T>(
        &self,
        node: NodeId,
        act: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> FsResult<(Arc<OwnedFd>, T)> {
        if let Some(dir) = self.dir_fd(node)? {
            match act(dir.as_fd()) {
                Err(rustix::io::Errno::NOENT) if self.is_removed(node, dir.as_fd()) => {}
                result => return Ok((dir, result?)),
            }
        }
        let dir = self.dir_for_change(node)?;
        let done = act(dir.as_fd())?;
        Ok((dir, done))
    }

    /// What is at a name that is to go; refused if another host's entry shows there or would come to show, and this host may not
    /// delete it.
    pub(super) fn doomed(&self, parent: NodeId, name: &[u8]) -> FsResult<Option<Doomed>> {
        let path = self.path_in(parent, name)?;
        let local = self.in_spool(parent, name)?;
        let stat_kind = local.as_ref().map(|(_, stat)| Kind::of_mode(stat.st_mode));
        let is_local = local.is_some();
        if self.is_private(parent) || !self.committed.relevant(&path) {
            let doomed = |kind| Doomed { path, kind, is_local, shows_spool: true, shown: Seq(0), note: None };
            return Ok(stat_kind.map(doomed));
        }
        // Before anything is looked at: what is committed later isn't deleted.
        let heard = self.committed.heard();
        let (kind, shows_spool) = match (self.winner_of(&path, local.as_ref())?, stat_kind) {
            (Winner::Spool { .. }, Some(kind)) => (kind, true),
            (Winner::Remote(candidate), _) => (super::place::kind_of(&candidate), false),
            _ => return Ok(None),
        };
        let Resolved { own, foreign } = self.committed.resolve(&path, true)?.unwrap_or_default();
        let [own, foreign] = [own, foreign].map(|c| c.filter(|c| !is_whiteout(c)));
        let shown =
            [&own, &foreign].into_iter().flatten().map(|c| c.seq.committed()).max().unwrap_or_default();
        // What isn't a directory and stands where another host has one, which the store won't take without the right, may always give way.
        let is_in_the_way = shows_spool && kind != Kind::Dir && !self.committed.may_delete();
        let foreign = foreign.filter(|c| !is_in_the_way || super::place::kind_of(c) != Kind::Dir);
        // What another host is just writing isn't committed under any number up to which it could be hidden.
        if foreign.as_ref().is_some_and(|c| c.seq.is_live()) {
            return Err(FsError::Errno(libc::EBUSY));
        }
        let note = match (&own, &foreign) {
            (_, Some(_)) => {
                self.committed.check_right_to_delete(&path)?;
                let unit = self.unit_of(&path, kind == Kind::Dir).ok_or(FsError::Errno(libc::EPERM))?;
                Some((unit, Note::Hidden(heard.max(shown))))
            }
            (Some(own), None) if self.committed.is_partial(&own.unit) => Some((own.unit.clone(), Note::Gone)),
            _ => None,
        };
        Ok(Some(Doomed { path, kind, is_local, shows_spool, shown, note }))
    }

    /// Does what takes the name away, with what keeps committed entries from showing there noted before.
    pub(super) fn take_away(&self, doomed: &Doomed, act: impl FnOnce() -> FsResult<()>) -> FsResult<()> {
        let Some((unit, note)) = &doomed.note else { return act() };
        let before = self.committed.note_of(unit, &doomed.path);
        if *note == Note::Gone && before.is_some_and(Note::is_deleted) {
            return act();
        }
        self.committed.note(unit, &[(doomed.path.clone(), Some(*note))])?;
        act().or_else(|e| self.committed.note(unit, &[(doomed.path.clone(), before)]).and(Err(e)))
    }

    /// Removes a name that isn't a directory's.
    pub fn unlink(&self, parent: NodeId, name: &[u8], caller: Caller) -> FsResult<()> {
        self.remove(parent, name, AtFlags::empty(), caller)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: NodeId, name: &[u8], caller: Caller) -> FsResult<()> {
        if self.was_removed(parent, name, caller)? {
            return Ok(());
        }
        let path = self.path_in(parent, name)?;
        let is_merged = !self.is_private(parent) && self.committed.relevant(&path);
        if is_merged && !self.is_empty_dir(parent, name, &path)? {
            return Err(FsError::Errno(libc::ENOTEMPTY));
        }
        self.remove(parent, name, AtFlags::REMOVEDIR, caller)
    }

    fn remove(&self, parent: NodeId, name: &[u8], flags: AtFlags, caller: Caller) -> FsResult<()> {
        if self.was_removed(parent, name, caller)? {
            return Ok(());
        }
        if self.is_private(parent) {
            return self.remove_private(parent, name, flags, caller);
        }
        let _claim = self.claim(&[(parent, name)])?;
        let doomed = self.doomed(parent, name)?.ok_or(FsError::Errno(libc::ENOENT))?;
        match (doomed.kind == Kind::Dir, flags.contains(AtFlags::REMOVEDIR)) {
            (true, false) => return Err(FsError::Errno(libc::EISDIR)),
            (false, true) => return Err(FsError::Errno(libc::ENOTDIR)),
            _ => {}
        }
        let above = doomed.path.parent().unwrap_or_default();
        self.change(&[(&doomed.path, doomed.kind == Kind::Dir), (&above, true)], || {
            self.orphans.about_to_lose(self, parent, name)?;
            self.requests.begin(caller.request);
            self.take_away(&doomed, || {
                let (true, Some(dir)) = (doomed.is_local, self.dir_fd(parent)?) else { return Ok(()) };
                match sys::unlinkat(&dir, OsStr::from_bytes(name), flags) {
                    Err(sysio::Errno::NOTEMPTY) => self.clear_hidden_dir(parent, name, &doomed.path),
                    removed => Ok(removed?),
                }
            })?;
            self.forget_name(parent, name);
            Ok(())
        })
    }

    /// Where nothing is committed, what unlinkat(2) says is all there is to say.
    fn remove_private(&self, parent: NodeId, name: &[u8], flags: AtFlags, caller: Caller) -> FsResult<()> {
        let path = self.path_in(parent, name)?;
        let above = path.parent().unwrap_or_default();
        self.change_in(parent, &[(&path, flags.contains(AtFlags::REMOVEDIR)), (&above, true)], || {
            let dir = self.dir_fd(parent)?.ok_or(FsError::Errno(libc::ENOENT))?;
            self.orphans.about_to_lose(self, parent, name)?;
            self.requests.begin(caller.request);
            sys::unlinkat(&dir, OsStr::from_bytes(name), flags)?;
            self.forget_name(parent, name);
            Ok(())
        })
    }

    pub(super) fn forget_name(&self, parent: NodeId, name: &[u8]) {
        let child = self.nodes.lock().detach(parent, name);
        child.iter().for_each(|node| self.kept.drop(*node));
    }

    /// Gives a node one more name.
    pub fn link(&self, node: NodeId, parent: NodeId, name: &[u8], caller: Caller) -> FsResult<Entry> {
        let path = self.path_in(parent, name)?;
        let is_made = self.was_linked(node, parent, name, caller)?;
        if !is_made {
            self.must_be_free(parent, name, &path)?;
        }
        let local = match self.shown(node)? {
            Shown::Local(local) => local,
            Shown::Remote(_) => return Err(Need::CopyUp { node, keep: u64::MAX }.into()),
        };
        let above = path.parent().unwrap_or_default();
        self.change(&[(&path, false), (&above, true)], || {
            let dir = self.dir_for_change(parent)?;
            let source = proc_path(local.fd.as_fd());
            let name_os = OsStr::from_bytes(name);
            if !is_made {
                self.requests.begin(caller.request);
                sys::linkat(sys::CWD, source.as_c_str(), &dir, name_os, AtFlags::SYMLINK_FOLLOW)?;
            }
            let (inode, stat) = self.spool.identify(dir.as_fd(), name)?;
            self.local_entry(parent, name, (&inode, &stat), None)
        })
    }

    /// Makes a directory entry of the spool durable.
    pub fn fsyncdir(&self, node: NodeId) -> FsResult<()> {
        let Some(dir) = self.dir_fd(node)? else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(sys::fsync(sys::openat(&dir, ".", flags, Mode::empty())?)?)
    }
}
