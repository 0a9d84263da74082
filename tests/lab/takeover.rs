//! The mount outlives its daemon: killed, crashed, replaced by another program, or gone for good.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{
    EXE, Lab, Machine, Random, assert_same, picture, play_job, processes_with, run, text, wait_for,
};

const BOUND: Duration = Duration::from_secs(180);

/// The daemon of a machine, found without asking it.
pub(crate) fn daemon(machine: &Machine) -> Option<Pid> {
    processes_with(&["--background-child", &machine.mount.display().to_string()]).first().copied()
}

/// Who keeps a machine's mount and starts its next daemon.
pub(crate) fn supervisor(machine: &Machine) -> Pid {
    let found = processes_with(&["--supervisor", &machine.mount.display().to_string()]);
    *found.first().expect("a supervisor")
}

/// Kills the daemon and waits until it is another one, which may not answer yet.
fn kill_daemon(machine: &Machine) {
    let mut pid = None;
    wait_for("a daemon", Duration::from_secs(20), || {
        pid = daemon(machine);
        pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
    });
    wait_for("the next daemon", Duration::from_secs(20), || {
        daemon(machine).is_some_and(|other| Some(other) != pid)
    });
}

fn answers(machine: &Machine) {
    let socket = machine.state.join("control.sock");
    wait_for("an answer", Duration::from_secs(20), || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
}

fn takeovers(machine: &Machine) -> u64 {
    machine.status()["takeovers"].as_u64().expect("a number")
}

fn writers(lab: &Lab, machine: &Machine, count: usize) -> (PathBuf, Vec<Child>) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/writer.py");
    let stop = lab.path().join("stop");
    let _ = fs::remove_file(&stop);
    let start = |n: usize| {
        let place = machine.mount.join(format!("{}-me/host{n}", n + 1));
        let mut command = Command::new("python3");
        command.arg(&script).arg(place).arg(&stop).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python3 runs")
    };
    let writers = (0..count).map(start).collect();
    (stop, writers)
}

/// Ends the writers; none may have seen anything that isn't as on a local disk.
fn all_went_well((stop, writers): (PathBuf, Vec<Child>)) {
    fs::write(stop, "").expect("written");
    for writer in writers {
        let out = writer.wait_with_output().expect("a writer");
        assert!(out.status.success(), "{}", text(&out.stderr));
        assert!(text(&out.stdout).trim().parse::<u32>().expect("a number") > 0, "it has worked");
    }
}

fn storm(passthrough: &str, kills: u32) {
    let mut lab = Lab::bare(BOUND);
    let drone = lab.machine_with("drone1", "results_host: localhost");
    lab.mount_with(&drone, &["-o", &format!("passthrough={passthrough}")]);
    let at_work = writers(&lab, &drone, 8);
    let mut random = Random(u64::from(kills));
    for round in 0..kills {
        // One in three may die before it answers.
        if round % 3 > 0 {
            answers(&drone);
        }
        thread::sleep(Duration::from_millis(random.below(300)));
        kill_daemon(&drone);
    }
    answers(&drone);
    assert!(takeovers(&drone) >= u64::from(kills) * 2 / 3);
    all_went_well(at_work);
    wait_for("every handle to be released", Duration::from_secs(10), || drone.status()["open_handles"] == 0);
    let orphans = fs::read_dir(drone.state.join("tmp")).expect("a directory").count();
    assert_eq!(orphans, 0, "nothing is left of files without a name");
    lab.umount(&drone);
}

/// P7 **A crash loses nothing that was acknowledged**, and a running job survives: 30 `kill -9` of the daemon at random, while eight
/// processes in changed directories append, sync and check numbered lines, hold files, mappings, directories and locks, and change names.
/// None sees an error, no line is lost, every change of a name happens once, every inode keeps its number.
#[test]
fn thirty_kills_disturb_no_writer() {
    storm("auto", 30);
}

/// The same where all data goes through the daemon.
#[test]
fn kills_without_passthrough_disturb_no_writer() {
    storm("off", 12);
}

