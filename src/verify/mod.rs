//! Checks that nothing is missing, and says what is.
//!
//! A check changes nothing, but notes what it has read of a store. What it finds is a [`Finding`] with a stable code, the units that it touches and what to do about it; the
//! [`Report`] of several checks is one. [`local`] checks a host's journal and spool, [`store`] the results host's half, [`json`] is both's output.

pub mod json;
pub mod local;
pub mod store;

use std::{
    io::{self, Read},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    control::StoreCheck,
    fs::{conflict::Conflict, union::Layer},
    ids::{RelPath, UnitId},
    manifest::Body,
};

/// Findings kept in a report; beyond that they are only counted. A lost disk must not fill the memory.
pub const FINDINGS_MAX: usize = 10_000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Derived or spare; nothing stored is affected, and the program mends it by itself or with the named command.
    Warning,
    /// Something stored isn't as it was.
    Error,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Stable, kebab-case, for scripts.
    pub code: &'static str,
    pub severity: Severity,
    /// For people: what, where.
    pub message: String,
    /// Units that it touches, as far as known.
    pub units: Vec<UnitId>,
    /// Paths that it touches, from the top of the tree; of many, the first ones.
    pub paths: Vec<RelPath>,
    /// What to do about it.
    pub repair: String,
    /// It was, and is no more.
    pub is_repaired: bool,
}

/// A part of a file that can't be had any more: reading it is an error, and the rest of the file can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRange {
    pub unit: UnitId,
    /// From the top of the tree.
    pub path: RelPath,
    pub from: u64,
    pub bytes: u64,
}

impl Finding {
    /// One that names no unit yet.
    pub fn new(
        code: &'static str,
        severity: Severity,
        message: impl Into<String>,
        repair: impl Into<String>,
    ) -> Self {
        let (message, repair) = (message.into(), repair.into());
        Self { code, severity, message, units: Vec::new(), paths: Vec::new(), repair, is_repaired: false }
    }
}

/// A change that was overtaken by one that knew nothing of it.
fn conflict(layers: &[Layer], conflict: &Conflict) -> Finding {
    let Conflict { shown, lost } = conflict;
    let name = |host| {
        let of_host = layers.iter().find(|layer| layer.head.host == host);
        of_host.map_or_else(|| host.to_string(), |layer| layer.head.host_name.clone())
    };
    let path = lost.unit.root.append(&lost.entry.path).unwrap_or_else(|_| lost.unit.root.clone());
    let what = if lost.entry.body == Body::Whiteout { "deletion" } else { "change" };
    let message = format!(
        "{path}: the {what} by {} ({}) and that by {} ({}) knew nothing of one another; the latter counts",
        name(lost.host),
        lost.seq,
        name(shown.host),
        shown.seq
    );
    let repair = format!(
        "`resultsfs explain --cat {} {path}` prints what was overtaken; whoever writes the file again settles it",
        name(lost.host)
    );
    let units = vec![lost.unit.clone()];
    Finding { units, paths: vec![path], ..Finding::new("conflict", Severity::Warning, message, repair) }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// A host's own units.
    pub units: u64,
    /// Of the catalog: commits, and records of the other kinds.
    pub records: u64,
    /// Records that are retirements.
    pub retirements: u64,
    /// Likewise prunes.
    pub prunes: u64,
    /// Likewise undeletes.
    pub undeletes: u64,
    /// Likewise purges.
    pub purges: u64,
    /// Likewise what `gc` enters.
    pub reclaims: u64,
    /// Commits that purges have given up: what they name isn't expected.
    pub purged_commits: u64,
    /// Packs that were reclaimed, ever.
    pub reclaimed_packs: u64,
    pub manifests: u64,
    /// Regular files of all manifests.
    pub files: u64,
    pub packs: u64,
    pub blocks: u64,
    pub objects: u64,
    /// Bytes that were read and hashed, as stored.
    pub bytes_read: u64,
    /// Cut files whose whole content was hashed.
    pub recipes_read: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
    /// Findings beyond [`FINDINGS_MAX`].
    pub more_findings: u64,
    /// Findings that were repaired since.
    pub repaired: u64,
    /// Files of the spool, below their units' roots, that aren't what was committed though nobody changed them.
    pub rotten: Vec<(UnitId, RelPath)>,
    /// Of files, what can't be read.
    pub lost: Vec<LostRange>,
    /// Ranges beyond [`FINDINGS_MAX`].
    pub more_lost: u64,
    /// What is worth knowing and isn't wrong.
    pub notes: Vec<String>,
    /// Why the check, or a part of it, couldn't run.
    pub could_not_run: Option<String>,
    pub counts: Counts,
}

