//! The main job, end to end: real mounts, a real sshd, a real store, several hosts on one machine.

mod archiver;
mod away;
mod bars;
mod eviction;
mod export;
mod faults;
mod flood;
mod gc;
mod handover;
#[path = "../common/lab.rs"]
mod harness;
mod identity;
mod import;
mod keys;
mod limits;
mod listing;
mod live;
mod nasty;
mod overlay;
mod producers;
mod promises;
mod prune;
mod recovery;
mod repair;
mod retire;
mod takeover;
mod tight;
mod union;
mod unprivileged;
