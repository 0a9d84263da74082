//! The replica of the store's catalog: who committed which unit, in which generations, as which manifest.
//!
//! All of it is derived: the file can be deleted at any time and comes back from the store. Therefore its commits needn't be
//! durable one by one; records and head are written in one transaction, so a crash loses a tail of the catalog and
//! nothing else, and that tail is asked for again. It also keeps other hosts' manifests, the oldest of which
//! go first when they become too many.
//!
//! Layers are held in memory in their stored form (about 60 bytes each), so that looks never wait for the disk.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    path::Path,
    sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard},
};

use minicbor::{Decode, Encode};
use redb::{Durability, ReadableTable as _, TableDefinition, WriteTransaction};

use super::{
    db::{Bytes, Db, MANIFESTS, META, UNITS, dir_key, encode, unit_key, unit_of_key},
    error::{JournalError, ReplicaError},
    manifests,
};
use crate::{
    catalog::{Head, Record},
    ids::{Generation, Hash, HostUuid, RelPath, Seq, StoreUuid, UnitId},
    limits::{self, UNIT_ROOT_DEPTH},
    manifest::Manifest,
};

/// Hosts by number: the UUID is in each layer otherwise.
const HOSTS: Bytes = TableDefinition::new("hosts");
/// Manifests by age: a running number, then hash and stored size.
const MANIFEST_AGE: Bytes = TableDefinition::new("manifest_age");

/// Memory for the database's pages: the rows are in memory anyhow, only manifests are read from it.
const CACHE_BYTES: usize = 16 << 20;
/// Records after which a transaction is made durable: as many are asked for again after a crash.
const DURABLE_EVERY: usize = 4096;

/// One host's layer of a unit, as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerHead {
    pub host: HostUuid,
    /// The host's name when it committed last.
    pub host_name: String,
    /// Every commit of this layer, in ascending order of both.
    pub commits: Vec<(Generation, Seq)>,
    /// Of the newest commit, and likewise below.
    pub manifest: Hash,
    pub generation: Generation,
    /// The store's time, ms since the epoch.
    pub time_ms: u64,
    /// Sum of its regular files' sizes.
    pub bytes: u64,
    /// Entries in its manifest.
    pub entries: u64,
    pub lost: bool,
    /// Who made a dead host's last snapshot this commit; nobody if the host committed it itself.
    pub adopted_by: Option<String>,
}

impl LayerHead {
    /// The sequence number of what has been as it is since generation `since`: that of the layer's first commit with this
    /// generation or a later one.
    pub fn seq_of(&self, since: Generation) -> Option<Seq> {
        let at = self.commits.partition_point(|(generation, _)| *generation < since);
        self.commits.get(at).map(|(_, seq)| *seq)
    }

    /// The newest commit's sequence number.
    pub fn seq(&self) -> Seq {
        self.commits.last().expect("a layer is in the catalog by a commit").1
    }

    /// Whether its newest revision is a snapshot of what still runs.
    pub fn is_live(&self) -> bool {
        self.seq().is_live()
    }

    /// The newest commit's sequence number; of a layer that only runs none.
    pub fn committed_seq(&self) -> Option<Seq> {
        self.commits.iter().map(|(_, seq)| *seq).rfind(|seq| !seq.is_live())
    }
}

/// A layer as it is stored.
#[derive(Debug, Clone, Encode, Decode)]
struct Layer {
    #[n(0)]
    host: u32,
    #[n(1)]
    manifest: Hash,
    #[n(2)]
    time_ms: u64,
    #[n(3)]
    bytes: u64,
    #[n(4)]
    entries: u64,
    #[n(5)]
    lost: bool,
    #[n(6)]
    commits: Vec<(Generation, Seq)>,
    #[n(7)]
    adopted_by: Option<String>,
}

