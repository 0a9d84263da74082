//! The seam to what is committed: the journal's records, the view of all layers, the cache of their bytes.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant},
};

pub(super) use super::view::{Candidate, Listing, Resolved};
use super::{
    FsError, FsResult, Need,
    owners::Owners,
    view::{self, View},
};
use crate::{
    cache::{Cache, lru::Lru},
    chunk::ChunkParams,
    ids::{Generation, Hash, RelPath, Seq, UnitId},
    journal::{Journal, JournalError, Note, UnitRecord},
    layout::{self, LayoutRules, Place},
    manifest::{Body, Manifest},
};

/// A manifest that could not be fetched isn't asked for again so long: meanwhile the spool answers for itself, and the rest fails
/// at once.
const RETRY: Duration = Duration::from_secs(5);
/// Failures kept; beyond it those that are over are dropped.
const FAILURES: usize = 4096;
/// Marks kept; beyond it those of what is committed meanwhile are dropped.
const MARKS: usize = 64 << 10;

/// Pairs of contents whose relation is remembered.
const CONTINUED: u64 = 4096;
/// Manifests whose links are remembered.
const LINKS: usize = 1024;

/// In which opening of a unit a path was changed. A generation may be opened again, when nothing had changed after all.
struct Mark {
    unit: UnitId,
    generation: Generation,
    opened_ms: Option<u64>,
}

/// What a comparison told, and when.
type Compared = (Option<bool>, Instant);

/// See the module's head.
pub(super) struct Committed {
    journal: Arc<Journal>,
    view: Arc<View>,
    cache: Arc<Cache>,
    rules: LayoutRules,
    params: RwLock<ChunkParams>,
    owners: Owners,
    /// Paths changed since the daemon's start in units that were committed before.
    marks: Mutex<HashMap<RelPath, Mark>>,
    failures: Mutex<HashMap<Hash, (Instant, String)>>,
    /// Whether a content is the beginning of another; `None`: it couldn't be told then.
    continued: Mutex<Lru<(Hash, Hash), Compared>>,
    /// By manifest: the other names of files. Most have none, and the maps are empty.
    links: Mutex<HashMap<Hash, HashMap<RelPath, Vec<RelPath>>>>,
}

impl Committed {
    pub(super) fn new(journal: Arc<Journal>, view: Arc<View>, cache: Arc<Cache>, rules: LayoutRules) -> Self {
        Self {
            journal,
            view,
            cache,
            rules,
            params: RwLock::default(),
            owners: Owners::default(),
            marks: Mutex::default(),
            failures: Mutex::default(),
            continued: Mutex::new(Lru::new(CONTINUED)),
            links: Mutex::default(),
        }
    }

    pub(super) fn set_params(&self, params: ChunkParams) {
        *self.params.write().expect("no code panics under this lock") = params;
    }

    fn params(&self) -> ChunkParams {
        *self.params.read().expect("no code panics under this lock")
    }

    /// How far the catalog is followed: what is deleted now was there under this number or a lower one.
    pub(super) fn heard(&self) -> Seq {
        self.journal.head().map_or(Seq::default(), |(_, head)| head.seq)
    }

    /// Whether this host may delete and replace other hosts' entries.
    pub(super) fn may_delete(&self) -> bool {
        self.journal.may_delete()
    }

    /// What deleting or replacing another host's entry takes.
    pub(super) fn check_right_to_delete(&self, path: &RelPath) -> FsResult<()> {
        if self.may_delete() {
            return Ok(());
        }
        tracing::info!(%path, "refused: another host's entry would be deleted or replaced, and this host has no right `delete`");
        Err(FsError::Errno(libc::EPERM))
    }

    /// See [`Journal::epoch`].
    pub(super) fn epoch(&self) -> u64 {
        self.journal.epoch()
    }

    pub(super) fn place(&self, path: &RelPath, is_dir: bool) -> Place {
        let (whole, adopted) =
            (|job: &RelPath| self.journal.whole_job(job), |top: &RelPath| self.journal.adopted(top));
        layout::place(path, is_dir, &self.rules, &whole, &adopted)
    }

    pub(super) fn unit_of(&self, path: &RelPath, is_dir: bool) -> Option<UnitId> {
        self.place(path, is_dir).unit()
    }

    /// The unit is about to be changed. Whether paths that are must be marked: some of it was committed.
    pub(super) fn touch(&self, unit: &UnitId) -> FsResult<bool> {
        let generation = self.journal.touch(unit).map_err(|e| journal_error(unit, &e))?;
        Ok(generation > Generation::FIRST)
    }

