//! What of the file system outlives its process: the node table, the open files, and which requests were under way.
//!
//! A memfd, mapped, which the holder of the mount keeps beside the kernel's descriptor (`docs/takeover.md` has the layout). It is
//! written before the kernel is answered, by stores into memory alone: no system call an operation. It needn't survive the machine.
//!
//! | module | is |
//! |---|---|
//! | `memory` | the mapping: its head, its two areas |
//! | `record` | what is appended to an area, and read back |
//! | `requests` | which request each thread is about to carry out |
//!
//! Invariants:
//! - The head's one word says which area counts and how long it is. It is stored last, so a death between any two stores leaves the
//!   table as it was after a whole number of [`Ledger::commit`]s.
//! - An area is written anew only while the other one counts.

mod memory;
mod record;
mod requests;

use std::{os::fd::OwnedFd, sync::Arc};

use rustix::fd::BorrowedFd;

pub use self::memory::{LedgerError, Origin};
pub(super) use self::{
    memory::Memory,
    record::Record,
    requests::{Requests, carried},
};

/// Records of one area before it is worth writing anew: what is over goes then.
const COMPACT_BYTES: usize = 1 << 20;

/// The writer's end; it is under the table's lock.
#[derive(Debug)]
pub(super) struct Ledger {
    memory: Arc<Memory>,
    area: usize,
    /// Committed bytes of the area, and those behind them that are not yet.
    committed: usize,
    end: usize,
    /// How long the area was when it had been written anew.
    fresh: usize,
    is_full: bool,
}

impl Ledger {
    /// Goes on behind what was committed.
    pub(super) fn new(memory: Arc<Memory>) -> Self {
        let (area, committed) = memory.head();
        Self { memory, area, committed, end: committed, fresh: committed, is_full: false }
    }

    /// Adds a record, which counts from the next commit on.
    pub(super) fn append(&mut self, record: &Record<'_>) {
        if self.is_full {
            return;
        }
        let (head, len, text) = record.encode();
        let end = self.memory.append(self.area, self.end, &head[..len]);
        match end.and_then(|end| self.memory.append(self.area, end, text)) {
            Some(end) => self.end = end.next_multiple_of(8),
            None => self.give_up(),
        }
    }

    /// What was added since the last commit counts from now on.
    pub(super) fn commit(&mut self) {
        if self.end != self.committed {
            self.committed = self.end;
            self.memory.set_head(self.area, self.end);
        }
    }

    /// Whether it is time to [`Ledger::rewrite`].
    pub(super) fn is_long(&self) -> bool {
        !self.is_full && self.committed > 2 * self.fresh + COMPACT_BYTES
    }

    /// Puts what `write` appends in place of all records.
    pub(super) fn rewrite(&mut self, write: impl FnOnce(&mut Self)) {
        let old = (self.area, self.committed);
        self.area = 1 - self.area;
        self.end = 0;
        write(self);
        if self.is_full {
            return;
        }
        self.committed = self.end;
        self.fresh = self.end;
        self.memory.set_head(self.area, self.end);
        self.memory.release(old.0, COMPACT_BYTES, old.1);
    }

    /// Nothing more fits: the mount goes on, but nobody can take it over.
    fn give_up(&mut self) {
        tracing::error!(
            "the table of nodes has outgrown its memory; this mount can't be taken over any more"
        );
        self.is_full = true;
        self.memory.set_impossible();
    }
}

/// The memory of a mount, to be handed to who holds it, or come from there.
#[derive(Debug, Clone)]
pub struct Keep {
    pub(super) memory: Arc<Memory>,
}

impl Keep {
    /// New memory for a new mount.
    pub fn new() -> Result<Self, LedgerError> {
        Memory::create().map(|memory| Self { memory: Arc::new(memory) })
    }

    /// What a predecessor has left: refused unless this program understands all of it.
    pub fn inherit(fd: OwnedFd) -> Result<Self, LedgerError> {
        let keep = Self { memory: Arc::new(Memory::open(fd)?) };
        keep.memory.check()?;
        Ok(keep)
    }

    /// For the holder.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.memory.descriptor()
    }

    /// From here on the mount serves, and can be taken over.
    pub fn set_origin(&self, origin: &Origin) {
        self.memory.set_origin(origin);
    }

    /// The mount that it belongs to.
    pub fn origin(&self) -> Origin {
        self.memory.origin()
    }

    /// How many times it was taken over.
    pub fn takeovers(&self) -> u64 {
        self.memory.takeovers()
    }

    /// Whether a successor could use it.
    pub fn is_usable(&self) -> bool {
        self.memory.is_usable()
    }
}
