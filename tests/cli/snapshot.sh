#!/bin/sh
# vimg snapshot against qemu-img snapshot.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

prepare qemu-img create -q -f qcow2 a.qcow2 64M
prepare qemu-io -c 'write -P 1 0 1M' -c 'write -z 1M 1M' a.qcow2
prepare qemu-img create -q -f raw a.raw 64M
prepare qemu-img create -q -f qcow2 c.qcow2 64M
prepare qemu-io -c 'write -P 1 0 1M' -c 'write -P 0 5M 1M' c.qcow2

both snapshot -c s1 a.qcow2
both snapshot -c s2 a.qcow2
both snapshot -l a.qcow2
prepare qemu-io -c 'write -P 9 0 1M' a.qcow2
both snapshot -a s1 a.qcow2; images a.qcow2
both snapshot -d s1 a.qcow2
both snapshot -d 2 a.qcow2
both snapshot -l a.qcow2
both snapshot -c 3 a.qcow2
both snapshot -c other a.qcow2
both snapshot -d 3 a.qcow2
both snapshot -l a.qcow2
both snapshot -a missing a.qcow2
both snapshot -d missing a.qcow2
both snapshot -d s1 -l a.qcow2
both snapshot -U -c x a.qcow2
both snapshot -c 1 -f raw a.raw
both snapshot -d 1 -f raw a.raw
both snapshot -l a.raw
both snapshot
both check a.qcow2

# Refused, and nothing is changed.
prepare qemu-img create -q -f qcow2 -o data_file=d.raw d.qcow2 4M
prepare qemu-io -c 'write 0 1M' d.qcow2
both snapshot -c s1 d.qcow2
(cd "$tmp/v" && qemu-img check -q d.qcow2) || wrong 'a refused snapshot did harm'
finish
