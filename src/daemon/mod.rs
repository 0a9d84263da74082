//! The mount daemon: everything that a host runs, put together, and its end.
//!
//! ```text
//! run ── open the journal (lock), spool, cache, view, file system
//!     ── mount, or take the mount over, control socket, link, engine then `ready`
//!     ── until: umount command │ signal │ somebody unmounted us
//!     ── stop the engine, close the journal
//! ```
//! The main path is [`run`]; [`follow`] keeps the replica of the catalog; [`commands`] and [`report`] answer them.

mod adopt;
mod answer;
mod commands;
mod export;
mod follow;
mod giving;
mod holder;
mod live;
mod lives;
mod probe;
mod reads;
mod report;
mod retire;
mod shown;
mod start;
pub mod supervisor;
mod users;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use self::holder::HeldBy;
use self::holder::{Holder, Word};
use fs_err as fs;
use tokio::{
    runtime::{Handle, Runtime},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing::{error, info, warn};

use crate::{
    buffers,
    cache::Cache,
    client,
    config::{self, Config},
    durable,
    fs::{Fs, ledger::Keep, view::View},
    fuse::{self, Mounted, Passthrough},
    journal::{Journal, JournalError},
    layout::{self, LayoutRules},
    offload::{Engine, EngineError, EvictionRules, Settings},
    spool::{Spool, SpoolError, activity::Activity, raise_descriptor_limit},
    wire::link::{Link, LinkEvent},
};

/// sysexits.h: EX_TEMPFAIL. The service manager starts a daemon again that ends with it, which after code 1 it doesn't.
pub const TRY_AGAIN: u8 = 75;

/// What the daemon is started with.
#[derive(Debug)]
pub struct DaemonOptions {
    pub config: Config,
    /// Absolute.
    pub mountpoint: PathBuf,
    pub read_only: bool,
    pub passthrough: Passthrough,
    /// What is in the mount point becomes the spool.
    pub adopt: bool,
    /// Who keeps the mount when the daemon dies.
    pub held_by: HeldBy,
}

/// Why the daemon didn't start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Mount(#[from] fuse::MountError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("the file system can't start: {0}")]
    Fs(String),
    #[error("{what} {path}: {source}")]
    Path { what: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "a disk is mounted at the spool, {}, so that {}, where files are made before they are renamed into it, is on another one",
        spool.display(), tmp.display()
    )]
    SpoolIsMountPoint { spool: PathBuf, tmp: PathBuf },
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

impl DaemonError {
    /// Whether it may be otherwise in a moment: a predecessor has not let go of everything yet.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Journal(JournalError::Locked { .. }) | Self::Mount(fuse::MountError::AlreadyMounted(_))
        )
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Journal(JournalError::Locked { .. }) => {
                Some("one state directory serves one mount; `resultsfs status` shows which, or set another state_dir".into())
            }
            Self::SpoolIsMountPoint { spool, .. } => Some(format!(
                "name a directory on that disk: `mkdir {0}/spool`, and `spool_dir: {0}/spool` in [RESULTSFS]",
                spool.display()
            )),
            _ => None,
        }
    }
}

/// The parts of a running host that the daemon's tasks share.
pub(crate) struct Host {
    config: Config,
    mountpoint: PathBuf,
    journal: Arc<Journal>,
    spool: Arc<Spool>,
    activity: Arc<Activity>,
    cache: Arc<Cache>,
    view: Arc<View>,
    fs: Arc<Fs>,
    rules: LayoutRules,
    link: Option<Link>,
    engine: Engine,
    holder: Holder,
    keep: Option<Keep>,
    shown: shown::Shown,
    spool_trouble: probe::Trouble,
}

/// Why the daemon ends.
enum End {
    Signal,
    /// Somebody has unmounted; the session is over.
    Unmounted,
    /// The `umount` command, after it has unmounted.
    Command,
    /// Another process is to take the mount over.
    HandOver,
}

/// Runs the daemon until it is unmounted or told to end. `ready` is called once the mount answers.
pub fn run(options: DaemonOptions, ready: impl FnOnce()) -> Result<(), DaemonError> {
    buffers::restrain_allocator();
    make_state_dir(&options.config)?;
    raise_descriptor_limit();
    let runtime =
        Runtime::new().map_err(|source| DaemonError::Io { what: "can't start the runtime", source })?;
    let end = runtime.block_on(serve(options, ready));
    // Threads may hang in a read from a dead host; nothing that matters is on them.
    runtime.shutdown_timeout(Duration::from_secs(2));
    end
}

