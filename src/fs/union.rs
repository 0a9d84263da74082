//! The union of committed layers: which entries of which layers show at a path?
//!
//! The pure part: an [`Index`] is built from the layers of all units that can hold entries along one path,
//! and then answers by a binary search. It knows nothing of the spool, the journal or the network.
//!
//! The rules (`docs/architecture.md`, "The union"), in the words used here. An entry's sequence number is
//! that under which its path last changed.
//!
//! 1. At one path the highest sequence number wins. Directories merge: among them it decides only whose
//!    attributes show.
//! 2. A file or link (a *non-directory*) hides everything below its path that has no higher sequence number. A
//!    whiteout hides everything at and below its path that was in the catalog when it was made: what has no higher
//!    number than the one that it is based on. It never wins; it only hides.
//! 3. A directory is as new as the newest thing that shows below it; a non-directory that is older than that is
//!    *stale* and doesn't count at its own path. So file against directory: the newer wins as a whole, and
//!    nothing shows without its parents.
//! 4. A directory that something shows in and that no layer describes is *synthetic*: `drwxr-xr-x root root`,
//!    oldest commit's time.
//!
//! Own and foreign entries are told apart, since the host may have deleted or changed its own after the
//! commit; whoever asks takes the one with the higher sequence number, unless the own one no longer counts. Where
//! nothing shows, the whiteout that hides it stands for that.
//!
//! Deletions of this host that aren't committed yet hide as their whiteouts will: whoever asks says up to which number.

use std::sync::Arc;

use crate::{
    ids::{Hash, HostUuid, RelPath, Scope, Seq, UnitId},
    journal::LayerHead,
    manifest::{Attrs, Body, Entry, Manifest, Timestamp},
};

/// One layer with its manifest.
#[derive(Clone, Debug)]
pub struct Layer {
    pub unit: UnitId,
    pub head: LayerHead,
    pub manifest: Arc<Manifest>,
}

impl Layer {
    /// One of its entries as what may show at its path.
    pub fn candidate(&self, entry: &Entry) -> Candidate {
        Candidate {
            host: self.head.host,
            seq: self.seq_of(entry),
            file: self.manifest.file_of(entry),
            entry: entry.clone(),
            unit: self.unit.clone(),
            manifest: self.head.manifest,
            synthetic: false,
        }
    }

    /// A manifest that speaks of a generation beyond its commit breaks a rule; its entry is as new as the commit.
    fn seq_of(&self, entry: &Entry) -> Seq {
        self.head.seq_of(entry.since).unwrap_or_else(|| self.head.seq())
    }
}

/// An entry that may show at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Whose layer it is in.
    pub host: HostUuid,
    /// Under which number the path last changed in that layer; 0 if synthetic.
    pub seq: Seq,
    /// Its path is below the unit's root.
    pub entry: Entry,
    pub unit: UnitId,
    /// The layer's.
    pub manifest: Hash,
    /// Size and content, if it is a regular file or another name of one.
    pub file: Option<(u64, Hash)>,
    /// No layer describes this directory, or none was looked into; unit, host and manifest are those of a
    /// layer below it.
    pub synthetic: bool,
}

/// What the committed layers say of a path: the best own entry, and the best of all other hosts'. An own one that
/// is hidden comes with the foreign one or the whiteout that is newer: who finds a whiteout on top treats the path as not
/// there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    pub own: Option<Candidate>,
    pub foreign: Option<Candidate>,
}

impl Resolved {
    /// The one that shows if nothing of this host has changed since it was committed.
    pub fn winner(&self) -> Option<&Candidate> {
        let own = self.own.iter().chain(&self.foreign).max_by_key(|c| c.seq);
        own.filter(|c| c.entry.body != Body::Whiteout)
    }

    /// Whether no layer says anything.
    pub fn is_empty(&self) -> bool {
        self.own.is_none() && self.foreign.is_none()
    }
}

/// Whose entry: this host's or another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Own,
    Foreign,
}

const SIDES: [Side; 2] = [Side::Own, Side::Foreign];

/// The highest number of what shows below a path, by side; 0 = nothing does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Alive([Seq; 2]);

impl Alive {
    /// Nothing but this, of one side.
    fn only(side: Side, seq: Seq) -> Self {
        let mut alive = Self::default();
        alive.raise(side, seq);
        alive
    }

    fn of(&self, side: Side) -> Seq {
        self.0[side as usize]
    }

    fn max(&self) -> Seq {
        self.0[0].max(self.0[1])
    }

