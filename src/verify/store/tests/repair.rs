//! The damage matrix: each file of a store, each kind of damage, at each place. All of it is found; what can be brought back is, and nothing else is said of
//! what can't; what is read after is right or an error; and whoever still has what was lost brings it back by sending it again.

use std::{collections::BTreeSet, path::PathBuf};

use super::*;
use crate::{
    chunk::{ObjectKind, Recipe},
    durable::{self, sim::Unsynced},
    ids::Hash,
    store::{NewCommit, Store, Tuning, gc::GcOptions, index::Location, tests::fixture::options},
    verify::store::{RepairWith, repair_closed},
};

/// A way to damage a file. Places are in 64ths of it.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip(usize),
    /// A sector of zeros.
    Zeros(usize),
    /// What stands elsewhere in the file stands here, too.
    Twice(usize),
    Truncated(usize),
    Grown,
    Removed,
    /// By the next file of its kind.
    Replaced,
}

fn kinds() -> Vec<Damage> {
    let places = [0, 1, 13, 32, 50, 63, 64];
    let at = |kind: fn(usize) -> Damage| places.into_iter().map(kind);
    let whole = [Damage::Grown, Damage::Removed, Damage::Replaced];
    at(Damage::Flip)
        .chain(at(Damage::Zeros))
        .chain(at(Damage::Twice))
        .chain(at(Damage::Truncated))
        .chain(whole)
        .collect()
}

fn all_files(disk: &SimDisk) -> Vec<PathBuf> {
    let dir = Path::new(DIR);
    let of = |sub: &str| {
        let names = disk.list(&dir.join(sub)).unwrap_or_default();
        names.into_iter().map(|name| dir.join(sub).join(name)).collect::<Vec<_>>()
    };
    let single =
        ["store", "store.copy", "catalog", "catalog.copy", "head", "index.redb", "reads", "snapshots"];
    single.iter().map(|name| dir.join(name)).chain(of("packs")).chain(of("index")).collect()
}

pub(super) fn bytes_of(disk: &SimDisk, path: &Path) -> Option<Vec<u8>> {
    disk.open(path).ok().map(|file| durable::read_all(&*file).expect("reads"))
}

/// The disk with this damage; `None` if the file is none the worse for it.
fn damaged(disk: &SimDisk, files: &[PathBuf], path: &Path, damage: Damage) -> Option<SimDisk> {
    let bad = copy(disk);
    let good = bytes_of(&bad, path).expect("is there");
    let at = |place: usize, bytes: usize| (good.len() * place / 64).min(good.len().saturating_sub(bytes));
    match damage {
        Damage::Removed => bad.remove(path).expect("removes"),
        Damage::Flip(place) => bad.damage(path, |bytes| bytes[at(place, 1)] ^= 0x40),
        Damage::Zeros(place) => {
            let (from, len) = (at(place, 512), good.len().min(512));
            bad.damage(path, |bytes| bytes[from..from + len].fill(0));
        }
        Damage::Twice(place) => {
            let (from, len) = (at(place, 700), good.len().min(700));
            let other = (good.len() / 3).min(good.len() - len);
            bad.damage(path, |bytes| bytes.copy_within(other..other + len, from));
        }
        Damage::Truncated(place) => bad.damage(path, |bytes| bytes.truncate(at(place, 1))),
        Damage::Grown => {
            bad.damage(path, |bytes| bytes.extend_from_slice(b"something that isn't of the store"))
        }
        Damage::Replaced => {
            let siblings: Vec<_> = files.iter().filter(|other| other.parent() == path.parent()).collect();
            let next = siblings.iter().position(|other| *other == path).map(|i| (i + 1) % siblings.len());
            let other = bytes_of(&bad, siblings[next.expect("is among them")]).expect("is there");
            bad.damage(path, |bytes| *bytes = other);
        }
    }
    (bytes_of(&bad, path).as_ref() != Some(&good)).then_some(bad)
}

fn repair(disk: &SimDisk) -> Report {
    repair_with(disk, &ALL)
}

pub(super) fn repair_with(disk: &SimDisk, options: &VerifyOptions) -> Report {
    try_repair(disk, options).expect("runs")
}

