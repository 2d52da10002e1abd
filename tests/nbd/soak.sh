#!/bin/sh
# 64 connections at once on an overlay, for VIMG_SOAK seconds (3).
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"
need qemu-img
soak=$builddir/tests/nbd/soak
[ -x "$soak" ] || skip "built without libnbd"

truncate -s 32M "$tmp/base.raw"
dd if=/dev/urandom of="$tmp/base.raw" bs=1M count=20 conv=notrunc status=none
qemu-img create -q -f qcow2 -b base.raw -F raw "$tmp/top.qcow2"
serve -e 0 -f qcow2 --discard=unmap --cache=unsafe "$tmp/top.qcow2"
"$soak" "$sock" 64 "${VIMG_SOAK:-3}"
stop_server
qemu-img check -q -f qcow2 "$tmp/top.qcow2" || die "qemu-img check"
