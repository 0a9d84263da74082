//! Several hosts' layers of one job are one tree.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    time::Duration,
};

use crate::harness::{Lab, Machine, text, wait_for};

fn put(dir: &Path, name: &str, content: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn append(dir: &Path, name: &str, line: &str) {
    let path = dir.join(name);
    let mut file =
        OpenOptions::new().append(true).open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.write_all(line.as_bytes()).expect("appended");
}

fn finish(exec_dir: &Path) {
    for label in ["autoserv", "parser", "archiver"] {
        put(exec_dir, &format!(".{label}_execute"), "1\n0\n0\n");
    }
}

fn read(machine: &Machine, path: &str) -> String {
    fs::read_to_string(machine.mount.join(path)).unwrap_or_else(|e| panic!("{path} on {}: {e}", machine.name))
}

fn names(machine: &Machine, dir: &str) -> Vec<String> {
    let entries =
        fs::read_dir(machine.mount.join(dir)).unwrap_or_else(|e| panic!("{dir} on {}: {e}", machine.name));
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn shows(machine: &Machine, path: &str, content: &str) {
    wait_for(&format!("{path} on {} to be {content:?}", machine.name), Duration::from_secs(20), || {
        fs::read_to_string(machine.mount.join(path)).is_ok_and(|c| c == content)
    });
}

/// P3 **Nothing is ever deleted by an upload.** The union is by file. Another host's file is never removed or hidden unless somebody deletes it
/// through the mount. Two hosts write different execution dirs, and different files in the same job dir and the same
/// execution dir, of one job: both mounts show the union; nothing hides anything.
#[test]
fn two_hosts_layers_of_one_job_are_one_tree() {
    let mut lab = Lab::new(Duration::from_secs(180));
    let (a, b) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&a);
    lab.mount(&b);
    put(&a.mount, "7-me/host1/debug/a.log", "a\n");
    put(&a.mount, "7-me/a.txt", "a\n");
    put(&b.mount, "7-me/host2/debug/b.log", "b\n");
    put(&b.mount, "7-me/b.txt", "b\n");
    put(&b.mount, "7-me/host1/late.log", "b\n");
    finish(&a.mount.join("7-me/host1"));
    finish(&b.mount.join("7-me/host2"));
    for machine in [&a, &b] {
        machine.offload();
    }
    a.catch_up(&b);
    b.catch_up(&a);
    for machine in [&a, &b] {
        shows(machine, "7-me/b.txt", "b\n");
        shows(machine, "7-me/a.txt", "a\n");
        assert_eq!(names(machine, "7-me"), ["a.txt", "b.txt", "host1", "host2"], "{}", machine.name);
        shows(machine, "7-me/host1/late.log", "b\n");
        assert!(names(machine, "7-me/host1").contains(&"debug".to_owned()));
        assert_eq!(read(machine, "7-me/host1/debug/a.log"), "a\n");
        assert_eq!(read(machine, "7-me/host2/debug/b.log"), "b\n");
    }
}

/// A late line in A's keyval does not put A's older files over B's newer ones, and A's eviction changes nothing that A sees.
#[test]
fn a_late_line_does_not_put_old_files_over_newer_ones() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let (a, b) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&a);
    lab.mount(&b);
    let exec = "8-me/host1";
    put(&a.mount, "8-me/host1/keyval", "queued=1\n");
    put(&a.mount, "8-me/host1/status.log", "A's status\n");
    finish(&a.mount.join(exec));
    a.offload();
    b.catch_up(&a);
    shows(&b, "8-me/host1/status.log", "A's status\n");

    append(&b.mount, "8-me/host1/status.log", "B's reparse\n");
    shows(&b, "8-me/host1/status.log", "A's status\nB's reparse\n");
    wait_for("B's change to be committed", Duration::from_secs(60), || {
        let out = b.run(["offload", "--wait", "--timeout", "30"]);
        out.status.success() && b.seq() > a_seq_of_first(&a)
    });
    a.catch_up(&b);
    shows(&a, "8-me/host1/status.log", "A's status\nB's reparse\n");

    append(&a.mount, "8-me/host1/keyval", "finished=2\n");
    shows(&a, "8-me/host1/keyval", "queued=1\nfinished=2\n");
    wait_for("A's late line on B", Duration::from_secs(60), || {
        a.run(["offload", "--wait", "--timeout", "30"]);
        fs::read_to_string(b.mount.join("8-me/host1/keyval")).is_ok_and(|c| c.ends_with("finished=2\n"))
    });
    for machine in [&a, &b] {
        assert_eq!(read(machine, "8-me/host1/status.log"), "A's status\nB's reparse\n", "{}", machine.name);
    }

    let before = (names(&a, exec), read(&a, "8-me/host1/keyval"));
    let out = a.run(["evict", "8-me"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(!a.state.join("spool/8-me/host1").exists(), "evicted");
    assert_eq!((names(&a, exec), read(&a, "8-me/host1/keyval")), before);
    assert_eq!(read(&a, "8-me/host1/status.log"), "A's status\nB's reparse\n");
}

fn a_seq_of_first(a: &Machine) -> u64 {
    let jobs = a.json(["jobs", "8-me/host1"]);
    jobs.iter().filter(|j| j["unit"] == "8-me/host1").filter_map(|j| j["seq"].as_u64()).min().unwrap_or(0)
}

/// P6 **Late writes count.** Archived units stay writable (reparse, abort lines, `job_finished` keyvals, retries): the change is journaled and follows
/// as the next generation, as a delta. Here of a unit that is evicted.
#[test]
fn an_evicted_unit_stays_writable_and_its_change_follows() {
    let mut lab = Lab::new(Duration::from_secs(180));
    let (a, b) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&a);
    lab.mount(&b);
    put(&a.mount, "9-me/host1/keyval", "queued=1\n");
    put(&a.mount, "9-me/host1/big.log", &"a line of the log\n".repeat(40_000));
    finish(&a.mount.join("9-me/host1"));
    a.offload();
    let out = a.run(["evict", "9-me"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    append(&a.mount, "9-me/host1/keyval", "job_finished=2\n");
    assert_eq!(read(&a, "9-me/host1/keyval"), "queued=1\njob_finished=2\n");
    assert_eq!(read(&a, "9-me/host1/big.log").len(), 18 * 40_000);
    wait_for("the late line on B", Duration::from_secs(60), || {
        a.run(["offload", "--wait", "--timeout", "30"]);
        fs::read_to_string(b.mount.join("9-me/host1/keyval")).is_ok_and(|c| c == "queued=1\njob_finished=2\n")
    });
    assert_eq!(read(&b, "9-me/host1/big.log").len(), 18 * 40_000);
}

/// P2 **Nothing is freed early**: while a file is open nothing under it is freed; and what is evicted can be brought back.
#[test]
fn nothing_is_freed_under_an_open_file_and_recall_brings_back() {
    let mut lab = Lab::new(Duration::from_secs(120));
    let a = lab.machine("drone1");
    lab.mount(&a);
    put(&a.mount, "10-me/host1/status.log", "GOOD\n");
    finish(&a.mount.join("10-me/host1"));
    a.offload();
    let open = fs::File::open(a.mount.join("10-me/host1/status.log")).expect("a file");
    let out = a.run(["evict", "10-me/host1"]);
    assert_eq!(out.status.code(), Some(3), "in use: {}", text(&out.stderr));
    assert!(a.state.join("spool/10-me/host1/status.log").exists());
    drop(open);
    wait_for("eviction", Duration::from_secs(10), || {
        a.run(["evict", "10-me/host1"]).status.code() == Some(0)
    });
    assert!(!a.state.join("spool/10-me/host1").exists());
    let out = a.run(["recall", "10-me/host1"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(
        fs::read_to_string(a.state.join("spool/10-me/host1/status.log")).expect("it is back"),
        "GOOD\n"
    );
    assert_eq!(read(&a, "10-me/host1/status.log"), "GOOD\n");
}

/// P8 **Writers never wait for the network.** With the results host away, jobs run, the queue grows, everything local and
/// everything already known stays listed; only remote bytes not cached fail, in bounded time.
#[test]
fn with_the_results_host_away_everything_local_goes_on() {
    let mut lab = Lab::new(Duration::from_secs(180));
    let (a, b) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&a);
    lab.mount(&b);
    put(&a.mount, "11-me/host1/status.log", "GOOD\n");
    finish(&a.mount.join("11-me/host1"));
    a.offload();
    b.catch_up(&a);
    assert!(names(&b, "11-me/host1").contains(&"status.log".to_owned()));
    lab.kill_serve();
    for pid in sessions_below(&lab) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    put(&b.mount, "12-me/host2/status.log", "written while away\n");
    finish(&b.mount.join("12-me/host2"));
    assert_eq!(names(&b, ""), ["11-me", "12-me"]);
    assert!(names(&b, "11-me/host1").contains(&"status.log".to_owned()), "what is known stays listed");
    lab.start_serve();
    b.offload();
    shows(&a, "12-me/host2/status.log", "written while away\n");
    shows(&b, "11-me/host1/status.log", "GOOD\n");
}

/// The `serve --stdio` processes of this lab.
fn sessions_below(lab: &Lab) -> Vec<rustix::process::Pid> {
    crate::harness::processes_with(&[&lab.path().display().to_string(), "--stdio"])
}
