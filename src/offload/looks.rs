//! Looks: which running unit is to be judged when, and what it waited for at the last look.
//!
//! Nothing is polled: a look is due after the settle time of a change, or when the last verdict said that it pays. The table is
//! bounded by the units that run.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use crate::{ids::UnitId, layout::Reason};

/// The running units.
#[derive(Debug, Default)]
pub struct Looks {
    units: HashMap<UnitId, Look>,
    due: BTreeSet<(Instant, UnitId)>,
}

/// What is known of one.
#[derive(Debug, Default, Clone)]
struct Look {
    at: Option<Instant>,
    reason: Option<Reason>,
}

impl Looks {
    /// A change was seen: looks once it may have settled. A look that is due sooner stays, for its verdict will count again.
    pub fn changed(&mut self, unit: &UnitId, settle: Duration) {
        let at = Instant::now() + settle;
        let is_sooner = self.units.get(unit).is_some_and(|look| look.at.is_some_and(|then| then <= at));
        if !is_sooner {
            self.look_at(unit, Some(at));
        }
    }

    /// Looks at `at`; with `None`, when something happens.
    pub fn look_at(&mut self, unit: &UnitId, at: Option<Instant>) {
        let look = self.units.entry(unit.clone()).or_default();
        if let Some(old) = look.at.take() {
            self.due.remove(&(old, unit.clone()));
        }
        look.at = at;
        if let Some(at) = at {
            self.due.insert((at, unit.clone()));
        }
    }

    /// The verdict was "not yet".
    pub fn not_yet(&mut self, unit: &UnitId, reason: Reason, recheck: Option<Duration>) {
        // A change during the look has set a time already.
        if self.units.get(unit).is_none_or(|look| look.at.is_none()) {
            self.look_at(unit, recheck.map(|after| Instant::now() + after));
        }
        if let Some(look) = self.units.get_mut(unit) {
            look.reason = Some(reason);
        }
    }

    /// It doesn't run any more.
    pub fn remove(&mut self, unit: &UnitId) {
        if let Some(Look { at: Some(at), .. }) = self.units.remove(unit) {
            self.due.remove(&(at, unit.clone()));
        }
    }

    /// Takes at most `max` units whose time has come; they stay known as running.
    pub fn take_due(&mut self, max: usize) -> Vec<UnitId> {
        let now = Instant::now();
        let due: Vec<_> = self.due.iter().take_while(|(at, _)| *at <= now).take(max).cloned().collect();
        for entry in &due {
            self.due.remove(entry);
            if let Some(look) = self.units.get_mut(&entry.1) {
                look.at = None;
            }
        }
        due.into_iter().map(|(_, unit)| unit).collect()
    }

    /// When the next look is due.
    pub fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// All running units.
    pub fn units(&self) -> Vec<UnitId> {
        self.units.keys().cloned().collect()
    }

    /// How many units run.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Whether this one does.
    pub fn contains(&self, unit: &UnitId) -> bool {
        self.units.contains_key(unit)
    }

    /// What a running unit waited for when it was last looked at, and how long until the next look.
    pub fn reason(&self, unit: &UnitId) -> Option<(Reason, Option<Duration>)> {
        let look = self.units.get(unit)?;
        let next = look.at.map(|at| at.saturating_duration_since(Instant::now()));
        Some((look.reason.clone()?, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(text: &str) -> UnitId {
        UnitId::tree(text.parse().expect("a path"))
    }

    #[test]
    fn looks_are_taken_in_their_time() {
        let mut looks = Looks::default();
        let (a, b) = (unit("1-me/a"), unit("1-me/b"));
        looks.changed(&a, Duration::ZERO);
        looks.changed(&b, Duration::from_secs(3600));
        assert_eq!(looks.take_due(10), std::slice::from_ref(&a));
        assert_eq!(looks.take_due(10), []);
        assert_eq!(looks.len(), 2);
        // A later change doesn't put off a look that is due.
        let soon = looks.next().expect("b is due");
        looks.changed(&b, Duration::from_secs(7200));
        assert_eq!(looks.next(), Some(soon));
        looks.remove(&b);
        assert_eq!((looks.next(), looks.len()), (None, 1));
    }

    #[test]
    fn a_change_during_a_look_is_not_forgotten_over_its_verdict() {
        let mut looks = Looks::default();
        let a = unit("1-me/a");
        looks.changed(&a, Duration::ZERO);
        looks.take_due(1);
        looks.changed(&a, Duration::ZERO);
        looks.not_yet(&a, Reason::Writers { writers: 1 }, None);
        assert_eq!(looks.take_due(1), [a]);
    }
}
