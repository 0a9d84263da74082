//! A session that sshd has started is the store's daemon's: what ssh ran only holds it open.

use std::{fs, io, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{EXE, Lab, Machine, processes_with, wait_for};

const BOUND: Duration = Duration::from_secs(60);
/// Read by each test, and much more than what a process reads to start.
const FILE_BYTES: usize = 8 << 20;

/// What ssh runs on the results host, without the shells around it.
fn sessions(lab: &Lab) -> Vec<Pid> {
    let mut found = processes_with(&[&lab.path().display().to_string(), "serve --stdio"]);
    found.retain(|pid| fs::read_link(of(*pid, "exe")).is_ok_and(|exe| exe.ends_with(EXE)));
    found
}

fn of(pid: Pid, what: &str) -> String {
    format!("/proc/{}/{what}", pid.as_raw_nonzero())
}

/// Bytes that a process has read, or nothing when it is gone.
fn read_bytes(pid: Pid) -> Option<usize> {
    let io = fs::read_to_string(of(pid, "io")).ok()?;
    io.lines().find_map(|line| line.strip_prefix("rchar: "))?.parse().ok()
}

fn noise(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; FILE_BYTES];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// A reader that knows of three files and has none of their bytes.
fn reader(lab: &mut Lab) -> Machine {
    let (drone, reader) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&drone);
    lab.mount(&reader);
    let dir = drone.mount.join("1-me/host1");
    fs::create_dir_all(&dir).expect("a directory");
    for seed in 0..3 {
        fs::write(dir.join(format!("core{seed}")), noise(seed)).expect("written");
    }
    for label in ["autoserv", "parser", "archiver"] {
        fs::write(dir.join(format!(".{label}_execute")), "1\n0\n0\n").expect("a pidfile");
    }
    drone.offload();
    reader.catch_up(&drone);
    lab.umount(&drone);
    reader
}

fn read(reader: &Machine, seed: u8) -> io::Result<bool> {
    fs::read(reader.mount.join(format!("1-me/host1/core{seed}"))).map(|bytes| bytes == noise(seed))
}

/// No byte passes through what ssh ran. When that is killed, or the daemon, the session is over on all sides, and the host comes back with another.
#[test]
fn a_session_goes_past_what_ssh_runs_and_ends_with_it_and_with_the_daemon() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let reader = reader(&mut lab);
    let mut first = Vec::new();
    wait_for("the drone's session to end", BOUND, || {
        first = sessions(&lab);
        first.len() == 1
    });
    let before = read_bytes(first[0]).expect("it runs");
    assert!(read(&reader, 0).expect("reads"));
    let after = read_bytes(first[0]).expect("it runs");
    assert!(after - before < FILE_BYTES / 100, "{} bytes went through it", after - before);
    for stream in ["fd/0", "fd/1"] {
        assert_eq!(fs::read_link(of(first[0], stream)).expect("a stream").to_str(), Some("/dev/null"));
    }

    kill_process(first[0], Signal::KILL).expect("this lab's own");
    let mut second = Vec::new();
    wait_for("another session", BOUND, || {
        second = sessions(&lab);
        second.len() == 1 && second != first
    });
    wait_for("the bytes", BOUND, || read(&reader, 1).is_ok_and(|same| same));

    lab.kill_serve();
    wait_for("what waited for the daemon to end", BOUND, || !sessions(&lab).contains(&second[0]));
    // Whoever opens the store now: a daemon, or the host's next session.
    lab.start_serve();
    wait_for("the bytes", BOUND, || read(&reader, 2).is_ok_and(|same| same));
}
