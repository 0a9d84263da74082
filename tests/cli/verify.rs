//! `verify` finds what is damaged or lost, whoever has the journal and the store open.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    harness::{Lab, Machine, play_task, wait_for},
    said::Said,
};

const TASK: &str = "hosts/host1/1-verify";

fn run(machine: &Machine, words: &[&str]) -> Said {
    machine.run(words).into()
}

/// The results host, with a committed task of its own in its store.
fn results_host() -> (Lab, Machine) {
    let mut lab = Lab::bare(Duration::from_secs(120));
    lab.start_serve();
    let results = lab.machine("results");
    lab.mount(&results);
    play_task(&results.mount, 1);
    run(&results, &["offload", "--wait", "--timeout", "60"]).expect(0, &[]);
    (lab, results)
}

fn packs(lab: &Lab) -> Vec<PathBuf> {
    let found = walkdir::WalkDir::new(lab.store()).into_iter().flatten().map(walkdir::DirEntry::into_path);
    found.filter(|p| p.extension().is_some_and(|e| e == "pack")).collect()
}

/// Turns a byte in the middle of every pack.
fn damage_packs(lab: &Lab) {
    for pack in packs(lab) {
        let mut bytes = fs::read(&pack).expect("a pack");
        let middle = bytes.len() / 3;
        bytes[middle] ^= 0x40;
        fs::write(&pack, bytes).expect("written");
    }
}

/// The finding's units, and the exit code of fsck(8) for damage.
fn finds(machine: &Machine, words: &[&str]) -> Vec<String> {
    let said = run(machine, &[&["--json", "verify"], words].concat()).shows(4, &[]);
    let findings = said.json().into_iter().filter(|l| l["kind"] == "finding");
    let units = findings.flat_map(|l| l["units"].as_array().cloned().unwrap_or_default());
    units.map(|u| u.as_str().expect("text").to_owned()).collect()
}

#[test]
fn a_sound_host_is_clean_with_and_without_daemons() {
    let (mut lab, results) = results_host();
    let check = || {
        for words in [
            &["verify"][..],
            &["verify", "--read-data"],
            &["verify", "--local"],
            &["verify", "--store"],
            &["verify", TASK],
            &["verify", "--read-data", "--sample", "2/2"],
        ] {
            run(&results, words).shows(0, &["clean"]);
        }
        let lines = run(&results, &["--json", "verify", "--read-data"]).shows(0, &[]).json();
        let parts: Vec<&str> = lines.iter().filter_map(|l| l["part"].as_str()).collect();
        assert_eq!(parts, ["local", "store"]);
        assert!(lines.iter().all(|l| l["kind"] == "summary" && l["clean"] == true && l["units"].is_u64()));
    };
    check();
    lab.umount(&results);
    check();
    lab.kill_serve();
    check();
}

#[test]
fn a_turned_byte_in_a_pack_is_found_with_its_unit() {
    let (mut lab, results) = results_host();
    damage_packs(&lab);
    for _ in 0..2 {
        let units = finds(&results, &["--store", "--read-data"]);
        assert!(units.iter().any(|u| u.starts_with("hosts/host1")), "{units:?}");
        lab.kill_serve();
    }
}

#[test]
fn a_file_that_is_gone_from_the_spool_is_found() {
    let (mut lab, results) = results_host();
    run(&results, &["verify"]).shows(0, &[]);
    fs::remove_file(results.state.join("spool").join(TASK).join(".autoserv_execute")).expect("there");
    assert_eq!(finds(&results, &["--local"]), [TASK]);
    assert_eq!(finds(&results, &[TASK]), [TASK]);
    run(&results, &["verify", "--local", "hosts/host2"]).shows(0, &["clean"]);
    lab.umount(&results);
    assert_eq!(finds(&results, &["--local"]), [TASK]);
    run(&results, &["verify", "/etc/passwd"]).expect(16, &["hint: "]);
}

#[test]
fn other_content_in_the_spool_is_found_by_reading_it() {
    let (_lab, results) = results_host();
    let path = results.state.join("spool").join(TASK).join(".autoserv_execute");
    let meta = fs::metadata(&path).expect("there");
    let text = fs::read_to_string(&path).expect("text").replace('0', "1");
    fs::write(&path, text).expect("written");
    let time = fs::FileTimes::new().set_modified(meta.modified().expect("a time"));
    fs::File::options().write(true).open(&path).expect("there").set_times(time).expect("set");
    run(&results, &["verify", "--local"]).shows(0, &[]);
    assert_eq!(finds(&results, &["--local", "--read-data"]), [TASK]);
}

fn flip(path: &Path, part: usize) {
    let mut bytes = fs::read(path).expect("there");
    let at = bytes.len() / part;
    bytes[at] ^= 0x40;
    fs::write(path, bytes).expect("written");
}

