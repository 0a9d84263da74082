//! A look at a unit in a directory that is imported: is it over, and is it as it was the last time?
//!
//! One walk, which reads names and attributes only. Nothing tells of changes here as the mount does, so it goes by times.

use std::{fs::Metadata, os::unix::fs::MetadataExt, path::Path};

use walkdir::WalkDir;

use crate::{
    ids::{Hash, RelPath, Scope, UnitId},
    layout::{self, Facts, LayoutRules, Pidfile, Reason, Seen, UnitKind, Verdict},
    offload::{SpoolTree, observe},
};

/// The mark that Autotest leaves in a directory, or behind a file's name, when it failed to copy that to the results host.
const TRANSFER_FAILED: &[u8] = b".transfer_failed";
/// How much later than its pidfile a process may seem to have begun: its clock has ticks, the file system's another grain.
const BEGAN_SLACK_MS: u64 = 2000;
/// The kernel's USER_HZ: what it tells programs, whatever it counts in itself.
const TICKS_PER_S: u64 = 100;

/// What was seen.
#[derive(Debug)]
pub struct Look {
    /// Differs after every change that a walk can see.
    pub stamp: Hash,
    /// Names in it, its root included.
    pub entries: u64,
    /// Of its regular files.
    pub bytes: u64,
    pub has_failed_transfer: bool,
    pub standing: Standing,
}

/// Whether it may be imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is over.
    Over {
        /// It never reached its end.
        lost: bool,
    },
    /// A process is at work in it, and which.
    Running(String),
    /// It was written just now.
    Settling,
}

/// Looks at `unit`; `None` if nothing of it is there.
pub fn look(tree: &SpoolTree, unit: &UnitId, rules: &LayoutRules, now_ms: u64) -> Option<Look> {
    let mut seen = Walk::default();
    seen.walk(&tree.place(&unit.root), unit.scope);
    if seen.entries == 0 {
        return None;
    }
    let quiet_ms = now_ms.saturating_sub(seen.last_write_ms);
    Some(Look {
        stamp: seen.stamp.finalize().into(),
        entries: seen.entries,
        bytes: seen.bytes,
        has_failed_transfer: seen.has_failed_transfer,
        standing: standing(UnitKind::of(unit), pidfiles(tree, &unit.root), quiet_ms, rules),
    })
}

/// A process that is at work hasn't been silent for the lost time; and nobody who is silent for longer is waited for.
fn standing(kind: UnitKind, mut pidfiles: Vec<Seen>, quiet_ms: u64, rules: &LayoutRules) -> Standing {
    if quiet_ms >= rules.lost_ms {
        pidfiles.iter_mut().for_each(|seen| seen.pid_alive = false);
    }
    let facts = Facts { writers: 0, quiet_ms, since_last_change_ms: u64::MAX };
    match layout::judge(kind, &pidfiles, &facts, rules) {
        Verdict::Complete { lost } => Standing::Over { lost },
        Verdict::NotYet { reason: Reason::Settling { .. } | Reason::Writers { .. }, .. } => {
            Standing::Settling
        }
        Verdict::NotYet { reason, .. } => Standing::Running(reason.to_string()),
    }
}

/// The unit's pidfiles. A directory that can't be read has none here; describing it says so.
fn pidfiles(tree: &SpoolTree, root: &RelPath) -> Vec<Seen> {
    let mut pidfiles = observe::read_pidfiles(tree, root).unwrap_or_default();
    for seen in pidfiles.iter_mut().filter(|seen| seen.pid_alive) {
        let path = root.join(seen.label.file_name().as_bytes()).ok();
        let written =
            path.and_then(|path| tree.stat(&path).ok().flatten()).map(|found| last_write_ms(&found));
        seen.pid_alive = is_its_process(&seen.content, written);
    }
    pidfiles
}

