//! Checks this host: what the journal says of each unit against what is in the spool; and the blocks of its cache.
//!
//! A unit that somebody is writing to is what it is; only units that are committed or evicted make promises that the spool can break. It runs
//! beside the daemon, on its journal, or alone on one that no daemon has open.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use fs_err as fs;

use super::{CANCELLED, Finding, Meter, OnProgress, Pace, Paced, Report, Severity, VerifyOptions};
use crate::{
    cache, durable,
    fs::{conflict::conflicts_in, union::Layer},
    ids::{RelPath, Scope, UnitId},
    journal::{Damage, Journal, LayerHead, State, UnitRecord},
    manifest::{Body, Entry, Manifest},
    spool::{self, Spool, activity::Activity},
};

/// What there is to check of a host.
pub struct Here<'a> {
    pub journal: &'a Journal,
    pub spool: &'a Spool,
    pub activity: &'a Activity,
    /// Of the cache.
    pub cache_dir: &'a Path,
}

/// Checks the units at or below these paths, or holding them; all, if none are named, and then, if data is read, the cache, too: a block that isn't what it was is dropped
/// if `repair` says so.
pub fn check(
    here: &Here<'_>,
    paths: &[RelPath],
    repair: bool,
    options: &VerifyOptions,
    progress: OnProgress<'_>,
) -> Report {
    let pace = Pace::new(options.bytes_per_s);
    let mut report = check_units(here, paths, options, &pace, progress);
    if options.read_data && paths.is_empty() {
        report.merge(check_cache(here.cache_dir, repair, &pace, progress));
    }
    report
}

fn check_units(
    here: &Here<'_>,
    paths: &[RelPath],
    options: &VerifyOptions,
    pace: &Pace,
    progress: OnProgress<'_>,
) -> Report {
    let Here { journal, spool, activity, .. } = *here;
    let mut check =
        Check { journal, spool, activity, read_data: options.read_data, pace, report: Report::default() };
    let mut records = journal.units();
    records.sort_by(|a, b| a.unit.cmp(&b.unit));
    records.retain(|record| is_named(&record.unit, paths));
    let meter = Meter::new(progress, "units", records.len() as u64);
    for record in &records {
        if meter.is_alone() {
            check.report.could_not_run = Some(CANCELLED.to_owned());
            break;
        }
        check.unit(record);
        meter.advance(1);
    }
    check.report
}

/// Reads the blocks of a host's cache in `dir`. One that was dropped is fetched again when it is needed.
fn check_cache(dir: &Path, repair: bool, pace: &Pace, progress: OnProgress<'_>) -> Report {
    let mut report = Report::default();
    let files = match durable::there(cache::block_files(dir)) {
        Ok(files) => files.unwrap_or_default(),
        Err(error) => return Report::not_run(error.to_string()),
    };
    let meter = Meter::new(progress, "cached blocks", files.len() as u64);
    for file in files {
        if meter.is_alone() {
            return Report::not_run(CANCELLED);
        }
        // One that was evicted meanwhile is none.
        match durable::there(cache::check_file(&file)) {
            Ok(None) => {}
            Ok(Some(Ok(bytes))) => {
                report.counts.bytes_read += bytes;
                pace.keep(bytes);
            }
            Ok(Some(Err(why))) => spoiled(&mut report, &file, &why, repair),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                spoiled(&mut report, &file, &error.to_string(), repair);
            }
            Err(error) => return Report::not_run(error.to_string()),
        }
        meter.advance(1);
    }
    report
}

fn spoiled(report: &mut Report, file: &Path, why: &str, repair: bool) {
    let message = format!("{}: {why}", file.display());
    let is_repaired = repair && fs::remove_file(file).is_ok();
    let how = match is_repaired {
        true => "it is dropped; what was in it is fetched again when it is needed",
        false => {
            "nothing: it is found out when it is opened, dropped, and fetched again; or `resultsfs verify --local --read-data --repair` drops it"
        }
    };
    report.repaired += u64::from(is_repaired);
    report.find(Finding { is_repaired, ..Finding::new("cache-damaged", Severity::Warning, message, how) });
}

/// A database of the state directory that can't be relied on; `kept` says where it was put, if it was.
pub fn damaged(damage: &Damage, kept: Option<&Path>) -> Finding {
    let (code, severity, comes_back) = match damage.is_journal() {
        true => (
            "journal-damaged",
            Severity::Error,
            "the host keeps its identity, what is committed comes back from the store's catalog, and what is not is found again in the spool",
        ),
        false => ("replica-damaged", Severity::Warning, "it comes back from the store"),
    };
    let message = format!("{}: {}", damage.path.display(), damage.why);
    let repair = match kept {
        Some(kept) => format!("it is in {}; {comes_back}", kept.display()),
        None => format!(
            "`resultsfs verify --local --repair`, without a mount, puts it in quarantine; {comes_back}"
        ),
    };
    Finding { is_repaired: kept.is_some(), ..Finding::new(code, severity, message, repair) }
}

