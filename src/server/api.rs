//! What a session needs of a store. All calls block; the session runs them on the blocking pool.

use std::sync::Arc;

use tokio::sync::watch;

pub use crate::store::{NewCommit, NewRetirement, Slots};

use crate::store::Store;

use crate::{
    catalog::{Head, Record},
    chunk::{ChunkParams, ObjectKind, Stretch, hashes_in},
    ids::{Generation, Hash, HostUuid, Seq, StoreUuid, UnitId},
    wire::Lost,
};

/// Why a store says no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreFault {
    /// What the host sent can't be accepted; the store is well.
    #[error("{0}")]
    Unacceptable(String),
    /// There is no room for it now; the store goes on with all else.
    #[error("{0}")]
    Full(String),
    /// The store can't go on: I/O error, damage.
    #[error("{0}")]
    Broken(String),
}

/// A store, as sessions see it.
pub trait StoreApi: Send + Sync + 'static {
    /// Its identity.
    fn uuid(&self) -> StoreUuid;
    /// How its files are cut.
    fn params(&self) -> ChunkParams;
    /// Where its catalog stands.
    fn head(&self) -> Head;
    /// For each hash, whether the object is missing. Objects that were appended count as present, durable or not.
    fn missing(&self, kind: ObjectKind, hashes: &[Hash]) -> Result<Vec<bool>, StoreFault>;
    /// [`StoreApi::missing`] of the chunks of these stretches, with leave to make use of what they say of the files.
    fn cut(&self, stretches: &[Stretch]) -> Result<Vec<bool>, StoreFault> {
        self.missing(ObjectKind::Chunk, &hashes_in(stretches))
    }
    /// Whether this manifest was committed before: then all that it names is here.
    fn manifest_known(&self, manifest: &Hash) -> Result<bool, StoreFault>;
    /// Whether there is room for anything new.
    fn has_room(&self) -> Result<(), StoreFault> {
        Ok(())
    }
    /// Checks a block and appends it; not durable yet.
    fn append_block(&self, encoded: &[u8]) -> Result<(), StoreFault>;
    /// Checks that the layer is here in full, and returns when it is durable. A repeated commit gives the record that it gave before.
    fn commit(&self, commit: NewCommit) -> Result<Record, StoreFault>;
    /// Begins the units' next life, all or none; durable when it returns.
    fn retire(&self, wanted: NewRetirement) -> Result<Record, StoreFault>;
    /// The encoded block that holds an object.
    fn fetch(&self, kind: ObjectKind, hash: &Hash) -> Result<Option<Vec<u8>>, StoreFault>;
    /// At most `max` records after `seq`, in order.
    fn records_after(&self, seq: Seq, max: usize) -> Result<Vec<Record>, StoreFault>;
    /// One record.
    fn record(&self, seq: Seq) -> Result<Option<Record>, StoreFault>;
    /// Puts a snapshot of a running layer in its slot, after the same checks as a commit; not durable.
    fn publish(&self, snapshot: NewCommit) -> Result<(), StoreFault>;
    /// Empties a layer's slot that is of this generation or an earlier one.
    fn withdraw(&self, host: HostUuid, unit: &UnitId, upto: Generation);
    /// The slots of all running layers.
    fn slots(&self) -> &Slots;
    /// The store itself, if it is one on a disk: for checks.
    fn on_disk(&self) -> Option<&Store> {
        None
    }
    /// Notes that somebody has read something of these units; durable when it returns. Units that it doesn't know are passed over.
    fn note_reads(&self, units: &[UnitId]) -> Result<(), StoreFault>;
    /// What of what is committed was lost, at most as much as fits in one message.
    fn lost(&self) -> Result<Lost, StoreFault> {
        Ok(Lost::default())
    }
    /// Tells when more may be known of it.
    fn watch_losses(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
    /// Looks which of it has come back, and makes that durable.
    fn returned(&self) -> Result<(), StoreFault> {
        Ok(())
    }
    /// Tells of each new head.
    fn watch(&self) -> watch::Receiver<Head>;
}

/// Runs `work` on the blocking pool. A panic there is the store's failure, not the process's.
pub(super) async fn on_store<T: Send + 'static>(
    store: &Arc<dyn StoreApi>,
    work: impl FnOnce(&dyn StoreApi) -> Result<T, StoreFault> + Send + 'static,
) -> Result<T, StoreFault> {
    let store = Arc::clone(store);
    let done = tokio::task::spawn_blocking(move || work(&*store)).await;
    done.unwrap_or_else(|e| Err(StoreFault::Broken(format!("a worker failed: {e}"))))
}
