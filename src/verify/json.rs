//! Findings and counts as JSON objects; the fields are a contract, `docs/cli.md`.

use serde_json::{Value, json};

use super::{Finding, LostRange, Report, Severity};

/// One finding.
pub fn finding(finding: &Finding) -> Value {
    let severity = match finding.severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    let texts = |list: &[String]| list.to_vec();
    json!({
        "v": 1,
        "kind": "finding",
        "code": finding.code,
        "severity": severity,
        "message": finding.message,
        "units": texts(&finding.units.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "paths": texts(&finding.paths.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "repair": finding.repair,
        "repaired": finding.is_repaired,
    })
}

/// A part of a file that can't be read.
pub fn lost(lost: &LostRange) -> Value {
    json!({
        "v": 1,
        "kind": "lost",
        "unit": lost.unit.to_string(),
        "path": lost.path.to_string(),
        "from": lost.from,
        "bytes": lost.bytes,
    })
}

/// All that a check of one part has to say, its summary last.
pub fn rows(report: &Report, part: &str) -> impl Iterator<Item = Value> {
    let findings = report.findings.iter().map(finding);
    findings.chain(report.lost.iter().map(lost)).chain([summary(report, part)])
}

/// What a check of one part looked at and whether it is clean.
pub fn summary(report: &Report, part: &str) -> Value {
    let counts = &report.counts;
    json!({
        "v": 1,
        "kind": "summary",
        "part": part,
        "clean": report.is_clean(),
        "findings": report.findings.len() as u64 + report.more_findings,
        "repaired": report.repaired,
        "lost": report.lost.len() as u64 + report.more_lost,
        "could_not_run": report.could_not_run,
        "notes": report.notes,
        "units": counts.units,
        "records": counts.records,
        "retirements": counts.retirements,
        "prunes": counts.prunes,
        "undeletes": counts.undeletes,
        "purges": counts.purges,
        "reclaims": counts.reclaims,
        "purged_commits": counts.purged_commits,
        "reclaimed_packs": counts.reclaimed_packs,
        "manifests": counts.manifests,
        "files": counts.files,
        "packs": counts.packs,
        "blocks": counts.blocks,
        "objects": counts.objects,
        "bytes_read": counts.bytes_read,
        "recipes_read": counts.recipes_read,
    })
}
