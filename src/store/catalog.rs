//! The catalog file: the store's ordered log of records, and the only authority on what is committed.
//!
//! ```text
//! frame, 48 bytes and the record                  head file, 64 bytes
//!   0  magic "RFSc"                  4              0  magic "RFSh"                      4
//!   4  record bytes                  4  u32         4  version (1)                       4  u32
//!   8  durable catalog bytes         8  u64         8  last record's number              8  u64
//!  16  durable in packs: pack        4  u32        16  chain's hash after it            32
//!  20  zero                          4             48  BLAKE3 of the first 48, first 16 bytes
//!  24  durable in packs: offset      8  u64
//!  32  BLAKE3 of the first 32 bytes and the record, first 16 bytes
//!  48  record, CBOR
//! ```
//! Frames written together are a batch. Each says how long the catalog was when its batch began, which had been synced by then, and up to
//! where the packs had been synced: all packs with a lower number, and that pack up to the offset. So whoever opens the store knows what
//! may be torn (nothing that any later frame or the head file vouches for) and what must be whole.
//!
//! The head file is written over in place after each batch's sync, and is not synced itself. It is there to tell a catalog
//! that lost its last records, which a log alone can't, from one that never had them.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    io::{self, BufReader, Read},
    path::PathBuf,
    sync::{Arc, RwLock, RwLockReadGuard},
};

use super::{
    StoreError,
    copies::{CatalogCopy, open_catalog_copy},
    layout::{Layout, check16},
    lives::{Ended, Life, Lives},
    room::cut_back,
};
use crate::{
    catalog::{Commit, Head, Record},
    durable::{Disk, DiskFile},
    ids::{Hash, HostUuid, Incarnation, Scope, Seq, StoreUuid, UnitId},
    limits::RECORD_BYTES,
};

/// Bytes of a frame before its record.
pub const FRAME_BYTES: usize = 48;
const MAGIC: &[u8; 4] = b"RFSc";
const HEAD_MAGIC: &[u8; 4] = b"RFSh";
const HEAD_VERSION: u32 = 1;
const HEAD_BYTES: usize = 64;

/// Up to where the packs are synced: all with a lower number, and this one up to the offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackPoint {
    pub pack: u32,
    pub offset: u64,
}

/// A frame that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    catalog_bytes: u64,
    packs: PackPoint,
    record: Vec<u8>,
}

impl Frame {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(self.record.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.catalog_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.packs.pack.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.packs.offset.to_le_bytes());
        let check = check16(&[&bytes, &self.record]);
        bytes.extend_from_slice(&check);
        bytes.extend_from_slice(&self.record);
        bytes
    }

    /// A record's length by the frame's first bytes.
    fn record_bytes(head: &[u8; FRAME_BYTES]) -> Option<usize> {
        let bytes = u32::from_le_bytes(head[4..8].try_into().expect("four bytes")) as usize;
        (&head[..4] == MAGIC && bytes <= RECORD_BYTES).then_some(bytes)
    }

    fn parse(head: &[u8; FRAME_BYTES], record: Vec<u8>) -> Option<Self> {
        let u64_at = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let pack = u32::from_le_bytes(head[16..20].try_into().expect("four bytes"));
        let good = check16(&[&head[..32], &record]) == head[32..];
        good.then(|| Self { catalog_bytes: u64_at(8), packs: PackPoint { pack, offset: u64_at(24) }, record })
    }

    /// The next frame of `input`; `None` where it isn't one.
    fn read(input: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; FRAME_BYTES];
        if !fill(input, &mut head)? {
            return Ok(None);
        }
        let Some(bytes) = Self::record_bytes(&head) else { return Ok(None) };
        let mut record = vec![0; bytes];
        Ok(if fill(input, &mut record)? { Self::parse(&head, record) } else { None })
    }

    pub(super) fn bytes(&self) -> u64 {
        (FRAME_BYTES + self.record.len()) as u64
    }
}

fn fill(input: &mut impl Read, out: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(out) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// Reads a file from `at` to `end` in order.
struct Sequential<'a> {
    file: &'a dyn DiskFile,
    at: u64,
    end: u64,
}

impl Read for Sequential<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let take = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(out.len());
        self.file.read_at(self.at, &mut out[..take])?;
        self.at += take as u64;
        Ok(take)
    }
}

