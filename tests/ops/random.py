#!/usr/bin/env python3
"""Random chains of images and random whole-image operations on them; what
the guest sees is compared with what qemu-img says after every step.

    random.py [ROUNDS [SEED]]
"""
import os
import random
import shutil
import subprocess
import sys
import tempfile

TOP = os.getcwd()
IMGOP = os.path.join(TOP, "tests/ops/imgop")
ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 12
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
if not shutil.which("qemu-img") or not shutil.which("qemu-io"):
    sys.exit(77)
rnd = random.Random(SEED)
log = []


def sh(*argv, ok=(0,)):
    log.append(" ".join(argv))
    r = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if r.returncode not in ok:
        sys.exit("seed %d: %s\n%s" % (SEED, "\n".join(log[-25:]),
                                      r.stdout.decode()))
    return r.stdout.decode()


def flat(fmt, path):
    sh("qemu-img", "convert", "-U", "-f", fmt, "-O", "raw", path, "flat")
    with open("flat", "rb") as f:
        return f.read()


def check(*names):
    for fmt, path in names:
        if fmt == "qcow2":
            sh("qemu-img", "check", "-U", "-f", fmt, path)


def options():
    o = [rnd.choice(["cluster_size=512", "cluster_size=4k", "cluster_size=64k",
                     "cluster_size=64k", "cluster_size=2M"])]
    kind = rnd.randrange(6)
    if kind == 0:
        o.append("compat=0.10")
    elif kind == 1:
        o = ["extended_l2=on", "cluster_size=%s" % rnd.choice(["16k", "64k"])]
    elif kind == 2:
        o.append("refcount_bits=%d" % rnd.choice([1, 8, 64]))
    elif kind == 3:
        o.append("compression_type=zstd")
    return ",".join(o)


def size():
    return rnd.choice([1, 3, 6, 9]) * 1000448 + 512 * rnd.randrange(3)


