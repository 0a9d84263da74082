//! The pipeline against a naive copy: random trees, several at once and again after changes, come out of the store byte by byte.

use std::{collections::BTreeMap, os::unix::fs::FileExt, sync::Arc};

use proptest::prelude::*;

use super::{
    bounds::Bounds,
    counters::Counters,
    testing::{MemoryStore, Spool, layer, path},
    upload::{Layer, Uploader},
};
use crate::{
    chunk::ChunkParams,
    ids::{Generation, UnitId},
    manifest::Body,
};

/// Lengths on both sides of what the pipeline decides by.
const LENGTHS: &[usize] =
    &[0, 1, 255, 4096, 8191, (256 << 10) - 1, 256 << 10, 300_000, (1 << 20) + 1, 2_300_000];

/// A file: pieces that files have in common, each noise or zeros.
type Content = Vec<(u8, usize)>;

fn content() -> impl Strategy<Value = Content> {
    prop::collection::vec((0u8..5, prop::sample::select(LENGTHS)), 0..4)
}

/// What a unit holds, by names that sort in odd ways.
fn tree() -> impl Strategy<Value = BTreeMap<String, Content>> {
    prop::collection::btree_map("[ab]{1,2}(/[a.]{2}x)?", content(), 0..7)
}

fn bytes_of(content: &Content) -> Vec<u8> {
    let piece = |(seed, len): &(u8, usize)| {
        let mut bytes = vec![0; *len];
        if *seed > 0 {
            blake3::Hasher::new().update(&[*seed]).finalize_xof().fill(&mut bytes);
        }
        bytes
    };
    content.iter().flat_map(piece).collect()
}

/// Writes a unit's files, holes left out, and says what each path then holds. A path that is a directory of another is passed over.
fn write(spool: &Spool, unit: &UnitId, files: &BTreeMap<String, Content>) -> BTreeMap<String, Vec<u8>> {
    let top = spool.dir(&unit.root.to_string());
    let mut written = BTreeMap::new();
    for (name, content) in files {
        let place = top.join(name);
        let parent = place.parent().expect("it is below the top");
        if std::fs::create_dir_all(parent).is_err() || place.is_dir() {
            continue;
        }
        let bytes = bytes_of(content);
        let file = std::fs::File::create(&place).expect("creates");
        file.set_len(bytes.len() as u64).expect("sets its length");
        for (at, page) in bytes.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|b| *b != 0)) {
            file.write_all_at(page, at as u64 * 4096).expect("writes");
        }
        written.insert(name.clone(), bytes);
    }
    written
}

fn check(store: &MemoryStore, layer: &Layer, written: &BTreeMap<String, Vec<u8>>) {
    let manifest = store.manifest_of(&layer.hash);
    let files = manifest.entries().iter().filter_map(|entry| match entry.body {
        Body::File { size, content } => Some((entry.path.to_string(), size, content)),
        _ => None,
    });
    let mut seen = 0;
    for (name, size, content) in files {
        let expected = written.get(&name).unwrap_or_else(|| panic!("{name} was never written"));
        let there = store.file(&content).unwrap_or_default();
        assert!(there == *expected && size == expected.len() as u64, "{name} differs");
        seen += 1;
    }
    assert_eq!(seen, written.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_comes_out_is_what_a_copy_would_be(
        first in prop::collection::vec(tree(), 1..4),
        second in prop::collection::vec(tree(), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let (spool, store) = (Spool::new(), MemoryStore::new());
            let uploader = Uploader {
                link: store.clone(),
                tree: Arc::new(spool.tree.apart().expect("opens")),
                params: ChunkParams::default(),
                held: Arc::default(),
                bounds: Bounds::new(0, 1),
                counters: Arc::new(Counters::default()),
            };
            let unit = |number: usize| UnitId::tree(path(&format!("{number}-me/h")));
            let mut last: Vec<Layer> = Vec::new();
            let mut written: Vec<BTreeMap<String, Vec<u8>>> = Vec::new();
            for (round, trees) in [first, second].into_iter().enumerate() {
                let mut sending = Vec::new();
                for (number, files) in trees.iter().enumerate() {
                    let unit = unit(number);
                    let mut there = written.get(number).cloned().unwrap_or_default();
                    there.extend(write(&spool, &unit, files));
                    let generation = Generation(round as u32 + 1);
                    let layer = layer(&spool, &unit, generation, last.get(number));
                    let (sender, sent) = (uploader.clone(), layer.clone());
                    sending.push(tokio::spawn(async move { sender.send(&sent).await }));
                    match last.get_mut(number) {
                        Some(before) => (*before, written[number]) = (layer, there),
                        None => {
                            last.push(layer);
                            written.push(there);
                        }
                    }
                }
                for sent in sending {
                    sent.await.expect("doesn't panic").expect("is sent");
                }
                last.iter().zip(&written).for_each(|(layer, written)| check(&store, layer, written));
            }
        });
    }
}
