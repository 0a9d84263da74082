//! The engine: what the daemon and the command line know of it.
//!
//! [`Engine::start`] surveys the spool and starts the [`super::scheduler`]; the methods are the commands. Everything that lasts is
//! in the journal: what is here can be lost at any time, and the next start finds it again.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};

use super::{
    bounds::Bounds,
    completion::{self, Round},
    counters::Counters,
    evict::{EvictError, EvictionRules, Evictor},
    held::Held,
    looks::Looks,
    names::OwnerNames,
    recall::{Contents, RecallError, Recaller},
    scheduler,
    snapshots::Snapshots,
    status::{Rate, Status, UnitError},
    tree::SpoolTree,
    uplink::Uplink,
    upload::Uploader,
};
use crate::{
    chunk::ChunkParams,
    clock::Clock,
    ids::{RelPath, Scope, UnitId},
    journal::{Journal, JournalError, State, UnitRecord},
    layout::{LayoutRules, Reason},
    spool::{Spool, activity::Activity},
};

/// Called when a layer's files have left the spool or come back, while the unit is still frozen, so that whoever knows inodes forgets
/// them. It must not wait for the kernel, which may be waiting for the thaw.
pub type OnEvicted = Box<dyn Fn(&UnitId) + Send + Sync>;

/// What the configuration says about the engine.
#[derive(Debug, Clone)]
pub struct Settings {
    pub rules: LayoutRules,
    pub eviction: EvictionRules,
    /// How often running units are published; `None` = never.
    pub live: Option<Duration>,
    /// Units in transfer at once.
    pub max_transfers: usize,
    /// zstd's.
    pub compression_level: i32,
    /// 0 = unlimited.
    pub bandwidth_bytes_per_s: u64,
    /// For recalls; on the spool's file system.
    pub tmp_dir: PathBuf,
}

/// Everything that the engine works with.
pub struct EngineParts {
    pub journal: Arc<Journal>,
    pub activity: Arc<Activity>,
    /// From [`Activity::new`].
    pub touched: mpsc::UnboundedReceiver<UnitId>,
    pub spool: Arc<Spool>,
    /// None: layers are completed, and nothing is sent.
    pub link: Option<Arc<dyn Uplink>>,
    pub contents: Arc<dyn Contents>,
    pub clock: Arc<dyn Clock>,
    pub on_evicted: OnEvicted,
    pub settings: Settings,
}

/// The running engine. Clones are the same one.
#[derive(Clone)]
pub struct Engine {
    pub(super) shared: Arc<Shared>,
    scheduler: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// What the engine's tasks share.
pub struct Shared {
    pub journal: Arc<Journal>,
    pub activity: Arc<Activity>,
    pub tree: Arc<SpoolTree>,
    pub contents: Arc<dyn Contents>,
    pub clock: Arc<dyn Clock>,
    pub rules: LayoutRules,
    pub settings: Settings,
    pub names: OwnerNames,
    pub bounds: Bounds,
    pub counters: Arc<Counters>,
    pub on_evicted: OnEvicted,
    link: Option<Arc<dyn Uplink>>,
    /// The session with the store, while there is one.
    link_up: watch::Sender<Option<Session>>,
    /// Counts the sessions.
    link_sessions: AtomicU64,
    /// One at a time completes units: two rounds about one unit would be in each other's way.
    completing: Mutex<()>,
    /// One at a time frees what was retired: who asks for it finds it done.
    freeing: Mutex<()>,
    looks: Mutex<Looks>,
    queue: Mutex<Queue>,
    notes: Mutex<Notes>,
    snapshots: Mutex<Snapshots>,
    /// Something is to be done.
    pub wake: Notify,
    /// Counts changes of units' states, for those who wait.
    progress: watch::Sender<u64>,
    stop: watch::Sender<bool>,
}

/// A session with the store.
#[derive(Debug, Clone)]
pub struct Session {
    params: ChunkParams,
    held: Arc<Held>,
}

/// Units that wait for a transfer.
#[derive(Debug, Default)]
pub struct Queue {
    ready: VecDeque<UnitId>,
    /// Ready or in transfer.
    known: HashSet<UnitId>,
    /// Wait until the store can be reached.
    parked: HashSet<UnitId>,
    /// Wait for their pause after a failure.
    paused: Vec<(Instant, UnitId)>,
}

/// What is remembered of units, for decisions and for people. In memory only.
#[derive(Debug, Default)]
struct Notes {
    /// The last change that was seen when the unit was completed: a later one opens it again.
    judged: HashMap<UnitId, Option<Instant>>,
    errors: HashMap<UnitId, UnitError>,
    /// Bytes of sealed layers that aren't committed.
    queued_bytes: HashMap<UnitId, u64>,
    unrecognised: Vec<RelPath>,
    sent: Rate,
}

/// Why a command didn't do it.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Files are open.
    #[error("{unit}: {reason}")]
    NotYet { unit: UnitId, reason: Reason },
    /// It can't be looked at or journaled.
    #[error("{unit}: {why}")]
    Failed { unit: UnitId, why: String },
    #[error(transparent)]
    Evict(EvictError),
    #[error(transparent)]
    Recall(RecallError),
    /// The engine is stopping.
    #[error("the engine is stopping")]
    Stopping,
}

