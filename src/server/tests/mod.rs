//! Sessions and links against each other, over unix sockets.

mod fixture;
mod hiding;
mod hostile;
mod lies;
mod sessions;
mod snapshots;
mod stdio;
