//! Those who act on the store. Each has bounded things to do, and ends when the disk has crashed.

use std::sync::{Arc, atomic::Ordering};

use super::{
    super::{fixture::*, turns},
    World,
    oracle::{is_needed, read},
};
use crate::{
    catalog::UnitLife,
    chunk::{ObjectKind, Recipe, Stretch, block::Block},
    ids::{Generation, Hash, Incarnation},
    store::{NewCommit, NewPrune, NewPurge, NewUndelete, Store, StoreError, gc::GcOptions},
};

/// Contents that layers are made of.
const CONTENTS: usize = 8;
/// Times that something refused is sent again.
const TRIES: usize = 30;
/// Units of one host.
const UNITS: usize = 4;

type Act = Box<dyn FnOnce(&Arc<World>) + Send>;

/// One of them.
pub struct Role {
    /// The others go on until those who are busy have ended.
    pub is_busy: bool,
    pub act: Act,
}

/// What a thing came to that was tried.
enum Tried<T> {
    Done(T),
    /// The store says no, as it may.
    Refused(StoreError),
    /// The disk has crashed.
    Crashed,
}

/// All who take part, in a round.
pub fn all(world: &World) -> Vec<Role> {
    let seed = world.seed * 100;
    let role = |is_busy, number: u64, act: fn(&World, &mut Random, usize)| Role {
        is_busy,
        act: Box::new(move |world: &Arc<World>| act(world, &mut Random(seed + number), number as usize)),
    };
    vec![
        role(true, 1, uploads),
        role(true, 2, uploads),
        role(true, 3, shows),
        role(true, 4, prunes),
        role(false, 5, reads),
        role(false, 6, collects),
    ]
}

impl World {
    fn tried<T>(&self, done: Result<T, StoreError>) -> Tried<T> {
        match done {
            Ok(done) => Tried::Done(done),
            Err(error) if error.is_callers() => Tried::Refused(error),
            Err(error) => {
                assert!(self.is_over(), "seed {}: {error}", self.seed);
                Tried::Crashed
            }
        }
    }

    /// Whether the disk has crashed.
    fn is_over(&self) -> bool {
        self.store.healthy().is_err()
    }

    fn goes_on(&self) -> bool {
        self.busy.load(Ordering::Acquire) > 0 && !self.is_over()
    }
}

/// A layer of a few of the contents, and at times something of its own. Its unit and generation are its host's to choose.
fn some_layer(random: &mut Random, own: &str) -> Layer {
    let content = |number: usize| {
        let bytes = if number < 2 { 262_144 + number * 20_000 } else { 2000 + 1500 * number };
        noise(&format!("content {number}"), bytes)
    };
    let mut files: Vec<_> = (0..1 + random.below(2))
        .map(|file| (format!("file{file}"), content(random.below(CONTENTS))))
        .collect();
    if random.one_in(3) {
        files.push(("own".to_owned(), noise(own, 1500)));
    }
    Layer { files, ..Layer::small(0) }
}

/// A host that asks what is missing, sends it, and commits, as a session does; what is refused is sent again.
fn uploads(world: &World, random: &mut Random, host: usize) {
    for number in 0..5 {
        let layer = some_layer(random, &format!("{} {host} {number}", world.seed));
        let of = unit(host * 100 + random.below(UNITS));
        let incarnation = world.store.life(&of).incarnation;
        let last = world.store.latest(HOST, &of).expect("asks");
        let generation = last
            .map_or(Generation::FIRST, |last| Generation(last.commit().expect("a commit").generation.0 + 1));
        let commit = NewCommit { unit: of, incarnation, generation, ..layer.commit() };
        if !upload(world, random, &layer, commit) {
            return;
        }
    }
}

