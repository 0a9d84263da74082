//! Room on the disk: new content is refused before there is none, so that what must go on has some left.
//!
//! Below the reserve nothing that isn't here is taken in. What goes on: reading, following, commits of what is here already (a record, and the index),
//! and `gc`, which writes copies before it frees anything.
//!
//! A write that finds no room nevertheless is cut back, and then nothing has happened ([`cut_back`]). That is so for packs and catalog; the index's runs
//! are written later. Its database, which is small, and a sync that fails end all writing, since nobody knows then what is on the disk.

use std::{io, path::Path};

use super::{Store, StoreError};
use crate::durable::DiskFile;

const RESERVE_MIN_BYTES: u64 = 64 << 20;
const RESERVE_MAX_BYTES: u64 = 1 << 30;
/// Of the disk, this part.
const RESERVE_PART: u64 = 100;

impl Store {
    /// Whether there is room for something new.
    pub fn room(&self) -> Result<(), StoreError> {
        let dir = self.layout.dir();
        // Where nobody can say, writing shows it.
        let Ok(space) = self.disk.space(dir) else { return Ok(()) };
        let usual = (space.total / RESERVE_PART).clamp(RESERVE_MIN_BYTES, RESERVE_MAX_BYTES);
        let reserve = self.tuning.reserve_bytes.unwrap_or(usual);
        match space.free < reserve {
            true => Err(StoreError::Full { dir: dir.to_owned(), free: space.free, reserve }),
            false => Ok(()),
        }
    }

    /// What is said of something that lacks objects: where there is no room, they were not taken in.
    pub(super) fn lacking(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Missing { .. } | StoreError::Recipe { .. } => self.room().err().unwrap_or(error),
            _ => error,
        }
    }
}

/// Undoes a write at `end` that failed, if it did for want of room: the file ends there again.
pub(super) fn cut_back(error: io::Error, file: &dyn DiskFile, end: u64, dir: &Path) -> StoreError {
    if error.kind() != io::ErrorKind::StorageFull {
        return error.into();
    }
    match file.set_len(end) {
        Ok(()) => full(dir),
        Err(error) => error.into(),
    }
}

/// That there is no room at all.
pub(super) fn full(dir: &Path) -> StoreError {
    StoreError::Full { dir: dir.to_owned(), free: 0, reserve: 0 }
}
