//! A job of everything odd: names, holes, hard links, FIFOs, modes and times.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    io::{Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::Path,
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

/// Writes `<top>/1-me/host1` and gives nothing back: what it is, is in the names.
pub fn job(top: &Path) {
    let dir = top.join("1-me/host1");
    fs::create_dir_all(dir.join("debug")).expect("a directory");
    for label in ["autoserv", "parser", "archiver"] {
        fs::write(dir.join(format!(".{label}_execute")), "1\n0\n0\n").expect("a pidfile");
    }
    let names: [&[u8]; 5] = [b"line\nbreak", b"\xff\xfe not UTF-8", b"blank at the end ", b"-rf", b"\x01\\x"];
    for name in names {
        fs::write(dir.join(OsStr::from_bytes(name)), name).expect("a file");
    }
    fs::write(dir.join("n".repeat(255)), "long").expect("a file");
    let deep = dir.join(vec!["d"; 60].join("/"));
    fs::create_dir_all(&deep).expect("directories");
    fs::write(deep.join("bottom"), "deep").expect("a file");
    symlink("../nowhere", dir.join("dangling")).expect("a link");
    symlink("debug", dir.join("to-debug")).expect("a link");
    fs::write(dir.join("empty"), "").expect("a file");
    fs::hard_link(dir.join("-rf"), dir.join("debug/second name")).expect("a hard link");
    holes(&dir);
    modes(&dir);
    mknodat(CWD, dir.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).expect("a FIFO");
    times(&dir);
}

fn holes(dir: &Path) {
    let mut file = fs::File::create(dir.join("holes")).expect("a file");
    for at in [1 << 20, 3 << 20] {
        file.seek(SeekFrom::Start(at)).expect("a seek");
        file.write_all(b"between holes").expect("written");
    }
    file.set_len(5 << 20).expect("a hole at the end");
}

fn modes(dir: &Path) {
    for (name, mode) in [("mode000", 0o000), ("setuid", 0o4755), ("setgid", 0o2755), ("sticky", 0o1777)] {
        fs::write(dir.join(name), name).expect("a file");
        fs::set_permissions(dir.join(name), Permissions::from_mode(mode)).expect("a mode");
    }
    fs::create_dir(dir.join("closed")).expect("a directory");
    fs::set_permissions(dir.join("closed"), Permissions::from_mode(0o000)).expect("a mode");
}

fn times(dir: &Path) {
    for (name, secs, nanos) in
        [("empty", -1, 999_999_999), ("-rf", 4_070_908_800, 1), ("dangling", 7, 123_456_789)]
    {
        let time = Timespec { tv_sec: secs, tv_nsec: nanos };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, dir.join(name), &times, AtFlags::SYMLINK_NOFOLLOW).expect("a time");
    }
}
