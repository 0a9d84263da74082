//! Retention over a store on a simulated disk whose clock is turned by hand.

use std::{path::Path, sync::Arc};

use serde_json::Value;

use super::*;
use crate::{
    catalog::RecordBody,
    clock::ManualClock,
    control::Outcome,
    durable::{Disk, sim::SimDisk},
    ids::{Generation, Incarnation, RelPath, Seq, UnitId},
    store::{
        StoreOptions,
        tests::fixture::{DIR, HOST, Layer, SMALL},
    },
};

const START: u64 = 1_000 * DAY_MS;

struct Lab {
    clock: Arc<ManualClock>,
    store: Arc<Store>,
}

impl Lab {
    fn new() -> Self {
        let (clock, disk) = (Arc::new(ManualClock::at(START)), Arc::new(SimDisk::new()));
        let options = StoreOptions { clock: clock.clone() };
        let store = Store::open_on(disk as Arc<dyn Disk>, Path::new(DIR), options, SMALL).expect("made");
        Self { clock, store }
    }

    fn days(&self, days: u64) {
        self.clock.advance(days * DAY_MS);
    }

    fn layer(&self, unit: UnitId, files: &[(&str, &str)]) -> Layer {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec()));
        let incarnation = self.store.life(&unit).incarnation;
        Layer { unit, incarnation, generation: Generation::FIRST, files: files.collect() }
    }

    /// A job of one host that ended so, and its loose files.
    fn job(&self, name: &str, failed: u32) {
        let unit = UnitId::tree(path(&format!("{name}/host1")));
        let pidfile = format!("12\n0\n{failed}\n");
        let files =
            [(".autoserv_execute", &*pidfile), ("keyval", name), ("status.log", "START\tx\n\tGOOD\tx\n")];
        self.layer(unit, &files).send(&self.store).expect("commits");
        self.layer(UnitId::loose(path(name)), &[(".machines", "host1")]).send(&self.store).expect("commits");
    }

    fn task(&self, at: &str, status: &str) {
        self.layer(UnitId::tree(path(at)), &[("status.log", status)]).send(&self.store).expect("commits");
    }

    fn rows(&self, asked: &PruneRules) -> (Result<u8, Refusal>, Vec<Value>) {
        let mut rows = Vec::new();
        let ended = prune(&self.store, asked, "root", &mut |row| {
            rows.push(row);
            Ok(())
        });
        (ended.expect("nobody goes away"), rows)
    }

    /// What became of the units, and the exit code.
    fn prune(&self, asked: &PruneRules) -> (u8, Vec<(String, String)>) {
        let (ended, rows) = self.rows(asked);
        (ended.unwrap_or_else(|e| panic!("refused: {e:?}")), results(&rows))
    }

    fn undelete(&self, at: &str) -> Result<Vec<(String, String)>, String> {
        let mut rows = Vec::new();
        let ended = undelete(&self.store, &[path(at)], false, "root", &mut |row| {
            rows.push(row);
            Ok(())
        });
        ended.expect("nobody goes away").map(|_| results(&rows)).map_err(|refusal| refusal.message)
    }

    fn shows(&self, at: &str) -> bool {
        let unit = UnitId::tree(path(at));
        self.store.latest(HOST, &unit).expect("reads").is_some()
    }
}

fn path(text: &str) -> RelPath {
    text.parse().expect("a path")
}

fn results(rows: &[Value]) -> Vec<(String, String)> {
    let text = |row: &Value, key: &str| row[key].as_str().map(str::to_owned);
    let results = rows.iter().filter_map(|row| Some((text(row, "unit")?, text(row, "result")?)));
    results.filter(|(_, result)| result != "planned").collect()
}

fn planned(rows: &[Value]) -> Vec<&Value> {
    rows.iter().filter(|row| row["result"] == "planned").collect()
}

fn both(job: &str, result: &str) -> Vec<(String, String)> {
    ["host1", "."].map(|unit| (format!("{job}/{unit}"), result.to_owned())).into()
}

fn sorted(mut of: Vec<(String, String)>) -> Vec<(String, String)> {
    of.sort();
    of
}

fn rules(passed: u32, failed: u32) -> PruneRules {
    PruneRules {
        retention_days: passed,
        retention_days_failed: failed,
        grace_days: 7,
        ..PruneRules::default()
    }
}

