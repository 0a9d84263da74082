//! A run: objects and their places in one file, sorted by key, written once and never changed.
//!
//! ```text
//! header, 4096 bytes                          page, 4096 bytes, as many as it takes
//!   0  magic "RFSi"             4                0  up to 67 records of 61 bytes
//!   4  version (1)              4  u32        4088  BLAKE3 of run number (u64), page number (u64)
//!   8  store UUID              16                     and the 4088 bytes before, first 8
//!  24  run number               8  u64
//!  32  records                  8  u64        behind the pages: the first 8 bytes of each page's
//!  40  bytes of the filter      8  u64          first key, as a number, u64 each; the filter (filter.rs);
//!  48  BLAKE3 of the 48 bytes before, first 16  BLAKE3 of both, first 16
//! ```
//! A record is a key (object kind 1, hash 32) and a place (28, [`Location`]); pack 0 says that the object isn't there any more. Keys are hashes: the first
//! keys of the pages, in memory, lead to the one page that may hold a key, and a filter, in memory too, says of most others that they aren't here: 9 bytes for 8
//! objects. A look-up doesn't check the page: a key that isn't whole is
//! not found, and what a place leads to is checked by whoever reads it. Whoever goes through a run checks every page.

use std::{
    cmp::Ordering,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    super::{StoreError, layout::check16},
    Location,
    filter::Filter,
};
use crate::{
    durable::{Disk, DiskFile},
    ids::StoreUuid,
};

pub const KEY_BYTES: usize = 33;
pub const RECORD_BYTES: usize = KEY_BYTES + Location::BYTES;
const PAGE_BYTES: usize = 4096;
const CHECKED_BYTES: usize = PAGE_BYTES - 8;
const RECORDS_PER_PAGE: usize = CHECKED_BYTES / RECORD_BYTES;
/// Pages read or written at a time by who goes through a run.
const PAGES_AT_ONCE: usize = 64;
const MAGIC: &[u8; 4] = b"RFSi";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;

pub type RawKey = [u8; KEY_BYTES];
pub type Record = [u8; RECORD_BYTES];

/// A record of an object at this place; `None` = it isn't there any more.
pub fn record(key: &RawKey, place: Option<&Location>) -> Record {
    let mut record = [0; RECORD_BYTES];
    record[..KEY_BYTES].copy_from_slice(key);
    if let Some(place) = place {
        record[KEY_BYTES..].copy_from_slice(&place.encode());
    }
    record
}

/// What a record says of its key.
pub fn place_in(record: &[u8]) -> Option<Location> {
    let place = Location::decode(record[KEY_BYTES..].try_into().expect("a record has a place"));
    (place.pack != 0).then_some(place)
}

/// A record's key.
pub fn key_in(record: &[u8]) -> &RawKey {
    record[..KEY_BYTES].try_into().expect("a record has a key")
}

fn prefix(key: &RawKey) -> u64 {
    u64::from_be_bytes(key[..8].try_into().expect("a key has eight bytes"))
}

/// An open run.
#[derive(Debug)]
pub struct Run {
    file: Arc<dyn DiskFile>,
    pub path: PathBuf,
    pub number: u64,
    pub records: u64,
    /// The first key of each page.
    firsts: Vec<u64>,
    filter: Filter,
}

impl Run {
    /// Opens a run of so many records, as whoever lists it says.
    pub fn open(
        file: Arc<dyn DiskFile>,
        path: PathBuf,
        store: StoreUuid,
        (number, records): (u64, u64),
    ) -> Result<Self, StoreError> {
        let damaged = |what: &str| StoreError::Damaged { path: path.clone(), what: what.to_owned() };
        let pages = records.div_ceil(RECORDS_PER_PAGE as u64);
        let firsts_at =
            (pages + 1).checked_mul(PAGE_BYTES as u64).ok_or_else(|| damaged("too many records"))?;
        let tail_bytes = file.len()?.checked_sub(firsts_at);
        let filter_bytes = tail_bytes.and_then(|tail| tail.checked_sub(pages * 8 + 16));
        let filter_bytes = filter_bytes.ok_or_else(|| damaged("it isn't as long as its records"))?;
        if file.read_vec(0, HEADER_BYTES)? != header(store, number, records, filter_bytes) {
            return Err(damaged("its header is damaged or another's"));
        }
        let filter_at = firsts_at + pages * 8;
        let firsts = file.read_vec(firsts_at, pages as usize * 8)?;
        let filter = file.read_vec(filter_at, filter_bytes as usize)?;
        if check16(&[&firsts, &filter]) != *file.read_vec(filter_at + filter_bytes, 16)? {
            return Err(damaged("what is behind its pages doesn't match its check"));
        }
        let filter = Filter::of_bytes(filter).ok_or_else(|| damaged("it has no filter"))?;
        let firsts = firsts.chunks_exact(8);
        let firsts = firsts.map(|key| u64::from_le_bytes(key.try_into().expect("eight bytes"))).collect();
        Ok(Self { file, path, number, records, firsts, filter })
    }

