//! Archived units stay writable: deleting what others committed, with and without the right to it.

use std::{fs, path::Path, process::Command, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use walkdir::WalkDir;

use crate::{
    faults::{mount_again, processes_with},
    harness::{Lab, Machine, assert_same, picture, text, wait_for},
};

fn put(dir: &Path, name: &str, content: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// A job of one host, played to its end and committed.
fn job(machine: &Machine, name: &str) {
    for (at, content) in [("debug/client.DEBUG", "log\n"), ("status.log", "GOOD\n"), ("keyval", "a=b\n")] {
        put(&machine.mount, &format!("{name}/host1/{at}"), content);
    }
    put(&machine.mount, &format!("{name}/.machines"), "host1\n");
    for label in ["autoserv", "parser", "archiver"] {
        put(&machine.mount, &format!("{name}/host1/.{label}_execute"), "1\n0\n0\n");
    }
    wait_for("the job to be committed", Duration::from_secs(60), || {
        machine.offload();
        let jobs = machine.json(["jobs", name]);
        jobs.len() == 2 && jobs.iter().all(|unit| unit["state"] == "committed")
    });
}

fn kill(machine: &Machine) {
    let pid = i32::try_from(machine.pid()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::KILL).expect("our own child's child");
}

fn rm_rf(path: &Path) -> std::process::Output {
    Command::new("rm").arg("-rf").arg(path).output().expect("rm runs")
}

/// P3 **Nothing is ever deleted by an upload**, nor by a host without the right to: `rm -rf` of another host's job is refused before anything
/// has changed.
#[test]
fn without_the_right_rm_changes_nothing() {
    let mut lab = Lab::new(Duration::from_secs(180));
    let (a, b) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&a);
    lab.mount(&b);
    job(&a, "7-me");
    b.catch_up(&a);
    let before = picture(&b.mount);
    let out = rm_rf(&b.mount.join("7-me"));
    assert!(text(&out.stderr).contains("Operation not permitted"), "{}", text(&out.stderr));
    assert_same("after rm -rf", &before, &picture(&b.mount));
    assert_same("the owner's tree", &before, &picture(&a.mount));
    let own = b.json(["jobs"]).into_iter().filter(|unit| unit["host"] == "drone2").count();
    assert_eq!(
        (own, fs::read_dir(b.state.join("spool")).expect("a spool").count()),
        (0, 0),
        "nothing was begun"
    );
}

/// A job deleted through the mount is gone there at once, also with the store away, through a kill of the daemon, and everywhere once that is
/// committed; the store keeps what was deleted, and what comes later shows.
#[test]
fn a_deleted_job_is_gone_everywhere_and_stays_in_the_store() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let (a, b) = (lab.machine("drone1"), lab.machine_with_delete("admin"));
    lab.mount(&a);
    lab.mount_with(&b, &["--unsupervised"]);
    job(&a, "7-me");
    b.catch_up(&a);
    assert_same("the other host", &picture(&a.mount), &picture(&b.mount));
    lab.kill_serve();
    for pid in processes_with(&[&lab.path().display().to_string(), "--stdio"]) {
        let _ = kill_process(pid, Signal::KILL);
    }
    let out = rm_rf(&b.mount.join("7-me"));
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(picture(&b.mount), Vec::<String>::new());
    kill(&b);
    mount_again(&mut lab, &b);
    assert_eq!(picture(&b.mount), Vec::<String>::new(), "the deletion is durable");
    assert!(a.mount.join("7-me/host1/status.log").exists(), "and not committed yet");

    lab.start_serve();
    wait_for("the deletion on the other host", Duration::from_secs(90), || {
        b.run(["offload", "--wait", "--timeout", "30"]);
        a.catch_up(&b);
        !a.mount.join("7-me").exists()
    });
    assert!(
        WalkDir::new(a.state.join("spool/7-me")).into_iter().count() > 4,
        "what was in its spool is only hidden"
    );
    let results = lab.machine("results");
    let verify = results.run(["verify", "--store", "--read-data"]);
    assert_eq!(verify.status.code(), Some(0), "{}", text(&verify.stdout));
    let local = b.run(["verify", "--local"]);
    assert_eq!(local.status.code(), Some(0), "{}", text(&local.stdout));

    put(&a.mount, "7-me/host1/late.log", "late\n");
    wait_for("the late file on the deleter", Duration::from_secs(60), || {
        a.run(["offload", "7-me/host1", "--wait", "--timeout", "30"]);
        b.mount.join("7-me/host1/late.log").exists()
    });
    assert!(!b.mount.join("7-me/host1/status.log").exists());
    assert!(!a.mount.join("7-me/host1/status.log").exists());
}
