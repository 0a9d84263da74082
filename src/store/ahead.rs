//! Contents are hashed ahead: as their chunks arrive, while these are still unpacked in memory.
//!
//! A recipe counts only when the bytes of its chunks were hashed together ([`check`](super::check)). Read back at the commit, all new data would be read and
//! unpacked a second time. So a host says which chunks a file is cut into when it asks which of them are missing ([`Stretch`]), and each is hashed as
//! soon as it and all before it are here.
//!
//! Invariants: what a host says is believed in nothing. A course is a statement about names and bytes alone: the chunks with these names, in this
//! order, have bytes that hash to this; that stays true whatever becomes of them. It proves a recipe that names the same chunks, after these were found to be
//! here. All of it is in memory only, bounded, and can be forgotten at any moment: then the chunks are read back.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard},
};

use super::{
    Store, StoreError,
    blocks::Blocks,
    index::{Key, Location},
};
use crate::{
    chunk::{ChunkRef, ObjectKind, Recipe, Stretch, hashes_in},
    ids::Hash,
};

/// Contents that are followed, some 2 KiB each: those whose recipe is to come yet, of all hosts.
const COURSES: usize = 4096;
/// Chunks of one content that were told and haven't come: a few windows.
const DUE: usize = 4096;

/// All contents that are followed.
#[derive(Debug, Default)]
pub(super) struct Ahead(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    courses: HashMap<Hash, Course>,
    /// By the chunk that they wait for.
    waiting: HashMap<Hash, Vec<Hash>>,
    uses: u64,
}

/// How far a content was told and hashed.
#[derive(Debug)]
struct Course {
    /// Not here while somebody goes on with it.
    hashed: Option<Hashed>,
    /// Chunks that come next.
    due: VecDeque<ChunkRef>,
    /// Chunks that were told.
    told: u64,
    used: u64,
}

/// The chunks that were hashed.
#[derive(Debug, Default)]
struct Hashed {
    /// Their bytes.
    content: blake3::Hasher,
    /// Which they are: each one's name hashed with this of those before.
    names: [u8; 32],
    chunks: usize,
}

impl Hashed {
    fn name(&mut self, chunks: &[ChunkRef]) {
        for ChunkRef { hash, bytes } in chunks {
            let mut name = [0; 68];
            name[..32].copy_from_slice(&self.names);
            name[32..64].copy_from_slice(&hash.0);
            name[64..].copy_from_slice(&bytes.to_le_bytes());
            self.names = Hash::of(&name).0;
        }
        self.chunks += chunks.len();
    }
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nothing panics while it holds the courses' lock")
    }

    /// A host has said what a content is made of. What doesn't continue what was told before is left out.
    fn tell(&self, stretch: &Stretch) {
        let mut inner = self.lock();
        inner.uses += 1;
        let used = inner.uses;
        if stretch.first == 0 && !inner.courses.contains_key(&stretch.content) {
            if inner.courses.len() >= COURSES {
                inner.forget_oldest();
            }
            let (hashed, due) = (Some(Hashed::default()), VecDeque::new());
            inner.courses.insert(stretch.content, Course { hashed, due, told: 0, used });
        }
        let Some(course) = inner.courses.get_mut(&stretch.content) else { return };
        course.used = used;
        let known = course.told.checked_sub(stretch.first).and_then(|known| usize::try_from(known).ok());
        let new = known.and_then(|known| stretch.chunks.get(known..)).unwrap_or_default();
        course.due.extend(new);
        course.told += new.len() as u64;
        if course.due.len() > DUE {
            inner.remove(&stretch.content);
        }
    }

    /// Takes what was hashed of a content, and what comes next, for who goes on with it. `None`: there is nothing to do, or somebody is at it.
    fn take(&self, content: &Hash) -> Option<(Hashed, Vec<ChunkRef>)> {
        let mut inner = self.lock();
        let course = inner.courses.get_mut(content).filter(|course| !course.due.is_empty())?;
        let hashed = course.hashed.take()?;
        Some((hashed, course.due.iter().copied().collect()))
    }

    /// Puts it back, `done` chunks further. The chunk that it waits for then.
    fn put(&self, content: &Hash, hashed: Hashed, done: usize) -> Option<ChunkRef> {
        let mut inner = self.lock();
        let course = inner.courses.get_mut(content)?;
        course.hashed = Some(hashed);
        course.due.drain(..done);
        let next = course.due.front().copied()?;
        let waiting = inner.waiting.entry(next.hash).or_default();
        if !waiting.contains(content) {
            waiting.push(*content);
        }
        Some(next)
    }

    /// Contents that wait for one of these.
    fn waited_for<'h>(&self, chunks: impl Iterator<Item = &'h Hash>) -> Vec<Hash> {
        let mut inner = self.lock();
        chunks.filter_map(|chunk| inner.waiting.remove(chunk)).flatten().collect()
    }

    /// Gives up what is known of a content.
    fn end(&self, content: &Hash) -> Option<Hashed> {
        self.lock().remove(content)?.hashed
    }
}

