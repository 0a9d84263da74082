//! The program's own parts as the engine asks for them: the connection, the view and the cache.

use std::sync::Arc;

use super::{
    recall::{Contents, FetchFailure},
    uplink::{Answer, Uplink, UplinkError},
};
use crate::{
    cache::Cache,
    catalog::Record,
    chunk::{ChunkParams, ObjectKind, Stretch},
    ids::Hash,
    wire::{
        CommitRequest, PublishRequest,
        link::{Link, LinkError},
    },
};

impl From<LinkError> for UplinkError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Down(why) | LinkError::NotConnected(why) => Self::Down(why),
            LinkError::Rejected(why) => Self::Rejected(why),
            LinkError::Timeout => Self::Timeout,
        }
    }
}

impl Uplink for Link {
    fn offer(&self, manifest: Hash) -> Answer<'_, bool> {
        Box::pin(async move { Ok(Link::offer(self, manifest).await?) })
    }

    fn missing(&self, kind: ObjectKind, hashes: Vec<Hash>) -> Answer<'_, Vec<bool>> {
        Box::pin(async move { Ok(Link::missing(self, kind, hashes).await?) })
    }

    fn cut(&self, stretches: Vec<Stretch>) -> Answer<'_, Vec<bool>> {
        Box::pin(async move { Ok(Link::cut(self, stretches).await?) })
    }

    fn send_block(&self, block: Vec<u8>) -> Answer<'_, ()> {
        Box::pin(async move { Ok(Link::send_block(self, block).await?) })
    }

    fn commit(&self, request: CommitRequest) -> Answer<'_, Record> {
        Box::pin(async move { Ok(Link::commit(self, request).await?) })
    }

    fn publish(&self, request: PublishRequest) -> Answer<'_, ()> {
        Box::pin(async move { Ok(Link::publish(self, request).await?) })
    }
}

/// Contents through the cache, which fetches what it lacks.
pub struct CachedContents {
    cache: Arc<Cache>,
    link: Option<Link>,
}

impl CachedContents {
    /// `link` knows how the store's files are cut.
    pub fn new(cache: Arc<Cache>, link: Option<Link>) -> Self {
        Self { cache, link }
    }

    fn params(&self) -> ChunkParams {
        let welcome = self.link.as_ref().and_then(|link| link.status().store);
        welcome.map_or_else(ChunkParams::default, |welcome| welcome.params)
    }
}

impl Contents for CachedContents {
    fn read(&self, content: &Hash, size: u64, offset: u64, len: usize) -> Result<Vec<u8>, FetchFailure> {
        Ok(self.cache.read(content, size, &self.params(), offset, len)?)
    }

    fn manifest(&self, hash: &Hash) -> Result<Vec<u8>, FetchFailure> {
        Ok(self.cache.get(ObjectKind::Manifest, hash)?.to_vec())
    }
}
