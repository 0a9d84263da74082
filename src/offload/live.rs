//! The files of a running unit, for a snapshot: taken while others write.
//!
//! A file that nobody writes is hashed once and then known by its stamp. One that is written while it is read is read twice up to the length
//! that it had at first: bytes that are the same both times were its content at the moment in between. A log that grows passes;
//! a file that is written over doesn't, and shows as it was in the snapshot before (or the last commit), or, the first time, not at all.
//!
//! A large file that keeps changing would be read over and over: it is taken anew only so often that this makes [`REREAD_BYTES_PER_S`].

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    fs::{File, Metadata},
    io::{self, Read, Seek},
    os::unix::fs::MetadataExt,
    time::{Duration, Instant, SystemTime},
};

use super::tree::{self, SpoolTree};
use crate::{
    ids::{Hash, RelPath},
    manifest::{Attrs, Body, Manifest},
};

/// At most so many bytes a second are read again of each file that keeps changing, on average.
const REREAD_BYTES_PER_S: u64 = 4 << 20;
/// How often a file that is written over is tried in one snapshot.
const TRIES: usize = 3;
/// A file whose times are this young may be in the middle of a write(2), which shows in them only when it begins; and a busy machine may leave
/// a writer there for a while. (The kernel's clock for them is coarse, too: some milliseconds.)
const YOUNG: Duration = Duration::from_secs(1);
/// Read at once.
const READ_BYTES: usize = 256 << 10;

/// A file as it is in a snapshot.
#[derive(Debug, Clone)]
pub struct Taken {
    /// What it has as long as nobody writes it; `None`: it has to be looked at again.
    stamp: Option<Stamp>,
    at: Instant,
    pub attrs: Attrs,
    pub size: u64,
    pub content: Hash,
}

/// The files of a snapshot by their paths below the unit's root.
pub type Files = HashMap<RelPath, Taken>;

/// What differs after every write and every replacement.
type Stamp = (u64, u64, u64, i64, i64, i64, i64);

fn stamp(found: &Metadata) -> Stamp {
    let times = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
    (found.dev(), found.ino(), found.size(), times.0, times.1, times.2, times.3)
}

fn is_young(found: &Metadata) -> bool {
    let changed = Duration::new(found.ctime().max(0) as u64, found.ctime_nsec() as u32);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now < changed + YOUNG
}

/// Takes the files of one snapshot.
pub struct Taker<'a> {
    tree: &'a SpoolTree,
    root: &'a RelPath,
    /// Those of the snapshot before.
    before: &'a Files,
    committed: Option<&'a Manifest>,
    /// Files that changed between being described and being sent.
    unsteady: &'a HashSet<RelPath>,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    files: Files,
    buffer: Vec<u8>,
    bytes_read: u64,
}

impl<'a> Taker<'a> {
    pub fn new(
        tree: &'a SpoolTree,
        root: &'a RelPath,
        before: &'a Files,
        committed: Option<&'a Manifest>,
        unsteady: &'a HashSet<RelPath>,
    ) -> Self {
        let state = RefCell::new(State { buffer: vec![0; READ_BYTES], ..State::default() });
        Self { tree, root, before, committed, unsteady, state }
    }

    /// What was taken, and how many bytes were read for it.
    pub fn into_files(self) -> (Files, u64) {
        let state = self.state.into_inner();
        (state.files, state.bytes_read)
    }

    /// The file at `path`, where the walk found `found`. `None`: it is left out.
    pub fn take(&self, path: &RelPath, found: &Metadata) -> Option<Taken> {
        let known = self.before.get(path);
        let is_known = known.is_some_and(|known| known.stamp == Some(stamp(found)));
        let taken = match known {
            Some(known) if is_known || self.unsteady.contains(path) || is_too_soon(known, found) => {
                Some(known.clone())
            }
            _ if self.unsteady.contains(path) => None,
            _ => self.read(path).ok().flatten().or_else(|| known.cloned()),
        };
        let taken = taken.or_else(|| self.as_committed(path));
        if let Some(taken) = &taken {
            self.state.borrow_mut().files.insert(path.clone(), taken.clone());
        }
        taken
    }

    fn as_committed(&self, path: &RelPath) -> Option<Taken> {
        let entry = self.committed?.get(path)?;
        let Body::File { size, content } = entry.body else { return None };
        Some(Taken { stamp: None, at: Instant::now(), attrs: entry.attrs, size, content })
    }

