#!/bin/sh
# vimg map against qemu-img map, where there are more runs than one question
# of the library brings back, and holes in the file between them.
. ./tests/functions.sh
need qemu-img qemu-io python3
cd "$tmp"

# Every second of the smallest clusters, those of an overlay in another order,
# then holes in the files where guest data are.
python3 - <<'END'
import random, subprocess
random.seed(7)

def write(name, clusters, size, more=()):
    with open(name + ".raw", "wb") as f:
        f.truncate(16 << 20)
        for c in clusters:
            f.seek(c * size)
            f.write(random.randbytes(size))

def io(name, lines):
    subprocess.run(["qemu-io", "-f", "qcow2", name], check=True,
                   input="".join(l + "\n" for l in lines).encode(),
                   stdout=subprocess.DEVNULL)

write("many", range(1, 32768, 2), 512)
subprocess.run("qemu-img convert -f raw -O qcow2 -S 512 -o cluster_size=512 "
               "many.raw many.qcow2".split(), check=True)
subprocess.run("qemu-img convert -f raw -O qcow2 -c many.raw "
               "packed.qcow2".split(), check=True)
subprocess.run("qemu-img create -q -f qcow2 -o preallocation=metadata,"
               "cluster_size=4k below.qcow2 32M".split(), check=True)
subprocess.run("qemu-img create -q -f qcow2 -b below.qcow2 -F qcow2 -o "
               "cluster_size=4k top.qcow2 48M".split(), check=True)
order = random.sample(range(8192), 1500)
io("below.qcow2", ["write -P %d %dk 4k" % (c % 250 + 1, c * 4)
                   for c in order])
order = random.sample(range(12288), 1500)
io("top.qcow2", ["write %s %dk 4k" % ("-z" if c % 5 == 0 else "-P 7", c * 4)
                 for c in order])
io("top.qcow2", ["discard %dk 4k" % (c * 4) for c in order[:200]])
END
cp packed.qcow2 mixed.qcow2
qemu-io -c 'write -P 3 64k 64k' -c 'write -z 256k 128k' mixed.qcow2 >/dev/null
# Guest data of top, read from its own map, become holes of the file.
qemu-img map --output=json top.qcow2 | python3 -c '
import json, os, sys
f = os.open("top.qcow2", os.O_RDWR)
for n, e in enumerate(json.load(sys.stdin)):
    if e["depth"] == 0 and e["data"] and n % 3 == 0:
        print(e["offset"], e["length"])' |
    while read -r at length; do
        fallocate -p -o "$at" -l "$length" top.qcow2
    done

for image in many packed mixed below top; do
    for how in human json; do
        qemu-img map --output=$how $image.qcow2 >theirs 2>theirs.err || :
        vimg map --output=$how $image.qcow2 >ours 2>ours.err || :
        cmp ours theirs || die "$image.qcow2, $how"
        [ -s ours ] || die "$image.qcow2, $how: nothing was said"
    done
    vimg map --output=json -s 1M -l 5M $image.qcow2 >ours
    qemu-img map --output=json -s 1M -l 5M $image.qcow2 >theirs
    cmp ours theirs || die "$image.qcow2, a part"
done
[ "$(vimg map --output=json many.qcow2 | wc -l)" -gt 30000 ] || die "few runs"
