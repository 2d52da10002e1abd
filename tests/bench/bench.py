#!/usr/bin/env python3
"""make bench: vimg and qemu-img in turn, on a realistic disk in memory.

    make bench [ROW=name,...] [SIZE=4G] [RUNS=3] [ENOUGH=40]
               [BENCH_MARKDOWN=file]

Each row is run A B A B ...; the table has medians of wall time, CPU time
(user and system), peak memory and size of the output, the ratio vimg /
qemu-img of the wall times and the goal for it.  A row that has taken ENOUGH
seconds is not run again.  BENCH_MARKDOWN gets the same as Markdown.  What
either made is opened by qemu-img and compared with the source.  The rows on metadata at scale are in meta.py,
those on file systems in disk.py.
"""
import os
import shutil
import subprocess
import sys
import tempfile

from common import (MIB, PEER, VIMG, enough, folder_for, head, human, line,
                    markdown, quiet, run, size_of, text_of, warm)
import disk
import meta

SIZE = size_of(os.environ.get("SIZE") or "4G")
RUNS = int(os.environ.get("RUNS") or 3)


def convert(source, target, *options):
    """Arguments that turn the source, a name of INPUTS, into {out}."""
    return ["convert", "-f", INPUTS[source][0], "-O", target, *options,
            "{%s}" % source, "{out}"]


# name -> format, how qemu-img makes it from the raw disk
INPUTS = {
    "raw": ("raw", None),
    "qcow2": ("qcow2", ["-O", "qcow2"]),
    "zlib": ("qcow2", ["-O", "qcow2", "-c", "-W", "-m", "16"]),
    "zstd": ("qcow2", ["-O", "qcow2", "-c", "-o", "compression_type=zstd",
                       "-W", "-m", "16"]),
    "vdi": ("vdi", ["-O", "vdi"]),
    "vmdk": ("vmdk", ["-O", "vmdk"]),
    "stream": ("vmdk", ["-O", "vmdk", "-o", "subformat=streamOptimized"]),
}
ZSTD = ["-c", "-o", "compression_type=zstd"]
STREAM = ["-o", "subformat=streamOptimized"]
# name, arguments of both, arguments of the peer where they differ, format of
# the output (None: there is none)
ROWS = [
    ("raw-qcow2", convert("raw", "qcow2"), None, "qcow2"),
    ("qcow2-raw", convert("qcow2", "raw"), None, "raw"),
    ("qcow2-qcow2", convert("qcow2", "qcow2"), None, "qcow2"),
    ("raw-qcow2-c", convert("raw", "qcow2", "-c"), None, "qcow2"),
    ("raw-qcow2-c-W", convert("raw", "qcow2", "-c"),
     convert("raw", "qcow2", "-c", "-W", "-m", "16"), "qcow2"),
    ("raw-qcow2-zstd", convert("raw", "qcow2", *ZSTD), None, "qcow2"),
    ("raw-qcow2-zstd-W", convert("raw", "qcow2", *ZSTD),
     convert("raw", "qcow2", *ZSTD, "-W", "-m", "16"), "qcow2"),
    ("zlib-raw", convert("zlib", "raw"), None, "raw"),
    ("zstd-raw", convert("zstd", "raw"), None, "raw"),
    ("raw-vdi", convert("raw", "vdi"), None, "vdi"),
    ("qcow2-vdi", convert("qcow2", "vdi"), None, "vdi"),
    ("vdi-qcow2", convert("vdi", "qcow2"), None, "qcow2"),
    ("vdi-raw", convert("vdi", "raw"), None, "raw"),
    ("raw-vmdk", convert("raw", "vmdk"), None, "vmdk"),
    ("vmdk-qcow2", convert("vmdk", "qcow2"), None, "qcow2"),
    ("vmdk-raw", convert("vmdk", "raw"), None, "raw"),
    ("raw-vmdk-stream", convert("raw", "vmdk", *STREAM), None, "vmdk"),
    ("vmdk-stream-raw", convert("stream", "raw"), None, "raw"),
    ("compare", ["compare", "-f", "raw", "-F", "qcow2", "{raw}", "{qcow2}"],
     None, None),
    ("check", ["check", "-f", "qcow2", "{qcow2}"], None, None),
    ("map", ["map", "-f", "qcow2", "--output=json", "{qcow2}"], None, None),
]
# Ratios of wall time; ("size"): and the output no larger.
GOALS = {
    "raw-qcow2": .85, "qcow2-raw": .85, "qcow2-qcow2": .85,
    "raw-qcow2-c": (.12, "size"), "raw-qcow2-zstd": (.5, "size"),
    "raw-qcow2-zstd-W": (.75, "size"), "zlib-raw": .4, "zstd-raw": .7,
    "raw-vdi": .7, "vdi-qcow2": .85, "raw-vmdk": .4, "vmdk-qcow2": .6,
    "raw-vmdk-stream": (.12, "size"), "compare": .5,
    "xfs-raw-qcow2": .05, "xfs-qcow2-raw": .05, "xfs-qcow2-qcow2": .05,
}