impl Engine {
    /// Starts on the current runtime. The spool is surveyed before it returns, so that it knows every unit that is there.
    pub fn start(parts: EngineParts) -> Result<Self, EngineError> {
        let touched = parts.touched;
        let tree = SpoolTree::new(parts.spool);
        let shared = Arc::new(Shared {
            journal: parts.journal,
            activity: parts.activity,
            tree: Arc::new(tree),
            contents: parts.contents,
            clock: parts.clock,
            rules: parts.settings.rules.clone(),
            names: OwnerNames::default(),
            bounds: Bounds::new(parts.settings.bandwidth_bytes_per_s, parts.settings.compression_level),
            settings: parts.settings,
            counters: Arc::default(),
            on_evicted: parts.on_evicted,
            link: parts.link,
            link_up: watch::Sender::new(None),
            link_sessions: AtomicU64::new(0),
            completing: Mutex::default(),
            freeing: Mutex::default(),
            looks: Mutex::default(),
            queue: Mutex::default(),
            notes: Mutex::default(),
            snapshots: Mutex::default(),
            wake: Notify::new(),
            progress: watch::Sender::new(0),
            stop: watch::Sender::new(false),
        });
        scheduler::resume(&shared)?;
        let task = tokio::spawn(scheduler::run(shared.clone(), touched));
        Ok(Self { shared, scheduler: Arc::new(Mutex::new(Some(task))) })
    }

    /// The store can be reached; `params` are its.
    pub fn link_up(&self, params: ChunkParams) {
        self.shared.link_sessions.fetch_add(1, Ordering::Relaxed);
        self.shared.link_up.send_replace(Some(Session { params, held: Arc::default() }));
    }

    /// The store can't be reached.
    pub fn link_down(&self) {
        self.shared.link_up.send_replace(None);
    }

    /// The journal's records were changed by others than the engine (the store lost commits): looks for work again.
    pub fn journal_changed(&self) {
        scheduler::enqueue_journaled(&self.shared);
    }

    /// These units' last snapshots were made commits by another: what runs here is another generation, and is looked at.
    pub fn overtaken(&self, units: &[UnitId]) {
        let is_running =
            |unit: &&UnitId| self.shared.journal.get(unit).is_some_and(|r| r.state == State::Running);
        for unit in units.iter().filter(is_running) {
            self.shared.looks().changed(unit, Duration::from_millis(self.shared.rules.settle_ms));
            self.shared.note_settled(unit);
        }
        self.shared.progressed();
        self.shared.wake.notify_one();
    }

    /// Offloads these units now, or all, without waiting for them to settle; those whose pidfiles aren't done stay running. What
    /// failed before is tried again at once.
    pub async fn offload_now(&self, units: &[UnitId]) -> Result<Round, CommandError> {
        let rules = LayoutRules { settle_ms: 0, ..self.shared.rules.clone() };
        let all = if units.is_empty() { self.running() } else { units.to_vec() };
        self.shared.unpause();
        self.work(move |shared| completion::run(shared, &all, &rules)).await
    }

