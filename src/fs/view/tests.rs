use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use super::*;
use crate::{
    cache::BlockSource,
    catalog::{Commit, Head, Record, RecordBody},
    chunk::block::BlockBuilder,
    clock::ManualClock,
    ids::{Generation, HostUuid, Incarnation, Scope, StoreUuid},
    manifest::{Attrs, Body, Entry, Timestamp},
};

mod model;

/// A store in memory that counts what is fetched.
#[derive(Default)]
struct Source {
    blocks: Mutex<HashMap<Hash, Vec<u8>>>,
    fetches: AtomicUsize,
    away: AtomicBool,
}

impl BlockSource for Source {
    fn fetch(&self, _: ObjectKind, hash: &Hash) -> Result<Vec<u8>, FetchError> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            return Err(FetchError::Unreachable("the network is down".to_owned()));
        }
        self.blocks.lock().expect("test").get(hash).cloned().ok_or(FetchError::NotFound)
    }
}

/// A host's view of a store that others commit to.
struct Lab {
    dir: tempfile::TempDir,
    journal: Arc<Journal>,
    view: View,
    source: Arc<Source>,
    store: StoreUuid,
    head: Head,
    /// Host 0 is this one.
    hosts: Vec<HostUuid>,
    layers: BTreeMap<(usize, UnitId), LayerState>,
    /// What a commit's record says of its bytes; `None` = the truth.
    told_bytes: Option<u64>,
    /// How many of the catalog's last records a host that deletes hasn't heard of.
    unheard: u64,
}

/// A layer as its host has it.
#[derive(Clone, Default)]
struct LayerState {
    generation: u32,
    entries: BTreeMap<RelPath, Entry>,
}

fn path(text: &str) -> RelPath {
    text.parse().expect("a good path")
}

fn tree(root: &str) -> UnitId {
    UnitId::tree(path(root))
}

fn loose(root: &str) -> UnitId {
    UnitId::loose(path(root))
}

fn file(text: &str) -> Option<Body> {
    Some(Body::File { size: text.len() as u64, content: Hash::of(text.as_bytes()) })
}