fn is_named(unit: &UnitId, paths: &[RelPath]) -> bool {
    paths.is_empty() || paths.iter().any(|path| unit.root.is_below(path) || unit.holds(path))
}

const FOR_A_LOST_COMMIT: &str = "it is committed by itself when the store has the contents again. Otherwise `explain` names the first path that \
                                 can't be read: put it back through the mount, or delete it, and the rest is committed";

const FOR_A_CHANGE: &str = "`resultsfs evict` frees the spool's copy and shows what was committed; writing to the file commits it as it is";

const FOR_ROT: &str = "`resultsfs verify --local --read-data --repair`, with the mount, brings it back from the store, and keeps what the spool has in quarantine";

/// How an entry of the spool isn't what was committed.
struct Difference {
    how: String,
    /// The disk's doing, not somebody's.
    is_rot: bool,
}

fn change(how: impl Into<String>) -> Difference {
    Difference { how: how.into(), is_rot: false }
}

fn rot(how: String) -> Difference {
    Difference { how, is_rot: true }
}

struct Check<'a> {
    journal: &'a Journal,
    spool: &'a Spool,
    activity: &'a Activity,
    read_data: bool,
    pace: &'a Pace,
    report: Report,
}

impl Check<'_> {
    fn found(&mut self, code: &'static str, record: &UnitRecord, message: String, repair: &str) {
        let units = vec![record.unit.clone()];
        self.report.find(Finding { units, ..Finding::new(code, Severity::Error, message, repair) });
    }

    fn unit(&mut self, record: &UnitRecord) {
        self.report.counts.units += 1;
        self.catalog(record);
        self.conflicts(record);
        let manifest = self.manifest(record);
        match (record.state, manifest) {
            (State::Committed, Some(manifest)) => self.committed(record, &manifest),
            (State::Evicted, _) => self.evicted(record),
            _ => {}
        }
    }

    /// The catalog, as far as it is known here, says of the commit what the journal says.
    fn catalog(&mut self, record: &UnitRecord) {
        let Some(committed) = &record.committed else { return };
        if record.stranded_ms.is_some() {
            let message = format!(
                "the store has lost generation {}, and of that not everything is in the spool",
                committed.generation
            );
            return self.found("commit-lost", record, message, FOR_A_LOST_COMMIT);
        }
        if self.journal.head().is_none_or(|(_, head)| head.seq < committed.seq) {
            return;
        }
        let own = self.journal.layer_of(record);
        let agrees =
            own.is_some_and(|l| l.generation == committed.generation && l.manifest == committed.manifest);
        if !agrees {
            self.found(
                "sequence-disagrees",
                record,
                format!(
                    "the journal has generation {} committed as {}, the catalog doesn't",
                    committed.generation, committed.seq
                ),
                "it is sent again while the spool has it: `resultsfs offload`",
            );
        }
    }

    /// Changes by several hosts that knew nothing of one another, as far as the manifests are here.
    fn conflicts(&mut self, record: &UnitRecord) {
        if !self.journal.has_foreign(&record.unit) {
            return;
        }
        let heads = self.journal.layers(&record.unit).into_iter();
        let layer = |head: LayerHead| {
            let manifest = self.journal.manifest(&head.manifest).ok().flatten()?;
            Some(Layer { unit: record.unit.clone(), head, manifest })
        };
        let layers: Vec<Layer> = heads.filter_map(layer).collect();
        for conflict in conflicts_in(&layers) {
            self.report.find(super::conflict(&layers, &conflict));
        }
    }

    fn manifest(&mut self, record: &UnitRecord) -> Option<std::sync::Arc<Manifest>> {
        let hash = match record.state {
            State::Running | State::Complete => return None,
            State::Sealed => record.manifest,
            State::Committed | State::Evicted => record.committed.as_ref().map(|c| c.manifest),
        };
        let hash = hash?;
        match self.journal.manifest(&hash) {
            Ok(Some(manifest)) => Some(manifest),
            // After a rebuild of the journal the manifest comes from the store when it is wanted.
            Ok(None) if record.partial => None,
            Ok(None) => {
                let message = format!("manifest {hash} isn't in the journal");
                self.found(
                    "manifest-missing",
                    record,
                    message,
                    "write to the unit or recall it; it is described anew",
                );
                None
            }
            Err(e) => {
                self.found("manifest-damaged", record, e.to_string(), "it is fetched again from the store");
                None
            }
        }
    }

    /// A committed layer that isn't partial is in the spool as the manifest says.
    fn committed(&mut self, record: &UnitRecord, manifest: &Manifest) {
        let there = match walk(self.spool.path(), &record.unit) {
            Ok(there) => there,
            Err(e) => {
                return self.found(
                    "spool-unreadable",
                    record,
                    e.to_string(),
                    "mend the disk; the store has the unit",
                );
            }
        };
        for (path, differs) in self.differences(record, manifest, &there) {
            if self.is_changing(record) {
                return;
            }
            let repair = match differs.is_rot {
                true => {
                    self.report.rotten.push((record.unit.clone(), path.clone()));
                    FOR_ROT
                }
                false => FOR_A_CHANGE,
            };
            let message = format!("{path}: {}", differs.how);
            let paths = record.unit.root.append(&path).into_iter().collect();
            let finding = Finding::new("spool-differs", Severity::Error, message, repair);
            self.report.find(Finding { units: vec![record.unit.clone()], paths, ..finding });
        }
    }

    fn differences(
        &mut self,
        record: &UnitRecord,
        manifest: &Manifest,
        there: &BTreeMap<RelPath, std::fs::Metadata>,
    ) -> Vec<(RelPath, Difference)> {
        let mut found = Vec::new();
        for entry in manifest.entries() {
            self.report.counts.files += 1;
            match there.get(&entry.path) {
                None if record.partial || matches!(entry.body, Body::Whiteout) => {}
                None => found.push((entry.path.clone(), change("is missing"))),
                Some(meta) => {
                    found.extend(self.differs(record, manifest, entry, meta).map(|d| (entry.path.clone(), d)))
                }
            }
        }
        let described: BTreeSet<&RelPath> = manifest
            .entries()
            .iter()
            .map(|e| &e.path)
            .chain(manifest.omitted().iter().map(|o| &o.path))
            .collect();
        let extra = there.keys().filter(|p| !described.contains(p));
        found.extend(extra.map(|p| (p.clone(), change("isn't in the committed manifest"))));
        found
    }

    fn differs(
        &mut self,
        record: &UnitRecord,
        manifest: &Manifest,
        entry: &Entry,
        meta: &std::fs::Metadata,
    ) -> Option<Difference> {
        let kind = meta.file_type();
        let same_kind = match &entry.body {
            Body::Dir => kind.is_dir(),
            Body::File { .. } | Body::Link { .. } => kind.is_file(),
            Body::Symlink { .. } => kind.is_symlink(),
            Body::Fifo => !kind.is_dir() && !kind.is_file() && !kind.is_symlink(),
            Body::Whiteout => false,
        };
        if !same_kind {
            return Some(change("is of another type"));
        }
        // A directory's time changes when what isn't the unit's comes and goes in it.
        let time = (meta.mtime(), meta.mtime_nsec());
        let same_time = kind.is_dir() || time == (entry.attrs.mtime.secs, i64::from(entry.attrs.mtime.nanos));
        if meta.mode() & 0o7777 != entry.attrs.mode || !same_time {
            return Some(change("has another mode or time"));
        }
        let (size, content) = manifest.file_of(entry)?;
        if meta.len() != size {
            return Some(change(format!("has {} bytes instead of {size}", meta.len())));
        }
        if !self.read_data {
            return None;
        }
        self.report.counts.bytes_read += size;
        let path = record.unit.root.append(&entry.path).ok()?.under(self.spool.path());
        let hash = || spool::hash_of(Paced { inner: fs::File::open(&path)?, pace: self.pace });
        match hash() {
            Ok(hash) if hash == content => None,
            Ok(_) => {
                Some(rot("has other content, though its size and time say that nobody changed it".to_owned()))
            }
            Err(e) => Some(rot(format!("can't be read: {e}"))),
        }
    }

    /// Nothing is left of an evicted layer.
    fn evicted(&mut self, record: &UnitRecord) {
        let left = walk(self.spool.path(), &record.unit).unwrap_or_default();
        let left = left.iter().filter(|(_, meta)| !meta.is_dir()).count();
        if left > 0 && !self.is_changing(record) {
            self.found(
                "evicted-files-left",
                record,
                format!("{left} files are in the spool though the unit is evicted"),
                "the next start of the daemon frees them",
            );
        }
    }

    /// Whether the unit has moved on since its record was read: then a difference is work, not damage.
    fn is_changing(&self, record: &UnitRecord) -> bool {
        let now = self.journal.get(&record.unit);
        self.activity.snapshot(&record.unit).writers > 0
            || now.is_none_or(|now| now.state != record.state || now.generation != record.generation)
    }
}

/// What of the unit is in the spool, by path below its root.
fn walk(spool: &Path, unit: &UnitId) -> io::Result<BTreeMap<RelPath, std::fs::Metadata>> {
    let root = unit.root.under(spool);
    let mut found = BTreeMap::new();
    if fs::symlink_metadata(&root).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        return Ok(found);
    }
    let depth = if unit.scope == Scope::Loose { 1 } else { usize::MAX };
    for entry in walkdir::WalkDir::new(&root).max_depth(depth) {
        let entry = entry?;
        if unit.scope == Scope::Loose && entry.depth() == 1 && entry.file_type().is_dir() {
            continue;
        }
        let below = entry.path().strip_prefix(&root).map_err(io::Error::other)?;
        let path = RelPath::parse(below.as_os_str().as_bytes()).map_err(io::Error::other)?;
        found.insert(path, entry.metadata()?);
    }
    Ok(found)
}
