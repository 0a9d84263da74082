//! What a configuration becomes, and what is said of a wrong one.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::*;

/// A file's findings, warnings included, with the text of each as it is shown.
fn examined(text: &str) -> Examined {
    let raw = RawConfig::merge(ini::Ini::parse(Path::new("/lab/global_config.ini"), text.as_bytes()), None);
    check::check(raw, Some("drone1"))
}

fn good(text: &str) -> Config {
    Config::from_text(text, "drone1").unwrap_or_else(|e| panic!("{e}"))
}

/// The lines after `[SCHEDULER]` and `[RESULTSFS]`.
fn with(scheduler: &str, own: &str) -> String {
    format!("[SCHEDULER]\n{scheduler}\n[RESULTSFS]\n{own}\n")
}

fn setting<'a>(examined: &'a Examined, section: &str, key: &str) -> &'a Setting {
    let found = examined.settings.iter().find(|s| s.section == section && s.key == key);
    found.unwrap_or_else(|| panic!("no {key}"))
}

/// A directory with the two files, as surroundings.
fn lab(global: &str, shadow: Option<&str>) -> (TempDir, Surroundings) {
    let dir = TempDir::new().expect("a temporary directory");
    let etc = dir.path().join("etc");
    fs::create_dir(&etc).expect("made");
    fs::write(etc.join("global_config.ini"), global).expect("written");
    if let Some(shadow) = shadow {
        fs::write(etc.join("shadow_config.ini"), shadow).expect("written");
    }
    let usr_local = dir.path().join("usr");
    let host_name = Some("drone1".to_owned());
    (dir, Surroundings { top_path: None, etc, usr_local, host_name })
}

const MANUAL: &str = "[SCHEDULER]
 max_processes_per_drone: 1000
 max_jobs_started_per_cycle: 100
 max_parse_processes: 5
 max_transfer_processes: 50
 drones: localhost
 drone_installation_directory: /usr/local/autotest
 results_host: dumpster
 results_host_installation_directory:
 dumpster_username: offloader**
 secs_to_wait_for_atomic_group_hosts: 600
 reverify_period_minutes: 0
";

#[test]
fn the_manuals_sample_works_once_its_print_is_mended() {
    let config = good(&MANUAL.replace("\n ", "\n").replace("**", ""));
    let host = ResultsHost::Host { host: "dumpster".into(), user: Some("offloader".into()) };
    assert_eq!(config.results_host(), &host);
    assert_eq!(config.max_transfer_processes, 50);
    assert_eq!(config.results_host_installation_directory, None);
    assert_eq!(config.mountpoint_default(true), Path::new("/usr/local/autotest/results"));
    assert_eq!(config.drones, [Drone { host: "localhost".into(), user: None, disabled: false }]);
}

/// Where Autotest would fail with a traceback, resultsfs names file, line and the mend: all of it in one go.
#[test]
fn the_manuals_sample_as_printed_is_refused_with_both_mends() {
    let error = Config::from_text(MANUAL, "drone1").expect_err("Autotest can't read it either").to_string();
    assert_eq!(
        error,
        "global_config.ini:2: the keys (lines 2 to 12) below [SCHEDULER] begin with a blank, as the manual prints them; \
         Autotest takes such a line for more of the value above, finds none, and stops; \
         begin each key in the first column: sed -i '2,12s/^[[:blank:]]*//' global_config.ini\n\
         global_config.ini:10: `dumpster_username` is `offloader**`, which is no user name; \
         remove the `**`: in the manual it marks the line and is no part of the value"
    );
}

