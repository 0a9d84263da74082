//! Listings are whole, whatever arrives while they are made.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use resultsfs::control::{Request, ask};
use serde_json::Value;

use crate::harness::{Lab, Machine, wait_for};

/// Rounds of commits.
const ROUNDS: u32 = 24;
/// Walkers on the host that is told of the commits.
const WALKERS: usize = 4;

/// The answer of a daemon, without a process in between.
fn told(machine: &Machine, request: &Request) -> Vec<Value> {
    let mut items = Vec::new();
    let exit = ask(&machine.state.join("control.sock"), request, |item| items.push(item));
    assert_eq!(exit.expect("an answer"), 0, "{request:?}");
    items
}

fn seq(machine: &Machine) -> u64 {
    told(machine, &Request::Status)[0]["catalog"]["seq"].as_u64().expect("a number")
}

fn committed(machine: &Machine) -> u64 {
    let units = told(machine, &Request::Jobs { pattern: None });
    units.iter().filter_map(|unit| unit["seq"].as_u64()).max().expect("a commit")
}

fn offload(machine: &Machine) {
    told(machine, &Request::Offload { paths: Vec::new(), wait: true, timeout_s: 60 });
}

/// The files of one round: a new job with two hosts, a further host in the first job, a task.
fn write_round(mount: &Path, round: u32) -> Vec<PathBuf> {
    let job = format!("{}-me", 10 + round);
    let dirs = [
        (format!("{job}/host1"), "archiver"),
        (format!("{job}/host2"), "archiver"),
        (format!("1-me/more{round}"), "archiver"),
        (format!("hosts/host1/{round}-verify"), "autoserv"),
    ];
    let mut files = Vec::new();
    for (dir, last) in &dirs {
        fs::create_dir_all(mount.join(dir).join("debug")).expect("a directory");
        let names = ["keyval", "status.log", "debug/client.INFO", "debug/client.DEBUG"].map(str::to_owned);
        let pidfiles = ["autoserv", "parser", "archiver"].map(|label| format!(".{label}_execute"));
        let is_needed = |name: &String| *last == "archiver" || name.contains(last);
        for name in names.into_iter().chain(pidfiles.into_iter().filter(is_needed)) {
            let file = Path::new(dir).join(&name);
            let text =
                if name.ends_with("_execute") { "1\n0\n0\n".to_owned() } else { file.display().to_string() };
            fs::write(mount.join(&file), text).expect("written");
            files.push(file);
        }
    }
    files
}

/// Every file that listings lead to.
fn walk(mount: &Path) -> BTreeSet<PathBuf> {
    let entries = walkdir::WalkDir::new(mount).min_depth(1).into_iter();
    let entries = entries.map(|e| e.unwrap_or_else(|e| panic!("walk of {}: {e}", mount.display())));
    let files = entries.filter(|e| e.file_type().is_file());
    files.map(|e| e.path().strip_prefix(mount).expect("below").to_owned()).collect()
}

/// Walks again and again, and looks each time whether everything was listed that was announced before the walk.
fn walk_until(machine: &Machine, announced: &Mutex<Vec<PathBuf>>, walks: &AtomicUsize, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Acquire) {
        let expected = announced.lock().expect("nobody panicked").clone();
        let seen = walk(&machine.mount);
        let missing: Vec<_> = expected.iter().filter(|file| !seen.contains(*file)).collect();
        assert!(missing.is_empty(), "{} lists {} files without {missing:?}", machine.name, seen.len());
        walks.fetch_add(1, Ordering::AcqRel);
    }
}

/// Sets it at the end, however that comes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What a host has offloaded (`offload --wait`) is up to that host's `catalog.seq`; once another host's has come so far, every listing there that
/// begins from then on has it, while others walk the same tree, further commits arrive, and the units leave the first host's spool. On the
/// first host nothing is ever missing.
#[test]
fn what_is_told_to_be_there_is_in_every_listing_from_then_on() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let (drone, reader) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&drone);
    lab.mount(&reader);
    let (written, announced) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let (is_over, walks) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    thread::scope(|scope| {
        let over = Over(&is_over);
        for _ in 0..WALKERS {
            scope.spawn(|| walk_until(&reader, &announced, &walks[0], &is_over));
        }
        scope.spawn(|| walk_until(&drone, &written, &walks[1], &is_over));
        for round in 1..=ROUNDS {
            let files = write_round(&drone.mount, round);
            written.lock().expect("nobody panicked").extend(files.clone());
            offload(&drone);
            let upto = seq(&drone);
            assert!(
                upto >= committed(&drone),
                "the catalog here ends at {upto}, before a commit of this host"
            );
            wait_for("the other host's catalog", Duration::from_secs(30), || seq(&reader) >= upto);
            announced.lock().expect("nobody panicked").extend(files);
            let jobs = told(&drone, &Request::Jobs { pattern: Some(format!("more{round}")) });
            assert!(!jobs.is_empty());
            // What is in use stays, with exit code 3.
            drone.run(["evict".to_owned(), format!("{}-me", 10 + round)]);
        }
        drop(over);
    });
    let all = written.into_inner().expect("nobody panicked");
    for machine in [&drone, &reader] {
        let seen = walk(&machine.mount);
        assert_eq!(seen, all.iter().cloned().collect(), "{}", machine.name);
    }
    let counts = walks.map(AtomicUsize::into_inner);
    assert!(counts.iter().all(|count| *count > 5), "walks: {counts:?}");
}
