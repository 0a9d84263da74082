//! Several hosts on one machine: a results host with its store and a real sshd, drones with their mounts, all in one temporary directory.
//!
//! Everything is ended and unmounted when the lab is dropped, also by a failing test; a watchdog aborts the FUSE connections of a lab
//! that takes too long, so that a hung mount can't hang the machine.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    ffi::OsStr,
    fs,
    io::Read,
    net::TcpListener,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use resultsfs::demo::play::{Job, Stage, Task};
use serde_json::Value;

pub const EXE: &str = env!("CARGO_BIN_EXE_resultsfs");

/// The lab: dropped last, cleaned up whatever happens.
pub struct Lab {
    dir: tempfile::TempDir,
    port: u16,
    /// Addresses at which the sshd listens.
    addresses: Vec<String>,
    sshd: Option<Child>,
    serve: Option<Child>,
    mounts: Vec<PathBuf>,
    /// Where a test has mounted other file systems below the lab's directory.
    disks: Vec<PathBuf>,
    over: Arc<AtomicBool>,
    /// What the store's daemon is told that is for tests only.
    tuning: String,
}

/// One host of the lab.
#[derive(Clone)]
pub struct Machine {
    pub name: String,
    pub config: PathBuf,
    pub mount: PathBuf,
    pub state: PathBuf,
}

impl Lab {
    /// A results host with its store running, and a sshd; no mounts yet.
    pub fn new(bound: Duration) -> Self {
        let mut lab = Self::bare(bound);
        lab.start_sshd();
        lab.start_serve();
        lab
    }

    /// The same with a store that is tuned for a test.
    pub fn with_store(bound: Duration, tuning: &str) -> Self {
        let mut lab = Self::bare(bound);
        lab.tune(tuning);
        lab.start_sshd();
        lab.start_serve();
        lab
    }

    /// From its next start the store's daemon is tuned so.
    pub fn tune(&mut self, tuning: &str) {
        self.tuning = tuning.to_owned();
    }

