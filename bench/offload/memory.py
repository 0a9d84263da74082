"""Memory where much happens at once: one large file and fifty units in flight on one drone, while other drones are connected."""

import os
import random

from engine import FIRST, LAST, Drone, Store
from lab import run
from table import Target

MIB = 1 << 20
UNITS = 50
UNIT_FILES = 20


def rows(lab, meter, table, options):
    store = Store(lab, "crowd")
    drones = [Drone(lab, store, f"drone{number}") for number in range(1, options.drones + 1)]
    for drone in drones:
        drone.mount()
    busy = drones[0]
    noise = random.Random(1)
    for number in range(1, UNITS + 1):
        write_unit(f"{busy.tree}/{number}-bench", {f"file{i}": noise.randbytes(noise.randrange(1 << 16)) for i in range(UNIT_FILES)})
    write_large(f"{busy.tree}/{UNITS + 1}-bench", options.large, noise)
    run(["sync", "-f", lab.disk])
    cost = meter.measure(busy.offload, watch_memory=True)
    busy.check_committed(UNITS + 1)
    text = f"peak memory, a file of {options.large} MiB, {UNITS} units, {options.drones} drones"
    for kind in ("mount", "serve", "serve --stdio"):
        if kind in cost.memory:
            table.value(f"{text}: {kind}", cost.memory[kind] / MIB, "MiB", Target("<", 128, "< 128 MiB"), places=1)
    table.note(f"in {cost.seconds:.2f} s, {cost.wire / 1e6:.0f} MB on the wire")
    for drone in drones:
        drone.remove()
    store.remove()


def write_unit(directory, files):
    """A job that has ended as far as the parser."""
    os.makedirs(directory)
    ended = b"1\n0\n0\n"
    for name, content in {FIRST: ended, **files, LAST: ended}.items():
        with open(f"{directory}/{name}", "wb") as out:
            out.write(content)


def write_large(directory, mib, noise):
    """Nothing in it repeats, nothing compresses."""
    write_unit(directory, {})
    with open(f"{directory}/core", "wb") as out:
        for _ in range(mib):
            out.write(noise.randbytes(MIB))
