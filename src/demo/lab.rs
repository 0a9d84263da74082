//! Two drones and a results host as processes on this machine: their directories, configurations, start and end.
//!
//! Only processes started here are ended, by their ids. The directory is removed only when nothing is mounted in it any more.

use std::{
    fs::File,
    io,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fs_err as fs;
use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};

use super::{
    DemoError, DemoOptions,
    ssh::{RESULTS_HOST, Way},
};
use crate::ids::HostUuid;

/// Number of drones.
pub const DRONES: usize = 2;

/// How long a process may take to answer.
const START: Duration = Duration::from_secs(30);
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(900);
/// How long a process may take to end when it is asked to.
const END: Duration = Duration::from_secs(15);
/// How often is looked whether something has happened.
const TICK: Duration = Duration::from_millis(20);
/// The longest TMPDIR under which socket paths stay below the kernel's 108 bytes.
const TEMP_DIR_BYTES: usize = 50;

/// A machine of the lab.
#[derive(Clone, Debug)]
pub struct Host {
    /// `drone1`, `drone2` or `results`.
    pub name: String,
    /// Where its tree is mounted.
    pub mountpoint: PathBuf,
    /// What it has: configuration, state, log.
    dir: PathBuf,
}

impl Host {
    fn new(name: &str, top: &Path) -> Self {
        let dir = top.join(name);
        Self { name: name.to_owned(), mountpoint: dir.join("results"), dir }
    }

