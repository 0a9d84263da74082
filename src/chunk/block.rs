//! A block: several objects compressed together, the unit of compression, of transfer and of a pack.
//!
//! ```text
//! header, 48 bytes, little endian
//!   0  magic "RFSb"                     4
//!   4  version (1)                      1
//!   5  codec: 0 plain, 1 zstd           1
//!   6  zero                             2
//!   8  objects                          4   u32
//!  12  table bytes                      4   u32 = objects × 37
//!  16  raw payload bytes                4   u32
//!  20  stored payload bytes             4   u32
//!  24  BLAKE3 of table and stored payload, first 16 bytes
//!  40  BLAKE3 of the header's first 40 bytes, first 8 bytes
//! table: for each object: kind u8, hash 32 bytes, raw length u32
//! payload: the objects' bytes one after another, plain or one zstd frame
//! ```
//! The header alone says how long the block is, so a pack can be walked without an index, and a torn tail is recognised.
//! The same bytes go over the wire and into the pack. [`Block::open`] checks every object's hash (a recipe's and a manifest's
//! content is checked by who knows how).

use std::{
    cell::RefCell,
    io::{self, Read},
    ops::Range,
    sync::Arc,
};

use super::ObjectKind;
use crate::{buffers, ids::Hash, limits};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 48;
const MAGIC: &[u8; 4] = b"RFSb";
const VERSION: u8 = 1;
const TABLE_ENTRY_BYTES: usize = 37;
const CODEC_PLAIN: u8 = 0;
const CODEC_ZSTD: u8 = 1;

/// Why bytes aren't a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Shorter than the header says.
    #[error("block is cut short")]
    Short,
    /// The header is damaged or isn't one.
    #[error("block header is damaged: {0}")]
    Header(&'static str),
    /// The checksum over table and payload differs.
    #[error("block body doesn't match its checksum")]
    Checksum,
    /// The payload can't be unpacked to what the table says.
    #[error("block payload doesn't unpack: {0}")]
    Payload(String),
    /// An object isn't what its name says.
    #[error("object {hash} of kind {kind:?} doesn't match its hash")]
    Object { kind: ObjectKind, hash: Hash },
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    codec: u8,
    objects: u32,
    table_bytes: u32,
    raw_bytes: u32,
    stored_bytes: u32,
    body_check: [u8; 16],
}

/// A line of a block's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry {
    pub kind: ObjectKind,
    pub hash: Hash,
    /// Where its bytes begin in the raw payload.
    pub offset: u32,
    /// How many they are.
    pub bytes: u32,
}

impl Header {
    /// Reads a header from the first [`HEADER_BYTES`] of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, BlockError> {
        let head: &[u8; HEADER_BYTES] =
            bytes.get(..HEADER_BYTES).and_then(|b| b.try_into().ok()).ok_or(BlockError::Short)?;
        if &head[..4] != MAGIC {
            return Err(BlockError::Header("no magic number"));
        }
        if blake3::hash(&head[..40]).as_bytes()[..8] != head[40..] {
            return Err(BlockError::Header("checksum differs"));
        }
        let u32_at = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let header = Self {
            codec: head[5],
            objects: u32_at(8),
            table_bytes: u32_at(12),
            raw_bytes: u32_at(16),
            stored_bytes: u32_at(20),
            body_check: head[24..40].try_into().expect("sixteen bytes"),
        };
        header.check(head[4])?;
        Ok(header)
    }

    fn check(&self, version: u8) -> Result<(), BlockError> {
        if version != VERSION {
            return Err(BlockError::Header("unknown version"));
        }
        if self.codec > CODEC_ZSTD {
            return Err(BlockError::Header("unknown codec"));
        }
        let objects = self.objects as usize;
        if objects > limits::BLOCK_OBJECTS || self.table_bytes as usize != objects * TABLE_ENTRY_BYTES {
            return Err(BlockError::Header("table length"));
        }
        if self.raw_bytes as usize > limits::BLOCK_RAW_MAX_BYTES || self.stored_bytes > self.raw_bytes {
            return Err(BlockError::Header("payload length"));
        }
        Ok(())
    }

    /// The whole block's length, header included.
    pub fn block_bytes(&self) -> usize {
        HEADER_BYTES + self.table_bytes as usize + self.stored_bytes as usize
    }

    /// How much of the block's beginning holds header and table.
    pub fn table_end(&self) -> usize {
        HEADER_BYTES + self.table_bytes as usize
    }

    /// Bytes before compression.
    pub fn raw_bytes(&self) -> u32 {
        self.raw_bytes
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut head = [0; HEADER_BYTES];
        head[..4].copy_from_slice(MAGIC);
        head[4] = VERSION;
        head[5] = self.codec;
        head[8..12].copy_from_slice(&self.objects.to_le_bytes());
        head[12..16].copy_from_slice(&self.table_bytes.to_le_bytes());
        head[16..20].copy_from_slice(&self.raw_bytes.to_le_bytes());
        head[20..24].copy_from_slice(&self.stored_bytes.to_le_bytes());
        head[24..40].copy_from_slice(&self.body_check);
        let check = blake3::hash(&head[..40]);
        head[40..].copy_from_slice(&check.as_bytes()[..8]);
        head
    }
}

