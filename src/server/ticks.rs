//! How far long work is, told to who has asked for it on the store's control socket.

use std::{
    io::Write,
    os::unix::net::UnixStream,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::control::{self, Reply};

/// Between two words of it.
const PAUSE: Duration = Duration::from_millis(250);

/// Tells at most so often. From any thread, as long as nothing else is written meanwhile.
pub(super) struct Ticks<'a> {
    stream: &'a UnixStream,
    next: Mutex<Instant>,
}

impl<'a> Ticks<'a> {
    /// The first word comes after a pause, too: short work needs none.
    pub(super) fn new(stream: &'a UnixStream) -> Self {
        Self { stream, next: Mutex::new(Instant::now() + PAUSE) }
    }

    /// See [`control::tick_item`]. Who doesn't listen any more is noticed at the end of the work.
    pub(super) fn tell(&self, done: u64, total: u64, is_bytes: bool, what: &str) {
        let Ok(mut next) = self.next.try_lock() else { return };
        if Instant::now() < *next {
            return;
        }
        *next = Instant::now() + PAUSE;
        let tick = Reply::Item(control::tick_item(done, total, is_bytes, what));
        let Ok(mut line) = serde_json::to_vec(&tick) else { return };
        line.push(b'\n');
        let mut stream = self.stream;
        let _ = stream.write_all(&line);
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
