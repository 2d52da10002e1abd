#!/usr/bin/env python3
"""The protocol, byte by byte, as doc/proto.md of github.com/
NetworkBlockDevice/nbd has it: each command with simple, structured and
extended replies.  No peer that Debian 12 has speaks extended headers (libnbd
does from 1.18 on, QEMU from 8.2 on), so all numbers here are from that text
and nothing is shared with the server.

    proto.py SOCKET
The export "" is a qcow2 of 16 GiB, empty but for 1 MiB of 0x5a at 5 GiB, with
the contexts base:allocation and qemu:allocation-depth."""
import socket
import struct
import sys

GIB, MIB = 1 << 30, 1 << 20
SIZE = 16 * GIB
SIMPLE, STRUCTURED, EXTENDED = "simple", "structured", "extended"
EXPORT_NAME, ABORT, LIST, INFO, GO = 1, 2, 3, 6, 7
STRUCTURED_REPLY, LIST_META, SET_META, EXT_HEADERS = 8, 9, 10, 11
ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
UNSUP, INVALID, UNKNOWN, EXT_REQD = (0x80000000 + n for n in (1, 3, 6, 10))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST, PAYLOAD = (1 << n for n in range(6))
EINVAL, ENOSPC = 22, 28
CONTEXTS = [b"base:allocation", b"qemu:allocation-depth"]


class Closed(Exception):
    pass


class Conn:
    def __init__(self, flags=3):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(60)
        self.s.connect(sys.argv[1])
        self.mode, self.cookie, self.flags = SIMPLE, 2 ** 64 - 1, 0
        assert self.recv(16) == b"NBDMAGICIHAVEOPT"
        assert self.recv(2) == b"\0\3"  # fixed newstyle, no zeroes
        self.s.sendall(struct.pack(">I", flags))

    def recv(self, n):
        got = bytearray()
        while len(got) < n:
            try:
                more = self.s.recv(n - len(got))
            except ConnectionResetError:
                more = b""
            if not more:
                raise Closed(got)
            got += more
        return bytes(got)

    def ends(self):
        """Nothing more comes but the end."""
        try:
            byte = self.recv(1)
        except Closed as e:
            assert not e.args[0]
            return
        raise AssertionError("not closed, but %r" % byte)

    def option(self, option, data=b""):
        """Replies up to the last one, each (type, data)."""
        self.s.sendall(b"IHAVEOPT" + struct.pack(">II", option, len(data)) +
                       data)
        out = []
        while True:
            magic, opt, kind, n = struct.unpack(">QIII", self.recv(20))
            assert magic == 0x3e889045565a9 and opt == option
            out.append((kind, self.recv(n)))
            if kind not in (SERVER, REP_INFO, META):
                return out

    def contexts(self, option=SET_META, names=CONTEXTS, export=b""):
        data = struct.pack(">I", len(export)) + export
        data += struct.pack(">I", len(names))
        return self.option(option, data + b"".join(
            struct.pack(">I", len(n)) + n for n in names))

    def go(self, mode=SIMPLE, contexts=True):
        if mode != SIMPLE:
            opt = STRUCTURED_REPLY if mode == STRUCTURED else EXT_HEADERS
            assert self.option(opt) == [(ACK, b"")]
            if contexts:
                assert self.contexts() == [
                    (META, struct.pack(">I", i) + CONTEXTS[i])
                    for i in range(2)] + [(ACK, b"")]
        replies = self.option(GO, struct.pack(">IHH", 0, 1, 3))
        assert replies.pop() == (ACK, b"")
        info = {struct.unpack(">H", d[:2])[0]: d[2:] for k, d in replies
                if k == REP_INFO}
        size, self.flags = struct.unpack(">QH", info[0])
        assert size == SIZE
        assert struct.unpack(">III", info[3]) == (1, 4096, 32 * MIB)
        self.mode = mode
        return self

    def send(self, kind, off=0, length=0, flags=0, data=b"", magic=None):
        self.cookie = (self.cookie * 5 + 1) % 2 ** 64
        if self.mode == EXTENDED:
            head = struct.pack(">IHHQQQ", magic or 0x21e41c71, flags, kind,
                               self.cookie, off, length)
        else:
            head = struct.pack(">IHHQQI", magic or 0x25609513, flags, kind,
                               self.cookie, off, length)
        self.s.sendall(head + data)
        return self.cookie

    def chunk(self, off=None):
        """(done, type, cookie, data)"""
        magic = struct.unpack(">I", self.recv(4))[0]
        if self.mode == EXTENDED:
            assert magic == 0x6e8a278c, hex(magic)
            flags, kind, cookie, at, n = struct.unpack(">HHQQQ",
                                                       self.recv(28))
            assert off is None or at == off, "offset of the request"
        else:
            assert magic == 0x668e33ef, hex(magic)
            flags, kind, cookie, n = struct.unpack(">HHQI", self.recv(16))
        assert flags in (0, 1) and n <= 32 * MIB + 8
        return flags == 1, kind, cookie, self.recv(n)

    def simple(self, cookie):
        magic, error, seen = struct.unpack(">IIQ", self.recv(16))
        assert magic == 0x67446698 and seen == cookie
        return error

    def result(self, cookie, off, may_be_simple=True):
        """The error of a request without a payload in its reply."""
        if self.mode == SIMPLE:
            return self.simple(cookie)
        if self.mode == STRUCTURED and may_be_simple and \
                self.s.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL) == \
                b"\x67\x44\x66\x98":
            return self.simple(cookie)
        done, kind, seen, data = self.chunk(off)
        assert done and seen == cookie
        if kind == 0:
            assert not data
            return 0
        assert kind == 0x8001, kind
        error, n = struct.unpack(">IH", data[:6])
        assert error and len(data) == 6 + n and n <= 4096
        data[6:].decode("utf-8")
        return error

    def do(self, kind, off=0, length=0, flags=0, data=b""):
        cookie = self.send(kind, off, length, flags, data)
        return self.result(cookie, off, kind != READ)

    def write(self, off, data, flags=0):
        if self.mode == EXTENDED:
            flags |= PAYLOAD
        return self.do(WRITE, off, len(data), flags, data)

    def read(self, off, length, flags=0):
        cookie = self.send(READ, off, length, flags)
        if self.mode == SIMPLE:
            assert self.simple(cookie) == 0
            return self.recv(length)
        out, covered, content, done = bytearray(length), [], 0, False
        while not done:
            done, kind, seen, data = self.chunk(off)
            assert seen == cookie
            if kind == 0:
                assert done and not data
                continue
            content += 1
            at = struct.unpack(">Q", data[:8])[0] - off
            if kind == 1:
                n = len(data) - 8
                out[at:at + n] = data[8:]
            else:
                assert kind == 2 and len(data) == 12
                n = struct.unpack(">I", data[8:])[0]
            assert n and 0 <= at and at + n <= length
            covered.append((at, at + n))
        end = 0
        for a, b in sorted(covered):
            assert a == end, "each byte once"
            end = b
        assert end == length
        assert not flags & DF or content == 1
        return bytes(out)

    def status(self, off, length, flags=0, data=b"", n=2):
        """{context: [(length, flags)]}"""
        cookie = self.send(STATUS, off, length, flags, data)
        out, done = {}, False
        while not done:
            done, kind, seen, data = self.chunk(off)
            assert seen == cookie
            if self.mode == EXTENDED and kind == 6:
                context, count = struct.unpack(">II", data[:8])
                list_ = list(struct.iter_unpack(">QQ", data[8:]))
                assert count in (0, len(list_))
            else:
                assert kind == 5
                context = struct.unpack(">I", data[:4])[0]
                list_ = list(struct.iter_unpack(">II", data[4:]))
            assert context not in out and list_
            assert all(d[0] for d in list_)
            out[context] = list_
        assert len(out) == n
        return out