#[derive(Debug, Default)]
struct Index {
    head: Option<(StoreUuid, Head)>,
    hosts: Vec<(HostUuid, String)>,
    host_numbers: HashMap<HostUuid, u32>,
    /// Stored layers by unit key.
    units: BTreeMap<Box<[u8]>, Box<[u8]>>,
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
    manifest_bytes_max: u64,
    index: RwLock<Index>,
    /// Held over a transaction and the change of the index that goes with it.
    tail: Mutex<Tail>,
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
        let db = Db::open(path, CACHE_BYTES, &[META, HOSTS, UNITS, MANIFESTS, MANIFEST_AGE])?;
        let mut index = Index::default();
        if let Some(head) = db.get(META, b"head")? {
            index.head = Some(minicbor::decode(&head).map_err(|e| db.damaged(e))?);
        }
        db.scan(HOSTS, |_, value| {
            let (uuid, name) = minicbor::decode(value).map_err(|e| e.to_string())?;
            index.host_number(uuid, name);
            Ok(())
        })?;
        db.scan(UNITS, |key, value| {
            unit_of_key(key).ok_or("a key is no unit")?;
            let layers: Vec<Layer> = minicbor::decode(value).map_err(|e| e.to_string())?;
            let is_good = |l: &Layer| (l.host as usize) < index.hosts.len() && !l.commits.is_empty();
            if !layers.iter().all(is_good) {
                return Err("a layer without host or commit".into());
            }
            index.units.insert(key.into(), value.into());
            Ok(())
        })?;
        let mut tail = Tail::default();
        db.scan(MANIFEST_AGE, |key, value| {
            let (age, (_, size)) = (parse_age(key)?, parse_aged(value)?);
            tail.next_age = age + 1;
            tail.manifest_bytes += u64::from(size);
            Ok(())
        })?;
        let (index, tail) = (RwLock::new(index), Mutex::new(tail));
        Ok(Self { db, manifest_bytes_max: limits::REPLICA_MANIFESTS_BYTES, index, tail })
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().expect("no code panics under this lock")
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().expect("no code panics under this lock")
    }

    pub fn head(&self) -> Option<(StoreUuid, Head)> {
        self.index().head
    }

    /// Takes records that follow the head, all or none. Those that it has already are passed over.
    pub fn follow(&self, store: StoreUuid, records: &[Record]) -> Result<(), ReplicaError> {
        let mut tail = self.tail();
        let (change, index) = {
            let index = self.index();
            let head = match index.head {
                None => Head::genesis(store),
                Some((have, head)) if have == store => head,
                Some((have, _)) => return Err(ReplicaError::OtherStore { have, got: store }),
            };
            (Change::of(&index, head, records)?, index)
        };
        drop(index);
        let is_durable = tail.records + records.len() >= DURABLE_EVERY;
        let durability = if is_durable { Durability::Immediate } else { Durability::None };
        self.db.write(durability, |txn| change.write(store, txn))?;
        tail.records = if is_durable { 0 } else { tail.records + records.len() };
        change.apply(store, &mut self.index.write().expect("no code panics under this lock"));
        Ok(())
    }

    /// Forgets the catalog and begins with `store`'s. Manifests stay: their names say what they are.
    pub fn reset(&self, store: StoreUuid) -> Result<(), JournalError> {
        let mut tail = self.tail();
        let head = Head::genesis(store);
        self.db.write(Durability::Immediate, |txn| {
            txn.delete_table(UNITS)?;
            txn.delete_table(HOSTS)?;
            txn.open_table(UNITS)?;
            txn.open_table(HOSTS)?;
            txn.open_table(META)?.insert(&b"head"[..], &encode(&(store, head))[..])?;
            Ok(())
        })?;
        tail.records = 0;
        let mut index = self.index.write().expect("no code panics under this lock");
        *index = Index { head: Some((store, head)), ..Index::default() };
        Ok(())
    }

    pub fn layers(&self, unit: &UnitId) -> Vec<LayerHead> {
        let index = self.index();
        index.layers(&unit_key(unit)).into_iter().map(|layer| index.layer_head(layer)).collect()
    }

    pub fn layer_of(&self, host: HostUuid, unit: &UnitId) -> Option<LayerHead> {
        let index = self.index();
        let number = index.host_numbers.get(&host)?;
        let layer = index.layers(&unit_key(unit)).into_iter().find(|layer| layer.host == *number)?;
        Some(index.layer_head(layer))
    }

    pub fn has_other_than(&self, host: HostUuid, unit: &UnitId) -> bool {
        let index = self.index();
        let number = index.host_numbers.get(&host).copied();
        index.layers(&unit_key(unit)).iter().any(|layer| Some(layer.host) != number)
    }

    pub fn contains(&self, unit: &UnitId) -> bool {
        self.index().units.contains_key(&unit_key(unit)[..])
    }

    pub fn units(&self) -> Vec<UnitId> {
        self.index().units.keys().filter_map(|key| unit_of_key(key)).collect()
    }

    pub fn unit_count(&self) -> usize {
        self.index().units.len()
    }

    /// Units of which `path` may be an entry.
    pub fn units_holding(&self, path: &RelPath) -> Vec<UnitId> {
        let index = self.index();
        let trees = (1..=path.depth().min(UNIT_ROOT_DEPTH)).map(|depth| UnitId::tree(path.first(depth)));
        let loose = [Some(path.clone()), path.parent()].into_iter().flatten();
        let loose = loose.filter(|dir| dir.depth() < UNIT_ROOT_DEPTH).map(UnitId::loose);
        trees.chain(loose).filter(|unit| index.units.contains_key(&unit_key(unit)[..])).collect()
    }

    pub fn units_below(&self, dir: &RelPath) -> Vec<UnitId> {
        let index = self.index();
        below(&index.units, &dir_key(dir)).filter_map(|(key, _)| unit_of_key(key)).collect()
    }

    /// Names directly in `dir` at or below which units lie.
    pub fn child_roots(&self, dir: &RelPath) -> BTreeSet<Vec<u8>> {
        let index = self.index();
        let prefix = dir_key(dir);
        let mut names = BTreeSet::new();
        // The keys of `dir`'s own units have one byte after the prefix, their scope; those of its children have a name there.
        let mut from = prefix.clone();
        while let Some((key, _)) = below_from(&index.units, &from, &prefix).next() {
            let rest = &key[prefix.len()..];
            match rest.iter().position(|b| *b == 0) {
                Some(end) if rest.len() > 1 => {
                    names.insert(rest[..end].to_vec());
                    from = [&prefix[..], &rest[..end], &[1]].concat();
                }
                _ => from = [&key[..], &[0]].concat(),
            }
        }
        names
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
            Ok(true)
        })?;
        if is_new {
            (tail.next_age, tail.manifest_bytes) = (age + 1, bytes);
        }
        Ok(())
    }
}

