"""Rows of make bench that are about tables, not data.

Every row has an image that is made once, a private copy of it for each run
where the program changes it, and a verdict: qemu-img's word on what either
program made, or the same answer from both.
"""
import array
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile

from common import (MIB, PEER, VIMG, enough, folder_for, head, line, quiet,
                    run, text_of)

CLUSTER = 65536
ENTRIES = CLUSTER // 8
OFFSET = 0x00fffffffffffe00
COPIED = 1 << 63


# ---- images ---------------------------------------------------------------

def full(path, size="1T"):
    """Every cluster has its place; the file is sparse."""
    quiet(PEER, "create", "-q", "-f", "qcow2", "-o",
          "preallocation=metadata", path, size)


def read_table(file, offset):
    table = array.array("Q", os.pread(file, CLUSTER, offset))
    table.byteswap()
    return table


def write_table(file, offset, table):
    table = array.array("Q", table)
    table.byteswap()
    os.pwrite(file, table.tobytes(), offset)


def l2_offsets(file):
    header = os.pread(file, 72, 0)
    size = int.from_bytes(header[36:40], "big")
    table = array.array("Q", os.pread(
        file, size * 8, int.from_bytes(header[40:48], "big")))
    table.byteswap()
    return [entry & OFFSET for entry in table if entry & OFFSET]


