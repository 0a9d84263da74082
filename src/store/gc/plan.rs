//! The plan: which packs go, and what that frees and costs.

use super::{
    super::{
        Store, StoreError,
        catalog::PackPoint,
        index::{Key, Location},
        pack::{self, PackedBlock, Scan, State},
    },
    OnStep, Step,
    live::Live,
};
use crate::chunk::block::HEADER_BYTES;

/// Bytes of a block's table for each object.
const LINE_BYTES: u64 = 37;

/// A pack of which more than this part is needed stays as it is: so at most a quarter of a store is waste, and no byte that is freed costs more than
/// three that are copied.
const KEEP_ABOVE: f64 = 0.75;

/// What a `gc` does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Packs that go, those of which least is needed first.
    pub packs: Vec<PackPlan>,
    /// Packs that were looked at, and stay.
    pub kept_packs: u64,
    pub kept_bytes: u64,
    /// Of these, what isn't needed.
    pub kept_dead_bytes: u64,
    /// Packs that were not looked at: they take blocks, or may have been written for what is still on its way.
    pub recent_packs: u64,
    /// Layers that were offered and aren't committed yet.
    pub uploads: u64,
    /// Packs in which something is damaged stay.
    pub damaged: Vec<u32>,
}

/// One pack that goes.
#[derive(Clone, Debug, PartialEq)]
pub struct PackPlan {
    pub pack: u32,
    pub bytes: u64,
    /// What is needed of it and is copied first: about so many bytes.
    pub live_bytes: u64,
    pub objects: u64,
    pub live_objects: u64,
}

impl Plan {
    /// Bytes of the packs that go.
    pub fn bytes(&self) -> u64 {
        self.packs.iter().map(|pack| pack.bytes).sum()
    }

    /// Bytes that are copied.
    pub fn live_bytes(&self) -> u64 {
        self.packs.iter().map(|pack| pack.live_bytes).sum()
    }
}

/// Looks at all packs before `from`, by what is needed now.
pub(super) fn make(
    store: &Store,
    live: &Live,
    from: PackPoint,
    on_step: &mut OnStep<'_>,
) -> Result<Plan, StoreError> {
    let numbers = store.layout.pack_numbers(&*store.disk)?;
    let (old, recent): (Vec<u32>, Vec<u32>) = numbers.into_iter().partition(|number| *number < from.pack);
    let mut plan = Plan { recent_packs: recent.len() as u64, ..Plan::default() };
    for (done, number) in old.iter().enumerate() {
        on_step(Step::Progress { phase: "plan", done: done as u64, total: old.len() as u64 });
        let scan = scan(store, *number)?;
        if scan.state != State::Closed || !scan.damage.is_empty() {
            plan.damaged.push(*number);
            continue;
        }
        let pack = weigh(store, live, *number, &scan)?;
        if pack.live_bytes as f64 > KEEP_ABOVE * pack.bytes as f64 {
            plan.kept_packs += 1;
            plan.kept_bytes += pack.bytes;
            plan.kept_dead_bytes += pack.bytes.saturating_sub(pack.live_bytes);
        } else {
            plan.packs.push(pack);
        }
    }
    plan.packs.sort_by_key(|pack| (pack.live_bytes * 1000 / pack.bytes.max(1), pack.pack));
    Ok(plan)
}

/// What a closed pack holds, by its trailer.
pub(super) fn scan(store: &Store, number: u32) -> Result<Scan, StoreError> {
    let file = store.disk.open_read(&store.layout.pack(number))?;
    pack::scan(&*file, file.len()?, store.header.uuid, number, u64::MAX)
}

fn weigh(store: &Store, live: &Live, number: u32, scan: &Scan) -> Result<PackPlan, StoreError> {
    let mut plan =
        PackPlan { pack: number, bytes: scan.file_bytes, live_bytes: 0, objects: 0, live_objects: 0 };
    for block in &scan.blocks {
        let places = places(store, number, block)?;
        let needed = block
            .table
            .iter()
            .zip(&places)
            .filter(|(entry, place)| place.is_some() && live.has(&(entry.kind, entry.hash)));
        let (count, raw) =
            needed.fold((0, 0), |(count, raw), (entry, _)| (count + 1, raw + u64::from(entry.bytes)));
        let lines = block.table.len() as u64;
        plan.objects += lines;
        plan.live_objects += count;
        let all_raw: u64 = block.table.iter().map(|entry| u64::from(entry.bytes)).sum();
        let stored = u64::from(block.bytes).saturating_sub(HEADER_BYTES as u64 + lines * LINE_BYTES);
        plan.live_bytes += match count {
            0 => 0,
            _ => LINE_BYTES * count + stored * raw / all_raw.max(1),
        };
    }
    Ok(plan)
}

/// For each line of a block's table its place, if it is the one where the object counts.
pub(super) fn places(
    store: &Store,
    pack: u32,
    block: &PackedBlock,
) -> Result<Vec<Option<Location>>, StoreError> {
    let keys: Vec<Key> = block.table.iter().map(|entry| (entry.kind, entry.hash)).collect();
    let places = store.index.entries(&keys)?.into_iter().enumerate();
    let is_here = |number: usize, place: &Location| {
        (place.pack, place.offset, place.number as usize) == (pack, block.offset, number)
    };
    Ok(places.map(|(number, place)| place.filter(|place| is_here(number, place))).collect())
}
