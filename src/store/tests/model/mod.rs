//! `gc` among all that goes on beside it: uploads, snapshots, readers, prunes, and crashes.
//!
//! The actors ([`actors`]) take turns ([`turns`]): at each operation on packs, runs of the index, catalog and snapshots, and before each wait, a seed says who goes
//! on. So any of them may be stopped between any two steps of any other, and a seed gives the same run again. At each of these moments somebody
//! outside the store ([`oracle`]) compares what it promises with what it holds. The disk crashes at an operation that the seed picks, and what is left is opened
//! again, until the last round, which ends in peace: then what nothing needs must be gone.
//!
//! More seeds: `RESULTSFS_SEEDS=1000 cargo test --lib store::tests::model`; one alone: `RESULTSFS_SEED=17`.

mod actors;
mod oracle;

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{fixture::*, gc::gc, turns};
use crate::{
    clock::ManualClock,
    durable::{
        Disk,
        sim::{self, SimDisk, Unsynced},
    },
    store::{Store, StoreError, StoreOptions, Tuning},
};

use self::oracle::Oracle;

/// Seeds of a usual run.
const SEEDS: u64 = 40;
/// An upload that isn't heard of for so long is forgotten.
const LONG_MS: u64 = 100 * 60 * 60 * 1000;

/// A store in use, from its opening to a crash or its end.
struct World {
    seed: u64,
    lease_ms: u64,
    store: Arc<Store>,
    clock: Arc<ManualClock>,
    oracle: Arc<Oracle>,
    /// Actors that aren't at their ends, but for those who only look on.
    busy: AtomicUsize,
    looks: Mutex<Random>,
}

impl World {
    fn open(
        disk: &SimDisk,
        seed: u64,
        lease_ms: u64,
        clock: &Arc<ManualClock>,
        oracle: &Arc<Oracle>,
    ) -> Result<Arc<Self>, StoreError> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let options = StoreOptions { clock: clock.clone() };
        let store = Store::open_on(disk, Path::new(DIR), options, Tuning { lease_ms, ..SMALL })?;
        let (busy, looks) = (AtomicUsize::new(0), Mutex::new(Random(!seed)));
        Ok(Arc::new(Self {
            seed,
            lease_ms,
            store,
            clock: clock.clone(),
            oracle: oracle.clone(),
            busy,
            looks,
        }))
    }

    /// Whether nobody holds a lock that another may need: then the turn may be given away.
    fn is_free(&self) -> bool {
        let Store { writer, log, blocks, .. } = &*self.store;
        writer.try_lock().is_ok() && log.try_lock().is_ok() && blocks.is_free()
    }

    /// Before an operation of one of the actors.
    fn step(&self, path: &Path) {
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // The index's database holds locks of its own while it writes.
        let is_seen =
            [".pack", ".run", "catalog", "packs", "snapshots"].iter().any(|end| file.ends_with(end));
        if is_seen && self.is_free() {
            let look = self.looks.lock().expect("nobody panics").below(8);
            if look == 0 {
                self.oracle.look(&self.store, self.seed);
            }
            turns::pass();
        }
    }

    /// All actors to their ends.
    fn play(self: &Arc<Self>, stay: usize) -> u64 {
        let roles = actors::all(self);
        self.busy.store(roles.iter().filter(|role| role.is_busy).count(), Ordering::Release);
        let threads = roles.into_iter().map(|role| {
            let world = self.clone();
            let act = move || {
                let _leaves = Leaves { world: world.clone(), is_busy: role.is_busy };
                let seen = world.clone();
                sim::before_each(move |path| seen.step(path));
                (role.act)(&world);
            };
            Box::new(act) as Box<dyn FnOnce() + Send>
        });
        turns::run(self.seed, stay, threads.collect())
    }

    /// With nobody there and nothing on its way any more, `gc` takes all that nothing needs, and then there is nothing left to do.
    fn end(&self) {
        let Self { store, oracle, seed, .. } = self;
        store.slots().all().iter().for_each(|slot| store.withdraw(slot.host, &slot.unit, slot.generation));
        self.clock.advance(LONG_MS);
        let is_done = (0..4).any(|_| gc(store).0.packs.is_empty());
        assert!(is_done, "seed {seed}: there is always something left to do");
        let before = store.stats();
        let (plan, swept) = gc(store);
        assert!(plan.packs.is_empty() && plan.uploads == 0, "seed {seed}: {plan:?}");
        assert_eq!((swept, store.stats()), (Default::default(), before), "seed {seed}");
        oracle.check(store, *seed);
        oracle.is_all_that_is_there(store, *seed);
    }
}

