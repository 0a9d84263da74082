//! What the store promises, each promise the doc comment of the test that proves it.

mod ahead;
mod crash;
mod damaged_packs;
pub(crate) mod fixture;
mod gc;
mod lives;
mod model;
mod promises;
mod room;
pub(super) mod turns;
