"""What a piece of work costs: seconds, CPU seconds of both sides with ssh and sshd, bytes on the wire, memory."""

import os
import re
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass, field, fields

from lab import Failed

SAMPLE_SECONDS = 0.02


@dataclass
class Cost:
    seconds: float = 0.0
    # None where it can't be counted.
    cpu: float | None = None
    wire: int = 0
    # What is left over for the disk when the command has returned: nothing if it has synced all.
    unsynced: float = 0.0
    stored: int = 0
    inodes: int = 0
    # Peak of anonymous memory by kind of process, bytes.
    memory: dict = field(default_factory=dict)


def median(costs):
    """Each figure's own median."""
    def of(name):
        values = [getattr(cost, name) for cost in costs]
        if name == "memory":
            return {kind: max(v.get(kind, 0) for v in values) for kind in set().union(*values)}
        return None if None in values else statistics.median(values)
    return Cost(**{f.name: of(f.name) for f in fields(Cost)})


class Meter:
    """Measures what happens in a lab."""

    def __init__(self, lab):
        self.lab = lab

    def measure(self, act, watch_memory=False):
        """Costs of `act()`, which begins with nothing left to be written."""
        os.sync()
        watch = Memory(self.lab) if watch_memory else None
        wire, cpu, began = self.wire(), self.cpu(), time.perf_counter()
        act()
        seconds = time.perf_counter() - began
        cpu_after, wire_after = self.cpu(), self.wire()
        began = time.perf_counter()
        subprocess.run(["sync", "-f", self.lab.disk])
        return Cost(
            seconds=seconds,
            cpu=None if cpu is None else cpu_after - cpu,
            wire=wire_after - wire,
            unsynced=time.perf_counter() - began,
            memory=watch.end() if watch else {},
        )

    def cpu(self):
        """CPU seconds of all processes of the lab, dead or alive, without this one."""
        group = self.lab.cgroup
        if not group:
            return None
        if os.path.exists(f"{group}/cpuacct.usage"):
            used = int(open(f"{group}/cpuacct.usage").read()) / 1e9
        else:
            used = int(re.search(r"^usage_usec (\d+)", open(f"{group}/cpu.stat").read(), re.M)[1]) / 1e6
        return used - time.process_time()

    @staticmethod
    def wire():
        """Bytes that have gone over loopback, both ways, with the headers of TCP and IP."""
        for line in open("/proc/thread-self/net/dev"):
            name, _, counts = line.partition(":")
            if name.strip() == "lo":
                # Eight columns of what was received, then what was sent.
                return int(counts.split()[8])
        raise Failed("no loopback")


class Memory(threading.Thread):
    """The highest anonymous memory of the lab's resultsfs processes, looked at fifty times a second. Memory of files isn't in it: the kernel takes
    that back when it likes."""

    def __init__(self, lab):
        super().__init__(daemon=True)
        self.group, self.kinds, self.peaks, self.over = lab.cgroup, {}, {}, threading.Event()
        if self.group:
            self.start()

    def run(self):
        while not self.over.wait(SAMPLE_SECONDS):
            self.look()

    def look(self):
        for pid in open(f"{self.group}/cgroup.procs").read().split():
            try:
                kind = self.kinds.get(pid) or self.kinds.setdefault(pid, kind_of(pid))
                if kind != "other":
                    status = open(f"/proc/{pid}/status").read()
                    anonymous = re.search(r"^RssAnon:\s+(\d+)", status, re.M)
                    self.peaks[kind] = max(self.peaks.get(kind, 0), int(anonymous[1]) << 10 if anonymous else 0)
            except OSError:
                pass

    def end(self):
        if self.group:
            self.over.set()
            self.join()
            self.look()
        return self.peaks


def kind_of(pid):
    """Which of our daemons this is."""
    words = open(f"/proc/{pid}/cmdline").read().split("\0")
    if not words[0].endswith("resultsfs"):
        return "other"
    if "serve" in words:
        return "serve --stdio" if "--stdio" in words else "serve"
    return "mount" if "mount" in words else "other"
