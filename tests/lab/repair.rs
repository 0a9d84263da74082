//! A store that has lost its packs: what hosts still have comes back by itself, what nobody has is an error to read, and all of it is told.

use std::{collections::BTreeSet, fs, process::Stdio, time::Duration};

use serde_json::Value;

use crate::harness::{Lab, Machine, noise, text, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

const FILES: [(&str, usize); 2] = [("own", 9_000), ("core", 3_000_000)];

fn content(number: u32, name: &str, bytes: usize) -> Vec<u8> {
    noise(&format!("{name} of {number}"), bytes)
}

fn job(machine: &Machine, number: u32) {
    let dir = machine.mount.join(format!("{number}-me/host1"));
    fs::create_dir_all(&dir).expect("a directory");
    for (name, bytes) in FILES {
        fs::write(dir.join(name), content(number, name, bytes)).expect("written");
    }
    for label in ["autoserv", "parser", "archiver"] {
        fs::write(dir.join(format!(".{label}_execute")), format!("{number}\n0\n0\n")).expect("written");
    }
}

/// Whether the job can be read; what is read is right, or the error is EIO.
fn is_whole(machine: &Machine, number: u32) -> bool {
    FILES.iter().all(|(name, bytes)| {
        match fs::read(machine.mount.join(format!("{number}-me/host1/{name}"))) {
            Ok(found) => {
                assert!(found == content(number, name, *bytes), "{name} of job {number} on {}", machine.name);
                true
            }
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO), "{name} of job {number}: {e}");
                false
            }
        }
    })
}

