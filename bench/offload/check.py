"""Proving that what is stored is whole: `verify --read-data` against hashing the same bytes flat out, and against the peers' own checks. And the index,
made again from the packs."""

import os

from corpus import file_bytes, read_all
from lab import program, run
from table import Target


def ours(rounds, store):
    """Both sides read the packs from the page cache. They take turns at being the first."""
    def verify():
        store.command("verify", "--store", "--read-data")

    def hash_all():
        run(f"'{program('b3sum')}' --num-threads 2 '{store.packs()}'/* > /dev/null", shell=True)

    both = [("verify", verify), ("hash", hash_all)]
    for what, act in both if len(rounds.costs.get(("resultsfs", "verify"), [])) % 2 == 0 else reversed(both):
        if act is verify or program("b3sum"):
            read_all(store.packs())
            cost = rounds.meter.measure(act)
            cost.stored = file_bytes(store.packs())
            rounds.keep("resultsfs", what, cost)


def index(rounds, store):
    """With `serve` stopped: it is started without its index, and with it, against reading the packs."""
    read_all(store.packs())
    rounds.keep("resultsfs", "packs read", rounds.meter.measure(lambda: read_all(store.packs())))
    for what in ("index made again", "index opened"):
        store.stop()
        if what == "index made again":
            os.unlink(f"{store.dir}/index.redb")
        rounds.keep("resultsfs", what, rounds.meter.measure(store.start))


def rows(rounds, table):
    verify, hashed = rounds.of("resultsfs", "verify"), rounds.of("resultsfs", "hash")
    target = Target(">=", 0.8)
    if hashed:
        speed = (cost.stored / 1e6 / cost.seconds for cost in (verify, hashed))
        table.ratio("verify --read-data: b3sum --num-threads 2 of the packs", *speed, "MB/s", target, places=0)
    else:
        table.missing("verify --read-data: b3sum --num-threads 2 of the packs", "no b3sum", target)
    for name in ("borg", "restic"):
        title = {"borg": "borg check --verify-data", "restic": "restic check --read-data"}[name]
        theirs = rounds.of(name, "verify")
        if theirs:
            table.ratio(f"verify --read-data: {title}", verify.seconds, theirs.seconds, "s", Target("<=", 1 / 4, "<= 1/4"))
        else:
            table.missing(f"verify --read-data: {title}", "not run", Target("<=", 1 / 4, "<= 1/4"))
    theirs = rounds.of("restic", "verify")
    beside = f"{theirs.wire:,.0f} restic" if theirs else ""
    table.value("verify --read-data, bytes on the wire", verify.wire, "bytes", Target("=", 0, "0"), beside, 0)
    opened = rounds.of("resultsfs", "index opened")
    table.ratio("index made again from the packs: reading them", rounds.of("resultsfs", "index made again").seconds,
                rounds.of("resultsfs", "packs read").seconds, "s", beside=f"({opened.seconds:.3f} s with the index there)", places=3)
