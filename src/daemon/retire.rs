//! `retire`: what is committed of units is hidden from the tree, on every host, so that a new job of the same name can begin.
//!
//! The store does it (`docs/format.md`, "Retirement"); here it is found out what is meant and whether it may be, and asked for in parts that are each
//! whole. Afterwards this host has taken it in, too.

use std::{collections::BTreeSet, io, time::Duration};

use serde_json::{Value, json};

use super::{
    Host,
    answer::{Ended, Output, Refusal},
    lives,
};
use crate::{
    catalog::parts,
    fuse::Notices,
    ids::{RelPath, Scope, Seq, UnitId},
    journal::{LayerHead, State},
    layout,
    wire::{RetireUnit, link::LinkError},
};

/// How long this host may take to follow the catalog up to what it asked for.
const FOLLOW_GRACE: Duration = Duration::from_secs(10);
/// Exit code for what was done in part.
const WITH_FINDINGS: u8 = 3;

/// One command.
pub(super) struct Retiring<'a> {
    pub host: &'a Host,
    pub notices: Notices,
    pub dry_run: bool,
}

/// A unit as the catalog has it.
#[derive(Debug, Clone)]
struct Candidate {
    unit: UnitId,
    /// Its last commit.
    seq: Seq,
    time_ms: u64,
    bytes: u64,
    layers: usize,
}

impl Candidate {
    fn of(unit: UnitId, layers: &[LayerHead]) -> Option<Self> {
        let seq = layers.iter().map(LayerHead::seq).max()?;
        let time_ms = layers.iter().map(|layer| layer.time_ms).max()?;
        let bytes = layers.iter().map(|layer| layer.bytes).sum();
        Some(Self { unit, seq, time_ms, bytes, layers: layers.len() })
    }
}

impl AsRef<UnitId> for Candidate {
    fn as_ref(&self) -> &UnitId {
        &self.unit
    }
}

