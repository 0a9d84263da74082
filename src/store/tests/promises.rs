//! What the store does while nothing crashes.

use std::{path::Path, sync::Arc};

use super::fixture::*;
use crate::{
    chunk::{ChunkRef, ObjectKind, Recipe},
    durable::{
        self, Disk, LockMode, RealDisk,
        sim::{SimDisk, Unsynced},
    },
    ids::{Generation, Hash, HostUuid, Incarnation, Seq},
    store::{Store, StoreError, Tuning},
};

fn sim() -> (SimDisk, Arc<dyn Disk>) {
    let sim = SimDisk::new();
    (sim.clone(), Arc::new(sim))
}

/// What was committed is there when the store is opened again, on a real disk, with every byte.
#[test]
fn committed_layers_are_read_back_after_reopening() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("store");
    let layers: Vec<_> = (0..6).map(|n| if n % 2 == 0 { Layer::small(n) } else { Layer::large(n) }).collect();
    let store = Store::open_on(Arc::new(RealDisk), &path, options(), SMALL).expect("makes a store");
    for layer in &layers {
        layer.send(&store).expect("commits");
        layer.check(&store);
    }
    let (uuid, head, stats) = (store.uuid(), store.head(), store.stats());
    assert!(stats.packs > 10 && stats.records == 6 && stats.layers == 6, "{stats:?}");
    drop(store);
    let store = Store::open(&path, options()).expect("opens");
    assert_eq!((store.uuid(), store.head()), (uuid, head));
    assert_eq!(store.stats().objects, stats.objects);
    layers.iter().for_each(|layer| layer.check(&store));
    assert_eq!(store.records_after(Seq(2), 100).expect("reads").len(), 4);
    assert_eq!(store.records_after(Seq(2), 3).expect("reads").len(), 3);
    assert_eq!(store.records_after(Seq(9), 3).expect("reads"), []);
}

/// A second process is refused while one has the store.
#[test]
fn a_store_in_use_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(dir.path(), options()).expect("makes a store");
    assert!(matches!(Store::open(dir.path(), options()), Err(StoreError::Locked(_))));
    drop(store);
    let reader = RealDisk.lock(&dir.path().join("lock"), LockMode::Shared).expect("locks").expect("free");
    assert!(matches!(Store::open(dir.path(), options()), Err(StoreError::Locked(_))));
    drop(reader);
    Store::open(dir.path(), options()).expect("opens");
}

/// Nothing is made in a directory that holds something else, and a store without its header isn't made anew.
#[test]
fn foreign_directories_and_headless_stores_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("thesis.tex"), "x").expect("writes");
    assert!(matches!(Store::open(dir.path(), options()), Err(StoreError::NotAStore { .. })));

    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(dir.path(), options()).expect("makes a store");
    Layer::small(1).send(&store).expect("commits");
    drop(store);
    std::fs::remove_file(dir.path().join("store")).expect("removes");
    assert!(matches!(Store::open(dir.path(), options()), Err(StoreError::NotAStore { .. })));
}

/// The index is derived: deleted, it is made again from the packs, and everything works as before.
#[test]
fn a_deleted_index_is_rebuilt() {
    let (sim, disk) = sim();
    let layers = [Layer::small(1), Layer::large(2), Layer::small(3)];
    let store = open(&disk, SMALL).expect("makes a store");
    layers.iter().for_each(|layer| drop(layer.send(&store).expect("commits")));
    store.checkpoint().expect("writes the index");
    let stats = store.stats();
    drop(store);
    sim.remove(&Path::new(DIR).join("index.redb")).expect("removes");
    let store = open(&disk, SMALL).expect("opens");
    layers.iter().for_each(|layer| layer.check(&store));
    assert_eq!(store.stats(), stats);
    Layer::large(4).send(&store).expect("commits");
}

/// A lost answer costs nothing: the same commit again gives the same record, and no other.
#[test]
fn resending_a_commit_gives_its_record_again() {
    let (_, disk) = sim();
    let store = open(&disk, SMALL).expect("makes a store");
    let mut layer = Layer::small(1);
    let first = layer.send(&store).expect("commits");
    assert_eq!(layer.send(&store).expect("again"), first);
    assert_eq!(store.head().seq, Seq(1));

    layer.files[0].1 = b"changed after the fact".to_vec();
    assert!(matches!(layer.send(&store), Err(StoreError::Generation { .. })), "one generation, one content");
    layer.generation = Generation(5);
    let second = layer.send(&store).expect("a later generation");
    assert_eq!(store.latest(HOST, &layer.unit).expect("asks"), Some(second));
    layer.generation = Generation(4);
    assert!(matches!(layer.send(&store), Err(StoreError::Generation { .. })), "no way back");

    let other = crate::store::NewCommit { host: HostUuid(*b"the second host."), ..layer.commit() };
    assert_eq!(store.commit(other).expect("another host's layer is another layer").seq, Seq(3));
}

