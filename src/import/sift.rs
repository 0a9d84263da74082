//! What of a unit's layer is new to the store: an import is of the past, so it hides nothing that is newer and brings back nothing that was deleted.
//!
//! The rules are a table in `docs/architecture.md`, "Import". They go by the union of all other hosts' committed layers, path by path; where nobody
//! else has anything, nothing is looked into.

use std::{collections::HashMap, ops::ControlFlow};

use crate::{
    cache::FetchError,
    fs::view::{Candidate, Need, Resolved, View},
    ids::{Generation, HostUuid, RelPath, Seq, UnitId},
    journal::Journal,
    limits::UNIT_ROOT_DEPTH,
    manifest::{Body, Entry, Manifest, ManifestError, Name},
};

/// How often manifests are fetched for one look: each may be of a deeper place than the one before.
const FETCHES: usize = 8;

/// What is left of a layer.
#[derive(Debug)]
pub struct Sifted {
    pub manifest: Manifest,
    /// Paths that others have committed with the same content.
    pub there: u64,
    pub left_out: Vec<(RelPath, Obstacle)>,
}

/// Why a path stays out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// What is committed there isn't older.
    Older,
    /// It was deleted there, or above.
    Deleted,
    /// One is a directory and the other isn't; so it is there or above.
    Kind,
}

impl Obstacle {
    /// Its code in findings.
    pub fn code(self) -> &'static str {
        match self {
            Self::Older => "older",
            Self::Deleted => "deleted",
            Self::Kind => "kind",
        }
    }

    /// What is said of it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Older => "another host has committed other content there that isn't older; that stays",
            Self::Deleted => {
                "it was deleted from the results tree; it stays so, and what is in it stays out, too"
            }
            Self::Kind => {
                "another host has a directory there, or above it a file; that stays, and what is below stays out, too"
            }
        }
    }
}

