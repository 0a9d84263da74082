//! Keys as the store has them: a kind and a hash, so they are spread evenly. Made from their number, so that nothing has to be kept.

pub const KEY_BYTES: usize = 33;
pub const VALUE_BYTES: usize = 28;
pub type Key = [u8; KEY_BYTES];
pub type Value = [u8; VALUE_BYTES];

/// Key `number`; keys of different numbers differ.
pub fn key(number: u64) -> Key {
    let mut key = [0; KEY_BYTES];
    let mut state = number;
    for part in key[1..].chunks_mut(8) {
        state = mixed(state);
        part.copy_from_slice(&state.to_be_bytes());
    }
    key
}

pub fn value(number: u64) -> Value {
    let mut value = [0; VALUE_BYTES];
    value[4..12].copy_from_slice(&(number * 4096).to_le_bytes());
    value[20..].copy_from_slice(&(mixed(number) % (1 << 20)).to_le_bytes());
    value
}

/// Of SplitMix64, which maps each number to another.
pub fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