fn try_repair(disk: &SimDisk, how: &VerifyOptions) -> Result<Report, StoreError> {
    let arc: Arc<dyn Disk> = Arc::new(disk.clone());
    let with = RepairWith { store: options(), level: 1 };
    repair_closed(arc, Path::new(DIR), how, &with, SMALL, &|_| true)
}

/// Paths that can't be read whole. What can is right.
fn unreadable(store: &Store, layers: &[Layer]) -> BTreeSet<String> {
    let mut lost = BTreeSet::new();
    for layer in layers {
        let manifest = layer.commit().manifest;
        let has_manifest = matches!(store.read_object(ObjectKind::Manifest, &manifest), Ok(Some(_)));
        for (path, bytes) in &layer.files {
            match read(store, bytes).filter(|_| has_manifest) {
                Some(read) => assert_eq!(&read, bytes, "{}/{path} is right or an error", layer.unit),
                None => _ = lost.insert(format!("{}/{path}", layer.unit.root)),
            }
        }
    }
    lost
}

fn read(store: &Store, bytes: &[u8]) -> Option<Vec<u8>> {
    let object = |kind, hash: &Hash| store.read_object(kind, hash).ok().flatten();
    match store.params().content_kind(bytes.len() as u64) {
        _ if bytes.is_empty() => Some(Vec::new()),
        ObjectKind::Chunk => object(ObjectKind::Chunk, &Hash::of(bytes)),
        kind => {
            let recipe = Recipe::decode(&object(kind, &Hash::of(bytes))?).expect("is one");
            let chunks = recipe.chunks.iter().map(|chunk| object(ObjectKind::Chunk, &chunk.hash));
            Some(chunks.collect::<Option<Vec<_>>>()?.concat())
        }
    }
}

/// What the report says is lost, by path; of a lost manifest all its files.
fn told_lost(report: &Report, layers: &[Layer]) -> BTreeSet<String> {
    let mut lost: BTreeSet<String> = report.lost.iter().map(|range| range.path.to_string()).collect();
    for finding in report.findings.iter().filter(|f| f.code.starts_with("manifest-") && !f.is_repaired) {
        for layer in layers.iter().filter(|layer| finding.units.contains(&layer.unit)) {
            lost.extend(layer.files.iter().map(|(path, _)| format!("{}/{path}", layer.unit.root)));
        }
    }
    lost
}

fn opened(disk: &SimDisk) -> Arc<Store> {
    let arc: Arc<dyn Disk> = Arc::new(disk.clone());
    open(&arc, SMALL).expect("opens")
}

/// What must hold of a repaired store, and what is lost of it.
fn check_repaired(disk: &SimDisk, report: &Report, what: &str) -> BTreeSet<String> {
    let layers = layers();
    let again = check(disk, &ALL);
    let left: BTreeSet<&str> = again.findings.iter().map(|f| f.code).collect();
    assert!(
        left.iter().all(|code| ["content-missing", "manifest-missing"].contains(code)),
        "{what}: {:?}",
        again.findings
    );
    let store = opened(disk);
    let lost = unreadable(&store, &layers);
    assert_eq!(told_lost(report, &layers), lost, "{what}: {report:?}");
    assert_eq!(report.exit_code(), if lost.is_empty() { 1 } else { 4 }, "{what}: {report:?}");
    let records = store.records_after(Seq(0), 10).expect("reads");
    assert_eq!(records.iter().filter(|record| record.commit().is_some()).count(), 3, "{what}");
    lost
}

/// Nothing is deleted that could be looked at.
fn is_kept(disk: &SimDisk, bytes: Option<&[u8]>) -> bool {
    let dir = Path::new(DIR).join("quarantine");
    let names = disk.list(&dir).unwrap_or_default();
    bytes.is_none_or(|bytes| {
        bytes.is_empty()
            || names.iter().any(|name| bytes_of(disk, &dir.join(name)).is_some_and(|kept| kept == bytes))
    })
}

