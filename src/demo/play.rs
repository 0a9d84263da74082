//! Plays jobs and special tasks into a results tree the way Autotest does: in its order, by its system calls.
//!
//! Scheduler, autoserv, parser and archiver each write a pidfile (`client/shared/pidfile.py`): one line when they start, three when they
//! end. Logs grow by appends of several processes; the parser holds a lock on `.parse.lock`; the archiver adds lines when the results
//! already seem to be complete. The results directory may be a mount, or a plain directory to compare with: the same play leaves the same tree.

use std::{
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use fs_err as fs;

use super::set_mtime;

/// Time of everything that the player itself writes, seconds since the epoch.
pub const PLAYED_AT: u64 = 1_770_000_000;
const PLAYED_AT_NS: u64 = PLAYED_AT * 1_000_000_000;

/// What is appended to a file of its own, line by line and by turns, by a second process. For each line read it says one byte when
/// the line is written.
const SECOND_PROCESS: &str =
    r#"while IFS= read -r line; do printf '%s\n' "$line" >> "$1" && printf . || exit 1; done"#;

/// How far a job is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The scheduler has made the directory with its keyvals.
    Prepared,
    /// autoserv runs.
    Running,
    /// The client's results have come in.
    Copied,
    /// autoserv's pidfile has two lines: caught in the middle of its last write.
    Torn,
    /// autoserv has ended.
    Autoserv,
    /// The parser has ended.
    Parsed,
    /// The archiver has ended: nothing more comes.
    Archived,
}

/// One host's part of a job.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The results tree.
    pub results: &'a Path,
    /// The job's id.
    pub id: u32,
    /// Who asked for it.
    pub owner: &'a str,
    /// The machine under test; names the execution dir.
    pub host: &'a str,
    /// What the test client brings back; nothing if there is none.
    pub source: Option<&'a Path>,
    /// Where to stop.
    pub until: Stage,
}

impl<'a> Job<'a> {
    /// `<id>-<owner>`.
    pub fn job_dir(&self) -> PathBuf {
        self.results.join(format!("{}-{}", self.id, self.owner))
    }

    /// `<id>-<owner>/<host>`.
    pub fn execution_dir(&self) -> PathBuf {
        self.job_dir().join(self.host)
    }

    /// Plays it from the start.
    pub fn play(&self) -> io::Result<()> {
        let dir = &self.execution_dir();
        type Act<'a> = fn(&Job<'a>, &Path) -> io::Result<()>;
        let acts: [(Stage, Act<'a>); 7] = [
            (Stage::Prepared, Self::prepare),
            (Stage::Running, Self::run),
            (Stage::Copied, Self::copy),
            (Stage::Torn, Self::tear),
            (Stage::Autoserv, Self::end),
            (Stage::Parsed, |job, dir| parse(dir, 2000 + job.id)),
            (Stage::Archived, Self::archive),
        ];
        acts.iter().filter(|(stage, _)| *stage <= self.until).try_for_each(|(_, act)| act(self, dir))?;
        set_dir_times(dir)?;
        set_mtime(&self.job_dir(), PLAYED_AT_NS)
    }

    /// The parser once more, on a job that is there already.
    pub fn reparse(&self) -> io::Result<()> {
        let dir = &self.execution_dir();
        parse(dir, 3000 + self.id)?;
        set_dir_times(dir)
    }

    fn pid(&self) -> u32 {
        1000 + self.id
    }

    fn prepare(&self, dir: &Path) -> io::Result<()> {
        put(&dir.join("keyval"), &format!("job_queued={}\n", PLAYED_AT - 60))?;
        put(&dir.join("host_keyvals").join(self.host), "platform=x86\nlabels=x86\n")
    }

    fn run(&self, dir: &Path) -> io::Result<()> {
        pidfile(dir, "autoserv", &[self.pid()])?;
        put(&dir.join("control.srv"), "job.run_test('sleeptest')\n")?;
        put(&dir.join("status.log"), &format!("START\t----\t----\ttimestamp={PLAYED_AT}\n"))
    }

