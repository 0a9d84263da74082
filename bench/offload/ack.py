"""One job that ends while nothing else happens: from its `Complete`, which is durable, to the store's answer, which is too.

Both times are the daemon's own, in whole milliseconds. Jobs have about 300 files and are the next ones of hosts that the store has jobs of; each comes a
second time under another id, where nothing of it is new. All but the last pidfile is there before the clock starts, and synced.
"""

import os
import shutil
import statistics
import subprocess
import time

from corpus import jobs_of, read_all, renamed
from engine import Drone, Store, begin_job, end_job
from lab import HOST, run, until
from table import Target

FILES = 300
ECHOES = 100


def rows(lab, corpus, table, jobs):
    """The store is warm: it holds jobs of the same hosts, and the connection is up. Nothing settles, so that the daemon acts at once."""
    store = Store(lab, "ack", settle=0)
    drone = Drone(lab, store)
    drone.mount()
    drone.fill(corpus.more)
    drone.offload()
    source = corpus.generate("next", corpus.next, 2 * jobs)
    chosen = sorted(jobs_of(source), key=lambda job: abs(files_of(f"{source}/{job}") - FILES))[:jobs]
    read_all(source)
    trip = round_trip_ms(lab)
    for text, by in (("next jobs", 0), ("the same again", 500_000)):
        times = [one(lab, drone, f"{source}/{job}", renamed(job, by)) for job in chosen]
        close, seal, commit = (statistics.median(column) for column in zip(*times))
        whole = statistics.median(seal + commit for _, seal, commit in times)
        beside = f"round trip {trip:.2f} ms"
        table.value(f"Complete to ack, {FILES} files, {text}", whole, "ms", Target("<", 50 + trip, "< 50 ms + round trip"), beside, 1)
        table.note(f"of it: described and sealed {seal:.1f} ms, sent and committed {commit:.1f} ms; before it, from the last close to Complete {close:.1f} ms; "
                   f"most {max(seal + commit for _, seal, commit in times):.0f} ms; {len(times)} jobs of {size(source, chosen)}")
    drone.remove()
    store.remove()
    shutil.rmtree(source)


def one(lab, drone, source, job):
    """Milliseconds from the last close to Complete, from there to Sealed, from there to Committed."""
    target = f"{drone.tree}/{job}"
    begin_job(source, target)
    run(["sync", "-f", lab.disk])
    end_job(source, target)
    closed = time.time() * 1000
    times = {}

    def committed():
        nonlocal times
        time.sleep(0.2)
        times = drone.json("explain", target)[-1].get("times_ms") or {}
        return times.get("committed")
    until(committed, 60, f"{job} is committed")
    return times["complete"] - closed, times["sealed"] - times["complete"], times["committed"] - times["sealed"]


def files_of(directory):
    return sum(len(names) for _, _, names in os.walk(directory))


def size(source, jobs):
    def bytes_of(job):
        return sum(os.lstat(f"{top}/{name}").st_size for top, _, names in os.walk(f"{source}/{job}") for name in names)
    sizes = sorted(bytes_of(job) for job in jobs)
    counts = sorted(files_of(f"{source}/{job}") for job in jobs)
    return f"{counts[0]} to {counts[-1]} files, {sizes[0] / 1e6:.1f} to {sizes[-1] / 1e6:.1f} MB"


def round_trip_ms(lab):
    """A byte there and back on a connection that is up: what ssh and sshd take on this machine."""
    with subprocess.Popen([lab.ssh, HOST, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as echo:
        def trip():
            began = time.perf_counter()
            echo.stdin.write(b"x")
            echo.stdout.read(1)
            return time.perf_counter() - began
        trip()
        times = [trip() for _ in range(ECHOES)]
        echo.stdin.close()
    return statistics.median(times) * 1000