/// Whoever has it sends it again, in the generation that was committed or for another unit.
fn check_resent(disk: &SimDisk, lost: &BTreeSet<String>, what: &str) {
    let store = opened(disk);
    for (number, layer) in layers().into_iter().enumerate() {
        let is_hurt = lost.iter().any(|path| path.starts_with(layer.unit.root.to_string().as_str()));
        let is_known = store.manifest_known(&layer.commit().manifest).expect("asks");
        assert!(!is_known || !is_hurt, "{what}: {} isn't taken for granted", layer.unit);
        let again = [layer.commit(), NewCommit { unit: unit(780 + number), ..layer.commit() }]
            .map(|c| store.commit(c));
        assert_eq!(again.map(|committed| committed.is_ok()), [!is_hurt; 2], "{what}: {}", layer.unit);
    }
    // What is proven of a file doesn't outlive its chunks.
    let mut mixed = Layer::large(2);
    mixed.unit = unit(79);
    mixed.files.push(("extra".to_owned(), b"is sent".to_vec()));
    let is_there = mixed.files[..4].iter().all(|(_, bytes)| read(&store, bytes).is_some());
    let objects = mixed.objects();
    let sent: Vec<_> = objects
        .into_iter()
        .filter(|(kind, _, bytes)| *kind == ObjectKind::Manifest || bytes == b"is sent")
        .collect();
    store.append_block(&block(&sent)).expect("appends");
    assert_eq!(store.commit(mixed.commit()).is_ok(), is_there, "{what}");
    drop(mixed.send(&store));
    let mut other = Layer::small(1);
    other.unit = unit(77);
    other.send(&store).expect("nothing of it is taken for granted");
    other.check(&store);
    layers().iter().for_each(|layer| drop(layer.send(&store).expect("asks for what is gone, and gets it")));
    assert_eq!(unreadable(&store, &layers()), BTreeSet::new(), "{what}");
    drop(store);
    let report = check(disk, &ALL);
    assert!(report.is_clean(), "{what}: {:?}", report.findings);
    assert!(bytes_of(disk, &Path::new(DIR).join("lost")).is_none(), "{what}: nothing is lost any more");
}

/// Everything that is damaged is found, and mended as far as it can be.
#[test]
fn the_damage_matrix() {
    let disk = sample();
    let running = (5..9).map(|n| NewCommit { generation: Generation(n), ..Layer::small(1).commit() });
    running.for_each(|layer| drop(opened(&disk).publish(layer).expect("is shown")));
    let files = all_files(&disk);
    assert!(files.len() > 15, "{files:?}");
    let (mut cases, mut losing) = (0, 0);
    for path in &files {
        let name = path.strip_prefix(DIR).expect("is below").display().to_string();
        for damage in kinds() {
            let Some(bad) = damaged(&disk, &files, path, damage) else { continue };
            let what = format!("{name} {damage:?}");
            cases += 1;
            let damaged_bytes = bytes_of(&bad, path);
            let before = check(&bad, &ALL);
            // Of what may be deleted, an end that was never answered is no finding.
            let is_derived = name.starts_with("index") || name == "reads" || name == "snapshots";
            assert!(
                !before.is_clean() || !before.notes.is_empty() || is_derived,
                "{what} isn't found: {before:?}"
            );
            let report = repair(&bad);
            if report.is_clean() {
                // Of what nothing depends on, or a tail that was never acknowledged: opening cuts it.
                assert!(before.is_clean(), "{what}");
                assert_eq!(unreadable(&opened(&bad), &layers()), BTreeSet::new(), "{what}");
                continue;
            }
            let lost = check_repaired(&bad, &report, &what);
            if !is_derived && !name.contains("copy") && name != "head" {
                assert!(is_kept(&bad, damaged_bytes.as_deref()), "{what}: is in quarantine");
            }
            assert!(lost.is_empty() || name.starts_with("packs/"), "{what}: {lost:?}");
            losing += usize::from(!lost.is_empty());
            let twice = repair(&bad);
            assert_eq!(twice.repaired, 0, "{what}: {twice:?}");
            assert_eq!(codes(&twice).len(), check(&bad, &ALL).findings.len(), "{what}");
            check_resent(&bad, &lost, &what);
        }
    }
    assert!(cases > 400 && losing > 50, "{cases} cases, {losing} with losses");
}

