//! `prune` and `undelete` on a results host, with and without its daemon.

use std::time::Duration;

use crate::{
    harness::{Lab, Machine},
    said::Said,
};

fn run(machine: &Machine, words: &[&str]) -> Said {
    machine.run(words).into()
}

/// A store with 20 jobs, which nobody has open.
fn results_host() -> (Lab, Machine) {
    let lab = Lab::bare(Duration::from_secs(120));
    let results = lab.machine("results");
    let store = lab.store().display().to_string();
    run(&results, &["generate-history", &store, "--jobs", "20"]).expect(0, &[]);
    (lab, results)
}

fn rows(said: &Said, kind: &str, result: &str) -> usize {
    said.json().iter().filter(|row| row["kind"] == kind && row["result"] == result).count()
}

/// By the daemon or without one: the same plan, the same refusals, the same exit codes.
#[test]
fn prune_and_undelete_with_and_without_a_daemon() {
    let (mut lab, results) = results_host();
    for with_daemon in [false, true] {
        if with_daemon {
            lab.start_serve();
        }
        run(&results, &["prune"]).shows(0, &["0 units were pruned", "retention_days never"]);
        run(&results, &["prune", "--older-than", "0"])
            .expect(1, &["every job", "nothing was pruned", "--yes"]);
        run(&results, &["prune", "--older-than", "0", "--owner", "demo"])
            .expect(1, &["every job in the store (20)"]);
        let words = ["--json", "prune", "--older-than", "0", "--match", "1?-demo"];
        let plan = run(&results, &[&words[..], &["--dry-run"]].concat()).shows(0, &[]);
        let units = rows(&plan, "prune", "planned");
        assert!(units >= 20 && rows(&plan, "prune", "pruned") == 0, "{}", plan.out);
        let done = run(&results, &words).shows(0, &[]);
        assert_eq!((rows(&done, "prune", "planned"), rows(&done, "prune", "pruned")), (units, units));
        let sum = done.json().pop().expect("a sum");
        assert_eq!(
            (&sum["kind"], &sum["all_jobs"], &sum["planned_jobs"]),
            (&"retention".into(), &20.into(), &10.into())
        );
        let row = &done.json()[units];
        assert_eq!((&row["result"], &row["outcome"]), (&"pruned".into(), &serde_json::Value::Null), "{row}");
        assert!(
            row["seq"].is_u64() && row["committed_ms"].is_u64() && row["bytes"].as_u64() > Some(0),
            "{row}"
        );

        run(&results, &["undelete", "--dry-run", "10-demo"]).shows(0, &["planned    10-demo/."]);
        run(&results, &["undelete", "./10-demo/"]).shows(0, &["undeleted  10-demo/."]);
        run(&results, &["undelete", "10-demo"]).shows(0, &["shown      10-demo/."]);
        let many: Vec<String> = (11..20).map(|job| format!("{job}-demo")).collect();
        let many: Vec<&str> =
            ["--json", "undelete"].into_iter().chain(many.iter().map(|job| &**job)).collect();
        let back = run(&results, &many).shows(0, &[]);
        let row = &back.json()[0];
        assert_eq!(
            (&row["kind"], &row["ended"], &row["incarnation"]),
            (&"undelete".into(), &"pruned".into(), &1.into())
        );
        run(&results, &["undelete", "99-demo"]).expect(1, &["nothing was pruned or retired there"]);
        run(&results, &["verify", "--store"]).shows(0, &["prunes", "undeletes", "clean"]);
    }
}

#[test]
fn what_makes_no_sense_is_wrong_usage() {
    let lab = Lab::bare(Duration::from_secs(60));
    let results = lab.machine("results");
    run(&results, &["prune"]).expect(1, &["there is no store in"]);
    for words in [
        &["prune", "--older-than", "yesterday"][..],
        &["prune", "--older-than", "-3"],
        &["prune", "--match", ""],
        &["prune", "--outcome", "aborted"],
        &["undelete"],
        &["undelete", "../7-me"],
    ] {
        assert_eq!(run(&results, words).code, 2, "{words:?}");
    }
    run(&results, &["undelete", "7-me"]).expect(1, &["there is no store in"]);
    assert!(!lab.store().exists(), "and none is made");
}
