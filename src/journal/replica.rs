//! The replica of the store's catalog: who committed which unit, in which generations, as which manifest.
//!
//! All of it is derived: the file can be deleted at any time and comes back from the store. Therefore its commits needn't be
//! durable one by one; records and head are written in one transaction, so a crash loses a tail of the catalog and
//! nothing else, and that tail is asked for again. It also keeps other hosts' manifests, the oldest of which
//! go first when they become too many.
//!
//! It is on disk: a start reads the head and the hosts and no row, however long the catalog is. Rows are read when they are asked for, and a
//! few thousand are kept in memory ([`near`]).
//!
//! A file that can't be read any more must not be taken for a catalog without the unit: whoever looks is stopped by a panic (an
//! operation of the mount is answered EIO then), and the file is deleted, so that the next start builds it anew.

mod change;
mod near;
mod past;
mod row;

use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use redb::{Durability, ReadableTable as _, ReadableTableMetadata as _, TableDefinition};

use super::{
    db::{Bytes, Db, MANIFESTS, META, UNITS, dir_key, encode, unit_key, unit_of_key},
    error::{JournalError, ReplicaError},
    manifests,
};
use crate::{
    catalog::{Head, Record},
    ids::{Hash, HostUuid, RelPath, StoreUuid, UnitId},
    limits::{self, UNIT_ROOT_DEPTH},
    manifest::Manifest,
};
use change::Change;
use near::{Memo, NEAR_ROWS, Near, Place, Row, below};
use past::RETIRED;

pub use past::{Past, PastLife, parse as life};
pub use row::{Hosts, Layer, LayerHead, Weight, parse as layers};

/// Hosts by number.
const HOSTS: Bytes = TableDefinition::new("hosts");
/// Manifests by age: a running number, then hash and stored size.
const MANIFEST_AGE: Bytes = TableDefinition::new("manifest_age");

/// Memory for the database's pages; the kernel keeps more of them.
const CACHE_BYTES: usize = 16 << 20;
/// Records after which a transaction is made durable: as many are asked for again after a crash.
const DURABLE_EVERY: usize = 4096;
/// Rows read at a time by who wants very many.
const ROWS_AT_ONCE: usize = 512;

/// The table of units for reading.
type Units = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

#[derive(Debug, Default)]
struct Known {
    head: Option<(StoreUuid, Head)>,
    hosts: Hosts,
}

#[derive(Debug, Default)]
struct Tail {
    /// Records since the last durable transaction.
    records: usize,
    manifest_bytes: u64,
    next_age: u64,
}

/// The replica.
#[derive(Debug)]
pub(super) struct Replica {
    db: Db,
    path: PathBuf,
    manifest_bytes_max: u64,
    known: RwLock<Known>,
    memo: Memo,
    /// Held over a transaction and the change of the memory that goes with it.
    tail: Mutex<Tail>,
    /// Rows read from the disk so far.
    rows_read: AtomicU64,
}

