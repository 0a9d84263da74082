//! The journal's promises, over real files.

mod comparison;
mod replica;
mod retired;
mod undeleted;

use std::{fs, path::Path};

use tempfile::TempDir;

use super::*;
use crate::{
    catalog::{Commit, RecordBody, Retirement},
    clock::ManualClock,
    ids::Incarnation,
    manifest::{Attrs, Body, Entry, Timestamp},
};

const BY_ITSELF: CompleteHow = CompleteHow { lost: false, by_hand: false };

fn path(text: &str) -> RelPath {
    text.parse().expect("a path")
}

fn exec() -> UnitId {
    UnitId::tree(path("12-me/host1"))
}

fn open(dir: &Path) -> Arc<Journal> {
    Journal::open(dir, Arc::new(ManualClock::at(1_000))).expect("the journal opens")
}

fn fresh() -> (TempDir, Arc<Journal>) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let journal = open(dir.path());
    (dir, journal)
}

fn manifest(generation: u32) -> Manifest {
    let attrs = Attrs { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp { secs: generation.into(), nanos: 0 } };
    let entry =
        Entry { path: RelPath::ROOT, attrs, body: Body::Dir, since: Generation(generation), base: Seq(0) };
    Manifest::new(vec![entry], Vec::new(), Vec::new(), Vec::new()).expect("a manifest of one directory")
}

/// A store's catalog.
struct Catalog {
    store: StoreUuid,
    head: Head,
    records: Vec<Record>,
    /// That commits are of.
    incarnation: Incarnation,
}

impl Catalog {
    fn new() -> Self {
        let store = StoreUuid::random();
        Self { store, head: Head::genesis(store), records: Vec::new(), incarnation: Incarnation::FIRST }
    }

    fn commit(&mut self, host: HostUuid, unit: &UnitId, generation: u32, manifest: Hash) -> Record {
        self.enter(host, unit, (generation, manifest), None)
    }

    /// Somebody commits a dead host's snapshot.
    fn adopt(&mut self, host: HostUuid, unit: &UnitId, generation: u32, manifest: Hash) -> Record {
        self.enter(host, unit, (generation, manifest), Some("root".to_owned()))
    }

    fn enter(
        &mut self,
        host: HostUuid,
        unit: &UnitId,
        (generation, manifest): (u32, Hash),
        adopted_by: Option<String>,
    ) -> Record {
        let body = RecordBody::Commit(Commit {
            host,
            host_name: "drone".into(),
            unit: unit.clone(),
            generation: Generation(generation),
            manifest,
            lost: false,
            bytes: 7,
            entries: 1,
            adopted_by,
            incarnation: self.incarnation,
        });
        self.push(body)
    }

    /// The next life of these units begins.
    fn retire(&mut self, units: &[UnitId]) -> Record {
        let (host, host_name, units) = (HostUuid([9; 16]), "admin".to_owned(), units.to_vec());
        self.push(RecordBody::Retire(Retirement { host, host_name, units }))
    }

    fn push(&mut self, body: RecordBody) -> Record {
        let record = Record { seq: self.head.seq.next(), prev: self.head.chain, time_ms: 5_000, body };
        self.head = self.head.follow(&record).expect("it follows");
        self.records.push(record.clone());
        record
    }
}

/// Takes the unit from where it is to Committed.
fn commit(journal: &Journal, catalog: &mut Catalog, unit: &UnitId) -> Record {
    if journal.get(unit).is_none_or(|r| r.state == State::Running) {
        journal.complete(&[(unit.clone(), BY_ITSELF)]).expect("running");
    }
    let generation = journal.get(unit).expect("complete").generation;
    let hash = journal.seal(unit, generation, &manifest(generation.0)).expect("complete");
    let record = catalog.commit(journal.host(), unit, generation.0, hash);
    journal.committed(unit, generation, &record).expect("sealed");
    record
}

fn state(journal: &Journal, unit: &UnitId) -> (State, u32) {
    let record = journal.get(unit).expect("a record");
    (record.state, record.generation.0)
}

fn copy_state(from: &Path) -> TempDir {
    let to = tempfile::tempdir().expect("a temporary directory");
    for name in ["host", "journal.redb", "replica.redb"] {
        fs::copy(from.join(name), to.path().join(name)).expect("a copy");
    }
    to
}