fn sequential(file: &dyn DiskFile, at: u64, end: u64) -> BufReader<Sequential<'_>> {
    let capacity = (end - at).min(1 << 20) as usize;
    BufReader::with_capacity(capacity, Sequential { file, at, end })
}

fn encode_head(head: Head) -> Vec<u8> {
    let mut bytes = HEAD_MAGIC.to_vec();
    bytes.extend_from_slice(&HEAD_VERSION.to_le_bytes());
    bytes.extend_from_slice(&head.seq.0.to_le_bytes());
    bytes.extend_from_slice(&head.chain.0);
    let check = check16(&[&bytes]);
    bytes.extend_from_slice(&check);
    bytes
}

fn parse_head(bytes: &[u8]) -> Option<Head> {
    let bytes: &[u8; HEAD_BYTES] = bytes.try_into().ok()?;
    let good = &bytes[..4] == HEAD_MAGIC
        && bytes[4..8] == HEAD_VERSION.to_le_bytes()
        && check16(&[&bytes[..48]]) == bytes[48..];
    let seq = Seq(u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes")));
    good.then(|| Head { seq, chain: Hash(bytes[16..48].try_into().expect("32 bytes")) })
}

/// What the head file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// It isn't there.
    Missing,
    /// It can't be read: torn by a crash, or damaged.
    Unreadable,
    /// The catalog had at least these records.
    Says(Head),
}

impl Witness {
    /// Reads the head file.
    pub fn read(disk: &dyn Disk, layout: &Layout) -> Result<Self, StoreError> {
        let file = match disk.open_read(&layout.head()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::Missing),
            file => file?,
        };
        if file.len()? != HEAD_BYTES as u64 {
            return Ok(Self::Unreadable);
        }
        let mut bytes = [0; HEAD_BYTES];
        file.read_at(0, &mut bytes)?;
        Ok(parse_head(&bytes).map_or(Self::Unreadable, Self::Says))
    }
}

/// What a catalog file was found to be.
#[derive(Debug)]
pub struct Walk {
    pub head: Head,
    /// Where it ends; what is behind that is torn.
    pub end: u64,
    /// Up to where the last record found the packs synced.
    pub packs: PackPoint,
    /// Why what is behind `end` can't be a torn tail.
    pub damage: Option<CatalogDamage>,
}

/// Why a catalog can't be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogDamage {
    /// A record that was synced isn't what it was.
    Broken(String),
    /// Records that were synced are gone from its end.
    Truncated(String),
}

impl fmt::Display for CatalogDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Broken(what) | Self::Truncated(what)) = self;
        f.write_str(what)
    }
}

/// Reads a catalog's first `bytes` bytes and hands every record with its frame's offset to `each`, in order.
pub fn walk(
    file: &dyn DiskFile,
    bytes: u64,
    store: StoreUuid,
    witness: Witness,
    mut each: impl FnMut(u64, Record),
) -> Result<Walk, StoreError> {
    let mut walk = Walk { head: Head::genesis(store), end: 0, packs: PackPoint::default(), damage: None };
    let mut input = sequential(file, 0, bytes);
    while walk.end < bytes && walk.damage.is_none() {
        let Some(frame) = Frame::read(&mut input)? else { break };
        match minicbor::decode::<Record>(&frame.record).ok().and_then(|r| Some((walk.head.follow(&r)?, r))) {
            Some((head, record)) => {
                each(walk.end, record);
                walk.head = head;
                walk.packs = frame.packs;
                walk.end += frame.bytes();
            }
            None => walk.broken(format!("the record after {} breaks the chain", walk.head.seq)),
        }
        walk.doubt(witness);
    }
    if walk.damage.is_none() && walk.end < bytes && vouched_for(file, walk.end, bytes)? {
        walk.broken(format!("the record after {} is damaged, and later ones aren't", walk.head.seq));
    }
    if let (Witness::Says(head), None) = (witness, &walk.damage)
        && head.seq > walk.head.seq
    {
        let what = format!("it ends with record {}, and had {}", walk.head.seq, head.seq);
        walk.damage = Some(CatalogDamage::Truncated(what));
    }
    Ok(walk)
}

impl Walk {
    /// A record that the copy goes on with was in the catalog, too, which has lost it.
    pub fn compare(&mut self, copy: &dyn DiskFile) -> Result<(), StoreError> {
        if self.damage.is_none() && next_record(copy, self.end, self.head)?.is_some() {
            let what = format!("it ends with record {}, and its copy goes on", self.head.seq);
            self.damage = Some(CatalogDamage::Truncated(what));
        }
        Ok(())
    }

