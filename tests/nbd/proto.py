#!/usr/bin/env python3
"""The protocol, byte by byte, as doc/proto.md of github.com/
NetworkBlockDevice/nbd has it: each command with simple, structured and
extended replies.  No peer that Debian 12 has speaks extended headers (libnbd
does from 1.18 on, QEMU from 8.2 on), so all numbers here are from that text
and nothing is shared with the server.

    proto.py SOCKET
The export "" is a qcow2 of 16 GiB, empty but for 1 MiB of 0x5a at 5 GiB, with
the contexts base:allocation and qemu:allocation-depth."""
import struct
import sys

import client
from client import (
    ABORT, ACK, CACHE, CONTEXTS, DF, DISC, EINVAL, ENOSPC, EXPORT_NAME,
    EXT_HEADERS, EXT_REQD, EXTENDED, FAST, FLUSH, FUA, GO, INFO, INVALID, LIST,
    LIST_META, META, MIB, NO_HOLE, PAYLOAD, READ, REQ_ONE, SERVER, SET_META,
    SIMPLE, STATUS, STRUCTURED, STRUCTURED_REPLY, TRIM, UNKNOWN, UNSUP, WRITE,
    ZEROES)

GIB = 1 << 30
SIZE = 16 * GIB


class Conn(client.Conn):
    def __init__(self, flags=3):
        super().__init__(sys.argv[1], flags)

    def go(self, mode=SIMPLE, contexts=True):
        super().go(mode, contexts)
        assert self.size == SIZE
        return self


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