const DIR: Option<Body> = Some(Body::Dir);
const WHITEOUT: Option<Body> = Some(Body::Whiteout);

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let journal = Journal::open(dir.path(), Arc::new(ManualClock::at(1))).expect("opens");
        let source = Arc::new(Source::default());
        let store = StoreUuid::random();
        let view = new_view(&dir, &journal, &source, "cache");
        let hosts = vec![journal.host(), HostUuid::random(), HostUuid::random()];
        let (head, layers) = (Head::genesis(store), BTreeMap::new());
        Self { dir, journal, view, source, store, head, hosts, layers, told_bytes: None, unheard: 0 }
    }

    /// Host number `host` commits the next generation of its layer with these changes; no body = no longer
    /// there.
    fn commit(&mut self, host: usize, unit: &UnitId, changes: &[(&str, Option<Body>)]) -> Seq {
        self.commit_after(host, unit, changes, 0)
    }

    /// As `commit`, after generations that were overtaken before they were committed. The first of the
    /// changes happened in the first of these.
    fn commit_after(
        &mut self,
        host: usize,
        unit: &UnitId,
        changes: &[(&str, Option<Body>)],
        overtaken: u32,
    ) -> Seq {
        let heard = Seq(self.head.seq.0.saturating_sub(self.unheard));
        let state = self.layers.entry((host, unit.clone())).or_default();
        let first = Generation(state.generation + 1);
        state.generation += 1 + overtaken;
        for (i, (at, body)) in changes.iter().enumerate() {
            let since = if i == 0 { first } else { Generation(state.generation) };
            match body {
                Some(body) => {
                    let entry = Entry { base: heard, ..entry(path(at), body.clone(), since) };
                    state.entries.insert(path(at), entry)
                }
                None => state.entries.remove(&path(at)),
            };
        }
        let state = state.clone();
        self.enter(host, unit, state)
    }

    fn enter(&mut self, host: usize, unit: &UnitId, state: LayerState) -> Seq {
        let entries: Vec<Entry> = state.entries.into_values().collect();
        let manifest = Manifest::new(entries, vec![], vec![], vec![]).expect("a good manifest");
        let encoded = manifest.encode();
        let hash = Hash::of(&encoded);
        let mut block = BlockBuilder::default();
        block.push(ObjectKind::Manifest, hash, &encoded);
        self.source.blocks.lock().expect("test").insert(hash, block.finish(1).expect("compresses"));
        let commit = Commit {
            host: self.hosts[host],
            host_name: format!("host{host}"),
            unit: unit.clone(),
            generation: Generation(state.generation),
            manifest: hash,
            lost: false,
            bytes: self.told_bytes.unwrap_or(manifest.bytes()),
            entries: manifest.entries().len() as u64,
            adopted_by: None,
            incarnation: Incarnation::FIRST,
        };
        let seq = self.head.seq.next();
        let record =
            Record { seq, prev: self.head.chain, time_ms: 1000 * seq.0, body: RecordBody::Commit(commit) };
        self.head = record.link();
        self.journal.follow(self.store, &[record]).expect("follows");
        seq
    }

    /// Asks until nothing is missing.
    fn ask<T>(&self, question: impl Fn(&View) -> Result<T, Need>) -> T {
        loop {
            match question(&self.view) {
                Ok(answer) => return answer,
                Err(need) => self.view.fetch(&need).expect("the store has all manifests"),
            }
        }
    }

    fn lookup(&self, at: &str) -> Resolved {
        self.ask(|view| view.lookup(&path(at)))
    }

    /// What shows at a path if nothing has changed since the commits.
    fn body(&self, at: &str) -> Option<Body> {
        self.lookup(at).winner().map(|c| c.entry.body.clone())
    }

    /// The names that show in a directory.
    fn names(&self, dir: &str) -> Vec<String> {
        let names = shown(self.ask(|view| view.list(&path(dir))));
        names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    fn fetches(&self) -> usize {
        self.source.fetches.load(Ordering::SeqCst)
    }
}

/// The names that show.
fn shown(listing: Listing) -> BTreeSet<Vec<u8>> {
    let resolved = listing.entries.into_iter().filter(|(_, resolved)| resolved.winner().is_some());
    resolved.map(|(name, _)| name).chain(listing.evident.into_iter().map(|evident| evident.name)).collect()
}

fn new_view(dir: &tempfile::TempDir, journal: &Arc<Journal>, source: &Arc<Source>, cache: &str) -> View {
    let cache = Cache::open(&dir.path().join(cache), 64 << 20).expect("opens");
    cache.set_source(source.clone());
    View::new(journal.clone(), cache)
}

fn entry(path: RelPath, body: Body, since: Generation) -> Entry {
    let mode = if body == Body::Dir { 0o750 } else { 0o640 };
    let mtime = Timestamp { secs: since.0.into(), nanos: 0 };
    Entry { path, attrs: Attrs { mode, uid: 7, gid: 7, mtime }, body, since, base: Seq::default() }
}

/// A late line in A's keyval does not put A's old files over B's reparse.
#[test]
fn a_late_line_does_not_bring_old_files_back() {
    let mut lab = Lab::new();
    let unit = tree("1-me/h");
    lab.commit(1, &unit, &[("", DIR), ("keyval", file("a")), ("status.log", file("as run"))]);
    lab.commit(2, &unit, &[("", DIR), ("status.log", file("parsed again"))]);
    let late = lab.commit(1, &unit, &[("keyval", file("a\nlate"))]);
    assert_eq!(lab.body("1-me/h/status.log"), file("parsed again"));
    assert_eq!(lab.body("1-me/h/keyval"), file("a\nlate"));
    assert_eq!(lab.lookup("1-me/h/keyval").winner().map(|c| c.seq), Some(late));
}