/// Cut off at any of its writes, and given again after a crash that dropped, kept or tore what wasn't synced, a repair ends where it would have.
#[test]
fn a_repair_can_be_cut_off_anywhere() {
    let disk = sample();
    let dir = Path::new(DIR);
    let pack = |number: u32| dir.join(format!("packs/{number:08x}.pack"));
    let flip = |bad: &SimDisk, path: &Path| {
        bad.damage(path, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
    };
    let all = |bad: &SimDisk| {
        bad.remove(&dir.join("store")).expect("removes");
        flip(bad, &dir.join("catalog"));
        bad.damage(&dir.join("catalog.copy"), |bytes| bytes[20] ^= 1);
        [2, 3, 5].into_iter().for_each(|number| flip(bad, &pack(number)));
        bad.remove(&pack(4)).expect("removes");
    };
    let one = |bad: &SimDisk| flip(bad, &pack(2));
    let damages: [&dyn Fn(&SimDisk); 2] = [&all, &one];
    for damage in damages {
        let bad = copy(&disk);
        damage(&bad);
        let bad = copy(&bad);
        let whole = copy(&bad);
        let began = whole.operations();
        let report = repair(&whole);
        let operations = whole.operations() - began;
        let lost = check_repaired(&whole, &report, "not cut off");
        assert!(operations > 20 && !lost.is_empty(), "{operations} {lost:?}");
        for at in 0..operations {
            let all = [Unsynced::Dropped, Unsynced::Torn(at), Unsynced::Kept, Unsynced::Reordered(at)];
            for unsynced in all.into_iter().skip(at as usize % 2).step_by(2) {
                let what = format!("cut off at {at} of {operations}, {unsynced:?}");
                let cut = copy(&bad);
                cut.crash_after(at);
                let _ = try_repair(&cut, &ALL);
                let after = cut.after_crash(unsynced);
                let report = repair(&after);
                assert_eq!(told_lost(&report, &layers()), lost, "{what}: {report:?}");
                assert_eq!(unreadable(&opened(&after), &layers()), lost, "{what}");
                if at % 5 == 0 {
                    check_resent(&after, &lost, &what);
                }
            }
        }
    }
}

/// A store of these blocks, in one closed pack, that a layer of these files needs.
fn packed(files: &[(&str, usize)], blocks: &[&[usize]]) -> (SimDisk, Layer) {
    let sim = SimDisk::new();
    let arc: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&arc, Tuning { pack_bytes: 100_000, ..SMALL }).expect("makes a store");
    let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), noise(name, *bytes))).collect();
    let layer = Layer { files, ..Layer::small(1) };
    let objects = layer.objects();
    for numbers in blocks {
        let picked: Vec<_> = numbers.iter().map(|number| objects[*number].clone()).collect();
        store.append_block(&block(&picked)).expect("appends");
    }
    layer.send(&store).expect("commits");
    let fill: Vec<_> = (0..8).map(|n| (ObjectKind::Chunk, noise(&format!("fill {n}"), 14_000))).collect();
    for (kind, bytes) in fill {
        store.append_block(&block(&[(kind, Hash::of(&bytes), bytes)])).expect("appends");
    }
    store.checkpoint().expect("writes the index");
    drop(store);
    (sim, layer)
}

fn place_of(disk: &SimDisk, bytes: &[u8]) -> Location {
    let found = opened(disk).index_place(ObjectKind::Chunk, &Hash::of(bytes));
    found.expect("is there")
}

fn flip_at(disk: &SimDisk, pack: u32, at: u64) {
    let path = Path::new(DIR).join(format!("packs/{pack:08x}.pack"));
    disk.damage(&path, |bytes| bytes[at as usize] ^= 1);
}

/// What a pack's trailer says of a block's head and table is as good as they are.
#[test]
fn a_damaged_head_loses_nothing() {
    let (disk, layer) = packed(&[("one", 9_000), ("two", 9_000)], &[&[0, 1]]);
    let place = place_of(&disk, &layer.files[0].1);
    for at in [place.offset + 5, place.offset + 30, place.offset + 60] {
        flip_at(&disk, place.pack, at);
    }
    let report = repair(&disk);
    assert!(report.exit_code() == 1 && codes(&report).contains(&"block-damaged"), "{report:?}");
    layer.check(&opened(&disk));
}