/// What was answered of a unit holds while the number stays, so it must rise with all that can change an answer.
#[test]
fn the_epoch_rises_with_every_change_of_records_and_replica() {
    let (_dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let mut last = journal.epoch();
    let mut rises = |what: &str| {
        assert!(journal.epoch() > last, "{what}");
        last = journal.epoch();
    };
    let record = commit(&journal, &mut catalog, &exec());
    rises("complete, sealed, committed");
    journal.follow(catalog.store, &[record]).expect("the next record");
    rises("the replica has followed");
    journal.evict(&exec()).expect("committed");
    rises("evicted");
    journal.touch(&exec()).expect("written");
    rises("running again");
    journal.touch(&exec()).expect("running");
    assert_eq!(journal.epoch(), last, "nothing has changed");
}

#[test]
fn a_layer_goes_through_its_life() {
    let (_dir, journal) = fresh();
    let mut catalog = Catalog::new();
    assert_eq!(journal.get(&exec()), None);
    assert_eq!(journal.touch(&exec()).expect("free"), Generation::FIRST);
    assert_eq!(journal.get(&exec()), None, "a running unit of the first generation has no record");

    journal.complete(&[(exec(), CompleteHow { lost: true, by_hand: true })]).expect("running");
    let record = journal.get(&exec()).expect("a record");
    assert_eq!((record.state, record.generation), (State::Complete, Generation::FIRST));
    assert!(record.lost && record.by_hand && !record.partial);
    assert_eq!((record.complete_ms, record.manifest), (Some(1_000), None));

    let hash = journal.seal(&exec(), Generation::FIRST, &manifest(1)).expect("complete");
    assert_eq!(journal.get(&exec()).expect("a record").manifest, Some(hash));
    assert_eq!(*journal.manifest(&hash).expect("readable").expect("kept"), manifest(1));

    let ack = catalog.commit(journal.host(), &exec(), 1, hash);
    journal.committed(&exec(), Generation::FIRST, &ack).expect("sealed");
    let record = journal.get(&exec()).expect("a record");
    let committed = Committed { generation: Generation(1), manifest: hash, seq: Seq(1), time_ms: 5_000 };
    assert_eq!((record.state, record.committed), (State::Committed, Some(committed)));
    assert!(record.lost, "how it came to be complete is kept");

    journal.evict(&exec()).expect("committed");
    let record = journal.get(&exec()).expect("a record");
    assert_eq!((record.state, record.partial), (State::Evicted, true));
    journal.recalled(&exec()).expect("evicted");
    let record = journal.get(&exec()).expect("a record");
    assert_eq!((record.state, record.partial, record.evicted_ms), (State::Committed, false, None));

    assert_eq!(journal.touch(&exec()).expect("writes"), Generation(2));
    let record = journal.get(&exec()).expect("a record");
    assert_eq!((record.state, record.manifest, record.committed), (State::Running, None, Some(committed)));
    assert!(!record.lost && !record.by_hand);
    assert_eq!(journal.touch(&exec()).expect("free"), Generation(2));
}

/// P6: a write after completion opens the next generation, from whatever state.
#[test]
fn a_touch_opens_the_next_generation_from_every_state() {
    for (steps, partial) in [(1, false), (2, false), (3, false), (4, true)] {
        let (dir, journal) = fresh();
        let mut catalog = Catalog::new();
        journal.complete(&[(exec(), BY_ITSELF)]).expect("running");
        if steps == 2 {
            journal.seal(&exec(), Generation::FIRST, &manifest(1)).expect("complete");
        } else if steps > 2 {
            commit(&journal, &mut catalog, &exec());
        }
        if steps == 4 {
            journal.evict(&exec()).expect("committed");
        }
        assert_eq!(journal.get(&exec()).expect("a record").state, State::ALL[steps]);
        assert_eq!(journal.touch(&exec()).expect("writes"), Generation(2));
        assert_eq!(state(&journal, &exec()), (State::Running, 2));
        assert_eq!(journal.get(&exec()).expect("a record").partial, partial);
        let copy = copy_state(dir.path());
        assert_eq!(state(&open(copy.path()), &exec()), (State::Running, 2), "durable before it returns");
    }
}

#[test]
fn transitions_out_of_turn_are_refused_and_change_nothing() {
    let (_dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let unit = exec();
    let is_illegal = |result: Result<(), JournalError>| matches!(result, Err(JournalError::Illegal { .. }));
    let seal = |g| journal.seal(&unit, Generation(g), &manifest(g)).map(drop);
    // No record.
    assert!(is_illegal(seal(1)));
    assert!(is_illegal(journal.evict(&unit)));
    assert!(is_illegal(journal.unsend(&unit)));
    assert!(is_illegal(journal.recalled(&unit)));
    journal.forget(&unit).expect("nothing to forget");
    // Complete.
    journal.complete(&[(unit.clone(), BY_ITSELF)]).expect("running");
    assert!(is_illegal(journal.complete(&[(unit.clone(), BY_ITSELF)])));
    assert!(is_illegal(journal.forget(&unit)));
    assert!(is_illegal(journal.recalled(&unit)));
    assert!(matches!(journal.evict(&unit), Err(JournalError::Stale { .. })));
    assert!(matches!(seal(2), Err(JournalError::Stale { .. })));
    assert_eq!(state(&journal, &unit), (State::Complete, 1));
    // One that can't be completed: none is.
    let other = UnitId::loose(path("12-me"));
    assert!(is_illegal(journal.complete(&[(other.clone(), BY_ITSELF), (unit.clone(), BY_ITSELF)])));
    assert_eq!(journal.get(&other), None);
    // Sealed, and an answer that is about something else.
    seal(1).expect("complete");
    let wrong = catalog.commit(journal.host(), &other, 1, Hash::of(b"m"));
    assert!(matches!(
        journal.committed(&unit, Generation(1), &wrong),
        Err(JournalError::OtherRecord { what: "unit", .. })
    ));
    let wrong = catalog.commit(HostUuid::random(), &unit, 1, Hash::of(b"m"));
    assert!(matches!(
        journal.committed(&unit, Generation(1), &wrong),
        Err(JournalError::OtherRecord { what: "host", .. })
    ));
    let wrong = catalog.commit(journal.host(), &unit, 1, Hash::of(b"m"));
    assert!(matches!(
        journal.committed(&unit, Generation(1), &wrong),
        Err(JournalError::OtherRecord { what: "manifest", .. })
    ));
    assert!(matches!(
        journal.committed(&unit, Generation(2), &wrong),
        Err(JournalError::OtherRecord { what: "generation", .. })
    ));
    assert_eq!(state(&journal, &unit), (State::Sealed, 1));
}

#[test]
fn a_seal_of_what_was_changed_meanwhile_is_stale() {
    let (_dir, journal) = fresh();
    journal.complete(&[(exec(), BY_ITSELF)]).expect("running");
    journal.touch(&exec()).expect("writes");
    let result = journal.seal(&exec(), Generation(1), &manifest(1));
    assert!(matches!(result, Err(JournalError::Stale { now: Generation(2), state: State::Running, .. })));
    journal.complete(&[(exec(), BY_ITSELF)]).expect("running");
    let result = journal.seal(&exec(), Generation(1), &manifest(1));
    assert!(matches!(result, Err(JournalError::Stale { now: Generation(2), state: State::Complete, .. })));
    journal.seal(&exec(), Generation(2), &manifest(2)).expect("the current one");
}

#[test]
fn an_answer_that_comes_late_only_says_what_is_committed() {
    let (_dir, journal) = fresh();
    let mut catalog = Catalog::new();
    journal.complete(&[(exec(), BY_ITSELF)]).expect("running");
    let hash = journal.seal(&exec(), Generation(1), &manifest(1)).expect("complete");
    let ack = catalog.commit(journal.host(), &exec(), 1, hash);
    journal.touch(&exec()).expect("writes");
    for _ in 0..2 {
        journal.committed(&exec(), Generation(1), &ack).expect("taken");
        assert_eq!(state(&journal, &exec()), (State::Running, 2));
        let committed = journal.get(&exec()).expect("a record").committed.expect("known now");
        assert_eq!((committed.generation, committed.manifest), (Generation(1), hash));
    }
    // An older answer doesn't put it back.
    commit(&journal, &mut catalog, &exec());
    journal.touch(&exec()).expect("writes");
    journal.committed(&exec(), Generation(1), &ack).expect("taken");
    let committed = journal.get(&exec()).expect("a record").committed.expect("known");
    assert_eq!(committed.generation, Generation(2));
}

#[test]
fn what_the_store_lost_is_sealed_again() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let ack = commit(&journal, &mut catalog, &exec());
    journal.unsend(&exec()).expect("whole");
    assert_eq!(state(&journal, &exec()), (State::Sealed, 1));
    let record = journal.get(&exec()).expect("a record");
    assert_eq!((record.committed, record.manifest), (None, Some(ack.commit().expect("a commit").manifest)));
    journal.committed(&exec(), Generation(1), &ack).expect("sealed");
    journal.evict(&exec()).expect("committed");
    // Another store, and later an answer of it about something older.
    let anew = Catalog::new();
    journal.reset_replica(anew.store).expect("writes");
    assert_eq!(journal.shown_layers(&exec()).len(), 1, "it goes on showing before anything is known");
    assert_eq!((journal.snapshots(), journal.runs_elsewhere(&exec())), (Vec::new(), false));
    journal.unsend(&exec()).expect("partial");
    drop(journal);
    let journal = open(dir.path());
    assert_eq!(state(&journal, &exec()), (State::Sealed, 1));
    let record = journal.get(&exec()).expect("a record");
    assert!(record.partial && record.stranded_ms.is_some());
    assert_eq!(
        record.committed.map(|c| Some(c.manifest)),
        Some(record.manifest),
        "what isn't here is as it says"
    );
    let shown = journal.shown_layers(&exec());
    assert_eq!(shown.iter().map(|layer| Some(layer.manifest)).collect::<Vec<_>>(), [record.manifest]);
    journal.touch(&exec()).expect("writes");
    assert!(journal.get(&exec()).expect("a record").stranded_ms.is_some());
}

/// Whichever store has a stranded commit again: it is as it was.
#[test]
fn a_stranded_layer_is_committed_again_by_an_answer_or_by_the_catalog() {
    for moved_on in [false, true] {
        for answered in [true, false] {
            let (_dir, journal) = fresh();
            let mut catalog = Catalog::new();
            let ack = commit(&journal, &mut catalog, &exec());
            journal.evict(&exec()).expect("committed");
            let mut anew = Catalog::new();
            journal.reset_replica(anew.store).expect("writes");
            journal.unsend(&exec()).expect("partial");
            if moved_on {
                journal.touch(&exec()).expect("writes");
            }
            // The numbers of the new store are lower.
            let manifest = ack.commit().expect("a commit").manifest;
            let again = anew.commit(journal.host(), &exec(), 1, manifest);
            match answered {
                true => journal.committed(&exec(), Generation(1), &again).expect("an answer"),
                false => journal.follow(anew.store, std::slice::from_ref(&again)).expect("it follows"),
            }
            let expected = if moved_on { (State::Running, 2) } else { (State::Committed, 1) };
            assert_eq!(state(&journal, &exec()), expected);
            let record = journal.get(&exec()).expect("a record");
            assert_eq!((record.stranded_ms, record.committed.map(|c| c.seq)), (None, Some(again.seq)));
            if answered {
                journal.follow(anew.store, &[again]).expect("it follows");
            }
            assert!(!journal.is_stranded(&exec()));
            assert_eq!(journal.shown_layers(&exec()), journal.layers(&exec()));
        }
    }
}

#[test]
fn only_what_was_never_committed_is_forgotten() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    journal.complete(&[(exec(), BY_ITSELF)]).expect("running");
    journal.touch(&exec()).expect("writes");
    journal.forget(&exec()).expect("running, never committed");
    assert_eq!((journal.get(&exec()), journal.counts().total()), (None, 0));
    commit(&journal, &mut catalog, &exec());
    journal.touch(&exec()).expect("writes");
    assert!(matches!(journal.forget(&exec()), Err(JournalError::Illegal { .. })));
    drop(journal);
    assert_eq!(state(&open(dir.path()), &exec()), (State::Running, 2));
}

