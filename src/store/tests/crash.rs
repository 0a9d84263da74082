//! P7: the store crashes at every single operation on its disk, and nothing that it acknowledged is lost.
//!
//! A run with a given number commits the same layers on a fresh simulated disk and crashes at that operation. What a restarted machine then finds,
//! with unsynced writes dropped, kept, torn or reordered, must open, hold every acknowledged layer, check clean, and go on.

use std::{collections::HashMap, path::Path, sync::Arc};

use super::fixture::*;
use crate::{
    catalog::{Head, Record, UnitLife},
    durable::{
        Disk,
        sim::{SimDisk, Unsynced},
    },
    ids::{Generation, Incarnation, Seq, UnitId},
    store::{NewPrune, NewPurge, NewUndelete, Store, StoreError},
};

/// Layers that between them fill packs, write the index, cut files and come again in a later generation.
fn workload() -> Vec<Layer> {
    let again = Layer { generation: Generation(2), ..Layer::small(7) };
    let layers = [Layer::small(0), Layer::large(1), Layer::small(2), Layer::small(3)];
    layers.into_iter().chain([Layer { unit: unit(0), ..again }, Layer::small(5)]).collect()
}

/// The unit of a layer as it ran before; of every other one nothing was committed.
fn running(layer: &Layer) -> Layer {
    let mut running = layer.clone();
    let number = layer.files[0].1.len() + layer.files.len();
    running.files[0].1.truncate(1000);
    if layer.generation == Generation::FIRST && layer.files.len() > 3 {
        running.unit = unit(number);
    }
    running
}

/// What [`run`] does after its layers: the last one's unit is retired, a layer of its next life is committed, pruned, undeleted, pruned again and purged.
const AFTER: usize = 6;

/// Runs the workload until the disk crashes; gives what was acknowledged. What was retired must be there as before.
fn run(disk: &Arc<dyn Disk>, layers: &[Layer]) -> Vec<(Layer, Record)> {
    let mut acknowledged = Vec::new();
    let Ok(store) = open(disk, SMALL) else { return acknowledged };
    for layer in layers {
        // What runs on the way to it promises nothing, and must not be in the way of what does.
        let _ = running(layer).publish(&store);
        match layer.send(&store) {
            Ok(record) => acknowledged.push((layer.clone(), record)),
            Err(_) => return acknowledged,
        }
    }
    let (last, record) = acknowledged.last().cloned().expect("a workload has layers");
    let Ok(retired) = retire(&store, &last.unit, record.seq) else { return acknowledged };
    let next = Layer { unit: last.unit.clone(), incarnation: Incarnation(retired.seq.0), ..Layer::small(9) };
    acknowledged.push((last, retired));
    let Ok(record) = next.send(&store) else { return acknowledged };
    acknowledged.push((next, record));
    let _ = retain(&store, &mut acknowledged);
    acknowledged
}

/// Prunes the last layer's unit, brings it back, prunes it again, and gives it up.
fn retain(store: &Store, acknowledged: &mut Vec<(Layer, Record)>) -> Result<(), StoreError> {
    let (layer, record) = acknowledged.last().cloned().expect("it was committed");
    let by = || "root".to_owned();
    let prune = || NewPrune { by: by(), rule: by(), units: vec![(layer.unit.clone(), record.seq)] };
    let lives = || vec![UnitLife { unit: layer.unit.clone(), incarnation: layer.incarnation }];
    acknowledged.push((layer.clone(), store.prune(prune())?));
    acknowledged.push((layer.clone(), store.undelete(NewUndelete { by: by(), lives: lives() })?));
    acknowledged.push((layer.clone(), store.prune(prune())?));
    // From here on it may be given up, whether that is answered or not: only the records must be there.
    let kept = acknowledged[0].0.clone();
    acknowledged
        .iter_mut()
        .filter(|(of, _)| of.incarnation == layer.incarnation)
        .for_each(|(of, _)| *of = kept.clone());
    acknowledged.push((kept, store.purge(NewPurge { by: by(), lives: lives() })?));
    Ok(())
}