/// P10: a commit is entered only if every byte that its manifest names is here.
#[test]
fn a_commit_that_lacks_something_is_refused() {
    let (_, disk) = sim();
    let store = open(&disk, SMALL).expect("makes a store");
    let layer = Layer::large(1);
    assert!(matches!(
        store.commit(layer.commit()),
        Err(StoreError::Missing { kind: ObjectKind::Manifest, .. })
    ));
    let objects = layer.objects();
    for left_out in 0..objects.len() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let store = open(&disk, SMALL).expect("makes a store");
        let some = objects.iter().enumerate().filter(|(i, _)| *i != left_out).map(|(_, o)| o.clone());
        store.append_block(&block(&some.collect::<Vec<_>>())).expect("appends");
        let error = store.commit(layer.commit()).expect_err("lacks an object");
        assert!(
            matches!(&error, StoreError::Missing { hash, .. } if *hash == objects[left_out].1),
            "{error}"
        );
        store.append_block(&block(&objects[left_out..=left_out])).expect("appends");
        store.commit(layer.commit()).expect("is whole now");
    }
}

/// P10: a recipe is named by what it makes, so it is believed only once that was hashed; a false one doesn't stand in an honest one's way.
#[test]
fn forged_recipes_are_refused_and_honest_ones_still_taken() {
    let (_, disk) = sim();
    let store = open(&disk, SMALL).expect("makes a store");
    let layer = Layer::large(1);
    let content = Hash::of(&layer.files[3].1);
    let lie = noise("lie", 300_000);
    let mut forged = content_objects(&lie);
    forged.last_mut().expect("a recipe").1 = content;
    store.append_block(&block(&forged)).expect("can't be told from an honest one yet");
    assert_eq!(store.missing(ObjectKind::Recipe, &[content]).expect("asks"), [true], "not believed");
    assert_eq!(store.fetch(ObjectKind::Recipe, &content).expect("asks"), None, "nor given out");

    let manifest = layer.objects().pop().expect("a manifest");
    let chunks = layer.objects().into_iter().filter(|(kind, ..)| *kind == ObjectKind::Chunk);
    store.append_block(&block(&chunks.chain([manifest]).collect::<Vec<_>>())).expect("appends");
    assert!(store.commit(layer.commit()).expect_err("the recipe lies").is_callers());
    layer.send(&store).expect("the honest recipe is asked for and taken");
    layer.check(&store);

    let garbage = vec![(ObjectKind::Recipe, Hash::of(b"x"), b"not a recipe".to_vec())];
    assert!(matches!(store.append_block(&block(&garbage)), Err(StoreError::Recipe { .. })));
    let wrong_size = Recipe { chunks: vec![ChunkRef { hash: Hash::of(b"user=debug\n"), bytes: 5 }] };
    let hash = Hash::of(b"user=debug\n");
    store.append_block(&block(&[(ObjectKind::Recipe, hash, wrong_size.encode())])).expect("appends");
    assert_eq!(store.fetch(ObjectKind::Recipe, &hash).expect("asks"), None);
}

/// A block that isn't one, lies or has something behind it is refused, and the store goes on.
#[test]
fn bad_blocks_are_refused() {
    let (_, disk) = sim();
    let store = open(&disk, SMALL).expect("makes a store");
    let objects = Layer::small(1).objects();
    let good = block(&objects);
    assert!(matches!(store.append_block(&good[..good.len() - 1]), Err(StoreError::Block(_))));
    let long = [&good[..], b"x"].concat();
    assert!(matches!(store.append_block(&long), Err(StoreError::BlockLength { .. })));
    let forged = block(&[(ObjectKind::Chunk, Hash::of(b"a"), b"b".to_vec())]);
    assert!(matches!(store.append_block(&forged), Err(StoreError::Block(_))));
    store.append_block(&good).expect("appends");
    let before = store.stats().pack_bytes;
    store.append_block(&good).expect("is here already");
    assert_eq!(store.stats().pack_bytes, before);
    let fetched = store.fetch(ObjectKind::Chunk, &objects[0].1).expect("fetches").expect("is there");
    assert_eq!(fetched, good, "blocks rest as they came");
}