#[test]
fn deleted_paths_of_a_partial_layer_are_kept_until_its_next_commit() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let (a, b) = (path("debug/a"), path("debug/b"));
    commit(&journal, &mut catalog, &exec());
    journal.set_gone(&exec(), &a, true).expect("nothing to do");
    assert!(journal.gone(&exec()).is_empty(), "a layer that isn't partial needs no record of it");

    journal.evict(&exec()).expect("committed");
    journal.touch(&exec()).expect("writes");
    for path in [&a, &b] {
        journal.set_gone(&exec(), path, true).expect("partial");
    }
    journal.set_gone(&exec(), &b, false).expect("partial");
    drop(journal);
    let journal = open(dir.path());
    assert_eq!(journal.gone(&exec()), std::slice::from_ref(&a));
    assert!(journal.is_gone(&exec(), &a) && !journal.is_gone(&exec(), &b));

    // Sealed, then touched: what is deleted after the seal isn't lost with the answer to it.
    journal.complete(&[(exec(), BY_ITSELF)]).expect("running");
    let hash = journal.seal(&exec(), Generation(2), &manifest(2)).expect("complete");
    let ack = catalog.commit(journal.host(), &exec(), 2, hash);
    journal.touch(&exec()).expect("writes");
    journal.set_gone(&exec(), &b, true).expect("partial");
    journal.committed(&exec(), Generation(2), &ack).expect("taken");
    assert_eq!(journal.gone(&exec()), [a, b]);

    // With the answer alone the replica, which is what shows, would bring them back.
    commit(&journal, &mut catalog, &exec());
    assert_eq!(journal.gone(&exec()).len(), 2);
    journal.follow(catalog.store, &catalog.records).expect("follows");
    assert!(journal.gone(&exec()).is_empty());
    drop(journal);
    assert!(open(dir.path()).gone(&exec()).is_empty());
}

