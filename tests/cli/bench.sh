#!/bin/sh
# vimg bench against qemu-img bench.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

prepare qemu-img create -q -f qcow2 a.qcow2 64M
prepare qemu-io -c 'write -P 1 0 1M' -c 'write -z 1M 1M' a.qcow2
prepare qemu-img create -q -f raw a.raw 64M
prepare qemu-img create -q -f qcow2 c.qcow2 64M
prepare qemu-io -c 'write -P 1 0 1M' -c 'write -P 0 5M 1M' c.qcow2

both bench -c 100 -d 4 -s 64k a.qcow2
code bench -c 100 -w -q c.qcow2
both bench -c 100 -w --pattern=5 -d 8 --flush-interval=10 -S 8k -o 1M c.qcow2
both bench -c 100 -w -d 8 --flush-interval=10 --no-drain c.qcow2
both bench -c 0 a.qcow2
both bench -i threads -c 10 -U a.qcow2
for args in '-c foo a.qcow2' '--flush-interval=10 a.qcow2' '-i foo a.qcow2' \
    '-w --flush-interval=1 a.qcow2' '-w --pattern=256 a.qcow2' '' \
    '-s 4G a.qcow2' '-o 100G -c 10 a.qcow2'; do
    code bench $args
done
finish
