//! `serve`: the daemon, sessions that share a store without one, and keys that are pinned to a name.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    harness::{EXE, Lab, Machine, play_task, wait_for},
    said::Said,
};

const BOUND: Duration = Duration::from_secs(120);

fn run(machine: &Machine, words: &[&str]) -> Said {
    machine.run(words).into()
}

#[test]
fn a_second_daemon_is_told_that_there_is_one() {
    let mut lab = Lab::bare(BOUND);
    lab.start_serve();
    let results = lab.machine("results");
    run(&results, &["serve"]).expect(1, &["another daemon serves", "hint: "]);
    // The first one is none the worse.
    lab.mount(&results);
    play_task(&results.mount, 1);
    run(&results, &["offload", "--wait", "--timeout", "60"]).expect(0, &[]);
}

/// SIGTERM ends it with 0, and takes its socket away.
#[test]
fn a_signal_ends_the_daemon_in_order() {
    let lab = Lab::bare(BOUND);
    let results = lab.machine("results");
    let mut serve = Command::new(EXE)
        .arg("--config")
        .arg(&results.config)
        .arg("serve")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let socket = lab.path().join("results/serve.sock");
    wait_for("the socket", Duration::from_secs(20), || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    kill_process(Pid::from_child(&serve), Signal::TERM).expect("our own child");
    assert_eq!(serve.wait().expect("ended").code(), Some(0));
    assert!(!socket.exists());
    run(&results, &["verify", "--store"]).shows(0, &["clean"]);
}

/// Two drones whose sessions find no daemon: one opens the store, the other joins it. Where there is no store they make none, since its disk may not be
/// mounted.
#[test]
fn sessions_without_a_daemon_share_the_store() {
    let mut lab = Lab::bare(BOUND);
    let ssh = lab.path().join("ssh");
    fs::write(&ssh, "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift 2\nexec \"$@\"\n")
        .expect("written");
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).expect("set");
    let drones =
        ["drone1", "drone2"].map(|name| lab.machine_with(name, &format!("ssh_command: {}", ssh.display())));
    drones.iter().for_each(|drone| lab.mount(drone));
    let results = lab.machine("results");
    let none = ["--config", results.config.to_str().expect("text"), "serve", "--stdio"];
    let refused: Said =
        Command::new(EXE).args(none).stdin(Stdio::piped()).output().expect("it starts").into();
    refused.expect(1, &["there is no store in", "resultsfs serve"]);
    assert!(!lab.store().join("store").exists());
    lab.start_serve();
    lab.kill_serve();
    for (id, drone) in (1..).zip(&drones) {
        play_task(&drone.mount, id);
        run(drone, &["offload", "--wait", "--timeout", "60"]).expect(0, &[]);
    }
    let [one, two] = &drones;
    one.catch_up(two);
    two.catch_up(one);
    for drone in &drones {
        for unit in ["hosts/host1/1-verify", "hosts/host1/2-verify"] {
            assert!(drone.mount.join(unit).join(".autoserv_execute").exists(), "{unit} on {}", drone.name);
        }
    }
    // Also while they have it open.
    run(&lab.machine("results"), &["verify", "--store", "--read-data"]).shows(0, &["clean"]);
    // The one that opened the store goes; the other goes on.
    lab.umount(one);
    play_task(&two.mount, 3);
    run(two, &["offload", "--wait", "--timeout", "60"]).expect(0, &[]);
}

/// P10 **A drone can only add**: its key is for its name, whatever it calls itself, and runs nothing else.
#[test]
fn a_key_is_pinned_to_its_drone() {
    let mut lab = Lab::bare(BOUND);
    lab.start_sshd();
    lab.start_serve();
    let results = lab.machine("results");
    let key = lab.path().join("user_key.pub").display().to_string();
    let print = ["serve", "--print-authorized-key", &key, "--drone", "drone1"];
    let line = run(&results, &print).shows(0, &["restrict,command=\"", "serve --stdio --drone drone1"]).out;
    fs::write(lab.path().join("authorized_keys"), line).expect("written");
    // The forced command counts, not what the drone asks for.
    let more = "remote_command: touch /nonexistent/x";
    let (drone, other) = (lab.machine_with("drone1", more), lab.machine_with("drone2", more));
    lab.mount(&drone);
    play_task(&drone.mount, 1);
    run(&drone, &["offload", "--wait", "--timeout", "60"]).expect(0, &[]);
    lab.mount(&other);
    wait_for("the refusal", Duration::from_secs(20), || {
        let error = other.status()["connection"]["last_error"].as_str().unwrap_or_default().to_owned();
        error.contains("this key is for the host `drone1`, and the host calls itself `drone2`")
    });
    let private = lab.path().join("user_key").display().to_string();
    run(&results, &["serve", "--print-authorized-key", &private, "--drone", "drone1"])
        .expect(1, &["private key"]);
    run(&results, &["serve", "--print-authorized-key", &key, "--drone", "a b"])
        .expect(1, &["can't be a drone's name"]);
}
