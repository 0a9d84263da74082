//! From the text of the files to a [`Config`]: each key is read once, here, with its default, its limits and
//! what is said when it is wrong. A wrong value is replaced by the default for the rest of the check, so that
//! one run tells everything that is wrong.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
};

use super::{
    CompleteOn, Config, Drone, ResultsHost, Surroundings,
    finding::{ConfigError, Finding, Place, Severity},
    ini::{self, Interpolation},
    names::{host_name, is_localhost, is_quoted, mend_number, mend_text, shown, special, user_name},
    raw::{self, RawConfig},
    words::{CommandError, split_command},
};
use crate::limits;

pub const SCHEDULER: &str = "SCHEDULER";
pub const COMMON: &str = "COMMON";
pub const RESULTSFS: &str = "RESULTSFS";
pub const NOTIFICATION: &str = "NOTIFICATION";
pub const EMAIL: &str = "EMAIL";

/// Ten years, as a bound on times, so that no sum of them overflows.
const HOURS_MAX: u64 = 10 * 366 * 24;
/// Days that a retention may have: a thousand years.
const DAYS_MAX: u64 = 366_000;
/// Bytes of all values that are read. A file has fewer, and by interpolation each of thousands of drones' users could have [`ini::VALUE_BYTES`].
const VALUES_BYTES: usize = 4 << 20;
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
    let mut reader =
        Reader { raw: &raw, settings: Vec::new(), noted: HashSet::new(), findings, room: VALUES_BYTES };
    let mut config = reader.config(machine);
    reader.directories(&config);
    reader.copies_too(&config);
    reader.retention(&config);
    reader.unknown_keys();
    reader.unknown_hosts(&config);
    reader.section_names();
    let Reader { mut settings, mut findings, .. } = reader;
    settings.sort_by_key(|s| {
        [SCHEDULER, COMMON, NOTIFICATION, EMAIL, RESULTSFS].iter().position(|name| *name == s.section)
    });
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
pub struct Found {
    pub text: String,
    pub place: Place,
}

/// Reads keys and keeps what it saw.
pub struct Reader<'a> {
    /// The files' text.
    pub raw: &'a RawConfig,
    /// The settings read so far.
    pub settings: Vec<Setting>,
    /// Their sections and keys.
    noted: HashSet<(&'static str, String)>,
    /// What was wrong with them.
    pub findings: Vec<Finding>,
    /// What is left of [`VALUES_BYTES`].
    room: usize,
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
        let archive_host = self.host_doubted(SCHEDULER, "archive_host");
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
            ssh_command: self.command("ssh_command", Some("ssh")),
            remote_command: self.command("remote_command", Some("resultsfs")),
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
            prune_grace_days: narrow(self.own_number("prune_grace_days", 7, 0..=DAYS_MAX)),
            local_only: self.local_only(),
            notify_command: self.command("notify_command", None),
            mail: self.mail(),
        }
    }

    /// `get_value`: a blank value is not set.
    pub fn found(&mut self, section: &'static str, key: &str) -> Option<Found> {
        let value = match self.raw.get(section, key) {
            Ok(value) => value?,
            Err((place, why)) => {
                let mend = raw::mend_interpolation(&why);
                if let Interpolation::Percent | Interpolation::TooLong = why {
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
        let Some(room) = self.room.checked_sub(value.text.len()) else {
            let message = format!("with the value of `{key}` the values are more than {VALUES_BYTES} bytes");
            self.error("too-much", &value.place, message, "write shorter values, or fewer");
            return None;
        };
        self.room = room;
        let text = value.text.trim_matches(ini::is_space);
        if text.contains(char::REPLACEMENT_CHARACTER) {
            let message = format!("the value of `{key}` has bytes that aren't UTF-8");
            self.error("not-utf-8", &value.place, message, "save the file as UTF-8");
            return None;
        }
        (!text.is_empty()).then(|| Found { text: text.to_owned(), place: value.place })
    }

    /// Enters a setting; a wrong one as it is written. A host can be named twice, and its special variables
    /// then come twice.
    pub fn note(&mut self, section: &'static str, key: &str, value: Option<String>, found: Option<&Found>) {
        if !self.noted.insert((section, key.to_owned())) {
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
            // Collecting the components drops `//`, `/./` and a last `/`, so that paths can be compared.
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

    /// A host's name by which no results go: a warning is enough.
    pub fn host_doubted(&mut self, section: &'static str, key: &str) -> Option<String> {
        let found = self.found(section, key);
        let host = found.clone().filter(|f| self.doubtful_host(key, f)).map(|f| f.text);
        self.note(section, key, None, found.as_ref());
        host
    }

    /// Any text.
    pub fn text(&mut self, section: &'static str, key: &str) -> Option<String> {
        let found = self.found(section, key);
        self.note(section, key, None, found.as_ref());
        found.map(|found| found.text)
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
        let mut good: HashMap<&str, bool> = HashMap::new();
        for host in raw::items(&text).filter(|h| !h.is_empty()) {
            // What is named a thousand times is doubtful once.
            let is_good = *good.entry(host).or_insert_with(|| {
                let place = found.as_ref().map(|found| found.place.clone());
                place
                    .is_none_or(|place| self.doubtful_host("drones", &Found { text: host.to_owned(), place }))
            });
            if is_good {
                drones.push(host.to_owned());
            }
        }
        // None that is good isn't the same as none that is set.
        let value = Some(drones.join(", ")).filter(|_| !drones.is_empty());
        self.note(SCHEDULER, "drones", value, found.as_ref());
        // Of hosts that differ in capitals only the variables are the same.
        let mut known: HashMap<String, Drone> = HashMap::new();
        let drone = |host: String| match known.get(&host.to_ascii_lowercase()) {
            Some(drone) => Drone { host, ..drone.clone() },
            None => {
                let drone = self.drone(host);
                known.insert(drone.host.to_ascii_lowercase(), drone.clone());
                drone
            }
        };
        drones.into_iter().map(drone).collect()
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
        if used {
            self.findings.retain(|f| f.code != finding.code || f.place != finding.place);
        }
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

    fn command(&mut self, key: &str, default: Option<&str>) -> Vec<String> {
        let found = self.found(RESULTSFS, key);
        let mut words: Vec<String> = default.iter().map(|word| (*word).to_owned()).collect();
        if let Some(found) = &found {
            match split_command(&found.text) {
                Ok(split) if split[0].contains(' ') && is_quoted(&found.text) => {
                    let message = format!("all of `{key}` is in quotes, so it is the name of one program");
                    self.error("bad-command", &found.place, message, "leave the quotes out");
                }
                Ok(split) if split[0].starts_with('-') => {
                    let message = format!("`{key}` begins with an option");
                    self.error(
                        "bad-command",
                        &found.place,
                        message,
                        format!("write `{}` before it", default.unwrap_or("a program")),
                    );
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
        let text = found.is_none().then(|| default.unwrap_or_default().to_owned());
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
    pub fn archiving_is_off(&self) -> bool {
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
}

/// The numbers were checked against limits that fit.
fn narrow<T: TryFrom<u64>>(n: u64) -> T
where
    T::Error: fmt::Debug,
{
    T::try_from(n).expect("the limits of the setting fit its type")
}

/// A blank at the end keeps the slash behind it: without that it is no part of the value.
fn path_text(path: &Path) -> String {
    let text = path.display().to_string();
    if text.ends_with(ini::is_space) { text + "/" } else { text }
}
