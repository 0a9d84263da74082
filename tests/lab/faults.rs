//! `kill -9` of each process at random moments: everything arrives, nothing that was acknowledged is lost.

use std::{fs, path::PathBuf, thread, time::Duration};

use resultsfs::demo;
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Lab, Machine, Random, assert_same, picture, play_job, processes_with, text, wait_for};

fn jobs_in(lab: &Lab, count: u32) -> (PathBuf, Vec<PathBuf>) {
    let source = lab.path().join("source");
    for job in 1..=count {
        demo::generate::job(&source, 3, job, 0.05).expect("a job");
    }
    let mut jobs: Vec<PathBuf> = fs::read_dir(&source).expect("jobs").flatten().map(|e| e.path()).collect();
    jobs.sort();
    (source, jobs)
}

/// Mounts again after the daemon was killed that nobody supervised; the dead mount is cleared on the way.
pub fn mount_again(lab: &mut Lab, drone: &Machine) {
    wait_for("the daemon to be gone", Duration::from_secs(10), || {
        std::os::unix::net::UnixStream::connect(drone.state.join("control.sock")).is_err()
    });
    lab.mount_with(drone, &["--unsupervised"]);
}

/// P7 **A crash loses nothing that was acknowledged**: the mount daemon, the store's daemon and the ssh session are killed at 20 random moments
/// during an offload of 40 jobs; after restarts everything arrives, byte for byte, and verify is clean.
#[test]
fn kill_at_random_moments_loses_nothing() {
    let mut lab = Lab::new(Duration::from_secs(420));
    // Nothing completes before all is played, and then it takes a while.
    let drone = lab.machine_with("drone1", "settle_seconds: 3600\nbandwidth_mib_per_s: 1");
    lab.mount_with(&drone, &["--unsupervised"]);
    let (_, jobs) = jobs_in(&lab, 40);
    let reference = lab.path().join("reference");
    fs::create_dir_all(&reference).expect("a directory");
    for (id, from) in (1..).zip(&jobs) {
        for tree in [&drone.mount, &reference] {
            play_job(from, tree, id);
        }
    }
    let mut random = Random(20);
    let mut at_work = 0;
    for round in 0..20 {
        drone.run(["offload"]);
        thread::sleep(Duration::from_millis(random.below(500)));
        at_work += u32::from(drone.status()["queue_units"].as_u64().is_some_and(|n| n > 0));
        match round % 3 {
            0 => {
                let pid = i32::try_from(drone.pid()).ok().and_then(Pid::from_raw).expect("a pid");
                kill_process(pid, Signal::KILL).expect("our own daemon");
                mount_again(&mut lab, &drone);
            }
            1 => {
                lab.kill_serve();
                lab.start_serve();
            }
            _ => {
                let lab_dir = lab.path().display().to_string();
                for pid in processes_with(&["ssh", &lab_dir, "--stdio"]) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
    }
    assert!(at_work >= 10, "only {at_work} of 20 kills fell into an offload");
    drone.offload();
    let expected = picture(&reference);
    assert_same("the drone", &expected, &picture(&drone.mount));
    let results = lab.machine("results");
    lab.mount(&results);
    results.catch_up(&drone);
    assert_same("the results host", &expected, &picture(&results.mount));
    for machine in [&drone, &results] {
        let out = machine.run(["verify", "--read-data"]);
        assert_eq!(out.status.code(), Some(0), "verify: {}{}", text(&out.stdout), text(&out.stderr));
    }
}

/// The death of a daemon that nobody supervises loses no byte that a writer's write(2) was told is written: a writer notes each line that was accepted outside of the mount.
#[test]
fn the_daemons_death_loses_no_written_byte() {
    use std::io::Write;
    let mut lab = Lab::new(Duration::from_secs(120));
    let drone = lab.machine("drone1");
    lab.mount_with(&drone, &["--unsupervised"]);
    let mut random = Random(5);
    let mut accepted = String::new();
    for round in 0..5 {
        let path = drone.mount.join("3-me/host1/debug.log");
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        let mut file = fs::File::options().append(true).create(true).open(&path).expect("a file");
        let pid = i32::try_from(drone.pid()).ok().and_then(Pid::from_raw).expect("a pid");
        let killer = thread::spawn({
            let pause = Duration::from_millis(random.below(60));
            move || {
                thread::sleep(pause);
                kill_process(pid, Signal::KILL).expect("our own daemon");
            }
        });
        for n in 0..20_000 {
            let line = format!("{round} {n}\n");
            if file.write_all(line.as_bytes()).is_err() {
                break;
            }
            accepted.push_str(&line);
        }
        killer.join().expect("killed");
        drop(file);
        mount_again(&mut lab, &drone);
    }
    let there = fs::read_to_string(drone.mount.join("3-me/host1/debug.log")).expect("a log");
    assert!(there == accepted, "{} bytes accepted, {} there", accepted.len(), there.len());
}
