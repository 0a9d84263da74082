//! What the connection is fed with and what it feeds: the greeting from the journal, and blocks for the cache.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::{
    cache::{BlockSource, FetchError},
    chunk::ObjectKind,
    ids::Hash,
    journal::Journal,
    wire::{
        Hello, PROTOCOL_VERSION,
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
