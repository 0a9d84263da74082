"""One process at work in a results tree: writer.py DIR STOP

In DIR it appends numbered lines, syncs and checks them, and makes, links, renames, exchanges and removes names, each of which must succeed
exactly once. It works for three rounds and until STOP, a file outside of the mount, is there; then prints how many rounds it made. Whatever isn't as on a local
disk ends it with a traceback.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import sys

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, NOREPLACE, EXCHANGE = -100, 1, 2


def renameat2(old, new, flags):
    if libc.renameat2(AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2", old)


def put(name, text, flags=os.O_EXCL):
    fd = os.open(name, os.O_CREAT | os.O_WRONLY | flags, 0o640)
    os.write(fd, text.encode())
    os.close(fd)


def get(name):
    with open(name) as file:
        return file.read()


def same(what, found, expected):
    assert found == expected, f"{what}: {found!r} instead of {expected!r}"


def names_once(round):
    """Every change of names is made, and made once."""
    os.mkdir("d", 0o751)
    same("mode", stat.S_IMODE(os.stat("d").st_mode), 0o751)
    put("d/a", f"a{round}")
    same("mode", stat.S_IMODE(os.stat("d/a").st_mode), 0o640)
    os.link("d/a", "d/b")
    same("links", os.stat("d/a").st_nlink, 2)
    os.symlink("a", "d/s")
    put("d/c", f"c{round}")
    renameat2("d/a", "d/c", EXCHANGE)
    same("exchanged", (get("d/a"), get("d/c"), get("d/b")), (f"c{round}", f"a{round}", f"a{round}"))
    renameat2("d/c", "d/e", NOREPLACE)
    put("d/f", "old")
    os.rename("d/e", "d/f")
    same("replaced", (get("d/f"), os.stat("d/b").st_nlink), (f"a{round}", 2))
    same("listing", sorted(os.listdir("d")), ["a", "b", "f", "s"])
    os.truncate("d/a", 1)
    os.chmod("d/a", 0o600)
    same("cut", (get("d/a"), stat.S_IMODE(os.stat("d/a").st_mode)), ("c", 0o600))
    put("d/a", "anew", os.O_TRUNC)
    same("anew", get("d/a"), "anew")
    open_file = os.open("d/a", os.O_RDWR)
    for name in ["a", "b", "f", "s"]:
        os.unlink("d/" + name)
    same("unnamed", (os.read(open_file, 9), os.fstat(open_file).st_nlink), (b"anew", 0))
    os.write(open_file, b"more")
    same("unnamed", os.pread(open_file, 99, 0), b"anewmore")
    os.close(open_file)
    same("listing", os.listdir("d"), [])
    os.rename("d", "e")
    os.rmdir("e")


def listed(held):
    """A listing that is read bit by bit while what was read goes."""
    os.mkdir("many")
    for n in range(40):
        put(f"many/{n}", "")
    with os.scandir("many") as entries:
        for entry in entries:
            os.unlink(entry.path)
    os.rmdir("many")
    # What is held from the beginning.
    same("directory", os.fstat(held).st_ino, os.stat(".").st_ino)


def main(place, stop):
    os.makedirs(place)
    os.chdir(place)
    number, here = os.stat(".").st_ino, os.getcwd()
    held = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    locked = os.open("lock", os.O_CREAT | os.O_RDWR, 0o644)
    fcntl.flock(locked, fcntl.LOCK_EX)
    put("mapped", "\0" * 4096)
    mapped_fd = os.open("mapped", os.O_RDWR)
    mapped = mmap.mmap(mapped_fd, 4096)
    log = os.open("log", os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o644)
    log_number = os.fstat(log).st_ino
    round, expected = 0, ""
    while round < 3 or not os.path.exists(stop):
        line = f"{round} of {place}\n"
        same("written", os.write(log, line.encode()), len(line))
        os.fsync(log)
        expected += line
        mapped[:8] = round.to_bytes(8, "little")
        names_once(round)
        if round % 8 == 0:
            listed(held)
            same("log", get("log"), expected)
            same("log by its handle", os.pread(log, len(expected) + 9, 0).decode(), expected)
            same("mapped", os.pread(mapped_fd, 8, 0), round.to_bytes(8, "little"))
        same("numbers", (os.stat(".").st_ino, os.stat("log").st_ino, os.getcwd()), (number, log_number, here))
        other = os.open("lock", os.O_RDWR)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise AssertionError("the lock was lost")
        except OSError as e:
            same("lock", e.errno, errno.EWOULDBLOCK)
        os.close(other)
        round += 1
    same("listing", sorted(os.listdir(held)), ["lock", "log", "mapped"])
    same("log", get("log"), expected)
    print(round)


main(*sys.argv[1:])
