//! Commands that the running daemon answers.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStrExt, net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    args::{AdoptArgs, Cli, ExplainArgs, OffloadArgs, RetireArgs},
    bar::{Bar, time_left},
    failure::{Failure, Outcome},
    load_config, places, print, say,
};
use crate::{
    config::Config,
    control::{self, ControlError, RawPath, Request, Told},
    server,
};

/// What `status --watch` says of speed is over this long.
const PACE_OVER: Duration = Duration::from_secs(30);
/// How long the store may take to open: after a power cut it looks at what was written last.
const WAKES_WITHIN: Duration = Duration::from_secs(30);

/// `status`: once, or every second.
pub fn status(cli: &Cli, watch: bool) -> Outcome {
    let mut pace = Pace::default();
    loop {
        let code = ask(cli, &Request::Status, |item| {
            let pace = pace.take(&item, Instant::now());
            print::status(cli.json, &item, pace.as_deref());
        })?;
        if !watch {
            return Ok(code);
        }
        std::thread::sleep(Duration::from_secs(1));
        if !cli.json {
            print::clear_screen();
        }
    }
}

/// How fast the queue goes down, by what earlier looks have seen.
#[derive(Default)]
struct Pace(VecDeque<(Instant, u64)>);

impl Pace {
    /// What to say after another look; nothing after the first.
    fn take(&mut self, status: &Value, now: Instant) -> Option<String> {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let committed = number(&status["offload"]["bytes_committed"]);
        // A daemon that was started anew counts anew.
        if self.0.back().is_some_and(|(_, before)| *before > committed) {
            self.0.clear();
        }
        self.0.push_back((now, committed));
        while self.0.front().is_some_and(|(at, _)| now - *at > PACE_OVER) {
            self.0.pop_front();
        }
        let (from, before) = *self.0.front()?;
        let (took, done) = (now - from, committed - before);
        if took.is_zero() {
            return None;
        }
        let queue = number(&status["queue_bytes"]);
        let committed = (done as f64 / took.as_secs_f64()) as u64;
        let sent = number(&status["sent_bytes_per_s"]);
        let left = match time_left(took, done, done + queue).filter(|_| queue > 0) {
            Some(left) => format!("; {} left", indicatif::HumanDuration(left)),
            None => String::new(),
        };
        Some(format!("{}/s committed, {}/s sent{left}", print::bytes(committed), print::bytes(sent)))
    }
}

/// `jobs [PATTERN]`.
pub fn jobs(cli: &Cli, pattern: Option<String>) -> Outcome {
    ask(cli, &Request::Jobs { pattern }, |item| print::unit_line(cli.json, &item))
}

/// `explain PATH`.
pub fn explain(cli: &Cli, args: &ExplainArgs) -> Outcome {
    let path = raw(&args.path)?;
    let Some(host) = &args.cat else {
        return ask(cli, &Request::Explain { path }, |item| print::explain(cli.json, &item));
    };
    let request = Request::Cat { path, host: host.clone() };
    let config = load_config(cli)?;
    let heard = control::hear(&config.control_socket(), &request, |told| {
        if let Told::Bytes(bytes) = told {
            say::bytes(&bytes);
        }
    });
    heard.map_err(Failure::from_control)
}

/// `offload [PATH…]`.
pub fn offload(cli: &Cli, args: &OffloadArgs) -> Outcome {
    let request = Request::Offload { paths: raws(&args.paths)?, wait: args.wait, timeout_s: args.timeout };
    let bar = Bar::new(cli);
    let asked = ask(cli, &request, |item| {
        if !bar.tick(&item) {
            bar.beside(|| print::progress(cli, &item));
        }
    });
    bar.clear();
    asked
}

/// `complete PATH…`.
pub fn complete(cli: &Cli, paths: &[OsString]) -> Outcome {
    ask(cli, &Request::Complete { paths: raws(paths)? }, |item| print::progress(cli, &item))
}

/// `evict PATH…`.
pub fn evict(cli: &Cli, paths: &[OsString]) -> Outcome {
    ask(cli, &Request::Evict { paths: raws(paths)? }, |item| print::progress(cli, &item))
}

/// `recall PATH…`.
pub fn recall(cli: &Cli, paths: &[OsString]) -> Outcome {
    ask(cli, &Request::Recall { paths: raws(paths)? }, |item| print::progress(cli, &item))
}

/// `retire PATH…`, `retire --before DATE`.
pub fn retire(cli: &Cli, args: &RetireArgs) -> Outcome {
    let before_ms = args.before.as_deref().map(before_ms).transpose()?;
    let request = Request::Retire { paths: raws(&args.paths)?, before_ms, dry_run: args.dry_run };
    ask(cli, &request, |item| print::retirement(cli.json, &item))
}