/// Failed jobs stay longer; a job goes as a whole, by its last commit; what is shared stays; what is printed is what is done.
#[test]
fn a_plan_is_what_is_done() {
    let lab = Lab::new();
    lab.job("1-me", 0);
    lab.job("2-me", 3);
    lab.job("3-you", 0);
    lab.task("hosts/h1/4-verify", "GOOD\tverify\n");
    lab.task("hosts/h1/5-repair", "FAIL\trepair\n");
    lab.layer(UnitId::loose(path("hosts/h1")), &[("note", "x")]).send(&lab.store).expect("commits");
    lab.days(20);
    lab.job("6-me", 0);
    // A late change of a loose file keeps the job.
    let late =
        Layer { generation: Generation(2), ..lab.layer(UnitId::loose(path("3-you")), &[("late", "x")]) };
    late.send(&lab.store).expect("commits");
    lab.days(15);

    let asked = PruneRules { dry_run: true, ..rules(30, 90) };
    let (ended, plan) = lab.rows(&asked);
    assert_eq!((ended, results(&plan)), (Ok(0), Vec::new()));
    let head = lab.store.head();
    let (code, done) = lab.prune(&PruneRules { dry_run: false, ..asked });
    let wanted =
        ["1-me/.", "1-me/host1", "hosts/h1/4-verify"].map(|unit| (unit.to_owned(), "pruned".to_owned()));
    assert_eq!((code, sorted(done.clone())), (0, wanted.to_vec()));
    let mut told: Vec<&str> = planned(&plan).iter().filter_map(|row| row["unit"].as_str()).collect();
    told.sort_unstable();
    assert_eq!(told, wanted.iter().map(|(unit, _)| &**unit).collect::<Vec<_>>());
    let sum = plan.last().expect("a sum");
    assert_eq!(
        (&sum["all_jobs"], &sum["planned_jobs"], &sum["planned_units"]),
        (&6.into(), &2.into(), &3.into())
    );
    let record = lab.store.record(Seq(head.seq.0 + 1)).expect("reads").expect("one record for all");
    let RecordBody::Prune(prune) = &record.body else { panic!("{record:?}") };
    assert_eq!((&*prune.by, &*prune.rule), ("root", "retention_days 30 days, retention_days_failed 90 days"));
    assert!(!lab.shows("1-me/host1") && lab.shows("2-me/host1") && lab.shows("hosts/h1/5-repair"));

    lab.days(60);
    let (_, done) = lab.prune(&rules(90, 90));
    let purged = done.iter().filter(|(_, result)| result == "purged").count();
    assert_eq!((purged, done.len()), (3, 6), "{done:?}");
    assert!(!lab.shows("2-me/host1") && lab.shows("3-you/host1") && lab.shows("6-me/host1"));
    assert_eq!(lab.prune(&rules(0, 0)), (0, Vec::new()), "for ever");
    lab.days(8);
    let (code, done) = lab.prune(&rules(0, 0));
    assert_eq!((code, done.len()), (0, 3), "what was pruned is given up all the same: {done:?}");
}

/// Who owns it, what it is called, how it ended.
#[test]
fn a_rule_can_be_narrowed() {
    let lab = Lab::new();
    lab.job("1-me", 0);
    lab.job("2-me", 1);
    lab.job("3-you", 0);
    lab.task("hosts/h1/4-verify", "GOOD\n");
    let now = || PruneRules { older_than: Some(OlderThan::Days(0)), ..rules(0, 0) };
    let units = |asked: PruneRules| -> Vec<String> {
        let (_, plan) = lab.rows(&PruneRules { dry_run: true, ..asked });
        let mut units: Vec<String> =
            planned(&plan).iter().map(|row| row["unit"].as_str().expect("one").to_owned()).collect();
        units.sort();
        units
    };
    assert_eq!(units(PruneRules { owner: Some("you".into()), ..now() }), ["3-you/.", "3-you/host1"]);
    assert_eq!(units(PruneRules { outcome: Some(Outcome::Failed), ..now() }), ["2-me/.", "2-me/host1"]);
    assert_eq!(units(PruneRules { pattern: Some("hosts/*".into()), ..now() }), ["hosts/h1/4-verify"]);
    assert_eq!(
        units(PruneRules { pattern: Some("?-me".into()), outcome: Some(Outcome::Passed), ..now() }).len(),
        2
    );
    assert_eq!(units(PruneRules { older_than: Some(OlderThan::Before(START)), ..rules(0, 0) }), [""; 0]);
    assert_eq!(units(PruneRules { older_than: Some(OlderThan::Before(START + 1)), ..rules(0, 0) }).len(), 7);
}

