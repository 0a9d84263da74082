"""The programs that resultsfs is compared with. Each says how its destination is made, how it sends all jobs or one, checks, and restores.

All go through the lab's ssh and sshd, with their cache, if they have one, as it is after their own first run; what is compressed is at zstd's fast
end; nothing is encrypted where that can be chosen.
"""

import os
import shutil

from corpus import jobs_of, renamed
from lab import HOST, PROJECT, Failed, program, run, say

TOOLS = f"{PROJECT}/target/peers"
PACKAGES = {"rsync": "rsync", "borg": "borgbackup", "restic": "restic", "casync": "casync", "b3sum": "b3sum"}


class Peer:
    """Sends everything in one go."""

    title = ""
    needs = ()

    def __init__(self, lab, name):
        self.lab, self.name = lab, name
        self.dir = f"{lab.disk}/{self.name}"
        self.state = f"{lab.dir}/{self.name}"
        self.env = {**os.environ, "HOME": self.state, "LC_ALL": "C.UTF-8", "PATH": f"{TOOLS}/bin:{os.environ['PATH']}"}

    def begin(self):
        """Nothing is there yet, on either side."""
        self.end()
        os.makedirs(self.dir)
        os.makedirs(self.state)
        self.init()

    def init(self):
        pass

    def end(self):
        for directory in (self.dir, self.state):
            shutil.rmtree(directory, ignore_errors=True)

    def run(self, words, **options):
        return run(words, env=self.env, **options)


class Rsync(Peer):
    """As Autotest does it: a process and a connection a job; but one connection instead of its two to four, and links kept."""

    title = "rsync job by job"
    needs = ("rsync",)

    def send(self, source, by=0):
        for job in jobs_of(source):
            self.run(["rsync", "-a", "--delete", "-e", self.lab.ssh, f"{source}/{job}/", f"{HOST}:{self.dir}/{renamed(job, by)}/"])

    def restore(self, job, to):
        self.run(["rsync", "-a", "-e", self.lab.ssh, f"{HOST}:{self.dir}/{job}/", f"{to}/{job}/"])


class RsyncAll(Peer):
    title = "one rsync of everything"
    needs = ("rsync",)

    def send(self, source):
        self.run(["rsync", "-a", "--delete", "-e", self.lab.ssh, f"{source}/", f"{HOST}:{self.dir}/"])


class Tar(Peer):
    title = "tar over ssh"
    needs = ("tar",)

    def send(self, source):
        self.run(["bash", "-o", "pipefail", "-c", f"tar -C {source} -c . | {self.lab.ssh} {HOST} 'tar -x -C {self.dir}'"])


class Borg(Peer):
    title = "borg in one go"
    needs = ("borg",)

    def init(self):
        self.env.update(BORG_BASE_DIR=self.state, BORG_RSH=self.lab.ssh, BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes",
                        BORG_RELOCATED_REPO_ACCESS_IS_OK="yes")
        self.repository = f"ssh://{HOST}{self.dir}/repo"
        self.run(["borg", "init", "-e", "none", self.repository])

    def send(self, source):
        self.run(["borg", "create", "--compression", "zstd,1", f"{self.repository}::all", "."], cwd=source)

    def verify(self):
        self.run([self.lab.ssh, HOST, f"BORG_BASE_DIR={self.state} BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes "
                  f"BORG_RELOCATED_REPO_ACCESS_IS_OK=yes borg check --verify-data {self.dir}/repo"])


class Restic(Peer):
    title = "restic in one go"
    needs = ("restic",)

    def init(self):
        self.env.update(RESTIC_PASSWORD="x", RESTIC_CACHE_DIR=f"{self.state}/cache")
        self.words = ["restic", "-q", "-o", f"sftp.command={self.lab.ssh} {HOST} -s sftp", "-r", f"sftp:{HOST}:{self.dir}/repo"]
        self.run([*self.words, "init"])

    def send(self, source):
        self.run([*self.words, "backup", "."], cwd=source)

    def verify(self):
        self.run([*self.words, "check", "--read-data"])


class Bupstash(Peer):
    title = "bupstash in one go"
    needs = ("bupstash",)

    def init(self):
        binary = shutil.which("bupstash", path=self.env["PATH"])
        key = f"{self.state}/key"
        self.env.update(BUPSTASH_KEY=key, BUPSTASH_REPOSITORY_COMMAND=f"{self.lab.ssh} {HOST} {binary} serve {self.dir}/repo")
        self.run(["bupstash", "new-key", "-o", key])
        self.run([self.lab.ssh, HOST, f"{binary} init -r {self.dir}/repo"])

    def send(self, source):
        self.run(["bupstash", "put", "-q", "name=all", source])


class Casync(Peer):
    title = "casync in one go"
    needs = ("casync",)

    def init(self):
        self.env.update(CASYNC_SSH_PATH=self.lab.ssh)
        os.mkdir(f"{self.dir}/store")

    def send(self, source):
        self.run(["casync", "make", "--with=unix", f"--store={HOST}:{self.dir}/store", f"{HOST}:{self.dir}/all.caidx", source])


ALL = {"rsync": Rsync, "rsync-all": RsyncAll, "tar": Tar, "borg": Borg, "restic": Restic, "bupstash": Bupstash, "casync": Casync}


def install(names):
    """Installs what these peers need, and b3sum, as far as that can be done; says what is left out. Returns the names that can run."""
    needed = {need for name in names for need in ALL[name].needs} | {"b3sum"}
    apt_install([PACKAGES[need] for need in sorted(needed) if need in PACKAGES and not found(need)])
    if "bupstash" in needed and not found("bupstash"):
        cargo_install("bupstash")
    usable = []
    for name in names:
        missing = [need for need in ALL[name].needs if not found(need)]
        if missing:
            say(f"left out: {name}, which needs {', '.join(missing)}")
        else:
            usable.append(name)
    return usable


def found(name):
    return program(name) or os.access(f"{TOOLS}/bin/{name}", os.X_OK)


def apt_install(packages):
    if not packages:
        return
    if os.getuid() or not program("apt-get"):
        say(f"not installed, which takes root and apt-get: {' '.join(packages)}")
        return
    say(f"apt-get install {' '.join(packages)}")
    install_words = ["apt-get", "-qy", "--no-install-recommends", "install", *packages]
    # What has come with the machine may be enough to find them; if not, fetch the lists.
    for words in (install_words, ["apt-get", "-q", "update"], install_words):
        try:
            run(words, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        except Failed as error:
            say(str(error))
        else:
            if words is install_words:
                return


def cargo_install(name):
    """Kept below target/, so that it is built once."""
    if not program("cargo"):
        say(f"not installed, which takes cargo: {name}")
        return
    if not os.path.exists("/usr/include/sodium.h") or not program("pkg-config"):
        apt_install(["libsodium-dev", "pkg-config"])
    say(f"cargo install {name}, which takes some minutes the first time")
    try:
        run(["cargo", "install", "--quiet", "--locked", "--root", TOOLS, name], env={**os.environ, "CARGO_TARGET_DIR": f"{TOOLS}/build"})
    except Failed as error:
        say(str(error))


def versions(names):
    """One line that says what was compared with."""
    words = {need for name in names for need in ALL[name].needs} - {"tar"}
    path = f"{TOOLS}/bin:{os.environ['PATH']}"
    lines = (run([word, "version" if word == "restic" else "--version"], env={**os.environ, "PATH": path}).splitlines()[0] for word in sorted(words))
    return "; ".join(line.split(" compiled")[0].replace("  ", " ").split(" protocol")[0] for line in lines)
