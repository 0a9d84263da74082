//! The command line: parses, asks the daemon or does the work, prints, and says with its exit code how it went.
//!
//! Data goes to stdout, talk to stderr. Exit codes and JSON are a contract: `docs/cli.md`.

mod args;
mod bar;
mod export;
mod facts;
mod failure;
mod gc;
mod health;
mod import;
mod journald;
mod mail;
mod metrics;
mod mount;
mod notify;
mod pages;
mod places;
mod print;
mod remote;
mod retention;
mod say;
mod serve;
mod service;
mod verify;

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::ExitCode,
};

use clap::Parser;

use self::{
    args::{Cli, Command, DemoArgs, GenerateArgs, HistoryArgs},
    failure::{Failure, Outcome},
};
use crate::{
    config::{self, Config},
    demo,
};

/// Runs the command that `argv` is. The name by which the program was called counts: `mount.fuse.resultsfs` and `fsck.resultsfs`
/// are `mount` and `verify`.
pub fn run(argv: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(as_command(argv.collect())) {
        Ok(cli) => cli,
        Err(usage) => {
            let _ = usage.print();
            let code = if usage.use_stderr() { failure::usage_code() } else { 0 };
            return ExitCode::from(code);
        }
    };
    start_logging(&cli);
    let quiet = cli.quiet;
    match dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.print(quiet);
            ExitCode::from(failure.exit)
        }
    }
}

fn dispatch(cli: Cli) -> Outcome {
    match &cli.command {
        Command::Mount(args) => mount::mount(&cli, args),
        Command::Umount(args) => mount::umount(&cli, args),
        Command::Serve(args) => serve::serve(&cli, args),
        Command::Status(args) => remote::status(&cli, args.watch),
        Command::Health => health::health(&cli),
        Command::Notify(args) => notify::notify(&cli, args),
        Command::Metrics(args) => metrics::metrics(&cli, args),
        Command::Jobs(args) => remote::jobs(&cli, args.pattern.clone()),
        Command::Explain(args) => remote::explain(&cli, args),
        Command::Offload(args) => remote::offload(&cli, args),
        Command::Complete(args) => remote::complete(&cli, &args.paths),
        Command::Evict(args) => remote::evict(&cli, &args.paths),
        Command::Recall(args) => remote::recall(&cli, &args.paths),
        Command::Adopt(args) => remote::adopt(&cli, args),
        Command::Import(args) => import::import(&cli, args),
        Command::Export(args) => export::export(&cli, args),
        Command::Retire(args) => remote::retire(&cli, args),
        Command::Prune(args) => retention::prune(&cli, args),
        Command::Undelete(args) => retention::undelete(&cli, args),
        Command::Gc(args) => gc::gc(&cli, args),
        Command::Verify(args) => verify::verify(&cli, args),
        Command::Config(args) => show_config(&cli, args.explain),
        Command::Demo(args) => run_demo(&cli, args),
        Command::Notifier { .. } => mount::notifier(),
        Command::GenerateDocs { dir } => pages::generate_docs(dir),
        Command::Generate(args) => generate(args),
        Command::GenerateHistory(args) => generate_history(args),
    }
}

/// Turns the calling conventions of mount(8) and fsck(8) helpers into the command's own.
fn as_command(mut argv: Vec<OsString>) -> Vec<OsString> {
    if let Some(command) = argv.first().and_then(|program| helper_of(program)) {
        argv.insert(1, command.into());
    }
    argv
}

/// The command that a program of this name is.
fn helper_of(program: &OsStr) -> Option<&'static str> {
    match Path::new(program).file_name()?.to_str()? {
        "mount.fuse.resultsfs" | "mount.resultsfs" => Some("mount"),
        "fsck.resultsfs" | "fsck.fuse.resultsfs" => Some("verify"),
        _ => None,
    }
}

fn start_logging(cli: &Cli) {
    use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};
    let level = match (cli.quiet, cli.verbose) {
        (true, _) => "error",
        (_, true) => "resultsfs=debug,info",
        _ => match cli.command {
            Command::Mount(_) | Command::Serve(_) => "info,fuser=warn",
            _ => "warn",
        },
    };
    let filter = EnvFilter::try_from_env("RESULTSFS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    if let Some(journald) = journald::Journald::of_stderr() {
        return tracing_subscriber::registry().with(filter).with(journald).init();
    }
    let format = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A log that can't be written (its disk is full, its pipe closed) must not end the thread that has something to say.
    let format = format.log_internal_errors(false);
    format.with_ansi(false).init();
}

fn load_config(cli: &Cli) -> Result<Config, Failure> {
    Config::load(cli.config.as_deref()).map_err(Failure::from_config)
}

fn show_config(cli: &Cli, explain: bool) -> Outcome {
    let examined = config::examine(cli.config.as_deref(), &config::Surroundings::of_this_machine())
        .map_err(Failure::from_config)?;
    match (cli.json, explain) {
        (true, _) => say::data(format_args!("{}", config::json(&examined))),
        (_, true) => say::data(format_args!("{}", config::text(&examined))),
        _ => say::data(format_args!("{}", config::settings_text(&examined))),
    }
    if !explain && !cli.json {
        examined.findings.iter().for_each(|f| say::spoken(format_args!("{}", config::finding_text(f))));
    }
    Ok(u8::from(examined.config().is_none()))
}

fn run_demo(cli: &Cli, args: &DemoArgs) -> Outcome {
    let exe = std::env::current_exe().map_err(|e| Failure::new(format!("can't find this program: {e}")))?;
    let options = demo::DemoOptions {
        jobs: args.jobs,
        from: args.from.clone(),
        keep: args.keep,
        seed: args.seed,
        exe,
        quiet: cli.quiet,
    };
    demo::run(&options).map_err(|e| Failure::new(format!("{e:#}")))
}

fn generate_history(args: &HistoryArgs) -> Outcome {
    demo::history::fill(&args.store, args.seed, args.first..args.first + args.jobs)
        .map_err(|e| Failure::new(format!("can't fill {}: {e}", args.store.display())))?;
    Ok(0)
}

fn generate(args: &GenerateArgs) -> Outcome {
    for job in args.first..args.first + args.jobs {
        demo::generate::job(&args.dir, args.seed, job, args.scale)
            .map_err(|e| Failure::new(format!("can't write job {job} into {}: {e}", args.dir.display())))?;
    }
    Ok(0)
}