    fn broken(&mut self, what: String) {
        self.damage = Some(CatalogDamage::Broken(what));
    }

    /// The chain must go through what the head file says.
    fn doubt(&mut self, witness: Witness) {
        if let Witness::Says(head) = witness
            && head.seq == self.head.seq
            && head.chain != self.head.chain
        {
            self.broken(format!("record {} isn't the one that the head file knows", head.seq));
        }
    }
}

/// The frame at `at`, and where its record leaves the chain, if it is whole and follows `head`.
pub(super) fn next_record(
    file: &dyn DiskFile,
    at: u64,
    head: Head,
) -> Result<Option<(Frame, Head)>, StoreError> {
    let bytes = file.len()?;
    if at >= bytes {
        return Ok(None);
    }
    let mut input = Sequential { file, at, end: bytes };
    let frame = Frame::read(&mut input)?;
    let follows = |frame: Frame| {
        let record: Record = minicbor::decode(&frame.record).ok()?;
        head.follow(&record).map(|head| (frame, head))
    };
    Ok(frame.and_then(follows))
}

/// Whether a whole frame behind `at` belongs to a batch that began behind `at`, so that what is at `at` was synced before.
pub(super) fn vouched_for(file: &dyn DiskFile, at: u64, end: u64) -> Result<bool, StoreError> {
    const STEP: u64 = 1 << 20;
    let mut from = at;
    while from < end {
        let window = (end - from).min(STEP + MAGIC.len() as u64 - 1);
        let mut bytes = vec![0; window as usize];
        file.read_at(from, &mut bytes)?;
        for found in (0..bytes.len()).filter(|i| bytes[*i..].starts_with(MAGIC)) {
            // Without a buffer: it would read a mebibyte ahead for each, and a host's names may be full of such.
            let frame = Frame::read(&mut Sequential { file, at: from + found as u64, end })?;
            if frame.is_some_and(|frame| frame.catalog_bytes > at) {
                return Ok(true);
            }
        }
        from += STEP;
    }
    Ok(false)
}

/// A layer's or manifest's name in memory, 16 bytes of its hash: what is found by it is compared in full before it is believed.
type Key = [u8; 16];

fn layer_key(host: HostUuid, unit: &UnitId, incarnation: Incarnation) -> Key {
    let life = incarnation.0.to_le_bytes();
    check16(&[&host.0, &life, &[matches!(unit.scope, Scope::Loose) as u8], unit.root.as_bytes()])
}

fn manifest_key(hash: &Hash) -> Key {
    hash.0[..16].try_into().expect("sixteen bytes")
}

/// What is kept in memory of the catalog: about 100 bytes a record.
#[derive(Debug)]
struct Known {
    /// Where each record's frame begins; number 1 is at index 0.
    offsets: Vec<u64>,
    /// Each layer's last record.
    layers: HashMap<Key, Seq>,
    lives: Lives,
    /// The last record that names the manifest: the others may be given up before.
    manifests: HashMap<Key, Seq>,
    /// Packs that are gone by right.
    reclaimed: BTreeSet<u32>,
    head: Head,
    end: u64,
}

impl Known {
    fn add(&mut self, offset: u64, record: &Record) {
        self.offsets.push(offset);
        if let Some(commit) = record.commit() {
            self.layers.insert(layer_key(commit.host, &commit.unit, commit.incarnation), record.seq);
            self.manifests.insert(manifest_key(&commit.manifest), record.seq);
        }
        self.reclaimed.extend(record.reclaimed());
        self.lives.take(record);
    }
}

/// An open catalog. Many read; one at a time appends, which is the caller's business to see to.
#[derive(Debug)]
pub struct Catalog {
    file: Arc<dyn DiskFile>,
    head_file: Arc<dyn DiskFile>,
    path: PathBuf,
    /// The store's.
    dir: PathBuf,
    copy: CatalogCopy,
    known: RwLock<Known>,
}

