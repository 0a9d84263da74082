//! Where the parts meet: the connection as the engine and the cache want it, the view as the engine wants it.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::{
    cache::{BlockSource, Cache, FetchError},
    catalog::Record,
    chunk::{ChunkParams, ObjectKind},
    fs::view::View,
    ids::{Hash, RelPath},
    journal::Journal,
    offload::{Answer, Before, Contents, FetchFailure, Union, Uplink, UplinkError},
    wire::{
        CommitRequest, Hello, PROTOCOL_VERSION,
        link::{Link, LinkError},
    },
};

/// The greeting, made anew for each session since the replica moves on.
pub fn hello(
    journal: Arc<Journal>,
    host_name: String,
    settings: Vec<String>,
) -> Arc<dyn Fn() -> Hello + Send + Sync> {
    Arc::new(move || Hello {
        version: PROTOCOL_VERSION,
        host: journal.host(),
        host_name: host_name.clone(),
        known: journal.head(),
        settings: settings.clone(),
    })
}

/// Blocks from the store, for callers on ordinary threads.
pub struct LinkSource {
    link: Link,
    runtime: Handle,
}

impl LinkSource {
    /// Fetches over `link` on `runtime`.
    pub fn new(link: Link, runtime: Handle) -> Self {
        Self { link, runtime }
    }
}

impl BlockSource for LinkSource {
    fn fetch(&self, kind: ObjectKind, hash: &Hash) -> Result<Vec<u8>, FetchError> {
        match self.runtime.block_on(self.link.fetch(kind, *hash)) {
            Ok(Some(block)) => Ok(block),
            Ok(None) => Err(FetchError::NotFound),
            Err(LinkError::Timeout) => Err(FetchError::Timeout),
            Err(other) => Err(FetchError::Unreachable(other.to_string())),
        }
    }
}

/// The connection as the engine's way to the store.
pub struct LinkUp(pub Link);

fn uplink_error(error: LinkError) -> UplinkError {
    match error {
        LinkError::Rejected(why) => UplinkError::Rejected(why),
        LinkError::Timeout => UplinkError::Timeout,
        LinkError::Down(why) | LinkError::NotConnected(why) => UplinkError::Down(why),
    }
}

impl Uplink for LinkUp {
    fn offer(&self, manifest: Hash) -> Answer<'_, bool> {
        Box::pin(async move { self.0.offer(manifest).await.map_err(uplink_error) })
    }

    fn missing(&self, kind: ObjectKind, hashes: Vec<Hash>) -> Answer<'_, Vec<bool>> {
        Box::pin(async move { self.0.missing(kind, hashes).await.map_err(uplink_error) })
    }

    fn send_block(&self, block: Vec<u8>) -> Answer<'_, ()> {
        Box::pin(async move { self.0.send_block(block).await.map_err(uplink_error) })
    }

    fn commit(&self, request: CommitRequest) -> Answer<'_, Record> {
        Box::pin(async move { self.0.commit(request).await.map_err(uplink_error) })
    }
}

/// What the engine asks of the union.
pub struct Committed(pub Arc<View>);

impl Union for Committed {
    fn before(&self, path: &RelPath) -> Before {
        // What isn't known counts as nothing: the base is then 0, and the conflict is found when the layers meet.
        let resolved = self.0.lookup(path).unwrap_or_default();
        Before {
            base: resolved.winner().map(|c| c.seq).unwrap_or_default(),
            foreign: resolved.foreign.is_some_and(|c| !c.synthetic),
        }
    }
}

/// Contents for recalls, through the cache.
pub struct Cached {
    pub cache: Arc<Cache>,
    pub params: ChunkParams,
}

impl Contents for Cached {
    fn read(&self, content: &Hash, size: u64, offset: u64, len: usize) -> Result<Vec<u8>, FetchFailure> {
        Ok(self.cache.read(content, size, &self.params, offset, len)?)
    }

    fn manifest(&self, hash: &Hash) -> Result<Vec<u8>, FetchFailure> {
        Ok(self.cache.get(ObjectKind::Manifest, hash)?.to_vec())
    }
}