impl Inner {
    fn remove(&mut self, content: &Hash) -> Option<Course> {
        let course = self.courses.remove(content)?;
        if let Some(next) = course.due.front()
            && let Some(waiting) = self.waiting.get_mut(&next.hash)
        {
            waiting.retain(|other| other != content);
            if waiting.is_empty() {
                self.waiting.remove(&next.hash);
            }
        }
        Some(course)
    }

    /// Half of them, those that were told of longest ago, and whom nobody follows any more.
    fn forget_oldest(&mut self) {
        let mut uses: Vec<u64> = self.courses.values().map(|course| course.used).collect();
        let (_, middle, _) = uses.select_nth_unstable(COURSES / 2);
        let middle = *middle;
        self.courses.retain(|_, course| course.used > middle);
        let courses = &self.courses;
        self.waiting.retain(|_, contents| {
            contents.retain(|content| courses.contains_key(content));
            !contents.is_empty()
        });
    }
}

impl Store {
    /// For each chunk of these stretches whether it is missing. What they are a part of is hashed as they arrive.
    pub fn cut(&self, stretches: &[Stretch]) -> Result<Vec<bool>, StoreError> {
        let missing = self.missing(ObjectKind::Chunk, &hashes_in(stretches))?;
        for stretch in stretches {
            self.ahead.tell(stretch);
            self.hash_ahead(&stretch.content);
        }
        Ok(missing)
    }

    /// These chunks are here now.
    pub(super) fn arrived<'h>(&self, chunks: impl Iterator<Item = &'h Hash>) {
        self.ahead.waited_for(chunks).iter().for_each(|content| self.hash_ahead(content));
    }

    /// Goes on with a content as far as its chunks are here.
    fn hash_ahead(&self, content: &Hash) {
        while let Some((mut hashed, due)) = self.ahead.take(content) {
            let Ok(done) = self.hash_here(&mut hashed, &due) else {
                // What can't be read is for the proof to say.
                self.ahead.end(content);
                return;
            };
            let Some(next) = self.ahead.put(content, hashed, done) else { return };
            // It may have come, or more may have been told, before this content was seen to wait.
            match self.index.get(ObjectKind::Chunk, &next.hash) {
                Ok(Some(place)) if is_it(&next, Some(&place)) => {}
                Ok(None) => return,
                // Whoever told of it lied.
                _ => return drop(self.ahead.end(content)),
            }
        }
    }

    /// Hashes the first of these chunks, up to one that isn't here. How many.
    fn hash_here(&self, hashed: &mut Hashed, due: &[ChunkRef]) -> Result<usize, StoreError> {
        let places = self.places_of(due)?;
        let here = due.iter().zip(&places).take_while(|(chunk, place)| is_it(chunk, place.as_ref())).count();
        let due = &due[..here];
        self.hash_chunks(due, places, Blocks::open_unproven, &mut None, &mut hashed.content)?;
        hashed.name(due);
        Ok(here)
    }

    /// Where chunks are.
    pub(super) fn places_of(&self, chunks: &[ChunkRef]) -> Result<Vec<Option<Location>>, StoreError> {
        let keys: Vec<Key> = chunks.iter().map(|chunk| (ObjectKind::Chunk, chunk.hash)).collect();
        self.index.get_many(&keys)
    }

    /// Whether what was hashed ahead proves this recipe. `false` says nothing about it.
    pub(super) fn is_proven_ahead(&self, content: &Hash, recipe: &Recipe) -> Result<bool, StoreError> {
        let Some(mut hashed) = self.ahead.end(content) else { return Ok(false) };
        let Some((before, rest)) = recipe.chunks.split_at_checked(hashed.chunks) else { return Ok(false) };
        let mut same = Hashed::default();
        same.name(before);
        let places = self.places_of(before)?;
        let here = before.iter().zip(&places).all(|(chunk, place)| is_it(chunk, place.as_ref()));
        if !here || same.names != hashed.names {
            return Ok(false);
        }
        Ok(self.hash_here(&mut hashed, rest)? == rest.len()
            && Hash::from(hashed.content.finalize()) == *content)
    }
}

