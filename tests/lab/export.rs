//! P12 **You can leave**: `export` gives back what is in the store as plain files, with a mount and without one.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use resultsfs::demo;

use crate::{
    harness::{Lab, Machine, assert_same, picture, play_job, play_task, text},
    nasty,
    overlay::{job, put},
};

const ENOUGH: Duration = Duration::from_secs(240);

/// Everything but what isn't given back: setuid and setgid.
fn plain(dir: &Path) -> Vec<String> {
    let lines = picture(dir).into_iter();
    lines.filter(|line| !line.contains("host1/setuid\"") && !line.contains("host1/setgid\"")).collect()
}

fn exported(lab: &Lab, machine: &Machine, name: &str, paths: &[&str]) -> PathBuf {
    let to = lab.path().join("exported").join(name);
    let words = ["export", "--to", &to.display().to_string()].map(str::to_owned).into_iter();
    let out = machine.run(words.chain(paths.iter().map(|path| (*path).to_owned())));
    assert!(out.status.success(), "{name}: {}", text(&out.stderr));
    to
}

fn refused(machine: &Machine, to: &Path, path: &str, code: i32, why: &str) {
    let out = machine.run(["export", path, "--to", &to.display().to_string()]);
    let said = text(&out.stderr);
    assert!(out.status.code() == Some(code) && said.contains(why), "{path}: {said}");
}

/// A drone's jobs and a job of everything odd, committed; what the mount showed of them.
fn history(lab: &mut Lab, drone: &Machine) -> Vec<String> {
    lab.mount(drone);
    let source = lab.path().join("source");
    demo::generate::job(&source, 4, 2, 0.1).expect("a job");
    let from = fs::read_dir(&source).expect("jobs").flatten().next().expect("one job").path();
    play_job(&from, &drone.mount, 2);
    play_task(&drone.mount, 7);
    nasty::job(&drone.mount);
    job(drone, "3-me");
    let shown = plain(&drone.mount);
    assert!(shown.len() > 100);
    shown
}

/// P12 **You can leave.** All of the tree and parts of it, through a mount; on the same host without one, over ssh; on the results host from its daemon;
/// there, when nothing runs any more, from the store's files alone. Each time it is what the mount showed.
#[test]
fn a_store_gives_back_what_the_mount_showed() {
    let mut lab = Lab::new(ENOUGH);
    let (drone, results) = (lab.machine("drone1"), lab.machine("results"));
    let shown = history(&mut lab, &drone);
    assert_same("through the mount", &shown, &plain(&exported(&lab, &drone, "mounted", &["."])));
    lab.umount(&drone);
    let before = lab.logins();
    assert_same("over ssh", &shown, &plain(&exported(&lab, &drone, "ssh", &["."])));
    assert_eq!(lab.logins(), before + 1);
    assert_same("from the daemon", &shown, &plain(&exported(&lab, &results, "daemon", &["."])));
    assert_eq!(lab.logins(), before + 1, "no ssh on the results host");
    lab.kill_serve();
    assert_same("from the files", &shown, &plain(&exported(&lab, &results, "files", &["."])));

    let part = exported(&lab, &results, "part", &["3-me/host1/status.log", "hosts"]);
    let place = drone.mount.join("3-me/host1/status.log");
    assert_eq!(fs::read_to_string(part.join("3-me/host1/status.log")).expect("given back"), "GOOD\n");
    assert!(part.join("hosts/host1/7-verify").exists() && !part.join("3-me/host1/keyval").exists());
    let by_place = exported(&lab, &results, "place", &["./3-me/"]);
    assert!(by_place.join("3-me/host1/keyval").exists() && !place.exists());
    refused(&results, &lab.path().join("none"), "99-me", 1, "nothing is committed there");
    refused(&results, &lab.path().join("none2"), "../x", 2, "from the top of the results tree");
    refused(&results, &part, "3-me", 1, "isn't empty");
    let left: Vec<_> = fs::read_dir(std::env::temp_dir())
        .expect("readable")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("resultsfs-export-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// P9: a byte that was damaged in the store isn't given back for the right one.
#[test]
fn damage_is_never_exported() {
    let mut lab = Lab::new(ENOUGH);
    let (drone, results) = (lab.machine("drone1"), lab.machine("results"));
    lab.mount(&drone);
    put(&drone.mount, "3-me/host1/noise", &"some text that is in a block of its own\n".repeat(9));
    job(&drone, "3-me");
    lab.umount(&drone);
    lab.kill_serve();
    let pack = lab.store().join("packs/00000001.pack");
    let file = fs::File::options().read(true).write(true).open(&pack).expect("a pack");
    let mut byte = [0];
    // In the first block's payload, behind the pack's header, the block's own and its table.
    let at = 40 + 48 + 37 * 7 + 20;
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 1], at).expect("written");
    let out = results.run(["export", "3-me", "--to", &lab.path().join("to").display().to_string()]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
}

/// What was retired is given back by its number, also where nothing is mounted.
#[test]
fn an_old_incarnation_is_given_back_without_a_mount() {
    let mut lab = Lab::new(ENOUGH);
    let admin = lab.machine_with_delete("admin");
    lab.mount(&admin);
    job(&admin, "3-me");
    let old = picture(&admin.mount);
    assert!(admin.run(["retire", "3-me"]).status.success());
    lab.umount(&admin);
    let results = lab.machine("results");
    refused(&results, &lab.path().join("now"), "3-me", 1, "retired or pruned");
    for (name, path) in [("named", "3-me"), ("all", ".")] {
        let to = lab.path().join(name).display().to_string();
        let out = results.run(["export", path, "--to", &to, "--incarnation", "1"]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        assert_same(name, &old, &picture(Path::new(&to)));
    }
}
