//! Contents that are hashed as their chunks arrive: what is new isn't read back, and nothing false is believed.

use std::{
    path::Path,
    rc::Rc,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{fixture::*, gc::gc};
use crate::{
    chunk::{ChunkRef, ObjectKind, Recipe, Stretch},
    durable::{
        Disk,
        sim::{self, SimDisk},
    },
    ids::Hash,
    store::{Store, StoreError, Tuning},
};

const CHUNK: usize = 3000;

/// A file's chunks, of which few differ.
fn chunks(random: &mut Random, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|_| noise(&random.below(6).to_string(), CHUNK + random.below(3))).collect()
}

fn refs(chunks: &[Vec<u8>]) -> Vec<ChunkRef> {
    chunks.iter().map(|bytes| ChunkRef { hash: Hash::of(bytes), bytes: bytes.len() as u32 }).collect()
}

/// What a host says of a file, in several parts.
fn stretches(content: Hash, chunks: &[ChunkRef], each: usize) -> Vec<Stretch> {
    let parts = chunks.chunks(each).enumerate();
    parts.map(|(n, part)| Stretch { content, first: (n * each) as u64, chunks: part.to_vec() }).collect()
}

fn store(disk: &Arc<dyn Disk>) -> Arc<Store> {
    open(disk, Tuning { pack_bytes: 1 << 20, ..SMALL }).expect("makes a store")
}

/// Operations on packs in this thread while that is done.
fn on_packs(done: impl FnOnce()) -> usize {
    let count = Rc::new(AtomicUsize::new(0));
    let counting = count.clone();
    sim::before_each(move |path: &Path| {
        let is_pack = path.extension().is_some_and(|extension| extension == "pack");
        counting.fetch_add(usize::from(is_pack), Ordering::Relaxed);
    });
    done();
    sim::before_each(|_| {});
    count.load(Ordering::Relaxed)
}

/// A commit reads recipe and manifest, and of what is new nothing else, even where nothing is unpacked in memory any more. Without a word about the
/// file beforehand it reads everything.
#[test]
fn what_is_new_is_not_read_back() {
    let cost = |tells: bool| {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let store = store(&disk);
        let layer = Layer::large(1);
        let content = Hash::of(&layer.files[3].1);
        let objects = layer.objects();
        let is_of_file = |object: &&(ObjectKind, Hash, Vec<u8>)| object.2.len() == 20_000;
        let of_file: Vec<Vec<u8>> =
            objects.iter().filter(is_of_file).map(|object| object.2.clone()).collect();
        assert_eq!(of_file.len(), 15);
        for stretch in stretches(content, &refs(&of_file), 4).into_iter().filter(|_| tells) {
            assert_eq!(
                store.cut(std::slice::from_ref(&stretch)).expect("asks"),
                vec![true; stretch.chunks.len()]
            );
            for object in objects.iter().filter(|o| stretch.chunks.iter().any(|chunk| chunk.hash == o.1)) {
                store.append_block(&block(std::slice::from_ref(object))).expect("appends");
            }
        }
        for block in blocks(&store, &objects).expect("asks") {
            store.append_block(&block).expect("appends");
        }
        store.blocks.forget_unpacked();
        let cost = on_packs(|| _ = store.commit(layer.commit()).expect("is whole"));
        layer.check(&store);
        cost
    };
    let (told, untold) = (cost(true), cost(false));
    assert!(told <= 3 && untold >= 10, "{told} and {untold}");
}

