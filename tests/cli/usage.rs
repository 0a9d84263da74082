//! Exit codes of commands that don't get far.

use std::time::Duration;

use crate::{
    harness::Lab,
    said::{called_as, link, resultsfs},
};

/// 0 ok, 2 wrong usage; of `verify` 16.
#[test]
fn wrong_usage_has_its_own_code() {
    for good in ["--help", "--version", "mount --help", "verify --help"] {
        resultsfs(good.split(' ')).expect(0, &[]);
    }
    for bad in [
        "",
        "frobnicate",
        "explain",
        "explain a b",
        "evict",
        "complete",
        "recall",
        "mount a b c",
        "offload --timeout soon",
        "serve --print-authorized-key x",
        "serve --allow everything",
        "status --frobnicate",
        "retire",
        "export 1-me",
        "import",
        "import a b",
    ] {
        resultsfs(bad.split(' ').filter(|w| !w.is_empty())).expect(2, &[]);
    }
    for bad in [
        "verify --frobnicate",
        "--json verify --frobnicate",
        "--config /nowhere --quiet verify --sample 1/2",
        "verify --store --local",
    ] {
        resultsfs(bad.split(' ')).expect(16, &[]);
    }
}

/// Incarnations are counted from 1: there is no 0, and it isn't taken for the present one.
#[test]
fn there_is_no_incarnation_0() {
    let said = resultsfs("export 1-me --to /nowhere --incarnation 0".split(' '));
    said.expect(2, &["invalid value '0' for '--incarnation <N>'", "counted from 1"]);
}

/// By the name `fsck.resultsfs` it is `verify`, with fsck(8)'s codes.
#[test]
fn fsck_is_verify() {
    let lab = Lab::bare(Duration::from_secs(30));
    let fsck = link(lab.path(), "fsck.resultsfs");
    called_as(&fsck, ["--help"]).shows(0, &["Check that nothing is missing"]);
    called_as(&fsck, ["--frobnicate"]).expect(16, &["--frobnicate"]);
    let config = lab.machine("drone1").config;
    let with = |words: &[&str]| {
        let config = config.display().to_string();
        called_as(&fsck, ["--config", &config].iter().chain(words).map(|w| (*w).to_owned()))
    };
    with(&["-a"]).expect(8, &["neither a journal nor a store", "hint: looked in"]);
    with(&["--read-data", "--sample", "3/2"]).expect(8, &[]);
    called_as(&fsck, ["--config", "/nowhere/x.ini"]).expect(8, &["/nowhere/x.ini"]);
}

/// 1 where a command needs the daemon and there is none, with what to do.
#[test]
fn without_a_daemon_commands_fail_with_what_to_do() {
    let lab = Lab::bare(Duration::from_secs(30));
    let drone = lab.machine("drone1");
    for words in ["status", "jobs", "explain 1-me", "offload", "complete 1-me", "evict 1-me", "recall 1-me"] {
        let said: crate::said::Said = drone.run(words.split(' ')).into();
        let said = said.expect(1, &["no daemon answers", "hint: mount the tree first"]);
        assert_eq!(said.out, "", "{words}");
    }
}

/// An unknown mount option is wrong usage, those of mount(8) are not.
#[test]
fn mount_options_are_known_or_wrong_usage() {
    let lab = Lab::bare(Duration::from_secs(30));
    let drone = lab.machine("drone1");
    let mount = |options: &str| -> crate::said::Said {
        drone.run(["mount", "-o", options, &drone.mount.display().to_string()]).into()
    };
    mount("rw,frobnicate=1").expect(2, &["unknown mount option `frobnicate=1`", "hint: known are"]);
    mount("passthrough=perhaps").expect(2, &["passthrough=perhaps"]);
    mount("remount,ro").expect(2, &["remount", "hint: unmount"]);
    assert!(!drone.state.exists(), "nothing was begun");
}
