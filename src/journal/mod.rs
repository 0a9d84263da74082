//! The host's durable record of its units, and its replica of the catalog.
//!
//! The journal answers "where does this unit's own layer stand" across crashes: one record a unit, one durable transaction
//! a transition ([`record`]). A running unit of the first generation has no record; it is found by walking the spool. The
//! replica answers "who committed what", as far as this host has heard of it ([`replica`]).
//!
//! In the state directory, of which the journal takes hold by a lock:
//!
//! | file | holds | if it is lost |
//! |---|---|---|
//! | `host` | the host's UUID | comes back from the journal; without that, the host is a new one and its old layers are another's |
//! | `journal.redb` | records, notes of paths, manifests of own layers | records of committed layers come back from the replica, partial; the rest is found in the spool |
//! | `replica.redb` | layers of all hosts, other hosts' manifests | comes back from the store |
//!
//! Invariants: memory is changed after the transaction that says the same has become durable, under one writer's lock, so
//! that a look never shows what a crash could take back; looks take no other lock than a short one, and those at the
//! host's own records never touch the disk (but for manifests); after a failed write nothing more is written until the daemon starts anew.
//!
//! It knows nothing of files: whoever says "complete" has synced the spool before, and keeps writers out of the unit meanwhile.

mod comparison;
mod damage;
mod db;
mod error;
mod identity;
mod live;
mod manifests;
mod memory;
mod note;
mod record;
mod replica;
mod retired;
pub mod stored;
#[cfg(test)]
mod tests;
mod transitions;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use redb::{Durability, TableDefinition};

use crate::{
    catalog::{Head, Record, Snapshot},
    clock::Clock,
    durable,
    ids::{Generation, Hash, HostUuid, RelPath, Seq, StoreUuid, UnitId},
    manifest::Manifest,
};
use db::{Bytes, Db, MANIFESTS, META, UNITS};
use memory::Memory;
use replica::Replica;

pub use comparison::Comparison;
pub use damage::{Damage, damage, put_aside};
pub use error::{JournalError, ReplicaError};
pub use memory::Counts;
pub use note::Note;
pub use record::{Committed, CompleteHow, State, UnitRecord};
pub use replica::{LayerHead, PastLife, Weight};

/// Notes of paths between two commits. The name is that of its first kind of note.
const NOTES: Bytes = TableDefinition::new("gone");

/// Memory for the database's pages: records are in memory anyhow.
const CACHE_BYTES: usize = 8 << 20;

/// The journal with its replica. One a process and state directory.
#[derive(Debug)]
pub struct Journal {
    host: HostUuid,
    was_created: bool,
    /// Whether own layers in the catalog have records here.
    keeps_records: bool,
    clock: Arc<dyn Clock>,
    memory: RwLock<Memory>,
    /// See [`Journal::epoch`].
    epoch: AtomicU64,
    /// Held over a transaction and the change of the memory that goes with it.
    writer: Mutex<()>,
    decoded: Mutex<manifests::Decoded>,
    db: Db,
    replica: Replica,
    live: RwLock<live::Live>,
    /// Own units whose layer is of an earlier life than the one that shows.
    retired: Mutex<BTreeSet<UnitId>>,
    /// Last, so that the databases are closed before somebody else may open them.
    _lock: File,
}

impl Journal {
    /// Opens the journal in `state_dir`, and creates what isn't there.
    pub fn open(state_dir: &Path, clock: Arc<dyn Clock>) -> Result<Arc<Self>, JournalError> {
        Self::open_with(state_dir, clock, true)
    }

    /// The same for a host without a spool: it has an identity and a replica, and no records.
    pub fn open_bare(state_dir: &Path, clock: Arc<dyn Clock>) -> Result<Arc<Self>, JournalError> {
        Self::open_with(state_dir, clock, false)
    }

