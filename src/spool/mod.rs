//! The spool: the host's private directory, an ordinary tree on a local disk, that holds its live layers.

pub mod activity;
