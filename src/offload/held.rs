//! What the store of one session holds or is being sent, as far as this host knows.
//!
//! So that layers that are under way at once don't send the same content twice, and that what the store has said once isn't asked again. It is
//! a help and no authority: it is forgotten with the session, and where the store finds at a commit that it lacks something after
//! all (it was reclaimed meanwhile), the layer begins again with questions ([`Held::forget`]).
//!
//! Invariants: an object is *known* when the store said that it has it, or when the block with it is queued, which every commit queued later
//! comes after. An object that the store lacks is *claimed* by one layer at a time, which queues it or gives it back. Whoever needs
//! what another has claimed waits for that only when all that it has claimed itself is queued; so nobody waits in a circle.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::Notify;

use crate::{chunk::ObjectKind, ids::Hash};

/// An object's name.
pub type Key = (ObjectKind, Hash);

/// Known objects in the younger half; there is an older one as large. Two million objects are those of 100 GB of results, in 40 MB.
const YOUNG: usize = 1 << 20;

/// See the module.
#[derive(Debug, Default)]
pub struct Held {
    inner: Mutex<Inner>,
    /// Somebody queued or gave back something.
    moved: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    known: Known,
    /// By which layer.
    claimed: HashMap<Key, u64>,
    layers: u64,
}

/// A set that forgets what it hasn't been told or asked for longest. By 8 bytes of the name: one that is taken for another costs the layer a second
/// try.
#[derive(Debug, Default)]
struct Known {
    young: HashSet<u64>,
    old: HashSet<u64>,
}

impl Known {
    fn add(&mut self, mark: u64) {
        if self.young.len() == YOUNG {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(mark);
    }

    fn has(&mut self, mark: u64) -> bool {
        if self.young.contains(&mark) {
            return true;
        }
        let is_old = self.old.contains(&mark);
        if is_old {
            self.add(mark);
        }
        is_old
    }
}

fn mark((kind, hash): &Key) -> u64 {
    u64::from_le_bytes(*hash.0.first_chunk().expect("a hash is longer")) ^ *kind as u64
}

/// What one layer has claimed. Dropped, it gives back what it hasn't queued.
#[derive(Debug)]
pub struct Claims {
    held: Arc<Held>,
    layer: u64,
}

/// What becomes of an object that the store lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// This layer sends it.
    Ours,
    /// Another does.
    Others,
    /// Nobody any more: it is queued, or this layer has claimed it before.
    Known,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code panics under this lock")
    }

    /// For each object whether it needn't be asked for.
    pub fn known(&self, keys: impl IntoIterator<Item = Key>) -> Vec<bool> {
        let known = &mut self.lock().known;
        keys.into_iter().map(|key| known.has(mark(&key))).collect()
    }

    /// The store has said that it has these.
    pub fn learn(&self, keys: impl IntoIterator<Item = Key>) {
        let known = &mut self.lock().known;
        keys.into_iter().for_each(|key| known.add(mark(&key)));
    }

    /// Forgets what is known: the store has said something else.
    pub fn forget(&self) {
        self.lock().known = Known::default();
    }

    /// For a layer that is about to be sent.
    pub fn claims(self: &Arc<Self>) -> Claims {
        let mut inner = self.lock();
        inner.layers += 1;
        Claims { held: self.clone(), layer: inner.layers }
    }
}

impl Claims {
    /// Who sends these, which the store lacks.
    pub fn claim(&self, keys: impl IntoIterator<Item = Key>) -> Vec<Turn> {
        let mut inner = self.held.lock();
        let turn = |key: Key| {
            if inner.known.has(mark(&key)) {
                return Turn::Known;
            }
            match inner.claimed.entry(key) {
                Entry::Vacant(free) => {
                    free.insert(self.layer);
                    Turn::Ours
                }
                Entry::Occupied(by) if *by.get() == self.layer => Turn::Known,
                Entry::Occupied(_) => Turn::Others,
            }
        };
        keys.into_iter().map(turn).collect()
    }

    /// These are in a block that is queued.
    pub fn queued(&self, keys: impl IntoIterator<Item = Key>) {
        let mut inner = self.held.lock();
        for key in keys {
            inner.claimed.remove(&key);
            inner.known.add(mark(&key));
        }
        drop(inner);
        self.held.moved.notify_waiters();
    }

    /// Waits until nobody has claimed any of these. Whether all of them are known then; otherwise somebody gave one back.
    pub async fn settled(&self, keys: &HashSet<Key>) -> bool {
        loop {
            let moved = self.held.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let mut inner = self.held.lock();
                if !keys.iter().any(|key| inner.claimed.contains_key(key)) {
                    return keys.iter().all(|key| inner.known.has(mark(key)));
                }
            }
            moved.await;
        }
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        self.held.lock().claimed.retain(|_, layer| *layer != self.layer);
        self.held.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        (ObjectKind::Chunk, Hash::of(text.as_bytes()))
    }

    #[test]
    fn one_layer_sends_what_two_need() {
        let held = Arc::new(Held::default());
        let (one, two) = (held.claims(), held.claims());
        assert_eq!(one.claim([key("a"), key("b")]), [Turn::Ours, Turn::Ours]);
        assert_eq!(two.claim([key("a"), key("c")]), [Turn::Others, Turn::Ours]);
        one.queued([key("a")]);
        assert_eq!(two.claim([key("a"), key("b")]), [Turn::Known, Turn::Others]);
        drop(one);
        assert_eq!(two.claim([key("a"), key("b")]), [Turn::Known, Turn::Ours]);
        // The same hash as another kind of object is another object.
        assert_eq!(two.claim([(ObjectKind::Recipe, Hash::of(b"a"))]), [Turn::Ours]);
    }

    #[tokio::test]
    async fn who_waits_hears_of_what_is_queued_and_of_what_is_given_back() {
        let held = Arc::new(Held::default());
        let (one, two) = (held.claims(), held.claims());
        one.claim([key("a"), key("b")]);
        let wanted = HashSet::from([key("a"), key("b")]);
        let waits = two.settled(&wanted);
        tokio::pin!(waits);
        let pending = futures_poll(waits.as_mut()).await;
        assert!(pending.is_none());
        one.queued([key("a")]);
        assert!(futures_poll(waits.as_mut()).await.is_none());
        drop(one);
        assert!(!waits.await, "b was given back");
        let (three, both) = (held.claims(), HashSet::from([key("a")]));
        assert!(three.settled(&both).await);
    }

    /// What a future says without waiting for it.
    async fn futures_poll<F: Future + Unpin>(future: F) -> Option<F::Output> {
        let mut future = future;
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut future).poll(cx) {
                std::task::Poll::Ready(done) => Some(done),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }

    #[test]
    fn what_is_known_is_bounded_and_what_was_asked_for_lately_stays() {
        let mut known = Known::default();
        known.add(0);
        for mark in 1..=3 * YOUNG as u64 {
            known.add(mark);
            if mark % 1000 == 0 {
                assert!(known.has(0));
            }
        }
        assert!(known.young.len() + known.old.len() <= 2 * YOUNG);
        assert!(!known.has(1));
    }

    #[test]
    fn it_can_be_forgotten() {
        let held = Held::default();
        held.learn([key("a")]);
        assert_eq!(held.known([key("a"), key("b")]), [true, false]);
        held.forget();
        assert_eq!(held.known([key("a")]), [false]);
    }
}