/// Two hosts with different files in one execution dir: all are there, and own entries are told apart from
/// foreign ones.
#[test]
fn two_hosts_share_an_execution_dir() {
    let mut lab = Lab::new();
    let unit = tree("1-me/h");
    lab.commit(0, &unit, &[("", DIR), ("debug", DIR), ("debug/own", file("own")), ("both", file("1"))]);
    let seq =
        lab.commit(1, &unit, &[("", DIR), ("debug", DIR), ("debug/other", file("o")), ("both", file("2"))]);
    assert_eq!(lab.names("1-me/h"), ["both", "debug"]);
    assert_eq!(lab.names("1-me/h/debug"), ["other", "own"]);
    let both = lab.lookup("1-me/h/both");
    let (own, foreign) = (both.own.clone().expect("own"), both.foreign.clone().expect("foreign"));
    assert_eq!((own.host, own.seq), (lab.hosts[0], Seq(1)));
    assert_eq!((foreign.host, foreign.seq), (lab.hosts[1], seq));
    assert_eq!((foreign.file, foreign.unit), (Some((1, Hash::of(b"2"))), unit));
    assert_eq!(lab.lookup("1-me/h/debug/own").foreign, None);
}

/// A whiteout hides only what was there when it was made.
#[test]
fn a_whiteout_does_not_hide_what_comes_after_it() {
    let mut lab = Lab::new();
    let unit = tree("1-me/h");
    lab.commit(1, &unit, &[("", DIR), ("core", file("old")), ("keyval", file("k"))]);
    lab.commit(2, &unit, &[("core", WHITEOUT)]);
    assert_eq!(lab.names("1-me/h"), ["keyval"]);
    let hidden = lab.lookup("1-me/h/core").foreign.expect("the whiteout is told");
    assert_eq!((hidden.host, hidden.entry.body), (lab.hosts[2], Body::Whiteout));
    lab.commit(1, &unit, &[("core", file("new"))]);
    assert_eq!(lab.names("1-me/h"), ["core", "keyval"]);
    assert_eq!(lab.body("1-me/h/core"), file("new"));
    // Nor what came before it, if whoever made it hadn't heard of that.
    lab.commit(1, &unit, &[("keyval", file("k, a late line"))]);
    lab.unheard = 1;
    lab.commit(2, &unit, &[("keyval", WHITEOUT), ("", WHITEOUT)]);
    assert_eq!(lab.body("1-me/h/keyval"), file("k, a late line"));
    assert_eq!(lab.names("1-me/h"), ["keyval"]);
}

/// What this host has deleted is hidden at once, as its whiteouts will hide it once they are committed; what comes after shows.
#[test]
fn a_deletion_that_is_not_committed_yet_hides_the_same() {
    let mut lab = Lab::new();
    let unit = tree("1-me/h");
    lab.commit(1, &unit, &[("", DIR), ("d", DIR), ("d/x", file("x")), ("y", file("y"))]);
    let note = |lab: &Lab, at: &str| {
        let hidden = Some(crate::journal::Note::Hidden(lab.head.seq));
        lab.journal.note(&unit, &[(path(at), hidden)]).expect("noted");
    };
    note(&lab, "d/x");
    assert_eq!((lab.names("1-me/h"), lab.names("1-me/h/d").len()), (vec!["d".into(), "y".into()], 0));
    note(&lab, "d");
    assert_eq!((lab.names("1-me/h"), lab.body("1-me/h/d")), (vec!["y".into()], None));
    note(&lab, "y");
    note(&lab, "");
    assert_eq!((lab.names("1-me").len(), lab.body("1-me/h")), (0, None));
    assert_eq!(lab.body("1-me"), Some(Body::Dir), "nobody has deleted that");
    let upto = crate::journal::Note::Hidden(lab.head.seq);
    lab.journal.note(&loose("1-me"), &[(path(""), Some(upto))]).expect("noted");
    assert_eq!((lab.names(""), lab.body("1-me")), (vec![], None));
    lab.commit(2, &unit, &[("", DIR), ("d", DIR), ("d/z", file("z"))]);
    assert_eq!((lab.names("1-me/h"), lab.names("1-me/h/d")), (vec!["d".into()], vec!["z".into()]));
    assert_eq!((lab.names(""), lab.body("1-me/h/d/x")), (vec!["1-me".into()], None));
}

