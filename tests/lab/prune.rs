//! Retention with real mounts: what is pruned vanishes, comes back as it was, and is given up when its grace is over.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::{
    faults::mount_again,
    harness::{Lab, Machine, Random, assert_same, picture, processes_with, text, wait_for},
    overlay::{append, job, put},
    takeover::daemon,
};

fn results_of(rows: &[Value], wanted: &str) -> Vec<String> {
    let rows = rows.iter().filter(|row| row["result"] == wanted);
    rows.filter_map(|row| row["unit"].as_str().map(str::to_owned)).collect()
}

fn refusal<const N: usize>(machine: &Machine, args: [&str; N]) -> (Option<i32>, String) {
    let out = machine.run(args);
    (out.status.code(), text(&out.stderr))
}

fn now<'a>(pattern: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["prune", "--older-than", "0", "--match", pattern], more].concat()
}

fn gone(machine: &Machine, path: &str) {
    wait_for("the pruned job to go", Duration::from_secs(30), || !machine.mount.join(path).exists());
}

fn is_back(machine: &Machine, whole: &[String]) {
    wait_for("the job to be back", Duration::from_secs(30), || picture(&machine.mount) == whole);
}

fn explained(machine: &Machine, path: &str) -> Value {
    machine.json(["explain", path]).pop().expect("an object")
}

fn verified(results: &Machine, machines: &[&Machine]) {
    for machine in machines {
        let local = machine.run(["verify", "--local"]);
        assert_eq!(local.status.code(), Some(0), "{}: {}", machine.name, text(&local.stdout));
    }
    let store = results.run(["verify", "--store", "--read-data"]);
    assert_eq!(store.status.code(), Some(0), "{}", text(&store.stdout));
}

fn sent_bytes(machine: &Machine) -> u64 {
    machine.status()["connection"]["bytes_sent"].as_u64().expect("a number")
}

fn cut_off(lab: &mut Lab) {
    lab.kill_serve();
    for pid in processes_with(&[&lab.path().display().to_string(), "--stdio"]) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn read_ms(results: &Machine, unit: &str) -> u64 {
    let rows = results.json(["prune", "--older-than", "0", "--dry-run"]);
    let row = rows.iter().find(|row| row["unit"] == unit).expect("it would go");
    row["read_ms"].as_u64().expect("a number")
}

/// The store hears that somebody has read something of a job, on whichever host and whether its bytes were there already. To look at names isn't to read.
#[test]
fn what_is_read_on_any_mount_is_known_to_the_store() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let results = lab.machine("results");
    let (a, b) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&a);
    lab.mount(&b);
    job(&a, "7-me");
    job(&a, "8-me");
    b.catch_up(&a);
    let began = read_ms(&results, "7-me/host1");
    let names = std::process::Command::new("find").arg(&b.mount).arg("-ls").output().expect("find runs");
    assert!(names.status.success() && text(&names.stdout).contains("8-me/host1/status.log"));
    fs::read(b.mount.join("7-me/host1/status.log")).expect("reads");
    wait_for("the store to know", Duration::from_secs(30), || read_ms(&results, "7-me/host1") > began);
    assert_eq!(read_ms(&results, "7-me/."), began);
    assert_eq!(read_ms(&results, "8-me/host1"), began);
    fs::read(a.mount.join("8-me/host1/keyval")).expect("reads");
    wait_for("the store to know", Duration::from_secs(30), || read_ms(&results, "8-me/host1") > began);
    lab.kill_serve();
    lab.start_serve();
    assert!(read_ms(&results, "7-me/host1") > began, "it outlives the store's daemon");
}

