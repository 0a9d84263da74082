//! The mapped memory: a head, the requests under way, and two areas of records, of which one counts.
//!
//! Everything is in words of 8 bytes, in this machine's order. Both areas have their place from the start in a sparse file, so that the
//! mapping never moves; pages are taken as they are written.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{self as sys, FallocateFlags, MemfdFlags},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

use super::requests::{CARRIED, CARRIED_WORDS, SLOT_WORDS, SLOTS};

const MAGIC: u64 = u64::from_be_bytes(*b"rfsstate");
/// Version of the layout. A successor that knows another one can't take over.
const VERSION: u64 = 1;

/// Words of the head.
const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 1;
/// Bits that a successor must know to understand the rest. None are given yet.
const AT_FEATURES: usize = 2;
/// Which area counts (the highest bit) and how many of its bytes.
const AT_HEAD: usize = 3;
const AT_TAKEOVERS: usize = 4;
const AT_STATE: usize = 5;
const AT_CAPABILITIES: usize = 6;
const AT_DEVICE: usize = 7;
const AT_SPOOL_DEV: usize = 8;
const AT_SPOOL_INO: usize = 9;
const AT_CARRIED: usize = 10;

/// Values of the state: being made, serving, outgrown.
const SERVING: u64 = 1;
const IMPOSSIBLE: u64 = 2;

/// Byte offsets: the slots of the threads, the requests of predecessors, the areas.
const SLOTS_AT: usize = 4096;
const CARRIED_AT: usize = 64 << 10;
const AREAS_AT: usize = 1 << 20;
/// One area: tens of millions of nodes.
const AREA_BYTES: usize = 4 << 30;
const TOTAL_BYTES: usize = AREAS_AT + 2 * AREA_BYTES;

const _: () = assert!(SLOTS_AT + SLOTS * SLOT_WORDS * 8 <= CARRIED_AT);
const _: () = assert!(CARRIED_AT + CARRIED * CARRIED_WORDS * 8 <= AREAS_AT);

const AREA_BIT: u64 = 1 << 63;

/// Why there is no ledger, or none to go on with.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("no memory for the table of nodes: {0}")]
    Memory(io::Error),
    #[error("what was left isn't the state of a mount")]
    Foreign,
    #[error("what was left is of version {0}, this program knows {VERSION}")]
    Version(u64),
    #[error("what was left has features that this program doesn't know ({0:#x})")]
    Features(u64),
    #[error("the mount was never up, or its table had outgrown its memory")]
    Unusable,
    #[error("what was left is damaged")]
    Damaged,
    #[error("what was left belongs to another spool")]
    OtherSpool,
}

/// The mount that a ledger belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// What the kernel was asked for and has: it can't be asked again.
    pub capabilities: u64,
    /// The mount's device number.
    pub device: u32,
    /// Device and inode number of the spool's root.
    pub spool: (u64, u64),
}

/// See the module's head.
#[derive(Debug)]
pub(in crate::fs) struct Memory {
    fd: OwnedFd,
    base: NonNull<u8>,
}

