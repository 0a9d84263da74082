"""resultsfs as it is run here: one store behind `serve`, and drones that mount, each with its own state, configuration and process."""

import json
import os
import shutil
import socket
import subprocess
from collections import Counter

from corpus import jobs_of, renamed
from lab import HOST, Failed, run, until

# Autotest's generator ends its jobs with the parser.
COMMON = """\
complete_on: parser
live_seconds: 0
keep_local_hours: 1000
spool_high_percent: 99
spool_low_percent: 98
"""


# The first file of a job, which makes its directory a unit, and the last one, which says that the job has ended.
FIRST, LAST = ".autoserv_execute", ".parser_execute"


def begin_job(source, target):
    """Copies a job into a mount as Autotest would: the pidfile comes before anything else. It hasn't ended yet."""
    os.mkdir(target)
    shutil.copy2(f"{source}/{FIRST}", target)
    rest = [f"{source}/{name}" for name in os.listdir(source) if name not in (FIRST, LAST)]
    run(["cp", "-a", "-t", target, *rest])


def end_job(source, target):
    shutil.copy2(f"{source}/{LAST}", target)
    shutil.copystat(source, target)


class Store:
    """A results host: its store, its configuration, and `serve`, started at once and at the end of the lab's directory gone."""

    def __init__(self, lab, name="store", settle=3600):
        self.lab, self.settle = lab, settle
        self.home = f"{lab.disk}/{name}"
        self.dir = f"{self.home}/store"
        self.socket = f"{lab.dir}/{name}.sock"
        self.ini = f"{lab.dir}/{name}.ini"
        self.process = None
        os.makedirs(self.home)
        self.write_ini()
        self.start()

    def write_ini(self):
        with open(self.ini, "w") as ini:
            ini.write(f"[SCHEDULER]\ndrones: drone\nresults_host: {HOST}\n\n[RESULTSFS]\nhost_name: {HOST}\nstate_dir: {self.home}/state\n"
                      f"store_dir: {self.dir}\nserve_socket: {self.socket}\nsettle_seconds: {self.settle}\n{COMMON}")

    def start(self):
        self.process = self.lab.start([self.lab.binary, "--quiet", "--config", self.ini, "serve"], "serve.log")
        until(self.answers, 600, "serve answers")

    def answers(self):
        if self.process.poll() is not None:
            raise Failed(f"serve has ended: {open(f'{self.lab.dir}/serve.log').read()[-1000:]}")
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(self.socket) == 0

    def stop(self):
        self.lab.stop(self.process)

    def command(self, *words):
        return run([self.lab.binary, "--quiet", "--config", self.ini, *words])

    def packs(self):
        return f"{self.dir}/packs"

    def remove(self):
        self.stop()
        shutil.rmtree(self.home)


class Drone:
    """A host with the mount."""

    def __init__(self, lab, store, name="drone", results_host=HOST):
        self.lab, self.store, self.name = lab, store, name
        self.home = f"{lab.disk}/{store.home.rsplit('/', 1)[1]}-{name}"
        self.tree = f"{self.home}/tree"
        self.ini = f"{lab.dir}/{os.path.basename(self.home)}.ini"
        os.makedirs(self.tree)
        with open(self.ini, "w") as ini:
            ini.write(f"[SCHEDULER]\ndrones: {name}\nresults_host: {results_host}\n\n[RESULTSFS]\nhost_name: {name}\nstate_dir: {self.home}/state\n"
                      f"serve_socket: {lab.dir}/none.sock\nssh_command: {lab.ssh}\nremote_command: {lab.binary} --config {store.ini}\n"
                      f"settle_seconds: {store.settle}\n{COMMON}")
        lab.at_end(self.leave)

    def command(self, *words):
        return run([self.lab.binary, "--quiet", "--config", self.ini, *words])

    def json(self, *words):
        return [json.loads(line) for line in self.command("--json", *words).splitlines()]

    def status(self):
        return self.json("status")[-1]

    def mount(self):
        self.command("mount", self.ini, self.tree)
        until(lambda: self.status()["connection"]["state"] == "up", what=f"{self.name} is connected")

    def umount(self):
        self.command("umount", self.tree)

    def leave(self):
        if os.path.ismount(self.tree):
            try:
                subprocess.run([self.lab.binary, "--quiet", "--config", self.ini, "umount", self.tree], timeout=60, check=True)
            except subprocess.SubprocessError:
                subprocess.run(["umount", "-l", self.tree])

    def remove(self):
        self.umount()
        shutil.rmtree(self.home)

    def fill(self, source, by=0, jobs=None):
        """Jobs are written by the tests that make them; here they are copied into the mount and synced, which isn't measured."""
        for job in jobs or jobs_of(source):
            target = f"{self.tree}/{renamed(job, by)}"
            begin_job(f"{source}/{job}", target)
            end_job(f"{source}/{job}", target)
        run(["sync", "-f", self.lab.disk])

    def spool(self):
        return self.status()["spool"]["path"]

    def offload(self):
        self.command("offload", "--wait", "--timeout", "3600")

    def check_committed(self, units):
        """A figure of an offload that had nothing to do would be a good one."""
        states = [unit["state"] for unit in self.json("jobs") if unit["host"] == self.name]
        if states.count("committed") != units or len(states) != units:
            raise Failed(f"of {units} units: {dict(Counter(states))}")