/// Reads the table of a block whose first [`Header::table_end`] bytes are `bytes`. The table alone is not checksummed:
/// only [`verify_stored`] or [`Block::open`] prove it.
pub fn parse_table(header: &Header, bytes: &[u8]) -> Result<Vec<TableEntry>, BlockError> {
    let table = bytes.get(HEADER_BYTES..header.table_end()).ok_or(BlockError::Short)?;
    let mut entries = Vec::with_capacity(header.objects as usize);
    let mut offset: u32 = 0;
    for line in table.chunks_exact(TABLE_ENTRY_BYTES) {
        let kind = match line[0] {
            0 => ObjectKind::Chunk,
            1 => ObjectKind::Recipe,
            2 => ObjectKind::Manifest,
            _ => return Err(BlockError::Header("unknown kind of object")),
        };
        let hash = Hash(line[1..33].try_into().expect("32 bytes"));
        let bytes = u32::from_le_bytes(line[33..].try_into().expect("four bytes"));
        entries.push(TableEntry { kind, hash, offset, bytes });
        offset = offset.checked_add(bytes).ok_or(BlockError::Header("table adds up to too much"))?;
    }
    if offset != header.raw_bytes {
        return Err(BlockError::Header("table and payload lengths differ"));
    }
    Ok(entries)
}

/// Checks a whole stored block without unpacking it, and reads its table.
pub fn verify_stored(bytes: &[u8]) -> Result<Vec<TableEntry>, BlockError> {
    let header = Header::parse(bytes)?;
    let body = bytes.get(HEADER_BYTES..header.block_bytes()).ok_or(BlockError::Short)?;
    if blake3::hash(body).as_bytes()[..16] != header.body_check {
        return Err(BlockError::Checksum);
    }
    parse_table(&header, bytes)
}

/// A block that was unpacked and whose chunks and manifests match their hashes.
#[derive(Debug)]
pub struct Block {
    table: Vec<TableEntry>,
    payload: Payload,
}

/// The objects' bytes.
#[derive(Debug)]
enum Payload {
    Unpacked(Vec<u8>),
    /// There in a plain block.
    Within(Arc<Vec<u8>>, Range<usize>),
}

impl Payload {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Unpacked(bytes) => bytes,
            Self::Within(block, place) => &block[place.clone()],
        }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        if let Self::Unpacked(bytes) = self {
            buffers::give(std::mem::take(bytes));
        }
    }
}

impl Block {
    /// Checks and unpacks. A chunk or manifest that doesn't match its name is an error; a recipe isn't named by its own bytes
    /// and is for the caller to check.
    pub fn open(bytes: &[u8]) -> Result<Self, BlockError> {
        let table = verify_stored(bytes)?;
        let header = Header::parse(bytes)?;
        let payload = Payload::Unpacked(unpack(&header, bytes)?);
        Self::checked(&header, table, payload)
    }

