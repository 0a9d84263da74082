//! Puts checksums right where an input has them wrong, so that what is behind them is reached.

use resultsfs::{
    catalog::{Head, Record},
    chunk::{
        ObjectKind,
        block::{self, Block},
    },
    ids::{Hash, StoreUuid},
    store::{catalog, pack},
};

/// Bytes of a line of a block's table.
const LINE_BYTES: usize = 37;

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

fn check(parts: &[&[u8]]) -> [u8; 16] {
    Hash::of(&parts.concat()).0[..16].try_into().expect("sixteen bytes")
}

/// The first 40 bytes' check behind them.
fn head(bytes: &mut [u8]) {
    let check = check(&[&bytes[..40]]);
    bytes[40..48].copy_from_slice(&check[..8]);
}

/// The block at the beginning of `bytes`, and where it ends if all of it is there.
pub fn block(bytes: &mut [u8]) -> Option<usize> {
    if bytes.len() < block::HEADER_BYTES {
        return None;
    }
    let end = block::HEADER_BYTES + u32_at(bytes, 12) + u32_at(bytes, 20);
    let body = bytes.get(block::HEADER_BYTES..end).map(|body| check(&[body]));
    if let Some(check) = body {
        bytes[24..40].copy_from_slice(&check);
    }
    head(bytes);
    body.map(|_| end)
}

/// The names of a block's objects, whatever they are; of one that can be unpacked.
pub fn names(bytes: &mut [u8]) {
    let Ok(opened) = Block::open_unproven(bytes) else { return };
    for (line, entry) in
        opened.table().iter().enumerate().filter(|(_, entry)| entry.kind != ObjectKind::Recipe)
    {
        let at = block::HEADER_BYTES + LINE_BYTES * line + 1;
        bytes[at..at + 32].copy_from_slice(&Hash::of(opened.bytes_of(entry)).0);
    }
    block(bytes);
}

/// A pack's header, its blocks as far as they follow one another, and what is behind them if that calls itself trailer and footer.
pub fn pack(bytes: &mut [u8], store: StoreUuid, number: u32) {
    let header = pack::encode_header(store, number);
    if bytes.len() < header.len() {
        return;
    }
    bytes[..header.len()].copy_from_slice(&header);
    let mut at = header.len();
    while bytes[at..].starts_with(b"RFSb")
        && let Some(length) = block(&mut bytes[at..])
    {
        at += length;
    }
    if bytes[at..].starts_with(b"RFSt") {
        trailer(bytes, at);
    }
}

fn trailer(bytes: &mut [u8], start: usize) {
    let Some(end) = bytes.len().checked_sub(48).filter(|end| *end >= start + 8) else { return };
    if !bytes[end..].starts_with(b"RFSe") {
        return;
    }
    let mut at = start + 8;
    while at + 8 + block::HEADER_BYTES <= end {
        head(&mut bytes[at + 8..]);
        at += 8 + block::HEADER_BYTES + u32_at(bytes, at + 8 + 12);
    }
    let check = check(&[&bytes[start..end]]);
    let footer = &mut bytes[end..];
    footer[8..16].copy_from_slice(&(start as u64).to_le_bytes());
    footer[16..24].copy_from_slice(&((end - start) as u64).to_le_bytes());
    footer[24..40].copy_from_slice(&check);
    head(footer);
}

/// A catalog whose records follow one another, from those of `bytes` that are any; and what is behind the last. With the chain's end.
pub fn catalog(bytes: &[u8], store: StoreUuid) -> (Vec<u8>, Head) {
    let (mut mended, mut rest, mut chain) = (Vec::new(), bytes, Head::genesis(store));
    while let Some((frame, record, after)) = frame(rest) {
        let Ok(mut record) = minicbor::decode::<Record>(record) else { break };
        (record.seq, record.prev) = (chain.seq.next(), chain.chain);
        mended.extend_from_slice(&with_record(&frame[..32], &record.encode()));
        (rest, chain) = (after, record.link());
    }
    mended.extend_from_slice(rest);
    (mended, chain)
}

/// The first frame of a catalog: head, record, and what follows.
fn frame(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (head, rest) =
        bytes.split_at_checked(catalog::FRAME_BYTES).filter(|(head, _)| head.starts_with(b"RFSc"))?;
    let (record, rest) = rest.split_at_checked(u32_at(head, 4))?;
    Some((head, record, rest))
}

/// A frame like this one around another record.
pub fn with_record(head: &[u8], record: &[u8]) -> Vec<u8> {
    let mut frame = head[..32].to_vec();
    frame[4..8].copy_from_slice(&(record.len() as u32).to_le_bytes());
    let check = check(&[&frame, record]);
    [&frame[..], &check, record].concat()
}

/// A head file.
pub fn head_file(head: Head) -> Vec<u8> {
    let mut bytes = [&b"RFSh\x01\0\0\0"[..], &head.seq.0.to_le_bytes(), &head.chain.0].concat();
    bytes.extend_from_slice(&check(&[&bytes]));
    bytes
}