/// File against directory: the newer wins as a whole.
#[test]
fn of_file_and_directory_the_newer_wins_as_a_whole() {
    let mut lab = Lab::new();
    let unit = tree("1-me/h");
    lab.commit(
        1,
        &unit,
        &[("", DIR), ("sysinfo", DIR), ("sysinfo/df", file("d")), ("sysinfo/ps", file("p"))],
    );
    lab.commit(2, &unit, &[("", DIR), ("sysinfo", file("no directory"))]);
    assert_eq!(lab.body("1-me/h/sysinfo"), file("no directory"));
    assert_eq!((lab.body("1-me/h/sysinfo/df"), lab.names("1-me/h/sysinfo").len()), (None, 0));
    // What is newer than the file shows, with its directory; what the file had hidden stays hidden.
    lab.commit(1, &unit, &[("sysinfo/df", file("d2"))]);
    assert_eq!(lab.body("1-me/h/sysinfo"), Some(Body::Dir));
    assert_eq!(lab.names("1-me/h/sysinfo"), ["df"]);
    assert_eq!(lab.body("1-me/h/sysinfo/ps"), None);
}

/// The order of names in a walk isn't the order of bytes in paths.
#[test]
fn names_that_sort_between_a_directory_and_its_content() {
    let mut lab = Lab::new();
    let unit = tree("1-me/h");
    lab.commit(
        1,
        &unit,
        &[("", DIR), ("a", DIR), ("a-b", file("1")), ("a/x", file("2")), ("a.c", file("3"))],
    );
    assert_eq!(lab.names("1-me/h"), ["a", "a-b", "a.c"]);
    assert_eq!(lab.names("1-me/h/a"), ["x"]);
}

/// Ancestors that no unit describes show as `drwxr-xr-x root root` with the time of the oldest commit below.
#[test]
fn a_directory_that_no_layer_describes_is_synthetic() {
    let mut lab = Lab::new();
    lab.commit(1, &tree("1-me/h"), &[("", DIR), ("keyval", file("k"))]);
    for _ in 0..2 {
        let job = lab.lookup("1-me").foreign.expect("shows");
        assert!(job.synthetic && job.entry.body == Body::Dir);
        let time = Timestamp { secs: 1, nanos: 0 };
        assert_eq!(job.entry.attrs, Attrs { mode: 0o755, uid: 0, gid: 0, mtime: time });
        lab.commit(2, &tree("1-me/i"), &[("", DIR), ("keyval", file("k"))]);
    }
    assert_eq!((lab.names(""), lab.names("1-me")), (vec!["1-me".to_owned()], vec!["h".into(), "i".into()]));
    lab.commit(2, &loose("1-me"), &[("", DIR), ("keyval", file("job"))]);
    let job = lab.lookup("1-me").foreign.expect("shows");
    assert_eq!((job.synthetic, job.entry.attrs.mode), (false, 0o750));
    assert_eq!(lab.names("1-me"), ["h", "i", "keyval"]);
}

/// `ls -lR` of a remote job costs one fetch, that of its manifest; after a restart none.
#[test]
fn walking_a_remote_job_costs_one_fetch() {
    let mut lab = Lab::new();
    let changes: Vec<_> = (0..300).map(|i| (format!("debug/{i}"), file(&format!("text {i}")))).collect();
    let mut changes: Vec<_> = changes.iter().map(|(at, body)| (&at[..], body.clone())).collect();
    changes.extend([("", DIR), ("debug", DIR)]);
    lab.commit(1, &tree("1-me"), &changes);
    for round in 0..2 {
        assert_eq!(lab.names(""), ["1-me"]);
        assert_eq!(lab.names("1-me"), ["debug"]);
        let names = lab.names("1-me/debug");
        assert_eq!(names.len(), 300);
        for name in names {
            let found = lab.lookup(&format!("1-me/debug/{name}")).foreign.expect("shows");
            assert_eq!(
                found.file,
                Some((5 + name.len() as u64, Hash::of(format!("text {name}").as_bytes())))
            );
        }
        assert_eq!(lab.fetches(), 1, "round {round}");
        lab.view = new_view(&lab.dir, &lab.journal, &lab.source, "another");
    }
}

