//! Damage to each file of a store, in each way, is found by a check that reads the data.

mod repair;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    catalog::UnitLife,
    durable::{Disk, sim::SimDisk},
    ids::{Generation, Hash, Incarnation, Seq},
    store::{
        NewPrune, NewPurge, StoreError,
        layout::Layout,
        tests::fixture::{DIR, Layer, SMALL, block, noise, open, retire, unit},
    },
    verify::{
        Progress, Report, Sample, VerifyOptions,
        store::{Source, verify_closed, verify_store},
    },
};

const ALL: VerifyOptions = VerifyOptions::EVERYTHING;
/// Every stored byte, nothing unpacked.
const STORED: VerifyOptions = VerifyOptions { unpack: false, ..ALL };

fn layers() -> Vec<Layer> {
    vec![Layer::small(1), Layer::large(2), Layer::small(3)]
}

/// A store with three layers in a dozen packs, closed.
fn sample() -> SimDisk {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk, SMALL).expect("makes a store");
    layers().iter().for_each(|layer| drop(layer.send(&store).expect("commits")));
    store.checkpoint().expect("writes the index");
    drop(store);
    sim
}

/// A copy that can be damaged.
fn copy(disk: &SimDisk) -> SimDisk {
    disk.after_crash(crate::durable::sim::Unsynced::Kept)
}

fn check(disk: &SimDisk, options: &VerifyOptions) -> Report {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    verify_closed(disk, Path::new(DIR), options, &|_| true).expect("runs")
}

fn codes(report: &Report) -> Vec<&'static str> {
    report.findings.iter().map(|finding| finding.code).collect()
}

fn files(disk: &SimDisk) -> Vec<String> {
    let packs = disk.list(&Path::new(DIR).join("packs")).expect("lists");
    let packs = packs.iter().map(|name| format!("packs/{}", name.display()));
    ["store", "catalog", "head"].map(String::from).into_iter().chain(packs).collect()
}

/// A store that nothing happened to checks clean, and everything was looked at.
#[test]
fn a_good_store_is_clean() {
    let disk = sample();
    let report = check(&disk, &ALL);
    assert!(report.is_clean() && report.exit_code() == 0, "{report:?}");
    assert_eq!(report.notes, Vec::<String>::new());
    let counts = report.counts;
    assert_eq!((counts.records, counts.manifests, counts.files, counts.recipes_read), (3, 3, 10, 1));
    assert!(counts.bytes_read > 300_000 && counts.packs > 5, "{counts:?}");
    let stored = check(&disk, &STORED);
    assert!(stored.is_clean() && stored.counts.recipes_read == 0, "{stored:?}");
    assert_eq!(stored.counts.bytes_read, counts.bytes_read);
    let quick = check(&disk, &VerifyOptions::default());
    assert!(quick.is_clean() && quick.counts.bytes_read == 0);
}

/// A retirement is a record that isn't a commit; what it retired is checked like all else.
#[test]
fn retirements_are_counted_by_themselves() {
    let disk = sample();
    let arc: Arc<dyn Disk> = Arc::new(disk.clone());
    let store = open(&arc, SMALL).expect("opens");
    retire(&store, &unit(1), Seq(1)).expect("retires");
    drop(store);
    let report = check(&disk, &ALL);
    assert!(report.is_clean(), "{report:?}");
    let counts = report.counts;
    assert_eq!((counts.records, counts.retirements, counts.manifests, counts.files), (4, 1, 3, 10));
}

