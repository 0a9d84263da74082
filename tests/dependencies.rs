//! What others have written and this program is made of: whence it comes, and under which licences.
//!
//! Known vulnerabilities aren't looked for here, since a list of them is not part of this project: `cargo audit` and `cargo deny check advisories` do, where
//! there is a network.

use std::process::Command;

use serde_json::Value;

/// Licences under which a program with the licence Apache-2.0 may have parts, and that ask for no more than their text.
const LICENCES: [&str; 11] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "BlueOak-1.0.0",
    "CC0-1.0",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

fn packages() -> Vec<Value> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

/// Whether one may choose licences of the list: `A OR (B AND C)`, or the older `A/B`.
fn may_be_used(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    if let Some(open) = expression.find('(') {
        let close = expression[open..].find(')').map_or(expression.len() - 1, |at| open + at);
        let inner = if may_be_used(&expression[open + 1..close]) { "MIT" } else { "none" };
        return may_be_used(&format!("{}{inner}{}", &expression[..open], &expression[close + 1..]));
    }
    let all = |part: &str| part.split(" AND ").all(|licence| LICENCES.contains(&licence.trim()));
    expression.split(" OR ").any(all)
}

#[test]
fn expressions_are_read() {
    for good in
        ["MIT", "MIT OR Apache-2.0", "MIT/Apache-2.0", "(MIT OR GPL-3.0) AND Unicode-3.0", "GPL-2.0 OR Zlib"]
    {
        assert!(may_be_used(good), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-2.0", "(MIT OR Apache-2.0) AND GPL-3.0", "", "SSPL-1.0 OR BUSL-1.1"] {
        assert!(!may_be_used(bad), "{bad}");
    }
}

#[test]
fn every_dependency_may_be_used_and_comes_from_the_registry() {
    let packages = packages();
    assert!(packages.len() > 50, "{}", packages.len());
    for package in &packages {
        let (name, licence) = (&package["name"], package["license"].as_str().unwrap_or_default());
        assert!(may_be_used(licence), "{name}: {licence}");
        let is_ours = name == "resultsfs";
        let source = package["source"].as_str().unwrap_or_default();
        assert!(is_ours || source.starts_with("registry+"), "{name} comes from {source:?}");
    }
}
