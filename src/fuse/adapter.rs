//! One method a request: from fuser's types to the file system and back.
//!
//! An operation is tried at once; if it needs what isn't here, the rest goes to the pool, reply and all, and fuser's thread is free
//! for the next request.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::{
    backing::Backings,
    bare::BareNames,
    notice::Notices,
    pool::Pool,
    texts,
    times::{set_time, system_time},
};
use crate::{
    fs::{
        Attr, Caller, Entry, FIRST_PLACE, Fs, FsError, FsResult, Invalidation, Kind, Lookup, Need, Opened,
        SetAttr,
    },
    manifest::Timestamp,
};

/// The largest write or read in one request: the kernel's own bound.
const REQUEST_BYTES: u32 = 1 << 20;
/// Requests that the kernel may have under way by itself; releases count, and its default of 12 stalls a burst of closes.
const BACKGROUND: u16 = 512;
/// How often an operation may find that it needs yet another thing.
const ATTEMPTS: usize = 64;
/// They come before a listing's own lines, at the places 1 and 2.
const DOTS: [&str; 2] = [".", ".."];
const _: () = assert!((DOTS.len() as u64) < FIRST_PLACE);

/// What we ask of the kernel where it has it. Left out on purpose: the locks (kept in the kernel they work between all processes),
/// extended setxattr (fuser can't tell us), the write-back cache (loses data). What setuid bits take, `fs::mode` says.
const WANTED: InitFlags = InitFlags::FUSE_ATOMIC_O_TRUNC
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    .union(InitFlags::FUSE_ASYNC_DIO);

struct Shared {
    fs: Arc<Fs>,
    backings: Arc<Backings>,
    notices: Notices,
    /// What the kernel has of what was asked for, for a successor, which can't ask again.
    granted: Arc<AtomicU64>,
    /// The mount's device number.
    device: u32,
}

pub(super) struct Adapter {
    shared: Arc<Shared>,
    pool: Pool,
}

impl Adapter {
    pub(super) fn new(
        fs: Arc<Fs>,
        backings: Arc<Backings>,
        notices: Notices,
        granted: Arc<AtomicU64>,
        device: u32,
    ) -> Self {
        Self { shared: Arc::new(Shared { fs, backings, notices, granted, device }), pool: Pool::new() }
    }

    /// Does `op` and tells `reply`; on the pool, if it has to wait. A reply that is dropped is answered EIO by fuser.
    fn answer<T>(
        &self,
        op: impl Fn(&Fs) -> FsResult<T> + Send + 'static,
        reply: impl FnOnce(&Shared, Result<T, Errno>) + Send + 'static,
    ) {
        match attempt(|| op(&self.shared.fs)) {
            Err(FsError::Need(need)) => {
                let shared = self.shared.clone();
                let is_queued = self.pool.submit(move || {
                    let result = shared.insist(need, &op);
                    reply(&shared, result.map_err(errno));
                });
                if !is_queued {
                    tracing::warn!("too many operations wait for the results host");
                }
            }
            result => reply(&self.shared, result.map_err(errno)),
        }
    }

    fn answer_entry(&self, reply: ReplyEntry, op: impl Fn(&Fs) -> FsResult<Entry> + Send + 'static) {
        self.answer(op, |_, result| reply_entry(reply, result));
    }

    fn answer_empty(&self, reply: ReplyEmpty, op: impl Fn(&Fs) -> FsResult<()> + Send + 'static) {
        self.answer(op, |_, result| match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        });
    }
}

impl Shared {
    /// Fulfils needs, one after the other, until `op` has none.
    fn insist<T>(&self, mut need: Need, op: &dyn Fn(&Fs) -> FsResult<T>) -> FsResult<T> {
        for _ in 0..ATTEMPTS {
            attempt(|| self.fs.fulfil(&need)).or_else(|e| match e {
                // What was to be fetched needs another thing first.
                FsError::Need(first) => attempt(|| self.fs.fulfil(&first)),
                e => Err(e),
            })?;
            match attempt(|| op(&self.fs)) {
                Err(FsError::Need(next)) => need = next,
                result => return result,
            }
        }
        tracing::error!("an operation needs more and more: {need:?}");
        Err(FsError::Errno(libc::EIO))
    }

