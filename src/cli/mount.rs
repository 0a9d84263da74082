//! `mount` and `umount`: the daemon in the foreground or behind, and its end.
//!
//! In the background, the command starts itself again as a supervisor, in a session of its own, and that the daemon, with
//! `--background-child`; it waits until the daemon says on its stdout that the mount answers or why it doesn't. So a script that goes on after
//! `mount` finds the tree.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::OpenOptionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use fs_err as fs;

use super::{
    args::{Cli, MountArgs, UmountArgs},
    failure::{Failure, Outcome},
    places,
    say::{say, talk},
    service::{self, Stopped},
};
use crate::{
    config::Config,
    control::{self, ControlError, RawPath, Request},
    daemon::{
        self, DaemonOptions, HeldBy,
        supervisor::{self, Supervised},
    },
    fuse::{self, Passthrough},
};

/// How long a new daemon may take to answer: it reads its databases.
const HAND_OVER: Duration = Duration::from_secs(60);

/// How long a daemon that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(10);

/// How long a mount without an answer is given before it counts as dead.
const TAKE_OVER: Duration = Duration::from_secs(10);

/// Options of mount(8) that mean nothing to the daemon but may stand in an fstab.
const IGNORED_OPTIONS: &[&str] = &[
    "rw",
    "defaults",
    "noauto",
    "auto",
    "user",
    "nouser",
    "users",
    "nofail",
    "_netdev",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    "async",
    "sync",
    "dirsync",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "nousers",
    "silent",
    "loud",
    "default_permissions",
    "allow_other",
];

/// `mount [SOURCE] MOUNTPOINT`.
pub fn mount(cli: &Cli, args: &MountArgs) -> Outcome {
    let options = parse_options(args)?;
    let config = load(cli, args, &options)?;
    let mountpoint = mountpoint(args, &config)?;
    if args.supervisor {
        return supervise(args, &config, mountpoint);
    }
    if let Some(done) = already_served(&config, &mountpoint)? {
        return Ok(done);
    }
    if options.by_service && !args.background_child && !args.foreground {
        return Err(Failure::new(format!("the service that makes {} isn't up", mountpoint.display()))
            .hint("`systemctl status resultsfs.service` says why"));
    }
    let Options { read_only, passthrough, .. } = options;
    let held_by = held_by(args);
    let options = DaemonOptions { config, mountpoint, read_only, passthrough, adopt: args.adopt, held_by };
    if args.background_child {
        return background_child(options);
    }
    if args.foreground {
        return daemon::run(options, daemon::notify_systemd).map(|()| 0).map_err(from_daemon);
    }
    start_in_background(args, &options)
}

fn from_daemon(error: daemon::DaemonError) -> Failure {
    let hint = error.hint();
    let exit = if error.is_passing() { daemon::TRY_AGAIN } else { 1 };
    let failure = Failure::new(error).exit(exit);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Whether the store is served on this machine.
fn is_results_host(config: &Config) -> bool {
    std::os::unix::net::UnixStream::connect(&config.serve_socket).is_ok()
}

struct Options {
    read_only: bool,
    passthrough: Passthrough,
    config: Option<PathBuf>,
    /// Only where a service has made the mount already.
    by_service: bool,
}

fn parse_options(args: &MountArgs) -> Result<Options, Failure> {
    let mut options =
        Options { read_only: false, passthrough: Passthrough::Auto, config: None, by_service: false };
    for option in args.options.iter().map(String::as_str).filter(|o| !o.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("ro", "") => options.read_only = true,
            ("service", "") => options.by_service = true,
            ("passthrough", "auto") => options.passthrough = Passthrough::Auto,
            ("passthrough", "off") => options.passthrough = Passthrough::Off,
            ("config", path) if !path.is_empty() => options.config = Some(path.into()),
            (name, "") if IGNORED_OPTIONS.contains(&name) => {}
            (name, _) if name.starts_with("x-") || name.starts_with("X-") || name == "comment" => {}
            ("remount", "") => {
                return Err(Failure::usage("remounting isn't possible")
                    .hint("unmount and mount with the new options"));
            }
            _ => {
                return Err(Failure::usage(format!("unknown mount option `{option}`")).hint(
                    "known are ro, passthrough=auto, passthrough=off, config=FILE, and mount(8)'s own",
                ));
            }
        }
    }
    Ok(options)
}

