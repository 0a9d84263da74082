//! What is written: the runs, and the database that lists them and holds all else.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    WriteTransaction,
};

use super::{
    pending::Changes,
    place::encode_key,
    run::{Record, record},
    runs::{Merge, Row, Runs},
};
use crate::{
    durable::{Disk, DiskFile},
    ids::StoreUuid,
    store::{StoreError, error::index_error, layout::Layout},
};

pub const RUNS: TableDefinition<u64, (u64, u64)> = TableDefinition::new("runs");
pub const CANDIDATES: TableDefinition<&[u8; 48], u32> = TableDefinition::new("candidates");
pub const PACKS: TableDefinition<u32, u64> = TableDefinition::new("packs");
const COUNTS: TableDefinition<u8, u64> = TableDefinition::new("counts");
const STORE: TableDefinition<u8, &[u8; 20]> = TableDefinition::new("store");
/// Version of the tables above and of the runs; an index of another version is made again. 1 had the objects in the database.
const VERSION: u32 = 2;
/// The database's page cache; what is in it is small.
const CACHE_BYTES: usize = 4 << 20;
/// What is on the disk.
#[derive(Debug)]
pub struct Written {
    /// Taken only when it is dropped.
    db: Option<Database>,
    pub runs: Runs,
    objects: AtomicU64,
}

/// A [`DiskFile`] as the database wants it.
#[derive(Debug)]
pub struct Backend(pub Arc<dyn DiskFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}

/// Runs what touches a database that may be anything: it asserts what it finds on its pages, and what it says by panicking is an error here.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let damaged = |_| index_error(redb::StorageError::Corrupted("the database can't be opened".to_owned()));
    catch_unwind(AssertUnwindSafe(work)).map_err(damaged)?
}

pub fn database(backend: impl StorageBackend) -> Result<Database, StoreError> {
    Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend).map_err(index_error)
}

/// Whether the index is of this store and this version.
pub fn belongs_to(db: &Database, store: StoreUuid) -> Result<bool, StoreError> {
    let read = db.begin_read().map_err(index_error)?;
    let table = match read.open_table(STORE) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(false),
        table => table.map_err(index_error)?,
    };
    let mark = table.get(0).map_err(index_error)?;
    Ok(mark.is_some_and(|mark| *mark.value() == mark_of(store)))
}

impl Written {
    /// What `db` lists; it belongs to the store.
    pub fn open(
        db: Database,
        disk: Arc<dyn Disk>,
        layout: &Layout,
        store: StoreUuid,
    ) -> Result<Self, StoreError> {
        let read = db.begin_read().map_err(index_error)?;
        let table = read.open_table(RUNS).map_err(index_error)?;
        let rows = table.iter().map_err(index_error)?;
        let row = |row: Result<_, redb::StorageError>| -> Result<Row, StoreError> {
            let (place, run): (redb::AccessGuard<'_, u64>, redb::AccessGuard<'_, (u64, u64)>) =
                row.map_err(index_error)?;
            Ok((place.value(), run.value()))
        };
        let rows = rows.map(row).collect::<Result<Vec<Row>, _>>()?;
        let counts = read.open_table(COUNTS).map_err(index_error)?;
        let objects = counts.get(0).map_err(index_error)?.map_or(0, |count| count.value());
        drop((counts, table, read));
        let runs = Runs::open(disk, layout.index_runs(), store, rows)?;
        Ok(Self { db: Some(db), runs, objects: AtomicU64::new(objects) })
    }

    /// A new one, of nothing.
    pub fn create(disk: &Arc<dyn Disk>, layout: &Layout, store: StoreUuid) -> Result<Self, StoreError> {
        let dir = layout.index_runs();
        disk.create_dir(&dir)?;
        let runs = Runs::open(disk.clone(), dir, store, Vec::new())?;
        runs.remove_others()?;
        let db = guarded(|| database(Backend(disk.create(&layout.index())?)))?;
        let written = Self { db: Some(db), runs, objects: AtomicU64::new(0) };
        written.write(&Changes::default(), Some(store))?;
        Ok(written)
    }

    /// How many objects there are in it.
    pub fn objects(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }

    fn db(&self) -> &Database {
        self.db.as_ref().expect("is there until the index is dropped")
    }

    pub fn read(&self) -> Result<ReadTransaction, StoreError> {
        self.db().begin_read().map_err(index_error)
    }

    fn begin_write(&self) -> Result<WriteTransaction, StoreError> {
        let mut txn = self.db().begin_write().map_err(index_error)?;
        // After a crash the index is opened without a walk through all of it.
        txn.set_quick_repair(true);
        Ok(txn)
    }

