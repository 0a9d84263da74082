//! Files with holes: what is all zeros isn't written.

use std::{io, os::fd::AsFd};

/// Zeros of this size and place become a hole.
const PAGE_BYTES: usize = 4096;
const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Writes `bytes` at `offset` of a new file, runs of other than zero pages each at once. The caller sets the file's length.
pub fn write_sparsely(file: impl AsFd, bytes: &[u8], offset: u64) -> io::Result<()> {
    let file = file.as_fd();
    let is_hole = |page: &[u8]| *page == ZEROS[..page.len()];
    let mut rest = bytes;
    while !rest.is_empty() {
        let holes = rest.chunks(PAGE_BYTES).take_while(|page| is_hole(page)).map(<[u8]>::len).sum();
        rest = &rest[holes..];
        let data: usize = rest.chunks(PAGE_BYTES).take_while(|page| !is_hole(page)).map(<[u8]>::len).sum();
        let (mut run, after) = rest.split_at(data);
        let mut at = offset + (bytes.len() - rest.len()) as u64;
        while !run.is_empty() {
            match rustix::io::pwrite(file, run, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(wrote) => (run, at) = (&run[wrote..], at + wrote as u64),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn zeros_take_no_room_and_everything_else_arrives() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        let file = std::fs::File::create_new(&path).expect("made");
        let mut bytes = vec![0; 1 << 20];
        bytes[5000] = 1;
        bytes[500_000..510_001].fill(7);
        bytes[(1 << 20) - 1] = 9;
        for (piece, at) in bytes.chunks(100_000).zip((4096..).step_by(100_000)) {
            write_sparsely(&file, piece, at).expect("written");
        }
        file.set_len(4096 + (1 << 20)).expect("its length");
        let mut read = vec![1; 1 << 20];
        file.read_exact_at(&mut read, 4096).expect("read");
        assert!(read == bytes);
        assert!(file.metadata().expect("stat").blocks() * 512 < 200_000, "{:?}", file.metadata());
        let empty = std::fs::File::create_new(dir.path().join("e")).expect("made");
        write_sparsely(&empty, &bytes[600_000..900_000], 0).expect("written");
        assert_eq!(empty.metadata().expect("stat").len(), 0, "nothing was written");
    }
}