    /// What it says of a key; the inner `None` = the object isn't there any more.
    pub fn get(&self, key: &RawKey) -> Result<Option<Option<Location>>, StoreError> {
        if !self.filter.may_have(key) {
            return Ok(None);
        }
        let prefix = prefix(key);
        let mut page = self.firsts.partition_point(|first| *first < prefix).saturating_sub(1);
        // Mostly one page: the next one too only if it begins with the same eight bytes.
        while self.firsts.get(page).is_some_and(|first| *first <= prefix) {
            let mut bytes = [0; PAGE_BYTES];
            self.file.read_at(page_at(page), &mut bytes)?;
            if let Some(at) = self.find(page, &bytes, key) {
                return Ok(Some(place_in(record_at(&bytes, at))));
            }
            page += 1;
        }
        Ok(None)
    }

    fn find(&self, page: usize, bytes: &[u8], key: &RawKey) -> Option<usize> {
        let (mut low, mut high) = (0, self.records_of(page));
        while low < high {
            let middle = low.midpoint(high);
            match key_in(record_at(bytes, middle)).cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    fn records_of(&self, page: usize) -> usize {
        let before = page as u64 * RECORDS_PER_PAGE as u64;
        usize::try_from(self.records - before).unwrap_or(usize::MAX).min(RECORDS_PER_PAGE)
    }

    /// Its records in order, from the first whose key may be `from`.
    pub fn records_from(self: &Arc<Self>, from: &RawKey) -> Records {
        let page = self.firsts.partition_point(|first| *first < prefix(from)).saturating_sub(1);
        Records { run: self.clone(), page, bytes: Vec::new(), at: 0, left: 0 }
    }
}

fn page_at(page: usize) -> u64 {
    (page as u64 + 1) * PAGE_BYTES as u64
}

fn record_at(page: &[u8], number: usize) -> &[u8] {
    &page[number * RECORD_BYTES..][..RECORD_BYTES]
}

fn check(run: u64, page: u64, bytes: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&run.to_le_bytes()).update(&page.to_le_bytes()).update(bytes);
    *hasher.finalize().as_bytes().first_chunk().expect("8 of 32 bytes")
}

fn header(store: StoreUuid, number: u64, records: u64, filter_bytes: u64) -> Vec<u8> {
    let mut header = [&MAGIC[..], &VERSION.to_le_bytes(), &store.0].concat();
    header.extend([number, records, filter_bytes].iter().flat_map(|number| number.to_le_bytes()));
    let check = check16(&[&header]);
    header.extend(check);
    header
}

/// Goes through a run, and checks each page.
pub struct Records {
    run: Arc<Run>,
    /// The page behind those in `bytes`.
    page: usize,
    bytes: Vec<u8>,
    /// The page in `bytes` that is at hand, and how many of its records are left.
    at: usize,
    left: usize,
}

impl Records {
    /// The record at hand; `None` at the end.
    pub fn peek(&mut self) -> Result<Option<&Record>, StoreError> {
        while self.left == 0 {
            if (self.at + 1) * PAGE_BYTES < self.bytes.len() {
                self.at += 1;
            } else if !self.fill()? {
                return Ok(None);
            }
            self.left = self.run.records_of(self.first_page() + self.at);
        }
        let number = self.run.records_of(self.first_page() + self.at) - self.left;
        let record = record_at(&self.bytes[self.at * PAGE_BYTES..], number);
        Ok(Some(record.try_into().expect("a record's length")))
    }

