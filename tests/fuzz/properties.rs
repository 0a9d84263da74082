//! What must hold of every decoder for every input: one function a format. `targets/` hands them to libFuzzer, `tests/corpus.rs` every file of
//! `corpus/`. `README.md` says what each asserts.
//!
//! Formats with checksums are tried as the input is, and once more with its checksums put right ([`mend`]): otherwise no fuzzer gets behind them.

mod config;
mod memory;
mod mend;
mod packed;
mod values;
mod wire;

pub use config::{config, pidfile};
pub use mend::{block as mend_block, with_record};
pub use packed::{PACK, STORE, block, catalog, pack};
pub use values::{journal, manifest, recipe};
pub use wire::{frame, message};

/// What is asserted of one input: panics where it isn't so.
pub type Property = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Property); 10] = [
    ("block", block),
    ("catalog", catalog),
    ("config", config),
    ("frame", frame),
    ("journal", journal),
    ("manifest", manifest),
    ("message", message),
    ("pack", pack),
    ("pidfile", pidfile),
    ("recipe", recipe),
];

/// Takes a number of two bytes, little endian, from the front; 0 where there is none.
fn number(data: &[u8]) -> (u16, &[u8]) {
    match data.split_first_chunk() {
        Some((number, rest)) => (u16::from_le_bytes(*number), rest),
        None => (0, &[]),
    }
}
