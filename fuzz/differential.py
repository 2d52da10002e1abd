#!/usr/bin/env python3
"""Spoilt images, read by qemu-img and by vimg: what both accept is the same
disk.  FUZZ_DIFFERENTIAL is how many; --seed N is where to begin."""
import os
import random
import shutil
import subprocess
import sys
import tempfile

srcdir = os.environ.get("srcdir", ".")
count = int(os.environ.get("FUZZ_DIFFERENTIAL", "60"))
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
os.environ["PATH"] = os.getcwd() + "/.libs:" + os.getcwd() + ":" + \
    os.environ["PATH"]
os.environ["LD_LIBRARY_PATH"] = os.getcwd() + "/.libs:" + \
    os.environ.get("LD_LIBRARY_PATH", "")
if not shutil.which("qemu-img"):
    sys.exit(1 if os.environ.get("VIMG_CI") == "1" else 77)
IMAGES = [
    ("qcow2", ["-o", "cluster_size=512"]), ("qcow2", ["-o", "compat=0.10"]),
    ("qcow2", ["-o", "extended_l2=on,cluster_size=16k"]), ("qcow2", ["-c"]),
    ("vdi", []), ("vmdk", []), ("vmdk", ["-o", "subformat=streamOptimized"]),
    ("qcow", []),
]
ODD = [0, 1, 2, 0x7f, 0x80, 0xff]


def run(*cmd):
    return subprocess.run(cmd, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=60)


def make(folder):
    rng = random.Random(0)
    with open(folder + "/src", "wb") as f:
        f.truncate(2 << 20)
        for _ in range(12):
            f.seek(rng.randrange(0, (2 << 20) - 9000))
            f.write(bytes([rng.randrange(256)]) * rng.randrange(9000))
    for i, (fmt, options) in enumerate(IMAGES):
        p = run("qemu-img", "convert", "-f", "raw", "-O", fmt, *options,
                folder + "/src", f"{folder}/{i}")
        if p.returncode:
            sys.exit(p.stdout.decode())


def spoil(data, rng):
    """Mostly in the metadata, which is where the formats keep it: in front,
    and behind for what was appended."""
    for _ in range(rng.randrange(1, 4)):
        off = rng.randrange(min(len(data), rng.choice((128, 4096, 1 << 30))))
        for k in range(off, min(off + rng.choice((1, 2, 4)), len(data))):
            data[k] = rng.choice(ODD) if rng.random() < .7 \
                else rng.randrange(256)


def main():
    accepted = 0
    with tempfile.TemporaryDirectory(prefix="vimg-test.") as folder:
        make(folder)
        for n in range(seed, seed + count):
            rng = random.Random(n)
            i = rng.randrange(len(IMAGES))
            fmt = IMAGES[i][0]
            with open(f"{folder}/{i}", "rb") as f:
                data = bytearray(f.read())
            spoil(data, rng)
            bad = folder + "/bad"
            with open(bad, "wb") as f:
                f.write(data)
            read = []
            for tool in ("qemu-img", "vimg"):
                to = f"{folder}/{tool}.raw"
                # A spoilt size makes sparse files of any length.
                size = run(tool, "info", "-f", fmt, bad).stdout
                p = run("sh", "-c", "ulimit -f 65536; exec \"$@\"", "sh",
                        tool, "convert", "-f", fmt, "-O", "raw", bad, to)
                if tool == "vimg" and (p.returncode < 0 or
                                       p.returncode > 100):
                    sys.exit(f"--seed {n} ({fmt}): vimg ends with "
                             f"{p.returncode}: {p.stdout.decode()}{size}")
                if p.returncode == 0:
                    read.append(to)
            if len(read) == 2:
                accepted += 1
                if run("cmp", *read).returncode:
                    shutil.copy(bad, "differential.bad")
                    sys.exit(f"--seed {n} ({fmt}): the disks differ; the "
                             "image is differential.bad")
            for to in read:
                os.unlink(to)
    print(f"{count} images, {accepted} accepted by both and read alike")


main()