/// What was damaged comes back from the copies; what was in the packs alone is named; and another command at work on the store isn't disturbed.
#[test]
fn a_store_is_repaired_while_nobody_has_it_open() {
    let (mut lab, results) = results_host();
    let repair = ["--json", "verify", "--store", "--repair"];
    lab.kill_serve();
    let store = lab.store();
    let lock = fs::File::open(store.join("lock")).expect("there");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("nobody has it");
    run(&results, &repair).expect(8, &["in use by another process", "hint: ", "another command"]);
    drop(lock);
    run(&results, &repair).shows(0, &[]);
    // Nobody but its owner may be left with files that he can't open.
    let owner = Some(65_534);
    let all =
        || walkdir::WalkDir::new(lab.store()).into_iter().map(|entry| entry.expect("there").into_path());
    all().for_each(|path| std::os::unix::fs::lchown(path, owner, owner).expect("root may"));

    fs::remove_file(store.join("store")).expect("there");
    flip(&store.join("catalog"), 2);
    fs::remove_file(store.join("index.redb")).expect("there");
    let said = run(&results, &repair).shows(1, &[]);
    let lines = said.json();
    let codes: Vec<&str> = lines.iter().filter_map(|l| l["code"].as_str()).collect();
    for expected in ["header-missing", "catalog-", "index-missing"] {
        assert!(codes.iter().any(|code| code.starts_with(expected)), "{codes:?}");
    }
    assert!(lines.iter().filter(|l| l["kind"] == "finding").all(|l| l["repaired"] == true), "{lines:?}");
    run(&results, &["verify", "--store", "--read-data"]).shows(0, &["clean"]);
    let others: Vec<PathBuf> =
        all().filter(|path| fs::symlink_metadata(path).expect("there").uid() != 65_534).collect();
    assert_eq!(others, Vec::<PathBuf>::new());

    damage_packs(&lab);
    let lines = run(&results, &repair).shows(4, &[]).json();
    let left = lines.iter().filter(|l| l["kind"] == "finding" && l["repaired"] == false);
    let left: Vec<&str> = left.filter_map(|l| l["code"].as_str()).collect();
    assert!(left.iter().all(|code| code.ends_with("-missing")) && !left.is_empty(), "{left:?}");
    assert!(lines.iter().any(|l| l["code"] == "block-damaged" && l["repaired"] == true), "{lines:?}");
    let kept = fs::read_dir(store.join("quarantine")).expect("made").count();
    assert_eq!(kept, 2, "catalog and pack");
    let again = run(&results, &repair).shows(4, &[]).json();
    assert_eq!(again.last().expect("a summary")["repaired"], 0, "{again:?}");
    lab.start_serve();
}

/// A page of a database that isn't what it was is found, and the host goes on from spool and store.
#[test]
fn damaged_databases_of_a_host_are_put_aside() {
    let (mut lab, results) = results_host();
    lab.umount(&results);
    let [journal, replica] = ["journal.redb", "replica.redb"].map(|name| results.state.join(name));
    let verify = ["--json", "verify", "--local"];
    let repair = ["--json", "verify", "--local", "--repair"];
    run(&results, &verify).shows(0, &[]);
    run(&results, &repair).shows(0, &[]);
    let good = fs::read(&journal).expect("there");
    let mut found = 0;
    for at in (0..good.len()).step_by(good.len() / 40) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x20;
        fs::write(&journal, &bytes).expect("written");
        let out = results.run(verify);
        assert_eq!(
            fs::read(&journal).expect("there") == bytes,
            out.status.code() == Some(4),
            "{at}: {out:?}"
        );
        found += usize::from(out.status.code() == Some(4));
    }
    assert!(found > 2, "{found}");

    for damaged in [good[..good.len() / 2].to_vec(), vec![0; good.len()], Vec::new()] {
        fs::write(&journal, damaged).expect("written");
        run(&results, &verify).shows(4, &["journal-damaged"]);
        let said = run(&results, &repair).shows(1, &["journal-damaged"]).json();
        assert!(said.iter().any(|l| l["code"] == "journal-damaged" && l["repaired"] == true), "{said:?}");
        lab.mount(&results);
        run(&results, &["offload", "--wait", "--timeout", "60"]).expect(0, &[]);
        run(&results, &["verify", "--local", "--read-data"]).shows(0, &["clean"]);
        assert!(results.mount.join(TASK).join(".autoserv_execute").exists());
        play_task(&results.mount, 2 + u32::try_from(found).expect("few"));
        found += 1;
        run(&results, &["offload", "--wait", "--timeout", "60"]).expect(0, &[]);
        lab.umount(&results);
    }
    flip(&replica, 3);
    let out = results.run(verify);
    assert!([Some(0), Some(4)].contains(&out.status.code()), "{out:?}");
    fs::write(&replica, b"nothing of a database").expect("written");
    run(&results, &verify).shows(4, &["replica-damaged"]);
    run(&results, &repair).shows(1, &["replica-damaged"]);
    lab.mount(&results);
    run(&results, &["offload", "--wait", "--timeout", "60"]).expect(0, &[]);
    run(&results, &["verify", "--read-data"]).shows(0, &["clean"]);
    assert_eq!(fs::read_dir(results.state.join("quarantine")).expect("made").count(), 4);
}

/// What a killed daemon leaves is no damage.
#[test]
fn the_databases_of_a_killed_daemon_are_sound() {
    let mut lab = Lab::bare(Duration::from_secs(120));
    lab.start_serve();
    let results = lab.machine("results");
    for id in 1..6 {
        lab.mount_with(&results, &["--unsupervised"]);
        play_task(&results.mount, id);
        run(&results, &["offload", "--wait", "--timeout", "60"]).expect(0, &[]);
        play_task(&results.mount, 10 + id);
        let pid = results.pid();
        let daemon = Pid::from_raw(pid.cast_signed()).expect("a pid");
        kill_process(daemon, Signal::KILL).expect("our own");
        wait_for("its end", Duration::from_secs(20), || !Path::new(&format!("/proc/{pid}")).exists());
        lab.umount(&results);
        for _ in 0..2 {
            run(&results, &["verify", "--local"]).shows(0, &["clean"]);
        }
    }
}

#[test]
fn what_only_reading_can_do_is_refused_without() {
    let (_lab, results) = results_host();
    for words in [&["verify", "--resume"][..], &["verify", "--throttle", "5"]] {
        run(&results, words).expect(16, &["--read-data"]);
    }
    run(&results, &["verify", "--read-data", "--resume", "--sample", "1/2"]).expect(16, &["--sample"]);
    run(&results, &["verify", "--read-data", "--throttle", "500"]).shows(0, &["clean"]);
}
