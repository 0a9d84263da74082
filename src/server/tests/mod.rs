//! Sessions and links against each other, over unix sockets.

mod fixture;
mod hiding;
mod hostile;
mod lies;
mod sessions;
mod siege;
mod slow;
mod snapshots;
mod stdio;
