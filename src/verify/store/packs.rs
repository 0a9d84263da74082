//! The packs' half of a check: what each holds, and with the data, whether it is what it is called.

use std::{cmp::Ordering, sync::atomic::AtomicBool};

use super::{Check, Found, RESEND, in_parallel};
use crate::{
    buffers,
    chunk::{
        ObjectKind,
        block::{Block, BlockError, verify_stored},
    },
    durable::DiskFile,
    limits,
    store::{
        StoreError,
        catalog::PackPoint,
        index::{self, Location},
        pack::{self, PackedBlock, Scan, State},
    },
    verify::{Meter, PACKS, Severity},
};

/// What to look at of a pack.
struct Part {
    number: u32,
    /// Its length for the purpose of the check.
    bytes: u64,
    /// Everything below this offset must be good.
    must: u64,
}

struct Checked {
    number: u32,
    scan: Scan,
    /// Indices of the blocks that aren't what they are called, and why.
    bad: Vec<(usize, String)>,
    bytes_read: u64,
    /// Read and found good by an earlier check.
    is_known: bool,
}

impl Check<'_> {
    /// Reads all packs up to `end`, to which they must be good. Of an open store, what is behind that came later.
    pub(super) fn check_packs(&mut self, end: PackPoint, open: bool) -> Result<(), StoreError> {
        let numbers = match self.layout.pack_numbers(&**self.disk) {
            Err(StoreError::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            numbers => numbers?,
        };
        self.note_reclaimed(&numbers);
        self.packs.extend(&numbers);
        if end.pack > 0 && !self.packs.contains(&end.pack) && !self.reclaimed.contains(&end.pack) {
            self.missing_pack(end.pack, "which the catalog speaks of");
        }
        let mut parts = Vec::new();
        for number in numbers.into_iter().filter(|number| !self.reclaimed.contains(number)) {
            let bytes = self.disk.open_read(&self.layout.pack(number))?.len()?;
            match (number.cmp(&end.pack), open) {
                (Ordering::Less, _) => parts.push(Part { number, bytes, must: u64::MAX }),
                (Ordering::Equal, true) => {
                    parts.push(Part { number, bytes: bytes.min(end.offset), must: end.offset });
                }
                (Ordering::Equal, false) => parts.push(Part { number, bytes, must: end.offset }),
                (Ordering::Greater, true) => {}
                (Ordering::Greater, false) => parts.push(Part { number, bytes, must: 0 }),
            }
        }
        let meter = Meter::new(self.progress, PACKS, parts.iter().map(|part| part.bytes).sum());
        let checked = in_parallel(&parts, |part| self.check_pack(part, &meter));
        let mut checked = checked.into_iter().collect::<Result<Vec<_>, _>>()?;
        checked.sort_by_key(|checked| checked.number);
        let known = checked.iter().filter(|checked| checked.is_known).count();
        if known > 0 {
            let note = format!("{known} packs were read by the check before, and not again");
            self.report.notes.push(note);
        }
        checked.into_iter().for_each(|checked| self.take_in(checked));
        Ok(())
    }

    pub(super) fn missing_pack(&mut self, number: u32, why: &str) {
        self.bad_packs.insert(number);
        let message = format!("pack {number:08x}, {why}, is missing");
        self.find("pack-missing", Severity::Error, message, RESEND);
    }

    /// What is gone by right isn't looked at, although a crash may have left it.
    fn note_reclaimed(&mut self, numbers: &[u32]) {
        for number in numbers.iter().filter(|number| self.reclaimed.contains(number)) {
            self.report.notes.push(format!(
                "{} was reclaimed and is still there; it is removed when the store is opened",
                self.layout.pack(*number).display()
            ));
        }
    }

    fn check_pack(&self, part: &Part, meter: &Meter<'_>) -> Result<Checked, StoreError> {
        let file = self.disk.open_read(&self.layout.pack(part.number))?;
        let scan = pack::scan(&*file, part.bytes, self.header.uuid, part.number, part.must)?;
        let (mut bad, mut bytes_read) = (Vec::new(), 0);
        let (reads, unpacks) = (self.options.reads(part.number), self.options.unpacks(part.number));
        let is_known = reads && self.verified.has(part.number, &scan.blocks, unpacks);
        if reads && !is_known {
            let mut buffer = buffers::take(limits::BLOCK_RAW_TARGET_BYTES);
            for (i, block) in scan.blocks.iter().enumerate() {
                meter.go_on()?;
                if let Err(why) = read(&*file, block, &mut buffer, unpacks) {
                    bad.push((i, why));
                }
                bytes_read += u64::from(block.bytes);
                meter.advance(u64::from(block.bytes));
                self.pace.keep(u64::from(block.bytes));
            }
            buffers::give(buffer);
            if bad.is_empty() {
                self.verified.note(part.number, &scan.blocks, unpacks);
            }
        }
        meter.advance(part.bytes.saturating_sub(bytes_read));
        Ok(Checked { number: part.number, scan, bad, bytes_read, is_known })
    }

    fn take_in(&mut self, checked: Checked) {
        let Checked { number, scan, bad, bytes_read, .. } = checked;
        let name = self.layout.pack(number);
        if !scan.damage.is_empty() || !bad.is_empty() {
            self.bad_packs.insert(number);
        }
        for damage in &scan.damage {
            let message = format!("{} at {}: {}", name.display(), damage.offset, damage.what);
            self.find(damage.code, Severity::Error, message, RESEND);
        }
        for block in &scan.damaged_blocks {
            self.bad_blocks.insert((number, block.offset));
            self.damaged.extend(block.table.iter().map(|e| (e.kind, e.hash)));
        }
        if let State::Torn(at) = scan.state {
            let torn = scan.file_bytes - at;
            self.report.notes.push(format!(
                "{} ends with {torn} bytes that were never acknowledged; they are cut when the store is opened",
                name.display()
            ));
        }
        let counts = &mut self.report.counts;
        counts.packs += 1;
        counts.blocks += scan.blocks.len() as u64;
        counts.objects += scan.blocks.iter().map(|block| block.table.len() as u64).sum::<u64>();
        counts.bytes_read += bytes_read;
        for (i, block) in scan.blocks.iter().enumerate() {
            match bad.iter().find(|(bad, _)| *bad == i) {
                Some((_, why)) => self.bad_block(number, block, why),
                None => self.good_block(number, block),
            }
        }
    }

    fn bad_block(&mut self, number: u32, block: &PackedBlock, why: &str) {
        self.bad_blocks.insert((number, block.offset));
        self.damaged.extend(block.table.iter().map(|e| (e.kind, e.hash)));
        let name = self.layout.pack(number);
        let message =
            format!("{} at {}: {why} ({} objects)", name.display(), block.offset, block.table.len());
        self.find("block-damaged", Severity::Error, message, RESEND);
    }

    fn good_block(&mut self, number: u32, block: &PackedBlock) {
        for (line, entry) in block.table.iter().enumerate() {
            let place: Location = index::location(number, block, line, entry);
            match entry.kind {
                ObjectKind::Recipe => self.recipes.entry(entry.hash).or_default().push(place),
                _ => {
                    let found = Found { place, is_indexed: AtomicBool::new(false) };
                    self.objects.entry((entry.kind, entry.hash)).or_insert(found);
                }
            }
        }
    }
}

