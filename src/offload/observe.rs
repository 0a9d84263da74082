//! Observing: what [`layout::judge`] wants to know of a layer in the spool.

use std::{
    collections::BTreeSet,
    fs::Metadata,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    time::Instant,
};

use walkdir::WalkDir;

use super::tree::{self, SpoolTree};
use crate::{
    ids::{RelPath, Scope, UnitId},
    layout::{self, Facts, LayoutRules, PIDFILES, Pidfile, Seen, UnitKind, Verdict},
    spool::activity::{Activity, Snapshot},
};

/// What a look at a running unit has found.
#[derive(Debug)]
pub struct Observation {
    pub unit: UnitId,
    /// Taken before anything was read.
    pub activity: Snapshot,
    pub finding: Finding,
}

/// See [`Observation`].
#[derive(Debug)]
pub enum Finding {
    /// Nothing of it is in the spool.
    Gone,
    Judged(Verdict),
    /// It couldn't be looked at.
    Failed(io::Error),
}

/// Looks at `unit`. `now_ms` is the clock's, for what was last changed before this daemon's start. Pidfiles that are only in the store (of a partial
/// layer) were done when they were committed; `committed` are their names.
pub fn observe(
    spool: &SpoolTree,
    activity: &Activity,
    unit: &UnitId,
    committed: &BTreeSet<Vec<u8>>,
    rules: &LayoutRules,
    now_ms: u64,
) -> Observation {
    let snapshot = work_of(spool, activity, unit);
    let finding = match look(spool, unit, &snapshot, committed, rules, now_ms) {
        Ok(Some(verdict)) => Finding::Judged(verdict),
        Ok(None) => Finding::Gone,
        Err(e) => Finding::Failed(e),
    };
    Observation { unit: unit.clone(), activity: snapshot, finding }
}

fn look(
    spool: &SpoolTree,
    unit: &UnitId,
    snapshot: &Snapshot,
    committed: &BTreeSet<Vec<u8>>,
    rules: &LayoutRules,
    now_ms: u64,
) -> io::Result<Option<Verdict>> {
    if spool.stat(&unit.root)?.is_none() {
        return Ok(None);
    }
    let mut pidfiles = read_pidfiles(spool, &unit.root)?;
    for label in PIDFILES {
        let is_elsewhere = !pidfiles.iter().any(|seen| seen.label == label);
        if is_elsewhere && committed.contains(label.file_name().as_bytes()) {
            let content = Pidfile::Done { pid: 0, exit_status: 0, failed: 0 };
            pidfiles.push(Seen { label, content, pid_alive: false });
        }
    }
    let quiet_ms = match snapshot.changed {
        Some(at) => millis_since(at),
        None => now_ms.saturating_sub(last_change_ms(spool, unit, now_ms)),
    };
    let facts = Facts { writers: snapshot.writers, quiet_ms, since_last_change_ms: quiet_ms };
    Ok(Some(layout::judge(UnitKind::of(unit), &pidfiles, &facts, rules)))
}

