//! The database file: opening it, its keys, and one way to write.
//!
//! The only place besides `store` that names the database. Keys and values are bytes; `docs/format.md` describes them.

use std::{
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase, TableDefinition, TableHandle, WriteTransaction,
};

use super::error::JournalError;
use crate::ids::{RelPath, Scope, UnitId};

/// Version of the files that this program writes.
pub(super) const VERSION: u32 = 1;

/// Small values by name.
pub(super) const META: Bytes = TableDefinition::new("meta");
/// Manifests by hash, compressed.
pub(super) const MANIFESTS: Bytes = TableDefinition::new("manifests");
/// Units' values by [`unit_key`].
pub(super) const UNITS: Bytes = TableDefinition::new("units");

/// A table of bytes by bytes.
pub(super) type Bytes = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// An open database file.
#[derive(Debug)]
pub(super) struct Db {
    db: Database,
    path: PathBuf,
    /// What the first write said that failed: the database takes no other until it is opened again.
    failure: OnceLock<String>,
}

impl Db {
    /// Opens or creates `path` with these tables, and checks its version.
    pub fn open(path: &Path, cache_bytes: usize, tables: &[Bytes]) -> Result<Self, JournalError> {
        let (db, path) = (open_redb(path, cache_bytes)?, path.to_owned());
        let db = Self { db, path, failure: OnceLock::new() };
        match db.get(META, b"version") {
            Ok(Some(version)) => db.check_version(&version)?,
            Ok(None) => return Err(db.damaged("it has no version")),
            Err(e) if is_new(&e) => db.write(Durability::Immediate, |txn| {
                tables.iter().try_for_each(|table| txn.open_table(*table).map(drop))?;
                txn.open_table(META)?.insert(&b"version"[..], &encode(&VERSION)[..])?;
                Ok(())
            })?,
            Err(e) => return Err(e),
        }
        Ok(db)
    }

    fn check_version(&self, value: &[u8]) -> Result<(), JournalError> {
        match minicbor::decode(value) {
            Ok(VERSION) => Ok(()),
            Ok(version) => Err(JournalError::Version { path: self.path.clone(), version }),
            Err(e) => Err(self.damaged(e)),
        }
    }

    /// One transaction: all that `f` does, or nothing.
    pub fn write<T>(
        &self,
        durability: Durability,
        f: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, JournalError> {
        let write = || {
            let mut txn = self.db.begin_write()?;
            txn.set_durability(durability)?;
            let value = f(&txn)?;
            txn.commit()?;
            Ok(value)
        };
        write().map_err(|e| {
            let is_failure = matches!(&e, redb::Error::Io(_) | redb::Error::PreviousIo);
            let e = self.error(e);
            if is_failure {
                self.failure.get_or_init(|| e.to_string());
            }
            e
        })
    }

    /// The first write that failed.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// One consistent look.
    pub fn read<T>(
        &self,
        f: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, JournalError> {
        let read = || f(&self.db.begin_read()?);
        read().map_err(|e| self.error(e))
    }

    /// The value under `key`.
    pub fn get(&self, table: Bytes, key: &[u8]) -> Result<Option<Vec<u8>>, JournalError> {
        self.read(|txn| Ok(txn.open_table(table)?.get(key)?.map(|value| value.value().to_vec())))
    }

    /// Gives every row of `table` to `take`, which fails with what is wrong with a row.
    pub fn scan(
        &self,
        table: Bytes,
        mut take: impl FnMut(&[u8], &[u8]) -> Result<(), String>,
    ) -> Result<(), JournalError> {
        let wrong = self.read(|txn| {
            for row in txn.open_table(table)?.range::<&[u8]>(..)? {
                let (key, value) = row?;
                if let Err(why) = take(key.value(), value.value()) {
                    return Ok(Some(why));
                }
            }
            Ok(None)
        })?;
        wrong.map_or(Ok(()), |why| Err(self.damaged(why)))
    }

    /// This file is damaged.
    pub fn damaged(&self, why: impl ToString) -> JournalError {
        JournalError::Damaged { path: self.path.clone(), why: why.to_string() }
    }

    fn error(&self, source: redb::Error) -> JournalError {
        match source {
            redb::Error::Corrupted(why) => self.damaged(why),
            source => JournalError::Database { path: self.path.clone(), source: Box::new(source) },
        }
    }
}

/// The database asserts some of what it reads, so a damaged file may make it panic: that is caught here, before any of its
/// state is shared.
fn open_redb(path: &Path, cache_bytes: usize) -> Result<Database, JournalError> {
    let damaged = |why: String| JournalError::Damaged { path: path.to_owned(), why };
    // Nobody else reads it, whatever the umask and whoever may enter the directory.
    let options = || {
        std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    };
    let open = || {
        let file = options().map_err(|e| redb::DatabaseError::Storage(redb::StorageError::Io(e)))?;
        Database::builder().set_cache_size(cache_bytes).create_file(file)
    };
    match std::panic::catch_unwind(open) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(redb::DatabaseError::Storage(redb::StorageError::Io(e)))) => match e.kind() {
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
                Err(damaged(e.to_string()))
            }
            _ => Err(JournalError::Database { path: path.to_owned(), source: Box::new(redb::Error::Io(e)) }),
        },
        Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => {
            Err(JournalError::Locked { dir: path.parent().unwrap_or(path).to_owned() })
        }
        Ok(Err(e)) => Err(damaged(e.to_string())),
        Err(_) => Err(damaged("its pages contradict one another".into())),
    }
}

