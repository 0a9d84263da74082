//! What `gc` takes, what it must not, and what is left of it after a crash.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::fixture::*;
use crate::{
    catalog::{Record, UnitLife},
    chunk::ObjectKind,
    durable::{
        Disk,
        sim::{SimDisk, Unsynced},
    },
    ids::{Generation, Hash},
    store::{
        NewPrune, NewPurge, Store, StoreError, Tuning,
        gc::{GcOptions, Plan, Step, Swept},
    },
};

pub fn gc_with(store: &Store, dry_run: bool) -> Result<(Plan, Swept), StoreError> {
    let mut plan = Plan::default();
    let swept = store.gc(&GcOptions { level: 1, dry_run }, &mut |step| {
        if let Step::Planned(planned) = step {
            plan = planned.clone();
        }
        true
    })?;
    Ok((plan, swept))
}

pub fn gc(store: &Store) -> (Plan, Swept) {
    gc_with(store, false).expect("reclaims")
}

/// A layer of these files, named by a number.
pub fn layer(number: usize, generation: u32, files: &[(&str, Vec<u8>)]) -> Layer {
    let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
    Layer { generation: Generation(generation), files, ..Layer::small(number) }
}

/// Commits between states of a unit that runs on and on, of which only the last is needed.
fn with_garbage(store: &Store) -> Vec<(Layer, Record)> {
    let mut committed = Vec::new();
    for number in 0..5 {
        for state in 0..4 {
            let log = noise(&format!("log {number} {state}"), 9_000 + 3_000 * state);
            let core = noise(&format!("core {number} {state}"), 300_000);
            let files = [("log", log), ("keyval", b"user=debug\n".to_vec())];
            let with_core = [&files[..], &[("zcore", core)]].concat();
            let running = if state % 2 == 0 { &files[..] } else { &with_core[..] };
            layer(100, 1, running).publish(store).expect("runs");
        }
        let done = if number % 2 == 0 { Layer::small(number) } else { Layer::large(number) };
        let record = done.send(store).expect("commits");
        committed.push((done, record));
    }
    committed
}

fn sample() -> (SimDisk, Vec<(Layer, Record)>) {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk, SMALL).expect("makes a store");
    let committed = with_garbage(&store);
    (sim, committed)
}

fn holds(store: &Store, committed: &[(Layer, Record)], what: &str) {
    let packs = store.layout.pack_numbers(&*store.disk).expect("lists");
    assert!(packs.iter().all(|pack| !store.catalog.is_reclaimed(*pack)), "{what}: what is gone is gone");
    for (layer, record) in committed {
        assert_eq!(store.record(record.seq).expect("reads").as_ref(), Some(record), "{what}");
        layer.check(store);
    }
    for slot in store.slots().all() {
        store.check_manifest(&slot.manifest).unwrap_or_else(|e| panic!("{what}: a snapshot: {e}"));
    }
}

/// What nothing needs is taken, what is committed or shown stays, the plan is what is done, and there is nothing left to do.
#[test]
fn garbage_goes_and_the_rest_stays() {
    let (sim, committed) = sample();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk, SMALL).expect("opens");
    store.checkpoint().expect("syncs");
    let (before, operations) = (store.stats(), sim.operations());
    let (planned, nothing) = gc_with(&store, true).expect("plans");
    assert_eq!((nothing, store.stats()), (Swept::default(), before));
    assert_eq!(sim.operations(), operations, "nothing is written for a plan");
    assert!(planned.packs.len() > 20 && planned.bytes() > 2_000_000, "{planned:?}");
    assert!(planned.live_bytes() < planned.bytes() / 3, "{planned:?}");
    let (done, swept) = gc(&store);
    assert_eq!(done, planned);
    assert_eq!((swept.freed_bytes, swept.packs), (planned.bytes(), planned.packs.len() as u64));
    assert!(swept.copied_bytes <= planned.live_bytes() * 11 / 10, "{swept:?} {}", planned.live_bytes());
    let after = store.stats();
    assert_eq!(
        after.pack_bytes,
        before.pack_bytes - swept.freed_bytes + pack_growth(&before, &after, &swept)
    );
    assert!(after.objects < before.objects);
    holds(&store, &committed, "after");
    let (again, swept) = gc(&store);
    assert!(again.packs.is_empty() && swept == Swept::default(), "{again:?}");
    drop(store);
    verify_clean(&sim, "after");
    let store = open(&disk, SMALL).expect("opens");
    assert_eq!(store.stats(), after, "as it was left");
    holds(&store, &committed, "opened again");
    drop(store);
    sim.remove(&Path::new(DIR).join("index.redb")).expect("removes");
    let store = open(&disk, SMALL).expect("opens");
    holds(&store, &committed, "with a new index");
    drop(store);
    verify_clean(&sim, "with a new index");
}

