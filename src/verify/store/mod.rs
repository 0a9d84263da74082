//! Checks a store: header, catalog and its chain, packs and their trailers, index against packs both ways, and that everything a record
//! needs is there. With the data: every block's checksum, every object's hash, and every cut file's whole content.
//!
//! The truth is read from catalog and packs; the index is only compared with it. An open store is checked as of one moment
//! while it goes on, a closed one under a shared lock, and nothing is changed in either but the notes of what was read.

mod contents;
mod index;
mod packs;
mod repair;
mod verified;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

#[cfg(test)]
pub(crate) use self::repair::repair_closed;
pub use self::repair::{RepairWith, repair_store};
use self::{index::Closed, verified::Verified};
use super::{Finding, OnProgress, Pace, Report, Severity, VerifyOptions};
use crate::{
    catalog::{RecordBody, UnitLife},
    chunk::ObjectKind,
    durable::{self, Disk, DiskFile, LockMode, RealDisk},
    ids::{ByHash, Hash, Seq, UnitId},
    store::{
        Snapshot, Store, StoreError,
        blocks::Blocks,
        catalog::{self, CatalogDamage, PackPoint, Walk, Witness},
        copies,
        index::{Index, Key, Location},
        layout::{Header, Layout},
        losses::{self, Lost},
        reads, snapshots,
    },
};

