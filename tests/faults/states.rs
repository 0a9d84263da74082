//! `kill -9` in each state that a unit goes through: of the drone's daemon, of its mount as a whole, of the store's daemon, of ssh, and of both sides
//! at once.
//!
//! Each unit is held in its state, which `explain` tells before anything is killed; where a state is too short for that, the daemon is made to stand still
//! in it. Afterwards the times in `explain` must say that the unit came there before the kill and left after it. So no case can become another's unseen.

use std::{
    fs,
    io::{Read, Seek, Write},
    path::Path,
    thread,
    time::Instant,
};

use rustix::process::Pid;
use serde_json::Value;

use crate::{
    deaths::{DEATHS, Death, PATIENCE, Scene, Still, daemon, kill},
    harness::{assert_same, noise, picture, processes_with, text, wait_for},
    replaced::{exchange, follow_another, store_of},
    witness::Witness,
};

/// One state, and what becomes of a unit that somebody died beside while it was in it.
struct Case {
    /// The program's word for it, and what else is so.
    name: &'static str,
    /// Brings a unit there, makes sure that it is, lets them die and brings them back.
    live_through: fn(&mut Scene, Death),
    /// Of the times in `explain`, the one that is before the death, and the one that is after it.
    since: Option<&'static str>,
    until: Option<&'static str>,
    /// Where it ends, once all that is complete was offloaded.
    ends: (&'static str, u64),
    /// What the catalog has more by then.
    records: u64,
}

/// With the job's directory itself.
const JOB_RECORDS: u64 = 2;

/// What it mostly is: committed, once.
const ONCE: Case = Case {
    name: "",
    live_through: |_, _| {},
    since: None,
    until: None,
    ends: ("committed", 1),
    records: JOB_RECORDS,
};

const BEFORE_IT_IS_DESCRIBED: [Case; 3] = [
    Case { name: "running, open for writing", live_through: running_open, until: Some("complete"), ..ONCE },
    Case { name: "running, settling", live_through: running_settling, until: Some("complete"), ..ONCE },
    Case {
        name: "complete, being described",
        live_through: complete,
        since: Some("complete"),
        until: Some("sealed"),
        ..ONCE
    },
];

const SEALED: Case = Case { since: Some("sealed"), until: Some("committed"), ..ONCE };

const ON_ITS_WAY: [Case; 2] = [
    Case { name: "sealed, the results host can't be reached", live_through: sealed_waiting, ..SEALED },
    Case { name: "sealed, under way", live_through: sealed_under_way, ..SEALED },
];

const ANSWERED: [Case; 2] = [
    Case {
        name: "sealed, rejected by the store",
        live_through: sealed_rejected,
        until: Some("complete"),
        ends: ("committed", 2),
        // The other drone's, too.
        records: 2 * JOB_RECORDS,
        ..ONCE
    },
    Case { name: "sealed, committed by the store and not told yet", live_through: sealed_untold, ..SEALED },
];

const EVICTED: Case = Case { since: Some("evicted"), ends: ("evicted", 1), ..ONCE };

const IN_THE_STORE: [Case; 4] = [
    Case {
        name: "committed, its files in the spool",
        live_through: committed,
        since: Some("committed"),
        ..ONCE
    },
    Case {
        name: "running again, changed late",
        live_through: running_again,
        since: Some("running"),
        until: Some("complete"),
        ends: ("committed", 2),
        records: JOB_RECORDS + 1,
    },
    Case { name: "evicted, its files going", live_through: evicting, ..EVICTED },
    Case { name: "evicted", live_through: evicted, ..EVICTED },
];

/// A job that runs or settles, or is complete and nothing more, is committed once and as it was written, whoever dies; its writers go on.
#[test]
fn who_dies_before_a_unit_is_described_loses_nothing() {
    each(&BEFORE_IT_IS_DESCRIBED);
}

/// What waits for the results host, or is on its way there, is committed once, whoever dies.
#[test]
fn who_dies_while_a_unit_is_on_its_way_loses_nothing() {
    each(&ON_ITS_WAY);
}

/// What the store has rejected is kept until somebody mends it; what it has committed and the drone doesn't know of isn't committed twice.
#[test]
fn who_dies_while_the_stores_answer_is_on_its_way_loses_nothing() {
    each(&ANSWERED);
}

/// What is in the store stays as it is, in the spool or out of it, and what is changed there late follows as one more layer, whoever dies.
#[test]
fn who_dies_when_a_unit_is_in_the_store_loses_nothing() {
    each(&IN_THE_STORE);
}

fn each(cases: &[Case]) {
    let mut scene = Scene::new();
    for case in cases {
        for death in DEATHS {
            let what = format!("{}: death of {death:?}", case.name);
            eprintln!("{what}");
            let records = scene.records();
            scene.begin();
            (case.live_through)(&mut scene, death);
            scene.ends_as(case, &what);
            assert_eq!(scene.records() - records, case.records, "{what}: layers in the catalog");
        }
    }
    scene.everything_is_kept();
}

impl Scene {
    /// What is complete is offloaded, and the unit is where it belongs: once, and as it was written.
    fn ends_as(&mut self, case: &Case, what: &str) {
        let out = self.drone.run(["offload", "--wait", "--timeout", "60"]);
        assert!(out.status.success(), "{what}: {}", self.explained());
        let row = self.told();
        assert_eq!(
            (&row["state"], &row["generation"]),
            (&case.ends.0.into(), &case.ends.1.into()),
            "{what}: {row}"
        );
        let times = self.explained()["times_ms"].clone();
        let at = |name: &str| times[name].as_u64().unwrap_or_else(|| panic!("{what}: no {name} in {times}"));
        let (first, last) = self.struck;
        if let Some(since) = case.since {
            assert!(at(since) <= first, "{what}: struck at {first}, before it was {since}: {times}");
        }
        if let Some(until) = case.until {
            assert!(at(until) >= last, "{what}: struck at {last}, when it was {until} already: {times}");
        }
        self.own.is_kept(what, &self.drone);
        assert_same(what, &self.tree, &picture(&self.drone.mount.join(format!("{}-me", self.job))));
        self.kept.add(std::mem::take(&mut self.own));
        self.trees.insert(self.job, std::mem::take(&mut self.tree));
    }
}

fn running_open(scene: &mut Scene, death: Death) {
    scene.play();
    let path = scene.drone.mount.join(scene.at("log"));
    let open = || fs::File::options().append(true).create(true).open(&path).expect("opens");
    let mut log = open();
    log.write_all(b"before\n").expect("written");
    scene.drone.run(["offload"]);
    scene.is("running", |told| {
        told["why"].as_str().is_some_and(|why| why.contains("1 file open for writing"))
    });
    scene.strike(death);
    if death != Death::Mount {
        log.write_all(b"amid\n").expect("written, if later");
    }
    scene.comes_back(death);
    if death == Death::Mount {
        log = open();
        log.write_all(b"amid\n").expect("written");
    }
    log.write_all(b"after\n").expect("written");
    drop(log);
    let path = scene.at("log");
    scene.own.promise(&path, b"before\namid\nafter\n");
    scene.is_written();
}

fn running_settling(scene: &mut Scene, death: Death) {
    scene.play();
    scene.is_written();
    scene.is("running", |told| told["why"].as_str().is_some_and(|why| why.contains("3600 s")));
    scene.dies(death);
    scene.is("running", |told| told["why"].as_str().is_some_and(|why| why.contains("3600 s")));
}

/// Its daemon stands still while it reads a file of it for the first time, to describe it.
fn complete(scene: &mut Scene, death: Death) {
    const SPARSE_BYTES: u64 = 64 << 20;
    scene.play();
    let core = fs::File::create(scene.drone.mount.join(scene.at("core"))).expect("made");
    core.set_len(SPARSE_BYTES).expect("a hole");
    drop(core);
    scene.is_written();
    let (daemon, spooled) = (daemon(&scene.drone), scene.spooled("core"));
    wait_for("nobody to read it", PATIENCE, || !has_open(daemon, &spooled));
    let offload = thread::spawn({
        let drone = scene.drone.clone();
        move || _ = drone.run(["offload"])
    });
    wait_for_at_once(|| has_open(daemon, &spooled));
    let still = Still::new(daemon);
    assert!(has_open(daemon, &spooled), "it is still at it");
    scene.strike(death);
    drop(still);
    offload.join().expect("answered or not");
    scene.comes_back(death);
}

fn has_open(process: Pid, file: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero())).into_iter().flatten().flatten();
    open.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|place| place == *file))
}

