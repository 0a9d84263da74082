//! A results host that isn't the one it was: an empty one, or yesterday's copy.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::Value;

use crate::{
    harness::{Lab, Machine, run, text, wait_for},
    witness::{Witness, unit_of},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn state(machine: &Machine, job: u32) -> String {
    let unit = unit_of(job);
    let jobs: Vec<Value> = machine.json(["jobs", &format!("{job}-me")]);
    let found = jobs.into_iter().find(|row| row["unit"] == unit.as_str());
    found.and_then(|row| Some(row["state"].as_str()?.to_owned())).unwrap_or_default()
}

pub fn store_of(machine: &Machine) -> Value {
    machine.status()["connection"]["store"].clone()
}

pub fn follow_another(machines: &[&Machine], old: &Value) {
    for machine in machines {
        wait_for("another store to be followed", PATIENCE, || store_of(machine) != *old);
    }
}

fn evict(machine: &Machine, job: u32) {
    let out = machine.run(["evict", &unit_of(job)]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
}

/// The drone's own layer, which it has freed and the store has lost: its names are there, reading it is an error, and everybody who asks is told.
fn is_told_as_lost(drone: &Machine, job: u32, freed: &Witness) {
    let unit = unit_of(job);
    let broken = freed.broken(&drone.mount);
    assert!(!broken.is_empty() && broken.iter().all(|line| line.contains("os error 5")), "{broken:#?}");
    assert_eq!(fs::read_dir(drone.mount.join(&unit)).expect("lists").count(), 5);
    let other = fs::metadata(drone.mount.join(&unit).join("what never was")).expect_err("isn't there");
    assert_eq!(other.kind(), std::io::ErrorKind::NotFound, "what is known is known: {other}");
    let why = text(&drone.run(["explain", &unit]).stdout);
    assert!(why.contains("sealed") && why.contains("neither in the store nor in the spool"), "{why}");
    let health = drone.run(["health"]);
    assert_eq!(health.status.code(), Some(1));
    assert!(text(&health.stdout).contains(&unit), "{}", text(&health.stdout));
    let verified = drone.run(["verify", "--local"]);
    assert_eq!(verified.status.code(), Some(4));
    assert!(text(&verified.stdout).contains("commit-lost"), "{}", text(&verified.stdout));
}

/// Another store, or none, stands where the store was. Sessions come all the while, and may find the one or the other.
pub fn exchange(lab: &mut Lab, away: &Path, other: Option<&Path>) {
    lab.close_store();
    fs::rename(lab.store(), away).expect("moved away");
    lab.close_store();
    if let Some(other) = other {
        copy(other, &lab.store());
    }
    lab.start_serve();
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// The results host's disk is exchanged for an empty one: what drones still hold is committed to the new store without anybody's doing; of what they
/// had freed the loss is told, reading it is an error, and when the old disk is back everything is there.
#[test]
fn an_empty_store_gets_what_drones_still_hold() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let (drone, reader, results) = (lab.machine("drone1"), lab.machine("drone2"), lab.machine("results"));
    lab.mount(&drone);
    lab.mount(&reader);
    let (mut held, mut freed) = (Witness::default(), Witness::default());
    // The last one's number is beyond all that the new store will have given.
    for job in 1..=4 {
        held.job(&drone.mount, job, 1).expect("played");
        drone.offload();
    }
    (1..=3).for_each(|job| held.promise_job(job, 1));
    freed.promise_job(4, 1);
    evict(&drone, 4);
    reader.catch_up(&drone);

    let kept = lab.path().join("the disk that was taken out");
    let old = store_of(&drone);
    exchange(&mut lab, &kept, None);
    follow_another(&[&drone, &reader], &old);
    wait_for("what the drone holds to be committed anew", PATIENCE, || {
        (1..=3).all(|job| state(&drone, job) == "committed")
    });
    held.is_kept("with the new store", &drone);
    wait_for("the reader to have all of it", PATIENCE, || held.broken(&reader.mount).is_empty());
    is_told_as_lost(&drone, 4, &freed);
    let verified = results.run(["verify", "--store", "--read-data"]);
    assert_eq!(verified.status.code(), Some(0), "{}", text(&verified.stdout));

    let new = lab.path().join("the new disk");
    exchange(&mut lab, &new, Some(&kept));
    wait_for("the old store to be followed", PATIENCE, || {
        freed.broken(&drone.mount).is_empty() && freed.broken(&reader.mount).is_empty()
    });
    for machine in [&drone, &reader] {
        held.is_kept("with the old store again", machine);
    }
    let verified = drone.run(["verify", "--local", "--read-data"]);
    assert_eq!(verified.status.code(), Some(0), "{}", text(&verified.stdout));
}

/// What was evicted is changed late, and the store was killed since: it has to prove again what it has of large files, and the drone can't send it.
#[test]
fn a_late_line_of_an_evicted_job_is_committed_after_the_store_was_killed() {
    let mut lab = Lab::new(Duration::from_secs(100));
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    let mut held = Witness::default();
    held.job(&drone.mount, 1, 2).expect("played");
    drone.offload();
    evict(&drone, 1);
    lab.kill_serve();
    lab.start_serve();
    held.promise_job(1, 2);
    held.write_synced(&drone.mount, &format!("{}/late", unit_of(1)), b"late").expect("written");
    let out = drone.run(["offload", "--wait", "--timeout", "60"]);
    assert!(out.status.success(), "{}", text(&drone.run(["explain", &unit_of(1)]).stdout));
    held.is_kept("afterwards", &drone);
}

/// The results host is restored from yesterday's copy: what was committed since comes again from the drones that hold it, what they had freed is
/// told as lost, and nobody sees old names in place of new ones.
#[test]
fn a_store_of_yesterday_gets_todays_again() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let (drone, reader, results) = (lab.machine("drone1"), lab.machine("drone2"), lab.machine("results"));
    lab.mount(&drone);
    lab.mount(&reader);
    let (mut held, mut freed) = (Witness::default(), Witness::default());
    for job in 1..=2 {
        held.job(&drone.mount, job, 2).expect("played");
    }
    drone.offload();
    evict(&drone, 1);
    (1..=2).for_each(|job| held.promise_job(job, 2));
    let (yesterday, original) = (lab.path().join("yesterday"), lab.path().join("original"));
    lab.close_store();
    fs::rename(lab.store(), &original).expect("moved away");
    lab.close_store();
    copy(&original, &yesterday);
    copy(&original, &lab.store());
    lab.start_serve();

    for job in 3..=5 {
        held.job(&drone.mount, job, 2).expect("played");
    }
    // A late line of a job that the copy has, too.
    let late = b"a late line\n";
    held.write_synced(&drone.mount, &format!("{}/late", unit_of(2)), late).expect("written");
    held.write_synced(&drone.mount, &format!("{}/late", unit_of(1)), late).expect("written");
    drone.offload();
    evict(&drone, 5);
    (3..=4).for_each(|job| held.promise_job(job, 2));
    freed.promise_job(5, 2);
    reader.catch_up(&drone);
    held.is_kept("before", &reader);

    let today = lab.path().join("today");
    exchange(&mut lab, &today, Some(&yesterday));
    for machine in [&drone, &reader] {
        wait_for("yesterday's catalog to be followed", PATIENCE, || {
            let log = fs::read_to_string(machine.state.join("daemon.log")).expect("a log");
            log.contains("isn't the one that was followed")
        });
    }
    wait_for("today's jobs to be committed anew", PATIENCE, || {
        (3..=4).all(|job| state(&drone, job) == "committed") && drone.status()["connection"]["state"] == "up"
    });
    held.is_kept("with yesterday's store", &drone);
    wait_for("the reader to have all of it", PATIENCE, || held.broken(&reader.mount).is_empty());
    is_told_as_lost(&drone, 5, &freed);
    let verified = results.run(["verify", "--store", "--read-data"]);
    assert_eq!(verified.status.code(), Some(0), "{}", text(&verified.stdout));

    // Somebody finds a copy of what was lost, and the rest is given up.
    let unit = unit_of(5);
    freed.job(&drone.mount, 5, 2).expect("written again");
    drone.offload();
    wait_for("the reader to have all of it", PATIENCE, || freed.broken(&reader.mount).is_empty());
    assert_eq!(state(&drone, 5), "committed", "{unit}");
    for machine in [&drone, &results] {
        let verified = machine.run(["verify", "--read-data"]);
        assert_eq!(verified.status.code(), Some(0), "{}", text(&verified.stdout));
    }
}

/// As docs/admin.md says it: what tells where the catalog stands first, then the catalog, then what it speaks of.
fn back_up(store: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    let script = r#"set -e
for part in store store.copy head catalog.copy catalog packs reads lost; do
    [ ! -e "$1/$part" ] || rsync -a "$1/$part" "$2/"
done"#;
    run(Command::new("sh").args(["-c", script, "sh"]).args([store, to]));
}

/// A copy of the store's files that is made while drones upload is a store of that time: nothing that was committed before it began is missing.
#[test]
fn a_backup_of_a_store_at_work_is_a_store() {
    let mut lab = Lab::with_store(Duration::from_secs(200), "pack_bytes=1000000");
    let (drone, results) = (lab.machine("drone1"), lab.machine("results"));
    lab.mount(&drone);
    let mut before = Witness::default();
    for job in 1..=5 {
        before.job(&drone.mount, job, 8).expect("played");
    }
    drone.offload();
    (1..=5).for_each(|job| before.promise_job(job, 8));
    let copies = std::thread::scope(|scope| {
        let uploads = scope.spawn(|| {
            for job in 6..=40 {
                Witness::default().job(&drone.mount, job, 8).expect("played");
                drone.run(["offload"]);
            }
            drone.offload();
        });
        let mut copies = 0;
        while !uploads.is_finished() || copies < 3 {
            copies += 1;
            // Over the one before, as rsync is used.
            back_up(&lab.store(), &lab.path().join("backup"));
            let restored = lab.path().join(format!("restored {copies}"));
            copy(&lab.path().join("backup"), &restored);
        }
        copies
    });
    lab.umount(&drone);
    lab.kill_serve();
    fs::rename(lab.store(), lab.path().join("the original")).expect("moved away");
    for number in 1..=copies {
        let restored = lab.path().join(format!("restored {number}"));
        fs::rename(&restored, lab.store()).expect("put there");
        lab.start_serve();
        let verified = results.run(["verify", "--store", "--read-data", "--unpack"]);
        assert_eq!(verified.status.code(), Some(0), "copy {number}: {}", text(&verified.stdout));
        let reader = lab.machine(&format!("reader{number}"));
        lab.mount(&reader);
        wait_for("the catalog to be followed", PATIENCE, || before.broken(&reader.mount).is_empty());
        lab.umount(&reader);
        lab.kill_serve();
        fs::rename(lab.store(), &restored).expect("moved away");
    }
}
