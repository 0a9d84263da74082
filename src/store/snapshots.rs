//! Snapshots: one replaceable slot a layer, outside the catalog, for what still runs.
//!
//! [`Slots`] is the table in memory with the versions by which followers catch up; [`Log`] keeps it across a restart. Nothing here is synced:
//! a process that dies loses nothing, a power cut may lose snapshots, never more (`docs/format.md`, "Snapshots").
//!
//! Invariants: a slot's manifest and all that it names was in the store when it was filled, and is looked for again when the store is opened;
//! a slot's generation is above its layer's last commit; the number of slots is bounded, of each host and together.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::watch;

use super::{NewCommit, Store, StoreError, layout::Layout};
use crate::{
    catalog::{Record, Snapshot, SnapshotChange, SnapshotChanges},
    durable::{self, Disk, DiskFile},
    ids::{Generation, Hash, HostUuid, UnitId},
    limits,
};

/// Begins the file; the last byte is the version.
const MAGIC: &[u8; 8] = b"RFSl\x01\0\0\0";
/// Length and check before each entry.
const FRAME_BYTES: usize = 20;
/// Longest entry: a name and a path are 4.5 KiB.
const ENTRY_BYTES: usize = 16 << 10;
/// The file is written anew when it is this long, and four times what is in it.
const COMPACT_BYTES: u64 = 1 << 20;

type Key = (HostUuid, UnitId);

/// The slots that are filled, and what became of the others.
#[derive(Debug)]
pub struct Slots {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Counts changes, from 1 for an empty table: 0 is a follower who knows nothing, not even that there is nothing.
    version: u64,
    slots: HashMap<Key, (u64, Snapshot)>,
    of_host: HashMap<HostUuid, usize>,
    filled: BTreeMap<u64, Key>,
    emptied: BTreeMap<u64, Key>,
    /// Slots emptied up to this version are forgotten.
    forgotten: u64,
}

impl Default for Slots {
    fn default() -> Self {
        let inner = Inner { version: 1, ..Inner::default() };
        Self { changed: watch::Sender::new(inner.version), inner: Mutex::new(inner) }
    }
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the slots' lock")
    }

    /// All that are filled, in no order.
    pub fn all(&self) -> Vec<Snapshot> {
        self.lock().slots.values().map(|(_, snapshot)| snapshot.clone()).collect()
    }

    /// What is in a layer's slot.
    pub fn get(&self, host: HostUuid, unit: &UnitId) -> Option<Snapshot> {
        self.lock().slots.get(&(host, unit.clone())).map(|(_, snapshot)| snapshot.clone())
    }

    /// Fills a slot. Refused: more than there may be, or one of a later generation is there.
    pub fn fill(&self, snapshot: Snapshot) -> Result<Snapshot, StoreError> {
        let mut inner = self.lock();
        let filled = inner.fill(snapshot)?;
        self.changed.send_replace(inner.version);
        Ok(filled)
    }

    /// Empties a slot that is of `upto` or earlier; whether it did.
    pub fn empty(&self, host: HostUuid, unit: &UnitId, upto: Generation) -> bool {
        let mut inner = self.lock();
        let emptied = inner.empty(&(host, unit.clone()), upto);
        self.changed.send_replace(inner.version);
        emptied
    }

    /// The next part of what became of the slots since `version`; `started` as the part before has it.
    pub fn since(&self, version: u64, started: Option<u64>) -> SnapshotChanges {
        self.lock().since(version, started)
    }

    /// Tells of each new version.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl Inner {
    fn fill(&mut self, mut snapshot: Snapshot) -> Result<Snapshot, StoreError> {
        let key = (snapshot.host, snapshot.unit.clone());
        match self.slots.get(&key).map(|(version, before)| (*version, before.generation, before.begun_ms)) {
            Some((_, last, _)) if last > snapshot.generation => {
                return Err(StoreError::Generation { unit: key.1, sent: snapshot.generation, last });
            }
            Some((version, generation, begun_ms)) => {
                if generation == snapshot.generation {
                    snapshot.begun_ms = begun_ms;
                }
                self.filled.remove(&version);
            }
            None => {
                let of_host = self.of_host.entry(key.0).or_default();
                if *of_host >= limits::SNAPSHOTS_PER_HOST || self.slots.len() >= limits::SNAPSHOTS {
                    return Err(StoreError::TooManySnapshots);
                }
                *of_host += 1;
            }
        }
        self.version += 1;
        self.filled.insert(self.version, key.clone());
        self.slots.insert(key, (self.version, snapshot.clone()));
        Ok(snapshot)
    }

    fn empty(&mut self, key: &Key, upto: Generation) -> bool {
        let Some(version) = self.slots.get(key).filter(|(_, s)| s.generation <= upto).map(|(v, _)| *v) else {
            return false;
        };
        self.slots.remove(key);
        self.filled.remove(&version);
        let of_host = self.of_host.get_mut(&key.0).expect("each filled slot is counted");
        *of_host -= 1;
        if *of_host == 0 {
            self.of_host.remove(&key.0);
        }
        self.version += 1;
        self.emptied.insert(self.version, key.clone());
        if self.emptied.len() > limits::SNAPSHOTS_GONE {
            self.forgotten = self.emptied.pop_first().expect("it isn't empty").0;
        }
        true
    }

    fn since(&self, version: u64, started: Option<u64>) -> SnapshotChanges {
        let begins = version == 0 && started.is_none()
            || version > self.version
            || started.unwrap_or(version) < self.forgotten;
        let (from, started) = if begins { (0, Some(self.version)) } else { (version, started) };
        let filled = self.filled.range(from + 1..).map(|(version, key)| {
            let (_, snapshot) = &self.slots[key];
            (*version, SnapshotChange::Set(snapshot.clone()))
        });
        let emptied = self.emptied.range(from + 1..).filter(|_| !begins);
        let emptied =
            emptied.map(|(version, (host, unit))| (*version, SnapshotChange::Gone(*host, unit.clone())));
        const PART: usize = limits::SNAPSHOTS_PER_PUSH;
        let mut part: Vec<_> = filled.take(PART).chain(emptied.take(PART)).collect();
        part.sort_by_key(|(version, _)| *version);
        let is_all = part.len() < PART;
        part.truncate(PART);
        let last = part.last().map(|(version, _)| *version).filter(|_| !is_all);
        let changes = part.into_iter().map(|(_, change)| change).collect();
        SnapshotChanges { upto: last.unwrap_or(self.version), started, is_all, changes }
    }
}