/// Of a block that is damaged in one place, what the damage isn't in comes back; and what is whole in another pack does.
#[test]
fn objects_of_a_damaged_block_come_back_one_by_one() {
    let (disk, layer) = packed(&[("one", 9_000), ("two", 9_000)], &[&[0, 1]]);
    let place = place_of(&disk, &layer.files[1].1);
    flip_at(&disk, place.pack, place.offset + u64::from(place.block_bytes) - 10);
    let with_copy = copy(&disk);
    let report = repair(&disk);
    let lost = BTreeSet::from(["1-me/host1/two".to_owned()]);
    assert_eq!(told_lost(&report, &[]), lost, "{report:?}");
    assert_eq!(unreadable(&opened(&disk), std::slice::from_ref(&layer)), lost);
    let ranges: Vec<_> = report.lost.iter().map(|range| (range.from, range.bytes)).collect();
    assert_eq!(ranges, [(0, 9_000)]);

    // A block that somebody appended while the index knew no better.
    with_copy.remove(&Path::new(DIR).join("index.redb")).expect("removes");
    let second = block(&[layer.objects()[1].clone()]);
    let first_pack = Path::new(DIR).join(format!("packs/{:08x}.pack", place.pack));
    let original = bytes_of(&with_copy, &first_pack).expect("is there");
    with_copy.damage(&first_pack, |bytes| bytes.truncate(100));
    opened(&with_copy).append_block(&second).expect("appends what isn't there");
    opened(&with_copy).checkpoint().expect("syncs");
    with_copy.damage(&first_pack, |bytes| *bytes = original);
    with_copy.remove(&Path::new(DIR).join("index.redb")).expect("removes");
    let report = repair(&with_copy);
    assert_eq!((report.exit_code(), report.lost.len()), (1, 0), "{report:?}");
    layer.check(&opened(&with_copy));
}

/// Where a part of the catalog is in neither of the two, nothing is changed, and what comes after isn't thrown away.
#[test]
fn a_catalog_that_is_lost_in_part_stays_as_it_is() {
    let disk = sample();
    let dir = Path::new(DIR);
    let names = ["catalog", "catalog.copy", "head"];
    for (is_cut, has_head) in [(false, true), (true, true), (false, false)] {
        let bad = copy(&disk);
        if !has_head {
            // Then later batches vouch for what came before them.
            bad.remove(&dir.join("head")).expect("removes");
        }
        for name in ["catalog", "catalog.copy"] {
            bad.damage(&dir.join(name), |bytes| match is_cut {
                true => bytes.truncate(bytes.len() - 1),
                false => bytes[100] ^= 1,
            });
        }
        let before = names.map(|name| bytes_of(&bad, &dir.join(name)));
        let report = repair(&bad);
        assert_eq!((report.exit_code(), report.repaired), (4, 0), "{report:?}");
        assert!(codes(&report).iter().any(|code| code.starts_with("catalog-")), "{report:?}");
        assert_eq!(names.map(|name| bytes_of(&bad, &dir.join(name))), before);
        let arc: Arc<dyn Disk> = Arc::new(bad.clone());
        assert!(open(&arc, SMALL).is_err(), "it isn't opened as if nothing were");
    }
}

