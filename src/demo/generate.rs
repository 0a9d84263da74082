//! Generated job results: the shape of an Autotest job, any number of them, always the same.
//!
//! A job depends on (seed, number, scale) only. What it is made of follows what real jobs leave behind: the server's own files and
//! `debug/` logs, the host's `sysinfo/`, a directory a test with logs and snapshots of /proc, now and then a core dump (the crash
//! handler writes the same one for every running test), a kernel build, a dangling link, or a job that is an earlier one run again.

use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use fs_err as fs;

use super::{
    fleet::{self, Fleet},
    random::Random,
    set_mtime,
};

/// 2026-01-01T00:00:00Z, when job 0 started.
const EPOCH: u64 = 1_767_225_600;
/// Seconds between the starts of two jobs.
const JOB_STEP: u64 = 97;
const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;

const TESTS: &[&str] = &[
    "sleeptest",
    "dbench",
    "kernbench",
    "iozone",
    "fsx",
    "aborttest",
    "stress",
    "bonnie",
    "ltp",
    "cyclictest",
    "hackbench",
    "xfstests",
    "netperf2",
    "fio",
];

/// Writes job `number` as `<dir>/<number>-demo` and returns that path. At scale 1 jobs are about 15 MB each. What is there already
/// is replaced.
pub fn job(dir: &Path, seed: u64, number: u32, scale: f64) -> io::Result<PathBuf> {
    let top = dir.join(format!("{number}-demo"));
    match fs::remove_dir_all(&top) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::create_dir_all(&top)?;
    Job::plan(Fleet { seed, scale }, u64::from(number), &top).write()?;
    Ok(top)
}

/// One job on its way to disk.
struct Job<'a> {
    fleet: Fleet,
    random: Random,
    top: &'a Path,
    /// The job whose content this one has: itself, or an earlier one that was sent again.
    source: u64,
    host: u64,
    tests: Vec<&'static str>,
    build: Option<u64>,
    /// Directories made, whose times are set last.
    made: BTreeSet<PathBuf>,
    /// Time of the last file, ns since the epoch.
    clock_ns: u64,
}

impl<'a> Job<'a> {
    fn plan(fleet: Fleet, number: u64, top: &'a Path) -> Self {
        let source = origin(fleet.seed, number);
        let plan = &mut Random::named(fleet.seed, "plan", rerun_of(fleet.seed, source));
        let host = fleet.any_host(plan);
        let wanted = 2 + plan.below(5) as usize;
        let first = plan.below(TESTS.len() as u64) as usize;
        let tests = TESTS.iter().cycle().skip(first).step_by(3).take(wanted).copied().collect();
        let build = plan.one_of(1, 5).then(|| fleet.any_build(plan));
        let random = Random::named(fleet.seed, "job", source);
        let clock_ns = (EPOCH + source * JOB_STEP) * 1_000_000_000;
        Self { fleet, random, top, source, host, tests, build, made: BTreeSet::new(), clock_ns }
    }

    fn write(mut self) -> io::Result<()> {
        self.server_files()?;
        self.server_logs()?;
        let messages = self.host_sysinfo()?;
        for test in self.tests.clone() {
            self.test_files(test, &messages)?;
        }
        self.binaries()?;
        self.made.insert(self.top.to_owned());
        // The deepest first: setting an entry's time leaves its directory's alone, but the order should not matter.
        self.made.iter().rev().try_for_each(|dir| set_mtime(dir, self.clock_ns))
    }

    fn start(&self) -> u64 {
        EPOCH + self.source * JOB_STEP
    }

    fn host_name(&self) -> String {
        self.fleet.host_name(self.host)
    }

    fn server_files(&mut self) -> io::Result<()> {
        let (start, host) = (self.start(), self.host_name());
        let runs: String = self.tests.iter().map(|t| format!("    job.run_test({t:?})\n")).collect();
        self.put("control.srv", format!("def run(machine):\n{runs}job.parallel_simple(run, machines)\n"))?;
        let label = self.tests.join("-");
        self.put(
            "keyval",
            format!("user=demo\nlabel={label}\njob_queued={}\njob_started={start}\n", start - 60),
        )?;
        self.put(&format!("host_keyvals/{host}"), format!("platform={}\n", &host[4..7]))?;
        for (pidfile, failed) in [("autoserv", self.tests.len()), ("parser", 0), ("archiver", 0)] {
            let pid = 2 + self.random.below(65_000);
            self.put(&format!(".{pidfile}_execute"), format!("{pid}\n0\n{failed}\n"))?;
        }
        let status = self.status_log();
        self.put("status.log", status)
    }

