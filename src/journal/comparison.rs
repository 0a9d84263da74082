//! What the store may have lost: what the journal calls committed, compared with the catalog.
//!
//! That is done once a session, when the replica has come up to where the store stood at its beginning. Only what was committed before the session
//! counts: what is answered in it is followed a moment later, and isn't lost for not being there yet.

use super::{Journal, UnitRecord};
use crate::{
    catalog::Head,
    ids::{Generation, UnitId},
};

/// A comparison that waits for the replica.
#[derive(Debug)]
pub struct Comparison {
    target: Head,
    /// What the journal called committed at the beginning and the replica didn't have.
    unseen: Vec<(UnitId, Generation)>,
}

impl Comparison {
    /// Of what is committed by now with a store that stands at `target`. Before anything can be committed in the session.
    pub fn begin(journal: &Journal, target: Head) -> Self {
        let units = journal.units();
        let unseen = units.into_iter().filter(|record| !is_seen(journal, record));
        let unseen = unseen.filter_map(|record| Some((record.unit, record.committed?.generation))).collect();
        Self { target, unseen }
    }

    /// Whether the replica has come up to where the store stood.
    pub fn is_due(&self, journal: &Journal) -> bool {
        journal.head().is_some_and(|(_, head)| head.seq >= self.target.seq)
    }

    /// Layers that the catalog doesn't know. Once it is due.
    pub fn lost(self, journal: &Journal) -> Vec<UnitRecord> {
        let unseen = self.unseen.into_iter();
        let is_lost = |record: &UnitRecord, generation: Generation| {
            let is_same =
                record.committed.as_ref().is_none_or(|committed| committed.generation == generation);
            is_same && !is_seen(journal, record)
        };
        unseen
            .filter_map(|(unit, generation)| journal.get(&unit).filter(|record| is_lost(record, generation)))
            .collect()
    }
}

/// Whether the replica has what the journal calls committed of a layer.
fn is_seen(journal: &Journal, record: &UnitRecord) -> bool {
    record.committed.as_ref().is_none_or(|committed| {
        let layer = journal.layer_of(record);
        layer.is_some_and(|layer| layer.generation >= committed.generation)
    })
}
