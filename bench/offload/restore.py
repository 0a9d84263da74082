"""Giving single jobs back: `recall` of an evicted one and `export`, against rsync with a connection of its own. The median of some jobs."""

import os
import shutil
import statistics

from lab import Failed, run
from table import Target


def ours(rounds, drone):
    to = f"{rounds.lab.disk}/exported"
    for job in rounds.restored:
        drone.command("evict", f"{drone.tree}/{job}")
        rounds.keep("resultsfs", "export", rounds.meter.measure(lambda: drone.command("export", f"{drone.tree}/{job}", "--to", to)))
        same(f"{rounds.corpus.base}/{job}", f"{to}/{job}")
        shutil.rmtree(to)
        rounds.keep("resultsfs", "recall", rounds.meter.measure(lambda: drone.command("recall", f"{drone.tree}/{job}")))
        if not os.path.isdir(f"{drone.spool()}/{job}"):
            raise Failed(f"{job} was recalled and isn't in the spool")


def theirs(rounds, peer):
    to = f"{rounds.lab.disk}/restored"
    for job in rounds.restored:
        os.mkdir(to)
        rounds.keep(peer.name, "restore", rounds.meter.measure(lambda: peer.restore(job, to)))
        same(f"{rounds.corpus.base}/{job}", f"{to}/{job}")
        shutil.rmtree(to)


def same(left, right):
    """Contents, links and empty directories."""
    run(["diff", "-r", "--no-dereference", left, right])


def rows(rounds, table):
    beside = rounds.costs.get(("rsync", "restore"))
    for what in ("recall", "export"):
        title = f"one job given back, {what}: rsync with a new connection"
        if beside:
            mine, other = (statistics.median(cost.seconds for cost in costs) for costs in (rounds.costs["resultsfs", what], beside))
            table.ratio(title, mine, other, "s", Target("<", 1), places=3)
        else:
            table.missing(title, "no rsync", Target("<", 1))
