//! Is a host's layer of a unit complete, what does it wait for, and when does it pay to look again?
//!
//! A layer is complete when every pidfile in it has three lines, the last one that its kind ends with is among them, no
//! handle is open for writing, and it has been quiet for the settle time. It looks at its own pidfiles only: a layer without any
//! (another host's late file, loose files, a bare directory) needs only quiet. One that can't go on, because the
//! process of an unfinished pidfile is dead or the last pidfile never came, is *lost*: after the lost time without a change it
//! is taken as it stands.

use std::fmt;

use super::{Label, LayoutRules, Pidfile, place::HOSTS, place::is_numbered};
use crate::ids::{Scope, UnitId};

/// How often the process of an unfinished pidfile is looked for: no event tells of its death. It bounds how late the
/// lost time begins to be noticed, and that is counted in hours.
const ALIVE_RECHECK_MS: u64 = 600_000;

/// What a unit is, by its place; decides which pidfile ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnitKind {
    /// An execution dir, or a job dir that is one unit as a whole.
    Job,
    /// A special task's results.
    Task,
    /// Loose files.
    Loose,
    /// A directory that is a unit because `complete` was said of it.
    Adopted,
}

impl UnitKind {
    /// The kind of `unit`.
    pub fn of(unit: &UnitId) -> Self {
        if unit.scope == Scope::Loose {
            return Self::Loose;
        }
        let names: Vec<&[u8]> = unit.root.components().collect();
        match names[..] {
            [job] | [job, _] if is_numbered(job) => Self::Job,
            [hosts, _, task] if hosts == HOSTS.as_bytes() && is_numbered(task) => Self::Task,
            _ => Self::Adopted,
        }
    }

    /// The pidfile that such a unit ends with, if it has one.
    pub fn last_pidfile(self, rules: &LayoutRules) -> Option<Label> {
        match self {
            Self::Job => Some(rules.complete_on.label()),
            Self::Task => Some(Label::Autoserv),
            Self::Loose | Self::Adopted => None,
        }
    }
}

/// A pidfile that stands directly in the unit's root, in this host's layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Which one.
    pub label: Label,
    /// What it says.
    pub content: Pidfile,
    /// Whether the process that it names is alive; only asked of unfinished ones.
    pub pid_alive: bool,
}

/// What is known of a layer at this moment, besides its pidfiles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// Handles open for writing.
    pub writers: usize,
    /// Since the last write, close after writing, or change of names that this daemon saw.
    pub quiet_ms: u64,
    /// Since anything of the layer was last changed, also before this daemon's start: the lost time counts from there.
    pub since_last_change_ms: u64,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Not complete.
    NotYet {
        /// What it waits for.
        reason: Reason,
        /// Ask again after this long; `None` = only an event can change the answer.
        recheck_in_ms: Option<u64>,
    },
    /// Complete.
    Complete {
        /// It never reached its end and is taken as it stands.
        lost: bool,
    },
}

/// What a layer waits for. Its text is for `explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// A process is at work.
    Running { label: Label, pid: u32 },
    /// A pidfile is being written.
    Torn { label: Label },
    /// A pidfile makes no sense, and its process may be alive.
    Corrupt { label: Label, why: &'static str },
    /// A process died without a word.
    Dead { label: Label, pid: Option<u32>, lost_in_ms: u64 },
    /// The last pidfile isn't there yet.
    WaitingFor { label: Label, lost_in_ms: u64 },
    /// Files are open for writing.
    Writers { writers: usize },
    /// It was changed just now.
    Settling { quiet_ms: u64, settle_ms: u64 },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running { label, pid } => write!(f, "running: {label} has pid {pid}, which is alive"),
            Self::Torn { label } => write!(f, "waiting for the rest of {label}"),
            Self::Corrupt { label, why } => write!(f, "{label} is corrupt ({why}); treated as running"),
            Self::Dead { label, pid, lost_in_ms } => {
                match pid {
                    Some(pid) => write!(f, "pid {pid} of {label} is dead")?,
                    None => write!(f, "{label} names no process")?,
                }
                write!(f, "; taken as lost in {}", Span(*lost_in_ms))
            }
            Self::WaitingFor { label, lost_in_ms } => {
                write!(f, "waiting for {label}; taken as lost in {} without a change", Span(*lost_in_ms))
            }
            Self::Writers { writers: 1 } => write!(f, "1 file open for writing"),
            Self::Writers { writers } => write!(f, "{writers} files open for writing"),
            Self::Settling { quiet_ms, settle_ms } => {
                write!(f, "quiet for {} of {} s", quiet_ms / 1000, settle_ms.div_ceil(1000))
            }
        }
    }
}

