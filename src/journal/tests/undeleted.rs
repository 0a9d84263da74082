//! Lives that come back, and lives that are given up, on a host that has something of them.

use super::*;
use crate::{
    catalog::{Prune, Purge, Undelete, UnitLife},
    ids::HostUuid,
};

impl Catalog {
    fn prune(&mut self, units: &[UnitId]) -> Record {
        let (by, rule, units) = ("root".to_owned(), "by hand".to_owned(), units.to_vec());
        self.push(RecordBody::Prune(Prune { by, rule, units }))
    }

    fn undelete(&mut self, unit: &UnitId, incarnation: Incarnation) -> Record {
        let lives = vec![UnitLife { unit: unit.clone(), incarnation }];
        self.push(RecordBody::Undelete(Undelete { by: "root".to_owned(), lives }))
    }

    fn purge(&mut self, unit: &UnitId, incarnation: Incarnation) -> Record {
        let lives = vec![UnitLife { unit: unit.clone(), incarnation }];
        self.push(RecordBody::Purge(Purge { by: "root".to_owned(), lives }))
    }
}

/// Takes records in as the daemon does: what is here first, record by record. Which units are open again.
fn take(journal: &Journal, catalog: &Catalog, records: &[Record], here: &[UnitId]) -> Vec<UnitId> {
    let mut reopened = Vec::new();
    let store = catalog.store;
    for record in records {
        if !record.retired().is_empty() && journal.border(store).expect("readable") < record.seq {
            journal.pass_border(store, record.seq, here).expect("writes");
        }
        if !record.undeleted().is_empty() {
            let back =
                journal.bring_back(store, record.seq, record.undeleted(), |unit, _| here.contains(unit));
            reopened.extend(back.expect("writes"));
        }
        reopened.extend(journal.give_up(record.purged()).expect("writes"));
    }
    journal.follow(store, records).expect("they follow");
    reopened
}

fn other() -> HostUuid {
    HostUuid([7; 16])
}

/// A host that still has the pruned layer goes on with it, and one that has forgotten it knows it as committed.
#[test]
fn an_undeleted_layer_is_its_hosts_again() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let first = commit(&journal, &mut catalog, &exec());
    take(&journal, &catalog, std::slice::from_ref(&first), &[]);
    let pruned = catalog.prune(&[exec()]);
    take(&journal, &catalog, &[pruned], &[exec()]);
    assert!(journal.is_retired(&exec()) && journal.layers(&exec()).is_empty());
    let undeleted = catalog.undelete(&exec(), Incarnation::FIRST);
    assert_eq!(take(&journal, &catalog, &[undeleted], &[exec()]), []);
    assert!(!journal.is_retired(&exec()) && journal.is_followed(&exec()));
    assert!(journal.past_lives(&exec()).is_empty() && journal.retired_below(&path("12-me")).is_empty());
    assert_eq!(
        (state(&journal, &exec()), journal.get(&exec()).expect("it").partial),
        ((State::Committed, 1), false)
    );

    let again = catalog.prune(&[exec()]);
    take(&journal, &catalog, &[again], &[exec()]);
    journal.evict(&exec()).expect("committed");
    let half_way = copy_state(dir.path());
    journal.discharge(&exec()).expect("evicted");
    let undeleted = catalog.undelete(&exec(), Incarnation::FIRST);
    for (journal, evicted) in [(journal, false), (open(half_way.path()), true)] {
        take(&journal, &catalog, std::slice::from_ref(&undeleted), &[]);
        let record = journal.get(&exec()).expect("known again");
        let state = if evicted { State::Evicted } else { State::Committed };
        assert_eq!((record.state, record.partial, record.generation), (state, true, Generation(1)));
        assert_eq!(record.committed.expect("a commit").seq, first.seq);
        assert!(journal.is_followed(&exec()) && !journal.is_retired(&exec()));
        assert!(journal.discharge(&exec()).is_err(), "it isn't freed for being pruned any more");
        journal.touch(&exec()).expect("writable");
        assert_eq!(super::state(&journal, &exec()), (State::Running, 2));
    }
}

