//! The whole system on one machine, in a temporary directory: two drones and a results host, each a mount of its own.
//!
//! `run` tells the story, top down: jobs are played through both drones' mounts, offloaded, compared in all three mounts and with the
//! same play in a plain directory, sent again under other ids, evicted, read back, verified. `lab` starts and ends the processes, `ssh` is the
//! way between them, `plan` says what is played where. `generate`, `history`, `play` and `digest` stand alone: tests and benchmarks use them too.

pub mod digest;
mod fleet;
pub mod generate;
pub mod history;
mod lab;
mod plan;
pub mod play;
pub(crate) mod random;
mod ssh;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use self::{
    digest::TreeDigest,
    lab::{Host, Lab},
    plan::Plan,
};

/// How long the mounts may take to show the same tree after everything is committed.
const FOLLOW: Duration = Duration::from_secs(30);
/// How long an offload may take.
const OFFLOAD_SECONDS: &str = "600";

/// What to do.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// How many jobs are generated.
    pub jobs: u32,
    /// A results directory whose jobs are played instead.
    pub from: Option<PathBuf>,
    /// Leave the directory behind.
    pub keep: bool,
    /// The generator's seed.
    pub seed: u64,
    /// The program to run: this one.
    pub exe: PathBuf,
    /// No progress and no talk.
    pub quiet: bool,
}

/// Why the demo could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file or process of the demo's own.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// ^C or SIGTERM.
    #[error("interrupted")]
    Interrupted,
    /// The directory given has no jobs in it.
    #[error("{}: no job directories in it", .0.display())]
    NothingToPlay(PathBuf),
    /// One of the programs that were started failed.
    #[error("`{command}` {end}\n{said}")]
    Program {
        /// Its command line.
        command: String,
        /// How it ended.
        end: String,
        /// Its last words.
        said: String,
    },
    /// Something that was waited for did not come.
    #[error("{what} within {seconds} s\n{said}")]
    Late {
        /// What didn't happen.
        what: String,
        /// The bound.
        seconds: u64,
        /// The last words of the program that should have done it.
        said: String,
    },
}

/// Runs it, telling on stdout what happens. The exit code: 0 if everything was proved, 1 if something was found wrong.
pub fn run(options: &DemoOptions) -> Result<u8, DemoError> {
    run_into(options, &mut io::stdout().lock())
}

/// [`run`], telling it to `out`.
pub fn run_into(options: &DemoOptions, out: &mut dyn Write) -> Result<u8, DemoError> {
    let mut lab = Lab::new(options)?;
    let mut story = Story { out, wrong: 0 };
    let told = story.tell(options, &mut lab);
    // Also after an error: nothing that was started may stay.
    let ended = lab.end();
    told?;
    ended?;
    if let Some(dir) = lab.kept() {
        writeln!(story.out, "left behind: {}", dir.display())?;
    }
    story.verdict()
}

/// What is told, and how much of it was wrong.
struct Story<'o> {
    out: &'o mut dyn Write,
    wrong: u32,
}

