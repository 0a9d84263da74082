//! How hard blocks are compressed: as hard as what limits allows.
//!
//! Where blocks wait for the connection and a core is free, it is worth more time; where every core is at work, less. So the level goes, a
//! fraction with each block, up to twice the configured one or down to the lowest.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// zstd's lowest ordinary level: a third of the time of level 3 less, and a hundredth more bytes.
const LOWEST: i32 = 1;
/// zstd's levels beyond are so slow that no connection is worth it.
const HIGHEST: i32 = 12;
/// Blocks that all say the same until the level changes.
const BLOCKS_A_LEVEL: i32 = 8;

/// See the module.
#[derive(Debug)]
pub struct Effort {
    highest: i32,
    /// In parts of a level.
    now: Mutex<i32>,
    /// Blocks that wait for the connection or for their turn by the bandwidth.
    sending: Arc<AtomicUsize>,
}

/// One block waits while it lives.
#[derive(Debug)]
pub struct Sending(Arc<AtomicUsize>);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Effort {
    /// Begins at the configured level.
    pub fn new(level: i32) -> Self {
        let now = Mutex::new(level * BLOCKS_A_LEVEL);
        Self { highest: (2 * level).min(HIGHEST).max(level), now, sending: Arc::default() }
    }

    /// A block is about to be sent.
    pub fn sending(&self) -> Sending {
        self.sending.fetch_add(1, Ordering::Relaxed);
        Sending(self.sending.clone())
    }

    /// The level for the next block.
    pub fn level(&self, is_core_free: bool) -> i32 {
        let waits = self.sending.load(Ordering::Relaxed) > 0;
        let step = match (is_core_free, waits) {
            (false, _) => -1,
            (true, true) => 1,
            (true, false) => 0,
        };
        let mut now = self.now.lock().expect("no code panics under this lock");
        let lowest = LOWEST.min(self.highest);
        *now = (*now + step).clamp(lowest * BLOCKS_A_LEVEL, self.highest * BLOCKS_A_LEVEL);
        *now / BLOCKS_A_LEVEL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_goes_by_what_limits() {
        let effort = Effort::new(3);
        assert_eq!(effort.level(true), 3, "nothing limits");
        let blocks = |is_core_free| (0..100).map(|_| effort.level(is_core_free)).last();
        assert_eq!(blocks(false), Some(LOWEST));
        assert_eq!(effort.level(false), LOWEST);
        let waiting = effort.sending();
        assert_eq!(blocks(true), Some(6));
        assert_eq!(effort.level(true), 6);
        drop(waiting);
        assert_eq!(effort.level(true), 6);
        let mut blocks = 0;
        while effort.level(false) > 3 {
            blocks += 1;
        }
        assert!(blocks >= 2 * BLOCKS_A_LEVEL);
    }

    /// Who asked for no more than level 1, or for one below zero, gets no more than twice that.
    #[test]
    fn it_stays_within_what_was_configured() {
        for level in [-5, 1, 19] {
            let effort = Effort::new(level);
            let _waiting = effort.sending();
            let levels: Vec<i32> = (0..400).map(|n| effort.level(n % 50 < 25)).collect();
            let highest = (2 * level).min(HIGHEST).max(level);
            assert!(levels.iter().all(|at| (LOWEST.min(highest)..=highest).contains(at)), "{level}");
        }
    }
}
