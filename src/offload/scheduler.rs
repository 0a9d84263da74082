//! The scheduler: one task that decides what happens next, and starts it.
//!
//! It waits for changes of units, for looks that are due, for transfers that end, and for the connection; it never does work
//! itself. At most one round of looks and one round of eviction go on at a time, and `max_transfers` transfers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::{
    completion,
    engine::{EngineError, Shared},
    evict::{self, EvictError},
    recall, snapshots, survey,
    transfer::{self, Outcome},
};
use crate::{ids::UnitId, journal::State};

/// A transfer that failed is tried again after this.
const RETRY_PAUSE: Duration = Duration::from_secs(30);
/// A transfer that lost its connection while there is one (again) is tried again after this.
const LINK_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether layers are old enough, or the disk full enough, to evict.
const EVICTION_EVERY: Duration = Duration::from_secs(10);
/// After it has heard of changes it doesn't listen for this long: who writes thousands of files a second would wake it at each, and
/// pay for that. Shorter than any settle time that makes sense.
const DEAF: Duration = Duration::from_millis(20);
/// With nothing to wait for, the loop wakes up this often; it is no poll, only a number for the timer.
const IDLE: Duration = Duration::from_secs(3600);

/// What one task of the scheduler did.
enum Done {
    Round,
    Reopening,
    Eviction,
    Freeing,
    Snapshots,
    Transfer(UnitId, Outcome),
}

/// Takes up everything where the last run left it. Blocking.
pub fn resume(shared: &Shared) -> Result<(), EngineError> {
    recall::clear_scratch(&shared.settings.tmp_dir);
    for record in shared.journal.by_state(State::Evicted) {
        shared.finish_eviction(&record.unit).map_err(EngineError::Spool)?;
    }
    shared.free_retired();
    let mut found =
        survey::survey(&shared.tree, &shared.journal, &shared.rules).map_err(EngineError::Spool)?;
    if let Some((_, error)) = found.unread.pop() {
        return Err(EngineError::Spool(error));
    }
    shared.note_unrecognised(found.unrecognised);
    let running = shared.journal.by_state(State::Running).into_iter().map(|record| record.unit);
    let unknown = found.units.into_iter().filter(|unit| shared.journal.get(unit).is_none());
    let now = Instant::now();
    for unit in running.chain(unknown) {
        shared.looks().look_at(&unit, Some(now));
    }
    enqueue_journaled(shared);
    Ok(())
}

/// Everything that is complete or sealed wants to be transferred, oldest first.
pub fn enqueue_journaled(shared: &Shared) {
    let mut waiting = shared.journal.by_state(State::Complete);
    waiting.extend(shared.journal.by_state(State::Sealed));
    waiting.sort_by_key(|record| record.complete_ms);
    waiting.iter().for_each(|record| shared.enqueue(&record.unit));
}

/// Runs until it is told to stop.
pub async fn run(shared: Arc<Shared>, mut touched: mpsc::UnboundedReceiver<UnitId>) {
    let mut scheduler =
        Scheduler { shared: shared.clone(), tasks: JoinSet::new(), active: Active::default() };
    let (mut link, mut stop) = (shared.link_changes(), shared.stops());
    let mut eviction = interval(EVICTION_EVERY);
    eviction.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut live = interval(shared.settings.live.unwrap_or(IDLE));
    live.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut listens_at = Instant::now();
    loop {
        scheduler.start_what_is_due();
        let listens = listens_at <= Instant::now();
        let next = scheduler.next_time();
        let next = if listens { next } else { next.min(listens_at) };
        tokio::select! {
            Some(unit) = touched.recv(), if listens => {
                scheduler.touched(&unit);
                while let Ok(unit) = touched.try_recv() {
                    scheduler.touched(&unit);
                }
                listens_at = Instant::now() + DEAF;
            }
            Some(done) = scheduler.tasks.join_next() => scheduler.ended(done),
            () = sleep_until(next.into()) => {}
            () = shared.wake.notified() => {}
            Ok(()) = link.changed() => {
                shared.unpark();
                scheduler.start_snapshots();
            }
            _ = eviction.tick() => {
                scheduler.start_eviction();
                scheduler.free_retired();
            }
            _ = live.tick() => scheduler.start_snapshots(),
            Ok(()) = stop.changed() => break,
        }
    }
    scheduler.tasks.shutdown().await;
}

struct Scheduler {
    shared: Arc<Shared>,
    tasks: JoinSet<Done>,
    active: Active,
}

/// What goes on.
#[derive(Debug, Default)]
struct Active {
    round: bool,
    eviction: bool,
    freeing: bool,
    snapshots: bool,
    transfers: usize,
}

impl Scheduler {
    /// Something changed in a unit. Whoever changed it has opened its next generation, unless it was just being completed.
    fn touched(&mut self, unit: &UnitId) {
        let shared = &self.shared;
        shared.activity.heard(unit);
        let record = shared.journal.get(unit);
        let is_running = record.as_ref().is_none_or(|record| record.state == State::Running);
        if is_running {
            shared.looks().changed(unit, Duration::from_millis(shared.rules.settle_ms));
        } else if shared.is_changed_since_judged(unit) {
            let (shared, unit) = (shared.clone(), unit.clone());
            self.tasks.spawn_blocking(move || {
                if let Err(error) = shared.reopen(&unit) {
                    shared.note_error(&unit, &error.to_string());
                }
                Done::Reopening
            });
        }
    }

