//! What is derived can be lost: the journal, the replica, the cache, the store's index.

use std::{fs, path::Path, time::Duration};

use crate::harness::{Lab, Machine, assert_same, picture, play_job, text, wait_for};
use resultsfs::demo;

fn played(lab: &Lab, drone: &Machine, jobs: u32) -> Vec<String> {
    let source = lab.path().join("source");
    for id in 1..=jobs {
        let from = demo::generate::job(&source, 9, id, 0.05).expect("a job");
        play_job(&from, &drone.mount, id);
    }
    picture(&drone.mount)
}

fn is_clean(machine: &Machine) {
    let out = machine.run(["verify", "--read-data"]);
    assert_eq!(out.status.code(), Some(0), "verify: {}{}", text(&out.stdout), text(&out.stderr));
}

fn lose(paths: &[&Path]) {
    for path in paths {
        match path.is_dir() {
            true => fs::remove_dir_all(path).expect("a directory"),
            false => fs::remove_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
        }
    }
}

/// A spool that is found without a journal is rebuilt from: with the host's identity lost as well, everything is committed anew, and costs next to nothing since
/// the store has the content.
#[test]
fn a_spool_without_a_journal_is_rebuilt_from() {
    let mut lab = Lab::new(Duration::from_secs(180));
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    let before = played(&lab, &drone, 4);
    drone.offload();
    let mut seq = drone.seq();
    lab.umount(&drone);
    for lost in
        [&["journal.redb"][..], &["journal.redb", "replica.redb"], &["journal.redb", "replica.redb", "host"]]
    {
        let lost: Vec<_> = lost.iter().map(|name| drone.state.join(name)).collect();
        lose(&lost.iter().map(|p| p.as_path()).collect::<Vec<_>>());
        lab.mount(&drone);
        drone.offload();
        assert_same("after a loss", &before, &picture(&drone.mount));
        let sent = drone.status()["offload"]["bytes_sent"].as_u64().expect("a count");
        assert!(sent < 200_000, "{sent} bytes were sent again");
        is_clean(&drone);
        seq = drone.seq();
        lab.umount(&drone);
    }
    let other = lab.machine("drone2");
    lab.mount(&other);
    lab.mount(&drone);
    // A daemon that has just begun may know less than the one before.
    wait_for("the catalog to be followed", Duration::from_secs(30), || other.seq() >= seq);
    assert_same("another drone", &before, &picture(&other.mount));
}

/// The replica, the cache and the store's index are derived: without them everything is there again.
#[test]
fn replica_cache_and_index_are_rebuilt() {
    let mut lab = Lab::new(Duration::from_secs(180));
    let (drone, other) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&drone);
    lab.mount(&other);
    let before = played(&lab, &drone, 3);
    drone.offload();
    other.catch_up(&drone);
    assert_same("another drone", &before, &picture(&other.mount));
    lab.umount(&other);
    lab.kill_serve();
    let index = lab.path().join("results/store/index.redb");
    lose(&[&index, &other.state.join("replica.redb"), &other.state.join("cache")]);
    lab.start_serve();
    lab.mount(&other);
    drone.offload();
    other.catch_up(&drone);
    assert_same("another drone, after the losses", &before, &picture(&other.mount));
    is_clean(&lab.machine("results"));
}

/// What is local only or unrecognised stays on its host, and is listed as such.
#[test]
fn local_names_stay_on_their_host() {
    let mut lab = Lab::new(Duration::from_secs(60));
    let (drone, other) = (lab.machine_with("drone1", "local_only: scratch"), lab.machine("drone2"));
    lab.mount(&drone);
    lab.mount(&other);
    for name in ["drone_tmp/attach.0/pid", "scratch/x", "default/debug/log", "12-me/host1/status.log"] {
        let path = drone.mount.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, "x").expect("a file");
    }
    let out = drone.run(["complete", "12-me"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    drone.offload();
    other.catch_up(&drone);
    let names: Vec<_> =
        fs::read_dir(&other.mount).expect("a tree").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names, ["12-me"]);
    assert_eq!(drone.status()["unrecognised"], serde_json::json!(["default"]));
}
