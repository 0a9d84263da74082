//! What the connection is fed with and what it feeds: the greeting from the journal, and blocks for the cache.

use std::{sync::Arc, time::Duration};

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

/// How long a reader waits for the first attempt to connect.
const FIRST_ATTEMPT: Duration = Duration::from_secs(10);

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

impl LinkSource {
    /// While the first attempt to connect is under way (the daemon has just started, or a session has just ended), it is waited for:
    /// whoever looks into the tree right then needn't see an error.
    async fn fetch_connected(&self, kind: ObjectKind, hash: Hash) -> Result<Option<Vec<u8>>, LinkError> {
        let status = self.link.status();
        if !status.connected && status.attempts <= 1 {
            self.link.wait_up(FIRST_ATTEMPT).await?;
        }
        self.link.fetch(kind, hash).await
    }
}

impl BlockSource for LinkSource {
    fn fetch(&self, kind: ObjectKind, hash: &Hash) -> Result<Vec<u8>, FetchError> {
        match self.runtime.block_on(self.fetch_connected(kind, *hash)) {
            Ok(Some(block)) => Ok(block),
            Ok(None) => Err(FetchError::NotFound),
            Err(LinkError::Timeout) => Err(FetchError::Timeout),
            Err(other) => Err(FetchError::Unreachable(other.to_string())),
        }
    }
}