fn sealed_waiting(scene: &mut Scene, death: Death) {
    scene.play();
    scene.is_written();
    let lab = format!("{}/", scene.lab.path().display());
    let listener = fs::read_to_string(scene.lab.path().join("sshd.pid")).expect("a file");
    let listener = listener.trim().parse().ok().and_then(Pid::from_raw).expect("a pid");
    // It takes connections, and says nothing.
    let sshd = Still::new(listener);
    let before = processes_with(&["ssh", "-F", &lab]);
    kill(&before);
    wait_for("an ssh that waits", PATIENCE, || {
        processes_with(&["ssh", "-F", &lab]).iter().any(|pid| !before.contains(pid))
    });
    scene.drone.run(["offload"]);
    let waits =
        |told: &Value| told["next"].as_str().is_some_and(|next| next.contains("when it can be reached"));
    scene.is("sealed", waits);
    scene.strike(death);
    drop(sshd);
    scene.comes_back(death);
}

fn sealed_under_way(scene: &mut Scene, death: Death) {
    scene.play();
    let large = noise(&scene.unit(), 2 << 20);
    scene.write("large", &large);
    scene.is_written();
    let sent = scene.sent();
    scene.drone.run(["offload"]);
    wait_for("some of it to be under way", PATIENCE, || scene.sent() > sent + (512 << 10));
    let store = Still::new(scene.lab.serve_pid());
    scene.is("sealed", |_| scene.drone.status()["in_transfer_units"].as_u64() > Some(0));
    scene.strike(death);
    drop(store);
    scene.comes_back(death);
}