def make_disk(path, folder):
    """GPT, one ext4 with real files to 55 % of the disk, the rest empty."""
    stage = os.path.join(folder, "stage")
    room, copied = SIZE * 55 // 100, 0
    for top in ("/usr/bin", "/usr/lib", "/usr/share", "/usr/include",
                "/usr/sbin", "/opt", "/var/lib"):
        for where, subs, names in os.walk(top):
            subs.sort()
            for name in sorted(names):
                source = os.path.join(where, name)
                if os.path.islink(source) or not os.path.isfile(source):
                    continue
                length = os.path.getsize(source)
                if copied + length > room or length > 64 * MIB:
                    continue
                target = stage + source
                os.makedirs(os.path.dirname(target), exist_ok=True)
                try:
                    shutil.copyfile(source, target)
                except OSError:
                    continue
                copied += length
    with open(path, "wb") as disk:
        disk.truncate(SIZE)
    start = MIB
    subprocess.run(["sfdisk", "-q", path], check=True,
                   input=b"label: gpt\nfirst-lba: 2048\nstart=2048, size=%d\n"
                   % ((SIZE - 4 * MIB) // 512))
    quiet("mke2fs", "-q", "-F", "-t", "ext4", "-d", stage, "-E",
          "offset=%d" % start, path, "%dk" % ((SIZE - 4 * MIB) // 1024))
    shutil.rmtree(stage)
    return copied


def machine():
    with open("/proc/cpuinfo") as file:
        model = [text.split(":", 1)[1].strip() for text in file
                 if text.startswith("model name")]
    markdown("%s, %d processors, %.0f GiB; Linux %s; %s.\n" % (
        model[0] if model else os.uname().machine, os.cpu_count(),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2 ** 30,
        os.uname().release,
        text_of(PEER, "--version").decode().splitlines()[0]))


class Bench:
    def __init__(self, folder):
        self.paths = {"raw": os.path.join(folder, "disk.raw")}
        self.out = os.path.join(folder, "out")
        self.folder = folder
        copied = make_disk(self.paths["raw"], folder)
        text = "disk: %s, %s of files, %s allocated; %d runs each" % (
            human(SIZE), human(copied),
            human(os.stat(self.paths["raw"]).st_blocks * 512), RUNS)
        print(text)
        markdown("\n%s.\n" % text)

    def need(self, argv):
        for name, (_, how) in INPUTS.items():
            if name not in self.paths and "{%s}" % name in argv:
                path = os.path.join(self.folder, name)
                quiet(PEER, "convert", "-f", "raw", *how, self.paths["raw"],
                      path)
                self.paths[name] = path

    def remove_output(self):
        if os.path.exists(self.out):
            os.unlink(self.out)

    def once(self, program, argv, output):
        self.remove_output()
        prefix = [program]
        if argv[0] == "+sync":
            prefix = ["sh", "-c", '"$@" && sync "$0"', self.out, program]
            argv = argv[1:]
        warm()
        result = run(prefix + [a.format(out=self.out, **self.paths)
                               for a in argv])
        size = os.stat(self.out).st_blocks * 512 if output else 0
        return result + (size,)

    def verify(self, output):
        if not output:
            return
        quiet(PEER, "compare", "-q", "-f", "raw", "-F", output,
              self.paths["raw"], self.out)
        if output in ("qcow2", "vdi"):
            quiet(PEER, "check", "-q", "-f", output, self.out)

    def row(self, name, argv, peer_argv, output):
        peer_argv = peer_argv or argv
        self.need(argv)
        ours, theirs = [], []
        while not enough(ours, theirs, RUNS):
            first = not ours
            ours.append(self.once(VIMG, argv, output))
            if first:
                self.verify(output)
            theirs.append(self.once(PEER, peer_argv, output))
            if first:
                self.verify(output)
        self.remove_output()
        line(name, ours, theirs, GOALS.get(name), argv)


def main():
    names = [n for n in (os.environ.get("ROW") or "").split(",") if n]
    known = ([row[0] for row in ROWS] + [row.name for row in meta.ROWS] +
             [row[1] for row in disk.rows(convert)])
    for name in names:
        if name not in known:
            sys.exit("bench: no row %s; there are: %s" % (name,
                                                          " ".join(known)))
    rows = [row for row in ROWS if not names or row[0] in names]
    tables = [row for row in meta.ROWS if not names or row.name in names]
    machine()
    with tempfile.TemporaryDirectory(prefix="vimg-bench.",
                                     dir=folder_for(SIZE * 4)) as folder:
        if rows:
            bench = Bench(folder)
            head("in memory")
            for row in rows:
                bench.row(*row)
    for system, where in disk.SYSTEMS.items():
        rows = [row[1:] for row in disk.rows(convert)
                if row[0] == system and (not names or row[1] in names)]
        if rows and disk.possible(system):
            with where(SIZE * 4) as folder:
                bench = Bench(folder)
                head("on XFS" if system == "xfs" else "on the disk")
                for row in rows:
                    bench.row(*row)
    if tables:
        meta.run_rows(tables, RUNS)


if __name__ == "__main__":
    main()
