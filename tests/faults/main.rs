//! Faults of the world around: power cuts of real file systems, disks that are full, failing or read-only, clocks that jump, networks that break, a
//! results host that isn't the one it was, and all of it at random.
//!
//! What was promised is written down outside of the system under test ([`witness`]), and compared with what is there afterwards, also on a mount
//! that has nothing cached. Each test has a seed; `RESULTSFS_FAULTS` makes them longer (see [`witness::rounds`]). What each fault's outcome
//! should be is docs/faults.md.

mod clocks;
mod deaths;
mod disk;
#[path = "../common/lab.rs"]
mod harness;
mod network;
mod power;
mod random;
mod replaced;
mod states;
mod trouble;
mod witness;
