//! The results host away, slow, or lying: nothing local waits, and a read of what isn't here fails in bounded time, with a line in the log.

use std::{
    fs,
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Signal, kill_process};

use crate::harness::{Lab, Machine, text, wait_for};

/// More than a fetch's time limit, with room for a busy machine.
const BOUND: Duration = Duration::from_secs(60);

/// A finished unit with two files that no block holds together: each fills its own.
fn finished_job(machine: &Machine) -> String {
    let dir = machine.mount.join("1-me/host1");
    fs::create_dir_all(&dir).expect("a directory");
    for name in ["core", "other core"] {
        let noise: Vec<u8> = (0..80_000u32)
            .flat_map(|n| *blake3::hash(&[name.as_bytes(), &n.to_le_bytes()].concat()).as_bytes())
            .collect();
        fs::write(dir.join(name), noise).expect("written");
    }
    for label in ["autoserv", "parser", "archiver"] {
        fs::write(dir.join(format!(".{label}_execute")), "1\n0\n0\n").expect("a pidfile");
    }
    "1-me/host1".to_owned()
}

/// A drone that has committed and evicted, and a reader that knows of it and has none of its bytes.
fn hosts(lab: &mut Lab) -> (Machine, Machine) {
    let (drone, reader) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&drone);
    lab.mount(&reader);
    let unit = finished_job(&drone);
    drone.offload();
    assert!(drone.run(["evict", &unit]).status.success());
    reader.catch_up(&drone);
    assert_eq!(fs::read_dir(reader.mount.join(&unit)).expect("listed").count(), 5);
    (drone, reader)
}

/// Appends, makes, renames, lists and syncs in a local unit; everything must work.
fn work_locally(machine: &Machine, rounds: usize) {
    let dir = machine.mount.join("2-me/host2");
    fs::create_dir_all(dir.join("debug")).expect("a directory");
    let mut log = fs::File::options().create(true).append(true).open(dir.join("status.log")).expect("a log");
    for round in 0..rounds {
        writeln!(log, "line {round}").expect("appended");
        fs::write(dir.join("debug/new"), round.to_string()).expect("written");
        fs::rename(dir.join("debug/new"), dir.join(format!("debug/{round}"))).expect("renamed");
        assert_eq!(fs::read_to_string(dir.join(format!("debug/{round}"))).expect("read"), round.to_string());
    }
    log.sync_all().expect("synced");
    assert_eq!(fs::read_dir(dir.join("debug")).expect("listed").count(), rounds);
    let lines = fs::read_to_string(dir.join("status.log")).expect("read");
    assert_eq!(lines.lines().count(), rounds);
}

fn log_of(machine: &Machine) -> String {
    fs::read_to_string(machine.state.join("daemon.log")).expect("a log")
}

fn is_eio<T: std::fmt::Debug>(result: &std::io::Result<T>) -> bool {
    result.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EIO))
}

/// P8 **Writers never wait for the network**: the results host answers no more, though its connection stands. Readers of what isn't here get EIO
/// after a while and the log says which path; everything local is done by then, everything known is listed; nothing is freed.
#[test]
fn a_results_host_that_stands_still_stops_nobody_but_its_readers() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let (_, reader) = hosts(&mut lab);
    let pid = lab.serve_pid();
    kill_process(pid, Signal::STOP).expect("our own child");
    let path = reader.mount.join("1-me/host1/core");
    let begun = Instant::now();
    let waiting = thread::spawn({
        let path = path.clone();
        move || fs::read(path)
    });
    work_locally(&reader, 200);
    assert_eq!(fs::read_dir(reader.mount.join("1-me/host1")).expect("listed").count(), 5);
    assert!(fs::metadata(&path).is_ok_and(|m| m.len() == 80_000 * 32), "what is known has its attributes");
    finish_and_try_to_free(&reader);
    let read = waiting.join().expect("no panic");
    assert!(is_eio(&read), "{read:?}");
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    let log = log_of(&reader);
    assert!(log.lines().any(|l| l.contains("WARN") && l.contains("1-me/host1/core")), "{log}");
    kill_process(pid, Signal::CONT).expect("our own child");
    wait_for("the bytes", BOUND, || fs::read(&path).is_ok_and(|bytes| bytes.len() == 80_000 * 32));
    reader.offload();
}

/// Complete and sealed, but without the store's answer: it stays, as P2 says.
fn finish_and_try_to_free(machine: &Machine) {
    let unit = "2-me/host2";
    assert_eq!(machine.run(["complete", unit]).status.code(), Some(0));
    let out = machine.run(["offload", "--wait", "--timeout", "2", unit]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stdout));
    assert_ne!(machine.run(["evict", unit]).status.code(), Some(0), "it isn't committed");
    assert!(machine.state.join("spool").join(unit).join("status.log").exists());
}

/// P9 **Every byte is checked**: what the results host sends isn't what was committed. EIO, never wrong bytes, and a line in the log; the
/// other files of that unit, and everything local, are as ever.
#[test]
fn a_results_host_that_lies_is_found_out() {
    let mut lab = Lab::new(Duration::from_secs(180));
    let (_, reader) = hosts(&mut lab);
    damage(&lab.store().join("packs"));
    let dir = reader.mount.join("1-me/host1");
    let results = ["core", "other core"].map(|name| fs::read(dir.join(name)));
    assert!(results.iter().any(is_eio), "a flipped byte isn't shown");
    for (name, bytes) in
        ["core", "other core"].iter().zip(&results).filter_map(|(n, r)| Some((n, r.as_ref().ok()?)))
    {
        let whole: Vec<u8> = (0..80_000u32)
            .flat_map(|n| *blake3::hash(&[name.as_bytes(), &n.to_le_bytes()].concat()).as_bytes())
            .collect();
        assert!(*bytes == whole, "{name}: wrong bytes");
    }
    assert!(
        log_of(&reader).lines().any(|l| l.contains("WARN") && l.contains("1-me/host1/")),
        "{}",
        log_of(&reader)
    );
    work_locally(&reader, 50);
    assert_eq!(fs::read_dir(&dir).expect("listed").count(), 5);
}

/// Flips a byte in the middle of the largest pack: in the content of a block.
fn damage(packs: &Path) {
    let packs = fs::read_dir(packs).expect("packs").map(|e| e.expect("an entry").path());
    let largest = packs.max_by_key(|p| fs::metadata(p).expect("there").len()).expect("a pack");
    let file = fs::File::options().read(true).write(true).open(&largest).expect("opens");
    let middle = file.metadata().expect("there").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).expect("read");
    file.write_all_at(&[byte[0] ^ 0x40], middle).expect("written");
}
