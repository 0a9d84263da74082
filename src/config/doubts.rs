//! What settings say together, and what the files have that nobody reads: found after every key was read.

use std::collections::{HashMap, HashSet};

use super::{
    Config, ResultsHost, SECTIONS,
    check::{RESULTSFS, Reader, SCHEDULER, Setting, Source},
    finding::Finding,
    names::is_localhost,
    words::nearest,
};

/// Ends of the names of SCHEDULER's special variables; what is before is a host.
const SPECIAL: [&str; 4] = ["_username", "_disabled", "_max_processes", "_users"];
/// Longest path of a Unix socket: sun_path less its NUL.
const SOCKET_BYTES: usize = 107;
impl Reader<'_> {
    /// What several settings say together.
    pub fn directories(&mut self, config: &Config) {
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
    pub fn copies_too(&mut self, config: &Config) {
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
            "Autotest copies finished jobs to {value} too: nothing is stored twice, but it takes its time, and copies into a mount there can hide the last lines of jobs"
        );
        let mend = format!("set `results_host: localhost` here, and `results_host: {value}` in [RESULTSFS]");
        self.findings.push(Finding::warning("autotest-copies-too", Some(place.clone()), message, mend));
    }

    /// Failed jobs are looked into longest, and go first.
    pub fn retention(&mut self, config: &Config) {
        let (passed, failed) = (config.retention_days, config.retention_days_failed);
        if failed == 0 || passed != 0 && failed >= passed {
            return;
        }
        let key = "retention_days_failed";
        let setting = self.settings.iter().find(|s| s.section == RESULTSFS && s.key == key);
        let Some(Setting { source: Source::File(place), .. }) = setting else { return };
        let passed = if passed == 0 { "for ever".to_owned() } else { format!("{passed} days") };
        let message = format!("failed jobs are kept {failed} days, passed ones {passed}");
        let mend = "make it at least `retention_days`, or 0 for ever, unless that is meant";
        self.findings.push(Finding::warning("retention-order", Some(place.clone()), message, mend));
    }

    fn keys_of(&self, section: &str) -> Vec<String> {
        let keys = self.settings.iter().filter(|s| s.section == section);
        keys.map(|s| s.key.clone()).filter(|k| !SPECIAL.iter().any(|s| k.ends_with(s))).collect()
    }

    /// Keys of `[RESULTSFS]` that mean nothing, and keys of SCHEDULER that are nearly one that does.
    pub fn unknown_keys(&mut self) {
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
    pub fn unknown_hosts(&mut self, config: &Config) {
        let mut hosts: Vec<String> = config.drones.iter().map(|d| d.host.to_ascii_lowercase()).collect();
        let named = self.settings.iter().filter(|s| s.key == "results_host" || s.key == "archive_host");
        hosts.extend(named.map(|s| s.value.to_ascii_lowercase()).chain(["localhost".to_owned()]));
        let names: HashSet<&str> = hosts.iter().map(String::as_str).collect();
        let mut shortened: HashMap<Option<&str>, &str> = HashMap::new();
        for host in &hosts {
            shortened.entry(host.split('.').next()).or_insert(host);
        }
        for (key, value) in self.raw.own(SCHEDULER) {
            if let Some(host) = SPECIAL[..2].iter().find_map(|s| key.strip_suffix(s))
                && !names.contains(host)
            {
                let near = shortened.get(&host.split('.').next());
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
    pub fn section_names(&mut self) {
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