def refused(c, option, data=b""):
    kind, text = c.option(option, data)[-1]
    text.decode("utf-8")
    return kind


def handshake():
    c = Conn()
    assert c.option(ABORT) == [(ACK, b"")]
    c.ends()
    Conn(flags=3 | 64).ends()
    c = Conn()
    assert refused(c, 99, b"x" * 1000) == UNSUP
    assert refused(c, LIST, b"x") == INVALID
    assert c.option(LIST) == [(SERVER, b"\0\0\0\0"), (ACK, b"")]
    assert c.contexts()[-1][0] == INVALID  # not without structured replies
    assert refused(c, GO, struct.pack(">I4sH", 4, b"none", 0)) == UNKNOWN
    assert refused(c, INFO, b"\0\0\0\7\0\0") == INVALID
    assert refused(c, EXT_HEADERS, b"x") == INVALID
    assert c.option(STRUCTURED_REPLY) == [(ACK, b"")]
    assert c.contexts(LIST_META, []) == [
        (META, b"\0\0\0\0" + n) for n in CONTEXTS] + [(ACK, b"")]
    assert c.contexts(LIST_META, [b"qemu:"])[0][1][4:] == CONTEXTS[1]
    assert c.contexts(SET_META, [b"x:y", b"base:"]) == [(ACK, b"")]
    assert c.option(EXT_HEADERS) == [(ACK, b"")]
    assert refused(c, EXT_HEADERS) & 0x80000000
    assert refused(c, STRUCTURED_REPLY) == EXT_REQD
    c.s.sendall(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 0))
    c.ends()  # goes with compact headers only
    c = Conn()
    c.s.sendall(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 0))
    size, flags = struct.unpack(">QH", c.recv(10))
    assert size == SIZE and flags & 1
    assert c.do(FLUSH) == 0