    /// Goes on behind the record at hand.
    pub fn skip(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// The number of the first page in `bytes`.
    fn first_page(&self) -> usize {
        self.page - self.bytes.len() / PAGE_BYTES
    }

    fn fill(&mut self) -> Result<bool, StoreError> {
        let pages = (self.run.firsts.len() - self.page.min(self.run.firsts.len())).min(PAGES_AT_ONCE);
        if pages == 0 {
            return Ok(false);
        }
        self.bytes.resize(pages * PAGE_BYTES, 0);
        self.run.file.read_at(page_at(self.page), &mut self.bytes)?;
        for (number, page) in self.bytes.chunks_exact(PAGE_BYTES).enumerate() {
            let (content, stored) = page.split_at(CHECKED_BYTES);
            if check(self.run.number, (self.page + number) as u64, content) != stored {
                let what = format!("page {} doesn't match its check", self.page + number);
                return Err(StoreError::Damaged { path: self.run.path.clone(), what });
            }
        }
        self.page += pages;
        self.at = 0;
        Ok(true)
    }
}

/// Writes a run. What isn't [finished](RunWriter::finish) is no run.
pub struct RunWriter {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    store: StoreUuid,
    number: u64,
    records: u64,
    firsts: Vec<u64>,
    filter: Filter,
    /// Pages that wait to be written.
    bytes: Vec<u8>,
    written: usize,
}

impl RunWriter {
    /// A new file at `path`, for so many records at most.
    pub fn create(
        disk: &dyn Disk,
        path: &Path,
        store: StoreUuid,
        (number, most): (u64, u64),
    ) -> io::Result<Self> {
        let (file, path, filter) = (disk.create(path)?, path.to_owned(), Filter::for_keys(most));
        let (firsts, bytes) = (Vec::new(), Vec::with_capacity(PAGES_AT_ONCE * PAGE_BYTES));
        Ok(Self { file, path, store, number, records: 0, firsts, filter, bytes, written: 0 })
    }

    /// The next record; its key is above the one before.
    pub fn push(&mut self, record: &Record) -> io::Result<()> {
        if self.records.is_multiple_of(RECORDS_PER_PAGE as u64) {
            self.close_page();
            if self.bytes.len() >= PAGES_AT_ONCE * PAGE_BYTES {
                self.write()?;
            }
            self.firsts.push(prefix(key_in(record)));
        }
        self.bytes.extend_from_slice(record);
        self.filter.insert(key_in(record));
        self.records += 1;
        Ok(())
    }

    fn close_page(&mut self) {
        let filled = self.bytes.len() % PAGE_BYTES;
        if filled == 0 {
            return;
        }
        let start = self.bytes.len() - filled;
        self.bytes.resize(start + CHECKED_BYTES, 0);
        let page = self.written + start / PAGE_BYTES;
        let check = check(self.number, page as u64, &self.bytes[start..]);
        self.bytes.extend(check);
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_at(page_at(self.written), &self.bytes)?;
        self.written += self.bytes.len() / PAGE_BYTES;
        self.bytes.clear();
        Ok(())
    }