    fn open_with(
        state_dir: &Path,
        clock: Arc<dyn Clock>,
        keeps_records: bool,
    ) -> Result<Arc<Self>, JournalError> {
        let lock = identity::lock(state_dir)?;
        let db = Db::open(&state_dir.join("journal.redb"), CACHE_BYTES, &[META, UNITS, NOTES, MANIFESTS])?;
        let (host, was_created) = find_host(state_dir, &db)?;
        let memory = RwLock::new(Memory::load(&db)?);
        let replica = Replica::open(&state_dir.join("replica.redb"))?;
        durable::sync_dir(state_dir)?;
        let (epoch, writer, decoded, live, retired) = Default::default();
        let journal = Self {
            host,
            was_created,
            keeps_records,
            clock,
            memory,
            epoch,
            writer,
            decoded,
            db,
            replica,
            live,
            retired,
            _lock: lock,
        };
        journal.find_retired(journal.units());
        if keeps_records {
            journal.catch_up_with_replica()?;
        }
        journal.forget_settled_notes(journal.noted_units())?;
        journal.show_stranded(journal.units_that(|record| record.stranded_ms.is_some()));
        Ok(Arc::new(journal))
    }

    /// This host.
    pub fn host(&self) -> HostUuid {
        self.host
    }

    /// Whether this start made the host's UUID.
    pub fn was_created(&self) -> bool {
        self.was_created
    }

    /// Rises with every change of a record, of the replica, or of what runs elsewhere: what was answered from these holds as long as this number does, if the
    /// number was read before.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The store that this host commits to, once it has met one.
    pub fn store(&self) -> Option<StoreUuid> {
        self.memory().store
    }

    /// The record of `unit`; a running unit of the first generation has none.
    pub fn get(&self, unit: &UnitId) -> Option<UnitRecord> {
        self.memory().records.get(unit).cloned()
    }

    /// All records.
    pub fn units(&self) -> Vec<UnitRecord> {
        self.memory().records.values().cloned().collect()
    }

    /// The records of units in this state.
    pub fn by_state(&self, state: State) -> Vec<UnitRecord> {
        self.units_that(|record| record.state == state)
    }

    fn units_that(&self, is_wanted: impl Fn(&UnitRecord) -> bool) -> Vec<UnitRecord> {
        self.memory().records.values().filter(|record| is_wanted(record)).cloned().collect()
    }

    /// The records of units at or below `dir`.
    pub fn units_below(&self, dir: &RelPath) -> Vec<UnitRecord> {
        self.memory().below(dir).cloned().collect()
    }

    /// How many units have a record, by state.
    pub fn counts(&self) -> Counts {
        self.memory().counts
    }

    /// What was noted of paths below the unit's root since its last commit.
    pub fn notes(&self, unit: &UnitId) -> BTreeMap<RelPath, Note> {
        self.memory().notes.get(unit).cloned().unwrap_or_default()
    }

    /// The note of this very path.
    pub fn note_of(&self, unit: &UnitId, path: &RelPath) -> Option<Note> {
        self.memory().notes.get(unit)?.get(path).copied()
    }

    /// Paths below the unit's root that were deleted, from a partial layer or over others' entries, since its last commit.
    pub fn gone(&self, unit: &UnitId) -> Vec<RelPath> {
        let notes = self.notes(unit);
        notes.into_iter().filter(|(_, note)| note.is_deleted()).map(|(path, _)| path).collect()
    }

    /// Whether this very path is among them.
    pub fn is_gone(&self, unit: &UnitId, path: &RelPath) -> bool {
        self.note_of(unit, path).is_some_and(Note::is_deleted)
    }

    /// The number up to which this host's deletions that aren't committed yet hide others' entries at and below a path of the tree; 0 =
    /// nothing is hidden.
    pub fn hidden_upto(&self, path: &RelPath) -> Seq {
        self.memory().hidden_upto(path)
    }

    /// Whether this host may delete or replace what others committed: as its store has said last, and no until then.
    pub fn may_delete(&self) -> bool {
        let memory = self.memory();
        memory.may_delete.is_some_and(|(store, may)| may && memory.store == Some(store))
    }

    fn noted_units(&self) -> Vec<UnitId> {
        self.memory().notes.keys().cloned().collect()
    }

