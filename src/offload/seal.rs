//! Sealing: a unit's layer in the spool into its manifest.
//!
//! It only reads. Files are hashed as a stream through one buffer, whatever their size. What changes while it is
//! read is an error, [`SealError::Changed`], and so is anything that can't be read: a manifest that exists describes every path.
//! (Changes between two files are the journal's business: whoever changes a unit opens its next generation first, and the
//! manifest of the old one is thrown away.)
//!
//! Where an entry is as it was in the layer's last commit, it keeps the generation since which it is so.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::Metadata,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::FileTypeExt, fs::MetadataExt},
    path::Path,
};

use walkdir::WalkDir;

use super::{
    live::Taker,
    names::OwnerNames,
    tree::{self, SpoolTree},
};
use crate::{
    ids::{Generation, Hash, PathError, RelPath, Scope, Seq, UnitId},
    journal::Note,
    manifest::{Attrs, Body, Entry, Manifest, ManifestError, Name, Omitted, OmittedKind},
    spool::sparse::SparseReader,
};

/// Bytes read at once: BLAKE3 is at its best from 64 KiB, and the system calls are few.
const READ_BYTES: usize = 256 << 10;

/// A layer to be described.
pub struct Subject<'a> {
    pub tree: &'a SpoolTree,
    pub unit: &'a UnitId,
    /// The generation that the manifest will be of.
    pub generation: Generation,
    /// This layer's newest committed manifest.
    pub previous: Option<&'a Manifest>,
    /// Paths that aren't in the spool are as `previous` says.
    pub partial: bool,
    /// What was noted of paths below the unit's root: deletions, and what changes are based on.
    pub notes: &'a BTreeMap<RelPath, Note>,
    /// The sequence number of what has been as it is in this layer since a generation that was committed.
    pub committed_as: &'a dyn Fn(Generation) -> Seq,
    pub names: &'a OwnerNames,
    /// For a snapshot: how files are taken while others write. Then what vanishes meanwhile is left out instead of being an error.
    pub live: Option<&'a Taker<'a>>,
    /// For an import: what can't be read is left out and noted here instead of being an error.
    pub unread: Option<&'a Unread>,
    /// Called after each [`BREATH_BYTES`] that were hashed, so that others get on beside a large layer.
    pub breathe: &'a dyn Fn(),
}

/// What is left out of a layer that is imported.
#[derive(Debug, Default)]
pub struct Unread {
    /// Not looked at.
    pub passed_over: BTreeSet<RelPath>,
    /// Why something else isn't in it.
    pub errors: RefCell<Vec<SealError>>,
}

/// See [`Subject::breathe`]: some 20 ms of work.
const BREATH_BYTES: u64 = 64 << 20;

/// Why there is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It was written, moved or removed meanwhile.
    #[error("{path}: changed while it was read")]
    Changed { path: RelPath },
    /// It can't be read.
    #[error("{path}: {source}")]
    Io { path: RelPath, source: io::Error },
    /// A name that no results tree can have: a path beyond the limit.
    #[error("below {below}: {source}")]
    Path { below: RelPath, source: PathError },
    /// What was found breaks a rule of the manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// What was described: the manifest and how much was read for it.
#[derive(Debug)]
pub struct Described {
    pub manifest: Manifest,
    /// File bytes read and hashed.
    pub bytes_read: u64,
}

/// Describes a layer.
pub fn describe(subject: &Subject<'_>) -> Result<Described, SealError> {
    let mut found = walk(subject)?;
    let mut draft = Draft::new(subject);
    match subject.unread {
        None => found.iter().try_for_each(|(path, attrs)| draft.add(path, attrs))?,
        Some(unread) => {
            found.retain(|(path, attrs)| {
                !unread.passed_over.contains(path) && unread.took(draft.add(path, attrs))
            });
        }
    }
    let here: HashMap<&RelPath, &Metadata> = found.iter().map(|(path, attrs)| (path, attrs)).collect();
    draft.keep_absent(&here);
    draft.add_whiteouts(&here);
    draft.finish()
}

impl Unread {
    fn took(&self, result: Result<(), SealError>) -> bool {
        let error = result.err();
        let took = error.is_none();
        self.errors.borrow_mut().extend(error);
        took
    }
}

