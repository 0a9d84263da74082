//! The survey: which units lie in the spool. Made at start, when nobody has told of changes yet.
//!
//! Only the levels above the units' roots are read.

use std::io;

use super::{observe, tree::SpoolTree};
use crate::{
    ids::{RelPath, UnitId},
    journal::Journal,
    layout::{self, LayoutRules, Place},
};

/// What was found.
#[derive(Debug, Default)]
pub struct Survey {
    /// Units with something in the spool.
    pub units: Vec<UnitId>,
    /// Names at the top (or in `hosts/<host>/`) that are nobody's.
    pub unrecognised: Vec<RelPath>,
    /// Directories below the top that couldn't be listed.
    pub unread: Vec<(RelPath, io::Error)>,
}

/// Finds the units.
pub fn survey(spool: &SpoolTree, journal: &Journal, rules: &LayoutRules) -> io::Result<Survey> {
    let surveyor = Surveyor { spool, journal, rules };
    let mut found = Survey::default();
    surveyor.visit(&RelPath::ROOT, &mut found)?;
    Ok(found)
}

/// Where `path` belongs, by what is journaled and by what lies in the spool.
pub fn place(
    path: &RelPath,
    is_dir: bool,
    spool: &SpoolTree,
    journal: &Journal,
    rules: &LayoutRules,
) -> Place {
    let whole = |job: &RelPath| is_whole_job(job, spool, journal);
    layout::place(path, is_dir, rules, &whole, &|top| journal.adopted(top))
}

/// Whether a job dir is one unit as a whole: as the journal has it, or, before the first record, if a pidfile is directly in it.
fn is_whole_job(job: &RelPath, spool: &SpoolTree, journal: &Journal) -> bool {
    if journal.whole_job(job) {
        return true;
    }
    let is_journaled = !journal.units_below(job).is_empty() || !journal.child_roots(job).is_empty();
    !is_journaled && observe::read_pidfiles(spool, job).is_ok_and(|pidfiles| !pidfiles.is_empty())
}

struct Surveyor<'a> {
    spool: &'a SpoolTree,
    journal: &'a Journal,
    rules: &'a LayoutRules,
}

impl Surveyor<'_> {
    /// Sorts what is directly in `dir`, which is the top or a container.
    fn visit(&self, dir: &RelPath, found: &mut Survey) -> io::Result<()> {
        let mut lines = match self.spool.list(dir) {
            Err(e) if !dir.is_root() => {
                found.unread.push((dir.clone(), e));
                return Ok(());
            }
            lines => lines?,
        };
        lines.sort_by(|a, b| a.0.cmp(&b.0));
        let has_files = lines.iter().any(|(_, attrs)| !attrs.is_dir());
        if !dir.is_root() {
            self.add_loose(UnitId::loose(dir.clone()), has_files, found);
        }
        for (name, attrs) in lines {
            let Ok(path) = dir.join(&name) else { continue };
            match place(&path, attrs.is_dir(), self.spool, self.journal, self.rules) {
                Place::Unit { unit } => found.units.push(unit),
                Place::Container { .. } if attrs.is_dir() => self.visit(&path, found)?,
                Place::Unrecognised { top } => found.unrecognised.push(top),
                Place::Container { .. } | Place::Root | Place::LocalOnly => {}
            }
        }
        Ok(())
    }

    /// A bare directory that another host has described is there only because something below it is.
    fn add_loose(&self, unit: UnitId, has_files: bool, found: &mut Survey) {
        if has_files || self.journal.get(&unit).is_some() || !self.journal.has_foreign(&unit) {
            found.units.push(unit);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{clock::SystemClock, offload::testing::Spool};

    #[test]
    fn every_unit_in_the_spool_is_found() {
        let spool = Spool::new();
        for file in [
            "1-me/keyval",
            "1-me/host1/status.log",
            "1-me/host2/status.log",
            "2-whole/.autoserv_execute",
            "2-whole/debug/log",
            "hosts/h/7-verify/.autoserv_execute",
            "default/x",
            "drone_tmp/1",
            "stray",
        ] {
            spool.file(file, b"");
        }
        let state = tempfile::tempdir().expect("a temporary directory");
        let journal = Journal::open(state.path(), Arc::new(SystemClock)).expect("opens");
        let found = survey(&spool.tree, &journal, &LayoutRules::default()).expect("reads");
        let units: Vec<_> = found.units.iter().map(UnitId::to_string).collect();
        let expected =
            ["1-me/.", "1-me/host1", "1-me/host2", "2-whole", "hosts/.", "hosts/h/.", "hosts/h/7-verify"];
        assert_eq!(units, expected);
        let unrecognised: Vec<_> = found.unrecognised.iter().map(RelPath::to_string).collect();
        assert_eq!(unrecognised, ["default", "stray"]);
    }
}
