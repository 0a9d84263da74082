//! The cutter: a stream of file bytes into content-defined chunks.
//!
//! FastCDC v2020 at normalisation level 1. Equal runs of bytes in different files give equal chunks, wherever they stand.
//! The boundaries are part of the format: they depend on the bytes and on [`ChunkParams`] alone, never on how reads fall,
//! and the golden test below keeps them from changing between versions.
//!
//! Invariants: the chunks of a stream, put together, are the stream; every chunk but the last has at least `min_bytes`,
//! none has more than `max_bytes` or is empty; memory is one buffer of a fixed size, however long the stream.

use std::io::{self, Read};

use fastcdc::v2020::{self, Normalization};

use super::{ChunkParams, ChunkRef};
use crate::{buffers, ids::Hash};

/// The buffer holds this many of the largest chunks, so that the move of its tail to the front costs an eighth of a copy.
const BUFFER_CHUNKS: usize = 8;

/// Parameters that no cutter works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunk sizes {0:?} are out of bounds")]
pub struct BadParams(pub ChunkParams);

/// Cuts what `source` gives.
#[derive(Debug)]
pub struct Cutter<R> {
    source: R,
    sizes: Sizes,
    buffer: Vec<u8>,
    /// The part of the buffer that is read and not yet given out.
    start: usize,
    end: usize,
    at_end: bool,
}

/// What FastCDC goes by.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    min: usize,
    avg: usize,
    max: usize,
    mask_s: u64,
    mask_l: u64,
}

impl Sizes {
    fn new(params: &ChunkParams) -> Result<Self, BadParams> {
        let [min, avg, max] = [params.min_bytes, params.avg_bytes, params.max_bytes].map(|n| n as usize);
        let in_bounds = (v2020::MINIMUM_MIN..=v2020::MINIMUM_MAX).contains(&min)
            && (v2020::AVERAGE_MIN..=v2020::AVERAGE_MAX).contains(&avg)
            && (v2020::MAXIMUM_MIN..=v2020::MAXIMUM_MAX).contains(&max);
        let even = [min, avg, max].iter().all(|n| n % 2 == 0);
        if !(in_bounds && even && min < avg && avg < max) {
            return Err(BadParams(*params));
        }
        let (mask_s, mask_l) = v2020::select_masks(avg, Normalization::Level1);
        Ok(Self { min, avg, max, mask_s, mask_l })
    }

    /// Where the first chunk of `bytes` ends. `bytes` holds the largest chunk, or all that remains of the stream.
    fn cut(&self, bytes: &[u8]) -> usize {
        let (mask_s, mask_l) = (self.mask_s, self.mask_l);
        v2020::cut(bytes, self.min, self.avg, self.max, mask_s, mask_l, mask_s << 1, mask_l << 1).1
    }
}

impl<R> Drop for Cutter<R> {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.buffer));
    }
}

impl<R: Read> Cutter<R> {
    /// Begins at the place where `source` stands.
    pub fn new(source: R, params: &ChunkParams) -> Result<Self, BadParams> {
        let sizes = Sizes::new(params)?;
        let buffer = buffers::take_filled(sizes.max * BUFFER_CHUNKS);
        Ok(Self { source, sizes, buffer, start: 0, end: 0, at_end: false })
    }

    /// The next chunk with its bytes; `None` at the end of the stream.
    pub fn next_chunk(&mut self) -> io::Result<Option<(ChunkRef, &[u8])>> {
        if self.end - self.start < self.sizes.max {
            self.fill()?;
        }
        if self.start == self.end {
            return Ok(None);
        }
        let bytes = &self.buffer[self.start..self.end];
        let bytes = &bytes[..self.sizes.cut(bytes)];
        assert!(!bytes.is_empty() && bytes.len() <= self.sizes.max, "a chunk within its bounds");
        self.start += bytes.len();
        let len = u32::try_from(bytes.len()).expect("the largest chunk is below 2^32");
        Ok(Some((ChunkRef { hash: Hash::of(bytes), bytes: len }, bytes)))
    }