    /// A results host on which nothing runs.
    pub fn bare(bound: Duration) -> Self {
        let dir = tempfile::Builder::new().prefix("resultsfs-lab").tempdir().expect("a temporary directory");
        let over = Arc::new(AtomicBool::new(false));
        watchdog(dir.path().to_owned(), bound, over.clone());
        let lab = Self {
            dir,
            port: free_port(),
            addresses: vec!["127.0.0.1".to_owned()],
            sshd: None,
            serve: None,
            mounts: Vec::new(),
            disks: Vec::new(),
            over,
            tuning: String::new(),
        };
        lab.machine("results");
        lab
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The sshd's.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From its start the sshd listens there, too.
    pub fn listen_on(&mut self, address: &str) {
        self.addresses.push(address.to_owned());
    }

    pub fn store(&self) -> PathBuf {
        self.path().join("results/store")
    }

    /// A host with its configuration written; mount it with [`Lab::mount`].
    pub fn machine(&self, name: &str) -> Machine {
        self.machine_with(name, "")
    }

    /// With more lines for `[RESULTSFS]`.
    pub fn machine_with(&self, name: &str, more: &str) -> Machine {
        let dir = self.path().join(name);
        let (state, mount) = (dir.join("state"), dir.join("tree"));
        fs::create_dir_all(&mount).expect("a directory");
        let config = dir.join("global_config.ini");
        let lab = self.path().display();
        let socket = if name == "results" { "results/serve.sock" } else { "nowhere.sock" };
        // As a whole: a session that began with half of it would open the store that is the default.
        let new = config.with_extension("new");
        let text = format!(
            "[SCHEDULER]\nresults_host: localhost\nmax_transfer_processes: 8\n\n[RESULTSFS]\nresults_host: dumpster\nhost_name: {name}\n\
             state_dir: {state}\nstore_dir: {lab}/results/store\nserve_socket: {lab}/{socket}\n\
             ssh_command: ssh -F {lab}/ssh_config\nremote_command: {EXE} --config {lab}/results/global_config.ini\n\
             settle_seconds: 1\nkeep_local_hours: 72\nspool_high_percent: 99\nspool_low_percent: 98\n{more}\n",
            state = state.display()
        );
        fs::write(&new, text).and_then(|()| fs::rename(&new, &config)).expect("a configuration");
        Machine { name: name.to_owned(), config, mount, state }
    }

    /// A host whose key may delete what others committed.
    pub fn machine_with_delete(&self, name: &str) -> Machine {
        let script = self.path().join("serve-with-delete");
        let lab = self.path().display();
        let text = format!(
            "#!/bin/sh\nexec {EXE} --config {lab}/results/global_config.ini \"$@\" --allow add,overlay,delete\n"
        );
        fs::write(&script, text).expect("a script");
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("may be run");
        self.machine_with(name, &format!("remote_command: {}", script.display()))
    }

    pub fn start_serve(&mut self) {
        let log =
            fs::File::options().create(true).append(true).open(self.path().join("serve.log")).expect("a log");
        let child = Command::new(EXE)
            .arg("--config")
            .arg(self.path().join("results/global_config.ini"))
            .arg("serve")
            .env("RESULTSFS_TEST_STORE", &self.tuning)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("serve starts");
        self.serve = Some(child);
        let socket = self.path().join("results/serve.sock");
        wait_for("serve's socket", Duration::from_secs(20), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    /// `kill -9` of the store's daemon.
    pub fn kill_serve(&mut self) {
        if let Some(mut child) = self.serve.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    /// `kill -9` of everybody who has the store open, and of who comes meanwhile.
    pub fn close_store(&mut self) {
        self.kill_serve();
        let path = self.path().display().to_string();
        wait_for("everybody to have left the store", Duration::from_secs(60), || {
            let left = processes_with(&[&path, "serve", "--stdio"]);
            left.iter()
                .for_each(|pid| _ = rustix::process::kill_process(*pid, rustix::process::Signal::KILL));
            left.is_empty()
        });
    }

    /// The store's daemon.
    pub fn serve_pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.serve.as_ref().expect("it runs"))
    }

    pub fn start_sshd(&mut self) {
        let dir = self.path().to_owned();
        fs::create_dir_all("/run/sshd").expect("sshd's privilege separation directory");
        for key in ["host_key", "user_key"] {
            make_key(&dir.join(key));
        }
        fs::copy(dir.join("user_key.pub"), dir.join("authorized_keys")).expect("a key");
        let text = |name: &str| dir.join(name).display().to_string();
        fs::write(
            dir.join("sshd_config"),
            format!(
                "Port {}\n{}HostKey {}\nAuthorizedKeysFile {}\nPidFile {}\nUsePAM no\nStrictModes no\n\
                 PermitRootLogin yes\nLogLevel VERBOSE\nClientAliveInterval 10\nClientAliveCountMax 3\nSubsystem sftp internal-sftp\n",
                self.port,
                self.addresses.iter().map(|address| format!("ListenAddress {address}\n")).collect::<String>(),
                text("host_key"),
                text("authorized_keys"),
                text("sshd.pid")
            ),
        )
        .expect("a configuration");
        fs::write(
            dir.join("ssh_config"),
            format!(
                "Host dumpster\nHostName 127.0.0.1\nPort {}\nIdentityFile {}\nUserKnownHostsFile {}\nIdentitiesOnly yes\n",
                self.port,
                text("user_key"),
                text("known_hosts")
            ),
        )
        .expect("a configuration");
        self.trust_host_key();
        self.run_sshd();
    }

    fn run_sshd(&mut self) {
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-f"])
            .arg(self.path().join("sshd_config"))
            .arg("-E")
            .arg(self.path().join("sshd.log"))
            // What it keeps of a peer that is gone without a word must not keep the test program's streams.
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sshd starts; tests/run installs it");
        self.sshd = Some(child);
        let port = self.port;
        wait_for("sshd", Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }

    /// The results host has another ssh key from now on. Connections that there are go on.
    pub fn replace_host_key(&mut self) {
        self.sshd.take().map(terminate).expect("it runs");
        let key = self.path().join("host_key");
        fs::remove_file(&key).expect("a key");
        make_key(&key);
        self.run_sshd();
    }

    /// What the drones know as the results host's key is the one that it has.
    pub fn trust_host_key(&self) {
        let key = fs::read_to_string(self.path().join("host_key.pub")).expect("a key");
        let known = format!("[127.0.0.1]:{} {key}", self.port);
        fs::write(self.path().join("known_hosts"), known).expect("a file");
    }

    /// How many times somebody has logged in.
    pub fn logins(&self) -> usize {
        let log = fs::read_to_string(self.path().join("sshd.log")).unwrap_or_default();
        log.lines().filter(|l| l.contains("Accepted publickey")).count()
    }

    /// Mounts, in the background, as a user would.
    pub fn mount(&mut self, machine: &Machine) {
        self.mount_with(machine, &[]);
    }

    /// The same with options of `mount`.
    pub fn mount_with(&mut self, machine: &Machine, options: &[&str]) {
        self.mount_by(machine, &[], options);
    }

    /// The same with more in the daemon's environment.
    pub fn mount_by(&mut self, machine: &Machine, environment: &[(String, String)], options: &[&str]) {
        let place = machine.mount.display().to_string();
        let words = ["mount"].into_iter().chain(options.iter().copied()).chain(["--", &place]);
        let out = machine.command(words).envs(environment.iter().cloned()).output();
        let out = out.expect("the program runs");
        let log = fs::read_to_string(machine.state.join("daemon.log")).unwrap_or_default();
        assert!(out.status.success(), "mount of {}: {}\n{log}", machine.name, text(&out.stderr));
        self.mounts.push(machine.mount.clone());
    }

    /// A test has mounted another file system here: it goes when nobody uses it any more, so that the directory can go.
    pub fn has_disk(&mut self, place: &Path) {
        self.disks.push(place.to_owned());
    }

    /// A test has mounted it by itself.
    pub fn is_mounted(&mut self, machine: &Machine) {
        self.mounts.push(machine.mount.clone());
    }

    pub fn umount(&mut self, machine: &Machine) {
        let out = machine.run(["umount", &machine.mount.display().to_string()]);
        assert!(out.status.success(), "umount of {}: {}", machine.name, text(&out.stderr));
        self.mounts.retain(|m| *m != machine.mount);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            self.show_logs();
        }
        for mount in &self.mounts {
            let name = mount.parent().expect("a machine's directory");
            let mut umount = Command::new(EXE);
            umount
                .arg("--config")
                .arg(name.join("global_config.ini"))
                .args(["umount", "--timeout", "5"])
                .arg(mount);
            if !umount.output().is_ok_and(|o| o.status.success()) {
                let _ = Command::new("umount").arg("-l").arg(mount).output();
            }
        }
        for child in [self.serve.take(), self.sshd.take()].into_iter().flatten() {
            terminate(child);
        }
        for disk in &self.disks {
            let _ = Command::new("umount").arg("-l").arg(disk).output();
        }
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Lab {
    fn show_logs(&self) {
        let mut logs = vec![self.path().join("serve.log")];
        let machines = fs::read_dir(self.path()).expect("the lab's directory");
        logs.extend(machines.flatten().map(|e| e.path().join("state/daemon.log")));
        for log in logs {
            if let Ok(text) = fs::read_to_string(&log) {
                let tail: Vec<&str> = text.lines().rev().take(40).collect();
                eprintln!("--- {}", log.display());
                tail.iter().rev().for_each(|l| eprintln!("{l}"));
            }
        }
    }
}

impl Machine {
    /// Runs `resultsfs` with this host's configuration.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.run_as(Path::new(EXE), args)
    }

    /// The same by another program that stands for it.
    pub fn run_as<S: AsRef<OsStr>>(&self, program: &Path, args: impl IntoIterator<Item = S>) -> Output {
        self.command_as(program, args).output().expect("the program runs")
    }

    /// `resultsfs` with this host's configuration, to be run.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.command_as(Path::new(EXE), args)
    }

    fn command_as<S: AsRef<OsStr>>(&self, program: &Path, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(program);
        command.arg("--config").arg(&self.config).args(args).stdin(Stdio::null());
        command
    }

    /// Runs it and takes its JSON lines.
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Vec<Value> {
        let args: Vec<S> = args.into_iter().collect();
        let mut all: Vec<&OsStr> = vec![OsStr::new("--json")];
        all.extend(args.iter().map(AsRef::as_ref));
        let out = self.run(all);
        let lines = text(&out.stdout);
        lines.lines().map(|l| serde_json::from_str(l).expect("a line of JSON")).collect()
    }

    /// `status --json`.
    pub fn status(&self) -> Value {
        self.json(["status"]).pop().unwrap_or_default()
    }

    /// The catalog's sequence number that this host has seen.
    pub fn seq(&self) -> u64 {
        self.status()["catalog"]["seq"].as_u64().unwrap_or(0)
    }

    /// Offloads all that is complete and waits for it.
    pub fn offload(&self) {
        let out = self.run(["offload", "--wait", "--timeout", "300"]);
        assert!(out.status.success(), "offload on {}: {}", self.name, text(&out.stderr));
    }

    /// Waits until this host has seen all that `other` has.
    pub fn catch_up(&self, other: &Machine) {
        let seq = other.seq();
        wait_for("the catalog to be followed", Duration::from_secs(30), || self.seq() >= seq);
    }

    /// `verify --read-data` finds nothing.
    #[track_caller]
    pub fn verifies(&self, what: &str) {
        let out = self.run(["verify", "--read-data"]);
        let said = || format!("{}{}", text(&out.stdout), text(&out.stderr));
        assert_eq!(out.status.code(), Some(0), "{what}: verify on {}: {}", self.name, said());
    }

    pub fn pid(&self) -> u32 {
        u32::try_from(self.status()["pid"].as_u64().expect("a daemon")).expect("a pid")
    }
}

/// Waits for an event, with a bound.
pub fn wait_for(what: &str, bound: Duration, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + bound;
    while !happened() {
        assert!(Instant::now() < end, "waited {bound:?} in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes that don't compress and differ by name.
pub fn noise(name: &str, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut out);
    out
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must succeed, and gives its stdout.
pub fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// Ends a child that was started here.
pub fn terminate(mut child: Child) {
    let pid = rustix::process::Pid::from_child(&child);
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    let end = Instant::now() + Duration::from_secs(5);
    while child.try_wait().is_ok_and(|status| status.is_none()) {
        if Instant::now() > end {
            let _ = child.kill();
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn make_key(place: &Path) {
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(place));
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("bound").port()
}

/// Aborts all FUSE connections below `dir` after `bound`, unless the lab is over by then.
fn watchdog(dir: PathBuf, bound: Duration, over: Arc<AtomicBool>) {
    thread::spawn(move || {
        let end = Instant::now() + bound;
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(200));
            if over.load(Ordering::Relaxed) {
                return;
            }
        }
        eprintln!("the lab took longer than {bound:?}; its mounts are aborted");
        let mut mounts = String::new();
        let _ = fs::File::open("/proc/self/mountinfo").and_then(|mut f| f.read_to_string(&mut mounts));
        for line in mounts.lines().filter(|l| l.contains(&dir.display().to_string())) {
            let device = line.split(' ').nth(2).and_then(|d| d.split_once(':'));
            if let Some((_, minor)) = device {
                let _ = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
            }
        }
    });
}

/// Names, types, modes, mtimes, link texts and contents of everything below `dir`, one line each, in order of bytes.
pub fn picture(dir: &Path) -> Vec<String> {
    let mut lines: Vec<String> = walkdir::WalkDir::new(dir)
        .min_depth(1)
        .into_iter()
        .map(|entry| {
            let entry = entry.unwrap_or_else(|e| panic!("walk of {}: {e}", dir.display()));
            let meta = fs::symlink_metadata(entry.path()).expect("an entry that was listed");
            let kind = meta.file_type();
            let content = if kind.is_file() {
                let bytes =
                    fs::read(entry.path()).unwrap_or_else(|e| panic!("{}: {e}", entry.path().display()));
                blake3::hash(&bytes).to_string()
            } else if kind.is_symlink() {
                format!("{:?}", fs::read_link(entry.path()).expect("a link"))
            } else {
                String::new()
            };
            let name = entry.path().strip_prefix(dir).expect("below");
            format!(
                "{name:?} {:o} {}.{:09} {} {content}",
                meta.mode(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.uid()
            )
        })
        .collect();
    lines.sort();
    lines
}

/// The first lines in which two pictures differ.
pub fn assert_same(what: &str, a: &[String], b: &[String]) {
    if a == b {
        return;
    }
    let only = |x: &[String], y: &[String]| {
        let there: std::collections::HashSet<&String> = y.iter().collect();
        x.iter().filter(|l| !there.contains(l)).take(8).cloned().collect::<Vec<_>>().join("\n    ")
    };
    panic!(
        "{what}: {} and {} entries\n  only in the first:\n    {}\n  only in the second:\n    {}",
        a.len(),
        b.len(),
        only(a, b),
        only(b, a)
    );
}

/// Processes whose command line holds all these words, this test's own aside.
pub fn processes_with(words: &[&str]) -> Vec<rustix::process::Pid> {
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("procfs").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if pid != own && words.iter().all(|w| line.contains(w)) {
            found.extend(i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw));
        }
    }
    found
}

/// splitmix64: the moments are the same for one seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Plays a whole job into a results tree, as Autotest would.
pub fn play_job(source: &Path, results: &Path, id: u32) {
    let job =
        Job { results, id, owner: "debug_user", host: "host1", source: Some(source), until: Stage::Archived };
    job.play().unwrap_or_else(|e| panic!("job {id} into {}: {e}", results.display()));
}

/// Plays a special task.
pub fn play_task(results: &Path, id: u32) {
    let task = Task { results, id, kind: "verify", host: "host1" };
    task.play().unwrap_or_else(|e| panic!("task {id} into {}: {e}", results.display()));
}