    fn copy(&self, dir: &Path) -> io::Result<()> {
        if let Some(source) = self.source {
            copy_in(source, dir)?;
            // The source's own pidfiles belong to a run that is over.
            for label in ["autoserv", "collect_crashinfo", "parser", "archiver"] {
                remove_if_there(&dir.join(format!(".{label}_execute")))?;
            }
            pidfile(dir, "autoserv", &[self.pid()])?;
        }
        fs::create_dir_all(dir.join("debug"))?;
        for (level, count) in [("DEBUG", 40), ("INFO", 6), ("WARNING", 6), ("ERROR", 6)] {
            append_by_two(dir, &format!("debug/autoserv.{level}"), count, level)?;
        }
        append(&dir.join("status.log"), &format!("END GOOD\t----\t----\ttimestamp={}\n", PLAYED_AT + 60))
    }

    fn tear(&self, dir: &Path) -> io::Result<()> {
        pidfile(dir, "autoserv", &[self.pid(), 0])
    }

    fn end(&self, dir: &Path) -> io::Result<()> {
        pidfile(dir, "autoserv", &[self.pid(), 0, 0])
    }

    fn archive(&self, dir: &Path) -> io::Result<()> {
        let pid = 4000 + self.id;
        pidfile(dir, "archiver", &[pid])?;
        put(&dir.join("uncollected_logs"), "(lp0\n.")?;
        put(&dir.join("control.archive"), "archiver.archive_results(job.resultdir)\n")?;
        append_by_two(dir, "debug/autoserv.DEBUG", 4, "archive")?;
        fs::remove_file(dir.join("uncollected_logs"))?;
        append(&dir.join("keyval"), &format!("job_finished={}\n", PLAYED_AT + 60))?;
        pidfile(dir, "archiver", &[pid, 0, 0])
    }
}

/// A special task of one host: verify, cleanup or repair.
#[derive(Clone, Debug)]
pub struct Task<'a> {
    /// The results tree.
    pub results: &'a Path,
    /// The machine that it is about.
    pub host: &'a str,
    /// The task's id.
    pub id: u32,
    /// `verify`, `cleanup` or `repair`.
    pub kind: &'a str,
}

impl Task<'_> {
    /// `hosts/<host>/<id>-<kind>`.
    pub fn dir(&self) -> PathBuf {
        self.results.join("hosts").join(self.host).join(format!("{}-{}", self.id, self.kind))
    }

    /// Plays it. There is neither parser nor archiver: it is done when autoserv is.
    pub fn play(&self) -> io::Result<()> {
        let dir = &self.dir();
        let pid = 5000 + self.id;
        put(&dir.join("keyval"), &format!("job_queued={}\n", PLAYED_AT - 60))?;
        pidfile(dir, "autoserv", &[pid])?;
        put(&dir.join("debug/autoserv.DEBUG"), &format!("{} of {}\n", self.kind, self.host))?;
        append(&dir.join("keyval"), &format!("job_finished={}\n", PLAYED_AT + 5))?;
        pidfile(dir, "autoserv", &[pid, 0, 0])?;
        set_dir_times(dir)?;
        // `hosts/<host>` and `hosts`: made on the way down, by this task or another one.
        dir.ancestors().skip(1).take(2).try_for_each(|above| set_mtime(above, PLAYED_AT_NS))
    }
}

fn parse(dir: &Path, pid: u32) -> io::Result<()> {
    pidfile(dir, "parser", &[pid])?;
    let lock_path = dir.join(".parse.lock");
    let lock = fs::File::create(&lock_path)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    append(&dir.join(".parse.log"), "parsing\n")?;
    put(&dir.join("job.serialize"), &format!("serialized {pid}\n"))?;
    drop(lock);
    set_mtime(&lock_path, PLAYED_AT_NS)?;
    pidfile(dir, "parser", &[pid, 0, 0])
}

fn pidfile(dir: &Path, label: &str, numbers: &[u32]) -> io::Result<()> {
    let text: String = numbers.iter().map(|n| format!("{n}\n")).collect();
    put(&dir.join(format!(".{label}_execute")), &text)
}

fn put(path: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, text)?;
    set_mtime(path, PLAYED_AT_NS)
}

fn append(path: &Path, text: &str) -> io::Result<()> {
    append_line(path, text)?;
    set_mtime(path, PLAYED_AT_NS)
}

fn append_line(path: &Path, text: &str) -> io::Result<()> {
    let mut file = open_to_append(path)?;
    file.write_all(text.as_bytes())
}