    /// The kernel has the end of a listing, or no use for it any more: if it is outdated meanwhile, what it keeps of it must go.
    fn listed(&self, node: u64, fh: u64) {
        if self.fs.is_outdated(fh) {
            self.notices.tell([Invalidation::Node { node }]);
        }
    }

    /// The kernel's id for passthrough, if that is how to open.
    fn back(&self, opened: &Opened) -> Option<u32> {
        self.backings.opened(&self.fs, opened)
    }
}

/// A panic of ours is an EIO of this one request, and an error for somebody to act on.
fn attempt<T>(op: impl FnOnce() -> FsResult<T>) -> FsResult<T> {
    catch_unwind(AssertUnwindSafe(op)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        tracing::error!("a bug: an operation of the file system panicked: {text}");
        Err(FsError::Errno(libc::EIO))
    })
}

fn errno(error: FsError) -> Errno {
    match &error {
        FsError::Errno(_) => {}
        FsError::Need(_) | FsError::Unavailable { .. } => tracing::warn!("{error}"),
        FsError::Journal { .. } => tracing::error!("{error}"),
    }
    Errno::from_i32(error.errno())
}

fn reply_entry(reply: ReplyEntry, result: Result<Entry, Errno>) {
    match result {
        Ok(Entry { attr, entry_ttl, attr_ttl }) => {
            reply.entry_with_ttls(&attr_ttl, &entry_ttl, &file_attr(&attr), Generation(0))
        }
        Err(e) => reply.error(e),
    }
}

fn reply_attr(reply: ReplyAttr, result: Result<Entry, Errno>) {
    match result {
        Ok(entry) => reply.attr(&entry.attr_ttl, &file_attr(&entry.attr)),
        Err(e) => reply.error(e),
    }
}