// SAFETY: the mapping is shared memory for the whole life of the value. Words that several threads use are reached as atomics only
// (`word`); the areas are written by whoever has the table's lock (`Ledger` is not `Clone` and is under it), and read only before that.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(super) fn create() -> Result<Self, LedgerError> {
        let fd = sys::memfd_create("resultsfs-state", MemfdFlags::CLOEXEC).map_err(memory)?;
        sys::ftruncate(&fd, TOTAL_BYTES as u64).map_err(memory)?;
        let memory = Self::map(fd)?;
        memory.word(AT_MAGIC).store(MAGIC, Ordering::Relaxed);
        memory.word(AT_VERSION).store(VERSION, Ordering::Relaxed);
        Ok(memory)
    }

    pub(super) fn open(fd: OwnedFd) -> Result<Self, LedgerError> {
        match sys::fstat(&fd) {
            Ok(stat) if stat.st_size == TOTAL_BYTES as i64 => Self::map(fd),
            // The size is a part of the layout; where the version can be read, it says so better.
            Ok(stat) if stat.st_size >= 4096 => Err(Self::version_of(&fd)),
            _ => Err(LedgerError::Foreign),
        }
    }

    fn version_of(fd: &OwnedFd) -> LedgerError {
        let mut head = [0; 16];
        match rustix::io::pread(fd, &mut head, 0) {
            Ok(16) if head[..8] == MAGIC.to_ne_bytes() => {
                LedgerError::Version(u64::from_ne_bytes(head[8..].try_into().expect("eight bytes")))
            }
            _ => LedgerError::Foreign,
        }
    }

    fn map(fd: OwnedFd) -> Result<Self, LedgerError> {
        // SAFETY: a new mapping at a place of the kernel's choice, of a file whose size was just set or checked. Nobody shrinks it: only
        // this program has its descriptor.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                TOTAL_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &fd,
                0,
            )
        };
        let base = NonNull::new(base.map_err(memory)?.cast()).ok_or(LedgerError::Foreign)?;
        Ok(Self { fd, base })
    }

    /// Whether a successor may go on with it.
    pub(super) fn check(&self) -> Result<(), LedgerError> {
        let get = |at| self.word(at).load(Ordering::Acquire);
        if get(AT_MAGIC) != MAGIC {
            return Err(LedgerError::Foreign);
        }
        match (get(AT_VERSION), get(AT_FEATURES)) {
            (VERSION, 0) => {}
            (VERSION, features) => return Err(LedgerError::Features(features)),
            (version, _) => return Err(LedgerError::Version(version)),
        }
        if get(AT_STATE) != SERVING {
            return Err(LedgerError::Unusable);
        }
        if self.head().1 > AREA_BYTES { Err(LedgerError::Damaged) } else { Ok(()) }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A word of the head.
    fn word(&self, at: usize) -> &AtomicU64 {
        self.word_at(at * 8)
    }

    /// A word below the areas.
    fn word_at(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < AREAS_AT, "below the areas");
        // SAFETY: within the mapping, which lives as long as `self`, aligned, and never reached but as an atomic.
        unsafe { &*self.base.as_ptr().add(offset).cast::<AtomicU64>() }
    }

    /// A word of a thread's slot.
    pub(super) fn slot(&self, slot: usize, word: usize) -> &AtomicU64 {
        self.word_at(SLOTS_AT + (slot * SLOT_WORDS + word) * 8)
    }

    /// A word of a request that a predecessor had begun.
    pub(super) fn carried(&self, entry: usize, word: usize) -> &AtomicU64 {
        self.word_at(CARRIED_AT + (entry * CARRIED_WORDS + word) * 8)
    }

    /// How many requests were ever carried.
    pub(super) fn carried_count(&self) -> &AtomicU64 {
        self.word(AT_CARRIED)
    }

    /// The area that counts, and its length.
    pub(super) fn head(&self) -> (usize, usize) {
        let head = self.word(AT_HEAD).load(Ordering::Acquire);
        (usize::from(head & AREA_BIT != 0), (head & !AREA_BIT) as usize)
    }

    pub(super) fn set_head(&self, area: usize, len: usize) {
        let bit = if area == 0 { 0 } else { AREA_BIT };
        self.word(AT_HEAD).store(bit | len as u64, Ordering::Release);
    }

    pub(super) fn takeovers(&self) -> u64 {
        self.word(AT_TAKEOVERS).load(Ordering::Relaxed)
    }

    pub(in crate::fs) fn count_takeover(&self) -> u64 {
        self.word(AT_TAKEOVERS).fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn set_impossible(&self) {
        self.word(AT_STATE).store(IMPOSSIBLE, Ordering::Release);
    }

    pub(super) fn is_usable(&self) -> bool {
        self.word(AT_STATE).load(Ordering::Acquire) == SERVING
    }

    pub(super) fn set_origin(&self, origin: &Origin) {
        self.word(AT_CAPABILITIES).store(origin.capabilities, Ordering::Relaxed);
        self.word(AT_DEVICE).store(origin.device.into(), Ordering::Relaxed);
        self.word(AT_SPOOL_DEV).store(origin.spool.0, Ordering::Relaxed);
        self.word(AT_SPOOL_INO).store(origin.spool.1, Ordering::Relaxed);
        self.word(AT_STATE).store(SERVING, Ordering::Release);
    }

    pub(super) fn origin(&self) -> Origin {
        let get = |at| self.word(at).load(Ordering::Acquire);
        Origin {
            capabilities: get(AT_CAPABILITIES),
            device: get(AT_DEVICE) as u32,
            spool: (get(AT_SPOOL_DEV), get(AT_SPOOL_INO)),
        }
    }

    /// Puts `bytes` at `end` of an area, which isn't committed there; the new end, or `None` if it is full.
    pub(super) fn append(&self, area: usize, end: usize, bytes: &[u8]) -> Option<usize> {
        let after = end.checked_add(bytes.len()).filter(|after| *after <= AREA_BYTES)?;
        assert!(area < 2, "there are two areas");
        // SAFETY: within the area, which is within the mapping; only the holder of the table's lock calls this, and nobody holds a
        // reference into what isn't committed.
        unsafe {
            let to = self.base.as_ptr().add(AREAS_AT + area * AREA_BYTES + end);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        Some(after)
    }

    /// What is committed, copied: the writer may go on.
    pub(in crate::fs) fn records(&self) -> Vec<u8> {
        let (area, len) = self.head();
        assert!(len <= AREA_BYTES, "checked when it was inherited");
        // SAFETY: the first `len` bytes of the area are within the mapping and committed; nobody writes to them while the area counts.
        unsafe {
            std::slice::from_raw_parts(self.base.as_ptr().add(AREAS_AT + area * AREA_BYTES), len).to_vec()
        }
    }

    /// Gives the pages of an area back that doesn't count any more, but for the first `keep` bytes, which will be used again soon.
    pub(super) fn release(&self, area: usize, keep: usize, len: usize) {
        if len > keep {
            let from = (AREAS_AT + area * AREA_BYTES + keep) as u64;
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // If it doesn't work the pages stay taken.
            let _ = sys::fallocate(&self.fd, how, from, (len - keep) as u64);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), TOTAL_BYTES) };
    }
}

