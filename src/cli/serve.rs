//! `serve`: the store's daemon, a session on stdin and stdout, or the line for authorized_keys.

use std::{io, path::Path, sync::Arc};

use super::{
    args::{Cli, ServeArgs},
    failure::{Failure, Outcome},
    load_config,
    say::say,
};
use crate::{
    clock::SystemClock,
    daemon,
    server::{self, Identity, ServeError, ServeOptions},
    store::StoreOptions,
    wire::rights::Rights,
};

/// `serve`.
pub fn serve(cli: &Cli, args: &ServeArgs) -> Outcome {
    let rights: Rights = args.allow.parse().map_err(Failure::usage)?;
    if let (Some(key_file), Some(drone)) = (&args.print_authorized_key, &args.drone) {
        return print_key(cli, key_file, drone, rights);
    }
    let config = load_config(cli)?;
    let options = ServeOptions {
        socket: config.serve_socket.clone(),
        settings: config.fingerprint(),
        local_rights: rights,
    };
    let store_dir = config.store_dir.clone();
    let opener = if args.stdio { server::open_store_there } else { server::open_store };
    let open = move || opener(&store_dir, StoreOptions { clock: Arc::new(SystemClock) });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("can't start the runtime: {e}")))?;
    let identity = Identity { pinned_name: args.drone.clone(), rights };
    let done = runtime.block_on(async {
        if args.stdio {
            server::serve_stdio(&open, options, identity).await
        } else {
            server::serve(&open, options).await
        }
    });
    // A blocking read of stdin can't be cancelled; the session is over, so nothing is waited for.
    runtime.shutdown_background();
    done.map(|()| 0).map_err(from_serve)
}

fn from_serve(error: ServeError) -> Failure {
    let failure = Failure::new(&error);
    match &error {
        // Neither 1 nor 2, after which systemd doesn't start it again.
        ServeError::Mended => failure.exit(daemon::TRY_AGAIN),
        ServeError::Served { .. } => failure.hint("one daemon serves a store; nothing more is needed"),
        ServeError::Socket { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            failure.hint(OTHER_USER)
        }
        ServeError::Store(why) if why.contains("Permission denied") => failure.hint(OTHER_USER),
        ServeError::Store(why) if why.contains("Read-only file system") => failure.hint(OTHER_PLACE),
        _ => failure,
    }
}

/// The unit lets it write to the store's usual place only.
const OTHER_PLACE: &str = "under systemd the daemon may write below /var/lib/resultsfs/store only: another store_dir is named in a drop-in, too \
                           (`systemctl edit resultsfs-serve.service`: [Service] ReadWritePaths=DIR), and must be there";

/// The store belongs to one user, and its socket lets in only that one and root.
const OTHER_USER: &str = "the store and its daemon belong to another user: run the daemon as the user that drones log in as (HOST_username), \
                          and give that user the store's directory; see the README";

fn print_key(cli: &Cli, key_file: &Path, drone: &str, rights: Rights) -> Outcome {
    let exe = std::env::current_exe().map_err(|e| Failure::new(format!("can't find this program: {e}")))?;
    let mut command = vec![exe.display().to_string()];
    if let Some(config) = &cli.config {
        // sshd starts it in another directory.
        let config = std::path::absolute(config).map_err(Failure::new)?;
        command.extend(["--config".to_owned(), config.display().to_string()]);
    }
    let line = server::print_authorized_key(key_file, drone, rights, &command).map_err(Failure::new)?;
    say!("{line}");
    Ok(0)
}
