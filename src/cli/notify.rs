//! `notify`: tells the administrator what needs a person, by mail as Autotest's settings say, and by a command.
//!
//! Run by a timer it tells what `health` finds, once; again when it gets worse, each day while it is critical, and when it is over. Run for a unit of systemd that has failed
//! (`OnFailure=`), it tells that. What was told is in `<state_dir>/notified`; what could not be told isn't, and is tried again the next time.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::DirBuilderExt,
    path::Path,
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
/// Lines of a failed unit's log.
const LOG_LINES: &str = "--lines=30";

/// What was told, and when last.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    time_ms: u64,
    /// Codes of problems, each with its level's word.
    problems: BTreeMap<String, String>,
}

/// `notify`.
pub fn notify(cli: &Cli, args: &NotifyArgs) -> Outcome {
    let config = load_config(cli)?;
    if config.mail.grid_admin_email.is_empty() && config.notify_command.is_empty() {
        talk!(
            "resultsfs: nobody is told: neither [NOTIFICATION] grid_admin_email nor [RESULTSFS] notify_command is set"
        );
        return Ok(0);
    }
    if args.test {
        return send(
            &config,
            "TEST",
            &letter(&config, "a test", "This is how resultsfs tells what needs a person."),
        );
    }
    match &args.failed {
        Some(unit) => send(&config, "FAILED", &of_unit(&config, unit)),
        None => tell_news(&config),
    }
}

fn tell_news(config: &Config) -> Outcome {
    let path = config.state_dir.join("notified");
    // What can't be read was told to nobody.
    let told: Told =
        fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let health = health::look(config);
    let now_ms = SystemClock.now_ms();
    let problems = codes(&health);
    if is_news(&told, &problems, now_ms) {
        send(config, health.level.word(), &of_health(config, &health, &told))?;
        keep(&path, &Told { time_ms: now_ms, problems })
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    }
    Ok(0)
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

fn keep(path: &Path, told: &Told) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    durable::write_atomic(path, &serde_json::to_vec(told)?)
}

fn letter(config: &Config, about: &str, text: impl Into<String>) -> Letter {
    Letter { subject: format!("resultsfs on {}: {about}", config.host_name), text: text.into() }
}

fn of_health(config: &Config, health: &Health, told: &Told) -> Letter {
    let mut text = String::new();
    for problem in &health.problems {
        let _ = writeln!(text, "{} [{}] {}", problem.level.word(), problem.code, problem.message);
    }
    let over = told.problems.keys().filter(|code| !health.problems.iter().any(|p| p.code == **code));
    over.for_each(|code| _ = writeln!(text, "no more: [{code}]"));
    if health.problems.is_empty() {
        let _ = writeln!(text, "OK - {}", health.summary);
    }
    let _ = writeln!(text, "\n`resultsfs health` on {} tells how it is now.", config.host_name);
    let mut names: Vec<&str> = health.problems.iter().map(|problem| problem.code).collect();
    names.dedup();
    let about = match names.is_empty() {
        true => "all is well again".to_owned(),
        false => format!("{}: {}", health.level.word(), names.join(", ")),
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

/// By each way that is set. One that fails doesn't keep the others.
fn send(config: &Config, level: &str, letter: &Letter) -> Outcome {
    let mut failures = Vec::new();
    if !config.mail.grid_admin_email.is_empty()
        && let Err(error) = mail::send(&config.mail, &config.host_name, letter)
    {
        failures.push(format!("mail: {error}"));
    }
    if !config.notify_command.is_empty()
        && let Err(error) = run(config, level, letter)
    {
        failures.push(format!("notify_command: {error}"));
    }
    match failures.is_empty() {
        true => Ok(0),
        false => Err(Failure::new(format!("not everybody could be told: {}", failures.join("; ")))
            .hint("`resultsfs notify --test` tries the settings; it is told again the next time")),
    }
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
        let told = |problems: &[(&str, &str)]| Told { time_ms: 1_000, problems: levels(problems) };
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
