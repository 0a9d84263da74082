//! The power fails: at a drone, at the results host, at both. Everything unsynced of that disk is gone.

use std::{fs, thread, time::Duration};

use rustix::process::{Signal, kill_process};

use crate::{
    disk::{Disk, Kind},
    harness::{Lab, Machine, Random, processes_with, run, text, wait_for},
    witness::{Witness, rounds, unit_of},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Everything of this host's mount is gone at once, as its power is.
fn die(machine: &Machine) {
    let words = [machine.mount.to_str().expect("a name in ASCII")];
    for pid in processes_with(&words) {
        let _ = kill_process(pid, Signal::KILL);
    }
    run(std::process::Command::new("umount").arg("-l").arg(&machine.mount));
    wait_for("its processes to be gone", PATIENCE, || processes_with(&words).is_empty());
}

fn committed(machine: &Machine, jobs: std::ops::Range<u32>) -> Vec<u32> {
    let rows = machine.json(["jobs"]);
    let is_committed = |job: &u32| {
        let of_it = rows.iter().find(|row| row["unit"] == unit_of(*job).as_str());
        of_it.is_some_and(|row| row["state"] == "committed" || row["state"] == "evicted")
    };
    jobs.filter(is_committed).collect()
}

/// What runs on a drone's disk when its power fails: jobs that end, files that are synced and files that aren't, an offload, and evictions.
/// Afterwards everything that was synced is there, everything that was called committed is there for a reader that has nothing cached, and the
/// rest of the jobs goes on to be committed.
fn drone_loses_power(kind: Kind, seed: u64) {
    let mut lab = Lab::new(Duration::from_secs(400));
    let drone = lab.machine_with("drone1", "bandwidth_mib_per_s: 4");
    let disk = Disk::at(&mut lab, &drone.state, kind, 320);
    lab.mount_with(&drone, &["--unsupervised"]);
    let mut random = Random(seed);
    let (mut kept, mut next) = (Witness::default(), 1);
    for round in 0..rounds(3) {
        let what = format!("{kind:?}, seed {seed}, round {round}");
        let first = next;
        for _ in 0..4 {
            kept.job(&drone.mount, next, seed).expect("played");
            next += 1;
        }
        drone.run(["offload"]);
        for number in 0..random.below(30) {
            let name = format!("{}-me/running/{number}", 1000 + round);
            kept.write_synced(&drone.mount, &name, name.repeat(1 + number as usize * 97).as_bytes())
                .expect("written");
            fs::write(drone.mount.join(format!("{name}.unsynced")), "gone or there").expect("written");
        }
        thread::sleep(Duration::from_millis(random.below(900)));
        let told = committed(&drone, 1..next);
        if round % 2 == 1 {
            for job in told.iter().take(2) {
                drone.run(["evict", &unit_of(*job)]);
            }
        }
        disk.cut_power();
        die(&drone);
        disk.umount();
        disk.mount();
        lab.mount_with(&drone, &["--unsupervised"]);
        told.iter().for_each(|job| kept.promise_job(*job, seed));
        kept.is_kept(&what, &drone);
        let known = committed(&drone, 1..next);
        assert!(told.iter().all(|job| known.contains(job)), "{what}: {told:?} were committed, now {known:?}");
        // A job whose writers never synced may have lost files with the power, as on any disk: they are played again, as a site would run it again.
        for job in (first..next).filter(|job| !known.contains(job)) {
            let _ = fs::remove_dir_all(drone.mount.join(unit_of(job)));
            kept.job(&drone.mount, job, seed).expect("played");
        }
        drone.offload();
        (first..next).for_each(|job| kept.promise_job(job, seed));
        drone.verifies(&what);
    }
    let (reader, results) = (lab.machine("drone2"), lab.machine("results"));
    lab.mount(&reader);
    reader.catch_up(&drone);
    let mut committed = Witness::default();
    (1..next).for_each(|job| committed.promise_job(job, seed));
    committed.is_kept("on a reader with nothing cached", &reader);
    results.verifies("in the end");
}

#[test]
fn a_drone_loses_power_ext4() {
    drone_loses_power(Kind::Ext4, 1);
}

#[test]
fn a_drone_loses_power_xfs() {
    drone_loses_power(Kind::Xfs, 2);
}

/// The same at the results host, amid uploads: what drones were told is committed is there, and they send the rest again by themselves.
fn store_loses_power(kind: Kind, seed: u64) {
    let mut lab = Lab::bare(Duration::from_secs(400));
    let store = lab.store();
    let disk = Disk::at(&mut lab, &store, kind, 320);
    lab.tune("pack_bytes=4000000");
    lab.start_sshd();
    lab.start_serve();
    let (drone, results) = (lab.machine_with("drone1", "bandwidth_mib_per_s: 8"), lab.machine("results"));
    lab.mount(&drone);
    let mut random = Random(seed);
    let (mut kept, mut next) = (Witness::default(), 1);
    for round in 0..rounds(4) {
        let what = format!("{kind:?}, seed {seed}, round {round}");
        for _ in 0..6 {
            kept.job(&drone.mount, next, seed).expect("played");
            next += 1;
        }
        drone.run(["offload"]);
        thread::sleep(Duration::from_millis(random.below(700)));
        let told = committed(&drone, 1..next);
        disk.cut_power();
        lab.close_store();
        disk.umount();
        disk.mount();
        lab.start_serve();
        told.iter().for_each(|job| kept.promise_job(*job, seed));
        // Whatever the drone thinks: a reader that knows nothing sees it.
        let reader = lab.machine(&format!("reader{round}"));
        lab.mount(&reader);
        wait_for("the reader to see all that was acknowledged", PATIENCE, || {
            kept.broken(&reader.mount).is_empty()
        });
        lab.umount(&reader);
        drone.offload();
        (1..next).for_each(|job| kept.promise_job(job, seed));
        results.verifies(&what);
    }
    let out = drone.run(["verify", "--local", "--read-data"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
}

#[test]
fn the_results_host_loses_power_ext4() {
    store_loses_power(Kind::Ext4, 3);
}

#[test]
fn the_results_host_loses_power_xfs() {
    store_loses_power(Kind::Xfs, 4);
}