/// A length of time, in the largest unit that leaves two digits, rounded up.
struct Span(u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.div_ceil(1000) {
            s @ 0..120 => write!(f, "{s} s"),
            s @ 120..7200 => write!(f, "{} min", s.div_ceil(60)),
            s => write!(f, "{} h", s.div_ceil(3600)),
        }
    }
}

/// Judges a layer of a unit of this kind by the pidfiles that stand in it and what else is known.
pub fn judge(kind: UnitKind, pidfiles: &[Seen], facts: &Facts, rules: &LayoutRules) -> Verdict {
    // Loose files are of many makers, and a pidfile among them speaks of something else.
    let pidfiles = if kind == UnitKind::Loose { &[] } else { pidfiles };
    let lost_in_ms = rules.lost_ms.saturating_sub(facts.since_last_change_ms);
    let blocked = at_work(pidfiles).or_else(|| stuck(kind, pidfiles, lost_in_ms, rules));
    match blocked {
        Some(reason @ (Reason::Dead { .. } | Reason::WaitingFor { .. })) => {
            if lost_in_ms == 0 {
                return settled(facts, rules).unwrap_or(Verdict::Complete { lost: true });
            }
            Verdict::NotYet { reason, recheck_in_ms: Some(lost_in_ms) }
        }
        Some(reason) => Verdict::NotYet { reason, recheck_in_ms: Some(ALIVE_RECHECK_MS) },
        None => settled(facts, rules).unwrap_or(Verdict::Complete { lost: false }),
    }
}

/// The first unfinished pidfile whose process is alive: then nothing else matters.
fn at_work(pidfiles: &[Seen]) -> Option<Reason> {
    pidfiles.iter().filter(|seen| seen.pid_alive).find_map(|seen| match seen.content {
        Pidfile::Running { pid } => Some(Reason::Running { label: seen.label, pid }),
        Pidfile::Torn { .. } => Some(Reason::Torn { label: seen.label }),
        Pidfile::Corrupt { why, .. } => Some(Reason::Corrupt { label: seen.label, why }),
        Pidfile::Done { .. } => None,
    })
}

/// Why a layer in which nobody is at work can't be called complete.
fn stuck(kind: UnitKind, pidfiles: &[Seen], lost_in_ms: u64, rules: &LayoutRules) -> Option<Reason> {
    let unfinished = pidfiles.iter().find(|seen| !matches!(seen.content, Pidfile::Done { .. }));
    if let Some(Seen { label, content, .. }) = unfinished {
        return Some(Reason::Dead { label: *label, pid: content.pid(), lost_in_ms });
    }
    let last = kind.last_pidfile(rules).filter(|_| !pidfiles.is_empty())?;
    let is_there = pidfiles.iter().any(|seen| seen.label == last);
    (!is_there).then_some(Reason::WaitingFor { label: last, lost_in_ms })
}

/// "Not yet" while somebody writes or just wrote.
fn settled(facts: &Facts, rules: &LayoutRules) -> Option<Verdict> {
    if facts.writers > 0 {
        let reason = Reason::Writers { writers: facts.writers };
        return Some(Verdict::NotYet { reason, recheck_in_ms: None });
    }
    let missing_ms = rules.settle_ms.saturating_sub(facts.quiet_ms);
    let reason = Reason::Settling { quiet_ms: facts.quiet_ms, settle_ms: rules.settle_ms };
    (missing_ms > 0).then_some(Verdict::NotYet { reason, recheck_in_ms: Some(missing_ms) })
}

#[cfg(test)]
mod tests {
    use super::super::{CompleteOn, parse};
    use super::*;

    const HOUR: u64 = 3_600_000;
    const A: Label = Label::Autoserv;
    const C: Label = Label::CollectCrashinfo;
    const P: Label = Label::Parser;
    const R: Label = Label::Archiver;
    const RUN: &str = "10\n";
    const TORN: &str = "10\n0\n";
    const DONE: &str = "10\n0\n0\n";
    const CORRUPT: &str = "10\n0\n0\n0\n";

    fn unit(text: &str) -> UnitId {
        match text.strip_suffix("/.") {
            Some(root) => UnitId::loose(root.parse().expect("a path")),
            None => UnitId::tree(text.parse().expect("a path")),
        }
    }

    fn rules(complete_on: CompleteOn) -> LayoutRules {
        LayoutRules { complete_on, ..Default::default() }
    }

    /// The verdict as text: `complete`, `lost`, or the reason with the time to look again.
    fn verdict(
        kind: UnitKind,
        files: &[(Label, &str)],
        alive: bool,
        facts: Facts,
        rules: &LayoutRules,
    ) -> String {
        let seen: Vec<Seen> = files
            .iter()
            .map(|(label, bytes)| Seen { label: *label, content: parse(bytes.as_bytes()), pid_alive: alive })
            .collect();
        match judge(kind, &seen, &facts, rules) {
            Verdict::Complete { lost: false } => "complete".into(),
            Verdict::Complete { lost: true } => "lost".into(),
            Verdict::NotYet { reason, recheck_in_ms: Some(ms) } => format!("{reason} [{ms}]"),
            Verdict::NotYet { reason, recheck_in_ms: None } => reason.to_string(),
        }
    }

