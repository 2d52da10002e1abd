#!/usr/bin/env python3
"""vimg-nbd and vimg mount when a system call or an allocation fails, and when
they are killed.

For each row of the two tables the n-th call of the server fails, for n = 1, 2,
3 ... until it gets through (tests/shim.c, preloaded), or kill -9 comes right
before it, while a client goes through its list of requests.  Then: each
request is answered, by an error or with the right result, within PATIENCE;
the server is not ended by a signal, and one that fails says why; what was
answered and flushed is in the image; every sector is old or new; check finds
leaks at most; no file, socket or mount is left behind, and the next server
starts.

    fault-servers.py [ROW ...]
  FAULT_STEP=n   only every n-th call (1 = all)
"""
import contextlib
import ctypes
import errno
import hashlib
import itertools
import os
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "nbd"))
import client
import faulting
from client import (EXTENDED, FLUSH, FUA, NO_HOLE, PAYLOAD, SIMPLE, STRUCTURED,
                    TRIM, WRITE, ZEROES)
from faulting import KILL, KINDS, VIMG, raw_digests, restore, vimg

SIZE, SECTOR, KIB = 1 << 20, 512, 1024
PATIENCE = 60
STEP = faulting.step(53)
P1 = 128 * SECTOR                       # where the first partition begins

# name, options, how the client speaks, the image, does it change?
NBD_ROWS = [
    ("nbd overlay", "-f qcow2 --discard=unmap", STRUCTURED, "top.qcow2", True),
    ("nbd written through", "-f qcow2 --cache=writethrough "
     "--discard=unmap --detect-zeroes=unmap", SIMPLE, "plain.qcow2", True),
    ("nbd raw", "-f raw --discard=unmap", EXTENDED, "base.raw", True),
    ("nbd temporary", "-f qcow2 -s", EXTENDED, "top.qcow2", False),
    ("nbd read-only", "-f vmdk -r", STRUCTURED, "disk.vmdk", False),
]
# name, options, the image, is it written?
MOUNT_ROWS = [
    ("mount", "-f qcow2", "top.qcow2", False),
    ("mount -w", "-w -f qcow2", "top.qcow2", True),
    ("mount -w vdi", "-w -f vdi", "disk.vdi", True),
]
# What a mount may say to its user.
ERRORS = (errno.EIO, errno.ENOSPC, errno.ENOMEM)
GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED)

# libfuse's own, in a thread that it has just begun: as good as kill -9.
ABORTED = "fuse: failed to allocate thread specific data"

libc = ctypes.CDLL(None, use_errno=True)
PUNCH, ZERO_RANGE, KEEP_SIZE, MNT_DETACH = 2, 16, 1, 2


class Gone(Exception):
    """The server has ended amid a request."""


class Disk:
    """What each sector may hold: for a reader now, and once the server is
    gone."""

    def __init__(self, first):
        self.first, self.now, self.safe = first, {}, {}

    def held(self, which, s):
        return which.get(s) or {self.first[s * SECTOR:(s + 1) * SECTOR]}

    @staticmethod
    def sectors(off, n):
        """(sector, where its part begins in it, and in the n bytes, length)"""
        at = off
        while at < off + n:
            s = at // SECTOR
            end = min((s + 1) * SECTOR, off + n)
            yield s, at - s * SECTOR, at - off, end - at
            at = end

    def change(self, off, data, done, sure=False):
        """done: it must show now; sure: also after the end."""
        for s, to, at, n in self.sectors(off, len(data)):
            old = self.held(self.now, s)
            new = {x[:to] + data[at:at + n] + x[to + n:] for x in old}
            safe = self.held(self.safe, s) | new
            self.now[s] = new if done else old | new
            self.safe[s] = set(new) if done and sure else safe

    def flushed(self):
        self.safe = {s: set(x) for s, x in self.now.items()}

    def look(self, where, off, data, which=None):
        """data is what was read: right, and from now on the only answer."""
        which = self.now if which is None else which
        for s, to, at, n in self.sectors(off, len(data)):
            held = {x for x in self.held(which, s)
                    if x[to:to + n] == data[at:at + n]}
            if not held:
                sys.exit("%s: sector %d holds %r...: neither old nor new" %
                         (where, s, data[at:at + 16]))
            which[s] = held