/// Many commits at once get consecutive numbers without gaps, and share their syncs.
#[test]
fn commits_at_once_are_consecutive_and_share_syncs() {
    const THREADS: usize = 24;
    let (sim, disk) = sim();
    let store = open(&disk, Tuning::default()).expect("makes a store");
    let layers: Vec<_> = (0..THREADS).map(Layer::small).collect();
    for layer in &layers {
        blocks(&store, &layer.objects())
            .expect("asks")
            .iter()
            .for_each(|b| store.append_block(b).expect("appends"));
    }
    let mut heads = store.watch();
    let before = sim.syncs();
    let start = std::sync::Barrier::new(THREADS);
    let mut seqs: Vec<u64> = std::thread::scope(|scope| {
        let commit = |layer: &Layer| {
            start.wait();
            store.commit(layer.commit()).expect("commits").seq.0
        };
        let threads: Vec<_> = layers.iter().map(|layer| scope.spawn(move || commit(layer))).collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    });
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=THREADS as u64).collect::<Vec<_>>());
    assert!(heads.has_changed().expect("the store is open"));
    assert_eq!(*heads.borrow_and_update(), store.head());
    let syncs = sim.syncs() - before;
    assert!(syncs <= 2 + THREADS as u64, "{syncs} syncs: one a batch, two more for the packs");
    let records = store.records_after(Seq(0), 1000).expect("reads");
    let head = records.iter().try_fold(crate::catalog::Head::genesis(store.uuid()), |head, r| head.follow(r));
    assert_eq!(head, Some(store.head()), "the chain holds");
}

/// A batch of commits costs one sync of the pack, one of the catalog, and of the packs' directory where one is new.
#[test]
fn a_commit_costs_two_syncs() {
    let (sim, disk) = sim();
    let store = open(&disk, Tuning::default()).expect("makes a store");
    Layer::small(1).send(&store).expect("commits");
    let before = sim.syncs();
    Layer::small(2).send(&store).expect("commits");
    assert_eq!(sim.syncs() - before, 2);
}

/// After the first failed write or sync nothing is written any more; what was committed can still be read, and reopening helps.
#[test]
fn a_failed_write_stops_all_writing() {
    let (sim, disk) = sim();
    let store = open(&disk, SMALL).expect("makes a store");
    let committed = Layer::small(1);
    committed.send(&store).expect("commits");
    sim.crash_after(1);
    assert!(matches!(Layer::large(2).send(&store), Err(StoreError::Io(_))));
    assert!(matches!(Layer::small(3).send(&store), Err(StoreError::PreviousIo)));
    assert!(matches!(store.checkpoint(), Err(StoreError::PreviousIo)));
    committed.check(&store);
    drop(store);
    let disk: Arc<dyn Disk> = Arc::new(sim.after_crash(crate::durable::sim::Unsynced::Kept));
    let store = open(&disk, SMALL).expect("opens");
    Layer::large(2).send(&store).expect("commits");
    committed.check(&store);
}

/// A catalog that lost or changed what was acknowledged is refused and left as it is. Whoever accepts the loss removes the two that know better: the head
/// file and the copy.
#[test]
fn a_damaged_catalog_is_refused_and_left_alone() {
    let (sim, disk) = sim();
    let store = open(&disk, SMALL).expect("makes a store");
    (0..3).for_each(|n| drop(Layer::small(n).send(&store).expect("commits")));
    drop(store);
    let catalog = Path::new(DIR).join("catalog");
    let good = durable::read_all(&*sim.open(&catalog).expect("opens")).expect("reads");
    for at in [10, good.len() / 2, good.len() - 1] {
        sim.damage(&catalog, |bytes| bytes[at] ^= 1);
        let damaged = durable::read_all(&*sim.open(&catalog).expect("opens")).expect("reads");
        assert!(matches!(open(&disk, SMALL), Err(StoreError::Damaged { .. })), "flip at {at}");
        assert_eq!(durable::read_all(&*sim.open(&catalog).expect("opens")).expect("reads"), damaged);
        sim.damage(&catalog, |bytes| bytes[at] ^= 1);
    }
    sim.damage(&catalog, |bytes| bytes.truncate(good.len() - 5));
    assert!(matches!(open(&disk, SMALL), Err(StoreError::Damaged { .. })));
    sim.remove(&Path::new(DIR).join("head")).expect("removes");
    assert!(matches!(open(&disk, SMALL), Err(StoreError::Damaged { .. })), "the copy knows");
    sim.remove(&Path::new(DIR).join("catalog.copy")).expect("removes");
    let store = open(&disk, SMALL).expect("opens");
    assert_eq!(store.head().seq, Seq(2));
    assert_eq!(Layer::small(2).send(&store).expect("commits again").seq, Seq(3));
}

