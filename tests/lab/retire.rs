//! Job ids are reused: an old job's files in the way are named, retired, and the new job runs.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    faults::mount_again,
    harness::{EXE, Lab, Machine, Random, assert_same, picture, processes_with, text, wait_for},
    overlay::{append, evict, job, put},
    takeover::daemon,
};

fn explained(machine: &Machine, path: &str) -> Value {
    machine.json(["explain", path]).pop().expect("an object")
}

/// What a command refused, and with which exit code.
fn refusal<const N: usize>(machine: &Machine, args: [&str; N]) -> (Option<i32>, String) {
    let out = machine.run(args);
    (out.status.code(), text(&out.stderr))
}

fn results_of(retirement: &[Value]) -> Vec<(&str, &str)> {
    retirement.iter().filter_map(|line| Some((line["unit"].as_str()?, line["result"].as_str()?))).collect()
}

fn gone(machine: &Machine, path: &str) {
    wait_for("the retired job to go", Duration::from_secs(30), || !machine.mount.join(path).exists());
}

fn verified(lab: &Lab, machines: &[&Machine]) {
    for machine in machines {
        let local = machine.run(["verify", "--local"]);
        assert_eq!(local.status.code(), Some(0), "{}: {}", machine.name, text(&local.stdout));
    }
    let store = lab.machine("results").run(["verify", "--store", "--read-data"]);
    assert_eq!(store.status.code(), Some(0), "{}", text(&store.stdout));
}

/// An old job's files are in the way of a new one of the same name: `explain` names the layer; `retire` needs the right `delete`; then the path is free
/// on every host, the new job runs and shows alone, and the old one is in the store as it was.
#[test]
fn a_reused_job_id_begins_anew() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let (a, b, admin) = (lab.machine("drone1"), lab.machine("drone2"), lab.machine_with_delete("admin"));
    for machine in [&a, &b, &admin] {
        lab.mount(machine);
    }
    job(&a, "7-me");
    put(&a.mount, "8-me/host1/debug/old.log", "only the old one has this\n");
    job(&a, "8-me");
    evict(&a, "7-me");
    let old = picture(&a.mount);
    b.catch_up(&a);
    admin.catch_up(&a);
    assert_same("the other drone", &old, &picture(&b.mount));

    let way = explained(&b, "7-me/host1/status.log")["in_the_way"].to_string();
    assert!(way.contains("7-me/host1, incarnation 1, generation 1 of drone1, committed as"), "{way}");
    let (code, why) = refusal(&b, ["retire", "7-me"]);
    assert!(code == Some(1) && why.contains("no right `delete`"), "{why}");
    let (code, why) = refusal(&admin, ["retire", "7-me/host1/debug"]);
    assert!(code == Some(1) && why.contains("in the unit 7-me/host1"), "{why}");
    let (code, why) = refusal(&admin, ["retire", "9-me"]);
    assert!(code == Some(1) && why.contains("nothing is committed there"), "{why}");
    let plan = admin.json(["retire", "--dry-run", "7-me", "8-me"]);
    let planned =
        [("7-me/.", "planned"), ("7-me/host1", "planned"), ("8-me/.", "planned"), ("8-me/host1", "planned")];
    assert_eq!(results_of(&plan), planned);
    assert_same("a plan changes nothing", &old, &picture(&admin.mount));

    let done = admin.json(["retire", "7-me", "8-me"]);
    assert_eq!(results_of(&done).iter().filter(|(_, result)| *result == "retired").count(), 4, "{done:?}");
    for machine in [&a, &b, &admin] {
        gone(machine, "7-me");
        gone(machine, "8-me");
        assert_eq!(picture(&machine.mount), Vec::<String>::new(), "{}", machine.name);
    }
    let again = admin.json(["retire", "7-me"]);
    assert_eq!(results_of(&again), [("7-me/.", "retired"), ("7-me/host1", "retired")], "it is done already");
    assert_eq!((&again[1]["seq"], &again[1]["incarnation"]), (&done[4]["seq"], &1.into()), "{again:?}");

    // The new jobs: one where the other drone ran the old one, one where it ran itself.
    put(&b.mount, "7-me/host1/debug/new.log", "new\n");
    job(&b, "7-me");
    put(&a.mount, "8-me/host1/debug/new.log", "new\n");
    job(&a, "8-me");
    for (from, to) in [(&a, &b), (&b, &a), (&a, &admin), (&b, &admin)] {
        to.catch_up(from);
    }
    let new = picture(&a.mount);
    assert!(!new.iter().any(|line| line.contains("old.log")) && new != old, "{new:?}");
    assert_same("the other drone", &new, &picture(&b.mount));
    assert_same("the third", &new, &picture(&admin.mount));
    evict(&a, "8-me");
    assert_same("freed", &new, &picture(&a.mount));

    let told = explained(&a, "8-me/host1");
    assert_eq!((&told["incarnation"], &told["layers"][0]["generation"]), (&2.into(), &1.into()), "{told}");
    assert_eq!(told["older_incarnations"][0]["layers"][0]["host"], "drone1", "{told}");
    let exported = |number: &str| {
        let to = lab.path().join(format!("exported{number}"));
        let to_text = to.display().to_string();
        let out = b.run(["export", "7-me", "8-me", "--to", &to_text, "--incarnation", number]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        picture(&to)
    };
    assert_same("the old ones, given back", &old, &exported("1"));
    assert_same("the new ones, given back", &new, &exported("2"));
    let (code, why) = refusal(&b, ["export", "7-me", "--to", "/proc", "--incarnation", "1"]);
    assert!(code == Some(1) && why.contains("isn't empty"), "{why}");
    verified(&lab, &[&a, &b, &admin]);
}