/// What a host has begun in the life that is undone goes on on top of what it had committed in the one that is back; with or without a record, and
/// whether or not it had anything there. After a crash on the way, too.
#[test]
fn a_run_in_a_void_life_goes_on_in_the_one_that_is_back() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let (noted, unnoted, foreign) =
        (exec(), UnitId::tree(path("13-me/host1")), UnitId::tree(path("14-me/host1")));
    let units = [noted.clone(), unnoted.clone(), foreign.clone()];
    let mut records = vec![commit(&journal, &mut catalog, &noted), commit(&journal, &mut catalog, &unnoted)];
    records.push(catalog.commit(other(), &foreign, 1, Hash::of(b"foreign")));
    let pruned = catalog.prune(&units);
    take(&journal, &catalog, &records, &[]);
    take(&journal, &catalog, std::slice::from_ref(&pruned), &units[..2]);
    for unit in &units[..2] {
        journal.evict(unit).expect("committed");
        journal.discharge(unit).expect("evicted");
    }

    // New jobs of all three names.
    journal.complete(&[(noted.clone(), BY_ITSELF)]).expect("runs");
    let hash = journal.seal(&noted, Generation(1), &manifest(1)).expect("complete");
    assert_eq!(journal.own_incarnation(&noted), Incarnation(pruned.seq.0));
    let undeleted: Vec<Record> =
        units.iter().map(|unit| catalog.undelete(unit, Incarnation::FIRST)).collect();
    let before = copy_state(dir.path());
    let check = |journal: &Journal, what: &str| {
        for unit in &units {
            let record = journal.get(unit).expect(what);
            let expected = if *unit == foreign { (1, false) } else { (2, true) };
            assert_eq!((record.generation.0, record.partial), expected, "{what}: {unit}");
            assert_eq!((record.state, record.incarnation), (State::Running, Incarnation::FIRST), "{what}");
            assert_eq!(record.committed.is_some(), *unit != foreign, "{what}: {unit}");
            assert!(!journal.is_retired(unit), "{what}: {unit}");
        }
        assert_ne!(journal.get(&noted).expect("a record").manifest, Some(hash), "described anew");
    };
    assert_eq!(take(&journal, &catalog, &undeleted, &units), units);
    check(&journal, "at once");
    drop(journal);
    check(&open(dir.path()), "after a start");

    // The journal has it, the replica hasn't: a crash in between.
    let journal = open(before.path());
    for record in &undeleted {
        journal
            .bring_back(catalog.store, record.seq, record.undeleted(), |unit, _| units.contains(unit))
            .expect("writes");
    }
    drop(journal);
    let journal = open(before.path());
    assert!(journal.is_retired(&noted), "until the record comes again");
    assert_eq!(take(&journal, &catalog, &undeleted, &units), []);
    check(&journal, "after a crash in between");

    // Later the replica is lost, and new jobs run after another prune: that border isn't passed again.
    let last = catalog.prune(&units);
    take(&journal, &catalog, std::slice::from_ref(&last), &units);
    for unit in &units {
        commit(&journal, &mut catalog, unit);
    }
    let late = &catalog.records[7..];
    take(&journal, &catalog, late, &[]);
    for unit in &units {
        journal.evict(unit).expect("committed");
        journal.discharge(unit).expect("evicted");
    }
    drop(journal);
    fs::remove_file(before.path().join("replica.redb")).expect("it was there");
    let journal = open(before.path());
    assert_eq!(take(&journal, &catalog, &catalog.records, &units), []);
    assert!(units.iter().all(|unit| journal.get(unit).is_none()), "the new jobs are the next life's");
    assert!(units.iter().all(|unit| journal.own_incarnation(unit) == Incarnation(last.seq.0)));
}

/// What can't be named any more isn't kept: a partial layer with something that isn't committed is what is here, once its life is given up.
#[test]
fn a_late_change_of_a_purged_life_is_all_that_is_left_of_it() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let (changed, whole) = (exec(), UnitId::tree(path("13-me/host1")));
    let records = [commit(&journal, &mut catalog, &changed), commit(&journal, &mut catalog, &whole)];
    take(&journal, &catalog, &records, &[]);
    journal.evict(&changed).expect("committed");
    journal.touch(&changed).expect("a late line");
    journal.complete(&[(changed.clone(), BY_ITSELF)]).expect("runs");
    journal.seal(&changed, Generation(2), &manifest(2)).expect("complete");
    let pruned = catalog.prune(&[changed.clone(), whole.clone()]);
    take(&journal, &catalog, &[pruned], &[changed.clone(), whole.clone()]);
    let purges = [&changed, &whole].map(|unit| catalog.purge(unit, Incarnation::FIRST));
    assert_eq!(take(&journal, &catalog, &purges, &[]), std::slice::from_ref(&changed));
    assert_eq!(take(&journal, &catalog, &purges, &[]), [], "once");
    let check = |journal: &Journal| {
        let record = journal.get(&changed).expect("a record");
        assert_eq!((record.state, record.generation, record.partial), (State::Running, Generation(3), false));
        assert_eq!(state(journal, &whole), (State::Committed, 1), "which is freed");
        let past = journal.past_lives(&changed).pop().expect("a life");
        assert_eq!((past.purged, past.rule.as_deref()), (Some(purges[0].seq), Some("by hand")));
        assert!(past.is_given_up(&past.layers[0]));
    };
    check(&journal);
    drop(journal);
    let journal = open(dir.path());
    check(&journal);
    let late = commit(&journal, &mut catalog, &changed);
    take(&journal, &catalog, &[late], &[]);
    let past = journal.past_lives(&changed).pop().expect("a life");
    assert!(!past.is_given_up(&past.layers[0]), "what came after isn't");
    assert_eq!(past.layers[0].generation, Generation(3));
}
