//! What retention enters in the catalog: prunes, what is undeleted of them, and what is given up for good (`docs/format.md`, "Prune").

use minicbor::{Decode, Encode};

use crate::ids::{Incarnation, UnitId};

/// Units whose paths are free again, as with a [`super::Retirement`]. What was committed of them may be given up when the time of grace is over.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Prune {
    /// Who asked for it: a user at the store.
    #[n(0)]
    pub by: String,
    /// By which rule, for people.
    #[n(1)]
    pub rule: String,
    #[n(2)]
    pub units: Vec<UnitId>,
}

/// Lives that have ended and are the present ones of their units again.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Undelete {
    #[n(0)]
    pub by: String,
    #[n(1)]
    pub lives: Vec<UnitLife>,
}

/// Pruned lives whose commits before this record are given up: nothing that only they name need be there any more.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Purge {
    #[n(0)]
    pub by: String,
    #[n(1)]
    pub lives: Vec<UnitLife>,
}

/// One life of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct UnitLife {
    #[n(0)]
    pub unit: UnitId,
    #[n(1)]
    pub incarnation: Incarnation,
}

impl AsRef<UnitId> for UnitLife {
    fn as_ref(&self) -> &UnitId {
        &self.unit
    }
}
