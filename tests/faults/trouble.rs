//! A disk that is full, has no inodes left, is beyond its quota, is read-only or fails, wherever something of ours lies.

use std::{
    fs,
    io::Write,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    disk::{Disk, Kind},
    harness::{Lab, Machine, run, text, wait_for},
    witness::{Witness, unit_of},
};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Spool,
    State,
    Cache,
    Store,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Full,
    NoInodes,
    Quota,
    ReadOnly,
    Failing,
}

struct Scene {
    lab: Lab,
    drone: Machine,
    reader: Machine,
    results: Machine,
    disk: Disk,
    kept: Witness,
}

impl Scene {
    fn new(place: Where, what: What) -> Self {
        let mut lab = Lab::bare(Duration::from_secs(200));
        let disk = lab.path().join("disk");
        let drone = lab.machine_with("drone1", &format!("spool_dir: {}", disk.join("spool").display()));
        let reader = lab.machine("drone2");
        let at = match place {
            Where::Spool => disk,
            Where::State => drone.state.clone(),
            Where::Cache => reader.state.join("cache"),
            Where::Store => lab.store(),
        };
        let kind = match what {
            What::NoInodes => Kind::Ext4Inodes(120),
            What::Quota => Kind::Btrfs,
            _ => Kind::Ext4,
        };
        let disk = Disk::at(&mut lab, &at, kind, if kind == Kind::Btrfs { 256 } else { 64 });
        lab.tune("reserve_bytes=100000,pack_bytes=4000000");
        lab.start_sshd();
        lab.start_serve();
        lab.mount(&drone);
        lab.mount(&reader);
        let results = lab.machine("results");
        Self { lab, drone, reader, results, disk, kept: Witness::default() }
    }

    fn offload(&mut self, jobs: std::ops::RangeInclusive<u32>) {
        self.drone.offload();
        jobs.for_each(|job| self.kept.promise_job(job, 9));
    }

    /// Whatever is committed and not on the disk in trouble can be read; what can't be gives EIO.
    fn reads(&self, what: What) {
        for machine in [&self.drone, &self.reader] {
            let broken = self.kept.broken(&machine.mount);
            let may_fail = what == What::Failing;
            let is_told = broken.iter().all(|line| line.contains("os error 5"));
            assert!(broken.is_empty() || may_fail && is_told, "{}: {broken:#?}", machine.name);
        }
    }

    fn begin(&mut self, what: What) {
        match what {
            What::Full => drop(self.disk.fill(0)),
            What::NoInodes => {
                let dir = self.disk.place().join("ballast");
                fs::create_dir(&dir).expect("a directory");
                while fs::File::create(dir.join(new_name())).is_ok() {}
            }
            What::Quota => {
                run(Command::new("btrfs").args(["quota", "enable"]).arg(self.disk.place()));
                run(Command::new("btrfs").args(["qgroup", "limit", "1M"]).arg(self.disk.place()));
            }
            What::ReadOnly => self.disk.remount("ro"),
            What::Failing => self.disk.cut_power(),
        }
    }

    fn end(&mut self, place: Where, what: What) {
        match what {
            What::Full => fs::remove_file(self.disk.place().join("ballast")).expect("ours"),
            What::NoInodes => fs::remove_dir_all(self.disk.place().join("ballast")).expect("ours"),
            What::Quota => {
                run(Command::new("btrfs").args(["qgroup", "limit", "none"]).arg(self.disk.place()));
            }
            What::ReadOnly => self.disk.remount("rw"),
            // A file system that has shut itself down comes back with its next mount, for which everybody must have closed it.
            What::Failing if place == Where::Store => {
                self.lab.close_store();
                self.disk.umount();
                self.disk.mount();
                self.lab.start_serve();
            }
            What::Failing => {}
        }
    }
}

/// A name that no file had yet.
fn new_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed).to_string()
}

/// What a writer gets to see of the trouble at once, if it is at the spool.
fn errno(what: What) -> i32 {
    match what {
        What::Full | What::NoInodes => libc::ENOSPC,
        What::Quota => libc::EDQUOT,
        What::ReadOnly => libc::EROFS,
        What::Failing => libc::EIO,
    }
}