/// What comes back in parts is taken for whole only when it is, and what is lacking is known by what has come.
#[test]
fn what_comes_back_in_parts_is_whole_when_all_of_it_is_here() {
    let disk = sample();
    let dir = Path::new(DIR).join("packs");
    disk.list(&dir).expect("lists").iter().for_each(|name| disk.remove(&dir.join(name)).expect("removes"));
    assert_eq!(repair(&disk).exit_code(), 4);
    let store = opened(&disk);
    let layer = Layer::large(2);
    let hash = layer.commit().manifest;
    let lacks = |kind: ObjectKind, hash: Hash| {
        let (manifests, objects) = store.lost(1000).expect("asks");
        (manifests.contains(&layer.commit().manifest), objects.contains(&(kind, hash)))
    };
    let (mut objects, core) = (layer.objects(), Hash::of(&layer.files[3].1));
    let manifest = objects.pop().expect("it comes last");
    let recipe = objects.pop().expect("of the large file");
    assert_eq!(lacks(ObjectKind::Manifest, hash), (true, true));
    for (sent, lacking) in
        [(&manifest, (ObjectKind::Recipe, core)), (&recipe, (ObjectKind::Chunk, objects[3].1))]
    {
        store.append_block(&block(std::slice::from_ref(sent))).expect("appends");
        store.returned().expect("looks");
        assert_eq!(lacks(lacking.0, lacking.1), (true, true));
        assert!(!store.manifest_known(&hash).expect("asks"));
    }
    for (number, object) in objects.iter().enumerate() {
        assert!(lacks(ObjectKind::Chunk, Hash::of(b"")).0, "{number} of {}", objects.len());
        store.append_block(&block(std::slice::from_ref(object))).expect("appends");
        store.returned().expect("looks");
    }
    assert_eq!(lacks(ObjectKind::Manifest, hash), (false, false));
    assert!(store.manifest_known(&hash).expect("asks"));
    drop(store);
    let store = opened(&disk.after_crash(Unsynced::Dropped));
    layer.check(&store);
}

/// What is given up isn't missed any more.
#[test]
fn what_was_purged_is_no_loss() {
    let disk = sample();
    let dir = Path::new(DIR).join("packs");
    disk.list(&dir).expect("lists").iter().for_each(|name| disk.remove(&dir.join(name)).expect("removes"));
    repair(&disk);
    let store = opened(&disk);
    assert!(
        store.gc(&GcOptions { level: 1, dry_run: false }, &mut |_| true).is_err(),
        "nobody knows what it needs"
    );
    let (by, rule) = ("root".to_owned(), "by hand".to_owned());
    for (number, seq) in [(1, 1), (2, 2), (3, 3)] {
        let units = vec![(unit(number), Seq(seq))];
        store.prune(NewPrune { by: by.clone(), rule: rule.clone(), units }).expect("prunes");
        let lives = vec![UnitLife { unit: unit(number), incarnation: Incarnation::FIRST }];
        store.purge(NewPurge { by: by.clone(), lives }).expect("purges");
        store.returned().expect("looks");
        assert_eq!(store.lost(100).expect("asks").0.len(), 3 - number);
    }
    store.gc(&GcOptions { level: 1, dry_run: false }, &mut |_| true).expect("goes on");
    drop(store);
    let report = check(&disk, &ALL);
    assert!(report.is_clean(), "{:?}", report.findings);
}

/// A recipe that is lost is taken again like one that never was here.
#[test]
fn a_lost_recipe_is_taken_again() {
    let sim = SimDisk::new();
    let arc: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&arc, Tuning { pack_bytes: 200_000, ..SMALL }).expect("makes a store");
    let layer = Layer::large(1);
    for object in layer.objects() {
        store.append_block(&block(&[object])).expect("appends");
    }
    layer.send(&store).expect("commits");
    let core = Hash::of(&layer.files[3].1);
    let place = store.index_place(ObjectKind::Recipe, &core).expect("is proven");
    let filler = noise("fill", 200_000);
    store.append_block(&block(&[(ObjectKind::Chunk, Hash::of(&filler), filler)])).expect("appends");
    store.checkpoint().expect("writes the index");
    drop(store);
    flip_at(&sim, place.pack, place.offset + u64::from(place.block_bytes) - 3);
    let report = repair(&sim);
    let lost: Vec<_> =
        report.lost.iter().map(|range| (range.path.to_string(), range.from, range.bytes)).collect();
    assert_eq!(lost, [("1-me/host1/core".to_owned(), 0, 300_000)], "{report:?}");
    let store = opened(&sim);
    assert_eq!(store.index_place(ObjectKind::Recipe, &core), None);
    layer.send(&store).expect("asks for what is gone, and gets it");
    layer.check(&store);
    drop(store);
    let report = check(&sim, &ALL);
    assert!(report.is_clean(), "{:?}", report.findings);
}
