//! The runs of an index: what each flush has written, merged so that there are few.
//!
//! The newest run that knows a key is right. Each run but the newest few has more than twice the records of the one after it, so that there are as many as the
//! number of objects has doublings beyond a flush, and each record is written once a doubling. Large merges go on beside everything else.
//!
//! Which runs there are is in the index's database: a run counts when the transaction that lists it is durable, after its file and its name are; a file that
//! isn't listed is removed when the index is opened, and after the transaction that takes it out.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    super::{StoreError, room::full},
    Location,
    run::{RawKey, Record, Records, Run, RunWriter, key_in, place_in},
};
use crate::{durable::Disk, ids::StoreUuid};

/// A run's number and its records, under the place that it has in the order of age.
pub type Row = (u64, (u64, u64));

/// The runs that count, each with its place in the order of age, newest first.
type List = Vec<(u64, Arc<Run>)>;

/// See the module.
#[derive(Debug)]
pub struct Runs {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store: StoreUuid,
    list: RwLock<Arc<List>>,
    next: AtomicU64,
    stop: AtomicBool,
}

/// Runs that are to be one.
pub struct Merge {
    inputs: List,
    /// Nothing is older: who isn't there any more needn't be remembered.
    is_all: bool,
}

impl Merge {
    /// Records that will be read.
    pub fn records(&self) -> u64 {
        self.inputs.iter().map(|(_, run)| run.records).sum()
    }

    /// The places of the runs that it takes the place of.
    pub fn places(&self) -> impl Iterator<Item = u64> {
        self.inputs.iter().map(|(place, _)| *place)
    }
}

