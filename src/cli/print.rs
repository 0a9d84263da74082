//! Output: the same objects as JSON lines or as text.

use serde_json::Value;

use super::{
    args::Cli,
    say::{self, say, talk},
};

/// One JSON line, or nothing if it isn't wanted.
fn json_line(json: bool, item: &Value) -> bool {
    if json {
        say!("{item}");
    }
    json
}

fn text<'a>(item: &'a Value, key: &str) -> &'a str {
    item[key].as_str().unwrap_or("-")
}

fn number(item: &Value, key: &str) -> u64 {
    item[key].as_u64().unwrap_or(0)
}

/// Bytes for people: three digits and a binary unit.
pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// Clears the terminal for `--watch`.
pub fn clear_screen() {
    say::data(format_args!("\x1b[H\x1b[2J"));
}

/// `status`; `pace` is how fast the queue goes down, where that is known.
pub fn status(json: bool, item: &Value, pace: Option<&str>) {
    if json_line(json, item) {
        return;
    }
    say!("host        {} at {}", text(item, "host"), text(item, "mountpoint"));
    say!("store       {}", connection(&item["connection"]));
    let units = &item["units"];
    let states = ["running", "complete", "sealed", "committed", "evicted"];
    let counts: Vec<String> = states.iter().map(|s| format!("{} {s}", number(units, s))).collect();
    say!("units       {}", counts.join(", "));
    say!(
        "queue       {} in {} units; sent {} of {} read",
        bytes(number(item, "queue_bytes")),
        number(item, "queue_units"),
        bytes(number(&item["offload"], "bytes_sent")),
        bytes(number(&item["offload"], "bytes_read")),
    );
    if let Some(pace) = pace {
        say!("pace        {pace}");
    }
    say!(
        "spool       {} free of {} ({} % used)",
        bytes(number(&item["spool"], "free_bytes")),
        bytes(number(&item["spool"], "total_bytes")),
        number(&item["spool"], "used_percent")
    );
    if let Some(why) = item["spool"]["error"].as_str() {
        say!("            can't be written: {why}");
    }
    if let Some(why) = item["journal_error"].as_str() {
        say!("journal     {why}");
    }
    say!(
        "cache       {} of {}",
        bytes(number(&item["cache"], "bytes")),
        bytes(number(&item["cache"], "max_bytes"))
    );
    let live = &item["live"];
    say!(
        "live        {} running units are shown to others, {} of others are seen here",
        number(live, "published"),
        number(live, "remote")
    );
    say!("data path   {}", text(item, "data_path"));
    say!("held by     {}, {} take-overs", text(item, "held_by"), number(item, "takeovers"));
    for list in ["unrecognised", "warnings", "errors"] {
        for entry in item[list].as_array().into_iter().flatten() {
            say!("{list:11} {}", entry.as_str().unwrap_or_default());
        }
    }
}

fn connection(item: &Value) -> String {
    let target = text(item, "target");
    match text(item, "state") {
        "none" => "none: results_host is localhost or blank, nothing is copied".to_owned(),
        "up" => format!("connected to {target}, store {}", text(item, "store")),
        _ => {
            let hint = item["hint"].as_str().map_or_else(String::new, |hint| format!("\nhint        {hint}"));
            format!("NOT connected to {target}: {}{hint}", text(item, "last_error"))
        }
    }
}

/// A line of `jobs`.
pub fn unit_line(json: bool, item: &Value) {
    if json_line(json, item) {
        return;
    }
    say!(
        "{:10} {:>4} {:>12}  {}{}",
        text(item, "state"),
        number(item, "generation"),
        text(item, "host"),
        text(item, "unit"),
        item["note"].as_str().map(|n| format!("  ({n})")).unwrap_or_default()
    );
}

/// `explain`: keys and values, lists indented.
pub fn explain(json: bool, item: &Value) {
    if json_line(json, item) {
        return;
    }
    for (key, value) in
        item.as_object().into_iter().flatten().filter(|(k, _)| !matches!(k.as_str(), "v" | "kind"))
    {
        print_value(0, &key.replace('_', " "), value, false);
    }
}

