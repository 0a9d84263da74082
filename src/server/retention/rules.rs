//! The rule by which jobs are pruned: how old, of whom, how they ended.
//!
//! Ages are counted from the last commit of a job, and from when something of it was read last, by the store's clock.

use crate::{
    control::{OlderThan, Outcome, PruneRules},
    ids::RelPath,
    layout,
};

const DAY_MS: u64 = 86_400_000;

/// One rule, as of one moment.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// What was committed last before this time goes, if it passed; nothing = never.
    passed_before_ms: Option<u64>,
    /// The same, if it failed.
    failed_before_ms: Option<u64>,
    /// What was read since then stays.
    unread_before_ms: Option<u64>,
    owner: Option<String>,
    pattern: Option<String>,
    /// For people.
    pub text: String,
}

/// What a rule says of a job whose outcome isn't known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Stays,
    Goes,
    /// If it ended like this.
    GoesIf(Outcome),
}

impl Rule {
    pub fn of(asked: &PruneRules, now_ms: u64) -> Self {
        let older_than = |days: u32| (now_ms + 1).saturating_sub(u64::from(days) * DAY_MS);
        let kept = |days: u32| (days > 0).then(|| older_than(days));
        let (passed, failed) = match asked.older_than.or(asked.unread_for_days.map(OlderThan::Days)) {
            None => (kept(asked.retention_days), kept(asked.retention_days_failed)),
            Some(OlderThan::Days(days)) => (Some(older_than(days)), Some(older_than(days))),
            Some(OlderThan::Before(ms)) => (Some(ms), Some(ms)),
        };
        let is_asked = |outcome| asked.outcome.is_none_or(|only| only == outcome);
        Self {
            passed_before_ms: passed.filter(|_| is_asked(Outcome::Passed)),
            failed_before_ms: failed.filter(|_| is_asked(Outcome::Failed)),
            unread_before_ms: asked.unread_for_days.map(older_than),
            owner: asked.owner.clone(),
            pattern: asked.pattern.clone(),
            text: text(asked),
        }
    }

    /// Whether nothing can be old enough.
    pub fn is_never(&self) -> bool {
        self.passed_before_ms.is_none() && self.failed_before_ms.is_none()
    }

    /// Of a job, or a task's directory, that was committed last at `latest_ms` and read last at `read_ms`.
    pub fn verdict(&self, job: &RelPath, latest_ms: u64, read_ms: u64) -> Verdict {
        let is_older = |before: Option<u64>| before.is_some_and(|before| latest_ms < before);
        if !self.means(job) || self.unread_before_ms.is_some_and(|before| read_ms >= before) {
            return Verdict::Stays;
        }
        match (is_older(self.passed_before_ms), is_older(self.failed_before_ms)) {
            (false, false) => Verdict::Stays,
            (true, true) => Verdict::Goes,
            (true, false) => Verdict::GoesIf(Outcome::Passed),
            (false, true) => Verdict::GoesIf(Outcome::Failed),
        }
    }

    fn means(&self, job: &RelPath) -> bool {
        let owner = || owner_of(job).unwrap_or_default();
        self.owner.as_ref().is_none_or(|wanted| owner() == wanted.as_bytes())
            && self.pattern.as_ref().is_none_or(|p| layout::pattern::glob(p.as_bytes(), job.as_bytes()))
    }
}

/// Whose job a job dir is; of a task's directory nobody's.
fn owner_of(job: &RelPath) -> Option<&[u8]> {
    let name = job.components().next().filter(|_| job.depth() == 1)?;
    let dash = name.iter().position(|byte| *byte == b'-').filter(|dash| *dash > 0)?;
    name[..dash].iter().all(u8::is_ascii_digit).then(|| &name[dash + 1..])
}

