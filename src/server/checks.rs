//! Checks of a store by whoever has it open: `verify --store` asks on `<store_dir>/control.sock`.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{Arc, Weak},
    thread,
};

use fs_err as fs;
use serde_json::Value;

use crate::{
    control::{Reply, Request},
    store::Store,
    verify::{
        Sample, VerifyOptions, json,
        store::{Source, verify_store},
    },
};

/// Longest request.
const REQUEST_BYTES: u64 = 64 << 10;

/// Answers on `socket` while the store is open, one check at a time, on a thread of its own. The store's lock is held, so that a socket which
/// is there already is a dead process's.
pub fn answer(store: &Arc<Store>, socket: &Path) -> io::Result<()> {
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    let store = Arc::downgrade(store);
    thread::Builder::new().name("store-checks".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let Some(store) = Weak::upgrade(&store) else { return };
            if let Err(e) = one(&store, &stream) {
                tracing::debug!("a check's caller went away: {e}");
            }
        }
    })?;
    Ok(())
}

fn one(store: &Store, stream: &UnixStream) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_BYTES)).read_line(&mut line)?;
    let Ok(Request::VerifyStore { read_data, sample }) = serde_json::from_str(&line) else {
        let message = "this is the store's daemon; it only checks".to_owned();
        return reply(stream, &Reply::Failed { message, hint: None });
    };
    let sample = sample.and_then(|(part, of)| Sample::new(part, of));
    let options = VerifyOptions { read_data, sample };
    let report = verify_store(Source::Open(store), &options, &|_| {});
    for finding in &report.findings {
        item(stream, json::finding(finding))?;
    }
    item(stream, json::summary(&report, "store"))?;
    reply(stream, &Reply::Done { exit: report.exit_code() })
}

fn item(stream: &UnixStream, value: Value) -> io::Result<()> {
    reply(stream, &Reply::Item(value))
}

fn reply(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}
