//! The key of a drone, in a real sshd: it opens one door, and knows which house that is.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use crate::harness::{EXE, Lab, Machine, free_port, play_task, run, terminate, text, wait_for};

const BOUND: Duration = Duration::from_secs(240);

/// A lab in which drone1's key is in `authorized_keys` with the printed line and nothing else is. The program and its configuration are at places
/// whose names have everything that a shell, sshd and `authorized_keys` could take for something else.
fn lab_with_key() -> Lab {
    let lab = Lab::new(BOUND);
    let odd = lab.path().join("it's \"my $HOME\" `id` \\ #1, *");
    fs::create_dir(&odd).expect("a directory");
    let program = odd.join("results fs");
    // A link, not a copy: the debug build is large.
    if fs::hard_link(EXE, &program).is_err() {
        fs::copy(EXE, &program).expect("a copy");
    }
    let config = odd.join("global config.ini");
    fs::copy(lab.path().join("results/global_config.ini"), &config).expect("a copy");
    let key = lab.path().join("user_key.pub");
    let line = run(Command::new(&program)
        .arg("--config")
        .arg(&config)
        .args(["serve", "--drone", "drone1", "--print-authorized-key"])
        .arg(&key));
    assert_eq!(line.lines().count(), 1, "{line}");
    fs::write(lab.path().join("authorized_keys"), line).expect("written");
    lab
}

/// An ssh with the drone's key, and what it was told to do.
fn ssh(lab: &Lab, words: &[&str]) -> Command {
    let mut ssh = Command::new("timeout");
    ssh.args(["20", "ssh", "-F"])
        .arg(lab.path().join("ssh_config"))
        .args(["-o", "BatchMode=yes"])
        .args(words);
    ssh.stdin(Stdio::null());
    ssh
}

fn says(lab: &Lab, words: &[&str]) -> Output {
    ssh(lab, words).output().expect("ssh runs")
}

/// Processes that run `serve --stdio` from this lab.
fn sessions(lab: &Lab) -> Vec<PathBuf> {
    let of_lab = |proc: &Path| {
        let words = fs::read(proc.join("cmdline")).unwrap_or_default();
        let words: Vec<_> =
            words.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        words.iter().any(|w| w == "--stdio")
            && words[0] != "sh"
            && words.iter().any(|w| w.starts_with(&lab.path().display().to_string()))
    };
    let processes = fs::read_dir("/proc").expect("processes").flatten().map(|e| e.path());
    processes.filter(|proc| of_lab(proc)).collect()
}

/// P10: the key does exactly one thing.
#[test]
fn a_drones_key_opens_nothing_else() {
    let mut lab = lab_with_key();
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    play_task(&drone.mount, 1);
    drone.offload();
    let before = records(&lab);

    // No shell, no program, no terminal: whatever is asked for, `serve` runs, hears nothing from stdin, and says nothing.
    let program = format!("{EXE} --config {}", lab.path().join("results/global_config.ini").display());
    let prune = format!("{program} prune --older-than 1");
    let verify = format!("{program} verify --store --repair");
    let other = format!("{program} serve --stdio --drone drone2 --allow add,overlay,delete");
    let flag = lab.path().join("was-here");
    let touch = format!("touch {0}; touch {0} & `touch {0}` $(touch {0})", flag.display());
    for asked in ["id", "/bin/sh", "sh -i", &prune, &verify, &other, &touch, ""] {
        let words: Vec<&str> = if asked.is_empty() { vec!["dumpster"] } else { vec!["dumpster", asked] };
        let said = says(&lab, &words);
        assert_eq!(text(&said.stdout), "", "{asked}: {}", text(&said.stderr));
    }
    let terminal = says(&lab, &["-tt", "dumpster", "id"]);
    assert!(text(&terminal.stderr).contains("PTY allocation request failed"), "{}", text(&terminal.stderr));
    assert_eq!(text(&terminal.stdout), "");

    no_files(&lab);
    no_forwarding(&lab);
    no_environment(&lab);

    assert!(!flag.exists(), "nothing of ssh's words is ever a command");
    assert_eq!(records(&lab), before, "nothing came into the catalog");
    play_task(&drone.mount, 2);
    drone.offload();
}

