"""The jobs that are offloaded: some to begin with, and more of the same hosts after them."""

import os
import sys

from lab import PROJECT, run


class Corpus:
    """`<dir>/base` holds the first jobs, `<dir>/more` the next ones."""

    def __init__(self, lab, jobs, more, scale):
        self.lab, self.scale = lab, scale
        self.dir = f"{lab.disk}/corpus"
        generator = os.environ.get("GEN", f"{PROJECT}/../shared/tools/gen.py")
        self.generator = generator if os.path.isfile(generator) else None
        self.base = self.generate("base", 1, jobs)
        self.more = self.generate("more", jobs + 1, more)
        self.next = jobs + more + 1
        self.bytes = file_bytes(self.base)
        files = sum(len(names) for _, _, names in os.walk(self.base))
        made_by = os.path.basename(self.generator or "resultsfs generate")
        print(f"# corpus: {jobs} jobs, {self.bytes / 1e6:.0f} MB, {files} files, and {more} jobs more, "
              f"{file_bytes(self.more) / 1e6:.0f} MB; scale {scale}, by {made_by}")

    def generate(self, name, first, jobs):
        """From the lab's generator where that is at hand, otherwise the program's own."""
        out = f"{self.dir}/{name}"
        os.makedirs(out)
        if self.generator:
            run([sys.executable, self.generator, "gen", "--out", out, "--start", str(first), "--jobs", str(jobs), "--scale", str(self.scale)])
        else:
            run([self.lab.binary, "--quiet", "generate", out, "--first", str(first), "--jobs", str(jobs), "--scale", str(self.scale)])
        return out


def jobs_of(directory):
    return sorted(os.listdir(directory), key=lambda name: int(name.split("-")[0]))


def renamed(job, by):
    """12-demo under another number."""
    number, _, owner = job.partition("-")
    return f"{int(number) + by}-{owner}"


def file_bytes(directory):
    """What its files hold; directories have no size of their own."""
    return sum(os.lstat(f"{top}/{name}").st_size for top, _, names in os.walk(directory) for name in names if is_file(f"{top}/{name}"))


def is_file(path):
    return os.path.isfile(path) and not os.path.islink(path)


def inodes(directory):
    return int(run(f"find '{directory}' | wc -l", shell=True))


def read_all(*directories):
    """Into the page cache, where what was just written is, too."""
    for directory in directories:
        run(f"find '{directory}' -type f -print0 | xargs -0 -r -n 500 cat > /dev/null", shell=True)
