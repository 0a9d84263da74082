//! What can go wrong in the journal.

use std::path::PathBuf;

use super::record::State;
use crate::{
    ids::{Generation, Hash, HostUuid, Seq, StoreUuid, UnitId},
    manifest::ManifestError,
};

/// Why the journal didn't do it. After any of these but [`Self::Database`] and [`Self::Io`] it is as it was before and usable.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has the state directory.
    #[error("{}: another resultsfs uses this state directory", dir.display())]
    Locked { dir: PathBuf },
    /// The file isn't a journal, or isn't one any more.
    #[error(
        "{}: the journal is damaged ({why}). `resultsfs verify --local --repair` puts it aside: the host keeps its identity, what is committed comes \
         back from the store's catalog, and what is not is found again in the spool",
        path.display()
    )]
    Damaged { path: PathBuf, why: String },
    /// Written by a newer program.
    #[error("{}: journal of version {version}; this program knows {}", path.display(), super::db::VERSION)]
    Version { path: PathBuf, version: u32 },
    /// `host` was copied from elsewhere, or the journal was.
    #[error(
        "{}: the file says this is host {file}, the journal beside it belongs to {journal}. Move away the one that doesn't belong here",
        path.display()
    )]
    OtherHost { path: PathBuf, file: HostUuid, journal: HostUuid },
    /// A file of the state directory.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The database refused. After a failed write every later one fails, too, until the daemon starts anew.
    #[error("{}: {source}", path.display())]
    Database { path: PathBuf, source: Box<redb::Error> },
    /// A transition that the unit's state doesn't allow.
    #[error("{unit}: can't {wanted} a unit that is {}", state.map_or("not in the journal", State::name))]
    Illegal { unit: UnitId, wanted: &'static str, state: Option<State> },
    /// The unit has moved on since the caller looked.
    #[error("{unit}: {wanted} of generation {asked} is stale: the unit is {} in generation {now}", state.name())]
    Stale { unit: UnitId, wanted: &'static str, asked: Generation, now: Generation, state: State },
    /// The catalog record isn't of this layer.
    #[error("{unit}: catalog record {seq} is of another {what}")]
    OtherRecord { unit: UnitId, seq: Seq, what: &'static str },
    /// The bytes aren't the manifest that they should be.
    #[error("manifest {hash}: {source}")]
    Manifest { hash: Hash, source: ManifestError },
    /// The bytes hash to something else.
    #[error("manifest {hash}: the bytes hash to {actual}")]
    OtherManifest { hash: Hash, actual: Hash },
}

/// Why records weren't taken into the replica.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The record doesn't follow the replica's head: records are missing, or the store's past is another one.
    #[error("catalog record {got} doesn't follow the replica's head {have}")]
    Gap { have: Seq, got: Seq },
    /// The replica is of another store.
    #[error("the replica is of store {have}, the records are of {got}")]
    OtherStore { have: StoreUuid, got: StoreUuid },
    /// A layer's generations must rise.
    #[error("catalog record {seq} takes {unit} from generation {have} to {got}")]
    Generation { seq: Seq, unit: UnitId, have: Generation, got: Generation },
    /// A layer of a life of its unit that no record has ended.
    #[error("catalog record {seq} is of a life of {unit} that the catalog doesn't know")]
    Incarnation { seq: Seq, unit: UnitId },
    /// The database refused.
    #[error(transparent)]
    Journal(#[from] JournalError),
}
