//! The view against a model that keeps, for each host, unit and path, the last committed change, and says by
//! brute force what shows.

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// Paths below a unit's root. Byte order and tree order differ.
const BELOW: [&str; 7] = ["", "a", "a/x", "a/x/y", "a-b", "b", "h"];

/// What changes at a path; `Vanish` = the layer no longer says anything.
#[derive(Clone, Copy, Debug)]
enum Change {
    Dir,
    File,
    Symlink,
    Whiteout,
    Vanish,
}

#[derive(Clone, Debug)]
struct Step {
    host: usize,
    unit: UnitId,
    changes: Vec<(&'static str, Change)>,
    overtaken: u32,
    unheard: u64,
}

fn units() -> Vec<UnitId> {
    vec![
        loose("1-me"),
        tree("1-me"),
        tree("1-me/h"),
        tree("1-me/a"),
        loose("hosts"),
        tree("hosts/h/1-verify"),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    use Change::*;
    let change = prop_oneof![3 => Just(Dir), 4 => Just(File), 1 => Just(Symlink), 2 => Just(Whiteout), 1 => Just(Vanish)];
    let changes = vec((select(&BELOW[..]), change), 1..5);
    (0..3usize, select(units()), changes, 0..3u32, 0..3u64).prop_map(
        |(host, unit, changes, overtaken, unheard)| {
            let may_be = |(at, change): &(&str, Change)| match unit.scope {
                Scope::Tree => true,
                Scope::Loose if at.is_empty() => !matches!(change, File | Symlink),
                Scope::Loose => !at.contains('/') && !matches!(change, Dir),
            };
            let changes = changes.into_iter().filter(may_be).collect();
            Step { host, unit, changes, overtaken, unheard }
        },
    )
}

/// The last change of each path in each layer: its number, how much of the catalog its host had heard of, and what it is.
#[derive(Default)]
struct Model {
    changes: BTreeMap<(RelPath, usize, UnitId), (Seq, Seq, Body)>,
}

/// What shows: number and body, `None` in place of the number if synthetic.
type Shown = Option<(Option<Seq>, Body)>;

impl Model {
    fn at<'a>(&'a self, path: &'a RelPath) -> impl Iterator<Item = &'a (Seq, Seq, Body)> {
        self.changes.iter().filter(move |((p, ..), _)| p == path).map(|(_, change)| change)
    }

    /// Hidden by a newer non-directory above, or by a whiteout at or above the path that knew of it.
    fn is_hidden(&self, path: &RelPath, seq: Seq) -> bool {
        (0..=path.depth()).map(|depth| path.first(depth)).any(|p| {
            self.at(&p).any(|(s, heard, body)| match body {
                Body::Dir => false,
                Body::Whiteout => *heard >= seq,
                _ => p != *path && *s >= seq,
            })
        })
    }

    /// The number of the newest thing that shows below.
    fn newest_below(&self, path: &RelPath) -> Seq {
        let below: BTreeSet<&RelPath> =
            self.changes.keys().map(|(p, ..)| p).filter(|p| p.is_below(path) && *p != path).collect();
        below.into_iter().filter_map(|p| self.shows_itself(p)).max().unwrap_or_default()
    }

    /// The number under which something shows at the path itself.
    fn shows_itself(&self, path: &RelPath) -> Option<Seq> {
        match self.shown(path)? {
            (_, Body::Dir) => self
                .at(path)
                .filter(|(s, _, b)| *b == Body::Dir && !self.is_hidden(path, *s))
                .map(|(s, ..)| *s)
                .max(),
            (seq, _) => seq,
        }
    }

    fn shown(&self, path: &RelPath) -> Shown {
        let newest = self.newest_below(path);
        let counts = |(seq, _, body): &&(Seq, Seq, Body)| match body {
            Body::Whiteout => false,
            Body::Dir => newest > Seq(0) || !self.is_hidden(path, *seq),
            _ => *seq >= newest && !self.is_hidden(path, *seq),
        };
        match self.at(path).filter(counts).max_by_key(|(seq, ..)| *seq) {
            Some((seq, _, body)) => Some((Some(*seq), body.clone())),
            None => (newest > Seq(0)).then_some((None, Body::Dir)),
        }
    }

    fn names(&self, dir: &RelPath) -> Vec<Vec<u8>> {
        let children: BTreeSet<RelPath> = self
            .changes
            .keys()
            .filter(|(p, ..)| p.is_below(dir) && p != dir)
            .map(|(p, ..)| p.first(dir.depth() + 1))
            .collect();
        let shown = children.into_iter().filter(|p| self.shown(p).is_some());
        shown.map(|p| p.name().expect("not the top").to_vec()).collect()
    }
}

fn apply(lab: &mut Lab, model: &mut Model, step: &Step) {
    let changes: Vec<_> = step
        .changes
        .iter()
        .enumerate()
        .map(|(i, (at, change))| {
            let body = match change {
                Change::Dir => Some(Body::Dir),
                Change::File => file(&format!("{} {i}", lab.head.seq)),
                Change::Symlink => Some(Body::Symlink { target: lab.head.seq.to_string().into_bytes() }),
                Change::Whiteout => Some(Body::Whiteout),
                Change::Vanish => None,
            };
            (*at, body)
        })
        .collect();
    lab.unheard = step.unheard;
    let heard = Seq(lab.head.seq.0.saturating_sub(step.unheard));
    let seq = lab.commit_after(step.host, &step.unit, &changes, step.overtaken);
    for (at, body) in changes {
        let key = (step.unit.root.append(&path(at)).expect("short"), step.host, step.unit.clone());
        match body {
            Some(body) => _ = model.changes.insert(key, (seq, heard, body)),
            None => _ = model.changes.remove(&key),
        }
    }
}

fn universe() -> BTreeSet<RelPath> {
    let mut paths = BTreeSet::new();
    for unit in units() {
        for below in BELOW {
            let full = unit.root.append(&path(below)).expect("short");
            paths.extend((1..=full.depth()).map(|depth| full.first(depth)));
        }
    }
    paths
}

fn shown_by(lab: &Lab, path: &RelPath) -> Shown {
    let resolved = lab.ask(|view| view.lookup(path));
    resolved.winner().map(|c| ((!c.synthetic).then_some(c.seq), c.entry.body.clone()))
}

fn names_by(lab: &Lab, dir: &RelPath) -> Vec<Vec<u8>> {
    shown(lab.ask(|view| view.list(dir))).into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Precedence is by path: after each commit the view shows at every path the newest change that nothing
    /// newer hides, and lists exactly what it shows.
    #[test]
    fn the_view_agrees_with_the_last_committed_changes(steps in vec(step(), 1..14)) {
        let mut lab = Lab::new();
        // No layer gives evidence, so that every listing is exact.
        lab.told_bytes = Some(0);
        let mut model = Model::default();
        for step in &steps {
            apply(&mut lab, &mut model, step);
            for at in universe() {
                prop_assert_eq!(shown_by(&lab, &at), model.shown(&at), "at {}", at);
                prop_assert_eq!(names_by(&lab, &at), model.names(&at), "in {}", at);
            }
            prop_assert_eq!(names_by(&lab, &RelPath::ROOT), model.names(&RelPath::ROOT), "at the top");
        }
    }
}
