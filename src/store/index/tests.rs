//! Flushes, merges and forgetting, against a table in memory.

use std::path::Path;

use proptest::prelude::*;

use super::{place::*, written::*, *};
use crate::durable::sim::SimDisk;

const STORE: StoreUuid = StoreUuid([7; 16]);

fn layout() -> Layout {
    Layout::new(Path::new("/store"))
}

fn made() -> (Arc<dyn Disk>, Index) {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    disk.create_dir(Path::new("/store")).expect("made");
    let index = Index::create(&disk, &layout(), STORE).expect("made");
    (disk, index)
}

fn key(number: u64) -> Key {
    let kind = [ObjectKind::Chunk, ObjectKind::Recipe, ObjectKind::Manifest][number as usize % 3];
    (kind, Hash::of(&number.to_le_bytes()))
}

fn place(pack: u32, number: u64) -> Location {
    Location { pack, offset: number, block_bytes: 9, number: 2, bytes: 5 }
}

impl Index {
    fn put(&self, number: u64, place: Location) {
        let mut pending = self.pending.write().expect("ours");
        pending.fresh.objects.insert(key(number), place);
    }

    fn flush(&self) {
        self.begin_flush();
        self.finish_flush().expect("writes");
    }

    fn run_count(&self) -> usize {
        self.read().expect("reads").open_table(RUNS).expect("is there").iter().expect("reads").count()
    }
}

#[derive(Clone, Debug)]
enum Act {
    Put(u64, u32),
    /// With its present place, or another.
    Forget(u64, bool),
    Flush,
    Reopen,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        20 => (0u64..60, 1u32..9).prop_map(|(number, pack)| Act::Put(number, pack)),
        5 => (0u64..60, any::<bool>()).prop_map(|(number, is_there)| Act::Forget(number, is_there)),
        4 => Just(Act::Flush),
        1 => Just(Act::Reopen),
    ];
    proptest::collection::vec(act, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever is entered, forgotten, written, merged and opened again: each object is where it was put last, and no other is there.
    #[test]
    fn it_is_a_table(acts in acts()) {
        let (disk, mut index) = made();
        let mut table: HashMap<Key, Location> = HashMap::new();
        for act in acts {
            match act {
                Act::Put(number, pack) => {
                    index.put(number, place(pack, number));
                    table.insert(key(number), place(pack, number));
                }
                Act::Forget(number, is_there) => {
                    // What is forgotten was written before: a `gc` takes from packs that are synced.
                    index.flush();
                    let pack = table.get(&key(number)).map_or(1, |place| place.pack);
                    let wanted = place(if is_there { pack } else { 77 }, number);
                    index.forget(vec![(key(number), wanted)]);
                    index.flush();
                    if is_there {
                        table.remove(&key(number));
                    }
                }
                Act::Flush => index.flush(),
                Act::Reopen => {
                    index.flush();
                    drop(index);
                    index = Index::open(&disk, &layout(), STORE).expect("opens").0;
                }
            }
            let keys: Vec<Key> = (0..70).map(key).collect();
            let wanted: Vec<_> = keys.iter().map(|key| table.get(key).copied()).collect();
            prop_assert_eq!(index.get_many(&keys).expect("reads"), wanted);
        }
        index.flush();
        prop_assert_eq!(index.objects().expect("reads"), table.len() as u64);
        let mut all = HashMap::new();
        index.each(|key, place| _ = all.insert(key.expect("a key"), place)).expect("reads");
        prop_assert_eq!(all, table);
        prop_assert!(index.run_count() <= 7, "{} runs of {} objects", index.run_count(), 60);
    }
}

#[test]
fn many_flushes_leave_few_runs_and_few_files() {
    let (disk, index) = made();
    for flush in 0..100 {
        (0..10).for_each(|number| index.put(flush * 10 + number, place(1, number)));
        index.flush();
    }
    assert!(index.run_count() <= 8, "{}", index.run_count());
    assert_eq!(disk.list(&layout().index_runs()).expect("lists").len(), index.run_count());
    assert_eq!(index.objects().expect("reads"), 1000);
}

/// A merge that goes on beside everything else disturbs nobody, and is over, or given up, when the index is closed.
#[test]
fn a_merge_goes_on_beside_flushes_and_look_ups() {
    let dir = tempfile::tempdir().expect("a directory");
    let (disk, layout): (Arc<dyn Disk>, _) = (Arc::new(crate::durable::RealDisk), Layout::new(dir.path()));
    let index = Index::create(&disk, &layout, STORE).expect("made");
    /// The fifth is beyond what is merged at once.
    const FLUSHES: u64 = 6;
    let each = BESIDE_RECORDS / 4;
    for flush in 0..FLUSHES {
        (0..each).for_each(|number| index.put(flush * each + number, place(1, number)));
        index.flush();
        let keys: Vec<Key> = (0..=flush).map(|flush| key(flush * each + 5)).collect();
        assert!(index.get_many(&keys).expect("reads").iter().all(Option::is_some));
    }
    assert_eq!(index.objects().expect("reads"), FLUSHES * each);
    drop(index);
    let index = Index::open(&disk, &layout, STORE).expect("opens").0;
    let mut count = 0;
    index.each(|_, _| count += 1).expect("reads");
    assert_eq!((count, index.objects().expect("reads")), (FLUSHES * each, FLUSHES * each));
    assert_eq!(disk.list(&layout.index_runs()).expect("lists").len(), index.run_count());
}

/// A run that is damaged or isn't there is a damaged index: one that is opened is made again.
#[test]
fn without_a_run_the_index_is_made_again() {
    let (disk, index) = made();
    index.put(5, place(1, 5));
    index.reached(1, 400);
    index.flush();
    drop(index);
    let (index, packs) = Index::open(&disk, &layout(), STORE).expect("opens");
    assert_eq!((index.objects().expect("reads"), packs.len()), (1, 1));
    drop(index);
    let name = disk.list(&layout().index_runs()).expect("lists").pop().expect("a run");
    disk.remove(&layout().index_runs().join(name)).expect("removed");
    let file = disk.open_read(&layout().index()).expect("opens");
    assert!(Index::open_unchanged(file, &disk, &layout(), STORE).is_err());
    let (index, packs) = Index::open(&disk, &layout(), STORE).expect("opens");
    assert_eq!((index.objects().expect("reads"), packs.len()), (0, 0));
}
