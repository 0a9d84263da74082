//! Retiring units: one record of the catalog, after which nothing that was committed of them before is shown. All of it stays in the store.
//!
//! The record goes the way of a commit, through the same batch: it is whole and durable or it isn't there.

use super::{
    Store, StoreError,
    commit::{Request, check_name},
};
use crate::{
    catalog::{Record, Retirement},
    ids::{HostUuid, Seq, UnitId},
    limits,
};

/// Units to be retired, each with the last commit that whoever asks has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRetirement {
    pub host: HostUuid,
    pub host_name: String,
    pub units: Vec<(UnitId, Seq)>,
}

/// The record's body.
pub(super) fn retirement(wanted: &NewRetirement) -> Retirement {
    let units = wanted.units.iter().map(|(unit, _)| unit.clone()).collect();
    Retirement { host: wanted.host, host_name: wanted.host_name.clone(), units }
}

impl Store {
    /// Begins the units' next life: all of them, or none. When this returns, it is durable. Blocks while it syncs.
    pub fn retire(&self, wanted: NewRetirement) -> Result<Record, StoreError> {
        self.healthy()?;
        check_name(&wanted.host_name)?;
        check_list(wanted.units.iter().map(|(unit, _)| unit))?;
        let record = self.queue.take_part(Request::Retire(wanted), |batch| self.run_batch(batch))?;
        Ok(record.expect("a retirement is answered with a record"))
    }

    /// Each unit is as it was seen, and nobody shows that it runs; `records` come before it in the batch.
    pub(super) fn may_end(&self, units: &[(UnitId, Seq)], records: &[Record]) -> Result<(), StoreError> {
        let shown = self.slots().all();
        for (unit, seen) in units {
            let no = |why: String| Err(StoreError::NotRetired { unit: unit.clone(), why });
            let last = self.catalog.life(unit).last;
            if last == Seq(0) {
                return no("nothing is committed there".to_owned());
            }
            if last != *seen || records.iter().any(|record| record.names(unit)) {
                return no("it has been committed again meanwhile; look at it, and try again".to_owned());
            }
            if let Some(running) = shown.iter().find(|snapshot| snapshot.unit == *unit) {
                return no(format!("it is running on {}", running.host_name));
            }
        }
        Ok(())
    }
}

/// Units that one record can name, each once.
pub(super) fn check_list<'u>(units: impl Iterator<Item = &'u UnitId>) -> Result<(), StoreError> {
    let mut units: Vec<&UnitId> = units.collect();
    let (count, bytes) = (units.len(), units.iter().map(|unit| unit.root.as_bytes().len()).sum::<usize>());
    units.sort();
    units.dedup();
    let is_good = (1..=limits::RETIRED_UNITS).contains(&count) && bytes <= limits::RETIRED_PATHS_BYTES;
    if is_good && units.len() == count { Ok(()) } else { Err(StoreError::Text("the list of units")) }
}