impl Retiring<'_> {
    /// All units at and below these paths, or none. Where all was retired before, by this command when it was cut off perhaps, it is done.
    pub async fn paths(&self, paths: &[RelPath], output: &mut Output) -> io::Result<Ended> {
        if let Err(refusal) = self.may() {
            return Ok(Err(refusal));
        }
        let running: BTreeSet<UnitId> = self.host.engine.running().into_iter().collect();
        let (mut wanted, mut ended) = (Vec::new(), Vec::new());
        for path in paths {
            match self.named(path, &running) {
                Ok(named) if named.is_empty() => ended.extend(self.ended(path)),
                Ok(named) => wanted.extend(named),
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
        wanted.sort_by(|a, b| a.unit.cmp(&b.unit));
        wanted.dedup_by(|a, b| a.unit == b.unit);
        ended.sort_by(|(a_seq, a), (b_seq, b)| (a_seq, &a.unit).cmp(&(b_seq, &b.unit)));
        ended.dedup_by(|(_, a), (_, b)| a.unit == b.unit);
        for part in ended.chunk_by(|(a, _), (b, _)| a == b) {
            let units: Vec<Candidate> = part.iter().map(|(_, candidate)| candidate.clone()).collect();
            self.done(&units, part[0].0, output).await?;
        }
        for candidate in &wanted {
            self.tell(candidate, "planned", None, None, output).await?;
        }
        if self.dry_run {
            return Ok(Ok(0));
        }
        for part in parts(&wanted) {
            match self.ask(&part).await {
                Ok(seq) => self.done(&part, seq, output).await?,
                Err(error) => return Ok(Err(refused(&error))),
            }
        }
        Ok(Ok(0))
    }

    /// Every unit whose last commit is older than `before_ms`, part by part, however many there are. What can't be is told, and stays.
    pub async fn before(&self, before_ms: u64, output: &mut Output) -> io::Result<Ended> {
        if let Err(refusal) = self.may() {
            return Ok(Err(refusal));
        }
        let running: BTreeSet<UnitId> = self.host.engine.running().into_iter().collect();
        let mut exit = 0;
        let mut last: Option<UnitId> = None;
        loop {
            let rows = self.host.journal.layers_after(last.as_ref());
            let Some((unit, _)) = rows.last() else { return Ok(Ok(exit)) };
            last = Some(unit.clone());
            let mut wanted = Vec::new();
            for (unit, layers) in rows.into_iter().filter(|(unit, _)| !is_shared(unit)) {
                let Some(candidate) = Candidate::of(unit, &layers).filter(|c| c.time_ms < before_ms) else {
                    continue;
                };
                match self.blocked(&candidate.unit, &running) {
                    Some(why) => {
                        exit = WITH_FINDINGS;
                        self.tell(&candidate, "kept", None, Some(why), output).await?;
                    }
                    None => wanted.push(candidate),
                }
            }
            for part in parts(&wanted) {
                match self.part(&part, output).await? {
                    Ok(0) => {}
                    Ok(code) => exit = code,
                    Err(refusal) => return Ok(Err(refusal)),
                }
            }
        }
    }

    async fn part(&self, part: &[Candidate], output: &mut Output) -> io::Result<Ended> {
        if self.dry_run {
            for candidate in part {
                self.tell(candidate, "planned", None, None, output).await?;
            }
            return Ok(Ok(0));
        }
        match self.ask(part).await {
            Ok(seq) => self.done(part, seq, output).await.map(|()| Ok(0)),
            // One of them isn't as it was seen: the others go by themselves.
            Err(LinkError::Rejected(why)) => {
                if let [candidate] = part {
                    self.tell(candidate, "kept", None, Some(why), output).await?;
                    return Ok(Ok(WITH_FINDINGS));
                }
                let mut exit = 0;
                for candidate in part {
                    match Box::pin(self.part(std::slice::from_ref(candidate), output)).await? {
                        Ok(code) => exit = exit.max(code),
                        refused => return Ok(refused),
                    }
                }
                Ok(Ok(exit))
            }
            Err(error) => Ok(Err(refused(&error))),
        }
    }

    /// Whether it can be asked for at all.
    fn may(&self) -> Result<(), Refusal> {
        let Some(link) = &self.host.link else {
            return Err(Refusal::new("results_host is localhost or blank: nothing is committed anywhere"));
        };
        let status = link.status();
        if !status.connected && !self.dry_run {
            let why = status.last_error.unwrap_or_else(|| "still connecting".to_owned());
            return Err(Refusal::new(format!("the store can't be reached, and nothing was retired: {why}"))
                .hint("`resultsfs status` shows the connection; try again when it is up"));
        }
        if !self.host.journal.may_delete() && !self.dry_run {
            return Err(Refusal::new("this host has no right `delete`, and nothing was retired").hint(
                "run it on a host that has it: on the results host `serve --allow add,overlay,delete` gives it",
            ));
        }
        Ok(())
    }

    /// The committed units that a path stands for, if all of them may be retired. None where all that there was is retired.
    fn named(&self, path: &RelPath, running: &BTreeSet<UnitId>) -> Result<Vec<Candidate>, Refusal> {
        let mut found = Vec::new();
        let _ = self.host.journal.visit_layers(path, &mut |unit, layers| {
            found.extend(Candidate::of(unit, layers));
            std::ops::ControlFlow::Continue(())
        });
        if path.is_root() {
            return Err(
                Refusal::new("that is the whole results tree").hint("`--before DATE` retires what is old")
            );
        }
        let here = running.iter().filter(|unit| unit.root.is_below(path)).cloned();
        let units = found.iter().map(|candidate| candidate.unit.clone()).chain(here);
        for unit in units {
            if let Some(why) = self.blocked(&unit, running) {
                return Err(Refusal::new(format!("{unit}: {why}")).hint(
                    "`resultsfs offload --wait` commits what is complete, `resultsfs complete` says that it is; nothing was retired",
                ));
            }
        }
        match found.is_empty() && self.host.journal.retired_below(path).is_empty() {
            true => Err(self.nothing_at(path)),
            false => Ok(found),
        }
    }

    /// The units at and below a path that were retired, as they were then, and by which record.
    fn ended(&self, path: &RelPath) -> Vec<(Seq, Candidate)> {
        let units = self.host.journal.retired_below(path).into_iter();
        units
            .filter_map(|unit| {
                let life = self.host.journal.past_lives(&unit).pop()?;
                Some((life.closed_by, Candidate::of(unit, &life.layers)?))
            })
            .collect()
    }

    /// Why a path stands for no unit.
    fn nothing_at(&self, path: &RelPath) -> Refusal {
        let holds = |unit: &UnitId| {
            unit.root != *path && self.host.journal.layers(unit).iter().any(|l| l.entries > 0)
        };
        if let Some(unit) = self.host.known_unit_of(path).filter(holds) {
            return Refusal::new(format!(
                "{path}: is in the unit {unit}, which is retired as a whole or not at all"
            ))
            .hint("name the unit, or its job");
        }
        Refusal::new(format!("{path}: nothing is committed there")).hint("`resultsfs jobs` lists the units")
    }

    /// Why a unit can't be retired now.
    fn blocked(&self, unit: &UnitId, running: &BTreeSet<UnitId>) -> Option<String> {
        let journal = &self.host.journal;
        if journal.is_retired(unit) {
            return Some(format!("an earlier one isn't gone from this host yet: {}", self.host.why(unit)?));
        }
        let state = journal.get(unit).map(|record| record.state);
        match state {
            Some(State::Committed | State::Evicted) => {}
            Some(state) => return Some(format!("is {} on this host, and not committed", state.name())),
            None if running.contains(unit) => {
                return Some("is running on this host, and not committed".to_owned());
            }
            None => {}
        }
        if self.host.activity.snapshot(unit).handles > 0 {
            return Some("files of it are open on this host".to_owned());
        }
        let live = journal.snapshots_of(unit).into_iter().next()?;
        Some(format!("is running on {}", live.host_name))
    }

    async fn ask(&self, part: &[Candidate]) -> Result<Seq, LinkError> {
        let Some(link) = &self.host.link else {
            return Err(LinkError::NotConnected("no results host".into()));
        };
        let units = part.iter().map(|c| RetireUnit { unit: c.unit.clone(), seq: c.seq }).collect();
        Ok(link.retire(units).await?.seq)
    }

    /// The store has done it; here it is done, too, when this returns, but for what is open.
    async fn done(&self, part: &[Candidate], seq: Seq, output: &mut Output) -> io::Result<()> {
        let journal = &self.host.journal;
        let end = tokio::time::Instant::now() + FOLLOW_GRACE;
        while journal.head().is_none_or(|(_, head)| head.seq < seq) && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let freed = self.host.engine.free_retired().await;
        let notices = self.notices.clone();
        for candidate in part.iter().filter(|candidate| journal.get(&candidate.unit).is_none()) {
            notices.tell(self.host.fs.retired_elsewhere(&candidate.unit));
        }
        // Whoever asked may begin the next job now.
        let _ = tokio::task::spawn_blocking(move || notices.flush()).await;
        for candidate in part {
            let note = match &freed {
                Err(error) => Some(error.to_string()),
                Ok(()) if journal.is_retired(&candidate.unit) => self.host.why(&candidate.unit),
                Ok(()) => None,
            };
            self.tell(candidate, "retired", Some(seq), note, output).await?;
        }
        Ok(())
    }

    async fn tell(
        &self,
        candidate: &Candidate,
        result: &str,
        seq: Option<Seq>,
        note: Option<String>,
        output: &mut Output,
    ) -> io::Result<()> {
        let past = lives::number(self.host, &candidate.unit);
        let incarnation = if seq.is_some() { past.saturating_sub(1) } else { past };
        let item: Value = json!({
            "v": 1,
            "kind": "retirement",
            "unit": candidate.unit.to_string(),
            "result": result,
            "incarnation": incarnation,
            "layers": candidate.layers,
            "bytes": candidate.bytes,
            "committed_seq": candidate.seq.0,
            "committed_ms": candidate.time_ms,
            "seq": seq.map(|seq| seq.0),
            "note": note,
        });
        output.item(item).await
    }
}

/// `hosts/` and what is directly in its directories is of all their tasks, and no job's.
fn is_shared(unit: &UnitId) -> bool {
    unit.scope == Scope::Loose && unit.root.components().next() == Some(layout::HOSTS.as_bytes())
}

fn refused(error: &LinkError) -> Refusal {
    match error {
        LinkError::Rejected(_) => Refusal::new(format!("{error}; nothing more was retired")),
        _ => Refusal::new(format!("{error}; whether it was done isn't known"))
            .hint("`resultsfs explain` says it when the connection is up again; doing it twice does no harm"),
    }
}
