//! Conflicts: two hosts have changed one path, and the later change isn't based on the earlier one.
//!
//! The union goes on as always, by sequence number; what it doesn't show stays in the store. Here it is said that there is such a
//! thing. Whoever changes what shows has seen it and settles the conflict.

use std::collections::BTreeMap;

use super::union::{Candidate, Layer};
use crate::{
    ids::RelPath,
    manifest::{Body, Entry},
};

/// A change that was overtaken by one that knew nothing of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// What counts at the path. Of a deletion that came too late: what it would have deleted.
    pub shown: Candidate,
    pub lost: Candidate,
}

/// All entries that these layers have at `path`, newest first, whatever hides them.
pub fn entries_at(layers: &[Layer], path: &RelPath) -> Vec<Candidate> {
    let entry = |layer: &Layer| {
        let below = path.below(&layer.unit.root)?;
        layer.manifest.get(&below).map(|entry| layer.candidate(entry))
    };
    let mut entries: Vec<_> = layers.iter().filter_map(entry).collect();
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.seq));
    entries
}

/// The conflicts among all entries at one path. What isn't committed yet may still take notice.
pub fn conflicts_among(entries: &[Candidate]) -> Vec<Conflict> {
    let entries = || entries.iter().filter(|entry| !entry.seq.is_live());
    let whiteouts = || entries().filter(|e| e.entry.body == Body::Whiteout);
    let hidden = whiteouts().map(|w| w.entry.base).max().unwrap_or_default();
    let shown = entries().filter(|e| e.entry.body != Body::Whiteout && e.seq > hidden);
    let Some(shown) = shown.max_by_key(|e| e.seq) else { return Vec::new() };
    let is_lost = |other: &&Candidate| {
        let unseen_before = other.seq < shown.seq && other.seq > shown.entry.base;
        let unseen_after = other.seq > shown.seq && other.entry.base < shown.seq;
        other.host != shown.host && (unseen_before || unseen_after) && !is_same(other, shown)
    };
    let lost = entries().filter(is_lost);
    lost.map(|lost| Conflict { shown: shown.clone(), lost: lost.clone() }).collect()
}

/// The conflicts of one unit's layers, by path.
pub fn conflicts_in(layers: &[Layer]) -> Vec<Conflict> {
    let mut at: BTreeMap<&RelPath, Vec<(&Layer, &Entry)>> = BTreeMap::new();
    for layer in layers {
        for entry in layer.manifest.entries() {
            at.entry(&entry.path).or_default().push((layer, entry));
        }
    }
    let contested = at
        .into_values()
        .filter(|entries| entries.len() > 1 && entries.iter().any(|(_, entry)| entry.body != Body::Dir));
    let candidates = |entries: Vec<(&Layer, &Entry)>| {
        entries.into_iter().map(|(layer, entry)| layer.candidate(entry)).collect::<Vec<_>>()
    };
    contested.flat_map(|entries| conflicts_among(&candidates(entries))).collect()
}

/// Nothing is lost with the one where the other is. Directories are merged.
fn is_same(a: &Candidate, b: &Candidate) -> bool {
    match (a.file, b.file) {
        (Some(a), Some(b)) => a == b,
        _ => a.entry.body == b.entry.body,
    }
}
