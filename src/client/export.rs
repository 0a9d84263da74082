//! Export: what is committed, entry by entry, for the command to write down as plain files. With a mount its daemon does this, without one the command.
//!
//! The layers of one life of each unit, merged as the tree merges them; what the host has changed and not committed isn't in it. Bytes come through the
//! cache, checked; the command checks each file's whole content once more.

use std::{collections::BTreeSet, fmt::Display, sync::Arc};

use serde_json::{Value, json};

use crate::{
    cache::Cache,
    chunk::ChunkParams,
    control::PIECE_BYTES,
    fs::view::{Candidate, View},
    ids::{RelPath, UnitId},
    journal::{Journal, LayerHead, PastLife},
    layout::{self, LayoutRules},
    manifest::Body,
};

type Heads = Vec<(UnitId, LayerHead)>;
type Tree = Vec<(RelPath, Candidate)>;

/// What is told.
#[derive(Debug)]
pub enum Piece {
    /// First: about how many file bytes come.
    Total(u64),
    /// Something to be made; a file's bytes follow.
    Entry(Value),
    Bytes(Vec<u8>),
}

/// Why it can't be given back, and what to do.
#[derive(Debug)]
pub struct Refused {
    pub message: String,
    pub hint: Option<String>,
}

impl Refused {
    fn new(message: impl Display) -> Self {
        Self { message: message.to_string(), hint: None }
    }

    fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }
}

/// What it is taken from. All of it may wait for the network.
pub struct Exporter {
    pub journal: Arc<Journal>,
    pub view: Arc<View>,
    pub cache: Arc<Cache>,
    /// The store's.
    pub params: ChunkParams,
}

impl Exporter {
    /// Tells what is committed at these paths, each with the unit that it is in, of the present life or of one by its number, until `tell` says that
    /// nobody listens. Of several paths all or none, but for the top, which is given name by name.
    pub fn run(
        &self,
        wanted: &[(RelPath, Option<UnitId>)],
        incarnation: Option<usize>,
        tell: &mut dyn FnMut(Piece) -> bool,
    ) -> Result<(), Refused> {
        let mut trees = Vec::new();
        let is_all = wanted.iter().any(|(path, _)| path.is_root());
        for (path, unit) in wanted.iter().filter(|_| !is_all) {
            let heads = self.heads(path, unit.as_ref(), incarnation)?;
            let tree = self.tree(&heads, path)?;
            if tree.is_empty() {
                return Err(Refused::new(format!("{path}: nothing is committed there")));
            }
            trees.push(tree);
        }
        let names = if is_all { self.names(incarnation) } else { Vec::new() };
        let sizes = trees.iter().flatten().filter_map(|(_, shown)| shown.file).map(|(size, _)| size);
        let of_names = names.iter().flat_map(|(_, heads)| heads).map(|(_, head)| head.bytes);
        if !tell(Piece::Total(sizes.chain(of_names).sum())) {
            return Ok(());
        }
        for tree in trees {
            self.tell(tree, tell)?;
        }
        for (path, heads) in names {
            self.tell(self.tree(&heads, &path)?, tell)?;
        }
        Ok(())
    }

