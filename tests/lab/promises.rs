//! The promises that need a whole lab and stand nowhere else: P2, P4 and P5.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use resultsfs::demo;

use crate::harness::{Lab, Machine, play_job, text, wait_for};

/// Paths below `dir` at this moment; what vanishes while it is looked at isn't there.
fn names(dir: &Path) -> BTreeSet<PathBuf> {
    let walk = walkdir::WalkDir::new(dir).min_depth(1).into_iter().filter_map(Result::ok);
    walk.map(|e| e.path().strip_prefix(dir).expect("below").to_owned()).collect()
}

/// P4 **Nothing foreign appears in the tree.** No marker, lock or temporary file: while a job is offloaded, freed, changed late, brought back and
/// read elsewhere, no name is ever seen, here or there, that the job itself hasn't made, and none is missing in the end.
#[test]
fn no_name_appears_that_the_job_has_not_made() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let (drone, reader) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&drone);
    lab.mount(&reader);
    let (source, reference) = (lab.path().join("source"), lab.path().join("reference"));
    demo::generate::job(&source, 5, 1, 0.1).expect("a job");
    let from = fs::read_dir(&source).expect("jobs").flatten().next().expect("one job").path();
    fs::create_dir_all(&reference).expect("a directory");
    play_job(&from, &reference, 1);
    let expected = names(&reference);
    // autoserv has it while it runs.
    let mut passing = expected.clone();
    passing.insert("1-debug_user/host1/uncollected_logs".into());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watchers = [&drone, &reader].map(|machine| {
            let (over, expected) = (&over, &passing);
            scope.spawn(move || {
                let mut rounds = 0;
                while !over.load(Ordering::Relaxed) {
                    let seen = names(&machine.mount);
                    let foreign: Vec<_> = seen.difference(expected).collect();
                    assert!(foreign.is_empty(), "on {}: {foreign:?}", machine.name);
                    rounds += 1;
                }
                rounds
            })
        });
        let live =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| live_through(&drone, &reader, &from)));
        over.store(true, Ordering::Relaxed);
        for watcher in watchers {
            assert!(watcher.join().expect("nothing foreign") > 3);
        }
        live.expect("the job's life goes as it should");
    });
    assert_eq!(names(&drone.mount), expected);
    assert_eq!(names(&reader.mount), expected);
    let no_xattrs = std::process::Command::new("python3")
        .args(["-c", "import os, sys; os.listxattr(sys.argv[1])"])
        .arg(drone.mount.join("1-debug_user/host1"))
        .output()
        .expect("runs");
    assert!(text(&no_xattrs.stderr).contains("not supported"), "no attributes to speak of");
}

fn live_through(drone: &Machine, reader: &Machine, from: &Path) {
    play_job(from, &drone.mount, 1);
    drone.offload();
    let (job, status) = ("1-debug_user", "1-debug_user/host1/status.log");
    reader.catch_up(drone);
    fs::read(reader.mount.join(status)).expect("read elsewhere");
    assert!(drone.run(["evict", job]).status.success());
    let mut log = fs::File::options().append(true).open(drone.mount.join(status)).expect("opens");
    log.write_all(b"INFO\tlate\n").expect("a late line");
    drop(log);
    drone.offload();
    assert!(drone.run(["recall", job]).status.success());
    reader.catch_up(drone);
}

/// P5 **Complete means complete.** The pidfiles say so *and* no writer has a file of the unit open *and* the settle time has passed: until then
/// nothing of it is in the store, whoever asks, and a reader elsewhere never has a copy of a moving target.
#[test]
fn nothing_is_taken_while_a_writer_has_it_open_or_its_pidfile_says_that_it_runs() {
    let mut lab = Lab::new(Duration::from_secs(180));
    // Nobody sees a running unit elsewhere, so that what is seen there is what was taken.
    let (drone, reader) = (lab.machine_with("drone1", "live_seconds: 0"), lab.machine("drone2"));
    lab.mount(&drone);
    lab.mount(&reader);
    let unit = "1-me/host1";
    let dir = drone.mount.join(unit);
    fs::create_dir_all(&dir).expect("a directory");
    let mut log = fs::File::create(dir.join("status.log")).expect("made");
    log.write_all(b"START\n").expect("written");
    // This test's own process is the job's.
    fs::write(dir.join(".autoserv_execute"), format!("{}\n", std::process::id())).expect("a pidfile");
    for label in ["parser", "archiver"] {
        fs::write(dir.join(format!(".{label}_execute")), "1\n0\n0\n").expect("a pidfile");
    }
    let not_taken = |what: &str| {
        let out = drone.run(["offload", "--wait", "--timeout", "3", unit]);
        assert_eq!(out.status.code(), Some(1), "{what}: {}{}", text(&out.stdout), text(&out.stderr));
        let said = text(&drone.run(["explain", unit]).stdout);
        assert!(said.contains(what), "{what}: {said}");
        assert!(!reader.mount.join(unit).exists(), "{what}");
    };
    drop(log);
    not_taken("alive");
    let mut late = fs::File::options().append(true).open(dir.join("status.log")).expect("opens");
    fs::write(dir.join(".autoserv_execute"), "1\n0\n0\n").expect("the pidfile's end");
    not_taken("open for writing");
    late.write_all(b"END GOOD\n").expect("the last line");
    drop(late);
    drone.offload();
    wait_for("the unit elsewhere", Duration::from_secs(30), || {
        reader.mount.join(unit).join("status.log").exists()
    });
    assert_eq!(
        fs::read_to_string(reader.mount.join(unit).join("status.log")).expect("read"),
        "START\nEND GOOD\n"
    );
}

