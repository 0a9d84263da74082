//! Retiring, pruning, undeleting and purging against a model that keeps every life in a list, with a host's replica that follows.

use std::sync::Arc;

use super::fixture::*;
use crate::{
    catalog::{Record, UnitLife},
    clock::ManualClock,
    demo::random::Random,
    durable::{Disk, sim::SimDisk},
    ids::{Generation, Hash, HostUuid, Incarnation, Seq, UnitId},
    journal::Journal,
    store::{NewPrune, NewPurge, NewUndelete, Store, StoreError, commit::Request},
};

const HOSTS: [HostUuid; 2] = [HOST, HostUuid([5; 16])];
const CONTENTS: u64 = 5;

#[derive(Clone, Debug, Default)]
struct Life {
    incarnation: u64,
    /// Host, generation, manifest, number.
    commits: Vec<(usize, u32, Hash, u64)>,
    pruned: bool,
    purged: u64,
}

/// A unit's lives, the present one last. One that was undone isn't there any more.
#[derive(Clone, Debug)]
struct Unit(Vec<Life>);

impl Unit {
    fn present(&mut self) -> &mut Life {
        self.0.last_mut().expect("there is always one")
    }

    fn life(&mut self, incarnation: u64) -> Option<&mut Life> {
        self.0.iter_mut().find(|life| life.incarnation == incarnation)
    }
}

struct Model {
    units: Vec<Unit>,
    /// Numbers that lives have had, also those that were undone.
    numbers: Vec<u64>,
}

impl Model {
    /// A number that some life has or had, or none.
    fn a_life(&self, random: &mut Random, unit: usize) -> u64 {
        let lives = &self.units[unit].0;
        match random.below(8) {
            0 => self.numbers[random.below(self.numbers.len() as u64) as usize],
            1..=3 => lives[random.below(lives.len() as u64) as usize].incarnation,
            _ => lives.last().expect("one").incarnation,
        }
    }

    /// Whether the last commit of a manifest isn't given up.
    fn knows(&self, manifest: &Hash) -> bool {
        let lives = self.units.iter().flat_map(|unit| &unit.0);
        let commits = lives.flat_map(|life| life.commits.iter().map(|commit| (commit, life.purged)));
        let last = commits.filter(|((_, _, of, _), _)| of == manifest).max_by_key(|((.., seq), _)| *seq);
        last.is_some_and(|((.., seq), purged)| *seq > purged)
    }
}

fn layer(random: &mut Random, number: usize, life: u64, generation: u32) -> Layer {
    let content = Layer::small(random.below(CONTENTS) as usize);
    Layer {
        unit: unit(number),
        incarnation: Incarnation(life),
        generation: Generation(generation),
        ..content
    }
}

/// What the model says of a commit, and what becomes of it there.
fn commit(model: &mut Model, store: &Store, random: &mut Random) -> Result<Record, StoreError> {
    let (host, number) = (random.below(2) as usize, random.below(model.units.len() as u64) as usize);
    let life = model.a_life(random, number);
    let last = model.units[number].life(life).and_then(|life| {
        life.commits.iter().filter(|(by, ..)| *by == host).map(|(_, generation, ..)| *generation).max()
    });
    let generation = last.unwrap_or(0) + 1 + random.below(2) as u32;
    let layer = layer(random, number, life, generation);
    let manifest = Hash::of(&layer.manifest().encode());
    for block in blocks(store, &layer.objects())? {
        store.append_block(&block)?;
    }
    let wanted = crate::store::NewCommit { host: HOSTS[host], ..layer.commit() };
    let made = store.commit(wanted);
    let Some(life) = model.units[number].life(life) else {
        assert!(matches!(made, Err(StoreError::Incarnation { .. })), "no such life: {made:?}");
        return made;
    };
    let record = made.unwrap_or_else(|e| panic!("of a life that there is: {e}"));
    life.commits.push((host, generation, manifest, record.seq.0));
    Ok(record)
}

