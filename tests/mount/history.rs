//! A long history at the top of the tree.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use resultsfs::{
    fuse::Passthrough,
    ids::{RelPath, UnitId},
};

use crate::lab::{Lab, sh};

const JOBS: usize = 2000;

fn unit(job: usize) -> UnitId {
    UnitId::tree(RelPath::parse(format!("{job}-me/host1")).expect("a path"))
}

/// A mount with a history of jobs that all look alike.
fn lab(jobs: usize) -> (Lab, std::path::PathBuf) {
    let lab = Lab::new(Passthrough::Auto);
    let source = lab.dir.path().join("theirs");
    sh(r#"mkdir -p "$1/debug"; echo log > "$1/debug/log"; echo 'END GOOD' > "$1/status.log""#, &[&source]);
    let units: Vec<_> = (0..jobs).map(unit).collect();
    lab.store.commit_many(&units, &source);
    (lab, source)
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry"));
    let mut names = BTreeSet::new();
    for entry in entries {
        assert!(entry.file_type().expect("a type").is_dir(), "{entry:?}");
        let name = entry.file_name().into_string().expect("our names are text");
        assert!(names.insert(name), "{entry:?} twice");
    }
    names
}

/// A listing of the top shows every job, and costs neither a manifest nor a node for each.
#[test]
fn the_top_is_listed_by_names_alone() {
    let (lab, _) = lab(JOBS);
    fs::create_dir(lab.at("here")).expect("made");
    let expected: BTreeSet<String> =
        (0..JOBS).map(|job| format!("{job}-me")).chain(["here".to_owned()]).collect();
    for _ in 0..2 {
        assert_eq!(names(&lab.at("")), expected);
        assert_eq!(lab.store.fetches.load(Ordering::Relaxed), 0);
        let (nodes, ..) = lab.fs.counts();
        assert!(nodes < 10, "{nodes} nodes");
    }
    assert!(fs::metadata(lab.at("77-me/host1/debug/log")).expect("there").is_file());
    assert_eq!(lab.store.fetches.load(Ordering::Relaxed), 1, "one round trip, whatever the depth");
    assert_eq!(names(&lab.at("")), expected, "with one of them known");
    assert_eq!(sh(r#"ls "$1" | wc -l"#, &[&lab.at("")]).trim(), (JOBS + 1).to_string());
}

/// The kernel keeps a listing; what others commit shows in the next one all the same, also if it came while somebody was reading.
#[test]
fn a_kept_listing_is_never_older_than_the_catalog() {
    // More than fit into one answer.
    const JOBS: usize = 300;
    const MORE: usize = 12;
    let (lab, source) = lab(JOBS);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    names(&lab.at(""));
                }
            });
        }
        for job in JOBS..JOBS + MORE {
            lab.foreign(&unit(job), &source);
            // Whoever was reading at that moment may have handed the kernel the end of an older listing; it takes that back when it is done.
            let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
            let name = format!("{job}-me");
            while !names(&lab.at("")).contains(&name) {
                assert!(std::time::Instant::now() < until, "{name} doesn't show");
            }
            fs::create_dir(lab.at(format!("local{job}"))).expect("made");
            assert!(names(&lab.at("")).contains(&format!("local{job}")));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(names(&lab.at("")).len(), JOBS + 2 * MORE);
    assert_eq!(names(&lab.at("")).len(), JOBS + 2 * MORE);
}