/// The top of the tree has hundreds of thousands of job dirs; listing them takes no manifests.
#[test]
fn listing_the_top_needs_no_manifests() {
    let mut lab = Lab::new();
    for job in 0..20 {
        lab.commit(1, &loose(&format!("{job}-me")), &[("", DIR), ("keyval", file("k"))]);
        lab.commit(1, &tree(&format!("{job}-me/h")), &[("", DIR), ("status.log", file("s"))]);
    }
    lab.commit(1, &loose("hosts"), &[("", DIR)]);
    lab.commit(1, &loose("hosts/h"), &[("", DIR)]);
    lab.commit(1, &tree("hosts/h/1-verify"), &[("", DIR), ("status.log", file("s"))]);
    assert_eq!(lab.names("").len(), 21);
    assert_eq!(lab.fetches(), 0);
    assert_eq!(lab.names("hosts"), ["h"]);
    assert_eq!(lab.fetches(), 1, "that of hosts' loose files");
}

/// A job that somebody deleted is in no listing, though its layers stay.
#[test]
fn a_deleted_job_is_in_no_listing() {
    let mut lab = Lab::new();
    lab.commit(1, &loose("1-me"), &[("", DIR), ("keyval", file("k"))]);
    lab.commit(1, &tree("1-me/h"), &[("", DIR), ("status.log", file("s"))]);
    lab.commit(1, &tree("2-me"), &[("", DIR), ("status.log", file("s"))]);
    lab.commit(2, &tree("1-me/h"), &[("", WHITEOUT), ("status.log", WHITEOUT)]);
    lab.commit(2, &loose("1-me"), &[("", WHITEOUT), ("keyval", WHITEOUT)]);
    // A host that deletes what it had committed itself leaves an empty layer.
    lab.commit(0, &tree("3-me"), &[("", DIR), ("keyval", file("k"))]);
    lab.commit(0, &tree("3-me"), &[("", None), ("keyval", None)]);
    assert_eq!(lab.names(""), ["2-me"]);
    assert_eq!((lab.body("1-me"), lab.body("1-me/h"), lab.body("3-me")), (None, None, None));
    // A drone that didn't know adds to it: that is newer, and shows with its parents.
    lab.commit(0, &tree("1-me/i"), &[("", DIR), ("late", file("l"))]);
    assert_eq!(
        (lab.names(""), lab.names("1-me")),
        (vec!["1-me".to_owned(), "2-me".into()], vec!["i".into()])
    );
    assert_eq!(lab.body("1-me"), Some(Body::Dir));
}

/// The store is away: what needs a manifest says so, fetching fails, and nothing is taken for absent.
#[test]
fn with_the_store_away_nothing_unknown_is_called_absent() {
    let mut lab = Lab::new();
    lab.commit(1, &tree("1-me"), &[("", DIR), ("keyval", file("k"))]);
    lab.commit(1, &tree("2-me"), &[("", DIR), ("keyval", file("other"))]);
    assert!(lab.body("1-me/keyval").is_some());
    lab.source.away.store(true, Ordering::SeqCst);
    assert!(lab.body("1-me/keyval").is_some() && lab.body("1-me/absent").is_none());
    for at in ["2-me/keyval", "2-me/absent"] {
        let need = lab.view.lookup(&path(at)).expect_err("the manifest isn't here");
        assert!(matches!(lab.view.fetch(&need), Err(FetchError::Unreachable(_))));
    }
    assert!(lab.view.list(&path("2-me")).is_err());
    assert_eq!(lab.names(""), ["1-me", "2-me"]);
}

