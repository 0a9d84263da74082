//! The rows that were read last, in memory: whoever asks for one unit of a job asks for the others next.
//!
//! They are kept by *neighbourhood*: a directory at the top with all units in it, `hosts/` by itself, or a host's directory in it with all its
//! tasks. An empty neighbourhood is known, too, so that jobs that were never committed cost nothing.
//!
//! Bounded in rows by two shelves: what is read goes to the new one, and when that is full the old one is dropped and the new one becomes
//! the old. Invariant: no row here is older than the last change, since whoever read before it can't put it here after it.

use std::{
    collections::HashMap,
    sync::{Arc, RwLock},
};

use super::{super::db::dir_key, row::LayerHead};
use crate::{ids::RelPath, layout};

/// Rows on each of the two shelves, about 400 bytes each; an empty neighbourhood counts as one.
const SHELF_ROWS: usize = 8 << 10;
/// Rows of the largest neighbourhood that is kept. Larger ones (a host's tasks of many years) are looked up row by row.
pub(super) const NEAR_ROWS: usize = 1 << 10;

/// Where a path's neighbours are: what their keys begin with, and whether only the directory's own units count.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub prefix: Vec<u8>,
    pub is_shallow: bool,
}

impl Place {
    /// The neighbourhood that a unit rooted at `root` is in; the tree's own top has none.
    pub fn of(root: &RelPath) -> Option<Self> {
        let first = root.components().next()?;
        if first != layout::HOSTS.as_bytes() {
            return Some(Self { prefix: dir_key(&root.first(1)), is_shallow: false });
        }
        let depth = root.depth().min(2);
        Some(Self { prefix: dir_key(&root.first(depth)), is_shallow: depth == 1 })
    }
}

/// One unit.
#[derive(Debug)]
pub(super) struct Row {
    pub key: Box<[u8]>,
    pub layers: Vec<LayerHead>,
}

/// All rows of a neighbourhood, in order; `None` if they are too many.
pub(super) type Near = Option<Arc<Vec<Row>>>;

/// The rows of `near` whose keys begin with `prefix`.
pub(super) fn below<'a>(near: &'a [Row], prefix: &[u8]) -> &'a [Row] {
    let from = near.partition_point(|row| &row.key[..] < prefix);
    let count = near[from..].partition_point(|row| row.key.starts_with(prefix));
    &near[from..from + count]
}

#[derive(Debug, Default)]
struct Shelves {
    new: HashMap<Place, Near>,
    old: HashMap<Place, Near>,
    new_rows: usize,
    /// Changes so far.
    changes: u64,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Memo(RwLock<Shelves>);

impl Memo {
    /// What is known of a place, or the number of changes so far, to be told to [`Memo::put`].
    pub fn get(&self, place: &Place) -> Result<Near, u64> {
        let shelves = self.0.read().expect("no code panics under this lock");
        if let Some(near) = shelves.new.get(place) {
            return Ok(near.clone());
        }
        let (changes, old) = (shelves.changes, shelves.old.get(place).cloned());
        drop(shelves);
        let near = old.ok_or(changes)?;
        self.put(changes, place.clone(), &near);
        Ok(near)
    }

    /// Keeps what was read after `changes` changes, if there was none meanwhile.
    pub fn put(&self, changes: u64, place: Place, near: &Near) {
        let mut shelves = self.0.write().expect("no code panics under this lock");
        if shelves.changes != changes || shelves.new.contains_key(&place) {
            return;
        }
        let rows = near.as_ref().map_or(0, |rows| rows.len()).max(1);
        if shelves.new_rows + rows > SHELF_ROWS {
            shelves.old = std::mem::take(&mut shelves.new);
            shelves.new_rows = 0;
        }
        shelves.new_rows += rows;
        shelves.new.insert(place, near.clone());
    }

    /// The rows at these places have changed.
    pub fn changed(&self, places: impl IntoIterator<Item = Place>) {
        let mut shelves = self.0.write().expect("no code panics under this lock");
        shelves.changes += 1;
        for place in places {
            // What it counted stays counted until the shelf is dropped: the bound holds.
            shelves.new.remove(&place);
            shelves.old.remove(&place);
        }
    }

    /// Anything may have changed.
    pub fn clear(&self) {
        let mut shelves = self.0.write().expect("no code panics under this lock");
        *shelves = Shelves { changes: shelves.changes + 1, ..Shelves::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        Place::of(&RelPath::parse(text).expect("a path")).expect("below the top")
    }

    fn near(rows: usize) -> Near {
        let row = |i: usize| Row { key: i.to_be_bytes().into(), layers: Vec::new() };
        Some(Arc::new((0..rows).map(row).collect()))
    }

    #[test]
    fn jobs_and_hosts_are_neighbourhoods() {
        assert_eq!(place("12-me/host1/debug"), place("12-me"));
        assert_ne!(place("12-me"), place("12-me-x"));
        assert_eq!(place("hosts/h/1-verify"), place("hosts/h"));
        assert_ne!(place("hosts/h"), place("hosts"));
        assert!(place("hosts").is_shallow && !place("hosts/h").is_shallow && !place("12-me").is_shallow);
        assert_eq!(Place::of(&RelPath::ROOT), None);
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept() {
        let memo = Memo::default();
        let before = memo.get(&place("1-a")).expect_err("nothing is known");
        memo.changed([place("2-b")]);
        memo.put(before, place("1-a"), &near(1));
        let now = memo.get(&place("1-a")).expect_err("it may be old");
        memo.put(now, place("1-a"), &near(1));
        assert!(memo.get(&place("1-a")).is_ok_and(|near| near.is_some()));
        memo.changed([place("1-a")]);
        assert!(memo.get(&place("1-a")).is_err());
    }

    #[test]
    fn the_memory_is_bounded_and_what_is_used_stays() {
        let memo = Memo::default();
        for i in 0..1000 {
            for job in ["0-used".to_owned(), format!("{i}-x")] {
                if let Err(changes) = memo.get(&place(&job)) {
                    assert!(job != "0-used" || i == 0, "used all the time, dropped at {i}");
                    memo.put(changes, place(&job), &near(100));
                }
            }
        }
        let shelves = memo.0.read().expect("nobody panicked");
        assert!((shelves.new.len() + shelves.old.len()) * 100 <= 2 * SHELF_ROWS);
    }
}