/// Why it couldn't be sifted.
#[derive(Debug, thiserror::Error)]
pub enum SiftError {
    /// Manifests of others that are needed for it don't come.
    #[error("what is committed there can't be read: {0}")]
    Fetch(#[from] FetchError),
    #[error("manifests of what is committed there don't stay here")]
    Lost,
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Whether anybody but `me` has something committed where `unit` has its paths, or above or below.
pub fn is_shared(journal: &Journal, me: HostUuid, unit: &UnitId) -> bool {
    let others = |layers: &[crate::journal::LayerHead]| layers.iter().any(|layer| layer.host != me);
    let above = (1..=unit.root.depth().min(UNIT_ROOT_DEPTH)).map(|depth| unit.root.first(depth));
    let mut above = above.flat_map(|root| [UnitId::loose(root.clone()), UnitId::tree(root)]);
    above.any(|unit| others(&journal.layers(&unit)))
        || journal
            .visit_layers(&unit.root, &mut |_, layers| match others(layers) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
            .is_break()
}

/// Takes out of `manifest`, which is to be `me`'s in this generation, what others have.
pub fn sift(
    view: &View,
    me: HostUuid,
    unit: &UnitId,
    generation: Generation,
    manifest: &Manifest,
) -> Result<Sifted, SiftError> {
    let mut sieve = Sieve { view, me, manifest, kept: Vec::new(), there: 0, left_out: Vec::new() };
    let mut closed: Option<&RelPath> = None;
    for entry in manifest.entries() {
        if closed.is_some_and(|top| entry.path.is_below(top)) {
            continue;
        }
        let Ok(path) = unit.root.append(&entry.path) else { continue };
        // As it was committed before: whatever that hides, it has hidden.
        let verdict =
            if entry.since < generation { Verdict::Take(entry.base) } else { sieve.judge(&path, entry)? };
        match verdict {
            Verdict::Take(base) => sieve.kept.push(Entry { base, ..entry.clone() }),
            Verdict::There => sieve.there += u64::from(entry.body != Body::Dir),
            Verdict::Out(obstacle) => {
                sieve.left_out.push((entry.path.clone(), obstacle));
                closed = (obstacle != Obstacle::Older).then_some(&entry.path);
            }
        }
    }
    let (there, left_out) = (sieve.there, std::mem::take(&mut sieve.left_out));
    Ok(Sifted { manifest: sieve.finish()?, there, left_out })
}

enum Verdict {
    /// With this base.
    Take(Seq),
    There,
    Out(Obstacle),
}

struct Sieve<'a> {
    view: &'a View,
    me: HostUuid,
    manifest: &'a Manifest,
    kept: Vec<Entry>,
    there: u64,
    left_out: Vec<(RelPath, Obstacle)>,
}

impl Sieve<'_> {
    fn judge(&self, path: &RelPath, entry: &Entry) -> Result<Verdict, SiftError> {
        let is_dir = entry.body == Body::Dir;
        let Some(there) = self.resolve(path)?.foreign else {
            let is_hidden = self.entries(path)?.iter().any(|c| c.host != self.me);
            return Ok(if is_hidden { Verdict::Out(Obstacle::Deleted) } else { Verdict::Take(entry.base) });
        };
        Ok(match (&there.entry.body, is_dir) {
            (Body::Whiteout, _) => Verdict::Out(Obstacle::Deleted),
            (Body::Dir, true) if there.synthetic && !self.is_described(path)? => Verdict::Take(entry.base),
            (Body::Dir, true) => Verdict::There,
            (Body::Dir, false) | (_, true) => Verdict::Out(Obstacle::Kind),
            _ if self.is_same(entry, &there) => Verdict::There,
            _ if entry.attrs.mtime > there.entry.attrs.mtime => Verdict::Take(entry.base.max(there.seq)),
            _ => Verdict::Out(Obstacle::Older),
        })
    }

    /// Whether another host's layer says what the directory at `path` is like.
    fn is_described(&self, path: &RelPath) -> Result<bool, SiftError> {
        Ok(self.entries(path)?.iter().any(|c| c.host != self.me && c.entry.body == Body::Dir))
    }

    fn is_same(&self, entry: &Entry, there: &Candidate) -> bool {
        match (self.manifest.file_of(entry), there.file) {
            (Some(here), Some(there)) => here == there,
            (None, None) => entry.body == there.entry.body,
            _ => false,
        }
    }

    fn resolve(&self, path: &RelPath) -> Result<Resolved, SiftError> {
        self.with_manifests(|| self.view.lookup(path))
    }

    fn entries(&self, path: &RelPath) -> Result<Vec<Candidate>, SiftError> {
        self.with_manifests(|| self.view.entries_at(path))
    }

    fn with_manifests<T>(&self, look: impl Fn() -> Result<T, Need>) -> Result<T, SiftError> {
        for _ in 0..FETCHES {
            match look() {
                Ok(found) => return Ok(found),
                Err(need) => self.view.fetch(&need)?,
            }
        }
        Err(SiftError::Lost)
    }

    /// The manifest of what was kept. A hard link whose first name wasn't passes the file on to the next name.
    fn finish(self) -> Result<Manifest, ManifestError> {
        let manifest = self.manifest;
        let mut first_names: HashMap<RelPath, RelPath> = HashMap::new();
        let kept: std::collections::HashSet<&RelPath> = self.kept.iter().map(|entry| &entry.path).collect();
        let mut entries = Vec::with_capacity(self.kept.len());
        for entry in &self.kept {
            let mut entry = entry.clone();
            if let Body::Link { to } = &entry.body
                && !kept.contains(to)
            {
                let (size, content) = manifest.file_of(&entry).expect("a manifest's links lead to files");
                let to = to.clone();
                entry.body = match first_names.get(&to) {
                    Some(first) => Body::Link { to: first.clone() },
                    None => Body::File { size, content },
                };
                first_names.entry(to).or_insert_with(|| entry.path.clone());
            }
            entries.push(entry);
        }
        let users = names(entries.iter().map(|e| e.attrs.uid), |id| manifest.user(id));
        let groups = names(entries.iter().map(|e| e.attrs.gid), |id| manifest.group(id));
        Manifest::new(entries, manifest.omitted().to_vec(), users, groups)
    }
}

fn names<'m>(ids: impl Iterator<Item = u32>, name: impl Fn(u32) -> Option<&'m str>) -> Vec<Name> {
    let ids: std::collections::BTreeSet<u32> = ids.collect();
    ids.into_iter().filter_map(|id| Some(Name { id, name: name(id)?.to_owned() })).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        cache::Cache,
        catalog::{Commit, Head, Record, RecordBody},
        clock::ManualClock,
        ids::{Hash, Incarnation, StoreUuid},
        manifest::{Attrs, Timestamp},
    };

    const UNIT: &str = "1-me/host1";

    /// Paths with their bases.
    type Kept = Vec<(String, u64)>;
    type LeftOut = Vec<(String, Obstacle)>;

    /// What others have committed, and a view of it.
    struct Bench {
        _dir: tempfile::TempDir,
        journal: Arc<Journal>,
        view: View,
        store: StoreUuid,
        head: Head,
    }

    fn path(text: &str) -> RelPath {
        text.parse().expect("a path")
    }

    fn unit() -> UnitId {
        UnitId::tree(path(UNIT))
    }

    fn file(text: &str) -> Body {
        Body::File { size: text.len() as u64, content: Hash::of(text.as_bytes()) }
    }

    /// An entry of the first generation, last changed at this second.
    fn entry(at: &str, body: Body, secs: i64) -> Entry {
        let attrs = Attrs { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp { secs, nanos: 0 } };
        Entry { path: path(at), attrs, body, since: Generation::FIRST, base: Seq(0) }
    }

    fn manifest(entries: Vec<Entry>) -> Manifest {
        Manifest::new(entries, Vec::new(), Vec::new(), Vec::new()).expect("a good manifest")
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let journal = Journal::open_bare(dir.path(), Arc::new(ManualClock::at(1))).expect("opens");
            let cache = Cache::open(&dir.path().join("cache"), 1 << 20).expect("opens");
            let view = View::new(journal.clone(), cache);
            let store = StoreUuid::random();
            Self { _dir: dir, journal, view, store, head: Head::genesis(store) }
        }

        fn commit(&mut self, host: HostUuid, unit: UnitId, entries: Vec<Entry>) {
            let manifest = manifest(entries);
            let (encoded, bytes, entries) =
                (manifest.encode(), manifest.bytes(), manifest.entries().len() as u64);
            let hash = Hash::of(&encoded);
            self.journal.keep_manifest(&hash, &encoded).expect("kept");
            let body = RecordBody::Commit(Commit {
                host,
                host_name: "drone".into(),
                unit,
                generation: Generation::FIRST,
                manifest: hash,
                lost: false,
                bytes,
                entries,
                adopted_by: None,
                incarnation: Incarnation::FIRST,
            });
            let record = Record { seq: self.head.seq.next(), prev: self.head.chain, time_ms: 5, body };
            self.head = self.head.follow(&record).expect("it follows");
            self.journal.follow(self.store, &[record]).expect("it follows");
        }

        /// What is kept of these entries, with the bases, and what is left out.
        fn sift(&self, generation: u32, entries: Vec<Entry>) -> (Kept, LeftOut, u64) {
            let me = self.journal.host();
            assert!(is_shared(&self.journal, me, &unit()));
            let manifest = manifest(entries);
            let sifted = sift(&self.view, me, &unit(), Generation(generation), &manifest).expect("sifts");
            let kept = sifted.manifest.entries().iter().map(|e| (e.path.to_string(), e.base.0)).collect();
            let left_out = sifted.left_out.iter().map(|(path, why)| (path.to_string(), *why)).collect();
            (kept, left_out, sifted.there)
        }
    }

    const DRONE: HostUuid = HostUuid([1; 16]);
    const ADMIN: HostUuid = HostUuid([2; 16]);

    fn named<T: Copy>(list: &[(&str, T)]) -> Vec<(String, T)> {
        list.iter().map(|(path, with)| ((*path).to_owned(), *with)).collect()
    }

    /// The table in `docs/architecture.md`, line by line.
    #[test]
    fn what_is_committed_stays_unless_it_is_older() {
        let mut bench = Bench::new();
        bench.commit(
            DRONE,
            unit(),
            vec![
                entry("", Body::Dir, 100),
                entry("dir", Body::Dir, 100),
                entry("dir/same", file("same"), 100),
                entry("newer", file("theirs"), 100),
                entry("older", file("theirs"), 100),
                entry("equal-time", file("theirs"), 100),
                entry("link", Body::Symlink { target: b"x".to_vec() }, 100),
                entry("was-dir", Body::Dir, 100),
                entry("was-file", file("theirs"), 100),
                entry("gone", file("theirs"), 100),
            ],
        );
        let whiteout = Entry { base: Seq(1), ..entry("gone", Body::Whiteout, 0) };
        bench.commit(ADMIN, unit(), vec![whiteout]);
        let (kept, left_out, there) = bench.sift(
            1,
            vec![
                entry("", Body::Dir, 300),
                entry("dir", Body::Dir, 300),
                entry("dir/new", file("ours"), 5),
                entry("dir/same", file("same"), 300),
                entry("empty", Body::Dir, 5),
                entry("equal-time", file("ours"), 100),
                entry("gone", file("theirs"), 300),
                entry("link", Body::Symlink { target: b"x".to_vec() }, 5),
                entry("newer", file("ours"), 200),
                entry("older", file("ours"), 50),
                entry("was-dir", file("ours"), 300),
                entry("was-file", Body::Dir, 300),
                entry("was-file/below", file("ours"), 300),
            ],
        );
        assert_eq!(kept, named(&[("dir/new", 0), ("empty", 0), ("newer", 1)]));
        let expected = [
            ("equal-time", Obstacle::Older),
            ("gone", Obstacle::Deleted),
            ("older", Obstacle::Older),
            ("was-dir", Obstacle::Kind),
            ("was-file", Obstacle::Kind),
        ];
        assert_eq!((left_out, there), (named(&expected), 2));
    }

    /// What was imported before goes on as it is, and what it has changed since is judged like anything.
    #[test]
    fn an_earlier_import_is_no_stranger() {
        let mut bench = Bench::new();
        bench.commit(DRONE, unit(), vec![entry("", Body::Dir, 1), entry("theirs", file("x"), 1)]);
        bench.commit(bench.journal.host(), unit(), vec![entry("ours", file("a"), 1)]);
        let second = |mut entry: Entry| {
            entry.since = Generation(2);
            entry
        };
        let (kept, left_out, there) = bench.sift(
            2,
            vec![
                entry("ours", file("a"), 1),
                second(entry("ours2", file("b"), 1)),
                second(entry("theirs", file("x"), 1)),
            ],
        );
        assert_eq!((kept, left_out, there), (named(&[("ours", 0), ("ours2", 0)]), Vec::new(), 1));
    }

    /// A hard link whose first name is there already passes the file on to the next one.
    #[test]
    fn a_hard_link_survives_its_first_name() {
        let mut bench = Bench::new();
        bench.commit(DRONE, unit(), vec![entry("", Body::Dir, 1), entry("a", file("x"), 1)]);
        let link = |at: &str| entry(at, Body::Link { to: path("a") }, 1);
        let whole = manifest(vec![entry("a", file("x"), 1), link("b"), link("c")]);
        let me = bench.journal.host();
        let sifted = sift(&bench.view, me, &unit(), Generation::FIRST, &whole).expect("sifts");
        let bodies: Vec<_> = sifted.manifest.entries().iter().map(|e| e.body.clone()).collect();
        assert_eq!(bodies, [file("x"), Body::Link { to: path("b") }]);
    }

    /// Of a unit of which nobody has anything, nothing is looked into; one that others have above or below it is shared.
    #[test]
    fn neighbours_are_no_reason_to_look() {
        let mut bench = Bench::new();
        bench.commit(DRONE, UnitId::tree(path("1-me/host2")), vec![entry("x", file("x"), 1)]);
        let me = bench.journal.host();
        assert!(!is_shared(&bench.journal, me, &unit()));
        assert!(is_shared(&bench.journal, me, &UnitId::loose(path("1-me"))));
        bench.commit(DRONE, UnitId::loose(path("1-me")), vec![entry("", Body::Dir, 1)]);
        assert!(is_shared(&bench.journal, me, &unit()));
    }
}