/// Everything of the unit that is in the spool, in byte order of the paths.
fn walk(subject: &Subject<'_>) -> Result<Vec<(RelPath, Metadata)>, SealError> {
    let unit = subject.unit;
    let top = subject.tree.place(&unit.root);
    let depth = if unit.scope == Scope::Loose { 1 } else { usize::MAX };
    let mut found = Vec::new();
    for entry in WalkDir::new(&top).follow_links(false).follow_root_links(false).max_depth(depth) {
        let entry = match entry.and_then(|entry| Ok((entry.metadata()?, entry))) {
            Ok((attrs, entry)) => below(&top, entry.path(), unit).map(|path| (path, attrs, entry.depth())),
            Err(e) if e.depth() == 0 && e.io_error().is_some_and(tree::is_absent) => break,
            Err(e) if subject.live.is_some() && e.io_error().is_some_and(tree::is_absent) => continue,
            Err(e) => Err(walk_error(e, &top, unit).unwrap_or_else(|e| e)),
        };
        let (path, attrs, depth) = match (entry, subject.unread) {
            (Ok(entry), _) => entry,
            (Err(error), Some(unread)) => {
                unread.errors.borrow_mut().push(error);
                continue;
            }
            (Err(error), None) => return Err(error),
        };
        let foreign_dir = unit.scope == Scope::Loose && depth == 1 && attrs.is_dir();
        if !foreign_dir {
            found.push((path, attrs));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

fn below(top: &Path, path: &Path, unit: &UnitId) -> Result<RelPath, SealError> {
    let rest = path.strip_prefix(top).expect("a walk stays below its top");
    RelPath::parse(rest.as_os_str().as_bytes())
        .map_err(|source| SealError::Path { below: unit.root.clone(), source })
}

fn walk_error(error: walkdir::Error, top: &Path, unit: &UnitId) -> Result<SealError, SealError> {
    let path = below(top, error.path().unwrap_or(top), unit)?;
    Ok(match error.into_io_error() {
        Some(source) => io_error(&path, source),
        None => SealError::Changed { path },
    })
}

/// A path that was there a moment ago and isn't any more has changed.
fn io_error(path: &RelPath, source: io::Error) -> SealError {
    let swapped = matches!(source.raw_os_error(), Some(libc::ELOOP | libc::ENXIO | libc::EAGAIN));
    if tree::is_absent(&source) || swapped {
        SealError::Changed { path: path.clone() }
    } else {
        SealError::Io { path: path.clone(), source }
    }
}

/// A manifest being put together.
struct Draft<'a> {
    subject: &'a Subject<'a>,
    entries: Vec<Entry>,
    omitted: Vec<Omitted>,
    /// For each file with several names, by device and inode: where its entry is.
    first_names: HashMap<(u64, u64), usize>,
    buffer: Vec<u8>,
    bytes_read: u64,
}

impl<'a> Draft<'a> {
    fn new(subject: &'a Subject<'a>) -> Self {
        Self {
            subject,
            entries: Vec::new(),
            omitted: Vec::new(),
            first_names: HashMap::new(),
            buffer: vec![0; READ_BYTES],
            bytes_read: 0,
        }
    }

    /// Adds what is at `path` below the unit's root.
    fn add(&mut self, path: &RelPath, found: &Metadata) -> Result<(), SealError> {
        let kind = found.file_type();
        if kind.is_file() {
            return self.add_file(path, found);
        }
        let body = if kind.is_dir() {
            Body::Dir
        } else if kind.is_symlink() {
            match self.subject.tree.link_text(&self.in_spool(path)?) {
                Ok(target) => Body::Symlink { target },
                Err(_) if self.subject.live.is_some() => return Ok(()),
                Err(e) => return Err(io_error(path, e)),
            }
        } else if kind.is_fifo() {
            Body::Fifo
        } else {
            let kind = if kind.is_socket() { OmittedKind::Socket } else { OmittedKind::Device };
            self.omitted.push(Omitted { path: path.clone(), kind });
            return Ok(());
        };
        let attrs = tree::attrs_of(found);
        self.push(Entry { path: path.clone(), attrs, body, since: Generation::FIRST, base: Seq(0) }, None);
        Ok(())
    }

    fn add_file(&mut self, path: &RelPath, found: &Metadata) -> Result<(), SealError> {
        let inode = (found.dev(), found.ino());
        let (since, base) = (Generation::FIRST, Seq(0));
        if let Some(first) = self.first_names.get(&inode).map(|at| &self.entries[*at]) {
            let Body::File { size, content } = first.body else { unreachable!("first names are files") };
            let (attrs, body) = (first.attrs, Body::Link { to: first.path.clone() });
            self.push(Entry { path: path.clone(), attrs, body, since, base }, Some((size, content)));
            return Ok(());
        }
        let taken = match self.subject.live {
            Some(live) => live.take(path, found).map(|taken| (taken.attrs, taken.size, taken.content)),
            None => Some(self.hash_file(path)?),
        };
        let Some((attrs, size, content)) = taken else { return Ok(()) };
        if found.nlink() > 1 {
            self.first_names.insert(inode, self.entries.len());
        }
        let body = Body::File { size, content };
        self.push(Entry { path: path.clone(), attrs, body, since, base }, Some((size, content)));
        Ok(())
    }

    /// Reads a file to its end: its attributes, its size and the hash of its bytes.
    fn hash_file(&mut self, path: &RelPath) -> Result<(Attrs, u64, Hash), SealError> {
        let changed = || SealError::Changed { path: path.clone() };
        let fail = |e| io_error(path, e);
        let file = self.subject.tree.open_file(&self.in_spool(path)?).map_err(fail)?;
        let before = file.metadata().map_err(fail)?;
        if !before.is_file() {
            return Err(changed());
        }
        let mut file = SparseReader::new(file).map_err(fail)?;
        let mut hasher = blake3::Hasher::new();
        let mut size = 0;
        // What is behind shows in the stamp.
        while size < before.len() {
            let count = match file.read(&mut self.buffer).map_err(fail)? {
                0 => break,
                count => count as u64,
            };
            hasher.update(&self.buffer[..count as usize]);
            size += count;
            self.bytes_read += count;
            if self.bytes_read % BREATH_BYTES < count {
                (self.subject.breathe)();
            }
        }
        let after = file.file().metadata().map_err(fail)?;
        if size != before.len() || stamp(&before) != stamp(&after) {
            return Err(changed());
        }
        Ok((tree::attrs_of(&before), size, hasher.finalize().into()))
    }

    /// Takes an entry of the spool; its dates are the previous commit's if it is the same, and if nothing else had taken its place before
    /// it was put there again.
    fn push(&mut self, mut entry: Entry, file: Option<(u64, Hash)>) {
        let old = self.subject.previous.and_then(|m| Some((m, m.get(&entry.path)?)));
        let committed = old.map_or(Seq(0), |(_, old)| (self.subject.committed_as)(old.since));
        let based_on = match self.subject.notes.get(&entry.path) {
            Some(Note::Based(seq) | Note::Hidden(seq)) => *seq,
            Some(Note::Gone) | None => Seq(0),
        };
        let same = old.filter(|(m, old)| {
            let same_body = match file {
                Some(file) => m.file_of(old) == Some(file),
                None => old.body == entry.body,
            };
            same_body && old.attrs == entry.attrs && (entry.body == Body::Dir || based_on <= committed)
        });
        (entry.since, entry.base) = match same {
            Some((_, old)) => (old.since, old.base),
            None => (self.subject.generation, based_on.max(committed)),
        };
        self.entries.push(entry);
    }

    /// Takes over from the previous commit what a partial layer doesn't have in the spool, and all whiteouts.
    fn keep_absent(&mut self, here: &HashMap<&RelPath, &Metadata>) {
        let Some(previous) = self.subject.previous else { return };
        let is_kept = |path: &RelPath| !here.contains_key(path) && !self.is_deleted(path, here);
        let mut moved: HashMap<&RelPath, RelPath> = HashMap::new();
        let mut kept = Vec::new();
        for old in previous.entries() {
            let is_wanted = match old.body {
                Body::Whiteout => !here.contains_key(&old.path) && self.hidden(&old.path) <= old.base,
                _ => self.subject.partial && is_kept(&old.path),
            };
            if !is_wanted {
                continue;
            }
            let mut entry = old.clone();
            // A hard link whose first name isn't kept beside it: the file passes on to the next name.
            if let Body::Link { to } = &old.body
                && !is_kept(to)
            {
                entry.body = match (moved.get(to), previous.file_of(old)) {
                    (Some(first), _) => Body::Link { to: first.clone() },
                    (None, Some((size, content))) => Body::File { size, content },
                    (None, None) => unreachable!("a manifest's links lead to files"),
                };
                moved.entry(to).or_insert_with(|| old.path.clone());
            }
            kept.push(entry);
        }
        if self.subject.partial {
            let omitted = previous.omitted().iter().filter(|o| is_kept(&o.path)).cloned();
            let omitted: Vec<_> = omitted.collect();
            self.omitted.extend(omitted);
        }
        self.entries.extend(kept);
    }

    /// Whether `path` or a directory that it was in was deleted, or is something else than a directory now.
    fn is_deleted(&self, path: &RelPath, here: &HashMap<&RelPath, &Metadata>) -> bool {
        let mut at = Some(path.clone());
        let mut is_self = true;
        while let Some(dir) = at {
            let replaced = !is_self && here.get(&dir).is_some_and(|found| !found.is_dir());
            if replaced || self.subject.notes.get(&dir).is_some_and(|note| note.is_deleted()) {
                return true;
            }
            at = dir.parent();
            is_self = false;
        }
        false
    }

    /// Up to which number others' entries at this very path were deleted since the last commit.
    fn hidden(&self, path: &RelPath) -> Seq {
        match self.subject.notes.get(path) {
            Some(Note::Hidden(upto)) => *upto,
            _ => Seq(0),
        }
    }

    /// Others' entries that were deleted are hidden, unless there is something in their place or the previous commit hides them already.
    fn add_whiteouts(&mut self, here: &HashMap<&RelPath, &Metadata>) {
        let (previous, since) = (self.subject.previous, self.subject.generation);
        let is_hidden = |path: &RelPath, base: Seq| {
            let old = previous.and_then(|m| m.get(path));
            old.is_some_and(|old| old.body == Body::Whiteout && old.base >= base)
        };
        for (path, note) in self.subject.notes.iter().filter(|(path, _)| !here.contains_key(path)) {
            let Note::Hidden(base) = *note else { continue };
            if !is_hidden(path, base) {
                let attrs = crate::manifest::Attrs { mode: 0, uid: 0, gid: 0, mtime: Default::default() };
                let body = Body::Whiteout;
                self.entries.push(Entry { path: path.clone(), attrs, body, since, base });
            }
        }
    }

    fn finish(self) -> Result<Described, SealError> {
        let previous = self.subject.previous;
        let users = names_of(
            self.entries.iter().map(|e| e.attrs.uid),
            |uid| self.subject.names.user(uid),
            |uid| previous.and_then(|m| m.user(uid)),
        );
        let groups = names_of(
            self.entries.iter().map(|e| e.attrs.gid),
            |gid| self.subject.names.group(gid),
            |gid| previous.and_then(|m| m.group(gid)),
        );
        let manifest = Manifest::new(self.entries, self.omitted, users, groups)?;
        Ok(Described { manifest, bytes_read: self.bytes_read })
    }

    fn in_spool(&self, path: &RelPath) -> Result<RelPath, SealError> {
        let root = &self.subject.unit.root;
        root.append(path).map_err(|source| SealError::Path { below: root.clone(), source })
    }
}

/// What differs after every write.
fn stamp(found: &Metadata) -> (u64, i64, i64, i64, i64) {
    (found.size(), found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec())
}

/// The name of each number: this host's, or the one that an earlier manifest gave.
fn names_of<'m>(
    ids: impl Iterator<Item = u32>,
    here: impl Fn(u32) -> Option<String>,
    earlier: impl Fn(u32) -> Option<&'m str>,
) -> Vec<Name> {
    let ids: BTreeSet<u32> = ids.collect();
    let named = |id| here(id).or_else(|| earlier(id).map(str::to_owned));
    ids.into_iter().filter_map(|id| Some(Name { id, name: named(id)? })).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt, symlink},
        net::UnixListener,
    };

    use super::*;
    use crate::offload::testing::{Spool, path};

    fn describe_as(spool: &Spool, unit: &UnitId, number: u32, previous: Option<&Manifest>) -> Manifest {
        describe_part(spool, unit, number, previous, None).expect("describes")
    }

    /// `gone` makes the layer partial.
    fn describe_part(
        spool: &Spool,
        unit: &UnitId,
        number: u32,
        previous: Option<&Manifest>,
        gone: Option<&[&str]>,
    ) -> Result<Manifest, SealError> {
        let subject = Subject {
            tree: &spool.tree,
            unit,
            generation: Generation(number),
            previous,
            partial: gone.is_some(),
            notes: &gone.unwrap_or_default().iter().map(|p| (path(p), note(p))).collect(),
            committed_as: &|since| Seq(70 + u64::from(since.0)),
            names: &OwnerNames::default(),
            live: None,
            unread: None,
            breathe: &|| {},
        };
        describe(&subject).map(|d| d.manifest)
    }

    fn note(at: &str) -> Note {
        match at {
            "foreign" => Note::Hidden(Seq(60)),
            "copied" => Note::Based(Seq(90)),
            _ => Note::Gone,
        }
    }

    fn unit() -> UnitId {
        UnitId::tree(path("1-me/host1"))
    }

    fn body<'m>(manifest: &'m Manifest, at: &[u8]) -> &'m Body {
        let at = RelPath::parse(at).expect("a path");
        &manifest.get(&at).unwrap_or_else(|| panic!("{at} is described")).body
    }

    #[test]
    fn a_nasty_tree_is_described_in_full() {
        let spool = Spool::new();
        let top = spool.dir("1-me/host1");
        spool.file("1-me/host1/status.log", b"GOOD\n");
        spool.file("1-me/host1/z.log", b"linked");
        std::fs::create_dir(top.join("a")).expect("mkdir");
        std::fs::hard_link(top.join("z.log"), top.join("a/first")).expect("link");
        std::fs::hard_link(top.join("z.log"), top.join("a.b")).expect("link");
        symlink("../nowhere", top.join("dangling")).expect("symlink");
        rustix::fs::mknodat(rustix::fs::CWD, top.join("pipe"), rustix::fs::FileType::Fifo, 0o640.into(), 0)
            .expect("mkfifo");
        drop(UnixListener::bind(top.join("socket")).expect("binds"));
        let odd = std::ffi::OsStr::from_bytes(b"new\nline\xff");
        std::fs::write(top.join(odd), b"").expect("write");
        std::fs::set_permissions(top.join("status.log"), std::fs::Permissions::from_mode(0o000))
            .expect("chmod");
        std::fs::write(top.join("old"), b"1969").expect("write");
        let old = std::time::SystemTime::UNIX_EPOCH - std::time::Duration::from_millis(1500);
        std::fs::File::options()
            .write(true)
            .open(top.join("old"))
            .and_then(|f| f.set_modified(old))
            .expect("utimes");

        let m = describe_as(&spool, &unit(), 1, None);
        assert_eq!(body(&m, b""), &Body::Dir);
        assert_eq!(body(&m, b"status.log"), &Body::File { size: 5, content: Hash::of(b"GOOD\n") });
        assert_eq!(m.get(&path("status.log")).map(|e| e.attrs.mode), Some(0));
        assert_eq!(body(&m, b"a.b"), &Body::File { size: 6, content: Hash::of(b"linked") });
        assert_eq!(body(&m, b"a/first"), &Body::Link { to: path("a.b") });
        assert_eq!(body(&m, b"z.log"), &Body::Link { to: path("a.b") });
        assert_eq!(body(&m, b"dangling"), &Body::Symlink { target: b"../nowhere".to_vec() });
        assert_eq!(body(&m, b"pipe"), &Body::Fifo);
        assert_eq!(body(&m, b"new\nline\xff"), &Body::File { size: 0, content: Hash::of(b"") });
        let mtime = m.get(&path("old")).expect("described").attrs.mtime;
        assert_eq!((mtime.secs, mtime.nanos), (-2, 500_000_000));
        assert_eq!(m.omitted(), [Omitted { path: path("socket"), kind: OmittedKind::Socket }]);
        let uid = std::fs::metadata(&top).expect("stat").uid();
        assert_eq!(m.user(uid).is_some(), OwnerNames::default().user(uid).is_some());
        assert!(m.entries().iter().all(|e| e.since == Generation(1) && e.base == Seq(0)));
        assert_eq!(Manifest::decode(&m.encode()).expect("decodes"), m);
    }

    #[test]
    fn a_loose_unit_takes_no_directories() {
        let spool = Spool::new();
        spool.file("1-me/keyval", b"a=b\n");
        spool.file("1-me/host1/status.log", b"");
        let m = describe_as(&spool, &UnitId::loose(path("1-me")), 1, None);
        let paths: Vec<_> = m.entries().iter().map(|e| e.path.to_string()).collect();
        assert_eq!(paths, ["", "keyval"]);
    }

    #[test]
    fn a_layer_without_anything_in_the_spool_is_empty() {
        let m = describe_as(&Spool::new(), &unit(), 1, None);
        assert!(m.entries().is_empty());
    }

    #[test]
    fn what_did_not_change_keeps_its_generation() {
        let spool = Spool::new();
        spool.file("1-me/host1/same", b"1");
        spool.file("1-me/host1/other", b"1");
        spool.file("1-me/host1/link", b"2");
        let top = spool.dir("1-me/host1");
        std::fs::hard_link(top.join("link"), top.join("link2")).expect("link");
        let first = describe_as(&spool, &unit(), 1, None);
        spool.file("1-me/host1/other", b"22");
        std::fs::remove_file(top.join("link")).expect("rm");
        let second = describe_as(&spool, &unit(), 2, Some(&first));
        let dates = |p| second.get(&path(p)).map(|e| (e.since.0, e.base.0));
        assert_eq!(dates("same"), Some((1, 0)));
        assert_eq!(dates("other"), Some((2, 71)));
        // Its body is a file now and was a link, which nobody can see.
        assert_eq!(body(&second, b"link2"), &Body::File { size: 1, content: Hash::of(b"2") });
        assert_eq!(dates("link2"), Some((1, 0)));
        assert_eq!(dates("link"), None);
        assert_eq!(describe_as(&spool, &unit(), 3, Some(&second)), second);
    }

    #[test]
    fn a_partial_layer_keeps_what_is_only_in_the_store() {
        let spool = Spool::new();
        for name in ["a", "b", "d/x", "e/x", "f"] {
            spool.file(&format!("1-me/host1/{name}"), name.as_bytes());
        }
        let top = spool.dir("1-me/host1");
        std::fs::hard_link(top.join("a"), top.join("a2")).expect("link");
        std::fs::hard_link(top.join("a"), top.join("a3")).expect("link");
        let first = describe_as(&spool, &unit(), 1, None);
        for name in ["a", "a2", "a3", "b", "d/x", "e/x", "f"] {
            std::fs::remove_file(top.join(name)).expect("rm");
        }
        std::fs::remove_dir(top.join("d")).expect("rmdir");
        spool.file("1-me/host1/b", b"new");
        spool.file("1-me/host1/d", b"a file now");
        let m =
            describe_part(&spool, &unit(), 2, Some(&first), Some(&["a", "f", "foreign"])).expect("describes");
        let paths: Vec<_> = m.entries().iter().map(|e| e.path.to_string()).collect();
        assert_eq!(paths, ["", "a2", "a3", "b", "d", "e", "e/x", "foreign"]);
        assert_eq!(body(&m, b"a2"), &Body::File { size: 1, content: Hash::of(b"a") });
        assert_eq!(body(&m, b"a3"), &Body::Link { to: path("a2") });
        assert_eq!(body(&m, b"foreign"), &Body::Whiteout);
        assert_eq!(m.get(&path("e/x")).map(|e| e.since), Some(Generation(1)));
        assert_eq!(m.get(&path("d")).map(|e| e.since), Some(Generation(2)));
        assert_eq!(m.get(&path("foreign")).map(|e| (e.since.0, e.base)), Some((2, Seq(60))));
        // The whiteout stays as it was, though nobody says again that the path is gone, or says the same again.
        let again = describe_part(&spool, &unit(), 3, Some(&m), Some(&["foreign"])).expect("describes");
        assert_eq!(again.get(&path("foreign")), m.get(&path("foreign")));
        let m = describe_part(&spool, &unit(), 3, Some(&m), None).expect("describes");
        assert_eq!(body(&m, b"foreign"), &Body::Whiteout);
        assert_eq!(m.get(&path("e/x")), None);
    }

    /// Where another host's entry had taken an own one's place, the same again is a change, based on what it replaces.
    #[test]
    fn what_was_put_back_over_a_newer_entry_has_changed() {
        let spool = Spool::new();
        spool.file("1-me/host1/copied", b"as it was");
        let first = describe_as(&spool, &unit(), 1, None);
        let second = describe_part(&spool, &unit(), 2, Some(&first), Some(&["copied"])).expect("describes");
        let dates = |m: &Manifest, at| m.get(&path(at)).map(|e| (e.since.0, e.base.0));
        assert_eq!((dates(&second, "copied"), dates(&second, "")), (Some((2, 90)), dates(&first, "")));
    }

    /// A path that leads through a symbolic link is not read, wherever the link came from.
    #[test]
    fn nothing_outside_the_spool_is_read() {
        let spool = Spool::new();
        spool.file("1-me/host1/dir/file", b"secret");
        let top = spool.dir("1-me/host1");
        symlink(top.join("dir"), top.join("way")).expect("symlink");
        assert!(spool.tree.open_file(&path("1-me/host1/way/file")).is_err());
        assert!(spool.tree.open_file(&path("1-me/host1/way")).is_err());
    }
}
