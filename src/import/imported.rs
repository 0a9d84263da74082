//! What an import remembers of units that are in the store as they are in the directory: so that the next one needn't read them.
//!
//! A hint, never an authority: a line counts only if the catalog says the same. Appended without a sync; torn lines are cut off at the next start, and
//! a line that is lost is a unit that is read again. The format is in `docs/format.md`.

use std::{
    collections::HashMap,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    sync::{Mutex, PoisonError},
};

use fs_err::{self as fs, os::unix::fs::OpenOptionsExt};
use minicbor::{Decode, Encode};

use crate::ids::{Hash, UnitId};

const MAGIC: &[u8; 4] = b"RFSi";
const VERSION: u32 = 1;
const CHECK_BYTES: usize = 16;
/// Longest line: a path of 4 KiB and two hashes.
const LINE_BYTES: usize = 8 << 10;

/// How a unit was when it was found to be in the store.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct Line {
    #[n(0)]
    unit: UnitId,
    #[n(1)]
    stamp: Hash,
    #[n(2)]
    manifest: Hash,
}

/// The file.
#[derive(Debug)]
pub struct Imported {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: fs::File,
    lines: HashMap<UnitId, (Hash, Hash)>,
}

impl Imported {
    /// Reads `path`, and makes it if it isn't there. One that isn't of this version begins anew.
    pub fn open(path: &Path) -> io::Result<Self> {
        let options = fs::OpenOptions::new().read(true).write(true).create(true).mode(0o600).clone();
        let mut file = options.open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let header = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
        let mut lines = HashMap::new();
        let mut good = 0;
        if let Some(mut rest) = bytes.strip_prefix(&header[..]) {
            while let Some((line, after)) = parse(rest) {
                lines.insert(line.unit, (line.stamp, line.manifest));
                rest = after;
            }
            good = bytes.len() - rest.len();
        }
        file.set_len(good as u64)?;
        file.seek(SeekFrom::End(0))?;
        if good == 0 {
            file.write_all(&header)?;
        }
        Ok(Self { inner: Mutex::new(Inner { file, lines }) })
    }

    /// The manifest that a unit had when it looked like this.
    pub fn manifest(&self, unit: &UnitId, stamp: &Hash) -> Option<Hash> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.lines.get(unit).filter(|(had, _)| had == stamp).map(|(_, manifest)| *manifest)
    }

    /// Remembers a unit that the catalog has with this manifest.
    pub fn add(&self, unit: &UnitId, stamp: Hash, manifest: Hash) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.lines.get(unit) == Some(&(stamp, manifest)) {
            return Ok(());
        }
        let line = Line { unit: unit.clone(), stamp, manifest };
        inner.file.write_all(&encode(&line))?;
        inner.lines.insert(line.unit, (stamp, manifest));
        Ok(())
    }
}

fn encode(line: &Line) -> Vec<u8> {
    let body = minicbor::to_vec(line).expect("encoding into a Vec can't fail");
    let length = u32::try_from(body.len()).expect("a line is short").to_le_bytes();
    [&length[..], &Hash::of(&body).0[..CHECK_BYTES], &body].concat()
}

/// The first line of `bytes`, and what follows it; `None` at the end, and where it makes no sense.
fn parse(bytes: &[u8]) -> Option<(Line, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (check, rest) = rest.split_first_chunk::<CHECK_BYTES>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| *length <= LINE_BYTES)?;
    let (body, rest) = rest.split_at_checked(length)?;
    let is_good = Hash::of(body).0[..CHECK_BYTES] == check[..];
    Some((minicbor::decode(body).ok().filter(|_| is_good)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(number: u32) -> UnitId {
        UnitId::tree(format!("{number}-me/host1").parse().expect("a path"))
    }

    /// Whatever a crash leaves of the file: it opens, and has a beginning of what was added.
    #[test]
    fn any_end_of_the_file_may_be_lost() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("imported");
        let open = || Imported::open(&path).expect("opens");
        let stamp = |number: u32| Hash::of(&number.to_le_bytes());
        let first = open();
        (0..3).for_each(|number| first.add(&unit(number), stamp(number), stamp(9)).expect("added"));
        first.add(&unit(2), stamp(2), stamp(9)).expect("known already");
        let whole = fs::read(&path).expect("written");
        assert_eq!(
            whole.len(),
            8 + 3 * encode(&Line { unit: unit(0), stamp: stamp(0), manifest: stamp(9) }).len()
        );
        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).expect("cut");
            let known = open();
            let count = (0..3).filter(|number| known.manifest(&unit(*number), &stamp(*number)).is_some());
            let expected = length.saturating_sub(8) * 3 / (whole.len() - 8);
            assert_eq!(count.count(), expected, "after {length} bytes");
            known.add(&unit(7), stamp(7), stamp(8)).expect("goes on");
            assert_eq!(open().manifest(&unit(7), &stamp(7)), Some(stamp(8)));
        }
    }

    #[test]
    fn a_unit_that_looks_otherwise_is_not_known() {
        let dir = tempfile::tempdir().expect("a directory");
        let known = Imported::open(&dir.path().join("imported")).expect("opens");
        known.add(&unit(1), Hash::of(b"a"), Hash::of(b"m")).expect("added");
        assert_eq!(known.manifest(&unit(1), &Hash::of(b"b")), None);
        assert_eq!(known.manifest(&unit(2), &Hash::of(b"a")), None);
        fs::write(dir.path().join("imported"), b"something else").expect("written");
        let anew = Imported::open(&dir.path().join("imported")).expect("opens");
        assert_eq!(anew.manifest(&unit(1), &Hash::of(b"a")), None);
    }
}
