//! Which directory is a unit, and is it complete? Pure functions: paths and bytes in, answers out, no I/O.
//!
//! [`place()`] cuts the results tree into units, [`parse`] reads a pidfile's bytes, and [`judge`] says whether a host's layer of
//! a unit is complete, what it waits for, and when it pays to look again. The formats are Autotest's
//! (`scheduler/drone_manager.py`, `client/shared/pidfile.py`); nothing here is of our own making.
//!
//! Invariants: every path has exactly one [`Place`]; two paths in one tree unit never have different places; a verdict
//! of "not yet" without a time to look again is always ended by an event that the mount sees (a close or a change).

mod complete;
pub mod pattern;
mod pidfile;
mod place;

pub use complete::{Facts, Reason, Seen, UnitKind, Verdict, judge};
pub use pidfile::{Label, PIDFILE_BYTES, PIDFILES, Pidfile, parse};
pub use place::{DRONE_TMP, HOSTS, Place, is_numbered, place, unit_of};

/// What the configuration says about units and their completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutRules {
    /// Names at the top that stay local, besides [`DRONE_TMP`], which always does.
    pub local_only: Vec<String>,
    /// The pidfile that a job ends with.
    pub complete_on: CompleteOn,
    /// How long a layer must have been quiet to be complete.
    pub settle_ms: u64,
    /// After this long without a change, a layer that can't complete any more is taken as it stands.
    pub lost_ms: u64,
}

impl Default for LayoutRules {
    fn default() -> Self {
        Self {
            local_only: Vec::new(),
            complete_on: CompleteOn::Archiver,
            settle_ms: 10_000,
            lost_ms: 24 * 3_600_000,
        }
    }
}

/// The last step that a job goes through at this site.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum CompleteOn {
    /// `.archiver_execute`: Autotest as it comes.
    #[default]
    Archiver,
    /// `.parser_execute`: archiving is switched off.
    Parser,
    /// `.autoserv_execute`: parsing is, too.
    Autoserv,
}

impl CompleteOn {
    /// The pidfile that is the last one.
    pub fn label(self) -> Label {
        match self {
            Self::Archiver => Label::Archiver,
            Self::Parser => Label::Parser,
            Self::Autoserv => Label::Autoserv,
        }
    }
}
