//! The pack file: blocks one after another, and at the end, once it is closed, a list of them.
//!
//! ```text
//! header, 40 bytes            trailer (closed packs)                    footer, 48 bytes (closed packs)
//!   0  magic "RFSp"    4        0  magic "RFSt"                4          0  magic "RFSe"      4
//!   4  version (1)     4  u32   4  blocks                      4  u32     4  version (1)       4  u32
//!   8  store UUID     16        then for each block:                      8  trailer offset    8  u64
//!  24  pack number     4  u32      offset in the pack          8  u64    16  trailer bytes     8  u64
//!  28  zero            4           its header and table, verbatim        24  BLAKE3 of the trailer, first 16 bytes
//!  32  BLAKE3 of the first 32 bytes, first 8                             40  BLAKE3 of the first 40 bytes, first 8
//! ```
//! All numbers are little endian. A block's header says how long the block is, so a pack without a trailer can be walked from its start,
//! and where it stops making sense is its torn tail. Nothing is ever written over.

use super::{StoreError, layout::check16};
use crate::{
    chunk::block::{self, BlockError, TableEntry},
    durable::DiskFile,
    ids::StoreUuid,
    limits,
};

/// Bytes of a pack's header: where its first block begins.
pub const HEADER_BYTES: u64 = 40;
const FOOTER_BYTES: u64 = 48;
const VERSION: u32 = 1;
const MAGIC: &[u8; 4] = b"RFSp";
const TRAILER_MAGIC: &[u8; 4] = b"RFSt";
const FOOTER_MAGIC: &[u8; 4] = b"RFSe";
const BLOCK_MAGIC: &[u8; 4] = b"RFSb";

/// A block's place in its pack, and its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedBlock {
    pub offset: u64,
    /// The whole block's length.
    pub bytes: u32,
    pub table: Vec<TableEntry>,
    /// Its header and table as they are in the pack.
    head: Vec<u8>,
}

impl PackedBlock {
    /// Of a checked block at `offset`.
    pub fn of(offset: u64, encoded: &[u8], table: Vec<TableEntry>) -> Result<Self, BlockError> {
        let header = block::Header::parse(encoded)?;
        let head = encoded.get(..header.table_end()).ok_or(BlockError::Short)?.to_vec();
        Ok(Self { offset, bytes: header.block_bytes() as u32, table, head })
    }

    /// Its header and table: what they say, the block's check among it, makes it the block that it is.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Offset of the first byte after it.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.bytes)
    }

    /// Puts back what head and table were.
    pub fn restore_head(&self, block: &mut [u8]) {
        block[..self.head.len()].copy_from_slice(&self.head);
    }

    fn from_head(offset: u64, bytes: &[u8]) -> Result<(Self, usize), BlockError> {
        let header = block::Header::parse(bytes)?;
        let head = bytes.get(..header.table_end()).ok_or(BlockError::Short)?.to_vec();
        let table = block::parse_table(&header, &head)?;
        let used = head.len();
        Ok((Self { offset, bytes: header.block_bytes() as u32, table, head }, used))
    }
}

/// What a whole pack was found to be.
#[derive(Debug)]
pub struct Scan {
    /// The blocks that are good, ascending.
    pub blocks: Vec<PackedBlock>,
    pub state: State,
    /// What is wrong in the part that must be good.
    pub damage: Vec<Damage>,
    /// Damaged blocks whose tables can still be read, for what that is worth.
    pub damaged_blocks: Vec<PackedBlock>,
    /// Length of the file.
    pub file_bytes: u64,
}

/// How a pack ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// With its trailer.
    Closed,
    /// With its last block.
    Open,
    /// With something that was never acknowledged, from this offset on.
    Torn(u64),
}

/// Something wrong in a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub code: &'static str,
    pub offset: u64,
    pub what: String,
}

/// A pack's header.
pub fn encode_header(store: StoreUuid, number: u32) -> [u8; HEADER_BYTES as usize] {
    let mut head = [0; HEADER_BYTES as usize];
    head[..4].copy_from_slice(MAGIC);
    head[4..8].copy_from_slice(&VERSION.to_le_bytes());
    head[8..24].copy_from_slice(&store.0);
    head[24..28].copy_from_slice(&number.to_le_bytes());
    let check = blake3::hash(&head[..32]);
    head[32..].copy_from_slice(&check.as_bytes()[..8]);
    head
}

/// Trailer and footer for a pack whose blocks are `blocks` and end at `offset`.
pub fn encode_trailer(blocks: &[PackedBlock], offset: u64) -> Vec<u8> {
    let mut bytes = TRAILER_MAGIC.to_vec();
    bytes.extend_from_slice(&(blocks.len() as u32).to_le_bytes());
    for block in blocks {
        bytes.extend_from_slice(&block.offset.to_le_bytes());
        bytes.extend_from_slice(&block.head);
    }
    let mut footer = FOOTER_MAGIC.to_vec();
    footer.extend_from_slice(&VERSION.to_le_bytes());
    footer.extend_from_slice(&offset.to_le_bytes());
    footer.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    footer.extend_from_slice(&check16(&[&bytes]));
    let check = blake3::hash(&footer);
    footer.extend_from_slice(&check.as_bytes()[..8]);
    bytes.extend_from_slice(&footer);
    bytes
}