#[test]
fn all_missing_manifests_are_told_at_once_and_what_can_be_had_is_kept() {
    let mut lab = Lab::new();
    lab.told_bytes = Some(0);
    for host in ["h", "i", "j"] {
        lab.commit(1, &tree(&format!("1-me/{host}")), &[("", DIR), ("keyval", file(host))]);
    }
    let need = lab.view.list(&path("1-me")).expect_err("no manifest is here");
    assert_eq!(need.manifests.len(), 3);
    lab.source.blocks.lock().expect("test").remove(&need.manifests[1]);
    assert_eq!(lab.view.fetch(&need), Err(FetchError::NotFound));
    let still = lab.view.list(&path("1-me")).expect_err("one is missing");
    assert_eq!(still.manifests, [need.manifests[1]]);
}

/// A quick no: what only this host's spool can have needs no look at the committed layers.
#[test]
fn only_what_others_have_is_relevant() {
    let mut lab = Lab::new();
    lab.commit(0, &tree("1-me/h"), &[("", DIR), ("keyval", file("k"))]);
    lab.commit(0, &tree("2-me/h"), &[("", DIR), ("keyval", file("k"))]);
    // Own units that come from the catalog are partial; as the spool has them, say that they aren't.
    for unit in [tree("1-me/h"), tree("2-me/h")] {
        if lab.journal.get(&unit).is_some_and(|own| own.partial) {
            lab.journal.recalled(&unit).expect("recalled");
        }
    }
    lab.commit(1, &tree("2-me/i"), &[("", DIR), ("keyval", file("k"))]);
    let relevant = |at: &str| lab.view.relevant(&path(at));
    assert!(!relevant("1-me") && !relevant("1-me/h") && !relevant("1-me/h/keyval") && !relevant("3-me"));
    assert!(relevant("") && relevant("2-me") && relevant("2-me/i") && relevant("2-me/i/debug/x"));
    assert!(!relevant("2-me/h/keyval") && !relevant("2-me/ii"));
    assert_eq!(lab.fetches(), 0);
}

/// A loose unit has no say about directories' contents, whatever its manifest claims.
#[test]
fn a_loose_unit_stays_in_its_place() {
    let mut lab = Lab::new();
    lab.commit(1, &tree("1-me/h"), &[("", DIR), ("keyval", file("k"))]);
    lab.commit(2, &loose("1-me"), &[("", DIR), ("h", DIR), ("h/keyval", file("forged")), ("x", DIR)]);
    assert_eq!(lab.body("1-me/h/keyval"), file("k"));
    assert_eq!(lab.names("1-me"), ["h"]);
}

/// A listing of the top is one read of the catalog's rows: no manifest is fetched, whatever was committed.
#[test]
fn the_top_is_listed_without_a_manifest() {
    let mut lab = Lab::new();
    for job in 0..60 {
        lab.commit(1, &loose(&format!("{job}-me")), &[("", DIR), ("keyval", file("k"))]);
        lab.commit(2, &tree(&format!("{job}-me/h")), &[("", DIR), ("status.log", file("s"))]);
    }
    lab.commit(1, &tree("hosts/h/1-verify"), &[("", DIR), ("status.log", file("s"))]);
    let listing = lab.view.list(&RelPath::ROOT).expect("no manifest is needed");
    assert_eq!((listing.entries.len(), listing.evident.len()), (0, 61));
    assert!(
        listing.evident.is_sorted_by(|a, b| a.name < b.name) && listing.evident.iter().all(|e| e.is_foreign)
    );
    assert_eq!(lab.fetches(), 0);
    assert_eq!(lab.names("7-me"), ["h", "keyval"]);
    assert_eq!(lab.fetches(), 1, "what is loose in a job is in its own manifest");
}