/// Neither sftp nor scp, in either protocol.
fn no_files(lab: &Lab) {
    let (here, there) = (lab.path().join("here"), lab.path().join("there"));
    fs::write(&here, "mine").expect("written");
    let batch = lab.path().join("batch");
    fs::write(&batch, format!("put {} {}\n", here.display(), there.display())).expect("written");
    let config = lab.path().join("ssh_config").display().to_string();
    let to = format!("dumpster:{}", there.display());
    let from = format!("dumpster:{}", lab.path().join("host_key").display());
    let (here, got) = (here.display().to_string(), lab.path().join("got"));
    let got_text = got.display().to_string();
    let batch = batch.display().to_string();
    for words in [
        vec!["sftp", "-F", &config, "-b", &batch, "dumpster"],
        vec!["scp", "-F", &config, &here, &to],
        vec!["scp", "-O", "-F", &config, &here, &to],
        vec!["scp", "-F", &config, &from, &got_text],
        vec!["scp", "-O", "-F", &config, &from, &got_text],
    ] {
        let out =
            Command::new("timeout").arg("20").args(&words).stdin(Stdio::null()).output().expect("it runs");
        assert!(!out.status.success(), "{words:?}");
    }
    assert!(!there.exists() && !got.exists());
}

/// A child that is ended whatever happens.
struct Running(Option<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = self.0.take() {
            terminate(child);
        }
    }
}

/// What answers at the end of a tunnel: nothing.
fn is_deaf(what: &str, mut stream: impl Read) {
    let mut said = [0; 64];
    // Closed or reset, but never a word of sshd.
    let read = stream.read(&mut said).unwrap_or(0);
    assert_eq!(read, 0, "{what}: {}", text(&said[..read]));
}

/// Neither -L nor -D nor -W nor -R, of ports and of unix sockets. What they would reach is sshd, which speaks first, and the store's own socket.
fn no_forwarding(lab: &Lab) {
    let sshd = format!("127.0.0.1:{}", lab.port());
    let said = says(lab, &["-W", &sshd, "dumpster"]);
    assert!(!said.status.success());
    assert_eq!(text(&said.stdout), "");
    assert!(text(&said.stderr).contains("prohibited"), "{}", text(&said.stderr));

    let (local, socks, unix) = (free_port(), free_port(), lab.path().join("tunnel.sock"));
    let store = lab.path().join("results/serve.sock");
    let (tunnel, dynamic) = (format!("127.0.0.1:{local}:{sshd}"), format!("127.0.0.1:{socks}"));
    let to_store = format!("{}:{}", unix.display(), store.display());
    let words = ["-N", "-L", &tunnel, "-D", &dynamic, "-L", &to_store, "dumpster"];
    let child = ssh(lab, &words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("ssh runs");
    let _tunnels = Running(Some(child));
    let open = |port: u16| TcpStream::connect(("127.0.0.1", port));
    wait_for("ssh to listen", Duration::from_secs(20), || {
        open(local).is_ok() && open(socks).is_ok() && UnixStream::connect(&unix).is_ok()
    });
    let patience = Some(Duration::from_secs(10));
    let stream = open(local).expect("ssh listens");
    stream.set_read_timeout(patience).expect("set");
    is_deaf("-L", stream);
    let stream = UnixStream::connect(&unix).expect("ssh listens");
    stream.set_read_timeout(patience).expect("set");
    is_deaf("-L of a socket", stream);
    let mut stream = open(socks).expect("ssh listens");
    stream.set_read_timeout(patience).expect("set");
    // SOCKS 5 without a password, and then to connect to 127.0.0.1 at sshd's port.
    let [high, low] = lab.port().to_be_bytes();
    stream.write_all(&[5, 1, 0]).expect("taken");
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).expect("ssh answers");
    stream.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).expect("taken");
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    assert!(!text(&said).contains("SSH-"), "-D: {}", text(&said));

    let back = format!("{}:{sshd}", free_port());
    let said = says(lab, &["-N", "-o", "ExitOnForwardFailure=yes", "-R", &back, "dumpster"]);
    assert_eq!(said.status.code(), Some(255), "{}", text(&said.stderr));
    assert!(text(&said.stderr).contains("remote port forwarding failed"), "{}", text(&said.stderr));
}

/// Nothing that the drone sends is in `serve`'s environment but the words that it asked for, which nobody reads: no agent, no display, no variables.
fn no_environment(lab: &Lab) {
    let agent = lab.path().join("agent.sock");
    let child = Command::new("ssh-agent").arg("-D").arg("-a").arg(&agent).stdout(Stdio::null()).spawn();
    let _agent = Running(Some(child.expect("ssh-agent runs")));
    wait_for("the agent", Duration::from_secs(10), || agent.exists());
    let before = sessions(lab);
    let mut child = ssh(
        lab,
        &["-A", "-Y", "-o", "SetEnv=RESULTSFS_TEST_STORE=evil LD_PRELOAD=evil", "-o", "SendEnv=RUST_LOG"],
    )
    .args(["dumpster", "asked for"])
    .env("SSH_AUTH_SOCK", &agent)
    .env("DISPLAY", ":77")
    .env("RUST_LOG", "evil")
    .stdin(Stdio::piped())
    .stdout(Stdio::null())
    .stderr(Stdio::null())
    .spawn()
    .expect("ssh runs");
    let stdin = child.stdin.take();
    let _session = Running(Some(child));
    let mut found = Vec::new();
    wait_for("the session's process", Duration::from_secs(20), || {
        found = sessions(lab).into_iter().filter(|proc| !before.contains(proc)).collect();
        !found.is_empty()
    });
    let environment = fs::read(found[0].join("environ")).expect("it lives while its session does");
    let names: Vec<String> = environment.split(|b| *b == 0).map(text).collect();
    assert!(names.iter().any(|v| v == "SSH_ORIGINAL_COMMAND=asked for"), "{names:?}");
    for name in
        ["SSH_AUTH_SOCK", "DISPLAY", "RESULTSFS_TEST_STORE", "LD_PRELOAD", "RUST_LOG", "evil", "SSH_TTY"]
    {
        assert!(!names.iter().any(|v| v.contains(name)), "{name}: {names:?}");
    }
    drop(stdin);
}