    fn tell(&self, tree: Tree, tell: &mut dyn FnMut(Piece) -> bool) -> Result<(), Refused> {
        for (path, shown) in tree {
            if !tell(Piece::Entry(self.entry(&path, &shown))) {
                return Ok(());
            }
            let Some((size, content)) = shown.file else { continue };
            for offset in (0..size).step_by(PIECE_BYTES) {
                let bytes = self.cache.read(&content, size, &self.params, offset, PIECE_BYTES);
                let bytes = bytes.map_err(|e| Refused::new(format!("{path}: {e}")))?;
                if !tell(Piece::Bytes(bytes)) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Everything at the top of which there is such a life.
    fn names(&self, incarnation: Option<usize>) -> Vec<(RelPath, Heads)> {
        let mut names: BTreeSet<RelPath> = BTreeSet::new();
        let shown = self.journal.child_roots(&RelPath::ROOT);
        names.extend(shown.iter().filter_map(|name| RelPath::ROOT.join(name).ok()));
        if incarnation.is_some() {
            names.extend(self.journal.retired_below(&RelPath::ROOT).iter().map(|unit| unit.root.first(1)));
        }
        let found = names.into_iter().filter_map(|name| {
            let heads = self.heads(&name, None, incarnation).ok()?;
            Some((name, heads))
        });
        found.collect()
    }

    /// The layers of one life of each unit at and below a path, or of the one that it is in.
    fn heads(
        &self,
        path: &RelPath,
        unit: Option<&UnitId>,
        incarnation: Option<usize>,
    ) -> Result<Heads, Refused> {
        let journal = &self.journal;
        let mut units = journal.units_at(path);
        units.extend(journal.retired_below(path));
        units.extend(unit.cloned());
        units.sort();
        units.dedup();
        let mut found = Heads::new();
        let mut lives = 0;
        for unit in units {
            let past = journal.past_lives(&unit);
            lives = lives.max(past.len());
            let layers = match incarnation {
                Some(number) if number <= past.len() => {
                    left_of(&unit, number, &past[number.saturating_sub(1)])?
                }
                Some(number) if number > past.len() + 1 => Vec::new(),
                _ => journal.layers(&unit),
            };
            found.extend(layers.into_iter().map(|head| (unit.clone(), head)));
        }
        match (found.is_empty(), incarnation, lives) {
            (false, ..) => Ok(found),
            (_, None, 1..) => {
                Err(Refused::new(format!("{path}: what was committed there was retired or pruned"))
                    .hint(&format!("`--incarnation N`, from 1 to {lives}, gives it back")))
            }
            (_, Some(number), _) => Err(Refused::new(format!("{path}: has no incarnation {number}"))),
            (_, None, _) => Err(Refused::new(format!("{path}: nothing is committed there"))),
        }
    }

    /// What these layers show.
    fn tree(&self, heads: &Heads, path: &RelPath) -> Result<Tree, Refused> {
        match self.view.tree_of(heads, path) {
            Ok(tree) => Ok(tree),
            Err(need) => {
                self.view.fetch(&need).map_err(|e| Refused::new(format!("{path}: {e}")))?;
                let lost = |_| Refused::new(format!("{path}: its manifests don't stay here; try again"));
                self.view.tree_of(heads, path).map_err(lost)
            }
        }
    }

    fn entry(&self, path: &RelPath, shown: &Candidate) -> Value {
        let attrs = &shown.entry.attrs;
        let manifest = self.journal.manifest(&shown.manifest).ok().flatten();
        let names =
            manifest.map(|m| (m.user(attrs.uid).map(str::to_owned), m.group(attrs.gid).map(str::to_owned)));
        let (user, group) = names.unwrap_or_default();
        let is = match &shown.entry.body {
            Body::Dir => "directory",
            Body::File { .. } | Body::Link { .. } => "file",
            Body::Symlink { .. } => "link",
            Body::Fifo => "pipe",
            Body::Whiteout => "nothing",
        };
        let target = match &shown.entry.body {
            Body::Symlink { target } => Some(target),
            _ => None,
        };
        // Another name of a file, from the top of the tree.
        let same_as = match &shown.entry.body {
            Body::Link { to } => shown.unit.root.append(to).ok(),
            _ => None,
        };
        json!({
            "entry": path.as_bytes(), "is": is, "target": target, "same_as": same_as.as_ref().map(RelPath::as_bytes),
            "size": shown.file.map(|(size, _)| size), "content": shown.file.map(|(_, hash)| hash.to_string()),
            "mode": attrs.mode, "uid": attrs.uid, "gid": attrs.gid, "user": user, "group": group,
            "secs": attrs.mtime.secs, "nanos": attrs.mtime.nanos,
        })
    }

    /// The unit that a path is in, by what is committed alone.
    pub fn unit_of(&self, path: &RelPath, rules: &LayoutRules) -> Option<UnitId> {
        let shown = || self.view.lookup(path);
        let resolved = shown().or_else(|need| {
            // A path whose manifests don't come is a directory or a file: reading it will say why not.
            let _ = self.view.fetch(&need);
            shown()
        });
        let is_dir = resolved.unwrap_or_default().winner().is_none_or(|c| c.entry.body == Body::Dir);
        let whole = |job: &RelPath| self.journal.whole_job(job);
        layout::unit_of(path, is_dir, rules, &whole, &|top| self.journal.adopted(top))
    }
}

/// What a life that has ended still has.
fn left_of(unit: &UnitId, number: usize, life: &PastLife) -> Result<Vec<LayerHead>, Refused> {
    let left: Vec<LayerHead> = life.layers.iter().filter(|layer| !life.is_given_up(layer)).cloned().collect();
    match life.purged.filter(|_| left.is_empty()) {
        None => Ok(left),
        Some(seq) => Err(Refused::new(format!("{unit}: incarnation {number} was purged as {seq}")).hint(
            "it was pruned, its time of grace is over, and nothing of it need be in the store any more",
        )),
    }
}
