//! A drone, the job with which it is busy, and who dies beside it.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    harness::{EXE, Lab, Machine, assert_same, picture, processes_with, text, wait_for},
    witness::{Witness, unit_of},
};

pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// The drone's ssh.
    Ssh,
    /// The mount's daemon; its supervisor starts the next.
    Daemon,
    /// The store's daemon, and what sshd runs for each session.
    Store,
    /// The mount's daemon and its supervisor.
    Mount,
    /// The store's daemon with its sessions, and the mount's daemon.
    Both,
}

/// A daemon's pauses before it connects again grow: the next one begins with the shortest.
pub const DEATHS: [Death; 5] = [Death::Ssh, Death::Daemon, Death::Store, Death::Mount, Death::Both];

/// The drone's ssh, and what its answers go through: who stops that lets the drone talk and hear nothing.
const GATED: &str = "gated-ssh";
const GATE: &str = "answers";

/// A drone, and the job with which it is busy.
pub struct Scene {
    pub lab: Lab,
    pub drone: Machine,
    pub job: u32,
    /// What was written into this job, and how its tree looked when all was written.
    pub own: Witness,
    pub tree: Vec<String>,
    /// When it was struck last, ms since the epoch: before the first kill, after the last.
    pub struck: (u64, u64),
    /// The jobs before.
    pub kept: Witness,
    pub trees: BTreeMap<u32, Vec<String>>,
}