/// Records in the store's catalog, which is whole.
fn records(lab: &Lab) -> u64 {
    let told = lab.machine("results").json(["verify", "--store"]);
    let records = told.iter().find_map(|row| row["records"].as_u64());
    records.unwrap_or_else(|| panic!("{told:?}"))
}

/// P10: neither another name nor greater rights than its line gives, whatever the drone's own configuration says.
#[test]
fn a_key_gives_no_more_than_its_line() {
    let mut lab = lab_with_key();
    let owner = lab.machine("results");
    lab.mount(&owner);
    play_task(&owner.mount, 1);
    owner.offload();
    let more = format!("remote_command: {EXE} serve --stdio --allow add,overlay,delete --drone");
    let drone = lab.machine_with("drone1", &more);
    lab.mount(&drone);
    drone.catch_up(&owner);
    let theirs = drone.mount.join("hosts/host1/1-verify/.autoserv_execute");
    assert!(theirs.exists());
    let refused = fs::remove_file(&theirs).expect_err("it has no right `delete`");
    assert!([Some(libc::EPERM), Some(libc::EACCES)].contains(&refused.raw_os_error()), "{refused}");
    let other = lab.machine_with("drone2", &more);
    lab.mount(&other);
    wait_for("the refusal", Duration::from_secs(20), || {
        let error = other.status()["connection"]["last_error"].as_str().unwrap_or_default().to_owned();
        error.contains("this key is for the host `drone1`, and the host calls itself `drone2`")
    });
    play_task(&drone.mount, 2);
    drone.offload();
}

fn connection(machine: &Machine) -> serde_json::Value {
    machine.status()["connection"].clone()
}

/// A results host whose ssh key isn't the known one gets nothing and is asked nothing. What there is stays; a person reads ssh's words and what to
/// do in `status`, `health` and `explain`; and when known_hosts is mended, all goes on without another word.
#[test]
fn a_changed_host_key_stops_the_drone_until_it_is_mended() {
    let mut lab = Lab::new(BOUND);
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    play_task(&drone.mount, 1);
    drone.offload();
    lab.replace_host_key();
    // The connection that there is goes on: the daemon's end ends it.
    lab.kill_serve();
    lab.start_serve();
    wait_for("ssh to refuse", Duration::from_secs(30), || {
        let error = connection(&drone)["last_error"].as_str().unwrap_or_default().to_owned();
        error.contains("Host key verification failed")
    });
    play_task(&drone.mount, 2);
    let out = drone.run(["offload", "--wait", "--timeout", "3"]);
    assert!(!out.status.success(), "{}", text(&out.stderr));
    let kept = drone.state.join("spool/hosts/host1/2-verify/.autoserv_execute");
    assert!(kept.exists() && drone.mount.join("hosts/host1/2-verify/.autoserv_execute").exists());

    let words =
        ["HOST IDENTIFICATION HAS CHANGED", "Host key verification failed", "known_hosts", "fingerprint"];
    let status = text(&drone.run(["status"]).stdout);
    let explained = text(&drone.run(["explain", "hosts/host1/2-verify"]).stdout);
    let health = drone.run(["health"]);
    for word in words {
        assert!(status.contains(word), "no {word:?} in {status}");
        assert!(explained.contains(word), "no {word:?} in {explained}");
    }
    assert!(!status.contains("@@@"), "{status}");
    assert_eq!(health.status.code(), Some(2), "{}", text(&health.stdout));
    assert!(text(&health.stdout).contains("known_hosts"), "{}", text(&health.stdout));

    lab.trust_host_key();
    wait_for("the drone to come back", Duration::from_secs(60), || connection(&drone)["state"] == "up");
    drone.offload();
    assert_eq!(drone.run(["health"]).status.code(), Some(0));
    let jobs = drone.json(["jobs", "hosts/host1/2-verify"]);
    assert!(jobs.iter().any(|j| j["state"] == "committed"), "{jobs:?}");
}
