#!/bin/sh
# vimg amend against qemu-img amend.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

prepare qemu-img create -q -f qcow2 a.qcow2 64M
prepare qemu-io -c 'write -P 1 0 1M' -c 'write -z 1M 1M' a.qcow2
prepare qemu-img create -q -f raw a.raw 64M
prepare qemu-img create -q -f qcow2 c.qcow2 64M
prepare qemu-io -c 'write -P 1 0 1M' -c 'write -P 0 5M 1M' c.qcow2

prepare qemu-img create -q -f qcow2 am.qcow2 64M
for o in compat=0.10 compat=1.1 lazy_refcounts=on lazy_refcounts=off \
    compat=0.10,lazy_refcounts=on refcount_bits=64 refcount_bits=8 \
    compat=0.10,refcount_bits=8 size=128M; do
    both amend -q -o $o am.qcow2
    json info --output=json am.qcow2
    both check am.qcow2
done
both amend am.qcow2
both amend -o foo=bar am.qcow2
both amend -o cluster_size=4k am.qcow2
both amend -f raw -o size=4k a.raw
both amend -f raw -o help
both amend -o '' am.qcow2
both amend -o size=1
both amend -o size=1 a b
finish