def pattern(seed, n):
    return (hashlib.sha256(b"%d" % seed).digest() * (n // 32 + 1))[:n]


def make_files(folder):
    os.chdir(folder)
    base = bytearray(pattern(0, SIZE))
    base[440:512] = bytes(72)
    base[446:462] = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", P1 // SECTOR,
                                1024)
    base[510:512] = b"\x55\xaa"
    for name in ("base.raw", "below.raw"):
        with open(name, "wb") as f:
            f.write(base)
    vimg("create -q -f qcow2 -b below.raw -F raw top.qcow2 1M")
    vimg("io -c 'write -P 3 64k 200k' -c 'write -z 512k 128k' "
         "-c 'write -c -P 5 768k 64k' top.qcow2")
    vimg("create -q -f qcow2 -o cluster_size=4k,lazy_refcounts=on "
         "plain.qcow2 1M")
    vimg("io -c 'write -P 7 100k 300k' plain.qcow2")
    vimg("convert -O vmdk base.raw disk.vmdk")
    vimg("create -q -f vdi -o block_size=64k disk.vdi 1M")
    vimg("io -c 'write -P 1 0 512k' disk.vdi")


# ---- a server ---------------------------------------------------------------

class Process:
    """A program that is started, and ends in time."""

    def __init__(self, where, argv, env):
        self.where = where
        self.words = tempfile.TemporaryFile()
        self.p = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL,
                                  stdout=self.words, stderr=self.words)
        self.fd = os.pidfd_open(self.p.pid)

    def wait_for(self, fd, events):
        """False: it has ended instead."""
        poll = select.poll()
        poll.register(fd, events)
        poll.register(self.fd, select.POLLIN)
        ready = dict(poll.poll(PATIENCE * 1000))
        if not ready:
            sys.exit("%s: does not start" % self.where)
        return fd in ready

    def end(self):
        """(exit status, what it said)"""
        try:
            self.p.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            sys.exit("%s: does not end" % self.where)
        self.words.seek(0)
        lines = self.words.read().decode().splitlines()
        return self.p.returncode, "\n".join(
            x for x in lines if "warning: " not in x)

    def fail(self, why):
        """With what it has said so far."""
        self.p.kill()
        sys.exit("%s: %s: %s" % (self.where, why, self.end()[1]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.p.kill()
        self.p.wait()
        os.close(self.fd)
        self.words.close()


class Server(Process):
    """vimg-nbd; the file that it writes its process ID to is a pipe, which
    tells that it listens."""

    def __init__(self, where, row, env=None):
        os.mkfifo("pid")
        self.pipe = os.open("pid", os.O_RDONLY | os.O_NONBLOCK)
        super().__init__(where, [faulting.NBD, "-A", "-k", "sock",
                                 "--pid-file", "pid"] +
                         shlex.split(row[1]) + [row[3]], env)

    def __exit__(self, *_):
        super().__exit__()
        os.close(self.pipe)

    def started(self):
        if not self.wait_for(self.pipe, select.POLLIN):
            return False
        os.set_blocking(self.pipe, True)
        with open(self.pipe, "rb", closefd=False) as f:
            return f.read() == b"%d\n" % self.p.pid


class Mount(Process):
    def __init__(self, where, row, folder, env=None):
        super().__init__(where, [VIMG, "mount", "--foreground"] +
                         shlex.split(row[1]) + [row[2], folder], env)
        self.folder, self.hung = folder, False
        self.timer = threading.Timer(2 * PATIENCE, self.hangs)
        self.timer.start()

    def __exit__(self, *_):
        self.timer.cancel()
        super().__exit__()

    def hangs(self):
        """Whoever waits for a file of the mount gets an error, and goes on."""
        self.hung = True
        self.p.kill()

    def end(self):
        said = super().end()
        if self.hung:
            sys.exit("%s: hangs" % self.where)
        return said

    def started(self):
        with open("/proc/self/mountinfo") as f:
            while self.folder not in f.read():
                if not self.wait_for(f.fileno(),
                                     select.POLLPRI | select.POLLERR):
                    f.seek(0)
                    return self.folder in f.read()
                f.seek(0)
        return True


def detach(folder):
    """Whatever is mounted at it or below."""
    with open("/proc/self/mountinfo") as f:
        points = [line.split()[4] for line in f]
    for p in points:
        if p == folder or p.startswith(folder + "/"):
            libc.umount2(os.fsencode(p), MNT_DETACH)


# ---- what the clients do ----------------------------------------------------

class NbdClient:
    """Every request of the protocol; errors are counted."""

    def __init__(self, where, conn, disk):
        self.where, self.c, self.disk, self.errors = where, conn, disk, 0

    def read(self, off, n):
        try:
            self.disk.look(self.where, off, self.c.read(off, n))
        except client.Refused:
            self.errors += 1

    def read_all(self):
        for off in range(0, SIZE, 300 * KIB):
            self.read(off, min(300 * KIB, SIZE - off))

    def ask(self, error):
        self.errors += error != 0
        return error == 0

    def sent(self, change, done):
        """A change that was asked for may come even if no answer does."""
        off, data, sure = change
        self.disk.change(off, data, done, sure)

    def do(self, kind, off, n, flags=0, data=None):
        shown = bytes(n) if data is None else data
        self.disk.change(off, shown, False)
        if self.c.mode == EXTENDED and data:
            flags |= PAYLOAD
        done = self.ask(self.c.do(kind, off, n, flags, data or b""))
        # What was discarded shows zeros or what was there.
        if done and kind != TRIM:
            self.disk.change(off, shown, True, flags & FUA)

    def write(self, off, data, flags=0):
        self.do(WRITE, off, len(data), flags, data)

    def flush(self):
        if self.ask(self.c.do(FLUSH)):
            self.disk.flushed()

    def status(self):
        if self.c.mode == SIMPLE:
            return
        try:
            runs = self.c.status(0, SIZE)[0]
        except client.Refused:
            self.errors += 1
            return
        at = 0
        for n, flags in runs:
            if flags & 2:               # it reads as zeros
                self.disk.look(self.where + ", status", at, bytes(n))
            at += n

    def many(self, seed):
        """Many at once; their answers come in any order."""
        sent = {}
        for i in range(8):
            off, data = (i * 120 + 7) * KIB, pattern(seed + i, 20000)
            flags = PAYLOAD if self.c.mode == EXTENDED else 0
            self.disk.change(off, data, False)
            sent[self.c.send(WRITE, off, len(data), flags, data)] = off, data
        while sent:
            error, cookie = self.c.answer()
            off, data = sent.pop(cookie)
            if self.ask(error):
                self.disk.change(off, data, True)

    def changes(self):
        self.write(128 * KIB, pattern(1, 64 * KIB))
        self.write(5, pattern(2, 1000))
        self.flush()
        self.write(300 * KIB + 100, pattern(3, 5000), FUA)
        self.do(ZEROES, 64 * KIB, 64 * KIB)
        self.do(ZEROES, 800 * KIB + 3, 5000, NO_HOLE | FUA)
        self.status()
        self.do(TRIM, 640 * KIB, 128 * KIB)
        self.write(500 * KIB, bytes(20 * KIB))
        self.flush()
        self.many(10)
        self.read_all()
        self.do(TRIM, 128 * KIB, 64 * KIB, FUA)
        self.flush()
        self.write(128 * KIB, pattern(4, 100 * KIB))
        self.many(20)

    def run(self, writes):
        self.read_all()
        if writes:
            self.changes()
        self.status()
        self.read_all()


class FileClient:
    """The same through files of a mount."""

    def __init__(self, where, folder, disk):
        self.where, self.disk, self.errors = where, disk, 0
        self.folder = folder

    def tried(self, what, *args):
        """None: an error that the disk may have."""
        try:
            return what(*args)
        except OSError as e:
            if e.errno in GONE:
                raise Gone() from None
            if e.errno not in ERRORS:
                sys.exit("%s: %s: %s" % (self.where, what.__name__, e))
        self.errors += 1
        return None

    @contextlib.contextmanager
    def open(self, name, flags):
        path, fd = os.path.join(self.folder, name), None
        for _ in range(2):              # the fault comes once
            if fd is None:
                fd = self.tried(os.open, path, flags)
        if fd is None:
            sys.exit("%s: %s cannot be opened" % (self.where, name))
        try:
            yield fd
        finally:
            with contextlib.suppress(OSError):  # of a server that is gone
                os.close(fd)

    def read(self, fd, off, n, base=0):
        while n:
            data = self.tried(os.pread, fd, n, off)
            if data is None:
                return
            if not data:
                sys.exit("%s: the file ends at %d" % (self.where, off))
            self.disk.look(self.where, base + off, data)
            off += len(data)
            n -= len(data)

    def write(self, fd, off, data, base=0):
        while data:
            self.disk.change(base + off, data, False)
            n = self.tried(os.pwrite, fd, data, off)
            if not n:           # 0: of a server that has just ended
                self.errors += n == 0
                return
            self.disk.change(base + off, data[:n], True)
            off += n
            data = data[n:]

    def fallocate(self, fd, mode, off, n):
        if libc.fallocate(fd, mode | KEEP_SIZE, ctypes.c_long(off),
                          ctypes.c_long(n)):
            raise OSError(ctypes.get_errno(), "fallocate")
        return True

    def zero(self, fd, mode, off, n):
        self.disk.change(off, bytes(n), False)
        if self.tried(self.fallocate, fd, mode, off, n):
            self.disk.change(off, bytes(n), True)

    def sync(self, fd):
        if self.tried(lambda: os.fsync(fd) or True):
            self.disk.flushed()

    def run(self, writes):
        flags = os.O_RDWR if writes else os.O_RDONLY
        names = self.tried(os.listdir, self.folder) or ["disk"]
        with self.open("disk", flags) as disk:
            if "p1" not in names:
                self.requests(disk, None, writes)
                return
            with self.open("p1", flags) as part:
                self.requests(disk, part, writes)

    def requests(self, disk, part, writes):
        self.read(disk, 0, SIZE)
        if writes:
            self.write(disk, 128 * KIB, pattern(1, 64 * KIB))
            self.write(disk, 5, pattern(2, 400))
            self.sync(disk)
            self.zero(disk, PUNCH, 64 * KIB, 64 * KIB)
            self.zero(disk, ZERO_RANGE, 800 * KIB + 3, 5000)
            if part is not None:
                self.write(part, 200 * KIB + 7, pattern(3, 150 * KIB), P1)
                self.sync(part)
                self.read(part, 0, 400 * KIB, P1)
            self.write(disk, 100 * KIB, pattern(4, 300 * KIB))
        self.read(disk, 0, SIZE)


# ---- one run ----------------------------------------------------------------

class Run:
    def __init__(self, top, saved):
        self.saved, self.report = saved, os.path.join(top, "report")
        self.folder = os.path.join(top, "mnt")
        self.count = self.came = self.killed = 0

    def once(self, row, kind, n, first):
        """Returns whether the fault came."""
        what, _, code, _, seen = kind
        image, writes = row[-2:]
        where = "%s, %s %d" % (row[0], what, n)
        restore(self.saved)
        before = raw_digests()
        disk = Disk(first)
        env = faulting.environment(kind, n, self.report)
        env["TMPDIR"] = os.getcwd()
        serve = self.serve_nbd if row in NBD_ROWS else self.serve_mount
        status, words, errors = serve(where, row, disk, kind, env)
        came = faulting.has_come(self.report)
        killed = (status == -9 and code == KILL) or \
            (status == -signal.SIGABRT and code == faulting.ENOMEM and
             ABORTED in words)
        self.count += 1
        self.came += came
        self.killed += killed
        if status not in (0, 1) and not killed:
            sys.exit("%s: exit status %d %s" % (where, status, words))
        if status == 1 and not words.strip():
            sys.exit("%s: failed without a word" % where)
        if (status or errors) and (not came or not seen):
            sys.exit("%s: %d errors, exit status %d: %s" %
                     (where, errors, status, words))
        self.look(where, image, writes, before, disk, status, killed)
        if status:
            self.next(where, row, disk)
        return came

    def look(self, where, image, writes, before, disk, status, killed):
        """The image and the files beside it once the server is gone."""
        extra = set(os.listdir(".")) - set(before)
        if killed:                      # nobody could clean up
            extra = {f for f in extra if f != "sock" and
                     not f.startswith("vimg-nbd.")}
        if extra:
            sys.exit("%s: %s is left behind" % (where, extra))
        for f, h in before.items():
            with open(f, "rb") as file:
                if (f != image or not writes) and \
                        hashlib.sha256(file.read()).hexdigest() != h:
                    sys.exit("%s: %s has changed" % (where, f))
        if not writes:
            return
        disk.look(where + ", afterwards", 0, faulting.content(image),
                  disk.safe if status else disk.now)
        if image.endswith(("qcow2", "vdi")):
            faulting.leaks_at_most(where, image)

    def next(self, where, row, disk):
        """The next server starts and shows what is in the image."""
        where += ", the next one"
        if not row[-1]:
            disk = Disk(disk.first)
        disk.now = disk.safe
        serve = self.serve_nbd if row in NBD_ROWS else self.serve_mount
        env = dict(os.environ, TMPDIR=os.getcwd())
        status, words, errors = serve(where, row, disk, None, env, False)
        if status or errors:
            sys.exit("%s: exit status %d, %d errors: %s" % (where, status,
                                                            errors, words))
        if os.path.exists("sock") or os.path.exists("pid"):
            sys.exit("%s: socket or process ID are left behind" % where)

    def connect(self, s, mode, kind):
        """Whoever has no memory for a client may close the connection."""
        for attempt in range(2):
            try:
                c = client.Conn("sock", patience=PATIENCE)
                return c.go(mode)
            except (client.Closed, ConnectionRefusedError) as e:
                c = None
                if kind and kind[2] == KILL:
                    return None
                if attempt or not kind or kind[2] != faulting.ENOMEM:
                    s.fail("no connection: %r" % e)

    def serve_nbd(self, where, row, disk, kind, env, change=True):
        """(exit status, message, errors of requests)"""
        errors = 0
        with Server(where, row, env) as s:
            if not s.started():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink("pid")    # ours
                return s.end() + (0,)
            c = self.connect(s, row[2], kind)
            if c:
                errors = self.talk(where, s, c, disk, kind,
                                   change and row[1].find("-r") < 0)
                c.s.close()
            status = s.end()
        if status[0]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink("pid")
        return status + (errors,)

    def talk(self, where, s, c, disk, kind, change):
        nbd = NbdClient(where, c, disk)
        try:
            nbd.run(change)
            c.send(client.DISC)
            c.ends()
        except TimeoutError:
            s.fail("the client is left hanging")
        except client.Closed:
            if not kind or kind[2] != KILL:
                s.fail("the connection is closed")
        return nbd.errors

    def serve_mount(self, where, row, disk, kind, env, change=True):
        errors, unmounted = 0, None
        with Mount(where, row, self.folder, env) as s:
            try:
                if not s.started():
                    return s.end() + (0,)
                files = FileClient(where, self.folder, disk)
                try:
                    files.run(change and row[-1])
                except Gone:
                    pass
                errors = files.errors
                unmounted = vimg("umount '%s'" % self.folder, check=False,
                                 timeout=PATIENCE)
                status = s.end()
            finally:
                detach(self.folder)
        if unmounted.returncode == 0:
            disk.flushed()
        if os.path.ismount(self.folder):
            sys.exit("%s: still mounted" % where)
        return status + (errors + (unmounted.returncode != 0),)

    def row(self, row):
        restore(self.saved)
        first = faulting.content(row[-2])
        for kind in KINDS:
            for n in itertools.count(1, STEP):
                if not self.once(row, kind, n, first):
                    break


# ---- what cannot start ------------------------------------------------------

def refused(before, argv):
    r = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE,
                       check=False)
    if r.returncode != 1 or not r.stderr.strip():
        sys.exit("%s: exit status %d %s" % (argv, r.returncode, r.stderr))
    after = raw_digests()
    if {f: after.get(f) for f in before} != before or \
            set(after) - set(before):
        sys.exit("%s: files have changed" % argv)


def start_ups(saved, folder):
    """Each fails with a message and leaves no trace; a server that runs and
    its socket stay as they are."""
    nbd = [faulting.NBD, "-f", "qcow2"]
    restore(saved)
    before = raw_digests()
    rows = [
        nbd + ["-k", "base.raw", "top.qcow2"],
        nbd + ["-k", "no/sock", "top.qcow2"],
        nbd + ["-k", "s" * 200, "top.qcow2"],
        nbd + ["-k", "sock", "--pid-file", "no/pid", "top.qcow2"],
        nbd + ["-k", "sock", "--pid-file", "pid", "none.qcow2"],
        nbd + ["-k", "sock", "--pid-file", "pid", "base.raw"],
        nbd + ["--fork", "-k", "sock", "--pid-file", "no/pid", "top.qcow2"],
        nbd + ["--fork", "-k", "no/sock", "--pid-file", "pid", "top.qcow2"],
        [VIMG, "mount", "top.qcow2", "none"],
        [VIMG, "mount", "top.qcow2", "base.raw"],
        [VIMG, "mount", "none.qcow2", folder],
        [VIMG, "mount", "-f", "qcow2", "base.raw", folder],
        [VIMG, "umount", folder],
    ]
    for argv in rows:
        refused(before, argv)
    with Server("two servers", NBD_ROWS[0]) as s:
        if not s.started():
            sys.exit("no server: %s" % s.end()[1])
        os.unlink("pid")                # the pipe: digests would wait for it
        os.rename("sock", "../sock")
        for more in (["-k", "other"], ["-k", "other", "--pid-file", "pid"]):
            refused(before, nbd + more + ["top.qcow2"])
        refused(before, nbd + ["-k", "../sock", "plain.qcow2"])
        refused(before, [VIMG, "mount", "-w", "top.qcow2", folder])
        os.rename("../sock", "sock")
        c = client.Conn("sock", patience=PATIENCE).go(STRUCTURED)
        c.read(0, 512)
        c.send(client.DISC)
        c.ends()
        if s.end()[0] or os.path.exists("sock"):
            sys.exit("the first of two servers: %s" % s.end()[1])
    return len(rows) + 4


def last_left(saved):
    """The last client to leave need not have been served itself."""
    restore(saved)
    row = list(NBD_ROWS[0])
    row[1] += " -e 2"
    with Server("two clients", row) as s:
        if not s.started():
            s.fail("does not start")
        served = client.Conn("sock", patience=PATIENCE).go(STRUCTURED)
        other = client.Conn("sock", patience=PATIENCE)
        served.send(client.DISC)
        served.ends()
        other.s.close()
        if s.end()[0]:
            s.fail("exit status")


def can_mount(folder):
    if not os.access("/dev/fuse", os.W_OK) or os.geteuid() != 0:
        return False
    r = vimg("mount top.qcow2 '%s'" % folder, check=False)
    if r.returncode == 0:
        vimg("umount '%s'" % folder)
    return r.returncode == 0


def main():
    if not faulting.can_run():
        return 77
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(1))
    only = sys.argv[1:]
    top = tempfile.mkdtemp(prefix="vimg-test.")
    try:
        saved, work = os.path.join(top, "saved"), os.path.join(top, "work")
        for d in (saved, work, os.path.join(top, "mnt")):
            os.mkdir(d)
        make_files(saved)
        run = Run(top, saved)
        rows = NBD_ROWS + MOUNT_ROWS
        if not can_mount(run.folder):
            print("no FUSE here, mounts are left out")
            rows = NBD_ROWS
        rows = [r for r in rows if not only or r[0] in only]
        os.chdir(work)
        failed = start_ups(saved, run.folder)
        last_left(saved)
        for row in rows:
            run.row(row)
        print("%d start-ups failed, as they must" % failed)
        print("%d runs of %d servers, %d of them with a fault, %d of those "
              "killed" % (run.count, len(rows), run.came, run.killed))
    finally:
        os.chdir("/")
        detach(top)
        shutil.rmtree(top)
    return 0


sys.exit(main())
