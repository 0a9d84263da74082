//! The programs that results meet, in a unit that is new and in one whose content is in the store only: they find no difference.

use std::path::PathBuf;

use resultsfs::ids::{RelPath, UnitId};

use crate::{
    all_ways,
    lab::{Lab, assert_same_tree, describe, sh},
};

fn unit() -> UnitId {
    UnitId::tree(RelPath::parse("1-me/host1").expect("a path"))
}

/// The same script in a new unit, in one that was committed and is still here, and in one that was evicted. What it needs, `before` makes.
fn everywhere(lab: &Lab, before: &str, script: &str) {
    let dir = lab.at("1-me/host1");
    for place in ["new", "committed", "evicted"] {
        sh(r#"rm -rf "$1"; mkdir -p "$1""#, &[&dir]);
        sh(&format!("cd \"$1\"\n{before}"), &[&dir]);
        if place != "new" {
            lab.commit(&unit());
        }
        if place == "evicted" {
            lab.evict(&unit());
            assert!(!lab.spool("1-me/host1").exists());
        }
        println!("in a unit that is {place}");
        sh(&format!("cd \"$1\"\n{script}"), &[&dir]);
        if place != "evicted" {
            assert_same_tree(&lab.spool("1-me/host1/made"), &describe(&dir.join("made")));
        }
    }
}

/// A tree as a job leaves it, outside of the mount.
fn source(lab: &Lab) -> PathBuf {
    let dir = lab.dir.path().join("source");
    sh(
        r#"mkdir -p "$1/debug" "$1/sysinfo/reboot"; cd "$1"; seq 20000 > debug/client.DEBUG; : > debug/empty
           head -c 200000 /dev/urandom > core; ln -s debug/empty link; ln -s nowhere dangling; ln core hard; chmod 600 core
           for i in $(seq 40); do echo "$i" > "sysinfo/file $i"; done; chmod 2750 sysinfo/reboot
           find . -depth -exec touch -h -d '2021-02-03 04:05:06.123456789' {} +"#,
        &[&dir],
    );
    dir
}

all_ways! {
    /// Eight processes append to one file at once: no line is lost, none is torn.
    fn eight_appenders_lose_no_line(lab) {
        everywhere(&lab, "mkdir made; echo first > made/log", r#"python3 - <<'END'
import os, sys
go, ready = os.pipe()[0:2], os.pipe()
children = []
for child in range(8):
    pid = os.fork()
    if pid == 0:
        os.close(go[1])
        os.write(ready[1], b".")
        os.read(go[0], 1)
        fd = os.open("made/log", os.O_WRONLY | os.O_APPEND)
        for line in range(300):
            text = f"{child} {line} {'x' * (line % 90)}\n".encode()
            assert os.write(fd, text) == len(text)
        os._exit(0)
    children.append(pid)
for _ in children:
    os.read(ready[0], 1)
os.close(go[1])
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
lines = open("made/log").read().splitlines()
wanted = ["first"] + [f"{c} {l} {'x' * (l % 90)}" for c in range(8) for l in range(300)]
assert lines[0] == "first", lines[:3]
assert sorted(lines) == sorted(wanted), (len(lines), len(wanted))
for child in range(8):
    own = [l for l in lines if l.startswith(f"{child} ")]
    assert own == [w for w in wanted if w.startswith(f"{child} ")], "in the order of its writer"
END"#);
    }

    /// flock(2) and fcntl(2) between processes, also when the file is copied up while it is locked.
    fn locks_hold_also_where_the_file_is_in_the_store_only(lab) {
        everywhere(&lab, "mkdir made; echo text > made/lock", r#"python3 - <<'END'
import fcntl, os, sys
def other(how, exclusive, length):
    "Whether another process gets a lock."
    pid = os.fork()
    if pid == 0:
        file = open("made/lock", "r+" if how == "posix" and exclusive else "r")
        kind = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
        try:
            fcntl.flock(file, kind) if how == "flock" else fcntl.lockf(file, kind, length)
        except BlockingIOError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0
held = open("made/lock")
fcntl.flock(held, fcntl.LOCK_SH)
assert other("flock", False, 0) and not other("flock", True, 0)
fcntl.flock(held, fcntl.LOCK_EX)
assert not other("flock", False, 0)
# The first writer brings the file here; the lock stays.
with open("made/lock", "a") as file:
    file.write("more\n")
assert not other("flock", False, 0)
fcntl.flock(held, fcntl.LOCK_UN)
assert other("flock", True, 0)
written = open("made/lock", "r+")
fcntl.lockf(written, fcntl.LOCK_EX, 4)
assert not other("posix", False, 0) and not other("posix", True, 2)
fcntl.lockf(written, fcntl.LOCK_UN)
assert other("posix", True, 0)
# A read lock on a part of a file that nobody has written to yet.
assert open("made/lock").read() == "text\nmore\n"
END"#);
    }

    fn tail_follows(lab) {
        everywhere(&lab, "mkdir made; echo one > made/log", r#"
            tail -s 0.05 -n +1 -f made/log > ../out & tail=$!
            tail -s 0.05 -n +1 -F made/log > ../out2 2> ../err & other=$!
            seen() { for i in $(seq 400); do ! grep -q "$1" "$2" || return 0; sleep 0.05; done; echo "no $1 in $2"; return 1; }
            seen one ../out; echo two >> made/log; seen two ../out; seen two ../out2
            mv made/log made/log.1; echo three > made/log; seen three ../out2; kill $tail $other; wait || true
            test "$(cat ../out)" = "$(printf 'one\ntwo')"; rm ../out ../out2 ../err"#);
    }

    fn inotify_tells_of_local_changes(lab) {
        everywhere(&lab, "mkdir made; echo one > made/f; echo two > made/g", r#"python3 - <<'END'
import ctypes, os, select, struct, subprocess
MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE = 2, 4, 8, 64, 128, 256, 512
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(fd, b"made", MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE) >= 0
subprocess.check_call("echo more >> made/f; chmod 600 made/f; mv made/f made/h; rm made/g; mkdir made/d", shell=True)
wanted = [(MODIFY, b"f"), (CLOSE_WRITE, b"f"), (ATTRIB, b"f"), (MOVED_FROM, b"f"), (MOVED_TO, b"h"), (DELETE, b"g"), (CREATE, b"d")]
told = []
while any(w not in told for w in wanted):
    assert select.select([fd], [], [], 20)[0], f"told only {told}"
    data = os.read(fd, 65536)
    while data:
        _, mask, _, length = struct.unpack("iIII", data[:16])
        told.append((mask & 0xfff, data[16:16 + length].rstrip(b"\0")))
        data = data[16 + length:]
END"#);
    }

    fn find_newer(lab) {
        everywhere(&lab, "mkdir -p made/d; for i in 1 2 3; do touch -d @1000000 made/d/$i; done; touch -d @2000000 made/mark", r#"
            test -z "$(find made/d -type f -newer made/mark)"
            echo x >> made/d/2; touch made/d/new
            test "$(find made -type f -newer made/mark | sort)" = "$(printf 'made/d/2\nmade/d/new')"
            test "$(find made -type f ! -newer made/mark | sort)" = "$(printf 'made/d/1\nmade/d/3\nmade/mark')"
            test "$(find made -type d | wc -l)" = 2"#);
    }

    /// P1: a tree goes in and comes out again as it was, before and after the offload; a second run of rsync has nothing to do.
    fn rsync_and_tar_in_and_out(lab) {
        let (source, made) = (source(&lab), lab.at("1-me/host1/made"));
        // Hard links of what is in the store only are separate files, see docs/semantics.md.
        sh(r#"rm "$1/hard"; touch -d '2021-02-03 04:05:06.123456789' "$1""#, &[&source]);
        let expected = describe(&source);
        sh(r#"mkdir -p "$1"; rsync -aH "$2/" "$1/""#, &[&made, &source]);
        for place in ["new", "committed", "evicted"] {
            println!("in a unit that is {place}");
            match place {
                "committed" => lab.commit(&unit()),
                "evicted" => lab.evict(&unit()),
                _ => {}
            }
            sh(
                r#"quietly() { said=$("$@"); test -z "$said" || { echo "$*: $said"; false; }; }
                   quietly rsync -aHi "$2/" "$1/"; quietly rsync -aHci --delete "$2/" "$1/"
                   rm -rf "$3"; mkdir "$3"; rsync -aH "$1/" "$3/"; quietly rsync -aHi "$1/" "$3/"; quietly rsync -aHci --delete "$2/" "$3/"
                   tar -C "$1" -cf - --format=pax . | tar -C "$2" -df -; tar -C "$2" -cf - --format=pax . | tar -C "$1" -df -
                   diff -r --no-dereference "$1" "$2""#,
                &[&made, &source, &lab.dir.path().join("out")],
            );
            assert_same_tree(&lab.dir.path().join("out"), &expected);
            assert_same_tree(&made, &expected);
        }
    }

    fn git_clones_and_packs(lab) {
        let origin = lab.dir.path().join("origin");
        sh(
            r#"export HOME="$1" GIT_CONFIG_NOSYSTEM=1; git init -q -b main "$1/r"; cd "$1/r"; git config user.email a@b; git config user.name me
               for i in $(seq 15); do mkdir -p d$((i % 4)); seq $((i * 100)) > d$((i % 4))/f$i; git add -A; git commit -qm $i; done"#,
            &[&origin],
        );
        let clone = format!(r#"export HOME="{0}" GIT_CONFIG_NOSYSTEM=1; git clone -q --no-local "{0}/r" made"#, origin.display());
        let work = format!(
            r#"export HOME="{0}" GIT_CONFIG_NOSYSTEM=1; cd made; git config user.email a@b; git config user.name me
               test -z "$(git status --porcelain)"; echo more >> d1/f1; git commit -qam more; git checkout -qb side HEAD~3; git checkout -q main
               git repack -adq; git gc -q --prune=now; git fsck --full 2>&1; test -z "$(git status --porcelain)"; test "$(git rev-list HEAD | wc -l)" = 16
               rm -rf "{0}/back"; git clone -q --no-local . "{0}/back"; test -d "{0}/back/d1""#,
            origin.display()
        );
        everywhere(&lab, &clone, &work);
    }

    /// With its rollback journal and with its write-ahead log, which is a shared mapping; two processes at once.
    fn sqlite_in_the_tree(lab) {
        let make = r#"mkdir made; python3 - <<'END'
import sqlite3
for mode in ["delete", "wal"]:
    base = sqlite3.connect(f"made/{mode}.db")
    assert base.execute(f"pragma journal_mode={mode}").fetchone()[0] == mode
    base.execute("create table t (writer, n)")
    base.executemany("insert into t values (-1, ?)", [(n,) for n in range(2000)])
    base.commit()
END"#;
        everywhere(&lab, make, r#"python3 - <<'END'
import os, sqlite3
for mode in ["delete", "wal"]:
    children = []
    for writer in range(2):
        pid = os.fork()
        if pid == 0:
            base = sqlite3.connect(f"made/{mode}.db", timeout=40)
            base.execute("pragma synchronous=off")
            for n in range(20):
                with base:
                    base.execute("begin immediate")
                    base.execute("insert into t values (?, ?)", (writer, n))
            base.close()
            os._exit(0)
        children.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
    base = sqlite3.connect(f"made/{mode}.db")
    assert base.execute("pragma journal_mode").fetchone()[0] == mode
    assert base.execute("select count(*) from t").fetchone()[0] == 2040
    assert base.execute("pragma integrity_check").fetchone()[0] == "ok"
    base.close()
END"#);
    }

    fn du_and_df(lab) {
        let (source, made) = (source(&lab), lab.at("1-me/host1/made"));
        sh(r#"mkdir -p "$1"; cp -a "$2/." "$1/""#, &[&made, &source]);
        let same = |options: &str| {
            let count = format!(r#"find "$1" "$2" -type f -exec chmod u+r {{}} +; a=$(find "$1" -type f -print0 | du {options} --files0-from=- | tail -1)
                b=$(find "$2" -type f -print0 | du {options} --files0-from=- | tail -1); test "$a" = "$b" || {{ echo "$a, not $b"; false; }}"#);
            sh(&count, &[&made, &source]);
        };
        same("-cb");
        sh(r#"test "$(df --output=size,itotal "$1" | tail -1)" = "$(df --output=size,itotal "$2" | tail -1)""#, &[&made, &lab.spool("")]);
        lab.commit(&unit());
        lab.evict(&unit());
        // Each name counts: names of one file have numbers of their own there.
        same("-cbl");
    }

    fn editors_and_log_rotation(lab) {
        everywhere(&lab, "mkdir -p made/d; seq 100 > made/log; echo old > made/conf; echo a > made/d/a; printf '#!/bin/sh\necho ran\n' > made/prog; chmod 755 made/prog", r#"
            sed -i s/old/new/ made/conf; test "$(cat made/conf)" = new
            echo 101 | tee -a made/log > ../tee; tail -1 made/log | grep -qx 101; rm ../tee
            test "$(made/prog)" = ran; sed -i s/ran/again/ made/prog; test "$(made/prog)" = again
            exec 5>> made/log; mv made/log made/log.1; : > made/log; chmod 640 made/log; echo late >&5; exec 5>&-
            test "$(tail -1 made/log.1)" = late; test ! -s made/log; gzip made/log.1; test "$(zcat made/log.1.gz | wc -l)" = 102
            cp -a made/d made/copy; test "$(cat made/copy/a)" = a; mv made/copy/a made/d/b; rmdir made/copy; test "$(ls made/d)" = "$(printf 'a\nb')"
            mv made/d made/e; test "$(cat made/e/a made/e/b)" = "$(printf 'a\na')"; test ! -e made/d
            truncate -s 4M made/hole; echo end >> made/hole; cp --sparse=always made/hole made/hole2; cmp made/hole made/hole2
            test "$(stat -c %b made/hole2)" -lt 100; dd if=/dev/zero of=made/hole bs=1 seek=9 count=1 conv=notrunc status=none
            install -m 600 made/conf made/conf2; ln made/conf made/conf3; ln -sf conf made/l; ln -sfn conf2 made/l; test "$(readlink made/l)" = conf2
            chmod 400 made/conf2; chown 12:34 made/conf2; touch -d @5 made/conf2; test "$(stat -c '%u %g %a %Y' made/conf2)" = "12 34 400 5"
            rm -rf made/e; test ! -e made/e"#);
    }

    /// Nobody can write to a program that runs, nor empty it, by any way of opening or by its path. The kernel leaves one of these ways to us.
    fn a_program_that_runs_keeps_its_text(lab) {
        everywhere(&lab, "mkdir made; cp \"$(command -v sleep)\" made/prog", r#"python3 - <<'END'
import errno, os, subprocess
path, size = "made/prog", os.stat("made/prog").st_size
ways = [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC]
def opens(flags):
    try:
        os.close(os.open(path, flags))
    except OSError as e:
        assert e.errno == errno.ETXTBSY, e
        return False
    return True
for _ in range(4):
    running = subprocess.Popen([path, "60"])
    assert not any(opens(flags) for flags in ways)
    try:
        os.truncate(path, 1)
        raise AssertionError("truncated")
    except OSError as e:
        assert e.errno == errno.ETXTBSY, e
    assert os.stat(path).st_size == size and running.poll() is None
    running.kill()
    running.wait()
assert opens(os.O_RDONLY) and opens(os.O_RDONLY | os.O_TRUNC)
assert os.stat(path).st_size == 0
END"#);
    }
}
