//! Reads: when somebody read something of a unit last, as far as hosts have told. `prune --unread-for` goes by it.
//!
//! ```text
//! magic "RFSr", version (1) u32 LE           then entries of 32 bytes:   0  unit's key   16
//! the first entry's key is zeros, and its                               16  time, ms      8  u64 LE
//! time is when the record of reads began                                24  BLAKE3 of the 24 bytes before, first 8
//! ```
//! A unit's key is that of [`super::lives`]. In memory 24 bytes a unit that was ever read.
//!
//! Invariant: nothing counts as unread longer than it was. What isn't known counts as read when the record began; it begins anew where the file is
//! missing, another's, or damaged before its end. An entry is synced before the host hears of it; one that is torn at the end was never acknowledged.

use std::{collections::HashMap, io, path::PathBuf, sync::Arc};

use super::{Store, layout::Layout, lives::unit_key};
use crate::{
    durable::{self, Disk, DiskFile},
    ids::{Hash, UnitId},
};

type Key = [u8; 16];

/// Begins the file; then the version.
const MAGIC: &[u8; 8] = b"RFSr\x01\0\0\0";
const ENTRY_BYTES: usize = 32;
/// The key of the entry that says since when there are entries.
const SINCE: Key = [0; 16];
/// A unit is noted again when it was read this much later.
const NOTED_AGAIN_MS: u64 = 3_600_000;
/// The file is written anew when it has this many entries, and four times as many as there are units.
const COMPACT_ENTRIES: u64 = 64 << 10;

/// The file and what it says.
#[derive(Debug)]
pub(super) struct Reads {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// None while it couldn't be made: a store whose disk is full opens all the same.
    file: Option<Arc<dyn DiskFile>>,
    bytes: u64,
    since_ms: u64,
    units: HashMap<Key, u64>,
}

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parsed {
    since_ms: Option<u64>,
    units: HashMap<Key, u64>,
    /// Where what follows is torn.
    end: usize,
}

impl Reads {
    /// Opens the file, or begins one at `now_ms`.
    pub fn open(disk: Arc<dyn Disk>, layout: &Layout, now_ms: u64) -> io::Result<Self> {
        let path = layout.reads();
        let (file, bytes) = match disk.open(&path) {
            Ok(file) => {
                let bytes = durable::read_all(&*file)?;
                (Some(file), bytes)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => (None, Vec::new()),
            Err(e) => return Err(e),
        };
        let Parsed { since_ms, units, end } = parse(&bytes);
        if let (Some(file), Some(since_ms)) = (file, since_ms) {
            file.set_len(end as u64)?;
            return Ok(Self { disk, path, file: Some(file), bytes: end as u64, since_ms, units });
        }
        if !bytes.is_empty() {
            tracing::warn!("the record of reads is damaged; what it doesn't tell counts as read now");
        }
        let mut reads = Self { disk, path, file: None, bytes: 0, since_ms: now_ms, units };
        if let Err(error) = reads.rewrite() {
            tracing::warn!(%error, "what is read can't be noted");
        }
        Ok(reads)
    }

    /// Notes that something of these was read now; durable when it returns.
    fn note(&mut self, keys: impl Iterator<Item = Key>, now_ms: u64) -> io::Result<()> {
        let is_late =
            |known: Option<&u64>| known.is_none_or(|at| now_ms >= at.saturating_add(NOTED_AGAIN_MS));
        let keys: Vec<Key> = keys.filter(|key| is_late(self.units.get(key))).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let file = match &self.file {
            Some(file) => file.clone(),
            None => self.rewrite()?,
        };
        let entries: Vec<u8> = keys.iter().flat_map(|key| entry(key, now_ms)).collect();
        if let Err(error) = file.write_at(self.bytes, &entries).and_then(|()| file.sync_data()) {
            // What was written of it would be in front of what is written next.
            file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += entries.len() as u64;
        self.units.extend(keys.into_iter().map(|key| (key, now_ms)));
        let count = self.bytes / ENTRY_BYTES as u64;
        if count > COMPACT_ENTRIES && count > 4 * self.units.len() as u64 {
            self.rewrite().map(drop)
        } else {
            Ok(())
        }
    }

    /// Puts what is known in place of all that is there.
    fn rewrite(&mut self) -> io::Result<Arc<dyn DiskFile>> {
        let encoded = encode(self.since_ms, &self.units);
        durable::write_atomic_on(&*self.disk, &self.path, &encoded)?;
        let file = self.disk.open(&self.path)?;
        self.file = Some(file.clone());
        self.bytes = encoded.len() as u64;
        Ok(file)
    }
}

fn entry(key: &Key, time_ms: u64) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    entry[..16].copy_from_slice(key);
    entry[16..24].copy_from_slice(&time_ms.to_le_bytes());
    let check = Hash::of(&entry[..24]);
    entry[24..].copy_from_slice(&check.0[..8]);
    entry
}

fn encode(since_ms: u64, units: &HashMap<Key, u64>) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(entry(&SINCE, since_ms));
    units.iter().for_each(|(key, time_ms)| bytes.extend(entry(key, *time_ms)));
    bytes
}

