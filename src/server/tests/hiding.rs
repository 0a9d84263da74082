//! What a host without the right `delete` may not do to other hosts' directories, and what it may.

use std::sync::Arc;

use super::{
    super::{NewCommit, StoreApi, hosts::History, may, mem::MemStore},
    fixture::*,
};
use crate::{
    catalog::{Prune, RecordBody, Undelete, UnitLife},
    chunk::ObjectKind,
    fs::union::{Candidate, Index, Layer},
    ids::{Generation, Hash, HostUuid, Incarnation, RelPath, Seq, UnitId},
    journal::LayerHead,
    manifest::{Attrs, Body, Entry, Manifest, Timestamp},
    wire::{CommitRequest, PublishRequest, RetireUnit, link::LinkError, rights::Rights},
};

const DIR: Body = Body::Dir;

fn file(text: &str) -> Body {
    Body::File { size: text.len() as u64, content: Hash::of(text.as_bytes()) }
}

fn symlink() -> Body {
    Body::Symlink { target: b"x".to_vec() }
}

fn path(text: &str) -> RelPath {
    if text.is_empty() { RelPath::ROOT } else { text.parse().expect("a path") }
}

fn entry(at: &str, body: Body, since: u32, base: u64) -> Entry {
    let attrs = Attrs { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp::default() };
    Entry { path: path(at), attrs, body, since: Generation(since), base: Seq(base) }
}

fn layer(entries: Vec<Entry>) -> Manifest {
    Manifest::new(entries, vec![], vec![], vec![]).expect("a good manifest")
}

/// A layer of one generation.
fn first(entries: &[(&str, Body)]) -> Manifest {
    layer(entries.iter().map(|(at, body)| entry(at, body.clone(), 1, 0)).collect())
}

impl Host {
    async fn commit_as(&self, unit: UnitId, generation: u32, manifest: &Manifest) -> Result<Seq, LinkError> {
        self.link.send_block(block(ObjectKind::Manifest, &manifest.encode())).await?;
        let generation = Generation(generation);
        let manifest = Hash::of(&manifest.encode());
        let incarnation = Incarnation::FIRST;
        let request = CommitRequest { unit, generation, manifest, lost: false, incarnation };
        self.link.commit(request).await.map(|record| record.seq)
    }

    async fn tree(&self, root: &str, generation: u32, manifest: &Manifest) -> Result<Seq, LinkError> {
        self.commit_as(UnitId::tree(path(root)), generation, manifest).await
    }

    async fn loose(&self, root: &str, manifest: &Manifest) -> Result<Seq, LinkError> {
        self.commit_as(UnitId::loose(path(root)), 1, manifest).await
    }
}

fn must_name(refused: Result<Seq, LinkError>, names: &[&str]) {
    let why = refused.expect_err("has no right").to_string();
    for name in names.iter().chain(&["`delete`"]) {
        assert!(why.contains(name), "{name}: {why}");
    }
}

/// P3: without the right `delete` no file, link or pipe takes the place of a directory in which something of another host's shows. The
/// refusal names both, the session goes on, and nothing else is disturbed; with the right it is accepted.
#[tokio::test]
async fn a_file_hides_no_other_hosts_directory_without_the_right() {
    let mut lab = Lab::new().await;
    let (a, b) = (lab.host("drone1"), lab.host("drone2"));
    a.wait_up().await;
    b.wait_up().await;
    a.tree("7-me/h", 1, &first(&[("", DIR), ("d", DIR), ("d/x", file("a"))])).await.expect("adds");
    let replaced = first(&[("", DIR), ("d", file("b")), ("e", file("b"))]);
    for body in [file("b"), symlink(), Body::Fifo] {
        let refused = b.tree("7-me/h", 1, &first(&[("", DIR), ("d", body)])).await;
        must_name(refused, &["7-me/h/d:", "7-me/h/d/x", "drone1"]);
    }
    must_name(b.tree("7-me/h", 1, &replaced).await, &["7-me/h/d:"]);
    assert_eq!(lab.store.head().seq, Seq(1), "nothing was entered");
    b.tree("7-me/h", 1, &first(&[("", DIR), ("e", file("b"))])).await.expect("the session goes on");
    b.tree("8-me/h", 1, &replaced).await.expect("there nobody has anything");

    lab.kill().await;
    lab.start("add,overlay,delete".parse().expect("rights")).await;
    let admin = lab.host("web");
    admin.wait_up().await;
    admin.tree("7-me/h", 1, &replaced).await.expect("has the right");
}

