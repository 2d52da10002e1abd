#!/usr/bin/env python3
"""qcow2 images as other programs may write them, and as vimg writes them from
front to back, judged by qemu-img: short snapshot entries, bitmaps whose
tables are nonsense, streams of every shape."""
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile

random.seed(41)
failed = []


def run(*argv, **more):
    return subprocess.run(argv, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, **more)


def must(*argv, code=0):
    r = run(*argv)
    if r.returncode != code:
        failed.append("%s: exit %d, %s" % (" ".join(argv), r.returncode,
                                           r.stdout.decode().strip()))
    return r.stdout.decode()


def get(name, off, fmt):
    with open(name, "rb") as f:
        f.seek(off)
        return struct.unpack(fmt, f.read(struct.calcsize(fmt)))


def put(name, off, data):
    with open(name, "r+b") as f:
        f.seek(off)
        f.write(data)


def clean(label, name):
    for tool in ("qemu-img", "vimg"):
        r = run(tool, "check", "-f", "qcow2", name)
        if r.returncode:
            failed.append("%s: %s check: %s" % (label, tool,
                                                r.stdout.decode().strip()))


def short_entries(extra):
    """Entries of the snapshot table with little extra data or none, as QEMU
    0.13 wrote them: eight of them are exactly one cluster, and the next one
    holds data, which deleting a snapshot must not give back."""
    label = "snapshot entries with %d bytes of extra data" % extra
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o",
         "cluster_size=512,compat=0.10", "s.qcow2", "1M")
    must("qemu-io", "-c", "write -P 1 0 20k", "s.qcow2")
    names = ["n%0*d" % (22 - extra, i) for i in range(1, 9)]
    for name in names:
        must("qemu-img", "snapshot", "-c", name, "s.qcow2")
    count, at = get("s.qcow2", 60, ">IQ")
    table, old = b"", at
    for i in range(count):
        fixed = get("s.qcow2", old, ">QIHHIIQII")
        texts = fixed[2] + fixed[3]
        with open("s.qcow2", "rb") as f:
            f.seek(old + 40)
            kept = f.read(fixed[8])[:extra]
            text = f.read(texts)
        table += struct.pack(">QIHHIIQII", *fixed[:8], extra) + kept + text
        table += bytes(-len(table) % 8)
        old += (40 + fixed[8] + texts + 7) // 8 * 8
    if len(table) != 512 or old - at <= 512:
        failed.append("%s: %d bytes" % (label, len(table)))
    put("s.qcow2", at, table.ljust(old - at, b"\0"))
    must("qemu-img", "check", "-q", "-r", "leaks", "s.qcow2")
    must("qemu-io", "-c", "write -P 9 500k 60k", "s.qcow2")
    clean(label, "s.qcow2")
    for name in names[3:]:
        must("vimg", "snapshot", "-d", name, "s.qcow2")
        clean(label + ", deleted", "s.qcow2")
    must("vimg", "snapshot", "-c", "another", "s.qcow2")
    clean(label + ", made", "s.qcow2")
    for name in ["another"] + names[:3]:
        must("qemu-img", "snapshot", "-a", name, "s.qcow2")
        must("vimg", "snapshot", "-d", name, "s.qcow2")
    clean(label + ", all deleted", "s.qcow2")
    must("vimg", "io", "-r", "-c", "read -P 1 0 20k", "s.qcow2")


