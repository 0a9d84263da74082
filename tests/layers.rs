//! The layers of the code are as `docs/architecture.md` says, and each library is named by the module that wraps it alone.
//!
//! Reads the sources as text. Tests may use what they like: modules under `#[cfg(test)]` aren't looked at.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// From the bottom to the top. A module uses modules of lower layers only.
const LAYERS: &[&[&str]] = &[
    &["buffers", "cbor", "clock", "limits"],
    &["ids"],
    &["config", "control", "durable"],
    &["catalog", "chunk", "layout", "manifest"],
    &["transport"],
    &["wire"],
    &["cache", "journal", "spool", "store"],
    &["fs"],
    &["client", "fuse", "offload", "verify"],
    &["daemon", "demo", "import", "server"],
    &["cli"],
];

/// Libraries that are named in these modules only.
const WRAPPED: &[(&str, &[&str])] = &[
    ("fuser", &["fuse"]),
    ("clap", &["cli"]),
    ("lettre", &["cli"]),
    ("ini", &["config"]),
    ("redb", &["journal", "store"]),
];

/// A module of the crate, without its tests.
struct Source {
    module: String,
    path: PathBuf,
    code: String,
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut paths, mut tests) = (Vec::new(), BTreeSet::new());
    gather(&root, &mut paths, &mut tests);
    paths.retain(|path| {
        !tests.iter().any(|test: &PathBuf| path.starts_with(test) || *path == test.with_extension("rs"))
    });
    let source = |path: PathBuf| {
        let below = path.strip_prefix(&root).expect("it was found there");
        let first = below.iter().next().expect("a file has a name");
        let module = first.to_str().expect("our names are ASCII").trim_end_matches(".rs").to_owned();
        Source { module, code: code(&fs::read_to_string(&path).expect("it is there")), path }
    };
    paths.into_iter().map(source).filter(|s| s.module != "lib" && s.module != "main").collect()
}

/// Every source file at or below `dir`, and the places of modules that are there for tests only.
fn gather(dir: &Path, paths: &mut Vec<PathBuf>, tests: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory of sources") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            gather(&path, paths, tests);
            continue;
        }
        let text = fs::read_to_string(&path).expect("it is there");
        let below = if path.ends_with("mod.rs") { dir.to_owned() } else { path.with_extension("") };
        for after in text.split("#[cfg(test)]").skip(1) {
            let line = after.trim_start().lines().next().unwrap_or_default();
            if let Some((_, name)) = line.strip_suffix(';').and_then(|line| line.split_once("mod ")) {
                tests.insert(below.join(name));
            }
        }
        paths.push(path);
    }
}

/// Without comments, and without what follows the head of an inline module of tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Modules that follow `crate::` somewhere, also in braces.
fn used(code: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            Some(list) => found.extend(heads(list)),
            None => found.extend(word(after)),
        }
    }
    found
}

/// The first word of each item of a list that ends with its brace.
fn heads(list: &str) -> Vec<&str> {
    let (mut depth, mut heads) = (0, word(list.trim_start()).into_iter().collect::<Vec<_>>());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.extend(word(list[at + 1..].trim_start())),
            _ => {}
        }
    }
    heads
}

fn word(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    Some(&text[..end]).filter(|word| !word.is_empty())
}

/// Whether `library` is named as the beginning of a path.
fn names(code: &str, library: &str) -> bool {
    let path = format!("{library}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
    })
}

#[test]
fn modules_use_lower_layers_only() {
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(own) = layer(&source.module) else {
            panic!("{} is in no layer: give it one here and in docs/architecture.md", source.path.display());
        };
        for module in used(&source.code).into_iter().filter(|m| *m != source.module) {
            if layer(module).is_some_and(|other| other >= own) {
                wrong.push(format!("{} uses {module}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_library_is_named_where_it_is_wrapped() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (library, modules) in WRAPPED {
            if names(&source.code, library) && !modules.contains(&source.module.as_str()) {
                wrong.push(format!("{} names {library}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_documents_say_the_same() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let line = |layer: &&[&str]| match layer {
        [one] => (*one).to_owned(),
        several => format!("{{{}}}", several.join(", ")),
    };
    let order = LAYERS.iter().rev().map(line).collect::<Vec<_>>().join(" → ");
    for document in ["docs/architecture.md", "src/lib.rs"] {
        let text = fs::read_to_string(root.join(document)).expect("it is there");
        let text = text.replace("\n//! ", " ").replace('\n', " ");
        assert!(text.contains(&order), "{document} doesn't say `{order}`");
    }
}

#[test]
fn the_sources_are_read_as_they_are_meant() {
    let code = code(
        "use crate::{ids::{Hash, Seq}, wire}; // crate::cli\nlet x = crate::fs::view();\n#[cfg(test)]\nmod tests {\nuse crate::cli;",
    );
    assert_eq!(used(&code), BTreeSet::from(["fs", "ids", "wire"]));
    assert!(names("use redb::Database;", "redb") && !names("use super::ini::Ini;", "ini"));
    assert!(!names("xfuser::y", "fuser"));
}
