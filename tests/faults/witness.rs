//! What was promised, written down outside of the system under test: contents that were synced or whose job was acknowledged.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use crate::harness::{Machine, noise};

/// How much longer than in a usual run: `RESULTSFS_FAULTS=10 cargo test --test faults` does ten times the rounds.
pub fn rounds(usual: u64) -> u64 {
    let factor = std::env::var("RESULTSFS_FAULTS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    usual * factor
}

/// Contents by path from the top of the tree.
#[derive(Clone, Default)]
pub struct Witness {
    promised: BTreeMap<PathBuf, Vec<u8>>,
}

impl Witness {
    /// Writes a file as a whole through the mount, and promises it if it could be synced, with the names above it.
    pub fn write_synced(&mut self, tree: &Path, path: &str, content: &[u8]) -> std::io::Result<()> {
        let place = tree.join(path);
        fs::create_dir_all(place.parent().expect("a parent"))?;
        let mut file = fs::File::create(&place)?;
        file.write_all(content)?;
        file.sync_all()?;
        let mut dir = place.parent();
        while let Some(above) = dir.filter(|dir| dir.starts_with(tree)) {
            fs::File::open(above)?.sync_all()?;
            dir = above.parent();
        }
        self.promise(path, content);
        Ok(())
    }

    /// Plays a finished job of one host with a few files.
    pub fn job(&mut self, tree: &Path, job: u32, seed: u64) -> std::io::Result<()> {
        let files = job_files(job, seed);
        let dir = tree.join(unit_of(job));
        fs::create_dir_all(dir.join("debug"))?;
        for (name, content) in &files {
            fs::write(tree.join(name), content)?;
        }
        for label in ["autoserv", "parser", "archiver"] {
            fs::write(dir.join(format!(".{label}_execute")), format!("{job}\n0\n0\n"))?;
        }
        Ok(())
    }

    /// From now on all of a job that [`Self::job`] has played must be there.
    pub fn promise_job(&mut self, job: u32, seed: u64) {
        for (name, content) in job_files(job, seed) {
            self.promise(&name, &content);
        }
    }

    pub fn promise(&mut self, path: &str, content: &[u8]) {
        self.promised.insert(path.into(), content.to_vec());
    }

    pub fn add(&mut self, other: Self) {
        self.promised.extend(other.promised);
    }

    pub fn len(&self) -> usize {
        self.promised.len()
    }

    /// Each promise that the tree doesn't keep, in words.
    pub fn broken(&self, tree: &Path) -> Vec<String> {
        let compare = |(path, content): (&PathBuf, &Vec<u8>)| match fs::read(tree.join(path)) {
            Ok(found) if found == *content => None,
            Ok(found) => {
                let same = found.iter().zip(content).take_while(|(a, b)| a == b).count();
                let (found, promised) = (found.len(), content.len());
                Some(format!("{}: {found} bytes for {promised}, the same up to {same}", path.display()))
            }
            Err(e) => Some(format!("{}: {e}", path.display())),
        };
        self.promised.iter().filter_map(compare).collect()
    }

    #[track_caller]
    pub fn is_kept(&self, what: &str, machine: &Machine) {
        let broken = self.broken(&machine.mount);
        assert!(
            broken.is_empty(),
            "{what}, on {}: {} of {}: {broken:#?}",
            machine.name,
            broken.len(),
            self.len()
        );
    }
}

/// A job's only unit.
pub fn unit_of(job: u32) -> String {
    format!("{job}-me/host1")
}

/// Some text, some noise, and something that other jobs have, too.
fn job_files(job: u32, seed: u64) -> Vec<(String, Vec<u8>)> {
    let unit = unit_of(job);
    let log = format!("START\t----\t{job} of {seed}\nEND GOOD\n").repeat(1 + job as usize % 40);
    let own = noise(&format!("{seed} {job}"), 2_000 + 37_000 * (job as usize % 5));
    vec![
        (format!("{unit}/status.log"), log.into_bytes()),
        (format!("{unit}/debug/own"), own),
        (format!("{unit}/debug/core"), noise(&format!("{seed} core {}", job % 3), 400_000)),
        (format!("{unit}/debug/empty"), Vec::new()),
    ]
}
