#!/usr/bin/env python3
"""VMDK images that are damaged: what check says and mends, and what becomes of
the guest's bytes.  Nothing that some copy of the tables, or a packed grain's
own marker, still tells may be lost."""
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

SECTOR, GRAIN = 512, 65536
SIZE = 80 << 20         # three tables
random.seed(4)
failed = []


def run(*argv):
    return subprocess.run(argv, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)


def must(*argv):
    r = run(*argv)
    if r.returncode:
        sys.exit("%s: %s" % (" ".join(argv), r.stdout.decode()))
    return r.stdout


def get(name, off, fmt):
    with open(name, "rb") as f:
        f.seek(off)
        return struct.unpack(fmt, f.read(struct.calcsize(fmt)))


def put(name, off, data):
    with open(name, "r+b") as f:
        f.seek(off)
        f.write(data)


def bad(label, text, output=b""):
    failed.append(label)
    print("FAIL: %s: %s\n%s" % (label, text, output.decode()))


def check(label, name, status, says=None, *how):
    """Runs check, expects the status and perhaps a text."""
    r = run("vimg", "check", "-f", "vmdk", *how, name)
    if r.returncode != status:
        bad(label, "check %s: status %d, not %d" % (" ".join(how),
                                                    r.returncode, status),
            r.stdout)
    if says and says.encode() not in r.stdout:
        bad(label, "check %s does not say '%s'" % (" ".join(how), says),
            r.stdout)


def shows(label, name, want, qemu=True):
    for tool in ("vimg", "qemu-img") if qemu else ("vimg",):
        r = run(tool, "convert", "-f", "vmdk", "-O", "raw", name, "got.raw")
        if r.returncode:
            bad(label, tool + " does not read it", r.stdout)
            continue
        with open("got.raw", "rb") as f:
            if f.read() != bytes(want):
                bad(label, tool + " reads something else")


def guest():
    """Grains with data in all three tables."""
    disk = bytearray(SIZE)
    for g in (0, 1, 2, 7, 300, 511, 512, 600, 1100, 1279):
        disk[g * GRAIN:(g + 1) * GRAIN] = (random.randbytes(1000) +
                                           bytes([g % 251] * (GRAIN - 1000)))
    with open("disk.raw", "wb") as f:
        f.write(disk)
    return disk


def tables(name):
    """Where the directories and their tables are, in bytes."""
    rgd, gd = get(name, 48, "<QQ")
    return ([s * SECTOR for s in get(name, gd * SECTOR, "<3I")],
            [s * SECTOR for s in get(name, rgd * SECTOR, "<3I")],
            gd * SECTOR, rgd * SECTOR)


def sparse(disk):
    must("vimg", "convert", "-f", "raw", "-O", "vmdk", "disk.raw", "good.vmdk")

    def fresh():
        shutil.copyfile("good.vmdk", "d.vmdk")
        return tables("d.vmdk")

    label = "a table full of zeros"
    gt, rgt, gd, rgd = fresh()
    put("d.vmdk", gt[1], bytes(2048))
    check(label, "d.vmdk", 3)
    check(label, "d.vmdk", 0, None, "-r", "leaks")
    check(label, "d.vmdk", 0)
    shows(label, "d.vmdk", disk)

    label = "a redundant table full of zeros"
    gt, rgt, gd, rgd = fresh()
    put("d.vmdk", rgt[1], bytes(2048))
    check(label, "d.vmdk", 0, None, "-r", "leaks")
    check(label, "d.vmdk", 0)
    shows(label, "d.vmdk", disk)

    label = "both tables of one part outside the file"
    gt, rgt, gd, rgd = fresh()
    put("d.vmdk", gd + 4, struct.pack("<I", 1 << 30))
    put("d.vmdk", rgd + 4, struct.pack("<I", 1 << 30))
    check(label, "d.vmdk", 2)
    check(label, "d.vmdk", 0, None, "-r", "all")
    check(label, "d.vmdk", 0)
    want = bytearray(disk)
    want[512 * GRAIN:1024 * GRAIN] = bytes(512 * GRAIN)
    shows(label, "d.vmdk", want)

    label = "a grain that is at sector 1"
    gt, rgt, gd, rgd = fresh()
    put("d.vmdk", gt[0] + 7 * 4, struct.pack("<I", 1))
    check(label, "d.vmdk", 0, None, "-r", "all")
    check(label, "d.vmdk", 0)
    shows(label, "d.vmdk", disk)


