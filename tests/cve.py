#!/usr/bin/env python3
"""The published holes of QEMU's image parsers, each as a test of its name:
the same mistake in an image of the formats that vimg reads.  Every command
must end by itself, within 512 MiB and 20 seconds, with an error that names
the file, and must neither show nor change what is not the image's own."""
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

SECTOR = 512
MIB = 1 << 20
problems = []


def limits():
    # A library built with ASan reserves more than it uses.
    if not os.environ.get("ASAN_OPTIONS"):
        resource.setrlimit(resource.RLIMIT_AS, (512 * MIB, 512 * MIB))


def vimg(*argv):
    try:
        r = subprocess.run(("vimg",) + argv, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, timeout=20,
                           preexec_fn=limits)
    except subprocess.TimeoutExpired:
        problems.append("%s: hangs" % " ".join(argv))
        return 124, ""
    return r.returncode, (r.stdout + r.stderr).decode(errors="replace")


def put(name, *pieces, length=None):
    with open(name, "wb") as f:
        for off, data in pieces:
            f.seek(off)
            f.write(data)
        if length is not None:
            f.truncate(length)


def refused(fmt, name, *words):
    """No command gets anything out of it."""
    for argv in (("info", "-f", fmt, name),
                 ("convert", "-f", fmt, "-O", "raw", name, "out"),
                 ("check", "-f", fmt, name), ("map", "-f", fmt, name),
                 ("check", "-r", "all", "-f", fmt, name)):
        code, text = vimg(*argv)
        if code not in (1, 2) or name not in text or (
                words and not any(w in text for w in words)):
            problems.append("%s %s: exit %d: %s" % (argv[0], name, code,
                                                    text.strip()))
    if os.path.exists("out"):
        problems.append("%s was converted" % name)
        os.unlink("out")


def unreadable(fmt, name):
    """It may open; reading all of it fails, and leaves nothing."""
    code, text = vimg("convert", "-f", fmt, "-O", "raw", name, "out")
    if code != 1 or name not in text or os.path.exists("out"):
        problems.append("convert %s: exit %d: %s" % (name, code,
                                                     text.strip()))
    code, text = vimg("check", "-f", fmt, name)
    if code not in (0, 1, 2, 3):
        problems.append("check %s: exit %d: %s" % (name, code, text))


# ---- headers: sound ones, with some words changed -------------------------

def changed(data, changes):
    data = bytearray(data)
    for off, code, value in changes:
        struct.pack_into(code, data, off, value)
    return bytes(data)


def sound(fmt, *options):
    """A small image as vimg makes it, with data at its start."""
    argv = ["create", "-q", "-f", fmt]
    for o in options:
        argv += ["-o", o]
    vimg(*argv, "sound", "8M")
    code, text = vimg("io", "-f", fmt, "-c", "write -P 5 0 1M", "sound")
    if code:
        problems.append("a sound %s: %s" % (fmt, text))
    with open("sound", "rb") as f:
        return f.read()


def bad_headers(fmt, changes, words=(), options=()):
    data = sound(fmt, *options)
    for change in changes:
        name = "bad." + fmt
        put(name, (0, changed(data, change)))
        refused(fmt, name, *words)
        os.unlink(name)


def cve_2014_0142():
    """Division by zero: geometry of nothing (there: Parallels' tracks)."""
    bad_headers("vmdk", [[(20, "<Q", 0)], [(44, "<I", 0)],
                         [(20, "<Q", 0), (44, "<I", 0)]])
    bad_headers("vdi", [[(376, "<I", 0)], [(360, "<I", 0)]])
    bad_headers("qcow", [[(32, ">B", 0)], [(32, ">B", 64)],
                         [(33, ">B", 0)], [(33, ">B", 64)]])
    bad_headers("qcow2", [[(20, ">I", 0)], [(20, ">I", 64)]])


def cve_2014_0143():
    """Sizes whose products overflow."""
    top = 1 << 63
    bad_headers("vmdk", [[(12, "<Q", top - 1)], [(12, "<Q", 1 << 55)],
                         [(12, "<Q", (1 << 64) - 1)]])
    bad_headers("vdi", [[(368, "<Q", top)], [(368, "<Q", (1 << 64) - 1)],
                        [(384, "<I", 0xffffffff)],
                        [(368, "<Q", 1 << 52), (384, "<I", 0xffffffff)]])
    bad_headers("qcow", [[(24, ">Q", top)], [(24, ">Q", (1 << 64) - 1)],
                         [(24, ">Q", 1 << 62)]])
    bad_headers("qcow2", [[(24, ">Q", (1 << 64) - 1)], [(36, ">I", 1 << 31)],
                          [(36, ">I", 0xffffffff)]])


