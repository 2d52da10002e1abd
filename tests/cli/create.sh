#!/bin/sh
# vimg create against qemu-img create.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

both create -f qcow2 a.qcow2 2G
both create -f raw a.raw 64M
both create -f vdi a.vdi 64M
both create -f vmdk a.vmdk 64M
both create -f vdi -o static=on s.vdi 1M
both create -f raw -o preallocation=full full.raw 1M
both create -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
both create -f qcow2 -b a.raw -F raw c.qcow2 1G
both create -f qcow2 -o backing_file=a.qcow2,backing_fmt=qcow2 d.qcow2 40G
both create -f qcow2 -o data_file=x.raw,preallocation=metadata e.qcow2 16M
for o in cluster_size=4k compat=0.10 lazy_refcounts=on refcount_bits=1 \
    extended_l2=on compression_type=zstd preallocation=falloc \
    preallocation=full cluster_size=2M,compat=v3; do
    both create -f qcow2 -o $o o.qcow2 16M
    both info o.qcow2
    both check o.qcow2
done
both create -f qcow2 x 1.5G
both create -f qcow2 x 0x100000
both create -f qcow2 -o size=1G x
both create -f qcow2 -o cluster_size=4k -o refcount_bits=8 x 1G
both create -q -f qcow2 x 1G
both create -f qcow2 -u -b a,,b -F qcow2 x 1G
both create -f qcow2 -o backing_file=a,,b,backing_fmt=qcow2 -u x 1G
both create -f qcow2 --object secret,id=s,data=abc x 1M
# Mistakes.
both create
both create -f foo x 1M
both create -f qcow2 x
both create -f qcow2 x 1M z
both create -f qcow2 x 10Q
both create -f qcow2 x 30E
both create -f qcow2 -o foo=1 x 1M
both create -f qcow2 -o size=1M x 2M
both create -f qcow2 -o '' x 2M
both create -f qcow2 -b missing -F qcow2 x
both create -f qcow2 -u -b missing -F qcow2 x
both create -f raw -b a.raw -F raw x 1M
code create -F qcow2 -f qcow2 x 1M
code create -f qcow2 -o lazy_refcounts=foo x 1M
code create -f qcow2 -o cluster_size=3 x 1M
code create -f qcow2 -b a.qcow2 -F qcow2 a.qcow2
code create -f qcow2 missing/x 1M
code create --object foo,id=1 x 1M
both create --foo
both create -f

# Our own rules where qemu-img refuses or guesses badly.
cd "$tmp/v"
format() { vimg info --output=json "$1" | python3 -c '
import json, sys
i = json.load(sys.stdin)
print(i["format"], i.get("backing-filename-format"))'; }
vimg create -q -b a.qcow2 n1; [ "$(format n1)" = "qcow2 qcow2" ] || die n1
vimg create -q -b a.raw n2.raw; [ "$(format n2.raw)" = "qcow2 raw" ] || die n2
vimg create -q n3.qcow2 1M; [ "$(format n3.qcow2)" = "qcow2 None" ] || die n3
vimg create -q n4.vdi 1M; [ "$(format n4.vdi)" = "vdi None" ] || die n4
vimg create -q n5.vmdk 1M; [ "$(format n5.vmdk)" = "vmdk None" ] || die n5
vimg create -q n6.qcow 1M; [ "$(format n6.qcow)" = "raw None" ] || die n6
vimg create -f qcow2 -o help | grep -q '^  cluster_size=<size> ' || die help
finish
