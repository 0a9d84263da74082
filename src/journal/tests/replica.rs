//! What the replica of the catalog promises, and what comes back from it.

use super::*;

#[test]
fn manifests_from_the_store_are_checked_and_kept() {
    let (dir, journal) = fresh();
    let encoding = manifest(3).encode();
    let hash = Hash::of(&encoding);
    assert!(journal.manifest(&hash).expect("readable").is_none());
    assert!(matches!(
        journal.keep_manifest(&Hash::of(b"x"), &encoding),
        Err(JournalError::OtherManifest { .. })
    ));
    assert!(matches!(journal.keep_manifest(&Hash::of(b"x"), b"x"), Err(JournalError::Manifest { .. })));
    journal.keep_manifest(&hash, &encoding).expect("good");
    drop(journal);
    assert_eq!(*open(dir.path()).manifest(&hash).expect("readable").expect("kept"), manifest(3));
}

/// A crash may take back a tail of the replica, but never leaves records without the head that goes with them.
#[test]
fn a_crash_leaves_a_replica_that_agrees_with_itself() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    journal.reset_replica(catalog.store).expect("writes");
    let foreign = HostUuid::random();
    for i in 0..40u32 {
        let unit = UnitId::tree(path(&format!("{i}-me/host1")));
        let record = catalog.commit(foreign, &unit, 1, Hash::of(&i.to_le_bytes()));
        journal.follow(catalog.store, &[record]).expect("it follows");
        if i % 10 == 5 {
            // Manifests and records share the file; neither may take the other along.
            let encoding = manifest(i).encode();
            journal.keep_manifest(&Hash::of(&encoding), &encoding).expect("good");
        }
        let copy = copy_state(dir.path());
        let reopened = open(copy.path());
        let (_, head) = reopened.head().expect("reset was durable");
        assert_eq!(reopened.replica_unit_count() as u64, head.seq.0);
        let missing = &catalog.records[usize::try_from(head.seq.0).expect("small")..];
        reopened.follow(catalog.store, missing).expect("the tail follows");
        assert_eq!(reopened.head(), Some((catalog.store, catalog.head)));
    }
    drop(journal);
    let journal = open(dir.path());
    assert_eq!(journal.head(), Some((catalog.store, catalog.head)), "an orderly stop loses nothing");
    assert_eq!(journal.replica_units().len(), 40);
}

