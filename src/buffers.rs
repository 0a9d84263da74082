//! Buffers of about a block's size, used again instead of given back.
//!
//! Whoever moves a gigabyte takes and drops a thousand buffers of a megabyte. The allocator would fetch each from the kernel, which clears every
//! page of it, or keep them in as many arenas as there are threads. So those that are done with wait here for the next who needs one:
//! [`take`], [`take_filled`] and [`give`]. One that isn't given back is dropped like any other. [`restrain_allocator`] does the rest for a process that lives long.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

/// Smaller ones are the allocator's business.
const LEAST_BYTES: usize = 64 << 10;
/// Larger ones are rare.
const MOST_BYTES: usize = 4 << 20;
/// Memory that waits. Some ten blocks are under way at once on each side of a transfer.
const KEPT_BYTES: usize = 24 << 20;

/// Buffers that wait, the one that came last at the end.
struct Pool {
    waiting: Vec<Vec<u8>>,
    bytes: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { waiting: Vec::new(), bytes: 0 });

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An empty buffer that holds at least `bytes` without growing.
pub fn take(bytes: usize) -> Vec<u8> {
    let mut buffer = take_used(bytes);
    buffer.clear();
    buffer
}

/// A buffer of `bytes` bytes, for who overwrites all of them: what is in it may be what its last user left.
pub fn take_filled(bytes: usize) -> Vec<u8> {
    let mut buffer = take_used(bytes);
    buffer.resize(bytes, 0);
    buffer
}

fn take_used(bytes: usize) -> Vec<u8> {
    if (LEAST_BYTES..=MOST_BYTES).contains(&bytes)
        && let Some(buffer) = pool().take(bytes)
    {
        return buffer;
    }
    Vec::with_capacity(bytes)
}

/// Takes back a buffer of whatever size and content.
pub fn give(buffer: Vec<u8>) {
    if (LEAST_BYTES..=MOST_BYTES).contains(&buffer.capacity()) {
        pool().give(buffer);
    }
}

/// Keeps the allocator from holding memory that nobody uses: what is as large as our buffers goes back to the kernel at once, and there are as many
/// arenas as cores, up to eight, where glibc would make eight for each core. Figures are in `bench/README.md`.
pub fn restrain_allocator() {
    #[cfg(target_env = "gnu")]
    {
        let cores = thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        // SAFETY: mallopt changes settings of the allocator and touches no memory of ours; it may be called at any time.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, cores as libc::c_int);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LEAST_BYTES as libc::c_int);
        }
    }
}

impl Pool {
    /// The smallest that is large enough, so that large ones are there for who needs them.
    fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        let fits = self.waiting.iter().enumerate().filter(|(_, buffer)| buffer.capacity() >= bytes);
        let (at, _) = fits.min_by_key(|(_, buffer)| buffer.capacity())?;
        let buffer = self.waiting.swap_remove(at);
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    fn give(&mut self, buffer: Vec<u8>) {
        if self.bytes + buffer.capacity() <= KEPT_BYTES {
            self.bytes += buffer.capacity();
            self.waiting.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_fits_is_used_again_and_is_empty() {
        let mut pool = Pool { waiting: Vec::new(), bytes: 0 };
        for kib in [200, 100, 300] {
            pool.give(Vec::with_capacity(kib << 10));
        }
        let taken = pool.take(150 << 10).expect("there is one");
        assert!(taken.capacity() >= 150 << 10 && taken.capacity() < 300 << 10);
        assert!(pool.take(400 << 10).is_none());
        assert_eq!(pool.bytes, pool.waiting.iter().map(Vec::capacity).sum::<usize>());
        let mut used = take(70 << 10);
        used.extend_from_slice(b"old");
        give(used);
        assert!(take(70 << 10).is_empty());
        assert_eq!(take_filled(70 << 10).len(), 70 << 10);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut pool = Pool { waiting: Vec::new(), bytes: 0 };
        for _ in 0..100 {
            pool.give(Vec::with_capacity(1 << 20));
        }
        assert!(pool.bytes <= KEPT_BYTES && pool.waiting.len() > 10);
    }
}
