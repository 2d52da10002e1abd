#!/usr/bin/env python3
"""Images that QEMU cannot make, built byte by byte from the published
layouts (VMware's "Virtual Disk Format 5.0", VirtualBox's VDICore.h, QEMU's
documentation of seSparse), each with its label: vimg must read the bytes that
were put there, and so must qemu-img where it knows the kind.  What can be
written is written in place afterwards and read again."""
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

SECTOR = 512
random.seed(29)
failed = []


def run(*argv):
    return subprocess.run(argv, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)


def sectors(n):
    return random.randbytes(n * SECTOR)


def put(name, pieces, length=None):
    """pieces: (offset, bytes)"""
    with open(name, "wb") as f:
        for off, data in pieces:
            f.seek(off)
            f.write(data)
        if length:
            f.truncate(length)


def descriptor(name, kind, lines, parent=None, cid=0x11, parent_cid=None):
    text = "# Disk DescriptorFile\nversion=1\nCID=%08x\nparentCID=%08x\n" % (
        cid, 0xffffffff if parent_cid is None else parent_cid)
    text += 'createType="%s"\n' % kind
    if parent:
        text += 'parentFileNameHint="%s"\n' % parent
    text += "".join(line + "\n" for line in lines)
    text += 'ddb.adapterType = "lsilogic"\nddb.longContentID = "%s"\n' % (
        "%032x" % (cid * 0x1234567890abcdef))
    put(name, [(0, text.encode())])


def overlay(disk, at, data):
    return disk[:at] + data + disk[at + len(data):]


def expect(label, image, fmt, disk, qemu=True, write=True):
    """vimg and qemu-img read exactly disk; vimg writes into it."""
    def shown(tool):
        out = "out.raw"
        r = run(tool, "convert", "-f", fmt, "-O", "raw", image, out)
        if r.returncode:
            return r.stdout.decode().strip()
        with open(out, "rb") as f:
            data = f.read()
        os.unlink(out)
        return "" if data == disk else "other bytes (%d of %d, %s)" % (
            len(data), len(disk), hashlib.sha256(data).hexdigest()[:12])

    problems = []
    for tool in ["vimg"] + (["qemu-img"] if qemu else []):
        wrong = shown(tool)
        if wrong:
            problems.append("%s: %s" % (tool, wrong))
    r = run("vimg", "check", "-f", fmt, image)
    if r.returncode not in (0, 3, 63):
        problems.append("check: " + r.stdout.decode().strip())
    if write and not problems:
        at = len(disk) // 3 // SECTOR * SECTOR + 100
        r = run("vimg", "io", "-f", fmt, "-c", "write -P 0x77 %d 5000" % at,
                "-c", "write -P 0x78 10 1", image)
        disk = overlay(overlay(disk, at, b"\x77" * 5000), 10, b"\x78")
        if r.returncode:
            problems.append("write: " + r.stdout.decode().strip())
        for tool in ["vimg"] + (["qemu-img"] if qemu else []):
            wrong = shown(tool)
            if wrong:
                problems.append("%s after a write: %s" % (tool, wrong))
    print("%s: %s" % (label, "; ".join(problems) or "ok"))
    failed.extend(problems)


