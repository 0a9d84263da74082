//! The records: what changed in the table of nodes and open files.
//!
//! A record is a word that tells its kind and lengths, some words, and a text padded to a whole word. They say what became of the table,
//! not which operation did it, so that a successor needs no knowledge of how its predecessor decided.

use super::memory::LedgerError;
use crate::fs::{Fh, Kind, NodeId};

/// Most words of a record.
const WORDS: usize = 5;
/// Bytes of the longest record without its text.
const HEAD_BYTES: usize = 8 * (1 + WORDS);

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::fs) enum Record<'a> {
    /// A node, looked up so many times.
    Node {
        id: NodeId,
        kind: Kind,
        lookups: u64,
    },
    /// It is no more, with its names.
    Dropped {
        id: NodeId,
    },
    Looked {
        id: NodeId,
    },
    Forgot {
        id: NodeId,
        count: u64,
    },
    Name {
        id: NodeId,
        parent: NodeId,
        name: &'a [u8],
    },
    NoName {
        parent: NodeId,
        name: &'a [u8],
    },
    /// The node is this inode of the spool.
    Local {
        id: NodeId,
        dev: u64,
        ino: u64,
        handle: &'a [u8],
    },
    NoLocal {
        id: NodeId,
    },
    /// A handle was opened by a request; `content` is what a remote one shows, empty for one on the spool's file.
    Open {
        id: NodeId,
        fh: Fh,
        flags: u32,
        request: u64,
        content: &'a [u8],
    },
    Closed {
        id: NodeId,
        fh: Fh,
    },
    /// The kernel's number for the file that backs the node; 0 = none any more.
    Backed {
        id: NodeId,
        backing: u32,
    },
    /// The highest numbers given so far.
    Next {
        node: NodeId,
        backing: u32,
    },
}

const NODE: u8 = 1;
const DROPPED: u8 = 2;
const LOOKED: u8 = 3;
const FORGOT: u8 = 4;
const NAME: u8 = 5;
const NO_NAME: u8 = 6;
const LOCAL: u8 = 7;
const NO_LOCAL: u8 = 8;
const OPEN: u8 = 9;
const CLOSED: u8 = 10;
const BACKED: u8 = 11;
const NEXT: u8 = 12;

impl<'a> Record<'a> {
    fn parts(&self) -> (u8, usize, [u64; WORDS], &'a [u8]) {
        match *self {
            Self::Node { id, kind, lookups } => (NODE, 3, [id, kind_number(kind), lookups, 0, 0], &[]),
            Self::Dropped { id } => (DROPPED, 1, [id, 0, 0, 0, 0], &[]),
            Self::Looked { id } => (LOOKED, 1, [id, 0, 0, 0, 0], &[]),
            Self::Forgot { id, count } => (FORGOT, 2, [id, count, 0, 0, 0], &[]),
            Self::Name { id, parent, name } => (NAME, 2, [id, parent, 0, 0, 0], name),
            Self::NoName { parent, name } => (NO_NAME, 1, [parent, 0, 0, 0, 0], name),
            Self::Local { id, dev, ino, handle } => (LOCAL, 3, [id, dev, ino, 0, 0], handle),
            Self::NoLocal { id } => (NO_LOCAL, 1, [id, 0, 0, 0, 0], &[]),
            Self::Open { id, fh, flags, request, content } => {
                (OPEN, 4, [id, fh, flags.into(), request, 0], content)
            }
            Self::Closed { id, fh } => (CLOSED, 2, [id, fh, 0, 0, 0], &[]),
            Self::Backed { id, backing } => (BACKED, 2, [id, backing.into(), 0, 0, 0], &[]),
            Self::Next { node, backing } => (NEXT, 2, [node, backing.into(), 0, 0, 0], &[]),
        }
    }

    /// The words as bytes, with how many of them count, and the text, which is padded to a whole word.
    pub(super) fn encode(&self) -> ([u8; HEAD_BYTES], usize, &'a [u8]) {
        let (tag, count, words, text) = self.parts();
        debug_assert!(text.len() < 1 << 32, "a name or a manifest's entry");
        let first = u64::from(tag) | (count as u64) << 8 | (text.len() as u64) << 32;
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(&first.to_ne_bytes());
        for (at, word) in words[..count].iter().enumerate() {
            bytes[8 * (1 + at)..][..8].copy_from_slice(&word.to_ne_bytes());
        }
        (bytes, 8 * (1 + count), text)
    }