    const QUIET: Facts = Facts { writers: 0, quiet_ms: 10_000, since_last_change_ms: HOUR };

    #[test]
    fn a_job_goes_through_its_pidfiles() {
        let run = "running: .autoserv_execute has pid 10, which is alive [600000]";
        let wait =
            |label| format!("waiting for {label}; taken as lost in 23 h without a change [{}]", 23 * HOUR);
        for (files, expected) in [
            (&[][..], "complete".to_owned()),
            (&[(A, RUN)], run.into()),
            (&[(A, TORN)], "waiting for the rest of .autoserv_execute [600000]".into()),
            (&[(A, "")], "waiting for the rest of .autoserv_execute [600000]".into()),
            (&[(A, DONE)], wait(R)),
            (&[(A, DONE), (C, RUN)], run.replace(".autoserv", ".collect_crashinfo")),
            (&[(A, DONE), (P, RUN)], run.replace(".autoserv", ".parser")),
            (&[(A, DONE), (P, DONE)], wait(R)),
            (&[(A, DONE), (P, DONE), (R, RUN)], run.replace(".autoserv", ".archiver")),
            (&[(A, DONE), (P, DONE), (R, TORN)], "waiting for the rest of .archiver_execute [600000]".into()),
            (&[(A, DONE), (P, DONE), (R, DONE)], "complete".into()),
            // Crash collection counts if it is there, and only then.
            (&[(A, DONE), (C, DONE), (P, DONE), (R, DONE)], "complete".into()),
            (
                &[(A, DONE), (C, TORN), (P, DONE), (R, DONE)],
                "waiting for the rest of .collect_crashinfo_execute [600000]".into(),
            ),
            // A failed repair goes straight to the archiver.
            (&[(A, DONE), (R, DONE)], "complete".into()),
            (&[(R, DONE)], "complete".into()),
            // The scheduler's recovery rewrites a pidfile; the last one of the first round still stands.
            (&[(A, RUN), (P, DONE), (R, DONE)], run.into()),
            // A reparse.
            (&[(A, DONE), (P, RUN), (R, DONE)], run.replace(".autoserv", ".parser")),
            (
                &[(A, CORRUPT), (R, DONE)],
                ".autoserv_execute is corrupt (it has more than three lines); treated as running [600000]"
                    .into(),
            ),
        ] {
            assert_eq!(
                verdict(UnitKind::Job, files, true, QUIET, &rules(CompleteOn::Archiver)),
                expected,
                "{files:?}"
            );
        }
    }

    #[test]
    fn sites_without_archiver_or_parser_end_sooner() {
        for (complete_on, files, complete) in [
            (CompleteOn::Parser, &[(A, DONE)][..], false),
            (CompleteOn::Parser, &[(A, DONE), (P, DONE)], true),
            (CompleteOn::Parser, &[(A, DONE), (P, DONE), (R, RUN)], false),
            (CompleteOn::Parser, &[(A, DONE), (P, DONE), (R, DONE)], true),
            (CompleteOn::Autoserv, &[(A, DONE)], true),
            (CompleteOn::Autoserv, &[(A, DONE), (P, TORN)], false),
            (CompleteOn::Autoserv, &[(A, RUN)], false),
            (CompleteOn::Autoserv, &[(P, DONE)], false),
        ] {
            let told = verdict(UnitKind::Job, files, true, QUIET, &rules(complete_on));
            assert_eq!(told == "complete", complete, "{complete_on:?} {files:?}: {told}");
        }
    }

    #[test]
    fn a_task_ends_with_autoserv_whatever_jobs_end_with() {
        for complete_on in [CompleteOn::Archiver, CompleteOn::Parser, CompleteOn::Autoserv] {
            let told = |files| verdict(UnitKind::Task, files, true, QUIET, &rules(complete_on));
            assert_eq!(told(&[(A, DONE)]), "complete");
            assert!(told(&[(A, RUN)]).starts_with("running"));
            assert!(told(&[(P, DONE)]).starts_with("waiting for .autoserv_execute"));
        }
    }

