//! Clocks that are set: a day back, ten years ahead, on a drone and on the results host. Only what people are shown depends on them, and what they
//! decide by age.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    harness::{EXE, Lab, Machine, text, wait_for},
    witness::{Witness, unit_of},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Where Debian has it.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// A clock that a test sets, for programs that are started with its environment.
struct Clock {
    file: PathBuf,
}

impl Clock {
    fn new(dir: &Path) -> Self {
        let clock = Self { file: dir.join("clock") };
        clock.set("+0");
        clock
    }

    /// As libfaketime says it: `-1d`, `+10y`.
    fn set(&self, offset: &str) {
        let new = self.file.with_extension("new");
        fs::write(&new, offset).and_then(|()| fs::rename(&new, &self.file)).expect("a file");
    }

    fn environment(&self) -> Vec<(String, String)> {
        let file = self.file.display().to_string();
        [
            ("LD_PRELOAD", LIBRARY),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// The program with this clock.
    fn program(&self, dir: &Path) -> PathBuf {
        let script = dir.join("resultsfs-by-clock");
        let environment: String =
            self.environment().iter().map(|(name, value)| format!("{name}='{value}' ")).collect();
        fs::write(&script, format!("#!/bin/sh\nexec env {environment}{EXE} \"$@\"\n")).expect("a script");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("may be run");
        script
    }
}

fn commit_one(drone: &Machine, kept: &mut Witness, job: u32) {
    kept.job(&drone.mount, job, 6).expect("played");
    wait_for("the job to be committed by itself", PATIENCE, || {
        let rows = drone.json(["jobs", &format!("{job}-me")]);
        rows.iter().any(|row| row["unit"] == unit_of(job).as_str() && row["state"] == "committed")
    });
    kept.promise_job(job, 6);
}

#[test]
fn a_clock_that_jumps_loses_nothing() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let (drone, results) = (lab.machine_with("drone1", "keep_local_hours: 24"), lab.machine("results"));
    let clock = Clock::new(&lab.path().join("drone1"));
    lab.mount_by(&drone, &clock.environment(), &[]);
    let mut kept = Witness::default();
    let now_ms =
        |machine: &Machine| machine.json(["explain", &unit_of(1)])[0]["times_ms"]["complete"].as_u64();
    commit_one(&drone, &mut kept, 1);
    let began = now_ms(&drone).expect("it was complete");
    for (job, offset) in [(2, "-1d"), (3, "+10y"), (4, "-30y"), (5, "+0")] {
        clock.set(offset);
        commit_one(&drone, &mut kept, job);
        kept.is_kept(offset, &drone);
    }
    let seen =
        drone.json(["explain", &unit_of(3)])[0]["times_ms"]["complete"].as_u64().expect("it was complete");
    assert!(seen > began + 9 * 365 * 86_400_000, "the daemon has seen the clock jump: {began} and {seen}");
    for machine in [&drone, &results] {
        machine.verifies("in the end");
    }
}

/// The results host's clock is ten years ahead for a moment: retention would take every job, and refuses to.
#[test]
fn a_clock_ahead_prunes_nothing() {
    let mut lab = Lab::new(Duration::from_secs(200));
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    let mut kept = Witness::default();
    (1..=3).for_each(|job| commit_one(&drone, &mut kept, job));
    lab.umount(&drone);
    lab.kill_serve();
    let clock = Clock::new(&lab.path().join("results"));
    clock.set("+10y");
    let results = lab.machine_with("results", "retention_days: 365\nretention_days_failed: 365");
    let program = clock.program(lab.path());
    let out = results.run_as(&program, ["prune"]);
    assert_eq!(out.status.code(), Some(1), "{}{}", text(&out.stdout), text(&out.stderr));
    assert!(text(&out.stderr).contains("--yes"), "{}", text(&out.stderr));
    lab.start_serve();
    lab.mount(&drone);
    kept.is_kept("afterwards", &drone);
}
