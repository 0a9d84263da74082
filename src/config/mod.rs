//! Autotest's global_config.ini and shadow_config.ini, as Autotest reads them, and what resultsfs makes of
//! them.
//!
//! `ini` reads one file, [`RawConfig`] merges the two, `check` turns the text into a [`Config`] in which every
//! value was looked at, `doubts` looks at what settings say together and at what nobody reads.
//! [`examine`] tells everything, also of a configuration that is wrong (`resultsfs config`); [`Config::load`]
//! wants a good one.
//!
//! - A value that is blank is not set. Option names are in lower case, section names are exact.
//! - Host and user names in a `Config` never begin with `-` and have no character that means something to a
//!   shell, but for the `\` after a user's domain; commands are lists of arguments and go to no shell; paths are
//!   absolute.
//! - What differs from Autotest: a file that can't be read is an error, not an empty configuration.

mod check;
mod doubts;
mod explain;
mod finding;
mod ini;
mod mail;
mod names;
mod raw;
mod words;

#[cfg(test)]
mod python_cases;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

pub use check::{Examined, Setting, Source, examine};
pub use explain::{finding_text, json, settings_text, text};
pub use finding::{ConfigError, Finding, Place, Severity};
pub use mail::{Mail, Secret};
pub use raw::{RawConfig, Surroundings};

/// The sections that resultsfs reads.
const SECTIONS: [&str; 5] = ["COMMON", "EMAIL", "NOTIFICATION", "RESULTSFS", "SCHEDULER"];

/// Where finished layers go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResultsHost {
    /// `localhost`, or blank: nothing is copied anywhere.
    None,
    /// That host's store.
    Host {
        /// Its name, as ssh takes it.
        host: String,
        /// `HOST_username`; without it ssh decides.
        user: Option<String>,
    },
}

/// The last pidfile that a job's unit waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompleteOn {
    /// `.archiver_execute`
    Archiver,
    /// `.parser_execute`, for sites that switched archiving off.
    Parser,
    /// `.autoserv_execute`
    Autoserv,
}

impl CompleteOn {
    /// The value as the file has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Archiver => "archiver",
            Self::Parser => "parser",
            Self::Autoserv => "autoserv",
        }
    }
}

impl fmt::Display for CompleteOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for CompleteOn {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let all = [Self::Archiver, Self::Parser, Self::Autoserv];
        all.into_iter().find(|c| c.word() == text).ok_or(())
    }
}

/// A host that runs tests, and its special variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drone {
    /// As `drones` names it.
    pub host: String,
    /// `HOST_username`.
    pub user: Option<String>,
    /// `HOST_disabled`: anything but blank disables, `0` and `False` too.
    pub disabled: bool,
}

/// Everything that resultsfs takes from the files, checked. Fields are called as their keys are; all of
/// `[RESULTSFS]` and, where it says so, of `[SCHEDULER]` and `[COMMON]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The files read: the main one, and the shadow if there is one.
    pub files: Vec<PathBuf>,
    /// What is doubtful in them.
    pub warnings: Vec<Finding>,

    /// `[RESULTSFS]`'s, or else `[SCHEDULER]`'s.
    pub results_host: ResultsHost,
    /// `[SCHEDULER]`: where Autotest is on the results host, if elsewhere.
    pub results_host_installation_directory: Option<PathBuf>,
    /// `[SCHEDULER]`: where Autotest is on the drones.
    pub drone_installation_directory: PathBuf,
    /// `[SCHEDULER]`
    pub drones: Vec<Drone>,
    /// `[SCHEDULER]`
    pub archive_host: Option<String>,
    /// `[SCHEDULER]`: units in transfer at once.
    pub max_transfer_processes: u32,
    /// `[COMMON]`: where results go, if not below the installation.
    pub test_output_dir: Option<PathBuf>,
    /// `[COMMON]`
    pub autotest_top_path: PathBuf,

    /// How this host is known to the store.
    pub host_name: String,
    /// Journal, spool and cache.
    pub state_dir: PathBuf,
    /// The private tree of live layers.
    pub spool_dir: PathBuf,
    /// The store, on the results host.
    pub store_dir: PathBuf,
    /// Where `serve` listens, on the results host.
    pub serve_socket: PathBuf,
    /// ssh and its options.
    pub ssh_command: Vec<String>,
    /// The program on the results host and its arguments, to which `serve --stdio` is added.
    pub remote_command: Vec<String>,
    /// What ends a job.
    pub complete_on: CompleteOn,
    /// Quiet for so long before a unit is complete.
    pub settle_seconds: u64,
    /// After so long, a unit whose process is gone is offloaded all the same, and marked.
    pub lost_hours: u64,
    /// How often running units are published; 0 = never.
    pub live_seconds: u64,
    /// Committed layers stay local this long.
    pub keep_local_hours: u64,
    /// Beyond this use of its disk the spool evicts, down to `spool_low_percent`, which is lower.
    pub spool_high_percent: u8,
    /// See `spool_high_percent`.
    pub spool_low_percent: u8,
    /// Bound on the cache of remote bytes.
    pub cache_max_mib: u64,
    /// Bound on uploads; 0 = none.
    pub bandwidth_mib_per_s: u64,
    /// zstd's.
    pub compression_level: i32,
    /// Days after their last commit after which `prune` prunes jobs that passed; 0 = never.
    pub retention_days: u32,
    /// The same for failed jobs.
    pub retention_days_failed: u32,
    /// Days after which `prune` gives up what it has pruned; until then it can be undeleted.
    pub prune_grace_days: u32,
    /// Names at the top of the tree that stay local, beside `drone_tmp`.
    pub local_only: Vec<String>,
    /// Where `notify` says what needs a person, beside mail: a program and its arguments, or none.
    pub notify_command: Vec<String>,
    /// `[NOTIFICATION]` and `[EMAIL]`
    pub mail: Mail,
}

