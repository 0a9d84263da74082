//! What the store waits for from one host, so that another that has the same needn't send it, too.
//!
//! Hosts that finish at once have much in common that the store doesn't have yet. Whoever asks first is told to send; of who asks
//! after that it isn't wanted, and his commit waits, where it lacks something, until it has come. It needn't come: the first may have ended, or be
//! slow. So nobody waits longer than [`PATIENCE`]; then the promise is broken, who made it is believed no more in this session, and the commit
//! is rejected: its host asks again and is told to send.
//!
//! Invariants: a promise is a help and no authority: only what is in the store is committed. One is kept when a block with the object was
//! taken in, and forgotten when the session of who made it ends. Keeping one never depends on an answer to a commit, so nobody waits in a circle.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::{chunk::ObjectKind, ids::Hash};

/// How long a commit waits for what others are sending.
const PATIENCE: Duration = Duration::from_secs(20);
/// Promises that are remembered, in 16 MB. Beyond that, hosts send what they have.
const PROMISES: usize = 512 << 10;

/// Who made a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Promiser(u64);

/// An object, by 8 bytes of its name. One that is taken for another costs its host a second try.
type Mark = u64;

fn mark(kind: ObjectKind, hash: &Hash) -> Mark {
    u64::from_le_bytes(*hash.0.first_chunk().expect("a hash is longer")) ^ kind as u64
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Promises {
    inner: Mutex<Inner>,
    /// One was kept, broken or forgotten.
    moved: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    sessions: u64,
    made: HashMap<Mark, Promiser>,
    /// Sessions that have broken one, or have ended.
    disbelieved: HashSet<Promiser>,
}

/// What a session was told that it needn't send since others do.
#[derive(Debug, Default)]
pub(super) struct Relied(Mutex<HashSet<Mark>>);

impl Relied {
    fn lock(&self) -> MutexGuard<'_, HashSet<Mark>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Promises {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins.
    pub(super) fn begin(&self) -> Promiser {
        let mut inner = self.lock();
        inner.sessions += 1;
        Promiser(inner.sessions)
    }

    /// It ends: nothing more comes of it.
    pub(super) fn end(&self, of: Promiser) {
        let mut inner = self.lock();
        inner.made.retain(|_, by| *by != of);
        // One of its questions may still be on its way to an answer.
        inner.disbelieved.insert(of);
        drop(inner);
        self.moved.notify_waiters();
    }

    /// Of the objects that the store lacks, those that this session is to send; the others come from elsewhere.
    pub(super) fn share(
        &self,
        by: Promiser,
        relied: &Relied,
        kind: ObjectKind,
        hashes: &[Hash],
        missing: &mut [bool],
    ) {
        let (mut inner, mut relied) = (self.lock(), relied.lock());
        let is_believed = !inner.disbelieved.contains(&by);
        for (hash, missing) in hashes.iter().zip(missing).filter(|(_, missing)| **missing) {
            let mark = mark(kind, hash);
            match inner.made.get(&mark) {
                Some(first) if *first != by => {
                    *missing = false;
                    relied.insert(mark);
                }
                Some(_) => {}
                None if is_believed && inner.made.len() < PROMISES => {
                    inner.made.insert(mark, by);
                }
                None => {}
            }
        }
    }

    /// These objects are here.
    pub(super) fn keep<'h>(&self, objects: impl Iterator<Item = (ObjectKind, &'h Hash)>) {
        let mut inner = self.lock();
        let before = inner.made.len();
        for (kind, hash) in objects {
            inner.made.remove(&mark(kind, hash));
        }
        let kept = inner.made.len() < before;
        drop(inner);
        if kept {
            self.moved.notify_waiters();
        }
    }

    /// Waits until all that was relied on has come or won't. Whether there was anything to wait for.
    pub(super) async fn settle(&self, relied: &Relied) -> bool {
        let (end, mut waited) = (Instant::now() + PATIENCE, false);
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.are_settled(relied) {
                return waited;
            }
            waited = true;
            if timeout_at(end, moved).await.is_err() {
                self.break_for(relied);
                return true;
            }
        }
    }

    fn are_settled(&self, relied: &Relied) -> bool {
        let (inner, mut relied) = (self.lock(), relied.lock());
        relied.retain(|mark| inner.made.contains_key(mark));
        relied.is_empty()
    }

    fn break_for(&self, relied: &Relied) {
        let (mut inner, mut relied) = (self.lock(), relied.lock());
        for mark in relied.drain() {
            if let Some(by) = inner.made.remove(&mark) {
                inner.disbelieved.insert(by);
            }
        }
        let Inner { made, disbelieved, .. } = &mut *inner;
        made.retain(|_, by| !disbelieved.contains(by));
        drop(inner);
        self.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: ObjectKind = ObjectKind::Chunk;

    fn hashes(texts: &[&str]) -> Vec<Hash> {
        texts.iter().map(|text| Hash::of(text.as_bytes())).collect()
    }

    fn asked(promises: &Promises, by: Promiser, relied: &Relied, texts: &[&str]) -> Vec<bool> {
        let mut missing = vec![true; texts.len()];
        promises.share(by, relied, CHUNK, &hashes(texts), &mut missing);
        missing
    }

    #[tokio::test(start_paused = true)]
    async fn one_of_two_is_told_to_send_and_the_other_waits_for_it() {
        let promises = Promises::default();
        let (one, two) = (promises.begin(), promises.begin());
        let (by_one, by_two) = (Relied::default(), Relied::default());
        assert_eq!(asked(&promises, one, &by_one, &["a", "b"]), [true, true]);
        assert_eq!(asked(&promises, one, &by_one, &["a"]), [true], "it may ask again");
        assert_eq!(asked(&promises, two, &by_two, &["b", "c"]), [false, true]);
        assert!(!promises.settle(&by_one).await, "nobody else promised it anything");
        let waiting = promises.settle(&by_two);
        let keeping = async { promises.keep(hashes(&["b"]).iter().map(|hash| (CHUNK, hash))) };
        let began = Instant::now();
        assert!(tokio::join!(waiting, keeping).0);
        assert!(began.elapsed() < PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_ends_promises_nothing_any_more() {
        let promises = Promises::default();
        let (one, two, relied) = (promises.begin(), promises.begin(), Relied::default());
        asked(&promises, one, &Relied::default(), &["a"]);
        assert_eq!(asked(&promises, two, &relied, &["a"]), [false]);
        let began = Instant::now();
        tokio::join!(promises.settle(&relied), async { promises.end(one) });
        assert!(began.elapsed() < PATIENCE);
        assert_eq!(asked(&promises, two, &relied, &["a"]), [true]);
    }

    /// Who never sends what he was told to keeps another waiting once.
    #[tokio::test(start_paused = true)]
    async fn a_promise_is_waited_for_so_long_and_then_its_maker_is_believed_no_more() {
        let promises = Promises::default();
        let (one, two, relied) = (promises.begin(), promises.begin(), Relied::default());
        asked(&promises, one, &Relied::default(), &["a", "b"]);
        assert_eq!(asked(&promises, two, &relied, &["a"]), [false]);
        let began = Instant::now();
        assert!(promises.settle(&relied).await);
        assert_eq!(began.elapsed(), PATIENCE);
        assert_eq!(asked(&promises, two, &relied, &["a", "b"]), [true, true]);
        promises.keep(hashes(&["a", "b"]).iter().map(|hash| (CHUNK, hash)));
        assert_eq!(asked(&promises, one, &Relied::default(), &["c"]), [true]);
        assert_eq!(asked(&promises, two, &relied, &["c"]), [true]);
    }
}
