//! `verify`, also as `fsck.resultsfs`: this host through its daemon (or alone, where none runs), the store by its files.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    args::{Cli, VerifyArgs},
    bar::Bar,
    failure::{Failure, Outcome},
    load_config, print, remote,
    say::{say, talk},
};
use crate::{
    clock::{Clock as _, SystemClock},
    config::Config,
    control::{self, ControlError, Request, StoreCheck},
    ids::RelPath,
    journal::{self, Journal},
    server,
    spool::{Spool, activity::Activity},
    store::{StoreError, StoreOptions},
    verify::{
        self, Report, VerifyOptions, json,
        store::{RepairWith, Source, repair_store, verify_store},
    },
};

/// fsck(8): it could not be checked.
const COULD_NOT: u8 = 8;
/// fsck(8): the user has had enough.
const CANCELLED: u8 = 32;

/// `verify`. The exit code is fsck(8)'s: a sum of bits.
pub fn verify(cli: &Cli, args: &VerifyArgs) -> Outcome {
    if (args.resume || args.throttle.is_some()) && !args.read_data && !args.repair {
        return Err(Failure::usage("--resume and --throttle are for what reads all data")
            .hint("add --read-data")
            .exit(16));
    }
    let config = load_config(cli).map_err(|f| f.exit(COULD_NOT))?;
    end_when_cancelled(match args.repair {
        true => {
            "what was begun of a repair is finished where the store's daemon does it, and else can be given again"
        }
        false => "of a store, `--resume` goes on where this one was",
    })?;
    let store_here = server::has_store(&config.store_dir);
    let local_here = config.state_dir.join("journal.redb").exists();
    let (local, store) = (!args.store && local_here, !args.local && store_here);
    if !local && !store {
        return Err(Failure::new("there is neither a journal nor a store here to check")
            .hint(format!("looked in {} and {}", config.state_dir.display(), config.store_dir.display()))
            .exit(COULD_NOT));
    }
    let mut code = 0;
    if local {
        code |= check_local(cli, args, &config)?;
    }
    if store {
        code |= check_store(cli, args, &config)?;
    }
    Ok(code)
}

/// A check may end anywhere, and so may a repair.
fn end_when_cancelled(what_then: &'static str) -> Result<(), Failure> {
    let could_not = |e: io::Error| Failure::new(format!("signals: {e}")).exit(COULD_NOT);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(could_not)?;
    let guard = runtime.enter();
    let (int, term) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    drop(guard);
    let (mut int, mut term) = (int.map_err(could_not)?, term.map_err(could_not)?);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
        });
        talk!("\nresultsfs: cancelled; {what_then}");
        std::process::exit(CANCELLED.into());
    });
    Ok(())
}

fn check_local(cli: &Cli, args: &VerifyArgs, config: &Config) -> Outcome {
    let paths = remote::raws(&args.paths)?;
    let mib_per_s = args.throttle.unwrap_or(0);
    let request = Request::Verify { paths, read_data: args.read_data, mib_per_s, repair: args.repair };
    match ask(cli, &config.control_socket(), &request) {
        Err(ControlError::NotRunning { .. }) => check_alone(cli, args, config),
        Err(e) => Err(Failure::from_control(e).exit(COULD_NOT)),
        Ok(code) => Ok(code),
    }
}

/// Shows how far the daemon is, and what it has found.
fn ask(cli: &Cli, socket: &Path, request: &Request) -> Result<u8, ControlError> {
    let bar = Bar::new(cli);
    let asked = control::ask(socket, request, |item| {
        if !bar.tick(&item) {
            bar.clear();
            show(cli, &item);
        }
    });
    bar.clear();
    asked
}

