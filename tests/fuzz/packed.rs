//! Blocks, the packs that they lie in, and the store's catalog.

use std::{path::Path, sync::Arc};

use resultsfs::{
    catalog::{Head, Reclaimed, Record, RecordBody},
    chunk::{
        ObjectKind,
        block::{self, Block, BlockBuilder, TableEntry},
    },
    ids::{Hash, Seq, StoreUuid},
    limits,
    store::{
        StoreError,
        catalog::{Catalog, PackPoint},
        layout::Layout,
        pack::{self, PackedBlock, Scan, State},
    },
};

use super::{
    memory::{MemDisk, MemFile},
    mend, number,
};

pub const STORE: StoreUuid = StoreUuid([7; 16]);
pub const PACK: u32 = 1;

/// What is built anew from an input that is accepted, to see that it is accepted again: more would only cost time.
const REBUILT_BYTES: usize = 64 << 10;

/// Input: a block's bytes; tried as they are, with its checks put right, and with its objects' names put right, too.
///
/// All ways to open it agree; its objects are within the limits, lie one behind the other, and are what they are called; and a block that is made of them
/// opens as the same.
pub fn block(data: &[u8]) {
    a_block(data);
    let mut mended = data.to_vec();
    if mend::block(&mut mended).is_some() {
        a_block(&mended);
        mend::names(&mut mended);
        a_block(&mended);
    }
}

fn a_block(bytes: &[u8]) {
    let readable = block::readable(bytes);
    let for_objects = Block::open_for_objects(&Arc::new(bytes.to_vec()));
    let unproven = Block::open_unproven(bytes);
    let stored = block::verify_stored(bytes);
    if let Ok(table) = &stored {
        let header = block::Header::parse(bytes).expect("was read before");
        a_table(table, &header);
        let packed = PackedBlock::of(11, bytes, table.clone()).expect("was read before");
        assert_eq!((packed.end(), &packed.table), (11 + header.block_bytes() as u64, table));
        let mut wiped = bytes.to_vec();
        wiped[..header.table_end()].fill(0);
        packed.restore_head(&mut wiped);
        assert_eq!(wiped, bytes);
    }
    if let Ok(for_objects) = &for_objects {
        let unproven = unproven.as_ref().expect("what is checked less opens, too");
        assert_eq!(objects(for_objects), objects(unproven));
        objects(for_objects).iter().for_each(named_right);
    }
    for (entry, bytes) in &readable {
        named_right(&(*entry, bytes));
    }
    let Ok(opened) = Block::open(bytes) else { return };
    assert_eq!(stored.as_deref(), Ok(opened.table()));
    assert_eq!(objects(&for_objects.expect("what is checked more opens, too")), objects(&opened));
    assert!(readable.iter().map(|(entry, bytes)| (*entry, &bytes[..])).eq(objects(&opened)));
    for (entry, bytes) in objects(&opened).iter().filter(|(entry, _)| entry.kind != ObjectKind::Recipe) {
        assert_eq!(opened.get(entry.kind, &entry.hash), Some(*bytes));
    }
    let raw: usize = opened.table().iter().map(|entry| entry.bytes as usize).sum();
    assert!(opened.memory_bytes() <= raw.max(bytes.len()) + opened.table().len() * 64);
    if raw <= REBUILT_BYTES {
        let mut builder = BlockBuilder::default();
        objects(&opened).iter().for_each(|(entry, bytes)| builder.push(entry.kind, entry.hash, bytes));
        let rebuilt = builder.finish(1).expect("compresses");
        assert_eq!(objects(&Block::open(&rebuilt).expect("opens")), objects(&opened));
    }
}

fn objects(block: &Block) -> Vec<(TableEntry, &[u8])> {
    block.table().iter().map(|entry| (*entry, block.bytes_of(entry))).collect()
}

fn named_right((entry, bytes): &(TableEntry, impl AsRef<[u8]>)) {
    assert!(entry.kind == ObjectKind::Recipe || Hash::of(bytes.as_ref()) == entry.hash);
}

fn a_table(table: &[TableEntry], header: &block::Header) {
    assert!(
        table.len() <= limits::BLOCK_OBJECTS && header.raw_bytes() as usize <= limits::BLOCK_RAW_MAX_BYTES
    );
    let mut end = 0;
    for entry in table {
        assert_eq!(entry.offset, end);
        end += entry.bytes;
    }
    assert_eq!(end, header.raw_bytes());
}

/// Input: up to where the pack must be good (0xffff = all of it), and the pack; tried as it is, and with its checks put right.
///
/// The blocks that are found lie one behind the other in the file and are whole, but for those that a trailer vouches for; what is torn is behind what must be good;
/// and the blocks, closed with a trailer, are found again by that.
pub fn pack(data: &[u8]) {
    let (must, bytes) = number(data);
    let must = if must == u16::MAX { u64::MAX } else { must.into() };
    a_pack(bytes, must);
    let mut mended = bytes.to_vec();
    mend::pack(&mut mended, STORE, PACK);
    a_pack(&mended, must);
}

