//! `gc` while everything goes on: mounts read, drones upload, the daemon serves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::harness::{Lab, Machine, noise, run, text, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
/// Packs of a few blocks; nobody's word holds for longer than a moment.
const TUNING: &str = "pack_bytes=200000,lease_ms=500";

fn machine(lab: &Lab, name: &str) -> Machine {
    lab.machine_with(name, "live_seconds: 1\nsettle_seconds: 600\ncache_max_mib: 16")
}

fn put(machine: &Machine, name: &str, content: &[u8]) {
    let path = machine.mount.join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn finish(machine: &Machine, exec_dir: &str) {
    for label in ["autoserv", "parser", "archiver"] {
        put(machine, &format!("{exec_dir}/.{label}_execute"), b"1\n0\n0\n");
    }
}

/// A job of a file of its own and one that several have.
fn job(machine: &Machine, number: usize) {
    put(machine, &format!("{number}-me/host1/own"), &noise(&format!("job {number}"), 90_000));
    put(machine, &format!("{number}-me/host1/core"), &noise(&format!("core {}", number % 3), 400_000));
    finish(machine, &format!("{number}-me/host1"));
}

fn is_whole(machine: &Machine, number: usize) {
    let read = |name: &str| fs::read(machine.mount.join(format!("{number}-me/host1/{name}")));
    let is = |name: &str, content: Vec<u8>| match read(name) {
        Ok(found) => assert!(found == content, "{name} of job {number} on {}", machine.name),
        Err(e) => panic!("{name} of job {number} on {}: {e}", machine.name),
    };
    is("own", noise(&format!("job {number}"), 90_000));
    is("core", noise(&format!("core {}", number % 3), 400_000));
}

fn pack_bytes(store: &Path) -> u64 {
    let packs = fs::read_dir(store.join("packs")).expect("packs").flatten();
    packs.filter_map(|pack| pack.metadata().ok()).map(|pack| pack.len()).sum()
}

fn gc(results: &Machine, args: &[&str]) -> (Value, Option<Value>) {
    let out = results.run(["--json", "gc"].iter().chain(args));
    assert_eq!(out.status.code(), Some(0), "{}{}", text(&out.stdout), text(&out.stderr));
    let rows: Vec<Value> =
        text(&out.stdout).lines().map(|l| serde_json::from_str(l).expect("a line of JSON")).collect();
    let find = |kind: &str| rows.iter().find(|row| row["kind"] == kind).cloned();
    (find("gc-plan").expect("a plan"), find("gc"))
}

/// What a running job has shown and replaced is reclaimed while another job uploads and another mount reads; all that counts is there
/// afterwards, by every byte, and the job goes on.
#[test]
fn garbage_of_a_running_job_goes_while_others_upload_and_read() {
    let mut lab = Lab::with_store(Duration::from_secs(400), TUNING);
    let (a, b, results) = (machine(&lab, "drone1"), machine(&lab, "drone2"), lab.machine("results"));
    lab.mount(&a);
    lab.mount(&b);
    (2..5).for_each(|number| job(&a, number));
    a.offload();
    b.catch_up(&a);
    let shown = Path::new("1-me/host1/state");
    for state in 0..8 {
        let content = noise(&format!("state {state}"), 500_000);
        put(&a, &shown.display().to_string(), &content);
        wait_for("the state on drone2", PATIENCE, || {
            fs::read(b.mount.join(shown)).is_ok_and(|found| found == content)
        });
    }
    let before = pack_bytes(&lab.store());
    let (over, there) = (AtomicBool::new(false), AtomicUsize::new(5));
    let freed = thread::scope(|scope| {
        let (over, there, a, b, results) = (&over, &there, &a, &b, &results);
        scope.spawn(move || {
            while !over.load(Ordering::Acquire) {
                (2..there.load(Ordering::Acquire)).for_each(|number| is_whole(b, number));
            }
        });
        let uploads = scope.spawn(move || {
            for number in 5..13 {
                job(a, number);
                a.offload();
                b.catch_up(a);
                there.store(number + 1, Ordering::Release);
            }
        });
        let (planned, nothing) = gc(results, &["--dry-run"]);
        assert!(nothing.is_none() && planned["free_bytes"].as_u64() > Some(0), "{planned}");
        let mut freed = 0;
        while !uploads.is_finished() || freed == 0 {
            let (_, done) = gc(results, &[]);
            freed += done.expect("it ran")["freed_bytes"].as_u64().expect("a number");
        }
        over.store(true, Ordering::Release);
        freed
    });
    assert!(freed > 2_000_000, "{freed} of {before}");
    b.catch_up(&a);
    (2..13).for_each(|number| is_whole(&b, number));
    let last = noise("state 7", 500_000);
    assert!(fs::read(b.mount.join(shown)).is_ok_and(|found| found == last), "what is shown stays");
    let verified = results.run(["verify", "--store", "--read-data"]);
    assert_eq!(verified.status.code(), Some(0), "{}", text(&verified.stdout));
    finish(&a, "1-me/host1");
    a.offload();
    // By itself, too, where nobody has the store open; what the job has left goes.
    lab.kill_serve();
    let (plan, done) = gc(&results, &[]);
    assert_eq!(
        done.expect("it ran")["packs"].as_u64(),
        Some(plan["drop_packs"].as_u64().unwrap_or(0) + plan["rewrite_packs"].as_u64().unwrap_or(0))
    );
    lab.start_serve();
    wait_for("the drone to be connected again", PATIENCE, || b.status()["connection"]["state"] == "up");
    (2..13).for_each(|number| is_whole(&b, number));
    let verified = results.run(["verify", "--store", "--read-data"]);
    assert_eq!(verified.status.code(), Some(0), "{}", text(&verified.stdout));
}

/// A small file system of its own; dropped after the lab that uses it.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn new(mib: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (image, place) = (dir.path().join("image"), dir.path().join("disk"));
        fs::create_dir(&place).expect("a directory");
        fs::File::create(&image).and_then(|file| file.set_len(mib << 20)).expect("an image");
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&place));
        Self { dir }
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("disk")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.place()).output();
    }
}