/// What to check.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A store that this process has open.
    Open(&'a Store),
    /// The same before its repair, which goes by what this check has read.
    ToRepair(&'a Store),
    /// A store that nobody has open.
    Closed(&'a Path),
}

/// Advice for what only another copy can mend.
const RESEND: &str = "`resultsfs verify --store --repair` keeps what can be read; what can't, hosts send again as they connect after it, if their spools or \
                      caches have it. Otherwise restore the store's packs from a backup";

const CATALOG_REPAIR: &str = "`resultsfs verify --store --repair` brings it back from its copy. Where that is damaged at the same place, restore both \
                              from a backup; or, to go on with what is left, remove `head` and `catalog.copy` and cut the catalog before the \
                              damage: hosts then send again what they still have";

/// Checks a store; [`StoreError::Locked`] where somebody has a closed one open.
pub fn verify_store(
    source: Source<'_>,
    options: &VerifyOptions,
    progress: OnProgress<'_>,
) -> Result<Report, StoreError> {
    match source {
        Source::Open(store) => verify_open(store.snapshot(), options, false, progress),
        Source::ToRepair(store) => verify_open(store.snapshot(), options, true, progress),
        Source::Closed(dir) => verify_closed(Arc::new(RealDisk), dir, options, progress),
    }
}

fn verify_open(
    snapshot: Snapshot<'_>,
    options: &VerifyOptions,
    repairs: bool,
    progress: OnProgress<'_>,
) -> Result<Report, StoreError> {
    let check = Check::new(snapshot.disk(), snapshot.layout(), snapshot.header(), options, progress);
    check.noting(repairs).run(Some(snapshot))
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
    let Headed { header, finding } = match Headed::read(&*disk, &layout)? {
        Ok(headed) => headed,
        Err(headless) => return Ok(headless),
    };
    header.check_features(dir, false)?;
    let mut check = Check::new(&disk, &layout, &header, options, progress).noting(false);
    finding.into_iter().for_each(|finding| check.report.find(finding));
    check.run(None)
}

/// A store's header, which may be its copy; then what is wrong with the header itself.
struct Headed {
    header: Header,
    finding: Option<Finding>,
}

impl Headed {
    /// Where neither can be read, what there is to report.
    fn read(disk: &dyn Disk, layout: &Layout) -> Result<Result<Self, Report>, StoreError> {
        let (code, message) = match Header::read(disk, layout) {
            Ok(Some(header)) => return Ok(Ok(Self { header, finding: None })),
            Ok(None) => ("header-missing", "the store's header is missing".to_owned()),
            Err(error @ StoreError::Damaged { .. }) => ("header-damaged", error.to_string()),
            Err(error) => return Err(error),
        };
        match Header::read_at(disk, layout.header_copy()) {
            Ok(Some(header)) => {
                let repair = "`resultsfs verify --store --repair` makes it again from its copy";
                let finding = Some(Finding::new(code, Severity::Error, message, repair));
                Ok(Ok(Self { header, finding }))
            }
            Ok(None) | Err(StoreError::Damaged { .. }) => {
                let mut report = Report::default();
                let repair = "restore the file `store` from a backup; it never changes. Nothing else could be checked without it and its copy";
                report.find(Finding::new(code, Severity::Error, message, repair));
                Ok(Err(report))
            }
            Err(error) => Err(error),
        }
    }
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
    pace: Pace,
    verified: Verified,
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
    /// Packs that are there.
    packs: BTreeSet<u32>,
    /// Packs in which something is damaged, and those that are missing.
    bad_packs: BTreeSet<u32>,
    /// Recipes of which all chunks are there.
    sound_recipes: HashSet<Hash>,
    /// Committed manifests that name something which can't be had, and what.
    lost: Lost,
    /// The index needn't be made again.
    index_is_of_use: bool,
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
            pace: Pace::new(options.bytes_per_s),
            verified: Verified::default(),
            blocks: Blocks::new(disk.clone(), layout.clone()),
            report: Report::default(),
            objects: HashMap::default(),
            recipes: HashMap::default(),
            damaged: HashSet::new(),
            bad_blocks: HashSet::new(),
            manifests: HashMap::new(),
            reclaimed: BTreeSet::new(),
            packs: BTreeSet::new(),
            bad_packs: BTreeSet::new(),
            sound_recipes: HashSet::new(),
            lost: Lost::new(),
            index_is_of_use: true,
        }
    }

    /// Goes on with what an earlier check has read, if that is asked, and notes what this one reads.
    fn noting(mut self, repairs: bool) -> Self {
        self.verified = Verified::begin(self.disk, self.layout, self.options, repairs);
        self
    }

    fn run(mut self, open: Option<Snapshot<'_>>) -> Result<Report, StoreError> {
        self.look(open)?;
        Ok(self.report)
    }

    fn look(&mut self, open: Option<Snapshot<'_>>) -> Result<(), StoreError> {
        self.check_header_copy()?;
        let durable = self.check_catalog(open)?;
        let durable = open.map_or(durable, |snapshot| snapshot.packs);
        self.check_packs(durable, open.is_some())?;
        match open {
            Some(snapshot) => self.check_index(snapshot.index(), Some(snapshot.packs)),
            None => self.check_closed_index(),
        }
        self.check_contents()?;
        self.check_reads()?;
        if open.is_none() {
            self.check_snapshots()?;
        }
        self.check_losses()?;
        self.verified.end();
        self.note_quarantine()
    }

    fn find(&mut self, code: &'static str, severity: Severity, message: String, repair: &str) {
        self.report.find(Finding::new(code, severity, message, repair));
    }

    /// Walks the catalog and says up to where its last record vouches for the packs.
    fn check_catalog(&mut self, open: Option<Snapshot<'_>>) -> Result<PackPoint, StoreError> {
        let witness = self.check_head(open)?;
        let file = match self.disk.open_read(&self.layout.catalog()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.find(
                    "catalog-missing",
                    Severity::Error,
                    "the catalog is missing".to_owned(),
                    CATALOG_REPAIR,
                );
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
        let mut walk = catalog::walk(&*file, bytes, self.header.uuid, witness, |_, record| {
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
        self.check_catalog_copy(&*file, &mut walk, open.is_some())?;
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
        self.find(code, Severity::Error, format!("catalog: {damage}"), CATALOG_REPAIR);
    }

    fn check_header_copy(&mut self) -> Result<(), StoreError> {
        match Header::read_at(&**self.disk, self.layout.header_copy()) {
            Ok(Some(copy)) if copy == *self.header => {}
            Ok(None) => self.copy_finding("header-copy-missing", "the header's copy is missing".to_owned()),
            Ok(Some(_)) | Err(StoreError::Damaged { .. }) => {
                self.copy_finding(
                    "header-copy-damaged",
                    "the header's copy isn't what the header is".to_owned(),
                );
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The copy may be behind after a crash, which only opening the store mends.
    fn check_catalog_copy(
        &mut self,
        catalog: &dyn DiskFile,
        walk: &mut Walk,
        is_open: bool,
    ) -> Result<(), StoreError> {
        let Some(copy) = copies::open_catalog_copy(&**self.disk, self.layout)? else {
            self.copy_finding("catalog-copy-missing", "the catalog's copy is missing".to_owned());
            return Ok(());
        };
        if !is_open {
            walk.compare(&*copy)?;
        }
        let bytes = copy.len()?;
        let common = walk.end.min(bytes);
        if copies::first_difference(&*copy, catalog, common)? < common {
            let message = "the catalog's copy isn't what the catalog is".to_owned();
            self.copy_finding("catalog-copy-damaged", message);
        } else if bytes < walk.end {
            let message = format!("the catalog's copy lacks the last {} bytes", walk.end - bytes);
            self.copy_finding("catalog-copy-short", message);
        } else if bytes > walk.end && walk.damage.is_none() && !is_open {
            let message =
                format!("the catalog's copy has {} bytes more that are no records", bytes - walk.end);
            self.copy_finding("catalog-copy-damaged", message);
        }
        Ok(())
    }

    fn copy_finding(&mut self, code: &'static str, message: String) {
        let repair = "nothing: it is made equal when the store is opened";
        self.find(code, Severity::Warning, message, repair);
    }

    /// What the last repair could not bring back is in the list, and only that.
    fn check_losses(&mut self) -> Result<(), StoreError> {
        if losses::read(&**self.disk, self.layout)?.is_none() {
            let message = "the list of what was lost is damaged".to_owned();
            let repair = "`resultsfs verify --store --repair` makes it again; until then every commit is checked in full";
            self.find("lost-damaged", Severity::Warning, message, repair);
        }
        Ok(())
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

    /// In an open store it is written to, and only read when the next one opens it.
    fn check_snapshots(&mut self) -> Result<(), StoreError> {
        let Some(file) = durable::there(self.disk.open_read(&self.layout.snapshots()))? else {
            return Ok(());
        };
        if !snapshots::is_whole(&durable::read_all(&*file)?) {
            let message = "the record of what still runs is damaged, or torn by a power cut".to_owned();
            let repair = "nothing: it is cut there when the store is opened, and what is gone shows again as hosts publish it";
            self.find("snapshots-damaged", Severity::Warning, message, repair);
        }
        Ok(())
    }

    /// Whoever looks for room should know of it.
    fn note_quarantine(&mut self) -> Result<(), StoreError> {
        let dir = self.layout.quarantine();
        let names = match self.disk.list(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            names => names?,
        };
        if !names.is_empty() {
            self.report.notes.push(format!(
                "{} files that repairs have replaced are in {}; nothing needs them, and they may be deleted",
                names.len(),
                dir.display()
            ));
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
                self.index_is_of_use = false;
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
        self.index_is_of_use = false;
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