impl Story<'_> {
    fn tell(&mut self, options: &DemoOptions, lab: &mut Lab) -> Result<(), DemoError> {
        self.start(lab)?;
        let plan = Plan::make(options, lab)?;
        self.play(&plan, lab)?;
        let tree = self.offload_and_compare(lab)?;
        self.show_tree(&plan, lab)?;
        self.tell_bytes(&tree, lab)?;
        self.send_again(&plan, lab)?;
        self.evict(&plan, lab)?;
        self.verify(lab)?;
        self.say("connections", &lab.connections()?)
    }

    fn start(&mut self, lab: &mut Lab) -> Result<(), DemoError> {
        self.say("transport", &lab.transport())?;
        lab.start()?;
        for host in lab.hosts() {
            self.say("mounted", &format!("{:<8} {}", host.name, host.mountpoint.display()))?;
        }
        Ok(())
    }

    fn play(&mut self, plan: &Plan, lab: &Lab) -> Result<(), DemoError> {
        let began = Instant::now();
        plan.play(lab)?;
        let seconds = began.elapsed().as_secs_f64();
        let parts = plan.parts().len();
        self.say(
            "played",
            &format!(
                "{} jobs ({parts} hosts' parts) and {} special tasks in {seconds:.1} s",
                plan.jobs(),
                plan.tasks()
            ),
        )
    }

    fn offload_and_compare(&mut self, lab: &Lab) -> Result<TreeDigest, DemoError> {
        let began = Instant::now();
        offload(lab)?;
        self.say(
            "offloaded",
            &format!("everything, {:.1} s after the last job", began.elapsed().as_secs_f64()),
        )?;
        self.compare("same tree", lab)
    }

    /// All three mounts must show what the same play leaves in a plain directory.
    fn compare(&mut self, label: &str, lab: &Lab) -> Result<TreeDigest, DemoError> {
        let wanted = digest::of(&lab.expected())?;
        for host in lab.hosts() {
            match await_tree(lab, &host.mountpoint, &wanted)? {
                None => {}
                Some(difference) => {
                    self.wrong(&format!("the mount of {} is not the tree played: {difference}", host.name))?
                }
            }
        }
        let hash = wanted.hash().to_hex();
        let text =
            format!("{} entries, digest {} in {} mounts", wanted.entries(), &hash[..16], lab.hosts().len());
        self.say(label, &text)?;
        Ok(wanted)
    }

    fn show_tree(&mut self, plan: &Plan, lab: &Lab) -> Result<(), DemoError> {
        let results = lab.results();
        self.say("tree", &format!("as {} shows it:", results.name))?;
        for line in plan.picture(&results.mountpoint, lab)? {
            writeln!(self.out, "             {line}")?;
        }
        Ok(())
    }

    fn tell_bytes(&mut self, tree: &TreeDigest, lab: &Lab) -> Result<(), DemoError> {
        let sent = lab.bytes_sent()?;
        let text = format!(
            "{} of results, {} sent, {} in the store",
            mib(tree.bytes),
            mib(sent),
            mib(lab.store_bytes()?)
        );
        self.say("bytes", &text)
    }

    /// The same results under other ids and from the other drone: next to nothing is sent.
    fn send_again(&mut self, plan: &Plan, lab: &Lab) -> Result<(), DemoError> {
        let before = lab.bytes_sent()?;
        let bytes = plan.play_again(lab)?;
        offload(lab)?;
        let sent = lab.bytes_sent()?.saturating_sub(before);
        let percent = 100.0 * sent as f64 / bytes.max(1) as f64;
        let text = format!("{} of results under other ids, {} sent ({percent:.1} %)", mib(bytes), mib(sent));
        self.say("sent again", &text)?;
        self.compare("same tree", lab).map(drop)
    }

    fn evict(&mut self, plan: &Plan, lab: &Lab) -> Result<(), DemoError> {
        let part = &plan.parts()[0];
        let host = lab.drone(part.drone);
        let unit = part.unit();
        let before = lab::disk_bytes(&lab.spool(host))?;
        lab.resultsfs(host, &["evict", &unit])?;
        let freed = before.saturating_sub(lab::disk_bytes(&lab.spool(host))?);
        let same =
            digest::of(&lab.expected().join(&unit))?.difference(&digest::of(&host.mountpoint.join(&unit))?);
        match (same, freed) {
            (Some(difference), _) => self.wrong(&format!("{unit} read back on {}: {difference}", host.name)),
            (None, 0) => self.wrong(&format!("evicting {unit} on {} freed nothing", host.name)),
            (None, _) => {
                let text = format!(
                    "{unit} on {}: {} freed; read back from the store, it is the same",
                    host.name,
                    mib(freed)
                );
                self.say("evicted", &text)
            }
        }
    }

    fn verify(&mut self, lab: &Lab) -> Result<(), DemoError> {
        for host in lab.hosts() {
            match lab.resultsfs(host, &["verify", "--read-data"]) {
                Ok(_) => self.say("verified", &format!("{:<8} clean, every byte read", host.name))?,
                Err(DemoError::Program { end, said, .. }) => {
                    self.wrong(&format!("verify on {} {end}:\n{said}", host.name))?;
                }
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    fn say(&mut self, label: &str, text: &str) -> Result<(), DemoError> {
        writeln!(self.out, "{label:<12} {text}")?;
        Ok(self.out.flush()?)
    }

    fn wrong(&mut self, text: &str) -> Result<(), DemoError> {
        self.wrong += 1;
        self.say("WRONG", text)
    }

    fn verdict(&mut self) -> Result<u8, DemoError> {
        if self.wrong == 0 {
            self.say("verdict", "one tree on every machine, nothing missing")?;
            return Ok(0);
        }
        self.say("verdict", &format!("{} of the checks above failed", self.wrong))?;
        Ok(1)
    }
}

fn offload(lab: &Lab) -> Result<(), DemoError> {
    lab.hosts().iter().try_for_each(|h: &Host| {
        lab.resultsfs(h, &["offload", "--wait", "--timeout", OFFLOAD_SECONDS]).map(drop)
    })
}

/// Waits until `top` is `wanted`; after the bound, how it differs.
fn await_tree(lab: &Lab, top: &Path, wanted: &TreeDigest) -> Result<Option<String>, DemoError> {
    let began = Instant::now();
    loop {
        lab.check_interrupted()?;
        // A directory that goes while it is read is a difference, too.
        let difference = match digest::of(top) {
            Ok(found) => wanted.difference(&found),
            Err(e) => Some(e.to_string()),
        };
        if difference.is_none() || began.elapsed() > FOLLOW {
            return Ok(difference);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

/// Sets the time of `path` itself, not of what it may link to.
fn set_mtime(path: &Path, ns: u64) -> io::Result<()> {
    let time = Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("{}: {e}", path.display())))
}