/// Whether the host can go on.
fn upload(world: &World, random: &mut Random, layer: &Layer, commit: NewCommit) -> bool {
    let store = &world.store;
    let objects = world.oracle.sends(commit.manifest, layer.objects());
    let asks = !random.one_in(8);
    for _ in 0..TRIES {
        let asked_ms = store.clock.now_ms();
        let sent = send(world, random, &objects, asks.then_some(commit.manifest));
        let committed = sent.and_then(|()| {
            if random.one_in(3) {
                world.clock.advance(random.below(700) as u64);
            }
            turns::pass();
            store.commit(commit.clone())
        });
        match world.tried(committed) {
            Tried::Done(record) => {
                world.oracle.acknowledged(record);
                return true;
            }
            Tried::Refused(error @ (StoreError::Missing { .. } | StoreError::Recipe { .. })) => {
                let age_ms = store.clock.now_ms() - asked_ms;
                assert!(age_ms >= world.lease_ms, "seed {}: {error}, told {age_ms} ms ago", world.seed);
            }
            // Its life has ended, or was undone, since the host looked.
            Tried::Refused(StoreError::Incarnation { .. } | StoreError::Generation { .. }) => return true,
            Tried::Refused(error) => panic!("seed {}: {error}", world.seed),
            Tried::Crashed => return false,
        }
    }
    panic!("seed {}: it is never taken in", world.seed);
}

/// Sends what the store says that it lacks. With an offer of the manifest before, what is sent stays until that is committed.
fn send(
    world: &World,
    random: &mut Random,
    objects: &[(ObjectKind, Hash, Vec<u8>)],
    offer: Option<Hash>,
) -> Result<(), StoreError> {
    let store = &world.store;
    if let Some(manifest) = offer
        && store.manifest_known(&manifest)?
    {
        return Ok(());
    }
    if random.one_in(2) {
        let stretch = |(kind, content, bytes): &(ObjectKind, Hash, Vec<u8>)| {
            let recipe = Recipe::decode(bytes).ok().filter(|_| *kind == ObjectKind::Recipe)?;
            Some(Stretch { content: *content, first: 0, chunks: recipe.chunks })
        };
        store.cut(&objects.iter().filter_map(stretch).collect::<Vec<_>>())?;
    }
    let mut lacking = Vec::new();
    for kind in [ObjectKind::Recipe, ObjectKind::Chunk, ObjectKind::Manifest] {
        let of_kind: Vec<_> = objects.iter().filter(|object| object.0 == kind).cloned().collect();
        let hashes: Vec<Hash> = of_kind.iter().map(|object| object.1).collect();
        let missing = store.missing(kind, &hashes)?;
        lacking.extend(
            of_kind.into_iter().zip(missing).filter(|(_, missing)| *missing).map(|(object, _)| object),
        );
    }
    // A content's chunks, its recipe, the manifest.
    lacking.sort_by_key(|object| object.0 != ObjectKind::Chunk);
    for part in lacking.chunks(1 + random.below(4)) {
        turns::pass();
        store.append_block(&block(part))?;
    }
    Ok(())
}

/// A host with a unit that runs: it shows one state after another, and at times takes it back.
fn shows(world: &World, random: &mut Random, host: usize) {
    let of = unit(host * 100);
    for number in 0..6 {
        let layer = some_layer(random, &format!("{} state {number}", world.seed));
        let commit = NewCommit { unit: of.clone(), generation: Generation(1000), ..layer.commit() };
        let objects = world.oracle.sends(commit.manifest, layer.objects());
        // What was shown before isn't promised any more.
        for _ in 0..TRIES {
            let asked_ms = world.store.clock.now_ms();
            let shown = send(world, random, &objects, None).and_then(|()| {
                turns::pass();
                world.oracle.shows(host, None);
                world.store.publish(commit.clone())
            });
            match world.tried(shown) {
                Tried::Done(_) => {
                    world.oracle.shows(host, Some(commit.manifest));
                    break;
                }
                Tried::Refused(error) => {
                    let age_ms = world.store.clock.now_ms() - asked_ms;
                    assert!(age_ms >= world.lease_ms, "seed {}: {error}, told {age_ms} ms ago", world.seed);
                }
                Tried::Crashed => return,
            }
        }
        (0..random.below(20)).for_each(|_| turns::pass());
        if random.one_in(2) {
            world.oracle.shows(host, None);
            world.store.withdraw(HOST, &of, commit.generation);
        }
    }
}

