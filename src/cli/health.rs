//! `health`: whether a person is needed, in the way of monitoring plugins: a line, and an exit code (0 ok, 1 warning, 2 critical, 3 unknown).

use serde_json::{Value, json};

use super::{
    args::Cli,
    facts::{Facts, Part},
    failure::Outcome,
    load_config,
    say::say,
};
use crate::{
    clock::{Clock as _, SystemClock},
    config::Config,
};

/// Without a connection for longer, somebody should look; and then must.
const DOWN_WARNING_S: u64 = 15 * 60;
const DOWN_CRITICAL_S: u64 = 4 * 60 * 60;
/// Of the spool's disk, beyond the configured high mark.
const FULL_CRITICAL_PERCENT: u64 = 95;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Ok,
    Warning,
    Critical,
    Unknown,
}

impl Level {
    /// As monitoring plugins write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// What needs a person.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    pub level: Level,
    /// Stable, kebab-case, for scripts.
    pub code: &'static str,
    pub message: String,
}

/// How this machine's parts are.
pub struct Health {
    pub level: Level,
    pub problems: Vec<Problem>,
    /// What there is to say where all is well.
    pub summary: String,
}

/// `health`.
pub fn health(cli: &Cli) -> Outcome {
    let config = load_config(cli).map_err(|failure| failure.exit(Level::Unknown as u8))?;
    let health = look(&config);
    show(cli, &health);
    Ok(health.level as u8)
}

/// Asks the daemons.
pub fn look(config: &Config) -> Health {
    let facts = Facts::gather(config);
    let now_ms = SystemClock.now_ms();
    let mut problems = Vec::new();
    match &facts.mount {
        Some(Part::Told(status)) => problems.extend(of_mount(status, now_ms)),
        Some(Part::Silent(why)) => {
            problems.push(problem(Level::Critical, "mount-silent", format!("mount: {why}")))
        }
        Some(Part::Idle) | None => {}
    }
    match &facts.store {
        Some(Part::Told(status)) => problems.extend(of_store(status)),
        Some(Part::Silent(why)) => {
            problems.push(problem(Level::Critical, "store-silent", format!("store: {why}")))
        }
        Some(Part::Idle) | None => {}
    }
    if facts.mount.is_none() && facts.store.is_none() {
        let message = "there is neither a journal nor a store here".to_owned();
        problems.push(problem(Level::Unknown, "nothing-here", message));
    }
    let level = problems.iter().map(|problem| problem.level).max().unwrap_or(Level::Ok);
    Health { level, problems, summary: summary(&facts) }
}

fn problem(level: Level, code: &'static str, message: String) -> Problem {
    Problem { level, code, message }
}

/// What `status` tells.
fn of_mount(status: &Value, now_ms: u64) -> Vec<Problem> {
    let mut found = Vec::new();
    let connection = &status["connection"];
    let down_s = now_ms.saturating_sub(connection["since_ms"].as_u64().unwrap_or(now_ms)) / 1000;
    if let Some(hint) = connection["hint"].as_str().filter(|_| connection["state"] == "down") {
        // It doesn't come up by itself: no time is to be lost.
        found.push(problem(Level::Critical, "needs-person", format!("mount: not connected: {hint}")));
    } else if connection["state"] == "down" && down_s >= DOWN_WARNING_S {
        let level = if down_s >= DOWN_CRITICAL_S { Level::Critical } else { Level::Warning };
        let why = connection["last_error"].as_str().unwrap_or("the reason isn't known");
        found.push(problem(
            level,
            "disconnected",
            format!("mount: not connected for {} min: {why}", down_s / 60),
        ));
    }
    let (used, high) = (number(&status["spool"]["used_percent"]), number(&status["spool"]["high_percent"]));
    if used >= FULL_CRITICAL_PERCENT || used > high {
        let level = if used >= FULL_CRITICAL_PERCENT { Level::Critical } else { Level::Warning };
        found.push(problem(level, "spool-full", format!("mount: {used} % of the spool's disk are used")));
    }
    if let Some(why) = status["spool"]["error"].as_str() {
        let message = format!("mount: the spool's disk can't be written: {why}; jobs get errors");
        found.push(problem(Level::Critical, "spool-failed", message));
    }
    if let Some(why) = status["journal_error"].as_str() {
        let message = format!(
            "mount: {why}; nothing is offloaded until the state directory's disk can be written again"
        );
        found.push(problem(Level::Critical, "journal-failed", message));
    }
    let errors = status["errors"].as_array().map_or(&[][..], Vec::as_slice);
    if let Some(first) = errors.first().and_then(Value::as_str) {
        let message = format!("mount: {} units can't be offloaded, the first: {first}", errors.len());
        found.push(problem(Level::Warning, "offload-fails", message));
    }
    found
}

