//! Block files on local disk: one file a block, encoded as the store sent it.
//!
//! Everything here can be fetched again, so nothing is synced: a file that a crash or a bad disk has damaged
//! is found out by the block's own checksum when it is opened, and deleted. The index is in memory and
//! rebuilt at start from the files' headers and tables. I/O errors mean "not cached", with a warning, never
//! an error: the directory may vanish at any time.
//!
//! Files are read and written without the lock. A block that is put back while its eviction deletes the file
//! is then in the index without a file, and counts as not cached when it is looked for.

use std::{
    fs::DirBuilder,
    io::{self, Read, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use tracing::{debug, warn};

use super::{
    MAX_OBJECTS,
    object::{Object, OpenBlock, keys_of},
    shelf::{BlockName, ObjectKey, Shelf},
};
use crate::{
    chunk::{
        ObjectKind,
        block::{HEADER_BYTES, Header, parse_table, verify_stored},
    },
    ids::Hash,
};

const SUFFIX: &str = ".block";

/// The directory of block files.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    max_bytes: u64,
    shelf: Mutex<Shelf<()>>,
    temporaries: AtomicU64,
    /// The last write failed; so that a full disk is told once and not with every block.
    failing: AtomicBool,
}

impl Disk {
    /// Opens or makes `dir` and indexes what is in it; what isn't a whole block is deleted.
    pub fn open(dir: &Path, max_bytes: u64) -> io::Result<Self> {
        make_dir(dir)?;
        let disk = Self {
            dir: dir.to_owned(),
            max_bytes,
            shelf: Mutex::new(Shelf::new(max_bytes, MAX_OBJECTS)),
            temporaries: AtomicU64::new(0),
            failing: AtomicBool::new(false),
        };
        for (_, path) in files_by_age(dir)? {
            if !disk.index_file(&path) {
                delete(&path);
            }
        }
        Ok(disk)
    }

    fn index_file(&self, path: &Path) -> bool {
        let Some(name) = parse_name(path) else { return false };
        let Ok((keys, bytes)) = read_keys(path) else { return false };
        let evicted = self.shelf().put(name, (), keys, bytes);
        self.delete_all(evicted);
        true
    }

    /// Reads, checks and unpacks the block that holds an object. One that turns out damaged is deleted.
    pub fn load(&self, kind: ObjectKind, hash: &Hash) -> Option<(BlockName, Arc<OpenBlock>, Object)> {
        let (name, ()) = self.shelf().find(ObjectKey::of(kind, hash))?;
        let opened = match fs_err::read(self.path(name)) {
            Ok(encoded) => OpenBlock::open(&Arc::new(encoded)).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        match opened {
            Ok(block) => block.object(kind, hash).map(|object| (name, block, object)),
            Err(reason) => {
                warn!(%reason, "cached block {:016x} is dropped", name.0);
                self.forget(name);
                None
            }
        }
    }

    /// The block that should hold an object.
    pub fn name_of(&self, key: ObjectKey) -> Option<BlockName> {
        self.shelf().find(key).map(|(name, ())| name)
    }

    /// Keeps a block, if it can.
    pub fn keep(&self, name: BlockName, encoded: &[u8], block: &OpenBlock) {
        if encoded.len() as u64 > self.max_bytes {
            return;
        }
        match self.write(name, encoded) {
            Ok(()) => {
                self.failing.store(false, Ordering::Relaxed);
                let evicted = self.shelf().put(name, (), block.keys(), encoded.len() as u64);
                self.delete_all(evicted);
            }
            Err(error) if self.failing.swap(true, Ordering::Relaxed) => debug!(%error, "block isn't cached"),
            Err(error) => warn!(%error, "remote blocks can't be cached for now"),
        }
    }

    fn write(&self, name: BlockName, encoded: &[u8]) -> io::Result<()> {
        let temporary = self.dir.join(format!("new-{}", self.temporaries.fetch_add(1, Ordering::Relaxed)));
        let written = write_new(&temporary, encoded)
            .or_else(|e| match e.kind() {
                io::ErrorKind::NotFound => make_dir(&self.dir).and_then(|()| write_new(&temporary, encoded)),
                _ => Err(e),
            })
            .and_then(|()| fs_err::rename(&temporary, self.path(name)));
        if written.is_err() {
            delete(&temporary);
        }
        written
    }

    /// Drops a block.
    pub fn forget(&self, name: BlockName) {
        self.shelf().remove(name);
        delete(&self.path(name));
    }

    /// Drops all blocks.
    pub fn clear(&self) {
        let names = {
            let mut shelf = self.shelf();
            let names = shelf.names();
            shelf.clear();
            names
        };
        self.delete_all(names);
    }

    /// Bytes, blocks and objects here.
    pub fn fill(&self) -> (u64, usize, usize) {
        self.shelf().fill()
    }

    fn delete_all(&self, names: Vec<BlockName>) {
        names.into_iter().for_each(|name| delete(&self.path(name)));
    }

    fn path(&self, name: BlockName) -> PathBuf {
        self.dir.join(format!("{:016x}{SUFFIX}", name.0))
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf<()>> {
        self.shelf.lock().expect("no code panics under this lock")
    }
}

/// Only the daemon's user may look: the blocks hold files of every owner and mode.
fn make_dir(dir: &Path) -> io::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", dir.display())))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = fs_err::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    fs_err::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(bytes)
}

fn delete(path: &Path) {
    if let Err(error) = fs_err::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(%error, "a cached block can't be deleted");
    }
}

/// The oldest first, so that the youngest stay when the bound has become smaller.
fn files_by_age(dir: &Path) -> io::Result<Vec<(SystemTime, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_file() {
            files.push((meta.modified()?, entry.path()));
        }
    }
    files.sort();
    Ok(files)
}

/// The block files in `dir`, as many as a cache would take for some.
pub fn block_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let files = files_by_age(dir)?.into_iter().map(|(_, path)| path);
    Ok(files.filter(|path| parse_name(path).is_some()).collect())
}

/// Reads a block file: its bytes, or why it isn't what it is called.
pub fn check_file(path: &Path) -> io::Result<Result<u64, String>> {
    let encoded = fs_err::read(path)?;
    let is_named = parse_name(path).is_some_and(|name| name == BlockName::of(&encoded));
    let is_all = || Header::parse(&encoded).is_ok_and(|header| header.block_bytes() == encoded.len());
    Ok(match verify_stored(&encoded) {
        Ok(_) if !is_all() => Err("something is behind the block".to_owned()),
        Ok(_) if is_named => Ok(encoded.len() as u64),
        Ok(_) => Err("it is another block than its name says".to_owned()),
        Err(error) => Err(error.to_string()),
    })
}

fn parse_name(path: &Path) -> Option<BlockName> {
    let digits = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 16).map(BlockName)
}

/// Reads header and table of a block file whose length is what its header says.
fn read_keys(path: &Path) -> io::Result<(Box<[ObjectKey]>, u64)> {
    let damaged = |e| io::Error::new(io::ErrorKind::InvalidData, e);
    let mut file = fs_err::File::open(path)?;
    let mut head = vec![0; HEADER_BYTES];
    file.read_exact(&mut head)?;
    let header = Header::parse(&head).map_err(damaged)?;
    if file.metadata()?.len() != header.block_bytes() as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    head.resize(header.table_end(), 0);
    file.read_exact(&mut head[HEADER_BYTES..])?;
    let table = parse_table(&header, &head).map_err(damaged)?;
    Ok((keys_of(&table), header.block_bytes() as u64))
}
