//! Reads: in which units somebody has opened a file for reading, until the store was told.
//!
//! It costs whoever opens a file one look into a table. Told is a unit once a day, which is as exactly as anybody wants to know it. What a process that dies
//! hasn't told yet is forgotten.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{ids::UnitId, limits};

/// How long a unit that was told isn't told again.
const TOLD_FOR_MS: u64 = 20 * 3_600_000;

/// What was read.
#[derive(Debug, Default)]
pub struct Reads {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// When the store was told.
    told_ms: HashMap<UnitId, u64>,
    waiting: BTreeSet<UnitId>,
}

impl Reads {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody reads something of this unit.
    pub(super) fn note(&self, unit: &UnitId) {
        let mut inner = self.lock();
        if inner.told_ms.contains_key(unit) || inner.waiting.contains(unit) {
            return;
        }
        // Beyond that somebody reads everything, and the store hears of the rest when he does so again.
        if inner.waiting.len() + inner.told_ms.len() < limits::READS_NOTED {
            inner.waiting.insert(unit.clone());
        }
    }

    /// Units that the store is to be told of.
    pub fn waiting(&self) -> Vec<UnitId> {
        self.lock().waiting.iter().take(limits::UNITS_READ).cloned().collect()
    }

    /// The store has noted these at `now_ms`.
    pub fn told(&self, units: &[UnitId], now_ms: u64) {
        let mut inner = self.lock();
        inner.told_ms.retain(|_, at| *at <= now_ms && now_ms - *at < TOLD_FOR_MS);
        for unit in units {
            inner.waiting.remove(unit);
            inner.told_ms.insert(unit.clone(), now_ms);
        }
    }

    /// What was told a day ago may be told again.
    pub fn forget_old(&self, now_ms: u64) {
        self.told(&[], now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RelPath;

    fn unit(number: usize) -> UnitId {
        UnitId::tree(RelPath::parse(format!("{number}-me/host1")).expect("a path"))
    }

    #[test]
    fn a_unit_is_told_once_a_day() {
        let reads = Reads::default();
        (0..3).for_each(|_| reads.note(&unit(1)));
        assert_eq!(reads.waiting(), [unit(1)]);
        assert_eq!(reads.waiting(), [unit(1)], "until the store has noted it");
        reads.told(&[unit(1)], 1000);
        reads.note(&unit(1));
        assert!(reads.waiting().is_empty());
        reads.forget_old(999 + TOLD_FOR_MS);
        reads.note(&unit(1));
        assert!(reads.waiting().is_empty());
        reads.forget_old(1000 + TOLD_FOR_MS);
        reads.note(&unit(1));
        assert_eq!(reads.waiting(), [unit(1)]);
    }

    #[test]
    fn who_reads_everything_costs_a_bounded_amount() {
        let reads = Reads::default();
        (0..limits::READS_NOTED + 10).for_each(|number| reads.note(&unit(number)));
        let mut told = 0;
        while let Some(part) = Some(reads.waiting()).filter(|part| !part.is_empty()) {
            assert!(part.len() <= limits::UNITS_READ);
            told += part.len();
            reads.told(&part, 5);
        }
        assert_eq!(told, limits::READS_NOTED);
    }
}