    #[test]
    fn loose_files_and_layers_without_pidfiles_need_only_quiet() {
        let rules = rules(CompleteOn::Archiver);
        for kind in [UnitKind::Job, UnitKind::Task, UnitKind::Loose, UnitKind::Adopted] {
            assert_eq!(verdict(kind, &[], false, QUIET, &rules), "complete");
            let facts = Facts { quiet_ms: 4_321, ..QUIET };
            assert_eq!(verdict(kind, &[], false, facts, &rules), "quiet for 4 of 10 s [5679]");
        }
        assert_eq!(verdict(UnitKind::Loose, &[(A, RUN)], true, QUIET, &rules), "complete");
        assert_eq!(verdict(UnitKind::Adopted, &[(A, DONE)], true, QUIET, &rules), "complete");
        assert!(verdict(UnitKind::Adopted, &[(A, RUN)], true, QUIET, &rules).starts_with("running"));
    }

    /// P5: nothing is complete while somebody writes or just wrote.
    #[test]
    fn writers_and_recent_changes_are_waited_for() {
        let done = [(A, DONE), (P, DONE), (R, DONE)];
        let rules = rules(CompleteOn::Archiver);
        for (facts, expected) in [
            (Facts { writers: 3, ..QUIET }, "3 files open for writing"),
            (Facts { writers: 1, ..QUIET }, "1 file open for writing"),
            (Facts { quiet_ms: 0, ..QUIET }, "quiet for 0 of 10 s [10000]"),
            (Facts { quiet_ms: 9_999, ..QUIET }, "quiet for 9 of 10 s [1]"),
            (QUIET, "complete"),
        ] {
            assert_eq!(verdict(UnitKind::Job, &done, true, facts, &rules), expected, "{facts:?}");
        }
        let at_once = LayoutRules { settle_ms: 0, ..rules };
        assert_eq!(verdict(UnitKind::Job, &done, true, Facts::default(), &at_once), "complete");
    }

    #[test]
    fn what_cannot_go_on_is_lost_after_the_lost_time() {
        let rules = rules(CompleteOn::Archiver);
        let at = |since_last_change_ms| Facts { since_last_change_ms, ..QUIET };
        for (files, waiting) in [
            (&[(A, RUN)][..], "pid 10 of .autoserv_execute is dead; taken as lost in 30 min [1800000]"),
            (&[(A, TORN)], "pid 10 of .autoserv_execute is dead; taken as lost in 30 min [1800000]"),
            (&[(A, CORRUPT)], "pid 10 of .autoserv_execute is dead; taken as lost in 30 min [1800000]"),
            (&[(A, "")], ".autoserv_execute names no process; taken as lost in 30 min [1800000]"),
            (&[(A, DONE), (P, RUN)], "pid 10 of .parser_execute is dead; taken as lost in 30 min [1800000]"),
            (
                &[(A, DONE), (P, DONE)],
                "waiting for .archiver_execute; taken as lost in 30 min without a change [1800000]",
            ),
        ] {
            let told = |facts| verdict(UnitKind::Job, files, false, facts, &rules);
            assert_eq!(told(at(24 * HOUR - HOUR / 2)), waiting, "{files:?}");
            assert_eq!(told(at(24 * HOUR)), "lost", "{files:?}");
            assert_eq!(told(Facts { writers: 2, ..at(25 * HOUR) }), "2 files open for writing", "{files:?}");
            assert_eq!(told(Facts { quiet_ms: 0, ..at(25 * HOUR) }), "quiet for 0 of 10 s [10000]");
        }
    }

    #[test]
    fn nothing_is_lost_while_any_of_its_processes_is_alive() {
        let seen =
            |label, content: &str, pid_alive| Seen { label, content: parse(content.as_bytes()), pid_alive };
        let pidfiles = [seen(A, RUN, false), seen(P, "11\n", true)];
        let facts = Facts { since_last_change_ms: 99 * HOUR, ..QUIET };
        let verdict = judge(UnitKind::Job, &pidfiles, &facts, &LayoutRules::default());
        let reason = Reason::Running { label: P, pid: 11 };
        assert_eq!(verdict, Verdict::NotYet { reason, recheck_in_ms: Some(ALIVE_RECHECK_MS) });
    }

    #[test]
    fn a_unit_is_of_a_kind_by_its_place() {
        for (text, kind) in [
            ("12-me/host1", UnitKind::Job),
            ("12-me/group0", UnitKind::Job),
            ("12-me/rack.group1", UnitKind::Job),
            ("12-me/hostless", UnitKind::Job),
            ("7-whole", UnitKind::Job),
            ("12-me/.", UnitKind::Loose),
            ("hosts/.", UnitKind::Loose),
            ("hosts/h/.", UnitKind::Loose),
            ("hosts/h/12-verify", UnitKind::Task),
            ("hosts/h/manual", UnitKind::Adopted),
            ("default", UnitKind::Adopted),
            ("results.2026", UnitKind::Adopted),
        ] {
            assert_eq!(UnitKind::of(&unit(text)), kind, "{text}");
        }
    }
}
