//! What the store has lost, and what it only seems to have.

use super::*;

fn other() -> HostUuid {
    HostUuid([7; 16])
}

/// A catalog of two records of another host, of which the first is followed: the replica is behind.
fn behind(journal: &Journal) -> Catalog {
    let mut catalog = Catalog::new();
    for generation in [1, 2] {
        let record = catalog.commit(other(), &UnitId::tree(path("1-me/host1")), generation, Hash::of(b"x"));
        if generation == 1 {
            journal.follow(catalog.store, &[record]).expect("it follows");
        }
    }
    catalog
}

fn lost(journal: &Journal, comparison: Comparison) -> Vec<UnitId> {
    assert!(comparison.is_due(journal));
    comparison.lost(journal).into_iter().map(|record| record.unit).collect()
}

/// What is committed in a session, and answered before the replica has come up to where the store stood when that began, isn't taken for lost.
#[test]
fn what_was_answered_before_the_replica_caught_up_isnt_lost() {
    let (_dir, journal) = fresh();
    let mut catalog = behind(&journal);
    let comparison = Comparison::begin(&journal, catalog.head);
    assert!(!comparison.is_due(&journal), "the replica is behind");
    commit(&journal, &mut catalog, &exec());
    journal.follow(catalog.store, &catalog.records[1..2]).expect("it follows");
    assert!(journal.layers(&exec()).is_empty(), "the answer was faster than the record");
    assert_eq!(lost(&journal, comparison), []);
}

/// Nor is a unit of which the store has lost a generation and has got a later one meanwhile.
#[test]
fn what_was_committed_again_in_the_session_isnt_lost() {
    let (_dir, journal) = fresh();
    commit(&journal, &mut Catalog::new(), &exec());
    let mut catalog = behind(&journal);
    let comparison = Comparison::begin(&journal, catalog.head);
    journal.touch(&exec()).expect("committed");
    commit(&journal, &mut catalog, &exec());
    journal.follow(catalog.store, &catalog.records[1..2]).expect("it follows");
    assert_eq!(lost(&journal, comparison), []);
}

/// What was committed before the session, and isn't in the catalog up to where the store stood at its beginning, is lost.
#[test]
fn what_the_catalog_doesnt_have_is_lost() {
    let (_dir, journal) = fresh();
    commit(&journal, &mut Catalog::new(), &exec());
    let catalog = behind(&journal);
    let comparison = Comparison::begin(&journal, catalog.head);
    journal.follow(catalog.store, &catalog.records[1..2]).expect("it follows");
    assert_eq!(lost(&journal, comparison), [exec()]);
}