fn millis_since(at: Instant) -> u64 {
    u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The activity of a unit. A job dir that is one unit as a whole was taken for several until its first record, and handles
/// opened then are still counted there.
pub fn work_of(spool: &SpoolTree, activity: &Activity, unit: &UnitId) -> Snapshot {
    let mut sum = activity.snapshot(unit);
    let is_job_dir = unit.scope == Scope::Tree && unit.root.depth() == 1;
    if !is_job_dir || !unit.root.name().is_some_and(layout::is_numbered) {
        return sum;
    }
    let dirs = spool.list(&unit.root).unwrap_or_default().into_iter().filter(|(_, found)| found.is_dir());
    let parts = dirs.filter_map(|(name, _)| Some(UnitId::tree(unit.root.join(&name).ok()?)));
    for part in parts.chain([UnitId::loose(unit.root.clone())]) {
        let more = activity.snapshot(&part);
        sum.handles += more.handles;
        sum.writers += more.writers;
        sum.operations += more.operations;
        sum.changed = sum.changed.max(more.changed);
    }
    sum
}

/// The pidfiles directly in `dir`.
pub fn read_pidfiles(spool: &SpoolTree, dir: &RelPath) -> io::Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for label in PIDFILES {
        let Ok(path) = dir.join(label.file_name().as_bytes()) else { continue };
        let file = match spool.open_file(&path) {
            Ok(file) => file,
            // A link where a pidfile should be is somebody else's.
            Err(e) if tree::is_absent(&e) || e.raw_os_error() == Some(libc::ELOOP) => continue,
            Err(e) => return Err(e),
        };
        if !file.metadata()?.is_file() {
            continue;
        }
        let mut bytes = Vec::new();
        file.take(layout::PIDFILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        let content = layout::parse(&bytes);
        let is_done = matches!(content, Pidfile::Done { .. });
        let pid_alive = !is_done && content.pid().is_some_and(is_alive);
        seen.push(Seen { label, content, pid_alive });
    }
    Ok(seen)
}

/// Whether such a process runs. A number that was given out again counts as alive: the lost time only begins later.
fn is_alive(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return false };
    !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

/// When anything of the layer was last changed, by the clock of the file system: for trees that are older than this daemon. Times in the
/// future (a clock was put right) count as now once, and the next look finds them quiet by what the mount saw.
fn last_change_ms(spool: &SpoolTree, unit: &UnitId, now_ms: u64) -> u64 {
    let depth = if unit.scope == Scope::Loose { 1 } else { usize::MAX };
    let walk = WalkDir::new(spool.place(&unit.root)).follow_root_links(false).max_depth(depth);
    let own = walk.into_iter().filter_map(Result::ok).filter(|entry| {
        let is_other_unit = unit.scope == Scope::Loose && entry.depth() == 1 && entry.file_type().is_dir();
        !is_other_unit
    });
    let times = own.filter_map(|entry| Some(changed_ms(&entry.metadata().ok()?)));
    times.max().unwrap_or(0).min(now_ms)
}

/// The inode's change time, which nobody sets back.
fn changed_ms(found: &Metadata) -> u64 {
    let ms = found.ctime().saturating_mul(1000).saturating_add(found.ctime_nsec() / 1_000_000);
    u64::try_from(ms).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, SystemClock},
        layout::Reason,
        offload::testing::{Spool, path},
    };

    fn verdict(spool: &Spool, rules: &LayoutRules, later_ms: u64) -> Verdict {
        let (activity, _stream) = Activity::new();
        let unit = UnitId::tree(path("1-me/host1"));
        let now_ms = SystemClock.now_ms() + later_ms;
        match observe(&spool.tree, &activity, &unit, &BTreeSet::new(), rules, now_ms).finding {
            Finding::Judged(verdict) => verdict,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_running_process_is_seen() {
        let spool = Spool::new();
        spool.file("1-me/host1/.autoserv_execute", format!("{}\n", std::process::id()).as_bytes());
        let rules = LayoutRules::default();
        let told = verdict(&spool, &rules, rules.lost_ms * 2);
        assert!(matches!(told, Verdict::NotYet { reason: Reason::Running { .. }, .. }), "{told:?}");
    }

    #[test]
    fn a_tree_that_is_older_than_the_daemon_is_judged_by_its_times() {
        let spool = Spool::new();
        spool.file("1-me/host1/.autoserv_execute", b"1\n0\n0\n");
        spool.file("1-me/host1/.archiver_execute", b"1\n0\n0\n");
        let rules = LayoutRules::default();
        assert!(matches!(
            verdict(&spool, &rules, 0),
            Verdict::NotYet { reason: Reason::Settling { .. }, .. }
        ));
        assert_eq!(verdict(&spool, &rules, rules.settle_ms + 60_000), Verdict::Complete { lost: false });
    }

    #[test]
    fn a_unit_that_is_not_there_is_gone() {
        let (activity, _stream) = Activity::new();
        let unit = UnitId::tree(path("1-me/host1"));
        let seen =
            observe(&Spool::new().tree, &activity, &unit, &BTreeSet::new(), &LayoutRules::default(), 0);
        assert!(matches!(seen.finding, Finding::Gone));
    }
}
