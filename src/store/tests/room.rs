//! What the store does when its disk is full.

use std::{path::Path, sync::Arc};

use super::fixture::*;
use crate::{
    chunk::ObjectKind,
    durable::{
        Disk,
        sim::{SimDisk, Unsynced},
    },
    ids::Hash,
    store::{Store, StoreError, Tuning, gc::GcOptions},
};

const RESERVE: u64 = 100_000;

fn is_full<T: std::fmt::Debug>(done: Result<T, StoreError>) {
    assert!(matches!(done, Err(StoreError::Full { .. })), "{done:?}");
}

/// Below the reserve nothing new is taken in; what is here can be read, shown and committed, and `gc` frees what isn't needed. With room it goes on.
#[test]
fn the_reserve_is_for_what_must_go_on() {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk, Tuning { reserve_bytes: Some(RESERVE), ..SMALL }).expect("makes a store");
    let (old, running, new) = (Layer::large(1), Layer::large(2), Layer::small(3));
    old.send(&store).expect("commits");
    running.publish(&store).expect("shows");
    Layer::large(4).publish(&store).expect("shows");
    sim.set_capacity(sim.used() + RESERVE - 1);
    is_full(store.manifest_known(&new.commit().manifest));
    is_full(store.missing(ObjectKind::Chunk, &[Hash::of(b"new")]));
    is_full(store.append_block(&block(&new.objects())));
    is_full(store.commit(new.commit()));
    is_full(store.publish(new.commit()));
    old.check(&store);
    store.commit(running.commit()).expect("all of it is here");
    running.check(&store);
    store.withdraw(HOST, &unit(4), Layer::large(4).generation);
    store.gc(&GcOptions { level: 1, dry_run: false }, &mut |_| true).expect("has the reserve");
    assert!(!store.manifest_known(&new.commit().manifest).expect("there is room"));
    new.send(&store).expect("commits");
    [old, running, new].iter().for_each(|layer| layer.check(&store));
    drop(store);
    verify_clean(&sim, "after");
}

/// Sends layers while there is room, in order; gives how many were committed.
fn fill(store: &Store, layers: &[Layer]) -> usize {
    for (done, layer) in layers.iter().enumerate() {
        match layer.send(store) {
            Ok(_) => {}
            Err(StoreError::Full { .. }) => return done,
            Err(error) => panic!("layer {done}: {error}"),
        }
    }
    layers.len()
}

/// A write that finds no room, wherever, is undone: the store goes on without being opened again, nothing that was acknowledged is lost, and when
/// there is room all is well. A crash in between changes none of that.
#[test]
fn a_write_without_room_is_undone() {
    let layers = [Layer::small(1), Layer::large(2), Layer::small(3), Layer::small(4), Layer::large(5)];
    let (mut places, mut cut_short) = (0, 0);
    for room in (0..700_000).step_by(2999) {
        let sim = SimDisk::new();
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let store = open(&disk, SMALL).expect("makes a store");
        sim.set_capacity(sim.used() + room);
        let done = fill(&store, &layers);
        let what = format!("{room} bytes of room, {done} layers");
        cut_short += usize::from(done > 0 && done < layers.len());
        if done == layers.len() {
            break;
        }
        places += 1;
        let lengths = |dir: &str| -> u64 {
            let names = disk.list(&Path::new(DIR).join(dir)).expect("lists");
            let files = names.iter().map(|name| disk.open(&Path::new(DIR).join(dir).join(name)));
            files.map(|file| file.expect("opens").len().expect("asks")).sum()
        };
        assert_eq!(lengths("packs"), store.stats().pack_bytes, "{what}: what didn't fit is cut back");
        let catalog = disk.open(&Path::new(DIR).join("catalog")).expect("opens").len().expect("asks");
        assert_eq!(catalog, store.stats().catalog_bytes, "{what}");
        layers[..done].iter().for_each(|layer| layer.check(&store));
        if places % 2 == 0 {
            for unsynced in [Unsynced::Dropped, Unsynced::Torn(room), Unsynced::Reordered(room)] {
                let crashed = sim.after_crash(unsynced);
                let handle: Arc<dyn Disk> = Arc::new(crashed.clone());
                let store = open(&handle, SMALL).unwrap_or_else(|e| panic!("{what}: {e}"));
                layers[..done].iter().for_each(|layer| layer.check(&store));
                drop(store);
                verify_clean(&crashed, &what);
            }
        }
        sim.set_capacity(1 << 30);
        assert_eq!(fill(&store, &layers), layers.len(), "{what}");
        drop(store);
        verify_clean(&sim, &what);
        let store = open(&disk, SMALL).unwrap_or_else(|e| panic!("{what}: {e}"));
        layers.iter().for_each(|layer| layer.check(&store));
    }
    assert!(places > 100 && cut_short > 30, "{places} {cut_short}");
}
