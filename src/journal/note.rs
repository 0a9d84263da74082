//! What a host has noted of a path between two commits of its layer: deletions that the spool alone can't tell of, and what a change is
//! based on.
//!
//! A note is of a path at which the layer's newest commit, or another host's, shows something. It counts only as long as the spool agrees: one of a
//! deletion means nothing while there is something at the path, so that it may be written before the deletion happens.

use crate::ids::Seq;

/// The note of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Deleted from a partial layer, whose committed entry would show otherwise.
    Gone,
    /// Deleted over other hosts' entries: what was committed there and below under this number or a lower one isn't shown.
    Hidden(Seq),
    /// There, and made from, or put in place of, what showed under this number.
    Based(Seq),
}

impl Note {
    /// Whether the path was deleted.
    pub fn is_deleted(self) -> bool {
        !matches!(self, Self::Based(_))
    }

    /// As it is stored: nothing, or a byte and a number.
    pub fn encode(self) -> Vec<u8> {
        let with = |kind: u8, seq: Seq| [&[kind][..], &seq.0.to_be_bytes()].concat();
        match self {
            Self::Gone => Vec::new(),
            Self::Hidden(upto) => with(1, upto),
            Self::Based(on) => with(2, on),
        }
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let Some((kind, number)) = bytes.split_first() else { return Some(Self::Gone) };
        let seq = Seq(u64::from_be_bytes(number.try_into().ok()?));
        match kind {
            1 => Some(Self::Hidden(seq)),
            2 => Some(Self::Based(seq)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_survives_being_stored_and_nothing_else_is_one() {
        for note in [Note::Gone, Note::Hidden(Seq(7)), Note::Based(Seq(u64::MAX))] {
            assert_eq!(Note::parse(&note.encode()), Some(note));
        }
        for bad in [&[0u8][..], &[1, 2], &[3; 9], &[1; 10]] {
            assert_eq!(Note::parse(bad), None);
        }
    }
}
