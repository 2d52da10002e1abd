#!/usr/bin/env python3
"""Every command of vimg when a system call or an allocation fails, and when
it is killed.

For each row of the table the n-th call fails, for n = 1, 2, 3 ... until the
command gets through (tests/shim.c, preloaded).  Then: an error message and
exit status 1, or success and the right result; never a signal; the target is
old or new, never half; the source is as it was; no file is left behind.
Or kill -9 comes right before the n-th call, and KILL_LOOPS times at a random
moment; then the same, but that a file may be left until the next run.

  FAULT_STEP=n   only every n-th call (1 = all)
  KILL_LOOPS=n   for each command
"""
import hashlib
import itertools
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time

import faulting
from faulting import (KILL, KINDS, MEMORY, VIMG, raw_digests, restore,
                      vimg)

KILL_LOOPS = int(os.environ.get("KILL_LOOPS", "3"))
STEP = faulting.step(9)

# name, command, which file it changes (None: none), what it prints matters
ROWS = [
    ("create", "create -q -f qcow2 new.qcow2 1M", "new.qcow2"),
    ("create over a base",
     "create -q -f qcow2 -b base.raw -F raw new.qcow2", "new.qcow2"),
    ("create vmdk", "create -q -f vmdk new.vmdk 1M", "new.vmdk"),
    ("create vdi", "create -q -f vdi new.vdi 1M", "new.vdi"),
    ("info", "info --output=json top.qcow2", None),
    ("check", "check -q top.qcow2", None),
    ("map", "map --output=json top.qcow2", None),
    ("measure", "measure -O qcow2 top.qcow2", None),
    ("compare", "compare -q top.qcow2 same.qcow2", None),
    ("convert", "convert -O qcow2 top.qcow2 new.qcow2", "new.qcow2"),
    ("convert compressed", "convert -c -O qcow2 top.qcow2 new.qcow2",
     "new.qcow2"),
    ("convert over a file", "convert -O raw top.qcow2 old.raw", "old.raw"),
    ("convert to vmdk", "convert -O vmdk top.qcow2 new.vmdk", "new.vmdk"),
    ("convert to a stream", "convert -O vmdk -o subformat=streamOptimized "
     "top.qcow2 new.vmdk", "new.vmdk"),
    ("convert to vdi", "convert -O vdi top.qcow2 new.vdi", "new.vdi"),
    ("dd", "dd -O raw bs=64k if=top.qcow2 of=new.raw", "new.raw"),
    ("rebase", "rebase -b other.raw -F raw top.qcow2", "top.qcow2"),
    ("commit", "commit -q top.qcow2", "top.qcow2"),
    ("resize", "resize -q top.qcow2 2M", "top.qcow2"),
    ("snapshot", "snapshot -c now plain.qcow2", "plain.qcow2"),
    ("amend", "amend -o lazy_refcounts=on plain.qcow2", "plain.qcow2"),
    ("bitmap", "bitmap --add plain.qcow2 b", "plain.qcow2"),
    ("bitmap, away", "bitmap --remove marked.qcow2 b", "marked.qcow2"),
    ("snapshot, back", "snapshot -a then marked.qcow2", "marked.qcow2"),
    ("snapshot, away", "snapshot -d then marked.qcow2", "marked.qcow2"),
    ("repair", "check -q -r all marked.qcow2", "marked.qcow2"),
    ("compact", "amend -o compact=on loose.vdi", "loose.vdi"),
    ("resize vmdk", "resize -q loose.vmdk 2M", "loose.vmdk"),
    ("amend vdi", "amend -o uuid=derived loose.vdi", "loose.vdi"),
    ("tree", "tree .", None),
    ("bench", "bench -c 16 -s 4k -d 2 plain.qcow2", None),
    ("write", "io -c 'write -P 9 0 128k' -c flush plain.qcow2",
     "plain.qcow2"),
]


def make_files(folder):
    os.chdir(folder)
    for name, seed in (("base.raw", b"b"), ("other.raw", b"o"),
                       ("old.raw", b"x")):
        with open(name, "wb") as f:
            f.write(hashlib.sha256(seed).digest() * 8192)
    vimg("create -q -f qcow2 -b base.raw -F raw top.qcow2 1M")
    vimg("io -c 'write -P 3 64k 200k' -c 'write -z 512k 128k' "
         "-c 'write -c -P 5 768k 64k' top.qcow2")
    vimg("convert -O qcow2 top.qcow2 same.qcow2")
    vimg("convert -O qcow2 base.raw plain.qcow2")
    vimg("convert -O qcow2 base.raw marked.qcow2")
    vimg("snapshot -c then marked.qcow2")
    vimg("bitmap --add marked.qcow2 b")
    vimg("io -c 'write -P 6 0 70k' marked.qcow2")
    vimg("create -q -f vdi -o block_size=64k loose.vdi 1M")
    vimg("io -c 'write -P 1 0 512k' -c 'write -P 0 0 256k' loose.vdi")
    vimg("convert -O vmdk base.raw loose.vmdk")