fn end(model: &mut Model, store: &Store, random: &mut Random) -> Result<Record, StoreError> {
    let number = random.below(model.units.len() as u64) as usize;
    let unit = unit(number);
    let seen = Seq(model.units[number].present().commits.last().map_or(0, |(.., seq)| *seq));
    let stale = random.one_of(1, 5);
    let seen = if stale { Seq(seen.0 + 1) } else { seen };
    let pruned = random.one_of(2, 3);
    let made = match pruned {
        true => {
            let (by, rule) = ("root".to_owned(), "older than 9 days".to_owned());
            store.prune(NewPrune { by, rule, units: vec![(unit, seen)] })
        }
        false => retire(store, &unit, seen),
    };
    let may = !stale && seen > Seq(0);
    assert_eq!(made.is_ok(), may, "{made:?}");
    let record = made?;
    model.units[number].present().pruned = pruned;
    model.units[number].0.push(Life { incarnation: record.seq.0, ..Life::default() });
    model.numbers.push(record.seq.0);
    Ok(record)
}

fn undelete(model: &mut Model, store: &Store, random: &mut Random) -> Result<Record, StoreError> {
    let number = random.below(model.units.len() as u64) as usize;
    let life = match &model.units[number].0[..] {
        [.., before, _] if random.one_of(4, 5) => before.incarnation,
        _ => model.a_life(random, number),
    };
    let lives = &mut model.units[number];
    let may = match &lives.0[..] {
        [.., before, present] => {
            before.incarnation == life && before.purged == 0 && present.commits.is_empty()
        }
        _ => false,
    };
    let wanted = vec![UnitLife { unit: unit(number), incarnation: Incarnation(life) }];
    let made = store.undelete(NewUndelete { by: "root".to_owned(), lives: wanted });
    assert_eq!(made.is_ok(), may, "{made:?} of {life} in {lives:?}");
    let record = made?;
    lives.0.pop();
    Ok(record)
}

fn purge(model: &mut Model, store: &Store, random: &mut Random) -> Result<Record, StoreError> {
    let number = random.below(model.units.len() as u64) as usize;
    let life = model.a_life(random, number);
    let lives = &mut model.units[number];
    let present = lives.present().incarnation;
    let may = lives.life(life).is_some_and(|of| of.pruned && of.incarnation != present);
    let wanted = vec![UnitLife { unit: unit(number), incarnation: Incarnation(life) }];
    let made = store.purge(NewPurge { by: "root".to_owned(), lives: wanted });
    assert_eq!(made.is_ok(), may, "{made:?} of {life} in {lives:?}");
    let record = made?;
    lives.life(life).expect("it may").purged = record.seq.0;
    Ok(record)
}

/// Store and replica say what the model says.
fn compare(model: &Model, store: &Store, journal: &Journal, what: &str) {
    for (number, lives) in model.units.iter().enumerate() {
        let unit = unit(number);
        let (present, past) = lives.0.split_last().expect("one");
        let last = Seq(present.commits.last().map_or(0, |(.., seq)| *seq));
        let life = store.catalog.life(&unit);
        assert_eq!((life.incarnation.0, life.last), (present.incarnation, last), "{what}: {unit}");
        assert_eq!(journal.incarnation(&unit), life.incarnation, "{what}: {unit}");
        assert_eq!(numbers(&journal.layers(&unit)), numbers_of(present), "{what}: {unit}");
        let shown = journal.past_lives(&unit);
        assert_eq!(shown.len(), past.len(), "{what}: {unit}: {shown:?}");
        for (shown, model) in shown.iter().zip(past) {
            assert_eq!(shown.incarnation.0, model.incarnation, "{what}: {unit}");
            assert_eq!(numbers(&shown.layers), numbers_of(model), "{what}: {unit}");
            let said = (shown.rule.is_some(), shown.purged.map_or(0, |purged| purged.0));
            assert_eq!(said, (model.pruned, model.purged), "{what}: {unit}");
            let ended = store.catalog.ended(&unit, shown.incarnation).expect("it has ended");
            assert_eq!(ended.purged.0, model.purged, "{what}: {unit}");
        }
        for (at, host) in HOSTS.iter().enumerate() {
            let last = present.commits.iter().filter(|(by, ..)| *by == at).map(|(.., seq)| *seq).max();
            let latest = store.latest(*host, &unit).expect("reads").map(|record| record.seq.0);
            assert_eq!(latest, last, "{what}: {unit}");
        }
    }
    let manifests = model.units.iter().flat_map(|unit| &unit.0).flat_map(|life| &life.commits);
    for (_, _, manifest, seq) in manifests {
        let known = store.manifest_known(manifest).expect("asks");
        assert_eq!(known, model.knows(manifest), "{what}: the manifest of {seq}");
    }
}