/// The same from outside: a job's loose file, a unit's root that isn't a directory, and a unit above or below another's.
#[tokio::test]
async fn nor_does_a_file_of_another_unit() {
    let lab = Lab::new().await;
    let (a, b) = (lab.host("drone1"), lab.host("drone2"));
    a.wait_up().await;
    b.wait_up().await;
    a.tree("7-me/h", 1, &first(&[("", DIR), ("d", DIR), ("d/x", file("a"))])).await.expect("adds");
    a.loose("hosts/h1", &first(&[("", DIR), ("log", file("a"))])).await.expect("adds");
    must_name(b.loose("7-me", &first(&[("", DIR), ("h", file("b"))])).await, &["7-me/h:"]);
    must_name(b.loose("7-me", &first(&[("", symlink())])).await, &["7-me:"]);
    must_name(b.tree("7-me", 1, &first(&[("", DIR), ("h", DIR), ("h/d", symlink())])).await, &["7-me/h/d:"]);
    must_name(b.tree("7-me/h", 1, &first(&[("", file("b"))])).await, &["7-me/h:"]);
    must_name(b.tree("7-me/h/d", 1, &first(&[("", file("b"))])).await, &["7-me/h/d:"]);
    must_name(b.loose("hosts", &first(&[("", DIR), ("h1", Body::Fifo)])).await, &["hosts/h1:"]);
    b.loose("7-me", &first(&[("", DIR), ("h2", file("b")), ("h.log", file("b"))])).await.expect("beside it");
    b.loose("hosts", &first(&[("", DIR), ("h2", file("b"))])).await.expect("beside it");
}

/// Changing what others have is allowed, and so is everything that hides nothing below.
#[tokio::test]
async fn what_hides_nothing_below_is_accepted() {
    let lab = Lab::new().await;
    let (a, b) = (lab.host("drone1"), lab.host("drone2"));
    a.wait_up().await;
    b.wait_up().await;
    let others = first(&[("", DIR), ("empty", DIR), ("f", file("a")), ("g", file("a"))]);
    a.tree("7-me/h", 1, &others).await.expect("adds");
    let changes = first(&[("", DIR), ("empty", file("b")), ("f", file("b")), ("g", DIR), ("g/x", file("b"))]);
    b.tree("7-me/h", 1, &changes).await.expect("the same paths");

    // The other's directory came later and shows. That an old file is there still changes nothing, whatever else does; a new one would.
    let later = layer(vec![entry("", DIR, 1, 0), entry("f", DIR, 2, 2), entry("f/x", file("a"), 2, 0)]);
    a.tree("7-me/h", 2, &later).await.expect("of what was a file");
    let mut kept = changes.entries().to_vec();
    kept.push(entry("more", file("b"), 2, 0));
    b.tree("7-me/h", 2, &layer(kept.clone())).await.expect("is as it was");
    kept[2] = entry("f", file("bb"), 3, 2);
    assert_eq!(kept[2].path, path("f"));
    must_name(b.tree("7-me/h", 3, &layer(kept)).await, &["7-me/h/f:", "7-me/h/f/x"]);

    // What a running host has deleted already doesn't show any more.
    let gone = layer(vec![entry("", DIR, 1, 0), entry("new", DIR, 3, 0), entry("new/x", file("a"), 3, 0)]);
    let hash = Hash::of(&gone.encode());
    a.link.send_block(block(ObjectKind::Manifest, &gone.encode())).await.expect("is queued");
    let (unit, generation) = (UnitId::tree(path("7-me/h")), Generation(3));
    let incarnation = Incarnation::FIRST;
    a.link
        .publish(PublishRequest { unit, generation, manifest: Some(hash), incarnation })
        .await
        .expect("shows");
    let mut freed = changes.entries().to_vec();
    freed[2] = entry("f", file("bb"), 3, 2);
    b.tree("7-me/h", 3, &layer(freed)).await.expect("nothing shows there");
}

