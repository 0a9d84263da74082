//! What the daemon knows, as JSON objects: `status`, `jobs`, `explain`. The fields are a contract, `docs/cli.md`.

use std::{ops::ControlFlow, os::unix::ffi::OsStrExt};

use serde_json::{Map, Value, json};

use super::{HeldBy, Host, lives};
use crate::{
    clock::{Clock, SystemClock},
    fs::{conflict::conflicts_among, ledger::Keep, union::Candidate},
    fuse::Mounted,
    ids::{RelPath, Seq, UnitId},
    journal::{LayerHead, State, UnitRecord},
    layout::{self, Place},
    manifest::{Body, OmittedKind},
    wire::link::Link,
};

/// Version of the objects.
const VERSION: u32 = 1;
/// Most entries of a list for people.
const LIST_BOUND: usize = 20;

impl Host {
    /// Who keeps the mount if this process dies.
    pub(super) fn held_by(&self) -> HeldBy {
        if self.keep.as_ref().is_some_and(Keep::is_usable) { self.holder.by() } else { HeldBy::Nobody }
    }

    /// Up to which number of the catalog the mount shows what was committed.
    pub(super) fn shown_seq(&self) -> Seq {
        self.shown.upto(self.journal.head().map_or(Seq::default(), |(_, head)| head.seq))
    }

    /// Where a path of the tree belongs.
    pub(super) fn place(&self, path: &RelPath) -> Place {
        let is_dir = self.in_spool(path).map_or_else(|| self.shown_as_dir(path), |meta| meta.is_dir());
        layout::place(path, is_dir, &self.rules, &|job| self.journal.whole_job(job), &|top| {
            self.journal.adopted(top)
        })
    }

    fn in_spool(&self, path: &RelPath) -> Option<std::fs::Metadata> {
        fs_err::symlink_metadata(path.under(self.spool.path())).ok()
    }

    fn shown_as_dir(&self, path: &RelPath) -> bool {
        let resolved = self.view.lookup(path).unwrap_or_default();
        resolved.winner().is_none_or(|c| c.entry.body == Body::Dir)
    }

    /// What a unit waits for, or why it didn't get on.
    pub(super) fn why(&self, unit: &UnitId) -> Option<String> {
        let error = self.engine.last_error(unit).map(|e| e.text);
        let of_life = || self.journal.is_retired(unit).then(|| self.why_still_here(unit));
        error.or_else(of_life).or_else(|| self.engine.why(unit))
    }

    /// Of a unit that was retired while this host had something of it.
    fn why_still_here(&self, unit: &UnitId) -> String {
        let state = self.journal.get(unit).map_or(State::Running, |record| record.state);
        let goes = match state {
            State::Committed | State::Evicted => "what is here goes when no file of it is open",
            State::Running => {
                "what is here is committed, too, when it is complete, and doesn't show; then it goes"
            }
            State::Complete | State::Sealed => {
                "what is here is committed, too, and doesn't show; then it goes"
            }
        };
        format!("of an earlier job of this name, which was retired or pruned: {goes}")
    }

    /// The unit that a path belongs to, if there is anything of it.
    pub(super) fn known_unit_of(&self, path: &RelPath) -> Option<UnitId> {
        self.place(path).unit().filter(|unit| self.is_known(unit))
    }

    /// Whether there is anything of a unit, here or in the catalog.
    fn is_known(&self, unit: &UnitId) -> bool {
        self.journal.get(unit).is_some()
            || !self.journal.shown_layers(unit).is_empty()
            || self.in_spool(&unit.root).is_some()
    }

    /// The unit that an unrecognised directory becomes if `complete` is said of it.
    pub(super) fn adoptable(&self, path: &RelPath) -> Option<UnitId> {
        match self.place(path) {
            Place::Unrecognised { top }
                if top == *path && self.in_spool(path).is_some_and(|m| m.is_dir()) =>
            {
                Some(UnitId::tree(top))
            }
            _ => None,
        }
    }
}

/// Who this is.
pub fn hello(host: &Host) -> Value {
    json!({"v": VERSION, "kind": "hello", "mountpoint": host.mountpoint.display().to_string(), "pid": std::process::id()})
}

