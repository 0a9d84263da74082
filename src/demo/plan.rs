//! What is played where: the jobs of a directory or generated ones, one host's part after the other, shared out between the drones.

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    path::{Path, PathBuf},
};

use fs_err as fs;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    DemoError, DemoOptions, digest, generate,
    lab::{DRONES, Lab},
    play::{Job, Stage, Task},
};

/// Size of generated jobs: about 3 MB each.
const SCALE: f64 = 0.2;
/// Jobs that are sent again.
const AGAIN: usize = 3;
/// Added to their ids.
const AGAIN_IDS: u32 = 100_000;
const OWNER: &str = "demo";
/// What a job's results have at their top: autoserv's, or those of the client run by hand.
const JOB_FILES: &[&str] = &[".autoserv_execute", "status.log", "status"];

/// One host's part of one job.
#[derive(Clone, Debug)]
pub struct Part {
    id: u32,
    host: String,
    source: PathBuf,
    /// The drone on which it runs.
    pub drone: usize,
}

impl Part {
    /// Its execution dir, from the top of the tree.
    pub fn unit(&self) -> String {
        format!("{}-{OWNER}/{}", self.id, self.host)
    }

    fn job<'a>(&'a self, results: &'a Path) -> Job<'a> {
        Job {
            results,
            id: self.id,
            owner: OWNER,
            host: &self.host,
            source: Some(&self.source),
            until: Stage::Archived,
        }
    }

    fn again(&self) -> Self {
        Self { id: self.id + AGAIN_IDS, drone: (self.drone + 1) % DRONES, ..self.clone() }
    }
}

/// All that is played.
#[derive(Debug)]
pub struct Plan {
    parts: Vec<Part>,
    quiet: bool,
}

impl Plan {
    /// Takes the jobs of `options.from`, or generates some.
    pub fn make(options: &DemoOptions, lab: &Lab) -> Result<Self, DemoError> {
        let parts = match &options.from {
            Some(dir) => found(dir)?,
            None => generated(options, lab)?,
        };
        if parts.is_empty() {
            return Err(DemoError::NothingToPlay(options.from.clone().unwrap_or_default()));
        }
        Ok(Self { parts, quiet: options.quiet })
    }

    /// The hosts' parts, in the order of their jobs.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Number of jobs.
    pub fn jobs(&self) -> usize {
        self.by_job().len()
    }

    /// Number of special tasks: one before every fourth part.
    pub fn tasks(&self) -> usize {
        self.parts.iter().filter(|p| has_task(p)).count()
    }

    fn by_job(&self) -> BTreeMap<u32, Vec<&Part>> {
        let mut jobs: BTreeMap<u32, Vec<&Part>> = BTreeMap::new();
        self.parts.iter().for_each(|p| jobs.entry(p.id).or_default().push(p));
        jobs
    }

    /// Plays everything through the drones' mounts, both at once, and into a plain directory.
    pub fn play(&self, lab: &Lab) -> Result<(), DemoError> {
        let bar = self.progress();
        std::thread::scope(|scope| {
            let drones: Vec<_> = (0..DRONES).map(|drone| (drone, &bar)).collect();
            let threads: Vec<_> = drones
                .into_iter()
                .map(|(drone, bar)| scope.spawn(move || self.play_on(lab, drone, bar)))
                .collect();
            threads.into_iter().try_for_each(|t| t.join().expect("a player doesn't panic"))
        })?;
        bar.finish_and_clear();
        Ok(())
    }

    fn play_on(&self, lab: &Lab, drone: usize, bar: &ProgressBar) -> Result<(), DemoError> {
        for part in self.parts.iter().filter(|p| p.drone == drone) {
            bar.set_message(part.unit());
            play_part(lab, part)?;
            bar.inc(1);
        }
        Ok(())
    }

    fn progress(&self) -> ProgressBar {
        let shown = !self.quiet && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style =
            ProgressStyle::with_template("playing {bar:30} {pos}/{len} {wide_msg}").expect("a good template");
        ProgressBar::with_draw_target(Some(self.parts.len() as u64), target).with_style(style)
    }

    /// Plays the first parts once more, under other ids and on the other drone; how many bytes that is.
    pub fn play_again(&self, lab: &Lab) -> Result<u64, DemoError> {
        let mut bytes = 0;
        for part in self.parts.iter().take(AGAIN).map(Part::again) {
            play_job(lab, &part)?;
            bytes += digest::of(&lab.expected().join(part.unit()))?.bytes;
        }
        Ok(bytes)
    }