/// Tells systemd that the service is up, where it is one.
pub fn notify_systemd() {
    if let Err(e) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        warn!("can't tell systemd that the mount is ready: {e}");
    }
}

/// Makes the state directory, which nobody else may look into, the spool, whose mode is that of the mount's root, and a place for files on
/// their way into it.
pub fn make_state_dir(config: &Config) -> Result<(), DaemonError> {
    make_dir(&config.state_dir, 0o700)?;
    make_dir(&config.spool_dir, 0o755)?;
    make_dir(&tmp_dir(config), 0o700)
}

/// Whether files can be renamed into the spool from the place beside it.
fn check_spool(config: &Config) -> Result<(), DaemonError> {
    let (spool, tmp) = (config.spool_dir.clone(), tmp_dir(config));
    match is_on_one_disk(&spool, &tmp) {
        Ok(true) => Ok(()),
        Ok(false) => Err(DaemonError::SpoolIsMountPoint { spool, tmp }),
        Err(source) => Err(DaemonError::Path { what: "can't look at", path: spool, source }),
    }
}

/// Of one file system, by one mount: nothing is renamed across either.
fn is_on_one_disk(one: &Path, other: &Path) -> io::Result<bool> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let place = |path: &Path| {
        statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)
            .map(|at| (at.stx_dev_major, at.stx_dev_minor, at.stx_mnt_id))
    };
    Ok(place(one)? == place(other)?)
}

fn make_dir(dir: &Path, mode: u32) -> Result<(), DaemonError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir);
    made.map_err(|source| DaemonError::Path { what: "can't make directory", path: dir.to_owned(), source })
}

