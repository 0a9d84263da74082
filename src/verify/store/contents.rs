//! Whether all that the catalog's records need is there: manifests, chunks, and recipes that make what they are named by.

use std::collections::HashMap;

use super::{Check, RESEND, in_parallel};
use crate::{
    chunk::{ObjectKind, Recipe},
    ids::{Hash, UnitId},
    manifest::{Body, Manifest, ManifestError},
    store::{StoreError, decode_recipe, index::Location},
    verify::{Finding, LostRange, Meter, Severity},
};

/// Paths named in one finding.
const PATHS_MAX: usize = 20;

/// What is wrong with a content or a manifest.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    code: &'static str,
    what: String,
    /// Of the content, which parts: where each begins, and its bytes. None: all of it.
    ranges: Vec<(u64, u64)>,
}

impl Problem {
    fn new(code: &'static str, what: String) -> Self {
        Self { code, what, ranges: Vec::new() }
    }
}

/// What a manifest names.
#[derive(Default)]
struct Contents {
    files: u64,
    /// Those that are cut, and where the recipe is.
    cut: Vec<((Hash, u64), Location)>,
    problems: Vec<((Hash, u64), Problem)>,
}

/// Contents by hash and size that can't be read whole.
type Problems = HashMap<(Hash, u64), Problem>;