def cve_2014_0144():
    """Fields of the header that were believed."""
    bad_headers("vmdk", [[(36, "<Q", 1 << 50)], [(28, "<Q", 1 << 40)],
                         [(44, "<I", 3)], [(20, "<Q", 1 << 40)],
                         [(48, "<Q", 0), (56, "<Q", (1 << 64) - 2)]])
    bad_headers("vdi", [[(340, "<I", 0xffffff00)], [(344, "<I", 0)],
                        [(376, "<I", 0x80000000)], [(380, "<I", 0xfffffe00)],
                        [(384, "<I", 0x10000000)], [(72, "<I", 0xffffffff)]])
    bad_headers("qcow2", [[(40, ">Q", 0xffffffffff000000)],
                          [(48, ">Q", 3)], [(96, ">I", 7)],
                          [(100, ">I", 0xffffff00)]])


def stream_with(packed, size=None, name="bomb.vmdk"):
    """A stream with one packed grain."""
    n = len(packed) if size is None else size
    grain = struct.pack("<QI", 0, n) + packed
    grain += bytes(-len(grain) % SECTOR)
    table = 64 + len(grain) // SECTOR
    text = (b"# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
            b"createType=\"streamOptimized\"\nRW 256 SPARSE \"x\"\n")
    header = (struct.pack("<4sIIQQQQIQQQB", b"KDMV", 3, 0x30001, 256, 128, 1,
                          20, 512, 0, table + 4, 64, 0) + b"\n \r\n" +
              struct.pack("<H", 1))
    put(name, (0, header), (SECTOR, text), (64 * SECTOR, grain),
        (table * SECTOR, struct.pack("<I", 64) + bytes(2044)),
        ((table + 4) * SECTOR, struct.pack("<I", table) + bytes(508)))


def cve_2014_0145():
    """Buffers that the image's own lengths overflow."""
    stream_with(zlib.compress(b"a" * 65536))
    code, text = vimg("convert", "-f", "vmdk", "-O", "raw", "bomb.vmdk",
                      "out")
    if code or os.path.getsize("out") != 256 * SECTOR:
        problems.append("a sound stream: " + text)
    os.unlink("out")
    stream_with(zlib.compress(b"a" * (64 * MIB)))
    unreadable("vmdk", "bomb.vmdk")
    for size in (0, 0xffffffff, 0x7fffffff, 1 << 20):
        stream_with(zlib.compress(b"a" * 65536), size)
        unreadable("vmdk", "bomb.vmdk")
    # A snapshot whose L1 table is longer than what its disk needs.
    data = sound("qcow2")
    put("snap.qcow2", (0, data))
    vimg("snapshot", "-c", "one", "snap.qcow2")
    with open("snap.qcow2", "rb") as f:
        data = f.read()
    table = struct.unpack_from(">Q", data, 64)[0]
    for size in (0xffffffff, 0x7fffffff, 1 << 24):
        put("snap.qcow2", (0, changed(data, [(table + 8, ">I", size)])))
        code, text = vimg("snapshot", "-a", "one", "snap.qcow2")
        if code != 1 or "snap.qcow2" not in text:
            problems.append("snapshot L1: exit %d: %s" % (code, text))


def cve_2014_0146():
    """The way out after a bad snapshot table: no crash, but words."""
    bad_headers("qcow2", [[(60, ">I", 0xffffffff), (64, ">Q", 65536)],
                          [(60, ">I", 1), (64, ">Q", 1 << 60)],
                          [(60, ">I", 3), (64, ">Q", 0x1003)]])


def cve_2014_0147():
    """Signs: counts that are negative, or too large, for the refcounts."""
    bad_headers("qcow2", [[(56, ">I", 0xffffffff)], [(56, ">I", 0x80000000)],
                          [(60, ">I", 0x80000000)], [(36, ">I", 0x80000000)]])
    bad_headers("vdi", [[(384, "<I", 0x80000000)]])


def cve_2014_0148():
    """VHDX with sectors or blocks of nothing made QEMU divide by zero and
    loop.  Here VHDX is named and not read."""
    region = struct.pack("<IIQ", 0, 0, 0)
    put("bad.vhdx", (0, b"vhdxfile"), (65536, b"head" + bytes(60)),
        (196608, b"regi" + region), length=4 * MIB)
    for argv in (("info", "bad.vhdx"), ("check", "bad.vhdx"),
                 ("convert", "-O", "qcow2", "bad.vhdx", "out")):
        code, text = vimg(*argv)
        if code != 1 or "VHDX" not in text:
            problems.append("VHDX: exit %d: %s" % (code, text))


def cve_2014_0222():
    """qcow: L2 tables of any length."""
    bad_headers("qcow", [[(33, ">B", n)] for n in (1, 14, 31, 60, 255)])


