//! `import DIR`: adopts the results directory of an Autotest that ran without resultsfs.

use super::{
    args::{Cli, ImportArgs},
    bar::Bar,
    failure::{Failure, Outcome},
    load_config, print, remote,
    say::{say, talk},
};
use crate::{
    client::{self, ClientError},
    daemon,
    import::{self, Done, Fate, Finding, ImportError, ImportParts, Progress, Summary, Told},
};

/// Exit code for what was done in part.
const WITH_FINDINGS: u8 = 3;

/// `import`.
pub fn import(cli: &Cli, args: &ImportArgs) -> Outcome {
    let config = load_config(cli)?;
    let target = client::target_of_command(&config, remote::serve_words(&config)?).ok_or_else(|| {
        Failure::new(
            "results_host is localhost or blank, and there is no store here: nothing is copied anywhere",
        )
        .hint("set `results_host` in [RESULTSFS] to the host with the store")
    })?;
    let runtime =
        tokio::runtime::Runtime::new().map_err(|e| Failure::new(format!("can't start the runtime: {e}")))?;
    let rules = daemon::layout_rules(&config);
    let parts =
        ImportParts { dir: args.dir.clone(), config: &config, rules, target, is_dry_run: args.dry_run };
    let bar = Bar::new(cli);
    let done = runtime.block_on(import::run(parts, &mut |told| tell(cli, &bar, told)));
    bar.clear();
    // A read from a dead disk can't be cancelled; nothing that lasts waits for it.
    runtime.shutdown_background();
    let summary = done.map_err(from_import)?;
    print_summary(cli, args.dry_run, &summary);
    Ok(if summary.findings > 0 { WITH_FINDINGS } else { 0 })
}

fn tell(cli: &Cli, bar: &Bar, told: Told) {
    match told {
        Told::Progress(progress) => show(bar, &progress),
        Told::Finding(finding) => bar.beside(|| print_finding(cli, &finding)),
        Told::Unit(done) => bar.beside(|| print_unit(cli, &done)),
    }
}

fn show(bar: &Bar, progress: &Progress) {
    let Progress { units, units_done, bytes_read, bytes_sent } = *progress;
    let pace = bar.pace(bytes_read, units_done, units);
    let (read, sent) = (print::bytes(bytes_read), print::bytes(bytes_sent));
    let message = format!("{units_done} of {units} units, {read} read, {sent} sent, {pace}");
    bar.show(units_done, units, message);
}

fn print_finding(cli: &Cli, finding: &Finding) {
    if cli.json {
        say!("{}", finding.json());
    } else {
        say!("{:12} {}: {}", finding.code, finding.path, finding.message);
    }
}

/// As text only what is a plan, and what isn't in the store: a tree has hundreds of thousands of units.
fn print_unit(cli: &Cli, done: &Done) {
    if cli.json {
        say!("{}", done.json());
    } else if done.fate == Fate::Planned {
        let lost = if done.lost { ", lost" } else { "" };
        say!(
            "{:12} {} ({} in {} entries{lost})",
            "planned",
            done.unit,
            print::bytes(done.bytes),
            done.entries
        );
    }
    done.findings.iter().for_each(|finding| print_finding(cli, finding));
}

fn print_summary(cli: &Cli, is_dry_run: bool, summary: &Summary) {
    if cli.json {
        say!("{}", summary.json());
        return;
    }
    if cli.quiet {
        return;
    }
    let Summary { units, planned, imported, there, skipped, failed, .. } = summary;
    let done = if is_dry_run { format!("{planned} to be read") } else { format!("{imported} imported") };
    talk!("{units} units: {done}, {there} there already, {skipped} skipped, {failed} failed");
    if summary.transfer_failed > 0 {
        talk!("{} of them have Autotest's mark that it failed to copy them", summary.transfer_failed);
    }
    if summary.lost > 0 {
        talk!("{} never reached their end and are marked lost", summary.lost);
    }
    if !is_dry_run {
        talk!(
            "{} imported; {} read, {} sent",
            print::bytes(summary.bytes),
            print::bytes(summary.bytes_read),
            print::bytes(summary.bytes_sent)
        );
    }
}

fn from_import(error: ImportError) -> Failure {
    use crate::journal::JournalError;
    let failure = Failure::new(&error);
    match error {
        ImportError::Ours { .. } => failure.hint("what is in a mount is offloaded by the mount's daemon"),
        ImportError::Client(ClientError::Journal(JournalError::Locked { .. })) => {
            failure.hint("another import runs on this host; there is one at a time")
        }
        ImportError::Client(ClientError::Unreachable(_) | ClientError::NotFollowed(_)) => failure.hint(
            "what was imported so far is in the store; run it again to go on when the store can be reached",
        ),
        ImportError::Client(_) | ImportError::Dir { .. } => failure,
    }
}
