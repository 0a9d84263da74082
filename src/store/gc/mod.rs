//! `gc`: takes packs away of which little or nothing is needed, while the store goes on.
//!
//! ```text
//! mark: roots ─► manifests ─► recipes ─► chunks       nothing is changed, others go on
//! plan: which packs go                                 likewise; with `dry_run` this is the end
//! doom: the gate is closed, the marking caught up      from now on what isn't needed of these packs is as good as gone
//! sweep: copy, sync, index, record, remove             some packs at a time, others go on
//! ```
//! Read on with [`mark`], [`plan`], [`sweep`]; the order of its writes and what a crash leaves is in `docs/format.md`, "Reclaiming".
//!
//! Invariants:
//! - Whoever enters something in catalog or slots has looked, inside the [gate](super::gate), for what it needs, and is inside until it is entered. What
//!   goes is decided while nobody is inside, by all that is entered then. So what a commit has found here stays, and what was decided to
//!   go isn't found any more: it is sent again and appended anew.
//! - A recipe counts as proven only while its chunks are here: one that nothing needs is forgotten, durably, before any pack goes.
//! - An object is in two places or in one, never in none: its old place goes when the new one is durable in pack and index.

mod live;
mod mark;
mod plan;
mod sweep;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

pub(super) use live::Doomed;
pub use plan::{PackPlan, Plan};
pub use sweep::Swept;

use self::{mark::Marking, sweep::Sweep};
use super::{Store, StoreError};

/// How long to try to find a moment in which nobody is inside the gate.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct GcOptions {
    /// zstd's, for blocks that are made anew.
    pub level: i32,
    /// Only the plan.
    pub dry_run: bool,
}

/// What is told of a `gc` on its way.
#[derive(Clone, Debug)]
pub enum Step<'a> {
    Progress {
        phase: &'static str,
        done: u64,
        total: u64,
    },
    /// What it is going to do.
    Planned(&'a Plan),
}

/// Is told of each step; says whether to go on. (A sweep that is stopped has done what it has done, and nothing by half.)
pub type OnStep<'a> = dyn FnMut(Step<'_>) -> bool + 'a;

impl Store {
    /// Reclaims what nothing needs. Blocks for long; everything else goes on meanwhile.
    pub fn gc(&self, options: &GcOptions, on_step: &mut OnStep<'_>) -> Result<Swept, StoreError> {
        let _only = self.collecting.try_lock().map_err(|_| StoreError::Collecting)?;
        self.healthy()?;
        if !options.dry_run {
            // So that nothing of old packs waits to be entered in the index.
            self.checkpoint()?;
        }
        let mut marking = Marking::new(self);
        marking.catch_up(on_step)?;
        let end = self.writer().end();
        let kept = self.leases.kept(end, self.clock.now_ms());
        let plan =
            Plan { uploads: kept.uploads as u64, ..plan::make(self, &marking.live, kept.from, on_step)? };
        let goes_on = on_step(Step::Planned(&plan));
        if options.dry_run || plan.packs.is_empty() || !goes_on {
            return Ok(Swept { stopped: !goes_on, ..Swept::default() });
        }
        let doomed = self.doom(marking, &plan, on_step)?;
        let swept = Sweep::new(self, doomed, options).run(&plan.packs, on_step);
        // What the index was told to forget is forgotten before anybody can see it again and rely on it. Where that fails, nobody can rely
        // on anything new any more.
        self.checkpoint()?;
        self.index.doom(None);
        swept
    }

    /// Decides what goes: all of the plan's packs that nothing needs which is entered by now.
    fn doom(
        &self,
        mut marking: Marking<'_>,
        plan: &Plan,
        on_step: &mut OnStep<'_>,
    ) -> Result<Arc<Doomed>, StoreError> {
        // Most of what has come meanwhile is marked before anybody has to wait for it.
        marking.catch_up(on_step)?;
        // This may take a while.
        on_step(Step::Progress { phase: "decide", done: 0, total: 1 });
        let closed = self.gate.close(PATIENCE);
        let _closed = closed.ok_or(StoreError::Busy { waited_s: PATIENCE.as_secs() })?;
        marking.catch_up(&mut |_| true)?;
        let doomed = Arc::new(Doomed {
            live: std::mem::take(&mut marking.live),
            packs: plan.packs.iter().map(|pack| pack.pack).collect(),
            before: self.writer().end(),
            spared: Mutex::new(HashSet::new()),
        });
        self.index.doom(Some(doomed.clone()));
        Ok(doomed)
    }
}