/// A rule that takes everything needs a word of its own: one that was given so, or a clock that is years ahead.
#[test]
fn everything_is_pruned_only_where_it_is_meant() {
    let lab = Lab::new();
    lab.job("1-me", 0);
    lab.job("2-me", 0);
    let now = PruneRules { older_than: Some(OlderThan::Days(0)), ..rules(0, 0) };
    let refused = |asked: &PruneRules, why: &str| {
        let (ended, rows) = lab.rows(asked);
        let message = ended.expect_err("refused").message;
        assert!(message.contains(why), "{message}");
        assert!(!rows.is_empty() && results(&rows).is_empty(), "the plan is told, and nothing is done");
    };
    let head = lab.store.head();
    refused(&now, "`--older-than 0` is every job");
    refused(&PruneRules { pattern: Some("*".into()), ..now.clone() }, "every job in the store (2)");
    lab.days(9999);
    refused(&rules(30, 90), "every job in the store (2)");
    assert_eq!(lab.store.head(), head);
    let (code, done) = lab.prune(&PruneRules { pattern: Some("1-*".into()), ..now.clone() });
    assert_eq!((code, sorted(done)), (0, sorted(both("1-me", "pruned"))));
    let (code, done) = lab.prune(&PruneRules { yes: true, ..now });
    assert_eq!((code, done.len()), (0, 2));
}

/// What runs somewhere stays, with its whole job, and so does what has changed since the plan was made.
#[test]
fn what_runs_or_has_changed_stays() {
    let lab = Lab::new();
    for job in ["1-me", "2-me", "3-me"] {
        lab.job(job, 0);
    }
    lab.days(40);
    let running = lab.layer(UnitId::tree(path("1-me/host2")), &[("keyval", "x")]);
    running.publish(&lab.store).expect("shows");
    let late =
        Layer { generation: Generation(2), ..lab.layer(UnitId::tree(path("2-me/host1")), &[("late", "x")]) };
    let mut rows = Vec::new();
    let ended = prune(&lab.store, &rules(30, 0), "root", &mut |row| {
        // While the plan is printed, a host commits.
        if rows.is_empty() {
            late.send(&lab.store).expect("commits");
        }
        rows.push(row);
        Ok(())
    });
    assert_eq!(ended.expect("nobody goes away"), Ok(WITH_FINDINGS));
    let kept = [both("1-me", "kept"), both("2-me", "kept"), both("3-me", "pruned")].concat();
    assert_eq!(sorted(results(&rows)), sorted(kept));
    let note = |unit: &str| {
        rows.iter().find(|row| row["unit"] == unit && row["result"] == "kept").expect("kept")["note"]
            .to_string()
    };
    assert!(note("1-me/.").contains("is running on drone1") && note("2-me/.").contains("committed again"));
}

/// Within the grace it comes back, as often as one likes; with a later job in the way, or after the grace, it doesn't, and it is said why.
#[test]
fn undelete_brings_back_what_nothing_came_after() {
    let lab = Lab::new();
    lab.job("1-me", 0);
    lab.job("2-me", 0);
    let gone =
        || PruneRules { older_than: Some(OlderThan::Days(1)), pattern: Some("1-*".into()), ..rules(0, 0) };
    let other = || PruneRules { pattern: Some("2-*".into()), yes: true, ..gone() };
    for _ in 0..2 {
        lab.days(2);
        assert_eq!(lab.prune(&gone()).0, 0);
        assert!(!lab.shows("1-me/host1"));
        assert_eq!(lab.undelete("1-me").map(sorted), Ok(sorted(both("1-me", "undeleted"))));
        assert!(lab.shows("1-me/host1"));
    }
    assert_eq!(lab.undelete("1-me").map(sorted), Ok(sorted(both("1-me", "shown"))), "it is done");
    for (at, why) in
        [("9-me", "nothing was pruned or retired there"), ("1-me/host1/debug", "nothing was pruned")]
    {
        let refused = lab.undelete(at).expect_err("refused");
        assert!(refused.contains(why), "{refused}");
    }
    assert_eq!(lab.prune(&gone()).0, 0);
    lab.job("1-me", 0);
    let later = lab.undelete("1-me").expect_err("refused");
    assert!(
        later.contains("incarnation 1: a later one of this name is committed; nothing was undeleted"),
        "{later}"
    );

    assert_eq!(lab.prune(&other()).0, 0);
    lab.days(8);
    let (_, rows) = lab.rows(&PruneRules { dry_run: true, ..rules(0, 0) });
    assert_eq!(planned(&rows).len(), 4, "{rows:?}");
    assert_eq!(lab.undelete("2-me/host1"), Ok(vec![("2-me/host1".to_owned(), "undeleted".to_owned())]));
    let (code, done) = lab.prune(&rules(0, 0));
    assert_eq!((code, done.len()), (0, 3), "not the one that is back: {done:?}");
    let purged = lab.undelete("2-me").expect_err("refused");
    assert!(purged.contains("2-me/., incarnation 1: it was purged as"), "{purged}");
}