/// Without a daemon the journal is ours for the time.
fn check_alone(cli: &Cli, args: &VerifyArgs, config: &Config) -> Outcome {
    let could_not = |e: &dyn std::fmt::Display| Failure::new(e).exit(COULD_NOT);
    let mut found = Report::default();
    for damage in journal::damage(&config.state_dir).map_err(|e| could_not(&e))? {
        let kept = args.repair.then(|| journal::put_aside(&config.state_dir, &damage));
        let kept = kept.transpose().map_err(|e| could_not(&e))?;
        found.repaired += u64::from(kept.is_some());
        found.find(verify::local::damaged(&damage, kept.as_deref()));
    }
    if found.findings.iter().any(|finding| !finding.is_repaired) {
        // What can't be relied on says nothing of the spool.
        return Ok(show_report(cli, &found, "local"));
    }
    let journal = Journal::open(&config.state_dir, std::sync::Arc::new(crate::clock::SystemClock))
        .map_err(|e| could_not(&e))?;
    let spool = Spool::open(&config.spool_dir).map_err(|e| could_not(&e))?;
    let paths = args.paths.iter().map(|path| tree_path(path)).collect::<Result<Vec<_>, _>>()?;
    let (activity, _touched) = Activity::new();
    let bar = Bar::new(cli);
    let here = verify::local::Here {
        journal: &journal,
        spool: &spool,
        activity: &activity,
        cache_dir: &config.cache_dir(),
    };
    let options = VerifyOptions::of_host(args.read_data, args.throttle.unwrap_or(0));
    found.merge(verify::local::check(&here, &paths, args.repair, &options, &shown_on(&bar)));
    bar.clear();
    Ok(show_report(cli, &found, "local"))
}

/// Progress of a check that this process runs itself, and waits for.
fn shown_on(bar: &Bar) -> impl Fn(verify::Progress) -> bool + Sync {
    |at| {
        bar.show_some(at.done, at.total, at.is_bytes(), at.phase);
        true
    }
}

/// Nothing is mounted, so a path can only be one from the top of the results tree.
fn tree_path(path: &OsStr) -> Result<RelPath, Failure> {
    RelPath::parse(path.as_bytes()).map_err(|e| {
        Failure::usage(format!("{}: {e}", path.to_string_lossy()))
            .hint("no daemon is running: give a path from the top of the results tree")
            .exit(16)
    })
}

/// By whoever has the store open, or else by its files.
fn check_store(cli: &Cli, args: &VerifyArgs, config: &Config) -> Outcome {
    let check = StoreCheck {
        // What isn't read can't be found damaged.
        read_data: args.read_data || args.repair,
        unpack: args.unpack,
        sample: sample(args.sample.as_deref())?,
        resume: args.resume,
        mib_per_s: args.throttle.unwrap_or(0),
    };
    let level = config.compression_level;
    let request =
        if args.repair { Request::RepairStore { check, level } } else { Request::VerifyStore(check) };
    let socket = config.store_dir.join(server::CONTROL_SOCKET);
    let (mut since, mut tries) = (Instant::now(), 0);
    loop {
        // One that its socket starts, or starts again, is asked, and doesn't find the store taken.
        remote::wake_store(config, &socket);
        let asked = Instant::now();
        match ask(cli, &socket, &request) {
            Err(ControlError::NotRunning { .. }) => {}
            // It is just being closed, or repaired.
            Err(ControlError::Broken { .. }) if asked.elapsed() < BRIEF && since.elapsed() < LOCK_WAIT => {
                thread::sleep(ASK_PAUSE);
                continue;
            }
            // A `serve --stdio` ends with its sessions, whoever asks it something. What is found is told at the end only.
            Err(ControlError::Broken { .. }) if asked.elapsed() >= BRIEF && tries < TRIES => {
                (since, tries) = (Instant::now(), tries + 1);
                continue;
            }
            Err(e) => return Err(Failure::from_control(e).exit(COULD_NOT)),
            Ok(code) => return Ok(code),
        }
        match by_its_files(cli, config, check, args.repair) {
            // Somebody has just opened it, or not closed it yet.
            Err(StoreError::Locked(_)) if since.elapsed() < LOCK_WAIT => thread::sleep(LOCK_PAUSE),
            Err(error @ StoreError::Locked(_)) => {
                return Err(Failure::new(error).hint(LOCKED).exit(COULD_NOT));
            }
            Err(error) => return Err(Failure::new(error).exit(COULD_NOT)),
            Ok(report) => {
                if let Some(why) = &report.could_not_run {
                    return Err(Failure::new(why).exit(COULD_NOT));
                }
                return Ok(show_report(cli, &report, "store"));
            }
        }
    }
}

