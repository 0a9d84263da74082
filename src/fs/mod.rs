//! The results tree: the union of the spool and all committed layers. Knows nothing of fuser.

pub mod union;
pub mod view;
