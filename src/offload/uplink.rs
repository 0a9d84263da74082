//! The store as uploads need it: six questions. The connection answers them in the program, a map in memory in tests.

use std::{future::Future, pin::Pin};

use crate::{
    catalog::Record,
    chunk::{ObjectKind, Stretch},
    ids::Hash,
    wire::{CommitRequest, PublishRequest},
};

/// Why the store gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UplinkError {
    /// The session ended. Blocks that no commit followed may be lost: begin again with an offer.
    #[error("not connected: {0}")]
    Down(String),
    /// The store refused the commit, and why.
    #[error("the store refused: {0}")]
    Rejected(String),
    /// No answer in time.
    #[error("the store didn't answer in time")]
    Timeout,
}

/// An answer to come.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, UplinkError>> + Send + 'a>>;

/// A connection to a store.
pub trait Uplink: Send + Sync {
    /// Whether the store holds this manifest and everything that it names.
    fn offer(&self, manifest: Hash) -> Answer<'_, bool>;
    /// For each object, whether the store lacks it. At most [`crate::limits::HASHES_PER_ASK`] at once.
    fn missing(&self, kind: ObjectKind, hashes: Vec<Hash>) -> Answer<'_, Vec<bool>>;
    /// Tells how files are cut; for each chunk, whether the store lacks it. Of as many chunks at once.
    fn cut(&self, stretches: Vec<Stretch>) -> Answer<'_, Vec<bool>>;
    /// Sends a block; comes back when the next one may be sent.
    fn send_block(&self, block: Vec<u8>) -> Answer<'_, ()>;
    /// Enters a layer in the catalog; comes back when that is durable.
    fn commit(&self, request: CommitRequest) -> Answer<'_, Record>;
    /// Shows a running layer to other hosts, or takes back what is shown.
    fn publish(&self, request: PublishRequest) -> Answer<'_, ()>;
}