    /// The path is about to be changed, after its unit was touched. Of units never committed nothing need be noted.
    pub(super) fn mark(&self, path: &RelPath, is_dir: bool) {
        let Some(record) = self.unit_of(path, is_dir).and_then(|unit| self.journal.get(&unit)) else {
            return;
        };
        if record.committed.is_none() {
            return;
        }
        let mut marks = self.marks.lock().expect("no code panics under this lock");
        if marks.len() >= MARKS {
            marks.retain(|_, mark| self.is_uncommitted(mark));
        }
        let UnitRecord { unit, generation, running_ms: opened_ms, .. } = record;
        marks.insert(path.clone(), Mark { unit, generation, opened_ms });
    }

    /// What was marked in a unit that was retired says nothing of the next one's paths.
    pub(super) fn unmark(&self, unit: &UnitId) {
        self.marks.lock().expect("no code panics under this lock").retain(|_, mark| mark.unit != *unit);
    }

    /// Whether anybody has a layer of a unit at or below `dir`.
    pub(super) fn has_layers(&self, dir: &RelPath) -> bool {
        self.journal.visit_shown_layers(dir, &mut |_, _| ControlFlow::Break(())).is_break()
    }

    pub(super) fn is_marked(&self, path: &RelPath) -> bool {
        let marks = self.marks.lock().expect("no code panics under this lock");
        marks.get(path).is_some_and(|mark| self.is_uncommitted(mark))
    }

    fn is_uncommitted(&self, mark: &Mark) -> bool {
        let Some(record) = self.journal.get(&mark.unit) else { return false };
        let is_open = record.generation > mark.generation
            || record.generation == mark.generation && record.running_ms == mark.opened_ms;
        is_open && record.committed.is_some_and(|committed| committed.generation < mark.generation)
    }

    /// Whether anything committed can show at or below `path` that the spool doesn't hold.
    pub(super) fn relevant(&self, path: &RelPath) -> bool {
        !matches!(self.place(path, true), Place::LocalOnly) && self.view.relevant(path)
    }

    /// What is committed at `path`. `None` = that can't be known now, and the spool's entry has to do.
    pub(super) fn resolve(&self, path: &RelPath, in_spool: bool) -> FsResult<Option<Resolved>> {
        let need = match self.view.lookup(path) {
            Ok(resolved) => return self.check_replica(path, &resolved).map(|()| Some(resolved)),
            Err(need) => need,
        };
        match self.failure(&need.manifests) {
            Some(_) if in_spool => Ok(None),
            Some(reason) => Err(FsError::Unavailable { path: path.clone(), reason }),
            None => Err(Need::Manifests { path: path.clone(), manifests: need.manifests }.into()),
        }
    }

    /// All that is committed directly in `dir`.
    pub(super) fn list(&self, dir: &RelPath) -> FsResult<Listing> {
        let need = match self.view.list(dir) {
            Ok(listing) => return Ok(listing),
            Err(need) => need,
        };
        match self.failure(&need.manifests) {
            Some(reason) => Err(FsError::Unavailable { path: dir.clone(), reason }),
            None => Err(Need::Manifests { path: dir.clone(), manifests: need.manifests }.into()),
        }
    }

    /// An own layer's files may be gone from the spool before the replica has heard of their commit: then nothing is a "no".
    fn check_replica(&self, path: &RelPath, resolved: &Resolved) -> FsResult<()> {
        if resolved.own.is_some() {
            return Ok(());
        }
        let units = [self.unit_of(path, false), self.unit_of(path, true)];
        let behind = units.into_iter().flatten().any(|unit| {
            let record = self.journal.get(&unit).filter(|record| record.partial);
            let record = record.filter(|_| !self.journal.is_stranded(&unit));
            let seq = record.and_then(|record| record.committed).map(|committed| committed.seq);
            seq > self.journal.head().map(|(_, head)| head.seq) && seq.is_some()
        });
        let reason = || "the catalog isn't followed far enough".to_owned();
        if behind { Err(FsError::Unavailable { path: path.clone(), reason: reason() }) } else { Ok(()) }
    }

    fn failure(&self, manifests: &[Hash]) -> Option<String> {
        let failures = self.failures.lock().expect("no code panics under this lock");
        let recent = manifests.iter().filter_map(|hash| failures.get(hash));
        recent.filter(|(when, _)| when.elapsed() < RETRY).map(|(_, reason)| reason.clone()).next()
    }

    /// Whether something could not be fetched lately.
    pub(super) fn is_troubled(&self) -> bool {
        let failures = self.failures.lock().expect("no code panics under this lock");
        failures.values().any(|(when, _)| when.elapsed() < RETRY)
    }

