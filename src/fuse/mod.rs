//! The kernel's side of the mount: a thin adapter from fuser to the file system.
