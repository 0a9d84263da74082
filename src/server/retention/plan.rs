//! The plan of a prune: which jobs go, and what was pruned before and is to be given up. The value that is printed is the one that is carried out.
//!
//! A job, with all its execution dirs and loose files, goes as a whole; so does a task's directory. `hosts/` and what is directly in its directories is
//! no job's and stays.
//!
//! The catalog is read from its beginning, in parts: of each part of the jobs only what they have is in memory. The plan itself takes a number a
//! layer that goes.

use std::collections::HashMap;

use super::{
    outcome,
    rules::{Rule, Verdict},
};
use crate::{
    catalog::{Commit, Record, RecordBody, UnitLife},
    control::Outcome,
    ids::{Incarnation, RelPath, Scope, Seq, UnitId},
    layout,
    limits::RECORDS_PER_PUSH,
    store::{Store, StoreError},
};

/// Jobs that are looked at together.
const JOBS_AT_ONCE: usize = 64 << 10;
/// Components of a task's path: `hosts/<host>/<task>`.
const TASK_DEPTH: usize = 3;

/// What will be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Pruned lives whose time of grace is over: a prune's record, and which of its units.
    pub purges: Vec<(Seq, u32)>,
    /// The newest commits of the layers that go, job after job.
    heads: Vec<Seq>,
    pub jobs: Vec<Job>,
    /// Jobs that there are.
    pub all_jobs: u64,
}

/// One that goes, or would.
#[derive(Debug)]
pub(super) struct Job {
    /// Where its layers end among all.
    end: usize,
    /// If it was looked at.
    pub outcome: Option<Outcome>,
    /// Why it stays.
    pub kept: Option<Box<str>>,
}

/// A unit of a job, as the catalog had it when the plan was made.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub unit: UnitId,
    pub incarnation: Incarnation,
    pub last: Seq,
    pub last_ms: u64,
    pub layers: usize,
    pub bytes: u64,
    pub outcome: Option<Outcome>,
}

impl AsRef<UnitId> for Candidate {
    fn as_ref(&self) -> &UnitId {
        &self.unit
    }
}

/// What a job has.
#[derive(Debug, Default)]
struct Found {
    heads: Vec<Seq>,
    latest_ms: u64,
    /// When something of it was read last, at the latest.
    read_ms: u64,
}

impl Plan {
    /// What `rule` takes, and what was pruned before `grace_before_ms`.
    pub fn make(store: &Store, rule: &Rule, grace_before_ms: u64) -> Result<Self, StoreError> {
        Self::in_parts(store, rule, grace_before_ms, store.units() as u64 / JOBS_AT_ONCE as u64 + 1)
    }

    /// The same, with the jobs in so many parts.
    pub fn in_parts(
        store: &Store,
        rule: &Rule,
        grace_before_ms: u64,
        parts: u64,
    ) -> Result<Self, StoreError> {
        let mut plan = Self::default();
        plan.find_purges(store, grace_before_ms)?;
        for part in 0..parts {
            let found = found(store, |job| is_in(job, part, parts))?;
            plan.all_jobs += found.len() as u64;
            plan.choose(store, rule, found)?;
        }
        Ok(plan)
    }

    /// The units of each job, and why that stays if it does; in the order of the plan.
    pub fn units(&self, store: &Store, number: usize) -> Result<Vec<Candidate>, StoreError> {
        let start = number.checked_sub(1).map_or(0, |before| self.jobs[before].end);
        let Job { end, outcome, .. } = self.jobs[number];
        let mut units: Vec<Candidate> = Vec::new();
        for seq in &self.heads[start..end] {
            let Some(record) = store.record(*seq)? else { continue };
            let Some(commit) = record.commit() else { continue };
            match units.iter_mut().find(|candidate| candidate.unit == commit.unit) {
                Some(candidate) => candidate.add(&record, commit),
                None => {
                    let mut candidate = Candidate::of(commit, outcome);
                    candidate.add(&record, commit);
                    units.push(candidate);
                }
            }
        }
        units.sort_by(|a, b| a.unit.cmp(&b.unit));
        Ok(units)
    }

    /// The life that a line of [`Plan::purges`] means, with the prune's record; nothing if it isn't so any more.
    pub fn life(
        &self,
        store: &Store,
        (seq, at): (Seq, u32),
    ) -> Result<Option<(Record, UnitLife)>, StoreError> {
        let Some(record) = store.record(seq)? else { return Ok(None) };
        let life = record.retired().get(at as usize).and_then(|unit| {
            let incarnation = store.ended_by(unit, seq)?;
            Some(UnitLife { unit: unit.clone(), incarnation })
        });
        Ok(life.map(|life| (record, life)))
    }

