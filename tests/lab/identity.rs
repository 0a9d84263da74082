//! What goes in comes out: on every mount, before and after the bytes have left the drone.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use resultsfs::demo;

use crate::{
    harness::{Lab, Machine, assert_same, picture, play_job, play_task, run, text, wait_for},
    nasty,
};

/// The directory of real job trees and tools, where it stands beside the project.
fn shared() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    dir.join("tools/play.py").exists().then_some(dir)
}

/// Evicts everything on `drone` and checks that nothing is left in its spool.
fn evict_all(drone: &Machine, names: &[String]) {
    let out = drone.run(["evict".to_owned()].into_iter().chain(names.iter().cloned()));
    assert!(out.status.success(), "evict: {}", text(&out.stderr));
    let spool = drone.state.join("spool");
    let left: Vec<_> = walkdir::WalkDir::new(&spool)
        .into_iter()
        .flatten()
        .filter(|e| !e.file_type().is_dir())
        .map(|e| e.into_path())
        .collect();
    assert!(left.is_empty(), "left in the spool: {left:?}");
}

/// The names at the top of a tree.
fn tops(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("a directory")
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Compares a reference tree with the drone's mount, another drone's and the results host's; evicts; compares again; verifies.
fn same_everywhere(lab: &mut Lab, reference: &Path, a: &Machine, names: &[String]) {
    let (b, results) = (lab.machine("drone2"), lab.machine("results"));
    lab.mount(&b);
    lab.mount(&results);
    let expected = picture(reference);
    a.offload();
    b.catch_up(a);
    results.catch_up(a);
    assert_same("drone before eviction", &expected, &picture(&a.mount));
    assert_same("another drone", &expected, &picture(&b.mount));
    assert_same("the results host", &expected, &picture(&results.mount));
    evict_all(a, names);
    assert_same("drone after eviction", &expected, &picture(&a.mount));
    for machine in [a, &results] {
        let out = machine.run(["verify", "--read-data"]);
        assert_eq!(out.status.code(), Some(0), "verify: {}{}", text(&out.stdout), text(&out.stderr));
    }
}

/// P1 **One path.** A file keeps its path, bytes, mode, owner, times and link text before, during and after offload, on every mount.
/// Here with the project's own generated jobs.
#[test]
fn generated_jobs_are_the_same_on_every_mount_before_and_after_eviction() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    let (source, reference) = (lab.path().join("source"), lab.path().join("reference"));
    std::fs::create_dir_all(&reference).expect("a directory");
    for job in 1..=6 {
        demo::generate::job(&source, 1, job, 0.2).expect("a job");
    }
    let sources: Vec<PathBuf> = tops(&source).into_iter().map(|n| source.join(n)).collect();
    for (id, from) in (100..).zip(&sources) {
        for tree in [&drone.mount, &reference] {
            play_job(from, tree, id);
            play_task(tree, id);
        }
    }
    same_host_dirs(&reference, &drone.mount);
    let names = tops(&reference);
    same_everywhere(&mut lab, &reference, &drone, &names);
    assert_eq!(lab.logins(), 2, "one ssh connection a drone; the results host needs none");
}

/// Playing a task leaves the directories above it with the time of the play, which differs from tree to tree.
fn same_host_dirs(a: &Path, b: &Path) {
    for dir in ["hosts/host1", "hosts"] {
        run(Command::new("touch").args(["-d", "@1770000000"]).args([a.join(dir), b.join(dir)]));
    }
}

/// Real result trees, played by a script that knows nothing of this program, where they stand beside the project.
#[test]
fn real_jobs_are_the_same_on_every_mount_before_and_after_eviction() {
    let Some(shared) = shared() else {
        eprintln!("no ../shared here: real trees are not tested, generated ones are");
        return;
    };
    let mut lab = Lab::new(Duration::from_secs(300));
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    let (source, reference) = (lab.path().join("source"), lab.path().join("reference"));
    std::fs::create_dir_all(&reference).expect("a directory");
    let play = |args: &[&str], paths: &[&Path]| {
        let mut command = Command::new("python3");
        command.arg(shared.join("tools/play.py")).args(&args[..1]).args(paths).args(&args[1..]);
        run(&mut command);
    };
    for (id, tree) in ["fedora23", "isoft-beta3", "isoft5", "infotest"].iter().enumerate() {
        let (unpacked, archive) = (source.join(tree), shared.join(format!("data/{tree}.tar.xz")));
        play(&["unpack"], &[&archive, &unpacked]);
        let (job, task) = ((id + 1).to_string(), (id + 70).to_string());
        for results in [&drone.mount, &reference] {
            play(&["job", "--id", &job], &[&unpacked, results]);
            play(&["task", "--id", &task], &[&unpacked, results]);
        }
    }
    same_host_dirs(&reference, &drone.mount);
    let names = tops(&reference);
    same_everywhere(&mut lab, &reference, &drone, &names);
    let digest =
        |dir: &Path| run(Command::new("python3").arg(shared.join("tools/gen.py")).arg("digest").arg(dir));
    assert_eq!(digest(&drone.mount), digest(&reference), "gen.py digest agrees");
}