fn print_value(depth: usize, key: &str, value: &Value, is_time: bool) {
    let pad = "  ".repeat(depth);
    match value {
        Value::Null => {}
        Value::Object(map) => {
            say!("{pad}{key}:");
            map.iter()
                .filter(|(k, _)| !matches!(k.as_str(), "v" | "kind"))
                .for_each(|(k, v)| print_value(depth + 1, &k.replace('_', " "), v, key.ends_with(" ms")));
        }
        Value::Array(list) if list.is_empty() => {}
        Value::Array(list) => list.iter().for_each(|v| print_value(depth, key, v, is_time)),
        Value::String(s) => say!("{pad}{key}: {s}"),
        Value::Number(ms) if is_time => {
            let time = ms.as_i64().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
            say!("{pad}{key}: {}", time.map_or_else(|| ms.to_string(), |t| format!("{t:.3}")));
        }
        other => say!("{pad}{key}: {other}"),
    }
}

/// A line of `adopt`'s plan, or what became of it.
pub fn adoption(json: bool, item: &Value) {
    if json_line(json, item) {
        return;
    }
    say!(
        "{:10} {:>4} {:>12}  {}  ({} in {} entries, as of {} s ago){}",
        text(item, "result"),
        number(item, "generation"),
        text(item, "host"),
        text(item, "unit"),
        bytes(number(item, "bytes")),
        number(item, "entries"),
        number(item, "age_s"),
        note(item)
    );
}

/// A line of `retire`'s plan, or what became of it.
pub fn retirement(json: bool, item: &Value) {
    if json_line(json, item) {
        return;
    }
    say!(
        "{:10} {}  ({} in {} layers){}",
        text(item, "result"),
        text(item, "unit"),
        bytes(number(item, "bytes")),
        number(item, "layers"),
        note(item)
    );
}

/// A line of `prune` or `undelete`: of the plan, of what became of it, or of all together.
pub fn retention(json: bool, item: &Value) {
    if json_line(json, item) {
        return;
    }
    let result = text(item, "result");
    match text(item, "kind") {
        "retention" => retention_sum(item),
        "purge" if result == "planned" => {
            say!("give up    {}  (pruned as {})", text(item, "unit"), number(item, "pruned_seq"))
        }
        "prune" => say!(
            "{result:10} {}  ({} in {} layers{}){}",
            text(item, "unit"),
            bytes(number(item, "bytes")),
            number(item, "layers"),
            item["outcome"].as_str().map(|how| format!(", {how}")).unwrap_or_default(),
            note(item)
        ),
        _ => say!("{result:10} {}{}", text(item, "unit"), note(item)),
    }
}

fn retention_sum(item: &Value) {
    let planned = format!(
        "{} of {} jobs ({} units, {}) by the rule: {}; {} units to be given up after {} days of grace",
        number(item, "planned_jobs"),
        number(item, "all_jobs"),
        number(item, "planned_units"),
        bytes(number(item, "planned_bytes")),
        text(item, "rule"),
        number(item, "planned_purges"),
        number(item, "grace_days"),
    );
    match item["dry_run"] == true {
        true => say!("would go: {planned}"),
        false => say!(
            "{} units were pruned, {} given up, {} kept; planned were {planned}",
            number(item, "pruned_units"),
            number(item, "purged_units"),
            number(item, "kept_units"),
        ),
    }
}

/// What a command did, unit by unit. Text is talk: stderr.
pub fn progress(cli: &Cli, item: &Value) {
    if json_line(cli.json, item) || cli.quiet {
        return;
    }
    match item["unit"].as_str() {
        Some(unit) => talk!("{:10} {unit}{}", text(item, "result"), note(item)),
        None => talk!("{}", text(item, "message")),
    }
}

fn note(item: &Value) -> String {
    item["note"].as_str().map(|n| format!("  ({n})")).unwrap_or_default()
}