/// A snapshot outlives the process without any sync, is gone with the commit that takes its place, and is never of what isn't here: after a
/// power cut it may be missing, and nothing else.
#[test]
fn a_snapshot_is_kept_as_long_as_what_it_names_is_here() {
    let (sim, disk) = sim();
    let store = open(&disk, SMALL).expect("makes a store");
    let (first, second) = (Layer::large(1), Layer::small(2));
    for layer in [&first, &second] {
        let early = store.publish(layer.commit());
        assert!(matches!(early, Err(StoreError::Missing { .. })), "{early:?}");
        layer.publish(&store).expect("is whole");
    }
    let units = |store: &Store| {
        let mut units: Vec<_> = store.slots().all().into_iter().map(|s| s.unit).collect();
        units.sort();
        units
    };
    drop(store);
    let store = open(&disk, SMALL).expect("opens");
    assert_eq!(units(&store), [first.unit.clone(), second.unit.clone()]);
    second.send(&store).expect("its content is here");
    assert_eq!(units(&store), std::slice::from_ref(&first.unit));
    let late = store.publish(second.commit());
    assert!(matches!(late, Err(StoreError::Generation { .. })), "it is committed: {late:?}");
    let third = Layer::large(3);
    third.publish(&store).expect("is whole");
    drop(store);
    // The first's content was synced with the second's commit, the third's by nobody.
    let cut: Arc<dyn Disk> = Arc::new(sim.after_crash(Unsynced::Dropped));
    let store = open(&cut, SMALL).expect("opens");
    assert!(!units(&store).contains(&third.unit));
    assert_eq!(units(&store), std::slice::from_ref(&first.unit));
    store.commit(first.commit()).expect("all that it names is here");
}

/// What was retired stays; what its host still brings is of the life that ended; and the next life's generations begin anew.
#[test]
fn lives_of_a_unit_never_mix() {
    let (_, disk) = sim();
    let store = open(&disk, SMALL).expect("makes a store");
    let old = Layer::small(1);
    let committed = old.send(&store).expect("commits");
    assert!(retire(&store, &old.unit, Seq(7)).is_err(), "not what was seen");
    assert!(retire(&store, &unit(2), committed.seq).is_err(), "nothing is there");
    let late = Layer { generation: Generation(2), unit: old.unit.clone(), ..Layer::small(3) };
    late.publish(&store).expect("runs");
    let running = retire(&store, &old.unit, committed.seq).expect_err("it runs");
    assert!(running.is_callers() && running.to_string().contains("running on drone1"), "{running}");
    store.withdraw(HOST, &old.unit, Generation(2));
    let retired = retire(&store, &old.unit, committed.seq).expect("is as it was seen");
    assert_eq!(retired.retired(), std::slice::from_ref(&old.unit));
    assert!(retire(&store, &old.unit, committed.seq).is_err(), "nothing is there any more");

    let next = Layer { incarnation: Incarnation(retired.seq.0), unit: old.unit.clone(), ..Layer::small(4) };
    let first = next.send(&store).expect("the first of the next life");
    assert!(late.publish(&store).is_err(), "of a life that has ended: it doesn't show");
    let follows = late.send(&store).expect("and nothing of it is lost");
    assert_eq!(follows.commit().expect("a commit").incarnation, Incarnation::FIRST);
    assert_eq!(store.latest(HOST, &old.unit).expect("reads"), Some(first.clone()));
    let never = Layer { incarnation: Incarnation(follows.seq.0), ..next.clone() };
    assert!(never.send(&store).expect_err("no such life").is_callers());

    drop(store);
    let store = open(&disk, SMALL).expect("opens");
    assert_eq!(store.latest(HOST, &old.unit).expect("reads"), Some(first.clone()));
    assert_eq!(next.send(&store).expect("known"), first);
    assert_eq!(late.send(&store).expect("known"), follows);
    [&old, &late, &next].iter().for_each(|layer| layer.check(&store));
}
