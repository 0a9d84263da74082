//! Repair: what a check finds in a store that nobody has open is mended from what is left.
//!
//! ```text
//! header, catalog    from their copies; where a part of the catalog is in neither, that is all, and nothing is changed
//! check              everything, as a check does; with the data, or a slice of it
//! index              made again where it is of no use
//! packs              what can be read of damaged ones is appended anew, and they go to quarantine
//! check              again, without the data of what was good just now: what is still found is left
//! ```

use std::{collections::BTreeSet, path::Path, sync::Arc};

use super::{Check, Headed};
use crate::{
    durable::{Disk, RealDisk},
    store::{
        self, Store, StoreError, StoreOptions, Tuning,
        catalog::Witness,
        layout::{Header, Layout},
        losses,
        repair::{Known, Mend, Salvaged, drop_index, mend_catalog, mend_header, plan_catalog},
    },
    verify::{Finding, OnProgress, Report, Severity, VerifyOptions},
};

/// How to open the store, and with which of zstd's levels to write.
#[derive(Clone, Debug)]
pub struct RepairWith {
    pub store: StoreOptions,
    pub level: i32,
}

/// Repairs the store in `dir`; [`StoreError::Locked`] where somebody has it open.
pub fn repair_store(
    dir: &Path,
    options: &VerifyOptions,
    with: &RepairWith,
    progress: OnProgress<'_>,
) -> Result<Report, StoreError> {
    repair_closed(Arc::new(RealDisk), dir, options, with, Tuning::of_environment(), progress)
}

pub(crate) fn repair_closed(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: &VerifyOptions,
    with: &RepairWith,
    tuning: Tuning,
    progress: OnProgress<'_>,
) -> Result<Report, StoreError> {
    let layout = Layout::new(dir);
    disk.list(dir)?;
    let lock = store::lock(&*disk, &layout)?;
    let Headed { header, finding } = match Headed::read(&*disk, &layout)? {
        Ok(headed) => headed,
        Err(headless) => return Ok(headless),
    };
    header.check_features(dir, true)?;
    let mut found: Vec<Finding> = Vec::new();
    if let Some(finding) = finding {
        mend_header(&*disk, &layout, &header)?;
        found.push(finding);
    }
    match catalog(&disk, &layout, &header)? {
        Catalog::Good => {}
        Catalog::Mended(findings) => found.extend(findings),
        Catalog::Lost => {
            let mut report = Check::new(&disk, &layout, &header, options, progress).run(None)?;
            report.notes.push(
                "a part of the catalog is neither in it nor in its copy: nothing else was changed".to_owned(),
            );
            return Ok(concluded(found, report.clone(), report));
        }
    }
    let mut check = Check::new(&disk, &layout, &header, options, progress).noting(true);
    check.look(None)?;
    let mut report = std::mem::take(&mut check.report);
    if found.is_empty()
        && report.is_clean()
        && losses::read(&*disk, &layout)?.is_some_and(|lost| lost.is_empty())
    {
        check.forget_verified();
        return Ok(report);
    }
    if !check.index_is_of_use {
        drop_index(&*disk, &layout)?;
    }
    let known = known(&mut check);
    let store = Store::open_locked(disk.clone(), dir, with.store.clone(), tuning, lock)?;
    if !known.bad_packs.is_empty() {
        let Salvaged { packs, objects } = store.salvage(known, with.level)?;
        report.notes.push(format!("{objects} objects of {packs} packs were appended anew"));
    }
    let quick = VerifyOptions::default();
    let mut again = Check::new(&disk, &layout, &header, &quick, progress);
    again.look(Some(store.snapshot()))?;
    store.set_losses(std::mem::take(&mut again.lost))?;
    check.forget_verified();
    Ok(concluded(found, report, std::mem::take(&mut again.report)))
}

enum Catalog {
    Good,
    Mended(Vec<Finding>),
    /// Something of it is nowhere.
    Lost,
}

fn catalog(disk: &Arc<dyn Disk>, layout: &Layout, header: &Header) -> Result<Catalog, StoreError> {
    let quick = VerifyOptions::default();
    let mut check = Check::new(disk, layout, header, &quick, &|_| true);
    check.check_catalog(None)?;
    let findings = check.report.findings;
    if !findings.iter().any(|f| f.severity == Severity::Error) {
        return Ok(Catalog::Good);
    }
    match plan_catalog(&**disk, layout, header.uuid, Witness::read(&**disk, layout)?)? {
        Mend::Lost { after } => {
            tracing::error!(after = after.seq.0, "a part of the catalog is neither in it nor in its copy");
            Ok(Catalog::Lost)
        }
        Mend::Whole { .. } => {
            mend_catalog(&**disk, layout, header.uuid)?;
            Ok(Catalog::Mended(findings))
        }
    }
}

/// What salvaging must know.
fn known(check: &mut Check<'_>) -> Known {
    let bad_packs: BTreeSet<u32> = std::mem::take(&mut check.bad_packs);
    let good = check
        .objects
        .iter()
        .filter(|(key, found)| check.damaged.contains(key) && !bad_packs.contains(&found.place.pack));
    let elsewhere = good.map(|(key, found)| (*key, found.place)).collect();
    Known { bad_packs, sound_recipes: std::mem::take(&mut check.sound_recipes), elsewhere }
}

/// What was found, before and while the data was read, and what of it is left.
fn concluded(found: Vec<Finding>, before: Report, after: Report) -> Report {
    let is_left = |finding: &Finding| {
        after.findings.iter().any(|left| {
            let same = left.code == finding.code && left.message == finding.message;
            let touched = left.severity == Severity::Error
                && left.units.iter().any(|unit| finding.units.contains(unit));
            same || touched
        })
    };
    let mut report = Report { findings: Vec::new(), lost: Vec::new(), ..before.clone() };
    for finding in found.into_iter().chain(before.findings) {
        let is_known = report.findings.iter().any(|f| f.code == finding.code && f.message == finding.message);
        if !is_known && !is_left(&finding) {
            report.repaired += 1;
            report.find(Finding { is_repaired: true, ..finding });
        }
    }
    report.more_findings = after.more_findings;
    after.findings.into_iter().for_each(|finding| report.find(finding));
    after.lost.into_iter().for_each(|range| report.lose(range));
    report.more_lost = after.more_lost;
    report.notes.extend(after.notes.into_iter().filter(|note| !before.notes.contains(note)));
    report
}