    /// Whether the own layer that `own` is of shows what the spool doesn't have.
    pub(super) fn outlives_the_spool(&self, path: &RelPath, own: &Candidate) -> bool {
        match own.entry.body {
            Body::Whiteout => true,
            _ if self.is_partial(&own.unit) && !own.synthetic => !self.is_gone(&own.unit, path),
            // The way to what is only committed below it.
            Body::Dir => self.journal.units_below(path).iter().any(|record| {
                self.shows_without_the_spool(record) && (own.synthetic || record.unit.root != *path)
            }),
            _ => false,
        }
    }

    /// A partial layer whose root is gone, or that only deletes, has nothing to show.
    fn shows_without_the_spool(&self, record: &UnitRecord) -> bool {
        let is_there = record.partial && !self.journal.is_gone(&record.unit, &RelPath::ROOT);
        let committed = record.committed.filter(|_| is_there);
        committed.is_some_and(|committed| match self.journal.manifest(&committed.manifest) {
            Ok(Some(manifest)) => manifest.entries().iter().any(|entry| entry.body != Body::Whiteout),
            _ => true,
        })
    }

    /// Roots of own units below a directory.
    pub(super) fn unit_roots_below(&self, dir: &RelPath) -> Vec<RelPath> {
        let mut roots: Vec<_> =
            self.journal.units_below(dir).into_iter().map(|record| record.unit.root).collect();
        roots.retain(|root| root != dir);
        roots.dedup();
        roots
    }

    /// Whether an own layer at or below `path` shows what the spool doesn't have.
    pub(super) fn is_partial_below(&self, path: &RelPath) -> bool {
        self.journal.units_below(path).iter().any(|record| record.partial)
    }

    pub(super) fn is_partial(&self, unit: &UnitId) -> bool {
        self.journal.get(unit).is_some_and(|record| record.partial)
    }

    pub(super) fn is_gone(&self, unit: &UnitId, path: &RelPath) -> bool {
        path.below(&unit.root).is_some_and(|below| self.journal.is_gone(unit, &below))
    }

    pub(super) fn is_own(&self, candidate: &Candidate) -> bool {
        candidate.host == self.journal.host()
    }

    /// What is noted of a path of `unit`.
    pub(super) fn note_of(&self, unit: &UnitId, path: &RelPath) -> Option<Note> {
        self.journal.note_of(unit, &path.below(&unit.root)?)
    }

    /// Notes it of paths of `unit`, durably; each is from the top of the tree.
    pub(super) fn note(&self, unit: &UnitId, notes: &[(RelPath, Option<Note>)]) -> FsResult<()> {
        let below = |(path, note): &(RelPath, Option<Note>)| Some((path.below(&unit.root)?, *note));
        let notes: Vec<_> = notes.iter().filter_map(below).collect();
        self.journal.note(unit, &notes).map_err(|e| journal_error(unit, &e))
    }

    /// Local user and group of an entry: by name where the name is known here.
    pub(super) fn owner(&self, candidate: &Candidate) -> FsResult<(u32, u32)> {
        let attrs = &candidate.entry.attrs;
        if candidate.synthetic || candidate.host == self.journal.host() {
            return Ok((attrs.uid, attrs.gid));
        }
        let manifest = self.journal.manifest(&candidate.manifest).unwrap_or_default();
        let Some(manifest) = manifest else {
            let path = candidate.unit.root.clone();
            return match self.failure(&[candidate.manifest]) {
                Some(_) => Ok((attrs.uid, attrs.gid)),
                None => Err(Need::Manifests { path, manifests: vec![candidate.manifest] }.into()),
            };
        };
        self.owners.resolve((attrs.uid, manifest.user(attrs.uid)), (attrs.gid, manifest.group(attrs.gid)))
    }

    /// How many names a file has in its layer.
    pub(super) fn nlink(&self, candidate: &Candidate) -> u32 {
        self.with_links(candidate, |others| 1 + others.len() as u32)
    }

    /// All names that a file has in its layer, from the top of the tree, if it has several.
    pub(super) fn other_names(&self, candidate: &Candidate) -> Vec<RelPath> {
        let target = link_target(candidate);
        self.with_links(candidate, |others| {
            let names = others.iter().chain((!others.is_empty()).then_some(target));
            names.filter_map(|name| candidate.unit.root.append(name).ok()).collect()
        })
    }

    /// Tells `tell` the links to the file that `candidate` is a name of.
    fn with_links<T>(&self, candidate: &Candidate, tell: impl FnOnce(&[RelPath]) -> T) -> T {
        let mut links = self.links.lock().expect("no code panics under this lock");
        if !links.contains_key(&candidate.manifest) {
            let Ok(Some(manifest)) = self.journal.manifest(&candidate.manifest) else { return tell(&[]) };
            if links.len() >= LINKS {
                links.clear();
            }
            links.insert(candidate.manifest, links_of(&manifest));
        }
        let known = links.get(&candidate.manifest).and_then(|known| known.get(link_target(candidate)));
        tell(known.map_or(&[][..], Vec::as_slice))
    }