    fn merge(&mut self, other: Alive) {
        SIDES.iter().for_each(|side| self.raise(*side, other.of(*side)));
    }

    fn raise(&mut self, side: Side, seq: Seq) {
        self.0[side as usize] = self.of(side).max(seq);
    }
}

/// A path in an [`Index`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotId(u32);

/// The merged layers of some units, by path from the top of the tree. Slots are in the order of a walk that
/// takes a directory before what is in it, so that each subtree is one run of them.
#[derive(Debug)]
pub struct Index {
    own: HostUuid,
    layers: Vec<Layer>,
    slots: Vec<Slot>,
}

/// All that is known of a path.
#[derive(Clone, Debug)]
struct Slot {
    /// An entry at or below the path, whose first `depth` components are the path.
    named_by: Place,
    depth: u32,
    /// Best directory and best non-directory, by side.
    dirs: [Option<Ref>; 2],
    others: [Option<Ref>; 2],
    /// The whiteout that hides most, by side.
    whiteouts: [Option<Whiteout>; 2],
    /// What is lower is hidden by a non-directory above the path.
    floor: Seq,
    /// What shows below the path.
    below: Alive,
    /// The slot after its subtree.
    end: u32,
}

/// An entry of a layer.
#[derive(Clone, Copy, Debug)]
struct Place {
    layer: u32,
    entry: u32,
}

#[derive(Clone, Copy, Debug)]
struct Ref {
    place: Place,
    seq: Seq,
}

/// A whiteout, and up to which number it hides.
#[derive(Clone, Copy, Debug)]
struct Whiteout {
    entry: Ref,
    hides: Seq,
}

impl Slot {
    fn new(named_by: Place, depth: usize, floor: Seq) -> Self {
        let (dirs, others, whiteouts) = ([None; 2], [None; 2], [None; 2]);
        let depth = depth as u32;
        Self { named_by, depth, dirs, others, whiteouts, floor, below: Alive::default(), end: 0 }
    }

    /// What has no higher number is hidden at the path.
    fn cut(&self, hidden_upto: Seq) -> Seq {
        self.whiteouts.iter().flatten().map(|w| w.hides).fold(self.floor.max(hidden_upto), Seq::max)
    }

    /// What has no higher number is hidden below the path.
    fn bar(&self) -> Seq {
        self.others.iter().flatten().map(|r| r.seq).fold(self.cut(Seq::default()), Seq::max)
    }

    /// The highest number of what shows below.
    fn newest_below(&self, hidden_upto: Seq) -> Seq {
        if self.below.max() > hidden_upto { self.below.max() } else { Seq::default() }
    }

    /// Rules 1 to 3 at the path itself.
    fn pick(&self, side: Side, hidden_upto: Seq) -> Option<Ref> {
        let (cut, below) = (self.cut(hidden_upto), self.newest_below(hidden_upto));
        let other = self.others[side as usize].filter(|r| r.seq > cut && r.seq >= below);
        let dir = self.dirs[side as usize].filter(|r| r.seq > cut || below > Seq::default());
        [other, dir].into_iter().flatten().max_by_key(|r| r.seq)
    }

    /// The best entry of a side, whatever hides it.
    fn raw(&self, side: Side) -> Option<Ref> {
        let both = [self.others[side as usize], self.dirs[side as usize]];
        both.into_iter().flatten().max_by_key(|r| r.seq)
    }
}

impl Index {
    /// Merges the newest layers of units, seen by host `own`.
    pub fn build(own: HostUuid, layers: Vec<Layer>) -> Self {
        let mut builder = Builder { own, layers: &layers, slots: Vec::new(), open: Vec::new() };
        builder.add_all();
        let slots = builder.slots;
        Self { own, layers, slots }
    }

    /// The layers that are merged here.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Number of paths.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no layer has an entry.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The slot of a path at or above which some entry is.
    pub fn find(&self, path: &RelPath) -> Option<SlotId> {
        let at = self.slots.binary_search_by(|slot| slot_path(&self.layers, slot).cmp(path.components()));
        at.ok().map(|at| SlotId(at as u32))
    }

    /// The names directly in a directory, in ascending order.
    pub fn children(&self, dir: SlotId) -> impl Iterator<Item = (&[u8], SlotId)> {
        let end = self.slot(dir).end;
        let mut next = dir.0 + 1;
        std::iter::from_fn(move || {
            let at = SlotId(next);
            if next >= end {
                return None;
            }
            next = self.slot(at).end;
            let name = slot_path(&self.layers, self.slot(at)).last().expect("only the top has no name");
            Some((name, at))
        })
    }