/// [`examine`] of bytes at hand: a main file's, its shadow's, and for a machine of this name.
pub fn examine_text(global: &[u8], shadow: Option<&[u8]>, machine: Option<&str>) -> Examined {
    let global = ini::Ini::parse(Path::new(raw::GLOBAL), global);
    let shadow = shadow.map(|bytes| ini::Ini::parse(Path::new(raw::SHADOW), bytes));
    check::check(RawConfig::merge(global, shadow), machine)
}

impl Config {
    /// Reads the file named (or the one in the directory named), or else the first found; and its shadow.
    pub fn load(explicit: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_in(explicit, &Surroundings::of_this_machine())
    }

    /// The same in other surroundings.
    pub fn load_in(explicit: Option<&Path>, surroundings: &Surroundings) -> Result<Self, ConfigError> {
        examine(explicit, surroundings)?.into_config()
    }

    /// A configuration from the text of a main file, for a host of this name.
    pub fn from_text(text: &str, host_name: &str) -> Result<Self, ConfigError> {
        examine_text(text.as_bytes(), None, Some(host_name)).into_config()
    }

    /// Where finished layers go.
    pub fn results_host(&self) -> &ResultsHost {
        &self.results_host
    }

    /// The mount point if none is given: the place of Autotest's results on this host.
    pub fn mountpoint_default(&self, on_results_host: bool) -> PathBuf {
        let installation = self.results_host_installation_directory.as_ref().filter(|_| on_results_host);
        let top =
            self.test_output_dir.as_ref().or(installation).unwrap_or(&self.drone_installation_directory);
        top.join("results")
    }

    /// Where the daemon of this host takes commands.
    pub fn control_socket(&self) -> PathBuf {
        self.state_dir.join("control.sock")
    }

    /// Where remote blocks are kept.
    pub fn cache_dir(&self) -> PathBuf {
        self.state_dir.join("cache")
    }

    /// Bound on uploads in bytes a second, if there is one.
    pub fn bandwidth_bytes_per_s(&self) -> Option<u64> {
        (self.bandwidth_mib_per_s > 0).then_some(self.bandwidth_mib_per_s << 20)
    }

    /// The settings that drone and store must have alike, as `name=value` lines in a fixed order: what
    /// decides which bytes reach the store and when (`complete_on`, `settle_seconds`, `lost_hours`,
    /// `local_only`), and how long they stay there (`retention_days`, `retention_days_failed`, which the
    /// store applies and the drone's administrator relies on). Host names, directories, commands and bounds
    /// are each host's own affair.
    pub fn fingerprint(&self) -> Vec<String> {
        let mut local_only: Vec<_> = self.local_only.iter().map(String::as_str).collect();
        local_only.sort_unstable();
        local_only.dedup();
        vec![
            format!("complete_on={}", self.complete_on),
            format!("settle_seconds={}", self.settle_seconds),
            format!("lost_hours={}", self.lost_hours),
            format!("local_only={}", local_only.join(",")),
            format!("retention_days={}", self.retention_days),
            format!("retention_days_failed={}", self.retention_days_failed),
        ]
    }
}