fn cut_off(lab: &mut Lab) {
    lab.kill_serve();
    for pid in processes_with(&[&lab.path().display().to_string(), "--stdio"]) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A host that was away while its unit was retired, with something that nobody has: it is committed to the life that it is of, shows nowhere, and
/// then the path is free there, too. Its daemon may be killed on the way.
#[test]
fn what_a_host_that_was_away_still_has_is_kept_and_doesnt_show() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let (a, admin) = (lab.machine("drone1"), lab.machine_with_delete("admin"));
    lab.mount(&a);
    lab.mount(&admin);
    job(&a, "7-me");
    evict(&a, "7-me");
    job(&a, "8-me");
    admin.catch_up(&a);
    cut_off(&mut lab);
    append(&a, "8-me/host1/keyval", "late=1\n");
    put(&a.mount, "7-me/host1/late.log", "late\n");
    lab.umount(&a);
    lab.start_serve();
    wait_for("the store to be there for the admin", Duration::from_secs(60), || {
        admin.run(["retire", "7-me", "8-me"]).status.success()
    });
    gone(&admin, "7-me");
    put(&admin.mount, "7-me/host1/debug/new.log", "new\n");
    job(&admin, "7-me");

    mount_again(&mut lab, &a);
    wait_for("the late changes to be committed", Duration::from_secs(90), || {
        let past = explained(&admin, "8-me/host1")["older_incarnations"][0].clone();
        let late = explained(&admin, "7-me/host1")["older_incarnations"][0].clone();
        past["layers"][0]["generation"] == 2 && late["layers"][0]["generation"] == 2
    });
    gone(&a, "8-me");
    a.catch_up(&admin);
    wait_for("only the new job there", Duration::from_secs(60), || {
        picture(&a.mount) == picture(&admin.mount)
    });
    assert!(!a.mount.join("7-me/host1/late.log").exists());
    assert_eq!(fs::read_to_string(a.mount.join("7-me/host1/debug/new.log")).expect("shown"), "new\n");
    let to = lab.path().join("exported").display().to_string();
    let late =
        admin.run(["export", "8-me/host1/keyval", "7-me/host1/late.log", "--to", &to, "--incarnation", "1"]);
    assert!(late.status.success(), "{}", text(&late.stderr));
    let of = |path: &str| fs::read_to_string(lab.path().join("exported").join(path)).expect("given back");
    assert_eq!((&*of("8-me/host1/keyval"), &*of("7-me/host1/late.log")), ("a=b\nlate=1\n", "late\n"));
    let own = a.json(["jobs"]).into_iter().filter(|unit| unit["host"] == "drone1").count();
    assert_eq!(own, 0, "nothing of the old ones is left in the journal");
    verified(&lab, &[&a, &admin]);
}