def nonsense_bitmap(entry):
    """The table of a bitmap that is in use was never looked at: what it names
    is not the bitmap's to give back."""
    label = "bitmap table entry 0x%x" % entry
    must("qemu-img", "create", "-q", "-f", "qcow2", "b.qcow2", "4M")
    must("qemu-io", "-c", "write -P 5 0 1M", "b.qcow2")
    must("qemu-img", "bitmap", "--add", "b.qcow2", "one")
    must("qemu-img", "bitmap", "--add", "b.qcow2", "two")
    with open("b.qcow2", "rb") as f:
        head = f.read(65536)
    ext = head.index(struct.pack(">II", 0x23852875, 24))
    directory = struct.unpack_from(">Q", head, ext + 24)[0]
    table, _, flags = get("b.qcow2", directory, ">QII")
    put("b.qcow2", directory + 12, struct.pack(">I", flags | 1))
    put("b.qcow2", table, struct.pack(">Q", entry))
    must("vimg", "bitmap", "--remove", "b.qcow2", "one")
    r = run("qemu-img", "check", "-f", "qcow2", "b.qcow2")
    if r.returncode:
        failed.append("%s: %s" % (label, r.stdout.decode()))
    must("qemu-io", "-c", "write -P 6 2M 1M", "b.qcow2")
    must("qemu-io", "-r", "-c", "read -P 5 0 1M", "b.qcow2")
    if run("qemu-img", "bitmap", "--remove", "b.qcow2", "two").returncode:
        failed.append("%s: the other bitmap" % label)


# ---- streams ---------------------------------------------------------------

