#!/bin/bash
# vimg inspect: each rule of OpenStack's format inspector, and ours, on files
# that break just that one.
. ./tests/functions.sh
need qemu-img python3 strace
cd "$tmp"

python3 - <<'P' || die "inspect"
import json, os, struct, subprocess, sys

bad = 0


def run(*cmd):
    subprocess.run(cmd, check=True, stdout=subprocess.DEVNULL)


def inspect(name, *args):
    p = subprocess.run(["vimg", "inspect", "--output=json", *args, name],
                       stdout=subprocess.PIPE)
    v = json.loads(p.stdout)
    if p.returncode != (0 if v["safe"] else 2):
        sys.exit(f"{name}: exit {p.returncode}, safe {v['safe']}")
    return v


def fail(text):
    global bad
    bad += 1
    print("FAIL:", text, file=sys.stderr)


def expect(name, checks, *args, **more):
    """checks: names of those that reject, none = safe."""
    v = inspect(name, "--untrusted", *args)
    got = {f["check"] for f in v["findings"] if f["rejects"]}
    if v["safe"] != (not checks) or not set(checks) <= got:
        fail(f"{name} {args}: {checks} wanted, {got} found")
    for k, want in more.items():
        if v[k.replace("_", "-")] != want:
            fail(f"{name}: {k}: {v[k.replace('_', '-')]}")
    return v


def put(name, off, data, src=None):
    if src:
        with open(src, "rb") as f:
            body = bytearray(f.read())
    else:
        body = bytearray(open(name, "rb").read())
    body[off:off + len(data)] = data
    with open(name, "wb") as f:
        f.write(body)
    return name


Q = "q.qcow2"
run("qemu-img", "create", "-q", "-f", "qcow2", Q, "16M")
expect(Q, [], format="qcow2", matches=["qcow2"], virtual_size=16 << 20)
expect(Q, [], "--expect=qcow2")
expect(Q, ["expected_format"], "--expect=raw")
expect(Q, ["virtual_size"], "--max-size=8M")
expect(Q, [], "--max-size=16M")
run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F",
    "raw", "b.qcow2", "1M")
v = expect("b.qcow2", ["backing_file"])
if v["references"] != [{"kind": "backing-file", "name": "/etc/passwd"}]:
    fail(f"references: {v['references']}")
if not inspect("b.qcow2")["safe"]:
    fail("a backing file is no reason by itself")
run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=d.raw",
    "d.qcow2", "1M")
v = expect("d.qcow2", ["data_file"])
if v["references"] != [{"kind": "data-file", "name": "d.raw"}]:
    fail(f"references: {v['references']}")
run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on",
    "e.qcow2", "1M")
expect("e.qcow2", ["unknown_features"])
run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10",
    "v2.qcow2", "1M")
expect("v2.qcow2", [])
for bit in (5, 8, 40, 63):
    expect(put("u.qcow2", 72, struct.pack(">Q", 1 << bit), Q),
           ["unknown_features"])
expect(put("u.qcow2", 72, struct.pack(">Q", 1 << 3), Q), ["open"])
expect(put("u.qcow2", 72, struct.pack(">Q", 1), Q), [])          # dirty
expect(put("u.qcow2", 72, struct.pack(">Q", 2), Q), ["corrupt"])
expect(put("u.qcow2", 4, struct.pack(">I", 4), Q), ["unknown_features"])
expect(put("u.qcow2", 4, struct.pack(">I", 1), Q), ["unknown_features"],
       format="qcow")
expect(put("u.qcow2", 8, struct.pack(">QI", 1 << 40, 5), Q),
       ["backing_file"])
expect(put("u.qcow2", 100, struct.pack(">I", 1 << 31), Q),
       ["header_length"])
expect(put("u.qcow2", 32, struct.pack(">I", 2), Q), [], encrypted=True)
expect(put("u.qcow2", 40, struct.pack(">Q", 1 << 50), Q), ["open"])
with open("short", "wb") as f:
    f.write(b"QFI\xfb\0\0\0\3")
expect("short", ["header"])

# VMDK
M = "m.vmdk"
run("qemu-img", "create", "-q", "-f", "vmdk", M, "16M")
expect(M, [], format="vmdk", virtual_size=16 << 20)
run("qemu-img", "create", "-q", "-f", "raw", "z.raw", "1M")
run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized",
    "z.raw", "s.vmdk")
expect("s.vmdk", [])
for sub in ("monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"):
    run("qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={sub}",
        f"{sub}.vmdk", "1M")
    v = expect(f"{sub}.vmdk", ["descriptor"], format="vmdk")
    if v["references"][0]["kind"] != "extent":
        fail(f"{sub}: references {v['references']}")
