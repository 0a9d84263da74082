//! Formats don't change: what this version writes has the bytes that are written down here, and what earlier versions wrote opens and is what
//! it was. `tests/fixtures/store-N` is a whole store for each version that added something to the format; it is never made anew.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use resultsfs::{
    catalog::{Commit, Record, RecordBody, UnitLife},
    chunk::{
        ChunkParams, ChunkRef, ObjectKind, Recipe,
        block::{Block, BlockBuilder},
        cutter::Cutter,
    },
    clock::ManualClock,
    ids::{Generation, Hash, HostUuid, Incarnation, Seq, UnitId},
    manifest::{Attrs, Body, Entry, Manifest, Name, Omitted, OmittedKind, Timestamp},
    store::{NewCommit, NewPrune, NewPurge, NewRetirement, NewUndelete, Store, StoreOptions},
    verify::{
        VerifyOptions,
        store::{Source, verify_store},
    },
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn entry(path: &str, body: Body) -> Entry {
    let mtime = Timestamp { secs: -2, nanos: 500_000_000 };
    let attrs = Attrs { mode: 0o2750, uid: 1000, gid: 7, mtime };
    Entry { path: path.parse().expect("a path"), attrs, body, since: Generation(2), base: Seq(41) }
}

/// One of everything that a manifest can hold.
fn manifest() -> Manifest {
    let file = Body::File { size: 6, content: Hash::of(b"linked") };
    let entries = vec![
        entry("", Body::Dir),
        entry("a.b", file),
        entry("a/first", Body::Link { to: "a.b".parse().expect("a path") }),
        entry("dangling", Body::Symlink { target: b"../no\xffwhere".to_vec() }),
        entry("gone", Body::Whiteout),
        entry("pipe", Body::Fifo),
    ];
    let omitted = vec![Omitted { path: "socket".parse().expect("a path"), kind: OmittedKind::Socket }];
    let (user, group) = (Name { id: 1000, name: "autotest".into() }, Name { id: 7, name: "lp".into() });
    Manifest::new(entries, omitted, vec![user], vec![group]).expect("a good manifest")
}

/// The name of a manifest is the hash of these bytes: one that changed would make every layer new to every store.
#[test]
fn a_manifest_has_the_golden_bytes() {
    assert_eq!(hex(&manifest().encode()), MANIFEST.replace([' ', '\n'], ""));
    assert_eq!(Manifest::decode(&unhex(MANIFEST)).expect("decodes"), manifest());
}

#[test]
fn a_recipe_has_the_golden_bytes() {
    let chunks = [&b"one"[..], b"three"].map(|b| ChunkRef { hash: Hash::of(b), bytes: b.len() as u32 });
    let recipe = Recipe { chunks: chunks.to_vec() };
    assert_eq!(hex(&recipe.encode()), RECIPE.replace([' ', '\n'], ""));
    assert_eq!(Recipe::decode(&unhex(RECIPE)).expect("decodes"), recipe);
}

/// What zstd makes of bytes may change with its version; what it made of them must open for ever.
#[test]
fn blocks_of_old_open() {
    let text = b"GOOD\tsleeptest\n".repeat(40);
    for (block, expected) in [(PLAIN_BLOCK, &b"\x00\x01\x02\x03\xff"[..]), (ZSTD_BLOCK, &text)] {
        let block = Block::open(&unhex(block)).expect("opens");
        assert_eq!(block.get(ObjectKind::Chunk, &Hash::of(expected)), Some(expected));
        assert_eq!(block.get(ObjectKind::Manifest, &Hash::of(b"m")), Some(&b"m"[..]));
    }
    let mut plain = BlockBuilder::default();
    plain.push(ObjectKind::Chunk, Hash::of(b"\x00\x01\x02\x03\xff"), b"\x00\x01\x02\x03\xff");
    plain.push(ObjectKind::Manifest, Hash::of(b"m"), b"m");
    assert_eq!(hex(&plain.finish(3).expect("is kept plain")), PLAIN_BLOCK.replace([' ', '\n'], ""));
}

#[test]
fn a_record_has_the_golden_bytes() {
    let commit = Commit {
        host: HostUuid([1; 16]),
        host_name: "drone1".into(),
        unit: UnitId::tree("12-me/host1".parse().expect("a path")),
        generation: Generation(3),
        manifest: Hash::of(b"manifest"),
        lost: true,
        bytes: 1 << 33,
        entries: 300,
        adopted_by: Some("root".into()),
        incarnation: Incarnation(9),
    };
    let body = RecordBody::Commit(commit);
    let record = Record { seq: Seq(70_000), prev: Hash::of(b"before"), time_ms: 1_700_000_000_000, body };
    assert_eq!(hex(&record.encode()), RECORD.replace([' ', '\n'], ""));
}

