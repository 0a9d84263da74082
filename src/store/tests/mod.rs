//! What the store promises, each promise the doc comment of the test that proves it.

mod crash;
pub(crate) mod fixture;
mod gc;
mod lives;
mod promises;
mod room;