/// What was written: copies, and headers and trailers of the packs that they went to.
fn pack_growth(before: &crate::store::StoreStats, after: &crate::store::StoreStats, swept: &Swept) -> u64 {
    let growth = (after.pack_bytes + swept.freed_bytes).saturating_sub(before.pack_bytes);
    assert!(growth >= swept.copied_bytes && growth < swept.copied_bytes * 3 / 2 + 1000, "{growth} {swept:?}");
    growth
}

/// P7: a crash at any operation of a `gc` loses nothing that was acknowledged, and the next one finishes.
fn crash_everywhere(part: u64, of: u64) {
    let (sample, committed) = sample();
    let count = {
        let disk = sample.after_crash(Unsynced::Kept);
        let handle: Arc<dyn Disk> = Arc::new(disk.clone());
        let store = open(&handle, SMALL).expect("opens");
        let before = disk.operations();
        gc(&store);
        disk.operations() - before
    };
    assert!(count > 100, "{count} operations");
    for at in (0..count).filter(|at| at % of == part) {
        let disk = sample.after_crash(Unsynced::Kept);
        let handle: Arc<dyn Disk> = Arc::new(disk.clone());
        let store = open(&handle, SMALL).expect("opens");
        disk.crash_after(at);
        // The last operation may be one whose failure is only said.
        let _ = gc_with(&store, false);
        for unsynced in [Unsynced::Dropped, Unsynced::Kept, Unsynced::Torn(at), Unsynced::Reordered(at)] {
            let what = format!("crash at operation {at} of the gc, {unsynced:?}");
            let crashed = disk.after_crash(unsynced);
            let handle: Arc<dyn Disk> = Arc::new(crashed.clone());
            let store = open(&handle, SMALL).unwrap_or_else(|e| panic!("{what}: {e}"));
            holds(&store, &committed, &what);
            drop(store);
            verify_clean(&crashed, &what);
            if unsynced == Unsynced::Torn(at) {
                let store = open(&handle, SMALL).unwrap_or_else(|e| panic!("{what}: {e}"));
                // What the first one wrote last counts as young for the second.
                let ended = (0..3).any(|_| gc(&store).0.packs.is_empty());
                assert!(ended, "{what}: {:?}", gc_with(&store, true));
                holds(&store, &committed, &what);
                assert!(store.stats().pack_bytes < 1_150_000, "{what}: {:?}", store.stats());
                drop(store);
                verify_clean(&crashed, &what);
            }
        }
    }
}

/// P7: at every operation (first of two parts, which run side by side).
#[test]
fn a_crash_at_any_operation_of_a_gc_loses_nothing_1() {
    crash_everywhere(0, 2);
}

/// P7: at every operation (second part).
#[test]
fn a_crash_at_any_operation_of_a_gc_loses_nothing_2() {
    crash_everywhere(1, 2);
}

