"""Units that complete together: how many connections that takes, and how many of them fail. Beside it, as many rsyncs as Autotest would start, against
sshd's own MaxStartups."""

import random
import subprocess

from corpus import jobs_of
from engine import Drone, Store
from lab import HOST, program, run
from memory import write_unit
from table import Target

AT_ONCE = 50


def rows(lab, meter, corpus, table, options):
    store = Store(lab, "storm")
    drone = Drone(lab, store)
    noise = random.Random(2)
    before = lab.authentications()
    drone.mount()
    for number in range(1, options.units + 1):
        write_unit(f"{drone.tree}/{number}-bench", {f"file{i}": noise.randbytes(noise.randrange(1, 4096)) for i in range(4)})
    run(["sync", "-f", lab.disk])
    cost = meter.measure(drone.offload)
    failed = options.units - sum(unit["state"] == "committed" for unit in drone.json("jobs"))
    logins = lab.authentications() - before
    beside = rsyncs(lab, corpus)
    table.value(f"{options.units} units complete together: failed", failed, "", Target("=", 0, "0"), beside, 0)
    table.value(f"{options.units} units complete together: ssh authentications", logins, "", Target("=", 1, "1"), f"{options.units} rsync job by job", 0)
    table.note(f"in {cost.seconds:.2f} s, {options.units / cost.seconds:.0f} units/s")
    drone.remove()
    store.remove()


def rsyncs(lab, corpus):
    """Each is its own job; which of them sshd turns away is its choice."""
    if not program("rsync"):
        return "no rsync"
    jobs = (jobs_of(corpus.more) * AT_ONCE)[:AT_ONCE]
    to = f"{lab.disk}/storm-rsync"
    run(["mkdir", to])
    words = (["rsync", "-a", "--delete", "-e", lab.ssh, f"{corpus.more}/{job}/", f"{HOST}:{to}/{i}/"] for i, job in enumerate(jobs))
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen(each, **quiet) for each in words]
    failed = sum(each.wait() != 0 for each in started)
    run(["rm", "-rf", to])
    return f"{failed} of {AT_ONCE} rsyncs at once fail"