    /// The same for who wants the objects and doesn't keep the block as good: its own check is left out where every object has one, by its
    /// name. That is half the time of what doesn't compress; nor is that copied, but shared.
    pub fn open_for_objects(bytes: &Arc<Vec<u8>>) -> Result<Self, BlockError> {
        let header = Header::parse(bytes)?;
        if bytes.len() < header.block_bytes() {
            return Err(BlockError::Short);
        }
        let table = parse_table(&header, bytes)?;
        if table.iter().any(|entry| entry.kind == ObjectKind::Recipe) {
            verify_stored(bytes)?;
        }
        let payload = match header.codec {
            CODEC_PLAIN => Payload::Within(Arc::clone(bytes), header.table_end()..header.block_bytes()),
            _ => Payload::Unpacked(decompress(&header, bytes)?),
        };
        Self::checked(&header, table, payload)
    }

    /// The same for who proves the objects himself: nothing is compared with a hash here.
    pub fn open_unproven(bytes: &[u8]) -> Result<Self, BlockError> {
        let header = Header::parse(bytes)?;
        if bytes.len() < header.block_bytes() {
            return Err(BlockError::Short);
        }
        let table = parse_table(&header, bytes)?;
        let payload = Payload::Unpacked(unpack(&header, bytes)?);
        match payload.bytes().len() {
            bytes if bytes == header.raw_bytes as usize => Ok(Self { table, payload }),
            bytes => Err(BlockError::Payload(format!("{bytes} bytes instead of {}", header.raw_bytes))),
        }
    }

    fn checked(header: &Header, table: Vec<TableEntry>, payload: Payload) -> Result<Self, BlockError> {
        let bytes = payload.bytes().len();
        if bytes != header.raw_bytes as usize {
            return Err(BlockError::Payload(format!("{bytes} bytes instead of {}", header.raw_bytes)));
        }
        let block = Self { table, payload };
        match block.table.iter().find(|e| !block.matches(e)) {
            Some(bad) => Err(BlockError::Object { kind: bad.kind, hash: bad.hash }),
            None => Ok(block),
        }
    }

    fn matches(&self, entry: &TableEntry) -> bool {
        entry.kind == ObjectKind::Recipe || Hash::of(self.bytes_of(entry)) == entry.hash
    }

    /// What is in it.
    pub fn table(&self) -> &[TableEntry] {
        &self.table
    }

    /// The bytes of one line of its table.
    pub fn bytes_of(&self, entry: &TableEntry) -> &[u8] {
        &self.payload.bytes()[entry.offset as usize..][..entry.bytes as usize]
    }

    /// An object's bytes by name.
    pub fn get(&self, kind: ObjectKind, hash: &Hash) -> Option<&[u8]> {
        self.table.iter().find(|e| e.kind == kind && e.hash == *hash).map(|e| self.bytes_of(e))
    }

    /// Bytes of memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        let payload = match &self.payload {
            Payload::Unpacked(bytes) => bytes.len(),
            Payload::Within(block, _) => block.len(),
        };
        payload + self.table.len() * size_of::<TableEntry>()
    }
}

/// The payload of a whole block, in memory of its own.
fn unpack(header: &Header, bytes: &[u8]) -> Result<Vec<u8>, BlockError> {
    if header.codec != CODEC_PLAIN {
        return decompress(header, bytes);
    }
    let mut payload = buffers::take(header.raw_bytes as usize);
    payload.extend_from_slice(&bytes[header.table_end()..header.block_bytes()]);
    Ok(payload)
}

fn decompress(header: &Header, bytes: &[u8]) -> Result<Vec<u8>, BlockError> {
    let stored = &bytes[header.table_end()..header.block_bytes()];
    let mut raw = buffers::take(header.raw_bytes as usize);
    let unpacked = DECOMPRESSOR.with_borrow_mut(|zstd| {
        let zstd = match zstd {
            Some(zstd) => zstd,
            None => zstd.insert(zstd::bulk::Decompressor::new()?),
        };
        zstd.decompress_to_buffer(stored, &mut raw)
    });
    match unpacked {
        Ok(_) => Ok(raw),
        Err(e) => Err(BlockError::Payload(e.to_string())),
    }
}

