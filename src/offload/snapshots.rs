//! Snapshots: what runs is published every `live_seconds`, so that others can follow it and a dead drone costs seconds.
//!
//! ```text
//! round ─► for each running unit that has changed: describe (live) ─► send what the store lacks ─► publish
//! ```
//! It is the way of a commit ([`super::seal`], [`super::upload`]) without its promises: nothing is journaled or synced, and what goes wrong is
//! left to the next round. One round goes on at a time, a unit at a time; it gives way to commits.
//!
//! Invariants: a snapshot is a consistent set of bytes, each file as it was at one moment ([`super::live`]); no writer waits for it; a unit that
//! nobody has touched since its last snapshot costs nothing, one with nothing new in it no request.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{
    bounds::Core,
    completion,
    engine::Shared,
    live::{Files, Taker},
    observe,
    transfer::{Subjected, TransferError},
    uplink::UplinkError,
    upload::{Layer, UploadError, Uploader},
};
use crate::{
    ids::{Generation, Hash, RelPath, UnitId},
    journal::State,
    manifest::Manifest,
    wire::PublishRequest,
};

/// A file that changes between being described and being sent is left as it was, and the unit described again; so often.
const ATTEMPTS: usize = 3;
/// Files remembered, of all running units, about 200 bytes each. A unit beyond it is read as a whole for each snapshot.
const FILES: usize = 500_000;
/// How long a round gives way to commits that wait: snapshots have a time by which they are to be seen, commits have none.
const GIVE_WAY: Duration = Duration::from_secs(1);
/// How often it looks whether they still do.
const GIVE_WAY_PAUSE: Duration = Duration::from_millis(20);

/// What was published, by unit.
#[derive(Debug, Default)]
pub struct Snapshots {
    units: HashMap<UnitId, Published>,
    /// The session in which all this was published; another's store may be another.
    session: u64,
}

/// A unit's last snapshot.
#[derive(Debug, Default, Clone)]
struct Published {
    generation: Option<Generation>,
    manifest: Option<Hash>,
    contents: Arc<HashSet<Hash>>,
    files: Arc<Files>,
    /// The last change that it may have seen.
    changed: Option<Instant>,
    /// When it was published, the host's clock.
    time_ms: u64,
}

impl Snapshots {
    /// When a unit was last published, ms since the epoch.
    pub fn time_ms(&self, unit: &UnitId) -> Option<u64> {
        self.units.get(unit).filter(|p| p.manifest.is_some()).map(|published| published.time_ms)
    }

    /// How many units others can see running.
    pub fn len(&self) -> usize {
        self.units.values().filter(|p| p.manifest.is_some()).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn files(&self) -> usize {
        self.units.values().map(|published| published.files.len()).sum()
    }
}

/// Why a unit isn't shown.
#[derive(Debug, thiserror::Error)]
enum ShowError {
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// Files change faster than they can be sent.
    #[error("it changes faster than it can be sent")]
    Unsteady,
}

impl From<UploadError> for ShowError {
    fn from(error: UploadError) -> Self {
        Self::Transfer(error.into())
    }
}

impl ShowError {
    /// Whether the store won't have it: the next round's will hardly be another, and isn't to be read anew for that.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Transfer(TransferError::Upload(UploadError::Link(UplinkError::Rejected(_)))))
    }

    /// Whether there is no use in going on with other units.
    fn is_link(&self) -> bool {
        let upload = match self {
            Self::Transfer(TransferError::Upload(upload)) => upload,
            _ => return false,
        };
        matches!(
            upload,
            UploadError::Link(UplinkError::Down(_) | UplinkError::Timeout) | UploadError::Stopped
        )
    }
}

/// Publishes every running unit that has changed.
pub async fn round(shared: &Arc<Shared>) {
    let Some(uploader) = shared.uploader() else { return };
    shared.snapshots().begin_session(shared.link_sessions());
    let mut patience = GIVE_WAY;
    let units = running(shared);
    for unit in &units {
        give_way(shared, &mut patience).await;
        match show(shared, &uploader, unit).await {
            Ok(()) => {}
            Err(error) if error.is_link() => return,
            Err(error) => {
                tracing::debug!(%unit, %error, "no snapshot this time");
                shared.counters.snapshots_failed.one();
                if !error.is_refusal() {
                    shared.snapshots().units.remove(unit);
                }
            }
        }
    }
    withdraw_ended(shared, &uploader, &units).await;
}

impl Snapshots {
    /// In another session everything is published again: the store may have lost it.
    fn begin_session(&mut self, session: u64) {
        if self.session == session {
            return;
        }
        self.session = session;
        for published in self.units.values_mut() {
            published.manifest = None;
            published.contents = Arc::default();
        }
    }
}

/// The units that run. A job dir that turns out to be one unit as a whole is that, before its first record, too.
fn running(shared: &Shared) -> BTreeSet<UnitId> {
    let known = shared.looks().units();
    let actual = known.into_iter().map(|unit| match shared.journal.get(&unit) {
        Some(_) => unit,
        None => completion::actual_unit(shared, &unit),
    });
    // What was retired while it ran doesn't show any more.
    let is_running = |unit: &UnitId| {
        shared.journal.get(unit).is_none_or(|record| record.state == State::Running)
            && !shared.journal.is_retired(unit)
    };
    actual.filter(is_running).collect()
}

