//! From the text of the files to a [`Config`]: each key is read once, here, with its default, its limits and what is said when it is
//! wrong. A wrong value is replaced by the default for the rest of the check, so that one run tells everything that is wrong.

use std::{
    fmt, net,
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
};

use super::{
    CompleteOn, Config, Drone, ResultsHost, SECTIONS, Surroundings,
    finding::{ConfigError, Finding, Place, Severity},
    raw::{self, RawConfig},
    words::{CommandError, nearest, split_command},
};
use crate::limits;

const SCHEDULER: &str = "SCHEDULER";
const COMMON: &str = "COMMON";
const RESULTSFS: &str = "RESULTSFS";

/// Ends of the names of SCHEDULER's special variables; what is before is a host.
const SPECIAL: [&str; 4] = ["_username", "_disabled", "_max_processes", "_users"];
/// Longest path of a Unix socket: sun_path less its NUL.
const SOCKET_BYTES: usize = 107;
/// Ten years, as a bound on times, so that no sum of them overflows.
const HOURS_MAX: u64 = 10 * 366 * 24;
/// Days that a retention may have: a thousand years.
const DAYS_MAX: u64 = 366_000;
/// Least cache: one block may hold 1 MiB, and a few must fit while they are read.
const CACHE_MIN_MIB: u64 = 16;

/// Where a setting's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A line of a file.
    File(Place),
    /// Not set, or blank.
    Default,
    /// The machine's own host name.
    Machine,
}

impl Source {
    /// `file`, `default` or `machine`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Default => "default",
            Self::Machine => "machine",
        }
    }
}

/// `file:line`, `default` or `machine`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(place) => place.fmt(f),
            _ => f.write_str(self.word()),
        }
    }
}

/// A setting in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The section that it belongs to.
    pub section: &'static str,
    /// Its key, in lower case.
    pub key: String,
    /// Its value as text; the default's, if it isn't set; empty for none.
    pub value: String,
    /// Where the value comes from.
    pub source: Source,
}

/// A configuration with everything that there is to say of it.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The files read.
    pub files: Vec<PathBuf>,
    /// The settings, section by section.
    pub settings: Vec<Setting>,
    /// What is wrong: errors first, then by place.
    pub findings: Vec<Finding>,
    config: Option<Config>,
}

impl Examined {
    /// The configuration, if nothing is badly wrong.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// The configuration, or what is wrong.
    pub fn into_config(self) -> Result<Config, ConfigError> {
        self.config.ok_or(ConfigError::Invalid { findings: self.findings })
    }
}

/// Finds, reads and checks. Fails only if there is no file, or none that can be read.
pub fn examine(explicit: Option<&Path>, surroundings: &Surroundings) -> Result<Examined, ConfigError> {
    let raw = RawConfig::read(explicit, surroundings)?;
    Ok(check(raw, surroundings.host_name.as_deref()))
}

/// Checks everything.
pub fn check(mut raw: RawConfig, machine: Option<&str>) -> Examined {
    let findings = std::mem::take(&mut raw.findings);
    let mut reader = Reader { raw: &raw, settings: Vec::new(), findings };
    let mut config = reader.config(machine);
    reader.directories(&config);
    reader.copies_too(&config);
    reader.unknown_keys();
    reader.unknown_hosts(&config);
    reader.section_names();
    let Reader { mut settings, mut findings, .. } = reader;
    settings.sort_by_key(|s| [SCHEDULER, COMMON, RESULTSFS].iter().position(|name| *name == s.section));
    findings.sort_by_key(|f| (std::cmp::Reverse(f.severity), order(&raw.files, f)));
    let good = findings.iter().all(|f| f.severity == Severity::Warning);
    config.warnings.clone_from(&findings);
    Examined { files: raw.files.clone(), settings, findings, config: good.then_some(config) }
}

fn order(files: &[PathBuf], finding: &Finding) -> (usize, u32) {
    match &finding.place {
        Some(place) => (files.iter().position(|f| **f == *place.file).unwrap_or(files.len()), place.line),
        None => (usize::MAX, 0),
    }
}

