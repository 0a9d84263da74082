//! The gate: between looking whether objects are here and relying on it, nothing may take them away.
//!
//! Whoever does both (a commit, a snapshot, a block, a question) is *inside* meanwhile. `gc` closes the gate for the moment in which it decides what
//! goes: then nobody is inside, and who comes next sees the decision.
//!
//! Nobody waits long for that: where somebody stays inside (a commit that hashes a large file), the gate opens again, and it is closed some other time.
//!
//! It is the outermost of the store's locks: who is inside may take any other, and who holds another never enters.

use std::{
    sync::{Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use super::wait::{pause, wait_for, wait_while};

/// How long others may have to wait for those inside.
const HOLD: Duration = Duration::from_secs(1);
/// How long the gate stays open until the next try.
const PAUSE: Duration = Duration::from_secs(2);

const NO_PANIC: &str = "nothing panics while it holds the gate's lock";

#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    inside: usize,
    closed: bool,
}

/// Somebody is inside until it is dropped.
#[derive(Debug)]
pub(super) struct Inside<'a>(&'a Gate);

/// The gate is closed, and nobody is inside, until it is dropped.
#[derive(Debug)]
pub(super) struct Closed<'a>(&'a Gate);

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }

    /// Whether who comes now needn't wait.
    #[cfg(test)]
    pub fn is_open(&self) -> bool {
        !self.lock().closed
    }

    /// Goes in, when it is open.
    pub fn enter(&self) -> Inside<'_> {
        let mut state = wait_while(&self.state, &self.changed, self.lock(), |state| state.closed);
        state.inside += 1;
        Inside(self)
    }

    /// Closes it. `None`: for as long as `patience` somebody was inside whenever it was tried.
    pub fn close(&self, patience: Duration) -> Option<Closed<'_>> {
        let end = Instant::now() + patience;
        loop {
            let mut state = self.lock();
            assert!(!state.closed, "one closes it at a time");
            state.closed = true;
            let hold = HOLD.min(patience);
            let mut state = wait_for(&self.state, &self.changed, state, hold, |state| state.inside > 0);
            if state.inside == 0 {
                return Some(Closed(self));
            }
            state.closed = false;
            drop(state);
            self.changed.notify_all();
            if Instant::now() >= end {
                return None;
            }
            pause(PAUSE.min(patience));
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.lock().inside -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    /// It closes only when nobody is inside, and whoever comes then waits.
    #[test]
    fn nobody_is_inside_while_it_is_closed() {
        let gate = Gate::default();
        let inside = gate.enter();
        assert!(gate.close(Duration::from_millis(1)).is_none(), "somebody is inside");
        drop(gate.enter());
        drop(inside);
        let closed = gate.close(Duration::ZERO).expect("nobody is inside");
        let (told, heard) = mpsc::channel();
        thread::scope(|scope| {
            let gate = &gate;
            scope.spawn(move || {
                let _inside = gate.enter();
                told.send(()).expect("somebody listens");
            });
            assert!(heard.recv_timeout(Duration::from_millis(20)).is_err(), "it is closed");
            drop(closed);
            heard.recv_timeout(Duration::from_secs(30)).expect("it is open again");
        });
    }
}