def cve_2014_0223():
    """qcow: an L1 table of any length, by the size of the disk."""
    bad_headers("qcow", [[(24, ">Q", 1 << 56)], [(24, ">Q", (1 << 63) - 512)]])


def no_secret(argv, what):
    if os.path.exists("out"):
        os.unlink("out")
    code, text = vimg(*argv)
    data = b""
    if os.path.exists("out"):
        with open("out", "rb") as f:
            data = f.read()
        os.unlink("out")
    if "SECRET" in text or b"SECRET" in data:
        problems.append("%s shows the secret: %s" % (what, " ".join(argv)))
    return code, text


def cve_2015_5163():
    """An image that was handed in has a file of the host below it.  Whoever
    describes it sees the name and nothing else; whoever opens it with
    "backing=" gets the image alone."""
    secret = os.path.abspath("secret")
    put("secret", (0, b"SECRET\n" * 20000))
    for fmt in ("qcow2", "qcow"):
        vimg("create", "-q", "-u", "-f", fmt, "-b", secret, "-F", "raw",
             "handed", "1M")
        mode = os.stat("secret").st_mode
        os.unlink("secret")
        # Nothing there: to describe it nobody may even look.
        code, text = no_secret(("info", "-f", fmt, "handed"), fmt)
        if code or secret not in text:
            problems.append("info of %s: exit %d: %s" % (fmt, code, text))
        put("secret", (0, b"SECRET\n" * 20000))
        os.chmod("secret", mode)
        code, text = no_secret(
            ("convert", "-O", "raw", "--image-opts",
             "driver=%s,file.filename=handed,backing=" % fmt, "out"), fmt)
        if code:
            problems.append("backing= of %s: %s" % (fmt, text))
    put("handed.vmdk", (0, (
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=2\n"
        "createType=\"monolithicSparse\"\nparentFileNameHint=\"%s\"\n"
        "RW 2048 ZERO\n" % secret).encode()))
    for argv in (("info", "handed.vmdk"),
                 ("convert", "-O", "raw", "handed.vmdk", "out"),
                 ("convert", "-O", "raw", "--image-opts",
                  "driver=vmdk,file.filename=handed.vmdk,backing=", "out")):
        no_secret(argv, "vmdk")


def cve_2022_47951():
    """A VMDK descriptor whose extent is a file of the host."""
    os.makedirs("in", exist_ok=True)
    put("secret", (0, b"SECRET\n" * 20000))
    sparse = sound("vmdk")
    put("secret.vmdk", (0, sparse))
    for kind, tail in (("FLAT", " 0"), ("VMFS", ""), ("SPARSE", ""),
                       ("VMFSSPARSE", ""), ("SESPARSE", "")):
        names = (os.path.abspath("secret"), "../secret.vmdk",
                 "x/../../secret", "../secret", "/dev/zero", "file:../secret",
                 "nbd://localhost/x", 'json:{\\"driver\\":\\"file\\"}')
        for name in names if kind == "FLAT" else names[:2]:
            put("in/evil.vmdk", (0, (
                "# Disk DescriptorFile\nversion=1\nCID=1\n"
                "parentCID=ffffffff\ncreateType=\"custom\"\n"
                "RW 16 %s \"%s\"%s\n" % (kind, name, tail)).encode()))
            for argv in (("info", "in/evil.vmdk"), ("map", "in/evil.vmdk"),
                         ("check", "in/evil.vmdk"),
                         ("convert", "-O", "raw", "in/evil.vmdk", "out"),
                         ("measure", "-O", "qcow2", "in/evil.vmdk"),
                         ("dd", "if=in/evil.vmdk", "of=out"),
                         ("create", "-f", "vmdk", "-b", "in/evil.vmdk", "-F",
                          "vmdk", "o.vmdk")):
                code, text = no_secret(argv, kind)
                if code == 0 and argv[0] != "info":
                    problems.append("%s %s: %s was taken: %s" % (
                        argv[0], kind, name, text))


def main():
    top = os.path.abspath(os.environ.get("builddir", "."))
    os.environ["PATH"] = top + os.pathsep + os.environ["PATH"]
    if not shutil.which("vimg"):
        print("SKIP: no vimg")
        return 77
    bad = 0
    tests = [(n, f) for n, f in globals().items() if n.startswith("cve_")]
    with tempfile.TemporaryDirectory(prefix="vimg-test.") as folder:
        os.chdir(folder)
        for name, test in tests:
            problems.clear()
            test()
            print("%s: %s" % (name.upper().replace("_", "-"),
                              "ok" if not problems else "FAILED"))
            for p in problems[:6]:
                print("   ", p)
            bad += bool(problems)
        os.chdir("/")
    return 1 if bad else 0


sys.exit(main())