impl Catalog {
    /// Opens the catalog, cuts a torn tail and makes what is left durable. Damage is an error and changes nothing.
    pub fn open(disk: &dyn Disk, layout: &Layout, store: StoreUuid) -> Result<(Self, PackPoint), StoreError> {
        let witness = Witness::read(disk, layout)?;
        let file = match disk.open(&layout.catalog()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Damaged { path: layout.catalog(), what: "it is missing".to_owned() });
            }
            file => file?,
        };
        let bytes = file.len()?;
        let genesis = Head::genesis(store);
        let (layers, lives, manifests, reclaimed) = Default::default();
        let mut known =
            Known { offsets: Vec::new(), layers, lives, manifests, reclaimed, head: genesis, end: 0 };
        let mut walk = walk(&*file, bytes, store, witness, |offset, record| known.add(offset, &record))?;
        if let Some(copy) = open_catalog_copy(disk, layout)? {
            walk.compare(&*copy)?;
        }
        if let Some(damage) = walk.damage {
            return Err(StoreError::Damaged { path: layout.catalog(), what: damage.to_string() });
        }
        if walk.end < bytes {
            tracing::warn!(bytes = bytes - walk.end, "cut the catalog's torn tail");
            file.set_len(walk.end)?;
        }
        // A killed process may have left records that were written and never synced.
        file.sync_data()?;
        (known.head, known.end) = (walk.head, walk.end);
        let head_file = open_head(disk, layout)?;
        let (path, dir) = (layout.catalog(), layout.dir().to_owned());
        let copy = CatalogCopy::open(disk, layout, &*file, walk.end);
        let catalog = Self { file, head_file, path, dir, copy, known: RwLock::new(known) };
        catalog.write_head(walk.head)?;
        Ok((catalog, walk.packs))
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().expect("nothing panics while it holds the catalog's lock")
    }

    /// Where it stands.
    pub fn head(&self) -> Head {
        self.known().head
    }

    /// Where it stands, and its length there.
    pub fn extent(&self) -> (Head, u64) {
        let known = self.known();
        (known.head, known.end)
    }

    /// Its length, bytes.
    pub fn bytes(&self) -> u64 {
        self.known().end
    }

    /// Packs that are gone by right.
    pub fn reclaimed(&self) -> BTreeSet<u32> {
        self.known().reclaimed.clone()
    }

    /// Whether a pack is gone by right.
    pub fn is_reclaimed(&self, pack: u32) -> bool {
        self.known().reclaimed.contains(&pack)
    }

    /// How many layers it knows.
    pub fn layers(&self) -> usize {
        self.known().layers.len()
    }

    /// Writes `records`, which follow the head, as one batch, and makes them durable. `packs` says up to where packs are.
    /// After an error nothing more may be appended, but where there was no room: then nothing has changed.
    pub fn append(&self, records: &[Record], packs: PackPoint) -> Result<(), StoreError> {
        let (mut head, start) = (self.head(), self.bytes());
        let (mut bytes, mut offsets) = (Vec::new(), Vec::new());
        for record in records {
            head = head.follow(record).expect("the writer makes records that follow");
            offsets.push(start + bytes.len() as u64);
            let frame = Frame { catalog_bytes: start, packs, record: record.encode() };
            assert!(frame.record.len() <= RECORD_BYTES, "a record's parts are bounded");
            bytes.extend_from_slice(&frame.encode());
        }
        if let Err(error) = self.file.write_at(start, &bytes) {
            return Err(cut_back(error, &*self.file, start, &self.dir));
        }
        self.file.sync_data()?;
        self.copy.append(&*self.file, start, &bytes);
        let mut known = self.known.write().expect("nothing panics while it holds the catalog's lock");
        offsets.iter().zip(records).for_each(|(offset, record)| known.add(*offset, record));
        (known.head, known.end) = (head, start + bytes.len() as u64);
        drop(known);
        self.write_head(head)
    }

    fn write_head(&self, head: Head) -> Result<(), StoreError> {
        Ok(self.head_file.write_at(0, &encode_head(head))?)
    }

    /// The record with this number.
    pub fn record(&self, seq: Seq) -> Result<Option<Record>, StoreError> {
        match seq.0.checked_sub(1) {
            None => Ok(None),
            Some(before) => Ok(self.records_after(Seq(before), 1)?.pop()),
        }
    }

    /// Up to `max` records behind `seq`, in order.
    pub fn records_after(&self, seq: Seq, max: usize) -> Result<Vec<Record>, StoreError> {
        let (start, end, count) = {
            let known = self.known();
            let first = usize::try_from(seq.0).unwrap_or(usize::MAX).min(known.offsets.len());
            let last = first.saturating_add(max).min(known.offsets.len());
            let offset = |i: usize| known.offsets.get(i).copied().unwrap_or(known.end);
            (offset(first), offset(last), last - first)
        };
        let mut input = sequential(&*self.file, start, end);
        (0..count).map(|_| self.decode(Frame::read(&mut input)?)).collect()
    }

    fn decode(&self, frame: Option<Frame>) -> Result<Record, StoreError> {
        let damaged =
            || StoreError::Damaged { path: self.path.clone(), what: "a record that was good isn't".into() };
        minicbor::decode(&frame.ok_or_else(damaged)?.record).map_err(|_| damaged())
    }

    /// A layer's last commit.
    pub fn latest(
        &self,
        host: HostUuid,
        unit: &UnitId,
        incarnation: Incarnation,
    ) -> Result<Option<Record>, StoreError> {
        let seq = self.known().layers.get(&layer_key(host, unit, incarnation)).copied();
        let record = seq.map(|seq| self.record(seq)).transpose()?.flatten();
        Ok(record.filter(|r| {
            r.commit().is_some_and(|c| c.host == host && c.unit == *unit && c.incarnation == incarnation)
        }))
    }

    /// Where a unit stands.
    pub fn life(&self, unit: &UnitId) -> Life {
        self.known().lives.present(unit)
    }

    /// One of a unit's lives that have ended.
    pub fn ended(&self, unit: &UnitId, incarnation: Incarnation) -> Option<Ended> {
        self.known().lives.ended(unit, incarnation)
    }

    /// The life of a unit that was ended when `next` began, unless that was undone.
    pub fn ended_by(&self, unit: &UnitId, next: Incarnation) -> Option<Incarnation> {
        self.known().lives.ended_by(unit, next)
    }

    /// Whether the unit has, or had, this life.
    pub fn has_life(&self, unit: &UnitId, incarnation: Incarnation) -> bool {
        self.known().lives.has(unit, incarnation)
    }

    /// How many units it knows.
    pub fn units(&self) -> usize {
        self.known().lives.units()
    }

    /// Whether a commit with this number is given up, so that what only it names needn't be here.
    pub fn is_purged(&self, seq: Seq, commit: &Commit) -> bool {
        let ended = self.ended(&commit.unit, commit.incarnation);
        ended.is_some_and(|ended| ended.purged > seq)
    }

    /// Whether a commit with this number is the newest of its layer, in its unit's present life: so that it shows.
    pub fn shows(&self, seq: Seq, commit: &Commit) -> bool {
        let known = self.known();
        let key = layer_key(commit.host, &commit.unit, commit.incarnation);
        known.lives.present(&commit.unit).incarnation == commit.incarnation
            && known.layers.get(&key) == Some(&seq)
    }

    /// A commit of this manifest that isn't given up.
    pub fn with_manifest(&self, hash: &Hash) -> Result<Option<Record>, StoreError> {
        let seq = self.known().manifests.get(&manifest_key(hash)).copied();
        let record = seq.map(|seq| self.record(seq)).transpose()?.flatten();
        Ok(record.filter(|record| {
            let is_it = |commit: &Commit| commit.manifest == *hash && !self.is_purged(record.seq, commit);
            record.commit().is_some_and(is_it)
        }))
    }
}