/// Names with newlines and bytes that aren't UTF-8, holes, hard links, FIFOs, odd modes and times; a socket can't be carried and is named.
#[test]
fn nasty_names_modes_and_times_are_carried_and_what_cannot_be_is_named() {
    let mut lab = Lab::new(Duration::from_secs(300));
    // The generator's jobs end with the parser.
    let drone = lab.machine_with("drone1", "complete_on: parser");
    lab.mount(&drone);
    let reference = lab.path().join("reference");
    nasty_jobs(&reference);
    run(Command::new("cp").arg("-a").arg(reference.join(".")).arg(&drone.mount));
    let socket = tops(&reference).first().expect("a job").clone() + "/host1/a.socket";
    std::fs::create_dir_all(drone.mount.join(&socket).parent().expect("a parent")).expect("a directory");
    let exec_dir = drone.mount.join(&socket).parent().expect("a parent").to_owned();
    let before = picture(&reference);
    drop(std::os::unix::net::UnixListener::bind(drone.mount.join(&socket)).expect("a socket in the mount"));
    restore_times(&reference, &drone.mount, &exec_dir);
    drone.offload();
    let explained = drone.json(["explain", &socket]);
    assert!(format!("{explained:?}").contains("socket"), "explain names the socket: {explained:?}");
    let other = lab.machine("drone2");
    lab.mount(&other);
    other.catch_up(&drone);
    assert_same("another drone", &before, &picture(&other.mount));
    let results = lab.machine("results");
    lab.mount(&results);
    results.catch_up(&drone);
    assert_same("the results host", &before, &picture(&results.mount));
    evict_all(&drone, &tops(&reference));
    assert_same("the drone after eviction", &before, &picture(&drone.mount));
    for machine in [&drone, &results] {
        let out = machine.run(["verify", "--read-data"]);
        assert_eq!(out.status.code(), Some(0), "verify: {}{}", text(&out.stdout), text(&out.stderr));
    }
}

/// gen.py's nasty corpus where it is at hand, a small one of our own otherwise.
fn nasty_jobs(reference: &Path) {
    std::fs::create_dir_all(reference).expect("a directory");
    nasty::job(reference);
    match shared() {
        Some(shared) => {
            let mut generate = Command::new("python3");
            generate
                .arg(shared.join("tools/gen.py"))
                .args(["gen", "--jobs", "40", "--nasty", "--scale", "0.05"]);
            run(generate.arg("--out").arg(reference));
        }
        None => eprintln!("no ../shared here: only the project's own nasty job is tested"),
    }
    let first = reference.join(&tops(reference)[0]).join("host1");
    std::fs::create_dir_all(first).expect("a directory");
}

/// Making the socket has changed its directory's time; the reference has none.
fn restore_times(reference: &Path, mount: &Path, exec_dir: &Path) {
    let below = exec_dir.strip_prefix(mount).expect("below the mount");
    run(Command::new("touch").arg("-r").arg(reference.join(below)).arg(exec_dir));
}

/// Sending the same jobs again under other ids moves less than 1 % of their bytes, over one ssh connection, with all of them completing at once.
#[test]
fn the_same_jobs_again_cost_less_than_a_percent_and_one_login() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    let source = lab.path().join("source");
    for job in 1..=50 {
        demo::generate::job(&source, 7, job, 0.1).expect("a job");
    }
    let sources: Vec<PathBuf> = tops(&source).into_iter().map(|n| source.join(n)).collect();
    let play_all = |first: u32| {
        std::thread::scope(|scope| {
            for (worker, part) in sources.chunks(13).enumerate() {
                let mount = &drone.mount;
                scope.spawn(move || {
                    for (i, from) in part.iter().enumerate() {
                        let id = first + (worker * 13 + i) as u32;
                        play_job(from, mount, id);
                    }
                });
            }
        });
        drone.offload();
    };
    let sent = || drone.status()["connection"]["bytes_sent"].as_u64().expect("a count");
    play_all(1000);
    let cold = sent();
    let bytes: u64 = walkdir::WalkDir::new(&source)
        .into_iter()
        .flatten()
        .filter(|e| e.file_type().is_file())
        .map(|e| e.metadata().expect("a file").len())
        .sum();
    play_all(2000);
    let again = sent() - cold;
    eprintln!("{bytes} bytes: {cold} sent, {again} when they came again");
    assert!(again * 100 < bytes, "{again} bytes for {bytes} that were there");
    assert_eq!(lab.logins(), 1);
}

/// Nothing is offloaded while somebody writes, or before the pidfiles say done.
#[test]
fn a_unit_with_a_writer_or_a_running_pidfile_stays() {
    let mut lab = Lab::new(Duration::from_secs(120));
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    let exec_dir = drone.mount.join("5-me/host1");
    std::fs::create_dir_all(&exec_dir).expect("a directory");
    std::fs::write(exec_dir.join(".autoserv_execute"), "1\n").expect("a pidfile");
    let state = |unit: &str| {
        let jobs = drone.json(["jobs", unit]);
        jobs.iter()
            .find(|j| j["unit"] == unit)
            .map_or("none".to_owned(), |j| j["state"].as_str().unwrap_or("?").to_owned())
    };
    wait_for("the loose files of the job", Duration::from_secs(30), || state("5-me/.") == "committed");
    assert_eq!(state("5-me/host1"), "running");
    let open = std::fs::File::create(exec_dir.join("debug.log")).expect("a file");
    for label in ["autoserv", "parser", "archiver"] {
        std::fs::write(exec_dir.join(format!(".{label}_execute")), "1\n0\n0\n").expect("a pidfile");
    }
    drone.offload();
    assert_eq!(state("5-me/host1"), "running", "a file is open for writing");
    drop(open);
    wait_for("the unit to be committed", Duration::from_secs(30), || state("5-me/host1") == "committed");
}

/// P11 **`results_host: localhost` copies nothing anywhere**, and needs no store.
#[test]
fn localhost_copies_nothing() {
    let mut lab = Lab::new(Duration::from_secs(60));
    let drone = lab.machine_with("drone1", "results_host: localhost");
    lab.mount(&drone);
    play_task(&drone.mount, 1);
    assert_eq!(drone.status()["connection"]["state"], "none");
    assert_eq!(lab.logins(), 0);
    let out = drone.run(["verify", "--local"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
}
