"""Rows of make bench on file systems other than memory.

xfs-*: XFS on a loop device, where blocks can be shared (as root only).
disk-*: the disk under TMPDIR, durable both ways: vimg syncs its output before
it gives it its name, so qemu-img's is followed by a sync; and without, where
vimg is told -t unsafe.
"""
import contextlib
import os
import subprocess
import tempfile

from common import quiet


def rows(convert):
    """Like bench.py's, with the file system before them."""
    made = []
    for source, target in (("raw", "qcow2"), ("qcow2", "raw"),
                           ("qcow2", "qcow2")):
        name, argv = "%s-%s" % (source, target), convert(source, target)
        made.append(("xfs", "xfs-" + name, argv, None, target))
        made.append(("disk", "disk-synced-" + name, argv, ["+sync"] + argv,
                     target))
        made.append(("disk", "disk-unsynced-" + name,
                     ["convert", "-t", "unsafe"] + argv[1:], argv, target))
    return made


@contextlib.contextmanager
def xfs(size):
    with tempfile.TemporaryDirectory(prefix="vimg-bench.",
                                     dir="/dev/shm") as folder:
        image, mount = os.path.join(folder, "xfs"), os.path.join(folder, "m")
        os.mkdir(mount)
        with open(image, "wb") as file:
            file.truncate(size)
        quiet("mkfs.xfs", "-q", image)
        quiet("mount", "-o", "loop", image, mount)
        try:
            yield mount
        finally:
            subprocess.run(["umount", mount], check=True)


@contextlib.contextmanager
def disk(size):
    with tempfile.TemporaryDirectory(prefix="vimg-bench.") as folder:
        yield folder


SYSTEMS = {"xfs": xfs, "disk": disk}


def possible(system):
    if system == "xfs" and os.geteuid():
        print("bench: the rows on XFS need root")
        return False
    return True