fn open_to_append(path: &Path) -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .open(path)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// Two processes append lines to one log, taking turns so that the result is fixed. The second one works in the execution dir, as
/// autoserv does.
fn append_by_two(dir: &Path, log: &str, count: u32, tag: &str) -> io::Result<()> {
    let path = dir.join(log);
    let mut second = Command::new("/bin/sh")
        .args(["-c", SECOND_PROCESS, "sh", log])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (mut to, mut from) = (second.stdin.take().expect("a pipe"), second.stdout.take().expect("a pipe"));
    for i in 0..count {
        let line = format!("{i:06} {tag}| appended line of the running job\n");
        if i % 2 == 0 {
            append_line(&path, &line)?;
        } else {
            to.write_all(line.as_bytes())?;
            from.read_exact(&mut [0])?;
        }
    }
    drop(to);
    ended_well(second.wait()?, "the second writer")?;
    set_mtime(&path, PLAYED_AT_NS)
}

/// What Autotest's rsync does: everything as it is, links as links.
fn copy_in(source: &Path, dir: &Path) -> io::Result<()> {
    let status =
        Command::new("cp").args(["-a", "--sparse=auto", "--"]).arg(source.join(".")).arg(dir).status()?;
    ended_well(status, "cp")
}

fn ended_well(status: std::process::ExitStatus, who: &str) -> io::Result<()> {
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{who} ended with {status}"))) }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Directories change when their entries do, so their times come last, the deepest first.
fn set_dir_times(dir: &Path) -> io::Result<()> {
    for entry in walkdir::WalkDir::new(dir).contents_first(true) {
        let entry = entry?;
        if entry.file_type().is_dir() {
            set_mtime(entry.path(), PLAYED_AT_NS)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{digest, generate},
        *,
    };

    fn job<'a>(results: &'a Path, source: Option<&'a Path>, until: Stage) -> Job<'a> {
        Job { results, id: 42, owner: "demo", host: "host1", source, until }
    }

    fn lines(path: &Path) -> usize {
        fs::read_to_string(path).map_or(0, |text| text.lines().count())
    }

    /// A pidfile with three lines says done, with one running, with two that it is being written.
    #[test]
    fn every_stage_leaves_the_pidfiles_that_autotest_would() {
        for (until, [autoserv, parser, archiver]) in [
            (Stage::Prepared, [0, 0, 0]),
            (Stage::Running, [1, 0, 0]),
            (Stage::Copied, [1, 0, 0]),
            (Stage::Torn, [2, 0, 0]),
            (Stage::Autoserv, [3, 0, 0]),
            (Stage::Parsed, [3, 3, 0]),
            (Stage::Archived, [3, 3, 3]),
        ] {
            let results = tempfile::tempdir().expect("a directory");
            let source = generate::job(&results.path().join("source"), 1, 3, 0.01).expect("a source");
            let job = job(results.path(), Some(&source), until);
            job.play().expect("played");
            let found = ["autoserv", "parser", "archiver"]
                .map(|label| lines(&job.execution_dir().join(format!(".{label}_execute"))));
            assert_eq!(found, [autoserv, parser, archiver], "{until:?}");
        }
    }

    #[test]
    fn the_same_play_leaves_the_same_tree() {
        let digests = [(); 2].map(|()| {
            let results = tempfile::tempdir().expect("a directory");
            job(results.path(), None, Stage::Archived).play().expect("played");
            Task { results: results.path(), host: "host1", id: 7, kind: "verify" }.play().expect("played");
            digest::of(results.path()).expect("a digest")
        });
        assert_eq!(digests[0].difference(&digests[1]), None);
    }

    #[test]
    fn two_processes_append_by_turns() {
        let results = tempfile::tempdir().expect("a directory");
        let job = job(results.path(), None, Stage::Archived);
        job.play().expect("played");
        let log = fs::read_to_string(job.execution_dir().join("debug/autoserv.DEBUG")).expect("a log");
        let numbers: Vec<u32> = log.lines().filter_map(|l| l[..6].parse().ok()).collect();
        assert_eq!(numbers, (0..40).chain(0..4).collect::<Vec<_>>());
    }

    #[test]
    fn a_reparse_changes_what_the_parser_writes_only() {
        let results = tempfile::tempdir().expect("a directory");
        let job = job(results.path(), None, Stage::Archived);
        job.play().expect("played");
        job.reparse().expect("parsed again");
        let dir = job.execution_dir();
        assert_eq!(fs::read_to_string(dir.join("job.serialize")).expect("a file"), "serialized 3042\n");
        assert_eq!((lines(&dir.join(".parse.log")), lines(&dir.join(".parser_execute"))), (2, 3));
    }
}