fn reply_open(shared: &Shared, reply: ReplyOpen, result: Result<Opened, Errno>) {
    match result {
        Ok(opened) => match shared.back(&opened) {
            Some(id) => {
                // SAFETY: the id is this session's, and `Backings` gives it back only after the last handle on it was released.
                let backing = unsafe { reply.wrap_backing(id) };
                reply.opened_passthrough(FileHandle(opened.fh), FopenFlags::FOPEN_NOFLUSH, &backing);
                // Not ours to give back.
                let _ = backing.into_raw();
            }
            None => {
                let kept =
                    if opened.keeps_pages { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
                reply.opened(FileHandle(opened.fh), FopenFlags::FOPEN_NOFLUSH | kept);
            }
        },
        Err(e) => reply.error(e),
    }
}

fn reply_create(shared: &Shared, reply: ReplyCreate, result: Result<(Entry, Opened), Errno>) {
    let (entry, opened) = match result {
        Ok(created) => created,
        Err(e) => return reply.error(e),
    };
    let (attr, ttl) = (file_attr(&entry.attr), entry.attr_ttl.min(entry.entry_ttl));
    let (fh, flags) = (FileHandle(opened.fh), FopenFlags::FOPEN_NOFLUSH);
    match shared.back(&opened) {
        Some(id) => {
            // SAFETY: as in `reply_open`.
            let backing = unsafe { reply.wrap_backing(id) };
            reply.created_passthrough(&ttl, &attr, Generation(0), fh, flags, &backing);
            let _ = backing.into_raw();
        }
        None => reply.created(&ttl, &attr, Generation(0), fh, flags),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let has = config.capabilities();
        // Neither can fail: only what the kernel has is asked for, and the sizes are within fuser's bounds.
        let _ = config.add_capabilities(WANTED & has);
        let _ = config.set_max_write(REQUEST_BYTES);
        let _ = config.set_max_background(BACKGROUND);
        let mut granted = WANTED & has;
        if has.contains(InitFlags::FUSE_PASSTHROUGH) && self.shared.backings.is_on() {
            granted |= InitFlags::FUSE_PASSTHROUGH;
            let _ = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH);
            let _ = config.set_max_stack_depth(if self.shared.fs.spool().is_stacked() { 2 } else { 1 });
        } else if self.shared.backings.is_on() {
            tracing::info!("this kernel has no passthrough; files go through the daemon");
            self.shared.backings.switch_off();
        }
        // Only offered, never asked for: it says that requests can be sent again.
        granted |= has & InitFlags::FUSE_HAS_RESEND;
        self.shared.granted.store(granted.bits(), Ordering::Release);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.answer(
            move |fs| fs.lookup(parent.0, &name),
            |_, result| match result {
                Ok(Lookup::Found(entry)) => reply_entry(reply, Ok(entry)),
                Ok(Lookup::Absent { ttl: Duration::ZERO }) => reply.error(Errno::ENOENT),
                // Node 0 says: nothing here, and you may remember that.
                Ok(Lookup::Absent { ttl }) => reply.entry(&ttl, &nothing(), Generation(0)),
                Err(e) => reply.error(e),
            },
        );
    }

    fn forget(&self, _: &Request, node: INodeNo, count: u64) {
        let _ = attempt(|| {
            self.shared.fs.forget(node.0, count);
            Ok(())
        });
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(move |fs| fs.getattr(node.0), |_, result| reply_attr(reply, result));
    }

    fn setattr(
        &self,
        req: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let perm = mode.map(|mode| mode & 0o7777);
        let (atime, mtime) = (atime.map(set_time), mtime.map(set_time));
        let set = SetAttr { perm, uid, gid, size, atime, mtime };
        let (fh, caller) = (fh.map(|fh| fh.0), caller(req));
        self.answer(move |fs| fs.setattr(node.0, set, fh, caller), |_, result| reply_attr(reply, result));
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        self.answer(move |fs| fs.readlink(node.0), |_, result| reply_data(reply, result));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (name, caller) = (name.as_bytes().to_vec(), caller(req));
        self.answer_entry(reply, move |fs| fs.mknod(parent.0, &name, mode, rdev, caller));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let (name, caller) = (name.as_bytes().to_vec(), caller(req));
        self.answer_entry(reply, move |fs| fs.mkdir(parent.0, &name, mode & 0o7777, caller));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (name, caller) = (name.as_bytes().to_vec(), caller(req));
        self.answer_empty(reply, move |fs| fs.unlink(parent.0, &name, caller));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (name, caller) = (name.as_bytes().to_vec(), caller(req));
        self.answer_empty(reply, move |fs| fs.rmdir(parent.0, &name, caller));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, caller) = (name.as_bytes().to_vec(), caller(req));
        let target = target.as_os_str().as_bytes().to_vec();
        self.answer_entry(reply, move |fs| fs.symlink(parent.0, &name, &target, caller));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name, caller) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec(), caller(req));
        self.answer_empty(reply, move |fs| {
            fs.rename((parent.0, &name), (new_parent.0, &new_name), flags.bits(), caller)
        });
    }

    fn link(&self, req: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (name, caller) = (name.as_bytes().to_vec(), caller(req));
        self.answer_entry(reply, move |fs| fs.link(node.0, parent.0, &name, caller));
    }

    fn open(&self, req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if texts::is_emptied_unseen(flags.0) && texts::is_running(self.shared.device, node.0) {
            return reply.error(Errno::from_i32(libc::ETXTBSY));
        }
        // A shared mapping writes past us: attributes from before the open must not outlive it.
        if flags.0 & libc::O_ACCMODE == libc::O_RDWR {
            self.shared.notices.attributes(node.0);
        }
        let caller = caller(req);
        self.answer(
            move |fs| fs.open(node.0, flags.0, caller),
            move |shared, result| {
                // The kernel takes the mode for unchanged.
                if result.as_ref().is_ok_and(|opened| opened.has_lost_ids) {
                    shared.notices.attributes(node.0);
                }
                reply_open(shared, reply, result);
            },
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, caller) = (name.as_bytes().to_vec(), caller(req));
        self.answer(
            move |fs| fs.create(parent.0, &name, mode & 0o7777, flags, caller),
            |shared, result| reply_create(shared, reply, result),
        );
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answer(move |fs| fs.read(fh.0, offset, size as usize), |_, result| reply_data(reply, result));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Never waits: what is open for writing is in the spool.
        match attempt(|| self.shared.fs.write(fh.0, offset, data)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        node: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let released = attempt(|| {
            // A release that comes again finds its handle gone, and nothing must be counted twice.
            if self.shared.fs.release(fh.0) {
                self.shared.backings.released(&self.shared.fs, node.0);
            }
            Ok(())
        });
        if flags.0 & libc::O_ACCMODE == libc::O_RDWR {
            self.shared.notices.attributes(node.0);
        }
        match released {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.answer_empty(reply, move |fs| fs.fsync(fh.0, datasync));
    }

    fn fsyncdir(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.answer_empty(reply, move |fs| fs.fsyncdir(node.0));
    }

    fn opendir(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.answer(
            move |fs| fs.opendir(node.0),
            |_, result| match result {
                // What others change is told by a notice.
                Ok(fh) => {
                    let cached = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
                    reply.opened(FileHandle(fh), cached);
                }
                Err(e) => reply.error(e),
            },
        );
    }

    fn readdir(&self, _: &Request, node: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for (at, dots) in DOTS.iter().enumerate().skip(offset as usize) {
            if reply.add(node, at as u64 + 1, FileType::Directory, dots) {
                return reply.ok();
            }
        }
        self.answer(
            move |fs| {
                let mut items = Vec::new();
                fs.readdir((node.0, fh.0), offset, &mut |item| {
                    items.push(item.clone());
                    items.len() >= 256
                })?;
                Ok(items)
            },
            move |shared, result| match result {
                Ok(items) => {
                    let is_end = items.is_empty();
                    for item in items {
                        let name = OsStr::from_bytes(&item.name);
                        // Any number but 0, which means deleted.
                        let ino = INodeNo(item.ino.max(1));
                        if reply.add(ino, item.place, file_type(item.kind), name) {
                            break;
                        }
                    }
                    reply.ok();
                    if is_end {
                        shared.listed(node.0, fh.0);
                    }
                }
                Err(e) => reply.error(e),
            },
        );
    }

    fn readdirplus(
        &self,
        req: &Request,
        node: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        for (at, dots) in DOTS.iter().enumerate().skip(offset as usize) {
            let attr = FileAttr { ino: node, kind: FileType::Directory, ..nothing() };
            if reply.add(node, at as u64 + 1, dots, &Duration::ZERO, &attr, Generation(0)) {
                return reply.ok();
            }
        }
        let dir = (node.0, fh.0);
        let mut page = Page {
            reply,
            unique: req.unique().0,
            names: BareNames::default(),
            is_told: offset < DOTS.len() as u64,
        };
        match attempt(|| page.fill(&self.shared.fs, dir, offset)) {
            Err(FsError::Need(need)) => {
                let shared = self.shared.clone();
                self.pool.submit(move || {
                    let filled = page.fill_insisting(&shared, need, dir, offset);
                    page.send(&shared, filled, node.0, fh.0);
                });
            }
            filled => page.send(&self.shared, filled, node.0, fh.0),
        }
    }

    fn releasedir(&self, _: &Request, node: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.shared.listed(node.0, fh.0);
        self.answer_empty(reply, move |fs| {
            fs.releasedir(fh.0);
            Ok(())
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.answer(Fs::statfs, |_, result| match result {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                s.f_namemax as u32,
                s.f_frsize as u32,
            ),
            Err(e) => reply.error(e),
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.answer_empty(reply, move |fs| fs.fallocate(fh.0, mode, offset, length));
    }

    fn lseek(&self, _: &Request, _: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let op = move |fs: &Fs| {
            let offset = u64::try_from(offset).map_err(|_| FsError::Errno(libc::ENXIO))?;
            fs.seek(fh.0, offset, whence)
        };
        self.answer(op, |_, result| match result {
            Ok(offset) => reply.offset(offset as i64),
            Err(e) => reply.error(e),
        });
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The answer has room for 32 bits.
        let len = len.min(1 << 30);
        self.answer(
            move |fs| fs.copy_range((fh_in.0, offset_in), (fh_out.0, offset_out), len),
            |_, result| match result {
                Ok(count) => reply.written(count as u32),
                Err(e) => reply.error(e),
            },
        );
    }

    // ENOSYS: the kernel asks for none of these again.

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        // A file is always ready, which the kernel then says by itself.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}

/// An answer to readdirplus: lines with their nodes, or names alone.
struct Page {
    reply: ReplyDirectoryPlus,
    unique: u64,
    names: BareNames,
    is_told: bool,
}

impl Page {
    /// Fills it from behind the place `after` on; what needs something is told only while the answer is empty.
    fn fill(&mut self, fs: &Fs, dir: (u64, u64), after: u64) -> FsResult<()> {
        let Self { reply, names, is_told, .. } = self;
        fs.readdirplus(dir, after, &mut |item, entry| {
            let next = item.place;
            let Some(entry) = entry else { return *is_told || names.add(&item.name, next) };
            if !names.is_empty() {
                return true;
            }
            *is_told = true;
            let (name, ttl) = (OsStr::from_bytes(&item.name), entry.attr_ttl.min(entry.entry_ttl));
            let node = INodeNo(entry.attr.node);
            reply.add(node, next, name, &ttl, &file_attr(&entry.attr), Generation(0))
        })
    }

    fn fill_insisting(
        &mut self,
        shared: &Shared,
        mut need: Need,
        dir: (u64, u64),
        after: u64,
    ) -> FsResult<()> {
        for _ in 0..ATTEMPTS {
            attempt(|| shared.fs.fulfil(&need))?;
            match attempt(|| self.fill(&shared.fs, dir, after)) {
                Err(FsError::Need(next)) => need = next,
                result => return result,
            }
        }
        Err(FsError::Errno(libc::EIO))
    }

    fn send(self, shared: &Shared, filled: FsResult<()>, node: u64, fh: u64) {
        match filled {
            Err(e) => self.reply.error(errno(e)),
            Ok(()) if self.names.is_empty() => {
                self.reply.ok();
                if !self.is_told {
                    shared.listed(node, fh);
                }
            }
            Ok(()) => match self.names.send(shared.backings.device(), self.unique) {
                // It would answer a second time.
                Ok(()) => std::mem::forget(self.reply),
                Err(e) => self.reply.error(Errno::from_i32(e.raw_os_error().unwrap_or(libc::EIO))),
            },
        }
    }
}

fn reply_data(reply: ReplyData, result: Result<Vec<u8>, Errno>) {
    match result {
        Ok(bytes) => reply.data(&bytes),
        Err(e) => reply.error(e),
    }
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), request: req.unique().0 }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.node),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.perm as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// The attributes of no node.
fn nothing() -> FileAttr {
    let time = Timestamp::default();
    let attr = Attr {
        node: 0,
        kind: Kind::File,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        blksize: 0,
        atime: time,
        mtime: time,
        ctime: time,
    };
    file_attr(&attr)
}
