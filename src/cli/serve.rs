//! `serve`: the store's daemon, a session on stdin and stdout, or the line for authorized_keys.

use super::{
    args::{Cli, ServeArgs},
    failure::{Failure, Outcome},
    load_config,
};
use crate::server;

/// `serve`.
pub fn serve(cli: &Cli, args: &ServeArgs) -> Outcome {
    let may_delete = rights(&args.allow)?;
    if let (Some(key_file), Some(drone)) = (&args.print_authorized_key, &args.drone) {
        return print_key(cli, key_file, drone, &args.allow);
    }
    let config = load_config(cli)?;
    let options = server::ServeOptions {
        store_dir: config.store_dir.clone(),
        socket: config.serve_socket.clone(),
        settings: config.fingerprint(),
    };
    let identity = server::Identity { pinned_name: args.drone.clone(), may_delete };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("can't start the runtime: {e}")))?;
    let done = runtime.block_on(async {
        if args.stdio { server::serve_stdio(options, identity).await } else { server::serve(options).await }
    });
    // A blocking read of stdin can't be cancelled; the session is over, so nothing is waited for.
    runtime.shutdown_background();
    done.map(|()| 0).map_err(Failure::new)
}

fn rights(allow: &[String]) -> Result<bool, Failure> {
    for right in allow {
        if !matches!(right.as_str(), "add" | "overlay" | "delete") {
            return Err(
                Failure::usage(format!("unknown right `{right}`")).hint("known are add, overlay, delete")
            );
        }
    }
    Ok(allow.iter().any(|r| r == "delete"))
}

fn print_key(cli: &Cli, key_file: &std::path::Path, drone: &str, allow: &[String]) -> Outcome {
    let exe = std::env::current_exe().map_err(|e| Failure::new(format!("can't find this program: {e}")))?;
    let config = cli.config.as_deref();
    let line = server::print_authorized_key(key_file, drone, allow, &exe, config).map_err(Failure::new)?;
    println!("{line}");
    Ok(0)
}
