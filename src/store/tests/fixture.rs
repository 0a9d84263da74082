//! Layers to commit, and a store to commit them to.

use std::{path::Path, sync::Arc};

use crate::{
    catalog::{Record, Snapshot},
    chunk::{ChunkRef, ObjectKind, Recipe, block::BlockBuilder},
    clock::ManualClock,
    durable::{Disk, sim::SimDisk},
    ids::{Generation, Hash, HostUuid, Incarnation, RelPath, Seq, UnitId},
    manifest::{Attrs, Body, Entry, Manifest, Timestamp},
    store::{NewCommit, NewRetirement, Store, StoreError, StoreOptions, Tuning},
    verify::{VerifyOptions, store::verify_closed},
};

/// Where the tests' stores are on a simulated disk.
pub const DIR: &str = "/store";
/// Packs of a few blocks, an index that is written often.
pub const SMALL: Tuning =
    Tuning { pack_bytes: 40_000, flush_objects: 12, lease_ms: 0, reserve_bytes: Some(0) };
/// The host that commits.
pub const HOST: HostUuid = HostUuid(*b"the first host..");

/// Options with a clock that stands.
pub fn options() -> StoreOptions {
    StoreOptions { clock: Arc::new(ManualClock::at(1_700_000_000_000)) }
}

/// Opens the store on a disk.
pub fn open(disk: &Arc<dyn Disk>, tuning: Tuning) -> Result<Arc<Store>, StoreError> {
    Store::open_on(disk.clone(), Path::new(DIR), options(), tuning)
}

/// Bytes that don't compress and differ by name.
pub fn noise(name: &str, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut out);
    out
}

/// SplitMix64: a seed gives the same numbers again.
pub struct Random(pub u64);

impl Random {
    /// A number below `bound`, which isn't 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    /// One in so many times.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// A layer: its files and its generation.
#[derive(Clone, Debug)]
pub struct Layer {
    pub unit: UnitId,
    pub incarnation: Incarnation,
    pub generation: Generation,
    pub files: Vec<(String, Vec<u8>)>,
}

impl Layer {
    /// A small unit named by a number: one file of its own, one that all have, an empty one.
    pub fn small(number: usize) -> Self {
        let own = noise(&format!("own {number}"), 3000);
        let files = vec![
            ("debug/own".to_owned(), own),
            ("keyval".to_owned(), b"user=debug\n".to_vec()),
            ("empty".to_owned(), Vec::new()),
        ];
        Self { unit: unit(number), incarnation: Incarnation::FIRST, generation: Generation::FIRST, files }
    }

    /// With a file that is cut into chunks.
    pub fn large(number: usize) -> Self {
        let mut layer = Self::small(number);
        layer.files.push(("core".to_owned(), noise(&format!("core {number}"), 300_000)));
        layer
    }

    /// Its manifest.
    pub fn manifest(&self) -> Manifest {
        let attrs = Attrs { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp::default() };
        let entries = self.files.iter().map(|(path, bytes)| Entry {
            path: path.parse().expect("a good path"),
            attrs,
            body: Body::File { size: bytes.len() as u64, content: Hash::of(bytes) },
            since: self.generation,
            base: Seq(0),
        });
        Manifest::new(entries.collect(), vec![], vec![], vec![]).expect("a good manifest")
    }

    /// Its objects: chunks, recipes and the manifest.
    pub fn objects(&self) -> Vec<(ObjectKind, Hash, Vec<u8>)> {
        let mut out = Vec::new();
        for (_, bytes) in &self.files {
            out.extend(content_objects(bytes));
        }
        let manifest = self.manifest().encode();
        out.push((ObjectKind::Manifest, Hash::of(&manifest), manifest));
        out
    }

    /// The wish to commit it.
    pub fn commit(&self) -> NewCommit {
        NewCommit {
            host: HOST,
            host_name: "drone1".to_owned(),
            unit: self.unit.clone(),
            generation: self.generation,
            manifest: Hash::of(&self.manifest().encode()),
            lost: false,
            adopted_by: None,
            incarnation: self.incarnation,
        }
    }