/// What was retired is in nobody's way, and what was deleted with the right isn't either.
#[tokio::test]
async fn what_is_gone_is_in_nobodys_way() {
    let mut lab = Lab::new().await;
    lab.kill().await;
    lab.start("add,overlay,delete".parse().expect("rights")).await;
    let a = lab.host("drone1");
    a.wait_up().await;
    let others = first(&[("", DIR), ("d", DIR), ("d/x", file("a"))]);
    for unit in ["7-me/h", "8-me/h"] {
        a.tree(unit, 1, &others).await.expect("adds");
    }
    let admin = lab.host("web");
    admin.wait_up().await;
    let whiteout = layer(vec![entry("", DIR, 1, 0), entry("d", Body::Whiteout, 1, 2)]);
    admin.tree("7-me/h", 1, &whiteout).await.expect("deletes");
    let unit = UnitId::tree(path("8-me/h"));
    admin.link.retire(vec![RetireUnit { unit, seq: Seq(2) }]).await.expect("retires");

    lab.kill().await;
    lab.start(Rights::default()).await;
    let b = lab.host("drone2");
    b.wait_up().await;
    let new = first(&[("", DIR), ("d", file("b"))]);
    b.tree("7-me/h", 1, &new).await.expect("the directory was deleted");
    let incarnation = Incarnation(lab.store.head().seq.0 - 1);
    let (unit, manifest) = (UnitId::tree(path("8-me/h")), Hash::of(&new.encode()));
    let generation = Generation::FIRST;
    let request = CommitRequest { unit, generation, manifest, lost: false, incarnation };
    b.link.commit(request).await.expect("the job was retired");
}

/// What was pruned is in nobody's way either, until it is back: with what its host has still committed to it meanwhile.
#[tokio::test]
async fn what_is_back_is_in_the_way_again() {
    let lab = Lab::new().await;
    let (a, b) = (lab.host("drone1"), lab.host("drone2"));
    a.wait_up().await;
    b.wait_up().await;
    a.tree("8-me/h", 1, &first(&[("", DIR), ("d", DIR), ("d/x", file("a"))])).await.expect("adds");
    let (unit, by) = (UnitId::tree(path("8-me/h")), "root".to_owned());
    let prune = Prune { by: by.clone(), rule: "by hand".to_owned(), units: vec![unit.clone()] };
    let history = History::default();
    let is_others = || {
        let store: &dyn StoreApi = &*lab.store;
        history.is_others(store, HostUuid([3; 16]), &unit).expect("readable")
    };
    assert!(is_others());
    lab.store.enter(RecordBody::Prune(prune));
    assert!(!is_others());
    let late = [
        entry("", DIR, 1, 0),
        entry("d", DIR, 1, 0),
        entry("d/x", file("a"), 1, 0),
        entry("e", DIR, 2, 0),
        entry("e/y", file("a"), 2, 0),
    ];
    a.tree("8-me/h", 2, &layer(late.to_vec())).await.expect("to the life that has ended");
    let lives = vec![UnitLife { unit: unit.clone(), incarnation: Incarnation::FIRST }];
    lab.store.enter(RecordBody::Undelete(Undelete { by, lives }));
    assert!(is_others());
    for name in ["d", "e"] {
        let over = first(&[("", DIR), (name, file("b"))]);
        must_name(b.tree("8-me/h", 1, &over).await, &[&format!("8-me/h/{name}:"), "drone1"]);
    }
}

/// A host that lies: it calls a new file an old one, takes a path over step by step, or shows a file that it doesn't commit.
#[tokio::test]
async fn no_lie_hides_another_hosts_directory() {
    let lab = Lab::new().await;
    let (a, b) = (lab.host("drone1"), lab.host("drone2"));
    a.wait_up().await;
    b.wait_up().await;
    a.tree("7-me/h", 1, &first(&[("", DIR), ("d", DIR), ("d/x", file("a"))])).await.expect("adds");
    b.tree("7-me/h", 1, &first(&[("", DIR), ("d", DIR), ("d/x", file("b"))])).await.expect("changes a file");
    for since in [0, 1, 2, 99] {
        let lie = layer(vec![entry("", DIR, 1, 0), entry("d", file("b"), since, 9)]);
        must_name(b.tree("7-me/h", 2, &lie).await, &["7-me/h/d:", "7-me/h/d/x"]);
    }
    let both = layer(vec![entry("", DIR, 1, 0), entry("d", Body::Fifo, 2, 0), entry("d/x", file("b"), 1, 0)]);
    must_name(b.tree("7-me/h", 2, &both).await, &["7-me/h/d:"]);

    // A snapshot that came first is taken back with the one that is refused.
    let shown = first(&[("", DIR), ("s", file("b"))]);
    let publish = async |generation: u32| {
        b.link.send_block(block(ObjectKind::Manifest, &shown.encode())).await.expect("is queued");
        let (unit, manifest) = (UnitId::tree(path("9-me/h")), Some(Hash::of(&shown.encode())));
        let (generation, incarnation) = (Generation(generation), Incarnation::FIRST);
        b.link.publish(PublishRequest { unit, generation, manifest, incarnation }).await
    };
    publish(1).await.expect("nobody has anything there");
    a.tree("9-me/h", 1, &first(&[("", DIR), ("s", DIR), ("s/x", file("a"))])).await.expect("adds");
    let why = publish(2).await.expect_err("has no right").to_string();
    assert!(why.contains("9-me/h/s:"), "{why}");
    assert!(lab.store.slots().all().is_empty());
}