text = open(M, "rb").read()[512:512 + 20 * 512].rstrip(b"\0")


def vmdk(change, **how):
    new = change(text)
    assert new != text, change
    return put("x.vmdk", 512, new.ljust(20 * 512, b"\0"), M)


expect(vmdk(lambda t: t.replace(b"monolithicSparse", b"monolithicFlat")),
       ["descriptor"])
expect(vmdk(lambda t: t.replace(b'"m.vmdk"', b'"/etc/passwd"')),
       ["descriptor"])
expect(vmdk(lambda t: t + b"\nsurprise me\n"), ["descriptor"])
expect(vmdk(lambda t: t.replace(b"RW ", b"WR ")), ["descriptor"])
expect(vmdk(lambda t: t.replace(b"RW ", b"# RW ")), ["descriptor"])
expect(vmdk(lambda t: t + b"\nx=\xff\n"), ["descriptor"])
expect(vmdk(lambda t: t + b'\nRW 1 FLAT "other" 0\n'), ["descriptor"])
expect(vmdk(lambda t: t.replace(b"parentCID=ffffffff",
            b'parentCID=00000001\nparentFileNameHint="/etc/x"')),
       ["backing_file"])

# QEMU searches for these words, wherever they are.  Names as long as needed
# for what is there to stay in its place.
line = b'parentFileNameHint="/etc/x"'
for where in (b"# " + line, b"x" + line, b"ddb." + line, b"ddb" + line,
              b"# PARENTfilenamehint="):
    for at in (b"# Extent", b"#DDB"):
        expect(vmdk(lambda t: t.replace(at, where + b"\n" + at)),
               ["backing_file"])
for cid in (b"# parentCID=00000001\n", b"xparentCID=1\n", b"#parentCID=f\n",
            b"#parentCID = 0\n", b"#parentCID=ffffffff0\n"):
    expect(vmdk(lambda t: t.replace(b"parentCID", cid + b"parentCID")),
           ["backing_file"])
expect(vmdk(lambda t: t.replace(b"# Extent", b"unheard=of\n# Extent")),
       ["descriptor"])
cut = text[:text.index(b"# The Disk")].ljust(511, b"#") + b"\n"
put("x.vmdk", 512, cut.ljust(20 * 512, b"\0"), M)
expect(put("x.vmdk", 36, struct.pack("<Q", 1)), [])
expect(put("x.vmdk", 1024, line), ["backing_file"])
put("x.vmdk", 1024, bytes(64))
expect(put("x.vmdk", 21 * 512 - len(line), line), ["backing_file"])
# What QEMU makes of it: the other file is its backing file.
run("qemu-img", "create", "-q", "-f", "vmdk", "o.vmdk", "16M")
vmdk(lambda t: t.replace(b"# Extent", b'# parentFileNameHint="o.vmdk"\n#'))
info = subprocess.run(["qemu-img", "info", "--output=json", "x.vmdk"],
                      stdout=subprocess.PIPE).stdout
if json.loads(info).get("backing-filename") != "o.vmdk":
    fail("QEMU does not follow a comment")
if inspect("x.vmdk")["safe"]:
    fail("a parent in a comment")
expect(put("x.vmdk", 4, struct.pack("<I", 4), M), ["header"])
expect(put("x.vmdk", 28, struct.pack("<Q", 2), M), ["descriptor"])
expect(put("x.vmdk", 12, struct.pack("<Q", 0), M), ["descriptor"])
# QEMU writes streams without a footer.
run("vimg", "convert", "-f", "raw", "-O", "vmdk", "-o",
    "subformat=streamOptimized", "z.raw", "f.vmdk")
expect("f.vmdk", [])
size = os.path.getsize("f.vmdk")
expect(put("x.vmdk", size - 1024 + 4, b"\2", "f.vmdk"), ["footer"])
expect(put("x.vmdk", size - 1024 + 56, b"\xff" * 8, "f.vmdk"), ["footer"])
expect(put("x.vmdk", size - 1, b"\1", "f.vmdk"), ["footer"])
expect(put("x.vmdk", size - 1536 + 12, b"\0", "f.vmdk"), ["footer"])
with open("t.vmdk", "w") as f:
    f.write('# Disk DescriptorFile\ncreateType="monolithicSparse"\n'
            'RW 16 FLAT "/etc/passwd" 0\n')
v = expect("t.vmdk", ["descriptor"], format="vmdk")
if {"kind": "extent", "name": "/etc/passwd"} not in v["references"]:
    fail(f"t.vmdk: {v['references']}")
put("c.vmdk", 0, b"COWD", M)
expect("c.vmdk", ["descriptor"])