impl Check<'_> {
    /// Looks at every committed manifest and at each content once; then names the units and paths of what is wrong.
    pub(super) fn check_contents(&mut self) -> Result<(), StoreError> {
        let mut manifests: Vec<(Hash, Option<Location>)> =
            self.manifests.keys().map(|h| (*h, None)).collect();
        manifests.iter_mut().for_each(|(h, place)| *place = self.place(ObjectKind::Manifest, h).copied());
        manifests.sort_by_key(|(hash, place)| (place.map(|p| (p.pack, p.offset, p.number)), *hash));
        let meter = Meter::new(self.progress, "manifests", manifests.len() as u64);
        let numbered: Vec<(usize, Hash)> = manifests.iter().map(|(hash, _)| *hash).enumerate().collect();
        let mut looked = in_parallel(&numbered, |(number, hash)| {
            if meter.is_alone() {
                return None;
            }
            let found = self.read_contents(hash).map(|contents| self.look_up(&contents));
            meter.advance(1);
            Some((*number, found))
        });
        meter.go_on()?;
        looked.sort_unstable_by_key(|looked| looked.as_ref().map(|(number, _)| *number));
        let (mut cut, mut problems) = (HashMap::new(), Problems::new());
        for (number, found) in looked.into_iter().flatten() {
            match found {
                Ok(contents) => {
                    self.report.counts.files += contents.files;
                    cut.extend(contents.cut);
                    problems.extend(contents.problems);
                }
                Err(problem) => self.manifest_problem(&numbered[number].1, problem),
            }
        }
        self.report.counts.manifests = manifests.len() as u64;
        self.check_recipes(cut, &mut problems)?;
        if !problems.is_empty() {
            manifests.iter().for_each(|(hash, _)| self.name_problems(hash, &problems));
        }
        Ok(())
    }

    fn missing(&self, kind: ObjectKind, hash: &Hash) -> Problem {
        let what = format!("{kind:?} {hash}");
        match self.damaged.contains(&(kind, *hash)) {
            true => Problem::new("content-damaged", format!("{what} is in a damaged block")),
            false => Problem::new("content-missing", format!("{what} is missing")),
        }
    }

    fn read_manifest(&self, hash: &Hash) -> Result<Manifest, Problem> {
        self.with_manifest(hash, Manifest::decode)
    }

    fn with_manifest<T>(
        &self,
        hash: &Hash,
        decode: impl FnOnce(&[u8]) -> Result<T, ManifestError>,
    ) -> Result<T, Problem> {
        let Some(place) = self.place(ObjectKind::Manifest, hash) else {
            let Problem { code, what, .. } = self.missing(ObjectKind::Manifest, hash);
            let damaged = code == "content-damaged";
            return Err(Problem::new(if damaged { "manifest-damaged" } else { "manifest-missing" }, what));
        };
        let damaged = |e: String| Problem::new("manifest-damaged", format!("Manifest {hash}: {e}"));
        let block = self.blocks.open(place).map_err(|e| damaged(e.to_string()))?;
        let bytes =
            block.get(ObjectKind::Manifest, hash).ok_or_else(|| damaged("isn't where it was".into()))?;
        decode(bytes).map_err(|e| damaged(e.to_string()))
    }

    fn manifest_problem(&mut self, hash: &Hash, problem: Problem) {
        self.lost.insert(*hash, Vec::new());
        let units = self.manifests[hash].clone();
        let message = format!("{}: {}", name(&units), problem.what);
        let finding = Finding::new(problem.code, Severity::Error, message, RESEND);
        self.report.find(Finding { units, ..finding });
    }

    /// What a manifest names. Only who reads everything looks again at what was checked when it was taken in.
    fn read_contents(&self, hash: &Hash) -> Result<Vec<(Hash, u64)>, Problem> {
        if self.options.read_data {
            return self.read_manifest(hash).map(|manifest| manifest.contents().collect());
        }
        self.with_manifest(hash, Manifest::contents_of)
    }

    /// Looks up each content of a manifest.
    fn look_up(&self, contents: &[(Hash, u64)]) -> Contents {
        let mut found = Contents::default();
        for (content, size) in contents.iter().copied() {
            found.files += 1;
            let kind = self.header.params.content_kind(size);
            let empty = size == 0 && content == Hash::of(b"");
            let problem = match kind {
                _ if empty => continue,
                ObjectKind::Recipe => match self.recipes.get(&content).and_then(|places| places.first()) {
                    Some(place) => {
                        found.cut.push(((content, size), *place));
                        continue;
                    }
                    None => self.missing(kind, &content),
                },
                _ => match self.place(kind, &content).map(|place| place.bytes) {
                    Some(actual) if actual == size => continue,
                    Some(actual) => {
                        let what = format!("Chunk {content} has {actual} bytes, not {size}");
                        Problem::new("content-damaged", what)
                    }
                    None => self.missing(kind, &content),
                },
            };
            found.problems.push(((content, size), problem));
        }
        found
    }

    /// Checks each recipe once, in the order in which they lie in the packs.
    fn check_recipes(
        &mut self,
        cut: HashMap<(Hash, u64), Location>,
        problems: &mut Problems,
    ) -> Result<(), StoreError> {
        let mut recipes: Vec<_> = cut.into_iter().collect();
        recipes.sort_by_key(|((hash, _), place)| (place.pack, place.offset, place.number, *hash));
        let meter = Meter::new(self.progress, "recipes", recipes.len() as u64);
        let found = in_parallel(&recipes, |((hash, size), _)| {
            let part = u32::from_le_bytes(hash.0[..4].try_into().expect("four bytes"));
            let whole = self.options.unpacks(part);
            if meter.is_alone() {
                return (None, whole);
            }
            let problem = self.check_recipe(hash, *size, whole).err();
            meter.advance(1);
            (problem.map(|problem| ((*hash, *size), problem)), whole)
        });
        meter.go_on()?;
        let sound = recipes.iter().map(|((hash, _), _)| *hash);
        self.sound_recipes.extend(sound);
        found
            .iter()
            .filter_map(|(problem, _)| problem.as_ref())
            .for_each(|((hash, _), _)| _ = self.sound_recipes.remove(hash));
        self.report.counts.recipes_read = found.iter().filter(|(_, whole)| *whole).count() as u64;
        problems.extend(found.into_iter().filter_map(|(problem, _)| problem));
        Ok(())
    }

    /// One of what calls itself the recipe must be true.
    fn check_recipe(&self, hash: &Hash, size: u64, whole: bool) -> Result<(), Problem> {
        let mut problem = self.missing(ObjectKind::Recipe, hash);
        for place in self.recipes.get(hash).into_iter().flatten() {
            match self.read_recipe(hash, place, whole) {
                Ok(actual) if actual == size => return Ok(()),
                Ok(actual) => {
                    let what = format!("Recipe {hash} makes {actual} bytes, not {size}");
                    problem = Problem::new("recipe-wrong", what);
                }
                Err(other) => problem = other,
            }
        }
        Err(problem)
    }

    /// The size that a recipe makes, if its chunks are there; with `whole`, if they make the content.
    pub(super) fn read_recipe(&self, hash: &Hash, place: &Location, whole: bool) -> Result<u64, Problem> {
        let damaged = |e: StoreError| Problem::new("content-damaged", e.to_string());
        let block = self.blocks.open(place).map_err(damaged)?;
        let entry = block.table().get(place.number as usize).filter(|e| e.hash == *hash);
        let entry = entry
            .ok_or_else(|| Problem::new("content-damaged", format!("Recipe {hash} isn't where it was")))?;
        let recipe = decode_recipe(hash, block.bytes_of(entry))
            .map_err(|e| Problem::new("recipe-wrong", e.to_string()))?;
        drop(block);
        self.read_chunks(hash, &recipe, whole)?;
        Ok(recipe.size())
    }

    fn read_chunks(&self, hash: &Hash, recipe: &Recipe, whole: bool) -> Result<(), Problem> {
        let wrong = |what: String| Problem::new("recipe-wrong", what);
        let mut hasher = blake3::Hasher::new();
        let (mut at, mut lacking): (u64, Option<Problem>) = (0, None);
        for chunk in &recipe.chunks {
            let (from, bytes) = (at, u64::from(chunk.bytes));
            at += bytes;
            let Some(place) = self.place(ObjectKind::Chunk, &chunk.hash) else {
                let problem = lacking.get_or_insert_with(|| self.missing(ObjectKind::Chunk, &chunk.hash));
                match problem.ranges.last_mut() {
                    Some((begin, len)) if *begin + *len == from => *len += bytes,
                    _ => problem.ranges.push((from, bytes)),
                }
                continue;
            };
            if place.bytes != bytes {
                return Err(wrong(format!("Recipe {hash} gives a chunk another size than it has")));
            }
            if whole && lacking.is_none() {
                let damaged = |what: String| Problem::new("content-damaged", what);
                let block = self.blocks.open(place).map_err(|e| damaged(e.to_string()))?;
                let entry = block.table().get(place.number as usize).filter(|e| e.hash == chunk.hash);
                let gone = || damaged(format!("Chunk {} isn't where it was", chunk.hash));
                // As if each were read from the disk again: what is read of others' in its block makes up for those that were in memory.
                self.pace.keep(bytes);
                hasher.update(block.bytes_of(entry.ok_or_else(gone)?));
            }
        }
        match lacking {
            Some(problem) => Err(problem),
            None if !whole || Hash::from(hasher.finalize()) == *hash => Ok(()),
            None => Err(wrong(format!("the chunks of recipe {hash} don't make that content"))),
        }
    }

    /// Says which paths of a manifest have problems, in one finding for each kind of problem.
    fn name_problems(&mut self, hash: &Hash, problems: &Problems) {
        let Ok(manifest) = self.read_manifest(hash) else { return };
        let mut found: HashMap<&'static str, (u64, Finding)> = HashMap::new();
        let units = self.manifests[hash].clone();
        let mut lost: Vec<(Hash, u64)> = Vec::new();
        for entry in manifest.entries() {
            let Body::File { size, content } = entry.body else { continue };
            let Some(problem) = problems.get(&(content, size)) else { continue };
            let (count, finding) = found.entry(problem.code).or_insert_with(|| {
                let first = format!("{}: {}", entry.path, problem.what);
                (0, Finding::new(problem.code, Severity::Error, first, RESEND))
            });
            *count += 1;
            lost.push((content, size));
            for path in units.iter().filter_map(|unit| Some((unit, unit.root.append(&entry.path).ok()?))) {
                let all = [(0, size)];
                let ranges = if problem.ranges.is_empty() { &all[..] } else { &problem.ranges };
                for (from, bytes) in ranges.iter().copied() {
                    self.report.lose(LostRange { unit: path.0.clone(), path: path.1.clone(), from, bytes });
                }
            }
            for unit in units.iter().take(PATHS_MAX.saturating_sub(finding.paths.len())) {
                finding.paths.extend(unit.root.append(&entry.path));
            }
        }
        if !lost.is_empty() {
            self.lost.insert(*hash, lost);
        }
        for (_, (count, mut finding)) in found {
            finding.message = format!("{}: {count} files, the first {}", name(&units), finding.message);
            finding.units = units.clone();
            self.report.find(finding);
        }
    }
}

fn name(units: &[UnitId]) -> String {
    match units {
        [] => "no unit".to_owned(),
        [unit] => unit.to_string(),
        [unit, rest @ ..] => format!("{unit} and {} more", rest.len()),
    }
}