    /// The first jobs of the tree in `top`, and which drone ran what.
    pub fn picture(&self, top: &Path, lab: &Lab) -> Result<Vec<String>, DemoError> {
        const SHOWN: usize = 4;
        let jobs = self.by_job();
        let mut lines = Vec::new();
        for (id, parts) in jobs.iter().take(SHOWN) {
            lines.push(format!("{id}-{OWNER}/"));
            for part in parts {
                let entries = fs::read_dir(top.join(part.unit()))?.count();
                lines.push(format!(
                    "  {}/  {entries} entries, ran on {}",
                    part.host,
                    lab.drone(part.drone).name
                ));
            }
        }
        if jobs.len() > SHOWN {
            lines.push(format!("and {} more jobs", jobs.len() - SHOWN));
        }
        Ok(lines)
    }
}

fn has_task(part: &Part) -> bool {
    part.id % 4 == 1
}

fn play_part(lab: &Lab, part: &Part) -> Result<(), DemoError> {
    if has_task(part) {
        for results in [&lab.drone(part.drone).mountpoint, &lab.expected()] {
            Task { results, host: &part.host, id: part.id, kind: "verify" }.play()?;
        }
    }
    play_job(lab, part)
}

fn play_job(lab: &Lab, part: &Part) -> Result<(), DemoError> {
    for results in [&lab.drone(part.drone).mountpoint, &lab.expected()] {
        lab.check_interrupted()?;
        part.job(results).play()?;
    }
    Ok(())
}

/// Every third job runs on two hosts, and the second host's part is what an earlier job left: what two hosts do is often the same.
fn generated(options: &DemoOptions, lab: &Lab) -> Result<Vec<Part>, DemoError> {
    let dir = lab.source();
    let mut parts: Vec<Part> = Vec::new();
    for id in 1..=options.jobs {
        lab.check_interrupted()?;
        let source = generate::job(&dir, options.seed, id, SCALE)?;
        let drone = (id - 1) as usize % DRONES;
        if id % 3 == 0 {
            let earlier = parts[parts.len() - 1].source.clone();
            parts.push(Part {
                id,
                host: format!("host{}", id + 50),
                source: earlier,
                drone: (drone + 1) % DRONES,
            });
        }
        parts.push(Part { id, host: format!("host{id}"), source, drone });
    }
    Ok(parts)
}

/// The jobs of a results directory, or the one job whose results the directory itself is. A directory is one host's part if it is named like a job and has a pidfile, or isn't
/// named like a job; otherwise each directory in it is one.
fn found(top: &Path) -> Result<Vec<Part>, DemoError> {
    let mut parts = Vec::new();
    if JOB_FILES.iter().any(|file| top.join(file).is_file()) {
        return Ok(vec![Part { id: 1, host: "host1".to_owned(), source: top.to_owned(), drone: 0 }]);
    }
    for (at, dir) in dirs(top)?.into_iter().filter(|d| !is_no_job(d)).enumerate() {
        let id = at as u32 + 1;
        let sources = if is_job_name(&dir) && !dir.join(".autoserv_execute").exists() {
            dirs(&dir)?
        } else {
            vec![dir]
        };
        for source in sources {
            let host = if is_job_name(&source) { format!("host{id}") } else { name(&source) };
            parts.push(Part { id, host, drone: parts.len() % DRONES, source });
        }
    }
    Ok(parts)
}

fn dirs(top: &Path) -> Result<Vec<PathBuf>, DemoError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(top)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort_by_key(|path| (job_number(path), path.clone()));
    Ok(found)
}

fn is_no_job(dir: &Path) -> bool {
    matches!(name(dir).as_str(), "hosts" | "drone_tmp")
}

fn is_job_name(dir: &Path) -> bool {
    job_number(dir).is_some()
}

fn job_number(dir: &Path) -> Option<u64> {
    name(dir).split_once('-')?.0.parse().ok()
}

fn name(dir: &Path) -> String {
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_of_a_directory_are_found_host_by_host() {
        let top = tempfile::tempdir().expect("a directory");
        for dir in
            ["10-me/hostA/debug", "10-me/hostB", "9-me/debug", "hosts/hostA/3-verify", "drone_tmp", "fedora"]
        {
            fs::create_dir_all(top.path().join(dir)).expect("a directory");
        }
        fs::write(top.path().join("9-me/.autoserv_execute"), "1\n0\n0\n").expect("a pidfile");
        let one = found(&top.path().join("9-me")).expect("parts");
        assert_eq!(one.iter().map(Part::unit).collect::<Vec<_>>(), ["1-demo/host1"]);
        let parts = found(top.path()).expect("parts");
        let seen: Vec<_> = parts.iter().map(|p| (p.unit(), p.drone)).collect();
        let wanted = [("1-demo/fedora", 0), ("2-demo/host2", 1), ("3-demo/hostA", 0), ("3-demo/hostB", 1)];
        assert_eq!(seen, wanted.map(|(unit, drone)| (unit.to_owned(), drone)));
    }
}
