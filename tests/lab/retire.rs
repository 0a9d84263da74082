//! Job ids are reused: an old job's files in the way are named, retired, and the new job runs.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    faults::{mount_again, processes_with},
    harness::{Lab, Machine, assert_same, picture, text, wait_for},
    overlay::{append, evict, job, put},
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