/// A host that commits and shows layers made of a few contents, which so are garbage at times and needed at others. What is refused since it is
/// gone meanwhile is sent again, as a host does.
fn host(store: &Store, seed: u64, number: usize, layers: usize) -> Vec<(Layer, Record)> {
    let mut random = Random(seed * 31 + number as u64);
    let contents: Vec<Vec<u8>> = (0..10)
        .map(|n| noise(&format!("content {n}"), if n % 4 == 3 { 270_000 + n * 1000 } else { 2000 + n * 700 }))
        .collect();
    let mut committed = Vec::new();
    for at in 0..layers {
        let mut files: Vec<_> = (0..1 + random.below(3))
            .map(|file| (format!("file{file}"), contents[random.below(contents.len())].clone()))
            .collect();
        files.push(("own".to_owned(), noise(&format!("{seed} {number} {at}"), 1500)));
        let unit = number * 1000 + if random.below(2) == 0 { at } else { 999 };
        let layer = Layer { generation: Generation(at as u32 + 1), files, ..Layer::small(unit) };
        let is_commit = unit != number * 1000 + 999 && random.below(3) == 0;
        for attempt in 0.. {
            if is_commit {
                store.manifest_known(&layer.commit().manifest).expect("asks");
            }
            let sent = match is_commit {
                true => layer.send(store).map(|record| committed.push((layer.clone(), record))),
                false => layer.publish(store).map(drop),
            };
            match sent {
                Ok(()) => break,
                Err(StoreError::Missing { .. } | StoreError::Recipe { .. }) if attempt < 50 => {}
                Err(error) => panic!("seed {seed}, host {number}, layer {at}: {error}"),
            }
        }
        if random.below(4) == 0 {
            store.withdraw(HOST, &layer.unit, layer.generation);
        }
    }
    committed
}

/// Nothing that is acknowledged is ever missing, whatever is taken meanwhile: hosts upload what is garbage at that moment, `gc` runs all the time, and
/// everything committed is read all the time.
fn all_at_once(seed: u64, tuning: Tuning) -> u64 {
    const HOSTS: usize = 3;
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk, tuning).expect("makes a store");
    let over = AtomicBool::new(false);
    let first = host(&store, seed, 9, 4);
    let (committed, freed) = thread::scope(|scope| {
        let (store, over, read) = (&*store, &over, &first);
        let collector = scope.spawn(move || {
            let mut freed = 0;
            while !over.load(Ordering::Acquire) {
                freed += gc(store).1.freed_bytes;
            }
            freed
        });
        let reader = scope.spawn(move || {
            while !over.load(Ordering::Acquire) {
                read.iter().for_each(|(layer, _)| layer.check(store));
            }
        });
        let hosts: Vec<_> =
            (0..HOSTS).map(|number| scope.spawn(move || host(store, seed, number, 12))).collect();
        let mut committed = first.clone();
        for host in hosts {
            let done = host.join();
            if done.is_err() {
                over.store(true, Ordering::Release);
            }
            committed.extend(done.unwrap_or_else(|e| std::panic::resume_unwind(e)));
        }
        over.store(true, Ordering::Release);
        reader.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
        (committed, collector.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    });
    let what = format!("seed {seed}");
    holds(&store, &committed, &what);
    let left = gc(&store).1.freed_bytes;
    holds(&store, &committed, &what);
    drop(store);
    verify_clean(&sim, &what);
    let store = open(&disk, tuning).expect("opens");
    holds(&store, &committed, &what);
    freed + left
}

#[test]
fn nothing_acknowledged_is_taken_while_all_go_on() {
    let freed: u64 = (0..12).map(|seed| all_at_once(seed, SMALL)).sum();
    assert!(freed > 1_000_000, "{freed}");
    // The clock stands: every lease holds.
    (12..16).for_each(|seed| _ = all_at_once(seed, Tuning { lease_ms: 1000, ..SMALL }));
}

/// What is committed until the very moment in which is decided what goes stays, although all of it was garbage when the plan was made.
#[test]
fn a_commit_at_the_last_moment_counts() {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk, SMALL).expect("makes a store");
    let running = layer(1, 1, &[("core", noise("core", 300_000)), ("log", noise("log", 5000))]);
    running.publish(&store).expect("is whole");
    Layer::large(3).send(&store).expect("fills packs");
    store.withdraw(HOST, &running.unit, running.generation);
    let mut planned = 0;
    let mut record = None;
    let swept = store.gc(&GcOptions { level: 1, dry_run: false }, &mut |step| {
        match step {
            Step::Planned(plan) => planned = plan.bytes(),
            Step::Progress { phase: "decide", .. } => record = Some(store.commit(running.commit())),
            Step::Progress { .. } => {}
        }
        true
    });
    record.expect("it was decided").expect("all of it was here");
    assert!(planned > 250_000 && swept.expect("reclaims").copied_bytes > 250_000);
    running.check(&store);
    drop(store);
    verify_clean(&sim, "after");
}