/// A large file and its own chunks, by the parameters of every store so far.
fn objects_of(log: &[u8]) -> (Recipe, Vec<Vec<u8>>) {
    let mut cutter = Cutter::new(log, &ChunkParams::default()).expect("good parameters");
    let (mut chunks, mut bytes) = (Vec::new(), Vec::new());
    while let Some((chunk, part)) = cutter.next_chunk().expect("reads") {
        chunks.push(chunk);
        bytes.push(part.to_vec());
    }
    (Recipe { chunks }, bytes)
}

/// The contents of the fixture's files, by the number of the job.
fn small(job: u32) -> Vec<u8> {
    format!("job {job}: GOOD\n").repeat(20).into_bytes()
}

fn log() -> Vec<u8> {
    (0..20_000).flat_map(|i| format!("{i:06} test.sleep INFO\n").into_bytes()).collect()
}

fn job(number: u32) -> UnitId {
    UnitId::tree(format!("{number}-me/host1").parse().expect("a path"))
}

fn layer(number: u32, generation: u32) -> Manifest {
    let file = |path: &str, bytes: &[u8]| {
        entry(path, Body::File { size: bytes.len() as u64, content: Hash::of(bytes) })
    };
    let mut entries = vec![entry("", Body::Dir), file("status.log", &small(number)), file("log", &log())];
    if generation > 1 {
        entries.push(file("keyval", b"late=1\n"));
    }
    Manifest::new(entries, Vec::new(), Vec::new(), Vec::new()).expect("a good manifest")
}

fn options() -> StoreOptions {
    StoreOptions { clock: Arc::new(ManualClock::at(1_700_000_000_000)) }
}

/// Made the first fixture: commits of two generations and two hosts, a life that was retired, one that was pruned and undeleted, one that was purged.
/// For the next one, add what is new, and another number.
#[test]
#[ignore = "writes tests/fixtures; a fixture that is there is never made anew"]
fn make_the_next_fixture() {
    let dir = fixture("store-1");
    assert!(!dir.exists(), "{} is there", dir.display());
    let store = Store::open(&dir, options()).expect("makes a store");
    let (recipe, chunks) = objects_of(&log());
    let mut block = BlockBuilder::default();
    for (chunk, bytes) in recipe.chunks.iter().zip(&chunks) {
        block.push(ObjectKind::Chunk, chunk.hash, bytes);
    }
    block.push(ObjectKind::Recipe, Hash::of(&log()), &recipe.encode());
    block.push(ObjectKind::Chunk, Hash::of(b"late=1\n"), b"late=1\n");
    store.append_block(&block.finish(3).expect("compresses")).expect("takes it");
    let commit = |number: u32, host: u8, generation: u32| {
        let manifest = layer(number, generation).encode();
        let mut block = BlockBuilder::default();
        block.push(ObjectKind::Chunk, Hash::of(&small(number)), &small(number));
        block.push(ObjectKind::Manifest, Hash::of(&manifest), &manifest);
        store.append_block(&block.finish(3).expect("compresses")).expect("takes it");
        let commit = NewCommit {
            host: HostUuid([host; 16]),
            host_name: format!("drone{host}"),
            unit: job(number),
            generation: Generation(generation),
            manifest: Hash::of(&manifest),
            lost: false,
            adopted_by: None,
            incarnation: Incarnation::FIRST,
        };
        store.commit(commit).expect("commits").seq
    };
    let (one, _) = (commit(1, 1, 1), commit(2, 1, 1));
    commit(2, 1, 2);
    let (three, four) = (commit(3, 2, 1), commit(4, 2, 1));
    let units = vec![(job(1), one)];
    let retired = NewRetirement { host: HostUuid([1; 16]), host_name: "drone1".into(), units };
    store.retire(retired).expect("retires");
    let (by, rule) = ("root".to_owned(), "older than 30 days".to_owned());
    let units = vec![(job(3), three), (job(4), four)];
    store.prune(NewPrune { by: by.clone(), rule, units }).expect("prunes");
    let life = |number| vec![UnitLife { unit: job(number), incarnation: Incarnation::FIRST }];
    store.undelete(NewUndelete { by: by.clone(), lives: life(3) }).expect("undeletes");
    store.purge(NewPurge { by, lives: life(4) }).expect("purges");
    drop(store);
    // Derived or of no lasting meaning.
    for name in ["index.redb", "lock"] {
        fs::remove_file(dir.join(name)).expect("removes");
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("mkdir");
    for entry in fs::read_dir(from).expect("lists").map(|entry| entry.expect("reads")) {
        match entry.path() {
            dir if dir.is_dir() => copy(&dir, &to.join(entry.file_name())),
            file => drop(fs::copy(&file, to.join(entry.file_name())).expect("copies")),
        }
    }
}

/// A store of the first version opens, is whole, and gives back every byte, without an index beside it.
#[test]
fn a_store_of_the_first_version_opens() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    copy(&fixture("store-1"), dir.path());
    let store = Store::open(dir.path(), options()).expect("opens");
    assert_eq!(store.uuid().to_string(), STORE_1);
    assert_eq!((store.head().seq, store.head().chain.to_string()), (Seq(9), HEAD_1.to_owned()));
    for (number, generation) in [(1, 1), (2, 1), (2, 2), (3, 1)] {
        let hash = Hash::of(&layer(number, generation).encode());
        assert!(store.manifest_known(&hash).expect("asks"), "{number} {generation}");
        let small = small(number);
        let there = store.read_object(ObjectKind::Chunk, &Hash::of(&small)).expect("reads");
        assert_eq!(there, Some(small));
    }
    assert!(!store.manifest_known(&Hash::of(&layer(4, 1).encode())).expect("asks"), "it was purged");
    let recipe = store.read_object(ObjectKind::Recipe, &Hash::of(&log())).expect("reads").expect("is there");
    let recipe = Recipe::decode(&recipe).expect("decodes");
    let parts = recipe
        .chunks
        .iter()
        .map(|chunk| store.read_object(ObjectKind::Chunk, &chunk.hash).expect("reads").expect("is there"));
    assert_eq!(parts.collect::<Vec<_>>().concat(), log());
    drop(store);
    let report =
        verify_store(Source::Closed(dir.path()), &VerifyOptions::EVERYTHING, &|_| true).expect("it runs");
    assert!(report.is_clean(), "{report:?}");
}