    /// Completes a running unit because somebody says so, whatever its pidfiles say. An unrecognised directory becomes a unit by this.
    pub async fn complete(&self, unit: &UnitId) -> Result<(), CommandError> {
        let wanted = unit.clone();
        let round = self.work(move |shared| completion::by_hand(shared, &[wanted])).await?;
        let unit = unit.clone();
        if let Some((_, reason)) = round.not_yet.into_iter().next() {
            return Err(CommandError::NotYet { unit, reason });
        }
        match round.failed.into_iter().next() {
            Some((_, why)) => Err(CommandError::Failed { unit, why }),
            None => Ok(()),
        }
    }

    /// Frees a committed layer now.
    pub async fn evict(&self, unit: &UnitId) -> Result<(), CommandError> {
        let unit = unit.clone();
        self.work(move |shared| shared.evict(&unit).map(drop)).await?.map_err(CommandError::Evict)
    }

    /// Frees the layers of earlier lives that are committed; those in use go later.
    pub async fn free_retired(&self) -> Result<(), CommandError> {
        self.work(|shared| shared.free_retired()).await
    }

    /// Brings an evicted layer back.
    pub async fn recall(&self, unit: &UnitId) -> Result<(), CommandError> {
        let unit = unit.clone();
        self.work(move |shared| shared.recall(&unit).map(drop)).await?.map_err(CommandError::Recall)
    }

    /// Puts a committed file in the place of what the spool has of it, and that into `quarantine`; says where it is, or that nothing was to be done.
    pub async fn mend(
        &self,
        unit: &UnitId,
        path: &RelPath,
        quarantine: PathBuf,
    ) -> Result<Option<PathBuf>, CommandError> {
        let (unit, path) = (unit.clone(), path.clone());
        let mend =
            move |shared: &Arc<Shared>| shared.recaller().mend(&unit, &path, &quarantine, &shared.on_evicted);
        self.work(mend).await?.map_err(CommandError::Recall)
    }

    /// Waits until all complete units are committed; or these units, also those of them that still run. Says which aren't after
    /// `timeout`. Without a results host nothing ever is, and it doesn't wait.
    pub async fn wait(&self, units: &[UnitId], timeout: Duration) -> Vec<UnitId> {
        let mut progress = self.shared.progress.subscribe();
        let done = async {
            loop {
                progress.borrow_and_update();
                if self.shared.uncommitted(units).is_empty() || progress.changed().await.is_err() {
                    return;
                }
            }
        };
        if self.shared.link.is_some() {
            // Whether it was in time shows in what is left.
            let _ = tokio::time::timeout(timeout, done).await;
        }
        self.shared.uncommitted(units)
    }

    /// Everything in figures.
    pub fn status(&self) -> Status {
        self.shared.status(self.running().len())
    }

    /// What a running unit waits for.
    pub fn why(&self, unit: &UnitId) -> Option<String> {
        let (reason, next) = self.shared.looks().reason(unit)?;
        Some(match next {
            Some(next) => format!("{reason}; looked at again in {} s", next.as_secs() + 1),
            None => reason.to_string(),
        })
    }

    /// When a running unit was last published, ms since the epoch.
    pub fn published_ms(&self, unit: &UnitId) -> Option<u64> {
        self.shared.snapshots().time_ms(unit)
    }

    /// How many running units others can see.
    pub fn published(&self) -> usize {
        self.shared.snapshots().len()
    }

    /// All own units: those that run, and those with a record.
    pub fn units(&self) -> Vec<UnitId> {
        let journaled = self.shared.journal.units().into_iter().map(|record| record.unit);
        let mut units: Vec<UnitId> = journaled.chain(self.running()).collect();
        units.sort();
        units.dedup();
        units
    }

    /// Why the last attempt to bring a unit further failed.
    pub fn last_error(&self, unit: &UnitId) -> Option<UnitError> {
        self.shared.notes().errors.get(unit).cloned()
    }

