//! What an import says: a line for each unit and each thing that isn't in the store, and a summary. The fields are a contract, `docs/cli.md`.

use serde_json::{Value, json};

use crate::{
    ids::{RelPath, UnitId},
    offload::seal::SealError,
};

/// Something that isn't in the store, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Stable: `docs/cli.md` lists them.
    pub code: &'static str,
    pub unit: Option<UnitId>,
    /// From the top of the directory.
    pub path: RelPath,
    pub message: String,
}

impl Finding {
    /// Of a unit as a whole.
    pub fn of_unit(code: &'static str, unit: &UnitId, message: impl Into<String>) -> Self {
        Self { code, unit: Some(unit.clone()), path: unit.root.clone(), message: message.into() }
    }

    /// Of a path below its root.
    pub fn within(code: &'static str, unit: &UnitId, path: &RelPath, message: impl Into<String>) -> Self {
        let path = unit.root.append(path).unwrap_or_else(|_| unit.root.clone());
        Self { code, unit: Some(unit.clone()), path, message: message.into() }
    }

    /// Of what couldn't be read.
    pub fn unread(unit: &UnitId, error: &SealError) -> Self {
        match error {
            SealError::Changed { path } => Self::within("changed", unit, path, "it changes while it is read"),
            SealError::Io { path, source } => Self::within("unreadable", unit, path, source.to_string()),
            SealError::Path { source, .. } => {
                Self::of_unit("unreadable", unit, format!("below it: {source}"))
            }
            SealError::Manifest(e) => Self::of_unit("failed", unit, e.to_string()),
        }
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "v": 1, "kind": "finding", "code": self.code, "severity": "warning", "message": self.message,
            "unit": self.unit.as_ref().map(UnitId::to_string), "path": self.path.to_string(),
        })
    }
}

/// What became of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It would be read, and what the store lacks of it imported.
    Planned,
    Imported,
    /// There was nothing to add.
    There,
    /// It isn't over, or was retired or pruned.
    Skipped,
    /// The findings say why.
    Failed,
}

impl Fate {
    fn word(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Imported => "imported",
            Self::There => "there",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }
}

/// A unit's line.
#[derive(Debug, Clone)]
pub struct Done {
    pub unit: UnitId,
    pub fate: Fate,
    pub generation: Option<u32>,
    pub seq: Option<u64>,
    /// File bytes of what was imported; before that, of what is in the directory.
    pub bytes: u64,
    pub entries: u64,
    pub lost: bool,
    pub has_failed_transfer: bool,
    /// Paths that others had committed with the same content.
    pub there: u64,
    pub findings: Vec<Finding>,
}

impl Done {
    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "v": 1, "kind": "import", "unit": self.unit.to_string(), "result": self.fate.word(),
            "bytes": self.bytes, "entries": self.entries, "lost": self.lost,
            "transfer_failed": self.has_failed_transfer, "there": self.there, "findings": self.findings.len(),
            "generation": self.generation, "seq": self.seq,
        })
    }
}

/// All of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    pub units: u64,
    pub planned: u64,
    pub imported: u64,
    pub there: u64,
    pub skipped: u64,
    pub failed: u64,
    /// Of these, the ones with Autotest's mark.
    pub transfer_failed: u64,
    pub lost: u64,
    pub findings: u64,
    /// File bytes of what was imported.
    pub bytes: u64,
    pub bytes_read: u64,
    pub bytes_sent: u64,
}

impl Summary {
    pub fn add(&mut self, done: &Done) {
        self.units += 1;
        *match done.fate {
            Fate::Planned => &mut self.planned,
            Fate::Imported => &mut self.imported,
            Fate::There => &mut self.there,
            Fate::Skipped => &mut self.skipped,
            Fate::Failed => &mut self.failed,
        } += 1;
        self.transfer_failed += u64::from(done.has_failed_transfer);
        self.lost += u64::from(done.lost && done.fate == Fate::Imported);
        self.findings += done.findings.len() as u64;
        self.bytes += if done.fate == Fate::Imported { done.bytes } else { 0 };
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "v": 1, "kind": "summary", "part": "import", "units": self.units, "planned": self.planned,
            "imported": self.imported, "there": self.there, "skipped": self.skipped, "failed": self.failed,
            "transfer_failed": self.transfer_failed, "lost": self.lost, "findings": self.findings,
            "bytes": self.bytes, "bytes_read": self.bytes_read, "bytes_sent": self.bytes_sent,
        })
    }
}