/// While it heard nothing, another made a directory where it makes a file, and it has no right `delete`.
fn sealed_rejected(scene: &mut Scene, death: Death) {
    let other = scene.lab.machine_with("drone2", "settle_seconds: 3600\nlive_seconds: 0");
    scene.lab.mount(&other);
    let gate = scene.hears_nothing();
    let theirs = scene.at("x/theirs");
    scene.own.write_synced(&other.mount, &theirs, b"theirs\n").expect("written");
    assert!(other.run(["complete", &scene.unit()]).status.success());
    other.offload();
    scene.lab.umount(&other);
    scene.play();
    let ours = scene.drone.mount.join(scene.at("x"));
    fs::write(&ours, "ours").expect("written");
    scene.drone.run(["offload"]);
    scene.is("sealed", |_| true);
    drop(gate);
    let rejected = |told: &Value| told["why"].as_str().is_some_and(|why| why.contains("no right `delete`"));
    scene.is("sealed", rejected);
    scene.dies(death);
    scene.is("sealed", |told| {
        scene.drone.run(["offload"]);
        rejected(told)
    });
    fs::remove_file(&ours).expect("deleted");
    scene.is_written();
}

/// Of small files the drone needs to hear nothing more once it sends them: the commit is behind them. The answer is lost with the connection.
fn sealed_untold(scene: &mut Scene, death: Death) {
    const SMALL_FILES: usize = 40;
    const SMALL_BYTES: usize = 60_000;
    fs::create_dir_all(scene.drone.mount.join(scene.at("debug"))).expect("a directory");
    for file in 0..SMALL_FILES {
        let content = noise(&scene.at(&file.to_string()), SMALL_BYTES);
        scene.write(&format!("debug/{file}"), &content);
    }
    for label in ["autoserv", "parser", "archiver"] {
        scene.write(&format!(".{label}_execute"), b"1\n0\n0\n");
    }
    scene.is_written();
    let (records, sent) = (scene.records(), scene.sent());
    scene.drone.run(["offload"]);
    wait_for("some of it to be under way", PATIENCE, || scene.sent() > sent + (512 << 10));
    let gate = scene.hears_nothing();
    wait_for("the store to have committed it", PATIENCE, || scene.records() == records + JOB_RECORDS);
    scene.is("sealed", |_| true);
    scene.strike(death);
    kill(&[gate.0]);
    scene.comes_back(death);
}

