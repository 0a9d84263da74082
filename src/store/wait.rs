//! Waiting for another thread. In a test that lets one thread run at a time, whoever would wait gives the turn away instead.

use std::{
    sync::{Condvar, Mutex, MutexGuard},
    thread,
    time::Duration,
};

#[cfg(test)]
use super::tests::turns;

/// Turns of others that count as a long time.
const LONG: usize = 20;

const NO_PANIC: &str = "nothing panics while it holds a lock of which a change is told";

/// Waits until a change of what `lock` has is told, or for no reason.
pub(super) fn wait<'a, T>(
    lock: &'a Mutex<T>,
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
) -> MutexGuard<'a, T> {
    match give_turn(lock, guard) {
        Ok(guard) => guard,
        Err(guard) => changed.wait(guard).expect(NO_PANIC),
    }
}

/// Waits while that is so.
pub(super) fn wait_while<'a, T>(
    lock: &'a Mutex<T>,
    changed: &Condvar,
    mut guard: MutexGuard<'a, T>,
    is_so: impl Fn(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    while is_so(&mut guard) {
        guard = wait(lock, changed, guard);
    }
    guard
}

/// Waits while that is so, but no longer than `time`.
pub(super) fn wait_for<'a, T>(
    lock: &'a Mutex<T>,
    changed: &Condvar,
    mut guard: MutexGuard<'a, T>,
    time: Duration,
    is_so: impl Fn(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    for _ in 0..LONG {
        if !is_so(&mut guard) {
            break;
        }
        guard = match give_turn(lock, guard) {
            Ok(guard) => guard,
            Err(guard) => return changed.wait_timeout_while(guard, time, is_so).expect(NO_PANIC).0,
        };
    }
    guard
}

/// Waits for so long.
pub(super) fn pause(time: Duration) {
    #[cfg(test)]
    if turns::has_turn() {
        (0..LONG).for_each(|_| turns::wait());
        return;
    }
    thread::sleep(time);
}

/// Lets another thread have its turn, if there are turns; if not, the lock is held as before.
fn give_turn<'a, T>(
    lock: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
) -> Result<MutexGuard<'a, T>, MutexGuard<'a, T>> {
    #[cfg(test)]
    if turns::has_turn() {
        drop(guard);
        turns::wait();
        return Ok(lock.lock().expect(NO_PANIC));
    }
    let _ = lock;
    Err(guard)
}