/// Whether the process that lives under a pidfile's number is the one that wrote it: numbers are given again, and a copied tree has those of
/// another machine.
fn is_its_process(content: &Pidfile, written_ms: Option<u64>) -> bool {
    let (Some(pid), Some(written_ms)) = (content.pid(), written_ms) else { return true };
    match fs_err::metadata(format!("/proc/{pid}")) {
        // The kernel dates a process's directory by when it is first looked at: its start is in `stat`.
        Ok(_) => began_ms(pid).is_none_or(|began| began <= written_ms.saturating_add(BEGAN_SLACK_MS)),
        Err(_) => false,
    }
}

/// When a process began, ms since the epoch; `None` where it can't be told.
fn began_ms(pid: u32) -> Option<u64> {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks: u64 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let system = fs_err::read_to_string("/proc/stat").ok()?;
    let boot_s: u64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot_s * 1000 + ticks * 1000 / TICKS_PER_S)
}

/// What a walk gathers.
#[derive(Default)]
struct Walk {
    stamp: blake3::Hasher,
    entries: u64,
    bytes: u64,
    last_write_ms: u64,
    has_failed_transfer: bool,
}

impl Walk {
    fn walk(&mut self, top: &Path, scope: Scope) {
        let depth = if scope == Scope::Loose { 1 } else { usize::MAX };
        let walk = WalkDir::new(top).follow_root_links(false).max_depth(depth).sort_by_file_name();
        for entry in walk {
            let found = entry.and_then(|entry| Ok((entry.metadata()?, entry)));
            match found {
                Ok((found, entry)) if scope == Scope::Loose && entry.depth() == 1 && found.is_dir() => {}
                Ok((found, entry)) => {
                    self.take(entry.path().strip_prefix(top).unwrap_or(entry.path()), &found);
                }
                // What can't be read is another unit than the one that can.
                Err(e) => {
                    let code = e.io_error().and_then(std::io::Error::raw_os_error).unwrap_or_default();
                    self.stamp.update(&code.to_le_bytes());
                }
            }
        }
    }

    fn take(&mut self, path: &Path, found: &Metadata) {
        use std::os::unix::ffi::OsStrExt;
        let path = path.as_os_str().as_bytes();
        let numbers = [
            path.len() as u64,
            u64::from(found.mode()),
            (u64::from(found.uid()) << 32) | u64::from(found.gid()),
            found.size(),
            found.ino(),
            found.mtime().cast_unsigned(),
            found.mtime_nsec().cast_unsigned(),
            found.ctime().cast_unsigned(),
            found.ctime_nsec().cast_unsigned(),
        ];
        numbers.iter().for_each(|number| _ = self.stamp.update(&number.to_le_bytes()));
        self.stamp.update(path);
        self.entries += 1;
        self.bytes += if found.is_file() { found.size() } else { 0 };
        self.last_write_ms = self.last_write_ms.max(last_write_ms(found));
        self.has_failed_transfer |= path.ends_with(TRANSFER_FAILED);
    }
}

