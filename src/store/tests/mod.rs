//! What the store promises, each promise the doc comment of the test that proves it.

mod crash;
pub(crate) mod fixture;
mod lives;
mod promises;
