//! Snapshots: what the store holds of units that still run. Not in the catalog: each is one replaceable slot a layer.

use minicbor::{Decode, Encode};

use crate::{
    cbor,
    ids::{Generation, Hash, HostUuid, Incarnation, Seq, UnitId},
    limits,
};

/// The last published state of a host's running layer. Everything that its manifest names is in the store, durable or not.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Snapshot {
    #[n(0)]
    pub host: HostUuid,
    /// The host's name when it published.
    #[n(1)]
    pub host_name: String,
    #[n(2)]
    pub unit: UnitId,
    /// The one that the layer will have when it is committed.
    #[n(3)]
    pub generation: Generation,
    #[n(4)]
    pub manifest: Hash,
    /// The store's time of this snapshot, ms since the epoch.
    #[n(5)]
    pub time_ms: u64,
    /// The same of the first snapshot of this generation.
    #[n(6)]
    pub begun_ms: u64,
    /// Sum of its regular files' sizes.
    #[n(7)]
    pub bytes: u64,
    /// Entries in its manifest.
    #[n(8)]
    pub entries: u64,
    /// The unit's life that the layer is of.
    #[n(9)]
    pub incarnation: Incarnation,
}

impl Snapshot {
    /// The number of what it alone says.
    pub fn seq(&self) -> Seq {
        Seq::live(self.begun_ms)
    }
}

/// What became of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum SnapshotChange {
    /// It holds this.
    #[n(0)]
    Set(#[n(0)] Snapshot),
    /// It is empty: the layer was committed, or its unit is no more.
    #[n(1)]
    Gone(#[n(0)] HostUuid, #[n(1)] UnitId),
}

/// A part of what a follower lacks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SnapshotChanges {
    /// The version up to which these bring the follower.
    #[n(0)]
    pub upto: u64,
    /// The follower begins anew with these parts, at this version: what they don't name is gone.
    #[n(1)]
    pub started: Option<u64>,
    /// Nothing more follows until something changes.
    #[n(2)]
    pub is_all: bool,
    #[cbor(n(3), decode_with = "cbor::at_most::<{ limits::SNAPSHOTS_PER_PUSH }, _, _>")]
    pub changes: Vec<SnapshotChange>,
}