/// Who has looked up an object that is moved meanwhile finds it where it is now.
#[test]
fn a_reader_finds_what_was_moved() {
    let (sim, committed) = sample();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk, SMALL).expect("opens");
    let mut places = Vec::new();
    for (kind, hash, _) in committed.iter().flat_map(|(layer, _)| layer.objects()) {
        let place = store.index.get(kind, &hash).expect("asks").expect("is there");
        places.push((kind, hash, place));
    }
    gc(&store);
    let is_moved = |(kind, hash, place): &&(ObjectKind, Hash, crate::store::index::Location)| {
        !store.index.get(*kind, hash).expect("asks").expect("is there").same_place(place)
    };
    assert!(places.iter().filter(is_moved).count() > 5);
    for (kind, hash, place) in &places {
        let read = store.read_at(*kind, hash, *place, |place| store.blocks.read(place));
        assert!(read.expect("reads").is_some(), "{kind:?} {hash}");
    }
}

/// A recipe is somebody's word for its chunks: one that nothing needs is believed no more when they may go, wherever it is.
#[test]
fn a_recipe_that_stays_is_not_believed_when_its_chunks_go() {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk, SMALL).expect("makes a store");
    let core = noise("core", 300_000);
    let mut objects = content_objects(&core);
    let recipe = objects.pop().expect("a recipe");
    let running = layer(1, 1, &[("core", core.clone())]);
    let manifest = running.objects().pop().expect("a manifest");
    for chunk in &objects {
        store.append_block(&block(std::slice::from_ref(chunk))).expect("appends");
    }
    // The recipe lies in a pack of things that are needed.
    let kept = layer(2, 1, &[("kept", noise("kept", 150_000))]);
    let with = [kept.objects(), vec![recipe.clone(), manifest]].concat();
    store.append_block(&block(&with)).expect("appends");
    store.publish(running.commit()).expect("is whole");
    store.commit(kept.commit()).expect("is whole");
    Layer::large(3).send(&store).expect("fills packs");
    store.withdraw(HOST, &running.unit, running.generation);
    assert_eq!(store.missing(ObjectKind::Recipe, &[recipe.1]).expect("asks"), [false]);
    let (plan, _) = gc(&store);
    assert!(plan.packs.len() > 5 && plan.kept_dead_bytes > 0, "the recipe's pack stays: {plan:?}");
    assert_eq!(store.missing(ObjectKind::Recipe, &[recipe.1]).expect("asks"), [true]);
    assert!(store.publish(running.commit()).is_err(), "its chunks are gone");
    running.send(&store).expect("is sent again");
    running.check(&store);
    drop(store);
    verify_clean(&sim, "after");
}

/// What a host was told is here, and what it has sent of a layer that it has offered, is still here when it commits.
#[test]
fn what_is_on_its_way_is_not_taken() {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk, Tuning { lease_ms: 60_000, ..SMALL }).expect("makes a store");
    let core = noise("core", 300_000);
    let running = layer(1, 1, &[("core", core.clone()), ("log", noise("log", 5000))]);
    running.publish(&store).expect("is whole");
    Layer::large(3).send(&store).expect("fills packs");
    store.withdraw(HOST, &running.unit, running.generation);
    drop(store);
    // Nobody was told anything in this life of the store.
    let store = open(&disk, Tuning { lease_ms: 60_000, ..SMALL }).expect("opens");
    assert!(gc_with(&store, true).expect("plans").0.packs.len() > 5);
    let asked = Hash::of(&core);
    assert_eq!(store.missing(ObjectKind::Recipe, &[asked]).expect("asks"), [false]);
    let (plan, _) = gc(&store);
    assert!(plan.packs.iter().all(|pack| pack.bytes < 300_000), "{plan:?}");
    assert_eq!(store.missing(ObjectKind::Recipe, &[asked]).expect("asks"), [false]);

    let next = layer(4, 1, &[("core", core), ("new", noise("new", 200_000))]);
    let objects = next.objects();
    assert!(!store.manifest_known(&next.commit().manifest).expect("asks"));
    for block in blocks(&store, &objects).expect("asks") {
        store.append_block(&block).expect("appends");
        let (plan, _) = gc(&store);
        assert_eq!((plan.uploads, plan.packs.len()), (1, 0), "{plan:?}");
    }
    store.commit(next.commit()).expect("all of it is here");
    next.check(&store);
    assert_eq!(gc(&store).0.uploads, 0);
}

