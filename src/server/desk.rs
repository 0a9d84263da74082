//! What is asked of whoever has the store open, on `<store_dir>/control.sock`: `verify --store` (and its repair), `adopt`, `prune`, `undelete` and `gc`.
//!
//! Only root and the user that the daemon runs as can ask. One thing at a time, on a thread of its own.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
    time::Duration,
};

use fs_err as fs;
use rustix::net::sockopt::socket_peercred;
use serde_json::{Value, json};

use super::{
    CONTROL_SOCKET, Server, adopt,
    adopt::Adopted,
    collect,
    repair::Order,
    retention::{self, Refusal},
    ticks::Ticks,
};
use crate::{
    catalog::Snapshot,
    clock::{Clock, SystemClock},
    control::{self, Reply, Request, StoreCheck},
    ids::RelPath,
    offload::OwnerNames,
    store::{Store, gc::GcOptions},
    verify::{
        Report, json,
        store::{Source, verify_store},
    },
};

/// Who connects and asks nothing must not hold the store open.
const ASKS_WITHIN: Duration = Duration::from_secs(10);
/// Longest request.
const REQUEST_BYTES: u64 = 64 << 10;
/// Exit code for what was done in part.
const WITH_FINDINGS: u8 = 3;

/// Answers while the server lives, if its store is on a disk. The store's lock is held, so that a socket which is there already is a dead
/// process's.
pub(super) fn open(server: &Arc<Server>) {
    let Some(store) = server.store.on_disk() else { return };
    if let Err(e) = listen(server, &store.dir().join(CONTROL_SOCKET)) {
        tracing::warn!("`verify`, `adopt`, `prune`, `undelete` and `gc` can't ask this daemon: {e}");
    }
}

fn listen(server: &Arc<Server>, socket: &Path) -> io::Result<()> {
    let listener = bind(socket)?;
    let server = Arc::downgrade(server);
    let turn = Arc::new(Mutex::new(()));
    thread::Builder::new().name("store-desk".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let Some(server) = Weak::upgrade(&server) else { return };
            // The modes of the socket and of its directory keep the others out: unless somebody has changed them.
            if !control::may_ask(&stream) {
                tracing::warn!("refused a command from {}", asker(&stream));
                // Who has gone already isn't told.
                let _ = reply(&stream, &control::not_allowed());
                continue;
            }
            let turn = Arc::clone(&turn);
            let answer = move || {
                if let Err(e) = one(&server, &turn, &stream) {
                    tracing::debug!("a caller went away: {e}");
                }
            };
            if let Err(e) = thread::Builder::new().name("store-caller".into()).spawn(answer) {
                tracing::warn!("a caller isn't answered: {e}");
            }
        }
    })?;
    Ok(())
}

/// The socket in the place of whatever is there, for root and this user alone.
pub(super) fn bind(socket: &Path) -> io::Result<UnixListener> {
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// What is asked, if it can be understood.
pub(super) fn request(stream: &UnixStream) -> io::Result<Option<Request>> {
    let mut line = String::new();
    stream.set_read_timeout(Some(ASKS_WITHIN))?;
    BufReader::new(stream.take(REQUEST_BYTES)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line).ok())
}

/// What looks or changes takes its turn; how the store is, is told at once.
fn one(server: &Server, turn: &Mutex<()>, stream: &UnixStream) -> io::Result<()> {
    let request = request(stream)?;
    let is_status = matches!(request, Some(Request::StoreStatus));
    let _turn = (!is_status).then(|| turn.lock().unwrap_or_else(PoisonError::into_inner));
    if !is_status && server.stop.is_cancelled() {
        // It is just being closed. Without an answer he asks again, whoever has it then.
        return Ok(());
    }
    match (request, server.store.on_disk()) {
        (Some(Request::VerifyStore(check)), Some(store)) => verify(store, check, stream),
        (Some(Request::RepairStore { check, level }), Some(store)) => {
            repair(server, store, check, level, stream)
        }
        (Some(Request::Gc { dry_run, level }), Some(store)) => {
            reclaim(store, &GcOptions { level, dry_run }, stream)
        }
        (Some(Request::StoreStatus), Some(store)) => {
            item(stream, store_status(store))?;
            reply(stream, &Reply::Done { exit: 0 })
        }
        (Some(Request::Adopt { host, dry_run }), _) => adopt_host(server, &host, dry_run, stream),
        (Some(Request::Prune { rules }), Some(store)) => {
            let ended = retention::prune(store, &rules, &asker(stream), &mut |row| item(stream, row))?;
            end(stream, ended)
        }
        (Some(Request::Undelete { paths, dry_run }), Some(store)) => {
            let paths: Result<Vec<RelPath>, _> = paths.into_iter().map(RelPath::parse).collect();
            let ended = match paths {
                Ok(paths) => {
                    retention::undelete(store, &paths, dry_run, &asker(stream), &mut |row| item(stream, row))?
                }
                Err(error) => Err(Refusal { message: error.to_string(), hint: None }),
            };
            end(stream, ended)
        }
        _ => {
            let message =
                "this is the store's daemon; it checks, adopts, prunes, undeletes and reclaims".to_owned();
            reply(stream, &Reply::Failed { message, hint: None })
        }
    }
}

fn verify(store: &Store, check: StoreCheck, stream: &UnixStream) -> io::Result<()> {
    let report = look(store, check, false, stream);
    tell(&report, stream)
}