    pub fn write(&self, changes: &Changes, store: Option<StoreUuid>) -> Result<(), StoreError> {
        let (records, added) = self.records(changes)?;
        let run = if records.is_empty() { None } else { Some(self.runs.write(&records)?) };
        let objects = self.objects.load(Ordering::Relaxed).saturating_add_signed(added);
        let txn = self.begin_write()?;
        {
            let mut runs = txn.open_table(RUNS).map_err(index_error)?;
            if let Some((place, run)) = &run {
                runs.insert(place, (run.number, run.records)).map_err(index_error)?;
            }
            let mut counts = txn.open_table(COUNTS).map_err(index_error)?;
            counts.insert(0, objects).map_err(index_error)?;
            let mut candidates = txn.open_table(CANDIDATES).map_err(index_error)?;
            for (hash, location) in changes.candidates.iter().flat_map(|(h, l)| l.iter().map(move |l| (h, l)))
            {
                let key = location.candidate_key(hash);
                candidates.insert(&key, location.block_bytes).map_err(index_error)?;
            }
            for (hash, location) in &changes.dropped {
                candidates.remove(&location.candidate_key(hash)).map_err(index_error)?;
            }
            let mut packs = txn.open_table(PACKS).map_err(index_error)?;
            for (pack, bytes) in &changes.packs {
                packs.insert(pack, bytes).map_err(index_error)?;
            }
            for pack in &changes.packs_gone {
                packs.remove(pack).map_err(index_error)?;
            }
            if let Some(store) = store {
                let mut mark = txn.open_table(STORE).map_err(index_error)?;
                mark.insert(0, &mark_of(store)).map_err(index_error)?;
            }
        }
        txn.commit().map_err(index_error)?;
        self.objects.store(objects, Ordering::Relaxed);
        run.into_iter().for_each(|(place, run)| self.runs.add(place, run));
        Ok(())
    }

    /// The records that make these changes, sorted, and how many more objects there are then.
    fn records(&self, changes: &Changes) -> Result<(Vec<Record>, i64), StoreError> {
        let placed = changes.objects.iter().map(|(key, place)| (key, Some(*place)));
        let others = changes.gone.keys().filter(|key| !changes.objects.contains_key(*key));
        let mut rows: Vec<_> = placed
            .chain(others.map(|key| (key, None)))
            .map(|(key, place)| (encode_key(key), place, changes.gone.get(key)))
            .collect();
        rows.sort_unstable_by_key(|(key, ..)| *key);
        let before = self.runs.get_many(rows.iter().map(|(key, ..)| key))?;
        let (mut records, mut added) = (Vec::with_capacity(rows.len()), 0);
        for ((key, placed, gone), before) in rows.into_iter().zip(before) {
            let now = placed.or(before).filter(|now| gone.is_none_or(|gone| !gone.same_place(now)));
            if now != before {
                added += i64::from(now.is_some()) - i64::from(before.is_some());
                records.push(record(&key, now.as_ref()));
            }
        }
        Ok((records, added))
    }

    /// Merges, and lists the run that was made.
    fn merge(&self, merge: &Merge) -> Result<(), StoreError> {
        let Some(run) = self.runs.merge(merge)? else { return Ok(()) };
        let newest = merge.places().next().expect("a merge is of several runs");
        let txn = self.begin_write()?;
        {
            let mut runs = txn.open_table(RUNS).map_err(index_error)?;
            for place in merge.places() {
                runs.remove(place).map_err(index_error)?;
            }
            runs.insert(newest, (run.number, run.records)).map_err(index_error)?;
        }
        txn.commit().map_err(index_error)?;
        Ok(self.runs.replace(merge, run)?)
    }
}

/// Whether it was done. If not, nothing is lost but time: the runs that there are go on counting.
pub fn merged(written: &Written, merge: &Merge) -> bool {
    let done = written.merge(merge);
    if let Err(error) = &done {
        tracing::warn!(%error, "the index's runs can't be merged");
    }
    done.is_ok()
}

impl Drop for Written {
    /// The database tidies up when it is dropped, which a damaged one does by panicking. Whoever closes a store shall not fall with it: the next
    /// opening finds the damage and makes the index again.
    fn drop(&mut self) {
        let db = self.db.take();
        if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
            tracing::error!("the index is damaged; it is made again when the store is opened");
        }
    }
}

fn mark_of(store: StoreUuid) -> [u8; 20] {
    let mut mark = [0; 20];
    mark[..16].copy_from_slice(&store.0);
    mark[16..].copy_from_slice(&VERSION.to_le_bytes());
    mark
}