/// The file of a store's slots: changes one after another.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    /// Made with the first snapshot.
    file: Option<Arc<dyn DiskFile>>,
    bytes: u64,
}

impl Log {
    /// The slots that the file tells of, as far as it makes sense.
    pub fn open(disk: &dyn Disk, layout: &Layout) -> io::Result<(Self, Vec<Snapshot>)> {
        let path = layout.snapshots();
        let file = match disk.open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok((Self { path, file: None, bytes: 0 }, Vec::new()));
            }
            file => file?,
        };
        let bytes = durable::read_all(&*file)?;
        let (slots, end) = parse(&bytes);
        let mut log = Self { path, file: Some(file), bytes: end as u64 };
        if end < bytes.len() {
            tracing::warn!(
                "the record of what runs is damaged or torn; what is gone comes back as hosts publish it"
            );
            // It opens all the same where nothing can be written.
            let _ = log.rewrite(disk, slots.iter().cloned().map(SnapshotChange::Set));
        }
        Ok((log, slots))
    }

    fn append(&mut self, disk: &dyn Disk, change: &SnapshotChange) -> io::Result<()> {
        let file = match &self.file {
            Some(file) if self.bytes > 0 => file.clone(),
            _ => return self.rewrite(disk, std::iter::once(change.clone())),
        };
        let entry = entry(change);
        file.write_at(self.bytes, &entry)?;
        self.bytes += entry.len() as u64;
        Ok(())
    }

    /// Puts these in place of all that is there.
    fn rewrite(&mut self, disk: &dyn Disk, changes: impl Iterator<Item = SnapshotChange>) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        changes.for_each(|change| bytes.extend(entry(&change)));
        durable::write_atomic_on(disk, &self.path, &bytes)?;
        self.file = Some(disk.open(&self.path)?);
        self.bytes = bytes.len() as u64;
        Ok(())
    }
}

fn entry(change: &SnapshotChange) -> Vec<u8> {
    let encoded = minicbor::to_vec(change).expect("encoding into a Vec can't fail");
    let len = u32::try_from(encoded.len()).expect("a change's parts are bounded");
    [&len.to_le_bytes()[..], &Hash::of(&encoded).0[..16], &encoded].concat()
}

/// Whether all that a file has can be read.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    parse(bytes).1 == bytes.len()
}

/// The slots, and where what follows makes no sense: what wasn't synced may be torn.
fn parse(bytes: &[u8]) -> (Vec<Snapshot>, usize) {
    let mut slots: HashMap<Key, Snapshot> = HashMap::new();
    if !bytes.starts_with(MAGIC) {
        return (Vec::new(), 0);
    }
    let mut at = MAGIC.len();
    while let Some((change, end)) = next_entry(bytes, at) {
        match change {
            SnapshotChange::Set(snapshot) => {
                _ = slots.insert((snapshot.host, snapshot.unit.clone()), snapshot)
            }
            SnapshotChange::Gone(host, unit) => _ = slots.remove(&(host, unit)),
        }
        at = end;
    }
    let mut slots: Vec<Snapshot> = slots.into_values().collect();
    slots.sort_by_key(|s| s.time_ms);
    (slots, at)
}

