//! Ten thousand sessions at once, where sshd's would come in: what they cost the store's daemon, and what an honest drone notices of them.

use std::{
    collections::HashMap,
    fs,
    io::{self, IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use resultsfs::{
    ids::HostUuid,
    limits,
    wire::{
        FromStore, Hello, JOIN_VERSION, Join, PROTOCOL_VERSION, RefusalCode, ToStore, message_frame,
        rights::Rights,
    },
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::harness::{Lab, Machine, play_task};

const SESSIONS: usize = 10_000;
/// Of them, how many one thread has on its way at once: our own descriptors are few.
const BATCH: usize = 250;
const THREADS: usize = 4;

/// A session that came in as `serve --stdio` hands it over.
struct Door {
    _process: UnixStream,
    stream: UnixStream,
}

impl Door {
    fn open(socket: &Path, name: &str) -> io::Result<Self> {
        let (near, far) = UnixStream::pair()?;
        let mut process = UnixStream::connect(socket)?;
        let join =
            Join { version: JOIN_VERSION, pinned_name: Some(name.to_owned()), rights: Rights::default() };
        let bytes = join.frame().encode();
        let fds = [far.as_fd(), far.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)), "there is room for two");
        sendmsg(&process, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
        drop(far);
        process.read_exact(&mut [0])?;
        near.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { _process: process, stream: near })
    }

    fn greet(&mut self, name: &str, host: HostUuid) -> io::Result<()> {
        let hello = Hello {
            version: PROTOCOL_VERSION,
            host,
            host_name: name.to_owned(),
            known: None,
            settings: vec![],
        };
        self.stream.write_all(&message_frame(&ToStore::Hello(hello)).encode())
    }

    /// What the store says first.
    fn hear(&mut self) -> io::Result<FromStore> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let bytes = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let mut body = vec![0; bytes as usize];
        self.stream.read_exact(&mut body)?;
        Ok(FromStore::decode(&body).expect("a message"))
    }
}

#[derive(Default)]
struct Came {
    open: Vec<Door>,
    busy: usize,
    other: HashMap<String, usize>,
}

impl Came {
    fn add(&mut self, other: Self) {
        self.open.extend(other.open);
        self.busy += other.busy;
        for (what, count) in other.other {
            *self.other.entry(what).or_default() += count;
        }
    }
}

/// So many sessions of these hosts, in turn; those that greet, as `greets` says by their number, stay if they are let in, and the others as long as they may.
fn flood(
    socket: &Path,
    count: usize,
    names: &[(String, HostUuid)],
    greets: impl Fn(usize) -> bool + Sync,
) -> Came {
    let greets = &greets;
    let one = |thread: usize| {
        let mut came = Came::default();
        let numbers: Vec<usize> = (thread..count).step_by(THREADS).collect();
        for batch in numbers.chunks(BATCH) {
            let mut doors = Vec::new();
            for number in batch {
                let (name, host) = &names[number % names.len()];
                let mut door = Door::open(socket, name).expect("the daemon takes everybody");
                // One that is refused already doesn't take it.
                let _ = if greets(*number) { door.greet(name, *host) } else { Ok(()) };
                doors.push((greets(*number), door));
            }
            for (has_greeted, mut door) in doors {
                // Those that don't greet aren't told anything as long as they stay.
                if !has_greeted {
                    door.stream.set_read_timeout(Some(Duration::from_millis(1))).expect("set");
                }
                match door.hear() {
                    Ok(FromStore::Welcome(_)) => came.open.push(door),
                    Ok(FromStore::Refused(RefusalCode::Busy, _)) => came.busy += 1,
                    Ok(other) => *came.other.entry(format!("{other:?}")).or_default() += 1,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => came.open.push(door),
                    Err(e) => *came.other.entry(e.to_string()).or_default() += 1,
                }
            }
        }
        came
    };
    let mut all = Came::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || one(thread))).collect();
        threads.into_iter().for_each(|thread| all.add(thread.join().expect("no panic")));
    });
    all
}