/// A value that is set.
#[derive(Clone)]
struct Found {
    text: String,
    place: Place,
}

struct Reader<'a> {
    raw: &'a RawConfig,
    settings: Vec<Setting>,
    findings: Vec<Finding>,
}

impl Reader<'_> {
    fn config(&mut self, machine: Option<&str>) -> Config {
        let local = PathBuf::from("/usr/local/autotest");
        let scheduler_host = self.host(SCHEDULER, "results_host");
        let results_host_installation_directory =
            self.optional_path(SCHEDULER, "results_host_installation_directory");
        let drone_installation_directory =
            self.path(SCHEDULER, "drone_installation_directory", local.clone());
        let drones = self.drones();
        let archive_host = self.other_host("archive_host");
        let max_transfer_processes = self.number(SCHEDULER, "max_transfer_processes", 50, 1..=10_000);
        let test_output_dir = self.optional_path(COMMON, "test_output_dir");
        let autotest_top_path = self.path(COMMON, "autotest_top_path", local);
        let results_host = self.results_host(scheduler_host);
        let host_name = self.host_name(machine);
        let state_dir = self.path(RESULTSFS, "state_dir", "/var/lib/resultsfs".into());
        let spool_dir = self.path(RESULTSFS, "spool_dir", state_dir.join("spool"));
        Config {
            files: self.raw.files.clone(),
            warnings: Vec::new(),
            results_host,
            results_host_installation_directory,
            drone_installation_directory,
            drones,
            archive_host,
            max_transfer_processes: narrow(max_transfer_processes),
            test_output_dir,
            autotest_top_path,
            host_name,
            state_dir,
            spool_dir,
            store_dir: self.path(RESULTSFS, "store_dir", "/var/lib/resultsfs/store".into()),
            serve_socket: self.path(RESULTSFS, "serve_socket", "/run/resultsfs/serve.sock".into()),
            ssh_command: self.command("ssh_command", "ssh"),
            remote_command: self.command("remote_command", "resultsfs"),
            complete_on: self.complete_on(),
            settle_seconds: self.own_number("settle_seconds", 10, 0..=86_400),
            lost_hours: self.own_number("lost_hours", 24, 1..=HOURS_MAX),
            live_seconds: self.own_number("live_seconds", 30, 0..=86_400),
            keep_local_hours: self.own_number("keep_local_hours", 72, 0..=HOURS_MAX),
            spool_high_percent: narrow(self.own_number("spool_high_percent", 80, 1..=100)),
            spool_low_percent: narrow(self.own_number("spool_low_percent", 70, 0..=99)),
            cache_max_mib: self.own_number("cache_max_mib", 4096, CACHE_MIN_MIB..=(1 << 30)),
            bandwidth_mib_per_s: self.own_number("bandwidth_mib_per_s", 0, 0..=(1 << 20)),
            compression_level: narrow(self.own_number("compression_level", 3, 1..=22)),
            retention_days: narrow(self.own_number("retention_days", 0, 0..=DAYS_MAX)),
            retention_days_failed: narrow(self.own_number("retention_days_failed", 0, 0..=DAYS_MAX)),
            local_only: self.local_only(),
        }
    }

    /// `get_value`: a blank value is not set.
    fn found(&mut self, section: &'static str, key: &str) -> Option<Found> {
        let value = match self.raw.get(section, key) {
            Ok(value) => value?,
            Err((place, why)) => {
                let mend = raw::mend_interpolation(&why);
                if let super::ini::Interpolation::Percent | super::ini::Interpolation::TooLong = why {
                    self.error(
                        "interpolation",
                        &place,
                        format!("the value of `{key}` can't be made out: {why}"),
                        mend,
                    );
                } else {
                    let message = format!("`{key}` counts as not set, in Autotest too: {why}");
                    self.findings.push(Finding::warning("interpolation", Some(place), message, mend));
                }
                return None;
            }
        };
        let text = value.text.trim_matches(super::ini::is_space);
        if text.contains(char::REPLACEMENT_CHARACTER) {
            let message = format!("the value of `{key}` has bytes that aren't UTF-8");
            self.error("not-utf-8", &value.place, message, "save the file as UTF-8");
            return None;
        }
        (!text.is_empty()).then(|| Found { text: text.to_owned(), place: value.place })
    }

    /// Enters a setting; a wrong one as it is written. A host can be named twice, and its special variables then come twice.
    fn note(&mut self, section: &'static str, key: &str, value: Option<String>, found: Option<&Found>) {
        if self.settings.iter().any(|s| s.section == section && s.key == key) {
            return;
        }
        let value = value.or_else(|| found.map(|f| f.text.clone())).unwrap_or_default();
        let source = found.map_or(Source::Default, |f| Source::File(f.place.clone()));
        self.settings.push(Setting { section, key: key.to_owned(), value, source });
    }

    fn error(&mut self, code: &'static str, place: &Place, message: String, mend: impl Into<String>) {
        self.findings.push(Finding::error(code, Some(place.clone()), message, mend));
    }

    fn own_number(&mut self, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.number(RESULTSFS, key, default, range)
    }

    fn number(&mut self, section: &'static str, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let found = self.found(section, key);
        let value = match &found {
            None => Some(default),
            Some(found) => self.checked_number(key, found, &range),
        };
        self.note(section, key, value.map(|n| n.to_string()), found.as_ref());
        value.unwrap_or(default)
    }

    fn checked_number(&mut self, key: &str, found: &Found, range: &RangeInclusive<u64>) -> Option<u64> {
        let Some(n) = raw::integer(&found.text) else {
            let message = format!("`{key}` is to be a whole number and is {}", shown(&found.text));
            self.error("not-a-number", &found.place, message, mend_number(key, &found.text));
            return None;
        };
        let good = u64::try_from(n).ok().filter(|n| range.contains(n));
        if good.is_none() {
            let message = format!("`{key}` is {n}, which is out of its limits");
            let mend = format!("give a number from {} to {}", range.start(), range.end());
            self.error("out-of-range", &found.place, message, mend);
        }
        good
    }

    fn optional_path(&mut self, section: &'static str, key: &str) -> Option<PathBuf> {
        let found = self.found(section, key);
        let path = found.as_ref().and_then(|f| self.checked_path(key, f));
        self.note(section, key, path.as_deref().map(path_text), found.as_ref());
        path
    }

    fn path(&mut self, section: &'static str, key: &str, default: PathBuf) -> PathBuf {
        let found = self.found(section, key);
        let path = match &found {
            None => Some(default.clone()),
            Some(found) => self.checked_path(key, found),
        };
        self.note(section, key, path.as_deref().map(path_text), found.as_ref());
        path.unwrap_or(default)
    }

    fn checked_path(&mut self, key: &str, found: &Found) -> Option<PathBuf> {
        let path = Path::new(&found.text);
        let bad = found.text.contains(['\n', '\0']) || path.components().any(|c| c == Component::ParentDir);
        if path.is_absolute() && !bad {
            // Collecting the components drops `//`, `/./` and a `/` at the end, so that paths can be compared.
            return Some(path.components().collect());
        }
        let message = format!("`{key}` is to be an absolute path and is {}", shown(&found.text));
        let mend = mend_text(&found.text).unwrap_or("write the whole path from `/` on, without `..`");
        self.error("not-a-path", &found.place, message, mend);
        None
    }

    /// A host's name as text that is fit to be handed to ssh.
    fn host(&mut self, section: &'static str, key: &str) -> Option<Found> {
        let found = self.found(section, key);
        let good = found.clone().filter(|f| self.checked_host(key, f));
        self.note(section, key, None, found.as_ref());
        good
    }

    fn checked_host(&mut self, key: &str, found: &Found) -> bool {
        let Err((message, mend)) = host_name(key, &found.text) else { return true };
        self.error("bad-host", &found.place, message, mend);
        false
    }

    /// A host's name that nobody connects to: a warning is enough.
    fn other_host(&mut self, key: &str) -> Option<String> {
        let found = self.found(SCHEDULER, key);
        let host = found.clone().filter(|f| self.doubtful_host(key, f)).map(|f| f.text);
        self.note(SCHEDULER, key, None, found.as_ref());
        host
    }

    fn doubtful_host(&mut self, key: &str, found: &Found) -> bool {
        let Err((message, mend)) = host_name(key, &found.text) else { return true };
        self.findings.push(Finding::warning("bad-host", Some(found.place.clone()), message, mend));
        false
    }

    fn drones(&mut self) -> Vec<Drone> {
        let found = self.found(SCHEDULER, "drones");
        let text = found.as_ref().map_or("localhost", |f| &f.text).to_owned();
        let mut drones = Vec::new();
        for host in raw::items(&text).filter(|h| !h.is_empty()) {
            if let Some(found) = &found
                && !self.doubtful_host("drones", &Found { text: host.to_owned(), ..found.clone() })
            {
                continue;
            }
            drones.push(host.to_owned());
        }
        self.note(SCHEDULER, "drones", Some(drones.join(", ")), found.as_ref());
        drones.into_iter().map(|host| self.drone(host)).collect()
    }

    fn drone(&mut self, host: String) -> Drone {
        let user = self.user(&host, false);
        let key = special(&host, "_disabled");
        let disabled = self.found(SCHEDULER, &key);
        if let Some(found) = &disabled {
            self.note(SCHEDULER, &key, None, Some(found));
            if !raw::truth(&found.text) || ["0", "no", "off"].contains(&&*found.text.to_ascii_lowercase()) {
                let message =
                    format!("`{key}` is {}, and that disables {host}: any text does", shown(&found.text));
                let finding = Finding::warning(
                    "disabled-by-any-text",
                    Some(found.place.clone()),
                    message,
                    "leave the value blank to enable it",
                );
                self.findings.push(finding);
            }
        }
        Drone { host, user, disabled: disabled.is_some() }
    }

    /// `HOST_username`. An error only where somebody is going to use it.
    fn user(&mut self, host: &str, used: bool) -> Option<String> {
        let key = special(host, "_username");
        let found = self.found(SCHEDULER, &key)?;
        self.note(SCHEDULER, &key, None, Some(&found));
        let Err((message, mend)) = user_name(&key, &found.text) else { return Some(found.text) };
        let mut finding = Finding::error("bad-user", Some(found.place), message, mend);
        if !used {
            finding.severity = Severity::Warning;
        }
        // A results host that is a drone too was looked at before, with less weight.
        self.findings.retain(|f| f.code != finding.code || f.place != finding.place);
        self.findings.push(finding);
        None
    }

    /// `[RESULTSFS] results_host`, or else SCHEDULER's.
    fn results_host(&mut self, scheduler: Option<Found>) -> ResultsHost {
        let key = "results_host";
        let found = match self.found(RESULTSFS, key) {
            Some(own) => Some(own.clone()).filter(|f| self.checked_host(key, f)),
            None => scheduler,
        };
        let host = found.as_ref().map(|f| f.text.clone()).filter(|h| !is_localhost(h));
        let result = match host {
            None => ResultsHost::None,
            Some(host) => ResultsHost::Host { user: self.user(&host, true), host },
        };
        self.note(
            RESULTSFS,
            key,
            Some(found.as_ref().map_or("localhost", |f| &f.text).to_owned()),
            found.as_ref(),
        );
        result
    }

    fn host_name(&mut self, machine: Option<&str>) -> String {
        let key = "host_name";
        if let Some(found) = self.found(RESULTSFS, key) {
            self.note(RESULTSFS, key, None, Some(&found));
            self.checked_host(key, &found);
            self.not_localhost(&found.text, Some(found.place));
            return found.text;
        }
        let name = machine.unwrap_or_default().to_owned();
        let source = Source::Machine;
        self.settings.push(Setting { section: RESULTSFS, key: key.into(), value: name.clone(), source });
        match host_name(key, &name) {
            Ok(()) => self.not_localhost(&name, None),
            Err(_) => self.findings.push(Finding::error(
                "no-host-name",
                None,
                format!("this machine's host name is {}, by which the store can't know it", shown(&name)),
                "set `host_name` in [RESULTSFS] to a name of its own",
            )),
        }
        name
    }

    fn not_localhost(&mut self, name: &str, place: Option<Place>) {
        if is_localhost(name) || name.starts_with("localhost.") {
            let message = format!(
                "this host is known to the store as `{name}`, and so may others be: one of them is refused"
            );
            let mend = "set `host_name` in [RESULTSFS] to a name of its own";
            self.findings.push(Finding::warning("host-name-is-localhost", place, message, mend));
        }
    }

    fn command(&mut self, key: &str, default: &str) -> Vec<String> {
        let found = self.found(RESULTSFS, key);
        let mut words = vec![default.to_owned()];
        if let Some(found) = &found {
            match split_command(&found.text) {
                Ok(split) if split[0].contains(' ') && is_quoted(&found.text) => {
                    let message = format!("all of `{key}` is in quotes, so it is the name of one program");
                    self.error("bad-command", &found.place, message, "leave the quotes out");
                }
                Ok(split) if split[0].starts_with('-') => {
                    let message = format!("`{key}` begins with an option");
                    self.error("bad-command", &found.place, message, format!("write `{default}` before it"));
                }
                Ok(split) => words = split,
                Err(why) => {
                    let mend = match why {
                        CommandError::Shell('~' | '$') => "write the path out",
                        CommandError::Shell(_) => "put it in single quotes, or write a script and name that",
                        _ => "write it as on a command line",
                    };
                    self.error("bad-command", &found.place, format!("`{key}` can't be run: {why}"), mend);
                }
            }
        }
        let text = found.is_none().then(|| default.to_owned());
        self.note(RESULTSFS, key, text, found.as_ref());
        words
    }

    fn complete_on(&mut self) -> CompleteOn {
        let key = "complete_on";
        let found = self.found(RESULTSFS, key);
        let value = match &found {
            None => Some(CompleteOn::Archiver),
            Some(found) => found.text.parse().ok(),
        };
        if let (None, Some(found)) = (value, &found) {
            let message = format!("`{key}` is {}, which isn't known", shown(&found.text));
            let mend = mend_text(&found.text).unwrap_or("write archiver, parser or autoserv");
            self.error("not-known", &found.place, message, mend);
        }
        self.note(RESULTSFS, key, value.map(|v| v.word().to_owned()), found.as_ref());
        let value = value.unwrap_or(CompleteOn::Archiver);
        if value == CompleteOn::Archiver && self.archiving_is_off() {
            let finding = Finding::warning(
                "archiving-is-off",
                found.map(|f| f.place),
                "`enable_archiving` in [SCHEDULER] is False, so no job writes the pidfile that `complete_on: archiver` waits for",
                "set `complete_on: parser` in [RESULTSFS]",
            );
            self.findings.push(finding);
        }
        value
    }

    /// ChromeOS's switch; Autotest's own scheduler has none.
    fn archiving_is_off(&self) -> bool {
        let value = self.raw.get(SCHEDULER, "enable_archiving").ok().flatten();
        value.is_some_and(|v| !raw::truth(&v.text))
    }

    fn local_only(&mut self) -> Vec<String> {
        let key = "local_only";
        let found = self.found(RESULTSFS, key);
        let mut names = Vec::new();
        for name in found.iter().flat_map(|f| raw::items(&f.text)).filter(|n| !n.is_empty()) {
            let good = name.len() <= limits::NAME_BYTES
                && !name.contains(['/', '\n', '\0'])
                && !matches!(name, "." | "..");
            match (good, &found) {
                (false, Some(found)) => {
                    let message = format!(
                        "`{key}` has {}, which isn't one name at the top of the results tree",
                        shown(name)
                    );
                    let mend = mend_text(name).unwrap_or("give names without `/`, with commas between them");
                    self.error("bad-name", &found.place, message, mend);
                }
                _ => names.push(name.to_owned()),
            }
        }
        self.note(RESULTSFS, key, Some(names.join(", ")), found.as_ref());
        names
    }

    /// What several settings say together.
    fn directories(&mut self, config: &Config) {
        if config.spool_low_percent >= config.spool_high_percent {
            let message = format!(
                "`spool_low_percent` is {} and `spool_high_percent` {}: eviction could never end",
                config.spool_low_percent, config.spool_high_percent
            );
            self.together(
                "spool-limits",
                &["spool_low_percent", "spool_high_percent"],
                message,
                "make low the lower one",
            );
        }
        let control = config.control_socket();
        for (key, path) in [("serve_socket", &config.serve_socket), ("state_dir", &control)] {
            if path.as_os_str().len() > SOCKET_BYTES {
                let message =
                    format!("{} is too long for a socket: {SOCKET_BYTES} bytes is the most", path.display());
                self.together("socket-path", &[key], message, format!("choose a shorter path for `{key}`"));
            }
        }
        self.nested(config);
        self.inside_the_tree(config);
    }

    /// The spool is an ordinary tree: what else is in it would show as results.
    fn nested(&mut self, config: &Config) {
        let (spool, state, store) = (&config.spool_dir, &config.state_dir, &config.store_dir);
        for (inner, outer, keys) in [
            (state, spool, ["state_dir", "spool_dir"]),
            (store, spool, ["store_dir", "spool_dir"]),
            (spool, store, ["spool_dir", "store_dir"]),
        ] {
            if inner.starts_with(outer) {
                let message = format!(
                    "`{}` ({}) is inside `{}` ({})",
                    keys[0],
                    inner.display(),
                    keys[1],
                    outer.display()
                );
                self.together("nested-directories", &keys, message, "give each a directory of its own");
                return;
            }
        }
    }

    fn inside_the_tree(&mut self, config: &Config) {
        for on_results_host in [false, true] {
            let tree = config.mountpoint_default(on_results_host);
            for (key, path) in [
                ("state_dir", &config.state_dir),
                ("spool_dir", &config.spool_dir),
                ("store_dir", &config.store_dir),
                ("serve_socket", &config.serve_socket),
            ] {
                if path.starts_with(&tree)
                    && !self.findings.iter().any(|f| f.code == "inside-the-results-tree")
                {
                    let message =
                        format!("`{key}` ({}) is under the mount point {}", path.display(), tree.display());
                    self.together(
                        "inside-the-results-tree",
                        &[key],
                        message,
                        "choose a place outside the results tree",
                    );
                }
            }
        }
    }

    /// An error about settings of `[RESULTSFS]`, at the first of `keys` that a file sets.
    fn together(&mut self, code: &'static str, keys: &[&str], message: String, mend: impl Into<String>) {
        let place = keys.iter().find_map(|key| {
            self.settings.iter().find_map(|s| match &s.source {
                Source::File(place) if s.section == RESULTSFS && s.key == *key => Some(place.clone()),
                _ => None,
            })
        });
        self.findings.push(Finding::error(code, place, message, mend));
    }

    /// Autotest's own archiver runs beside resultsfs.
    fn copies_too(&mut self, config: &Config) {
        let setting = self.settings.iter().find(|s| s.section == SCHEDULER && s.key == "results_host");
        let Some(Setting { value, source: Source::File(place), .. }) = setting else { return };
        if value.is_empty()
            || is_localhost(value)
            || config.results_host == ResultsHost::None
            || self.archiving_is_off()
        {
            return;
        }
        let message = format!(
            "Autotest copies finished jobs to {value} too; nothing is stored twice, but it takes its time"
        );
        let mend = format!("set `results_host: localhost` here, and `results_host: {value}` in [RESULTSFS]");
        self.findings.push(Finding::warning("autotest-copies-too", Some(place.clone()), message, mend));
    }

    fn keys_of(&self, section: &str) -> Vec<String> {
        let keys = self.settings.iter().filter(|s| s.section == section);
        keys.map(|s| s.key.clone()).filter(|k| !SPECIAL.iter().any(|s| k.ends_with(s))).collect()
    }

    /// Keys of `[RESULTSFS]` that mean nothing, and keys of SCHEDULER that are nearly one that does.
    fn unknown_keys(&mut self) {
        let (own, scheduler) = (self.keys_of(RESULTSFS), self.keys_of(SCHEDULER));
        for (key, value) in self.raw.own(RESULTSFS).filter(|(k, _)| !own.contains(k)) {
            let mend = if scheduler.contains(key) || SPECIAL.iter().any(|s| key.ends_with(s)) {
                "move it to [SCHEDULER]".to_owned()
            } else {
                match nearest(key, own.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("remove it; the keys are {}", own.join(", ")),
                }
            };
            let message = format!("[RESULTSFS] has no key `{key}`");
            self.findings.push(Finding::warning("unknown-key", Some(value.place.clone()), message, mend));
        }
        for (key, value) in self.raw.own(SCHEDULER).filter(|(k, _)| !scheduler.contains(k)) {
            let mend = if own.contains(key) {
                "move it to [RESULTSFS]".to_owned()
            } else {
                match nearest(key, scheduler.iter().map(String::as_str)) {
                    Some(near) if !SPECIAL.iter().any(|s| key.ends_with(s)) => {
                        format!("did you mean `{near}`?")
                    }
                    _ => continue,
                }
            };
            let message = format!("nobody reads `{key}` in [SCHEDULER]");
            self.findings.push(Finding::warning("unknown-key", Some(value.place.clone()), message, mend));
        }
    }

    /// Special variables of hosts that aren't named anywhere, and those that the first `:` cuts in two.
    fn unknown_hosts(&mut self, config: &Config) {
        let mut hosts: Vec<String> = config.drones.iter().map(|d| d.host.to_ascii_lowercase()).collect();
        let named = self.settings.iter().filter(|s| s.key == "results_host" || s.key == "archive_host");
        hosts.extend(named.map(|s| s.value.to_ascii_lowercase()).chain(["localhost".to_owned()]));
        for (key, value) in self.raw.own(SCHEDULER) {
            if let Some(host) = SPECIAL[..2].iter().find_map(|s| key.strip_suffix(s))
                && !hosts.iter().any(|h| h == host)
            {
                let near = hosts.iter().find(|h| h.split('.').next() == host.split('.').next());
                let mend = match near {
                    Some(near) => format!("write the name as it is set: `{}`", key.replacen(host, near, 1)),
                    None => "write the host's name exactly as `results_host` or `drones` has it, or remove the line".into(),
                };
                let message = format!("`{key}` is for a host that neither `results_host` nor `drones` names");
                self.findings.push(Finding::warning(
                    "unknown-host",
                    Some(value.place.clone()),
                    message,
                    mend,
                ));
            }
            if SPECIAL
                .iter()
                .any(|s| value.text.contains(&format!("{s}:")) || value.text.contains(&format!("{s} ")))
            {
                let message =
                    format!("the first `:` ends the key, so this sets `{key}` and no special variable");
                let mend =
                    "give the host a name without `:` (a Host entry in ssh's config), and use that name";
                self.findings.push(Finding::warning(
                    "colon-in-key",
                    Some(value.place.clone()),
                    message,
                    mend,
                ));
            }
        }
    }

    /// `[scheduler]` or `[ RESULTSFS ]`: sections that nobody reads.
    fn section_names(&mut self) {
        for (name, section) in &self.raw.sections {
            let wanted = SECTIONS.iter().find(|s| name.trim().eq_ignore_ascii_case(s) && *s != name);
            let (Some(wanted), Some(value)) = (wanted, section.values().min_by_key(|v| v.place.line)) else {
                continue;
            };
            let message =
                format!("nobody reads [{name}]: names of sections are exact, blanks and capitals included");
            let mend = format!("write [{wanted}]");
            self.findings.push(Finding::warning("section-name", Some(value.place.clone()), message, mend));
        }
    }
}