/// `status`.
pub fn status(host: &Host, mounted: &Mounted) -> Value {
    let engine = host.engine.status();
    let texts = |list: Vec<String>| list.into_iter().take(LIST_BOUND).collect::<Vec<_>>();
    json!({
        "v": VERSION,
        "kind": "status",
        "host": host.config.host_name,
        "host_uuid": host.journal.host().to_string(),
        "mountpoint": host.mountpoint.display().to_string(),
        "pid": std::process::id(),
        "held_by": host.held_by().word(),
        "takeovers": host.keep.as_ref().map_or(0, Keep::takeovers),
        "data_path": if mounted.is_passthrough() { "passthrough" } else { "ordinary" },
        "connection": connection(host),
        "units": {
            "running": engine.running,
            "complete": engine.complete,
            "sealed": engine.sealed,
            "committed": engine.committed,
            "evicted": engine.evicted,
        },
        "queue_units": engine.queue_units,
        "queue_bytes": engine.queue_bytes,
        "in_transfer_units": engine.in_transfer,
        "awaiting_link_units": engine.awaiting_link,
        "offload": engine.counters,
        "sent_bytes_per_s": engine.sent_bytes_per_s,
        "spool": spool(host),
        "cache": cache(host),
        "journal_can_write": host.journal.failure().is_none(),
        "journal_error": host.journal.failure(),
        "catalog": {"seq": host.shown_seq().0},
        "live": live(host),
        "open_handles": host.activity.open_handles(),
        "unrecognised": texts(unrecognised(host)),
        "warnings": texts(host.config.warnings.iter().map(|w| format!("{}: {w}", w.code)).collect()),
        "errors": texts(engine.errors.iter().map(|e| format!("{}: {}", e.unit, e.text)).collect()),
    })
}

/// What is at the top of the spool and isn't Autotest's.
fn unrecognised(host: &Host) -> Vec<String> {
    let entries = fs_err::read_dir(host.spool.path()).into_iter().flatten().flatten();
    let tops = entries.filter_map(|e| RelPath::parse(e.file_name().as_bytes()).ok());
    let mut names: Vec<String> = tops
        .filter(|top| matches!(host.place(top), Place::Unrecognised { .. }))
        .map(|top| top.to_string())
        .collect();
    names.sort();
    names
}

fn connection(host: &Host) -> Value {
    let Some(link) = &host.link else {
        return json!({"state": "none"});
    };
    let status = link.status();
    json!({
        "state": if status.connected { "up" } else { "down" },
        "target": status.target,
        "store": status.store.as_ref().map(|w| w.store.to_string()),
        "since_ms": status.since_ms,
        "attempts": status.attempts,
        "last_error": status.last_error,
        "hint": status.last_error.as_deref().filter(|_| !status.connected).and_then(mend),
        "bytes_sent": status.bytes_sent,
        "bytes_received": status.bytes_received,
    })
}

/// What a person must do about a connection that doesn't come up by itself.
fn mend(error: &str) -> Option<&'static str> {
    error.contains("Host key verification failed").then_some(
        "the results host's ssh key isn't the one that this host knows. If it was replaced, compare its fingerprint (there: `ssh-keygen -lf \
         /etc/ssh/ssh_host_ed25519_key.pub`), and mend the known_hosts of the user that the mount runs as. Until then nothing is sent and all is kept; \
         after it, it goes on by itself",
    )
}

/// Running units: own ones that others can see, and others' that this host can see.
fn live(host: &Host) -> Value {
    let snapshots = host.journal.snapshots();
    let oldest = snapshots.iter().map(|snapshot| snapshot.time_ms).min();
    json!({
        "every_s": host.config.live_seconds,
        "published": host.engine.published(),
        "remote": snapshots.len(),
        "oldest_age_s": oldest.map(age_s),
    })
}

/// Whole seconds since `time_ms`, by this host's clock; the store's may go a little before.
fn age_s(time_ms: u64) -> u64 {
    SystemClock.now_ms().saturating_sub(time_ms) / 1000
}

/// Since when what is seen of a running unit is as it is.
fn live_json(time_ms: u64) -> Value {
    json!({"time_ms": time_ms, "age_s": age_s(time_ms)})
}

fn spool(host: &Host) -> Value {
    let usage = host.spool.usage().ok();
    let (total, free) = usage.map_or((0, 0), |u| (u.f_blocks * u.f_frsize, u.f_bavail * u.f_frsize));
    let used = host.spool.used().map_or(0, |(used, usable)| used * 100 / usable.max(1));
    let error = host.spool_trouble.get();
    json!({
        "path": host.spool.path().display().to_string(),
        "total_bytes": total,
        "free_bytes": free,
        "used_percent": used,
        "high_percent": host.config.spool_high_percent,
        "can_write": error.is_none(),
        "error": error,
    })
}

