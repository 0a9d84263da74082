//! Who works in which unit just now: handles, running operations and the last change.
//!
//! The mount tells it of every handle and change; completion asks when a unit was last touched; eviction freezes a unit so that
//! nothing under it is opened while it is freed. In memory only: after a restart nothing is open but what the mount still holds.
//!
//! Invariants: a unit is frozen only while no handle and no operation is in it; operations that find it frozen wait.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Instant,
};

use tokio::sync::mpsc;

use crate::ids::UnitId;

/// What is known of one unit.
#[derive(Debug, Default)]
struct Work {
    handles: usize,
    writers: usize,
    operations: usize,
    frozen: bool,
    changed: Option<Instant>,
    /// Told of and not heard yet: a hundred thousand changes needn't be told one by one.
    told: bool,
}

impl Work {
    fn is_idle(&self) -> bool {
        self.handles == 0 && self.operations == 0
    }

    /// It was changed now; whether that is to be told.
    fn note_change(&mut self) -> bool {
        self.changed = Some(Instant::now());
        !std::mem::replace(&mut self.told, true)
    }
}

/// A unit's activity at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Snapshot {
    /// Open handles of any kind.
    pub handles: usize,
    /// Handles open for writing.
    pub writers: usize,
    /// Operations that are going on.
    pub operations: usize,
    /// When a write, a close after writing, or a change of the name space was last seen; `None` = not since start.
    pub changed: Option<Instant>,
}

/// The table of all units at work.
#[derive(Debug)]
pub struct Activity {
    units: Mutex<HashMap<UnitId, Work>>,
    thawed: Condvar,
    touched: mpsc::UnboundedSender<UnitId>,
}

impl Activity {
    /// An empty table, and the stream of units that were changed or closed after writing. A unit is told of once until it is
    /// [`Activity::heard`].
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<UnitId>) {
        let (touched, stream) = mpsc::unbounded_channel();
        (Arc::new(Self { units: Mutex::default(), thawed: Condvar::new(), touched }), stream)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UnitId, Work>> {
        self.units.lock().expect("no code panics under this lock")
    }

    /// Begins an operation in `unit`; waits while it is frozen.
    pub fn begin(self: &Arc<Self>, unit: &UnitId) -> OperationGuard {
        let mut units = self.lock();
        while units.get(unit).is_some_and(|w| w.frozen) {
            units = self.thawed.wait(units).expect("no code panics under this lock");
        }
        units.entry(unit.clone()).or_default().operations += 1;
        OperationGuard { activity: self.clone(), unit: unit.clone() }
    }

    /// Begins an operation in `unit` unless it is frozen: for who must not wait.
    pub fn try_begin(self: &Arc<Self>, unit: &UnitId) -> Option<OperationGuard> {
        let mut units = self.lock();
        if units.get(unit).is_some_and(|w| w.frozen) {
            return None;
        }
        units.entry(unit.clone()).or_default().operations += 1;
        Some(OperationGuard { activity: self.clone(), unit: unit.clone() })
    }

    /// A handle was opened. Call it inside an operation.
    pub fn opened(&self, unit: &UnitId, writable: bool) {
        let mut units = self.lock();
        let work = units.entry(unit.clone()).or_default();
        work.handles += 1;
        work.writers += usize::from(writable);
    }

    /// A handle was closed for good. After writing that is a change, at the same moment: who finds no writer finds the change, too.
    pub fn closed(&self, unit: &UnitId, writable: bool) {
        let mut units = self.lock();
        let work = units.entry(unit.clone()).or_default();
        debug_assert!(work.handles > 0, "a handle is closed once");
        work.handles -= 1;
        work.writers -= usize::from(writable);
        let is_news = writable && work.note_change();
        drop(units);
        self.tell(unit, is_news);
    }

    /// The unit was changed.
    pub fn changed(&self, unit: &UnitId) {
        let is_news = self.lock().entry(unit.clone()).or_default().note_change();
        self.tell(unit, is_news);
    }

    fn tell(&self, unit: &UnitId, is_news: bool) {
        if is_news {
            // The receiver is gone only while the daemon stops, and then nobody needs to know.
            let _ = self.touched.send(unit.clone());
        }
    }

    /// The stream's reader has heard of `unit` and is about to look: what changes from now on is told again.
    pub fn heard(&self, unit: &UnitId) {
        if let Some(work) = self.lock().get_mut(unit) {
            work.told = false;
        }
    }

    /// What is known of `unit`.
    pub fn snapshot(&self, unit: &UnitId) -> Snapshot {
        let units = self.lock();
        units.get(unit).map_or(Snapshot::default(), |w| Snapshot {
            handles: w.handles,
            writers: w.writers,
            operations: w.operations,
            changed: w.changed,
        })
    }

    /// Keeps everybody out of `unit` until the guard is dropped; `None` while somebody is in it.
    pub fn try_freeze(self: &Arc<Self>, unit: &UnitId) -> Option<FreezeGuard> {
        let mut units = self.lock();
        let work = units.entry(unit.clone()).or_default();
        if work.frozen || !work.is_idle() {
            return None;
        }
        work.frozen = true;
        Some(FreezeGuard { activity: self.clone(), unit: unit.clone() })
    }

    /// Units that were changed since they were last forgotten: known here from the moment of the change on.
    pub fn changed_units(&self) -> Vec<UnitId> {
        let units = self.lock();
        units.iter().filter(|(_, work)| work.changed.is_some()).map(|(unit, _)| unit.clone()).collect()
    }

    /// Handles open in all units.
    pub fn open_handles(&self) -> usize {
        self.lock().values().map(|w| w.handles).sum()
    }

    /// Forgets a unit in which nothing goes on; it bounds the table. Says whether nothing is known of it now.
    pub fn forget_idle(&self, unit: &UnitId) -> bool {
        let mut units = self.lock();
        if units.get(unit).is_some_and(|w| w.is_idle() && !w.frozen) {
            units.remove(unit);
        }
        !units.contains_key(unit)
    }
}

