#!/usr/bin/env python3
"""What OpenStack's format inspector rejects, vimg inspect rejects.

The inspector is the one of Debian's python3-glance, fetched by apt and not
installed.  It judges images as programs write them, each with one thing that
an upload may not have, and copies with random bytes changed in what describes
them; so does vimg.

  MUTANTS=n   copies of each image
"""
import glob
import importlib.util
import os
import random
import struct
import subprocess
import sys
import tempfile
import types

MUTANTS = int(os.environ.get("MUTANTS", "20"))
INSPECTOR = "usr/lib/python3/dist-packages/glance/common/format_inspector.py"
MIB = 1 << 20


def run(*cmd):
    subprocess.run(cmd, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


def load_inspector():
    try:
        run("apt-get", "download", "python3-glance")
        run("dpkg", "-x", glob.glob("python3-glance*.deb")[0], "glance")
    except (OSError, IndexError, subprocess.CalledProcessError):
        print("SKIP: python3-glance cannot be fetched")
        sys.exit(1 if os.environ.get("VIMG_CI") == "1" else 77)

    class Quiet:
        def __getattr__(self, name):
            return lambda *args, **kw: None

    log = types.ModuleType("oslo_log.log")
    log.getLogger = lambda name: Quiet()
    oslo = types.ModuleType("oslo_log")
    oslo.log = log
    sys.modules.update({"oslo_log": oslo, "oslo_log.log": log})
    spec = importlib.util.spec_from_file_location("inspector",
                                                  "glance/" + INSPECTOR)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def openstack_accepts(inspector, name, expected):
    try:
        found = inspector.detect_file_format(name)
        return str(found) == expected and bool(found.safety_check())
    except Exception:           # its parsers stumble over what is damaged
        return False


def vimg_accepts(name, expected):
    p = subprocess.run(["vimg", "inspect", "--untrusted", "--expect",
                        expected, "--output=json", name],
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if p.returncode not in (0, 1, 2):
        sys.exit(f"{name}: vimg inspect ends with {p.returncode}")
    return p.returncode == 0


def create(name, *args):
    run("qemu-img", "create", "-q", *args, name, "1M")
    return name


def changed(name, new, changes):
    with open(name, "rb") as f:
        data = bytearray(f.read())
    for at, piece in changes:
        data[at:at + len(piece)] = piece
    with open(new, "wb") as f:
        f.write(data)
    return new


def text_descriptor(name, extent, more=""):
    with open(name, "w") as f:
        f.write("# Disk DescriptorFile\nversion=1\nCID=12345678\n"
                "parentCID=ffffffff\n" + more +
                f'createType="monolithicFlat"\n\nRW 2048 {extent}\n')
    return name


def make_images():
    """(format, name)"""
    create("base.raw", "-f", "raw")
    plain = create("plain.qcow2", "-f", "qcow2")
    old = create("old.qcow2", "-f", "qcow2", "-o", "compat=0.10")
    backed = create("backed.qcow2", "-f", "qcow2", "-b", "base.raw", "-F",
                    "raw")
    data = create("data.qcow2", "-f", "qcow2", "-o", "data_file=data.bin")
    sparse = create("sparse.vmdk", "-f", "vmdk")
    flat = create("flat.vmdk", "-f", "vmdk", "-o", "subformat=monolithicFlat")
    run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized",
        "base.raw", "stream.vmdk")
    vdi = create("plain.vdi", "-f", "vdi")
    yield from (("qcow2", n) for n in (plain, old, backed, data))
    yield from (("vmdk", n) for n in (sparse, flat, "stream.vmdk"))
    yield "vdi", vdi
    yield "raw", "base.raw"
    yield "raw", plain
    yield "qcow2", "base.raw"
    yield "qcow2", vdi
    yield "vmdk", plain
    for fmt in "qed", "vhdx", "vpc":
        yield "raw", create("other." + fmt, "-f", fmt)
    for bit in 3, 4, 5, 40, 63:
        yield "qcow2", changed(plain, f"feature{bit}.qcow2",
                               [(72, struct.pack(">Q", 1 << bit))])
    yield "qcow2", changed(plain, "name.qcow2",
                           [(8, struct.pack(">QI", 600, 4)), (600, b"/etc")])
    yield "vmdk", text_descriptor("path.vmdk", 'FLAT "/etc/passwd" 0')
    yield "vmdk", text_descriptor("none.vmdk", 'ZERO', "odd line here\n")
    yield "vmdk", text_descriptor("up.vmdk", 'FLAT "../base.raw" 0')


def mutant(name, number, rng):
    with open(name, "rb") as f:
        size = len(f.read())
    places = [rng.randrange(0, min(size, rng.choice((128, 1024, 4096))))
              for _ in range(rng.randrange(1, 4))]
    return changed(name, f"mutant-{number}", [
        (at, bytes([rng.choice((0, 1, 255, rng.randrange(256)))]))
        for at in places])


def main():
    top = os.path.abspath(os.environ.get("builddir", "."))
    os.environ["PATH"] = top + os.pathsep + os.environ["PATH"]
    os.chdir(tempfile.mkdtemp(prefix="vimg-test."))
    try:
        judge(load_inspector())
    finally:
        run("rm", "-rf", os.getcwd())


def judge(inspector):
    rng = random.Random(1)
    seen = {True: 0, False: 0}
    wrong = []
    for fmt, name in make_images():
        copies = [name] + [mutant(name, i, rng) for i in range(MUTANTS)]
        for copy in copies:
            theirs = openstack_accepts(inspector, copy, fmt)
            seen[theirs] += 1
            if not theirs and vimg_accepts(copy, fmt):
                wrong.append(f"{copy} (of {name}), as {fmt}")
    print(f"{seen[False]} images that OpenStack rejects, {seen[True]} that "
          f"it accepts")
    if wrong:
        sys.exit("vimg inspect calls safe: " + "; ".join(wrong))


main()