fn next_entry(bytes: &[u8], at: usize) -> Option<(SnapshotChange, usize)> {
    let head = bytes.get(at..at + FRAME_BYTES)?;
    let len = u32::from_le_bytes(head[..4].try_into().expect("4 bytes")) as usize;
    let encoded = bytes.get(at + FRAME_BYTES..).filter(|_| len <= ENTRY_BYTES)?.get(..len)?;
    if Hash::of(encoded).0[..16] != head[4..] {
        return None;
    }
    Some((minicbor::decode(encoded).ok()?, at + FRAME_BYTES + len))
}

impl NewCommit {
    /// What a running layer shows until it is committed. A snapshot of the same generation that it follows says since when.
    pub(crate) fn into_snapshot(self, time_ms: u64, bytes: u64, entries: u64) -> Snapshot {
        let Self { host, host_name, unit, generation, manifest, incarnation, .. } = self;
        let begun_ms = time_ms;
        Snapshot {
            host,
            host_name,
            unit,
            generation,
            manifest,
            time_ms,
            begun_ms,
            bytes,
            entries,
            incarnation,
        }
    }
}

impl Store {
    /// The snapshots of all hosts.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Puts a running layer's snapshot in its slot: what it names is here, durable or not, and the layer's last commit is older.
    pub fn publish(&self, wanted: NewCommit) -> Result<Snapshot, StoreError> {
        self.healthy()?;
        super::commit::check_text(&wanted)?;
        let _inside = self.gate.enter();
        let checked = self.check_manifest(&wanted.manifest).map_err(|e| self.lacking(e))?;
        let now_ms = self.clock.now_ms();
        let snapshot = wanted.into_snapshot(now_ms, checked.bytes, checked.entries);
        // Under the log's lock, which a commit takes after it is in the catalog: one of the two sees the other.
        let mut log = self.log();
        self.may_show(&snapshot)?;
        let snapshot = self.slots.fill(snapshot)?;
        self.note_change(&mut log, &SnapshotChange::Set(snapshot.clone()));
        self.leases.ended(&snapshot.manifest);
        Ok(snapshot)
    }

    /// Empties a layer's slot that is of `upto` or earlier.
    pub fn withdraw(&self, host: HostUuid, unit: &UnitId, upto: Generation) {
        let mut log = self.log();
        if self.slots.empty(host, unit, upto) {
            self.note_change(&mut log, &SnapshotChange::Gone(host, unit.clone()));
        }
    }

    /// These commits take the place of their layers' snapshots; of a life that has ended, or was undone, there are none.
    pub(super) fn overtake(&self, records: &[Record]) {
        for commit in records.iter().filter_map(Record::commit) {
            self.withdraw(commit.host, &commit.unit, commit.generation);
        }
        let undone = records.iter().flat_map(Record::undeleted).map(|life| &life.unit);
        let retired: Vec<&UnitId> = records.iter().flat_map(Record::retired).chain(undone).collect();
        if retired.is_empty() {
            return;
        }
        for snapshot in self.slots.all().into_iter().filter(|s| retired.contains(&&s.unit)) {
            self.withdraw(snapshot.host, &snapshot.unit, snapshot.generation);
        }
    }

    /// Fills the slots that the last run has left, but for those of which something is missing now or that were committed.
    pub(super) fn restore_slots(&self, left: Vec<Snapshot>) {
        let count = left.len();
        for snapshot in left {
            let is_good = self.may_show(&snapshot).is_ok() && self.check_manifest(&snapshot.manifest).is_ok();
            if !is_good || self.slots.fill(snapshot.clone()).is_err() {
                tracing::info!(unit = %snapshot.unit, host = snapshot.host_name, "a snapshot is dropped");
            }
        }
        let kept = self.slots.all();
        if kept.len() < count {
            let mut log = self.log();
            let rewritten = log.rewrite(&*self.disk, kept.into_iter().map(SnapshotChange::Set));
            self.warn(rewritten);
        }
    }