fn rows(machine: &Machine, args: &[&str], code: i32) -> Vec<Value> {
    let out = machine.run(["--json"].iter().chain(args));
    assert_eq!(out.status.code(), Some(code), "{args:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout).lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The jobs of which something is lost.
fn lost_jobs(rows: &[Value]) -> BTreeSet<String> {
    let of = |path: &Value| path.as_str().expect("a path").split('/').next().expect("a name").to_owned();
    let lost = rows.iter().filter(|row| row["kind"] == "lost").map(|row| of(&row["path"]));
    let manifests = rows.iter().filter(|row| row["code"] == "manifest-missing" && row["repaired"] == false);
    let units = manifests.flat_map(|row| row["units"].as_array().cloned().unwrap_or_default());
    lost.chain(units.map(|unit| of(&unit))).collect()
}

#[test]
fn what_hosts_have_comes_back_after_the_packs_were_lost() {
    let mut lab = Lab::with_store(Duration::from_secs(120), "pack_bytes=4000000");
    let (a, b) = (lab.machine("drone1"), lab.machine("drone2"));
    let results = lab.machine("results");
    lab.mount(&a);
    lab.mount(&b);
    (1..=4).for_each(|number| job(&a, number));
    a.offload();
    b.catch_up(&a);
    // The first two stay on their drone, the third is in the other's cache, the fourth nowhere but in the store.
    for number in [3, 4] {
        let out = a.run(["evict", &format!("{number}-me")]);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    }
    assert!(is_whole(&b, 3));
    assert_eq!(rows(&results, &["verify", "--store", "--read-data"], 0).len(), 1);

    // Hosts come back meanwhile and open the store for themselves.
    lab.kill_serve();
    for pack in fs::read_dir(lab.store().join("packs")).expect("packs").flatten() {
        fs::write(pack.path(), b"").expect("emptied");
    }
    let repaired = rows(&results, &["verify", "--store", "--repair"], 4);
    let all: BTreeSet<String> = (1..=4).map(|number| format!("{number}-me")).collect();
    assert_eq!(lost_jobs(&repaired), all, "{repaired:?}");

    lab.start_serve();
    let left = || {
        let out = results.run(["--json", "verify", "--store"]);
        let rows: Vec<Value> =
            text(&out.stdout).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        lost_jobs(&rows)
    };
    let fourth = BTreeSet::from(["4-me".to_owned()]);
    wait_for("all but one to come back", PATIENCE, || left() == fourth);
    assert!((1..=3).all(|number| is_whole(&b, number)), "read from the store");
    assert!(!is_whole(&b, 4) && !is_whole(&a, 4), "reading it is an error");
    assert_eq!(fs::read_dir(b.mount.join("4-me/host1")).expect("lists").count(), 5);
    let verified = rows(&results, &["verify", "--store", "--read-data", "--unpack"], 4);
    assert_eq!(lost_jobs(&verified), fourth, "{verified:?}");
    let refused = results.run(["gc"]);
    assert_eq!(refused.status.code(), Some(1), "nobody knows what the lost recipe needs");
    assert!(text(&refused.stderr).contains("verify --store"), "{}", text(&refused.stderr));

    // Somebody has a copy of the fourth and puts it where it was.
    let dir = a.mount.join("4-me/host1");
    for entry in fs::read_dir(&dir).expect("lists").flatten() {
        fs::remove_file(entry.path()).expect("its own");
    }
    job(&a, 4);
    a.offload();
    wait_for("the store to be whole", PATIENCE, || left().is_empty());
    assert_eq!(rows(&results, &["verify", "--store", "--read-data", "--unpack"], 0).len(), 1);
    b.catch_up(&a);
    assert!(is_whole(&b, 4));
    assert!(!lab.store().join("lost").exists(), "nothing is lost any more");
}

/// Turns a byte of a file, and leaves no trace of it in its times.
fn spoil(path: &std::path::Path) {
    use std::os::unix::fs::FileExt;
    let meta = fs::metadata(path).expect("there");
    let file = fs::File::options().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, meta.len() / 2).expect("read");
    file.write_all_at(&[byte[0] ^ 8], meta.len() / 2).expect("written");
    file.set_times(fs::FileTimes::new().set_modified(meta.modified().expect("a time"))).expect("set");
}

/// A disk that gives other bytes than it was given: the spool's copy goes into quarantine, and the store's takes its place, under each of its names; not
/// while somebody has it open, and not where somebody has changed it.
#[test]
fn what_the_spools_disk_has_spoiled_comes_back_from_the_store() {
    let mut lab = Lab::new(Duration::from_secs(120));
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    job(&drone, 1);
    let dir = "1-me/host1";
    fs::hard_link(drone.mount.join(dir).join("core"), drone.mount.join(dir).join("again")).expect("a link");
    drone.offload();
    let spool = drone.state.join("spool").join(dir);
    for name in ["own", "core"] {
        spoil(&spool.join(name));
    }
    let changed = fs::read(spool.join(".parser_execute")).expect("there");
    fs::write(spool.join(".parser_execute"), [&changed[..], b"1\n"].concat())
        .expect("written past the mount");
    let check = ["verify", "--local", "--read-data"];
    let found = rows(&drone, &check, 4);
    let paths = |rows: &[Value]| -> BTreeSet<String> {
        let left = rows.iter().filter(|row| row["kind"] == "finding" && row["repaired"] == false);
        left.map(|row| row["paths"][0].as_str().expect("a path").to_owned()).collect()
    };
    let full = |names: &[&str]| names.iter().map(|name| format!("{dir}/{name}")).collect::<BTreeSet<_>>();
    assert_eq!(paths(&found), full(&["again", "core", "own", ".parser_execute"]), "{found:?}");

    let repair = ["verify", "--local", "--read-data", "--repair"];
    let open = fs::File::open(drone.mount.join(dir).join("own")).expect("opens");
    let refused = rows(&drone, &repair, 4);
    assert_eq!(paths(&refused).len(), 4, "somebody is in the unit: {refused:?}");
    drop(open);
    wait_for("the file to be closed", PATIENCE, || paths(&rows(&drone, &repair, 4)).len() == 1);
    assert!(is_whole(&drone, 1));
    assert_eq!(paths(&rows(&drone, &check, 4)), full(&[".parser_execute"]), "that was somebody");
    let (one, other) = (fs::metadata(spool.join("core")), fs::metadata(spool.join("again")));
    let inode =
        |meta: std::io::Result<fs::Metadata>| std::os::unix::fs::MetadataExt::ino(&meta.expect("there"));
    assert_eq!(inode(one), inode(other), "they are one file");
    let kept: BTreeSet<String> = fs::read_dir(drone.state.join("quarantine"))
        .expect("a directory")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(kept, BTreeSet::from(["again.1".to_owned(), "own.1".to_owned()]));
    assert_ne!(fs::read(drone.state.join("quarantine/own.1")).expect("there"), content(1, "own", 9_000));

    // A crash has left one of the names with what was spoiled.
    let again = spool.join("again");
    fs::remove_file(&again).expect("its own");
    let mut copy = std::process::Command::new("cp");
    assert!(copy.arg("-p").arg(spool.join("core")).arg(&again).status().expect("runs").success());
    spoil(&again);
    assert_eq!(paths(&rows(&drone, &check, 4)), full(&["again", ".parser_execute"]));
    assert_eq!(paths(&rows(&drone, &repair, 4)), full(&[".parser_execute"]));
    assert_eq!(
        inode(fs::metadata(spool.join("core"))),
        inode(fs::metadata(&again)),
        "they are one file again"
    );
    assert_eq!(fs::read(&again).expect("there"), content(1, "core", 3_000_000));
    assert!(
        drone.state.join("quarantine/again.2").exists() && !drone.state.join("quarantine/core.1").exists()
    );
}

/// Turns a byte in the midst of each pack.
fn spoil_packs(lab: &Lab) {
    fs::read_dir(lab.store().join("packs")).expect("packs").flatten().for_each(|pack| spoil(&pack.path()));
}

fn bytes_read(rows: &[Value]) -> u64 {
    rows.last().and_then(|row| row["bytes_read"].as_u64()).expect("a summary")
}

/// The daemon closes the store for it, and opens it anew; drones wait and give back what was lost. What is whole disturbs nobody. A `serve --stdio` likewise.
#[test]
fn a_store_in_use_is_repaired_by_who_has_it_open() {
    let mut lab = Lab::with_store(Duration::from_secs(120), "pack_bytes=1000000");
    let drone = lab.machine("drone1");
    let results = lab.machine("results");
    lab.mount(&drone);
    job(&drone, 1);
    drone.offload();
    let session = drone.status()["connection"]["since_ms"].clone();
    let repair = ["verify", "--store", "--repair"];
    assert_eq!(rows(&results, &repair, 0).len(), 1);
    assert_eq!(drone.status()["connection"]["since_ms"], session, "a store that is whole isn't closed");

    let is_whole_again = |lab: &Lab| {
        let all = ["verify", "--store", "--read-data", "--unpack"];
        wait_for("what was lost to come back", PATIENCE, || results.run(all).status.code() == Some(0));
        assert!(lab.store().join("quarantine").exists());
        job(&drone, 2);
        drone.offload();
        assert!(is_whole(&drone, 1) && is_whole(&drone, 2));
    };
    spoil_packs(&lab);
    let mended = rows(&results, &repair, 4);
    assert!(mended.iter().any(|row| row["kind"] == "finding" && row["repaired"] == true), "{mended:?}");
    let daemon = format!("/proc/{}/exe", lab.serve_pid().as_raw_nonzero());
    assert!(fs::read_link(daemon).is_ok(), "the daemon has not ended");
    is_whole_again(&lab);

    // Without a daemon, the drone's own session has it open.
    lab.kill_serve();
    wait_for("the drone to be back", PATIENCE, || drone.status()["connection"]["state"] == "up");
    spoil_packs(&lab);
    rows(&results, &repair, 4);
    is_whole_again(&lab);
}

/// Ctrl-C, or a service that is stopped: the next check goes on there.
#[test]
fn a_check_that_is_cancelled_goes_on_later() {
    let mut lab = Lab::with_store(Duration::from_secs(120), "pack_bytes=1000000");
    let drone = lab.machine("drone1");
    let results = lab.machine("results");
    lab.mount(&drone);
    (1..=2).for_each(|number| job(&drone, number));
    drone.offload();
    let all = bytes_read(&rows(&results, &["verify", "--store", "--read-data"], 0));
    let verified = lab.store().join("verified");
    let noted = || fs::metadata(&verified).map_or(0, |meta| meta.len());
    let whole = noted();
    let cancel = || {
        let slow = ["verify", "--store", "--read-data", "--throttle", "1"];
        let mut check = results.command(slow).stdout(Stdio::null()).spawn().expect("it runs");
        // A head, an entry for each pack that was read, and at the end one more.
        wait_for("a part to be read", PATIENCE, || (40..whole).contains(&noted()));
        let pid = rustix::process::Pid::from_child(&check);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it is there");
        assert_eq!(check.wait().expect("it ends").code(), Some(32));
    };
    let resume = ["verify", "--store", "--read-data", "--resume"];
    let goes_on = || {
        let rest = bytes_read(&rows(&results, &resume, 0));
        assert!(0 < rest && rest < all, "{rest} of {all}");
        assert_eq!(bytes_read(&rows(&results, &resume, 0)), all, "that one came to its end");
    };
    cancel();
    goes_on();
    // By the files, where nobody has the store open.
    lab.umount(&drone);
    lab.kill_serve();
    cancel();
    goes_on();
}

/// What the cache's disk has spoiled costs a fetch, and nobody reads it.
#[test]
fn what_the_caches_disk_has_spoiled_is_dropped() {
    let mut lab = Lab::new(Duration::from_secs(120));
    let (a, b) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&a);
    lab.mount(&b);
    job(&a, 1);
    a.offload();
    b.catch_up(&a);
    assert!(is_whole(&b, 1));
    let check = ["verify", "--local", "--read-data"];
    let repair = ["verify", "--local", "--read-data", "--repair"];
    assert!(bytes_read(&rows(&b, &check, 0)) > 3_000_000);
    let blocks = || fs::read_dir(b.state.join("cache")).expect("a cache").flatten();
    let all = blocks().count();
    blocks().for_each(|block| spoil(&block.path()));
    let damaged = |rows: &[Value]| rows.iter().filter(|row| row["code"] == "cache-damaged").count();
    assert_eq!(damaged(&rows(&b, &check, 4)), all);
    assert_eq!(rows(&b, &["verify", "--local"], 0).len(), 1, "it isn't read");
    assert_eq!(damaged(&rows(&b, &repair, 1)), all);
    assert_eq!(blocks().count(), 0);
    // What was read just now is in memory, too.
    lab.umount(&b);
    lab.mount(&b);
    assert!(is_whole(&b, 1));
    assert!(bytes_read(&rows(&b, &check, 0)) > 3_000_000, "it is there again");
}
