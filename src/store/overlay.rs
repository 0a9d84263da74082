//! Lets the database open a file without changing it, for an offline check: what it writes stays in memory.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use redb::StorageBackend;

use crate::durable::DiskFile;

const PAGE_BYTES: u64 = 4096;

#[derive(Debug)]
pub(super) struct Overlay {
    file: Arc<dyn DiskFile>,
    file_bytes: u64,
    changed: Mutex<Changed>,
}

#[derive(Debug)]
struct Changed {
    pages: HashMap<u64, Box<[u8]>>,
    len: u64,
}

impl Overlay {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self { file, file_bytes: len, changed: Mutex::new(Changed { pages: HashMap::new(), len }) })
    }

    fn changed(&self) -> MutexGuard<'_, Changed> {
        self.changed.lock().expect("nothing panics while it holds the pages")
    }

    /// A page of the file; zeros behind its end.
    fn original(&self, page: u64) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; PAGE_BYTES as usize].into_boxed_slice();
        let start = page * PAGE_BYTES;
        let there = self.file_bytes.saturating_sub(start).min(PAGE_BYTES) as usize;
        self.file.read_at(start, &mut bytes[..there])?;
        Ok(bytes)
    }
}

/// The pages that a range touches: number, where in the page, where in the range, how many bytes.
fn pages(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % PAGE_BYTES) as usize;
        let take = (PAGE_BYTES as usize - within).min(len - done);
        let page = (take > 0).then_some((at / PAGE_BYTES, within, done, take));
        done += take;
        page
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changed().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changed = self.changed();
        if offset + out.len() as u64 > changed.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (page, within, at, take) in pages(offset, out.len()) {
            let part = &mut out[at..at + take];
            match changed.pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + take]),
                None => part.copy_from_slice(&self.original(page)?[within..within + take]),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.changed().len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changed = self.changed();
        for (page, within, at, take) in pages(offset, data.len()) {
            let bytes = match changed.pages.entry(page) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(free) => free.insert(self.original(page)?),
            };
            bytes[within..within + take].copy_from_slice(&data[at..at + take]);
        }
        changed.len = changed.len.max(offset + data.len() as u64);
        Ok(())
    }
}