/// The objects of a damaged block that are still what they are called, as far as its header and table can be read; and what calls itself a recipe, which
/// isn't named by its own bytes.
pub fn readable(bytes: &[u8]) -> Vec<(TableEntry, Vec<u8>)> {
    let Ok(header) = Header::parse(bytes) else { return Vec::new() };
    let (Ok(table), Some(stored)) =
        (parse_table(&header, bytes), bytes.get(header.table_end()..header.block_bytes()))
    else {
        return Vec::new();
    };
    let raw = match header.codec {
        CODEC_PLAIN => stored.to_vec(),
        _ => unpacked_part(stored, header.raw_bytes as usize),
    };
    let bytes_of = |entry: &TableEntry| raw.get(entry.offset as usize..)?.get(..entry.bytes as usize);
    let is_good =
        |entry: &TableEntry, bytes: &[u8]| entry.kind == ObjectKind::Recipe || Hash::of(bytes) == entry.hash;
    let good = table.iter().filter_map(|entry| Some((*entry, bytes_of(entry)?)));
    good.filter(|(entry, bytes)| is_good(entry, bytes))
        .map(|(entry, bytes)| (entry, bytes.to_vec()))
        .collect()
}

/// What can be unpacked in front of the damage.
fn unpacked_part(stored: &[u8], raw_bytes: usize) -> Vec<u8> {
    let mut raw = Vec::new();
    if let Ok(decoder) = zstd::stream::read::Decoder::new(stored) {
        // The error comes after what is good.
        let _ = decoder.take(raw_bytes as u64).read_to_end(&mut raw);
    }
    raw
}