/// A write is what both times are after: a copy has an old time of its content and a new one of its inode, and only the first can be set into
/// the future.
fn last_write_ms(found: &Metadata) -> u64 {
    let ms = |secs: i64, nanos: i64| secs.saturating_mul(1000).saturating_add(nanos / 1_000_000);
    let mtime = ms(found.mtime(), found.mtime_nsec());
    let ctime = ms(found.ctime(), found.ctime_nsec());
    u64::try_from(mtime.min(ctime)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::{
        clock::{Clock, SystemClock},
        spool::Spool,
    };

    const HOUR_MS: u64 = 3_600_000;

    struct Bench {
        dir: tempfile::TempDir,
        tree: SpoolTree,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let tree = SpoolTree::new(Spool::open(dir.path()).expect("opens"));
            Self { dir, tree }
        }

        /// A file of `1-me/host1`, last written so long ago.
        fn file(&self, name: &str, text: &str, ago_ms: u64) {
            let place = self.dir.path().join("1-me/host1").join(name);
            fs_err::create_dir_all(place.parent().expect("below")).expect("made");
            fs_err::write(&place, text).expect("written");
            let time = SystemTime::now() - Duration::from_millis(ago_ms);
            std::fs::File::open(&place).and_then(|file| file.set_modified(time)).expect("a time");
            let dir = std::fs::File::open(place.parent().expect("below")).expect("opens");
            dir.set_modified(time).expect("a time");
        }

        fn look(&self) -> Look {
            let unit = UnitId::tree("1-me/host1".parse().expect("a path"));
            look(&self.tree, &unit, &LayoutRules::default(), SystemClock.now_ms()).expect("there")
        }
    }

    #[test]
    fn what_is_over_is_told_from_what_is_not() {
        let over = |lost| Standing::Over { lost };
        let bench = Bench::new();
        bench.file("keyval", "a=b\n", HOUR_MS);
        assert_eq!(bench.look().standing, over(false));
        bench.file(".autoserv_execute", "4194305\n", HOUR_MS);
        assert_eq!(bench.look().standing, over(true), "nobody has that number");
        bench.file(".autoserv_execute", "1\n0\n0\n", HOUR_MS);
        assert_eq!(bench.look().standing, over(true), "the last pidfile isn't there");
        bench.file(".archiver_execute", "1\n0\n0\n", HOUR_MS);
        assert_eq!(bench.look().standing, over(false));
        bench.file("keyval", "a=b\n", 0);
        assert_eq!(bench.look().standing, Standing::Settling);
    }

    /// Copies keep the times of contents, and have a new one of the inode; what has a time of the future was written when its inode changed.
    #[test]
    fn a_copy_is_as_old_as_what_was_copied() {
        let bench = Bench::new();
        bench.file("keyval", "a=b\n", 30 * HOUR_MS);
        assert_eq!(bench.look().standing, Standing::Over { lost: false });
        let future = SystemTime::now() + Duration::from_secs(86400);
        let file = std::fs::File::open(bench.dir.path().join("1-me/host1/keyval")).expect("opens");
        file.set_modified(future).expect("a time");
        assert_eq!(bench.look().standing, Standing::Settling);
    }

    /// A number that was given again, after the pidfile was written, is another process's.
    #[test]
    fn a_process_that_began_later_is_not_the_one() {
        let bench = Bench::new();
        let mine = std::process::id();
        bench.file(".autoserv_execute", &format!("{mine}\n"), 0);
        bench.file("keyval", "a=b\n", HOUR_MS);
        assert!(matches!(bench.look().standing, Standing::Running(_)));
        bench.file(".autoserv_execute", &format!("{mine}\n"), HOUR_MS * 20);
        assert_eq!(bench.look().standing, Standing::Over { lost: true });
        let began = began_ms(mine).expect("it runs");
        let now = SystemClock.now_ms();
        assert!(began <= now + BEGAN_SLACK_MS && now - began.min(now) < 24 * HOUR_MS, "{began} at {now}");
        // What began with the machine, and has been silent for longer than anything is waited for.
        bench.file(".autoserv_execute", "1\n", 25 * HOUR_MS);
        bench.file("keyval", "a=b\n", 25 * HOUR_MS);
        assert_eq!(bench.look().standing, Standing::Over { lost: true });
    }

    #[test]
    fn a_stamp_differs_after_each_change() {
        let bench = Bench::new();
        bench.file("keyval", "a=b\n", HOUR_MS);
        bench.file("debug/log", "x", HOUR_MS);
        let first = bench.look();
        assert_eq!((first.entries, first.bytes, first.has_failed_transfer), (4, 5, false));
        assert_eq!(bench.look().stamp, first.stamp);
        bench.file("debug/log", "y", HOUR_MS);
        assert_ne!(bench.look().stamp, first.stamp);
        let second = bench.look();
        bench.file("debug.transfer_failed", "", HOUR_MS);
        assert_ne!(bench.look().stamp, second.stamp);
        assert!(bench.look().has_failed_transfer);
    }
}
