//! The results tree: the union of the spool and all committed layers. Knows nothing of fuser.
//!
//! Every operation of the mount is a method of [`Fs`], takes and returns plain values, and never waits for the network: what
//! needs a manifest or bytes that aren't here, or a unit that is just being freed, answers [`FsError::Need`]. Who may wait calls
//! [`Fs::fulfil`] and asks again.
//!
//! | module | is |
//! |---|---|
//! | `nodes` | what the kernel's inode numbers mean |
//! | `ledger` | what of them outlives this process |
//! | `lengths` | how long a path may be |
//! | `place` | a node's directory, its inode in the spool, what shows at its path |
//! | `kept` | directories kept open, with what holds for everything in them |
//! | `names` | look-up, creation, deletion |
//! | `rename` | renaming, of directories as a whole |
//! | `files`, `dirs` | open files, open directories |
//! | `following` | remote handles while their files grow or are replaced |
//! | `orphans` | open files without a name |
//! | `takeover` | going on where another process was killed |
//! | `change` | attributes; the journal's part in every change |
//! | `copyup` | bringing back what is only committed, to change it |
//! | `claims` | who is at work at a path that is committed |
//! | `committed` | the seam to journal, view and cache |
//! | `conflict` | changes that knew nothing of one another |
//! | `union`, `view` | what all hosts' committed layers say of a path |
//! | `owners` | local numbers of users and groups |
//! | `invalidate` | what the kernel must forget |
//!
//! Invariants:
//! - A change is journaled before it happens, and counted as an operation in its units, so that nothing is freed meanwhile.
//! - A node keeps its id until the kernel forgets it.
//! - What a foreign layer shows is deleted or replaced only with the store's leave, noted in the journal before; it may be changed by an own copy
//!   on top.
//! - No lock is held across I/O on the spool, save the short ones that the kernel's own order makes necessary.

mod attr;
mod change;
mod claims;
mod committed;
pub mod conflict;
mod copyup;
mod dirs;
mod error;
mod files;
mod following;
mod invalidate;
mod kept;
pub mod ledger;
mod lengths;
mod mode;
mod names;
mod nodes;
mod orphans;
mod owners;
mod place;
mod reads;
mod rename;
mod takeover;
pub mod union;
pub mod view;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use self::{
    attr::{Attr, Caller, Entry, Kind, SetAttr, SetTime},
    dirs::{DirItem, FIRST_PLACE},
    error::{FsError, FsResult, Need},
    files::Opened,
    invalidate::Invalidation,
    names::Lookup,
};
use self::{
    claims::Claims,
    committed::Committed,
    dirs::OpenDir,
    files::OpenFile,
    kept::KeptDirs,
    ledger::{Keep, Ledger, Requests},
    nodes::Nodes,
    orphans::Orphans,
    reads::Reads,
    takeover::Inherited,
    view::View,
};
use crate::{
    cache::Cache,
    chunk::ChunkParams,
    ids::{Hash, RelPath, UnitId},
    journal::Journal,
    layout::LayoutRules,
    spool::{Spool, activity::Activity},
};

/// The kernel's number of a node.
pub type NodeId = u64;
/// The number of an open file or directory.
pub type Fh = u64;

/// The root's number: FUSE says so.
pub const ROOT: NodeId = 1;

/// How long the kernel may believe what changes only through this mount, or with an [`Invalidation`].
pub const TTL: Duration = Duration::from_secs(3600);
/// The same while the store doesn't answer: what shows is the best that is known here.
pub const TROUBLED_TTL: Duration = Duration::from_secs(1);
/// The same for attributes of a file that is open for reading and writing: a shared mapping changes it past us.
pub const MAPPED_TTL: Duration = Duration::from_secs(1);

/// What an [`Fs`] is made of.
pub struct FsParts {
    pub spool: Arc<Spool>,
    pub activity: Arc<Activity>,
    pub journal: Arc<Journal>,
    pub view: Arc<View>,
    pub cache: Arc<Cache>,
    pub rules: LayoutRules,
    /// A directory on the spool's file system for files that are being copied up, and for those that are open and have no name.
    pub tmp_dir: PathBuf,
    /// Where to note what a successor must know, if somebody keeps that.
    pub keep: Option<Keep>,
}

