//! The results host's store: packs, catalog and the derived index.
