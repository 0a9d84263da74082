//! Which requests were under way when a process died.
//!
//! The kernel sends a request again that was read and not answered, and marks its number. Whether its effect had already happened only the
//! predecessor knew: so each thread writes down the number of the request that it is about to carry out, just before the system call
//! that does it, and for an exchange of two names also what was where. A number that is there says: what looks like the effect of
//! this request is its effect.
//!
//! A successor keeps the numbers of its predecessors, since a request can be sent more than twice.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::memory::Memory;

/// Threads that carry requests out; there are about twenty.
pub(super) const SLOTS: usize = 256;
/// A request, two words of what it needs to be known by, and a number of the kernel's that is being given back.
pub(super) const SLOT_WORDS: usize = 4;
/// Requests of predecessors that are remembered: of sixteen deaths with every slot full, or of hundreds as they are.
pub(super) const CARRIED: usize = 4096;
pub(super) const CARRIED_WORDS: usize = 3;

/// The kernel's mark on a request that it sends again.
const RESENT: u64 = 1 << 63;

static THREADS: AtomicUsize = AtomicUsize::new(0);
thread_local! {
    static SLOT: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SLOTS;
}

/// See the module's head.
#[derive(Debug, Default)]
pub(in crate::fs) struct Requests {
    memory: Option<Arc<Memory>>,
    /// Of predecessors: what they had begun.
    begun: HashMap<u64, (u64, u64)>,
}

impl Requests {
    pub(in crate::fs) fn new(memory: Option<Arc<Memory>>, begun: HashMap<u64, (u64, u64)>) -> Self {
        Self { memory, begun }
    }

    /// Whether somebody could go on from here.
    pub(in crate::fs) fn are_kept(&self) -> bool {
        self.memory.is_some()
    }

    /// The number of a request without the kernel's mark.
    pub(in crate::fs) fn plain(request: u64) -> u64 {
        request & !RESENT
    }

    /// What `request` does happens next.
    pub(in crate::fs) fn begin(&self, request: u64) {
        self.begin_with(request, None);
    }

    /// The same, with what tells later whether it has happened.
    pub(in crate::fs) fn begin_with(&self, request: u64, known_by: Option<(u64, u64)>) {
        let Some(memory) = &self.memory else { return };
        let slot = SLOT.with(|slot| *slot);
        if let Some((a, b)) = known_by {
            memory.slot(slot, 0).store(0, Ordering::Release);
            memory.slot(slot, 1).store(a, Ordering::Relaxed);
            memory.slot(slot, 2).store(b, Ordering::Relaxed);
        }
        memory.slot(slot, 0).store(Self::plain(request), Ordering::Release);
    }

    /// The kernel's number `backing` is given back next, after the table has forgotten it.
    pub(in crate::fs) fn giving_back(&self, backing: u32) {
        let Some(memory) = &self.memory else { return };
        memory.slot(SLOT.with(|slot| *slot), 3).store(backing.into(), Ordering::Release);
    }

    /// Whether a predecessor was about to carry out `request`, and what it was to be known by.
    pub(in crate::fs) fn resumed(&self, request: u64) -> Option<(u64, u64)> {
        if request & RESENT == 0 {
            return None;
        }
        self.begun.get(&Self::plain(request)).copied()
    }
}

/// What predecessors had begun, put away so that the slots can be used again, and the kernel's numbers that were being given back.
pub(in crate::fs) fn carried(memory: &Memory) -> (HashMap<u64, (u64, u64)>, Vec<u32>) {
    let mut given_back = Vec::new();
    for slot in 0..SLOTS {
        let word = |at| memory.slot(slot, at).load(Ordering::Acquire);
        if let Ok(backing @ 1..) = u32::try_from(word(3)) {
            given_back.push(backing);
            memory.slot(slot, 3).store(0, Ordering::Relaxed);
        }
        let (request, known_by) = (word(0), (word(1), word(2)));
        if request == 0 {
            continue;
        }
        // First there, then no more here: a death in between leaves it twice.
        let count = memory.carried_count().load(Ordering::Relaxed);
        let entry = count as usize % CARRIED;
        memory.carried(entry, 1).store(known_by.0, Ordering::Relaxed);
        memory.carried(entry, 2).store(known_by.1, Ordering::Relaxed);
        memory.carried(entry, 0).store(request, Ordering::Release);
        memory.carried_count().store(count + 1, Ordering::Release);
        memory.slot(slot, 0).store(0, Ordering::Release);
    }
    let entries = (0..CARRIED).map(|entry| {
        let word = |at| memory.carried(entry, at).load(Ordering::Acquire);
        (word(0), (word(1), word(2)))
    });
    (entries.filter(|(request, _)| *request != 0).collect(), given_back)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_is_known_to_every_successor() {
        let memory = Arc::new(Memory::create().expect("memory"));
        let requests = Requests::new(Some(memory.clone()), HashMap::new());
        requests.begin_with(6, Some((1, 2)));
        requests.giving_back(5);
        assert_eq!(requests.resumed(6 | RESENT), None, "it is our own");
        for death in 0..3 {
            let (begun, given_back) = carried(&memory);
            assert_eq!(given_back, if death == 0 { vec![5] } else { vec![] });
            let successor = Requests::new(Some(memory.clone()), begun);
            assert_eq!(successor.resumed(6 | RESENT), Some((1, 2)));
            assert_eq!(successor.resumed(6), None, "the kernel didn't say that it sends it again");
            assert_eq!(successor.resumed(8 | RESENT), None, "nobody had begun");
        }
    }
}