/// All commits' numbers of some layers.
fn numbers(layers: &[crate::journal::LayerHead]) -> Vec<u64> {
    let mut numbers: Vec<u64> =
        layers.iter().flat_map(|layer| layer.commits.iter().map(|(_, seq)| seq.0)).collect();
    numbers.sort_unstable();
    numbers
}

fn numbers_of(life: &Life) -> Vec<u64> {
    life.commits.iter().map(|(.., seq)| *seq).collect()
}

fn follow(store: &Store, journal: &Journal) {
    let from = journal.head().map_or(Seq(0), |(_, head)| head.seq);
    let records = store.records_after(from, usize::MAX).expect("reads");
    journal.follow(store.uuid(), &records).expect("it follows");
}

/// Whatever is committed, ended, brought back and given up, in whatever order: the store, also when it is opened again, and every replica say the same
/// as a list of lives does; what can't be is refused and changes nothing.
#[test]
fn lives_are_as_a_list_of_them_says() {
    for seed in 0..12 {
        let random = &mut Random::named(seed, "lives", 0);
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let mut store = open(&disk, SMALL).expect("makes a store");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let journal = Journal::open(dir.path(), Arc::new(ManualClock::at(1_000))).expect("opens");
        let mut model = Model { units: vec![Unit(vec![Life::default()]); 3], numbers: vec![0] };
        let mut refused = 0;
        for step in 0..120 {
            let what = format!("seed {seed}, step {step}");
            let head = store.head();
            let made = match random.below(12) {
                0..=4 => commit(&mut model, &store, random),
                5..=7 => end(&mut model, &store, random),
                8..=9 => undelete(&mut model, &store, random),
                10 => purge(&mut model, &store, random),
                _ => {
                    drop(store);
                    store = open(&disk, SMALL).expect("opens");
                    follow(&store, &journal);
                    compare(&model, &store, &journal, &what);
                    continue;
                }
            };
            refused += u32::from(made.is_err());
            if let Err(error) = made {
                assert!(error.is_callers(), "{what}: {error}");
                assert_eq!(store.head(), head, "{what}");
            }
            if random.one_of(1, 3) {
                follow(&store, &journal);
                compare(&model, &store, &journal, &what);
            }
        }
        follow(&store, &journal);
        compare(&model, &store, &journal, "at the end");
        let anew = tempfile::tempdir().expect("a temporary directory");
        let all_at_once = Journal::open(anew.path(), Arc::new(ManualClock::at(1_000))).expect("opens");
        follow(&store, &all_at_once);
        compare(&model, &store, &all_at_once, "by who follows from the beginning");
        assert!((20..100).contains(&refused), "seed {seed}: {refused} of 120 were refused");
    }
}