fn committed(scene: &mut Scene, death: Death) {
    scene.play();
    scene.is_written();
    scene.drone.offload();
    scene.is("committed", |told| told["in_spool"] == true);
    scene.dies(death);
    scene.is("committed", |told| told["in_spool"] == true);
}

/// A layer of which only what is changed is here.
fn running_again(scene: &mut Scene, death: Death) {
    scene.play();
    scene.drone.offload();
    scene.evict();
    let (name, path) = (scene.at("status.log"), scene.drone.mount.join(scene.at("status.log")));
    let earlier = fs::read_to_string(&path).expect("read");
    let open = || fs::File::options().append(true).open(&path).expect("opens");
    let mut log = open();
    log.write_all(b"late\n").expect("written");
    scene.is("running", |told| told["generation"] == 2 && told["partial"] == true);
    scene.strike(death);
    scene.comes_back(death);
    if death == Death::Mount {
        log = open();
    }
    log.write_all(b"later\n").expect("written");
    drop(log);
    scene.own.promise(&name, format!("{earlier}late\nlater\n").as_bytes());
    scene.is_written();
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// The journal says so before the first file goes, and some of them are there yet.
fn evicting(scene: &mut Scene, death: Death) {
    const FILES: usize = 400;
    scene.play();
    (0..FILES).for_each(|file| scene.write(&format!("debug/{file}"), b""));
    scene.is_written();
    scene.drone.offload();
    let going = scene.spooled("debug");
    let (still, evict) = std::iter::repeat_with(|| {
        let all = entries(&going);
        assert!(all > FILES);
        let evict = thread::spawn({
            let (drone, unit) = (scene.drone.clone(), scene.unit());
            move || _ = drone.run(["evict", &unit])
        });
        let daemon = daemon(&scene.drone);
        wait_for_at_once(|| entries(&going) < all);
        (Still::new(daemon), evict)
    })
    .take(20)
    .find_map(|(still, evict)| {
        if entries(&going) > 0 {
            return Some((still, evict));
        }
        drop(still);
        evict.join().expect("evicted");
        assert!(scene.drone.run(["recall", &scene.unit()]).status.success());
        None
    })
    .expect("caught in the act");
    scene.strike(death);
    drop(still);
    scene.comes_back(death);
    evict.join().expect("answered or not");
    wait_for("its files to be gone", PATIENCE, || !scene.spooled("").exists());
}

/// Without a pause between two looks.
fn wait_for_at_once(happened: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < end, "waited in vain");
    }
}

fn evicted(scene: &mut Scene, death: Death) {
    scene.play();
    scene.is_written();
    scene.drone.offload();
    scene.evict();
    scene.is("evicted", |told| told["in_spool"] == false);
    scene.dies(death);
    scene.is("evicted", |told| told["in_spool"] == false);
}