impl Report {
    /// Of a check that couldn't run.
    pub fn not_run(why: impl Into<String>) -> Self {
        Self { could_not_run: Some(why.into()), ..Self::default() }
    }

    /// Adds a finding.
    pub fn find(&mut self, finding: Finding) {
        match self.findings.len() < FINDINGS_MAX {
            true => self.findings.push(finding),
            false => self.more_findings += 1,
        }
    }

    /// What was found of this file of a unit is no more.
    pub fn is_repaired(&mut self, unit: &UnitId, path: &RelPath, how: &str) {
        let of_it =
            |finding: &&mut Finding| finding.units == [unit.clone()] && finding.paths == [path.clone()];
        for finding in self.findings.iter_mut().filter(of_it).filter(|finding| !finding.is_repaired) {
            finding.is_repaired = true;
            how.clone_into(&mut finding.repair);
            self.repaired += 1;
        }
    }

    /// Adds a part of a file.
    pub fn lose(&mut self, range: LostRange) {
        match self.lost.len() < FINDINGS_MAX {
            true => self.lost.push(range),
            false => self.more_lost += 1,
        }
    }

    /// Whether nothing was found, and all was looked at.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.could_not_run.is_none()
    }

    /// As fsck(8): 0 clean, 1 all corrected, 4 something left, 8 could not run.
    pub fn exit_code(&self) -> u8 {
        let found = self.findings.len() as u64 + self.more_findings;
        match (&self.could_not_run, found) {
            (Some(_), _) => 8,
            (None, 0) => 0,
            (None, found) if found == self.repaired => 1,
            (None, _) => 4,
        }
    }

    /// Adds another check's report to this one.
    pub fn merge(&mut self, other: Report) {
        other.findings.into_iter().for_each(|finding| self.find(finding));
        self.more_findings += other.more_findings;
        other.lost.into_iter().for_each(|range| self.lose(range));
        self.more_lost += other.more_lost;
        self.repaired += other.repaired;
        self.notes.extend(other.notes);
        self.could_not_run = self.could_not_run.take().or(other.could_not_run);
        self.counts.add(&other.counts);
    }
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.units += other.units;
        self.records += other.records;
        self.retirements += other.retirements;
        self.prunes += other.prunes;
        self.undeletes += other.undeletes;
        self.purges += other.purges;
        self.reclaims += other.reclaims;
        self.purged_commits += other.purged_commits;
        self.reclaimed_packs += other.reclaimed_packs;
        self.manifests += other.manifests;
        self.files += other.files;
        self.packs += other.packs;
        self.blocks += other.blocks;
        self.objects += other.objects;
        self.bytes_read += other.bytes_read;
        self.recipes_read += other.recipes_read;
    }
}

/// How thorough a check is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Read every byte, not only what describes it, and compare it with the hashes beside it.
    pub read_data: bool,
    /// Of a store, unpack what is read, too: every object is compared with its name, and every cut file with the whole content's.
    pub unpack: bool,
    /// Of the data, read only one part in so many.
    pub sample: Option<Sample>,
    /// Of a store, don't read again what a check that was cut off has read.
    pub resume: bool,
    /// Read at most so many bytes a second; 0 = as many as there are.
    pub bytes_per_s: u64,
}

/// Part `part` of `of`, from 1; all parts together are everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    part: u32,
    of: u32,
}

impl Sample {
    /// `None` unless 1 ≤ part ≤ of.
    pub fn new(part: u32, of: u32) -> Option<Self> {
        (1..=of).contains(&part).then_some(Self { part, of })
    }

    /// Whether the thing with this number is in the part.
    pub fn takes(&self, number: u32) -> bool {
        number % self.of == self.part - 1
    }
}

impl VerifyOptions {
    /// Of a host: whether every byte is read, and how many MiB a second at most; 0 = no bound.
    pub fn of_host(read_data: bool, mib_per_s: u32) -> Self {
        StoreCheck { read_data, mib_per_s, ..StoreCheck::default() }.into()
    }

    /// Every byte, unpacked.
    pub const EVERYTHING: Self =
        Self { read_data: true, unpack: true, sample: None, resume: false, bytes_per_s: 0 };