/// Resident memory in MiB, now and at its highest, and open descriptors of the store's daemon.
fn costs(lab: &Lab) -> (u64, u64, usize) {
    let proc = PathBuf::from(format!("/proc/{}", lab.serve_pid().as_raw_nonzero()));
    let status = fs::read_to_string(proc.join("status")).expect("it runs");
    let mib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("is in it");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") >> 10
    };
    (mib("VmRSS:"), mib("VmHWM:"), fs::read_dir(proc.join("fd")).expect("its descriptors").count())
}

/// What an honest drone does meanwhile, and how long it takes.
fn commits(drone: &Machine, id: u32) -> Duration {
    let began = Instant::now();
    play_task(&drone.mount, id);
    drone.offload();
    began.elapsed()
}

/// P10: ten thousand sessions of one host, half of which never greet, and then some thousands of three hundred hosts, cost the store no more than their
/// bounds; those beyond hear that they are to come later; and the honest drone's own session goes on, as one does that comes in the midst of it.
#[test]
fn ten_thousand_sessions_are_bounded_and_lock_nobody_out() {
    let mut lab = Lab::new(Duration::from_secs(400));
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    let quiet = commits(&drone, 1);
    let before = costs(&lab);
    eprintln!("before: {before:?} MiB, MiB, descriptors; a task is committed in {quiet:?}");
    let one_host = vec![("drone6".to_owned(), HostUuid::random())];
    let many: Vec<_> = (0..300).map(|n| (format!("evil{n}"), HostUuid::random())).collect();
    let mut task = 2;
    for (what, count, names, bound) in [
        ("one host", SESSIONS, &one_host, limits::SESSIONS_PER_HOST),
        ("300 hosts", SESSIONS / 4, &many, limits::SESSIONS),
    ] {
        let (slowest, came) = beside_a_flood(&lab, &drone, &mut task, what, count, names);
        let now = costs(&lab);
        eprintln!("{what}: {} stay, {} are busy, {:?}; {now:?}", came.open.len(), came.busy, came.other);
        assert!(now.2 <= before.2 + 3 * (bound + 16), "{what}: {} descriptors", now.2);
        assert!(now.1 <= before.1 + 256, "{what}: {} MiB", now.1);
        assert!(slowest < Duration::from_secs(60), "{what}: {slowest:?}");
        assert!(came.other.is_empty(), "{what}: {:?}", came.other);
        assert!(came.busy > count / 2, "{what}: {} were told", came.busy);
        // Another that comes now, while all of them are there.
        let newcomer = lab.machine(&format!("new{task}"));
        lab.mount(&newcomer);
        commits(&newcomer, 1000 + task);
        assert_eq!(drone.status()["connection"]["attempts"], 0, "{what}: the drone's session is the first");
        lab.umount(&newcomer);
    }
    assert_eq!(lab.logins(), 1 + 2, "the drone's, and each newcomer's");
    let log = fs::read_to_string(lab.path().join("serve.log")).expect("a log");
    let warnings = log.lines().filter(|line| line.contains("WARN") && line.contains("\"drone6\"")).count();
    assert!((1..10).contains(&warnings), "{warnings} warnings of {SESSIONS} sessions");
}

/// The honest drone commits one task after another as long as others come in; its slowest one.
fn beside_a_flood(
    lab: &Lab,
    drone: &Machine,
    task: &mut u32,
    what: &str,
    count: usize,
    names: &[(String, HostUuid)],
) -> (Duration, Came) {
    let socket = lab.path().join("results/serve.sock");
    let began = Instant::now();
    thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(&socket, count, names, |n| names.len() > 1 || n % 2 == 0));
        let (mut slowest, mut done) = (Duration::ZERO, 0);
        while !flooding.is_finished() || done < 2 {
            slowest = slowest.max(commits(drone, *task));
            (*task, done) = (*task + 1, done + 1);
        }
        let came = flooding.join().expect("no panic");
        eprintln!(
            "{what}: {count} sessions in {:?}; {done} tasks meanwhile, the slowest in {slowest:?}",
            began.elapsed()
        );
        (slowest, came)
    })
}
