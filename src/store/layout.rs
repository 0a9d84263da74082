//! Where a store's files are, and its header file.
//!
//! ```text
//! <dir>/store          header, written last when a store is made and never again
//! <dir>/store.copy     the same again, see copies.rs
//! <dir>/lock           flock(2): exclusive while a daemon has the store, shared while an offline check reads it
//! <dir>/catalog        append-only, see catalog.rs
//! <dir>/catalog.copy   the same again, see copies.rs
//! <dir>/head           how long the catalog was, see catalog.rs
//! <dir>/packs/*.pack   see pack.rs
//! <dir>/index.redb     derived, see index/mod.rs
//! <dir>/index/*.run     likewise, see index/run.rs
//! <dir>/snapshots      what still runs, see snapshots.rs; made with the first
//! <dir>/reads          when what was read last, see reads.rs
//! <dir>/lost           what was lost of what is committed, see losses.rs; only where something is
//! <dir>/verified       what a check has read, see verify/store/verified.rs
//! <dir>/quarantine/*   what a repair has replaced, see repair/mod.rs
//! ```

use std::path::{Path, PathBuf};

use minicbor::{Decode, Encode};

use super::StoreError;
use crate::{
    chunk::ChunkParams,
    durable::{self, Disk},
    ids::{Hash, StoreUuid},
};

/// Version of the format that this program writes.
pub const VERSION: u32 = 1;
const MAGIC: &[u8; 4] = b"RFSs";
const FIXED_BYTES: usize = 28;
/// A header's body is far below this.
const BODY_BYTES: usize = 64 << 10;

/// A store's directory.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The store in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The header.
    pub fn header(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Its copy.
    pub fn header_copy(&self) -> PathBuf {
        self.dir.join("store.copy")
    }

    /// The lock file.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// What still runs.
    pub fn snapshots(&self) -> PathBuf {
        self.dir.join("snapshots")
    }

    /// When what was read last.
    pub fn reads(&self) -> PathBuf {
        self.dir.join("reads")
    }

    /// The catalog.
    pub fn catalog(&self) -> PathBuf {
        self.dir.join("catalog")
    }

    /// Its copy.
    pub fn catalog_copy(&self) -> PathBuf {
        self.dir.join("catalog.copy")
    }

    /// What was lost of what is committed.
    pub fn losses(&self) -> PathBuf {
        self.dir.join("lost")
    }

    /// What a check has read.
    pub fn verified(&self) -> PathBuf {
        self.dir.join("verified")
    }

    /// Where what was replaced by a repair is kept.
    pub fn quarantine(&self) -> PathBuf {
        self.dir.join("quarantine")
    }

    /// The catalog's witness.
    pub fn head(&self) -> PathBuf {
        self.dir.join("head")
    }

    /// The derived index.
    pub fn index(&self) -> PathBuf {
        self.dir.join("index.redb")
    }

    /// The directory of its runs.
    pub fn index_runs(&self) -> PathBuf {
        self.dir.join("index")
    }

    /// The directory of the packs.
    pub fn packs(&self) -> PathBuf {
        self.dir.join("packs")
    }

    /// A pack.
    pub fn pack(&self, number: u32) -> PathBuf {
        self.packs().join(format!("{number:08x}.pack"))
    }

    /// Numbers of the packs that are there, ascending. Other names in the directory are none of the store's.
    pub fn pack_numbers(&self, disk: &dyn Disk) -> Result<Vec<u32>, StoreError> {
        let names = disk.list(&self.packs())?;
        let numbers = names.iter().filter_map(|name| {
            let number = name.to_str()?.strip_suffix(".pack").filter(|digits| digits.len() == 8)?;
            u32::from_str_radix(number, 16).ok()
        });
        Ok(numbers.collect())
    }
}

