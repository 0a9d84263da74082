//! This process's anonymous memory, at its highest.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

static PEAK_KIB: AtomicU64 = AtomicU64::new(0);

/// Looks at it fifty times a second from now on.
pub fn watch() {
    thread::spawn(|| {
        loop {
            PEAK_KIB.fetch_max(anonymous_kib(), Ordering::Relaxed);
            thread::sleep(Duration::from_millis(20));
        }
    });
}

pub fn peak_mib() -> f64 {
    PEAK_KIB.fetch_max(anonymous_kib(), Ordering::Relaxed);
    PEAK_KIB.load(Ordering::Relaxed) as f64 / 1024.0
}

fn anonymous_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("Linux 4.5");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}
