//! `gc`: by whoever has the store open, or else by itself, under the store's lock.

use std::sync::Arc;

use serde_json::Value;

use super::{
    args::{Cli, GcArgs},
    bar::Bar,
    failure::{Failure, Outcome},
    load_config, print, remote,
    say::say,
};
use crate::{
    clock::SystemClock,
    config::Config,
    control::{self, ControlError, Request},
    server,
    store::{StoreOptions, gc::GcOptions},
};

/// `gc`.
pub fn gc(cli: &Cli, args: &GcArgs) -> Outcome {
    let config = load_config(cli)?;
    let (dry_run, level) = (args.dry_run, config.compression_level);
    let socket = config.store_dir.join(server::CONTROL_SOCKET);
    remote::wake_store(&config, &socket);
    let bar = Bar::new(cli);
    let done = control::ask(&socket, &Request::Gc { dry_run, level }, |item| show(cli, &bar, &item));
    let done = match done {
        Err(ControlError::NotRunning { .. }) => {
            alone(&config, GcOptions { level, dry_run }, |item| show(cli, &bar, &item))
        }
        done => done.map_err(Failure::from_control),
    };
    bar.clear();
    done
}

/// Nobody has the store open, so it is ours for the time.
fn alone(config: &Config, options: GcOptions, each: impl Fn(Value)) -> Outcome {
    let dir = &config.store_dir;
    if !dir.join("store").exists() {
        return Err(Failure::new(format!("there is no store in {}", dir.display()))
            .hint("gc is for the results host, as root or the user of `serve`"));
    }
    let store = server::open_store(dir, StoreOptions { clock: Arc::new(SystemClock) })
        .map_err(|e| Failure::new(format!("can't open the store: {e}")))?;
    let on_disk = store.on_disk().expect("what was opened is on a disk");
    server::collect(on_disk, &options, |item| {
        each(item);
        true
    })
    .map_err(Failure::new)
}

fn show(cli: &Cli, bar: &Bar, item: &Value) {
    let number = |key: &str| item[key].as_u64().unwrap_or(0);
    let text = |key: &str| item[key].as_str().unwrap_or_default();
    let size = |key: &str| print::bytes(number(key));
    match text("kind") {
        "progress" => {
            bar.show(number("done"), number("total"), text("phase").to_owned());
        }
        _ if cli.json => say!("{item}"),
        _ => bar.beside(|| match text("kind") {
            "gc-pack" => say!(
                "{:8} pack {:08x}  ({} of {} needed, {} of {} objects)",
                text("action"),
                number("pack"),
                size("live_bytes"),
                size("bytes"),
                number("live_objects"),
                number("objects")
            ),
            "gc-plan" => {
                say!(
                    "plan     {} packs go whole, {} are rewritten: {} copied, {} freed",
                    number("drop_packs"),
                    number("rewrite_packs"),
                    size("copy_bytes"),
                    size("free_bytes")
                );
                say!(
                    "         {} packs stay ({}, {} of it not needed), {} are too young to be looked at, {} uploads are under way",
                    number("kept_packs"),
                    size("kept_bytes"),
                    size("kept_dead_bytes"),
                    number("recent_packs"),
                    number("uploads")
                );
            }
            "gc" => say!(
                "{:8} {} packs are gone: {} freed, {} copied",
                text("result"),
                number("packs"),
                size("freed_bytes"),
                size("copied_bytes")
            ),
            _ => {
                say!("{} [{}] {}", text("severity"), text("code"), text("message"));
                say!("    repair: {}", text("repair"));
            }
        }),
    }
}
