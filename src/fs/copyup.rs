//! Copy-up: what is only committed becomes a file of the spool, so that it can be changed.
//!
//! One path at a time: its ancestors with the attributes that show, then itself. A file is written in the directory for such, made
//! durable (its unit's record says that the spool counts now; after a power cut an empty file in its place would be taken for
//! a change) and renamed into place. A directory that merely receives it keeps its time.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{self as sys, AtFlags, FileType, Mode, OFlags},
    io as sysio,
};

use super::{
    Fs, FsError, FsResult, Kind, Lookup, Need, NodeId, ROOT, SetAttr, SetTime,
    attr::mtime,
    change::{apply, set_times},
    claims::Claim,
    committed::Candidate,
    place::{Shown, Winner, kind_of},
};
use crate::{
    ids::RelPath,
    journal::Note,
    manifest::Body,
    spool::{proc_path, sparse::write_sparsely},
};

/// Bytes read from the cache at a time.
const COPY_BYTES: usize = 1 << 20;

/// What the names of files on their way begin with.
const TMP_PREFIX: &str = "copy-up.";

/// Deletes what a crash has left on its way. Before anything is mounted.
pub(super) fn clear_leftovers(tmp_dir: &Path) {
    for entry in fs_err::read_dir(tmp_dir).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(TMP_PREFIX.as_bytes()) {
            // What can't be removed only takes room.
            let _ = fs_err::remove_file(entry.path());
        }
    }
}

impl Fs {
    /// Fetches, copies or waits, where waiting is allowed. After it, the operation that needed this is tried again.
    pub fn fulfil(&self, need: &Need) -> FsResult<()> {
        match need {
            Need::CopyUp { node, keep } => self.copy_up(*node, *keep),
            Need::Subtree { node } => self.bring_subtree(*node),
            Need::Thaw(unit) => {
                drop(self.activity.begin(unit));
                Ok(())
            }
            Need::Turn(path) => {
                self.claims.wait(path);
                Ok(())
            }
            need => self.committed.fulfil(need),
        }
    }

    pub(super) fn copy_up(&self, node: NodeId, keep: u64) -> FsResult<()> {
        let Shown::Remote(candidate) = self.shown(node)? else { return Ok(()) };
        let path = self.path_of(node).ok_or(FsError::Errno(libc::ESTALE))?;
        if candidate.entry.body == Body::Dir {
            return self.bring_dir(node).map(drop);
        }
        let (parent, name) = self.brief(node)?.place.ok_or(FsError::Errno(libc::ESTALE))?;
        let others = self.committed.other_names(&candidate);
        let all: Vec<_> = others.iter().chain([&path]).cloned().collect();
        let _claim = self.claims.take(&all);
        // Somebody else may have brought it, taken it away, or put something in its place: whoever needed this will see.
        if !self.still_shows(node, &path, &candidate)? {
            return Ok(());
        }
        let changed: Vec<_> = others.iter().chain([&path]).map(|path| (path, false)).collect();
        self.change(&changed, || {
            let dir = self.dir_for_change(parent)?;
            let before = sys::fstat(&*dir)?;
            self.note_copied(&path, &candidate)?;
            self.bring(&path, dir.as_fd(), &name, &candidate, keep)?;
            set_times(dir.as_fd(), None, Some(SetTime::To(mtime(&before))))?;
            let (inode, stat) = self.spool.identify(dir.as_fd(), &name)?;
            let file = self.spool.reach(&inode)?;
            if Kind::of_mode(stat.st_mode) == kind_of(&candidate) {
                self.nodes.lock().set_local(node, inode);
            }
            let others = others.iter().filter(|other| **other != path);
            others.into_iter().try_for_each(|other| self.bring_name(other, file.as_fd(), &candidate))
        })
    }

    fn still_shows(&self, node: NodeId, path: &RelPath, candidate: &Candidate) -> FsResult<bool> {
        let same = |c: &Candidate| (c.seq, c.manifest) == (candidate.seq, candidate.manifest);
        Ok(self.path_of(node).as_ref() == Some(path)
            && matches!(self.shown(node)?, Shown::Remote(c) if same(&c)))
    }

