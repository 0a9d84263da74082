//! fjall with its own choices, except for the cache and for commits that are durable. Nothing is compressed: hashes can't be.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::{
    Index,
    keys::{Key, Value},
};

pub struct Fjall {
    db: Database,
    objects: Keyspace,
}

impl Index for Fjall {
    fn open(dir: &Path, cache_bytes: u64) -> Self {
        let db = Database::builder(dir.join("index.fjall")).cache_size(cache_bytes).open().expect("opens");
        let objects = db.keyspace("objects", KeyspaceCreateOptions::default).expect("opens");
        Self { db, objects }
    }

    fn insert(&self, rows: &[(Key, Value)]) {
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncData));
        for (key, value) in rows {
            batch.insert(&self.objects, *key, *value);
        }
        batch.commit().expect("committed");
    }

    fn count(&self, keys: &[Key]) -> usize {
        keys.iter().filter(|key| self.objects.get(key).expect("read").is_some()).count()
    }
}