fn parse_trailer(trailer: &[u8], end: u64) -> Option<Vec<PackedBlock>> {
    let rest = trailer.strip_prefix(TRAILER_MAGIC)?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let count = u32::from_le_bytes(*count) as usize;
    let mut blocks: Vec<PackedBlock> = Vec::new();
    while !rest.is_empty() {
        let (offset, head) = rest.split_first_chunk::<8>()?;
        let (block, used) = PackedBlock::from_head(u64::from_le_bytes(*offset), head).ok()?;
        if block.offset != blocks.last().map_or(HEADER_BYTES, PackedBlock::end) {
            return None;
        }
        blocks.push(block);
        rest = &head[used..];
    }
    (blocks.len() == count && blocks.last().map_or(HEADER_BYTES, PackedBlock::end) == end).then_some(blocks)
}

/// What a footer says: where the trailer is, how long, and its checksum.
fn parse_footer(footer: &[u8; FOOTER_BYTES as usize], file_bytes: u64) -> Option<(u64, u64, [u8; 16])> {
    let good = &footer[..4] == FOOTER_MAGIC && blake3::hash(&footer[..40]).as_bytes()[..8] == footer[40..];
    let u64_at = |at: usize| u64::from_le_bytes(footer[at..at + 8].try_into().expect("eight bytes"));
    let (offset, bytes) = (u64_at(8), u64_at(16));
    let fits = offset.checked_add(bytes)?.checked_add(FOOTER_BYTES)? == file_bytes;
    (good && fits).then(|| (offset, bytes, footer[24..40].try_into().expect("sixteen bytes")))
}

/// The blocks of a closed pack by its trailer alone; `None` if it has no footer or the trailer is damaged.
fn read_trailer(file: &dyn DiskFile, file_bytes: u64) -> Result<Trailer, StoreError> {
    if file_bytes < HEADER_BYTES + FOOTER_BYTES {
        return Ok(Trailer::None);
    }
    let mut footer = [0; FOOTER_BYTES as usize];
    file.read_at(file_bytes - FOOTER_BYTES, &mut footer)?;
    let Some((offset, bytes, check)) = parse_footer(&footer, file_bytes) else { return Ok(Trailer::None) };
    let mut trailer = vec![0; usize::try_from(bytes).expect("below the file's length")];
    file.read_at(offset, &mut trailer)?;
    if check16(&[&trailer]) != check {
        return Ok(Trailer::Damaged(offset));
    }
    Ok(parse_trailer(&trailer, offset).map_or(Trailer::Damaged(offset), Trailer::Good))
}

enum Trailer {
    None,
    Damaged(u64),
    Good(Vec<PackedBlock>),
}

/// Reads what a pack's first `file_bytes` bytes hold. Of what lies below `must`, everything is expected to be good, and what isn't is damage; what lies from there
/// on may be torn. A good trailer is believed of the former without reading the blocks.
pub fn scan(
    file: &dyn DiskFile,
    file_bytes: u64,
    store: StoreUuid,
    number: u32,
    must: u64,
) -> Result<Scan, StoreError> {
    let (blocks, damage, damaged_blocks) = (Vec::new(), Vec::new(), Vec::new());
    let mut scan = Scan { blocks, state: State::Open, damage, damaged_blocks, file_bytes };
    if !has_header(file, store, number, file_bytes)? {
        if must == 0 {
            scan.state = State::Torn(0);
            return Ok(scan);
        }
        scan.note("pack-header", 0, "the pack's header is damaged or another's");
    }
    match read_trailer(file, file_bytes)? {
        Trailer::Good(blocks) => scan.believe(file, blocks, must)?,
        Trailer::Damaged(offset) => {
            scan.state = State::Closed;
            scan.walk(file, offset, must)?;
            match (scan.state, offset >= must) {
                (State::Torn(_), _) => {}
                (_, true) => scan.state = State::Torn(offset),
                (_, false) => {
                    scan.note("pack-trailer", offset, "the pack's trailer doesn't match its checksum")
                }
            }
        }
        Trailer::None => scan.walk(file, file_bytes, must)?,
    }
    Ok(scan)
}

/// Whether the pack's own header is what it must be.
pub fn has_header(
    file: &dyn DiskFile,
    store: StoreUuid,
    number: u32,
    file_bytes: u64,
) -> Result<bool, StoreError> {
    let mut head = [0; HEADER_BYTES as usize];
    if file_bytes < HEADER_BYTES {
        return Ok(false);
    }
    file.read_at(0, &mut head)?;
    Ok(head == encode_header(store, number))
}

impl Scan {
    fn note(&mut self, code: &'static str, offset: u64, what: impl Into<String>) {
        self.damage.push(Damage { code, offset, what: what.into() });
    }