/// A unit that was retired while one of its files is open on the drone: it stays for who has it open, and is gone elsewhere, whoever dies; when nobody has
/// it open any more it goes, nothing is committed for it, and its name is free.
#[test]
fn who_dies_while_a_retired_unit_is_in_use_brings_nothing_back() {
    let mut scene = Scene::new();
    scene.begin();
    scene.play();
    scene.drone.offload();
    let status_log = scene.drone.mount.join(scene.at("status.log"));
    let mut held = fs::File::open(&status_log).expect("opens");
    let mut content = String::new();
    held.read_to_string(&mut content).expect("read");
    let admin = scene.lab.machine_with_delete("admin");
    scene.lab.mount(&admin);
    admin.catch_up(&scene.drone);
    let job = format!("{}-me", scene.job);
    let out = admin.run(["retire", &job]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    scene.lab.umount(&admin);
    let records = scene.records();
    // With the mount what is open in it dies: that comes last.
    for death in [Death::Ssh, Death::Daemon, Death::Store, Death::Both, Death::Mount] {
        eprintln!("retired, in use: death of {death:?}");
        let is_retired = |told: &Value| told["why"].as_str().is_some_and(|why| why.contains("was retired"));
        scene.is("committed", is_retired);
        assert!(scene.spooled("status.log").exists(), "somebody has it open");
        scene.dies(death);
        if death != Death::Mount {
            let mut again = String::new();
            held.rewind().and_then(|()| held.read_to_string(&mut again)).expect("read");
            assert_eq!(content, again, "death of {death:?}");
        }
    }
    drop(held);
    wait_for("it to be gone", PATIENCE, || !scene.spooled("").exists() && scene.told().is_null());
    assert!(!scene.drone.mount.join(&job).exists());
    assert_eq!(scene.records(), records, "nothing was committed for it");

    scene.own = Witness::default();
    scene.own.job(&scene.drone.mount, scene.job, 8).expect("played");
    scene.own.promise_job(scene.job, 8);
    scene.is_written();
    scene.drone.offload();
    let told = scene.explained();
    assert_eq!(
        (&told["state"], &told["generation"], &told["incarnation"]),
        (&"committed".into(), &1.into(), &2.into())
    );
    assert_eq!(told["older_incarnations"][0]["layers"][0]["host"], "drone1", "{told}");
    assert_eq!(scene.records(), records + JOB_RECORDS);
    scene.kept.add(scene.own.clone());
    scene.trees.insert(scene.job, scene.tree.clone());
    scene.everything_is_kept();
}

/// An evicted unit that the store has lost stays stranded, whoever dies, and is told as that; when the store has it again everything is as it was.
#[test]
fn who_dies_while_a_unit_is_stranded_loses_no_more() {
    let mut scene = Scene::new();
    scene.begin();
    scene.play();
    scene.is_written();
    scene.drone.offload();
    scene.evict();
    let records = scene.records();
    let (kept, new) = (scene.lab.path().join("kept"), scene.lab.path().join("new"));
    let old = store_of(&scene.drone);
    exchange(&mut scene.lab, &kept, None);
    follow_another(&[&scene.drone], &old);
    let is_stranded = |told: &Value| {
        told["partial"] == true
            && told["why"].as_str().is_some_and(|why| why.contains("neither in the store nor in the spool"))
    };
    for death in DEATHS {
        eprintln!("sealed, stranded: death of {death:?}");
        scene.is("sealed", is_stranded);
        scene.dies(death);
        assert!(!scene.own.broken(&scene.drone.mount).is_empty(), "the store doesn't have it");
    }
    scene.is("sealed", is_stranded);
    exchange(&mut scene.lab, &new, Some(&kept));
    wait_for("what was lost", PATIENCE, || scene.own.broken(&scene.drone.mount).is_empty());
    scene.ends_as(&ONCE, "with the old store again");
    assert_eq!(scene.records(), records, "it was committed already");
    scene.everything_is_kept();
}