    /// The whole run; its bytes are synced, its name is not.
    pub fn finish(mut self) -> io::Result<Run> {
        self.close_page();
        self.write()?;
        let firsts: Vec<u8> = self.firsts.iter().flat_map(|first| first.to_le_bytes()).collect();
        let check = check16(&[&firsts, self.filter.bytes()]);
        let mut at = page_at(self.written);
        for part in [&firsts, self.filter.bytes(), &check] {
            self.file.write_at(at, part)?;
            at += part.len() as u64;
        }
        let mut head = header(self.store, self.number, self.records, self.filter.bytes().len() as u64);
        head.resize(PAGE_BYTES, 0);
        self.file.write_at(0, &head)?;
        self.file.sync_data()?;
        let Self { file, path, number, records, firsts, filter, .. } = self;
        Ok(Run { file, path, number, records, firsts, filter })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{durable::sim::SimDisk, ids::Hash};

    const STORE: StoreUuid = StoreUuid([7; 16]);

    fn key(number: u64) -> RawKey {
        let mut key = [0; KEY_BYTES];
        key[1..].copy_from_slice(&Hash::of(&number.to_le_bytes()).0);
        key
    }

    fn place(number: u64) -> Location {
        Location { pack: 1, offset: number, block_bytes: 2, number: 3, bytes: 4 }
    }

    fn made(count: u64) -> (SimDisk, Run, Vec<Record>) {
        let disk = SimDisk::new();
        let mut records: Vec<Record> = (0..count)
            .map(|number| record(&key(number), (number % 10 != 9).then(|| place(number)).as_ref()))
            .collect();
        records.sort_unstable();
        let mut writer = RunWriter::create(&disk, Path::new("/run"), STORE, (5, count)).expect("made");
        records.iter().for_each(|record| writer.push(record).expect("written"));
        let run = writer.finish().expect("synced");
        (disk, run, records)
    }

    fn opened(disk: &SimDisk, records: u64) -> Result<Run, StoreError> {
        let path = Path::new("/run");
        Run::open(disk.open_read(path).expect("is there"), path.to_owned(), STORE, (5, records))
    }

    fn all(run: Run, from: &RawKey) -> Result<Vec<Record>, StoreError> {
        let (mut through, mut found) = (Arc::new(run).records_from(from), Vec::new());
        while let Some(record) = through.peek()? {
            found.push(*record);
            through.skip();
        }
        Ok(found)
    }

    #[test]
    fn every_record_is_found_and_nothing_else() {
        for count in [1, 66, 67, 68, 134, 10_000] {
            let (disk, _, records) = made(count);
            let run = opened(&disk, count).expect("opens");
            for number in 0..count {
                let wanted = (number % 10 != 9).then(|| place(number));
                assert_eq!(run.get(&key(number)).expect("reads"), Some(wanted));
            }
            for number in count..count + 500 {
                assert_eq!(run.get(&key(number)).expect("reads"), None);
            }
            assert_eq!(run.get(&[0; KEY_BYTES]).expect("reads"), None);
            assert_eq!(run.get(&[0xff; KEY_BYTES]).expect("reads"), None);
            assert_eq!(all(run, &[0; KEY_BYTES]).expect("reads"), records);
        }
    }

    #[test]
    fn who_begins_in_the_middle_misses_nothing() {
        let (disk, _, records) = made(1000);
        for at in [0, 1, 66, 67, 500, 999] {
            let found = all(opened(&disk, 1000).expect("opens"), key_in(&records[at])).expect("reads");
            assert!(found.len() >= records.len() - at && found.ends_with(&records[at..]));
        }
    }

    /// Keys that begin with the same bytes, over several pages: nobody can make such hashes, and all the same they are found.
    #[test]
    fn keys_of_one_prefix_are_found() {
        let disk = SimDisk::new();
        let same = |number: u64| {
            let mut key = [3; KEY_BYTES];
            key[20..28].copy_from_slice(&number.to_be_bytes());
            key
        };
        let mut writer = RunWriter::create(&disk, Path::new("/run"), STORE, (5, 300)).expect("made");
        (0..300).for_each(|n| writer.push(&record(&same(n), Some(&place(n)))).expect("written"));
        let run = writer.finish().expect("synced");
        (0..300).for_each(|n| assert_eq!(run.get(&same(n)).expect("reads"), Some(Some(place(n)))));
        assert_eq!(run.get(&same(300)).expect("reads"), None);
    }

    /// Whoever goes through it finds every flipped byte; a look-up never finds a key that isn't there.
    #[test]
    fn every_flipped_byte_is_found() {
        let (disk, run, _) = made(150);
        let file = disk.open(Path::new("/run")).expect("is there");
        let (len, used) = (file.len().expect("has one"), HEADER_BYTES as u64);
        drop(run);
        for at in (0..used).chain(PAGE_BYTES as u64..len) {
            let good = file.read_vec(at, 1).expect("reads");
            file.write_at(at, &[good[0] ^ 1]).expect("writes");
            let found = opened(&disk, 150).and_then(|run| {
                (150..200).for_each(|n| assert_eq!(run.get(&key(n)).expect("reads"), None));
                all(run, &[0; KEY_BYTES])
            });
            assert!(found.is_err(), "byte {at}");
            file.write_at(at, &good).expect("writes");
        }
        file.set_len(len - 1).expect("cuts");
        assert!(opened(&disk, 150).is_err());
    }
}