    /// Whether the job dir `job` is one unit as a whole: by this host's records, else as other hosts committed it.
    pub fn whole_job(&self, job: &RelPath) -> bool {
        let whole = UnitId::tree(job.clone());
        let memory = self.memory();
        let is_here = memory.below(job).next().is_some();
        if is_here {
            return memory.records.contains_key(&whole);
        }
        self.replica.contains(&whole) || self.live().contains(&whole)
    }

    /// Whether `complete` was said of the unrecognised directory `top`, here or on another host.
    pub fn adopted(&self, top: &RelPath) -> bool {
        let unit = UnitId::tree(top.clone());
        self.memory().records.contains_key(&unit) || self.replica.contains(&unit)
    }

    /// A manifest, if it is here: from memory, else of an own layer, else one that was kept.
    pub fn manifest(&self, hash: &Hash) -> Result<Option<Arc<Manifest>>, JournalError> {
        if let Some(manifest) = self.decoded().get(hash) {
            return Ok(Some(manifest));
        }
        if let Some(manifest) = self.live().manifest(hash) {
            return Ok(Some(manifest));
        }
        let manifest = match self.db.get(MANIFESTS, &hash.0)? {
            Some(packed) => Some(manifests::unpack(hash, &packed).map_err(|why| self.db.damaged(why))?),
            None => self.replica.manifest(hash)?,
        };
        let manifest = manifest.map(Arc::new);
        if let Some(manifest) = &manifest {
            self.decoded().put(*hash, manifest.clone());
        }
        Ok(manifest)
    }

    /// Keeps a manifest that came from the store, after a check: durably if an own record names it, else as long as there is
    /// room.
    pub fn keep_manifest(&self, hash: &Hash, encoding: &[u8]) -> Result<Arc<Manifest>, JournalError> {
        let actual = Hash::of(encoding);
        if actual != *hash {
            return Err(JournalError::OtherManifest { hash: *hash, actual });
        }
        let manifest = Manifest::decode(encoding)
            .map(Arc::new)
            .map_err(|source| JournalError::Manifest { hash: *hash, source })?;
        if self.keep_live(hash, &manifest) {
            return Ok(manifest);
        }
        let packed = manifests::pack(encoding);
        let _writer = self.writer();
        if self.memory().names_manifest(hash) {
            self.db.write(Durability::Immediate, |txn| {
                txn.open_table(MANIFESTS)?.insert(&hash.0[..], &packed[..])?;
                Ok(())
            })?;
        } else {
            self.replica.keep_manifest(hash, &packed)?;
        }
        self.decoded().put(*hash, manifest.clone());
        Ok(manifest)
    }

    /// The first write that failed, here or in the replica: from then on nothing is written until the journal is opened again.
    pub fn failure(&self) -> Option<String> {
        self.db.failure().or_else(|| self.replica.failure()).map(str::to_owned)
    }

    fn memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().expect("no code panics under this lock")
    }

    fn memory_mut(&self) -> RwLockWriteGuard<'_, Memory> {
        let memory = self.memory.write().expect("no code panics under this lock");
        // Under the lock: who reads the new number reads the memory after us.
        self.epoch.fetch_add(1, Ordering::AcqRel);
        memory
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().expect("a panic while writing must stop all writing")
    }

    fn decoded(&self) -> MutexGuard<'_, manifests::Decoded> {
        self.decoded.lock().expect("no code panics under this lock")
    }
}

/// The replica of the store's catalog. A look that meets what was looked at lately is in memory, any other reads a few pages.
impl Journal {
    /// How far the replica has followed which store.
    pub fn head(&self) -> Option<(StoreUuid, Head)> {
        self.replica.head()
    }

