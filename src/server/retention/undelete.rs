//! `undelete`: what was pruned or retired shows again, while nothing has come after it.

use std::{collections::BTreeMap, io};

use serde_json::json;

use super::{Ended, Refusal, Tell, plan::each_record};
use crate::{
    catalog::{Record, RecordBody, UnitLife, parts},
    ids::{Incarnation, RelPath, UnitId},
    store::{NewUndelete, Store, StoreError},
};

/// A unit's life that has ended last, and how.
#[derive(Clone, Debug)]
struct Candidate {
    life: UnitLife,
    record: Record,
}

impl AsRef<UnitId> for Candidate {
    fn as_ref(&self) -> &UnitId {
        &self.life.unit
    }
}

/// What there is at some paths.
#[derive(Debug, Default)]
struct Found {
    ended: BTreeMap<UnitId, Candidate>,
    /// Shows, with its life.
    shown: BTreeMap<UnitId, Incarnation>,
}

/// Brings back the units at and below these paths: all that were pruned or retired, or none. What shows already is done.
pub fn undelete(store: &Store, paths: &[RelPath], dry_run: bool, by: &str, tell: Tell<'_>) -> Ended {
    let found = match find(store, paths) {
        Ok(found) => found,
        Err(error) => return Ok(Err(error.into())),
    };
    if let Some(refusal) = paths.iter().find_map(|path| refusal(store, path, &found)) {
        return Ok(Err(refusal));
    }
    for (unit, life) in &found.shown {
        tell_shown(store, unit, *life, tell)?;
    }
    let ended: Vec<Candidate> = found.ended.into_values().collect();
    for candidate in &ended {
        tell_candidate(store, candidate, "planned", None, tell)?;
    }
    if dry_run {
        return Ok(Ok(0));
    }
    for part in parts(&ended) {
        let lives = part.iter().map(|candidate| candidate.life.clone()).collect();
        match store.undelete(NewUndelete { by: by.to_owned(), lives }) {
            Ok(record) => {
                for candidate in &part {
                    tell_candidate(store, candidate, "undeleted", Some(&record), tell)?;
                }
            }
            Err(error) => {
                return Ok(Err(Refusal::new(format!("{error}; nothing more was undeleted"), EXPORT)));
            }
        }
    }
    Ok(Ok(0))
}

const EXPORT: &str = "`resultsfs explain` on a host with a mount tells the incarnations, and `resultsfs export --incarnation N` gives one back as plain files";

/// Whatever shows, or has ended last, at and below these paths.
fn find(store: &Store, paths: &[RelPath]) -> Result<Found, StoreError> {
    let mut found = Found::default();
    let is_wanted = |unit: &UnitId| paths.iter().any(|path| unit.root.is_below(path));
    each_record(store, |record| {
        for unit in record.retired().iter().filter(|unit| is_wanted(unit)) {
            // Not undone since, and nothing has ended since.
            let is_last = store.life(unit).incarnation == Incarnation(record.seq.0);
            if let Some(incarnation) = store.ended_by(unit, record.seq).filter(|_| is_last) {
                let life = UnitLife { unit: unit.clone(), incarnation };
                found.ended.insert(unit.clone(), Candidate { life, record: record.clone() });
            }
        }
        if let Some(commit) = record.commit().filter(|commit| is_wanted(&commit.unit))
            && store.shows(record.seq, commit)
        {
            found.shown.insert(commit.unit.clone(), commit.incarnation);
        }
        Ok(())
    })?;
    // What runs on after an end is said of the end.
    found.shown.retain(|unit, _| !found.ended.contains_key(unit));
    Ok(found)
}

/// Why what is at a path can't be brought back.
fn refusal(store: &Store, path: &RelPath, found: &Found) -> Option<Refusal> {
    if path.is_root() {
        return Some(Refusal::new("that is the whole results tree", "name jobs or units"));
    }
    let below = |unit: &&UnitId| unit.root.is_below(path);
    let mut ended = found.ended.iter().filter(|(unit, _)| below(unit)).peekable();
    if ended.peek().is_none() && !found.shown.keys().any(|unit| below(&unit)) {
        return Some(Refusal::new(
            format!("{path}: nothing was pruned or retired there"),
            "give a job or a unit, by its path from the top of the results tree",
        ));
    }
    ended.find_map(|(unit, Candidate { life, .. })| {
        let why = store.not_undeleted(life)?;
        let number = store.life_number(unit, life.incarnation);
        let is_purged = store.ended(unit, life.incarnation).is_some_and(|ended| ended.purged.0 > 0);
        let message = format!("{unit}, incarnation {number}: {why}; nothing was undeleted");
        Some(match is_purged {
            true => Refusal { message, hint: None },
            false => {
                let get = format!("`resultsfs export --incarnation {number} --to DIR {unit}`, on a host with a mount, gives it back as plain files");
                Refusal { message, hint: Some(get) }
            }
        })
    })
}

fn tell_shown(store: &Store, unit: &UnitId, life: Incarnation, tell: Tell<'_>) -> io::Result<()> {
    tell(json!({
        "v": 1,
        "kind": "undelete",
        "unit": unit.to_string(),
        "result": "shown",
        "incarnation": store.life_number(unit, life),
    }))
}

fn tell_candidate(
    store: &Store,
    candidate: &Candidate,
    result: &str,
    made: Option<&Record>,
    tell: Tell<'_>,
) -> io::Result<()> {
    let Candidate { life, record } = candidate;
    let rule = match &record.body {
        RecordBody::Prune(prune) => Some(&prune.rule),
        _ => None,
    };
    tell(json!({
        "v": 1,
        "kind": "undelete",
        "unit": life.unit.to_string(),
        "result": result,
        "incarnation": store.life_number(&life.unit, life.incarnation),
        "ended": if rule.is_some() { "pruned" } else { "retired" },
        "ended_seq": record.seq.0,
        "ended_ms": record.time_ms,
        "rule": rule,
        "seq": made.map(|made| made.seq.0),
    }))
}
