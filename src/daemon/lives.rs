//! What `explain` says of a unit's lives: which layer stands in the way of a new job of the same name, and which older ones there are.

use serde_json::{Map, Value, json};

use super::{Host, report::layer_json};
use crate::{
    ids::UnitId,
    journal::{LayerHead, PastLife},
};

/// The number of the present life, for people: the first is 1.
pub(super) fn number(host: &Host, unit: &UnitId) -> usize {
    host.journal.past_lives(unit).len() + 1
}

pub(super) fn explain(host: &Host, unit: &UnitId, out: &mut Map<String, Value>) {
    let past = host.journal.past_lives(unit);
    let layers = host.journal.layers(unit);
    if let Some(newest) = layers.iter().max_by_key(|layer| layer.seq()) {
        out.insert("in_the_way".into(), json!(in_the_way(unit, past.len() + 1, newest)));
    }
    if past.is_empty() {
        return;
    }
    out.insert("incarnation".into(), json!(past.len() + 1));
    let mut older: Vec<Value> =
        past.iter().enumerate().map(|(at, life)| life_json(unit, at + 1, life)).collect();
    // The store may know of a later one that runs.
    if let (Some(last), Some(shown)) = (past.last(), older.last_mut())
        && layers.is_empty()
        && last.purged.is_none()
    {
        shown["undelete"] = json!(format!("resultsfs undelete {unit}"));
    }
    out.insert("older_incarnations".into(), json!(older));
}

/// What a new job of this name finds, and how to put it away.
fn in_the_way(unit: &UnitId, number: usize, newest: &LayerHead) -> String {
    let time = i64::try_from(newest.time_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    format!(
        "{unit}, incarnation {number}, generation {} of {}, committed as {}{}; `resultsfs retire {unit}` hides it",
        newest.generation,
        newest.host_name,
        newest.seq(),
        time.map(|time| format!(" at {time:.0}")).unwrap_or_default(),
    )
}

fn life_json(unit: &UnitId, number: usize, life: &PastLife) -> Value {
    let is_left = life.layers.iter().any(|layer| !life.is_given_up(layer));
    let get = || format!("resultsfs export --incarnation {number} --to DIR {unit}");
    json!({
        "incarnation": number,
        "ended": if life.rule.is_some() { "pruned" } else { "retired" },
        "rule": life.rule,
        "purged_seq": life.purged.map(|purged| purged.0),
        "retired_seq": life.closed_by.0,
        "retired_ms": life.closed_ms,
        "retired_on": life.closed_on,
        "layers": life.layers.iter().map(layer_json).collect::<Vec<_>>(),
        "get": is_left.then(get),
    })
}
