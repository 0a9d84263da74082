//! The store's side: sessions, one a host, and the daemon that listens for them.
//!
//! [`session`] speaks the protocol of `docs/protocol.md` over any pair of streams; [`serve`] and [`serve_stdio`] find
//! the streams. What they need of a store is [`StoreApi`]. A drone is not trusted: a session is pinned to a name and rights by how it
//! was opened ([`Identity`]), never by what it says.

mod adopt;
mod api;
mod authorized;
mod collect;
mod daemon;
mod desk;
mod end;
mod greeting;
mod hiding;
mod hosts;
mod may;
mod opened;
mod outbox;
mod places;
mod promises;
mod repair;
pub mod retention;
mod session;
mod socket;
mod stand_in;
mod stdio;
mod streams;
mod ticks;
mod turns;

#[cfg(test)]
pub(crate) mod mem;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use crate::{
    limits,
    wire::{
        frame::{Bounds, FrameReader, FrameWriter},
        rights::Rights,
    },
};

pub use api::{NewCommit, NewRetirement, Slots, StoreApi, StoreFault};
pub use authorized::{AuthorizedKeyError, print_authorized_key};
pub use collect::collect;
pub use daemon::{OpenStore, OpenStoreError, ServeError, ServeOptions, serve};
pub use end::SessionEnd;
pub use opened::{CONTROL_SOCKET, has_store, open_store, open_store_there};
pub use stdio::serve_stdio;

/// Who a session is, as far as that was settled before its first byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The only host name that it may use.
    pub pinned_name: Option<String>,
    /// What it may do.
    pub rights: Rights,
}

/// What all sessions of one store share.
pub struct Server {
    store: Arc<dyn StoreApi>,
    settings: Vec<String>,
    live: hosts::LiveHosts,
    places: places::Places,
    history: hosts::History,
    turns: turns::Turns,
    promises: promises::Promises,
    /// Bytes of blocks that may wait to be taken in, all sessions together.
    room: Arc<Semaphore>,
    stop: CancellationToken,
    repairs: repair::Orders,
}

impl Server {
    /// Serves `store`; `settings` are those that must agree, as `name=value`.
    pub fn new(store: Arc<dyn StoreApi>, settings: Vec<String>) -> Arc<Self> {
        let (live, history, turns, promises, repairs) = Default::default();
        let room = Arc::new(Semaphore::new(limits::UPLOADS_WAITING_BYTES));
        let (places, stop) = (places::Places::new(), CancellationToken::new());
        let server =
            Arc::new(Self { store, settings, live, places, history, turns, promises, room, stop, repairs });
        desk::open(&server);
        server
    }

    /// Ends all sessions, after which none begins.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Serves one host until one of the two ends it.
    pub async fn run_session<R, W>(self: &Arc<Self>, reader: R, writer: W, identity: Identity) -> SessionEnd
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let silence = Duration::from_millis(limits::SILENCE_TIMEOUT_MS);
        let reader = FrameReader::new(reader, Bounds::GREETING, silence, Arc::default());
        let writer = FrameWriter::new(writer, silence, Arc::default());
        session::run(self, reader, writer, identity).await
    }
}