def fill(name, size, unit, writes):
    """Data, zeros and holes, in pieces of about a unit."""
    commands = []
    for i in range(writes):
        at = random.randrange(size // 512) * 512
        n = min(random.randrange(1, 3 * unit // 512 + 2) * 512, size - at)
        what = random.choice(("write -P %d" % (i % 200 + 1),) * 3 +
                             ("write -z", "write -z -u", "discard"))
        commands += ["-c", "%s %d %d" % (what, at, n)]
    must("qemu-io", "-f", "qcow2", *commands, name)


def stream(label, source, options, base=None):
    more = ["-B", base, "-F", "qcow2"] if base else []
    with open("out.qcow2", "wb") as f:
        # A pipe, not the file: nothing can be mended afterwards.
        p = subprocess.Popen(["vimg", "convert", "-f", "qcow2", "-O", "qcow2",
                              "-o", options] + more + [source, "-"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        shutil.copyfileobj(p.stdout, f)
        said = p.stderr.read().decode().strip()
        if p.wait():
            failed.append("%s: %s" % (label, said))
            return
    r = run("qemu-img", "check", "-f", "qcow2", "out.qcow2")
    if r.returncode:
        failed.append("%s: %s" % (label, r.stdout.decode().strip()))
    r = run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", source,
            "out.qcow2")
    if r.returncode:
        failed.append("%s: %s" % (label, r.stdout.decode().strip()))
    length = os.path.getsize("out.qcow2")
    with open("out.qcow2", "rb") as f:
        bits = struct.unpack_from(">I", f.read(24), 20)[0]
    if length % (1 << bits):
        failed.append("%s: ends within a cluster" % label)
    # It can be written to like any other.
    size = get("out.qcow2", 24, ">Q")[0]
    if size:
        must("vimg", "io", "-f", "qcow2", "-c", "write -P 0x99 %d 512" %
             (size // 1024 * 512), "out.qcow2")
        must("qemu-img", "check", "-q", "-f", "qcow2", "out.qcow2")


SHAPES = (                      # options, unit, sizes
    ("cluster_size=512", 512, (512, 32768, 33280, 700 << 10)),
    # Two clusters of refcount table.
    ("cluster_size=512,refcount_bits=64", 512, (5 << 20,)),
    ("cluster_size=512,refcount_bits=1", 512, (3 << 20,)),
    ("cluster_size=4k,compat=0.10", 4096, (2 << 20, (2 << 20) + 512)),
    ("cluster_size=4k,refcount_bits=2,lazy_refcounts=on", 4096, (3 << 20,)),
    ("refcount_bits=32,compression_type=zstd", 65536, (5 << 20, 512)),
    ("refcount_bits=8", 65536, ((1 << 29) + 1536,)),
    ("extended_l2=on,cluster_size=16k", 16384, (16 << 20, (5 << 20) + 512)),
    ("extended_l2=on", 65536, (9 << 20,)),
    ("cluster_size=2M", 2 << 20, (40 << 20, 2 << 20)),
)


def streams():
    turn = 0
    for options, unit, sizes in SHAPES:
        for size in sizes:
            for source in ("same", "subclusters", "packed")[turn % 2:]:
                turn += 1
                label = "stream of %d bytes, %s, from %s" % (size, options,
                                                             source)
                with_l2 = "extended_l2=on" if source == "subclusters" else \
                    options
                must("qemu-img", "create", "-q", "-f", "qcow2", "-o", with_l2,
                     "src.qcow2", str(size))
                fill("src.qcow2", size, unit, 24)
                if source == "packed":
                    must("qemu-img", "convert", "-c", "-f", "qcow2", "-O",
                         "qcow2", "-o", with_l2, "src.qcow2", "packed.qcow2")
                    must("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 512",
                         "packed.qcow2")
                    os.rename("packed.qcow2", "src.qcow2")
                stream(label, "src.qcow2", options)
    must("qemu-img", "create", "-q", "-f", "qcow2", "src.qcow2", "0")
    stream("stream of an empty disk", "src.qcow2", "cluster_size=512")
    must("qemu-img", "create", "-q", "-f", "qcow2", "src.qcow2", "1T")
    fill("src.qcow2", 1 << 40, 65536, 12)
    stream("stream of 1 TiB", "src.qcow2", "cluster_size=64k")
    stream("stream of 1 TiB", "src.qcow2", "extended_l2=on,refcount_bits=1")


def overlays():
    """Zeros over a backing file must be written out in version 2."""
    base = os.path.abspath("base.qcow2")
    for options in ("compat=0.10,cluster_size=4k", "cluster_size=4k",
                    "extended_l2=on,cluster_size=16k"):
        for size in ((1 << 20) + 512, 3 << 20):
            label = "streamed overlay of %d bytes, %s" % (size, options)
            must("qemu-img", "create", "-q", "-f", "qcow2", base, str(size))
            must("qemu-io", "-c", "write -P 3 0 1M", base)
            must("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F",
                 "qcow2", "-o", "cluster_size=4k", "src.qcow2")
            fill("src.qcow2", size, 4096, 30)
            stream(label, "src.qcow2", options, base)


def refused():
    """What a stream cannot carry, or a disk that is too large for it."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "src.qcow2", "200G")
    for options, words in (("cluster_size=512", "too large"),
                           ("data_file=x", "more than one file"),
                           ("cluster_size=3", "power of two"),
                           ("compat=0.10,extended_l2=on", "compat=1.1")):
        r = run("vimg", "convert", "-f", "qcow2", "-O", "qcow2", "-o",
                options, "src.qcow2", "-")
        if r.returncode != 1 or words not in r.stdout.decode():
            failed.append("stream, %s: exit %d, %s" % (options, r.returncode,
                                                       r.stdout[:300]))


def main():
    if not shutil.which("qemu-img") or not shutil.which("qemu-io"):
        print("SKIP: qemu-img is not installed")
        return 1 if os.environ.get("VIMG_CI") == "1" else 77
    top = os.path.abspath(os.environ.get("builddir", "."))
    os.environ["PATH"] = top + os.pathsep + os.environ["PATH"]
    with tempfile.TemporaryDirectory(prefix="vimg-test.") as folder:
        os.chdir(folder)
        short_entries(0)
        short_entries(8)
        short_entries(16)
        # Not aligned; behind the end; all ones; nothing.
        nonsense_bitmap(0x10200)
        nonsense_bitmap(1 << 40)
        nonsense_bitmap(1)
        nonsense_bitmap(0)
        streams()
        overlays()
        refused()
        os.chdir("/")
    for problem in failed:
        print("FAIL:", problem)
    return 1 if failed else 0


sys.exit(main())
