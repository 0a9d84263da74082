//! `notify`: tells the administrator what needs a person, by mail as Autotest's settings say, and by a command.
//!
//! Run by a timer it tells what `health` finds, once; again when it gets worse, each day while it is critical, and when it is over. Run for a unit of systemd that has failed
//! (`OnFailure=`), it tells that, of one unit at most once an hour. What was told by which way is in `<state_dir>/notified`, or where that can't be written in `/run`; a way that
//! failed is tried again the next time, and only that one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};

use super::{
    args::{Cli, NotifyArgs},
    failure::{Failure, Outcome},
    health::{self, Health, Level},
    load_config,
    mail::{self, Letter},
    say::talk,
};
use crate::{
    clock::{Clock as _, SystemClock},
    config::Config,
    durable,
};

/// What is still critical is told again.
const AGAIN_AFTER_MS: u64 = 24 * 60 * 60 * 1000;
/// A unit that fails again and again.
const UNIT_AGAIN_AFTER_MS: u64 = 60 * 60 * 1000;
/// Lines of a failed unit's log.
const LOG_LINES: &str = "--lines=30";
/// Where what was told is kept while the state directory's disk is what there is to tell of.
const SPARE_DIR: &str = "/run/resultsfs";

/// How somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Way {
    Mail,
    Command,
}

impl Way {
    /// Those that are set.
    fn all(config: &Config) -> Vec<Self> {
        let mail = (!config.mail.grid_admin_email.is_empty()).then_some(Self::Mail);
        let command = (!config.notify_command.is_empty()).then_some(Self::Command);
        mail.into_iter().chain(command).collect()
    }

    /// Whether somebody was told so, and what went wrong.
    fn send(self, config: &Config, level: &str, letter: &Letter) -> (bool, Vec<String>) {
        match self {
            Self::Mail => {
                let errors = mail::send(&config.mail, &config.host_name, letter);
                let is_told = errors.len() < config.mail.grid_admin_email.len();
                (is_told, errors.into_iter().map(|error| format!("mail: {error}")).collect())
            }
            Self::Command => match run(config, level, letter) {
                Ok(()) => (true, vec![]),
                Err(error) => (false, vec![format!("notify_command: {error}")]),
            },
        }
    }
}

/// What was told by one way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    /// When last of problems.
    time_ms: u64,
    /// Codes of problems that last, each with its level's word.
    problems: BTreeMap<String, String>,
    /// Codes of those that are over, which wasn't told yet.
    over: BTreeSet<String>,
    /// When of which unit that has failed.
    units: BTreeMap<String, u64>,
}

/// `notify`.
pub fn notify(cli: &Cli, args: &NotifyArgs) -> Outcome {
    let config = load_config(cli)?;
    if Way::all(&config).is_empty() {
        talk!(
            "resultsfs: nobody is told: neither [NOTIFICATION] grid_admin_email nor [RESULTSFS] notify_command is set"
        );
        return Ok(0);
    }
    let failures = match &args.failed {
        _ if args.test => {
            let test = letter(&config, "a test", "This is how resultsfs tells what needs a person.\n");
            Way::all(&config).into_iter().flat_map(|way| way.send(&config, "TEST", &test).1).collect()
        }
        Some(unit) => tell_failed(&config, unit),
        None => tell_news(&config),
    };
    match failures.is_empty() {
        true => Ok(0),
        false => Err(Failure::new(format!("not everybody could be told: {}", failures.join("; ")))
            .hint("`resultsfs notify --test` tries the settings")),
    }
}

fn tell_news(config: &Config) -> Vec<String> {
    let health = health::look(config);
    let (problems, now_ms) = (codes(&health), SystemClock.now_ms());
    tell(config, |told| {
        if is_news(told, &problems, now_ms) {
            let letter = of_health(config, &health, told);
            *told = Told {
                time_ms: now_ms,
                problems: problems.clone(),
                over: BTreeSet::new(),
                units: std::mem::take(&mut told.units),
            };
            return Some((health.level.word(), letter));
        }
        // What comes again is news.
        let over: Vec<String> =
            told.problems.keys().filter(|code| !problems.contains_key(*code)).cloned().collect();
        for code in over {
            told.problems.remove(&code);
            told.over.insert(code);
        }
        None
    })
}

fn tell_failed(config: &Config, unit: &str) -> Vec<String> {
    let now_ms = SystemClock.now_ms();
    tell(config, |told| {
        told.units.retain(|_, at| now_ms.saturating_sub(*at) < UNIT_AGAIN_AFTER_MS);
        if told.units.contains_key(unit) {
            return None;
        }
        told.units.insert(unit.to_owned(), now_ms);
        Some(("FAILED", of_unit(config, unit)))
    })
}

/// By each way what is news there, as `news` says when it has noted that it was told; and that is kept only if it was.
fn tell(config: &Config, news: impl Fn(&mut Told) -> Option<(&'static str, Letter)>) -> Vec<String> {
    let mut known = Known::read(config);
    let mut failures = Vec::new();
    for way in Way::all(config) {
        let before = known.ways.get(&way).cloned().unwrap_or_default();
        let mut told = before.clone();
        if let Some((level, letter)) = news(&mut told) {
            let (is_told, errors) = way.send(config, level, &letter);
            failures.extend(errors);
            if !is_told {
                continue;
            }
        }
        if told != before {
            known.ways.insert(way, told);
            failures.extend(known.write(config).err().map(|error| format!("it can't be noted: {error}")));
        }
    }
    failures
}

/// What was told, by each way.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    /// Whose: the other place may be another's.
    state_dir: PathBuf,
    /// The higher of two counts.
    count: u64,
    ways: BTreeMap<Way, Told>,
}

