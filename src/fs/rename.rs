//! Renaming: one name, or a directory with all that shows in it.
//!
//! What is moved has to be in the spool. A directory of which something is only committed is brought there first, whole ([`Need::Subtree`]);
//! then it is noted, durably, that everything committed in it is deleted where it was; then it is renamed. A note means nothing while the spool has something
//! at its path, so whenever the daemon dies, either the old tree shows, or the new one: never a part of each.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::{fd::AsFd, unix::ffi::OsStrExt},
};

use rustix::{
    fs::{self as sys, RenameFlags},
    io as sysio,
};

use super::{Caller, Fs, FsError, FsResult, Kind, Lookup, Need, NodeId, names::Doomed, place::Shown};
use crate::{
    ids::{RelPath, Seq, UnitId},
    journal::Note,
    limits::UNIT_ROOT_DEPTH,
};

/// Needs that may come up one after the other while one name of a subtree is brought.
const ATTEMPTS: usize = 64;

/// A name: its directory and what it is called there.
type Place<'a> = (NodeId, &'a [u8]);

/// What shows below a directory that is to be moved.
#[derive(Default)]
struct Below {
    /// Paths from the top of the tree, and whether each is a directory.
    paths: Vec<(RelPath, bool)>,
    /// What keeps committed entries from showing where they were, by unit.
    notes: BTreeMap<UnitId, Vec<(RelPath, Option<Note>)>>,
    /// Something of it isn't in the spool.
    is_lacking: bool,
}