/// What a store's header says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Header {
    #[n(0)]
    pub uuid: StoreUuid,
    #[n(1)]
    pub params: ChunkParams,
    /// Features that a program needn't know.
    #[n(2)]
    pub compatible: Vec<String>,
    /// Features without which a program may read and must not write.
    #[n(3)]
    pub read_only_compatible: Vec<String>,
    /// Features without which a program must not open the store.
    #[n(4)]
    pub incompatible: Vec<String>,
}

impl Header {
    /// Of a new store.
    pub fn fresh() -> Self {
        Self {
            uuid: StoreUuid::random(),
            params: ChunkParams::default(),
            compatible: Vec::new(),
            read_only_compatible: Vec::new(),
            incompatible: Vec::new(),
        }
    }

    /// Magic, version, length, 16 bytes of BLAKE3 over those and the body, body.
    pub fn encode(&self) -> Vec<u8> {
        let body = minicbor::to_vec(self).expect("encoding into a Vec can't fail");
        let mut bytes = Vec::with_capacity(FIXED_BYTES + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        let check = check16(&[&bytes, &body]);
        bytes.extend_from_slice(&check);
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads what [`Header::encode`] wrote; the error says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < FIXED_BYTES || bytes.len() > BODY_BYTES || &bytes[..4] != MAGIC {
            return Err("not a store's header".to_owned());
        }
        let version = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
        if version != VERSION {
            return Err(format!("format version {version}; this program knows {VERSION}"));
        }
        let (head, body) = (&bytes[..12], &bytes[FIXED_BYTES..]);
        let len = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes")) as usize;
        if body.len() != len || check16(&[head, body]) != bytes[12..FIXED_BYTES] {
            return Err("checksum differs".to_owned());
        }
        minicbor::decode(body).map_err(|e| e.to_string())
    }

    /// Reads a store's header; `None` if there is none.
    pub fn read(disk: &dyn Disk, layout: &Layout) -> Result<Option<Self>, StoreError> {
        Self::read_at(disk, layout.header())
    }

    /// Reads the one at `path`, which may be the copy.
    pub fn read_at(disk: &dyn Disk, path: PathBuf) -> Result<Option<Self>, StoreError> {
        let Some(file) = durable::there(disk.open_read(&path))? else { return Ok(None) };
        let damaged = |what| StoreError::Damaged { path: path.clone(), what };
        if file.len()? > BODY_BYTES as u64 {
            return Err(damaged("not a store's header".to_owned()));
        }
        Self::parse(&durable::read_all(&*file)?).map(Some).map_err(damaged)
    }

    /// Refuses features that this program doesn't know. It knows none yet.
    pub fn check_features(&self, dir: &Path, writing: bool) -> Result<(), StoreError> {
        let read_only = if writing { &self.read_only_compatible[..] } else { &[] };
        let unknown: Vec<_> = self.incompatible.iter().chain(read_only).map(String::as_str).collect();
        match unknown.is_empty() {
            true => Ok(()),
            false => Err(StoreError::Features { dir: dir.to_owned(), features: unknown.join(", ") }),
        }
    }
}

/// The first 16 bytes of the BLAKE3 hash of `parts`, one after another.
pub(super) fn check16(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    let hash = Hash::from(hasher.finalize());
    hash.0[..16].try_into().expect("sixteen bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_back_and_every_flip_is_found() {
        let header = Header::fresh();
        let bytes = header.encode();
        assert_eq!(Header::parse(&bytes), Ok(header));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert!(Header::parse(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn unknown_features_are_refused_as_far_as_they_say() {
        let read_only = Header { read_only_compatible: vec!["tiers".into()], ..Header::fresh() };
        assert!(read_only.check_features(Path::new("/s"), false).is_ok());
        assert!(read_only.check_features(Path::new("/s"), true).is_err());
        let incompatible = Header { incompatible: vec!["encrypted".into()], ..Header::fresh() };
        assert!(incompatible.check_features(Path::new("/s"), false).is_err());
    }
}