/// `1-debug_user`, a job of one host.
fn play_one(lab: &Lab, machine: &Machine) {
    let source = lab.path().join("source");
    resultsfs::demo::generate::job(&source, 3, 1, 0.1).expect("a job");
    let from = fs::read_dir(&source).expect("a job").flatten().next().expect("a job").path();
    play_job(&from, &machine.mount, 1);
}

/// What is only in the store is read across kills, through a handle from before as well as anew, and a unit with an open handle stays open
/// (P2, P5).
#[test]
fn evicted_files_are_read_across_kills() {
    let mut lab = Lab::new(BOUND);
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    play_one(&lab, &drone);
    let expected = picture(&drone.mount);
    drone.offload();
    let out = drone.run(["evict", "1-debug_user"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let log = drone.mount.join("1-debug_user/host1/status.log");
    let content = fs::read(&log).expect("remote");
    let mut held = fs::File::open(&log).expect("remote");
    for _ in 0..4 {
        kill_daemon(&drone);
        assert_same("the evicted job", &expected, &picture(&drone.mount));
    }
    let mut through_held = Vec::new();
    held.read_to_end(&mut through_held).expect("a handle from before");
    assert!(through_held == content);
    // Copied up now, and open for writing across a kill.
    let mut writer = fs::File::options().append(true).open(&log).expect("copied up");
    kill_daemon(&drone);
    wait_for("an answer", Duration::from_secs(20), || drone.status()["open_handles"] == 2);
    drone.run(["offload", "1-debug_user/host1"]);
    assert_ne!(drone.run(["evict", "1-debug_user/host1"]).status.code(), Some(0), "it is open");
    writer.write_all(b"late\n").expect("written");
    drop((writer, held));
    assert_eq!(fs::read(&log).expect("there"), [content.as_slice(), b"late\n"].concat());
    drone.offload();
}

/// A notice to the kernel waits for the pages that a read is to fill, and the read for the results host: killed just then, the daemon ends
/// all the same, and the next one answers the read (P7).
#[test]
fn a_daemon_that_is_killed_while_the_kernel_holds_a_notice_is_followed() {
    let mut lab = Lab::new(BOUND);
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    play_one(&lab, &drone);
    let log = drone.mount.join("1-debug_user/host1/status.log");
    let content = fs::read(&log).expect("local");
    drone.offload();
    let out = drone.run(["evict", "1-debug_user"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let file = fs::File::open(&log).expect("remote");
    kill_process(lab.serve_pid(), Signal::STOP).expect("our own child");
    let reader = thread::spawn(move || {
        let mut read = Vec::new();
        (&file).read_to_end(&mut read).map(|_| read)
    });
    kill_daemon(&drone);
    for _ in 0..3 {
        // What its predecessor may not have said the next daemon says to begin with.
        wait_for("a notice that waits in the kernel", Duration::from_secs(20), || {
            let notifiers = processes_with(&["notifier", &drone.mount.display().to_string()]);
            notifiers.iter().any(|pid| is_waiting_in_the_kernel(*pid))
        });
        kill_daemon(&drone);
    }
    kill_process(lab.serve_pid(), Signal::CONT).expect("our own child");
    assert!(reader.join().expect("a reader").expect("read in the end") == content);
    wait_for("the end of the others' notifiers", Duration::from_secs(10), || {
        processes_with(&["notifier", &drone.mount.display().to_string()]).len() == 1
    });
}

/// The process that sends notices is started again when it was killed, and what it was given is sent once more.
#[test]
fn a_killed_notifier_is_followed() {
    let mut lab = Lab::new(BOUND);
    let (drone, other) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&drone);
    lab.mount(&other);
    let path = "1-me/host1/status.log";
    fs::create_dir_all(other.mount.join("1-me/host1")).expect("made");
    fs::write(other.mount.join(path), "one\n").expect("written");
    let commit = |text: &str| {
        fs::write(other.mount.join(path), text).expect("written");
        assert_eq!(other.run(["complete", "1-me/host1"]).status.code(), Some(0));
        other.offload();
        drone.catch_up(&other);
    };
    commit("first\n");
    assert_eq!(fs::read_to_string(drone.mount.join(path)).expect("followed"), "first\n");
    let notifier = processes_with(&["notifier", &drone.mount.display().to_string()])[0];
    kill_process(notifier, Signal::KILL).expect("our own");
    commit("second, which the kernel must be told of\n");
    wait_for("the kernel to be told", Duration::from_secs(10), || {
        fs::read_to_string(drone.mount.join(path)).is_ok_and(|text| text.starts_with("second"))
    });
    assert_ne!(processes_with(&["notifier", &drone.mount.display().to_string()]), [notifier]);
}

/// Not to be woken by a signal (`D` in proc(5)).
fn is_waiting_in_the_kernel(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|after| after.starts_with('D'))
}

/// Nothing is lost if the supervisor dies, too: the mount is dead then, and the next `mount` clears it.
#[test]
fn without_its_supervisor_a_mount_dies_with_its_daemon() {
    let mut lab = Lab::bare(BOUND);
    let drone = lab.machine_with("drone1", "results_host: localhost");
    lab.mount(&drone);
    let path = drone.mount.join("1-me/host1/log");
    fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    fs::write(&path, "before\n").expect("written");
    kill_process(supervisor(&drone), Signal::KILL).expect("our own");
    wait_for("the daemon to notice", Duration::from_secs(10), || drone.status()["held_by"] == "none");
    fs::write(&path, "before\nbetween\n").expect("the mount goes on");
    kill_process(daemon(&drone).expect("a daemon"), Signal::KILL).expect("our own");
    wait_for("the end of the mount", Duration::from_secs(10), || {
        fs::metadata(&path).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    });
    lab.mount(&drone);
    assert_eq!(fs::read_to_string(&path).expect("there"), "before\nbetween\n");
    assert_eq!(takeovers(&drone), 0, "it is a new mount");
}

/// A daemon that can't start any more is given up, and the log says so: nothing waits for it for ever.
#[test]
fn a_daemon_that_dies_again_and_again_is_given_up() {
    let mut lab = Lab::bare(BOUND);
    let drone = lab.machine_with("drone1", "results_host: localhost");
    lab.mount(&drone);
    fs::write(drone.mount.join("file"), "x").expect("written");
    let hidden = drone.config.with_extension("hidden");
    fs::rename(&drone.config, &hidden).expect("renamed");
    let waiting = thread::spawn({
        let file = drone.mount.join("other");
        move || fs::write(file, "y")
    });
    kill_process(daemon(&drone).expect("a daemon"), Signal::KILL).expect("our own");
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("procfs");
    let place = format!(" {} ", drone.mount.display());
    wait_for("the end", Duration::from_secs(60), || !mounts().contains(&place));
    // Before or after the kill: both are right.
    drop(waiting.join().expect("it doesn't wait for ever"));
    fs::rename(&hidden, &drone.config).expect("renamed");
    let log = fs::read_to_string(drone.state.join("daemon.log")).expect("a log");
    assert!(log.contains("giving up") && log.contains("is unmounted"), "{log}");
    lab.mount(&drone);
    assert_eq!(fs::read_to_string(drone.mount.join("file")).expect("there"), "x");
}

/// `mount` of another program than the daemon's (an update) puts that in the daemon's place, under the eyes of a writer.
#[test]
fn an_update_takes_the_mount_over() {
    let mut lab = Lab::bare(BOUND);
    let drone = lab.machine_with("drone1", "results_host: localhost");
    let old = lab.path().join("resultsfs-old");
    fs::copy(EXE, &old).expect("copied");
    let place = drone.mount.display().to_string();
    run(Command::new(&old).arg("--config").arg(&drone.config).args(["mount", "--", &place]));
    lab.is_mounted(&drone);
    let at_work = writers(&lab, &drone, 2);
    let program = || {
        let pid = drone.status()["pid"].as_u64().expect("a daemon");
        fs::read_link(format!("/proc/{pid}/exe")).expect("its program")
    };
    assert_eq!(program(), old);
    lab.mount(&drone);
    assert_eq!(program(), Path::new(EXE));
    let pid = drone.pid();
    lab.mount(&drone);
    assert_eq!(drone.pid(), pid, "the same program stays");
    assert_eq!(takeovers(&drone), 1);
    all_went_well(at_work);
}
