//! The command line's contract, docs/cli.md, from outside: exit codes, words, JSON, and what the commands do to the world.

mod config;
mod costs;
#[path = "../common/lab.rs"]
mod harness;
mod mounts;
mod retention;
mod said;
mod serve;
mod units;
mod uploads;
mod usage;
mod verify;
mod watched;