def leaky(path):
    """A quarter of the clusters has a reference that nobody holds: every
    fourth entry of the tables is gone."""
    full(path)
    file = os.open(path, os.O_RDWR)
    for offset in l2_offsets(file):
        table = read_table(file, offset)
        table[::4] = array.array("Q", bytes(ENTRIES // 4 * 8))
        write_table(file, offset, table)
    os.close(file)


def fragmented(path):
    """64 GiB, no two clusters that follow each other do so in the file."""
    full(path, "64G")
    file = os.open(path, os.O_RDWR)
    offsets = l2_offsets(file)
    entries = array.array("Q")
    for offset in offsets:
        entries.extend(read_table(file, offset))
    random.Random(1).shuffle(entries)
    for i, offset in enumerate(offsets):
        write_table(file, offset, entries[i * ENTRIES:(i + 1) * ENTRIES])
    os.close(file)


def snapshotted(path):
    full(path)
    quiet(VIMG, "snapshot", "-c", "s", path)


def write_some(path, seed, count, span, length=CLUSTER):
    """qemu-io's writes of a pattern to places that follow from seed."""
    rand = random.Random(seed)
    commands = []
    for _ in range(count):
        at = rand.randrange(span // length) * length
        commands += ["-c", "write -q -P %d %d %d" % (seed % 255 + 1, at,
                                                     length)]
    quiet("qemu-io", "-f", "qcow2", *commands, path)


def chain(path, layers=200):
    """1 GiB, each layer with 80 clusters of its own; path is the top."""
    below = None
    for i in range(layers):
        name = path if i == layers - 1 else "%s.%d" % (path, i)
        argv = ["create", "-q", "-f", "qcow2"]
        if below:
            argv += ["-b", below, "-F", "qcow2"]
        quiet(PEER, *argv, name, "1G")
        write_some(name, i, 80, 1 << 30)
        below = name


def filled(path, pattern, length=1 << 30, backing=None, size="4G"):
    argv = ["create", "-q", "-f", "qcow2"]
    if backing:
        argv += ["-b", backing, "-F", "qcow2"]
    quiet(PEER, *argv, path, size)
    commands = []
    for at in range(0, length, 64 * MIB):
        commands += ["-c", "write -q -P %d %d 64M" % (pattern, at)]
    quiet("qemu-io", "-f", "qcow2", *commands, path)


def overlay(path):
    """1 GiB of data over a base with as much of its own."""
    filled(path + ".base", 1)
    filled(path, 2, backing=path + ".base")


def moving(path):
    """An overlay with half of a GiB, and two bases of a GiB each."""
    filled(path + ".base", 1)
    filled(path + ".other", 3)
    filled(path, 2, 512 * MIB, backing=path + ".base")


def raw64(path):
    with open(path, "wb") as file:
        for i in range(64):
            file.write(random.Random(i).randbytes(MIB))


# ---- verdicts -------------------------------------------------------------

def clean(path, out):
    quiet(PEER, "check", "-q", path)


def has_snapshot(path, out):
    clean(path, out)
    if b" s " not in text_of(PEER, "snapshot", "-l", path):
        sys.exit("bench: the snapshot is not there")


def of_size(size):
    def verdict(path, out):
        clean(path, out)
        if json.loads(text_of(PEER, "info", "--output=json",
                              path))["virtual-size"] != size:
            sys.exit("bench: %s: another size" % path)
    return verdict


def content(path, form="qcow2"):
    """Digest of what the guest sees."""
    target = path + ".content"
    quiet(PEER, "convert", "-f", form, "-O", "raw", path, target)
    digest = hashlib.sha256()
    with open(target, "rb") as file:
        while block := file.read(8 * MIB):
            digest.update(block)
    os.unlink(target)
    return digest.digest()


# ---- rows -----------------------------------------------------------------

class Row:
    """goal: the ratio of wall times.  argv: {img} is the image, or the private copy of it where the program
    changes it (copies: endings of the files to copy), {out} an output."""

    def __init__(self, name, goal, make, *argv, copies=None, codes=(0,),
                 verdict=None, same=False, before=None):
        self.name, self.goal = name, goal
        self.make, self.argv = make, list(argv)
        self.copies, self.codes, self.verdict = copies, codes, verdict
        self.same, self.before = same, before


def shows_as_before(path, out, known):
    if content(path) != known:
        sys.exit("bench: %s: another content" % path)


def base_shows(path, out, known):
    if content(path + ".base") != known:
        sys.exit("bench: %s: another content" % path)


def out_shows(path, out, known):
    if content(out, "raw") != known:
        sys.exit("bench: %s: another content" % out)


TERA = 1 << 40
ROWS = [
    Row("snapshot-c", .1, full, "snapshot", "-c", "s", "{img}", copies=[""],
        verdict=has_snapshot),
    Row("snapshot-a", .1, snapshotted, "snapshot", "-a", "s", "{img}",
        copies=[""], verdict=has_snapshot),
    Row("snapshot-d", .1, snapshotted, "snapshot", "-d", "s", "{img}",
        copies=[""], verdict=clean),
    Row("check-1T", .25, full, "check", "--output=json", "{img}", same=True),
    Row("check-leaks", .1, leaky, "check", "--output=json", "{img}", codes=(3,),
        same=True),
    Row("check-r-all", .01, leaky, "check", "-r", "all", "{img}", copies=[""],
        verdict=clean),
    Row("check-fragments", .05, fragmented, "check", "--output=json", "{img}",
        same=True),
    Row("map-fragments", .3, fragmented, "map", "--output=json", "{img}",
        same=True),
    Row("shrink", .02, full, "resize", "-q", "--shrink", "{img}", "512G",
        copies=[""], verdict=of_size(TERA // 2)),
    Row("grow", .5, full, "resize", "-q", "{img}", "+1T", copies=[""],
        verdict=of_size(2 * TERA)),
    Row("map-1T", .3, full, "map", "--output=json", "{img}", same=True),
    Row("measure-1T", .2, full, "measure", "-O", "qcow2", "--output=json",
        "{img}", same=True),
    Row("create-1T", .4, None, "create", "-q", "-f", "qcow2", "-o",
        "preallocation=metadata", "{out}", "1T",
        verdict=lambda path, out: of_size(TERA)(out, out)),
    Row("chain-convert", .1, chain, "convert", "-O", "raw", "{img}", "{out}",
        before=content, verdict=out_shows),
    Row("chain-map", .05, chain, "map", "--output=json", "{img}", same=True),
    Row("chain-open", .3, chain, "map", "--output=json", "-l", "64k", "{img}",
        same=True),
    Row("chain-info", .3, chain, "info", "--backing-chain", "{img}"),
    Row("commit", .6, overlay, "commit", "-q", "{img}", copies=["", ".base"],
        before=content, verdict=base_shows),
    Row("rebase", .6, moving, "rebase", "-F", "qcow2", "-b", "{img}.other",
        "{img}", copies=["", ".base", ".other"], before=content,
        verdict=shows_as_before),
    Row("dd-512", .1, raw64, "dd", "-f", "raw", "-O", "raw", "bs=512",
        "if={img}", "of={out}", before=lambda path: content(path, "raw"),
        verdict=out_shows),
]


class Runner:
    def __init__(self, folder, runs):
        self.folder, self.runs, self.known = folder, runs, {}
        self.out = os.path.join(folder, "out")

    def image(self, make):
        """Its folder: names inside images are those beside them, so that a
        copy of the folder stands by itself."""
        if not make:
            return self.folder, None
        where = os.path.join(self.folder, make.__name__)
        if not os.path.isdir(where):
            for old in os.listdir(self.folder):
                shutil.rmtree(os.path.join(self.folder, old))
            os.mkdir(where)
            here = os.getcwd()
            os.chdir(where)
            make("img")
            os.chdir(here)
        return where, os.path.join(where, "img")

    def once(self, program, row, where, image):
        work = os.path.join(self.folder, "work")
        if row.copies:
            os.mkdir(work)
            for ending in row.copies:
                quiet("cp", "--sparse=always", image + ending, work)
            where, image = work, os.path.join(work, "img")
        argv = [a.format(img="img", out=self.out) for a in row.argv]
        result = run([program] + argv, row.codes, cwd=where)
        return result, image, work

    def finish(self, work):
        if os.path.isdir(work):
            shutil.rmtree(work)
        if os.path.exists(self.out):
            os.unlink(self.out)

    def judge(self, row, image, before):
        if row.verdict and row.before:
            row.verdict(image, self.out, before)
        elif row.verdict:
            row.verdict(image, self.out)

    def compare_answers(self, row, where):
        answers = []
        argv = [a.format(img="img") for a in row.argv]
        here = os.getcwd()
        os.chdir(where)
        for program in (VIMG, PEER):
            answers.append(json.loads(text_of(program, *argv,
                                              codes=row.codes)))
        os.chdir(here)
        if answers[0] != answers[1]:
            sys.exit("bench: %s: the answers differ" % row.name)

    def row(self, row):
        where, image = self.image(row.make)
        before = row.before(image) if row.before else None
        if row.same:
            self.compare_answers(row, where)
        times = {VIMG: [], PEER: []}
        while not enough(times[VIMG], times[PEER], self.runs):
            first = not times[VIMG]
            for program in (VIMG, PEER):
                result, made, work = self.once(program, row, where, image)
                size = made or self.out
                times[program].append(result +
                                      (os.stat(size).st_blocks * 512,))
                if first:
                    self.judge(row, made, before)
                self.finish(work)
        line(row.name, times[VIMG], times[PEER], row.goal, row.argv)


def run_rows(rows, runs):
    head("metadata")
    with tempfile.TemporaryDirectory(prefix="vimg-bench.",
                                     dir=folder_for(8 << 30)) as folder:
        runner = Runner(folder, runs)
        for row in rows:
            runner.row(row)
