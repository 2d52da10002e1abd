#!/usr/bin/env python3
"""make bench-scale: how cost grows with depth, number, size and threads.

    make bench-scale [CURVE=name,...] [RUNS=3]

Prints curves, each a row of points; a point is the median of RUNS runs of
vimg, and of qemu-img where that does the same.  What should be flat or
straight can be seen to be.
"""
import os
import statistics
import sys
import tempfile

import meta
from common import PEER, VIMG, folder_for, quiet, run, text_of

RUNS = int(os.environ.get("RUNS") or 3)


def median(program, *argv, before=None, codes=(0,)):
    """Wall seconds and peak KiB."""
    results = []
    for _ in range(RUNS):
        if before:
            before()
        results.append(run([program, *argv], codes))
    return (statistics.median(r[0] for r in results),
            statistics.median(r[2] for r in results))


def title(text, *columns):
    print("\n%s\n%16s" % (text, ""), end="")
    print("".join("%16s" % c for c in columns), flush=True)


def point(name, *values):
    print("%16s" % name, end="")
    print("".join("%16s" % ("%.4f s" % v if isinstance(v, float) else v)
                  for v in values), flush=True)


def remove(*names):
    for name in names:
        if os.path.exists(name):
            os.unlink(name)


def depth():
    """A disk of 1 GiB with the same 640 clusters of data, by 1 to 200
    layers."""
    title("reading through layers", "convert", "qemu-img", "map", "qemu-img",
          "open")
    for layers in (1, 2, 10, 50, 200):
        below = None
        for i in range(layers):
            name = "d%d.%d" % (layers, i)
            argv = ["create", "-q", "-f", "qcow2"]
            if below:
                argv += ["-b", below, "-F", "qcow2"]
            quiet(PEER, *argv, name, "1G")
            meta.write_some(name, i, max(1, 640 // layers), 1 << 30)
            below = name
        row = []
        for program in (VIMG, PEER):
            row.append(median(program, "convert", "-O", "raw", below,
                              "out")[0])
        for program in (VIMG, PEER):
            row.append(median(program, "map", "--output=json", below)[0])
        row.append(median(VIMG, "map", "--output=json", "-l", "65536",
                          below)[0])
        point("%d layers" % layers, *row)
        remove("out", *("d%d.%d" % (layers, i) for i in range(layers)))


def snapshots():
    """One more snapshot where there are many."""
    title("number of snapshots", "create", "qemu-img", "list", "apply",
          "delete", "check")
    quiet(PEER, "create", "-q", "-f", "qcow2", "s.qcow2", "1G")
    meta.write_some("s.qcow2", 1, 100, 1 << 30)
    there = 0
    for count in (1, 10, 100, 300, 1000):
        while there < count:
            there += 1
            quiet(VIMG, "snapshot", "-c", "s%d" % there, "s.qcow2")

        def drop(program):
            if b" new " in text_of(PEER, "snapshot", "-l", "s.qcow2"):
                quiet(program, "snapshot", "-d", "new", "s.qcow2")

        row = []
        for program in (VIMG, PEER):
            row.append(median(program, "snapshot", "-c", "new", "s.qcow2",
                              before=lambda: drop(VIMG))[0])
        row.append(median(VIMG, "snapshot", "-l", "s.qcow2")[0])
        row.append(median(VIMG, "snapshot", "-a", "s1", "s.qcow2")[0])
        drop(VIMG)
        row.append(median(
            VIMG, "snapshot", "-d", "new", "s.qcow2",
            before=lambda: quiet(VIMG, "snapshot", "-c", "new",
                                 "s.qcow2"))[0])
        row.append(median(VIMG, "check", "s.qcow2")[0])
        quiet(PEER, "check", "-q", "s.qcow2")
        point("%d" % count, *row)
    remove("s.qcow2")


def size():
    """Empty disks."""
    title("virtual size, empty", "create", "info", "check", "map",
          "convert")
    for name in ("1G", "16G", "256G", "1T", "16T", "64T"):
        row = []
        row.append(median(VIMG, "create", "-q", "-f", "qcow2", "e.qcow2",
                          name)[0])
        row.append(median(VIMG, "info", "e.qcow2")[0])
        row.append(median(VIMG, "check", "e.qcow2")[0])
        row.append(median(VIMG, "map", "e.qcow2")[0])
        row.append(median(VIMG, "convert", "-O", "qcow2", "e.qcow2",
                          "out")[0])
        quiet(PEER, "check", "-q", "out")
        point(name, *row)
    remove("e.qcow2", "out")


def threads():
    """Where the work is compute; the number of processors is set by
    taskset."""
    title("processors, 256 MiB packed", "convert -c", "unpack", "check 256G")
    with open("t.raw", "wb") as file:
        few = bytes(i & 15 for i in range(256))
        for _ in range(256):
            file.write(os.urandom(1 << 20).translate(few))
    meta.full("t.qcow2", "256G")
    for cpus in (1, 2):
        only = ["taskset", "-c", "0" if cpus == 1 else "0,1", VIMG]
        row = [median(*only, "convert", "-c", "-O", "qcow2", "t.raw",
                      "t.packed")[0],
               median(*only, "convert", "-O", "raw", "t.packed", "out")[0],
               median(*only, "check", "t.qcow2")[0]]
        point("%d" % cpus, *row)
    remove("t.raw", "t.packed", "t.qcow2", "out")


def memory():
    """Peak of one process with one disk, all its tables read."""
    title("preallocated", "map", "check", "qemu-img check", "with snapshot")
    for name in ("1G", "64G", "512G", "2T", "8T"):
        meta.full("m.qcow2", name)
        row = [median(VIMG, "map", "m.qcow2")[1],
               median(VIMG, "check", "m.qcow2")[1],
               median(PEER, "check", "m.qcow2")[1]]
        quiet(VIMG, "snapshot", "-c", "s", "m.qcow2")
        row.append(median(VIMG, "check", "m.qcow2")[1])
        point(name, *("%.1f MiB" % (kib / 1024) for kib in row))
    remove("m.qcow2")


CURVES = {f.__name__: f for f in (depth, snapshots, size, threads, memory)}


def main():
    names = [n for n in (os.environ.get("CURVE") or "").split(",") if n]
    for name in names:
        if name not in CURVES:
            sys.exit("bench-scale: no curve %s; there are: %s" % (
                name, " ".join(CURVES)))
    with tempfile.TemporaryDirectory(prefix="vimg-bench.",
                                     dir=folder_for(6 << 30)) as folder:
        os.chdir(folder)
        for name, curve in CURVES.items():
            if not names or name in names:
                curve()
        os.chdir("/")


if __name__ == "__main__":
    main()
