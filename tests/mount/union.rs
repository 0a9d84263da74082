//! What is committed, own and others', together with the spool.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use resultsfs::{
    fs::{Invalidation, Need, ROOT},
    ids::{RelPath, UnitId},
    journal::{Note, State},
};

use crate::{
    all_ways,
    lab::{Lab, assert_same_tree, describe, sh},
};

fn tree(root: &str) -> UnitId {
    UnitId::tree(RelPath::parse(root).expect("a path"))
}

/// What another host's execution dir looks like.
fn results(lab: &Lab, name: &str) -> PathBuf {
    let dir = lab.dir.path().join(name);
    sh(
        r#"mkdir -p "$1/sysinfo/deep" "$1/debug"; cd "$1"
           echo 'START ----' > status.log; seq 2000 > debug/client.DEBUG; touch empty; ln -s nowhere dangling; ln status.log hard; ln -s debug link
           echo secret > sysinfo/deep/f; chmod 600 sysinfo/deep/f; mkfifo pipe; chmod 2750 sysinfo
           find . -depth -exec touch -h -d '2021-02-03 04:05:06.123456789' {} +"#,
        &[&dir],
    );
    dir
}

/// The same results, of this host and evicted in the first unit, and of another host in the second.
fn two_remote_units(lab: &Lab) -> (UnitId, UnitId) {
    let source = results(lab, "theirs");
    let (own, foreign) = (tree("7-me/host1"), tree("7-me/host2"));
    sh(r#"mkdir -p "$2"; cp -a "$1/." "$2""#, &[&source, &lab.at("7-me/host1")]);
    lab.commit(&own);
    lab.evict(&own);
    lab.foreign(&foreign, &source);
    (own, foreign)
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("refused").raw_os_error().expect("a number")
}

fn exchange(a: &Path, b: &Path) {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).expect("exchanged");
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().append(true).open(path).expect("opens for appending");
    file.write_all(text.as_bytes()).expect("written");
}

all_ways! {
    /// A replica that was behind for a while, as after a crash: what wasn't there then shows when it is followed again, though somebody has the
    /// directory open all the time.
    fn what_shows_again_after_a_crash_is_found(lab) {
        let source = results(&lab, "theirs");
        lab.foreign(&tree("7-me/host1"), &source);
        let held = File::open(lab.at("7-me")).expect("shows");
        lab.store.roll_back();
        lab.told(vec![Invalidation::Entry { parent: ROOT, name: b"7-me".to_vec() }]);
        assert_eq!(errno(fs::metadata(lab.at("7-me"))), libc::ENOENT);
        lab.foreign(&tree("7-me/host1"), &source);
        assert!(fs::metadata(lab.at("7-me")).expect("shows again").is_dir());
        assert_eq!(fs::read_to_string(lab.at("7-me/host1/status.log")).expect("shows again"), "START ----\n");
        drop(held);
    }
}

