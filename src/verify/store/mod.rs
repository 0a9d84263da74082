//! Checks a store: header, catalog and its chain, packs and their trailers, index against packs both ways, and that everything a record
//! needs is there. With the data: every block's checksum, every object's hash, and every cut file's whole content.
//!
//! The truth is read from catalog and packs; the index is only compared with it. An open store is checked as of one moment
//! while it goes on, a closed one under a shared lock, and nothing is changed in either.

mod contents;
mod index;
mod packs;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use self::index::Closed;
use super::{Finding, OnProgress, Report, Severity, VerifyOptions};
use crate::{
    catalog::{RecordBody, UnitLife},
    chunk::ObjectKind,
    durable::{self, Disk, LockMode, RealDisk},
    ids::{ByHash, Hash, Seq, UnitId},
    store::{
        Snapshot, Store, StoreError,
        blocks::Blocks,
        catalog::{self, CatalogDamage, PackPoint, Witness},
        index::{Index, Key, Location},
        layout::{Header, Layout},
        reads,
    },
};

/// What to check.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A store that this process has open.
    Open(&'a Store),
    /// A store that nobody has open.
    Closed(&'a Path),
}

/// Advice for what only another copy can mend.
const RESEND: &str = "hosts that still have these files send them again (`resultsfs offload` there); otherwise restore the store's packs \
                      from a backup";

/// Checks a store.
pub fn verify_store(source: Source<'_>, options: &VerifyOptions, progress: OnProgress<'_>) -> Report {
    let checked = match source {
        Source::Open(store) => verify_open(store.snapshot(), options, progress),
        Source::Closed(dir) => verify_closed(Arc::new(RealDisk), dir, options, progress),
    };
    checked.unwrap_or_else(|error| Report::not_run(error.to_string()))
}

fn verify_open(
    snapshot: Snapshot<'_>,
    options: &VerifyOptions,
    progress: OnProgress<'_>,
) -> Result<Report, StoreError> {
    let check = Check::new(snapshot.disk(), snapshot.layout(), snapshot.header(), options, progress);
    check.run(Some(snapshot))
}

pub(crate) fn verify_closed(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: &VerifyOptions,
    progress: OnProgress<'_>,
) -> Result<Report, StoreError> {
    let layout = Layout::new(dir);
    disk.list(dir)?;
    let Some(_lock) = disk.lock(&layout.lock(), LockMode::Shared)? else {
        return Err(StoreError::Locked(dir.to_owned()));
    };
    let header = match Header::read(&*disk, &layout) {
        Ok(Some(header)) => header,
        Ok(None) => return Ok(headless("header-missing", "the store's header is missing".to_owned())),
        Err(error @ StoreError::Damaged { .. }) => return Ok(headless("header-damaged", error.to_string())),
        Err(error) => return Err(error),
    };
    header.check_features(dir, false)?;
    Check::new(&disk, &layout, &header, options, progress).run(None)
}

fn headless(code: &'static str, message: String) -> Report {
    let mut report = Report::default();
    let repair =
        "restore the file `store` from a backup; it never changes. Nothing else could be checked without it";
    report.find(Finding::new(code, Severity::Error, message, repair));
    report
}

/// An object in a good block.
struct Found {
    place: Location,
    /// The index has it there.
    is_indexed: AtomicBool,
}

/// A check under way.
struct Check<'a> {
    disk: &'a Arc<dyn Disk>,
    layout: &'a Layout,
    header: &'a Header,
    options: &'a VerifyOptions,
    progress: OnProgress<'a>,
    blocks: Blocks,
    report: Report,
    /// Chunks and manifests in good blocks, one place each.
    objects: HashMap<Key, Found, ByHash>,
    /// Everything that calls itself a recipe, in good blocks.
    recipes: HashMap<Hash, Vec<Location>, ByHash>,
    /// What damaged blocks held, as far as their tables can be read.
    damaged: HashSet<Key>,
    bad_blocks: HashSet<(u32, u64)>,
    /// Which units each committed manifest describes.
    manifests: HashMap<Hash, Vec<UnitId>>,
    /// Packs that are gone by right.
    reclaimed: BTreeSet<u32>,
}

impl<'a> Check<'a> {
    fn new(
        disk: &'a Arc<dyn Disk>,
        layout: &'a Layout,
        header: &'a Header,
        options: &'a VerifyOptions,
        progress: OnProgress<'a>,
    ) -> Self {
        Self {
            disk,
            layout,
            header,
            options,
            progress,
            blocks: Blocks::new(disk.clone(), layout.clone()),
            report: Report::default(),
            objects: HashMap::default(),
            recipes: HashMap::default(),
            damaged: HashSet::new(),
            bad_blocks: HashSet::new(),
            manifests: HashMap::new(),
            reclaimed: BTreeSet::new(),
        }
    }

    fn run(mut self, open: Option<Snapshot<'_>>) -> Result<Report, StoreError> {
        let durable = self.check_catalog(open)?;
        let durable = open.map_or(durable, |snapshot| snapshot.packs);
        self.check_packs(durable, open.is_some())?;
        match open {
            Some(snapshot) => self.check_index(snapshot.index(), Some(snapshot.packs)),
            None => self.check_closed_index(),
        }
        self.check_contents()?;
        self.check_reads()?;
        Ok(self.report)
    }

    fn find(&mut self, code: &'static str, severity: Severity, message: String, repair: &str) {
        self.report.find(Finding::new(code, severity, message, repair));
    }

