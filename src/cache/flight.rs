//! Fetches and loads under way: whoever wants what is being fetched waits for it in place of asking again, and whoever wants a block that is
//! being read from the disk waits in place of unpacking it, too.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Condvar, Mutex, MutexGuard},
};

use super::{FetchError, object::Object, recipe::Placed, shelf::BlockName};
use crate::{chunk::ObjectKind, ids::Hash};

/// Waits for a neighbour's fetch before an object is fetched anyway.
const NEAR_WAITS: usize = 2;

type Landed = Result<Object, FetchError>;
type Table = HashMap<(ObjectKind, Hash), Arc<Flight>>;

/// The table of fetches under way.
#[derive(Debug, Default)]
pub struct Flights {
    table: Mutex<Table>,
}

/// One fetch.
#[derive(Debug, Default)]
pub struct Flight {
    landed: Mutex<Option<Landed>>,
    signal: Condvar,
}

impl Flight {
    /// Waits for its end. The time is bounded by the source's.
    pub fn wait(&self) -> Landed {
        let landed = self.landed.lock().expect("no code panics under this lock");
        let landed = self.signal.wait_while(landed, |l| l.is_none()).expect("no code panics under this lock");
        landed.clone().expect("waited for it")
    }

    fn land(&self, result: Landed) {
        *self.landed.lock().expect("no code panics under this lock") = Some(result);
        self.signal.notify_all();
    }
}

impl Flights {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no code panics under this lock")
    }

    /// Does `fetch`, or waits for the same object's fetch that is under way. Before that it waits for fetches
    /// of `near` chunks, which most likely bring the object too; so `fetch` looks here first. No lock is held
    /// meanwhile.
    pub fn join(
        &self,
        kind: ObjectKind,
        hash: &Hash,
        near: &[Placed],
        fetch: impl FnOnce() -> Landed,
    ) -> Landed {
        for waits in 0.. {
            let mut table = self.table();
            if let Some(flight) = table.get(&(kind, *hash)).cloned() {
                drop(table);
                return flight.wait();
            }
            if let Some(flight) = find(&table, near).filter(|_| waits < NEAR_WAITS) {
                drop(table);
                match flight.wait() {
                    Err(e @ (FetchError::Unreachable(_) | FetchError::Timeout)) => return Err(e),
                    _ => continue,
                }
            }
            let flight = table.entry((kind, *hash)).or_default().clone();
            drop(table);
            let mut landing = Landing { flights: self, object: (kind, *hash), flight, result: broken_off() };
            landing.result = fetch();
            return landing.result.clone();
        }
        unreachable!("the loop ends after {NEAR_WAITS} waits")
    }
}

fn find(table: &Table, near: &[Placed]) -> Option<Arc<Flight>> {
    if table.is_empty() {
        return None;
    }
    near.iter().find_map(|chunk| table.get(&(ObjectKind::Chunk, chunk.hash)).cloned())
}

fn broken_off() -> Landed {
    Err(FetchError::Unreachable("the fetch was broken off".to_owned()))
}

/// Ends a flight, also when the fetch panics: the others mustn't wait for ever.
struct Landing<'a> {
    flights: &'a Flights,
    object: (ObjectKind, Hash),
    flight: Arc<Flight>,
    result: Landed,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.flights.table().remove(&self.object);
        self.flight.land(self.result.clone());
    }
}

/// Whose turn it is to load a block: one at a time for each. Bounded by the disk, never by the network.
#[derive(Debug, Default)]
pub struct Turns {
    taken: Mutex<HashSet<BlockName>>,
    freed: Condvar,
}

/// A turn, until it is dropped.
pub struct Turn<'a> {
    turns: &'a Turns,
    name: BlockName,
}

impl Turns {
    /// Waits for whoever has this block's turn.
    pub fn take(&self, name: BlockName) -> Turn<'_> {
        let taken = self.taken.lock().expect("no code panics under this lock");
        let mut taken =
            self.freed.wait_while(taken, |t| t.contains(&name)).expect("no code panics under this lock");
        taken.insert(name);
        Turn { turns: self, name }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.taken.lock().expect("no code panics under this lock").remove(&self.name);
        self.turns.freed.notify_all();
    }
}