/// The manifest of the layer of which `explain` says that it is whose.
fn manifest_of(machine: &Machine, path: &str, whose: &str) -> String {
    let said = machine.json(["explain", path]).pop().expect("an answer");
    said[whose]["manifest"].as_str().unwrap_or_else(|| panic!("{whose} in {said}")).to_owned()
}

/// P2 **Nothing is freed early.** A byte leaves a drone's disk only after the store has answered, following fsync, that it holds the layer under the
/// manifest hash that the drone computed, and only when no handle on it is open. Here the store falls silent, dies unanswering, comes back and
/// answers; what it has synced by then is `store::tests::crash`'s.
#[test]
fn a_byte_leaves_the_spool_after_the_answer_and_the_last_close() {
    let mut lab = Lab::new(Duration::from_secs(180));
    let (drone, results) = (lab.machine("drone1"), lab.machine("results"));
    lab.mount(&drone);
    let (unit, file) = ("3-me/host1", "3-me/host1/status.log");
    let spooled = drone.state.join("spool").join(file);
    fs::create_dir_all(drone.mount.join(unit)).expect("a directory");
    fs::write(drone.mount.join(file), "GOOD\n").expect("written");
    let evict = || drone.run(["evict", unit]).status.code();

    rustix::process::kill_process(lab.serve_pid(), rustix::process::Signal::STOP).expect("our own child");
    assert_eq!(drone.run(["complete", unit]).status.code(), Some(0));
    assert_eq!(drone.run(["offload", "--wait", "--timeout", "2", unit]).status.code(), Some(1), "no answer");
    assert_ne!(evict(), Some(0));
    lab.kill_serve();
    assert_ne!(evict(), Some(0));
    assert!(spooled.exists());

    lab.start_serve();
    drone.offload();
    lab.mount(&results);
    results.catch_up(&drone);
    assert_eq!(fs::read_to_string(results.mount.join(file)).expect("readable there"), "GOOD\n");
    assert_eq!(manifest_of(&drone, file, "own_entry"), manifest_of(&results, file, "other_hosts_entry"));
    let open = fs::File::open(drone.mount.join(file)).expect("a file");
    assert_eq!(evict(), Some(3), "it is open");
    assert!(spooled.exists());
    drop(open);
    wait_for("eviction", Duration::from_secs(10), || evict() == Some(0));
    assert!(!spooled.exists());
    assert_eq!(fs::read_to_string(drone.mount.join(file)).expect("from the store"), "GOOD\n");
}

/// What docs/architecture.md says of each promise, "shown by the tests", is so: each that is built is the doc comment of a test.
#[test]
fn every_promise_is_the_doc_comment_of_a_test() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(top.join("docs/architecture.md")).expect("the page");
    let sources = walkdir::WalkDir::new(top.join("tests")).into_iter().flatten();
    let sources = sources.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "rs"));
    let sources: Vec<String> =
        sources.map(|entry| fs::read_to_string(entry.path()).expect("a source")).collect();
    let is_shown = |promise: &str| {
        let begins = format!("/// {promise} **");
        sources.iter().any(|source| {
            let mut lines = source.lines().skip_while(|line| !line.starts_with(&begins));
            lines.any(|line| line == "#[test]")
        })
    };
    let rows = page.lines().filter(|row| row.starts_with("| P") && !row.contains("isn't built yet"));
    let promises: Vec<&str> = rows.filter_map(|row| row[2..].split(' ').next()).collect();
    assert!(promises.len() >= 11, "{promises:?}");
    let missing: Vec<_> = promises.iter().filter(|promise| !is_shown(promise)).collect();
    assert!(missing.is_empty(), "on no test: {missing:?}");
}