fn load(cli: &Cli, args: &MountArgs, options: &Options) -> Result<Config, Failure> {
    let source = match &args.places[..] {
        [source, _] if !matches!(source.to_str(), Some("resultsfs" | "none" | "")) => Some(source.as_path()),
        _ => None,
    };
    let path = source.or(options.config.as_deref()).or(cli.config.as_deref());
    Config::load(path).map_err(Failure::from_config)
}

fn mountpoint(args: &MountArgs, config: &Config) -> Result<PathBuf, Failure> {
    let path = match &args.places[..] {
        [.., mountpoint] => mountpoint.clone(),
        [] => config.mountpoint_default(is_results_host(config)),
    };
    places::mountpoint(&path).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
}

/// Whether this host's daemon runs already: for the same mount point that is a success (the service has mounted it before the mount unit
/// came to it), for another one an error.
fn already_served(config: &Config, mountpoint: &Path) -> Result<Option<u8>, Failure> {
    let Some(serving) = served(config)? else { return Ok(None) };
    if serving == mountpoint {
        return hand_over_to_this_program(config, mountpoint).map(Some);
    }
    Err(is_elsewhere(config, &serving).hint("unmount that first, or give this mount a state_dir of its own"))
}

/// The mount is there. A daemon of another program than this one, such as the one before an update, makes place for one of this program.
fn hand_over_to_this_program(config: &Config, mountpoint: &Path) -> Outcome {
    let Some(pid) = daemon_pid(&config.control_socket()) else { return Ok(0) };
    let program = this_program()?;
    if is_same_program(pid, &program) {
        tracing::info!("{} is mounted already", mountpoint.display());
        return Ok(0);
    }
    let request = Request::HandOver { program: raw_path(&program) };
    match control::ask(&config.control_socket(), &request, |_| {}) {
        Ok(_) => {}
        Err(e) => {
            talk!("resultsfs: {} is mounted by another program: {e}", mountpoint.display());
            return Ok(0);
        }
    }
    let end = Instant::now() + HAND_OVER;
    while Instant::now() < end {
        match daemon_pid(&config.control_socket()) {
            Some(other) if other != pid => return Ok(0),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    Err(Failure::new("the mount was handed over, but the new daemon doesn't answer")
        .hint(format!("its log is {}", log_path(config).display())))
}

fn raw_path(path: &Path) -> RawPath {
    let bytes = path.as_os_str().as_bytes().to_vec();
    RawPath { given: bytes.clone(), absolute: bytes }
}

fn is_same_program(pid: rustix::process::Pid, program: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let number = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let running = format!("/proc/{}/exe", pid.as_raw_nonzero());
    number(Path::new(&running)).is_none_or(|running| Some(running) == number(program))
}

/// The same for a mount whose daemon may just be followed by another one.
fn served_soon(config: &Config, mountpoint: &Path) -> Result<Option<PathBuf>, Failure> {
    let known = served(config)?;
    if known.is_some() || source_of_mount(mountpoint).is_none() {
        return Ok(known);
    }
    if fuse::answers(mountpoint, TAKE_OVER) { served(config) } else { Ok(None) }
}

/// Has the daemon end without unmounting; false if it can't.
fn hand_over(cli: &Cli, args: &UmountArgs) -> Result<bool, Failure> {
    let (config, _) = find_mount(cli, args)?;
    let request = Request::HandOver { program: raw_path(&this_program()?) };
    match control::ask(&config.control_socket(), &request, |_| {}) {
        Ok(_) => Ok(true),
        Err(e) => {
            talk!("resultsfs: the mount can't be handed over, and is unmounted: {e}");
            Ok(false)
        }
    }
}

/// Where this host's daemon has its mount, if it runs. One that is about to die takes a question and doesn't answer it: that is waited out.
fn served(config: &Config) -> Result<Option<PathBuf>, Failure> {
    let end = Instant::now() + DYING;
    loop {
        let mut serving = None;
        match control::ask(&config.control_socket(), &Request::Hello, |item| serving = Some(item)) {
            Ok(_) => {
                return Ok(serving.as_ref().and_then(|item| item["mountpoint"].as_str()).map(PathBuf::from));
            }
            Err(ControlError::NotRunning { .. } | ControlError::NotAllowed { .. }) => return Ok(None),
            Err(ControlError::Broken { .. }) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(other) => return Err(Failure::from_control(other)),
        }
    }
}

fn is_elsewhere(config: &Config, serving: &Path) -> Failure {
    Failure::new(format!(
        "the daemon of state directory {} has its mount at {}",
        config.state_dir.display(),
        serving.display()
    ))
}

fn held_by(args: &MountArgs) -> HeldBy {
    match args {
        MountArgs { background_child: true, unsupervised: false, .. } => HeldBy::Supervisor,
        MountArgs { fd_store: true, .. } => HeldBy::Systemd,
        _ => HeldBy::Nobody,
    }
}

fn start_in_background(args: &MountArgs, options: &DaemonOptions) -> Outcome {
    let log = open_log(&options.config)?;
    let role =
        if args.unsupervised { &["--background-child", "--unsupervised"][..] } else { &["--supervisor"] };
    let arguments = daemon_arguments(args, &options.config, &options.mountpoint, role);
    let mut child = Command::new(this_program()?)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|e| Failure::new(format!("can't start the daemon: {e}")))?;
    await_ready(&mut child, &options.config)
}

fn this_program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|e| Failure::new(format!("can't find this program: {e}")))
}

