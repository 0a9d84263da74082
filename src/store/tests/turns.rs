//! Turns: of several threads one runs at a time, and a seed says which, so that a seed gives the same order of all that they do again.
//!
//! A thread gives the turn away where it says [`pass`], and where it would wait for another ([`wait`]). It must hold no lock then, but for those of which
//! a wait says that it waits.

use std::{
    cell::RefCell,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use super::fixture::Random;

/// A thread that hasn't had its turn for so long waits for somebody who never comes.
const STUCK: Duration = Duration::from_secs(100);
/// Turns that only waited, one after another, until nobody is believed to go on.
const IDLE: u32 = 20_000;

struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    random: Random,
    /// One in so many times another goes on where the same could.
    stay: usize,
    current: usize,
    alive: Vec<bool>,
    /// Turns since one did more than wait.
    idle: u32,
    /// Who had the turns, as a number.
    trace: u64,
}

thread_local! {
    static MINE: RefCell<Option<(Arc<Turns>, usize)>> = const { RefCell::new(None) };
}

/// Whether this thread is one of those that take turns.
pub fn has_turn() -> bool {
    MINE.with(|mine| mine.borrow().is_some())
}

/// Somebody else may go on.
pub fn pass() {
    give(false);
}

/// Others go on: this one has to wait for them.
pub fn wait() {
    give(true);
}

fn give(waits: bool) {
    let mine = MINE.with(|mine| mine.borrow().clone());
    if let Some((turns, me)) = mine {
        let mut state = turns.lock();
        state.idle = if waits { state.idle + 1 } else { 0 };
        assert!(state.idle < IDLE, "everybody waits for somebody else");
        let stay = state.stay;
        let stays = !waits && state.random.below(stay) != 0;
        if !stays {
            state.choose(waits.then_some(me));
            turns.changed.notify_all();
        }
        drop(turns.until_turn(state, me));
    }
}

impl State {
    /// Anybody is next who hasn't ended, if possible not this one.
    fn choose(&mut self, but: Option<usize>) {
        let all = (0..self.alive.len()).filter(|at| self.alive[*at]);
        let others: Vec<usize> = all.clone().filter(|at| Some(*at) != but).collect();
        let from = if others.is_empty() { all.collect() } else { others };
        if !from.is_empty() {
            self.current = from[self.random.below(from.len())];
            self.trace = self.trace.wrapping_mul(31).wrapping_add(self.current as u64 + 1);
        }
    }
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn until_turn<'a>(&'a self, mut state: MutexGuard<'a, State>, me: usize) -> MutexGuard<'a, State> {
        while state.current != me {
            let waited =
                self.changed.wait_timeout(state, STUCK).unwrap_or_else(|poisoned| poisoned.into_inner());
            assert!(!waited.1.timed_out(), "whoever has the turn is stuck");
            state = waited.0;
        }
        state
    }
}

/// Ends a thread's turns, however it ends.
struct Ends(Arc<Turns>, usize);

impl Drop for Ends {
    fn drop(&mut self) {
        MINE.with(|mine| *mine.borrow_mut() = None);
        let mut state = self.0.lock();
        state.alive[self.1] = false;
        state.idle = 0;
        state.choose(None);
        self.0.changed.notify_all();
    }
}

/// Runs these to their ends, each in its thread. Gives a number that says who had which turn.
pub fn run(seed: u64, stay: usize, all: Vec<Box<dyn FnOnce() + Send + '_>>) -> u64 {
    let mut state =
        State { random: Random(seed), stay, current: 0, alive: vec![true; all.len()], idle: 0, trace: 0 };
    state.choose(None);
    let turns = Arc::new(Turns { state: Mutex::new(state), changed: Condvar::new() });
    thread::scope(|scope| {
        let threads: Vec<_> = all
            .into_iter()
            .enumerate()
            .map(|(me, actor)| {
                let turns = turns.clone();
                scope.spawn(move || {
                    let _ends = Ends(turns.clone(), me);
                    drop(turns.until_turn(turns.lock(), me));
                    MINE.with(|mine| *mine.borrow_mut() = Some((turns, me)));
                    actor();
                })
            })
            .collect();
        let ends: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        if let Some(failed) = ends.into_iter().find_map(Result::err) {
            std::panic::resume_unwind(failed);
        }
    });
    turns.lock().trace
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One runs at a time, everybody comes to his end, and a seed gives the same order again.
    #[test]
    fn a_seed_gives_the_same_order_again() {
        let order = |seed| {
            let told = Mutex::new(Vec::new());
            let actor = |me: usize| {
                let told = &told;
                move || {
                    for step in 0..20 {
                        told.lock().expect("nobody panics").push((me, step));
                        if step % 5 == me { wait() } else { pass() }
                    }
                }
            };
            let all = (0..4).map(|me| Box::new(actor(me)) as Box<dyn FnOnce() + Send>).collect();
            let trace = run(seed, 3, all);
            (trace, told.into_inner().expect("nobody panics"))
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1).1, order(2).1);
        assert_eq!(order(3).1.len(), 80);
    }
}