#[test]
fn the_replica_takes_only_what_follows() {
    let (_dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let foreign = HostUuid::random();
    for generation in [1, 3] {
        catalog.commit(foreign, &exec(), generation, Hash::of(&generation.to_le_bytes()));
    }
    let (store, records) = (catalog.store, catalog.records.clone());
    let gap = journal.follow(store, &records[1..]);
    assert!(matches!(gap, Err(ReplicaError::Gap { have: Seq(0), got: Seq(2) })));
    let mut forged = records.clone();
    forged[1].prev = Hash::of(b"another past");
    assert!(matches!(journal.follow(store, &forged), Err(ReplicaError::Gap { .. })));
    assert_eq!(journal.replica_unit_count(), 0, "all or none");
    journal.follow(store, &records).expect("it follows");
    journal.follow(store, &records).expect("known ones are passed over");
    let other = journal.follow(StoreUuid::random(), &records);
    assert!(matches!(other, Err(ReplicaError::OtherStore { .. })));
    let again = catalog.commit(foreign, &exec(), 3, Hash::of(b"m"));
    assert!(matches!(journal.follow(store, &[again]), Err(ReplicaError::Generation { .. })));

    let layers = journal.layers(&exec());
    assert_eq!(layers.len(), 1);
    assert_eq!(layers[0].commits, [(Generation(1), Seq(1)), (Generation(3), Seq(2))]);
    assert_eq!((layers[0].generation, layers[0].host_name.as_str()), (Generation(3), "drone"));
    assert_eq!((layers[0].bytes, layers[0].entries, layers[0].time_ms), (7, 1, 5_000));
    for (since, seq) in [(1, Some(1)), (2, Some(2)), (3, Some(2)), (4, None)] {
        assert_eq!(journal.seq_of(foreign, &exec(), Generation(since)), seq.map(Seq), "since {since}");
    }
    assert_eq!(journal.seq_of(HostUuid::random(), &exec(), Generation(1)), None);

    let another = Catalog::new();
    journal.reset_replica(another.store).expect("writes");
    assert_eq!(journal.head(), Some((another.store, another.head)));
    assert_eq!((journal.store(), journal.replica_unit_count()), (Some(another.store), 0));
    assert!(journal.layers(&exec()).is_empty());
}

#[test]
fn own_answers_count_before_the_replica_has_heard_of_them() {
    let (_dir, journal) = fresh();
    let mut catalog = Catalog::new();
    commit(&journal, &mut catalog, &exec());
    assert_eq!(journal.seq_of(journal.host(), &exec(), Generation(1)), Some(Seq(1)));
    assert_eq!(journal.seq_of(journal.host(), &exec(), Generation(2)), None);
    journal.follow(catalog.store, &catalog.records).expect("it follows");
    assert_eq!(journal.layers(&exec()).len(), 1, "own layers are in the replica");
    assert_eq!(state(&journal, &exec()), (State::Committed, 1));
    assert!(!journal.has_foreign(&exec()));
    let record = catalog.commit(HostUuid::random(), &exec(), 1, Hash::of(b"m"));
    journal.follow(catalog.store, &[record]).expect("it follows");
    assert!(journal.has_foreign(&exec()));
    assert!(!journal.has_foreign(&UnitId::tree(path("99-x/h"))));
}

#[test]
fn units_are_found_by_the_paths_that_they_hold() {
    let (_dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let foreign = HostUuid::random();
    let tree = |text: &str| UnitId::tree(path(text));
    let loose = |text: &str| UnitId::loose(path(text));
    for unit in [
        tree("12-me/host1"),
        tree("12-me/host1.x"),
        loose("12-me"),
        tree("12-me-too/h"),
        tree("7-whole"),
        loose("hosts"),
        loose("hosts/h"),
        tree("hosts/h/3-verify"),
        tree("12-me/\u{1}odd"),
    ] {
        catalog.commit(foreign, &unit, 1, Hash::of(b"m"));
    }
    journal.follow(catalog.store, &catalog.records).expect("they follow");
    let holding = |text: &str| {
        let mut units: Vec<_> = journal.units_holding(&path(text)).iter().map(ToString::to_string).collect();
        units.sort();
        units.join(" ")
    };
    for (text, units) in [
        ("12-me", "12-me/."),
        ("12-me/keyval", "12-me/."),
        ("12-me/host1", "12-me/. 12-me/host1"),
        ("12-me/host1/debug/x", "12-me/host1"),
        ("12-me/host2/debug/x", ""),
        ("7-whole", "7-whole"),
        ("7-whole/a/b/c/d", "7-whole"),
        ("hosts", "hosts/."),
        ("hosts/h", "hosts/. hosts/h/."),
        ("hosts/h/3-verify", "hosts/h/. hosts/h/3-verify"),
        ("hosts/h/3-verify/debug/x", "hosts/h/3-verify"),
        ("", ""),
    ] {
        assert_eq!(holding(text), units, "{text}");
    }
    let children = |text: &str| {
        let names = journal.child_roots(&path(text));
        names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(children(""), ["12-me", "12-me-too", "7-whole", "hosts"]);
    assert_eq!(children("12-me"), ["\u{1}odd", "host1", "host1.x"]);
    assert_eq!(children("hosts"), ["h"]);
    assert_eq!(children("hosts/h"), ["3-verify"]);
    assert!(children("7-whole").is_empty() && children("12-me/host1").is_empty());
    assert_eq!(journal.units_at(&path("hosts/h")).len(), 3);
    assert_eq!(journal.units_at(&RelPath::ROOT).len(), 9);
}

#[test]
fn boundaries_are_as_first_recorded_and_own_records_come_first() {
    let (_dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let job = path("7-whole");
    assert!(!journal.whole_job(&job) && !journal.adopted(&path("default")));
    catalog.commit(HostUuid::random(), &UnitId::tree(job.clone()), 1, Hash::of(b"m"));
    catalog.commit(HostUuid::random(), &UnitId::tree(path("default")), 1, Hash::of(b"m"));
    journal.follow(catalog.store, &catalog.records).expect("they follow");
    assert!(journal.whole_job(&job) && journal.adopted(&path("default")));
    journal.complete(&[(UnitId::tree(path("7-whole/host1")), BY_ITSELF)]).expect("running");
    assert!(!journal.whole_job(&job), "here it is in parts");
    journal.complete(&[(UnitId::tree(path("8-whole")), BY_ITSELF)]).expect("running");
    assert!(journal.whole_job(&path("8-whole")) && !journal.whole_job(&path("8-who")));
}

/// The replica is derived: without its file, nothing but time is lost.
#[test]
fn the_replica_can_be_deleted() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    commit(&journal, &mut catalog, &exec());
    catalog.commit(HostUuid::random(), &UnitId::tree(path("1-x/h")), 1, Hash::of(b"m"));
    journal.follow(catalog.store, &catalog.records).expect("they follow");
    let before = (journal.units(), journal.replica_units(), journal.head());
    drop(journal);
    for damage in [true, false] {
        let file = dir.path().join("replica.redb");
        if damage {
            fs::write(&file, [7; 9000]).expect("written")
        } else {
            fs::remove_file(&file).expect("there")
        }
        let journal = open(dir.path());
        assert_eq!((journal.head(), journal.store()), (None, Some(catalog.store)));
        journal.follow(catalog.store, &catalog.records).expect("from the beginning");
        assert_eq!((journal.units(), journal.replica_units(), journal.head()), before);
    }
}

/// The journal's loss costs nothing that was committed, and nothing is taken for deleted.
#[test]
fn a_lost_journal_comes_back_from_the_replica() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    commit(&journal, &mut catalog, &exec());
    journal.touch(&exec()).expect("writes");
    let ack = commit(&journal, &mut catalog, &exec());
    let foreign = UnitId::tree(path("1-x/h"));
    catalog.commit(HostUuid::random(), &foreign, 1, Hash::of(b"m"));
    journal.follow(catalog.store, &catalog.records).expect("they follow");
    drop(journal);

    let check = |journal: &Journal| {
        let record = journal.get(&exec()).expect("rebuilt");
        assert_eq!((record.state, record.generation), (State::Committed, Generation(2)));
        assert_eq!(record.committed, Some(Committed::of(&ack, ack.commit().expect("a commit"))));
        assert!(record.partial, "what isn't in the spool isn't deleted");
        assert_eq!(journal.get(&foreign), None, "another host's layer is no record here");
        assert_eq!(journal.touch(&exec()).expect("writes"), Generation(3), "the numbers go on");
    };
    fs::remove_file(dir.path().join("journal.redb")).expect("there");
    check(&open(dir.path()));

    // Without the replica too, from the store; even if the unit was completed before the store was heard.
    for is_completed in [false, true] {
        fs::remove_file(dir.path().join("journal.redb")).expect("there");
        fs::remove_file(dir.path().join("replica.redb")).expect("there");
        let journal = open(dir.path());
        assert_eq!(journal.touch(&exec()).expect("free"), Generation::FIRST);
        if is_completed {
            journal.complete(&[(exec(), BY_ITSELF)]).expect("running");
        }
        journal.follow(catalog.store, &catalog.records).expect("they follow");
        if is_completed {
            let record = journal.get(&exec()).expect("rebuilt");
            assert_eq!((record.state, record.generation), (State::Running, Generation(3)));
            assert!(
                record.partial
                    && record.committed == Some(Committed::of(&ack, ack.commit().expect("a commit")))
            );
        } else {
            check(&journal);
        }
        assert_eq!(journal.rebuild_from_replica().expect("harmless"), 0);
    }

    // Without `host` as well, this is a new host.
    for file in ["journal.redb", "host"] {
        fs::remove_file(dir.path().join(file)).expect("there");
    }
    let journal = open(dir.path());
    assert!(journal.was_created() && journal.units().is_empty() && journal.has_foreign(&exec()));
}

/// However long the catalog is, a start reads none of it, and a look what it is about.
#[test]
fn a_look_reads_the_rows_that_it_is_about() {
    const JOBS: u32 = 2000;
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let foreign = HostUuid::random();
    for i in 0..JOBS {
        let job = path(&format!("{i}-me"));
        let host = job.join(b"host1").expect("short");
        for unit in
            [UnitId::loose(job), UnitId::tree(host), UnitId::tree(path(&format!("hosts/h/{i}-verify")))]
        {
            catalog.commit(foreign, &unit, 1, Hash::of(b"m"));
        }
    }
    for records in catalog.records.chunks(1024) {
        journal.follow(catalog.store, records).expect("it follows");
    }
    drop(journal);
    let journal = open(dir.path());
    let rows = |look: &dyn Fn()| {
        let before = journal.replica.rows_read();
        look();
        journal.replica.rows_read() - before
    };
    assert_eq!(journal.replica.rows_read(), 0, "opened");
    assert_eq!(rows(&|| assert_eq!(journal.replica_unit_count(), 3 * JOBS as usize)), 0, "counted");
    let job = || assert_eq!(journal.layers(&UnitId::tree(path("77-me/host1"))).len(), 1);
    assert_eq!((rows(&job), rows(&job)), (2, 0), "a job is read once");
    assert_eq!(
        rows(&|| assert!(journal.layers(&UnitId::loose(path("77-me"))).len() == 1)),
        0,
        "and as a whole"
    );
    let nowhere = || assert!(!journal.has_foreign(&UnitId::tree(path("9999999-me/host1"))));
    assert_eq!((rows(&nowhere), rows(&nowhere)), (0, 0), "what isn't there is known, too");
    let task = || assert!(journal.has_foreign(&UnitId::tree(path("hosts/h/5-verify"))));
    assert!(rows(&task) > 1000, "a large neighbourhood is tried once");
    assert_eq!((rows(&task), rows(&task)), (1, 1), "and then read row by row");
    let names = || assert_eq!(journal.child_roots(&RelPath::ROOT).len(), JOBS as usize + 1);
    assert_eq!(rows(&names), 0, "names are keys");
}

/// A file that can't be read isn't a catalog without the unit: who asks is stopped, and the next start builds it anew.
#[test]
fn a_replica_that_is_damaged_says_nothing_and_is_built_anew() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let foreign = HostUuid::random();
    let unit = |i: u32| UnitId::tree(path(&format!("{i}-me/host1")));
    for i in 0..3000 {
        catalog.commit(foreign, &unit(i), 1, Hash::of(b"m"));
    }
    journal.follow(catalog.store, &catalog.records).expect("it follows");
    drop(journal);
    let file = dir.path().join("replica.redb");
    let mut bytes = fs::read(&file).expect("readable");
    // Neither the head nor what opening reads.
    for page in bytes.chunks_mut(4096).filter(|page| page.windows(5).any(|w| w == b"host1")) {
        page.fill(1);
    }
    fs::write(&file, &bytes).expect("written");
    let journal = open(dir.path());
    let look = || (0..3000).filter(|i| journal.layers(&unit(*i)).is_empty()).count();
    let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(look));
    assert!(looked.is_err(), "{looked:?} units were taken for absent");
    drop(journal);
    let journal = open(dir.path());
    assert_eq!(journal.head(), None);
    journal.follow(catalog.store, &catalog.records).expect("from the beginning");
    assert_eq!(journal.layers(&unit(7)).len(), 1);
}

/// The replica may be durable while what the journal made of it isn't: the next start makes it again.
#[test]
fn own_layers_that_came_just_before_a_crash_get_their_records() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let record = catalog.commit(journal.host(), &exec(), 1, Hash::of(b"m"));
    journal.reset_replica(catalog.store).expect("writes");
    journal.replica.follow(catalog.store, &[record], true).expect("it follows");
    drop(journal);
    let journal = open(dir.path());
    assert!(journal.get(&exec()).is_some_and(|record| record.partial), "its record is there");
    let before = journal.replica.rows_read();
    assert!(before > 0);
    drop(journal);
    assert_eq!(open(dir.path()).replica.rows_read(), 0, "and isn't looked for again");
}