    fn find_purges(&mut self, store: &Store, before_ms: u64) -> Result<(), StoreError> {
        each_record(store, |record| {
            if !matches!(record.body, RecordBody::Prune(_)) || record.time_ms >= before_ms {
                return Ok(());
            }
            for (at, unit) in (0u32..).zip(record.retired()) {
                let Some(incarnation) = store.ended_by(unit, record.seq) else { continue };
                let Some(ended) = store.ended(unit, incarnation) else { continue };
                // Given up, and nothing has come since.
                if ended.purged > ended.last {
                    continue;
                }
                let is_late = ended.last > record.seq;
                let last = if is_late { store.record(ended.last)? } else { None };
                if last.is_none_or(|last| last.time_ms < before_ms) {
                    self.purges.push((record.seq, at));
                }
            }
            Ok(())
        })
    }

    fn choose(
        &mut self,
        store: &Store,
        rule: &Rule,
        found: HashMap<RelPath, Found>,
    ) -> Result<(), StoreError> {
        let running: HashMap<RelPath, String> = store
            .slots()
            .all()
            .into_iter()
            .filter_map(|snapshot| Some((job_of(&snapshot.unit)?, snapshot.host_name)))
            .collect();
        let mut found: Vec<(RelPath, Found)> = found.into_iter().collect();
        found.sort_by(|(a_job, a), (b_job, b)| (a.latest_ms, a_job).cmp(&(b.latest_ms, b_job)));
        for (job, Found { heads, latest_ms, read_ms }) in found {
            let (outcome, goes) = match rule.verdict(&job, latest_ms, read_ms) {
                Verdict::Stays => continue,
                Verdict::Goes => (None, true),
                Verdict::GoesIf(wanted) => {
                    let outcome = outcome_of(store, &heads)?;
                    (Some(outcome), outcome == wanted)
                }
            };
            if goes {
                self.heads.extend(heads);
                let kept = running.get(&job).map(|host| format!("is running on {host}").into());
                self.jobs.push(Job { end: self.heads.len(), outcome, kept });
            }
        }
        Ok(())
    }
}

impl Candidate {
    fn of(commit: &Commit, outcome: Option<Outcome>) -> Self {
        let Commit { unit, incarnation, .. } = commit.clone();
        Self { unit, incarnation, last: Seq(0), last_ms: 0, layers: 0, bytes: 0, outcome }
    }

    fn add(&mut self, record: &Record, commit: &Commit) {
        self.layers += 1;
        self.bytes += commit.bytes;
        if record.seq > self.last {
            (self.last, self.last_ms) = (record.seq, record.time_ms);
        }
    }
}

/// Failed if any of its layers is.
fn outcome_of(store: &Store, heads: &[Seq]) -> Result<Outcome, StoreError> {
    for seq in heads {
        let record = store.record(*seq)?;
        let commit = record.as_ref().and_then(Record::commit);
        if commit.is_some_and(|commit| outcome::of(store, commit) == Outcome::Failed) {
            return Ok(Outcome::Failed);
        }
    }
    Ok(Outcome::Passed)
}

/// The jobs that are wanted, with what shows of them.
fn found(store: &Store, is_wanted: impl Fn(&RelPath) -> bool) -> Result<HashMap<RelPath, Found>, StoreError> {
    let mut found: HashMap<RelPath, Found> = HashMap::new();
    each_record(store, |record| {
        let Some(commit) = record.commit() else { return Ok(()) };
        let Some(job) = job_of(&commit.unit).filter(|job| is_wanted(job)) else { return Ok(()) };
        if store.shows(record.seq, commit) {
            let job = found.entry(job).or_default();
            job.heads.push(record.seq);
            job.latest_ms = job.latest_ms.max(record.time_ms);
            job.read_ms = job.read_ms.max(store.last_read_ms(&commit.unit));
        }
        Ok(())
    })?;
    Ok(found)
}

/// What goes together with a unit.
fn job_of(unit: &UnitId) -> Option<RelPath> {
    let in_hosts = unit.root.components().next() == Some(layout::HOSTS.as_bytes());
    match (in_hosts, unit.scope) {
        (false, _) => Some(unit.root.first(1)),
        (true, Scope::Loose) => None,
        (true, Scope::Tree) => Some(unit.root.first(TASK_DEPTH)),
    }
}

/// Whether a job is in this part of all.
fn is_in(job: &RelPath, part: u64, parts: u64) -> bool {
    let hash = blake3::hash(job.as_bytes());
    let number = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 of 32 bytes"));
    parts == 1 || number % parts == part
}

/// Every record up to where the catalog stood at the beginning.
pub(super) fn each_record(
    store: &Store,
    mut tell: impl FnMut(&Record) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let end = store.head().seq;
    let mut from = Seq(0);
    while from < end {
        let records = store.records_after(from, RECORDS_PER_PUSH)?;
        let Some(last) = records.last() else { break };
        from = last.seq;
        records.iter().filter(|record| record.seq <= end).try_for_each(&mut tell)?;
    }
    Ok(())
}
