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
    let older: Vec<Value> = past.iter().enumerate().map(|(at, life)| life_json(unit, at + 1, life)).collect();
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
    json!({
        "incarnation": number,
        "retired_seq": life.closed_by.0,
        "retired_ms": life.closed_ms,
        "retired_on": life.closed_on,
        "layers": life.layers.iter().map(layer_json).collect::<Vec<_>>(),
        "get": format!("resultsfs export --incarnation {number} --to DIR {unit}"),
    })
}