/// What was pruned stays until it is purged; then what only it needs goes, and the same again is sent as if it had never been here.
#[test]
fn what_was_purged_goes() {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk, SMALL).expect("makes a store");
    let (old, beside, kept) = (Layer::large(1), Layer::large(2), Layer::large(3));
    let gone = [&old, &beside];
    let units: Vec<_> =
        gone.map(|layer| (layer.unit.clone(), layer.send(&store).expect("commits").seq)).into();
    kept.send(&store).expect("commits");
    let (by, rule) = ("admin".to_owned(), "retention_days 1".to_owned());
    store.prune(NewPrune { by: by.clone(), rule, units }).expect("ends their lives");
    assert!(gc(&store).0.packs.is_empty(), "they may be undeleted");
    old.check(&store);
    let lives = gone.map(|layer| UnitLife { unit: layer.unit.clone(), incarnation: layer.incarnation });
    store.purge(NewPurge { by, lives: lives.into() }).expect("gives them up");
    let (_, swept) = gc(&store);
    assert!(swept.freed_bytes > 550_000, "{swept:?}");
    let core = Hash::of(&old.files[3].1);
    assert_eq!(store.read_object(ObjectKind::Recipe, &core).expect("asks"), None);
    kept.check(&store);
    assert!(!store.manifest_known(&old.commit().manifest).expect("asks"));
    let again = Layer { unit: unit(4), ..old };
    // Each by itself, the recipe too: nothing of it is taken for granted.
    again.objects().iter().for_each(|object| {
        store.append_block(&block(std::slice::from_ref(object))).expect("is sent again");
    });
    store.commit(again.commit()).expect("is whole");
    drop(store);
    again.check(&open(&disk, SMALL).expect("opens"));
    verify_clean(&sim, "after");
}

/// Hosts that follow the catalog pass over what was reclaimed, and numbers of packs are never given again.
#[test]
fn numbers_are_not_given_again() {
    let (sim, committed) = sample();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk, SMALL).expect("opens");
    let last = store.writer().end().pack;
    gc(&store);
    let records = store.records_after(committed.last().expect("some").1.seq, 100).expect("reads");
    let reclaimed: Vec<u32> = records.iter().flat_map(|record| record.reclaimed()).copied().collect();
    assert!(reclaimed.len() > 20 && reclaimed.iter().all(|pack| *pack <= last));
    assert!(records.iter().all(|record| record.reclaimed().len() <= crate::limits::RECLAIMED_PACKS));
    drop(store);
    let store = open(&disk, SMALL).expect("opens");
    Layer::large(9).send(&store).expect("commits");
    let there = store.layout.pack_numbers(&*store.disk).expect("lists");
    assert!(there.iter().all(|pack| !reclaimed.contains(pack)), "{there:?}");
}

/// A pack that was lost, the last of all, leaves its number behind: what names it must not be answered with another's bytes.
#[test]
fn the_number_of_a_lost_pack_is_not_given_again() {
    let (sim, _) = sample();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let packs = |store: &Store| store.layout.pack_numbers(&*store.disk).expect("lists");
    let store = open(&disk, SMALL).expect("opens");
    let last = *packs(&store).last().expect("it has packs");
    drop(store);
    sim.remove(&Path::new(DIR).join(format!("packs/{last:08x}.pack"))).expect("removes");
    let store = open(&disk, SMALL).expect("opens");
    assert!(packs(&store).iter().all(|pack| *pack < last));
    Layer::large(9).send(&store).expect("commits");
    let there = packs(&store);
    assert!(!there.contains(&last) && there.iter().any(|pack| *pack > last), "{there:?}");
    Layer::large(9).check(&store);
}