    /// `None` after [`TRIES`] in which it was written over.
    fn read(&self, path: &RelPath) -> io::Result<Option<Taken>> {
        let in_spool = self.root.append(path).map_err(io::Error::other)?;
        let state = &mut *self.state.borrow_mut();
        for _ in 0..TRIES {
            let mut file = self.tree.open_file(&in_spool)?;
            let found = file.metadata()?;
            if !found.is_file() {
                return Ok(None);
            }
            let size = found.len();
            let Some(content) = state.hash(&mut file, size)? else { continue };
            let mut is_steady = !is_young(&found) && stamp(&file.metadata()?) == stamp(&found);
            if !is_steady {
                if state.hash(&mut file, size)? != Some(content) {
                    continue;
                }
                let now = file.metadata()?;
                is_steady = stamp(&now) == stamp(&found) && !is_young(&now);
            }
            let stamp = is_steady.then(|| stamp(&found));
            let attrs = tree::attrs_of(&found);
            return Ok(Some(Taken { stamp, at: Instant::now(), attrs, size, content }));
        }
        Ok(None)
    }
}

impl State {
    /// The hash of the first `size` bytes; `None` if there are fewer.
    fn hash(&mut self, file: &mut File, size: u64) -> io::Result<Option<Hash>> {
        file.rewind()?;
        let mut hasher = blake3::Hasher::new();
        let mut left = size;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match file.read(&mut self.buffer[..want])? {
                0 => return Ok(None),
                count => {
                    hasher.update(&self.buffer[..count]);
                    left -= count as u64;
                }
            }
        }
        self.bytes_read += size;
        Ok(Some(hasher.finalize().into()))
    }
}

fn is_too_soon(known: &Taken, found: &Metadata) -> bool {
    known.at.elapsed() < Duration::from_secs_f64(found.len() as f64 / REREAD_BYTES_PER_S as f64)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;
    use crate::offload::testing::{Spool, path};

    fn take(spool: &Spool, before: &Files, unsteady: &HashSet<RelPath>) -> (Option<Taken>, Files, u64) {
        let root = path("1-me/h");
        let taker = Taker::new(&spool.tree, &root, before, None, unsteady);
        let found = fs::symlink_metadata(spool.path().join("1-me/h/log")).expect("there");
        let taken = taker.take(&path("log"), &found);
        let (files, bytes) = taker.into_files();
        (taken, files, bytes)
    }

    #[test]
    fn a_file_that_nobody_writes_is_read_once() {
        let spool = Spool::new();
        spool.file("1-me/h/log", b"one\n");
        std::thread::sleep(2 * YOUNG);
        let (taken, files, bytes) = take(&spool, &Files::new(), &HashSet::new());
        assert_eq!((taken.expect("taken").content, bytes), (Hash::of(b"one\n"), 4));
        let (taken, _, bytes) = take(&spool, &files, &HashSet::new());
        assert_eq!((taken.expect("taken").content, bytes), (Hash::of(b"one\n"), 0));
    }

    /// What changed between being described and being sent shows as it was, or not at all.
    #[test]
    fn an_unsteady_file_is_as_before_or_left_out() {
        let spool = Spool::new();
        spool.file("1-me/h/log", b"one\n");
        let unsteady = HashSet::from([path("log")]);
        assert!(take(&spool, &Files::new(), &unsteady).0.is_none());
        let (_, files, _) = take(&spool, &Files::new(), &HashSet::new());
        spool.file("1-me/h/log", b"two\n");
        assert_eq!(take(&spool, &files, &unsteady).0.expect("taken").content, Hash::of(b"one\n"));
    }

    /// P5: what is taken of a file that is written over was its content at some moment: never a piece of one state and a piece of a later
    /// one that were not there together. (A write that is under way is such a moment: the kernel copies page by page.)
    #[test]
    fn what_is_written_over_while_it_is_read_is_taken_as_of_one_moment() {
        const BYTES: usize = 10 * 4096;
        let state = |number: u64| number.to_le_bytes().repeat(BYTES / 8);
        let spool = Spool::new();
        spool.file("1-me/h/log", &state(0));
        let place = spool.path().join("1-me/h/log");
        let is_over = AtomicBool::new(false);
        let mut seen = HashSet::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = fs::OpenOptions::new().write(true).open(&place).expect("opens");
                for number in 1..2000 {
                    file.rewind().expect("seeks");
                    file.write_all(&state(number)).expect("writes");
                }
                is_over.store(true, Ordering::Release);
            });
            while !is_over.load(Ordering::Acquire) {
                let (taken, ..) = take(&spool, &Files::new(), &HashSet::new());
                seen.extend(taken.map(|taken| taken.content));
            }
        });
        seen.extend(take(&spool, &Files::new(), &HashSet::new()).0.map(|taken| taken.content));
        assert!(!seen.is_empty());
        for number in 0..2000 {
            let (old, new) = (state(number), state(number + 1));
            for cut in (0..BYTES).step_by(4096) {
                seen.remove(&Hash::of(&[&new[..cut], &old[cut..]].concat()));
            }
        }
        assert!(seen.is_empty(), "{} mixes that never were", seen.len());
    }
}
