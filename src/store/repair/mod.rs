//! Repair: mends a store that nobody has open from what is left of it, and changes nothing that is good.
//!
//! ```text
//! header, catalog      from their copies, frame by frame                  [`mend_header`], [`mend_catalog`]
//! index                deleted, made again by the next opening            [`drop_index`]
//! packs                what can be read of a damaged one is appended anew [`Store::salvage`]
//! ```
//! Who knows what is damaged is the check ([`crate::verify::store`]), which also runs it all. The order of its writes and what a crash leaves is in
//! `docs/format.md`, "Repairing".
//!
//! Invariants:
//! - Nothing is deleted that something could still be read from: what is replaced is first given a second name in `quarantine`.
//! - A repair that was cut off and is given again ends where it would have.
//! - What was lost is no longer taken for there: not by the index, not by a proven recipe, not by a manifest that was committed before
//!   ([`losses`](super::losses)).

mod catalog;
mod salvage;

use std::path::Path;

pub(crate) use catalog::{Mend, mend_catalog, plan_catalog};
pub(crate) use salvage::{Known, Salvaged};

use super::{
    StoreError,
    layout::{Header, Layout},
};
use crate::durable::{self, Disk};

/// Gives `path` a second, durable name in quarantine. Nothing if there is no such file.
fn quarantine(disk: &dyn Disk, layout: &Layout, path: &Path) -> Result<(), StoreError> {
    durable::keep_in(disk, &layout.quarantine(), path)?;
    Ok(())
}

/// Puts the header's copy in place of a header that is missing or damaged. The copy is good.
pub(crate) fn mend_header(disk: &dyn Disk, layout: &Layout, header: &Header) -> Result<(), StoreError> {
    quarantine(disk, layout, &layout.header())?;
    Ok(durable::write_atomic_on(disk, &layout.header(), &header.encode())?)
}

/// Removes an index that is of no use; the next opening makes it again.
pub(crate) fn drop_index(disk: &dyn Disk, layout: &Layout) -> Result<(), StoreError> {
    durable::there(disk.remove(&layout.index()))?;
    Ok(disk.sync_dir(layout.dir())?)
}