    /// Takes records that follow the head, all or none; those below it are passed over. Not durable: what a crash takes back is
    /// asked for again. Own layers that the journal doesn't know (it was lost) get their records back.
    pub fn follow(&self, store: StoreUuid, records: &[Record]) -> Result<(), ReplicaError> {
        if let Some(have) = self.store().filter(|have| *have != store) {
            return Err(ReplicaError::OtherStore { have, got: store });
        }
        self.set_store(store)?;
        let mut own: Vec<UnitId> = records
            .iter()
            .filter_map(Record::commit)
            .filter(|commit| commit.host == self.host)
            .map(|commit| commit.unit.clone())
            .collect();
        own.extend(records.iter().flat_map(Record::undeleted).map(|life| life.unit.clone()));
        if !self.keeps_records {
            own.clear();
        }
        let followed = self.replica.follow(store, records, !own.is_empty());
        self.epoch.fetch_add(1, Ordering::AcqRel);
        followed?;
        for record in records {
            self.find_retired(record.retired().iter().filter_map(|unit| self.get(unit)));
            self.forgive(record.undeleted());
        }
        if !own.is_empty() {
            self.forget_stranded(&own);
            self.adopt(own.clone())?;
            self.replica.adopted()?;
            self.forget_settled_notes(own)?;
        }
        Ok(())
    }

    /// What `store` says of this host's right to delete; remembered durably, so that it holds while the store is away.
    pub fn set_may_delete(&self, store: StoreUuid, may: bool) -> Result<(), JournalError> {
        let _writer = self.writer();
        if self.memory().may_delete == Some((store, may)) {
            return Ok(());
        }
        self.db.write(Durability::Immediate, |txn| {
            txn.open_table(META)?.insert(&b"may-delete"[..], &db::encode(&(store, may))[..])?;
            Ok(())
        })?;
        self.memory_mut().may_delete = Some((store, may));
        Ok(())
    }

    /// Forgets the replica and begins anew with `store`, which from now on is the one that this host commits to.
    pub fn reset_replica(&self, store: StoreUuid) -> Result<(), JournalError> {
        self.set_store(store)?;
        let reset = self.replica.reset(store);
        self.retired_mut().clear();
        self.epoch.fetch_add(1, Ordering::AcqRel);
        // Until it is known whether the store still has them: what isn't in the spool goes on showing.
        self.show_stranded(self.units_that(|record| record.partial));
        reset
    }

    /// All hosts' layers of `unit`, own included.
    pub fn layers(&self, unit: &UnitId) -> Vec<LayerHead> {
        self.replica.layers(unit)
    }

    /// Whether the replica has this host's newest commit of `unit`, so that the tree shows the layer without its files.
    pub fn is_followed(&self, unit: &UnitId) -> bool {
        let Some(record) = self.get(unit) else { return false };
        let Some(committed) = record.committed else { return false };
        self.layer_of(&record).is_some_and(|layer| layer.generation >= committed.generation)
    }

    /// Whether another host committed a layer of `unit`.
    pub fn has_foreign(&self, unit: &UnitId) -> bool {
        self.replica.has_other_than(self.host, unit)
    }

    /// The sequence number of the first commit of `host`'s layer with a generation of `since` or later. An own commit
    /// that the store has answered counts, even if the replica hasn't heard of it yet.
    pub fn seq_of(&self, host: HostUuid, unit: &UnitId, since: Generation) -> Option<Seq> {
        let own = self.get(unit).filter(|_| host == self.host);
        let layer = match &own {
            Some(record) => self.layer_of(record),
            None => self.replica.layer_of(host, unit),
        };
        layer.and_then(|layer| layer.seq_of(since)).or_else(|| {
            let committed = own?.committed?;
            (committed.generation >= since).then_some(committed.seq)
        })
    }

    /// Units in the replica of which `path` may be an entry, by its place alone.
    pub fn units_holding(&self, path: &RelPath) -> Vec<UnitId> {
        self.replica.units_holding(path)
    }

    /// Units in the replica whose root is `dir`, above it (if `dir` may be an entry of them), or below it.
    pub fn units_at(&self, dir: &RelPath) -> Vec<UnitId> {
        let mut units = self.replica.units_holding(dir);
        units.extend(self.replica.units_below(dir));
        units.sort();
        units.dedup();
        units
    }

    /// Names directly in `dir` at or below which units in the replica lie.
    pub fn child_roots(&self, dir: &RelPath) -> BTreeSet<Vec<u8>> {
        self.replica.child_roots(dir)
    }

