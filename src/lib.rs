//! resultsfs.
pub mod catalog;
pub mod chunk;
pub mod clock;
pub mod ids;
pub mod limits;
pub mod manifest;
pub mod spool;
pub mod wire;
