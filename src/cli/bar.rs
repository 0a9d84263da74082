//! Progress bars, for long work: on a terminal, on stderr, and only when it takes longer than a blink.
//!
//! A [`Bar`] that isn't wanted (`--json`, `--quiet`, no terminal) does nothing. Lines that are said while one stands go through [`Bar::beside`], so that they don't
//! tear it.

use std::{
    env,
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{args::Cli, print};

/// Shorter work needs no bar.
const DELAY: Duration = Duration::from_millis(250);
const TICK: Duration = Duration::from_millis(100);

/// A bar, or none.
pub struct Bar {
    bar: ProgressBar,
    began: Instant,
    is_wanted: bool,
}

impl Bar {
    /// Shows nothing before [`DELAY`] is over.
    pub fn new(cli: &Cli) -> Self {
        let is_wanted = !cli.quiet && !cli.json && std::io::stderr().is_terminal();
        let bar = ProgressBar::hidden();
        bar.set_style(style());
        Self { bar, began: Instant::now(), is_wanted }
    }

    /// `done` of `total`, and the caller's words for it.
    pub fn show(&self, done: u64, total: u64, message: String) {
        if !self.is_shown() {
            return;
        }
        if self.bar.is_hidden() {
            self.bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
            self.bar.enable_steady_tick(TICK);
        }
        self.bar.set_length(total.max(done));
        self.bar.set_position(done);
        self.bar.set_message(message);
    }

    /// Of so many bytes, with what else there is to say.
    pub fn show_bytes(&self, done: u64, total: u64, what: impl FnOnce() -> String) {
        if self.is_shown() {
            let (of, pace) = (print::bytes(total.max(done)), self.pace(done, done, total));
            let message = format!("{} of {of}, {}, {pace}", print::bytes(done), what());
            self.show(done, total, message);
        }
    }

    /// Takes a [`control::tick_item`](crate::control::tick_item); whether the item was one.
    pub fn tick(&self, item: &Value) -> bool {
        let Some(tick) = item.get("tick") else { return false };
        let number = |key: &str| tick[key].as_u64().unwrap_or(0);
        let what = tick["what"].as_str().unwrap_or_default();
        self.show_some(number("done"), number("total"), tick["is_bytes"] == true, what);
        true
    }

    /// Of so many bytes, or of so many things that are called `what`.
    pub fn show_some(&self, done: u64, total: u64, is_bytes: bool, what: &str) {
        if is_bytes {
            return self.show_bytes(done, total, || what.to_owned());
        }
        if self.is_shown() {
            let left = time_left(self.began.elapsed(), done, total);
            let left = left.map(|left| format!(", {} left", HumanDuration(left))).unwrap_or_default();
            self.show(done, total, format!("{done} of {} {what}{left}", total.max(done)));
        }
    }

    /// Whether anything is shown by now.
    fn is_shown(&self) -> bool {
        self.is_wanted && self.began.elapsed() >= DELAY
    }

    /// `bytes` since the bar began as a rate, and the time left if `done` of `total` took so long.
    pub fn pace(&self, bytes: u64, done: u64, total: u64) -> String {
        let took = self.began.elapsed();
        let rate = print::bytes((bytes as f64 / took.as_secs_f64().max(0.001)) as u64);
        match time_left(took, done, total) {
            Some(left) => format!("{rate}/s, {} left", HumanDuration(left)),
            None => format!("{rate}/s"),
        }
    }

    /// Says something while the bar stands.
    pub fn beside(&self, say: impl FnOnce()) {
        self.bar.suspend(say);
    }

    /// Takes it away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// How long the rest takes, if it goes on like this. Nothing can be said at the very beginning.
pub fn time_left(took: Duration, done: u64, total: u64) -> Option<Duration> {
    let rest = total.checked_sub(done).filter(|_| done > 0)?;
    let seconds = took.as_secs_f64() * rest as f64 / done as f64;
    Duration::try_from_secs_f64(seconds).ok().map(|left| Duration::from_secs(left.as_secs()))
}

fn style() -> ProgressStyle {
    // indicatif leaves out colours itself where NO_COLOR is set; a bar needs none.
    let template = if env::var_os("NO_COLOR").is_some() { "{bar:30} {msg}" } else { "{bar:30.cyan} {msg}" };
    ProgressStyle::with_template(template).expect("a constant template that a test has tried")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_goes_by_the_time_taken() {
        let s = Duration::from_secs;
        assert_eq!(time_left(s(10), 1, 4), Some(s(30)));
        assert_eq!(time_left(s(10), 4, 4), Some(s(0)));
        assert_eq!(time_left(s(10), 0, 4), None);
        assert_eq!(time_left(s(10), 5, 4), None, "more came than was known");
    }

    #[test]
    fn the_template_is_one() {
        style();
    }
}
