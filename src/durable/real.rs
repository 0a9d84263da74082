//! The machine's own file system as a [`Disk`].

use std::{
    ffi::OsString,
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::Path,
    sync::Arc,
};

use fs_err::{
    self as fs,
    os::unix::fs::{FileExt, OpenOptionsExt},
};
use rustix::{
    buffer::spare_capacity,
    fs::{FlockOperation, Gid, Uid},
    io::Errno,
};

use super::{Disk, DiskFile, DiskLock, LockMode, Space};

/// The machine's own file system.
#[derive(Debug, Clone, Copy)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile(fs::File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    /// Without the pass over the memory that filling it with zeros would be.
    fn read_vec(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(bytes);
        while out.len() < bytes {
            let at = offset + out.len() as u64;
            match rustix::io::pread(&self.0, spare_capacity(&mut out), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("{}: {error}", self.0.path().display()),
                    ));
                }
            }
        }
        // There may have been more room than was asked for.
        out.truncate(bytes);
        Ok(out)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(fs::OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(fs::File::open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        if let Some((uid, gid)) = heir(path)? {
            rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(|e| at(path, e.into()))?;
        }
        Ok(Arc::new(RealFile(file)))
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if std::fs::symlink_metadata(dir).is_ok_and(|found| found.is_dir()) {
            return Ok(());
        }
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|e| at(dir, e))?;
        match heir(dir)? {
            Some((uid, gid)) => {
                Ok(rustix::fs::chown(dir, Some(uid), Some(gid)).map_err(|e| at(dir, e.into()))?)
            }
            None => Ok(()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let mut names = fs::read_dir(dir)?.map(|e| Ok(e?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, path: &Path, name: &Path) -> io::Result<()> {
        fs::hard_link(path, name)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(dir).map_err(|e| at(dir, e.into()))?;
        Ok(Space { free: found.f_bavail * found.f_frsize, total: found.f_blocks * found.f_frsize })
    }

    fn lock(&self, path: &Path, mode: LockMode) -> io::Result<Option<DiskLock>> {
        let operation = match mode {
            LockMode::Shared => FlockOperation::NonBlockingLockShared,
            LockMode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        let create = mode == LockMode::Exclusive;
        let options = fs::OpenOptions::new().read(true).write(create).create(create).mode(0o600).open(path);
        let file = match options {
            Ok(file) => file,
            Err(e) if !create && e.kind() == io::ErrorKind::NotFound => return Ok(Some(Box::new(()))),
            Err(e) => return Err(e),
        };
        match rustix::fs::flock(&file, operation) {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(at(path, e.into())),
        }
    }
}

/// Who shall have what root makes at `path`, if that isn't root: whoever has the directory. A command that root gives must not leave files that the daemon,
/// which runs as another, can't open.
fn heir(path: &Path) -> io::Result<Option<(Uid, Gid)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) else { return Ok(None) };
    let found = fs::metadata(dir)?;
    Ok((found.uid() != 0).then(|| (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()))))
}

/// With the path in it, as fs-err does it.
fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
