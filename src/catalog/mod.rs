//! Records of the store's catalog: what was committed, in which order, hash-chained.
//!
//! Only the format; the file is [`crate::store`]'s, the host's replica [`crate::journal`]'s. Each record carries
//! the chain's hash before it, so that two parties who agree on one number and one hash agree on all that came before.

mod parts;
mod prune;
mod snapshot;

use minicbor::{Decode, Encode};

pub use parts::parts;
pub use prune::{Prune, Purge, Undelete, UnitLife};
pub use snapshot::{Snapshot, SnapshotChange, SnapshotChanges};

use crate::ids::{Generation, Hash, HostUuid, Incarnation, Seq, UnitId};

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Record {
    #[n(0)]
    pub seq: Seq,
    /// The chain's hash before this record: [`Record::link`] of the one before, or [`genesis`].
    #[n(1)]
    pub prev: Hash,
    /// The store's time of the commit, ms since the epoch.
    #[n(2)]
    pub time_ms: u64,
    #[n(3)]
    pub body: RecordBody,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RecordBody {
    /// A host's layer of a unit, as of one generation, is in the store.
    #[n(0)]
    Commit(#[n(0)] Commit),
    /// Units begin a new life: what was committed of them isn't shown any more, and stays in the store.
    #[n(1)]
    Retire(#[n(0)] Retirement),
    /// The same, by a rule of retention: what isn't undeleted in time may be given up.
    #[n(2)]
    Prune(#[n(0)] Prune),
    /// What was pruned or retired shows again.
    #[n(3)]
    Undelete(#[n(0)] Undelete),
    /// What was pruned is given up.
    #[n(4)]
    Purge(#[n(0)] Purge),
    /// Packs of which nothing is needed any more, or what is needed is elsewhere, are gone from the store.
    #[n(5)]
    Reclaim(#[n(0)] Reclaimed),
}

/// Packs that are gone by right: the store's own affair, which nobody else need look at.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Reclaimed {
    #[n(0)]
    pub packs: Vec<u32>,
}

/// Units whose paths are free again.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Retirement {
    /// Who asked for it.
    #[n(0)]
    pub host: HostUuid,
    /// Its name then.
    #[n(1)]
    pub host_name: String,
    #[n(2)]
    pub units: Vec<UnitId>,
}

/// A layer's revision, durable in the store.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Commit {
    #[n(0)]
    pub host: HostUuid,
    /// The host's name when it committed.
    #[n(1)]
    pub host_name: String,
    #[n(2)]
    pub unit: UnitId,
    #[n(3)]
    pub generation: Generation,
    #[n(4)]
    pub manifest: Hash,
    /// It never reached its terminal marker and was taken as it stood (DESIGN: lost).
    #[n(5)]
    pub lost: bool,
    /// Sum of its regular files' sizes.
    #[n(6)]
    pub bytes: u64,
    /// Entries in its manifest.
    #[n(7)]
    pub entries: u64,
    /// Who made a dead host's last snapshot this commit: nobody if the host committed it itself.
    #[n(8)]
    pub adopted_by: Option<String>,
    /// The unit's life that the layer is of; the host's, when it was made.
    #[n(9)]
    pub incarnation: Incarnation,
}

/// Where a catalog stands: its last record's number and the chain's hash after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Head {
    #[n(0)]
    pub seq: Seq,
    #[n(1)]
    pub chain: Hash,
}

impl Head {
    /// An empty catalog's head.
    pub fn genesis(store: crate::ids::StoreUuid) -> Self {
        Self { seq: Seq(0), chain: Hash(blake3::derive_key("resultsfs catalog genesis v1", &store.0)) }
    }

    /// The head after `record`, if `record` is the one that follows.
    pub fn follow(&self, record: &Record) -> Option<Head> {
        (record.seq == self.seq.next() && record.prev == self.chain).then(|| record.link())
    }
}

impl Record {
    /// Its encoding, which is what is hashed.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("encoding into a Vec can't fail")
    }

    /// The catalog's head after it.
    pub fn link(&self) -> Head {
        Head { seq: self.seq, chain: Hash::of(&self.encode()) }
    }

    /// The commit it is, if it is one.
    pub fn commit(&self) -> Option<&Commit> {
        match &self.body {
            RecordBody::Commit(commit) => Some(commit),
            _ => None,
        }
    }

    /// The packs that are gone with it.
    pub fn reclaimed(&self) -> &[u32] {
        match &self.body {
            RecordBody::Reclaim(reclaimed) => &reclaimed.packs,
            _ => &[],
        }
    }

    /// The units whose next life begins with it.
    pub fn retired(&self) -> &[UnitId] {
        match &self.body {
            RecordBody::Retire(retirement) => &retirement.units,
            RecordBody::Prune(prune) => &prune.units,
            _ => &[],
        }
    }

    /// The lives that are their units' present ones again.
    pub fn undeleted(&self) -> &[UnitLife] {
        match &self.body {
            RecordBody::Undelete(undelete) => &undelete.lives,
            _ => &[],
        }
    }

    /// The lives of which every commit before it is given up.
    pub fn purged(&self) -> &[UnitLife] {
        match &self.body {
            RecordBody::Purge(purge) => &purge.lives,
            _ => &[],
        }
    }

    /// Whether it says anything of this unit.
    pub fn names(&self, unit: &UnitId) -> bool {
        let mut lives = self.undeleted().iter().chain(self.purged());
        self.commit().is_some_and(|commit| commit.unit == *unit)
            || self.retired().contains(unit)
            || lives.any(|life| life.unit == *unit)
    }
}