fn open_head(disk: &dyn Disk, layout: &Layout) -> Result<Arc<dyn DiskFile>, StoreError> {
    let file = match disk.open(&layout.head()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => disk.create(&layout.head())?,
        file => file?,
    };
    file.set_len(HEAD_BYTES as u64)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A file that counts what is read of it.
    #[derive(Debug)]
    struct Counted(Vec<u8>, AtomicU64);

    impl DiskFile for Counted {
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }

        fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.1.fetch_add(out.len() as u64, Ordering::Relaxed);
            out.copy_from_slice(&self.0[offset as usize..][..out.len()]);
            Ok(())
        }

        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            unreachable!("is only read")
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            unreachable!("is only read")
        }

        fn sync_data(&self) -> io::Result<()> {
            unreachable!("is only read")
        }
    }

    /// Names of hosts and jobs are in records as they are: a torn one may be full of what frames begin with.
    #[test]
    fn a_torn_tail_full_of_beginnings_is_read_few_times_over() {
        let torn = Counted(MAGIC.repeat(64 << 10), AtomicU64::new(0));
        let bytes = torn.0.len() as u64;
        assert!(!vouched_for(&torn, 0, bytes).expect("reads"));
        let read = torn.1.load(Ordering::Relaxed);
        assert!(read <= bytes + bytes / 4 * FRAME_BYTES as u64, "{read} of {bytes}");
    }
}