    /// The first record of `bytes`, and what is behind it.
    pub(in crate::fs) fn decode(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), LedgerError> {
        let (first, rest) = split_word(bytes)?;
        let (tag, count) = (first as u8, (first >> 8 & 0xff) as usize);
        let text_len = (first >> 32) as usize;
        if count > WORDS {
            return Err(LedgerError::Damaged);
        }
        let mut words = [0; WORDS];
        let mut rest = rest;
        for word in &mut words[..count] {
            (*word, rest) = split_word(rest)?;
        }
        let (padded, rest) =
            rest.split_at_checked(text_len.next_multiple_of(8)).ok_or(LedgerError::Damaged)?;
        let [id, second, third, fourth, _] = words;
        let text = &padded[..text_len];
        let record = match tag {
            NODE => Self::Node { id, kind: kind_of(second)?, lookups: third },
            DROPPED => Self::Dropped { id },
            LOOKED => Self::Looked { id },
            FORGOT => Self::Forgot { id, count: second },
            NAME => Self::Name { id, parent: second, name: text },
            NO_NAME => Self::NoName { parent: id, name: text },
            LOCAL => Self::Local { id, dev: second, ino: third, handle: text },
            NO_LOCAL => Self::NoLocal { id },
            OPEN => Self::Open { id, fh: second, flags: third as u32, request: fourth, content: text },
            CLOSED => Self::Closed { id, fh: second },
            BACKED => Self::Backed { id, backing: second as u32 },
            NEXT => Self::Next { node: id, backing: second as u32 },
            _ => return Err(LedgerError::Damaged),
        };
        Ok((record, rest))
    }
}

fn split_word(bytes: &[u8]) -> Result<(u64, &[u8]), LedgerError> {
    let (word, rest) = bytes.split_first_chunk::<8>().ok_or(LedgerError::Damaged)?;
    Ok((u64::from_ne_bytes(*word), rest))
}

fn kind_number(kind: Kind) -> u64 {
    match kind {
        Kind::File => 1,
        Kind::Dir => 2,
        Kind::Symlink => 3,
        Kind::Fifo => 4,
        Kind::Socket => 5,
        Kind::CharDevice => 6,
        Kind::BlockDevice => 7,
    }
}

fn kind_of(number: u64) -> Result<Kind, LedgerError> {
    Ok(match number {
        1 => Kind::File,
        2 => Kind::Dir,
        3 => Kind::Symlink,
        4 => Kind::Fifo,
        5 => Kind::Socket,
        6 => Kind::CharDevice,
        7 => Kind::BlockDevice,
        _ => return Err(LedgerError::Damaged),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_comes_back() {
        let long = [b'n'; 255];
        let records = [
            Record::Node { id: 1 << 60, kind: Kind::BlockDevice, lookups: u64::MAX },
            Record::Dropped { id: 2 },
            Record::Looked { id: 3 },
            Record::Forgot { id: 3, count: 1 << 40 },
            Record::Name { id: 4, parent: 5, name: &long },
            Record::NoName { parent: 5, name: b"x" },
            Record::Local { id: 6, dev: 7, ino: 8, handle: b"handle" },
            Record::NoLocal { id: 6 },
            Record::Open { id: 6, fh: 9, flags: 0o2, request: 10, content: &long },
            Record::Closed { id: 6, fh: 9 },
            Record::Backed { id: 6, backing: 11 },
            Record::Next { node: 12, backing: 13 },
        ];
        let mut bytes = Vec::new();
        for record in &records {
            let (head, len, text) = record.encode();
            bytes.extend_from_slice(&head[..len]);
            bytes.extend_from_slice(text);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        let mut rest = &bytes[..];
        for record in &records {
            let (found, after) = Record::decode(rest).expect("a record");
            assert_eq!(found, *record);
            rest = after;
        }
        assert!(rest.is_empty());
        assert!(Record::decode(&bytes[..20]).is_err(), "cut short");
        assert!(Record::decode(&[99, 0, 0, 0, 0, 0, 0, 0]).is_err(), "unknown");
    }
}
