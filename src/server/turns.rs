//! Turns: commits of different hosts that can meet in the tree are judged and entered one after the other.
//!
//! So what a session's rights allow is judged by exactly what the commit comes after in the catalog. Commits of one host, and commits to places that
//! have nothing to do with one another, don't wait: they go into one batch as ever.
//!
//! Who comes later waits for who came before, and never the other way round: nobody waits for ever.

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard},
};

use crate::ids::{HostUuid, UnitId};

/// Commits that are being judged or entered, by their turn.
#[derive(Debug, Default)]
pub(super) struct Turns {
    inner: Mutex<Inner>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    turns: u64,
    open: BTreeMap<u64, (HostUuid, UnitId)>,
}

impl Inner {
    /// Whether a commit that came before `turn` may change what that one is judged by.
    fn must_wait(&self, turn: u64) -> bool {
        let (host, unit) = &self.open[&turn];
        self.open.range(..turn).any(|(_, (other, its))| other != host && can_meet(its, unit))
    }
}

/// Whether one may have a file where the other has a directory.
fn can_meet(a: &UnitId, b: &UnitId) -> bool {
    a.root.is_below(&b.root) || b.root.is_below(&a.root)
}

/// A commit's turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Turns {
    /// Waits until all that came before and can meet this commit is entered or refused. Blocks.
    pub(super) fn take(&self, host: HostUuid, unit: &UnitId) -> Turn<'_> {
        let mut inner = self.lock();
        inner.turns += 1;
        let number = inner.turns;
        inner.open.insert(number, (host, unit.clone()));
        while inner.must_wait(number) {
            inner = self.ended.wait(inner).expect(NO_PANIC);
        }
        Turn { turns: self, number }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect(NO_PANIC)
    }
}

const NO_PANIC: &str = "nothing panics while it holds the turns' lock";

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.lock().open.remove(&self.number);
        self.turns.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Who can meet an open commit of another host waits for its end; everybody else passes.
    #[test]
    fn only_other_hosts_that_can_meet_it_wait() {
        let turns = Turns::default();
        let tree = |root: &str| UnitId::tree(root.parse().expect("a path"));
        let [a, b] = [HostUuid([1; 16]), HostUuid([2; 16])];
        let first = turns.take(a, &tree("7-me/host1"));
        drop(turns.take(a, &tree("7-me/host1")));
        drop(turns.take(b, &tree("7-me/host10")));
        let (told, heard) = mpsc::channel();
        std::thread::scope(|scope| {
            for met in ["7-me", "7-me/host1", "7-me/host1/below"] {
                let (turns, told) = (&turns, told.clone());
                scope.spawn(move || {
                    drop(turns.take(b, &tree(met)));
                    told.send(met).expect("somebody listens");
                });
            }
            while turns.lock().open.len() < 4 {
                std::thread::yield_now();
            }
            assert!(heard.try_recv().is_err(), "nobody has passed");
            drop(first);
        });
        drop(told);
        assert_eq!((heard.iter().count(), turns.lock().open.len()), (3, 0));
    }
}