impl Known {
    /// What can't be read was told to nobody.
    fn read(config: &Config) -> Self {
        let read = |dir: &Path| -> Option<Self> {
            serde_json::from_slice(&fs::read(dir.join("notified")).ok()?).ok()
        };
        let both = [read(&config.state_dir), read(Path::new(SPARE_DIR))];
        let own = both.into_iter().flatten().filter(|known| known.state_dir == config.state_dir);
        own.max_by_key(|known| known.count).unwrap_or_default()
    }

    fn write(&mut self, config: &Config) -> io::Result<()> {
        self.state_dir.clone_from(&config.state_dir);
        self.count += 1;
        let bytes = serde_json::to_vec(self)?;
        let write = |dir: &Path| {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            durable::write_atomic(&dir.join("notified"), &bytes)
        };
        write(&config.state_dir).or_else(|_| write(Path::new(SPARE_DIR)))
    }
}

fn codes(health: &Health) -> BTreeMap<String, String> {
    let mut levels: BTreeMap<&str, Level> = BTreeMap::new();
    for problem in &health.problems {
        let level = levels.entry(problem.code).or_insert(problem.level);
        *level = problem.level.max(*level);
    }
    levels.into_iter().map(|(code, level)| (code.to_owned(), level.word().to_owned())).collect()
}

/// A problem that is new or another's level, none any more, or a critical one for a day.
fn is_news(told: &Told, now: &BTreeMap<String, String>, now_ms: u64) -> bool {
    let is_new = now.iter().any(|(code, level)| told.problems.get(code) != Some(level));
    let is_over = now.is_empty() && !told.problems.is_empty();
    let is_critical = now.values().any(|level| level == Level::Critical.word());
    is_new || is_over || (is_critical && now_ms.saturating_sub(told.time_ms) >= AGAIN_AFTER_MS)
}

fn letter(config: &Config, about: &str, text: impl Into<String>) -> Letter {
    Letter { subject: format!("resultsfs on {}: {about}", config.host_name), text: text.into() }
}

fn of_health(config: &Config, health: &Health, told: &Told) -> Letter {
    let mut text = String::new();
    for problem in &health.problems {
        let _ = writeln!(text, "{} [{}] {}", problem.level.word(), problem.code, problem.message);
    }
    let over = told.problems.keys().chain(&told.over);
    let over: BTreeSet<_> = over.filter(|code| !health.problems.iter().any(|p| p.code == **code)).collect();
    over.into_iter().for_each(|code| _ = writeln!(text, "no more: [{code}]"));
    if health.problems.is_empty() {
        let _ = writeln!(text, "OK - {}", health.summary);
    }
    let _ = writeln!(text, "\n`resultsfs health` on {} tells how it is now.", config.host_name);
    let names: BTreeSet<&str> = health.problems.iter().map(|problem| problem.code).collect();
    let about = match names.is_empty() {
        true => "all is well again".to_owned(),
        false => {
            format!("{}: {}", health.level.word(), names.into_iter().collect::<Vec<_>>().join(", "))
        }
    };
    letter(config, &about, text)
}

/// What systemd says of it, its last words among that.
fn of_unit(config: &Config, unit: &str) -> Letter {
    let status =
        Command::new("systemctl").args(["status", "--no-pager", "--full", LOG_LINES, "--", unit]).output();
    let said = match &status {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => format!("systemctl can't be asked: {error}\n"),
    };
    letter(config, &format!("{unit} has failed"), said)
}

/// The text on stdin; level, host and subject in the environment. What waits for ever is the timer's to end.
fn run(config: &Config, level: &str, letter: &Letter) -> Result<(), String> {
    let mut child = Command::new(&config.notify_command[0])
        .args(&config.notify_command[1..])
        .env("RESULTSFS_LEVEL", level)
        .env("RESULTSFS_HOST", &config.host_name)
        .env("RESULTSFS_SUBJECT", &letter.subject)
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", config.notify_command[0]))?;
    // It needn't read it.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(letter.text.as_bytes()));
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(format!("{}: {status}", config.notify_command[0])) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(problems: &[(&str, &str)]) -> BTreeMap<String, String> {
        problems.iter().map(|(code, level)| ((*code).to_owned(), (*level).to_owned())).collect()
    }

    #[test]
    fn what_was_told_is_told_again_when_it_is_news() {
        let told = |problems: &[(&str, &str)]| Told {
            time_ms: 1_000,
            problems: levels(problems),
            ..Told::default()
        };
        let soon = |told: &Told, now: &[(&str, &str)]| is_news(told, &levels(now), 2_000);
        assert!(!soon(&told(&[]), &[]));
        assert!(soon(&told(&[]), &[("spool-full", "WARNING")]));
        let warned = told(&[("spool-full", "WARNING")]);
        assert!(!soon(&warned, &[("spool-full", "WARNING")]));
        assert!(soon(&warned, &[("spool-full", "CRITICAL")]));
        assert!(soon(&warned, &[("spool-full", "WARNING"), ("offload-fails", "WARNING")]));
        assert!(soon(&warned, &[]), "it is over");
        let both = told(&[("spool-full", "WARNING"), ("offload-fails", "WARNING")]);
        assert!(!soon(&both, &[("spool-full", "WARNING")]), "the rest is told with the next");
        let critical = [("store-full", "CRITICAL")];
        assert!(!is_news(&told(&critical), &levels(&critical), 1_000 + AGAIN_AFTER_MS - 1));
        assert!(is_news(&told(&critical), &levels(&critical), 1_000 + AGAIN_AFTER_MS));
        let warning = [("store-full", "WARNING")];
        assert!(!is_news(&told(&warning), &levels(&warning), 1_000 + AGAIN_AFTER_MS));
    }
}
