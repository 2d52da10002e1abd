#!/bin/sh
# vimg compare and measure against qemu-img's.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

prepare qemu-img create -q -f qcow2 a.qcow2 64M
prepare qemu-io -c 'write -P 1 0 1M' -c 'write -z 1M 1M' a.qcow2
prepare qemu-img create -q -f raw a.raw 64M
prepare qemu-img create -q -f qcow2 c.qcow2 64M
prepare qemu-io -c 'write -P 1 0 1M' -c 'write -P 0 5M 1M' c.qcow2
prepare qemu-img create -q -f qcow2 s.qcow2 32M
prepare qemu-io -c 'write -P 1 0 1M' s.qcow2
prepare qemu-img snapshot -c s2 c.qcow2

both compare a.qcow2 c.qcow2
both compare a.qcow2 s.qcow2
both compare -s a.qcow2 s.qcow2
both compare -s a.qcow2 c.qcow2
both compare a.qcow2 a.raw
both compare -q a.qcow2 a.raw
both compare -f qcow2 -F raw -T none a.qcow2 a.raw
both compare -U a.qcow2 a.qcow2
both compare a.qcow2
both compare a.qcow2 missing
both compare -f foo a.qcow2 c.qcow2
both compare -T foo a.qcow2 c.qcow2

both measure a.qcow2
both measure -O qcow2 a.qcow2
json measure --output=json -O qcow2 a.qcow2
json measure --output=json -O raw a.raw
both measure --size 1G -O qcow2
both measure --size 1G -O qcow2 -o cluster_size=4k,refcount_bits=64
both measure --size 1G -O qcow2 -o extended_l2=on
both measure --size 1G -O qcow2 -o preallocation=full
both measure -l s2 -O qcow2 c.qcow2
for args in '--size 1G -O qcow2 a.raw' '-O qcow2' '--size foo -O qcow2' \
    '--size 1G -O foo' '--size 1G -O qcow2 -o foo=bar' \
    '--size 1G -f qcow2 -O qcow2' '--image-opts -f qcow2 a.qcow2'; do
    both measure $args
done
finish
