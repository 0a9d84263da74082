//! redb, as the store's index used it.

use std::path::Path;

use redb::{Database, ReadableDatabase, TableDefinition};

use crate::{
    Index,
    keys::{KEY_BYTES, Key, VALUE_BYTES, Value},
};

const OBJECTS: TableDefinition<&[u8; KEY_BYTES], &[u8; VALUE_BYTES]> = TableDefinition::new("objects");

pub struct Redb(Database);

impl Index for Redb {
    fn open(dir: &Path, cache_bytes: u64) -> Self {
        Self(
            Database::builder()
                .set_cache_size(cache_bytes as usize)
                .create(dir.join("index.redb"))
                .expect("opens"),
        )
    }

    fn insert(&self, rows: &[(Key, Value)]) {
        let mut txn = self.0.begin_write().expect("begins");
        txn.set_quick_repair(true);
        let mut objects = txn.open_table(OBJECTS).expect("opens");
        for (key, value) in rows {
            objects.insert(key, value).expect("inserted");
        }
        drop(objects);
        txn.commit().expect("committed");
    }

    fn count(&self, keys: &[Key]) -> usize {
        let objects = self.0.begin_read().expect("begins").open_table(OBJECTS).expect("opens");
        keys.iter().filter(|key| objects.get(*key).expect("read").is_some()).count()
    }
}