/// The file system.
pub struct Fs {
    spool: Arc<Spool>,
    activity: Arc<Activity>,
    committed: Committed,
    nodes: Nodes,
    kept: KeptDirs,
    files: RwLock<HashMap<Fh, Arc<OpenFile>>>,
    dirs: RwLock<HashMap<Fh, Arc<OpenDir>>>,
    /// Of which content the kernel's pages of a remote node are, as far as that is known.
    paged: Mutex<HashMap<NodeId, Hash>>,
    next_fh: AtomicU64,
    moves: AtomicU64,
    claims: Claims,
    /// Counts changes of what is committed or runs elsewhere; a remote handle that has seen fewer looks again.
    news: AtomicU64,
    requests: Requests,
    inherited: Inherited,
    orphans: Orphans,
    reads: Reads,
    tmp_dir: PathBuf,
    umask: u32,
}

impl Fs {
    /// A file system over these parts.
    pub fn new(parts: FsParts) -> FsResult<Arc<Self>> {
        let memory = parts.keep.as_ref().map(|keep| keep.memory.clone());
        let ledger = memory.clone().map(Ledger::new);
        let nodes = Nodes::new(&parts.spool, parts.spool.root_inode()?, ledger);
        let requests = Requests::new(memory, HashMap::new());
        let fs = Self::build(parts, nodes, requests, Inherited::default(), 1);
        fs.orphans.clear(&fs.tmp_dir, &[]);
        Ok(Arc::new(fs))
    }

    fn build(parts: FsParts, nodes: Nodes, requests: Requests, inherited: Inherited, first_fh: Fh) -> Self {
        let FsParts { spool, activity, journal, view, cache, rules, tmp_dir, keep: _ } = parts;
        copyup::clear_leftovers(&tmp_dir);
        Self {
            nodes,
            committed: Committed::new(journal, view, cache, rules),
            kept: KeptDirs::at_most(spool.held_max() / 2),
            spool,
            activity,
            files: RwLock::default(),
            dirs: RwLock::default(),
            paged: Mutex::default(),
            next_fh: AtomicU64::new(first_fh),
            moves: AtomicU64::new(0),
            claims: Claims::default(),
            news: AtomicU64::new(0),
            requests,
            inherited,
            orphans: Orphans::default(),
            reads: Reads::default(),
            tmp_dir,
            umask: process_umask(),
        }
    }

    /// What was read.
    pub fn reads(&self) -> &Reads {
        &self.reads
    }

    /// The unit that `path` is an entry of, if there is one.
    pub fn unit_of(&self, path: &RelPath, is_dir: bool) -> Option<UnitId> {
        self.committed.unit_of(path, is_dir)
    }

    /// How the store cuts its files, once it has said so.
    pub fn set_params(&self, params: ChunkParams) {
        self.committed.set_params(params);
    }

    /// Bytes of a committed content, wherever it shows. Waits for the network.
    pub fn read_committed(&self, file: (u64, Hash), offset: u64, len: usize) -> FsResult<Vec<u8>> {
        let len = len.min(usize::try_from(file.0.saturating_sub(offset)).unwrap_or(usize::MAX));
        self.committed.read(&RelPath::ROOT, file, offset, len)
    }

    /// Where the local layers are.
    pub fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    /// Nodes in the table, open files and open directories.
    pub fn counts(&self) -> (usize, usize, usize) {
        let files = self.files.read().expect("no code panics under this lock").len();
        let dirs = self.dirs.read().expect("no code panics under this lock").len();
        (self.nodes.lock().len(), files, dirs)
    }

    /// The room on the spool's file system, which is what a disk-full alarm wants to know.
    pub fn statfs(&self) -> FsResult<rustix::fs::StatVfs> {
        Ok(self.spool.usage()?)
    }

    /// The kernel has forgotten `count` look-ups of a node.
    pub fn forget(&self, node: NodeId, count: u64) {
        self.nodes.lock().forget(node, count);
    }

    fn next_fh(&self) -> Fh {
        self.next_fh.fetch_add(1, Ordering::Relaxed)
    }
}

/// What this process takes away from the mode of what it creates; the caller's umask the kernel has already applied.
fn process_umask() -> u32 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("Umask:"));
    // Unknown = everything: then every creation sets its mode once more.
    line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o777)
}