/// The results host's disk is full: what comes stays on its drone, which says why, and goes on; what is there can be read; and when `gc` has made
/// room, it is committed without anybody's doing.
#[test]
fn a_full_results_host_takes_nothing_new_until_there_is_room() {
    let disk = SmallDisk::new(64);
    let mut lab = Lab::bare(Duration::from_secs(400));
    std::os::unix::fs::symlink(disk.place(), lab.store()).expect("a link");
    lab.tune("pack_bytes=1000000,lease_ms=500,reserve_bytes=8000000");
    lab.start_sshd();
    lab.start_serve();
    let (a, b, results) = (machine(&lab, "drone1"), machine(&lab, "drone2"), lab.machine("results"));
    lab.mount(&a);
    lab.mount(&b);
    job(&a, 2);
    a.offload();
    b.catch_up(&a);
    for state in 0..20 {
        put(&a, "1-me/host1/state", &noise(&format!("state {state}"), 3_000_000));
        let free = rustix::fs::statvfs(disk.place()).expect("is there");
        if free.f_bavail * free.f_frsize < 12_000_000 {
            break;
        }
        let before = pack_bytes(&lab.store());
        wait_for("a snapshot, or no room for it", PATIENCE, || pack_bytes(&lab.store()) > before + 2_900_000);
    }
    put(&a, "3-me/host1/large", &noise("large", 12_000_000));
    finish(&a, "3-me/host1");
    let told = a.run(["offload", "--wait", "--timeout", "3", "3-me/host1"]);
    assert_eq!(told.status.code(), Some(1), "{}", text(&told.stderr));
    let unit = || a.json(["jobs", "3-me"]).into_iter().find(|job| job["unit"] == "3-me/host1");
    let note = || unit().and_then(|job| Some(job["note"].as_str()?.to_owned())).unwrap_or_default();
    wait_for("the reason", PATIENCE, || note().contains("disk is full") && note().contains("gc"));
    let why = text(&a.run(["explain", "3-me/host1"]).stdout);
    assert!(why.contains("sealed") && why.contains("disk is full"), "{why}");
    assert_eq!(a.status()["connection"]["state"], "up");
    is_whole(&b, 2);
    put(&a, "4-me/host1/own", b"written as ever");

    let (_, done) = gc(&results, &[]);
    assert!(done.as_ref().expect("it ran")["freed_bytes"].as_u64() > Some(15_000_000), "{done:?}");
    wait_for("the drone to try again", PATIENCE, || unit().is_some_and(|job| job["state"] == "committed"));
    b.catch_up(&a);
    assert!(
        fs::read(b.mount.join("3-me/host1/large")).is_ok_and(|found| found == noise("large", 12_000_000))
    );
    let verified = results.run(["verify", "--store", "--read-data"]);
    assert_eq!(verified.status.code(), Some(0), "{}", text(&verified.stdout));
}
