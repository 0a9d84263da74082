//! Leases: what the store has lately said that it holds, or taken in, stays a while although nothing that is committed needs it.
//!
//! A host asks what is missing, sends that, and commits; between question and commit, what it was told is here must not go. Nothing acknowledged
//! hangs on this: a commit looks again, and one that lacks something is refused and sent again. So all of it is bounded, in memory only, and forgotten
//! with the process, as the sessions are that were told.
//!
//! - *Told*: objects that a question was answered with, or a reader was given. Two sets that take turns, so that each stays for one to two
//!   [`Tuning::lease_ms`](super::Tuning). When one is full, its turn comes early.
//! - *Appended*: blocks behind the point where the packs ended that long ago.
//! - *Uploads*: while a layer that was offered isn't committed, blocks behind the point where the packs ended at its first offer.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard},
};

use super::{catalog::PackPoint, index::Key};
use crate::{chunk::ObjectKind, ids::Hash};

/// Chunks of a set, at 16 bytes of memory.
const CHUNKS: usize = 1 << 20;
/// Recipes and manifests of a set, some 60 bytes each.
const NAMED: usize = 64 << 10;
/// Uploads that are remembered.
const UPLOADS: usize = 64 << 10;
/// A layer that wasn't offered again for so long doesn't come any more: hosts try again every 30 s.
const UPLOAD_MS: u64 = 12 * 60 * 60 * 1000;
/// Points in the packs that are remembered for each lease's length.
const POINTS: u64 = 8;

/// What a chunk is remembered by. That two share it keeps one too many.
pub(super) fn short(hash: &Hash) -> u64 {
    u64::from_le_bytes(hash.0[..8].try_into().expect("eight bytes"))
}

#[derive(Debug)]
pub(super) struct Leases {
    lease_ms: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    told: Told,
    told_before: Told,
    /// When `told` took its turn.
    turned_ms: u64,
    /// Where the packs ended, and when: ascending. The first is where they ended when the store was opened: who was told anything before
    /// that has to ask again.
    ends: VecDeque<(u64, PackPoint)>,
    /// When a block was appended last.
    appended_ms: u64,
    uploads: HashMap<Hash, (u64, PackPoint)>,
}

#[derive(Debug, Default)]
struct Told {
    chunks: HashSet<u64>,
    named: HashSet<Key>,
}

impl Told {
    fn is_full(&self) -> bool {
        self.chunks.len() >= CHUNKS || self.named.len() >= NAMED
    }
}

/// What stays.
#[derive(Debug)]
pub(super) struct Kept {
    /// Blocks from here on.
    pub from: PackPoint,
    pub chunks: Vec<u64>,
    /// Recipes and manifests, with all that they name.
    pub named: Vec<Key>,
    /// Uploads under way.
    pub uploads: usize,
}