    fn start_what_is_due(&mut self) {
        self.shared.end_pauses(Instant::now());
        self.start_round();
        while self.active.transfers < self.shared.settings.max_transfers.max(1) {
            let Some(unit) = self.shared.next_ready() else { break };
            self.active.transfers += 1;
            let shared = self.shared.clone();
            self.tasks.spawn(async move {
                let outcome = transfer::run(&shared, &unit).await;
                Done::Transfer(unit, outcome)
            });
        }
    }

    fn start_round(&mut self) {
        if self.active.round {
            return;
        }
        let due = self.shared.looks().take_due(completion::UNITS_PER_ROUND);
        if due.is_empty() {
            return;
        }
        self.active.round = true;
        let shared = self.shared.clone();
        self.tasks.spawn_blocking(move || {
            completion::run(&shared, &due, &shared.rules);
            Done::Round
        });
    }

    fn start_eviction(&mut self) {
        if self.active.eviction || self.shared.journal.counts().of(State::Committed) == 0 {
            return;
        }
        self.active.eviction = true;
        let shared = self.shared.clone();
        self.tasks.spawn_blocking(move || {
            evict_what_may_go(&shared);
            Done::Eviction
        });
    }

    fn free_retired(&mut self) {
        if self.active.freeing || self.shared.journal.retired().is_empty() {
            return;
        }
        self.active.freeing = true;
        let shared = self.shared.clone();
        self.tasks.spawn_blocking(move || {
            shared.free_retired();
            Done::Freeing
        });
    }

    fn start_snapshots(&mut self) {
        if self.active.snapshots || self.shared.settings.live.is_none() || self.shared.uploader().is_none() {
            return;
        }
        self.active.snapshots = true;
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            snapshots::round(&shared).await;
            Done::Snapshots
        });
    }

    fn ended(&mut self, done: Result<Done, JoinError>) {
        match done {
            Ok(Done::Round) => self.active.round = false,
            Ok(Done::Reopening) => {}
            Ok(Done::Eviction) => self.active.eviction = false,
            Ok(Done::Freeing) => self.active.freeing = false,
            Ok(Done::Snapshots) => self.active.snapshots = false,
            Ok(Done::Transfer(unit, outcome)) => {
                self.active.transfers -= 1;
                self.transferred(unit, outcome);
            }
            // A worker that panicked may have left anything half done: the engine stops rather than going on half alive.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => {}
            },
        }
    }

    fn transferred(&mut self, unit: UnitId, outcome: Outcome) {
        let shared = self.shared.clone();
        shared.dequeue(&unit);
        match outcome {
            Outcome::Done => {
                shared.note_settled(&unit);
                shared.forget_activity(&unit);
                // It was found to be lost by the store while it counted as being sent.
                if shared
                    .journal
                    .get(&unit)
                    .is_some_and(|r| matches!(r.state, State::Complete | State::Sealed))
                {
                    shared.enqueue(&unit);
                }
                if shared.journal.is_retired(&unit) {
                    self.free_retired();
                }
            }
            Outcome::Changed => {
                shared.note_settled(&unit);
                let settle = Duration::from_millis(shared.rules.settle_ms);
                if shared.journal.get(&unit).is_some_and(|record| record.state == State::Running) {
                    shared.looks().changed(&unit, settle);
                } else {
                    // Complete again already, while its old generation was on the way.
                    shared.enqueue(&unit);
                }
            }
            Outcome::AwaitsLink if shared.uploader().is_some() => {
                shared.pause(unit, Instant::now() + LINK_PAUSE);
            }
            Outcome::AwaitsLink => shared.park(unit),
            Outcome::Failed(why) => {
                shared.counters.transfers_failed.one();
                shared.tell_error(&unit, "transfer failed", &why);
                shared.pause(unit, Instant::now() + RETRY_PAUSE);
            }
        }
        shared.progressed();
    }

    fn next_time(&self) -> Instant {
        let look = if self.active.round { None } else { self.shared.looks().next() };
        let times = [look, self.shared.next_pause_end()];
        times.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + IDLE)
    }
}

/// Evicts layers that are old, and further ones, oldest first, while the disk is too full.
fn evict_what_may_go(shared: &Shared) {
    let rules = &shared.settings.eviction;
    let plan = evict::plan(shared.journal.by_state(State::Committed), rules, shared.clock.now_ms());
    let (old, young) = plan.units.split_at(plan.old);
    for unit in old {
        try_evict(shared, unit);
    }
    let mut surplus = match evict::surplus_bytes(&shared.tree, rules) {
        Ok(surplus) => surplus,
        Err(error) => {
            tracing::warn!(%error, "the spool's use can't be told");
            0
        }
    };
    shared.bounds.set_urgent(surplus > 0);
    // By what was freed and not by what the file system says, which may free later.
    for unit in young {
        if surplus == 0 {
            return;
        }
        surplus = surplus.saturating_sub(try_evict(shared, unit));
    }
}

/// Says how many file bytes were freed.
fn try_evict(shared: &Shared, unit: &UnitId) -> u64 {
    match shared.evict(unit) {
        Ok(bytes) => return bytes,
        // It is tried again in the next round.
        Err(EvictError::Busy { .. } | EvictError::NotCommitted { .. }) => {}
        Err(error) => {
            tracing::warn!(%unit, %error, "can't be evicted");
            shared.note_error(unit, &error.to_string());
        }
    }
    0
}
