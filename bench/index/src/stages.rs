//! The stages. Each prints its rows on stdout, name and figure apart by a tab.

use std::{fs, mem, path::Path, path::PathBuf, process, time::Instant};

use crate::{
    Index,
    keys::{Key, Value, key, mixed, value},
    memory,
};

/// `limits` of the store: what it writes at once.
const BATCH: u64 = 32 << 10;
/// New contents of a job or two.
const COMMIT: u64 = 300;
const COMMITS: u64 = 200;
/// One question of a drone.
const ASKED: usize = 512;
const LOOKUPS: u64 = 400_000;

pub struct Plan {
    pub keys: u64,
    pub cache_bytes: u64,
    pub dir: PathBuf,
}

pub fn run<I: Index>(stage: &str, plan: &Plan) {
    memory::watch();
    match stage {
        "fill" => fill::<I>(plan),
        "use" => make_use::<I>(plan),
        _ => {
            say("open after a close", opened::<I>(plan).1);
        }
    }
}

fn fill<I: Index>(plan: &Plan) {
    let index = I::open(&plan.dir, plan.cache_bytes);
    let began = Instant::now();
    let (mut last, mut slowest) = (0.0, 0.0_f64);
    let tenth = plan.keys.div_ceil(10);
    let last_from = plan.keys - tenth;
    let mut from = 0;
    while from < plan.keys {
        let rows = rows(from, (from + BATCH).min(plan.keys));
        let batch = Instant::now();
        index.insert(&rows);
        let seconds = batch.elapsed().as_secs_f64();
        slowest = slowest.max(seconds);
        if from >= last_from {
            last += seconds;
        }
        if (from + BATCH) / tenth > from / tenth {
            eprintln!("# {} keys after {:.0} s", from + BATCH, began.elapsed().as_secs_f64());
        }
        from += BATCH;
    }
    let seconds = began.elapsed().as_secs_f64();
    let in_last = (plan.keys.div_ceil(BATCH) - last_from.div_ceil(BATCH)) * BATCH;
    say("inserts, batches of 32 Ki", plan.keys as f64 / seconds);
    say("of them the last tenth", in_last as f64 / last);
    say("slowest batch", slowest * 1000.0);
    say("memory while filling", memory::peak_mib());
    say("size after filling", bytes(&plan.dir) as f64 / 1e6);
    // Gone as if killed.
    mem::forget(index);
    process::exit(0);
}

fn make_use<I: Index>(plan: &Plan) {
    let (index, seconds) = opened::<I>(plan);
    say("open after a kill", seconds);
    let lookups = LOOKUPS.min(plan.keys);
    say("look-ups, there", looked_up(&index, lookups, |i| mixed(i) % plan.keys, lookups));
    say("look-ups, not there", looked_up(&index, lookups, |i| plan.keys + COMMITS * COMMIT + i, 0));
    let began = Instant::now();
    for commit in 0..COMMITS {
        let from = plan.keys + commit * COMMIT;
        index.insert(&rows(from, from + COMMIT));
    }
    let seconds = began.elapsed().as_secs_f64();
    say("commits of 300", COMMITS as f64 / seconds);
    say("inserts, commits of 300", (COMMITS * COMMIT) as f64 / seconds);
    say("memory after that", memory::peak_mib());
    drop(index);
    say("size at the end", bytes(&plan.dir) as f64 / 1e6);
}

/// An index that has answered once, and the seconds until then.
fn opened<I: Index>(plan: &Plan) -> (I, f64) {
    let began = Instant::now();
    let index = I::open(&plan.dir, plan.cache_bytes);
    assert_eq!(index.count(&[key(0), key(plan.keys - 1), key(u64::MAX)]), 2, "what was committed is there");
    (index, began.elapsed().as_secs_f64())
}

/// Look-ups a second.
fn looked_up<I: Index>(index: &I, lookups: u64, number: impl Fn(u64) -> u64, there: u64) -> f64 {
    let keys: Vec<Key> = (0..lookups).map(|i| key(number(i))).collect();
    let began = Instant::now();
    let found: usize = keys.chunks(ASKED).map(|asked| index.count(asked)).sum();
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(found as u64, there, "no more and no less");
    lookups as f64 / seconds
}

fn rows(from: u64, to: u64) -> Vec<(Key, Value)> {
    let mut rows: Vec<_> = (from..to).map(|number| (key(number), value(number))).collect();
    rows.sort_unstable();
    rows
}

fn say(row: &str, figure: f64) {
    println!("{row}\t{figure}");
}

/// What the files below take on the disk: some are made larger than they are filled.
fn bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(dir).expect("a directory").flatten();
    entries
        .filter_map(|entry| Some((entry.metadata().ok()?, entry.path())))
        .map(|(found, path)| if found.is_dir() { bytes(&path) } else { found.blocks() * 512 })
        .sum()
}