impl Fs {
    /// As renameat2(2).
    pub fn rename(&self, from: Place<'_>, to: Place<'_>, flags: u32, caller: Caller) -> FsResult<()> {
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(FsError::Errno(libc::EINVAL));
        }
        if self.was_renamed(from, to, flags, caller)? {
            return Ok(());
        }
        let _claim = self.claim(&[from, to])?;
        let source = self.doomed(from.0, from.1)?.ok_or(FsError::Errno(libc::ENOENT))?;
        let target = self.doomed(to.0, to.1)?;
        if flags.contains(RenameFlags::NOREPLACE) && target.is_some() {
            return Err(FsError::Errno(libc::EEXIST));
        }
        if !flags.contains(RenameFlags::EXCHANGE) {
            return self.move_name((from, &source), (to, target.as_ref()), flags, caller);
        }
        let target = target.ok_or(FsError::Errno(libc::ENOENT))?;
        self.exchange((from, &source), (to, &target), caller)
    }

    fn move_name(
        &self,
        (from, source): (Place<'_>, &Doomed),
        (to, target): (Place<'_>, Option<&Doomed>),
        flags: RenameFlags,
        caller: Caller,
    ) -> FsResult<()> {
        let target_path = self.path_in(to.0, to.1)?;
        let is_dir = source.kind == Kind::Dir;
        let below = self.whole(from, source)?;
        if is_dir && target.is_some() && !self.is_empty_dir(to.0, to.1, &target_path)? {
            return Err(FsError::Errno(libc::ENOTEMPTY));
        }
        let target_is_dir = target.map_or(is_dir, |target| target.kind == Kind::Dir);
        let mut changed = vec![(target_path.clone(), target_is_dir)];
        changed.extend(self.moved(source, &below, &target_path));
        self.change_all(&changed, || {
            let (old_dir, new_dir) = (self.dir_for_change(from.0)?, self.dir_for_change(to.0)?);
            let (old, new) = (OsStr::from_bytes(from.1), OsStr::from_bytes(to.1));
            self.must_fit_at((old_dir.as_fd(), from.1), &source.path, (&target_path, source.kind))?;
            self.note_replaced(&target_path, is_dir, target)?;
            self.note_moved(&below)?;
            self.orphans.about_to_lose(self, to.0, to.1)?;
            self.requests.begin(caller.request);
            self.take_away(source, || match sys::renameat_with(&old_dir, old, &new_dir, new, flags) {
                // What is left there shows nowhere.
                Err(sysio::Errno::NOTEMPTY | sysio::Errno::EXIST) if is_dir && target.is_some() => {
                    self.clear_hidden_dir(to.0, to.1, &target_path)?;
                    Ok(sys::renameat_with(&old_dir, old, &new_dir, new, flags)?)
                }
                renamed => Ok(renamed?),
            })?;
            self.nodes.lock().rename(from, to);
            if is_dir || target_is_dir {
                self.kept.clear();
            }
            if is_dir
                || target_is_dir
                || self.unit_of(&source.path, false) != self.unit_of(&target_path, false)
            {
                self.rehome_handles();
            }
            Ok(())
        })
    }

    fn exchange(
        &self,
        (a, at_a): (Place<'_>, &Doomed),
        (b, at_b): (Place<'_>, &Doomed),
        caller: Caller,
    ) -> FsResult<()> {
        let (below_a, below_b) = (self.whole(a, at_a)?, self.whole(b, at_b)?);
        let mut changed = self.moved(at_a, &below_a, &at_b.path);
        changed.extend(self.moved(at_b, &below_b, &at_a.path));
        self.change_all(&changed, || {
            let (dir_a, dir_b) = (self.dir_for_change(a.0)?, self.dir_for_change(b.0)?);
            self.must_fit_at((dir_a.as_fd(), a.1), &at_a.path, (&at_b.path, at_a.kind))?;
            self.must_fit_at((dir_b.as_fd(), b.1), &at_b.path, (&at_a.path, at_b.kind))?;
            self.note_replaced(&at_a.path, at_b.kind == Kind::Dir, Some(at_a))?;
            self.note_replaced(&at_b.path, at_a.kind == Kind::Dir, Some(at_b))?;
            self.note_moved(&below_a)?;
            self.note_moved(&below_b)?;
            let (name_a, name_b) = (OsStr::from_bytes(a.1), OsStr::from_bytes(b.1));
            self.begin_exchange(caller, (dir_a.as_fd(), name_a), (dir_b.as_fd(), name_b))?;
            sys::renameat_with(&dir_a, name_a, &dir_b, name_b, RenameFlags::EXCHANGE)?;
            self.nodes.lock().exchange(a, b);
            self.kept.clear();
            self.rehome_handles();
            Ok(())
        })
    }

    /// Everything that goes along with a name. It needs all of it in the spool; refused, before anything is brought there, if something of it may not be
    /// deleted where it is.
    fn whole(&self, (parent, name): Place<'_>, doomed: &Doomed) -> FsResult<Below> {
        let mut below = Below::default();
        if doomed.kind != Kind::Dir {
            return if doomed.shows_spool {
                Ok(below)
            } else {
                Err(self.need_copy_up((parent, name))?.into())
            };
        }
        if !self.committed.relevant(&doomed.path) {
            return Ok(below);
        }
        let node = self.child_of((parent, name))?;
        below.is_lacking = !doomed.shows_spool;
        self.look_below(node, &mut below)?;
        if below.is_lacking { Err(Need::Subtree { node }.into()) } else { Ok(below) }
    }

    fn look_below(&self, dir: NodeId, below: &mut Below) -> FsResult<()> {
        for item in self.list(dir)? {
            let Some(doomed) = self.doomed(dir, &item.name)? else { continue };
            below.is_lacking |= !doomed.shows_spool;
            if let Some((unit, note)) = doomed.note {
                below.notes.entry(unit).or_default().push((doomed.path.clone(), Some(note)));
            }
            below.paths.push((doomed.path, doomed.kind == Kind::Dir));
            if doomed.kind == Kind::Dir {
                self.with_child((dir, &item.name), |child| self.look_below(child, below))?;
            }
        }
        Ok(())
    }

    /// The paths that change when all this goes to `to`: with each its place is another unit's, perhaps.
    fn moved(&self, source: &Doomed, below: &Below, to: &RelPath) -> Vec<(RelPath, bool)> {
        let is_dir = source.kind == Kind::Dir;
        let above = [source.path.parent(), to.parent()].into_iter().flatten().map(|path| (path, true));
        let mut changed: Vec<_> =
            above.chain([(source.path.clone(), is_dir), (to.clone(), is_dir)]).collect();
        for (path, is_dir) in &below.paths {
            changed.push((path.clone(), *is_dir));
            let moved = path.below(&source.path).and_then(|rest| to.append(&rest).ok());
            changed.extend(moved.map(|path| (path, *is_dir)));
        }
        // Units that are wholly in the spool, whose roots go along.
        if is_dir && source.path.depth() < UNIT_ROOT_DEPTH {
            let roots = self.committed.unit_roots_below(&source.path);
            changed.extend(roots.iter().map(|root| (root.clone(), true)));
            let moved = roots.iter().filter_map(|root| to.append(&root.below(&source.path)?).ok());
            changed.extend(moved.map(|root| (root, true)));
        }
        changed
    }

    fn change_all<T>(&self, paths: &[(RelPath, bool)], act: impl FnOnce() -> FsResult<T>) -> FsResult<T> {
        let paths: BTreeSet<_> = paths.iter().collect();
        let paths: Vec<_> = paths.into_iter().map(|(path, is_dir)| (path, *is_dir)).collect();
        self.change(&paths, act)
    }

    fn note_moved(&self, below: &Below) -> FsResult<()> {
        below.notes.iter().try_for_each(|(unit, notes)| self.committed.note(unit, notes))
    }

    /// What is put in place of something committed is based on that.
    fn note_replaced(&self, path: &RelPath, is_dir: bool, target: Option<&Doomed>) -> FsResult<()> {
        let Some(target) = target.filter(|target| !is_dir && target.shown > Seq::default()) else {
            return Ok(());
        };
        match self.unit_of(path, is_dir) {
            Some(unit) => self.committed.note(&unit, &[(path.clone(), Some(Note::Based(target.shown)))]),
            None => Ok(()),
        }
    }

    fn need_copy_up(&self, place: Place<'_>) -> FsResult<Need> {
        Ok(Need::CopyUp { node: self.child_of(place)?, keep: u64::MAX })
    }

    fn child_of(&self, (parent, name): Place<'_>) -> FsResult<NodeId> {
        self.nodes.lock().child(parent, name).ok_or(FsError::Errno(libc::ESTALE))
    }

    /// Looks a name up for as long as `act` takes.
    fn with_child(&self, (dir, name): Place<'_>, act: impl FnOnce(NodeId) -> FsResult<()>) -> FsResult<()> {
        let Lookup::Found(entry) = self.lookup(dir, name)? else { return Ok(()) };
        let done = act(entry.attr.node);
        self.forget(entry.attr.node, 1);
        done
    }

    /// Brings a directory with all that shows in it into the spool, as it shows. Waits for the network.
    pub(super) fn bring_subtree(&self, dir: NodeId) -> FsResult<()> {
        self.satisfied(&|| self.bring_dir(dir).map(drop))?;
        self.satisfied(&|| match self.shown(dir)? {
            Shown::Local(local) => self.settle_attrs(&local),
            Shown::Remote(_) => Err(FsError::Errno(libc::ESTALE)),
        })?;
        let mut items = Vec::new();
        self.satisfied_with(&mut || {
            items = self.list(dir)?;
            Ok(())
        })?;
        for item in items {
            self.satisfied(&|| {
                self.with_child((dir, &item.name), |child| self.bring_child(child, item.kind))
            })?;
        }
        Ok(())
    }

    fn bring_child(&self, child: NodeId, kind: Kind) -> FsResult<()> {
        if kind == Kind::Dir {
            return self.bring_subtree(child);
        }
        // Here, and not by whoever asked for the directory: the node is known no longer than this takes.
        self.satisfied(&|| self.copy_up(child, u64::MAX))
    }

    /// Does `op`, and what it needs before it.
    fn satisfied(&self, op: &dyn Fn() -> FsResult<()>) -> FsResult<()> {
        self.satisfied_with(&mut || op())
    }

    fn satisfied_with(&self, op: &mut dyn FnMut() -> FsResult<()>) -> FsResult<()> {
        for _ in 0..ATTEMPTS {
            match op() {
                Err(FsError::Need(need)) => match self.fulfil(&need) {
                    Err(FsError::Need(first)) => self.fulfil(&first)?,
                    done => done?,
                },
                done => return done,
            }
        }
        Err(FsError::Errno(libc::EIO))
    }
}