impl Replica {
    /// Opens `path`; a file that can't be read is only derived data, and is made anew.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        match Self::load(path) {
            Err(e @ (JournalError::Damaged { .. } | JournalError::Version { .. })) => {
                tracing::warn!(path = %path.display(), error = ?e, "replica of the catalog is damaged; it is built anew from the store");
                fs_err::remove_file(path)?;
                Self::load(path)
            }
            result => result,
        }
    }

    fn load(path: &Path) -> Result<Self, JournalError> {
        let db = Db::open(path, CACHE_BYTES, &[META, HOSTS, UNITS, RETIRED, MANIFESTS, MANIFEST_AGE])?;
        // One that was made before units had several lives.
        if db.get(RETIRED, b"").is_err() {
            db.write(Durability::Immediate, |txn| Ok(txn.open_table(RETIRED).map(drop)?))?;
        }
        let mut known = Known::default();
        if let Some(head) = db.get(META, b"head")? {
            known.head = Some(minicbor::decode(&head).map_err(|e| db.damaged(e))?);
        }
        db.scan(HOSTS, |_, value| {
            let (uuid, name) = minicbor::decode(value).map_err(|e| e.to_string())?;
            known.hosts.number(uuid, name);
            Ok(())
        })?;
        let mut tail = Tail::default();
        if let Some(bytes) = db.get(META, b"manifest_bytes")? {
            tail.manifest_bytes = minicbor::decode(&bytes).map_err(|e| db.damaged(e))?;
        }
        let youngest =
            db.read(|txn| Ok(txn.open_table(MANIFEST_AGE)?.last()?.map(|(age, _)| age.value().to_vec())))?;
        if let Some(age) = youngest {
            tail.next_age = parse_age(&age).map_err(|why| db.damaged(why))? + 1;
        }
        let (known, tail, memo) = (RwLock::new(known), Mutex::new(tail), Memo::default());
        let (path, manifest_bytes_max) = (path.to_owned(), limits::REPLICA_MANIFESTS_BYTES);
        Ok(Self { db, path, manifest_bytes_max, known, memo, tail, rows_read: AtomicU64::new(0) })
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().expect("no code panics under this lock")
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().expect("no code panics under this lock")
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().expect("no code panics under this lock")
    }

    pub fn failure(&self) -> Option<&str> {
        self.db.failure()
    }

    pub fn head(&self) -> Option<(StoreUuid, Head)> {
        self.known().head
    }

    /// Takes records that follow the head, all or none. Those that it has already are passed over. `unadopted`: the journal has yet to look
    /// at them, see [`Replica::adopted`].
    pub fn follow(&self, store: StoreUuid, records: &[Record], unadopted: bool) -> Result<(), ReplicaError> {
        let mut tail = self.tail();
        let (head, hosts) = {
            let known = self.known();
            let head = match known.head {
                None => Head::genesis(store),
                Some((have, head)) if have == store => head,
                Some((have, _)) => return Err(ReplicaError::OtherStore { have, got: store }),
            };
            (head, known.hosts.clone())
        };
        let change = Change::of(head, hosts, records, &self.db)?;
        // Before the rows that name them can be read.
        let is_renamed =
            self.known().hosts.known.iter().zip(&change.hosts.known).any(|(old, new)| old != new);
        self.known_mut().hosts = change.hosts.clone();
        let is_durable = tail.records + records.len() >= DURABLE_EVERY;
        let durability = if is_durable { Durability::Immediate } else { Durability::None };
        self.db.write(durability, |txn| {
            change.write(store, txn)?;
            if unadopted {
                txn.open_table(META)?.insert(&b"unadopted"[..], &[][..])?;
            }
            Ok(())
        })?;
        tail.records = if is_durable { 0 } else { tail.records + records.len() };
        match is_renamed {
            true => self.memo.clear(),
            false => self.memo.changed(change.places),
        }
        // Who sees the head sees the rows.
        self.known_mut().head = Some((store, change.head));
        Ok(())
    }

    /// Makes durable what came so far: a file that is freed must be found again by who starts after a crash, also with the store away.
    pub fn harden(&self) -> Result<(), JournalError> {
        let mut tail = self.tail();
        if tail.records > 0 {
            self.db.write(Durability::Immediate, |txn| Ok(txn.open_table(META).map(drop)?))?;
            tail.records = 0;
        }
        Ok(())
    }

    /// Whether records came that the journal has not looked at, or may not have.
    pub fn is_unadopted(&self) -> Result<bool, JournalError> {
        Ok(self.db.get(META, b"unadopted")?.is_some())
    }

    /// The journal has looked at all records that came.
    pub fn adopted(&self) -> Result<(), JournalError> {
        let _tail = self.tail();
        self.db.write(Durability::None, |txn| {
            txn.open_table(META)?.remove(&b"unadopted"[..])?;
            Ok(())
        })
    }

    /// Forgets the catalog and begins with `store`'s. Manifests stay, their names say what they are, and so do the hosts' numbers, which
    /// who reads a row meanwhile still needs.
    pub fn reset(&self, store: StoreUuid) -> Result<(), JournalError> {
        let mut tail = self.tail();
        let head = Head::genesis(store);
        self.db.write(Durability::Immediate, |txn| {
            for table in [UNITS, RETIRED] {
                txn.delete_table(table)?;
                txn.open_table(table)?;
            }
            txn.open_table(META)?.insert(&b"head"[..], &encode(&(store, head))[..])?;
            Ok(())
        })?;
        tail.records = 0;
        self.memo.clear();
        self.known_mut().head = Some((store, head));
        Ok(())
    }

    pub fn layers(&self, unit: &UnitId) -> Vec<LayerHead> {
        self.with_layers(unit, <[LayerHead]>::to_vec)
    }

    pub fn layer_of(&self, host: HostUuid, unit: &UnitId) -> Option<LayerHead> {
        self.with_layers(unit, |layers| layers.iter().find(|layer| layer.host == host).cloned())
    }

    pub fn has_other_than(&self, host: HostUuid, unit: &UnitId) -> bool {
        self.with_layers(unit, |layers| layers.iter().any(|layer| layer.host != host))
    }

    pub fn contains(&self, unit: &UnitId) -> bool {
        self.with_layers(unit, |layers| !layers.is_empty())
    }

    pub fn units(&self) -> Vec<UnitId> {
        self.units_below(&RelPath::ROOT)
    }

    /// Rows read from the disk since it was opened: what a test of the costs counts.
    #[cfg(test)]
    pub fn rows_read(&self) -> u64 {
        self.rows_read.load(Ordering::Relaxed)
    }

    pub fn unit_count(&self) -> usize {
        self.look(|units| Ok(units.len()?)).try_into().unwrap_or(usize::MAX)
    }

    /// Units of which `path` may be an entry.
    pub fn units_holding(&self, path: &RelPath) -> Vec<UnitId> {
        let trees = (1..=path.depth().min(UNIT_ROOT_DEPTH)).map(|depth| UnitId::tree(path.first(depth)));
        let loose = [Some(path.clone()), path.parent()].into_iter().flatten();
        let loose = loose.filter(|dir| dir.depth() < UNIT_ROOT_DEPTH).map(UnitId::loose);
        trees.chain(loose).filter(|unit| self.contains(unit)).collect()
    }

    pub fn units_below(&self, dir: &RelPath) -> Vec<UnitId> {
        let mut units = Vec::new();
        let _ = self.visit(dir, &mut |unit, _| {
            units.push(unit);
            ControlFlow::Continue(())
        });
        units
    }

    /// Shows units at and below `dir` with their layers, in the order of the tree, until `visit` has seen enough.
    pub fn visit(
        &self,
        dir: &RelPath,
        visit: &mut dyn FnMut(UnitId, &[LayerHead]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let prefix = dir_key(dir);
        if let Some(near) = self.near_below(dir) {
            return below(&near, &prefix).iter().try_for_each(|row| visit(self.unit(&row.key), &row.layers));
        }
        let mut from = prefix.clone();
        loop {
            let rows = self.rows(&from, &prefix, ROWS_AT_ONCE);
            rows.iter().try_for_each(|row| visit(self.unit(&row.key), &row.layers))?;
            match rows.last() {
                Some(last) if rows.len() == ROWS_AT_ONCE => from = [&last.key[..], &[0]].concat(),
                _ => return ControlFlow::Continue(()),
            }
        }
    }

    /// At most [`ROWS_AT_ONCE`] units that come after one in the order of the tree, with their layers.
    pub fn after(&self, unit: Option<&UnitId>) -> Vec<(UnitId, Vec<LayerHead>)> {
        let from = unit.map_or_else(Vec::new, |unit| [&unit_key(unit)[..], &[0]].concat());
        let rows = self.rows(&from, &[], ROWS_AT_ONCE);
        rows.into_iter().map(|row| (self.unit(&row.key), row.layers)).collect()
    }

    /// Tells the name in `dir` of each unit below it, and how much its layers have, in the order of the tree; one pass over the rows.
    pub fn weigh(&self, dir: &RelPath, tell: &mut dyn FnMut(&[u8], &[Weight])) {
        let prefix = dir_key(dir);
        let wrong = self.look(|units| {
            // Not before the rows are settled: these hosts are all that they name.
            let hosts = self.known().hosts.clone();
            let mut weights = Vec::new();
            for row in units.range::<&[u8]>(&prefix[..]..)? {
                let (key, value) = row?;
                let key = key.value();
                if !key.starts_with(&prefix) {
                    break;
                }
                let Some(name) = child_name(key, &prefix) else { continue };
                if let Err(why) = hosts.weigh(value.value(), &mut weights) {
                    return Ok(Some(why));
                }
                tell(name, &weights);
            }
            Ok(None)
        });
        if let Some(why) = wrong {
            self.lost(&why);
        }
    }

    /// Names directly in `dir` at or below which units lie.
    pub fn child_roots(&self, dir: &RelPath) -> BTreeSet<Vec<u8>> {
        let prefix = dir_key(dir);
        if let Some(near) = self.near_below(dir) {
            let keys = below(&near, &prefix).iter();
            return keys.filter_map(|row| child_name(&row.key, &prefix)).map(<[u8]>::to_vec).collect();
        }
        self.look(|units| {
            let (mut names, mut from) = (BTreeSet::new(), prefix.clone());
            while let Some(row) = units.range::<&[u8]>(&from[..]..)?.next() {
                let (key, _) = row?;
                let key = key.value();
                if !key.starts_with(&prefix) {
                    break;
                }
                match child_name(key, &prefix) {
                    Some(name) => {
                        names.insert(name.to_vec());
                        from = [&prefix[..], name, &[1]].concat();
                    }
                    None => from = [key, &[0]].concat(),
                }
            }
            Ok(names)
        })
    }

    fn unit(&self, key: &[u8]) -> UnitId {
        unit_of_key(key).unwrap_or_else(|| self.lost("a key is no unit"))
    }

    fn with_layers<T>(&self, unit: &UnitId, tell: impl FnOnce(&[LayerHead]) -> T) -> T {
        let key = unit_key(unit);
        if let Some(near) = Place::of(&unit.root).and_then(|place| self.near(place)) {
            let at = near.binary_search_by(|row| (*row.key).cmp(&key[..]));
            return tell(at.map_or(&[][..], |at| &near[at].layers));
        }
        let row = self.look(|units| Ok(units.get(&key[..])?.map(|row| row.value().to_vec())));
        tell(&row.map_or_else(Vec::new, |row| self.layers_in(&row)))
    }

    fn layers_in(&self, row: &[u8]) -> Vec<LayerHead> {
        self.rows_read.fetch_add(1, Ordering::Relaxed);
        self.known().hosts.tell(row).unwrap_or_else(|why| self.lost(&why))
    }

    /// The neighbourhood that has all that is at and below `dir`.
    fn near_below(&self, dir: &RelPath) -> Near {
        Place::of(dir).filter(|place| !place.is_shallow).and_then(|place| self.near(place))
    }

    fn near(&self, place: Place) -> Near {
        let changes = match self.memo.get(&place) {
            Ok(near) => return near,
            Err(changes) => changes,
        };
        let rows = match place.is_shallow {
            false => self.rows(&place.prefix, &place.prefix, NEAR_ROWS + 1),
            true => {
                [0, 1].iter().flat_map(|scope| self.row(&[&place.prefix[..], &[*scope]].concat())).collect()
            }
        };
        let near = (rows.len() <= NEAR_ROWS).then(|| Arc::new(rows));
        self.memo.put(changes, place, &near);
        near
    }

    fn row(&self, key: &[u8]) -> Option<Row> {
        let row = self.look(|units| Ok(units.get(key)?.map(|row| row.value().to_vec())))?;
        Some(Row { key: key.into(), layers: self.layers_in(&row) })
    }

    /// At most `max` rows from key `from` on whose keys begin with `prefix`.
    fn rows(&self, from: &[u8], prefix: &[u8], max: usize) -> Vec<Row> {
        let rows = self.look(|units| {
            let mut rows: Vec<(Box<[u8]>, Vec<u8>)> = Vec::new();
            for row in units.range::<&[u8]>(from..)?.take(max) {
                let (key, value) = row?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                rows.push((key.value().into(), value.value().to_vec()));
            }
            Ok(rows)
        });
        rows.into_iter().map(|(key, value)| Row { layers: self.layers_in(&value), key }).collect()
    }

    /// Reads the table of units. The database asserts some of what it reads, so a damaged file may make it panic.
    fn look<T>(&self, read: impl FnOnce(&Units) -> Result<T, redb::Error>) -> T {
        let look = || self.db.read(|txn| read(&txn.open_table(UNITS)?));
        match catch_unwind(AssertUnwindSafe(look)) {
            Ok(Ok(value)) => value,
            Ok(Err(e)) => self.lost(&e.to_string()),
            Err(_) => self.lost("its pages contradict one another"),
        }
    }

    /// The module's head says why this doesn't return.
    fn lost(&self, why: &str) -> ! {
        tracing::error!(
            path = %self.path.display(),
            "the replica of the catalog can't be read ({why}): start the mount again, and it is built anew from the store"
        );
        let _ = fs_err::remove_file(&self.path);
        panic!("the replica of the catalog can't be read: {why}");
    }

    /// A kept manifest; one that isn't what its name says isn't here.
    pub fn manifest(&self, hash: &Hash) -> Result<Option<Manifest>, JournalError> {
        let packed = self.db.get(MANIFESTS, &hash.0)?;
        Ok(packed.and_then(|packed| manifests::unpack(hash, &packed).ok()))
    }

    /// Keeps a manifest, not durably; drops the oldest beyond the bound.
    pub fn keep_manifest(&self, hash: &Hash, packed: &[u8]) -> Result<(), JournalError> {
        let mut tail = self.tail();
        let (age, mut bytes) = (tail.next_age, tail.manifest_bytes);
        let is_new = self.db.write(Durability::None, |txn| {
            let mut manifests = txn.open_table(MANIFESTS)?;
            if manifests.insert(&hash.0[..], packed)?.is_some() {
                return Ok(false);
            }
            let size =
                u32::try_from(packed.len()).expect("a compressed manifest is at most 256 MiB and a little");
            bytes += u64::from(size);
            let mut ages = txn.open_table(MANIFEST_AGE)?;
            ages.insert(&age.to_be_bytes()[..], &[&hash.0[..], &size.to_be_bytes()].concat()[..])?;
            while bytes > self.manifest_bytes_max {
                let Some(oldest) = ages.pop_first()?.map(|(_, aged)| aged.value().to_vec()) else { break };
                let Ok((hash, size)) = parse_aged(&oldest) else { continue };
                manifests.remove(&hash.0[..])?;
                bytes = bytes.saturating_sub(size.into());
            }
            txn.open_table(META)?.insert(&b"manifest_bytes"[..], &encode(&bytes)[..])?;
            Ok(true)
        })?;
        if is_new {
            (tail.next_age, tail.manifest_bytes) = (age + 1, bytes);
        }
        Ok(())
    }
}

