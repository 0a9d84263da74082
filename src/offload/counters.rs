//! What the engine has done since it started, in numbers that only grow.

use std::sync::atomic::{AtomicU64, Ordering};

/// Declares each counter once: its cell, and its value in a reading.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The counters.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: Count,)* }

        /// All counters at one moment.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
        pub struct Reading { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// Their values now.
            pub fn read(&self) -> Reading {
                Reading { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Layers described.
    layers_sealed,
    /// Regular files in them, each name once.
    files_sealed,
    /// File bytes read and hashed for that.
    bytes_hashed,
    /// Of these, the ones that were what was committed last.
    layers_unchanged,
    /// Layers that the store committed.
    layers_committed,
    /// Of these, the ones of which it knew everything already.
    layers_known,
    /// File bytes in the committed layers.
    bytes_committed,
    /// File bytes read again to be sent or cut.
    bytes_read,
    /// Whole files that the store held already, by their distinct contents.
    files_known,
    /// Whole files below the splitting size that were sent.
    files_sent,
    /// Large files that were cut.
    files_cut,
    /// Chunks of large files that the store held already.
    chunks_known,
    /// Chunks of large files that were sent.
    chunks_sent,
    /// Blocks sent.
    blocks_sent,
    /// Bytes in them before compression.
    bytes_packed,
    /// Bytes of blocks sent, compressed.
    bytes_sent,
    /// Snapshots of running units published.
    snapshots_published,
    /// Snapshots that were left to the next round.
    snapshots_failed,
    /// File bytes read and hashed for snapshots.
    snapshot_bytes_hashed,
    /// Transfers that failed and will be tried again.
    transfers_failed,
    /// Layers evicted.
    layers_evicted,
    /// File bytes freed by that.
    bytes_evicted,
    /// Layers recalled.
    layers_recalled,
    /// File bytes brought back by that.
    bytes_recalled,
}

/// One counter.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Counts one more.
    pub fn one(&self) {
        self.add(1);
    }

    /// Counts `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