/// What a purge has given up isn't looked for, and what came to the same life after it is.
#[test]
fn what_was_purged_is_not_expected() {
    let disk = sample();
    let arc: Arc<dyn Disk> = Arc::new(disk.clone());
    let store = open(&arc, SMALL).expect("opens");
    let last = Layer::small(9).send(&store).expect("commits");
    let (by, rule) = ("root".to_owned(), "by hand".to_owned());
    store.prune(NewPrune { by: by.clone(), rule, units: vec![(unit(9), last.seq)] }).expect("prunes");
    let lives = vec![UnitLife { unit: unit(9), incarnation: Incarnation::FIRST }];
    store.purge(NewPurge { by, lives }).expect("purges");
    let late = Layer { generation: Generation(2), unit: unit(9), ..Layer::large(1) };
    late.send(&store).expect("its host was away");
    drop(store);
    let report = check(&disk, &ALL);
    assert!(report.is_clean(), "{report:?}");
    let counts = report.counts;
    assert_eq!((counts.records, counts.prunes, counts.purges, counts.purged_commits), (7, 1, 1, 1));
    assert_eq!((counts.manifests, counts.files), (4, 14), "its manifest isn't among them");
}

/// A flipped bit anywhere in header, catalog, head or packs is found.
#[test]
fn every_flip_is_found() {
    let disk = sample();
    for file in files(&disk) {
        let path = Path::new(DIR).join(&file);
        let bytes = disk.open(&path).expect("opens").len().expect("asks") as usize;
        let (first, last) = (0..bytes.min(100), bytes.saturating_sub(100)..bytes);
        let places = first.chain((0..bytes).step_by(bytes / 23 + 1)).chain(last);
        for at in places.step_by(7) {
            let bad = copy(&disk);
            bad.damage(&path, |bytes| bytes[at] ^= 0x10);
            let report = check(&bad, &STORED);
            assert_eq!(report.exit_code(), 4, "{file} byte {at}");
        }
    }
}

/// A file cut short anywhere is found, also where the cut is between two blocks or two records.
#[test]
fn every_truncation_is_found() {
    let disk = sample();
    for file in files(&disk) {
        let path = Path::new(DIR).join(&file);
        let bytes = disk.open(&path).expect("opens").len().expect("asks") as usize;
        for len in (0..bytes).step_by(bytes / 40 + 1).chain([bytes - 1]) {
            let bad = copy(&disk);
            bad.damage(&path, |bytes| bytes.truncate(len));
            let report = check(&bad, &STORED);
            assert_eq!(report.exit_code(), 4, "{file} cut to {len}");
        }
    }
}

/// A deleted file is found, each with its own code.
#[test]
fn every_deletion_is_found() {
    let disk = sample();
    for file in files(&disk).into_iter().chain(["index.redb".to_owned()]) {
        let bad = copy(&disk);
        bad.remove(&Path::new(DIR).join(&file)).expect("removes");
        let expected = match file.as_str() {
            "store" => "header-missing",
            "catalog" => "catalog-missing",
            "head" => "head-missing",
            "index.redb" => "index-missing",
            _ => "pack-missing",
        };
        let report = check(&bad, &VerifyOptions::default());
        assert!(codes(&report).contains(&expected), "{file}: {report:?}");
    }
}

/// A damaged index is found, or the damage is where nothing is kept; it never makes a check or a store give wrong answers silently.
#[test]
fn index_damage_is_found_or_harmless() {
    let disk = sample();
    let path = Path::new(DIR).join("index.redb");
    let bytes = disk.open(&path).expect("opens").len().expect("asks") as usize;
    let mut found = 0;
    for at in (0..bytes.min(60_000)).step_by(509) {
        let bad = copy(&disk);
        bad.damage(&path, |bytes| bytes[at] ^= 0x10);
        let report = check(&bad, &ALL);
        assert!(codes(&report).iter().all(|code| code.starts_with("index-")), "{report:?}");
        found += usize::from(!report.is_clean());
    }
    assert!(found > 0);
    for len in [0, 1, 4096, bytes / 2] {
        let bad = copy(&disk);
        bad.damage(&path, |bytes| bytes.truncate(len));
        assert_eq!(check(&bad, &ALL).exit_code(), 4, "cut to {len}");
    }
}

