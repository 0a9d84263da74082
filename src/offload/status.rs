//! The engine in figures.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::counters::Reading;
use crate::ids::{RelPath, UnitId};

/// A rate is over this long.
const WINDOW: Duration = Duration::from_secs(30);
/// Readings kept for a rate: one a second.
const READINGS: usize = 32;

/// The engine at one moment.
#[derive(Debug, Clone)]
pub struct Status {
    /// Units that run, with or without a record.
    pub running: usize,
    pub complete: usize,
    pub sealed: usize,
    pub committed: usize,
    pub evicted: usize,
    /// Complete and sealed units.
    pub queue_units: usize,
    /// Units in transfer.
    pub in_transfer: usize,
    /// Units that wait until the store can be reached.
    pub awaiting_link: usize,
    /// File bytes of sealed layers that aren't committed.
    pub queue_bytes: u64,
    /// Over the last half minute, compressed.
    pub sent_bytes_per_s: u64,
    pub counters: Reading,
    /// The last error of each unit that has one, newest first.
    pub errors: Vec<UnitError>,
    /// Directories that are no unit until `complete` is said of them, as of the start.
    pub unrecognised: Vec<RelPath>,
}

/// Why a unit didn't get on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitError {
    pub unit: UnitId,
    pub text: String,
    /// ms since the epoch.
    pub time_ms: u64,
}

/// How fast a counter grows.
#[derive(Debug, Default)]
pub struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    /// Notes the counter's value; more than once a second is one reading.
    pub fn note(&mut self, value: u64) {
        let now = Instant::now();
        if self.0.back().is_some_and(|(at, _)| now - *at < Duration::from_secs(1)) {
            return;
        }
        self.0.push_back((now, value));
        while self.0.len() > READINGS || self.0.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            self.0.pop_front();
        }
    }

    /// Growth a second over the readings of the last half minute.
    pub fn per_second(&self) -> u64 {
        let (Some((from, low)), Some((to, high))) = (self.0.front(), self.0.back()) else { return 0 };
        let millis = (*to - *from).as_millis().max(1) as u64;
        if from == to { 0 } else { (high - low) * 1000 / millis }
    }
}
