//! Real producers of results: Avocado, and Autotest's own client where it can be had.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    harness::{Lab, Machine, assert_same, picture, run, text, wait_for},
    overlay::put,
};

/// Finishes what a producer has left in a unit's directory, as autoserv, parser and archiver do.
fn finish(dir: &Path) {
    for label in ["autoserv", "parser", "archiver"] {
        fs::write(dir.join(format!(".{label}_execute")), "1\n0\n0\n").expect("a pidfile");
    }
}

/// Offloaded, read elsewhere, freed and read again: the same as the producer has left it.
fn is_the_same_everywhere(lab: &mut Lab, drone: &Machine, units: &[&str]) -> Machine {
    let pictures = |machine: &Machine| -> Vec<Vec<String>> {
        units.iter().map(|unit| picture(&machine.mount.join(unit))).collect()
    };
    let expected = pictures(drone);
    drone.offload();
    let reader = lab.machine("drone2");
    lab.mount(&reader);
    reader.catch_up(drone);
    let elsewhere = pictures(&reader);
    for unit in units {
        let out = drone.run(["evict", unit]);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    }
    let freed = pictures(drone);
    for (i, expected) in expected.iter().enumerate() {
        assert!(expected.len() > 5, "{expected:#?}");
        assert_same("elsewhere", expected, &elsewhere[i]);
        assert_same("freed", expected, &freed[i]);
    }
    let out = drone.run(["verify"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
    reader
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
    is_the_same_everywhere(&mut lab, &drone, &[unit]);
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

/// A test for Autotest's client, which has none of its own.
fn sleeptest(autotest: &Path) {
    let body = "import time\nfrom autotest.client import test\nclass sleeptest(test.test):\n    version = 1\n    def run_once(self, seconds=1):\n        time.sleep(seconds)\n";
    put(autotest, "client/tests/sleeptest/sleeptest.py", body);
    put(autotest, "client/tests/sleeptest/control", "job.run_test('sleeptest')\n");
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
    if !checkout.join("client/tests/sleeptest").exists() {
        sleeptest(&checkout);
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
    is_the_same_everywhere(&mut lab, &drone, &[unit]);
    run(Command::new("ls").arg(&dir));
}

/// Autotest's hosts, with their results in the mounts of a drone and of the results host.
struct Site {
    dir: PathBuf,
    checkout: PathBuf,
    python: String,
    drone: Machine,
    results: Machine,
}

impl Site {
    /// Nothing without Autotest. Its database is SQLite, for which Autotest has a backend, and what else it needs is from the package index.
    fn new(lab: &Lab, results_host: &str) -> Option<Self> {
        let Some((checkout, python)) = autotest() else {
            eprintln!(
                "no AUTOTEST_CHECKOUT (and AUTOTEST_PYTHON) here: Autotest's own scheduler isn't tested"
            );
            return None;
        };
        let dir = lab.path().join("autotest");
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "-q", "--disable-pip-version-check", "--target"])
            .arg(dir.join("packages"));
        run(pip.args(["aexpect<1.6", "Django==1.5.12", "South==1.0.2"]));
        let settings = "from autotest.frontend.settings import *\nDATABASES['default']['ENGINE'] = 'autotest.frontend.db.backends.afe_sqlite'\nINSTALLED_APPS = INSTALLED_APPS[:2] + ('django.contrib.auth', 'django.contrib.contenttypes')\n";
        put(&dir, "packages/site_settings.py", settings);
        let database = dir.join("autotest.sqlite");
        let config = format!(
            "[SCHEDULER]\nresults_host: {results_host}\n[AUTOTEST_WEB]\ndatabase: {}\n",
            database.display()
        );
        put(&dir, "site/shadow_config.ini", &config);
        sleeptest(&dir.join("site"));
        let python =
            run(Command::new(python).args(["-c", "import sys; print(sys.executable)"])).trim().to_owned();
        Some(Self { dir, checkout, python, drone: lab.machine("drone1"), results: lab.machine("results") })
    }

    /// The scheduler on the results host does `what`: the phases that it has seen ending.
    fn schedule(&self, what: &str) -> Vec<String> {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab");
        let mut command = Command::new("timeout");
        command
            .arg("200")
            .arg(scripts.join("autotest.sh"))
            .args([&self.dir, &self.drone.mount, &self.results.mount])
            .arg("/usr/bin/python")
            .arg(scripts.join("scheduler.py"))
            .arg(what);
        let said = run(command.env("AUTOTEST_CHECKOUT", &self.checkout).env("AUTOTEST_PYTHON", &self.python));
        said.lines().filter(|line| line.ends_with(" 0 0")).map(str::to_owned).collect()
    }
}

/// Autotest's scheduler runs a special task and jobs on a drone over ssh, by its own tool, autoserv, client, parser and archiver, with its
/// copying off, as the manual has it: what they do to the results works in the mount, and the pidfiles that they write say when to offload what. A job whose
/// files have been freed is parsed again.
#[test]
fn autotests_scheduler_parser_and_archiver_work_in_the_mount() {
    let mut lab = Lab::new(Duration::from_secs(500));
    let Some(site) = Site::new(&lab, "localhost") else { return };
    lab.mount(&site.drone);
    lab.mount(&site.results);
    let phases = site.schedule("jobs");
    let expected = [
        "hosts/host1/4-verify autoserv",
        "10-me/host1 archiver",
        "9-me/host1 autoserv",
        "9-me/host1 parser",
        "9-me/host1 archiver",
    ];
    assert_eq!(phases, expected.map(|phase| format!("{phase} 0 0")));
    let job = site.drone.mount.join("9-me/host1");
    let parsed = || {
        let log = fs::read_to_string(job.join(".parse.log")).expect("the parser's log");
        assert!(!log.contains("Traceback"), "{log}");
        log.matches("testname, status, reason: sleeptest GOOD completed successfully").count()
    };
    assert_eq!(parsed(), 1);
    let units = ["hosts/host1/4-verify", "10-me/host1", "9-me/host1"];
    let reader = is_the_same_everywhere(&mut lab, &site.drone, &units);
    assert_eq!(site.schedule("reparse"), ["9-me/host1 parser 0 0"]);
    assert_eq!(parsed(), 2);
    site.drone.offload();
    reader.catch_up(&site.drone);
    assert_same("parsed again", &picture(&job), &picture(&reader.mount.join("9-me/host1")));
    assert!(!reader.mount.join("drone_tmp").exists());
    wait_for("what the scheduler writes on the results host", Duration::from_secs(60), || {
        ["9-me/queue.log.1", "9-me/host1/4-verify"].iter().all(|name| reader.mount.join(name).exists())
    });
}

/// With its copying on, and a results host that isn't one of resultsfs yet: what it copies out of the mount is what is there, as far as the archiver
/// itself hasn't gone on writing meanwhile.
#[test]
fn autotests_archiver_copies_out_of_the_mount() {
    let mut lab = Lab::new(Duration::from_secs(500));
    let Some(site) = Site::new(&lab, "dumpster") else { return };
    lab.mount(&site.drone);
    assert_eq!(site.schedule("jobs").len(), 5);
    let units = ["hosts/host1/4-verify", "10-me/host1", "9-me/host1"];
    for unit in units {
        let mut diff = Command::new("diff");
        diff.arg("-r").args(
            ["autoserv.DEBUG", "autoserv.INFO", ".archiv*", "uncollected_logs"]
                .map(|name| format!("--exclude={name}")),
        );
        assert_eq!(run(diff.args([&site.drone, &site.results].map(|host| host.mount.join(unit)))), "");
    }
    is_the_same_everywhere(&mut lab, &site.drone, &units);
}