/// Findings name the units and paths whose bytes are gone.
#[test]
fn findings_name_units_and_paths() {
    let disk = sample();
    let own = noise("own 3", 3000);
    let path = Path::new(DIR).join("packs");
    let packs = disk.list(&path).expect("lists");
    let pack = packs.iter().map(|name| path.join(name)).find_map(|pack| {
        let bytes = crate::durable::read_all(&*disk.open(&pack).expect("opens")).expect("reads");
        bytes.windows(100).position(|window| window == &own[1000..1100]).map(|at| (pack, at))
    });
    let (pack, at) = pack.expect("noise is kept plain");
    disk.damage(&pack, |bytes| bytes[at] ^= 1);
    let report = check(&disk, &STORED);
    let paths: Vec<String> = report.findings.iter().flat_map(|f| &f.paths).map(ToString::to_string).collect();
    assert!(codes(&report).contains(&"block-damaged"));
    assert!(
        paths.contains(&"3-me/host1/debug/own".to_owned()) || codes(&report).contains(&"manifest-damaged"),
        "{report:?}"
    );
    assert!(report.findings.iter().any(|f| f.units.contains(&Layer::small(3).unit)));
}

/// A store goes on while it is checked: what comes meanwhile is neither missed nor a finding.
#[test]
fn an_open_store_is_checked_while_it_goes_on() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let store = open(&disk, SMALL).expect("makes a store");
    Layer::large(0).send(&store).expect("commits");
    store.append_block(&block(&Layer::small(99).objects())).expect("appends, uncommitted");
    std::thread::scope(|scope| {
        let writer =
            scope.spawn(|| (1..40).for_each(|n| drop(Layer::small(n).send(&store).expect("commits"))));
        loop {
            let report = verify_store(Source::Open(&store), &ALL, &|_| true).expect("runs");
            assert!(report.is_clean(), "{report:?}");
            if writer.is_finished() {
                break;
            }
        }
        writer.join().expect("no panic");
    });
    let report = verify_store(Source::Open(&store), &ALL, &|_| true).expect("runs");
    assert_eq!(report.counts.records, 40);
}

/// A store in use isn't read behind its daemon's back.
#[test]
fn a_store_in_use_is_not_checked_as_closed() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let _store = open(&disk, SMALL).expect("makes a store");
    let refused = verify_closed(disk.clone(), Path::new(DIR), &ALL, &|_| true);
    assert!(matches!(refused, Err(StoreError::Locked(_))));
    let nowhere = verify_store(Source::Closed(Path::new("/nowhere/store")), &ALL, &|_| true);
    assert!(matches!(nowhere, Err(StoreError::Io(_))));
}

/// A check that nobody waits for any more stops; the next one reads only what it hasn't read, and what isn't as it was.
#[test]
fn a_check_goes_on_where_one_was_cut_off() {
    let disk = sample();
    let all = check(&disk, &ALL).counts;
    let resumed = VerifyOptions { resume: true, ..ALL };
    assert_eq!(check(&disk, &resumed).counts, all, "the last one came to its end");

    let heard = AtomicU64::new(0);
    // Up to the end of the second pack.
    let listen = |at: Progress| heard.fetch_max(at.done, Ordering::Relaxed) < all.bytes_read / 3;
    let cut = verify_closed(Arc::new(disk.clone()), Path::new(DIR), &ALL, &listen);
    assert!(matches!(cut, Err(StoreError::Io(e)) if e.kind() == std::io::ErrorKind::Interrupted));
    let quick = VerifyOptions { unpack: false, ..resumed };
    let rest = check(&copy(&disk), &quick).counts.bytes_read;
    assert!(0 < rest && rest < all.bytes_read, "{rest} of {}", all.bytes_read);
    let other = copy(&disk);
    check(&other, &VerifyOptions { resume: false, ..quick });
    let verified = Layout::new(Path::new(DIR)).verified();
    other.damage(&verified, |bytes| bytes.truncate(bytes.len() - 32));
    assert_eq!(check(&other, &resumed).counts.bytes_read, all.bytes_read, "nothing of it was unpacked");

    // Rot in what was read already is for the next check from the beginning.
    let rest = check(&disk, &resumed);
    assert!(rest.is_clean() && rest.notes.iter().any(|note| note.contains("not again")), "{rest:?}");
    assert_eq!(check(&disk, &resumed).counts, all);
}