/// The words that start a daemon or its supervisor as this command was told to.
fn daemon_arguments(
    args: &MountArgs,
    config: &Config,
    mountpoint: &Path,
    role: &[&str],
) -> Vec<std::ffi::OsString> {
    let mut words = vec!["--config".into(), config.files[0].clone().into(), "mount".into()];
    words.extend(role.iter().map(Into::into));
    if args.adopt {
        words.push("--adopt".into());
    }
    for option in &args.options {
        words.extend(["-o".into(), option.into()]);
    }
    words.extend(["--".into(), mountpoint.into()]);
    words
}

/// The supervisor behind a `mount` in the background. It stays with the words that it was given, so that each daemon reads the
/// configuration anew.
fn supervise(args: &MountArgs, config: &Config, mountpoint: PathBuf) -> Outcome {
    rustix::process::setsid().map_err(|e| Failure::new(format!("setsid: {e}")))?;
    let arguments = daemon_arguments(args, config, &mountpoint, &["--background-child"]);
    let supervised = Supervised { program: this_program()?, arguments, mountpoint };
    supervisor::supervise(supervised).map_err(|e| Failure::new(format!("the supervisor: {e}")))
}

/// What a daemon starts to send notices: standard input is a socket to it, standard output the kernel's descriptor.
pub fn notifier() -> Outcome {
    let by_hand = |_| Failure::usage("`notifier` is for the daemon, which starts it by itself");
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map(UnixStream::from);
    let socket = socket.map_err(io::Error::from).and_then(|socket| socket.peer_addr().map(|_| socket));
    fuse::carry_notices(&socket.map_err(by_hand)?, rustix::stdio::stdout())
        .map_err(|e| Failure::new(format!("notices to the kernel: {e}")))?;
    Ok(0)
}

fn await_ready(child: &mut Child, config: &Config) -> Outcome {
    let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
    let mut lines = BufReader::new(stdout).lines();
    let first = lines.next().and_then(Result::ok);
    match first.as_deref() {
        Some("ready") => Ok(0),
        Some(message) => {
            let failure = Failure::new(message.strip_prefix("failed ").unwrap_or(message));
            Err(match lines.next().and_then(Result::ok) {
                Some(hint) => failure.hint(hint),
                None => failure,
            })
        }
        None => Err(Failure::new("the daemon ended before the mount answered")
            .hint(format!("its log is {}", log_path(config).display()))),
    }
}

fn log_path(config: &Config) -> PathBuf {
    config.state_dir.join("daemon.log")
}

fn open_log(config: &Config) -> Result<File, Failure> {
    let path = log_path(config);
    daemon::make_state_dir(config).map_err(from_daemon)?;
    let options = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).clone();
    let file = fs::OpenOptions::from_options(options).open(path).map_err(Failure::new)?;
    Ok(file.into_parts().0)
}

