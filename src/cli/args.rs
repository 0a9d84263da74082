//! The command line's words: one type a command, in the order of `docs/cli.md`.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};

/// One tree of Autotest results on every machine: written at local speed, kept on the results host, never lost.
#[derive(Debug, Parser)]
#[command(name = "resultsfs", version, max_term_width = 100)]
pub struct Cli {
    /// The configuration: a global_config.ini, or the directory that holds it.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One JSON object a line on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    /// Only errors on stderr.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// More on stderr: each operation of the daemon.
    #[arg(long, short, global = true)]
    pub verbose: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount the results tree and run this host's daemon; returns once the mount answers.
    Mount(MountArgs),
    /// Wait for open files, finish the journal and unmount.
    Umount(UmountArgs),
    /// Run the results host's store.
    Serve(ServeArgs),
    /// Units by state, queue, rates, connection, spool and cache.
    Status(StatusArgs),
    /// Whether a person is needed: a line, and the exit code of a monitoring plugin.
    Health,
    /// Tell the administrator what needs a person, by mail and by notify_command, when it is news.
    Notify(NotifyArgs),
    /// What the daemons of this machine count, in Prometheus' text format.
    Metrics(MetricsArgs),
    /// List units.
    Jobs(JobsArgs),
    /// Say everything that is known of a path: where its bytes are and what happens next.
    Explain(ExplainArgs),
    /// Offload now instead of after the settling time.
    Offload(OffloadArgs),
    /// Say of units that they are complete, whatever their pidfiles say.
    Complete(PathsArgs),
    /// Free the local copies of committed units.
    Evict(PathsArgs),
    /// Bring evicted units back to local disk.
    Recall(PathsArgs),
    /// On the results host: close a dead host's running units at their last snapshot.
    Adopt(AdoptArgs),
    /// Adopt the results directory of an Autotest that ran without resultsfs; it is only read.
    Import(ImportArgs),
    /// Give back what is committed as plain files, also of what was retired.
    Export(ExportArgs),
    /// Hide what is committed of units, on every host, so that new jobs of the same names can begin; it stays in the store.
    Retire(RetireArgs),
    /// On the results host: prune old jobs by the rules of retention, and give up what was pruned long enough ago.
    Prune(PruneArgs),
    /// On the results host: bring back what was pruned or retired.
    Undelete(UndeleteArgs),
    /// On the results host: reclaim what nothing in the store needs any more.
    Gc(GcArgs),
    /// Check that nothing is missing: journal, spool and store.
    Verify(VerifyArgs),
    /// Show the settings that are in effect, where each came from, and what is wrong.
    Config(ConfigArgs),
    /// Run the whole system on this machine in a temporary directory.
    Demo(DemoArgs),
    /// Send a daemon's notices to the kernel: a daemon starts this for itself.
    #[command(hide = true)]
    Notifier {
        /// Where the daemon's mount is, for who looks at the list of processes.
        mountpoint: PathBuf,
    },
    /// Write man pages and shell completions into a directory (for packages).
    #[command(hide = true)]
    GenerateDocs {
        /// An existing or new directory.
        dir: PathBuf,
    },
    /// Write generated job results into a directory (for tests and benchmarks).
    #[command(hide = true)]
    Generate(GenerateArgs),
    /// Commit generated jobs to a store that nobody has open, without their files (for tests and benchmarks).
    #[command(hide = true)]
    GenerateHistory(HistoryArgs),
}

/// `mount [SOURCE] MOUNTPOINT`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// [SOURCE] MOUNTPOINT. SOURCE is the configuration file; without MOUNTPOINT it is taken from the configuration.
    #[arg(value_name = "[SOURCE] MOUNTPOINT", num_args = 0..=2)]
    pub places: Vec<PathBuf>,
    /// Mount options, separated by commas: ro, allow_other, passthrough=auto|off, config=FILE.
    #[arg(short = 'o', value_name = "OPTS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Stay in the foreground and log to stderr.
    #[arg(long, short)]
    pub foreground: bool,
    /// Make what is in the mount point the spool: it is renamed there, so both must be on one file system.
    #[arg(long)]
    pub adopt: bool,
    /// In the foreground: the service manager keeps the mount while the daemon is restarted (FileDescriptorStoreMax=).
    #[arg(long, requires = "foreground")]
    pub fd_store: bool,
    /// Nobody keeps the mount if the daemon dies.
    #[arg(long, conflicts_with = "fd_store")]
    pub unsupervised: bool,
    /// This is the daemon that a `mount` in the background has started; it says on stdout when it is ready.
    #[arg(long, hide = true)]
    pub background_child: bool,
    /// This is the supervisor of such a daemon.
    #[arg(long, hide = true)]
    pub supervisor: bool,
    /// Accepted as mount(8) passes them to its helpers; without effect.
    #[arg(short = 's', hide = true)]
    pub sloppy: bool,
    #[arg(short = 'n', hide = true)]
    pub no_mtab: bool,
    #[arg(short = 't', hide = true, value_name = "TYPE")]
    pub fs_type: Option<String>,
}