    /// Units that run, whether they have a record or not; also those of whose first change the scheduler hasn't heard yet: what a script
    /// wrote just before it called us counts.
    pub fn running(&self) -> Vec<UnitId> {
        let Shared { journal, tree, .. } = &*self.shared;
        // A job dir that turned out to be one unit as a whole was several before.
        let actual = |unit: UnitId| match journal.get(&unit) {
            Some(_) => unit,
            None => completion::actual_unit(&self.shared, &unit),
        };
        let is_running = |unit: &UnitId| {
            let record = journal.get(unit);
            let is_there = || record.is_some() || tree.stat(&unit.root).is_ok_and(|found| found.is_some());
            record.as_ref().is_none_or(|r| r.state == State::Running) && is_there()
        };
        let may_run = |unit: &UnitId| journal.get(unit).is_none_or(|r| r.state == State::Running);
        let looked_at = self.shared.looks().units().into_iter().map(actual);
        let looked_at: BTreeSet<UnitId> = looked_at.filter(may_run).collect();
        let changed = self.shared.activity.changed_units().into_iter().map(actual);
        let changed: BTreeSet<UnitId> =
            changed.filter(|unit| !looked_at.contains(unit) && is_running(unit)).collect();
        looked_at.into_iter().chain(changed).collect()
    }

    /// Stops: what is on the way is dropped and begins again with the next start. A panic of the engine goes on here.
    pub async fn stop(&self) {
        self.shared.stop.send_replace(true);
        let task = self.scheduler.lock().expect("no code panics under this lock").take();
        let Some(task) = task else { return };
        if let Err(error) = task.await
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }

    /// Whether the scheduler has ended, which it does by itself only when it panicked.
    pub fn has_ended(&self) -> bool {
        let task = self.scheduler.lock().expect("no code panics under this lock");
        task.as_ref().is_none_or(JoinHandle::is_finished)
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Shared>) -> T + Send + 'static,
    ) -> Result<T, CommandError> {
        let shared = self.shared.clone();
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        self.shared.wake.notify_one();
        done.map_err(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => CommandError::Stopping,
        })
    }
}

/// The engine can't start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the spool can't be read: {0}")]
    Spool(io::Error),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The tables, each under its own short lock.
impl Shared {
    pub fn looks(&self) -> MutexGuard<'_, Looks> {
        self.looks.lock().expect("no code panics under this lock")
    }

    pub fn snapshots(&self) -> MutexGuard<'_, Snapshots> {
        self.snapshots.lock().expect("no code panics under this lock")
    }

    /// Which session with the store this is.
    pub fn link_sessions(&self) -> u64 {
        self.link_sessions.load(Ordering::Relaxed)
    }

    pub fn completion_turn(&self) -> MutexGuard<'_, ()> {
        self.completing.lock().expect("a panic in a round ends the engine")
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no code panics under this lock")
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().expect("no code panics under this lock")
    }

    pub fn link_changes(&self) -> watch::Receiver<Option<Session>> {
        self.link_up.subscribe()
    }

    pub fn stops(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// What sends layers, while the store can be reached.
    pub fn uploader(&self) -> Option<Uploader> {
        let Session { params, held } = self.link_up.borrow().clone()?;
        Some(Uploader {
            link: self.link.clone()?,
            tree: self.tree.clone(),
            params,
            held,
            bounds: self.bounds.clone(),
            counters: self.counters.clone(),
        })
    }

    /// A unit's state has changed.
    pub fn progressed(&self) {
        self.progress.send_modify(|count| *count += 1);
    }

    /// Opens the next generation of a unit that was changed after it was judged.
    pub fn reopen(&self, unit: &UnitId) -> Result<(), JournalError> {
        self.journal.touch(unit)?;
        self.looks().changed(unit, Duration::from_millis(self.rules.settle_ms));
        self.progressed();
        Ok(())
    }

    pub fn note_judged(&self, unit: &UnitId, changed: Option<Instant>) {
        self.notes().judged.insert(unit.clone(), changed);
    }

    /// Whether the unit was changed later than it was judged complete.
    pub fn is_changed_since_judged(&self, unit: &UnitId) -> bool {
        let changed = super::observe::work_of(&self.tree, &self.activity, unit).changed;
        match self.notes().judged.get(unit) {
            Some(judged) => changed > *judged,
            None => changed.is_some(),
        }
    }

    pub fn note_error(&self, unit: &UnitId, text: &str) {
        let error = UnitError { unit: unit.clone(), text: text.to_owned(), time_ms: self.clock.now_ms() };
        self.notes().errors.insert(unit.clone(), error);
        self.journal.note_error(unit, Some(text.to_owned()));
    }

    /// The same, said in the log: once, however often it is tried again and fails alike.
    pub fn tell_error(&self, unit: &UnitId, what: &str, why: &str) {
        if self.notes().errors.get(unit).is_none_or(|last| last.text != why) {
            tracing::warn!(%unit, %why, "{what}; it is tried again");
        }
        self.note_error(unit, why);
    }

    pub fn note_queued(&self, unit: &UnitId, bytes: u64) {
        self.notes().queued_bytes.insert(unit.clone(), bytes);
    }

    /// It is committed, or has a new generation: nothing of the old one is worth remembering.
    pub fn note_settled(&self, unit: &UnitId) {
        let mut notes = self.notes();
        notes.errors.remove(unit);
        notes.queued_bytes.remove(unit);
        notes.sent.note(self.counters.bytes_sent.get());
    }

    /// It is committed and nobody has changed it since: the tables needn't know it any more.
    pub fn forget_activity(&self, unit: &UnitId) {
        // Both or neither: a change that is known without its judgement counts as one that came after it.
        if !self.is_changed_since_judged(unit) && self.activity.forget_idle(unit) {
            self.notes().judged.remove(unit);
        }
    }

    pub fn note_unrecognised(&self, tops: Vec<RelPath>) {
        self.notes().unrecognised = tops;
    }

    fn status(&self, running: usize) -> Status {
        let counts = self.journal.counts();
        let (queued, ready, parked) = {
            let queue = self.queue();
            (queue.known.len(), queue.ready.len(), queue.parked.len())
        };
        let mut notes = self.notes();
        notes.sent.note(self.counters.bytes_sent.get());
        let mut errors: Vec<_> = notes.errors.values().cloned().collect();
        errors.sort_by_key(|error| std::cmp::Reverse(error.time_ms));
        Status {
            running,
            complete: counts.of(State::Complete),
            sealed: counts.of(State::Sealed),
            committed: counts.of(State::Committed),
            evicted: counts.of(State::Evicted),
            queue_units: counts.of(State::Complete) + counts.of(State::Sealed),
            in_transfer: queued - ready,
            awaiting_link: parked,
            queue_bytes: notes.queued_bytes.values().sum(),
            sent_bytes_per_s: notes.sent.per_second(),
            counters: self.counters.read(),
            errors,
            unrecognised: notes.unrecognised.clone(),
        }
    }
}