def packed(disk):
    """Streams, whose grains say themselves which they are."""
    must("vimg", "convert", "-f", "raw", "-O", "vmdk", "-o",
         "subformat=streamOptimized", "disk.raw", "good.vmdk")
    size = os.path.getsize("good.vmdk")
    gd = get("good.vmdk", size - 1024 + 56, "<Q")[0] * SECTOR
    gts = [s * SECTOR for s in get("good.vmdk", gd, "<3I")]
    gt = [get("good.vmdk", at, "<512I") for at in gts]

    def fresh(cut=None):
        shutil.copyfile("good.vmdk", "d.vmdk")
        if cut is not None:
            os.truncate("d.vmdk", cut)

    def mended(label, want, says="grain tables"):
        check(label, "d.vmdk", 0, says, "-r", "all")
        check(label, "d.vmdk", 0)
        shows(label, "d.vmdk", want)
        if shutil.which("7z"):
            r = subprocess.run(["7z", "x", "-y", "-so", "d.vmdk"],
                               stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
            if r.stdout != bytes(want):
                bad(label, "7z reads something else")
        with open("d.vmdk", "rb") as f:
            once = f.read()
        check(label, "d.vmdk", 0, None, "-r", "all")
        with open("d.vmdk", "rb") as f:
            if f.read() != once:
                bad(label, "a second repair changes it")

    for less in (512, 1024, 1536, size - gd):
        label = "a stream without its last %d bytes" % less
        fresh(size - less)
        check(label, "d.vmdk", 1, "cut off")
        check(label, "d.vmdk", 2, "-r all makes new tables", "-r", "leaks")
        mended(label, disk, "is lost")

    label = "a stream cut within a grain"
    last = gt[1][600 - 512] * SECTOR
    fresh(last + 600)
    want = bytearray(disk)
    want[600 * GRAIN:] = bytes(SIZE - 600 * GRAIN)
    mended(label, want)

    label = "a footer whose directory is not in the file"
    fresh()
    put("d.vmdk", size - 1024 + 56, struct.pack("<Q", 1 << 40))
    mended(label, disk, "is lost")

    label = "a footer that contradicts the header"
    fresh()
    put("d.vmdk", size - 1024 + 12, struct.pack("<Q", 77))
    mended(label, disk)

    label = "a directory entry outside the file"
    fresh()
    put("d.vmdk", gd + 4, struct.pack("<I", 1 << 30))
    check(label, "d.vmdk", 2, "does not lie in the file")
    mended(label, disk)

    label = "a table entry outside the file"
    fresh()
    put("d.vmdk", gts[0] + 7 * 4, struct.pack("<I", 1 << 30))
    mended(label, disk)

    label = "a table entry with the place of another grain"
    fresh()
    put("d.vmdk", gts[0] + 7 * 4, struct.pack("<I", gt[0][300]))
    check(label, "d.vmdk", 2)
    mended(label, disk)

    # What is not whole is not taken for zeros.
    label = "a grain that is not whole, and no footer"
    fresh(size - 512)
    put("d.vmdk", gt[0][300] * SECTOR + 40, b"damage")
    check(label, "d.vmdk", 0, None, "-r", "all")
    r = run("vimg", "convert", "-f", "vmdk", "-O", "raw", "d.vmdk", "got.raw")
    if not r.returncode:
        bad(label, "read as if it were whole")
    r = run("vimg", "convert", "--salvage", "-f", "vmdk", "-O", "raw",
            "d.vmdk", "got.raw")
    want = bytearray(disk)
    want[300 * GRAIN:301 * GRAIN] = bytes(GRAIN)
    with open("got.raw", "rb") as f:
        if f.read() != bytes(want):
            bad(label, "salvage gives something else", r.stdout)

    label = "a marker that is overwritten, and no footer"
    fresh(size - 512)
    put("d.vmdk", gt[0][300] * SECTOR, bytes(range(100, 112)))
    mended(label, want)

    # Tables in front, written in place.
    label = "packed grains with tables in front"
    must("vimg", "create", "-q", "-f", "vmdk", "-o",
         "subformat=streamOptimized", "d.vmdk", str(SIZE))
    must("vimg", "convert", "-c", "-n", "-f", "raw", "-O", "vmdk", "disk.raw",
         "d.vmdk")
    check(label, "d.vmdk", 0)
    first = tables("d.vmdk")
    put("d.vmdk", first[0][0] + 7 * 4, struct.pack("<I", 1 << 30))
    put("d.vmdk", first[1][0] + 7 * 4, struct.pack("<I", 1 << 30))
    check(label, "d.vmdk", 0, "grain tables", "-r", "all")
    check(label, "d.vmdk", 0)
    shows(label, "d.vmdk", disk)


    # The last grain is not whole and nothing follows: the tables name it, so
    # it is lost aloud, not zeros.
    label = "the last grain of all, not whole"
    must("vimg", "create", "-q", "-f", "vmdk", "-o",
         "subformat=streamOptimized", "d.vmdk", str(SIZE))
    must("vimg", "convert", "-c", "-n", "-f", "raw", "-O", "vmdk", "disk.raw",
         "d.vmdk")
    first = tables("d.vmdk")
    at = get("d.vmdk", first[0][2] + (1279 - 1024) * 4, "<I")[0]
    put("d.vmdk", at * SECTOR + 40, b"damage")
    for copy in first[:2]:
        put("d.vmdk", copy[0] + 300 * 4, struct.pack("<I", 1 << 30))
    check(label, "d.vmdk", 0, "grain tables", "-r", "all")
    r = run("vimg", "convert", "-f", "vmdk", "-O", "raw", "d.vmdk", "got.raw")
    if not r.returncode:
        bad(label, "read as if it were whole")
    run("vimg", "convert", "--salvage", "-f", "vmdk", "-O", "raw", "d.vmdk",
        "got.raw")
    with open("got.raw", "rb") as f:
        if f.read() != bytes(disk[:1279 * GRAIN]) + bytes(GRAIN):
            bad(label, "salvage gives something else")

    # Two grains with one number: repair does not change which one is read.
    must("vimg", "create", "-q", "-f", "vmdk", "-o",
         "subformat=streamOptimized", "d.vmdk", str(SIZE))
    must("vimg", "convert", "-c", "-n", "-f", "raw", "-O", "vmdk", "disk.raw",
         "d.vmdk")
    first = tables("d.vmdk")
    end = os.path.getsize("d.vmdk")
    plain = bytes([123] * GRAIN)
    with open("d.vmdk", "ab") as f:
        z = zlib.compress(plain)
        f.write(struct.pack("<QI", 7 * GRAIN // SECTOR, len(z)) + z)
        f.write(bytes(-f.tell() % SECTOR))
    shutil.copyfile("d.vmdk", "two.vmdk")
    for place, grain, label in ((end // SECTOR, plain, "the second of two"),
                                (None, disk[7 * GRAIN:8 * GRAIN],
                                 "the first of two")):
        shutil.copyfile("two.vmdk", "d.vmdk")
        want = bytearray(disk)
        want[7 * GRAIN:8 * GRAIN] = grain
        if place:
            for copy in first[:2]:
                put("d.vmdk", copy[0] + 7 * 4, struct.pack("<I", place))
        shows(label, "d.vmdk", want)
        for copy in first[:2]:
            put("d.vmdk", copy[0] + 300 * 4, struct.pack("<I", 1 << 30))
        check(label, "d.vmdk", 0, "grain tables", "-r", "all")
        check(label, "d.vmdk", 0)
        shows(label, "d.vmdk", want)


def main():
    for tool in ("vimg", "qemu-img"):
        if not shutil.which(tool):
            print("SKIP: no " + tool)
            return 1 if os.environ.get("VIMG_CI") == "1" else 77
    with tempfile.TemporaryDirectory(prefix="vimg-test.") as top:
        os.chdir(top)
        disk = guest()
        sparse(disk)
        packed(disk)
        os.chdir("/")
    print("%d failed" % len(failed) if failed else "all as it should be")
    return bool(failed)


os.environ["PATH"] = (os.path.abspath(os.environ.get("builddir", ".")) +
                      os.pathsep + os.environ["PATH"])
sys.exit(main())
