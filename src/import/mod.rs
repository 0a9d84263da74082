//! `import`: adopts the results directory of an Autotest that ran without resultsfs.
//!
//! ```text
//! survey ─► look ─► describe ─► sift ─► upload ─► imported
//!           over?   manifest    new?    commit    a hint for the next time
//! ```
//! [`run`] finds the units and has several on the way at once, [`work`] brings one of them from a [`look`] to its commit, [`sift`] keeps what
//! others have committed from being hidden, [`imported`] spares reading what is there. `docs/architecture.md`, "Import", has the reasons.
//!
//! Invariants: the directory is only read; what lasts is the store's alone; every path that isn't in the store afterwards is named by a [`Finding`].

mod imported;
mod look;
mod sift;
mod told;
mod work;

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinSet;

pub use self::told::{Done, Fate, Finding, Summary};
use self::{imported::Imported, work::Work};
use crate::{
    client::{Client, ClientError},
    config::Config,
    fuse,
    ids::RelPath,
    layout::LayoutRules,
    offload::{
        OwnerNames, SpoolTree,
        bounds::Bounds,
        counters::Counters,
        survey::{self, Survey},
        upload::Uploader,
    },
    spool::Spool,
    transport::Target,
};

/// Units on the way at once, if the configuration allows as many: the pipeline is full with fewer, and each holds its manifest.
const UNITS_AT_ONCE: usize = 64;
/// Between two words of how far it is.
const TICK: Duration = Duration::from_millis(250);

/// What to import, and where to.
pub struct ImportParts<'a> {
    pub dir: PathBuf,
    pub config: &'a Config,
    pub rules: LayoutRules,
    pub target: Target,
    /// Only say what would be done.
    pub is_dry_run: bool,
}

/// What is told as it goes on.
#[derive(Debug)]
pub enum Told {
    Unit(Done),
    /// What belongs to no unit.
    Finding(Finding),
    /// How far it is.
    Progress(Progress),
}

/// How far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub units: u64,
    pub units_done: u64,
    pub bytes_read: u64,
    pub bytes_sent: u64,
}

/// Why there is no import.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{}: {source}", path.display())]
    Dir { path: PathBuf, source: io::Error },
    /// It is this host's or another's own already.
    #[error("{} is {what}", path.display())]
    Ours { path: PathBuf, what: &'static str },
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Imports. Ends with an error when the store can't be reached any more; what was committed by then is, and the next import goes on from there.
pub async fn run(parts: ImportParts<'_>, tell: &mut dyn FnMut(Told)) -> Result<Summary, ImportError> {
    let config = parts.config;
    let fail = |source: io::Error| ImportError::Dir { path: parts.dir.clone(), source };
    let dir = parts.dir.canonicalize().map_err(fail)?;
    refuse_ours(&dir, config)?;
    let spool = Spool::open(&dir).map_err(|e| fail(io::Error::other(e)))?;
    let state = config.state_dir.join("import");
    let name = format!("{}+import", config.host_name);
    let client = Client::start(&state, parts.target, name, config.fingerprint())?;
    let imported = state.join("imported");
    let imported = Imported::open(&imported).map_err(|source| ImportError::Dir { path: imported, source })?;
    let welcome = client.ready().await?;
    let tree = Arc::new(SpoolTree::new(spool));
    let bounds = Bounds::new(config.bandwidth_mib_per_s << 20, config.compression_level);
    // Somebody waits for it.
    bounds.set_urgent(true);
    let uploader = Uploader {
        link: Arc::new(client.link.clone()),
        tree: tree.clone(),
        params: welcome.params,
        held: Arc::default(),
        bounds,
        counters: Arc::new(Counters::default()),
    };
    let (rules, names, is_dry_run) = (parts.rules, OwnerNames::default(), parts.is_dry_run);
    let work = Arc::new(Work { client, tree, rules, names, uploader, imported, is_dry_run });
    let found = survey(&work).await.map_err(fail)?;
    let at_once = usize::try_from(config.max_transfer_processes).unwrap_or(UNITS_AT_ONCE).min(UNITS_AT_ONCE);
    all(&work, found, at_once, tell).await.map_err(ImportError::from)
}

async fn survey(work: &Arc<Work>) -> io::Result<Survey> {
    let work = work.clone();
    let survey = move || survey::survey(&work.tree, &work.client.journal, &work.rules);
    tokio::task::spawn_blocking(survey).await.map_err(io::Error::other)?
}

/// All units that were found, some at a time.
async fn all(
    work: &Arc<Work>,
    found: Survey,
    at_once: usize,
    tell: &mut dyn FnMut(Told),
) -> Result<Summary, ClientError> {
    let mut summary = Summary::default();
    for finding in beside_units(&found) {
        summary.findings += 1;
        tell(Told::Finding(finding));
    }
    let units = found.units.len() as u64;
    let mut waiting = found.units.into_iter();
    let mut running: JoinSet<Result<Done, ClientError>> = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    loop {
        while running.len() < at_once
            && let Some(unit) = waiting.next()
        {
            let work = work.clone();
            running.spawn(async move { work.unit(&unit).await });
        }
        tokio::select! {
            done = running.join_next() => {
                let Some(done) = done else { break };
                let done = done.unwrap_or_else(|e| Err(ClientError::Unreachable(e.to_string())))?;
                summary.add(&done);
                tell(Told::Unit(done));
            }
            _ = tick.tick() => tell(Told::Progress(progress(work, units, summary.units))),
        }
    }
    let counted = work.uploader.counters.read();
    (summary.bytes_read, summary.bytes_sent) =
        (counted.bytes_hashed + counted.bytes_read, counted.bytes_sent);
    Ok(summary)
}

fn progress(work: &Work, units: u64, units_done: u64) -> Progress {
    let counted = work.uploader.counters.read();
    Progress { units, units_done, bytes_read: counted.bytes_hashed, bytes_sent: counted.bytes_sent }
}

/// What lies there and belongs to no unit, or can't be looked into.
fn beside_units(found: &Survey) -> impl Iterator<Item = Finding> {
    let finding =
        |code, path: &RelPath, message: String| Finding { code, unit: None, path: path.clone(), message };
    let unrecognised = found.unrecognised.iter().map(move |path| {
        let message =
            "it isn't Autotest's, and isn't imported: by its place it is no job, task or host".to_owned();
        finding("unrecognised", path, message)
    });
    let unread = found.unread.iter().map(move |(path, e)| finding("unreadable", path, e.to_string()));
    unrecognised.chain(unread)
}

/// What is in resultsfs already isn't imported into it.
fn refuse_ours(dir: &Path, config: &Config) -> Result<(), ImportError> {
    let ours = |what| Err(ImportError::Ours { path: dir.to_owned(), what });
    let own = [
        (&config.spool_dir, "in this host's spool, or holds it"),
        (&config.state_dir, "in this host's state directory, or holds it"),
        (&config.store_dir, "in this host's store, or holds it"),
    ];
    for (place, what) in own {
        let place = place.canonicalize().unwrap_or_else(|_| place.clone());
        if dir.starts_with(&place) || place.starts_with(dir) {
            return ours(what);
        }
    }
    let found = fs_err::metadata(dir);
    let found = found.map_err(|source| ImportError::Dir { path: dir.to_owned(), source })?;
    if !found.is_dir() {
        let source = io::ErrorKind::NotADirectory.into();
        return Err(ImportError::Dir { path: dir.to_owned(), source });
    }
    if fuse::is_mount_of_ours(found.dev()) { ours("in a mount of resultsfs") } else { Ok(()) }
}