    /// It isn't committed yet, and of the unit's present life.
    fn may_show(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let Snapshot { host, unit, generation: sent, incarnation, .. } = snapshot;
        if self.catalog.life(unit).incarnation != *incarnation {
            return Err(StoreError::Retired { unit: unit.clone() });
        }
        let last = self.catalog.latest(*host, unit, *incarnation)?;
        let last = last.and_then(|record| Some(record.commit()?.generation));
        match last.filter(|last| last >= sent) {
            Some(last) => Err(StoreError::Generation { unit: unit.clone(), sent: *sent, last }),
            None => Ok(()),
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("nothing panics while it holds the log's lock")
    }

    /// A snapshot that isn't kept is one that is lost with this process; the next one comes soon.
    fn note_change(&self, log: &mut Log, change: &SnapshotChange) {
        let appended = log.append(&*self.disk, change);
        self.warn(appended);
        let live = self.slots.lock().slots.len() as u64 * 300;
        if log.bytes > COMPACT_BYTES && log.bytes > 4 * live {
            let rewritten = log.rewrite(&*self.disk, self.slots.all().into_iter().map(SnapshotChange::Set));
            self.warn(rewritten);
        }
    }

    fn warn(&self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::warn!(%error, "snapshots can't be kept across a restart");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, RelPath};

    fn snapshot(host: u8, unit: usize, generation: u32) -> Snapshot {
        Snapshot {
            host: HostUuid([host; 16]),
            host_name: "drone1".to_owned(),
            unit: UnitId::tree(RelPath::parse(format!("{unit}-me/host1")).expect("a path")),
            generation: Generation(generation),
            manifest: Hash::of(b"manifest"),
            time_ms: 5,
            begun_ms: 5,
            bytes: 0,
            entries: 0,
            incarnation: Incarnation::FIRST,
        }
    }

    /// Whoever follows has, after all parts, what is there: from nothing, and from any version that it had before.
    #[test]
    fn a_follower_has_what_is_there_after_the_last_part() {
        let slots = Slots::default();
        let mut known: HashMap<Key, Snapshot> = HashMap::new();
        let mut version = 0;
        let mut catch_up = |slots: &Slots, known: &mut HashMap<Key, Snapshot>| {
            let mut named = Vec::new();
            let mut started = None;
            loop {
                let part = slots.since(version, started);
                started = part.started;
                for change in part.changes {
                    match change {
                        SnapshotChange::Set(s) => {
                            named.push((s.host, s.unit.clone()));
                            known.insert((s.host, s.unit.clone()), s);
                        }
                        SnapshotChange::Gone(host, unit) => _ = known.remove(&(host, unit)),
                    }
                }
                version = part.upto;
                if part.is_all {
                    break;
                }
            }
            if started.is_some() {
                known.retain(|key, _| named.contains(key));
            }
            assert_eq!(known.len(), slots.all().len());
        };
        for round in 0..40usize {
            for unit in 0..30 * round {
                slots.fill(snapshot(1, unit, 1)).expect("room");
            }
            for unit in (0..30 * round).filter(|unit| unit % 3 == round % 3) {
                slots.empty(HostUuid([1; 16]), &snapshot(1, unit, 1).unit, Generation(1));
            }
            catch_up(&slots, &mut known);
        }
        assert!(known.len() > limits::SNAPSHOTS_PER_PUSH);
    }

    #[test]
    fn a_host_has_its_bound_and_an_old_generation_comes_too_late() {
        let slots = Slots::default();
        for unit in 0..limits::SNAPSHOTS_PER_HOST {
            slots.fill(snapshot(1, unit, 2)).expect("room");
        }
        assert!(matches!(slots.fill(snapshot(1, 99_999, 2)), Err(StoreError::TooManySnapshots)));
        slots.fill(snapshot(2, 0, 2)).expect("another host's");
        slots.fill(snapshot(1, 0, 2)).expect("a slot is replaced");
        assert!(matches!(slots.fill(snapshot(1, 0, 1)), Err(StoreError::Generation { .. })));
        assert!(!slots.empty(HostUuid([1; 16]), &snapshot(1, 0, 1).unit, Generation(1)));
        assert!(slots.empty(HostUuid([1; 16]), &snapshot(1, 0, 1).unit, Generation(2)));
    }

    #[test]
    fn a_torn_file_is_read_up_to_the_tear() {
        let mut bytes = MAGIC.to_vec();
        for unit in 0..3 {
            bytes.extend(entry(&SnapshotChange::Set(snapshot(1, unit, 1))));
        }
        bytes.extend(entry(&SnapshotChange::Gone(HostUuid([1; 16]), snapshot(1, 1, 1).unit)));
        assert_eq!(parse(&bytes).0.len(), 2);
        let whole = bytes.len();
        for cut in 0..whole {
            let (slots, end) = parse(&bytes[..cut]);
            assert!(slots.len() <= 3 && end <= cut);
        }
        bytes[whole - 1] ^= 1;
        assert_eq!(parse(&bytes).0.len(), 3, "what became of the second isn't known");
    }
}
