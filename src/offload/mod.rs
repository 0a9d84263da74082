//! The engine: completion, manifests, upload, eviction and recall.
//!
//! [`seal`] describes a layer as a manifest; [`upload`] brings it to the store through [`uplink`], large files by [`window`],
//! objects in blocks by [`packer`].

pub mod counters;
pub mod names;
pub mod packer;
pub mod seal;
#[cfg(test)]
mod testing;
pub mod tree;
pub mod uplink;
pub mod upload;
pub mod window;
