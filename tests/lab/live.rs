//! Running units on other hosts: what is seen of them, and how soon.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{Lab, Machine, text, wait_for};

/// How often units are published in these tests, in seconds.
const LIVE_S: u64 = 1;
/// The contract is `live_seconds` + 2 s; a machine that runs other tests beside this one gets more. Nothing here waits this long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nothing settles by itself: what is written runs until it is offloaded.
fn machine(lab: &Lab, name: &str) -> Machine {
    lab.machine_with(name, &format!("live_seconds: {LIVE_S}\nsettle_seconds: 600"))
}

fn put(machine: &Machine, name: &str, content: &[u8]) {
    let path = machine.mount.join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn append_to(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(path).expect("opens");
    file.write_all(bytes).expect("appended");
}

fn finish(machine: &Machine, exec_dir: &str) {
    for label in ["autoserv", "parser", "archiver"] {
        put(machine, &format!("{exec_dir}/.{label}_execute"), b"1\n0\n0\n");
    }
}

fn wait_shows(machine: &Machine, path: &str, content: &[u8]) {
    wait_for(&format!("{path} on {}", machine.name), PATIENCE, || {
        fs::read(machine.mount.join(path)).is_ok_and(|found| found == content)
    });
}

fn job(machine: &Machine, unit: &str) -> Option<Value> {
    machine.json(["jobs", unit]).into_iter().find(|job| job["unit"] == unit)
}

/// `tail -f`, whose output is collected in a file.
struct Tail {
    child: Child,
    seen: tempfile::NamedTempFile,
}

impl Tail {
    fn of(path: &Path) -> Self {
        let seen = tempfile::NamedTempFile::new().expect("a file");
        let child = Command::new("tail")
            .args(["-n", "+1", "-s", "0.1", "-f"])
            .arg(path)
            .stdout(Stdio::from(seen.reopen().expect("opens")))
            .spawn()
            .expect("tail runs");
        Self { child, seen }
    }

    fn seen(&self) -> String {
        fs::read_to_string(self.seen.path()).expect("readable")
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// **Live view**: a unit still running on drone A is readable on B and on the results host, flagged; `tail -f` there follows it, by an
/// open descriptor and by path; and after the commit it is an ordinary unit.
#[test]
fn a_running_unit_is_followed_on_other_hosts() {
    let mut lab = Lab::new(Duration::from_secs(180));
    let (a, b, results) = (machine(&lab, "drone1"), machine(&lab, "drone2"), machine(&lab, "results"));
    for machine in [&a, &b, &results] {
        lab.mount(machine);
    }
    let log = a.mount.join("1-me/host1/debug/autoserv.DEBUG");
    put(&a, "1-me/host1/debug/autoserv.DEBUG", b"line 1\n");
    put(&a, "1-me/host1/.autoserv_execute", format!("{}\n", std::process::id()).as_bytes());
    for host in [&b, &results] {
        wait_shows(host, "1-me/host1/debug/autoserv.DEBUG", b"line 1\n");
        let job = job(host, "1-me/host1").expect("it is listed");
        assert_eq!(
            (&job["state"], &job["host"], &job["seq"]),
            (&"live".into(), &"drone1".into(), &Value::Null)
        );
        assert!(job["live"]["age_s"].as_u64().expect("an age") < 60);
        let told = host.json(["explain", "1-me/host1/debug/autoserv.DEBUG"]).pop().expect("an answer");
        assert_eq!((&told["state"], &told["other_hosts_entry"]["live"]), (&"live".into(), &true.into()));
        assert!(host.status()["live"]["remote"].as_u64() >= Some(1));
    }
    wait_for("A to say so, too", PATIENCE, || {
        job(&a, "1-me/host1").is_some_and(|job| job["live"]["time_ms"].is_u64())
    });

    let on_b = b.mount.join("1-me/host1/debug/autoserv.DEBUG");
    let tail = Tail::of(&on_b);
    let mut open = File::open(&on_b).expect("opens");
    let inode = fs::metadata(&on_b).expect("there").ino();
    let mut all = "line 1\n".to_owned();
    for number in 2..6 {
        let line = format!("line {number}\n");
        append_to(&log, line.as_bytes());
        all.push_str(&line);
        wait_for("the line in tail -f", PATIENCE, || tail.seen() == all);
    }
    let mut read = String::new();
    open.read_to_string(&mut read).expect("readable");
    assert_eq!(read, all, "a descriptor from before goes on to the new end");
    assert_eq!(fs::read_to_string(&on_b).expect("readable"), all);
    let now = fs::metadata(&on_b).expect("there");
    assert_eq!((now.len(), now.ino()), (all.len() as u64, inode), "it is the same file");

    finish(&a, "1-me/host1");
    append_to(&log, b"the end\n");
    a.offload();
    wait_for("the end in tail -f", PATIENCE, || tail.seen().ends_with("the end\n"));
    wait_for("the commit on B", PATIENCE, || {
        job(&b, "1-me/host1").is_some_and(|job| job["state"] == "remote" && job["live"].is_null())
    });
}

/// P5: **A reader's copy is never of a moving target.** Who has a file open on B that A then writes over keeps what he has; who opens it then
/// gets the new one; and what B sees of a file that is written over all the time is one of its states.
#[test]
fn a_file_that_is_written_over_is_one_of_its_states() {
    const BYTES: usize = 300_000;
    let mut lab = Lab::new(Duration::from_secs(180));
    let (a, b) = (machine(&lab, "drone1"), machine(&lab, "drone2"));
    for machine in [&a, &b] {
        lab.mount(machine);
    }
    put(&a, "2-me/host1/state", &[b'a'; BYTES]);
    put(&a, "2-me/host1/busy", &[b'0'; BYTES]);
    wait_shows(&b, "2-me/host1/state", &[b'a'; BYTES]);
    let mut open = File::open(b.mount.join("2-me/host1/state")).expect("opens");
    put(&a, "2-me/host1/state", &[b'b'; BYTES + 10]);
    wait_shows(&b, "2-me/host1/state", &[b'b'; BYTES + 10]);
    let mut old = Vec::new();
    open.read_to_end(&mut old).expect("readable");
    assert!(old == [b'a'; BYTES], "an open file is what it was: {} bytes, {:?}", old.len(), old.first());
    assert_eq!(open.metadata().expect("its size").len(), BYTES as u64);

    let mut busy = OpenOptions::new().write(true).open(a.mount.join("2-me/host1/busy")).expect("opens");
    let mut states = std::collections::BTreeSet::new();
    let end = Instant::now() + Duration::from_secs(6);
    let mut number = 0u8;
    while Instant::now() < end {
        // Each state is there for a while, then written over from the front.
        number = number % 9 + 1;
        busy.seek(SeekFrom::Start(0)).expect("seeks");
        busy.write_all(&[b'0' + number; BYTES]).expect("written");
        std::thread::sleep(Duration::from_millis(3));
        let seen = fs::read(b.mount.join("2-me/host1/busy")).expect("readable");
        assert_eq!(seen.len(), BYTES);
        // A write that is under way is a state, too: two neighbours, the newer in front.
        let mut parts = seen.clone();
        parts.dedup();
        let is_state = match parts[..] {
            [_] => true,
            [new, old] => new == old + 1 || (new, old) == (b'1', b'9'),
            _ => false,
        };
        assert!(is_state, "{parts:?}");
        states.insert(seen[0]);
    }
}

/// Who publishes nothing is not seen before the commit, and a unit in which nothing happens isn't published again.
#[test]
fn nothing_is_published_without_a_reason() {
    let mut lab = Lab::new(Duration::from_secs(180));
    let (a, b) = (machine(&lab, "drone1"), machine(&lab, "drone2"));
    let silent = lab.machine_with("drone3", "live_seconds: 0\nsettle_seconds: 600");
    for machine in [&a, &b, &silent] {
        lab.mount(machine);
    }
    put(&silent, "3-me/host1/log", b"unseen\n");
    put(&a, "3-me/host2/log", b"seen\n");
    // Open for writing all the time, as an autoserv's log is.
    let held = OpenOptions::new().append(true).open(a.mount.join("3-me/host2/log")).expect("opens");
    wait_shows(&b, "3-me/host2/log", b"seen\n");
    let counts = || {
        let offload = a.status()["offload"].clone();
        let count = |key: &str| offload[key].as_u64().expect("a counter");
        (count("snapshots_published"), count("snapshot_bytes_hashed"), count("blocks_sent"))
    };
    let settled = || {
        let before = counts();
        std::thread::sleep(Duration::from_secs(3 * LIVE_S));
        (before, counts())
    };
    wait_for("three rounds without a word", PATIENCE, || {
        let (before, after) = settled();
        before == after
    });
    assert!(!b.mount.join("3-me/host1").exists(), "nobody has published it");
    assert_eq!(silent.status()["offload"]["snapshots_published"], 0);
    drop(held);
}

/// The store's daemon may die at any time: what was published before is there again, also while its host is away.
#[test]
fn snapshots_survive_a_restart_of_the_store() {
    let mut lab = Lab::new(Duration::from_secs(180));
    let (a, b) = (machine(&lab, "drone1"), machine(&lab, "drone2"));
    lab.mount(&a);
    put(&a, "4-me/host1/log", b"one\n");
    put(&a, "4-me/keyval", b"a=1\n");
    wait_for("A to be published", PATIENCE, || a.status()["live"]["published"] == 2);
    // A is cut off for good: it finds no store any more.
    kill_daemon(&a);
    lab.kill_serve();
    lab.start_serve();
    lab.mount(&b);
    wait_shows(&b, "4-me/host1/log", b"one\n");
    wait_shows(&b, "4-me/keyval", b"a=1\n");
    let out = lab.machine("results").run(["verify", "--store", "--read-data"]);
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
}

/// `kill -9` of a host's daemon and of who would start the next one.
fn kill_daemon(machine: &Machine) {
    let supervisor = crate::takeover::supervisor(machine);
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).expect("our own supervisor");
    let pid = i32::try_from(machine.pid()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("our own daemon");
    wait_for("the daemon to be gone", PATIENCE, || {
        std::os::unix::net::UnixStream::connect(machine.state.join("control.sock")).is_err()
    });
}

/// Nothing of A's can run any more, and nobody says goodbye: the daemon is killed, and so is what speaks for it at the store.
fn dies(lab: &Lab, machine: &Machine) {
    kill_daemon(machine);
    let session = [&lab.path().display().to_string()[..], "--stdio"];
    wait_for("its session to end", PATIENCE, || crate::harness::processes_with(&session).is_empty());
}

fn adopt(lab: &Lab, args: &[&str]) -> (Option<i32>, Vec<Value>) {
    let results = lab.machine("results");
    let all = ["--json", "adopt"].iter().chain(args);
    let out = results.run(all);
    let lines = text(&out.stdout);
    (out.status.code(), lines.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect())
}

/// P7: **a dead drone costs seconds, not a job.** Its running units are closed at their last snapshot by `adopt`, as its own next commits; every
/// other host shows them; and if it comes back after all, what it has beyond that follows as the next generation: nothing is lost, and there is
/// no fork.
#[test]
fn a_dead_host_is_adopted_and_may_come_back() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let a = machine(&lab, "drone1");
    lab.mount(&a);
    let log = "5-me/host1/debug/log";
    let big: Vec<u8> = (0..400_000u32).flat_map(|i| i.to_le_bytes()).collect();
    put(&a, log, b"one\n");
    put(&a, "5-me/host1/core", &big);
    put(&a, "5-me/host1/removed", b"for a while\n");
    put(&a, "5-me/keyval", b"queued=1\n");
    wait_for("both units to be published", PATIENCE, || a.status()["live"]["published"] == 2);
    assert_eq!(adopt(&lab, &["drone1"]).0, Some(1), "it is connected");
    assert_eq!(adopt(&lab, &["drone9"]).0, Some(1), "there is no such host");
    dies(&lab, &a);
    // In the spool of the dead host only, as a write that no snapshot has seen.
    let spool = a.state.join("spool");
    append_to(&spool.join(log), b"two\n");
    fs::remove_file(spool.join("5-me/host1/removed")).expect("removed");

    let (code, plan) = adopt(&lab, &["drone1", "--dry-run"]);
    let planned: Vec<_> = plan.iter().map(|item| (&item["unit"], &item["result"])).collect();
    assert_eq!(code, Some(0));
    assert_eq!(planned, [(&"5-me/.".into(), &"planned".into()), (&"5-me/host1".into(), &"planned".into())]);
    let (code, done) = adopt(&lab, &["drone1"]);
    assert_eq!(
        (code, done.iter().filter(|item| item["result"] == "adopted").count()),
        (Some(0), 2),
        "{done:?}"
    );
    assert_eq!(adopt(&lab, &["drone1"]).0, Some(1), "nothing is left to adopt");
    let verified = lab.machine("results").run(["verify", "--store", "--read-data"]);
    assert!(verified.status.success(), "{}", text(&verified.stdout));

    let b = machine(&lab, "drone2");
    lab.mount(&b);
    wait_shows(&b, log, b"one\n");
    assert_eq!(fs::read(b.mount.join("5-me/host1/core")).expect("readable"), big);
    assert_eq!(fs::read(b.mount.join("5-me/keyval")).expect("readable"), b"queued=1\n");
    let adopted = job(&b, "5-me/host1").expect("listed");
    assert_eq!((&adopted["state"], &adopted["lost"]), (&"remote".into(), &true.into()));
    let told = b.json(["explain", "5-me/host1"]).pop().expect("an answer");
    assert!(told["layers"][0]["adopted_by"].is_string(), "{told}");

    lab.mount(&a);
    append_to(&a.mount.join(log), b"three\n");
    finish(&a, "5-me/host1");
    wait_for("A to go on from there", PATIENCE, || {
        job(&a, "5-me/host1").is_some_and(|job| job["generation"] == 2)
    });
    a.offload();
    wait_shows(&b, log, b"one\ntwo\nthree\n");
    wait_for("the file that A has removed to be gone", PATIENCE, || {
        !b.mount.join("5-me/host1/removed").exists()
    });
    let layers = b.json(["explain", "5-me/host1"]).pop().expect("an answer")["layers"].clone();
    assert_eq!((layers.as_array().map(Vec::len), &layers[0]["generation"]), (Some(1), &2.into()), "no fork");
    let offload = a.status()["offload"].clone();
    assert!(offload["bytes_sent"].as_u64() < Some(100_000), "the core isn't sent again: {offload}");
    for args in [["verify", "--local"], ["verify", "--store"]] {
        let host = if args[1] == "--store" { lab.machine("results") } else { a.clone() };
        let out = host.run(args);
        assert!(out.status.success(), "{args:?}: {}", text(&out.stdout));
    }
}