async fn give_way(shared: &Shared, patience: &mut Duration) {
    while shared.has_ready() && !patience.is_zero() {
        sleep(GIVE_WAY_PAUSE).await;
        *patience = patience.saturating_sub(GIVE_WAY_PAUSE);
    }
}

async fn show(shared: &Arc<Shared>, uploader: &Uploader, unit: &UnitId) -> Result<(), ShowError> {
    let work = observe::work_of(&shared.tree, &shared.activity, unit);
    let before = shared.snapshots().units.get(unit).cloned().unwrap_or_default();
    let record = shared.journal.get(unit);
    let generation = record.as_ref().map_or(Generation::FIRST, |record| record.generation);
    let partial = record.as_ref().is_some_and(|record| record.partial);
    let committed = record.and_then(|record| record.committed).map(|committed| committed.manifest);
    let is_shown = before.manifest.is_some() && before.generation == Some(generation);
    // Who has it open for writing may write past us.
    let is_quiet = work.writers == 0 && work.changed == before.changed;
    if is_shown && is_quiet || shared.tree.stat(&unit.root).is_ok_and(|found| found.is_none()) {
        return Ok(());
    }
    let mut unsteady = HashSet::new();
    for _ in 0..ATTEMPTS {
        let described = describe(shared, unit, generation, before.files.clone(), unsteady.clone()).await?;
        let Some((manifest, files)) = described else { return Ok(()) };
        let hash = Hash::of(&manifest.encode());
        let contents: Arc<HashSet<Hash>> = Arc::new(manifest.contents().map(|(hash, _)| hash).collect());
        let shows = if is_shown { before.manifest } else { committed };
        if shows != Some(hash) {
            let (unit, manifest, held) = (unit.clone(), Arc::new(manifest), Some(before.contents.clone()));
            let incarnation = shared.journal.own_incarnation(&unit);
            let lost = false;
            let layer = Layer { unit, incarnation, generation, manifest, hash, lost, partial, held };
            match uploader.show(&layer).await {
                Ok(()) => shared.counters.snapshots_published.one(),
                Err(UploadError::Changed { path } | UploadError::Absent { path, .. })
                    if unsteady.insert(path.clone()) =>
                {
                    continue;
                }
                Err(error) => {
                    let error = ShowError::from(error);
                    if error.is_refusal() {
                        let files = Arc::new(files);
                        shared.snapshots().keep(&layer.unit, Published { files, ..Published::default() });
                    }
                    return Err(error);
                }
            }
        }
        let time_ms = shared.clock.now_ms();
        let files = Arc::new(files);
        let (generation, manifest, changed) = (Some(generation), Some(hash), work.changed);
        let published = Published { generation, manifest, contents, files, changed, time_ms };
        shared.snapshots().keep(unit, published);
        return Ok(());
    }
    Err(ShowError::Unsteady)
}

impl Snapshots {
    fn keep(&mut self, unit: &UnitId, mut published: Published) {
        self.units.remove(unit);
        if self.files() + published.files.len() > FILES {
            published.files = Arc::default();
        }
        self.units.insert(unit.clone(), published);
    }
}

/// The layer as of now. `None`: it doesn't run any more.
async fn describe(
    shared: &Arc<Shared>,
    unit: &UnitId,
    generation: Generation,
    before: Arc<Files>,
    unsteady: HashSet<RelPath>,
) -> Result<Option<(Manifest, Files)>, ShowError> {
    let (worker, unit) = (shared.clone(), unit.clone());
    let work = move |core: &mut Core| -> Result<_, TransferError> {
        let layer = Subjected::of(&worker, &unit)?;
        if layer.state != State::Running || layer.generation != generation {
            return Ok(None);
        }
        let taker = Taker::new(&worker.tree, &unit.root, &before, layer.previous.as_deref(), &unsteady);
        let described = layer.describe(&worker, core, Some(&taker))?;
        let (files, bytes) = taker.into_files();
        worker.counters.snapshot_bytes_hashed.add(bytes);
        Ok(Some((described.manifest, files)))
    };
    Ok(shared.bounds.run(work).await??)
}

/// Units that were shown and don't run any more. The commit of what was shown, or of more, empties the slot by itself, and is waited for. Where none
/// is to come (the unit was removed, or turned out to be as it was committed last), the store is told.
async fn withdraw_ended(shared: &Arc<Shared>, uploader: &Uploader, running: &BTreeSet<UnitId>) {
    let ended: Vec<(UnitId, Option<Generation>)> = {
        let snapshots = shared.snapshots();
        let ended = snapshots.units.iter().filter(|(unit, _)| !running.contains(unit));
        ended.map(|(unit, published)| (unit.clone(), published.generation)).collect()
    };
    for (unit, shown) in ended {
        let record = shared.journal.get(&unit);
        if record.as_ref().is_some_and(|r| matches!(r.state, State::Complete | State::Sealed)) {
            continue;
        }
        let committed = record.and_then(|record| record.committed).map(|committed| committed.generation);
        if let Some(generation) = shown.filter(|shown| committed.is_none_or(|committed| committed < *shown)) {
            let incarnation = shared.journal.own_incarnation(&unit);
            let request = PublishRequest { unit: unit.clone(), generation, manifest: None, incarnation };
            if uploader.link.publish(request).await.is_err() {
                return;
            }
        }
        shared.snapshots().units.remove(&unit);
    }
}
