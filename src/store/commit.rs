//! Commits, many at a time: whoever comes while a batch is being synced waits and goes with the next one, so that a hundred layers
//! that end together cost two or three syncs and not three hundred.

use std::{
    collections::HashMap,
    sync::{Condvar, Mutex, MutexGuard},
};

use super::{
    Store, StoreError,
    check::Checked,
    prune::{self, NewPrune, NewPurge, NewUndelete},
    retire::{NewRetirement, retirement},
    wait::wait,
};
use crate::{
    catalog::{Commit, Head, Reclaimed, Record, RecordBody},
    ids::{Generation, Hash, HostUuid, Incarnation, UnitId},
    limits,
};

/// A layer to be entered in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCommit {
    pub host: HostUuid,
    pub host_name: String,
    pub unit: UnitId,
    pub generation: Generation,
    pub manifest: Hash,
    pub lost: bool,
    /// Who makes a dead host's last snapshot this commit; of the host's own none.
    pub adopted_by: Option<String>,
    /// The unit's life that the layer is of.
    pub incarnation: Incarnation,
}

type Answer = Result<Option<Record>, StoreError>;

/// What waits for the next batch.
#[derive(Debug)]
pub(super) enum Request {
    /// A checked commit.
    Commit(NewCommit, Checked),
    Retire(NewRetirement),
    Prune(NewPrune),
    Undelete(NewUndelete),
    Purge(NewPurge),
    /// That these packs are gone: what is needed of them was copied, synced and entered in the index.
    Reclaim(Vec<u32>),
    /// That what was appended be synced and entered in the index.
    Sync,
}

#[derive(Debug, Default)]
struct Waiting {
    tickets: u64,
    requests: Vec<(u64, Request)>,
    answers: HashMap<u64, Answer>,
    /// Somebody is at it.
    led: bool,
}

/// Those who wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nothing panics while it holds the queue's lock")
    }

    /// Takes part in a batch; `run` answers one for all.
    pub(super) fn take_part(
        &self,
        request: Request,
        run: impl Fn(&[(u64, Request)]) -> Vec<Answer>,
    ) -> Answer {
        let mut waiting = self.lock();
        waiting.tickets += 1;
        let ticket = waiting.tickets;
        waiting.requests.push((ticket, request));
        loop {
            if let Some(answer) = waiting.answers.remove(&ticket) {
                return answer;
            }
            waiting = match waiting.led {
                true => wait(&self.waiting, &self.changed, waiting),
                false => self.lead(waiting, &run),
            };
        }
    }

    fn lead<'a>(
        &'a self,
        mut waiting: MutexGuard<'a, Waiting>,
        run: &impl Fn(&[(u64, Request)]) -> Vec<Answer>,
    ) -> MutexGuard<'a, Waiting> {
        waiting.led = true;
        let requests = std::mem::take(&mut waiting.requests);
        drop(waiting);
        let batch = Batch { queue: self, requests, answers: Vec::new() };
        batch.run(run);
        self.lock()
    }
}

/// A batch under way. Its tickets are answered however it ends: a panic in the midst must not leave others waiting for ever.
struct Batch<'a> {
    queue: &'a Queue,
    requests: Vec<(u64, Request)>,
    answers: Vec<Answer>,
}

impl Batch<'_> {
    fn run(mut self, run: &impl Fn(&[(u64, Request)]) -> Vec<Answer>) {
        self.answers = run(&self.requests);
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.lock();
        let mut answers = std::mem::take(&mut self.answers).into_iter();
        for (ticket, _) in &self.requests {
            waiting.answers.insert(*ticket, answers.next().unwrap_or(Err(StoreError::PreviousIo)));
        }
        waiting.led = false;
        drop(waiting);
        self.queue.changed.notify_all();
    }
}