/// What a host that was away commits to a life after that was given up is given up in turn, when its own grace is over.
#[test]
fn what_comes_after_a_purge_has_a_grace_of_its_own() {
    let lab = Lab::new();
    lab.job("1-me", 0);
    lab.job("2-me", 0);
    lab.days(2);
    let asked =
        PruneRules { older_than: Some(OlderThan::Days(1)), pattern: Some("1-*".into()), ..rules(0, 0) };
    assert_eq!(lab.prune(&asked).0, 0);
    lab.days(8);
    assert_eq!(lab.prune(&rules(0, 0)).1.len(), 2);
    let unit = UnitId::tree(path("1-me/host1"));
    let incarnation = Incarnation::FIRST;
    let late = Layer { generation: Generation(2), incarnation, ..lab.layer(unit, &[("late", "x")]) };
    let record = late.send(&lab.store).expect("is kept");
    assert!(lab.store.manifest_known(&record.commit().expect("a commit").manifest).expect("asks"));
    assert_eq!(lab.prune(&rules(0, 0)).1, [], "it has its time");
    lab.days(8);
    assert_eq!(lab.prune(&rules(0, 0)).1, [("1-me/host1".to_owned(), "purged".to_owned())]);
    assert!(!lab.store.manifest_known(&record.commit().expect("a commit").manifest).expect("asks"));
    assert_eq!(lab.prune(&rules(0, 0)).1, [], "once");
}

/// In however many parts the jobs are looked at, the plan takes the same.
#[test]
fn parts_of_the_jobs_are_all_of_them() {
    let lab = Lab::new();
    for job in 0..40 {
        lab.job(&format!("{job}-me"), job % 3);
    }
    lab.days(40);
    let rule = Rule::of(&rules(30, 0), lab.store.now_ms());
    let units = |parts: u64| -> Vec<UnitId> {
        let plan = Plan::in_parts(&lab.store, &rule, 0, parts).expect("reads");
        assert_eq!(plan.all_jobs, 40);
        let of = |number| plan.units(&lab.store, number).expect("reads");
        let mut units: Vec<UnitId> =
            (0..plan.jobs.len()).flat_map(of).map(|candidate| candidate.unit).collect();
        units.sort();
        units
    };
    assert_eq!(units(1).len(), 28);
    assert_eq!(units(7), units(1));
}

/// A job of which anything was read, by whomever, stays until that was long enough ago; what isn't known counts as read when the record of reads began.
#[test]
fn what_was_read_stays() {
    let lab = Lab::new();
    lab.job("1-me", 0);
    lab.job("2-me", 0);
    let unread = PruneRules { unread_for_days: Some(30), grace_days: 900, yes: true, ..rules(0, 0) };
    lab.days(29);
    assert_eq!(lab.prune(&unread), (0, Vec::new()));
    let read = [UnitId::loose(path("2-me")), UnitId::tree(path("9-nobody/host1"))];
    lab.store.note_reads(&read).expect("is noted");
    let known = lab.store.last_read_ms(&read[1]);
    assert_eq!(known, START, "of what isn't in the catalog nothing is noted");
    lab.days(1);
    let (code, done) = lab.prune(&unread);
    assert_eq!((code, sorted(done)), (0, sorted(both("1-me", "pruned"))));
    assert!(lab.shows("2-me/host1"));
    lab.days(29);
    let (_, rows) = lab.rows(&PruneRules { dry_run: true, ..unread.clone() });
    assert!(planned(&rows).iter().any(|row| row["read_ms"] == START + 29 * DAY_MS), "{rows:?}");
    assert_eq!(sorted(lab.prune(&unread).1), sorted(both("2-me", "pruned")));
}