impl Leases {
    /// Of a store whose packs end at `end`.
    pub fn new(lease_ms: u64, end: PackPoint) -> Self {
        let inner = Inner { ends: VecDeque::from([(0, end)]), ..Inner::default() };
        Self { lease_ms, inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the leases' lock")
    }

    /// Somebody was told that these are here.
    pub fn told(&self, kind: ObjectKind, hashes: impl Iterator<Item = Hash>, now_ms: u64) {
        let mut inner = self.lock();
        for hash in hashes {
            inner.turn(now_ms, self.lease_ms);
            match kind {
                ObjectKind::Chunk => _ = inner.told.chunks.insert(short(&hash)),
                ObjectKind::Recipe | ObjectKind::Manifest => _ = inner.told.named.insert((kind, hash)),
            }
        }
    }

    /// A block is appended at `end`.
    pub fn appended(&self, end: PackPoint, now_ms: u64) {
        let mut inner = self.lock();
        inner.appended_ms = now_ms;
        let last = inner.ends.back().map_or(0, |(ms, _)| *ms);
        if now_ms.saturating_sub(last) >= self.lease_ms / POINTS {
            inner.ends.push_back((now_ms, end));
            // The first one stays until another is old enough.
            while inner.ends.get(1).is_some_and(|(ms, _)| now_ms.saturating_sub(*ms) >= self.lease_ms) {
                inner.ends.pop_front();
            }
        }
    }

    /// A layer was offered that isn't here; the packs end at `end`.
    pub fn offered(&self, manifest: Hash, end: PackPoint, now_ms: u64) {
        let mut inner = self.lock();
        if inner.uploads.len() >= UPLOADS {
            inner.uploads.retain(|_, (ms, _)| now_ms.saturating_sub(*ms) < UPLOAD_MS);
        }
        if inner.uploads.len() < UPLOADS || inner.uploads.contains_key(&manifest) {
            inner.uploads.entry(manifest).or_insert((now_ms, end)).0 = now_ms;
        }
    }

    /// A layer is committed, or shown.
    pub fn ended(&self, manifest: &Hash) {
        self.lock().uploads.remove(manifest);
    }

    /// What stays; the packs end at `end`.
    pub fn kept(&self, end: PackPoint, now_ms: u64) -> Kept {
        let mut inner = self.lock();
        inner.turn(now_ms, self.lease_ms);
        inner.uploads.retain(|_, (ms, _)| now_ms.saturating_sub(*ms) < UPLOAD_MS);
        let old = inner.ends.iter().filter(|(ms, _)| now_ms.saturating_sub(*ms) >= self.lease_ms);
        let appended = match now_ms.saturating_sub(inner.appended_ms) >= self.lease_ms {
            true => Some(end),
            false => old.last().map(|(_, end)| *end),
        };
        let uploads = inner.uploads.values().map(|(_, from)| *from).min();
        let Inner { told, told_before, .. } = &*inner;
        Kept {
            from: appended.into_iter().chain(uploads).min().unwrap_or_default().min(end),
            chunks: told.chunks.union(&told_before.chunks).copied().collect(),
            named: told.named.union(&told_before.named).copied().collect(),
            uploads: inner.uploads.len(),
        }
    }
}

impl Inner {
    fn turn(&mut self, now_ms: u64, lease_ms: u64) {
        let age_ms = now_ms.saturating_sub(self.turned_ms);
        if age_ms >= lease_ms || self.told.is_full() {
            self.told_before = std::mem::take(&mut self.told);
            if age_ms >= 2 * lease_ms {
                self.told_before = Told::default();
            }
            self.turned_ms = now_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pack: u32) -> PackPoint {
        PackPoint { pack, offset: 100 }
    }

    /// What was told stays for one lease at least, and goes after two.
    #[test]
    fn what_was_told_stays_a_while() {
        let leases = Leases::new(1000, at(1));
        let (chunk, recipe) = (Hash::of(b"chunk"), Hash::of(b"recipe"));
        leases.told(ObjectKind::Chunk, [chunk].into_iter(), 10_000);
        leases.told(ObjectKind::Recipe, [recipe].into_iter(), 10_900);
        let kept = leases.kept(at(1), 11_800);
        assert_eq!((kept.chunks, kept.named), (vec![short(&chunk)], vec![(ObjectKind::Recipe, recipe)]));
        let kept = leases.kept(at(1), 13_900);
        assert_eq!((kept.chunks, kept.named), (vec![], vec![]));
    }

    /// Blocks stay that were appended lately, and those of an upload from its first offer to its commit. What was here when the store was
    /// opened may go.
    #[test]
    fn what_is_on_its_way_stays() {
        let leases = Leases::new(1000, at(1));
        assert_eq!(leases.kept(at(1), 10_000).from, at(1));
        (0..40).for_each(|n| leases.appended(at(1 + n), 10_000 + u64::from(n) * 100));
        let kept = leases.kept(at(41), 13_900).from;
        assert!(kept <= at(30) && kept >= at(28), "{kept:?}");
        assert_eq!(leases.kept(at(41), 14_899).from, at(39), "as coarse as its points");
        assert_eq!(leases.kept(at(41), 14_900).from, at(41), "nothing came for as long as that");
        let manifest = Hash::of(b"layer");
        leases.offered(manifest, at(7), 99_000);
        leases.offered(manifest, at(41), 99_000 + UPLOAD_MS - 1);
        assert_eq!(leases.kept(at(41), 99_000 + UPLOAD_MS + 1).from, at(7), "it was offered again");
        leases.ended(&manifest);
        assert!(leases.kept(at(41), 99_000 + UPLOAD_MS + 1).from > at(7));
        leases.offered(manifest, at(2), 99_000);
        assert!(leases.kept(at(41), 99_001 + UPLOAD_MS).from > at(2), "it doesn't come any more");
    }
}