fn text(asked: &PruneRules) -> String {
    let mut text = match asked.older_than {
        Some(OlderThan::Days(days)) => format!("older than {days} days"),
        Some(OlderThan::Before(ms)) => {
            let time = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
            format!("before {}", time.map_or_else(|| ms.to_string(), |time| format!("{time:.0}")))
        }
        None if asked.unread_for_days.is_some() => String::new(),
        None => {
            let days = |days: u32| if days == 0 { "never".to_owned() } else { format!("{days} days") };
            let (passed, failed) = (days(asked.retention_days), days(asked.retention_days_failed));
            format!("retention_days {passed}, retention_days_failed {failed}")
        }
    };
    if let Some(days) = asked.unread_for_days {
        text.push_str(if text.is_empty() { "" } else { ", " });
        text.push_str(&format!("unread for {days} days"));
    }
    text.extend(asked.outcome.map(|outcome| format!(", {}", outcome.name())));
    text.extend(asked.owner.as_ref().map(|owner| format!(", owner {owner}")));
    text.extend(asked.pattern.as_ref().map(|pattern| format!(", matching {pattern}")));
    let end = (0..=text.len().min(crate::limits::TEXT_BYTES)).rfind(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 100 * DAY_MS;

    fn rules(passed: u32, failed: u32) -> PruneRules {
        PruneRules { retention_days: passed, retention_days_failed: failed, ..PruneRules::default() }
    }

    fn verdict(asked: &PruneRules, job: &str, age_days: u64) -> Verdict {
        verdict_read(asked, job, age_days, age_days)
    }

    fn verdict_read(asked: &PruneRules, job: &str, age_days: u64, unread_days: u64) -> Verdict {
        let ago = |days: u64| NOW - days * DAY_MS;
        Rule::of(asked, NOW).verdict(&job.parse().expect("a path"), ago(age_days), ago(unread_days))
    }

    #[test]
    fn failed_jobs_stay_longer_and_zero_is_for_ever() {
        let asked = rules(30, 90);
        let told: Vec<Verdict> = [29, 30, 89, 90].map(|age| verdict(&asked, "7-me", age)).into();
        let if_passed = Verdict::GoesIf(Outcome::Passed);
        assert_eq!(told, [Verdict::Stays, if_passed, if_passed, Verdict::Goes]);
        assert_eq!(verdict(&rules(30, 0), "7-me", 99), if_passed);
        assert_eq!(verdict(&rules(0, 30), "7-me", 99), Verdict::GoesIf(Outcome::Failed));
        assert!(Rule::of(&rules(0, 0), NOW).is_never() && !Rule::of(&rules(0, 1), NOW).is_never());
    }

    #[test]
    fn what_is_asked_takes_the_place_of_what_is_configured() {
        let asked = PruneRules { older_than: Some(OlderThan::Days(10)), ..rules(30, 0) };
        assert_eq!(
            (verdict(&asked, "7-me", 9), verdict(&asked, "7-me", 10)),
            (Verdict::Stays, Verdict::Goes)
        );
        let asked = PruneRules { older_than: Some(OlderThan::Before(NOW - 5)), ..rules(0, 0) };
        assert_eq!((verdict(&asked, "7-me", 0), verdict(&asked, "7-me", 1)), (Verdict::Stays, Verdict::Goes));
        let failed = PruneRules { outcome: Some(Outcome::Failed), ..asked };
        assert_eq!(verdict(&failed, "7-me", 1), Verdict::GoesIf(Outcome::Failed));
        let zero = PruneRules { older_than: Some(OlderThan::Days(0)), ..rules(0, 0) };
        assert_eq!(verdict(&zero, "7-me", 0), Verdict::Goes);
    }

    #[test]
    fn what_was_read_stays() {
        let asked = PruneRules { unread_for_days: Some(10), ..rules(30, 0) };
        let verdicts = [(10, 10), (10, 9), (9, 9), (40, 9), (40, 10)];
        let told = verdicts.map(|(age, unread)| verdict_read(&asked, "7-me", age, unread));
        let (stays, goes) = (Verdict::Stays, Verdict::Goes);
        assert_eq!(told, [goes, stays, stays, stays, goes], "it takes the place of what is configured");
        let asked = PruneRules { older_than: Some(OlderThan::Days(20)), ..asked };
        assert_eq!((verdict(&asked, "7-me", 15), verdict(&asked, "7-me", 20)), (stays, goes));
        assert_eq!(text(&asked), "older than 20 days, unread for 10 days");
        let asked = PruneRules { older_than: None, outcome: Some(Outcome::Failed), ..asked };
        assert_eq!(text(&asked), "unread for 10 days, failed");
        assert_eq!(verdict(&asked, "7-me", 15), Verdict::GoesIf(Outcome::Failed));
    }

    #[test]
    fn owners_and_patterns_narrow_it() {
        let asked = PruneRules { owner: Some("me".into()), ..rules(1, 1) };
        let goes = |asked: &PruneRules, job| verdict(asked, job, 2) == Verdict::Goes;
        assert!(goes(&asked, "7-me") && !goes(&asked, "7-me-too") && !goes(&asked, "hosts/h1/7-me"));
        assert!(!goes(&asked, "default") && !goes(&asked, "x7-me"));
        let asked = PruneRules { pattern: Some("hosts/*/*-verify".into()), ..rules(1, 1) };
        assert!(
            goes(&asked, "hosts/h1/7-verify") && !goes(&asked, "hosts/h1/7-repair") && !goes(&asked, "7-me")
        );
    }

    #[test]
    fn a_rule_is_told_within_a_records_bound() {
        let asked = PruneRules {
            owner: Some("ö".repeat(300)),
            outcome: Some(Outcome::Failed),
            older_than: Some(OlderThan::Days(3)),
            ..rules(1, 1)
        };
        let text = text(&asked);
        assert!(text.starts_with("older than 3 days, failed, owner ö") && text.len() <= 255, "{text}");
        assert_eq!(super::text(&rules(30, 0)), "retention_days 30 days, retention_days_failed never");
    }
}
