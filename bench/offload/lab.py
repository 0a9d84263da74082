"""The place that everything is measured in: a directory, an ext4 on a loop image, a private sshd on loopback, a cgroup for its CPU time.

`Lab` is a context: what it has made and started is gone when it ends, however it ends. Both sides of every comparison go through its one
sshd, in a network of its own where there is only loopback. `ssh` is a script that any program can be told to use as ssh.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PROJECT = os.path.dirname(os.path.dirname(HERE))
SBIN = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
HOST = "results"
# Of linux/sched.h, sockios.h and if.h.
CLONE_NEWNET, SIOCSIFFLAGS, IFF_UP = 0x4000_0000, 0x8914, 1


class Failed(Exception):
    """A measurement that can't go on; the text says why."""


def say(text):
    """Talk goes to stderr, figures to stdout."""
    print(f"# {text}", file=sys.stderr, flush=True)


def program(name):
    return shutil.which(name, path=SBIN)


def need(*names):
    missing = [name for name in names if not program(name)]
    if missing:
        raise Failed(f"needed: {', '.join(missing)}")


def run(words, **options):
    """Runs a command that has to succeed; its output is part of the message if it doesn't."""
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, **options)
    if done.returncode:
        words = words if isinstance(words, str) else " ".join(words)
        raise Failed(f"exit {done.returncode}: {words[:400]}\n{(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def until(done, seconds=60, what="it"):
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(0.01)


def resultsfs():
    for path in (os.environ.get("RESULTSFS"), *(f"{PROJECT}/target/{kind}/resultsfs" for kind in ("release", "debug"))):
        if path and os.access(path, os.X_OK):
            return os.path.abspath(path)
    raise Failed("no resultsfs: cargo build --release")


class Lab:
    def __init__(self, disk_gib):
        self.disk_gib = disk_gib
        self.binary = resultsfs()
        self.ends = []
        self.started = []

    def __enter__(self):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        need("ssh", "ssh-keygen", "sshd")
        self.dir = tempfile.mkdtemp(prefix="resultsfs-bench-", dir=os.environ.get("TMPDIR", "/tmp"))
        self.disk = f"{self.dir}/disk"
        os.mkdir(self.disk)
        try:
            self.cgroup = self._cgroup()
            self._mount_disk()
            self._own_network()
            self._start_sshd()
        except BaseException:
            self.__exit__()
            raise
        print(f"# binary: {run([self.binary, '--version']).strip()}, {os.path.basename(os.path.dirname(self.binary))}; "
              f"{os.cpu_count()} CPUs, Linux {os.uname().release}, load {os.getloadavg()[0]:.1f}")
        return self

    def __exit__(self, *_):
        os.chdir("/")
        while self.ends:
            self.ends.pop()()
        for process in reversed(self.started):
            stop(process)
        self._end_others()
        if os.path.ismount(self.disk):
            try:
                until(lambda: subprocess.run(["umount", self.disk], stderr=subprocess.DEVNULL).returncode == 0, 20)
            except Failed:
                subprocess.run(["umount", "-l", self.disk])
                say(f"{self.disk} was still in use")
        if self.cgroup:
            self._leave_cgroup()
        if not os.path.ismount(self.disk):
            shutil.rmtree(self.dir, ignore_errors=True)

    def _end_others(self):
        """What a measurement that was broken off has left running, on either side. Nothing is in our cgroup but what we started."""
        if not self.cgroup:
            return
        for pid in map(int, open(f"{self.cgroup}/cgroup.procs").read().split()):
            if pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def at_end(self, act):
        """Done before processes are stopped, the last one first. It must not fail."""
        self.ends.append(act)

    def start(self, words, log):
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(f"{self.dir}/{log}", "a"))
        self.started.append(process)
        return process

    def stop(self, process):
        self.started.remove(process)
        stop(process)

    def _mount_disk(self):
        image = f"{self.dir}/image"
        if os.getuid() == 0:
            with open(image, "w") as f:
                f.truncate(self.disk_gib << 30)
            run([program("mkfs.ext4"), "-q", "-F", image])
            run(["mount", "-o", "loop,noatime", image, self.disk])
            print("# disk: journaled ext4 on a loop image")
        else:
            print(f"# disk: {run(['stat', '-f', '-c', '%T', self.disk]).strip()} as it is: not root")

    def _own_network(self):
        """All that moves on its loopback is ours, so the kernel's counter of it is what went over the wire."""
        if os.getuid() or ctypes.CDLL(None).unshare(CLONE_NEWNET):
            print("# bytes on the wire: of all programs that use this machine's loopback, since a network of our own takes root")
            return
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))

    def _start_sshd(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for key in ("host_key", "id"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{self.dir}/{key}"])
        with open(f"{self.dir}/known_hosts", "w") as known:
            known.write(f"{HOST} {open(f'{self.dir}/host_key.pub').read()}")
        # MaxStartups is what sshd has without being told.
        self._write("sshd_config", f"""\
            ListenAddress 127.0.0.1
            Port {self.port}
            HostKey {self.dir}/host_key
            AuthorizedKeysFile {self.dir}/id.pub
            StrictModes no
            UsePAM no
            PidFile none
            Subsystem sftp internal-sftp
            """)
        self._write("ssh_config", f"""\
            Host {HOST}
            HostName 127.0.0.1
            Port {self.port}
            HostKeyAlias {HOST}
            IdentityFile {self.dir}/id
            IdentitiesOnly yes
            UserKnownHostsFile {self.dir}/known_hosts
            BatchMode yes
            """)
        self.ssh = f"{self.dir}/ssh"
        self._write("ssh", f"""\
            #!/bin/sh
            exec {program('ssh')} -F {self.dir}/ssh_config "$@"
            """)
        os.chmod(self.ssh, 0o755)
        if os.getuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        self.start([program("sshd"), "-D", "-f", f"{self.dir}/sshd_config", "-E", f"{self.dir}/sshd.log"], "sshd.out")
        until(lambda: subprocess.run([self.ssh, HOST, "true"], stderr=subprocess.DEVNULL).returncode == 0, what="sshd answers")

    def _write(self, name, text):
        with open(f"{self.dir}/{name}", "w") as out:
            out.writelines(line.strip() + "\n" for line in text.splitlines())

    def _cgroup(self):
        """A cgroup of our own that everything started from here on is in, or None where that can't be had."""
        for top in ("/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup"):
            path = f"{top}/resultsfs-bench-{os.getpid()}"
            try:
                os.mkdir(path)
                with open(f"{path}/cgroup.procs", "w") as procs:
                    procs.write(str(os.getpid()))
                return path
            except OSError:
                if os.path.isdir(path):
                    os.rmdir(path)
        say("no cgroup: CPU seconds aren't counted")
        return None

    def _leave_cgroup(self):
        try:
            with open(f"{os.path.dirname(self.cgroup)}/cgroup.procs", "w") as procs:
                procs.write(str(os.getpid()))
            until(lambda: not open(f"{self.cgroup}/cgroup.procs").read(), 20)
            os.rmdir(self.cgroup)
        except (OSError, Failed) as error:
            say(f"{self.cgroup} stays behind: {error}")

    def trim(self):
        """Gives back what was deleted, so that the image and its pages in memory don't grow with every round."""
        if os.path.ismount(self.disk) and program("fstrim"):
            subprocess.run([program("fstrim"), self.disk], stderr=subprocess.DEVNULL)

    def authentications(self):
        """Connections that sshd has let in so far."""
        with open(f"{self.dir}/sshd.log") as log:
            return sum(line.startswith("Accepted publickey") for line in log)


def stop(process):
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