    /// The names at which an operation takes something away or puts something in its place; other operations there come before or
    /// after. Where nothing is committed the spool's own file system sees to that.
    pub(super) fn claim(&self, names: &[(NodeId, &[u8])]) -> FsResult<Option<Claim<'_>>> {
        let mut paths =
            names.iter().map(|(dir, name)| self.path_in(*dir, name)).collect::<FsResult<Vec<_>>>()?;
        paths.retain(|path| self.committed.relevant(path));
        paths.dedup();
        match self.claims.try_take(&paths) {
            _ if paths.is_empty() => Ok(None),
            Ok(claim) => Ok(Some(claim)),
            Err(busy) => Err(Need::Turn(busy).into()),
        }
    }

    /// What is copied from another host's entry is based on that. Of an own one its manifest says so.
    fn note_copied(&self, path: &RelPath, candidate: &Candidate) -> FsResult<()> {
        match self.unit_of(path, false) {
            Some(unit) if !self.committed.is_own(candidate) => {
                self.committed.note(&unit, &[(path.clone(), Some(Note::Based(candidate.seq.committed())))])
            }
            _ => Ok(()),
        }
    }

    /// Another name of a file that was just brought: what is written to one must be read from the other.
    fn bring_name(&self, path: &RelPath, file: BorrowedFd<'_>, candidate: &Candidate) -> FsResult<()> {
        let (Some(above), Some(name)) = (path.parent(), path.name()) else { return Ok(()) };
        let mut looked_up = Vec::new();
        let linked = self.look_up_path(&above, &mut looked_up).and_then(|parent| match parent {
            Some(parent) => self.link_brought(parent, name, path, file, candidate),
            None => Ok(()),
        });
        looked_up.into_iter().for_each(|node| self.forget(node, 1));
        linked
    }

    fn look_up_path(&self, path: &RelPath, looked_up: &mut Vec<NodeId>) -> FsResult<Option<NodeId>> {
        let mut here = ROOT;
        for name in path.components() {
            let Lookup::Found(entry) = self.lookup(here, name)? else { return Ok(None) };
            here = entry.attr.node;
            looked_up.push(here);
        }
        Ok(Some(here))
    }

    fn link_brought(
        &self,
        parent: NodeId,
        name: &[u8],
        path: &RelPath,
        file: BorrowedFd<'_>,
        candidate: &Candidate,
    ) -> FsResult<()> {
        let is_same =
            matches!(self.winner(path, None)?, Winner::Remote(c) if c.manifest == candidate.manifest);
        if !is_same || self.in_spool(parent, name)?.is_some() {
            return Ok(());
        }
        let dir = self.dir_for_change(parent)?;
        let before = sys::fstat(&*dir)?;
        self.note_copied(path, candidate)?;
        let source = proc_path(file);
        sys::linkat(sys::CWD, source.as_c_str(), &dir, OsStr::from_bytes(name), AtFlags::SYMLINK_FOLLOW)?;
        set_times(dir.as_fd(), None, Some(SetTime::To(mtime(&before))))
    }

    fn bring(
        &self,
        path: &RelPath,
        dir: BorrowedFd<'_>,
        name: &[u8],
        candidate: &Candidate,
        keep: u64,
    ) -> FsResult<()> {
        let name = OsStr::from_bytes(name);
        match &candidate.entry.body {
            Body::File { .. } | Body::Link { .. } => {
                return self.bring_file(path, dir, name, candidate, keep);
            }
            Body::Symlink { target } => sys::symlinkat(OsStr::from_bytes(target), dir, name)?,
            Body::Fifo => sys::mknodat(dir, name, FileType::Fifo, Mode::RUSR, 0)?,
            Body::Dir | Body::Whiteout => return Err(FsError::Errno(libc::ESTALE)),
        }
        let made = sys::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        self.dress(made.as_fd(), candidate)
    }

    fn bring_file(
        &self,
        path: &RelPath,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        candidate: &Candidate,
        keep: u64,
    ) -> FsResult<()> {
        let tmp_dir =
            sys::open(&self.tmp_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let tmp_name = format!("{TMP_PREFIX}{}.{}", std::process::id(), self.next_fh());
        let how = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let tmp = sys::openat(&tmp_dir, &tmp_name, how, Mode::RUSR | Mode::WUSR)?;
        let brought = self
            .fill(path, &tmp, candidate, keep)
            .and_then(|()| self.dress(tmp.as_fd(), candidate))
            .and_then(|()| Ok(sys::fsync(&tmp)?))
            .and_then(|()| Ok(sys::renameat(&tmp_dir, &tmp_name, dir, name)?));
        if brought.is_err() {
            let _ = sys::unlinkat(&tmp_dir, &tmp_name, AtFlags::empty());
        }
        brought
    }

    fn fill(&self, path: &RelPath, tmp: &OwnedFd, candidate: &Candidate, keep: u64) -> FsResult<()> {
        let file @ (size, _) = candidate.file.ok_or(FsError::Errno(libc::EIO))?;
        let end = size.min(keep);
        let mut at = 0;
        loop {
            // Holes are left out, once the recipe is here, which says where they are.
            at = self.committed.seek(file, at, false).unwrap_or(at);
            if at >= end {
                break;
            }
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(COPY_BYTES);
            let bytes = self.committed.read(path, file, at, len)?;
            if bytes.len() != len {
                return Err(FsError::Unavailable { path: path.clone(), reason: "cut short".into() });
            }
            write_sparsely(tmp, &bytes, at)?;
            at += len as u64;
        }
        Ok(sys::ftruncate(tmp, end)?)
    }

    /// Mode, owner and time as they show.
    fn dress(&self, made: BorrowedFd<'_>, candidate: &Candidate) -> FsResult<()> {
        let (uid, gid) = self.committed.owner(candidate)?;
        let attrs = &candidate.entry.attrs;
        let is_link = matches!(candidate.entry.body, Body::Symlink { .. });
        let set = SetAttr {
            perm: (!is_link).then_some(attrs.mode),
            uid: Some(uid),
            gid: Some(gid),
            mtime: Some(SetTime::To(attrs.mtime)),
            ..SetAttr::default()
        };
        apply(made, None, &set)
    }

    /// A directory of the spool for a node that only others or the store have, and for all above it.
    pub(super) fn bring_dir(&self, node: NodeId) -> FsResult<Arc<OwnedFd>> {
        if let Some(dir) = self.dir_fd(node)? {
            return Ok(dir);
        }
        let (parent, name) = self.brief(node)?.place.ok_or(FsError::Errno(libc::ENOENT))?;
        let Shown::Remote(candidate) = self.shown(node)? else { return Err(FsError::Errno(libc::ESTALE)) };
        let above = self.bring_dir(parent)?;
        let path = self.path_of(node).ok_or(FsError::Errno(libc::ENOENT))?;
        self.change(&[(&path, true)], || {
            let before = sys::fstat(&*above)?;
            let name = OsStr::from_bytes(&name);
            match sys::mkdirat(&above, name, Mode::RWXU) {
                Ok(()) => {}
                // Another operation was faster, and may be about to change it.
                Err(sysio::Errno::EXIST) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
            let how = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let made = sys::openat(&above, name, how, Mode::empty())?;
            self.dress(made.as_fd(), &candidate)?;
            set_times(above.as_fd(), None, Some(SetTime::To(mtime(&before))))
        })?;
        self.dir_fd(node)?.ok_or(FsError::Errno(libc::ESTALE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_a_crash_go_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["copy-up.1.2", "recall-x"] {
            fs_err::write(dir.path().join(name), "").expect("written");
        }
        clear_leftovers(dir.path());
        assert!(!dir.path().join("copy-up.1.2").exists() && dir.path().join("recall-x").exists());
    }
}
