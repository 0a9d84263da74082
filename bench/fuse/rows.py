#!/usr/bin/env python3
"""Rounds of work on the bare file system and on what is mounted over it, by turns. Started by run.sh.

    rows.py LAB BINARY MICRO     the rounds; prints a table, and writes JSON where --json says
    rows.py --report FILE        the table of an earlier run

Every group of rows runs on one side after the other before the next group begins, so that the machine's mood is in both. A figure
is the median over the rounds. Beside the clock's seconds stand the CPU's, of the client and of the daemon together: on one CPU both are
the same while nobody else uses it, and where somebody does, the CPU's are what can be trusted.
"""

import argparse
import glob
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time

DIRS = 100
LINES = 1_000_000
GIT = ["git", "-c", "safe.directory=*", "-c", "gc.auto=0"]

# What issue 3 allows as a ratio to the bare file system: pinned to one CPU, free.
TARGETS = {
    "sequential write": (1.0, None),
    "sequential read": (1.03, None),
    "random read": (1.03, None),
    "random write": (1.1, None),
    "append": (1.4, None),
    "create": (3.9, 11),
    "stat after write": (6.0, None),
    "stat warm": (1.2, None),
    "stat cold": (3.6, 11),
    "open+read": (4.8, None),
    "find cold": (2.0, None),
    "find warm": (1.0, None),
    "ls -lR cold": (1.6, None),
    "ls -lR warm": (0.95, None),
    "unlink": (3.0, 14),
    "untar": (1.8, 4.8),
    "git status": (1.5, None),
    "git status again": (1.5, None),
    "rsync -a": (2.25, 6),
    "rm -rf": (2.4, 5),
    "create by 4": (3.9, 11),
    "append by 4": (1.4, None),
}


