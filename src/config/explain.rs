//! What `resultsfs config` says: the settings in effect, where each comes from, and what is wrong.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{
    check::{Examined, Setting, Source},
    finding::Finding,
    ini::value_in_line,
};

/// Version of the JSON lines; fields are only ever added under one number.
const VERSION: u32 = 1;

/// `resultsfs config`: the settings as an ini file that reads back as the same.
pub fn settings_text(examined: &Examined) -> String {
    let mut out = String::new();
    for (section, settings) in by_section(&examined.settings) {
        let _ = writeln!(out, "{}[{section}]", if out.is_empty() { "" } else { "\n" });
        for setting in settings {
            let value = setting.value.replace('\n', "\n    ");
            // What would be read as a comment or as nothing there is a value in a line below its key.
            let apart = match value.is_empty() {
                true => "",
                false if value_in_line(&value) == value => " ",
                false => "\n    ",
            };
            let _ = writeln!(out, "{}:{apart}{value}", setting.key);
        }
    }
    out
}

/// `resultsfs config --explain`: files, settings with their sources in columns, findings.
pub fn text(examined: &Examined) -> String {
    let mut out = String::new();
    for file in &examined.files {
        let _ = writeln!(out, "read {}", file.display());
    }
    let width = |part: fn(&Setting) -> usize| examined.settings.iter().map(part).max().unwrap_or(0).min(48);
    let (keys, values) = (width(|s| s.key.chars().count()), width(|s| one_line(&s.value).chars().count()));
    for (section, settings) in by_section(&examined.settings) {
        let _ = writeln!(out, "\n[{section}]");
        for setting in settings {
            let value = one_line(&setting.value);
            let _ = writeln!(out, "  {:keys$}  {value:values$}  {}", setting.key, setting.source);
        }
    }
    if !examined.findings.is_empty() {
        out.push('\n');
    }
    for finding in &examined.findings {
        out.push_str(&finding_text(finding));
    }
    out
}

/// One finding on three lines at most: kind, place and message, then the mend.
pub fn finding_text(finding: &Finding) -> String {
    let place = finding.place.as_ref().map(|p| format!("{p}: ")).unwrap_or_default();
    format!(
        "{} [{}] {place}{}\n    mend: {}\n",
        finding.severity.word(),
        finding.code,
        finding.message,
        finding.mend
    )
}

/// `--json`: one object a line, of kind `file`, `setting` or `finding`, and at the end one of kind `config`.
pub fn json(examined: &Examined) -> String {
    let files =
        examined.files.iter().map(|f| json!({"v": VERSION, "kind": "file", "file": f.to_string_lossy()}));
    let settings = examined.settings.iter().map(setting_json);
    let findings = examined.findings.iter().map(finding_json);
    let errors = examined.findings.iter().filter(|f| f.is_error()).count();
    let end = json!({
        "v": VERSION,
        "kind": "config",
        "ok": errors == 0,
        "errors": errors,
        "warnings": examined.findings.len() - errors,
    });
    files.chain(settings).chain(findings).chain([end]).map(|line| format!("{line}\n")).collect()
}

fn setting_json(setting: &Setting) -> Value {
    let mut line = json!({
        "v": VERSION,
        "kind": "setting",
        "section": setting.section,
        "key": setting.key,
        "value": setting.value,
        "source": setting.source.word(),
    });
    if let Source::File(place) = &setting.source {
        line["file"] = json!(place.file.to_string_lossy());
        line["line"] = json!(place.line);
    }
    line
}

fn finding_json(finding: &Finding) -> Value {
    let mut line = json!({
        "v": VERSION,
        "kind": "finding",
        "severity": finding.severity.word(),
        "code": finding.code,
        "message": finding.message,
        "mend": finding.mend,
    });
    if let Some(place) = &finding.place {
        line["file"] = json!(place.file.to_string_lossy());
        line["line"] = json!(place.line);
    }
    line
}

fn by_section(settings: &[Setting]) -> impl Iterator<Item = (&'static str, Vec<&Setting>)> {
    let mut sections: Vec<&'static str> = settings.iter().map(|s| s.section).collect();
    sections.dedup();
    sections.into_iter().map(|name| (name, settings.iter().filter(|s| s.section == name).collect()))
}

/// Line breaks are shown, not followed: a setting is one line of the table.
fn one_line(value: &str) -> String {
    value.replace('\n', "\\n")
}
