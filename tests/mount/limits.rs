//! Names, depths and numbers at the kernel's limits.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
};

use resultsfs::{
    fuse::Passthrough,
    ids::{RelPath, UnitId},
};
use rustix::fs::{self as sys, Mode, OFlags};

use crate::{
    all_ways,
    lab::{Lab, assert_same_tree, describe, sh},
};

fn unit() -> UnitId {
    UnitId::tree(RelPath::parse("1-me/host1").expect("a path"))
}

/// Every byte that a name may have, at each end of it, and names of 255 bytes.
fn names() -> Vec<OsString> {
    let bytes = (1..=255u8).filter(|b| *b != b'/');
    let short = bytes.clone().filter(|b| *b != b'.').map(|b| vec![b]);
    let long = bytes.map(|b| [vec![b], vec![b'n'; 253], vec![b]].concat());
    short.chain(long).map(OsString::from_vec).collect()
}

fn listed(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> =
        fs::read_dir(dir).expect("lists").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    names
}

/// Makes directories with names of 200 bytes below `dir`, one in the other by openat(2), until one is refused; how many, and why.
fn dig(dir: &Path) -> (usize, OwnedFd, rustix::io::Errno) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = sys::open(dir, flags, Mode::empty()).expect("opens");
    let name = "d".repeat(200);
    for depth in 0.. {
        match sys::mkdirat(&here, &name, Mode::from_raw_mode(0o755)) {
            Ok(()) => here = sys::openat(&here, &name, flags, Mode::empty()).expect("opens what it made"),
            Err(e) => return (depth, here, e),
        }
    }
    unreachable!("the loop ends by returning")
}

