//! The store's own index, as it is: sorted runs, listed in a small redb.

use std::{path::Path, sync::Arc};

use resultsfs::{
    chunk::{
        ObjectKind,
        block::{BlockBuilder, verify_stored},
    },
    durable::{Disk, RealDisk},
    ids::{Hash, StoreUuid},
    store::{index, layout::Layout, pack::PackedBlock},
};

use crate::{
    Index,
    keys::{Key, Value},
};

const STORE: StoreUuid = StoreUuid([1; 16]);
/// Objects of a block, about.
const OBJECTS: usize = 300;

pub struct Runs(index::Index);

impl Index for Runs {
    fn open(dir: &Path, _: u64) -> Self {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        Self(index::Index::open(&disk, &Layout::new(dir), STORE).expect("opens").0)
    }

    /// As objects of blocks that were appended to a pack.
    fn insert(&self, rows: &[(Key, Value)]) {
        for rows in rows.chunks(OBJECTS) {
            let mut block = BlockBuilder::default();
            rows.iter().for_each(|(key, _)| block.push(ObjectKind::Chunk, hash(key), b""));
            let encoded = block.finish(1).expect("compresses");
            let table = verify_stored(&encoded).expect("is good");
            let block = PackedBlock::of(40, &encoded, table).expect("is good");
            self.0.add_block(1, &block, &vec![None; rows.len()]);
        }
        self.0.begin_flush();
        self.0.finish_flush().expect("writes");
    }

    fn count(&self, keys: &[Key]) -> usize {
        let keys: Vec<index::Key> = keys.iter().map(|key| (ObjectKind::Chunk, hash(key))).collect();
        self.0.get_many(&keys).expect("reads").iter().filter(|place| place.is_some()).count()
    }
}

fn hash(key: &Key) -> Hash {
    Hash(key[1..].try_into().expect("32 of 33 bytes"))
}