/// A job dir with hundreds of other hosts' units isn't looked through for the sake of a file in its place.
#[tokio::test]
async fn a_file_in_the_place_of_very_many_units_is_refused_unseen() {
    let lab = Lab::new().await;
    let (a, b) = (lab.host("drone1"), lab.host("drone2"));
    a.wait_up().await;
    b.wait_up().await;
    let layer = first(&[("", DIR)]);
    for i in 0..300 {
        a.tree(&format!("7-me/h{i}"), 1, &layer).await.expect("adds");
    }
    must_name(b.tree("7-me", 1, &first(&[("", file("b"))])).await, &["7-me", "256 units"]);
    b.tree("7-me/h1", 1, &first(&[("", DIR), ("f", file("b"))])).await.expect("is none of that");
}

/// Of two commits at once each is judged by what it comes after: whichever is the later, the directory's file shows.
#[tokio::test]
async fn of_two_commits_at_once_the_order_of_the_catalog_decides() {
    let lab = Lab::new().await;
    let (a, b) = (lab.host("drone1"), lab.host("drone2"));
    a.wait_up().await;
    b.wait_up().await;
    let dir = first(&[("", DIR), ("d", DIR), ("d/x", file("a"))]);
    let taken = first(&[("", DIR), ("d", file("b"))]);
    for i in 0..40 {
        let unit = format!("{i}-me/h");
        let (others, own) = tokio::join!(a.tree(&unit, 1, &dir), b.tree(&unit, 1, &taken));
        let others = others.expect("adds");
        match own {
            Ok(own) => assert!(own < others, "{unit}: {own} hides {others}"),
            Err(why) => assert!(why.to_string().contains("`delete`"), "{why}"),
        }
    }
}

/// Hosts that commit what they like in some units of one job, and what the union makes of it.
struct World {
    store: Arc<MemStore>,
    history: History,
    layers: Vec<Layer>,
    seed: u64,
}

const UNITS: &[(&str, bool)] = &[("1-m", true), ("1-m", false), ("1-m/h", true), ("1-m/i", true)];