/// A repair reads only what the check before it hasn't found good.
#[test]
fn a_repair_goes_by_what_was_just_read() {
    let disk = sample();
    let pack = Path::new(DIR).join("packs/00000001.pack");
    disk.damage(&pack, |bytes| bytes[200] ^= 1);
    let found = check(&disk, &ALL);
    assert_eq!(found.exit_code(), 4);
    let resumed = VerifyOptions { resume: true, ..ALL };
    let mended = repair::repair_with(&disk, &resumed);
    assert!(mended.counts.bytes_read < found.counts.bytes_read / 2, "{mended:?}");
    assert!(mended.repaired > 0);
    assert_eq!(check(&disk, &resumed).counts.packs, check(&disk, &ALL).counts.packs);
}

/// A pack of that number that isn't the one which was read, is read.
#[test]
fn what_was_read_of_another_pack_counts_for_nothing() {
    let disk = sample();
    let all = check(&disk, &ALL).counts.bytes_read;
    let verified = Layout::new(Path::new(DIR)).verified();
    let resumed = VerifyOptions { resume: true, ..ALL };
    disk.damage(&verified, |bytes| {
        // As if the check had been cut off at its end, and each pack were what the next one was.
        bytes.truncate(bytes.len() - 32);
        let mut entries: Vec<Vec<u8>> = bytes[8..].chunks(32).map(<[u8]>::to_vec).collect();
        let digests: Vec<Vec<u8>> = entries.iter().map(|entry| entry[8..24].to_vec()).collect();
        for (number, entry) in entries.iter_mut().enumerate() {
            entry[8..24].copy_from_slice(&digests[(number + 1) % digests.len()]);
            let check = Hash::of(&entry[..24]);
            entry[24..].copy_from_slice(&check.0[..8]);
        }
        let changed = entries.concat();
        bytes[8..].copy_from_slice(&changed);
    });
    assert_eq!(check(&disk, &resumed).counts.bytes_read, all);
}

/// Whatever the file says, what it doesn't say of these very blocks is read.
#[test]
fn what_a_check_has_noted_may_be_damaged() {
    let verified = Layout::new(Path::new(DIR)).verified();
    let read = sample();
    let all = check(&read, &ALL).counts.bytes_read;
    // As if it had been cut off at its end.
    read.damage(&verified, |bytes| bytes.truncate(bytes.len() - 32));
    let resumed = VerifyOptions { resume: true, ..ALL };
    assert_eq!(check(&copy(&read), &resumed).counts.bytes_read, 0);
    let length = repair::bytes_of(&read, &verified).expect("is there").len();
    for at in (0..length).step_by(5) {
        let bad = copy(&read);
        bad.damage(&verified, |bytes| bytes[at] ^= 1 << (at % 8));
        let report = check(&bad, &resumed);
        assert!(report.is_clean() && report.counts.bytes_read > 0, "{at}: {report:?}");
        assert!(report.counts.bytes_read <= all);
    }
}

/// The parts of a sample together read everything.
#[test]
fn samples_add_up() {
    let disk = sample();
    let all = check(&disk, &ALL).counts;
    let parts = (1..=3).map(|part| {
        let sample = Sample::new(part, 3);
        check(&disk, &VerifyOptions { sample, ..ALL }).counts
    });
    let (bytes, recipes) = parts.fold((0, 0), |(b, r), c| (b + c.bytes_read, r + c.recipes_read));
    assert_eq!((bytes, recipes), (all.bytes_read, all.recipes_read));
}

/// Damage found while a store is opened stops nothing else: what is whole is served, and what isn't can be sent again.
#[test]
fn what_a_damaged_block_held_is_taken_again() {
    let disk = sample();
    let first = Path::new(DIR).join("packs/00000001.pack");
    disk.damage(&first, |bytes| bytes.truncate(3000));
    let handle: Arc<dyn Disk> = Arc::new(disk.clone());
    let store = open(&handle, SMALL).expect("opens");
    let mut layer = Layer::small(1);
    layer.generation = layer.generation.next();
    layer.send(&store).expect("asks for what is gone, and gets it");
    layer.check(&store);
}