    /// The number below which everything under `path` is hidden.
    pub fn bar(&self, path: &RelPath) -> Seq {
        (0..=path.depth())
            .rev()
            .find_map(|depth| self.find(&path.first(depth)))
            .map_or(Seq::default(), |slot| self.slot(slot).bar())
    }

    /// Whether these layers alone say what a path is: a directory that nothing contests.
    pub fn is_plain_dir(&self, slot: SlotId) -> bool {
        let slot = self.slot(slot);
        slot.others.iter().all(Option::is_none)
            && slot.whiteouts.iter().all(Option::is_none)
            && slot.dirs.iter().flatten().any(|r| r.seq > slot.floor)
    }

    /// What shows at a path where this host has deleted what has no higher number than `hidden_upto`.
    pub fn resolve(&self, slot: SlotId, hidden_upto: Seq) -> Resolved {
        let slot = self.slot(slot);
        let [own, foreign] = SIDES.map(|side| slot.pick(side, hidden_upto));
        if own.or(foreign).is_none() && slot.newest_below(hidden_upto) == Seq::default() {
            return self.nothing(slot, hidden_upto);
        }
        let hidden_own = || slot.raw(Side::Own).filter(|raw| foreign.is_some_and(|f| f.seq > raw.seq));
        let [own, foreign] = [(Side::Own, own.or_else(hidden_own)), (Side::Foreign, foreign)].map(
            |(side, found)| match found {
                Some(found) => Some(self.candidate(found)),
                None if slot.below.of(side) > hidden_upto => self.synthetic(side),
                None => None,
            },
        );
        Resolved { own, foreign }
    }

    /// Where nothing shows: the own entry that is hidden, and what hides it.
    fn nothing(&self, slot: &Slot, hidden_upto: Seq) -> Resolved {
        let [own_whiteout, foreign] = slot.whiteouts.map(|w| w.filter(|w| w.entry.seq > slot.floor));
        let raw = slot.raw(Side::Own).filter(|raw| raw.seq > hidden_upto);
        let raw = raw.filter(|raw| own_whiteout.is_none_or(|w| w.hides < raw.seq));
        // Never without what is newer: nothing here may show.
        let raw = raw.filter(|raw| raw.seq > slot.floor || foreign.is_some_and(|w| w.entry.seq > raw.seq));
        let own = raw.or(own_whiteout.map(|w| w.entry));
        Resolved {
            own: own.map(|found| self.candidate(found)),
            foreign: foreign.map(|w| self.candidate(w.entry)),
        }
    }

    fn synthetic(&self, side: Side) -> Option<Candidate> {
        let layers = self.layers.iter().filter(|layer| self.side(layer) == side);
        layers.min_by_key(|layer| layer.head.time_ms).map(|layer| synthetic_dir(&layer.unit, &layer.head))
    }

    fn side(&self, layer: &Layer) -> Side {
        if layer.head.host == self.own { Side::Own } else { Side::Foreign }
    }

    fn slot(&self, id: SlotId) -> &Slot {
        &self.slots[id.0 as usize]
    }

    fn candidate(&self, found: Ref) -> Candidate {
        self.layers[found.place.layer as usize].candidate(entry_at(&self.layers, found.place))
    }
}

/// A directory that no layer describes, above or in a layer.
pub fn synthetic_dir(unit: &UnitId, layer: &LayerHead) -> Candidate {
    let mtime =
        Timestamp { secs: (layer.time_ms / 1000) as i64, nanos: (layer.time_ms % 1000) as u32 * 1_000_000 };
    let attrs = Attrs { mode: 0o755, uid: 0, gid: 0, mtime };
    Candidate {
        host: layer.host,
        seq: Seq(0),
        entry: Entry {
            path: RelPath::ROOT,
            attrs,
            body: Body::Dir,
            since: layer.generation,
            base: Seq::default(),
        },
        unit: unit.clone(),
        manifest: layer.manifest,
        file: None,
        synthetic: true,
    }
}

fn entry_at(layers: &[Layer], place: Place) -> &Entry {
    &layers[place.layer as usize].manifest.entries()[place.entry as usize]
}

fn full_path(layers: &[Layer], place: Place) -> impl Iterator<Item = &[u8]> {
    let root = &layers[place.layer as usize].unit.root;
    root.components().chain(entry_at(layers, place).path.components())
}