fn a_pack(bytes: &[u8], must: u64) {
    let found = scan(bytes, must);
    assert_eq!(found.file_bytes, bytes.len() as u64);
    let has_footer = bytes.len() >= 48 && bytes[bytes.len() - 48..].starts_with(b"RFSe");
    let mut end = pack::HEADER_BYTES;
    for block in &found.blocks {
        assert!(block.offset >= end && block.end() <= found.file_bytes);
        end = block.end();
        // What its trailer says of what must be good is believed.
        if !has_footer || block.offset >= must {
            let whole = &bytes[block.offset as usize..block.end() as usize];
            assert_eq!(block::verify_stored(whole).as_ref(), Ok(&block.table));
        }
    }
    if let State::Torn(at) = found.state {
        assert!(at >= end || at == 0 && found.blocks.is_empty());
        assert!(at >= must, "torn at {at}, good until {must}");
    }
    for damaged in &found.damaged_blocks {
        assert!(damaged.offset < found.file_bytes);
    }
    let is_gapless = found.damage.is_empty() && found.state != State::Torn(0);
    if is_gapless && end <= found.file_bytes {
        let closed = [&bytes[..end as usize], &pack::encode_trailer(&found.blocks, end)].concat();
        let again = scan(&closed, u64::MAX);
        assert_eq!((again.state, &again.blocks), (State::Closed, &found.blocks));
        assert!(again.damage.is_empty());
    }
}

fn scan(bytes: &[u8], must: u64) -> Scan {
    pack::scan(&MemFile::of(bytes), bytes.len() as u64, STORE, PACK, must).expect("reads what is there")
}

/// Input: what the head file and the copy are, and the catalog; tried as it is, and with records that follow one another.
///
/// A catalog that is damaged is left as it is. One that opens is a beginning of what was there, all of its records can be asked for and follow one another, and a record
/// that is appended is there when it is opened again.
pub fn catalog(data: &[u8]) {
    let Some((beside, bytes)) = data.split_first() else { return };
    a_catalog(*beside, bytes, Head::genesis(STORE));
    let (mended, head) = mend::catalog(bytes, STORE);
    a_catalog(*beside, &mended, head);
}

fn a_catalog(beside: u8, bytes: &[u8], head: Head) {
    let (disk, layout) = (MemDisk::default(), Layout::new(Path::new("/store")));
    disk.put(layout.catalog(), bytes);
    match beside % 5 {
        0 => {}
        1 => disk.put(layout.head(), &mend::head_file(head)),
        2 => disk.put(layout.head(), &mend::head_file(Head { seq: head.seq.next(), ..head })),
        3 => disk.put(layout.head(), &mend::head_file(Head { chain: Hash([3; 32]), ..head })),
        _ => disk.put(layout.head(), &bytes[..bytes.len().min(64)]),
    }
    match beside / 5 % 4 {
        0 => {}
        1 => disk.put(layout.catalog_copy(), bytes),
        2 => disk.put(layout.catalog_copy(), &bytes[..bytes.len() / 2]),
        _ => {
            let next = Record { seq: head.seq.next(), prev: head.chain, time_ms: 1, body: nothing() };
            let next = mend::with_record(b"RFSc............................", &next.encode());
            disk.put(layout.catalog_copy(), &[bytes, &next].concat());
        }
    }
    let (catalog, _) = match Catalog::open(&disk, &layout, STORE) {
        Ok(opened) => opened,
        Err(StoreError::Damaged { .. }) => return assert_eq!(disk.get(&layout.catalog()), bytes),
        Err(error) => panic!("{error}"),
    };
    let kept = disk.get(&layout.catalog());
    assert!(bytes.starts_with(&kept) && kept.len() as u64 == catalog.bytes());
    assert_eq!(disk.get(&layout.catalog_copy()), kept);
    assert_eq!(disk.get(&layout.head()), mend::head_file(catalog.head()));
    all_records(&catalog);
    let before = catalog.head();
    let next = Record { seq: before.seq.next(), prev: before.chain, time_ms: 1, body: nothing() };
    catalog.append(std::slice::from_ref(&next), PackPoint::default()).expect("has room");
    assert_eq!(catalog.head(), next.link());
    drop(catalog);
    let (again, packs) = Catalog::open(&disk, &layout, STORE).expect("opens again");
    assert_eq!((again.head(), packs), (next.link(), PackPoint::default()));
    assert_eq!(again.record(next.seq).expect("reads"), Some(next));
}

fn all_records(catalog: &Catalog) {
    let records = catalog.records_after(Seq(0), usize::MAX).expect("were good when it was opened");
    let mut head = Head::genesis(STORE);
    for record in &records {
        head = head.follow(record).expect("they follow one another");
        for unit in record.retired().iter().chain(record.commit().map(|commit| &commit.unit)) {
            assert!(catalog.has_life(unit, catalog.life(unit).incarnation));
        }
        if let Some(commit) = record.commit() {
            let latest = catalog.latest(commit.host, &commit.unit, commit.incarnation).expect("reads");
            assert!(latest.is_some_and(|latest| latest.seq >= record.seq));
            let named = catalog.with_manifest(&commit.manifest).expect("reads");
            assert!(
                named.is_some()
                    || catalog.is_purged(record.seq, commit)
                    || records.iter().any(|later| later.seq > record.seq)
            );
        }
    }
    assert_eq!(head, catalog.head());
}

fn nothing() -> RecordBody {
    RecordBody::Reclaim(Reclaimed { packs: Vec::new() })
}
