//! Reads what Python 2's ConfigParser made of each case (`tests/config_cases/generate.py`), and compares.

use std::path::Path;

use serde_json::{Map, Value};

use super::{
    ini::{Ini, Interpolation},
    raw::{self, RawConfig},
};

const CASES: &str = include_str!("../../tests/config_cases/cases.json");
const GLOBAL: &str = "/lab/global_config.ini";
const SHADOW: &str = "/lab/shadow_config.ini";

/// The fixture has bytes as characters.
fn bytes(text: &Value) -> Option<Vec<u8>> {
    text.as_str().map(|t| t.chars().map(|c| u8::try_from(u32::from(c)).expect("a byte")).collect())
}

fn text(value: &Value) -> String {
    String::from_utf8_lossy(&bytes(value).expect("text")).into_owned()
}

fn read(case: &Value) -> RawConfig {
    let global = Ini::parse(Path::new(GLOBAL), &bytes(&case["global"]).expect("every case has a main file"));
    RawConfig::merge(global, bytes(&case["shadow"]).map(|b| Ini::parse(Path::new(SHADOW), &b)))
}

/// `global_config.ini` exactly as Autotest (Python 2's ConfigParser) reads it: what Python reads, we read as the
/// same; what Python stops on is an error on the same line of the same file.
#[test]
fn every_case_reads_as_python_reads_it() {
    let cases: Vec<Value> = serde_json::from_str(CASES).expect("the fixture is JSON");
    assert!(cases.len() >= 60);
    for case in &cases {
        let name = case["name"].as_str().expect("a case has a name");
        let raw = read(case);
        match case["values"].as_object() {
            Some(sections) => compare(name, &raw, sections),
            None => compare_error(name, &raw, case),
        }
    }
}

fn compare(name: &str, raw: &RawConfig, sections: &Map<String, Value>) {
    let errors: Vec<_> = raw.findings.iter().filter(|f| f.is_error()).collect();
    assert!(errors.is_empty(), "{name}: {errors:?}");
    let expected: Vec<_> = sections.keys().map(|s| text(&Value::from(s.clone()))).collect();
    assert_eq!(raw.sections.keys().cloned().collect::<Vec<_>>(), expected, "{name}");
    for (section, values) in sections {
        let section = text(&Value::from(section.clone()));
        let values = values.as_object().expect("a section has values");
        for own in raw.sections[&section].keys().chain(raw.defaults.keys()) {
            assert!(values.keys().any(|k| text(&Value::from(k.clone())) == *own), "{name}: {section} {own}");
        }
        for (key, expected) in values {
            compare_value(
                &format!("{name}: {section} {key}"),
                raw,
                &section,
                &text(&Value::from(key.clone())),
                expected,
            );
        }
    }
}

fn compare_value(at: &str, raw: &RawConfig, section: &str, key: &str, expected: &Value) {
    let value = match raw.get(section, key) {
        Ok(value) => value.unwrap_or_else(|| panic!("{at} isn't there")),
        Err((_, why)) => {
            let errors: &[&str] = match why {
                Interpolation::Missing(_) => &["InterpolationMissingOptionError"],
                Interpolation::Depth => &["InterpolationDepthError"],
                Interpolation::Percent => &["ValueError", "TypeError"],
                Interpolation::TooLong => &[],
            };
            let error = expected["get_error"].as_str().unwrap_or("none");
            assert!(errors.contains(&error), "{at}: {why} where Python has {error}");
            return;
        }
    };
    assert_eq!(value.text, text(&expected["get"]), "{at}");
    let blank = value.text.trim_matches(super::ini::is_space).is_empty();
    assert_eq!(blank, expected["str"].is_object(), "{at}");
    if blank {
        return;
    }
    assert_eq!(value.text.trim_matches(super::ini::is_space), text(&expected["str"]), "{at}");
    assert_eq!(raw::integer(&value.text), expected["int"].as_i64(), "{at}");
    assert_eq!(Some(raw::truth(&value.text)), expected["bool"].as_bool(), "{at}");
    let items: Vec<_> = expected["list"].as_array().expect("a list").iter().map(text).collect();
    assert_eq!(raw::items(&value.text).collect::<Vec<_>>(), items, "{at}");
}

/// The first line that Python names is the first that we name.
fn compare_error(name: &str, raw: &RawConfig, case: &Value) {
    let first = raw.findings.iter().find(|f| f.is_error()).unwrap_or_else(|| panic!("{name} has no error"));
    let place = first.place.as_ref().unwrap_or_else(|| panic!("{name}: {first}"));
    let codes: &[&str] = match case["error"].as_str() {
        Some("MissingSectionHeaderError") => &["no-section", "byte-order-mark", "indented-section"],
        Some("ParsingError") => &["not-an-option", "indented-key", "indented-section"],
        Some("InterpolationMissingOptionError" | "InterpolationDepthError" | "TypeError") => {
            &["interpolation"]
        }
        Some("ValueError") => &["interpolation", "default-section"],
        other => panic!("{name}: {other:?}"),
    };
    assert!(codes.contains(&first.code), "{name}: {}", first.code);
    if let Some(line) = case["lines"][0].as_u64() {
        assert_eq!(u64::from(place.line), line, "{name}");
        assert_eq!(&*place.file == Path::new(SHADOW), case["in_shadow"] == true, "{name}");
    }
}