/// Every page that is in use matches its checksum. The file may be changed by it.
pub(super) fn check_integrity(path: &Path, cache_bytes: usize) -> Result<(), JournalError> {
    let damaged = |why: String| JournalError::Damaged { path: path.to_owned(), why };
    let mut db = open_redb(path, cache_bytes)?;
    // It asserts some of what it finds, and tidies up when it is dropped.
    let check = std::panic::AssertUnwindSafe(move || -> Result<bool, redb::Error> {
        let before = digest(&db)?;
        // No, too, where it has only counted its free pages anew. Where it has gone back to an earlier state, something else is in it now.
        Ok(db.check_integrity()? || digest(&db)? == before)
    });
    match std::panic::catch_unwind(check) {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(damaged("a page doesn't match its checksum".into())),
        Ok(Err(e)) => Err(damaged(e.to_string())),
        Err(_) => Err(damaged("its pages contradict one another".into())),
    }
}

/// The hash over all that is in it.
fn digest(db: &Database) -> Result<blake3::Hash, redb::Error> {
    let (txn, mut hasher) = (db.begin_read()?, blake3::Hasher::new());
    for table in txn.list_tables()? {
        let table = TableDefinition::<&[u8], &[u8]>::new(table.name());
        for row in txn.open_table(table)?.range::<&[u8]>(..)? {
            let (key, value) = row?;
            for bytes in [key.value(), value.value()] {
                hasher.update(&(bytes.len() as u64).to_le_bytes());
                hasher.update(bytes);
            }
        }
    }
    Ok(hasher.finalize())
}

/// Whether a database has no tables yet: it was created just now, or before a crash that came before its first transaction.
fn is_new(e: &JournalError) -> bool {
    matches!(e, JournalError::Database { source, .. } if matches!(**source, redb::Error::TableDoesNotExist(_)))
}

/// CBOR of `value`.
pub(super) fn encode<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("encoding into a Vec can't fail")
}

/// The key of what lies at or below `dir`: each component with a NUL after it, so that a directory's units come before
/// its children's and these stand together.
pub(super) fn dir_key(dir: &RelPath) -> Vec<u8> {
    let mut key = Vec::with_capacity(dir.as_bytes().len() + 2);
    for component in dir.components() {
        key.extend_from_slice(component);
        key.push(0);
    }
    key
}

/// A unit's key: its root's, and one byte of scope.
pub(super) fn unit_key(unit: &UnitId) -> Vec<u8> {
    let mut key = dir_key(&unit.root);
    key.push(scope_byte(unit.scope));
    key
}

/// The byte that a unit's key ends with.
pub(super) fn scope_byte(scope: Scope) -> u8 {
    match scope {
        Scope::Tree => 0,
        Scope::Loose => 1,
    }
}

/// The unit whose key this is.
pub(super) fn unit_of_key(key: &[u8]) -> Option<UnitId> {
    let (scope, dir) = key.split_last()?;
    let scope = match scope {
        0 => Scope::Tree,
        1 => Scope::Loose,
        _ => return None,
    };
    // Two keys must never be one unit's, so what isn't the key that it would have is none.
    let names: Vec<&[u8]> = dir.split(|b| *b == 0).filter(|name| !name.is_empty()).collect();
    let unit = UnitId { root: RelPath::parse(names.join(&b'/')).ok()?, scope };
    (unit_key(&unit) == key).then_some(unit)
}

/// A gone path's key: the unit's key with its length (two bytes, big-endian) before it, then the path below the unit's root.
pub(super) fn gone_key(unit: &UnitId, path: &RelPath) -> Vec<u8> {
    let mut key = gone_prefix(unit);
    key.extend_from_slice(path.as_bytes());
    key
}

/// What the keys of all gone paths of `unit` begin with, and no others.
pub(super) fn gone_prefix(unit: &UnitId) -> Vec<u8> {
    let unit = unit_key(unit);
    let length = u16::try_from(unit.len()).expect("a path is at most 4096 bytes, its key two more");
    [&length.to_be_bytes()[..], &unit[..]].concat()
}

/// The unit and the path of a gone path's key.
pub(super) fn gone_of_key(key: &[u8]) -> Option<(UnitId, RelPath)> {
    let (length, rest) = key.split_first_chunk::<2>()?;
    let (unit, path) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    Some((unit_of_key(unit)?, RelPath::parse(path).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(bytes: &[u8]) -> RelPath {
        RelPath::parse(bytes).expect("a path")
    }

    #[test]
    fn keys_come_apart_as_they_were_put_together() {
        for root in [&b""[..], b"12-me", b"12-me/h", b"hosts/h/1-x", b"\x01/\x01\x01", b"12-me/\x01"] {
            for unit in [UnitId::tree(path(root)), UnitId::loose(path(root))] {
                assert_eq!(unit_of_key(&unit_key(&unit)), Some(unit.clone()));
                for gone in [&b""[..], b"a", b"a/b", b"\x01"] {
                    let key = gone_key(&unit, &path(gone));
                    assert_eq!(gone_of_key(&key), Some((unit.clone(), path(gone))));
                }
            }
        }
        for bad in [&b""[..], b"\x02", b"a\0\x02", b"a\0", b"a", b"\0\0", b"a\0\0\0", b"..\0\0"] {
            assert_eq!(unit_of_key(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn what_lies_below_a_directory_stands_together() {
        let mut keys: Vec<_> = ["12-me", "12-me/h", "12-me-x", "12-me.x/h", "12-me/h.x"]
            .map(|root| unit_key(&UnitId::tree(path(root.as_bytes()))))
            .to_vec();
        keys.sort();
        let below = dir_key(&path(b"12-me"));
        let order: Vec<bool> = keys.iter().map(|key| key.starts_with(&below)).collect();
        assert_eq!(order, [true, true, true, false, false]);
    }
}
