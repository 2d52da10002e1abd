#!/bin/sh
# vimg check against qemu-img check: counts, words, exit codes.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

prepare qemu-img create -q -f qcow2 a.qcow2 64M
prepare qemu-io -c 'write 4M 1M' -c 'write -c 6M 64k' -c 'write -z 7M 64k' \
    a.qcow2
prepare qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 o.qcow2
prepare qemu-img create -q -f raw a.raw 1M
prepare qemu-img create -q -f vdi a.vdi 8M
prepare qemu-img create -q -f vmdk a.vmdk 8M
# Cluster 1 unreferenced by the refcounts; a leak behind the last cluster.
prepare cp a.qcow2 bad.qcow2
prepare sh -c "printf '\\0\\0' | dd of=bad.qcow2 bs=1 seek=131074 \
    conv=notrunc status=none"
prepare cp a.qcow2 leak.qcow2
prepare sh -c "printf '\\0\\1' | dd of=leak.qcow2 bs=1 seek=131136 \
    conv=notrunc status=none; truncate -s 4M leak.qcow2"

for f in a.qcow2 o.qcow2 a.raw a.vdi a.vmdk missing; do
    both check $f
    both check -q $f
    json check --output=json $f
done
for f in bad.qcow2 leak.qcow2; do
    both check $f
    both check -q $f
    json check --output=json $f
done
prepare cp leak.qcow2 leak2.qcow2
both check -r leaks leak2.qcow2
both check leak2.qcow2
prepare cp leak.qcow2 leak2.qcow2
json check -r all --output=json leak2.qcow2
prepare cp bad.qcow2 bad2.qcow2
code check -r all bad2.qcow2
both check bad2.qcow2
qemu-img check -q "$tmp/v/bad2.qcow2" || wrong "qemu-img check after repair"
# What does not fit into memory takes further passes, with the same answer.
prepare qemu-img create -q -f qcow2 -o preallocation=metadata w.qcow2 24G
prepare qemu-img snapshot -c s w.qcow2
json check --output=json w.qcow2
(cd "$tmp/v" && vimg check --output=json w.qcow2 >one.json &&
    vimg check --memory=600k --output=json w.qcow2 >many.json &&
    cmp one.json many.json) || wrong "check --memory"
# A finding is counted once, though the window in which it was made was cut.
prepare qemu-img create -q -f qcow2 -o cluster_size=512,preallocation=metadata \
    f.qcow2 64M
clear_flag='
import struct, sys
with open(sys.argv[1], "r+b") as f:
    n, at = struct.unpack(">IQ", f.read(48)[36:])
    f.seek(at)
    l1 = struct.unpack(">%dQ" % n, f.read(8 * n))
    i = max(range(n), key=lambda i: l1[i] & ~(1 << 63))
    f.seek(at + 8 * i)
    f.write(struct.pack(">Q", l1[i] & ~(1 << 63)))
'
prepare python3 -c "$clear_flag" f.qcow2
json check --output=json f.qcow2
(cd "$tmp/v"; vimg check --output=json f.qcow2 >one.json
    vimg check --memory=800k --output=json f.qcow2 >many.json
    cmp one.json many.json) || wrong "check --memory: a flag"

# Where guest data are a table too, the refcounts may be right; qemu-img sees
# nothing wrong.  It is not repaired, and not opened for a guest.
share_table='
import struct, sys
with open(sys.argv[1], "r+b") as f:
    head = f.read(80)
    l1, refs = struct.unpack(">QQ", head[40:56])
    f.seek(l1); l2 = struct.unpack(">Q", f.read(8))[0] & ~(1 << 63)
    f.seek(refs); block = struct.unpack(">Q", f.read(8))[0]
    f.seek(72); f.write(struct.pack(">Q", 1))
    f.seek(l1); f.write(struct.pack(">Q", l2))
    f.seek(l2 + 8); f.write(struct.pack(">Q", l2))
    f.seek(block + (l2 >> 16) * 2); f.write(struct.pack(">H", 2))
'
prepare qemu-img create -q -f qcow2 t.qcow2 1M
prepare qemu-io -c 'write 0 64k' t.qcow2
prepare python3 -c "$share_table" t.qcow2
(cd "$tmp/v"
    for args in '' '-r all'; do
        vimg check $args t.qcow2 >said 2>&1
        [ $? = 2 ] && grep -q 'is an L2 table and something else' said ||
            { cat said; exit 1; }
    done
    vimg io -c 'write 0 1k' t.qcow2 2>said && exit 1
    grep -q 'cannot be repaired' said) || wrong "a table that is data"
# What cannot be read is given up, and said, by guest offset.
spoil_entry='
import struct
with open("lost.qcow2", "r+b") as f:
    f.seek(40)
    f.seek(struct.unpack(">Q", f.read(8))[0])
    f.seek((struct.unpack(">Q", f.read(8))[0] & ~(1 << 63)) + 8)
    f.write(struct.pack(">Q", 1 << 63 | 1 << 40))
'
prepare qemu-img create -q -f qcow2 lost.qcow2 1M
prepare qemu-io -c 'write 0 256k' lost.qcow2
prepare python3 -c "$spoil_entry"
(cd "$tmp/v"; vimg check -r all lost.qcow2 >said 2>&1
    grep -q 'Lost: guest bytes 65536 to 131072' said && qemu-img check -q \
        lost.qcow2) || wrong "what is lost"
both check -r foo a.qcow2
both check -U a.qcow2
both check -T none a.qcow2
code check -T foo a.qcow2
both check --output=foo a.qcow2
both check
both check a b
finish