fn cache(host: &Host) -> Value {
    let stats = host.cache.stats();
    json!({
        "bytes": stats.disk_bytes,
        "max_bytes": stats.max_bytes,
        "blocks": stats.disk_blocks,
        "fetches": stats.fetches,
        "fetched_bytes": stats.fetched_bytes,
        "failed_fetches": stats.failed_fetches,
        "loads": stats.loads,
    })
}

/// `jobs`: this host's units with their state, then other hosts' layers, told one by one until `tell` has had enough: the catalog may have
/// hundreds of thousands.
pub fn jobs(host: &Host, pattern: Option<&str>, tell: &mut dyn FnMut(Value) -> bool) {
    let wanted = |unit: &UnitId| pattern.is_none_or(|p| layout::pattern::matches(p, &unit.to_string()));
    for unit in host.engine.units().iter().filter(|unit| wanted(unit)) {
        if !tell(own_line(host, unit)) {
            return;
        }
    }
    let mut remote = |unit: UnitId, layers: &[LayerHead]| {
        let foreign = layers.iter().filter(|layer| layer.host != host.journal.host() && wanted(&unit));
        let mut lines = foreign.map(|layer| remote_line(&unit, layer));
        if lines.all(&mut *tell) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let _ = host.journal.visit_shown_layers(&RelPath::ROOT, &mut remote);
}

fn own_line(host: &Host, unit: &UnitId) -> Value {
    let record = host.journal.get(unit);
    let state = record.as_ref().map_or(State::Running, |r| r.state);
    let layer = record.as_ref().and_then(|record| host.journal.layer_of(record));
    json!({
        "v": VERSION,
        "kind": "unit",
        "unit": unit.to_string(),
        "host": host.config.host_name,
        "state": state.name(),
        "generation": record.as_ref().map_or(1, |r| r.generation.0),
        "seq": record.as_ref().and_then(|r| r.committed.as_ref()).map(|c| c.seq.0),
        "partial": record.as_ref().is_some_and(|r| r.partial),
        "lost": record.as_ref().is_some_and(|r| r.lost),
        "bytes": layer.as_ref().map(|l| l.bytes),
        "entries": layer.as_ref().map(|l| l.entries),
        "live": host.engine.published_ms(unit).filter(|_| state == State::Running).map(live_json),
        "note": host.why(unit),
    })
}

pub(super) fn layer_json(layer: &LayerHead) -> Value {
    json!({
        "host": layer.host_name,
        "host_uuid": layer.host.to_string(),
        "generation": layer.generation.0,
        "seq": layer.committed_seq().map(|seq| seq.0),
        "live": layer.is_live().then(|| live_json(layer.time_ms)),
        "adopted_by": layer.adopted_by,
        "manifest": layer.manifest.to_string(),
        "time_ms": layer.time_ms,
        "bytes": layer.bytes,
        "entries": layer.entries,
        "lost": layer.lost,
    })
}

fn remote_line(unit: &UnitId, layer: &LayerHead) -> Value {
    json!({
        "v": VERSION,
        "kind": "unit",
        "unit": unit.to_string(),
        "host": layer.host_name,
        "state": if layer.is_live() { "live" } else { "remote" },
        "generation": layer.generation.0,
        "seq": layer.committed_seq().map(|seq| seq.0),
        "live": layer.is_live().then(|| live_json(layer.time_ms)),
        "note": layer.is_live().then(|| format!("running there; as of {} s ago", age_s(layer.time_ms))),
        "lost": layer.lost,
        "bytes": layer.bytes,
        "entries": layer.entries,
    })
}

/// `explain PATH`. Waits for the network where manifests aren't here and the store answers.
pub fn explain(host: &Host, path: &RelPath) -> Value {
    let place = host.place(path);
    if let Err(need) = host.view.lookup(path)
        && host.link.as_ref().is_some_and(|link| link.status().connected)
        && let Err(e) = host.view.fetch(&need)
    {
        tracing::info!("{path}: {e}");
    }
    let mut out = Map::new();
    out.insert("v".into(), json!(VERSION));
    out.insert("kind".into(), json!("path"));
    out.insert("path".into(), json!(path.to_string()));
    out.insert("place".into(), json!(place_text(&place)));
    out.insert("in_spool".into(), json!(host.in_spool(path).is_some()));
    explain_shown(host, path, &mut out);
    explain_conflict(host, path, &mut out);
    let hidden_upto = host.journal.hidden_upto(path);
    if hidden_upto.0 > 0 {
        out.insert("deleted_here_upto_seq".into(), json!(hidden_upto.0));
    }
    if let Some(unit) = place.unit() {
        explain_unit(host, &unit, &mut out);
    }
    Value::Object(out)
}

fn place_text(place: &Place) -> String {
    match place {
        Place::Root => "the top of the results tree".into(),
        Place::LocalOnly => "local only: never offloaded".into(),
        Place::Unrecognised { top } => {
            format!("{top} isn't Autotest's: it stays on this host until `resultsfs complete {top}`")
        }
        Place::Container { .. } => "loose files of a directory of units".into(),
        Place::Unit { .. } => "a unit, or in one".into(),
    }
}

fn explain_shown(host: &Host, path: &RelPath, out: &mut Map<String, Value>) {
    let resolved = match host.view.lookup(path) {
        Ok(resolved) => resolved,
        Err(need) => {
            out.insert(
                "committed_entries".into(),
                json!(format!("{} manifests aren't here yet", need.manifests.len())),
            );
            return;
        }
    };
    let candidates = [("own_entry", resolved.own), ("other_hosts_entry", resolved.foreign)];
    for (key, candidate) in candidates {
        if let Some(candidate) = candidate.filter(|c| !c.synthetic) {
            out.insert(key.into(), candidate_json(&candidate));
        }
    }
}

/// Whether somebody's change of this path was overtaken unseen, and how to get at it.
fn explain_conflict(host: &Host, path: &RelPath, out: &mut Map<String, Value>) {
    let Ok(entries) = host.view.entries_at(path) else { return };
    let conflicts = conflicts_among(&entries);
    out.insert("conflict".into(), json!(!conflicts.is_empty()));
    let lost = conflicts.iter().map(|conflict| {
        let mut lost = candidate_json(&conflict.lost);
        let layers = host.journal.layers(&conflict.lost.unit);
        let of_host = layers.into_iter().find(|layer| layer.host == conflict.lost.host);
        let name = of_host.map_or_else(|| conflict.lost.host.to_string(), |layer| layer.host_name);
        if conflict.lost.entry.body != Body::Whiteout {
            lost["get"] = json!(format!("resultsfs explain --cat {name} {path}"));
        }
        lost["host"] = json!(name);
        lost
    });
    let lost: Vec<Value> = lost.collect();
    if !lost.is_empty() {
        out.insert("overtaken".into(), json!(lost));
    }
}

/// What the host called `name`, or with this UUID, has committed at a path. Waits for the network.
pub fn entry_of(host: &Host, path: &RelPath, name: &str) -> Result<Candidate, String> {
    let entries = match host.view.entries_at(path) {
        Ok(entries) => entries,
        Err(need) => {
            host.view.fetch(&need).map_err(|e| format!("{path}: {e}"))?;
            host.view.entries_at(path).map_err(|_| format!("{path}: its manifests don't stay here"))?
        }
    };
    let is_named = |entry: &Candidate| {
        let layers = host.journal.layers(&entry.unit);
        entry.host.to_string() == name
            || layers.iter().any(|layer| layer.host == entry.host && layer.host_name == name)
    };
    let entry = entries.into_iter().find(is_named);
    entry.ok_or_else(|| format!("{name} has committed nothing at {path}"))
}

fn candidate_json(candidate: &Candidate) -> Value {
    let body = match &candidate.entry.body {
        Body::Dir => "directory".to_owned(),
        Body::File { size, content } => format!("file of {size} bytes, {content}"),
        Body::Symlink { target } => format!("link to {}", String::from_utf8_lossy(target)),
        Body::Fifo => "named pipe".to_owned(),
        Body::Link { to } => format!("hard link to {to}"),
        Body::Whiteout => "deleted".to_owned(),
    };
    json!({
        "is": body,
        "seq": (!candidate.seq.is_live()).then_some(candidate.seq.0),
        "live": candidate.seq.is_live(),
        "since_generation": candidate.entry.since.0,
        "host_uuid": candidate.host.to_string(),
        "manifest": candidate.manifest.to_string(),
    })
}

fn explain_unit(host: &Host, unit: &UnitId, out: &mut Map<String, Value>) {
    out.insert("unit".into(), json!(unit.to_string()));
    if !host.is_known(unit) {
        lives::explain(host, unit, out);
        out.insert("why".into(), json!("there is nothing of it, neither on this host nor in the catalog"));
        return;
    }
    let record = host.journal.get(unit);
    let is_own = record.is_some() || host.engine.running().contains(unit);
    let state = record.as_ref().map_or(State::Running, |r| r.state);
    let elsewhere = || if host.journal.runs_elsewhere(unit) { "live" } else { "remote" };
    out.insert("state".into(), json!(if is_own { state.name() } else { elsewhere() }));
    if let Some(record) = &record {
        explain_record(host, record, out);
    }
    lives::explain(host, unit, out);
    // What the store has lost is told by the record.
    let is_told = |layer: &&LayerHead| !(layer.is_live() && layer.host == host.journal.host());
    let layers = host.journal.shown_layers(unit);
    let layers: Vec<Value> = layers.iter().filter(is_told).map(layer_json).collect();
    out.insert("layers".into(), json!(layers));
    let fresh = || {
        (is_own && state == State::Running).then(|| {
            format!("it is looked at when nothing has been written for {} s", host.config.settle_seconds)
        })
    };
    out.insert("why".into(), json!(host.why(unit).or_else(fresh)));
    let next = if is_own { next(host, record.as_ref()) } else { "it is read from the store".to_owned() };
    out.insert("next".into(), json!(next));
}

fn explain_record(host: &Host, record: &UnitRecord, out: &mut Map<String, Value>) {
    out.insert("generation".into(), json!(record.generation.0));
    out.insert("partial".into(), json!(record.partial));
    out.insert("lost".into(), json!(record.lost));
    out.insert(
        "times_ms".into(),
        json!({
            "running": record.running_ms, "complete": record.complete_ms, "sealed": record.sealed_ms,
            "committed": record.committed_ms, "evicted": record.evicted_ms,
        }),
    );
    if let Some(committed) = &record.committed {
        out.insert("seq".into(), json!(committed.seq.0));
        out.insert("manifest".into(), json!(committed.manifest.to_string()));
    }
    let hash = record.manifest.or(record.committed.as_ref().map(|c| c.manifest));
    let manifest = hash.and_then(|h| host.journal.manifest(&h).ok().flatten());
    let omitted = manifest.iter().flat_map(|m| m.omitted()).take(LIST_BOUND).map(|o| {
        let kind = match o.kind {
            OmittedKind::Socket => "socket",
            OmittedKind::Device => "device",
        };
        json!(format!("{} ({kind})", o.path))
    });
    let omitted: Vec<Value> = omitted.collect();
    if !omitted.is_empty() {
        out.insert("not_carried".into(), Value::Array(omitted));
    }
}

/// Where there is no connection: that there must be one first, why there is none, and what a person can do about it.
fn not_yet(host: &Host) -> String {
    let Some(status) = host.link.as_ref().map(Link::status).filter(|status| !status.connected) else {
        return String::new();
    };
    let why = status.last_error.unwrap_or_else(|| "still connecting".to_owned());
    let hint = mend(&why).map_or_else(String::new, |hint| format!(" ({hint})"));
    format!(", when it can be reached: {why}{hint}")
}

/// What will happen to the unit if nobody does anything.
fn next(host: &Host, record: Option<&UnitRecord>) -> String {
    let no_link = host.link.is_none();
    match record.map(|r| (r.state, r)) {
        None | Some((State::Running, _)) => "when it is complete it is synced and journaled".into(),
        Some((State::Complete | State::Sealed, _)) if no_link => {
            "it stays here: results_host is localhost or blank".into()
        }
        Some((State::Complete, _)) => format!("it is described as a manifest, then sent{}", not_yet(host)),
        Some((State::Sealed, _)) => format!("it is sent to the store{}", not_yet(host)),
        Some((State::Committed, r)) => {
            let keep_ms = host.config.keep_local_hours * 3_600_000;
            let due = r.committed_ms.unwrap_or(0) + keep_ms;
            let due = i64::try_from(due).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
            format!(
                "its local copy is freed {} h after the commit{}, or before when the spool is beyond {} %",
                host.config.keep_local_hours,
                due.map(|t| format!(", {t:.0}")).unwrap_or_default(),
                host.config.spool_high_percent
            )
        }
        Some((State::Evicted, _)) => "it is read from the store; `resultsfs recall` brings it back".into(),
    }
}
