//! Real producers of results: Avocado, and Autotest's own client where it can be had.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    harness::{Lab, Machine, assert_same, picture, run, text},
    overlay::put,
};

/// Finishes what a producer has left in a unit's directory, as autoserv, parser and archiver do.
fn finish(dir: &Path) {
    for label in ["autoserv", "parser", "archiver"] {
        fs::write(dir.join(format!(".{label}_execute")), "1\n0\n0\n").expect("a pidfile");
    }
}

/// Offloaded, read elsewhere, freed and read again: the same as the producer has left it.
fn is_the_same_everywhere(lab: &mut Lab, drone: &Machine, unit: &str) {
    let expected = picture(&drone.mount.join(unit));
    assert!(expected.len() > 5, "{expected:#?}");
    drone.offload();
    let reader = lab.machine("drone2");
    lab.mount(&reader);
    reader.catch_up(drone);
    assert_same("elsewhere", &expected, &picture(&reader.mount.join(unit)));
    let out = drone.run(["evict", unit]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert_same("freed", &expected, &picture(&drone.mount.join(unit)));
    let out = drone.run(["verify"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
}

/// Avocado from the package index, in a directory of its own; nothing without one.
fn avocado(dir: &Path) -> Option<Command> {
    let at = dir.join("avocado");
    let pip = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--target"];
    let made = Command::new("python3").args(pip).arg(&at).arg("avocado-framework==113.0").output();
    if !made.is_ok_and(|made| made.status.success()) {
        eprintln!("Avocado can't be installed here, and isn't tested");
        return None;
    }
    let mut command = Command::new("python3");
    command.arg(at.join("bin/avocado")).env("PYTHONPATH", &at).env("HOME", dir);
    Some(command)
}

/// Avocado runs two tests with its results in the mount: names with spaces, relative links, one that is replaced by a rename.
#[test]
fn avocado_writes_its_results_into_the_mount() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let Some(mut avocado) = avocado(lab.path()) else { return };
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    let unit = "7-me/host1";
    let dir = drone.mount.join(unit);
    fs::create_dir_all(&dir).expect("a directory");
    let out = avocado
        .args(["run", "--disable-sysinfo", "--job-results-dir"])
        .arg(&dir)
        .args(["/bin/true", "/bin/false"]);
    let out = out.output().expect("it runs");
    let said = text(&out.stdout);
    assert!(said.contains("PASS 1 ") && said.contains("FAIL 1 "), "{said}{}", text(&out.stderr));
    assert!(fs::read_link(dir.join("latest")).is_ok(), "{:?}", picture(&dir));
    finish(&dir);
    is_the_same_everywhere(&mut lab, &drone, unit);
}

/// autoserv polls the files that it logs to. Like any file they are ready, and the daemon's log has nothing to say about it.
#[test]
fn a_polled_file_is_ready() {
    let mut lab = Lab::new(Duration::from_secs(60));
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    put(&drone.mount, "7-me/host1/debug/autoserv.DEBUG", "a line\n");
    let script = "import select, sys\nlog, poll = open(sys.argv[1], 'r+'), select.poll()\npoll.register(log)\nprint(poll.poll(0)[0][1])";
    let log = drone.mount.join("7-me/host1/debug/autoserv.DEBUG");
    assert_eq!(run(Command::new("python3").args(["-c", script]).arg(log)), "5\n", "POLLIN and POLLOUT");
    let log = fs::read_to_string(drone.state.join("daemon.log")).expect("a log");
    assert!(!log.contains("WARN"), "{log}");
}

/// Autotest's checkout and a Python 2 for it: it can't be part of this project, and no package has it.
fn autotest() -> Option<(PathBuf, String)> {
    let checkout = std::env::var_os("AUTOTEST_CHECKOUT").map(PathBuf::from)?;
    Some((checkout, std::env::var("AUTOTEST_PYTHON").unwrap_or_else(|_| "python2".to_owned())))
}

/// Autotest's own client runs a test with its results in the mount, and the scheduler's tool on drones sees them there.
#[test]
fn autotests_own_client_writes_its_results_into_the_mount() {
    let Some((checkout, python)) = autotest() else {
        eprintln!("no AUTOTEST_CHECKOUT (and AUTOTEST_PYTHON) here: Autotest's own client isn't tested");
        return;
    };
    let mut lab = Lab::new(Duration::from_secs(300));
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    let unit = "8-me/host1";
    let dir = drone.mount.join(unit);
    fs::create_dir_all(&dir).expect("a directory");
    let test = checkout.join("client/tests/sleeptest");
    if !test.exists() {
        fs::create_dir_all(&test).expect("a directory");
        let body = "import time\nfrom autotest.client import test\nclass sleeptest(test.test):\n    version = 1\n    def run_once(self, seconds=1):\n        time.sleep(seconds)\n";
        fs::write(test.join("sleeptest.py"), body).expect("a test");
        fs::write(test.join("control"), "job.run_test('sleeptest')\n").expect("a control file");
    }
    let mut client = Command::new(&python);
    client
        .arg(checkout.join("client/autotest-local"))
        .arg(format!("--output_dir={}", dir.display()))
        .args(["run", "sleeptest"]);
    let out = client.current_dir(&checkout).output().expect("it runs");
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    let log = walkdir::WalkDir::new(&dir).into_iter().flatten().find(|entry| entry.file_name() == "status");
    let log = fs::read_to_string(log.expect("a status log").path()).expect("read");
    assert!(log.contains("END GOOD\tsleeptest"), "{log}");
    finish(&dir);
    is_the_same_everywhere(&mut lab, &drone, unit);
    run(Command::new("ls").arg(&dir));
}