    fn config(&self) -> PathBuf {
        self.dir.join("global_config.ini")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

/// All of it.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    keep: bool,
    /// The drones, then the results host.
    hosts: Vec<Host>,
    way: Way,
    /// The program, under a path without blanks.
    exe: PathBuf,
    running: Vec<Running>,
    interrupted: Arc<AtomicBool>,
    ended: bool,
}

/// A process of the lab.
#[derive(Debug)]
struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Lab {
    /// Makes the directory and everything in it; starts nothing yet.
    pub fn new(options: &DemoOptions) -> Result<Self, DemoError> {
        let dir = make_dir()?;
        Self::fill(options, dir.clone()).inspect_err(|_| {
            // Nothing runs yet; the first error is the one to tell.
            let _ = fs::remove_dir_all(&dir);
        })
    }

    fn fill(options: &DemoOptions, dir: PathBuf) -> Result<Self, DemoError> {
        let way = Way::prepare(&dir.join("ssh"))?;
        let exe = dir.join("resultsfs");
        symlink(&options.exe, &exe)?;
        let hosts = ["drone1", "drone2", RESULTS_HOST].map(|name| Host::new(name, &dir)).to_vec();
        let (keep, interrupted) = (options.keep, watch_signals());
        let lab = Self { dir, keep, hosts, way, exe, running: Vec::new(), interrupted, ended: false };
        fs::create_dir(lab.expected())?;
        for host in &lab.hosts {
            fs::create_dir_all(&host.mountpoint)?;
            fs::write(host.config(), lab.config_text(host))?;
        }
        Ok(lab)
    }

    fn config_text(&self, host: &Host) -> String {
        let (name, dir, results) = (&host.name, host.dir.display(), self.results());
        let remote = format!("{} --config {}", self.exe.display(), results.config().display());
        format!(
            "[SCHEDULER]\ndrones: drone1, drone2\nresults_host: {RESULTS_HOST}\nmax_transfer_processes: 8\n\n\
             [RESULTSFS]\nhost_name: {name}\nstate_dir: {dir}/state\nstore_dir: {dir}/store\nserve_socket: {dir}/serve.sock\n\
             ssh_command: {}\nremote_command: {remote}\nsettle_seconds: 1\nlive_seconds: 0\n",
            self.way.ssh_command()
        )
    }

    /// Every host, the results host last.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// A drone.
    pub fn drone(&self, number: usize) -> &Host {
        &self.hosts[number]
    }

    /// The results host.
    pub fn results(&self) -> &Host {
        &self.hosts[DRONES]
    }

    /// A plain directory into which everything is played as well.
    pub fn expected(&self) -> PathBuf {
        self.dir.join("expected")
    }

    /// Where generated jobs lie before they are played.
    pub fn source(&self) -> PathBuf {
        self.dir.join("source")
    }

    /// A host's local layers.
    pub fn spool(&self, host: &Host) -> PathBuf {
        host.dir.join("state/spool")
    }

    /// How the drones reach the results host.
    pub fn transport(&self) -> String {
        self.way.describe()
    }

    /// Starts sshd, the store's daemon and the three mounts; each answers when this returns.
    pub fn start(&mut self) -> Result<(), DemoError> {
        if let Way::Sshd(sshd) = &self.way {
            let (command, log) = (sshd.command(), sshd.log());
            self.spawn("sshd", command, &log)?;
        }
        self.await_running(
            "sshd takes no connection",
            |lab| matches!(&lab.way, Way::Sshd(s) if !s.answers()),
        )?;
        let results = self.results().clone();
        let mut serve = self.command(&results);
        serve.arg("serve");
        self.spawn("serve", serve, &results.dir.join("serve.log"))?;
        let socket = results.dir.join("serve.sock");
        self.await_running("the store's socket does not answer", |_| {
            std::os::unix::net::UnixStream::connect(&socket).is_err()
        })?;
        self.hosts.clone().iter().try_for_each(|host| self.mount(host))
    }

    fn mount(&mut self, host: &Host) -> Result<(), DemoError> {
        let mut command = Command::new(&self.exe);
        command.args(["mount", "--foreground"]).arg(host.config()).arg(&host.mountpoint);
        self.spawn(&host.name, command, &host.log())?;
        self.await_running("the mount does not answer", |_| !is_mounted(&host.mountpoint))
    }

    fn command(&self, host: &Host) -> Command {
        let mut command = Command::new(&self.exe);
        command.arg("--config").arg(host.config());
        command
    }

    /// Runs a command of the program for `host`; what it says on stdout.
    pub fn resultsfs(&self, host: &Host, args: &[&str]) -> Result<String, DemoError> {
        let mut command = self.command(host);
        command.args(args).current_dir("/");
        let shown = format!("resultsfs {} [{}]", args.join(" "), host.name);
        let (out, err) = (host.dir.join("command.out"), host.dir.join("command.err"));
        let mut child = isolated(&mut command, File::create(&out)?, File::create(&err)?).spawn()?;
        let status = self.await_child(&mut child, COMMAND)?;
        let said = fs::read_to_string(&out)?;
        match status {
            Some(status) if status.success() => Ok(said),
            Some(status) => {
                let said = said + &fs::read_to_string(&err)?;
                Err(DemoError::Program {
                    command: shown,
                    end: format!("ended with {status}"),
                    said: tail(&said),
                })
            }
            None => Err(DemoError::Late {
                what: format!("`{shown}` did not end"),
                seconds: COMMAND.as_secs(),
                said: tail(&fs::read_to_string(host.log())?),
            }),
        }
    }

    /// Payload bytes that the drones have sent since they were started.
    pub fn bytes_sent(&self) -> Result<u64, DemoError> {
        let mut sent = 0;
        for host in &self.hosts[..DRONES] {
            let status = self.resultsfs(host, &["status", "--json"])?;
            let status: serde_json::Value = serde_json::from_str(status.lines().next().unwrap_or_default())
                .map_err(|e| io::Error::other(format!("status --json: {e}")))?;
            sent += status["offload"]["bytes_sent"].as_u64().unwrap_or_default();
        }
        Ok(sent)
    }

    /// What the store takes on the disk.
    pub fn store_bytes(&self) -> io::Result<u64> {
        disk_bytes(&self.results().dir.join("store"))
    }

    /// How many connections the drones needed.
    pub fn connections(&self) -> io::Result<String> {
        Ok(match &self.way {
            Way::Sshd(sshd) => format!("sshd let in {} in all, for {DRONES} drones", sshd.authentications()?),
            Way::StandIn { .. } => "not counted: no sshd".to_owned(),
        })
    }

    /// Fails once ^C or SIGTERM has come.
    pub fn check_interrupted(&self) -> Result<(), DemoError> {
        if self.interrupted.load(Ordering::Relaxed) { Err(DemoError::Interrupted) } else { Ok(()) }
    }

    /// The directory, if it is still there.
    pub fn kept(&self) -> Option<&Path> {
        self.dir.exists().then_some(&self.dir)
    }

    fn spawn(&mut self, name: &str, mut command: Command, log: &Path) -> Result<(), DemoError> {
        let out = fs::OpenOptions::new().create(true).append(true).open(log)?.into_parts().0;
        let err = out.try_clone()?;
        let child = isolated(&mut command, out, err)
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("can't start {name}: {e}")))?;
        self.running.push(Running { name: name.to_owned(), child, log: log.to_owned() });
        Ok(())
    }

    /// Waits for the process started last while `waiting`.
    fn await_running(&mut self, what: &str, waiting: impl Fn(&Self) -> bool) -> Result<(), DemoError> {
        let began = Instant::now();
        while waiting(self) {
            self.check_interrupted()?;
            let late = began.elapsed() > START;
            let Some(last) = self.running.last_mut() else { return Ok(()) };
            let said = || tail(&fs::read_to_string(&last.log).unwrap_or_default());
            if let Some(status) = last.child.try_wait()? {
                let (command, end) = (last.name.clone(), format!("ended with {status}"));
                return Err(DemoError::Program { command, end, said: said() });
            }
            if late {
                return Err(DemoError::Late {
                    what: what.to_owned(),
                    seconds: START.as_secs(),
                    said: said(),
                });
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Waits for a command's end; none if it was too slow and has been killed.
    fn await_child(&self, child: &mut Child, bound: Duration) -> Result<Option<ExitStatus>, DemoError> {
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            let interrupted = self.check_interrupted();
            if interrupted.is_err() || began.elapsed() > bound {
                child.kill()?;
                child.wait()?;
                return interrupted.map(|()| None);
            }
            std::thread::sleep(TICK);
        }
    }

    /// Unmounts, ends every process and removes the directory. What still stands then is said in the error.
    pub fn end(&mut self) -> Result<(), DemoError> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        for host in &self.hosts {
            self.unmount(host);
        }
        for running in self.running.iter_mut().rev() {
            end_process(&mut running.child);
        }
        for host in &self.hosts {
            detach(&host.mountpoint);
        }
        self.remove()
    }

    /// The polite way; what it leaves, the next steps take.
    fn unmount(&self, host: &Host) {
        if !is_mounted(&host.mountpoint) {
            return;
        }
        let mut command = self.command(host);
        command.args(["umount", "--timeout", "10"]).arg(&host.mountpoint).current_dir("/");
        let Ok(mut child) =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn()
        else {
            return;
        };
        if !await_end(&mut child, END) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn remove(&self) -> Result<(), DemoError> {
        if let Some(host) = self.hosts.iter().find(|h| is_mounted(&h.mountpoint)) {
            let text = format!(
                "{} could not be unmounted; {} is left behind",
                host.mountpoint.display(),
                self.dir.display()
            );
            return Err(io::Error::other(text).into());
        }
        if self.keep {
            return Ok(());
        }
        Ok(fs::remove_dir_all(&self.dir)?)
    }
}

/// The last resort, when a panic skips [`Lab::end`].
impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A process group of its own, so that ^C reaches the demo only, and it can end the others in order.
fn isolated(command: &mut Command, out: File, err: File) -> &mut Command {
    command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0)
}

