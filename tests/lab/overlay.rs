//! Archived units stay writable: deleting what others committed, with and without the right to it.

use std::{fs, path::Path, process::Command, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use walkdir::WalkDir;

use crate::{
    faults::mount_again,
    harness::{Lab, Machine, assert_same, picture, processes_with, text, wait_for},
};

pub fn put(dir: &Path, name: &str, content: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// A job of one host, played to its end and committed.
pub fn job(machine: &Machine, name: &str) {
    for (at, content) in [("debug/client.DEBUG", "log\n"), ("status.log", "GOOD\n"), ("keyval", "a=b\n")] {
        put(&machine.mount, &format!("{name}/host1/{at}"), content);
    }
    put(&machine.mount, &format!("{name}/.machines"), "host1\n");
    for label in ["autoserv", "parser", "archiver"] {
        put(&machine.mount, &format!("{name}/host1/.{label}_execute"), "1\n0\n0\n");
    }
    // To rsync, directories of the same second have the same time: it would leave them with that of its own run.
    sh(r#"find "$1" -exec touch -d "1 hour ago" {} +"#, &[&machine.mount.join(name)]);
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

pub fn commit_all(machine: &Machine) {
    wait_for("everything to be committed", Duration::from_secs(60), || {
        machine.offload();
        let settled = |state: Option<&str>| matches!(state, Some("committed" | "evicted" | "remote"));
        machine.json(["jobs"]).iter().all(|unit| settled(unit["state"].as_str()))
    });
}

pub fn evict(machine: &Machine, path: &str) {
    wait_for("eviction", Duration::from_secs(20), || machine.run(["evict", path]).status.success());
}

pub fn sh(script: &str, args: &[&Path]) {
    let out = Command::new("bash").args(["-euc", script, "test"]).args(args).output().expect("runs");
    assert!(out.status.success(), "{script}\n{}{}", text(&out.stdout), text(&out.stderr));
}

/// Writing the same again (rsync by Autotest itself, `cp -p`) opens no new generation: the catalog doesn't move, wherever the unit is, and what was
/// freed is freed again.
#[test]
fn the_same_again_is_no_new_generation() {
    let mut lab = Lab::new(Duration::from_secs(180));
    let a = lab.machine("drone1");
    lab.mount(&a);
    job(&a, "7-me");
    let copy = lab.path().join("copy");
    sh(r#"cp -a "$1" "$2""#, &[&a.mount.join("7-me"), &copy]);
    let seq = a.seq();
    let unchanged = |a: &Machine| a.status()["offload"]["layers_unchanged"].as_u64().unwrap_or(0);
    for is_evicted in [false, true] {
        if is_evicted {
            evict(&a, "7-me");
        }
        let before = unchanged(&a);
        let script = r#"cp -p "$1/host1/keyval" "$2/host1/keyval"; rsync -a --ignore-times "$1/" "$2/""#;
        sh(script, &[&copy, &a.mount.join("7-me")]);
        commit_all(&a);
        assert!(unchanged(&a) > before, "something was looked at");
        assert_eq!(a.seq(), seq, "the catalog has not moved; evicted: {is_evicted}");
        assert_same("the tree", &picture(&copy), &picture(&a.mount.join("7-me")));
        assert_eq!(a.run(["verify", "--local"]).status.code(), Some(0));
    }
    evict(&a, "7-me");
    assert_same("the tree", &picture(&copy), &picture(&a.mount.join("7-me")));
}

/// P6 **Late writes count**, as a delta: a reparse of a large archived job moves kilobytes.
#[test]
fn a_reparse_moves_kilobytes() {
    let mut lab = Lab::new(Duration::from_secs(180));
    let a = lab.machine("drone1");
    lab.mount(&a);
    for i in 0..300 {
        let line = |line: u32| format!("{i} {}\n", blake3::hash(format!("{i} {line}").as_bytes()));
        let noise: String = (0..200).map(line).collect();
        put(&a.mount, &format!("7-me/host1/debug/{i}.log"), &noise);
    }
    job(&a, "7-me");
    evict(&a, "7-me");
    let sent = || a.status()["connection"]["bytes_sent"].as_u64().expect("a number");
    let (before, seq) = (sent(), a.seq());
    let exec = a.mount.join("7-me/host1");
    sh(
        r#"cd "$1"; exec 9> .parse.lock; flock 9; echo 77 > .parser_execute; echo parsed >> .parse.log; head -c 2000 /dev/urandom > job.serialize
           printf '77\n0\n0\n' > .parser_execute"#,
        &[&exec],
    );
    wait_for("the reparse to be committed", Duration::from_secs(60), || {
        a.offload();
        a.seq() > seq
    });
    let moved = sent() - before;
    assert!(moved < 64 << 10, "{moved} bytes sent");
    let brought = fs::read_dir(a.state.join("spool/7-me/host1/debug")).map_or(0, Iterator::count);
    assert_eq!(brought, 0, "nothing was brought back");
}

pub fn append(machine: &Machine, name: &str, line: &str) {
    let path = machine.mount.join(name);
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    std::io::Write::write_all(&mut file, line.as_bytes()).expect("appended");
}

/// Two hosts changing one file: the last commit wins on every mount, the other stays retrievable, and `explain` and `verify` say so. Never a mix.
#[test]
fn of_two_changes_the_last_commit_wins_and_the_other_can_be_had() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let (a, b) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&a);
    lab.mount(&b);
    job(&a, "7-me");
    b.catch_up(&a);
    let file = "7-me/host1/keyval";
    assert_eq!(fs::read_to_string(b.mount.join(file)).expect("read"), "a=b\n");
    let explained = |machine: &Machine| machine.json(["explain", file]).pop().expect("an object");
    assert_eq!(explained(&a)["conflict"], false);
    lab.kill_serve();
    for pid in processes_with(&[&lab.path().display().to_string(), "--stdio"]) {
        let _ = kill_process(pid, Signal::KILL);
    }
    append(&a, file, "by=a\n");
    append(&b, file, "by=b\n");
    lab.start_serve();
    let both = ["a=b\nby=a\n", "a=b\nby=b\n"];
    wait_for("both changes to be committed", Duration::from_secs(90), || {
        [&a, &b].iter().all(|machine| machine.run(["offload", "7-me/host1", "--wait"]).status.success())
            && explained(&a)["conflict"] == true
            && explained(&b)["conflict"] == true
    });
    let shown = fs::read_to_string(a.mount.join(file)).expect("read");
    assert!(both.contains(&&*shown), "{shown}");
    assert_eq!(fs::read_to_string(b.mount.join(file)).expect("read"), shown);
    for machine in [&a, &b] {
        let lost = explained(machine)["overtaken"][0].clone();
        let out = machine.run(["explain", "--cat", lost["host"].as_str().expect("a name"), file]);
        let other = both.iter().find(|text| **text != shown).expect("the other");
        assert_eq!((out.status.code(), &*text(&out.stdout)), (Some(0), *other), "{}", text(&out.stderr));
    }
    let findings = b.json(["verify", "--local"]);
    let conflict = findings.iter().find(|f| f["code"] == "conflict").expect("found");
    assert_eq!((&conflict["severity"], &conflict["paths"][0]), (&"warning".into(), &file.into()));
    // Whoever changes what shows has seen it.
    append(&b, file, "settled=1\n");
    wait_for("the conflict to be settled", Duration::from_secs(60), || {
        b.run(["offload", "7-me/host1", "--wait"]).status.success() && explained(&b)["conflict"] == false
    });
}

/// P3 **Nothing is ever deleted by an upload**: a host without the right that made a file, while it was away, where another has a directory by now, keeps
/// it, and is told why it isn't committed and what to do. Then everything goes on.
#[test]
fn a_file_made_apart_where_another_host_has_a_directory_is_kept_and_named() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let apart = "live_seconds: 0";
    let (a, b) = (lab.machine_with("drone1", apart), lab.machine_with("drone2", apart));
    lab.mount(&a);
    lab.mount(&b);
    job(&a, "7-me");
    b.catch_up(&a);
    // As long as it is open it isn't committed, and the other host knows nothing of it.
    let mut file = fs::File::create(b.mount.join("7-me/host1/out")).expect("made");
    put(&a.mount, "7-me/host1/out/x.log", "by a\n");
    wait_for("the directory to be committed", Duration::from_secs(60), || {
        let out = a.run(["offload", "7-me/host1", "--wait", "--timeout", "30"]);
        b.catch_up(&a);
        let seen = b.json(["explain", "7-me/host1/out/x.log"]).pop().expect("an object");
        out.status.success() && seen["other_hosts_entry"].is_object()
    });
    std::io::Write::write_all(&mut file, b"by b\n").expect("written");
    drop(file);

    let errors = || b.status()["errors"].to_string();
    wait_for("the refusal", Duration::from_secs(60), || {
        b.run(["offload", "7-me/host1"]);
        errors().contains("7-me/host1/out:")
    });
    assert!(errors().contains("`delete`") && errors().contains("Give it another name"), "{}", errors());
    let explained = text(&b.run(["explain", "7-me/host1"]).stdout);
    assert!(explained.contains("7-me/host1/out:"), "{explained}");
    let unit = b.json(["jobs", "7-me/host1"]);
    assert!(unit.iter().any(|u| u["state"] == "sealed"), "{unit:?}");
    assert_eq!(fs::read_to_string(b.mount.join("7-me/host1/out")).expect("read"), "by b\n");
    assert_eq!(fs::read_to_string(a.mount.join("7-me/host1/out/x.log")).expect("read"), "by a\n");

    // What it says is to be done can be done.
    fs::rename(b.mount.join("7-me/host1/out"), b.mount.join("7-me/host1/out.b")).expect("renamed");
    assert_eq!(fs::read_to_string(b.mount.join("7-me/host1/out/x.log")).expect("read"), "by a\n");
    wait_for("the file under its new name", Duration::from_secs(90), || {
        b.run(["offload", "7-me/host1", "--wait", "--timeout", "30"]);
        fs::read_to_string(a.mount.join("7-me/host1/out.b")).is_ok_and(|text| text == "by b\n")
    });
    assert_same("both hosts", &picture(&a.mount), &picture(&b.mount));
    assert_eq!(errors(), "[]");
    let refused = fs::remove_file(b.mount.join("7-me/host1/out/x.log")).expect_err("another host's");
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::PERM.raw_os_error()));
}
