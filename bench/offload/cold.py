"""Jobs that the results host hasn't seen: all of them, then more of the same hosts, then those again under other ids.

A round measures everybody once, each from nothing, and throws away what was made. Rounds go through them in turns of order. In the same round, on
what is stored then: checking it, and giving single jobs back.

resultsfs's clock runs from `offload` to everything committed, which is fsynced at the store; the jobs are in the spool, synced, not hashed, and
are found complete within that time. The peers fsync what they like; what they leave behind is in `unsynced`, not in their seconds.
"""

import random
import statistics

import check
import peers as known
import restore
from corpus import file_bytes, inodes, jobs_of, read_all
from cost import median
from engine import Drone, Store
from lab import Failed, say
from table import Target

AGAIN = 100_000
MIB = 1 << 20
# The targets' CPU seconds and bytes are for this many bytes of jobs.
FULL_BYTES = 3254e6
TARGETS = {"rsync": Target("<=", 1 / 9, "<= 1/9"), "rsync-all": Target("<=", 0.55), "bupstash": Target("<=", 0.65), "tar": Target("<", 1)}


class Rounds:
    """Costs by who and what: ("rsync", "cold") → one a round."""

    def __init__(self, lab, meter, corpus, peers):
        self.lab, self.meter, self.corpus, self.peers = lab, meter, corpus, peers
        self.costs = {}
        self.titles = {name: kind.title for name, kind in known.ALL.items()}
        self.restored = random.Random(1).sample(jobs_of(corpus.base), min(5, len(jobs_of(corpus.base))))

    def measure(self, rounds):
        order = [None, *self.peers]
        for number in range(rounds):
            for peer in order if number % 2 == 0 else reversed(order):
                say(f"round {number + 1} of {rounds}: {peer.title if peer else 'resultsfs'}")
                self.theirs(peer) if peer else self.ours()
                self.lab.trim()

    def keep(self, who, what, cost):
        self.costs.setdefault((who, what), []).append(cost)

    def of(self, who, what):
        """The median of the rounds, or None if it wasn't measured."""
        costs = self.costs.get((who, what))
        return costs and (median(costs) if hasattr(costs[0], "cpu") else statistics.median(costs))

    def ours(self):
        base, more = self.corpus.base, self.corpus.more
        store = Store(self.lab)
        drone = Drone(self.lab, store)
        drone.mount()
        units = 0
        for what, source, by in (("cold", base, 0), ("more", more, 0), ("again", more, AGAIN)):
            drone.fill(source, by)
            read_all(drone.spool())
            cost = self.meter.measure(drone.offload, watch_memory=True)
            units += len(jobs_of(source))
            drone.check_committed(units)
            cost.stored, cost.inodes = file_bytes(store.dir), inodes(store.dir)
            self.keep("resultsfs", what, cost)
        check.ours(self, store)
        restore.ours(self, drone)
        drone.remove()
        check.index(self, store)
        store.remove()

    def theirs(self, peer):
        base, more = self.corpus.base, self.corpus.more
        peer.begin()
        try:
            read_all(base, more)
            cost = self.meter.measure(lambda: peer.send(base))
            cost.stored, cost.inodes = file_bytes(peer.dir), inodes(peer.dir)
            self.keep(peer.name, "cold", cost)
            if hasattr(peer, "restore"):
                for what, by in (("more", 0), ("again", AGAIN)):
                    self.keep(peer.name, what, self.meter.measure(lambda: peer.send(more, by)))
                restore.theirs(self, peer)
            if hasattr(peer, "verify"):
                read_all(peer.dir)
                self.keep(peer.name, "verify", self.meter.measure(peer.verify))
        except Failed as error:
            # The others' rows stand without it.
            say(f"{peer.title}: {error}")
        peer.end()


def rows(rounds, table):
    times(rounds, table)
    sizes(rounds, table)
    expense(rounds, table)


def times(rounds, table):
    ours = rounds.of("resultsfs", "cold")
    jobs, more = (len(jobs_of(d)) for d in (rounds.corpus.base, rounds.corpus.more))
    for name, title in rounds.titles.items():
        theirs, target = rounds.of(name, "cold"), TARGETS.get(name)
        if theirs:
            note = f"(+ {theirs.unsynced:.2f} to sync)" if theirs.unsynced > 0.005 else ""
            table.ratio(f"cold, {jobs} jobs: {title}", ours.seconds, theirs.seconds, "s", target, note)
        elif target:
            table.missing(f"cold, {jobs} jobs: {title}", "not run", target)
    for what, text, target in (("more", f"{more} jobs more", Target("<=", 1 / 10, "<= 1/10")),
                               ("again", f"the same {more} under other ids", Target("<=", 1 / 15, "<= 1/15"))):
        ours, theirs = rounds.of("resultsfs", what), rounds.of("rsync", what)
        if theirs:
            table.ratio(f"{text}: rsync job by job", ours.seconds, theirs.seconds, "s", target)
        else:
            table.missing(f"{text}: rsync job by job", "no rsync", target)


def sizes(rounds, table):
    ours, again = rounds.of("resultsfs", "cold"), rounds.of("resultsfs", "again")
    raw, more = rounds.corpus.bytes, file_bytes(rounds.corpus.more)
    table.ratio("the same again, bytes on the wire: their size", again.wire / 1e6, more / 1e6, "MB", Target("<", 0.002, "< 0.2 %"), places=3)
    fraction = 1130e6 / FULL_BYTES
    for name, text in (("wire", "bytes on the wire"), ("stored", "bytes stored")):
        mine = getattr(ours, name)
        table.ratio(f"cold, {text}: the jobs' size", mine / 1e6, raw / 1e6, "MB", Target("<=", fraction, f"<= {fraction:.4f}"), places=1)
        sent = {peer.title: getattr(rounds.of(peer.name, "cold"), name) for peer in rounds.peers if rounds.of(peer.name, "cold")}
        for title, theirs in sorted(sent.items(), key=lambda item: item[1])[:3]:
            table.ratio(f"cold, {text}: {title}", mine / 1e6, theirs / 1e6, "MB", Target("<", 1), places=1)
    jobs = len(jobs_of(rounds.corpus.base))
    most = jobs + -(-raw // (64 * MIB))
    least = min(((rounds.of(peer.name, "cold").inodes, peer.title) for peer in rounds.peers if rounds.of(peer.name, "cold")), default=None)
    beside = f"{least[0]:.0f} {least[1]}" if least else ""
    table.value("inodes in the store", ours.inodes, "", Target("<=", most, f"<= {most:.0f}"), beside, 0)


def expense(rounds, table):
    ours = rounds.of("resultsfs", "cold")
    bound = 14 * rounds.corpus.bytes / FULL_BYTES
    text = f"<= {bound:.2f} s" + ("" if round(bound, 1) == 14 else " (14 for 3,254 MB)")
    if ours.cpu is None:
        table.missing("cold, CPU seconds of both sides", "no cgroup", Target("<=", bound, text))
    else:
        others = ((peer.title, rounds.of(peer.name, "cold")) for peer in rounds.peers if peer.name in ("rsync", "rsync-all", "bupstash"))
        beside = "; ".join(f"{cost.cpu:.2f} {title}" for title, cost in others if cost)
        table.value("cold, CPU seconds of both sides", ours.cpu, "s", Target("<=", bound, text), beside)
    for kind in ("mount", "serve", "serve --stdio"):
        if kind in ours.memory:
            table.value(f"cold, peak memory: {kind}", ours.memory[kind] / MIB, "MiB", Target("<", 128, "< 128 MiB"), places=1)
