//! Sessions and links against each other, over unix sockets.

mod fixture;
mod hostile;
mod lies;
mod sessions;
mod snapshots;
mod stdio;
