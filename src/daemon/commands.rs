//! Answers the commands that come over the control socket.

use std::{collections::BTreeSet, io, path::Path, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    End, HeldBy, Host,
    answer::{Ended, Output, Refusal},
    export, report,
    retire::Retiring,
    users,
};
use crate::{
    control::{self, PIECE_BYTES, RawPath, Reply, Request},
    fuse::Mounted,
    ids::{RelPath, UnitId},
    journal::State,
    layout::Reason,
    manifest::Body,
    offload::CommandError,
    verify::{self, VerifyOptions},
};

/// Longest request line: a few thousand paths.
const REQUEST_BYTES: u64 = 16 << 20;

/// Most users of a mount that are named.
const USERS_NAMED: usize = 10;

/// Lines of a long answer that wait for the caller to read on.
const LINES_AHEAD: usize = 256;

/// Between two words of how far long work is.
const TICK: Duration = Duration::from_millis(250);

/// How long a close(2) may be on its way to us.
const CLOSE_GRACE: Duration = Duration::from_millis(500);

/// How long the record of an own commit may be on its way to the replica.
const FOLLOW_GRACE: Duration = Duration::from_secs(5);

/// Takes connections until the daemon ends.
pub(super) async fn answer(
    listener: UnixListener,
    host: Arc<Host>,
    mounted: Arc<Mounted>,
    stop: mpsc::Sender<End>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if !control::may_ask(&stream) => {
                let uid = stream.peer_cred().map_or(-1, |peer| i64::from(peer.uid()));
                warn!(uid, "refused a command: only root and the daemon's own user may ask");
                tokio::spawn(async move {
                    Output::new(stream.into_split().1).reply(&control::not_allowed()).await
                });
            }
            Ok((stream, _)) => {
                let commands = Commands { host: host.clone(), mounted: mounted.clone(), stop: stop.clone() };
                tokio::spawn(async move {
                    if let Err(e) = commands.one(stream).await {
                        debug!("a command's caller went away: {e}");
                    }
                });
            }
            Err(e) => {
                warn!("control socket: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

struct Commands {
    host: Arc<Host>,
    mounted: Arc<Mounted>,
    stop: mpsc::Sender<End>,
}

impl Commands {
    async fn one(&self, stream: UnixStream) -> io::Result<()> {
        let (read, write) = stream.into_split();
        let mut output = Output::new(write);
        let mut line = String::new();
        BufReader::new(tokio::io::AsyncReadExt::take(read, REQUEST_BYTES)).read_line(&mut line).await?;
        let Ok(request) = serde_json::from_str::<Request>(&line) else { return Ok(()) };
        let ends = match request {
            Request::Umount { .. } => Some(End::Command),
            Request::HandOver { .. } => Some(End::HandOver),
            _ => None,
        };
        let last = match self.run(request, &mut output).await? {
            Ok(exit) => Reply::Done { exit },
            Err(Refusal { message, hint }) => Reply::Failed { message, hint },
        };
        output.reply(&last).await?;
        if let (Some(end), Reply::Done { .. }) = (ends, &last) {
            let _ = self.stop.send(end).await;
        }
        Ok(())
    }

    async fn run(&self, request: Request, output: &mut Output) -> io::Result<Ended> {
        match request {
            Request::Hello => {
                output.item(report::hello(&self.host)).await?;
                Ok(Ok(0))
            }
            Request::Status => {
                output.item(report::status(&self.host, &self.mounted)).await?;
                Ok(Ok(0))
            }
            Request::Jobs { pattern } => self.jobs(pattern, output).await,
            Request::Explain { path } => self.explain(&path, output).await,
            Request::Cat { path, host } => self.cat(&path, host, output).await,
            Request::Offload { paths, wait, timeout_s } => {
                self.offload(&paths, wait, timeout_s, output).await
            }
            Request::Complete { paths } => self.complete(&paths, output).await,
            Request::Evict { paths } => self.evict(&paths, output).await,
            Request::Recall { paths } => self.recall(&paths, output).await,
            Request::Verify { paths, read_data, mib_per_s, repair } => {
                self.verify(&paths, VerifyOptions::of_host(read_data, mib_per_s), repair, output).await
            }
            Request::Export { paths, incarnation } => {
                let paths = match self.tree_paths(&paths) {
                    Ok(paths) => paths,
                    Err(refusal) => return Ok(Err(refusal)),
                };
                export::export(&self.host, &paths, incarnation, output).await
            }
            Request::Retire { paths, before_ms, dry_run } => {
                self.retire(&paths, before_ms, dry_run, output).await
            }
            Request::StoreStatus
            | Request::VerifyStore(_)
            | Request::RepairStore { .. }
            | Request::Adopt { .. }
            | Request::Prune { .. }
            | Request::Undelete { .. }
            | Request::Gc { .. } => Ok(Err(Refusal::new("this is the mount's daemon, not the store's"))),
            Request::HandOver { program } => Ok(self.hand_over(&program)),
            Request::Umount { lazy, timeout_s } => Ok(self.umount(lazy, timeout_s).await),
        }
    }

    async fn retire(
        &self,
        paths: &[RawPath],
        before_ms: Option<u64>,
        dry_run: bool,
        output: &mut Output,
    ) -> io::Result<Ended> {
        let paths = match self.tree_paths(paths) {
            Ok(paths) => paths,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let retiring = Retiring { host: &self.host, notices: self.mounted.notifier(), dry_run };
        let ended = match before_ms {
            Some(before_ms) => retiring.before(before_ms, output).await?,
            None => retiring.paths(&paths, output).await?,
        };
        Ok(ended)
    }

    /// The place in the tree that a user means: below the mount, or from the tree's top.
    fn tree_path(&self, raw: &RawPath) -> Result<RelPath, Refusal> {
        let bytes = |path: &[u8]| {
            let end = path.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
            let path = &path[..end];
            let path = path.strip_prefix(b"./").unwrap_or(path);
            RelPath::parse(if path == b"." { b"" } else { path })
        };
        use std::os::unix::ffi::OsStrExt;
        let absolute = Path::new(std::ffi::OsStr::from_bytes(&raw.absolute));
        let parsed = match absolute.strip_prefix(&self.host.mountpoint) {
            Ok(below) => bytes(below.as_os_str().as_bytes()),
            Err(_) => bytes(&raw.given),
        };
        parsed.map_err(|e| {
            Refusal::new(format!("{}: {e}", String::from_utf8_lossy(&raw.given)))
                .hint("give a path in the mount, or one from the top of the results tree")
        })
    }

    fn tree_paths(&self, paths: &[RawPath]) -> Result<Vec<RelPath>, Refusal> {
        paths.iter().map(|raw| self.tree_path(raw)).collect()
    }

    /// The own units that paths name: those at or below each, or the one that holds it.
    fn units(&self, paths: &[RawPath]) -> Result<Vec<UnitId>, Refusal> {
        let known = self.host.engine.units();
        let mut named = BTreeSet::new();
        for raw in paths {
            let path = self.tree_path(raw)?;
            let below: Vec<&UnitId> = known.iter().filter(|u| u.root.is_below(&path)).collect();
            if below.is_empty() {
                named.insert(self.host.known_unit_of(&path).ok_or_else(|| {
                    Refusal::new(format!("{path} belongs to no unit on this host"))
                        .hint("`resultsfs jobs` lists the units")
                })?);
            }
            named.extend(below.into_iter().cloned());
        }
        Ok(named.into_iter().collect())
    }

    async fn jobs(&self, pattern: Option<String>, output: &mut Output) -> io::Result<Ended> {
        let (sender, mut lines) = mpsc::channel(LINES_AHEAD);
        let host = self.host.clone();
        let telling = tokio::task::spawn_blocking(move || {
            report::jobs(&host, pattern.as_deref(), &mut |line| sender.blocking_send(line).is_ok());
        });
        while let Some(line) = lines.recv().await {
            output.item(line).await?;
        }
        Ok(telling.await.map(|()| 0).map_err(Refusal::new))
    }

    async fn explain(&self, raw: &RawPath, output: &mut Output) -> io::Result<Ended> {
        let path = match self.tree_path(raw) {
            Ok(path) => path,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let host = self.host.clone();
        match tokio::task::spawn_blocking(move || report::explain(&host, &path)).await {
            Ok(item) => {
                output.item(item).await?;
                Ok(Ok(0))
            }
            Err(e) => Ok(Err(Refusal::new(e))),
        }
    }

    async fn cat(&self, raw: &RawPath, name: String, output: &mut Output) -> io::Result<Ended> {
        let path = match self.tree_path(raw) {
            Ok(path) => path,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let (host, of) = (self.host.clone(), path.clone());
        let entry = match tokio::task::spawn_blocking(move || report::entry_of(&host, &of, &name)).await {
            Ok(Ok(entry)) => entry,
            Ok(Err(why)) => return Ok(Err(Refusal::new(why))),
            Err(e) => return Ok(Err(Refusal::new(e))),
        };
        if let Body::Symlink { target } = &entry.entry.body {
            output.bytes(target).await?;
            return Ok(Ok(0));
        }
        let Some((size, content)) = entry.file else {
            return Ok(Err(Refusal::new(format!("{path} isn't a file there"))));
        };
        for offset in (0..size).step_by(PIECE_BYTES) {
            let fs = self.host.fs.clone();
            let read =
                tokio::task::spawn_blocking(move || fs.read_committed((size, content), offset, PIECE_BYTES));
            match read.await {
                Ok(Ok(bytes)) => output.bytes(&bytes).await?,
                Ok(Err(e)) => return Ok(Err(Refusal::new(format!("{path}: {e}")))),
                Err(e) => return Ok(Err(Refusal::new(e))),
            }
        }
        Ok(Ok(0))
    }

    async fn offload(
        &self,
        paths: &[RawPath],
        wait: bool,
        timeout_s: u64,
        output: &mut Output,
    ) -> io::Result<Ended> {
        let units = match self.units(paths) {
            Ok(units) => units,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if let Err(e) = self.complete_now(&units).await {
            return Ok(Err(Refusal::new(e)));
        }
        if !wait {
            return Ok(Ok(0));
        }
        if self.host.link.is_none() {
            return Ok(Err(Refusal::new("results_host is localhost or blank: nothing is copied anywhere")));
        }
        let left = self.wait(&units, Duration::from_secs(timeout_s), output).await?;
        if left.is_empty() {
            self.all_followed().await;
            return Ok(Ok(0));
        }
        for unit in &left {
            output.item(progress(unit, "waiting", self.host.why(unit))).await?;
        }
        Ok(Err(Refusal::new(format!("{} units are not committed after {timeout_s} s", left.len()))
            .hint("`resultsfs status` shows the connection, `explain PATH` what a unit waits for")))
    }

    /// Waits for commits, and says how far they are.
    async fn wait(&self, units: &[UnitId], bound: Duration, output: &mut Output) -> io::Result<Vec<UnitId>> {
        let engine = &self.host.engine;
        let (began, at_first) = (tokio::time::Instant::now(), engine.status().counters);
        loop {
            let left = engine.wait(units, TICK.min(bound.saturating_sub(began.elapsed()))).await;
            if left.is_empty() || began.elapsed() >= bound {
                return Ok(left);
            }
            let now = engine.status().counters;
            let done = now.layers_committed - at_first.layers_committed + now.layers_unchanged
                - at_first.layers_unchanged;
            let what = format!("units, {} MiB sent", (now.bytes_sent - at_first.bytes_sent) >> 20);
            let tick = control::tick_item(done, done + left.len() as u64, false, &what);
            output.item(tick).await?;
        }
    }

    /// A round of completion without settling. The kernel tells of a close after close(2) has returned, so a unit that only waits for
    /// writers, or in which one was just heard of, is looked at again for a moment: what a script wrote just before it called us counts.
    async fn complete_now(&self, units: &[UnitId]) -> Result<(), CommandError> {
        let end = tokio::time::Instant::now() + CLOSE_GRACE;
        loop {
            let round = self.host.engine.offload_now(units).await?;
            let is_closing =
                |reason: &Reason| matches!(reason, Reason::Writers { .. } | Reason::Settling { .. });
            let closing = round.not_yet.iter().any(|(_, reason)| is_closing(reason));
            if !closing || tokio::time::Instant::now() >= end {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn complete(&self, paths: &[RawPath], output: &mut Output) -> io::Result<Ended> {
        let mut units = Vec::new();
        for raw in paths {
            match self
                .tree_path(raw)
                .map(|path| (self.host.adoptable(&path), self.units(std::slice::from_ref(raw))))
            {
                Ok((Some(unit), _)) => units.push(unit),
                Ok((None, Ok(named))) => units.extend(named),
                Ok((None, Err(refusal))) | Err(refusal) => return Ok(Err(refusal)),
            }
        }
        for unit in units {
            match self.host.engine.complete(&unit).await {
                Ok(()) => output.item(progress(&unit, "complete", None)).await?,
                Err(e) => return Ok(Err(Refusal::new(format!("{unit}: {e}")))),
            }
        }
        Ok(Ok(0))
    }

    async fn evict(&self, paths: &[RawPath], output: &mut Output) -> io::Result<Ended> {
        let units = match self.units(paths) {
            Ok(units) => units,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut exit = 0;
        for unit in units {
            self.followed(&unit).await;
            match self.host.engine.evict(&unit).await {
                Ok(()) => output.item(progress(&unit, "evicted", None)).await?,
                Err(e) => {
                    exit = 3;
                    output.item(progress(&unit, "kept", Some(e.to_string()))).await?;
                }
            }
        }
        Ok(Ok(exit))
    }

    /// The same for all commits: a script that then reads how far the catalog is followed, and waits for that number on another host, finds
    /// there what it has offloaded here.
    async fn all_followed(&self) {
        let end = tokio::time::Instant::now() + FOLLOW_GRACE;
        let committed = self.host.journal.by_state(State::Committed).into_iter().filter_map(|r| r.committed);
        let last = committed.map(|committed| committed.seq).max();
        while last > Some(self.host.shown_seq()) && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A commit's own record comes back a moment after its ack.
    async fn followed(&self, unit: &UnitId) {
        let end = tokio::time::Instant::now() + FOLLOW_GRACE;
        let is_behind = || {
            let committed = self.host.journal.get(unit).is_some_and(|r| r.state == State::Committed);
            committed && !self.host.journal.is_followed(unit)
        };
        while is_behind() && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn recall(&self, paths: &[RawPath], output: &mut Output) -> io::Result<Ended> {
        let units = match self.units(paths) {
            Ok(units) => units,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for unit in units {
            match self.host.engine.recall(&unit).await {
                Ok(()) => output.item(progress(&unit, "local", None)).await?,
                Err(e) => return Ok(Err(Refusal::new(format!("{unit}: {e}")))),
            }
        }
        Ok(Ok(0))
    }

    async fn verify(
        &self,
        paths: &[RawPath],
        options: VerifyOptions,
        repair: bool,
        output: &mut Output,
    ) -> io::Result<Ended> {
        let paths = match self.tree_paths(paths) {
            Ok(paths) => paths,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let host = self.host.clone();
        let (told, at) = watch::channel(None);
        let mut checked = tokio::task::spawn_blocking(move || {
            // An error says that the command has ended, since its caller is gone.
            let tell = |progress| told.send(Some(progress)).is_ok();
            let Host { journal, spool, activity, config, .. } = &*host;
            let here = verify::local::Here { journal, spool, activity, cache_dir: &config.cache_dir() };
            verify::local::check(&here, &paths, repair, &options, &tell)
        });
        let mut report = loop {
            match timeout(TICK, &mut checked).await {
                Ok(Ok(report)) => break report,
                Ok(Err(e)) => return Ok(Err(Refusal::new(e))),
                Err(_) => {
                    let at: Option<verify::Progress> = *at.borrow();
                    if let Some(at) = at {
                        output.item(control::tick_item(at.done, at.total, at.is_bytes(), at.phase)).await?;
                    }
                }
            }
        };
        if repair {
            self.mend(&mut report).await;
        }
        for finding in &report.findings {
            output.item(verify::json::finding(finding)).await?;
        }
        output.item(verify::json::summary(&report, "local")).await?;
        Ok(Ok(report.exit_code()))
    }

    /// Brings back from the store what the spool's disk has spoiled.
    async fn mend(&self, report: &mut verify::Report) {
        let quarantine = super::quarantine_dir(&self.host.config);
        for (unit, path) in std::mem::take(&mut report.rotten) {
            match self.host.engine.mend(&unit, &path, quarantine.clone()).await {
                Ok(kept) => {
                    let Ok(full) = unit.root.append(&path) else { continue };
                    let how = match kept {
                        Some(kept) => {
                            format!(
                                "it is what was committed again; what the spool had is {}",
                                kept.display()
                            )
                        }
                        None => "it is another name of a file that is what was committed again".to_owned(),
                    };
                    report.is_repaired(&unit, &full, &how);
                }
                Err(e) => report.notes.push(format!("not repaired: {unit}: {path}: {e}")),
            }
        }
    }

    /// Who holds the mount up, as far as can be seen.
    fn in_use(&self) -> String {
        let users = users::users(&self.host.mountpoint, USERS_NAMED);
        if users.is_empty() {
            return format!("; {} files are open", self.host.activity.open_handles());
        }
        format!("; in use: {}", users.join(", "))
    }

    fn hand_over(&self, program: &RawPath) -> Ended {
        if self.host.held_by() == HeldBy::Nobody {
            return Err(Refusal::new("nobody keeps this mount, so no other process can take it over")
                .hint("unmount, and mount again"));
        }
        use std::os::unix::ffi::OsStrExt;
        let program = Path::new(std::ffi::OsStr::from_bytes(&program.absolute));
        self.host.holder.ask_for_successor(program);
        Ok(0)
    }

    async fn umount(&self, lazy: bool, timeout_s: u64) -> Ended {
        let end = tokio::time::Instant::now() + Duration::from_secs(timeout_s);
        loop {
            let error = match self.mounted.unmount(lazy) {
                Ok(()) => return Ok(0),
                Err(error) => error,
            };
            if tokio::time::Instant::now() >= end {
                return Err(Refusal::new(format!("{error}{}", self.in_use()))
                    .hint("--lazy detaches all the same, and open files may fail then"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn progress(unit: &UnitId, result: &str, note: Option<String>) -> Value {
    json!({"v": 1, "kind": "progress", "unit": unit.to_string(), "result": result, "note": note})
}
