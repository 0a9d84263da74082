//! The engine: completion, manifests, upload, eviction and recall.