impl Index {
    fn layers(&self, key: &[u8]) -> Vec<Layer> {
        self.units.get(key).map_or_else(Vec::new, |value| {
            minicbor::decode(value).expect("every value was decoded or encoded here before it came in")
        })
    }

    fn layer_head(&self, layer: Layer) -> LayerHead {
        let (host, host_name) = self.hosts[layer.host as usize].clone();
        let generation = layer.commits.last().expect("checked when it came in").0;
        let Layer { manifest, time_ms, bytes, entries, lost, commits, adopted_by, .. } = layer;
        LayerHead {
            host,
            host_name,
            commits,
            manifest,
            generation,
            time_ms,
            bytes,
            entries,
            lost,
            adopted_by,
        }
    }

    fn host_number(&mut self, host: HostUuid, name: String) -> u32 {
        let next = u32::try_from(self.hosts.len()).expect("hosts are not in the billions");
        let number = *self.host_numbers.entry(host).or_insert(next);
        if number == next {
            self.hosts.push((host, name));
        } else {
            self.hosts[number as usize].1 = name;
        }
        number
    }
}

/// What some records change.
struct Change {
    head: Head,
    hosts: Vec<(HostUuid, String)>,
    units: BTreeMap<Vec<u8>, Vec<Layer>>,
}

impl Change {
    fn of(index: &Index, head: Head, records: &[Record]) -> Result<Self, ReplicaError> {
        let mut hosts = Index {
            hosts: index.hosts.clone(),
            host_numbers: index.host_numbers.clone(),
            ..Index::default()
        };
        let mut change = Self { head, hosts: Vec::new(), units: BTreeMap::new() };
        for record in records.iter().filter(|record| record.seq > head.seq) {
            let gap = ReplicaError::Gap { have: change.head.seq, got: record.seq };
            change.head = change.head.follow(record).ok_or(gap)?;
            let commit = record.commit();
            let host = hosts.host_number(commit.host, commit.host_name.clone());
            let key = unit_key(&commit.unit);
            let layers = change.units.entry(key).or_insert_with_key(|key| index.layers(key));
            take(layers, host, record)?;
        }
        change.hosts = hosts.hosts;
        Ok(change)
    }

