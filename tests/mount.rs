//! The mount, by real system calls on a real kernel mount, with and without passthrough.
//!
//! Needs root (or fusermount3) and /dev/fuse, and fails without them rather than passing by doing nothing. A watchdog aborts the
//! kernel's connection when a test takes too long, so that nothing hangs for good.

#[path = "mount/following.rs"]
mod following;
#[path = "mount/history.rs"]
mod history;
#[path = "mount/lab.rs"]
mod lab;
#[path = "mount/limits.rs"]
mod limits;
#[path = "mount/local.rs"]
mod local;
#[path = "mount/model.rs"]
mod model;
#[path = "mount/programs.rs"]
mod programs;
#[path = "mount/store.rs"]
mod store;
#[path = "mount/union.rs"]
mod union;
