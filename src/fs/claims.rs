//! Paths at which something committed is being brought here, replaced or taken away: one operation at a time has each.
//!
//! Without that, two writers who open the same evicted file would each bring a copy, the second in place of the first, and what the
//! first has written by then would be gone.
//!
//! Invariant: whoever holds a claim never waits for another one, so nobody waits for ever.

use std::{
    collections::HashSet,
    sync::{Condvar, Mutex, MutexGuard},
};

use crate::ids::RelPath;

/// The paths that are claimed.
#[derive(Debug, Default)]
pub(super) struct Claims {
    paths: Mutex<HashSet<RelPath>>,
    freed: Condvar,
}

/// Some paths, until it is dropped.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    paths: Vec<RelPath>,
}

impl Claims {
    fn lock(&self) -> MutexGuard<'_, HashSet<RelPath>> {
        self.paths.lock().expect("no code panics under this lock")
    }

    /// All of `paths`, or the first that another operation has.
    pub(super) fn try_take(&self, paths: &[RelPath]) -> Result<Claim<'_>, RelPath> {
        let mut taken = self.lock();
        match paths.iter().find(|path| taken.contains(*path)) {
            Some(busy) => Err(busy.clone()),
            None => {
                taken.extend(paths.iter().cloned());
                Ok(Claim { claims: self, paths: paths.to_vec() })
            }
        }
    }

    /// All of `paths`, as soon as nobody has any of them.
    pub(super) fn take(&self, paths: &[RelPath]) -> Claim<'_> {
        loop {
            match self.try_take(paths) {
                Ok(claim) => return claim,
                Err(busy) => self.wait(&busy),
            }
        }
    }

    /// Waits until nobody has `path`.
    pub(super) fn wait(&self, path: &RelPath) {
        let taken = self.freed.wait_while(self.lock(), |taken| taken.contains(path));
        drop(taken.expect("no code panics under this lock"));
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut taken = self.claims.lock();
        self.paths.iter().for_each(|path| _ = taken.remove(path));
        drop(taken);
        self.claims.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn one_at_a_time_has_a_path() {
        let claims = Claims::default();
        let [a, b, c] = ["a", "b", "c"].map(|text| text.parse::<RelPath>().expect("a path"));
        let both = claims.take(&[a.clone(), b.clone()]);
        assert_eq!(claims.try_take(&[c.clone(), b.clone()]).expect_err("taken"), b);
        drop(claims.try_take(&[c]).expect("nothing stays of an attempt that failed"));
        let inside = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let _claim = claims.take(std::slice::from_ref(&a));
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                });
            }
            drop(both);
        });
        claims.try_take(&[a, b]).expect("free again");
    }
}