/// An operation that is going on; dropped at its end.
#[derive(Debug)]
pub struct OperationGuard {
    activity: Arc<Activity>,
    unit: UnitId,
}

impl Drop for OperationGuard {
    fn drop(&mut self) {
        if let Some(work) = self.activity.lock().get_mut(&self.unit) {
            work.operations -= 1;
        }
    }
}

/// A unit that is frozen; thaws when dropped.
#[derive(Debug)]
pub struct FreezeGuard {
    activity: Arc<Activity>,
    unit: UnitId,
}

impl Drop for FreezeGuard {
    fn drop(&mut self) {
        if let Some(work) = self.activity.lock().get_mut(&self.unit) {
            work.frozen = false;
        }
        self.activity.thawed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_frozen_while_a_handle_is_open() {
        let (activity, _stream) = Activity::new();
        let unit = UnitId::tree("1-me/h".parse().expect("a path"));
        activity.opened(&unit, false);
        assert!(activity.try_freeze(&unit).is_none());
        activity.closed(&unit, false);
        let operation = activity.begin(&unit);
        assert!(activity.try_freeze(&unit).is_none());
        drop(operation);
        let frozen = activity.try_freeze(&unit).expect("idle");
        assert!(activity.try_freeze(&unit).is_none());
        assert!(activity.try_begin(&unit).is_none());
        let waiter = std::thread::spawn({
            let (activity, unit) = (activity.clone(), unit.clone());
            move || drop(activity.begin(&unit))
        });
        drop(frozen);
        waiter.join().expect("thawed");
    }

    #[test]
    fn a_close_after_writing_is_a_change() {
        let (activity, mut stream) = Activity::new();
        let unit = UnitId::loose("1-me".parse().expect("a path"));
        activity.opened(&unit, false);
        activity.closed(&unit, false);
        assert!(stream.try_recv().is_err());
        activity.opened(&unit, true);
        activity.closed(&unit, true);
        assert_eq!(stream.try_recv().expect("one"), unit);
        assert!(activity.snapshot(&unit).changed.is_some());
    }

    /// Otherwise a unit could be judged complete between the two, and would be opened again for a change that came before.
    #[test]
    fn who_finds_no_writer_finds_the_change() {
        let (activity, _stream) = Activity::new();
        let unit = UnitId::loose("1-me".parse().expect("a path"));
        for _ in 0..2000 {
            activity.opened(&unit, true);
            let opened = Instant::now();
            std::thread::scope(|scope| {
                scope.spawn(|| activity.closed(&unit, true));
                let seen = loop {
                    let seen = activity.snapshot(&unit);
                    if seen.writers == 0 {
                        break seen;
                    }
                };
                assert!(seen.changed.is_some_and(|changed| changed >= opened));
            });
        }
    }

    /// A test that writes a million files wakes nobody a million times, and its last change is never missed.
    #[test]
    fn a_unit_is_told_of_once_until_it_is_heard() {
        let (activity, mut stream) = Activity::new();
        let unit = UnitId::loose("1-me".parse().expect("a path"));
        (0..3).for_each(|_| activity.changed(&unit));
        assert_eq!(stream.try_recv().expect("one"), unit);
        assert!(stream.try_recv().is_err());
        activity.heard(&unit);
        activity.changed(&unit);
        assert_eq!(stream.try_recv().expect("another"), unit);
        activity.forget_idle(&unit);
        activity.changed(&unit);
        assert_eq!(stream.try_recv().expect("of a new table entry"), unit);
    }
}