/// An administrator who prunes units, brings some back, and gives some up.
fn prunes(world: &World, random: &mut Random, _: usize) {
    let store = &world.store;
    for _ in 0..10 {
        turns::pass();
        let of = unit(100 * (1 + random.below(2)) + random.below(UNITS));
        let life = store.life(&of);
        if life.last.0 == 0 {
            continue;
        }
        let by = || "root".to_owned();
        let lives = |incarnation: Incarnation| vec![UnitLife { unit: of.clone(), incarnation }];
        let pruned = store.prune(NewPrune { by: by(), rule: by(), units: vec![(of.clone(), life.last)] });
        match world.tried(pruned) {
            Tried::Done(record) => world.oracle.acknowledged(record),
            Tried::Refused(_) => continue,
            Tried::Crashed => return,
        }
        (0..random.below(5)).for_each(|_| turns::pass());
        let then = match random.below(5) {
            0 => continue,
            1 => store.undelete(NewUndelete { by: by(), lives: lives(life.incarnation) }),
            _ => store.purge(NewPurge { by: by(), lives: lives(life.incarnation) }),
        };
        match world.tried(then) {
            Tried::Done(record) => world.oracle.acknowledged(record),
            Tried::Refused(_) => {}
            Tried::Crashed => return,
        }
    }
}

/// Somebody who reads what is committed, and is stopped in the midst of it.
fn reads(world: &World, random: &mut Random, _: usize) {
    let store = &world.store;
    while world.goes_on() {
        turns::pass();
        let Some((record, objects)) = world.oracle.any_of(store, random) else { continue };
        for (kind, hash, bytes) in &*objects {
            let got = match random.below(3) {
                0 => store.read_object(*kind, hash),
                1 => looked_up_before(store, *kind, hash),
                _ => store.fetch(*kind, hash).map(|block| block.map(|block| in_block(&block, *kind, hash))),
            };
            let is_right = got.as_ref().is_ok_and(|got| got.as_ref() == Some(bytes));
            let seed = world.seed;
            assert!(is_right || !is_needed(store, &record), "seed {seed}: {kind:?} {hash}: {:?}", got.err());
        }
    }
}

/// Looks up where it is, and reads it some time later.
fn looked_up_before(store: &Store, kind: ObjectKind, hash: &Hash) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(place) = store.index.get(kind, hash)? else { return read(store, kind, hash) };
    turns::pass();
    let block = store.read_at(kind, hash, place, |place| store.blocks.read(place))?;
    Ok(block.map(|(block, _)| in_block(&block, kind, hash)))
}

fn in_block(block: &[u8], kind: ObjectKind, hash: &Hash) -> Vec<u8> {
    let block = Block::open(block).expect("it is whole");
    let entry = block.table().iter().find(|entry| entry.kind == kind && entry.hash == *hash);
    entry.map(|entry| block.bytes_of(entry).to_vec()).unwrap_or_default()
}

/// One `gc` after another; some are only planned, and some are told to stop.
fn collects(world: &World, random: &mut Random, _: usize) {
    while world.goes_on() {
        turns::pass();
        let dry_run = random.one_in(10);
        let mut stops_in = if random.one_in(6) { random.below(60) } else { usize::MAX };
        let swept = world.store.gc(&GcOptions { level: 1, dry_run }, &mut |_| {
            turns::pass();
            stops_in = stops_in.saturating_sub(1);
            stops_in > 0
        });
        match world.tried(swept) {
            Tried::Done(swept) => {
                assert!(swept.damaged.is_empty(), "seed {}: {swept:?}", world.seed);
                world.oracle.frees(swept.freed_bytes);
            }
            Tried::Refused(error) => panic!("seed {}: {error}", world.seed),
            Tried::Crashed => return,
        }
    }
}