def cowd(name, total, grains):
    """ESX server sparse; grains: {sector: bytes of one sector}"""
    tables = (total + 4095) // 4096
    directory, at = [0] * tables, 4 + (tables * 4 + 511) // 512
    pieces, used = [], {}
    for sector, data in sorted(grains.items()):
        used.setdefault(sector // 4096, {})[sector % 4096] = data
    for t, entries in used.items():
        directory[t] = at
        table = [0] * 4096
        first, at = at, at + 32
        for i, data in entries.items():
            table[i] = at
            pieces.append((at * SECTOR, data))
            at += 1
        pieces.append((first * SECTOR, struct.pack("<4096I", *table)))
    header = struct.pack("<8I", 0x44574f43, 1, 3, total, 1, 4, tables, at)
    put(name, [(0, header),
               (4 * SECTOR, struct.pack("<%dI" % tables, *directory))] +
        pieces, at * SECTOR)


def vmfs_chain():
    total = 9000
    disk = sectors(total)
    put("base-flat.vmdk", [(0, disk)])
    descriptor("base.vmdk", "vmfs",
               ['RW %d VMFS "base-flat.vmdk"' % total], cid=0xa1)
    expect("vmfs, hand-made", "base.vmdk", "vmdk", disk, write=False)
    cid, below = 0xa1, "base.vmdk"
    for n in (1, 2):
        grains = {random.randrange(total): sectors(1) for _ in range(300)}
        grains[total - 1] = sectors(1)
        for sector, data in grains.items():
            disk = overlay(disk, sector * SECTOR, data)
        cowd("d%d-delta.vmdk" % n, total, grains)
        descriptor("d%d.vmdk" % n, "vmfsSparse",
                   ['RW %d VMFSSPARSE "d%d-delta.vmdk"' % (total, n)],
                   below, cid + 1, cid)
        cid, below = cid + 1, "d%d.vmdk" % n
        expect("vmfsSparse chain, hand-made, depth %d" % n, below, "vmdk",
               disk, write=n == 2)
    r = run("vimg", "rebase", "-f", "vmdk", "-u", "-b", "base.vmdk", "-F",
            "vmdk", "d2.vmdk")
    if r.returncode:
        failed.append("rebase: " + r.stdout.decode())


def se_sparse():
    total = 4096 * 8 + 800
    disk = bytearray(total * SECTOR)
    table, grains, places = [0] * 4096, [], 5000
    order = random.sample(range(4096), 60)
    for n, i in enumerate(order):
        data = sectors(8)
        disk[i * 4096:(i + 1) * 4096] = data
        # The low 12 bits of the place stand above the others.
        place = n if n < 50 else places + n
        grains.append((place, data))
        table[i] = 3 << 60 | (place & 0xfff) << 48 | place >> 12
    zero = next(i for i in range(4096) if not table[i])
    table[zero] = 2 << 60
    header = bytearray(SECTOR)
    for off, value in ((0, 0xcafebabe), (8, 0x200000001), (16, total),
                       (24, 8), (32, 64), (80, 1), (128, 2), (136, 1),
                       (144, 4), (152, 128), (192, 136)):
        struct.pack_into("<Q", header, off, value)
    put("se-sesparse.vmdk",
        [(0, bytes(header)), (SECTOR, struct.pack("<Q", 0xcafecafe)),
         (2 * SECTOR, struct.pack("<2Q", 1 << 60 | 1, 0)),
         (4 * SECTOR + 32768, struct.pack("<4096Q", *table))] +
        [(136 * SECTOR + place * 4096, data) for place, data in grains])
    descriptor("se.vmdk", "seSparse",
               ['RW %d SESPARSE "se-sesparse.vmdk"' % total])
    expect("seSparse, hand-made", "se.vmdk", "vmdk", bytes(disk), qemu=False,
           write=False)
    r = run("vimg", "io", "-f", "vmdk", "-c", "write 0 512", "se.vmdk")
    if r.returncode == 0 or b"only read" not in r.stdout:
        failed.append("seSparse was written: %r" % r.stdout)


def stream(name, version, markers, footer, total=700):
    """streamOptimized; without a footer the directory is in front."""
    grain, disk = 128, bytearray(total * SECTOR)
    text = ("# Disk DescriptorFile\nversion=1\nCID=00000011\n"
            "parentCID=ffffffff\ncreateType=\"streamOptimized\"\n"
            "RW %d SPARSE \"%s\"\n" % (total, name)).encode()
    flags = 1 | 1 << 16 | (1 << 17 if markers else 0)
    table, body, at = [0] * 512, [], 128
    directory_at = None if footer else 22

    def emit(data):
        nonlocal at
        data += bytes(-len(data) % SECTOR)
        body.append((at * SECTOR, data))
        at += len(data) // SECTOR
        return at - len(data) // SECTOR

    def marker(n, kind):
        return struct.pack("<QII", n, 0, kind) + bytes(SECTOR - 16)

    def header(where):
        return (struct.pack("<4sIIQQQQIQQQB", b"KDMV", version, flags, total,
                            grain, 1, 20, 512, 0, where, 128, 0) +
                b"\n \r\n" + struct.pack("<H", 1) + bytes(433))

    for i in (0, 2, 5):
        n = min(grain, total - i * grain)
        data = sectors(n // 2) + b"abcd" * (128 * (n - n // 2))
        disk[i * grain * SECTOR:i * grain * SECTOR + len(data)] = data
        packed = zlib.compress(data + bytes(grain * SECTOR - len(data)))
        head = struct.pack("<QI", i * grain, len(packed)) if markers else b""
        table[i] = emit(head + packed)
    packed_table = struct.pack("<512I", *table)
    if footer:
        if markers:
            emit(marker(4, 1))
        where = emit(packed_table)
        emit(marker(1, 2))
        directory = emit(struct.pack("<I", where))
        emit(marker(1, 3))
        emit(header(directory))
        emit(marker(0, 0))
    else:
        body.append((directory_at * SECTOR, struct.pack("<I", 24)))
        body.append((24 * SECTOR, packed_table))
    put(name, [(0, header(2 ** 64 - 1 if footer else directory_at)),
               (SECTOR, text)] + body)
    expect("streamOptimized, hand-made, version %d, %s markers, %s" % (
        version, "with" if markers else "no",
        "footer" if footer else "directory in front"), name, "vmdk",
        bytes(disk), qemu=markers, write=False)


def mixed():
    """Flat, zero, sparse and read-only extents in one descriptor."""
    flat, tail = sectors(300), sectors(50)
    put("mixed-flat.bin", [(10 * SECTOR, flat)])
    put("mixed-tail.bin", [(0, tail)])
    run("vimg", "create", "-q", "-f", "vmdk", "-o",
        "subformat=twoGbMaxExtentSparse", "m.vmdk", str(1024 * SECTOR))
    data = sectors(1024)
    put("m.raw", [(0, data)])
    run("vimg", "convert", "-n", "-f", "raw", "-O", "vmdk", "m.raw", "m.vmdk")
    descriptor("mixed.vmdk", "custom",
               ['RW 128 ZERO', 'RW 1024 SPARSE "m-s001.vmdk"',
                'RW 300 FLAT "mixed-flat.bin" 10',
                'RDONLY 50 FLAT "mixed-tail.bin" 0'])
    expect("mixed extents, hand-made", "mixed.vmdk", "vmdk",
           bytes(128 * SECTOR) + data + flat + tail, qemu=False, write=False)
    r = run("vimg", "io", "-f", "vmdk", "-c", "write -P 9 65536 %d" % (
        (1024 + 300) * SECTOR), "mixed.vmdk")
    if r.returncode:
        failed.append("mixed: %r" % r.stdout)
    expect("mixed extents, written", "mixed.vmdk", "vmdk",
           bytes(128 * SECTOR) + b"\x09" * (1324 * SECTOR) + tail,
           qemu=False, write=False)


def vdi(name, kind, size, blocks, block=1 << 20, data_off=None, version=0x10001,
        text=b"<<< Oracle VM VirtualBox Disk Image >>>\n", uuid=b"\x11" * 16,
        parent=None, extra=0):
    """blocks: {number: bytes}, ..., None for zeros.  In an odd order."""
    n = (size + block - 1) // block
    table, body, used = [0xffffffff] * n, [], 0
    data_off = data_off or 512 + (n * 4 + 511) // 512 * 512
    for i in sorted(blocks, key=lambda b: (b * 7919) % 104729):
        if blocks[i] is None:
            table[i] = 0xfffffffe
            continue
        table[i] = used
        body.append((data_off + used * (block + extra) + extra, blocks[i]))
        used += 1
    length = 400 if version == 0x10001 else 384
    head = text.ljust(64, b"\0") + struct.pack(
        "<IIIII256sII", 0xbeda107f, version, length, kind, 0, b"by hand",
        512, data_off) + struct.pack(
        "<IIIIIQIIII", 0, 0, 0, 512, 0, size, block, extra, n, used)
    head += uuid + b"\x22" * 16 + (parent or bytes(16)) + (
        b"\x22" * 16 if parent else bytes(16))
    put(name, [(0, head.ljust(512, b"\0")),
               (512, struct.pack("<%dI" % n, *table))] + body,
        data_off + used * (block + extra))


def vdi_all():
    size = 5 * (1 << 20) + 700 * SECTOR
    for label, kind, keys in (
            ("VirtualBox's text", 1, {}),
            ("Sun's text, odd data offset", 1, {
                "text": b"<<< Sun VirtualBox Disk Image >>>\n",
                "data_off": 0x5200}),
            ("QEMU's text", 1, {"text": b"<<< QEMU VM Virtual Disk Image >>>\n"}),
            ("version 1.0", 1, {"version": 0x10000}),
            ("blocks of 64 KiB", 1, {"block": 65536}),
            ("extra bytes", 1, {"extra": 512}),
            ("static, blocks of 4 KiB", 2, {"block": 4096})):
        block, disk, blocks = keys.get("block", 1 << 20), bytearray(size), {}
        for i in range((size + block - 1) // block):
            if kind == 2 or random.random() < .6:
                data = random.randbytes(min(block, size - i * block))
                disk[i * block:i * block + len(data)] = data
                blocks[i] = data.ljust(block, b"\0")
            elif random.random() < .5:
                blocks[i] = None
        vdi("x.vdi", kind, size, blocks, **keys)
        # QEMU has no odd blocks, no extra bytes and no version 1.0.
        expect("VDI, hand-made, " + label, "x.vdi", "vdi", bytes(disk),
               qemu=not set(keys) & {"block", "extra", "version"})
    for version in (2, 0x7f):
        vdi("old.vdi", 1, size, {}, version=version)
        r = run("vimg", "info", "-f", "vdi", "old.vdi")
        if r.returncode == 0 or b"version 0." not in r.stdout:
            failed.append("VDI 0.%d: %r" % (version, r.stdout))
    vdi("undo.vdi", 3, size, {})
    r = run("vimg", "info", "-f", "vdi", "undo.vdi")
    if r.returncode == 0 or b"undo" not in r.stdout:
        failed.append("VDI undo: %r" % r.stdout)


def vdi_diff():
    size, disk, one = 4 << 20, bytearray(4 << 20), {}
    for depth, numbers in ((1, (0, 1, 3)), (2, (1,)), (3, (2, 0))):
        one = {}
        for i in numbers:
            one[i] = random.randbytes(1 << 20)
            disk[i << 20:(i + 1) << 20] = one[i]
        if depth == 3:
            one[3] = None
            disk[3 << 20:] = bytes(1 << 20)
        vdi("diff%d.vdi" % depth, 1 if depth == 1 else 4, size, one,
            uuid=bytes([depth]) * 16,
            parent=None if depth == 1 else bytes([depth - 1]) * 16)
        expect("differencing VDI, hand-made, depth %d" % depth,
               "diff%d.vdi" % depth, "vdi", bytes(disk), qemu=False,
               write=depth == 3)


def qcow2_header(version, stray, name_at):
    """An extension of `stray` bytes that nobody knows stands before the
    backing file's format; its name is far behind the fixed header, or both
    are where the first page ends."""
    cluster, disk = 1 << 16, sectors(256)
    put("below.raw", [(0, disk)])
    fixed = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, name_at, 9,
                        16, len(disk), 0, 1, cluster, 2 * cluster, 1, 0, 0)
    if version == 3:
        fixed += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    fixed += struct.pack(">II", 0x12345678, stray)
    fixed += random.randbytes(stray) + bytes(-stray % 8)
    fixed += struct.pack(">II8sQ", 0xe2792aca, 3, b"raw", 0)
    put("header.qcow2", [(0, fixed), (name_at, b"below.raw"),
                         (2 * cluster, struct.pack(">Q", 3 * cluster)),
                         (3 * cluster, struct.pack(">4H", 1, 1, 1, 1))],
        4 * cluster)
    expect("qcow2, version %d, %d strange bytes in the header" % (version,
                                                                  stray),
           "header.qcow2", "qcow2", disk)
    r = run("vimg", "info", "--output=json", "header.qcow2")
    if json.loads(r.stdout).get("backing-filename-format") != "raw":
        failed.append("header: %r" % r.stdout)


def main():
    if not shutil.which("qemu-img"):
        print("SKIP: qemu-img is not installed")
        return 1 if os.environ.get("VIMG_CI") == "1" else 77
    top = os.path.abspath(os.environ.get("builddir", "."))
    os.environ["PATH"] = top + os.pathsep + os.environ["PATH"]
    with tempfile.TemporaryDirectory(prefix="vimg-test.") as folder:
        os.chdir(folder)
        for stray, name_at in ((0, 4000), (8, 4090), (3900, 4087),
                               (3940, 4088), (3970, 4102), (4200, 4500),
                               (5000, 60000)):
            qcow2_header(2, stray, name_at)
            qcow2_header(3, stray, name_at)
        for job in (vmfs_chain, se_sparse, mixed, vdi_all, vdi_diff):
            job()
        for version in (1, 2, 3):
            for markers, footer in ((True, True), (True, False),
                                    (False, False)):
                stream("s.vmdk", version, markers, footer)
        os.chdir("/")
    for problem in failed:
        print("FAIL:", problem)
    return 1 if failed else 0


sys.exit(main())