/// What can be found without disturbing anybody is found first; only for what is to be mended do the sessions end.
fn repair(
    server: &Server,
    store: &Store,
    check: StoreCheck,
    level: i32,
    stream: &UnixStream,
) -> io::Result<()> {
    let report = look(store, check, true, stream);
    if report.is_clean() || report.could_not_run.is_some() {
        return tell(&report, stream);
    }
    tracing::info!(findings = report.findings.len(), "the store is closed for its repair");
    let check = StoreCheck { resume: true, ..check };
    server.repairs.place(Order { dir: store.dir().to_owned(), check, level, caller: stream.try_clone()? });
    server.stop();
    Ok(())
}

fn look(store: &Store, check: StoreCheck, repairs: bool, stream: &UnixStream) -> Report {
    let ticks = Ticks::new(stream);
    let source = if repairs { Source::ToRepair(store) } else { Source::Open(store) };
    let report =
        verify_store(source, &check.into(), &|at| ticks.tell(at.done, at.total, at.is_bytes(), at.phase));
    let report = report.unwrap_or_else(|error| Report::not_run(error.to_string()));
    // What was lost may have come back by itself, with a later commit that names it.
    if let Err(error) = store.returned() {
        tracing::error!(%error, "what has come back can't be noted");
    }
    report
}

/// A report, and the end.
pub(super) fn tell(report: &Report, stream: &UnixStream) -> io::Result<()> {
    stream.set_write_timeout(None)?;
    for row in json::rows(report, "store") {
        item(stream, row)?;
    }
    reply(stream, &Reply::Done { exit: report.exit_code() })
}

/// Stops when nobody listens any more: with what it has begun, not in the midst of it.
fn reclaim(store: &Store, options: &GcOptions, stream: &UnixStream) -> io::Result<()> {
    match collect(store, options, |row| item(stream, row).is_ok()) {
        Ok(exit) => reply(stream, &Reply::Done { exit }),
        Err(error) => reply(stream, &Reply::Failed { message: error.to_string(), hint: None }),
    }
}

/// The plan, and then, unit by unit, what became of it.
fn adopt_host(server: &Server, host: &str, dry_run: bool, stream: &UnixStream) -> io::Result<()> {
    let planned = match adopt::plan(server, host) {
        Ok(planned) => planned,
        Err(refusal) => {
            let (message, hint) = (refusal.to_string(), Some(refusal.hint().to_owned()));
            return reply(stream, &Reply::Failed { message, hint });
        }
    };
    for snapshot in &planned {
        item(stream, adoption(snapshot, "planned", None, None))?;
    }
    let mut exit = 0;
    let by = asker(stream);
    for snapshot in planned.iter().filter(|_| !dry_run) {
        let (result, seq, note) = match adopt::adopt(server, snapshot, &by) {
            Adopted::At(seq) => ("adopted", Some(seq.0), None),
            Adopted::Not(why) => {
                exit = WITH_FINDINGS;
                ("kept", None, Some(why))
            }
        };
        item(stream, adoption(snapshot, result, seq, note))?;
    }
    reply(stream, &Reply::Done { exit })
}

fn store_status(store: &Store) -> Value {
    let stats = store.stats();
    let condition = store.condition();
    json!({
        "v": 1,
        "kind": "store-status",
        "store": store.uuid().to_string(),
        "seq": store.head().seq.0,
        "packs": stats.packs,
        "pack_bytes": stats.pack_bytes,
        "catalog_bytes": stats.catalog_bytes,
        "objects": stats.objects,
        "records": stats.records,
        "layers": stats.layers,
        "free_bytes": condition.free_bytes,
        "can_write": condition.can_write,
        "has_room": condition.has_room,
        "lost_manifests": condition.lost_manifests,
    })
}

fn end(stream: &UnixStream, ended: Result<u8, Refusal>) -> io::Result<()> {
    match ended {
        Ok(exit) => reply(stream, &Reply::Done { exit }),
        Err(Refusal { message, hint }) => reply(stream, &Reply::Failed { message, hint }),
    }
}

/// The user at the other end.
fn asker(stream: &UnixStream) -> String {
    let uid = socket_peercred(stream).map(|cred| cred.uid.as_raw());
    uid.map_or_else(
        |_| "unknown".to_owned(),
        |uid| OwnerNames::default().user(uid).unwrap_or_else(|| format!("uid {uid}")),
    )
}

fn adoption(snapshot: &Snapshot, result: &str, seq: Option<u64>, note: Option<String>) -> Value {
    json!({
        "v": 1,
        "kind": "adoption",
        "unit": snapshot.unit.to_string(),
        "result": result,
        "host": snapshot.host_name,
        "host_uuid": snapshot.host.to_string(),
        "generation": snapshot.generation.0,
        "seq": seq,
        "manifest": snapshot.manifest.to_string(),
        "time_ms": snapshot.time_ms,
        "age_s": SystemClock.now_ms().saturating_sub(snapshot.time_ms) / 1000,
        "bytes": snapshot.bytes,
        "entries": snapshot.entries,
        "note": note,
    })
}

pub(super) fn item(stream: &UnixStream, value: Value) -> io::Result<()> {
    reply(stream, &Reply::Item(value))
}

pub(super) fn reply(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}
