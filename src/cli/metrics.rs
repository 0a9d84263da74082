//! `metrics`: what the daemons of this machine count, in Prometheus' text format; for its node exporter's textfile collector, or whoever runs the command.

use std::{fmt::Write as _, io, path::Path};

use serde_json::Value;

use super::{
    args::{Cli, MetricsArgs},
    facts::{Facts, Part},
    failure::{Failure, Outcome},
    load_config, say,
};

/// A metric: its name, whether it only rises, where its number is, and what it says.
struct Metric {
    name: &'static str,
    kind: &'static str,
    at: &'static str,
    help: &'static str,
}

const fn gauge(name: &'static str, at: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: "gauge", at, help }
}

const fn counter(name: &'static str, at: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: "counter", at, help }
}

/// Of `status`.
const MOUNT: &[Metric] = &[
    gauge("resultsfs_queue_units", "/queue_units", "Units that are complete and not committed."),
    gauge("resultsfs_queue_bytes", "/queue_bytes", "Their bytes."),
    gauge("resultsfs_open_handles", "/open_handles", "Files that are open in the mount."),
    gauge("resultsfs_spool_total_bytes", "/spool/total_bytes", "Size of the spool's disk."),
    gauge("resultsfs_spool_free_bytes", "/spool/free_bytes", "Free on the spool's disk."),
    gauge("resultsfs_spool_can_write", "/spool/can_write", "0: writes to the spool's disk fail."),
    gauge("resultsfs_cache_bytes", "/cache/bytes", "Bytes of remote blocks on this disk."),
    counter(
        "resultsfs_cache_fetched_bytes_total",
        "/cache/fetched_bytes",
        "Bytes of blocks that came from the store.",
    ),
    counter("resultsfs_cache_failed_fetches_total", "/cache/failed_fetches", "Blocks that could not be had."),
    gauge(
        "resultsfs_journal_can_write",
        "/journal_can_write",
        "0 after a failed write, until the next daemon.",
    ),
    gauge("resultsfs_catalog_seq", "/catalog/seq", "Up to this number the mount shows what was committed."),
    counter("resultsfs_sent_bytes_total", "/connection/bytes_sent", "Bytes sent to the store."),
    counter("resultsfs_received_bytes_total", "/connection/bytes_received", "Bytes received from the store."),
    counter(
        "resultsfs_committed_bytes_total",
        "/offload/bytes_committed",
        "Bytes of layers that were committed.",
    ),
    counter("resultsfs_committed_layers_total", "/offload/layers_committed", "Layers that were committed."),
    counter("resultsfs_takeovers_total", "/takeovers", "Daemons that went on with this mount."),
];

/// Of the store.
const STORE: &[Metric] = &[
    gauge("resultsfs_store_packs", "/packs", "Packs of the store."),
    gauge("resultsfs_store_pack_bytes", "/pack_bytes", "Bytes of its packs."),
    gauge("resultsfs_store_objects", "/objects", "Chunks, recipes and manifests."),
    gauge("resultsfs_store_records", "/records", "Records of the catalog."),
    gauge("resultsfs_store_layers", "/layers", "Layers that were ever committed."),
    gauge("resultsfs_store_free_bytes", "/free_bytes", "Free on the store's disk."),
    gauge(
        "resultsfs_store_can_write",
        "/can_write",
        "0 after a failed write, until the daemon is started again.",
    ),
    gauge("resultsfs_store_has_room", "/has_room", "0 where nothing new is taken in for want of room."),
    gauge("resultsfs_store_lost_manifests", "/lost_manifests", "Committed layers that lack something."),
];

const UNIT_STATES: [&str; 5] = ["running", "complete", "sealed", "committed", "evicted"];

/// `metrics`.
pub fn metrics(cli: &Cli, args: &MetricsArgs) -> Outcome {
    let config = load_config(cli)?;
    let text = exposition(&Facts::gather(&config));
    match &args.to {
        None => say::data(format_args!("{text}")),
        Some(path) => replace(path, &text).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?,
    }
    Ok(0)
}

fn exposition(facts: &Facts) -> String {
    let mut out = String::new();
    head(&mut out, "resultsfs_up", "gauge", "1: the daemon answers. A store that nobody has open has none.");
    for (part, facts) in [("mount", &facts.mount), ("store", &facts.store)] {
        match facts {
            Some(Part::Told(_)) => line(&mut out, &format!("resultsfs_up{{part=\"{part}\"}}"), 1),
            Some(Part::Silent(_)) => line(&mut out, &format!("resultsfs_up{{part=\"{part}\"}}"), 0),
            Some(Part::Idle) | None => {}
        }
    }
    if let Some(Part::Told(status)) = &facts.mount {
        head(&mut out, "resultsfs_connected", "gauge", "1: connected to the results host.");
        line(&mut out, "resultsfs_connected", u64::from(status["connection"]["state"] == "up"));
        head(&mut out, "resultsfs_units", "gauge", "Units of this host by state.");
        for state in UNIT_STATES {
            let units = status["units"][state].as_u64().unwrap_or(0);
            line(&mut out, &format!("resultsfs_units{{state=\"{state}\"}}"), units);
        }
        all(&mut out, MOUNT, status);
    }
    if let Some(Part::Told(status)) = &facts.store {
        all(&mut out, STORE, status);
    }
    out
}

/// Those of which the daemon has told.
fn all(out: &mut String, metrics: &[Metric], status: &Value) {
    for metric in metrics {
        let value = status.pointer(metric.at);
        let number = value.and_then(|value| value.as_u64().or(value.as_bool().map(u64::from)));
        if let Some(number) = number {
            head(out, metric.name, metric.kind, metric.help);
            line(out, metric.name, number);
        }
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, number: u64) {
    let _ = writeln!(out, "{name} {number}");
}

/// A collector may read it at any moment: it is there as a whole. It needn't outlive a power cut.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    fs_err::write(&temporary, text)?;
    fs_err::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_told_is_counted_once_and_what_isnt_is_left_out() {
        let mount = json!({"connection": {"state": "up", "bytes_sent": 5}, "units": {"running": 3}, "queue_units": 2, "takeovers": 0});
        let store = json!({"packs": 7, "can_write": true, "lost_manifests": 0});
        let facts = Facts { mount: Some(Part::Told(mount)), store: Some(Part::Told(store)) };
        let text = exposition(&facts);
        for expected in [
            "resultsfs_up{part=\"mount\"} 1",
            "resultsfs_connected 1",
            "resultsfs_units{state=\"running\"} 3",
            "resultsfs_queue_units 2",
            "resultsfs_sent_bytes_total 5",
            "resultsfs_store_packs 7",
            "resultsfs_store_can_write 1",
        ] {
            assert_eq!(text.lines().filter(|line| *line == expected).count(), 1, "{expected}: {text}");
        }
        assert!(
            !text.contains("resultsfs_store_objects") && !text.contains("resultsfs_received_bytes"),
            "{text}"
        );
        let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert_eq!(
            names.iter().collect::<std::collections::BTreeSet<_>>().len(),
            names.len(),
            "each has one type"
        );
        let silent = Facts { mount: Some(Part::Silent("gone".to_owned())), store: Some(Part::Idle) };
        assert!(exposition(&silent).ends_with("resultsfs_up{part=\"mount\"} 0\n"));
    }
}
