//! What a row of either database holds, from its bytes: pure, and an error for every row that isn't one. `docs/format.md` has them to the byte.
//!
//! Rows are read in several places ([`super::memory`] at the start, the replica when it is asked); this is all that they are read by.

use super::{
    Note,
    db::{gone_of_key, unit_of_key},
    record::UnitRecord,
};
use crate::ids::{RelPath, UnitId};

pub use super::replica::{Hosts, Layer, Past, layers, life};

/// A row of the journal's `units`.
pub fn record(key: &[u8], value: &[u8]) -> Result<UnitRecord, String> {
    let record: UnitRecord = minicbor::decode(value).map_err(|e| e.to_string())?;
    match unit(key).as_ref() == Some(&record.unit) {
        true => Ok(record),
        false => Err(format!("the record of {} is under another unit's key", record.unit)),
    }
}

/// A row of the journal's `gone`: a path below its unit's root, and what is noted of it.
pub fn note(key: &[u8], value: &[u8]) -> Result<(UnitId, RelPath, Note), String> {
    let (unit, path) = gone_of_key(key).ok_or("a noted path's key is none")?;
    Ok((unit, path, Note::parse(value).ok_or("a path's note is none")?))
}

/// The unit that a key names.
pub fn unit(key: &[u8]) -> Option<UnitId> {
    unit_of_key(key)
}

/// A unit's key.
pub fn unit_key(unit: &UnitId) -> Vec<u8> {
    super::db::unit_key(unit)
}

/// The key of a path that is noted.
pub fn note_key(unit: &UnitId, path: &RelPath) -> Vec<u8> {
    super::db::gone_key(unit, path)
}
