#!/usr/bin/env python3
"""What one operation on the mount costs: requests of the kernel, system calls and CPU time of the daemon. Started by run.sh --counts.

    counts.py CONFIG MICRO MOUNTPOINT FILES

Requests are the reads of the threads that read the device (a batch of forgets is one), system calls are theirs without those that
found nothing to read. CPU time is the scheduler's own count, of all threads and of the client, in a run of its own, since strace(1) is dear.
"""

import glob
import os
import subprocess
import sys
import time

WORKS = (
    ("create, write 4 KiB, close", "create"),
    ("stat after that", "stat"),
    ("stat again", "stat"),
    ("open, read, close", "read"),
    ("stat, nothing cached", "stat"),
    ("unlink", "unlink"),
)


def daemon_of(config):
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with open(path, "rb") as file:
            words = file.read().split(b"\0")
        pid = int(path.split("/")[2])
        # Its supervisor has the same words, and no thread that reads the device.
        if config.encode() in words and b"mount" in words and any(threads(pid, "fuser-")):
            return pid
    sys.exit("no daemon with %s" % config)


def threads(pid, prefix=""):
    for path in glob.glob("/proc/%d/task/*/comm" % pid):
        with open(path) as file:
            if file.read().startswith(prefix):
                yield path.split("/")[4]


def cpu_ns(pid):
    total = 0
    for thread in threads(pid):
        with open("/proc/%d/task/%s/schedstat" % (pid, thread)) as file:
            total += int(file.read().split()[0])
    return total


def calls(pid, work):
    """System calls by name while `work` is done."""
    words = ["strace", "-qq", "-c", "-U", "name,calls,errors"]
    for thread in threads(pid, "fuser-"):
        words += ["-p", thread]
    strace = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    # It says nothing when it has attached.
    while not all(is_traced(pid, thread) for thread in threads(pid, "fuser-")):
        time.sleep(0.01)
    work()
    strace.send_signal(2)
    lines = [line.split() for line in strace.communicate()[1].splitlines()[2:]]
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit() and words[0] != "total"}


def is_traced(pid, thread):
    with open("/proc/%d/task/%s/status" % (pid, thread)) as file:
        return "TracerPid:\t0" not in file.read()


def main():
    config, micro, top = sys.argv[1:4]
    files = int(sys.argv[4])
    pid = daemon_of(config)
    results = {}
    for number, measure in enumerate(("calls", "cpu")):
        place = "%s/%d-counts/host" % (top, number)
        os.makedirs(place)
        for name, work in WORKS:
            if name == "stat, nothing cached":
                with open("/proc/sys/vm/drop_caches", "w") as file:
                    file.write("2")
            out = []
            run = lambda: out.append(subprocess.run([micro, work, place, "1", str(files), "4096"], stdout=subprocess.PIPE, check=True).stdout)
            if measure == "calls":
                results[name] = {"calls": calls(pid, run)}
            else:
                before = cpu_ns(pid)
                run()
                results[name]["daemon"] = (cpu_ns(pid) - before) / 1e3 / files
                results[name]["client"] = float(out[0].split()[1]) * 1e6 / files
    print("| work | requests | system calls of the daemon | its CPU, µs | the client's, µs | |")
    print("|---|---|---|---|---|---|")
    for name, found in results.items():
        each = {call: count / files for call, count in found["calls"].items() if count / files > 0.05}
        text = ", ".join("%s %.1f" % pair for pair in sorted(each.items(), key=lambda pair: -pair[1]))
        print("| %s | %.1f | %.1f | %.1f | %.1f | %s |" % (name, each.get("read", 0), sum(each.values()), found["daemon"], found["client"], text))


main()