impl Store {
    /// Enters a layer in the catalog. Everything that its manifest names was appended before. When this returns, all of it is durable.
    /// What was committed before with the same generation and manifest is answered with its record, so that a host may ask again.
    /// Blocks while it syncs.
    pub fn commit(&self, commit: NewCommit) -> Result<Record, StoreError> {
        self.healthy()?;
        check_text(&commit)?;
        let _inside = self.gate.enter();
        self.has_life(&commit, &[])?;
        if let Some(record) = self.catalog.latest(commit.host, &commit.unit, commit.incarnation)?
            && let Some(record) = repeated(&record, &commit)?
        {
            self.restored(&commit.manifest)?;
            return Ok(record);
        }
        let checked = self.check_manifest(&commit.manifest).map_err(|e| self.lacking(e))?;
        let manifest = commit.manifest;
        let record = self.queue.take_part(Request::Commit(commit, checked), |batch| self.run_batch(batch))?;
        self.leases.ended(&manifest);
        self.restored(&manifest)?;
        Ok(record.expect("a commit is answered with a record"))
    }

    /// Syncs all that was appended and writes the index.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.healthy()?;
        self.queue.take_part(Request::Sync, |batch| self.run_batch(batch)).map(|_| ())
    }

    pub(super) fn run_batch(&self, batch: &[(u64, Request)]) -> Vec<Answer> {
        match self.durably(|| self.write_batch(batch)) {
            Ok(answers) => answers,
            Err(error) => {
                tracing::error!(%error, "the store can't write any more");
                vec![Err(error)]
            }
        }
    }

    /// Packs, then catalog, then index: each only speaks of what is durable in the one before.
    fn write_batch(&self, batch: &[(u64, Request)]) -> Result<Vec<Answer>, StoreError> {
        let flush = batch.iter().any(|(_, request)| matches!(request, Request::Sync))
            || self.index.waiting() >= self.tuning.flush_objects;
        let (unsynced, packs) = {
            let mut writer = self.writer();
            if flush {
                self.index.begin_flush();
            }
            writer.take_unsynced()
        };
        unsynced.sync(&*self.disk, &self.layout)?;
        let (answers, records) = self.number(batch)?;
        let entered = if records.is_empty() { Ok(()) } else { self.catalog.append(&records, packs) };
        match entered {
            Ok(()) if records.is_empty() => {}
            Ok(()) => {
                self.heads.send_replace(self.catalog.head());
                self.overtake(&records);
            }
            // Nobody in the batch is answered with a record; what was synced stays, and the index may speak of it.
            Err(full @ StoreError::Full { .. }) => {
                self.flush_index(batch, Vec::new())?;
                return Ok(batch.iter().map(|_| Err(full.again())).collect());
            }
            Err(error) => return Err(error),
        }
        self.flush_index(batch, answers)
    }

    /// Where there is no room for the index it is written later, and only who asked for that needs to know.
    fn flush_index(
        &self,
        batch: &[(u64, Request)],
        mut answers: Vec<Answer>,
    ) -> Result<Vec<Answer>, StoreError> {
        match self.index.finish_flush() {
            Err(full @ StoreError::Full { .. }) => {
                let asked = answers.iter_mut().zip(batch);
                let asked = asked.filter(|(_, (_, request))| matches!(request, Request::Sync));
                asked.for_each(|(answer, _)| *answer = Err(full.again()));
            }
            flushed => flushed?,
        }
        Ok(answers)
    }

    /// Gives each request its record, in order, and says which of them are new.
    fn number(&self, batch: &[(u64, Request)]) -> Result<(Vec<Answer>, Vec<Record>), StoreError> {
        let mut head = self.catalog.head();
        let mut answers = Vec::with_capacity(batch.len());
        let mut records: Vec<Record> = Vec::new();
        for (_, request) in batch {
            let made = match request {
                Request::Sync => Ok(None),
                Request::Reclaim(packs) => Ok(Some(RecordBody::Reclaim(Reclaimed { packs: packs.clone() }))),
                Request::Commit(commit, checked) => match self.committed_before(commit, &records)? {
                    Ok(Some(before)) => {
                        answers.push(Ok(Some(before)));
                        continue;
                    }
                    Ok(None) => Ok(Some(commit_body(commit, checked))),
                    Err(late) => Err(late),
                },
                Request::Retire(wanted) => self
                    .may_end(&wanted.units, &records)
                    .map(|()| Some(RecordBody::Retire(retirement(wanted)))),
                Request::Prune(wanted) => {
                    self.may_end(&wanted.units, &records).map(|()| Some(prune::pruned(wanted)))
                }
                Request::Undelete(wanted) => {
                    self.may_undelete(&wanted.lives, &records).map(|()| Some(prune::undeleted(wanted)))
                }
                Request::Purge(wanted) => {
                    self.may_purge(&wanted.lives, &records).map(|()| Some(prune::purged(wanted)))
                }
            };
            answers.push(made.map(|body| {
                let record = new_record(head, self.clock.now_ms(), body?);
                head = record.link();
                records.push(record.clone());
                Some(record)
            }));
        }
        Ok((answers, records))
    }

    /// The unit has, or had, the life that a commit is of, also after `records`, which come before it in the batch.
    fn has_life(&self, commit: &NewCommit, records: &[Record]) -> Result<(), StoreError> {
        let NewCommit { unit, incarnation, .. } = commit;
        let is_undone = || {
            let is_back = |record: &Record| record.undeleted().iter().any(|life| life.unit == *unit);
            records.iter().any(is_back) && self.catalog.life(unit).incarnation == *incarnation
        };
        match self.catalog.has_life(unit, *incarnation) && !is_undone() {
            true => Ok(()),
            false => Err(StoreError::Incarnation { unit: unit.clone(), incarnation: incarnation.0 }),
        }
    }

    /// The record that a commit has already, or why it comes too late; `records` are those before it in the batch.
    fn committed_before(
        &self,
        commit: &NewCommit,
        records: &[Record],
    ) -> Result<Result<Option<Record>, StoreError>, StoreError> {
        if let Err(gone) = self.has_life(commit, records) {
            return Ok(Err(gone));
        }
        let in_batch = records.iter().rev().find(|r| r.commit().is_some_and(|c| same_layer(c, commit)));
        let last = match in_batch {
            Some(record) => Some(record.clone()),
            None => self.catalog.latest(commit.host, &commit.unit, commit.incarnation)?,
        };
        Ok(last.map(|last| repeated(&last, commit)).transpose().map(Option::flatten))
    }
}