def scribble(fmt, path, length):
    words = []
    for _ in range(rnd.randrange(1, 8)):
        off = rnd.randrange(0, length // 512) * 512
        n = min(length - off, 512 * rnd.randrange(1, 1500))
        kind = rnd.choice(["-P %d" % rnd.randrange(1, 255)] * 4 + ["-z"])
        words += ["-c", "write %s %d %d" % (kind, off, n)]
    sh("qemu-io", "-f", fmt, *words, path)


def create(fmt, path, length, below=None):
    if os.path.exists(path):
        os.unlink(path)
    argv = ["qemu-img", "create", "-q", "-f", fmt]
    if fmt == "qcow2":
        argv += ["-o", options()]
    if below:
        argv += ["-b", below[1], "-F", below[0]]
    sh(*argv, path, str(length))
    if rnd.randrange(5):
        scribble(fmt, path, length)
    if fmt == "qcow2" and not below and rnd.randrange(3) == 0:
        sh("qemu-img", "convert", "-c", "-f", fmt, "-O", fmt, "-o", options(),
           path, path + ".c")
        os.rename(path + ".c", path)
    return fmt, path


def chain():
    """Layers, base first, and what the guest sees."""
    layers = [create(rnd.choice(["raw", "qcow2", "qcow2"]), "base", size())]
    for i in range(rnd.randrange(1, 4)):
        layers.append(create("qcow2", "l%d" % i, size(), layers[-1]))
    return layers, flat(*layers[-1])


def expect(before, fmt, path, what):
    after = flat(fmt, path)
    if before != after:
        at = next((i for i in range(min(len(before), len(after)))
                   if before[i] != after[i]), min(len(before), len(after)))
        sys.exit("seed %d: %s: %s differs at %d (%d, %d bytes)\n%s" % (
            SEED, what, path, at, len(before), len(after),
            "\n".join(log[-40:])))


def threads():
    return ["-j", str(rnd.choice([1, 2, 4]))]


def name(layer):
    return "%s:%s" % layer


def op_commit(layers, before):
    depth = rnd.randrange(1, len(layers))
    lower = layers[-1 - depth]
    old = flat(*lower)
    sh(IMGOP, "commit", *threads(), *rnd.choice([[], ["-k"]]),
       name(layers[-1]), str(depth))
    expect(before, *layers[-1], "commit")
    merged = before + old[len(before):]
    expect(merged, *lower, "commit")
    check(*layers)


def op_rebase(layers, before):
    create("qcow2", "other", size())
    to = rnd.choice([None, ("qcow2", "other")] + layers[:-1])
    argv = ["-B", to[1], "-F", to[0]] if to else []
    sh(IMGOP, "rebase", *threads(), *rnd.choice([[], ["-c"]]), *argv,
       name(layers[-1]))
    expect(before, *layers[-1], "rebase")
    check(*layers)


def op_resize(layers, before):
    for _ in range(3):
        new = size()
        sh(IMGOP, "resize", "-s", name(layers[-1]), str(new))
        before = before[:new] + bytes(max(0, new - len(before)))
        expect(before, *layers[-1], "resize")
        check(*layers)
        if rnd.randrange(2):
            scribble(*layers[-1], new)
            before = flat(*layers[-1])


def op_convert(layers, before):
    fmt = rnd.choice(["raw", "qcow2", "qcow2", "vdi", "vmdk"])
    argv = threads()
    if fmt == "qcow2":
        for o in options().split(","):
            argv += ["-o", o]
        argv += rnd.choice([[], ["-c"]])
        if rnd.randrange(2):
            below = rnd.choice(layers)
            argv += ["-B", below[1], "-F", below[0]]
    argv += rnd.choice([[], ["-S", "0"], ["-S", "65536"], ["-S", "512"]])
    sh(IMGOP, "convert", *argv, name(layers[-1]), fmt + ":out")
    if fmt in ("vdi", "vmdk"):
        sh(IMGOP, "compare", fmt + ":out", name(layers[-1]))
    else:
        expect(before, fmt, "out", "convert")
        sh("qemu-img", "compare", "-U", "-f", fmt, "-F", layers[-1][0], "out",
           layers[-1][1])
    check((fmt, "out"))


def op_copy(layers, before):
    fmt = rnd.choice(["raw", "qcow2"])
    below = None
    if fmt == "qcow2" and rnd.randrange(2):
        below = create("qcow2", "other", size())
    length = len(before) + 512 * rnd.choice([0, 0, 1, 3000])
    create(fmt, "out", length, below)
    old = flat(fmt, "out")
    argv = threads()
    if fmt == "qcow2":
        argv += rnd.choice([[], ["-c"]])
    sh(IMGOP, "copy", *argv, name(layers[-1]), fmt + ":out")
    expect(before + old[len(before):], fmt, "out", "copy")
    check((fmt, "out"))


def op_compare(layers, before):
    other = flat(*layers[-1])
    with open("f", "wb") as f:
        f.write(other)
    sh(IMGOP, "compare", *threads(), name(layers[-1]), "raw:f")
    at = rnd.randrange(len(other))
    with open("f", "r+b") as f:
        f.seek(at)
        f.write(bytes([other[at] ^ 1]))
    said = sh(IMGOP, "compare", *threads(), name(layers[-1]), "raw:f",
              ok=(1,))
    if said.split() != ["1", str(at)]:
        sys.exit("seed %d: compare says %s, not %d" % (SEED, said, at))


OPS = [op_commit, op_rebase, op_resize, op_convert, op_copy, op_compare]


def main():
    work = tempfile.mkdtemp(prefix="vimg-random.")
    os.chdir(work)
    try:
        for i in range(ROUNDS):
            for op in OPS:
                for old in os.listdir("."):
                    os.unlink(old)
                log.clear()
                layers, before = chain()
                op(layers, before)
    finally:
        os.chdir(TOP)
        if not os.environ.get("KEEP"):
            shutil.rmtree(work)
    print("random: %d rounds of %d operations, all good" % (ROUNDS, len(OPS)))


main()