/// Units of one record are ended, brought back and given up together or not at all, each named once.
#[test]
fn a_record_names_its_units_once_and_is_whole() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let store = open(&disk, SMALL).expect("makes a store");
    let seen: Vec<(UnitId, Seq)> =
        [1, 2].map(|n| (unit(n), Layer::small(n).send(&store).expect("commits").seq)).into();
    let prune = |units: &[(UnitId, Seq)]| {
        store.prune(NewPrune { by: "root".to_owned(), rule: "by hand".to_owned(), units: units.to_vec() })
    };
    assert!(prune(&[seen[0].clone(), seen[0].clone()]).is_err(), "twice");
    assert!(prune(&[]).is_err(), "none");
    assert!(prune(&[seen[0].clone(), (unit(3), Seq(1))]).is_err(), "one isn't there");
    assert_eq!(store.catalog.life(&unit(1)).incarnation, Incarnation::FIRST, "so none is ended");
    Layer { generation: Generation(2), ..Layer::small(2) }.publish(&store).expect("runs");
    let running = prune(&seen).expect_err("one runs").to_string();
    assert!(running.contains("running on drone1"), "{running}");
    store.withdraw(HOST, &unit(2), Generation(2));
    let pruned = prune(&seen).expect("both").seq;

    let lives = |numbers: &[usize]| -> Vec<UnitLife> {
        numbers.iter().map(|n| UnitLife { unit: unit(*n), incarnation: Incarnation::FIRST }).collect()
    };
    let next = Layer { incarnation: Incarnation(pruned.0), unit: unit(2), ..Layer::small(4) };
    next.publish(&store).expect("a new job runs");
    let undelete = |of: &[usize]| store.undelete(NewUndelete { by: "root".to_owned(), lives: lives(of) });
    let running = undelete(&[1, 2]).expect_err("a new one runs").to_string();
    assert!(running.contains("a later one is running on drone1"), "{running}");
    undelete(&[1]).expect("the other can be");
    assert_eq!(store.latest(HOST, &unit(1)).expect("reads").expect("shows").seq, seen[0].1);
    next.send(&store).expect("commits");
    let later = undelete(&[2]).expect_err("a new one is committed").to_string();
    assert!(later.contains("a later one of this name is committed"), "{later}");
    let purge = |of: &[usize]| store.purge(NewPurge { by: "root".to_owned(), lives: lives(of) });
    assert!(purge(&[1, 2]).is_err(), "one shows");
    purge(&[2]).expect("the other can be");
    let purged = undelete(&[2]).expect_err("given up").to_string();
    assert!(purged.contains("purged as"), "{purged}");
}

/// What came into one batch is judged in its order: a commit to a life that is undone just before it is refused, and a life that a commit has just
/// come into isn't undone.
#[test]
fn in_one_batch_the_first_counts() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let store = open(&disk, SMALL).expect("makes a store");
    let seen = Layer::small(1).send(&store).expect("commits").seq;
    let (by, rule) = ("root".to_owned(), "by hand".to_owned());
    let prune = NewPrune { by: by.clone(), rule, units: vec![(unit(1), seen)] };
    let between = Incarnation(store.prune(prune.clone()).expect("is as it was seen").seq.0);
    let lives = vec![UnitLife { unit: unit(1), incarnation: Incarnation::FIRST }];
    let undelete = || Request::Undelete(NewUndelete { by: by.clone(), lives: lives.clone() });
    let purge = || Request::Purge(NewPurge { by: by.clone(), lives: lives.clone() });
    let next = Layer { incarnation: between, unit: unit(1), ..Layer::small(2) };
    blocks(&store, &next.objects())
        .expect("reads")
        .iter()
        .for_each(|b| store.append_block(b).expect("appends"));
    let checked = store.check_manifest(&next.commit().manifest).expect("is whole");
    let commit = || Request::Commit(next.commit(), checked);
    let batch = |requests: Vec<Request>| -> Vec<bool> {
        let batch: Vec<_> = (1..).zip(requests).collect();
        store.run_batch(&batch).iter().map(Result::is_ok).collect()
    };
    assert_eq!(batch(vec![undelete(), commit(), purge(), undelete()]), [true, false, false, false]);
    let between = store.prune(prune.clone()).expect("it shows").seq;
    assert_eq!(batch(vec![purge(), undelete()]), [true, false]);
    let next = Layer { incarnation: Incarnation(between.0), ..next.clone() };
    let commit = || Request::Commit(next.commit(), checked);
    let again = NewPrune { units: vec![(unit(1), Seq(between.0 + 2))], ..prune };
    assert_eq!(batch(vec![commit(), Request::Prune(again), undelete()]), [true, false, false]);
}
