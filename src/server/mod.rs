//! The store's side of a session, and its daemon.
