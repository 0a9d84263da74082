//! Second copies of what nothing else in a store could bring back: its header, and its catalog.
//!
//! The catalog's copy is written after each batch's sync and isn't synced itself: it never has what the catalog might lose, and where a crash has torn it, or
//! there was no room for it, it is made equal when the store is opened. So it costs a write for each batch and no sync; what it is for is what a disk
//! does to bytes that have long been there, which [`repair`](super::repair) mends frame by frame, from whichever of the two is good.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    StoreError,
    layout::{Header, Layout},
};
use crate::durable::{self, Disk, DiskFile};

/// Compared and copied at a time.
const STEP: u64 = 1 << 20;

/// Makes the header's copy what the header is.
pub(super) fn keep_header(disk: &dyn Disk, layout: &Layout, header: &Header) {
    let bytes = header.encode();
    let path = layout.header_copy();
    let there = disk.open_read(&path).and_then(|file| durable::read_all(&*file));
    if there.is_ok_and(|there| there == bytes) {
        return;
    }
    if let Err(error) = durable::write_atomic_on(disk, &path, &bytes) {
        tracing::warn!(%error, "the header's copy can't be written");
    }
}

/// The catalog's copy.
#[derive(Debug)]
pub(super) struct CatalogCopy(Mutex<Option<Copy>>);

#[derive(Debug)]
struct Copy {
    file: Arc<dyn DiskFile>,
    /// Up to where it is equal.
    end: u64,
}

/// The copy's file; `None` if there is none.
pub(crate) fn open_catalog_copy(
    disk: &dyn Disk,
    layout: &Layout,
) -> Result<Option<Arc<dyn DiskFile>>, StoreError> {
    Ok(durable::there(disk.open(&layout.catalog_copy()))?)
}

impl CatalogCopy {
    /// Makes the copy equal to the first `end` bytes of `catalog`. Where that can't be done the store goes on without.
    pub fn open(disk: &dyn Disk, layout: &Layout, catalog: &dyn DiskFile, end: u64) -> Self {
        let equal = || -> Result<Copy, StoreError> {
            let file = match open_catalog_copy(disk, layout)? {
                Some(file) => file,
                None => {
                    let file = disk.create(&layout.catalog_copy())?;
                    disk.sync_dir(layout.dir())?;
                    file
                }
            };
            let mut copy = Copy { end: first_difference(&*file, catalog, end)?, file };
            if copy.end < end {
                copy.follow(catalog, end)?;
                copy.file.sync_data()?;
            }
            if copy.file.len()? > end {
                copy.file.set_len(end)?;
            }
            Ok(copy)
        };
        let copy = equal().inspect_err(|error| tracing::warn!(%error, "the catalog's copy can't be written"));
        Self(Mutex::new(copy.ok()))
    }

    /// Goes on with what the catalog has from `start` on, which is synced.
    pub fn append(&self, catalog: &dyn DiskFile, start: u64, bytes: &[u8]) {
        let mut copy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(there) = copy.as_mut() else { return };
        let end = start + bytes.len() as u64;
        let written = match there.end == start {
            true => there.file.write_at(start, bytes).map(|()| there.end = end).map_err(StoreError::from),
            false => there.follow(catalog, end),
        };
        match written {
            Ok(()) => {}
            // It goes on from where it is when there is room again.
            Err(StoreError::Io(error)) if error.kind() == io::ErrorKind::StorageFull => {}
            Err(error) => {
                tracing::warn!(%error, "the catalog's copy can't be written, until the store is opened again");
                *copy = None;
            }
        }
    }
}

impl Copy {
    fn follow(&mut self, catalog: &dyn DiskFile, end: u64) -> Result<(), StoreError> {
        while self.end < end {
            let bytes = catalog.read_vec(self.end, (end - self.end).min(STEP) as usize)?;
            self.file.write_at(self.end, &bytes)?;
            self.end += bytes.len() as u64;
        }
        Ok(())
    }
}

/// Where the copy isn't what the first `end` bytes of the catalog are, to within a step; `end` if it is.
pub(crate) fn first_difference(
    copy: &dyn DiskFile,
    catalog: &dyn DiskFile,
    end: u64,
) -> Result<u64, StoreError> {
    let common = end.min(copy.len()?);
    let mut at = 0;
    while at < common {
        let bytes = (common - at).min(STEP) as usize;
        if copy.read_vec(at, bytes)? != catalog.read_vec(at, bytes)? {
            return Ok(at);
        }
        at += bytes as u64;
    }
    Ok(at)
}