    /// Shows the replica's units at and below `dir` with all hosts' layers, in the order of the tree, until `visit` has seen enough.
    pub fn visit_layers(
        &self,
        dir: &RelPath,
        visit: &mut dyn FnMut(UnitId, &[LayerHead]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.replica.visit(dir, visit)
    }

    /// All units in the replica.
    pub fn replica_units(&self) -> Vec<UnitId> {
        self.replica.units()
    }

    /// How many units are in the replica.
    pub fn replica_unit_count(&self) -> usize {
        self.replica.unit_count()
    }

    fn set_store(&self, store: StoreUuid) -> Result<(), JournalError> {
        let _writer = self.writer();
        if self.memory().store == Some(store) {
            return Ok(());
        }
        self.db.write(Durability::Immediate, |txn| {
            txn.open_table(META)?.insert(&b"store"[..], &db::encode(&store)[..])?;
            Ok(())
        })?;
        self.memory_mut().store = Some(store);
        Ok(())
    }
}

/// What other hosts run, in memory. See [`live`].
impl Journal {
    /// All hosts' layers of `unit` as they show: committed, with what runs on top.
    pub fn shown_layers(&self, unit: &UnitId) -> Vec<LayerHead> {
        let committed = self.replica.layers(unit);
        let live = self.live();
        if !live.contains(unit) {
            return committed;
        }
        let life = self.replica.incarnation(unit);
        live.over(unit, life, committed)
    }

    /// As [`Journal::visit_layers`], with what runs elsewhere.
    pub fn visit_shown_layers(
        &self,
        dir: &RelPath,
        visit: &mut dyn FnMut(UnitId, &[LayerHead]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut running = self.live().units_below(dir);
        if running.is_empty() {
            return self.replica.visit(dir, visit);
        }
        self.replica.visit(dir, &mut |unit, layers| {
            while let Some((_, before)) =
                running.first_key_value().filter(|(key, _)| **key < db::unit_key(&unit))
            {
                visit(before.clone(), &self.shown_layers(before))?;
                running.pop_first();
            }
            match running.remove(&db::unit_key(&unit)) {
                Some(unit) => visit(unit.clone(), &self.shown_layers(&unit)),
                None => visit(unit, layers),
            }
        })?;
        running.into_values().try_for_each(|unit| visit(unit.clone(), &self.shown_layers(&unit)))
    }

    /// The same for who looks at very many: tells the name in `dir` of each unit below it, and how much its layers have. In the order of the
    /// tree, but names under which others run something come last.
    pub fn weigh_shown_layers(&self, dir: &RelPath, tell: &mut dyn FnMut(&[u8], &[Weight])) {
        let running: BTreeSet<Vec<u8>> = self
            .live()
            .units_below(dir)
            .into_values()
            .filter_map(|unit| unit.root.components().nth(dir.depth()).map(<[u8]>::to_vec))
            .collect();
        self.replica.weigh(dir, &mut |name, layers| {
            if !running.contains(name) {
                tell(name, layers);
            }
        });
        for name in running {
            let Ok(path) = dir.join(&name) else { continue };
            let _ = self.visit_shown_layers(&path, &mut |_, layers| {
                let weight = |layer: &LayerHead| Weight {
                    host: layer.host,
                    bytes: layer.bytes,
                    entries: layer.entries,
                };
                tell(&name, &layers.iter().map(weight).collect::<Vec<_>>());
                ControlFlow::Continue(())
            });
        }
    }

    /// Whether another host runs `unit`.
    pub fn runs_elsewhere(&self, unit: &UnitId) -> bool {
        self.live().of(unit).iter().any(|snapshot| snapshot.host != self.host)
    }

    /// What other hosts run, in order of the units.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        let mut all = self.live().all();
        all.retain(|snapshot| snapshot.host != self.host);
        all
    }