impl Scene {
    /// Nothing is complete before the test says so; nothing of a running unit is sent; 1 MiB a second is slow enough to watch.
    pub fn new() -> Self {
        let mut lab = Lab::new(Duration::from_secs(200));
        let gated = lab.path().join(GATED);
        let dir = lab.path().display();
        std::os::unix::fs::symlink("/bin/cat", lab.path().join(GATE)).expect("a link");
        let script = format!("#!/bin/sh\nssh -F {dir}/ssh_config \"$@\" | {dir}/{GATE}\n");
        fs::write(&gated, script).expect("a script");
        fs::set_permissions(&gated, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("may be run");
        let settings = format!(
            "ssh_command: {}\nsettle_seconds: 3600\nlive_seconds: 0\nbandwidth_mib_per_s: 1",
            gated.display()
        );
        let drone = lab.machine_with("drone1", &settings);
        lab.mount(&drone);
        Self {
            lab,
            drone,
            job: 0,
            own: Witness::default(),
            tree: Vec::new(),
            struck: (0, 0),
            kept: Witness::default(),
            trees: BTreeMap::new(),
        }
    }

    /// The next job.
    pub fn begin(&mut self) {
        self.job += 1;
        (self.own, self.tree) = (Witness::default(), Vec::new());
    }

    pub fn unit(&self) -> String {
        unit_of(self.job)
    }

    /// A path in the unit.
    pub fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.unit())
    }

    pub fn spooled(&self, name: &str) -> PathBuf {
        self.drone.state.join("spool").join(self.at(name))
    }

    /// A finished job as Autotest leaves it.
    pub fn play(&mut self) {
        self.own.job(&self.drone.mount, self.job, 7).expect("played");
        self.own.promise_job(self.job, 7);
    }

    pub fn write(&mut self, name: &str, content: &[u8]) {
        let path = self.at(name);
        fs::write(self.drone.mount.join(&path), content).expect("written");
        self.own.promise(&path, content);
    }

    /// All is written: from now on the tree mustn't look otherwise.
    pub fn is_written(&mut self) {
        self.tree = picture(&self.drone.mount.join(format!("{}-me", self.job)));
    }

    /// The drone's own line of `jobs`.
    pub fn told(&self) -> Value {
        let rows = self.drone.json(["jobs", &self.unit()]);
        rows.into_iter().find(|row| row["host"] == "drone1").unwrap_or_default()
    }

    pub fn explained(&self) -> Value {
        self.drone.json(["explain", &self.unit()]).pop().unwrap_or_default()
    }

    /// The unit is in this state, or will be, and the program says so.
    #[track_caller]
    pub fn is(&self, state: &str, also: impl Fn(&Value) -> bool) {
        let mut last = Value::Null;
        let bound = Instant::now() + PATIENCE;
        while !(last["state"] == state && also(&last)) {
            assert!(Instant::now() < bound, "isn't {state} as it should be: {last}");
            last = self.explained();
        }
    }

    /// Bytes that the drone's daemon has sent.
    pub fn sent(&self) -> u64 {
        self.drone.status()["connection"]["bytes_sent"].as_u64().expect("a number")
    }

    /// What the catalog has.
    pub fn records(&self) -> u64 {
        let mut records = None;
        wait_for("the store's status", PATIENCE, || {
            let metrics = text(&self.lab.machine("results").run(["metrics"]).stdout);
            let number = metrics.lines().find_map(|line| line.strip_prefix("resultsfs_store_records "));
            records = number.and_then(|number| number.parse().ok());
            records.is_some()
        });
        records.expect("just seen")
    }

    /// Kills at once, and brings nothing back yet.
    pub fn strike(&mut self, death: Death) {
        let before = now_ms();
        let (lab, mount) =
            (format!("{}/", self.lab.path().display()), self.drone.mount.display().to_string());
        let ssh = processes_with(&["ssh", "-F", &lab]);
        if matches!(death, Death::Store | Death::Both) {
            let mut sessions = processes_with(&[EXE, &lab, "serve", "--stdio"]);
            let gated = processes_with(&[&format!("{lab}{GATED}")]);
            sessions.retain(|pid| !ssh.contains(pid) && !gated.contains(pid));
            self.lab.kill_serve();
            sessions.iter().for_each(|pid| _ = kill_process(*pid, Signal::KILL));
        }
        match death {
            Death::Ssh => kill(&ssh),
            Death::Daemon | Death::Both => kill(&[daemon(&self.drone)]),
            Death::Mount => {
                let all = processes_with(&[&mount]);
                assert!(all.len() >= 2, "a supervisor and a daemon");
                kill(&all);
                wait_for("the mount's processes to be gone", PATIENCE, || {
                    processes_with(&[&mount]).is_empty()
                });
            }
            Death::Store => {}
        }
        self.struck = (before, now_ms());
    }

    /// Whoever died is there again, and the drone has its connection.
    pub fn comes_back(&mut self, death: Death) {
        if death == Death::Mount {
            self.lab.mount(&self.drone);
        }
        if matches!(death, Death::Store | Death::Both) {
            self.lab.start_serve();
        }
        wait_for("the drone's connection", PATIENCE, || {
            let status = self.drone.status();
            let since = status["connection"]["since_ms"].as_u64().unwrap_or(0);
            status["connection"]["state"] == "up" && since >= self.struck.0
        });
    }

    pub fn dies(&mut self, death: Death) {
        self.strike(death);
        self.comes_back(death);
    }

    /// The drone doesn't hear what it is told.
    pub fn hears_nothing(&self) -> Still {
        let gate = processes_with(&[&self.lab.path().join(GATE).display().to_string()]);
        Still::new(*gate.first().expect("a connection"))
    }

    pub fn evict(&self) {
        let out = self.drone.run(["evict", &self.unit()]);
        assert!(out.status.success(), "{}", text(&out.stderr));
    }

    /// On a second drone with nothing cached everything is as on the first, and everybody finds all in order.
    pub fn everything_is_kept(mut self) {
        let reader = self.lab.machine("reader");
        self.lab.mount(&reader);
        reader.catch_up(&self.drone);
        for machine in [&self.drone, &reader] {
            self.kept.is_kept("in the end", machine);
            for (job, tree) in &self.trees {
                let what = format!("job {job} on {}", machine.name);
                assert_same(&what, tree, &picture(&machine.mount.join(format!("{job}-me"))));
            }
        }
        for machine in [&self.drone, &self.lab.machine("results")] {
            machine.verifies("in the end");
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after the epoch");
    u64::try_from(since.as_millis()).expect("a few more years")
}

pub fn kill(pids: &[Pid]) {
    assert!(!pids.is_empty(), "nobody there to be killed");
    pids.iter().for_each(|pid| _ = kill_process(*pid, Signal::KILL));
}

pub fn daemon(machine: &Machine) -> Pid {
    let found = processes_with(&["--background-child", &machine.mount.display().to_string()]);
    *found.first().expect("a daemon")
}

/// A process that stands still, until it goes on or is dead.
pub struct Still(pub Pid);

impl Still {
    pub fn new(pid: Pid) -> Self {
        kill_process(pid, Signal::STOP).expect("one of the lab's");
        Self(pid)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}
