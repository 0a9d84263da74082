//! The engine: completion, manifests, upload, eviction and recall.
//!
//! ```text
//! Activity: touched ─► looks ─► completion ─► transfer ─► evict ⇄ recall
//!                     observe    syncfs,       seal,
//!                     judge      journal       upload
//! ```
//! [`Engine`] is what others see; [`scheduler`] decides what happens next. [`survey`] finds the units at start, [`looks`] knows when
//! to judge which, [`observe`] gathers what the judgement needs, [`completion`] makes a round of it, [`transfer`] brings a unit from
//! complete to committed: [`seal`] describes its layer as a manifest, [`upload`] brings it to the store through [`uplink`],
//! large files by [`window`], objects in blocks by [`packer`]. [`evict`] frees it, [`recall`] brings it back.
//!
//! Invariants: every step is journaled before the next begins, so that a start goes on where a crash came; nothing is lost by a
//! failure, only tried again; no lock is held across an await; memory and processor are bounded ([`bounds::Bounds`]).

pub mod adapters;
pub mod background;
pub mod bounds;
pub mod completion;
pub mod counters;
pub mod effort;
pub mod engine;
pub mod evict;
pub mod held;
pub mod live;
pub mod looks;
mod mend;
pub mod names;
pub mod observe;
pub mod pace;
pub mod packer;
#[cfg(test)]
mod pipeline;
pub mod recall;
pub mod scheduler;
pub mod seal;
pub mod snapshots;
pub mod status;
pub mod survey;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod transfer;
pub mod tree;
pub mod uplink;
pub mod upload;
pub mod window;

pub use adapters::CachedContents;
pub use engine::{CommandError, Engine, EngineError, EngineParts, OnEvicted, Settings};
pub use evict::EvictionRules;
pub use names::{OwnerNames, group_id, user_id};
pub use recall::{Contents, FetchFailure};
pub use status::Status;
pub use tree::SpoolTree;
pub use uplink::{Answer, Uplink, UplinkError};