fn end_process(child: &mut Child) {
    if let Ok(None) = child.try_wait() {
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if !await_end(child, END) {
            let _ = child.kill();
        }
        let _ = child.wait();
    }
}

fn await_end(child: &mut Child, bound: Duration) -> bool {
    let began = Instant::now();
    while began.elapsed() < bound {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        std::thread::sleep(TICK);
    }
    false
}

/// Takes away a mount whose daemon is gone.
fn detach(mountpoint: &Path) {
    if !is_mounted(mountpoint) || unmount(mountpoint, UnmountFlags::DETACH).is_ok() {
        return;
    }
    let _ =
        Command::new("fusermount3").args(["-u", "-z", "--"]).arg(mountpoint).stderr(Stdio::null()).status();
}

/// Whether something is mounted there; a mount whose daemon is gone counts.
fn is_mounted(dir: &Path) -> bool {
    let parent = dir.parent().and_then(|p| std::fs::metadata(p).ok());
    match (std::fs::metadata(dir), parent) {
        (Ok(mine), Some(parent)) => mine.dev() != parent.dev(),
        (Err(e), _) => e.kind() != io::ErrorKind::NotFound,
        (Ok(_), None) => false,
    }
}

fn make_dir() -> io::Result<PathBuf> {
    let mut top = std::env::temp_dir();
    if top.as_os_str().len() > TEMP_DIR_BYTES {
        top = PathBuf::from("/tmp");
    }
    let random = HostUuid::random().to_string();
    let dir = fs::canonicalize(top)?.join(format!("resultsfs-demo-{}", &random[..8]));
    std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
    Ok(dir)
}

/// The flag that ^C and SIGTERM set.
fn watch_signals() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut int), Ok(mut term)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            let _ = ready.send(());
            tokio::select! { _ = int.recv() => (), _ = term.recv() => () }
            set.store(true, Ordering::Relaxed);
            eprintln!("resultsfs: interrupted, cleaning up");
        });
    });
    // Without handlers ^C just ends the program.
    let _ = is_ready.recv();
    flag
}

/// Bytes that the files below `dir` take on the disk. Files may come and go meanwhile.
pub fn disk_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in walkdir::WalkDir::new(dir) {
        match entry.and_then(|e| e.metadata()) {
            Ok(meta) if meta.is_file() => bytes += meta.blocks() * 512,
            Ok(_) => {}
            Err(e) if e.io_error().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(bytes)
}

/// The last lines of a log.
fn tail(text: &str) -> String {
    const LINES: usize = 20;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