/// What the store's daemon tells.
fn of_store(status: &Value) -> Vec<Problem> {
    let mut found = Vec::new();
    if status["under_repair"] == true {
        let message = "store: it is under repair, and hosts wait".to_owned();
        found.push(problem(Level::Warning, "store-repair", message));
    }
    if status["can_write"] == false {
        let message = "store: an earlier write failed, nothing is taken in until the daemon is started again"
            .to_owned();
        found.push(problem(Level::Critical, "store-failed", message));
    }
    if status["has_room"] == false {
        let message = "store: its disk is full, and nothing new is taken in".to_owned();
        found.push(problem(Level::Critical, "store-full", message));
    }
    let lost = number(&status["lost_manifests"]);
    if lost > 0 {
        let message =
            format!("store: {lost} committed layers lack something; `resultsfs verify --store` names it");
        found.push(problem(Level::Critical, "store-lost", message));
    }
    found
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// What there is to say where all is well.
fn summary(facts: &Facts) -> String {
    let mut parts = Vec::new();
    if let Some(Part::Told(status)) = &facts.mount {
        let state = status["connection"]["state"].as_str().unwrap_or("unknown");
        let (queue, used) = (number(&status["queue_units"]), number(&status["spool"]["used_percent"]));
        parts.push(format!(
            "mount: connection {state}, {queue} units wait, {used} % of the spool's disk used"
        ));
    }
    match &facts.store {
        Some(Part::Told(status)) => {
            let (records, packs) = (number(&status["records"]), number(&status["packs"]));
            parts.push(format!("store: {records} records, {packs} packs"));
        }
        Some(Part::Idle) => parts.push("store: nobody has it open".to_owned()),
        _ => {}
    }
    parts.join("; ")
}

fn show(cli: &Cli, Health { level, problems, summary }: &Health) {
    if cli.json {
        let problems: Vec<Value> = problems
            .iter()
            .map(|p| json!({"level": p.level.word(), "code": p.code, "message": p.message}))
            .collect();
        say!(
            "{}",
            json!({"v": 1, "kind": "health", "level": level.word(), "summary": summary, "problems": problems})
        );
        return;
    }
    let first =
        problems.iter().max_by_key(|problem| problem.level).map_or(summary, |problem| &problem.message);
    say!("{} - {first}", level.word());
    if problems.len() > 1 {
        problems
            .iter()
            .for_each(|problem| say!("{} [{}] {}", problem.level.word(), problem.code, problem.message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(problems: &[Problem]) -> Vec<(Level, &'static str)> {
        problems.iter().map(|problem| (problem.level, problem.code)).collect()
    }

    #[test]
    fn a_mount_is_judged_by_connection_disk_and_errors() {
        let status = |state: &str, used: u64, errors: &[&str]| {
            json!({"connection": {"state": state, "since_ms": 1_000_000, "last_error": "no route"},
                   "spool": {"used_percent": used, "high_percent": 80}, "errors": errors})
        };
        let at = |seconds: u64| 1_000_000 + seconds * 1000;
        assert_eq!(codes(&of_mount(&status("up", 80, &[]), at(1_000_000))), []);
        assert_eq!(codes(&of_mount(&status("down", 0, &[]), at(DOWN_WARNING_S - 1))), []);
        assert_eq!(
            codes(&of_mount(&status("down", 0, &[]), at(DOWN_WARNING_S))),
            [(Level::Warning, "disconnected")]
        );
        assert_eq!(
            codes(&of_mount(&status("down", 0, &[]), at(DOWN_CRITICAL_S))),
            [(Level::Critical, "disconnected")]
        );
        let mut changed = status("down", 0, &[]);
        changed["connection"]["hint"] = json!("mend it");
        assert_eq!(codes(&of_mount(&changed, at(1_000_000))), [(Level::Critical, "needs-person")]);
        assert_eq!(codes(&of_mount(&status("none", 81, &[]), at(0))), [(Level::Warning, "spool-full")]);
        assert_eq!(
            codes(&of_mount(&status("none", 95, &["1-me: no"]), at(0))),
            [(Level::Critical, "spool-full"), (Level::Warning, "offload-fails")]
        );
    }

    #[test]
    fn a_store_is_judged_by_what_it_can_and_what_it_lost() {
        let status = |can: bool, room: bool, lost: u64| json!({"can_write": can, "has_room": room, "lost_manifests": lost});
        assert_eq!(codes(&of_store(&status(true, true, 0))), []);
        let all = [
            (Level::Critical, "store-failed"),
            (Level::Critical, "store-full"),
            (Level::Critical, "store-lost"),
        ];
        assert_eq!(codes(&of_store(&status(false, false, 2))), all);
    }
}
