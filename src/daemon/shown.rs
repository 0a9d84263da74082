//! How far the mount shows the catalog: what is in the replica, once the kernel was told to forget what it knew before.
//!
//! It is what `status` says, so that a script which waits for a number there finds all that was committed up to it in every listing from then on.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use crate::ids::Seq;

/// Batches of records that the kernel isn't told of yet, by their first number. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct Shown(Arc<Mutex<BTreeSet<Seq>>>);

/// One batch; dropped when the kernel was told of it.
#[derive(Debug)]
pub(super) struct Telling {
    shown: Shown,
    first: Seq,
}

impl Shown {
    /// Records from `first` on are about to go into the replica.
    pub fn begin(&self, first: Seq) -> Telling {
        self.0.lock().expect("no code panics under this lock").insert(first);
        Telling { shown: self.clone(), first }
    }

    /// Up to which number it shows, if the replica ended at `head` a moment ago.
    pub fn upto(&self, head: Seq) -> Seq {
        let telling = self.0.lock().expect("no code panics under this lock");
        telling.first().map_or(head, |first| head.min(Seq(first.0.saturating_sub(1))))
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.shown.0.lock().expect("no code panics under this lock").remove(&self.first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_shows_when_everything_up_to_it_was_told() {
        let shown = Shown::default();
        assert_eq!(shown.upto(Seq(4)), Seq(4));
        let (older, younger) = (shown.begin(Seq(5)), shown.begin(Seq(8)));
        assert_eq!(shown.upto(Seq(4)), Seq(4), "the replica hasn't taken them yet");
        assert_eq!(shown.upto(Seq(9)), Seq(4));
        drop(younger);
        assert_eq!(shown.upto(Seq(9)), Seq(4));
        drop(older);
        assert_eq!(shown.upto(Seq(9)), Seq(9));
    }
}