/// `--before` retires what was committed before a time, and nothing that runs or came later.
#[test]
fn old_jobs_are_retired_by_their_date() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let admin = lab.machine_with_delete("admin");
    lab.mount(&admin);
    job(&admin, "7-me");
    append(&admin, "7-me/host1/keyval", "late=1\n");
    job(&admin, "8-me");
    let held = fs::File::open(admin.mount.join("8-me/host1/keyval")).expect("opens");
    let (code, why) = refusal(&admin, ["retire", "--before", "yesterday"]);
    assert!(code == Some(2) && why.contains("not a date"), "{why}");
    let none = admin.json(["retire", "--before", "2001-01-01"]);
    assert_eq!(none, Vec::<Value>::new());
    wait_for("all but what is open", Duration::from_secs(60), || {
        let out = admin.run(["--json", "retire", "--before", "2099-01-01"]);
        let said = text(&out.stdout);
        assert!(out.status.code() == Some(3) && said.contains("files of it are open"), "{said}");
        said.lines().count() == 1
    });
    let left = picture(&admin.mount);
    assert!(left.iter().all(|line| line.starts_with("\"8-me")), "{left:?}");
    assert!(admin.mount.join("8-me/host1/keyval").exists() && !admin.mount.join("8-me/.machines").exists());
    drop(held);
    wait_for("the rest", Duration::from_secs(60), || {
        admin.offload();
        admin.run(["retire", "--before", "2099-01-01"]).status.success()
    });
    assert_eq!(picture(&admin.mount), Vec::<String>::new());
    verified(&lab, &[&admin]);
}

/// Four jobs of three hosts, whose names are so long that a record has room for two jobs.
fn long_jobs() -> Vec<String> {
    (1..=4).map(|id| format!("{id}-{}", "m".repeat(240))).collect()
}

fn long_hosts() -> Vec<String> {
    (1..=3).map(|id| format!("{}{id}", "h".repeat(240))).collect()
}

/// Of each job one for each host, and its loose files.
const UNITS: usize = 16;

/// Plays them, `round` in every file, and commits them.
fn play_long_jobs(machine: &Machine, round: usize) {
    for job in long_jobs() {
        put(&machine.mount, &format!("{job}/.machines"), &(long_hosts().join("\n") + "\n"));
        for host in long_hosts() {
            put(&machine.mount, &format!("{job}/{host}/keyval"), &format!("round={round}\n"));
            put(&machine.mount, &format!("{job}/{host}/debug/log"), &format!("{host}, {round}\n"));
        }
    }
    wait_for("the jobs to be committed", Duration::from_secs(60), || {
        machine.run(["complete".to_owned()].into_iter().chain(long_jobs()));
        machine.offload();
        let jobs = machine.json(["jobs"]);
        let own = || jobs.iter().filter(|unit| unit["host"] == *machine.name);
        own().count() == UNITS && own().all(|unit| unit["state"] == "committed")
    });
}

/// What is shown of each job: how many entries.
fn entries(machine: &Machine) -> BTreeMap<String, usize> {
    let mut shown = BTreeMap::new();
    let walk = walkdir::WalkDir::new(&machine.mount).min_depth(1);
    // What goes while it is walked through is gone.
    for entry in walk.into_iter().flatten() {
        let path = entry.path().strip_prefix(&machine.mount).expect("below");
        let job = path.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
        *shown.entry(job).or_default() += 1;
    }
    shown
}

/// Runs `retire` of all of them and kills `victim` when it has said so many lines, and a little later; whether it went well all the same.
fn retire_and_kill(machine: &Machine, victim: Pid, lines: usize, pause: Duration) -> bool {
    let mut command = Command::new(EXE);
    command.arg("--config").arg(&machine.config).args(["--json", "retire"]).args(long_jobs());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("the program runs");
    let mut said = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert_eq!(said.by_ref().take(lines).count(), lines, "it says what it does");
    thread::sleep(pause);
    kill_process(victim, Signal::KILL).expect("our own");
    let rest = thread::spawn(move || said.count());
    let mut status = None;
    wait_for("the command to end", Duration::from_secs(60), || {
        status = child.try_wait().expect("our own child");
        status.is_some()
    });
    rest.join().expect("it has ended");
    status.is_some_and(|status| status.success())
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Asker,
    Other,
    Serve,
}

