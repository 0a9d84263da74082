//! A long history: a store in which any number of jobs was committed, made without running or copying them.
//!
//! A job has 300 files in one or two execution dirs and a few loose ones; its manifests are its own, since times differ, and name contents that
//! all jobs share. They go through the store's own door: blocks are appended, each layer is checked and committed. Job `n` of a seed is
//! always the same, so a history can be continued.

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use super::random::Random;
use crate::{
    chunk::{ObjectKind, block::BlockBuilder},
    clock::SystemClock,
    ids::{Generation, Hash, HostUuid, Incarnation, RelPath, Seq, UnitId},
    manifest::{Attrs, Body, Entry, Manifest, Name, Timestamp},
    store::{NewCommit, Store, StoreError, StoreOptions},
};

/// Files of a job.
pub const FILES: usize = 300;
/// Of these, directly in the job dir.
const LOOSE: &[&str] = &[
    ".archiver_execute",
    ".autoserv_execute",
    ".parse.log",
    ".parse.lock",
    ".parser_execute",
    "control.srv",
    "keyval",
    "status.log",
];
/// Directories of an execution dir.
const DIRS: &[&str] = &["debug", "sysinfo", "sysinfo/boot.0", "results", "profiling"];
/// Snapshots of a test's machine, before and after.
const SNAPSHOTS: &[&str] = &["meminfo", "interrupts", "slabinfo", "schedstat", "buddyinfo", "cmdline"];
/// Contents that all jobs share.
const CONTENTS: usize = 4000;
/// Drones that have committed the jobs.
const DRONES: u64 = 40;
/// Commits under way at once, which share the store's syncs.
const THREADS: usize = 64;
/// 2026-01-01T00:00:00Z, when job 0 started; the next one 97 s later.
const EPOCH: i64 = 1_767_225_600;
const JOB_STEP: i64 = 97;
const LEVEL: i32 = 3;

/// A content that jobs have.
#[derive(Clone, Copy)]
struct Content {
    size: u64,
    hash: Hash,
}