/// `umount MOUNTPOINT`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Where the tree is mounted; without it, the configuration's.
    pub mountpoint: Option<PathBuf>,
    /// How long to wait for open files, seconds.
    #[arg(long, default_value_t = 30, value_name = "S")]
    pub timeout: u64,
    /// Detach at once; files that are open then may fail.
    #[arg(long, short)]
    pub lazy: bool,
    /// As the ExecStop= of this unit: a restart leaves the mount to the next daemon.
    #[arg(long, value_name = "UNIT")]
    pub service: Option<String>,
}

/// `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Speak the protocol on stdin and stdout: what ssh runs. Joins the daemon, or opens the store if none runs.
    #[arg(long)]
    pub stdio: bool,
    /// Pin the session to this host name; for a forced command in authorized_keys.
    #[arg(long, value_name = "NAME")]
    pub drone: Option<String>,
    /// What the session may do: add, overlay, delete.
    #[arg(long, value_name = "RIGHTS", default_value = "add,overlay")]
    pub allow: String,
    /// Print the authorized_keys line that lets the key in this file do this, and nothing else.
    #[arg(long, value_name = "KEYFILE", requires = "drone")]
    pub print_authorized_key: Option<PathBuf>,
}

/// `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Again every second.
    #[arg(long)]
    pub watch: bool,
}

/// `notify`.
#[derive(Debug, Args)]
pub struct NotifyArgs {
    /// Tell that this unit of systemd has failed: for OnFailure=.
    #[arg(long, value_name = "UNIT")]
    pub failed: Option<String>,
    /// Send something, to try the settings.
    #[arg(long, conflicts_with = "failed")]
    pub test: bool,
}

/// `metrics`.
#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// Into this file, as a whole, instead of stdout.
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
}

/// `jobs`.
#[derive(Debug, Args)]
pub struct JobsArgs {
    /// Only units whose path holds this text, or matches it as a pattern with * and ?.
    pub pattern: Option<String>,
}

/// `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A path in the mount, or from the top of the results tree.
    pub path: OsString,
    /// Print what this host (name or UUID) has committed there instead, whatever shows.
    #[arg(long, value_name = "HOST", conflicts_with = "json")]
    pub cat: Option<String>,
}

/// Some paths.
#[derive(Debug, Args)]
pub struct PathsArgs {
    /// Paths in the mount, or from the top of the results tree; a job stands for all its units.
    #[arg(required = true)]
    pub paths: Vec<OsString>,
}

/// `offload`.
#[derive(Debug, Args)]
pub struct OffloadArgs {
    /// Units; without any, all that are complete.
    pub paths: Vec<OsString>,
    /// Return when they are committed.
    #[arg(long)]
    pub wait: bool,
    /// With --wait: give up after this many seconds.
    #[arg(long, value_name = "S", default_value_t = 3600)]
    pub timeout: u64,
}

/// `adopt`.
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// The dead host's name, or its UUID.
    pub host: String,
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
}

/// `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The results directory: what holds the jobs.
    pub dir: PathBuf,
    /// Only say what would be read, and what would stay out.
    #[arg(long)]
    pub dry_run: bool,
}

/// `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Paths in the mount, or from the top of the results tree.
    #[arg(required = true)]
    pub paths: Vec<OsString>,
    /// An empty or new directory; a path keeps its place below it.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// The unit's life: 1 is the first, as `explain` counts them. Without it, what shows now.
    #[arg(long, value_name = "N", value_parser = incarnation)]
    pub incarnation: Option<u32>,
}

/// `retire`.
#[derive(Debug, Args)]
pub struct RetireArgs {
    /// Units or jobs: paths in the mount, or from the top of the results tree.
    #[arg(required_unless_present = "before")]
    pub paths: Vec<OsString>,
    /// All units whose last commit is older: 2026-01-31 (its beginning, here), 2026-01-31T12:00 (here) or 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "DATE", conflicts_with = "paths")]
    pub before: Option<String>,
    /// Only say what would go.
    #[arg(long)]
    pub dry_run: bool,
}

