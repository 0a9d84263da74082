//! global_config.ini with shadow_config.ini on top, as Autotest's `client/shared/settings.py` merges them:
//! still text, nothing checked. Where the files are is here too.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, io,
    io::Read,
    path::{Path, PathBuf},
};

use super::{
    finding::{ConfigError, Finding, Place},
    ini::{self, Ini, Interpolation, RawValue, Section},
};

/// The main file's name.
pub const GLOBAL: &str = "global_config.ini";
/// The name of the file beside it whose values come on top.
pub const SHADOW: &str = "shadow_config.ini";

/// Memory for what the shadow file's values are beyond what it has itself: by interpolation, and by what each section inherits, which of some kilobytes
/// of keys and headers could make gigabytes.
const SHADOW_BYTES: usize = 4 << 20;
/// Of that, for an inherited value beside its text, or for what is said of it if it has none.
const SHADOW_VALUE_BYTES: usize = 512;

/// What a configuration depends on beside its files; a test has its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// `$AUTOTEST_TOP_PATH`, if set and not blank.
    pub top_path: Option<PathBuf>,
    /// `/etc/autotest`.
    pub etc: PathBuf,
    /// `/usr/local/autotest`.
    pub usr_local: PathBuf,
    /// The machine's host name, if the system tells it.
    pub host_name: Option<String>,
}

