//! The catalog from itself and its copy: at each place the frame that is whole and follows, from whichever has it.

use std::{path::Path, sync::Arc};

use super::{
    super::{
        StoreError,
        catalog::{Frame, Witness, next_record, vouched_for},
        layout::Layout,
    },
    quarantine,
};
use crate::{
    catalog::Head,
    durable::{self, Disk, DiskFile},
    ids::StoreUuid,
};

/// Written at a time.
const STEP: usize = 1 << 20;

/// What can be done about a damaged catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mend {
    /// Both together have all of it.
    Whole { head: Head, bytes: u64 },
    /// From the record after this one on, something is in neither.
    Lost { after: Head },
}

/// Catalog and copy, as far as they are there.
struct Pair([Option<Arc<dyn DiskFile>>; 2]);

impl Pair {
    fn open(disk: &dyn Disk, layout: &Layout) -> Result<Self, StoreError> {
        let open = |path: &Path| durable::there(disk.open_read(path));
        Ok(Self([open(&layout.catalog())?, open(&layout.catalog_copy())?]))
    }

    fn files(&self) -> impl Iterator<Item = &dyn DiskFile> {
        self.0.iter().flatten().map(|file| &**file)
    }

    /// Every frame that is whole in one of them, in order, as long as they follow one another.
    fn each(
        &self,
        store: StoreUuid,
        mut each: impl FnMut(&Frame, Head) -> Result<(), StoreError>,
    ) -> Result<(Head, u64), StoreError> {
        let (mut head, mut end) = (Head::genesis(store), 0);
        'frames: loop {
            for file in self.files() {
                if let Some((frame, next)) = next_record(file, end, head)? {
                    each(&frame, next)?;
                    head = next;
                    end += frame.bytes();
                    continue 'frames;
                }
            }
            return Ok((head, end));
        }
    }
}

/// What both together come to. What they end with must be all that anybody vouches for.
pub(crate) fn plan_catalog(
    disk: &dyn Disk,
    layout: &Layout,
    store: StoreUuid,
    witness: Witness,
) -> Result<Mend, StoreError> {
    let pair = Pair::open(disk, layout)?;
    let mut is_another = false;
    let (head, bytes) = pair.each(store, |_, head| {
        is_another |= matches!(witness, Witness::Says(says) if says.seq == head.seq && says != head);
        Ok(())
    })?;
    let mut is_lost = is_another || matches!(witness, Witness::Says(says) if says.seq > head.seq);
    is_lost |= pair.files().next().is_none();
    for file in pair.files() {
        is_lost |= vouched_for(file, bytes, file.len()?.max(bytes))?;
    }
    Ok(if is_lost { Mend::Lost { after: head } } else { Mend::Whole { head, bytes } })
}

/// Writes the catalog anew from both, as a whole; what was there stays in quarantine.
pub(crate) fn mend_catalog(disk: &dyn Disk, layout: &Layout, store: StoreUuid) -> Result<(), StoreError> {
    let pair = Pair::open(disk, layout)?;
    let temporary = layout.catalog().with_extension("tmp");
    durable::there(disk.remove(&temporary))?;
    let file = disk.create(&temporary)?;
    let (mut at, mut waiting) = (0, Vec::new());
    pair.each(store, |frame, _| {
        waiting.extend_from_slice(&frame.encode());
        if waiting.len() >= STEP {
            file.write_at(at, &waiting)?;
            at += waiting.len() as u64;
            waiting.clear();
        }
        Ok(())
    })?;
    file.write_at(at, &waiting)?;
    file.sync_data()?;
    quarantine(disk, layout, &layout.catalog())?;
    disk.rename(&temporary, &layout.catalog())?;
    Ok(disk.sync_dir(layout.dir())?)
}