    /// Sends and commits it.
    pub fn send(&self, store: &Store) -> Result<Record, StoreError> {
        for block in blocks(store, &self.objects())? {
            store.append_block(&block)?;
        }
        store.commit(self.commit())
    }

    /// Sends it and puts it in its slot.
    pub fn publish(&self, store: &Store) -> Result<Snapshot, StoreError> {
        for block in blocks(store, &self.objects())? {
            store.append_block(&block)?;
        }
        store.publish(self.commit())
    }

    /// Reads every file of it back and compares.
    pub fn check(&self, store: &Store) {
        let manifest = Hash::of(&self.manifest().encode());
        assert!(store.manifest_known(&manifest).expect("asks"), "{}", self.unit);
        for (path, bytes) in &self.files {
            assert_eq!(&content(store, bytes), bytes, "{}/{path}", self.unit);
        }
    }
}

/// Retires a unit that was seen with this last commit.
pub fn retire(store: &Store, unit: &UnitId, seq: Seq) -> Result<Record, StoreError> {
    let units = vec![(unit.clone(), seq)];
    store.retire(NewRetirement { host: HOST, host_name: "admin".to_owned(), units })
}

/// The unit with this number.
pub fn unit(number: usize) -> UnitId {
    UnitId::tree(RelPath::parse(format!("{number}-me/host1")).expect("a good path"))
}

/// Objects of a file, cut at fixed places: the store doesn't care where.
pub fn content_objects(bytes: &[u8]) -> Vec<(ObjectKind, Hash, Vec<u8>)> {
    if bytes.is_empty() {
        return vec![];
    }
    if bytes.len() < crate::limits::SPLIT_BYTES as usize {
        return vec![(ObjectKind::Chunk, Hash::of(bytes), bytes.to_vec())];
    }
    let chunks = bytes.chunks(20_000);
    let mut out: Vec<_> = chunks.map(|c| (ObjectKind::Chunk, Hash::of(c), c.to_vec())).collect();
    let refs = out.iter().map(|(_, hash, bytes)| ChunkRef { hash: *hash, bytes: bytes.len() as u32 });
    let recipe = Recipe { chunks: refs.collect() };
    out.push((ObjectKind::Recipe, Hash::of(bytes), recipe.encode()));
    out
}

/// Blocks of those objects that the store lacks.
pub fn blocks(store: &Store, objects: &[(ObjectKind, Hash, Vec<u8>)]) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut out = Vec::new();
    let mut builder = BlockBuilder::default();
    for (kind, hash, bytes) in objects {
        if store.missing(*kind, &[*hash])?[0] {
            builder.push(*kind, *hash, bytes);
            if builder.raw_bytes() > 30_000 {
                out.push(builder.finish(1).expect("compresses"));
            }
        }
    }
    if !builder.is_empty() {
        out.push(builder.finish(1).expect("compresses"));
    }
    Ok(out)
}

/// One block of these objects, whatever the store has.
pub fn block(objects: &[(ObjectKind, Hash, Vec<u8>)]) -> Vec<u8> {
    let mut builder = BlockBuilder::default();
    objects.iter().for_each(|(kind, hash, bytes)| builder.push(*kind, *hash, bytes));
    builder.finish(1).expect("compresses")
}

fn content(store: &Store, bytes: &[u8]) -> Vec<u8> {
    let read = |kind, hash: &Hash| store.read_object(kind, hash).expect("reads").expect("is there");
    if bytes.is_empty() {
        return vec![];
    }
    match store.params().content_kind(bytes.len() as u64) {
        ObjectKind::Chunk => read(ObjectKind::Chunk, &Hash::of(bytes)),
        _ => {
            let recipe = Recipe::decode(&read(ObjectKind::Recipe, &Hash::of(bytes))).expect("decodes");
            recipe.chunks.iter().flat_map(|c| read(ObjectKind::Chunk, &c.hash)).collect()
        }
    }
}

/// The closed store there is without a finding, every byte of it read.
pub fn verify_clean(disk: &SimDisk, what: &str) {
    let report = verify_closed(Arc::new(disk.clone()), Path::new(DIR), &VerifyOptions::EVERYTHING, &|_| true)
        .expect("runs");
    assert!(report.is_clean(), "{what}: {:?}", report.findings);
}