    /// Whether the file that was `old` has only grown into `new`. `None`: that can't be told now.
    pub(super) fn is_continued(
        &self,
        path: &RelPath,
        old: Option<(u64, Hash)>,
        new: Option<(u64, Hash)>,
    ) -> FsResult<Option<bool>> {
        let (Some(old), Some(new)) = (old, new) else { return Ok(Some(false)) };
        if old == new || old.0 == 0 {
            return Ok(Some(true));
        }
        if new.0 <= old.0 {
            return Ok(Some(false));
        }
        let mut known = self.continued.lock().expect("no code panics under this lock");
        match known.get(&(old.1, new.1)) {
            Some((Some(told), _)) => Ok(Some(*told)),
            Some((None, when)) if when.elapsed() < RETRY => Ok(None),
            _ => {
                Err(Need::Comparison { path: path.clone(), old: (old.1, old.0), new: (new.1, new.0) }.into())
            }
        }
    }

    fn compare(&self, old: (Hash, u64), new: (Hash, u64)) {
        let told = self.cache.begins_with(new, old, &self.params()).ok();
        let mut known = self.continued.lock().expect("no code panics under this lock");
        known.insert((old.0, new.0), (told, Instant::now()), 1);
    }

    /// Bytes of a file that are all here.
    pub(super) fn read_local(
        &self,
        (size, content): (u64, Hash),
        offset: u64,
        len: usize,
    ) -> Option<Vec<u8>> {
        self.cache.read_local(&content, size, &self.params(), offset, len)
    }

    /// Where data or a hole begins from `offset` on, see [`Cache::seek`]; `None` if that isn't known here.
    pub(super) fn seek(&self, (size, content): (u64, Hash), offset: u64, hole: bool) -> Option<u64> {
        self.cache.seek(&content, size, &self.params(), offset, hole)
    }

    /// Bytes of a file; waits for the network.
    pub(super) fn read(
        &self,
        path: &RelPath,
        (size, content): (u64, Hash),
        offset: u64,
        len: usize,
    ) -> FsResult<Vec<u8>> {
        self.cache
            .read(&content, size, &self.params(), offset, len)
            .map_err(|e| FsError::Unavailable { path: path.clone(), reason: e.to_string() })
    }

    /// Fetches what is needed. A manifest that doesn't come is noted, and asking again then tells what is known without it.
    pub(super) fn fulfil(&self, need: &Need) -> FsResult<()> {
        match need {
            Need::Manifests { manifests, .. } => {
                let wanted = view::Need { manifests: manifests.clone() };
                if let Err(e) = self.view.fetch(&wanted) {
                    self.note_failure(manifests, &e.to_string());
                }
            }
            Need::Bytes { path, content, size, offset, len } => {
                self.read(path, (*size, *content), *offset, *len)?;
            }
            Need::Comparison { old, new, .. } => self.compare(*old, *new),
            Need::Names { users, groups } => self.owners.learn(users, groups),
            Need::CopyUp { .. } | Need::Subtree { .. } | Need::Thaw(_) | Need::Turn(_) => {}
        }
        Ok(())
    }

    fn note_failure(&self, manifests: &[Hash], reason: &str) {
        let missing: Vec<_> =
            manifests.iter().filter(|hash| !matches!(self.journal.manifest(hash), Ok(Some(_)))).collect();
        let mut failures = self.failures.lock().expect("no code panics under this lock");
        if failures.len() >= FAILURES {
            failures.retain(|_, (when, _)| when.elapsed() < RETRY);
        }
        failures.extend(missing.into_iter().map(|hash| (*hash, (Instant::now(), reason.to_owned()))));
    }
}

fn journal_error(unit: &UnitId, error: &JournalError) -> FsError {
    FsError::Journal { unit: unit.clone(), reason: error.to_string() }
}

/// The path of the file that an entry is, itself or as another name of it.
fn link_target(candidate: &Candidate) -> &RelPath {
    match &candidate.entry.body {
        Body::Link { to } => to,
        _ => &candidate.entry.path,
    }
}

fn links_of(manifest: &Manifest) -> HashMap<RelPath, Vec<RelPath>> {
    let mut links: HashMap<RelPath, Vec<RelPath>> = HashMap::new();
    for entry in manifest.entries() {
        if let Body::Link { to } = &entry.body {
            links.entry(to.clone()).or_default().push(entry.path.clone());
        }
    }
    links
}