#[test]
fn manifests_are_kept_as_long_as_a_record_names_them() {
    let (_dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let first = commit(&journal, &mut catalog, &exec()).commit().expect("a commit").manifest;
    let other = UnitId::tree(path("13-me/host1"));
    commit(&journal, &mut catalog, &other);
    let is_kept = |hash: &Hash| journal.db.get(MANIFESTS, &hash.0).expect("readable").is_some();
    journal.touch(&exec()).expect("writes");
    let second = commit(&journal, &mut catalog, &exec()).commit().expect("a commit").manifest;
    assert!(is_kept(&first) && is_kept(&second), "the other unit is of the first manifest, too");
    journal.touch(&other).expect("writes");
    assert!(is_kept(&first), "still the other's committed one");
    commit(&journal, &mut catalog, &other);
    assert!(!is_kept(&first) && is_kept(&second));
}

/// P7: a kill at any instant keeps the last transition that returned, and the whole of it.
#[test]
fn a_crash_after_any_transition_keeps_it() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let others = [UnitId::loose(path("12-me")), UnitId::tree(path("12-me/host2"))];
    let check = |what: &str| {
        let copy = copy_state(dir.path());
        let reopened = open(copy.path());
        let sorted = |journal: &Journal| {
            let mut units = journal.units();
            units.sort_by(|a, b| a.unit.cmp(&b.unit));
            units
        };
        assert_eq!(sorted(&reopened), sorted(&journal), "after {what}");
        assert_eq!(reopened.gone(&exec()), journal.gone(&exec()), "after {what}");
        assert_eq!((reopened.host(), reopened.store()), (journal.host(), journal.store()), "after {what}");
        assert!(!reopened.was_created());
        for record in reopened.units() {
            for hash in record.manifests() {
                assert!(reopened.manifest(&hash).expect("readable").is_some(), "manifest after {what}");
            }
        }
    };
    check("creation");
    journal
        .complete(&[(exec(), BY_ITSELF), (others[0].clone(), BY_ITSELF), (others[1].clone(), BY_ITSELF)])
        .expect("running");
    check("complete");
    let hash = journal.seal(&exec(), Generation(1), &manifest(1)).expect("complete");
    check("seal");
    let ack = catalog.commit(journal.host(), &exec(), 1, hash);
    journal.committed(&exec(), Generation(1), &ack).expect("sealed");
    check("committed");
    journal.evict(&exec()).expect("committed");
    check("evict");
    journal.touch(&exec()).expect("writes");
    check("touch");
    journal.set_gone(&exec(), &path("x"), true).expect("partial");
    check("set_gone");
    journal.recalled(&exec()).expect("partial");
    check("recalled");
    commit(&journal, &mut catalog, &exec());
    check("the second commit");
    journal.unsend(&exec()).expect("whole");
    check("unsend");
    journal.touch(&others[0]).expect("writes");
    journal.forget(&others[0]).expect("never committed");
    check("forget");
    journal.reset_replica(catalog.store).expect("writes");
    check("reset_replica");
}

