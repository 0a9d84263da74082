//! Completion: a round of looks at running units, and what it makes of those that are complete.
//!
//! Order: every complete unit of the round is on the disk (one syncfs), then all are journaled in one transaction, and then it
//! is made sure that nobody was changing one in between: whoever asks the journal from then on opens the next generation
//! himself, but an operation that had asked before may still be writing. A unit in which one was found is opened again.

use std::{
    collections::BTreeSet,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    engine::Shared,
    observe::{self, Finding, Observation},
    survey,
};
use crate::{
    ids::{RelPath, UnitId},
    journal::{CompleteHow, JournalError, State},
    layout::{LayoutRules, Reason, Verdict},
    manifest::Body,
    spool::activity::Snapshot,
};

/// Units judged in one round: one syncfs and one transaction for all, but not so many that the first waits for long.
pub const UNITS_PER_ROUND: usize = 256;
/// A look that failed is tried again after this.
const RETRY_PAUSE: Duration = Duration::from_secs(30);
/// Operations are short. One that isn't over after this is taken for a change.
const OPERATIONS_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked whether operations are over.
const OPERATIONS_PAUSE: Duration = Duration::from_millis(2);

/// A unit that is complete.
#[derive(Debug, Clone)]
struct Candidate {
    unit: UnitId,
    how: CompleteHow,
    activity: Snapshot,
}

/// What became of each unit that was asked about.
#[derive(Debug, Default)]
pub struct Round {
    /// Journaled as complete.
    pub completed: Vec<UnitId>,
    /// Still running, and why.
    pub not_yet: Vec<(UnitId, Reason)>,
    /// Couldn't be looked at or journaled.
    pub failed: Vec<(UnitId, String)>,
}

/// Judges `units` by `rules` and completes those that are. Blocking.
pub fn run(shared: &Arc<Shared>, units: &[UnitId], rules: &LayoutRules) -> Round {
    let _turn = shared.completion_turn();
    let mut round = Round::default();
    let mut candidates = Vec::new();
    for unit in &running(shared, units) {
        let now_ms = shared.clock.now_ms();
        let committed = pidfiles_elsewhere(shared, unit);
        let seen = observe::observe(&shared.tree, &shared.activity, unit, &committed, rules, now_ms);
        candidates.extend(sort_out(shared, seen, rules, &mut round));
    }
    complete(shared, candidates, &mut round);
    round
}

/// The names directly in a partial unit that its last commit has. Who parses an archived job again has no more pidfiles here than the parser's.
fn pidfiles_elsewhere(shared: &Shared, unit: &UnitId) -> BTreeSet<Vec<u8>> {
    let record = shared.journal.get(unit).filter(|record| record.partial);
    let committed = record.and_then(|record| record.committed);
    let manifest = committed.and_then(|c| shared.journal.manifest(&c.manifest).ok().flatten());
    let is_here = |path: &RelPath| path.depth() == 1 && !shared.journal.is_gone(unit, path);
    let entries = manifest.iter().flat_map(|manifest| manifest.entries());
    let files =
        entries.filter(|e| matches!(e.body, Body::File { .. } | Body::Link { .. }) && is_here(&e.path));
    files.filter_map(|e| Some(e.path.name()?.to_vec())).collect()
}

/// Completes `units` because somebody said so, whatever their pidfiles say; only open files hold them up. Blocking.
pub fn by_hand(shared: &Arc<Shared>, units: &[UnitId]) -> Round {
    let _turn = shared.completion_turn();
    let mut round = Round::default();
    let mut candidates = Vec::new();
    for unit in &running(shared, units) {
        let activity = observe::work_of(&shared.tree, &shared.activity, unit);
        if let Ok(None) = shared.tree.stat(&unit.root) {
            round.failed.push((unit.clone(), "nothing of it is on this host".to_owned()));
        } else if activity.writers > 0 {
            round.not_yet.push((unit.clone(), Reason::Writers { writers: activity.writers }));
        } else {
            let how = CompleteHow { lost: false, by_hand: true };
            candidates.push(Candidate { unit: unit.clone(), how, activity });
        }
    }
    complete(shared, candidates, &mut round);
    round
}

/// Those of `units` that run, each once. Before its first record, a job dir may turn out to be one unit as a whole.
fn running(shared: &Shared, units: &[UnitId]) -> BTreeSet<UnitId> {
    let mut running = BTreeSet::new();
    for unit in units {
        let record = shared.journal.get(unit);
        let actual = if record.is_some() { unit.clone() } else { actual_unit(shared, unit) };
        let is_running = shared.journal.get(&actual).is_none_or(|record| record.state == State::Running);
        if actual != *unit || !is_running {
            shared.looks().remove(unit);
        }
        if is_running {
            running.insert(actual);
        }
    }
    running
}

