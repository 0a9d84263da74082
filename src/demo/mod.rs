//! The whole system on one machine: a generator of jobs, and a player.