/// Reads a block, and compares it with its own check and with what the trailer says of it. What was unpacked and good when it was taken in, and is the
/// same by its check, is good; who wants to see that for himself unpacks it again.
fn read(file: &dyn DiskFile, block: &PackedBlock, buffer: &mut Vec<u8>, unpacks: bool) -> Result<(), String> {
    buffer.resize(block.bytes as usize, 0);
    file.read_at(block.offset, buffer).map_err(|e| e.to_string())?;
    let table = match unpacks {
        true => Block::open(buffer).map(|unpacked| unpacked.table().to_vec()),
        false => verify_stored(buffer),
    };
    let table = table.map_err(|e| e.to_string())?;
    let there: Result<_, BlockError> = PackedBlock::of(block.offset, buffer, table);
    match there.as_ref() == Ok(block) {
        true => Ok(()),
        false => Err("the block isn't the one that the pack's trailer names".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chunk::block::BlockBuilder,
        durable::{Disk, sim::SimDisk},
        ids::Hash,
    };

    /// What never was what it is called, though every check beside it is right, is found by who unpacks.
    #[test]
    fn unpacking_finds_what_checks_can_not() {
        let mut builder = BlockBuilder::default();
        builder.push(ObjectKind::Chunk, Hash::of(b"something else"), b"bytes");
        let bytes = builder.finish(1).expect("compresses");
        let disk = SimDisk::new();
        let file = disk.create("/pack".as_ref()).expect("creates");
        file.write_at(0, &bytes).expect("writes");
        let table = verify_stored(&bytes).expect("its checks are right");
        let block = PackedBlock::of(0, &bytes, table).expect("a block");
        let mut buffer = Vec::new();
        assert_eq!(read(&*file, &block, &mut buffer, false), Ok(()));
        assert!(read(&*file, &block, &mut buffer, true).is_err_and(|why| why.contains("hash")));
    }
}
