//! Remote blocks on local disk, checked and bounded.