/// The queue of transfers. A unit is in it at most once.
impl Shared {
    /// A complete or sealed unit wants to go on. Without a results host nothing does.
    pub fn enqueue(&self, unit: &UnitId) {
        if self.link.is_none() {
            return;
        }
        let mut queue = self.queue();
        queue.parked.remove(unit);
        if queue.known.insert(unit.clone()) {
            queue.ready.push_back(unit.clone());
        }
        drop(queue);
        self.wake.notify_one();
    }

    /// The next unit to be transferred; it stays known until [`Shared::dequeue`].
    pub fn next_ready(&self) -> Option<UnitId> {
        self.queue().ready.pop_front()
    }

    /// Whether a unit waits for a transfer.
    pub fn has_ready(&self) -> bool {
        !self.queue().ready.is_empty()
    }

    /// Its transfer has ended.
    pub fn dequeue(&self, unit: &UnitId) {
        self.queue().known.remove(unit);
    }

    pub fn park(&self, unit: UnitId) {
        self.queue().parked.insert(unit);
    }

    /// The store can be reached: everything that waited for it goes on.
    pub fn unpark(&self) {
        let parked: Vec<UnitId> = self.queue().parked.drain().collect();
        parked.iter().for_each(|unit| self.enqueue(unit));
    }

    pub fn pause(&self, unit: UnitId, until: Instant) {
        self.queue().paused.push((until, unit));
    }

    /// When the first pause ends.
    pub fn next_pause_end(&self) -> Option<Instant> {
        self.queue().paused.iter().map(|(until, _)| *until).min()
    }

    /// Those whose pause is over go on.
    pub fn end_pauses(&self, now: Instant) {
        let mut over = Vec::new();
        self.queue().paused.retain(|(until, unit)| {
            let stays = *until > now;
            if !stays {
                over.push(unit.clone());
            }
            stays
        });
        over.iter().for_each(|unit| self.enqueue(unit));
    }

    fn unpause(&self) {
        let paused = std::mem::take(&mut self.queue().paused);
        paused.iter().for_each(|(_, unit)| self.enqueue(unit));
    }
}

