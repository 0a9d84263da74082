//! How far long work is, told to who has asked for it on the store's control socket.

use std::{
    os::unix::net::UnixStream,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::desk::reply;
use crate::control::{self, Reply};

/// Who doesn't take a word within this listens no more: he is stopped, or his pager is full.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two words of it.
const PAUSE: Duration = Duration::from_millis(250);

/// Tells at most so often. From any thread, as long as nothing else is written meanwhile.
pub(super) struct Ticks<'a> {
    stream: &'a UnixStream,
    next: Mutex<Instant>,
    is_heard: AtomicBool,
}

impl<'a> Ticks<'a> {
    /// The first word comes after a pause, too: short work needs none.
    pub(super) fn new(stream: &'a UnixStream) -> Self {
        let _ = stream.set_write_timeout(Some(PATIENCE));
        Self { stream, next: Mutex::new(Instant::now() + PAUSE), is_heard: AtomicBool::new(true) }
    }

    /// See [`control::tick_item`]. Returns whether anybody still listens.
    pub(super) fn tell(&self, done: u64, total: u64, is_bytes: bool, what: &str) -> bool {
        if self.is_heard()
            && let Ok(mut next) = self.next.try_lock()
            && Instant::now() >= *next
        {
            *next = Instant::now() + PAUSE;
            let tick = Reply::Item(control::tick_item(done, total, is_bytes, what));
            if reply(self.stream, &tick).is_err() {
                self.is_heard.store(false, Ordering::Relaxed);
            }
        }
        self.is_heard()
    }

    /// Whether all words were taken so far.
    pub(super) fn is_heard(&self) -> bool {
        self.is_heard.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    #[test]
    fn words_are_few_and_whole() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let ticks = Ticks::new(&ours);
        ticks.tell(0, 10, true, "packs");
        *ticks.next.lock().expect("ours") = Instant::now();
        for done in 1..10 {
            ticks.tell(done, 10, true, "packs");
        }
        drop(ours);
        let lines: Vec<String> = BufReader::new(theirs).lines().map_while(Result::ok).collect();
        assert_eq!(lines, [r#"{"item":{"tick":{"done":1,"total":10,"is_bytes":true,"what":"packs"}}}"#]);
    }
}
