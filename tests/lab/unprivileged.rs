//! The daemon of an ordinary user: no passthrough, no file handles, and as few descriptors as the user may have.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::Command,
    time::Duration,
};

use crate::harness::{EXE, Lab, Machine, run, text};

/// Who has nothing.
const NOBODY: u32 = 65534;
/// Descriptors that the daemon may have: far fewer than there are files in the tree.
const DESCRIPTORS: u32 = 512;

/// A machine that belongs to `NOBODY`, with a copy of the program where `NOBODY` can run it.
fn machine(lab: &Lab) -> Machine {
    fs::set_permissions(lab.path(), fs::Permissions::from_mode(0o755)).expect("may be entered");
    fs::copy(EXE, lab.path().join("resultsfs")).expect("a copy");
    let drone = lab.machine_with("drone1", "results_host: localhost");
    let dir = drone.mount.parent().expect("a machine's directory");
    for place in [dir, &drone.mount] {
        chown(place, Some(NOBODY), Some(NOBODY)).expect("given away");
    }
    drone
}

/// Runs a script of `NOBODY` in a mount name space of its own, in which `NOBODY` may use /dev/fuse, with the tree mounted: `$1` is the program with its
/// configuration, `$2` the mount point, `$3` the spool. Whatever happens, the mount is gone afterwards.
fn in_the_tree(lab: &Lab, drone: &Machine, script: &str) -> String {
    let as_nobody = format!("setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups");
    let config = drone.config.display();
    let (place, spool) = (drone.mount.display(), drone.state.join("spool"));
    let program = format!("{}/resultsfs --config {config}", lab.path().display());
    let inner = lab.path().join("script");
    fs::write(
        &inner,
        format!("set -euo pipefail; trap 'echo \"line $LINENO: $BASH_COMMAND\" >&2' ERR\n{script}"),
    )
    .expect("written");
    let outer = format!(
        "set -eu; mknod -m 666 {lab}/fuse c 10 229; mount --bind {lab}/fuse /dev/fuse
         trap 'cd /; {as_nobody} {program} umount --timeout 5 {place} || umount -l {place}' EXIT
         {as_nobody} prlimit --nofile={DESCRIPTORS}:{DESCRIPTORS} {program} mount {place}
         {as_nobody} timeout 100 bash {inner} '{program}' {place} {spool}",
        lab = lab.path().display(),
        inner = inner.display(),
        spool = spool.display(),
    );
    let out = Command::new("timeout").args(["150", "unshare", "--mount", "bash", "-c", &outer]).output();
    let out = out.expect("runs");
    let log = fs::read_to_string(drone.state.join("daemon.log")).unwrap_or_default();
    assert!(out.status.success(), "{}{}\n{log}", text(&out.stdout), text(&out.stderr));
    assert!(!log.contains("Too many open files"), "{log}");
    text(&out.stdout)
}

/// Without CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH (an ordinary user, fusermount3) the kernel refuses passthrough and file handles. `status` says so,
/// everyday work goes on as ever, and the daemon needs no descriptor for each of the files that the kernel knows: here three times as many as it
/// may have.
#[test]
fn an_ordinary_user_has_the_same_tree_with_few_descriptors() {
    let lab = Lab::bare(Duration::from_secs(180));
    let drone = machine(&lab);
    let said = in_the_tree(&lab, &drone, EVERYDAY);
    assert!(said.contains(r#""data_path":"ordinary""#) && said.contains(r#""held_by":"none""#), "{said}");
    same(&drone.state.join("spool/1-me"), &lab.path().join("drone1/copy"));
}

/// Makes 1600 files in 40 directories, and does to them what programs do; leaves a copy of the tree beside the mount.
const EVERYDAY: &str = r##"
    program=$1 tree=$2
    $program --json status
    pid=$($program --json status | sed 's/.*"pid":\([0-9]*\).*/\1/')
    mkdir -p "$tree/1-me/host1" && cd "$tree/1-me/host1"
    for d in $(seq 40); do
        mkdir -p "d$d/deep" && for f in $(seq 40); do echo "$d $f" > "d$d/deep/f$f"; done
    done
    # The kernel knows them all now, and goes on knowing them.
    find . -type f -printf '%i %p\n' | sort > ../../../numbers
    [ "$(wc -l < ../../../numbers)" = 1600 ]
    [ "$(ls "/proc/$pid/fd" | wc -l)" -lt 512 ]
    cat d*/deep/* | wc -l | grep -qx 1600
    find . -type f -printf '%i %p\n' | sort | cmp - ../../../numbers
    exec 5>> d1/deep/f1 6< d1/deep/f2
    ln d1/deep/f3 hard && rm d1/deep/f2 && mv d1 moved && echo more >&5
    [ "$(cat <&6)" = "1 2" ] && [ "$(tail -1 moved/deep/f1)" = more ]
    for d in $(seq 2 40); do chmod 640 "d$d"/deep/f{1..9}; echo late >> "d$d/deep/f40"; stat "d$d/deep/f7" > /dev/null; done
    exec 5>&- 6<&-
    echo linked >> moved/deep/f3 && [ "$(cat hard)" = "$(cat moved/deep/f3)" ]
    [ "$(stat -c '%i %h' hard)" = "$(stat -c '%i %h' moved/deep/f3)" ]
    (cd d9/deep && mv ../../d9 ../../was9 && [ "$(/bin/pwd)" = "$tree/1-me/host1/was9/deep" ] && echo here > here)
    rm -r d2 d3 && touch -d @1000000000 d4/deep/f1 && ln -s d4/deep/f1 link && mv -T d5/deep/f1 d4/deep/f2
    python3 -c 'import os
files = [open(f"d10/deep/f{n}", "a") for n in range(1, 41)]
[file.write("from all at once\n") for file in files]
[file.close() for file in files]
open("d11/new", "w").write("new")
os.truncate("d11/deep/f1", 0)'
    [ "$(grep -l 'from all at once' -r d10 | wc -l)" = 40 ]
    [ "$(find . -type f | wc -l)" = 1521 ]
    cp -a "$tree/1-me" ../../../copy
    diff -r --no-dereference "$tree/1-me" ../../../copy
    [ "$(ls "/proc/$pid/fd" | wc -l)" -lt 512 ]
"##;

fn same(a: &Path, b: &Path) {
    run(Command::new("diff").args(["-r", "--no-dereference"]).args([a, b]));
}