/// What the commands work on.
impl Shared {
    /// Of `units`, those that aren't committed; of all, those that are complete and aren't.
    fn uncommitted(&self, units: &[UnitId]) -> Vec<UnitId> {
        if units.is_empty() {
            let counts = self.journal.counts();
            if counts.of(State::Complete) + counts.of(State::Sealed) == 0 {
                return Vec::new();
            }
            let states = [State::Complete, State::Sealed].into_iter();
            return states.flat_map(|state| self.journal.by_state(state)).map(|r| r.unit).collect();
        }
        let is_committed = |unit: &UnitId| match self.journal.get(unit) {
            Some(record) => matches!(record.state, State::Committed | State::Evicted),
            // Never heard of, or forgotten because nothing is left of it.
            None => !self.looks().contains(unit),
        };
        units.iter().filter(|unit| !is_committed(unit)).cloned().collect()
    }

    fn evictor(&self) -> Evictor<'_> {
        Evictor { spool: &self.tree, journal: &self.journal, activity: &self.activity }
    }

    /// Deletes what an eviction that was cut off has left, unless somebody is in there already; then the next start does.
    pub fn finish_eviction(&self, unit: &UnitId) -> io::Result<()> {
        let evictor = self.evictor();
        let frozen = self.activity.try_freeze(unit);
        if frozen.is_some() && evictor.has_leftovers(unit)? {
            tracing::info!(%unit, "eviction goes on where it was cut off");
            evictor.delete(unit)?;
        }
        Ok(())
    }

    /// Frees a committed layer; says how many file bytes that were.
    pub fn evict(&self, unit: &UnitId) -> Result<u64, EvictError> {
        let evicted = self.evictor().evict(unit, &self.on_evicted);
        if let Err(EvictError::Changed { .. }) = &evicted {
            // The next generation takes it as it is now.
            self.reopen(unit)?;
        }
        let bytes = evicted?;
        self.counters.layers_evicted.one();
        self.counters.bytes_evicted.add(bytes);
        self.forget_activity(unit);
        tracing::info!(%unit, bytes, "evicted");
        Ok(bytes)
    }

    /// Frees and forgets what is committed of earlier lives, so that their paths are free. What isn't yet, or is in use, waits.
    pub fn free_retired(&self) {
        let _turn = self.freeing.lock().expect("a panic in a round ends the engine");
        let retired = self.journal.retired();
        for unit in &retired {
            let settled = |record: UnitRecord| matches!(record.state, State::Committed | State::Evicted);
            if !self.journal.get(unit).is_some_and(settled) || self.waits_for_below(unit) {
                continue;
            }
            match self.evictor().discharge(unit, &self.on_evicted) {
                Ok(()) => {
                    self.notes().judged.remove(unit);
                    self.note_settled(unit);
                    self.activity.forget_idle(unit);
                    tracing::info!(%unit, "gone from the spool: it was retired");
                }
                Err(
                    EvictError::Busy { .. }
                    | EvictError::NotCommitted { .. }
                    | EvictError::NotFollowed { .. },
                ) => {}
                Err(EvictError::Changed { .. }) => {
                    if let Err(error) = self.reopen(unit) {
                        self.note_error(unit, &error.to_string());
                    }
                }
                Err(error) => {
                    tracing::warn!(%unit, %error, "is retired and can't be freed");
                    self.note_error(unit, &error.to_string());
                }
            }
        }
        if !retired.is_empty() {
            self.progressed();
        }
    }

    /// A directory's loose files go last: the directory goes with them.
    fn waits_for_below(&self, unit: &UnitId) -> bool {
        let below = self.journal.units_below(&unit.root);
        unit.scope == Scope::Loose
            && below.iter().any(|record| record.unit != *unit && self.journal.is_retired(&record.unit))
    }

    fn recaller(&self) -> Recaller<'_> {
        Recaller {
            spool: &self.tree,
            journal: &self.journal,
            activity: &self.activity,
            contents: &*self.contents,
            tmp_dir: &self.settings.tmp_dir,
        }
    }

    fn recall(&self, unit: &UnitId) -> Result<u64, RecallError> {
        let bytes = self.recaller().recall(unit, &self.on_evicted)?;
        self.counters.layers_recalled.one();
        self.counters.bytes_recalled.add(bytes);
        tracing::info!(%unit, bytes, "recalled");
        Ok(bytes)
    }
}