/// Each trap: the code, the line, and a piece of the mend.
#[test]
fn each_trap_is_named_with_its_line_and_its_mend() {
    let traps: &[(&str, &str, u32, &str)] = &[
        // The form of the file.
        (
            "\u{feff}[SCHEDULER]\na: 1\n",
            "byte-order-mark",
            1,
            r"sed -i '1s/^\xef\xbb\xbf//' /lab/global_config.ini",
        ),
        ("results_host: x\n", "no-section", 1, "[SCHEDULER]"),
        (" [SCHEDULER]\na: 1\n", "indented-section", 1, "first column"),
        ("[SCHEDULER]\n results_host: x\n", "indented-key", 2, "sed -i '2s/^[[:blank:]]*//'"),
        ("[SCHEDULER]\na: 1\ndumpster\n", "not-an-option", 3, "key: value"),
        ("[SCHEDULER]\n: 1\n", "not-an-option", 2, "the key's name"),
        ("[SCHEDULER\na: 1\n", "no-section", 1, "close the bracket"),
        ("[A]\n[SCHEDULER\na: 1\n", "not-an-option", 2, "close the bracket"),
        ("[SCHEDULER]\n  # x\n", "not-an-option", 2, "first column"),
        ("[SCHEDULER]\ndrones: a\n results_host: b\n", "swallowed-line", 3, "first column"),
        ("[OTHER]\na: 1\n [SCHEDULER]\n", "swallowed-line", 3, "first column"),
        ("[SCHEDULER]\ndrones: a\n # b\n", "swallowed-line", 3, "first column"),
        ("[SCHEDULER]\n\u{a0}results_host: b\n", "strange-space", 2, "type the line again"),
        ("[SCHEDULER]\ndrones: a\nDrones: b\n", "set-twice", 3, "lines 2 and 3"),
        ("[SCHEDULER]\nresults_host: %(x)s%\nx: 1\n", "interpolation", 2, "%%"),
        ("[SCHEDULER]\nresults_host: %(x)s\n", "interpolation", 2, "[DEFAULT]"),
        ("[scheduler]\nresults_host: x\n", "section-name", 2, "[SCHEDULER]"),
        ("[ RESULTSFS ]\nstate_dir: /x\n", "section-name", 2, "[RESULTSFS]"),
        // Hosts and users.
        ("[SCHEDULER]\nresults_host: -oProxyCommand=x\n", "bad-host", 2, "doesn't begin with `-`"),
        ("[SCHEDULER]\nresults_host: dumpster**\n", "bad-host", 2, "remove the `**`"),
        ("[SCHEDULER]\nresults_host: \"dumpster\"\n", "bad-host", 2, "remove the quotes"),
        ("[SCHEDULER]\nresults_host: dumpster # x\n", "bad-host", 2, "` ;`"),
        ("[SCHEDULER]\nresults_host: dumpster;x\n", "bad-host", 2, "blank before the `;`"),
        ("[SCHEDULER]\nresults_host: dumpster\u{a0}\n", "bad-host", 2, "can't be seen"),
        ("[SCHEDULER]\nresults_host: me@dumpster\n", "bad-host", 2, "`dumpster_username: me`"),
        ("[SCHEDULER]\nresults_host: dumpster:2222\n", "bad-host", 2, "ssh -p 2222"),
        ("[SCHEDULER]\nresults_host: a b\n", "bad-host", 2, "one host"),
        ("[SCHEDULER]\nresults_host: a$(b)\n", "bad-host", 2, "one host"),
        ("[SCHEDULER]\nresults_host: dumpster\n x: y\n", "bad-host", 2, "line below it"),
        ("[SCHEDULER]\nresults_host: d\nd_username: -x\n", "bad-user", 3, "doesn't begin with `-`"),
        ("[SCHEDULER]\nresults_host: d\nd_username: $(a)\n", "bad-user", 3, "account"),
        ("[SCHEDULER]\nresults_host: d\nd_username: a\\\n", "bad-user", 3, "account"),
        ("[SCHEDULER]\nresults_host: d\nd_username: a b\n", "bad-user", 3, "account"),
        ("[SCHEDULER]\ndrones: ok, -x\n", "bad-host", 2, "doesn't begin with `-`"),
        ("[SCHEDULER]\nresults_host: d.lab\nd_username: a\n", "unknown-host", 3, "`d.lab_username`"),
        ("[SCHEDULER]\nfe80::1_username: bob\n", "colon-in-key", 2, "without `:`"),
        ("[SCHEDULER]\ndrones: a\na_disabled: 0\n", "disabled-by-any-text", 3, "leave the value blank"),
        ("[RESULTSFS]\nhost_name: localhost\n", "host-name-is-localhost", 2, "a name of its own"),
        // Values.
        ("[SCHEDULER]\nmax_transfer_processes: many\n", "not-a-number", 2, "digits"),
        ("[SCHEDULER]\nmax_transfer_processes: 0\n", "out-of-range", 2, "from 1 to"),
        ("[RESULTSFS]\nsettle_seconds: 10s\n", "not-a-number", 2, "`settle_seconds: 10`"),
        ("[RESULTSFS]\nsettle_seconds: 1.5\n", "not-a-number", 2, "digits"),
        ("[RESULTSFS]\nsettle_seconds: -1\n", "out-of-range", 2, "from 0 to"),
        ("[RESULTSFS]\nsettle_seconds: 10 # ten\n", "not-a-number", 2, "` ;`"),
        ("[RESULTSFS]\nsettle_seconds: 99999999999999999999\n", "not-a-number", 2, "settle_seconds"),
        ("[RESULTSFS]\ncomplete_on: finished\n", "not-known", 2, "archiver, parser or autoserv"),
        ("[RESULTSFS]\nstate_dir: state\n", "not-a-path", 2, "from `/` on"),
        ("[RESULTSFS]\nstate_dir: /a/../b\n", "not-a-path", 2, "`..`"),
        ("[RESULTSFS]\nstate_dir: \"/a\"\n", "not-a-path", 2, "remove the quotes"),
        ("[RESULTSFS]\nlocal_only: a/b\n", "bad-name", 2, "without `/`"),
        ("[RESULTSFS]\nssh_command: ssh 'x\n", "bad-command", 2, "command line"),
        ("[RESULTSFS]\nssh_command: \"ssh -p 22\"\n", "bad-command", 2, "leave the quotes out"),
        ("[RESULTSFS]\nssh_command: -p 22\n", "bad-command", 2, "`ssh`"),
        ("[RESULTSFS]\nremote_command: ~/resultsfs\n", "bad-command", 2, "write the path out"),
        ("[RESULTSFS]\nremote_command: a | b\n", "bad-command", 2, "script"),
        // Keys together.
        ("[RESULTSFS]\nspool_high_percent: 60\n", "spool-limits", 2, "low the lower"),
        ("[RESULTSFS]\nstate_dir: /usr/local/autotest/results/x\n", "inside-the-results-tree", 2, "outside"),
        ("[RESULTSFS]\nspool_dir: /var/lib/resultsfs\n", "nested-directories", 2, "directory of its own"),
        ("[RESULTSFS]\nstate_dur: /x\n", "unknown-key", 2, "`state_dir`"),
        ("[RESULTSFS]\ndrones: x\n", "unknown-key", 2, "[SCHEDULER]"),
        ("[RESULTSFS]\ncolour: x\n", "unknown-key", 2, "remove it"),
        ("[SCHEDULER]\nresult_host: x\n", "unknown-key", 2, "`results_host`"),
        ("[SCHEDULER]\nstate_dir: /x\n", "unknown-key", 2, "[RESULTSFS]"),
        ("[SCHEDULER]\nresults_host: d\n", "autotest-copies-too", 2, "`results_host: localhost`"),
        ("[RESULTSFS]\nretention_days_failed: 3\n", "retention-order", 2, "at least `retention_days`"),
        ("[RESULTSFS]\nretention_days_failed: 3\nretention_days: 9\n", "retention-order", 2, "0 for ever"),
        ("[SCHEDULER]\nenable_archiving: False\n", "archiving-is-off", 0, "complete_on: parser"),
    ];
    for (text, code, line, mend) in traps {
        let examined = examined(text);
        let finding = examined.findings.iter().find(|f| f.code == *code);
        let finding = finding.unwrap_or_else(|| panic!("{text:?}: no {code} in {:?}", examined.findings));
        assert_eq!(finding.place.as_ref().map_or(0, |p| p.line), *line, "{text:?}");
        assert!(finding.mend.contains(mend), "{text:?}: {}", finding.mend);
        assert_eq!(examined.config().is_some(), !examined.findings.iter().any(Finding::is_error), "{text:?}");
    }
}