/// `kill -9` of the daemon that was asked, of another one and of the store's, at the plan's first line, at its end, and in the middle of
/// the work: each job is shown as a whole or not at all, and as it was; the same command, given again, goes on with what is left, and what was
/// retired already is no obstacle. Nothing is retired twice, every incarnation can be had again.
#[test]
fn a_retire_that_is_killed_leaves_nothing_half_done() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let (a, b) = (lab.machine_with_delete("drone1"), lab.machine_with_delete("drone2"));
    lab.mount(&a);
    lab.mount(&b);
    let mut random = Random(7);
    let (mut rounds, mut cut_off, mut in_part) = (Vec::new(), 0, 0);
    for lines in [1, UNITS, UNITS + 1] {
        for victim in [Victim::Asker, Victim::Other, Victim::Serve] {
            let at = if rounds.len() % 2 == 0 { [&a, &b] } else { [&b, &a] };
            play_long_jobs(at[0], rounds.len() + 1);
            at[1].catch_up(at[0]);
            let whole = picture(&a.mount);
            assert_same("before", &whole, &picture(&b.mount));
            let each = entries(&a);
            let pid = match victim {
                Victim::Asker => daemon(&a).expect("a daemon"),
                Victim::Other => daemon(&b).expect("a daemon"),
                Victim::Serve => lab.serve_pid(),
            };
            let pause = Duration::from_millis(random.below(20));
            cut_off += usize::from(!retire_and_kill(&a, pid, lines, pause));
            if victim == Victim::Serve {
                lab.kill_serve();
                lab.start_serve();
            }
            let left = half_retired_is_none(&lab, &[&a, &b], &whole, &each);
            in_part += usize::from(left > 0 && left < each.len());
            retire_again(&a);
            for machine in [&a, &b] {
                wait_for("all to be gone", Duration::from_secs(30), || entries(machine).is_empty());
            }
            rounds.push(whole);
        }
    }
    eprintln!("{cut_off} were cut off, {in_part} in part");
    assert!(cut_off >= 2, "only {cut_off} of {} were cut off", rounds.len());
    for (number, whole) in (1..).zip(&rounds) {
        let to = lab.path().join(format!("exported{number}"));
        let words = ["--incarnation".to_owned(), number.to_string(), "--to".to_owned()];
        let words = ["export".to_owned()].into_iter().chain(long_jobs()).chain(words);
        let out = b.run(words.chain([to.display().to_string()]));
        assert!(out.status.success(), "{}", text(&out.stderr));
        assert_same("an incarnation", whole, &picture(&to));
    }
    for job in long_jobs() {
        let unit = format!("{job}/{}", long_hosts()[0]);
        assert_eq!(explained(&a, &unit)["incarnation"], rounds.len() + 1, "{unit}");
    }
    verified(&lab, &[&a, &b]);
}

/// Both show the same of each job, all or nothing; how many.
fn half_retired_is_none(
    lab: &Lab,
    machines: &[&Machine; 2],
    whole: &[String],
    each: &BTreeMap<String, usize>,
) -> usize {
    let mut shown = BTreeMap::new();
    wait_for("both to show the same whole jobs", Duration::from_secs(60), || {
        let store = lab.machine("results").json(["verify", "--store"]);
        let head = store.iter().find_map(|line| line["records"].as_u64()).expect("a summary");
        let has_followed = machines.iter().all(|machine| machine.seq() >= head);
        shown = entries(machines[0]);
        has_followed && shown == entries(machines[1]) && shown.iter().all(|(job, count)| each[job] == *count)
    });
    let expected: Vec<String> = whole
        .iter()
        .filter(|line| shown.keys().any(|job| line.starts_with(&format!("\"{job}"))))
        .cloned()
        .collect();
    for machine in machines {
        assert_same("what is left", &expected, &picture(&machine.mount));
    }
    shown.len()
}

/// The same command once more.
fn retire_again(machine: &Machine) {
    wait_for("the rest to be retired", Duration::from_secs(30), || {
        let out = machine.run(["retire".to_owned()].into_iter().chain(long_jobs()));
        let why = text(&out.stderr);
        assert!(out.status.success() || why.contains("the store can't be reached"), "{why}");
        out.status.success()
    });
}
