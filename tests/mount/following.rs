//! Files of other hosts that are open here while they move on.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use resultsfs::ids::{RelPath, UnitId};

use crate::{all_ways, lab::Lab};

fn unit() -> UnitId {
    UnitId::tree(RelPath::parse("8-me/host2").expect("a path"))
}

/// What the other host has of the unit.
fn theirs(lab: &Lab, name: &str, content: &str) -> PathBuf {
    let dir = lab.dir.path().join("theirs");
    fs::create_dir_all(&dir).expect("made");
    fs::write(dir.join(name), content).expect("written");
    dir
}

fn rest(file: &mut File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).expect("readable");
    text
}

fn errno(result: std::io::Result<()>) -> i32 {
    result.expect_err("refused").raw_os_error().expect("a number")
}

all_ways! {
    /// A file that has only grown goes on in the handles that are open on it, as the same file; one that was written over, or is gone, stays
    /// there as it was, and whoever opens it anew gets the new one. Whether it runs or was committed makes no difference.
    fn an_open_file_goes_on_when_it_has_only_grown(lab) {
        let at = lab.at("8-me/host2/log");
        lab.runs(&unit(), &theirs(&lab, "log", "one\n"));
        let mut open = File::open(&at).expect("opens");
        assert_eq!(rest(&mut open), "one\n");
        let inode = open.metadata().expect("stat").ino();
        lab.runs(&unit(), &theirs(&lab, "log", "one\ntwo\n"));
        assert_eq!(rest(&mut open), "two\n");
        lab.foreign(&unit(), &theirs(&lab, "log", "one\ntwo\nthree\n"));
        assert_eq!((rest(&mut open), fs::read_to_string(&at).expect("read")), ("three\n".into(), "one\ntwo\nthree\n".into()));
        let grown = (open.metadata().expect("stat"), fs::metadata(&at).expect("stat"));
        assert_eq!((grown.0.len(), grown.0.ino(), grown.1.ino()), (14, inode, inode));

        lab.runs(&unit(), &theirs(&lab, "log", "something else that is longer\n"));
        assert_eq!(fs::read_to_string(&at).expect("read"), "something else that is longer\n");
        assert_eq!((rest(&mut open), open.metadata().expect("stat").len()), (String::new(), 14));
        open.seek(SeekFrom::Start(0)).expect("seeks");
        assert_eq!(rest(&mut open), "one\ntwo\nthree\n");
        assert_ne!(fs::metadata(&at).expect("stat").ino(), inode);

        fs::remove_file(theirs(&lab, "log", "").join("log")).expect("removed");
        let mut second = File::open(&at).expect("opens");
        lab.foreign(&unit(), &theirs(&lab, "other", ""));
        assert!(!at.exists());
        assert_eq!(rest(&mut second), "something else that is longer\n");
    }

    /// What another host is just writing can't be deleted or replaced, whatever the rights: a deletion hides what was committed. It can be changed,
    /// and what it then commits is as new as that commit.
    fn what_runs_elsewhere_is_not_ours_to_delete(lab) {
        lab.store.allow_delete(true);
        let at = lab.at("8-me/host2/log");
        lab.runs(&unit(), &theirs(&lab, "log", "one\n"));
        fs::write(lab.at("8-me/host2/mine"), "mine\n").expect("written");
        assert_eq!(errno(fs::remove_file(&at)), libc::EBUSY);
        assert_eq!(errno(fs::rename(lab.at("8-me/host2/mine"), &at)), libc::EBUSY);
        assert_eq!(fs::read_to_string(&at).expect("read"), "one\n");
        lab.foreign(&unit(), &theirs(&lab, "log", "one\ntwo\n"));
        assert_eq!(fs::read_to_string(&at).expect("read"), "one\ntwo\n");
        fs::remove_file(&at).expect("it is committed, and may be deleted");
        assert!(!at.exists());
    }
}
