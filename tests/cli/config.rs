//! `config`, and what every command says of a configuration that can't be used.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;

use crate::said::{Said, resultsfs};

/// As Autotest's manual prints it.
const MANUAL: &str = "[SCHEDULER]
 max_processes_per_drone: 1000
 max_transfer_processes: 50
 drones: localhost
 drone_installation_directory: /usr/local/autotest
 results_host: dumpster
 results_host_installation_directory:
 dumpster_username: offloader**
";

fn config(dir: &Path, text: &str, words: &[&str]) -> Said {
    let file = dir.join("global_config.ini");
    fs::write(&file, text).expect("written");
    resultsfs(["--config", &file.display().to_string()].iter().chain(words).map(|w| (*w).to_owned()))
}

fn dir() -> TempDir {
    TempDir::new().expect("a directory")
}

#[test]
fn a_good_configuration_is_shown_with_its_sources() {
    let dir = dir();
    let text = MANUAL.replace("\n ", "\n").replace("**", "");
    fs::write(dir.path().join("shadow_config.ini"), "[RESULTSFS]\nsettle_seconds: 5\n").expect("written");
    config(dir.path(), &text, &["config"])
        .shows(0, &["[SCHEDULER]\n", "dumpster_username: offloader\n", "settle_seconds: 5\n"]);
    let explained = config(dir.path(), &text, &["config", "--explain"]);
    let explained = explained.shows(0, &["shadow_config.ini:2", "global_config.ini:6", "default", "read "]);
    assert_eq!(explained.err, "");
    let lines = config(dir.path(), &text, &["--json", "config"]).shows(0, &[]).json();
    let settle = lines.iter().find(|l| l["key"] == "settle_seconds").expect("a setting");
    assert_eq!(
        (&settle["kind"], &settle["value"], &settle["line"]),
        (&"setting".into(), &"5".into(), &2.into())
    );
    let last = lines.last().expect("a line");
    assert_eq!((&last["kind"], &last["ok"]), (&"config".into(), &true.into()));
    // What it prints is a configuration.
    let printed = config(dir.path(), &text, &["config"]).out;
    config(dir.path(), &printed, &["config"]).shows(0, &["settle_seconds: 5"]);
}

/// Each with the line, what is wrong, and the mend; in every command, and as JSON.
#[test]
fn a_broken_configuration_gets_line_and_mend() {
    let cases: &[(&str, u64, &str, &str)] = &[
        (MANUAL, 2, "indented-key", "begin each key in the first column: sed -i '2,8s/^[[:blank:]]*//'"),
        (&MANUAL.replace("\n ", "\n"), 8, "bad-user", "remove the `**`"),
        ("\u{feff}[SCHEDULER]\nresults_host: x\n", 1, "byte-order-mark", "sed -i '1s/"),
        ("[SCHEDULER]\nresults_host: x\nbare\n", 3, "not-an-option", "key: value"),
        ("[SCHEDULER]\nresults_host: -oProxyCommand=reboot\n", 2, "bad-host", ""),
        ("[SCHEDULER]\n[RESULTSFS]\nsettle_seconds: soon\n", 3, "", "number"),
    ];
    for (text, line, code, mend) in cases {
        let dir = dir();
        let place = format!("global_config.ini:{line}: ");
        config(dir.path(), text, &["config"]).expect(1, &[&place, mend, code]);
        config(dir.path(), text, &["config", "--explain"]).shows(1, &[&place, mend, "mend: "]);
        let lines = config(dir.path(), text, &["--json", "config"]).shows(1, &[]).json();
        let finding = lines.iter().find(|l| l["severity"] == "error").unwrap_or(&Value::Null);
        assert_eq!(finding["line"], *line, "{text}: {lines:?}");
        for command in [&["status"][..], &["mount", "/nowhere"], &["umount", "/nowhere"], &["serve"]] {
            config(dir.path(), text, command).expect(1, &[&place, mend]);
        }
        config(dir.path(), text, &["verify"]).expect(8, &[&place, mend]);
    }
}

#[test]
fn a_configuration_that_is_not_there_is_said_with_where_was_looked() {
    resultsfs(["--config", "/nowhere/x.ini", "config"]).expect(1, &["/nowhere/x.ini"]);
    let dir = dir();
    resultsfs(["--config", &dir.path().display().to_string(), "config"]).expect(1, &["global_config.ini"]);
}
