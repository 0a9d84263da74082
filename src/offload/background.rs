//! Work in the background: it gets what tests leave of the processor and of the disk.
//!
//! A thread of the blocking pool is put there for one piece of work and comes back. Only where it may come back, which takes root: elsewhere it would
//! stay there, and the next piece of work that it gets may be somebody's who waits.

use rustix::process::{geteuid, getpriority_process, setpriority_process};

/// A tenth of the processor where tests want all of it: results that never leave a busy machine would be no safer than before.
const NICE: i32 = 10;
/// ioprio_set(2): for one thread.
const WHO_THREAD: libc::c_int = 1;
/// ioprio_set(2): the last of the ordinary class. In the idle class a scheduler that knows it may make a request wait for ten seconds.
const LAST: libc::c_int = 2 << 13 | 7;
/// ioprio_set(2): by the niceness.
const BY_NICE: libc::c_int = 0;

/// This thread is in the background while it lives.
#[derive(Debug)]
pub struct Background {
    nice: Option<i32>,
}

impl Background {
    /// Puts this thread there, where it may come back. That it can't isn't told: it is a courtesy.
    pub fn enter() -> Self {
        let nice = geteuid().is_root().then(|| getpriority_process(None).ok()).flatten();
        if nice.is_some() {
            let _ = setpriority_process(None, NICE);
            set_disk_class(LAST);
        }
        Self { nice }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(nice) = self.nice {
            let _ = setpriority_process(None, nice);
            set_disk_class(BY_NICE);
        }
    }
}

fn set_disk_class(class: libc::c_int) {
    // SAFETY: ioprio_set takes three numbers and touches no memory; 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_THREAD, 0, class) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_comes_back() {
        let nice = || getpriority_process(None).expect("is told");
        let before = nice();
        {
            let _background = Background::enter();
            assert!(!geteuid().is_root() || nice() == NICE);
        }
        assert_eq!(nice(), before);
    }
}