/// Names within their limits.
pub(super) fn check_text(commit: &NewCommit) -> Result<(), StoreError> {
    check_name(&commit.host_name)?;
    match commit.adopted_by.iter().all(|name| is_good(name)) {
        true => Ok(()),
        false => Err(StoreError::Text("name of who adopts")),
    }
}

/// A host's name within its limits.
pub(super) fn check_name(name: &str) -> Result<(), StoreError> {
    if is_good(name) { Ok(()) } else { Err(StoreError::Text("host name")) }
}

fn is_good(text: &str) -> bool {
    !text.is_empty() && text.len() <= limits::TEXT_BYTES
}

fn same_layer(committed: &Commit, commit: &NewCommit) -> bool {
    committed.host == commit.host
        && committed.unit == commit.unit
        && committed.incarnation == commit.incarnation
}

/// What the layer's last record means for a commit: the same again, nothing (`None`), or that it comes too late.
fn repeated(last: &Record, commit: &NewCommit) -> Result<Option<Record>, StoreError> {
    let before = last.commit().expect("a layer's last record is a commit");
    match commit.generation.cmp(&before.generation) {
        std::cmp::Ordering::Greater => Ok(None),
        std::cmp::Ordering::Equal if commit.manifest == before.manifest => Ok(Some(last.clone())),
        _ => Err(StoreError::Generation {
            unit: commit.unit.clone(),
            sent: commit.generation,
            last: before.generation,
        }),
    }
}

fn commit_body(commit: &NewCommit, checked: &Checked) -> RecordBody {
    RecordBody::Commit(Commit {
        host: commit.host,
        host_name: commit.host_name.clone(),
        unit: commit.unit.clone(),
        generation: commit.generation,
        manifest: commit.manifest,
        lost: commit.lost,
        adopted_by: commit.adopted_by.clone(),
        bytes: checked.bytes,
        entries: checked.entries,
        incarnation: commit.incarnation,
    })
}

fn new_record(head: Head, time_ms: u64, body: RecordBody) -> Record {
    Record { seq: head.seq.next(), prev: head.chain, time_ms, body }
}