/// Whatever hosts say beforehand, and in whatever order chunks come: a recipe is believed if it makes the content, and only then.
#[test]
fn what_was_said_changes_nothing_but_the_cost() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let store = store(&disk);
        let count = 1 + random.below(12);
        let parts = chunks(&mut random, count);
        let (content, true_refs) = (Hash::of(&parts.concat()), refs(&parts));
        // What is sent as its recipe, and what is said of it before, is true or isn't.
        let mut said = true_refs.clone();
        let mut recipe = true_refs.clone();
        for list in [&mut said, &mut recipe] {
            match random.below(6) {
                0 => list.reverse(),
                1 => _ = list.pop(),
                2 => list[random.below(count)] = true_refs[random.below(count)],
                3 => list[random.below(count)].bytes ^= 1,
                _ => {}
            }
        }
        let mut steps: Vec<usize> = (0..count).collect();
        for at in (1..count).rev() {
            steps.swap(at, random.below(at + 1));
        }
        let told = stretches(content, &said, 1 + random.below(4));
        for at in steps {
            if !told.is_empty() {
                // Some are said twice, some never, some too early.
                let stretch =
                    &told[if random.one_in(3) { random.below(told.len()) } else { at % told.len() }];
                store.cut(std::slice::from_ref(stretch)).expect("asks");
            }
            let chunk = (ObjectKind::Chunk, true_refs[at].hash, parts[at].clone());
            store.append_block(&block(&[chunk])).expect("appends");
            if random.one_in(4) {
                store.cut(&told).expect("asks");
            }
        }
        if random.one_in(2) {
            store.blocks.forget_unpacked();
        }
        let is_true = recipe == true_refs;
        let recipe = Recipe { chunks: recipe };
        if recipe.chunks.is_empty() {
            continue;
        }
        store.append_block(&block(&[(ObjectKind::Recipe, content, recipe.encode())])).expect("appends");
        let proven = store.prove_recipe(&content).map(|place| place.bytes);
        match (is_true, &proven) {
            (true, Ok(bytes)) => assert_eq!(*bytes, parts.concat().len() as u64, "seed {seed}"),
            (
                false,
                Err(StoreError::Recipe { .. } | StoreError::Size { .. } | StoreError::Missing { .. }),
            ) => {}
            // Another list can make the same bytes, where chunks are alike.
            (false, Ok(_)) => assert!(same_bytes(&recipe, &true_refs, &parts), "seed {seed}"),
            other => panic!("seed {seed}: {other:?}"),
        }
    }
}

fn same_bytes(recipe: &Recipe, refs: &[ChunkRef], parts: &[Vec<u8>]) -> bool {
    let bytes_of =
        |chunk: &ChunkRef| refs.iter().position(|other| other == chunk).map(|at| parts[at].clone());
    let made: Option<Vec<Vec<u8>>> = recipe.chunks.iter().map(bytes_of).collect();
    made.is_some_and(|made| made.concat() == parts.concat())
}

/// What was hashed and has gone since proves nothing.
#[test]
fn what_has_gone_since_is_missing() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let store = open(&disk, SMALL).expect("makes a store");
    let parts: Vec<Vec<u8>> = (0..15).map(|n| noise(&format!("part {n}"), 20_000)).collect();
    let (content, chunks) = (Hash::of(&parts.concat()), refs(&parts));
    store.cut(&stretches(content, &chunks, 15)).expect("asks");
    for (chunk, bytes) in chunks.iter().zip(&parts) {
        store.append_block(&block(&[(ObjectKind::Chunk, chunk.hash, bytes.clone())])).expect("appends");
    }
    assert!(gc(&store).1.packs >= 5);
    let recipe = Recipe { chunks };
    store.append_block(&block(&[(ObjectKind::Recipe, content, recipe.encode())])).expect("appends");
    assert!(matches!(store.prove_recipe(&content), Err(StoreError::Missing { kind: ObjectKind::Chunk, .. })));
}

/// A block that was unpacked without a look at its objects' hashes is good for nobody who relies on them.
#[test]
fn what_is_kept_unproven_proves_nothing() {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = store(&disk);
    let bytes = noise("plain", 20_000);
    let chunk = (ObjectKind::Chunk, Hash::of(&bytes), bytes);
    store.append_block(&block(std::slice::from_ref(&chunk))).expect("appends");
    store.blocks.forget_unpacked();
    let place = store.index.get(chunk.0, &chunk.1).expect("asks").expect("is there");
    let path = Path::new(DIR).join(format!("packs/{:08x}.pack", place.pack));
    sim.damage(&path, |bytes| bytes[place.offset as usize + place.block_bytes as usize - 1] ^= 1);
    store.blocks.open_unproven(&place).expect("unpacks");
    assert!(matches!(store.blocks.open(&place), Err(StoreError::Damaged { .. })));
    assert!(matches!(store.read_object(chunk.0, &chunk.1), Err(StoreError::Damaged { .. })));
}