#[test]
fn counts_and_states_agree() {
    let (_dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let units: Vec<_> = (0..4).map(|i| UnitId::tree(path(&format!("{i}-me/h")))).collect();
    journal.complete(&units.iter().map(|u| (u.clone(), BY_ITSELF)).collect::<Vec<_>>()).expect("running");
    commit(&journal, &mut catalog, &units[1]);
    commit(&journal, &mut catalog, &units[2]);
    journal.evict(&units[2]).expect("committed");
    journal.touch(&units[3]).expect("writes");
    let counts = journal.counts();
    assert_eq!(State::ALL.map(|state| counts.of(state)), [1, 1, 0, 1, 1]);
    for state in State::ALL {
        assert_eq!(journal.by_state(state).len(), counts.of(state), "{}", state.name());
    }
    assert_eq!(counts.total(), journal.units().len());
    journal.note_error(&units[0], Some("store is full".into()));
    assert_eq!(journal.get(&units[0]).expect("a record").last_error.as_deref(), Some("store is full"));
    assert_eq!(journal.units_below(&path("1-me")).len(), 1);
}

#[test]
fn one_process_at_a_time() {
    let (dir, journal) = fresh();
    open(&dir.path().join("a/new/one"));
    let second = Journal::open(dir.path(), Arc::new(ManualClock::at(0)));
    assert!(matches!(second, Err(JournalError::Locked { .. })));
    drop(journal);
    open(dir.path());
}

#[test]
fn the_identity_outlives_either_of_its_two_places() {
    let (dir, journal) = fresh();
    assert!(journal.was_created());
    let host = journal.host();
    drop(journal);
    for lost in ["journal.redb", "host", "replica.redb", "lock"] {
        fs::remove_file(dir.path().join(lost)).expect("it was there");
        let journal = open(dir.path());
        assert_eq!((journal.host(), journal.was_created()), (host, false), "without {lost}");
    }
    fs::write(dir.path().join("host"), format!("{}\n", HostUuid::random())).expect("written");
    let other = Journal::open(dir.path(), Arc::new(ManualClock::at(0)));
    assert!(matches!(other, Err(JournalError::OtherHost { .. })));
    fs::write(dir.path().join("host"), "nobody").expect("written");
    let none = Journal::open(dir.path(), Arc::new(ManualClock::at(0)));
    assert!(matches!(none, Err(JournalError::Damaged { .. })));
}

#[test]
fn a_damaged_journal_is_named_with_its_mend() {
    let (dir, journal) = fresh();
    let mut catalog = Catalog::new();
    commit(&journal, &mut catalog, &exec());
    drop(journal);
    let file = dir.path().join("journal.redb");
    let good = fs::read(&file).expect("there");
    let mut flipped = good.clone();
    flipped[64..320].fill(0xff);
    for bad in [vec![7; 9000], b"short".to_vec(), good[..4096].to_vec(), flipped] {
        fs::write(&file, &bad).expect("written");
        let error = Journal::open(dir.path(), Arc::new(ManualClock::at(0))).expect_err("damaged");
        assert!(matches!(error, JournalError::Damaged { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("journal.redb") && text.contains("verify --local --repair"), "{text}");
    }
    fs::write(&file, good).expect("written");
    assert_eq!(state(&open(dir.path()), &exec()), (State::Committed, 1));
}

/// A real kill: the child acknowledges transitions on its standard output, and what it acknowledged is there.
#[test]
fn a_killed_process_leaves_what_it_acknowledged() {
    use std::io::{BufRead, BufReader};
    if let Some(dir) = std::env::var_os("RESULTSFS_TEST_JOURNAL_DIR") {
        let journal = open(Path::new(&dir));
        for i in 0.. {
            journal.complete(&[(UnitId::tree(path(&format!("{i}-me/h"))), BY_ITSELF)]).expect("running");
            println!("\nacknowledged {i}");
        }
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "--nocapture", "journal::tests::a_killed_process_leaves_what_it_acknowledged"])
        .env("RESULTSFS_TEST_JOURNAL_DIR", dir.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("this test starts again");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let acknowledged = lines.filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<usize>().ok());
    let last = acknowledged.take(20).last().expect("it gets somewhere");
    child.kill().expect("it runs");
    child.wait().expect("it was killed");
    let journal = open(dir.path());
    let units = journal.counts().of(State::Complete);
    assert!(last == 19 && units > last, "{units} units after {last} was acknowledged");
    assert_eq!(journal.counts().total(), units);
}

/// What `touch` costs on the way of every write.
#[test]
fn a_touch_of_a_running_unit_writes_nothing() {
    let (dir, journal) = fresh();
    journal.complete(&[(exec(), BY_ITSELF)]).expect("running");
    journal.touch(&exec()).expect("writes");
    let changed = || fs::metadata(dir.path().join("journal.redb")).and_then(|m| m.modified()).expect("there");
    let before = changed();
    // Not even while another transaction is under way.
    let _writer = journal.writer();
    for _ in 0..1000 {
        journal.touch(&exec()).expect("free");
        journal.touch(&UnitId::tree(path("99-new/h"))).expect("free");
    }
    assert_eq!(changed(), before);
}

/// The bytes on disk are a contract with the next version: docs/format.md.
#[test]
fn keys_and_values_are_these_bytes() {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(&db::unit_key(&exec())), "31322d6d6500686f7374310000");
    assert_eq!(hex(&db::gone_key(&UnitId::loose(path("7-a")), &path("x/y"))), "0005372d610001782f79");
    let running = UnitRecord::running(UnitId::loose(path("7-a")), Incarnation::FIRST, Generation(2), 1_000);
    let sealed = UnitRecord { state: State::Sealed, manifest: Some(Hash([0xab; 32])), ..running };
    let committed =
        Committed { generation: Generation(1), manifest: Hash([0xcd; 32]), seq: Seq(9), time_ms: 5_000 };
    let record = UnitRecord { committed: Some(committed), partial: true, ..sealed };
    let (ab, cd) = ("ab".repeat(32), "cd".repeat(32));
    assert_eq!(
        hex(&db::encode(&record)),
        format!(
            "a9 00 8243372d6101 01 02 02 02 03 5820{ab} 04 84015820{cd}09191388 05 f5 06 f4 07 f4 08 1903e8"
        )
        .replace(' ', "")
    );
}

/// What must hold of every record, whatever has happened to it.
fn assert_good(record: &UnitRecord) {
    let is_sealed = record.state >= State::Sealed;
    assert_eq!(record.manifest.is_some(), is_sealed, "{record:?}");
    if record.state >= State::Committed {
        let committed = record.committed.expect("committed");
        assert_eq!((committed.generation, Some(committed.manifest)), (record.generation, record.manifest));
    }
    assert!(record.committed.is_none_or(|c| c.generation <= record.generation), "{record:?}");
    assert!(record.state != State::Evicted || record.partial, "{record:?}");
    assert!(!record.partial || record.committed.is_some(), "{record:?}");
    assert!(record.stranded_ms.is_none() || record.partial && record.state <= State::Sealed, "{record:?}");
}

/// One of everything that can be asked of a unit; what is out of turn is refused.
fn ask(journal: &Journal, catalog: &mut Catalog, unit: &UnitId, operation: u8) {
    let record = journal.get(unit);
    let generation = record.as_ref().map_or(Generation::FIRST, |r| r.generation);
    let _refused = match operation {
        0 => journal.touch(unit).map(drop),
        1 | 2 => journal.complete(&[(unit.clone(), BY_ITSELF)]),
        3 | 4 => journal.seal(unit, generation, &manifest(generation.0)).map(drop),
        5 | 6 => match record.and_then(|r| r.manifest) {
            Some(hash) => {
                let ack = catalog.commit(journal.host(), unit, generation.0, hash);
                journal.committed(unit, generation, &ack)
            }
            None => Ok(()),
        },
        7 => journal.evict(unit),
        8 => journal.recalled(unit),
        9 => journal.unsend(unit),
        10 => journal.set_gone(unit, &path("x"), true),
        _ => journal.forget(unit),
    };
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(12))]
    #[test]
    fn any_order_of_transitions_leaves_good_records(
        operations in proptest::collection::vec((0..2u8, 0..12u8), 1..60),
    ) {
        let (dir, mut journal) = fresh();
        let mut catalog = Catalog::new();
        let units = [exec(), UnitId::loose(path("12-me"))];
        let mut last = [Generation::FIRST; 2];
        for (which, operation) in operations {
            let which = usize::from(which);
            ask(&journal, &mut catalog, &units[which], operation);
            match journal.get(&units[which]) {
                Some(record) => {
                    assert_good(&record);
                    assert!(record.generation >= last[which], "generations never fall");
                    last[which] = record.generation;
                    assert!(record.partial || journal.gone(&units[which]).is_empty());
                }
                None => last[which] = Generation::FIRST,
            }
        }
        let before = units.clone().map(|unit| (journal.get(&unit), journal.gone(&unit)));
        let counts = journal.counts();
        drop(journal);
        journal = open(dir.path());
        assert_eq!(units.map(|unit| (journal.get(&unit), journal.gone(&unit))), before);
        assert_eq!(journal.counts(), counts);
    }
}