/// The name that follows `prefix` in the key of a unit; the units of the directory itself have one byte there, their scope.
fn child_name<'a>(key: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let rest = &key[prefix.len()..];
    let end = rest.iter().position(|byte| *byte == 0).filter(|_| rest.len() > 1)?;
    Some(&rest[..end])
}

fn parse_age(key: &[u8]) -> Result<u64, &'static str> {
    key.try_into().map(u64::from_be_bytes).map_err(|_| "a manifest's age is 8 bytes")
}

fn parse_aged(value: &[u8]) -> Result<(Hash, u32), &'static str> {
    let wrong = "a manifest by age is 36 bytes";
    let (hash, size) = value.split_first_chunk::<32>().ok_or(wrong)?;
    Ok((Hash(*hash), size.try_into().map(u32::from_be_bytes).map_err(|_| wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_manifests_are_bounded_and_the_oldest_go_first() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("replica.redb");
        let mut replica = Replica::open(&file).expect("a new one");
        let keep = |replica: &Replica, i: u8| {
            replica.keep_manifest(&Hash([i; 32]), &[i; 100]).expect("kept");
        };
        let kept = |replica: &Replica| -> Vec<u8> {
            let mut kept = Vec::new();
            let take = |hash: &[u8], _: &[u8]| {
                kept.push(hash[0]);
                Ok(())
            };
            replica.db.scan(MANIFESTS, take).expect("readable");
            kept
        };
        replica.manifest_bytes_max = 450;
        (1..=6).for_each(|i| keep(&replica, i));
        keep(&replica, 6);
        assert_eq!(kept(&replica), [3, 4, 5, 6]);
        drop(replica);
        let mut replica = Replica::open(&file).expect("the same one");
        replica.manifest_bytes_max = 450;
        keep(&replica, 7);
        assert_eq!(kept(&replica), [4, 5, 6, 7], "ages and sizes are known again after a start");
    }
}
