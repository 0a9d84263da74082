//! `health`, `metrics` and `notify`: what monitoring, and who is in charge, hear of a host.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    harness::{Lab, Machine, free_port, play_task, wait_for},
    said::Said,
};

fn run(machine: &Machine, words: &[&str]) -> Said {
    machine.run(words).into()
}

#[test]
fn a_host_is_well_until_its_daemon_is_gone() {
    let mut lab = Lab::bare(Duration::from_secs(120));
    let results = lab.machine("results");
    run(&results, &["health"]).shows(3, &["UNKNOWN - there is neither"]);
    lab.start_serve();
    lab.mount_with(&results, &["--unsupervised"]);
    play_task(&results.mount, 1);
    run(&results, &["offload", "--wait", "--timeout", "60"]).expect(0, &[]);
    run(&results, &["health"])
        .shows(0, &["OK - mount: connection up, 0 units wait", "; store: 3 records, 1 packs"]);
    let said = run(&results, &["--json", "health"]).shows(0, &[]).json();
    assert!(said.len() == 1 && said[0]["kind"] == "health" && said[0]["level"] == "OK", "{said:?}");

    // Whoever is at the store's desk, with a long check or with nothing to say, is in nobody's way.
    let at_the_desk = UnixStream::connect(lab.store().join("control.sock")).expect("answers");
    run(&results, &["health"]).shows(0, &["; store: 3 records, 1 packs"]);
    drop(at_the_desk);

    let metrics = run(&results, &["metrics"]).shows(
        0,
        &[
            "resultsfs_up{part=\"mount\"} 1\n",
            "resultsfs_up{part=\"store\"} 1\n",
            "resultsfs_connected 1\n",
            "resultsfs_spool_can_write 1\n",
            "resultsfs_units{state=\"committed\"} 3\n",
            "resultsfs_committed_layers_total 3\n",
            "resultsfs_store_records 3\n",
            "resultsfs_store_has_room 1\n",
            "resultsfs_store_lost_manifests 0\n",
        ],
    );
    drop(metrics);
    let file = lab.path().join("resultsfs.prom");
    run(&results, &["metrics", "--to", file.to_str().expect("text")]).shows(0, &[]);
    assert!(fs::read_to_string(&file).expect("written").contains("resultsfs_catalog_seq 3\n"));
    run(&results, &["metrics", "--to", "/nowhere/file"]).expect(1, &["/nowhere/file"]);

    // A store that its socket starts when somebody comes is as it should be.
    lab.kill_serve();
    run(&results, &["health"]).shows(0, &["connection down", "nobody has it open"]);
    let pid = results.pid();
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a pid"), Signal::KILL).expect("our own");
    wait_for("its end", Duration::from_secs(20), || !Path::new(&format!("/proc/{pid}")).exists());
    run(&results, &["health"]).shows(2, &["CRITICAL - mount: no daemon runs"]);
    run(&results, &["metrics"]).shows(0, &["resultsfs_up{part=\"mount\"} 0\n"]);
}

/// A command of these lines.
fn script(path: &Path, lines: &str) {
    fs::write(path, format!("#!/bin/sh\n{lines}\n")).expect("written");
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("may be run");
}

/// What was told so far, oldest first.
fn told(dir: &Path) -> Vec<String> {
    (1..).map_while(|number| fs::read_to_string(dir.join(format!("told.{number}"))).ok()).collect()
}

