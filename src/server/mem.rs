//! A store in memory, for tests of sessions and links. It checks what the real one checks as far as sessions can see it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use tokio::sync::watch;

use super::{NewCommit, NewRetirement, Slots, StoreApi, StoreFault};
use crate::{
    catalog::{Commit, Head, Record, RecordBody, Retirement},
    chunk::{ChunkParams, ObjectKind, block::Block},
    ids::{Generation, Hash, HostUuid, Seq, StoreUuid, UnitId},
};

pub(crate) struct MemStore {
    uuid: StoreUuid,
    inner: Mutex<Inner>,
    gate: Condvar,
    heads: watch::Sender<Head>,
    slots: Slots,
}

#[derive(Default)]
struct Inner {
    objects: HashMap<(ObjectKind, Hash), Arc<Vec<u8>>>,
    committed: HashSet<Hash>,
    records: Vec<Record>,
    /// While true, blocks aren't taken in.
    closed: bool,
    waiting: usize,
    full: bool,
    broken: bool,
    reads: Vec<UnitId>,
}

impl MemStore {
    pub(crate) fn new() -> Arc<Self> {
        let uuid = StoreUuid::random();
        let heads = watch::Sender::new(Head::genesis(uuid));
        Arc::new(Self { uuid, inner: Mutex::default(), gate: Condvar::new(), heads, slots: Slots::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test panics with the lock")
    }

    /// Stops taking blocks in, or goes on.
    pub(crate) fn hold_blocks(&self, hold: bool) {
        self.lock().closed = hold;
        self.gate.notify_all();
    }

    /// Whether a block waits at the gate.
    pub(crate) fn is_holding(&self) -> bool {
        self.lock().waiting > 0
    }

    /// From now on nothing can be written.
    pub(crate) fn break_down(&self) {
        self.lock().broken = true;
    }

    /// From now on there is no room for anything new, or there is again.
    pub(crate) fn fill_up(&self, is_full: bool) {
        self.lock().full = is_full;
    }

    /// What it was told that was read.
    pub(crate) fn reads(&self) -> Vec<UnitId> {
        self.lock().reads.clone()
    }

    pub(crate) fn objects(&self) -> usize {
        self.lock().objects.len()
    }

    /// Enters a record that no session asks for.
    pub(crate) fn enter(&self, body: RecordBody) -> Record {
        let head = *self.heads.borrow();
        let record = Record { seq: head.seq.next(), prev: head.chain, time_ms: 0, body };
        self.lock().records.push(record.clone());
        self.heads.send_replace(record.link());
        record
    }

    /// Puts a block in without a session.
    pub(crate) fn put(&self, encoded: &[u8]) {
        self.append_block(encoded).expect("a good block");
    }
}

fn full() -> StoreFault {
    StoreFault::Full("the disk is full".to_owned())
}

impl StoreApi for MemStore {
    fn uuid(&self) -> StoreUuid {
        self.uuid
    }

    fn params(&self) -> ChunkParams {
        ChunkParams::default()
    }

    fn head(&self) -> Head {
        *self.heads.borrow()
    }

    fn missing(&self, kind: ObjectKind, hashes: &[Hash]) -> Result<Vec<bool>, StoreFault> {
        let inner = self.lock();
        let missing: Vec<bool> = hashes.iter().map(|h| !inner.objects.contains_key(&(kind, *h))).collect();
        if inner.full && missing.contains(&true) { Err(full()) } else { Ok(missing) }
    }

    fn manifest_known(&self, manifest: &Hash) -> Result<bool, StoreFault> {
        let inner = self.lock();
        let known = inner.committed.contains(manifest);
        if inner.full && !known { Err(full()) } else { Ok(known) }
    }

    fn has_room(&self) -> Result<(), StoreFault> {
        if self.lock().full { Err(full()) } else { Ok(()) }
    }

    fn append_block(&self, encoded: &[u8]) -> Result<(), StoreFault> {
        let block = Block::open(encoded).map_err(|e| StoreFault::Unacceptable(e.to_string()))?;
        let mut inner = self.lock();
        inner.waiting += 1;
        // Bounded, so that a test that fails with the gate closed ends.
        let opened = self.gate.wait_timeout_while(inner, Duration::from_secs(30), |i| i.closed);
        let (mut inner, _) = opened.expect("no test panics with the lock");
        inner.waiting -= 1;
        if inner.broken {
            return Err(StoreFault::Broken("input/output error".to_owned()));
        }
        if inner.full {
            return Err(full());
        }
        let encoded = Arc::new(encoded.to_vec());
        for entry in block.table() {
            inner.objects.insert((entry.kind, entry.hash), Arc::clone(&encoded));
        }
        Ok(())
    }

    fn commit(&self, c: NewCommit) -> Result<Record, StoreFault> {
        let mut inner = self.lock();
        let same = |r: &&Record| r.commit().is_some_and(|last| last.host == c.host && last.unit == c.unit);
        let last = inner.records.iter().rfind(same).and_then(|r| Some((r, r.commit()?)));
        if let Some((record, last)) = last.filter(|(_, last)| last.generation >= c.generation) {
            return match last.manifest == c.manifest && last.generation == c.generation {
                true => Ok(record.clone()),
                false => Err(StoreFault::Unacceptable("an old generation".to_owned())),
            };
        }
        if !inner.objects.contains_key(&(ObjectKind::Manifest, c.manifest)) {
            return Err(StoreFault::Unacceptable("the manifest was not sent".to_owned()));
        }
        let head = *self.heads.borrow();
        let NewCommit { host, host_name, unit, generation, manifest, lost, adopted_by, incarnation } = c;
        let body = RecordBody::Commit(Commit {
            host,
            host_name,
            unit,
            generation,
            manifest,
            lost,
            bytes: 0,
            entries: 0,
            adopted_by,
            incarnation,
        });
        let record = Record { seq: head.seq.next(), prev: head.chain, time_ms: 0, body };
        inner.committed.insert(manifest);
        inner.records.push(record.clone());
        self.heads.send_replace(record.link());
        let commit = record.commit().expect("it was made one above");
        self.slots.empty(commit.host, &commit.unit, commit.generation);
        Ok(record)
    }

    fn retire(&self, wanted: NewRetirement) -> Result<Record, StoreFault> {
        let NewRetirement { host, host_name, units } = wanted;
        let units = units.into_iter().map(|(unit, _)| unit).collect();
        Ok(self.enter(RecordBody::Retire(Retirement { host, host_name, units })))
    }

    fn fetch(&self, kind: ObjectKind, hash: &Hash) -> Result<Option<Vec<u8>>, StoreFault> {
        Ok(self.lock().objects.get(&(kind, *hash)).map(|block| block.to_vec()))
    }

    fn records_after(&self, seq: Seq, max: usize) -> Result<Vec<Record>, StoreFault> {
        Ok(self.lock().records.iter().skip(seq.0 as usize).take(max).cloned().collect())
    }

    fn record(&self, seq: Seq) -> Result<Option<Record>, StoreFault> {
        Ok(self.lock().records.get((seq.0 as usize).wrapping_sub(1)).cloned())
    }

    fn publish(&self, s: NewCommit) -> Result<(), StoreFault> {
        if !self.lock().objects.contains_key(&(ObjectKind::Manifest, s.manifest)) {
            return Err(StoreFault::Unacceptable("the manifest was not sent".to_owned()));
        }
        let snapshot = s.into_snapshot(0, 0, 1);
        self.slots.fill(snapshot).map(drop).map_err(|e| StoreFault::Unacceptable(e.to_string()))
    }

    fn withdraw(&self, host: HostUuid, unit: &UnitId, upto: Generation) {
        self.slots.empty(host, unit, upto);
    }

    fn slots(&self) -> &Slots {
        &self.slots
    }

    fn note_reads(&self, units: &[UnitId]) -> Result<(), StoreFault> {
        let mut inner = self.lock();
        if inner.full {
            return Err(full());
        }
        inner.reads.extend_from_slice(units);
        Ok(())
    }

    fn watch(&self) -> watch::Receiver<Head> {
        self.heads.subscribe()
    }
}