/// A pruned job vanishes from every mount, its drone's disk is free of it, and it isn't sent again. Undeleted, it is as it was, on every mount, and writable.
/// After its grace it is given up: nothing brings it back, and nobody misses it.
#[test]
fn a_pruned_job_vanishes_comes_back_and_is_given_up() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let results = lab.machine_with("results", "prune_grace_days: 0");
    let (a, b) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&a);
    lab.mount(&b);
    job(&a, "7-me");
    job(&a, "8-me");
    b.catch_up(&a);
    let whole = picture(&a.mount);
    assert_same("the other drone", &whole, &picture(&b.mount));
    let in_spool = |name: &str| a.state.join("spool").join(name).exists();
    assert!(in_spool("7-me/host1/status.log"), "it is to be freed by the prune");

    let plan = results.json(now("7-*", &["--dry-run"]));
    assert_eq!(results_of(&plan, "planned"), ["7-me/.", "7-me/host1"]);
    assert_same("a plan changes nothing", &whole, &picture(&a.mount));
    let (code, why) = refusal(&results, ["prune", "--older-than", "0"]);
    assert!(code == Some(1) && why.contains("is every job") && why.contains("--yes"), "{why}");
    let done = results.json(now("7-*", &[]));
    assert_eq!(results_of(&done, "pruned"), ["7-me/.", "7-me/host1"]);
    for machine in [&a, &b] {
        gone(machine, "7-me");
        assert!(picture(&machine.mount).iter().all(|line| line.starts_with("\"8-me")), "{}", machine.name);
    }
    wait_for("the spool to be free of it", Duration::from_secs(30), || !in_spool("7-me"));
    let told = explained(&b, "7-me/host1");
    let life = &told["older_incarnations"][0];
    assert_eq!(
        (&life["ended"], &life["undelete"]),
        (&"pruned".into(), &"resultsfs undelete 7-me/host1".into()),
        "{told}"
    );
    assert!(life["rule"].as_str().is_some_and(|rule| rule.contains("matching 7-*")), "{told}");

    // It isn't sent again: not by this daemon, nor by the next, who compares what it has with the catalog.
    let seq = a.seq();
    lab.umount(&a);
    mount_again(&mut lab, &a);
    a.catch_up(&b);
    a.offload();
    b.catch_up(&a);
    assert_eq!((a.seq(), b.seq()), (seq, seq), "nothing was committed");
    assert!(!a.mount.join("7-me").exists());

    let sent = sent_bytes(&a);
    let back = results.json(["undelete", "7-me"]);
    assert_eq!(results_of(&back, "undeleted"), ["7-me/.", "7-me/host1"]);
    is_back(&a, &whole);
    is_back(&b, &whole);
    assert!(sent_bytes(&a) - sent < 20_000, "nothing of it was sent for that");
    let again = results.json(["undelete", "7-me/host1"]);
    assert_eq!(results_of(&again, "shown"), ["7-me/host1"]);
    let evicted = a.run(["evict", "7-me"]);
    assert!(evicted.status.success(), "there is nothing to free: {}", text(&evicted.stderr));
    assert!(a.run(["recall", "7-me"]).status.success());
    append(&a, "7-me/host1/keyval", "late=1\n");
    wait_for("the late line to be committed", Duration::from_secs(60), || {
        a.offload();
        explained(&b, "7-me/host1")["layers"][0]["generation"] == 2
    });
    assert_eq!(fs::read_to_string(b.mount.join("7-me/host1/keyval")).expect("shown"), "a=b\nlate=1\n");
    verified(&results, &[&a, &b]);

    assert_eq!(results_of(&results.json(now("7-*", &[])), "pruned").len(), 2);
    let purged = results.json(["prune"]);
    assert_eq!(results_of(&purged, "purged"), ["7-me/.", "7-me/host1"], "{purged:?}");
    let (code, why) = refusal(&results, ["undelete", "7-me"]);
    assert!(code == Some(1) && why.contains("it was purged as"), "{why}");
    wait_for("the other drone to hear of it", Duration::from_secs(30), || {
        explained(&b, "7-me/host1")["older_incarnations"][0]["purged_seq"].is_u64()
    });
    assert!(explained(&b, "7-me/host1")["older_incarnations"][0]["get"].is_null());
    let to = lab.path().join("exported").display().to_string();
    let (code, why) = refusal(&b, ["export", "7-me", "--to", &to, "--incarnation", "1"]);
    assert!(code == Some(1) && why.contains("incarnation 1 was purged as"), "{why}");
    job(&a, "7-me");
    b.catch_up(&a);
    assert_eq!(fs::read_to_string(b.mount.join("7-me/host1/keyval")).expect("a new one"), "a=b\n");
    verified(&results, &[&a, &b]);
}