    /// The stream that is cut; it stands behind what was given out.
    pub fn source(&self) -> &R {
        &self.source
    }

    /// Moves what remains to the front and fills up behind it, or to the end of the stream.
    fn fill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while !self.at_end && self.end < self.buffer.len() {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.at_end = true,
                Ok(count) => self.end += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same bytes for ever: BLAKE3 in its mode of endless output.
    fn noise(seed: &[u8], len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(seed).finalize_xof().fill(&mut out);
        out
    }

    /// Gives at most `step` bytes a read.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = into.len().min(self.1);
            self.0.read(&mut into[..count])
        }
    }

    fn cut(source: impl Read, params: &ChunkParams) -> (Vec<ChunkRef>, Vec<u8>) {
        let mut cutter = Cutter::new(source, params).expect("good parameters");
        let (mut chunks, mut whole) = (Vec::new(), Vec::new());
        while let Some((chunk, bytes)) = cutter.next_chunk().expect("reads") {
            assert_eq!(chunk.hash, Hash::of(bytes));
            chunks.push(chunk);
            whole.extend_from_slice(bytes);
        }
        (chunks, whole)
    }

    fn lengths(bytes: &[u8]) -> Vec<u32> {
        cut(bytes, &ChunkParams::default()).0.iter().map(|c| c.bytes).collect()
    }

    /// Boundaries never change between versions: a change would make every large file new to every store.
    #[test]
    fn boundaries_are_the_golden_ones() {
        assert_eq!(lengths(&noise(b"golden", 512 << 10)), GOLDEN_NOISE);
        let log: Vec<u8> =
            (0..12_000).flat_map(|i| format!("{i:06} test.sleep INFO\n").into_bytes()).collect();
        assert_eq!(lengths(&log), GOLDEN_LOG);
        assert_eq!(lengths(&[0; 300 << 10]), [131_072, 131_072, 45_056]);
    }

    const GOLDEN_NOISE: &[u32] =
        &[36110, 16935, 33887, 34148, 40515, 33881, 22129, 34302, 65896, 50209, 116209, 40067];
    const GOLDEN_LOG: &[u32] = &[42011, 59990, 33001, 44198, 17063, 40523, 25283, 12811, 1120];

    #[test]
    fn equal_runs_give_equal_chunks_after_an_insertion() {
        let old = noise(b"log", 2 << 20);
        let new = [b"one line more\n", &old[..]].concat();
        let known: std::collections::HashSet<_> =
            cut(&old[..], &ChunkParams::default()).0.into_iter().map(|c| c.hash).collect();
        let (chunks, _) = cut(&new[..], &ChunkParams::default());
        assert!(chunks.iter().filter(|c| !known.contains(&c.hash)).count() <= 2);
    }

    #[test]
    fn senseless_sizes_are_refused() {
        let good = ChunkParams::default();
        for bad in [
            ChunkParams { min_bytes: 0, ..good },
            ChunkParams { avg_bytes: good.max_bytes, ..good },
            ChunkParams { max_bytes: u32::MAX, ..good },
            ChunkParams { avg_bytes: good.avg_bytes + 1, ..good },
        ] {
            assert!(Cutter::new(io::empty(), &bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The chunks of a stream, put together, are the stream, and their sizes are in bounds, however reads fall.
        #[test]
        fn chunks_are_the_stream(seed in any::<[u8; 8]>(), len in 0usize..60_000, zeros in 0usize..20_000, step in 1usize..9_000) {
            let params = ChunkParams { split_bytes: 0, min_bytes: 256, avg_bytes: 1024, max_bytes: 4096 };
            let bytes = [noise(&seed, len), vec![0; zeros]].concat();
            let (chunks, whole) = cut(Drip(&bytes, step), &params);
            prop_assert_eq!(&whole, &bytes);
            prop_assert_eq!(&chunks, &cut(&bytes[..], &params).0);
            if let Some((last, others)) = chunks.split_last() {
                prop_assert!(others.iter().all(|c| (256..=4096).contains(&c.bytes)));
                prop_assert!((1..=4096).contains(&last.bytes));
            }
        }
    }
}
