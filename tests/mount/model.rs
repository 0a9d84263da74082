//! Random operations against an ordinary directory as the reference, with commits and evictions between them, and with another host that
//! takes over all that shows and adds to it: whatever is where and whosever it is, the tree is the same.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use resultsfs::{
    fuse::Passthrough,
    ids::{RelPath, UnitId},
    journal::State,
};

use crate::lab::{Lab, sh};

/// One step. Names are few, so that steps meet.
#[derive(Debug, Clone)]
enum Step {
    Write(String, u16),
    Append(String, u16),
    Truncate(String, u16),
    Mkdir(String),
    Remove(String),
    Rename(String, String),
    Symlink(String),
    Chmod(String, u32),
    Commit,
    Evict,
    /// Another host commits all that shows, with one file more.
    Foreign(String),
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[ab]", "[ab]/[ab]", "[ab]/[ab]/[ab]"]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (name(), any::<u16>()).prop_map(|(n, len)| Step::Write(n, len % 9000)),
        3 => (name(), any::<u16>()).prop_map(|(n, len)| Step::Append(n, len % 100)),
        1 => (name(), any::<u16>()).prop_map(|(n, len)| Step::Truncate(n, len % 9000)),
        4 => name().prop_map(Step::Mkdir),
        3 => name().prop_map(Step::Remove),
        3 => (name(), name()).prop_map(|(a, b)| Step::Rename(a, b)),
        1 => name().prop_map(Step::Symlink),
        1 => (name(), 0o600..0o1000u32).prop_map(|(n, mode)| Step::Chmod(n, mode)),
        2 => Just(Step::Commit),
        2 => Just(Step::Evict),
        2 => name().prop_map(Step::Foreign),
    ]
}

type Outcome = Result<(), i32>;

fn act(root: &Path, step: &Step) -> Outcome {
    let at = |name: &str| root.join(name);
    let result = match step {
        Step::Write(name, len) => fs::write(at(name), vec![b'w'; usize::from(*len)]),
        Step::Append(name, len) => OpenOptions::new()
            .append(true)
            .open(at(name))
            .and_then(|mut file| file.write_all(&vec![b'a'; usize::from(*len)])),
        Step::Truncate(name, len) => {
            OpenOptions::new().write(true).open(at(name)).and_then(|file| file.set_len(u64::from(*len)))
        }
        Step::Mkdir(name) => fs::create_dir(at(name)),
        Step::Remove(name) => {
            let is_dir = fs::symlink_metadata(at(name)).is_ok_and(|stat| stat.is_dir());
            if is_dir { fs::remove_dir(at(name)) } else { fs::remove_file(at(name)) }
        }
        Step::Rename(from, to) => fs::rename(at(from), at(to)),
        Step::Symlink(name) => symlink("nowhere", at(name)),
        Step::Chmod(name, mode) => match fs::symlink_metadata(at(name)) {
            // chmod(2) would follow it to nowhere.
            Ok(stat) if stat.is_symlink() => Ok(()),
            Ok(_) => fs::set_permissions(at(name), fs::Permissions::from_mode(*mode)),
            Err(e) => Err(e),
        },
        Step::Commit | Step::Evict | Step::Foreign(_) => Ok(()),
    };
    result.map_err(|e| e.raw_os_error().expect("a number"))
}

/// Names, kinds, modes, contents.
fn snapshot(root: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name() {
        let entry = entry.expect("walks");
        let stat = entry.metadata().expect("stat");
        let content = match stat.file_type() {
            t if t.is_symlink() => {
                fs::read_link(entry.path()).expect("read").into_os_string().into_encoded_bytes()
            }
            t if t.is_file() => fs::read(entry.path()).expect("read"),
            _ => Vec::new(),
        };
        let below = entry.path().strip_prefix(root).expect("below").to_owned();
        found.push((below, stat.permissions().mode(), content));
    }
    found
}

fn foreign(lab: &Lab, unit: &UnitId, reference: &Path, name: &str) {
    let new = reference.join(name);
    if fs::symlink_metadata(&new).is_err() {
        // Its parent may not be a directory, or not there.
        let _ = fs::write(&new, "theirs");
    }
    let theirs = lab.dir.path().join("theirs");
    sh(r#"rm -rf "$2"; cp -a "$1" "$2""#, &[reference, &theirs]);
    lab.foreign(unit, &theirs);
}

fn check(passthrough: Passthrough, steps: &[Step]) -> Result<(), TestCaseError> {
    let lab = Lab::new(passthrough);
    let unit = UnitId::tree(RelPath::parse("1-me/host1").expect("a path"));
    let (ours, reference) = (lab.at("1-me/host1"), lab.dir.path().join("reference"));
    fs::create_dir_all(&ours).expect("made");
    fs::create_dir(&reference).expect("made");
    lab.store.allow_delete(true);
    for step in steps {
        let expected = act(&reference, step);
        prop_assert_eq!(act(&ours, step), expected, "{:?}", step);
        if let Step::Foreign(name) = step {
            foreign(&lab, &unit, &reference, name);
        }
        let state = || lab.journal.get(&unit).map(|record| record.state);
        if matches!(step, Step::Commit | Step::Evict) && matches!(state(), None | Some(State::Running)) {
            lab.commit(&unit);
        }
        if matches!(step, Step::Evict) && state() == Some(State::Committed) {
            lab.evict(&unit);
        }
        prop_assert_eq!(snapshot(&ours), snapshot(&reference), "after {:?}", step);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_tree_is_the_same_wherever_it_lies(steps in prop::collection::vec(step(), 1..40)) {
        check(Passthrough::Auto, &steps)?;
    }

    #[test]
    fn the_tree_is_the_same_without_passthrough(steps in prop::collection::vec(step(), 1..40)) {
        check(Passthrough::Off, &steps)?;
    }
}