/// Commits the jobs with these numbers to the store in `dir`, which is made if it isn't there. Nobody else may have it open.
pub fn fill(dir: &Path, seed: u64, jobs: Range<u32>) -> Result<(), StoreError> {
    let store = Store::open(dir, StoreOptions { clock: Arc::new(SystemClock) })?;
    let contents = contents(&store, seed)?;
    let (next, failed) = (AtomicU32::new(jobs.start), Mutex::new(None));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= jobs.end {
                return;
            }
            if let Err(e) = commit_job(&store, seed, number, &contents) {
                *failed.lock().expect("no code panics under this lock") = Some(e);
                next.store(jobs.end, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().expect("no code panics under this lock");
    failed.map_or(Ok(()), Err).and_then(|()| store.checkpoint())
}

/// Puts what all jobs share into the store.
fn contents(store: &Store, seed: u64) -> Result<Vec<Content>, StoreError> {
    let mut block = BlockBuilder::default();
    let mut contents = Vec::with_capacity(CONTENTS);
    for number in 0..CONTENTS as u64 {
        let random = &mut Random::named(seed, "content", number);
        let len = random.size(60.0, 8000.0);
        let mut text = format!("{number} {}\n", random.next()).into_bytes();
        while text.len() < len {
            text.extend_from_slice(format!("Active: {:>12} kB\n", random.below(1 << 20)).as_bytes());
        }
        let content = Content { size: text.len() as u64, hash: Hash::of(&text) };
        block.push(ObjectKind::Chunk, content.hash, &text);
        contents.push(content);
        if block.is_full() {
            append(store, &mut block)?;
        }
    }
    append(store, &mut block)?;
    Ok(contents)
}

fn append(store: &Store, block: &mut BlockBuilder) -> Result<(), StoreError> {
    match block.is_empty() {
        true => Ok(()),
        false => store.append_block(&block.finish(LEVEL)?),
    }
}

/// Layer by layer, as its drone would send them: a block with the manifest, and the commit.
fn commit_job(store: &Store, seed: u64, number: u32, contents: &[Content]) -> Result<(), StoreError> {
    let random = &mut Random::named(seed, "history", number.into());
    let drone = random.below(DRONES);
    for (unit, manifest) in layers(random, number, contents) {
        let encoding = manifest.encode();
        let hash = Hash::of(&encoding);
        let mut block = BlockBuilder::default();
        block.push(ObjectKind::Manifest, hash, &encoding);
        append(store, &mut block)?;
        store.commit(NewCommit {
            host: drone_uuid(seed, drone),
            host_name: format!("drone{drone}"),
            unit,
            generation: Generation::FIRST,
            manifest: hash,
            lost: false,
            adopted_by: None,
            incarnation: Incarnation::FIRST,
        })?;
    }
    Ok(())
}

fn drone_uuid(seed: u64, drone: u64) -> HostUuid {
    let hash = blake3::hash(format!("history {seed} drone {drone}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_bytes()[..16]);
    HostUuid(bytes)
}

/// A job's units: its execution dirs, then what is loose. Four in five have one execution dir.
fn layers(random: &mut Random, number: u32, contents: &[Content]) -> Vec<(UnitId, Manifest)> {
    let job = path(&format!("{number}-demo"));
    let hosts = if random.one_of(1, 5) { 2 } else { 1 };
    let mut clock = Clock { at_ns: (EPOCH + i64::from(number) * JOB_STEP) * 1_000_000_000 };
    let mut layers = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for host in 0..hosts {
        let name = format!("host{:03}", (u64::from(number) * 7 + host * 131) % 400);
        let files = (FILES - LOOSE.len()) / hosts as usize;
        let unit = UnitId::tree(job.join(name.as_bytes()).expect("a short name"));
        layers.push((unit, execution(random, &mut clock, files, contents)));
        names.push(name);
    }
    let mut entries = vec![clock.entry("", Body::Dir)];
    entries.extend(LOOSE.iter().map(|name| clock.entry(name, file(random, contents))));
    layers.push((UnitId::loose(job), manifest(entries)));
    layers
}

fn execution(random: &mut Random, clock: &mut Clock, files: usize, contents: &[Content]) -> Manifest {
    let mut entries = vec![clock.entry("", Body::Dir)];
    entries.extend(DIRS.iter().map(|dir| clock.entry(dir, Body::Dir)));
    for log in ["DEBUG", "INFO", "WARNING", "ERROR"] {
        entries.push(clock.entry(&format!("debug/client.0.{log}"), file(random, contents)));
    }
    let per_test = 3 + 2 * SNAPSHOTS.len();
    for test in 0..(files - 4).div_ceil(per_test) {
        let top = format!("test{test:02}.{}", random.below(20));
        entries.extend(["", "/debug", "/sysinfo"].map(|dir| clock.entry(&format!("{top}{dir}"), Body::Dir)));
        let snapshots = SNAPSHOTS
            .iter()
            .flat_map(|name| ["before", "after"].map(|when| format!("sysinfo/{name}.{when}")));
        let names = ["keyval".to_owned(), "status".to_owned(), "debug/client.DEBUG".to_owned()];
        for name in names.into_iter().chain(snapshots).take((files - 4).saturating_sub(test * per_test)) {
            entries.push(clock.entry(&format!("{top}/{name}"), file(random, contents)));
        }
    }
    manifest(entries)
}

fn file(random: &mut Random, contents: &[Content]) -> Body {
    let Content { size, hash } = contents[random.below(contents.len() as u64) as usize];
    Body::File { size, content: hash }
}

fn manifest(entries: Vec<Entry>) -> Manifest {
    let root = || vec![Name { id: 0, name: "root".to_owned() }];
    Manifest::new(entries, Vec::new(), root(), root()).expect("its paths are good and differ")
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text).expect("names made here are good")
}

/// The time of a job's next file.
struct Clock {
    at_ns: i64,
}

impl Clock {
    fn entry(&mut self, name: &str, body: Body) -> Entry {
        self.at_ns += 150_000_007;
        let mtime =
            Timestamp { secs: self.at_ns / 1_000_000_000, nanos: (self.at_ns % 1_000_000_000) as u32 };
        let mode = if body == Body::Dir { 0o755 } else { 0o644 };
        let attrs = Attrs { mode, uid: 0, gid: 0, mtime };
        Entry { path: path(name), attrs, body, since: Generation::FIRST, base: Seq(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history can be continued, and what is in it is what a store checks.
    #[test]
    fn jobs_have_three_hundred_files_and_stay_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        fill(dir.path(), 1, 1..6).expect("a store");
        fill(dir.path(), 1, 4..11).expect("goes on");
        let store = Store::open(dir.path(), StoreOptions { clock: Arc::new(SystemClock) }).expect("opens");
        let records = store.records_after(Seq(0), 1000).expect("readable");
        let mut files = std::collections::BTreeMap::<_, usize>::new();
        for record in &records {
            let commit = record.commit().expect("a history has nothing else");
            let bytes =
                store.read_object(ObjectKind::Manifest, &commit.manifest).expect("readable").expect("here");
            let manifest = Manifest::decode(&bytes).expect("a good one");
            let count = manifest.entries().iter().filter(|e| matches!(e.body, Body::File { .. })).count();
            *files.entry(commit.unit.root.first(1)).or_default() += count;
        }
        assert_eq!(files.len(), 10, "{files:?}");
        assert!(files.values().all(|count| *count == FILES), "{files:?}");
        assert!(records.len() > 20, "some jobs have two execution dirs");
    }
}