def guest(name):
    """What the guest sees; None: there is no such file."""
    if not os.path.exists(name):
        return None
    try:
        return hashlib.sha256(faulting.content(name)).hexdigest()
    except subprocess.CalledProcessError as e:
        return "unreadable: " + e.stderr


class Run:
    def __init__(self, saved):
        self.saved = saved
        self.count = self.came = self.killed = 0

    def once(self, row, kind, n, old, new, files):
        """Returns whether the fault came."""
        name, command, target = row
        what, _, code, _, seen = kind
        report = os.path.join(os.path.dirname(self.saved), "report")
        restore(self.saved)
        before = raw_digests()
        env = faulting.environment(kind, n, report)
        r = vimg(command, check=False, env=env, timeout=120)
        came = faulting.has_come(report)
        where = "%s, %s %d" % (name, what, n)
        if r.returncode == -9 and code == KILL:
            self.after_kill(where, row, before, old, new, files)
            return True
        self.count += 1
        self.came += came
        if r.returncode < 0 or r.returncode > 4:
            sys.exit("%s: exit status %d %s" % (where, r.returncode,
                                                r.stderr))
        if r.returncode and not r.stderr.strip():
            sys.exit("%s: failed without a word" % where)
        if r.returncode and (not came or not seen):
            sys.exit("%s: failed: %s" % (where, r.stderr))
        extra = set(os.listdir(".")) - set(before) - files
        if extra:
            sys.exit("%s: %s is left behind" % (where, extra))
        self.look(where, row, before,
                  (new,) if not r.returncode else (old, new))
        return came

    def look(self, where, row, before, good):
        name, _, target = row
        after = raw_digests()
        for f, h in before.items():
            if f == target or (name == "commit" and f == "base.raw"):
                continue
            if after.get(f) != h:
                sys.exit("%s: %s has changed" % (where, f))
        if not target:
            return
        got = guest(target)
        # What is written in place is old or new sector by sector.
        if got not in good and not (name == "write" and len(good) > 1):
            sys.exit("%s: %s is neither old nor new: %s" % (where, target,
                                                            got))
        if target.endswith("qcow2") and os.path.exists(target):
            faulting.leaks_at_most(where, target)

    def after_kill(self, where, row, before, old, new, files):
        self.killed += 1
        self.look(where, row, before, (old, new))
        r = vimg(row[1], check=False)
        again = any(word in r.stderr
                    for word in ("already", "exists", "not found"))
        if r.returncode and not again:
            sys.exit("%s: the next run fails: %s" % (where, r.stderr))
        extra = set(os.listdir(".")) - set(before) - files
        if extra:
            sys.exit("%s: %s is left behind" % (where, extra))
        if not again:
            self.look(where + ", next run", row, before, (new,))

    def kill_at_random(self, row, old, new, files, took):
        for i in range(KILL_LOOPS):
            restore(self.saved)
            before = raw_digests()
            p = subprocess.Popen(
                [VIMG] + shlex.split(row[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(random.random() * took)
            p.kill()
            p.wait()
            self.after_kill("%s, killed at random" % row[0], row, before, old,
                            new, files)

    def row(self, row):
        name, command, target = row
        restore(self.saved)
        was = set(os.listdir("."))
        old = guest(target) if target else None
        took = time.monotonic()
        vimg(command)
        took = time.monotonic() - took
        new = guest(target) if target else None
        files = set(os.listdir(".")) - was
        for kind in KINDS:
            # The first allocations are the tool's own, and few.
            first = range(1, 10) if kind[1] == MEMORY and STEP > 1 else ()
            for n in itertools.chain(first, itertools.count(1, STEP)):
                if not self.once(row, kind, n, old, new, files):
                    break
        self.kill_at_random(row, old, new, files, took)


def main():
    if not faulting.can_run():
        return 77
    only = sys.argv[1:]
    with tempfile.TemporaryDirectory() as top:
        saved, work = os.path.join(top, "saved"), os.path.join(top, "work")
        os.mkdir(saved)
        os.mkdir(work)
        make_files(saved)
        os.chdir(work)
        run = Run(saved)
        for row in ROWS:
            if not only or row[0] in only:
                run.row(row)
        print("%d runs of %d commands, %d of them with a fault; %d killed" %
              (run.count, len(only or ROWS), run.came, run.killed))
        os.chdir("/")
    return 0


sys.exit(main())
