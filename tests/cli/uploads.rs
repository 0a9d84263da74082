//! What offloading a job costs in questions to the store, in syncs on both sides and in opened files: what a timing can't hold in place. Real
//! daemons and a real sshd; questions are counted between drone and ssh, system calls by strace(1).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use crate::{
    costs::{Calls, count_all},
    harness::{Lab, Machine},
};

const BOUND: Duration = Duration::from_secs(180);
const FILES: usize = 100;
/// Numbers of the messages of `wire`.
const OFFER: &str = "1";
const MISSING: &str = "2";
const COMMIT: &str = "3";
/// What the listing, the journal and the daemon's commands open besides.
const OTHER_OPENS: usize = 40;
const SYNCS: [&str; 3] = ["fsync", "fdatasync", "sync_file_range"];

#[derive(Debug)]
struct Cost {
    /// Frames from the drone, by kind.
    sent: BTreeMap<String, usize>,
    drone: Calls,
    store: Calls,
}

impl Cost {
    fn sent(&self, kind: &str) -> usize {
        self.sent.get(kind).copied().unwrap_or(0)
    }
}

/// A lab in which nothing is done unless it is asked for, with one drone, which is warm.
fn lab(log: &Path) -> (Lab, Machine) {
    let mut lab = Lab::bare(BOUND);
    let alike = "settle_seconds: 3600\ncomplete_on: parser\nlive_seconds: 0";
    lab.machine_with("results", alike);
    lab.start_sshd();
    lab.start_serve();
    let relay = concat!("python3 ", env!("CARGO_MANIFEST_DIR"), "/tests/cli/relay.py");
    let (log, home) = (log.display(), lab.path().display());
    let ssh = format!("ssh_command: {relay} {log} ssh -F {home}/ssh_config");
    let drone = lab.machine_with("drone1", &format!("{alike}\n{ssh}"));
    lab.mount(&drone);
    write_job(&drone, 1, "warm", 1);
    drone.offload();
    (lab, drone)
}

/// A job that has ended. Its files hold what `content` says, and nothing twice; everything was changed at `seconds`.
fn write_job(drone: &Machine, number: u32, content: &str, seconds: u64) {
    let job = drone.mount.join(format!("{number}-me"));
    fs::create_dir(&job).expect("made");
    let ended = "1\n0\n0\n".to_owned();
    let files = (0..FILES).map(|i| (format!("file{i}"), format!("{content} {i}\n").repeat(40)));
    // The first one makes the directory a unit, the last one ends it.
    let first = [(".autoserv_execute".to_owned(), ended.clone())];
    let last = [(".parser_execute".to_owned(), ended)];
    for (name, text) in first.into_iter().chain(files).chain(last) {
        fs::write(job.join(&name), text).expect("written");
        date(&job.join(&name), seconds);
    }
    date(&job, seconds);
}

fn date(path: &Path, seconds: u64) {
    let file = File::open(path).expect("opens");
    file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).expect("dated");
}

fn offloaded(lab: &Lab, drone: &Machine, log: &Path) -> Cost {
    let before = fs::read_to_string(log).expect("the relay's log").len();
    let serve = u32::try_from(lab.serve_pid().as_raw_nonzero().get()).expect("a pid");
    let mut store = None;
    let counted = count_all(drone.pid(), || store = Some(count_all(serve, || drone.offload())));
    let mut sent = BTreeMap::new();
    for line in fs::read_to_string(log).expect("the relay's log")[before..].lines() {
        *sent.entry(line.to_owned()).or_default() += 1;
    }
    Cost { sent, drone: counted, store: store.expect("the work was done") }
}

/// One job after another, nothing else going on. What is asked of the store one after another are round trips; the rest isn't waited for.
#[test]
fn a_job_is_offloaded_at_the_cost_it_had() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("frames");
    let (mut lab, drone) = lab(&log);
    let mut number = 1;
    let mut check = |what: &str, content: &str, seconds: u64, most: Most| {
        number += 1;
        write_job(&drone, number, content, seconds);
        let cost = offloaded(&lab, &drone, &log);
        println!("{what}: {cost:?}");
        for (kind, most) in [(OFFER, 1), (MISSING, most.missing), (COMMIT, 1), ("block", most.blocks)] {
            assert!(cost.sent(kind) <= most, "{what}: message {kind}: {cost:?}");
        }
        assert!(cost.sent(COMMIT) == 1 && cost.store.of(&SYNCS) > 0, "{what}: it was seen: {cost:?}");
        assert!(cost.drone.of(&["syncfs"]) <= 1, "{what}: one for all jobs that are complete: {cost:?}");
        assert!(cost.drone.of(&SYNCS) <= 3, "{what}: complete, sealed, committed: {cost:?}");
        assert!(cost.store.of(&SYNCS) <= most.store_syncs, "{what}: {cost:?}");
        let opens = cost.drone.of(&["open", "openat", "openat2"]);
        assert!(opens <= most.opens_each * FILES + OTHER_OPENS, "{what}: {cost:?}");
    };
    check("new content", "new", 1, Most { missing: 1, blocks: 1, store_syncs: 2, opens_each: 2 });
    check(
        "known content, other times",
        "new",
        2,
        Most { missing: 1, blocks: 1, store_syncs: 2, opens_each: 1 },
    );
    check("nothing new", "new", 2, Most { missing: 0, blocks: 0, store_syncs: 1, opens_each: 1 });
    assert_eq!(lab.logins(), 1, "one connection, whatever is sent");
    lab.umount(&drone);
}

/// Bounds of one job: packs and catalog are synced where something is new, each file is opened to be described and once more to be sent.
struct Most {
    missing: usize,
    blocks: usize,
    store_syncs: usize,
    opens_each: usize,
}