/// The numbers were checked against limits that fit.
fn narrow<T: TryFrom<u64>>(n: u64) -> T
where
    T::Error: fmt::Debug,
{
    T::try_from(n).expect("the limits of the setting fit its type")
}

fn special(host: &str, suffix: &str) -> String {
    format!("{}{suffix}", host.to_ascii_lowercase())
}

fn is_localhost(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

fn is_quoted(text: &str) -> bool {
    text.len() > 1 && ['"', '\''].iter().any(|q| text.starts_with(*q) && text.ends_with(*q))
}

/// In backquotes, with what can't be seen made visible, and not too long.
fn shown(text: &str) -> String {
    let visible: String = text.chars().take(80).flat_map(visible).collect();
    if text.chars().count() > 80 { format!("`{visible}…`") } else { format!("`{visible}`") }
}

fn visible(c: char) -> Vec<char> {
    match c {
        ' '..='~' => vec![c],
        _ if c.is_alphanumeric() => vec![c],
        _ => c.escape_default().collect(),
    }
}

/// Mistakes that any value can have.
fn mend_text(text: &str) -> Option<&'static str> {
    if text.contains('\n') {
        Some(
            "begin the line below it in the first column, or remove it: an indented line belongs to the value above",
        )
    } else if text.ends_with("**") {
        Some("remove the `**`: in the manual it marks the line and is no part of the value")
    } else if is_quoted(text) {
        Some("remove the quotes: they count as part of the value")
    } else if text.contains(" #") || text.starts_with('#') {
        Some("remove the comment, or begin it with ` ;`: a `#` begins one in the first column only")
    } else if text.contains(';') {
        Some("put a blank before the `;`, or else it begins no comment")
    } else if text.chars().any(|c| c.is_control() || (!c.is_ascii() && !c.is_alphanumeric())) {
        Some("type the value again instead of pasting it: it has characters that can't be seen")
    } else {
        None
    }
}

