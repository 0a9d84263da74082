//! Sparse files: what is a hole in the spool isn't read, and what is zeros becomes a hole.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt},
    },
};

use rustix::{
    fs::{self as sys, SeekFrom},
    io as sysio,
};

/// Zeros of this size and place become a hole.
const PAGE_BYTES: usize = 4096;
const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Reads a file from its start as anybody would, but makes the zeros of its holes itself: the kernel would fill its cache with them.
#[derive(Debug)]
pub struct SparseReader {
    file: File,
    at: u64,
    /// Where the hole or the data ends in which `at` is.
    end: u64,
    is_hole: bool,
}

impl SparseReader {
    /// A file without holes costs one fstat(2) more.
    pub fn new(file: File) -> io::Result<Self> {
        let found = file.metadata()?;
        let may_have_holes = found.blocks() * 512 < found.len();
        Ok(Self { file, at: 0, end: if may_have_holes { 0 } else { u64::MAX }, is_hole: false })
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Finds out what is at `at`; whether there is anything.
    fn look(&mut self) -> io::Result<bool> {
        match sys::seek(&self.file, SeekFrom::Data(self.at)) {
            Ok(data) if data > self.at => (self.is_hole, self.end) = (true, data),
            Ok(_) => (self.is_hole, self.end) = (false, sys::seek(&self.file, SeekFrom::Hole(self.at))?),
            // Nothing but a hole up to the end, if this isn't the end.
            Err(sysio::Errno::NXIO) => (self.is_hole, self.end) = (true, self.file.metadata()?.len()),
            // This file system doesn't tell.
            Err(sysio::Errno::INVAL | sysio::Errno::OPNOTSUPP) => {
                (self.is_hole, self.end) = (false, u64::MAX)
            }
            Err(e) => return Err(e.into()),
        }
        Ok(self.at < self.end)
    }
}

impl Read for SparseReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() || (self.at >= self.end && !self.look()?) {
            return Ok(0);
        }
        let len = into.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let count = if self.is_hole {
            into[..len].fill(0);
            len
        } else {
            self.file.read_at(&mut into[..len], self.at)?
        };
        self.at += count as u64;
        Ok(count)
    }
}

/// Writes all but the pages of zeros, which are left as they are: a new file has holes there. Its size is for the caller to set.
pub fn write_sparsely(file: impl AsFd, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut from = 0;
    while from < bytes.len() {
        let is_zero = |page: &[u8]| *page == ZEROS[..page.len()];
        let kind = is_zero(&bytes[from..bytes.len().min(from + PAGE_BYTES)]);
        let run = bytes[from..].chunks(PAGE_BYTES).take_while(|page| is_zero(page) == kind);
        let to = from + run.map(<[u8]>::len).sum::<usize>();
        if !kind {
            write_all(&file, &bytes[from..to], offset + from as u64)?;
        }
        from = to;
    }
    Ok(())
}

fn write_all(file: impl AsFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match sysio::pwrite(&file, bytes, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => (bytes, at) = (&bytes[count..], at + count as u64),
            Err(sysio::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What reads the same is read, wherever the holes are, and what is written back has them again.
    #[test]
    fn holes_read_as_zeros_and_come_back_as_holes() {
        let dir = tempfile::tempdir().expect("a directory");
        let page = [7; PAGE_BYTES];
        let pieces: [&[(u64, &[u8])]; 5] = [
            &[],
            &[],
            &[(0, b"dense")],
            &[(0, &page), (500_000, b"middle"), (999_990, b"at the end")],
            &[(300_000, &page)],
        ];
        let sizes = [0, 1_000_000, 5, 1_000_000, 900_001];
        for (number, (pieces, size)) in pieces.iter().zip(&sizes).enumerate() {
            let [path, copy] = ["file", "copy"].map(|name| dir.path().join(format!("{name} {number}")));
            let file = File::create_new(&path).expect("made");
            file.set_len(*size).expect("sized");
            pieces.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).expect("written"));
            let expected = fs_err::read(&path).expect("read");
            let mut found = Vec::new();
            let mut reader = SparseReader::new(File::open(&path).expect("opens")).expect("looked at");
            reader.read_to_end(&mut found).expect("read");
            assert!(found == expected, "case {number}");
            let written = File::create_new(&copy).expect("made");
            write_sparsely(&written, &found, 0).expect("written");
            written.set_len(*size).expect("sized");
            assert!(fs_err::read(&copy).expect("read") == expected, "case {number}");
            let blocks = |path| fs_err::metadata(path).expect("there").blocks();
            assert!(blocks(&copy) <= blocks(&path), "case {number}");
        }
    }

    /// Holes are not read: a terabyte of nothing costs no page of the kernel's cache, and no time to speak of until its zeros are asked for.
    #[test]
    fn a_hole_of_a_terabyte_is_one_step() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("made");
        file.write_all_at(b"end", 1 << 40).expect("written");
        let mut reader = SparseReader::new(file).expect("looked at");
        let mut buffer = vec![1; 1 << 16];
        assert_eq!(reader.read(&mut buffer).expect("read"), buffer.len());
        assert!(buffer.iter().all(|byte| *byte == 0));
        assert!(reader.is_hole && reader.end >= (1 << 40) - (1 << 16));
    }
}