/// A host that comes back after its snapshot was adopted goes on as the generation after it, whole as it was, wherever it had got to.
#[test]
fn an_adopted_generation_is_not_used_again() {
    let (_dir, journal) = fresh();
    let mut catalog = Catalog::new();
    let (adopted, ours) = (Hash::of(&manifest(9).encode()), manifest(1));
    let units = ["1-me/running", "2-me/complete", "3-me/sealed", "4-me/same", "5-me/on"];
    let [running, complete, sealed, same, on] = units.map(|root| UnitId::tree(path(root)));
    journal.begin(&running).expect("the first");
    for unit in [&complete, &sealed, &same, &on] {
        journal.complete(&[(unit.clone(), BY_ITSELF)]).expect("running");
    }
    for unit in [&sealed, &same] {
        journal.seal(unit, Generation::FIRST, &ours).expect("complete");
    }
    journal.touch(&on).expect("the second generation");
    let mut records = Vec::new();
    for unit in [&running, &complete, &sealed, &on] {
        records.push(catalog.adopt(journal.host(), unit, 1, adopted));
    }
    records.push(catalog.adopt(journal.host(), &same, 1, Hash::of(&ours.encode())));
    journal.follow(catalog.store, &records).expect("they follow");
    for unit in [&running, &complete, &sealed] {
        let record = journal.get(unit).expect("a record");
        assert_eq!(state(&journal, unit), (State::Running, 2), "{unit}");
        assert_eq!(record.committed.map(|c| (c.generation, c.manifest)), Some((Generation(1), adopted)));
        assert!(!record.partial && record.manifest.is_none(), "what isn't in its spool was deleted");
    }
    assert_eq!(state(&journal, &same), (State::Sealed, 1), "its own commit gets that record for an answer");
    assert_eq!(state(&journal, &on), (State::Running, 2), "it was further already");
    let again = journal.get(&running);
    journal.follow(catalog.store, &records).expect("nothing new");
    journal.begin(&running).expect("it has a record");
    assert_eq!(journal.get(&running), again);
}

/// A host without a spool has an identity and the catalog, and makes no records of what it has committed itself.
#[test]
fn a_bare_journal_keeps_no_records() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let bare = || Journal::open_bare(dir.path(), Arc::new(ManualClock::at(1_000))).expect("opens");
    let journal = bare();
    let mut catalog = Catalog::new();
    let record = catalog.commit(journal.host(), &exec(), 1, Hash::of(b"a manifest"));
    journal.follow(catalog.store, &[record]).expect("it follows");
    assert_eq!((journal.get(&exec()), journal.layers(&exec()).len()), (None, 1));
    let host = journal.host();
    drop(journal);
    let journal = bare();
    assert_eq!((journal.host(), journal.units()), (host, Vec::new()));
}
