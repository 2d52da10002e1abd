"""A client that speaks the protocol byte by byte, as doc/proto.md of github.com/
NetworkBlockDevice/nbd has it: with simple, structured and extended replies.
It believes nothing: each length, cookie and magic number of the server is
looked at."""
import socket
import struct

MIB = 1 << 20
SIMPLE, STRUCTURED, EXTENDED = "simple", "structured", "extended"
EXPORT_NAME, ABORT, LIST, INFO, GO = 1, 2, 3, 6, 7
STRUCTURED_REPLY, LIST_META, SET_META, EXT_HEADERS = 8, 9, 10, 11
ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
UNSUP, INVALID, UNKNOWN, EXT_REQD = (0x80000000 + n for n in (1, 3, 6, 10))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST, PAYLOAD = (1 << n for n in range(6))
ERROR = 0x8001                          # of chunks
EINVAL, ENOSPC = 22, 28
CONTEXTS = [b"base:allocation", b"qemu:allocation-depth"]


class Closed(Exception):
    """What came before the end."""


class Refused(Exception):
    """The error of a request that has more than an error for an answer."""


class Conn:
    def __init__(self, path, flags=3, patience=60):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(patience)
        self.s.connect(path)
        self.size = None
        self.mode, self.cookie, self.flags = SIMPLE, 2 ** 64 - 1, 0
        assert self.recv(16) == b"NBDMAGICIHAVEOPT"
        assert self.recv(2) == b"\0\3"  # fixed newstyle, no zeroes
        self.give(struct.pack(">I", flags))

    def give(self, data):
        try:
            self.s.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed(b"") from None

    def some(self, n, flags=0):
        try:
            return self.s.recv(n, flags)
        except ConnectionResetError:
            return b""

    def recv(self, n):
        got = bytearray()
        while len(got) < n:
            more = self.some(n - len(got))
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
        self.give(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)
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
        assert struct.unpack(">III", info[3]) == (1, 4096, 32 * MIB)
        self.size = size
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
        self.give(head + data)
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

    def simple(self):
        """(error, cookie)"""
        magic, error, cookie = struct.unpack(">IIQ", self.recv(16))
        assert magic == 0x67446698
        return error, cookie

    def error_in(self, data):
        """The error of a chunk that has one."""
        error, n = struct.unpack(">IH", data[:6])
        assert error and len(data) == 6 + n and n <= 4096
        data[6:].decode("utf-8")
        return error

    def answer(self, off=None, may_be_simple=True):
        """(error, cookie) of a request without a payload in its reply."""
        if self.mode == SIMPLE:
            return self.simple()
        if self.mode == STRUCTURED and may_be_simple and \
                self.some(4, socket.MSG_PEEK | socket.MSG_WAITALL) == \
                b"\x67\x44\x66\x98":
            return self.simple()
        done, kind, cookie, data = self.chunk(off)
        assert done
        if kind == 0:
            assert not data
            return 0, cookie
        assert kind == ERROR, kind
        return self.error_in(data), cookie

    def result(self, cookie, off, may_be_simple=True):
        error, seen = self.answer(off, may_be_simple)
        assert seen == cookie
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
            error, seen = self.simple()
            assert seen == cookie
            if error:
                raise Refused(error)
            return self.recv(length)
        out, covered, content, done = bytearray(length), [], 0, False
        while not done:
            done, kind, seen, data = self.chunk(off)
            assert seen == cookie
            if kind == 0:
                assert done and not data
                continue
            if kind == ERROR:
                assert done
                raise Refused(self.error_in(data))
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
            if kind == ERROR:
                assert done
                raise Refused(self.error_in(data))
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