/// By mail, through the machine's own `sendmail`, and by a command: when it is news, each until it was told, and nobody twice because somebody else wasn't.
#[test]
fn the_administrator_is_told_what_is_news() {
    let mut lab = Lab::bare(Duration::from_secs(120));
    let dir = lab.path().join("told");
    fs::create_dir(&dir).expect("a directory");
    let place = dir.display();
    script(
        &dir.join("sendmail"),
        &format!(
            "cd {place}; case \"$*\" in *gone@*) exit 1;; esac\n\
             n=1; while [ -e told.$n ]; do n=$((n + 1)); done; {{ echo \"$*\"; cat; }} > told.$n"
        ),
    );
    let fails = dir.join("fails");
    script(
        &dir.join("command"),
        &format!(
            "[ ! -e {} ] && echo $RESULTSFS_LEVEL >> {place}/levels && cat > /dev/null",
            fails.display()
        ),
    );
    let path = format!("{place}:{}", std::env::var("PATH").expect("a path"));
    let notify = |machine: &Machine, words: &[&str]| -> Said {
        let words = ["notify"].iter().chain(words);
        machine.command(words).env("PATH", &path).output().expect("it runs").into()
    };
    notify(&lab.machine("results"), &[]).expect(0, &["nobody is told", "grid_admin_email"]);
    let to = |addresses: &str| {
        format!("notify_command: {place}/command\n[NOTIFICATION]\ngrid_admin_email: {addresses}\n")
    };
    let results = lab.machine_with("results", &to("gone@example.org, root"));
    notify(&results, &["--test"]).expect(1, &["mail: gone@example.org: ", "notify --test"]);
    let mail = &told(&dir)[0];
    assert!(mail.starts_with("-i -f resultsfs@results -- root@localhost\n"), "{mail}");
    assert!(mail.contains("Subject: resultsfs on results: a test\r\n"), "{mail}");

    lab.start_serve();
    lab.mount_with(&results, &["--unsupervised"]);
    notify(&results, &[]).expect(0, &[]);
    assert_eq!(told(&dir).len(), 1, "all is well");
    let pid = results.pid();
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a pid"), Signal::KILL).expect("our own");
    wait_for("its end", Duration::from_secs(20), || !Path::new(&format!("/proc/{pid}")).exists());
    fs::write(&fails, "").expect("written");
    notify(&results, &[]).expect(1, &["notify_command: ", "mail: gone@"]);
    notify(&results, &[]).expect(1, &["notify_command: "]);
    fs::remove_file(&fails).expect("ours");
    notify(&results, &[]).expect(0, &[]);
    notify(&results, &[]).expect(0, &[]);
    let mails = told(&dir);
    assert_eq!(mails.len(), 2, "by mail once: {mails:?}");
    assert!(mails[1].contains("CRITICAL: mount-silent") && mails[1].contains("no daemon runs"), "{mails:?}");

    lab.umount(&results);
    let results = lab.machine_with("results", &to("root"));
    lab.mount_with(&results, &["--unsupervised"]);
    notify(&results, &[]).expect(0, &[]);
    notify(&results, &[]).expect(0, &[]);
    let mails = told(&dir);
    assert!(mails.len() == 3 && mails[2].contains("all is well again"), "{mails:?}");
    assert!(mails[2].contains("no more: [mount-silent]"), "{mails:?}");
    for unit in ["some.service", "other.service", "some.service"] {
        notify(&results, &["--failed", unit]).expect(0, &[]);
    }
    let mails = told(&dir);
    assert!(mails[3].contains("some.service has failed") && mails[4].contains("other.service has failed"));
    assert_eq!(mails.len(), 5, "a unit that fails again and again is told once an hour");
    let levels = fs::read_to_string(dir.join("levels")).expect("written");
    assert_eq!(levels, "TEST\nCRITICAL\nOK\nFAILED\nFAILED\n");
}

/// By a server, where one is set.
#[test]
fn mail_goes_through_the_sites_server() {
    let lab = Lab::bare(Duration::from_secs(60));
    let port = free_port();
    let log = fs::File::create(lab.path().join("smtp.log")).expect("a log");
    let mut server = Command::new("python3")
        .args(["-Wignore", "-u", "-m", "smtpd", "-n", "-c", "DebuggingServer", &format!("127.0.0.1:{port}")])
        .stdout(log)
        .spawn()
        .expect("it starts");
    wait_for("the server", Duration::from_secs(20), || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let mail = format!(
        "[NOTIFICATION]\ngrid_admin_email: admin@example.org\nnotify_email_from: noreply@example.org\n[EMAIL]\nsmtp_server: 127.0.0.1\nsmtp_port: {port}\n"
    );
    let results = lab.machine_with("results", &mail);
    run(&results, &["notify", "--test"]).expect(0, &[]);
    let said = fs::read_to_string(lab.path().join("smtp.log")).expect("a log");
    let lines = [
        "From: noreply@example.org",
        "To: admin@example.org",
        "Subject: resultsfs on results: a test",
        "what needs a person",
    ];
    assert!(lines.iter().all(|line| said.contains(line)), "{said}");
    server.kill().and_then(|()| server.wait()).expect("our own");
    run(&results, &["notify", "--test"]).expect(1, &["mail: ", "Connection refused"]);
}