impl World {
    fn new(seed: u64) -> Self {
        Self { store: MemStore::new(), history: History::default(), layers: Vec::new(), seed: seed << 32 | 1 }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    /// Some files, in directories that are described or not; what was there before may stay as it was.
    fn manifest(
        &mut self,
        unit: &UnitId,
        generation: u32,
        before: Option<&Layer>,
        may_delete: bool,
    ) -> Manifest {
        let names: &[&str] = if unit.root.depth() == 1 {
            &["", "h", "i", "h/a", "h/a/b"]
        } else {
            &["", "a", "a/b", "a/b/c", "d"]
        };
        let mut entries: Vec<Entry> = Vec::new();
        for name in names {
            let old = before.and_then(|layer| layer.manifest.get(&path(name)));
            let new = match self.random(9) {
                0..3 => DIR,
                3 | 4 => file("x"),
                5 if may_delete => Body::Whiteout,
                6 | 7 if old.is_some() => {
                    entries.extend(old.cloned());
                    continue;
                }
                _ => continue,
            };
            let since = if self.random(4) == 0 { generation - 1 } else { generation };
            let base = self.random(self.store.head().seq.0 + 1);
            entries.push(entry(name, new, since, base));
        }
        let is_file =
            |at: &RelPath| entries.iter().any(|e| e.path == *at && !matches!(e.body, DIR | Body::Whiteout));
        let is_below_a_file = |at: &RelPath| (0..at.depth()).any(|depth| is_file(&at.first(depth)));
        let hidden: Vec<_> = entries.iter().map(|e| e.path.clone()).filter(is_below_a_file).collect();
        entries.retain(|e| !hidden.contains(&e.path));
        layer(entries)
    }

    fn union(&self, host: HostUuid) -> Index {
        Index::build(host, self.layers.clone())
    }

    /// One commit by one of three hosts, the last of which may delete. Whether it was refused.
    fn step(&mut self) -> bool {
        let (root, is_tree) = UNITS[self.random(UNITS.len() as u64) as usize];
        let unit = if is_tree { UnitId::tree(path(root)) } else { UnitId::loose(path(root)) };
        let number = 1 + self.random(3) as u8;
        let (host, rights) = (HostUuid([number; 16]), Rights { delete: number == 3, ..Rights::default() });
        let at = self.layers.iter().position(|layer| layer.unit == unit && layer.head.host == host);
        let before = at.map(|at| self.layers[at].clone());
        let generation = before.as_ref().map_or(1, |layer| layer.head.generation.0 + 1);
        let manifest = Arc::new(self.manifest(&unit, generation, before.as_ref(), rights.delete));
        let hash = Hash::of(&manifest.encode());
        self.store.put(&block(ObjectKind::Manifest, &manifest.encode()));
        let commit = NewCommit {
            host,
            host_name: format!("drone{number}"),
            unit: unit.clone(),
            generation: Generation(generation),
            manifest: hash,
            lost: false,
            adopted_by: None,
            incarnation: Incarnation::FIRST,
        };
        let answer = may::commit(&*self.store, &self.history, rights, &commit);

        let shown = counting(&self.union(host));
        let mut commits = before.map_or_else(Vec::new, |layer| layer.head.commits);
        commits.push((Generation(generation), self.store.head().seq.next()));
        let head = LayerHead {
            host,
            host_name: commit.host_name.clone(),
            commits,
            manifest: hash,
            generation: Generation(generation),
            time_ms: 0,
            bytes: 0,
            entries: 0,
            lost: false,
            adopted_by: None,
        };
        let without = self.layers.clone();
        at.map(|at| self.layers.remove(at));
        self.layers.push(Layer { unit: unit.clone(), head, manifest: manifest.clone() });
        let left = counting(&self.union(host));
        let files: Vec<RelPath> = manifest
            .entries()
            .iter()
            .filter(|e| !matches!(e.body, DIR | Body::Whiteout))
            .map(|e| unit.root.append(&e.path).expect("a path"))
            .collect();
        let is_below = |at: &RelPath| files.iter().any(|file| at != file && at.is_below(file));
        let hidden = shown.iter().filter(|(at, _)| is_below(at)).find(|known| !left.contains(known));
        assert_eq!(
            answer.is_err(),
            hidden.is_some() && !rights.delete,
            "{host}, {unit}: {manifest:?}: {hidden:?}, {answer:?}"
        );
        match answer {
            Ok(()) => drop(self.store.commit(commit).expect("commits")),
            Err(_) => self.layers = without,
        }
        hidden.is_some() && !rights.delete
    }
}

/// Other hosts' entries that count in the union, each with its number.
fn counting(index: &Index) -> Vec<(RelPath, Seq)> {
    let mut found = Vec::new();
    let mut open: Vec<_> = index.find(&RelPath::ROOT).map(|top| (RelPath::ROOT, top)).into_iter().collect();
    while let Some((at, slot)) = open.pop() {
        let counts = |c: &Candidate| !c.synthetic && c.entry.body != Body::Whiteout;
        found.extend(index.resolve(slot, Seq(0)).foreign.filter(counts).map(|c| (at.clone(), c.seq)));
        open.extend(index.children(slot).map(|(name, child)| (at.join(name).expect("a path"), child)));
    }
    found
}

/// The check and the union agree: a commit is refused exactly if, once it is entered, something of another host's that counted below the path of one of its
/// files doesn't count any more.
#[test]
fn a_commit_is_refused_exactly_if_it_hides_something() {
    let mut refused = 0;
    for seed in 0..300 {
        let mut world = World::new(seed);
        refused += (0..20).filter(|_| world.step()).count();
    }
    assert!((300..3000).contains(&refused), "{refused} of 6000 refused");
}