thread_local! {
    /// What zstd works with is as large as a block and is cleared when it is made.
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    /// With the level that it is set to.
    static COMPRESSOR: RefCell<Option<(i32, zstd::bulk::Compressor<'static>)>> = const { RefCell::new(None) };
}

/// Appends `raw`, compressed at `level`, to `out`, which has room for it.
fn compress_onto(out: &mut Vec<u8>, raw: &[u8], level: i32) -> io::Result<usize> {
    COMPRESSOR.with_borrow_mut(|zstd| {
        let (set, zstd) = match zstd {
            Some(zstd) => zstd,
            None => zstd.insert((level, zstd::bulk::Compressor::new(level)?)),
        };
        if *set != level {
            zstd.set_compression_level(level)?;
            *set = level;
        }
        let mut end = io::Cursor::new(out);
        end.set_position(end.get_ref().len() as u64);
        zstd.compress_to_buffer(raw, &mut end)
    })
}

/// How many bytes zstd makes of a sample at its quickest ordinary level.
pub fn compressed_bytes(sample: &[u8]) -> io::Result<usize> {
    let mut out = buffers::take(zstd::zstd_safe::compress_bound(sample.len()));
    let bytes = compress_onto(&mut out, sample, 1);
    buffers::give(out);
    bytes
}

/// Collects objects into a block.
#[derive(Debug, Default)]
pub struct BlockBuilder {
    table: Vec<u8>,
    raw: Vec<u8>,
}

impl BlockBuilder {
    /// Adds an object. The caller answers for the hash.
    ///
    /// # Panics
    /// Above [`limits::BLOCK_RAW_MAX_BYTES`] or [`limits::BLOCK_OBJECTS`]: callers close blocks long before.
    pub fn push(&mut self, kind: ObjectKind, hash: Hash, bytes: &[u8]) {
        assert!(self.raw.len() + bytes.len() <= limits::BLOCK_RAW_MAX_BYTES, "block beyond its limit");
        assert!(self.objects() < limits::BLOCK_OBJECTS, "block with too many objects");
        if self.raw.capacity() == 0 {
            self.raw = buffers::take(limits::BLOCK_RAW_TARGET_BYTES + limits::BLOCK_RAW_TARGET_BYTES / 4);
        }
        self.table.push(kind as u8);
        self.table.extend_from_slice(&hash.0);
        self.table.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.raw.extend_from_slice(bytes);
    }

    /// Objects so far.
    pub fn objects(&self) -> usize {
        self.table.len() / TABLE_ENTRY_BYTES
    }

    /// Raw bytes so far.
    pub fn raw_bytes(&self) -> usize {
        self.raw.len()
    }

    /// Whether it has reached the size that blocks are made to, or has no room for another object.
    pub fn is_full(&self) -> bool {
        self.raw.len() >= limits::BLOCK_RAW_TARGET_BYTES || self.objects() >= limits::BLOCK_OBJECTS
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Compresses at zstd `level` (plain where that isn't smaller) and gives the block's bytes, leaving the builder empty.
    pub fn finish(&mut self, level: i32) -> io::Result<Vec<u8>> {
        let (table, raw) = (std::mem::take(&mut self.table), std::mem::take(&mut self.raw));
        let table_end = HEADER_BYTES + table.len();
        let mut block = buffers::take(table_end + zstd::zstd_safe::compress_bound(raw.len()));
        block.resize(HEADER_BYTES, 0);
        block.extend_from_slice(&table);
        let is_packed = compress_onto(&mut block, &raw, level)? < raw.len();
        if !is_packed {
            block.truncate(table_end);
            block.extend_from_slice(&raw);
        }
        let header = Header {
            codec: if is_packed { CODEC_ZSTD } else { CODEC_PLAIN },
            objects: (table.len() / TABLE_ENTRY_BYTES) as u32,
            table_bytes: table.len() as u32,
            raw_bytes: raw.len() as u32,
            stored_bytes: (block.len() - table_end) as u32,
            body_check: *blake3::hash(&block[HEADER_BYTES..]).as_bytes().first_chunk().expect("32 bytes"),
        };
        block[..HEADER_BYTES].copy_from_slice(&header.encode());
        buffers::give(raw);
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut builder = BlockBuilder::default();
        for text in [&b"status.log\n"[..], b"", &[b'x'; 5000]] {
            builder.push(ObjectKind::Chunk, Hash::of(text), text);
        }
        builder.finish(3).expect("compresses")
    }

    #[test]
    fn a_block_gives_back_what_went_in() {
        let block = Block::open(&sample()).expect("opens");
        assert_eq!(block.get(ObjectKind::Chunk, &Hash::of(b"")), Some(&b""[..]));
        assert_eq!(block.get(ObjectKind::Chunk, &Hash::of(&[b'x'; 5000])), Some(&[b'x'; 5000][..]));
        assert_eq!(block.get(ObjectKind::Recipe, &Hash::of(b"")), None);
    }

    /// What comes out of a block is what it is called, whatever was done to the block.
    #[test]
    fn no_flipped_byte_changes_an_object() {
        let good = sample();
        let objects = |block: &Block| -> Vec<(TableEntry, Vec<u8>)> {
            block.table().iter().map(|entry| (*entry, block.bytes_of(entry).to_vec())).collect()
        };
        let expected = objects(&Block::open(&good).expect("good"));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            if let Ok(block) = Block::open_for_objects(&Arc::new(bad)) {
                assert_eq!(objects(&block), expected, "byte {at}");
            }
        }
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let good = sample();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Block::open(&bad).is_err(), "byte {at}");
        }
        for len in 0..good.len() {
            assert!(Block::open(&good[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_forged_name_is_refused() {
        let mut builder = BlockBuilder::default();
        builder.push(ObjectKind::Chunk, Hash::of(b"a"), b"b");
        let forged = builder.finish(1).expect("compresses");
        assert!(matches!(Block::open(&forged), Err(BlockError::Object { .. })));
    }

    #[test]
    fn incompressible_bytes_are_kept_plain() {
        let noise: Vec<u8> = (0..200u32).flat_map(|i| *blake3::hash(&i.to_le_bytes()).as_bytes()).collect();
        let mut builder = BlockBuilder::default();
        builder.push(ObjectKind::Chunk, Hash::of(&noise), &noise);
        let bytes = builder.finish(3).expect("compresses");
        assert_eq!(bytes.len(), HEADER_BYTES + TABLE_ENTRY_BYTES + noise.len());
        Block::open(&bytes).expect("opens");
    }
}
