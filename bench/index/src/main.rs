//! The store's index beside what it could have been: a redb or a fjall of the same keys, in the same batches, with a cache of 32 MiB.
//!
//! `bench/index/run [--keys N] [--cache-mib N] [--only runs|redb|fjall] [--dir DIR]`. Each stage is a process of its own, so that memory and opening
//! are its own: one fills the database and is gone without closing it; one opens that, looks up and makes small commits; one opens what
//! the second has closed. Every commit is durable when it returns. Nothing is dropped from the kernel's page cache.

mod fjalldb;
mod keys;
mod memory;
mod redbdb;
mod runs;
mod stages;

use std::{collections::HashMap, env, path::PathBuf, process::Command};

/// What the index asks of a database.
pub trait Index: Sized {
    fn open(dir: &std::path::Path, cache_bytes: u64) -> Self;
    /// One durable transaction; the rows are in order of key.
    fn insert(&self, rows: &[(keys::Key, keys::Value)]);
    /// How many of these are there.
    fn count(&self, keys: &[keys::Key]) -> usize;
}

/// `(row, unit, target)`; the row is what a stage prints.
const ROWS: [(&str, &str, &str); 13] = [
    ("inserts, batches of 32 Ki", "/s", ">= 50,000"),
    ("of them the last tenth", "/s", ""),
    ("slowest batch", "ms", ""),
    ("memory while filling", "MiB", ""),
    ("size after filling", "MB", ""),
    ("open after a kill", "s", "< 1"),
    ("look-ups, there", "/s", ">= 200,000"),
    ("look-ups, not there", "/s", ">= 200,000"),
    ("commits of 300", "/s", ""),
    ("inserts, commits of 300", "/s", ""),
    ("memory after that", "MiB", ""),
    ("size at the end", "MB", ""),
    ("open after a close", "s", "< 1"),
];

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let option =
        |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1)).cloned();
    let number = |name: &str, or: u64| option(name).map_or(or, |text| text.parse().expect("a number"));
    let keys = number("--keys", 20_000_000);
    let cache_bytes = number("--cache-mib", 32) << 20;
    let dir = PathBuf::from(option("--dir").expect("--dir DIR"));
    if let Some(stage) = option("--stage") {
        let plan = stages::Plan { keys, cache_bytes, dir };
        match option("--only").as_deref() {
            Some("fjall") => stages::run::<fjalldb::Fjall>(&stage, &plan),
            Some("runs") => stages::run::<runs::Runs>(&stage, &plan),
            _ => stages::run::<redbdb::Redb>(&stage, &plan),
        }
        return;
    }
    let names: Vec<&str> = ["runs", "redb", "fjall"]
        .into_iter()
        .filter(|name| option("--only").is_none_or(|only| only == *name))
        .collect();
    let figures: Vec<_> =
        names.iter().map(|name| measure(name, &dir.join(name), keys, cache_bytes)).collect();
    println!(
        "# {keys} random keys of {} bytes, values of {}, a cache of {} MiB; redb 4, fjall 3",
        keys::KEY_BYTES,
        keys::VALUE_BYTES,
        cache_bytes >> 20
    );
    print(&names, &figures);
}

fn measure(name: &str, dir: &std::path::Path, keys: u64, cache_bytes: u64) -> HashMap<String, f64> {
    std::fs::create_dir_all(dir).expect("a directory for the database");
    let mut figures = HashMap::new();
    for stage in ["fill", "use", "open"] {
        eprintln!("# {name}: {stage}");
        let mut command = Command::new(env::current_exe().expect("our own path"));
        command.args(["--stage", stage, "--only", name, "--dir"]).arg(dir);
        command.args(["--keys", &keys.to_string(), "--cache-mib", &(cache_bytes >> 20).to_string()]);
        let output = command.stderr(std::process::Stdio::inherit()).output().expect("the stage starts");
        assert!(output.status.success(), "{name}: {stage} failed");
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let (row, value) = line.rsplit_once('\t').expect("a row and its figure");
            figures.insert(row.to_owned(), value.parse().expect("a figure"));
        }
    }
    std::fs::remove_dir_all(dir).expect("the database goes");
    figures
}

fn print(names: &[&str], figures: &[HashMap<String, f64>]) {
    let heads: String = names.iter().map(|name| format!("{name:>14}")).collect();
    println!("{:28}{:6}{heads}  target", "", "");
    for (row, unit, target) in ROWS {
        let value = |of: &HashMap<String, f64>| match of[row] {
            value if value < 10.0 => format!("{value:>14.3}"),
            value => format!("{value:>14.0}"),
        };
        let values: String = figures.iter().map(value).collect();
        println!("{row:28}{unit:6}{values}  {target}");
    }
}
