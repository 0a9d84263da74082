//! resultsfs: one tree of Autotest results on every machine, which offloads itself.
//!
//! # The way of a byte
//!
//! A test writes into the mount. The kernel hands the call to [`fuse`], a thin adapter, which asks [`fs`]: the union of what this host's [`spool`]
//! holds and what all hosts have committed. Data of local files goes past us, by FUSE passthrough, into the spool. [`fs`] tells
//! [`spool::activity`] of each change and close; [`offload`] asks [`layout`] whether the unit is complete, and if so syncs the spool, writes that
//! into the [`journal`], describes the layer as a [`manifest`], and sends what the store lacks in [`chunk::block`]s over a [`wire::link`] on top of a
//! [`transport`]. There a [`server::session`](server) takes them into the [`store`]: packs, then the [`catalog`], then fsync, then the ack. The catalog's
//! records flow back to every host's journal; bytes that are only in the store come through the [`cache`].
//!
//! # Reading order
//!
//! 1. [`ids`]: units, paths, hashes. 2. [`manifest`] and [`catalog`]: what is known of a layer. 3. [`layout`]: what a unit is and when it is complete.
//! 4. [`journal`], [`offload`], [`store`]: how it becomes durable. 5. [`fs`], [`fuse`]: how it is seen. 6. [`daemon`]: how it is put together. [`cli`] is the surface.
//!
//! # Layers
//!
//! Dependencies point one way:
//! cli → {daemon, demo, import, server} → {client, fuse, offload, verify} → fs → {cache, journal, spool, store} → wire → transport → {catalog, chunk, layout, manifest} → {config, control, durable} → ids → {buffers, cbor, clock, limits}
//!
//! `fuse` alone names fuser, `cli` clap, `config` ini, `store` and `journal` the database. `tests/layers.rs` proves it. Every bound of the formats
//! and of the protocol is in [`limits`].

pub mod buffers;
pub mod cache;
pub mod catalog;
pub mod cbor;
pub mod chunk;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod demo;
pub mod durable;
pub mod fs;
pub mod fuse;
pub mod ids;
pub mod import;
pub mod journal;
pub mod layout;
pub mod limits;
pub mod manifest;
pub mod offload;
pub mod server;
pub mod spool;
pub mod store;
pub mod transport;
pub mod verify;
pub mod wire;
