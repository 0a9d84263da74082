//! What `gc` does about packs that a disk has damaged: they stay as they are, and nothing of them is lost that could still be read.

use std::{path::Path, sync::Arc};

use super::{
    fixture::*,
    gc::{gc, gc_with, layer},
};
use crate::{
    chunk::ObjectKind,
    durable::{
        Disk,
        sim::{SimDisk, Unsynced},
    },
    ids::Hash,
    store::{Store, StoreError, index::Location},
};

/// Two files of which one shares its block with garbage; both lie in the first pack, half of which nothing needs, and much garbage behind it.
struct Bench {
    sim: SimDisk,
    kept: Layer,
    shared: Location,
    alone: Location,
}

const SHARED: usize = 0;
const ALONE: usize = 1;

impl Bench {
    fn new() -> Self {
        let sim = SimDisk::new();
        let store = Self::open(&sim);
        let kept = layer(1, 1, &[("shared", noise("shared", 12_000)), ("alone", noise("alone", 12_000))]);
        let mut objects = kept.objects();
        let manifest = objects.pop().expect("a manifest");
        let garbage = |name: &str| content_objects(&noise(name, 12_000)).remove(0);
        let [shared, alone] = [SHARED, ALONE].map(|at| objects[at].clone());
        for blocks in [vec![shared, garbage("one")], vec![alone], vec![garbage("two")], vec![manifest]] {
            store.append_block(&block(&blocks)).expect("appends");
        }
        store.commit(kept.commit()).expect("is whole");
        let running = layer(2, 1, &[("core", noise("core", 300_000))]);
        running.publish(&store).expect("is whole");
        Layer::small(3).send(&store).expect("commits");
        store.withdraw(HOST, &running.unit, running.generation);
        let place = |at: usize| {
            let hash = Hash::of(&kept.files[at].1);
            store.index.get(ObjectKind::Chunk, &hash).expect("asks").expect("is there")
        };
        let (shared, alone) = (place(SHARED), place(ALONE));
        assert_eq!((shared.pack, alone.pack), (1, 1));
        drop(store);
        Self { sim, kept, shared, alone }
    }

    fn open(sim: &SimDisk) -> Arc<Store> {
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        open(&disk, SMALL).expect("opens")
    }

    fn can_be_read(&self, store: &Store, at: usize) -> bool {
        let bytes = &self.kept.files[at].1;
        match store.read_object(ObjectKind::Chunk, &Hash::of(bytes)) {
            Ok(read) => {
                assert_eq!(read.as_ref(), Some(bytes), "it is right, or said to be damaged");
                true
            }
            Err(error) => {
                assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
                false
            }
        }
    }

    /// The first pack is damaged in this way, after which these of the files can be read.
    fn damaged(&self, how: impl FnOnce(&mut Vec<u8>), readable: [bool; 2]) {
        let sim = self.sim.after_crash(Unsynced::Kept);
        let path = Path::new(DIR).join("packs/00000001.pack");
        let mut good = Vec::new();
        sim.damage(&path, |bytes| {
            good.clone_from(bytes);
            how(bytes);
        });
        let store = Self::open(&sim);
        let (plan, swept) = gc(&store);
        let named: Vec<u32> =
            plan.damaged.iter().copied().chain(swept.damaged.iter().map(|(pack, _)| *pack)).collect();
        assert_eq!(named, [1], "{plan:?} {swept:?}");
        assert!(swept.packs >= 5 && swept.freed_bytes > 200_000, "the others went: {swept:?}");
        let again = gc(&store);
        assert_eq!(again.1.packs, 0, "{again:?}");
        drop(store);
        let store = Self::open(&sim);
        assert!(sim.open(&path).is_ok(), "it stays");
        assert_eq!([SHARED, ALONE].map(|at| self.can_be_read(&store, at)), readable);
        Layer::large(8).send(&store).expect("the store goes on");
        drop(store);

        // Whoever has a copy of the pack can bring it back.
        sim.damage(&path, |bytes| *bytes = good);
        let store = Self::open(&sim);
        self.kept.check(&store);
        let (plan, swept) = gc(&store);
        assert!(plan.damaged.is_empty() && swept.damaged.is_empty(), "{plan:?} {swept:?}");
        assert!(sim.open(&path).is_err(), "it went");
        self.kept.check(&store);
        drop(store);
        verify_clean(&sim, "mended");
    }
}

/// A block that can't be unpacked any more, first or later in its pack.
#[test]
fn a_pack_with_a_broken_block_stays() {
    let bench = Bench::new();
    let last = |place: &Location| place.offset as usize + place.block_bytes as usize - 1;
    let (shared, alone) = (last(&bench.shared), last(&bench.alone));
    bench.damaged(|bytes| bytes[shared] ^= 1, [false, true]);
    bench.damaged(|bytes| bytes[alone] ^= 1, [true, false]);
}

/// A block that is whole, but not the one that was written there.
#[test]
fn a_pack_with_another_block_stays() {
    let bench = Bench::new();
    let other = block(&[content_objects(&noise("other", 12_000)).remove(0)]);
    assert_eq!(other.len(), bench.alone.block_bytes as usize);
    let at = bench.alone.offset as usize;
    bench.damaged(|bytes| bytes[at..at + other.len()].copy_from_slice(&other), [true, false]);
}

/// Without its trailer nobody knows all that is in it.
#[test]
fn a_pack_with_a_broken_trailer_stays() {
    let bench = Bench::new();
    bench.damaged(|bytes| *bytes.last_mut().expect("it has a trailer") ^= 1, [true, true]);
    bench.damaged(|bytes| bytes.truncate(bytes.len() - 10), [true, true]);
}

/// A committed layer of which nobody can say what it needs stops it all before anything is changed; a snapshot in that state doesn't, since it promises
/// nothing.
#[test]
fn an_unreadable_manifest_stops_it_if_it_is_committed() {
    let bench = Bench::new();
    let store = Bench::open(&bench.sim);
    let running = layer(7, 1, &[("log", noise("log", 3000))]);
    running.publish(&store).expect("is whole");
    // In blocks of their own.
    let last_of = |layer: &Layer| {
        let place = store.index.get(ObjectKind::Manifest, &layer.commit().manifest).expect("asks");
        place.map(|p| (p.pack, p.offset as usize + p.block_bytes as usize - 1)).expect("is there")
    };
    let (committed, shown) = (last_of(&bench.kept), last_of(&running));
    Layer::large(9).send(&store).expect("fills packs");
    let flip = |(pack, at): (u32, usize)| {
        let path = Path::new(DIR).join(format!("packs/{pack:08x}.pack"));
        bench.sim.damage(&path, |bytes| bytes[at] ^= 1);
    };
    let packs = || bench.sim.list(&Path::new(DIR).join("packs")).expect("lists");
    drop(store);
    flip(committed);
    let store = Bench::open(&bench.sim);
    let before = packs();
    let refused = gc_with(&store, false).expect_err("nobody knows what it needs");
    assert!(matches!(refused, StoreError::NotMarked { .. }), "{refused}");
    assert_eq!(packs(), before);
    drop(store);
    flip(committed);

    let store = Bench::open(&bench.sim);
    assert_eq!(store.slots().all().len(), 1);
    // It is unpacked in memory until that is needed for others.
    for number in 0..300 {
        let small = content_objects(&noise(&format!("small {number}"), 30));
        store.append_block(&block(&small)).expect("appends");
    }
    flip(shown);
    let swept = gc(&store).1;
    assert!(swept.packs >= 5, "{swept:?}");
    bench.kept.check(&store);
}