    /// Takes a trailer's word for what must be good. What may be torn is read: the trailer may have reached the disk before the blocks.
    fn believe(
        &mut self,
        file: &dyn DiskFile,
        blocks: Vec<PackedBlock>,
        must: u64,
    ) -> Result<(), StoreError> {
        self.state = State::Closed;
        for block in blocks {
            if block.offset >= must && read_block(file, block.offset, block.end())?.as_ref() != Ok(&block) {
                self.state = State::Torn(block.offset);
                return Ok(());
            }
            self.blocks.push(block);
        }
        Ok(())
    }

    /// Walks from block to block, with checksums.
    fn walk(&mut self, file: &dyn DiskFile, end: u64, must: u64) -> Result<(), StoreError> {
        let mut at = HEADER_BYTES;
        while at < end {
            match read_block(file, at, end)? {
                Ok(block) => {
                    at = block.end();
                    self.blocks.push(block);
                }
                Err(_) if at >= must => {
                    self.state = State::Torn(at);
                    return Ok(());
                }
                Err(_) if starts_with(file, at, end, TRAILER_MAGIC)? => {
                    self.note("pack-trailer", at, "the pack's trailer is cut short");
                    self.state = State::Closed;
                    return Ok(());
                }
                Err((error, next)) => {
                    self.note("block-damaged", at, error.to_string());
                    self.damaged_blocks.extend(read_head(file, at, end)?);
                    at = match next {
                        Some(next) => next,
                        None => find_block(file, at + 1, end)?,
                    };
                }
            }
        }
        if must == u64::MAX && self.state == State::Open && self.damage.is_empty() {
            self.note("pack-trailer", end, "the pack has no trailer, and later ones were begun");
        }
        if must != u64::MAX && end < must {
            self.note("pack-truncated", end, format!("the file ends here, not at {must} or beyond"));
        }
        Ok(())
    }
}

/// A block read and checked without unpacking. The error has the place of what comes next, if the header says.
type BlockRead = Result<PackedBlock, (BlockError, Option<u64>)>;

fn read_block(file: &dyn DiskFile, at: u64, end: u64) -> Result<BlockRead, StoreError> {
    let mut head = [0; block::HEADER_BYTES];
    if at + head.len() as u64 > end {
        return Ok(Err((BlockError::Short, Some(end))));
    }
    file.read_at(at, &mut head)?;
    let header = match block::Header::parse(&head) {
        Err(e) => return Ok(Err((e, None))),
        Ok(header) => header,
    };
    let next = at + header.block_bytes() as u64;
    if next > end {
        return Ok(Err((BlockError::Short, Some(end))));
    }
    let mut bytes = vec![0; header.block_bytes()];
    file.read_at(at, &mut bytes)?;
    let block = block::verify_stored(&bytes).and_then(|table| PackedBlock::of(at, &bytes, table));
    Ok(block.map_err(|e| (e, Some(next))))
}

/// A block's header and table as they are, if they can be read at all.
fn read_head(file: &dyn DiskFile, at: u64, end: u64) -> Result<Option<PackedBlock>, StoreError> {
    let mut head = [0; block::HEADER_BYTES];
    if at + head.len() as u64 > end {
        return Ok(None);
    }
    file.read_at(at, &mut head)?;
    let table_end = block::Header::parse(&head).map_or(0, |header| header.table_end());
    if table_end == 0 || at + table_end as u64 > end {
        return Ok(None);
    }
    let mut bytes = vec![0; table_end];
    file.read_at(at, &mut bytes)?;
    Ok(PackedBlock::from_head(at, &bytes).ok().map(|(block, _)| block))
}

fn starts_with(file: &dyn DiskFile, at: u64, end: u64, magic: &[u8; 4]) -> Result<bool, StoreError> {
    let mut bytes = [0; 4];
    if at + 4 > end {
        return Ok(false);
    }
    file.read_at(at, &mut bytes)?;
    Ok(&bytes == magic)
}

/// The next place from `at` on where a block's header stands, or `end`.
fn find_block(file: &dyn DiskFile, mut at: u64, end: u64) -> Result<u64, StoreError> {
    const STEP: usize = 1 << 20;
    while at < end {
        let window = usize::try_from(end - at).unwrap_or(STEP).min(STEP + block::HEADER_BYTES);
        let mut bytes = vec![0; window];
        file.read_at(at, &mut bytes)?;
        let found = bytes
            .windows(block::HEADER_BYTES)
            .position(|w| w.starts_with(BLOCK_MAGIC) && block::Header::parse(w).is_ok());
        match found {
            Some(found) => return Ok(at + found as u64),
            None if window <= STEP => return Ok(end),
            None => at += STEP as u64,
        }
    }
    Ok(end)
}

/// Whether a pack of this length takes no more blocks.
pub fn is_full(bytes: u64, limit: u64) -> bool {
    bytes >= limit.min(limits::PACK_BYTES)
}