all_ways! {
    fn every_byte_is_allowed_in_a_name(lab) {
        let dir = lab.at("1-me/host1");
        fs::create_dir_all(&dir).expect("made");
        for name in names() {
            fs::write(dir.join(&name), name.as_bytes()).expect("written");
        }
        let mut expected = names();
        expected.sort();
        assert_eq!(listed(&dir), expected);
        lab.commit(&unit());
        lab.evict(&unit());
        assert_eq!(listed(&dir), expected);
        for name in names() {
            assert_eq!(fs::read(dir.join(&name)).expect("read"), name.as_bytes());
        }
        for name in names().iter().step_by(7) {
            fs::rename(dir.join(name), dir.join(OsStr::new("moved"))).expect("renamed");
            fs::rename(dir.join("moved"), dir.join(name)).expect("and back");
            fs::remove_file(dir.join(name)).expect("removed");
        }
        let left: Vec<_> = names().into_iter().enumerate().filter(|(i, _)| i % 7 != 0).map(|(_, n)| n).collect();
        assert_eq!(listed(&dir).len(), left.len());
        let error = fs::write(dir.join("n".repeat(256)), "").expect_err("too long");
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    }

    /// A path beyond what can be carried is refused when it is to be made, by whichever call, and what is there stays whole.
    fn a_path_that_is_too_long_is_refused_when_it_is_made(lab) {
        fs::create_dir_all(lab.at("1-me/host1")).expect("made");
        let (depth, deepest, why) = dig(&lab.at("1-me/host1"));
        assert_eq!(why, rustix::io::Errno::NAMETOOLONG);
        assert!(depth >= 18, "only {depth} directories of 200 bytes");
        let (long, short) = ("f".repeat(200), "s");
        let create = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let refused = |what: Result<(), rustix::io::Errno>| assert_eq!(what, Err(rustix::io::Errno::NAMETOOLONG));
        refused(sys::openat(&deepest, &long, create, mode).map(drop));
        refused(sys::symlinkat("x", &deepest, &long));
        refused(sys::mknodat(&deepest, &long, sys::FileType::Fifo, mode, 0));
        sys::openat(&deepest, short, create, mode).expect("a short name fits");
        refused(sys::linkat(&deepest, short, &deepest, &long, sys::AtFlags::empty()));
        refused(sys::renameat(&deepest, short, &deepest, &long));
        // Moving what is deep to where it would be too deep.
        let top = lab.at("1-me/host1").join("d".repeat(200));
        fs::create_dir_all(lab.at("1-me/host1").join("e".repeat(250))).expect("made");
        let deeper = lab.at("1-me/host1").join("e".repeat(250)).join("d".repeat(200));
        let error = fs::rename(&top, &deeper).expect_err("too deep");
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
        fs::rename(&top, lab.at("1-me/host1/d")).expect("where it gets shorter");
        fs::rename(lab.at("1-me/host1/d"), &top).expect("and as long as it was");
        let count = sh(r#"cd "$1"; find . -type d -name 'd*' | wc -l; find . -name s | wc -l"#, &[&lab.at("1-me/host1")]);
        assert_eq!(count.split_whitespace().collect::<Vec<_>>(), [depth.to_string(), "1".to_owned()]);
    }

    /// P1 for a sparse file: it stays sparse in the spool, and its holes read as zeros from the store.
    fn a_sparse_file_stays_sparse(lab) {
        let dir = lab.at("1-me/host1");
        fs::create_dir_all(&dir).expect("made");
        sh(
            r#"cd "$1"; truncate -s 200K s; printf middle | dd of=s bs=1 seek=100000 conv=notrunc status=none; test "$(stat -c %b s)" -le 16
               cp --sparse=always s t; rsync -aS s u; test "$(stat -c %b t)" -le 16; test "$(stat -c %b u)" -le 16
               tar -cSf a.tar s; mkdir x; tar -C x -xf a.tar; test "$(stat -c %b x/s)" -le 16; rm a.tar
               python3 -c 'import os; f = os.open("s", os.O_RDONLY); d = os.lseek(f, 0, os.SEEK_DATA); assert 0 < d <= 100000, d; assert os.lseek(f, 0, os.SEEK_HOLE) == 0'"#,
            &[&dir],
        );
        let before = describe(&dir);
        lab.commit(&unit());
        lab.evict(&unit());
        assert_same_tree(&dir, &before);
    }
}

/// telldir(3), seekdir(3) and rewinddir(3), with files coming and going in the meantime: who stays is there once.
#[test]
fn a_directory_of_200000_entries_under_change() {
    let lab = Lab::new(Passthrough::Auto);
    fs::create_dir_all(lab.spool("1-me/host1/d")).expect("made");
    for i in 0..200_000 {
        File::create(lab.spool(format!("1-me/host1/d/stays {i}"))).expect("made");
    }
    sh(READDIR, &[&lab.at("1-me/host1/d")]);
}

const READDIR: &str = r#"python3 - "$1" <<'END'
import ctypes, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("len", ctypes.c_uint16), ("type", ctypes.c_uint8), ("name", ctypes.c_char * 256)]
for name, result, arguments in [("opendir", ctypes.c_void_p, [ctypes.c_char_p]), ("readdir", ctypes.POINTER(Dirent), [ctypes.c_void_p]),
        ("telldir", ctypes.c_long, [ctypes.c_void_p]), ("seekdir", None, [ctypes.c_void_p, ctypes.c_long]), ("rewinddir", None, [ctypes.c_void_p])]:
    getattr(libc, name).restype, getattr(libc, name).argtypes = result, arguments
dir = sys.argv[1]
stream = libc.opendir(dir.encode())
def read(count=None):
    names = []
    while count is None or len(names) < count:
        entry = libc.readdir(stream)
        if not entry:
            break
        names.append(entry.contents.name)
    return names
over = False
def churn():
    n = 0
    while not over:
        open(f"{dir}/comes {n}", "w").close()
        if n >= 20:
            os.unlink(f"{dir}/comes {n - 20}")
        n += 1
churner = threading.Thread(target=churn)
churner.start()
try:
    first = read(70_000)
    place = libc.telldir(stream)
    second = read(30_000)
    libc.seekdir(stream, place)
    assert read(30_000) == second, "a place stays what it was"
    rest = read()
    everything = first + second + rest
    staying = [n for n in everything if n.startswith(b"stays ")]
    assert len(staying) == len(set(staying)) == 200_000, (len(staying), len(set(staying)))
    assert len(everything) == len(set(everything)), "no name comes twice"
finally:
    over = True
    churner.join()
open(f"{dir}/new", "w").close()
libc.rewinddir(stream)
anew = read()
assert anew.count(b"new") == 1 and len(anew) == len(set(anew)) and sum(n.startswith(b"stays ") for n in anew) == 200_000
libc.seekdir(stream, place)
assert read(1) and len(read()) < 200_000
END"#;