    /// Other hosts' snapshots of `unit`.
    pub fn snapshots_of(&self, unit: &UnitId) -> Vec<Snapshot> {
        let mut others = self.live().of(unit).to_vec();
        others.retain(|snapshot| snapshot.host != self.host);
        others
    }

    /// Whether this host's layer of `unit` shows by what the journal has of it, since the replica lacks it.
    pub fn is_stranded(&self, unit: &UnitId) -> bool {
        self.live().of(unit).iter().any(|snapshot| snapshot.host == self.host)
    }

    /// Shows own partial layers as they were committed, until the replica has their commits.
    fn show_stranded(&self, records: impl IntoIterator<Item = UnitRecord>) {
        for record in records {
            let Some(committed) = record.committed else { continue };
            let manifest = match self.manifest(&committed.manifest) {
                Ok(Some(manifest)) => manifest,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(unit = %record.unit, %error, "what was committed of it can't be read");
                    continue;
                }
            };
            self.live_mut().set(Snapshot {
                host: self.host,
                host_name: String::new(),
                unit: record.unit,
                generation: committed.generation,
                manifest: committed.manifest,
                time_ms: committed.time_ms,
                begun_ms: committed.time_ms,
                bytes: manifest.bytes(),
                entries: manifest.entries().len() as u64,
                incarnation: record.incarnation,
            });
        }
    }

    fn forget_stranded(&self, units: &[UnitId]) {
        for unit in units.iter().filter(|unit| self.is_stranded(unit) && self.is_followed(unit)) {
            self.live_mut().remove(self.host, unit);
        }
    }

    /// The manifest `hash` is a snapshot's that is set as soon as it is here.
    pub fn expect_snapshot(&self, hash: Hash) {
        self.live_mut().expect(hash);
    }

    /// The store tells of a snapshot. Gives back the one whose place it takes. Own ones are passed over: the spool is newer.
    pub fn set_snapshot(&self, snapshot: Snapshot) -> Option<Snapshot> {
        if snapshot.host == self.host { None } else { self.live_mut().set(snapshot) }
    }

    /// The store has no snapshot of this layer any more.
    pub fn drop_snapshot(&self, host: HostUuid, unit: &UnitId) -> Option<Snapshot> {
        self.live_mut().remove(host, unit)
    }

    /// Keeps a manifest in memory if it is a snapshot's and no own record names it, too.
    fn keep_live(&self, hash: &Hash, manifest: &Arc<Manifest>) -> bool {
        let is_live = self.live().names(hash) && !self.memory().names_manifest(hash);
        if is_live {
            self.live_mut().keep(*hash, manifest.clone());
        }
        is_live
    }

    fn live(&self) -> RwLockReadGuard<'_, live::Live> {
        self.live.read().expect("no code panics under this lock")
    }

    fn live_mut(&self) -> RwLockWriteGuard<'_, live::Live> {
        let live = self.live.write().expect("no code panics under this lock");
        // As with the records.
        self.epoch.fetch_add(1, Ordering::AcqRel);
        live
    }
}

/// The host's UUID from its file, from the journal, or made now; and whether it was made now. Afterwards both have it.
fn find_host(state_dir: &Path, db: &Db) -> Result<(HostUuid, bool), JournalError> {
    let file = identity::read_host(state_dir)?;
    let value = db.get(META, b"host")?;
    let journal: Option<HostUuid> = match value {
        Some(value) => Some(minicbor::decode(&value).map_err(|e| db.damaged(e))?),
        None => None,
    };
    if let (Some(file), Some(journal)) = (file, journal)
        && file != journal
    {
        return Err(JournalError::OtherHost { path: state_dir.join("host"), file, journal });
    }
    let host = file.or(journal).unwrap_or_else(HostUuid::random);
    // The file first: a journal without it is put right here, but a journal with another UUID could not be.
    if file.is_none() {
        identity::write_host(state_dir, host)?;
    }
    if journal.is_none() {
        db.write(Durability::Immediate, |txn| {
            txn.open_table(META)?.insert(&b"host"[..], &db::encode(&host)[..])?;
            Ok(())
        })?;
    }
    Ok((host, file.is_none() && journal.is_none()))
}
