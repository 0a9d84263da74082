//! Whether a session's rights allow a commit. Checked before the store sees it.

use std::sync::Arc;

use super::{
    api::{NewCommit, StoreApi, StoreFault},
    hiding,
    hosts::History,
};
use crate::{
    chunk::{ObjectKind, block::Block},
    ids::{Hash, Seq},
    manifest::{Body, Manifest},
    wire::{RetireUnit, rights::Rights},
};

/// Of a layer that is to be committed now. Blocks. The error says which right is wanting.
pub(super) fn commit(
    store: &dyn StoreApi,
    history: &History,
    rights: Rights,
    commit: &NewCommit,
) -> Result<(), StoreFault> {
    check(store, history, rights, commit, store.head().seq.next())
}

/// Of a layer that is to be shown while it runs: then its changes are newer than all commits. Blocks.
pub(super) fn publish(
    store: &dyn StoreApi,
    history: &History,
    rights: Rights,
    snapshot: &NewCommit,
) -> Result<(), StoreFault> {
    check(store, history, rights, snapshot, Seq::live(u64::MAX))
}

fn check(
    store: &dyn StoreApi,
    history: &History,
    rights: Rights,
    commit: &NewCommit,
    seq: Seq,
) -> Result<(), StoreFault> {
    let no = |why: String| Err(StoreFault::Unacceptable(why));
    if !rights.add {
        return no("this host may only read: it has no right `add`".to_owned());
    }
    if !rights.overlay && history.is_others(store, commit.host, &commit.unit)? {
        return no(format!(
            "other hosts have layers of {}, and this host has no right `overlay`",
            commit.unit
        ));
    }
    let manifest = read_manifest(store, &commit.manifest)?;
    match newest_deletion(&manifest) {
        Some(_) if !rights.delete => {
            no(format!("{} deletes other hosts' entries, and this host has no right `delete`", commit.unit))
        }
        // It would hide what is still to come.
        Some(base) if base > store.head().seq => no(format!(
            "{} deletes what was there at {base}, and the catalog hasn't come so far",
            commit.unit
        )),
        _ if rights.delete => Ok(()),
        _ => hiding::check(store, history, commit, Arc::new(manifest), seq),
    }
}

/// Whether a session may retire units: it hides what others have committed.
pub(super) fn retire(rights: Rights, units: &[RetireUnit]) -> Result<(), StoreFault> {
    if rights.add && rights.delete {
        return Ok(());
    }
    let first = units.first().map_or_else(|| "nothing".to_owned(), |wanted| wanted.unit.to_string());
    let more = if units.len() > 1 { format!(" and {} more", units.len() - 1) } else { String::new() };
    Err(StoreFault::Unacceptable(format!(
        "{first}{more} would be retired, and this host has no right `delete`"
    )))
}

/// The highest number that a whiteout is based on, if there is one.
fn newest_deletion(manifest: &Manifest) -> Option<Seq> {
    let whiteouts = manifest.entries().iter().filter(|entry| entry.body == Body::Whiteout);
    whiteouts.map(|entry| entry.base).max()
}

/// A manifest that the store has. Blocks.
pub(super) fn read_manifest(store: &dyn StoreApi, hash: &Hash) -> Result<Manifest, StoreFault> {
    let unacceptable = |why: String| StoreFault::Unacceptable(why);
    let encoded = store.fetch(ObjectKind::Manifest, hash)?.ok_or_else(|| match store.has_room() {
        // It may have been sent and not taken in.
        Err(full) => full,
        Ok(()) => unacceptable(format!("manifest {hash} was not sent")),
    })?;
    let block = Block::open(&encoded).map_err(|e| StoreFault::Broken(e.to_string()))?;
    let bytes = block
        .get(ObjectKind::Manifest, hash)
        .ok_or_else(|| StoreFault::Broken(format!("the block for manifest {hash} doesn't hold it")))?;
    Manifest::decode(bytes).map_err(|e| unacceptable(format!("manifest {hash}: {e}")))
}