/// A day's beginning or a time in this machine's time zone, or a time that says its own.
pub fn before_ms(text: &str) -> Result<u64, Failure> {
    let here = jiff::tz::TimeZone::system();
    let local = || here.to_timestamp(text.parse::<jiff::civil::DateTime>().ok()?).ok();
    let time = text.parse::<jiff::Timestamp>().ok().or_else(local);
    let ms = time.and_then(|time| u64::try_from(time.as_millisecond()).ok());
    ms.ok_or_else(|| {
        Failure::usage(format!(
            "{text}: not a date; write 2026-01-31, 2026-01-31T12:00 or 2026-01-31T12:00:00Z"
        ))
    })
}

/// `adopt HOST`: of the store's daemon, which is on this machine or nowhere.
pub fn adopt(cli: &Cli, args: &AdoptArgs) -> Outcome {
    let config = load_config(cli)?;
    let request = Request::Adopt { host: args.host.clone(), dry_run: args.dry_run };
    let socket = config.store_dir.join(server::CONTROL_SOCKET);
    wake_store(&config, &socket);
    match control::ask(&socket, &request, |item| print::adoption(cli.json, &item)) {
        Err(error @ ControlError::NotRunning { .. }) => Err(Failure::new(error)
            .hint("adopt is for the results host, as root or the user of `serve`, while that runs")),
        done => done.map_err(Failure::from_control),
    }
}

/// systemd starts the store's daemon when somebody connects; where no host is left to do that, we do.
pub fn wake_store(config: &Config, control: &Path) {
    let answers = |socket: &Path| UnixStream::connect(socket).is_ok();
    if answers(control) || !answers(&config.serve_socket) {
        return;
    }
    let end = Instant::now() + WAKES_WITHIN;
    while !answers(control) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn ask(cli: &Cli, request: &Request, each: impl FnMut(Value)) -> Outcome {
    let config = load_config(cli)?;
    control::ask(&config.control_socket(), request, each).map_err(Failure::from_control)
}

/// The words that run the store's end on this machine, with this configuration.
pub fn serve_words(config: &Config) -> Result<Vec<String>, Failure> {
    let exe = std::env::current_exe().map_err(|e| Failure::new(format!("can't find this program: {e}")))?;
    let mut words = vec![exe.display().to_string()];
    if let Some(file) = config.files.first() {
        let file = std::path::absolute(file).map_err(Failure::new)?;
        words.extend(["--config".to_owned(), file.display().to_string()]);
    }
    words.extend(["serve", "--stdio"].map(String::from));
    Ok(words)
}

/// Paths as bytes, with what they mean in this working directory. Symbolic links aren't followed: the path may be one.
pub fn raws(paths: &[OsString]) -> Result<Vec<RawPath>, Failure> {
    paths.iter().map(|p| raw(p)).collect()
}

fn raw(path: &OsStr) -> Result<RawPath, Failure> {
    let absolute = places::entry(Path::new(path))
        .map_err(|e| Failure::usage(format!("{}: {e}", path.to_string_lossy())))?;
    Ok(RawPath { given: path.as_bytes().to_vec(), absolute: absolute.into_os_string().as_bytes().to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_last_half_minute() {
        let status = |committed: u64, queue: u64| serde_json::json!({"offload": {"bytes_committed": committed}, "queue_bytes": queue, "sent_bytes_per_s": 1024});
        let (mut pace, began) = (Pace::default(), Instant::now());
        let mut at = |s: u64, committed: u64, queue: u64| {
            pace.take(&status(committed, queue), began + Duration::from_secs(s))
        };
        assert_eq!(at(0, 5 << 20, 50 << 20), None);
        let said = at(10, 25 << 20, 30 << 20).expect("a pace");
        assert_eq!(said, "2.00 MiB/s committed, 1.00 KiB/s sent; 15 seconds left");
        let idle = at(60, 55 << 20, 0);
        assert_eq!(idle, None, "what is older than that says nothing");
        assert_eq!(at(61, 55 << 20, 0).expect("a pace"), "0 B/s committed, 1.00 KiB/s sent");
        assert_eq!(at(62, 7, 0), None, "another daemon");
    }

    #[test]
    fn a_date_is_a_days_beginning_here_or_a_time_that_says_where() {
        let ms = |text: &str| before_ms(text).ok();
        assert_eq!(ms("2026-01-31T12:00:00Z"), Some(1_769_860_800_000));
        assert_eq!(ms("2026-01-31T13:00:00+01:00"), ms("2026-01-31T12:00:00Z"));
        assert_eq!(ms("2026-01-31"), ms("2026-01-31T00:00"));
        for bad in ["", "yesterday", "2026-02-30", "31.1.2026", "1960-01-01T00:00:00Z"] {
            assert_eq!(ms(bad), None, "{bad}");
        }
    }
}
