//! What goes wrong in a store.

use std::{io, path::PathBuf};

use crate::{
    chunk::{ObjectKind, block::BlockError},
    ids::{Generation, Hash, UnitId},
    manifest::ManifestError,
};

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("store {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// The directory holds something else.
    #[error("{} is not a store: {why}", dir.display())]
    NotAStore { dir: PathBuf, why: String },
    /// It was made by a newer program, with features that this one doesn't know.
    #[error("store {} needs features that this program doesn't know: {features}", dir.display())]
    Features { dir: PathBuf, features: String },
    /// A file isn't what was once written and synced; nothing was changed.
    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    /// Disk trouble.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The derived index failed.
    #[error(
        "the store's index failed: {0}; it may be deleted while the store is closed, and is then rebuilt"
    )]
    Index(#[from] redb::Error),
    /// An earlier write or sync failed, so that nothing more is written until the store is opened again.
    #[error("an earlier write to the store failed; it must be opened again")]
    PreviousIo,

    /// What was sent isn't a block, or its objects aren't what they are called.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A block followed by something else.
    #[error("{sent} bytes sent for a block of {block}")]
    BlockLength { sent: usize, block: usize },
    /// A manifest that breaks a rule.
    #[error("manifest {hash}: {error}")]
    Manifest { hash: Hash, error: ManifestError },
    /// A recipe that isn't one or doesn't make the content that it is named by.
    #[error("recipe of content {hash}: {why}")]
    Recipe { hash: Hash, why: String },
    /// A commit needs an object that isn't here.
    #[error("{kind:?} {hash} is missing")]
    Missing { kind: ObjectKind, hash: Hash },
    /// A manifest or recipe gives an object another size than it has.
    #[error("{kind:?} {hash} has {actual} bytes, not {stated}")]
    Size { kind: ObjectKind, hash: Hash, stated: u64, actual: u64 },
    /// The layer has this or a later generation already, with other content.
    #[error("{unit}: generation {sent} comes after generation {last} was committed")]
    Generation { unit: UnitId, sent: Generation, last: Generation },
    /// A layer of a life of its unit that this catalog doesn't know.
    #[error(
        "{unit}: no incarnation of it began with record {incarnation}: what ended then was undeleted, or this store has another history"
    )]
    Incarnation { unit: UnitId, incarnation: u64 },
    /// A snapshot of a layer of an earlier life: nothing of it shows.
    #[error("{unit}: was retired while it ran; what it still brings is kept, and not shown")]
    Retired { unit: UnitId },
    /// A unit isn't, or isn't any more, as whoever wants to retire it has seen it.
    #[error("{unit}: {why}")]
    NotRetired { unit: UnitId, why: String },
    /// A unit's earlier life can't be brought back.
    #[error("{unit}: {why}")]
    NotUndeleted { unit: UnitId, why: String },
    /// A unit's life can't be given up.
    #[error("{unit}: {why}")]
    NotPurged { unit: UnitId, why: String },
    /// More running units than a host, or all of them together, may show.
    #[error("there are too many snapshots of running units")]
    TooManySnapshots,
    /// There is no room for what isn't here yet. What is here can be read, and what needs nothing new be committed.
    #[error(
        "the results host's disk is full: {} MiB are free in {}, and {} MiB are kept in reserve. \
         It goes on when there is more room: `resultsfs gc` on the results host reclaims what isn't needed (after `prune`, more), \
         or give it a larger disk", free >> 20, dir.display(), reserve >> 20
    )]
    Full { dir: PathBuf, free: u64, reserve: u64 },
    /// What a committed layer needs can't be told.
    #[error(
        "what is committed can't be read whole, so that nobody can say what is needed: {why}. Nothing was reclaimed; \
         `resultsfs verify --store` names what is wrong, and its repair"
    )]
    NotMarked { why: Box<StoreError> },
    /// Another `gc` is under way.
    #[error("a gc is under way already")]
    Collecting,
    /// There was no moment in which nobody relied on what was to go.
    #[error(
        "the store was too busy for {waited_s} s to decide what goes; nothing was reclaimed, try again later"
    )]
    Busy { waited_s: u64 },
    /// A name beyond its limit.
    #[error("{0} is empty or too long")]
    Text(&'static str),
}

impl StoreError {
    /// The same for another who waits.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Full { dir, free, reserve } => {
                Self::Full { dir: dir.clone(), free: *free, reserve: *reserve }
            }
            _ => Self::PreviousIo,
        }
    }

    /// Whether the caller's input is to blame. Otherwise the store is, and a retry elsewhere or later may work.
    pub fn is_callers(&self) -> bool {
        match self {
            Self::Block(_)
            | Self::BlockLength { .. }
            | Self::Manifest { .. }
            | Self::Recipe { .. }
            | Self::Missing { .. }
            | Self::Size { .. }
            | Self::Generation { .. }
            | Self::Incarnation { .. }
            | Self::Retired { .. }
            | Self::NotRetired { .. }
            | Self::NotUndeleted { .. }
            | Self::NotPurged { .. }
            | Self::TooManySnapshots
            | Self::Text(_) => true,
            Self::Locked(_)
            | Self::NotAStore { .. }
            | Self::Features { .. }
            | Self::Damaged { .. }
            | Self::Io(_)
            | Self::Index(_)
            | Self::Full { .. }
            | Self::NotMarked { .. }
            | Self::Collecting
            | Self::Busy { .. }
            | Self::PreviousIo => false,
        }
    }
}

/// Any of the database's errors as ours.
pub(super) fn index_error(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Index(error.into())
}
