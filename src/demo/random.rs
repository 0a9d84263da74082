//! A small generator of random numbers (splitmix64): the same on every machine and in every version, which no crate promises.
//!
//! Not for secrets.

/// A stream of numbers that depends only on what it was named.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of `kind` number `number` under `seed`; anything that has a name has a stream of its own.
    pub fn named(seed: u64, kind: &str, number: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&number.to_le_bytes()).update(kind.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Self(u64::from_le_bytes(first))
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 if `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        // The bias of a remainder is far below what a test tree could show.
        self.next().checked_rem(end).unwrap_or(0)
    }

    /// A number from 0 up to 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True in `part` of `whole` cases.
    pub fn one_of(&mut self, part: u64, whole: u64) -> bool {
        self.below(whole) < part
    }

    /// One of `items`.
    pub fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len() as u64) as usize]
    }

    /// A size from `low` to `high`, evenly by its logarithm: many small, few large.
    pub fn size(&mut self, low: f64, high: f64) -> usize {
        (low * (high.max(low) / low).powf(self.unit())) as usize
    }

    /// `len` bytes that don't compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference values of splitmix64 for the state 1234567.
    #[test]
    fn the_numbers_are_splitmix64s() {
        let mut random = Random(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn every_name_has_its_own_stream() {
        let first = |seed, kind, number| Random::named(seed, kind, number).next();
        assert_eq!(first(1, "job", 7), first(1, "job", 7));
        assert_ne!(first(1, "job", 7), first(1, "job", 8));
        assert_ne!(first(1, "job", 7), first(1, "host", 7));
        assert_ne!(first(1, "job", 7), first(2, "job", 7));
    }
}
