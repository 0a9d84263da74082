//! Checks that nothing is missing, and says what is.

pub mod local;

use serde_json::{Value, json};

use crate::ids::UnitId;

#[derive(Debug)]
pub struct Finding {
    pub code: &'static str,
    pub message: String,
    pub units: Vec<UnitId>,
    pub repair: String,
}

#[derive(Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
    pub units: u64,
    pub files: u64,
    pub bytes: u64,
}

impl Finding {
    pub fn of_unit(code: &'static str, message: String, unit: UnitId, repair: &str) -> Self {
        Self { code, message, units: vec![unit], repair: repair.to_owned() }
    }
    pub fn to_json(&self) -> Value {
        json!({"v":1,"kind":"finding","severity":"damage","code":self.code,"message":self.message,"units":self.units.iter().map(ToString::to_string).collect::<Vec<_>>(),"repair":self.repair})
    }
}

impl Report {
    pub fn exit_code(&self) -> u8 {
        if self.findings.is_empty() { 0 } else { 4 }
    }
    pub fn summary(&self, part: &str) -> Value {
        json!({"v":1,"kind":"summary","part":part,"units":self.units,"files":self.files,"bytes":self.bytes,"findings":self.findings.len(),"clean":self.findings.is_empty()})
    }
}