def flags_of(c, contexts):
    f = c.flags
    assert f & 1 and not f & 2          # has flags, not read-only
    assert f & 4 and f & 8 and f & 32 and f & 64    # flush fua trim zeroes
    assert bool(f & 128) == (c.mode != SIMPLE)      # DF
    assert f & 1024 and f & 2048 and not f & (16 | 512)
    assert bool(f & 4096) == (c.mode == EXTENDED and contexts)


def transfers(c):
    assert c.read(5 * GIB, 4096) == b"\x5a" * 4096
    assert c.read(5 * GIB - 1, 3) == b"\0\x5a\x5a"
    assert c.read(5 * GIB + MIB - 300000, 3 * MIB) == \
        b"\x5a" * 300000 + bytes(3 * MIB - 300000)
    assert c.read(SIZE - 1, 1) == b"\0"
    if c.mode != SIMPLE:
        assert c.read(5 * GIB - 100, MIB, DF)[98:102] == b"\0\0\x5a\x5a"
        assert c.read(5 * GIB - 100, 65536, DF | FUA)[99:101] == b"\0\x5a"
    assert c.do(READ, SIZE - 1, 2) == EINVAL
    assert c.do(READ, 2 ** 64 - 1, 2) == EINVAL
    for bad in (NO_HOLE, REQ_ONE, FAST, 1 << 15):
        assert c.do(READ, 0, 512, bad) == EINVAL
    if c.mode == SIMPLE:
        assert c.do(READ, 0, 512, DF) == EINVAL
    text = bytes(range(256)) * 20
    assert c.write(7 * GIB + 5, text) == 0
    assert c.read(7 * GIB + 5, len(text)) == text
    assert c.write(8 * GIB, text, FUA) == 0
    assert c.read(8 * GIB, len(text)) == text
    assert c.write(SIZE - 100, text) == ENOSPC
    assert c.write(0, text, NO_HOLE) == EINVAL
    assert c.write(0, text, DF) == EINVAL
    assert c.read(0, 5120) == bytes(5120)
    long = bytes([c.cookie & 255 or 1]) * (33 * MIB)
    assert c.write(9 * GIB + 1, long) == 0
    assert c.read(9 * GIB, 32 * MIB) == b"\0" + long[:32 * MIB - 1]


def changes(c):
    assert c.do(FLUSH) == 0
    assert c.do(FLUSH, 0, 0, FUA) == 0
    assert c.do(FLUSH, 0, 0, DF) == EINVAL
    assert c.do(ZEROES, 9 * GIB, 34 * MIB) == 0
    assert c.read(9 * GIB + 32 * MIB, 2 * MIB) == bytes(2 * MIB)
    assert c.do(ZEROES, 8 * GIB + 256, 256, NO_HOLE | FUA) == 0
    assert c.read(8 * GIB + 254, 4) == b"\xfe\xff\0\0"
    assert c.do(ZEROES, 8 * GIB, 65536, FAST) in (0, 95)
    assert c.do(ZEROES, SIZE, 1) == ENOSPC
    assert c.do(ZEROES, 0, 1, DF) == EINVAL
    assert c.do(TRIM, 7 * GIB, MIB) == 0
    assert c.do(TRIM, 7 * GIB, MIB, FUA) == 0
    assert c.do(TRIM, 1, 2 ** 64 - 2 if c.mode == EXTENDED else 512,
                NO_HOLE) == EINVAL
    assert c.do(TRIM, SIZE - 5, 6) == EINVAL
    assert c.do(CACHE, 5 * GIB, MIB) == 0
    assert c.do(CACHE, SIZE, 1) == EINVAL
    for kind in (8, 77, 65535):
        assert c.do(kind, 0, 512) == EINVAL
    for kind in (READ, WRITE, TRIM, ZEROES, CACHE):     # may be anything
        if kind == READ:
            c.read(4096, 0) if c.mode == SIMPLE else c.do(kind, 4096, 0)
        else:
            c.do(kind, 4096, 0)
    assert c.read(5 * GIB, 2) == b"\x5a\x5a"


def statuses(c):
    assert c.status(5 * GIB - 65536, 131072) == {
        0: [(65536, 3), (65536, 0)], 1: [(65536, 0), (65536, 1)]}
    assert c.status(5 * GIB - 65536, 131072, REQ_ONE) == {
        0: [(65536, 3)], 1: [(65536, 0)]}
    assert c.do(STATUS, SIZE, 1) == EINVAL
    assert c.do(STATUS, 0, 512, NO_HOLE) == EINVAL
    assert c.do(STATUS, 0, 0) in (0, EINVAL)
    got = c.status(4 * GIB, 4 * GIB - 4096, FUA)
    assert got[0][:2] == [(GIB, 3), (MIB, 0)]