fn mend_number(key: &str, text: &str) -> String {
    if let Some(mend) = mend_text(text) {
        return mend.to_owned();
    }
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    let unit = key.rsplit('_').next().unwrap_or(key);
    match digits.is_empty() || text.contains(['.', ',']) {
        true => "write it in digits, without a point".to_owned(),
        false => format!("write `{key}: {digits}`; if a unit is in the name it is fixed (here: {unit})"),
    }
}

/// Whether ssh can be given `name` as a host; or what is wrong, and the mend.
fn host_name(key: &str, name: &str) -> Result<(), (String, String)> {
    let fault =
        |mend: &str| Err((format!("`{key}` is {}, which is no host name", shown(name)), mend.to_owned()));
    if name.starts_with('-') {
        return fault("give a name that doesn't begin with `-`: ssh would take it for an option");
    }
    if let Some(mend) = mend_text(name) {
        return fault(mend);
    }
    if let Some((user, host)) = name.split_once('@') {
        return fault(&format!("write `{key}: {host}`, and `{host}_username: {user}` in [SCHEDULER]"));
    }
    if is_address(name) {
        return Ok(());
    }
    if let Some((host, port)) = name.split_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        return fault(&format!("write `{key}: {host}`, and `ssh_command: ssh -p {port}` in [RESULTSFS]"));
    }
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > limits::TEXT_BYTES || !name.bytes().all(good) {
        return fault("give one host's name or address");
    }
    Ok(())
}

fn is_address(name: &str) -> bool {
    let (address, zone) = name.split_once('%').unwrap_or((name, "0"));
    address.parse::<net::Ipv6Addr>().is_ok() && zone.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Whether ssh can be given `name` as a user; or what is wrong, and the mend. Domain accounts have `@`, `\` or `+` in them.
fn user_name(key: &str, name: &str) -> Result<(), (String, String)> {
    let fault =
        |mend: &str| Err((format!("`{key}` is {}, which is no user name", shown(name)), mend.to_owned()));
    if name.starts_with('-') {
        return fault("give a name that doesn't begin with `-`: ssh would take it for an option");
    }
    if let Some(mend) = mend_text(name) {
        return fault(mend);
    }
    let good = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '@' | '\\' | '+' | '$');
    if name.len() > limits::TEXT_BYTES || !name.chars().all(good) {
        return fault("give the name of an account on that host");
    }
    Ok(())
}