# VDI, VHD, VHDX, QED and what else there is
run("qemu-img", "create", "-q", "-f", "vdi", "a.vdi", "1M")
expect("a.vdi", [], format="vdi", virtual_size=1 << 20)
run("vimg", "create", "-q", "-f", "vdi", "-b", "a.vdi", "diff.vdi")
expect("diff.vdi", ["backing_file"])
run("qemu-img", "create", "-q", "-f", "vpc", "a.vhd", "16M")
v = expect("a.vhd", [], format="vhd")
if not 16 << 20 <= v["virtual-size"] < 17 << 20:
    fail(f"a.vhd: {v['virtual-size']}")
expect(put("p.vhd", 60, struct.pack(">I", 4), "a.vhd"), ["backing_file"])
run("qemu-img", "create", "-q", "-f", "vhdx", "a.vhdx", "16M")
v = expect("a.vhdx", [], format="vhdx", virtual_size=16 << 20)
data = open("a.vhdx", "rb").read()
item = data.index(bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b"))
meta = data.index(b"metadata")
at = meta + struct.unpack("<I", data[item + 16:item + 20])[0]
expect(put("p.vhdx", at + 4, struct.pack("<I", 2), "a.vhdx"),
       ["backing_file"])
expect(put("p.vhdx", 192 << 10, b"xxxx", "a.vhdx"), ["header"])
run("qemu-img", "create", "-q", "-f", "qed", "a.qed", "1M")
expect("a.qed", ["banned"])
run("qemu-img", "create", "-q", "-f", "parallels", "a.hdd", "1M")
expect("a.hdd", ["banned"])

# raw, partitions, CD images, LUKS
expect("z.raw", [], format="raw", matches=[], virtual_size=1 << 20)
expect("z.raw", [], "--expect=raw")
expect("z.raw", ["expected_format"], "--expect=qcow2")
open("empty", "w").close()
expect("empty", [], format="raw")


def mbr(*parts, flag=0):
    sector = bytearray(512)
    for i, p in enumerate(parts):
        sector[446 + 16 * i:462 + 16 * i] = p
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


linux = bytes([0x80, 0, 2, 0, 0x83, 0, 0, 0]) + struct.pack("<II", 1, 99)
gpt = bytes([0, 0, 2, 0, 0xee, 0, 0, 0]) + struct.pack("<II", 1, 99)
expect(put("g.raw", 0, mbr(linux), "z.raw"), [], format="raw",
       matches=["gpt"])
expect("g.raw", [], "--expect=raw")
expect("g.raw", [], "--expect=gpt")
expect(put("g.raw", 0, mbr(gpt), "z.raw"), [])
expect(put("g.raw", 0, mbr(gpt, linux), "z.raw"), ["mbr"])
expect(put("g.raw", 0, mbr(linux, gpt), "z.raw"), ["mbr"])
expect(put("g.raw", 0, mbr(b"\1" + linux[1:]), "z.raw"), ["mbr"])
expect(put("g.raw", 0, mbr(gpt[:1] + b"\1" + gpt[2:]), "z.raw"), ["mbr"])
expect(put("g.raw", 0, mbr(gpt[:8] + struct.pack("<II", 2, 9)), "z.raw"),
       ["mbr"])
expect(put("g.raw", 0, mbr(), "z.raw"), ["mbr"])
fat = bytearray(mbr())
fat[0x10], fat[0x15] = 2, 0xf8
expect(put("g.raw", 0, bytes(fat), "z.raw"), [], matches=[])
for sign in (b"CD001", b"NSR02", b"NSR03"):
    expect(put("i.iso", (32 << 10) + 1, sign, "z.raw"), [], matches=["iso"])
expect("i.iso", [], "--expect=iso")
expect("i.iso", ["expected_format"], "--expect=raw")
put("h.iso", 0, mbr(linux), "i.iso")
expect("h.iso", ["polyglot"])
expect("h.iso", [], "--expect=iso")
expect(put("l.luks", 0, b"LUKS\xba\xbe\0\1", "z.raw"), [], encrypted=True,
       matches=["luks"])
expect(put("l.luks", 0, b"LUKS\xba\xbe\0\2", "z.raw"), ["version"])

# Whatever QEMU takes for something else than raw is not raw to us.
def qemu_says(name):
    p = subprocess.run(["qemu-img", "info", "--output=json", name],
                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(p.stdout)["format"] if p.returncode == 0 else "?"


def judge(name, is_raw=False):
    qemu = qemu_says(name)
    safe = inspect(name, "--untrusted", "--expect=raw")["safe"]
    if (qemu == "raw") != is_raw:
        fail(f"{name}: QEMU says {qemu}")
    if safe and qemu != "raw":
        fail(f"{name}: raw and safe, QEMU says {qemu}")


with open("x", "wb") as f:
    f.write(bytes(600))
flat = b'CID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n' \
       b'RW 2048 FLAT "x" 0\n'
for i, start in enumerate((
        b"version=1\n", b"version=2\n", b"version=3\n", b"version=1\r\n",
        b"#\nversion=1\n", b"# x\r\n#\nversion=1\n", b" \nversion=1\n",
        b"   \r\nversion=1\n", b"#\n  \n#\xff\0\nversion=1\n",
        b"#" + b"-" * 499 + b"\nversion=1\n")):
    judge(put(f"text{i}", 0, start + flat, "z.raw"))
    v = inspect(f"text{i}", "--untrusted", "--expect=vmdk")
    if v["safe"] or v["format"] != "vmdk":
        fail(f"text{i}: {v}")
judge(put("text", 0, b"version=4\n" + flat, "z.raw"), is_raw=True)
for f in ("qcow", "qcow2", "qed", "vdi", "vmdk", "vhdx", "vpc", "parallels"):
    run("qemu-img", "create", "-q", "-f", f, f"judged.{f}", "4M")
    judge(f"judged.{f}")
for n, at, sign in (
        ("bochs", 0, b"Bochs Virtual HD Image".ljust(32, b"\0") +
         b"Redolog".ljust(16, b"\0") + b"Growing".ljust(16, b"\0") +
         struct.pack("<II", 0x20000, 512)),
        ("cloop", 0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && "
         b"mount -r -t iso9660 /dev/cloop $1\n"),
        ("parallels", 0, b"WithouFreSpacExt" + struct.pack("<I", 2)),
        ("vdi", 64, b"\x7f\x10\xda\xbe"), ("vpc", 0, b"conectix"),
        ("luks", 0, b"LUKS\xba\xbe\0\1"),
        ("qcow2", 0, b"QFI\xfb\0\0\0\x09"), ("vmdk3", 0, b"COWD"),
        ("name.dmg", 0, b"\0")):
    judge(put(f"sign.{n}", at, sign, "z.raw"))
# QEMU does not look at ends; others do.
for n, at, sign in (("vpc", 512, b"conectix"), ("vpc", 511, b"conectix"),
                    ("dmg", 512, b"koly" + struct.pack(">II", 4, 512))):
    judge(put("tail", (1 << 20) - at, sign, "z.raw"), is_raw=True)
    expect("tail", ["tail"])
    expect("tail", ["tail"], "--expect=raw")
    if not inspect("tail")["safe"]:
        fail("an end is no reason by itself")
judge("z.raw", is_raw=True)
expect("z.raw", [], "--expect=raw")

# two things at once
for extra, off in ((b"CD001", (32 << 10) + 1), (b"\x55\xaa", 510),
                   (b"\x7f\x10\xda\xbe", 64)):
    expect(put("poly", off, extra, Q), ["polyglot"])
    expect("poly", ["polyglot"], "--expect=qcow2")
expect(put("poly", 510, b"\x55\xaa", M), ["polyglot"])
expect(put("poly", 510, b"\x55\xaa", "a.vdi"), ["polyglot"])

# Names are no commands for the terminal.
os.symlink("x", "l")
run("qemu-img", "rebase", "-u", "-F", "raw", "-b", "\x1b]0;x\x07\n", "b.qcow2")
out = subprocess.run(["vimg", "inspect", "b.qcow2"],
                     stdout=subprocess.PIPE).stdout
if b"\x1b" in out or b"\x07" in out:
    fail("control characters reach the terminal")
for args in (["nowhere"], ["--expect=foo", Q], [], [Q, Q], ["."]):
    p = subprocess.run(["vimg", "inspect", *args], stderr=subprocess.DEVNULL)
    if p.returncode != 1:
        fail(f"{args}: exit {p.returncode}")
sys.exit(bad > 0)
P

# One file is opened.
touch victim
qemu-img create -q -f qcow2 -b "$tmp/victim" -F raw b.qcow2 1M
for f in b.qcow2 d.qcow2 monolithicFlat.vmdk diff.vdi; do
    vimg inspect "$tmp/$f" >out || die "$f without --untrusted: $(cat out)"
    strace -f -qq -e trace=open,openat,openat2 -o trace \
        vimg inspect --untrusted "$tmp/$f" >out && die "$f is no safe file"
    [ "$(grep -v ENOENT trace | grep -o "\"$tmp/[^\"]*\"" | sort -u)" = \
        "\"$tmp/$f\"" ] || die "$f opens: $(cat trace)"
done
exit 0
