//! The engine as a whole, against a store in memory. What the mount would do, the tests do by hand.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    CommandError, Engine, EngineParts, Settings,
    evict::{EvictError, EvictionRules},
    testing::{MemoryStore, STORE, Spool as TestSpool, describe, path},
};
use crate::{
    chunk::ChunkParams,
    clock::{Clock, SystemClock},
    ids::{Generation, Hash, UnitId},
    journal::{Journal, State},
    layout::LayoutRules,
    manifest::Manifest,
    spool::{Spool, activity::Activity},
};

const SOON: Duration = Duration::from_secs(20);

/// A host.
struct Lab {
    spool: TestSpool,
    state: tempfile::TempDir,
    store: Arc<MemoryStore>,
    journal: Arc<Journal>,
    activity: Arc<Activity>,
    evicted: Arc<AtomicUsize>,
    settings: Settings,
    engine: Option<Engine>,
}

impl Lab {
    fn new() -> Self {
        let state = tempfile::tempdir().expect("a temporary directory");
        let journal = Journal::open(state.path(), Arc::new(SystemClock)).expect("opens");
        let store = MemoryStore::new();
        store.set_host(journal.host());
        let spool = TestSpool::new();
        let settings = Settings {
            live: None,
            rules: LayoutRules { settle_ms: 20, ..LayoutRules::default() },
            eviction: EvictionRules { keep_local_ms: u64::MAX, high_percent: 100, low_percent: 100 },
            max_transfers: 4,
            compression_level: 1,
            bandwidth_bytes_per_s: 0,
            tmp_dir: state.path().join("tmp"),
        };
        let (activity, _) = Activity::new();
        let (evicted, engine) = Default::default();
        Self { spool, state, store, journal, activity, evicted, settings, engine }
    }

    /// Starts an engine; with a store it is connected at once.
    fn start(&mut self, has_link: bool) -> Engine {
        let (activity, touched) = Activity::new();
        let evicted = self.evicted.clone();
        let engine = Engine::start(EngineParts {
            journal: self.journal.clone(),
            spool: Spool::open(self.spool.path()).expect("opens"),
            activity: activity.clone(),
            touched,
            link: has_link.then(|| self.store.clone() as _),
            contents: self.store.clone(),
            clock: Arc::new(SystemClock),
            on_evicted: Box::new(move |_| {
                evicted.fetch_add(1, Ordering::Relaxed);
            }),
            settings: self.settings.clone(),
        })
        .expect("starts");
        engine.link_up(ChunkParams::default());
        self.activity = activity;
        self.engine = Some(engine.clone());
        engine
    }

    /// Writes as the mount does.
    fn write(&self, unit: &UnitId, at: &str, bytes: &[u8]) {
        let _operation = self.activity.begin(unit);
        self.journal.touch(unit).expect("touched");
        self.activity.opened(unit, true);
        self.spool.file(at, bytes);
        self.activity.closed(unit, true);
    }

    fn finish_job(&self, unit: &UnitId) {
        for label in ["autoserv", "parser", "archiver"] {
            self.write(unit, &format!("{}/.{label}_execute", unit.root), b"1\n0\n0\n");
        }
    }

    fn place(&self, at: &str) -> PathBuf {
        self.spool.tree.place(&path(at))
    }

    fn state_of(&self, unit: &UnitId) -> Option<(State, u32)> {
        self.journal.get(unit).map(|record| (record.state, record.generation.0))
    }

    /// The catalog as far as it goes, as the connection would bring it.
    fn follow(&self) {
        let seen = self.journal.head().map_or(0, |(_, head)| head.seq.0 as usize);
        self.journal.follow(STORE, &self.store.records()[seen..]).expect("they follow");
    }