/// Every good entry. Since when they are all that were made is only said where nothing but the end is bad.
fn parse(bytes: &[u8]) -> Parsed {
    let Some(entries) = bytes.strip_prefix(MAGIC) else { return Parsed::default() };
    let mut parsed = Parsed { end: MAGIC.len(), ..Parsed::default() };
    let mut has_gap = false;
    for (number, bytes) in entries.chunks(ENTRY_BYTES).enumerate() {
        let Some((key, time_ms)) = parse_entry(bytes) else {
            has_gap = true;
            continue;
        };
        match (key, has_gap) {
            (_, true) => parsed.since_ms = None,
            (SINCE, false) if number == 0 => parsed.since_ms = Some(time_ms),
            _ => {}
        }
        let known = parsed.units.entry(key).or_default();
        *known = time_ms.max(*known);
        parsed.end = MAGIC.len() + (number + 1) * ENTRY_BYTES;
    }
    parsed.units.remove(&SINCE);
    parsed
}

fn parse_entry(bytes: &[u8]) -> Option<(Key, u64)> {
    let bytes: &[u8; ENTRY_BYTES] = bytes.try_into().ok()?;
    let key = bytes[..16].try_into().expect("16 of 32 bytes");
    let time_ms = u64::from_le_bytes(bytes[16..24].try_into().expect("8 of 32 bytes"));
    (entry(&key, time_ms) == *bytes).then_some((key, time_ms))
}

/// Whether a file is as it was written, but for its end.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    parse(bytes).since_ms.is_some()
}

impl Store {
    /// Notes that somebody has read something of these units; durable when it returns. Of those that aren't in the catalog nothing is noted.
    pub fn note_reads(&self, units: &[UnitId]) -> io::Result<()> {
        let known = units.iter().filter(|unit| self.catalog.life(unit).last.0 > 0);
        self.reads().note(known.map(unit_key), self.clock.now_ms())
    }

    /// When something of this unit was read last, at the latest: ms since the epoch, by this store's clock.
    pub fn last_read_ms(&self, unit: &UnitId) -> u64 {
        let reads = self.reads();
        reads.units.get(&unit_key(unit)).copied().unwrap_or(reads.since_ms).max(reads.since_ms)
    }

    fn reads(&self) -> std::sync::MutexGuard<'_, Reads> {
        self.reads.lock().expect("nothing panics while it holds the lock of the reads")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::durable::sim::SimDisk;

    const KEYS: [Key; 3] = [[1; 16], [2; 16], [3; 16]];

    struct Bench {
        disk: Arc<SimDisk>,
        layout: Layout,
    }

    impl Bench {
        fn new() -> Self {
            let disk = Arc::new(SimDisk::new());
            disk.create_dir(Path::new("/store")).expect("made");
            Self { disk, layout: Layout::new(Path::new("/store")) }
        }

        fn open(&self, now_ms: u64) -> Reads {
            Reads::open(self.disk.clone(), &self.layout, now_ms).expect("opens")
        }
    }

    #[test]
    fn what_was_noted_is_there_after_it_was_opened_again() {
        let bench = Bench::new();
        let mut reads = bench.open(5);
        reads.note(KEYS[..2].iter().copied(), 100).expect("notes");
        let bytes = reads.bytes;
        reads.note(KEYS[..1].iter().copied(), 200).expect("notes");
        assert_eq!(reads.bytes, bytes, "once an hour");
        reads.note(KEYS[..1].iter().copied(), 100 + NOTED_AGAIN_MS).expect("notes");
        let again = bench.open(900);
        assert_eq!((again.since_ms, again.bytes), (5, reads.bytes));
        assert_eq!(again.units, HashMap::from([(KEYS[0], 100 + NOTED_AGAIN_MS), (KEYS[1], 100)]));
    }

    #[test]
    fn a_file_of_old_entries_is_written_anew() {
        let bench = Bench::new();
        let mut reads = bench.open(0);
        for time in 1..=COMPACT_ENTRIES / 3 + 1 {
            reads.note(KEYS.into_iter(), time * NOTED_AGAIN_MS).expect("notes");
        }
        assert!(reads.bytes < 40 * ENTRY_BYTES as u64, "{}", reads.bytes);
        assert_eq!(bench.open(9).units, reads.units);
    }

    /// What is lost of it makes nothing look longer unread than it is: either all that was noted is known, or the record begins anew.
    #[test]
    fn damage_and_torn_ends_make_nothing_look_unread() {
        let units: HashMap<Key, u64> = KEYS.into_iter().zip([10, 20, 30]).collect();
        let good = encode(5, &units);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let parsed = parse(&bad);
            let lost = units.iter().filter(|(key, time)| parsed.units.get(*key) != Some(time)).count();
            let is_last = at >= good.len() - ENTRY_BYTES;
            assert_eq!(parsed.since_ms.is_some(), is_last, "byte {at}");
            assert!(lost <= 1 || at < MAGIC.len(), "byte {at}");
            assert_eq!(is_whole(&bad), is_last);
        }
        for len in 0..good.len() {
            let parsed = parse(&good[..len]);
            assert!(parsed.end <= len);
            assert_eq!(parsed.since_ms.is_some(), len >= MAGIC.len() + ENTRY_BYTES, "cut at {len}");
        }
    }

    #[test]
    fn after_damage_the_record_begins_anew_with_what_is_left() {
        let bench = Bench::new();
        let mut reads = bench.open(5);
        reads.note(KEYS.into_iter(), 100).expect("notes");
        let file = reads.file.expect("it was made");
        file.write_at(MAGIC.len() as u64 + 40, b"x").expect("damages");
        let again = bench.open(700);
        assert_eq!((again.since_ms, again.units.len()), (700, 2));
        assert_eq!(bench.open(800).since_ms, 700);
    }
}