const STORE_1: &str = "33be7992-5b98-4f95-bc35-76e8a96415c5";
const HEAD_1: &str = "718a1ccfc87df8750a46e40eea73926dba6a5c54ba1682dd165b9cb33267f3bf";
const MANIFEST: &str = "
    a5000101868540841905e81903e80782211a1dcd65008200800218298543612e62841905e81903e80782211a1dcd6500
    820182065820c85b9128cb9004bd45cc9561eb77da348c13e058a96bfc66134454aa96ce03070218298547612f666972
    7374841905e81903e80782211a1dcd650082048143612e62021829854864616e676c696e67841905e81903e80782211a
    1dcd65008202814b2e2e2f6e6fff77686572650218298544676f6e65841905e81903e80782211a1dcd65008205800218
    29854470697065841905e81903e80782211a1dcd650082038002182902818246736f636b6574000381821903e8686175
    746f7465737404818207626c70
";
const RECIPE: &str = "
    8182825820d33fb48ab5adff269ae172b29a6913ff04f6f266207a7a8e976f2ecd571d449203825820dbec0e689fb63b
    d729147727129d854e9d590ab620a18bbbcb3317d268d6fd7205
";
const PLAIN_BLOCK: &str = "
    5246536201000000020000004a00000006000000060000001ca027adede0d1856a1d1b41f093eb4c122b871c7ae0f4f3
    009e90b0e01870340c8c36db27587445ea2ade3002a526f107a3ba7fc3e1b416f3050000000283d9dab06011479163c7
    c4d5fa735f911bac86729f56aaa115b7eed2eb66e0220100000000010203ff6d
";
const ZSTD_BLOCK: &str = "
    5246536201010000020000004a0000005902000021000000cf53cebd5d823f0a5636684a585c6ff68cedc2395fd2c99c
    00e609d3d915e700d08cdbbf26b5d8c530e4d69c6af8b74a736e0eca1ad6022e16580200000283d9dab06011479163c7
    c4d5fa735f911bac86729f56aaa115b7eed2eb66e0220100000028b52ffd605901bd000080474f4f4409736c65657074
    6573740a6d010046a49a75
";
const RECORD: &str = "
    a4001a0001117001582018c52a7ed981fbffa12fbf611b593c451f6a5700af2206c612b5c3dd2888909b021b0000018b
    cfe5680003820081aa005001010101010101010101010101010101016664726f6e653102824b31322d6d652f686f7374
    310003030458200d197521d9a48760576da1c87dfd828a60d397ea1e16f92a5b7c44b4f4060ce105f5061b0000000200
    0000000719012c0864726f6f740909
";