fn is_it(chunk: &ChunkRef, place: Option<&Location>) -> bool {
    place.is_some_and(|place| place.bytes == u64::from(chunk.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(number: u64) -> ChunkRef {
        ChunkRef { hash: Hash::of(&number.to_le_bytes()), bytes: 1 }
    }

    fn size(ahead: &Ahead) -> (usize, usize) {
        let inner = ahead.lock();
        (inner.courses.len(), inner.waiting.len())
    }

    /// Takes and puts back, as somebody who finds no chunk here.
    fn look(ahead: &Ahead, content: &Hash) {
        if let Some((hashed, _)) = ahead.take(content) {
            ahead.put(content, hashed, 0);
        }
    }

    /// Whoever tells of files that never come takes no more memory than there is for that, and those told of last are followed on.
    #[test]
    fn it_is_bounded() {
        let ahead = Ahead::default();
        let stretch =
            |number, first| Stretch { content: chunk(number).hash, first, chunks: vec![chunk(first)] };
        for number in 0..3 * COURSES as u64 {
            let stretch = Stretch { chunks: vec![chunk(1_000_000 + number)], ..stretch(number, 0) };
            ahead.tell(&stretch);
            look(&ahead, &stretch.content);
            let (courses, waiting) = size(&ahead);
            assert!(courses <= COURSES && waiting <= COURSES);
        }
        assert!(ahead.lock().courses.contains_key(&chunk(3 * COURSES as u64 - 1).hash));
        let ahead = Ahead::default();
        for first in 0..=DUE as u64 {
            assert_eq!(size(&ahead), (usize::from(first > 0), usize::from(first > 0)));
            ahead.tell(&stretch(1, first));
            look(&ahead, &chunk(1).hash);
        }
        assert_eq!(size(&ahead), (0, 0), "it was told too much and got nothing");
    }

    #[test]
    fn what_does_not_continue_is_left_out() {
        let ahead = Ahead::default();
        let content = chunk(9).hash;
        let tell = |first: u64, chunks: std::ops::Range<u64>| {
            ahead.tell(&Stretch { content, first, chunks: chunks.map(chunk).collect() });
            let due = ahead.lock().courses.get(&content).map(|course| course.due.len());
            due.unwrap_or(0)
        };
        assert_eq!(tell(3, 3..5), 0, "its beginning is unknown");
        assert_eq!(tell(0, 0..2), 2);
        assert_eq!(tell(0, 0..2), 2, "again");
        assert_eq!(tell(1, 1..4), 4, "half of it again");
        assert_eq!(tell(9, 9..10), 4, "what is between is unknown");
        assert_eq!(tell(u64::MAX, 0..1), 4);
    }
}