all_ways! {
    /// P1: another host's tree is here, path for path, byte for byte, without anything of it in the spool.
    fn another_hosts_unit_is_the_same_tree_here(lab) {
        let source = results(&lab, "theirs");
        let expected = describe(&source);
        assert!(fs::metadata(lab.at("7-me")).is_err());
        lab.foreign(&tree("7-me/host2"), &source);
        assert_same_tree(&lab.at("7-me/host2"), &expected);
        assert_eq!(fs::read_dir(lab.spool("")).expect("lists").count(), 0);
        let top = fs::metadata(lab.at("7-me")).expect("stat");
        assert_eq!((top.mode() & 0o7777, top.uid()), (0o755, 0));
        assert_same_tree(&lab.at("7-me/host2"), &expected);
    }

    fn directories_are_merged(lab) {
        let source = results(&lab, "theirs");
        fs::create_dir_all(lab.at("7-me/host1")).expect("made");
        fs::write(lab.at("7-me/host1/mine"), "mine").expect("written");
        assert_eq!(sh(r#"ls "$1""#, &[&lab.at("7-me")]), "host1\n");
        lab.foreign(&tree("7-me/host2"), &source);
        assert_eq!(sh(r#"ls "$1""#, &[&lab.at("7-me")]), "host1\nhost2\n");
        // A file of ours in their unit, in a directory that only they have.
        fs::write(lab.at("7-me/host2/debug/ours"), "ours").expect("written");
        assert_eq!(sh(r#"ls "$1""#, &[&lab.at("7-me/host2/debug")]), "client.DEBUG\nours\n");
        assert_eq!(fs::read_to_string(lab.spool("7-me/host2/debug/ours")).expect("read"), "ours");
        let debug = fs::metadata(lab.spool("7-me/host2")).expect("stat");
        assert_eq!(debug.mtime(), fs::metadata(&source).expect("stat").mtime(), "a way to the new file keeps its time");
        assert_eq!(fs::read(lab.at("7-me/host2/status.log")).expect("read"), b"START ----\n");
        fs::remove_file(lab.at("7-me/host2/debug/ours")).expect("ours to remove");
        assert!(!lab.at("7-me/host2/debug/ours").exists());
    }

    /// P6: a late line in another host's or an evicted log.
    fn an_append_copies_up(lab) {
        let source = results(&lab, "theirs");
        lab.foreign(&tree("7-me/host2"), &source);
        let path = lab.at("7-me/host2/status.log");
        let node = fs::metadata(&path).expect("stat").ino();
        let mut reader = File::open(&path).expect("opens");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        append(&path, "END GOOD\n");
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "START ----\nEND GOOD\n", "an old handle sees it");
        assert_eq!(fs::read_to_string(&path).expect("read"), text);
        assert_eq!(fs::read_to_string(lab.spool("7-me/host2/status.log")).expect("read"), text);
        assert_eq!(fs::metadata(&path).expect("stat").ino(), node, "a node keeps its id through copy-up");
        assert_eq!(fs::read_dir(lab.dir.path().join("tmp")).expect("lists").count(), 0);
        drop(reader);
        fs::write(lab.at("7-me/host2/debug/client.DEBUG"), "new").expect("O_TRUNC");
        assert_eq!(fs::read_to_string(lab.at("7-me/host2/debug/client.DEBUG")).expect("read"), "new");
    }

    fn attributes_and_links_copy_up(lab) {
        let source = results(&lab, "theirs");
        lab.foreign(&tree("7-me/host2"), &source);
        let at = |path: &str| lab.at(Path::new("7-me/host2").join(path));
        sh(
            r#"cd "$1"; chmod 640 sysinfo/deep/f; test "$(stat -c '%a %Y' sysinfo/deep/f)" = "640 $(stat -c %Y status.log)"; cat sysinfo/deep/f
               truncate -s 5 debug/client.DEBUG; test "$(cat debug/client.DEBUG | tr '\n' ,)" = 1,2,3
               ln status.log again; test "$(stat -c %h again hard)" = "$(printf '3\n3')"; echo x >> again; tail -1 status.log
               touch -h -d @77 dangling; test "$(stat -c %Y dangling)" = 77; test "$(readlink dangling)" = nowhere
               touch -d @78 sysinfo; test "$(stat -c '%Y %a' sysinfo)" = "78 2750"; ls sysinfo/deep"#,
            &[&at("")],
        );
    }

    /// P3: nobody deletes or replaces what another host committed.
    fn what_others_have_is_not_deleted(lab) {
        let source = results(&lab, "theirs");
        lab.foreign(&tree("7-me/host2"), &source);
        let at = |path: &str| lab.at(Path::new("7-me/host2").join(path));
        assert_eq!(errno(fs::remove_file(at("status.log"))), libc::EPERM);
        assert_eq!(errno(fs::rename(at("status.log"), at("elsewhere"))), libc::EPERM);
        fs::write(lab.at("mine"), "").expect("written");
        assert_eq!(errno(fs::rename(lab.at("mine"), at("status.log"))), libc::EPERM);
        assert_eq!(errno(fs::create_dir(at("status.log"))), libc::EEXIST);
        assert_eq!(errno(fs::remove_dir(at("debug"))), libc::ENOTEMPTY);
        // An own copy on top doesn't change that.
        append(&at("status.log"), "x");
        assert_eq!(errno(fs::remove_file(at("status.log"))), libc::EPERM);
        assert_eq!(fs::read_to_string(at("status.log")).expect("read"), "START ----\nx");
        let _ = std::process::Command::new("rm").arg("-rf").arg(at("")).output().expect("runs");
        assert_eq!(fs::read_to_string(at("debug/client.DEBUG")).expect("read").lines().count(), 2000);
    }

    /// With the store's leave what others committed can be deleted: it is gone here at once, and for everybody with the next commit.
    fn what_others_have_is_deleted_with_leave(lab) {
        let source = results(&lab, "theirs");
        let unit = tree("7-me/host2");
        lab.foreign(&unit, &source);
        lab.store.allow_delete(true);
        let at = |path: &str| lab.at(Path::new("7-me/host2").join(path));
        fs::remove_file(at("status.log")).expect("removed");
        assert!(!at("status.log").exists());
        assert_eq!(errno(fs::remove_dir(at("debug"))), libc::ENOTEMPTY);
        // An own copy on top goes with what is below it.
        append(&at("empty"), "x");
        fs::remove_file(at("empty")).expect("removed");
        assert!(!at("empty").exists());
        fs::write(at("mine"), "new").expect("written");
        fs::rename(at("mine"), at("debug/client.DEBUG")).expect("replaced");
        assert_eq!(fs::read_to_string(at("debug/client.DEBUG")).expect("read"), "new");
        fs::rename(at("hard"), at("moved")).expect("renamed");
        assert_eq!((at("hard").exists(), fs::read_to_string(at("moved")).expect("read")), (false, "START ----\n".into()));
        sh(r#"cd "$1"; rm -rf sysinfo; test ! -e sysinfo; mkdir sysinfo; test -z "$(ls sysinfo)"; touch sysinfo/new"#, &[&at("")]);
        let expected = describe(&at(""));
        lab.commit(&unit);
        assert_same_tree(&at(""), &expected);
        let whiteouts: Vec<_> = lab.store.own_whiteouts(&unit);
        assert_eq!(whiteouts, ["empty", "hard", "status.log", "sysinfo/deep", "sysinfo/deep/f"]);
        assert!(lab.journal.gone(&unit).is_empty(), "the commit says it");
        lab.evict(&unit);
        assert_same_tree(&at(""), &expected);
        // What the other host writes later shows.
        sh(r#"rm -rf "$1/debug" "$1/hard"; echo later > "$1/status.log""#, &[&source]);
        lab.foreign(&unit, &source);
        assert_eq!(fs::read_to_string(at("status.log")).expect("read"), "later\n");
    }

    /// A whole job of another host goes as one, and what comes to it later shows with its way.
    fn a_whole_job_of_another_host_is_deleted(lab) {
        let source = results(&lab, "theirs");
        let (unit, loose) = (tree("7-me/host2"), UnitId::loose(RelPath::parse("7-me").expect("a path")));
        lab.foreign(&unit, &source);
        lab.store.allow_delete(true);
        sh(r#"rm -rf "$1""#, &[&lab.at("7-me")]);
        assert_eq!((lab.at("7-me").exists(), fs::read_dir(lab.at("")).expect("lists").count()), (false, 0));
        assert!(!lab.spool("7-me").exists());
        lab.commit(&unit);
        lab.commit(&loose);
        assert_eq!((lab.at("7-me").exists(), fs::read_dir(lab.at("")).expect("lists").count()), (false, 0));
        fs::create_dir_all(lab.at("7-me/host2")).expect("the name is free");
        assert_eq!(fs::read_dir(lab.at("7-me/host2")).expect("lists").count(), 0);
        fs::remove_dir(lab.at("7-me/host2")).expect("removed");
        fs::remove_dir(lab.at("7-me")).expect("removed");
        assert!(!lab.at("7-me").exists());
        lab.foreign(&tree("7-me/host3"), &source);
        assert_eq!(sh(r#"ls "$1""#, &[&lab.at("7-me")]), "host3\n");
    }

    /// A directory is renamed as a whole, wherever what is in it lies: the old name is gone, the new one is the same tree.
    fn a_remote_directory_is_renamed(lab) {
        let (own, foreign) = two_remote_units(&lab);
        let at = |path: &str| lab.at(path);
        let expected = describe(&at("7-me/host1/sysinfo"));
        assert_eq!(errno(fs::rename(at("7-me/host2/sysinfo"), at("7-me/host2/moved"))), libc::EPERM);
        assert!(!lab.spool("7-me/host2").exists(), "nothing was brought for nothing");
        fs::rename(at("7-me/host1/sysinfo"), at("7-me/host1/moved")).expect("an own one");
        assert_same_tree(&at("7-me/host1/moved"), &expected);
        lab.store.allow_delete(true);
        // A whole execution dir, with what this host has added to it, to another job and unit.
        append(&at("7-me/host2/status.log"), "late\n");
        let expected = describe(&at("7-me/host2"));
        fs::create_dir(at("8-me")).expect("made");
        fs::rename(at("7-me/host2"), at("8-me/host3")).expect("another host's");
        assert_same_tree(&at("8-me/host3"), &expected);
        assert!(!sh(r#"ls "$1" "$1/host1""#, &[&at("7-me")]).contains("host2"));
        let moved = describe(&at("7-me/host1"));
        for unit in [&own, &foreign, &tree("8-me/host3")] {
            lab.commit(unit);
            lab.evict(unit);
        }
        assert_same_tree(&at("8-me/host3"), &expected);
        assert_same_tree(&at("7-me/host1"), &moved);
        assert!(!at("7-me/host2").exists() && !at("7-me/host1/sysinfo").exists());
        // A job dir with all its units.
        let job = describe(&at("7-me/host1"));
        fs::rename(at("7-me"), at("9-me")).expect("a job");
        assert!(!at("7-me").exists());
        assert_same_tree(&at("9-me/host1"), &job);
        assert_eq!(lab.journal.get(&own).expect("a record").state, State::Running, "its old unit is open again");
    }

    /// Editors write beside and rename over; what was there goes as a whole.
    fn what_is_committed_is_replaced_atomically(lab) {
        let (own, foreign) = two_remote_units(&lab);
        lab.store.allow_delete(true);
        for host in ["host1", "host2"] {
            let at = |path: &str| lab.at(Path::new("7-me").join(host).join(path));
            fs::remove_file(at("hard")).expect("removed");
            fs::write(at("status.log.tmp"), "edited").expect("written");
            fs::rename(at("status.log.tmp"), at("status.log")).expect("replaced");
            assert_eq!(fs::read_to_string(at("status.log")).expect("read"), "edited");
            fs::create_dir(at("new")).expect("made");
            assert_eq!(errno(fs::rename(at("new"), at("debug"))), libc::ENOTEMPTY);
            fs::remove_file(at("debug/client.DEBUG")).expect("removed");
            fs::write(at("new/x"), "x").expect("written");
            fs::rename(at("new"), at("debug")).expect("an empty directory is replaced");
            assert_eq!(sh(r#"ls "$1""#, &[&at("debug")]), "x\n");
            exchange(&at("sysinfo"), &at("debug"));
            assert_eq!(sh(r#"ls "$1/debug" "$1/sysinfo""#, &[&at("")]).matches("deep").count(), 1);
            assert_eq!(fs::read_to_string(at("debug/deep/f")).expect("read"), "secret\n");
        }
        let expected = [describe(&lab.at("7-me/host1")), describe(&lab.at("7-me/host2"))];
        for unit in [&own, &foreign] {
            lab.commit(unit);
            lab.evict(unit);
        }
        assert_same_tree(&lab.at("7-me/host1"), &expected[0]);
        assert_same_tree(&lab.at("7-me/host2"), &expected[1]);
    }

    /// The states in which the daemon may die while it renames a directory: until the rename itself the old tree shows, from it on the new one.
    fn a_rename_that_is_cut_off_leaves_one_tree(lab) {
        let source = results(&lab, "theirs");
        let unit = tree("7-me/host2");
        lab.foreign(&unit, &source);
        lab.store.allow_delete(true);
        let at = |path: &str| lab.at(Path::new("7-me/host2").join(path));
        let expected = describe(&at("sysinfo"));
        let dir = fs::metadata(at("sysinfo")).expect("stat").ino();
        lab.fs.fulfil(&Need::Subtree { node: dir }).expect("brought");
        assert!(lab.spool("7-me/host2/sysinfo/deep/f").exists());
        lab.forget_all(&unit);
        assert_same_tree(&at("sysinfo"), &expected);
        let hidden = Some(Note::Hidden(lab.journal.head().expect("follows").1.seq));
        let notes = ["sysinfo", "sysinfo/deep", "sysinfo/deep/f"].map(|path| (RelPath::parse(path).expect("a path"), hidden));
        lab.journal.note(&unit, &notes).expect("noted");
        lab.forget_all(&unit);
        assert_same_tree(&at("sysinfo"), &expected);
        assert!(!at("moved").exists());
        fs::rename(lab.spool("7-me/host2/sysinfo"), lab.spool("7-me/host2/moved")).expect("as the daemon does");
        lab.forget_all(&unit);
        assert_same_tree(&at("moved"), &expected);
        assert!(!at("sysinfo").exists());
    }

    /// Another host's deletion of what is in this host's spool hides it, and doesn't stand in the way of what comes there anew.
    fn a_foreign_deletion_hides_the_own_file(lab) {
        let unit = tree("7-me/host1");
        sh(r#"mkdir -p "$1/d"; echo 1 > "$1/f"; echo 2 > "$1/d/g"; touch -d @7 "$1/f""#, &[&lab.at("7-me/host1")]);
        lab.commit(&unit);
        let at = |path: &str| lab.at(Path::new("7-me/host1").join(path));
        lab.foreign_deletes(&unit, &["d", "d/g", "f"]);
        assert_eq!(fs::read_dir(at("")).expect("lists").count(), 0);
        assert!(lab.spool("7-me/host1/f").exists());
        fs::create_dir(at("d")).expect("made");
        assert_eq!(fs::read_dir(at("d")).expect("lists").count(), 0);
        sh(r#"echo 1 > "$1/f"; touch -d @7 "$1/f"; rmdir "$1/d""#, &[&at("")]);
        let expected = describe(&at(""));
        lab.commit(&unit);
        assert_same_tree(&at(""), &expected);
        assert_eq!(fs::read_to_string(at("f")).expect("the same again is new"), "1\n");
    }

    /// P1 and P2's other side: what was evicted reads as before, and the disk is free.
    fn an_evicted_unit_is_the_same_tree(lab) {
        let unit = tree("7-me/host1");
        let source = results(&lab, "source");
        sh(r#"mkdir -p "$2"; cp -a "$1/." "$2""#, &[&source, &lab.at("7-me/host1")]);
        let expected = describe(&lab.at("7-me/host1"));
        let nodes = |path: &str| fs::metadata(lab.at(path)).expect("stat").ino();
        let before = (nodes("7-me/host1"), nodes("7-me/host1/status.log"));
        lab.commit(&unit);
        assert_same_tree(&lab.at("7-me/host1"), &expected);
        lab.evict(&unit);
        assert!(!lab.spool("7-me/host1").exists());
        assert_same_tree(&lab.at("7-me/host1"), &expected);
        assert_eq!((nodes("7-me/host1"), nodes("7-me/host1/status.log")), before, "nodes keep their ids");
        assert_eq!(lab.journal.get(&unit).expect("a record").state, State::Evicted);
    }

    /// The scheduler works in the tree: eviction must not take the directory from under it.
    fn a_working_directory_survives_eviction(lab) {
        let unit = tree("7-me/host1");
        sh(r#"mkdir -p "$1"; echo 1 > "$1/f""#, &[&lab.at("7-me/host1")]);
        let mut child = std::process::Command::new("bash")
            .args(["-ec", r#"pwd; read line; test "$(pwd -P)" = "$PWD"; /bin/pwd; cat f; echo 2 >> f; cat f; ls; stat -c %s f"#])
            .current_dir(lab.at("7-me/host1"))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("runs");
        let mut out = std::io::BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).expect("begun");
        lab.commit(&unit);
        lab.evict(&unit);
        child.stdin.take().expect("piped").write_all(b"go\n").expect("told");
        let mut rest = String::new();
        out.read_to_string(&mut rest).expect("read");
        assert!(child.wait().expect("waited").success(), "{rest}");
        assert_eq!(rest, format!("{line}1\n1\n2\nf\n4\n"));
    }

    /// Two names of one file stay that when one of them is written to after eviction.
    fn hard_links_survive_eviction_and_copy_up(lab) {
        let unit = tree("7-me/host1");
        let source = results(&lab, "source");
        sh(r#"mkdir -p "$2"; cp -a "$1/." "$2"; mkdir "$2/other"; ln "$2/status.log" "$2/other/name""#, &[&source, &lab.at("7-me/host1")]);
        lab.commit(&unit);
        lab.evict(&unit);
        append(&lab.at("7-me/host1/status.log"), "late\n");
        for name in ["status.log", "hard", "other/name"] {
            let path = lab.at(Path::new("7-me/host1").join(name));
            assert_eq!(fs::read_to_string(&path).expect("read"), "START ----\nlate\n", "{name}");
            assert_eq!(fs::metadata(&path).expect("stat").nlink(), 3, "{name}");
        }
        append(&lab.at("7-me/host1/other/name"), "later\n");
        assert_eq!(fs::read_to_string(lab.at("7-me/host1/hard")).expect("read"), "START ----\nlate\nlater\n");
    }

    fn changes_of_an_evicted_unit(lab) {
        let unit = tree("7-me/host1");
        let source = results(&lab, "source");
        sh(r#"mkdir -p "$2"; cp -a "$1/." "$2""#, &[&source, &lab.at("7-me/host1")]);
        lab.commit(&unit);
        lab.evict(&unit);
        let at = |path: &str| lab.at(Path::new("7-me/host1").join(path));
        fs::remove_file(at("debug/client.DEBUG")).expect("removed");
        assert!(!at("debug/client.DEBUG").exists());
        assert_eq!(fs::read_dir(at("debug")).expect("lists").count(), 0);
        fs::remove_dir(at("debug")).expect("removed");
        assert!(!at("debug").exists());
        let record = lab.journal.get(&unit).expect("a record");
        assert_eq!((record.state, record.partial, record.generation.0), (State::Running, true, 2));
        assert_eq!(lab.journal.gone(&unit).len(), 2);
        fs::create_dir(at("debug")).expect("made again");
        assert_eq!(fs::read_dir(at("debug")).expect("lists").count(), 0, "what was deleted stays so");
        fs::write(at("debug/client.DEBUG"), "again").expect("written");
        assert_eq!(fs::read_to_string(at("debug/client.DEBUG")).expect("read"), "again");
        fs::rename(at("status.log"), at("renamed")).expect("renamed");
        assert!(!at("status.log").exists());
        assert_eq!(fs::read_to_string(at("renamed")).expect("read"), "START ----\n");
        append(&at("sysinfo/deep/f"), "more");
        assert_eq!(fs::read_to_string(at("sysinfo/deep/f")).expect("read"), "secret\nmore");
        fs::remove_file(at("sysinfo/deep/f")).expect("removed");
        assert!(!at("sysinfo/deep/f").exists());
        fs::rename(at("sysinfo"), at("moved")).expect("renamed");
        sh(r#"cd "$1"; test ! -e sysinfo; test -d moved/deep; rm -rf "$1""#, &[&at("")]);
        assert!(!at("").exists());
    }

    /// A file that another host changed later wins over the unchanged own one, and an own later change over that.
    fn the_newest_of_a_path_shows(lab) {
        let unit = tree("7-me/host1");
        sh(r#"mkdir -p "$1"; echo first > "$1/keyval"; echo own > "$1/own""#, &[&lab.at("7-me/host1")]);
        let path = lab.at("7-me/host1/keyval");
        lab.commit(&unit);
        let theirs = lab.dir.path().join("theirs");
        sh(r#"mkdir "$1"; echo reparsed by the other > "$1/keyval""#, &[&theirs]);
        assert_eq!(fs::read_to_string(&path).expect("read"), "first\n");
        let held = File::open(&path).expect("opens");
        lab.foreign(&unit, &theirs);
        assert_eq!(fs::read_to_string(&path).expect("read"), "reparsed by the other\n");
        assert_eq!(std::io::read_to_string(held).expect("read"), "first\n", "an open file stays what it was");
        assert_eq!(fs::read_to_string(lab.at("7-me/host1/own")).expect("read"), "own\n");
        append(&path, "late line\n");
        assert_eq!(fs::read_to_string(&path).expect("read"), "reparsed by the other\nlate line\n");
        lab.commit(&unit);
        lab.evict(&unit);
        assert_eq!(fs::read_to_string(&path).expect("read"), "reparsed by the other\nlate line\n");
        assert_eq!(fs::read_to_string(lab.at("7-me/host1/own")).expect("read"), "own\n");
    }

    fn owners_come_by_name(lab) {
        let source = results(&lab, "theirs");
        chown(source.join("empty"), Some(4242), Some(4343)).expect("chown");
        lab.foreign(&tree("7-me/host2"), &source);
        let stat = fs::metadata(lab.at("7-me/host2/empty")).expect("stat");
        assert_eq!((stat.uid(), stat.gid()), (1, 4343), "`daemon` is number 1 here");
    }

    /// P8: with the store away what is local works as ever, and the rest fails soon and clearly.
    fn with_the_store_away(lab) {
        let source = results(&lab, "theirs");
        fs::create_dir_all(lab.at("7-me/host1")).expect("made");
        lab.store.set_away(true);
        lab.foreign(&tree("7-me/host2"), &source);
        let begun = Instant::now();
        assert_eq!(errno(fs::read(lab.at("7-me/host2/status.log"))), libc::EIO);
        assert_eq!(errno(fs::read_dir(lab.at("7-me/host2")).and_then(|mut d| d.next().expect("an error"))), libc::EIO);
        fs::write(lab.at("7-me/host1/status.log"), "runs on").expect("written");
        fs::create_dir_all(lab.at("8-me/host1")).expect("made");
        assert_eq!(sh(r#"ls "$1" "$1/7-me""#, &[&lab.at("")]).lines().filter(|l| l.starts_with("host")).count(), 2);
        assert!(begun.elapsed() < Duration::from_secs(10));
        lab.store.set_away(false);
        let until = Instant::now() + Duration::from_secs(20);
        while fs::read(lab.at("7-me/host2/status.log")).is_err() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_same_tree(&lab.at("7-me/host2"), &describe(&source));
    }

    /// Many readers of what isn't here don't keep writers of what is from working.
    fn remote_bytes_come_once(lab) {
        let source = results(&lab, "theirs");
        lab.foreign(&tree("7-me/host2"), &source);
        let path = lab.at("7-me/host2/debug/client.DEBUG");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(fs::read_to_string(&path).expect("read").lines().count(), 2000));
            }
        });
        let fetches = lab.store.fetches.load(Ordering::Relaxed);
        assert!(fetches <= 4, "{fetches} fetches");
        sh(r#"python3 -c 'import mmap,sys; f=open(sys.argv[1],"rb"); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); assert m[:4]==b"1\n2\n"' "$1""#, &[&path]);
    }

    /// Eviction keeps everybody out only while it works.
    fn operations_wait_for_a_frozen_unit(lab) {
        let unit = tree("7-me/host1");
        sh(r#"mkdir -p "$1"; echo 1 > "$1/f""#, &[&lab.at("7-me/host1")]);
        let until = Instant::now() + Duration::from_secs(10);
        let frozen = loop {
            if let Some(frozen) = lab.activity.try_freeze(&unit) {
                break frozen;
            }
            assert!(Instant::now() < until);
        };
        std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..4)
                .map(|i| scope.spawn({ let path = lab.at(format!("7-me/host1/new{i}")); move || fs::write(path, "x") }))
                .collect();
            // Both of fuser's threads are free meanwhile.
            for i in 0..20 {
                fs::create_dir_all(lab.at(format!("{i}-you/h"))).expect("made");
            }
            assert!(waiters.iter().all(|w| !w.is_finished()));
            drop(frozen);
            for waiter in waiters {
                waiter.join().expect("no panic").expect("written");
            }
        });
    }
}

all_ways! {
    /// What was read of a remote file the kernel keeps from one open to the next, as long as it is the same content.
    fn a_remote_file_read_twice_is_asked_for_once(lab) {
        let source = results(&lab, "theirs");
        fs::write(source.join("log"), "first").expect("written");
        lab.foreign(&tree("7-me/host2"), &source);
        let log = lab.at("7-me/host2/log");
        assert_eq!(fs::read(&log).expect("read"), b"first");
        assert_eq!(fs::read(&log).expect("read"), b"first");
        lab.cache.clear();
        lab.store.set_away(true);
        assert_eq!(fs::read(&log).expect("by the kernel alone"), b"first");
        lab.store.set_away(false);
        fs::write(source.join("log"), "other").expect("written");
        lab.foreign(&tree("7-me/host2"), &source);
        assert_eq!(fs::read(&log).expect("read"), b"other", "of the same length");
        // Changed here, committed, freed: remote again.
        append(&log, " line");
        assert_eq!(fs::read(&log).expect("read"), b"other line");
        lab.commit(&tree("7-me/host2"));
        lab.evict(&tree("7-me/host2"));
        assert_eq!(fs::read(&log).expect("read"), b"other line");
        assert_eq!(fs::read(&log).expect("read"), b"other line");
    }

    /// Holes of a file that is copied up, to be changed, take no room in the spool.
    fn a_hole_stays_a_hole_in_a_copy_up(lab) {
        let source = results(&lab, "theirs");
        let size = 200 << 10;
        let file = File::create(source.join("core")).expect("made");
        file.set_len(size).expect("a hole");
        (&file).write_all(b"head").expect("written");
        lab.foreign(&tree("7-me/host2"), &source);
        append(&lab.at("7-me/host2/core"), "tail");
        let stat = fs::metadata(lab.spool("7-me/host2/core")).expect("in the spool");
        assert_eq!(stat.len(), size + 4);
        assert!(stat.blocks() * 512 <= 32 << 10, "{} blocks", stat.blocks());
        let mut read = Vec::new();
        File::open(lab.at("7-me/host2/core")).and_then(|mut f| f.read_to_end(&mut read)).expect("read");
        assert!(read.starts_with(b"head\0") && read.ends_with(b"\0tail") && read.len() as u64 == size + 4);
    }
}
