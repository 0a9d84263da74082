//! What operations on the mount cost in requests to the daemon and in its system calls: what a timing can't hold in place on a machine
//! that others use, too. Counted by strace(1) on the threads that read the device of a real daemon.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, UNIX_EPOCH},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Lab, Machine, text, wait_for};

const BOUND: Duration = Duration::from_secs(120);
const FILES: usize = 200;
/// What isn't the operations' own: a batch of forgets, a close that comes late.
const SLACK: usize = 12;
/// Nor are these: memory, threads that meet, and a debug build's look at each descriptor before it is closed.
const OTHERS: [&str; 7] = ["brk", "fcntl", "futex", "madvise", "mmap", "mprotect", "munmap"];

/// Calls by name.
#[derive(Debug)]
pub struct Calls(BTreeMap<String, usize>);

impl Calls {
    /// How many there were of these.
    pub fn of(&self, names: &[&str]) -> usize {
        names.iter().filter_map(|name| self.0.get(*name)).sum()
    }

    /// Each read of the device brings one request; the spool's files the daemon doesn't read.
    fn requests(&self) -> usize {
        self.0.get("read").copied().unwrap_or(0)
    }

    fn all(&self) -> usize {
        self.0.values().sum()
    }
}

/// A process's threads.
fn threads(pid: u32) -> Vec<PathBuf> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon's threads");
    tasks.flatten().map(|task| task.path()).collect()
}

/// What the threads that read the device call meanwhile.
fn count(machine: &Machine, work: impl FnOnce()) -> Calls {
    let is_reader =
        |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("fuser-"));
    let tasks: Vec<PathBuf> = threads(machine.pid()).into_iter().filter(is_reader).collect();
    assert!(!tasks.is_empty(), "the daemon has no such threads");
    trace(&tasks, &[], work)
}

/// What a process and those that it starts call meanwhile.
pub fn count_all(pid: u32, work: impl FnOnce()) -> Calls {
    trace(&threads(pid), &["-f"], work)
}

fn trace(tasks: &[PathBuf], options: &[&str], work: impl FnOnce()) -> Calls {
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-c", "-U", "name,calls"]).args(options).stderr(Stdio::piped());
    for task in tasks {
        strace.arg("-p").arg(task.file_name().expect("a thread's number"));
    }
    let strace = strace.spawn().expect("strace starts; tests/run installs it");
    let is_traced =
        |task: &PathBuf| !fs::read_to_string(task.join("status")).is_ok_and(|s| s.contains("TracerPid:\t0"));
    wait_for("strace", BOUND, || tasks.iter().all(is_traced));
    work();
    ended(strace)
}

fn ended(strace: Child) -> Calls {
    kill_process(Pid::from_child(&strace), Signal::INT).expect("our own child");
    let said = text(&strace.wait_with_output().expect("it ends").stderr);
    let lines = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let calls = lines.filter_map(|words| Some((words.first()?.to_string(), words.get(1)?.parse().ok()?)));
    Calls(calls.filter(|(name, _)| name != "total" && !OTHERS.contains(&name.as_str())).collect())
}

fn each(dir: &Path, work: impl Fn(&Path)) {
    (0..FILES).for_each(|i| work(&dir.join(format!("file{i}"))));
}

/// Requests and system calls of each operation on files of a running test, at most. Bounds, for a request may also be spared.
#[test]
fn operations_cost_no_more_than_they_did() {
    let mut lab = Lab::bare(BOUND);
    let drone = lab.machine_with("drone1", "results_host: localhost\nsettle_seconds: 3600");
    lab.mount(&drone);
    let dir = drone.mount.join("1-me/host1/debug");
    fs::create_dir_all(&dir).expect("made");
    let log = dir.join("log");
    let mut log = OpenOptions::new().create(true).append(true).open(log).expect("opens");
    let check = |what: &str, requests: usize, calls: usize, work: &dyn Fn(&Path)| {
        let counted = count(&drone, || each(&dir, work));
        let said =
            format!("{what}: {} requests, {} calls: {:?}", counted.requests(), counted.all(), counted.0);
        println!("{said}");
        assert!(counted.requests() <= requests * FILES + SLACK, "{said}");
        assert!(counted.all() <= calls * FILES + 4 * SLACK, "{said}");
    };
    check("create, write, close", 4, 16, &|path| fs::write(path, "text").expect("written"));
    check("stat after that", 1, 3, &|path| assert_eq!(fs::metadata(path).expect("there").len(), 4));
    check("stat again", 0, 0, &|path| assert_eq!(fs::metadata(path).expect("there").len(), 4));
    check("chmod", 1, 7, &|path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("changed");
    });
    check("open, read, close", 2, 9, &|path| assert_eq!(fs::read(path).expect("read"), b"text"));
    check("a name that isn't there", 1, 3, &|path| assert!(!path.with_extension("x").exists()));
    check("that again", 0, 0, &|path| assert!(!path.with_extension("x").exists()));
    check("unlink", 3, 7, &|path| fs::remove_file(path).expect("removed"));
    check("what tar does with a file", 7, 29, &|path| {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path).expect("made");
        file.write_all(b"text").expect("written");
        file.set_modified(UNIX_EPOCH).expect("dated");
        fchown(&file, Some(1), Some(1)).expect("given away");
        file.set_permissions(fs::Permissions::from_mode(0o600)).expect("changed");
    });
    // Longer than the kernel may believe attributes of what a mapping can change: this one couldn't.
    std::thread::sleep(resultsfs::fs::MAPPED_TTL + Duration::from_millis(100));
    check("stat a moment later", 0, 0, &|path| assert_eq!(fs::metadata(path).expect("there").uid(), 1));
    let counted = count(&drone, || (0..1000).for_each(|_| log.write_all(b"a line\n").expect("written")));
    assert!(counted.requests() <= SLACK, "appends go past the daemon: {:?}", counted.0);
    drop(log);
    lab.umount(&drone);
}