/// A host that has begun something under a pruned name, and that nobody has heard of when it is undeleted: what it wrote is on top of what is back, for
/// everybody, and nothing of either is lost.
#[test]
fn what_was_begun_meanwhile_is_on_top_of_what_is_back() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let results = lab.machine("results");
    let (a, b) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&a);
    lab.mount(&b);
    job(&a, "7-me");
    b.catch_up(&a);
    assert_eq!(results_of(&results.json(now("7-*", &["--yes"])), "pruned").len(), 2);
    gone(&a, "7-me");
    gone(&b, "7-me");
    wait_for("the spool to be free of it", Duration::from_secs(30), || !a.state.join("spool/7-me").exists());
    cut_off(&mut lab);
    put(&a.mount, "7-me/host1/debug/new.log", "new\n");
    put(&a.mount, "7-me/host1/keyval", "new=1\n");
    lab.umount(&a);
    lab.start_serve();
    assert_eq!(results_of(&results.json(["undelete", "7-me"]), "undeleted").len(), 2);
    mount_again(&mut lab, &a);
    let read =
        |machine: &Machine, at: &str| fs::read_to_string(machine.mount.join("7-me/host1").join(at)).ok();
    wait_for("both on the host itself", Duration::from_secs(60), || {
        read(&a, "status.log").is_some() && read(&a, "debug/new.log").is_some()
    });
    assert!(a.run(["complete", "7-me/host1"]).status.success());
    wait_for("both for the others", Duration::from_secs(60), || {
        a.offload();
        read(&b, "debug/new.log").as_deref() == Some("new\n")
    });
    for machine in [&a, &b] {
        assert_eq!(read(machine, "keyval").as_deref(), Some("new=1\n"), "{}: the newer", machine.name);
        assert_eq!(read(machine, "debug/client.DEBUG").as_deref(), Some("log\n"), "{}", machine.name);
        assert!(Path::exists(&machine.mount.join("7-me/.machines")), "{}", machine.name);
    }
    wait_for("the same on both", Duration::from_secs(60), || {
        a.offload();
        picture(&a.mount) == picture(&b.mount)
    });
    let told = explained(&b, "7-me/host1");
    assert_eq!(
        (&told["layers"][0]["generation"], &told["older_incarnations"]),
        (&2.into(), &Value::Null),
        "{told}"
    );
    verified(&results, &[&a, &b]);
}

/// The files that show, with mode, time and content. What goes while it is looked at isn't there.
fn files(machine: &Machine) -> BTreeMap<PathBuf, (u32, SystemTime, Vec<u8>)> {
    let walk = walkdir::WalkDir::new(&machine.mount).into_iter().flatten();
    walk.filter_map(|entry| {
        let found = entry.path().symlink_metadata().ok().filter(fs::Metadata::is_file)?;
        let told = (found.permissions().mode(), found.modified().ok()?, fs::read(entry.path()).ok()?);
        Some((entry.path().strip_prefix(&machine.mount).ok()?.to_owned(), told))
    })
    .collect()
}

/// `kill -9` of a host's daemon at random moments while a job is pruned and undeleted again and again, before and after that host has freed and forgotten it: it
/// is as it was each time, on both mounts, nothing is committed for it, and what is left over is gone.
#[test]
fn kills_between_a_prune_and_an_undelete_lose_nothing() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let results = lab.machine("results");
    let (a, b) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&a);
    lab.mount(&b);
    for number in 0..40 {
        put(&a.mount, &format!("7-me/host1/debug/log.{number}"), &format!("{number}\n"));
    }
    job(&a, "7-me");
    b.catch_up(&a);
    let (whole, seq) = (files(&a), a.seq());
    let mut random = Random(3);
    for round in 0..8 {
        // So that there is something to be freed. In part of the rounds all of it is still here.
        if round % 2 == 0 {
            a.run(["recall", "7-me"]);
        }
        let kill = |random: &mut Random| {
            let mut victim = None;
            wait_for("a daemon", Duration::from_secs(30), || {
                victim = daemon(&a);
                victim.is_some()
            });
            std::thread::sleep(Duration::from_millis(random.below(25)));
            kill_process(victim.expect("a daemon"), Signal::KILL).expect("our own");
        };
        assert_eq!(results_of(&results.json(now("7-*", &["--yes"])), "pruned").len(), 2, "round {round}");
        kill(&mut random);
        if round % 4 < 2 {
            gone(&b, "7-me");
            wait_for("it to be gone", Duration::from_secs(30), || !a.mount.join("7-me").exists());
        }
        assert_eq!(results_of(&results.json(["undelete", "7-me"]), "undeleted").len(), 2, "round {round}");
        kill(&mut random);
        for machine in [&a, &b] {
            wait_for("the job to be back", Duration::from_secs(60), || files(machine) == whole);
        }
    }
    a.offload();
    b.catch_up(&a);
    assert_eq!((a.seq(), b.seq()), (seq + 16, seq + 16), "records of prunes and undeletes, and no others");
    verified(&results, &[&a, &b]);
}