impl Surroundings {
    /// This process's environment and machine.
    pub fn of_this_machine() -> Self {
        let host_name = fs_err::read_to_string("/proc/sys/kernel/hostname").ok();
        Self {
            top_path: env::var_os("AUTOTEST_TOP_PATH").filter(|p| !p.is_empty()).map(PathBuf::from),
            etc: "/etc/autotest".into(),
            usr_local: "/usr/local/autotest".into(),
            host_name: host_name.map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()),
        }
    }

    /// The main file: the one named, or the first that exists. A directory stands for the `global_config.ini`
    /// in it.
    pub fn find(&self, explicit: Option<&Path>) -> Result<PathBuf, ConfigError> {
        let places = match explicit {
            Some(path) if path.is_dir() => vec![path.join(GLOBAL)],
            Some(path) => vec![path.to_owned()],
            None => {
                let dirs = self.top_path.iter().chain([&self.etc, &self.usr_local]);
                dirs.map(|dir| dir.join(GLOBAL)).collect()
            }
        };
        // Absolute, because daemons change their directory.
        let looked: Vec<_> = places.into_iter().map(|p| std::path::absolute(&p).unwrap_or(p)).collect();
        for path in &looked {
            match fs_err::metadata(path) {
                Ok(_) => return Ok(path.clone()),
                Err(e) if is_absent(&e) => {}
                // Not to be passed over: the next place may hold another configuration.
                Err(source) => return Err(ConfigError::Read { path: path.clone(), source }),
            }
        }
        Err(ConfigError::NotFound { looked })
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The text of both files, merged.
#[derive(Clone, Debug)]
pub struct RawConfig {
    /// The files that were read.
    pub files: Vec<PathBuf>,
    /// Sections by their exact names, keys in lower case.
    pub sections: BTreeMap<String, Section>,
    /// The main file's `[DEFAULT]`.
    pub defaults: Section,
    /// What is wrong so far.
    pub findings: Vec<Finding>,
}

impl RawConfig {
    /// Finds and reads the files.
    pub fn read(explicit: Option<&Path>, surroundings: &Surroundings) -> Result<Self, ConfigError> {
        let path = surroundings.find(explicit)?;
        let global =
            read_bounded(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let global = Ini::parse(&path, &global);
        let shadow_path = path.with_file_name(SHADOW);
        let mut raw = match read_bounded(&shadow_path) {
            Ok(bytes) => Self::merge(global, Some(Ini::parse(&shadow_path, &bytes))),
            Err(e) => {
                let mut raw = Self::merge(global, None);
                if !is_absent(&e) {
                    raw.findings.push(shadow_unread(&e));
                }
                raw
            }
        };
        if explicit.is_none() && surroundings.top_path.is_none() {
            raw.findings.extend(shadow_in_place_of_global(surroundings));
        }
        Ok(raw)
    }

    /// `merge_configs`: each section of the shadow file gives its values, interpolated in the shadow file alone.
    /// Its `[DEFAULT]` counts for its own sections only.
    pub fn merge(global: Ini, shadow: Option<Ini>) -> Self {
        let mut raw = Self {
            files: vec![global.file.to_path_buf()],
            sections: global.sections,
            defaults: global.defaults,
            findings: global.findings,
        };
        if let Some(shadow) = shadow {
            raw.overlay(shadow);
        }
        raw
    }

    fn overlay(&mut self, mut shadow: Ini) {
        self.files.push(shadow.file.to_path_buf());
        self.findings.append(&mut shadow.findings);
        let mut room = SHADOW_BYTES;
        for (section, own) in &shadow.sections {
            if section.eq_ignore_ascii_case("default") && !self.sections.contains_key(section) {
                self.findings.push(default_section(section, own));
                continue;
            }
            let mut values = Section::new();
            let mut keys: BTreeSet<_> = own.keys().chain(shadow.defaults.keys()).collect();
            keys.retain(|key| *key != ini::NAME);
            for key in keys {
                let Some(value) = shadow.raw(section, key) else { continue };
                let lookup = |name: &str| ini::reference(&shadow.sections, &shadow.defaults, section, name);
                let text = ini::interpolate(&value.text, &lookup);
                let grown = match own.contains_key(key) {
                    true => text.as_ref().map_or(0, String::len).saturating_sub(value.text.len()),
                    false => key.len() + text.as_ref().map_or(0, String::len) + SHADOW_VALUE_BYTES,
                };
                let Some(left) = room.checked_sub(grown) else {
                    return self.findings.push(shadow_too_large(value));
                };
                room = left;
                match text {
                    Ok(text) => {
                        values.insert(key.clone(), RawValue { text, place: value.place.clone() });
                    }
                    Err(why) => self.findings.push(shadow_interpolation(section, key, value, &why)),
                }
            }
            self.sections.entry(section.clone()).or_default().append(&mut values);
        }
    }

    /// `config.get`: interpolated, `None` if the section or the key isn't there.
    pub fn get(&self, section: &str, key: &str) -> Result<Option<RawValue>, (Place, Interpolation)> {
        let Some(value) = ini::raw(&self.sections, &self.defaults, section, key) else { return Ok(None) };
        let lookup = |name: &str| ini::reference(&self.sections, &self.defaults, section, name);
        let text = ini::interpolate(&value.text, &lookup).map_err(|why| (value.place.clone(), why))?;
        Ok(Some(RawValue { text, place: value.place.clone() }))
    }

    /// The section's own values, without what it inherits.
    pub fn own(&self, section: &str) -> impl Iterator<Item = (&String, &RawValue)> {
        self.sections.get(section).into_iter().flatten()
    }
}

/// `get_value`'s `type=bool`: only `false` is false.
pub fn truth(text: &str) -> bool {
    !text.trim_matches(ini::is_space).eq_ignore_ascii_case("false")
}

/// `get_value`'s `type=list`.
pub fn items(text: &str) -> impl Iterator<Item = &str> {
    text.trim_matches(ini::is_space).split(',').map(|item| item.trim_matches(ini::is_space))
}

/// `get_value`'s `type=int`, as far as 64 bits go. Python 2 lets blanks follow the sign.
pub fn integer(text: &str) -> Option<i64> {
    let text = text.trim_matches(ini::is_space);
    match text.split_at_checked(1) {
        Some((sign @ ("+" | "-"), digits)) => {
            format!("{sign}{}", digits.trim_matches(ini::is_space)).parse().ok()
        }
        _ => text.parse().ok(),
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs_err::File::open(path)?.take(ini::FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > ini::FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!(
                "{} has more than {} bytes, so it isn't a configuration",
                path.display(),
                ini::FILE_BYTES
            ),
        ));
    }
    Ok(bytes)
}

fn shadow_unread(error: &io::Error) -> Finding {
    Finding::warning(
        "shadow-unread",
        None,
        format!("the shadow file is left out, as Autotest leaves it out: {error}"),
        "let this user read it, or run as the user that Autotest runs as",
    )
}

fn shadow_in_place_of_global(surroundings: &Surroundings) -> Option<Finding> {
    let path = surroundings.etc.join(SHADOW);
    path.exists().then(|| {
        Finding::warning(
            "shadow-in-place-of-global",
            None,
            format!(
                "{} exists, and Autotest then reads it in place of {GLOBAL} instead of on top of it \
                 (client/shared/settings.py, settings_path_system_wide)",
                path.display()
            ),
            "set AUTOTEST_TOP_PATH for Autotest, or remove the file; resultsfs reads it only beside a global_config.ini",
        )
    })
}

fn default_section(section: &str, own: &Section) -> Finding {
    Finding::error(
        "default-section",
        own.values().next().map(|v| v.place.clone()),
        format!("{SHADOW} has a section [{section}], a name on which Autotest stops"),
        "write [DEFAULT], or another name",
    )
}

fn shadow_too_large(value: &RawValue) -> Finding {
    Finding::error(
        "shadow-too-large",
        Some(value.place.clone()),
        format!(
            "what the sections of {SHADOW} inherit and put in takes more than {SHADOW_BYTES} bytes; reading stops here"
        ),
        "move what few sections need from [DEFAULT] to those",
    )
}

fn shadow_interpolation(section: &str, key: &str, value: &RawValue, why: &Interpolation) -> Finding {
    let mend = match why {
        Interpolation::Missing(_) => {
            "set that key in the same section of the shadow file too: values are put in inside one file only"
        }
        _ => mend_interpolation(why),
    };
    Finding::error(
        "interpolation",
        Some(value.place.clone()),
        format!(
            "the value of `{}` in [{}] can't be made out, and Autotest stops: {why}",
            ini::brief(key),
            ini::brief(section)
        ),
        mend,
    )
}

/// What to do about a value that can't be interpolated.
pub fn mend_interpolation(why: &Interpolation) -> &'static str {
    match why {
        Interpolation::Missing(_) => "set that key in the same section or in [DEFAULT]",
        Interpolation::Depth | Interpolation::TooLong => "write the value out",
        Interpolation::Percent => "write `%%` for a percent sign in a value that has `%(name)s` in it",
    }
}