/// Two jobs are committed, one of them evicted, a third is running; then the trouble begins, and ends.
fn live_through(place: Where, what: What) {
    let mut scene = Scene::new(place, what);
    for job in 1..=2 {
        scene.kept.job(&scene.drone.mount, job, 9).expect("played");
    }
    scene.offload(1..=2);
    assert!(scene.drone.run(["evict", &unit_of(2)]).status.success());
    scene.reader.catch_up(&scene.drone);
    let tree = scene.drone.mount.clone();
    fs::create_dir_all(tree.join("4-me/running")).expect("a directory");
    let place_of_log = tree.join("4-me/running/log");
    let open = || fs::File::options().append(true).create(true).open(&place_of_log);
    // A disk that somebody has open for writing can't be made read-only.
    let kept_open = (what != What::ReadOnly).then(|| open().expect("a log"));
    let mut written = String::new();
    let mut write = |text: &str| {
        match &kept_open {
            Some(log) => (&*log).write_all(text.as_bytes())?,
            None => open()?.write_all(text.as_bytes())?,
        }
        written.push_str(text);
        std::io::Result::Ok(())
    };
    write("before\n").expect("written");

    scene.begin(what);
    match (place, write("amid\n"), scene.kept.job(&tree, 3, 9)) {
        (Where::Spool, _, played) => {
            assert_eq!(played.expect_err("there is no place for it").raw_os_error(), Some(errno(what)));
            let errno = format!("os error {}", errno(what));
            wait_for("the daemon to notice", PATIENCE, || {
                scene.drone.status()["spool"]["error"].as_str().is_some_and(|why| why.contains(&errno))
            });
            assert_eq!(scene.drone.run(["health"]).status.code(), Some(2));
        }
        // What runs needs nothing but the spool; what is committed needs the journal to be changed.
        (_, Ok(()), Ok(())) => {}
        (_, Ok(()), Err(e)) if place == Where::State => assert_eq!(e.raw_os_error(), Some(libc::EIO), "{e}"),
        (_, line, played) => panic!("a line: {line:?}, a job: {played:?}"),
    }
    scene.reads(what);
    if place == Where::State {
        // It must be able to start there, or the mount is given up.
        let pid = i32::try_from(scene.drone.pid()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::KILL).expect("our own daemon");
        wait_for("the next daemon", PATIENCE, || scene.drone.status()["takeovers"].as_u64() >= Some(1));
    }
    let out = scene.drone.run(["offload", "--wait", "--timeout", "2"]);
    assert_eq!(scene.drone.status()["host"], "drone1", "the daemon answers");
    if place != Where::Spool && place != Where::Cache && out.status.code() != Some(0) {
        let health =
            scene.results.run(["health"]).status.code().max(scene.drone.run(["health"]).status.code());
        assert_eq!(health, Some(2), "{}", text(&out.stderr));
    }

    scene.end(place, what);
    wait_for("the mount to be writable again", PATIENCE, || write("after\n").is_ok());
    assert_eq!(fs::read_to_string(&place_of_log).expect("read"), written);
    drop(kept_open);
    let _ = fs::remove_dir_all(tree.join("3-me"));
    wait_for("the job to be written", PATIENCE, || scene.kept.job(&tree, 3, 9).is_ok());
    wait_for("everything to be committed", PATIENCE, || {
        scene.drone.run(["offload", "--wait", "--timeout", "5", "3-me"]).status.success()
    });
    scene.kept.promise_job(3, 9);
    scene.kept.is_kept("afterwards", &scene.drone);
    scene.reader.catch_up(&scene.drone);
    // What has failed just now isn't asked for again at once.
    wait_for("the reader to have everything", PATIENCE, || scene.kept.broken(&scene.reader.mount).is_empty());
    for machine in [&scene.drone, &scene.results] {
        machine.verifies("in the end");
    }
}

/// Each way in which a disk can be of no use.
fn each(place: Where, all: &[What]) {
    for what in all {
        eprintln!("{place:?} {what:?}");
        live_through(place, *what);
    }
}

/// Writers are told what a local disk would tell them; all that is committed can be read; with room again everything goes on, and nothing was lost.
#[test]
fn a_spool_without_room_tells_writers() {
    each(Where::Spool, &[What::Full, What::NoInodes, What::Quota, What::ReadOnly]);
}

/// Running jobs go on, and what can't be journaled waits; with room again the next daemon takes the mount over by itself.
#[test]
fn a_state_directory_without_room_stops_offloads_and_nothing_else() {
    each(Where::State, &[What::Full, What::NoInodes, What::Quota]);
}

/// Reads go on without it.
#[test]
fn a_cache_without_room_is_done_without() {
    each(Where::Cache, &[What::Full, What::NoInodes, What::Quota, What::ReadOnly, What::Failing]);
}

/// Nothing new is taken in, and all that is there is given; with room again drones go on by themselves, also after a write has failed.
#[test]
fn a_store_without_room_makes_drones_wait() {
    each(Where::Store, &[What::Full, What::NoInodes, What::Quota, What::Failing]);
}
