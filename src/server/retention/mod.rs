//! Retention: what a rule takes is pruned, what was pruned long enough ago is given up, and what was pruned is brought back on request.
//!
//! These are the store's own acts at an administrator's request ([`super::desk`], or a command that has the store to itself); no session can ask for
//! them. `docs/format.md`, "Prune", has the records. Not here: reclaiming what is given up, which is `gc`'s.

mod outcome;
mod plan;
mod rules;
mod undelete;

#[cfg(test)]
mod tests;

use std::io;

use serde_json::{Value, json};

use self::{
    plan::{Candidate, Plan},
    rules::Rule,
};
use crate::{
    catalog::{Record, UnitLife, parts},
    control::{OlderThan, PruneRules},
    limits::RETIRED_UNITS,
    store::{NewPrune, NewPurge, Store, StoreError},
};

pub use undelete::undelete;

/// Exit code for what was done in part.
const WITH_FINDINGS: u8 = 3;
/// Jobs whose units are gathered before they are cut into records.
const UNITS_AHEAD: usize = 4 * RETIRED_UNITS;
const DAY_MS: u64 = 86_400_000;

/// Why nothing, or nothing more, was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub message: String,
    pub hint: Option<String>,
}

impl Refusal {
    fn new(message: impl std::fmt::Display, hint: &str) -> Self {
        Self { message: message.to_string(), hint: Some(hint.to_owned()) }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self { message: error.to_string(), hint: None }
    }
}

/// How a command ended: its exit code, or why it was refused. An error of the outer kind is the caller's, who went away.
pub type Ended = io::Result<Result<u8, Refusal>>;

/// Takes rows.
pub type Tell<'a> = &'a mut dyn FnMut(Value) -> io::Result<()>;

/// What a prune comes to.
#[derive(Debug, Default)]
struct Sums {
    jobs: u64,
    units: u64,
    bytes: u64,
    pruned_units: u64,
    kept_units: u64,
    purged_units: u64,
}

/// Prints the plan, and carries it out unless that is all that is wanted: first what was pruned long enough ago is given up, then what the rule takes
/// is pruned. `by` is who asks.
pub fn prune(store: &Store, asked: &PruneRules, by: &str, tell: Tell<'_>) -> Ended {
    let now_ms = store.now_ms();
    let rule = Rule::of(asked, now_ms);
    let grace_before_ms = (now_ms + 1).saturating_sub(u64::from(asked.grace_days) * DAY_MS);
    let plan = match Plan::make(store, &rule, grace_before_ms) {
        Ok(plan) => plan,
        Err(error) => return Ok(Err(error.into())),
    };
    let mut pruning = Pruning { store, plan: &plan, rule: &rule, by, tell, sums: Sums::default() };
    if let Err(refusal) = pruning.print()? {
        return Ok(Err(refusal));
    }
    if !asked.dry_run {
        if let Some(refusal) = without_evidence(asked, &rule, &plan) {
            return Ok(Err(refusal));
        }
        if let Err(refusal) = pruning.run()? {
            return Ok(Err(refusal));
        }
    }
    let exit = if pruning.sums.kept_units > 0 { WITH_FINDINGS } else { 0 };
    pruning.summary(asked)?;
    Ok(Ok(exit))
}

/// A rule that takes everything is more often a slip, or a clock that is wrong, than what is meant.
fn without_evidence(asked: &PruneRules, rule: &Rule, plan: &Plan) -> Option<Refusal> {
    let hint = "`--dry-run` shows what would go; `--yes` says that it is meant";
    let narrows = asked.owner.is_some() || asked.pattern.is_some();
    if asked.yes || rule.is_never() {
        return None;
    }
    if asked.older_than == Some(OlderThan::Days(0)) && asked.unread_for_days.is_none() && !narrows {
        return Some(Refusal::new("`--older-than 0` is every job, and nothing was pruned", hint));
    }
    let going = plan.jobs.iter().filter(|job| job.kept.is_none()).count() as u64;
    let is_all = going > 0 && going == plan.all_jobs;
    is_all.then(|| {
        Refusal::new(format!("that is every job in the store ({going}), and nothing was pruned"), hint)
    })
}

/// A prune under way.
struct Pruning<'a> {
    store: &'a Store,
    plan: &'a Plan,
    rule: &'a Rule,
    by: &'a str,
    tell: Tell<'a>,
    sums: Sums,
}

/// What goes on, or what can't.
type Step = io::Result<Result<(), Refusal>>;

/// The value, or the refusal to the caller.
macro_rules! or_refuse {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return Ok(Err(Refusal::from(error))),
        }
    };
}