fn by_its_files(cli: &Cli, config: &Config, check: StoreCheck, repair: bool) -> Result<Report, StoreError> {
    let bar = Bar::new(cli);
    let progress = shown_on(&bar);
    let (dir, store) = (&config.store_dir, StoreOptions { clock: Arc::new(SystemClock) });
    let report = match repair {
        true => repair_store(
            dir,
            &check.into(),
            &RepairWith { store, level: config.compression_level },
            &progress,
        ),
        false => verify_store(Source::Closed(dir), &check.into(), &progress),
    };
    bar.clear();
    report
}

/// How often whoever has the store open may end before he has answered.
const TRIES: u32 = 5;
/// How long somebody else may take to open or close the store.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// An answer that breaks off sooner was none.
const BRIEF: Duration = Duration::from_secs(1);
const ASK_PAUSE: Duration = Duration::from_millis(200);

const LOCKED: &str =
    "another command is at work on the store (`import`, a repair); try again when it is through";

/// `N/M`, slices counted from 1; or `day/M`: each day the next one.
fn sample(text: Option<&str>) -> Result<Option<(u32, u32)>, Failure> {
    let Some(text) = text else { return Ok(None) };
    let day = SystemClock.now_ms() / (24 * 60 * 60 * 1000);
    let part = |part: &str, of: u32| match part {
        "day" => Some((day.checked_rem(of.into())? + 1) as u32),
        number => number.parse().ok(),
    };
    let parts = text.split_once('/').and_then(|(n, of)| {
        let of = of.parse().ok()?;
        Some((part(n, of)?, of))
    });
    match parts {
        Some((n, m)) if (1..=m).contains(&n) => Ok(Some((n, m))),
        _ => Err(Failure::usage(format!("--sample {text}: want N/M with 1 ≤ N ≤ M, or day/M")).exit(16)),
    }
}

fn show_report(cli: &Cli, report: &Report, part: &str) -> u8 {
    json::rows(report, part).for_each(|row| show(cli, &row));
    report.exit_code()
}

/// A finding or a summary, as JSON or as text.
fn show(cli: &Cli, item: &Value) {
    if cli.json {
        say!("{item}");
        return;
    }
    let text = |key: &str| item[key].as_str().unwrap_or_default();
    if item["kind"] == "summary" {
        let number = |key: &str| item[key].as_u64().unwrap_or(0);
        let what = if item["part"] == "local" {
            format!("{} units, {} files", number("units"), number("files"))
        } else {
            let others = ["retirements", "prunes", "undeletes", "purges", "reclaims"];
            let commits = number("records").saturating_sub(others.iter().map(|kind| number(kind)).sum());
            let is_told = |kind: &&&str| **kind == "retirements" || number(kind) > 0;
            let others = others.iter().filter(is_told).map(|kind| format!(", {} {kind}", number(kind)));
            let (files, packs) = (number("files"), number("packs"));
            format!("{commits} commits{}, {files} files, {packs} packs", others.collect::<String>())
        };
        let verdict = if let Some(why) = item["could_not_run"].as_str() {
            format!("could not be checked to the end: {why}")
        } else if item["clean"] == true {
            "clean".to_owned()
        } else if number("repaired") > 0 {
            format!("{} findings, {} repaired", number("findings"), number("repaired"))
        } else {
            format!("{} findings", number("findings"))
        };
        say!("{}: {what}, {} read; {verdict}", text("part"), print::bytes(number("bytes_read")));
        for note in item["notes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            say!("    {note}");
        }
        return;
    }
    if item["kind"] == "lost" {
        let number = |key: &str| item[key].as_u64().unwrap_or(0);
        let (from, bytes) = (number("from"), number("bytes"));
        say!("lost: {}, {bytes} bytes from {from} on", text("path"));
        return;
    }
    let repaired = if item["repaired"] == true { "repaired: " } else { "" };
    say!("{repaired}{} [{}] {}", text("severity"), text("code"), text("message"));
    for unit in item["units"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        say!("    unit {unit}");
    }
    for path in item["paths"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        say!("    path {path}");
    }
    if repaired.is_empty() {
        say!("    repair: {}", text("repair"));
    }
}