/// What `unit` is before its first record: a part of a job dir that is one unit as a whole is that.
pub fn actual_unit(shared: &Shared, unit: &UnitId) -> UnitId {
    let place = survey::place(&unit.root, true, &shared.tree, &shared.journal, &shared.rules);
    place.unit().unwrap_or_else(|| unit.clone())
}

/// Notes what the look says; a complete unit is a candidate.
fn sort_out(shared: &Shared, seen: Observation, rules: &LayoutRules, round: &mut Round) -> Option<Candidate> {
    let Observation { unit, activity, finding } = seen;
    let verdict = match finding {
        Finding::Judged(verdict) => verdict,
        Finding::Gone => gone(shared, &unit, &activity, rules, round)?,
        Finding::Failed(error) => {
            fail(shared, unit, &error.to_string(), round);
            return None;
        }
    };
    match verdict {
        Verdict::Complete { lost } => {
            Some(Candidate { unit, how: CompleteHow { lost, by_hand: false }, activity })
        }
        Verdict::NotYet { reason, recheck_in_ms } => {
            shared.looks().not_yet(&unit, reason.clone(), recheck_in_ms.map(Duration::from_millis));
            round.not_yet.push((unit, reason));
            None
        }
    }
}

/// A unit whose directory isn't in the spool: forgotten if it never reached the store and deletes nothing of others, otherwise complete as it
/// is, which tells the store what was deleted.
fn gone(
    shared: &Shared,
    unit: &UnitId,
    activity: &Snapshot,
    rules: &LayoutRules,
    round: &mut Round,
) -> Option<Verdict> {
    let record = shared.journal.get(unit);
    if record.is_some_and(|record| record.committed.is_some()) || !shared.journal.gone(unit).is_empty() {
        let quiet = activity.changed.map_or(Duration::MAX, |at| at.elapsed());
        let missing = Duration::from_millis(rules.settle_ms).saturating_sub(quiet);
        if missing.is_zero() {
            return Some(Verdict::Complete { lost: false });
        }
        let quiet_ms = rules.settle_ms - missing.as_millis() as u64;
        let reason = Reason::Settling { quiet_ms, settle_ms: rules.settle_ms };
        return Some(Verdict::NotYet { reason, recheck_in_ms: Some(missing.as_millis() as u64) });
    }
    shared.looks().remove(unit);
    match shared.journal.forget(unit) {
        Ok(()) => _ = shared.activity.forget_idle(unit),
        Err(error) => fail(shared, unit.clone(), &error.to_string(), round),
    }
    None
}

fn fail(shared: &Shared, unit: UnitId, why: &str, round: &mut Round) {
    shared.tell_error(&unit, "can't be completed", why);
    shared.looks().look_at(&unit, Some(Instant::now() + RETRY_PAUSE));
    round.failed.push((unit, why.to_owned()));
}

/// Makes the candidates durable and journals them.
fn complete(shared: &Arc<Shared>, candidates: Vec<Candidate>, round: &mut Round) {
    if candidates.is_empty() {
        return;
    }
    // Before the journal says so: who hears of a change that was judged already, and finds the unit complete, must not open it again.
    candidates.iter().for_each(|c| shared.note_judged(&c.unit, c.activity.changed));
    if let Err(why) = make_durable(shared, &candidates) {
        for candidate in candidates {
            fail(shared, candidate.unit, &why, round);
        }
        return;
    }
    for candidate in candidates {
        if is_undisturbed(shared, &candidate) {
            tracing::info!(unit = %candidate.unit, lost = candidate.how.lost, "complete");
            shared.looks().remove(&candidate.unit);
            shared.progressed();
            shared.enqueue(&candidate.unit);
            round.completed.push(candidate.unit);
        } else if let Err(error) = shared.reopen(&candidate.unit) {
            fail(shared, candidate.unit, &error.to_string(), round);
        } else {
            let reason = Reason::Settling { quiet_ms: 0, settle_ms: shared.rules.settle_ms };
            round.not_yet.push((candidate.unit, reason));
        }
    }
}

fn make_durable(shared: &Shared, candidates: &[Candidate]) -> Result<(), String> {
    shared.tree.sync().map_err(|e| format!("{}: can't be synced: {e}", shared.tree.path().display()))?;
    let units: Vec<_> = candidates.iter().map(|c| (c.unit.clone(), c.how)).collect();
    shared.journal.complete(&units).map_err(|error: JournalError| error.to_string())
}

/// Whether nobody has changed the unit since it was judged. Waits until the operations are over that may have asked the journal before.
fn is_undisturbed(shared: &Shared, candidate: &Candidate) -> bool {
    let deadline = Instant::now() + OPERATIONS_TIMEOUT;
    loop {
        let now = observe::work_of(&shared.tree, &shared.activity, &candidate.unit);
        if now.writers > 0 || now.changed != candidate.activity.changed {
            return false;
        }
        if now.operations == 0 {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(OPERATIONS_PAUSE);
    }
}
