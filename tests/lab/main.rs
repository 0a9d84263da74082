//! The main job, end to end: real mounts, a real sshd, a real store, several hosts on one machine.

mod harness;
mod faults;
mod identity;
mod union;
