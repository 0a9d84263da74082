//! `prune` and `undelete`: of whoever has the store open, or, where nobody has, of the store itself.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::PathBuf, sync::Arc};

use serde_json::Value;

use super::{
    args::{Cli, PruneArgs, UndeleteArgs},
    failure::{Failure, Outcome},
    load_config, places, print, remote,
};
use crate::{
    clock::SystemClock,
    config::Config,
    control::{self, ControlError, OlderThan, PruneRules, Request},
    ids::RelPath,
    offload::OwnerNames,
    server::{
        self,
        retention::{self, Ended, Tell},
    },
    store::{Store, StoreError, StoreOptions},
};

/// `prune`.
pub fn prune(cli: &Cli, args: &PruneArgs) -> Outcome {
    let config = load_config(cli)?;
    let rules = PruneRules {
        retention_days: config.retention_days,
        retention_days_failed: config.retention_days_failed,
        grace_days: config.prune_grace_days,
        older_than: args.older_than.as_deref().map(older_than).transpose()?,
        unread_for_days: args.unread_for,
        outcome: args.outcome.as_deref().map(|how| match how {
            "failed" => control::Outcome::Failed,
            _ => control::Outcome::Passed,
        }),
        owner: args.owner.clone(),
        pattern: args.pattern.clone(),
        dry_run: args.dry_run,
        yes: args.yes,
    };
    let request = Request::Prune { rules: rules.clone() };
    ask(cli, &config, &request, |store, by, tell| retention::prune(store, &rules, by, tell))
}

/// `undelete PATH…`.
pub fn undelete(cli: &Cli, args: &UndeleteArgs) -> Outcome {
    let config = load_config(cli)?;
    let mountpoint = mountpoint(&config);
    let paths: Vec<RelPath> =
        args.paths.iter().map(|path| tree_path(path, &mountpoint)).collect::<Result<_, _>>()?;
    let bytes = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    let request = Request::Undelete { paths: bytes, dry_run: args.dry_run };
    ask(cli, &config, &request, |store, by, tell| retention::undelete(store, &paths, args.dry_run, by, tell))
}

/// A number of days, or a date.
fn older_than(text: &str) -> Result<OlderThan, Failure> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let days = text.parse().ok().filter(|days| *days <= 366_000).map(OlderThan::Days);
        return days.ok_or_else(|| Failure::usage(format!("{text}: more than 366000 days")));
    }
    remote::before_ms(text).map(OlderThan::Before).map_err(|failure| failure.hint("or a number of days"))
}

/// Where the tree is, or would be, mounted on this machine.
fn mountpoint(config: &Config) -> PathBuf {
    let mut mounted = None;
    let asked = control::ask(&config.control_socket(), &Request::Hello, |item| {
        mounted = item["mountpoint"].as_str().map(PathBuf::from);
    });
    mounted.filter(|_| asked.is_ok()).unwrap_or_else(|| config.mountpoint_default(true))
}

/// A path in the mount, or one from the top of the tree.
fn tree_path(path: &OsStr, mountpoint: &std::path::Path) -> Result<RelPath, Failure> {
    let parse = |bytes: &[u8]| {
        let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
        RelPath::parse(bytes[..end].strip_prefix(b"./").unwrap_or(&bytes[..end]))
    };
    let absolute = places::entry(std::path::Path::new(path));
    let below = absolute.ok().and_then(|path| path.strip_prefix(mountpoint).map(PathBuf::from).ok());
    let parsed = match below {
        Some(below) => parse(below.as_os_str().as_bytes()),
        None => parse(path.as_bytes()),
    };
    parsed.map_err(|e| {
        Failure::usage(format!("{}: {e}", path.to_string_lossy()))
            .hint("give a path in the mount, or one from the top of the results tree")
    })
}

/// Asks whoever has the store open; does it here where nobody has.
fn ask(
    cli: &Cli,
    config: &Config,
    request: &Request,
    alone: impl FnOnce(&Store, &str, Tell<'_>) -> Ended,
) -> Outcome {
    let socket = config.store_dir.join(server::CONTROL_SOCKET);
    remote::wake_store(config, &socket);
    let show = |item: &Value| print::retention(cli.json, item);
    match control::ask(&socket, request, |item| show(&item)) {
        Err(ControlError::NotRunning { .. }) => {}
        done => return done.map_err(Failure::from_control),
    }
    if !config.store_dir.join("store").exists() {
        return Err(Failure::new(format!("there is no store in {}", config.store_dir.display()))
            .hint("this is for the results host, as root or the user of `serve`"));
    }
    let store = Store::open(&config.store_dir, StoreOptions { clock: Arc::new(SystemClock) });
    let store = store.map_err(|error| match error {
        StoreError::Locked(_) => {
            Failure::new(format!("{error}, which doesn't answer on {}", socket.display()))
                .hint("run this as root or as the user of `serve`")
        }
        error => Failure::new(error),
    })?;
    let by = OwnerNames::default();
    let uid = rustix::process::geteuid().as_raw();
    let by = by.user(uid).unwrap_or_else(|| format!("uid {uid}"));
    let ended = alone(&store, &by, &mut |item| {
        show(&item);
        Ok(())
    });
    match ended {
        Ok(Ok(exit)) => Ok(exit),
        Ok(Err(refusal)) => {
            let failure = Failure::new(refusal.message);
            Err(match refusal.hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            })
        }
        Err(error) => Err(Failure::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn an_age_is_a_number_of_days_or_a_date() {
        assert_eq!(older_than("30").ok(), Some(OlderThan::Days(30)));
        assert_eq!(older_than("2026-01-31T12:00:00Z").ok(), Some(OlderThan::Before(1_769_860_800_000)));
        for bad in ["", "-1", "3.5", "4000000", "99999999999999999999", "yesterday"] {
            assert!(older_than(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_is_in_the_mount_or_from_the_top() {
        let tree = |path: &str| tree_path(OsStr::new(path), Path::new("/nowhere/results")).ok();
        let wanted = RelPath::parse("7-me/host1").ok();
        assert_eq!(tree("/nowhere/results/7-me/host1"), wanted);
        assert_eq!((tree("7-me/host1/"), tree("./7-me/host1")), (wanted.clone(), wanted));
        assert_eq!((tree("../7-me"), tree("/etc")), (None, None));
    }
}
