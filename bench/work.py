#!/usr/bin/env python3
"""What jobs and readers do to a results directory, timed.

    work.py run DIR FILES          one JSON object: seconds by kind of work
    work.py report BARE MOUNT      files with such lines, compared by their medians

System calls only, in one process; Python's own share is in both sides and makes the ratios milder than they are by a few
microseconds a call.
"""

import json
import os
import statistics
import sys
import time

BLOCK = b"x" * 4096
LINE = b"y" * 119 + b"\n"
APPENDS = 50_000


def create(names):
    for name in names:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, BLOCK)
        os.close(fd)


def stat(names):
    for name in names:
        os.stat(name)


def read(names):
    for name in names:
        fd = os.open(name, os.O_RDONLY)
        os.read(fd, 8192)
        os.close(fd)


def append(names):
    fd = os.open(names[0] + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for _ in range(APPENDS):
        os.write(fd, LINE)
    os.close(fd)


def listing(names):
    for entry in os.scandir(os.path.dirname(names[0])):
        entry.stat(follow_symlinks=False)


def write_large(names):
    fd = os.open(names[0] + ".core", os.O_WRONLY | os.O_CREAT, 0o644)
    block = os.urandom(1 << 20)
    for _ in range(128):
        os.write(fd, block)
    os.close(fd)


def read_large(names):
    fd = os.open(names[0] + ".core", os.O_RDONLY)
    while os.read(fd, 1 << 20):
        pass
    os.close(fd)


def unlink(names):
    for name in names:
        os.unlink(name)


WORK = (
    ("create, write 4 KiB, close", create),
    ("stat, the first after that", stat),
    ("stat again", stat),
    ("open, read, close", read),
    ("list with attributes", listing),
    ("append 120 bytes", append),
    ("write 128 MiB", write_large),
    ("read 128 MiB", read_large),
    ("unlink", unlink),
)


def run(top, count):
    names = [os.path.join(top, "f%06d" % i) for i in range(count)]
    seconds = {}
    for name, work in WORK:
        began = time.perf_counter()
        work(names)
        seconds[name] = time.perf_counter() - began
    print(json.dumps(seconds))


def medians(path):
    with open(path) as lines:
        rounds = [json.loads(line) for line in lines]
    return {name: statistics.median(r[name] for r in rounds) for name, _ in WORK}, len(rounds)


def report(bare_path, mount_path):
    (bare, rounds), (mount, _) = medians(bare_path), medians(mount_path)
    print("# medians of %d rounds, seconds; ratio = mount / bare, less is better" % rounds)
    for name, _ in WORK:
        print("%-28s bare %8.4f   mount %8.4f   ratio %6.2f" % (name, bare[name], mount[name], mount[name] / bare[name]))


def main():
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["report"]:
        report(sys.argv[2], sys.argv[3])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