    fn status_log(&mut self) -> String {
        let mut at = self.start();
        let mut log = format!("START\t----\t----\ttimestamp={at}\tlocaltime={}\t\n", fleet::stamp(at));
        for test in self.tests.clone() {
            at += 20 + self.random.below(900);
            let word = if self.random.one_of(1, 10) { "FAIL" } else { "GOOD" };
            log += &format!(
                "\tSTART\t{test}\t{test}\ttimestamp={at}\t\n\t\t{word}\t{test}\t{test}\ttimestamp={at}\tcompleted\n"
            );
            log += &format!("\tEND {word}\t{test}\t{test}\ttimestamp={at}\t\n");
        }
        log + &format!("END GOOD\t----\t----\ttimestamp={at}\tlocaltime={}\t\n", fleet::stamp(at))
    }

    fn server_logs(&mut self) -> io::Result<()> {
        self.log_set("debug/autoserv", 5.0 * MIB)?;
        self.log_set("debug/client.0", MIB)?;
        if self.random.one_of(1, 4) {
            self.link("debug/core.link", &format!("/var/crash/{}.core", self.source))?;
        }
        let (log, _) = self.log(6.0 * KIB);
        self.put(".parse.log", log)
    }

    /// `.DEBUG`, and what of it goes to the other levels: INFO is a part of it, WARNING repeats a piece, ERROR repeats WARNING.
    fn log_set(&mut self, base: &str, largest: f64) -> io::Result<()> {
        let (debug, info) = self.log(largest);
        let warning =
            if self.random.one_of(2, 5) { info[..line_end(&info, 3000)].to_owned() } else { String::new() };
        self.put(&format!("{base}.DEBUG"), debug)?;
        self.put(&format!("{base}.INFO"), info)?;
        self.put(&format!("{base}.WARNING"), warning.clone())?;
        self.put(&format!("{base}.ERROR"), warning)
    }

    fn log(&mut self, largest: f64) -> (String, String) {
        let len = self.random.size(4.0 * KIB, largest * self.fleet.scale);
        let (name, start) = (self.host_name(), self.start());
        fleet::log(&mut self.random, &name, start, len)
    }

    fn host_sysinfo(&mut self) -> io::Result<String> {
        let (fleet, host) = (self.fleet, self.host);
        let boots = 1 + self.random.below(2);
        for boot in 0..boots {
            let base = if boot == 0 { "sysinfo".to_owned() } else { format!("sysinfo/boot.{}", boot - 1) };
            for (name, text) in fleet.hardware(host) {
                self.put(&format!("{base}/{name}"), text)?;
            }
            self.put(&format!("{base}/installed_packages"), fleet.packages(host))?;
            let uptime =
                format!(" up {} min, load average: {:.2}\n", 5 + self.random.below(90), self.random.unit());
            self.put(&format!("{base}/uptime"), uptime)?;
            let tail = fleet::lines(self.random.below(100), |out, i| {
                std::fmt::Write::write_fmt(out, format_args!("[{i:12}.0]"))
            });
            self.put(&format!("{base}/dmesg"), fleet.boot_messages(host) + &tail)?;
        }
        let messages = fleet.syslog(host, self.source);
        self.put("sysinfo/messages", messages.clone())?;
        if self.random.one_of(1, 5) {
            let crash = format!("crashinfo.{}", self.host_name());
            self.put(&format!("{crash}/messages"), messages.clone())?;
            self.put_mode(&format!("{crash}/crashinfo.log"), b"collected\n", 0o600)?;
        }
        Ok(messages)
    }

    fn test_files(&mut self, test: &str, messages: &str) -> io::Result<()> {
        self.put(&format!("{test}/control"), format!("job.run_test({test:?})\n"))?;
        self.put(&format!("{test}/keyval"), format!("version=1\ntest_started={}\n", self.start()))?;
        self.put(&format!("{test}/status"), format!("GOOD\t{test}\tcompleted successfully\n"))?;
        self.log_set(&format!("{test}/debug/{test}"), 2.0 * MIB)?;
        self.mkdir(&self.top.join(test).join("profiling"))?;
        let results = fleet::lines(4 + self.random.below(30), |out, i| {
            std::fmt::Write::write_fmt(
                out,
                format_args!("{test}_{i}{{perf}}={:.6}", self.random.unit() * 1e5),
            )
        });
        self.put(&format!("{test}/results/keyval"), results)?;
        self.test_sysinfo(test, messages)
    }

    fn test_sysinfo(&mut self, test: &str, messages: &str) -> io::Result<()> {
        let base = format!("{test}/sysinfo");
        self.put(&format!("{base}/installed_packages"), self.fleet.packages(self.host))?;
        let packed = self.random.bytes(messages.len().min(120_000) / 4);
        self.put_mode(&format!("{base}/messages.gz"), &packed, 0o644)?;
        self.link(&format!("{base}/reboot_current"), "../../sysinfo")?;
        for iteration in 1..2 + self.random.below(5) {
            for name in ["meminfo", "interrupts", "slabinfo", "schedstat", "buddyinfo"] {
                for when in ["before", "after"] {
                    let text = fleet::proc_file(&mut self.random, name);
                    self.put(&format!("{base}/iteration.{iteration}/{name}.{when}"), text)?;
                }
            }
        }
        Ok(())
    }

