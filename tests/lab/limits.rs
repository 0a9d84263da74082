//! What lies at the kernel's limits survives offload, eviction and recall, and is the same on another machine.

use std::{fs, path::Path, process::Command, time::Duration};

use crate::harness::{Lab, Machine, run};

/// Makes the tree, or with `digest` describes it: every path with kind, mode, size, time and content, by descriptors, since paths
/// are longer than one call takes. Of sparse files only the data is read, and where it stands is not part of the digest.
const TREE: &str = r#"
import hashlib, os, stat, sys
what, top = sys.argv[1:]
def make():
    os.mkdir(top + "/names")
    for byte in range(1, 256):
        if byte not in (47, 46):
            for name in (bytes([byte]), bytes([byte]) * 255):
                with open(os.path.join(top.encode(), b"names", name), "wb") as f:
                    f.write(name)
    os.mkdir(top + "/deep")
    here = os.open(top + "/deep", os.O_RDONLY)
    for depth in range(62):
        with open(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here), "w") as f:
            f.write(str(depth))
        try:
            os.mkdir("%060d" % depth, dir_fd=here)
        except OSError as error:
            assert error.errno == 36, error
            break
        here = os.open("%060d" % depth, os.O_RDONLY, dir_fd=here)
    assert depth > 60, depth
    with open(top + "/large", "wb") as f:
        f.write(b"begin")
        f.seek((5 << 30) - 3)
        f.write(b"end of five GiB")
        f.seek(3 << 30)
        f.write(os.urandom(300_000))
    os.truncate(top + "/large", (5 << 30) + (1 << 20))
    with open(top + "/empty hole", "wb") as f:
        f.truncate(700_000)
def content(fd, size):
    digest, at = hashlib.sha256(), 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(fd, at, os.SEEK_HOLE)
        while at < end:
            piece = os.pread(fd, min(end - at, (1 << 20) - at % (1 << 20)), at)
            assert piece, "a short read"
            if piece.strip(b"\0"):
                digest.update(b"%d:" % (at & ~0xfffff))
                digest.update(piece.strip(b"\0"))
            at += len(piece)
    return digest.hexdigest()
def describe():
    lines = []
    for path, dirs, files, here in os.fwalk(top.encode(), onerror=lambda e: sys.exit(str(e))):
        for name in dirs + files:
            s = os.stat(name, dir_fd=here, follow_symlinks=False)
            body = ""
            if stat.S_ISREG(s.st_mode):
                fd = os.open(name, os.O_RDONLY, dir_fd=here)
                body = content(fd, s.st_size)
                os.close(fd)
            place = path[len(top):] + b"/" + name
            lines.append((place, oct(s.st_mode), s.st_size if body else 0, s.st_mtime_ns, body))
    for line in sorted(lines):
        print(*line)
make() if what == "make" else describe()
"#;

fn tree(what: &str, top: &Path) -> String {
    run(Command::new("python3").args(["-c", TREE, what]).arg(top))
}

fn same(what: &str, found: &str, expected: &str) {
    let differing: Vec<_> = found.lines().zip(expected.lines()).filter(|(a, b)| a != b).take(3).collect();
    assert!(
        differing.is_empty() && found.lines().count() == expected.lines().count(),
        "{what}: {differing:#?}"
    );
}

/// Blocks of 512 bytes that a file of the spool takes.
fn blocks(machine: &Machine, path: &str) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(machine.state.join("spool").join(path)).expect("in the spool").blocks()
}

/// P1 **One path**, at the limits: names of every byte and of 255 bytes, paths as long as there are, a sparse file of 5 GiB. The same
/// bytes before the offload, on another machine, after eviction and after recall; and the holes cost neither disk nor network.
#[test]
fn names_depths_and_sizes_at_the_limit_are_the_same_everywhere() {
    let mut lab = Lab::new(Duration::from_secs(400));
    let drone = lab.machine("drone1");
    let reader = lab.machine("drone2");
    lab.mount(&drone);
    lab.mount(&reader);
    let unit = "1-me/host1";
    fs::create_dir_all(drone.mount.join(unit)).expect("a directory");
    tree("make", &drone.mount.join(unit));
    let expected = tree("digest", &drone.mount.join(unit));
    assert!(expected.lines().count() > 600);
    assert!(blocks(&drone, "1-me/host1/large") < 2000, "sparse in the spool");
    assert_eq!(drone.run(["complete", unit]).status.code(), Some(0));
    drone.offload();
    let sent = drone.status()["connection"]["bytes_sent"].as_u64().expect("a number");
    assert!(sent < 20 << 20, "{sent} bytes sent for 300 KB of data in 5 GiB");
    reader.catch_up(&drone);
    same("on another machine", &tree("digest", &reader.mount.join(unit)), &expected);
    assert!(drone.run(["evict", unit]).status.success());
    assert!(!drone.state.join("spool").join(unit).exists());
    same("evicted", &tree("digest", &drone.mount.join(unit)), &expected);
    assert!(drone.run(["recall", unit]).status.success());
    same("recalled", &tree("digest", &drone.mount.join(unit)), &expected);
    assert!(drone.run(["verify"]).status.success());
}