impl Runs {
    /// Opens the runs that are listed.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        store: StoreUuid,
        rows: Vec<Row>,
    ) -> Result<Self, StoreError> {
        let next = rows.iter().map(|(place, (number, _))| number.max(place) + 1).max().unwrap_or(1);
        let (next, stop) = (AtomicU64::new(next), AtomicBool::new(false));
        let runs = Self { disk, dir, store, list: RwLock::default(), next, stop };
        let open = |(place, (number, records)): Row| {
            let path = runs.path(number);
            let file = runs.disk.open_read(&path)?;
            Ok((place, Arc::new(Run::open(file, path, store, (number, records))?)))
        };
        let mut list = rows.into_iter().map(open).collect::<Result<List, StoreError>>()?;
        list.sort_by_key(|(place, _)| std::cmp::Reverse(*place));
        runs.set(list);
        Ok(runs)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:08x}.run"))
    }

    /// Removes the files that aren't listed.
    pub fn remove_others(&self) -> io::Result<()> {
        let list = self.list();
        for name in self.disk.list(&self.dir)? {
            let path = self.dir.join(name);
            if list.iter().all(|(_, run)| run.path != path) {
                self.disk.remove(&path)?;
            }
        }
        Ok(())
    }

    fn list(&self) -> Arc<List> {
        self.list.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, list: List) {
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(list);
    }

    /// Where the objects are, in the order asked.
    pub fn get_many<'a>(
        &self,
        keys: impl Iterator<Item = &'a RawKey>,
    ) -> Result<Vec<Option<Location>>, StoreError> {
        let list = self.list();
        keys.map(|key| {
            for (_, run) in list.iter() {
                if let Some(place) = run.get(key)? {
                    return Ok(place);
                }
            }
            Ok(None)
        })
        .collect()
    }

    /// Writes records, which are sorted by key, as a run that doesn't count yet. Durable when it returns.
    pub fn write(&self, records: &[Record]) -> Result<(u64, Arc<Run>), StoreError> {
        let mut records = records.iter();
        let made = self.make(records.len() as u64, |writer| {
            records.try_for_each(|record| writer.push(record))?;
            Ok(true)
        });
        match made {
            Ok((number, run)) => Ok((number, run.expect("it was written to its end"))),
            // Nothing has happened.
            Err(StoreError::Io(e)) if e.kind() == io::ErrorKind::StorageFull => Err(full(&self.dir)),
            Err(error) => Err(error),
        }
    }

    /// A new run of what `fill` writes, `most` records; none if that says that it hasn't come to its end.
    fn make(
        &self,
        most: u64,
        fill: impl FnOnce(&mut RunWriter) -> Result<bool, StoreError>,
    ) -> Result<(u64, Option<Arc<Run>>), StoreError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path(number);
        let mut writer = RunWriter::create(&*self.disk, &path, self.store, (number, most))?;
        let made = fill(&mut writer).and_then(|is_whole| match is_whole {
            true => Ok(Some(Arc::new(writer.finish()?))),
            false => Ok(None),
        });
        if !matches!(made, Ok(Some(_))) {
            // It takes room; what can't be removed is removed when the index is opened.
            let _ = self.disk.remove(&path);
        }
        let made = made?;
        self.disk.sync_dir(&self.dir)?;
        Ok((number, made))
    }

    /// From now on this run, which is listed at `place`, counts as the newest.
    pub fn add(&self, place: u64, run: Arc<Run>) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        let mut with = (**list).clone();
        with.insert(0, (place, run));
        *list = Arc::new(with);
    }

    /// What should be merged now.
    pub fn due(&self) -> Option<Merge> {
        let list = self.list();
        let (mut taken, mut records) = (1, list.first()?.1.records);
        while let Some((_, older)) = list.get(taken).filter(|(_, older)| older.records <= 2 * records) {
            records += older.records;
            taken += 1;
        }
        let merge = Merge { inputs: list[..taken].to_vec(), is_all: taken == list.len() };
        (taken > 1).then_some(merge)
    }

    /// Writes one run of several. `None`: it was told to stop.
    pub fn merge(&self, merge: &Merge) -> Result<Option<Arc<Run>>, StoreError> {
        let mut through = Through::of(&merge.inputs, &[0; super::run::KEY_BYTES]);
        let (_, run) = self.make(merge.records(), |writer| {
            while let Some(record) = through.next()? {
                if !merge.is_all || place_in(&record).is_some() {
                    writer.push(&record)?;
                }
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        Ok(run)
    }

    /// From now on `run`, which is listed at the place of the newest of them, counts in place of what was merged, whose files go.
    pub fn replace(&self, merge: &Merge, run: Arc<Run>) -> io::Result<()> {
        let newest = merge.inputs[0].0;
        {
            let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
            let is_merged = |place: u64| merge.places().any(|merged| merged == place);
            let mut with: List = list.iter().filter(|(place, _)| !is_merged(*place)).cloned().collect();
            let at = with.partition_point(|(place, _)| *place > newest);
            with.insert(at, (newest, run));
            *list = Arc::new(with);
        }
        merge.inputs.iter().try_for_each(|(_, run)| self.disk.remove(&run.path))
    }

    /// Lets a merge that is under way end before its time.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Every object from a key on, in order of key.
    pub fn through(&self, from: &RawKey) -> Through {
        Through::of(&self.list(), from)
    }
}

/// Goes through several runs at once: of each key the newest record.
pub struct Through {
    runs: Vec<Records>,
}

impl Through {
    fn of(list: &List, from: &RawKey) -> Self {
        Self { runs: list.iter().map(|(_, run)| run.records_from(from)).collect() }
    }

    /// The next record, which may say that an object isn't there any more.
    pub fn next(&mut self) -> Result<Option<Record>, StoreError> {
        let mut least: Option<Record> = None;
        for run in &mut self.runs {
            if let Some(record) = run.peek()?
                && least.as_ref().is_none_or(|least| key_in(record) < key_in(least))
            {
                least = Some(*record);
            }
        }
        let Some(record) = least else { return Ok(None) };
        for run in &mut self.runs {
            if run.peek()?.is_some_and(|other| key_in(other) == key_in(&record)) {
                run.skip();
            }
        }
        Ok(Some(record))
    }
}