fn slot_path<'a>(layers: &'a [Layer], slot: &Slot) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    full_path(layers, slot.named_by).take(slot.depth as usize)
}

/// Whether an entry is one that its unit can have: a loose unit has no directories but its root, and nothing
/// in them.
pub fn belongs(unit: &UnitId, entry: &Entry) -> bool {
    match unit.scope {
        Scope::Tree => true,
        Scope::Loose => match entry.path.depth() {
            0 => true,
            1 => entry.body != Body::Dir,
            _ => false,
        },
    }
}

struct Builder<'a> {
    own: HostUuid,
    layers: &'a [Layer],
    slots: Vec<Slot>,
    /// The slots from the top to the one that was added last.
    open: Vec<usize>,
}

impl<'a> Builder<'a> {
    fn add_all(&mut self) {
        let places = self.places();
        let Some(first) = places.first() else { return };
        self.slots.push(Slot::new(*first, 0, Seq::default()));
        self.open.push(0);
        let mut last: Vec<&[u8]> = Vec::new();
        for place in places {
            let path: Vec<&[u8]> = full_path(self.layers, place).collect();
            let common = last.iter().zip(&path).take_while(|(a, b)| a == b).count();
            self.close_to(common);
            for depth in common + 1..=path.len() {
                self.open_slot(place, depth);
            }
            self.offer(place);
            last = path;
        }
        self.close_to(0);
        self.close();
    }

    /// All entries, by path, in the order of the slots.
    fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        for (layer, of) in (0..).zip(self.layers) {
            let entries = (0..).zip(of.manifest.entries());
            places.extend(
                entries.filter(|(_, e)| belongs(&of.unit, e)).map(|(entry, _)| Place { layer, entry }),
            );
        }
        places.sort_by(|a, b| full_path(self.layers, *a).cmp(full_path(self.layers, *b)));
        places
    }

    fn top(&mut self) -> &mut Slot {
        let at = *self.open.last().expect("the top slot stays open to the end");
        &mut self.slots[at]
    }

    fn open_slot(&mut self, place: Place, depth: usize) {
        let floor = self.top().bar();
        self.open.push(self.slots.len());
        self.slots.push(Slot::new(place, depth, floor));
    }

    /// Enters an entry at the slot that is open. All entries of a path come before those below it, so its bar
    /// is known in time.
    fn offer(&mut self, place: Place) {
        let layer = &self.layers[place.layer as usize];
        let entry = entry_at(self.layers, place);
        let seq = layer.seq_of(entry);
        let side = if layer.head.host == self.own { Side::Own } else { Side::Foreign };
        let slot = self.top();
        let found = Ref { place, seq };
        let best = match entry.body {
            Body::Dir => &mut slot.dirs[side as usize],
            Body::Whiteout => {
                // Nothing that comes after it, whatever it says of itself.
                let hides = entry.base.min(seq);
                let most = &mut slot.whiteouts[side as usize];
                if most.is_none_or(|most| (most.hides, most.entry.seq) < (hides, seq)) {
                    *most = Some(Whiteout { entry: found, hides });
                }
                return;
            }
            _ => &mut slot.others[side as usize],
        };
        if best.is_none_or(|b| b.seq < seq) {
            *best = Some(found);
        }
    }

    fn close_to(&mut self, depth: usize) {
        while self.open.len() > depth + 1 {
            self.close();
        }
    }

    fn close(&mut self) {
        let at = self.open.pop().expect("it is open");
        self.slots[at].end = self.slots.len() as u32;
        let shows = self.shows(&self.slots[at]);
        if let Some(parent) = self.open.last() {
            self.slots[*parent].below.merge(shows);
        }
    }

    /// What shows at and below a path.
    fn shows(&self, slot: &Slot) -> Alive {
        let winner = SIDES
            .into_iter()
            .filter_map(|side| slot.pick(side, Seq::default()).map(|r| (side, r)))
            .max_by_key(|(_, r)| r.seq);
        let mut shows = slot.below;
        let Some((side, found)) = winner else { return shows };
        match entry_at(self.layers, found.place).body {
            Body::Dir => {
                let cut = slot.cut(Seq::default());
                for side in SIDES {
                    let dir = slot.dirs[side as usize].filter(|r| r.seq > cut);
                    shows.raise(side, dir.map_or(Seq::default(), |r| r.seq));
                }
                shows
            }
            _ => Alive::only(side, found.seq),
        }
    }
}