fn memory(e: rustix::io::Errno) -> LedgerError {
    LedgerError::Memory(e.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_or_of_another_version_is_refused() {
        let other = sys::memfd_create("other", MemfdFlags::CLOEXEC).expect("a file");
        assert!(matches!(Memory::open(other), Err(LedgerError::Foreign)));
        let memory = Memory::create().expect("memory");
        assert!(matches!(memory.check(), Err(LedgerError::Unusable)), "it never served");
        let origin = Origin { capabilities: 1 << 37, device: 7, spool: (1, 2) };
        memory.set_origin(&origin);
        memory.check().expect("usable");
        assert_eq!(memory.origin(), origin);
        memory.word(AT_FEATURES).store(4, Ordering::Relaxed);
        assert!(matches!(memory.check(), Err(LedgerError::Features(4))));
        memory.word(AT_VERSION).store(9, Ordering::Relaxed);
        assert!(matches!(memory.check(), Err(LedgerError::Version(9))));
    }

    #[test]
    fn a_second_mapping_sees_what_was_committed_and_no_more() {
        let memory = Memory::create().expect("memory");
        let end = memory.append(1, 0, b"committed").expect("room");
        memory.set_head(1, end);
        memory.append(1, end, b"not yet").expect("room");
        let fd = memory.descriptor().try_clone_to_owned().expect("a descriptor");
        drop(memory);
        let successor = Memory::open(fd).expect("opens");
        assert_eq!(successor.head(), (1, 9));
        assert_eq!(successor.records(), b"committed");
    }
}
