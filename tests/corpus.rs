//! Every file of `fuzz/corpus` keeps what `fuzz/properties.rs` asserts, on the stable compiler and within memory that its length and the limits account for.
//! So the fuzz targets can't rot, and what they once found isn't lost again.

#[path = "fuzz/properties.rs"]
mod properties;
#[path = "fuzz/seeds.rs"]
mod seeds;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use properties::TARGETS;
use resultsfs::chunk::block::{HEADER_BYTES, Header};

/// Counts what the thread has of the heap.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    NOW.set(NOW.get() + bytes);
    PEAK.set(PEAK.get().max(NOW.get()));
}

// SAFETY: all of it is the system's allocator; the counters are plain cells of the thread, which take no memory from it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller answers for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller answers for.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while it copies.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: as the caller answers for.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most of the heap that `run` had at once, beyond what there was.
fn peak_bytes(run: impl FnOnce()) -> usize {
    let before = NOW.get();
    PEAK.set(before);
    run();
    (PEAK.get() - before).max(0) as usize
}

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(name)
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries
        .map(|entry| entry.expect("lists").file_name().into_string().expect("our names are ASCII"))
        .collect()
}

/// What an input of a target may cost: so much for each of its bytes, and so much for the first. A block, which comes compressed, may be as large as
/// its header says.
fn bound_bytes(target: &str, input: &[u8]) -> usize {
    const MIB: usize = 1 << 20;
    let (times, least) = match target {
        // Told in rows of text and JSON, each finding with its message; and what a shadow file's sections inherit.
        "config" => (200, 2 * MIB),
        // The memory for a frame's body is taken in steps of 2 MiB; the reader's buffer has 64 KiB.
        "frame" => (8, 3 * MIB),
        // The builder's memory for a block of the usual size.
        "block" => (16, 2 * MIB + raw_bytes(input)),
        _ => (32, MIB / 16),
    };
    times * input.len() + least
}

fn raw_bytes(input: &[u8]) -> usize {
    let mut bytes = input.to_vec();
    properties::mend_block(&mut bytes);
    match bytes.get(..HEADER_BYTES).map(Header::parse) {
        Some(Ok(header)) => 4 * header.raw_bytes() as usize,
        _ => 0,
    }
}

#[test]
fn every_input_of_the_corpus_keeps_what_is_asserted_within_its_memory() {
    for (target, property) in TARGETS {
        let corpus = dir("corpus").join(target);
        for name in names(&corpus) {
            let input = fs::read(corpus.join(&name)).expect("reads");
            // Once before, for what is made once.
            property(&input);
            let peak = peak_bytes(|| property(&input));
            let bound = bound_bytes(target, &input);
            eprintln!("{target}/{name}: {} bytes took {peak} of {bound}", input.len());
            assert!(peak <= bound, "{target}/{name}, {} bytes, took {peak}, not {bound}", input.len());
        }
    }
}

/// Messages of the largest size whose lists have the smallest items: what a host can make the store hold before it is refused.
#[test]
fn a_list_in_a_message_costs_no_more_than_its_limit() {
    use resultsfs::{limits, wire::ToStore};
    let unit = &b"\x82\x40\x00"[..];
    for (variant, item, least) in [(14u8, unit.to_vec(), 3), (8, [b"\x82", unit, b"\x00"].concat(), 5)] {
        let count = limits::MESSAGE_BYTES / item.len() - 10;
        assert_eq!(item.len(), least);
        let list =
            [&[0x82, variant, 0x82, 0x01, 0x9a][..], &(count as u32).to_be_bytes(), &item.repeat(count)]
                .concat();
        assert!(list.len() <= limits::MESSAGE_BYTES);
        let peak = peak_bytes(|| assert!(ToStore::decode(&list).is_err()));
        assert!(peak <= 1 << 20, "{count} items in {} bytes took {peak}", list.len());
    }
}

/// A target that is in one of the places only would be tried by nobody.
#[test]
fn every_target_is_built_and_has_a_corpus() {
    let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&dir("corpus")), known);
    let sources = names(&dir("targets")).into_iter().map(|name| name.trim_end_matches(".rs").to_owned());
    assert_eq!(sources.collect::<BTreeSet<_>>(), known);
    let manifest = fs::read_to_string(dir("Cargo.toml")).expect("reads");
    for target in known {
        assert!(
            manifest.contains(&format!("name = \"{target}\"\npath = \"targets/{target}.rs\"")),
            "{target}"
        );
        let source = fs::read_to_string(dir("targets").join(format!("{target}.rs"))).expect("reads");
        assert!(source.contains(&format!("resultsfs_fuzz::{target}(data)")), "{target}");
    }
}

/// What the encoders make is accepted: a seed that is refused at the door tries nothing.
#[test]
fn seeds_are_accepted() {
    for (target, property) in TARGETS {
        let seeds = seeds::of(target);
        assert!(!seeds.is_empty(), "{target}");
        for (name, bytes) in seeds {
            assert!(bytes.len() <= 64 << 10, "{target}/{name} is large");
            property(&bytes);
        }
    }
    seeds::check();
}

#[test]
#[ignore = "writes tests/fuzz/corpus; for a format that has something new"]
fn make_seeds() {
    for (target, _) in TARGETS {
        let corpus = dir("corpus").join(target);
        fs::create_dir_all(&corpus).expect("mkdir");
        for (name, bytes) in seeds::of(target) {
            fs::write(corpus.join(name), bytes).expect("writes");
        }
    }
}