    /// Walks the catalog and says up to where its last record vouches for the packs.
    fn check_catalog(&mut self, open: Option<Snapshot<'_>>) -> Result<PackPoint, StoreError> {
        let witness = self.check_head(open)?;
        let file = match self.disk.open_read(&self.layout.catalog()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let repair = "restore the catalog from a backup";
                self.find("catalog-missing", Severity::Error, "the catalog is missing".to_owned(), repair);
                return Ok(PackPoint::default());
            }
            file => file?,
        };
        let bytes = match open {
            Some(snapshot) => snapshot.catalog_bytes,
            None => file.len()?,
        };
        let mut given_up: HashMap<UnitLife, Seq> = HashMap::new();
        catalog::walk(&*file, bytes, self.header.uuid, witness, |_, record| {
            given_up.extend(record.purged().iter().map(|life| (life.clone(), record.seq)));
        })?;
        let (manifests, reclaimed) = (&mut self.manifests, &mut self.reclaimed);
        let counts = &mut self.report.counts;
        let walk = catalog::walk(&*file, bytes, self.header.uuid, witness, |_, record| {
            counts.records += 1;
            match &record.body {
                RecordBody::Commit(_) => {}
                RecordBody::Retire(_) => counts.retirements += 1,
                RecordBody::Prune(_) => counts.prunes += 1,
                RecordBody::Undelete(_) => counts.undeletes += 1,
                RecordBody::Purge(_) => counts.purges += 1,
                RecordBody::Reclaim(_) => counts.reclaims += 1,
            }
            reclaimed.extend(record.reclaimed());
            // What was retired or pruned is in the store: its commits count like any, but for those that are given up.
            let Some(commit) = record.commit() else { return };
            let life = UnitLife { unit: commit.unit.clone(), incarnation: commit.incarnation };
            if given_up.get(&life).is_some_and(|purged| *purged > record.seq) {
                counts.purged_commits += 1;
                return;
            }
            let units = manifests.entry(commit.manifest).or_default();
            if !units.contains(&commit.unit) {
                units.push(commit.unit.clone());
            }
        })?;
        self.report.counts.reclaimed_packs = self.reclaimed.len() as u64;
        match walk.damage {
            Some(damage) => self.catalog_damage(&damage),
            None if walk.end < bytes => self.report.notes.push(format!(
                "the catalog ends with {} bytes that were never acknowledged; they are cut when the store is opened",
                bytes - walk.end
            )),
            None => {}
        }
        Ok(walk.packs)
    }

    fn catalog_damage(&mut self, damage: &CatalogDamage) {
        let code = match damage {
            CatalogDamage::Broken(_) => "catalog-damaged",
            CatalogDamage::Truncated(_) => "catalog-truncated",
        };
        let repair = "restore the catalog from a backup. To go on with what is left instead, remove the file `head` (and cut the catalog \
                      before the damage): hosts then send again what they still have";
        self.find(code, Severity::Error, format!("catalog: {damage}"), repair);
    }

    fn check_head(&mut self, open: Option<Snapshot<'_>>) -> Result<Witness, StoreError> {
        let witness = Witness::read(&**self.disk, self.layout)?;
        let repair = "nothing: it is written again with the next commit";
        match (witness, open) {
            // The store moves on: what the file says of later records can't be held against this moment's.
            (Witness::Says(head), Some(snapshot)) if head.seq > snapshot.head.seq => {
                return Ok(Witness::Says(snapshot.head));
            }
            (Witness::Says(_), _) => {}
            (Witness::Missing, _) => {
                self.find("head-missing", Severity::Warning, "the head file is missing".to_owned(), repair);
            }
            (Witness::Unreadable, _) => {
                let what = "the head file can't be read".to_owned();
                self.find("head-damaged", Severity::Warning, what, repair);
            }
        }
        Ok(witness)
    }

    /// A store that an earlier version has written has none.
    fn check_reads(&mut self) -> Result<(), StoreError> {
        let file = match self.disk.open_read(&self.layout.reads()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        if !reads::is_whole(&durable::read_all(&*file)?) {
            let message = "the record of what was read is damaged".to_owned();
            let repair = "nothing: it begins anew when the store is opened, and until then as many days have passed `prune --unread-for` takes nothing";
            self.find("reads-damaged", Severity::Warning, message, repair);
        }
        Ok(())
    }

    /// An object's place by what was read from the packs.
    fn place(&self, kind: ObjectKind, hash: &Hash) -> Option<&Location> {
        self.objects.get(&(kind, *hash)).map(|found| &found.place)
    }

    fn check_closed_index(&mut self) {
        match index::open_closed(self.disk, self.layout, self.header.uuid) {
            Ok(Closed::There(index)) => self.check_index(&index, None),
            Ok(Closed::Foreign) => {
                let message = "the index is another store's or another version's".to_owned();
                self.find("index-foreign", Severity::Warning, message, index::REBUILD);
            }
            Ok(Closed::Missing) => {
                let repair = "nothing: it is made again when the store is opened";
                self.find("index-missing", Severity::Warning, "the index is missing".to_owned(), repair);
            }
            Err(error) => self.index_unreadable(&error.to_string()),
        }
    }

    fn check_index(&mut self, index: &Index, open: Option<PackPoint>) {
        // The database asserts what it finds on its pages, which may be anything.
        let compared =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.compare_index(index, open)));
        match compared {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.index_unreadable(&error.to_string()),
            Err(_) => self.index_unreadable("its pages contradict one another"),
        }
    }

    fn index_unreadable(&mut self, why: &str) {
        let message = format!("the index can't be read: {why}");
        self.find("index-unreadable", Severity::Warning, message, index::REBUILD);
    }
}

/// Runs `work` on every item, on all processors. The order of the results is no particular one.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    let run = || {
        let mut done = Vec::new();
        while let Some(item) = items.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            done.push(work(item));
        }
        done
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let joined =
            threads.into_iter().flat_map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
        joined.collect()
    })
}