    /// Whether any data is read.
    pub fn reads_any(&self) -> bool {
        self.read_data || self.unpack
    }

    /// Whether the data of the thing with this number is read.
    pub fn reads(&self, number: u32) -> bool {
        self.reads_any() && self.sample.is_none_or(|sample| sample.takes(number))
    }

    /// Whether it is unpacked, too.
    pub fn unpacks(&self, number: u32) -> bool {
        self.unpack && self.reads(number)
    }
}

impl From<StoreCheck> for VerifyOptions {
    fn from(check: StoreCheck) -> Self {
        let StoreCheck { read_data, unpack, sample, resume, mib_per_s } = check;
        let sample = sample.and_then(|(part, of)| Sample::new(part, of));
        Self { read_data, unpack, sample, resume, bytes_per_s: u64::from(mib_per_s) << 20 }
    }
}

/// Holds who reads back to so many bytes a second, all threads together.
#[derive(Debug)]
struct Pace {
    bytes_per_s: u64,
    /// When what was read so far is due.
    due: Mutex<Instant>,
}

impl Pace {
    /// 0 holds nobody back.
    fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, due: Mutex::new(Instant::now()) }
    }

    /// Called when so many bytes were read; returns when more may be.
    fn keep(&self, bytes: u64) {
        if self.bytes_per_s == 0 {
            return;
        }
        let now = Instant::now();
        let due = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            // Time in which nothing was read isn't made up for.
            *due = now.max(*due) + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
            *due
        };
        thread::sleep(due.saturating_duration_since(now));
    }
}

/// Reads at a pace.
struct Paced<'a, R> {
    inner: R,
    pace: &'a Pace,
}

impl<R: Read> Read for Paced<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(out)?;
        self.pace.keep(bytes as u64);
        Ok(bytes)
    }
}

/// What a check is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub phase: &'static str,
    pub done: u64,
    pub total: u64,
}

impl Progress {
    /// Whether it counts bytes, and not what the phase is called after.
    pub fn is_bytes(&self) -> bool {
        self.phase == PACKS
    }
}

/// The phase that reads packs: it counts their bytes.
const PACKS: &str = "packs";

/// Is told of progress, from any thread; says whether anybody still waits for the report.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) -> bool + Sync);

/// Why a check that nobody waits for has no report.
const CANCELLED: &str = "nobody waits for the check any more";

/// Counts up towards a total, until nobody listens.
struct Meter<'a> {
    tell: OnProgress<'a>,
    phase: &'static str,
    done: AtomicU64,
    total: u64,
    is_alone: AtomicBool,
}

impl<'a> Meter<'a> {
    fn new(tell: OnProgress<'a>, phase: &'static str, total: u64) -> Self {
        let listens = tell(Progress { phase, done: 0, total });
        Self { tell, phase, done: AtomicU64::new(0), total, is_alone: AtomicBool::new(!listens) }
    }

    /// Nobody listens any more.
    fn is_alone(&self) -> bool {
        self.is_alone.load(Ordering::Relaxed)
    }

    /// An error if nobody does: the check goes no further.
    fn go_on(&self) -> io::Result<()> {
        match self.is_alone() {
            true => Err(io::Error::new(io::ErrorKind::Interrupted, CANCELLED)),
            false => Ok(()),
        }
    }

    fn advance(&self, by: u64) {
        let done = self.done.fetch_add(by, Ordering::Relaxed) + by;
        if !(self.tell)(Progress { phase: self.phase, done, total: self.total }) {
            self.is_alone.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_fsck() {
        let mut report = Report::default();
        assert_eq!(report.exit_code(), 0);
        report.find(Finding::new("x", Severity::Warning, "x", "y"));
        assert_eq!(report.exit_code(), 4);
        report.repaired = 1;
        assert_eq!(report.exit_code(), 1);
        report.merge(Report::not_run("no"));
        assert_eq!(report.exit_code(), 8);
    }

    #[test]
    fn the_parts_of_a_sample_are_everything_once() {
        assert_eq!(Sample::new(0, 3), None);
        assert_eq!(Sample::new(4, 3), None);
        for number in 0..20 {
            let taken = (1..=3).filter(|part| Sample::new(*part, 3).expect("a part").takes(number)).count();
            assert_eq!(taken, 1);
        }
    }
}