/// An actor that ends, however it ends.
struct Leaves {
    world: Arc<World>,
    is_busy: bool,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        self.world.busy.fetch_sub(usize::from(self.is_busy), Ordering::AcqRel);
    }
}

/// A seed's whole run. Gives who had the turns, as a number, and the bytes that were freed.
fn run(seed: u64) -> (u64, u64) {
    let mut random = Random(seed);
    // Of half of them nobody is kept from taking away at once what nothing needs.
    let lease_ms = if random.one_in(2) { 0 } else { 1000 };
    let clock = Arc::new(ManualClock::at(1_700_000_000_000));
    let oracle = Arc::new(Oracle::default());
    let mut disk = SimDisk::new();
    let mut trace = 0u64;
    let rounds = 1 + random.below(3);
    for round in 0..rounds {
        let world = World::open(&disk, seed * 10 + round as u64, lease_ms, &clock, &oracle)
            .unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
        oracle.reopened(&world.store, world.seed);
        let crashes = round + 1 < rounds;
        if crashes {
            disk.crash_after(100 + random.below(700) as u64);
        }
        trace = trace.wrapping_mul(31).wrapping_add(world.play([2, 8, 30, 100, 400][random.below(5)]));
        if !crashes {
            world.end();
        }
        drop(world);
        if crashes {
            let seed = seed + round as u64;
            disk = match random.below(5) {
                0 => disk.after_crash(Unsynced::Dropped),
                1 => disk.after_crash(Unsynced::Kept),
                2 => disk.after_kill(),
                3 => disk.after_crash(Unsynced::Torn(seed)),
                _ => disk.after_crash(Unsynced::Reordered(seed)),
            };
            // Twice, the second time below: an opening that has just begun to put things right is as good as none.
            drop(World::open(&disk, seed, lease_ms, &clock, &oracle));
        }
        verify_clean(&disk, &format!("seed {seed}, round {round}"));
    }
    disk.remove(&Path::new(DIR).join("index.redb")).expect("removes");
    let world = World::open(&disk, seed, lease_ms, &clock, &oracle).expect("opens");
    oracle.reopened(&world.store, seed);
    (trace, oracle.freed())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// P7, P10: nothing that was acknowledged is ever missing, what a host was told is here is here for its commit, and what nothing needs goes, in whatever
/// order all of them act and wherever the disk crashes.
fn promises_hold(part: u64, of: u64) {
    if let Some(seed) = number("RESULTSFS_SEED") {
        run(seed);
        return;
    }
    let seeds = number("RESULTSFS_SEEDS").unwrap_or(SEEDS);
    let freed: u64 = (0..seeds).filter(|seed| seed % of == part).map(|seed| run(seed).1).sum();
    // Else they had nothing to agree about. Which of the seeds free how much changes with every operation that the store does more or less.
    assert!(freed > seeds / of * 50_000, "{freed}");
}

/// P7, P10: the first half of the seeds.
#[test]
fn promises_hold_whoever_acts_when_1() {
    promises_hold(0, 2);
}

/// P7, P10: the second half.
#[test]
fn promises_hold_whoever_acts_when_2() {
    promises_hold(1, 2);
}

#[test]
fn a_seed_gives_the_same_run_again() {
    assert_eq!(run(3), run(3));
}