    fn write(&self, store: StoreUuid, txn: &WriteTransaction) -> Result<(), redb::Error> {
        let mut hosts = txn.open_table(HOSTS)?;
        for (number, host) in (0u32..).zip(&self.hosts) {
            let (key, value) = (number.to_be_bytes(), encode(host));
            if hosts.get(&key[..])?.is_none_or(|have| have.value() != &value[..]) {
                hosts.insert(&key[..], &value[..])?;
            }
        }
        let mut units = txn.open_table(UNITS)?;
        for (key, layers) in &self.units {
            units.insert(&key[..], &encode(layers)[..])?;
        }
        txn.open_table(META)?.insert(&b"head"[..], &encode(&(store, self.head))[..])?;
        Ok(())
    }

    fn apply(self, store: StoreUuid, index: &mut Index) {
        index.head = Some((store, self.head));
        for (host, name) in self.hosts {
            index.host_number(host, name);
        }
        for (key, layers) in self.units {
            index.units.insert(key.into(), encode(&layers).into());
        }
    }
}

/// Adds a commit to its host's layer among a unit's.
fn take(layers: &mut Vec<Layer>, host: u32, record: &Record) -> Result<(), ReplicaError> {
    let commit = record.commit();
    let at = layers.iter().position(|layer| layer.host == host);
    let mut commits = at.map_or_else(Vec::new, |at| layers[at].commits.clone());
    if let Some((have, _)) = commits.last().filter(|(have, _)| *have >= commit.generation) {
        return Err(ReplicaError::Generation {
            seq: record.seq,
            unit: commit.unit.clone(),
            have: *have,
            got: commit.generation,
        });
    }
    commits.push((commit.generation, record.seq));
    let layer = Layer {
        host,
        manifest: commit.manifest,
        time_ms: record.time_ms,
        bytes: commit.bytes,
        entries: commit.entries,
        lost: commit.lost,
        commits,
        adopted_by: commit.adopted_by.clone(),
    };
    match at {
        Some(at) => layers[at] = layer,
        None => layers.push(layer),
    }
    Ok(())
}

/// Rows whose key begins with `prefix`.
fn below<'a, V>(
    rows: &'a BTreeMap<Box<[u8]>, V>,
    prefix: &'a [u8],
) -> impl Iterator<Item = (&'a Box<[u8]>, &'a V)> {
    below_from(rows, prefix, prefix)
}

/// Those of them from key `from` on.
fn below_from<'a, V>(
    rows: &'a BTreeMap<Box<[u8]>, V>,
    from: &[u8],
    prefix: &'a [u8],
) -> impl Iterator<Item = (&'a Box<[u8]>, &'a V)> + use<'a, V> {
    rows.range::<[u8], _>((Bound::Included(from), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(prefix))
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
