//! The store on disk as sessions see it.

use std::{path::Path, sync::Arc};

use tokio::sync::watch;

use super::{NewCommit, NewRetirement, OpenStoreError, Slots, StoreApi, StoreFault};
use crate::{
    catalog::{Head, Record},
    chunk::{ChunkParams, ObjectKind, Stretch},
    ids::{Generation, Hash, HostUuid, Seq, StoreUuid, UnitId},
    limits,
    store::{Store, StoreError, StoreOptions},
    wire::Lost,
};

/// Where whoever has the store open is asked, in the store's directory.
pub const CONTROL_SOCKET: &str = "control.sock";

/// Any of these says that there is a store, whole or damaged.
const STORE_FILES: [&str; 5] = ["store", "store.copy", "catalog", "catalog.copy", "packs"];

/// Opens the store in `dir` under its lock; makes it where there is none.
pub fn open_store(dir: &Path, options: StoreOptions) -> Result<Arc<dyn StoreApi>, OpenStoreError> {
    match Store::open(dir, options) {
        Ok(store) => Ok(store),
        Err(StoreError::Locked(_)) => Err(OpenStoreError::Locked),
        Err(other) => Err(OpenStoreError::Failed(other.to_string())),
    }
}

/// Whether there is, or was, a store in `dir`.
pub fn has_store(dir: &Path) -> bool {
    STORE_FILES.iter().any(|name| dir.join(name).exists())
}

/// The same of a store that is there. One that comes and goes with its sessions makes none: what is configured may be wrong, or its disk not
/// mounted, and hosts would follow an empty one.
pub fn open_store_there(dir: &Path, options: StoreOptions) -> Result<Arc<dyn StoreApi>, OpenStoreError> {
    match has_store(dir) {
        true => open_store(dir, options),
        false => Err(OpenStoreError::Failed(format!(
            "there is no store in {}; the daemon (`resultsfs serve`) makes it when it is started for the first time",
            dir.display()
        ))),
    }
}

fn fault(error: StoreError) -> StoreFault {
    if let StoreError::Full { .. } = error {
        StoreFault::Full(error.to_string())
    } else if error.is_callers() {
        StoreFault::Unacceptable(error.to_string())
    } else {
        tracing::error!("store: {error}");
        StoreFault::Broken(error.to_string())
    }
}

impl StoreApi for Store {
    fn uuid(&self) -> StoreUuid {
        Store::uuid(self)
    }

    fn params(&self) -> ChunkParams {
        Store::params(self)
    }

    fn head(&self) -> Head {
        Store::head(self)
    }

    fn missing(&self, kind: ObjectKind, hashes: &[Hash]) -> Result<Vec<bool>, StoreFault> {
        Store::missing(self, kind, hashes).map_err(fault)
    }

    fn cut(&self, stretches: &[Stretch]) -> Result<Vec<bool>, StoreFault> {
        Store::cut(self, stretches).map_err(fault)
    }

    fn manifest_known(&self, manifest: &Hash) -> Result<bool, StoreFault> {
        Store::manifest_known(self, manifest).map_err(fault)
    }

    fn has_room(&self) -> Result<(), StoreFault> {
        self.room().map_err(fault)
    }

    fn append_block(&self, encoded: &[u8]) -> Result<(), StoreFault> {
        Store::append_block(self, encoded).map_err(fault)
    }

    fn commit(&self, commit: NewCommit) -> Result<Record, StoreFault> {
        Store::commit(self, commit).map_err(fault)
    }

    fn retire(&self, wanted: NewRetirement) -> Result<Record, StoreFault> {
        Store::retire(self, wanted).map_err(fault)
    }

    fn fetch(&self, kind: ObjectKind, hash: &Hash) -> Result<Option<Vec<u8>>, StoreFault> {
        Store::fetch(self, kind, hash).map_err(fault)
    }

    fn records_after(&self, seq: Seq, max: usize) -> Result<Vec<Record>, StoreFault> {
        Store::records_after(self, seq, max).map_err(fault)
    }

    fn record(&self, seq: Seq) -> Result<Option<Record>, StoreFault> {
        Store::record(self, seq).map_err(fault)
    }

    fn publish(&self, snapshot: NewCommit) -> Result<(), StoreFault> {
        Store::publish(self, snapshot).map(drop).map_err(fault)
    }

    fn withdraw(&self, host: HostUuid, unit: &UnitId, upto: Generation) {
        Store::withdraw(self, host, unit, upto);
    }

    fn slots(&self) -> &Slots {
        Store::slots(self)
    }

    fn on_disk(&self) -> Option<&Store> {
        Some(self)
    }

    /// A store that can't note it goes on with all else, and the host tells it again.
    fn note_reads(&self, units: &[UnitId]) -> Result<(), StoreFault> {
        Store::note_reads(self, units).map_err(|e| StoreFault::Full(format!("reads can't be noted: {e}")))
    }

    fn lost(&self) -> Result<Lost, StoreFault> {
        let (manifests, objects) = Store::lost(self, limits::HASHES_PER_ASK).map_err(fault)?;
        Ok(Lost { manifests, objects })
    }

    fn watch_losses(&self) -> watch::Receiver<u64> {
        Store::watch_losses(self)
    }

    fn returned(&self) -> Result<(), StoreFault> {
        Store::returned(self).map_err(fault)
    }

    fn watch(&self) -> watch::Receiver<Head> {
        Store::watch(self)
    }
}