    fn binaries(&mut self) -> io::Result<()> {
        if let Some(build) = self.build {
            for (name, bytes) in self.fleet.build(build) {
                self.put_mode(&format!("build/{name}"), &bytes, 0o755)?;
            }
        }
        if self.random.one_of(2, 5) {
            let len = self.random.size(2.0 * MIB * self.fleet.scale, 16.0 * MIB * self.fleet.scale);
            let core = self.fleet.core(self.host, len, &mut self.random);
            let pid = 2 + self.random.below(65_000);
            for test in self.tests.iter().take(2).copied().collect::<Vec<_>>() {
                self.put_mode(&format!("{test}/debug/crash.{test}.{pid}/core"), &core, 0o600)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, name: &str, text: String) -> io::Result<()> {
        self.put_mode(name, text.as_bytes(), 0o644)
    }

    fn put_mode(&mut self, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
        let path = self.place(name)?;
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        self.stamp(&path)
    }

    fn link(&mut self, name: &str, text: &str) -> io::Result<()> {
        let path = self.place(name)?;
        symlink(text, &path)?;
        self.stamp(&path)
    }

    /// The path of `name`, with the directories that it needs.
    fn place(&mut self, name: &str) -> io::Result<PathBuf> {
        let path = self.top.join(name);
        self.mkdir(path.parent().unwrap_or(self.top))?;
        Ok(path)
    }

    fn mkdir(&mut self, dir: &Path) -> io::Result<()> {
        if dir == self.top || self.made.contains(dir) {
            return Ok(());
        }
        self.mkdir(dir.parent().unwrap_or(self.top))?;
        fs::create_dir(dir)?;
        fs::set_permissions(dir, PermissionsExt::from_mode(0o755))?;
        self.made.insert(dir.to_owned());
        Ok(())
    }

    fn stamp(&mut self, path: &Path) -> io::Result<()> {
        self.clock_ns += self.random.below(125_000_000);
        set_mtime(path, self.clock_ns)
    }
}

/// The job whose bytes job `number` has: 3 in 100 are an earlier one sent again under a new id.
fn origin(seed: u64, number: u64) -> u64 {
    earlier(seed, "sent again", number, 3).map_or(number, |n| origin(seed, n))
}

/// The job whose host, tests and build job `number` has: 10 in 100 are an earlier one run again.
fn rerun_of(seed: u64, number: u64) -> u64 {
    earlier(seed, "run again", number, 10).map_or(number, |n| rerun_of(seed, n))
}

fn earlier(seed: u64, kind: &str, number: u64, percent: u64) -> Option<u64> {
    let random = &mut Random::named(seed, kind, number);
    (number > 20 && random.one_of(percent, 100)).then(|| number - 1 - random.below(20))
}

/// Where the last line that ends within `most` bytes ends.
fn line_end(text: &str, most: usize) -> usize {
    text.bytes().take(most).rposition(|b| b == b'\n').map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::{super::digest, *};

    const SCALE: f64 = 0.02;

    /// The same seed and number are the same tree, whatever was made before and wherever.
    #[test]
    fn a_job_depends_on_its_seed_and_number_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let make = |place: &str, seed, number| {
            let top = job(&dir.path().join(place), seed, number, SCALE).expect("a job");
            digest::of(&top).expect("a digest")
        };
        let first = make("a", 1, 7);
        make("b", 1, 6);
        assert_eq!(make("b", 1, 7).hash(), first.hash());
        assert_ne!(make("c", 1, 8).hash(), first.hash());
        assert_ne!(make("d", 2, 7).hash(), first.hash());
    }

    #[test]
    fn jobs_have_what_makes_a_results_tree_hard() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut links = 0;
        let mut cores = 0;
        for number in 1..12 {
            let top = job(dir.path(), 1, number, SCALE).expect("a job");
            for entry in walkdir::WalkDir::new(&top) {
                let entry = entry.expect("a readable entry");
                let dangling = entry.path_is_symlink() && !entry.path().exists();
                links += u32::from(dangling);
                cores += u32::from(entry.file_name() == "core");
            }
        }
        assert!(links > 0, "no dangling link in eleven jobs");
        assert!(cores > 1, "no core dump in eleven jobs");
    }

    #[test]
    fn some_jobs_are_earlier_ones_sent_again() {
        let again: Vec<u64> = (1..400).filter(|n| origin(1, *n) != *n).collect();
        assert!((4..30).contains(&again.len()), "{again:?}");
        assert!(again.iter().all(|n| origin(1, *n) < *n));
    }
}
