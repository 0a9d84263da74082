//! Answers to readdirplus that name what is in a directory and say no more of it.
//!
//! The kernel makes no inode of a line whose node is 0, and later asks for those that somebody wants to know more of. So a listing of hundreds of
//! thousands of job dirs makes as many names and no nodes. fuser gives line and node the same number, and a line's must not be 0 (readdir(3)
//! leaves such lines out); so this one answer is written to the kernel here.

use std::{
    io::{self, IoSlice},
    os::fd::OwnedFd,
};

/// linux/fuse.h: `struct fuse_out_header`, `struct fuse_entry_out`, `struct fuse_dirent` without its name.
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 128;
const DIRENT_BYTES: usize = 24;
/// What the kernel has room for at least; fuser doesn't tell how much more it is.
const ANSWER_BYTES: usize = 4096;
/// Of a directory, as in a mode's highest bits.
const DIRECTORY: u32 = 4;
/// The number of a line whose node nobody has looked up yet: any but 0.
const SOME_INODE: u64 = 1;

/// An answer that is being put together.
#[derive(Debug, Default)]
pub(super) struct BareNames(Vec<u8>);

impl BareNames {
    /// Adds a directory's name; `true`: there is no room for it. `next` is where the line after it begins.
    pub(super) fn add(&mut self, name: &[u8], next: u64) -> bool {
        let bytes = (ENTRY_BYTES + DIRENT_BYTES + name.len()).next_multiple_of(8);
        if self.0.len() + bytes > ANSWER_BYTES {
            return true;
        }
        let end = self.0.len() + bytes;
        self.0.resize(self.0.len() + ENTRY_BYTES, 0);
        self.0.extend_from_slice(&SOME_INODE.to_ne_bytes());
        self.0.extend_from_slice(&next.to_ne_bytes());
        self.0.extend_from_slice(&(name.len() as u32).to_ne_bytes());
        self.0.extend_from_slice(&DIRECTORY.to_ne_bytes());
        self.0.extend_from_slice(name);
        self.0.resize(end, 0);
        false
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Answers request `unique`.
    pub(super) fn send(&self, device: &OwnedFd, unique: u64) -> io::Result<()> {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(&((HEADER_BYTES + self.0.len()) as u32).to_ne_bytes());
        header.extend_from_slice(&0i32.to_ne_bytes());
        header.extend_from_slice(&unique.to_ne_bytes());
        rustix::io::writev(device, &[IoSlice::new(&header), IoSlice::new(&self.0)])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_added_until_the_answer_is_full() {
        let mut names = BareNames::default();
        assert!(names.is_empty());
        let mut count = 0;
        while !names.add(b"123456-demo", count + 3) {
            count += 1;
        }
        assert_eq!(names.0.len() % 8, 0);
        assert_eq!((count, names.0.len()), (24, 24 * 168));
        assert!(names.0[..ENTRY_BYTES].iter().all(|byte| *byte == 0), "no node");
        let mut longest = BareNames::default();
        assert!(!longest.add(&[b'x'; 255], 3), "room for any name");
    }
}
