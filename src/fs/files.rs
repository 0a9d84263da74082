//! Open files.
//!
//! A handle reads and writes the spool's file through one descriptor without `O_APPEND` (the kernel gives every offset, and a
//! positioned write on an appending descriptor would go to the end), or reads what is only committed from the cache. A remote
//! handle goes over to the spool's file once there is one: its content is the same at that moment, and later writes must be seen.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
};

use rustix::{
    fs::{self as sys, FallocateFlags, Mode, OFlags, SeekFrom},
    io as sysio,
};

use super::{
    Caller, Entry, Fh, Fs, FsError, FsResult, Kind, Need, NodeId,
    committed::Candidate,
    kept::Inside,
    ledger::Requests,
    mode,
    nodes::{Brief, Handle},
    place::Shown,
};
use crate::{
    ids::{RelPath, UnitId},
    spool::Spool,
};

/// Remote nodes of which it is known what the kernel has in its pages.
const PAGED: usize = 16 << 10;

/// What was opened.
#[derive(Debug)]
pub struct Opened {
    pub fh: Fh,
    pub node: NodeId,
    /// The spool's file, if that is what was opened: for passthrough.
    pub backing: Option<Arc<OwnedFd>>,
    /// It was opened by this very request before the take-over: counted already.
    pub is_resumed: bool,
    /// It was emptied, and has lost setuid or setgid by that, which the kernel doesn't expect.
    pub has_lost_ids: bool,
    /// Of what is only committed: the kernel may go on with the pages that it has of the node, since they are of this content.
    pub keeps_pages: bool,
}

/// One handle.
pub(super) struct OpenFile {
    pub(super) node: NodeId,
    writable: bool,
    state: Mutex<State>,
}

pub(super) struct State {
    counted: Counted,
    pub(super) data: Data,
}

/// The unit in which a handle counts.
#[derive(PartialEq)]
enum Counted {
    In(Option<UnitId>),
    /// In none any more, wherever its file goes.
    Closed,
}

pub(super) enum Data {
    Local(Arc<OwnedFd>),
    /// What is only committed, as of so many [`Fs::news`].
    Remote(Box<Candidate>, u64),
    /// It could not be opened again after a take-over.
    Lost,
}

impl OpenFile {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics under this lock")
    }
}

impl Fs {
    /// Opens a file with the flags of open(2); of what isn't there nothing is made.
    pub fn open(&self, node: NodeId, flags: i32, caller: Caller) -> FsResult<Opened> {
        if let Some(opened) = self.resumed_open(caller) {
            return Ok(opened);
        }
        let flags = OFlags::from_bits_retain(flags as u32);
        let (writable, truncate) = (is_writable(flags), flags.contains(OFlags::TRUNC));
        let (news, moves) = (self.news(), self.moves());
        let brief = self.brief(node)?;
        match brief.kind {
            Kind::File => {}
            Kind::Dir => return Err(FsError::Errno(libc::EISDIR)),
            _ => return Err(FsError::Errno(libc::ENXIO)),
        }
        if let Some(opened) = self.open_plain((node, flags, caller), &brief, moves)? {
            return Ok(opened);
        }
        self.settle(node)?;
        let paths = self.nodes.lock().paths(node);
        match self.shown(node)? {
            Shown::Remote(_) if writable || truncate => {
                Err(Need::CopyUp { node, keep: if truncate { 0 } else { u64::MAX } }.into())
            }
            Shown::Remote(candidate) => {
                let unit = self.unit_of_any(&paths);
                let _operations = self.enter(unit.as_slice())?;
                let keeps_pages = self.has_pages_of(node, &candidate, brief.handle.is_some());
                let opened =
                    self.register((node, flags, caller), (unit, moves), Data::Remote(candidate, news));
                Ok(Opened { keeps_pages, ..opened })
            }
            Shown::Local(local) if writable || truncate => {
                let changed: Vec<_> = paths.iter().map(|p| (p, false)).collect();
                self.change(&changed, || {
                    let fd = reopen(&local.fd, flags)?;
                    let has_lost_ids = truncate && empty(&fd, caller)?;
                    let unit = self.unit_of_any(&paths);
                    let data = Data::Local(Arc::new(fd));
                    let opened = self.register((node, flags, caller), (unit, moves), data);
                    Ok(Opened { has_lost_ids, ..opened })
                })
            }
            Shown::Local(local) => {
                let unit = self.unit_of_any(&paths);
                let _operations = self.enter(unit.as_slice())?;
                let fd = Arc::new(reopen(&local.fd, flags)?);
                Ok(self.register((node, flags, caller), (unit, moves), Data::Local(fd)))
            }
        }
    }