def extended(c):
    assert c.status(0, SIZE)[0][:2] == [(5 * GIB, 3), (MIB, 0)]
    assert c.do(ZEROES, 10 * GIB, 5 * GIB) == 0
    assert c.do(TRIM, 10 * GIB, 6 * GIB) == 0
    assert c.do(CACHE, 12 * GIB, 4 * MIB) == 0

    def some(length, *ids):
        return struct.pack(">Q", length) + b"".join(
            struct.pack(">I", i) for i in ids)
    for i in range(2):
        p = some(SIZE, i)
        got = c.status(0, len(p), PAYLOAD, p, 1)
        assert got[i][0] == (5 * GIB, 3 if i == 0 else 0)
    p = some(GIB, 1, 0)
    assert sorted(c.status(4 * GIB, len(p), PAYLOAD, p)) == [0, 1]
    p = some(6 * GIB, 0)
    assert c.status(0, len(p), PAYLOAD | REQ_ONE, p, 1) == {
        0: [(5 * GIB, 3)]}
    for bad in (some(GIB, 1, 1), some(GIB, 2), some(GIB, 0, 2 ** 32 - 1),
                some(SIZE + 1, 0), some(0, 0), some(GIB, 0)[:9], b"x",
                bytes(MIB), some(GIB, *range(500))):
        assert c.do(STATUS, 0, len(bad), PAYLOAD, bad) == EINVAL
        assert c.do(FLUSH) == 0         # all of it was taken
    assert c.do(STATUS, SIZE - 1, 12, PAYLOAD, some(2, 0)) == EINVAL
    # A payload where none is expected is consumed.
    for kind in (READ, FLUSH, TRIM, CACHE, ZEROES, 8, 77):
        for n in (1, 4096, 3 * MIB):
            assert c.do(kind, 0, n, PAYLOAD, bytes(n)) == EINVAL
    assert c.do(READ, 0, 2 ** 63) == EINVAL
    assert c.do(ZEROES, 0, 2 ** 64 - 1) == ENOSPC
    assert c.read(5 * GIB, 4) == b"\x5a" * 4


def many(c):
    """Answers come in any order, each once."""
    wanted = {c.send(READ, 5 * GIB + i * 4096, 4096): i for i in range(60)}
    while wanted:
        if c.mode == SIMPLE:
            magic, error, cookie = struct.unpack(">IIQ", c.recv(16))
            assert magic == 0x67446698 and not error
            data = c.recv(4096)
        else:
            done, kind, cookie, data = c.chunk()
            assert kind in (0, 1)
            data = data[8:]
            if not done:
                continue
        assert not data or data == b"\x5a" * 4096
        del wanted[cookie]


def ends(mode):
    c = Conn().go(mode)
    c.send(DISC)
    c.ends()
    c = Conn().go(mode)                 # what is under way is done first
    c.s.settimeout(60)
    cookie = c.send(WRITE, GIB, 5, PAYLOAD if mode == EXTENDED else 0,
                    b"later")
    c.send(DISC)
    assert c.result(cookie, GIB) == 0
    c.ends()
    c = Conn().go(mode)
    assert c.read(GIB, 5) == b"later"
    assert c.do(TRIM, 0, 2 * GIB) == 0 and c.do(ZEROES, GIB, 5) == 0
    c.send(FLUSH, magic=0x25609513 if mode == EXTENDED else 0x21e41c71)
    c.ends()
    c = Conn().go(mode)                 # far more than is taken
    c.send(WRITE, 0, 2 ** 31, PAYLOAD if mode == EXTENDED else 0)
    c.ends()
    if mode == EXTENDED:
        for kind in (READ, STATUS, WRITE):
            c = Conn().go(mode)
            c.send(kind, 0, 2 ** 40, PAYLOAD)
            c.ends()
    else:
        c = Conn().go(mode)
        assert c.do(WRITE, 0, 4, PAYLOAD, b"1234") == EINVAL
        assert c.do(FLUSH, 0, 0, PAYLOAD) == EINVAL
        assert c.read(0, 4) == bytes(4)


handshake()
for mode in (SIMPLE, STRUCTURED, EXTENDED):
    c = Conn().go(mode, contexts=False)
    flags_of(c, False)
    assert c.do(STATUS, 0, 512) == EINVAL   # no context was agreed on
    c = Conn().go(mode)
    flags_of(c, True)
    transfers(c)
    changes(c)
    many(c)
    if mode != SIMPLE:
        statuses(c)
    if mode == EXTENDED:
        extended(c)
    ends(mode)