    async fn reaches(&self, unit: &UnitId, state: State, generation: u32) {
        for _ in 0..2000 {
            if self.state_of(unit) == Some((state, generation)) {
                self.follow();
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{unit} is {:?}, not {state:?} in generation {generation}", self.journal.get(unit));
    }
}

fn unit() -> UnitId {
    UnitId::tree(path("1-me/host1"))
}

/// A reader keeps the table's entry of a unit, and with it the last change; that change was judged, and opens nothing again.
#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_somebody_reads_when_it_is_committed_is_not_taken_for_changed() {
    let mut lab = Lab::new();
    let engine = lab.start(true);
    lab.activity.opened(&unit(), false);
    lab.write(&unit(), "1-me/host1/status.log", b"START\n");
    lab.finish_job(&unit());
    lab.reaches(&unit(), State::Committed, 1).await;
    for _ in 0..2000 {
        if engine.status().in_transfer == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(engine.status().in_transfer, 0);
    assert!(lab.activity.snapshot(&unit()).changed.is_some(), "the reader's entry stays");
    assert!(!engine.shared.is_changed_since_judged(&unit()));
    lab.activity.closed(&unit(), false);
    engine.shared.forget_activity(&unit());
    assert!(lab.activity.snapshot(&unit()).changed.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_job_reaches_the_store_and_so_does_a_late_line() {
    let mut lab = Lab::new();
    let engine = lab.start(true);
    lab.write(&unit(), "1-me/host1/status.log", b"START\n");
    lab.write(&UnitId::loose(path("1-me")), "1-me/keyval", b"a=b\n");
    lab.finish_job(&unit());
    lab.reaches(&unit(), State::Committed, 1).await;
    lab.reaches(&UnitId::loose(path("1-me")), State::Committed, 1).await;
    lab.write(&unit(), "1-me/host1/status.log", b"START\nABORT\n");
    lab.reaches(&unit(), State::Committed, 2).await;
    let record = lab.journal.get(&unit()).expect("a record");
    let manifest = lab.journal.manifest(&record.manifest.expect("sealed")).expect("reads").expect("kept");
    let since = |at| manifest.get(&path(at)).map(|e| (e.since.0, e.base.0));
    assert_eq!(since(".autoserv_execute"), Some((1, 0)));
    let (generation, base) = since("status.log").expect("described");
    assert!(generation == 2 && base > 0, "based on its first commit");
    assert_eq!(engine.wait(&[unit()], SOON).await, []);
    engine.stop().await;
}

/// P11: without a results host nothing is copied anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_results_host_units_are_complete_and_stay() {
    let mut lab = Lab::new();
    let engine = lab.start(false);
    lab.finish_job(&unit());
    lab.reaches(&unit(), State::Complete, 1).await;
    assert_eq!(engine.wait(&[], SOON).await, [unit()]);
    assert!(lab.store.calls().is_empty());
}

/// P8: with the results host away the queue grows, and goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_only_delays() {
    let mut lab = Lab::new();
    let engine = lab.start(true);
    engine.link_down();
    lab.finish_job(&unit());
    lab.reaches(&unit(), State::Sealed, 1).await;
    lab.store.fail_after_blocks(0);
    engine.link_up(ChunkParams::default());
    lab.reaches(&unit(), State::Committed, 1).await;
    assert_eq!(lab.store.calls().iter().filter(|call| **call == "offer").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_commit_is_told_and_tried_again() {
    let mut lab = Lab::new();
    let engine = lab.start(true);
    lab.store.reject_once();
    lab.finish_job(&unit());
    for _ in 0..2000 {
        if engine.last_error(&unit()).is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = engine.status().errors.remove(0);
    assert!(error.unit == unit() && error.text.contains("not today"), "{error:?}");
    assert_eq!(lab.state_of(&unit()), Some((State::Sealed, 1)));
    engine.offload_now(&[]).await.expect("works");
    lab.reaches(&unit(), State::Committed, 1).await;
    assert!(engine.wait(&[], SOON).await.is_empty() && engine.status().errors.is_empty());
}

/// P5: offloading now doesn't wait for the settle time, but for the job.
#[tokio::test(flavor = "multi_thread")]
async fn offload_now_takes_no_running_job() {
    let mut lab = Lab::new();
    lab.settings.rules.settle_ms = 3_600_000;
    let engine = lab.start(true);
    let (running, done) = (UnitId::tree(path("2-me/h")), unit());
    lab.write(&running, "2-me/h/.autoserv_execute", format!("{}\n", std::process::id()).as_bytes());
    lab.finish_job(&done);
    lab.activity.opened(&done, false);
    let round = loop {
        let round = engine.offload_now(&[running.clone(), done.clone()]).await.expect("works");
        if !round.completed.is_empty() {
            break round;
        }
    };
    assert_eq!(round.completed, std::slice::from_ref(&done));
    lab.reaches(&done, State::Committed, 1).await;
    assert_eq!(lab.state_of(&running), None);
    assert!(engine.why(&running).is_some_and(|why| why.contains("alive")));
    // By hand it goes.
    engine.complete(&running).await.expect("completes");
    lab.reaches(&running, State::Committed, 1).await;
}

/// An operation that asked the journal before the unit was complete, and writes after, isn't lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_across_completion_opens_the_next_generation() {
    let mut lab = Lab::new();
    let engine = lab.start(true);
    lab.spool.file("1-me/host1/file", b"old");
    let operation = lab.activity.begin(&unit());
    lab.journal.touch(&unit()).expect("touched");
    let completing = tokio::spawn(async move { engine.complete(&unit()).await });
    lab.reaches(&unit(), State::Complete, 1).await;
    lab.spool.file("1-me/host1/file", b"new");
    lab.activity.changed(&unit());
    drop(operation);
    assert!(matches!(completing.await.expect("no panic"), Err(CommandError::NotYet { .. })));
    lab.reaches(&unit(), State::Committed, 2).await;
    let record = lab.store.records().pop().expect("one");
    assert_eq!(record.commit().expect("a commit").generation, Generation(2));
}

/// What a crash left is taken up by the next start: complete units, and such as nobody has told of.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_goes_on_where_the_last_run_ended() {
    let mut lab = Lab::new();
    let first = lab.start(false);
    lab.finish_job(&unit());
    lab.reaches(&unit(), State::Complete, 1).await;
    first.stop().await;
    let unknown = UnitId::tree(path("hosts/h/7-verify"));
    lab.spool.file("hosts/h/7-verify/.autoserv_execute", b"1\n0\n0\n");
    lab.start(true);
    lab.reaches(&unit(), State::Committed, 1).await;
    lab.reaches(&unknown, State::Committed, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_dir_with_a_pidfile_in_it_is_one_unit() {
    let mut lab = Lab::new();
    let engine = lab.start(true);
    lab.write(&UnitId::tree(path("5-whole/debug")), "5-whole/debug/log", b"x");
    for label in ["autoserv", "archiver"] {
        lab.write(&UnitId::loose(path("5-whole")), &format!("5-whole/.{label}_execute"), b"1\n0\n0\n");
    }
    lab.reaches(&UnitId::tree(path("5-whole")), State::Committed, 1).await;
    assert!(lab.journal.whole_job(&path("5-whole")));
    assert_eq!(lab.journal.counts().total(), 1);
    assert_eq!(engine.units(), [UnitId::tree(path("5-whole"))]);
}

/// What was taken for units before the job's pidfile came doesn't run when the job is committed.
#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_one_unit_are_not_counted() {
    let mut lab = Lab::new();
    lab.settings.rules.settle_ms = 3_600_000;
    let engine = lab.start(true);
    let part = UnitId::tree(path("5-whole/debug"));
    lab.write(&part, "5-whole/debug/log", b"x");
    for _ in 0..2000 {
        if engine.shared.looks().units().contains(&part) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for label in ["autoserv", "archiver"] {
        lab.write(&UnitId::loose(path("5-whole")), &format!("5-whole/.{label}_execute"), b"1\n0\n0\n");
    }
    engine.offload_now(&[]).await.expect("works");
    lab.reaches(&UnitId::tree(path("5-whole")), State::Committed, 1).await;
    assert_eq!(engine.status().running, 0);
}

/// P2: nothing is freed while it is open; P1: what comes back is what was there.
#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_layer_comes_back_as_it_was() {
    let mut lab = Lab::new();
    let engine = lab.start(true);
    let loose = UnitId::loose(path("1-me"));
    fill(&lab);
    lab.write(&loose, "1-me/keyval", b"a=b\n");
    lab.finish_job(&unit());
    lab.reaches(&unit(), State::Committed, 1).await;
    lab.reaches(&loose, State::Committed, 1).await;
    let (before, loose_before) = (describe(&lab.spool, &unit()), describe(&lab.spool, &loose));
    let job_mtime = mtime(&lab.place("1-me"));

    lab.activity.opened(&unit(), false);
    let busy = engine.evict(&unit()).await;
    assert!(matches!(busy, Err(CommandError::Evict(EvictError::Busy { .. }))), "{busy:?}");
    lab.activity.closed(&unit(), false);
    engine.evict(&unit()).await.expect("evicted");
    assert!(!lab.place("1-me/host1").exists());
    assert_eq!(mtime(&lab.place("1-me")), job_mtime);
    engine.evict(&loose).await.expect("evicted");
    assert!(!lab.place("1-me").exists(), "nothing is left of the job");
    assert_eq!(lab.evicted.load(Ordering::Relaxed), 2);

    engine.recall(&unit()).await.expect("recalled");
    assert_eq!(describe(&lab.spool, &unit()), before);
    engine.recall(&loose).await.expect("recalled");
    assert_eq!(describe(&lab.spool, &loose), loose_before);
    assert_eq!(lab.state_of(&unit()), Some((State::Committed, 1)));
    assert_eq!(mtime(&lab.place("1-me")), job_mtime);
    assert!(lab.journal.get(&unit()).is_some_and(|record| !record.partial));
    let holes = fs::metadata(lab.place("1-me/host1/sparse")).expect("stat");
    assert!(holes.blocks() * 512 < holes.len() / 2, "zeros became a hole");
    assert_eq!(fs::read_dir(lab.state.path().join("tmp")).expect("reads").count(), 0);
}

fn mtime(place: &std::path::Path) -> std::time::SystemTime {
    fs::metadata(place).and_then(|found| found.modified()).expect("stat")
}

fn fill(lab: &Lab) {
    let top = lab.spool.dir("1-me/host1/debug/deep").parent().expect("a parent").to_owned();
    let mut core = vec![0; 600_000];
    blake3::Hasher::new().finalize_xof().fill(&mut core);
    lab.spool.file("1-me/host1/core", &core);
    lab.spool.file("1-me/host1/sparse", &[&b"head"[..], &vec![0; 900_000], b"tail"].concat());
    lab.spool.file("1-me/host1/debug/log", b"line\n");
    fs::hard_link(top.join("log"), top.join("log2")).expect("link");
    symlink("/nowhere", top.join("dangling")).expect("symlink");
    rustix::fs::mknodat(rustix::fs::CWD, top.join("pipe"), rustix::fs::FileType::Fifo, 0o640.into(), 0)
        .expect("mkfifo");
    fs::set_permissions(top.join("log"), fs::Permissions::from_mode(0o4600)).expect("chmod");
    fs::set_permissions(top.join("deep"), fs::Permissions::from_mode(0o500)).expect("chmod");
}

/// A late write to an evicted unit: the rest stays in the store, and a recall brings it around what is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_recall_overwrites_nothing() {
    let mut lab = Lab::new();
    let engine = lab.start(true);
    lab.write(&unit(), "1-me/host1/a", b"old");
    lab.write(&unit(), "1-me/host1/b", b"b");
    lab.finish_job(&unit());
    lab.reaches(&unit(), State::Committed, 1).await;
    engine.evict(&unit()).await.expect("evicted");
    lab.write(&unit(), "1-me/host1/a", b"new");
    lab.reaches(&unit(), State::Committed, 2).await;
    assert!(lab.journal.get(&unit()).is_some_and(|record| record.partial));
    assert!(!lab.place("1-me/host1/b").exists());
    lab.write(&unit(), "1-me/host1/a", b"newer");
    engine.recall(&unit()).await.expect("recalled");
    assert_eq!(fs::read(lab.place("1-me/host1/a")).expect("reads"), b"newer");
    assert_eq!(fs::read(lab.place("1-me/host1/b")).expect("reads"), b"b");
    lab.reaches(&unit(), State::Committed, 3).await;
    assert!(lab.journal.get(&unit()).is_some_and(|record| !record.partial));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_layers_are_evicted_and_a_cut_off_eviction_is_finished() {
    let mut lab = Lab::new();
    let engine = lab.start(true);
    lab.finish_job(&unit());
    lab.reaches(&unit(), State::Committed, 1).await;
    engine.stop().await;
    lab.settings.eviction.keep_local_ms = 0;
    let engine = lab.start(true);
    lab.reaches(&unit(), State::Evicted, 1).await;
    engine.stop().await;
    // As if the files had still been there when the power failed.
    lab.spool.file("1-me/host1/left", b"over");
    lab.start(true);
    assert!(!lab.place("1-me/host1").exists());
    assert_eq!(lab.state_of(&unit()), Some((State::Evicted, 1)));
}

/// P1: without the commit's record the tree would be without the layer for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_evicted_before_its_commit_is_followed() {
    let mut lab = Lab::new();
    let engine = lab.start(true);
    fill(&lab);
    lab.finish_job(&unit());
    while lab.state_of(&unit()) != Some((State::Committed, 1)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let early = engine.evict(&unit()).await;
    assert!(matches!(early, Err(CommandError::Evict(EvictError::NotFollowed { .. }))), "{early:?}");
    lab.follow();
    engine.evict(&unit()).await.expect("evicted");
}

/// P2: what was written past the mount (by a handle that has outlived a daemon) isn't freed, but committed.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_behind_the_journal_is_not_freed() {
    let mut lab = Lab::new();
    let engine = lab.start(true);
    fill(&lab);
    lab.finish_job(&unit());
    lab.reaches(&unit(), State::Committed, 1).await;
    lab.spool.file(&format!("{}/late.log", unit().root), b"a late line\n");
    let refused = engine.evict(&unit()).await;
    assert!(matches!(refused, Err(CommandError::Evict(EvictError::Changed { .. }))), "{refused:?}");
    lab.reaches(&unit(), State::Committed, 2).await;
    engine.evict(&unit()).await.expect("evicted");
    assert_eq!(lab.store.file(&Hash::of(b"a late line\n")), Some(b"a late line\n".to_vec()));
}

/// A lab whose running units are published every few milliseconds.
fn live_lab() -> Lab {
    let mut lab = Lab::new();
    lab.settings.live = Some(Duration::from_millis(10));
    lab.settings.rules.settle_ms = 3_600_000;
    lab
}

/// The same, with a unit that is committed with one file, `old`.
async fn live_lab_with_a_committed_unit() -> (Lab, Engine) {
    let mut lab = live_lab();
    let engine = lab.start(true);
    lab.write(&unit(), "1-me/host1/old", b"old\n");
    lab.finish_job(&unit());
    engine.offload_now(&[unit()]).await.expect("a round");
    lab.reaches(&unit(), State::Committed, 1).await;
    (lab, engine)
}

impl Lab {
    /// The manifest of the `count`th snapshot or a later one.
    async fn snapshot(&self, count: usize) -> Manifest {
        for _ in 0..2000 {
            if let Some(hash) = self.store.snapshots().get(count - 1..).and_then(|s| s.last()?.manifest) {
                return self.store.manifest_of(&hash);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} snapshots, not {count}", self.store.snapshots().len());
    }
}

/// A running unit is published when it has changed, with what is new in it; a unit that stays as it is costs no request.
#[tokio::test]
async fn a_running_unit_is_published_when_it_has_changed() {
    let mut lab = live_lab();
    let engine = lab.start(true);
    lab.write(&unit(), "1-me/host1/status.log", b"START\n");
    lab.write(&unit(), "1-me/host1/core", &vec![7; 600_000]);
    let first = lab.snapshot(1).await;
    // Quiet from here on: once the young files are known by their stamps, nothing is asked any more.
    let mut quiet = lab.store.calls().len();
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if std::mem::replace(&mut quiet, lab.store.calls().len()) == lab.store.calls().len() {
            break;
        }
    }
    let (calls, published) = (lab.store.calls().len(), lab.store.snapshots().len());
    assert!(lab.journal.get(&unit()).is_none(), "nothing is journaled");
    lab.write(&unit(), "1-me/host1/status.log", b"START\nGOOD\n");
    let second = lab.snapshot(published + 1).await;
    let content = |m: &Manifest, name: &str| m.get(&path(name)).and_then(|e| m.file_of(e)).expect("a file");
    assert_eq!(content(&second, "status.log").1, Hash::of(b"START\nGOOD\n"));
    assert_eq!(content(&second, "core"), content(&first, "core"));
    let asked = &lab.store.calls()[calls..];
    assert_eq!(asked.iter().filter(|call| **call == "block").count(), 1, "{asked:?}");

    lab.finish_job(&unit());
    engine.offload_now(&[unit()]).await.expect("a round");
    lab.reaches(&unit(), State::Committed, 1).await;
    assert_eq!(lab.store.records().len(), 1);
}

/// A unit that is removed before it was ever committed isn't seen any more.
#[tokio::test]
async fn what_is_removed_is_taken_back() {
    let mut lab = live_lab();
    lab.settings.rules.settle_ms = 50;
    let engine = lab.start(true);
    let pid = format!("{}\n", std::process::id());
    lab.write(&unit(), "1-me/host1/.autoserv_execute", pid.as_bytes());
    lab.snapshot(1).await;
    fs::remove_dir_all(lab.place("1-me/host1")).expect("removed");
    lab.activity.changed(&unit());
    for _ in 0..2000 {
        if lab.store.snapshots().last().is_some_and(|last| last.manifest.is_none()) {
            assert_eq!(engine.published(), 0);
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{:?}", lab.store.snapshots().last());
}

/// The next generation's snapshot says of what it didn't change that it is as it was committed.
#[tokio::test]
async fn a_snapshot_of_a_reopened_unit_keeps_what_is_committed() {
    let (lab, _engine) = live_lab_with_a_committed_unit().await;
    let published = lab.store.snapshots().len();
    lab.write(&unit(), "1-me/host1/new", b"new\n");
    let manifest = lab.snapshot(published + 1).await;
    let since = |name: &str| manifest.get(&path(name)).expect("an entry").since;
    assert_eq!((since("old"), since("new")), (Generation(1), Generation(2)));
    assert_eq!(lab.store.snapshots().last().expect("one").generation, Generation(2));
}

/// A unit that is opened again and stays what was committed isn't shown as running anything else.
#[tokio::test]
async fn a_reopened_unit_with_nothing_new_is_not_published() {
    let (lab, engine) = live_lab_with_a_committed_unit().await;
    let published = lab.store.snapshots().len();
    let before_ms = SystemClock.now_ms();
    tokio::time::sleep(Duration::from_millis(2)).await;
    lab.journal.touch(&unit()).expect("opened again");
    lab.activity.changed(&unit());
    for _ in 0..2000 {
        // It was looked at since.
        if engine.published_ms(&unit()).is_some_and(|ms| ms > before_ms) {
            assert_eq!(lab.store.snapshots().len(), published, "{:?}", lab.store.snapshots().last());
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("no round has looked at it");
}

/// A running unit that the store won't show is offered again in each round, and not read again for that.
#[tokio::test]
async fn what_the_store_refuses_to_show_is_not_read_again() {
    let mut lab = live_lab();
    lab.store.refuse_snapshots();
    let engine = lab.start(true);
    lab.write(&unit(), "1-me/host1/core", &vec![7; 600_000]);
    let old = std::time::SystemTime::now() - Duration::from_secs(60);
    let file = std::fs::File::options().write(true).open(lab.spool.dir("1-me/host1").join("core"));
    file.and_then(|file| file.set_modified(old)).expect("utimes");
    let refused = async |count: usize| {
        for _ in 0..2000 {
            if lab.store.refused_snapshots() >= count {
                return engine.status().counters.snapshot_bytes_hashed;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} snapshots were refused", lab.store.refused_snapshots());
    };
    // A young file's stamp says nothing yet.
    let mut hashed = refused(1).await;
    for round in 1..100 {
        let before = std::mem::replace(&mut hashed, refused(lab.store.refused_snapshots() + 3).await);
        if before == hashed {
            return;
        }
        assert!(round < 99, "{hashed} bytes were hashed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
