//! What a check has read and found good, so that the next one needn't where this one is cut off.
//!
//! ```text
//! magic "RFSv", version (1) u32 LE, then entries of 32 bytes:   0  pack's number   4   u32 LE
//! an entry without flags says that a check has come to its      4  flags           4   u32 LE; 1 = read, 2 = unpacked, too
//! end                                                           8  digest of it   16
//!                                                              24  BLAKE3 of the 24 bytes before, first 8
//! ```
//! The digest is of what describes the pack's blocks, their checksums among it: a pack that has grown, or was replaced, is read again. Nothing of this is synced, since all that is
//! lost with it is time; nor is it an error if it can't be written.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use super::Check;
use crate::{
    durable::{self, Disk, DiskFile},
    ids::Hash,
    store::{layout::Layout, pack::PackedBlock},
    verify::VerifyOptions,
};

/// Begins the file; then the version.
const MAGIC: &[u8; 8] = b"RFSv\x01\0\0\0";
const ENTRY_BYTES: usize = 32;
const READ: u32 = 1;
const UNPACKED: u32 = 2;

type Digest = [u8; 16];

/// What is known of each pack, and the file where it is noted.
#[derive(Debug, Default)]
pub(super) struct Verified {
    packs: HashMap<u32, (u32, Digest)>,
    /// With the end of its entries; none where nothing is to be noted.
    file: Option<Mutex<(Arc<dyn DiskFile>, u64)>>,
}

impl Verified {
    /// For a check of everything, which goes on where the last one was cut off if that is asked. `repairs`: also with what one has read that came to its end.
    pub fn begin(disk: &Arc<dyn Disk>, layout: &Layout, options: &VerifyOptions, repairs: bool) -> Self {
        if options.sample.is_some() || !options.reads_any() {
            return Self::default();
        }
        match Self::open(&**disk, layout.verified(), options.resume, repairs) {
            Ok(verified) => verified,
            Err(error) => {
                tracing::info!(%error, "what is read can't be noted: a check that is cut off begins anew");
                Self::default()
            }
        }
    }

    fn open(disk: &dyn Disk, path: PathBuf, resume: bool, repairs: bool) -> io::Result<Self> {
        if resume && let Some(file) = durable::there(disk.open(&path))? {
            let (packs, ended, end) = parse(&durable::read_all(&*file)?);
            if !packs.is_empty() && (repairs || !ended) {
                return Ok(Self { packs, file: Some(Mutex::new((file, end))) });
            }
        }
        durable::there(disk.remove(&path))?;
        let file = disk.create(&path)?;
        file.write_at(0, MAGIC)?;
        Ok(Self { packs: HashMap::new(), file: Some(Mutex::new((file, MAGIC.len() as u64))) })
    }

    /// Whether these blocks were read and found good.
    pub fn has(&self, number: u32, blocks: &[PackedBlock], unpacked: bool) -> bool {
        let wanted = if unpacked { READ | UNPACKED } else { READ };
        self.packs
            .get(&number)
            .is_some_and(|(flags, known)| flags & wanted == wanted && *known == digest(blocks))
    }

    /// They were.
    pub fn note(&self, number: u32, blocks: &[PackedBlock], unpacked: bool) {
        self.append(entry(number, if unpacked { READ | UNPACKED } else { READ }, &digest(blocks)));
    }

    /// All of the store was.
    pub fn end(&self) {
        self.append(entry(0, 0, &[0; 16]));
    }

    fn append(&self, entry: [u8; ENTRY_BYTES]) {
        let Some(file) = &self.file else { return };
        let (file, end) = &mut *file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.write_at(*end, &entry).is_ok() {
            *end += ENTRY_BYTES as u64;
        }
    }
}

impl Check<'_> {
    /// Nothing is to go on with any more.
    pub(super) fn forget_verified(&self) {
        let _ = self.disk.remove(&self.layout.verified());
    }
}

fn digest(blocks: &[PackedBlock]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for block in blocks {
        hasher.update(&block.offset.to_le_bytes()).update(block.head());
    }
    hasher.finalize().as_bytes()[..16].try_into().expect("as long")
}

fn entry(number: u32, flags: u32, digest: &Digest) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    entry[..4].copy_from_slice(&number.to_le_bytes());
    entry[4..8].copy_from_slice(&flags.to_le_bytes());
    entry[8..24].copy_from_slice(digest);
    let check = Hash::of(&entry[..24]);
    entry[24..].copy_from_slice(&check.0[..8]);
    entry
}

/// The packs, whether the check came to its end, and where the next entry goes. What isn't an entry counts for nothing.
fn parse(bytes: &[u8]) -> (HashMap<u32, (u32, Digest)>, bool, u64) {
    let (mut packs, mut ended) = (HashMap::new(), false);
    let Some(entries) = bytes.strip_prefix(MAGIC) else { return (packs, true, 0) };
    let (entries, _torn) = entries.as_chunks::<ENTRY_BYTES>();
    for bytes in entries {
        let number = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
        let flags = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
        let digest: Digest = bytes[8..24].try_into().expect("sixteen bytes");
        if entry(number, flags, &digest) != *bytes {
            continue;
        }
        match flags {
            0 => ended = true,
            flags => _ = packs.insert(number, (flags, digest)),
        }
    }
    (packs, ended, (MAGIC.len() + entries.len() * ENTRY_BYTES) as u64)
}