/// `prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Only say what would go.
    #[arg(long)]
    pub dry_run: bool,
    /// In place of retention_days and retention_days_failed: jobs whose last commit is as many days old, or is before a date: 30, 2026-01-31,
    /// 2026-01-31T12:00 or 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "DAYS|DATE")]
    pub older_than: Option<String>,
    /// In place of retention_days and retention_days_failed, unless beside --older-than: jobs of which nothing was committed and, on any mount, no file
    /// opened for reading for so many days.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=366_000))]
    pub unread_for: Option<u32>,
    /// Only jobs of this user: what is behind the dash of a job's name.
    #[arg(long, value_name = "NAME", value_parser = narrowing)]
    pub owner: Option<String>,
    /// Only jobs (12-me) and tasks (hosts/h1/3-verify) whose path from the top matches all of this pattern with * and ?.
    #[arg(long = "match", value_name = "GLOB", value_parser = narrowing)]
    pub pattern: Option<String>,
    /// Only jobs that ended like this.
    #[arg(long, value_name = "HOW", value_parser = ["passed", "failed"])]
    pub outcome: Option<String>,
    /// Also where that is every job in the store.
    #[arg(long)]
    pub yes: bool,
}

/// `undelete`.
#[derive(Debug, Args)]
pub struct UndeleteArgs {
    /// Units or jobs: paths in the mount, or from the top of the results tree.
    #[arg(required = true)]
    pub paths: Vec<OsString>,
    /// Only say what would come back.
    #[arg(long)]
    pub dry_run: bool,
}

/// `gc`.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Only say what would go.
    #[arg(long)]
    pub dry_run: bool,
}

/// `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Only these units.
    pub paths: Vec<OsString>,
    /// Only the store on this machine.
    #[arg(long, conflicts_with = "local")]
    pub store: bool,
    /// Only this host's journal and spool.
    #[arg(long)]
    pub local: bool,
    /// Read and hash every byte.
    #[arg(long)]
    pub read_data: bool,
    /// Of the store, unpack every byte, too, and hash every object and every large file as a whole.
    #[arg(long, requires = "read_data")]
    pub unpack: bool,
    /// Of the store, go on where a check that was cut off has been; with --repair, read only what the last check has not found good.
    #[arg(long, conflicts_with = "sample")]
    pub resume: bool,
    /// Read at most so many MiB a second.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    pub throttle: Option<u32>,
    /// Read only slice N of M; `day/M` is another one each day.
    #[arg(long, value_name = "N/M", requires = "read_data")]
    pub sample: Option<String>,
    /// Mend what can be mended.
    #[arg(long)]
    pub repair: bool,
    /// Accepted as fsck(8) passes them; without effect.
    #[arg(short = 'a', short_aliases = ['p', 'y', 'n', 'C', 'T', 'M', 'f'], hide = true, action = clap::ArgAction::Count)]
    pub fsck_flags: u8,
}

/// `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// With the source of each setting.
    #[arg(long)]
    pub explain: bool,
}

/// `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How many jobs to play.
    #[arg(long, default_value_t = 12, value_name = "N")]
    pub jobs: u32,
    /// Play the jobs of an existing results directory instead of generated ones.
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,
    /// Seed of the generator.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Leave the temporary directory behind.
    #[arg(long)]
    pub keep: bool,
}

/// `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// An existing or new directory.
    pub dir: PathBuf,
    #[arg(long, default_value_t = 10)]
    pub jobs: u32,
    /// Number of the first job.
    #[arg(long, default_value_t = 1)]
    pub first: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Size of the jobs, 1.0 = about 16 MB each.
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
}

/// `generate-history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// The store's directory, existing or new.
    pub store: PathBuf,
    #[arg(long, default_value_t = 1000)]
    pub jobs: u32,
    /// Number of the first job.
    #[arg(long, default_value_t = 1)]
    pub first: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// A name or pattern that narrows something: an empty one would not.
fn narrowing(text: &str) -> Result<String, &'static str> {
    match text.len() {
        0 => Err("it is empty"),
        1..=100 => Ok(text.to_owned()),
        _ => Err("it is longer than 100 bytes"),
    }
}

/// The number of a unit's life, as people count.
fn incarnation(text: &str) -> Result<u32, &'static str> {
    text.parse().ok().filter(|number| *number > 0).ok_or("incarnations are counted from 1")
}
