//! A disk in memory, for files whose decoders read them piece by piece.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use resultsfs::durable::{Disk, DiskFile, DiskLock, LockMode, Space};

/// A file.
#[derive(Clone, Debug, Default)]
pub struct MemFile(Arc<Mutex<Vec<u8>>>);

impl MemFile {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(bytes.to_vec())))
    }

    pub fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

impl DiskFile for MemFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes();
        let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)?.get(..out.len()));
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut bytes, offset) = (self.bytes(), usize::try_from(offset).map_err(io::Error::other)?);
        let end = offset + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset..end].copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes().resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Files by their paths; there are no directories.
#[derive(Debug, Default)]
pub struct MemDisk(Mutex<BTreeMap<PathBuf, MemFile>>);

impl MemDisk {
    fn files(&self) -> MutexGuard<'_, BTreeMap<PathBuf, MemFile>> {
        self.0.lock().expect("nothing panics under this lock")
    }

    pub fn put(&self, path: PathBuf, bytes: &[u8]) {
        self.files().insert(path, MemFile::of(bytes));
    }

    pub fn get(&self, path: &Path) -> Vec<u8> {
        self.files().get(path).map(|file| file.bytes().clone()).unwrap_or_default()
    }

    fn found(&self, path: &Path) -> io::Result<MemFile> {
        self.files().get(path).cloned().ok_or(io::ErrorKind::NotFound.into())
    }

    fn add(&self, path: &Path, file: MemFile) -> io::Result<()> {
        match self.files().entry(path.to_owned()) {
            Entry::Occupied(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Entry::Vacant(place) => {
                place.insert(file);
                Ok(())
            }
        }
    }
}

impl Disk for MemDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(self.found(path)?))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.add(path, MemFile::default())?;
        self.open(path)
    }

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let files = self.files();
        let names =
            files.keys().filter(|path| path.parent() == Some(dir)).filter_map(|path| path.file_name());
        Ok(names.map(ToOwned::to_owned).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let file = self.files().remove(from).ok_or(io::ErrorKind::NotFound)?;
        self.files().insert(to.to_owned(), file);
        Ok(())
    }

    fn link(&self, path: &Path, name: &Path) -> io::Result<()> {
        let file = self.found(path)?;
        self.add(name, file)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files().remove(path).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(Space { free: 1 << 40, total: 1 << 40 })
    }

    fn lock(&self, _: &Path, _: LockMode) -> io::Result<Option<DiskLock>> {
        Ok(Some(Box::new(())))
    }
}
