//! Whether a session's rights allow a commit. Checked before the store sees it.

use super::{
    api::{NewCommit, StoreApi, StoreFault},
    hosts::History,
};
use crate::{
    chunk::{ObjectKind, block::Block},
    ids::{Hash, Seq},
    manifest::{Body, Manifest},
    wire::rights::Rights,
};

/// Blocks. The error says which right is wanting.
pub(super) fn check(
    store: &dyn StoreApi,
    history: &History,
    rights: Rights,
    commit: &NewCommit,
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
    match newest_deletion(store, &commit.manifest)? {
        Some(_) if !rights.delete => {
            no(format!("{} deletes other hosts' entries, and this host has no right `delete`", commit.unit))
        }
        // It would hide what is still to come.
        Some(base) if base > store.head().seq => no(format!(
            "{} deletes what was there at {base}, and the catalog hasn't come so far",
            commit.unit
        )),
        _ => Ok(()),
    }
}

/// Whether a session may retire units: it hides what others have committed.
pub(super) fn retire(rights: Rights) -> Result<(), StoreFault> {
    match rights.add && rights.delete {
        true => Ok(()),
        false => Err(StoreFault::Unacceptable("this host has no right `delete`".to_owned())),
    }
}

/// The highest number that a whiteout is based on, if there is one.
fn newest_deletion(store: &dyn StoreApi, hash: &Hash) -> Result<Option<Seq>, StoreFault> {
    let unacceptable = |why: String| StoreFault::Unacceptable(why);
    let encoded = store
        .fetch(ObjectKind::Manifest, hash)?
        .ok_or_else(|| unacceptable(format!("manifest {hash} was not sent")))?;
    let block = Block::open(&encoded).map_err(|e| StoreFault::Broken(e.to_string()))?;
    let bytes = block
        .get(ObjectKind::Manifest, hash)
        .ok_or_else(|| StoreFault::Broken(format!("the block for manifest {hash} doesn't hold it")))?;
    let manifest = Manifest::decode(bytes).map_err(|e| unacceptable(e.to_string()))?;
    let whiteouts = manifest.entries().iter().filter(|entry| entry.body == Body::Whiteout);
    Ok(whiteouts.map(|entry| entry.base).max())
}