    /// Opens what nobody else can have anything of, by its name in the directory that is kept; `None` if that isn't to be had.
    fn open_plain(
        &self,
        (node, flags, caller): (NodeId, OFlags, Caller),
        brief: &Brief,
        moves: u64,
    ) -> FsResult<Option<Opened>> {
        let (Some((parent, name)), Some(inode)) = (&brief.place, &brief.local) else { return Ok(None) };
        if !self.is_private(*parent) {
            return Ok(None);
        }
        let unit = self.unit_in(*parent, &self.path_in(*parent, name)?);
        let (writable, truncate) = (is_writable(flags), flags.contains(OFlags::TRUNC));
        let Some(dir) = self.dir_fd(*parent)? else { return Ok(None) };
        let act = || {
            let how = access(flags) | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let opened = sys::openat(&*dir, OsStr::from_bytes(name), how, Mode::empty());
            // Inside the operation nobody frees the unit; whoever did it before has said so before.
            let is_it = |fd: &OwnedFd| {
                self.is_private(*parent)
                    && sys::fstat(fd).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == inode.key())
            };
            let Some(fd) = opened.ok().filter(is_it) else { return Ok(None) };
            let has_lost_ids = truncate && empty(&fd, caller)?;
            let data = Data::Local(Arc::new(fd));
            let opened = self.register((node, flags, caller), (unit.clone(), moves), data);
            Ok(Some(Opened { has_lost_ids, ..opened }))
        };
        if writable || truncate {
            return self.change_node(node, act);
        }
        let _operation = self.enter(unit.as_slice())?;
        act()
    }

    /// Makes a file and opens it, or opens it if it is there and `O_EXCL` isn't in the flags.
    pub fn create(
        &self,
        parent: NodeId,
        name: &[u8],
        perm: u32,
        flags: i32,
        caller: Caller,
    ) -> FsResult<(Entry, Opened)> {
        match self.create_new(parent, name, perm, flags, caller) {
            Err(FsError::Errno(libc::EEXIST)) if flags & libc::O_EXCL == 0 => {
                let super::names::Lookup::Found(entry) = self.lookup(parent, name)? else {
                    return Err(FsError::Errno(libc::ESTALE));
                };
                let opened = self.open(entry.attr.node, flags, caller);
                if opened.is_err() {
                    self.forget(entry.attr.node, 1);
                }
                Ok((entry, opened?))
            }
            result => result,
        }
    }

    fn create_new(
        &self,
        parent: NodeId,
        name: &[u8],
        perm: u32,
        flags: i32,
        caller: Caller,
    ) -> FsResult<(Entry, Opened)> {
        let moves = self.moves();
        let path = self.path_in(parent, name)?;
        let is_made = self.was_made(parent, name, Kind::File, caller)?;
        if !is_made {
            self.must_be_free(parent, name, &path)?;
        }
        let above = path.parent().unwrap_or_default();
        let flags = OFlags::from_bits_retain(flags as u32);
        self.change_in(parent, &[(&path, false), (&above, true)], || {
            let anew = if is_made { OFlags::empty() } else { OFlags::CREATE | OFlags::EXCL };
            let how = sync_bits(flags) | anew | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            self.requests.begin(caller.request);
            let (dir, fd) = self.in_dir_for_change(parent, |dir| {
                sys::openat(dir, OsStr::from_bytes(name), how, Mode::from_raw_mode(perm & 0o777))
            })?;
            let made = self.spool.identify_open(fd.as_fd(), dir.as_fd(), name).map_err(FsError::from);
            let made = made.and_then(|made| self.give_away(dir.as_fd(), name, made, Some(perm), caller));
            if made.is_err() {
                let _ = sys::unlinkat(&dir, OsStr::from_bytes(name), sys::AtFlags::empty());
            }
            let (inode, stat) = made?;
            let mut entry = self.local_entry(parent, name, (&inode, &stat), None)?;
            let opened = self.resumed_open(caller).unwrap_or_else(|| {
                let (unit, data) = (self.unit_in(parent, &path), Data::Local(Arc::new(fd)));
                self.register((entry.attr.node, flags, caller), (unit, moves), data)
            });
            // What is written through the handle makes the kernel forget the attributes; a shared mapping doesn't.
            if flags.contains(OFlags::RDWR) {
                entry.attr_ttl = super::MAPPED_TTL.min(entry.attr_ttl);
            }
            Ok((entry, opened))
        })
    }

    /// The unit of `path`, which is in directory `parent` and isn't one itself.
    fn unit_in(&self, parent: NodeId, path: &RelPath) -> Option<UnitId> {
        match self.facts(parent).map(|facts| facts.inside.clone()) {
            Some(Inside::All(unit)) => unit,
            _ => self.unit_of(path, false),
        }
    }

    fn unit_of_any(&self, paths: &[RelPath]) -> Option<UnitId> {
        paths.last().and_then(|path| self.unit_of(path, false))
    }

    /// Call it inside an operation of `unit`, which the node was in after that many [`Fs::moves`].
    fn register(
        &self,
        (node, flags, caller): (NodeId, OFlags, Caller),
        (unit, moves): (Option<UnitId>, u64),
        data: Data,
    ) -> Opened {
        let fh = self.next_fh();
        let (backing, content) = match &data {
            Data::Local(fd) => (Some(fd.clone()), Box::default()),
            Data::Remote(candidate, _) => (None, self.content_to_keep(candidate)),
            Data::Lost => (None, Box::default()),
        };
        if let Some(unit) = unit.as_ref().filter(|_| !is_writable(flags)) {
            self.reads.note(unit);
        }
        let file = self.insert(fh, node, is_writable(flags), unit, data);
        let request = Requests::plain(caller.request);
        self.nodes.lock().opened(node, Handle { fh, flags: flags.bits(), request, content });
        // The rename didn't know of this handle.
        if self.moves() != moves {
            self.rehome(&file);
        }
        if backing.is_some() {
            self.paged.lock().expect("no code panics under this lock").remove(&node);
        }
        Opened { fh, node, backing, is_resumed: false, has_lost_ids: false, keeps_pages: false }
    }

    /// Whether what the kernel has read of a remote node is this content, which it is from now on. Handles on another content that
    /// are still open may go on filling pages with that.
    fn has_pages_of(&self, node: NodeId, candidate: &Candidate, is_open: bool) -> bool {
        let content = candidate.file.map(|(_, content)| content);
        let mut paged = self.paged.lock().expect("no code panics under this lock");
        let is_same = content.is_some() && paged.get(&node).copied() == content;
        if is_open && !is_same {
            paged.remove(&node);
        } else if let (Some(content), false) = (content, is_same) {
            if paged.len() >= PAGED {
                paged.clear();
            }
            paged.insert(node, content);
        }
        is_same
    }

    pub(super) fn insert(
        &self,
        fh: Fh,
        node: NodeId,
        writable: bool,
        unit: Option<UnitId>,
        data: Data,
    ) -> Arc<OpenFile> {
        unit.iter().for_each(|unit| self.activity.opened(unit, writable));
        let counted = Counted::In(unit);
        let file = Arc::new(OpenFile { node, writable, state: Mutex::new(State { counted, data }) });
        self.files.write().expect("no code panics under this lock").insert(fh, file.clone());
        file
    }

    /// What a predecessor had opened for this request, and the kernel hasn't heard of.
    fn resumed_open(&self, caller: Caller) -> Option<Opened> {
        let fh = self.inherited.opened_by(caller.request)?;
        let node = self.file(fh).ok()?.node;
        let backing = self.local_file(fh);
        // Whether it had such bits isn't known any more.
        Some(Opened { fh, node, backing, is_resumed: true, has_lost_ids: true, keeps_pages: false })
    }

    pub(super) fn file(&self, fh: Fh) -> FsResult<Arc<OpenFile>> {
        let files = self.files.read().expect("no code panics under this lock");
        files.get(&fh).cloned().ok_or(FsError::Errno(libc::EBADF))
    }

    /// The spool's descriptor of a handle, if it has one.
    pub(super) fn local_file(&self, fh: Fh) -> Option<Arc<OwnedFd>> {
        match &self.file(fh).ok()?.lock().data {
            Data::Local(fd) => Some(fd.clone()),
            Data::Remote(..) | Data::Lost => None,
        }
    }

    /// The same, if the handle may be written through.
    pub(super) fn writable_file(&self, fh: Fh) -> Option<Arc<OwnedFd>> {
        let file = self.file(fh).ok()?;
        file.writable.then(|| self.local_file(fh)).flatten()
    }

    /// What a remote handle shows.
    pub(super) fn remote_file(&self, fh: Fh) -> Option<Box<Candidate>> {
        match &self.file(fh).ok()?.lock().data {
            Data::Local(_) | Data::Lost => None,
            Data::Remote(candidate, _) => Some(candidate.clone()),
        }
    }

    /// Reads up to `len` bytes; fewer only at the end of the file.
    pub fn read(&self, fh: Fh, offset: u64, len: usize) -> FsResult<Vec<u8>> {
        let file = self.file(fh)?;
        match self.data_of(&file)? {
            Data::Lost => Err(FsError::Errno(libc::EIO)),
            Data::Local(fd) => read_at(&fd, offset, len),
            Data::Remote(candidate, _) => {
                let (size, content) = candidate.file.ok_or(FsError::Errno(libc::EIO))?;
                let len = len.min(usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX));
                if len == 0 {
                    return Ok(Vec::new());
                }
                self.committed.read_local((size, content), offset, len).ok_or_else(|| {
                    let path = self.path_of(file.node).unwrap_or_else(|| candidate.entry.path.clone());
                    Need::Bytes { path, content, size, offset, len }.into()
                })
            }
        }
    }

    /// What a handle reads from now: a remote one goes over to the spool when its node is there.
    fn data_of(&self, file: &OpenFile) -> FsResult<Data> {
        self.follow(file)?;
        let (candidate, seen) = match &file.lock().data {
            Data::Local(fd) => return Ok(Data::Local(fd.clone())),
            Data::Lost => return Ok(Data::Lost),
            Data::Remote(candidate, seen) => (candidate.clone(), *seen),
        };
        let is_local = self.nodes.lock().brief(file.node).is_some_and(|b| b.local.is_some());
        let Some((identity, _)) = is_local.then(|| self.inode_fd(file.node)).transpose()?.flatten() else {
            return Ok(Data::Remote(candidate, seen));
        };
        let fd = Arc::new(Spool::reopen(identity.as_fd(), OFlags::RDONLY)?);
        file.lock().data = Data::Local(fd.clone());
        Ok(Data::Local(fd))
    }

    /// Writes all of `bytes`.
    pub fn write(&self, fh: Fh, offset: u64, bytes: &[u8]) -> FsResult<()> {
        let fd = self.writable_file(fh).ok_or(FsError::Errno(libc::EBADF))?;
        let mut done = 0;
        while done < bytes.len() {
            match sysio::pwrite(&fd, &bytes[done..], offset + done as u64) {
                Ok(0) => return Err(FsError::Errno(libc::EIO)),
                Ok(count) => done += count,
                Err(sysio::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Makes a file durable.
    pub fn fsync(&self, fh: Fh, only_data: bool) -> FsResult<()> {
        let Some(fd) = self.local_file(fh) else { return Ok(()) };
        Ok((if only_data { sys::fdatasync(&fd) } else { sys::fsync(&fd) })?)
    }

    /// As fallocate(2).
    pub fn fallocate(&self, fh: Fh, mode: i32, offset: u64, len: u64) -> FsResult<()> {
        let fd = self.writable_file(fh).ok_or(FsError::Errno(libc::EBADF))?;
        Ok(sys::fallocate(&fd, FallocateFlags::from_bits_retain(mode as u32), offset, len)?)
    }

    /// `SEEK_DATA` and `SEEK_HOLE`.
    pub fn seek(&self, fh: Fh, offset: u64, whence: i32) -> FsResult<u64> {
        let position = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(FsError::Errno(libc::EINVAL)),
        };
        let file = self.file(fh)?;
        match self.data_of(&file)? {
            Data::Lost => Err(FsError::Errno(libc::EIO)),
            Data::Local(fd) => Ok(sys::seek(&fd, position)?),
            Data::Remote(candidate, _) => self.seek_committed(file.node, &candidate, offset, whence),
        }
    }

    /// The holes of what is only committed are where its recipe repeats the chunk of zeros.
    fn seek_committed(&self, node: NodeId, candidate: &Candidate, offset: u64, whence: i32) -> FsResult<u64> {
        let (size, content) =
            candidate.file.filter(|(size, _)| offset < *size).ok_or(FsError::Errno(libc::ENXIO))?;
        let is_hole = whence == libc::SEEK_HOLE;
        match self.committed.seek((size, content), offset, is_hole) {
            Some(found) if found < size || is_hole => Ok(found),
            Some(_) => Err(FsError::Errno(libc::ENXIO)),
            None => {
                let path = self.path_of(node).unwrap_or_else(|| candidate.entry.path.clone());
                Err(Need::Bytes { path, content, size, offset, len: 1 }.into())
            }
        }
    }

    /// Copies between two files of the spool; anything else is for the kernel to do by reading and writing (`EXDEV`).
    pub fn copy_range(&self, from: (Fh, u64), to: (Fh, u64), len: u64) -> FsResult<usize> {
        let source = self.local_file(from.0).ok_or(FsError::Errno(libc::EXDEV))?;
        let target = self.writable_file(to.0).ok_or(FsError::Errno(libc::EBADF))?;
        let (mut source_at, mut target_at) = (from.1, to.1);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        Ok(sys::copy_file_range(&source, Some(&mut source_at), &target, Some(&mut target_at), len)?)
    }

    /// Closes a handle for good; false if there is none of that number (any more).
    pub fn release(&self, fh: Fh) -> bool {
        let file = self.files.write().expect("no code panics under this lock").remove(&fh);
        let Some(file) = file else { return false };
        self.nodes.lock().closed(file.node, fh);
        self.orphans.closed(self, file.node);
        // A rename may be about to count it elsewhere.
        let counted = std::mem::replace(&mut file.lock().counted, Counted::Closed);
        if let Counted::In(Some(unit)) = counted {
            self.activity.closed(&unit, file.writable);
        }
        true
    }

    /// The kernel's number for the file behind a node's open handles, for a successor; `None` = it is about to be given back.
    pub fn set_backing(&self, node: NodeId, backing: Option<u32>) {
        let mut nodes = self.nodes.lock();
        if let (None, Some(old)) = (backing, nodes.backing(node)) {
            self.requests.giving_back(old);
        }
        nodes.set_backing(node, backing);
    }

    /// How many renames there were: who took a unit from a path looks again when there was one meanwhile.
    fn moves(&self) -> u64 {
        self.moves.load(Ordering::SeqCst)
    }

    /// After a rename: every handle counts for the unit where its file is now.
    pub(super) fn rehome_handles(&self) {
        self.moves.fetch_add(1, Ordering::SeqCst);
        let files: Vec<_> =
            self.files.read().expect("no code panics under this lock").values().cloned().collect();
        files.iter().for_each(|file| self.rehome(file));
    }

    fn rehome(&self, file: &OpenFile) {
        let Some(path) = self.path_of(file.node) else { return };
        let unit = Counted::In(self.unit_of(&path, false));
        let mut state = file.lock();
        if state.counted == Counted::Closed || state.counted == unit {
            return;
        }
        if let Counted::In(Some(unit)) = &unit {
            self.activity.opened(unit, file.writable);
        }
        if let Counted::In(Some(old)) = std::mem::replace(&mut state.counted, unit) {
            self.activity.closed(&old, file.writable);
        }
    }
}

pub(super) fn is_writable(flags: OFlags) -> bool {
    flags.intersects(OFlags::WRONLY | OFlags::RDWR)
}

/// What opening with `O_TRUNC` does; whether setuid or setgid went by that.
fn empty(fd: &OwnedFd, caller: Caller) -> FsResult<bool> {
    sys::ftruncate(fd, 0)?;
    if mode::is_dropped_by_cut(caller) { mode::drop_ids(fd.as_fd()) } else { Ok(false) }
}

fn sync_bits(flags: OFlags) -> OFlags {
    flags & (OFlags::SYNC | OFlags::DSYNC)
}

/// For reading and writing wherever one of them isn't enough: a handle for writing only still has to fill pages. The kernel opens
/// the file once more for passthrough, with the caller's own flags.
pub(super) fn reopen(identity: &OwnedFd, flags: OFlags) -> FsResult<OwnedFd> {
    match Spool::reopen(identity.as_fd(), access(flags)) {
        Err(e) if e.raw_os_error() == Some(libc::EACCES) && access(flags).contains(OFlags::RDWR) => {
            Ok(Spool::reopen(identity.as_fd(), sync_bits(flags) | OFlags::WRONLY)?)
        }
        result => Ok(result?),
    }
}

fn access(flags: OFlags) -> OFlags {
    if is_writable(flags) || flags.contains(OFlags::TRUNC) {
        sync_bits(flags) | OFlags::RDWR
    } else {
        OFlags::RDONLY
    }
}

fn read_at(fd: &OwnedFd, offset: u64, len: usize) -> FsResult<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match sysio::pread(fd, &mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(sysio::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}