fn holds(store: &Store, acknowledged: &[(Layer, Record)], what: &str) {
    let records = store.records_after(Seq(0), usize::MAX).expect("reads");
    let head = records.iter().try_fold(Head::genesis(store.uuid()), |head, record| head.follow(record));
    assert_eq!(head, Some(store.head()), "{what}");
    for snapshot in store.slots().all() {
        store.check_manifest(&snapshot.manifest).unwrap_or_else(|e| panic!("{what}: a snapshot: {e}"));
        let last = store.latest(snapshot.host, &snapshot.unit).expect("asks");
        assert!(
            last.is_none_or(|r| r.commit().expect("a commit").generation < snapshot.generation),
            "{what}: a committed one"
        );
    }
    for (number, lives) in lives_by_records(&records) {
        let life = store.catalog.life(&unit(number));
        assert_eq!(life.incarnation, lives, "{what}: the present life is what the records say");
    }
    for (layer, record) in acknowledged {
        assert_eq!(store.record(record.seq).expect("reads").as_ref(), Some(record), "{what}");
        layer.check(store);
    }
}

/// The present life of each unit that ended one, by brute force.
fn lives_by_records(records: &[Record]) -> HashMap<usize, Incarnation> {
    let number = |of: &UnitId| (0..20).find(|number| unit(*number) == *of).expect("a unit of the workload");
    let mut lives = HashMap::new();
    for record in records {
        lives.extend(record.retired().iter().map(|unit| (number(unit), Incarnation(record.seq.0))));
        lives.extend(record.undeleted().iter().map(|life| (number(&life.unit), life.incarnation)));
    }
    lives
}

/// Reopens what a crash left and checks it.
fn recover(crashed: &SimDisk, acknowledged: &[(Layer, Record)], what: &str) {
    let disk: Arc<dyn Disk> = Arc::new(crashed.clone());
    let store = open(&disk, SMALL).unwrap_or_else(|e| panic!("{what}: {e}"));
    holds(&store, acknowledged, what);
    drop(store);
    verify_clean(crashed, what);
}

