//! `gc` at the request of an administrator: the store's own act, told step by step.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::store::{
    Store, StoreError,
    gc::{GcOptions, PackPlan, Plan, Step, Swept},
};

/// Exit code for what was done in part.
const WITH_FINDINGS: u8 = 3;
/// Between two lines of progress.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// Reclaims, and tells `tell` of it, which says whether anybody still listens: without anybody it stops. Returns the exit code.
pub fn collect(
    store: &Store,
    options: &GcOptions,
    mut tell: impl FnMut(Value) -> bool,
) -> Result<u8, StoreError> {
    let began = Instant::now();
    let mut told = Instant::now();
    let mut damaged = 0;
    let swept = store.gc(options, &mut |step| match step {
        Step::Progress { phase, done, total } => {
            if told.elapsed() < TELL_EVERY {
                return true;
            }
            told = Instant::now();
            tell(json!({"v": 1, "kind": "progress", "phase": phase, "done": done, "total": total}))
        }
        Step::Planned(plan) => {
            damaged = plan.damaged.len();
            let notes = plan.damaged.iter().map(|pack| finding(*pack, "something in it is damaged"));
            plan.packs.iter().map(pack_row).chain(notes).chain([plan_row(plan)]).all(&mut tell)
        }
    })?;
    let findings = damaged + swept.damaged.len();
    swept.damaged.iter().all(|(pack, what)| tell(finding(*pack, what)));
    if !options.dry_run {
        tell(result_row(&swept, findings, began.elapsed()));
    }
    Ok(if findings > 0 || swept.stopped { WITH_FINDINGS } else { 0 })
}

fn pack_row(pack: &PackPlan) -> Value {
    json!({
        "v": 1,
        "kind": "gc-pack",
        "pack": pack.pack,
        "action": if pack.live_objects == 0 { "drop" } else { "rewrite" },
        "bytes": pack.bytes,
        "live_bytes": pack.live_bytes,
        "objects": pack.objects,
        "live_objects": pack.live_objects,
    })
}

fn plan_row(plan: &Plan) -> Value {
    let dropped = plan.packs.iter().filter(|pack| pack.live_objects == 0).count();
    json!({
        "v": 1,
        "kind": "gc-plan",
        "drop_packs": dropped,
        "rewrite_packs": plan.packs.len() - dropped,
        "bytes": plan.bytes(),
        "copy_bytes": plan.live_bytes(),
        "free_bytes": plan.bytes().saturating_sub(plan.live_bytes()),
        "kept_packs": plan.kept_packs,
        "kept_bytes": plan.kept_bytes,
        "kept_dead_bytes": plan.kept_dead_bytes,
        "recent_packs": plan.recent_packs,
        "uploads": plan.uploads,
        "damaged_packs": plan.damaged.len(),
    })
}

fn finding(pack: u32, what: &str) -> Value {
    json!({
        "v": 1,
        "kind": "finding",
        "code": "gc-kept",
        "severity": "warning",
        "message": format!("pack {pack:08x} stays: {what}"),
        "units": [],
        "paths": [],
        "repair": "`resultsfs verify --store --read-data` names what is wrong in it, and its repair",
    })
}

fn result_row(swept: &Swept, findings: usize, took: Duration) -> Value {
    json!({
        "v": 1,
        "kind": "gc",
        "result": if swept.stopped { "stopped" } else { "done" },
        "packs": swept.packs,
        "freed_bytes": swept.freed_bytes,
        "copied_bytes": swept.copied_bytes,
        "findings": findings,
        "ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    })
}