#[test]
fn bytes_that_are_no_text_are_refused_only_where_they_count() {
    let read = |bytes: &[u8]| {
        check::check(RawConfig::merge(ini::Ini::parse(Path::new("/x"), bytes), None), Some("h")).into_config()
    };
    assert!(read(b"# caf\xe9\n[OTHER]\na: \xe9\n").is_ok());
    assert!(read(b"[RESULTSFS]\nstate_dir: /caf\xe9\n").expect_err("bad").to_string().contains("UTF-8"));
    assert!(read(b"\xff\xfe[\0").expect_err("bad").to_string().contains("UTF-16"));
}

/// A shadow file holds passwords.
#[test]
fn a_finding_does_not_quote_a_line_that_may_be_a_password() {
    let text = "[AUTOTEST_WEB]\nhunter2\n";
    let shown = explain::text(&examined(text)) + &json(&examined(text));
    assert!(shown.contains("not-an-option") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn an_empty_configuration_is_all_defaults() {
    let config = good("");
    assert_eq!(config.results_host, ResultsHost::None);
    assert_eq!(config.mountpoint_default(false), Path::new("/usr/local/autotest/results"));
    assert_eq!(config.control_socket(), Path::new("/var/lib/resultsfs/control.sock"));
    assert_eq!(config.spool_dir, Path::new("/var/lib/resultsfs/spool"));
    assert_eq!(config.store_dir, Path::new("/var/lib/resultsfs/store"));
    assert_eq!(config.serve_socket, Path::new("/run/resultsfs/serve.sock"));
    assert_eq!((config.ssh_command, config.remote_command), (vec!["ssh".into()], vec!["resultsfs".into()]));
    assert_eq!((config.host_name.as_str(), config.complete_on), ("drone1", CompleteOn::Archiver));
    assert_eq!((config.settle_seconds, config.lost_hours, config.live_seconds), (10, 24, 30));
    assert_eq!((config.keep_local_hours, config.cache_max_mib), (72, 4096));
    assert_eq!((config.spool_high_percent, config.spool_low_percent), (80, 70));
    assert_eq!((config.bandwidth_mib_per_s, config.compression_level), (0, 3));
    assert_eq!((config.retention_days, config.retention_days_failed, config.prune_grace_days), (0, 0, 7));
    assert!(config.local_only.is_empty() && config.warnings.is_empty());
}

#[test]
fn every_key_of_the_own_section_is_taken() {
    let config = good(&with(
        "results_host: localhost",
        "results_host: dumpster\nhost_name: d7\nstate_dir: /s/\nspool_dir: /p\nstore_dir: /t//x\n\
         serve_socket: /run/s\nssh_command: ssh -p 2222 -i '/a b'\nremote_command: /opt/resultsfs --config /etc/dumpster.ini\n\
         complete_on: parser\nsettle_seconds: 1\nlost_hours: 2\nlive_seconds: 0\nkeep_local_hours: 4\n\
         spool_high_percent: 50\nspool_low_percent: 40\ncache_max_mib: 64\nbandwidth_mib_per_s: 7\n\
         compression_level: 19\nretention_days: 30\nretention_days_failed: 90\nprune_grace_days: 0\nlocal_only: scratch, tmp",
    ));
    assert_eq!(config.results_host, ResultsHost::Host { host: "dumpster".into(), user: None });
    assert_eq!((config.host_name.as_str(), config.complete_on), ("d7", CompleteOn::Parser));
    assert_eq!(config.state_dir.as_os_str(), "/s");
    assert_eq!((config.spool_dir, config.store_dir), ("/p".into(), "/t/x".into()));
    assert_eq!(config.serve_socket, Path::new("/run/s"));
    assert_eq!(config.ssh_command, ["ssh", "-p", "2222", "-i", "/a b"]);
    assert_eq!(config.remote_command, ["/opt/resultsfs", "--config", "/etc/dumpster.ini"]);
    assert_eq!((config.settle_seconds, config.lost_hours, config.live_seconds), (1, 2, 0));
    assert_eq!((config.keep_local_hours, config.cache_max_mib), (4, 64));
    assert_eq!((config.spool_high_percent, config.spool_low_percent), (50, 40));
    assert_eq!((config.bandwidth_mib_per_s, config.compression_level), (7, 19));
    assert_eq!((config.retention_days, config.retention_days_failed, config.prune_grace_days), (30, 90, 0));
    assert_eq!(config.local_only, ["scratch", "tmp"]);
    assert_eq!(config.warnings, []);
}

/// P11: `results_host: localhost` (or blank) copies nothing anywhere.
#[test]
fn localhost_or_blank_is_no_results_host() {
    for (scheduler, own) in [
        ("results_host: localhost", ""),
        ("results_host:", ""),
        ("results_host: LocalHost", ""),
        ("", ""),
        ("results_host: dumpster", "results_host: localhost"),
        ("results_host: localhost", "results_host:"),
    ] {
        let config = good(&with(scheduler, own));
        assert_eq!(config.results_host, ResultsHost::None, "{scheduler} {own}");
        assert_eq!(config.warnings, [], "{scheduler} {own}");
    }
}

#[test]
fn the_user_of_the_results_host_is_its_special_variable() {
    for (line, user) in [
        ("dumpster.lab_username: offloader", Some("offloader")),
        ("DUMPSTER.Lab_Username: offloader", Some("offloader")),
        ("dumpster.lab_username: LAB\\off.loader-1", Some("LAB\\off.loader-1")),
        ("dumpster.lab_username:", None),
    ] {
        let config = good(&with(&format!("results_host: Dumpster.lab\n{line}"), ""));
        let host = ResultsHost::Host { host: "Dumpster.lab".into(), user: user.map(str::to_owned) };
        assert_eq!(config.results_host, host, "{line}");
    }
    let config = good(&with("results_host: fe80::1%eth0", ""));
    assert_eq!(config.results_host, ResultsHost::Host { host: "fe80::1%eth0".into(), user: None });
}

#[test]
fn a_user_name_counts_as_an_error_only_where_it_is_used() {
    let text = with("drones: a, d\na_username: x y\nd_username: x y\nresults_host: d", "");
    let examined = examined(&text);
    let users: Vec<_> = examined.findings.iter().filter(|f| f.code == "bad-user").collect();
    let seen: Vec<_> = users.iter().map(|f| (f.severity, f.place.as_ref().map(|p| p.line))).collect();
    assert_eq!(seen, [(Severity::Error, Some(4)), (Severity::Warning, Some(3))]);
}

#[test]
fn drones_have_their_special_variables() {
    let config = good(&with("drones: a,\n  B.lab , localhost\nb.lab_username: bob\na_disabled: 1", ""));
    let drone = |host: &str, user: Option<&str>, disabled| Drone {
        host: host.into(),
        user: user.map(str::to_owned),
        disabled,
    };
    assert_eq!(
        config.drones,
        [drone("a", None, true), drone("B.lab", Some("bob"), false), drone("localhost", None, false)]
    );
}

#[test]
fn the_mount_point_is_where_autotest_puts_results() {
    let both = "results_host_installation_directory: /srv/at\ndrone_installation_directory: /opt/at";
    let config = good(&with(both, ""));
    assert_eq!(config.mountpoint_default(true), Path::new("/srv/at/results"));
    assert_eq!(config.mountpoint_default(false), Path::new("/opt/at/results"));
    let config = good(&format!("[COMMON]\ntest_output_dir: /var/out\n{}", with(both, "")));
    assert_eq!(config.mountpoint_default(true), Path::new("/var/out/results"));
    assert_eq!(config.mountpoint_default(false), Path::new("/var/out/results"));
}

#[test]
fn a_socket_that_is_too_long_for_the_kernel_is_refused() {
    let examined = examined(&with("", &format!("state_dir: /{}", "x".repeat(100))));
    assert!(examined.findings.iter().any(|f| f.code == "socket-path" && f.is_error()));
}

#[test]
fn the_fingerprint_is_alike_where_the_meaning_is() {
    let a = good("[RESULTSFS]\nlocal_only: b, a, b\nstate_dir: /elsewhere\n").fingerprint();
    let b = good("[RESULTSFS]\nlocal_only: a,b\ncomplete_on: archiver\n").fingerprint();
    assert_eq!(a, b);
    assert_eq!(
        a,
        [
            "complete_on=archiver",
            "settle_seconds=10",
            "lost_hours=24",
            "local_only=a,b",
            "retention_days=0",
            "retention_days_failed=0"
        ]
    );
    assert_ne!(a, good("[RESULTSFS]\nlocal_only: a\n").fingerprint());
}

/// `shadow_config.ini` beside the main file comes on top, also with a blank; the line that won is named.
#[test]
fn the_shadow_file_wins_and_is_named() {
    let (_dir, surroundings) = lab(
        "[SCHEDULER]\nresults_host: a\nresults_host_installation_directory: /x\nmax_transfer_processes: 7\n",
        Some("# mine\n[SCHEDULER]\nRESULTS_HOST: b\nresults_host_installation_directory:\n"),
    );
    let examined = examine(None, &surroundings).expect("read");
    let host = setting(&examined, "SCHEDULER", "results_host");
    let shadow = surroundings.etc.join("shadow_config.ini");
    assert_eq!((host.value.as_str(), host.source.to_string()), ("b", format!("{}:3", shadow.display())));
    let own = setting(&examined, "RESULTSFS", "results_host");
    assert_eq!((&own.value, &own.source), (&host.value, &host.source));
    let most = setting(&examined, "SCHEDULER", "max_transfer_processes");
    let global = surroundings.etc.join("global_config.ini");
    assert_eq!((most.value.as_str(), most.source.to_string()), ("7", format!("{}:4", global.display())));
    assert_eq!(setting(&examined, "RESULTSFS", "host_name").source, Source::Machine);
    assert_eq!(setting(&examined, "RESULTSFS", "settle_seconds").source, Source::Default);
    let config = examined.into_config().expect("good");
    assert_eq!(config.results_host_installation_directory, None);
    assert_eq!(config.files, [global, shadow]);
}

#[test]
fn a_wrong_shadow_file_is_named() {
    let (_dir, surroundings) = lab("[SCHEDULER]\nx: 1\n", Some("[SCHEDULER]\nresults_host: %(x)s\n"));
    let error = Config::load_in(None, &surroundings).expect_err("Autotest stops").to_string();
    assert!(error.contains("shadow_config.ini:2: ") && error.contains("inside one file"), "{error}");
}

#[test]
fn the_first_place_that_has_a_file_counts() {
    let (dir, mut surroundings) = lab("[RESULTSFS]\nhost_name: etc\n", None);
    for (place, name) in [("usr", "usr"), ("top", "top")] {
        fs::create_dir(dir.path().join(place)).expect("made");
        let text = format!("[RESULTSFS]\nhost_name: {name}\n");
        fs::write(dir.path().join(place).join("global_config.ini"), text).expect("written");
    }
    let named = dir.path().join("named.ini");
    fs::write(&named, "[RESULTSFS]\nhost_name: named\n").expect("written");
    let name =
        |explicit: Option<&Path>, s: &Surroundings| Config::load_in(explicit, s).expect("good").host_name;
    assert_eq!(name(None, &surroundings), "etc");
    surroundings.top_path = Some(dir.path().join("top"));
    assert_eq!(name(None, &surroundings), "top");
    assert_eq!(name(Some(&named), &surroundings), "named");
    assert_eq!(name(Some(&dir.path().join("usr")), &surroundings), "usr");
    surroundings.top_path = Some(dir.path().join("nowhere"));
    fs::remove_file(surroundings.etc.join("global_config.ini")).expect("removed");
    assert_eq!(name(None, &surroundings), "usr");
}

#[test]
fn where_there_is_no_file_it_says_where_it_looked() {
    let dir = TempDir::new().expect("a temporary directory");
    let at = |name: &str| dir.path().join(name);
    let surroundings = Surroundings {
        top_path: Some(at("top")),
        etc: at("etc"),
        usr_local: at("usr"),
        host_name: Some("h".into()),
    };
    let error = Config::load_in(None, &surroundings).expect_err("nothing there");
    let looked: Vec<_> =
        ["top", "etc", "usr"].map(|n| at(n).join("global_config.ini").display().to_string()).into();
    assert_eq!(error.to_string(), format!("no global_config.ini found; looked for {}", looked.join(", ")));
    assert!(error.hint().contains("--config"));
    let error = Config::load_in(Some(&at("x.ini")), &surroundings).expect_err("nothing there");
    assert!(error.to_string().ends_with(&at("x.ini").display().to_string()));
}

/// Autotest would go on with an empty configuration.
#[test]
fn a_main_file_that_cannot_be_read_is_an_error_and_a_shadow_file_a_warning() {
    let (_dir, surroundings) = lab("", None);
    let global = surroundings.etc.join("global_config.ini");
    fs::create_dir(surroundings.etc.join("shadow_config.ini")).expect("made");
    let config = Config::load_in(None, &surroundings).expect("the shadow file only warns");
    assert!(config.warnings.iter().any(|f| f.code == "shadow-unread"));
    fs::remove_file(&global).expect("removed");
    fs::create_dir(&global).expect("made");
    assert!(matches!(Config::load_in(None, &surroundings), Err(ConfigError::Read { .. })));
    fs::remove_dir(&global).expect("removed");
    fs::write(&global, vec![b'#'; ini::FILE_BYTES as usize + 1]).expect("written");
    assert!(matches!(Config::load_in(None, &surroundings), Err(ConfigError::Read { .. })));
}

#[test]
fn a_shadow_file_in_etc_is_reported_because_autotest_takes_it_for_the_main_one() {
    let (_dir, mut surroundings) = lab("", Some(""));
    let codes = |s: &Surroundings| -> Vec<_> {
        Config::load_in(None, s).expect("good").warnings.iter().map(|f| f.code).collect()
    };
    assert_eq!(codes(&surroundings), ["shadow-in-place-of-global"]);
    surroundings.top_path = Some(surroundings.etc.clone());
    assert!(codes(&surroundings).is_empty());
}

#[test]
fn a_short_file_cannot_make_an_endless_value() {
    let mut text = "[SCHEDULER]\nresults_host: %(a0)s\n".to_owned();
    for i in 0..8 {
        text += &format!("a{i}: {}\n", format!("%(a{})s", i + 1).repeat(20));
    }
    let examined = examined(&(text + "a8: x\n"));
    assert!(examined.findings.iter().any(|f| f.code == "interpolation" && f.is_error()));
}

#[test]
fn explain_shows_files_settings_sources_and_findings() {
    let examined = examined(&with("results_host: dumpster", "settle_seconds: 5\nstate_dur: /x"));
    let text = explain::text(&examined);
    assert!(text.starts_with("read /lab/global_config.ini\n\n[SCHEDULER]\n  results_host "), "{text}");
    let line = |key: &str| -> Vec<&str> {
        let found = text.lines().rfind(|l| l.starts_with(&format!("  {key} ")));
        found.unwrap_or_default().split_whitespace().collect()
    };
    assert_eq!(line("settle_seconds"), ["settle_seconds", "5", "/lab/global_config.ini:4"]);
    assert_eq!(line("results_host"), ["results_host", "dumpster", "/lab/global_config.ini:2"]);
    assert_eq!(line("lost_hours"), ["lost_hours", "24", "default"]);
    assert_eq!(line("host_name"), ["host_name", "drone1", "machine"]);
    assert!(text.contains(
        "\nwarning [unknown-key] /lab/global_config.ini:5: [RESULTSFS] has no key `state_dur`\n    mend: did you mean `state_dir`?\n"
    ));
}

#[test]
fn the_json_is_one_object_a_line_with_a_version() {
    let examined = examined(&with("results_host: -x", "settle_seconds: 5"));
    let lines: Vec<serde_json::Value> =
        json(&examined).lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert!(lines.iter().all(|l| l["v"] == 1 && l["kind"].is_string()));
    let find =
        |key: &str| lines.iter().find(|l| l["key"] == key && l["section"] == "RESULTSFS").expect("a line");
    let settle = find("settle_seconds");
    assert_eq!(
        (&settle["value"], &settle["source"], &settle["line"]),
        (&"5".into(), &"file".into(), &4.into())
    );
    assert_eq!((&find("lost_hours")["source"], &find("lost_hours")["file"]), (&"default".into(), &().into()));
    let finding = lines.iter().find(|l| l["kind"] == "finding").expect("a line");
    assert_eq!((&finding["severity"], &finding["code"]), (&"error".into(), &"bad-host".into()));
    let end = lines.last().expect("a line");
    assert_eq!((&end["kind"], &end["ok"], &end["errors"]), (&"config".into(), &false.into(), &1.into()));
}

/// A `;` behind a blank begins a comment only in the line of its key, and `""` stands for nothing only there.
#[test]
fn a_value_that_its_keys_line_cannot_hold_is_printed_below_it() {
    let text = "[DEFAULT]\nb: ;c\n[COMMON]\ntest_output_dir: /a %(b)s\n[SCHEDULER]\narchive_host:\n  \"\"\n";
    let printed = settings_text(&examined(text));
    let again = examined(&printed);
    assert_eq!(setting(&again, "COMMON", "test_output_dir").value, "/a ;c", "{printed}");
    assert_eq!(setting(&again, "SCHEDULER", "archive_host").value, "\"\"", "{printed}");
}

#[test]
fn a_directory_whose_name_ends_in_a_blank_is_printed_with_its_slash() {
    let printed = settings_text(&examined("[COMMON]\ntest_output_dir: /srv/out /\n"));
    let again = examined(&printed);
    let dir = again.config().and_then(|config| config.test_output_dir.clone());
    assert_eq!(dir.as_deref(), Some(Path::new("/srv/out ")), "{printed}");
}

/// Printed as nothing they would be read as what holds where nothing is set; and a blank that isn't Autotest's belongs to its value.
#[test]
fn drones_of_which_none_is_good_are_printed_as_they_are_written() {
    for drones in ["a b, -c", ","] {
        let printed = settings_text(&examined(&with(&format!("drones: {drones}"), "state_dir: /a\u{a0}")));
        let again = examined(&printed);
        assert_eq!(setting(&again, "SCHEDULER", "drones").value, drones, "{printed}");
        assert_eq!(setting(&again, "RESULTSFS", "state_dir").value, "/a\u{a0}", "{printed}");
    }
}

#[test]
fn the_settings_as_text_read_back_as_the_same() {
    let text = with(
        "results_host: d\nd_username: me\ndrones: a,\n  b\nb_disabled: yes",
        "ssh_command: ssh\n  -p 22 '-i x'\nlocal_only: x, y\ncomplete_on: autoserv",
    );
    let again = examined(&settings_text(&examined(&text)));
    let values = |e: &Examined| {
        e.settings.iter().map(|s| (s.section, s.key.clone(), s.value.clone())).collect::<Vec<_>>()
    };
    assert_eq!(values(&again), values(&examined(&text)));
    let config = |e: &Examined| Config { warnings: Vec::new(), ..e.config().expect("good").clone() };
    assert_eq!(config(&again), config(&examined(&text)));
}

/// Bytes of all that is told of a configuration, and kept of it.
fn told_bytes(global: &str, shadow: Option<&str>) -> usize {
    let examined = examine_text(global.as_bytes(), shadow.map(str::as_bytes), Some("drone1"));
    json(&examined).len() + text(&examined).len()
}

/// A file of the largest size must not become gigabytes in memory, whatever is in it, nor take minutes.
#[test]
fn a_long_name_costs_its_length_once_and_not_in_every_line() {
    let name = "n".repeat(20_000);
    let keys = |line: &str| line.repeat(1_000);
    for (global, shadow) in [
        (format!("[{name}]\n{}", keys("a: b\n")), None),
        (format!("[RESULTSFS]\n{name}: a\n{}", keys(" b: c\n")), None),
        (format!("[{name}]\nx: y\n{}", keys("[X]\n a: b\n")), None),
        (
            String::new(),
            Some(format!("[{name}]\n{}", (0..1_000).map(|i| format!("a{i}: %(\n")).collect::<String>())),
        ),
        (
            String::new(),
            Some(format!(
                "[S]\nm: %({name})s\n{}",
                (0..500).map(|i| format!("a{i}: %(m)s\n")).collect::<String>()
            )),
        ),
    ] {
        let told = told_bytes(&global, shadow.as_deref());
        assert!(told < 2 << 20, "{told} bytes are told of {}…", &global[..global.len().min(20)]);
    }
}

#[test]
fn what_a_shadows_sections_inherit_is_bounded() {
    let inherited: String = (0..2_000).map(|i| format!("a{i}: {}\n", "v".repeat(20))).collect();
    let sections: String = (0..2_000).map(|i| format!("[s{i}]\n")).collect();
    let examined =
        examine_text(b"", Some(format!("[DEFAULT]\n{inherited}{sections}").as_bytes()), Some("drone1"));
    let codes: Vec<_> = examined.findings.iter().filter(|f| f.is_error()).map(|f| f.code).collect();
    assert_eq!(codes, ["shadow-too-large"]);
}

#[test]
fn a_file_full_of_keys_is_read_in_no_time() {
    let (began, lines) = (std::time::Instant::now(), 60_000);
    let keys: String = (0..lines).map(|i| format!("a{i}:\n")).collect();
    let twice = examined(&format!("[SCHEDULER]\n{keys}{keys}"));
    assert_eq!(twice.findings.iter().filter(|f| f.code == "set-twice").count(), lines);
    // Comparing each with all that were before took some minutes.
    assert!(began.elapsed().as_secs() < 60);
}

/// Each was compared with each, which took minutes for the hosts that a file of the largest size can name.
#[test]
fn a_file_full_of_hosts_is_read_in_no_time() {
    let (began, count) = (std::time::Instant::now(), 20_000);
    let lines = |line: &dyn Fn(usize) -> String| (0..count).map(line).collect::<String>();
    let names = lines(&|i| format!("d{i},"));
    let wrong =
        examined(&with(&format!("drones: {names}\n{}", lines(&|i| format!("d{i}_username: -\n"))), ""));
    assert_eq!(wrong.findings.iter().filter(|f| f.code == "bad-user").count(), count);
    let strange =
        examined(&with(&format!("drones: {names}\n{}", lines(&|i| format!("e{i}.x_username: u\n"))), ""));
    assert_eq!(strange.findings.iter().filter(|f| f.code == "unknown-host").count(), count);
    let same =
        examined(&with(&format!("drones: {}{}\na_username: -", "a,".repeat(count), "-,".repeat(count)), ""));
    assert_eq!(same.config().map(|config| config.drones.len()), Some(count));
    assert_eq!(same.findings.iter().filter(|f| ["bad-user", "bad-host"].contains(&f.code)).count(), 2);
    assert!(began.elapsed().as_secs() < 60);
}

#[test]
fn values_that_are_interpolated_are_bounded_together() {
    let drones: String = (0..1_000).map(|i| format!("d{i},")).collect();
    let users: String = (0..1_000).map(|i| format!("d{i}_username: %(long)s\n")).collect();
    let long = format!("long: {}\ndrones: {drones}\n{users}", "u".repeat(60_000));
    let examined = examined(&with(&long, ""));
    assert!(examined.findings.iter().any(|f| f.code == "too-much" && f.is_error()));
    let kept: usize = examined.settings.iter().map(|s| s.value.len()).sum();
    assert!(kept < 5 << 20, "{kept} bytes");
}
