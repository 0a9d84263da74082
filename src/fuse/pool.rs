//! The threads that wait where an operation must: for a manifest, for bytes, for a unit that is being freed.
//!
//! Bounded in threads and in queue, so that a results host that is away can't take all memory; what finds the queue full fails at
//! once, as it would after its time.

use std::{
    sync::{Arc, Mutex, mpsc},
    thread,
};

/// Operations that may wait at the same time. Each waits no longer than a fetch's time limit.
const THREADS: usize = 16;
/// Operations that may stand behind them: more than the kernel has in the background at a time (512).
const QUEUED: usize = 4096;

type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Pool {
    jobs: mpsc::SyncSender<Job>,
}

impl Pool {
    pub(super) fn new() -> Self {
        let (jobs, queue) = mpsc::sync_channel::<Job>(QUEUED);
        let queue = Arc::new(Mutex::new(queue));
        for i in 0..THREADS {
            let queue = queue.clone();
            let run = move || {
                loop {
                    let job = queue.lock().expect("no code panics under this lock").recv();
                    let Ok(job) = job else { break };
                    job();
                }
            };
            if let Err(e) = thread::Builder::new().name(format!("fuse-wait-{i}")).spawn(run) {
                tracing::error!("no thread for operations that wait: {e}");
            }
        }
        Self { jobs }
    }

    /// Has `job` done; false, and it is dropped, if too many wait.
    pub(super) fn submit(&self, job: impl FnOnce() + Send + 'static) -> bool {
        self.jobs.try_send(Box::new(job)).is_ok()
    }
}