/// Sends again what wasn't acknowledged, and checks again.
fn go_on(crashed: &SimDisk, acknowledged: &[(Layer, Record)], layers: &[Layer], what: &str) {
    let disk: Arc<dyn Disk> = Arc::new(crashed.clone());
    let store = open(&disk, SMALL).unwrap_or_else(|e| panic!("{what}: {e}"));
    for layer in layers {
        if store
            .latest(HOST, &layer.unit)
            .expect("asks")
            .is_none_or(|r| r.commit().expect("a commit").generation < layer.generation)
        {
            layer.send(&store).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        store.checkpoint().unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    holds(&store, acknowledged, what);
    drop(store);
    verify_clean(crashed, what);
}

/// Crashes at every operation whose number is `part` modulo `of`.
fn crash_everywhere(part: u64, of: u64) {
    let layers = workload();
    let disk = SimDisk::new();
    let handle: Arc<dyn Disk> = Arc::new(disk.clone());
    assert_eq!(run(&handle, &layers).len(), layers.len() + AFTER, "nothing fails without a crash");
    for at in (0..disk.operations()).filter(|at| at % of == part) {
        let disk = SimDisk::new();
        let handle: Arc<dyn Disk> = Arc::new(disk.clone());
        disk.crash_after(at);
        let acknowledged = run(&handle, &layers);
        let seeded = [Unsynced::Torn(at), Unsynced::Reordered(at), Unsynced::Reordered(at + 1000)];
        for unsynced in [Unsynced::Dropped, Unsynced::Kept].into_iter().chain(seeded) {
            let what = format!("crash at operation {at}, {unsynced:?}");
            let crashed = disk.after_crash(unsynced);
            recover(&crashed, &acknowledged, &what);
            if unsynced == Unsynced::Reordered(at) {
                go_on(&crashed, &acknowledged, &layers, &what);
            }
        }
    }
}

/// P7: at every operation (first of four parts, which run side by side).
#[test]
fn a_crash_at_any_operation_loses_nothing_acknowledged_1() {
    crash_everywhere(0, 4);
}

/// P7: at every operation (second part).
#[test]
fn a_crash_at_any_operation_loses_nothing_acknowledged_2() {
    crash_everywhere(1, 4);
}

/// P7: at every operation (third part).
#[test]
fn a_crash_at_any_operation_loses_nothing_acknowledged_3() {
    crash_everywhere(2, 4);
}

/// P7: at every operation (fourth part).
#[test]
fn a_crash_at_any_operation_loses_nothing_acknowledged_4() {
    crash_everywhere(3, 4);
}

/// P7: a crash while a store recovers from a crash loses nothing either.
#[test]
fn a_crash_during_recovery_loses_nothing() {
    let layers = workload();
    for at in [40, 61, 87, 113] {
        let disk = SimDisk::new();
        let handle: Arc<dyn Disk> = Arc::new(disk.clone());
        disk.crash_after(at);
        let acknowledged = run(&handle, &layers);
        for again in 0..60 {
            let once = disk.after_crash(Unsynced::Torn(at + again));
            once.crash_after(again);
            let reopened: Arc<dyn Disk> = Arc::new(once.clone());
            let finished = open(&reopened, SMALL).is_ok();
            let twice = once.after_crash(Unsynced::Reordered(again));
            let what = format!("crash at operation {at}, then at {again} of the recovery");
            let handle: Arc<dyn Disk> = Arc::new(twice.clone());
            holds(&open(&handle, SMALL).unwrap_or_else(|e| panic!("{what}: {e}")), &acknowledged, &what);
            verify_clean(&twice, &what);
            if finished {
                break;
            }
        }
    }
}

/// P7: what a store shows after its process was killed is durable, also what the killed one had written and not synced.
#[test]
fn what_is_shown_after_a_kill_survives_a_power_cut() {
    let layers = workload();
    for at in (20..).step_by(3) {
        let disk = SimDisk::new();
        let handle: Arc<dyn Disk> = Arc::new(disk.clone());
        disk.crash_after(at);
        if run(&handle, &layers).len() == layers.len() + AFTER {
            break;
        }
        let killed = disk.after_kill();
        let handle: Arc<dyn Disk> = Arc::new(killed.clone());
        let what = format!("killed at operation {at}");
        let store = open(&handle, SMALL).unwrap_or_else(|e| panic!("{what}: {e}"));
        let shown = store.records_after(Seq(0), usize::MAX).expect("reads");
        // Whatever was only appended counts as here, so the next commit must make it durable, or the opening has.
        let next = Layer::large(1);
        let record = next.send(&store).unwrap_or_else(|e| panic!("{what}: {e}"));
        drop(store);
        for unsynced in [Unsynced::Dropped, Unsynced::Reordered(at)] {
            let cut = killed.after_crash(unsynced);
            let handle: Arc<dyn Disk> = Arc::new(cut.clone());
            let store = open(&handle, SMALL).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(store.records_after(Seq(0), usize::MAX).expect("reads").starts_with(&shown), "{what}");
            holds(&store, &[(next.clone(), record.clone())], &what);
            drop(store);
            verify_clean(&cut, &what);
        }
    }
}

/// A torn tail of pack and catalog is cut when the store is opened, and nothing before it.
#[test]
fn torn_tails_are_cut() {
    let disk = SimDisk::new();
    let handle: Arc<dyn Disk> = Arc::new(disk.clone());
    let layers = [Layer::small(1), Layer::small(2)];
    let acknowledged = run(&handle, &layers);
    for (file, tail) in
        [("catalog", &b"RFSc\x40\0\0\0torn"[..]), ("packs/00000001.pack", b"RFSb\x01\x01 torn too")]
    {
        let path = Path::new(DIR).join(file);
        let mut before = 0;
        disk.damage(&path, |bytes| {
            before = bytes.len();
            bytes.extend_from_slice(tail);
        });
        verify_clean(&disk, "a torn tail is nothing to worry about");
        let store = open(&handle, SMALL).expect("opens");
        holds(&store, &acknowledged, file);
        assert_eq!(disk.open(&path).expect("opens").len().expect("asks"), before as u64, "{file}");
    }
}