async fn serve(options: DaemonOptions, ready: impl FnOnce()) -> Result<(), DaemonError> {
    let (stop, mut stopped) = mpsc::channel(1);
    let (host, mounted, events) = start::start(options)?;
    let mounted = Arc::new(mounted);
    let control = control_listener(&host.config)?;
    let tasks = [
        tokio::spawn(commands::answer(control, host.clone(), mounted.clone(), stop.clone())),
        tokio::spawn(follow::follow(host.clone(), mounted.notifier(), events)),
        tokio::spawn(reads::tell(host.clone())),
    ];
    watch_session(mounted.clone(), stop.clone());
    tokio::spawn(watch_journal(host.clone()));
    let watched = host.clone();
    tokio::spawn(async move { probe::watch(&watched.spool_trouble, tmp_dir(&watched.config)).await });
    watch_signals(stop).map_err(|source| DaemonError::Io { what: "can't watch for signals", source })?;
    info!("{} is mounted", host.mountpoint.display());
    host.holder.say(&Word::Ready);
    ready();
    let end = stopped.recv().await;
    match end {
        Some(End::Signal) => unmount_at_signal(&host, &mounted).await,
        Some(End::Unmounted) => info!("{} was unmounted", host.mountpoint.display()),
        Some(End::HandOver) => info!("the mount goes on with another process"),
        Some(End::Command) | None => {}
    }
    host.engine.stop().await;
    if let Some(link) = &host.link {
        link.stop();
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let _ = fs::remove_file(host.config.control_socket());
    if !matches!(end, Some(End::HandOver)) {
        host.holder.drop_kept();
        host.holder.say(&Word::Ended);
    }
    info!("ended");
    Ok(())
}

/// The connection to the store, where there is one, and its events.
fn start_link(
    config: &Config,
    journal: &Arc<Journal>,
    cache: &Cache,
) -> (Option<Link>, mpsc::UnboundedReceiver<LinkEvent>) {
    let (sender, events) = mpsc::unbounded_channel();
    let link = client::target(config).map(|target| {
        let hello = client::hello(journal.clone(), config.host_name.clone(), config.fingerprint());
        Link::start(target, hello, sender)
    });
    if let Some(link) = &link {
        cache.set_source(Arc::new(client::LinkSource::new(link.clone(), Handle::current())));
    }
    (link, events)
}

/// For files on their way into the spool, so that they can be renamed into place.
fn tmp_dir(config: &Config) -> PathBuf {
    beside_spool(config, "tmp")
}

/// For what a repair takes out of the spool.
fn quarantine_dir(config: &Config) -> PathBuf {
    beside_spool(config, "quarantine")
}

/// On the spool's file system.
fn beside_spool(config: &Config, name: &str) -> PathBuf {
    if config.spool_dir.starts_with(&config.state_dir) {
        return config.state_dir.join(name);
    }
    let mut beside = config.spool_dir.clone().into_os_string();
    beside.push(".");
    beside.push(name);
    beside.into()
}

fn engine_settings(config: &Config, rules: &LayoutRules) -> Settings {
    Settings {
        rules: rules.clone(),
        eviction: EvictionRules {
            keep_local_ms: config.keep_local_hours * 3_600_000,
            high_percent: config.spool_high_percent,
            low_percent: config.spool_low_percent,
        },
        live: (config.live_seconds > 0).then(|| Duration::from_secs(config.live_seconds)),
        max_transfers: usize::try_from(config.max_transfer_processes).unwrap_or(usize::MAX),
        compression_level: config.compression_level,
        bandwidth_bytes_per_s: config.bandwidth_mib_per_s << 20,
        tmp_dir: tmp_dir(config),
    }
}

/// The mount's source in mountinfo: its configuration file, from which `umount` finds the daemon.
fn source(config: &Config) -> String {
    config.files.first().map_or_else(|| "resultsfs".to_owned(), |f| f.display().to_string())
}

/// What the configuration says of units.
pub fn layout_rules(config: &Config) -> LayoutRules {
    LayoutRules {
        local_only: config.local_only.clone(),
        complete_on: match config.complete_on {
            config::CompleteOn::Archiver => layout::CompleteOn::Archiver,
            config::CompleteOn::Parser => layout::CompleteOn::Parser,
            config::CompleteOn::Autoserv => layout::CompleteOn::Autoserv,
        },
        settle_ms: config.settle_seconds * 1000,
        lost_ms: config.lost_hours * 3_600_000,
    }
}

fn control_listener(config: &Config) -> Result<tokio::net::UnixListener, DaemonError> {
    use std::os::unix::fs::PermissionsExt;
    let path = config.control_socket();
    let fail = |source| DaemonError::Path { what: "can't listen on", path: path.clone(), source };
    // The journal's lock is ours, so a socket that is still there is a dead daemon's.
    let _ = fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).map_err(fail)?;
    fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

/// Ends this process, as if it had been killed, when a write of the journal has failed and its disk can be written again: the next one opens the
/// journal anew and takes the mount over. Without anybody who keeps the mount that is left to a person.
async fn watch_journal(host: Arc<Host>) {
    let meanwhile = "nothing is offloaded, and nothing that was can be changed";
    durable::mended(&host.config.state_dir, meanwhile, || host.journal.failure()).await;
    if host.held_by() == HeldBy::Nobody {
        warn!(
            "the state directory's disk can be written again, and nobody keeps this mount for another daemon: unmount, and mount again"
        );
        return;
    }
    warn!("the state directory's disk can be written again: the next daemon takes the mount over");
    std::process::exit(TRY_AGAIN.into());
}

fn watch_session(mounted: Arc<Mounted>, stop: mpsc::Sender<End>) {
    std::thread::spawn(move || {
        if let Err(e) = mounted.wait() {
            error!("the mount has ended: {e}");
        }
        // Nobody listens any more when the daemon is ending anyway.
        let _ = stop.blocking_send(End::Unmounted);
    });
}

fn watch_signals(stop: mpsc::Sender<End>) -> io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        let _ = stop.send(End::Signal).await;
    });
    Ok(())
}

/// A signal is the machine going down or a service stop: open files get some time, then the mount is detached.
async fn unmount_at_signal(host: &Host, mounted: &Mounted) {
    for _ in 0..50 {
        match mounted.unmount(false) {
            Ok(()) => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    warn!("{} files are still open; the mount is detached", host.activity.open_handles());
    if let Err(e) = mounted.unmount(true) {
        error!("can't unmount: {e}");
    }
}
