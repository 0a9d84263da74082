//! Lives of units: what belongs to which, across crashes and losses.

use super::*;

fn other() -> HostUuid {
    HostUuid([7; 16])
}

/// Takes a retirement in as the daemon does: the border first.
fn take(journal: &Journal, catalog: &Catalog, record: &Record, here: &[UnitId]) {
    if journal.border(catalog.store).expect("readable") < record.seq {
        journal.pass_border(catalog.store, record.seq, here).expect("writes");
    }
    journal.follow(catalog.store, std::slice::from_ref(record)).expect("it follows");
}

/// What was committed before doesn't show, what is committed afterwards does, and generations and numbers of the two never meet.
#[test]
fn what_was_retired_doesnt_show_and_isnt_forgotten() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    for (generation, content) in [(1, b"a"), (3, b"b")] {
        let record = catalog.commit(other(), &exec(), generation, Hash::of(content));
        journal.follow(catalog.store, &[record]).expect("it follows");
    }
    let retired = catalog.retire(&[exec()]);
    take(&journal, &catalog, &retired, &[]);
    assert!(journal.layers(&exec()).is_empty() && journal.replica_units().is_empty());
    assert_eq!(journal.incarnation(&exec()), Incarnation(retired.seq.0));
    let past = journal.past_lives(&exec());
    assert_eq!((past.len(), past[0].closed_by, &*past[0].closed_on), (1, retired.seq, "admin"));
    assert_eq!(past[0].layers[0].commits, [(Generation(1), Seq(1)), (Generation(3), Seq(2))]);

    catalog.incarnation = Incarnation(retired.seq.0);
    let next = catalog.commit(other(), &exec(), 1, Hash::of(b"c"));
    journal.follow(catalog.store, &[next]).expect("generations begin anew");
    catalog.incarnation = Incarnation::FIRST;
    let late = catalog.commit(other(), &exec(), 4, Hash::of(b"d"));
    journal.follow(catalog.store, &[late]).expect("of the life that has ended");
    let check = |journal: &Journal| {
        let layers = journal.layers(&exec());
        assert_eq!(layers.len(), 1);
        assert_eq!(layers[0].commits, [(Generation(1), Seq(4))]);
        let past = journal.past_lives(&exec());
        assert_eq!(
            (past[0].layers[0].generation, past[0].layers[0].manifest),
            (Generation(4), Hash::of(b"d"))
        );
        assert_eq!(journal.retired_below(&path("12-me")), [exec()]);
    };
    check(&journal);
    drop(journal);
    let journal = open(dir.path());
    check(&journal);
    catalog.incarnation = Incarnation(99);
    let never = catalog.commit(other(), &exec(), 1, Hash::of(b"e"));
    let refused = journal.follow(catalog.store, &[never]);
    assert!(matches!(refused, Err(ReplicaError::Incarnation { .. })), "{refused:?}");
}

/// A layer that was running when its unit was retired goes on in its own life, is committed, freed, and only then forgotten.
#[test]
fn a_running_layer_goes_on_in_its_own_life() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let first = commit(&journal, &mut catalog, &exec());
    journal.follow(catalog.store, std::slice::from_ref(&first)).expect("it follows");
    journal.touch(&exec()).expect("opens");
    let retired = catalog.retire(&[exec()]);
    take(&journal, &catalog, &retired, &[exec()]);
    assert!(journal.is_retired(&exec()));
    let is_running = journal.discharge(&exec());
    assert!(matches!(is_running, Err(JournalError::Illegal { .. })), "{is_running:?}");
    assert_eq!(journal.seq_of(journal.host(), &exec(), Generation(1)), Some(first.seq));

    drop(journal);
    let journal = open(dir.path());
    assert!(journal.is_retired(&exec()), "known again after a start");
    let late = commit(&journal, &mut catalog, &exec());
    journal.follow(catalog.store, &[late]).expect("it follows");
    assert!(journal.is_followed(&exec()) && journal.layers(&exec()).is_empty());
    journal.evict(&exec()).expect("committed");
    let again = copy_state(dir.path());
    journal.discharge(&exec()).expect("evicted");
    assert!(journal.get(&exec()).is_none() && journal.retired().is_empty());
    let before = open(again.path());
    assert!(before.is_retired(&exec()), "a crash before it leaves it to be done again");

    journal.complete(&[(exec(), BY_ITSELF)]).expect("a new job");
    let record = journal.get(&exec()).expect("a record");
    assert_eq!((record.incarnation, record.generation), (Incarnation(retired.seq.0), Generation(1)));
    assert!(!journal.is_retired(&exec()));
}

/// What is here without a record when the border is passed belongs to the life that ends; what comes later doesn't, also when the replica is lost
/// and the catalog is followed anew.
#[test]
fn the_border_is_passed_once() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let (before, after) = (exec(), UnitId::tree(path("13-me/host1")));
    let records: Vec<Record> = [&before, &after]
        .map(|unit| catalog.commit(other(), unit, 1, Hash::of(b"a")))
        .into_iter()
        .chain([catalog.retire(&[before.clone(), after.clone()])])
        .collect();
    journal.follow(catalog.store, &records[..2]).expect("they follow");
    take(&journal, &catalog, &records[2], std::slice::from_ref(&before));
    assert_eq!(journal.get(&before).expect("a record").incarnation, Incarnation::FIRST);
    drop(journal);
    fs::remove_file(dir.path().join("replica.redb")).expect("it was there");

    // By now a job runs in the other one.
    let journal = open(dir.path());
    for record in &records {
        take(&journal, &catalog, record, &[before.clone(), after.clone()]);
    }
    assert!(journal.is_retired(&before) && !journal.is_retired(&after));
    assert!(journal.get(&after).is_none());
    journal.complete(&[(after.clone(), BY_ITSELF)]).expect("it runs");
    assert_eq!(journal.own_incarnation(&after), Incarnation(3));
}

/// A store that was restored from a backup, which knows nothing of a retirement: what this host has goes on in the life that the store knows, behind what it
/// had committed of that.
#[test]
fn a_store_that_lost_a_retirement_gets_everything_again() {
    let (_dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let (old, backup) = (catalog.commit(journal.host(), &exec(), 2, Hash::of(b"a")), catalog.records.clone());
    let retired = catalog.retire(&[exec()]);
    journal.follow(catalog.store, &[old]).expect("it follows");
    take(&journal, &catalog, &retired, &[exec()]);
    journal.evict(&exec()).expect("committed");
    journal.discharge(&exec()).expect("evicted");
    catalog.incarnation = Incarnation(retired.seq.0);
    commit(&journal, &mut catalog, &exec());

    journal.reset_replica(catalog.store).expect("writes");
    journal.follow(catalog.store, &backup).expect("from the start");
    assert!(journal.take_back(&exec()).expect("writes"));
    assert!(!journal.take_back(&exec()).expect("nothing is to be done"));
    let record = journal.get(&exec()).expect("a record");
    assert_eq!((record.incarnation, record.state), (Incarnation::FIRST, State::Running));
    assert_eq!((record.generation, record.partial), (Generation(3), false), "all of the spool goes with it");
}