class Side:
    """A directory that work is done in, and how it is mounted; the bare file system has no command."""

    def __init__(self, name, disk, command=None, end=None):
        self.name, self.command, self.end = name, command, end
        self.backing = os.path.join(disk, "sides", name)
        self.top = self.backing if command is None else os.path.join(disk, "mounts", name)
        os.makedirs(self.backing, exist_ok=True)
        os.makedirs(self.top, exist_ok=True)
        self.process = None
        self.daemons = []

    def mount(self, prefix):
        if self.command is None:
            return
        known = set(glob.glob("/proc/[0-9]*"))
        # The mount's own process may be the one that we start (peers) or another (resultsfs returns when it answers).
        with open(os.path.join("/tmp", "rows-%d.log" % os.getpid()), "w") as log:
            self.process = subprocess.Popen(prefix + self.command, cwd="/", stdout=log, stderr=log)
        until = time.monotonic() + 30
        while not os.path.ismount(self.top):
            if time.monotonic() > until:
                sys.exit("%s: not mounted within 30 s" % self.name)
            time.sleep(0.05)
        # resultsfs goes on in the background: whatever has begun since and was told of this place is the daemon.
        begun = [path for path in glob.glob("/proc/[0-9]*") if path not in known]
        self.daemons = [path for path in begun if self.top in read(path + "/cmdline").split("\0")]

    def cpu_seconds(self):
        """What the daemon has used so far, by the scheduler's count."""
        tasks = [task for path in self.daemons for task in glob.glob(path + "/task/*/schedstat")]
        return sum(int((read(task) or "0").split()[0]) for task in tasks) / 1e9

    def unmount(self):
        if self.command is None:
            return
        for command in [self.end or ["umount", self.top]] * 20 + [["umount", "-l", self.top]]:
            if subprocess.run(command, cwd="/", stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.1)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Bench:
    def __init__(self, lab, micro, files, mib, lines):
        self.lab, self.micro, self.files, self.mib, self.lines = lab, micro, files, mib, lines
        self.prefix, self.side, self.client_cpu = [], None, 0.0

    def timed(self, command, cwd="/"):
        """Seconds of the clock, and of the CPU in client and daemon."""
        daemon, began = self.side.cpu_seconds(), time.perf_counter()
        done = subprocess.Popen(self.prefix + command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = done.communicate()
        took = time.perf_counter() - began
        client = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = client.ru_utime + client.ru_stime - self.client_cpu + self.side.cpu_seconds() - daemon
        self.client_cpu = client.ru_utime + client.ru_stime
        if done.returncode != 0:
            sys.exit("%s in %s: %s" % (command, cwd, err.decode(errors="replace")[-500:]))
        return (took, cpu), out

    def by_micro(self, *words):
        (_, cpu), out = self.timed([self.micro, *map(str, words)])
        return float(out.split()[0]), cpu

    def run_big(self, top):
        path = top + "/core"
        rows = {
            "sequential write": self.by_micro("seqwrite", path, self.mib),
            "sequential read": self.by_micro("seqread", path, self.mib),
            "random read": self.by_micro("randread", path, self.mib),
            "random write": self.by_micro("randwrite", path, self.mib),
        }
        os.unlink(path)
        return rows

    def run_small(self, top):
        small = lambda what: self.by_micro(what, top, DIRS, self.files, 4096)
        rows = {what: small(work) for what, work in (
            ("create", "create"), ("stat after write", "stat"), ("stat warm", "stat"), ("open+read", "read"))}
        forget()
        rows["stat cold"] = small("stat")
        forget()
        rows["find cold"] = self.timed(["find", ".", "-newermt", "2000-01-01", "-type", "f"], top)[0]
        rows["find warm"] = self.timed(["find", ".", "-type", "f"], top)[0]
        forget()
        rows["ls -lR cold"] = self.timed(["ls", "-lR", "."], top)[0]
        rows["ls -lR warm"] = self.timed(["ls", "-lR", "."], top)[0]
        rows["unlink"] = small("unlink")
        return rows

    def run_log(self, top):
        return {"append": self.by_micro("append", top, self.lines, 120)}

    def run_parallel(self, top):
        rows = {"create by 4": self.by_micro("create", top, DIRS, self.files, 4096, 4)}
        rows["append by 4"] = self.by_micro("append", top, self.lines, 120, 4)
        return rows

    def run_tree(self, top):
        rows = {"untar": self.timed(["tar", "-xf", self.lab + "/tree.tar", "-C", top])[0]}
        rows["git status"] = self.timed(GIT + ["status", "--porcelain"], top + "/tree")[0]
        rows["git status again"] = self.timed(GIT + ["status", "--porcelain"], top + "/tree")[0]
        rows["rsync -a"] = self.timed(["rsync", "-a", self.lab + "/disk/tree-source/", top + "/copy/"])[0]
        rows["rm -rf"] = self.timed(["rm", "-rf", top + "/tree", top + "/copy"])[0]
        return rows

    GROUPS = {"big": run_big, "small": run_small, "log": run_log, "parallel": run_parallel, "tree": run_tree}

    def round(self, side, group, number):
        top = "%s/%d-bench/%s" % (side.top, number, group)
        os.makedirs(top)
        subprocess.run(["sync", "-f", self.lab + "/disk"])
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.side, self.client_cpu = side, used.ru_utime + used.ru_stime
        rows = self.GROUPS[group](self, top)
        shutil.rmtree("%s/%d-bench" % (side.top, number))
        return rows


def read(path):
    """A file of procfs; nothing if that has gone meanwhile."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def forget():
    """Entries and attributes, not pages."""
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("2")


def make_tree(lab, files=3000, history=60 << 20):
    """A source tree with its history, always the same one: sizes as in source code, git's objects in one pack that is larger than the tree."""
    top = lab + "/disk/tree-source"
    chance = random.Random(7)
    for i in range(files):
        path = "%s/tree/dir%02d/sub%d" % (top, i % 40, i % 5)
        os.makedirs(path, exist_ok=True)
        size = min(int(chance.lognormvariate(8.3, 1.3)), 400_000)
        with open("%s/file%d.c" % (path, i), "wb") as file:
            file.write(chance.randbytes(size // 4).hex().encode() + b"\n" * (size // 2))
    old = top + "/tree/old"
    with open(old, "wb") as file:
        file.write(chance.randbytes(history))
    env = dict(os.environ, GIT_AUTHOR_NAME="a", GIT_AUTHOR_EMAIL="a", GIT_COMMITTER_NAME="a", GIT_COMMITTER_EMAIL="a")
    git = lambda *words: subprocess.run(GIT + list(words), cwd=top + "/tree", env=env, check=True)
    git("init", "-q", ".")
    for message in "first", "second":
        git("add", "-A", ".")
        git("commit", "-q", "-m", message)
        if message == "first":
            os.unlink(old)
    git("gc", "-q")
    subprocess.run(["tar", "-cf", lab + "/tree.tar", "-C", top, "tree"], check=True)
    # rsync copies files, not git's objects as well.
    shutil.rmtree(top + "/tree/.git")


def ours(lab, name, binary):
    """A mount of ours, with a state directory of its own."""
    config, tree = "%s/%s.ini" % (lab, name), "%s/disk/mounts/%s" % (lab, name)
    with open(lab + "/drone.ini") as source, open(config, "w") as target:
        target.write(source.read().replace("/disk/drone", "/disk/state-" + name))
    command = [binary, "--quiet", "--config", config]
    return Side(name, lab + "/disk", command + ["mount", config, tree], command + ["umount", tree])


def sides(lab, builds, wanted):
    """The bare file system, the mount by each build, and those peers that are here."""
    disk = lab + "/disk"
    found = [Side("bare", disk)] + [ours(lab, name, binary) for name, binary in builds.items()]
    libfuse = os.environ.get("LIBFUSE", "")
    hp, ll = libfuse + "/passthrough_hp", libfuse + "/passthrough_ll"
    empty = disk + "/empty"
    os.makedirs(empty, exist_ok=True)
    cached = "cache.files=auto-full,cache.attr=3600,cache.entry=3600,cache.readdir=true,cache.symlinks=true,category.create=epff,allow_other"
    peers = {
        "bindfs": lambda b, m: ["bindfs", "-f", b, m],
        "fuse-overlayfs": lambda b, m: ["fuse-overlayfs", "-f", "-o", "lowerdir=%s,upperdir=%s,workdir=%s,allow_other" % (empty, b, b + ".work"), m],
        "mergerfs": lambda b, m: ["mergerfs", "-f", "-o", cached, "%s:%s" % (b, empty), m],
        "passthrough_hp": lambda b, m: [hp, "--foreground", "-o", "allow_other", b, m],
        "passthrough_hp-uring": lambda b, m: [hp, "--foreground", "-o", "allow_other,io_uring", b, m],
        "passthrough_ll": lambda b, m: [ll, "-f", "-o", "source=%s,cache=always,timeout=3600,clone_fd,allow_other" % b, m],
    }
    for name, command in peers.items():
        side = Side(name, disk)
        side.top = os.path.join(disk, "mounts", name)
        side.command = command(side.backing, side.top)
        if wanted and name not in wanted:
            continue
        if shutil.which(side.command[0]) is None:
            print("# %s: not here, left out" % name)
            continue
        os.makedirs(side.top, exist_ok=True)
        if name == "fuse-overlayfs":
            os.makedirs(side.backing + ".work", exist_ok=True)
        found.append(side)
    return found


def uring_allowed(is_allowed):
    with open("/sys/module/fuse/parameters/enable_uring", "w") as file:
        file.write("Y" if is_allowed else "N")


def run_mode(bench, mode, all_sides, rounds, groups):
    bench.prefix = ["taskset", "-c", str(max(os.sched_getaffinity(0)))] if mode == "pinned" else []
    results = {side.name: [] for side in all_sides}
    for side in all_sides:
        if side.name.endswith("-uring"):
            uring_allowed(True)
        side.mount(bench.prefix)
    try:
        for number in range(1, rounds + 1):
            rows = {side.name: {} for side in all_sides}
            for group in groups:
                for side in all_sides:
                    rows[side.name].update(bench.round(side, group, number))
            for side in all_sides:
                results[side.name].append(rows[side.name])
    finally:
        for side in reversed(all_sides):
            side.unmount()
            if side.name.endswith("-uring"):
                uring_allowed(False)
    return results


def report(data):
    for mode, results in data["modes"].items():
        rows = list(results["bare"][0])
        others = [side for side in results if side != "bare"]
        median = lambda side, row, at: statistics.median(done[row][at] for done in results[side])
        ratio = lambda side, row, at: median(side, row, at) / max(median("bare", row, at), 1e-6)
        print("\n%s, medians of %d rounds; ratio = mount / bare, less is better" % (mode, len(results["bare"])))
        print("| work | bare s | " + " | ".join(others) + " | allowed | | by CPU time: " + " | ".join(others) + " |")
        print("|---|---|" + "---|" * (2 * len(others) + 2))
        for row in rows:
            allowed = TARGETS[row][0 if mode == "pinned" else 1]
            verdict = "" if allowed is None else "met" if ratio(others[0], row, 0) <= allowed else "not met"
            by_clock, by_cpu = (" | ".join("%.2f" % ratio(side, row, at) for side in others) for at in (0, 1))
            print("| %s | %.4f | %s | %s | %s | %s |" % (row, median("bare", row, 0), by_clock, allowed or "", verdict, by_cpu))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--report")
    parser.add_argument("lab", nargs="?")
    parser.add_argument("binary", nargs="?")
    parser.add_argument("micro", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--lines", type=int, default=LINES)
    parser.add_argument("--modes", default="pinned,free")
    parser.add_argument("--groups", default=",".join(Bench.GROUPS))
    parser.add_argument("--peers", default="", help="only these; `none` for none")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=BINARY", help="another build of ours")
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.report:
        with open(args.report) as file:
            return report(json.load(file))
    bench = Bench(args.lab, args.micro, args.files, args.mib, args.lines)
    groups = args.groups.split(",")
    if "tree" in groups:
        make_tree(args.lab)
    builds = {"resultsfs": args.binary, **dict(other.split("=", 1) for other in args.also)}
    all_sides = sides(args.lab, builds, [p for p in args.peers.split(",") if p])
    data = {"rounds": args.rounds, "files": args.files, "mib": args.mib, "lines": args.lines, "modes": {}}
    for mode in args.modes.split(","):
        data["modes"][mode] = run_mode(bench, mode, all_sides, args.rounds, groups)
    report(data)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(data, file, indent=1)


if __name__ == "__main__":
    main()