/// The daemon behind a `mount` that waits for one line: `ready`, or `failed` with the reason and a line with the hint.
fn background_child(options: DaemonOptions) -> Outcome {
    if options.held_by == HeldBy::Nobody {
        rustix::process::setsid().map_err(|e| Failure::new(format!("setsid: {e}")))?;
    }
    let ready = || {
        let mut stdout = std::io::stdout();
        // The parent may have been killed; the mount goes on.
        let _ = writeln!(stdout, "ready").and_then(|()| stdout.flush());
        if let Ok(null) = File::options().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(null);
        }
    };
    daemon::run(options, ready).map(|()| 0).map_err(|error| {
        say!("failed {error}");
        if let Some(hint) = error.hint() {
            say!("{hint}");
        }
        from_daemon(error)
    })
}

/// `umount MOUNTPOINT`.
pub fn umount(cli: &Cli, args: &UmountArgs) -> Outcome {
    if let Some(unit) = &args.service {
        match service::why_stopped(unit) {
            Stopped::ByItself => return Ok(0),
            Stopped::ToRestart if hand_over(cli, args)? => return Ok(0),
            Stopped::ToRestart | Stopped::ForGood => {}
        }
    }
    let (config, mountpoint) = find_mount(cli, args)?;
    match served_soon(&config, &mountpoint)? {
        None => return clear_dead(&mountpoint),
        Some(serving) if serving != mountpoint => {
            return Err(
                is_elsewhere(&config, &serving).hint("name that one, or its configuration with --config")
            );
        }
        Some(_) => {}
    }
    let socket = config.control_socket();
    let daemon = daemon_process(&socket);
    let request = Request::Umount { lazy: args.lazy, timeout_s: args.timeout };
    match control::ask(&socket, &request, |_| {}) {
        Ok(code) if daemon.is_none_or(|d| has_ended(&d, Duration::from_secs(args.timeout.max(10)))) => {
            Ok(code)
        }
        Ok(_) => Err(Failure::new("unmounted, but the daemon is still at work")
            .hint("`resultsfs status` says what it waits for")),
        Err(other) => Err(Failure::from_control(other)),
    }
}

fn daemon_pid(socket: &Path) -> Option<rustix::process::Pid> {
    let mut pid = None;
    control::ask(socket, &Request::Hello, |item| pid = item["pid"].as_i64()).ok()?;
    rustix::process::Pid::from_raw(i32::try_from(pid?).ok()?)
}

/// The daemon as a process, to wait for its end: only then are journal and spool free.
fn daemon_process(socket: &Path) -> Option<OwnedFd> {
    let pid = daemon_pid(socket)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

fn has_ended(process: &OwnedFd, bound: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let bound = Timespec { tv_sec: i64::try_from(bound.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&bound)).is_ok_and(|ready| ready > 0)
}

fn find_mount(cli: &Cli, args: &UmountArgs) -> Result<(Config, PathBuf), Failure> {
    let wanted = args.mountpoint.as_ref().and_then(|m| places::mountpoint(m).ok());
    let source = wanted.as_deref().and_then(source_of_mount);
    let config = Config::load(cli.config.as_deref().or(source.as_deref())).map_err(Failure::from_config)?;
    let mountpoint = match wanted {
        Some(mountpoint) => mountpoint,
        None => {
            let place = config.mountpoint_default(is_results_host(&config));
            places::mountpoint(&place).map_err(Failure::new)?
        }
    };
    Ok((config, mountpoint))
}

/// The configuration file that a mount was made with: it is the mount's source in mountinfo.
fn source_of_mount(mountpoint: &Path) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut found = None;
    for line in mounts.lines() {
        let (fields, tail) = line.split_once(" - ")?;
        let place = fields.split(' ').nth(4).map(unescape)?;
        let mut tail = tail.split(' ');
        if tail.next() == Some("fuse.resultsfs")
            && place.as_os_str().as_bytes() == mountpoint.as_os_str().as_bytes()
        {
            found = tail.next().map(unescape);
        }
    }
    found
}

/// mountinfo writes blanks and the like as `\ooo`.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let code = octal.and_then(|o| u8::from_str_radix(std::str::from_utf8(o).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

/// The daemon is gone; if its mount still stands there, dead, take it away.
fn clear_dead(mountpoint: &Path) -> Outcome {
    if source_of_mount(mountpoint).is_none() {
        return Err(Failure::new(format!("{} isn't mounted", mountpoint.display())));
    }
    fuse::clear_dead(mountpoint).map_err(Failure::new)?;
    talk!("resultsfs: no daemon was running; the dead mount at {} was cleared", mountpoint.display());
    Ok(0)
}