impl Pruning<'_> {
    fn print(&mut self) -> Step {
        for line in &self.plan.purges {
            if let Some((record, life)) = or_refuse!(self.plan.life(self.store, *line)) {
                self.tell_purge(&record, &life, "planned", None, None)?;
            }
        }
        for number in 0..self.plan.jobs.len() {
            let kept = self.plan.jobs[number].kept.as_deref();
            self.sums.jobs += u64::from(kept.is_none());
            for candidate in or_refuse!(self.plan.units(self.store, number)) {
                match kept {
                    Some(why) => self.tell_kept(&candidate, why)?,
                    None => {
                        self.sums.units += 1;
                        self.sums.bytes += candidate.bytes;
                        self.tell_unit(&candidate, "planned", None, None)?;
                    }
                }
            }
        }
        Ok(Ok(()))
    }

    fn run(&mut self) -> Step {
        for lines in self.plan.purges.chunks(UNITS_AHEAD) {
            if let Err(refusal) = self.purge(lines)? {
                return Ok(Err(refusal));
            }
        }
        let mut ahead = Vec::new();
        for number in (0..self.plan.jobs.len()).filter(|number| self.plan.jobs[*number].kept.is_none()) {
            ahead.extend(or_refuse!(self.plan.units(self.store, number)));
            if ahead.len() >= UNITS_AHEAD
                && let Err(refusal) = self.prune(std::mem::take(&mut ahead))?
            {
                return Ok(Err(refusal));
            }
        }
        self.prune(ahead)
    }

    fn purge(&mut self, lines: &[(crate::ids::Seq, u32)]) -> Step {
        let mut lives = Vec::new();
        for line in lines {
            lives.extend(or_refuse!(self.plan.life(self.store, *line)));
        }
        lives.sort_by(|(_, a), (_, b)| a.cmp(b));
        let of: Vec<UnitLife> = lives.iter().map(|(_, life)| life.clone()).collect();
        for part in parts(&of) {
            let wanted = NewPurge { by: self.by.to_owned(), lives: part.clone() };
            let made = self.store.purge(wanted);
            for (record, life) in lives.iter().filter(|(_, life)| part.contains(life)) {
                match &made {
                    Ok(purge) => {
                        self.sums.purged_units += 1;
                        self.tell_purge(record, life, "purged", Some(purge), None)?;
                    }
                    Err(error) if error.is_callers() => {
                        self.sums.kept_units += 1;
                        self.tell_purge(record, life, "kept", None, Some(error.to_string()))?;
                    }
                    Err(_) => {}
                }
            }
            if let Err(error) = made
                && !error.is_callers()
            {
                return Ok(Err(error.into()));
            }
        }
        Ok(Ok(()))
    }

    /// In records that are whole; where one is refused, job by job.
    fn prune(&mut self, mut units: Vec<Candidate>) -> Step {
        units.sort_by(|a, b| a.unit.cmp(&b.unit));
        for part in parts(&units) {
            match self.record(&part) {
                Ok(record) => self.tell_pruned(&part, &record)?,
                Err(error) if error.is_callers() => {
                    for job in part.chunk_by(|a, b| a.unit.root.first(1) == b.unit.root.first(1)) {
                        match self.record(job) {
                            Ok(record) => self.tell_pruned(job, &record)?,
                            Err(error) if error.is_callers() => {
                                for candidate in job {
                                    self.tell_kept(candidate, &error.to_string())?;
                                }
                            }
                            Err(error) => return Ok(Err(error.into())),
                        }
                    }
                }
                Err(error) => return Ok(Err(error.into())),
            }
        }
        Ok(Ok(()))
    }

    fn record(&self, part: &[Candidate]) -> Result<Record, StoreError> {
        let units = part.iter().map(|candidate| (candidate.unit.clone(), candidate.last)).collect();
        self.store.prune(NewPrune { by: self.by.to_owned(), rule: self.rule.text.clone(), units })
    }

    fn tell_pruned(&mut self, part: &[Candidate], record: &Record) -> io::Result<()> {
        self.sums.pruned_units += part.len() as u64;
        part.iter().try_for_each(|candidate| self.tell_unit(candidate, "pruned", Some(record), None))
    }

    fn tell_kept(&mut self, candidate: &Candidate, why: &str) -> io::Result<()> {
        self.sums.kept_units += 1;
        self.tell_unit(candidate, "kept", None, Some(why))
    }

    fn tell_unit(
        &mut self,
        candidate: &Candidate,
        result: &str,
        record: Option<&Record>,
        note: Option<&str>,
    ) -> io::Result<()> {
        (self.tell)(json!({
            "v": 1,
            "kind": "prune",
            "unit": candidate.unit.to_string(),
            "result": result,
            "incarnation": self.store.life_number(&candidate.unit, candidate.incarnation),
            "outcome": candidate.outcome.map(|outcome| outcome.name()),
            "layers": candidate.layers,
            "bytes": candidate.bytes,
            "committed_seq": candidate.last.0,
            "committed_ms": candidate.last_ms,
            "read_ms": self.store.last_read_ms(&candidate.unit),
            "seq": record.map(|record| record.seq.0),
            "note": note,
        }))
    }

    fn tell_purge(
        &mut self,
        record: &Record,
        life: &UnitLife,
        result: &str,
        made: Option<&Record>,
        note: Option<String>,
    ) -> io::Result<()> {
        (self.tell)(json!({
            "v": 1,
            "kind": "purge",
            "unit": life.unit.to_string(),
            "result": result,
            "incarnation": self.store.life_number(&life.unit, life.incarnation),
            "pruned_seq": record.seq.0,
            "pruned_ms": record.time_ms,
            "seq": made.map(|made| made.seq.0),
            "note": note,
        }))
    }

    fn summary(&mut self, asked: &PruneRules) -> io::Result<()> {
        let Sums { jobs, units, bytes, pruned_units, kept_units, purged_units } = self.sums;
        (self.tell)(json!({
            "v": 1,
            "kind": "retention",
            "rule": self.rule.text,
            "dry_run": asked.dry_run,
            "all_jobs": self.plan.all_jobs,
            "planned_jobs": jobs,
            "planned_units": units,
            "planned_bytes": bytes,
            "planned_purges": self.plan.purges.len(),
            "pruned_units": pruned_units,
            "kept_units": kept_units,
            "purged_units": purged_units,
            "grace_days": asked.grace_days,
        }))
    }
}
